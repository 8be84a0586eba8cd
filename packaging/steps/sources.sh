# Fetch and unpack the sources of CPython, OpenSSL and zlib with Debian's security patches.
# needs:
# inputs:
# shared: yes
#
# Debian's packaging patches (install layout, multiarch) are for Debian's own Python and are left out.
mirror=$(packaging/mirror main)
security=$(packaging/mirror security)
apt=$OUT/apt
rm -rf "$apt" "$OUT/sources"
mkdir -p "$apt"/{etc/apt.conf.d,state/lists/partial,cache/archives/partial} "$OUT/sources"
touch "$apt/state/status"
cat >"$apt/apt.conf" <<CONF
Dir::State "$apt/state";
Dir::State::status "$apt/state/status";
Dir::Cache "$apt/cache";
Dir::Etc::sourcelist "$apt/etc/sources.list";
Dir::Etc::sourceparts "-";
APT::Sandbox::User "root";
CONF
key=/usr/share/keyrings/debian-archive-keyring.gpg
echo "deb-src [signed-by=$key] $mirror $SOURCE_RELEASE main" >"$apt/etc/sources.list"
[ -z "$security" ] || echo "deb-src [signed-by=$key] $security $SOURCE_RELEASE-security main" >>"$apt/etc/sources.list"
export APT_CONFIG=$apt/apt.conf
apt-get update

# The newest version whose files the mirror really has: a mirror's lists may run ahead of its pool.
fetch() {
    local name=$1 version
    mkdir -p "$apt/$name"
    for version in $(apt-cache showsrc --only-source "$name" | sed -n 's/^Version: //p' | sort -u | sort -rV); do
        if (cd "$apt/$name" && apt-get source --download-only "$name=$version"); then
            dpkg-source --skip-patches -x "$apt/$name"/*.dsc "$OUT/sources/$name"
            echo "$name $version" >>"$OUT/sources/versions"
            return
        fi
        rm -f "$apt/$name"/*
    done
    echo "packaging: no version of $name could be fetched from the mirror" >&2
    return 1
}

# Apply the patches of a quilt series, in its order: those that match ONLY and do not match NOT.
apply() {
    local dir=$OUT/sources/$1 only=$2 not=$3 name
    grep -E "$only" "$dir/debian/patches/series" | grep -vE "$not" | while read -r name; do
        echo "$name"
        patch --directory="$dir" --strip=1 --fuzz=1 --no-backup-if-mismatch --input="debian/patches/$name"
    done
}

for name in "$PYTHON_SOURCE" "$OPENSSL_SOURCE" "$ZLIB_SOURCE"; do fetch "$name"; done
apply "$PYTHON_SOURCE" '^(CVE-.*|ssl-.*|dict-use-after-free|traverse-managed-dicts)\.patch$' '^#'
apply "$OPENSSL_SOURCE" '\.patch$' '^(#|c_rehash|debian-targets|man-section|no-symbolic|pic|Configure-)'
