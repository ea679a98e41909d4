PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# A worker more than cores: some tests wait for timeouts, and others compute meanwhile.
WORKERS := $(shell n=$$(nproc 2>/dev/null || echo 2); echo $$(((n < 4 ? n : 4) + 1)))
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder
HOST_PACKAGES := openssh-server pdsh iproute2 ethtool slurm-wlm munge

.PHONY: demo test test-slow test-multinode lint docs clean

$(STAMP): setup.py pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	DS_BUILD_OPS=0 $(BIN)/python -m pip install --quiet -e .[dev]
	touch $@

demo: $(STAMP)    ## the whole job on scenes that are rendered here: at most 10 minutes on two CPU cores
	$(BIN)/python -m benchmarks.demo

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

test: $(STAMP) lint    ## every property that needs neither a GPU nor a network: at most 15 minutes on two CPU cores
	$(PYTEST) -m "not slow"

test-slow: $(STAMP)    ## the variants of what `test` has one of: every optimizer, every family of backbones, every stage
	$(PYTEST) -m slow

test-multinode: $(STAMP)    ## training over hosts, which are namespaces of this machine: root on Linux, else it is skipped
	-[ "$$(id -u)" != 0 ] || dpkg --status $(HOST_PACKAGES) >/dev/null 2>&1 || { apt-get update --quiet && \
		DEBIAN_FRONTEND=noninteractive apt-get install --quiet --yes --no-install-recommends $(HOST_PACKAGES); }
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/multinode $(SELECTION)

docs: $(STAMP)    ## docs/ as a site in site/: every link is followed, nothing of it comes from a network
	$(BIN)/python -m mkdocs build --strict --quiet

clean:
	rm -rf $(VENV) demo site
