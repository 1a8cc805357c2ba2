# `make` does nothing that a person could not type.
PYTHON ?= python3
BIN := .venv/bin
export DVC_NO_ANALYTICS ?= 1
export DO_NOT_TRACK ?= 1
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Every stage is a process of its own: without bytecode each would compile what it imports anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: repro ui worker test lint deps setup clean

# One stage at a time has the cores to itself: its threads may spin while they wait (a fifth faster here).
repro: export OMP_WAIT_POLICY ?= ACTIVE
repro: .venv/ready  ## run the whole chain
	python -m fewstep.preload sh -c "fewstep check && dvc repro"
	@echo "open $(CURDIR)/reports/index.html"

# The page is at http://127.0.0.1:4200; the server stays when the worker is stopped (`prefect server stop`).
ui worker: export PREFECT_API_URL ?= http://127.0.0.1:4200/api
ui worker: export FEWSTEP_CLONE := $(CURDIR)
# Prefect's clients would ask a proxy of the environment for the loopback, too.
comma := ,
NOT_BY_PROXY := $(if $(no_proxy),$(no_proxy),$(NO_PROXY))
NOT_BY_PROXY := $(if $(NOT_BY_PROXY),$(NOT_BY_PROXY)$(comma))localhost,127.0.0.1,::1
ui worker: export NO_PROXY := $(NOT_BY_PROXY)
ui worker: export no_proxy := $(NOT_BY_PROXY)
ui: .venv/ready  ## watch and start the chain in a browser
	python -m flows.server
	prefect work-pool create fewstep --type process --overwrite
	prefect work-pool create fewstep-stages --type process --overwrite
	prefect --no-prompt deploy --all
	prefect worker start --pool fewstep

# In a clone of its own on each host, with PREFECT_API_URL of the server: docs/operations.md.
worker: .venv/ready  ## take stages of a cluster
	prefect worker start --pool fewstep-stages --limit 1

# Two at once, a file of tests each. Their tensors are small, and threads that share cores wait for each other.
# Without the user's settings of accelerate.
test: export HF_HOME := $(CURDIR)/.venv/huggingface
test: export OMP_WAIT_POLICY ?= PASSIVE
test: export OMP_NUM_THREADS ?= 1
test: .venv/ready  ## run the tests
	python -m fewstep.preload pytest -q -n 2 --dist loadfile --no-loadscope-reorder tests

lint: .venv/ready  ## style and types
	ruff check .
	ruff format --check .
	mypy

deps: .venv/ready  ## write the modules that each stage depends on into dvc.yaml
	python -m tools.dvc_deps

setup: .venv/ready  ## the environment alone

# Compiled ahead, on all cores, because several processes import the same libraries at once later.
# Half of their text is left out, of which few modules are ever imported.
RARE := /(tests?|transformers/models|diffusers/(modular_)?pipelines|torch/(_inductor|testing)|sympy/physics|pygments/lexers|$\
	apprise|asyncssh|celery|dateparser|fontTools|imageio|kombu|mypyc?|narwhals|pip|prompt_toolkit|setuptools|skimage|$\
	sklearn|tifffile|wcwidth)/
.venv/ready: requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q uv
	$(BIN)/python -m uv pip install -q --python $(BIN)/python -r requirements.lock
	$(BIN)/python -m uv pip install -q --python $(BIN)/python --no-deps -e .
	$(BIN)/python -m compileall -q -j 0 -x '$(RARE)' .venv/lib || true
	touch $@

clean:  ## drop the environment and everything that was made
	rm -rf .venv artifacts reports logs metrics .checkpoints .dvc/cache
