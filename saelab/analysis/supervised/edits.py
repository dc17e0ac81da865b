"""Edits of few latents that bring one activation as near as they can to another."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from saelab.sae import SAE

AT_ONCE = 2**24
"""Numbers that are looked at together."""


class Coded(NamedTuple):
    """What an SAE makes of rows, in units of the activations."""

    codes: Tensor
    """[n d_sae]: how far each latent goes along its direction"""
    x_hat: Tensor
    """[n width]: its reconstruction"""


class SparseEdit(NamedTuple):
    """An edit of few latents of each row."""

    change: Tensor
    """[n width], to be added to the activations"""
    weight: np.ndarray
    """float64 [n]: share of the reconstruction that was removed"""
    latents: np.ndarray
    """int64 [n]: how many latents were edited"""


@torch.no_grad()
def coded(sae: SAE, x: Tensor) -> Coded:
    """Codes and reconstruction of rows.

    Args:
        sae: An autoencoder.
        x: [n width].
    """
    given = x.to(sae.device, sae.dtype)
    out = sae(given)
    codes = out.codes if out.scale is None else out.codes * out.scale.norm
    return Coded(codes.float().cpu(), out.x_hat.float().cpu())


@torch.no_grad()
def directions_of(sae: SAE) -> Tensor:
    """[d_sae width] in units of the activations."""
    return (sae.W_dec * sae.out_scale).float().cpu()


def greedy_edit(
    source: Tensor, target: Tensor, of_source: Tensor, of_target: Tensor, directions: Tensor, k: int
) -> SparseEdit:
    """The edit that knows nothing of what latents mean: one latent after the other, the one that brings the
    source nearest to the target, by taking out what it has, by putting in what the target has, or both::

        min  | source - sum_R s_j d_j + sum_A t_j d_j - target |,    |R and A together| <= k

    with s and t the codes of source and target (Makelov et al., arXiv 2405.08366, section 4). A row ends
    early where no latent brings it nearer.

    Args:
        source: [n width].
        target: [n width].
        of_source: [n d_sae], its codes.
        of_target: [n d_sae], its codes.
        directions: [d_sae width].
        k: Latents that may be edited.
    """
    size = max(1, AT_ONCE // (3 * directions.shape[0]))
    parts = [
        _greedy(source[i : i + size] - target[i : i + size], of_source[i : i + size], of_target[i : i + size],
                directions, k)
        for i in range(0, len(source), size)
    ]  # fmt: skip
    return SparseEdit(
        torch.cat([part.change for part in parts]),
        np.concatenate([part.weight for part in parts]),
        np.concatenate([part.latents for part in parts]),
    )


def _greedy(rest: Tensor, s: Tensor, t: Tensor, directions: Tensor, k: int) -> SparseEdit:
    n, d_sae = s.shape
    rows = torch.arange(n)
    options = torch.stack([-s, t, t - s], 1)
    removes = torch.tensor([True, False, True])
    open_to = (options != 0) & torch.stack([s != 0, t != 0, (s != 0) & (t != 0)], 1)
    square = directions.square().sum(1)
    removed, start, used = torch.zeros_like(s), rest, torch.zeros(n, dtype=torch.int64)
    for _ in range(k):
        # what the squared distance changes by
        gain = 2 * options * (rest @ directions.T)[:, None] + options.square() * square
        best, at = gain.masked_fill(~open_to, torch.inf).flatten(1).min(1)
        which, latent = at // d_sae, at % d_sae
        helps = best < 0
        step = torch.where(helps, options[rows, which, latent], 0.0)
        rest = rest + step[:, None] * directions[latent]
        removed[rows, latent] = torch.where(helps & removes[which], s[rows, latent], removed[rows, latent])
        open_to[rows, :, latent] &= ~helps[:, None]
        used += helps
    return SparseEdit(rest - start, removed_weight(removed, s, directions), used.numpy())


def aware_edit(
    of_source: Tensor, of_target: Tensor, directions: Tensor, f1_old: Tensor, f1_new: Tensor, k: int
) -> SparseEdit:
    """The edit that goes by what latents mean: of those that fire for the source it takes out the ones that
    tell its value best, and of those that fire for the target it puts in the ones that tell its value best,
    k / 2 of each (rounded down for those that go).

    Args:
        of_source: [n d_sae], codes.
        of_target: [n d_sae], codes.
        directions: [d_sae width].
        f1_old: [n d_sae], F1 of each latent for the value that each row has.
        f1_new: [n d_sae], F1 of each latent for the value that it gets.
        k: Latents that may be edited.
    """
    goes, comes = (_best(codes != 0, f1, most) for codes, f1, most in
                   ((of_source, f1_old, k // 2), (of_target, f1_new, k - k // 2)))  # fmt: skip
    removed = of_source * goes
    change = (of_target * comes - removed) @ directions
    return SparseEdit(
        change, removed_weight(removed, of_source, directions), (goes | comes).sum(1).numpy().astype(np.int64)
    )


def _best(on: Tensor, f1: Tensor, most: int) -> Tensor:
    """bool [n d_sae]: of those that fire the ones of the highest F1."""
    chosen = torch.zeros_like(on)
    most = min(most, on.shape[1])
    if most:
        value, at = torch.where(on, f1, 0.0).topk(most, dim=1)
        chosen.scatter_(1, at, value > 0)
    return chosen


def removed_weight(removed: Tensor, codes: Tensor, directions: Tensor) -> np.ndarray:
    """How much of each reconstruction is taken out::

        sum_j (r_j d_j) . (x_hat - b) / |x_hat - b|^2,    x_hat - b = sum_j z_j d_j

    1 where all of it is. 0 where there is nothing to take.

    Args:
        removed: [n d_sae], r, codes of the latents that go, 0 for those that stay.
        codes: [n d_sae], z.
        directions: [d_sae width].
    """
    whole, gone = (each @ directions for each in (codes, removed))
    return weight_of(gone, whole)


def weight_of(gone: Tensor, whole: Tensor) -> np.ndarray:
    """float64 [n]: gone . whole / |whole|^2, and 0 where whole is 0.

    Args:
        gone: [n width].
        whole: [n width].
    """
    square = whole.square().sum(1)
    share = torch.where(square > 0, (gone * whole).sum(1) / square.clamp_min(1e-30), 0.0)
    return share.double().numpy()


__all__ = [
    "Coded", "SparseEdit", "aware_edit", "coded", "directions_of", "greedy_edit", "removed_weight",
    "weight_of",
]  # fmt: skip
