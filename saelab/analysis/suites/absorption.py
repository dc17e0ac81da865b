"""Whether latents of single words swallow what a latent of their first letter should say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from saelab.analysis.controls import Beside, untrained
from saelab.analysis.probing.absorbed import absorption, f1, main_latents
from saelab.analysis.probing.claims import RANDOM, UNTRAINED, Shares, claim, halves, share
from saelab.analysis.probing.gathered import codes_of, directions_of, gather, weighed
from saelab.analysis.probing.labelled import labels_of_rows
from saelab.analysis.probing.linear import probe_of
from saelab.analysis.probing.removing import one_place
from saelab.analysis.probing.words import read_words, words_of
from saelab.analysis.suites.registry import Found, Suite, register
from saelab.capabilities import HasTokens, lacking
from saelab.config import integer, is_number
from saelab.harvesting.batches import check_hooks
from saelab.types import ConfigError, short

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from saelab.analysis.sources import Ground
    from saelab.sae import SAE

LEAST = 5
"""Words of a letter, fitted and judged, without which it is left out."""
DRAWS = 4
"""Of random latents, for each letter."""
A_LABEL, OTHERS = 200, 2_000
"""Rows that bear a label, and rows that bear none, at most."""


@register("absorption")
@dataclass(frozen=True)
class Absorption(Suite):
    """First letters of words that are single tokens: into how many latents is each split, and how often do
    latents of words bear a letter in place of its own latents?

    A letter's latents are those that an L1 probe on codes ranks first, as many as raise its F1 (Chanin et al.
    2024, arXiv 2409.14507; thresholds as in SAEBench). On held-out words of which a probe on activations
    knows the letter, `letters_fraction` is how much of the letter other latents bring instead of them, and
    `letters_full` the share of words on which they are silent and one other latent bears it; means over
    letters, lower is better. `letters_split` is the number of latents of a letter: that of SAEs of several
    widths says whether wider ones split it. Beside them stand an untrained SAE, and latents drawn at random
    in the place of the letter's.

    The words are those of the tokenizer, whatever the corpus; letters that a probe on activations doesn't
    find are left out, since nothing can be said of them. Where texts are annotated, `labels_fraction`,
    `labels_full` and `labels_split` are the same of the labels of their tokens: is "place" silent where a
    latent of " market" fires?

    Attributes:
        examples: Words that are asked for and answered in the prompt before each; SAEBench has 10. 0 reads
            the word alone, for models that learn nothing from examples.
        words: How many are read, at most.
        held_out: Share of the words, or documents, that judges.
        bar: F1 of the probe on activations, on held-out words, below which a letter is left out.
        rows: Rows that are read for annotated labels, at most.

    Raises:
        ConfigError: No letter and no label can be judged, or the SAE is a transcoder or crosscoder.
    """

    examples: int = 10
    words: int = 5_000
    held_out: float = 0.3
    bar: float = 0.6
    rows: int = 30_000

    def __post_init__(self) -> None:
        object.__setattr__(self, "examples", integer("examples", self.examples, 0))
        for name in ("words", "rows"):
            object.__setattr__(self, name, integer(name, getattr(self, name), 1))
        share("held_out", self.held_out)
        if not is_number(self.bar) or not 0 <= self.bar <= 1:
            message = f"bar must be an F1 from 0 to 1. Got {short(self.bar)}. Pass bar=0.6."
            raise ConfigError(message)

    def run(self, sae: SAE, ground: Ground) -> Found:
        """Measure one SAE.

        Args:
            sae: The SAE.
            ground: What it is measured on.

        Raises:
            ConfigError: No letter and no label can be judged, or the SAE is a transcoder or crosscoder.
        """
        one_place("Absorption", sae)
        claims: dict[str, Beside] = {}
        left_out: dict[str, str] = {}
        tables: dict[str, pd.DataFrame] = {}
        for kind, cases in (("letters", self._letters(sae, ground)), ("labels", self._labels(sae, ground))):
            if isinstance(cases, str):
                left_out[kind] = cases
                continue
            arms = {"": sae, UNTRAINED: untrained(sae, cases.x, seed=ground.seed)}
            found, why, table = judged(arms, cases, self.bar, ground.seed)
            claims |= {f"{kind}_{name}": each for name, each in found.items()}
            if found:
                left_out |= {f"{kind}: {name}": each for name, each in why.items()}
                tables[kind] = table
            else:
                near = max(why.items(), default=("none", "there is none"))
                left_out[kind] = f"none of {len(why)} is known to the model; of {near[0]!r}: {near[1]}"
        if not claims:
            message = (
                "Absorption needs first letters, or labels of tokens, that a probe on activations finds. Got "
                f"letters: {left_out['letters']}; labels: {left_out['labels']}. Lower bar, or take another "
                "layer."
            )
            raise ConfigError(message)
        return Found(claims, left_out, tables)

    def _letters(self, sae: SAE, ground: Ground) -> Cases | str:
        subject: Any = ground.subject
        if subject is None or lacking(subject, HasTokens):
            return "needs a subject with tokens"
        words = words_of(subject, self.words, ground.seed)
        hooks = check_hooks(subject, sae.reads, ground.corpus)
        x = ground.kept.value(
            ("words", tuple(map(str, hooks)), self.words, self.examples),
            lambda: read_words(subject, hooks, words, self.examples, ground.batch_size, ground.seed),
            lambda rows: rows.numel() * rows.element_size(),
        )
        rng = np.random.default_rng(ground.seed)
        judge = np.zeros(len(x), dtype=bool)
        for letter in set(words.letters):  # of each the same share
            own = np.flatnonzero(words.letters == letter)
            judge[rng.permutation(own)[: round(len(own) * self.held_out)]] = True
        return Cases(x, words.letters, judge, np.arange(len(x)))

    def _labels(self, sae: SAE, ground: Ground) -> Cases | str:
        gathered = gather(sae, ground, self.rows)
        labels = labels_of_rows(gathered, ground.subject)
        if labels is None:
            return "needs texts whose spans are annotated"
        rng = np.random.default_rng(ground.seed)
        kinds = sorted(set(labels))
        chosen = np.sort(
            np.concatenate(
                [
                    rng.permutation(np.flatnonzero(labels == kind))[: A_LABEL if kind else OTHERS]
                    for kind in kinds
                ]
            )
        )
        judge = halves(gathered.n_documents, self.held_out, ground.seed)
        document = gathered.document[chosen]
        return Cases(gathered.x[chosen], labels[chosen], judge[document], document)


class Cases(NamedTuple):
    """Words with their letters, or rows with their labels."""

    x: Tensor
    """float32 [n d_in]"""
    labels: np.ndarray
    """[n] of str, "" for none"""
    judge: np.ndarray
    """bool [n]"""
    unit: np.ndarray
    """int64 [n]: what is drawn anew for the intervals, the word or its document"""


def judged(
    arms: Mapping[str, SAE], cases: Cases, bar: float, seed: int
) -> tuple[dict[str, Beside], dict[str, str], pd.DataFrame]:
    """The claims of `Absorption`, why letters are left out, and a line of each.

    Args:
        arms: "" -> the SAE, "untrained SAE" -> its control.
        cases: What is judged on.
        bar: F1 of the probe on activations below which a letter is left out.
        seed: Of all draws.
    """
    import pandas as pd

    acts = cases.x.double().numpy()
    rng = np.random.default_rng(seed)
    known, left_out = _probes(acts, cases, bar)
    if not known:
        return {}, left_out, pd.DataFrame()
    names = ("", UNTRAINED, RANDOM)
    shares = {(kind, name): Shares() for kind in ("fraction", "full", "split") for name in names}
    lines: dict[str, dict[str, Any]] = {
        label: {"label": label, "F1 of the probe": probed.f1} for label, probed in known.items()
    }
    fit = np.flatnonzero(~cases.judge)
    for name, sae in arms.items():
        codes = codes_of(sae, cases.x)
        raw, directions = weighed(sae, codes, cases.x), directions_of(sae)
        whole = acts - _nothing(sae, cases.x)
        length = np.linalg.norm(directions, axis=1)
        alive = np.flatnonzero(np.diff(codes.tocsc().indptr))
        for at, (label, probed) in enumerate(known.items()):
            cosine = directions @ probed.direction / np.where(length > 0, length, 1)
            main = main_latents(codes[fit], cases.labels[fit] == label, seed)
            brought = raw[probed.rows].toarray().astype(np.float64)
            there = whole[probed.rows] @ probed.direction
            chosen = {name: [main]}
            if not name:
                chosen[RANDOM] = [rng.permutation(alive)[: len(main)] for _ in range(DRAWS)]
                lines[label] |= {"latents": " ".join(map(str, main)), "judged": len(probed.rows)}
            for arm, draws in chosen.items():
                found = [absorption(brought, each, cosine, length, there) for each in draws]
                said = f", {arm}" if arm else ""
                for kind in ("fraction", "full"):
                    value = np.mean([getattr(each, kind) for each in found], axis=0)
                    shares[kind, arm].add(label, cases.unit[probed.rows], value)
                    lines[label][f"{kind}{said}"] = value.mean()
            shares["split", name].add("all", np.array([at]), np.array([len(main)]))
            lines[label][f"split{name and f', {name}'}"] = len(main)
    n = len(np.unique(np.concatenate([cases.unit[probed.rows] for probed in known.values()])))
    claims = {
        kind: claim(shares[kind, ""], {each: shares[kind, each] for each in names[1:]}, seed, n)
        for kind in ("fraction", "full")
    }
    claims["split"] = claim(shares["split", ""], {UNTRAINED: shares["split", UNTRAINED]}, seed, len(known))
    return claims, left_out, pd.DataFrame(lines.values())


class _Probed(NamedTuple):
    """A letter that the model knows."""

    direction: np.ndarray
    f1: float
    """of the probe, on what judges"""
    rows: np.ndarray
    """int64: what judges and bears the letter, and the probe knows it"""


def _probes(acts: np.ndarray, cases: Cases, bar: float) -> tuple[dict[str, _Probed], dict[str, str]]:
    """Letters whose probe is good enough; why the others are left out."""
    fit, test = np.flatnonzero(~cases.judge), np.flatnonzero(cases.judge)
    known, left_out = {}, {}
    for label in sorted({str(each) for each in cases.labels} - {""}):
        yes = np.array([each == label for each in cases.labels])
        fitted, held = int(yes[fit].sum()), int(yes[test].sum())
        if min(fitted, held) < LEAST:
            left_out[label] = f"needs {LEAST} cases to fit and {LEAST} to judge. Got {fitted} and {held}"
            continue
        probe = probe_of(acts[fit], yes[fit])
        said = probe.says(acts[test])
        reached = f1(said, yes[test])
        rows = test[said & yes[test]]
        if reached < bar or not len(rows):
            left_out[label] = f"a probe on activations reaches F1 {reached:.2f}, below {bar}"
            continue
        known[label] = _Probed(probe.direction, reached, rows)
    return known, left_out


def _nothing(sae: SAE, x: Tensor) -> np.ndarray:
    """float64 [n d_in]: what the decoder gives of no code."""
    rows = x.to(sae.device)
    empty = rows.new_zeros((1, sae.d_sae)).expand(len(rows), -1)
    return sae.decode(empty, sae.scale(rows)).detach().double().cpu().numpy()


__all__ = ["Absorption"]
