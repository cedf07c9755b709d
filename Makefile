SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# Tools of the Go module proxy, at one version for everybody; go caches what it built.
BUF := go run github.com/bufbuild/buf/cmd/buf@v1.75.0
STATICCHECK := go run honnef.co/go/tools/cmd/staticcheck@v0.8.2
PROTOVALIDATE := github.com/bufbuild/protovalidate@v1.2.2

MODULES = $(shell go list -m -f '{{.Dir}}')
# A recipe's first word: finds PostgreSQL, or installs it.
WITH_POSTGRES = postgres=$$(deploy/postgres-for-tests.sh) && PAWL_POSTGRES_BIN=$$postgres
# The same with what only tests want: a pgbouncer, strace, a browser, and a Docker Engine.
WITH_SERVERS = deploy/debian-for-tests.sh pgbouncer >/dev/null && deploy/debian-for-tests.sh strace >/dev/null && deploy/chromium-for-tests.sh >/dev/null && deploy/docker-for-tests.sh >/dev/null && $(WITH_POSTGRES)
TEST = go test -race -shuffle=on
OTHER_VERSIONS := 13 14 16 17 18
# A smoke run, on those between: rights, the catalogue, replication, attacks.
SMOKE := $(TEST) -count=1 pawl.dev/internal/postgres -run 'Owner|Thie|Attacker|Least|Worth|Script|Stranger|Fence|Function|DefaultPriv|Evidence' && \
	$(TEST) -count=1 pawl.dev/services/db-rotator/internal/rotator -run 'LeastPrivileged|NoThief' -attacks 1
# On the oldest and the newest every flow once, and all of what meets PostgreSQL.
EDGE_VERSIONS := 13 18
EDGE := $(TEST) -count=1 pawl.dev/internal/postgres && \
	$(WITH_SERVERS) $(TEST) -count=1 pawl.dev/internal/e2e -run EveryFlowUndisturbed && \
	$(TEST) -count=1 pawl.dev/services/db-rotator/internal/rotator -run 'LeastPrivileged|SameVerifier|LoginsTurn|NoThief|InPlace|Promoted|LostUndo|Stolen|Lock|Glass' -attacks 1
# On the newest, what reads its logs and proves logins.
NEWEST := $(TEST) -count=1 pawl.dev/services/verifier/... && $(TEST) -count=1 pawl.dev/cmd/pawl/internal/loginwatch -run 'RealServer|Rotates'

# Compose v2 where it is, else docker-compose.
COMPOSE = $(shell docker compose version >/dev/null 2>&1 && echo docker compose || echo docker-compose)

.PHONY: help build demo images images-offline up down test test-compose test-full bench lint generate check-generated tidy tools

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## build pawl and the six services into bin/
	@go build -o bin/ pawl.dev/cmd/pawl pawl.dev/services/...

demo: ## set up a PostgreSQL, Pawl and an application, and show three rotations
	@go build -o bin/ pawl.dev/cmd/pawl pawl.dev/internal/e2e/demo pawl.dev/internal/e2e/demoapp
	@$(WITH_POSTGRES) bin/demo -bin bin

images: ## build Pawl's own images, from what Go compiles here
	@deploy/images.sh

images-offline: images ## also the others that docker-compose.yml and deploy/stack name, where no registry is reached (long, once)
	@deploy/images-offline.sh

up: images ## start docker-compose.yml: six services, a bus, a demo cluster, Jaeger, Prometheus
	@$(COMPOSE) up --detach

down: ## remove what `make up` has started, with three servers, too, and all of its data
	@$(COMPOSE) -f docker-compose.yml -f deploy/compose/three.yml down --volumes --remove-orphans

test: tools ## set up, then what CI runs: format, vet, every module alone, all tests (samples of the long ones)
	@unformatted=$$(gofmt -l $(MODULES)); [ -z "$$unformatted" ] || { echo "gofmt -w these:"; echo "$$unformatted"; exit 1; }
	@go vet pawl.dev/...
	@for module in $(MODULES); do (cd $$module && GOWORK=off go build ./...); done
	@$(WITH_SERVERS) $(TEST) -timeout 30m $$(go list pawl.dev/... | grep -vE '/e2e(/docker|/compose|/torture)?$$')
	@$(WITH_SERVERS) $(TEST) -timeout 45m pawl.dev/internal/e2e
	@$(WITH_SERVERS) $(TEST) -timeout 30m pawl.dev/internal/e2e/docker
	@$(WITH_SERVERS) go test -timeout 30m pawl.dev/internal/e2e/torture
	@for version in $(OTHER_VERSIONS); do \
		echo "PostgreSQL $$version"; \
		postgres=$$(deploy/postgres-for-tests.sh $$version) && export PAWL_POSTGRES_BIN=$$postgres && \
		case " $(EDGE_VERSIONS) " in *" $$version "*) $(EDGE);; *) $(SMOKE);; esac || exit 1; \
		[ $$version != 18 ] || { $(NEWEST); } || exit 1; \
	done

