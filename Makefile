# Two commands for a newcomer: `make demo` and `make test`. Each makes .venv when there is none.
PYTHON ?= python3
BIN = .venv/bin
STAMP = .venv/.installed

.PHONY: demo test test-gpu check proto clean help

help:  ## what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed; set PYTHON=..." >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: $(STAMP)  ## a coordinator and five shops train one model under differential privacy
	$(BIN)/credit-sim demo

check: $(STAMP)  ## ruff, import-linter, mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy

# A worker more than there are cores, since many tests wait; one thread a worker: most start processes
# that load torch. Who is done takes over from who is not; files marked `long` are begun first.
WORKERS ?= $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1)

test: check  ## checks, then the whole test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

test-gpu: $(STAMP)  ## parity, speed and memory on CUDA or MPS; skipped with the reason where there is none
	$(BIN)/python -m pytest tests/gpu -s -rs

proto:  ## federation_pb2.py anew; an old generator, so that old runtimes of protobuf take its code
	$(PYTHON) -m venv build/proto
	build/proto/bin/python -m pip install --quiet grpcio-tools==1.65.5 'setuptools<80'
	cd common/credit_common && ../../build/proto/bin/python -m grpc_tools.protoc -I. \
		--python_out=. --pyi_out=. federation.proto

clean:  ## remove .venv and caches
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
