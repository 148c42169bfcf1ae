# Every target sets up what it needs in .venv first.
PYTHON ?= python3
BIN := .venv/bin
BENCHMARKS = $(shell grep -l __main__ benchmarks/*.py)

.PHONY: demo test check format bench clean

demo: .venv/.run
	$(BIN)/python examples/demo.py

test: .venv/.dev
	$(BIN)/python -m pytest -n 2 --dist loadgroup

check: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv/.bench
	for script in $(BENCHMARKS); do $(BIN)/python $$script || exit 1; done

clean:
	rm -rf .venv build dist runs

.venv/bin/pip:
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip

.venv/.run: pyproject.toml constraints.txt | .venv/bin/pip
	$(BIN)/pip install --quiet -c constraints.txt -e '.[all]'
	touch $@

.venv/.dev: .venv/.run
	$(BIN)/pip install --quiet -c constraints.txt --group dev
	touch $@

.venv/.bench: .venv/.run
	$(BIN)/pip install --quiet -c constraints.txt --group bench
	touch $@
