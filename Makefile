# Short names for plain commands; each target makes the environment in .venv first, or reuses it.
#   make demo    adapt a pretrained ViT to the embedded blood-cell images, and show what it gained
#   make test    run the tests in 2 processes          PYTEST_ARGS='-k apla' chooses some, WORKERS=0 runs them in one
#   make lint    ruff, ruff format, mypy
#   make setup   only the environment                  PYTHON=/path/to/python3.12 chooses the interpreter
#   make clean   remove the environment and the caches; runs/ is kept

.PHONY: setup demo test lint clean
.ONESHELL:
SHELL := bash
.SHELLFLAGS := -euo pipefail -c

BIN := .venv/bin
PYTHON ?=
PYTEST_ARGS ?=
WORKERS ?= 2

demo: setup
	@$(BIN)/essa demo out=runs/demo overwrite=true

# loadgroup, without groups, gives every test to whoever is free: the long ones, of several ranks, wait in no queue.
test: setup
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup $(PYTEST_ARGS)

lint: setup
	@$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# .venv/complete is written last and holds what the environment was made from. Where it is missing, the folder was moved or
# the interpreter is gone, .venv is made anew; where only the pins changed, they are installed over it.
setup:
	@wanted=$$( { pwd; cat pyproject.toml constraints.txt; } | sha256sum)
	made_from=$$(cat .venv/complete 2>/dev/null || true)
	if [[ "$$made_from" == "$$wanted" ]] && $(BIN)/python -c 'import essa_dist' 2>/dev/null; then exit 0; fi

	if [[ -z "$$made_from" || "$$(cat .venv/where)" != "$$PWD" ]] || ! $(BIN)/python -c '' 2>/dev/null; then
		candidates=(python3.11 python3.12 python3.13 python3 python)
		[[ -z "$(PYTHON)" ]] || candidates=("$(PYTHON)")
		python=
		for candidate in "$${candidates[@]}"; do
			"$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue
			python=$$candidate
			break
		done
		if [[ -z "$$python" ]]; then
			echo "setup: Python 3.11 or newer is needed, none of these is: $${candidates[*]}; name one: make PYTHON=/path/to/python3.11" >&2
			exit 1
		fi
		if ! "$$python" -c 'import ensurepip, venv' 2>/dev/null; then
			echo "setup: $$python can't make virtual environments: install python3-venv (Debian, Ubuntu) or name another: make PYTHON=/path/to/python3.11" >&2
			exit 1
		fi
		rm -rf .venv
		"$$python" -m venv .venv
		echo "$$PWD" > .venv/where
	fi

	rm -f .venv/complete
	echo "setup: installing the pinned packages into .venv: a few minutes, 3 GB of disk (more with CUDA); see .venv/pip.log" >&2
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]' > .venv/pip.log 2>&1 ||
		{ tail -n 20 .venv/pip.log >&2; exit 1; }
	echo "$$wanted" > .venv/complete

clean:
	@rm -rf .venv build ./*.egg-info .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
