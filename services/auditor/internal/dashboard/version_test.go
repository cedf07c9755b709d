package dashboard

import (
	"net/http"
	"strings"
	"testing"

	"pawl.dev/internal/saga"
	pawlv1 "pawl.dev/proto/pawl/v1"
)

func TestRotationOfAnotherVersionIsCalledThatAndNothingElse(t *testing.T) {
	s := serve(t, nil)
	s.event("app", "r-1", saga.Requested, requested(pawlv1.Action_ACTION_ROTATE, "alternating-2", 1, ""))
	unknown := "flow &#34;alternating-2&#34;: this version of Pawl does not know it"
	for _, path := range []string{"/", "/credentials/app"} {
		if page := s.shows(path, unknown, "unclear"); strings.Contains(page, "app: not") {
			t.Errorf("%s calls it not adopted", path)
		}
	}
	if code, page, _ := s.get("/rotations/r-1"); code != http.StatusNotImplemented || !strings.Contains(page, unknown) {
		t.Errorf("%d\n%s", code, page)
	}
}
