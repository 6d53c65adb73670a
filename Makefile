# The commands of this repository. `make test` and `make demo` do all their own
# set-up on Debian 12 with the Rust toolchain, git and make; both need root.

SHELL := /bin/bash
TOOLS := $(CURDIR)/target/tools/bin
CACHE := $(CURDIR)/target/image-cache

.PHONY: test test-vm deb demo bench setup tools lint build unit documents blackbox fuzz sim mutants fmt audit

test: setup lint unit documents blackbox fuzz test-vm

## What the tests and the demo need from Debian.
setup:
	@scripts/setup

## What the tests need from crates.io, built once.
tools: $(addprefix $(TOOLS)/,cargo-deny pjdfstest fsx)

$(TOOLS)/cargo-deny: VERSION = 0.20.2
$(TOOLS)/pjdfstest: VERSION = 0.2.0
$(TOOLS)/fsx: VERSION = 0.3.0
$(TOOLS)/%:
	CARGO_PROFILE_DEV_DEBUG=none cargo install --quiet --debug $* --version $(VERSION) --locked --root target/tools

lint: tools
	cargo fmt --all -- --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	cargo clippy --workspace --test blackbox --locked -- -D warnings
	$(TOOLS)/cargo-deny check bans licenses sources

## Everything that the tests run. Whoever builds something else, or less, has
## cargo choose other features, and build half the world again.
build:
	cargo build --workspace --all-targets --locked

unit: build
	SEEDS=$${SEEDS:-1000} cargo test --workspace --locked

## Both OpenAPI documents: valid, as the seed says, and fit for a client.
documents:
	@scripts/setup node=nodejs npm=npm
	cd tests/clients && npm ci --no-audit --no-fund
	scripts/check-openapi

blackbox: tools build
	@scripts/setup node=nodejs npm=npm ip=iproute2 chromium=chromium lxcfs=lxcfs
	cd tests/clients && npm ci --no-audit --no-fund
	TEST_IMAGE_CACHE=$(CACHE) TEST_TOOLS=$(TOOLS) cargo test --workspace --test blackbox --locked -- --test-threads=1

## Simulated histories of sessions: SEEDS=10000 as many, SEED=17 that one.
sim:
	cargo test --locked --package dormouse-sessions --test sessions simulation -- --nocapture

## The simulation finds each fence, lease check and undo step that is taken out, and
## scenarios of the network each of its checks.
mutants:
	scripts/mutants

## Generated input against the session API's own document, and changes of kept
## inputs against parsers: FUZZ_SECONDS=600 for ten minutes each.
fuzz: build
	scripts/fuzz-api
	FUZZ_SECONDS=$${FUZZ_SECONDS:-15} cargo test --workspace --lib --locked nothing_breaks

## The main job on Debian's own kernel with cgroup v2 only, in a virtual machine.
test-vm: build
	@scripts/setup qemu-system-x86_64=qemu-system-x86 cpio=cpio depmod=kmod xz=xz-utils strip=binutils mke2fs=e2fsprogs dpkg-deb=dpkg
	TEST_IMAGE_CACHE=$(CACHE) scripts/test-vm

## A Debian package of the release binary.
deb:
	@scripts/setup strip=binutils
	cargo build --release --locked --package dormouse
	scripts/deb

demo: setup
	cargo build --locked --package dormouse --package dormouse-tests
	DORMOUSE_IMAGES__CACHE=$(CACHE) scripts/demo

bench:
	@scripts/setup runc=runc podman=podman haproxy=haproxy openssl=openssl node=nodejs npm=npm
	cd tests/clients && npm ci --no-audit --no-fund
	cargo build --release --locked --package dormouse --package dormouse-bench --package dormouse-tests
	DORMOUSE_IMAGES__CACHE=$(CACHE) target/release/dormouse-bench

## Security advisories; needs the network.
audit: tools
	$(TOOLS)/cargo-deny check advisories

fmt:
	cargo fmt --all
