# make demo, make test: everything else is a detail of those two.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:

# Caches live outside the checkout, so that a fresh clone on a warm machine is warm; so does the folder that is built in
# (tests/mirror.py says why).
export PORTCULLIS_CACHE ?= $(if $(XDG_CACHE_HOME),$(XDG_CACHE_HOME),$(HOME)/.cache)/portcullis
export CARGO_TARGET_DIR ?= $(PORTCULLIS_CACHE)/target
export PORTCULLIS_ROOT := $(CURDIR)
SOURCES := $(PORTCULLIS_CACHE)/sources
PLAYGROUND := $(CARGO_TARGET_DIR)/debug/playground
PYTHON ?= python3
# Runs a command as a group of processes that can be ended together.
APART := $(PYTHON) -c 'import os, sys; os.setsid(); os.execvp(sys.argv[1], sys.argv[1:])'
# More than cores: the longest tests wait for deadlines most of the time.
TEST_THREADS ?= 8

.PHONY: help demo demo-firewall up down test faults soak fuzz mutants build controlplane crds chart docs image image-check image-reproduced \
	lint fmt present prerequisites

help: ## Say what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'

demo: build ## Show the main job: lock, request, open, expire, closed (under 90 s once built)
	@$(PLAYGROUND) demo

demo-firewall: build ## Show the same of a machine behind an Azure Firewall, by the port that is led on to it
	@$(PLAYGROUND) demo-firewall

up: build ## Leave a playground running and write .playground/env (about 10 s once built)
	@$(PLAYGROUND) up

down: ## End exactly what `make up` started
	@if [ -e .playground/bin/playground ]; then .playground/bin/playground down; \
	elif [ -e .playground ]; then $(MAKE) --no-print-directory build && $(PLAYGROUND) down; \
	else echo "Nothing is running."; fi

# What waits for most of its time runs beside the rest: the playground's demo, the clients of others, and a tenth of the
# matrix of faults, which begins with minutes in which nothing goes wrong.
test: prerequisites ## Run every test (about 14 minutes on 2 cores once all is built)
	@begun=$$SECONDS; status=0; beside=$$(mktemp -d); trap 'for job in $$(jobs -p); do kill -- -$$job 2>/dev/null || true; done; rm -rf "$$beside"' EXIT; \
	trap 'exit 130' INT TERM; \
	echo "building the programs and their tests into $(CARGO_TARGET_DIR) (6 minutes the first time)"; \
	(cd $(SOURCES) && cargo test --locked --workspace --all-targets --no-run); \
	echo "making ready the Azure SDK for Python and the az CLI meanwhile (2 minutes the first time)"; \
	$(APART) tests/venv.sh tests/clients >"$$beside/setup" 2>&1 & setup=$$!; \
	$(PLAYGROUND) assets; $(PLAYGROUND) tools; \
	if wait $$setup; then rm "$$beside/setup"; else status=1; fi; \
	(cd $(SOURCES) && exec $(APART) cargo test --locked --workspace --test harness -- --test-threads=1 playground) >"$$beside/playground" 2>&1 & playground=$$!; \
	(cd $(SOURCES) && cargo test --locked --workspace --lib --bins --test it --no-fail-fast -- --test-threads=$(TEST_THREADS)) || status=$$?; \
	AZURE_SIMULATOR=$(CARGO_TARGET_DIR)/debug/azure-simulator $(APART) tests/clients/run.sh >"$$beside/clients" 2>&1 & clients=$$!; \
	$(APART) $(CARGO_TARGET_DIR)/debug/faults --part 6/10 >"$$beside/faults" 2>&1 & faults=$$!; \
	(cd $(SOURCES) && cargo test --locked --workspace --test harness -- --test-threads=$(TEST_THREADS) --skip playground) || status=$$?; \
	wait $$playground || status=$$?; wait $$clients || status=$$?; wait $$faults || status=$$?; cat "$$beside"/*; \
	$(PYTHON) tests/mirror.py --back $(CURDIR) $(SOURCES) || status=$$?; \
	if [ $$status -eq 0 ]; then echo "every test passed in $$((SECONDS - begun)) s"; else exit $$status; fi

faults: build ## Play every scenario with every fault, and write the table into docs/reliability.md (20 minutes); ONLY="a row"
	@$(PLAYGROUND) assets; $(CARGO_TARGET_DIR)/debug/faults $(if $(ONLY),--only '$(ONLY)',--write docs/reliability.md)

soak: build ## Have grants come and go, and one thing after another go wrong, for MINUTES=60
	@$(PLAYGROUND) assets; $(CARGO_TARGET_DIR)/debug/faults --soak $(or $(MINUTES),60) $(if $(SEED),--seed $(SEED))

# Inputs that lead somewhere new are kept beside the caches, and begin the next run; what breaks a target is kept in
# fuzz/artifacts, for a regression test and the corpus.
FUZZ := $(PORTCULLIS_CACHE)/fuzz
FUZZ_TARGETS := $(basename $(notdir $(wildcard fuzz/fuzz_targets/*.rs)))
fuzz: prerequisites ## Feed everything that reads what strangers send, FUZZ_SECONDS=60 each (8 minutes to build the first time)
	@tests/fuzz.sh $(FUZZ) $(SOURCES) $(or $(FUZZ_SECONDS),60) $(FUZZ_TARGETS)

# Only the decisions: their tests are quick enough for each to be broken.
FILES ?= src/plan/**/*.rs
mutants: prerequisites ## Break FILES=src/plan/lease.rs in one place after another, and see that tests notice (an hour for all)
	@case " $(FILES)" in *' src/plan/'*) ;; *) echo "make: FILES is $(FILES): only src/plan has tests that are quick enough" >&2; exit 1;; esac
	@tests/mutants/run.sh $(PORTCULLIS_CACHE) $(SOURCES) $(foreach file,$(FILES),'$(file)')

