# `make run` and `make test` work on a fresh checkout: they make a virtual environment
# in .venv, build the native modules in place and go.  A second time they build only what
# has changed.  `make` alone lists the targets.

PYTHON ?= python3
VENV ?= .venv
# Further arguments of pytest, of tests.conformance and of the benchmark command.
ARGS ?=

bin := $(VENV)/bin
python := $(bin)/python
sources := setup.py $(wildcard aiounify/_core/*.pyx aiounify/_core/*.pxd aiounify/_core/*.h \
	aiounify/bench/*.pyx aiounify/_kernel*_build.py)
stubbed := $(subst /,.,$(basename $(wildcard aiounify/*.pyi aiounify/*/*.pyi)))

.PHONY: help run serve test build lint conformance sanitize bench bench-report dist clean FORCE
.DELETE_ON_ERROR:

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | column -t -s '|' 2>/dev/null \
		|| sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1: \2/p' $(MAKEFILE_LIST)
	@echo
	@echo "  PYTHON=python3.12 chooses the interpreter, ARGS='-k timers' is passed on."

run: build ## set everything up and run examples/tour.py
	@$(python) examples/tour.py

serve: $(VENV)/.server build ## set everything up and serve a small site on port 8080 (ARGS: see --help)
	@$(python) -m aiounify serve $(ARGS)

test: build ## set everything up and run all tests, on both backends
	@$(python) -m pytest $(ARGS)

build: $(VENV)/.built ## the virtual environment and the native modules, nothing else

lint: $(VENV)/.linters build ## ruff, mypy --strict, and the stubs against the compiled modules
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(python) -m mypy --strict aiounify
	MYPYPATH=examples $(python) -m mypy --strict -p webserver
	$(python) -m mypy.stubtest --allowlist .ci/stubtest-allowlist $(stubbed)

conformance: build ## the interpreter's own asyncio tests on this loop, compared with asyncio's
	@$(python) -m tests.conformance $(ARGS)

sanitize: $(VENV)/.installed ## all tests on modules built with address and undefined-behaviour sanitizers
	@.ci/sanitize $(python) $(ARGS)

bench: $(VENV)/.peers build ## compare the loop with asyncio and uvloop
	@$(python) -m aiounify bench $(ARGS)

bench-report: $(VENV)/.peers build ## measure, and write the tables of docs/performance.md
	@$(python) -m aiounify bench $(ARGS) --json build/bench.json
	@$(python) -m aiounify bench report build/bench.json -o docs/performance.md

dist: $(VENV)/.builder ## sdist and wheel, in dist/
	$(python) -m build

clean: ## remove everything that was made here
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	rm -f aiounify/*.so aiounify/_kernel*.c
	rm -f $(patsubst %.pyx,%.c,$(wildcard aiounify/*/*.pyx)) aiounify/*/*.so
	find . -name __pycache__ -not -path './.ci/venvs/*' -prune -exec rm -rf {} +

# -- how it is set up ------------------------------------------------------------

pip := $(python) -m pip --disable-pip-version-check --quiet
# What pyproject.toml requires: its build system, the package itself, and extras by name.
requirements = $(python) -c 'import sys, tomllib; t = tomllib.load(open("pyproject.toml", "rb")); \
	p = t["project"]; e = p["optional-dependencies"]; \
	print(*t["build-system"]["requires"], *p["dependencies"], sep="\n"); \
	[print(*e[name], sep="\n") for name in sys.argv[1:]]'

# An interpreter that is named replaces a virtual environment made with another one.
$(VENV)/.python: FORCE
	@if [ ! -e $@ ] || { [ '$(origin PYTHON)' != file ] && [ "$$(cat $@)" != '$(PYTHON)' ]; }; then \
		.ci/preflight '$(PYTHON)' || exit 1; \
		echo "making the virtual environment $(VENV) with $(PYTHON)"; \
		'$(PYTHON)' -m venv --clear $(VENV) && echo '$(PYTHON)' > $@; \
	fi

$(VENV)/.installed: pyproject.toml $(VENV)/.python
	@$(requirements) test > $(VENV)/requirements.txt
	@echo "installing what building and testing need into $(VENV)"
	@$(pip) install -r $(VENV)/requirements.txt
	@echo '$(CURDIR)' > "$$($(python) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/aiounify.pth"
	@touch $@

# egg_info: the version and the metadata that pip would have put next to the package.
$(VENV)/.built: $(sources) $(VENV)/.installed
	@echo "building the native modules"
	@$(python) -W ignore setup.py --quiet build_ext --inplace --parallel 2
	@$(python) -W ignore setup.py --quiet egg_info 2> $(VENV)/egg_info.log || { cat $(VENV)/egg_info.log; exit 1; }
	@touch $@

$(VENV)/.linters: pyproject.toml $(VENV)/.installed
	@$(requirements) lint > $(VENV)/requirements-lint.txt
	@$(pip) install -r $(VENV)/requirements-lint.txt
	@touch $@

$(VENV)/.peers: pyproject.toml $(VENV)/.installed
	@$(requirements) bench > $(VENV)/requirements-bench.txt
	@$(pip) install -r $(VENV)/requirements-bench.txt
	@touch $@

$(VENV)/.server: pyproject.toml $(VENV)/.installed
	@$(requirements) server > $(VENV)/requirements-server.txt
	@$(pip) install -r $(VENV)/requirements-server.txt
	@touch $@

$(VENV)/.builder: $(VENV)/.installed
	@$(pip) install build
	@touch $@
