PYTHON ?= python3
BIN := .venv/bin
# ninja compiles the files of the extension beside each other.
WITH_NINJA := PATH="$(CURDIR)/$(BIN):$$PATH"
PIP := $(WITH_NINJA) $(BIN)/python -m pip install --quiet --disable-pip-version-check \
	--constraint constraints.txt $(PIP_FLAGS)
# What compat and examples are compared and run with; two of them would bring another torchvision.
PEERS := lightly open_clip_torch pytorch-metric-learning tqdm dynamic-network-architectures \
	lightning lightning-utilities pytorch-lightning torchmetrics
# What the kernels are compared with on a GPU, where it installs.
GPU_PEERS := inf-cl memeff liger-kernel cut-cross-entropy siglip-kernel

.PHONY: demo test test-all fuzz sanitize gpu lint types docs package clean

demo: .venv/installed-train
	$(BIN)/spcl-fast demo --out demo

# Without the tests marked slow, so that they can be run after every change; two at a time.
test: .venv/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile $(PYTEST_FLAGS)

test-all: .venv/installed-dev
	$(BIN)/python -m pytest -m 'not packaging' $(PYTEST_FLAGS)

# Ten minutes of random batches against a dense formula; `make test` takes some seconds of it.
fuzz: .venv/installed-dev
	SPCL_FUZZ_SECONDS=600 $(BIN)/python -m pytest tests/fuzz $(PYTEST_FLAGS)

# The native ops with checks of memory and of undefined behaviour, in a build of their own.
sanitize: .venv/installed-dev
	$(WITH_NINJA) tests/native/sanitize $(BIN)/python

# On a machine with a CUDA device: the extension for it, the tests that need it, a few minutes of
# benchmarks into benchmarks/results, and their table.
gpu: .venv/installed-dev
	capability=$$($(BIN)/python -c 'import torch; \
		print("%d.%d" % torch.cuda.get_device_capability())') && \
	SPCL_BUILD=cuda TORCH_CUDA_ARCH_LIST=$$capability $(PIP) --no-build-isolation --editable .
	for peer in $(GPU_PEERS); do $(PIP) --no-deps $$peer || echo "without $$peer"; done
	$(BIN)/spcl-fast info
	$(BIN)/python -m pytest -m gpu -n 8 $(PYTEST_FLAGS)
	$(BIN)/python -m benchmarks --device cuda --quick

lint: .venv/installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: .venv/installed-dev
	$(BIN)/mypy

# The API reference, into build/docs; without network.
docs: .venv/installed-dev
	$(BIN)/python -m sphinx --quiet --fail-on-warning docs/api build/docs

package: .venv/installed-dev
	$(WITH_NINJA) $(BIN)/python -m pytest -m packaging tests/test_packaging.py

clean:
	rm -rf .venv build dist demo runs *.egg-info

# torch first: the extension is built against the one that will be used.
.venv/python: constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) torch numpy setuptools wheel ninja
	touch $@

.venv/installed-train: .venv/python pyproject.toml setup.py $(wildcard csrc/* csrc/*/*)
	$(PIP) --no-build-isolation --editable '.[train]'
	$(BIN)/spcl-fast info
	touch $@

# All at once: to install the package twice is to import torch and to resolve versions twice.
.venv/installed-dev: .venv/python pyproject.toml setup.py $(wildcard csrc/* csrc/*/*)
	$(PIP) --no-build-isolation --editable '.[train,dev,docs]'
	$(PIP) --no-deps $(PEERS)
	$(BIN)/spcl-fast info
	touch .venv/installed-train $@
