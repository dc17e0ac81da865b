"""How the latents of two samples differ, or of one with and without edits, beside a control."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Any

import numpy as np

from saelab.analysis.predictions import ELSEWHERE
from saelab.analysis.results import Difference, SampleCodes
from saelab.analysis.samples import sample_codes
from saelab.analysis.steering.arms import AlongRandom
from saelab.arguments import a_subject, an_integer, an_sae, checked
from saelab.subjects.hooks import normalise_edits
from saelab.types import ConfigError

if TYPE_CHECKING:
    from saelab.sae import SAE
    from saelab.types import Subject

BEHIND = "itself behind a line's end"
GIVEN = "the rewording that was given"


@checked(subject=a_subject, sae=an_sae, seed=an_integer())
def sample_difference(
    subject: Subject,
    sae: SAE,
    sample: Any,
    against: Any = None,
    *,
    edits: Sequence[Any] | Any = (),
    control: Any = None,
    seed: int = 0,
) -> Difference:
    """Which latents differ most between two samples, or between one and itself with edits.

    Positions are paired where they show the same, in order (the longest common runs first, as `difflib` finds
    them); those of one sample with and without edits each with itself. With z the codes::

        difference_j = (sum over pairs |z_j(first) - z_j(second)| + sum over the others |z_j|) / places

    Args:
        subject: The model that the SAE reads.
        sae: With the hook points that it reads.
        sample: What the subject reads.
        against: Another; None with edits.
        edits: Interventions, as a subject's `run` takes them; none with `against`.
        control: What says the same as `sample`, such as a rewording: how much latents differ by that is the
            control. By default a text stands behind a line's end, which says nothing new. Of edits the
            control is another edit: as far along one random direction.
        seed: Of that direction.

    Raises:
        CorpusError: A sample is empty, or of another kind than the subject reads.
        ConfigError: There is not one of `against` and `edits`; or no control, of what is no text.
    """
    own = normalise_edits(edits)
    if (against is None) == (not own) or (own and control is not None):
        message = (
            "A difference is that against another sample, or with edits (which bring their control). Got "
            f"{'neither' if against is None and not own else 'both'}. Pass against=, or edits=[...]."
        )
        raise ConfigError(message)
    first = sample_codes(subject, sae, sample)
    if own:
        second = sample_codes(subject, sae, sample, own)
        third = sample_codes(subject, sae, sample, [AlongRandom(own, subject, seed)])
        titles, what = ("without edits", "with edits"), ELSEWHERE
    else:
        if control is None and not isinstance(sample, str):
            message = (
                "What is no text has no control of its own. Got none. Pass control=, a sample that says the "
                "same as the first."
            )
            raise ConfigError(message)
        second = sample_codes(subject, sae, against)
        third = sample_codes(subject, sae, f"\n{sample}" if control is None else control)
        titles, what = ("the first", "the second"), BEHIND if control is None else GIVEN
    pairs = paired(first, second)
    latents, size = differences(first, second, pairs)
    others, sizes = differences(first, third, paired(first, third))
    found = dict(zip(others.tolist(), sizes.tolist(), strict=True))
    beside_it = np.array([found.get(j, 0.0) for j in latents.tolist()])
    return Difference(first, second, pairs, titles, latents, size, beside_it, what)


def paired(first: SampleCodes, second: SampleCodes) -> np.ndarray:
    """int64 [m 2]: positions that show the same, in order.

    Args:
        first: A sample.
        second: Another.
    """
    if first.shown == second.shown:
        every = np.arange(len(first.shown))
        return np.stack([every, every], axis=1)
    blocks = SequenceMatcher(None, first.shown, second.shown, autojunk=False).get_matching_blocks()
    runs = [np.stack([np.arange(a, a + n), np.arange(b, b + n)], axis=1) for a, b, n in blocks if n]
    return np.concatenate(runs) if runs else np.zeros((0, 2), np.int64)


def differences(first: SampleCodes, second: SampleCodes, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Latents that differ, most first (of equals the lower), and by how much; see `sample_difference`.

    Args:
        first: A sample.
        second: Another.
        pairs: int64 [m 2]: positions that stand for each other.
    """
    counted = first.counted[pairs[:, 0]] & second.counted[pairs[:, 1]]
    place_of = []
    n = 0
    for side, result in enumerate((first, second)):
        places = np.full(len(result.shown), -1)
        places[pairs[counted, side]] = np.arange(counted.sum())
        alone = (places < 0) & result.counted
        places[alone] = counted.sum() + n + np.arange(alone.sum())
        n += int(alone.sum())
        place_of.append(places)
    n += int(counted.sum())
    places = np.concatenate([p[r.codes.row_ids()] for p, r in zip(place_of, (first, second), strict=True)])
    latents = np.concatenate([first.codes.indices, second.codes.indices]).astype(np.int64)
    values = np.concatenate([first.codes.values, -second.codes.values]).astype(np.float64)
    told = places >= 0
    keys, at = np.unique(places[told] * first.codes.d_sae + latents[told], return_inverse=True)
    each = np.abs(np.bincount(at, values[told], len(keys)))
    size = np.bincount(keys % first.codes.d_sae, each, first.codes.d_sae) / max(n, 1)
    order = np.lexsort((np.arange(len(size)), -size))
    found = order[size[order] > 0]
    return found, size[found]


__all__ = ["sample_difference"]
