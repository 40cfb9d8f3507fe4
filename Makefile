# make serve   everything from nothing to a service on port 8000
# make test    everything from nothing to a run of every test
#
# PORT=8000  WEIGHTS=imagenet|untrained|path.pth  PRECISION=fp32|int8  PYTHON=python3
# IMAGE=image-embedder:latest  BASE_IMAGE=python:3.11-slim  ENGINE=docker|podman|buildah  BUILD_OPTIONS='no-cache ...'

PYTHON ?= python3
PORT ?= $(or $(EMBEDDER_PORT),8000)
WEIGHTS ?= imagenet
PRECISION ?= $(or $(EMBEDDER_PRECISION),fp32)
IMAGE ?= image-embedder:latest
BUILDING = --engine '$(ENGINE)' --base-image '$(BASE_IMAGE)' --options '$(BUILD_OPTIONS)'

BIN := .venv/bin
# Nothing here reports usage to anybody.
export BENTOML_DO_NOT_TRACK := True

.DEFAULT_GOAL := help
.PHONY: help setup serve test lint format bento container test-container lock bench soak fuzz overload release-check

help:
	@echo "make serve   set everything up and serve on port $(PORT) (PORT=, WEIGHTS=imagenet|untrained|path.pth, PRECISION=fp32|int8)"
	@echo "make test    set everything up and run every test"
	@echo "make setup   only set up: .venv with everything in it"
	@echo "make bento   build the Bento and say its tag (WEIGHTS=, PRECISION=)"
	@echo "make container  build the Bento and its image (IMAGE=, BASE_IMAGE=, ENGINE=docker|podman|buildah, BUILD_OPTIONS=)"
	@echo "make test-container  build an image and hold it to its size, times, memory and rights (as above)"
	@echo "make lint    ruff and mypy"
	@echo "make format  let ruff format"
	@echo "make bench   measure the service against others (QUICK=1: minutes); takes wrk and nginx"
	@echo "make soak    good and hostile traffic for a while, and what the service holds on to (MINUTES=30)"
	@echo "make fuzz    let a coverage-guided fuzzer look for what is not documented (MINUTES=10)"
	@echo "make overload  load, faults and hostile clients, each against what it must stand (ONLY=killed,gone); takes wrk and nginx"
	@echo "make lock    pin what serves again, into requirements.lock"
	@echo "make release-check  everything that must be so before a release"

# A few milliseconds when there is nothing to do.
setup:
	@$(PYTHON) scripts/setup.py

serve: setup
	@exec $(BIN)/python scripts/serve.py --port '$(PORT)' --weights '$(WEIGHTS)' --precision '$(PRECISION)'

test: setup
	@$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

lint: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: setup
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bento: setup
	@$(BIN)/python scripts/save_model.py --weights '$(WEIGHTS)' --precision '$(PRECISION)' --if-missing
	@$(BIN)/bentoml build

container: bento
	@$(BIN)/python scripts/containerize.py --image '$(IMAGE)' $(BUILDING)

test-container: setup
	@$(BIN)/python -m tests.tools.container $(BUILDING)

bench: setup
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	@$(BIN)/python -m benchmarks.run $(if $(QUICK),--quick)

soak: setup
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[soak]'
	@$(BIN)/python -m tests.tools.soak --minutes $(or $(MINUTES),30)

fuzz: setup
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[fuzz]'
	@$(BIN)/python -m tests.tools.fuzz --minutes $(or $(MINUTES),10)

overload: setup
	@$(BIN)/python -m tests.tools.overload $(if $(ONLY),--only '$(ONLY)')

lock: setup
	@$(BIN)/uv pip compile --universal --python-version 3.11 --no-header --quiet $(if $(UPGRADE),--upgrade) \
		--generate-hashes pyproject.toml --output-file requirements.lock

release-check: setup
	@$(BIN)/python scripts/release_check.py
