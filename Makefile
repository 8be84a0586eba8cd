# All commands of the project. On a fresh Debian or Ubuntu machine `make run` and `make test` need only make:
# packaging/setup.sh installs missing system packages, .venv/ holds the rest, and each step runs only when its inputs have
# changed.

VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check
CORE := blipmq/_native.abi3.so
# The same as [build-system] in pyproject.toml (a house rule compares them): builds in place run outside pip.
BUILD_REQUIRES := "setuptools>=77" "cffi>=1.17"
# The compiler with which the interpreter builds extensions, found by the shell: `cc` may be another one with other run-time libraries.
BUILD_CC = $$($(CURDIR)/$(PY) -c 'import os, sysconfig; print(os.environ.get("CC") or sysconfig.get_config_var("CC"))')
FUZZ_SECONDS ?= 20
FUZZ_MINUTES ?= 60
FUZZ_JOBS ?= 2
ASAN := build/asan
COVERAGE := build/coverage
CORE_FILES = $(shell find native -name fuzz -prune -o -name "*.[ch]" -print)
C_FILES = $(shell find native bench tests packaging -name "*.[ch]")

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help js run test test-bare test-bare-ci test-bare-all test-armv7 test-windows-core check-macos-core slow crash conformance check format settings guard bench bench-quick bench-micro planted asan fuzz fuzz-long fuzz-keep coverage audit sbom core clean

help: ## show this list
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS='	' read -r name text; do printf '  make %-17s %s\n' "$$name" "$$text"; done

# ---- installation -----------------------------------------------------------------------------------------------------

$(PY):
	@packaging/setup.sh venv $(VENV)

# The installation does not build the core. The rule below builds it once, and shows the compiler's messages without those of pip.
INSTALL = $(PIP) $(BUILD_REQUIRES) && BLIPMQ_WITHOUT_CORE=1 $(PIP) --no-build-isolation --editable

$(VENV)/.run: pyproject.toml setup.py | $(PY)
	@echo "==> installing BlipMQ into $(VENV)"
	@$(INSTALL) .
	@touch $@

$(VENV)/.test: pyproject.toml setup.py | $(PY)
	@echo "==> installing BlipMQ and what its tests need into $(VENV)"
	@$(INSTALL) '.[test]'
	@touch $(VENV)/.run $@

$(VENV)/.dev: pyproject.toml setup.py | $(PY)
	@echo "==> installing BlipMQ, its tests' needs and the linters into $(VENV)"
	@$(INSTALL) '.[dev]'
	@touch $(VENV)/.run $(VENV)/.test $@

$(VENV)/.bench: pyproject.toml setup.py | $(PY)
	@echo "==> installing BlipMQ and what the charts need into $(VENV)"
	@$(INSTALL) '.[bench]'
	@touch $(VENV)/.run $@

# Both C modules. BLIPMQ_WITHOUT_TLS=1 leaves out blipmq/_tls, the one that needs OpenSSL.
$(CORE): setup.py native/build_native.py native/tls/build_tls.py $(CORE_FILES) | $(VENV)/.run
	@$(PY) native/generate_settings.py --check
	@[ "$(BLIPMQ_WITHOUT_TLS)" = 1 ] || CC="$(BUILD_CC)" packaging/setup.sh libssl
	@echo "==> building the core"
	@$(PY) setup.py --quiet build_ext --inplace
	@touch $@

core: $(CORE) ## build only the C modules: the core, and TLS

# ---- run, test, measure -----------------------------------------------------------------------------------------------

run: $(VENV)/.run $(CORE) ## start a broker in the foreground; CONFIG=file.toml to configure it
	@exec $(VENV)/bin/blipmq start $(if $(CONFIG),--config '$(CONFIG)')

# Without the right to install programs, tests that need none still run; the others fail and name the program.
TEST_PROGRAMS = packaging/setup.sh tests || echo "==> tests that call these programs will fail"

test: $(VENV)/.test $(CORE) ## run the test suite without slow tests; ARGS='-k name' to choose
	@$(TEST_PROGRAMS)
	@$(PY) -m pytest -q -n auto -m 'not slow' $(ARGS)

