#!/usr/bin/env bash
# Compiles what the images hold: static binaries, the same wherever they are built.
#
#   compile.sh DIR VERSION
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p "$1"
CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X pawl.dev/internal/service.version=$2" -o "$1/" \
	pawl.dev/cmd/pawl pawl.dev/services/... pawl.dev/internal/e2e/demoapp pawl.dev/internal/e2e/demosetup
