"""The suite "splitting"."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from saelab.analysis.anew import trained
from saelab.analysis.controls import Sums, beside_each, untrained
from saelab.analysis.probing.gathered import codes_of, directions_of, gather
from saelab.analysis.splitting import Pieces, pieces
from saelab.analysis.stability import alike
from saelab.analysis.suites.registry import Found, Suite, register
from saelab.config import integer, is_number
from saelab.types import ConfigError, short

if TYPE_CHECKING:
    from torch import Tensor

    from saelab.analysis.sources import Ground
    from saelab.sae import SAE

SHUFFLED = "its codes of other rows"


@register("splitting")
@dataclass(frozen=True)
class Splitting(Suite):
    """What became of the latents of a narrower SAE: is each one latent here, several, or gone?

    A latent is a piece of a narrower one where that fires at nearly all of its rows
    (`saelab.analysis.splitting.pieces` has the rule). "pieces a latent" is their mean number, "split" the
    share of narrow latents with two or more, "covered" the mean share of a narrow latent's rows at which one
    of its pieces fires; "pieces among latents" is the share of this SAE's latents that are pieces. "new
    directions" is the share of its decoder rows without a cosine of .7 to any of the narrower SAE's (Leask et
    al. 2025, arXiv 2502.04878: novel latents). Beside them an untrained SAE of this configuration, and
    this SAE's codes put to other rows, which keeps how often each latent fires.

    Without `narrower` a narrower SAE of the same recipe is trained for it, at a small budget.
    """

    narrower: Any = None
    """an SAE of the same place with fewer latents"""
    times: int = 4
    """how many times fewer latents it has, where it is trained"""
    within: float = 0.7
    """share of a piece's firings at which the narrow latent fires, at least"""
    least: int = 10
    """firings below which a latent is not looked at"""
    cosine: float = 0.7
    """below which a direction is new"""
    steps: int = 100
    """of the training"""
    rows: int = 20_000
    """at most"""
    batch_size: int = 512

    def __post_init__(self) -> None:
        from saelab.sae import SAE

        if self.narrower is not None and not isinstance(self.narrower, SAE):
            message = (
                f"narrower must be an SAE. Got {short(self.narrower)}. Pass saelab.load_sae(...), or None."
            )
            raise ConfigError(message)
        for name, low in (("times", 2), ("least", 1), ("steps", 1), ("rows", 1), ("batch_size", 1)):
            object.__setattr__(self, name, integer(name, getattr(self, name), low))
        for name in ("within", "cosine"):
            value = getattr(self, name)
            if not is_number(value) or not 0 < value <= 1:
                message = f"{name} must be above 0, and 1 at most. Got {short(value)}. Pass {name}=0.7."
                raise ConfigError(message)

    def run(self, sae: SAE, ground: Ground) -> Found:
        """Measure one SAE.

        Args:
            sae: The SAE.
            ground: What it is measured on.

        Raises:
            ConfigError: `narrower` has other widths or no fewer latents, or hardly any of its latents fires.
        """
        import pandas as pd

        read = gather(sae, ground, self.rows)
        targets = None if sae.config.d_out is None else read.y
        narrow = self.narrower
        if narrow is None:
            narrow = self._trained(sae, read.x, targets, ground.seed)
        elif narrow.d_in != sae.d_in or narrow.d_out != sae.d_out or narrow.d_sae >= sae.d_sae:
            message = (
                f"narrower must read and write the same widths with fewer than {sae.d_sae:,} latents. Got "
                f"{narrow.d_in} to {narrow.d_out} with {narrow.d_sae:,}. Pass an SAE of the same hook point."
            )
            raise ConfigError(message)
        control = untrained(sae, read.x, targets, seed=ground.seed)
        of, own, other = (codes_of(each, read.x) for each in (narrow, sae, control))
        n = len(read)
        shuffled = own[np.random.default_rng(ground.seed).permutation(n)]
        found = {
            name: pieces(of, codes, self.within, self.least)
            for name, codes in (("", own), ("untrained SAE", other), (SHUFFLED, shuffled))
        }
        if len(found[""].latents) < 2:
            message = (
                f"Latents of the narrower SAE must fire at {self.least} of {n:,} rows. Got "
                f"{len(found[''].latents)} that do. Pass more rows, or a smaller least."
            )
            raise ConfigError(message)
        claims = {}
        for name, (score, sums) in FIGURES.items():
            at = {who: sums(each) for who, each in found.items()}
            own_sums = at.pop("")
            known = {who: each for who, each in at.items() if each.n_units > 1}
            if own_sums.n_units > 1 and known:
                claims[name] = beside_each(own_sums, known, score, ground.seed)
        signed = sae.sparsifier.signed and narrow.sparsifier.signed
        new = [_new(each, narrow, self.cosine, signed) for each in (sae, control)]
        claims["new directions"] = beside_each(new[0], {"untrained SAE": new[1]}, _mean, ground.seed)
        whole = found[""]
        columns = {"latent": whole.latents, "pieces": whole.pieces, "covered": whole.covered}
        tables = {"narrower latents": pd.DataFrame(columns)}
        left_out = {name: "too few latents fire" for name in FIGURES if name not in claims}
        return Found(claims, left_out, tables)

    def _trained(self, sae: SAE, rows: Tensor, targets: Tensor | None, seed: int) -> SAE:
        config = dataclasses.replace(sae.config, d_sae=max(2, sae.d_sae // self.times))
        how: dict[str, Any] = {"steps": self.steps, "batch_size": self.batch_size, "device": sae.device}
        return trained(config, rows, targets, seed=seed + 1, **how)


def _of_latents(found: Pieces) -> Sums:
    sums = Sums()
    n = np.ones(len(found.latents))
    sums.add(np.arange(len(n)), pieces=found.pieces, split=found.pieces > 1, covered=found.covered, n=n)
    return sums


def _of_pieces(found: Pieces) -> Sums:
    sums = Sums()
    at = np.flatnonzero(found.firing)
    sums.add(np.arange(len(at)), value=found.of[at] >= 0, n=np.ones(len(at)))
    return sums


def _new(sae: SAE, narrow: SAE, cosine: float, either_sign: bool) -> Sums:
    best = alike(directions_of(sae), directions_of(narrow), either_sign, 0).best
    sums = Sums()
    sums.add(np.arange(len(best)), value=best < cosine, n=np.ones(len(best)))
    return sums


def _mean(sums: Mapping[str, Any]) -> Any:
    return sums["value"] / sums["n"]


FIGURES = {
    "pieces a latent": (lambda sums: sums["pieces"] / sums["n"], _of_latents),
    "split": (lambda sums: sums["split"] / sums["n"], _of_latents),
    "covered": (lambda sums: sums["covered"] / sums["n"], _of_latents),
    "pieces among latents": (_mean, _of_pieces),
}
"""Name -> its score, and the sums that it is of."""
