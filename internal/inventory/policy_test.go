package inventory

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pawl.dev/internal/secret"
)

// two has a second credential, other, on line 13, and app from 14 on.
func two(t *testing.T, app, other string) string {
	t.Helper()
	text := strings.Replace(valid, "credentials:\n", "credentials:\n  other: {cluster: main, role: other, strategy: in-place, publish: [file: {path: other, format: json}]"+other+"}\n", 1)
	return strings.Replace(text, role, role+app, 1)
}

func TestEachFaultOfAPolicyNamesTheFieldAndTheFix(t *testing.T) {
	const policy = "{rotate_every: 90d, windows: [\"Sun 02:00-05:00 Europe/Berlin\"]}"
	for _, c := range []struct{ name, with, want string }{
		{"a blackout without a zone", `{rotate_every: 90d, blackouts: ["2026-12-20..2027-01-05"]}`, `4: environments.production.blackouts[0]: the blackout "2026-12-20..2027-01-05" must look like "2026-12-20..2027-01-05 Europe/Berlin": first day..last day, time zone`},
		{"a blackout that ends before it begins", `{rotate_every: 90d, blackouts: ["2027-01-05..2026-12-20 UTC"]}`, `4: environments.production.blackouts[0]: the blackout "2027-01-05..2026-12-20 UTC" must look like "2026-12-20..2027-01-05 Europe/Berlin": first day..last day, time zone; it ends before it begins`},
		{"a reminder of no time", "{rotate_every: 90d, remind: soon}", `4: environments.production.remind: "soon" is not a duration: write numbers with units, such as 30s, 5m, 1h30m, 90d or 2w`},
		{"an alphabet", "{rotate_every: 90d, password_alphabet: emoji}", `4: environments.production.password_alphabet: "emoji" is not known; the nearest is "hex" (known here: alphanumeric, hex, lowercase, url-safe)`},
		{"a weak alphabet", "{rotate_every: 90d, password_alphabet: hex, password_length: 32}", `4: environments.production.password_length: "32" must be a whole number from 48 to 128`},
		{"a window that comes too seldom", "{rotate_every: 9d, windows: [\"Sun 02:00-05:00 Europe/Berlin\"]}", "13: credentials.app.rotate_every: rotate_every (9d) is too short for windows that are up to 7d apart, it would be late now and then: add windows, or turn it less often"},
		{"a blackout longer than the interval", `{rotate_every: 10d, blackouts: ["2026-12-20..2027-01-05 UTC"]}`, "13: credentials.app.rotate_every: rotate_every (10d) is shorter than the blackout 2026-12-20..2027-01-05 UTC: it would be late whatever happens: shorten the blackout, or turn it less often"},
	} {
		t.Run(c.name, func(t *testing.T) { one(t, policy, c.with, c.want) })
	}
	one(t, role, role+"    remind: 90d\n", "16: credentials.app.remind: remind (90d) must be shorter than rotate_every (90d)")
	one(t, role, role+"    within: 7d\n", "16: credentials.app.within: stands without promotes: add promotes: CREDENTIAL, the one that must be turned before, or delete the line")
	one(t, role, role+"    promotes: app\n", "16: credentials.app.promotes: leads round in a circle (app after app): one of them must be turned first, without promotes")
	one(t, role, role+"    promotes: staging\n", `16: credentials.app.promotes: there is no credential "staging"; the nearest is "app"`)
	one(t, role, role+"    apart: [app]\n", "16: credentials.app.apart[0]: is this credential itself: name another")
	for _, c := range []struct{ name, with, want string }{
		{"jitter in another unit", "{jitter: 0.1}", `2: schedule.jitter: "0.1" must be a share from 0% to 50%, such as 10%`},
		{"jitter beyond half", "{jitter: 60%}", `2: schedule.jitter: "60%" must be a share from 0% to 50%, such as 10%`},
		{"a budget of none", "{per_cluster: 0}", `2: schedule.per_cluster: "0" must be a whole number from 1 to 200`},
		{"a budget that contradicts itself", "{per_cluster: 4, in_all: 3}", "2: schedule.in_all: 3 is less than per_cluster, 4, which could never be reached: raise in_all, or lower per_cluster"},
		{"a key of none", "{per_clusters: 2}", `2: schedule.per_clusters: unknown key "per_clusters": the nearest known key is "per_cluster" (known here: per_cluster, in_all, jitter, apart)`},
	} {
		t.Run(c.name, func(t *testing.T) { one(t, "keys_dir: keys", "schedule: "+c.with, c.want) })
	}
	for _, c := range []struct{ name, app, other, want string }{
		{"apart and together", "    apart: [other]\n    group: shop\n", ", group: shop", "17: credentials.app.apart[0]: other is of the same group, shop, which turns together: take one of the two out of it, or delete this"},
		{"apart for longer than there is", "    apart: [other]\n    rotate_every: 1d12h\n    windows: []\n", "", "17: credentials.app.apart: 1d apart from other does not fit into rotate_every, 36h0m0s: lower schedule.apart, or name fewer"},
		{"each before the other", "    promotes: other\n", ", promotes: app", "13: credentials.other.promotes: leads round in a circle (other after app after other): one of them must be turned first, without promotes"},
		{"before and together", "    promotes: other\n    group: shop\n", ", group: shop", "17: credentials.app.promotes: other is of the same group, shop, which turns together: it cannot be turned before: take one of the two out of it"},
		{"sooner than the other has a window", "    promotes: other\n    within: 2d\n", "", "17: credentials.app.promotes: other has windows 7d apart, and must be turned within 2d before: lengthen within, or add windows"},
		{"together in windows that never meet", "    group: shop\n", ", group: shop, windows: [\"Mon 02:00-05:00 UTC\"]", "17: credentials.app.group: the windows of app, other never meet, and it turns together: give all of them a window that is the same"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := load(t, two(t, c.app, c.other))
			if got := faults(t, err); !slices.Contains(got, c.want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), c.want)
			}
		})
	}
}

