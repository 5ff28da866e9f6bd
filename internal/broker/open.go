package broker

import (
	"slices"
	"strings"
)

// Choose returns the kind that the address means. It returns a *URLError for one that is none of them, or that the kind
// refuses.
func Choose(a Address, kinds ...Kind) (Kind, error) {
	i := slices.IndexFunc(kinds, func(k Kind) bool { return k.Scheme == a.Scheme })
	if i < 0 {
		schemes := make([]string, len(kinds))
		for i, k := range kinds {
			schemes[i] = k.Scheme + "://"
		}
		return Kind{}, &URLError{"must begin with " + strings.Join(schemes, " or ") + "; no other broker is supported by this version"}
	}
	return kinds[i], kinds[i].Check(a)
}
