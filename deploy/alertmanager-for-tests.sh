#!/usr/bin/env bash
# Prints the path of Alertmanager, for the tests. Where there is none it is built
# once, from its Go module (two minutes of CPU); it starts none.
#
# Nothing but the path goes to stdout.
set -euo pipefail
exec 3>&1 >&2

version=v0.31.1
dir=$(cd "$(dirname "$0")/.." && pwd)/.cache/alertmanager-$version

if [ -n "${PAWL_ALERTMANAGER:-}" ]; then
	echo "$PAWL_ALERTMANAGER" >&3
	exit
fi
if [ ! -x "$dir/alertmanager" ]; then
	work=$(mktemp -d)
	trap 'rm -rf "$work"' EXIT
	out=$(GOBIN=$work GOWORK=off GOFLAGS= CGO_ENABLED=0 nice go install "github.com/prometheus/alertmanager/cmd/alertmanager@$version" 2>&1) ||
		{ echo "$out"; echo "alertmanager-for-tests: no Alertmanager here, and it cannot be built: name one in PAWL_ALERTMANAGER"; exit 1; }
	mkdir -p "$dir"
	mv "$work/alertmanager" "$dir/alertmanager"
fi
echo "$dir/alertmanager" >&3
