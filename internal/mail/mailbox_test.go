package mail

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

func openTestMailbox(t *testing.T) *Mailbox {
	t.Helper()
	b, err := OpenMailbox(filepath.Join(t.TempDir(), "a place", "mailbox"))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func list(t *testing.T, b *Mailbox) []Entry {
	t.Helper()
	entries, err := b.List()
	if err != nil {
		t.Fatal(err)
	}
	return entries
}

func TestMailboxListsTheNewestFirstAndReads(t *testing.T) {
	b := openTestMailbox(t)
	if entries := list(t, b); len(entries) != 0 {
		t.Fatalf("a new mailbox has %d mails", len(entries))
	}
	sendAll(t, newTestPost(t, b))
	entries := list(t, b)
	if len(entries) != 3 {
		t.Fatalf("%d mails", len(entries))
	}
	m := testMessage(t)
	verification := entries[2]
	if verification.Subject != m.Subject || verification.To != m.To || verification.MessageID != m.ID ||
		!strings.Contains(verification.From, "no-reply@post.example.com") || time.Since(verification.Date) > time.Minute {
		t.Errorf("entry %+v", verification)
	}
	mail, err := b.Read(verification.ID)
	if err != nil || mail.Entry != verification || mail.Text != m.Text || mail.HTML != m.HTML {
		t.Errorf("read %+v, %v", mail, err)
	}
}

func TestMailboxKeepsInternationalAddressesReadable(t *testing.T) {
	b := openTestMailbox(t)
	m := testMessage(t)
	m.To, m.From = "dörte@bücher.example", "Jürgen & Söhne <post@example.com>"
	if err := b.Send(t.Context(), m, nil); err != nil {
		t.Fatal(err)
	}
	if e := list(t, b)[0]; e.To != "dörte@xn--bcher-kva.example" || !strings.Contains(e.From, "Jürgen & Söhne") {
		t.Errorf("entry %+v", e)
	}
}

func TestMailboxIsForItsOwnerOnly(t *testing.T) {
	b := openTestMailbox(t)
	if err := b.Send(t.Context(), testMessage(t), nil); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]os.FileMode{
		b.dir: 0o700,
		filepath.Join(b.dir, list(t, b)[0].ID+mailboxExt): 0o600,
	} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v", path, info.Mode(), err)
		}
	}
}

func TestARepeatIsOneFileInItsPlace(t *testing.T) {
	b := openTestMailbox(t)
	post := newTestPost(t, b)
	sendAll(t, post)
	before := list(t, b)
	b.now = func() time.Time { return time.Now().Add(time.Hour) }
	if err := post.Verification(t.Context(), testTo, testLink, testEvent); err != nil {
		t.Fatal(err)
	}
	after := list(t, b)
	if len(after) != len(before) {
		t.Fatalf("%d mails, were %d", len(after), len(before))
	}
	for i := range before {
		if before[i] != after[i] {
			t.Errorf("place %d: %+v, was %+v", i, after[i], before[i])
		}
	}
}

