# Everything that this project can do, by name. `make help` is the index.

SHELL       := /bin/bash
.SHELLFLAGS := -eo pipefail -c

CACHE  := $(CURDIR)/.cache
TOOLS  := $(CACHE)/tools
GO     := go
FUZZTIME ?= 1m

# Static, as the microVM and containers need it; one at a time, for each has a node of its own.
E2E := CGO_ENABLED=0 $(GO) test -timeout 40m -p 1

GOLANGCI_LINT := $(TOOLS)/golangci-lint-v2.15.0
BENCHSTAT     := $(TOOLS)/benchstat

# Attacks by load, on which a busy machine has a say: make attacks runs them.
LOAD_ATTACKS := ^(TestMicroVM|TestRow07DearStatus|TestStorms|TestMountsShared)$$

# What the chart is tested and rendered with, and two small programs of our own.
HELM        := $(TOOLS)/helm-v4.3.1
KUBECONFORM := $(TOOLS)/kubeconform-v0.8.0
KUSTOMIZE   := $(TOOLS)/kustomize-v5.7.1
SBOM        := $(TOOLS)/sbom
PROMQL      := $(TOOLS)/promql

# The image. ARCH=arm64 and IMAGE_DIR=… make another; GO_IMAGE names an image with Go instead of
# the Go of this machine.
REPOSITORY        := ghcr.io/capdrift/capdrift
VERSION           ?= $(shell git describe --tags --always --dirty)
REVISION          ?= $(shell git rev-parse HEAD)
SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct)
ARCH              ?= $(shell $(GO) env GOARCH)
IMAGE_DIR         ?= $(CACHE)/image

# What reads api/*.proto. buf cannot be built by `go install`; its makers publish it on npm.
BUF_VERSION        := 1.75.0
BUF                := $(TOOLS)/buf-v$(BUF_VERSION)
BUF_SHA256_x86_64  := 98b19d4b2b46130e083157490c54dfdcb8ea771e53204d3c6a06a2b12edd0503
BUF_SHA256_aarch64 := ea5b4981ad7199a482609c3f1f7230767e095c4a5a7e96ae74a21225a1fc75dc
PROTOC_GEN_GO      := $(TOOLS)/protoc-gen-go-v1.36.12
PROTOC_GEN_GO_GRPC := $(TOOLS)/protoc-gen-go-grpc-v1.6.2
PROTOC_TOOLS       := $(BUF) $(PROTOC_GEN_GO) $(PROTOC_GEN_GO_GRPC)
NPM_REGISTRY       := $(or $(npm_config_registry),$(NPM_CONFIG_REGISTRY),https://registry.npmjs.org)

.PHONY: help build demo demo-cluster test checks lint lint-api generate unit field chart chart-tools manifests image node microvm microvm-attacks cluster-test conformance faults attacks fuzz bench bench-agent packages clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z][a-z0-9-]*:.*## / { printf "  %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# Of the version that the image of the same sources is: kubectl capdrift warns of agents of
# another. Without gRPC's tracing pages, whose templates keep the linker from leaving out what
# nobody calls, the program is a sixth smaller.
build: ## build bin/capdrift, a static binary
	CGO_ENABLED=0 $(GO) build -trimpath -tags grpcnotrace -ldflags '-X main.version=$(VERSION)' -o bin/capdrift ./cmd/capdrift

image: packages $(SBOM) ## the image into .cache/image, without a container engine, and its digest (root, Debian)
	@VERSION='$(VERSION)' REVISION='$(REVISION)' SOURCE_DATE_EPOCH='$(SOURCE_DATE_EPOCH)' REPOSITORY='$(REPOSITORY)' ARCH='$(ARCH)' \
	GO_IMAGE='$(GO_IMAGE)' SBOM='$(SBOM)' deploy/image.sh '$(IMAGE_DIR)'

manifests: chart-tools ## render deploy/install.yaml and deploy/kustomize anew from the chart
	$(GO) test ./deploy -count=1 -run '^(TestManifests|TestAuditPage)$$' -update

demo: ## a real node, fourteen pods, one scan: see it work (Linux, root, Go, gcc)
	cd e2e && CGO_ENABLED=0 $(GO) run ./cmd/demo

demo-cluster: packages ## a real Kubernetes cluster of two nodes with the chart on it to play with, until Ctrl-C (Linux, root, Go, gcc)
	cd e2e && CGO_ENABLED=0 $(GO) run ./cmd/demo-cluster

test: packages ## everything CI runs: lint, unit tests under the race detector, both real nodes
	@$(MAKE) --no-print-directory checks
	@$(MAKE) --no-print-directory microvm

