"""The suite "errors"."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from saelab.analysis.controls import (
    Beside,
    Sums,
    against,
    beside,
    correlation,
    shuffled,
    untrained,
    with_interval,
)
from saelab.analysis.suites.registry import Found, Suite, register
from saelab.capabilities import HasLoss

if TYPE_CHECKING:
    from torch import Tensor

    from saelab.analysis.sources import Ground
    from saelab.sae import SAE

RANDOM = "random error of the same length"


@register("errors")
@dataclass(frozen=True)
class Errors(Suite):
    """What does the error cost the subject, beside errors of the same length in random directions?

    "loss added" is the subject's loss with the reconstruction less its loss as it is, a target; "KL" how far
    what it foretells moves. The control has y + |y - x_hat| u in place of x_hat, u a random direction for
    each row. An SAE whose error costs more than that leaves out what the subject uses (Gurnee 2024): "loss
    added / random" is then above 1. "longer errors cost more" is Spearman's correlation, over samples, of
    the error's mean length with the loss that is added.
    """

    needs = (HasLoss,)

    def run(self, sae: SAE, ground: Ground) -> Found:
        import pandas as pd
        import torch

        source: Any = ground.source(sae)
        generator = torch.Generator().manual_seed(ground.seed)
        arms: dict[str, SAE] = {}
        sums = {name: Sums(apart=True) for name in ("this SAE", "untrained SAE")}  # told of each sample
        mode = sae.training
        sae.eval()
        try:
            for block in source.blocks():
                if not len(block.x):
                    continue
                if not arms:
                    bare = untrained(sae, block.x, block.y, seed=ground.seed)
                    arms = dict(zip(sums, (sae, bare), strict=True))
                base = source.clean(block)
                for name, arm in arms.items():
                    with torch.no_grad():
                        x_hat = arm(block.x.to(arm.device), sparse=True).x_hat.to(block.y)
                    length = (block.y - x_hat).norm(dim=1, keepdim=True)
                    other = block.y + length * _directions(block.y, generator)
                    (loss, kl), (lost, random) = (source.changed(block, r, base) for r in (x_hat, other))
                    told = {"n": base.n, "loss": loss - base.clean, "random": lost - base.clean}
                    if kl is not None:
                        told |= {"kl": kl, "random kl": random}
                    sums[name].add(block.samples, **told)
                    ones = np.ones(len(block.unit))
                    sums[name].add(block.unit, length=length[:, 0].cpu().numpy(), rows=ones)
        finally:
            sae.train(mode)
        this, bare_ = sums.values()
        claims = {"loss added": _against(this, bare_, "loss", "random", ground.seed)}
        if "kl" in this.names():
            claims["KL"] = _against(this, bare_, "kl", "random kl", ground.seed)
        claims["loss added / random"] = beside(this, bare_, _over("loss", "random"), ground.seed)
        sums_of = {name: this.of(name) for name in this.names()}
        seen = np.flatnonzero((sums_of["rows"] > 0) & (sums_of["n"] > 0))
        sums_of = {name: each[seen] for name, each in sums_of.items()}
        longer, added = sums_of["length"] / sums_of["rows"], sums_of["loss"] / sums_of["n"]
        left_out = {}
        if len(seen) < 3 or np.ptp(longer) == 0 or np.ptp(added) == 0:
            left_out["longer errors cost more"] = f"{len(seen)} samples do not tell: pass more of them"
        else:
            claims["longer errors cost more"] = correlation(
                longer, added, shuffled(longer, ground.seed), "shuffled samples", ranks=True, seed=ground.seed
            )
        return Found(claims, left_out, {"samples": pd.DataFrame({"sample": seen, **sums_of})})


def _directions(like: Tensor, generator: Any) -> Tensor:
    """Unit vectors of which every direction is as likely as any other, of the same shape."""
    import torch

    found = torch.randn(like.shape, generator=generator)
    return (found / found.norm(dim=1, keepdim=True)).to(like)


def _against(this: Sums, bare: Sums, own: str, random: str, seed: int) -> Beside:
    """A cost a target beside that of random errors, and of the untrained SAE's."""
    cost, drawn = _over(own, "n"), _over(random, "n")
    controls = {RANDOM: with_interval(this, drawn, seed), "untrained SAE": with_interval(bare, cost, seed)}
    return against(with_interval(this, cost, seed), controls, this.n_units)


def _over(above: str, below: str) -> Callable[[Mapping[str, Any]], Any]:
    return lambda sums: sums[above] / sums[below]
