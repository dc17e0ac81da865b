"""Runs as they can be watched: in a folder that any process writes, or in memory."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from saelab.files import json_bytes, read_json_or_none, write_bytes
from saelab.training.live import NAME, STAMP, STOP, Live
from saelab.training.run import LINES, Record, Run, told
from saelab.types import FormatError, SaelabError

POINTS = 400
"""Of one curve, at most, unless asked for: of more records every n-th, and the last."""
SPEED = 5
"""Times between which the last speed is measured."""
CURVES = ("loss", "fvu", "l0", "dead", "held_out_fvu", "held_out_l0")
ENDED = ("finished", "stopped", "interrupted", "failed", "lost")


class Told(NamedTuple):
    """What is known of a run now."""

    name: str
    """of the SAE"""
    state: str
    """"waiting" (nothing there yet), "training", or how it ended: "finished", "stopped" (by whoever watched
    it), "interrupted", "failed", "lost" (its process has ended and said nothing)"""
    step: int
    """steps done"""
    steps: int
    """of the whole run"""
    rows: int
    """seen so far"""
    seconds: float
    """of this process, or the last one"""
    speed: float | None
    """rows a second of late; of a run that has ended, of the whole"""
    left: float | None
    """seconds to its end at that speed"""
    stoppable: bool
    """whether `stop` reaches it"""
    here: bool
    """whether this process trains it, so that what interrupts this one ends it"""
    thinned: int
    """every so many records are shown"""
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]]
    """(rows seen, value) float64 of each of CURVES that was measured, and of "speed" (rows a second since the
    point before)"""
    density: Mapping[str, Any] | None
    """see `live.binned`"""


NOTHING = Told("", "waiting", 0, 0, 0, 0.0, None, None, False, False, 1, {}, None)


class Folder:
    """A run's folder, whoever writes it.

    Args:
        folder: It need not be there yet.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.label = folder, folder.name or str(folder)
        self._read, self._records, self._file = 0, list[Record](), -1
        self._ended: tuple[Any, list[Record], Mapping[str, Any]] = (None, [], {})

    def told(self, points: int = POINTS) -> Told:
        """What is known of it now, in so many points of a curve."""
        with contextlib.suppress(OSError, SaelabError):
            return _told(*self._finished(), points)
        live = read_json_or_none(self.folder / NAME)
        try:
            STAMP.check(live or {}, self.folder)
        except FormatError:
            return NOTHING
        assert live is not None
        if live.get("state") == "training" and _lost(live):
            live = {**live, "state": "lost"}
        with contextlib.suppress(KeyError, TypeError, ValueError, IndexError):
            return _told(self._history(), live, points, reachable=True)
        return NOTHING

    def stop(self) -> None:
        """Ask whoever trains it to end after the step. Of a run that was interrupted for want of an ear it
        says that it was stopped.

        Raises:
            StoreError: The folder cannot be written.
        """
        live = read_json_or_none(self.folder / NAME) or {}
        if live.get("state") == "interrupted":
            write_bytes(self.folder / NAME, json_bytes({**live, "state": "stopped"}))
            return
        write_bytes(self.folder / STOP, json_bytes({"process": os.getpid(), "host": socket.gethostname()}))

    def _finished(self) -> tuple[list[Record], Mapping[str, Any]]:
        """Of a run that has finished, read once. Raises OSError where there is none."""
        status = (self.folder / "run.json").stat()
        written = (status.st_ino, status.st_mtime_ns, status.st_size)
        if self._ended[0] != written:
            records, _, _, live = told(self.folder)
            self._ended = (written, records, {"state": "finished", **(live or {})})
        return self._ended[1:]

    def _history(self) -> list[Record]:
        """The records so far; of a file that grows only what is new is read."""
        path = self.folder / LINES
        with contextlib.suppress(OSError), path.open("rb") as file:
            status = os.fstat(file.fileno())
            if status.st_ino != self._file or status.st_size < self._read:
                self._read, self._records, self._file = 0, [], status.st_ino
            file.seek(self._read)
            # what comes after the last line's end is being written
            lines = file.read().rpartition(b"\n")[0]
            new = [Record.from_dict(json.loads(line)) for line in lines.splitlines()]
            self._records += new
            self._read += len(lines) + bool(lines)
        return self._records