# The first steps of a new user, on systems with only git, make and certificates.
test-bare: ## `make run` to its first message and `make test` on bare Debian 12 and 13 (root, Debian)
	@packaging/bare bookworm run test
	@packaging/bare trixie run test

test-bare-ci: ## as `make test-bare`, but without the tests of the core and of the JavaScript client alone on Debian 13
	@packaging/bare bookworm run test
	@packaging/bare trixie run share

test-bare-all: ## `make test-bare` with the slow tests
	@packaging/bare bookworm run test slow
	@packaging/bare trixie run test slow

# The core supports 32-bit machines. This checks it in a minute or two.
test-armv7: ## compile the core without warnings for 32-bit ARM and run its C tests (under qemu-user)
	@packaging/setup.sh armv7
	@tests/native/foreign armv7

# The twins of the files that differ between systems: only their own compilers see them.
test-windows-core: $(VENV)/.run ## compile the core without warnings for Windows (x64) and run its C tests under Wine
	@packaging/setup.sh wine
	@PYTHON=$(CURDIR)/$(PY) packaging/zig version >/dev/null
	@tests/native/foreign windows-x64

check-macos-core: $(VENV)/.run ## compile the core without warnings for macOS (arm64 and x64); nothing is run
	@PYTHON=$(CURDIR)/$(PY) packaging/zig version >/dev/null
	@for target in aarch64-macos.11.0 x86_64-macos.11.0; do echo "==> $$target"; out=build/foreign/$$target; mkdir -p $$out; \
	printf '%s\n' $(filter-out native/tls/%,$(filter %.c,$(CORE_FILES))) | xargs -P $$(nproc) -I FILE sh -c \
	"packaging/zig cc -target $$target -std=gnu11 -Inative -Wall -Wextra -Werror -c -o $$out/\$$(basename FILE .c).o FILE" || exit 1; done

slow: $(VENV)/.test $(CORE) ## run the tests marked slow
	@$(TEST_PROGRAMS)
	@if $(PY) -m pytest -q --collect-only -m slow $(ARGS) >/dev/null; then $(PY) -m pytest -q -m slow $(ARGS); \
	elif [ $$? = 5 ]; then echo "no test is marked slow"; else $(PY) -m pytest -q --collect-only -m slow $(ARGS); fi

check: $(VENV)/.dev $(CORE) ## style and types: ruff, mypy, clang-format, compiler warnings, house rules
	@echo "==> ruff" && $(VENV)/bin/ruff check --quiet . && $(VENV)/bin/ruff format --quiet --check .
	@echo "==> mypy" && $(VENV)/bin/mypy --no-error-summary
	@echo "==> clang-format" && $(VENV)/bin/clang-format --dry-run -Werror $(C_FILES)
	@for cc in cc clang; do if command -v $$cc >/dev/null; then echo "==> $$cc -Wall -Wextra -Werror"; \
	for file in $(filter %.c,$(CORE_FILES)); do $$cc -std=gnu11 -Inative -O2 -Wall -Wextra -Werror -c -o /dev/null "$$file" || exit 1; done; fi; done
	@echo "==> house rules" && $(PY) -m pytest -q tests/test_house_rules.py tests/test_promises.py

format: $(VENV)/.dev ## format Python and C for `make check`
	@$(VENV)/bin/ruff check --quiet --fix-only --select I . && $(VENV)/bin/ruff format --quiet .
	@$(VENV)/bin/clang-format -i $(C_FILES)

# The suite on a copy of the tree whose core is built with AddressSanitizer and UndefinedBehaviorSanitizer. Brokers in separate
# processes write their findings to files, so a finding is not lost with the standard error. libubsan comes first because both
# run-time libraries of gcc define the function that sets the file. Left out are tests without a core, tests that build sanitized
# programs or run other programs (curl, Node), and test_crash, which preloads its own disk.
WITHOUT_CORE := test_house_rules.py test_promises.py test_docs.py test_native_leaves.py test_wal_programs.py test_crash.py test_bench.py \
	test_fuzz.py test_planted.py test_mqtt_codec.py test_mqtt_twins.py test_retained.py test_flight.py test_js_client.py test_left_out.py \
	test_conformance.py test_convert_mosquitto.py
