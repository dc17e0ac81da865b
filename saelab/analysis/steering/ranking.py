"""Ways to rank latents by how differently they fire in two kinds of samples."""

from __future__ import annotations

import numpy as np

MOST = 512
"""Latents that a probe reads, those of the largest difference."""
FLOOR = 0.01
"""Share of a latent's largest code below which its spread is not believed."""


def spread(codes: np.ndarray) -> np.ndarray:
    """float64 [live]: the standard deviation of each latent, at least a hundredth of its largest code."""
    largest = np.abs(codes).max(0, initial=0)
    return np.maximum(codes.std(0, dtype=np.float64), np.where(largest > 0, FLOOR * largest, 1.0))


def difference(codes: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """float64 [live]: mean of the positive samples less that of the others, in units of the standard
    deviation within them (Cohen's d).

    Args:
        codes: [samples live].
        positive: bool [samples].
    """
    one, other = codes[positive].astype(np.float64), codes[~positive].astype(np.float64)
    within = np.sqrt((one.var(0) + other.var(0)) / 2)
    largest = np.abs(codes).max(0, initial=0)
    return (one.mean(0) - other.mean(0)) / np.maximum(within, np.where(largest > 0, FLOOR * largest, 1.0))


def set_difference(codes: np.ndarray, positive: np.ndarray, top: int) -> np.ndarray:
    """float64 [live]: in how many positive samples a latent is among the `top` of largest size; -inf unless
    it is in one and in no other sample (the selection of ItD, arXiv 2503.09446).

    Args:
        codes: [samples live].
        positive: bool [samples].
        top: Latents of a sample.
    """
    size = np.abs(codes)
    order = np.argsort(-size, axis=1, kind="stable")[:, :top]
    chosen = np.zeros(codes.shape, bool)
    np.put_along_axis(chosen, order, True, axis=1)
    chosen &= size > 0
    counts = chosen[positive].sum(0).astype(np.float64)
    # among latents of equal counts the one that differs more comes first
    tie = difference(size, positive)
    tie = tie / (2 * np.abs(tie).max(initial=1.0))
    return np.where((counts > 0) & ~chosen[~positive].any(0), counts + tie, -np.inf)


def probe(codes: np.ndarray, positive: np.ndarray, penalty: str, strength: float) -> np.ndarray:
    """float64 [live]: weights of a logistic probe on standardised codes; 0 of latents that it does not read.

    Args:
        codes: [samples live].
        positive: bool [samples].
        penalty: "l1" or "l2".
        strength: Of the penalty, on the mean loss.
    """
    out = np.zeros(codes.shape[1])
    used = np.argsort(-np.abs(difference(codes, positive)), kind="stable")[:MOST]
    x = codes[:, used].astype(np.float64)
    x = (x - x.mean(0)) / spread(codes[:, used])
    out[used] = logistic(x, positive.astype(np.float64), penalty, strength)[0]
    return out


def logistic(
    x: np.ndarray, y: np.ndarray, penalty: str, strength: float, steps: int = 2000, tol: float = 1e-8
) -> tuple[np.ndarray, float]:
    """The minimum of mean log loss + strength * |w|_1, or strength / 2 * |w|^2, by FISTA; the bias is free.

    Args:
        x: [n d].
        y: [n], 0 or 1.
        penalty: "l1" or "l2".
        strength: Of the penalty.
        steps: At most.
        tol: It ends when no weight moves by more.

    Returns:
        (weights [d], bias).
    """
    n, d = x.shape
    wide = np.concatenate([x, np.ones((n, 1))], 1)
    penalised = np.r_[np.ones(d), 0.0]
    ridge = strength if penalty == "l2" else 0.0
    # no more than the curvature of the loss, by the norm of the smaller Gram matrix
    gram = wide @ wide.T if n < d else wide.T @ wide
    step = 1 / (0.25 * float(np.linalg.norm(gram, 2)) / n + ridge)
    shrink = step * strength * penalised if penalty == "l1" else 0.0
    w = ahead = np.zeros(d + 1)
    t = 1.0
    for _ in range(steps):
        p = 1 / (1 + np.exp(-np.clip(wide @ ahead, -50, 50)))
        new = ahead - step * (wide.T @ (p - y) / n + ridge * penalised * ahead)
        new = np.sign(new) * np.maximum(np.abs(new) - shrink, 0)
        if (ahead - new) @ (new - w) > 0:  # it overshot: start the momentum anew
            t, ahead = 1.0, new
        else:
            after = (1 + np.sqrt(1 + 4 * t * t)) / 2
            ahead, t = new + (t - 1) / after * (new - w), after
        moved, w = np.abs(new - w).max(), new
        if moved < tol:
            break
    return w[:-1], float(w[-1])


__all__ = ["difference", "logistic", "probe", "set_difference", "spread"]
