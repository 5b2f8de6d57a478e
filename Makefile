# Every target does its own set-up: `make serve` and `make test` work on a fresh clone. `make` lists all targets.

SHELL := /bin/bash
.DEFAULT_GOAL := help

PORT ?= 8000
ARGS ?=
SBOM ?= build/sbom.cdx.json
DIST ?= dist
bin := .venv/bin
default_checkpoint := checkpoints/default

.PHONY: help serve train-tiny test test-slow test-fast check bench format clean distclean setup setup-train setup-dev checkpoint image image-train wheel sbom audit docs pictures

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

serve: setup ## Serve on PORT (8000); NOTEGRADE_CHECKPOINT=folder-or-hub-id serves another checkpoint
	@[[ -n "$$NOTEGRADE_CHECKPOINT" ]] || $(MAKE) --no-print-directory checkpoint
	@exec $(bin)/notegrade serve --port $(PORT)

train-tiny: setup-train ## Train with recipes/tiny.toml, through all stages, to runs/tiny/checkpoint and report.html; ARGS= goes to notegrade-train run
	@$(bin)/notegrade-train run recipes/tiny.toml $(ARGS)

# Three workers on two cores, because many tests wait; one thread each, because the threads of several engines would wait for each other.
# Bytecode is kept, because dozens of processes import the same modules.
test: setup-dev checkpoint ## Run the tests, with a real engine, Redis and Chromium; ARGS= goes to pytest
	@$(bin)/python -m tests.tools
	@OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(bin)/python -m pytest -n 3 --no-loadscope-reorder -m "not slow" $(ARGS)

# One thread per worker; tests that compare speeds run alone, with both cores (tests/workers.py).
test-slow: setup-dev checkpoint ## Run the slow tests: images, the tiny recipe, compiled models, vLLM under the trainer, all generated requests, a benchmark, a soak test; ARGS= goes to pytest
	@$(bin)/python -m tests.tools --slow
	@OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(bin)/python -m pytest -n 2 --no-loadscope-reorder -m slow $(ARGS)

test-fast: setup-dev ## Run the tests that need no engine, no Redis, no browser and no network; ARGS= goes to pytest
	@$(bin)/python -m pytest -m "not engine and not redis and not browser" $(ARGS)

check: setup-dev ## Check format, lint, types, import contracts, spelling, shell scripts and Dockerfiles
	$(bin)/ruff format --check .
	$(bin)/ruff check .
	$(bin)/mypy
	$(bin)/lint-imports
	$(bin)/codespell
	$(bin)/shellcheck scripts/*.sh tests/deploy/*.sh deploy/kubernetes/*.sh .ci/run
	$(bin)/hadolint Dockerfile model_export/Dockerfile

bench: setup-dev checkpoint ## Compare with other servers over HTTP (takes hours; ARGS=--quick takes less); ARGS= goes to load_tests.bench
	@$(bin)/python -m load_tests.bench $(ARGS)

format: setup-dev ## Format the code, and fix lint errors where possible
	$(bin)/ruff format .
	$(bin)/ruff check --fix .

checkpoint: setup ## Assemble the default checkpoint if it does not exist
	@[[ -e $(default_checkpoint)/manifest.json ]] || $(bin)/notegrade-train assemble --out $(default_checkpoint)

docs: setup-dev ## Build the documentation site, build/site/index.html
	@NO_MKDOCS_2_WARNING=1 $(bin)/mkdocs build --quiet

pictures: setup-dev checkpoint ## Take the console's pictures in docs/images again, after a change of the page
	@rm -rf runs/screenshots
	@$(bin)/python -m pytest -n 0 -q tests/end_to_end/test_console_pictures.py -k taken
	@cp runs/screenshots/*.png docs/images/
	@sha256sum service/http/console/*.{html,css,js} docs/images/{console,trace}-*.png > docs/images/console.sha256

image: ## Build the serving image; TARGET=gpu, BASE=image, CHECKPOINT=folder to include, IMAGE=name, TAG=tag; ARGS= goes to the builder
	@scripts/build_image.sh $(ARGS)

image-train: ## Build the trainer's image; TARGET=gpu, BASE=image, IMAGE=name, TAG=tag; ARGS= goes to the builder
	@IMAGE=$${IMAGE:-notegrade-train} scripts/build_image.sh --file model_export/Dockerfile $(ARGS)

# By way of the source archive: built here, a wheel would also hold files that an earlier build left in build/.
wheel: setup ## Build the wheel and the source archive into DIST (dist)
	@$(bin)/uv build --quiet --no-build-isolation --python $(bin)/python --out-dir $(DIST)

sbom: setup-dev ## Write the image's bill of materials as CycloneDX to SBOM (build/sbom.cdx.json)
	@mkdir -p $(dir $(SBOM))
	@unserved=$$(sed -n 's/^ARG UNSERVED="\(.*\)"$$/\1/p' Dockerfile) && \
		grep -vE "^($${unserved// /|})==" locks/cpu.lock | \
		PYTHONWARNINGS=ignore $(bin)/cyclonedx-py requirements --pyproject pyproject.toml --output-reproducible --of JSON -o $(SBOM) -

audit: setup-dev ## Check the serving lock against PyPI's advisories; fails if these can't be reached
	@scripts/audit.sh $(ARGS)

setup: ## Make .venv from the serving lock
	@scripts/setup.sh runtime

setup-train: ## Make .venv with the trainer as well
	@scripts/setup.sh train

setup-dev: ## Make .venv with the trainer and the dev tools as well
	@scripts/setup.sh dev

clean: ## Remove caches and build leftovers
	rm -rf build dist *.egg-info .coverage .coverage.* htmlcov .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -path ./.venv -prune -o -type d -name __pycache__ -print0 | xargs -0 rm -rf

distclean: clean ## Also remove .venv and the default checkpoint
	rm -rf .venv $(default_checkpoint)
