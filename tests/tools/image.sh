#!/bin/sh
# Builds a container image from its Dockerfile, unchanged and without a daemon or a registry, and tries it: as its
# user, with a read-only root and as process 1 it answers both probes, classifies a photo, and ends at SIGTERM. The image
# for GPUs must also say why it serves on the CPU, contain NVIDIA's licence, and build an engine with its TensorRT-RTX.
#
# usage: tests/tools/image.sh [DOCKERFILE [FOLDER]]
#
# DOCKERFILE is deploy/Dockerfile, unless it is named, or deploy/Dockerfile.gpu.
# The images that the Dockerfile starts from are made of Debian's packages, under the names that it uses; the one for Rust
# gets this machine's toolchain. They and buildah's storage are kept in FOLDER (.runtime/image, about 8 GB, with the image for
# GPUs about 20 GB).
# Needs root, buildah, debootstrap, curl, python3 and a Rust toolchain.
set -eu

dockerfile=${1:-deploy/Dockerfile}
folder=${2:-.runtime/image}
# The image of deploy/Dockerfile.gpu is resnet18-test-gpu.
variant=${dockerfile##*Dockerfile}
image=resnet18-test${variant:+-${variant#.}}
photo=tests/data/photos/cat.jpg

skip() {
    echo "SKIPPED: the container image of $dockerfile: $1"
    exit 0
}

[ "$(id -u)" = 0 ] || skip "it needs root"
for program in buildah debootstrap curl python3 rustc unshare; do
    command -v "$program" >/dev/null || skip "there is no $program"
done
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)

build() {
    buildah --root "$folder/storage" --runroot "$folder/run" --storage-driver vfs "$@"
}

# The images that the Dockerfile names after FROM.
base() {
    awk -v name="$1" '$1 == "FROM" && $2 ~ "^" name ":" { print $2 }' "$dockerfile" | head -n 1
}

# A root file system of Debian with these packages. This machine's authorities are trusted, as its package
# registries may stand behind one of its own.
system() {
    name=$1 packages=$2
    rm -rf "$folder/$name"
    debootstrap --variant=minbase ${packages:+--include="$packages"} bookworm "$folder/$name" \
        "$(apt-get indextargets --format '$(REPO_URI)' | grep '/debian/$' | head -n 1)" >"$folder/$name.log" \
        || { cat "$folder/$name.log"; exit 1; }
    rm -rf "$folder/$name"/var/cache/apt/archives/*.deb
}

keep() {
    name=$1 tag=$2
    container=$(build from scratch)
    build add --quiet "$container" "$folder/$name" / >/dev/null
    build commit --quiet --rm "$container" "$tag" >/dev/null
    rm -rf "${folder:?}/$name"
}

trust() {
    mkdir -p "$folder/$1/etc/ssl/certs"
    cp -L /etc/ssl/certs/ca-certificates.crt "$folder/$1/etc/ssl/certs/"
}

has() {
    build inspect --type image "$1" >/dev/null 2>&1
}

if ! has "$(base debian)"; then
    echo "Making $(base debian) ..."
    system debian ""
    keep debian "$(base debian)"
fi
if ! has "$(base python)"; then
    echo "Making $(base python) ..."
    system python ca-certificates,python3,python3-pip
    trust python
    keep python "$(base python)"
fi
if ! has "$(base rust)"; then
    echo "Making $(base rust) with $(rustc --version) ..."
    system rust ca-certificates,gcc,libc6-dev
    trust rust
    sysroot=$(rustc --print sysroot)
    cp -r "$sysroot/bin" "$sysroot/lib" "$sysroot/libexec" "$folder/rust/usr/local/" 2>/dev/null \
        || cp -r "$sysroot/bin" "$sysroot/lib" "$folder/rust/usr/local/"
    keep rust "$(base rust)"
fi

echo "Building $image from $dockerfile ..."
build bud --isolation chroot --pull=never --format docker --quiet -f "$dockerfile" -t "$image" .

container=$(build from --pull=never "$image")
root=$(build mount "$container")
end() {
    umount "$root/proc" 2>/dev/null || true
    build rm "$container" >/dev/null
}
trap end EXIT

echo "Its largest parts, in MB:"
du -xm --max-depth=3 "$root" | sort -rn | head -n 12
echo "Its size: $(du -xsm "$root" | cut -f1) MB, as a compressed archive $(tar -C "$root" -c . | gzip -1 | wc -c | awk '{ print int($1 / 1e6) }') MB"

build inspect --type image "$image" | python3 tests/tools/try_image.py "$root" "$photo" ${variant:+"--${variant#.}"}
