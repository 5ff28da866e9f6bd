package web

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"mime"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"unicode"
)

const (
	typeJSON = "application/json"
	typeForm = "application/x-www-form-urlencoded"
)

// readField reads a body that consists of exactly one text field, as JSON or as a form, and returns its value. Anything
// else is a *problem: what is read leniently here would be read differently by whoever stands in front of the app.
func readField(w http.ResponseWriter, r *http.Request, name string) (string, error) {
	decode, err := decoderFor(r)
	if err != nil {
		return "", err
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, bodyBytesMax))
	if err != nil {
		return "", bodyProblem(err)
	}
	value, err := decode(body, name)
	if err != nil {
		return "", err
	}
	// U+FFFD is what encoding/json puts in place of bytes that are not UTF-8 and of half a character, such as the escape
	// \ud800 alone; in a form, the bytes themselves count as one here. Nobody typed it.
	if strings.ContainsRune(value, unicode.ReplacementChar) {
		return "", badRequest("invalid_encoding", fmt.Sprintf("The field %q must be text in UTF-8.", name))
	}
	return value, nil
}

func decoderFor(r *http.Request) (func(body []byte, name string) (string, error), error) {
	unsupported := &problem{
		status: http.StatusUnsupportedMediaType, code: "unsupported_media_type",
		message: "Send the body as " + typeJSON + " or " + typeForm + ", in UTF-8 and not compressed.",
	}
	if e := r.Header.Get("Content-Encoding"); e != "" && !strings.EqualFold(e, "identity") {
		return nil, unsupported
	}
	media, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil {
		return nil, unsupported
	}
	if charset, ok := params["charset"]; ok && !strings.EqualFold(charset, "utf-8") {
		return nil, unsupported
	}
	switch media {
	case typeJSON:
		return jsonField, nil
	case typeForm:
		return formField, nil
	}
	return nil, unsupported
}

func bodyProblem(err error) error {
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return &problem{
			status: http.StatusRequestEntityTooLarge, code: "body_too_large",
			message: fmt.Sprintf("The body is larger than %d KiB.", bodyBytesMax>>10),
		}
	case errors.Is(err, os.ErrDeadlineExceeded):
		return &problem{
			status: http.StatusRequestTimeout, code: "request_timeout",
			message: "The request took too long to arrive. Please send it again.",
		}
	}
	return badRequest("malformed_body", "The body ended before it was complete.")
}

// jsonField reads an object with exactly the field name, a string. It works on tokens because json.Unmarshal takes the
// last of two fields of one name, ignores the case of names and replaces what is not UTF-8.
func jsonField(body []byte, name string) (string, error) {
	if !json.Valid(body) {
		return "", badRequest("malformed_json", fmt.Sprintf("The body must be one JSON object with the field %q.", name))
	}
	d := json.NewDecoder(bytes.NewReader(body))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return "", badRequest("malformed_json", fmt.Sprintf("The body must be a JSON object with the field %q.", name))
	}
	value, found := "", false
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return "", badRequest("malformed_json", "The body must be one JSON object.")
		}
		switch {
		case key != name:
			return "", unknownField(fmt.Sprint(key), name)
		case found:
			return "", duplicateField(name)
		}
		token, err := d.Token()
		text, ok := token.(string)
		if err != nil || !ok {
			return "", badRequest("wrong_type", fmt.Sprintf("The field %q must be a string.", name))
		}
		value, found = text, true
	}
	if !found {
		return "", missingField(name)
	}
	return value, nil
}

// formField reads a form with exactly the field name, once.
func formField(body []byte, name string) (string, error) {
	form, err := url.ParseQuery(string(body))
	if err != nil {
		return "", badRequest("malformed_form", fmt.Sprintf("The form with the field %q is not encoded correctly.", name))
	}
	for _, key := range slices.Sorted(maps.Keys(form)) {
		if key != name {
			return "", unknownField(key, name)
		}
	}
	switch len(form[name]) {
	case 0:
		return "", missingField(name)
	case 1:
		return form[name][0], nil
	}
	return "", duplicateField(name)
}

// fieldName is what may be repeated to the client as the name of a field.
var fieldName = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,40}$`)

func unknownField(got, want string) error {
	if !fieldName.MatchString(got) {
		return badRequest("unknown_field", fmt.Sprintf("There is a field besides %q; send only that one.", want))
	}
	return badRequest("unknown_field", fmt.Sprintf("The field %q is not known here; send only %q.", got, want))
}

func duplicateField(name string) error {
	return badRequest("duplicate_field", fmt.Sprintf("The field %q is there more than once.", name))
}

func missingField(name string) error {
	return badRequest("missing_field", fmt.Sprintf("The field %q is missing.", name))
}
