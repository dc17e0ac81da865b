"""Choosing the latents that stand for a concept, by contrast of samples."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from saelab.analysis.controls import Beside, shuffled
from saelab.analysis.steering import ranking
from saelab.analysis.steering.known import apart, distinct, parts, remember
from saelab.analysis.steering.outputs import Outputs, a_function, outputs_of, token_weights, why_no_outputs
from saelab.analysis.steering.pooled import Pooled, pool, pool_of_store
from saelab.analysis.steering.selected import Choice, Contrast, Selected, documents_of
from saelab.analysis.steering.separation import auroc, auroc_interval
from saelab.arguments import a_subject, an_integer, checked, listed, maybe, one_of, real
from saelab.config import integer
from saelab.corpora import Document
from saelab.stores import FeatureStore
from saelab.types import ConfigError, short

if TYPE_CHECKING:
    from saelab.sae import SAE
    from saelab.types import Subject

METHODS = ("difference", "set", "probe", "score")
CONTROLS = 20
"""Draws of random latents, and of shuffled labels."""
CANDIDATES = 32
"""Latents of which steering is tried, with method="score"."""
ALIKE = 20
"""Latents of the most similar firing rate, of which a random one is drawn."""
PUSH = 0.5
"""Norm of what is added to measure an output score, in units of the mean norm of the activations."""


@checked(
    positive=listed, negative=listed, method=one_of(*METHODS), k=an_integer(1), subject=maybe(a_subject),
    pooling=one_of("max", "mean"), held_out=real(0), top=an_integer(1), penalty=one_of("l1", "l2"),
    strength=real(0), seed=an_integer(), batch_size=an_integer(1),
)  # fmt: skip
def select_latents(
    store_or_sae: FeatureStore | SAE,
    positive: Iterable[Any],
    negative: Iterable[Any],
    method: str = "difference",
    k: int = 5,
    *,
    subject: Subject | None = None,
    pooling: str = "max",
    held_out: float = 0.3,
    top: int = 32,
    penalty: str = "l1",
    strength: float = 0.01,
    metric: Callable[[Any], Any] | None = None,
    seed: int = 0,
    batch_size: int = 16,
) -> Selected:
    """Choose the latents that stand for a concept, by contrast of samples that hold it with samples that do
    not.

    A share of the samples has no part in the choice and judges it. Samples that are there twice count once.

    Args:
        store_or_sae: An SAE, with the subject that it reads; or a feature store, whose documents are then
            named by their numbers.
        positive: Samples that hold the concept: texts, Documents, images, what the subject reads; of a store
            numbers of documents.
        negative: Samples that do not.
        method: "difference": the standardised difference of mean codes. "set": latents among the `top` of any
            positive sample and of no negative one (Interpret then Deactivate, arXiv 2503.09446). "probe": the
            weights of a logistic probe. "score": the effect on the output of steering by the latent, which is
            measured for the 32 latents that promise most, by a first-order estimate and by the difference.
        k: How many, at most.
        subject: The model that the SAE reads.
        pooling: The code of a sample: "max" (the largest in size of its rows) or "mean".
        held_out: Share of the samples that judges.
        top: Latents of a sample, with method="set".
        penalty: "l1" or "l2", of the probe.
        strength: Of that penalty.
        metric: From the subject's output [samples, ...] to a number for each sample, of which the output
            score is the change. None: the mean log-probability of the tokens that are more frequent in
            positive samples.
        seed: Of the parts, the controls and the intervals.
        batch_size: Samples of a pass.

    Returns:
        The latents, with input and output score of each, and their AUROC on held-out samples beside controls.

    Raises:
        CorpusError: Fewer than four different samples on a side, a sample on both.
        ConfigError: An SAE without a subject, or "score" where the output cannot be measured.
        HookError: The SAE has no hook point of this subject.
    """
    if not 0 < held_out < 1:
        message = f"held_out must be between 0 and 1. Got {held_out}. Pass held_out=0.3."
        raise ConfigError(message)
    if metric is not None:
        a_function("metric", metric)
    source = _Source(store_or_sae, subject)
    first, first_keys = distinct("positive", source.documents(positive))
    second, second_keys = distinct("negative", source.documents(negative))
    apart("positive", first_keys, "negative", second_keys)
    documents, keys = [*first, *second], [*first_keys, *second_keys]
    truth = np.arange(len(documents)) < len(first)
    rng = np.random.default_rng(seed)
    ours, theirs = parts(len(first), held_out, rng), parts(len(second), held_out, rng)
    fit, test = (np.r_[one, len(first) + other] for one, other in zip(ours, theirs, strict=True))
    codes = source.pool(documents, pooling, batch_size)
    ranks = _Ranks(codes.latents, codes.codes[fit], codes.signed, method, top, penalty, strength)
    effects, why = None, source.why_no_outputs(metric)
    if why is None:
        assert subject is not None
        without = [documents[i] for i in fit if not truth[i]]
        out = outputs_of(subject, source.sae, without, PUSH * codes.norm, metric, batch_size)
        effects = _Effects(out, [documents[i] for i in fit], truth[fit])
    elif method == "score":
        message = f"method='score' needs an output to measure. Got none: {why}. Or pass another method."
        raise ConfigError(message)
    chosen = (
        ranks.of(truth[fit]) if method != "score" or effects is None else effects.ranked(ranks, truth[fit])
    )
    chosen = chosen[:k]
    _check(chosen, codes, fit, k)
    result = Selected(
        method=method,
        hook=source.hook,
        choices=tuple(_choices(chosen, codes, effects, fit, test, truth)),
        scores=_judged(chosen, codes, ranks, effects, fit, test, truth, seed),
        fit=_contrast(documents, fit, truth),
        held_out=_contrast(documents, test, truth),
        fitted=frozenset(keys[i] for i in fit),
        left_out={} if why is None else {"output score": why},
    )
    remember(source.owner, result.latents, result.fitted)
    return result


Ranked = list[tuple[int, int, float]]
"""(latent, pole, score) of latents, the best first."""


class _Source:
    """Where codes come from: an SAE on a subject, or a feature store. Raises ConfigError."""

    def __init__(self, given: Any, subject: Any) -> None:
        self.store = given if isinstance(given, FeatureStore) else None
        self.sae: Any = None if self.store is not None else given
        self.subject = subject
        if self.store is None and not all(
            hasattr(given, name) for name in ("config", "encode_sparse", "reads")
        ):
            message = (
                f"store_or_sae must be an SAE or a feature store. Got {short(given)}. Pass what "
                "saelab.load_sae or saelab.index gives."
            )
            raise ConfigError(message)
        if self.store is None and subject is None:
            message = "An SAE is read on a subject. Got None. Pass subject=, the model that it reads."
            raise ConfigError(message)

    @property
    def hook(self) -> str:
        return str(self.store.hook) if self.store is not None else " + ".join(map(str, self.sae.reads))

    @property
    def owner(self) -> Any:
        """The SAE, or its fingerprint."""
        return self.sae if self.store is None else self.store.manifest["sae"]

    def documents(self, samples: Iterable[Any]) -> list[Document]:
        if self.store is None:
            return documents_of(samples, self.subject.corpus)
        last = self.store.n_documents - 1
        numbers = [
            integer("A document", i, 0, last, remedy="Pass numbers of the store's documents.")
            for i in samples
        ]
        return [Document(str(i), self.store.document(i).text) for i in numbers]

    def pool(self, documents: Sequence[Document], pooling: str, batch_size: int) -> Pooled:
        if self.store is not None:
            return pool_of_store(self.store, [int(document.id) for document in documents], pooling)
        return pool(self.subject, self.sae, documents, pooling, batch_size)

    def why_no_outputs(self, metric: Any) -> str | None:
        return why_no_outputs(None if self.store is not None else self.subject, self.sae, metric)


class _Ranks:
    """Latents ranked by where they fire, for any labels of the samples that are fitted on."""

    def __init__(
        self, latents: np.ndarray, codes: np.ndarray, signed: bool, method: str, top: int, penalty: str,
        strength: float,
    ) -> None:  # fmt: skip
        self.latents, self.codes, self.signed = latents, codes, signed
        self.method, self.top, self.penalty, self.strength = method, top, penalty, strength

    def of(self, positive: np.ndarray) -> Ranked:
        """Those that the method finds, best first."""
        if self.method == "set":
            size = ranking.set_difference(self.codes, positive, self.top)
            pole = np.sign(self.codes[positive].mean(0)) if self.signed else np.ones(len(size))
            return self._sorted(size, np.where(pole < 0, -1, 1), size)
        found = (
            ranking.probe(self.codes, positive, self.penalty, self.strength)
            if self.method == "probe"
            else ranking.difference(self.codes, positive)
        )
        return self._sorted(np.abs(found) if self.signed else found, np.where(found < 0, -1, 1), found)

    def _sorted(self, size: np.ndarray, pole: np.ndarray, score: np.ndarray) -> Ranked:
        order = np.argsort(-size, kind="stable")
        return [(int(self.latents[i]), int(pole[i]), float(score[i])) for i in order if size[i] > 0]


class _Effects:
    """What steering by latents does, in one number each."""

    def __init__(self, out: Outputs, documents: Sequence[Document], positive: np.ndarray) -> None:
        self.out, self.documents = out, documents
        self.weights = self._weights(positive)
        self._known: dict[tuple[int, int], np.ndarray] = {}

    def _weights(self, positive: np.ndarray) -> np.ndarray | None:
        if self.out.metric is not None:
            return None
        return token_weights(self.out.subject, self.documents, positive, self.out.d_out)

    def of(
        self, latents: Sequence[int], poles: Sequence[int], weights: np.ndarray | None = None
    ) -> np.ndarray:
        """float64 [n]: the change in what the positive samples say more often, or in the metric."""
        pairs = list(zip(latents, poles, strict=True))
        new = [pair for pair in pairs if pair not in self._known]
        found = self.out.measured([j for j, _ in new], [pole for _, pole in new])
        self._known |= dict(zip(new, found, strict=True))
        shifts = np.stack([self._known[pair] for pair in pairs])
        weights = self.weights if weights is None else weights
        return shifts[:, 0].astype(np.float64) if weights is None else shifts @ weights

    @functools.cached_property
    def _screened(self) -> np.ndarray | None:
        return self.out.screened(self.weights)

    def ranked(self, ranks: _Ranks, positive: np.ndarray, fitted: np.ndarray | None = None) -> Ranked:
        """Candidates by their measured effect. fitted: the labels by which candidates are found, if not
        these."""
        firing = ranks.of(positive if fitted is None else fitted)
        screened = self._screened
        half = CANDIDATES if screened is None else CANDIDATES // 2
        pairs = dict.fromkeys((j, pole) for j, pole, _ in firing[:half])
        if screened is not None:
            size = np.abs(screened) if ranks.signed else screened
            for j in np.argsort(-size, kind="stable")[:half]:
                pairs[int(j), int(np.sign(screened[j]) or 1) if ranks.signed else 1] = None
        if not pairs:
            return []
        latents, poles = zip(*pairs, strict=True)
        weights = self.weights if fitted is None else self._weights(positive)
        effect = self.of(latents, poles, weights)
        order = np.argsort(-effect, kind="stable")
        return [(latents[i], poles[i], float(effect[i])) for i in order]


def _check(chosen: Ranked, codes: Pooled, fit: np.ndarray, k: int) -> None:
    """Say what is not as it was asked for. Raises ConfigError where nothing was found."""
    if not chosen:
        message = (
            "Some latent must tell the samples apart. Got none that does. Pass more samples, another method, "
            "or with method='set' a lower top."
        )
        raise ConfigError(message)
    dead = [j for j, _, _ in chosen if not codes.column(j)[fit].any()]
    if dead:
        warnings.warn(f"Latents {dead} fire in none of the samples: gates on them never open.", stacklevel=4)
    if len(chosen) < k:
        warnings.warn(f"Only {len(chosen)} latents tell the samples apart. {k} were asked for.", stacklevel=4)


def _contrast(documents: Sequence[Document], at: np.ndarray, truth: np.ndarray) -> Contrast:
    return Contrast(*(tuple(documents[i] for i in at if truth[i] == kind) for kind in (True, False)))


def _choices(
    chosen: Ranked,
    codes: Pooled,
    effects: _Effects | None,
    fit: np.ndarray,
    test: np.ndarray,
    truth: np.ndarray,
) -> list[Choice]:
    out = None if effects is None else effects.of([j for j, _, _ in chosen], [pole for _, pole, _ in chosen])
    found = []
    for at, (j, pole, score) in enumerate(chosen):
        own = codes.column(j)
        yes, no = own[fit][truth[fit]], own[fit][~truth[fit]]
        found.append(
            Choice(
                latent=j,
                pole=pole,
                score=score,
                input_score=float(ranking.difference(own[fit][:, None], truth[fit])[0]),
                output_score=None if out is None else float(out[at]),
                mean_positive=float(yes.mean()),
                mean_negative=float(no.mean()),
                share_positive=float((yes != 0).mean()),
                share_negative=float((no != 0).mean()),
                held_out=auroc(pole * own[test][truth[test]], pole * own[test][~truth[test]]),
            )
        )
    return found


def _judged(
    chosen: Ranked, codes: Pooled, ranks: _Ranks, effects: _Effects | None, fit: np.ndarray, test: np.ndarray,
    truth: np.ndarray, seed: int,
) -> dict[str, Beside]:  # fmt: skip
    """AUROC of the sum of codes on held-out samples, beside controls that are judged alike."""

    def summed(latents: Ranked) -> tuple[np.ndarray, np.ndarray]:
        own = np.stack([codes.column(j) for j, _, _ in latents], 1)
        weights = np.array([pole for _, pole, _ in latents]) / ranking.spread(own[fit])
        total = own[test] @ weights
        return total[truth[test]], total[~truth[test]]

    rng = np.random.default_rng(seed)
    yes, no = summed(chosen)
    value, interval = auroc(yes, no), auroc_interval(yes, no, seed)
    drawn: dict[str, list[float]] = {"random latents": [], "shuffled labels": []}
    for draw in range(CONTROLS):
        others = _alike(codes, fit, truth, chosen, rng)
        drawn["random latents"].append(auroc(*summed(others)) if others else 0.5)
        labels = shuffled(truth[fit], seed + draw)
        if ranks.method != "score":
            by_chance = ranks.of(labels)
        elif effects is not None and effects.weights is not None:
            by_chance = effects.ranked(ranks, labels, truth[fit])
        else:
            continue  # a metric of the output knows no labels
        by_chance = by_chance[: len(chosen)]
        drawn["shuffled labels"].append(auroc(*summed(by_chance)) if by_chance else 0.5)
    found = {}
    for name, values in drawn.items():
        if values:
            low, high = np.percentile(values, [2.5, 97.5])
            spread = (float(low), float(high))
            found[name] = Beside(value, float(np.mean(values)), interval, spread, len(test), name)
    return found


def _alike(
    codes: Pooled, fit: np.ndarray, truth: np.ndarray, chosen: Ranked, rng: np.random.Generator
) -> Ranked:
    """Other latents, each of about the firing rate of one that was chosen, turned to where it fires more."""
    own = {j for j, _, _ in chosen}
    share = (codes.codes[fit] != 0).mean(0)
    rate = {int(j): share[at] for at, j in enumerate(codes.latents)}
    others = np.array([at for at, j in enumerate(codes.latents) if int(j) not in own and share[at] > 0])
    turned = np.where(ranking.difference(codes.codes[fit], truth[fit]) < 0, -1, 1)
    found: dict[int, int] = {}
    for j, _, _ in chosen:
        free = others[[int(codes.latents[at]) not in found for at in others]] if len(others) else others
        if len(free):
            near = free[np.argsort(np.abs(share[free] - rate.get(j, 0.0)), kind="stable")[:ALIKE]]
            at = int(rng.choice(near))
            found[int(codes.latents[at])] = int(turned[at])
    return [(j, pole, 0.0) for j, pole in found.items()]


__all__ = ["select_latents"]
