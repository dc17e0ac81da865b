"""What the circuit view says of each kind of result: what goes over the wire, and which latents it has."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np

from saelab.types import SaelabError
from saelab.widgets import still
from saelab.widgets.source import Source
from saelab.widgets.wire import Packed, clean, cleaned, rounded

if TYPE_CHECKING:
    from saelab.analysis.circuits.measures import CodeTest
    from saelab.analysis.circuits.nodes import Node
    from saelab.analysis.circuits.results import Circuit
    from saelab.analysis.controls import Alone, Beside

KINDS = ("latent", "error", "embedding", "logit", "head", "mlp")
"""Of nodes, by their number on the wire."""
OTHERS = 40
"""Latents outside of a circuit that are shown beside it, those of the largest effects."""
SHARE_OFF = 0.02
"""How far a code of a graph may be from that of an SAE that it is of, as a share."""


class Parts(ABC):
    """One result, to the view. It names its latents by hook point and number."""

    known_by: ClassVar[tuple[str, ...]]
    """attributes by which a result is known to be of this kind"""
    result: Any

    @abstractmethod
    def packed(self, names: Mapping[str, Sequence[str]], places: Mapping[str, int]) -> Packed:
        """What the browser draws.

        Args:
            names: Hook point -> what its latents are called.
            places: Hook point -> number of the SAE that its latents are of.
        """

    def latents(self) -> list[tuple[str, int]]:
        """Hook point and number of each latent, each once, the most important first."""
        return []

    def options(self) -> dict[str, Any]:
        """What the view begins with, beside what it is asked for."""
        return {}

    def strange(self, source: Source, hook: str) -> str:
        """Why the latents at a hook point are none of an SAE of that hook point; "" where they may be.

        Args:
            source: Of the SAE.
            hook: Where it writes.
        """
        most = max((index for at, index in self.latents() if at == hook), default=0)
        try:
            source.checked(most)
        except SaelabError:
            return f"latents up to #{most} of {hook}, which this Lab's SAE of that hook point does not have"
        return ""

    def form(self) -> str:
        """Tables for where nothing runs, beside the words; "" for none."""
        return ""


class CircuitParts(Parts):
    """Nodes that carry a task."""

    known_by = ("faithfulness", "completeness", "growth")

    def __init__(self, result: Circuit) -> None:
        self.result = result
        effects = result.effects
        every = list(result.nodes if effects is None else cast("tuple[Node, ...]", effects.nodes))
        own = set(result.nodes)
        if effects is not None:
            beside = [every[i] for i in effects.order() if every[i].kind in ("latent", "error")]
            shown = own | {node for node in every if node.kind in ("head", "mlp")} | set(beside[:OTHERS])
            every = [node for node in every if node in shown]
        self.every, self.inside = every, np.array([node in own for node in every], bool)

    def latents(self) -> list[tuple[str, int]]:
        nodes = [*self.result.nodes, *self.every]
        return list(dict.fromkeys((node.hook, node.index) for node in nodes if node.kind == "latent"))

    def packed(self, names: Mapping[str, Sequence[str]], places: Mapping[str, int]) -> Packed:
        made, effects = self.result, self.result.effects
        hooks = list(dict.fromkeys(node.hook for node in self.every))
        share = np.full((len(self.every), 3), np.nan, np.float32)
        if effects is not None:
            at = {node: i for i, node in enumerate(effects.nodes)}
            for row, node in zip(share, self.every, strict=True):
                row[:] = (effects.share[at[node]], *effects.interval(at[node]))
        header = {
            "what": "circuit", "title": clean(f"Circuit of {made.task}"), "task": clean(made.task),
            "n": len(made.nodes), "of": made.of, "target": made.target, "met": made.met,
            "method": clean(made.method), "hooks": cleaned(hooks),
            "saes": [places.get(hook, -1) for hook in hooks],
            "scores": [["faithfulness", told(made.faithfulness)], ["completeness", told(made.completeness)]],
            "growth": [[size, told(score)] for size, score in made.growth],
            "curve": [[int(size), rounded(value)] for size, value in made.curve],
        }  # fmt: skip
        return Packed(
            header,
            {
                "kind": np.array([KINDS.index(node.kind) for node in self.every], np.uint8),
                "hook": np.array([hooks.index(node.hook) for node in self.every], np.uint16),
                "layer": np.array([layer_of(node.hook) for node in self.every], np.int16),
                "index": np.array([node.index for node in self.every], np.int32),
                "inside": self.inside,
                "share": share[:, 0], "low": share[:, 1], "high": share[:, 2],
                "called": [clean(str(node)) for node in self.every],
                "names": cleaned([_name(names, node.hook, node.index, node.kind) for node in self.every]),
            },
        )  # fmt: skip

    def form(self) -> str:
        lines = [
            [str(size), f"{s.value:.3f} [{s.interval[0]:.3f}, {s.interval[1]:.3f}]",
             f"{s.control:.3f} [{s.control_interval[0]:.3f}, {s.control_interval[1]:.3f}]"]
            for size, s in self.result.growth
        ]  # fmt: skip
        if not lines:
            return ""
        what = self.result.growth[0][1].what
        return still.note(
            "nodes of the largest effects, on pairs that had no part in the choice"
        ) + still.grid(["nodes", "faithfulness", what], lines)


class CodesParts(Parts):
    """Whether codes of heads tell the heads or the edges of a circuit."""

    known_by = ("mean_roc", "auc_interval", "truth")

    def __init__(self, result: CodeTest) -> None:
        self.result = result

    def packed(self, names: Mapping[str, Sequence[str]], places: Mapping[str, int]) -> Packed:
        made = self.result
        fields, arms = {}, []
        for i, arm in enumerate(made.auc):
            x, y = made.mean_roc(arm)
            fields |= {f"x{i}": x.astype(np.float32), f"y{i}": y.astype(np.float32)}
            gain = made.gain.get(arm)
            arms.append({
                "name": clean(arm), "auc": rounded(float(made.auc[arm].mean())),
                "interval": list(map(rounded, made.auc_interval[arm])),
                "gain": None if gain is None else list(map(rounded, gain)),
                "bar": made.bars.get(arm),
                "precision": rounded(float(made.average_precision[arm].mean())),
            })  # fmt: skip
        header = {
            "what": "codes", "title": clean(made.title), "said": clean(str(made)), "task": clean(made.task),
            "arms": arms, "kind": made.kind, "heads": made.heads, "of": made.of,
        }  # fmt: skip
        return Packed(header, fields)

    def form(self) -> str:
        made = self.result
        lines = []
        for arm, values in made.auc.items():
            low, high = made.auc_interval[arm]
            gain = made.gain.get(arm)
            over = "" if gain is None else f"{gain[0]:+.3f} to {gain[1]:+.3f}"
            precision = f"{made.average_precision[arm].mean():.3f}"
            lines.append([arm, f"{values.mean():.3f} [{low:.3f}, {high:.3f}]", over, precision])
        columns = [f"{made.kind}s told by", "AUC", "what the codes have over it", "average precision"]
        return still.grid(columns, lines)


def placed(parts: Parts, sources: Sequence[Source]) -> tuple[dict[str, int], list[str]]:
    """Which SAE the latents at each hook point are of.

    Returns:
        Hook point -> number of the SAE; and what there is to say of those that are of none.
    """
    hooks = list(dict.fromkeys(hook for hook, _ in parts.latents()))
    found: dict[str, int] = {}
    notes, without = [], []
    for hook in hooks:
        number = next((i for i, each in enumerate(sources) if hook in each.questions["hooks"]()), None)
        if number is None:
            without.append(hook or "a hook point that its file does not say")
        elif why := parts.strange(sources[number], hook):
            notes.append(f"Of another model or SAE than this Lab's: {why}. No cards are shown of them.")
        else:
            found[hook] = number
    if without and sources:
        notes.append(f"This Lab has no SAE of {', '.join(without)}: no cards are shown of latents there.")
    return found, list(dict.fromkeys(notes))


def told(score: Beside | Alone) -> dict[str, Any]:
    """A score with its interval and its control, or why it has none."""
    value = {"value": rounded(score.value)}
    if (why := getattr(score, "why", None)) is not None:
        return {**value, "why": clean(why)}
    return {**value, **_beside(score)}


def _beside(score: Any) -> dict[str, Any]:
    return {
        "interval": list(map(rounded, score.interval)), "control": rounded(score.control),
        "control_interval": list(map(rounded, score.control_interval)),
        "n": score.n, "what": clean(score.what), "apart": score.apart,
    }  # fmt: skip


def layer_of(hook: str) -> int:
    """Of a hook point such as blocks.2.hook_mlp_out; -1 where it has none."""
    found = hook.split(".")
    return int(found[1]) if len(found) > 1 and found[1].isdigit() else -1


def _name(names: Mapping[str, Sequence[str]], hook: str, index: int, kind: str) -> str:
    own = names.get(hook, ()) if kind == "latent" else ()
    return str(own[index]) if index < len(own) else ""
