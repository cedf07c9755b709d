package saga

import "time"

// The services. Each owns the events that its steps emit: nobody else may
// publish them.
const (
	Scheduler       = "scheduler"
	DBRotator       = "db-rotator"
	SecretPublisher = "secret-publisher"
	Restarter       = "restarter"
	Verifier        = "verifier"
	Auditor         = "auditor"
)

// Services lists all six, in the order in which a rotation meets them.
var Services = []string{Scheduler, DBRotator, SecretPublisher, Restarter, Verifier, Auditor}

// The events of the log, in the order in which a rotation meets them.
const (
	Requested     Event = "requested"
	Contained     Event = "contained"
	Adopted       Event = "adopted"
	Matched       Event = "matched"
	Staged        Event = "staged"
	StageFailed   Event = "stage-failed"
	Published     Event = "published"
	PublishFailed Event = "publish-failed"
	Restarted     Event = "restarted"
	RestartFailed Event = "restart-failed"
	Verified      Event = "verified"
	VerifyFailed  Event = "verify-failed"
	TimedOut      Event = "timed-out"
	Cancelled     Event = "cancelled"
	Retired       Event = "retired"
	Released      Event = "released"
	Confirmed     Event = "confirmed"
	Completed     Event = "completed"
	Reinstated    Event = "reinstated"
	Restored      Event = "restored"
	Rerestarted   Event = "rerestarted"
	Unstaged      Event = "unstaged"
	RolledBack    Event = "rolled-back"
	Erased        Event = "erased"
)

// Reversals are the scheduler's own events that roll a rotation back, in place of a
// step that may fail: the step took too long, or a person cancelled the rotation.
var Reversals = []Event{TimedOut, Cancelled}

// Names of the flows.
const (
	Alternating         = "alternating"
	InPlace             = "in-place"
	Adopt               = "adopt"
	RollbackAlternating = "rollback-alternating"
	RollbackInPlace     = "rollback-in-place"
	Emergency           = "emergency"
	Lock                = "lock"
)

