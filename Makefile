# `make` alone lists the targets. Each one first installs what it needs, and only that.

PYTHON ?= python3
PORT ?= $(or $(EMBEDDER_PORT),8000)
ARCHITECTURE ?= resnet18
WEIGHTS ?= pretrained
PRECISION ?= $(or $(EMBEDDER_PRECISION),fp32)
IMAGE ?= image-embedder:latest
CERTIFICATES ?= $(SSL_CERT_FILE)
MODEL = --architecture '$(ARCHITECTURE)' --weights '$(WEIGHTS)' --precision '$(PRECISION)'
BUILDING = --engine '$(ENGINE)' --base-image '$(BASE_IMAGE)' --certificates '$(CERTIFICATES)' --options '$(BUILD_OPTIONS)'
EXTRAS ?= $(filter bf16,$(PRECISION))

BIN := .venv/bin
# The levels in `.venv`: milliseconds when there is nothing to install.
INSTALL = @$(PYTHON) scripts/setup.py
# No command here reports its use to anybody.
export BENTOML_DO_NOT_TRACK := True

.DEFAULT_GOAL := help
.PHONY: help setup serve bulk bento container test test-models lint format test-container soak fuzz overload bench \
	bench-models lock audit release-check

define HELP
Use
  make serve           install, save the model if there is none, serve on port $(PORT)
                       PORT=8000  WEIGHTS=pretrained|untrained|path.pth  PRECISION=fp32|bf16|int8
                       ARCHITECTURE=resnet18|efficientnet_lite0|resnet50|timm/... (models/README.md)
  make bulk            install what embeds catalogues (docs/catalogues.md), save the model: as for serve
  make bento           build the Bento and print its tag: ARCHITECTURE  WEIGHTS  PRECISION
  make container       build the Bento and its image: as for bento, and IMAGE=image-embedder:latest
                       BASE_IMAGE=python:3.11-slim  ENGINE=docker|podman|buildah  BUILD_OPTIONS='no-cache ...'
                       EXTRAS='heic jxl bf16', extras of pyproject.toml to install as well; PRECISION=bf16 brings its own
                       CERTIFICATES=/path/to/bundle.pem, for a package index behind a proxy with its own

Develop
  make setup           install all that the targets below need, but for bench and fuzz: PYTHON=python3
  make test            run every test that this machine can run
  make lint            ruff and mypy
  make format          ruff format, and the fixes that ruff knows

Prove (minutes)
  make test-models     large networks of torchvision and timm beside their libraries
  make test-container  build an image; measure its size, times, memory and rights: as container
  make overload        load, faults and hostile clients, each with its limit: ONLY=killed,gone; takes nginx
  make soak            good and hostile traffic, and what the service keeps of it: MINUTES=30
  make fuzz            a coverage-guided fuzzer: MINUTES=10
  make bench           measure the service and catalogues beside others: QUICK=1; takes wrk, nginx
  make bench-models    size, speed and int8's fidelity of networks, into models/README.md: NETWORKS='resnet50 ...'

Release
  make lock            pin what serves in requirements.lock: UPGRADE=1 takes the newest
  make audit           ask OSV about vulnerabilities in requirements.lock: OSV_URL
  make release-check   all that must be so before a release
endef

help:
	$(info $(HELP))
	@:

setup:
	$(INSTALL) export dev

serve:
	$(INSTALL) serve $(filter bf16,$(PRECISION))
	@exec $(BIN)/python scripts/serve.py --port '$(PORT)' $(MODEL)

bulk:
	$(INSTALL) bulk $(filter bf16,$(PRECISION))
	@$(BIN)/python scripts/ensure_model.py $(MODEL) --fallback-untrained

bento:
	$(INSTALL) serve
	@$(BIN)/python scripts/ensure_model.py $(MODEL)
	@EMBEDDER_MODEL='$(or $(EMBEDDER_MODEL),$(subst /,-,$(ARCHITECTURE)):latest)' $(BIN)/bentoml build

container: bento
	@$(BIN)/python scripts/containerize.py --image '$(IMAGE)' --extras '$(EXTRAS)' $(BUILDING)

test: setup
	@$(BIN)/python -m pytest -m 'not models' --numprocesses 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

test-models: setup
	@$(BIN)/python -m pytest -m models tests/models

lint: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: setup
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

test-container: setup
	@$(BIN)/python -m tests.tools.container $(BUILDING)

overload: setup
	@$(BIN)/python -m tests.tools.overload $(if $(ONLY),--only '$(ONLY)')

soak:
	$(INSTALL) export dev
	@$(BIN)/python -m tests.tools.soak --minutes $(or $(MINUTES),30)

fuzz:
	$(INSTALL) export dev fuzz
	@$(BIN)/python -m tests.tools.fuzz --minutes $(or $(MINUTES),10)

bench:
	$(INSTALL) export dev bench
	@$(BIN)/python -m benchmarks.run $(if $(QUICK),--quick)

bench-models: setup
	@$(BIN)/python -m benchmarks.backbones $(NETWORKS)

lock: setup
	@$(BIN)/uv pip compile --universal --python-version 3.11 --no-header --quiet $(if $(UPGRADE),--upgrade) \
		--generate-hashes pyproject.toml --output-file requirements.lock

audit: setup
	@$(BIN)/python scripts/audit.py

release-check: setup
	@$(BIN)/python scripts/release_check.py
