#!/bin/sh
# Runs Triton's own tools, unmodified, against a server with the bundled model. perf_analyzer: both of the
# model's names, 1 to 64 requests at once, `-x 1`, and some of it by REST; every level must have a throughput, and no request
# may fail. image_client.py and grpc_image_client.py: a photo of a cat, one by one and on a stream.
#
# usage: tests/tools/triton.sh PROGRAM [FOLDER]
#
# PROGRAM is the built `resnet18`; what is fetched is kept in FOLDER (.runtime/perf-analyzer).
# Needs python3 with pip; and where the system's C library is older
# than 2.38, as in Debian 12, apt-get and dpkg-deb for that of Debian 13, which is unpacked into FOLDER
# and installed nowhere. STEP=21 tries fewer levels of concurrency.
# The image clients are in no package: TRITON_EXAMPLES names the folder `src/python/examples` of Triton's
# client repository. They run on the tests' Python (.venv, or PYTHON) with tritonclient[all] and Pillow.
set -eu

program=$1
folder=${2:-.runtime/perf-analyzer}
libraries=$folder/debian13
analyzer=$folder/package/perf_analyzer/bin/perf_analyzer
python=${PYTHON:-python3}
photo=$(dirname "$0")/../data/photos/cat.jpg

skip() {
    echo "SKIPPED: Triton's tools: $1"
    exit 0
}

if [ ! -e "$analyzer" ]; then
    "$python" -m pip install --quiet --no-deps --only-binary=:all: --platform manylinux_2_38_x86_64 \
        --root-user-action=ignore --target "$folder/package" 'perf-analyzer==2.60.*' \
        || skip "the package can't be fetched"
fi
chmod +x "$analyzer"

# Its C library: the system's, or Debian 13's beside it.
loader=$libraries/root/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2
if "$analyzer" --version >/dev/null 2>&1; then
    run() { "$analyzer" "$@"; }
else
    if [ ! -e "$loader" ]; then
        command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null \
            || skip "this system's C library is too old, and there is no apt-get to fetch another"
        mirror=$(apt-get indextargets --format '$(REPO_URI)' | grep '/debian/$' | head -n 1)
        [ -n "$mirror" ] || skip "apt-get knows no mirror of Debian (apt-get update)"
        mkdir -p "$libraries/lists/partial" "$libraries/archives/partial" "$libraries/packages"
        libraries=$(cd "$libraries" && pwd)
        : > "$libraries/status"
        cat > "$libraries/trixie.sources" <<SOURCES
Types: deb
URIs: $mirror
Suites: trixie
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
SOURCES
        apt() {
            apt-get -qq -o "Dir::Etc::sourcelist=$libraries/trixie.sources" -o Dir::Etc::sourceparts=/nonexistent \
                -o "Dir::State=$libraries" -o "Dir::State::status=$libraries/status" -o "Dir::Cache=$libraries" \
                -o APT::Sandbox::User=root "$@"
        }
        apt update && (cd "$libraries/packages" && apt download libc6 libstdc++6 libgcc-s1 zlib1g libssl3t64) \
            || skip "the packages of Debian 13 can't be fetched"
        for package in "$libraries"/packages/*.deb; do
            dpkg-deb -x "$package" "$libraries/root"
        done
    fi
    run() { "$loader" --library-path "$(dirname "$loader")" "$analyzer" "$@"; }
fi

# A server whose queue holds 64 requests: perf_analyzer stops at the first one that is rejected.
work=$(mktemp -d)
"$program" serve --grpc 127.0.0.1:18901 --http 127.0.0.1:18902 --queue-capacity 256 >"$work/log" 2>&1 &
server=$!
trap 'kill $server 2>/dev/null; rm -rf "$work"' EXIT
for _ in $(seq 120); do
    grep -qs 'serving, loaded' "$work/log" && break
    sleep 0.5
done

# A photo in the form of the protocol: its length in 4 bytes, and the file.
"$python" - "$photo" > "$work/photo.json" <<'CODE'
import base64, json, struct, sys
file = open(sys.argv[1], "rb").read()
content = base64.b64encode(struct.pack("<I", len(file)) + file).decode()
print(json.dumps({"data": [{"images": {"b64": content}}]}))
CODE

measure() {
    name=$1
    shift
    rm -f "$work/figures.csv"
    # Windows of ten requests, however slow the machine is; whether one is like the one before says
    # nothing about the protocol.
    run -m "$name" -i "$protocol" -u "$address" --measurement-mode count_windows \
        --measurement-request-count 10 -s 999 -r 9 -f "$work/figures.csv" "$@" \
        > "$work/output" 2>&1 || { cat "$work/output"; exit 1; }
    "$python" - "$work/figures.csv" "$protocol $name $*" <<'CODE'
import csv, sys
rows = [row for row in csv.DictReader(open(sys.argv[1])) if row.get("Inferences/Second")]
rates = {int(row["Concurrency"]): float(row["Inferences/Second"]) for row in rows}
slow = {int(row["Concurrency"]): float(row["p99 latency"]) / 1000 for row in rows}
assert rates and all(rate > 0 for rate in rates.values()), rates
some = sorted(rates)[:: max(1, len(rates) // 4)] + [max(rates)]
print(sys.argv[2].split(" --input-data")[0], "levels:", len(rates), "|",
      ", ".join(f"{level} at once: {rates[level]:.1f}/s, p99 {slow[level]:.0f} ms" for level in dict.fromkeys(some)))
CODE
}

classify() {
    "${PYTHON:-.venv/bin/python}" "$@" -m resnet18-demo_tensor -u 127.0.0.1:18901 -c 2 "$photo" \
        > "$work/output" 2>&1 && grep -q ' = cat$' "$work/output" || { cat "$work/output"; exit 1; }
    tool=$(basename "$1")
    shift
    echo "$tool $*: $(grep ' = cat$' "$work/output" | head -n 1 | tr -s ' ')"
}

if [ -e "${TRITON_EXAMPLES:-}/grpc_image_client.py" ]; then
    for how in '-x 1' -a --streaming '-b 2'; do
        # Split on purpose: an option and its value.
        # shellcheck disable=SC2086
        classify "$TRITON_EXAMPLES/image_client.py" -i grpc $how
        # shellcheck disable=SC2086
        classify "$TRITON_EXAMPLES/grpc_image_client.py" $how
    done
else
    echo "SKIPPED: image_client.py and grpc_image_client.py: TRITON_EXAMPLES names no folder with them"
fi

protocol=grpc
address=127.0.0.1:18901
levels=1:64:${STEP:-1}
measure resnet18-demo_tensor -x 1
measure resnet18-demo_tensor --concurrency-range "$levels"
measure resnet18-demo --input-data "$work/photo.json" --concurrency-range "$levels"

protocol=http
address=127.0.0.1:18902
measure resnet18-demo_tensor --concurrency-range 1:16:5
measure resnet18-demo --input-data "$work/photo.json" --concurrency-range 1:16:5
