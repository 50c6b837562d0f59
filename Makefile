# The commands of the README; `make` alone lists them. Needs Python 3.11, make and git, and makes the rest itself.
#
# On Linux, PyPI's torch carries CUDA (some GB). Where there is no GPU, set PIP_EXTRA_INDEX_URL to PyTorch's own index
# of CPU wheels before the first `make`: the lock asks for the same version and pip takes the small wheel.

PYTHON ?= $(shell command -v python3.11 || command -v python3 || echo python3.11)
CHAPTER ?=
RUN ?=
SCALE ?= book
TESTS ?=
JOBS ?= auto
PORT ?= 8000

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# An environment works where it was made, with the Python that it was made with; elsewhere it is made anew.
WORKS := $(shell cd $(VENV) 2>/dev/null && \
  bin/python -c 'import pip, sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null && \
  ! grep -s '^command = ' pyvenv.cfg | grep -qvF " $$(pwd -P)" && echo yes)

export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Settings of a machine's pip.conf that would put the packages elsewhere.
export PIP_USER := 0
unexport PIP_PREFIX PIP_ROOT PIP_TARGET

.DEFAULT_GOAL := help
.PHONY: help anew install book test notebooks serve run sweep long archive lint lock clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

install: $(INSTALLED)  ## .venv with the versions of requirements.lock; every command does it when it is needed

$(INSTALLED): requirements.lock requirements-data.txt pyproject.toml $(if $(WORKS),,anew)
	@command -v "$(PYTHON)" >/dev/null || \
	  { echo "Python 3.11 is needed and '$(PYTHON)' is not here: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
	  { echo "Python 3.11 is needed, '$(PYTHON)' is $$("$(PYTHON)" --version 2>&1): make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(if $(WORKS),,echo "making $(VENV) with $$("$(PYTHON)" --version)" && "$(PYTHON)" -m venv --clear $(VENV))
	@echo "installing $$(grep -c == requirements.lock) packages into $(VENV); torch is large, this takes minutes"
	@$(BIN)/python -m pip install -q -r requirements.lock
	@$(BIN)/python -m pip install -q --no-deps -r requirements-data.txt
	@$(BIN)/python -m pip install -q --no-deps -e .
	@$(BIN)/python -c 'import snakemake' || \
	  { echo "pip did not install into $(VENV): look for target and prefix in its settings (pip config list)" >&2; exit 1; }
	@touch $@

book: $(INSTALLED)  ## run what is missing, then build _build/html; nothing to do takes seconds (SCALE=smoke: a trial)
	@$(BIN)/python -m snakemake --config scale=$(SCALE)
	@echo "the book: _build/html/index.html (make serve)"

test: $(INSTALLED)  ## all tests in parallel, then the benchmarks. Some: make test TESTS=tests/lib/ledger
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal -m "not benchmark and not large" $(TESTS)
	@$(if $(TESTS),,$(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal -m benchmark)

notebooks: $(INSTALLED)  ## notebooks/*.md as .ipynb, to open in Jupyter (git-ignored)
	@$(BIN)/python -m jupytext --to ipynb notebooks/*.md

serve: book  ## the book on http://localhost:$(PORT)
	@$(BIN)/python -m http.server $(PORT) --bind 127.0.0.1 --directory _build/html

run: $(INSTALLED)  ## one chapter: make run CHAPTER=meantime SCALE=smoke ARGS="-p seeds [0]"
	@$(BIN)/python -m lib.run $(CHAPTER) --scale $(SCALE) $(ARGS)

sweep: $(INSTALLED)  ## a grid of runs: make sweep CHAPTER=template SCALE=smoke GRID="seeds=[0,1] samples=[100,200]"
	@$(BIN)/python -m snakemake sweep --config chapter=$(CHAPTER) scale=$(SCALE) $(GRID)

long: $(INSTALLED)  ## the planned long runs of a chapter, a seed a run, on all cores: make long CHAPTER=meantime
	@$(BIN)/python -m snakemake sweep --config planned=$(CHAPTER) scale=long

archive: $(INSTALLED)  ## keep the runs of a plan: make archive RUN="runs/long/meantime/*"
	@$(BIN)/python -m lib.run --archive $(RUN) $(ARGS)

lint: $(INSTALLED)  ## style of code and of the chapters' cells, and the import rule between the rooms of lib
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m ruff format --check .
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && \
	  for chapter in notebooks/*.md; do \
	    $(BIN)/python -m jupytext --quiet --to ipynb -o "$$folder/$$(basename "$$chapter" .md).ipynb" "$$chapter" || exit 1; \
	  done && \
	  $(BIN)/python -m ruff check --config pyproject.toml "$$folder" && \
	  $(BIN)/python -m ruff format --check --config pyproject.toml "$$folder"
	@$(BIN)/python -c 'from importlinter.cli import lint_imports_command as main; main()'

lock:  ## write requirements.lock anew from pyproject.toml, in a clean environment
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && \
	  "$(PYTHON)" -m venv "$$folder" && \
	  "$$folder/bin/python" -m pip install -q ".[test]" && \
	  "$$folder/bin/python" -m pip freeze --exclude does-it-hold > "$$folder/freeze.txt" && \
	  sed -E 's/^(torch==[0-9.]+)\+.*/\1/' "$$folder/freeze.txt" | LC_ALL=C sort -f > requirements.lock
	@grep -vE '^[A-Za-z0-9._-]+==[A-Za-z0-9.!+]+$$' requirements.lock && exit 1 || wc -l requirements.lock

clean:  ## remove pages, caches and .ipynb; runs stay, they are what takes time
	@rm -rf _build .snakemake .pytest_cache .ruff_cache .hypothesis .import_linter_cache .grimp_cache notebooks/*.ipynb
