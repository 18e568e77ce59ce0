# `make` alone lists the targets. Needs Python 3.11 or newer and nothing else.

PYTHON ?= python3
BIN := .venv/bin
INSTALL = $(PYTHON) -m venv .venv && $(BIN)/pip install -qq --disable-pip-version-check -c constraints.txt -e

.DEFAULT_GOAL := help
.PHONY: help demo test fast laws lint serve docs bench clean

help: ## List the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1|\2/p' Makefile | awk -F'|' '{printf "%-12s %s\n", $$1, $$2}'

demo: .venv/.installed ## Start everything, align two tissue slices, show scores and a picture (SLICES="a.h5ad b.h5ad")
	@$(BIN)/brenier demo $(SLICES) $(OPTIONS)

test: .venv/.installed-test ## Run everything: style, types, imports, laws, service, browser
	@$(BIN)/python -m pytest

fast: .venv/.installed-test ## Run everything but the slow tests
	@$(BIN)/python -m pytest -m "not slow"

laws: .venv/.installed-test ## Ask the laws of the mathematics on examples drawn anew
	@HYPOTHESIS_PROFILE=new $(BIN)/python -m pytest -k law

lint: .venv/.installed-test ## Check format, lint, imports and types only
	@$(BIN)/python -m pytest -q tests/test_house.py

serve: .venv/.installed ## Start store, workers and gateway (OPTIONS="--port 9000 --workers 2")
	@$(BIN)/brenier up $(OPTIONS)

docs: .venv/.installed-test ## Write what follows from the registry: OpenAPI, a page for each routine, the README's table
	@$(BIN)/python -m api > docs/openapi.json.new && mv docs/openapi.json.new docs/openapi.json
	@$(BIN)/python docs/routines.py
	@$(BIN)/python -m tests.test_readme

bench: .venv/.installed-bench ## Measure against named peers (OPTIONS are passed on)
	@$(BIN)/python -m bench $(OPTIONS)

clean: ## Remove the environment, caches and what the demo wrote; jobs and their data stay
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache demo.png demo.h5ad

.venv/.installed: pyproject.toml constraints.txt
	@echo "installing what the service needs into .venv"
	@$(INSTALL) ".[local]"
	@touch $@

.venv/.installed-test: pyproject.toml constraints.txt
	@echo "installing what the service and its tests need into .venv"
	@$(INSTALL) ".[test]"
	@touch .venv/.installed $@

.venv/.installed-bench: pyproject.toml constraints.txt
	@echo "installing the service, its tests and the peers to measure against into .venv"
	@$(INSTALL) ".[bench]"
	@touch .venv/.installed .venv/.installed-test $@
