# make demo   set up, then run the whole job on the embedded defaults
# make test   set up, then run the tests
# make drills  what takes longer: whole runs in odd places, every combination of signals, kills, hostile files
# make audit   asks for known weaknesses of the pinned versions; make sbom  lists what each image is made of
# A Linux machine without NVIDIA's driver takes PyTorch's CPU build where its index answers; another index, with CUDA's
# builds too:  make demo TORCH_INDEX=https://download.pytorch.org/whl/cu128
# make images TORCH=cpu IMAGE_TAG=1.0    container images, with docker, podman or buildah; see docs/images.md
PYTHON ?= python3.11
TORCH_INDEX ?=
CPU_INDEX ?= https://download.pytorch.org/whl/cpu
DEMO_DIR ?= demo
TEST_PROCESSES ?= 2
BIN := .venv/bin
ENGINE ?= $(firstword $(foreach name,docker podman buildah,$(if $(shell command -v $(name)),$(name))))
IMAGES ?= data trainer editor services
IMAGE_PREFIX ?= stabn-
IMAGE_TAG ?= latest
BASE_IMAGE ?=
TORCH ?= cuda
IMAGE_FLAGS ?=

.PHONY: setup demo test drills audit sbom test-cluster lint format compile golden images constraints clean

setup: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	@command -v "$(PYTHON)" >/dev/null || { echo "$(PYTHON) not found; name a Python 3.11: make PYTHON=/path/to/python3.11"; exit 1; }
	@test -x $(BIN)/python || "$(PYTHON)" -m venv .venv
	@index="$(TORCH_INDEX)"; answers="import urllib.request; urllib.request.urlopen('$(CPU_INDEX)/torch/', timeout=10)"; \
	size="about two minutes, 1.8 GB"; \
	if test -z "$$index" && test "$$(uname -s)" = Linux; then \
	  if command -v nvidia-smi >/dev/null; then size="with CUDA: about seven minutes, 6.7 GB"; \
	  elif $(BIN)/python -c "$$answers" >/dev/null 2>&1; then index=$(CPU_INDEX); \
	  else \
	    echo "$(CPU_INDEX) does not answer, so PyTorch comes from pip's own index: with CUDA if that is PyPI (6.7 GB"; \
	    echo "in all, about seven minutes); TORCH_INDEX=URL names an index with its CPU build"; \
	  fi; \
	fi; \
	echo "Installing into .venv ($$size) ..."; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $$(grep -E '^torch==' constraints.txt) -c constraints.txt \
	  $${index:+--extra-index-url $$index}
	@PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[train,pipelines,demo,editor,dev]' -c constraints.txt
	@touch $@

demo: setup
	$(BIN)/stabn demo --dir "$(DEMO_DIR)"

# Each file's tests run in one of two processes; a single thread for each leaves both cores to them.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder

# One after another: each may take all cores.
drills: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/drills -rs $(DRILLS)

# pip-audit gets an environment of its own, as it brings other versions; it asks PyPI's or OSV's service, so it needs one.
audit:
	@test -x build/audit/bin/pip-audit || { "$(PYTHON)" -m venv build/audit && build/audit/bin/pip install --quiet pip-audit; }
	build/audit/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip $(AUDIT_FLAGS)

# Of each image that is here; of .venv without a container engine.
sbom:
	@mkdir -p build/sbom
	@if test -z "$(ENGINE)"; then $(BIN)/python images/sbom.py stabn > build/sbom/stabn.json; else \
	  for role in $(IMAGES); do \
	    $(ENGINE) run --rm --interactive --entrypoint /opt/stabn/bin/python $(IMAGE_PREFIX)$$role:$(IMAGE_TAG) - \
	      $(IMAGE_PREFIX)$$role < images/sbom.py > build/sbom/$$role.json || exit 1; \
	  done; fi
	@ls build/sbom/*.json

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

compile: setup
	$(BIN)/python -m pipelines compile --output build/pipelines

images:
	@test -n "$(ENGINE)" || { echo "none of docker, podman and buildah is installed; with another one: make images ENGINE=..."; exit 1; }
	@for role in $(IMAGES); do \
	  echo "Building $(IMAGE_PREFIX)$$role:$(IMAGE_TAG) with $(ENGINE) ..."; \
	  torch=; test $$role != trainer || torch="--build-arg TORCH=$(TORCH)"; \
	  $(ENGINE) build --file images/$$role.Dockerfile --tag $(IMAGE_PREFIX)$$role:$(IMAGE_TAG) $$torch \
	    $(if $(BASE_IMAGE),--build-arg BASE_IMAGE=$(BASE_IMAGE)) \
	    --build-arg REVISION=$$(git rev-parse HEAD 2>/dev/null || echo unknown) $(IMAGE_FLAGS) . || exit 1; \
	done

# The compiled pipelines as they are checked in; a test compares them.
golden: setup
	$(BIN)/python -m pipelines compile --output tests/golden --data-image stabn-data:1.0 --trainer-image stabn-trainer:1.0

# End to end on the cluster of the kubeconfig: skipped, with the reason, without one.
test-cluster: setup
	$(BIN)/python -m pytest tests/cluster -rs -s

constraints: setup
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu$$//' > constraints.partial
	(head -n 1 constraints.txt; cat constraints.partial) > constraints.new && mv constraints.new constraints.txt && rm constraints.partial

clean:
	rm -rf .venv "$(DEMO_DIR)" build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
