package service

import "fmt"

// Count is so many of something, for people: "1 node", "2 nodes".
func Count[N int | int64 | uint32](n N, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
