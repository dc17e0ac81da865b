"""How much of a known truth an SAE recovers, beside an untrained SAE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from saelab.analysis.controls import Beside, Sums, beside, untrained
from saelab.arguments import an_integer, checked, flag, full_sae, matrix
from saelab.config import integer
from saelab.corpora.synthetic import HELD_OUT, Synthetic
from saelab.errors import headline
from saelab.types import ConfigError, ShapeError

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from saelab.sae import SAE

BATCH = 1024


@dataclass(frozen=True)
class RecoveryScores:
    """What was measured of one SAE on known features."""

    recovered_80: float
    """share of the features whose latent has a cosine of at least .8, each latent serving one feature"""
    recovered_90: float
    recovered_95: float
    mean_cosine: float
    """over all features; one without a latent counts 0"""
    fvu: float
    """sum |x - x_hat|^2 / sum |x - mean x|^2 over all rows: 0 is perfect, 1 is what the mean gives"""
    l0: float
    """latents != 0 per row, mean"""
    l0_correlation: float
    """of a row's latents != 0 with its true number of active features (Pearson); NaN where one is constant"""
    dead: float
    """fraction of latents that never fired on these rows"""


@dataclass(frozen=True, eq=False)
class Recovery:
    """Scores of an SAE on known features beside those of an untrained SAE of the same configuration, on the
    same rows."""

    n_features: int
    n_rows: int
    either_sign: bool
    """whether a latent that points the opposite way counts, as it should where coefficients or codes are
    signed"""
    l0_true: float
    """active features per row, mean"""
    fvu_true: float
    """FVU of the true coefficients and directions: what noise alone leaves"""
    latents: np.ndarray
    """int64 [n_features]: the latent matched to each feature, -1 where there were too few"""
    cosines: np.ndarray
    """float64 [n_features]: of each feature with its latent's decoder row (of its absolute value with
    `either_sign`), 0 without one"""
    sae: RecoveryScores
    untrained: RecoveryScores
    scores: Mapping[str, Beside] = field(default_factory=dict)
    """those that are means, each beside the untrained SAE's, with intervals: over features (recovered_80 to
    mean_cosine) or over rows (l0)"""

    def to_frame(self) -> pd.DataFrame:
        """One row a score, columns: this SAE, untrained SAE."""
        import pandas as pd

        names = list(RecoveryScores.__dataclass_fields__)
        return pd.DataFrame(
            {
                "this SAE": [getattr(self.sae, n) for n in names],
                "untrained SAE": [getattr(self.untrained, n) for n in names],
            },
            index=pd.Index(names, name="score"),
        )

    __repr__ = headline

    def __str__(self) -> str:
        head = (
            f"{self.n_features} features, {self.n_rows:,} rows; "
            f"truth: L0 {self.l0_true:.3g}, FVU {self.fvu_true:.3g}"
        )
        return f"{head}\n{self.to_frame().to_string(float_format=lambda v: f'{v:.4g}')}"


class Match(NamedTuple):
    """One latent for each direction, no latent twice."""

    latents: np.ndarray
    """int64 [n_features], -1 where there were fewer latents than features"""
    cosines: np.ndarray
    """float64 [n_features], 0 where there is no latent"""

    def to_frame(self) -> pd.DataFrame:
        """One line for each direction: latent, cosine."""
        import pandas as pd

        return pd.DataFrame({"latent": self.latents, "cosine": self.cosines}).rename_axis("direction")


@checked(W_dec=matrix, directions=matrix, either_sign=flag)
def match(W_dec: np.ndarray, directions: np.ndarray, *, either_sign: bool = False) -> Match:
    """The one-to-one assignment of decoder rows to directions that has the largest sum of cosines.

    (Hungarian method.) Taking the best latent of each feature by itself would count a latent between two
    features twice. Rows of norm 0 have cosine 0 with everything.

    Args:
        W_dec: [d_sae d_in].
        directions: [n_features d_in].
        either_sign: Take |cosine|.

    Raises:
        ShapeError: They have different widths, or are no matrices.
    """
    from scipy.optimize import linear_sum_assignment

    if W_dec.ndim != 2 or directions.ndim != 2 or W_dec.shape[1] != directions.shape[1]:
        message = (
            "Decoder rows and directions must be [d_sae d_in] and [n_features d_in]. "
            f"Got {W_dec.shape} and {directions.shape}. Pass an SAE of the truth's d_in."
        )
        raise ShapeError(message)
    cosines = _unit(directions) @ _unit(W_dec).T
    if either_sign:
        cosines = np.abs(cosines)
    feature, latent = linear_sum_assignment(cosines, maximize=True)
    latents = np.full(len(directions), -1)
    found = np.zeros(len(directions))
    latents[feature], found[feature] = latent, cosines[feature, latent]
    return Match(latents, found)


