#!/usr/bin/env bash
# Prints the path of pgbouncer, for the tests. Where there is none it installs
# Debian's package (as root); it starts none.
#
# Nothing but the path goes to stdout.
set -euo pipefail
exec 3>&1 >&2

# installed: Debian's is in a directory that users do not have in PATH.
installed() {
	PATH=$PATH:/usr/sbin type -P pgbouncer >&3
}

from_debian() {
	[ "$(id -u)" = 0 ] && type -P apt-get >/dev/null || return 1
	local policy=/usr/sbin/policy-rc.d out
	export DEBIAN_FRONTEND=noninteractive
	# Debian's package would also start a pgbouncer on port 6432.
	[ -e "$policy" ] || {
		printf '#!/bin/sh\nexit 101\n' >"$policy"
		chmod +x "$policy"
		trap 'rm -f /usr/sbin/policy-rc.d' EXIT
	}
	out=$({ apt-get update -qq && apt-get install -qq -y --no-install-recommends pgbouncer; } 2>&1) || { echo "$out"; return 1; }
	installed
}

installed || from_debian || {
	echo "pgbouncer-for-tests: no pgbouncer here: install it (Debian: pgbouncer)"
	exit 1
}
