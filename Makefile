# make demo    install into .venv and run the main job on the CPU, from ratings to a report
# make test    install and run the tests
# make check   lint and types
# make docs    the documentation site in site/, every link checked
# make audit   known vulnerabilities of the pinned packages (needs the network)
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo qwen3 install dev check format docs docs-serve test test-slow test-gpu test-lowest test-newest coverage audit clean

demo: install
	$(BIN)/rectune run demo_cpu

# The real Qwen3-0.6B on one 24 GB card; what it measured is appended to benchmarks/RESULTS.md.
qwen3: install
	$(PIP) install --quiet -c constraints.txt -e '.[qlora]'
	$(BIN)/rectune run qwen3_movielens_stream
	$(BIN)/python benchmarks/append_result.py output/qwen3-movielens-stream

install: $(VENV)/.installed
dev: $(VENV)/.installed-dev

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "rectune needs Python 3.11 or newer: make PYTHON=python3.11 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

# torch first and pinned: its version decides between the builds for CPU and CUDA.
$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) install --quiet "$$(grep '^torch==' constraints.txt)"
	$(PIP) install --quiet -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

check: dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# mkdocs prints a notice about its own future unless told not to; nothing is fetched.
docs: dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html"

docs-serve: dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

format: dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Two processes; tests of a file stay together, since they share what they have trained.
test: dev
	$(BIN)/pytest -n 2 --dist loadfile

# Slower than `test`; fails below the floor in pyproject.toml.
coverage: dev
	$(BIN)/pytest -n 2 --dist loadfile --cov --cov-report=term

test-slow: dev
	$(BIN)/pytest -m slow

test-gpu: dev
	$(BIN)/pytest -m gpu

# The tests on the lowest versions that pyproject.toml allows and on the newest there are; torch stays as pinned, since
# another one would bring another build (CPU or CUDA) with it.
test-lowest: RESOLUTION = lowest-direct
test-newest: RESOLUTION = highest
test-lowest test-newest: test-%:
	$(PYTHON) -m venv --clear .venv-$*
	grep '^torch==' constraints.txt > .venv-$*/torch.txt
	.venv-$*/bin/python -m pip install --quiet uv -r .venv-$*/torch.txt
	.venv-$*/bin/uv pip compile --quiet --resolution $(RESOLUTION) --extra dev --constraint .venv-$*/torch.txt \
		--python .venv-$*/bin/python --output-file .venv-$*/versions.txt pyproject.toml
	.venv-$*/bin/python -m pip install --quiet --constraint .venv-$*/versions.txt -e '.[dev]'
	.venv-$*/bin/pytest -n 2 --dist loadfile

# Known vulnerabilities of the pinned packages; asks a public database, so it needs the network and is not part of CI.
audit: $(VENV)/bin/python
	$(PIP) install --quiet pip-audit
	$(BIN)/pip-audit --requirement constraints.txt --no-deps --disable-pip --strict

clean:
	rm -rf .venv .venv-lowest .venv-newest .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist site .coverage
