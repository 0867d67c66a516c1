# What can be done here, one target each. Every target that builds something installs what it
# lacks first, so `make demo` and `make test` are all that a fresh machine needs.

# A root shell without login does not have cargo's programs in its PATH.
export PATH := $(or $(CARGO_HOME),$(HOME)/.cargo)/bin:$(PATH)

# Some rows are about the daemon as it is shipped.
BENCH = cargo build --release --package gateway --bins && \
	cargo run --release --package tests --bin sluice-bench --
# The demo starts the programs that a user would, so they are built with it.
DEMO = cargo build --release --package gateway --package api --package tests --bins && \
	cargo run --release --quiet --package tests --bin sluice-demo --

.PHONY: help setup test test-all fuzz demo demo-k8s demo-shell bench fmt lint

help: ## Lists the targets.
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | awk -F '\t' '{ printf "make %-11s %s\n", $$1, $$2 }'

setup: ## Installs what is missing for building and testing, and says what and why.
	@scripts/setup.sh

test: setup ## Checks format, lints, documentation and dependencies, and runs the tests.
	@scripts/test.sh

test-all: ## The same with the slow tests, and with cargo-deny, which takes minutes to install.
	@scripts/setup.sh --all
	@scripts/test.sh --all

fuzz: setup ## Feeds every reader of foreign bytes for FUZZ_SECONDS (10) each, and says what it found.
	@scripts/fuzz.sh

demo: setup ## Builds two clusters, a gateway and an internet from namespaces, and shows it at work.
	@$(DEMO)

demo-k8s: setup ## The same with a real Kubernetes API server (built once, minutes): a label cuts a live flow.
	@scripts/peers.sh
	@$(DEMO) kubernetes

demo-shell: setup ## Builds the demo's network and opens a shell in it.
	@$(DEMO) shell

bench: setup ## Runs the benchmarks, or with ONLY=id,id some, and writes target/bench/report.json.
	@$(BENCH) $(if $(ONLY),--only $(ONLY))

fmt: ## Formats the code.
	@cargo fmt --all

lint: setup ## Checks the format and lets clippy look at everything.
	@cargo fmt --all --check
	@cargo clippy --workspace --all-targets -- -D warnings
