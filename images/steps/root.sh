# Debian, installed: what every image of this architecture has in common.
# needs:
# inputs: images/debian images/packages/root images/packages/root-x64 images/packages/root-arm64
# shared: PACKAGING_TARGET
packaging/emulation
# Documentation stays out, licences stay in.
DEBIAN_OPTIONS='--dpkgopt=path-exclude=/usr/share/doc/*
--dpkgopt=path-include=/usr/share/doc/*/copyright
--dpkgopt=path-exclude=/usr/share/man/*
--dpkgopt=path-exclude=/usr/share/info/*
--dpkgopt=path-exclude=/usr/share/locale/*
--dpkgopt=path-exclude=/usr/share/lintian/*' \
    images/debian essential "$DEBIAN_ARCH" "$OUT/root" images/packages/root "images/packages/root-$PACKAGING_TARGET"
