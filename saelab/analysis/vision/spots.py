"""What a comparison of generated with real images gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from saelab.analysis.controls import OWN, Beside
from saelab.analysis.panels import Curve, Drawing, Figures, Panel, Table
from saelab.errors import CorpusError, headline

if TYPE_CHECKING:
    import pandas as pd

NULL = "real against held-out real"
SHOWN = 20
"""Images that are shown of either end of the distances."""
RULES = {
    "the paper: sigmoid(d)": ("difference", 1.0),
    "its code: sigmoid(d / 0.8)": ("difference", 0.8),
    "its code: sigmoid(r / 0.4)": ("relative", 0.4),
}
"""The published scores of a latent: of which difference, over which temperature. The paper says the first,
suppressed below 0.1 and exaggerated above 0.9; the published code computes the others, which no text says."""
SUPPRESSED, EXAGGERATED = 0.1, 0.9


@dataclass(frozen=True, eq=False)
class Spots:
    """Differences of alive latents. Arrays are [m], float64 where nothing else is said; energies are in units
    of codes."""

    latents: np.ndarray
    """int64, ascending"""
    fired: np.ndarray
    """int64 [m 2]: real images, generated images in which each fires"""
    real: np.ndarray
    """mean energy over real images"""
    generated: np.ndarray
    difference: np.ndarray
    """generated - real"""
    difference_interval: np.ndarray
    """[m 2]: 95 % of it, images drawn anew; NaN where it was not asked for"""
    relative: np.ndarray
    """the difference over the sum, from -1 to 1"""
    relative_interval: np.ndarray
    """[m 2]"""
    p: np.ndarray
    """of the difference, two-sided, by permutation of images"""
    q: np.ndarray
    """the least false-discovery rate at which each is flagged"""

    def __len__(self) -> int:
        return len(self.latents)

    def suppressed(self, fdr: float = 0.05) -> np.ndarray:
        """bool [m]: which the generator shows less, at that false-discovery rate."""
        return (self.q <= fdr) & (self.difference < 0)

    def exaggerated(self, fdr: float = 0.05) -> np.ndarray:
        """bool [m]: which the generator shows more, at that false-discovery rate."""
        return (self.q <= fdr) & (self.difference > 0)

    def delta(self, rule: str) -> np.ndarray:
        """A published score of each latent, from 0 to 1, one half where both are alike.

        Args:
            rule: One of `RULES`.
        """
        of, temperature = RULES[rule]
        value = getattr(self, of)
        return 1 / (1 + np.exp(-np.where(np.isfinite(value), value, 0) / temperature))

    def __repr__(self) -> str:
        return f"Spots({len(self):,} latents)"


FLAGS: Mapping[str, Callable[[Spots, float], np.ndarray]] = {
    "flagged": lambda spots, fdr: spots.q <= fdr,
    "suppressed": Spots.suppressed,
    "exaggerated": Spots.exaggerated,
}


class Neighbours(NamedTuple):
    """How near generated images come to real ones: distances of their energies, Euclidean."""

    distance: np.ndarray
    """float64 [generated]: to its pair, or to the nearest real image"""
    at: np.ndarray
    """int64 [generated]: which real image that is"""
    among_real: np.ndarray
    """float64 [real]: of each real image to the nearest other one"""

    @property
    def nearer(self) -> np.ndarray:
        """float64 [generated]: share of the real images that have another real one at least as near: small
        where an image is nearer to a real one than real ones are to each other, as a memorised one is."""
        return np.searchsorted(np.sort(self.among_real), self.distance, side="right") / len(self.among_real)

    @property
    def order(self) -> np.ndarray:
        """int64 [generated]: the nearest first."""
        return np.argsort(self.distance, kind="stable")


class Strongest(NamedTuple):
    """Images in which latents have most energy, those of one latent in a line, the most first."""

    at: np.ndarray
    """int64 [m images]: where each stands among the ids, -1 where the latent fires in fewer"""
    document: np.ndarray
    """int64 [m images]: its number in the corpus that was read"""
    energy: np.ndarray
    """float64 [m images]"""


@dataclass(frozen=True, eq=False)
class Blindspots:
    """What a generator shows too rarely or too often, beside what chance and what other codes would say."""

    spots: Spots
    controls: Mapping[str, Spots]
    """the same of an untrained SAE and of raw neurons"""
    null: tuple[Spots, ...]
    """the same of halves of the real images"""
    figures: Mapping[str, Beside]
    """share of the alive latents that are flagged, and either way. Its interval is over latents (Wilson 1927)
    that of the null from the least to the largest of its splits"""
    neighbours: Neighbours
    other_neighbours: Mapping[str, Neighbours]
    """by the controls"""
    fdr: float
    paired: bool
    ids: tuple[tuple[str, ...], tuple[str, ...]] = field(repr=False)
    """of the real and of the generated images"""
    strongest: tuple[Strongest, Strongest] = field(repr=False)
    """real and generated images that show each alive latent most"""

    @property
    def suppressed(self) -> np.ndarray:
        """int64: the latents that the generator shows less, the most first."""
        return self._flagged(self.spots.suppressed(self.fdr), 1)

    @property
    def exaggerated(self) -> np.ndarray:
        """int64: the latents that it shows more, the most first."""
        return self._flagged(self.spots.exaggerated(self.fdr), -1)

    def _flagged(self, which: np.ndarray, sign: int) -> np.ndarray:
        at = np.flatnonzero(which)
        return self.spots.latents[at[np.argsort(sign * self.spots.relative[at], kind="stable")]]

    def to_frame(self) -> pd.DataFrame:
        """One line for each alive latent, by relative difference, what is lost first: energies, images in
        which it fires, differences with their 95 % intervals, p, q, what it is flagged as ("" if not), and
        the published scores."""
        import pandas as pd

        spots = self.spots
        flags = np.full(len(spots), "", object)
        flags[spots.suppressed(self.fdr)] = "suppressed"
        flags[spots.exaggerated(self.fdr)] = "exaggerated"
        columns = {
            "latent": spots.latents, "flag": flags, "relative": spots.relative,
            "relative_from": spots.relative_interval[:, 0], "relative_to": spots.relative_interval[:, 1],
            "q": spots.q, "p": spots.p, "real": spots.real, "generated": spots.generated,
            "difference": spots.difference, "difference_from": spots.difference_interval[:, 0],
            "difference_to": spots.difference_interval[:, 1], "real_images": spots.fired[:, 0],
            "generated_images": spots.fired[:, 1],
        }  # fmt: skip
        columns |= {rule: spots.delta(rule) for rule in RULES}
        return pd.DataFrame(columns).sort_values("relative", kind="stable", ignore_index=True)

    def rules(self) -> pd.DataFrame:
        """What each rule calls suppressed and exaggerated, of how many alive latents: the test of this
        library, the threshold of the paper, and those of its code; by this SAE, by the controls, and by
        halves of the real images, of which nothing should be."""
        import pandas as pd

        arms = {OWN: [self.spots], **{name: [spots] for name, spots in self.controls.items()}}
        lines = []
        for name, several in (arms | {NULL: list(self.null)}).items():
            for rule in (f"false-discovery rate {self.fdr:g}", *RULES):
                low, high = zip(*(self._called(spots, rule) for spots in several), strict=True)
                told = {"suppressed": np.mean(low), "exaggerated": np.mean(high)}
                alive = np.mean([len(spots) for spots in several])
                lines.append({"by": name, "rule": rule, **told, "alive": alive})
        return pd.DataFrame(lines)

    def _called(self, spots: Spots, rule: str) -> tuple[int, int]:
        if rule not in RULES:
            return int(spots.suppressed(self.fdr).sum()), int(spots.exaggerated(self.fdr).sum())
        delta = spots.delta(rule)
        return int((delta < SUPPRESSED).sum()), int((delta > EXAGGERATED).sum())

    def images(self) -> pd.DataFrame:
        """One line for each generated image, the nearest to a real one first: its id, that of the real image,
        their distance, and the share of real images that have another as near."""
        import pandas as pd

        near, (real, generated) = self.neighbours, self.ids
        order = near.order
        return pd.DataFrame({
            "generated": [generated[i] for i in order], "real": [real[near.at[i]] for i in order],
            "distance": near.distance[order], "real_as_near": near.nearer[order],
        })  # fmt: skip

    def pictures(self, real: Any = None, generated: Any = None) -> tuple[dict[int, bytes], dict[int, bytes]]:
        """Small pictures of the images that show the alive latents most.

        Args:
            real: The images that were read: a corpus, or what `saelab.corpora.images` makes one of; None for
                no pictures.
            generated: Likewise.

        Returns:
            Of each side its number in the corpus -> the picture.

        Raises:
            CorpusError: Other images than those that were read.
        """
        (one, two), (ids, others) = self.strongest, self.ids
        return _pictures(real, "real", one, ids), _pictures(generated, "generated", two, others)

    def panels(self) -> tuple[Panel, ...]:
        """What is shown of it: shares beside their controls, latents, rules, distances."""
        images = self.images()
        to = "its pair" if self.paired else "the nearest real one"
        return (
            Figures({"": self.figures}, (self._head(),)),
            Table("latents, what is lost first", self.to_frame()),
            Table("what each rule calls suppressed or exaggerated", self.rules()),
            Table(f"generated images nearest to {to}", images.head(SHOWN)),
            Table(f"generated images farthest from {to}", images.iloc[::-1].head(SHOWN)),
            *self.drawings(),
        )

    def drawings(self) -> tuple[Drawing, ...]:
        """Relative differences in their order, with intervals; and how they are spread beside the null."""
        frame = self.to_frame()
        ends = (frame["relative_from"].to_numpy(), frame["relative_to"].to_numpy())
        own = Curve(OWN, np.arange(len(frame), dtype=float), frame["relative"].to_numpy(), "points", *ends)
        sorted_null = [np.sort(spots.relative[np.isfinite(spots.relative)]) for spots in self.null]
        curves = [own]
        for each in sorted_null[:1]:
            at = np.linspace(0, max(len(frame) - 1, 0), len(each))
            curves.append(Curve(NULL, at, each, "line"))
        return (Drawing("relative difference of latents", "latents, what is lost first", "r", tuple(curves)),)

    def _head(self) -> str:
        n = [len(each) for each in self.ids]
        kind = "pairs" if self.paired else "images"
        count = f"{n[0]:,} {kind}" if self.paired else f"{n[0]:,} real and {n[1]:,} generated {kind}"
        return (
            f"{count}, {len(self.spots):,} alive latents: {len(self.suppressed):,} suppressed, "
            f"{len(self.exaggerated):,} exaggerated at a false-discovery rate of {self.fdr:g}"
        )

    __repr__ = headline

    def __str__(self) -> str:
        lines = [f"Blindspots: {self._head()}"]
        lines += [f"  {name}: {figure}" for name, figure in self.figures.items()]
        columns = ["latent", "flag", "relative", "relative_from", "relative_to", "q", "real", "generated"]
        flagged = self.to_frame().query("flag != ''").filter(columns)
        some = flagged if len(flagged) <= 2 * SHOWN else flagged.iloc[[*range(SHOWN), *range(-SHOWN, 0)]]
        if len(some):
            lines.append(some.to_string(index=False, float_format=lambda v: f"{v:.4g}"))
        return "\n".join(lines)


def _pictures(corpus: Any, name: str, side: Strongest, ids: Sequence[str]) -> dict[int, bytes]:
    from saelab.corpora import Corpus, images

    if corpus is None:
        return {}
    shown = zip(side.at.flat, side.document.flat, strict=True)
    wanted = {int(number): ids[at] for at, number in shown if at >= 0}
    found: dict[int, bytes] = {}
    for number, document in enumerate(corpus if isinstance(corpus, Corpus) else images(corpus)):
        if number not in wanted:
            continue
        if document.id != wanted[number]:
            message = (
                f"{name} must be the images that were read. Got {document.id!r} in the place of "
                f"{wanted[number]!r}. Pass what blindspots was given."
            )
            raise CorpusError(message)
        if document.media is not None:
            found[number] = document.media
        del wanted[number]
        if not wanted:
            break
    if wanted:
        message = (
            f"{name} must be the images that were read. Got none for {next(iter(wanted.values()))!r}. Pass "
            "what blindspots was given."
        )
        raise CorpusError(message)
    return found


__all__ = ["FLAGS", "NULL", "RULES", "Blindspots", "Neighbours", "Spots", "Strongest"]
