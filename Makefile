# Every target sets up what it needs. `make help` lists them.
SHELL  := /bin/bash
PYTHON ?= python3.11
VENV   ?= .venv
BIN    := $(abspath $(VENV))/bin
# The stamp's name holds the pins' hash: a second call finds it and costs nothing, a changed pin looks for another.
PINS   := $(shell { cat constraints.txt .ci/setup_venv.py; grep requirements settings.ini; } | sha256sum | cut -c1-12)
STAMP  := $(VENV)/.pisa-$(PINS)
export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))

.DEFAULT_GOAL := help
.PHONY: help

help:  ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP)  ## the virtual environment alone (VENV=.venv)

$(STAMP):
	@$(PYTHON) .ci/setup_venv.py $(VENV)
	@rm -f $(VENV)/.pisa-[0-9a-f]* && touch $@
