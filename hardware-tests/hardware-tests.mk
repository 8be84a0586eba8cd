# Tests of the images on QEMU machines, included by the Makefile. hardware-tests/README.md describes how to test a real device.

.PHONY: hardware-tools hardware-test hardware-test-all hardware-test-target

# One guest at a time (no xdist). After 1800 s faulthandler shows where a test hangs; a boot takes longer than the usual limit.
HARDWARE_PYTEST = $(PY) -m pytest -q -p no:xdist -o faulthandler_timeout=1800

hardware-tools:
	@packaging/setup.sh hardware

hardware-test: $(VENV)/.test $(CORE) hardware-tools ## boot the x64 and arm64 images in QEMU, and run the arm64 binary under qemu-user
	@$(HARDWARE_PYTEST) hardware-tests -m 'not long' $(ARGS)
	@$(PY) -m pytest -q -s -m slow tests/test_frozen.py -k 'black_box and arm64'

hardware-test-all: $(VENV)/.test $(CORE) hardware-tools ## the same tests with 50 power cuts, failed updates, every CPU and memory size, and the Pi
	@$(HARDWARE_PYTEST) hardware-tests $(ARGS)
	@$(PY) -m pytest -q -s -m slow tests/test_frozen.py -k 'black_box and arm64'

hardware-test-target: $(VENV)/.test $(CORE) ## test a real device: TARGET=192.168.1.20 KEY=~/.ssh/id_ed25519; the report is build/hardware-tests/report.md
	@$(HARDWARE_PYTEST) hardware-tests --target '$(TARGET)' --key-file '$(KEY)' $(ARGS)
