# Appliance images and their updates, included by the Makefile. docs/APPLIANCE.md describes them and how they are made.
# All targets use one recipe, with the target as data: images/build TARGET STEP, with the driver and the cache of packaging/build.

IMAGES := generic-x64 generic-arm64 rpi-arm64
.PHONY: images $(addprefix image-,$(IMAGES)) $(addprefix bundle-,$(IMAGES))

image-generic-x64: ## make an image to flash for x86-64 machines with UEFI, in dist/images (root, Debian)
image-generic-arm64: ## make the image for arm64 machines with UEFI
image-rpi-arm64: ## make the image for Raspberry Pi 3 and 4
$(addprefix image-,$(IMAGES)): image-%:
	@images/build $* image
	@packaging/release/sign dist/images

bundle-generic-x64: ## make the signed update for devices with that image; also bundle-generic-arm64, bundle-rpi-arm64
$(addprefix bundle-,$(IMAGES)): bundle-%:
	@images/build $* bundle
	@packaging/release/sign dist/images

images: $(addprefix image-,$(IMAGES)) $(addprefix bundle-,$(IMAGES)) ## make all images and updates
