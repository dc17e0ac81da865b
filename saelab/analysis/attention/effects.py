"""Whether attribution is true of the model: edges and heads are taken out, and what happens is measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from saelab.analysis.attention.direct import asked_of, dfa_of, head_attribution
from saelab.analysis.attention.through import effects_at
from saelab.analysis.controls import Beside, Sums, beside, correlation
from saelab.analysis.results_attention import EdgeChanges, HeadEffects, HeadLosses
from saelab.arguments import a_subject, an_integer, checked, full_sae, maybe, one_of
from saelab.arguments import text as a_text
from saelab.harvesting.batches import batches, check_hooks
from saelab.types import CorpusError, HookError

if TYPE_CHECKING:
    from torch import Tensor

    from saelab.analysis.results_attention import DFA
    from saelab.sae import SAE
    from saelab.types import Inputs

AT_ONCE = 32
"""Copies of a text in one pass."""
HIGH, LOW = 0.5, 0.05
"""Shares from which a latent belongs to a head, and below which it does not."""


@checked(
    subject=a_subject, sae=full_sae, text=a_text, dest=maybe(an_integer()), n=an_integer(2), seed=an_integer()
)
def edge_changes(
    subject: Any, sae: SAE, text: str, latent: int, dest: int | None = None, *, n: int = 128, seed: int = 0
) -> EdgeChanges:
    """Take edges out of the model one by one, and compare what changes with what attribution says.

    Of `dfa`, which tells what is written to the latent directly, and of `edge_effects`, which follows the way
    through what comes after. An edge is a head's weight of one source at the destination. It is set to 0, and
    all that comes after runs free: later patterns, norms and MLPs change with it.

    Args:
        subject: As for `dfa`.
        sae: As for `dfa`.
        text: As for `dfa`.
        latent: As for `dfa`.
        dest: As for `dfa`.
        n: Edges that are tried, at most: half of them the largest, the others drawn from the rest.
        seed: Of the draw.

    Returns:
        The edges, largest |part| first, with Spearman's correlation of parts and changes over them, of their
        sizes, and of effects and changes. Intervals draw edges anew; the control is what the pattern alone
        would have told.

    Raises:
        SubjectError, HookError, ShapeError, CorpusError, RangeError: As `dfa`.
    """
    asked = asked_of(subject, sae, text, latent)
    found, _ = dfa_of(subject, sae, asked, dest)
    every = [edge for edge in found.top(found.parts.size) if edge.source <= found.dest]
    kept, others = every[: (n + 1) // 2], every[(n + 1) // 2 :]
    drawn = np.random.default_rng(seed).permutation(len(others))[: n // 2]
    edges = [*kept, *(others[i] for i in np.sort(drawn))]
    effects, patterns = effects_at(subject, sae, asked, found.dest)
    weights = np.array([float(patterns[e.layer][e.head, e.source]) for e in edges])
    changed = pre_without(subject, sae, asked.inputs, asked.latent, found.dest, edges)
    changes = found.pre - changed
    parts = np.array([edge.part for edge in edges])
    told = effects.of(edges)
    signed, sizes, foretold = (
        correlation(one, other, weights, "pattern alone", ranks=True, seed=seed)
        for one, other in ((parts, changes), (abs(parts), abs(changes)), (told, changes))
    )
    return EdgeChanges(found, tuple(edges), changes, weights, effects, signed, sizes, foretold)


@checked(subject=a_subject, sae=full_sae, text=a_text, dest=maybe(an_integer()), seed=an_integer())
def head_effects(
    subject: Any, sae: SAE, text: str, latent: int, dest: int | None = None, *, seed: int = 0
) -> HeadEffects:
    """Take whole heads out of the model one by one, and compare what changes with what `dfa` says of them.

    A head's pattern is set to 0 at every position, and all that comes after runs free: a pass a head.

    Args:
        subject: As for `dfa`.
        sae: As for `dfa`.
        text: As for `dfa`.
        latent: As for `dfa`.
        dest: As for `dfa`.
        seed: Of the draws that give the intervals.

    Returns:
        Of every head before the latent what its loss changes, with Spearman's correlation of parts and
        effects. Intervals draw heads anew; the control is what the pattern alone would have told: how much
        the head attends, from the position, to others than the first token.

    Raises:
        SubjectError, HookError, ShapeError, CorpusError, RangeError: As `dfa`.
    """
    asked = asked_of(subject, sae, text, latent)
    found, frozen = dfa_of(subject, sae, asked, dest)
    layers = layers_before(found.layers)
    if not layers:
        message = (
            f"Effects of heads need a head before the latent. Got an SAE on {asked.place.hook}. Pass one "
            "further on."
        )
        raise HookError(message)
    heads = len(frozen.patterns[layers[0]])
    every = [(layer, head, None) for layer in layers for head in range(heads)]
    without = pre_without(subject, sae, asked.inputs, asked.latent, found.dest, every)
    rows = np.array([frozen.patterns[i][:, found.dest].double().numpy() for i in layers])
    return compared_heads(found, layers, (found.pre - without).reshape(-1, heads), rows, seed)


def layers_before(writing: Sequence[int]) -> tuple[int, ...]:
    """The layers whose heads come before a latent.

    Args:
        writing: Those whose heads write directly what its SAE reads.
    """
    return tuple(range(max(writing, default=-1) + 1))


def compared_heads(
    found: DFA, layers: Sequence[int], effects: np.ndarray, patterns: np.ndarray, seed: int = 0
) -> HeadEffects:
    """Effects of heads beside their parts.

    Args:
        found: The parts.
        layers: Whose effects they are.
        effects: float64 [layers heads].
        patterns: [layers heads positions], from the position that was looked at.
        seed: Of the draws.
    """
    parts = np.zeros(effects.shape)
    parts[[list(layers).index(layer) for layer in found.layers]] = found.by_head
    weights = patterns[..., 1:].sum(-1)
    one, other, alone = (each.ravel() for each in (parts, effects, weights))
    signed = correlation(one, other, alone, "pattern alone", ranks=True, seed=seed)
    sizes = correlation(abs(one), abs(other), alone, "pattern alone", ranks=True, seed=seed)
    return HeadEffects(found, tuple(layers), effects, parts, weights, signed, sizes)


def pre_without(
    subject: Any, sae: SAE, inputs: Inputs, latent: int, dest: int, edges: Sequence[tuple[Any, ...]]
) -> np.ndarray:
    """float64 [edges]: a latent's pre-activation at a position without each edge, or without a head.

    Args:
        subject: A language model whose heads can be read.
        sae: Of the latent.
        inputs: Of one text.
        latent: Its number.
        dest: The position.
        edges: (layer, head, source, ...), of which the destination is `dest`; a source of None takes the
            whole head out, at every position.
    """
    ids, hook, found = inputs.data["input_ids"][0].tolist(), str(sae.hook), []
    for first in range(0, len(edges), AT_ONCE):
        some = edges[first : first + AT_ONCE]

        def without(layer: int, pattern: Tensor, some: Sequence[Any] = some) -> Tensor:
            for sample, edge in enumerate(some):
                if edge[0] == layer:
                    place = (sample, edge[1]) if edge[2] is None else (sample, edge[1], dest, edge[2])
                    pattern[place] = 0
            return pattern

        copies = subject.padded([ids] * len(some))
        run = subject.attend(copies, [hook], patterns=without, output=False).run
        with torch.no_grad():
            found.append(sae(run.acts[hook][:, dest].to(sae.W_enc)).pre[:, latent].double().cpu().numpy())
    return np.concatenate(found)


@checked(
    subject=a_subject, sae=full_sae, n_heads=maybe(an_integer(1)), ablation=one_of("mean", "zero"),
    max_rows=an_integer(1), seed=an_integer(),
)  # fmt: skip
def head_losses(
    subject: Any,
    sae: SAE,
    corpus: Iterable[Any],
    n_heads: int | None = None,
    *,
    ablation: str = "mean",
    max_rows: int = 4_000,
    seed: int = 0,
) -> HeadLosses:
    """Take heads out of what an SAE on `hook_z` reads, one by one, and see which latents lose their codes.

    Args:
        subject: The model that the SAE reads.
        sae: On attn.hook_z.
        corpus: Texts.
        n_heads: Heads of the layer; None: as the SAE's hook point or the subject says.
        ablation: What takes a head's place: its "mean" over these rows, or "zero".
        max_rows: Rows that are read, at most.
        seed: Of the draws that give the intervals, and of the control.

    Returns:
        Losses of each latent and head, and whether shares of weights foretell them: of the decoder, of the
        encoder, and corrected by the size of each head's z over these rows.

    Raises:
        HookError, ConfigError, ShapeError: As `head_attribution`.
        CorpusError: No latent fires, or the corpus is empty.
    """
    heads = n_heads or sae.hook.n_heads or subject.hook_point(sae.hook).n_heads
    head_attribution(sae, heads)
    documents = subject.corpus(corpus)
    hooks = check_hooks(subject, sae.reads, documents)
    found = batches(subject, documents, hooks, max_rows=max_rows)
    rows = [batch.acts[str(hooks[0])].float() for batch in found]
    x = torch.cat(rows) if rows else torch.zeros(0, sae.d_in)
    split = x.unflatten(1, (heads, -1))
    told = head_attribution(sae, heads, split.square().sum(-1).mean(0).sqrt().double().cpu().numpy())
    with torch.no_grad():
        whole = _summed(sae, x)
        left = []
        for head in range(heads):
            without = split.clone()
            without[:, head] = split[:, head].mean(0) if ablation == "mean" else 0
            left.append(_summed(sae, without.flatten(1), x))
    fired = whole > 0
    if not fired.any():
        message = f"Some latent must fire on the corpus. Got none over {len(x):,} rows. Pass other texts."
        raise CorpusError(message)
    losses = np.full((sae.d_sae, heads), np.nan)
    losses[fired] = 1 - np.stack(left, 1)[fired] / whole[fired, None]
    ratio, pairs = {}, {}
    for name in ("decoder", "encoder", "corrected"):
        ratio[name], pairs[name] = _ratio(getattr(told, name), losses, seed)
    return HeadLosses(losses, told, ratio, pairs, len(x), ablation)


def _summed(sae: SAE, x: Tensor, fired_on: Tensor | None = None) -> np.ndarray:
    """float64 [d_sae]: the summed |code| of each latent, over the rows on which it fires (of another x)."""
    total = np.zeros(sae.d_sae)
    for at in range(0, len(x), 1024):
        codes = sae.encode(x[at : at + 1024].to(sae.W_enc)).abs()
        if fired_on is not None:
            codes = codes * (sae.encode(fired_on[at : at + 1024].to(sae.W_enc)) != 0)
        total += codes.double().sum(0).cpu().numpy()
    return total


def _ratio(shares: np.ndarray, losses: np.ndarray, seed: int) -> tuple[Beside, tuple[int, int]]:
    known = np.flatnonzero(np.isfinite(losses).all(1) & np.isfinite(shares).all(1))
    own, lost = shares[known], losses[known]
    mixed = np.random.default_rng(seed).permuted(own, axis=1)
    sums = []
    for share in (own, mixed):
        each = Sums()
        high, low = share >= HIGH, share < LOW
        each.add(
            np.arange(len(known)), high=high.sum(1), low=low.sum(1), of_high=(lost * high).sum(1),
            of_low=(lost * low).sum(1),
        )  # fmt: skip
        sums.append(each)
    found = beside(sums[0], sums[1], _over, seed, "heads shuffled")
    return found, (int((own >= HIGH).sum()), int((own < LOW).sum()))


def _over(of: Mapping[str, Any]) -> Any:
    return (of["of_high"] / of["high"]) / (of["of_low"] / of["low"])


__all__ = ["compared_heads", "edge_changes", "head_effects", "head_losses", "layers_before", "pre_without"]