@checked(sae=full_sae, start=an_integer(), seed=an_integer())
def recovery(
    sae: SAE,
    truth: Synthetic,
    *,
    n_rows: int = 16_384,
    start: int = HELD_OUT,
    seed: int = 0,
) -> Recovery:
    """Which known features an SAE has found, and what its codes are like on held-out rows.

    Decoder rows are matched to the true directions one to one, whichever way a latent points where the
    truth or the codes are signed. FVU, L0 and dead latents are of rows start..start+n_rows-1; from the
    default on no training has seen them. The SAE is scored in eval mode and left in the mode that it was in.

    Args:
        sae: whose scores are wanted.
        truth: what it was trained on.
        n_rows: that are scored.
        start: number of the first of them.
        seed: of the intervals, and of the untrained SAE, which knows of the data what training begins with:
            the mean and scale of the first rows.

    Raises:
        ShapeError: The widths differ.
        ConfigError: The truth is no Synthetic, or there are fewer than two rows.
    """
    if not isinstance(truth, Synthetic):
        message = (
            f"The truth must be a saelab.corpora.Synthetic. Got {type(truth).__name__}. "
            "Make one by saelab.corpora.synthetic(...)."
        )
        raise ConfigError(message)
    if sae.d_in != truth.d_in:
        message = (
            f"The SAE must have the truth's d_in={truth.d_in}. Got {sae.d_in}. Score it on the truth that "
            "it was trained on."
        )
        raise ShapeError(message)
    n_rows = integer("n_rows", n_rows, 2)
    arms, mode = [_Arm(sae), _Arm(untrained(sae, truth.rows(4096).acts, seed=seed))], sae.training
    sae.eval()
    try:
        l0_true, fvu_true = _measure(arms, truth, n_rows, start)
    finally:
        sae.train(mode)
    either_sign = truth.signed or sae.sparsifier.signed
    matches = [match(_rows(arm.sae), truth.directions, either_sign=either_sign) for arm in arms]
    scores = [arm.scores(found, l0_true) for arm, found in zip(arms, matches, strict=True)]
    return Recovery(
        n_features=truth.n_features,
        n_rows=n_rows,
        either_sign=either_sign,
        l0_true=float(l0_true.mean()),
        fvu_true=fvu_true,
        latents=matches[0].latents,
        cosines=matches[0].cosines,
        sae=scores[0],
        untrained=scores[1],
        scores=_beside(matches, arms, seed),
    )


def _beside(matches: Sequence[Match], arms: Sequence[_Arm], seed: int) -> dict[str, Beside]:
    """The scores that are means over features or rows, with their intervals."""
    found = {}
    for name, bar in (("recovered_80", 0.8), ("recovered_90", 0.9), ("recovered_95", 0.95)):
        found[name] = [m.cosines >= bar for m in matches]
    found["mean_cosine"] = [m.cosines for m in matches]
    found["l0"] = [np.concatenate(arm.l0) for arm in arms]
    out = {}
    for name, values in found.items():
        of, control = Sums(), Sums()
        for each, value in zip((of, control), values, strict=True):
            each.add(np.arange(len(value)), sum=value, n=np.ones(len(value)))
        out[name] = beside(of, control, lambda s: s["sum"] / s["n"], seed)
    return out


def _measure(arms: list[_Arm], truth: Synthetic, n_rows: int, start: int) -> tuple[np.ndarray, float]:
    """Show every arm the rows. Gives the true number of active features of each, and the truth's FVU."""
    import torch

    from saelab.sae import FVU

    counts, best = [], FVU()
    for first in range(0, n_rows, BATCH):
        rows = truth.rows(min(BATCH, n_rows - first), start + first)
        counts.append(rows.codes.l0)
        best.update(rows.acts, torch.from_numpy(rows.codes.dense() @ truth.directions))
        for arm in arms:
            arm.add(rows.acts)
    return np.concatenate(counts), best.value


class _Arm:
    """One SAE with what has been seen of it."""

    def __init__(self, sae: SAE) -> None:
        from saelab.sae import FVU

        self.sae = sae
        self.fvu = FVU()
        self.fired = np.zeros(sae.d_sae, dtype=bool)
        self.l0: list[np.ndarray] = []

    def add(self, x: Tensor) -> None:
        import torch

        with torch.no_grad():
            forward = self.sae(x.to(self.sae.device))
        self.fvu.update(forward.x, forward.x_hat)
        on = (forward.codes != 0).cpu().numpy()
        self.fired |= on.any(0)
        self.l0.append(on.sum(1))

    def scores(self, found: Match, l0_true: np.ndarray) -> RecoveryScores:
        l0 = np.concatenate(self.l0)
        varies = l0.std() > 0 and l0_true.std() > 0
        return RecoveryScores(
            recovered_80=float((found.cosines >= 0.8).mean()),
            recovered_90=float((found.cosines >= 0.9).mean()),
            recovered_95=float((found.cosines >= 0.95).mean()),
            mean_cosine=float(found.cosines.mean()),
            fvu=self.fvu.value,
            l0=float(l0.mean()),
            l0_correlation=float(np.corrcoef(l0, l0_true)[0, 1]) if varies else float("nan"),
            dead=float(1 - self.fired.mean()),
        )


def _rows(sae: SAE) -> np.ndarray:
    return sae.W_dec.detach().cpu().double().numpy()


def _unit(rows: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    return np.divide(rows, norms, out=np.zeros(rows.shape), where=norms > 0)


__all__ = ["Match", "Recovery", "RecoveryScores", "match", "recovery"]
