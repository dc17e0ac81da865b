"""Data of known attributes on which SAEs fail in a known way (Makelov et al., arXiv 2405.08366)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from saelab.analysis.controls import random_directions, shuffled, untrained
from saelab.analysis.supervised.f1 import attribute_f1
from saelab.arguments import an_integer, checked, listed
from saelab.config import is_integer, is_number
from saelab.sae import SAE, recipe
from saelab.training import train
from saelab.types import ConfigError, short

if TYPE_CHECKING:
    import pandas as pd

WIDTH, ROWS, HELD_OUT = 32, 4096, 2048
SPECIFIC, FIRES = 0.95, 0.005
"""A latent is of a value where so large a share of the rows that it fires in has it; and fires in so many."""


@checked(ratios=listed, n_values=an_integer(2, 64), seeds=an_integer(1, 100), steps=an_integer(1))
def occlusion(
    ratios: Sequence[float] = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0),
    *,
    n_values: int = 16,
    seeds: int = 3,
    steps: int = 400,
) -> pd.DataFrame:
    """One attribute hides another that is smaller, though as much depends on it::

        x = u[v] + ratio * w[z] + noise,    v, z drawn alike often, |u[v]| = |w[z]| = 1

    An SAE (TopK, k = 2) has a latent to spare for every value of both. What it does with them follows from
    their norms alone.

    Args:
        ratios: Norms of the smaller attribute, in units of the larger one's.
        n_values: Values of each.
        seeds: SAEs for each ratio, each with directions and rows of its own.
        steps: Of training.

    Returns:
        A row for each ratio and seed: "large" and "small", the mean over values of the F1, on held-out rows,
        of the latent that told each best on the training rows; "shuffled" and "untrained", "small" of labels
        that were shuffled and of an untrained SAE; "fvu".

    Raises:
        ConfigError: A ratio is no number above 0, or another argument is out of range.
    """
    import pandas as pd

    for each in ratios:
        if not is_number(each) or not 0 < each < np.inf:
            message = f"A ratio must be a number above 0. Got {short(each)}. Pass e.g. ratios=(0.1, 1.0)."
            raise ConfigError(message)
    found = []
    for ratio in ratios:
        for seed in range(seeds):
            directions = torch.from_numpy(random_directions(2 * n_values, WIDTH, seed))
            draw = torch.Generator().manual_seed(seed)
            v, z = torch.randint(n_values, (2, ROWS + HELD_OUT), generator=draw)
            noise = 0.05 * torch.randn(ROWS + HELD_OUT, WIDTH, generator=draw)
            x = directions[v] + ratio * directions[n_values + z] + noise
            sae = _trained(x[:ROWS], 2 * n_values, 2, steps, seed)
            small = z.numpy()
            row: dict[str, float] = {"ratio": float(ratio), "seed": seed}
            row |= {"large": _told(sae, x, v.numpy()), "small": _told(sae, x, small)}
            row["shuffled"] = _told(sae, x, shuffled(small, seed))
            row["untrained"] = _told(untrained(sae, x[:ROWS], seed=seed), x, small)
            found.append(row | {"fvu": _fvu(sae, x[ROWS:])})
    return pd.DataFrame(found)


@checked(widths=listed, seeds=an_integer(1, 100), steps=an_integer(1))
def over_splitting(
    widths: Sequence[int] = (4, 16, 64, 256), *, spread: float = 1.0, seeds: int = 3, steps: int = 400
) -> pd.DataFrame:
    """An attribute of two values takes as many latents as there are::

        x = m + noise  or  x = -m + noise,    |m| = 1

    Two latents, or one direction, would say all there is to say of it; what is left is noise of no direction.

    Args:
        widths: Latents of the SAEs (TopK, k = 1).
        spread: Root mean square norm of the noise.
        seeds: SAEs for each width.
        steps: Of training.

    Returns:
        A row for each width and seed, of held-out rows: "specific", how many latents are of one value (they
        fire in .5 % of the rows or more, of which .95 have it); "shuffled", how many would be of shuffled
        labels; "best", the F1 of the latent that tells a value best, mean over both; "supervised", that of
        the side of the mean difference; "fvu".

    Raises:
        ConfigError: A width is no integer from 1 on, or another argument is out of range.
    """
    import pandas as pd

    for each in widths:
        if not is_integer(each) or each < 1:
            message = f"A width must be an integer from 1 on. Got {short(each)}. Pass e.g. widths=(4, 64)."
            raise ConfigError(message)
    if not is_number(spread) or not 0 <= spread < np.inf:
        message = f"spread must be a number from 0 on. Got {short(spread)}. Pass e.g. spread=1.0."
        raise ConfigError(message)
    return pd.DataFrame(list(_split(widths, float(spread), seeds, steps)))


def _split(widths: Sequence[int], spread: float, seeds: int, steps: int) -> Iterator[dict[str, Any]]:
    for width in widths:
        for seed in range(seeds):
            middle = torch.from_numpy(random_directions(1, WIDTH, seed))
            draw = torch.Generator().manual_seed(seed)
            side = torch.randint(2, (ROWS + HELD_OUT,), generator=draw)
            noise = spread / WIDTH**0.5 * torch.randn(ROWS + HELD_OUT, WIDTH, generator=draw)
            x = (2 * side[:, None] - 1) * middle + noise
            sae = _trained(x[:ROWS], int(width), 1, steps, seed)
            on, held = _codes(sae, x[ROWS:]) != 0, side[ROWS:].numpy()
            fit = x[:ROWS]
            away = fit[side[:ROWS] == 1].mean(0) - fit[side[:ROWS] == 0].mean(0)
            guess = ((x[ROWS:] - fit.mean(0)) @ away > 0).numpy()
            yield {
                "width": int(width), "seed": seed, "specific": _specific(on, held),
                "shuffled": _specific(on, shuffled(held, seed)), "best": _told(sae, x, side.numpy()),
                "supervised": float(np.mean([attribute_f1(_both(guess), held).f1.max(1)])),
                "fvu": _fvu(sae, x[ROWS:]),
            }  # fmt: skip


def _both(guess: np.ndarray) -> np.ndarray:
    return np.stack([guess, ~guess], 1).astype(np.float64)


def _specific(on: np.ndarray, side: np.ndarray) -> int:
    n = on.sum(0)
    share = (on * side[:, None]).sum(0) / np.maximum(n, 1)
    return int(((n >= FIRES * len(on)) & (np.maximum(share, 1 - share) >= SPECIFIC)).sum())


def _trained(x: Tensor, d_sae: int, k: int, steps: int, seed: int) -> SAE:
    config = recipe("topk", d_in=WIDTH, d_sae=d_sae, k=k)
    return train(config, x, steps=steps, batch_size=512, lr=3e-3, seed=seed, progress=False).sae


@torch.no_grad()
def _codes(sae: SAE, x: Tensor) -> np.ndarray:
    return sae.encode(x).numpy()


@torch.no_grad()
def _fvu(sae: SAE, x: Tensor) -> float:
    return float((sae(x).x_hat - x).square().sum() / (x - x.mean(0)).square().sum())


def _told(sae: SAE, x: Tensor, values: np.ndarray) -> float:
    """Mean over values of the F1 on held-out rows of the latent that told each best on the others."""
    codes = _codes(sae, x)
    best = attribute_f1(codes[:ROWS], values[:ROWS]).f1.argmax(1)
    held = attribute_f1(codes[ROWS:], values[ROWS:]).f1
    return float(np.mean([held[i, j] for i, j in enumerate(best)]))


__all__ = ["occlusion", "over_splitting"]
