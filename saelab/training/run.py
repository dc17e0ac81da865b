"""Run: what training gives back, and its folder.

A finished run's folder: `config.json` and `sae.safetensors` (the SAE, see saelab.sae.storage), `history.json`
(one record for each logged step) and, written last, `run.json` (settings, data, provenance). An unfinished
run has `checkpoints/`, `history.jsonl` (the same records, a line each, for `pandas.read_json(path,
lines=True)` and `tail -f`) and `live.json` (how far it is: `saelab.training.live`); one that was stopped or
interrupted has the SAE as it was then, too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from saelab.arguments import checked, place
from saelab.config import from_dict, to_dict
from saelab.errors import needing
from saelab.files import Stamp, read_json, unwritable, write_json, writing
from saelab.stores.manifest import lock
from saelab.training.moving import Optimizer, Schedule, Whitening
from saelab.types import ConfigError, FormatError, StoreError

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects

    from saelab.sae import SAE, SAEConfig

STAMP = Stamp("saelab-run", 1, remedy="Train again into an empty folder.")
LINES = "history.jsonl"


class Record(NamedTuple):
    """One logged step, measured on that step's batch before its update."""

    step: int
    """Steps done, from 1."""
    rows: int
    """Activations seen."""
    loss: float
    """All losses added up (dimensionless)."""
    fvu: float
    """Fraction of variance unexplained."""
    l0: float
    """Mean number of codes != 0 in a row."""
    dead: float
    """Fraction of latents that have not fired for `dead_after` rows."""
    lr: float
    """Learning rate of that step."""
    held_out_fvu: float | None = None
    """FVU on held-out rows after the update, in eval mode: at the end on all, before on `evaluate_rows` of
    them; None where it was not measured."""
    held_out_l0: float | None = None
    """Mean number of codes != 0 of a held-out row, in eval mode."""

    def to_dict(self) -> dict[str, float | None]:
        """JSON data; an infinite FVU (a batch of equal rows) becomes None."""
        return {k: v if v is not None and math.isfinite(v) else None for k, v in self._asdict().items()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Record:
        """What `to_dict` gave."""
        fvu = math.inf if data["fvu"] is None else data["fvu"]
        return cls(**{**data, "fvu": fvu})


def _moved(old: dict[str, Any]) -> dict[str, Any]:
    """Settings of version 2, which named the numbers of the one schedule and the one optimizer there was."""
    rest = {name: value for name, value in old.items() if name not in OLD}
    schedule = {"warmup": old["warmup_steps"], "decay": old["decay_steps"]}
    return rest | {"schedule": schedule, "optimizer": {"betas": [old["beta1"], old["beta2"]]}}


OLD = ("warmup_steps", "decay_steps", "beta1", "beta2")


@dataclass(frozen=True)
class Origin:
    """What a run started from, where it was an SAE (see saelab.training.Start).

    weights: its fingerprint. d_sae: its latents. taken: the part that was taken. trained: names of the
    parameters that moved, () for all. noise: that of split latents.
    """

    weights: str
    d_sae: int
    taken: str = "all"
    trained: tuple[str, ...] = ()
    noise: float = 0.0


@dataclass(frozen=True)
class Settings:
    """Everything besides config and data that the numbers depend on. Rates are per step, lengths in steps
    or rows."""

    VERSION: ClassVar[int] = 3
    MIGRATIONS: ClassVar[dict[int, Callable[[dict], dict]]] = {
        1: lambda old: old | {"precision": "float32", "accumulate": 1, "held_out": 0, "evaluate_every": None},
        2: _moved,
    }

    steps: int
    batch_size: int
    seed: int
    lr: float
    clip: float | None
    """the norm to which a step's gradients are shortened"""
    dead_after: int
    init_rows: int
    log_every: int
    precision: Literal["float32", "bfloat16"] = "float32"
    accumulate: int = 1
    held_out: int = 0
    evaluate_every: int | None = None
    schedule: Schedule = field(default_factory=Schedule)
    optimizer: Optimizer = field(default_factory=Optimizer)
    max_norm: float | None = None
    """the multiple of the median norm beyond which rows are left out"""
    start: Origin | None = None
    evaluate_rows: int | None = None
    """held-out rows that are measured before the end; None for 1,024"""
    whiten: Whitening | None = None


@dataclass(frozen=True)
class Run:
    """A trained SAE with its history.

    sae: in eval mode, on the CPU unless a device was asked for. history: one Record for each logged step.
    finished: False where the run was interrupted (call train again with the same arguments and `out` to
    continue).
    provenance: versions, data fingerprint, seconds, rows per second, rows left out for their norm
    ("outliers"), how it ended ("finished", "stopped" by whoever watched it, "interrupted"). folder: where it
    was written, or None. live: what it told last while it trained; None of a run of an older saelab.
    """

    sae: SAE
    history: list[Record]
    config: SAEConfig
    settings: Settings
    finished: bool = True
    provenance: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None
    live: dict[str, Any] | None = field(default=None, repr=False, compare=False)

    def to_frame(self) -> pandas.DataFrame:
        """The history as a table, one row for each logged step."""
        import pandas

        return pandas.DataFrame(self.history, columns=list(Record._fields))

    def figure(self) -> plotly.graph_objects.Figure:
        """The training curve: FVU (log; held-out FVU dotted), L0 and dead fraction over the activations seen.

        Raises:
            MissingDependency: plotly is not installed.
        """
        with needing("A figure", "plotly", "plotly"):
            from plotly.subplots import make_subplots
        rows = [r.rows for r in self.history]
        figure = make_subplots(
            rows=3,
            cols=1,
            shared_xaxes=True,
            vertical_spacing=0.06,
            row_heights=[0.5, 0.25, 0.25],
        )
        panels = [("fvu", "FVU", "#0072b2"), ("l0", "L0", "#d55e00"), ("dead", "dead fraction", "#009e73")]
        for i, (name, title, colour) in enumerate(panels, start=1):
            values = [getattr(r, name) for r in self.history]
            figure.add_scatter(
                x=rows, y=values, name=title, mode="lines", line={"color": colour, "width": 2}, row=i, col=1
            )
            figure.update_yaxes(
                title_text=title, rangemode="tozero" if name == "dead" else "normal", row=i, col=1
            )
        measured = [r for r in self.history if r.held_out_fvu is not None]
        if measured:
            figure.add_scatter(
                x=[r.rows for r in measured],
                y=[r.held_out_fvu for r in measured],
                name="held-out FVU",
                mode="lines+markers",
                line={"color": "#000000", "width": 1, "dash": "dot"},
                row=1,
                col=1,
            )
        figure.update_yaxes(type="log", row=1, col=1)
        figure.update_xaxes(title_text="activations seen", row=3, col=1)
        figure.update_layout(
            title=f"{self.config.title}, d_sae {self.config.d_sae}",
            template="plotly_white",
            showlegend=False,
            height=520,
            margin={"l": 60, "r": 20, "t": 50, "b": 50},
        )
        return figure

    def __repr__(self) -> str:
        head = f"Run({self.config.title}, d_in={self.config.d_in}, d_sae={self.config.d_sae}"
        if not self.history:
            return f"{head}, no step logged)"
        last = self.history[-1]
        ended = self.provenance.get("ended", "interrupted")
        state = "" if self.finished else f", {ended} at step {last.step} of {self.settings.steps}"
        return (
            f"{head}, {last.rows:,} rows, FVU {last.fvu:.3f}, L0 {last.l0:.1f}, dead {last.dead:.1%}{state})"
        )

    @classmethod
    @checked(folder=place)
    def load(cls, folder: Path) -> Run:
        """The finished run in a folder.

        Raises:
            StoreError: There is none.
            FormatError: It is damaged.
        """
        from saelab.sae import SAE

        records, settings, provenance, live = told(folder)
        sae = SAE.load(folder)
        return cls(sae, records, sae.config, settings, True, provenance, folder, live)

    @checked(folder=place)
    def save(self, folder: Path) -> None:
        """Write SAE, history and, last, run.json."""
        self.sae.save(folder)
        write_json(folder / "history.json", [r.to_dict() for r in self.history])
        write_json(
            folder / "run.json",
            {
                **STAMP.fields(),
                "settings": to_dict(self.settings),
                "provenance": self.provenance,
                "live": self.live,
            },
        )


def told(folder: Path) -> tuple[list[Record], Settings, dict[str, Any], dict[str, Any] | None]:
    """History, settings, provenance and what was told last of the finished run in a folder, read without its
    SAE.

    Raises:
        StoreError: There is none.
        FormatError: It is damaged.
    """
    if not (folder / "run.json").is_file():
        message = (
            f"A finished run's folder must hold run.json. Got {folder}, which has none. "
            "Pass the `out` of saelab.train, or call train again to continue an interrupted run."
        )
        raise StoreError(message)
    data = STAMP.read(folder / "run.json", "run's run.json")
    history = read_json(folder / "history.json", "run's history.json", list)
    try:
        records = [Record.from_dict(row) for row in history]
        live = data.get("live")
        return records, from_dict(Settings, data["settings"]), dict(data["provenance"]), live and dict(live)
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        message = f"The run in {folder} must be whole. Got an unexpected entry ({error!r}). Train again."
        raise FormatError(message) from error


@contextmanager
def writing_alone(out: Path) -> Iterator[None]:
    """Be the one that trains into a folder. Raises StoreError where another process does."""
    with ExitStack() as stack:
        with writing(out):
            out.mkdir(exist_ok=True)
            stack.enter_context(lock(out / ".lock", out))
        yield


def append_lines(folder: Path, records: list[Record]) -> None:
    """Add records to the history of a run that is not finished. Raises StoreError."""
    try:
        with (folder / LINES).open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(record.to_dict(), allow_nan=False) + "\n" for record in records)
    except OSError as error:
        raise unwritable(folder / LINES, error) from error


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """`name: old -> new` for every entry that differs."""
    found = []
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append(f"{prefix}{key}: {a!r} -> {b!r}")
    return found
