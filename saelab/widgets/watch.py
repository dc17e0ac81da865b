"""Runs of training, while they go on and afterwards."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from saelab.types import ConfigError, RangeError
from saelab.widgets import still_runs
from saelab.widgets.base import View
from saelab.widgets.questions import Ask
from saelab.widgets.wire import Packed, clean, rounded

EVERY = 0.5
"""Seconds between two looks."""
POINTS = 1600
"""Of all runs in one curve, at most, so that what is told stays short enough to be sent along."""


class Watched(Protocol):
    """A run as the view sees it."""

    label: str

    def told(self, points: int = ...) -> Any:
        """A `saelab.training.watched.Told`."""
        ...

    def stop(self) -> None:
        """End it after its step."""
        ...


class WatchView(View):
    """Curves of runs of training over the rows that they saw, and a button to stop each.

    A thread looks at the runs and tells the browser, also while a cell trains; it ends when all have
    finished. Call the view with the events of `saelab.train` to add the runs that it trains.

    Args:
        runs: What is watched.
        trained: Event of a run that begins -> what is watched of it; None where the view is no callback.
        shown: Shows the view where a run begins and no cell has shown it.
        options: See `View`.

    Raises:
        ConfigError: An option is unknown.
    """

    kind = "watch"
    follows = ()

    def __init__(
        self,
        runs: Sequence[Watched],
        *,
        trained: Callable[[Any], Any] | None = None,
        shown: Callable[[WatchView], object] = lambda view: None,
        **options: Any,
    ) -> None:
        self._runs = list(runs)
        self._trained, self._show, self._seen = trained, shown, False
        self._added: dict[int, Any] = {}
        self._finished = False
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        super().__init__(**options)
        self._look()

    def answers(self) -> Mapping[str, Callable[..., Packed]]:
        return {"runs": self._pack, "stop": self._stop}

    def first(self) -> Iterable[Ask]:
        return [Ask("runs")]

    def text(self) -> str:
        return still_runs.words(self._labelled())

    def html(self) -> str:
        return still_runs.runs(self._labelled())

    def close(self) -> None:
        self._closed.set()
        super().close()

    def __call__(self, event: Any) -> None:
        """Take an event of `saelab.train`.

        Raises:
            ConfigError: The view was made for no training.
        """
        if self._trained is None:
            message = "Only saelab.watch makes a view that is a callback. Got this one. Pass saelab.watch()."
            raise ConfigError(message)
        if event.name == "start":
            self._finished = False
            run = self._added[event.number] = self._trained(event)
            places = [i for i, each in enumerate(self._runs) if _place(each) == _place(run) is not None]
            self._runs[slice(*(places[0], places[0] + 1) if places else (len(self._runs), None))] = [run]
        run = self._added[event.number]
        if hasattr(run, "records"):  # in memory
            run.live = event.live
            if event.record is not None and event.record not in run.records[-1:]:
                run.records.append(event.record)
        if event.name == "start" and not self._seen:
            self._seen = True
            self._show(self)
        self._look()

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        self._seen = True
        return super()._repr_mimebundle_(**kwargs)

    def _labelled(self) -> list[tuple[str, Any]]:
        points = max(2, min(400, POINTS // max(len(self._runs), 1)))
        return [(clean(run.label), run.told(points)) for run in self._runs]

    def _pack(self) -> Packed:
        """Header `runs`, a dict of each; fields `{number}.{curve}`, float32 [2 n]: rows seen, and values."""
        runs, fields, labelled = [], {}, self._labelled()
        self._finished = all(told.state == "finished" for _, told in labelled)
        for number, (label, told) in enumerate(labelled):
            said = {
                name: getattr(told, name) for name in ("state", "step", "steps", "rows", "stoppable", "here")
            }
            times = {name: getattr(told, name) for name in ("seconds", "speed", "left")}
            times = {name: None if value is None else rounded(value) for name, value in times.items()}
            more = {
                "label": label,
                "name": clean(told.name),
                "thinned": told.thinned,
                "density": told.density,
            }
            runs.append({**said, **times, **more})
            for name, curve in told.curves.items():
                fields[f"{number}.{name}"] = np.array(curve, np.float32)
        return Packed({"runs": runs}, fields)

    def _stop(self, run: int) -> Packed:
        if type(run) is not int or not 0 <= run < len(self._runs):
            message = f"run must be a number of one that is watched. Got {run!r}. Pass 0 for the first."
            raise RangeError(message)
        told = self._runs[run].told()
        # a kernel may hear this late: when the browser has interrupted it, or when the run has ended
        if told.stoppable or told.state == "interrupted":
            self._runs[run].stop()
        return Packed({"run": run})

    def _look(self) -> None:
        """Have the thread go, where there is something to wait for."""
        if self._closed.is_set() or (self._thread and self._thread.is_alive()):
            return
        if not self._finished:
            self._thread = threading.Thread(target=self._watch, name="saelab-watch", daemon=True)
            self._thread.start()

    def _watch(self) -> None:
        """Tell the browser what is new, until all have finished."""
        while not self._finished and not self._closed.wait(EVERY):
            if not threading.main_thread().is_alive():
                return
            told = self._opening()
            if told != self.opening:
                self.opening = told


def _place(run: Any) -> Any:
    folder = getattr(run, "folder", None)
    return None if folder is None else folder.resolve()
