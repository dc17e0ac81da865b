# Thin: each target is what a person would type. Works in a fresh clone, and twice in a row.
PYTHON ?= python3
BIN    := .venv/bin
# processes that the tests are shared out to; of no use beyond the number of cores: three on two took as long
JOBS   ?= 2
PIP    := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test real lab gallery bench gpu check clean

demo: .venv/installed
	$(BIN)/saelab demo --out demo

test: .venv/installed-dev
	tools/system_packages.sh
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n $(JOBS)

real: .venv/installed-dev
	tools/real_models.sh $(BIN)
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m real tests

lab: .venv/installed-lab
	$(BIN)/jupyter lab notebooks

# the pictures of the README and docs/gallery.md
gallery: .venv/installed-lab
	$(BIN)/python tools/gallery.py

# on a machine with a GPU, in whatever Python holds its torch: nothing is installed
gpu:
	$(PYTHON) -m benchmarks.gpu

bench: .venv/installed-dev
	for script in benchmarks/*.py; do $(BIN)/python $$script || exit 1; done

check: .venv/installed-dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/pyright
	tools/check_javascript.sh

.venv/torch: constraints.txt
	tools/make_venv.sh $(PYTHON)
	$(PIP) torch
	touch $@

# torch comes first and alone, so that the wheel that constraints.txt pins is taken and no dependency picks another
.venv/installed: .venv/torch pyproject.toml
	$(PIP) -e .
	touch $@

.venv/installed-lab: .venv/torch pyproject.toml
	$(PIP) -e '.[lab,map]'
	touch $@

.venv/installed-dev: .venv/torch pyproject.toml
	$(PIP) -e '.[dev,lab,map]'
	touch $@

clean:
	rm -rf .venv demo dist test-artifacts widgets/node_modules
