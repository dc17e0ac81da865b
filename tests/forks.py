"""Programs in processes of their own that need not import torch anew: forks of one process that has.

`Forked(code, *arguments)` is to a test what `Popen([sys.executable, "-c", code, *arguments])` is: a process
to wait for, to signal and to kill. Its imports are paid once, by the server that multiprocessing keeps.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
from functools import cache
from multiprocessing import forkserver
from pathlib import Path
from subprocess import TimeoutExpired

_CONTEXT = multiprocessing.get_context("forkserver")


@cache
def _server() -> None:
    """Start it, with everything imported; it lives as long as this process."""
    _CONTEXT.set_forkserver_preload(["forks_loaded"])
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))  # it does not take sys.path along
    forkserver.ensure_running()
    os.environ.pop("PYTHONPATH")
    if before is not None:
        os.environ["PYTHONPATH"] = before


class Forked:
    """A process that runs the code with these arguments as sys.argv[1:].

    environment: variables beside those of this process. Those that torch or saelab read when they are
    imported come too late.
    """

    def __init__(self, code: str, *arguments: object, **environment: str) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._printed = [Path(self._folder.name) / name for name in ("stdout", "stderr")]
        given = (code, list(map(str, arguments)), os.environ | environment, str(Path.cwd()))
        self._process = _CONTEXT.Process(target=_run, args=(*given, *map(str, self._printed)))
        _server()
        self._process.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise TimeoutExpired(["a forked program"], timeout)
        return self._process.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it printed and its errors, when it is over."""
        self.wait(timeout)
        printed, errors = (path.read_text() if path.exists() else "" for path in self._printed)
        return printed, errors

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run(code: str, *arguments: object, timeout: float = 600, **environment: str) -> str:
    """What the program prints. Fails where it ends in an error."""
    process = Forked(code, *arguments, **environment)
    printed, errors = process.communicate(timeout)
    assert process.returncode == 0, errors
    return printed


def _run(
    code: str, arguments: list[str], environment: dict[str, str], folder: str, out: str, errors: str
) -> None:
    for path, number in ((out, 1), (errors, 2)):
        file = os.open(path, os.O_CREAT | os.O_WRONLY)
        os.dup2(file, number)
        os.close(file)
    sys.stdout, sys.stderr = (os.fdopen(os.dup(number), "w", buffering=1) for number in (1, 2))
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = ["-c", *arguments]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    exec(compile(code, "<forked>", "exec"), {"__name__": "__main__"})
