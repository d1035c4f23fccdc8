# Needs git, make and a Python 3.11-3.13 with venv. Everything else goes into $(VENV), from the lock file, by hash.
#
#   PYTHON=/path/to/python3.12   builds the environment with that Python
#   REV=v1.0                     of make review: the revision that is reviewed
#   GPU=1                        uses an environment with CUDA libraries, in .venv-gpu, from requirements-gpu.lock

ifeq ($(GPU),1)
VENV := .venv-gpu
LOCK := requirements-gpu.lock
else
VENV := .venv
LOCK := requirements.lock
endif

UV ?= uv
COMPILE = $(UV) pip compile pyproject.toml --quiet --universal --generate-hashes --no-header --no-annotate \
	--no-emit-index-url --python-version 3.11 --extra test

ENVIRONMENT = @sh scripts/environment.sh $@ $(VENV) $(LOCK)
# Stages start `python`, so the environment must come first on PATH; calling $(VENV)/bin/dvc alone would not do.
RUN = @PATH="$$PWD/$(VENV)/bin:$$PATH"

# Most tests use one core. The slow ones run one after another: they use all cores, or kill what runs at a given moment.
PARALLEL = --numprocesses logical --maxprocesses 4 --dist loadgroup --no-loadscope-reorder

export PYTHON
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help repro review test lint ui demo bench clean-features environment lock

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-15s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo 'GPU=1 (as in `make repro GPU=1`) uses an environment with CUDA; PYTHON=... chooses the Python, 3.11 to 3.13.'

repro: ## run what changed of the pipeline and show the comparison; everything takes about 15 minutes
	$(ENVIRONMENT)
	$(RUN) python -m pipeline prune
	$(RUN) dvc repro
	@echo
	$(RUN) python -m pipeline leaderboard
	@echo
	$(RUN) python -m pipeline lock
	@echo 'Look next at results/leaderboard.md, results/figures/, and at every run and candidate with: make ui'

review: ## replay HEAD, or REV=..., from nothing, judge it by what it claims, and write what a reviewer signs
	$(ENVIRONMENT)
	$(RUN) python -m pipeline review $(REV)

test: ## run the tests; with SLOW=1 also those that take minutes each
	$(ENVIRONMENT)
	$(RUN) python -m pytest $(if $(SLOW),-m '',$(PARALLEL))

lint: ## check the style of the code, and that imports run down
	$(ENVIRONMENT)
	$(RUN) ruff check --no-cache
	$(RUN) ruff format --check --no-cache
	$(RUN) lint-imports --no-cache --no-logo

ui: ## fill MLflow from the records of the runs and open its page
	$(ENVIRONMENT)
	$(RUN) python -m pipeline ui

demo: ## the same pipeline on 200 images and three methods, in .demo, in under 5 minutes
	$(ENVIRONMENT)
	$(RUN) python -m pipeline demo

bench: ## measure every claim of speed again, in about 2 hours, and rewrite benchmarks/RESULTS.md; after make repro
	$(ENVIRONMENT)
	$(RUN) python -m benchmarks

clean-features: ## remove what frozen networks have computed so far; it is computed again when needed
	$(ENVIRONMENT)
	$(RUN) python -m pipeline clean-features

environment: ## only build the environment, in .venv
	$(ENVIRONMENT)

lock: ## rewrite both lock files from pyproject.toml, keeping versions that still fit (needs uv)
	@command -v "$(UV)" >/dev/null || { echo 'make lock needs uv, for instance: pipx install uv' >&2; exit 1; }
	$(COMPILE) --extra cpu --output-file requirements.lock
	$(COMPILE) --extra gpu --output-file requirements-gpu.lock
