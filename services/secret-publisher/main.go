// Command secret-publisher writes a credential's login to every place where
// applications read it.
package main

import (
	"pawl.dev/internal/saga"
	"pawl.dev/internal/service"
	"pawl.dev/services/secret-publisher/app"
)

func main() { service.Main(saga.SecretPublisher, app.New) }
