#!/bin/sh
# Runs the plumbing test on this machine's NVIDIA GPU, from the unpacked bundle that `make gpu-plumbing-bundle` made.
# Needs the driver and nothing else. Ends with status 0 if every check has passed, or if there is no GPU, which it says.
set -u
folder=$(cd "$(dirname "$0")" && pwd)
command -v nvidia-smi >/dev/null && nvidia-smi --query-gpu=name,driver_version,compute_cap --format=csv
PLUMBING_KERNELS=$folder/kernels exec "$folder/gpu-plumbing" card
