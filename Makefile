# Needs Python 3.11 or newer, pip and make; every target sets up .venv by itself.
PYTHON ?= python3
DATA   ?= $(wildcard ../shared/data)
ASSETS := src/kleash/models/assets
BIN    := .venv/bin
READY  := .venv/.ready

# Tests never reach for a hub, and one thread makes them repeatable. Many start Python: what was compiled once is kept.
PYTEST := PYTHONDONTWRITEBYTECODE= HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

# Of all tests those that are about what decides, records and restores.
COVERING := tests/guard tests/ledger tests/functional/test_distance.py tests/cli/test_ledger.py \
  $(wildcard tests/test_replay*.py) $(patsubst %,tests/train/test_%.py,checkpoint directory guarded resume)

.PHONY: demo test check coverage lint types slow long assets clean

demo: $(READY)
	OMP_WAIT_POLICY=passive GOMP_SPINCOUNT=0 $(BIN)/kleash demo

test: $(READY)
	$(PYTEST) -m "not slow and not long"

check: lint types test slow

# What is measured, and that nothing of it may be missing, is in pyproject.toml.
coverage: $(READY)
	$(PYTEST) -m "not slow and not long" --cov=kleash --cov-report=term-missing:skip-covered $(COVERING)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/pyright

slow: $(READY)
	$(PYTEST) -m "slow and not long"

# What takes minutes on one core and is measured by a command of the lab too.
long: $(READY)
	$(PYTEST) -m long

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
