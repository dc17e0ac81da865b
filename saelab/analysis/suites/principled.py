"""Whether an SAE stands for, and edits, what a task is made of: beside a dictionary that was told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from saelab.analysis.controls import Beside
from saelab.analysis.suites.registry import Found, Suite, register
from saelab.analysis.supervised.comparing import against_supervised
from saelab.analysis.supervised.results import COUNTS, NO_EDIT, RANDOM, SUPERVISED, AgainstSupervised
from saelab.analysis.supervised.tasks import Location, attribute_task
from saelab.capabilities import HasLogits, HasTokens
from saelab.corpora.world_prompts import AttributedPrompts, attributed_prompts

if TYPE_CHECKING:
    from saelab.analysis.sources import Ground
    from saelab.sae import SAE


VALUES = 5
"""Of an attribute, without which the interval of its F1, which draws values anew, would say nothing."""


@register("principled")
@dataclass(frozen=True)
class Principled(Suite):
    """Is the SAE as good at standing for activations of a task, and at editing what the task is made of by
    few latents, as a dictionary that was told the attributes (Makelov, Lange & Nanda, arXiv 2405.08366)?

    By default the task is that of indirect objects in the synthetic world, and the place the last position of
    its prompts; a model that does not do it is left out, as is an SAE of a place that carries less than 3 %
    of it. Edits count where no edit at all agrees with the true one in at most 60 % of the prompts.
    """

    train: AttributedPrompts | None = None
    """what the supervised dictionary and F1 are made of; None: `n_train` prompts of the world"""
    test: AttributedPrompts | None = None
    """of which the figures are; None: `n_test` prompts of templates and names that the former do not have"""
    position: int = -1
    """of the prompts; below 0 from their end"""
    k: tuple[int, ...] = (2, 6)
    """latents that an edit may touch"""
    n_train: int = 2000
    n_test: int = 200

    needs: ClassVar[tuple[type, ...]] = (HasTokens, HasLogits)

    def run(self, sae: SAE, ground: Ground) -> Found:
        subject: Any = ground.subject
        train = self.train or attributed_prompts(subject.to_tokens, "train", self.n_train, ground.seed)
        test = self.test or attributed_prompts(subject.to_tokens, "heldout", self.n_test, ground.seed)
        learnt, judged = attribute_task(subject, train), attribute_task(subject, test)
        at = Location(str(sae.hook), self.position)
        found = against_supervised(subject, learnt, judged, at, {"SAE": sae}, k=self.k, seed=ground.seed)
        few = {name: n for name in found.unedited if (n := _n_values(found, name)) < VALUES}
        return Found(
            _claims(found, few), _left_out(found, few), {"figures": found.to_frame(), "f1": found.f1}
        )


def _n_values(found: AgainstSupervised, attribute: str) -> int:
    """That F1 was measured of."""
    return len(set(found.f1["value"][found.f1["attribute"] == attribute]))


def _claims(found: AgainstSupervised, few: Mapping[str, int]) -> dict[str, Beside]:
    blank = "SAE, untrained"
    claims = dict(found.beside("SAE", blank, NO_EDIT, RANDOM))
    for attribute in (name for name in found.unedited if name not in few):
        claims[f"F1 of {attribute}"] = found.f1_beside("SAE", attribute, blank)
    claims = {name: replace(claim, what="untrained SAE") for name, claim in claims.items()}
    told = found.beside(SUPERVISED, RANDOM, NO_EDIT)
    return claims | {f"supervised dictionary: {name}": claim for name, claim in told.items()}


def _left_out(found: AgainstSupervised, few: Mapping[str, int]) -> dict[str, str]:
    f1 = {
        f"F1 of {attribute}": f"values are drawn anew for its interval, and there are {n}, not {VALUES}"
        for attribute, n in few.items()
    }
    return f1 | {
        f"{attribute} edit": f"without an edit {same.mean():.1%} of the prompts agree with the true one "
        f"already, and above {COUNTS:.0%} an edit says nothing"
        for attribute, same in found.unedited.items()
        if attribute not in found.counted
    }


__all__ = ["Principled"]
