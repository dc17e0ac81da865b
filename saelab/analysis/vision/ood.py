"""Whether codes tell what a model was not made for: reconstruction error, tail energy, class profiles."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from saelab.analysis.controls import CONFIDENCE, DRAWS, OWN, Beside, Control
from saelab.analysis.panels import Figures, Panel, Table
from saelab.analysis.steering.separation import areas, auroc, auroc_interval
from saelab.analysis.vision.codes import NEURONS, UNTRAINED, DocumentCodes, Energies, need_labels, read
from saelab.arguments import a_subject, an_integer, checked, full_sae, mapping, maybe, real, sequence
from saelab.errors import headline
from saelab.types import ConfigError, CorpusError

if TYPE_CHECKING:
    import pandas as pd

    from saelab.sae import SAE
    from saelab.types import Subject

ERROR, TAIL, PROFILE, SOFTMAX = "reconstruction error", "tail energy", "profile distance", "max softmax"


@dataclass(frozen=True, eq=False)
class OOD:
    """How well each score tells documents of other kinds from those of the reference's kind."""

    scores: Mapping[tuple[str, str], Mapping[str, np.ndarray]]
    """(what it is by, score) -> set of documents ("inside", or the name of a kind outside) -> float64 [n],
    higher for what is less like the reference"""
    figures: Mapping[str, Beside]
    """"kind: score" -> AUROC of this SAE's score, beside the untrained SAE's, max softmax (where the subject
    has class probabilities) and the profile distance of raw neurons"""
    margins: Mapping[str, tuple[float, float, float]]
    """"kind: profile distance less ..." -> difference of AUROCs, and the ends of its 95 % interval, documents
    drawn anew, the same for both"""
    sizes: Mapping[str, int]
    """documents of each set"""
    classes: tuple[str, ...]
    """whose profiles there are"""
    key: str
    """a hash of the ids and codes of the reference, of what is inside and of what is outside: one that was
    written down before says that no set was chosen by its figures"""
    left_out: Mapping[str, str] = field(default_factory=dict)

    def to_frame(self) -> pd.DataFrame:
        """One line for each kind outside and each score: what it is by, AUROC, and its 95 % interval."""
        import pandas as pd

        lines = []
        for (by, score), sets in self.scores.items():
            for kind in sets:
                if kind != INSIDE:
                    outside, inside = sets[kind], sets[INSIDE]
                    low, high = auroc_interval(outside, inside)
                    told = {"auroc": auroc(outside, inside), "from": low, "to": high}
                    lines.append({"outside": kind, "score": score, "by": by} | told)
        return pd.DataFrame(lines).sort_values(["outside", "score"], kind="stable", ignore_index=True)

    def documents(self) -> pd.DataFrame:
        """One line for each document: its set, and every score of it."""
        import pandas as pd

        columns: dict[str, np.ndarray] = {}
        for (by, score), sets in self.scores.items():
            columns[score if by in (OWN, SOFTMAX) else f"{score}, {by}"] = np.concatenate(list(sets.values()))
        names = np.repeat(list(self.sizes), list(self.sizes.values()))
        return pd.DataFrame({"set": names, **columns})

    def differences(self) -> pd.DataFrame:
        """One line for each margin: difference of AUROCs with its 95 % interval."""
        import pandas as pd

        lines = [{"margin": name, "auroc": v, "from": a, "to": b} for name, (v, a, b) in self.margins.items()]
        return pd.DataFrame(lines, columns=["margin", "auroc", "from", "to"])

    def panels(self) -> tuple[Panel, ...]:
        """What is shown of it: figures beside their controls, margins, every AUROC."""
        left_out = tuple(("", name, why) for name, why in self.left_out.items())
        return (
            Figures({"": self.figures}, (self._head(),), left_out),
            Table("AUROC of the profile distance less that of others", self.differences()),
            Table("AUROC of every score", self.to_frame()),
        )

    def _head(self) -> str:
        sizes = ", ".join(f"{name} {n:,}" for name, n in self.sizes.items())
        profiles = f"{len(self.classes)} class profiles"
        return f"AUROC of outside against inside; {sizes}; {profiles}; sets {self.key[:12]}"

    __repr__ = headline

    def __str__(self) -> str:
        lines = [f"OOD: {self._head()}"]
        lines += [f"  {name}: {figure}" for name, figure in self.figures.items()]
        lines += [f"  {name}: {v:+.3f} [{a:+.3f}, {b:+.3f}]" for name, (v, a, b) in self.margins.items()]
        return "\n".join([*lines, *(f"  left out: {name}: {why}" for name, why in self.left_out.items())])


INSIDE = "inside"


