module pawl.dev/internal/e2e

go 1.26.0

require pawl.dev/internal v0.0.0
require pawl.dev/proto v0.0.0
require pawl.dev/cmd/pawl v0.0.0
require pawl.dev/services/scheduler v0.0.0
require pawl.dev/services/db-rotator v0.0.0
require pawl.dev/services/secret-publisher v0.0.0
require pawl.dev/services/restarter v0.0.0
require pawl.dev/services/verifier v0.0.0
require pawl.dev/services/auditor v0.0.0

replace pawl.dev/internal => ..
replace pawl.dev/proto => ../../proto
replace pawl.dev/cmd/pawl => ../../cmd/pawl
replace pawl.dev/services/scheduler => ../../services/scheduler
replace pawl.dev/services/db-rotator => ../../services/db-rotator
replace pawl.dev/services/secret-publisher => ../../services/secret-publisher
replace pawl.dev/services/restarter => ../../services/restarter
replace pawl.dev/services/verifier => ../../services/verifier
replace pawl.dev/services/auditor => ../../services/auditor
