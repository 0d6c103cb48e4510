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
       busybox-static:busybox ca-certificates gzip:gzip skopeo:skopeo umoci:umoci zstd:zstd attr:setfattr apparmor:apparmor_parser

# To build the Debian package and the images, and to test with them and with Ansible.
PACKAGE := binutils:strip dpkg:dpkg-deb
SHIP := docker.io:dockerd buildah:buildah ansible-core:ansible-playbook python3-apt openssh-server:sshd openssh-client:ssh \
        init-system-helpers:deb-systemd-helper

# Arguments of `make sim`.
SEED ?= 1
N ?= 1000
STEPS ?= 200

.PHONY: help
help: ## This list
	@sed -n 's/^\([a-z-]*\):.*## /  \1\t/p' $(MAKEFILE_LIST) | expand -t 18

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

.PHONY: deb
deb: release ## The Debian package, target/debian/swarmd.deb; each commit's is newer
	@.ci/deps $(PACKAGE)
	rm -rf target/debian
	examples/debian/build $(RELEASE) target/debian
	@ln -s "$$(cd target/debian && echo swarmd_*.deb)" target/debian/swarmd.deb

# Of swarmd; `make image` is about the image that the tests and the demo run as a service.
.PHONY: docker-image
docker-image: release ## The image of swarmd, built by docker or else by buildah
	examples/image/context $(RELEASE) target/image
	@if docker version >/dev/null 2>&1; then docker build --tag swarmd --file examples/image/Dockerfile target/image; \
	elif command -v buildah >/dev/null; then buildah bud --format docker --tag swarmd --file examples/image/Dockerfile target/image; \
	else echo 'neither a Docker Engine that answers nor buildah is here; the build context is target/image' >&2; exit 1; fi

.PHONY: deps
deps: ## Installs from Debian what is missing
	@.ci/deps $(BUILD) $(RUN)

.PHONY: test-deps
test-deps:
	@.ci/deps $(BUILD) $(RUN) $(PACKAGE) $(SHIP)

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
test-binaries: test-deps image
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
sim: build-deps ## The simulators: make sim SEED=1 N=10000 STEPS=200
	SEED=$(SEED) N=$(N) STEPS=$(STEPS) cargo test --release --package swarm --test sim -- --nocapture

.PHONY: test-chaos
test-chaos: test-binaries ## Five minutes of faults on managers and workers; SWARM_CHAOS_SECONDS and SWARM_CHAOS_SEED say otherwise
	WEB_BIN=$(CURDIR)/$(RELEASE)/web SWARM_CHAOS_SECONDS=$${SWARM_CHAOS_SECONDS:-300} \
	  cargo test --package swarm --test e2e chaos -- --nocapture

.PHONY: bench
bench: build-deps ## All benchmarks; one JSON line a case, also in target/bench/
	$(MAKE) bench-schedule bench-control-plane bench-commit bench-failover bench-catch-up bench-footprint bench-pull bench-start bench-agent

bench-pull bench-start bench-agent: deps
bench-%: build-deps
	cargo build --release -p swarmd -p swarmctl -p swarm-bench -p example-web
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
