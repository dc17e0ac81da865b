"""How an SAE treats the tokens that a chat template wrote: role markers, ends of turns, BOS."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from saelab.analysis.controls import Beside, Sums, beside, untrained
from saelab.arguments import checked, flag, full_sae
from saelab.capabilities import HasTokens, need
from saelab.errors import headline
from saelab.harvesting.batches import batches, check_hooks, side_by_side
from saelab.types import CorpusError

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from saelab.sae import SAE
    from saelab.types import Subject


@dataclass(frozen=True)
class TokenScores:
    """Reconstruction of one kind of rows."""

    n_rows: int
    mse: float
    """mean squared error of an element, in squared raw units"""
    fvu: float
    """sum |x - x_hat|^2 / sum |x - mean x|^2 of these rows, the mean being that of all rows"""
    l0: float
    """latents != 0 a row, mean"""

    @property
    def log2_mse(self) -> float:
        """As FAST (arXiv 2506.07691) reports it; compare it only with other log2 values."""
        return float(np.log2(self.mse)) if self.mse > 0 else -float("inf")


@dataclass(frozen=True)
class SpecialTokens:
    """Rows that a template wrote beside the others, of this SAE and of an untrained one."""

    hook: str
    special: TokenScores
    other: TokenScores
    untrained_special: TokenScores
    untrained_other: TokenScores
    latents: dict[str, tuple[tuple[int, float], ...]]
    """special token -> its latents (index, mean code) of the largest mean |code|, descending"""
    scores: Mapping[str, Beside] = field(default_factory=dict)
    """"special fvu", "other l0", ...: each beside the untrained SAE, with intervals over documents"""

    def to_frame(self) -> pd.DataFrame:
        """One line for each kind of token and SAE."""
        import pandas as pd

        rows = [
            {"SAE": sae, "tokens": kind, **vars(scores), "log2_mse": scores.log2_mse}
            for sae, kind, scores in (
                ("this", "special", self.special),
                ("this", "other", self.other),
                ("untrained", "special", self.untrained_special),
                ("untrained", "other", self.untrained_other),
            )
        ]
        return pd.DataFrame(rows)

    __repr__ = headline

    def __str__(self) -> str:
        table = self.to_frame().to_string(index=False, float_format=lambda v: f"{v:.4g}")
        between = "; ".join(
            f"{name} {s.interval[0]:.4g} to {s.interval[1]:.4g}" for name, s in self.scores.items()
        )
        lines = [
            f"{token!r}: " + ", ".join(f"#{latent} {value:.3g}" for latent, value in found[:5])
            for token, found in self.latents.items()
        ]
        head = f"{self.hook}, tokens that the template wrote"
        return "\n".join([head, table, f"95 % of this SAE: {between}", *lines])


@checked(sae=full_sae, include_bos=flag)
def special_tokens(
    sae: SAE,
    subject: Subject,
    corpus: Iterable[Any],
    *,
    packing: str = "dialogue",
    max_rows: int | None = None,
    include_bos: bool = False,
    n_latents: int = 10,
    seed: int = 0,
) -> SpecialTokens:
    """Reconstruction and latents on special tokens apart from the rest, beside an untrained SAE.

    Special is what the chat template or the tokenizer wrote (`saelab.corpora.dialogues`); of plain texts
    (packing="document") only the tokenizer's own tokens.

    Args:
        sae: whose scores are wanted.
        subject: a language model.
        corpus: dialogues, or texts.
        packing: see `saelab.harvest`.
        max_rows: stop there.
        include_bos: whether BOS is a row.
        n_latents: of each special token, at most.
        seed: of the untrained SAE, which starts from the first rows, and of the intervals.

    Raises:
        CorpusError: There are no special tokens, or no others.
        HookError, ShapeError: The SAE does not fit the subject.
    """
    import torch

    need(subject, HasTokens, "Comparing special tokens")
    texts = subject.corpus(corpus)
    hooks = check_hooks(subject, sae.reads, texts)
    reading: dict[str, Any] = {"packing": packing, "include_bos": include_bos, "max_rows": max_rows}
    # the first pass finds the mean, about which the second measures
    total, kinds, first = None, np.zeros(2, np.int64), None
    for batch in batches(subject, texts, hooks, **reading):
        x = side_by_side(batch.acts, hooks).to(sae.device)
        first = x if first is None else first
        total = x.double().sum(0) + (0 if total is None else total)
        kinds += np.bincount(batch.rows.special, minlength=2)
    if total is None or first is None or not kinds.all():
        message = (
            f"Special tokens are compared with others. Got {kinds[1]} special and {kinds[0]} other rows. "
            "Pass dialogues (saelab.corpora.dialogues) with packing='dialogue'."
        )
        raise CorpusError(message)
    mean = total / int(kinds.sum())
    sums: dict[tuple[str, str], Sums] = defaultdict(Sums)
    codes_of: dict[str, Tensor] = {}
    counts: dict[str, int] = defaultdict(int)
    arms = {"this": sae, "untrained": untrained(sae, first, seed=seed)}
    for batch in batches(subject, texts, hooks, **reading):
        x = side_by_side(batch.acts, hooks).to(sae.device)
        special, unit = batch.rows.special, batch.rows.origin[:, 0]
        for name, arm in arms.items():
            with torch.no_grad():
                forward = arm(x)
            wide = x.double()
            found = {
                "error": (wide - forward.x_hat.double()).square().sum(1),
                "deviation": (wide - mean).square().sum(1),
                "on": (forward.codes != 0).sum(1),
                "rows": torch.ones(len(x)),
            }
            for kind, at in (("special", special), ("other", ~special)):
                sums[name, kind].add(unit[at], **{k: v.cpu().numpy()[at] for k, v in found.items()})
            if name == "this":
                shown = batch.rows.shown
                for number in np.unique(shown[special]).tolist():
                    token = batch.rows.vocabulary[number].name
                    here = torch.from_numpy(special & (shown == number))
                    codes = forward.codes[here.to(x.device)].double().sum(0).cpu()
                    codes_of[token] = codes_of.get(token, 0) + codes
                    counts[token] += int(here.sum())
    latents = {}
    for token in sorted(codes_of, key=lambda t: -counts[t]):
        means = codes_of[token] / counts[token]
        order = means.abs().argsort(descending=True, stable=True)[:n_latents].tolist()
        latents[token] = tuple((i, float(means[i])) for i in order if means[i] != 0)
    beside_it = {
        f"{kind} {name}": beside(sums["this", kind], sums["untrained", kind], score, seed)
        for kind in ("special", "other")
        for name, score in (("fvu", _fvu), ("l0", _l0))
    }
    each = {key: _scores(value, len(mean)) for key, value in sums.items()}
    return SpecialTokens(
        " + ".join(map(str, hooks)),
        special=each["this", "special"],
        other=each["this", "other"],
        untrained_special=each["untrained", "special"],
        untrained_other=each["untrained", "other"],
        latents=latents,
        scores=beside_it,
    )


def _fvu(sums: Mapping[str, Any]) -> Any:
    return sums["error"] / sums["deviation"]


def _l0(sums: Mapping[str, Any]) -> Any:
    return sums["on"] / sums["rows"]


def _scores(sums: Sums, d_in: int) -> TokenScores:
    total = {name: sums.total(name) for name in sums.names()}
    n = int(total["rows"])
    fvu = _fvu(total) if total["deviation"] > 0 else float("inf")
    return TokenScores(n, total["error"] / (n * d_in), fvu, _l0(total))


__all__ = ["SpecialTokens", "TokenScores", "special_tokens"]
