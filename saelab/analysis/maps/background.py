"""Maps that a process of its own makes, while the kernel answers: with progress, and cancelled at once.

The process is told what to make by a line of JSON and tells its progress and its end by such lines. It ends
with whoever started it, whose end closes the pipe that it reads, and its result is the file that is kept.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from saelab import errors
from saelab.analysis.maps import keeping
from saelab.analysis.maps.making import CHECKS
from saelab.arguments import checked, maybe, real
from saelab.errors import JobError, NotReady, StoreError

if TYPE_CHECKING:
    from saelab.analysis.maps.results import LatentMap
    from saelab.stores import FeatureStore

PROGRAM = (
    "import sys; sys.path[:] = {path!r}; import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); "
    "from saelab.analysis.maps.worker import main; main()"
)
"""Runs nothing of the caller's own, so a script needs no guard. It is not what an interrupt is meant for."""
SAID_BYTES = 2000
"""Of what a process that failed has written last."""


class MapProgress(NamedTuple):
    """How far a job is."""

    what: str
    """what is being done: "starting", "waiting" (for another process that makes this map), "profiles", the
    name of a layout, "neighbours", "clusters"; "done", "failed" or "cancelled" at the end"""
    share: float | None
    """of that, how much is done; None where it does not tell"""
    seconds: float
    """since the job began, or that it took"""


class MapJob:
    """A map in the making: `start_map` gives one.

    Args:
        store: Of the latents.
        options: by, method, seed and n_neighbors.
    """

    def __init__(self, store: FeatureStore, options: Mapping[str, Any]) -> None:
        self.options = dict(options)
        self._store = store
        self._lock = threading.RLock()
        self._heard: list[Callable[[MapJob], object]] = []
        self._ended = threading.Event()
        self._error: Exception | None = None
        self._found: LatentMap | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._said: tuple[str, float | None] = ("starting", None)
        self._thread = threading.Thread(target=self._run, name="saelab-map", daemon=True)
        self._began, self._took = time.monotonic(), 0.0

    @property
    def progress(self) -> MapProgress:
        """How far it is."""
        seconds = self._took if self.done else time.monotonic() - self._began
        return MapProgress(*self._said, seconds)

    @property
    def done(self) -> bool:
        """Whether it has ended, however it did."""
        return self._ended.is_set()

    @property
    def error(self) -> Exception | None:
        """What `result` raises; None of one that is at work or has made its map."""
        return self._error

    @checked(timeout=maybe(real(0)))
    def result(self, timeout: float | None = None) -> LatentMap:
        """The map.

        Args:
            timeout: Seconds to wait for it; None: until it is there.

        Raises:
            NotReady: It is not there by then.
            JobError: It was cancelled, or its process was lost.
            SaelabError: As `latent_map` raises.
        """
        if not self._ended.wait(timeout):
            what, share, seconds = self.progress
            message = (
                f"A map must be made before it is read. Got one that is at {what!r}"
                f"{'' if share is None else f', {share:.0%} of it'}, after {seconds:.0f} s. Wait for it: "
                "result()."
            )
            raise NotReady(message)
        if self._error is not None:
            raise self._error
        assert self._found is not None
        return self._found

    def cancel(self) -> None:
        """End it now, if it is at work. Nothing of it stays."""
        with self._lock:
            if self.done:
                return
            self._error = JobError(
                f"A map is read from a job that went to its end. Got one that was cancelled at "
                f"{self._said[0]!r}. Start it again: start_map."
            )
            if self._process is not None:
                self._process.kill()
        if threading.current_thread() is not self._thread:  # as in what observes it
            self._ended.wait()

    def observe(self, callback: Callable[[MapJob], object]) -> None:
        """Call a function with this job now, whenever it tells more, and at its end.

        Later it is called from a thread, so it must not wait; an error of it is not raised. In a notebook it
        may set a trait of a widget, which a kernel sends even while a cell runs.

        Args:
            callback: The function.
        """
        with self._lock:
            self._heard.append(callback)
        self._call(callback)

    def __repr__(self) -> str:
        what, share, seconds = self.progress
        told = "" if share is None else f" {share:.0%}"
        by, method = self.options["by"], self.options["method"]
        return f"MapJob(by {by}, {method}: {what}{told}, {seconds:.0f} s)"

    # ---- what the thread of a job does

    def _run(self) -> None:
        """Start the process, hear it, and see how it ended."""
        failure: Exception | None = None
        try:
            with tempfile.TemporaryFile() as errors_of:
                failure = self._hear(errors_of)
        except Exception as error:
            message = (
                f"A map's process must be one that can be started. Got {type(error).__name__}: {error}. Make "
                "the map here: latent_map."
            )
            failure = JobError(message)
        found = keeping.read(self._store, self.options) if failure is None and self._error is None else None
        keeping.sweep(self._store, self.options)
        if found is None and failure is None:
            failure = StoreError(
                "A map that is made in the background must be kept where it can be read. Got neither a place "
                f"beside the store in {self._store.folder} nor one in the user's cache. Set SAELAB_CACHE to "
                "a folder that can be written, or make the map here: latent_map."
            )
        with self._lock:
            cancelled = self._error is not None
            self._error = self._error or failure
            self._end("cancelled" if cancelled else "failed" if failure else "done", found)

    def _hear(self, errors_of: Any) -> Exception | None:
        """What the process says until its end. Returns what is to be raised, None where it made the map."""
        with self._lock:
            if self._error is not None:  # cancelled before it began
                return None
            self._process = process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM.format(path=sys.path)], stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=errors_of,
                creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
            )  # fmt: skip
        atexit.register(process.kill)
        assert process.stdin is not None
        assert process.stdout is not None
        failed: Exception | None = None
        with process.stdin, process.stdout:
            told = {
                "folder": str(self._store.folder.resolve()),
                "key": keeping.key(self._store, self.options),
                "options": self.options,
            }
            with contextlib.suppress(OSError):  # it has ended already, and is asked how
                process.stdin.write(json.dumps(told).encode() + b"\n")
                process.stdin.flush()
            for line in process.stdout:
                try:
                    said = json.loads(line)
                except ValueError:  # it was killed within a line
                    break
                if "error" in said:
                    failed = getattr(errors, said["error"])(said["message"])
                elif said["what"] != "done":  # which it is once the process has ended
                    with self._lock:
                        self._tell(said["what"], said["share"] or None)
            code = process.wait()
        atexit.unregister(process.kill)
        if code == 0 or failed is not None:
            return failed
        errors_of.seek(max(0, errors_of.seek(0, 2) - SAID_BYTES))
        words = errors_of.read().decode(errors="replace").strip()
        how = f"signal {-code}, as where memory runs out" if code < 0 else f"exit status {code}"
        message = (
            f"A map's process must live until the map is made. Got {how}, at {self._said[0]!r}"
            f"{f'; it said: {words}' if words else ''}. Free some memory, or make the map here: latent_map."
        )
        return JobError(message)

    def _tell(self, what: str, share: float | None) -> None:
        """Say what is being done. Under the lock."""
        self._said = what, share
        for callback in self._heard:
            self._call(callback)

    def _end(self, how: str, found: LatentMap | None) -> None:
        """It is over. Under the lock."""
        self._found, self._took = found, time.monotonic() - self._began
        self._ended.set()
        self._tell(how, 1.0 if found else None)

    def _call(self, callback: Callable[[MapJob], object]) -> None:
        with contextlib.suppress(Exception):  # of a view that was closed: the job goes on
            callback(self)


