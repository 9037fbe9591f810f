# make demo, make test: everything else is a detail of those two.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
# Caches live outside the checkout, so that a fresh clone on a warm machine is warm.
export PORTCULLIS_CACHE ?= $(if $(XDG_CACHE_HOME),$(XDG_CACHE_HOME),$(HOME)/.cache)/portcullis
export CARGO_TARGET_DIR ?= $(PORTCULLIS_CACHE)/target
