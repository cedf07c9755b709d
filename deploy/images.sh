#!/usr/bin/env bash
# Builds the images of docker-compose.yml that are Pawl's own, from what Go compiles
# here: no base image is wanted. What has not changed costs a second.
#
#   images.sh [VERSION]      the tag; default: dev
set -euo pipefail
cd "$(dirname "$0")/.."

version=${1:-dev}
deploy/compile.sh bin/image "$version-$(git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)"
for binary in bin/image/*; do
	service=$(basename "$binary")
	# Not the whole tree: the engine would be sent all of it eight times.
	out=$(tar -c deploy/Dockerfile deploy/data "$binary" | DOCKER_BUILDKIT=0 docker build -q -f deploy/Dockerfile --target prebuilt \
		--build-arg "SERVICE=$service" --build-arg "VERSION=$version" -t "pawl/$service:$version" - 2>&1) || { echo "$out" >&2; exit 1; }
	printf '%s\n' "pawl/$service:$version"
done
