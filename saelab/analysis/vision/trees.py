"""Trees of classes: who is a kind of what, and the lowest kind that several are of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from saelab.arguments import is_listed
from saelab.types import ConfigError, short


@dataclass(frozen=True, eq=False)
class Tree:
    """Names, each a kind of another: WordNet's hypernyms, or any other hierarchy with one root."""

    names: tuple[str, ...]
    """a parent stands before its children; the root is the first"""
    parents: np.ndarray
    """int64 [nodes]: the number of each one's parent; the root's is its own"""

    @classmethod
    def of(cls, given: Any) -> Tree:
        """A tree out of nested mappings, whose leaves are empty or listed, or out of child -> parent.

        >>> Tree.of({"thing": {"animal": ["cat", "dog"], "vehicle": ["car"]}}).heights.tolist()
        [2, 1, 1, 0, 0, 0]
        >>> Tree.of({"cat": "animal", "dog": "animal"}).names
        ('animal', 'cat', 'dog')

        Args:
            given: {"thing": {"animal": ["cat", "dog"]}}, or {"cat": "animal", "animal": "thing"}, in which
                the root is a parent alone, or has None. Several roots are put below one that is called "".

        Raises:
            ConfigError: It is neither, a name is there twice, or is a kind of itself.
        """
        if isinstance(given, Tree):
            return given
        if not isinstance(given, Mapping) or not given:
            message = (
                f"A tree must be nested mappings, or child -> parent. Got {short(given)}. Pass e.g. "
                "{'thing': {'animal': ['cat', 'dog']}}."
            )
            raise ConfigError(message)
        flat = all(value is None or isinstance(value, str) for value in given.values())
        up = dict(_upwards(given)) if flat else dict(_unnested(given))
        return cls._ordered(up)

    @classmethod
    def _ordered(cls, up: dict[str, str | None]) -> Tree:
        below: dict[str | None, list[str]] = {}
        for child, parent in up.items():
            below.setdefault(parent, []).append(child)
        roots = below.get(None, [])
        names: list[str] = [""] if len(roots) > 1 else []
        names += roots
        for name in names:  # it grows
            names += below.get(name, []) if name != "" else []
        if len(names) < len(up) + (len(roots) > 1):
            lost = next(name for name in up if name not in set(names))
            message = f"No name may be a kind of itself. Got {lost!r} in a circle. Break it."
            raise ConfigError(message)
        at = {name: i for i, name in enumerate(names)}
        parents = [0 if (p := up.get(name)) is None else at[p] for name in names]
        return cls(tuple(names), np.array(parents, np.int64))

    @cached_property
    def heights(self) -> np.ndarray:
        """int64 [nodes]: edges to the farthest leaf below; 0 of leaves."""
        out = np.zeros(len(self.names), np.int64)
        for i in range(len(out) - 1, 0, -1):
            out[self.parents[i]] = max(out[self.parents[i]], out[i] + 1)
        return out

    @cached_property
    def common(self) -> np.ndarray:
        """int32 [nodes nodes]: the lowest node that both are of, or are."""
        n = len(self.names)
        out = np.zeros((n, n), np.int32)
        for i in range(1, n):  # parents stand before their children
            out[i, :i] = out[self.parents[i], :i]
            out[:i, i] = out[i, :i]
            out[i, i] = i
        return out

    def at(self, labels: Iterable[str]) -> np.ndarray:
        """The node of each label.

        Args:
            labels: Names.

        Returns:
            int64 [n].

        Raises:
            ConfigError: A label is not in the tree.
        """
        known = {name: i for i, name in enumerate(self.names)}
        given = list(labels)
        missing = sorted({label for label in given if label not in known})
        if missing:
            message = (
                f"Every label must be in the tree. Got {short(missing)}, which are not. Add them, or leave "
                "their documents out."
            )
            raise ConfigError(message)
        return np.array([known[label] for label in given], np.int64)

    def __repr__(self) -> str:
        return f"Tree({len(self.names):,} names, {int((self.heights == 0).sum()):,} leaves)"


def _upwards(given: Mapping[str, str | None]) -> Iterable[tuple[str, str | None]]:
    yield from given.items()
    yield from ((p, None) for p in dict.fromkeys(given.values()) if p is not None and p not in given)


def _unnested(given: Any) -> list[tuple[str, str | None]]:
    found: list[tuple[str, str | None]] = []
    left: list[tuple[str | None, Any]] = [(None, given)]
    while left:
        parent, below = left.pop()
        if below is None:
            continue
        if isinstance(below, Mapping):
            each = list(below.items())
        elif is_listed(below):
            each = [(name, None) for name in below]
        else:
            each = [(below, None)]
        for name, under in each:
            if not isinstance(name, str) or name == "":
                message = f"Names of a tree must be strings. Got {short(name)}. Pass str."
                raise ConfigError(message)
            found.append((name, parent))
            left.append((name, under))
    names = [name for name, _ in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        message = f"A name must be in a tree once. Got {short(twice)} more than once. Tell them apart."
        raise ConfigError(message)
    return found


__all__ = ["Tree"]
