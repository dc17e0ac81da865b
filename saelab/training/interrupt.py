"""Ctrl-C that waits for the end of a step."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

from saelab import dist


class Interrupt:
    """Within `held()`, Ctrl-C waits for the end of the block, so that no step is half done. A second one
    does not wait; `broken` tells that it left a block half done.

    Where ranks act as one, it waits anywhere, and one on any rank reaches all at the end of the same block.
    """

    def __init__(self) -> None:
        self.pending = self.holding = self.broken = False
        self.shared = dist.ranks.size > 1

    def __enter__(self) -> Interrupt:
        self.previous: Any = None
        if threading.current_thread() is threading.main_thread():
            self.previous = signal.getsignal(signal.SIGINT)
            if self.previous is not None:
                signal.signal(signal.SIGINT, self._arrived)
        return self

    def __exit__(self, *exception: object) -> None:
        if self.previous is not None:
            signal.signal(signal.SIGINT, self.previous)

    def _arrived(self, signum: int, frame: Any) -> None:
        if self.pending or not (self.holding or self.shared):
            raise KeyboardInterrupt
        self.pending = True

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        self.holding = True
        try:
            yield
        except BaseException:
            self.broken = True
            raise
        finally:
            self.holding = False
        if dist.ranks.count(self.pending):
            self.pending = False
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """For code that one rank runs alone: its KeyboardInterrupt waits until it can reach all."""
        try:
            yield
        except KeyboardInterrupt:
            if not self.shared:
                raise
            self.pending = True
