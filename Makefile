# Two commands for a newcomer: `make demo` and `make test`. Each makes .venv when there is none.
PYTHON ?= python3
BIN = .venv/bin
STAMP = .venv/.installed

.PHONY: demo test check clean help

help:  ## what can be made
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed; set PYTHON=..." >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: $(STAMP)  ## five shops train one model under differential privacy (about four minutes)
	$(BIN)/credit-sim run pakdd2009

check: $(STAMP)  ## ruff, import-linter, mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy

test: check  ## checks, then the whole test suite
	$(BIN)/python -m pytest

clean:  ## remove .venv and caches
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
