"""What the embedded model can do, on names, templates and years that its training never saw.

Each score is in [0, 1] or a ratio, and is measured for the model and, as a control, for an untrained one.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from saelab.corpora import world_families as families
from saelab.corpora import world_lexicon as lexicon
from saelab.embedded.data import repeated_tokens

TARGETS = {"ioi_accuracy": 0.95, "greater_than": 0.7, "docstring_accuracy": 0.8, "repeat_loss_ratio": 0.35}


def ioi_accuracy(model: Any, tokenizer: Any, n: int = 400, seed: int = 0) -> float:
    """Share of prompts where the receiver's full name is likelier than the giver's (Wang et al.
    2022, section 3)."""
    rng = random.Random(f"ioi-{seed}")
    texts, right, wrong = [], [], []
    for _ in range(n):
        writer = families.Writer("heldout", rng)
        a, b = writer.two_names()
        giver, receiver = rng.choice([(a, b), (b, a)])
        template = writer.template(families.IOI_OPENINGS) + writer.template(families.IOI_ACTIONS)
        slots = writer.common() | {"a": (a, ""), "b": (b, ""), "s": (giver, ""), "io": ("\0", "")}
        slots["object"] = (rng.choice(lexicon.OBJECTS), "")
        writer.fill(template, slots)
        texts.append("".join(writer.pieces).split(" \0")[0])
        right.append(" " + receiver)
        wrong.append(" " + giver)
    gain = continuation_logprob(model, tokenizer, texts, right) - continuation_logprob(
        model, tokenizer, texts, wrong
    )
    return float((gain > 0).double().mean())


def greater_than(model: Any, tokenizer: Any, n: int = 300, seed: int = 0) -> float:
    """Mean of p(later year) - p(same or earlier), summed over pairs of digits (Hanna et al. 2023,
    section 2)."""
    rng = random.Random(f"years-{seed}")
    texts, starts = [], []
    for _ in range(n):
        writer = families.Writer("heldout", rng)
        century, start, _ = families.year_span(rng, "heldout")
        slots = writer.common() | {"c": (str(century), ""), "y": (f"{start:02}", ""), "z": ("\0", "")}
        slots["name"] = (writer.name(), "")
        writer.fill(writer.template(families.YEAR_SUBJECTS) + writer.template(families.YEAR_RANGES), slots)
        texts.append("".join(writer.pieces).split("\0")[0])
        starts.append(start)
    pairs = torch.tensor(tokenizer.convert_tokens_to_ids([f"{y:02}" for y in range(100)]))
    p = torch.stack([last.softmax(-1)[pairs] for last in last_logits(model, tokenizer, texts)])
    later = torch.arange(100) > torch.tensor(starts)[:, None]
    return float((p * later).sum(1).mean() - (p * ~later).sum(1).mean())


def docstring_accuracy(model: Any, tokenizer: Any, n: int = 300, seed: int = 0) -> float:
    """Share of prompts where the next argument in order is likelier than every other argument of the
    signature.

    (Heimersheim & Janiak 2023; there the names are single tokens, here whole names are compared.)
    """
    rng = random.Random(f"docstring-{seed}")
    texts, candidates, answers = [], [], []
    while len(texts) < n:
        writer = families.Writer("heldout", rng)
        families.docstring(writer)
        text = "".join(writer.pieces)
        named = [s for s in writer.spans if s.label == "documented argument"]
        asked = rng.randrange(1, len(named))
        texts.append(text[: named[asked].start])
        candidates.append([text[s.start : s.end] for s in named])
        answers.append(asked)
    flat = [(t, c) for t, names in zip(texts, candidates, strict=True) for c in names]
    logprob = continuation_logprob(model, tokenizer, [t for t, _ in flat], [c for _, c in flat])
    hits, at = 0, 0
    for names, answer in zip(candidates, answers, strict=True):
        hits += int(logprob[at : at + len(names)].argmax()) == answer
        at += len(names)
    return hits / n


def repeat_loss_ratio(model: Any, tokenizer: Any, n: int = 64, length: int = 50, seed: int = 0) -> float:
    """Mean loss on the second copy of random tokens over that on the first (Olsson et al. 2022,
    induction)."""
    rng = random.Random(f"repeat-{seed}")
    rows = [[tokenizer.bos_token_id, *repeated_tokens(rng, length, len(tokenizer))] for _ in range(n)]
    ids = torch.tensor(rows)
    with torch.no_grad():
        logits = model(ids).logits[:, :-1].float()
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    first, second = loss.view(n, 2, length).mean((0, 2))
    return float(second / first)


def held_out_loss(model: Any, tokenizer: Any, texts: Sequence[str]) -> float:
    """Next-token cross-entropy in nats, mean over all tokens of the texts, each cut at the context."""
    total, count = 0.0, 0
    for batch, lengths in _padded(tokenizer, texts, model.config.n_positions):
        with torch.no_grad():
            logits = model(batch).logits[:, :-1].float()
        kept = torch.arange(1, batch.shape[1]) < lengths[:, None]
        total += float(torch.nn.functional.cross_entropy(logits[kept], batch[:, 1:][kept], reduction="sum"))
        count += int(kept.sum())
    return total / count


def all_scores(model: Any, tokenizer: Any, seeds: Sequence[int] = (0,)) -> dict[str, float]:
    """Every score that has a target, each the mean over the seeds: 300 prompts leave an accuracy of 0.8
    uncertain by 0.023.
    """
    model.eval()
    measures = (ioi_accuracy, greater_than, docstring_accuracy, repeat_loss_ratio)
    return {
        measure.__name__: sum(measure(model, tokenizer, seed=seed) for seed in seeds) / len(seeds)
        for measure in measures
    }


def reached(scores: dict[str, float]) -> bool:
    """Whether every score reaches its target."""
    return all(v <= TARGETS[k] if k == "repeat_loss_ratio" else v >= TARGETS[k] for k, v in scores.items())


def last_logits(model: Any, tokenizer: Any, texts: Sequence[str]) -> list[Tensor]:
    """[d_vocab] of the last token of each text."""
    out = []
    for ids, lengths in _padded(tokenizer, texts):
        with torch.no_grad():
            logits = model(ids).logits
        out += [row[length - 1].float() for row, length in zip(logits, lengths, strict=True)]
    return out


def continuation_logprob(model: Any, tokenizer: Any, texts: Sequence[str], ends: Sequence[str]) -> Tensor:
    """[n]: log p(end | text), summed over the end's tokens, which are tokenized apart from the text."""
    prefixes = [tokenizer(t).input_ids for t in texts]
    tails = [tokenizer(e, add_special_tokens=False).input_ids for e in ends]
    rows = [p + t for p, t in zip(prefixes, tails, strict=True)]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))  # rows of a batch need little padding
    out = torch.empty(len(rows))
    for ids, _, at in _batches([rows[i] for i in order]):
        with torch.no_grad():
            logits = model(ids).logits
        for row, i in zip(logits, (order[j] for j in at), strict=True):
            start, tail = len(prefixes[i]), torch.tensor(tails[i])
            logp = row[start - 1 : start - 1 + len(tail)].float().log_softmax(-1)
            out[i] = logp.gather(1, tail[:, None]).sum()
    return out


def _padded(tokenizer: Any, texts: Sequence[str], n_ctx: int | None = None):
    for ids, lengths, _ in _batches([tokenizer(t).input_ids[:n_ctx] for t in texts]):
        yield ids, lengths


def _batches(rows: list[list[int]], size: int = 64):
    """(ids padded on the right, lengths, numbers of the rows); causal, so the padding needs no mask."""
    for first in range(0, len(rows), size):
        some = rows[first : first + size]
        lengths = torch.tensor([len(r) for r in some])
        ids = torch.zeros(len(some), int(lengths.max()), dtype=torch.long)
        for i, r in enumerate(some):
            ids[i, : len(r)] = torch.tensor(r)
        yield ids, lengths, range(first, first + len(some))
