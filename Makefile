# Two commands: `make demo` and `make test`. Each installs what it needs the first time and only then.
VENV ?= .venv
PYTHON ?= python3
export PYTHON

BIN := $(VENV)/bin
INPUTS := pyproject.toml constraints.txt tools/install.sh

.DEFAULT_GOAL := help
.PHONY: help demo test report speed lint fetch clean-venv

help:  ## show this list
	@sed -n 's/^\([a-z-]*\):[^#]*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 20

demo: $(VENV)/.installed  ## fetch the lab's assets, run its demo row, write results/ and reports/
	@$(BIN)/stagealign demo

test: $(VENV)/.installed-dev  ## run the whole test suite, with the smoke run of CI
	@$(BIN)/python -m pytest -q --numprocesses auto --dist worksteal --durations 25

report: $(VENV)/.installed  ## write reports/ from results/
	@$(BIN)/stagealign report

DEVICE ?= cpu
speed: $(VENV)/.installed-dev  ## measure speed against other tools, one result file a row; takes hours (SPEED="--rows start,store": only these rows)
	@$(BIN)/python -m benchmarks.speed --device $(DEVICE) $(SPEED)

lint: $(VENV)/.installed-dev  ## run ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

fetch: $(VENV)/.installed  ## download the lab's assets, by exact version and hash
	@$(BIN)/stagealign fetch

clean-venv:  ## remove the virtual environment; results and the store stay
	rm -rf $(VENV)

# The development set contains the core one, so installing it also makes the stamp of the core one.
$(VENV)/.installed: $(INPUTS)
	@tools/install.sh $(VENV)
	@touch $@

$(VENV)/.installed-dev: $(INPUTS)
	@tools/install.sh $(VENV) dev,eval
	@touch $(VENV)/.installed $@
