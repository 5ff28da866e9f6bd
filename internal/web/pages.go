package web

import (
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"html/template"
	"io"
	"io/fs"
	"mime"
	"net/http"
	"path"
	"time"

	"postbus/internal/account"
	"postbus/internal/mail"
)

//go:embed templates/*.html
var templateFiles embed.FS

//go:embed static
var staticFiles embed.FS

// view is what the templates see.
type view struct {
	Name      string // of the template
	Title     string
	Status    int  // of a refusal, else 0
	Reload    bool // the same page may be there in a moment
	RequestID string
	Mailbox   bool // the mailbox may be linked to

	Alert      string // what went wrong with the whole
	Email      string // as typed
	EmailError string // what is wrong with Email
	State      string // of a link that cannot be confirmed
	Token      string

	Letters []mail.Entry
	Letter  *mail.Mail
	AsText  bool
}

func signUpPage() view { return view{Name: "signup", Title: "Sign up"} }

func resendPage() view { return view{Name: "resend", Title: "Get a new email"} }

func confirmPage(token account.Token) view {
	return view{Name: "confirm", Title: "Confirm your email address", Token: token.Encode()}
}

// pages are the parsed templates, one set a page, each with the layout around it.
type pages struct {
	byName map[string]*template.Template
}

func parsePages(own assets) (*pages, error) {
	functions := template.FuncMap{
		"asset": own.path,
		"clock": clock,
		"stamp": func(t time.Time) string { return t.Format(time.RFC3339) },
	}
	shared, err := template.New("shared").Funcs(functions).
		ParseFS(templateFiles, "templates/layout.html", "templates/parts.html")
	if err != nil {
		return nil, fmt.Errorf("parse layout: %w", err)
	}
	p := &pages{byName: make(map[string]*template.Template)}
	for _, name := range []string{
		"signup", "sent", "resend", "confirm", "verified", "link", "error", "mailbox",
	} {
		page, err := shared.Clone()
		if err == nil {
			page, err = page.ParseFS(templateFiles, "templates/"+name+".html")
		}
		if err != nil {
			return nil, fmt.Errorf("parse page %s: %w", name, err)
		}
		p.byName[name] = page
	}
	return p, nil
}

func (p *pages) render(w io.Writer, v view) error {
	page, ok := p.byName[v.Name]
	if !ok {
		return fmt.Errorf("find page %q: not parsed", v.Name)
	}
	return page.ExecuteTemplate(w, "layout", v)
}

// clock writes a time as a mail program does: the hour today, the day before that.
func clock(t time.Time) string {
	t = t.Local()
	if now := time.Now(); t.Year() == now.Year() && t.YearDay() == now.YearDay() {
		return t.Format("15:04")
	}
	return t.Format("2 Jan 15:04")
}

// assets are the static files by name. Their paths carry a hash of the content, so browsers may keep them for ever.
type assets map[string]asset

type asset struct {
	content     []byte
	contentType string
	hash        string
}

func loadAssets() (assets, error) {
	own := make(assets)
	entries, err := fs.ReadDir(staticFiles, "static")
	if err != nil {
		return nil, fmt.Errorf("list static files: %w", err)
	}
	for _, entry := range entries {
		content, err := staticFiles.ReadFile(path.Join("static", entry.Name()))
		if err != nil {
			return nil, fmt.Errorf("read static file: %w", err)
		}
		sum := sha256.Sum256(content)
		own[entry.Name()] = asset{
			content: content, hash: hex.EncodeToString(sum[:6]),
			contentType: mime.TypeByExtension(path.Ext(entry.Name())),
		}
	}
	return own, nil
}

func (own assets) path(name string) (string, error) {
	file, ok := own[name]
	if !ok {
		return "", fmt.Errorf("find static file %q: not embedded", name)
	}
	return "/static/" + name + "?v=" + file.hash, nil
}

func (a *App) static(w http.ResponseWriter, r *http.Request) error {
	file, ok := a.assets[r.PathValue("name")]
	if !ok {
		return notFound(w, r)
	}
	if r.URL.Query().Get("v") == file.hash {
		w.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
	}
	a.write(w, r, http.StatusOK, file.contentType, file.content)
	return nil
}
