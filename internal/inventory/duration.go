package inventory

import (
	"fmt"
	"math"
	"regexp"
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

// FormatDuration writes whole days as ParseDuration reads them.
func FormatDuration(length time.Duration) string {
	if length > 0 && length%day == 0 {
		return strconv.Itoa(int(length/day)) + "d"
	}
	return length.String()
}

func badDuration(text string) error {
	return fmt.Errorf("%.60q is not a duration: write numbers with units, such as 30s, 5m, 1h30m, 90d or 2w", text)
}