// Flows is the system: one literal per flow, one row per step. Subjects,
// consumers, permissions, deadlines, docs/flow.md and the auditor's catalogue
// derive from it; nothing else spells an event's name.
//
// A row is due when the row before it has emitted. A step that may fail names
// its failure event: that, or one of the scheduler's Reversals, turns the rotation
// round, and the Undo rows whose Undoes step was reached are walked instead.
// A step without a failure event is past the point of no return: it is retried
// for ever, and past its deadline it is stalled, which people are told of.
//
// A flow is never edited once it is released: rotations under way go on by it,
// and so do services of the version before, beside those of the next. The changed
// one is added with its kind's name and a number, alternating-2, and rotations
// begin by that. It leaves behind what its kind does: from there on any version
// continues.
var Flows = []Flow{
	{
		Name: Alternating, Logins: Two, Does: "Two logins in turn: the idle one gets the new credential, the old one keeps working until nobody uses it.",
		Forward: []Step{
			{Name: "stage", Owner: DBRotator, Emits: Staged, Fails: StageFailed, Deadline: 1 * time.Minute, Does: "give the idle login a new verifier and let it log in"},
			{Name: "publish", Owner: SecretPublisher, Emits: Published, Fails: PublishFailed, Deadline: 1 * time.Minute, Does: "write the new login to every sink"},
			{Name: "restart", Owner: Restarter, Emits: Restarted, Fails: RestartFailed, Deadline: 10 * time.Minute, Does: "make every consumer read it, one after the other"},
			{Name: "verify", Owner: Verifier, Emits: Verified, Fails: VerifyFailed, Deadline: 2 * time.Minute, Does: "log in with it, run the probes, see every consumer connected with it"},
			{Name: "retire", Owner: DBRotator, Emits: Retired, Deadline: 1 * time.Minute, Waits: ForDrain, Does: "once unused for the drain window, refuse the old login"},
			{Name: "confirm", Owner: Verifier, Emits: Confirmed, Deadline: 1 * time.Minute, Does: "read in the catalogue that the old login is refused and the new one accepted"},
			{Name: "complete", Owner: Scheduler, Emits: Completed, Deadline: 1 * time.Minute, Does: "end the rotation"},
		},
		Undo: []Step{
			{Name: "restore", Owner: SecretPublisher, Emits: Restored, Undoes: "publish", Deadline: 1 * time.Minute, Does: "write the old login back to every sink"},
			{Name: "rerestart", Owner: Restarter, Emits: Rerestarted, Undoes: "restart", Deadline: 10 * time.Minute, Does: "make every consumer read the old login again"},
			{Name: "unstage", Owner: DBRotator, Emits: Unstaged, Undoes: "stage", Deadline: 1 * time.Minute, Does: "once nobody comes with it any more, put the idle login back exactly as it was"},
			{Name: "roll back", Owner: Scheduler, Emits: RolledBack, Deadline: 1 * time.Minute, Does: "end the rotation"},
		},
		Tail: []Step{erase},
	},
	{
		Name: InPlace, Logins: One, Does: "One login whose password changes: short, but logins fail between the ALTER and the consumer's reading of the new password.",
		Forward: []Step{
			{Name: "stage", Owner: DBRotator, Emits: Staged, Fails: StageFailed, Deadline: 1 * time.Minute, Does: "replace the login's verifier"},
			{Name: "publish", Owner: SecretPublisher, Emits: Published, Fails: PublishFailed, Deadline: 1 * time.Minute, Does: "write the new password to every sink"},
			{Name: "restart", Owner: Restarter, Emits: Restarted, Fails: RestartFailed, Deadline: 10 * time.Minute, Does: "make every consumer read it, one after the other"},
			{Name: "verify", Owner: Verifier, Emits: Verified, Fails: VerifyFailed, Deadline: 2 * time.Minute, Does: "log in with it, run the probes, see every consumer connected with it"},
			{Name: "retire", Owner: DBRotator, Emits: Retired, Deadline: 1 * time.Minute, Does: "close the way back: from here on the rotation only goes forward"},
			{Name: "confirm", Owner: Verifier, Emits: Confirmed, Deadline: 1 * time.Minute, Does: "read in the catalogue that the login carries the new verifier"},
			{Name: "complete", Owner: Scheduler, Emits: Completed, Deadline: 1 * time.Minute, Does: "end the rotation"},
		},
		Undo: []Step{
			{Name: "unstage", Owner: DBRotator, Emits: Unstaged, Undoes: "stage", Deadline: 1 * time.Minute, Does: "put the old verifier back"},
			{Name: "restore", Owner: SecretPublisher, Emits: Restored, Undoes: "publish", Deadline: 1 * time.Minute, Does: "write the old password back to every sink"},
			{Name: "rerestart", Owner: Restarter, Emits: Rerestarted, Undoes: "restart", Deadline: 10 * time.Minute, Does: "make every consumer read the old password again"},
			{Name: "roll back", Owner: Scheduler, Emits: RolledBack, Deadline: 1 * time.Minute, Does: "end the rotation"},
		},
		Tail: []Step{erase},
	},
	{
		Name: Adopt, Adopts: true, Does: "Takes over a credential that exists; changes nothing anywhere.",
		Forward: []Step{
			{Name: "adopt", Owner: DBRotator, Emits: Adopted, Fails: StageFailed, Deadline: 1 * time.Minute, Does: "read the present password from the first sink, compare it with every node, seal it"},
			{Name: "match", Owner: SecretPublisher, Emits: Matched, Fails: PublishFailed, Deadline: 1 * time.Minute, Does: "check that every sink carries it and can be written"},
			{Name: "verify", Owner: Verifier, Emits: Verified, Fails: VerifyFailed, Deadline: 2 * time.Minute, Does: "log in with it on every node"},
			{Name: "complete", Owner: Scheduler, Emits: Completed, Deadline: 1 * time.Minute, Does: "end the adoption"},
		},
		Undo: []Step{
			{Name: "forget", Owner: DBRotator, Emits: Unstaged, Undoes: "adopt", Deadline: 1 * time.Minute, Does: "delete what was sealed"},
			{Name: "roll back", Owner: Scheduler, Emits: RolledBack, Deadline: 1 * time.Minute, Does: "end the adoption"},
		},
	},
	{
		Name: RollbackAlternating, Logins: Two, Restores: true, Does: "Restores the predecessor of a completed rotation while it is kept.",
		Forward: []Step{
			{Name: "reinstate", Owner: DBRotator, Emits: Reinstated, Deadline: 1 * time.Minute, Does: "let the predecessor log in again"},
			{Name: "restore", Owner: SecretPublisher, Emits: Restored, Deadline: 1 * time.Minute, Does: "write the predecessor to every sink"},
			{Name: "rerestart", Owner: Restarter, Emits: Rerestarted, Deadline: 10 * time.Minute, Does: "make every consumer read it"},
			{Name: "unstage", Owner: DBRotator, Emits: Unstaged, Deadline: 1 * time.Minute, Waits: ForDrain, Does: "once unused for the drain window, refuse the login that was rolled back"},
			{Name: "roll back", Owner: Scheduler, Emits: RolledBack, Deadline: 1 * time.Minute, Does: "end the rotation"},
		},
		Tail: []Step{erase},
	},
	{
		Name: RollbackInPlace, Logins: One, Restores: true, Does: "Restores the predecessor of a completed rotation while it is kept.",
		Forward: []Step{
			{Name: "unstage", Owner: DBRotator, Emits: Unstaged, Deadline: 1 * time.Minute, Does: "put the predecessor's verifier back"},
			{Name: "restore", Owner: SecretPublisher, Emits: Restored, Deadline: 1 * time.Minute, Does: "write the predecessor's password to every sink"},
			{Name: "rerestart", Owner: Restarter, Emits: Rerestarted, Deadline: 10 * time.Minute, Does: "make every consumer read it"},
			{Name: "roll back", Owner: Scheduler, Emits: RolledBack, Deadline: 1 * time.Minute, Does: "end the rotation"},
		},
		Tail: []Step{erase},
	},
	{
		Name: Emergency, Urgent: true, Does: "The credential is stolen: every login in doubt is refused at once, on every node; then the application comes back on a new credential. Forward only.",
		Forward: []Step{
			contain,
			{Name: "issue", Owner: DBRotator, Emits: Staged, Deadline: 1 * time.Minute, Does: "give the login that returns a new verifier, and only then let it log in"},
			{Name: "publish", Owner: SecretPublisher, Emits: Published, Deadline: 1 * time.Minute, Does: "write the new login to every sink"},
			{Name: "restart", Owner: Restarter, Emits: Restarted, Deadline: 10 * time.Minute, Does: "cut what poolers hold, then make every consumer read it"},
			{Name: "verify", Owner: Verifier, Emits: Verified, Deadline: 2 * time.Minute, Does: "log in with it, run the probes, see every consumer connected with it"},
			{Name: "release", Owner: DBRotator, Emits: Released, Deadline: 2 * time.Minute, Does: "do what could not be reached before, and watch until no handshake from before can succeed"},
			{Name: "confirm", Owner: Verifier, Emits: Confirmed, Deadline: 1 * time.Minute, Does: "read in the catalogue that what was stolen is refused and the new login accepted"},
			{Name: "complete", Owner: Scheduler, Emits: Completed, Deadline: 1 * time.Minute, Does: "end the rotation"},
		},
		Tail: []Step{erase},
	},
	{
		Name: Lock, Urgent: true, Locks: true, Does: "Every login is refused at once, on every node, and stays so until a person unlocks it, which is an emergency of its own.",
		Forward: []Step{
			contain,
			{Name: "complete", Owner: Scheduler, Emits: Completed, Deadline: 1 * time.Minute, Does: "end the rotation: the credential is locked"},
		},
	},
}

// contain begins what must not wait.
var contain = Step{Name: "contain", Owner: DBRotator, Emits: Contained, Deadline: 10 * time.Second, Does: "refuse every login in doubt on every node at once, end its sessions, take its password"}

// erase follows every ended rotation, `keep` later.
var erase = Step{Name: "erase", Owner: DBRotator, Emits: Erased, Deadline: 1 * time.Minute, Waits: ForKeep, Does: "strip the idle login of its password, delete every sealed copy but the current credential's"}
