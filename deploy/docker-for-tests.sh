#!/usr/bin/env bash
# Sees to a Docker Engine in swarm mode for the tests, and to docker-compose: where
# they are missing it installs Debian's (as root), starts dockerd, and makes this
# machine a swarm of its own on 127.0.0.1. What is there already is left as it is.
#
# Prints nothing but what went wrong.
set -euo pipefail
exec >&2

fail() { echo "docker-for-tests: $*"; exit 1; }

quietly() {
	local out
	out=$("$@" 2>&1) || { echo "$out"; return 1; }
}

from_debian() {
	[ "$(id -u)" = 0 ] && type -P apt-get >/dev/null || return 1
	export DEBIAN_FRONTEND=noninteractive
	quietly apt-get update -qq && quietly apt-get install -qq -y --no-install-recommends "$@"
}

answers() { docker version >/dev/null 2>&1; }

# Tests of several packages call this at once.
exec 9>"${TMPDIR:-/tmp}/docker-for-tests.lock"
flock -w 300 9 || fail "another docker-for-tests does not end"

PATH=$PATH:/usr/sbin:/sbin
type -P docker >/dev/null && type -P dockerd >/dev/null || answers || from_debian docker.io ||
	fail "no Docker Engine here: install it (Debian: docker.io)"
type -P docker-compose >/dev/null || docker compose version >/dev/null 2>&1 || from_debian docker-compose ||
	fail "no docker-compose here: install it (Debian: docker-compose)"

if ! answers; then
	[ "$(id -u)" = 0 ] || fail "no Docker Engine answers, and only root can start one"
	log=/var/log/dockerd-for-tests.log
	setsid dockerd >"$log" 2>&1 </dev/null 9>&- &
	for _ in $(seq 300); do
		answers && break
		kill -0 $! 2>/dev/null || { tail -5 "$log"; fail "dockerd ended: $log tells why"; }
		sleep 0.1
	done
	answers || fail "dockerd does not answer: $log may tell why"
fi

[ "$(docker info --format '{{.Swarm.LocalNodeState}}')" = active ] ||
	quietly docker swarm init --advertise-addr 127.0.0.1 --listen-addr 127.0.0.1:2377 ||
	fail "no swarm can be made here"
[ "$(docker info --format '{{.Swarm.ControlAvailable}}')" = true ] || fail "this node is a worker of a swarm, not a manager: let it leave, or name another in DOCKER_HOST"
