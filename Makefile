# The toolchain that go.mod names is fetched if another one is installed: older
# patches have a known hole in net/http.
export GOTOOLCHAIN = auto

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PKGS ?= ./...
FUZZTIME ?= 30s
# A package that needs them starts a Kafka and a ClickHouse of its own: two at a
# time are what two cores and a few GB of memory carry.
PARALLEL ?= 2
TEST_TIMEOUT ?= 20m
TESTFLAGS ?=

GO_FILES = find . -name '*.go' -not -path '*/node_modules/*' -not -path './.git/*'
STATICCHECK = go tool -modfile=tools/go.mod staticcheck

# npm packages that tests run, each set locked in a folder of its own, and the
# logger for browsers and Node.
JS = clients/js
NPM := $(patsubst %/package-lock.json,%/node_modules/.package-lock.json,$(wildcard $(JS)/package-lock.json test/*/package-lock.json test/*/*/package-lock.json))

.PHONY: help build run prove bench bench-compare bench-micro test install js lint fuzz clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## build bin/collector, bin/sink and bin/sluice, without cgo
	CGO_ENABLED=0 go build -trimpath -o bin/ ./cmd/collector ./cmd/sink ./cmd/sluice

run: build ## start everything on this machine, send examples/, print the rows, stay up
	bin/sluice up --examples examples

# The services that can be told to fail (build tag faults) lie beside the others:
# bin/sluice prove finds them there. PROVEFLAGS='--duration 10m --seed 7' and so on.
PROVEFLAGS ?=
prove: build install ## kill, pause and cut everything for a while, then count: nothing lost, nothing twice
	CGO_ENABLED=0 go build -trimpath -tags faults -o bin/faults/ ./cmd/collector ./cmd/sink
	bin/sluice prove $(PROVEFLAGS)

# BENCHFLAGS='quick' for each measurement once; BENCHFLAGS='collector --only native,read'.
BENCHFLAGS ?=
bench: build install ## measure cost, rate, latency and memory on this machine (10 minutes); bench/results.json
	bin/sluice bench $(BENCHFLAGS)

bench-compare: build install ## the same of commit BASE and of this checkout by turns; BENCH=collector ONLY=native
	BASE='$(BASE)' BENCH='$(BENCH)' ONLY='$(ONLY)' RUNS='$(RUNS)' BENCHFLAGS='$(BENCHFLAGS)' bench/compare.sh

bench-micro: ## micro-benchmarks of commit BASE (the one before) and of this checkout, compared
	BASE='$(BASE)' COUNT='$(COUNT)' bench/micro.sh

install: ## install what the tests need: the ClickHouse engine (npm) and Apache Kafka (Maven)
	go run ./internal/embedded/install

%/node_modules/.package-lock.json: %/package-lock.json
	@command -v npm >/dev/null || { echo "npm is missing: install Node.js 18 or newer" >&2; exit 1; }
	@echo "installing the packages of $*"
	cd $* && npm ci --no-audit --no-fund

js: $(JS)/node_modules/.package-lock.json ## build clients/js and run its tests
	cd $(JS) && npm run --silent build && npm test --silent

# The race detector needs cgo, and that a C compiler.
test: install $(NPM) js ## run every test (PKGS=./pkg/... for some, TESTFLAGS='-run Name')
	@if printf '#include <stdlib.h>\n#include <pthread.h>\n' | $$(go env CC) -fsyntax-only -x c - 2>/dev/null; then \
		echo "with the race detector: there is a C compiler"; cgo=1 race=-race; \
	else \
		echo "without the race detector: there is no C compiler"; cgo=0 race=; \
	fi; \
	set -x; CGO_ENABLED=$$cgo go test $$race -count=1 -p $(PARALLEL) -timeout $(TEST_TIMEOUT) $(TESTFLAGS) $(PKGS)

lint: ## check formatting, suspicious code, dependencies, and that macOS builds
	@unformatted=$$($(GO_FILES) -print0 | xargs -0 gofmt -l); \
	if [ -n "$$unformatted" ]; then echo "run gofmt -w on:"; echo "$$unformatted"; exit 1; fi
	go vet $(PKGS)
	go vet -tags faults $(PKGS)
	$(STATICCHECK) $(PKGS)
	$(STATICCHECK) -tags faults $(PKGS)
	GOOS=darwin GOARCH=arm64 CGO_ENABLED=0 go build -o /dev/null ./cmd/collector ./cmd/sink ./cmd/sluice
	go mod tidy -diff
	cd tools && go mod tidy -diff
	go mod verify

fuzz: ## run each fuzz target for FUZZTIME (30s)
	@$(GO_FILES) -name '*_test.go' -print0 | xargs -0 grep -HoE '^func Fuzz[A-Za-z0-9_]*' | sort | \
	while IFS=: read -r file target; do \
		target=$${target#func }; echo "$$(dirname "$$file") $$target"; \
		go test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) "$$(dirname "$$file")" </dev/null; \
	done

clean: ## remove what was built and installed here; data in .sluice/ stays
	rm -rf bin $(JS)/dist $(dir $(NPM))
