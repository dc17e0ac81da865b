"""What an erasing view is told: concepts, figures beside their controls, and how far measuring has come."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from saelab.analysis.steering.concepts import Concept
from saelab.analysis.steering.gate import numbers
from saelab.analysis.steering.results import EDIT, NONE, Effect

if TYPE_CHECKING:
    from saelab.corpora import Document

CONTROL = "random latents"
ARMS = {NONE: "before", EDIT: "after", CONTROL: CONTROL}
"""Arm of an `Effect` -> what the view calls it."""
OF_CONCEPT = (
    "target", "target any", "kl", "output", "identical", "touched", "norm", "mahalanobis", "nearest",
    "distinct 2", "repetition 4",
)  # fmt: skip
"""Figures of the samples of a concept, as `Effect` names them; those of clean ones begin with "clean"."""


class Measured:
    """Figures that are measured step by step.

    Args:
        steps: The share that is done, and at last all that is told.
    """

    def __init__(self, steps: Iterator[float | dict[str, Any]]) -> None:
        self.done = False
        self._steps = steps
        self._share = 0.0
        self._told: dict[str, Any] = {}

    def more(self, n: int) -> None:
        """Go on by n steps, at most."""
        for _ in range(n):
            step = next(self._steps, None)
            if isinstance(step, dict):
                self._told, self.done, self._share = step, True, 1.0
                return
            self._share = self._share if step is None else step

    def close(self) -> None:
        """Measure no more."""
        self._steps.close()  # type: ignore[attr-defined]

    def told(self) -> dict[str, Any]:
        """The share that is done, and at last the figures."""
        return {"done": self.done, "share": self._share, **self._told}


def concept_told(concept: Concept) -> dict[str, Any]:
    """A concept: why its latents were chosen, and on how many samples of which part.

    Args:
        concept: With its selection.
    """
    judged = next(iter(concept.selected.scores.values()))
    latents = [
        {"latent": each.latent, "pole": each.pole} | {
            name: numbers(getattr(each, name))[0] if getattr(each, name) is not None else None
            for name in (
                "score", "input_score", "output_score", "held_out", "mean_positive", "mean_negative",
                "share_positive", "share_negative",
            )
        }
        for each in concept.selected.choices
    ]  # fmt: skip
    target = concept.target
    return {
        "name": concept.name,
        "method": concept.selected.method,
        "parts": {
            part: [len(getattr(concept.positive, part)), len(getattr(concept.negative, part))]
            for part in concept.positive._fields
        },
        "latents": latents,
        "auroc": numbers(judged.value, *judged.interval),
        "controls": {name: numbers(each.control)[0] for name, each in concept.selected.scores.items()},
        "judge": "gate" if target is None else ("words" if isinstance(target, tuple) else "function"),
        "notes": [*concept.notes, *(f"{n}: left out, {why}" for n, why in concept.selected.left_out.items())],
    }


def group_told(title: str, kind: str, effect: Effect, documents: Sequence[Document]) -> dict[str, Any]:
    """The figures of some samples, arm by arm; of those of a concept also what is written after the first.

    Args:
        title: Of the group.
        kind: "erased", "kept" or "clean".
        effect: Of which those that begin with "clean" are taken for "clean", else the others.
        documents: The samples.

    Returns:
        title, kind, n; rows of {measure, arms: arm -> [value, low, high]}; texts: of some samples a title and
        what each arm writes.
    """
    prefix = "clean " if kind == "clean" else ""
    wanted = [name for name in effect.measures if name.startswith("clean")] if prefix else OF_CONCEPT
    arms = {name: effect.arm(name) for name in ARMS if any(arm.name == name for arm in effect.arms)}
    rows = []
    for measure in wanted:
        found = {name: arm.figures.get(measure) for name, arm in arms.items()}
        if any(each is not None for each in found.values()):
            rows.append({
                "measure": measure.removeprefix(prefix),
                "arms": {
                    ARMS[n]: None if f is None else numbers(f.value, *f.interval) for n, f in found.items()
                },
            })  # fmt: skip
    texts = [] if prefix else [
        [title_of(document), *(effect.texts[name][i] for name in arms)]
        for i, document in enumerate(documents[: min(map(len, effect.texts.values()), default=0)])
    ]  # fmt: skip
    return {"title": title, "kind": kind, "n": len(documents), "rows": rows, "texts": texts}


def title_of(document: Document) -> str:
    """A line that says which sample it is.

    Args:
        document: Any.
    """
    return " ".join(document.text.split())[:120] or document.id


__all__ = ["ARMS", "CONTROL", "Measured", "concept_told", "group_told", "title_of"]
