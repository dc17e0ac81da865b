"""Progress bars: in a terminal or a notebook one that moves, in a log file a line now and then."""

from __future__ import annotations

import sys
from typing import Any

from tqdm.std import tqdm

SECONDS = 30.0
"""Between two lines of a log file."""


def new_bar(**options: Any) -> tqdm:
    """A bar of tqdm's for where the errors go: a terminal, a notebook, or a file.

    Args:
        options: As tqdm takes them.
    """
    if in_notebook() or _is_terminal():
        from tqdm.auto import tqdm as moving

        return moving(**options)
    return _Lines(**options)


def in_notebook() -> bool:
    """Whether this process is a kernel, of Jupyter or another that IPython serves."""
    module = sys.modules.get("IPython")
    shell = module.get_ipython() if module is not None else None
    return getattr(shell, "kernel", None) is not None


def _is_terminal() -> bool:
    try:
        return sys.stderr.isatty()
    except (AttributeError, ValueError):  # there are none, or they are closed
        return False


_tqdm: Any = tqdm  # its stubs leave out what a kind of bar of one's own needs


class _Lines(_tqdm):
    """A line every SECONDS, and one at the end where `leave` is set."""

    def __init__(self, **options: Any) -> None:
        # asked at every update, since there may be few; none at the start, which says nothing yet
        super().__init__(**{"delay": 1e-9} | options | {"mininterval": SECONDS, "miniters": 1})

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        self.fp.write(f"{self if msg is None else msg}\n")
        self.fp.flush()
        return True

    def refresh(self, nolock: bool = False, lock_args: Any = None) -> bool:
        due = not self.disable and self._time() - self.last_print_t >= self.mininterval
        if due:
            self.display()
            self.last_print_t = self._time()
        return due

    def clear(self, nolock: bool = False) -> None:
        """There is nothing to clear."""

    def close(self) -> None:
        if not self.disable:
            self.disable = True
            self._decr_instances(self)
            if self.leave:
                self.display()
