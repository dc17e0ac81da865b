"""Ctrl-C that waits for the end of a step."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any


class Interrupt:
    """Within `held()`, Ctrl-C waits for the end of the block, so that no step is half done. A second one
    does not wait; `broken` tells that it left a block half done."""

    def __init__(self) -> None:
        self.pending = self.holding = self.broken = False

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
        if not self.holding or self.pending:
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
        if self.pending:
            self.pending = False
            raise KeyboardInterrupt
