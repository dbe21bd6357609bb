"""Runs the file system of a container image as an orchestrator would, and tries what it serves.

usage: buildah inspect --type image NAME | try_image.py ROOT PHOTO [--gpu]

The process is number 1 of its own PID namespace, runs as the image's user, and sees a read-only root with an
empty /tmp. Both probes must answer, the photo must be classified, and SIGTERM must end it with status 0.

With --gpu, on a machine without one, it must also have said why it serves on the CPU, build an engine with the TensorRT-RTX
of the image, and bring NVIDIA's licence.
"""

import json
import os
import pathlib
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

START = 60
STOP = 40
BUILD = 300


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def get(url, data=None):
    try:
        with urllib.request.urlopen(url, data=data, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError as error:
        return 0, str(error)


def inside(root, user, environment, command):
    """The command in namespaces of its own for processes and mounts, in which the root is read-only."""
    setup = f"""
        mount --bind {shlex.quote(root)} {shlex.quote(root)}
        mount -t proc proc {shlex.quote(root)}/proc
        mount -t tmpfs tmpfs {shlex.quote(root)}/tmp
        mount -o remount,bind,ro {shlex.quote(root)}
        exec chroot --userspec={shlex.quote(user)} {shlex.quote(root)} {shlex.join(["env", "-i", *environment, *command])}
    """
    return ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-euc", setup]


def try_tensorrt(root, user, environment, program, log):
    """Checks what the image for GPUs has beside the others, as far as that works without one."""
    assert "the tensorrt engine can't start" in log and "no NVIDIA driver" in log, "it does not say why it is on the CPU"
    licences = [file for file in pathlib.Path(root, "usr/local/share/licenses/tensorrt-rtx").rglob("*") if file.is_file()]
    assert any("NVIDIA" in file.read_text(errors="replace") for file in licences), f"no licence of NVIDIA's in {licences}"
    command = [program, "build", "--json", "--sm", "86", "--engine-cache", "/tmp/engines"]
    built = subprocess.run(
        inside(root, user, environment, command), capture_output=True, text=True, timeout=BUILD
    )
    print("built:", built.stdout.strip(), built.stderr.strip())
    assert built.returncode == 0 and json.loads(built.stdout)["compute_capability"] == "8.6"


def main():
    root, photo = sys.argv[1:3]
    has_tensorrt = "--gpu" in sys.argv[3:]
    config = json.load(sys.stdin)["Docker"]["config"]
    user = config["User"]
    assert user and not user.startswith("0"), f"the image runs as {user!r}"
    grpc, http = free_port(), free_port()
    environment = config["Env"] + [
        f"RESNET18_GRPC=127.0.0.1:{grpc}",
        f"RESNET18_HTTP=127.0.0.1:{http}",
        "HOME=/tmp",
    ]
    command = [*config["Entrypoint"], "--rest"]
    server = subprocess.Popen(
        inside(root, user, environment, command), stderr=subprocess.PIPE, text=True
    )
    try:
        give_up = time.monotonic() + START
        while get(f"http://127.0.0.1:{http}/readyz")[0] != 200:
            if server.poll() is not None or time.monotonic() > give_up:
                server.kill()
                sys.exit(f"it did not become ready:\n{server.stderr.read()}")
            time.sleep(0.1)
        print("ready:", get(f"http://127.0.0.1:{http}/readyz"))
        alive = get(f"http://127.0.0.1:{http}/healthz")
        print("alive:", alive)
        assert alive[0] == 200

        with open(photo, "rb") as file:
            status, answer = get(f"http://127.0.0.1:{http}/v1/classify?top_k=1", file.read())
        print("classified:", status, answer)
        assert status == 200 and json.loads(answer)["classifications"][0]["label"] == "cat"

        # `unshare` waits for process 1, which is its only child.
        children = f"/proc/{server.pid}/task/{server.pid}/children"
        with open(children) as file:
            first = int(file.read().split()[0])
        with open(f"/proc/{first}/status") as file:
            fields = dict(line.split(":", 1) for line in file)
        assert fields["NSpid"].split()[-1] == "1", fields["NSpid"]
        assert fields["Uid"].split()[0] == user.split(":")[0], fields["Uid"]
        os.kill(first, signal.SIGTERM)
        _, log = server.communicate(timeout=STOP)
        print(log)
        assert server.returncode == 0, f"status {server.returncode}"
        assert "stopped" in log
        if has_tensorrt:
            try_tensorrt(root, user, environment, config["Entrypoint"][0], log)
    finally:
        server.kill()
    print("The image serves, as its user, read-only and as process 1, and ends at SIGTERM.")


main()
