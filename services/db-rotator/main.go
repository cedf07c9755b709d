// Command db-rotator changes logins in PostgreSQL, and seals what they are.
package main

import (
	"pawl.dev/internal/saga"
	"pawl.dev/internal/service"
	"pawl.dev/services/db-rotator/app"
)

func main() { service.Main(saga.DBRotator, app.New) }
