PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
VENV = .venv

# Renewed when what it was made from changes, the choice of constraints included.
INSTALLED = $(VENV)/.installed-$(notdir $(CONSTRAINTS))

# Without these, datasets and huggingface_hub tell a server about each load, of a local file too.
export HF_UPDATE_DOWNLOAD_COUNTS = 0
export HF_HUB_DISABLE_TELEMETRY = 1

.PHONY: help train test test-slow test-browser test-kernels check format clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' Makefile

train: $(INSTALLED) ## train an encoder; options go in ARGS, as in make train ARGS="--max_steps 100"
	$(VENV)/bin/accelerate launch --quiet train.py $(ARGS)

test: $(INSTALLED) ## the quick tests, without the network; ARGS as for pytest
	HF_HUB_OFFLINE=1 $(VENV)/bin/pytest --numprocesses 2 --dist loadfile $(ARGS)

test-slow: $(INSTALLED) ## the tests that take longer than a few seconds
	HF_HUB_OFFLINE=1 $(VENV)/bin/pytest -m slow $(ARGS)

test-browser: $(INSTALLED) ## the page of hf-tfenc demo in Chromium; installs playwright and, where it may, Chromium
	$(VENV)/bin/pip install -q -c $(CONSTRAINTS) -e ".[all,dev,browser]"
	.ci/chromium
	HF_HUB_OFFLINE=1 $(VENV)/bin/pytest -m browser -rs tests/browser $(ARGS)

test-kernels: $(INSTALLED) ## the GPU kernels, on this machine's GPU or by Triton's interpreter; installs Triton
	$(VENV)/bin/pip install -q -c $(CONSTRAINTS) -e ".[all,dev,kernels]"
	HF_HUB_OFFLINE=1 TRITON_INTERPRET=$(if $(shell command -v nvidia-smi),0,1) $(VENV)/bin/pytest -rs --numprocesses 2 tests/kernels $(ARGS)

check: $(INSTALLED) ## lint, formatting and types; changes nothing
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy

format: $(INSTALLED) ## format, and mend what ruff can mend
	$(VENV)/bin/ruff format
	$(VENV)/bin/ruff check --fix

clean: ## remove the environment and the caches; outputs/ stays
	rm -rf $(VENV) build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache

# Both questions are asked before anything is made, so that the answer is a sentence and not a traceback.
$(INSTALLED): pyproject.toml $(CONSTRAINTS)
	$(if $(shell $(PYTHON) -c 'import sys; (3, 11) <= sys.version_info < (3, 14) and print("ok")' 2>&1 | grep -x ok),,\
	$(error hf_tfenc needs Python 3.11, 3.12 or 3.13 and $(PYTHON) is $(or $(shell { $(PYTHON) --version; } 2>/dev/null),not there): \
	name one that fits, as in make PYTHON=python3.12 $(MAKECMDGOALS)))
	$(if $(shell $(PYTHON) -c 'import ensurepip, venv; print("ok")' 2>&1 | grep -x ok),,\
	$(error $(PYTHON) cannot make virtual environments: install its venv package, on Debian and Ubuntu with \
	"apt install $(shell $(PYTHON) -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')", and try again))
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -c $(CONSTRAINTS) -e ".[all,dev]"
	@rm -f $(VENV)/.installed-* && touch $@
