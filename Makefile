# make demo: images from the shipped checkpoint. make test: everything that is checked. Both set themselves up.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin
ROOMS := model training export engines runtime
BUNDLE := bundles/digits-4x

.PHONY: demo test lint setup clean

demo: $(VENV)/demo.stamp
	$(RUN)/python -m bitdance_edge.demo --checkpoint checkpoints/digits-4x --bundle $(BUNDLE)

test: lint
	$(RUN)/pytest -q

lint: setup build/types
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/pyright

setup: $(VENV)/dev.stamp

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(RUN)/pip install --quiet --upgrade pip

# torch first and alone: its exact version is the CPU build where an index offers one.
$(VENV)/demo.stamp: pyproject.toml | $(VENV)/bin/python
	$(RUN)/pip install --quiet torch==2.13.0
	$(RUN)/pip install --quiet --editable '.[cpu,export]'
	touch $@

$(VENV)/dev.stamp: $(VENV)/demo.stamp
	$(RUN)/pip install --quiet --editable '.[dev]'
	touch $@

build/types: Makefile
	rm -rf $@ && mkdir -p $@/bitdance_edge
	ln -s $(CURDIR)/bitdance_edge/* $@/bitdance_edge/
	for room in $(ROOMS); do ln -s $(CURDIR)/$$room $@/bitdance_edge/$$room; done

clean:
	rm -rf $(VENV) build bundles demo *.egg-info