test-compose: ## docker-compose.yml and deploy/stack themselves, on a real Docker Engine
	@deploy/docker-for-tests.sh && $(MAKE) --no-print-directory images-offline >/dev/null && $(WITH_SERVERS) $(TEST) -timeout 30m -count=1 pawl.dev/internal/e2e/compose

test-full: test test-compose ## every test, none sampled, and PostgreSQL 13 to 18 (an hour or more)
	@$(WITH_SERVERS) $(TEST) -timeout 1h -count=1 pawl.dev/services/db-rotator/internal/rotator -run NoThief -attacks 100
	@$(TEST) -timeout 1h -count=1 pawl.dev/cmd/pawl/embedded -run FullDisk -full
	@$(WITH_SERVERS) $(TEST) -timeout 3h pawl.dev/internal/e2e -full
	@$(WITH_SERVERS) $(TEST) -timeout 1h pawl.dev/internal/e2e/docker -full
	@$(WITH_SERVERS) go test -timeout 5h -parallel 4 pawl.dev/internal/e2e/torture -full
	@for version in $(OTHER_VERSIONS); do \
		echo "PostgreSQL $$version"; \
		postgres=$$(deploy/postgres-for-tests.sh $$version) && export PAWL_POSTGRES_BIN=$$postgres && $(WITH_SERVERS) $(TEST) -timeout 1h -count=1 $$(go list pawl.dev/... | grep -v /e2e/compose$$) && \
		$(TEST) -timeout 1h -count=1 pawl.dev/services/db-rotator/internal/rotator -run NoThief -attacks 10 || exit 1; \
	done

bench: ## measure rotations beside the floor, in one run
	@deploy/docker-for-tests.sh && deploy/images.sh >/dev/null && $(WITH_POSTGRES) go run pawl.dev/internal/e2e/bench

lint: ## vet, staticcheck, and how much systemd lets the units do
	@go vet pawl.dev/...
	@$(STATICCHECK) pawl.dev/...
	@deploy/systemd/check.sh

generate: proto/.deps ## regenerate the protobuf code and docs/flow.md
	@cd proto && $(BUF) lint && $(BUF) generate
	@go run pawl.dev/internal/saga/flowdoc > docs/flow.md
	@go run pawl.dev/cmd/pawl/keyring/stackfile > deploy/stack/stack.yml

check-generated: proto/.deps ## fail where what is generated differs from what is committed
	@generated=$$(mktemp -d); trap 'rm -rf "$$generated"' EXIT; \
	go run pawl.dev/internal/saga/flowdoc | diff -u docs/flow.md - && \
	go run pawl.dev/cmd/pawl/keyring/stackfile | diff -u deploy/stack/stack.yml - && \
	cd proto && $(BUF) lint && $(BUF) generate -o "$$generated" && diff -r pawl "$$generated/pawl" -x '*.proto' || \
	{ echo "out of date: make generate"; exit 1; }

tidy: ## go mod tidy, module by module
	@for module in $(MODULES); do (cd $$module && GOWORK=off go mod tidy); done

# The schema that ours import, from the Go module of the same name.
proto/.deps:
	@dir=$$(go mod download -json $(PROTOVALIDATE) | sed -n 's/.*"Dir": "\(.*\)".*/\1/p') && \
	install -D -m 644 "$$dir/proto/protovalidate/buf/validate/validate.proto" $@/buf/validate/validate.proto

# The race detector needs a C compiler, a test of the .env sink needs git, one of alerts an Alertmanager.
tools:
	@deploy/alertmanager-for-tests.sh >/dev/null
	@type -P gcc git >/dev/null || { apt-get update -qq && apt-get install -qq -y --no-install-recommends gcc libc6-dev git; } >/dev/null
