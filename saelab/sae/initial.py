"""How an SAE starts: seeds, scales, biases and the size of the encoder, from the first training rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saelab import dist
from saelab.seeds import mixed
from saelab.types import ShapeError

if TYPE_CHECKING:
    from saelab.sae.network import Network

DRAWN = 2**14
"""Rows that are drawn at a time, a multiple of 16, where each rank needs few of them."""


@torch.no_grad()
def initialise(
    sae: Network, seed: int, rows: Float[Tensor, "n d_in"] | None, targets: Float[Tensor, "n d_out"] | None
) -> None:
    """Give an SAE of zeros the weights that it starts with; see SAE.create."""
    config = sae.config
    # mixed, so that data drawn from the same small seed by the caller shares no number with the weights
    generator = torch.Generator().manual_seed(mixed(seed))
    sae.dictionary.start(lambda n, width: _directions(n, width, generator))
    # without the option the recipe is always tied; a transcoder cannot be
    tied = config.options.get("tied_init", config.d_out is None)
    if tied:
        sae.W_enc.copy_(sae.W_dec.t())
    else:
        sae.W_enc.copy_(_directions(config.d_sae, config.d_read, generator).t())
    if rows is not None and len(rows):
        rows, _ = sae._flat(rows)
        _fit(sae, rows, _targets(sae, rows, targets), tied, generator)


def _directions(d_sae: int, d_in: int, generator: torch.Generator) -> Tensor:
    """Random unit rows [d_sae d_in]. Where ranks share the latents, this rank's of those that one process
    would draw, of which it holds a few at a time."""
    total = dist.latents.count(d_sae)
    start, end = dist.latents.bounds(total)
    kept, at = [], 0
    while at < total:
        # torch draws in blocks of 16 numbers, of which the last may be short: pieces end with a block
        n = DRAWN if total - at >= 2 * DRAWN and dist.latents.size > 1 else total - at
        drawn = torch.randn(n, d_in, generator=generator)
        kept.append(drawn[max(0, start - at) : max(0, end - at)].clone() if n < total else drawn)
        at += n
    rows = torch.cat(kept) if len(kept) > 1 else kept[0][start:end]
    return nn.functional.normalize(rows, dim=1)


def _fit(sae: Network, rows: Tensor, targets: Tensor, tied: bool, generator: torch.Generator) -> None:
    config = sae.config
    if config.options["normalise"] == "scalar":
        sae.input_scale.copy_(_scale(rows, config.widths))
        if config.d_out is not None:
            sae.out_scale.copy_(_scale(targets, config.widths_out))
    outputs = _outputs(sae, rows, targets)
    sae.b_dec.copy_(_centre(outputs, config.options["b_dec_init"]))
    if sae.dictionary.fit(outputs - sae.b_dec, generator) and tied:
        sae.W_enc.copy_(sae.W_dec.t())
    _settle(sae, rows, outputs, tied)


@torch.no_grad()
def refit(
    sae: Network,
    seed: int,
    rows: Float[Tensor, "n d_in"],
    targets: Float[Tensor, "n d_out"] | None,
    part: Literal["encoder", "decoder"],
    centre: bool,
) -> None:
    """Fit a part that was just drawn to rows and to the rest, which is kept.

    Args:
        sae: Whose.
        seed: Of what is drawn from rows.
        rows: Activations.
        targets: Targets of the same rows, for transcoders.
        part: Which is new.
        centre: Whether b_dec is.
    """
    rows, _ = sae._flat(rows)
    outputs = _outputs(sae, rows, _targets(sae, rows, targets))
    tied = sae.config.options.get("tied_init", False)
    if part == "encoder":
        if tied:
            sae.W_enc.copy_((sae.W_dec / sae.W_dec.square().sum(1, keepdim=True).clamp_min(1e-30)).t())
        _settle(sae, rows, outputs, tied)
        return
    if centre:
        sae.b_dec.copy_(_centre(outputs, sae.config.options["b_dec_init"]))
    generator = torch.Generator().manual_seed(mixed(seed))
    if not sae.dictionary.fit(outputs - sae.b_dec, generator) and tied:
        sae.dictionary.set(nn.functional.normalize(sae.W_enc.t(), dim=1))


def _outputs(sae: Network, rows: Tensor, targets: Tensor) -> Tensor:
    """What the decoder should give, in normalised units."""
    return sae.normalised(rows)[0] if sae.config.d_out is None else targets / sae.out_scale


def _settle(sae: Network, rows: Tensor, outputs: Tensor, tied: bool) -> None:
    """Give a new encoder its size, and learned thresholds their start."""
    config = sae.config
    sample = rows[: start_rows(config.d_sae)]
    if tied or config.d_out is not None:
        gain = _gain(sae, sample, outputs[: len(sample)])
        if sae.dictionary.tied:
            sae.dictionary.set(sae.W_dec * gain)
        else:
            sae.W_enc.mul_(gain)
    # so that a learned threshold fits the untrained SAE too
    forward = sae(sample, sparse=True)
    sae.sparsifier.observe(forward.codes, forward.pre, sae.dictionary)


def start_rows(d_sae: int) -> int:
    """Rows whose codes an SAE is started from: 4,096, fewer where these have more than 2^26 codes."""
    return min(4096, max(256, 2**26 // d_sae))


def _targets(sae: Network, rows: Tensor, targets: Tensor | None) -> Tensor:
    if sae.config.d_out is None:
        return rows
    if targets is None or targets.shape != (len(rows), sae.d_out):
        got = None if targets is None else tuple(targets.shape)
        message = (
            f"A transcoder starts from rows and as many targets [n, d_out={sae.d_out}]. Got {got}. "
            "Pass SAE.create(config, rows=x, targets=y)."
        )
        raise ShapeError(message)
    return targets.to(sae.dtype)


def _scale(rows: Tensor, widths: tuple[int, ...]) -> Tensor:
    """Mean Euclidean norm of rows: [], or, of rows put together from several widths, that of each part."""
    tiny = torch.finfo(rows.dtype).tiny
    if not widths:
        return rows.norm(dim=1).mean().clamp_min(tiny)
    blocks = rows.split(widths, dim=1)
    return torch.cat([block.norm(dim=1).mean().clamp_min(tiny).expand(block.shape[1]) for block in blocks])


def _gain(sae: Network, rows: Tensor, outputs: Tensor) -> Tensor:
    """The factor a that minimises sum ||y - b - a (y_hat - b)||^2 over normalised outputs, b the decoder
    bias."""
    forward = sae(rows, sparse=True)
    target, output = outputs - sae.b_dec, sae.product(forward.codes)
    gain = (target * output).sum() / output.square().sum()
    return gain if torch.isfinite(gain) and gain > 0 else torch.ones_like(gain)


def _centre(rows: Tensor, how: str) -> Tensor:
    """Mean, geometric median (Weiszfeld's iteration) or zeros of [n d_in]."""
    if how == "zeros" or not len(rows):
        return rows.new_zeros(rows.shape[1])
    centre = rows.mean(0)
    if how == "mean":
        return centre
    for _ in range(100):
        weights = 1 / (rows - centre).norm(dim=1, keepdim=True).clamp_min(1e-8)
        new = (weights * rows).sum(0) / weights.sum()
        moved, centre = (new - centre).norm(), new
        if moved <= 1e-6 * centre.norm():
            break
    return centre