func TestCredentialOverridesItsEnvironment(t *testing.T) {
	text := strings.Replace(two(t, "    windows: []\n    blackouts: [\"2026-12-24 UTC\"]\n    remind: 1d\n    password_alphabet: hex\n    apart: [other]\n    promotes: other\n    within: 8d\n", ", rotate_every: 60d, password_length: 50"),
		"windows: [", "blackouts: [\"2026-12-20..2027-01-05 Europe/Berlin\"], password_alphabet: url-safe, windows: [", 1)
	inv, err := load(t, "schedule: {per_cluster: 7, jitter: 2.5%, apart: 12h}\n"+text)
	if err != nil {
		t.Fatal(err)
	}
	app, other := inv.Credentials["app"], inv.Credentials["other"]
	if len(app.Windows) != 0 || fmt.Sprint(app.Blackouts) != "[2026-12-24 UTC]" || app.Remind != day || app.PasswordLength != 64 || app.PasswordAlphabet != secret.Alphabets["hex"] ||
		!slices.Equal(app.Apart, []string{"other"}) || app.Promotes != "other" || app.Within != 8*day {
		t.Errorf("app: %+v", app)
	}
	if fmt.Sprint(other.Windows) != "[Sun 02:00-05:00 Europe/Berlin]" || fmt.Sprint(other.Blackouts) != "[2026-12-20..2027-01-05 Europe/Berlin]" || other.Remind != 7*day ||
		other.PasswordLength != 50 || other.PasswordAlphabet != secret.Alphabets["url-safe"] || !slices.Equal(other.Apart, []string{"app"}) {
		t.Errorf("other: %+v", other)
	}
	if inv.Schedule != (Schedule{PerCluster: 7, InAll: 7, Jitter: 0.025, Apart: 12 * time.Hour}) {
		t.Errorf("%+v", inv.Schedule)
	}
}
