# The two commands of a newcomer are `make demo` and `make panel`; `make test` proves the install.

PRESET ?= demo
OUT ?= demo
PORT ?= 8050
CORES ?= $(shell nproc)
# `train`, or the folder of an agent; by default what the preset says.
AGENT ?=
PYTHON ?= $(firstword $(shell command -v python3.11 python3.12 python3))

VENV := .venv
RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
INSTALLED_DEV := $(VENV)/.installed-dev
PIP_INSTALL := $(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# The kernel drops this lock when its holders die, so a kill leaves nothing to clean up, while two
# chains never write into one folder. Snakemake's own lock files would outlive a kill.
LOCKED = mkdir -p $(OUT) && flock --verbose --wait 3600 $(OUT)/.lock

RUN_CHAIN = $(LOCKED) $(RUN) -m snakemake --snakefile Snakefile --cores $(CORES) --nolock \
	--rerun-incomplete --quiet rules host progress \
	--config preset=$(PRESET) out=$(OUT) agent=$(AGENT)

.PHONY: demo report findings panel test check test-all format clean

demo: $(INSTALLED)
	@$(RUN_CHAIN)
	@$(RUN) -m experiment.summary $(OUT)/summary.json

# All analyses of what ships, and a page of what they found.
report: PRESET := report
report: OUT := report/results
report: $(INSTALLED)
	@$(RUN_CHAIN)
	@$(RUN) -m findings --results $(OUT) --output_dir report

# The tables and pictures of docs/findings.md, from the report that is there.
findings: $(INSTALLED)
	@$(RUN) -m findings --results report/results --output_dir report --document docs/findings.md

panel: $(INSTALLED)
	@$(RUN) -m panel $(OUT) --port $(PORT)

test: $(INSTALLED_DEV)
	$(RUN) -m pytest -m "not slow"

check: $(INSTALLED_DEV)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/pyright --pythonpath $(RUN)
	OMP_NUM_THREADS=1 $(RUN) -m pytest -m "not slow and not medium" --numprocesses $(CORES) --dist loadfile

test-all: $(INSTALLED_DEV)
	$(RUN) -m pytest

format: $(INSTALLED_DEV)
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

clean:
	rm -rf $(OUT) .snakemake

$(RUN):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' || \
		{ echo "error: Python 3.11 or 3.12 is needed, found $$($(PYTHON) --version 2>&1); use make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@echo "Creating $(VENV)"
	@$(PYTHON) -m venv $(VENV)

$(INSTALLED): pyproject.toml constraints.txt | $(RUN)
	@echo "Installing Dreamscope and what it needs into $(VENV) (a few minutes)"
	@$(PIP_INSTALL) torch
	@$(PIP_INSTALL) --editable .
	@touch $@

$(INSTALLED_DEV): $(INSTALLED)
	@$(PIP_INSTALL) --editable '.[dev]'
	@touch $@
