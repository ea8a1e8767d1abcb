# The commands of README, developers and CI. `make serve` and `make test` install their requirements in .venv and, as root on Debian, with apt.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# OpenMP reads these when torch is imported: on few cores, threads that spin while they wait starve each other.
export OMP_WAIT_POLICY ?= passive
export GOMP_SPINCOUNT ?= 0

HOST ?= 127.0.0.1
PORT ?= 8000
FLAVOUR ?= embedded
ARGS ?=
PIP_ARGS ?=

.DEFAULT_GOAL := help

.PHONY: help
help: ## Show this list.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'

# One stamp per set of dependencies; the constraints file is the lock.
$(VENV)/base.stamp: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' \
	  || { echo "$(PYTHON) is not Python 3.11 or 3.12; name one that is: make PYTHON=python3.12 ..."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || $(INSTALL_VENV)
	@echo "setting up $(VENV): a few minutes, the first time"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt $(PIP_ARGS) --editable .
	touch $@

# Debian's Python comes without venv and pip.
INSTALL_VENV = { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends python3-venv; \
	  else echo "$(PYTHON) has no venv; on Debian, run: sudo apt-get install python3-venv"; exit 1; fi; }

$(VENV)/dev.stamp: $(VENV)/base.stamp
	$(BIN)/python -m pip install --quiet --constraint constraints.txt $(PIP_ARGS) --editable '.[dev]'
	touch $@

.PHONY: install
install: $(VENV)/base.stamp ## Set up .venv for serving and training (PIP_ARGS=--extra-index-url ..., for another torch).

.PHONY: serve
serve: $(VENV)/base.stamp ## Serve the embedded model on http://127.0.0.1:8000 (PORT=, HOST=, FLAVOUR=, ARGS=).
	$(BIN)/lithograph serve --host $(HOST) --port $(PORT) --flavour $(FLAVOUR) $(ARGS)

.PHONY: studio
studio: $(VENV)/base.stamp ## Serve the studio, a web interface, on http://127.0.0.1:8001 (FLAVOUR=, ARGS=).
	$(BIN)/lithograph server --flavour $(FLAVOUR) $(ARGS)

# Programs that the tests start, a font with Chinese characters, and the compiler that torch.compile runs.
TEST_PROGRAMS := chromium prometheus promtool prometheus-pushgateway curl git g++ exiftool
TEST_PACKAGES := chromium prometheus prometheus-pushgateway curl git fonts-noto-cjk g++ python3-dev libimage-exiftool-perl

.PHONY: test-packages
test-packages: ## Install, as root on Debian, the programs that the tests start: Chromium, Prometheus, a compiler ...
	dpkg-query --status $(TEST_PACKAGES) >/dev/null 2>&1 \
	  || { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends $(TEST_PACKAGES); }

# Installs missing programs as root with apt; otherwise it prints the command to run.
.PHONY: test-programs
test-programs:
	@for program in $(TEST_PROGRAMS); do command -v $$program >/dev/null || missing="$$missing $$program"; done; \
	  $(PYTHON) -c 'import os, sysconfig; open(os.path.join(sysconfig.get_path("include"), "Python.h"))' 2>/dev/null \
	    || missing="$$missing Python.h"; \
	  test -z "$$missing" && exit 0; \
	  echo "the tests start programs that are missing:$$missing"; \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then $(MAKE) test-packages; \
	  else echo "on Debian, run: sudo make test-packages"; exit 1; fi

.PHONY: test
test: $(if $(ARGS),,test-programs) $(VENV)/dev.stamp ## Run the tests, two files at a time (ARGS= goes to pytest instead).
	$(BIN)/python -m pytest $(or $(ARGS),--numprocesses 2 --dist loadfile --no-loadscope-reorder)

.PHONY: test-fast
test-fast: $(VENV)/dev.stamp ## Run the tests that start no other program (server, training, browser, compiler, container) and are not heavy.
	$(BIN)/python -m pytest -m "fast and not images and not kube and not simulated_gpu" --numprocesses 2 --dist loadfile $(ARGS)

.PHONY: test-simulated-gpu
test-simulated-gpu: $(VENV)/dev.stamp ## Run the tests of a CUDA device on a simulated one: five minutes, needs g++.
	$(BIN)/python -m tests.simulated_gpu $(ARGS)

