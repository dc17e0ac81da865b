"""Two SAEs side by side: which latents they share, which are their own, beside what chance finds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from saelab.analysis.controls import wilson
from saelab.arguments import a_store, an_integer, checked
from saelab.errors import headline
from saelab.stores.compare import Matches

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from saelab.stores import FeatureStore

PERCENTILE = 99
MEASURES = {"cosine": "direction", "phi": "cofiring"}
"""Measure -> the field of `saelab.stores.compare.Comparison`."""
TITLES = {"cosine": "decoder cosine", "phi": "co-firing, phi"}
KINDS = ("", "shared", "matched")


class Share(NamedTuple):
    """How many latents of one SAE have a partner above chance."""

    found: int
    of: int
    """latents that took part"""
    interval: tuple[float, float]
    """95 % interval of found / of (Wilson's)"""
    chance: float
    """share of latents whose best partner by chance is above the threshold"""
    chance_interval: tuple[float, float]

    @property
    def value(self) -> float:
        """found / of; NaN of none."""
        return self.found / self.of if self.of else float("nan")

    def __str__(self) -> str:
        (low, high), (under, over) = self.interval, self.chance_interval
        return (
            f"{self.value:.1%} [{low:.1%}, {high:.1%}] of {self.of:,}, by chance {self.chance:.1%} "
            f"[{under:.1%}, {over:.1%}]"
        )


class Side(NamedTuple):
    """The latents of one SAE by one measure."""

    partner: np.ndarray
    """int64 [n_latents]: the most similar latent of the other SAE; -1 where there is none"""
    score: np.ndarray
    """float64 [n_latents]: similarity to it, NaN where there is none"""
    threshold: float
    """what 1 % of the latents reach by chance; NaN where none took part"""
    share: Share

    @property
    def above(self) -> np.ndarray:
        """bool [n_latents]: whether the partner is above the threshold."""
        return np.nan_to_num(self.score, nan=-np.inf) > self.threshold


@dataclass(frozen=True)
class Compared:
    """Latents of two SAEs. By one measure a pair is shared where one is the other's most similar latent and
    above what chance reaches in 1 %, matched where that holds both ways. Own are those that are in no such
    pair."""

    names: tuple[str, str]
    n_latents: tuple[int, int]
    sides: Mapping[str, tuple[Side, Side]]
    """measure ("cosine", "phi") -> our latents, their latents"""
    pairs: np.ndarray
    """int64 [m 2]: our latent, their latent, of all measures; those that are matched by most of them first,
    then by the larger similarity"""
    kinds: Mapping[str, np.ndarray]
    """measure -> int8 [m]: 2 where a pair is matched by it, 1 where it is shared, else 0"""
    scores: Mapping[str, np.ndarray]
    """measure -> float64 [m]: similarity of the pair, NaN where it was not worked out"""
    own: Mapping[str, tuple[np.ndarray, np.ndarray]]
    """measure -> int64: latents of each that took part and are in no pair by it"""
    left_out: Mapping[str, tuple[np.ndarray, np.ndarray]]
    """measure -> int64: latents of each that took no part: without a direction, or on too few rows"""
    reasons: tuple[str, ...] = field(default=())
    """why a measure is missing"""

    def to_frame(self) -> pd.DataFrame:
        """One row a pair: ours, theirs, and of each measure the similarity and "matched", "shared" or ""."""
        import pandas as pd

        columns = {"ours": self.pairs[:, 0], "theirs": self.pairs[:, 1]}
        for measure, found in self.scores.items():
            kind = np.array(KINDS, object)[self.kinds[measure]]
            columns |= {measure: found, f"{measure}_kind": kind}
        return pd.DataFrame(columns)

    def shares(self) -> pd.DataFrame:
        """One row a measure and SAE: share of its latents with a partner above chance, its interval, and what
        chance gives."""
        import pandas as pd

        rows = [
            [TITLES[name], of, side.share.value, *side.share.interval, side.share.chance,
             *side.share.chance_interval, side.threshold, side.share.of]
            for name, both in self.sides.items() for of, side in zip(self.names, both, strict=True)
        ]  # fmt: skip
        columns = [
            "measure",
            "sae",
            "share",
            "from",
            "to",
            "chance",
            "chance from",
            "chance to",
            "above",
            "of",
        ]
        return pd.DataFrame(rows, columns=columns)

    def figure(self) -> go.Figure:
        """How similar the best partners of our latents are, beside the threshold, a panel a measure."""
        from plotly.subplots import make_subplots

        titles = [TITLES[name] for name in self.sides]
        figure = make_subplots(cols=len(self.sides), horizontal_spacing=0.1, subplot_titles=titles)
        for column, (ours, theirs) in enumerate(self.sides.values(), start=1):
            for side, name, colour in zip((ours, theirs), self.names, ("#0072b2", "#d55e00"), strict=True):
                figure.add_histogram(
                    x=side.score[np.isfinite(side.score)], name=name, legendgroup=name, opacity=0.6,
                    showlegend=column == 1, marker_color=colour, nbinsx=50, row=1, col=column,
                )  # fmt: skip
            figure.add_vline(x=ours.threshold, line_dash="dash", row=1, col=column)  # type: ignore[arg-type]
            figure.update_xaxes(title_text="similarity to the best partner", row=1, col=column)
        figure.update_yaxes(title_text="latents", row=1, col=1)
        figure.update_layout(
            barmode="overlay", template="plotly_white", height=380,
            title=f"{self.names[0]} and {self.names[1]}; dashed: what 1 % of {self.names[0]} reach by chance",
        )  # fmt: skip
        return figure

    __repr__ = headline

    def __str__(self) -> str:
        lines = [f"{name}: {n:,} latents" for name, n in zip(self.names, self.n_latents, strict=True)]
        for measure, both in self.sides.items():
            kinds, own, left = self.kinds[measure], self.own[measure], self.left_out[measure]
            lines.append(
                f"{TITLES[measure]}: {int((kinds == 2).sum()):,} matched pairs, {int((kinds == 1).sum()):,} "
                f"shared; own {len(own[0]):,} and {len(own[1]):,}; not compared {len(left[0]):,} and "
                f"{len(left[1]):,}"
            )
            for name, side in zip(self.names, both, strict=True):
                lines.append(f"  {name}: partner above {side.threshold:.3f}: {side.share}")
        return "\n".join([*lines, *self.reasons])


@checked(store=a_store, other=a_store, min_rows=an_integer(1), seed=an_integer())
def compare(
    store: FeatureStore,
    other: FeatureStore,
    *,
    names: tuple[str, str] = ("ours", "theirs"),
    min_rows: int = 10,
    seed: int = 0,
) -> Compared:
    """Which latents of two SAEs are alike: by decoder directions, and by firing on the same rows.

    `store.compare` both ways. The threshold is what 1 % of the latents reach by chance: of as many random
    directions, or with the rows of one store shifted against the other's. It is taken from half of the
    latents, and the share that chance gives is measured on the other half.

    Args:
        store: Of our SAE.
        other: Of theirs; over the same rows for co-firing, of one width for directions.
        names: What the SAEs are called.
        min_rows: Latents that fire on fewer rows take no part in co-firing.
        seed: Of the controls, and of the halves.

    Returns:
        Pairs, own latents and shares.

    Raises:
        StoreError: Neither can be done.
        RangeError: min_rows is out of range.
    """
    rows = min(min_rows, store.n_rows, other.n_rows)
    there = store.compare(other, min_rows=rows, seed=seed)
    back = other.compare(store, min_rows=rows, seed=seed)
    sides = {
        measure: (_side(one, seed), _side(two, seed + 1))
        for measure, kind in MEASURES.items()
        if (one := getattr(there, kind)) is not None and (two := getattr(back, kind)) is not None
    }
    found = {measure: _kinds(both) for measure, both in sides.items()}
    pairs = np.unique(np.concatenate([each for each, _ in found.values()]), axis=0)
    kinds = {measure: _placed(pairs, *each) for measure, each in found.items()}
    scores = {measure: _of_pairs(pairs, both) for measure, both in sides.items()}
    if "cosine" in sides:
        scores["cosine"] = _cosines(store, other, pairs)
    most = np.nan_to_num(np.column_stack(list(scores.values())), nan=-1.0).max(1, initial=-1.0)
    rank = np.sum([kind == 2 for kind in kinds.values()], axis=0)
    order = np.lexsort((pairs[:, 1], pairs[:, 0], -most, -rank))
    own, left_out = {}, {}
    for measure, both in sides.items():
        paired = pairs[kinds[measure] > 0]
        inside = [np.isin(np.arange(len(side.score)), paired[:, at]) for at, side in enumerate(both)]
        taken = [np.isfinite(side.score) for side in both]
        own[measure] = tuple(np.flatnonzero(t & ~i) for t, i in zip(taken, inside, strict=True))
        left_out[measure] = tuple(np.flatnonzero(~t & ~i) for t, i in zip(taken, inside, strict=True))
    return Compared(
        names=(str(names[0]), str(names[1])),
        n_latents=(store.n_latents, other.n_latents),
        sides=sides,
        pairs=pairs[order],
        kinds={measure: kind[order] for measure, kind in kinds.items()},
        scores={measure: score[order] for measure, score in scores.items()},
        own=own,
        left_out=left_out,
        reasons=there.reasons,
    )


def _side(matches: Matches, seed: int) -> Side:
    score, control = matches.score[:, 0], matches.control
    taken = np.flatnonzero(np.isfinite(control))
    # a stream of its own: the controls were drawn by that of the seed itself
    order = np.random.default_rng([seed, 1]).permutation(len(taken))
    half = taken[order[: -(-len(taken) // 2)]]
    rest = taken[order[len(half) :]]
    threshold = float(np.percentile(control[half], PERCENTILE)) if len(half) else float("nan")
    own = np.isfinite(score)
    found, lucky = int((score[own] > threshold).sum()), int((control[rest] > threshold).sum())
    chance = lucky / len(rest) if len(rest) else float("nan")
    share = Share(found, int(own.sum()), wilson(found, int(own.sum())), chance, wilson(lucky, len(rest)))
    return Side(matches.partner[:, 0], score, threshold, share)


def _kinds(both: tuple[Side, Side]) -> tuple[np.ndarray, np.ndarray]:
    """(pairs int64 [k 2], kinds int8 [k]) by one measure, each pair once."""
    found, kinds = [np.zeros((0, 2), np.int64)], [np.zeros(0, np.int8)]
    ours, theirs = both
    for side, back, swap in ((ours, theirs, False), (theirs, ours, True)):
        at = np.flatnonzero(side.above)
        partner = side.partner[at]
        found.append(np.column_stack([partner, at] if swap else [at, partner]))
        kinds.append(np.where((back.partner[partner] == at) & back.above[partner], 2, 1).astype(np.int8))
    pairs, first = np.unique(np.concatenate(found), axis=0, return_index=True)
    return pairs, np.concatenate(kinds)[first]


def _placed(pairs: np.ndarray, some: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """int8 [m]: the kinds of some of the pairs at their places, 0 elsewhere. Both are sorted."""
    out = np.zeros(len(pairs), np.int8)
    wide = int(max(pairs[:, 1].max(initial=0), some[:, 1].max(initial=0))) + 1
    out[np.searchsorted(pairs[:, 0] * wide + pairs[:, 1], some[:, 0] * wide + some[:, 1])] = kinds
    return out


def _of_pairs(pairs: np.ndarray, both: tuple[Side, Side]) -> np.ndarray:
    """float64 [m]: the measure of pairs one of which is the other's partner, else NaN."""
    out = np.full(len(pairs), np.nan)
    for at, side in enumerate(both):
        mine, their = pairs[:, at], pairs[:, 1 - at]
        here = side.partner[mine] == their
        out[here] = side.score[mine[here]]
    return out


def _cosines(store: FeatureStore, other: FeatureStore, pairs: np.ndarray, step: int = 1 << 14) -> np.ndarray:
    """float64 [m]: of all pairs, some at a time; NaN where one has no direction."""
    out = np.full(len(pairs), np.nan)
    for first in range(0, len(pairs), step):
        part = slice(first, first + step)
        a = store.directions[pairs[part, 0]].astype(np.float64)
        b = other.directions[pairs[part, 1]].astype(np.float64)
        norms = np.sqrt(np.einsum("ij,ij->i", a, a) * np.einsum("ij,ij->i", b, b))
        some = norms > 0
        out[part][some] = np.einsum("ij,ij->i", a, b)[some] / norms[some]
    return out


__all__ = ["Compared", "Share", "Side", "compare"]
