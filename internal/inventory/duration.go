package inventory

import (
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

var weeksAndDays = regexp.MustCompile(`^(?:(\d{1,5})w)?(?:(\d{1,6})d)?(.*)$`)

// ParseDuration reads Go's durations and, before them, whole weeks and days:
// 90d, 2w, 1d12h, 1h30m, 500ms. A day is 24 hours. Negative lengths are errors.
func ParseDuration(text string) (time.Duration, error) {
	if strings.HasPrefix(text, "-") {
		return 0, fmt.Errorf("the duration %.60q is negative: write 0 or more", text)
	}
	m := weeksAndDays.FindStringSubmatch(text)
	if m == nil || text == "" || strings.HasPrefix(m[3], "-") || strings.HasPrefix(m[3], "+") {
		return 0, badDuration(text)
	}
	var rest time.Duration
	if m[3] != "" {
		var err error
		if rest, err = time.ParseDuration(m[3]); err != nil {
			return 0, badDuration(text)
		}
	}
	weeks, _ := strconv.Atoi("0" + m[1])
	days, _ := strconv.Atoi("0" + m[2])
	days += 7 * weeks
	if time.Duration(days) > (math.MaxInt64-rest)/day {
		return 0, fmt.Errorf("the duration %.60q is too long: 292 years are the most", text)
	}
	return time.Duration(days)*day + rest, nil
}

// inDays writes whole days as ParseDuration reads them.
func inDays(length time.Duration) string {
	if length > 0 && length%day == 0 {
		return strconv.Itoa(int(length/day)) + "d"
	}
	return length.String()
}

func badDuration(text string) error {
	return fmt.Errorf("%.60q is not a duration: write numbers with units, such as 30s, 5m, 1h30m, 90d or 2w", text)
}

var weekdays = []string{"Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"}

// checkWindow checks the form of a maintenance window. One that ends before it
// begins ends on the next day.
func checkWindow(text string) error {
	fix := fmt.Errorf(`the window %.60q must look like "Sun 02:00-05:00 Europe/Berlin": weekday, from-to, time zone`, text)
	parts := strings.Fields(text)
	if len(parts) != 3 {
		return fix
	}
	from, to, ok := strings.Cut(parts[1], "-")
	_, errFrom := time.Parse("15:04", from)
	_, errTo := time.Parse("15:04", to)
	switch {
	case !slices.Contains(weekdays, parts[0]):
		return fmt.Errorf("%w; the weekday is one of %s", fix, strings.Join(weekdays, ", "))
	case !ok || errFrom != nil || errTo != nil || len(from) != 5 || len(to) != 5 || from == to:
		return fmt.Errorf("%w; the times are two, from 00:00 to 23:59", fix)
	}
	if _, err := time.LoadLocation(parts[2]); err != nil || parts[2] == "Local" {
		return fmt.Errorf("%w; the zone is one of IANA's names, such as Europe/Berlin or UTC", fix)
	}
	return nil
}
