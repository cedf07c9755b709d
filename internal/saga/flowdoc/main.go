// Command flowdoc prints docs/flow.md.
package main

import (
	"fmt"

	"pawl.dev/internal/saga"
)

func main() { fmt.Print(saga.Markdown()) }
