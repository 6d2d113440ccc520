# The one door to the project: people and CI run the same targets. `make` alone lists them.

CARGO ?= cargo
SHELL = bash
# Where the demo keeps its certificates, store and logs; another folder and other ports let two demos run at once.
DEMO_DIR ?= demo-run
HTTP_PORT ?= 9080
HTTPS_PORT ?= 9443
ADMIN_PORT ?= 9180
PUSH_PORT ?= 9280
STATUS_PORT ?= 7085
UPSTREAM_PORT ?= 9001
STRICT_UPSTREAM_PORT ?= 9002
ETCD_PORT ?= 2379
DEMO_PORTS = --http $(HTTP_PORT) --https $(HTTPS_PORT) --admin $(ADMIN_PORT) --push $(PUSH_PORT) \
	--status $(STATUS_PORT) --upstream $(UPSTREAM_PORT) --strict-upstream $(STRICT_UPSTREAM_PORT) --etcd $(ETCD_PORT)
# Options of the comparison, for example COMPARE='--peers countersign,nginx,haproxy --rounds 3 --objects 0'.
COMPARE ?=
# One of its peers, a crate outside the workspace.
PINGORA_PEER = --manifest-path bench/pingora-peer/Cargo.toml
# How many cases each property test tries in `make fuzz`, and for how long each fuzz target runs.
CASES ?= 20000
FUZZ_SECONDS ?= 20
# Options of the summary, for example SUMMARY='--bin-dir target/profiled' for what `make release` built.
SUMMARY ?=
# The folder with the programs to package; without it those of `make release`.
PROGRAMS ?=
# Why instruction counts moved: with it `make budget` writes them down.
WHY ?=

.DEFAULT_GOAL := help
.PHONY: help demo demo-check test test-etcd test-boring limbo check budget fmt bench bench-summary compare release packages fuzz setup build

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "  Ports: HTTP_PORT HTTPS_PORT ADMIN_PORT PUSH_PORT STATUS_PORT UPSTREAM_PORT STRICT_UPSTREAM_PORT ETCD_PORT; folder: DEMO_DIR"

setup: ## install what the build needs (apt when root, else it names the packages); the tests install etcd themselves
	@scripts/setup.sh

build: setup
	@$(CARGO) build --locked --workspace --bins

demo: build ## start a gateway with two upstreams and an etcd, run the scenarios, and stay until Ctrl-C
	-@scripts/setup.sh demo
	@target/debug/demo --dir $(DEMO_DIR) $(DEMO_PORTS)

demo-check: build ## the same, then stop; fails unless every scenario was shown and behaved
	@scripts/setup.sh etcd
	@target/debug/demo --dir $(DEMO_DIR) $(DEMO_PORTS) --check

test: ## every test: units, properties, and the real programs end to end
	@scripts/setup.sh test
	$(CARGO) build --locked --workspace --bins --tests
	$(CARGO) test --locked --workspace

test-etcd: ## the suites about etcd as the store alone, with servers they start themselves
	@scripts/setup.sh etcd
	$(CARGO) build --locked --workspace --bins
	$(CARGO) test --locked -p controlplane --lib store::
	$(CARGO) test --locked -p e2e --test etcd

# With the second TLS engine the programs go to a folder of their own: those in target/debug stay without it.
BORING = --locked --workspace --features dataplane/engine-boring,controlplane/engine-boring
test-boring: ## the second TLS engine (TLSv1.1): needs cmake and libclang, builds BoringSSL, tests both planes with it
	@scripts/setup.sh boring
	$(CARGO) clippy $(BORING) --lib --test stream -- -D warnings
	$(CARGO) build $(BORING) --bins
	mkdir -p target/boring && cp target/debug/{controlplane,dataplane}{,.d} target/boring/
	$(CARGO) build --locked --workspace --bins
	$(CARGO) test $(BORING) --lib --test stream
	COUNTERSIGN_PROGRAMS=$(CURDIR)/target/boring $(CARGO) test --locked --workspace --test e2e boring::

limbo: setup ## x509-limbo by the verifier and over TLS; COUNTERSIGN_LIMBO names its clients.json (or the folder)
	@[ -n "$$COUNTERSIGN_LIMBO" ] || { echo "*** limbo: NOT RUN: set COUNTERSIGN_LIMBO to clients.json, or to its folder ***"; exit 1; }
	@$(CARGO) build --locked --workspace --bins
	@$(CARGO) test --locked --quiet -p e2e --test limbo

check: setup ## format, lints with warnings denied, links in comments, dependency rules where cargo-deny is installed, and the instruction budget
	$(CARGO) fmt --all --check
	$(CARGO) fmt --manifest-path fuzz/Cargo.toml --check
	$(CARGO) fmt $(PINGORA_PEER) --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	$(CARGO) clippy --locked --manifest-path fuzz/Cargo.toml --target-dir target -- -D warnings
	RUSTDOCFLAGS='$(DOC_LINKS)' $(CARGO) doc --quiet --locked --workspace --no-deps --document-private-items
	@scripts/deny.sh
	-@scripts/setup.sh check
	$(BUDGET)
	@target/debug/budget check

# A link in a comment leads to what there is, however private: a renamed symbol leaves no stale name.
DOC_LINKS = -D rustdoc::broken_intra_doc_links -A rustdoc::private_intra_doc_links

# Always built the same way: what is counted is compared with what was counted before.
BUDGET = $(CARGO) build --locked --config bench/budget.profile.toml -p bench --bin budget
budget: setup ## count instructions and print them; with WHY='what they are for' write bench/budget.toml
	-@scripts/setup.sh check
	$(BUDGET)
	@target/debug/budget write $(if $(WHY),--why '$(WHY)')

fmt: ## format everything
	$(CARGO) fmt --all
	$(CARGO) fmt --manifest-path fuzz/Cargo.toml
	$(CARGO) fmt $(PINGORA_PEER)

bench: setup ## criterion benchmarks, and the runtimes side by side (COUNTERSIGN_LIMBO adds x509-limbo's chains)
	$(CARGO) bench --locked -p bench

# Of the programs for real use, which are built if there are none yet.
bench-summary: setup $(if $(wildcard target/profiled/dataplane),,release) ## one line a target, measured within a minute: name, figure, target, ok or short
	$(CARGO) build --locked --release -p bench --bin summary
	@target/release/summary --bin-dir target/profiled $(SUMMARY)

release: ## the programs for real use, in target/profiled: optimised with a profile of the data plane under load
	@scripts/setup.sh release
	@CARGO=$(CARGO) scripts/release.sh

packages: $(if $(PROGRAMS),setup,release) ## Debian packages and an OCI image of both planes, in target/packages (PROGRAMS=folder: of these programs)
	@scripts/setup.sh packages
	@CARGO=$(CARGO) scripts/packages.sh $(if $(PROGRAMS),--programs $(PROGRAMS))

compare: release ## side by side with nginx, HAProxy, Envoy, Caddy and Pingora on this machine
	@scripts/setup.sh compare
	$(CARGO) build --locked --release $(PINGORA_PEER) --target-dir target && cp target/release/pingora-peer target/profiled/ \
		|| echo "*** compare: the Pingora peer could not be built; going on without it ***"
	target/release/compare --bin-dir target/profiled $(COMPARE)

fuzz: setup ## every fuzz target for FUZZ_SECONDS=20, and the property tests with many more cases (CASES=20000)
	@FUZZ_SECONDS=$(FUZZ_SECONDS) scripts/fuzz.sh
	PROPTEST_CASES=$(CASES) $(CARGO) test --locked --release -p pki -p model -p conf
