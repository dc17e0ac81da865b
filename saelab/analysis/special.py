"""How an SAE treats the tokens that a chat template wrote: role markers, ends of turns, BOS."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from saelab.harvesting.batches import batches, check_hooks, side_by_side
from saelab.types import CorpusError

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from saelab.sae import SAE
    from saelab.subjects import LanguageModel


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

    def to_frame(self) -> pd.DataFrame:
        """A row a kind of token and SAE."""
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

    def __str__(self) -> str:
        table = self.to_frame().to_string(index=False, float_format=lambda v: f"{v:.4g}")
        lines = [
            f"{token!r}: " + ", ".join(f"#{latent} {value:.3g}" for latent, value in found[:5])
            for token, found in self.latents.items()
        ]
        return "\n".join([f"{self.hook}, tokens that the template wrote", table, *lines])


def special_tokens(
    sae: SAE,
    subject: LanguageModel,
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
    (packing="document") only the tokenizer's own tokens. seed: of the untrained SAE, which starts from the
    first rows. Raises CorpusError where there are no special tokens or no others, HookError, ShapeError.
    """
    import torch

    from saelab.sae import SAE

    texts = subject.corpus(corpus)
    hooks = check_hooks(subject, sae.reads, texts)
    reading: dict[str, Any] = {"packing": packing, "include_bos": include_bos}
    sums: dict[tuple[str, bool], _Sums] = defaultdict(_Sums)
    codes_of: dict[str, Tensor] = {}
    counts: dict[str, int] = defaultdict(int)
    arms: dict[str, SAE] = {"this": sae}
    for batch in batches(subject, texts, hooks, max_rows=max_rows, **reading):
        x = side_by_side(batch.acts, hooks).to(sae.device)
        if "untrained" not in arms:
            arms["untrained"] = SAE.create(sae.config, seed=seed, rows=x.float().cpu()).to(sae.device)
        special = torch.from_numpy(batch.rows.special).to(x.device)
        for name, arm in arms.items():
            with torch.no_grad():
                forward = arm(x)
            for kind in (True, False):
                at = special == kind
                sums[name, kind].add(x[at], forward.x_hat[at], forward.codes[at])
            if name == "this":
                shown, special_rows = batch.rows.shown, batch.rows.special
                for number in np.unique(shown[special_rows]).tolist():
                    token = batch.rows.vocabulary[number].name
                    at = torch.from_numpy(special_rows & (shown == number))
                    found = forward.codes[at.to(x.device)].double().sum(0).cpu()
                    codes_of[token] = codes_of.get(token, 0) + found
                    counts[token] += int(at.sum())
    kinds = [sums["this", kind].n for kind in (True, False)]
    if not all(kinds):
        message = (
            f"Special tokens are compared with others. Got {kinds[0]} special and {kinds[1]} other rows. "
            "Pass dialogues (saelab.corpora.dialogues) with packing='dialogue'."
        )
        raise CorpusError(message)
    n = sum(kinds)
    mean = (sums["this", True].total + sums["this", False].total) / n
    latents = {}
    for token in sorted(codes_of, key=lambda t: -counts[t]):
        means = codes_of[token] / counts[token]
        order = means.abs().argsort(descending=True, stable=True)[:n_latents].tolist()
        latents[token] = tuple((i, float(means[i])) for i in order if means[i] != 0)
    scores = {key: value.scores(mean) for key, value in sums.items()}
    return SpecialTokens(
        " + ".join(map(str, hooks)),
        scores["this", True],
        scores["this", False],
        scores["untrained", True],
        scores["untrained", False],
        latents,
    )


class _Sums:
    """Running sums of one kind of rows, in float64."""

    def __init__(self) -> None:
        self.n = self.nonzero = 0
        self.error = self.squares = 0.0
        self.total: Any = 0.0

    def add(self, x: Tensor, x_hat: Tensor, codes: Tensor) -> None:
        x = x.double()
        self.n += len(x)
        self.error += float((x - x_hat).square().sum())
        self.squares += float(x.square().sum())
        self.total = self.total + x.sum(0)
        self.nonzero += int((codes != 0).sum())

    def scores(self, mean: Tensor) -> TokenScores:
        about = self.squares - 2 * float(mean @ self.total) + self.n * float(mean @ mean)
        fvu = self.error / about if about > 0 else float("inf")
        return TokenScores(self.n, self.error / (self.n * len(mean)), fvu, self.nonzero / self.n)


__all__ = ["SpecialTokens", "TokenScores", "special_tokens"]
