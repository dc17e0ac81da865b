"""Measuring what an edit does: for what it is meant, and to everything else."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from saelab.analysis.steering.arms import CONTROLS, Controls, Edits
from saelab.analysis.steering.gate import GateCurve
from saelab.analysis.steering.known import check_unseen, fitted_on
from saelab.analysis.steering.outputs import a_function
from saelab.analysis.steering.results import EDIT, NONE, Arm, Effect, TokenShift
from saelab.analysis.steering.selected import documents_of
from saelab.analysis.steering.sheets import Sheet, Shifts, figures, forced, natural_of
from saelab.analysis.steering.texts import checked_lexicon, distinct_n, lexicon_count, repetition, words_of
from saelab.arguments import a_subject, an_integer, checked, flag, is_listed, listed, real
from saelab.capabilities import Generates, lacking
from saelab.config import is_number
from saelab.subjects.hooks import normalise_edits
from saelab.types import ConfigError, ShapeError, short

if TYPE_CHECKING:
    from saelab.corpora import Document
    from saelab.types import Subject

TOKENS = 8
"""Tokens that are raised most, and as many that are lowered most."""
SHOWN = 4
"""Continuations that are kept of each arm."""
_CHECKS: dict[str, Any] = {
    "subject": a_subject, "samples": listed, "controls": listed, "draws": an_integer(1),
    "max_new_tokens": an_integer(), "temperature": real(0), "seed": an_integer(), "allow_fitted": flag,
    "batch_size": an_integer(1),
}  # fmt: skip


@checked(**_CHECKS)
def effect(
    subject: Subject,
    edits: Any,
    samples: Iterable[Any],
    *,
    target: Iterable[str] | Callable[[Any], Any] | None = None,
    clean: Iterable[Any] | None = None,
    contrast: Any = None,
    controls: Sequence[str] = CONTROLS,
    draws: int = 3,
    max_new_tokens: int = 32,
    temperature: float = 0.0,
    allow_fitted: bool = False,
    seed: int = 0,
    batch_size: int = 16,
) -> Effect:
    """What edits do to a subject, beside controls that move activations as far.

    Samples are run as they are and, by a subject that generates, continued; clean ones are run with the hooks
    at work. Controls are at matched norm: at every row where the edit changes the activation they move it as
    far, along a random direction, along other latents of about the same firing rate, or along the mean
    difference of `contrast`.

    Args:
        subject: The model.
        edits: One, or a list in its order; also a `GateCurve`, which stands for its edit.
        samples: What the edit is meant for: prompts, texts, images, what the subject reads.
        target: What it is meant to change: a list of words; a function of a list of continuations that gives
            a number for each, such as a classifier; of a subject that does not generate a function of its
            output [samples, ...].
        clean: Samples that it should leave alone. Their activations are what is natural; without them those
            of `samples` are.
        contrast: (samples with, samples without) for the mean difference, or what `select_latents` gave.
        controls: Some of "random direction", "random latents", "mean difference".
        draws: Of each random control.
        max_new_tokens: Tokens of a continuation; 0 generates none.
        temperature: Of the continuations.
        allow_fitted: Measure also on samples that latents were chosen or gates calibrated on.
        seed: Of the controls, continuations and intervals.
        batch_size: Samples of a pass.

    Returns:
        Figures of every arm with their intervals.

    Raises:
        CorpusError: A sample is one that the latents or the gate were fitted on.
        ConfigError: A target that this subject cannot be measured by, an unknown control.
        NonFiniteError: The output under an edit is not finite.
    """
    how: dict[str, Any] = {
        "target": target, "clean": clean, "contrast": contrast, "controls": controls, "draws": draws,
        "max_new_tokens": max_new_tokens, "temperature": temperature, "allow_fitted": allow_fitted,
        "seed": seed, "batch_size": batch_size,
    }  # fmt: skip
    *_, found = measuring(subject, edits, samples, **how)
    assert isinstance(found, Effect)
    return found


def measuring(
    subject: Subject,
    edits: Any,
    samples: Iterable[Any] | None,
    *,
    target: Any = None,
    clean: Iterable[Any] | None = None,
    contrast: Any = None,
    controls: Sequence[str] = CONTROLS,
    draws: int = 3,
    max_new_tokens: int = 32,
    temperature: float = 0.0,
    allow_fitted: bool = False,
    seed: int = 0,
    batch_size: int = 16,
) -> Iterator[float | Effect]:
    """`effect` in steps, for whoever may stop between them: the share that is done after each, then figures.

    Args:
        subject: As in `effect`, and so are the others.
        edits: One, or a list.
        samples: What the edit is meant for; None measures clean samples alone.
        target: What it is meant to change.
        clean: Samples that it should leave alone.
        contrast: For the mean difference.
        controls: Which.
        draws: Of each random control.
        max_new_tokens: Tokens of a continuation.
        temperature: Of the continuations.
        allow_fitted: Measure also on samples that were fitted on.
        seed: Of all draws.
        batch_size: Samples of a pass.

    Raises:
        CorpusError: A sample is one that the latents or the gate were fitted on.
        ConfigError: As `effect`.
    """
    given = _edits(edits)
    study = _Study(subject, samples, clean, target, max_new_tokens, temperature, seed, batch_size)
    study.check([given], allow_fitted)
    made = Controls(subject, list(controls), draws, contrast, study.natural, seed, batch_size)
    yield from study.steps({None: given}, made)


@checked(alphas=listed, **_CHECKS)
def dose_response(
    subject: Subject,
    make: Callable[[float], Any],
    alphas: Iterable[float],
    samples: Iterable[Any],
    *,
    target: Iterable[str] | Callable[[Any], Any] | None = None,
    clean: Iterable[Any] | None = None,
    contrast: Any = None,
    controls: Sequence[str] = CONTROLS,
    draws: int = 3,
    max_new_tokens: int = 32,
    temperature: float = 0.0,
    allow_fitted: bool = False,
    seed: int = 0,
    batch_size: int = 16,
) -> Effect:
    """`effect` at several strengths, on the same samples beside the same draws of the controls.

    Args:
        subject: The model.
        make: From a strength to edits: `lambda alpha: Steer(sae, 3, alpha)`.
        alphas: The strengths, each once.
        samples: As in `effect`, and so are the others.
        target: What it is meant to change.
        clean: Samples that it should leave alone.
        contrast: For the mean difference.
        controls: Which.
        draws: Of each random control.
        max_new_tokens: Tokens of a continuation.
        temperature: Of the continuations.
        allow_fitted: Measure also on samples that were fitted on.
        seed: Of all draws.
        batch_size: Samples of a pass.

    Returns:
        Figures of every arm at every strength; `figure()` shows target against collateral with the frontier.

    Raises:
        CorpusError: A sample is one that the latents or the gate were fitted on.
        ConfigError: No or repeated strengths, a target that this subject cannot be measured by.
    """
    strengths = list(alphas)
    a_function("make", make)
    sound = all(is_number(alpha) and np.isfinite(alpha) for alpha in strengths)
    if not strengths or not sound or len(set(strengths)) < len(strengths):
        message = f"alphas must be different finite numbers. Got {short(strengths)}. Pass e.g. [0.5, 1, 2]."
        raise ConfigError(message)
    given: dict[float | None, list[Any]] = {float(a): _edits(make(float(a))) for a in strengths}
    study = _Study(subject, samples, clean, target, max_new_tokens, temperature, seed, batch_size)
    study.check(list(given.values()), allow_fitted)
    made = Controls(subject, list(controls), draws, contrast, study.natural, seed, batch_size)
    return study.measured(given, made)


@checked(clean=listed, controls=listed, draws=an_integer(1), seed=an_integer(), batch_size=an_integer(1),
         allow_fitted=flag, subject=a_subject)  # fmt: skip
def side_effects(
    subject: Subject,
    edits: Any,
    clean: Iterable[Any],
    *,
    controls: Sequence[str] = CONTROLS,
    contrast: Any = None,
    draws: int = 3,
    allow_fitted: bool = False,
    seed: int = 0,
    batch_size: int = 16,
) -> Effect:
    """What edits do to samples that they should leave alone: `effect` without a target or generation.

    Args:
        subject: The model.
        edits: As in `effect`.
        clean: The samples.
        controls: As in `effect`.
        contrast: For the mean difference.
        draws: Of each random control.
        allow_fitted: Measure also on samples that were fitted on.
        seed: Of the controls and intervals.
        batch_size: Samples of a pass.

    Returns:
        The figures of clean samples: their names begin with "clean".

    Raises:
        CorpusError: A sample is one that the latents or the gate were fitted on.
    """
    given = _edits(edits)
    study = _Study(subject, None, clean, None, 0, 0.0, seed, batch_size)
    study.check([given], allow_fitted)
    made = Controls(subject, list(controls), draws, contrast, study.natural, seed, batch_size)
    return study.measured({None: given}, made)


Key = tuple[str, float | None, int]
"""Arm, strength, draw."""


@dataclass(frozen=True)
class _Target:
    """What an edit is meant to change."""

    lexicon: tuple[str, ...] = ()
    of_texts: Callable[[list[str]], Any] | None = None
    of_outputs: Callable[[Any], Any] | None = None


class _Study:
    """Samples and what is measured on them, whatever the edits."""

    def __init__(
        self, subject: Any, samples: Any, clean: Any, target: Any, max_new_tokens: int, temperature: float,
        seed: int, batch_size: int,
    ) -> None:  # fmt: skip
        self.subject, self.seed, self.batch_size = subject, seed, batch_size
        self.samples = [] if samples is None else documents_of(samples, subject.corpus)
        self.clean = [] if clean is None else documents_of(clean, subject.corpus)
        self.natural: list[Document] = self.clean or self.samples
        self.how = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
        missing = lacking(subject, Generates)
        self.generates = bool(self.samples) and not missing and max_new_tokens > 0
        self.left_out = {}
        if self.samples and missing:
            self.left_out["continuations"] = f"a {type(subject).__name__} lacks {', '.join(missing)}"
        self.target = _target(target, self.generates, self.left_out)

    def check(self, given: Sequence[Sequence[Any]], allowed: bool) -> None:
        """Refuse what the edits were fitted on. Raises CorpusError."""
        if not allowed:
            keys = fitted_on([edit for some in given for edit in some])
            check_unseen([*self.samples, *self.clean], keys, "the latents or the gate")

    def measured(self, given: Mapping[float | None, list[Any]], controls: Controls) -> Effect:
        *_, found = self.steps(given, controls)
        assert isinstance(found, Effect)
        return found

    def steps(self, given: Mapping[float | None, list[Any]], controls: Controls) -> Iterator[float | Effect]:
        """Measure by and by: the share that is done, and at last the figures."""
        arms: dict[Key, Edits] = {(NONE, None, 0): []}
        for alpha, some in given.items():
            arms[EDIT, alpha, 0] = normalise_edits(some)
            for name, drawn in controls.of(some, self.samples or self.clean).items():
                arms |= {(name, alpha, draw): edits for draw, edits in enumerate(drawn)}
        hooks = list(dict.fromkeys(hook for edits in arms.values() for hook, _ in edits))
        if not hooks:
            message = "Edits must name at least one. Got none. Pass e.g. [saelab.interventions.Scale(...)]."
            raise ConfigError(message)
        n, done = 3 + len(arms) * self.generates, 0
        natural = natural_of(self.subject, self.natural, hooks, self.batch_size)
        yield (done := done + 1) / n
        left_out = dict(self.left_out)
        if len(natural) < len(hooks):
            left_out["norm, mahalanobis, nearest"] = "fewer than three samples say what is natural"
        strongest = max(given, key=lambda alpha: abs(alpha or 0))
        shown = (EDIT, strongest, 0)
        sheets: dict[Key, list[Sheet]] = {key: [] for key in arms}
        tokens: list[tuple[TokenShift, ...]] = []
        for documents, prefix in ((self.samples, ""), (self.clean, "clean ")):
            if not documents:
                tokens.append(())
                continue
            found, shifts = forced(
                self.subject, arms, documents, hooks, natural, prefix=prefix, shifting=[shown],
                own=documents is self.natural, target=None if prefix else self.target.of_outputs,
                batch_size=self.batch_size,
            )  # fmt: skip
            tokens.append(_tokens(self.subject, shifts[shown], self.seed) if shown in shifts else ())
            for key, sheet in found.items():
                sheets[key].append(sheet)
            yield (done := done + 1) / n
        texts: dict[str, tuple[str, ...]] = {}
        if self.generates:
            for key, edits in arms.items():
                sheet, written = self._continued(edits)
                sheets[key].append(sheet)
                if key[2] == 0 and key[1] in (None, strongest):
                    texts[key[0]] = tuple(written[:SHOWN])
                yield (done := done + 1) / n
        yield Effect(
            hook=" + ".join(hook.name for hook in hooks),
            n_samples=len(self.samples),
            n_clean=len(self.clean),
            arms=tuple(_arms(sheets, self.seed)),
            tokens=tokens[0],
            clean_tokens=tokens[1],
            texts=texts,
            left_out=left_out,
        )

    def _continued(self, edits: Edits) -> tuple[Sheet, list[str]]:
        """Continuations and their figures."""
        written = continued(self.subject, [d.text for d in self.samples], edits, self.how, self.batch_size)
        sheet = Sheet(len(written))
        every = range(len(written))
        counts = [len(words_of(text)) for text in written]
        sheet.add("generated", every, np.ones(len(written)))
        sheet.add("words", every, counts)
        for name, measure, n in (("distinct", distinct_n, 2), ("repetition", repetition, 4)):
            values = np.array([measure(text, n) for text in written])
            known = np.isfinite(values)
            sheet.add(name, every, np.where(known, values, 0))
            sheet.add(f"{name} n", every, known)
        if self.target.lexicon:
            hits = np.array([lexicon_count(text, self.target.lexicon) for text in written])
            sheet.add("target", every, hits)
            sheet.add("target n", every, counts)
            sheet.add("target any", every, hits > 0)
        elif self.target.of_texts is not None:
            values = np.asarray(self.target.of_texts(written))
            if values.shape != (len(written),) or values.dtype.kind not in "fiub":
                message = (
                    f"target must give one number for each of {len(written)} texts. Got "
                    f"{short(values, 80)}. Pass e.g. lambda texts: [len(t) for t in texts]."
                )
                raise ShapeError(message)
            sheet.add("target", every, values)
            sheet.add("target n", every, np.ones(len(written)))
        return sheet, written


def continued(
    subject: Any, prompts: Sequence[str], edits: Edits, how: Mapping[str, Any], batch_size: int
) -> list[str]:
    """What a subject writes after each prompt, without the prompt.

    Args:
        subject: Generates.
        prompts: Texts.
        edits: At work all the while.
        how: Options of generation, of which those are passed that it takes.
        batch_size: Prompts that run together, where it takes several.
    """
    known = inspect.signature(subject.generate).parameters
    any_option = any(p.kind is p.VAR_KEYWORD for p in known.values())
    options = {name: value for name, value in how.items() if any_option or name in known}
    found = []
    for first in range(0, len(prompts), batch_size if hasattr(subject, "stream") else 1):
        some = list(prompts[first : first + batch_size]) if hasattr(subject, "stream") else prompts[first]
        whole = subject.generate(some, edits, **options)
        bare: Any = some
        if "max_new_tokens" in options:
            bare = subject.generate(some, (), **options | {"max_new_tokens": 0})
        pairs = [(whole, bare)] if isinstance(whole, str) else zip(whole, bare, strict=True)
        found += [text.removeprefix(prompt) for text, prompt in pairs]
    return found


def _edits(edits: Any) -> list[Any]:
    """A list of edits, gates taken for what they are of."""
    pair = isinstance(edits, tuple) and len(edits) == 2 and callable(edits[1]) and not callable(edits[0])
    single = callable(edits) or isinstance(edits, GateCurve) or pair or not is_listed(edits)
    found: list[Any] = [edits] if single else [*edits]  # type: ignore[misc]
    found = [edit.edit if isinstance(edit, GateCurve) else edit for edit in found]
    normalise_edits(found)
    return found


def _target(target: Any, generates: bool, left_out: Mapping[str, str]) -> _Target:
    if target is None:
        return _Target()
    if callable(target):
        a_function("target", target)
        return _Target(of_texts=target) if generates else _Target(of_outputs=target)
    if not is_listed(target):
        message = f"target must be words or a function. Got {short(target)}. Pass e.g. ['please']."
        raise ConfigError(message)
    if not generates:
        why = left_out.get("continuations", "no continuations are generated")
        message = f"Words are counted in texts. Got words, but {why}. Pass a function of the output."
        raise ConfigError(message)
    return _Target(lexicon=checked_lexicon(target))


def _arms(sheets: Mapping[Key, list[Sheet]], seed: int) -> Iterable[Arm]:
    """Arms of the figures of their draws."""
    grouped: dict[tuple[str, float | None], list[list[Sheet]]] = {}
    for (name, alpha, _), some in sheets.items():
        grouped.setdefault((name, alpha), []).append(some)
    for (name, alpha), drawn in grouped.items():
        found: dict[str, Any] = {}
        for kind in zip(*drawn, strict=True):  # samples, clean ones, continuations
            found |= figures(kind, seed)
        yield Arm(name, alpha, found)


def _tokens(subject: Any, shifts: Shifts, seed: int) -> tuple[TokenShift, ...]:
    """Tokens whose mean probability changes most, raised ones first; intervals over groups of samples."""
    n = shifts.n.sum()
    change = (shifts.after - shifts.before).sum(0) / n
    order = np.argsort(-change, kind="stable")
    raised = [i for i in order[:TOKENS] if change[i] > 0]
    lowered = [i for i in order[::-1][:TOKENS] if change[i] < 0]
    ids = [int(i) for i in [*raised, *lowered]]
    groups = len(shifts.n)
    weights = np.random.default_rng(seed).multinomial(groups, np.full(groups, 1 / groups), size=1000)
    drawn = weights @ (shifts.after - shifts.before)[:, ids] / np.maximum(weights @ shifts.n, 1)[:, None]
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
    names = subject.token_strings(ids)
    return tuple(
        TokenShift(
            name,
            float(shifts.before[:, i].sum() / n),
            float(shifts.after[:, i].sum() / n),
            (float(low[at]), float(high[at])),
        )
        for at, (i, name) in enumerate(zip(ids, names, strict=True))
    )


__all__ = ["continued", "dose_response", "effect", "measuring", "side_effects"]
