package mail

import (
	"slices"
	"unicode/utf8"
)

// The parameters of RFC 3492, section 5.
const (
	punycodeBase        = 36
	punycodeTMin        = 1
	punycodeTMax        = 26
	punycodeSkew        = 38
	punycodeDamp        = 700
	punycodeInitialBias = 72
	punycodeDigits      = "abcdefghijklmnopqrstuvwxyz0123456789"
)

// punycode encodes one label of a domain name, without the "xn--" in front of it (RFC 3492, section 6.3). The label
// is valid UTF-8 and at most domainBytesMax long, so no sum below can overflow.
func punycode(label string) string {
	runes := []rune(label)
	var out []byte
	for _, r := range runes {
		if r < utf8.RuneSelf {
			out = append(out, byte(r))
		}
	}
	basic := len(out)
	if basic > 0 {
		out = append(out, '-')
	}
	codePoint, delta, bias := rune(utf8.RuneSelf), 0, punycodeInitialBias
	for handled := basic; handled < len(runes); {
		next := smallestFrom(runes, codePoint)
		delta += int(next-codePoint) * (handled + 1)
		codePoint = next
		for _, r := range runes {
			if r < codePoint {
				delta++
			}
			if r == codePoint {
				out = appendVariableLength(out, delta, bias)
				bias = adaptBias(delta, handled+1, handled == basic)
				delta = 0
				handled++
			}
		}
		delta++
		codePoint++
	}
	return string(out)
}

// smallestFrom gives the smallest rune that is at least floor; the caller knows that there is one.
func smallestFrom(runes []rune, floor rune) rune {
	smallest := slices.Max(runes)
	for _, r := range runes {
		if r >= floor {
			smallest = min(smallest, r)
		}
	}
	return smallest
}

func appendVariableLength(out []byte, delta, bias int) []byte {
	for k := punycodeBase; ; k += punycodeBase {
		threshold := min(max(k-bias, punycodeTMin), punycodeTMax)
		if delta < threshold {
			return append(out, punycodeDigits[delta])
		}
		out = append(out, punycodeDigits[threshold+(delta-threshold)%(punycodeBase-threshold)])
		delta = (delta - threshold) / (punycodeBase - threshold)
	}
}

func adaptBias(delta, points int, first bool) int {
	if first {
		delta /= punycodeDamp
	} else {
		delta /= 2
	}
	delta += delta / points
	k := 0
	for delta > (punycodeBase-punycodeTMin)*punycodeTMax/2 {
		delta /= punycodeBase - punycodeTMin
		k += punycodeBase
	}
	return k + (punycodeBase-punycodeTMin+1)*delta/(delta+punycodeSkew)
}
