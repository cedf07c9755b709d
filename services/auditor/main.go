// Command auditor keeps the audit trail.
package main

import (
	"pawl.dev/internal/saga"
	"pawl.dev/internal/service"
	"pawl.dev/services/auditor/app"
)

func main() { service.Main(saga.Auditor, app.New) }
