package render

import (
	"maps"
	"slices"

	pawlv1 "pawl.dev/proto/pawl/v1"
)

// Contained is what breaking the glass did.
type Contained struct {
	Credential string            `json:"credential"`
	Logins     []string          `json:"logins"`
	Nodes      []string          `json:"nodes"`
	Pending    map[string]string `json:"pending,omitempty"`
	Sessions   uint32            `json:"sessions"`
	Prepared   uint32            `json:"prepared"`
}

// NewContained sums it up.
func NewContained(credential string, c *pawlv1.Contained) Contained {
	return Contained{credential, slices.Compact(slices.Sorted(slices.Values(c.GetLogins()))), slices.Sorted(maps.Keys(c.GetAt())), c.GetPending(), c.GetSessions(), c.GetPrepared()}
}
