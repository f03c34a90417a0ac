# Needs Python 3.11 or newer, pip and make; every target sets up .venv by itself.
PYTHON ?= python3
DATA   ?= $(wildcard ../shared/data)
ASSETS := src/kleash/models/assets
BIN    := .venv/bin
READY  := .venv/.ready

# Tests never reach for a hub, and one thread makes them repeatable.
PYTEST := HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

.PHONY: demo test check lint types slow assets clean

demo: $(READY)
	OMP_WAIT_POLICY=passive GOMP_SPINCOUNT=0 $(BIN)/kleash demo

test: $(READY)
	$(PYTEST) -m "not slow"

check: lint types test slow

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/pyright

slow: $(READY)
	$(PYTEST) -m slow

assets: $(READY)
	$(BIN)/python recipes/tiny_reviews/build.py $(if $(DATA),--data $(DATA)) --out $(ASSETS)

clean:
	rm -rf .venv build dist .pytest_cache .ruff_cache .hypothesis

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "kleash needs Python 3.11 or newer; name one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@