func TestMailboxRefusesHostileRecipientsAndEndedContexts(t *testing.T) {
	b := openTestMailbox(t)
	m := testMessage(t)
	for _, m.To = range hostileRecipients {
		if err := b.Send(t.Context(), m, nil); !errors.Is(err, ErrRecipient) {
			t.Errorf("%q: %v", m.To, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := b.Send(ctx, testMessage(t), nil); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if files, err := os.ReadDir(b.dir); err != nil || len(files) != 0 {
		t.Errorf("left behind: %v, %v", files, err)
	}
}

func TestReadRefusesIDsThatAreNoneOfItsOwn(t *testing.T) {
	b := openTestMailbox(t)
	if err := b.Send(t.Context(), testMessage(t), nil); err != nil {
		t.Fatal(err)
	}
	id := list(t, b)[0].ID
	outside := filepath.Join(filepath.Dir(b.dir), id+mailboxExt)
	data, err := os.ReadFile(filepath.Join(b.dir, id+mailboxExt))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(outside, data, 0o600); err != nil {
		t.Fatal(err)
	}
	// A link in the directory does not lead out of it either.
	linked := strings.Repeat("a", 32)
	if err := os.Symlink(outside, filepath.Join(b.dir, linked+mailboxExt)); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"", ".", "..", "../" + id, "..%2f" + id, "/" + id, "./" + id, id + mailboxExt, id + "\x00",
		strings.ToUpper(id) + "A", id[:31], id + "0", outside, strings.TrimSuffix(outside, mailboxExt), strings.Repeat("0", 32)} {
		if _, err := b.Read(bad); !errors.Is(err, ErrNotFound) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if _, err := b.Read(linked); err == nil {
		t.Error("a link led out of the directory")
	}
	if n := len(list(t, b)); n != 1 {
		t.Errorf("%d mails listed", n)
	}
}

func TestFilesThatAreNoMailsDoNotHideTheOthers(t *testing.T) {
	b := openTestMailbox(t)
	sendAll(t, newTestPost(t, b))
	good, err := os.ReadFile(filepath.Join(b.dir, list(t, b)[0].ID+mailboxExt))
	if err != nil {
		t.Fatal(err)
	}
	mail := string(good)
	corrupt := map[string]string{
		strings.Repeat("0", 32) + mailboxExt: "",
		strings.Repeat("1", 32) + mailboxExt: "\x00\xff not a mail",
		strings.Repeat("2", 32) + mailboxExt: mail[:len(mail)/2],
		strings.Repeat("3", 32) + mailboxExt: strings.Replace(mail, "Date:", "Dote:", 1),
		strings.Repeat("4", 32) + mailboxExt: strings.Replace(mail, "multipart/alternative", "text/plain", 1),
		strings.Repeat("5", 32) + mailboxExt: strings.Replace(mail, "Message-ID:", "Message-AD:", 1),
		strings.Repeat("6", 32) + mailboxExt: strings.Replace(mail, "quoted-printable", "base64", 1),
		strings.Repeat("7", 32) + mailboxExt: mail + strings.Repeat(" ", mailboxFileBytesMax),
		"notes.txt":                          "mine",
		mailboxTemp + "X":                    mail,
		"short" + mailboxExt:                 mail,
	}
	for name, content := range corrupt {
		if err := os.WriteFile(filepath.Join(b.dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(b.dir, strings.Repeat("8", 32)+mailboxExt), 0o700); err != nil {
		t.Fatal(err)
	}
	entries := list(t, b)
	for _, e := range entries {
		if strings.Trim(e.ID, "7") != "" && e.MessageID == "" {
			t.Errorf("listed %+v", e)
		}
		if strings.ContainsAny(e.ID[:1], "0123456") && strings.Count(e.ID, e.ID[:1]) == 32 {
			t.Errorf("listed %s, which is no mail", e.ID)
		}
	}
	// The long one is a mail with something after its end; the rest are the three that were sent.
	if len(entries) != 4 {
		t.Errorf("%d mails listed: %+v", len(entries), entries)
	}
	if _, err := b.Read(strings.Repeat("2", 32)); err == nil || errors.Is(err, ErrNotFound) {
		t.Errorf("reading half a mail: %v", err)
	}
	if _, err := b.Read(strings.Repeat("8", 32)); err == nil {
		t.Error("a directory was read")
	}
}

func TestOpenClearsAwayOldUnfinishedFilesOnly(t *testing.T) {
	b := openTestMailbox(t)
	old, fresh := filepath.Join(b.dir, mailboxTemp+"OLD"), filepath.Join(b.dir, mailboxTemp+"FRESH")
	for _, path := range []string{old, fresh} {
		if err := os.WriteFile(path, []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	before := time.Now().Add(-2 * mailboxTempAge)
	if err := os.Chtimes(old, before, before); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenMailbox(b.dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(old); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the old one: %v", err)
	}
	if _, err := os.Stat(fresh); err != nil {
		t.Errorf("the fresh one: %v", err)
	}
}

func TestOpenMailboxSaysWhyItCannot(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenMailbox(filepath.Join(file, "mailbox")); err == nil || !strings.Contains(err.Error(), "make mailbox") {
		t.Errorf("got %v", err)
	}
}

func TestMailboxLimits(t *testing.T) {
	b := openTestMailbox(t)
	m := testMessage(t)
	data, err := compose(m, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	// The files are put there directly: what is under test is what Send does at the limit, not a thousand fsyncs.
	start := time.Now().Add(-time.Hour)
	path := func(i int) string { return filepath.Join(b.dir, fmt.Sprintf("%032x", i)+mailboxExt) }
	for i := range mailboxKeepMax + 5 {
		if err := os.WriteFile(path(i), data.raw, 0o600); err != nil {
			t.Fatal(err)
		}
		arrived := start.Add(time.Duration(i) * time.Second)
		if err := os.Chtimes(path(i), arrived, arrived); err != nil {
			t.Fatal(err)
		}
	}
	// What somebody else put there is neither counted nor removed, whatever its name and age.
	foreign := filepath.Join(b.dir, strings.Repeat("f", 32)+mailboxExt)
	if err := os.MkdirAll(filepath.Join(foreign, "inside"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(foreign, time.Unix(1, 0), time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if err := b.Send(t.Context(), m, nil); err != nil {
		t.Fatal(err)
	}
	files, err := os.ReadDir(b.dir)
	if err != nil || len(files) != mailboxKeepMax+1 {
		t.Errorf("%d files kept, %v", len(files), err)
	}
	for i, want := range map[int]bool{0: false, 5: false, 6: true, mailboxKeepMax + 4: true} {
		if _, err := os.Stat(path(i)); (err == nil) != want {
			t.Errorf("file %d: kept %v, want %v", i, err == nil, want)
		}
	}
	entries := list(t, b)
	if len(entries) != mailboxListMax || entries[0].ID != fileID(m.ID) || entries[1].ID != fmt.Sprintf("%032x", mailboxKeepMax+4) {
		t.Errorf("%d listed, beginning with %s, %s", len(entries), entries[0].ID, entries[1].ID)
	}
}

const (
	helperDir    = "POSTBUS_TEST_MAILBOX"
	helperMails  = 20
	helperSender = 4
)

// deliverTogether sends the same mails from several goroutines.
func deliverTogether(t *testing.T, dir string) {
	t.Helper()
	b, err := OpenMailbox(dir)
	if err != nil {
		t.Fatal(err)
	}
	post := newTestPost(t, b)
	var wg sync.WaitGroup
	for range helperSender {
		wg.Go(func() {
			for i := range helperMails {
				if err := post.Welcome(t.Context(), testTo, "event-"+strconv.Itoa(i)); err != nil {
					t.Error(err)
				}
				if _, err := b.List(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

// TestHelperDelivers is the other process of the test below.
func TestHelperDelivers(t *testing.T) {
	dir := os.Getenv(helperDir)
	if dir == "" {
		t.Skip("runs as the other process of TestProcessesShareAMailbox")
	}
	deliverTogether(t, dir)
}

func TestProcessesShareAMailbox(t *testing.T) {
	b := openTestMailbox(t)
	executable, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	other := exec.CommandContext(t.Context(), executable, "-test.run=^TestHelperDelivers$", "-test.v")
	other.Env = append(os.Environ(), helperDir+"="+b.dir)
	var output strings.Builder
	other.Stdout, other.Stderr = &output, &output
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	deliverTogether(t, b.dir)
	if err := other.Wait(); err != nil || !strings.Contains(output.String(), "--- PASS: TestHelperDelivers") {
		t.Errorf("the other process: %v\n%s", err, output.String())
	}
	files, err := os.ReadDir(b.dir)
	if err != nil || len(files) != helperMails {
		t.Errorf("%d files, want %d: %v", len(files), helperMails, err)
	}
	for _, e := range list(t, b) {
		if mail, err := b.Read(e.ID); err != nil || mail.Text == "" || mail.HTML == "" {
			t.Errorf("%s: %v", e.ID, err)
		}
	}
}
