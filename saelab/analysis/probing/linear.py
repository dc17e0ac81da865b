"""Probes on whole activations, by direction: what an SAE's latents are compared with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Probe:
    """A logistic probe on activations."""

    direction: np.ndarray
    """float64 [d_in], of unit norm, in the space of activations"""
    bias: float
    """direction . x + bias > 0 where it says yes"""

    def says(self, x: np.ndarray) -> np.ndarray:
        """bool [n]."""
        return x @ self.direction + self.bias > 0


def probe_of(x: np.ndarray, positive: np.ndarray) -> Probe:
    """A probe on activations, scaled by one number so that its direction is that of its weights.

    Args:
        x: float64 [n d_in].
        positive: bool [n].
    """
    from sklearn.linear_model import LogisticRegression

    middle = x.mean(0)
    size = float(np.sqrt(np.square(x - middle).mean())) or 1.0
    fit = LogisticRegression(class_weight="balanced", max_iter=1000).fit((x - middle) / size, positive)
    weights = fit.coef_[0] / size
    length = float(np.linalg.norm(weights)) or 1.0
    return Probe(weights / length, float(fit.intercept_[0] - weights @ middle) / length)


__all__ = ["Probe", "probe_of"]
