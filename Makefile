# make demo: images from two shipped checkpoints. make test: everything that is checked. Both set themselves up.
# make docs: the documentation. make snippets: its commands, run. make lean: the runtime without PyTorch, at both ends of
# its libraries' ranges. make lowest: the commands that need PyTorch, at the lowest. make release: what is published, in
# dist/. make walk: what a new user does with it, with times.

PYTHON ?= python3
TEST_PROCESSES ?= 2
VENV := .venv
RUN := $(VENV)/bin
SHARING := BITDANCE_TEST_FOLDER=$(CURDIR)/build/shared
PINNED := --quiet --constraint constraints/ci.txt
# Without setuptools' note, at every editable installation, that a folder may hide a package of the same name.
EDITABLE := PYTHONWARNINGS='ignore:Editable installation' $(RUN)/pip install $(PINNED) --editable
SHIPPED := digits-1x digits-4x digits-16x shapes-16x
ROOMS := model training export calibration bench engines evaluation runtime scale serve
CAPTIONS := --prompt "a red circle to the left of a blue square" --prompt "a yellow triangle above a green circle" \
	--prompt "a blue triangle" --prompt "a green square below a red square"
NEW_ENOUGH := $(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Python 3.11 or later is needed, \
	and $(PYTHON) is " + sys.version.split()[0] + ": name another, as in make demo PYTHON=python3.12")'
EXTRAS := cpu,text,serve,completion,export,calibrate,train,bench,compare

.PHONY: demo test test-cuda lint docs snippets lean lowest release walk setup clean

demo: bundles/digits-4x/bundle.json bundles/shapes-16x/bundle.json
	$(RUN)/bitdance-edge generate bundles/digits-4x --classes all --count 8 --seed 1 --grid demo/digits.png
	$(RUN)/bitdance-edge generate bundles/shapes-16x --count 4 --seed 1 --grid demo/shapes.png $(CAPTIONS)
	@echo
	@echo "The pictures are demo/digits.png and demo/shapes.png. Try next:"
	@echo "  $(RUN)/bitdance-edge generate bundles/digits-4x --classes 3,7 --count 4 --out images --previews previews"
	@echo "  $(RUN)/bitdance-edge generate bundles/shapes-16x --prompt 'a green square' --out images"
	@echo "  $(RUN)/bitdance-edge inspect bundles/shapes-16x"
	@echo "  make test"

bundles/%/bundle.json: checkpoints/%/config.json | $(VENV)/demo.stamp
	$(RUN)/bitdance-edge export checkpoints/$* -o bundles/$* --force

# Two processes share the tests; those that measure time follow alone, with the bundles that the others exported.
test: lint build/npm
	rm -rf build/shared && mkdir -p build/shared
	$(SHARING) $(RUN)/pytest -q -m "not serial" --numprocesses $(TEST_PROCESSES) --dist loadscope --no-loadscope-reorder \
		--max-worker-restart 0
	$(SHARING) $(RUN)/pytest -q -m serial
	rm -rf build/shared

# The tests of tests/cuda: onnxruntime-gpu over a CUDA that computes nothing, both set up in build/cuda.
test-cuda: setup
	@if $(RUN)/python tests/fake_cuda/set_up.py build/cuda; then \
		rm -f build/cuda/trace.txt; \
		FAKE_CUDA_TRACE=$(CURDIR)/build/cuda/trace.txt PYTHONPATH=$(CURDIR)/build/cuda/site \
			LD_LIBRARY_PATH=$(CURDIR)/build/cuda/lib $(RUN)/pytest -q tests/cuda; \
	else echo "test-cuda is skipped: the line above says what cannot be had"; fi

lint: setup build/types
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/pyright

docs: setup
	$(RUN)/sphinx-build --builder html --fail-on-warning --keep-going --fresh-env --quiet docs docs/_build
	@echo "docs/_build/index.html"

# Every page's commands and programs, as they stand there, each page in a folder of its own.
snippets: setup
	PATH=$(CURDIR)/$(RUN):$$PATH $(RUN)/python tests/docs/run_pages.py

lean: $(SHIPPED:%=dist/%.tar)
	@$(NEW_ENOUGH)
	for end in lowest ci; do \
		rm -rf build/lean && $(PYTHON) -m venv build/lean && \
		build/lean/bin/pip install --quiet --constraint constraints/$$end.txt '.[cpu,text,serve,completion]' && \
		build/lean/bin/python tests/lean_check.py $^ || exit 1; \
	done

lowest:
	@$(NEW_ENOUGH)
	rm -rf build/lowest && $(PYTHON) -m venv build/lowest
	build/lowest/bin/pip install --quiet --constraint constraints/lowest.txt torch
	build/lowest/bin/pip install --quiet --constraint constraints/lowest.txt '.[$(EXTRAS)]'
	build/lowest/bin/python tests/extras_check.py

release: $(VENV)/release.stamp $(SHIPPED:%=dist/%.tar)
	rm -f dist/*.whl dist/*.tar.gz
	$(RUN)/python -m build --outdir dist
	$(RUN)/python tests/docs/notes.py CHANGELOG.md > dist/NOTES.md
	cd dist && sha256sum *.whl *.tar.gz *.tar > SHA256SUMS
	@ls -l dist

walk: release
	$(PYTHON) tests/walk_check.py dist/*.whl dist/digits-4x.tar

.PRECIOUS: bundles/%/bundle.json
dist/%.tar: bundles/%/bundle.json
	mkdir -p dist
	$(RUN)/bitdance-edge pack bundles/$* --targets --force -o $@

setup: $(VENV)/dev.stamp

$(VENV)/bin/python:
	@$(NEW_ENOUGH)
	$(PYTHON) -m venv $(VENV)
	$(RUN)/pip install --quiet --upgrade pip

# torch first and alone: its exact version is the CPU build where an index offers one.
$(VENV)/demo.stamp: pyproject.toml constraints/ci.txt | $(VENV)/bin/python
	$(RUN)/pip install $(PINNED) torch
	$(EDITABLE) '.[cpu,export]'
	touch $@

$(VENV)/release.stamp: $(VENV)/demo.stamp
	$(RUN)/pip install $(PINNED) build
	touch $@

$(VENV)/dev.stamp: $(VENV)/demo.stamp
	$(EDITABLE) '.[dev]'
	touch $@

# OpenAI's client for Node, which a test drives; without npm, or offline, that test is skipped.
build/npm: Makefile
	rm -rf $@ && mkdir -p $@
	if command -v npm > /dev/null; then npm install --silent --no-audit --no-fund --prefix $@ openai@7.57.0 || true; fi

build/types: Makefile
	rm -rf $@ && mkdir -p $@/bitdance_edge
	ln -s $(CURDIR)/bitdance_edge/* $@/bitdance_edge/
	for room in $(ROOMS); do ln -s $(CURDIR)/$$room $@/bitdance_edge/$$room; done

clean:
	rm -rf $(VENV) build bundles demo dist docs/_build *.egg-info
