"""Runs the file system of a container image as an orchestrator would, and tries what it serves.

usage: buildah inspect --type image NAME | try_image.py ROOT PHOTO

The process is number 1 of its own PID namespace, runs as the image's user, and sees a read-only root with an
empty /tmp. Both probes must answer, the photo must be classified, and SIGTERM must end it with status 0.
"""

import json
import os
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


def main():
    root, photo = sys.argv[1:]
    config = json.load(sys.stdin)["Docker"]["config"]
    user = config["User"]
    assert user and not user.startswith("0"), f"the image runs as {user!r}"
    grpc, http = free_port(), free_port()
    environment = config["Env"] + [
        f"RESNET18_GRPC=127.0.0.1:{grpc}",
        f"RESNET18_HTTP=127.0.0.1:{http}",
        "HOME=/tmp",
    ]
    command = ["env", "-i", *environment, *config["Entrypoint"], "--rest"]
    # A namespace of its own for processes and mounts, in which the root becomes read-only.
    setup = f"""
        mount --bind {shlex.quote(root)} {shlex.quote(root)}
        mount -t proc proc {shlex.quote(root)}/proc
        mount -t tmpfs tmpfs {shlex.quote(root)}/tmp
        mount -o remount,bind,ro {shlex.quote(root)}
        exec chroot --userspec={shlex.quote(user)} {shlex.quote(root)} {shlex.join(command)}
    """
    server = subprocess.Popen(
        ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-euc", setup],
        stderr=subprocess.PIPE,
        text=True,
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
    finally:
        server.kill()
    print("The image serves, as its user, read-only and as process 1, and ends at SIGTERM.")


main()
