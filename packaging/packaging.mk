# Binaries and packages, included by the Makefile. docs/PACKAGING.md describes the results and the systems on which they were tested.
# Each target updates its steps (packaging/build, with a cache outside the tree) and copies the result to dist/.

.PHONY: binary binary-arm64 binary-armv7 test-frozen deb oci wheels release

binary: ## freeze blipmq for linux x64: dist/linux-x64/blipmq, one file that needs no Python (root, Debian)
	@packaging/build x64 onefile

binary-arm64: ## freeze blipmq for linux arm64, under qemu-user
	@packaging/build arm64 onefile

binary-armv7: ## freeze blipmq for linux armv7 (32-bit, hard float); not part of the release
	@packaging/build armv7 onefile

test-frozen: $(VENV)/.test $(CORE) ## run the suite's black-box tests against the linux x64 download (root, Debian)
	@$(PY) -m pytest -q -s -m slow tests/test_frozen.py -k 'black_box and x64' $(ARGS)

deb: ## Debian packages for amd64 and arm64
	@packaging/build x64 deb
	@packaging/build arm64 deb

oci: ## a container image for amd64 and arm64, made without a container engine
	@packaging/build x64 image
	@packaging/build arm64 image
	@packaging/oci/join

wheels: ## Python wheels for x86_64 and aarch64
	@packaging/build x64 manylinux
	@packaging/build arm64 manylinux

release: ## make all of these in dist/release, with hashes and, if BLIPMQ_SIGNING_KEY names a key, a signature
	@rm -rf dist/release
	@packaging/build x64 archive
	@packaging/build arm64 archive
	@$(MAKE) --silent --no-print-directory deb oci wheels
	@packaging/release/sign dist/release
	@ls -l dist/release
