# Everything happens in .venv and build/; `make clean` removes the second, `make distclean` both.
#   make PYTHON=python3.12        another interpreter (remakes .venv)
#   make TORCH=torch==2.11.0      another torch: any pip requirement
#   make TORCH_INDEX=...          where pip looks for torch (for instance an index with CPU-only builds)
#   make PIP_ARGS=...             anything else for pip install
# A choice of PYTHON or TORCH is remembered until another is made.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.NOTPARALLEL:  # pip and ninja are parallel inside; two pips in one .venv would collide

PYTHON ?= python3
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
PIP_ARGS ?=
PYTEST_ARGS ?=
BENCH_ARGS ?=
DEMO_ARGS ?=
GALLERY_ARGS ?=
VENV ?= .venv
export CXX

BIN := $(abspath $(VENV))/bin
PY := $(BIN)/python
CMAKE := $(BIN)/cmake
NINJA := $(BIN)/ninja
STAMPS := $(VENV)/.stamps
PIP := $(PY) -m pip --disable-pip-version-check install $(PIP_ARGS)
CXX_FILES = $(shell find csrc tests/cpp -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

.PHONY: help
help: ## this list
	@echo "vecbank: make TARGET [PYTHON=...] [TORCH=...]"
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  %-15s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

# ---- The environment ----------------------------------------------------------------------------------------------
# A key file holds a choice and is rewritten only when the choice changes, so what depends on it is redone only then.
# A default never overrules an earlier explicit choice: `make PYTHON=python3.12 demo` and then `make test` stay with 3.12.
explicit = $(strip $(foreach name,$1,$(filter command environment,$(firstword $(origin $(name))))))
changed = [[ ! -e $@ || ( -n '$(call explicit,$1)' && "$$(cat $@)" != '$2' ) ]]

.PHONY: FORCE
$(STAMPS)/python.key: FORCE
	@mkdir -p $(STAMPS)
	@if $(call changed,PYTHON,$(PYTHON)); then \
		bash scripts/check_prereqs.sh '$(PYTHON)' '$(CXX)'; echo '$(PYTHON)' >$@; fi
$(STAMPS)/torch.key: FORCE
	@if $(call changed,TORCH TORCH_INDEX,$(TORCH) $(TORCH_INDEX)); then echo '$(TORCH) $(TORCH_INDEX)' >$@; fi

.PHONY: prereqs
prereqs: ## is the compiler, Python, ... there? prints the apt lines that are missing
	@bash scripts/check_prereqs.sh '$(PYTHON)' '$(CXX)' && echo "vecbank: all prerequisites are there"

$(STAMPS)/venv: $(STAMPS)/python.key
	@echo "== making $(VENV) with $$(cat $<)"
	@if [[ -e $(VENV)/pyvenv.cfg && ! -e $(STAMPS)/ours ]]; then \
		echo "vecbank: $(VENV) is an environment that make did not create; it is left alone. Choose another VENV=." >&2; exit 1; fi
	@touch $(STAMPS)/ours
	find $(VENV) -mindepth 1 -maxdepth 1 ! -name .stamps -exec rm -rf {} +
	rm -f $(filter-out %.key %/ours,$(wildcard $(STAMPS)/*))
	"$$(cat $<)" -m venv $(VENV)
	@touch $@

$(STAMPS)/build: $(STAMPS)/venv requirements/build.txt
	$(PIP) -r requirements/build.txt
	@touch $@
$(STAMPS)/torch: $(STAMPS)/build $(STAMPS)/torch.key
	read -r spec index <$(STAMPS)/torch.key; $(PIP) $${index:+--index-url "$$index"} "$$spec"
	@touch $@
$(STAMPS)/demo $(STAMPS)/test $(STAMPS)/bench $(STAMPS)/embeddings: $(STAMPS)/%: $(STAMPS)/torch requirements/%.txt
	$(PIP) -r requirements/$*.txt
	@touch $@
$(STAMPS)/cuda: $(STAMPS)/build requirements/cuda.txt
	$(PIP) --no-deps -r requirements/cuda.txt
	@touch $@
$(STAMPS)/lint: $(STAMPS)/venv requirements/lint.txt
	$(PIP) -r requirements/lint.txt
	@touch $@

# ---- Building -----------------------------------------------------------------------------------------------------
.PHONY: build
build: $(STAMPS)/torch ## build into python/vecbank and install it editable; again after an edit: only what changed
	@$(PY) setup.py --quiet build_ext --inplace
	@if [[ ! $(STAMPS)/editable -nt pyproject.toml || ! $(STAMPS)/editable -nt $(STAMPS)/torch ]]; then \
		$(PIP) --no-build-isolation --no-deps --editable . && touch $(STAMPS)/editable; fi

.PHONY: demo
demo: $(STAMPS)/demo build ## the main job on real data; writes demo_report/
	$(PY) -m vecbank demo $(DEMO_ARGS)

.PHONY: gallery
gallery: $(STAMPS)/demo build ## published systems with their figures; writes gallery_report/index.html
	$(PY) -m vecbank gallery $(GALLERY_ARGS)

.PHONY: test
test: $(STAMPS)/test $(STAMPS)/demo build cpp-test ## the whole test suite, C++ and Python
	$(PY) -m pytest $(PYTEST_ARGS) tests

.PHONY: test-all
test-all: test ## the same, and every case of the nets over modules and verbs
	VECBANK_NET=full $(PY) -m pytest $(PYTEST_ARGS) tests/net tests/test_onnx.py tests/test_module_export.py

.PHONY: install-check
install-check: $(STAMPS)/torch.key ## every way to install, each in a fresh environment (some minutes; not part of CI)
	read -r spec index <$(STAMPS)/torch.key; bash scripts/install_check.sh '$(PYTHON)' "$$spec" $${index:+"$$index"}

.PHONY: bench
bench: $(STAMPS)/bench build ## speed and memory against the peers
	$(PY) bench/run.py $(BENCH_ARGS)

.PHONY: embeddings
embeddings: $(STAMPS)/bench $(STAMPS)/embeddings ## docstrings as embeddings, for more rows of the bench and an example (minutes)
	$(PY) -m bench.embeddings

# ---- The torch-free layer ---------------------------------------------------------------------------------------
cpp_configure = $(CMAKE) -S . -B $1 -G Ninja -DCMAKE_MAKE_PROGRAM=$(NINJA) -DVECBANK_TORCH=OFF -DVECBANK_CUDA=OFF \
	-DVECBANK_BUILD_TESTS=ON $2
# The tests in as many processes as there are cores; xargs fails if one of them does.
cpp_run = n=$$(nproc); n=$$((n < 8 ? n : 8)); seq 0 $$((n - 1)) | xargs -P $$n -I{} $1 --shard {}/$$n

.PHONY: cpp-test
cpp-test: $(STAMPS)/build ## C++ tests of the torch-free layer
	$(call cpp_configure,build/cpp)
	$(NINJA) -C build/cpp
	$(call cpp_run,build/cpp/vecbank_cpp_tests)

.PHONY: sanitize
sanitize: $(STAMPS)/build ## the same under AddressSanitizer and UBSan
	$(call cpp_configure,build/sanitize,-DVECBANK_SANITIZE=ON)
	$(NINJA) -C build/sanitize
	ASAN_OPTIONS=detect_leaks=1:strict_string_checks=1; UBSAN_OPTIONS=print_stacktrace=1; \
		export ASAN_OPTIONS UBSAN_OPTIONS; $(call cpp_run,build/sanitize/vecbank_cpp_tests)

AARCH64_CXX ?= aarch64-linux-gnu-g++
.PHONY: aarch64-check
aarch64-check: $(STAMPS)/build ## C++ tests cross-compiled for aarch64, run under qemu
	@command -v $(AARCH64_CXX) >/dev/null || \
		{ echo "vecbank: no $(AARCH64_CXX)  ->  sudo apt-get install g++-aarch64-linux-gnu" >&2; exit 1; }
	@command -v qemu-aarch64 >/dev/null || \
		{ echo "vecbank: no qemu-aarch64  ->  sudo apt-get install qemu-user" >&2; exit 1; }
	$(call cpp_configure,build/aarch64,-DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
		-DCMAKE_CXX_COMPILER=$(AARCH64_CXX) -DCMAKE_EXE_LINKER_FLAGS=-static)
	$(NINJA) -C build/aarch64
	qemu-aarch64 build/aarch64/vecbank_cpp_tests

.PHONY: cuda-check
cuda-check: $(STAMPS)/cuda ## compile every CUDA file, if nvcc is there (no GPU needed)
	@bash scripts/cuda_check.sh $(CMAKE) $(NINJA) $(PY)

GPU_PYTHON ?= python3.12
.PHONY: gpu-bundle
gpu-bundle: $(STAMPS)/torch $(STAMPS)/cuda ## for a machine with a GPU and no network: all it needs, in build/gpu_bundle
	$(PY) scripts/gpu_bundle.py --python '$(GPU_PYTHON)' --cmake $(CMAKE) --ninja $(NINJA)

# ---- Style --------------------------------------------------------------------------------------------------------
.PHONY: lint
lint: $(STAMPS)/lint $(STAMPS)/test ## clang-format, ruff, mypy
	@failed=0; check() { echo "== $${1##*/}"; "$$@" || failed=1; }; \
	check $(BIN)/clang-format --dry-run -Werror $(CXX_FILES); \
	check $(BIN)/ruff check .; \
	check $(BIN)/ruff format --check .; \
	check $(BIN)/mypy; \
	exit $$failed

.PHONY: format
format: $(STAMPS)/lint ## let clang-format and ruff rewrite what lint would complain about
	$(BIN)/clang-format -i $(CXX_FILES)
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

.PHONY: clean distclean
clean: ## remove what was built
	rm -rf build dist python/vecbank/_C*.so python/*.egg-info demo_report gallery_report .pytest_cache .mypy_cache .ruff_cache .hypothesis
distclean: clean ## and .venv too
	rm -rf $(VENV)
