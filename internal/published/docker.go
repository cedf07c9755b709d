package published

// Labels of Docker secrets. What a secret holds cannot be read, so
// the secret-publisher says on it which login that is; the restarter, which holds
// no key, compares it with the fingerprint that the log has.
const (
	LabelCredential  = "dev.pawl.credential"
	LabelSecret      = "dev.pawl.secret" // the name in pawl.yaml, of which this is a version
	LabelFingerprint = "dev.pawl.fingerprint"
	LabelGeneration  = "dev.pawl.generation"
	// LabelRotation is on what Pawl made itself; what it found at adoption has none.
	LabelRotation = "dev.pawl.rotation"
)