build: prerequisites ## Build the controller, kubectl jit, the simulator and the playground (3 to 6 minutes the first time)
	@begun=$$SECONDS; \
	echo "building the controller, kubectl jit, the simulator and the playground into $(CARGO_TARGET_DIR)"; \
	(cd $(SOURCES) && cargo build --locked --workspace --bins); \
	echo "built in $$((SECONDS - begun)) s"

controlplane: build ## Build etcd, kube-apiserver, kube-controller-manager and kubectl once (5 to 10 minutes)
	@$(PLAYGROUND) assets

crds: build ## Write crds/ and deploy/base/admission.yaml from the program, and copy what the chart carries
	$(CARGO_TARGET_DIR)/debug/portcullis crds --output-dir crds
	$(CARGO_TARGET_DIR)/debug/portcullis admission --output deploy/base/admission.yaml
	cp crds/jit*.yaml charts/portcullis/files/crds/
	cp deploy/base/admission.yaml deploy/base/controller-roles.yaml deploy/base/user-roles.yaml charts/portcullis/files/

chart: build ## Write the chart's README from its values
	cd charts/portcullis && "$$($(PLAYGROUND) tools)/helm-docs" --log-level error

# Its own copy of the checkout: the tool for the SBOM writes beside the sources.
OUTPUT ?= target/image
image: present ## Build the container image into OUTPUT=target/image, without a container engine, and run it (15 minutes the first time)
	@$(PYTHON) tests/mirror.py $(CURDIR) $(PORTCULLIS_CACHE)/image-sources
	@$(PYTHON) deploy/image/build.py $(PORTCULLIS_CACHE)/image-sources $(OUTPUT)
	@if [ "$(CHECK)" = contents ] || [ "$$(id -u)" != 0 ]; then \
	  $(PYTHON) deploy/image/check.py --contents $(OUTPUT); echo "to run it too: sudo -E make image-check OUTPUT=$(OUTPUT)"; \
	else $(PYTHON) deploy/image/check.py $(OUTPUT); fi

image-check: ## Run the image in OUTPUT as a cluster would, under what the Deployment forbids (Linux, root)
	@$(PYTHON) deploy/image/check.py $(OUTPUT)

image-reproduced: ## Build the image in OUTPUT again in another folder, and compare
	@$(PYTHON) deploy/image/reproduce.py $(OUTPUT)

docs: build ## Bring the generated parts of docs/ up to date
	$(CARGO_TARGET_DIR)/debug/portcullis docs

lint: prerequisites ## clippy with warnings as errors, rustfmt, dependency rules where cargo-deny is installed
	cargo fmt --all --check
	(cd $(SOURCES) && cargo clippy --locked --workspace --all-targets -- -D warnings)
	@if command -v cargo-deny >/dev/null; then cargo deny check bans licenses sources; \
	else echo "cargo-deny is not installed: dependency rules were not checked"; fi

fmt: ## Format
	cargo fmt --all

present:
	@missing() { echo "make: $$1 is missing: $$2" >&2; exit 1; }; \
	command -v cargo >/dev/null || missing "Rust (cargo)" "install it from https://rustup.rs"; \
	command -v $(PYTHON) >/dev/null || missing "Python 3.10 or later ($(PYTHON))" "install it from https://www.python.org"; \
	command -v go >/dev/null || [ -n "$${KUBEBUILDER_ASSETS:-}" ] \
	  || missing "Go 1.26 or later" "install it from https://go.dev/dl, or set KUBEBUILDER_ASSETS"

prerequisites: present
	@mkdir -p "$$CARGO_TARGET_DIR"; \
	$(PYTHON) tests/mirror.py $(CURDIR) $(SOURCES)
