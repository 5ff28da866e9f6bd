package mail

import (
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"mime/quotedprintable"
	netmail "net/mail"
	"os"
	"strings"
)

var errNotAMail = errors.New("the file is not a mail of this program")

// readMail reads a file of the mailbox.
func readMail(root *os.Root, id string) (Mail, error) {
	info, err := root.Lstat(id + mailboxExt)
	if err != nil {
		return Mail{}, fmt.Errorf("open mail: %w", err)
	}
	if !info.Mode().IsRegular() { // before it is opened: opening a pipe waits for its other end
		return Mail{}, errNotAMail
	}
	f, err := root.Open(id + mailboxExt)
	if err != nil {
		return Mail{}, fmt.Errorf("open mail: %w", err)
	}
	defer func() { _ = f.Close() }()
	mail, err := parseMail(io.LimitReader(f, mailboxFileBytesMax))
	if err != nil {
		return Mail{}, fmt.Errorf("read mail: %w", err)
	}
	mail.ID = id
	return mail, nil
}

// parseMail reads what compose writes: a multipart/alternative of text and HTML.
func parseMail(r io.Reader) (Mail, error) {
	message, err := netmail.ReadMessage(r)
	if err != nil {
		return Mail{}, err
	}
	date, err := message.Header.Date()
	if err != nil {
		return Mail{}, err
	}
	decoder := mime.WordDecoder{}
	decode := func(name string) string {
		raw := message.Header.Get(name)
		if decoded, err := decoder.DecodeHeader(raw); err == nil {
			return decoded
		}
		return raw
	}
	mail := Mail{Entry: Entry{
		MessageID: strings.Trim(strings.TrimSpace(message.Header.Get("Message-Id")), "<>"),
		From:      decode("From"),
		To:        strings.Trim(decode("To"), "<>"),
		Subject:   decode("Subject"),
		Date:      date,
	}}
	if mail.MessageID == "" {
		return Mail{}, errNotAMail
	}
	mediaType, params, err := mime.ParseMediaType(message.Header.Get("Content-Type"))
	if err != nil || mediaType != "multipart/alternative" {
		return Mail{}, errNotAMail
	}
	mail.Text, mail.HTML, err = parseParts(multipart.NewReader(message.Body, params["boundary"]))
	return mail, err
}

func parseParts(r *multipart.Reader) (text, html string, err error) {
	for {
		part, err := r.NextRawPart()
		if errors.Is(err, io.EOF) {
			return text, html, nil
		}
		if err != nil {
			return "", "", err
		}
		if !strings.EqualFold(part.Header.Get("Content-Transfer-Encoding"), "quoted-printable") {
			return "", "", errNotAMail
		}
		body, err := io.ReadAll(quotedprintable.NewReader(part))
		if err != nil {
			return "", "", err
		}
		content := strings.ReplaceAll(string(body), "\r\n", "\n")
		switch mediaType, _, _ := mime.ParseMediaType(part.Header.Get("Content-Type")); mediaType {
		case "text/plain":
			text = content
		case "text/html":
			html = content
		}
	}
}