# All but the microVM, whose emulated processors want two real ones for themselves: beside it
# either takes twice as long.
checks:
	@$(MAKE) --no-print-directory lint
	@$(MAKE) --no-print-directory chart-tools
	@$(MAKE) --no-print-directory unit
	@$(MAKE) --no-print-directory node

lint: $(GOLANGCI_LINT) lint-api ## gofmt, go vet and golangci-lint on all modules, buf on api
	$(GO) vet ./... && $(GOLANGCI_LINT) run ./...
	cd e2e && $(GO) vet ./... && $(GOLANGCI_LINT) run --config ../.golangci.yml ./...
	cd deploy/tools && $(GO) vet ./... && $(GOLANGCI_LINT) run --config ../../.golangci.yml ./...

# The .proto files are well written, break no client of the newest commit that has any (of
# main; of HEAD where there is no main), and the Go code is what they make.
lint-api: $(PROTOC_TOOLS)
	cd api && $(BUF) lint
	@against=$$(git rev-list -1 main -- api 2>/dev/null || git rev-list -1 HEAD -- api); \
	if [ -n "$$against" ] && git cat-file -e "$$against:api/buf.yaml" 2>/dev/null; then \
	  echo "buf breaking against $${against::12}"; \
	  old=$$(mktemp -d) && trap 'rm -rf "$$old"' EXIT && \
	  git archive "$$against" api | tar -x -C "$$old" && cd api && $(BUF) breaking --against "$$old/api"; \
	else \
	  echo "buf breaking: skipped, no commit has api/ yet"; \
	fi
	@new=$$(mktemp -d) && trap 'rm -rf "$$new"' EXIT && cd api && $(BUF) generate --output "$$new" && \
	for made in $$(cd "$$new" && find . -name '*.go') $$(find . -name '*.pb.go'); do \
	  cmp "$$made" "$$new/$$made" || { echo "api/$$made is not what the .proto files make: run make generate"; exit 1; }; \
	done

generate: $(PROTOC_TOOLS) ## make the Go code of api/*.proto anew
	find api -name '*.pb.go' -delete
	cd api && $(BUF) generate

unit: ## the main module under the race detector; no containers
	$(GO) test -race -parallel 8 ./...

field: ## the situations that people met (cmd/capdrift/testdata/field), which unit runs too
	$(GO) test -count=1 -run '^(TestField|TestLiveMembersOfAThreadedCgroup$$)' ./proc ./cmd/capdrift

chart: chart-tools ## the chart, and what is rendered from it, against Kubernetes' schemas and our own promises
	$(GO) test -count=1 ./deploy

node: packages ## live tests on real containerds and a real kubelet on this machine, and the microVM's own (root)
	cd e2e && $(E2E) ./microvm && $(E2E) -count=1 -skip '^TestMicroVM$$' ./node ./live ./conformance ./podspec ./image
	cd e2e && $(E2E) -count=1 -skip '$(LOAD_ATTACKS)' ./attacks

cluster-test: packages ## tests on a real cluster of two nodes: pods, users, killed kubelets and nodes, and the chart's whole life (root, Debian)
	cd e2e && $(E2E) -count=1 ./cluster ./chart

microvm: ## the same tests in a microVM: cgroup v2, another kernel, all capabilities (root, Debian)
	cd e2e && $(E2E) -count=1 -run '^TestMicroVM$$' ./live ./conformance

microvm-attacks: ## the attacks in a microVM: an hour (root, Debian)
	cd e2e && CGO_ENABLED=0 $(GO) test -timeout 90m -count=1 -v -run '^TestMicroVM$$' ./attacks

conformance: packages ## predictions against 1,200 random contexts on each containerd (CAPDRIFT_CONFORMANCE_SEED=N repeats), and 864 on a kubelet (root)
	cd e2e && CAPDRIFT_CONFORMANCE=full $(E2E) -count=1 -v -run '^(TestPredictions|TestEveryCombination)$$' ./conformance ./podspec

faults: ## trouble in full: a minute without a runtime, 100 kills, 10,000 processes, 2,000 containers (root)
	cd e2e && CAPDRIFT_FAULTS=full $(E2E) -count=1 -v -run '^(TestRuntimeTrouble|TestKilledOften|TestManyProcesses|TestManyContainers)$$' ./live

attacks: packages ## attacks on whoever watches, as long as they may take: an hour (root; CAPDRIFT_BINARY names another capdrift to be tried)
	cd e2e && CAPDRIFT_ATTACKS=full CGO_ENABLED=0 $(GO) test -timeout 90m -count=1 -v -skip '^TestMicroVM$$' ./attacks

