package mail

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"
)

// The limits of a local mailbox.
const (
	mailboxListMax      = 200       // mails that List gives, the newest
	mailboxKeepMax      = 1000      // mails on disk; older ones are removed as new ones come
	mailboxFileBytesMax = 1 << 20   // what List and Read read of one file
	mailboxTempAge      = time.Hour // after which an unfinished file is one of a process that was killed
)

const (
	mailboxExt  = ".eml"
	mailboxTemp = ".tmp-"
)

var mailboxID = regexp.MustCompile(`^[0-9a-f]{32}$`)

// Mailbox keeps mails as .eml files in one directory, for a first run without a mail server. It may be used from many
// goroutines and many processes at once: a file appears complete or not at all. It holds nothing open between calls.
type Mailbox struct {
	dir string
	now func() time.Time
}

var _ Sender = (*Mailbox)(nil)

// Entry is a mail in the list.
type Entry struct {
	ID        string // for Read; safe in a URL's path
	MessageID string // without angle brackets
	From      string
	To        string
	Subject   string
	Date      time.Time
}

// Mail is an Entry with its contents. HTML is as the mail brought it: show it in a sandbox.
type Mail struct {
	Entry
	Text string
	HTML string
}

// OpenMailbox makes the directory, for its owner only, if it is not there, and clears away what a killed process left
// unfinished.
func OpenMailbox(dir string) (*Mailbox, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil { //nolint:gosec // the directory is a setting
		return nil, fmt.Errorf("make mailbox: %w", err)
	}
	b := &Mailbox{dir: dir, now: time.Now}
	root, files, err := b.scan()
	if err != nil {
		return nil, err
	}
	defer closeRoot(root)
	for _, f := range files {
		if strings.HasPrefix(f.Name(), mailboxTemp) && b.now().Sub(f.ModTime()) > mailboxTempAge {
			if err := removeIfThere(root, f.Name()); err != nil {
				return nil, fmt.Errorf("clear mailbox: %w", err)
			}
		}
	}
	return b, nil
}

// Send stores the mail, durably when it returns nil. A mail that is there already is left as it is, in its place: a
// repeat does not come to the top again, and last is not called.
func (b *Mailbox) Send(ctx context.Context, m Message, last func(context.Context) error) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("store mail: %w", err)
	}
	now := b.now()
	mail, err := compose(m, now)
	if err != nil {
		return err
	}
	root, err := os.OpenRoot(b.dir)
	if err != nil {
		return fmt.Errorf("open mailbox: %w", err)
	}
	defer closeRoot(root)
	name := fileID(mail.id) + mailboxExt
	if _, err := root.Lstat(name); err == nil {
		return nil
	}
	if last != nil {
		if err := last(ctx); err != nil {
			return fmt.Errorf("before storing mail: %w", err)
		}
	}
	if err := writeFile(root, name, mail.raw, now); err != nil {
		return fmt.Errorf("store mail: %w", err)
	}
	return b.prune()
}

// List gives the newest 200 mails, the newest first. A file that is not a mail is passed over: it must not hide the
// others.
func (b *Mailbox) List() ([]Entry, error) {
	root, files, err := b.scan()
	if err != nil {
		return nil, err
	}
	defer closeRoot(root)
	var entries []Entry
	for _, f := range newestFirst(files) {
		if len(entries) == mailboxListMax {
			break
		}
		mail, err := readMail(root, strings.TrimSuffix(f.Name(), mailboxExt))
		if err != nil {
			continue
		}
		entries = append(entries, mail.Entry)
	}
	return entries, nil
}

// Read gives one mail by the id that List gave it. ErrNotFound comes for one that is gone, and for an id that was
// never one of List's; another error means that the file is not a mail.
func (b *Mailbox) Read(id string) (Mail, error) {
	if !mailboxID.MatchString(id) {
		return Mail{}, ErrNotFound
	}
	root, err := os.OpenRoot(b.dir)
	if err != nil {
		return Mail{}, fmt.Errorf("open mailbox: %w", err)
	}
	defer closeRoot(root)
	mail, err := readMail(root, id)
	if errors.Is(err, fs.ErrNotExist) {
		return Mail{}, ErrNotFound
	}
	return mail, err
}

// scan opens the directory and looks at what is in it; the caller closes the root.
func (b *Mailbox) scan() (*os.Root, []fs.FileInfo, error) {
	root, err := os.OpenRoot(b.dir)
	if err != nil {
		return nil, nil, fmt.Errorf("open mailbox: %w", err)
	}
	entries, err := fs.ReadDir(root.FS(), ".")
	if err != nil {
		closeRoot(root)
		return nil, nil, fmt.Errorf("list mailbox: %w", err)
	}
	files := make([]fs.FileInfo, 0, len(entries))
	for _, entry := range entries {
		info, err := entry.Info()
		if err != nil {
			continue // another process removed it a moment ago
		}
		files = append(files, info)
	}
	return root, files, nil
}

// prune removes the oldest mails beyond the limit. Two processes may do it at once.
func (b *Mailbox) prune() error {
	root, files, err := b.scan()
	if err != nil {
		return err
	}
	defer closeRoot(root)
	mails := newestFirst(files)
	if len(mails) <= mailboxKeepMax {
		return nil
	}
	for _, f := range mails[mailboxKeepMax:] {
		if err := removeIfThere(root, f.Name()); err != nil {
			return fmt.Errorf("prune mailbox: %w", err)
		}
	}
	return nil
}

// newestFirst picks the mails and puts them in order of arrival, which is the files' modification time.
func newestFirst(files []fs.FileInfo) []fs.FileInfo {
	mails := slices.DeleteFunc(files, func(f fs.FileInfo) bool {
		id, isMail := strings.CutSuffix(f.Name(), mailboxExt)
		return !isMail || !mailboxID.MatchString(id) || !f.Mode().IsRegular()
	})
	slices.SortFunc(mails, func(a, b fs.FileInfo) int {
		return cmp.Or(b.ModTime().Compare(a.ModTime()), cmp.Compare(a.Name(), b.Name()))
	})
	return mails
}

// fileID is a file's name without its extension. A hash, because a Message-ID may be longer than a name can be.
func fileID(messageID string) string {
	sum := sha256.Sum256([]byte(messageID))
	return hex.EncodeToString(sum[:16])
}

// writeFile makes the file appear complete and durable, or not at all.
func writeFile(root *os.Root, name string, data []byte, arrived time.Time) (err error) {
	temp := mailboxTemp + rand.Text()
	f, err := root.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, removeIfThere(root, temp))
		}
	}()
	_, err = io.Copy(f, bytes.NewReader(data))
	if err = cmp.Or(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	// The kernel's own time stamps are some milliseconds coarse, too coarse to order two mails of one moment.
	if err = root.Chtimes(temp, arrived, arrived); err != nil {
		return err
	}
	if err = root.Rename(temp, name); err != nil {
		return err
	}
	return syncDir(root)
}

// syncDir makes the rename durable.
func syncDir(root *os.Root) error {
	dir, err := root.Open(".")
	if err != nil {
		return err
	}
	return cmp.Or(dir.Sync(), dir.Close())
}

func removeIfThere(root *os.Root, name string) error {
	if err := root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// closeRoot ends a directory that was only read from or is already synced, so its error says nothing.
func closeRoot(root *os.Root) { _ = root.Close() }
