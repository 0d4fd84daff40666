# The commands of this book. `make book` and `make test` need only Python 3.11+, make and pip's index.

PRESET ?= smoke
DEVICE ?= cpu
# The first interpreter that is new enough; name another with `make PYTHON=python3.12 book`.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)

VENV := .venv
SITE := .venv-site
PY := $(VENV)/bin/python
# pip asks nothing: these commands also run where nobody can answer.
# Python compiles what it imports; compiling all that is installed takes a minute longer.
PIP := -m pip install --no-input --disable-pip-version-check --quiet --no-compile

.PHONY: book site links test bench figure sync lock lint clean distclean help

help:  ## list the commands
	@grep -hE '^[a-z]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 12

book: $(VENV)/installed  ## environment, every chapter at PRESET (smoke), strict build
	$(PY) -m minilib.cli run --all --preset $(PRESET)
	$(PY) tools/build.py --preset $(PRESET)

site: $(SITE)/installed  ## HTML from the published runs; needs neither torch nor a GPU
	$(SITE)/bin/python tools/build.py

links: $(SITE)/installed  ## ask every address that the book names whether it still answers
	$(SITE)/bin/python tools/build.py --links

# One worker per core; tests/conftest.py says which tests stay together, and which begin.
test: $(VENV)/installed  ## environment, the whole test suite
	$(PY) -m pytest -n auto --no-loadscope-reorder

bench: $(VENV)/installed  ## benchmarks against plain loops, on DEVICE (cpu)
	$(PY) -m bench --device $(DEVICE)

figure: $(VENV)/installed  ## draw the landing page's figure from the published records
	$(PY) tools/figure.py

sync: $(VENV)/installed  ## carry name, address and branch from pyproject.toml to every copy
	$(PY) tools/sync.py

lint: $(VENV)/installed  ## ruff
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

lock:  ## resolve the lock files anew
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; none was found" >&2; exit 2; }
	test -d .venv-lock || $(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python $(PIP) uv
	.venv-lock/bin/python tools/lock.py

clean:  ## remove built pages and local runs; the environments stay
	rm -rf _build runs .pytest_cache .ruff_cache .hypothesis

distclean: clean  ## also remove the environments
	rm -rf .venv .venv-site .venv-lock *.egg-info

# A stamp in the environment: a second call finds it newer than the lock and does nothing.
$(VENV)/installed: requirements.lock requirements-cuda.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; none was found" >&2; exit 2; }
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@echo "installing the locked versions into $(VENV) (minutes the first time)"
	$(PY) $(PIP) -c requirements.lock -c requirements-cuda.lock "$$(grep '^torch==' requirements.lock)"
	$(PY) $(PIP) --no-deps -r requirements.lock
	$(PY) $(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

$(SITE)/installed: requirements-site.lock
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; none was found" >&2; exit 2; }
	test -x $(SITE)/bin/python || $(PYTHON) -m venv $(SITE)
	$(SITE)/bin/python $(PIP) --require-hashes -r requirements-site.lock
	@touch $@
