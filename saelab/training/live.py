"""A run while it trains: how far it is, how fast, how often its latents fire, and who may stop it.

`live.json` in the folder of a run that is not finished says so to any other process, beside the records in
`history.jsonl`; a file `stop` there ends the run after its step, as an interrupt does. Of a finished run the
same lies in `run.json`. Times are no part of the records, which are equal wherever a run is made.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saelab.files import Stamp

STAMP = Stamp("saelab-live", 1, remedy="Train again.")
NAME, STOP = "live.json", "stop"
EVERY = 1.0
"""Seconds between two writings, at least; of a wish to stop a tenth."""
CLOCK = 400
"""Times that are kept, at most."""
LOWEST, PER_DECADE = -7, 4
"""Of the histogram of densities: log10 of its first edge, and bins of a factor of ten."""


class Live:
    """What one run tells while it trains.

    Args:
        folder: Of the run; None to keep it in memory alone.
        name: Of the SAE, for people.
        d_sae: Its latents.
        steps: Of the whole run.
        batch_size: Rows of a step.
        step: Steps that are done already.
    """

    def __init__(
        self, folder: Path | None, name: str, d_sae: int, steps: int, batch_size: int, step: int = 0
    ) -> None:
        self.folder, self.state, self.step = folder, "training", step
        self._told = {"name": name, "d_sae": d_sae, "steps": steps, "batch_size": batch_size}
        self._began = self._written = self._asked = time.monotonic()
        self._date = time.time()
        self._clock: list[tuple[int, float]] = [(step, 0.0)]
        self._thin = 1
        self._density: dict[str, Any] | None = None
        self._stop = False
        if folder is not None:
            with contextlib.suppress(OSError):
                (folder / STOP).unlink(missing_ok=True)
            self._write()

    def stop(self) -> None:
        """Ask the run to end after its step. Of one that a notebook interrupted for whoever asked,
        since it heard nothing, the record says from then on that it was stopped.
        """
        self._stop = True
        if self.state == "interrupted":
            self.end("stopped")

    def stop_asked(self) -> bool:
        """Whether somebody did, here or by a file."""
        now = time.monotonic()
        if not self._stop and self.folder is not None and now - self._asked >= EVERY / 10:
            self._asked = now
            self._stop = (self.folder / STOP).exists()
        return self._stop

    def done(self, step: int) -> None:
        """So many steps are done."""
        self.step = step
        if time.monotonic() - self._written >= EVERY:
            self._write()

    def log(self, step: int, density: Tensor | None) -> None:
        """Keep the time of a record, and how often latents fire: [d_sae] shares of rows."""
        self.step = step
        number = len(self._clock)
        if number == 1 or step - self._clock[-1][0] >= self._thin:
            self._clock.append((step, time.monotonic() - self._began))
        if len(self._clock) > CLOCK:
            self._clock = self._clock[::2]
            self._thin = self._clock[2][0] - self._clock[1][0]
        if density is not None:
            self._density = binned(density)

    def end(self, state: str) -> None:
        """It is over: "finished", "stopped" (it was asked to), "interrupted" or "failed"."""
        self.state = state
        if self.folder is not None:
            with contextlib.suppress(OSError):
                (self.folder / STOP).unlink(missing_ok=True)
        self._write()

    def to_dict(self) -> dict[str, Any]:
        """JSON data."""
        return {
            **self._told,
            "state": self.state,
            "step": self.step,
            "seconds": round(time.monotonic() - self._began, 3),
            "date": round(self._date, 3),
            "clock": [[step, round(seconds, 3)] for step, seconds in self._clock],
            "density": self._density,
            "process": os.getpid(),
            "host": socket.gethostname(),
        }

    def _write(self) -> None:
        """Put it in place of the old file. A run does not fail for want of it, and waits for no disk."""
        if self.folder is None:
            return
        self._written = time.monotonic()
        temporary = self.folder / f".{NAME}.tmp"
        with contextlib.suppress(OSError):
            temporary.write_text(json.dumps({**STAMP.fields(), **self.to_dict()}), encoding="utf-8")
            temporary.replace(self.folder / NAME)


@torch.no_grad()
def binned(density: Tensor) -> dict[str, Any]:
    """A histogram of log10 of the shares of rows on which latents fire.

    Args:
        density: [d_sae].

    Returns:
        low, log10 of the first edge; per_decade, bins of a factor of ten; counts, from there to 1, each bin
        with its upper edge; below, latents under the first edge or silent.
    """
    bins = -LOWEST * PER_DECADE
    down = torch.floor(-torch.log10(density.double().clamp(1e-30, 1.0)) * PER_DECADE).long()
    counts = torch.bincount(down.clamp(max=bins), minlength=bins + 1).tolist()
    return {"low": LOWEST, "per_decade": PER_DECADE, "counts": counts[:bins][::-1], "below": counts[bins]}


__all__ = ["Live"]
