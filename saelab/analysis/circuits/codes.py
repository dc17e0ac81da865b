"""Discrete codes of heads (O'Neill & Bui 2024, arXiv 2405.12522), beside what they would be by chance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from saelab.analysis.circuits.nodes import Heads, Node, nodes_of, sites_of
from saelab.analysis.circuits.pruning import refuse_undone
from saelab.analysis.circuits.results import Effects
from saelab.analysis.circuits.tasks import Task
from saelab.analysis.controls import untrained
from saelab.arguments import a_subject, an_integer, checked
from saelab.sae import SAE, recipe
from saelab.training import train
from saelab.types import ConfigError, short

if TYPE_CHECKING:
    import pandas as pd

DRAWS = 200
SHUFFLED, UNTRAINED = "shuffled labels", "untrained SAE"
BARS = {SHUFFLED: 0.10, UNTRAINED: 0.05}
"""By how much the AUC of the codes must exceed that of each control."""


@dataclass(frozen=True, eq=False)
class HeadCodes:
    """The code of each head on each prompt, by SAEs of several seeds, and by untrained ones."""

    task: str
    nodes: tuple[Node, ...]
    codes: np.ndarray
    """int32 [seeds, 2, pairs, heads]: the strongest latent, of clean and of corrupt prompts"""
    untrained: np.ndarray
    """the same, of SAEs that were not trained"""

    def scores(self, normalised: bool = False) -> np.ndarray:
        """float64 [seeds, heads]: how many codes a head has on clean prompts that it has on no corrupt one.

        Args:
            normalised: Whether they are counted as a share of all its codes.
        """
        return np.stack([node_scores(each, normalised) for each in self.codes])

    def edges(self) -> np.ndarray:
        """float64 [seeds, heads, heads]: how many pairs of codes two heads have on a clean prompt together
        that they have on no corrupt one together. What the authors' program calls edges is a score of heads
        made of these."""
        return np.stack([edge_scores(each) for each in self.codes])

    def against(self, truth: np.ndarray, seed: int = 0) -> CodeTest:
        """How well the scores tell the heads of a circuit from others, beside both controls.

        Args:
            truth: bool [heads], whether it is of the circuit, as exact patching found it (`important`).
            seed: Of the draws of prompts, and of shuffled labels.

        Raises:
            ConfigError: truth is of other heads, or all are alike.
        """
        truth = np.asarray(truth, dtype=bool)
        if truth.shape != (len(self.nodes),) or truth.all() or not truth.any():
            message = (
                f"truth must say of each of the {len(self.nodes)} heads whether it is of the circuit, and be "
                f"both. Got {short(truth)}. Pass important(activation_patching(...))."
            )
            raise ConfigError(message)
        rng = np.random.default_rng(seed)
        arms: dict[str, Callable[[int, np.ndarray], np.ndarray]] = {
            "codes": lambda s, at: self.codes[s][:, at],
            SHUFFLED: lambda s, at: _shuffled(self.codes[s][:, at], rng),
            UNTRAINED: lambda s, at: self.untrained[s][:, at],
        }
        seeds, pairs = len(self.codes), self.codes.shape[2]
        whole = np.arange(pairs)
        found = {
            arm: np.array([auc(node_scores(of(s, whole)), truth) for s in range(seeds)])
            for arm, of in arms.items()
        }
        gains: dict[str, list[float]] = {SHUFFLED: [], UNTRAINED: []}
        for draw in range(DRAWS):
            s, at = draw % seeds, rng.integers(0, pairs, pairs)
            values = {arm: auc(node_scores(of(s, at)), truth) for arm, of in arms.items()}
            for control, gain in gains.items():
                gain.append(values["codes"] - values[control])
        intervals = {c: tuple(map(float, np.percentile(g, [2.5, 97.5]))) for c, g in gains.items()}
        return CodeTest(self.task, found, intervals, int(truth.sum()), len(truth))  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False)
class CodeTest:
    """Whether the codes of heads tell a circuit."""

    task: str
    auc: dict[str, np.ndarray]
    """arm -> float64 [seeds], the area under the ROC curve"""
    gain: dict[str, tuple[float, float]]
    """control -> 95 % of what the AUC of the codes has over it, drawn over prompts, paired"""
    heads: int
    """of the circuit"""
    of: int

    @property
    def title(self) -> str:
        """What the score may be called: a "node score" where it beats both controls, by .10 and by .05 with
        an interval above 0; else a "diversity score", for it says how varied a head is, not what it does."""
        beaten = all(
            self.auc["codes"].mean() - self.auc[control].mean() >= bar and self.gain[control][0] > 0
            for control, bar in BARS.items()
        )
        return "node score" if beaten else "diversity score"

    def to_frame(self) -> pd.DataFrame:
        """A row an arm: AUC, its least and largest over seeds, and what the codes have over it."""
        import pandas as pd

        return pd.DataFrame(
            {
                "arm": list(self.auc),
                "auc": [float(v.mean()) for v in self.auc.values()],
                "least": [float(v.min()) for v in self.auc.values()],
                "largest": [float(v.max()) for v in self.auc.values()],
                "gain_low": [self.gain.get(arm, (np.nan, np.nan))[0] for arm in self.auc],
                "gain_high": [self.gain.get(arm, (np.nan, np.nan))[1] for arm in self.auc],
            }
        )

    def __str__(self) -> str:
        arms = "; ".join(f"{arm} {values.mean():.3f}" for arm, values in self.auc.items())
        gains = "; ".join(f"over {arm} [{low:+.3f}, {high:+.3f}]" for arm, (low, high) in self.gain.items())
        why = "" if self.title == "node score" else ": it does not beat its controls"
        return (
            f"{self.title.capitalize()} of {self.task!r}{why}\n"
            f"  AUC of {self.heads} heads among {self.of}: {arms}\n  {gains}"
        )

    __repr__ = __str__


@checked(
    subject=a_subject, d_sae=an_integer(2, 65_536), n_train=an_integer(1), seeds=an_integer(1, 100),
    steps=an_integer(1, 100_000),
)  # fmt: skip
def head_codes(
    subject: Any,
    task: Task,
    *,
    d_sae: int = 200,
    l1: float = 0.02,
    n_train: int = 10,
    steps: int = 500,
    seeds: int = 3,
) -> HeadCodes:
    """The discrete code of each head on each prompt: the strongest latent of one SAE that all heads share.

    It reads what a head writes into the residual stream, the mean over positions (but BOS) of z W_O, and is
    trained on the heads of a few prompts. Other than in the authors' program, inputs are scaled first, as all
    SAEs' here (theirs are not, so that an l1 fits one model), and trained and untrained SAEs start alike.

    Args:
        subject: A language model.
        task: See `prompt_task`; corrupt prompts are the negative ones.
        d_sae: Latents.
        l1: Weight of the codes' L1 norm.
        n_train: Prompts whose heads train the SAE, half of them clean.
        steps: Of training, with all of them in each.
        seeds: SAEs, each trained on other prompts.

    Returns:
        The codes; `against` says what they are worth.

    Raises:
        CorpusError: The task has too few pairs, or the model does not do it.
        HookError: The subject has no heads.
    """
    refuse_undone(task)
    sites = sites_of(subject, "heads")
    writes = head_writes(subject, task)
    pairs, heads, width = writes.shape[1:]
    config = recipe("relu", d_in=width, d_sae=d_sae, l1=l1)
    codes, blank = [], []
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        chosen = rng.choice(2 * pairs, min(n_train, 2 * pairs), replace=False)
        rows = writes.reshape(2 * pairs, heads, width)[chosen].reshape(-1, width).contiguous()
        run = train(config, rows, steps=steps, batch_size=len(rows), seed=seed, progress=False)
        codes.append(_strongest(run.sae, writes))
        blank.append(_strongest(untrained(run.sae, rows, seed=seed), writes))
    return HeadCodes(task.name, tuple(nodes_of(sites)), np.stack(codes), np.stack(blank))


def head_writes(subject: Any, task: Task) -> Tensor:
    """What each head writes into the residual stream, its mean over positions.

    Args:
        subject: A language model.
        task: Its prompts.

    Returns:
        float32 [2, pairs, heads, d_model], of clean and of corrupt prompts.
    """
    sites = [site for site in sites_of(subject, "heads") if isinstance(site, Heads)]
    found: Tensor | None = None
    for batch in task.batches(subject):
        for side, inputs in enumerate((batch.clean, batch.corrupt)):
            acts = subject.run(inputs, read=[site.writes for site in sites], output=False).acts
            here = torch.from_numpy(inputs.counted)[..., None]
            means = [(acts[site.writes].float().cpu() * here).sum(1) / here.sum(1) for site in sites]
            layers = [
                _written(subject, site, z.to(subject.device)) for site, z in zip(sites, means, strict=True)
            ]
            rows = torch.cat(layers, 1).cpu()
            if found is None:
                found = torch.zeros(2, len(task.pairs), *rows.shape[1:])
            found[side, torch.from_numpy(batch.at)] = rows
    assert found is not None
    return found


def _written(subject: Any, site: Heads, z: Tensor) -> Tensor:
    """[n, heads, d_model] of z [n, heads * d_head]."""
    n, d_head = len(z), z.shape[1] // site.n
    alone = z.new_zeros(n, site.n, site.n, d_head)
    heads = torch.arange(site.n)
    alone[:, heads, heads] = z.view(n, site.n, d_head)
    return subject.to_residual(site.writes, alone.reshape(n * site.n, -1)).reshape(n, site.n, -1)


@torch.no_grad()
def _strongest(sae: SAE, writes: Tensor) -> np.ndarray:
    """int32 [2, pairs, heads]."""
    flat = writes.reshape(-1, writes.shape[-1])
    return sae.encode(flat).argmax(-1).int().reshape(writes.shape[:-1]).numpy()


def node_scores(codes: np.ndarray, normalised: bool = False) -> np.ndarray:
    """float64 [heads]: codes that a head has on clean prompts alone.

    Args:
        codes: int [2, pairs, heads].
        normalised: Whether they are counted as a share of all its codes.
    """
    found = []
    for head in range(codes.shape[2]):
        clean, corrupt = (set(codes[side, :, head].tolist()) for side in (0, 1))
        found.append(len(clean - corrupt) / (len(clean | corrupt) if normalised else 1))
    return np.array(found)


def edge_scores(codes: np.ndarray) -> np.ndarray:
    """float64 [heads, heads], symmetric: pairs of codes that two heads have together on clean prompts alone.

    Args:
        codes: int [2, pairs, heads].
    """
    n = codes.shape[2]
    out = np.zeros((n, n))
    width = int(codes.max()) + 1
    for i in range(n):
        for j in range(i + 1, n):
            together = codes[:, :, i].astype(np.int64) * width + codes[:, :, j]
            out[i, j] = out[j, i] = len(np.setdiff1d(together[0], together[1]))
    return out


def auc(scores: np.ndarray, truth: np.ndarray) -> float:
    """Area under the ROC curve: how often one of the circuit scores above one that is not, ties half.

    Args:
        scores: [nodes].
        truth: bool [nodes].
    """
    own, other = scores[truth][:, None], scores[~truth][None]
    return float((own > other).mean() + 0.5 * (own == other).mean())


def important(effects: Effects, share: float = 0.05) -> np.ndarray:
    """bool [nodes]: the ground truth of a circuit, by exact patching: which carry at least a share of the
    task's score, of either sign, with a 95 % interval that leaves out 0.

    Args:
        effects: Of `activation_patching`.
        share: The least share.
    """
    intervals = np.array([effects.interval(i) for i in range(len(effects.nodes))])
    apart = (intervals[:, 0] > 0) | (intervals[:, 1] < 0)
    return (np.abs(effects.share) >= share) & apart


def _shuffled(codes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The same prompts, of which any may be called clean."""
    flat = codes.reshape(-1, codes.shape[2])
    return rng.permutation(flat).reshape(codes.shape)


__all__ = [
    "CodeTest", "HeadCodes", "auc", "edge_scores", "head_codes", "head_writes", "important", "node_scores",
]  # fmt: skip
