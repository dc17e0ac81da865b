"""How well latents say which value an attribute has: F1 of firing against having it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from saelab.arguments import checked, matrix, sequence
from saelab.types import ShapeError

if TYPE_CHECKING:
    import pandas as pd

UNION = 10
"""Values that a latent may stand for together, at most."""


class AttributeF1(NamedTuple):
    """F1 of each latent for each value of an attribute."""

    values: tuple[str, ...]
    f1: np.ndarray
    """float64 [values d_sae], from 0 to 1"""

    def to_frame(self) -> pd.DataFrame:
        """One line for each value: value, the latent of the largest F1, and that F1."""
        import pandas as pd

        return pd.DataFrame({"value": self.values, "latent": self.f1.argmax(1), "F1": self.f1.max(1)})


class Description(NamedTuple):
    """What a latent stands for best: one attribute, or two together, and some of its values."""

    attribute: str
    values: tuple[str, ...]
    f1: float


@checked(codes=matrix, values=sequence)
def attribute_f1(codes: np.ndarray, values: Sequence[Any] | np.ndarray) -> AttributeF1:
    """F1 of "the latent fires" (its code is not 0) as a sign of "the attribute has this value"::

        F1 = 2 |fires and has it| / (|fires| + |has it|)

    0 for a latent that never fires (Makelov et al., arXiv 2405.08366, section 5).

    Args:
        codes: [n d_sae].
        values: The attribute's value in each row [n]; compared as texts.

    Raises:
        ShapeError: There is not a value for each row, or codes is no matrix.
    """
    if len(values) != len(codes):
        message = f"There must be a value for each of the {len(codes)} rows. Got {len(values)}. Pass as many."
        raise ShapeError(message)
    names, at = np.unique([str(value) for value in values], return_inverse=True)
    both, having, firing = _counts(codes != 0, at, len(names))
    return AttributeF1(tuple(map(str, names)), 2 * both / (having[:, None] + firing))


def described(
    codes: np.ndarray, attributes: Mapping[str, np.ndarray], most: int = UNION
) -> list[Description]:
    """What each latent stands for best: a value, or up to some values of one attribute; or such a value
    together with that of an attribute of two values.

    Of one latent the values are taken in the order of the share of their rows in which it fires, as many as
    make the largest F1.

    Args:
        codes: [n d_sae].
        attributes: Attribute -> str [n].
        most: Values.

    Returns:
        One for each latent.
    """
    best = [Description("", (), 0.0)] * codes.shape[1]
    for key, column in crossed(attributes).items():
        names, at = np.unique(column, return_inverse=True)
        both, having, firing = _counts(codes != 0, at, len(names))
        order = np.argsort(-both / having[:, None], axis=0, kind="stable")[:most]
        f1 = 2 * np.take_along_axis(both, order, 0).cumsum(0) / (having[order].cumsum(0) + firing)
        upto, top = f1.argmax(0), f1.max(0)
        for j in np.flatnonzero(top > [each.f1 for each in best]):
            chosen = tuple(str(names[i]) for i in order[: upto[j] + 1, j])
            best[j] = Description(key, chosen, float(top[j]))
    return best


def f1_of(codes: np.ndarray, attributes: Mapping[str, np.ndarray], of: Sequence[Description]) -> np.ndarray:
    """F1 of latents for what they stand for, on other rows.

    Args:
        codes: [n d_sae].
        attributes: Attribute -> str [n].
        of: What each stands for, as `described` says.

    Returns:
        float64 [d_sae].
    """
    columns, on = crossed(attributes), codes != 0
    out = np.zeros(len(of))
    for j, each in enumerate(of):
        if each.values:
            has = np.isin(columns[each.attribute], each.values)
            out[j] = 2 * (has & on[:, j]).sum() / max(1, has.sum() + on[:, j].sum())
    return out


def crossed(attributes: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The attributes, and each of them together with each that has two values: "IO & Pos".

    Args:
        attributes: Attribute -> str [n].
    """
    found = dict(attributes)
    for key, column in attributes.items():
        for other, two in attributes.items():
            if other != key and len(np.unique(two)) == 2:
                found[f"{key} & {other}"] = np.char.add(np.char.add(column, " & "), two)
    return found


def _counts(on: np.ndarray, at: np.ndarray, n_values: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(float64 [values d_sae]: rows that have a value and where a latent fires; [values]: rows that have it;
    [d_sae]: rows where it fires)."""
    hot = np.eye(n_values)[at]
    return hot.T @ on.astype(np.float64), hot.sum(0), on.sum(0).astype(np.float64)


__all__ = ["AttributeF1", "Description", "attribute_f1", "crossed", "described", "f1_of"]
