"""Steering by latents: a slider for each, and what a language model writes then."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import traitlets

from saelab.types import ConfigError, StoreError, short
from saelab.widgets import still
from saelab.widgets.base import View
from saelab.widgets.questions import Ask
from saelab.widgets.source import HasSources
from saelab.widgets.wire import Packed, clean

SHOWN = ("written", "shifts", "dose")
"""Questions whose answers a page keeps, for all settings that were computed."""


class SteerView(View):
    """A slider for each latent; plain and steered text side by side with a control; next-token shifts and
    dose-response.

    The browser pulls what is written, a few tokens at a time, so that a slider that moves cancels what was
    being written by not asking any more.

    Args:
        session: Answers the questions: `saelab.analysis.steering.session.Session`.
        settings: The first ones, as JSON.
        questions: As of a Lab's source; "search" and "table" find latents, where they are there.
        options: See `View`.

    Raises:
        ConfigError: An option is unknown.
    """

    kind = "steer"
    follows = ("latent",)

    settings = traitlets.Unicode().tag(sync=True)

    def __init__(
        self,
        session: Any,
        settings: str,
        *,
        questions: Mapping[str, Callable[..., Any]] | None = None,
        **options: Any,
    ) -> None:
        self.session = session
        self.questions = dict(questions or {})
        super().__init__(settings=settings, **options)

    @staticmethod
    def of(
        lab: HasSources,
        text: str,
        latents: Mapping[int, float] | None = None,
        *,
        scale: str | None = None,
        gate: str = "constant",
        max_new_tokens: int = 30,
        temperature: float = 0.0,
        seed: int = 0,
        clean: Iterable[str] = (),
        target: Iterable[str] = (),
        sae: str | None = None,
    ) -> SteerView:
        """Steer what the model writes: a slider for each latent, the plain and the steered text side by side
        with a random direction of the same size, next-token shifts, and dose-response.

        Args:
            lab: whose model and latents they are.
            text: The prompt.
            latents: Latent -> strength at first; more are added in the view.
            scale: The unit of strengths: "max", the latent's largest activation, "norm" or "unit", as in
                `saelab.interventions.Steer`; None: "max" where the SAE has a store, else "norm".
            gate: Where they act at first: "constant", "input" or "token".
            max_new_tokens: How many tokens are written.
            temperature: 0 writes the likeliest tokens; above, tokens are sampled, in all columns from one
                seed.
            seed: Of that.
            clean: Texts that a gate should leave alone. With them and `target` each gate stands on its ROC
                curve.
            target: Texts that it should open on.
            sae: name of the SAE; None: the chosen one.

        Raises:
            SubjectError: The subject writes no texts.
            ConfigError: A setting is none of those that there are.
            CorpusError: The prompt is no text, or does not fit the context.
            RangeError: A latent is out of range.
        """
        source = lab.source(sae)
        if not isinstance(latents, Mapping | None):
            message = (
                f"latents must be a mapping of latents to strengths. Got {short(latents)}. Pass {{7: 1}}."
            )
            raise ConfigError(message)
        knobs = {source.checked(latent): alpha for latent, alpha in (latents or {}).items()}
        session = source.questions["session"]("steering")
        session.gauges.calibrated_on(clean, target)
        how = {"tokens": max_new_tokens, "temperature": temperature, "seed": seed}
        settings = session.settings(text, knobs, scale=scale, gate=gate, **how)
        questions = {**source.questions, "table": source.table}
        return SteerView(
            session, settings, questions=questions, selection=source.selection, edits=source.edits
        )

    def answers(self) -> Mapping[str, Callable[..., Packed]]:
        session = self.session
        plain = {name: _packed(getattr(session, name)) for name in (*SHOWN, "begin", "more", "stop")}
        return {
            **plain,
            "knob": self._knob,
            "curve": _packed(session.curve),
            "recipe": lambda settings: Packed({}, {"text": session.recipe(settings)}),
            "load": lambda text, settings: Packed({"settings": session.load(text, settings)}),
            "kept": lambda: Packed({}, {"settings": self._kept()}),
            "names": lambda: Packed({}, {"names": self._names()}),
            "search": lambda text: Packed(
                {"found": [int(j) for j, _ in self.questions["search"](text)] if self.questions else []}
            ),
        }

    def first(self) -> Iterable[Ask]:
        return self._asks(self.settings)

    def exported(self) -> Iterable[Ask]:
        kept = [ask for settings in self._kept() for ask in self._asks(settings)]
        return list({ask.key(): ask for ask in [Ask("kept"), *self.first(), *kept]}.values())

    def text(self) -> str:
        columns = self.session.written(self.settings)["columns"]
        return "\n".join([self._title(), *(f"{c['name']}: {''.join(c['tokens'])}" for c in columns)])

    def html(self) -> str:
        columns = self.session.written(self.settings)["columns"]
        return still.frame(still.note(self._title()), *map(still.written, columns))

    def _title(self) -> str:
        made = json.loads(self.settings)
        knobs = ", ".join(f"#{k['latent']} at {k['alpha']:g}" for k in made["knobs"]) or "no latent"
        return f"{clean(made['prompt'])!r} steered by {knobs} ({made['scale']}, gate {made['gate']})"

    def _asks(self, settings: str) -> list[Ask]:
        made = json.loads(settings)
        latents = [each["latent"] for each in made["knobs"]]
        knobs = [Ask("knob", {"latent": latent}) for latent in latents]
        gated = [] if made["gate"] == "constant" else latents
        curves = [Ask("curve", {"latent": latent, "gate": made["gate"]}) for latent in gated]
        return [*knobs, *curves, *(Ask(name, {"settings": settings}) for name in SHOWN)]

    def _kept(self) -> list[str]:
        """All settings whose texts were written to the end."""
        kept = (settings for question, settings in self.session.kept if question == "written")
        return list(dict.fromkeys([self.settings, *kept]))

    def _knob(self, latent: int) -> Packed:
        names = self._names()
        told = self.session.knob(latent)
        return Packed({**told, "name": names[latent] if latent < len(names) else ""})

    def _names(self) -> list[str]:
        try:
            return list(map(clean, self.questions["table"]().names)) if "table" in self.questions else []
        except StoreError:  # an SAE without a store has no names
            return []


def _packed(answer: Callable[..., dict[str, Any]]) -> Callable[..., Packed]:
    return lambda **args: Packed(answer(**args))
