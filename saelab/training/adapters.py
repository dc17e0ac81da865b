"""Callbacks that pass a run's history on to TensorBoard and Weights & Biases. Both libraries are optional."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from saelab.config import to_dict
from saelab.errors import needing
from saelab.training.run import Record

if TYPE_CHECKING:
    from saelab.training.trainer import Event


class TensorBoard:
    """`callbacks=[TensorBoard("runs")]` writes every record as scalars, for `tensorboard --logdir runs`.

    A run that continues replaces what was logged after its checkpoint.

    Args:
        folder: That of all runs; each SAE writes into a folder inside, `0-topk`, `1-relu`, ...

    Raises:
        MissingDependency: TensorBoard is not installed.
    """

    def __init__(self, folder: str | Path) -> None:
        with needing("TensorBoard", "tensorboard", "tensorboard"):
            from torch.utils.tensorboard import SummaryWriter
        self.folder, self._open, self._writers = Path(folder), SummaryWriter, {}

    def __repr__(self) -> str:
        return f"TensorBoard({self.folder.name!r})"

    def __call__(self, event: Event) -> None:
        """Take an event of `saelab.train`."""
        if event.name == "start":
            purge = event.step + 1 if event.step else None
            self._writers[event.number] = self._open(str(self.folder / _name(event)), purge_step=purge)
        writer = self._writers[event.number]
        if event.name == "log" and event.record is not None:
            for name, value in _values(event.record).items():
                writer.add_scalar(name, value, event.record.step)
            writer.flush()
        elif event.name in ("end", "interrupted"):
            self._writers.pop(event.number).close()


class WandB:
    """`callbacks=[WandB("project")]` logs every record to Weights & Biases.

    Each SAE is a run with its config and settings. A run of saelab that continues is a new one there, unless
    id= and resume= say otherwise.

    Args:
        project: Its name.
        options: Those of `wandb.init`, e.g. mode="offline", group="sweep", dir="logs".

    Raises:
        MissingDependency: wandb is not installed.
    """

    def __init__(self, project: str, **options: Any) -> None:
        with needing("WandB", "wandb", "wandb"):
            import wandb
        self.project, self.options, self._init, self._runs = project, options, wandb.init, {}

    def __repr__(self) -> str:
        return f"WandB({self.project!r})"

    def __call__(self, event: Event) -> None:
        """Take an event of `saelab.train`."""
        if event.name == "start":
            given = {"config": to_dict(event.sae.config), "settings": to_dict(event.settings)}
            options = {"name": _name(event), "config": given, "reinit": "create_new"} | self.options
            self._runs[event.number] = self._init(project=self.project, **options)
        run = self._runs[event.number]
        if event.name == "log" and event.record is not None:
            run.log(_values(event.record), step=event.record.step)
        elif event.name in ("end", "interrupted"):
            self._runs.pop(event.number).finish()


def _name(event: Event) -> str:
    return f"{event.number}-{event.sae.config.recipe}"


def _values(record: Record) -> dict[str, float]:
    """What was measured, besides the step."""
    return {name: v for name, v in record._asdict().items() if v is not None and name != "step"}