class Kept:
    """A run in memory: one that is trained, or the `Live` of one that trains here.

    Args:
        label: Its name in the view.
    """

    def __init__(self, label: str) -> None:
        self.label = label
        self.records: list[Record] = []
        self.live: Live | Mapping[str, Any] | None = None

    @classmethod
    def of(cls, run: Run, label: str) -> Kept:
        """A run that was trained."""
        made = cls(label)
        ended = run.provenance.get("ended", "finished" if run.finished else "interrupted")
        settings = {"steps": run.settings.steps, "batch_size": run.settings.batch_size}
        told = {
            "name": run.config.title,
            **settings,
            "state": ended,
            "seconds": run.provenance.get("seconds", 0),
        }
        step = run.history[-1].step if run.history else 0
        made.records, made.live = run.history, {"step": step, **told, **(run.live or {})}
        return made

    def told(self, points: int = POINTS) -> Told:
        """What is known of it now, in so many points of a curve."""
        if self.live is None:
            return NOTHING
        trains = isinstance(self.live, Live)
        live = self.live.to_dict() if isinstance(self.live, Live) else self.live
        return _told(list(self.records), live, points, reachable=trains)

    def stop(self) -> None:
        """Ask it to end after the step."""
        if isinstance(self.live, Live):
            self.live.stop()


def runs_in(folder: Path) -> list[Path]:
    """The folder itself, or where it holds those of several runs, each of these."""
    own = ("run.json", NAME, LINES, "checkpoints")
    if any((folder / name).exists() for name in own) or not folder.is_dir():
        return [folder]
    inner = [f for f in folder.iterdir() if f.is_dir() and any((f / name).exists() for name in own)]
    return sorted(inner, key=_number) or [folder]


def _number(folder: Path) -> tuple[int, str]:
    number = folder.name.partition("-")[0]
    return (int(number) if number.isdecimal() else 0, folder.name)


def _told(
    records: Sequence[Record], live: Mapping[str, Any], points: int, *, reachable: bool = False
) -> Told:
    batch, state = int(live.get("batch_size") or 0), str(live["state"])
    if not batch and records:
        batch = records[-1].rows // records[-1].step
    step = max(int(live.get("step", 0)), records[-1].step if records else 0)
    steps, seconds = int(live.get("steps") or step), float(live.get("seconds", 0.0))
    every = -(-len(records) // points) or 1
    shown = [*records[::every]]
    if records and shown[-1] is not records[-1]:
        shown.append(records[-1])
    curves = {}
    for name in CURVES:
        pairs = [(r.rows, getattr(r, name)) for r in shown if getattr(r, name) is not None]
        if pairs:
            curves[name] = tuple(np.array(pairs, np.float64).T)
    clock = np.array(
        [*live.get("clock", []), [step, seconds]] if state == "training" else live.get("clock", [])
    )
    speed = None
    if len(clock) > 1:
        done, took = np.diff(clock, axis=0).T
        at = took > 0
        curves["speed"] = (clock[1:, 0][at] * batch, (done * batch)[at] / took[at])
        since = clock[max(0, len(clock) - 1 - SPEED)] if state == "training" else clock[0]
        if clock[-1][1] > since[1]:
            speed = float((clock[-1][0] - since[0]) * batch / (clock[-1][1] - since[1]))
    return Told(
        name=str(live.get("name", "")),
        state=state,
        step=step,
        steps=steps,
        rows=step * batch,
        seconds=seconds,
        speed=speed,
        left=(steps - step) * batch / speed if speed and state == "training" else None,
        stoppable=reachable and state == "training",
        here=state == "training"
        and live.get("process") == os.getpid()
        and live.get("host") == socket.gethostname(),
        thinned=every,
        curves=curves,
        density=live.get("density"),
    )


def _lost(live: Mapping[str, Any]) -> bool:
    """Whether the process that trained is known to have ended."""
    number = live.get("process")
    if live.get("host") != socket.gethostname() or type(number) is not int or os.name == "nt":
        return False
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False


__all__ = ["CURVES", "ENDED", "Folder", "Kept", "Told", "runs_in"]
