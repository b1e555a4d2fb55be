# Two commands: `make run` installs and serves, `make test` installs and runs every check.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
AXE := 4.14.1
APT := DEBIAN_FRONTEND=noninteractive apt-get -qq
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: run test lint browser sandbox cost docs bench format pins audit clean

run: $(VENV)/run.stamp
	$(BIN)/nexus-gateway serve $(ARGS)

test: lint browser sandbox cost
	$(BIN)/python -m pytest --cov --cov-report=term

lint: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p nexus_gateway
	MYPYPATH=bench $(BIN)/mypy plugins bench docs
	$(BIN)/lint-imports

# The page's tests also need a browser, and axe-core from npm.
browser: | $(BIN)/python
	@command -v chromium-headless-shell >/dev/null \
	  || { [ "$$(id -u)" = 0 ] && $(APT) update && $(APT) install -y --no-install-recommends \
	       chromium-headless-shell fonts-dejavu-core >/dev/null; } \
	  || command -v chromium >/dev/null \
	  || echo "chromium is missing and cannot be installed here: the page's tests are skipped."
	@[ -e $(VENV)/axe/package ] \
	  || { mkdir -p $(VENV)/axe && cd $(VENV)/axe && \
	       npm pack --silent axe-core@$(AXE) >/dev/null && tar -xzf axe-core-$(AXE).tgz; } \
	  || echo "axe-core is missing, because there is no npm: the accessibility tests are skipped."

# The image's tests run it without a Docker engine.
sandbox:
	@command -v bwrap >/dev/null \
	  || { [ "$$(id -u)" = 0 ] && $(APT) update && $(APT) install -y --no-install-recommends \
	       bubblewrap >/dev/null; } \
	  || echo "bubblewrap is missing and cannot be installed here: the image's tests are skipped."

# What a request costs, in instructions, must not grow unless bench/instructions says so.
cost: $(VENV)/test.stamp
	@command -v valgrind >/dev/null \
	  || { [ "$$(id -u)" = 0 ] && $(APT) update && $(APT) install -y --no-install-recommends \
	       valgrind >/dev/null; } \
	  || echo "valgrind is missing and cannot be installed here: the cost of a request is not checked."
	$(BIN)/python bench/instructions.py --check

docs: $(VENV)/docs.stamp
	$(BIN)/mkdocs build --quiet --strict

bench: $(VENV)/test.stamp
	$(BIN)/python bench/run.py $(ARGS)

format: $(VENV)/test.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Both need the network: pin the newest versions, and audit them for known vulnerabilities.
pins: | $(BIN)/python
	$(BIN)/pip install --quiet uv
	$(BIN)/uv pip compile --quiet --upgrade --universal --generate-hashes --python-version 3.11 \
	  --extra fast --extra metrics --custom-compile-command 'make pins' setup.cfg deploy/build.in \
	  --output-file deploy/requirements.txt

audit: | $(BIN)/python
	$(BIN)/pip install --quiet pip-audit
	$(BIN)/pip-audit --strict --disable-pip --require-hashes -r deploy/requirements.txt

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is required; choose one: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/run.stamp: setup.cfg pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet -e '.[fast]'
	@touch $@

$(VENV)/test.stamp: setup.cfg pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet -e '.[test]'
	@touch $@

$(VENV)/docs.stamp: setup.cfg pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet -e '.[docs]'
	@touch $@

clean:
	rm -rf $(VENV) build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .coverage .hypothesis
