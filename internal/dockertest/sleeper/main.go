// Command sleeper is what runs in the containers of tests: it does nothing until
// TERM, but ends at once where a secret or a file in /config says "crash".
package main

import (
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "health" {
		if os.Getenv("SICK") != "" {
			fmt.Println("sick as told")
			os.Exit(1)
		}
		return
	}
	for _, dir := range []string{"/run/secrets", "/config"} {
		files, _ := filepath.Glob(filepath.Join(dir, "*"))
		for _, file := range files {
			if content, err := os.ReadFile(file); err == nil && strings.Contains(string(content), "crash") {
				os.Exit(3)
			}
		}
	}
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGTERM)
	<-ended
}
