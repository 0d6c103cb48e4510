# The only entry point. `make demo` and `make test` are all a newcomer needs; `make help` lists the rest.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := build

# Where .cargo/config.toml has programs go: they are static, in every profile.
RELEASE := target/$(shell rustc -vV | sed -n 's/^host: //p')/release

# What Debian has of what is needed, each with the program by which it is known elsewhere: to build (protoc, C linker),
# and to run containers and test with them.
BUILD := protobuf-compiler:protoc gcc:cc libc6-dev
RUN := containerd:containerd runc:runc crun:crun nftables:nft iproute2:ip util-linux:unshare docker-registry:docker-registry \
       busybox-static:busybox ca-certificates gzip:gzip skopeo:skopeo umoci:umoci zstd:zstd

# Arguments of `make sim`.
SEED ?= 1
N ?= 1000
STEPS ?= 200

.PHONY: help
help: ## This list
	@sed -n 's/^\([a-z-]*\):.*## /  \1\t/p' $(MAKEFILE_LIST) | expand -t 16

.PHONY: build
build: build-deps ## Binaries for development
	cargo build --workspace --bins

.PHONY: release
release: build-deps ## Static release binaries, swarmd and swarmctl
	cargo build --release -p swarmd -p swarmctl
	@ls -l $(RELEASE)/swarmd $(RELEASE)/swarmctl

.PHONY: image
image: build-deps ## The static web server of the example image
	cargo build --release -p example-web

.PHONY: deps
deps: ## Installs from Debian what is missing
	@.ci/deps $(BUILD) $(RUN)

.PHONY: build-deps
build-deps:
	@.ci/deps $(BUILD)

.PHONY: check
check: build-deps ## Format, lints, documentation, layout rules; writes nothing
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps --document-private-items
	cargo test --package swarm --test tidy

.PHONY: fix
fix: ## Formats, and applies what clippy and the transcripts suggest
	cargo fmt --all
	cargo clippy --workspace --all-targets --fix --allow-dirty --allow-staged
	UPDATE_EXPECT=1 cargo test --package swarm --test transcripts
	cargo fmt --all

# The end-to-end tests start these programs; they are not in the same package, so cargo does not build them for it.
.PHONY: test-binaries
test-binaries: deps image
	cargo build --workspace --bins

.PHONY: test
test: test-binaries ## Every test; as root also those on containerd
	WEB_BIN=$(CURDIR)/$(RELEASE)/web cargo test --workspace
	@[ "$$(id -u)" = 0 ] || echo 'make test: left out, for want of root: the tests on containerd; run it as root'

.PHONY: test-fast
test-fast: build-deps ## Tests that need neither root nor containerd
	SWARM_LAB=off cargo test --workspace

.PHONY: test-fuzz
test-fuzz: build-deps ## Parsers of what others write, fed with nonsense for 60 s each: make test-fuzz FUZZ_SEED=1
	FUZZ_SECONDS=60 FUZZ_SEED=$(or $(FUZZ_SEED),1) cargo test --package agent-runtime --test fuzz -- --nocapture

.PHONY: sim
sim: build-deps ## The simulator: make sim SEED=1 N=10000 STEPS=200
	SEED=$(SEED) N=$(N) STEPS=$(STEPS) cargo test --release --package swarm --test sim -- --nocapture

.PHONY: bench
bench: build-deps ## All benchmarks; one JSON line a case, also in target/bench/
	$(MAKE) bench-schedule bench-control-plane bench-footprint bench-pull

bench-pull: deps
bench-%: build-deps
	cargo build --release -p swarmd -p swarm-bench
	$(RELEASE)/bench $*

.PHONY: demo
demo: deps ## A manager and five workers on this machine, and a service on them
	cargo build --release -p swarmd -p swarmctl -p swarm-lab -p example-web
	@$(RELEASE)/demo up

.PHONY: demo-down
demo-down: ## Removes the demo, whatever state it is in
	@[ -x $(RELEASE)/demo ] || cargo build --release -p swarm-lab
	@$(RELEASE)/demo down

.PHONY: clean
clean: ## Removes what was built
	cargo clean
