# Every target works on a fresh Debian 12 machine: `make setup` comes first and does nothing when nothing changed.
SHELL := /bin/bash
PY := .venv/bin/python
.DEFAULT_GOAL := help
.PHONY: help setup check static unit test demo demo-down bench lock generate tools cluster cluster-down

help: ## show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

setup: ## make .venv and the generated protocol stubs
	@tools/bootstrap.sh

static:
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports

check: setup static ## all static checks: ruff, mypy, import layers

unit: setup ## the tests that need neither root nor the Kubernetes binaries
	$(PY) -m pytest -m "not root and not apiserver and not cluster"

test: setup static ## every check and every test that this machine can run
	$(PY) -m pytest

demo: setup ## a one-node Kubernetes with Cinderblock on it, shown step by step
	$(PY) -m tools.demo

demo-down: setup ## remove everything that the demo made
	$(PY) -m tools.demo down

bench: setup ## print the figures (a benchmark, not a test)
	$(PY) -m tools.bench

tools: setup ## build the pinned Kubernetes tools into the cache
	$(PY) -m tools.build

cluster: setup ## start the local cluster without the demo
	$(PY) -m tools.cluster up

cluster-down: setup ## remove the local cluster
	$(PY) -m tools.cluster down

generate: setup ## write the CRDs and their pages from the models
	$(PY) -m cinderblock.core.crd

lock: setup ## write the lock files anew
	PATH="$(CURDIR)/.venv/bin:$$PATH" tools/lock.sh