_JOBS: dict[tuple[str, str], MapJob] = {}
"""The last job of each map of a folder."""
_STARTING = threading.Lock()


@checked(**CHECKS)
def start_map(
    store: FeatureStore, by: str = "decoder", method: str = "umap", *, seed: int = 0, n_neighbors: int = 15
) -> MapJob:
    """Begin a map of all latents in a process of its own, and go on at once.

    What `latent_map` of the same arguments gives, and kept in the same place: a map that is kept is there at
    once, and one that is being made is not made twice, here or in another process. The process ends when it
    is cancelled or this one ends; what is half made is left nowhere.

    Args:
        store: Of the latents.
        by: "decoder", "cofiring" or "tokens".
        method: "pca", "umap" or "tsne".
        seed: Of whatever is drawn.
        n_neighbors: That UMAP looks at; half of t-SNE's perplexity.

    Returns:
        The job.

    Raises:
        ConfigError: An option is none of these.
    """
    options = {"by": by, "method": method, "seed": seed, "n_neighbors": n_neighbors}
    key = str(store.folder.resolve()), keeping.key(store, options)
    with _STARTING:
        if (running := _JOBS.get(key)) is not None and not running.done:
            return running
        job = MapJob(store, options)
        if (found := keeping.read(store, options)) is not None:
            job._end("done", found)
            return job
        _JOBS[key] = job
        job._thread.start()
    return job


__all__ = ["MapJob", "MapProgress", "start_map"]
