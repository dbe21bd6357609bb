#!/bin/sh
# Prints the Cargo feature that this machine's NVIDIA card needs, for `make run`: `tensorrt` for
# TensorRT-RTX, `tensorrt-enterprise` for the data-centre TensorRT. Prints nothing where there is no
# card, or none that can be used; the reason goes to standard error, unless there is no driver.
#
# GPU=off looks for nothing; GPU=tensorrt and GPU=tensorrt-enterprise choose. Below GPU_ROOT, if it
# is set, are the files that are looked for: tests use that.
set -u
root=${GPU_ROOT:-}

say() { echo "$*" >&2; }

# Whether what building with TensorRT needs is there; says what is missing.
can_build() {
    packages=
    if [ -z "${LIBCLANG_PATH:-}" ]; then
        packages=libclang-dev
        for folder in "$root"/usr/lib/llvm*/lib "$root"/usr/lib/*-linux-gnu "$root"/usr/lib64 "$root"/usr/local/lib; do
            for file in "$folder"/libclang.so* "$folder"/libclang-*.so*; do
                [ -e "$file" ] && packages=
            done
        done
    fi
    command -v c++ >/dev/null || packages="$packages g++"
    [ -z "$packages" ] && return
    say "To use the GPU: apt-get install ${packages# }, then start again; or, to build nothing more," \
        "\`make onnxruntime-gpu\`, then start again. Going on with the CPU."
    return 1
}

choose() {
    if can_build; then echo "$1"; fi
}

case ${GPU:-auto} in
off) exit 0 ;;
tensorrt | tensorrt-enterprise)
    choose "$GPU"
    exit 0
    ;;
auto) ;;
*)
    say "GPU=$GPU is unknown: off, tensorrt, tensorrt-enterprise, or nothing for a choice by the card."
    exit 0
    ;;
esac

# In WSL, the driver's program is in a folder of its own, which need not be in PATH.
if smi=$(command -v nvidia-smi); then
    :
elif [ -x "$root/usr/lib/wsl/lib/nvidia-smi" ]; then
    smi=$root/usr/lib/wsl/lib/nvidia-smi
elif [ -e "$root/proc/driver/nvidia/version" ]; then
    say "There is an NVIDIA driver but no nvidia-smi to tell the card: going on with the CPU." \
        "\`make run GPU=tensorrt\` (GeForce, RTX, T4, L4) or GPU=tensorrt-enterprise (A100, H100) uses it."
    exit 0
else
    exit 0
fi

# A driver that hangs must not keep the server from starting.
limit=
if command -v timeout >/dev/null; then limit="timeout 20"; fi
if ! cards=$($limit "$smi" --query-gpu=compute_cap,name --format=csv,noheader 2>&1); then
    # Without a card or with a driver that does not run, its first line says so.
    say "The GPU is not used: nvidia-smi says: $(echo "$cards" | head -n 1)"
    exit 0
fi

# The first card, as the server's --device 0 does. Others are named if they need another feature.
first=
echo "$cards" | {
    while IFS=, read -r capability name; do
        case $capability in
        7.5 | 8.6 | 8.9 | 12.0 | 12.1) feature=tensorrt ;;
        8.* | 9.* | 1[0-9].*) feature=tensorrt-enterprise ;;
        *) feature= ;;
        esac
        if [ -z "$first" ]; then
            first=$feature
            if [ -z "$feature" ]; then
                say "The GPU is not used: TensorRT needs compute capability 7.5 or newer, and this is${name:- an unknown card} with $capability."
                exit 0
            fi
            say "GPU:$name with compute capability $capability, by the feature $feature. GPU=off goes without."
        elif [ "$feature" != "$first" ]; then
            say "Not used:$name with compute capability $capability, which the feature $first does not serve."
        fi
    done
    if [ -n "$first" ]; then choose "$first"; fi
}
