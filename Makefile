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
# The same with a pgbouncer, which only tests want.
WITH_SERVERS = deploy/pgbouncer-for-tests.sh >/dev/null && $(WITH_POSTGRES)
TEST = go test -race -shuffle=on
OTHER_VERSIONS := 13 14 16 17 18
# What differs between versions, in short: rights, the catalogue, replication.
SMOKE := $(TEST) -count=1 pawl.dev/internal/postgres pawl.dev/services/verifier/... && \
	$(TEST) -count=1 pawl.dev/services/db-rotator/... -run 'LeastPrivileged|Admin|SameVerifier|LoginsTurn|InPlace|Promoted|LostUndo' && \
	$(WITH_SERVERS) $(TEST) -count=1 pawl.dev/internal/e2e -run EveryFlowUndisturbed

.PHONY: help build demo test test-full bench lint generate check-generated tidy tools

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## build pawl and the six services into bin/
	@go build -o bin/ pawl.dev/cmd/pawl pawl.dev/services/...

demo: ## set up a PostgreSQL, Pawl and an application, and show three rotations
	@go build -o bin/ pawl.dev/cmd/pawl pawl.dev/internal/e2e/demo pawl.dev/internal/e2e/demoapp
	@$(WITH_POSTGRES) bin/demo -bin bin

test: tools ## set up, then what CI runs: format, vet, every module alone, all tests (samples of the long ones)
	@unformatted=$$(gofmt -l $(MODULES)); [ -z "$$unformatted" ] || { echo "gofmt -w these:"; echo "$$unformatted"; exit 1; }
	@go vet pawl.dev/...
	@for module in $(MODULES); do (cd $$module && GOWORK=off go build ./...); done
	@$(WITH_SERVERS) $(TEST) -timeout 30m pawl.dev/...
	@for version in $(OTHER_VERSIONS); do \
		echo "PostgreSQL $$version"; \
		postgres=$$(deploy/postgres-for-tests.sh $$version) && export PAWL_POSTGRES_BIN=$$postgres && \
		$(SMOKE) || exit 1; \
	done

test-full: test ## every test, none sampled, and PostgreSQL 13 to 18 (an hour or more)
	@$(WITH_SERVERS) $(TEST) -timeout 3h pawl.dev/internal/e2e -full
	@for version in $(OTHER_VERSIONS); do \
		echo "PostgreSQL $$version"; \
		postgres=$$(deploy/postgres-for-tests.sh $$version) && export PAWL_POSTGRES_BIN=$$postgres && $(WITH_SERVERS) $(TEST) -timeout 1h -count=1 pawl.dev/... || exit 1; \
	done

bench: ## measure rotations beside the floor, in one run
	@$(WITH_POSTGRES) go run pawl.dev/internal/e2e/bench

lint: ## vet and staticcheck
	@go vet pawl.dev/...
	@$(STATICCHECK) pawl.dev/...

generate: proto/.deps ## regenerate the protobuf code and docs/flow.md
	@cd proto && $(BUF) lint && $(BUF) generate
	@go run pawl.dev/internal/saga/flowdoc > docs/flow.md

check-generated: proto/.deps ## fail where what is generated differs from what is committed
	@generated=$$(mktemp -d); trap 'rm -rf "$$generated"' EXIT; \
	go run pawl.dev/internal/saga/flowdoc | diff -u docs/flow.md - && \
	cd proto && $(BUF) lint && $(BUF) generate -o "$$generated" && diff -r pawl "$$generated/pawl" -x '*.proto' || \
	{ echo "out of date: make generate"; exit 1; }

tidy: ## go mod tidy, module by module
	@for module in $(MODULES); do (cd $$module && GOWORK=off go mod tidy); done

# The schema that ours import, from the Go module of the same name.
proto/.deps:
	@dir=$$(go mod download -json $(PROTOVALIDATE) | sed -n 's/.*"Dir": "\(.*\)".*/\1/p') && \
	install -D -m 644 "$$dir/proto/protovalidate/buf/validate/validate.proto" $@/buf/validate/validate.proto

# The race detector needs a C compiler, a test of the .env sink needs git.
tools:
	@type -P gcc git >/dev/null || { apt-get update -qq && apt-get install -qq -y --no-install-recommends gcc libc6-dev git; } >/dev/null
