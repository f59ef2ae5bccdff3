# Every target sets up what it needs in .venv, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test lint docs bench clean

help:
	@echo "make demo    set up, then make a trained LeNet-300-100 smaller and measure it on MNIST"
	@echo "make test    all tests"
	@echo "make lint    ruff, mypy --strict, import directions"
	@echo "make docs    the documentation, strict, into site/"
	@echo "make bench   the evidence: tables, figures and JSON records in benchmarks/results/"

# one stamp per set of extras: made again only when the requirements change
$(VENV)/.base: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable .
	@touch $@

$(VENV)/.%: $(VENV)/.base
	$(PIP) --editable '.[$*]'
	@touch $@

demo: $(VENV)/.base
	$(BIN)/coreprune demo

test: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

lint: $(VENV)/.lint $(VENV)/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.docs
	OMP_NUM_THREADS=1 $(BIN)/python docs/check_examples.py
	$(BIN)/mkdocs build --strict --quiet

bench: $(VENV)/.bench
	$(BIN)/python benchmarks/synthetic.py
	$(BIN)/python benchmarks/lenet.py
	$(BIN)/python benchmarks/certificates.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/kernel_speed.py --large
	$(BIN)/python benchmarks/publish.py

clean:
	rm -rf $(VENV) site build coreprune-demo
