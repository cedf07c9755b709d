// Package bus is Pawl's use of NATS JetStream: the subjects, streams, consumers
// and permissions, all derived from internal/saga, and the two operations on
// the saga log: Read folds' input, Append with compare-and-set.
package bus

import (
	"cmp"
	"fmt"
	"regexp"
	"strings"

	"pawl.dev/internal/saga"
)

var token = regexp.MustCompile(`^[a-z0-9-]{1,64}$`)

// ValidToken reports whether s may stand as CREDENTIAL or ROTATION in a subject.
func ValidToken(s string) bool { return token.MatchString(s) }

// LogSubject is the subject of one event of the saga log.
func LogSubject(credential, rotation string, e saga.Event) string {
	return "pawl.rotation." + credential + "." + rotation + "." + string(e)
}

// logOf matches the whole log of a credential. Every append is conditional on
// this very text: in a cluster the condition is kept by it.
func logOf(credential string) string { return "pawl.rotation." + credential + ".>" }

// ParseLogSubject splits a subject of the saga log.
func ParseLogSubject(subject string) (credential, rotation string, e saga.Event, err error) {
	parts := strings.Split(subject, ".")
	if len(parts) != 5 || parts[0] != "pawl" || parts[1] != "rotation" {
		return "", "", "", fmt.Errorf("subject %q is not of the saga log", subject)
	}
	return parts[2], parts[3], saga.Event(parts[4]), nil
}

// Subjects beside the log.
func RequestSubject(credential string) string { return "pawl.request." + credential }

// AskedSubject is where the request of a user arrives who has an account of his own:
// he publishes it on RequestSubject, and the server puts his name in. So a request on
// RequestSubject itself is the operator's.
func AskedSubject(user, credential string) string { return "pawl.asked." + user + "." + credential }

// ParseAsked splits the subject of a request or an emergency: whose it is, and of
// which credential.
func ParseAsked(subject string) (user, credential string, emergency bool) {
	kind, rest, _ := strings.Cut(strings.TrimPrefix(subject, "pawl."), ".")
	if kind == "asked" {
		user, credential, _ = strings.Cut(rest, ".")
		return user, credential, false
	}
	return Operator, rest, kind == "emergency"
}

func EmergencySubject(credential string) string { return "pawl.emergency." + credential }

// Several stands for the credential of an emergency of several: no credential's name
// has an underscore.
const Several = "_"

// SeveralSubject holds the record of an emergency of several credentials, by its id:
// which they are. It is stored once, before the first of them begins.
func SeveralSubject(rotation string) string {
	return NoteSubject(saga.Scheduler) + ".several." + rotation
}

func AlertSubject(source string) string   { return "pawl.alert." + source }
func AnswerSubject(request string) string { return "pawl.answer." + request }

// AlertedSubject is where the alert of a user arrives who may raise alerts under any
// name: he publishes it on AlertSubject, and the server puts his own name in.
func AlertedSubject(user, claimed string) string { return "pawl.alerted." + user + "." + claimed }

// ParseAlert returns who raised an alert, by its subject, and under which name where
// that is another.
func ParseAlert(subject string) (source, claimed string) {
	kind, rest, _ := strings.Cut(strings.TrimPrefix(subject, "pawl."), ".")
	if kind == "alerted" {
		source, claimed, _ = strings.Cut(rest, ".")
		return source, claimed
	}
	return rest, ""
}

// RefusedSubject carries, unstored, the answer to a request that was refused as one of
// too many: whichever scheduler has the reply subject sends it on.
func RefusedSubject(request string) string { return "pawl.refused." + request }
func NoteSubject(service string) string    { return "pawl.note." + service }

// StartedSubject holds the notes of a service's starts: the newest says by which
// configuration it worked last.
func StartedSubject(service string) string { return "pawl.note." + service + ".started" }
func DeadSubject(service string) string    { return "pawl.dead." + service }

// RestoredSubject holds what the db-rotator found when it compared a credential
// of a restored store with the databases: the newest one stands.
func RestoredSubject(credential string) string {
	return NoteSubject(saga.DBRotator) + ".restored." + credential
}

// WaitingSubject lists the requests of a credential that wait for their time.
func WaitingSubject(credential string) string { return "pawl.timer.waiting." + credential }

// OperatorSubject holds which key the operator has, and since when.
const OperatorSubject = "pawl.timer.operator"

func DeadlineSubject(credential string) string { return "pawl.timer.deadline." + credential }
func DueSubject(credential string) string      { return "pawl.timer.due." + credential }
func WakeSubject(service, credential string) string {
	return "pawl.timer.wake." + service + "." + credential
}

// AlarmSubject holds what was decided about one episode of an alert. Without a
// credential it is of those that no rule maps to one: no credential's name has
// an underscore.
func AlarmSubject(credential, episode string) string {
	return "pawl.alarm." + cmp.Or(credential, Unmapped) + "." + episode
}

// Unmapped stands for the credential of an alert that no rule maps to one.
const Unmapped = "_"

// EvidenceSubject is where a piece of evidence lies, sealed to the incident key:
// id is unique, so that none replaces another.
func EvidenceSubject(credential, rotation, node, id string) string {
	return "pawl.evidence." + credential + "." + rotation + "." + node + "." + id
}

// TurnsSubject holds what schedules have begun.
const TurnsSubject = "pawl.timer.turns"

// ArmSubject holds a pending schedule; a newer one on the same subject replaces it.
func ArmSubject(purpose, credential string) string {
	return "pawl.timer.arm." + purpose + "." + credential
}

// LiveSubject holds the newest sign of life of a service: what its probe stores,
// hears and reads again.
func LiveSubject(service string) string { return "pawl.live." + service }

// HealthSubject asks a service, by plain request and reply, what keeps it from
// working.
func HealthSubject(service string) string { return "pawl.health." + service }

// HealthAnswerSubject is where one service, and nobody else, hears another's answer
// about its health.
func HealthAnswerSubject(asking, asked, round string) string {
	return HealthSubject(asking) + "." + asked + "." + round
}

// CheckSubject asks a service, by plain request and reply, whether it could do
// its part for a credential (preflight); ExamineSubject what it sees of it
// (doctor). Both touch nothing and are not stored.
func CheckSubject(service, credential string) string {
	return "pawl.check." + service + "." + credential
}
func ExamineSubject(service, credential string) string {
	return "pawl.examine." + service + "." + credential
}
