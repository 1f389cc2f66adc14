# Every target first makes the virtual environment that it needs. `make help` lists them.
SHELL  := /bin/bash
PYTHON ?= python3.11
VENV   ?= .venv
BIN    := $(abspath $(VENV))/bin
# The stamp's name holds the hash of the pins: a second call finds it and costs nothing, a changed pin looks for another.
PINS   := $(shell { cat constraints.txt .ci/setup_venv.py; grep requirements settings.ini; } | sha256sum | cut -c1-12)
STAMP  := $(VENV)/.pisa-$(PINS)
# What `make train` trains, for example: make train DETECTOR=faster_rcnn ARGS="-p method baseline -p seed 1"
DETECTOR ?= mask_rcnn
ARGS     ?=
# This checkout's package, whichever checkout the environment was made for
export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))
export PATH := $(BIN):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help setup train test check nbtest pytest slow lab export readme paper clean

help:  ## list the targets
	@echo 'make TARGET [VENV=.venv] [PYTHON=python3.11] [DETECTOR=mask_rcnn] [ARGS="-p method baseline"]'
	@awk -F':.*## ' '/^[a-z]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP)  ## make the virtual environment alone (VENV=.venv)

$(STAMP):
	@$(PYTHON) .ci/setup_venv.py $(VENV)
	@rm -f $(VENV)/.pisa-????????????; touch $@

train: $(STAMP)  ## train Mask R-CNN with PISA on the embedded data set, through nbs/train.ipynb
	papermill nbs/train.ipynb runs/$(DETECTOR).ipynb -p detector $(DETECTOR) $(ARGS) --log-output --no-progress-bar

test: check nbtest pytest  ## run all tests: notebooks, tests/, and that pisa/ is what the notebooks export

check: $(STAMP)  ## check that notebooks are clean and that pisa/ is what they export
	python .ci/check.py

nbtest: $(STAMP)  ## run the notebooks as tests
	nbdev_test --n_workers 2

pytest: $(STAMP)  ## run tests/
	pytest

slow: $(STAMP)  ## run the tests that take minutes: a training step of every detector at the paper's size
	pytest -m slow

lab: $(STAMP)  ## open JupyterLab on the notebooks
	cd nbs && jupyter lab

export: $(STAMP)  ## write pisa/ from the notebooks, and clean them of outputs
	nbdev_export
	jupyter nbconvert --clear-output --inplace $$(git ls-files 'nbs/*.ipynb' ':!nbs/paper/index.ipynb') 2> /dev/null
	nbdev_clean

readme: $(STAMP)  ## write README.md from nbs/index.ipynb, its numbers from runs/
	jupyter nbconvert nbs/index.ipynb --execute --to markdown --no-input --output-dir . --output README --NbConvertApp.output_files_dir=figures/readme
	sed -i 's/^!\[png\]/![Six samples around two objects, ranked by IoU-HLR and weighted by ISR]/' README.md
	sed -i -e 's#](\([0-9a-z_/]*\.ipynb\))#](nbs/\1)#g' -e 's#](\.\./#](#g' README.md

paper: $(STAMP)  ## render the paper's tables and figures from runs/ into figures/, and the page nbs/paper/index.ipynb
	@mkdir -p _proc/nbs/paper
	printf '%s\n' nbs/paper/table?.ipynb nbs/paper/fig?.ipynb | xargs -P 2 -I{} sh -c 'papermill {} _proc/{} -p out figures --no-progress-bar 2> _proc/{}.log || { tail -n 20 _proc/{}.log; exit 255; }' 
	jupyter nbconvert --to notebook --execute --inplace nbs/paper/index.ipynb 2> _proc/nbs/paper/index.log || { tail -n 20 _proc/nbs/paper/index.log; false; }
	nbdev_clean --fname nbs/paper/index.ipynb

clean:  ## delete what the tests and builds leave behind (not runs, not the environment)
	rm -rf build dist *.egg-info .pytest_cache _proc _docs
