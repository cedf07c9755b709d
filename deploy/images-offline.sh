#!/usr/bin/env bash
# Builds the images of docker-compose.yml and deploy/stack that are other people's,
# under the names that they give them, where no registry can be reached: from Go
# modules and Debian's packages. It is for tests, and for trying Pawl out; elsewhere
# pull them.
#
# An image that is there is left as it is, whoever made it. The first time it takes
# a quarter of an hour, nearly all of it Jaeger's.
set -euo pipefail
cd "$(dirname "$0")/.."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

missing() { ! docker image inspect "$1" >/dev/null 2>&1; }

# image NAME DIR: DIR is the root of its file system, the Dockerfile comes from stdin.
image() {
	cat >"$2/Dockerfile"
	local out
	out=$(DOCKER_BUILDKIT=0 docker build -q --label dev.pawl.offline=1 -t "$1" "$2" 2>&1) || { echo "$out"; return 1; } >&2
	printf '%s\n' "$1"
}

# tool NAME PACKAGE OUT [TAGS]: of the module deploy/offline/NAME, whose go.sum pins it.
tool() {
	(cd "deploy/offline/$1" && GOWORK=off GOFLAGS=-mod=readonly CGO_ENABLED=0 GONOSUMDB='*' nice go build -tags "${4:-}" -ldflags '-s -w' -o "$3" "$2")
}

# libraries ROOT FILE...: puts there what the files are linked with.
libraries() {
	local root=$1 file
	shift
	{ ldd "$@" 2>/dev/null || true; } | sed -nE 's/^.*(=> |\t)(\/[^ ]+) \(0x.*$/\2/p' | sort -u | while read -r file; do
		install -D "$(readlink -f "$file")" "$root$file"
	done
}

# PostgreSQL as Debian packages it, with what its start script runs, and the
# libraries of both.
postgres_root() {
	local root=$1 bin lib file
	bin=$(PAWL_POSTGRES_BIN= deploy/postgres-for-tests.sh)
	[ -x "$bin/pg_basebackup" ] || { echo "images-offline: $bin has no pg_basebackup: install Debian's postgresql" >&2; return 1; }
	lib=$(dirname "$bin")/lib
	local share=/usr/share/postgresql/${bin//[^0-9]/}
	mkdir -p "$root"/{usr/bin,tmp,etc,var/run/postgresql,var/lib/postgresql/data,"$bin","$lib","$share"} "$root/usr/lib/locale"
	cp "$bin"/{initdb,postgres,pg_ctl,pg_isready,pg_basebackup} "$root$bin/"
	cp "$(readlink -f "$bin/psql")" "$root$bin/psql"
	cp "$lib"/*.so "$root$lib/"
	rm -f "$root$lib"/llvmjit*.so
	cp -r "$share"/. "$root$share/"
	cp -rL /usr/share/zoneinfo "$root/usr/share/"
	cp "$(type -P bash)" "$(type -P cat)" "$(type -P mv)" "$(type -P rm)" "$root/usr/bin/"
	ln -s usr/bin "$root/bin"
	ln -s bash "$root/usr/bin/sh"
	libraries "$root" "$root"/usr/bin/{bash,cat,mv,rm} "$root$bin"/* "$root$lib"/*.so
	printf 'root:x:0:0::/:/bin/sh\npostgres:x:999:999::/var/lib/postgresql:/bin/bash\n' >"$root/etc/passwd"
	printf 'root:x:0:\npostgres:x:999:\n' >"$root/etc/group"
	chmod 1777 "$root"/{tmp,var/run/postgresql}
}

if missing postgres:15-bookworm; then
	postgres_root "$work/postgres"
	image postgres:15-bookworm "$work/postgres" <<-'DOCKERFILE'
		FROM scratch
		COPY . /
		COPY --chown=999:999 var/lib/postgresql /var/lib/postgresql
		ENV PATH=/usr/local/bin:/usr/bin:/bin:/usr/lib/postgresql/15/bin
		ENTRYPOINT ["postgres"]
	DOCKERFILE
fi
if missing nats:2.15.2-scratch; then
	mkdir -p "$work/nats"
	GOBIN=$work/nats GOWORK=off GOFLAGS= CGO_ENABLED=0 nice go install -ldflags '-s -w' github.com/nats-io/nats-server/v2@v2.15.2
	image nats:2.15.2-scratch "$work/nats" <<-'DOCKERFILE'
		FROM scratch
		COPY nats-server /nats-server
		ENTRYPOINT ["/nats-server"]
	DOCKERFILE
fi
if missing haproxy:2.6-bookworm; then
	mkdir -p "$work/haproxy"/{bin,tmp}
	cp "$(deploy/debian-for-tests.sh haproxy)" "$work/haproxy/bin/haproxy"
	libraries "$work/haproxy" "$work/haproxy/bin/haproxy"
	image haproxy:2.6-bookworm "$work/haproxy" <<-'DOCKERFILE'
		FROM scratch
		COPY . /
		ENV PATH=/bin
		CMD ["haproxy"]
	DOCKERFILE
fi
if missing prom/alertmanager:v0.31.1; then
	mkdir -p "$work/alertmanager"/{bin,alertmanager}
	cp "$(deploy/alertmanager-for-tests.sh)" "$work/alertmanager/bin/alertmanager"
	libraries "$work/alertmanager" "$work/alertmanager/bin/alertmanager" # one of before may not be static
	image prom/alertmanager:v0.31.1 "$work/alertmanager" <<-'DOCKERFILE'
		FROM scratch
		COPY . /
		COPY --chown=65534:65534 alertmanager /alertmanager
		USER 65534:65534
		WORKDIR /alertmanager
		ENTRYPOINT ["/bin/alertmanager"]
		CMD ["--config.file=/etc/alertmanager/alertmanager.yml", "--storage.path=/alertmanager"]
	DOCKERFILE
fi
if missing prom/prometheus:v3.13.5; then
	mkdir -p "$work/prometheus"/{bin,prometheus}
	# Without the ways to find targets that clouds have, which are most of it.
	tool prometheus github.com/prometheus/prometheus/cmd/prometheus "$work/prometheus/bin/prometheus" remove_all_sd,enable_dns_sd
	image prom/prometheus:v3.13.5 "$work/prometheus" <<-'DOCKERFILE'
		FROM scratch
		COPY bin /bin
		COPY --chown=65534:65534 prometheus /prometheus
		USER 65534:65534
		WORKDIR /prometheus
		ENTRYPOINT ["/bin/prometheus"]
		CMD ["--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/prometheus"]
	DOCKERFILE
fi
if missing jaegertracing/jaeger:2.13.0; then
	mkdir -p "$work/jaeger/bin"
	# v1.76.0 of the module is what 2.13.0 was built from. Its pages are not part of it: there is the API alone.
	tool jaeger github.com/jaegertracing/jaeger/cmd/jaeger "$work/jaeger/bin/jaeger"
	image jaegertracing/jaeger:2.13.0 "$work/jaeger" <<-'DOCKERFILE'
		FROM scratch
		COPY bin /bin
		USER 10001
		ENTRYPOINT ["/bin/jaeger"]
	DOCKERFILE
fi
