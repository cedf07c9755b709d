// The verifier: logs in with the new credential, probes it, sees every consumer
// use it, and at the end reads in the catalogue that the old one is refused.
package main

import (
	"pawl.dev/internal/saga"
	"pawl.dev/internal/service"
	"pawl.dev/services/verifier/app"
)

func main() { service.Main(saga.Verifier, app.New) }
