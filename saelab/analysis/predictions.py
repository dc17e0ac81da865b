"""How well a language model predicts each token of a text: untouched, by way of an SAE, and with edits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from saelab.analysis.results import Changed, Predictions
from saelab.analysis.steering.arms import AlongRandom, AsOne
from saelab.arguments import a_subject, an_integer, checked, full_sae, maybe
from saelab.capabilities import HasLogits, HasTokens, need
from saelab.harvesting.batches import check_hooks, side_by_side
from saelab.interventions.reconstruction import Replace
from saelab.subjects.hooks import normalise_edits
from saelab.subjects.reading import How

if TYPE_CHECKING:
    from torch import Tensor

    from saelab.sae import SAE
    from saelab.types import Inputs, Run, Subject

LOGITS = 1 << 26
"""Logits of one pass, about: as many samples run together as have no more, but one at least."""
AT_ONCE = 1 << 23
"""Logits that are compared at once."""
SAMPLES = 16
MEAN = "the mean over this text in its place"
ELSEWHERE = "as far along a random direction"


@checked(subject=a_subject, sae=maybe(full_sae), seed=an_integer())
def predictions(
    subject: Subject, sample: Any, sae: SAE | None = None, edits: Sequence[Any] | Any = (), *, seed: int = 0
) -> Predictions:
    """The loss of each token of a text, and what becomes of it where activations are changed.

    With p(. | before) what the model predicts for a token's place, and q the same of the changed model::

        loss = -log p(token | before)          entropy = -sum_v p(v) log p(v)
        kl   = KL(p || q) = sum_v p(v) (log p(v) - log q(v))

    all in nats, and all at the token that is predicted. Where a text is read in parts, a part's first token
    is predicted from BOS alone.

    Args:
        subject: A language model.
        sample: A text or a dialogue, or a Document of one; as `sample_codes` takes it.
        sae: Its reconstruction takes the place of what it reads (of a transcoder or crosscoder: of what it
            writes) at every row; the control is the mean over this text there. None leaves that out.
        edits: Interventions, as a subject's `run` takes them; the control moves every row as far along one
            random direction. None leave that out.
        seed: Of that direction.

    Returns:
        Of every position of `sample_codes`, NaN where nothing is before it.

    Raises:
        SubjectError: The subject reads no tokens, or gives no logits.
        CorpusError: The sample is empty, or of another kind than the subject reads.
        HookError: The SAE has no hook point of this subject.
    """
    need(subject, HasTokens, "The loss of a token")
    need(subject, HasLogits, "The loss of a token")
    text = _Text(subject, sample)
    found = {name: text.empty() for name in ("loss", "entropy")}
    arms: list[_Arm] = []
    splice = None if sae is None else _Splice(text, sae)
    if splice is not None:
        arms += [_Arm("sae", splice.reconstructed), _Arm("mean", splice.mean)]
    own = normalise_edits(edits)
    if own:
        given, control = [AsOne(own)], [AlongRandom(own, subject, seed)]
        arms += [_Arm("edits", lambda inputs, run: given), _Arm("random", lambda inputs, run: control)]
    for arm in arms:
        found |= {f"{arm.name} {what}": text.empty() for what in ("loss", "kl")}
    reads = [] if splice is None else splice.hooks
    for places, inputs in text.passes():
        run = subject.run(inputs, read=reads)
        clean: Any = run.output
        for place in places:
            for rows, log_p, target in place.parts(clean):
                found["loss"][rows] = _loss(log_p, target)
                found["entropy"][rows] = _numbers(-(log_p.exp() * log_p).sum(-1))
        for arm in arms:
            changed: Any = subject.run(inputs, edits=arm.edits(inputs, run)).output
            for place in places:
                both = zip(place.parts(clean), place.parts(changed), strict=True)
                for (rows, log_p, target), (_, log_q, _) in both:
                    found[f"{arm.name} loss"][rows] = _loss(log_q, target)
                    found[f"{arm.name} kl"][rows] = _kl(log_p, log_q)
    return Predictions(
        found["loss"],
        found["entropy"],
        None if splice is None else _changed(found, "sae", "mean", MEAN),
        _changed(found, "edits", "random", ELSEWHERE) if own else None,
    )


class _Arm(NamedTuple):
    """A change of the activations."""

    name: str
    edits: Callable[[Inputs, Run], Sequence[Any]]


class _Place(NamedTuple):
    """Where a sample of a pass is, and its rows among all."""

    at: int
    rows: np.ndarray
    """int64 [n]: number of each row that something is before"""
    positions: np.ndarray
    """int64 [n]: in the sample, > 0"""
    ids: np.ndarray
    """int64 [n]: its token"""

    def parts(self, logits: Tensor) -> Iterator[tuple[np.ndarray, Tensor, Tensor]]:
        """(rows, log p of all tokens before each, its token), some rows at a time."""
        import torch

        some = max(1, AT_ONCE // logits.shape[-1])
        for first in range(0, len(self.rows), some):
            part = slice(first, first + some)
            before = torch.from_numpy(self.positions[part] - 1).to(logits.device)
            log_p = logits[self.at][before].double().log_softmax(-1)
            yield self.rows[part], log_p, torch.from_numpy(self.ids[part]).to(logits.device)


class _Text:
    """One text, and how the subject reads it."""

    def __init__(self, subject: Any, sample: Any) -> None:
        self.subject = subject
        corpus = subject.corpus([sample])
        (document,) = corpus
        subject.prime(document)
        longest = subject.n_ctx * getattr(subject, "d_vocab", LOGITS)
        how = How(max(1, min(SAMPLES, LOGITS // longest)), include_bos=True)
        self.corpus, self.reading = corpus, subject.read([(0, document)], how)
        kept = [np.flatnonzero(sample.counted) for sample in self.reading.samples]
        self.first = np.cumsum([0, *map(len, kept)])
        self.kept, self.n = kept, int(self.first[-1])

    def empty(self) -> np.ndarray:
        return np.full(self.n, np.nan, np.float32)

    def passes(self) -> Iterator[tuple[list[_Place], Inputs]]:
        """Each pass, and where the samples are in it."""
        for samples, inputs in self.reading.passes():
            places = []
            for at, sample in enumerate(samples):
                kept = self.kept[sample]
                told = kept > 0
                ids = np.array(self.reading.samples[sample].ids, np.int64)
                rows = self.first[sample] + np.arange(len(kept))
                places.append(_Place(at, rows[told], kept[told], ids[kept[told]]))
            yield places, inputs


class _Splice:
    """What takes the place of what an SAE stands for: its reconstruction, or the mean over a text."""

    def __init__(self, text: _Text, sae: SAE) -> None:
        self.sae = sae
        self.reads = check_hooks(text.subject, sae.reads, text.corpus)
        self.writes = check_hooks(text.subject, sae.writes, text.corpus)
        self.hooks = list(dict.fromkeys([*self.reads, *self.writes]))
        self.widths = [text.subject.width(hook) for hook in self.writes]
        self._mean = self._mean_over(text)

    def reconstructed(self, inputs: Inputs, run: Run) -> list[Replace]:
        import torch

        x = side_by_side(run.acts, self.reads)
        mode = self.sae.training
        self.sae.eval()
        try:
            with torch.no_grad():
                x_hat = self.sae(x.flatten(0, 1).to(self.sae.device)).x_hat
        finally:
            self.sae.train(mode)
        return self._placed(x_hat.unflatten(0, x.shape[:2]))

    def mean(self, inputs: Inputs, run: Run) -> list[Replace]:
        return self._placed(self._mean.expand(*side_by_side(run.acts, self.writes).shape[:2], -1))

    def _placed(self, values: Tensor) -> list[Replace]:
        return [
            Replace(hook, own) for hook, own in zip(self.writes, values.split(self.widths, -1), strict=True)
        ]

    def _mean_over(self, text: _Text) -> Tensor:
        import torch

        total: Any = 0
        n = 0
        for _, inputs in text.passes():
            y = side_by_side(text.subject.run(inputs, read=self.writes, output=False).acts, self.writes)
            here = torch.as_tensor(np.asarray(inputs.counted), device=y.device)
            total, n = total + y[here].double().sum(0), n + int(here.sum())
        return (total / max(n, 1)).float()


def _loss(log_p: Tensor, target: Tensor) -> np.ndarray:
    return _numbers(-log_p.gather(-1, target[:, None])[:, 0])


def _kl(log_p: Tensor, log_q: Tensor) -> np.ndarray:
    # of a sum of differences that are all but 0 rounding may leave less than 0
    return _numbers((log_p.exp() * (log_p - log_q)).sum(-1).clamp(min=0))


def _numbers(values: Tensor) -> np.ndarray:
    return values.float().cpu().numpy()


def _changed(found: dict[str, np.ndarray], arm: str, control: str, what: str) -> Changed:
    kinds = [found[f"{name} {kind}"] for name in (arm, control) for kind in ("loss", "kl")]
    return Changed(kinds[0], kinds[1], what, kinds[2], kinds[3])


__all__ = ["predictions"]
