# The commands of this book. `make book` and `make test` need Python 3.11 to 3.13, make and pip's index.

PRESET ?= small
DEVICE ?= cpu
BASE ?= main
# The first interpreter that the lock is made for (3.14 is not: some wheels are missing there); name another with `make PYTHON=python3.12 book`.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
  $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && { echo $$p; break; }; done)

VENV := .venv
SITE := .venv-site
CI_TOOLS := .venv-ci
PY := $(VENV)/bin/python
# pip asks nothing: these commands also run where nobody can answer.
# Python compiles what it imports; compiling all that is installed takes a minute longer.
PIP := -m pip install --no-input --disable-pip-version-check --quiet --no-compile
# So it may keep what it compiled, where a container says otherwise: each kernel would compile PyTorch again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: book lab site pdf links audit test check trained golden prove same bench figure sync lock lint clean distclean help

help:  ## list the commands
	@grep -hE '^[a-z]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 12

# FRESH=1 computes every trial anew, which takes hours; so does PRESET=smoke, in minutes.
book: $(VENV)/installed  ## the book: every chapter at PRESET (small) from the published trials
	$(PY) tools/build.py --preset $(PRESET) $(if $(FRESH),--fresh)

lab: $(VENV)/installed  ## JupyterLab on the chapters
	JUPYTER_PREFER_ENV_PATH=1 $(PY) -m jupyterlab --notebook-dir=. notebooks/01_attacks.ipynb

site: $(SITE)/installed  ## HTML from the published pages; needs neither torch nor a GPU
	$(SITE)/bin/python tools/build.py

pdf: $(SITE)/installed  ## the same, and a PDF of each page; needs Chromium
	$(SITE)/bin/python tools/build.py --pdf

links: $(SITE)/installed  ## ask every address that the book names whether it still answers
	$(SITE)/bin/python tools/build.py --links

# Without hashes torch's lock is read as it stands, one version a line.
audit: $(CI_TOOLS)/installed  ## ask the index whether a fault is known of what the locks name
	$(CI_TOOLS)/bin/pip-audit --disable-pip --require-hashes -r requirements.lock -r requirements-site.lock -r requirements-ci.lock
	$(CI_TOOLS)/bin/pip-audit --disable-pip --no-deps -r requirements-torch.lock

# One worker per core; tests/conftest.py says which tests stay together, and which begin.
test: $(VENV)/installed  ## environment, the whole test suite
	$(PY) -m pytest -n auto --no-loadscope-reorder

check: $(VENV)/installed  ## the quick part: without pages, browsers, golden numbers, whole sweeps
	$(PY) -m pytest -n auto --no-loadscope-reorder -m "not site and not slow"

# MINILIB_TEST_SEED and MINILIB_TEST_THREADS say which seed, and how many threads a worker has.
trained: $(VENV)/installed  ## what the suite says of models that it trains, with another seed or threads
	$(PY) -m pytest -n auto --no-loadscope-reorder -m trained

bench: $(VENV)/installed  ## benchmarks against plain loops, on DEVICE (cpu)
	$(PY) -m bench --device $(DEVICE)

golden: $(VENV)/installed  ## compute the golden numbers anew and write them
	$(PY) tools/golden.py write

prove: $(VENV)/installed  ## compute the golden numbers and compare; then no run says that code has changed since
	$(PY) tools/golden.py check

same: $(VENV)/installed  ## the golden numbers with the code of BASE and of this tree, compared exactly
	$(PY) tools/golden.py same $(BASE)

figure: $(VENV)/installed  ## draw the landing page's figure from the published records
	$(PY) tools/figure.py

sync: $(VENV)/installed  ## carry name, address and branch from pyproject.toml to every copy
	$(PY) tools/sync.py

lint: $(VENV)/installed  ## ruff
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

lock:  ## resolve the lock files anew
	@test -n "$(PYTHON)" || { echo "Python 3.11 to 3.13 is needed; none was found" >&2; exit 2; }
	test -d .venv-lock || $(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python $(PIP) uv
	.venv-lock/bin/python tools/lock.py

clean:  ## remove built pages and local runs; the environments stay
	rm -rf _build runs .pytest_cache .ruff_cache .hypothesis

distclean: clean  ## also remove the environments
	rm -rf .venv .venv-site .venv-ci .venv-lock *.egg-info

# A stamp in the environment: a second call finds it newer than the lock and does nothing.
$(VENV)/installed: requirements.lock requirements-torch.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 to 3.13 is needed; none was found" >&2; exit 2; }
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@echo "installing the locked versions into $(VENV) (minutes the first time)"
	$(PY) $(PIP) --no-deps --require-hashes -r requirements.lock
	$(PY) $(PIP) -c requirements-torch.lock torch
	$(PY) $(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

$(SITE)/installed: requirements-site.lock
	@test -n "$(PYTHON)" || { echo "Python 3.11 to 3.13 is needed; none was found" >&2; exit 2; }
	test -x $(SITE)/bin/python || $(PYTHON) -m venv $(SITE)
	$(SITE)/bin/python $(PIP) --require-hashes -r requirements-site.lock
	@touch $@

$(CI_TOOLS)/installed: requirements-ci.lock
	@test -n "$(PYTHON)" || { echo "Python 3.11 to 3.13 is needed; none was found" >&2; exit 2; }
	test -x $(CI_TOOLS)/bin/python || $(PYTHON) -m venv $(CI_TOOLS)
	$(CI_TOOLS)/bin/python $(PIP) --require-hashes -r requirements-ci.lock
	@touch $@
