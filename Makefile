# Two commands are enough: `make demo` and `make test`. Both make .venv first, and only once.
# For the CPU build of torch: make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
PYTHON ?= python3
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
WORKERS ?= 2
BENCH ?=

.PHONY: help demo test test-all bench-quantize check format schema readme clean

help:  ## what there is to type
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

demo: $(INSTALLED)  ## the whole chain on this machine, in a few minutes
	$(BIN)/awq-bot demo

test: $(INSTALLED)  ## the tests, under ten minutes
	$(BIN)/pytest -n $(WORKERS) --dist loadfile -m "not slow and not gpu"

test-all: $(INSTALLED)  ## also what takes minutes or an environment of its own
	$(BIN)/pytest -n $(WORKERS) --dist loadfile -m "not gpu"

bench-quantize: $(INSTALLED)  ## both searches side by side; an hour, or BENCH=--quick
	$(BIN)/python -m tests.benchmarks.quantize $(BENCH)

check: $(INSTALLED)  ## format, lint, types, and who may import whom
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(INSTALLED)  ## mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

schema: $(INSTALLED)  ## write the watchlist's JSON Schema anew
	$(BIN)/python -c "from bot.watch.schema import SCHEMA_FILE, json_schema; SCHEMA_FILE.write_text(json_schema())"

readme: $(INSTALLED)  ## write the README's section of commands anew
	$(BIN)/python -m bot.manual README.md

clean:  ## remove the environment and what the demo made
	rm -rf $(VENV) demo build *.egg-info .mypy_cache .ruff_cache .import_linter_cache

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) \
		--constraint constraints.txt --editable ".[quantize,hub,actions]" --group dev
	touch $@
