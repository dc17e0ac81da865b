"""Ground truth of circuits as a file: what exact patching found, written before any score is measured."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from saelab.analysis.circuits.nodes import HeadEdge, Node, head_edges
from saelab.analysis.circuits.results import Effects, carries
from saelab.analysis.circuits.tasks import Task
from saelab.files import Stamp, write_bytes
from saelab.types import ConfigError, StoreError

if TYPE_CHECKING:
    import pandas as pd

HEADS, EDGES = 0.05, 0.005
"""The least shares of the score, of either sign, from which a head and an edge are of the circuit: an edge is
one of many, so that a tenth of a head's will do."""
STAMP = Stamp("saelab circuits", 1, remedy="Pass a file that freeze wrote.", error=StoreError)
DIGITS = 5


@dataclass(frozen=True, eq=False)
class Known:
    """What exact patching found of each head, or of each edge between heads."""

    nodes: tuple[Node | HeadEdge, ...]
    share: np.ndarray
    """float64 [nodes]: of the score, what is lost with each"""
    low: np.ndarray
    """float64 [nodes]: 95 % of it, drawn over pairs"""
    high: np.ndarray
    """float64 [nodes]"""
    least: float
    """the share from which one is of the circuit"""

    @property
    def known(self) -> np.ndarray:
        """bool [nodes]: whether it is of the circuit (`important`)."""
        return carries(self.share, self.low, self.high, self.least)

    def __str__(self) -> str:
        order = np.argsort(-np.abs(self.share), kind="stable")
        return ", ".join(f"{self.nodes[i]} {self.share[i]:+.1%}" for i in order if self.known[i]) or "none"


@dataclass(frozen=True, eq=False)
class Truth:
    """The circuit of a task, as exact patching found it before any score was measured."""

    task: str
    model: str
    """the subject's fingerprint"""
    pairs: str
    """sha256 of the pairs' token ids"""
    n: int
    """pairs"""
    prompts: dict[str, Any]
    """how they are written: what `task_prompts`, or whatever wrote them, takes"""
    clean: float
    """mean score after clean prompts"""
    corrupt: float
    """after corrupt ones"""
    heads: Known
    edges: dict[str, Known]
    """what is told on the way, "direct" or "through MLPs" -> all edges between heads"""

    def check(self, subject: Any, task: Task) -> None:
        """Refuse prompts, or a model, that are not those of which this is the truth.

        Args:
            subject: The model.
            task: Its pairs.

        Raises:
            ConfigError: They are others.
        """
        for what, own, theirs in (
            ("pairs", self.pairs, fingerprint(task)),
            ("model", self.model, subject.fingerprint()),
        ):
            if own != theirs:
                message = (
                    f"The truth of {self.task!r} is of one {what} alone, with sha256 {own[:12]}. Got "
                    f"{theirs[:12]}. Write the prompts by {self.prompts}, for the model that was patched, or "
                    "freeze their own truth."
                )
                raise ConfigError(message)

    def to_frame(self) -> pd.DataFrame:
        """One line for each head or edge of the circuit: way ("head", or what edges are told on), node,
        share, low, high."""
        import pandas as pd

        lines = [
            (way, str(known.nodes[i]), known.share[i], known.low[i], known.high[i])
            for way, known in {"head": self.heads, **self.edges}.items()
            for i in np.flatnonzero(known.known)
        ]
        return pd.DataFrame(lines, columns=["way", "node", "share", "low", "high"])

    def __str__(self) -> str:
        edges = "\n".join(f"  edges, {way}: {known}" for way, known in self.edges.items())
        return f"Truth of {self.task!r}, {self.n} pairs\n  heads: {self.heads}\n{edges}".rstrip()

    __repr__ = __str__


def fingerprint(task: Task) -> str:
    """sha256 of a task's pairs and of what is measured of them.

    Args:
        task: Any.
    """
    return _digest([task.score, [list(map(list, pair)) for pair in task.pairs]])


