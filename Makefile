# What a reader and a contributor type. Needs Python >= 3.11 and make; everything else goes into .venv.

PYTHON ?= python3
# Options for JupyterLab, for example: make lab LAB_ARGS="--no-browser --port=8899"
LAB_ARGS ?=
# Another index for torch alone, for example the one with the small CPU build (see README).
TORCH_INDEX ?=

PY := .venv/bin/python
PIP := $(PY) -m pip --disable-pip-version-check --quiet
LAB_STAMP := .venv/.lab-stamp
TEST_STAMP := .venv/.test-stamp
# A process per core, each with whole files: a notebook's cells stay together.
PARALLEL := -n logical --dist loadfile
NBVAL := --nbval-current-env --nbval-cell-timeout=300

# The committed numbers were computed so.
export LABKIT_PROFILE ?= lesson
export OMP_NUM_THREADS = 1
export MKL_NUM_THREADS = 1

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help lab quick test test-long soak notebooks bench checkpoint assets lint types unit nbval clean

help: ## show this list
	@echo 'make TARGET, where TARGET is'
	@sed -n 's/^\([a-z-]*\):.*## /  \1\t/p' Makefile | expand -t 14

# .jupyter: JupyterLab shows Markdown rendered, and does not ask whether to fetch news from the network.
lab: assets ## set up if needed, then open the course in JupyterLab
	JUPYTER_CONFIG_PATH="$(CURDIR)/.jupyter:$$JUPYTER_CONFIG_PATH" \
	    $(PY) -m jupyterlab --ip=127.0.0.1 --LabApp.default_url=/lab/tree/notebooks/README.md \
	    $$([ "$$(id -u)" -ne 0 ] || echo --allow-root) $(LAB_ARGS)

quick: $(TEST_STAMP) assets ## text, model and generation, while you work (2 minutes)
	$(PY) -m pytest $(PARALLEL) -m 'not long' tests/text tests/model tests/generation

test: $(TEST_STAMP) assets lint types unit nbval ## prove that all of it works (12 minutes on 2 cores)
	@echo 'make test: all green'

test-long: $(TEST_STAMP) assets ## the slow tests: browsers, kills, load, other processors (20 minutes)
	$(PY) -m pytest $(PARALLEL) -m 'long and not browser'
	$(PY) -m pytest -m browser

soak: $(TEST_STAMP) assets ## the campaigns of the long tests, ten times as long
	LABKIT_SOAK=10 $(PY) -m pytest -m long tests/training/test_kill.py tests/studio/serve

notebooks: $(TEST_STAMP) assets ## execute the lessons in place; renews figures, log and journal
	$(PY) scripts/write_exercises.py
	$(PY) scripts/execute_notebooks.py

BENCH ?= $(sort $(filter-out machine reference their_gpt2 keep_runs, $(basename $(notdir $(wildcard benchmarks/*.py)))))

bench: $(TEST_STAMP) assets ## measure every claim about speed on a quiet machine (an hour or two); BENCH=train_step for one
	@for name in $(BENCH); do echo "== $$name"; \
	    env -u OMP_NUM_THREADS -u MKL_NUM_THREADS $(PY) benchmarks/$$name.py || exit 1; done

checkpoint: assets ## train the model that comes with labkit anew (half an hour on one core)
	$(PY) scripts/make_checkpoint.py

clean: ## remove .venv and what tools left behind (your runs stay)
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist labkit.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Parts of `make test`, to be called one at a time while working.

lint: $(TEST_STAMP)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m codespell_lib

types: $(TEST_STAMP)
	$(PY) -m mypy

unit: $(TEST_STAMP)
	$(PY) -m pytest $(PARALLEL) -m 'not long and not browser'

nbval: $(TEST_STAMP)
	$(PY) -m pytest --nbval $(NBVAL) $(PARALLEL) notebooks/

# Verifies checksums each time, which takes a second; downloads only what is missing or damaged.
assets: $(LAB_STAMP)
	@.venv/bin/labkit fetch >/dev/null

# A stamp holds the folder it was made in: a moved folder is set up anew, since .venv points to the old one.
ifneq ($(shell cat $(LAB_STAMP) 2>/dev/null),$(CURDIR))
.PHONY: $(LAB_STAMP)
endif

$(LAB_STAMP): requirements.txt pyproject.toml
	@rm -f $(LAB_STAMP) $(TEST_STAMP)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "The course needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1)." >&2; \
	    echo "If a newer one has another name, say so: make PYTHON=python3.12 lab" >&2; exit 1; }
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv || { \
	    echo "Could not create .venv (on Debian and Ubuntu: apt install python3-venv)." >&2; exit 1; }
	@echo 'Installing packages into .venv. The first time this takes a few minutes.'
ifneq ($(TORCH_INDEX),)
	$(PIP) install --no-deps --index-url '$(TORCH_INDEX)' "$$(grep '^torch==' requirements.txt)"
endif
	@$(PIP) install -r requirements.txt
	@echo '$(CURDIR)' > $@

$(TEST_STAMP): $(LAB_STAMP)
	@$(PIP) install -r requirements.txt -e '.[test]'
	@touch $@
