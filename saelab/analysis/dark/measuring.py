"""`dark_matter`: what of an SAE's error is linear, what of it pursuit avoids, what each part is worth."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from saelab.analysis.blocks import Block
from saelab.analysis.classes import RowClasses
from saelab.analysis.controls import Beside, Control, Sums, against, beside_each, untrained, with_interval
from saelab.analysis.dark.linear import Crossed, Fit, fold_of
from saelab.analysis.dark.pursuit import pursued
from saelab.analysis.dark.results import DarkMatter, Losses
from saelab.analysis.sources import Ground, Passes, Rows
from saelab.arguments import an_integer, checked, flag, full_sae, maybe
from saelab.capabilities import HasLoss
from saelab.errors import fitting
from saelab.types import Codes, ConfigError, CorpusError

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from saelab.corpora import Document
    from saelab.sae import SAE
    from saelab.stores import ActivationStore
    from saelab.types import Subject

THIS, UNTRAINED, SHUFFLED = "encoder", "untrained SAE", "shuffled errors"
PURSUIT, PURSUIT_UNTRAINED = "pursuit", "pursuit, untrained SAE"
OTHERS = "parts of other rows"


@fitting("A batch", "Pass a lower batch_size, or an SAE of less latents.")
@checked(
    sae=full_sae,
    folds=an_integer(2, 1000),
    pursuit=flag,
    max_rows=maybe(an_integer(1)),
    batch_size=an_integer(1),
    seed=an_integer(),
)
def dark_matter(
    sae: SAE,
    subject: Subject | ActivationStore | Tensor,
    corpus: list[str | Document] | Any = None,
    *,
    folds: int = 5,
    pursuit: bool = True,
    max_rows: int | None = None,
    batch_size: int = 16,
    seed: int = 0,
) -> DarkMatter:
    """The error e = x - x_hat of an SAE, split into what a linear map of x foretells, and the rest
    (Engels et al., arXiv 2410.14670).

    The map is least squares with an intercept. Documents are dealt into folds, and every figure of a fold is
    by the map of all others, so that no row has a part in the map that it is judged by. Beside stand an
    untrained SAE and errors shuffled among rows; beside the encoder, gradient pursuit on the same decoder,
    each row with no more latents than the encoder used there. Where the subject knows its loss, each part is
    added back to the reconstruction in its pass. Rows are those of `saelab.evaluate`; some 100 bytes of each
    are kept.

    Args:
        sae: An autoencoder.
        subject: The model, any that can be read at the SAE's hook points; or activations that are at hand: a
            store, or a tensor [n d_in]. Without the model's loss, what needs it is left out by name.
        corpus: What the subject reads; none with a store or a tensor.
        folds: Of documents.
        pursuit: Whether pursuit is measured too; it takes L0 products with the decoder a row.
        max_rows: Stop after this many rows.
        batch_size: Samples of a forward pass.
        seed: Of folds, shuffling, the untrained SAE and the draws that give the intervals.

    Returns:
        Scores, norms and classes of rows, losses, and the map.

    Raises:
        ConfigError: It is a transcoder, a subject comes without a corpus, or activations with one.
        CorpusError: There are fewer rows than twice the dimensions, or of one document.
        DeviceMemoryError: A batch does not fit into memory.
        HookError: The SAE names no hook point, or one that the subject does not have.
        NonFiniteError: Activations are NaN or infinite.
        ShapeError: The activations have another width than the SAE.
    """
    return measured(sae, Ground.of(subject, corpus, max_rows, batch_size, seed), folds, pursuit)


def measured(sae: SAE, ground: Ground, folds: int, pursuit: bool) -> DarkMatter:
    """`dark_matter` on a ground."""
    import torch

    if sae.config.d_out is not None:
        message = (
            "The error of an SAE is taken apart where it rebuilds what it reads. Got a "
            f"{sae.config.recipe}, whose output is another activation. Pass an autoencoder."
        )
        raise ConfigError(message)
    source, mode = ground.source(sae), sae.training
    sae.eval()
    try:
        with torch.no_grad():
            return _Measuring(sae, source, folds, ground.seed, pursuit).result()
    finally:
        sae.train(mode)


class _Measuring:
    """Two passes over the rows: the first sums up what the maps follow from, the second judges them."""

    def __init__(self, sae: SAE, source: Rows | Passes, folds: int, seed: int, pursuit: bool) -> None:
        self.source, self.folds, self.seed = source, folds, seed
        self.arms = _Arms(sae, seed, pursuit)
        self.classes = RowClasses(source)
        self.sums = {name: Sums() for name in self.arms.names}
        self.coordinates: dict[str, list[Tensor]] = {}
        self.losses, self.loses = Sums(), source.lacks(HasLoss)
        self.norms: list[np.ndarray] = []
        self.kinds: list[dict[str, np.ndarray]] = []
        self.identity = self.identity_loss = 0.0

    def result(self) -> DarkMatter:
        crossed, total, n_rows = Crossed(self.folds), None, 0
        for number, block in self._blocks():
            errors = self.arms.errors(number, block)
            crossed.add(fold_of(block.unit, self.folds, self.seed), block.x.cpu(), _targets(errors))
            summed = block.y.double().sum(0)
            total, n_rows = summed if total is None else total + summed, n_rows + len(block.y)
            self.classes.add(block)
        if total is None:
            message = "There must be rows to take apart. Got none. Pass longer texts, or more samples."
            raise CorpusError(message)
        fits, mean = crossed.fits(), total / n_rows
        for number, block in self._blocks():
            self._judge(number, block, fits, mean)
        sae = self.arms.sae
        whole = crossed.fit()
        left_out = {}
        if not self.arms.pursuit:
            left_out["pursuit"] = "pursuit=False"
        if self.loses is not None:
            left_out |= dict.fromkeys(("loss_linear", "loss_nonlinear"), self.loses)
        return DarkMatter(
            hook=self.source.name,
            n_rows=n_rows,
            d_in=sae.d_in,
            d_sae=sae.d_sae,
            l0=self.arms.l0(THIS),
            pursuit_l0=self.arms.l0(PURSUIT) if self.arms.pursuit else None,
            folds=self.folds,
            scores=self._scores(),
            left_out=left_out,
            rows=self._rows(),
            losses=self._losses(),
            identity=self.identity,
            identity_loss=self.identity_loss if self.loses is None else None,
            fit=Fit(whole.weights[:, : sae.d_in], whole.x_mean, whole.target_mean[: sae.d_in]),
            fingerprint=self.source.fingerprint(),
        )

    def _blocks(self) -> Iterator[tuple[int, Block]]:
        return ((number, block) for number, block in enumerate(self.source.blocks()) if len(block.y))

    def _judge(self, number: int, block: Block, fits: list[Fit], mean: Tensor) -> None:
        import torch

        errors, d = self.arms.errors(number, block), block.y.shape[1]
        targets = _targets(errors)
        found, known = torch.empty_like(targets), torch.empty_like(targets)
        fold = fold_of(block.unit, self.folds, self.seed)
        for k in np.unique(fold).tolist():
            at = torch.from_numpy(np.flatnonzero(fold == k))
            found[at], known[at] = fits[k](block.x[at].cpu()), fits[k].target_mean
        y = block.y.cpu().double()
        deviation = (y - mean.cpu()).square().sum(1)
        linear = {}
        for i, (name, error) in enumerate(errors.items()):
            own = slice(i * (d + 2), (i + 1) * (d + 2))
            missed, spread = (targets[:, own] - found[:, own]), (targets[:, own] - known[:, own])
            linear[name] = found[:, own][:, :d]
            missed, spread = missed.square(), spread.square()
            self.sums[name].add(
                block.unit,
                error=error.square().sum(1).numpy(), deviation=deviation.numpy(),
                left=missed[:, :d].sum(1).numpy(), spread=spread[:, :d].sum(1).numpy(),
                left_norm2=missed[:, d].numpy(), spread_norm2=spread[:, d].numpy(),
                left_norm=missed[:, d + 1].numpy(), spread_norm=spread[:, d + 1].numpy(),
                # of shuffled errors: what their map leaves of the true ones
                left_true=(errors[THIS] - linear[name]).square().sum(1).numpy(),
            )  # fmt: skip
            both = torch.stack([missed[:, :d].sum(0), spread[:, :d].sum(0)])
            self.coordinates[name] = [*self.coordinates.get(name, []), both]
        own = errors[THIS]
        columns = [deviation.sqrt(), own.norm(dim=1), linear[THIS].norm(dim=1)]
        columns += [(own - linear[THIS]).norm(dim=1), errors[UNTRAINED].norm(dim=1)]
        columns.append((errors[UNTRAINED] - linear[UNTRAINED]).norm(dim=1))
        if self.arms.pursuit:
            columns.append(errors[PURSUIT].norm(dim=1))
        self.norms.append(torch.stack(columns, 1).numpy())
        self.kinds.append(self.classes.of(block))
        self._splice(number, block, own, linear[THIS], mean)

    def _splice(self, number: int, block: Block, error: Tensor, linear: Tensor, mean: Tensor) -> None:
        """Rebuild the rows of the parts as a subject's pass has them, in its precision."""
        y = block.y
        x_hat, part = y - error.to(y), linear.to(y)
        rest = y - x_hat - part
        size = float(y.abs().max())
        whole = x_hat + part + rest
        self.identity = max(self.identity, float((y - whole).abs().max()) / size if size else 0.0)
        if self.loses is not None or not isinstance(self.source, Passes):
            return
        base, other = self.source.clean(block), self.arms.other(number, len(y)).to(y.device)
        rows = {
            "ablated": mean.to(y).expand_as(y),
            "sae": x_hat, "linear": x_hat + part, "nonlinear": x_hat + rest, "both": whole,
            "other_linear": x_hat + part[other], "other_nonlinear": x_hat + rest[other],
        }  # fmt: skip
        found = {name: self.source.loss(block, each) for name, each in rows.items()}
        with np.errstate(invalid="ignore"):
            apart = np.abs(found["both"] - base.clean) / np.maximum(base.n, 1)
        self.identity_loss = max(self.identity_loss, float(apart.max(initial=0.0)))
        self.losses.add(block.samples, n=base.n, clean=base.clean, **found)

    def _scores(self) -> dict[str, Beside]:
        controls = {UNTRAINED: self.sums[UNTRAINED], SHUFFLED: self.sums[SHUFFLED]}
        bare = {UNTRAINED: controls[UNTRAINED]}
        found = {"fvu": self._beside(_share("error"), THIS, bare)}
        found["linear_r2"] = self._beside(_r2(""), THIS, controls)
        found["linear_r2_mean"] = self._coordinates()
        found["norm2_r2"] = self._beside(_r2("_norm2"), THIS, controls)
        found["norm_r2"] = self._beside(_r2("_norm"), THIS, controls)
        blind = with_interval(self.sums[SHUFFLED], _share("left_true"), self.seed)
        rest = self._beside(_share("left"), THIS, bare)
        found["nonlinear_fvu"] = replace(rest, also=(Control(SHUFFLED, *blind),))
        found["linear_fvu"] = self._beside(_linear("deviation"), THIS, bare)
        found["linear_share"] = self._beside(_linear("error"), THIS, bare)
        if self.arms.pursuit:
            others = {THIS: self.sums[THIS], PURSUIT_UNTRAINED: self.sums[PURSUIT_UNTRAINED]}
            for name, score in (
                ("fvu", _share("error")), ("linear_r2", _r2("")), ("nonlinear_fvu", _share("left")),
            ):  # fmt: skip
                found[f"pursuit_{name}"] = self._beside(score, PURSUIT, others)
        if self.loses is None:
            for name in ("linear", "nonlinear"):
                own, other = (
                    with_interval(self.losses, _recovered(each), self.seed)
                    for each in (name, f"other_{name}")
                )
                found[f"loss_{name}"] = against(own, {OTHERS: other}, self.losses.n_units)
        return found

    def _beside(self, score: Callable, arm: str, controls: Mapping[str, Sums]) -> Beside:
        return beside_each(self.sums[arm], controls, score, self.seed)

    def _coordinates(self) -> Beside:
        """Mean over coordinates of each one's R2; those of which the error is constant take no part."""
        import torch

        sums = {}
        for name in (THIS, UNTRAINED, SHUFFLED):
            left, spread = torch.stack(self.coordinates[name]).sum(0).numpy()
            varies = spread > 0
            sums[name] = Sums()
            r2 = 1 - left[varies] / spread[varies]
            sums[name].add(np.arange(len(r2)), r2=r2, n=np.ones(len(r2)))
        own = sums.pop(THIS)
        return beside_each(own, sums, lambda s: s["r2"] / s["n"], self.seed)

    def _rows(self) -> pd.DataFrame:
        import pandas as pd

        names = ["input", "error", "linear", "nonlinear", "untrained", "untrained_nonlinear"]
        names += ["pursuit"] if self.arms.pursuit else []
        columns = dict(zip(names, np.concatenate(self.norms).T, strict=True))
        kinds = {name: np.concatenate([each[name] for each in self.kinds]) for name in self.kinds[0]}
        return pd.DataFrame({**kinds, **columns})

    def _losses(self) -> Losses | None:
        if self.loses is not None:
            return None
        n = self.losses.total("n")
        return Losses(*(self.losses.total(name) / n for name in Losses._fields))


