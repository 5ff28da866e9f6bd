package nats

import "testing"

func FuzzEncode(f *testing.F) {
	for _, s := range []string{"", "plain", "100%", "é \"x\"\r\nNats-Msg-Id: 1", "%41", "\xff\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		encoded := encode(s)
		for _, c := range []byte(encoded) {
			if c <= ' ' || c >= 0x7f || c == '"' {
				t.Errorf("%q is encoded as %q", s, encoded)
			}
		}
		if got := decode(encoded); got != s {
			t.Errorf("%q came back as %q", s, got)
		}
		if got := decode(s); len(got) > len(s) {
			t.Errorf("%q was decoded as %q", s, got)
		}
	})
}

func FuzzParsePlace(f *testing.F) {
	f.Add("1700000000000000000/12/019a")
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
