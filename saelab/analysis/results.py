"""What analysis returns: frozen records with a text form, and a table or figure where one says more.

Arrays are numpy, so that a result can be kept, compared and shown without the model that it came from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from saelab.analysis.texts import sample_text, shows, window_line
from saelab.arguments import an_integer, checked
from saelab.errors import headline
from saelab.layout import Layout, Part
from saelab.stores.naming import Telling
from saelab.stores.records import DocumentRecord, Example, LatentStats
from saelab.types import Codes, RangeError, Shown

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Examples:
    """Windows of one latent: strongest first, of its values > 0 ("top") or < 0 ("bottom"), or from weak to
    strong, spread over the range of its |value|s ("quantile")."""

    latent: int
    kind: str
    windows: tuple[Example, ...]

    def to_frame(self) -> pd.DataFrame:
        """One line for each window: value, document, position, call, text (what its rows show, joined; of a
        picture, the place that fires)."""
        import pandas as pd

        columns = ["value", "document", "position", "call", "text"]
        rows = [(w.value, w.document, w.position, w.call, shows(w)) for w in self.windows]
        return pd.DataFrame(rows, columns=columns)

    def lines(self, documents: Mapping[int, DocumentRecord] | None = None) -> list[str]:
        """A line for each window: its value, and its rows with the one that fires in brackets; of a picture,
        which it is and where it fires.

        Args:
            documents: of windows, by number; see `FeatureCard.documents`.
        """
        return [window_line(w, (documents or {}).get(w.document)) for w in self.windows]

    __repr__ = headline

    def __str__(self) -> str:
        return "\n".join(self.lines()) or f"latent {self.latent}: no {self.kind} examples"


@dataclass(frozen=True)
class LogitLens:
    """Direct effect of a latent's decoder row on the logits: W_dec[latent] @ W_U, its mean removed."""

    latent: int
    top: tuple[tuple[str, float], ...]
    """(token, logit per unit of code), largest first"""
    bottom: tuple[tuple[str, float], ...]
    """(token, logit per unit of code), smallest first"""
    spread: float
    """standard deviation over the vocabulary: the yardstick for the values above"""

    def to_frame(self) -> pd.DataFrame:
        """One row a token: token, logit, end ("top" or "bottom")."""
        import pandas as pd

        rows = [(t, v, "top") for t, v in self.top] + [(t, v, "bottom") for t, v in self.bottom]
        return pd.DataFrame(rows, columns=["token", "logit", "end"])

    __repr__ = headline

    def __str__(self) -> str:
        def line(pairs: tuple[tuple[str, float], ...]) -> str:
            return "  ".join(f"{t!r} {v:+.2f}" for t, v in pairs)

        head = f"latent {self.latent}"
        return f"{head} raises {line(self.top)}\n{' ' * len(head)} lowers {line(self.bottom)}"


@dataclass(frozen=True)
class FeatureCard:
    """Everything that a card shows of one latent."""

    stats: LatentStats
    top: Examples
    quantile: Examples
    lens: LogitLens | None = None
    """None where the hook point does not write to the residual stream, or no model is at hand"""
    label: str = ""
    bottom: Examples | None = None
    """of the negative pole; None where the latent is never negative"""
    documents: Mapping[int, DocumentRecord] = field(default_factory=dict)
    """by number those of the windows that are more than their rows' names: with a grid or a picture"""
    tokens: tuple[Telling, ...] = ()
    """what sets it apart (its positive pole, where it has two), the largest lift first"""
    bottom_tokens: tuple[Telling, ...] = ()
    """what sets the negative pole apart"""

    @property
    def latent(self) -> int:
        """Its number."""
        return self.stats.latent

    __repr__ = headline

    def __str__(self) -> str:
        def told(examples: Examples) -> str:
            return "\n".join(examples.lines(self.documents)) or str(examples)

        lines = [str(self.stats) + (f"  «{self.label}»" if self.label else ""), told(self.top)]
        if self.bottom is not None:
            lines[1:] = ["positive pole", told(self.top), "negative pole", told(self.bottom)]
        for by, tokens in (("set apart by", self.tokens), ("negative pole by", self.bottom_tokens)):
            if tokens:
                lines.append(f"{by} (lift) " + "  ".join(f"{t.name!r} {t.lift:.3g}" for t in tokens))
        if self.lens is not None:
            lines += ["logits per unit of the positive pole"] * (self.bottom is not None) + [str(self.lens)]
        return "\n".join(lines)


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
    labels: tuple[tuple[str, str], ...] = ()
    """(label, source), the newest last"""
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
        lines += [f"«{label}» ({source})" for label, source in self.labels]
        return "\n".join([*lines, *self.reasons]) or f"latent {self.latent}: nothing is known of others"


