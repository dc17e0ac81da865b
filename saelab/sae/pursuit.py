"""Sparse codes by pursuit: nearly the best that any encoder could do with a given decoder.

Gradient pursuit takes a step along the gradient on what is chosen; orthogonal matching pursuit fits all that
is chosen anew, each time; with as many directions as it likes that is non-negative least squares.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saelab.arguments import an_integer, checked, either, flag, floats, integers
from saelab.types import Codes, ConfigError, ShapeError, check_finite

CACHED, MOST, FAST = 1 << 20, 1 << 24, 256
"""Numbers of a piece that stay in or near the cache; those that it takes at most, to have rows enough for a
fast product; rows that are enough."""
FLAT = {torch.float32: 1e-6, torch.float64: 1e-12}
"""Product of a direction of norm 1 with what is left of a row of norm 1, at which nothing is gained."""

ENDLESS = 2**31
"""Directions that a row may take where nothing bounds them."""

Pursuit = Callable[[Tensor, Tensor, Tensor, np.ndarray, bool], tuple[Tensor, Tensor]]
"""(rows, unit directions, the same as columns in memory, how many each row takes, signed) -> (directions
int64 [n k], their codes [n k], 0 where there is none)."""


@checked(x=floats, directions=floats, k=either(an_integer(0, 2**62), integers()), signed=flag)
def gradient_pursuit(x: Tensor, directions: Tensor, k: Any, *, signed: bool = False) -> Codes:
    """Sparse codes f >= 0 with x ~ f @ directions, at most k of a row.

    From f = 0 and r = x, k times, with unit directions u_j (Blumensath and Davies 2008; as in 2410.14670):

        S = S + {argmax_j <r, u_j>},   g = <r, u_j> for j in S,   c = sum_S g_j u_j,
        f = max(0, f + g <c, r> / <c, c>),   r = x - f u,

    a step along the gradient on the chosen directions, as long as the line search says: without the clamp it
    never makes ||r|| longer. On orthonormal directions the result is the projection on the k with the largest
    positive products. Rows go together, each with its own k.

    Args:
        x: [n d], less what a decoder adds to every row (b_dec).
        directions: [m d], of any norms > 0; codes are in their units.
        k: directions that each row may take, an integer or [n] of them: an encoder's L0 of each row, to
            compare at equal L0.
        signed: take the largest |<r, u_j>|, and leave out the clamp: codes of either sign.

    Returns:
        The codes of n rows. A row has fewer than k where a direction came twice or was clamped to 0.

    Raises:
        ShapeError: x and the directions are no matrices of one width, or k is not of n rows.
        ConfigError: k is no integer, or not in 0..m.
        NonFiniteError: x or the directions are NaN or infinite.
    """
    return _codes(x, directions, k, signed, by_gradients)


@checked(x=floats, directions=floats, k=either(an_integer(0, 2**62), integers()), signed=flag)
def orthogonal_matching_pursuit(x: Tensor, directions: Tensor, k: Any, *, signed: bool = False) -> Codes:
    """Sparse codes with x ~ f @ directions, at most k of a row, all fitted anew with each that comes.

    From S empty and r = x, k times, with unit directions u_j (Pati et al. 1993; of codes f >= 0 Bruckstein et
    al. 2008, whose step is that of Lawson and Hanson 1974):

        S = S + {argmax_j <r, u_j>},   f = argmin ||x - f_S u_S||  (f >= 0),   r = x - f u.

    With signed=True it is scikit-learn's orthogonal_mp, whose atoms must have norm 1. What is left never gets
    longer, and is orthogonal to all that was chosen.

    Args:
        x: [n d], less what a decoder adds to every row (b_dec).
        directions: [m d], of any norms; codes are in their units, and one of norm 0 is never taken.
        k: steps of each row, an integer or [n] of them.
        signed: take the largest |<r, u_j>|, and fit codes of either sign.

    Returns:
        The codes of n rows. A row has fewer than k where nothing is left, or where the fit puts one to 0.

    Raises:
        ShapeError: x and the directions are no matrices of one width, or k is not of n rows.
        ConfigError: k is no integer, or not in 0..m.
        NonFiniteError: x or the directions are NaN or infinite.
    """
    return _codes(x, directions, k, signed, by_least_squares)


@checked(x=floats, directions=floats)
def nonnegative_least_squares(x: Tensor, directions: Tensor) -> Codes:
    """The codes f >= 0 that make ||x - f @ directions|| least, without a bound on their number: the transform
    of a non-negative factorisation (Lawson and Hanson 1974, all rows at once).

    At most d of a row differ from 0. Every direction that is left out has a product of 0 or less with what is
    left, but for 1e-6 of the row's norm (1e-12 in float64).

    Args:
        x: [n d].
        directions: [m d], of any norms; codes are in their units, and one of norm 0 is never taken.

    Raises:
        ShapeError: x and the directions are no matrices of one width.
        NonFiniteError: x or the directions are NaN or infinite.
    """
    return _codes(x, directions, None, False, by_least_squares)


def chosen_codes(
    x: Tensor, directions: Tensor, most: np.ndarray, signed: bool, pursue: Pursuit
) -> tuple[Tensor, Tensor, Tensor]:
    """What a pursuit gives of rows, some at a time: (row, latent, value) of each code that is not 0, in any
    order, without a gradient.

    Args:
        x: [n d], float32 or float64.
        directions: [m d], of the same dtype and device.
        most: int64 [n], directions that each row may take.
        signed: Whether codes may be negative.
        pursue: The pursuit.
    """
    with torch.no_grad():
        norms = directions.norm(dim=1)
        # a direction of norm 0 has no product with anything, and its code stays 0
        unit = directions / norms.clamp_min(torch.finfo(norms.dtype).tiny)[:, None]
        # rows that take the most come first, so that those still at work are always the first ones
        across = unit.t().contiguous()
        order = np.argsort(-most, kind="stable")
        held = min(int(most.max(initial=0)), *directions.shape)
        wide = max(len(directions), x.shape[1] * max(1, held))
        size = max(1, CACHED // wide, min(FAST, MOST // wide))
        rows, latents, values = [], [], []
        for low in range(0, len(x), size):
            at = torch.from_numpy(order[low : low + size]).to(x.device)
            chosen, codes = pursue(x[at], unit, across, most[order[low : low + size]], signed)
            row, place = (codes != 0).nonzero(as_tuple=True)
            latent = chosen[row, place]
            rows.append(at[row])
            latents.append(latent)
            values.append(codes[row, place] / norms[latent])
    none = torch.zeros(0, dtype=torch.int64, device=x.device)
    return torch.cat([none, *rows]), torch.cat([none, *latents]), torch.cat([x.new_zeros(0), *values])


def _codes(x: Tensor, directions: Tensor, k: Any, signed: bool, pursue: Pursuit) -> Codes:
    if x.ndim != 2 or directions.ndim != 2 or x.shape[1] != directions.shape[1] or not len(directions):
        message = (
            "x and directions must be [n d] and [m d], m >= 1. "
            f"Got {list(x.shape)} and {list(directions.shape)}. Pass rows less b_dec, and W_dec."
        )
        raise ShapeError(message)
    check_finite(x, "Activations")
    check_finite(directions, "Directions")
    x = x.detach().to(torch.promote_types(x.dtype, torch.float32))
    directions = directions.detach().to(x)
    most = np.full(len(x), ENDLESS) if k is None else _most(k, len(x), len(directions))
    row, latent, value = chosen_codes(x, directions, most, signed, pursue)
    return _sparse(len(x), len(directions), row, latent, value)


def by_gradients(
    x: Tensor, unit: Tensor, across: Tensor, most: np.ndarray, signed: bool
) -> tuple[Tensor, Tensor]:
    """A `Pursuit` by steps along the gradient. most: of each row, descending."""
    steps = int(most.max(initial=0))
    chosen = torch.zeros(len(x), steps, dtype=torch.int64, device=x.device)
    new = torch.zeros(len(x), steps, dtype=x.dtype, device=x.device)  # 1, or 0 where it was there already
    codes, held = torch.zeros_like(new), x.new_zeros(len(x), steps, x.shape[1])
    residual = x.clone()
    for step in range(steps):
        n = int(np.searchsorted(-most, -step))  # rows that take more than `step`
        r, S = residual[:n], held[:n, : step + 1]
        products = r @ across
        best = _largest(products.abs() if signed else products)
        again = ((chosen[:n, :step] == best[:, None]) & (new[:n, :step] > 0)).any(1)
        chosen[:n, step], new[:n, step] = best, (~again).to(x)
        S[:, step] = unit[best]
        g = products.gather(1, chosen[:n, : step + 1]) * new[:n, : step + 1]
        c = torch.bmm(g[:, None], S)[:, 0]
        length = (c * r).sum(1) / c.square().sum(1).clamp_min(torch.finfo(x.dtype).tiny)
        f = codes[:n, : step + 1].addcmul_(length[:, None], g)
        if not signed:
            f.clamp_(min=0)
        residual[:n] = x[:n] - torch.bmm(f[:, None], S)[:, 0]
    return chosen, codes


def by_least_squares(
    x: Tensor, unit: Tensor, across: Tensor, most: np.ndarray, signed: bool
) -> tuple[Tensor, Tensor]:
    """A `Pursuit` that fits all that a row has taken anew with each that comes.

    What is taken lies in slots, of which one that is let go of is used again. Systems are solved in float64.
    """
    (n, d), slots = x.shape, min(int(most.max(initial=0)), *unit.shape)
    size = _norms(x)
    x = x / size
    done_chosen = torch.zeros(n, slots, dtype=torch.int64, device=x.device)
    done_codes = x.new_zeros(n, slots)
    if not n or not slots:
        return done_chosen, done_codes
    row = torch.arange(n, device=x.device)
    limit = torch.from_numpy(most).to(x.device)
    chosen, held = done_chosen.clone(), x.new_zeros(n, slots, d)
    gram = x.new_zeros(n, slots, slots, dtype=torch.float64)
    aim, f = gram.new_zeros(n, slots), gram.new_zeros(n, slots)
    on = torch.zeros(n, slots, dtype=torch.bool, device=x.device)
    residual, ended = x, torch.zeros(n, dtype=torch.bool, device=x.device)
    top = 0  # slots that were ever in use
    for step in range(int(min(most.max(), 3 * len(unit)))):
        products = residual @ across
        best = _largest(products.abs() if signed else products)
        product = products.gather(1, best[:, None])[:, 0]
        ended |= (product.abs() if signed else product) <= FLAT[x.dtype]
        ended |= (step >= limit) | on.all(1)
        if ended.sum() > len(x) // 2 or ended.all():  # those at work alone go on
            done_chosen[row], done_codes[row] = chosen, f.to(x)
            go = (~ended).nonzero()[:, 0]
            if not len(go):
                return done_chosen, done_codes * size
            row, limit, x, best, chosen, held, gram, aim, f, on, ended = (
                each[go] for each in (row, limit, x, best, chosen, held, gram, aim, f, on, ended)
            )
        go = (~ended).nonzero()[:, 0]
        slot, new = (~on[go]).int().argmax(1), unit[best[go]]
        top = max(top, int(slot.max()) + 1)
        overlap = torch.bmm(held[go, :top], new[:, :, None])[:, :, 0].double()
        chosen[go, slot], held[go, slot] = best[go], new
        gram[go, slot, :top], gram[go, :top, slot] = overlap, overlap
        gram[go, slot, slot] = 1
        aim[go, slot] = (x[go].double() * new.double()).sum(1)
        on[go, slot] = True
        found, kept = _fitted(gram[go, :top, :top], aim[go, :top], f[go, :top], on[go, :top], signed)
        f[go, :top], on[go, :top] = found, kept
        # what comes and is put to 0 at once had a product by rounding alone
        ended[go] |= ~kept.gather(1, slot[:, None])[:, 0]
        residual = x - torch.bmm(f[:, :top].to(x)[:, None], held[:, :top])[:, 0]
    done_chosen[row], done_codes[row] = chosen, f.to(x)
    return done_chosen, done_codes * size


def _fitted(gram: Tensor, aim: Tensor, f: Tensor, on: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
    """Least squares on what is on: (codes, what is on then). Without signed=True from f >= 0 as far towards
    them as codes stay so; what comes to 0 first is let go of, and it is tried again."""
    wanted, on = _solved(gram, aim, on)
    if signed:
        return wanted, on
    f, todo = f.clone(), torch.arange(len(f), device=f.device)
    while True:
        low = on[todo] & (wanted[todo] <= 0)
        some = low.any(1)
        settled = todo[~some]
        f[settled] = wanted[settled]
        todo, low = todo[some], low[some]
        if not len(todo):
            return f * on, on
        own, there = f[todo], wanted[todo]
        share = torch.where(low, own / (own - there).clamp_min(torch.finfo(f.dtype).tiny), torch.inf)
        least = share.amin(1, keepdim=True)
        on[todo] &= share > least
        f[todo] = (own + least * (there - own)) * on[todo]
        wanted[todo], on[todo] = _solved(gram[todo], aim[todo], on[todo])


def _solved(gram: Tensor, aim: Tensor, on: Tensor) -> tuple[Tensor, Tensor]:
    """(least squares on what is on, what is on). Of directions that depend on each other the later ones are
    left out."""
    both = on[:, :, None] & on[:, None]
    system = torch.where(both, gram, 0) + torch.diag_embed((~on).to(gram))
    factor, broken = torch.linalg.cholesky_ex(system)
    on = on.clone()
    while broken.any():
        at = broken.nonzero()[:, 0]
        out = broken[at].long() - 1
        on[at, out] = False
        system[at, out], system[at, :, out] = 0, 0
        system[at, out, out] = 1
        factor[at], broken[at] = torch.linalg.cholesky_ex(system[at])
    found = torch.cholesky_solve((aim * on)[:, :, None], factor)[:, :, 0]
    return found * on, on


def _norms(x: Tensor) -> Tensor:
    """[n 1]: norms of rows, 1 of zeros; squares of tiny and of huge numbers are not taken."""
    largest = x.abs().amax(1, keepdim=True)
    largest = largest.where(largest > 0, 1)
    return (x / largest).norm(dim=1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny) * largest


def _largest(products: Tensor) -> Tensor:
    """Place of the largest of each row; NumPy finds it in a third of torch's time on a CPU."""
    if products.device.type == "cpu":
        return torch.from_numpy(products.numpy().argmax(1))
    return products.argmax(1)


