"""SAEs in the place of activations, and as handles on them, beside supervised dictionaries."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from saelab.analysis.controls import shuffled, untrained
from saelab.analysis.supervised.dictionaries import SupervisedDictionary, supervised_dictionary
from saelab.analysis.supervised.edits import (
    Coded,
    aware_edit,
    coded,
    directions_of,
    greedy_edit,
    weight_of,
)
from saelab.analysis.supervised.f1 import attribute_f1, described, f1_of
from saelab.analysis.supervised.results import (
    AGNOSTIC,
    AWARE,
    COUNTS,
    RANDOM,
    SUPERVISED_EDIT,
    AgainstSupervised,
    Edited,
    Stood,
)
from saelab.analysis.supervised.tasks import (
    Acts,
    AttributeTask,
    Location,
    answers,
    locations_of,
    read_at,
    width_of,
)
from saelab.arguments import a_subject, an_integer, checked, is_listed, mapping
from saelab.config import is_integer
from saelab.sae import SAE
from saelab.types import ConfigError, ShapeError, short

if TYPE_CHECKING:
    import pandas as pd

DOES = 0.7
"""Share of the prompts that the model must get right, for a task to be one."""
CARRIES = 0.03
"""Share of the score that the mean in the place of activations must cost, for a location to be one."""
INTERPRETABLE, CLEAR = 0.6, 0.8
"""F1 from which on a latent counts as one that stands for something, and as a clear one."""


@checked(subject=a_subject, saes=mapping, seed=an_integer())
def against_supervised(
    subject: Any,
    train: AttributeTask,
    test: AttributeTask,
    at: Location | str | Sequence[Location | str],
    saes: Mapping[str, SAE | Mapping[Location, SAE]],
    *,
    k: Sequence[int] = (2, 6),
    seed: int = 0,
) -> AgainstSupervised:
    """Whether SAEs are as good at standing for activations, and at editing an attribute by few latents, as
    dictionaries that were told the attributes (Makelov, Lange & Nanda, arXiv 2405.08366).

    Of each dictionary: sufficiency and necessity (`AgainstSupervised`); edits of at most k latents towards
    the twins' activations, greedy and by what latents stand for, of each attribute that counts there (no
    edit at all agrees with the true one in at most 60 % of the prompts); the share of the reconstruction that
    edits take out; F1 of latents. All locations are written together, with edits that were made of what stood
    there before. Beside them: dictionaries of means and of least squares, random directions as long as those,
    and of each SAE an untrained one.

    Args:
        subject: A language model.
        train: Prompts that dictionaries, means and F1 are made of.
        test: Prompts of which all figures are, with templates and names that train does not have.
        at: Where: one location, or several that are written together. A name stands for its last position.
        saes: By name; where locations are several, an SAE for each. A frozen decoder (recipe option
            dictionary="frozen") is a control that one trains oneself.
        k: Latents that edits may touch, at most.
        seed: Of the controls and the draws.

    Returns:
        The figures, with 95 % intervals over prompts.

    Raises:
        ConfigError: The model does not do the task; the locations carry less than 3 % of the score; k is no
            list of integers from 1 on; an attribute has one value; a value of the test prompts is in none of
            train; an SAE is missing.
        ShapeError: An SAE has another width than the location.
        CorpusError: A prompt has no such position.
        HookError: There is no such hook point, or head.
    """
    ks = _ks(k)
    locations = locations_of(subject, at)
    for name, task in (("train", train), ("test", test)):
        if not isinstance(task, AttributeTask):
            message = f"{name} must be an AttributeTask. Got {type(task).__name__}. Pass attribute_task(...)."
            raise ConfigError(message)
    named = {name: _at_each(subject, name, given, locations) for name, given in saes.items()}
    learnt = read_at(subject, train.prompts, locations)
    bench = _Bench(subject, test, learnt, read_at(subject, test.prompts, locations))
    bench.check()
    for key in test.attributes:
        bench.add(key)
    arms: dict[str, _Arm] = {}
    for method in ("mse", "mean"):
        made = {at: supervised_dictionary(rows, train.attributes, method) for at, rows in learnt.items()}
        arms[f"supervised, {method}"] = _Supervised("supervised", bench, made)
        if method == "mse":
            random = {at: dictionary.random(seed) for at, dictionary in made.items()}
    for name, each in named.items():
        arms[name] = _Sparse("SAE", bench, each, train, ks)
        blank = {at: untrained(sae, learnt[at], seed=seed) for at, sae in each.items()}
        arms[f"{name}, untrained"] = _Sparse("control", bench, blank, train, ks)
    arms[RANDOM] = _Supervised("control", bench, random)
    return AgainstSupervised(
        locations,
        bench.clean.score,
        bench.ablated,
        bench.unedited,
        {name: bench.stood(arm) for name, arm in arms.items()},
        _f1_table({name: arm for name, arm in arms.items() if isinstance(arm, _Sparse)}, train, test, seed),
        seed,
    )


class _Bench:
    """What all dictionaries are measured on."""

    def __init__(self, subject: Any, test: AttributeTask, learnt: Acts, acts: Acts) -> None:
        self.subject, self.test, self.learnt, self.acts = subject, test, learnt, acts
        self.mean = {at: rows.mean(0) for at, rows in learnt.items()}
        self.clean = answers(subject, test)
        means = {at: mean.expand_as(acts[at]) for at, mean in self.mean.items()}
        self.ablated = answers(subject, test, means).score
        self.twins: dict[str, Acts] = {}
        self.true: dict[str, np.ndarray] = {}
        self.unedited: dict[str, np.ndarray] = {}

    def check(self) -> None:
        if self.test.accuracy < DOES:
            message = (
                f"The model must do the task: the right token likelier than the wrong one in {DOES:.0%} of "
                f"the prompts. Got {self.test.accuracy:.1%} of {len(self.test.prompts)}. Pass other prompts."
            )
            raise ConfigError(message)
        cost = 1 - self.ablated.mean() / self.clean.score.mean()
        if not abs(cost) >= CARRIES:
            message = (
                f"The locations must carry {CARRIES:.0%} of the score or more, or no dictionary can be "
                f"judged there. Got {cost:.1%} of {self.clean.score.mean():.3g} lost at "
                f"{', '.join(map(str, self.acts))} with the mean there. Look for others by "
                "activation_patching."
            )
            raise ConfigError(message)

    def add(self, attribute: str) -> None:
        """What true edits of an attribute do."""
        self.twins[attribute] = read_at(self.subject, self.test.twins[attribute], list(self.acts))
        self.true[attribute] = answers(self.subject, self.test, self.twins[attribute]).top
        self.unedited[attribute] = self.clean.top == self.true[attribute]

    def stood(self, arm: _Arm) -> Stood:
        new = arm.rebuilt()
        error = sum(float((self.acts[at] - rows).square().sum()) for at, rows in new.items())
        spread = sum(float((rows - self.mean[at]).square().sum()) for at, rows in self.acts.items())
        rebuilt, removed = self.scores(new)
        edits = [
            Edited(each.attribute, each.how, each.k,
                   answers(self.subject, self.test, each.new).top == self.true[each.attribute],
                   np.mean(each.weight, 0), np.mean(each.latents, 0))
            for attribute, same in self.unedited.items()
            if same.mean() <= COUNTS
            for each in arm.edits(attribute)
        ]  # fmt: skip
        return Stood(arm.kind, rebuilt, removed, error / spread, arm.l0(), tuple(edits), arm.interpretable())

    def scores(self, new: Acts) -> tuple[np.ndarray, np.ndarray]:
        """Scores with reconstructions, and with what they leave beside the mean."""
        left = {at: self.mean[at] + self.acts[at] - rows for at, rows in new.items()}
        return tuple(answers(self.subject, self.test, each).score for each in (new, left))  # type: ignore[return-value]


@dataclass(frozen=True)
class _Edit:
    attribute: str
    how: str
    k: int
    new: Acts
    weight: list[np.ndarray]
    latents: list[np.ndarray]


class _Arm(ABC):
    """A dictionary for each location."""

    def __init__(self, kind: str, bench: _Bench) -> None:
        self.kind, self.bench = kind, bench

    @abstractmethod
    def rebuilt(self) -> Acts: ...

    @abstractmethod
    def l0(self) -> float: ...

    @abstractmethod
    def edits(self, attribute: str) -> Iterator[_Edit]: ...

    def interpretable(self) -> dict[str, float]:
        return {}


class _Supervised(_Arm):
    def __init__(self, kind: str, bench: _Bench, made: Mapping[Location, SupervisedDictionary]) -> None:
        super().__init__(kind, bench)
        self.made = made

    def rebuilt(self) -> Acts:
        return {at: each.reconstruct(self.bench.test.attributes) for at, each in self.made.items()}

    def l0(self) -> float:
        return float(len(self.bench.test.attributes))

    def edits(self, attribute: str) -> Iterator[_Edit]:
        test = self.bench.test
        old, new = test.attributes[attribute], test.changed[attribute]
        edited, weight = {}, []
        for at, each in self.made.items():
            edited[at] = each.edited(self.bench.acts[at], attribute, old, new)
            whole = each.reconstruct(test.attributes) - each.mean
            weight.append(weight_of(each.vectors_of(attribute, old), whole))
        yield _Edit(attribute, SUPERVISED_EDIT, 1, edited, weight, [np.ones(len(old))] * len(weight))


class _Sparse(_Arm):
    def __init__(
        self, kind: str, bench: _Bench, saes: Mapping[Location, SAE], train: AttributeTask, ks: Sequence[int]
    ) -> None:
        super().__init__(kind, bench)
        self.saes, self.train, self.ks = saes, train, ks
        self.learnt = {at: coded(sae, bench.learnt[at]) for at, sae in saes.items()}
        self.here = {at: coded(sae, bench.acts[at]) for at, sae in saes.items()}
        self.directions = {at: directions_of(sae) for at, sae in saes.items()}

    def rebuilt(self) -> Acts:
        return {at: each.x_hat for at, each in self.here.items()}

    def l0(self) -> float:
        return float(np.mean([(each.codes != 0).sum(1).double().mean() for each in self.here.values()]))

    def edits(self, attribute: str) -> Iterator[_Edit]:
        twins = self.bench.twins[attribute]
        there = {at: coded(sae, twins[at]) for at, sae in self.saes.items()}
        for k in self.ks:
            made = {
                at: greedy_edit(self.bench.acts[at], twins[at], self.here[at].codes, there[at].codes,
                                self.directions[at], k)
                for at in self.saes
            }  # fmt: skip
            yield self._edit(attribute, AGNOSTIC, k, made)
        for k in self.ks:
            made = {at: self._aware(at, attribute, there[at], k) for at in self.saes}
            yield self._edit(attribute, AWARE, k, made)

    def _edit(self, attribute: str, how: str, k: int, made: Mapping[Location, Any]) -> _Edit:
        new = {at: self.bench.acts[at] + each.change for at, each in made.items()}
        parts = made.values()
        return _Edit(attribute, how, k, new, [e.weight for e in parts], [e.latents for e in parts])

    def _aware(self, at: Location, attribute: str, there: Coded, k: int) -> Any:
        test = self.bench.test
        found = attribute_f1(self.learnt[at].codes.numpy(), self.train.attributes[attribute])
        place = {value: i for i, value in enumerate(found.values)}
        table = torch.from_numpy(found.f1).float()
        old, new = (
            table[[place[v] for v in column[attribute]]] for column in (test.attributes, test.changed)
        )
        return aware_edit(self.here[at].codes, there.codes, self.directions[at], old, new, k)

    def interpretable(self) -> dict[str, float]:
        """By F1 on the training prompts; counted on those of the test."""
        alive = clear = 0
        new = {}
        for at, each in self.here.items():
            learnt, codes = self.learnt[at].codes.numpy(), each.codes.numpy()
            of = described(learnt, self.train.attributes)
            fires = (codes != 0).any(0)
            alive += int(fires.sum())
            clear += int((f1_of(codes, self.bench.test.attributes, of)[fires] >= CLEAR).sum())
            kept = torch.tensor([one.f1 >= INTERPRETABLE for one in of])
            new[at] = each.x_hat - (each.codes * ~kept) @ self.directions[at]
        rebuilt, removed = self.bench.scores(new)
        clean, ablated = self.bench.clean.score.mean(), self.bench.ablated.mean()
        gap = abs(clean - ablated)
        return {
            "latents": float(alive),
            f"share of latents with F1 >= {CLEAR}": clear / max(1, alive),
            f"sufficiency of F1 >= {INTERPRETABLE}": float(1 - abs(rebuilt.mean() - clean) / gap),
            f"necessity of F1 >= {INTERPRETABLE}": float(1 - abs(removed.mean() - ablated) / gap),
        }


def _f1_table(
    arms: Mapping[str, _Sparse], train: AttributeTask, test: AttributeTask, seed: int
) -> pd.DataFrame:
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for name, arm in arms.items():
        for at, learnt in arm.learnt.items():
            codes, here = learnt.codes.numpy(), arm.here[at].codes.numpy()
            for key, values in train.attributes.items():
                fit = attribute_f1(codes, values)
                held = attribute_f1(here, test.attributes[key])
                known = {value: i for i, value in enumerate(held.values)}
                # the control chooses by labels that are as wrong as those that it is judged by
                blind = attribute_f1(codes, shuffled(np.asarray(values), seed)).f1.argmax(1)
                other = attribute_f1(here, shuffled(np.asarray(test.attributes[key]), seed)).f1
                for i, (value, latent) in enumerate(zip(fit.values, fit.f1.argmax(1), strict=True)):
                    if value in known:
                        rows.append(
                            {"dictionary": name, "location": str(at), "attribute": key, "value": value,
                             "latent": int(latent), "f1 of training": float(fit.f1[i, latent]),
                             "f1": float(held.f1[known[value], latent]),
                             "shuffled f1": float(other[known[value], blind[i]])}
                        )  # fmt: skip
    return pd.DataFrame(rows)


def _ks(k: Any) -> list[int]:
    if not is_listed(k) or not len(list(k)) or not all(is_integer(each) and each >= 1 for each in k):
        message = f"k must be a list of integers from 1 on. Got {short(k, 80)}. Pass e.g. k=(2, 6)."
        raise ConfigError(message)
    return sorted({int(each) for each in k})


def _at_each(subject: Any, name: str, given: Any, locations: Sequence[Location]) -> dict[Location, SAE]:
    """An SAE for each location."""
    found = {locations[0]: given} if isinstance(given, SAE) and len(locations) == 1 else given
    if not isinstance(found, Mapping) or set(found) != set(locations):
        message = (
            f"There must be an SAE for each location, {', '.join(map(str, locations))}. Got "
            f"{short(given, 80)} for {name!r}. Pass {{location: sae}}."
        )
        raise ConfigError(message)
    for at, sae in found.items():
        if not isinstance(sae, SAE) or sae.config.widths or sae.config.d_out is not None:
            message = (
                f"Activations are rebuilt by SAEs of one place. Got {short(sae, 80)} for {name!r}. Pass no "
                "transcoder or crosscoder."
            )
            raise ConfigError(message)
        if sae.d_in != width_of(subject, at):
            message = (
                f"An SAE must have the width of its location, {width_of(subject, at)} at {at}. Got "
                f"{sae.d_in} of {name!r}. Pass one that was trained there."
            )
            raise ShapeError(message)
    return {at: found[at] for at in locations}


__all__ = ["CARRIES", "against_supervised"]
