# make demo: set up, deploy the shipped network and deblur a picture.   make test: set up and test.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
AS_ROOT := $(if $(filter 0,$(shell id -u)),,sudo -n)

.PHONY: demo browser moto test test-slow lint format docs docs-linkcheck bench wheel clean

demo: $(VENV)/.export
	$(BIN)/msan deploy msan-s --output demo/msan-s --gpu rtx30,rtx40,rtx50
	$(BIN)/msan deblur examples/lighthouse-blurred.png --output demo --bundle demo/msan-s --compare
	@echo "See demo/lighthouse-blurred.compare.png. The engine for RTX 30, 40 and 50 cards: demo/msan-s/msan-s.rtx.engine"

# Two processes, since exports use one core alone. The runtime's tests have others: it never meets PyTorch in use either.
# Those of clusters have one of their own: Ray leaves threads behind.
test: $(VENV)/.dev browser moto
	$(BIN)/python -m pytest -n 2 --dist loadfile tests/export tests/msan tests/calib tests/rules tests/docs
	$(BIN)/python -m pytest -n 2 --dist loadfile tests/runtime --ignore=tests/runtime/cluster
	$(BIN)/python -m pytest tests/runtime/cluster

# A Chromium for the tests of report pages. Where there is none they are skipped; with CI in the environment they fail.
browser:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null \
	|| { $(AS_ROOT) apt-get update -qq && $(AS_ROOT) apt-get install -qq -y --no-install-recommends chromium; } >/dev/null \
	|| echo "No Chromium, and none could be installed: the tests of report pages will be skipped."

# An S3 server for tests/runtime/cluster, apart: boto takes python-dateutil before 3 alone.
moto: build/moto/bin/moto_server

build/moto/bin/moto_server: | $(VENV)/bin/python
	$(BIN)/python -m venv build/moto
	build/moto/bin/python -m pip install --quiet --disable-pip-version-check 'moto[s3]==5.2.5' 'flask==3.1.3' 'flask-cors==6.0.5'

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

# The site in build/docs: a warning is an error, and so is a link inside of it that leads nowhere.
docs: $(VENV)/.dev
	$(BIN)/python -m sphinx -W -n --keep-going --quiet -b html -d build/doctrees docs build/docs
	$(BIN)/python -m tests.docs.links build/docs

# External links: needs a network.
docs-linkcheck: $(VENV)/.dev
	$(BIN)/python -m sphinx --quiet -b linkcheck -d build/doctrees docs build/linkcheck

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
