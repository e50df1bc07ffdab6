# make demo: the main job on the embedded data.  make test: everything CI checks.  Needs only Python >= 3.11 and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
STAMP := $(VENV)/.set-up
PLUGINS := $(wildcard plugins/*)

.PHONY: setup demo test lint types imports unit bench clean

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
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist loadgroup --quiet
	for plugin in $(PLUGINS); do OMP_NUM_THREADS=1 $(BIN)/pytest --quiet $$plugin || exit 1; done

# Every benchmark, pass or FAIL at its end. tests/bench/report.py puts what it leaves in build/bench into the README.
bench: setup
	$(BIN)/python tests/bench/run.py

clean:
	rm -rf build demo kdbench.egg-info plugins/*/build plugins/*/*.egg-info
