# make demo   train on the data set in demo/, print the zero-shot table and the report's path
# make test   lint, types and, in two processes, tests; what continuous integration runs
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test lint clean

demo: $(VENV)/installed
	@$(BIN)/python -m distributed train --config configs/demo.yaml

test: lint
	@printf '%s\n' ray 'not ray' | xargs -P 2 -I {} $(BIN)/python -m pytest \
	  -o console_output_style=classic -m '{} and not slow and not gpu'

lint: $(VENV)/installed-test
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=python3.x")'
	@$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml | $(VENV)/bin/python
	@echo "installing into $(VENV): PyTorch and its GPU libraries are several GB, once"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/installed-test: $(VENV)/installed
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@

clean:
	rm -rf $(VENV) runs demo/shards/features
