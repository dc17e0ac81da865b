"""A process that dies at a chosen moment, without a process: from then on nothing that it does reaches the
disk."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from saelab import files

CHANGES = ("replace", "rename", "unlink", "remove", "rmdir", "link", "mkdir")


class Killed(BaseException):
    """What no handler catches."""


def moments(work: Callable[[], Any], folder: Path) -> Iterator[int]:
    """Calls `work`, which begins anew each time, killing it before its first change of a name in a folder
    (not in those below it), its second, and so on; yields the number each time, until one call comes to its
    end."""
    number = 0
    while True:
        left = number
        with pytest.MonkeyPatch.context() as patch:

            def counted(real: Callable[..., Any]) -> Callable[..., Any]:
                def change(*args: Any, **how: Any) -> Any:
                    nonlocal left
                    here = any(isinstance(a, str | Path) and Path(a).parent == folder for a in args)
                    left -= here or left < 0
                    if left < 0:
                        raise Killed
                    return real(*args, **how)

                return change

            for name in CHANGES:
                patch.setattr(os, name, counted(getattr(os, name)))
            patch.setattr(files, "_exchange", counted(files._exchange))
            try:
                work()
            except Killed:
                died = True
            else:
                died = False
        yield number
        if not died:
            return
        number += 1
