"""What is set in a steering view: latents and their strengths, and the edits that these are."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from saelab.config import integer, is_number
from saelab.interventions import Edit
from saelab.interventions.registry import Where
from saelab.interventions.steering import Steer
from saelab.interventions.storage import of_text
from saelab.types import ConfigError, CorpusError, RangeError, short

if TYPE_CHECKING:
    from saelab.sae import SAE
    from saelab.types import Subject

MOST_LATENTS = 16
MOST_TOKENS = 200
MOST_TEMPERATURE = 5


@dataclass(frozen=True)
class Knob:
    """A latent that is steered by."""

    latent: int
    alpha: float = 0.0
    """its strength in units of the settings' scale"""
    threshold: float = 0.0
    """what its code must exceed in size, where there is a gate"""


@dataclass(frozen=True)
class Settings:
    """All that a generation in a steering view depends on.

    Attributes:
        prompt: The text that is continued.
        knobs: Latents with their strengths; those of strength 0 change nothing.
        scale: The unit of strengths, as in `Steer`.
        gate: Where they act, as in `Steer`.
        positions: Numbers of the only positions that are edited, below 0 from the end of the prompt; none:
            everywhere.
        special: Whether special tokens alone are edited.
        tokens: How many are written, at most.
        temperature: 0 writes the likeliest tokens; above, tokens are sampled, all columns from one seed.
        seed: Of that.
    """

    prompt: str
    knobs: tuple[Knob, ...] = ()
    scale: str = "max"
    gate: str = "constant"
    positions: tuple[int, ...] = ()
    special: bool = False
    tokens: int = 30
    temperature: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.prompt, str) or not self.prompt:
            message = f"A prompt must be a text. Got {short(self.prompt)}. Pass what is to be continued."
            raise CorpusError(message)
        integer("tokens", self.tokens, 1, MOST_TOKENS, error=RangeError)
        integer("seed", self.seed, 0)
        if not is_number(self.temperature) or not 0 <= self.temperature <= MOST_TEMPERATURE:
            message = (
                f"temperature must be between 0 and {MOST_TEMPERATURE}. Got {short(self.temperature)}. Pass "
                "0 for the likeliest tokens, or e.g. 0.8."
            )
            raise ConfigError(message)
        if len(self.knobs) > MOST_LATENTS:
            message = (
                f"At most {MOST_LATENTS} latents are steered by at once. Got {len(self.knobs)}. Take some "
                "out."
            )
            raise ConfigError(message)
        for knob in self.knobs:
            for name in ("alpha", "threshold"):
                value = getattr(knob, name)
                if not is_number(value):
                    message = f"{name} must be a number. Got {short(value)}. Pass one, such as 0.5."
                    raise ConfigError(message)

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
            knobs = tuple(Knob(**each) for each in data.pop("knobs", ()))
            positions = tuple(integer("A position", p, -(2**31)) for p in data.pop("positions", ()))
            return cls(**data, knobs=knobs, positions=positions)
        except (TypeError, ValueError, AttributeError) as error:
            message = f"Settings must be those of a steering view. Got {short(text)}. {error}."
            raise ConfigError(message) from error

    def json(self) -> str:
        """As a browser writes them: whole numbers without a point."""
        return json.dumps(whole(asdict(self)), ensure_ascii=False, separators=(",", ":"))

    def edits(self, sae: SAE, peak: Callable[[int], float], factor: float = 1.0) -> list[Edit]:
        """The edits, in the order of the latents.

        Args:
            sae: Whose latents they are.
            peak: Latent -> its largest activation; asked with scale="max" alone.
            factor: What all strengths are multiplied by.

        Raises:
            ConfigError: A setting is none of those that there are.
            RangeError: A latent is none of the SAE's.
        """
        edits: list[Edit] = []
        for knob in self.knobs:
            if not knob.alpha * factor:
                continue
            gated = self.gate != "constant"
            edit: Edit = Steer(
                sae, knob.latent, knob.alpha * factor, self.scale, self.gate,  # type: ignore[arg-type]
                knob.threshold if gated else None, peak(knob.latent) if self.scale == "max" else None,
            )  # fmt: skip
            if self.positions or self.special:
                edit = edit.where(positions=list(self.positions) or None, special=self.special)
            edits.append(edit)
        return edits


def of_recipe(text: str, sae: SAE, subject: Subject, now: Settings) -> Settings:
    """The settings that a recipe holds.

    Args:
        text: Of `text_of`, or of a file that `saelab.interventions.save` wrote.
        sae: Whose latents it steers.
        subject: What it is applied to.
        now: Settings whose prompt and way of writing stay, since a recipe holds none.

    Raises:
        ConfigError: It is of another SAE or subject, or holds what the view has no control for.
        FormatError: It is no recipe.
    """
    edits = of_text(text, [sae], subject)
    knobs, shared = [], set()
    for edit in edits:
        steer, where = (edit.edit, edit) if isinstance(edit, Where) else (edit, None)
        plain = where is None or (where.tokens is None and where.mask is None)
        if not isinstance(steer, Steer) or steer.hook is not None or not plain:
            message = (
                "A steering view takes recipes of Steer edits at the SAE's own hook points, restricted by "
                f"positions or special tokens alone. Got {type(steer).__name__}. Apply it by "
                "subject.generate(prompt, edits=saelab.interventions.load(...))."
            )
            raise ConfigError(message)
        knobs.append(Knob(steer.latent, steer.alpha, steer.threshold or 0.0))
        places = (where.positions or (), where.special) if where is not None else ((), False)
        shared.add((steer.scale, steer.gate, *places))
    if len(shared) > 1:
        message = (
            f"A steering view has one scale, gate and restriction for all latents. Got {len(shared)} in the "
            "recipe. Apply it by subject.generate(prompt, edits=saelab.interventions.load(...))."
        )
        raise ConfigError(message)
    scale, gate, positions, special = shared.pop() if shared else ("max", "constant", (), False)
    return replace(
        now, knobs=tuple(knobs), scale=scale, gate=gate, positions=tuple(positions), special=special
    )


def whole(value: Any) -> Any:
    """JSON data in which whole numbers have no point, as a browser writes them.

    Args:
        value: Dicts, lists, numbers and strings.
    """
    if isinstance(value, Mapping):
        return {key: whole(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [whole(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


__all__ = ["Knob", "Settings", "of_recipe", "whole"]