def frozen(
    subject: Any, task: Task, prompts: Mapping[str, Any], heads: Effects, edges: Mapping[str, Effects]
) -> dict[str, Any]:
    """The truth of a task as JSON values, for `freeze`.

    Args:
        subject: The model.
        task: Its pairs.
        prompts: How they are written, JSON values.
        heads: Of `activation_patching` with nodes "heads".
        edges: What is told on the way -> of `path_patching`, all edges; none where they were too dear.
    """
    nodes = [[node.hook, node.index] for node in heads.nodes if isinstance(node, Node)]
    return {
        "model": subject.fingerprint(),
        "pairs": fingerprint(task),
        "n": len(task.pairs),
        "prompts": dict(prompts),
        "clean": round(float(task.clean.mean()), DIGITS),
        "corrupt": round(float(task.corrupt.mean()), DIGITS),
        "nodes": nodes,
        "heads": _kept(heads, HEADS),
        "edges": {way: _kept(effects, EDGES) for way, effects in edges.items()},
    }


def freeze(path: str | Path, tasks: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the truth of tasks, with the sha256 of what it says.

    Args:
        path: The file.
        tasks: By name, of `frozen`.

    Raises:
        StoreError: It cannot be written.
    """
    lines = ",\n".join(f"{json.dumps(name)}: {_canonical(task)}" for name, task in sorted(tasks.items()))
    head = json.dumps(STAMP.fields() | {"sha256": _digest(dict(tasks))})
    write_bytes(path, f'{head[:-1]}, "tasks": {{\n{lines}\n}}}}\n'.encode())


def read_truths(path: str | Path) -> dict[str, Truth]:
    """The circuits of tasks that `freeze` wrote.

    Args:
        path: The file; the embedded model's is `saelab.embedded.circuits_file()`.

    Returns:
        By task.

    Raises:
        StoreError: It is not there, is another file, or was altered: what it says does not have the sha256
            that it states, or does not name the heads and edges that its effects make.
    """
    data = STAMP.read(Path(path), "truth of circuits")
    tasks = data.get("tasks")
    if not isinstance(tasks, dict) or data.get("sha256") != _digest(tasks):
        raise _altered(path, f"content of sha256 {_digest(tasks)[:12]}")
    found = {}
    for name, task in tasks.items():
        nodes = tuple(Node("head", str(hook), int(index)) for hook, index in task["nodes"])
        between = tuple(head_edges(nodes))
        heads = _read(task["heads"], nodes)
        edges = {way: _read(kept, between) for way, kept in task["edges"].items()}
        for kept, known in ((task["heads"], heads), *((task["edges"][way], edges[way]) for way in edges)):
            if kept["known"] != _named(known):
                raise _altered(path, f"{kept['known']} for {_named(known)}")
        found[name] = Truth(
            name, task["model"], task["pairs"], task["n"], task["prompts"], task["clean"], task["corrupt"],
            heads, edges,
        )  # fmt: skip
    return found


def _kept(effects: Effects, least: float) -> dict[str, Any]:
    intervals = [effects.interval(i) for i in range(len(effects.nodes))]
    low, high = ([round(value, DIGITS) for value in side] for side in zip(*intervals, strict=True))
    kept = {"method": effects.method, "least": least, "low": low, "high": high}
    kept["share"] = [round(value, DIGITS) for value in effects.share.tolist()]
    return kept | {"known": _named(_read(kept, effects.nodes))}


def _read(kept: Mapping[str, Any], nodes: Sequence[Node | HeadEdge]) -> Known:
    share, low, high = (np.array(kept[name], dtype=np.float64) for name in ("share", "low", "high"))
    return Known(tuple(nodes), share, low, high, float(kept["least"]))


def _named(known: Known) -> list[str]:
    return [str(node) for node, is_known in zip(known.nodes, known.known, strict=True) if is_known]


def _canonical(content: Any) -> str:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _digest(content: Any) -> str:
    return hashlib.sha256(_canonical(content).encode()).hexdigest()


def _altered(path: str | Path, got: str) -> StoreError:
    message = (
        f"The truth of circuits must be as it was frozen. Got {got} in {path}. Take the file that was "
        "written, or freeze it anew, before any score."
    )
    return StoreError(message)


__all__ = ["EDGES", "HEADS", "Known", "Truth", "fingerprint", "freeze", "frozen", "read_truths"]
