#!/bin/sh
# Make a Debian machine ready to build and run ggml's Vulkan backend, in software where there is no GPU.
#
#     native/tools/vulkan-setup.sh DIR
#
# Installs the packages that are missing, for which it must be root, and prints CMake's options. ggml wants C++ headers
# that know VK_EXT_layer_settings, and Debian 12's do not: Debian 13's are then unpacked to DIR. They come by apt, which
# checks their signature, from the mirror that this machine is configured for; the system stays Debian 12.
set -eu

dir=$1
suite=trixie
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

if knows_layer_settings /usr/include || ! command -v dpkg-query > /dev/null; then
    exit 0
fi

if ! knows_layer_settings "$dir/usr/include"; then
    # shellcheck source=/dev/null
    . /etc/os-release
    [ "$ID" = debian ] || fail "the Vulkan headers in /usr/include are older than 1.3.272; put newer ones into $dir/usr/include"

    mirror=$(apt-get indextargets --format '$(REPO_URI)' \
        'Created-By: Packages' "Release: $VERSION_CODENAME" 'Component: main' | head -n 1)
    [ -n "$mirror" ] || fail "apt is not configured for a mirror of $VERSION_CODENAME: run apt-get update"

    apt=$(mktemp -d)
    trap 'rm -rf "$apt"' EXIT
    mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial" "$dir"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" > "$apt/sources.list"
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

    { apt-get update -q && (cd "$apt" && apt-get download -q "libvulkan-dev/$suite"); } >&2 ||
        fail "apt cannot get libvulkan-dev of $suite from $mirror"
    dpkg-deb -x "$apt"/libvulkan-dev_*.deb "$dir"
    knows_layer_settings "$dir/usr/include" || fail "libvulkan-dev of $suite has no VK_EXT_layer_settings"
fi

echo "-DVulkan_INCLUDE_DIR=$(cd "$dir" && pwd)/usr/include"