@dataclass(frozen=True)
class SampleCodes:
    """One sample (a text, an image, a list of items), what its positions show, and the codes of every latent
    on each."""

    document: DocumentRecord
    """text, layout, labels and picture"""
    shown: tuple[Shown, ...]
    """facet and name of each position"""
    codes: Codes
    """[len(shown) d_sae]"""
    counted: np.ndarray
    """bool [len(shown)]: False for positions that statistics leave out, such as BOS"""
    calls: int = 1
    """of the module in a pass; the positions of one call come after those of another"""
    starts: tuple[int, ...] = ()
    """where the model read anew: the positions at which the parts begin of a text beyond its context, but the
    first"""

    @property
    def parted(self) -> str:
        """In how many parts it was read; "" where in one."""
        parts = len(self.starts) + 1
        return f"longer than the model's context: read in {parts} parts, each without the others" * (
            parts > 1
        )

    @property
    def text(self) -> str:
        """What the names show together."""
        return self.document.text

    @property
    def names(self) -> list[str]:
        """What each position shows."""
        return [each.name for each in self.shown]

    @property
    def layout(self) -> Layout:
        """How the positions of one call lie."""
        return Layout.parse(self.document.layout)

    def parts(self) -> list[Part]:
        """What the positions of one call are made of, in order."""
        return self.layout.parts(0, len(self.shown) // self.calls)

    @checked(position=an_integer(), n=an_integer())
    def top(self, position: int, n: int = 5) -> list[tuple[int, float]]:
        """The strongest latents at a position.

        Args:
            position: In the sample, from 0.
            n: At most so many.

        Returns:
            (latent, value), the largest |value| first.

        Raises:
            RangeError: The sample has no such position.
        """
        if position >= len(self.shown):
            message = f"position must be below {len(self.shown)}. Got {position}. Pass one of the sample."
            raise RangeError(message)
        latents, values = self.codes.row(position)
        order = np.argsort(-np.abs(values), kind="stable")[:n]
        return [(int(latents[i]), float(values[i])) for i in order]

    @checked(latent=an_integer())
    def of(self, latent: int) -> np.ndarray:
        """float32 [len(shown)]: one latent along the sample."""
        out = np.zeros(len(self.shown), dtype=np.float32)
        at = self.codes.indices == latent
        out[self.codes.row_ids()[at]] = self.codes.values[at]
        return out

    def to_frame(self) -> pd.DataFrame:
        """One line for each code that is not 0: position, facet, name, latent, value."""
        import pandas as pd

        position = self.codes.row_ids()
        shown = [self.shown[i] for i in position]
        return pd.DataFrame({
            "position": position, "facet": [s.facet for s in shown], "name": [s.name for s in shown],
            "latent": self.codes.indices, "value": self.codes.values,
        })  # fmt: skip

    __repr__ = headline

    def __str__(self) -> str:
        return sample_text(self)


@dataclass(frozen=True)
class LatentTable:
    """One line a latent, for the browser over all of them. Arrays are all [d_sae]."""

    count: np.ndarray
    density: np.ndarray
    mean: np.ndarray
    min: np.ndarray
    max: np.ndarray
    names: tuple[str, ...]
    """a label, or what sets it apart, by pole where it has two; "" where nothing does"""

    @property
    def signed(self) -> bool:
        """Whether any latent is ever negative."""
        return bool((self.min < 0).any())

    def __len__(self) -> int:
        return len(self.count)

    def __repr__(self) -> str:
        return f"LatentTable({len(self):,} latents, {int((self.count == 0).sum()):,} never fire)"
