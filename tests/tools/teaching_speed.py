#!/usr/bin/env python3
"""Measures how fast a running server is taught, and what its other callers notice.

    tests/tools/teaching_speed.py [--program target/release/resnet18] [--dataset ../shared/dataset]
                                  [--trainings 5] [--rest 2] [--reject-unknown] [-- FLAGS OF SERVE...]

Teaches 200 photos of four classes, each with a photo in addition before every training, so that no
training is the same as the one before. Reported are

- the time from the first photo of all to the first right answer of the taught model,
- the time from Train to served, on an idle server and while 8 clients wait for answers of the first model
  (`resnet18 load --concurrency 8`),
- the latencies and the throughput of those clients: before, and with trainings one after the other, each
  followed by a rest of --rest seconds.

Only ratios from one run can be compared: the machine should have nothing else to do, and what it does
have to do is printed as its load. Nothing but Python's standard library is needed.
"""

import argparse
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

CLASSES = 4
PHOTOS = 50
CLIENTS = "8"


class Failed(Exception):
    """What the program printed when it did not do what was asked for."""


def run(program, *arguments):
    """Runs a subcommand with --json, and returns its result."""
    done = subprocess.run([program, *arguments, "--json"], capture_output=True, text=True)
    if done.returncode != 0:
        raise Failed(f"{' '.join(map(str, arguments))}: {done.stderr or done.stdout}")
    return json.loads(done.stdout.splitlines()[-1])


def address(log, patience=120):
    """The address of the gRPC port, from the log of a server."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        found = re.search(r"gRPC on (127\.0\.0\.1:\d+)", log.read_text(errors="replace"))
        if found:
            return f"http://{found[1]}"
        time.sleep(0.05)
    raise Failed(f"the server did not start:\n{log.read_text(errors='replace')}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--program", default="target/release/resnet18")
    parser.add_argument("--dataset", default="../shared/dataset", type=pathlib.Path)
    parser.add_argument("--trainings", default=5, type=int)
    parser.add_argument("--rest", default=2.0, type=float)
    parser.add_argument("--reject-unknown", action="store_true")
    parser.add_argument("serve", nargs="*", help="flags of serve, after --")
    args = parser.parse_args()
    program = str(pathlib.Path(args.program).resolve())

    classes = sorted(path for path in (args.dataset / "train").iterdir() if path.is_dir())[:CLASSES]
    photos = {one.name: sorted(one.glob("*.jpg"))[:PHOTOS] for one in classes}
    more = {one.name: iter(sorted((args.dataset / "val" / one.name).glob("*.jpg"))) for one in classes}
    probe = {one.name: sorted((args.dataset / "val" / one.name).glob("*.jpg"))[-1] for one in classes}
    requests = [str(path) for path in sorted((args.dataset / "val").glob("*/*.jpg"))[:16]]

    with tempfile.TemporaryDirectory() as folder:
        log = pathlib.Path(folder, "log")
        command = [program, "serve", "--teach", f"{folder}/taught", "--grpc", "127.0.0.1:0",
                   "--http", "127.0.0.1:0", *args.serve]
        with open(log, "wb") as output:
            server = subprocess.Popen(command, stdout=output, stderr=output)
        try:
            at = ["--server", address(log)]
            measure(program, at, photos, more, probe, requests, args)
        finally:
            server.terminate()
            server.wait(30)


def measure(program, at, photos, more, probe, requests, args):
    rejecting = ["--reject-unknown"] if args.reject_unknown else []

    def add(name, *files):
        return run(program, "teach", "speed", *at, "--class", name, *map(str, files))

    def train():
        """Adds a photo to each class, trains, and returns the seconds that the server says it took."""
        for name, rest in more.items():
            add(name, next(rest))
        begun = time.monotonic()
        trained = run(program, "teach", "speed", *at, "--train", *rejecting)["trained"]
        return time.monotonic() - begun, trained

    def load(seconds):
        report = run(program, "load", *at, "--concurrency", CLIENTS, "--duration", f"{seconds}s",
                     "--model", first, *requests)
        return report

    print(f"machine       {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the beginning")
    first = run(program, "models", *at)["models"][0]["name"]
    # It waits until the server has started.
    run(program, "classify", *at, "--timeout", "300s", requests[0])
    begun = time.monotonic()
    for name, files in photos.items():
        added = add(name, *files)["added"]
        if added["kept"] != len(files):
            raise Failed(f"not all photos were kept: {added}")
    adding = time.monotonic() - begun
    took, trained = train()
    answers = {name: run(program, "classify", *at, "--model", "speed", str(photo)) for name, photo in probe.items()}
    right = sum(answer["classifications"][0]["label"] == name for name, answer in answers.items())
    print(f"first answer  {time.monotonic() - begun:.1f} s after the first photo: {adding:.1f} s to add "
          f"{sum(map(len, photos.values()))}, {took:.1f} s to train; {right} of {len(probe)} right, "
          f"{trained['accuracy']:.1%} in cross-validation")

    idle = sorted(train()[0] for _ in range(max(args.trainings // 2, 1)))
    print(f"train, idle   {idle[len(idle) // 2]:.2f} s (slowest {idle[-1]:.2f} s)")

    load(3)
    before = load(10)
    loading = subprocess.Popen(
        [program, "load", *at, "--concurrency", CLIENTS, "--duration", "600s", "--model", first, "--json",
         *requests], stdout=subprocess.PIPE, text=True)
    time.sleep(2)
    busy = []
    for _ in range(args.trainings):
        busy.append(train()[0])
        time.sleep(args.rest)
    loading.send_signal(2)
    during = json.loads(loading.communicate(timeout=60)[0].splitlines()[-1])
    busy.sort()
    print(f"train, busy   {busy[len(busy) // 2]:.2f} s (slowest {busy[-1]:.2f} s) beside {CLIENTS} clients")
    for name in ("p50", "p95", "p99"):
        old, new = before["latency_ms"][name], during["latency_ms"][name]
        print(f"{name} of clients {old:.0f} ms before, {new:.0f} ms while trained: {new / old:.2f} times")
    print(f"answers/s     {before['goodput']:.1f} before, {during['goodput']:.1f} while trained")
    failed = {code: count for code, count in during["statuses"].items() if code != "OK"}
    print(f"failed        {failed or 'none'}")
    print(f"machine       load {os.getloadavg()[0]:.1f} at the end")


if __name__ == "__main__":
    try:
        main()
    except Failed as error:
        sys.exit(f"{error}")
