# Every target first makes the virtual environment that it needs. `make help` lists them.
SHELL  := /bin/bash
# the first Python that is new enough, and not too new
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
            $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2> /dev/null && echo $$p && break; done)
VENV   ?= .venv
BIN    := $(abspath $(VENV))/bin
# The stamp's name holds the hash of the pins: a second call finds it and costs nothing; after a change only the difference is installed
PINS   := $(shell { cat constraints.txt .ci/setup_venv.py .ci/mmcv_wheel.py; grep requirements settings.ini; } | sha256sum | cut -c1-12)
STAMP  := $(VENV)/.pisa-$(PINS)
$(if $(word 2,$(VENV)),$(error VENV=$(VENV): a path without spaces is needed))
# What `make train` trains, for example: make train DETECTOR=faster_rcnn ARGS="-p method baseline -p seed 1"
DETECTOR ?= mask_rcnn
ARGS     ?=
# This checkout's package, whichever checkout the environment was made for
export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))
export PATH := $(BIN):$(PATH)

# of `make train`: of many cores half, since two may be one core's; a waiting thread sleeps, so that others on the machine do not slow it down
THREADS := $(shell n=$$(getconf _NPROCESSORS_ONLN); echo $$((n > 3 ? n/2 : n)))

NUMERIC := $(addprefix tests/test_,hlr.py isr.py carl.py two_stage.py single_stage.py samplers.py roi_align.py) \
           tests/test_processes.py::test_two_processes_killed_and_resumed_have_the_loss_curve_of_one

.DEFAULT_GOAL := help
.PHONY: help setup train test check nbtest pytest arithmetic slow lab export readme paper shown docs clean

help:  ## list the targets
	@echo 'make TARGET [VENV=.venv] [PYTHON=python3.13] [DETECTOR=mask_rcnn] [ARGS="-p method baseline"]'
	@awk -F':.*## ' '/^[a-z]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP)  ## make the virtual environment alone (VENV=.venv)

$(STAMP):
	@$(or $(PYTHON),$(error Python 3.11, 3.12 or 3.13 is needed: install one, or give it: make PYTHON=/path/to/python3.13)) .ci/setup_venv.py $(VENV)
	@rm -f $(VENV)/.pisa-????????????; touch $@

train: $(STAMP)  ## train Mask R-CNN (or DETECTOR=faster_rcnn, retinanet, ssd300, ...) with PISA on rendered images, through nbs/train.ipynb
	@echo 'Trains $(DETECTOR). The progress bar comes after a minute or two. Ctrl-C stops, and the same command goes on after the last finished epoch.'
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-$(THREADS)} OMP_WAIT_POLICY=$${OMP_WAIT_POLICY:-passive} papermill nbs/train.ipynb runs/$(DETECTOR).ipynb -p detector $(DETECTOR) $(ARGS) --no-progress-bar --log-level ERROR --stdout-file - --stderr-file -
	@echo 'What was trained, with pictures: runs/$(DETECTOR).ipynb'

test: check nbtest pytest arithmetic  ## run all tests: notebooks, tests/, and that pisa/ is what the notebooks export

check: $(STAMP)  ## check that notebooks are clean and executed, and that pisa/ is what they export
	python .ci/check.py

# two tests at a time, each with one thread: more would wait for each other
nbtest: $(STAMP)  ## run the notebooks as tests
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} nbdev_test --n_workers 2

pytest: $(STAMP)  ## run tests/, two at a time
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} pytest -n 2 --dist worksteal

arithmetic: $(STAMP)  ## run the tests that compare numbers, with the instructions of an older processor and two threads
	ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 OMP_NUM_THREADS=2 pytest $(NUMERIC)

slow: $(STAMP)  ## run the tests that take minutes: a training step of every detector at the paper's size
	pytest -m slow

lab: $(STAMP)  ## open JupyterLab on the notebooks (ARGS=--no-browser, ARGS=--allow-root ...)
	cd nbs && jupyter lab $(ARGS)

export: $(STAMP)  ## write pisa/ from the notebooks
	nbdev_export
	nbdev_clean

readme: $(STAMP)  ## write README.md from nbs/index.ipynb, its numbers from runs/records/
	jupyter nbconvert nbs/index.ipynb --execute --to markdown --no-input --output-dir . --output README --NbConvertApp.output_files_dir=figures/readme
	sed -i 's/^!\[png\]/![Six samples around two objects, ranked by IoU-HLR and weighted by ISR]/' README.md
	sed -i -e 's#](\([0-9a-z_/]*\.ipynb\))#](nbs/\1)#g' -e 's#](\.\./#](#g' -e 's/^ *$$//' README.md
	cat -s README.md > README.new && mv README.new README.md

paper: $(STAMP)  ## render the paper's tables, figures and page from records and own runs
	@mkdir -p _proc
	printf '%s\n' table:{1,2,3,4,5,6,7,text} figure:{1,2,3,4,5,6,7,8,9} | xargs -P 2 -I{} bash -c 'IFS=: read kind number <<< {}; file=_proc/$$kind$$number; \
	  papermill nbs/paper/$$kind.ipynb $$file.ipynb -p number $$number -p out figures $(ARGS) --no-progress-bar 2> $$file.log || { tail -n 20 $$file.log; exit 255; }'
	python .ci/show.py nbs/lab/58_protocol.ipynb nbs/lab/71_claims.ipynb nbs/when.ipynb nbs/implementations.ipynb nbs/index.ipynb nbs/paper/index.ipynb
	python -c 'from pisa.lab.tables import write_records; write_records()'

shown: $(STAMP)  ## execute the notebooks whose code has changed, and keep what they put out (ARGS=--all: all of them)
	OMP_NUM_THREADS=1 python .ci/show.py $(ARGS)

docs: $(STAMP)  ## render the notebooks to HTML pages in _docs/
	python .ci/docs.py

clean:  ## delete what the tests and builds leave behind (not runs, not the environment)
	rm -rf build dist *.egg-info .pytest_cache _proc _docs
