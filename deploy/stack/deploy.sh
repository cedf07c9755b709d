#!/usr/bin/env bash
# Deploys stack.yml on the Swarm whose manager this is, in a copy of this folder:
# makes the keys that are missing, and what Docker gives to each service. Again
# after a change of pawl.yaml, of a key, or of PAWL_VERSION.
#
#   deploy.sh [OPTION of docker stack deploy]...
set -euo pipefail
cd "$(dirname "$0")"

# installation/ holds every key: back it up, and let nobody read it.
mkdir -p -m 700 installation installation/keys installation/data nats keys
pawl() {
	docker run --rm --network none --user "$(id -u):$(id -g)" --read-only -v "$PWD:/etc/pawl" -v "$PWD/installation/keys:/run/pawl" \
		-v "$PWD/installation/data:/var/lib/pawl" "pawl/pawl:${PAWL_VERSION:-dev}" "$@"
}
pawl init
pawl nats-config --out /etc/pawl/nats --nodes nats-1,nats-2,nats-3 --at /etc/nats --store /data
pawl keys --out /etc/pawl/keys

for password in db-rotator/secrets/pawl_admin verifier/secrets/pawl_observer; do
	[ -s "keys/$password" ] || { echo "deploy.sh: write the password of ${password##*/} to $PWD/keys/$password" >&2; exit 1; }
done
cp -p keys/verifier/secrets/pawl_observer keys/db-rotator/secrets/ # who looks for evidence as the observer

# Of what their files hold, so that a change is a new secret, and a new task.
digest() { cat "$@" | sha256sum | head -c 8; }
PAWL_CONFIG=$(digest pawl.yaml ./*.cfg)
PAWL_KEYS=$(find keys nats -type f -print0 | sort -z | xargs -0 cat | sha256sum | head -c 8)
export PAWL_CONFIG PAWL_KEYS
docker stack deploy --prune --compose-file stack.yml "$@" pawl
