package telemetry

import (
	"path"
	"strings"
)

// condenseStack turns what debug.Stack returns into one line, innermost call first:
//
//	account.(*Service).Register service.go:42 < bus.handle handler.go:17
//
// Arguments and directories are left out. Text that is not a stack comes back empty.
func condenseStack(stack string) string {
	var calls []string
	lines := strings.Split(stack, "\n")
	for i := 0; i+1 < len(lines) && len(calls) < stackCallsMax; i++ {
		file, ok := strings.CutPrefix(lines[i+1], "\t")
		if !ok {
			continue
		}
		function := strings.TrimPrefix(lines[i], "created by ")
		function, _, _ = strings.Cut(function, " in goroutine ")
		if end := strings.LastIndexByte(function, '('); end > 0 && strings.HasSuffix(function, ")") {
			function = function[:end]
		}
		file, _, _ = strings.Cut(file, " +0x")
		if function = path.Base(function); !strings.HasPrefix(function, "debug.Stack") {
			calls = append(calls, function+" "+path.Base(file))
		}
	}
	return strings.Join(calls, " < ")
}
