# make demo: the main job on the embedded data.  make test: everything CI checks.  Needs only Python >= 3.11 and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
STAMP := $(VENV)/.set-up
PLUGINS := $(wildcard plugins/*)

# The oldest versions pyproject.toml allows, in an environment of their own; the tools are the newest that go with them.
LOWEST := build/lowest
LOWEST_TOOLS := pytest pytest-xdist pytest-timeout pytest-benchmark hypothesis 'setuptools>=77' wheel
LOWEST_TESTS := tests/unit tests/training tests/cli tests/kit tests/legacy tests/fuzz
FUZZ ?= 1000

.PHONY: setup demo test lint types imports unit bench clean faults fuzz test-lowest

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt $(wildcard plugins/*/pyproject.toml plugins/*/*.py)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --constraint constraints.txt setuptools wheel
	$(PIP) install --quiet --constraint constraints.txt --no-build-isolation --editable '.[dev]'
	rm -rf build/wheels && mkdir -p build/wheels
	for plugin in $(PLUGINS); do \
		$(PIP) wheel --quiet --no-deps --no-build-isolation --wheel-dir build/wheels $$plugin || exit 1; done
	$(PIP) install --quiet --no-deps --force-reinstall build/wheels/*.whl
	touch $(STAMP)

demo: setup
	$(BIN)/kdbench run --method student,vanilla_kd,dkd,dist --pair tiny --seeds 5 --anchor crd_short --jobs 2 --threads 1 \
		--out demo/runs --teachers demo/teachers
	$(BIN)/kdbench leaderboard demo/runs --out demo/board
	@echo "The tables with their seeds and plots: open demo/board/leaderboard.html in a browser."

test: lint types imports unit

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

imports: setup
	$(BIN)/lint-imports

unit: setup
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --quiet
	echo $(PLUGINS) | OMP_NUM_THREADS=1 xargs -n 1 -P 2 $(BIN)/pytest --quiet

# Files damaged at random, FUZZ of each kind, other ones each time; make test damages a few, the same ones each time.
fuzz: setup
	KDBENCH_FUZZ=$(FUZZ) OMP_NUM_THREADS=1 $(BIN)/pytest --quiet --timeout 3600 tests/fuzz

test-lowest:
	test -x $(LOWEST)/bin/python || $(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python tests/versions/lowest.py > $(LOWEST)/versions.txt
	$(LOWEST)/bin/python -m pip install --quiet --requirement $(LOWEST)/versions.txt $(LOWEST_TOOLS)
	$(LOWEST)/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	$(LOWEST)/bin/python -m pip install --quiet --no-deps --no-build-isolation ./plugins/kdbench-dist
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest --numprocesses 2 --quiet $(LOWEST_TESTS)

# Every benchmark, pass or FAIL at its end. tests/bench/report.py puts what it leaves in build/bench into the README.
bench: setup
	$(BIN)/python tests/bench/run.py

faults: setup
	OMP_NUM_THREADS=1 $(BIN)/python tests/faults/run.py --write

clean:
	rm -rf build demo kdbench.egg-info plugins/*/build plugins/*/*.egg-info
