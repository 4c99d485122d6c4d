# Two commands set everything up: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
TYPED := build/typed

.PHONY: demo test check pytest long clean

demo: .venv/ready
	$(BIN)/restoration-env demo

test: check pytest

pytest: .venv/ready
	$(BIN)/python -m pytest -m "not long" -n 2 --dist loadfile

long: .venv/ready
	$(BIN)/python -m pytest -m long

# mypy and import-linter want to see the five folders as the one package that is installed.
check: .venv/ready
	rm -rf $(TYPED) && mkdir -p $(TYPED)/restoration_env
	cp restoration_env/*.py restoration_env/py.typed $(TYPED)/restoration_env/
	for folder in tools sft agents benchmarks; do cp -r $$folder $(TYPED)/restoration_env/; done
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	cd $(TYPED) && $(CURDIR)/$(BIN)/lint-imports --config $(CURDIR)/pyproject.toml
	MYPYPATH=$(TYPED) $(BIN)/mypy

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf .venv build dist runs
