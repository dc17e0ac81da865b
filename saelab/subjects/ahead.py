"""A model that is loaded once: by whoever asks for it first, or before that in the background."""

from __future__ import annotations

import contextlib
import importlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

LIBRARIES = ("torch", "transformers", "saelab.subjects.loading")
"""What takes most of the time to load a model, in an order in which none waits for one that comes later."""
MAX_BYTES = 4_000_000_000
"""Files of a model that is loaded without being asked for, at most."""


class Ahead:
    """What `load` gives, loaded once.

    Args:
        load: Makes it. What it raises is raised to whoever asks, and then it is tried anew.
    """

    def __init__(self, load: Callable[[], Any]) -> None:
        self._load = load
        self._found: list[Any] = []
        self._error: Exception | None = None
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def start(self, whole: bool) -> None:
        """Begin in a thread. A process that ends meanwhile waits for the import or the model that is under
        way, and for no more: an interpreter that ends within an import of torch does not end cleanly.

        Args:
            whole: Load it; else only what it takes to load it.
        """
        if self._thread is None and not self._found:
            self._thread = threading.Thread(target=self._run, args=(whole,), name="saelab-load", daemon=False)
            self._thread.start()

    def get(self) -> Any:
        """It, waiting for the thread where that is at work. Raises what `load` raises."""
        if self._thread is not None:
            self._thread.join()
        with self._lock:
            if self._error is not None:
                error, self._error = self._error, None
                raise error
            if not self._found:
                self._found.append(self._load())
            return self._found[0]

    def _run(self, whole: bool) -> None:
        for name in LIBRARIES:
            if _ends():
                return
            # one that is missing is told to whoever asks for the model
            with contextlib.suppress(Exception):
                importlib.import_module(name)
        if whole and not _ends():
            try:
                self._found.append(self._load())
            except Exception as error:
                self._error = error


def _ends() -> bool:
    """Whether the process is ending."""
    return not threading.main_thread().is_alive()


def is_small(place: str | Path) -> bool:
    """Whether a model lies in a folder here whose files have at most MAX_BYTES."""
    try:
        files = [path for path in Path(place).iterdir() if path.is_file()]
        return (Path(place) / "config.json").is_file() and sum(f.stat().st_size for f in files) <= MAX_BYTES
    except (OSError, ValueError):
        return False
