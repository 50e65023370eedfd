# `make demo` and `make test` are all that a newcomer needs; each makes .venv by itself.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
README := README.md
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test clusters docs readme notebooks setup clean

setup: $(STAMP)

$(STAMP): settings.ini setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "cebm_nb needs Python 3.10 or newer, this is " + sys.version.split()[0] + "; try make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -e '.[all]'
	@touch $@

# Train on 4,000 real digits, then evaluate in every way: five to ten minutes on two cores.
demo: RUN := runs/demo-$(shell date +%Y%m%d-%H%M%S)
demo: $(STAMP)
	@$(BIN)/cebm train --out $(RUN)
	@$(BIN)/cebm eval $(RUN)

# The exported package is what the notebooks say; every cell runs; the tests pass. Two processes side by side, a thread each.
test: export OMP_NUM_THREADS := 1
test: $(STAMP)
	$(BIN)/python -m pytest tests/test_export.py
	$(BIN)/nbdev_test --n_workers 2 --timing
	$(BIN)/python -m pytest -n 2 --dist loadfile tests --ignore=tests/test_export.py --ignore=tests/test_site.py

# Sweeps on a Ray cluster of three nodes and on Slurm, on this machine; as root Slurm is installed and started.
clusters: export CLUSTER_TESTS := 1
clusters: export INSTALL_SLURM := 1
clusters: $(STAMP)
	$(BIN)/python -m pytest tests/test_clusters.py

# Process the notebooks and render them, with Quarto where it is installed, else with smalldocs.
docs: $(STAMP)
	rm -rf _proc _docs
	$(BIN)/python -c 'from nbdev.serve import proc_nbs; proc_nbs(n_workers=2)'
	@if command -v quarto >/dev/null; then cd _proc && quarto render --no-execute; else $(BIN)/smalldocs render _proc; fi
	mv _proc/_docs _docs
	$(BIN)/python nbs/site/finish.py _docs
	@echo "The site is in _docs/index.html"

# README.md is nbs/index.ipynb.
readme: $(STAMP)
	$(BIN)/jupyter nbconvert --to markdown --stdout --log-level WARN nbs/index.ipynb | sed -E 's#\]\((images/|howto/|[A-Za-z0-9_]+\.ipynb)#](nbs/\1#g' > $(README)

clean:
	rm -rf $(VENV) _proc _docs