# Images: ENGINE=docker works too. For a CPU:
#   make images BASE_IMAGE=python:3.11-slim-bookworm BUILD_ARGS="--build-arg PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu"
ENGINE ?= podman
BASE_IMAGE ?=
IMAGE_TAG ?= 0.1.0
BUILD_ARGS ?=

.PHONY: images
images: ## Build the images lithograph-service, lithograph-trainer and lithograph-studio (ENGINE=, BASE_IMAGE=, IMAGE_TAG=, BUILD_ARGS=).
	for target in service trainer studio; do \
	  $(ENGINE) build --target $$target --tag lithograph-$$target:$(IMAGE_TAG) \
	    $(if $(BASE_IMAGE),--build-arg BASE_IMAGE=$(BASE_IMAGE)) \
	    --build-arg VERSION=$(IMAGE_TAG) --build-arg REVISION=$$(git rev-parse HEAD) $(BUILD_ARGS) . || exit 1; \
	done
	$(ENGINE) images --filter reference='*lithograph-*:$(IMAGE_TAG)'

.PHONY: test-images
test-images: $(VENV)/dev.stamp ## Test the images that `make images` built: read-only, as any uid, training into a volume that is served.
	LITHOGRAPH_TEST_ENGINE=$(ENGINE) LITHOGRAPH_TEST_TAG=$(IMAGE_TAG) $(BIN)/python -m pytest -m images $(ARGS)

.PHONY: test-kube
test-kube: $(VENV)/dev.stamp ## Apply the manifests to the cluster of KUBECONFIG, or to one started here (as root), and test them.
	LITHOGRAPH_TEST_ENGINE=$(ENGINE) LITHOGRAPH_TEST_TAG=$(IMAGE_TAG) $(BIN)/python -m pytest -m kube tests/deploy/test_kube.py $(ARGS)

.PHONY: lint
lint: $(VENV)/dev.stamp ## Check formatting, lint and types.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy docs/hooks/*.py

.PHONY: format
format: $(VENV)/dev.stamp ## Format the code and apply lint's automatic fixes.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.PHONY: eval-embedded
eval-embedded: $(VENV)/dev.stamp ## Measure the embedded model and its turbo adapter; rewrites their results and sheets (INK=FILE: a style to stack).
	$(BIN)/python -m recipes.embedded.evaluate
	$(BIN)/python -m recipes.embedded.sizes
	$(BIN)/python -m recipes.turbo.evaluate $(if $(INK),--ink $(INK))

.PHONY: turbo
turbo: $(VENV)/dev.stamp ## Train the embedded model's turbo adapter again: 4 steps without guidance, resumable.
	$(BIN)/python -m recipes.turbo

.PHONY: quality
quality: $(VENV)/dev.stamp ## Measure step reuse on the embedded model, and choose the tolerances of its qualities.
	$(BIN)/python -m recipes.quality --figure docs/quality.png

.PHONY: embedded
embedded: $(VENV)/dev.stamp ## Train the embedded model again: about two hours on two cores, resumable.
	$(BIN)/python -m recipes.embedded

.PHONY: bench
bench: $(VENV)/base.stamp ## Time one picture at default settings (ARGS="--dtype bfloat16", ...).
	$(BIN)/python -m benchmarks.one_picture $(ARGS)

.PHONY: bench-adapters
bench-adapters: $(VENV)/base.stamp ## Time the cost of adapters in a forward.
	$(BIN)/python -m benchmarks.adapter_cost $(ARGS)

.PHONY: bench-training
bench-training: $(VENV)/base.stamp ## Time the training loop and the caches against minimal ones.
	$(BIN)/python -m benchmarks.training_speed $(ARGS)

.PHONY: bench-full-size
bench-full-size: $(VENV)/base.stamp ## Time one training step of a model of LongCat-Image's size: about 8 GB, minutes.
	$(BIN)/python -m benchmarks.full_size_step $(ARGS)

.PHONY: bench-guard
bench-guard: $(VENV)/dev.stamp ## Measure the ratios that the documentation quotes, and fail if one got worse (ARGS=--update); half an hour.
	$(BIN)/python -m benchmarks.guard $(ARGS)

