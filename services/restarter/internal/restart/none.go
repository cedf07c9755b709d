package restart

import "context"

// none is for consumers that read the credential by themselves.
type none struct{}

func (none) Restart(context.Context, Cause) error { return nil }

func (none) Check(context.Context) (string, error) { return "reads the credential by itself", nil }