@checked(
    outside=mapping, sae=maybe(full_sae), subject=maybe(a_subject), labels=maybe(sequence), mass=real(0),
    seed=an_integer(), batch_size=an_integer(1),
)  # fmt: skip
def ood(
    reference: Any,
    inside: Any,
    outside: Mapping[str, Any],
    sae: SAE | None = None,
    subject: Subject | None = None,
    *,
    labels: Sequence[Any] | None = None,
    mass: float = 0.9,
    seed: int = 0,
    batch_size: int = 16,
) -> OOD:
    """AUROC with which scores of single images tell kinds that are not of the reference from held-out ones
    that are::

        reconstruction error   sum |x - x_hat|^2 / sum |x - mean|^2
        tail energy            1 - max_c of the share of energy on the latents that hold `mass` of class c's
        profile distance       1 - max_c cos(energies, mean energies of class c)
        max softmax            1 - the largest class probability

    The last is of the subject alone, and the baseline (Hendrycks and Gimpel 2017). The text of the paper that
    says that SAEs tell such images (Olson et al., arXiv 2508.11277) does not give its score: these are ours.
    Not of images alone: of whatever documents a subject reads.

    Args:
        reference: Images of the known classes, by which profiles are made; activations where there is no
            subject; or codes of `document_codes`.
        inside: Other images of these classes.
        outside: Name of each kind -> its images.
        sae: By which all are read; none with codes.
        subject: That reads them; none with codes or activations.
        labels: Class of each image of the reference; None: the first of its own.
        mass: Share of a class's mean energy that its profile's latents hold.
        seed: Of the draws.
        batch_size: Images of a pass.

    Returns:
        Every score of every image, and AUROCs beside controls.

    Raises:
        ConfigError: Nothing outside, a kind that is called "inside", a mass outside of 0..1, nothing to read
            them by, or codes by different SAEs.
        CorpusError: An image of the reference has no label, or fewer than two images are in a set.
    """
    if not 0 < mass < 1:
        message = f"mass must be between 0 and 1. Got {mass:g}. Pass mass=0.9."
        raise ConfigError(message)
    if not outside or INSIDE in outside:
        got = "none" if not outside else f"one called {INSIDE!r}"
        message = f"outside must be images of some kinds, by name. Got {got}. Pass {{'noise': images}}."
        raise ConfigError(message)
    options: dict[str, Any] = {"batch_size": batch_size, "seed": seed}
    known = read("reference", reference, sae, subject, None, **options, labels=labels)
    names = known.names(labels if isinstance(reference, DocumentCodes) else None)
    need_labels(known, names, "A class profile")
    sets = {INSIDE: read("inside", inside, sae, subject, known, **options, outputs=subject is not None)}
    for name, given in outside.items():
        told = {**options, "outputs": subject is not None}
        sets[str(name)] = read(f"outside[{name!r}]", given, sae, subject, known, **told)
    for name, each in sets.items():
        if len(each) < 2:
            message = f"{name} must hold two documents or more. Got {len(each)}. Pass more."
            raise CorpusError(message)
    scores, left_out = _scores(known, names, sets, mass)
    return OOD(
        scores=scores,
        figures=_figures(scores, [name for name in sets if name != INSIDE], seed),
        margins=_margins(scores, [name for name in sets if name != INSIDE], seed),
        sizes={name: len(each) for name, each in sets.items()},
        classes=tuple(np.unique(names).tolist()),
        key=_key(known, *sets.values()),
        left_out=left_out,
    )


def _scores(
    known: DocumentCodes, names: np.ndarray, sets: Mapping[str, DocumentCodes], mass: float
) -> tuple[dict[tuple[str, str], dict[str, np.ndarray]], dict[str, str]]:
    found: dict[tuple[str, str], dict[str, np.ndarray]] = {}
    for arm in (OWN, UNTRAINED, NEURONS):
        profiles = _profiles(known.arms[arm], names)
        if arm != NEURONS:
            found[arm, ERROR] = {name: each.errors[arm] for name, each in sets.items()}
        found[arm, TAIL] = {name: tail_energy(each.arms[arm], profiles, mass) for name, each in sets.items()}
        found[arm, PROFILE] = {
            name: profile_distance(each.arms[arm], profiles) for name, each in sets.items()
        }
    left_out = {}
    for each in sets.values():
        left_out |= each.left_out
    told = {name: each.confidence for name, each in sets.items()}
    if all(each is not None for each in told.values()):
        found[SOFTMAX, SOFTMAX] = {name: 1 - each for name, each in told.items() if each is not None}
    elif not left_out:
        left_out = {SOFTMAX: "the class probabilities were not read: document_codes(..., outputs=True)"}
    return found, left_out


