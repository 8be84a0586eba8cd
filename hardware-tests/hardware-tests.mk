# The images on their machines, included by the Makefile. hardware-tests/README.md says how to test a real device.

.PHONY: hardware-tools hardware-test hardware-test-all hardware-test-target

# One guest at a time, and a hang shows where it hangs; boots alone take longer than the usual limit.
HARDWARE_PYTEST = $(PY) -m pytest -q -p no:xdist -o faulthandler_timeout=1800

hardware-tools:
	@packaging/setup.sh hardware

hardware-test: $(VENV)/.test $(CORE) hardware-tools ## boot the x64 and arm64 images in QEMU, and run the arm64 binary under qemu-user
	@$(HARDWARE_PYTEST) hardware-tests -m 'not long' $(ARGS)
	@$(PY) -m pytest -q -s -m slow tests/test_frozen.py -k 'black_box and arm64'

hardware-test-all: $(VENV)/.test $(CORE) hardware-tools ## the same with 50 power cuts, updates gone wrong, every CPU and memory size, and the Pi
	@$(HARDWARE_PYTEST) hardware-tests $(ARGS)
	@$(PY) -m pytest -q -s -m slow tests/test_frozen.py -k 'black_box and arm64'

hardware-test-target: $(VENV)/.test $(CORE) ## a real device: TARGET=192.168.1.20 KEY=~/.ssh/id_ed25519; the report is build/hardware-tests/report.md
	@$(HARDWARE_PYTEST) hardware-tests --target '$(TARGET)' --key-file '$(KEY)' $(ARGS)
