# Everything that this project can do, by name. `make help` is the index.

SHELL       := /bin/bash
.SHELLFLAGS := -eo pipefail -c

CACHE  := $(CURDIR)/.cache
TOOLS  := $(CACHE)/tools
GO     := go
FUZZTIME ?= 1m

# Static, as the microVM and containers need it; one at a time, for each has a node of its own.
E2E := CGO_ENABLED=0 $(GO) test -timeout 25m -p 1

GOLANGCI_LINT := $(TOOLS)/golangci-lint-v2.15.0
BENCHSTAT     := $(TOOLS)/benchstat

.PHONY: help build demo test checks lint unit node microvm conformance fuzz bench packages clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z][a-z0-9-]*:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## build bin/capdrift, a static binary
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/capdrift ./cmd/capdrift

demo: ## a real node, eleven pods, one scan: see it work (Linux, root, Go, gcc)
	cd e2e && CGO_ENABLED=0 $(GO) run ./cmd/demo

test: packages ## everything CI runs: lint, unit tests under the race detector, both real nodes
	@$(MAKE) --no-print-directory -j2 checks microvm

# What waits for one core while the microVM is emulated on the other.
checks:
	@$(MAKE) --no-print-directory lint
	@$(MAKE) --no-print-directory unit
	@$(MAKE) --no-print-directory node

lint: $(GOLANGCI_LINT) ## gofmt, go vet and golangci-lint on both modules
	$(GO) vet ./... && $(GOLANGCI_LINT) run ./...
	cd e2e && $(GO) vet ./... && $(GOLANGCI_LINT) run --config ../.golangci.yml ./...

unit: ## the main module under the race detector; no containers
	$(GO) test -race -parallel 8 ./...

node: ## live tests on real containerds and a real kubelet on this machine, and the microVM's own (root)
	cd e2e && $(E2E) ./microvm && $(E2E) -count=1 -skip '^TestMicroVM$$' ./node ./live ./conformance ./cluster ./podspec

microvm: ## the same tests in a microVM: cgroup v2, another kernel, all capabilities (root, Debian)
	cd e2e && $(E2E) -count=1 -run '^TestMicroVM$$' ./live ./conformance

conformance: ## predictions against 1,200 random contexts on each containerd (CAPDRIFT_CONFORMANCE_SEED=N repeats), and 864 on a kubelet (root)
	cd e2e && CAPDRIFT_CONFORMANCE=full $(E2E) -count=1 -v -run '^(TestPredictions|TestEveryCombination)$$' ./conformance ./podspec

fuzz: ## every fuzz target for FUZZTIME (1m) each
	@for package in $$($(GO) list ./...); do \
	  for target in $$($(GO) test -list '^Fuzz' $$package | grep '^Fuzz'); do \
	    echo "$$package $$target"; \
	    $(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) $$package || exit 1; \
	  done; \
	done

bench: packages $(BENCHSTAT) ## our sweep beside pscap and the floor, a cold scan beside /proc alone (root)
	$(GO) test -run '^$$' -bench . -benchmem -count 6 ./proc ./cri | tee $(CACHE)/bench.txt
	cd e2e && $(E2E) -run '^$$' -bench . -benchtime 5x -count 6 ./live | tee -a $(CACHE)/bench.txt
	cd $(CACHE) && $(BENCHSTAT) bench.txt

# Debian's packages that the tests compare with: capsh and pscap.
packages:
	@for needed in capsh:libcap2-bin pscap:libcap-ng-utils; do \
	  command -v $${needed%%:*} >/dev/null 2>&1 || missing="$$missing $${needed##*:}"; \
	done; \
	if [ -n "$$missing" ]; then \
	  echo "installing$$missing"; \
	  { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $$missing; } >/dev/null; \
	fi

$(GOLANGCI_LINT):
	@echo "building golangci-lint (about a minute, once)"
	@GOBIN=$(TOOLS) $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
	@mv $(TOOLS)/golangci-lint $@

$(BENCHSTAT):
	GOBIN=$(TOOLS) $(GO) install golang.org/x/perf/cmd/benchstat@v0.0.0-20260908200009-22c9c6c9d4da

clean: ## remove what was built and cached
	rm -rf bin $(CACHE)
