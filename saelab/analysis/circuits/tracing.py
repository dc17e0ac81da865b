"""The attribution graph of a text: what brought the model to its next token."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from saelab.analysis.attention.direct import read_text
from saelab.analysis.attention.frozen import Frozen, Place
from saelab.analysis.attention.recursive import standing
from saelab.analysis.circuits.graphs import AttributionGraph, ids_of
from saelab.analysis.circuits.influence import (
    completeness,
    cumulative_of,
    influence_of,
    replacement,
    shares_of,
    sums_of,
)
from saelab.analysis.circuits.layers import stands_of
from saelab.analysis.circuits.targets import Aim, aim_of
from saelab.analysis.circuits.walking import Stand, Walk
from saelab.analysis.controls import Alone, Sums, beside, untrained
from saelab.arguments import a_subject, an_integer, checked, flag, is_listed
from saelab.arguments import text as a_text
from saelab.capabilities import HasHeads, HasLogits, HasTokens, need
from saelab.config import integer, is_number
from saelab.sae import SAE
from saelab.types import ConfigError, RangeError, SubjectError, short

if TYPE_CHECKING:
    from torch import Tensor

CLOSE = 1e-2
"""How far a sum may be from what is computed, of its size or of 1: half precision alone makes as much."""
NONE = Alone(float("nan"), "not computed")
TOGETHER = 256
"""Latents that are followed before it is asked anew which matter most."""


class _Edges(NamedTuple):
    """Direct effects on the latents that were followed, and on the logits."""

    followed: Tensor
    """int64 [n]: their columns, in order"""
    rows: Tensor
    """float64 [n + logits, sources + 1]"""


@checked(
    subject=a_subject, text=a_text, max_nodes=an_integer(1), max_logits=an_integer(1), control=flag,
    seed=an_integer(),
)  # fmt: skip
def attribution_graph(
    subject: Any,
    saes: SAE | Iterable[SAE] | Mapping[str, SAE],
    text: str,
    target: str | int | Sequence[str | int] | None = None,
    minus: str | int | None = None,
    *,
    position: int | None = None,
    max_nodes: int = 2048,
    max_logits: int = 10,
    probability: float = 0.95,
    control: bool = True,
    seed: int = 0,
) -> AttributionGraph:
    """What brought a model to its next token, as a graph of latents, errors and embeddings.

    With attention patterns, the scales of norms, and which latents fire frozen, the model is linear between
    SAEs (Ameisen et al. 2025). The pre-activation of each latent that fires, and each logit less the mean
    logit, is then a sum over what comes before it, of which an edge is the part that one source brings:

    - a latent brings code times decoder row, an SAE's error what the SAE leaves out there;
    - a latent of a cross-layer transcoder brings what it writes to the MLP of its own layer and to those of
      all later ones, and has the number that it has among the latents of all layers;
    - an SAE on the stream stands for all that came before it; one on attn.hook_z or hook_attn_out for a
      layer's attention, a transcoder (or an SAE on what an MLP gives, whose latents' own way ends at the MLP)
      for an MLP;
    - attention that no SAE stands for is passed through, all its heads and sources summed;
    - an MLP that nothing stands for is a node of its own, of kind "error": no latent explains it, and
      nothing leads to it;
    - what the first block reads at each position is an embedding.

    Args:
        subject: A language model whose heads can be read.
        saes: SAEs and transcoders of it, in any layers; one for each place at most.
        text: Any.
        target: Token or tokens, by text or id, whose logits are explained; None: the likeliest after the
            text, as many as reach `probability` together.
        minus: A token: the logit of the one target less this one's is explained.
        position: Whose next token is explained, BOS counted; None: the last. What comes behind it has no part
            in it, and is cut off.
        max_nodes: Latents that are followed, those of the most influence first. What others bring is counted
            in `rest`, and as error in the scores.
        max_logits: Logits, at most, where no target is given.
        probability: See `target`.
        control: Whether the scores stand beside those of untrained SAEs, which takes as long again.
        seed: Of the untrained SAEs and of the intervals, which are over positions of the text.

    Raises:
        SubjectError: The subject has no attention or logits that can be read, or something else than norms on
            the way.
        HookError: An SAE is on a hook point where none can stand, or that this model does not have.
        ShapeError: An SAE is of another width.
        ConfigError: There is no SAE, or two stand for the same, or a target is missing or no token.
        CorpusError: The text has fewer than two tokens or too many, or a target is not one token.
        RangeError: The id of a target is none of the vocabulary, or the position none of the text behind the
            first.
    """
    for capability in (HasTokens, HasLogits, HasHeads):
        need(subject, capability, "An attribution graph")
    if not (is_number(probability) and 0 < probability <= 1):
        message = f"probability must be a share above 0. Got {short(probability)}. Pass e.g. 0.95."
        raise ConfigError(message)
    found = _saes(subject, saes)
    inputs, words = read_text(subject, text)
    ids = inputs.data["input_ids"][0].tolist()
    if position is not None:
        remedy = "Pass a position of the text, BOS counted."
        end = 1 + integer("position", position, 1, len(ids) - 1, error=RangeError, remedy=remedy)
        ids, words = ids[:end], words[:end]
        inputs, text = subject.prepare_tokens([ids]), "".join(words[ids[0] == subject.bos_id :])
    top = Place(subject.n_layers - 1, "hook_resid_post")
    hooks = dict.fromkeys(str(hook) for sae in found.values() for hook in (*sae.reads, *sae.writes))
    frozen = Frozen(subject, inputs, top, list(hooks), deep=True)
    aim = aim_of(subject, inputs, frozen, target, minus, max_logits, float(probability))
    walk = _walk(frozen, found)
    edges = _followed(walk, aim, max_nodes)
    graph, sums = _graph(walk, aim, edges, text, words, ids)
    _refuse_unsummed(graph)
    other = None
    if control:
        bare = {sae: untrained(sae, *_ends(frozen, sae), seed=seed) for sae in dict.fromkeys(found.values())}
        blank = _walk(frozen, {at: bare[sae] for at, sae in found.items()})
        other = _graph(blank, aim, _followed(blank, aim, max_nodes), text, words, ids)[1]
    return replace(graph, **_scores(sums, other, seed))


def _refuse_unsummed(graph: AttributionGraph) -> None:
    """Raises SubjectError."""
    off = np.nan_to_num(np.abs(graph.off()))
    worst = int(np.argmax(off))
    if off[worst] > CLOSE * max(1.0, abs(graph.pre[worst])):
        message = (
            "What goes into a node must sum to what is computed there. Got a sum that is off by "
            f"{off[worst]:.2g} of {graph.pre[worst]:.2g}, of {graph.told(worst)}. Leave that SAE out, or use "
            "another model: something between is not linear."
        )
        raise SubjectError(message)


def _scores(sums: Sums, other: Sums | None, seed: int) -> dict[str, Any]:
    """Both scores, beside those of untrained SAEs where there are any."""
    found: dict[str, Any] = {}
    for name, score in (("replacement", replacement), ("completeness", completeness)):
        if other is None:
            total = {each: np.float64(sums.total(each)) for each in sums.names()}
            with np.errstate(divide="ignore", invalid="ignore"):
                found[name] = Alone(float(score(total)), "not asked for")
        else:
            found[name] = beside(sums, other, score, seed, "untrained SAEs")
    return found


def _saes(subject: Any, saes: Any) -> dict[tuple[str, int], SAE]:
    """By what each stands for. Raises ConfigError."""
    given = [saes] if isinstance(saes, SAE) else saes.values() if isinstance(saes, Mapping) else saes
    if not is_listed(given) or not (given := list(given)):
        message = (
            f"saes must be SAEs and transcoders of the model, one at least. Got {short(saes)}. Pass e.g. "
            "lab.saes."
        )
        raise ConfigError(message)
    return standing(subject, given, stream=True)


def _walk(frozen: Frozen, saes: Mapping[tuple[str, int], SAE]) -> Walk:
    stands: dict[tuple[str, int], Stand] = {}
    for sae in dict.fromkeys(saes.values()):
        places, (x, y) = [at for at, other in saes.items() if other is sae], _ends(frozen, sae)
        y = x if y is None else y
        several = stands_of(sae, x, y) if sae.config.hooks_out else [Stand(sae, x, y)]
        stands |= zip(places, several, strict=True)
    return Walk(frozen, stands)


def _ends(frozen: Frozen, sae: SAE) -> tuple[Tensor, Tensor | None]:
    """float64 [positions d_in], what an SAE reads, and of a transcoder what it should give."""
    acts = [torch.cat([frozen.acts[str(h)].double() for h in hooks], 1) for hooks in (sae.reads, sae.writes)]
    return acts[0], None if sae.config.d_out is None else acts[1]


def _followed(walk: Walk, aim: Aim, most: int) -> _Edges:
    """Rows of the logits, and of the latents of the most influence: of all where they are few enough, else
    again and again those that have most by what is known."""
    places = walk.places()
    known = [walk.rows([aim.target])]
    weights = np.array([node.value for node in aim.nodes])
    followed = torch.zeros(0, dtype=torch.int64)
    if len(places) <= most:
        followed = torch.arange(len(places))
        known.append(walk.of(followed))
    while len(followed) < min(most, len(places)):
        rows = torch.cat(known)[:, : walk.columns.n].numpy()
        influence = _partial(rows, len(aim.nodes), followed.numpy(), weights)[: len(places)]
        influence[followed.numpy()] = -1
        order = np.argsort(-influence, kind="stable")[: min(TOGETHER, most - len(followed))]
        order = np.sort(order[influence[order] > 0])
        if not len(order):
            break
        known.append(walk.of(torch.from_numpy(order)))
        followed = torch.cat([followed, torch.from_numpy(order)])
    rows = torch.cat(known)
    order = followed.argsort()
    logits, latents = rows[: len(aim.nodes)], rows[len(aim.nodes) :]
    return _Edges(followed[order], torch.cat([latents[order], logits]))


def _partial(rows: np.ndarray, n_logits: int, followed: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """float64 [sources]: influence as far as rows are known.

    Args:
        rows: [logits + followed, sources].
        n_logits: Of these the first.
        followed: Columns of the others.
        weights: Of the logits.
    """
    shares = shares_of(rows)
    now = weights @ shares[:n_logits]
    found = now.copy()
    while (led := now[followed]).any():
        now = led @ shares[n_logits:]
        found += now
    return found


def _graph(
    walk: Walk, aim: Aim, edges: _Edges, text: str, tokens: tuple[str, ...], ids: Sequence[int]
) -> tuple[AttributionGraph, Sums]:
    """The graph, without scores, and the sums that these are made of."""
    columns, n, n_latents = walk.columns, len(tokens), len(edges.followed)
    fixed = torch.arange(columns.n_latents, columns.n)
    taken = torch.cat([edges.followed, fixed])
    nodes = [*walk.latent_nodes(edges.followed), *walk.source_nodes(tokens, ids), *aim.nodes]
    lines = torch.cat([torch.arange(n_latents), torch.arange(len(nodes) - len(aim.nodes), len(nodes))])
    adjacency = np.zeros((len(nodes), len(nodes)), dtype=np.float32)
    adjacency[lines[:, None], torch.arange(len(taken))] = edges.rows[:, taken].float().numpy()
    apart = torch.ones(columns.n_latents, dtype=torch.bool)
    apart[edges.followed] = False
    left = edges.rows[:, : columns.n_latents][:, apart]
    at = walk.positions()[apart]
    bias, rest = np.zeros((2, len(nodes)), np.float32)
    pre = np.full(len(nodes), np.nan, np.float32)
    bias[lines], rest[lines] = edges.rows[:, -1].float().numpy(), left.sum(1).float().numpy()
    pre[lines] = np.concatenate([walk.pre_of(edges.followed).numpy(), aim.pre])
    # what was left out is one more node at each position, where ways end as at an error
    size = torch.zeros(len(lines), n, dtype=torch.float64).index_add_(1, at, left.abs())
    whole = np.zeros((len(nodes) + n, len(nodes) + n))
    whole[: len(nodes), : len(nodes)] = adjacency
    whole[lines, len(nodes) :] = size.numpy()
    graph = AttributionGraph(
        text, tokens, tuple(nodes), ids_of(nodes), adjacency, bias, rest, pre, cumulative=pre,
        replacement=NONE, completeness=NONE, fired=columns.n_latents,
    )  # fmt: skip
    sources = ~graph.of_kind("logit")
    cumulative = np.where(sources, cumulative_of(graph.influence()), np.nan)
    ends = np.ones(n, dtype=bool)
    weights = np.concatenate([graph.weights(), np.zeros(n)])
    sums = sums_of(
        whole, weights, np.concatenate([graph.of_kind("embedding"), ~ends]),
        np.concatenate([graph.of_kind("error"), ends]),
        np.array([*(node.position for node in nodes), *range(n)]),
    )  # fmt: skip
    share = influence_of(shares_of(whole), weights)[len(nodes) :].sum()
    return replace(graph, cumulative=cumulative, left_out=float(share)), sums


__all__ = ["attribution_graph"]
