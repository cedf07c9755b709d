package dashboard

import (
	"embed"
	"net/http"
	"net/url"
	"strings"
	"time"
)

//go:embed static
var static embed.FS

// handler is everything that is served.
func (b *Dashboard) handler() http.Handler {
	open := http.NewServeMux() // to whoever reaches the address
	open.HandleFunc("/login", b.login)
	open.HandleFunc("/logout", b.logout)
	for _, name := range []string{"style.css", "script.js", "icon.svg"} {
		open.HandleFunc("/"+name, func(w http.ResponseWriter, r *http.Request) { http.ServeFileFS(w, r, static, "static/"+name) })
	}
	shut := http.NewServeMux() // to whom the guard admits
	shut.HandleFunc("/{$}", b.overview)
	shut.HandleFunc("/credentials/{name}", b.credential)
	shut.HandleFunc("/rotations/{id}", b.rotation)
	shut.HandleFunc("/schedule", b.schedule)
	shut.HandleFunc("/trail", b.trail)
	shut.HandleFunc("/events", b.events)
	shut.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		b.fail(w, r, http.StatusNotFound, "There is no such page.")
	})
	open.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		admitted, err := b.guard.admits(r)
		switch {
		case err != nil:
			b.d.Log.Error("dashboard shut", "error", err)
			b.fail(w, r, http.StatusServiceUnavailable, "The token cannot be read; the auditor's log says why.")
		case admitted:
			shut.ServeHTTP(w, r)
		case r.Header.Get("Authorization") != "" || !strings.Contains(r.Header.Get("Accept"), "text/html"):
			w.Header().Set("WWW-Authenticate", "Bearer")
			b.fail(w, r, http.StatusUnauthorized, "This page is shown to whoever has the token.")
		default:
			http.Redirect(w, r, "/login?to="+url.QueryEscape(r.URL.RequestURI()), http.StatusSeeOther)
		}
	})
	crossOrigin := http.NewCrossOriginProtection()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		headers(w.Header())
		form := r.Method == http.MethodPost && (r.URL.Path == "/login" || r.URL.Path == "/logout")
		switch {
		case !b.guard.knows(r.Host):
			b.fail(w, r, http.StatusMisdirectedRequest, "This address is not known by that name: use 127.0.0.1 or localhost.")
		case r.Method != http.MethodGet && r.Method != http.MethodHead && !form:
			w.Header().Set("Allow", "GET, HEAD")
			b.fail(w, r, http.StatusMethodNotAllowed, "Nothing can be changed here.")
		case form && crossOrigin.Check(r) != nil:
			b.fail(w, r, http.StatusForbidden, "This form is sent from its own page alone.")
		default:
			open.ServeHTTP(w, r)
		}
	})
}

// login takes the token in a form, never in a URL, and gives a session for it.
func (b *Dashboard) login(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, largestForm)
	to := local(r.FormValue("to"))
	page := struct {
		head
		To      string
		Refused bool
	}{head: b.head("Log in", ""), To: to}
	token, err := b.guard.token()
	switch {
	case err != nil:
		b.d.Log.Error("dashboard shut", "error", err)
		b.fail(w, r, http.StatusServiceUnavailable, "The token cannot be read; the auditor's log says why.")
		return
	case token.IsZero():
		http.Redirect(w, r, "/", http.StatusSeeOther)
		return
	case r.Method != http.MethodPost:
		b.pages.write(w, http.StatusOK, "login", page)
		return
	}
	if !same(strings.TrimSpace(r.PostFormValue("token")), token.Reveal()) {
		page.Refused = true
		b.pages.write(w, http.StatusForbidden, "login", page)
		return
	}
	http.SetCookie(w, b.guard.cookie(newSession(token, time.Now())))
	http.Redirect(w, r, to, http.StatusSeeOther)
}

func (b *Dashboard) logout(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodPost {
		http.SetCookie(w, b.guard.cookie(""))
	}
	http.Redirect(w, r, "/login", http.StatusSeeOther)
}

// local is where to go on after the login: a page of ours and nothing else.
func local(to string) string {
	u, err := url.Parse(to)
	if err != nil || u.IsAbs() || u.Host != "" || !strings.HasPrefix(to, "/") || strings.HasPrefix(to, "//") || strings.ContainsAny(to, "\\\r\n") {
		return "/"
	}
	return to
}