# GPU_PYTHON: a Python that has torch and the other packages already; nothing is installed then.
DEVICE ?= cuda
SIZE ?= full
PART ?= all
MODEL ?=
GPU_PYTHON ?=

.PHONY: gpu-check
gpu-check: $(if $(GPU_PYTHON),,$(VENV)/base.stamp) ## Check and measure a CUDA GPU in three parts of at most 10 minutes (PART=1, MODEL=, DEVICE=cpu SIZE=embedded).
	$(or $(GPU_PYTHON),$(BIN)/python) -m benchmarks.gpu_check --device $(DEVICE) --size $(SIZE) --part $(PART) \
	  $(if $(MODEL),--model $(MODEL)) $(ARGS)

.PHONY: demo
demo: $(VENV)/base.stamp ## Train an ink style on the embedded model while it is served, with pictures before and after.
	$(BIN)/python -m recipes.ink.demo $(ARGS)

.PHONY: alerts
alerts: ## Convert deploy/prometheus/rules.yaml to the Prometheus operator's format in k8s/components/monitoring.
	{ sed '/^spec:/q' k8s/components/monitoring/rules.yaml; sed 's/^./  &/' deploy/prometheus/rules.yaml; } > .rules.new
	mv .rules.new k8s/components/monitoring/rules.yaml

.PHONY: dashboard
dashboard: $(VENV)/dev.stamp ## Regenerate the Grafana dashboard and its pictures in docs: minutes of load, a real Prometheus.
	$(BIN)/python deploy/grafana/dashboard.py
	$(BIN)/python -m recipes.dashboard $(ARGS)

.PHONY: screenshots
screenshots: $(VENV)/dev.stamp ## Take the studio's screenshots of README and docs again: a training and pictures in a real studio, in Chromium.
	$(BIN)/python -m recipes.screenshots $(ARGS)

.PHONY: loadtest
loadtest: $(VENV)/dev.stamp ## Load a server for a minute with five scenarios; a report in build/loadtest (ARGS="--seconds 600", ...).
	$(BIN)/python -m loadtest.suite $(ARGS)

.PHONY: chaos
chaos: $(VENV)/dev.stamp ## Inject faults into a server under load and check every reply: minutes (ARGS="--kills 50", ...).
	$(BIN)/python -m loadtest.chaos $(ARGS)

.PHONY: bench-serving
bench-serving: $(VENV)/dev.stamp ## Compare the service with plain LitServe under load, briefly (see loadtest/README.md).
	$(BIN)/python -m loadtest.closed_loop --rounds 2 --pictures 4 $(ARGS)

# schemathesis has its own environment, because every test would load its pytest plugin.
FUZZ_ENV := build/fuzz-env
$(FUZZ_ENV)/bin/schemathesis: $(VENV)/dev.stamp
	$(BIN)/python -m venv $(FUZZ_ENV)
	$(FUZZ_ENV)/bin/python -m pip install --quiet --constraint constraints.txt $(PIP_ARGS) schemathesis==4.32.5

.PHONY: fuzz
fuzz: $(FUZZ_ENV)/bin/schemathesis ## Fuzz the service, the studio and all parsers of files; a report in build/fuzz (ARGS="--cases 100000").
	$(BIN)/python -m tests.fuzz --schemathesis $(FUZZ_ENV)/bin/schemathesis $(or $(ARGS),--cases 10000)

# NO_MKDOCS_2_WARNING silences Material's announcement that its maintenance ends in 2027.
.PHONY: docs
docs: $(VENV)/dev.stamp ## Build the site into build/site: quickstart (en, zh), reference, architecture, troubleshooting.
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict $(ARGS)

.PHONY: docs-serve
docs-serve: $(VENV)/dev.stamp ## Serve the site on http://127.0.0.1:8002 with live reload.
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs serve --dev-addr 127.0.0.1:8002 $(ARGS)

.PHONY: lock
lock: $(VENV)/dev.stamp ## Write the installed versions into constraints.txt.
	$(BIN)/python -m pip list --format=freeze --exclude-editable \
	  | sed 's/+cpu//' | grep -vE '^(pip|setuptools|wheel)==' | sort -f > constraints.txt