fuzz: ## every fuzz target for FUZZTIME (1m) each
	@for package in $$($(GO) list ./...); do \
	  for target in $$($(GO) test -list '^Fuzz' $$package | grep '^Fuzz'); do \
	    echo "$$package $$target"; \
	    $(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) $$package || exit 1; \
	  done; \
	done

bench: packages $(BENCHSTAT) ## our sweep beside pscap and the floor, a cold scan beside /proc alone (root)
	$(GO) test -run '^$$' -bench . -benchmem -count 6 ./proc ./cri | tee $(CACHE)/bench.txt
	cd e2e && $(E2E) -run '^$$' -bench BenchmarkColdScan -benchtime 5x -count 6 ./live | tee -a $(CACHE)/bench.txt
	cd $(CACHE) && $(BENCHSTAT) bench.txt

bench-agent: ## how soon the agent tells, 200 times each way, and what it costs in ten minutes (root, quiet machine)
	cd e2e && $(E2E) -run '^$$' -bench BenchmarkTold -benchtime 200x ./live
	cd e2e && $(E2E) -run '^$$' -bench 'BenchmarkCost$$' -benchtime 600x ./live
	cd e2e && $(E2E) -run '^$$' -bench BenchmarkCostAwake -benchtime 120x ./live
	cd e2e && $(E2E) -run '^$$' -bench BenchmarkToldUnderAttack -benchtime 20x ./attacks

chart-tools: $(HELM) $(KUBECONFORM) $(KUSTOMIZE) $(PROMQL)

# Debian's packages: capsh and pscap, which the tests compare with, buildah for the image, what
# kube-proxy needs, and jq, which docs/kubectl.md uses.
packages:
	@for needed in capsh:libcap2-bin pscap:libcap-ng-utils buildah:buildah nft:nftables jq:jq; do \
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

$(HELM):
	@echo "building helm (four minutes of one core, once)"
	@CGO_ENABLED=0 GOBIN=$(TOOLS) $(GO) install -ldflags='-s -w' helm.sh/helm/v4/cmd/helm@$(lastword $(subst -, ,$@))
	@mv $(TOOLS)/helm $@

$(KUBECONFORM):
	@CGO_ENABLED=0 GOBIN=$(TOOLS) $(GO) install -ldflags='-s -w' github.com/yannh/kubeconform/cmd/kubeconform@$(lastword $(subst -, ,$@))
	@mv $(TOOLS)/kubeconform $@

$(KUSTOMIZE):
	@CGO_ENABLED=0 GOBIN=$(TOOLS) $(GO) install -ldflags='-s -w' sigs.k8s.io/kustomize/kustomize/v5@$(lastword $(subst -, ,$@))
	@mv $(TOOLS)/kustomize $@

$(SBOM) $(PROMQL): $(TOOLS)/%: $(wildcard deploy/tools/*/*.go) deploy/tools/go.mod
	cd deploy/tools && CGO_ENABLED=0 $(GO) build -ldflags='-s -w' -o $@ ./$*

$(BUF):
	@mkdir -p $(TOOLS)
	@sum='$(BUF_SHA256_$(shell uname -m))'; package=buf-linux-$(if $(filter x86_64,$(shell uname -m)),x64,$(shell uname -m)); \
	[ -n "$$sum" ] || { echo "no buf is pinned for $$(uname -m): add its sum to the Makefile"; exit 1; }; \
	echo "fetching $$package $(BUF_VERSION)"; \
	curl -fsSL -o $@.tgz "$(NPM_REGISTRY:/=)/@bufbuild/$$package/-/$$package-$(BUF_VERSION).tgz" && \
	echo "$$sum  $@.tgz" | sha256sum -c --quiet && \
	tar -xzOf $@.tgz package/bin/buf > $@.new && chmod +x $@.new && mv $@.new $@; \
	status=$$?; rm -f $@.tgz $@.new; exit $$status

$(PROTOC_GEN_GO):
	GOBIN=$(TOOLS) $(GO) install google.golang.org/protobuf/cmd/protoc-gen-go@$(lastword $(subst -go-, ,$@))
	@mv $(TOOLS)/protoc-gen-go $@

$(PROTOC_GEN_GO_GRPC):
	GOBIN=$(TOOLS) $(GO) install google.golang.org/grpc/cmd/protoc-gen-go-grpc@$(lastword $(subst -grpc-, ,$@))
	@mv $(TOOLS)/protoc-gen-go-grpc $@

$(BENCHSTAT):
	GOBIN=$(TOOLS) $(GO) install golang.org/x/perf/cmd/benchstat@v0.0.0-20260908200009-22c9c6c9d4da

clean: ## remove what was built and cached
	rm -rf bin $(CACHE)
