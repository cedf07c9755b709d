#!/usr/bin/env bash
# Prints, one a line, the path of Chromium and that of axe-core's script, for the
# tests of the dashboard. Where they are missing it installs Debian's chromium (as
# root) and npm's axe-core (into .cache); it starts neither.
#
# Nothing but the paths goes to stdout.
set -euo pipefail
exec 3>&1 >&2

fail() { echo "chromium-for-tests: $*"; exit 1; }

quietly() {
	local out
	out=$("$@" 2>&1) || { echo "$out"; return 1; }
}

installed() { type -P chromium || type -P chromium-browser || type -P google-chrome; }

from_debian() {
	[ "$(id -u)" = 0 ] && type -P apt-get >/dev/null || return 1
	export DEBIAN_FRONTEND=noninteractive
	quietly apt-get update -qq && quietly apt-get install -qq -y --no-install-recommends "$@"
}

chromium=$(installed) || { from_debian chromium fonts-dejavu-core && chromium=$(installed); } ||
	fail "no Chromium here: install it (Debian: chromium)"

axe_version=4.13.0
axe=$(cd "$(dirname "$0")/.." && pwd)/.cache/axe-core-$axe_version/axe.min.js
if [ ! -s "$axe" ]; then
	type -P npm >/dev/null || from_debian npm || fail "no npm here, which axe-core comes from"
	mkdir -p "$(dirname "$axe")"
	work=$(mktemp -d "$(dirname "$axe").XXXXXX")
	trap 'rm -rf "$work"' EXIT
	(cd "$work" && quietly npm pack --loglevel=error "axe-core@$axe_version" && tar xzf ./*.tgz) || fail "axe-core cannot be had from npm here"
	mv "$work/package/axe.min.js" "$axe"
fi
printf '%s\n%s\n' "$chromium" "$axe" >&3
