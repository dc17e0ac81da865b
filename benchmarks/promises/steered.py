"""What the experiments of steering share: SAEs of the embedded model by seed, clean texts, controls."""

from __future__ import annotations

import functools
import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import saelab
from saelab.analysis.steering.arms import matched, together
from saelab.corpora import world
from saelab.sae import SAE
from saelab.subjects.hooks import normalise_edits

HOOK = "blocks.2.hook_resid_post"
LAST = "blocks.3.hook_resid_post"
"""Where what is written next can be pushed by one direction; at `HOOK` it hardly can."""
ROWS, STEPS, D_SAE, K = 100_000, 1500, 1024, 16


class SAEs(NamedTuple):
    """The embedded model with an SAE trained on it, and the largest activation of each latent."""

    subject: Any
    sae: SAE
    peaks: Tensor

    @staticmethod
    @functools.cache
    def of(seed: int, recipe: str, hook: str = HOOK, **options: Any) -> SAEs:
        """Trained on other texts and from other weights for each seed."""
        subject = saelab.load_subject(str(saelab.embedded.model_folder()))
        config = saelab.recipe(recipe, d_in=subject.width(hook), d_sae=D_SAE, k=K, hook=hook, **options)
        with tempfile.TemporaryDirectory() as folder:
            corpus = world(seed=7000 + seed, n_documents=4000)
            acts = saelab.harvest(
                subject, corpus, [hook], Path(folder) / "acts", max_rows=ROWS, progress=False
            )
            run = saelab.train(config, acts, steps=STEPS, batch_size=1024, seed=seed, progress=False)
            with torch.no_grad():
                seen = acts.acts(np.arange(20_000), hook)
                peaks = torch.stack([run.sae.encode(part).abs().amax(0) for part in seen.split(2000)]).amax(0)
        return SAEs(subject, run.sae, peaks)


def rows(subject: Any, texts: Sequence[str], hook: str = HOOK) -> Tensor:
    """Activations [n, width] of texts at a hook point, those that count."""
    inputs = subject.prepare(list(texts), truncate=True)
    acts = subject.run(inputs, read=hook, output=False).acts[hook]
    return acts[torch.from_numpy(inputs.counted)]


def holds(text: str, phrases: Sequence[str]) -> bool:
    """Whether any of them stands in a text, in whatever case."""
    return any(phrase.lower() in text.lower() for phrase in phrases)


def perplexity(subject: Any, texts: Sequence[str], edits: Any) -> float:
    """Of a token, with the edits running."""
    total, n = 0.0, 0
    for start in range(0, len(texts), 25):
        inputs = subject.prepare(list(texts[start : start + 25]), truncate=True)
        summed, counted = subject.loss(inputs, edits)
        total, n = total + float(summed.sum()), n + int(counted.sum())
    return float(np.exp(total / n))


def beside_random(hook: str, edits: Sequence[Any], seed: int) -> list[Any]:
    """The control of edits at one hook point: a random direction, of the norm of what they change, there."""
    own = together(normalise_edits(list(edits)))
    direction = torch.randn(edits[0].sae.d_out, generator=torch.Generator().manual_seed(seed))
    return matched(own, {hook: direction / direction.norm()})


def distinct_bigrams(texts: Sequence[str]) -> float:
    """Share of pairs of neighbouring words that are different ones."""
    words = [text.split() for text in texts]
    pairs = [pair for each in words for pair in itertools.pairwise(each)]
    return len(set(pairs)) / max(1, len(pairs))
