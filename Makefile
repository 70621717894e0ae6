# make demo: set up, deploy the shipped network and deblur a picture.   make test: set up and test.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test test-slow lint format bench wheel clean

demo: $(VENV)/.export
	$(BIN)/msan deploy msan-s --output demo/msan-s --gpu rtx30,rtx40,rtx50
	$(BIN)/msan deblur examples/lighthouse-blurred.png --output demo --bundle demo/msan-s --compare
	@echo "See demo/lighthouse-blurred.compare.png. The engine for RTX 30, 40 and 50 cards: demo/msan-s/msan-s.rtx.engine"

# The runtime's tests have a process of their own: it never meets PyTorch in use either.
test: $(VENV)/.dev
	$(BIN)/python -m pytest tests/export tests/msan tests/calib tests/rules
	$(BIN)/python -m pytest tests/runtime

# Minutes: the full 8.9-million-parameter network from checkpoint to bundle.
test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Timings on this machine: keep it quiet while they run.
bench: $(VENV)/.dev
	$(BIN)/msan bench --sizes 360x640,720x1280 --count 60 --against pytorch,pytorch-channels-last,onnxruntime,openvino,openvino-bf16 --json benchmarks/results/bench.json --plot docs/bench.png

wheel: $(VENV)/.dev
	$(BIN)/python -m hatchling build -t wheel

clean:
	rm -rf $(VENV) demo dist build

$(VENV)/bin/python:
	$(PYTHON) -c "import sys; sys.exit(0 if sys.version_info >= (3, 11) else 'msan needs Python 3.11 or later')"
	$(PYTHON) -m venv $(VENV)

$(VENV)/.export: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --editable '.[export]'
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --editable '.[dev]'
	touch $@ $(VENV)/.export
