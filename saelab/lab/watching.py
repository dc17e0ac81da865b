"""Watch runs of training while they go on: `saelab.watch`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from saelab.files import path_of
from saelab.progress import in_notebook
from saelab.training import Run
from saelab.training.watched import Folder, Kept, runs_in
from saelab.types import ConfigError, short
from saelab.widgets import WatchView


def watch(runs: Run | str | Path | Sequence[Run | str | Path] = ()) -> WatchView:
    """A view of runs of training: loss, FVU, L0, dead latents, rows a second, how often latents fire.

    It goes on while they train, in this process or another one, and one may be stopped there: the run ends
    after its step and leaves its SAE and a checkpoint. Of a folder it reads the files, whoever writes them;
    of `saelab.train(..., callbacks=[saelab.watch()])` it shows itself when that begins, with no need of one.

    Args:
        runs: A Run; a folder that `saelab.train` was, is or will be given as `out`, also of several configs;
            or several of these, one over the other.

    Returns:
        The view; also a callback of `saelab.train`, which adds the runs that it trains.

    Raises:
        ConfigError: It is none of these.
        StoreError: A folder's name is no path.
    """
    given = [runs] if isinstance(runs, Run | str | Path) or not isinstance(runs, Sequence) else runs
    found: list[Folder | Kept] = []
    for number, run in enumerate(given):
        if isinstance(run, Run):
            on_disk = run.folder is not None and Folder(run.folder).told().step > 0
            kept = Folder(run.folder) if on_disk and run.folder else Kept.of(run, f"run {number}")
            found.append(kept)
        elif isinstance(run, str | Path):
            found += map(Folder, runs_in(path_of(run, "A run's folder")))
        else:
            message = (
                f"What is watched must be a Run or the folder of one. Got {short(run)}. Pass what "
                "saelab.train gave, or its out."
            )
            raise ConfigError(message)
    return WatchView(_labelled(found), trained=_trained, shown=_show)


def _labelled(found: list[Folder | Kept]) -> list[Folder | Kept]:
    """With names that differ: where folders are called alike, with those that they lie in."""
    names = [run.label for run in found]
    for run in found:
        if isinstance(run, Folder) and names.count(run.label) > 1:
            run.label = f"{run.folder.resolve().parent.name}/{run.label}"
    return found


def _trained(event: Any) -> Folder | Kept:
    """What is to be watched of a run that begins."""
    if event.live.folder is not None:
        return Folder(event.live.folder)
    return Kept(f"{event.number} {event.sae.config.recipe}")


def _show(view: WatchView) -> None:
    """Below the cell that trains, of a view that no cell has shown."""
    if in_notebook():
        from IPython.display import display

        display(view)


__all__ = ["watch"]
