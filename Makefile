# Everything that people and CI run. `make serve` and `make test` set up all they need in .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Read by OpenMP when torch is imported: spinning threads starve each other on few cores.
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
	@echo "setting up $(VENV): a few minutes, the first time"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt $(PIP_ARGS) --editable .
	touch $@

$(VENV)/dev.stamp: $(VENV)/base.stamp
	$(BIN)/python -m pip install --quiet --constraint constraints.txt $(PIP_ARGS) --editable '.[dev]'
	touch $@

.PHONY: install
install: $(VENV)/base.stamp ## Set up .venv: what serving and training need (PIP_ARGS=--extra-index-url ..., for another torch).

.PHONY: serve
serve: $(VENV)/base.stamp ## Serve the embedded model on http://127.0.0.1:8000 (PORT=, HOST=, FLAVOUR=, ARGS=).
	$(BIN)/lithograph serve --host $(HOST) --port $(PORT) --flavour $(FLAVOUR) $(ARGS)

.PHONY: studio
studio: $(VENV)/base.stamp ## Serve the studio, a web page, on http://127.0.0.1:8001 (FLAVOUR=, ARGS=).
	$(BIN)/lithograph server --flavour $(FLAVOUR) $(ARGS)

# Real ones that the tests start, a font for Chinese pages, and what torch.compile compiles with.
TEST_PROGRAMS := chromium prometheus promtool prometheus-pushgateway curl git g++
TEST_PACKAGES := chromium prometheus prometheus-pushgateway curl git fonts-noto-cjk g++ python3-dev

.PHONY: test-packages
test-packages: ## Install, as root on Debian, the programs that the tests start: Chromium, Prometheus, a compiler ...
	dpkg-query --status $(TEST_PACKAGES) >/dev/null 2>&1 \
	  || { apt-get update && apt-get install --yes --no-install-recommends $(TEST_PACKAGES); }

.PHONY: test
test: $(VENV)/dev.stamp ## Run the tests, two files at a time (ARGS= goes to pytest instead).
ifeq ($(ARGS),)
	@for program in $(TEST_PROGRAMS); do command -v $$program >/dev/null || missing="$$missing $$program"; done; \
	  test -z "$$missing" || { echo "the tests start programs that are not here:$$missing; on Debian: sudo make test-packages"; exit 1; }
endif
	$(BIN)/python -m pytest $(or $(ARGS),--numprocesses 2 --dist loadfile)

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
test-kube: $(VENV)/dev.stamp ## Apply the manifests to the cluster that KUBECONFIG names, or to one started here (as root), and use them.
	LITHOGRAPH_TEST_ENGINE=$(ENGINE) LITHOGRAPH_TEST_TAG=$(IMAGE_TAG) $(BIN)/python -m pytest -m kube tests/test_kube.py $(ARGS)

.PHONY: lint
lint: $(VENV)/dev.stamp ## Check formatting, lint and types.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy docs/hooks/*.py

.PHONY: format
format: $(VENV)/dev.stamp ## Format the code and mend what lint can mend.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.PHONY: eval-embedded
eval-embedded: $(VENV)/dev.stamp ## Measure the embedded model; rewrites its figures and contact sheet.
	$(BIN)/python -m recipes.embedded.evaluate

.PHONY: embedded
embedded: $(VENV)/dev.stamp ## Make the embedded model again: about two hours on two cores, resumable.
	$(BIN)/python -m recipes.embedded

.PHONY: bench
bench: $(VENV)/base.stamp ## Time one picture at default settings (ARGS=--dtype bfloat16, ...).
	$(BIN)/python -m benchmarks.one_picture $(ARGS)

.PHONY: bench-adapters
bench-adapters: $(VENV)/base.stamp ## What adapters cost in a forward.
	$(BIN)/python -m benchmarks.adapter_cost $(ARGS)

.PHONY: bench-training
bench-training: $(VENV)/base.stamp ## The training loop and the caches against bare ones.
	$(BIN)/python -m benchmarks.training_speed $(ARGS)

.PHONY: bench-full-size
bench-full-size: $(VENV)/base.stamp ## One training step of a model of LongCat-Image's size: about 8 GB, minutes.
	$(BIN)/python -m benchmarks.full_size_step $(ARGS)

.PHONY: demo
demo: $(VENV)/base.stamp ## Teach the embedded model an ink style while it is served; pictures before and after.
	$(BIN)/python -m recipes.ink.demo $(ARGS)

.PHONY: alerts
alerts: ## Write deploy/prometheus/rules.yaml into the monitoring component of k8s, as the Prometheus operator takes it.
	{ sed '/^spec:/q' k8s/components/monitoring/rules.yaml; sed 's/^./  &/' deploy/prometheus/rules.yaml; } > .rules.new
	mv .rules.new k8s/components/monitoring/rules.yaml

.PHONY: dashboard
dashboard: $(VENV)/dev.stamp ## Write the Grafana dashboard again, and docs' pictures of it: minutes of load, a real Prometheus.
	$(BIN)/python deploy/grafana/dashboard.py
	$(BIN)/python -m recipes.dashboard $(ARGS)

.PHONY: loadtest
loadtest: $(VENV)/dev.stamp ## Load a server for a minute in five ways; a report in build/loadtest (ARGS=--seconds 600, ...).
	$(BIN)/python -m loadtest.suite $(ARGS)

.PHONY: bench-serving
bench-serving: $(VENV)/dev.stamp ## Load a server and plain LitServe side by side, briefly (see loadtest/README.md).
	$(BIN)/python -m loadtest.closed_loop --rounds 2 --pictures 4 $(ARGS)

# Material warns of its own end in 2027 at every build.
.PHONY: docs
docs: $(VENV)/dev.stamp ## Build the site into build/site: quickstart (en, zh), reference, architecture, troubleshooting.
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict $(ARGS)

.PHONY: docs-serve
docs-serve: $(VENV)/dev.stamp ## Show the site on http://127.0.0.1:8002 while it is being written.
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs serve --dev-addr 127.0.0.1:8002 $(ARGS)

.PHONY: lock
lock: $(VENV)/dev.stamp ## Write what is installed into constraints.txt.
	$(BIN)/python -m pip list --format=freeze --exclude-editable \
	  | sed 's/+cpu//' | grep -vE '^(pip|setuptools|wheel)==' | sort -f > constraints.txt
