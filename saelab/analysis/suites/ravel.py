"""Whether an SAE has latents of its own for each attribute of an entity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, get_args

import numpy as np

from saelab.analysis.controls import Alone, Beside, Sums, beside_each, untrained, with_interval
from saelab.analysis.disentangling.asking import Asked, Cases, Where, ask, cases_of, shares_known
from saelab.analysis.disentangling.swapping import Swapping
from saelab.analysis.probing.claims import RANDOM, UNTRAINED, Shares, halves, share
from saelab.analysis.probing.removing import one_place
from saelab.analysis.suites.registry import Found, Suite, register
from saelab.capabilities import HasLogits, HasTokens
from saelab.config import integer
from saelab.corpora.facts import as_facts, scene_facts
from saelab.harvesting.batches import check_hooks
from saelab.types import ConfigError, short

if TYPE_CHECKING:
    from saelab.analysis.sources import Ground
    from saelab.sae import SAE

NO_EDIT = "no edit"
ALL, ACTIVATIONS = "all latents", "activations"
ALL_UNTRAINED = f"{ALL}, {UNTRAINED}"
CARRIES = 0.03
"""Share of answers that must follow the source where activations themselves are swapped."""
LEAST = 4
"""Entities on either side of which the model knows an attribute, without which it is left out."""
DRAWS = 2
"""Of random latents."""


@register("ravel")
@dataclass(frozen=True)
class RAVEL(Suite):
    """Attributes of entities: do latents that carry one of them carry it alone?

    Two entities of which the model knows an attribute are asked for it by the same prompt. At the tokens of
    the entity the codes of an attribute's latents are given from one (the source) to the other (the base),
    x' = x + decode(z') - decode(z): `cause` is how often the answer then is the source's, where that
    attribute is asked for; `isolation` how often it stays the base's, where another one is; `disentangled`
    their mean; all means over attributes (Huang et al. 2024, arXiv 2402.17700, as SAEBench measures it). An
    attribute's latents are chosen by a mask that is learnt on other entities than those that judge.

    Beside them stand an untrained SAE, whose mask is learnt alike; as many latents at random, of those that
    are ever on there; and no edit. `cause of all latents` swaps every code: the most that this SAE's
    reconstruction carries there. `cause of activations` swaps activations themselves. SAEBench leaves the
    base's error away (`error=False`).

    Attributes:
        facts: Entity, attribute, prompt and answer of each, as a list or as a table with these columns; None
            for scenes of the synthetic world (`saelab.corpora.scene_facts`), whose attributes are person,
            place and object. Only facts that the model answers right count.
        where: Which tokens are swapped: the last one of the entity ("last", RAVEL's), all of these
            ("entity"), or all of the prompt ("prompt"). None: "prompt" for scenes, whose facts are told in
            them, else "last".
        error: Whether the base's error stays.
        steps: Of learning the masks.
        pairs: Of entities that are judged for each attribute, at most; as many are learnt from.
        held_out: Share of the entities that judges.

    Raises:
        ConfigError: An option is none of these, the model knows fewer than two attributes of entities enough,
            or the SAE is a transcoder or crosscoder.
        CorpusError: Facts are none, or do not fit into the context.
    """

    facts: Any = None
    where: Where | None = None
    error: bool = True
    steps: int = 100
    pairs: int = 100
    held_out: float = 0.4

    needs: ClassVar[tuple[type, ...]] = (HasTokens, HasLogits)

    def __post_init__(self) -> None:
        share("held_out", self.held_out)
        for name in ("steps", "pairs"):
            object.__setattr__(self, name, integer(name, getattr(self, name), 1))
        if self.where is not None and self.where not in get_args(Where):
            message = (
                f"where must be one of {', '.join(get_args(Where))}. Got {short(self.where)}. Pass "
                "where='last'."
            )
            raise ConfigError(message)

    def run(self, sae: SAE, ground: Ground) -> Found:
        """Measure one SAE.

        Args:
            sae: The SAE.
            ground: What it is measured on.

        Raises:
            ConfigError: The model knows too little, or the SAE is a transcoder or crosscoder.
            CorpusError: Facts are none, or do not fit into the context.
        """
        import torch

        one_place("RAVEL", sae)
        subject: Any = ground.subject
        if self.facts is None:
            facts, where = scene_facts(subject.to_tokens, seed=ground.seed), self.where or "prompt"
        else:
            facts, where = as_facts(self.facts), self.where or "last"
        (hook,) = map(str, check_hooks(subject, sae.reads, ground.corpus))
        asked = ask(subject, facts, hook, where)
        control = untrained(sae, torch.cat(list(asked.x)), seed=ground.seed)
        arms = {
            name: Swapping(subject, each, hook, asked, error=self.error)
            for name, each in (("", sae), (UNTRAINED, control), (ACTIVATIONS, None))
        }
        attributes, sides, left_out = split(asked, self.held_out, ground.seed)
        rng = np.random.default_rng(ground.seed)
        for last in (False, True):
            learnt, judged = (cases_of(asked, attributes, side, self.pairs, rng) for side in sides)
            if last or not (bare := without(attributes, judged, arms[ACTIVATIONS])):
                break
            left_out |= bare
            attributes = several([name for name in attributes if name not in bare], left_out)
        return disentangled(arms, attributes, (learnt, judged), self.steps, ground.seed, left_out)


def split(asked: Asked, held_out: float, seed: int) -> tuple[list[str], list[list[str]], dict[str, str]]:
    """Attributes that the model knows, the entities that are learnt from and those that judge, and why other
    attributes are left out.

    Args:
        asked: The facts.
        held_out: Share of the entities that judges.
        seed: Of the draw.

    Raises:
        ConfigError: The model knows fewer than two attributes.
    """
    entities = list(dict.fromkeys(fact.entity for fact in asked.facts))
    judge = halves(len(entities), held_out, seed)
    sides = [[name for name, own in zip(entities, judge, strict=True) if own == side] for side in (0, 1)]
    left_out, attributes = {}, []
    for attribute, (right, n) in shares_known(asked).items():
        known = {
            fact.entity: answer
            for fact, answer, is_known in zip(asked.facts, asked.answer, asked.known, strict=True)
            if is_known and fact.attribute == attribute
        }
        own = [[known[name] for name in side if name in known] for side in sides]
        if min(map(len, own)) < LEAST or min(len(set(each)) for each in own) < 2:
            left_out[attribute] = (
                f"the model answers {right} of {n} right, of {len(own[0])} entities to learn from and "
                f"{len(own[1])} that judge; needs {LEAST} of either, and two answers"
            )
        else:
            attributes.append(attribute)
    return several(attributes, left_out), sides, left_out


def several(attributes: list[str], left_out: Mapping[str, str]) -> list[str]:
    """The attributes. Raises ConfigError where there are not two."""
    if len(attributes) < 2:
        why = "; ".join(f"{name}: {each}" for name, each in left_out.items())
        message = (
            "Disentangling needs two attributes that the model knows and the place carries. Got "
            f"{', '.join(attributes) or 'none'}{why and f' ({why})'}. Pass more facts, or an SAE of another "
            "place."
        )
        raise ConfigError(message)
    return attributes


def without(attributes: Sequence[str], judged: Cases, activations: Swapping) -> dict[str, str]:
    """Attributes that the place does not carry, and why.

    Args:
        attributes: Their names.
        judged: Pairs that judge.
        activations: Swaps activations themselves.
    """
    right = activations.says(judged, None) == activations.asked.answer[judged.source]
    shares = {name: right[judged.attribute == i] for i, name in enumerate(attributes)}
    return {
        name: "the answer follows the source in "
        f"{each.mean() if len(each) else 0:.1%} where the activations themselves are swapped, and below "
        f"{CARRIES:.0%} no SAE can be judged by it"
        for name, each in shares.items()
        if not len(each) or each.mean() < CARRIES
    }


class _Arm:
    """What was right under one kind of swap."""

    def __init__(self) -> None:
        self.sums = Sums()
        self.cause, self.isolation = Shares(self.sums), Shares(self.sums)

    def add(
        self, asked: Asked, cases: Cases, swapped: int, says: np.ndarray, unit: np.ndarray
    ) -> dict[str, float]:
        """Add cases under the swap of one attribute.

        Args:
            asked: The facts.
            cases: The pairs.
            swapped: Number of the attribute.
            says: int64 [draws n], what the model says.
            unit: int64 [n], number of the entity that is written into.

        Returns:
            Means over the attributes that are asked for.
        """
        told = {}
        own = cases.attribute == swapped
        for kind, shares, chosen, side in (
            ("cause", self.cause, own, cases.source),
            ("isolation", self.isolation, ~own, cases.base),
        ):
            right = (says == asked.answer[side]).mean(0)
            means = []
            for attribute in np.unique(cases.attribute[chosen]):
                at = cases.attribute == attribute
                shares.add(f"{swapped} {attribute}", unit[at], right[at])
                means.append(right[at].mean())
            told[kind] = float(np.mean(means)) if means else float("nan")
        return told


def disentangled(
    swappings: Mapping[str, Swapping],
    attributes: Sequence[str],
    cases: tuple[Cases, Cases],
    steps: int,
    seed: int,
    left_out: Mapping[str, str],
) -> Found:
    """The claims of `RAVEL`.

    Args:
        swappings: "" -> the SAE, "untrained SAE" -> its control, "activations" -> without one.
        attributes: Their names.
        cases: Pairs that masks are learnt on, and pairs that judge.
        steps: Of learning.
        seed: Of all draws.
        left_out: Attributes that do not count.

    Raises:
        ConfigError: No pair has two attributes.
    """
    import pandas as pd

    for each in cases:
        if not (each.swaps.sum(1) > 1).any():
            message = (
                "Disentangling needs entities of which the model knows several attributes. Got "
                f"{len(each)} pairs, none of them with two. Pass more facts of the same entities."
            )
            raise ConfigError(message)
    learnt, judged = cases
    asked = swappings[""].asked
    units = {name: i for i, name in enumerate(dict.fromkeys(asked.facts[i].entity for i in judged.base))}
    unit = np.array([units[asked.facts[i].entity] for i in judged.base])
    masks = {name: swappings[name].learn(learnt, len(attributes), steps, seed) for name in ("", UNTRAINED)}
    fixed = {  # what does not depend on the attribute
        NO_EDIT: asked.says[judged.base],
        ALL: swappings[""].says(judged, None),
        ALL_UNTRAINED: swappings[UNTRAINED].says(judged, None),
        ACTIVATIONS: swappings[ACTIVATIONS].says(judged, None),
    }
    arms = {name: _Arm() for name in ("", UNTRAINED, RANDOM, *fixed)}
    alive, rng, lines = swappings[""].alive(), np.random.default_rng(seed), []
    for number, attribute in enumerate(attributes):
        rows = np.flatnonzero(judged.swaps[:, number])
        own = masks[""][number].numpy()
        drawn = [np.isin(np.arange(len(own)), rng.permutation(alive)[: own.sum()]) for _ in range(DRAWS)]
        part = judged.of(rows)
        says = {
            "": swappings[""].says(part, own)[None],
            UNTRAINED: swappings[UNTRAINED].says(part, masks[UNTRAINED][number].numpy())[None],
            RANDOM: np.stack([swappings[""].says(part, each) for each in drawn]),
        } | {name: each[None, rows] for name, each in fixed.items()}
        line: dict[str, Any] = {
            "attribute": attribute,
            "pairs": int((part.attribute == number).sum()),
            "latents": int(own.sum()),
            f"latents, {UNTRAINED}": int(masks[UNTRAINED][number].sum()),
        }
        for name, each in says.items():
            both = arms[name].add(asked, part, number, each, unit[rows])
            line |= {f"{kind}{name and f', {name}'}": value for kind, value in both.items()}
        lines.append(line)
    known = [{"attribute": name, "known": right, "of": n} for name, (right, n) in shares_known(asked).items()]
    tables = {"attributes": pd.DataFrame(lines), "facts": pd.DataFrame(known)}
    return Found(_claims(arms, seed, len(units)), dict(left_out), tables)


def _claims(arms: Mapping[str, _Arm], seed: int, n: int) -> dict[str, Beside | Alone]:
    own, whole, carried = arms[""], arms[ALL], arms[ACTIVATIONS]
    controls = {name: arms[name].sums for name in (UNTRAINED, RANDOM, NO_EDIT)}
    scores = {
        "cause": own.cause.of,
        "isolation": own.isolation.of,
        "disentangled": lambda sums: (own.cause.of(sums) + own.isolation.of(sums)) / 2,
    }
    claims: dict[str, Beside | Alone] = {
        name: beside_each(own.sums, controls, score, seed, n) for name, score in scores.items()
    }
    bare = {UNTRAINED: arms[ALL_UNTRAINED].sums, NO_EDIT: arms[NO_EDIT].sums}
    claims[f"cause of {ALL}"] = beside_each(whole.sums, bare, whole.cause.of, seed, n)
    claims[f"cause of {ACTIVATIONS}"] = Alone(
        with_interval(carried.sums, carried.cause.of, seed).value,
        "a property of the model and of the place, whatever the SAE",
        n,
    )
    return claims


__all__ = ["RAVEL"]
