# Two commands for a newcomer: `make demo` and `make test`. Each makes its own environment under .venv/
# and reuses it. PYTHON chooses the interpreter; PIP_FLAGS is passed to pip.
PYTHON ?= python3
PIP_FLAGS ?=
JOBS ?= 2
DEMO ?=
TEST ?=

DEMO_ENV := .venv/demo
TEST_ENV := .venv/test
export OMP_NUM_THREADS := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help demo test check dev docs bench results wheel clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1	\2/' | expand -t 18

demo: $(DEMO_ENV)/ready ## watch a network lose its ability to learn, be diagnosed and be repaired (about 4 minutes)
	$(DEMO_ENV)/bin/supple demo $(DEMO)

test: $(TEST_ENV)/ready ## run the whole test suite (TEST="-k name" narrows it)
	$(TEST_ENV)/bin/python -m pytest -n $(JOBS) --dist worksteal $(TEST)

check: $(TEST_ENV)/ready ## lint, format, types, import rules
	$(TEST_ENV)/bin/ruff check .
	$(TEST_ENV)/bin/ruff format --check .
	$(TEST_ENV)/bin/pyrefly check
	$(TEST_ENV)/bin/python docs/check.py
	$(TEST_ENV)/bin/python docs/generate.py --check

dev: $(TEST_ENV)/ready ## set up for development: environment and pre-commit hooks
	$(TEST_ENV)/bin/pre-commit install
	@echo "ready: source $(TEST_ENV)/bin/activate"

docs: $(TEST_ENV)/ready ## regenerate the generated pages of docs/
	$(TEST_ENV)/bin/python docs/generate.py

bench: $(TEST_ENV)/ready ## measure the promised costs (benchmarks/, prints ratios)
	for script in benchmarks/*.py; do echo "== $$script"; $(TEST_ENV)/bin/python $$script || exit 1; done

results: $(TEST_ENV)/ready ## recompute the committed results (results/make.py says which) and their pages
	$(TEST_ENV)/bin/python results/make.py
	$(TEST_ENV)/bin/python docs/generate.py

wheel: $(TEST_ENV)/ready ## build the wheel into dist/
	$(TEST_ENV)/bin/python -m build --wheel

clean: ## remove environments and build products
	rm -rf .venv dist build

# torch first and at its pin: a resolver that is free to choose may fetch gigabytes of another build.
$(DEMO_ENV)/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; found: `$(PYTHON) --version`; do: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 2; }
	test -x $(DEMO_ENV)/bin/pip || $(PYTHON) -m venv $(DEMO_ENV)
	$(DEMO_ENV)/bin/pip install -q $(PIP_FLAGS) -c constraints.txt torch
	$(DEMO_ENV)/bin/pip install -q $(PIP_FLAGS) -c constraints.txt -e .
	touch $@

$(TEST_ENV)/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; found: `$(PYTHON) --version`; do: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 2; }
	test -x $(TEST_ENV)/bin/pip || $(PYTHON) -m venv $(TEST_ENV)
	$(TEST_ENV)/bin/pip install -q $(PIP_FLAGS) -c constraints.txt torch
	$(TEST_ENV)/bin/pip install -q $(PIP_FLAGS) -c constraints.txt -e '.[test,check,rl]'
	touch $@
