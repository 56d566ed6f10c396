# Every target makes what it needs in .venv; PYTHON chooses the interpreter that it is made from.
PYTHON ?= python3
BIN := .venv/bin
TYPES := build/types
ROOMS := attribution storage jobs api
# Two processes of one thread each: much of the suite waits for Ray to start.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

.PHONY: venv demo demo-quick test test-all test-faults lint types arrows web bench docs wheel clean

venv: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt setuptools wheel
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable ".[cpu,dev]"
	@touch $@

# A small language model of the Python standard library, its skills, and a report: about seven minutes on two cores.
demo: venv
	$(BIN)/quantascope demo --out runs/demo

# The same in about a minute, on less of everything; shows that it runs, not what it can find.
demo-quick: venv
	rm -rf build/demo-quick
	$(BIN)/quantascope demo --quick --out build/demo-quick --cache build/demo-quick-cache

test: lint types arrows web demo-quick
	$(PYTEST) -m "not slow"

test-all: lint types arrows web demo-quick
	$(PYTEST)

# Real kills, a crash at every operation, full and read-only disks, flipped bits: all of tests/faults, the long ones too.
test-faults: venv
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/faults

lint: venv
	$(BIN)/ruff check
	$(BIN)/ruff format --check

# The rooms lie at the root and are imported below quantascope: this is the tree that type checkers and editors see.
$(TYPES): venv
	@rm -rf $(TYPES) && mkdir -p $(TYPES)
	@cp -rs $(CURDIR)/quantascope $(TYPES)/
	@for room in $(ROOMS); do cp -rs $(CURDIR)/$$room $(TYPES)/quantascope/; done
.PHONY: $(TYPES)

types: $(TYPES)
	$(BIN)/mypy

arrows: $(TYPES)
	cd $(TYPES) && $(CURDIR)/$(BIN)/lint-imports --config $(CURDIR)/pyproject.toml --no-logo

# What the report's bundle is built with; without npm the test that builds it again says so and is skipped.
web:
	@if command -v npm >/dev/null; then cd api/report/web && npm ci --silent --no-audit --no-fund; \
	else echo "no npm here: the report's bundle is not built again"; fi

bench: venv
	$(BIN)/python benchmarks/collect.py --quick
	$(BIN)/python benchmarks/projection.py --quick
	$(BIN)/python benchmarks/ledger.py --quick
	$(BIN)/python benchmarks/quanta.py --quick

docs: venv
	$(BIN)/python -m pytest tests/test_docs.py

wheel: venv
	$(BIN)/python -m build --quiet --wheel --no-isolation --outdir dist

clean:
	rm -rf build dist .venv runs *.egg-info
