"""Kernels of Jupyter that need not import torch anew: forks of one process that has.

`offered()` makes a kernel named "forked" known to this process and to those that it starts. What a kernel of
one's own imports by itself is tried in the tour and where the package is tried without its checkout.

    python kernels.py serve SOCKET                    forks a kernel for each that asks, until its input ends
    python -S kernels.py ask SOCKET CONNECTION_FILE   stands in for a fork: passes signals on, ends with it
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from functools import cache
from pathlib import Path

NAME = "forked"


def name() -> str:
    """That of the kernel which notebooks of the tests ask for."""
    return NAME if offered.cache_info().currsize else "python3"


@cache
def offered() -> subprocess.Popen:
    """The server, started at the first call. It lives as long as this process, or until `ended`."""
    folder = Path(tempfile.mkdtemp(prefix="saelab-kernels-"))
    address, spec = str(folder / "socket"), folder / "kernels" / NAME / "kernel.json"
    spec.parent.mkdir(parents=True)
    ask = [sys.executable, "-S", __file__, "ask", address, "{connection_file}"]
    spec.write_text(json.dumps({"argv": ask, "display_name": "Forked", "language": "python"}))
    before = os.environ.get("JUPYTER_PATH")
    os.environ["JUPYTER_PATH"] = os.pathsep.join(filter(None, (str(folder), before)))
    # its input ends when this process does, however that comes
    return subprocess.Popen([sys.executable, __file__, "serve", address], stdin=subprocess.PIPE)


def ended() -> None:
    """End it where it was started."""
    if offered.cache_info().currsize:
        server = offered()
        server.stdin.close()
        server.wait(20)
        shutil.rmtree(Path(server.args[-1]).parent)


def serve(address: str) -> None:
    import select

    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address + ".new")
    listener.listen()

    import forks_loaded  # noqa: F401
    import ipykernel.ipkernel
    import ipykernel.kernelapp  # noqa: F401

    Path(address + ".new").rename(address)  # whoever asks earlier waits for it
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [], 1)
        if sys.stdin in ready:
            return
        if ready:
            asked, _ = listener.accept()
            if not os.fork():
                listener.close()
                _be_a_kernel(asked)
            asked.close()
        while _reaped():
            pass


def _reaped() -> int:
    try:
        return os.waitpid(-1, os.WNOHANG)[0]
    except ChildProcessError:
        return 0


def _be_a_kernel(asked: socket.socket) -> None:
    from ipykernel.kernelapp import IPKernelApp

    data, files, _, _ = socket.recv_fds(asked, 1_000_000, 2)
    given = json.loads(data)
    for number, file in zip((1, 2), files, strict=True):
        os.dup2(file, number)
        os.close(file)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.clear()
    os.environ.update(given["environment"])
    os.chdir(given["folder"])
    sys.path[:] = ["", *filter(None, sys.path[1:])]  # not the folder of the tests
    asked.sendall(str(os.getpid()).encode())
    threading.Thread(target=_end_with, args=(asked,), daemon=True).start()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["ipykernel_launcher", "-f", given["file"]]
    try:
        IPKernelApp.launch_instance()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _end_with(asked: socket.socket) -> None:
    """Whoever kills a kernel kills what stands in for it."""
    asked.recv(1)
    os._exit(1)


def ask(address: str, file: str) -> None:
    import time

    for _ in range(1_200):
        if Path(address).exists():
            break
        time.sleep(0.05)
    server = socket.socket(socket.AF_UNIX)
    server.connect(address)
    given = {"file": file, "folder": str(Path.cwd()), "environment": dict(os.environ)}
    socket.send_fds(server, [json.dumps(given).encode()], [1, 2])
    kernel = int(server.recv(20))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: os.kill(kernel, number))
    server.recv(1)


if __name__ == "__main__":
    {"serve": serve, "ask": ask}[sys.argv[1]](*sys.argv[2:])
