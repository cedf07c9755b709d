package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"strings"
	"time"
)

// application is a running demoapp.
type application struct {
	Address string // of its HTTP server
}

// counts are those of demoapp.
type counts struct{ Attempted, Failed, Broken int }

func (s *stage) startApplication(ctx context.Context, credential string) (*application, error) {
	address, pid := s.path(credential+".address"), s.path(credential+".pid")
	c, err := s.start(credential+"-app", "demoapp", "-name", credential+"-app", "-env", s.env(credential),
		"-port", fmt.Sprint(s.postgres.Port), "-pid-file", pid, "-address-file", address)
	if err != nil {
		return nil, err
	}
	err = c.until(ctx, pid, func() bool { _, err := os.Stat(pid); return err == nil })
	if err != nil {
		return nil, err
	}
	raw, err := os.ReadFile(address)
	return &application{strings.TrimSpace(string(raw))}, err
}

// aside is how many logins are opened before the rotation, and again after it.
const aside = 100

// underLoad has the application begin to log in all the time, and returns once
// it does.
func (a *application) underLoad(ctx context.Context) error {
	if _, err := a.ask(ctx, http.MethodPost, "/load"); err != nil {
		return err
	}
	return a.opened(ctx, aside)
}

// relieve ends that, a little later, and returns the counts since it began.
func (a *application) relieve(ctx context.Context) (counts, error) {
	c, err := a.ask(ctx, http.MethodGet, "/counts")
	if err == nil {
		err = a.opened(ctx, c.Attempted+aside)
	}
	if err != nil {
		return c, err
	}
	return a.ask(ctx, http.MethodDelete, "/load")
}

func (a *application) opened(ctx context.Context, logins int) error {
	tick := time.NewTicker(pollEach)
	defer tick.Stop()
	for {
		c, err := a.ask(ctx, http.MethodGet, "/counts")
		if err != nil || c.Attempted >= logins {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

func (a *application) ask(ctx context.Context, method, path string) (c counts, err error) {
	request, err := http.NewRequestWithContext(ctx, method, "http://"+a.Address+path, nil)
	if err != nil {
		return c, err
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return c, err
	}
	defer answer.Body.Close()
	return c, json.NewDecoder(answer.Body).Decode(&c)
}