asan: $(VENV)/.test ## run the test suite on a core built with ASan and UBSan
	@$(TEST_PROGRAMS)
	@echo "==> building the core with sanitizers in $(ASAN)"
	@mkdir -p $(ASAN)
	@rm -rf $(ASAN)/blipmq/*.py $(ASAN)/blipmq/*/ $(ASAN)/native $(ASAN)/tests $(ASAN)/report.*
	@tar -cf - --exclude=./build --exclude=./dist --exclude='./.*' --exclude='*.so' --exclude=__pycache__ . | tar -xf - -C $(ASAN)
	@cd $(ASAN) && BLIPMQ_SANITIZE=1 $(CURDIR)/$(PY) setup.py --quiet build_ext --inplace
	@cd $(ASAN) && export PYTHONPATH="$(CURDIR)/$(ASAN)" \
	LD_PRELOAD="$$($(BUILD_CC) -print-file-name=libubsan.so) $$($(BUILD_CC) -print-file-name=libasan.so)" \
	ASAN_OPTIONS="detect_leaks=0:verify_asan_link_order=0:log_path=$(CURDIR)/$(ASAN)/report" \
	UBSAN_OPTIONS="print_stacktrace=1:log_path=$(CURDIR)/$(ASAN)/report" && \
	$(CURDIR)/$(PY) -c 'import blipmq._native as m; assert m.__file__.startswith("$(CURDIR)/$(ASAN)"), m.__file__' && \
	$(CURDIR)/$(PY) -m pytest -q -n auto -m 'not slow' $(addprefix --ignore=tests/,$(WITHOUT_CORE)) $(ARGS) \
	|| { cat report.* 2>/dev/null; exit 1; }
	@for report in $(ASAN)/report.*; do if [ -e "$$report" ]; then cat "$$report"; exit 1; fi; done

settings: $(VENV)/.run ## write the files generated from the declarations of settings: native/api/settings.[ch], docs/CONFIGURATION.md, tables of docs/APPLIANCE.md
	@$(PY) native/generate_settings.py
	@$(PY) -m blipmq.config.settings > docs/CONFIGURATION.md
	@$(PY) -m blipmq.device.settings docs/APPLIANCE.md

bench: $(VENV)/.bench $(CORE) ## measure against other brokers and the relay; a table and a chart in bench/results/
	@$(PY) -m bench $(ARGS)

bench-quick: $(VENV)/.bench $(CORE) ## the key shapes in a minute or two
	@$(PY) -m bench --quick $(ARGS)

guard: $(VENV)/.run ## count the core's instructions per message and compare with bench/guard.json; ARGS=--record
	@packaging/setup.sh valgrind
	@$(PY) -m bench.guard $(ARGS)

bench-micro: $(VENV)/.run ## measure single operations of the core: timer wheel, pools, CRC, frames, routes
	@$(PY) -m bench.micro $(ARGS)

planted: $(VENV)/.test $(CORE) ## plant bugs into copies of the core's source, one at a time; the tests must find each
	@$(PY) -m pytest -q --durations=10 tests/test_planted.py tests/test_wal_programs.py -k "planted or plants or fits" $(ARGS)

crash: $(VENV)/.test $(CORE) ## test 1,000 kill -9s, 1,000 power cuts and a backlog of a million messages; ARGS='--cycles 100'
	@PYTHONPATH=tests $(PY) -m crash $(ARGS)

conformance: $(VENV)/.test $(CORE) ## run mosquitto's test scripts for MQTT brokers; ARGS='--broker mosquitto' tests mosquitto itself
	@packaging/setup.sh conformance
	@PYTHONPATH=tests $(PY) -m conformance $(ARGS)

fuzz: $(VENV)/.test $(CORE) ## fuzz every parser; FUZZ_SECONDS=20 for each target, ARGS='core py-http' to choose
	@packaging/setup.sh clang
	@PYTHONPATH=tests $(PY) -m fuzz --seconds $(FUZZ_SECONDS) --jobs $(FUZZ_JOBS) $(ARGS)

