#!/usr/bin/env bash
# Prints the path of a server's program, for the tests. Where there is none it
# installs Debian's package (as root); it starts none.
#
#   debian-for-tests.sh pgbouncer|haproxy|strace|systemd-analyze
#
# Nothing but the path goes to stdout.
set -euo pipefail
exec 3>&1 >&2
name=$1
package=${name%-analyze}

# installed: Debian's are in a directory that users do not have in PATH.
installed() {
	PATH=$PATH:/usr/sbin type -P "$name" >&3
}

from_debian() {
	[ "$(id -u)" = 0 ] && type -P apt-get >/dev/null || return 1
	local policy=/usr/sbin/policy-rc.d out
	export DEBIAN_FRONTEND=noninteractive
	# Debian's package would also start the server, on its usual port.
	[ -e "$policy" ] || {
		printf '#!/bin/sh\nexit 101\n' >"$policy"
		chmod +x "$policy"
		trap 'rm -f /usr/sbin/policy-rc.d' EXIT
	}
	out=$({ apt-get update -qq && apt-get install -qq -y --no-install-recommends "$package"; } 2>&1) || { echo "$out"; return 1; }
	installed
}

installed || from_debian || {
	echo "debian-for-tests: no $name here: install it (Debian: $package)"
	exit 1
}
