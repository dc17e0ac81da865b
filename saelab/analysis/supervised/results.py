"""What dictionaries are worth beside supervised ones, in a form that prints and that pandas takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from saelab.analysis.controls import Beside, Measured, Sums, against, with_interval
from saelab.analysis.steering.results import Figure
from saelab.analysis.supervised.tasks import Location
from saelab.types import ConfigError, nearest

if TYPE_CHECKING:
    import pandas as pd

COUNTS = 0.6
"""An attribute counts at a location where no edit at all agrees with the true one at most so often."""
SUPERVISED = "supervised, mse"
NO_EDIT, RANDOM = "no edit", "random directions"
SUPERVISED_EDIT, AGNOSTIC, AWARE = "supervised", "agnostic", "aware"


@dataclass(frozen=True, eq=False)
class Edited:
    """What an edit of one attribute did to each prompt."""

    attribute: str
    how: str
    """supervised: its direction is exchanged; agnostic: greedily, by distance; aware: by F1 of latents"""
    k: int
    """latents, or directions, that might be edited"""
    agrees: np.ndarray
    """bool [n]: whether the likeliest token is that of the true activations of the twin"""
    weight: np.ndarray
    """float64 [n]: share of the reconstruction that was taken out, mean over locations"""
    latents: np.ndarray
    """float64 [n]: how many were edited, mean over locations"""


@dataclass(frozen=True, eq=False)
class Stood:
    """What a dictionary is worth in the place of activations, and for edits of them."""

    kind: str
    """supervised, SAE or control"""
    rebuilt: np.ndarray
    """float64 [n]: score of each prompt with reconstructions in the place of activations"""
    removed: np.ndarray
    """float64 [n]: with mean + activation - reconstruction"""
    fvu: float
    """of the reconstructions, over prompts and locations"""
    l0: float
    """latents != 0 of a prompt, mean over locations; of supervised ones the attributes"""
    edits: tuple[Edited, ...]
    """of attributes that count"""
    interpretable: Mapping[str, float] = field(default_factory=dict)
    """of SAEs: latents that fire; share of them whose F1 for what they stand for is .8 or more on the test
    prompts; sufficiency and necessity of those with .6 or more"""

    def edit(self, attribute: str, how: str, k: int) -> Edited | None:
        """One of the edits, or None.

        Args:
            attribute: Which attribute.
            how: See `Edited`.
            k: Latents.
        """
        found = [e for e in self.edits if (e.attribute, e.how, e.k) == (attribute, how, k)]
        return found[0] if found else None


@dataclass(frozen=True, eq=False)
class AgainstSupervised:
    """Dictionaries at some locations of a task, beside supervised ones and controls. Made by
    `against_supervised`; all figures are of test prompts.

        sufficiency = 1 - |score(reconstructed) - score(clean)| / |score(clean) - score(mean-ablated)|
        necessity   = 1 - |score(removed) - score(mean-ablated)| / |score(clean) - score(mean-ablated)|

    with scores that are means over prompts. Too high a score counts as much as one that is as much too low:
    the published program takes the ratio of absolute scores, by which more is always better.
    """

    locations: tuple[Location, ...]
    clean: np.ndarray
    """float64 [n]: score of each prompt as it is"""
    ablated: np.ndarray
    """float64 [n]: with the mean at the locations"""
    unedited: Mapping[str, np.ndarray]
    """attribute -> bool [n]: whether the prompt as it is has the likeliest token that the true activations of
    its twin give it"""
    dictionaries: Mapping[str, Stood]
    """by name: supervised ones, SAEs, controls"""
    f1: pd.DataFrame
    """a row for each SAE and value of an attribute: the latent of the highest F1 on the training prompts, its
    F1 there and on the test prompts, and that of values shuffled over prompts"""
    seed: int = 0

    @property
    def n(self) -> int:
        """Prompts."""
        return len(self.clean)

    @property
    def counted(self) -> tuple[str, ...]:
        """Attributes whose edits count here: without an edit the answer agrees at most COUNTS (.6) often with
        what the true edit gives. Of others an edit says nothing."""
        return tuple(key for key, same in self.unedited.items() if same.mean() <= COUNTS)

    def sufficiency(self, name: str) -> Figure:
        """How much of the score reconstructions keep; 1 is all of it, mean ablation is 0.

        Args:
            name: Of the dictionary.

        Raises:
            ConfigError: There is none of that name.
        """
        return self._share("clean", self.of(name).rebuilt)

    def necessity(self, name: str) -> Figure:
        """How much of the score goes with what is reconstructed; 1 is all of it.

        Args:
            name: Of the dictionary.

        Raises:
            ConfigError: There is none of that name.
        """
        return self._share("ablated", self.of(name).removed)

    def accuracy(self, name: str, attribute: str, how: str, k: int) -> Figure | None:
        """Share of prompts whose likeliest token after an edit is that of the twin's true activations.

        Args:
            name: Of the dictionary, or "no edit".
            attribute: Which attribute.
            how: See `Edited`.
            k: Latents that may be edited.

        Returns:
            None where the dictionary has no such edit.

        Raises:
            ConfigError: There is no dictionary, or attribute, of that name.
        """
        if attribute not in self.unedited:
            known = ", ".join(self.unedited)
            message = f"An attribute must be one of {known}. Got {attribute!r}. Pass one of them."
            raise ConfigError(message)
        if name == NO_EDIT:
            return self._mean(self.unedited[attribute])
        edit = self.of(name).edit(attribute, how, k)
        return None if edit is None else self._mean(edit.agrees)

    def of(self, name: str) -> Stood:
        """A dictionary.

        Args:
            name: Of `dictionaries`.

        Raises:
            ConfigError: There is none.
        """
        if name not in self.dictionaries:
            message = (
                f"A dictionary must be one of {', '.join(self.dictionaries)}. Got {name!r}. "
                f"{nearest(str(name), self.dictionaries)}Pass one of them."
            )
            raise ConfigError(message)
        return self.dictionaries[name]

    def beside(self, name: str, *controls: str) -> dict[str, Beside]:
        """Every figure of a dictionary beside those of others: "sufficiency", "necessity", and of attributes
        that count "S edit, agnostic, k=2". A supervised dictionary has one edit, which stands beside all.

        Args:
            name: Of the dictionary.
            controls: Of the others, the first of which is one of `dictionaries`; "no edit" has edits alone.

        Raises:
            ConfigError: There is none of these names, or no control.
        """
        if not controls or controls[0] == NO_EDIT:
            message = f"A figure stands beside a dictionary. Got {controls or 'none'}. Pass its name first."
            raise ConfigError(message)
        found = {}
        for measure in ("sufficiency", "necessity"):
            each = getattr(self, measure)
            found[measure] = _beside(each(name), {c: each(c) for c in controls if c != NO_EDIT})
        for edit in self.of(name).edits:
            asked = edit.attribute, edit.how, edit.k
            others = {
                c: self.accuracy(c, *asked) or self.accuracy(c, edit.attribute, SUPERVISED_EDIT, 1)
                for c in controls
            }
            key = f"{edit.attribute} edit, {edit.how}, k={edit.k}"
            known = {c: figure for c, figure in others.items() if figure is not None}
            found[key] = _beside(self._mean(edit.agrees), known)
        return found

    def f1_beside(self, name: str, attribute: str, control: str) -> Beside:
        """How well single latents tell the values of an attribute: the mean over values of the F1, on test
        prompts, of the latent that told each best on the training prompts; beside that of another dictionary,
        and of values that were shuffled over prompts. Intervals draw the values again.

        Args:
            name: Of an SAE.
            attribute: Which.
            control: Of another, as "NAME, untrained".

        Raises:
            ConfigError: There is none of these names.
        """
        for each in (name, control):
            self.of(each)
        table = self.f1[self.f1["attribute"] == attribute]
        one, other = (table[table["dictionary"] == each] for each in (name, control))
        if not len(one) or not len(other):
            message = f"F1 is of latents, and of {', '.join(self.unedited)}. Got {name!r}, {control!r} and "
            message += f"{attribute!r}. Pass an SAE, its control and one of these."
            raise ConfigError(message)
        columns = one["f1"], other["f1"], one["shuffled f1"]
        figures = [self._mean(np.asarray(column)) for column in columns]
        return _beside(figures[0], {control: figures[1], "shuffled labels": figures[2]})

    def to_frame(self) -> pd.DataFrame:
        """A row a figure: dictionary, kind, measure, attribute, how, k, value, low, high; of edits also what
        no edit gives, the weight that was removed, that of the supervised edit
        and how many latents were edited."""
        import pandas as pd

        rows: list[dict[str, Any]] = []
        for name, each in self.dictionaries.items():
            of = {"dictionary": name, "kind": each.kind}
            for measure in ("sufficiency", "necessity"):
                rows.append(of | {"measure": measure} | _told(getattr(self, measure)(name)))
            rows.append(of | {"measure": "fvu", "value": each.fvu})
            rows.append(of | {"measure": "l0", "value": each.l0})
            rows += [of | {"measure": key, "value": value} for key, value in each.interpretable.items()]
            for edit in each.edits:
                supervised = self.of(SUPERVISED).edit(edit.attribute, SUPERVISED_EDIT, 1)
                rows.append(
                    of | {"measure": "edit", "attribute": edit.attribute, "how": edit.how, "k": edit.k}
                    | _told(self._mean(edit.agrees))
                    | {"no edit": float(self.unedited[edit.attribute].mean()),
                       "weight": float(edit.weight.mean()),
                       "supervised weight": float("nan") if supervised is None
                       else float(supervised.weight.mean()),
                       "latents": float(edit.latents.mean())}
                )  # fmt: skip
        return pd.DataFrame(rows)

    def __str__(self) -> str:
        where = ", ".join(map(str, self.locations))
        lines = [
            f"{where}: {self.n} prompts, score {self.clean.mean():.3g} clean, {self.ablated.mean():.3g} "
            "mean-ablated",
            "  without an edit: "
            + "; ".join(
                f"{key} {same.mean():.3f}{'' if key in self.counted else ' (does not count)'}"
                for key, same in self.unedited.items()
            ),
        ]
        for name, each in self.dictionaries.items():
            told = [f"sufficiency {self.sufficiency(name)}", f"necessity {self.necessity(name)}"]
            told += [
                f"{edit.attribute} edit, {edit.how}, k={edit.k} {self._mean(edit.agrees)}"
                for edit in each.edits
            ]
            lines.append(f"  {name}: {'; '.join(told)}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        names = ", ".join(self.dictionaries)
        return f"AgainstSupervised({self.n} prompts; {names}; counted: {', '.join(self.counted) or 'none'})"

    def _share(self, towards: str, score: np.ndarray) -> Figure:
        def measured(of: Mapping[str, Any]) -> Any:
            return 1 - np.abs(of["score"] - of[towards]) / np.abs(of["clean"] - of["ablated"])

        return self._figure(measured, score=score, clean=self.clean, ablated=self.ablated)

    def _mean(self, values: np.ndarray) -> Figure:
        return self._figure(lambda of: of["value"] / of["n"], value=values, n=np.ones(len(values)))

    def _figure(self, measure: Callable[[Mapping[str, Any]], Any], **values: np.ndarray) -> Figure:
        sums = Sums()
        n = len(next(iter(values.values())))
        sums.add(np.arange(n), **values)
        return Figure(*with_interval(sums, measure, self.seed), n)


def _beside(figure: Figure, controls: Mapping[str, Figure]) -> Beside:
    told = {what: Measured(each.value, each.interval) for what, each in controls.items()}
    return against(Measured(figure.value, figure.interval), told, figure.n)


def _told(figure: Figure) -> dict[str, float]:
    return {"value": figure.value, "low": figure.interval[0], "high": figure.interval[1]}


__all__ = [
    "AGNOSTIC", "AWARE", "COUNTS", "NO_EDIT", "RANDOM", "SUPERVISED", "SUPERVISED_EDIT", "AgainstSupervised",
    "Edited", "Stood",
]  # fmt: skip
