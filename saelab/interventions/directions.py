"""Directions that need no SAE, the baselines of steering with one; and what edits take from a store."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from saelab.arguments import a_store, checked, floats, listed, real
from saelab.stores import FeatureStore
from saelab.types import ConfigError, NonFiniteError, ShapeError


@checked(positive=floats, negative=floats)
def mean_difference(positive: Tensor, negative: Tensor) -> Tensor:
    """The mean of activations with a concept minus the mean of those without: its steering vector.

    Args:
        positive: [n, width] activations with the concept.
        negative: [m, width] activations without.

    Returns:
        [width], in units of the activations.

    Raises:
        ShapeError: They are no rows of one width.
        ConfigError: One of them has no row.
        NonFiniteError: There is NaN or infinity in them.
    """
    positive, negative = _sides(positive, negative)
    return (positive.double().mean(0) - negative.double().mean(0)).to(positive.dtype)


@checked(positive=floats, negative=floats, c=real(0))
def probe_direction(positive: Tensor, negative: Tensor, c: float = 1.0) -> Tensor:
    """The direction along which a logistic probe tells activations with a concept from those without.

    The probe sees standardised activations and is fitted with an L2 penalty. Its weights, taken back to
    activations, are scaled so that a step of the vector moves the mean without the concept as far along it as
    the mean with it lies: alpha = 1 then means the same as with `mean_difference`.

    Args:
        positive: [n, width] activations with the concept.
        negative: [m, width] activations without.
        c: Inverse strength of the penalty, as scikit-learn's LogisticRegression has it.

    Returns:
        [width], in units of the activations.

    Raises:
        ShapeError: They are no rows of one width.
        ConfigError: One of them has no row.
        NonFiniteError: There is NaN or infinity in them.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    positive, negative = _sides(positive, negative)
    rows = torch.cat([positive, negative]).double().cpu().numpy()
    scaler = StandardScaler().fit(rows)
    labels = [1] * len(positive) + [0] * len(negative)
    probe = LogisticRegression(C=c, class_weight="balanced", max_iter=1000)
    probe.fit(scaler.transform(rows), labels)
    weights = torch.from_numpy(probe.coef_[0] / scaler.scale_)
    unit = weights / weights.norm().clamp_min(torch.finfo(weights.dtype).tiny)
    apart = (positive.double().mean(0) - negative.double().mean(0)).cpu() @ unit
    return (unit * apart).to(positive)


@checked(store=a_store, latents=listed)
def latent_means(store: FeatureStore, latents: Sequence[int]) -> tuple[float, ...]:
    """The mean code of each of some latents over all rows of a store, those where it is 0 among them: what
    `Ablate(..., to="mean", means=)` takes.

    Args:
        store: Of the SAE.
        latents: Which.

    Raises:
        RangeError: A latent is out of range.
    """
    found = [store.latent(latent) for latent in latents]
    return tuple(each.mean * each.density for each in found)


def _sides(positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
    for name, rows in (("positive", positive), ("negative", negative)):
        if rows.ndim != 2 or rows.shape[1] != positive.shape[-1]:
            message = (
                f"{name} must be activations [n, width], as wide as the others. Got {list(rows.shape)} "
                f"beside {list(positive.shape)}. Read both at one hook point."
            )
            raise ShapeError(message)
        if not len(rows):
            message = f"{name} must hold a row. Got {list(rows.shape)}. Pass activations of some inputs."
            raise ConfigError(message)
        if not rows.isfinite().all():
            message = f"{name} must be finite. Got NaN or infinity in it. Drop these rows."
            raise NonFiniteError(message)
    return positive, negative


__all__ = ["latent_means", "mean_difference", "probe_direction"]
