// Command demoapp is an application as Pawl's users run them: a pool of
// connections with the login that its .env holds, read anew on SIGHUP or when it
// is asked by HTTP. Under load it also opens new logins, many a second, with what
// the .env says at that moment, and counts those that PostgreSQL refuses: what a
// rotation costs.
//
//	GET    /healthz  200 while the pool can query
//	POST   /reload   read the .env anew; 200 once the pool is on its login
//	POST   /load     begin to open logins, counting from 0
//	GET    /counts   the counts so far
//	DELETE /load     stop, and answer the counts
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"

	"pawl.dev/internal/inventory"
)

func main() {
	log.SetFlags(log.Ltime | log.Lmicroseconds)
	var a app
	var env inventory.Dotenv
	flag.StringVar(&env.Path, "env", ".env", "file that holds the login")
	flag.StringVar(&env.User, "user-key", "DB_USER", "its key of the user")
	flag.StringVar(&env.Password, "password-key", "DB_PASSWORD", "its key of the password")
	flag.StringVar(&a.name, "name", "demoapp", "application_name")
	flag.StringVar(&a.host, "host", "127.0.0.1", "of PostgreSQL")
	flag.UintVar(&a.port, "port", 5432, "of PostgreSQL")
	flag.StringVar(&a.database, "database", "postgres", "to connect to")
	flag.IntVar(&a.load.rate, "rate", 100, "new logins a second, under load")
	listen := flag.String("listen", "127.0.0.1:0", "address of HTTP")
	pidFile := flag.String("pid-file", "", "file to write the process id to, once all is up")
	addressFile := flag.String("address-file", "", "file to write the HTTP address to")
	flag.Parse()
	a.source = inventory.Sink{Dotenv: &env}
	if err := run(&a, *listen, *pidFile, *addressFile); err != nil {
		log.Fatal(err)
	}
}

func run(a *app, listen, pidFile, addressFile string) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	if err := a.reload(ctx); err != nil {
		return err
	}
	defer a.close()
	listener, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	server := &http.Server{Handler: a.handler()}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	defer server.Close()
	if err := errors.Join(write(addressFile, listener.Addr().String()), write(pidFile, fmt.Sprint(os.Getpid()))); err != nil {
		return err
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-served:
			return err
		case <-hangup:
			if err := a.reload(ctx); err != nil {
				log.Print(err) // and go on with the pool there is
			}
		}
	}
}

// write makes a file whole at once, so that whoever waits for it reads all of it.
func write(path, text string) error {
	if path == "" {
		return nil
	}
	if err := os.WriteFile(path+".new", []byte(text+"\n"), 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}