def _profiles(energies: Energies, names: np.ndarray) -> np.ndarray:
    """float64 [classes width]: the mean of each class."""
    classes, at = np.unique(names, return_inverse=True)
    hot = np.eye(len(classes))[at]
    return np.asarray(energies.T @ hot).T.astype(np.float64) / hot.sum(0)[:, None]


def profile_distance(energies: Energies, profiles: np.ndarray) -> np.ndarray:
    """float64 [n]: 1 - the largest cosine with a profile [classes width]; 1 of a document without energy.

    Args:
        energies: [n width].
        profiles: [classes width].
    """
    size = np.sqrt(np.asarray(energies.multiply(energies).sum(1), np.float64).ravel())
    length = np.linalg.norm(profiles, axis=1)
    unit = profiles / np.where(length > 0, length, 1)[:, None]
    product = np.asarray(energies @ unit.T)
    return 1 - (product / np.where(size > 0, size, 1)[:, None]).max(1)


def tail_energy(energies: Energies, profiles: np.ndarray, mass: float) -> np.ndarray:
    """float64 [n]: 1 - the largest share of a document's energy that lies on the latents of one class, the
    fewest that hold `mass` of its mean energy; 1 of a document without energy.

    Args:
        energies: [n width].
        profiles: [classes width].
        mass: Between 0 and 1.
    """
    order = np.argsort(-profiles, axis=1, kind="stable")
    held = np.cumsum(np.take_along_axis(profiles, order, 1), 1)
    before = np.concatenate([np.zeros((len(held), 1)), held[:, :-1]], 1)
    of = np.zeros_like(profiles)
    np.put_along_axis(of, order, (before < mass * held[:, -1:]) * 1.0, 1)
    total = np.asarray(energies.sum(1), np.float64).ravel()
    return 1 - (np.asarray(energies @ of.T) / np.where(total > 0, total, 1)[:, None]).max(1)


def _figures(scores: Any, kinds: list[str], seed: int) -> dict[str, Beside]:
    found = {}
    for kind in kinds:
        for score in (PROFILE, TAIL, ERROR):
            own, control = (_judged(scores[arm, score], kind, seed) for arm in (OWN, UNTRAINED))
            also = [Control(f"{NEURONS}, {PROFILE}", *_judged(scores[NEURONS, PROFILE], kind, seed))]
            if (SOFTMAX, SOFTMAX) in scores:
                also.insert(0, Control(SOFTMAX, *_judged(scores[SOFTMAX, SOFTMAX], kind, seed)))
            n = len(scores[OWN, score][kind]) + len(scores[OWN, score][INSIDE])
            found[f"{kind}: {score}"] = Beside(
                own[0], control[0], own[1], control[1], n, UNTRAINED, tuple(also)
            )
    return found


def _judged(sets: Mapping[str, np.ndarray], kind: str, seed: int) -> tuple[float, tuple[float, float]]:
    return auroc(sets[kind], sets[INSIDE]), auroc_interval(sets[kind], sets[INSIDE], seed)


def _margins(scores: Any, kinds: list[str], seed: int) -> dict[str, tuple[float, float, float]]:
    others = {ERROR: (OWN, ERROR), UNTRAINED: (UNTRAINED, PROFILE), NEURONS: (NEURONS, PROFILE)}
    if (SOFTMAX, SOFTMAX) in scores:
        others = {SOFTMAX: (SOFTMAX, SOFTMAX), **others}
    found, tail = {}, 50 * (1 - CONFIDENCE)
    for kind in kinds:
        own = scores[OWN, PROFILE]
        rng = np.random.default_rng(seed)
        sizes = (len(own[kind]), len(own[INSIDE]))
        drawn = [rng.multinomial(n, np.full(n, 1 / n), size=DRAWS) for n in sizes]
        areas_of = areas(own[kind], own[INSIDE], *drawn)
        value = auroc(own[kind], own[INSIDE])
        for name, key in others.items():
            other = scores[key]
            gap = areas_of - areas(other[kind], other[INSIDE], *drawn)
            low, high = np.percentile(gap, [tail, 100 - tail])
            less = value - auroc(other[kind], other[INSIDE])
            found[f"{kind}: {PROFILE} less {name}"] = (less, float(low), float(high))
    return found


def _key(*sets: DocumentCodes) -> str:
    digest = hashlib.sha256()
    for each in sets:
        own = each.arms[OWN]
        digest.update(repr((each.ids, own.shape)).encode() + own.indices.tobytes() + own.data.tobytes())
    return digest.hexdigest()


__all__ = ["OOD", "ood", "profile_distance", "tail_energy"]
