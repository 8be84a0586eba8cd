# Compilers and libraries for a target that the build chroot comes without, added to it beside those for the others.
# needs: chroot-build
#
# Fetched by a private apt that looks at the chroot's packages, unpacked in the chroot, which has no network.
root=$CACHE/any/chroot-build
apt=$OUT/apt
rm -rf "$apt"
mkdir -p "$apt"/{etc,state/lists/partial,cache/archives/partial}
packaging/chroot "$root" dpkg --add-architecture "$DEBIAN_ARCH"
cat >"$apt/apt.conf" <<CONF
APT::Architectures { $(sed 's/.*/"&";/' "$root/var/lib/dpkg/arch" | xargs -d '\n') };
Dir::State "$apt/state";
Dir::State::status "$root/var/lib/dpkg/status";
Dir::Cache "$apt/cache";
Dir::Etc::sourcelist "$apt/etc/sources.list";
Dir::Etc::sourceparts "-";
APT::Sandbox::User "root";
APT::Install-Recommends "false";
Acquire::Check-Valid-Until "false";
Acquire::Check-Date "false";
CONF
key=/usr/share/keyrings/debian-archive-keyring.gpg
echo "deb [signed-by=$key] $(packaging/mirror main) $USERLAND main" >"$apt/etc/sources.list"
export APT_CONFIG=$apt/apt.conf
apt-get update
apt-get install --yes --download-only "crossbuild-essential-$DEBIAN_ARCH" "libffi-dev:$DEBIAN_ARCH" "libzstd-dev:$DEBIAN_ARCH"
packaging/chroot "$root" env DEBIAN_FRONTEND=noninteractive bash -euc "dpkg --install /cache/$TARGET/apt/cache/archives/*.deb"
rm -rf "$apt"
