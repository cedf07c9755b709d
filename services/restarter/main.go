// Command restarter makes every consumer of a credential read it anew.
package main

import (
	"pawl.dev/internal/saga"
	"pawl.dev/internal/service"
	"pawl.dev/services/restarter/app"
)

func main() { service.Main(saga.Restarter, app.New) }
