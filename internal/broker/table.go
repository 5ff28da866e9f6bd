package broker

import (
	"fmt"
	"strings"
)

// Table is what the kinds of broker declare, in Markdown, for docs/brokers.md.
func Table(kinds ...Kind) string {
	yes := map[bool]string{true: "yes", false: "no"}
	var b strings.Builder
	b.WriteString("| `BROKER_URL` | broker | acknowledged events outlive its process | they are lost when | " +
		"it leaves out repeats itself | can be read again | can drop what is old |\n|---|---|---|---|---|---|---|\n")
	for _, k := range kinds {
		c := k.Capabilities
		repeats := "no"
		if c.Repeats > 0 {
			repeats = fmt.Sprintf("for %g minutes", c.Repeats.Minutes())
		}
		fmt.Fprintf(&b, "| `%s://` | %s | %s | %s | %s | %s | %s |\n",
			k.Scheme, k.Name, yes[c.Crash], c.Loss, repeats, yes[c.Replay], yes[c.Age])
	}
	return b.String()
}