fuzz-long: $(VENV)/.test $(CORE) ## fuzz every parser for FUZZ_MINUTES=60 in total
	@packaging/setup.sh clang
	@PYTHONPATH=tests $(PY) -m fuzz --minutes $(FUZZ_MINUTES) --jobs $(FUZZ_JOBS) $(ARGS)

fuzz-keep: $(VENV)/.test $(CORE) ## store the smallest set of inputs with the coverage reached so far in tests/kept/fuzz
	@packaging/setup.sh clang
	@PYTHONPATH=tests $(PY) -m fuzz --keep $(ARGS)

# The suite and the C tests on a copy of the tree whose core is built by clang and counts the lines that run. A killed process
# writes no counts, so the crash tests are left out, and so are tests without a core.
WITHOUT_COUNTS := test_house_rules.py test_promises.py test_docs.py test_crash.py test_fuzz.py test_planted.py
coverage: $(VENV)/.test ## measure how much of the C core the tests run: a table, and build/coverage/html/index.html
	@packaging/setup.sh clang
	@packaging/setup.sh llvm
	@$(TEST_PROGRAMS)
	@rm -rf $(COVERAGE) && mkdir -p $(COVERAGE)/tree
	@tar -cf - --exclude=./build --exclude=./dist --exclude='./.*' --exclude='*.so' --exclude=__pycache__ . | tar -xf - -C $(COVERAGE)/tree
	@cd $(COVERAGE)/tree && export CC="clang -fprofile-instr-generate -fcoverage-mapping" PYTHONPATH="$(CURDIR)/$(COVERAGE)/tree" \
	LDSHARED="clang -shared -fprofile-instr-generate" LLVM_PROFILE_FILE="$(CURDIR)/$(COVERAGE)/profile-%8m.profraw" && \
	$(CURDIR)/$(PY) setup.py --quiet build_ext --inplace && \
	$(CURDIR)/$(PY) -m pytest -q -n auto -m 'not slow' --basetemp=$(CURDIR)/$(COVERAGE)/tmp \
	$(addprefix --ignore=tests/,$(WITHOUT_COUNTS)) $(ARGS); status=$$?; \
	cd $(CURDIR) && $(PY) tests/core_coverage.py $(COVERAGE) && exit $$status

# ---- clients ----------------------------------------------------------------------------------------------------------

js: | $(PY) ## make the package of the JavaScript client: dist/blipmq-VERSION.tgz, with types and a bundle
	@packaging/setup.sh node $(VENV)
	@rm -rf build/js && mkdir -p build/js dist && tar -cf - -C clients/js --exclude=./node_modules . | tar -xf - -C build/js
	@cd build/js && export PATH="$(CURDIR)/$(VENV)/lib/node/bin:$$PATH" && npm ci --silent --no-audit --no-fund && \
	npm pack --silent --pack-destination $(CURDIR)/dist

# ---- dependencies -------------------------------------------------------------------------------------------------------

audit: $(VENV)/.test ## list known vulnerabilities in the dependencies; status 2: no service answered
	@test -x build/audit/bin/pip-audit || { $(PY) -m venv build/audit && build/audit/bin/python -m pip install --quiet pip-audit; }
	@$(PY) packaging/audit.py build/audit/bin/pip-audit $(PY)

sbom: $(VENV)/.test ## list the dependencies and the contents of the binaries, as CycloneDX: dist/blipmq-VERSION.cdx.json
	@mkdir -p dist
	@version=$$(packaging/version) && $(PY) packaging/release/source_sbom.py \
	"$${BLIPMQ_BUILD_CACHE:-$$HOME/.cache/blipmq}" "$$version" "$$(packaging/epoch)" "dist/blipmq-$$version.cdx.json"

# ---- binaries, packages, images ------------------------------------------------------------------------------------------

-include packaging/packaging.mk
-include images/images.mk
-include hardware-tests/hardware-tests.mk

clean: ## remove the build results; .venv stays (delete it for a fresh start)
	@rm -rf build dist *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache blipmq/*.so
	@find blipmq tests bench native -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
