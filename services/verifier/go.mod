module pawl.dev/services/verifier

go 1.26.0

require pawl.dev/internal v0.0.0
require pawl.dev/proto v0.0.0

replace pawl.dev/internal => ../../internal
replace pawl.dev/proto => ../../proto
