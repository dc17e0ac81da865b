"""What is near a latent: records of `saelab.analysis.relatives`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from saelab.errors import headline

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd


class Similar(NamedTuple):
    """A latent whose decoder row points the same way."""

    latent: int
    cosine: float


class Together(NamedTuple):
    """A latent that fires on the same rows."""

    latent: int
    count: int
    """rows of the sample where both fire"""
    expected: float
    """of two that fire independently"""
    jaccard: float
    """count by rows where either fires"""


class Neuron(NamedTuple):
    """A coordinate of the space that the latent writes to."""

    neuron: int
    weight: float
    """of the unit decoder row"""


class Hint(NamedTuple):
    """A latent of a near direction that fires on the same tokens, and on which rows of these."""

    latent: int
    cosine: float
    overlap: float
    """of what both fire on: the sum over it of the smaller of their shares, in [0, 1]"""
    count: int
    """rows where both fire"""
    expected: float
    """of two that fire on these tokens as often as they do, independently"""
    spread: float
    """standard deviation of that"""

    @property
    def kind(self) -> str:
        """ "together" or "instead", where chance would hardly give as many or as few; else "alike"."""
        off = self.count - self.expected
        if abs(off) <= 3 * max(self.spread, 1e-9):
            return "alike"
        return "together" if off > 0 else "instead"


@dataclass(frozen=True)
class Relatives:
    """What is near a latent, with what chance gives."""

    latent: int
    similar: tuple[Similar, ...]
    """by cosine of decoder rows, nearest first"""
    similar_chance: float
    """what the nearest of as many random directions stays below in 99 of 100 cases"""
    similar_usual: float
    """cosine of the nearest of a latent of this SAE, the median over some"""
    together: tuple[Together, ...]
    """by Jaccard index"""
    neurons: tuple[Neuron, ...]
    """by |weight|, largest first"""
    aligned: tuple[float, float]
    """share of the squared norm in the largest neuron, and in the ten largest"""
    aligned_chance: tuple[float, float]
    """what a random direction stays below in 99 of 100 cases"""
    hints: tuple[Hint, ...]
    """latents of near directions that fire on the same tokens more than chance gives"""
    overlap_chance: float
    """overlap that 99 of 100 other latents stay below"""
    labels: tuple[tuple[str, str, Mapping[str, float]], ...] = ()
    """(label, source, what judges gave it by name), the newest last"""
    reasons: tuple[str, ...] = ()
    """why something is missing"""

    def to_frame(self) -> pd.DataFrame:
        """One line a latent that is near: relation, latent, value and chance."""
        import pandas as pd

        rows: list[tuple[str, int, float, float]] = []
        rows += [("cosine", s.latent, s.cosine, self.similar_chance) for s in self.similar]
        rows += [("together", t.latent, t.count, t.expected) for t in self.together]
        rows += [(h.kind, h.latent, h.count, h.expected) for h in self.hints]
        return pd.DataFrame(rows, columns=["relation", "latent", "value", "chance"])

    __repr__ = headline

    def __str__(self) -> str:
        lines = []
        if self.similar:
            near = ", ".join(f"{s.latent}: {s.cosine:.2f}" for s in self.similar[:5])
            chance = f"chance {self.similar_chance:.2f}, usual here {self.similar_usual:.2f}"
            lines.append(f"nearest directions {near} ({chance})")
        if self.together:
            some = ", ".join(f"{t.latent}: {t.count} for {t.expected:.3g}" for t in self.together[:5])
            lines.append(f"fires with (rows, for expected ones) {some}")
        if self.neurons:
            lines.append(
                f"largest neuron {self.neurons[0].neuron} has {self.aligned[0]:.1%} of the decoder "
                f"(chance {self.aligned_chance[0]:.1%}), the ten largest {self.aligned[1]:.1%} "
                f"(chance {self.aligned_chance[1]:.1%})"
            )
        for h in self.hints:
            lines.append(
                f"{h.latent} fires on the same ({h.overlap:.2f}, chance {self.overlap_chance:.2f}), "
                f"{h.kind}: on {h.count} common rows, for {h.expected:.3g} by these tokens alone"
            )
        for label, source, scores in self.labels:
            judged = "".join(f", {name} {value:.2f}" for name, value in scores.items())
            lines.append(f"«{label}» ({source}{judged})")
        return "\n".join([*lines, *self.reasons]) or f"latent {self.latent}: nothing is known of others"
