"""The suite "classical"."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from saelab.analysis.blocks import Block
from saelab.analysis.controls import Alone, Beside, Sums, beside, beside_each, interval, untrained
from saelab.analysis.dark.linear import fold_of
from saelab.analysis.suites.registry import Found, Suite, register
from saelab.config import integer
from saelab.types import ConfigError, CorpusError, SaelabError, nearest, short

if TYPE_CHECKING:
    from torch import Tensor

    from saelab.analysis.sources import Ground, Passes, Rows
    from saelab.sae import SAE

THIS, NOTHING = "this SAE", "untrained SAE"


@register("classical")
@dataclass(frozen=True)
class Classical(Suite):
    """Does the SAE beat PCA, ICA, NMF and k-means at equal L0, and by how much?

    Each method is fitted (`saelab.training.classical`) on half of the samples, or on `acts`, and judged with
    the SAE on the other half. Each row of a method has as many codes as the SAE has there, sought by
    orthogonal matching pursuit, which is nearly the best that its directions can do; the SAE's own come of
    one product with W_enc. "fvu" is the SAE with its own codes beside all methods, "fvu by omp" its
    dictionary with codes sought as theirs are. "margin over pca" is FVU of PCA less FVU of this SAE, on the
    same rows: above 0 the SAE is better; beside it the margin of an untrained SAE. "margin over pca by omp"
    compares the dictionaries alone.

    The table "arms" has FVU, L0 and the number of latents of each.
    """

    methods: tuple[str, ...] = ("pca", "ica", "nmf", "semi_nmf", "kmeans")
    """of `saelab.training.classical`; one that cannot be fitted (nmf of negative rows) is left out by name"""
    d_sae: int | None = None
    """latents of k-means; None for those of the SAE, at most half of the rows. Of the others d_in, at most
    these: with more, methods that do not ask for sparse codes give every row by many"""
    acts: Any = None
    """what the methods are fitted on: a store or a tensor, such as what the SAE was trained on; None for half
    of the samples"""
    rows: int = 20_000
    """that they are fitted on, at most"""
    iterations: int = 100
    """of each method, at most"""

    def __post_init__(self) -> None:
        from saelab.training.classical import FITTED

        given = (self.methods,) if isinstance(self.methods, str) else tuple(self.methods)
        object.__setattr__(self, "methods", given)
        for name in given:
            if name not in FITTED:
                near = nearest(name, FITTED) if isinstance(name, str) else ""
                message = (
                    f"methods must be of {', '.join(FITTED)}. Got {short(name)}. {near}Pass some of them."
                )
                raise ConfigError(message)
        for name in ("rows", "iterations", *(["d_sae"] if self.d_sae is not None else [])):
            integer(name, getattr(self, name), 2 if name == "rows" else 1)

    def run(self, sae: SAE, ground: Ground) -> Found:
        """Fit the methods, and judge them beside an SAE.

        Args:
            sae: An autoencoder.
            ground: The rows.

        Returns:
            FVU and margins, the methods that were left out, and the table of all arms.

        Raises:
            ConfigError: The SAE is a transcoder or a crosscoder.
            CorpusError: There are too few samples to fit on some and judge on others.
        """
        import torch

        if sae.config.d_out is not None or sae.config.widths:
            message = (
                "Classical dictionaries rebuild what they read. Got a "
                f"{sae.config.recipe}. Pass an autoencoder."
            )
            raise ConfigError(message)
        source, mode = ground.source(sae), sae.training
        fit, first, mean = self._split(source, ground.seed)
        left_out: dict[str, str] = {}
        arms = {THIS: sae, NOTHING: untrained(sae, first, seed=ground.seed)}
        for method in self.methods:
            try:
                with warnings.catch_warnings(record=True) as told:
                    warnings.simplefilter("always")
                    arms[method] = self._fitted(method, sae, fit, ground.seed)
                if told:
                    left_out[f"{method} at its end"] = str(told[0].message)
            except SaelabError as error:
                left_out[method] = str(error)
        found = {name: _Arm(each) for name, each in arms.items()}
        sae.eval()
        try:
            with torch.no_grad():
                for block in self._judged(source, ground.seed):
                    x = block.x.to(sae.device)
                    l0 = found[THIS].own(block.unit, x, mean)
                    found[NOTHING].own(block.unit, x, mean)
                    for each in found.values():
                        each.sought(block.unit, x, mean, l0)
        finally:
            sae.train(mode)
        methods = [name for name in found if name not in (THIS, NOTHING)]
        return Found(_claims(found, methods, ground.seed), left_out, {"arms": _table(found, ground.seed)})

    def _split(self, source: Rows | Passes, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """(rows to fit on, rows that an untrained SAE starts from, mean of those that are judged)."""
        import torch

        pool, total, n, units = _Pool(self.rows, seed), None, 0, 0
        for block in source.blocks():
            judged = self._is_judged(block, seed)
            x = block.x.cpu()
            pool.add(x[torch.from_numpy(~judged)])
            x, units = x[torch.from_numpy(judged)], units + len(np.unique(block.unit[judged]))
            if len(x):
                summed = x.double().sum(0)
                total, n = summed if total is None else total + summed, n + len(x)
        fit = pool.rows() if self.acts is None else self.acts
        if total is None or units < 2 or (self.acts is None and not len(fit)):
            message = (
                "Methods are fitted on some samples and judged on others. Got "
                f"{n} rows of {units} samples to judge on. Pass more samples, or acts=."
            )
            raise CorpusError(message)
        # what the untrained SAE knows of the data is what the methods are fitted on
        first = pool.rows()[:4096] if self.acts is None else next(iter(source.blocks())).x.cpu()
        return fit, first, total / n

    def _is_judged(self, block: Block, seed: int) -> np.ndarray:
        if self.acts is not None:
            return np.ones(len(block.unit), dtype=bool)
        return fold_of(block.unit, 2, seed) == 1

    def _judged(self, source: Rows | Passes, seed: int) -> Iterator[Block]:
        import torch

        for block in source.blocks():
            at = self._is_judged(block, seed)
            if at.any():
                x = block.x[torch.from_numpy(at)]
                yield Block(x, x, block.unit[at])

    def _fitted(self, method: str, sae: SAE, fit: Any, seed: int) -> SAE:
        from saelab.training.classical import classical

        n, wide = len(fit), sae.d_sae if self.d_sae is None else self.d_sae
        d_sae = min(wide, n // 2) if method == "kmeans" and self.d_sae is None else wide
        if method != "kmeans":
            d_sae = min(d_sae, sae.d_in)
        options: dict[str, Any] = {"max_rows": self.rows, "iterations": self.iterations, "seed": seed}
        hook = sae.config.hook if hasattr(fit, "hooks") else None
        return classical(fit, method, d_sae=max(1, d_sae), hook=hook, **options).to(sae.device)


class _Pool:
    """Some of all rows, each as likely as any other, while they come."""

    def __init__(self, most: int, seed: int) -> None:
        import torch

        self._most, self._generator = most, torch.Generator().manual_seed(seed)
        self._rows: list[Tensor] = []
        self._keys: list[Tensor] = []

    def add(self, x: Tensor) -> None:
        import torch

        self._rows.append(x.float())
        self._keys.append(torch.rand(len(x), generator=self._generator))
        if sum(map(len, self._keys)) > 2 * self._most:
            self.rows()

    def rows(self) -> Tensor:
        """float32 [n d_in]: those with the smallest keys."""
        import torch

        keys, rows = torch.cat(self._keys), torch.cat(self._rows)
        if len(keys) > self._most:
            at = keys.topk(self._most, largest=False).indices
            keys, rows = keys[at], rows[at]
        self._keys, self._rows = [keys], [rows]
        return rows


class _Arm:
    """A dictionary with the sums of its own codes, and of those that are sought."""

    def __init__(self, sae: SAE) -> None:
        self.sae, self.encoded, self.pursued = sae, Sums(), Sums()

    def own(self, unit: np.ndarray, x: Tensor, mean: Tensor) -> np.ndarray:
        """Count rows with the encoder's codes; gives how many each has."""
        codes = self.sae.encode_sparse(x)
        self._add(self.encoded, unit, x, self.sae.decode(codes, self.sae.scale(x)), mean, codes.l0)
        return codes.l0

    def sought(self, unit: np.ndarray, x: Tensor, mean: Tensor, l0: np.ndarray) -> None:
        """Count rows with as many codes by pursuit."""
        from saelab.sae.pursuit import orthogonal_matching_pursuit

        sae = self.sae
        most = np.minimum(l0, sae.d_sae)
        aim = sae.target(x.to(sae.dtype)) - sae.b_dec
        codes = orthogonal_matching_pursuit(aim, sae.W_dec, most, signed=sae.sparsifier.signed)
        self._add(self.pursued, unit, x, sae.decode(codes, sae.scale(x)), mean, codes.l0)

    def _add(self, to: Sums, unit: Any, x: Tensor, x_hat: Tensor, mean: Tensor, l0: np.ndarray) -> None:
        x = x.double()
        error = (x - x_hat.double()).square().sum(1).cpu().numpy()
        deviation = (x - mean.to(x.device)).square().sum(1).cpu().numpy()
        to.add(unit, error=error, deviation=deviation, on=l0, rows=np.ones(len(l0)))


