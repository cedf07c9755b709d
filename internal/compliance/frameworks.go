package compliance

import (
	"fmt"
	"strings"
)

// Framework is one of those that a report can be arranged for, and what the
// sections of a report have to do with its themes. Themes are named by their
// number and in our own words; nothing here says that one is met.
type Framework struct {
	Name  string `json:"name"` // as --framework takes it
	Title string `json:"title"`
	// Intervals says what the framework itself says of how often passwords are
	// changed, and no more.
	Intervals string  `json:"intervals"`
	Themes    []Theme `json:"themes"`
}

// Theme is one requirement, criterion, control or standard of a framework.
type Theme struct {
	Reference string `json:"reference"`
	About     string `json:"about"`
	Shown     string `json:"shown"`   // the sections, and what of it they show
	Missing   string `json:"missing"` // what an auditor must look for elsewhere
}

const nistOnIntervals = "NIST SP 800-63B-4 says of the passwords of people that they shall not be changed periodically, and shall be where there is evidence of compromise. It does not speak of the passwords of applications, which are what Pawl rotates. The intervals here are the organisation's own."

// FrameworkByName finds a framework; its error names those there are.
func FrameworkByName(name string) (Framework, error) {
	var names []string
	for _, f := range Frameworks {
		if f.Name == name {
			return f, nil
		}
		names = append(names, f.Name)
	}
	return Framework{}, fmt.Errorf("unknown framework %q: name one of %s", name, strings.Join(names, ", "))
}

