# The two commands of the README. Everything lives in .venv; nothing else is touched.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test lint

quickstart: .venv/ready
	$(BIN)/llmdistill run pipelines/quickstart.yaml

test: .venv/ready-test lint
	$(BIN)/python -m pytest tests

lint: .venv/ready-test
	$(BIN)/ruff check llmdistill tests
	$(BIN)/ruff format --check llmdistill tests
	$(BIN)/mypy

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/ready-test: .venv/ready
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@
