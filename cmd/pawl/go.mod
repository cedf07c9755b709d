module pawl.dev/cmd/pawl

go 1.26.0

require pawl.dev/internal v0.0.0

require pawl.dev/proto v0.0.0

require pawl.dev/services/scheduler v0.0.0

require pawl.dev/services/db-rotator v0.0.0

require pawl.dev/services/secret-publisher v0.0.0

require pawl.dev/services/restarter v0.0.0

require pawl.dev/services/verifier v0.0.0

require pawl.dev/services/auditor v0.0.0

require (
	github.com/antithesishq/antithesis-sdk-go v0.8.0-default-no-op // indirect
	github.com/gofrs/flock v0.13.1 // indirect
	github.com/google/go-tpm v0.9.8 // indirect
	github.com/inconshreveable/mousetrap v1.1.0 // indirect
	github.com/klauspost/compress v1.20.3 // indirect
	github.com/minio/highwayhash v1.0.4 // indirect
	github.com/nats-io/jwt/v2 v2.8.2 // indirect
	github.com/nats-io/nats-server/v2 v2.15.2 // indirect
	github.com/nats-io/nkeys v0.4.17 // indirect
	github.com/nats-io/nuid v1.0.1 // indirect
	github.com/spf13/cobra v1.10.2 // indirect
	github.com/spf13/pflag v1.0.9 // indirect
	golang.org/x/crypto v0.58.0 // indirect
	golang.org/x/sync v0.24.0 // indirect
	golang.org/x/sys v0.49.0 // indirect
	golang.org/x/term v0.47.0 // indirect
	golang.org/x/time v0.16.0 // indirect
)

replace pawl.dev/internal => ../../internal

replace pawl.dev/proto => ../../proto

replace pawl.dev/services/scheduler => ../../services/scheduler

replace pawl.dev/services/db-rotator => ../../services/db-rotator

replace pawl.dev/services/secret-publisher => ../../services/secret-publisher

replace pawl.dev/services/restarter => ../../services/restarter

replace pawl.dev/services/verifier => ../../services/verifier

replace pawl.dev/services/auditor => ../../services/auditor
