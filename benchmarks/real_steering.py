"""One latent of a real model's SAE for both poles of an opinion: is it heard in what is written?

A part of `benchmarks/real_recipes.py`. Pushes are of one length for every SAE, so that recipes and controls
differ by their direction alone.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from probing import SENTENCES, sentences
from promises import real_texts
from promises.steered import perplexity
from real_sae import HOOK

from saelab.analysis.controls import Sums, beside_each, controls_of, random_directions, untrained
from saelab.analysis.probing.gathered import Gathered, averages, codes_of, gather
from saelab.analysis.sources import Ground
from saelab.analysis.steering.ranking import difference
from saelab.analysis.steering.separation import auroc
from saelab.interventions import AddDirection, mean_difference
from saelab.sae import SAE

CHOSEN, JUDGED = 100, 2000
"""Reviews of either kind by which latents are chosen, and by which what is written is judged; others."""
LENGTHS = (0.2,)
"""Of a push, in units of the median norm of rows."""
TOKENS, CLEAN, DRAWS = 12, 5, 3
STARTS = ("The {} was", "I thought the {} was", "For me the {} is", "In short, the {} feels")
THINGS = ("film", "movie", "acting", "story", "ending", "script")
UNTRAINED, MOST = "untrained SAE", 20_000


def steered(subject: Any, saes: Mapping[str, SAE], path: Path, seed: int) -> Iterator[dict[str, Any]]:
    """A line for each recipe and length: how far apart the two pushes are in what is written.

    Args:
        subject: SmolLM2.
        saes: By recipe.
        path: Where what was written is kept.
        seed: Of the SAEs; of the continuations and random directions.
    """
    reviews = list(sentences(first=SENTENCES, n=CHOSEN))
    good = np.array(["positive" in document.labels for document in reviews])
    read = gather(saes["topk"], Ground.of(subject, reviews, None, 16, seed), MOST)
    norms = read.x.norm(dim=1)
    norm = float(norms.median())
    plain = norms < 10 * norm  # first words are longer by far, and would be all that a mean is of
    of_good = torch.from_numpy(good[read.document])
    apart = mean_difference(read.x[of_good & plain], read.x[~of_good & plain])
    pushes = {"mean difference": (apart, -apart)}
    pushes |= {
        f"random {i}": (torch.from_numpy(each), -torch.from_numpy(each))
        for i, each in enumerate(random_directions(DRAWS, len(apart), seed))
    }
    held, told = {}, {}
    for name, sae in {**saes, UNTRAINED: untrained(saes["topk"], read.x, seed=seed)}.items():
        chosen = choose(sae, read, good, seed)
        held[name], told[name] = chosen.auroc, chosen.latent
        pushes[name] = (chosen.direction, -chosen.direction)
        if name == "topk":
            pushes["topk, two latents"] = (chosen.direction, chosen.against)
    written = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    clean = [text[:300] for text in real_texts.paragraphs(held_out=True)[:CLEAN]]
    prompts = [start.format(thing) for start in STARTS for thing in THINGS]
    for (name, both), length in itertools.product(pushes.items(), LENGTHS):
        for sign, direction in zip((1, -1), both, strict=True):
            key = f"{name}, {sign * length:+g}"
            if key not in written:
                push = AddDirection(HOOK, direction / direction.norm() * norm, length)
                some = subject.generate(prompts, push, max_new_tokens=TOKENS, temperature=1.0, seed=seed)
                said = [text[len(prompt) :] for prompt, text in zip(prompts, some, strict=True)]
                written[key] = {"texts": said, "perplexity": perplexity(subject, clean, push)}
                path.write_text(json.dumps(written, indent=1), encoding="utf-8")
    for name in saes:
        yield {
            "sae": f"{name}, {seed}", "score": "AUROC of the latent, held-out reviews", "value": held[name],
            UNTRAINED: held[UNTRAINED], "latent": told[name],
        }  # fmt: skip
    arms = [name for name in pushes if name != UNTRAINED and not name.startswith("random")]
    yield from judged(written, arms, perplexity(subject, clean, []), seed)


class Chosen(NamedTuple):
    """The latent that tells favourable reviews best."""

    latent: int
    direction: torch.Tensor
    """what it writes for a favourable one, [width]"""
    against: torch.Tensor
    """what the latent writes that tells the others best"""
    auroc: float
    """of the latent alone, on reviews that had no part in the choice"""


def choose(sae: SAE, read: Gathered, good: np.ndarray, seed: int) -> Chosen:
    """By the standardised difference of mean codes, on seven tenths of the reviews."""
    codes = (averages(read.document, len(good)) @ codes_of(sae, read.x)).toarray()
    fit = np.random.default_rng(seed).random(len(good)) < 0.7
    by = difference(codes[fit], good[fit])
    best = int(np.argmax(np.abs(by) if sae.sparsifier.signed else by))
    pole, decoder = float(np.sign(by[best])), sae.W_dec.detach()
    held = pole * codes[~fit, best]
    area = auroc(held[good[~fit]], held[~good[~fit]])
    return Chosen(best, pole * decoder[best], decoder[int(np.argmin(by))], area)


def judged(
    written: Mapping[str, Any], arms: Sequence[str], plain: float, seed: int
) -> Iterator[dict[str, Any]]:
    """The gap of each arm beside that of its controls, and what the pushes cost.

    Args:
        written: Arm and push -> continuations, perplexity.
        arms: Which.
        plain: The perplexity without a push.
        seed: Of the draws that give the intervals.
    """
    judge = classifier()
    controls = {"random directions": [f"random {i}" for i in range(DRAWS)]}
    controls |= {name: [name] for name in (UNTRAINED, "mean difference")}

    def gaps(names: Sequence[str], length: float) -> Sums:
        sums = Sums()
        for name in names:
            high, low = (judge(written[f"{name}, {sign * length:+g}"]["texts"]) for sign in (1, -1))
            sums.add(range(len(high)), gap=high - low, n=np.ones(len(high)))
        return sums

    def rise(names: Sequence[str], length: float) -> float:
        both = [written[f"{name}, {sign * length:+g}"]["perplexity"] for name in names for sign in (1, -1)]
        return float(np.mean(both)) / plain - 1

    unseen = list(sentences())
    right = (judge([d.text for d in unseen]) > 0.5) == ["positive" in d.labels for d in unseen]
    yield {"sae": f"the judge, {seed}", "score": "right of unseen reviews", "value": float(right.mean())}
    for length, name in itertools.product(LENGTHS, arms):
        sums = {what: gaps(own, length) for what, own in controls.items() if what != name}
        claim = beside_each(gaps([name], length), sums, lambda of: of["gap"] / of["n"], seed)
        yield {
            "sae": f"{name}, {seed}", "score": f"gap at {length:g}", "value": claim.value,
            "from": claim.interval[0], "to": claim.interval[1], "n": claim.n,
            "apart": "yes" if claim.apart else "no", **controls_of(claim),
        }  # fmt: skip
        yield {
            "sae": f"{name}, {seed}", "score": f"rise of WikiText's perplexity at {length:g}",
            "value": rise([name], length), **{what: rise(own, length) for what, own in controls.items()},
        }  # fmt: skip


@cache
def classifier() -> Callable[[Sequence[str]], np.ndarray]:
    """Texts -> the probability that each is favourable, by words and pairs of words of other reviews."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    reviews = list(sentences(first=SENTENCES + CHOSEN, n=JUDGED))
    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True), LogisticRegression(C=10)
    )
    model.fit([d.text for d in reviews], ["positive" in d.labels for d in reviews])
    return lambda texts: model.predict_proba(list(texts))[:, 1]
