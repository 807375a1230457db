# make demo: images from the shipped checkpoint. make test: everything that is checked. Both set themselves up.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin
ROOMS := model training export engines runtime serve
BUNDLE := bundles/digits-4x

.PHONY: demo test lint setup clean

demo: $(BUNDLE)/bundle.json
	$(RUN)/bitdance-edge generate $(BUNDLE) --classes all --count 8 --seed 1 --grid demo/digits.png
	@echo
	@echo "The picture is demo/digits.png. Try next:"
	@echo "  $(RUN)/bitdance-edge generate $(BUNDLE) --classes 3,7 --count 4 --out images --previews previews"
	@echo "  $(RUN)/bitdance-edge inspect $(BUNDLE)"
	@echo "  make test"

$(BUNDLE)/bundle.json: checkpoints/digits-4x/model.safetensors | $(VENV)/demo.stamp
	$(RUN)/bitdance-edge export checkpoints/digits-4x -o $(BUNDLE) --force

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
