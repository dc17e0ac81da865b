"""Dictionaries that are made of known attributes instead of being learnt without them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from saelab.analysis.controls import random_directions
from saelab.arguments import checked, floats, is_listed, mapping, one_of
from saelab.types import ConfigError, ShapeError, check_finite, short

if TYPE_CHECKING:
    import pandas as pd

Method = Literal["mean", "mse"]
Column = Sequence[Any] | np.ndarray


@dataclass(frozen=True, eq=False)
class SupervisedDictionary:
    """A direction for each value of each attribute. Made by `supervised_dictionary`.

    An activation whose attributes i have the values v_i stands as

        a_hat = mean + sum_i u[i, v_i]
    """

    mean: Tensor
    """[width]"""
    values: Mapping[str, tuple[str, ...]]
    """attribute -> its values"""
    vectors: Mapping[str, Tensor]
    """attribute -> [values width], u[i, v], in units of the activations"""
    method: Method

    def to_frame(self) -> pd.DataFrame:
        """One line for each direction: attribute, value, norm in units of the activations."""
        import pandas as pd

        lines = [
            (attribute, value, float(vector.norm()))
            for attribute, values in self.values.items()
            for value, vector in zip(values, self.vectors[attribute], strict=True)
        ]
        return pd.DataFrame(lines, columns=["attribute", "value", "norm"])

    def reconstruct(self, attributes: Mapping[str, Column]) -> Tensor:
        """What activations with these attributes are by the dictionary.

        Args:
            attributes: Attribute -> values [n], for all of the dictionary's attributes.

        Returns:
            [n width].

        Raises:
            ConfigError: An attribute is missing, or a value is none that the dictionary knows.
        """
        missing = [key for key in self.values if key not in attributes]
        if missing:
            message = (
                f"Attributes must be those of the dictionary, {', '.join(self.values)}. Got none of "
                f"{', '.join(missing)}. Pass them all."
            )
            raise ConfigError(message)
        return self.mean + torch.stack([self.vectors_of(key, attributes[key]) for key in self.values]).sum(0)

    def edited(self, acts: Tensor, attribute: str, old: Column, new: Column) -> Tensor:
        """Activations with other values of an attribute: a - u[i, old] + u[i, new].

        Args:
            acts: [n width].
            attribute: Its name.
            old: Values [n] that they have.
            new: Values [n] that they get.

        Raises:
            ConfigError: The dictionary has no such attribute, or value.
        """
        return acts - self.vectors_of(attribute, old) + self.vectors_of(attribute, new)

    def vectors_of(self, attribute: str, values: Column) -> Tensor:
        """The directions of values of an attribute.

        Args:
            attribute: Its name.
            values: [n].

        Returns:
            [n width].

        Raises:
            ConfigError: The dictionary has no such attribute, or value.
        """
        if attribute not in self.values:
            known = ", ".join(self.values)
            message = f"An attribute must be one of {known}. Got {short(attribute)}. Pass one of them."
            raise ConfigError(message)
        place = {value: i for i, value in enumerate(self.values[attribute])}
        unknown = sorted({str(v) for v in values} - place.keys())
        if unknown:
            message = (
                f"Values of {attribute!r} must be among those that the dictionary was made of, "
                f"{len(place)}. Got {short(unknown, 80)} besides. Make it of prompts that have them."
            )
            raise ConfigError(message)
        return self.vectors[attribute][[place[str(value)] for value in values]]

    def random(self, seed: int = 0) -> SupervisedDictionary:
        """The control: random directions, each as long as the one that it replaces.

        Args:
            seed: Of the draw.
        """
        vectors = {}
        for i, (key, old) in enumerate(self.vectors.items()):
            drawn = torch.from_numpy(random_directions(*old.shape, seed=seed + i)).to(old)
            vectors[key] = drawn * old.norm(dim=1, keepdim=True)
        return replace(self, vectors=vectors)

    def __repr__(self) -> str:
        each = ", ".join(f"{key} ({len(values)} values)" for key, values in self.values.items())
        return f"SupervisedDictionary({self.method}: {each}; width {len(self.mean)})"


@checked(acts=floats, attributes=mapping, method=one_of(*get_args(Method)))
def supervised_dictionary(
    acts: Tensor, attributes: Mapping[str, Column], method: Method = "mse"
) -> SupervisedDictionary:
    """A dictionary of named attributes of activations (Makelov et al., arXiv 2405.08366, section 3)::

        "mean":  u[i, v] = mean of a over rows whose attribute i is v  -  mean of a
        "mse":   the u of least squares, min sum |a - mean - sum_i u[i, v_i]|^2, of least norm

    The two are the same where attributes are independent and balanced. Where they go together, a mean holds
    what belongs to the other attribute too, and least squares takes it apart.

    Args:
        acts: [n width], activations at one place.
        attributes: Attribute -> its value in each row [n]; values are compared as texts.
        method: Which.

    Returns:
        A direction for each value of each attribute.

    Raises:
        ConfigError: There is no attribute, one has a single value, or is no list.
        ShapeError: acts is no matrix, or an attribute has another length.
        NonFiniteError: acts has NaN or infinity.
    """
    if acts.ndim != 2 or not len(acts):
        message = (
            f"acts must be [n width]. Got {list(acts.shape)}. Pass activations at one place, a row each."
        )
        raise ShapeError(message)
    check_finite(acts, "Activations")
    if not attributes:
        message = "A supervised dictionary needs attributes. Got none. Pass e.g. {'name': [...]}."
        raise ConfigError(message)
    hot, values = [], {}
    for key, column in attributes.items():
        if not is_listed(column):
            message = (
                f"Values of {key!r} must be a list. Got {type(column).__name__}: {short(column, 80)}. Pass "
                "one for each row."
            )
            raise ConfigError(message)
        texts = np.array([str(value) for value in column])
        if len(texts) != len(acts):
            message = (
                f"An attribute must have a value for each of the {len(acts)} rows. Got {len(texts)} of "
                f"{key!r}. Pass as many."
            )
            raise ShapeError(message)
        found, at = np.unique(texts, return_inverse=True)
        if len(found) < 2:
            message = (
                f"An attribute must have two values or more. Got {str(found[0])!r} alone of {key!r}. Leave "
                "it out, or add rows with another."
            )
            raise ConfigError(message)
        values[str(key)] = tuple(map(str, found))
        hot.append(np.eye(len(found))[at])
    rows = acts.detach().double().cpu().numpy()
    centred = rows - rows.mean(0)
    if method == "mean":
        solved = np.concatenate([(each.T @ centred) / each.sum(0)[:, None] for each in hot])
    else:
        solved = np.linalg.lstsq(np.concatenate(hot, axis=1), centred, rcond=None)[0]
    parts = np.split(solved, np.cumsum([each.shape[1] for each in hot])[:-1])
    vectors = {key: torch.from_numpy(part).float() for key, part in zip(values, parts, strict=True)}
    return SupervisedDictionary(torch.from_numpy(rows.mean(0)).float(), values, vectors, method)


__all__ = ["Method", "SupervisedDictionary", "supervised_dictionary"]