// Frameworks is the whole mapping, one line per theme.
//
// Sources: AICPA, 2017 Trust Services Criteria with revised points of focus
// (2022); ISO/IEC 27001:2022, Annex A; PCI DSS v4.0.1 (June 2024); 45 CFR Part
// 164, Subpart C, as amended to 2013.
var Frameworks = []Framework{
	{
		Name: "soc2", Title: "SOC 2 (Trust Services Criteria, security)",
		Intervals: "The Trust Services Criteria prescribe no interval: an auditor compares with what the organisation has committed itself to. The intervals shown are those of pawl.yaml.",
		Themes: []Theme{
			{"CC6.1", "logical access to information assets is restricted", "Coverage: how old each password is under its policy; Access to the bus; Access to sealed credentials; Who may use the database roles (as of now)", "accounts that are not in pawl.yaml; network and operating system; multi-factor authentication of people"},
			{"CC6.2, CC6.3", "credentials are issued, changed and removed with authorisation, by role and least privilege", "Rotations: who asked (as claimed), which bus user, and why; Exceptions: what was refused; Access to the bus", "that whoever asked was entitled to by the organisation's own rules"},
			{"CC6.6", "protection against threats from outside the boundary", "Emergencies: how soon a credential in doubt was refused everywhere", "firewalls, detection of intrusions, exposure of the servers"},
			{"CC6.7", "information is protected while it is transmitted and moved", "Access to sealed credentials: passwords travel sealed to their recipients; What the servers record: whether ssl is on (as of now)", "whether every client uses TLS"},
			{"CC7.2", "systems are monitored for anomalies", "Exceptions: drift, lost writes, refusals, stalled steps; What the servers record (as of now)", "monitoring outside Pawl; that somebody looks"},
			{"CC7.3, CC7.4, CC7.5", "security events are evaluated, answered, and recovered from", "Emergencies: reason, time to contain, time to recover, what was done", "how the event was found and judged; communication; lessons"},
			{"CC8.1", "changes are authorised, tested, approved", "Rotations: each with preflight, proof by the consumers, and its outcome; Configuration loaded: which pawl.yaml was in use when", "review of changes of pawl.yaml itself"},
		},
	},
	{
		Name: "iso27001", Title: "ISO/IEC 27001:2022, Annex A",
		Intervals: "Annex A prescribes no interval: it asks the organisation for its own rules. The intervals shown are those of pawl.yaml.",
		Themes: []Theme{
			{"A.5.15, A.5.18", "access control, access rights", "Access to the bus; Who may use the database roles (as of now)", "the organisation's policy on access, and its reviews"},
			{"A.5.16", "identity management", "Coverage: each login, where it is and who uses it is configured in pawl.yaml", "the life cycle of people's identities"},
			{"A.5.17", "authentication information is managed", "Coverage: intervals, ages, what was older than its policy; Rotations; Access to sealed credentials", "passwords of people; advice to users"},
			{"A.5.26, A.5.28", "response to incidents, collection of evidence", "Emergencies; Evidence: each row names a record of the trail that can be verified", "the incident's own report; evidence outside the trail"},
			{"A.8.2", "privileged access rights", "Who may use the database roles: members, superusers, who may create roles (as of now); Coverage, where Pawl's own admin is a credential", "privileges on the operating system"},
			{"A.8.5", "secure authentication", "What the servers record: password_encryption and ssl (as of now); Coverage", "methods of authentication of people"},
			{"A.8.9", "configuration management", "Configuration loaded: which pawl.yaml was in use when", "the configuration of everything else"},
			{"A.8.15", "logging, and protection of logs", "Evidence: the state of verification of the trail; Records of the period; What the servers record (as of now)", "retention of the servers' own logs"},
			{"A.8.16", "monitoring", "Exceptions: drift, refusals, stalled steps, credentials older than their policy", "that somebody looks"},
			{"A.8.24", "use of cryptography", "Access to sealed credentials: who has a key that opens one", "management of those keys outside Pawl"},
		},
	},
	{
		Name: "pci-dss", Title: "PCI DSS v4.0.1",
		Intervals: "For the passwords of application and system accounts, 8.6.3 leaves the interval to the entity's targeted risk analysis (12.3.1), and asks for a change on suspicion or confirmation of compromise. The 90 days of 8.3.9 are about people's access by a password alone, where accounts are not analysed dynamically instead; Pawl does not manage those. The intervals shown are those of pawl.yaml.",
		Themes: []Theme{
			{"7.2.5, 7.2.5.1", "application and system accounts have least privilege, which is reviewed", "Who may use the database roles (as of now); Access to the bus", "the review, and management's acknowledgement"},
			{"8.3.2", "authentication factors are unreadable in transmission and storage", "Access to sealed credentials; What the servers record: password_encryption and ssl (as of now)", "the files to which pawl.yaml publishes hold passwords as applications need them: who may read those"},
			{"8.3.6", "length and complexity of passwords of users", "Coverage: Pawl generates passwords at random, at least 32 characters long unless pawl.yaml says more", "passwords of people; passwords that were adopted and not rotated since"},
			{"8.6.1", "interactive login with application and system accounts is managed", "Coverage: which accounts Pawl manages; Who may use the database roles (as of now)", "whether anybody logs in with them interactively"},
			{"8.6.2", "no passwords of such accounts in code or configuration files, where they can log in interactively", "Coverage: none stands in pawl.yaml", "Pawl publishes to the files that pawl.yaml names; whether that is allowed for an account is for the assessor"},
			{"8.6.3", "passwords of such accounts are changed as the entity's risk analysis says, and on compromise", "Coverage: interval, age, what was older than its policy; Rotations; Emergencies", "the targeted risk analysis itself (12.3.1)"},
			{"10.2.1.5, 10.2.2", "changes of credentials are logged, with who, what, when, outcome", "Rotations; Records of the period; Evidence", "changes made behind Pawl's back, unless noted as drift"},
			{"10.2.1.2, 10.2.1.4", "actions with administrative access, and invalid attempts, are logged", "What the servers record: log_connections, log_disconnections, pgaudit (as of now); Exceptions: requests that were refused", "the servers' logs themselves"},
			{"10.3.2, 10.3.4", "logs are protected against modification, and changes of them are detected", "Evidence: the trail verified, its checkpoint and key", "the servers' logs; where copies are kept (10.3.3) and for how long (10.5.1)"},
			{"12.10.5, 12.10.6", "response to alerts, and its improvement", "Emergencies: time to contain, time to recover", "the plan, and its tests"},
		},
	},
	{
		Name: "hipaa", Title: "HIPAA Security Rule (45 CFR Part 164, Subpart C)",
		Intervals: "The Security Rule names no number of days: 164.308(a)(5)(ii)(D), which is addressable, asks for procedures for creating, changing and safeguarding passwords. The intervals shown are those of pawl.yaml.",
		Themes: []Theme{
			{"164.308(a)(1)(ii)(D)", "records of system activity are reviewed regularly", "Records of the period; Exceptions; Evidence", "that somebody reviewed them"},
			{"164.308(a)(4)", "access is authorised, established and modified", "Access to the bus; Who may use the database roles (as of now)", "who authorised it, and access of people to health information"},
			{"164.308(a)(5)(ii)(C)", "log-in attempts are monitored", "What the servers record: log_connections, log_disconnections (as of now)", "the servers' logs, and who watches them"},
			{"164.308(a)(5)(ii)(D)", "passwords are created, changed and safeguarded by procedure", "Coverage; Rotations; Access to sealed credentials", "passwords of people; training"},
			{"164.308(a)(6)(ii)", "security incidents are answered, and documented with their outcome", "Emergencies", "the incident's own report"},
			{"164.312(a)(1)", "access only for persons and programs that have been granted it", "Who may use the database roles (as of now); Coverage: which logins Pawl manages", "unique identification of people (164.312(a)(2)(i))"},
			{"164.312(b)", "activity in systems with health information is recorded and examined", "Evidence: the trail verified; Records of the period; What the servers record (as of now)", "activity on the data itself, beyond what pgaudit records"},
			{"164.312(d)", "whoever seeks access is the one claimed", "Coverage; What the servers record: password_encryption (as of now); Emergencies: the stolen password was refused", "authentication of people"},
			{"164.316(b)(2)(i)", "documentation is kept for six years", "Evidence: how many records there are, and the newest", "where the trail's copies are kept, and for how long"},
		},
	},
}
