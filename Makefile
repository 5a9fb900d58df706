# droid-tune on a machine that has Python 3.11 or newer and nothing else set up. GNU make 3.81 (that of macOS) is enough.
#
#   make demo      install into .venv what is missing, then watch the embedded model learn
#   make test      install with the test tools, then run the tests; PYTEST_ARGS="-k plot -x" narrows them
#   make install   install only
#   make lint      ruff, mypy and the import contracts
#   make blas      Linux: a fast matrix library (part of every install, where it may be installed)
#   make clean     remove .venv, caches and build results
#
# BACKEND=cuda (or cuda12) on Linux with an NVIDIA card; another backend rebuilds .venv, because two cannot share one.
# PYTHON=/path/to/python3.12 chooses the interpreter.

ifeq ($(shell uname -s),Darwin)
BACKEND ?= metal
else
BACKEND ?= cpu
endif

VENV := .venv
BIN := $(VENV)/bin
RUN_STAMP := $(VENV)/.installed-$(BACKEND)-run
TEST_STAMP := $(VENV)/.installed-$(BACKEND)-test
RUN_EXTRAS := $(filter-out metal,$(BACKEND))
comma := ,
TEST_EXTRAS := $(if $(RUN_EXTRAS),$(RUN_EXTRAS)$(comma))test
IS_SUPPORTED := import sys; sys.exit(sys.version_info < (3, 11))

# Bytecode in .venv and here (both ignored by git): without it every process would compile all that it imports, which doubles what
# a start takes. uv leaves the compiling to the first import.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test install lint blas clean

demo: $(RUN_STAMP)
	@$(BIN)/droid-tune demo

test: $(TEST_STAMP)
	@$(BIN)/python -m pytest -n auto --dist worksteal $(PYTEST_ARGS)

install: $(RUN_STAMP)
	@echo "droid-tune is installed: $(BIN)/droid-tune"

lint: $(TEST_STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(RUN_STAMP): pyproject.toml Makefile
	@$(call make_venv)
	@$(call install_package,$(RUN_EXTRAS))
	@$(MAKE) --no-print-directory blas
	@touch $@

# The test install holds everything of the plain one, so that a later `make demo` has nothing to do.
$(TEST_STAMP): pyproject.toml Makefile
	@$(call make_venv)
	@$(call install_package,$(TEST_EXTRAS))
	@$(MAKE) --no-print-directory blas
	@touch $@ $(RUN_STAMP)

# An empty .venv of a supported Python, unless a sound one of this backend is there.
define make_venv
	if [ -x $(BIN)/python ] && [ "$$(cat $(VENV)/.backend 2>/dev/null)" = "$(BACKEND)" ]; then exit 0; fi; \
	rm -rf $(VENV); \
	found=; \
	for candidate in $(or $(PYTHON),python3 python3.13 python3.12 python3.11); do \
		if "$$candidate" -c '$(IS_SUPPORTED)' >/dev/null 2>&1; then found=$$candidate; break; fi; \
	done; \
	if command -v uv >/dev/null 2>&1 && uv --version >/dev/null 2>&1; then \
		echo "Making $(VENV) with uv"; \
		uv venv --quiet --seed --python "$${found:->=3.11}" $(VENV) && echo $(BACKEND) >$(VENV)/.backend && exit 0; \
		echo "uv could not make $(VENV); trying Python's own venv"; rm -rf $(VENV); \
	fi; \
	if [ -z "$$found" ]; then \
		echo "droid-tune needs Python 3.11 or newer: none of $(or $(PYTHON),python3 python3.13 python3.12 python3.11) is one." >&2; \
		echo "Install one (macOS: brew install python@3.12; Debian: apt-get install python3 python3-venv), or name it: make PYTHON=/path/to/python3.12" >&2; \
		exit 1; \
	fi; \
	echo "Making $(VENV) with $$found"; \
	if ! "$$found" -m venv $(VENV); then \
		rm -rf $(VENV); \
		echo "$$found has no working venv module (Debian: apt-get install python3-venv)" >&2; \
		exit 1; \
	fi; \
	echo $(BACKEND) >$(VENV)/.backend
endef

# $(1): extras, such as cpu,test. uv is the faster of the two, but does not read pip's configuration (proxies, indexes).
define install_package
	target=".$(if $(1),[$(1)])"; \
	if command -v uv >/dev/null 2>&1 && uv --version >/dev/null 2>&1; then \
		echo "Installing droid-tune $$target into $(VENV) with uv (once; takes minutes on a slow line)"; \
		uv pip install --quiet --python $(BIN)/python --editable "$$target" && exit 0; \
		echo "uv could not install it; trying pip, which reads its own proxy and index settings"; \
	else \
		echo "Installing droid-tune $$target into $(VENV) with pip (once; takes minutes on a slow line)"; \
	fi; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable "$$target"
endef

# mlx's CPU wheel for Linux links a plain BLAS: training works with it, about 50 times slower than with OpenBLAS.
blas: export DEBIAN_FRONTEND := noninteractive
blas:
	@if [ "$(BACKEND)" != cpu ]; then exit 0; fi; \
	if $(BIN)/python -P -c 'import sys; from engine.blas import find_openblas; sys.exit(find_openblas() is None)'; then exit 0; fi; \
	if command -v apt-get >/dev/null 2>&1; then \
		if [ "$$(id -u)" = 0 ]; then as_root=; may=1; elif sudo -n true >/dev/null 2>&1; then as_root="sudo -n"; may=1; else may=; fi; \
		if [ -n "$$may" ]; then \
			echo "Installing OpenBLAS (libopenblas0-pthread)"; \
			install="$$as_root apt-get install -y -qq libopenblas0-pthread"; \
			if $$install >/dev/null 2>&1 || { $$as_root apt-get update -qq >/dev/null 2>&1 && $$install >/dev/null; }; then exit 0; fi; \
		fi; \
	fi; \
	echo "No OpenBLAS here: training works, about 50 times slower. Get it with: sudo apt-get install libopenblas0-pthread (Fedora: dnf install openblas-threads)"
