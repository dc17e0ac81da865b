"""Which logits an attribution graph explains, and what each reads of the last row of the stream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from saelab.analysis.attention.frozen import Frozen, Place
from saelab.analysis.circuits.graphs import GraphNode
from saelab.analysis.circuits.walking import Target
from saelab.arguments import is_listed
from saelab.config import is_integer
from saelab.types import ConfigError, CorpusError, Inputs, RangeError, short


class Aim(NamedTuple):
    """What is explained."""

    nodes: tuple[GraphNode, ...]
    target: Target
    """readings of the stream after the last block: logits less the mean logit"""
    pre: tuple[float, ...]
    """what the model's own head gives of each, less the mean"""


def aim_of(
    subject: Any, inputs: Inputs, frozen: Frozen, target: Any, minus: Any, most: int, probability: float
) -> Aim:
    """See `attribution_graph`.

    Args:
        subject: The model.
        inputs: Of the text.
        frozen: The pass.
        target: A token, tokens, or None.
        minus: A token, or None.
        most: Logits, where no target is given.
        probability: That they reach together.

    Raises:
        ConfigError: A target is missing or is no token.
        CorpusError: A target is not one token.
        RangeError: The id of a target is none of the vocabulary.
    """
    chosen = _chosen(subject, target)
    other = None if minus is None else _id(subject, "minus", minus)
    if other is not None and (chosen is None or len(chosen) != 1 or chosen[0] == other):
        message = (
            "A difference of logits must be that of one target and another token, minus. Got "
            f"target={short(target)}, minus={short(minus)}. Pass e.g. target=' Anna', minus=' Tom'."
        )
        raise ConfigError(message)
    raw, logits = _logits(subject, inputs)
    likely = logits.softmax(-1)
    if chosen is None:
        p, order = likely.sort(descending=True, stable=True)
        enough = int((p.cumsum(0) < probability).sum()) + 1
        chosen = order[: min(enough, most)].tolist()
    place, position = Place(subject.n_layers - 1, "hook_resid_post"), frozen.n - 1
    end = subject.frozen_end(frozen.row(place.hook, position))
    w, constant = end.readings([*chosen, *([] if other is None else [other])])
    pre = (raw - raw.mean())[[*chosen, *([] if other is None else [other])]]
    names = subject.token_strings(chosen)
    if other is not None:
        w, constant, pre = w[:1] - w[1:], constant[:1] - constant[1:], pre[:1] - pre[1:]
        label = f"{names[0]!r} - {subject.token_strings([other])[0]!r}"
        nodes = [GraphNode("logit", "logits", subject.n_layers, -1, position, 1.0, label)]
    else:
        nodes = [
            GraphNode("logit", "logits", subject.n_layers, token, position, float(likely[token]), name)
            for token, name in zip(chosen, names, strict=True)
        ]
    return Aim(tuple(nodes), Target(place, position, w, constant), tuple(pre.tolist()))


def _logits(subject: Any, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
    """float64 [vocabulary] at the last position: what the head gives, with what scales it; and the logits,
    which a soft cap may bend."""
    seen: list[torch.Tensor] = []
    head: Any = subject.model.get_output_embeddings()
    with head.register_forward_hook(lambda *each: seen.append(each[2])):
        output = subject.run(inputs).output
    scale = subject.frozen_end(torch.ones(subject.d_model)).scale
    return seen[-1].reshape(-1, seen[-1].shape[-1])[-1].double().cpu() * scale, output[0, -1].double().cpu()


def _chosen(subject: Any, target: Any) -> list[int] | None:
    """Ids of the targets, each once; None where none is given."""
    if target is None:
        return None
    given = list(target) if is_listed(target) else [target]
    if not given:
        message = "target must be a token or several. Got none. Pass e.g. ' Anna', or None for the likeliest."
        raise ConfigError(message)
    return list(dict.fromkeys(_id(subject, "target", each) for each in given))


def _id(subject: Any, name: str, token: Any) -> int:
    """The id of a token."""
    if is_integer(token):
        if not 0 <= token < subject.d_vocab:
            message = (
                f"{name} must be an id below {subject.d_vocab:,}. Got {token}. Pass one of the vocabulary."
            )
            raise RangeError(message)
        return int(token)
    if not isinstance(token, str):
        message = f"{name} must be a token, by its text or id. Got {short(token)}. Pass e.g. ' Anna'."
        raise ConfigError(message)
    ids = subject.to_tokens(token, bos=False)
    if len(ids) != 1:
        parts: Sequence[str] = subject.token_strings(ids)
        message = (
            f"{name} must be one token of the vocabulary. Got {token!r}, which is {len(ids)}: "
            f"{short(parts)}. Pass one of them; a leading space belongs to a token where the tokenizer has "
            "it so."
        )
        raise CorpusError(message)
    return ids[0]


__all__ = ["Aim", "aim_of"]
