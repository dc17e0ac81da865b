"""Discrete codes of heads (O'Neill & Bui 2024, arXiv 2405.12522), beside what they would be by chance."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from saelab.analysis.circuits.measures import CODES, SHUFFLED, UNTRAINED, CodeTest
from saelab.analysis.circuits.nodes import HeadEdge, Heads, Node, head_edges, nodes_of, sites_of
from saelab.analysis.circuits.pruning import refuse_undone
from saelab.analysis.circuits.results import Effects, carries
from saelab.analysis.circuits.tasks import Task
from saelab.analysis.controls import untrained
from saelab.arguments import a_subject, an_integer, checked
from saelab.sae import SAE, recipe
from saelab.training import train
from saelab.types import ConfigError, short

if TYPE_CHECKING:
    import pandas as pd

DRAWS = 200


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

    def to_frame(self) -> pd.DataFrame:
        """One line for each head: node, its score (mean over seeds), and that of untrained SAEs."""
        import pandas as pd

        blank = np.mean([node_scores(each, False) for each in self.untrained], axis=0)
        nodes = [str(node) for node in self.nodes]
        return pd.DataFrame({"node": nodes, "score": self.scores().mean(0), "untrained SAE": blank})

    def edges(self) -> np.ndarray:
        """float64 [seeds, heads, heads]: how many pairs of codes two heads have on a clean prompt together
        that they have on no corrupt one together. What the authors' program calls edges is a score of heads
        made of these."""
        return np.stack([edge_scores(each) for each in self.codes])

    def against(
        self, truth: np.ndarray, estimates: Mapping[str, Effects] = MappingProxyType({}), *, seed: int = 0
    ) -> CodeTest:
        """How well the scores tell the heads of a circuit from others, beside both controls.

        Args:
            truth: bool [heads], whether it is of the circuit, as exact patching found it (`important`).
            estimates: By name, effects of the same heads on the same pairs, of `attribution_patching`: what
                the size of their mean tells stands beside the codes.
            seed: Of the draws of prompts, and of shuffled labels.

        Raises:
            ConfigError: truth, or an estimate, is of other heads, or all are alike.
        """
        return self._tested("node", self.nodes, node_scores, truth, estimates, seed)

    def against_edges(
        self, truth: np.ndarray, estimates: Mapping[str, Effects] = MappingProxyType({}), *, seed: int = 0
    ) -> CodeTest:
        """How well the scores of edges tell the edges of a circuit from others, beside both controls.

        The authors' program judges its edges by the heads at their ends; here the truth is of edges.

        Args:
            truth: bool [edges], whether it is of the circuit, as exact path patching found it, in the order
                of `head_edges(nodes)`: those of `path_patching`.
            estimates: By name, effects of the same edges on the same pairs, of `edge_attribution`.
            seed: Of the draws of prompts, and of shuffled labels.

        Raises:
            ConfigError: truth, or an estimate, is of other edges, or all are alike.
        """
        edges = head_edges(self.nodes)
        place = {node: i for i, node in enumerate(self.nodes)}
        ends = np.array([[place[edge.sender], place[edge.receiver]] for edge in edges]).reshape(-1, 2)
        return self._tested(
            "edge", edges, lambda codes: edge_scores(codes)[ends[:, 0], ends[:, 1]], truth, estimates, seed
        )

    def _tested(
        self,
        kind: Literal["node", "edge"],
        items: Sequence[Node | HeadEdge],
        score: Callable[[np.ndarray], np.ndarray],
        truth: np.ndarray,
        estimates: Mapping[str, Effects],
        seed: int,
    ) -> CodeTest:
        truth = np.asarray(truth, dtype=bool)
        if truth.shape != (len(items),) or truth.all() or not truth.any():
            message = (
                f"truth must say of each of the {len(items)} {kind}s whether it is of the circuit, and be "
                f"both. Got {short(truth)}. Pass important(...) of what exact patching gave."
            )
            raise ConfigError(message)
        seeds, pairs = len(self.codes), self.codes.shape[2]
        for name, each in estimates.items():
            if tuple(each.nodes) != tuple(items) or each.values.shape[1] != pairs:
                message = (
                    f"An estimate must be of the same {kind}s, on the same pairs. Got {len(each.nodes)} on "
                    f"{each.values.shape[1]} for {name!r}, where there are {len(items)} on {pairs}. Measure "
                    "it with the same task and nodes='heads'."
                )
                raise ConfigError(message)
        rng = np.random.default_rng(seed)
        arms: dict[str, Callable[[int, np.ndarray], np.ndarray]] = {
            CODES: lambda s, at: score(self.codes[s][:, at]),
            SHUFFLED: lambda s, at: score(_shuffled(self.codes[s][:, at], rng)),
            UNTRAINED: lambda s, at: score(self.untrained[s][:, at]),
        }
        for name, each in estimates.items():
            arms[name] = lambda s, at, of=each: np.abs(of.values[:, at].mean(1)) / abs(of.gap.mean())
        whole = np.arange(pairs)
        scores = {
            arm: np.stack([of(s, whole) for s in range(1 if arm in estimates else seeds)])
            for arm, of in arms.items()
        }
        drawn = [(draw % seeds, rng.integers(0, pairs, pairs)) for draw in range(DRAWS)]
        return CodeTest(
            self.task,
            kind,
            truth,
            scores,
            {arm: np.stack([of(s, at) for s, at in drawn]) for arm, of in arms.items()},
        )


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
    first, second = np.triu_indices(n, 1)
    together = codes[:, :, first].astype(np.int64) * (int(codes.max()) + 1) + codes[:, :, second]
    # equal pairs of codes lie side by side, those of clean prompts before those of corrupt ones
    found = np.sort(np.concatenate([2 * together[0], 2 * together[1] + 1]).T, axis=1)
    last = np.ones(found.shape, dtype=bool)
    last[:, :-1] = found[:, 1:] // 2 != found[:, :-1] // 2
    out[first, second] = out[second, first] = (last & (found % 2 == 0)).sum(1)
    return out


def important(effects: Effects, share: float = 0.05) -> np.ndarray:
    """bool [nodes]: the ground truth of a circuit, by exact patching: which carry at least a share of the
    task's score, of either sign, with a 95 % interval that leaves out 0.

    Args:
        effects: Of `activation_patching`.
        share: The least share.
    """
    intervals = np.array([effects.interval(i) for i in range(len(effects.nodes))])
    return carries(effects.share, intervals[:, 0], intervals[:, 1], share)


def _shuffled(codes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The same prompts, of which any may be called clean."""
    flat = codes.reshape(-1, codes.shape[2])
    return rng.permutation(flat).reshape(codes.shape)


__all__ = [
    "HeadCodes",
    "edge_scores",
    "head_codes",
    "head_writes",
    "important",
    "node_scores",
]