def _claims(found: Mapping[str, _Arm], methods: list[str], seed: int) -> dict[str, Beside | Alone]:
    this, nothing = found[THIS], found[NOTHING]
    by = {name: found[name].pursued for name in methods}
    claims: dict[str, Beside | Alone] = {
        "fvu": beside_each(this.encoded, {NOTHING: nothing.encoded, **by}, _fvu, seed),
        "fvu by omp": beside_each(this.pursued, {NOTHING: nothing.pursued, **by}, _fvu, seed),
    }
    for name in methods:
        for title, kind in (("", "encoded"), (" by omp", "pursued")):
            own, control = (_both(getattr(arm, kind), by[name]) for arm in (this, nothing))
            claims[f"margin over {name}{title}"] = beside(own, control, _margin, seed, NOTHING)
    return claims


def _both(own: Sums, other: Sums) -> Sums:
    """Errors of two on the same units."""
    sums = Sums(apart=True)
    units = np.arange(len(own.of("error")))
    sums.add(
        units,
        error=own.of("error"),
        other=other.of("error"),
        deviation=own.of("deviation"),
        rows=own.of("rows"),
    )
    return sums


def _fvu(sums: Mapping[str, Any]) -> Any:
    return sums["error"] / sums["deviation"]


def _margin(sums: Mapping[str, Any]) -> Any:
    return (sums["other"] - sums["error"]) / sums["deviation"]


def _l0(sums: Mapping[str, Any]) -> Any:
    return sums["on"] / sums["rows"]


def _table(found: Mapping[str, _Arm], seed: int) -> Any:
    import pandas as pd

    lines = []
    for name, arm in found.items():
        for codes, sums in (("own", arm.encoded), ("omp", arm.pursued)):
            if sums.n_units:
                totals = {each: sums.total(each) for each in sums.names()}
                low, high = interval(sums, _fvu, seed)
                lines.append([name, codes, arm.sae.d_sae, _l0(totals), _fvu(totals), low, high])
    return pd.DataFrame(lines, columns=["arm", "codes", "latents", "l0", "fvu", "from", "to"])
