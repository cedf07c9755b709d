// Command scheduler admits rotations, keeps their deadlines and ends them.
package main

import (
	"pawl.dev/internal/saga"
	"pawl.dev/internal/service"
	"pawl.dev/services/scheduler/app"
)

func main() { service.Main(saga.Scheduler, app.New) }
