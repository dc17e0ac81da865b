"""What is set in an erasing view: which concepts, which of their latents, how, and which edits these are."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, get_args

from saelab.analysis.steering.settings import MOST_TOKENS, whole
from saelab.config import boolean, integer, is_number
from saelab.interventions import Edit
from saelab.interventions.gates import Gate
from saelab.interventions.latents import Ablate, Erase
from saelab.interventions.replacing import Substitute
from saelab.interventions.storage import of_text
from saelab.types import ConfigError, RangeError, nearest, short

if TYPE_CHECKING:
    from torch import Tensor

    from saelab.sae import SAE
    from saelab.types import Subject

MODES = {"scale": Erase, "ablate": Ablate, "replace": Substitute}
"""How a concept is erased -> the edit that does it."""


@dataclass(frozen=True)
class Erased:
    """A concept in the settings."""

    name: str
    on: bool
    """whether it is erased; else it is one of those that should stay"""
    latents: tuple[int, ...]
    """those that are edited"""
    threshold: float | None = None
    """of its gate; None: the calibrated one"""


@dataclass(frozen=True)
class Settings:
    """All that an erasing view's answers depend on.

    Attributes:
        concepts: In their order, which is that of their edits.
        mode: "scale" (`Erase`: their codes times tau where the gate is open), "ablate" (`Ablate`: they are 0
            everywhere), or "replace" (`Substitute`: where the gate is open natural activations take over).
        tau: Of "scale".
        gate: "input", "token" or "constant"; of "scale" and "replace".
        sample: Number of the held-out sample that is shown.
        tokens: How many are written, at most.
    """

    concepts: tuple[Erased, ...]
    mode: str = "scale"
    tau: float = 0.0
    gate: str = "input"
    sample: int = 0
    tokens: int = 30

    def __post_init__(self) -> None:
        for name, known in (("mode", tuple(MODES)), ("gate", get_args(Gate))):
            value = getattr(self, name)
            if value not in known:
                near = nearest(str(value), known)
                message = (
                    f"{name} must be one of {', '.join(known)}. Got {short(value)}. {near}Pass one of these."
                )
                raise ConfigError(message)
        _finite("tau", self.tau)
        integer("sample", self.sample, 0, error=RangeError)
        integer("tokens", self.tokens, 1, MOST_TOKENS, error=RangeError)
        for concept in self.concepts:
            boolean("on", concept.on)
            if concept.threshold is not None:
                _finite("threshold", concept.threshold)

    @classmethod
    def parse(cls, text: str) -> Settings:
        """The settings that a browser sent.

        Args:
            text: What `json` gives.

        Raises:
            ConfigError: They are none.
        """
        try:
            data = json.loads(text)
            concepts = tuple(
                Erased(**{**each, "latents": tuple(integer("A latent", j, 0) for j in each["latents"])})
                for each in data.pop("concepts")
            )
            return cls(concepts, **data)
        except (TypeError, ValueError, AttributeError, KeyError) as error:
            message = f"Settings must be those of an erasing view. Got {short(text)}. {error}."
            raise ConfigError(message) from error

    def json(self) -> str:
        """As a browser writes them: whole numbers without a point."""
        return json.dumps(whole(asdict(self)), ensure_ascii=False, separators=(",", ":"))

    @property
    def erased(self) -> list[Erased]:
        """The concepts that are erased: those that are on, with any latent."""
        return [concept for concept in self.concepts if concept.on and concept.latents]

    def edit(self, sae: SAE, concept: Erased, threshold: float, probe: Tensor | None, natural: Any) -> Edit:
        """The edit that erases one concept.

        Args:
            sae: Whose latents they are.
            concept: One of `erased`.
            threshold: Of its gate.
            probe: What the gate looks at, as `Erase` has it.
            natural: [n, width] activations without the concept; of "replace" alone.

        Raises:
            RangeError: A latent is none of the SAE's.
        """
        gate: Any = self.gate
        at = None if gate == "constant" else threshold
        if self.mode == "ablate":
            return Ablate(sae, concept.latents)
        if self.mode == "replace":
            return Substitute(sae, concept.latents, natural, gate, at, probe)
        return Erase(sae, concept.latents, self.tau, gate, at, probe)


def edits_of(text: str, sae: SAE, subject: Subject) -> tuple[str, list[Any]]:
    """The mode and the edits of a recipe.

    Args:
        text: Of `text_of`, or of a file that `saelab.interventions.save` wrote.
        sae: Whose latents it erases.
        subject: What it is applied to.

    Raises:
        ConfigError: It is of another SAE or subject, or holds what an erasing view has no control for.
        FormatError: It is no recipe.
    """
    edits = of_text(text, [sae], subject)
    kinds = {mode for mode, kind in MODES.items() for edit in edits if type(edit) is kind}
    plain = all(type(edit) in MODES.values() and edit.hook is None for edit in edits)  # type: ignore[attr-defined]
    shared = {(getattr(edit, "tau", None), getattr(edit, "gate", None)) for edit in edits}
    if not edits or not plain or len(kinds) > 1 or len(shared) > 1 or any(_to_mean(edit) for edit in edits):
        message = (
            "An erasing view takes recipes of Erase, Ablate or Substitute edits, all of one kind, tau and "
            f"gate, at the SAE's own hook point. Got {', '.join(type(e).__name__ for e in edits) or 'none'}. "
            "Apply it by subject.run(inputs, edits=saelab.interventions.load(...))."
        )
        raise ConfigError(message)
    return kinds.pop(), list(edits)


def _to_mean(edit: Edit) -> bool:
    return getattr(edit, "to", "zero") != "zero"


def _finite(name: str, value: Any) -> None:
    if not is_number(value) or not math.isfinite(value):
        message = f"{name} must be a finite number. Got {short(value)}. Pass one, such as 0."
        raise ConfigError(message)


__all__ = ["MODES", "Erased", "Settings", "edits_of"]
