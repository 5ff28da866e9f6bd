package kafka

import "testing"

func FuzzParsePlace(f *testing.F) {
	f.Add("0198c0de00007000800000000000a001/12/cbf29ce484222325")
	f.Add("//")
	f.Fuzz(func(t *testing.T, s string) {
		p, ok := parsePlace(s)
		if !ok {
			return
		}
		if again, ok := parsePlace(p.String()); !ok || again != p {
			t.Errorf("%q is %+v, then %+v", s, p, again)
		}
	})
}