class _Arms:
    """The SAE, its controls and pursuit: the error that each makes of a block of rows."""

    def __init__(self, sae: SAE, seed: int, pursuit: bool) -> None:
        self.sae, self.seed, self.pursuit = sae, seed, pursuit
        self.names = [THIS, UNTRAINED, SHUFFLED, *([PURSUIT, PURSUIT_UNTRAINED] if pursuit else [])]
        self.control: SAE | None = None
        # pursuit takes long, and its codes little room: the second pass has them of the first
        self._codes: dict[tuple[str, int], Codes] = {}
        self._l0: dict[tuple[str, int], np.ndarray] = {}

    def errors(self, number: int, block: Block) -> dict[str, Tensor]:
        """float64 [n d], by arm, on the CPU."""
        sae, x = self.sae, block.x.to(self.sae.device)
        y = block.y.cpu().double()
        if self.control is None:
            self.control = untrained(sae, block.x, seed=self.seed)
        forward = sae(x)
        error = y - forward.x_hat.cpu().double()
        self._l0[THIS, number] = l0 = (forward.codes != 0).sum(1).cpu().numpy()
        found = {
            THIS: error,
            UNTRAINED: y - self.control(x).x_hat.cpu().double(),
            SHUFFLED: error[self.other(number, len(y))],
        }
        if self.pursuit:
            for name, each in ((PURSUIT, sae), (PURSUIT_UNTRAINED, self.control)):
                if (name, number) not in self._codes:
                    self._codes[name, number] = pursued(each, x, l0)
                codes = self._codes[name, number]
                self._l0[name, number] = codes.l0
                found[name] = y - each.decode(codes, scale=each.scale(x)).cpu().double()
        return found

    def other(self, number: int, n: int) -> Tensor:
        """Another row for each of a block, int64 [n]; the same in both passes."""
        import torch

        return torch.from_numpy(np.random.default_rng([self.seed, number]).permutation(n))

    def l0(self, arm: str) -> float:
        """Latents != 0 of a row, mean."""
        return float(np.concatenate([l0 for (name, _), l0 in self._l0.items() if name == arm]).mean())


def _targets(errors: Mapping[str, Tensor]) -> Tensor:
    """[n, arms * (d + 2)]: of each arm the error, its squared norm and its norm."""
    import torch

    parts = []
    for error in errors.values():
        square = error.square().sum(1, keepdim=True)
        parts += [error, square, square.sqrt()]
    return torch.cat(parts, 1)


def _share(name: str) -> Callable[[Mapping[str, Any]], Any]:
    return lambda s: s[name] / s["deviation"]


def _linear(of: str) -> Callable[[Mapping[str, Any]], Any]:
    return lambda s: (s["error"] - s["left"]) / s[of]


def _r2(of: str) -> Callable[[Mapping[str, Any]], Any]:
    return lambda s: 1 - s[f"left{of}"] / s[f"spread{of}"]


def _recovered(name: str) -> Callable[[Mapping[str, Any]], Any]:
    return lambda s: (s["sae"] - s[name]) / (s["sae"] - s["clean"])


__all__ = ["dark_matter", "measured"]
