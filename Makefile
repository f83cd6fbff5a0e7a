# `make demo` on a fresh machine: a plan in under a minute after the install. `make test`: every law, compiled and interpreted.
SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help demo demo-serve loop test sweep soak check bench accuracy fit clean

# The first Python of at least 3.11; `make PYTHON=/path/to/python3` chooses another.
PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13 python3.14; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$p"; break; }; done)
BIN := .venv/bin
PACKAGED := $(shell find src -type f -not -path '*/__pycache__/*' -not -path '*.egg-info/*')
# Published measurements, which are no part of the repository; `make accuracy` and `make fit DATA=FOLDER` read others.
DATA ?= ../shared/data/measured
PLAN := plan --model llama-3.1-70b --gpu h100-sxm --gpus 16 --workload chat --rate 20 --ttft 500ms --tpot 50ms
# In order of the files: by their numbers of tests, the longest of few tests would be alone at the end.
TWO := -n 2 --dist loadfile --no-loadscope-reorder

help:
	@echo 'make demo    install into .venv and plan a 70B chat deployment; writes headway-plan.html'
	@echo 'make demo-serve   emulate three replicas, serve them, drive them: simulated beside measured, in half a minute'
	@echo 'make loop    the same with three llama.cpp replicas: bench, calibrate, simulate, pass or fail; five minutes'
	@echo 'make test    every law on the installed, compiled package; then the core interpreted'
	@echo 'make sweep   slower cases of the same laws, and ten times as many random ones; some minutes'
	@echo 'make soak    100,000 random lives of the gateway with faults, of which `make test` has a sample; some minutes'
	@echo 'make check   ruff, mypy --strict, sizes and imports'
	@echo 'make bench   the benchmarks behind benchmarks/README.md'
	@echo 'make accuracy DATA=FOLDER   the tables and plots behind docs/accuracy.md'
	@echo 'make fit DATA=FOLDER        fit the data files of the cost model again (docs/cost-model.md)'
	@echo 'make clean   remove what the above made'

demo: .venv/.installed
	$(BIN)/headway $(PLAN) --html headway-plan.html

demo-serve: .venv/.installed
	$(BIN)/python scripts/demo_serve.py $(BIN)/headway

loop: .venv/.installed .venv/.engine
	$(BIN)/python benchmarks/loop.py

test: .venv/.installed .venv/.engine .venv/.cluster
	$(BIN)/python -m pytest -m 'not sweep' $(TWO) --ignore tests/test_loop.py
	$(BIN)/python -m pytest -m 'not sweep' tests/test_loop.py
	PYTHONPATH=src $(BIN)/python -m pytest -m 'not sweep' $(TWO) tests/core

sweep: .venv/.installed
	$(BIN)/python -m pytest -m sweep $(TWO)
	CASES=1000 $(BIN)/python -m pytest -m 'not sweep' $(TWO) tests/core

soak: .venv/.installed
	$(BIN)/python tests/gateway/soak.py

check: .venv/.installed
	$(BIN)/ruff check src tests fit setup.py
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_tidy.py

bench: .venv/.installed
	$(BIN)/python benchmarks/run.py

accuracy: .venv/.installed
	$(BIN)/python -m fit.accuracy $(DATA)

fit: .venv/.installed
	$(BIN)/python -m fit $(DATA)

# A real engine for `make loop` and its test; where there is no wheel of it the test is skipped.
.venv/.engine: .venv/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'xllamacpp>=2026.10' 'gguf>=0.17' || \
		echo 'headway: no wheel of llama.cpp for this machine; what needs it is skipped'
	@touch $@

# A Ray cluster for its test (80 MB, seconds); where there is no wheel of it the test is skipped.
.venv/.cluster: .venv/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'ray>=2.40' || \
		echo 'headway: no wheel of Ray for this machine; what needs it is skipped'
	@touch $@

clean:
	rm -rf .venv build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis headway-plan.html
	find src tests fit -name __pycache__ -type d -prune -exec rm -rf {} +

# How the core is compiled has changed: objects of an earlier build are stale.
.venv/.tools: setup.py pyproject.toml
	@test -n '$(PYTHON)' || { echo 'headway needs Python 3.11 or newer: install it, or make PYTHON=/path/to/python3' >&2; exit 2; }
	@'$(PYTHON)' -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo '$(PYTHON) is not Python 3.11 or newer: make PYTHON=/path/to/python3' >&2; exit 2; }
	@test -x $(BIN)/python || '$(PYTHON)' -m venv .venv || \
		{ echo 'creating .venv failed: $(PYTHON) needs its venv module (Debian, Ubuntu: apt install python3-venv)' >&2; exit 2; }
	rm -rf build
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'setuptools>=77' 'cython>=3.2'
	@touch $@

# Bytecode of what is never imported is not made: that took a third of the time of installing what others wrote.
# Not editable: pip puts the compiled modules into .venv, src/ stays plain Python, so PYTHONPATH=src runs interpreted.
.venv/.installed: .venv/.tools $(PACKAGED)
	@echo 'installing headway and what it needs into .venv (a minute or two the first time)'
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --no-build-isolation '.[report,parquet,serve,otel,dev]'
	@$(BIN)/python -c 'import headway; n = len(headway.interpreted_modules()); \
		print("headway: no working C compiler; the core runs interpreted (same results, slower)" if n else "headway: core compiled")'
	@touch $@