def _most(k: int | Tensor, n: int, m: int) -> np.ndarray:
    """int64 [n]: how many of m directions each row may take."""
    found = np.full(n, k) if isinstance(k, int) else k.numpy()
    if found.shape != (n,):
        message = f"k must be one number, or one for each of {n} rows. Got {len(found)}. Pass codes.l0."
        raise ShapeError(message)
    if n and not 0 <= found.min() <= found.max() <= m:
        message = (
            f"k must be between 0 and the {m} directions that there are. Got {found.min()}..{found.max()}. "
            "Pass e.g. k=16, or codes.l0."
        )
        raise ConfigError(message)
    return found


def _sparse(n: int, m: int, row: Tensor, latent: Tensor, value: Tensor) -> Codes:
    """Entries in any order as CSR."""
    rows, latents = row.cpu().numpy(), latent.cpu().numpy()
    order = np.lexsort((latents, rows))
    indptr = np.concatenate([[0], np.bincount(rows, minlength=n).cumsum()])
    return Codes(indptr, latents[order].astype(np.int32), value.float().cpu().numpy()[order], m)


__all__ = [
    "by_gradients", "by_least_squares", "chosen_codes", "gradient_pursuit", "nonnegative_least_squares",
    "orthogonal_matching_pursuit",
]  # fmt: skip
