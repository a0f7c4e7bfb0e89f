#!/bin/sh
# Make a Debian machine ready to build and run ggml's Vulkan backend, in software where there is no GPU.
#
#     native/tools/vulkan-setup.sh DIR
#
# Installs the packages that are missing, for which it must be root, and prints CMake's options. ggml wants C++ headers
# that know VK_EXT_layer_settings, and Debian 12's do not: Debian 13's are then unpacked to DIR. Mesa's software driver
# of Debian 12 (22.3) takes references to buffers that are gone, which corrupts the heap (docs/devices.md): where there
# is no GPU, Debian 12 backports' is unpacked to DIR, and named by DIR/driver.json. They come by apt, which checks their
# signature, from the mirror that this machine is configured for; the system stays as it is.
set -eu

dir=$1
packages='glslc libvulkan-dev mesa-vulkan-drivers spirv-headers'

fail() {
    echo "vulkan-setup: $*" >&2
    exit 1
}

knows_layer_settings() {
    grep -qs VkLayerSettingsCreateInfoEXT "$1/vulkan/vulkan_core.h"
}

# Debian's packages where they can be had: elsewhere CMake says what it does not find.
if command -v dpkg-query > /dev/null; then
    missing=
    for package in $packages; do
        dpkg-query -W -f '${db:Status-Status}' "$package" 2> /dev/null | grep -qx installed || missing="$missing $package"
    done
    if [ -n "$missing" ]; then
        [ "$(id -u)" = 0 ] || fail "these packages are missing, install them as root: apt-get install$missing"
        export DEBIAN_FRONTEND=noninteractive
        # shellcheck disable=SC2086
        { apt-get update -q && apt-get install -q -y --no-install-recommends $missing; } >&2
    fi
fi

command -v dpkg-query > /dev/null || exit 0

needs_headers() {
    ! knows_layer_settings /usr/include && ! knows_layer_settings "$dir/usr/include"
}

needs_driver() {
    ! ls /dev/dri/renderD* /dev/nvidiactl > /dev/null 2>&1 && [ ! -f "$dir/driver.json" ] &&
        dpkg --compare-versions "$(dpkg-query -W -f '${Version}' mesa-vulkan-drivers)" lt 23.3
}

# unpack SUITE PACKAGE
unpack() {
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $1 main" > "$apt/sources.list"
    { apt-get update -q && (cd "$apt" && apt-get download -q "$2/$1"); } >&2 || fail "apt cannot get $2 of $1 from $mirror"
    dpkg-deb -x "$apt/$2"_*.deb "$dir"
}

if needs_headers || needs_driver; then
    # shellcheck source=/dev/null
    . /etc/os-release
    [ "$ID" = debian ] || fail "this system's Vulkan headers are older than 1.3.272, or its Mesa is older than 23.3"

    mirror=$(apt-get indextargets --format '$(REPO_URI)' \
        'Created-By: Packages' "Release: $VERSION_CODENAME" 'Component: main' | head -n 1)
    [ -n "$mirror" ] || fail "apt is not configured for a mirror of $VERSION_CODENAME: run apt-get update"

    apt=$(mktemp -d)
    trap 'rm -rf "$apt"' EXIT
    mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial" "$dir"
    cat > "$apt/apt.conf" << CONF
Dir::Etc::SourceList "$apt/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::Etc::Preferences "/dev/null";
Dir::Etc::PreferencesParts "/dev/null";
Dir::State::Lists "$apt/lists";
Dir::Cache "$apt/cache";
APT::Sandbox::User "";
CONF
    export APT_CONFIG="$apt/apt.conf"

    if needs_headers; then
        unpack trixie libvulkan-dev
        knows_layer_settings "$dir/usr/include" || fail "libvulkan-dev of trixie has no VK_EXT_layer_settings"
    fi
    if needs_driver; then
        unpack "$VERSION_CODENAME-backports" mesa-vulkan-drivers
        driver=$(find "$(cd "$dir" && pwd)/usr/lib" -name libvulkan_lvp.so)
        ldd "$driver" | grep -q 'not found' && fail "$driver misses libraries: $(ldd "$driver" | grep 'not found')"
        sed "s|libvulkan_lvp.so|$driver|" "$dir"/usr/share/vulkan/icd.d/lvp_icd*.json > "$dir/driver.json.new"
        mv "$dir/driver.json.new" "$dir/driver.json"
    fi
fi

knows_layer_settings /usr/include || echo "-DVulkan_INCLUDE_DIR=$(cd "$dir" && pwd)/usr/include"
