"""Sums of each sample under an edit, of which every figure of an effect is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from saelab.analysis.controls import CONFIDENCE, DRAWS
from saelab.analysis.steering.arms import Edits
from saelab.analysis.steering.natural import Natural
from saelab.analysis.steering.outputs import values_of
from saelab.analysis.steering.passes import Pass, counted_of, passes
from saelab.analysis.steering.results import Figure
from saelab.capabilities import HasLogits, HasLoss, lacking
from saelab.types import HookPoint, check_finite

if TYPE_CHECKING:
    from saelab.corpora import Document
    from saelab.types import Subject

GROUPS = 64
"""Groups of samples that intervals of single tokens are drawn from."""
NATURAL = 8192
"""Natural rows, at most."""
MEASURES: dict[str, tuple[str, str]] = {
    "target": ("target", "target n"),
    "target any": ("target any", "generated"),
    "kl": ("kl", "positions"),
    "output": ("output", "samples"),
    "identical": ("identical", "samples"),
    "touched": ("touched", "rows"),
    "norm": ("norm", "edited"),
    "mahalanobis": ("mahalanobis", "edited"),
    "nearest": ("nearest", "edited"),
    "clean kl": ("clean kl", "clean positions"),
    "clean loss": ("clean loss", "clean targets"),
    "clean perplexity": ("clean loss", "clean targets"),
    "clean perplexity ratio": ("clean rise", "clean targets"),
    "clean output": ("clean output", "clean samples"),
    "clean identical": ("clean identical", "clean samples"),
    "clean touched": ("clean touched", "clean rows"),
    "clean norm": ("clean norm", "clean edited"),
    "clean mahalanobis": ("clean mahalanobis", "clean edited"),
    "clean nearest": ("clean nearest", "clean edited"),
    "distinct 2": ("distinct", "distinct n"),
    "repetition 4": ("repetition", "repetition n"),
    "words": ("words", "generated"),
}
"""Name of a figure -> the sums that it is the quotient of."""


@dataclass
class Sheet:
    """Sums of each sample."""

    n: int
    sums: dict[str, np.ndarray] = field(default_factory=dict)

    def add(self, name: str, samples: Any, values: Any) -> None:
        """Add to samples, by their numbers."""
        np.add.at(self.sums.setdefault(name, np.zeros(self.n)), samples, np.asarray(values, np.float64))


@dataclass
class Shifts:
    """Sums of next-token probabilities, before and after, over groups of samples."""

    before: np.ndarray
    after: np.ndarray
    n: np.ndarray

    @classmethod
    def none(cls, groups: int, d_vocab: int) -> Shifts:
        return cls(np.zeros((groups, d_vocab)), np.zeros((groups, d_vocab)), np.zeros(groups))


def figures(sheets: Sequence[Sheet], seed: int) -> dict[str, Figure]:
    """Every figure that the sheets of one arm have the sums for, with its interval.

    Args:
        sheets: One a draw of the arm; samples and draws are both drawn anew.
        seed: Of the draws.
    """
    found = {}
    for name, (above, below) in MEASURES.items():
        if all(above in sheet.sums and below in sheet.sums for sheet in sheets):
            top, bottom = (np.stack([sheet.sums[key] for sheet in sheets]) for key in (above, below))
            found[name] = _figure(top, bottom, "perplexity" in name, seed)
    return found


def _figure(top: np.ndarray, bottom: np.ndarray, power: bool, seed: int) -> Figure:
    draws, n = top.shape

    def score(above: Any, below: Any) -> Any:
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            found = np.where(below > 0, np.asarray(above) / below, np.nan)
            return np.exp(found) if power else found

    value = float(score(top.sum(), bottom.sum()))
    if n < 2:
        return Figure(value, (float("nan"), float("nan")), n)
    rng = np.random.default_rng(seed)
    of_draws = rng.multinomial(draws, np.full(draws, 1 / draws), size=DRAWS).astype(float)
    of_samples = rng.multinomial(n, np.full(n, 1 / n), size=DRAWS)
    drawn = [((of_draws @ each) * of_samples).sum(1) for each in (top, bottom)]
    scores = score(*drawn)
    known = scores[np.isfinite(scores)]
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(known, [tail, 100 - tail]) if len(known) else (np.nan, np.nan)
    return Figure(value, (float(low), float(high)), n)


def natural_of(
    subject: Subject, documents: Sequence[Document], hooks: Sequence[HookPoint], batch_size: int
) -> dict[str, Natural]:
    """Name of a hook point -> its natural activations: every third sample says what is usual."""
    rows: dict[tuple[str, bool], list[Tensor]] = {}
    for each in passes(subject, documents, hooks, batch_size):
        for name, acts in each.run.acts.items():
            for at, sample in enumerate(each.samples):
                rows.setdefault((name, is_apart(sample)), []).append(acts[at][each.kept[at]].float().cpu())
    found = {}
    for hook in hooks:
        ours, theirs = (_some(rows.get((hook.name, other), [])) for other in (False, True))
        if ours is not None and theirs is not None and len(ours) > 1:
            found[hook.name] = Natural.fit(ours, theirs)
    return found


def is_apart(sample: int) -> bool:
    """Whether a natural sample has no part in mean, covariance and neighbours."""
    return sample % 3 == 2


def _some(rows: list[Tensor]) -> Tensor | None:
    if not rows or not sum(map(len, rows)):
        return None
    every = torch.cat(rows)
    return every[:: -(-len(every) // NATURAL)]


def forced(
    subject: Any,
    arms: Mapping[Any, Edits],
    documents: Sequence[Document],
    hooks: Sequence[HookPoint],
    natural: Mapping[str, Natural],
    *,
    own: bool = False,
    prefix: str = "",
    target: Callable[[Any], Any] | None = None,
    shifting: Sequence[Any] = (),
    batch_size: int = 16,
) -> tuple[dict[Any, Sheet], dict[Any, Shifts]]:
    """Run samples as they are under every arm, beside the untouched subject.

    Args:
        subject: The model.
        arms: Key -> edits.
        documents: The samples.
        hooks: Where the edits are.
        natural: Name of a hook point -> its yardstick.
        own: Whether these samples are what that was made of: distances are then those of the third that only
            said what is usual, since all others have themselves for a neighbour.
        prefix: Of the names of the sums; with one, the loss is measured too.
        target: From an output to a number for each sample; None where the target is one of texts.
        shifting: Arms of which the shifts of single tokens are kept.
        batch_size: Samples of a pass.
    """
    sheets = {key: Sheet(len(documents)) for key in arms}
    shifts: dict[Any, Shifts] = {}
    has_logits = not lacking(subject, HasLogits)
    with_loss = bool(prefix) and not lacking(subject, HasLoss)
    groups = min(GROUPS, len(documents))
    for each in passes(subject, documents, hooks, batch_size):
        samples = list(each.samples)
        clean_loss, n_targets = subject.loss(each.inputs) if with_loss else (None, None)
        for key, edits in arms.items():
            sheet, run = sheets[key], each.run
            if edits:
                with torch.no_grad():
                    run = subject.run(each.inputs, read=list(hooks), edits=edits)
                check_finite(run.output, "The output under an edit")
            assert run.output is not None
            if has_logits:
                kept = None
                if key in shifting:
                    wide = int(run.output.shape[-1])
                    kept = shifts.setdefault(key, Shifts.none(groups, wide))
                _logits(sheet, each, run.output, prefix, kept)
            _output(sheet, each, run.output, prefix)
            _acts(sheet, each, run.acts, natural, prefix, own)
            if target is not None:
                values = values_of(target, run.output, len(samples)).double().cpu().numpy()
                sheet.add("target", samples, values)
                sheet.add("target n", samples, np.ones(len(samples)))
            if clean_loss is not None:
                loss = subject.loss(each.inputs, edits)[0] if edits else clean_loss
                sheet.add(f"{prefix}loss", samples, loss)
                sheet.add(f"{prefix}rise", samples, loss - clean_loss)
                sheet.add(f"{prefix}targets", samples, n_targets)
    return sheets, shifts


def _logits(sheet: Sheet, each: Pass, output: Tensor, prefix: str, shifts: Shifts | None) -> None:
    """KL(untouched || edited) of the next token, in nats, summed over the positions that count."""
    here = counted_of(each.inputs, output.shape[:2], output.device)
    before_all = each.run.output
    assert before_all is not None
    for at, sample in enumerate(each.samples):
        before, after = (x[at][here[at]].float().log_softmax(-1) for x in (before_all, output))
        kl = (before.exp() * (before - after)).sum(-1)
        sheet.add(f"{prefix}kl", sample, float(kl.double().sum()))
        sheet.add(f"{prefix}positions", sample, len(kl))
        if shifts is not None:
            group = sample % len(shifts.n)
            shifts.before[group] += before.exp().sum(0).double().cpu().numpy()
            shifts.after[group] += after.exp().sum(0).double().cpu().numpy()
            shifts.n[group] += len(kl)


def _output(sheet: Sheet, each: Pass, output: Tensor, prefix: str) -> None:
    """How far the output moves, in units of its own length, and whether any bit of it does."""
    before = each.run.output
    assert before is not None
    here = counted_of(each.inputs, output.shape[:2], output.device) if output.ndim >= 3 else None
    for at, sample in enumerate(each.samples):
        one, other = (x[at] if here is None else x[at][here[at]] for x in (before, output))
        length = float(one.double().norm())
        sheet.add(
            f"{prefix}output", sample, float((other.double() - one.double()).norm()) / max(length, 1e-12)
        )
        sheet.add(f"{prefix}identical", sample, float(torch.equal(one, other)))
        sheet.add(f"{prefix}samples", sample, 1)


def _acts(
    sheet: Sheet, each: Pass, acts: Mapping[str, Tensor], natural: Mapping[str, Natural], prefix: str,
    own: bool,
) -> None:  # fmt: skip
    """Rows that the edits changed, and how far they are from natural ones."""
    for name, new in acts.items():
        old = each.run.acts[name]
        edited = (new != old).any(-1) & each.kept
        sheet.add(f"{prefix}touched", each.samples, edited.sum(1).cpu())
        sheet.add(f"{prefix}rows", each.samples, each.kept.sum(1).cpu())
        if name not in natural:
            continue
        if own:
            apart = torch.tensor([is_apart(sample) for sample in each.samples], device=edited.device)
            edited = edited & apart[:, None]
        x, at = new[edited], edited.nonzero()[:, 0].cpu().numpy()
        sample = np.asarray(each.samples)[at]
        length = old[edited].double().norm(dim=-1).clamp_min(1e-12)
        sheet.add(f"{prefix}norm", sample, (x.double().norm(dim=-1) / length).cpu())
        for measure, values in natural[name].ratios(x).items():
            sheet.add(f"{prefix}{measure}", sample, values)
        sheet.add(f"{prefix}edited", sample, np.ones(len(sample)))


__all__ = ["MEASURES", "Sheet", "Shifts", "figures", "forced", "natural_of"]
