"""What a steering view asks: generations side by side as they are written, next-token shifts, dose-response.

Every steered text stands beside the plain one and beside a control: at every row the control moves the
activation as far as the edits do, along one random direction. All three are one batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from saelab.analysis.steering.arms import AlongRandom
from saelab.analysis.steering.gauges import Gauges
from saelab.analysis.steering.settings import Knob, Settings, of_recipe
from saelab.analysis.steering.writing import Writer, Written
from saelab.capabilities import Generates, need
from saelab.config import integer
from saelab.interventions import Edit, Steer
from saelab.interventions.samples import Each
from saelab.interventions.storage import text_of
from saelab.types import ConfigError, RangeError, SubjectError

if TYPE_CHECKING:
    from saelab.sae import SAE
    from saelab.stores import FeatureStore
    from saelab.types import Subject

FACTORS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
"""What all strengths are multiplied by in a dose-response."""
COLUMNS = ("plain", "steered", "random direction")
MOST_SHIFTS = 8
LEAST_KL = 1e-9
"""Nats below which rounding alone has changed something."""


class Session(Writer):
    """Answers the questions of one steering view.

    Args:
        subject: A language model.
        sae: Whose latents are steered by.
        store: Of the SAE, for largest activations and histograms; None where it has none.

    Raises:
        SubjectError: The subject writes no texts.
    """

    def __init__(self, subject: Subject, sae: SAE, store: FeatureStore | None = None) -> None:
        need(subject, Generates, "Steering")
        if not hasattr(subject, "stream"):
            message = (
                f"Steering in a view needs a subject that writes token by token. Got "
                f"{type(subject).__name__} without stream(). Load a language model by saelab.load_subject."
            )
            raise SubjectError(message)
        super().__init__()
        self.subject: Any = subject
        self.sae, self.store = sae, store
        self.gauges = Gauges(subject, sae, store)

    def settings(
        self,
        prompt: str,
        alphas: Mapping[int, float],
        *,
        scale: str | None,
        gate: str,
        tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> str:
        """Settings, as JSON.

        Args:
            prompt: The text that is continued.
            alphas: Latent -> strength.
            scale: As in `Steer`; None: "max" where there is a store, else "norm".
            gate: As in `Steer`.
            tokens: How many are written.
            temperature: 0 writes the likeliest tokens.
            seed: Of the sampling.

        Raises:
            ConfigError: A setting is none of those that there are.
            CorpusError: The prompt is no text.
        """
        scale = ("norm" if self.store is None else "max") if scale is None else scale
        knobs = tuple(Knob(latent, alpha) for latent, alpha in alphas.items())
        made = Settings(prompt, knobs, scale, gate, tokens=tokens, temperature=temperature, seed=seed)
        return made.json()

    # ---- questions

    def knob(self, latent: int) -> dict[str, Any]:
        """What is known of a latent.

        Args:
            latent: Its number.

        Returns:
            latent, and of a store `max`, `edges` and `histogram`, else None.

        Raises:
            RangeError: It is out of range.
        """
        if self.store is None:
            latent = integer("latent", latent, 0, self.sae.d_sae - 1, error=RangeError)
            return {"latent": latent, "max": None, "histogram": None}
        stats = self.store.latent(latent)
        return {
            "latent": stats.latent,
            "max": float(stats.max),
            "edges": [float(stats.edges[0]), float(stats.edges[-1])],
            "histogram": [int(n) for n in stats.histogram],
        }

    def curve(self, latent: int, gate: str) -> dict[str, Any]:
        """How well a gate by a latent tells the clean texts from the target ones.

        Args:
            latent: Its number.
            gate: "input" or "token".

        Returns:
            As `Gauges.curve`.

        Raises:
            ConfigError: It is no gate.
            CorpusError: There are fewer than four texts of a kind.
        """
        edit = Steer(self.sae, latent, 1.0, gate=gate, threshold=0.0)  # type: ignore[arg-type]
        return self.gauges.curve(edit)

    def shifts(self, settings: str) -> dict[str, Any]:
        """What the edits do to the token after the prompt, beside their control.

        Args:
            settings: `Settings.json()`.

        Returns:
            rises, falls: [token, probability without, with the edits, with the control] of those that change
            most; kl: KL(plain || edited) of edits and control in nats; meter: hook point -> how far from
            natural activations both are where they were moved, on average: "norm" times the own one before,
            "mahalanobis" and "nearest" times what is usual of natural ones, where some are known; moved:
            positions that were moved; positions: that the prompt has.
        """
        return self._once("shifts", settings, lambda: self._shifts(Settings.parse(settings)))

    def dose(self, settings: str) -> dict[str, Any]:
        """The next token at several strengths, all in one batch.

        Args:
            settings: `Settings.json()`.

        Returns:
            factors: Of all strengths; token: the one that the edits raise most; kl, chance: KL(plain ||
            edited) in nats, and the token's probability, of the edits ("steered") and their control
            ("random direction"), at each factor. Empty where no strength changes anything.
        """
        return self._once("dose", settings, lambda: self._dose(Settings.parse(settings)))

    def recipe(self, settings: str) -> str:
        """The edits of some settings as JSON, which `saelab.interventions.load` reads.

        Args:
            settings: `Settings.json()`.
        """
        return text_of(self._edits(Settings.parse(settings)), self.subject)

    def load(self, text: str, settings: str) -> str:
        """The settings that a recipe holds.

        Args:
            text: JSON of `recipe`.
            settings: Those whose prompt stays.

        Raises:
            ConfigError: It is of another SAE or subject, or holds what the view has no control for.
            FormatError: It is no recipe.
        """
        now = Settings.parse(settings)
        return of_recipe(text, self.sae, self.subject, now).json()

    # ---- how they are answered

    def _edits(self, made: Settings, factor: float = 1.0) -> list[Edit]:
        return made.edits(self.sae, self._peak, factor)

    def _peak(self, latent: int) -> float:
        if self.store is None:
            message = (
                "Strengths in units of the largest activation need a store of the SAE. Got none in this Lab. "
                "Choose the unit 'norm' or 'unit', or make a store by saelab.index(...)."
            )
            raise ConfigError(message)
        return float(self.store.latent(latent).max)

    def _arms(self, edits: list[Edit]) -> list[list[Edit]]:
        """Edits and their control."""
        return [edits, [AlongRandom(edits, self.subject)] if edits else []]

    def _stream(self, settings: str) -> Written:
        made = Settings.parse(settings)
        edits = self._edits(made)
        each = _each([[], *self._arms(edits)]) if edits else ()
        n = len(COLUMNS)
        how = {"temperature": made.temperature, "seed": [made.seed] * n, "max_new_tokens": made.tokens}
        return Written(self.subject.stream([made.prompt] * n, each, **how), COLUMNS)

    def _shifts(self, made: Settings) -> dict[str, Any]:
        edits = self._edits(made)
        hooks = list(dict.fromkeys(hook for edit in edits for hook in edit.hooks))
        inputs = self.subject.prepare([made.prompt] * len(COLUMNS))
        run = self.subject.run(inputs, hooks, _each([[], *self._arms(edits)]) if edits else ())
        logs = run.output[:, -1].double().log_softmax(-1).cpu()
        before, after, control = logs.exp()
        order = (after - before).argsort()
        meter, moved = {}, 0
        for hook in hooks:
            plain, *others = run.acts[hook.name].double().cpu()
            where = (others[0] != plain).any(-1)
            moved = max(moved, int(where.sum()))
            meter[hook.name] = [self.gauges.far(hook, other[where], plain[where]) for other in others]

        def told(ids: Tensor, sign: int) -> list[list[Any]]:
            ids = ids[:MOST_SHIFTS]
            ids = ids[(after - before)[ids] * sign > 0]
            rows = [[float(p[i]) for p in (before, after, control)] for i in ids]
            names = self.subject.token_strings(ids.tolist())
            return [[name, *row] for name, row in zip(names, rows, strict=True)]

        return {
            "rises": told(order.flip(0), 1),
            "falls": told(order, -1),
            "kl": [_kl(logs[0], other) for other in logs[1:]],
            "meter": meter,
            "moved": moved,
            "positions": int(run.output.shape[1]),
        }

    def _dose(self, made: Settings) -> dict[str, Any]:
        nothing = {"factors": [], "token": None, "kl": {}, "chance": {}}
        if not self._edits(made):
            return nothing
        arms = [self._arms(self._edits(made, factor)) for factor in FACTORS]
        each = _each([[], *(steered for steered, _ in arms), *(control for _, control in arms)])
        inputs = self.subject.prepare([made.prompt] * len(each.edits))
        logs = self.subject.run(inputs, (), each).output[:, -1].double().log_softmax(-1).cpu()
        plain, n = logs[0], len(FACTORS)
        token = int((logs[1 + FACTORS.index(1.0)].exp() - plain.exp()).argmax())
        parts = dict(zip(COLUMNS[1:], (logs[1 : 1 + n], logs[1 + n :]), strict=True))
        kl = {name: [_kl(plain, each) for each in part] for name, part in parts.items()}
        if max(map(max, kl.values())) < LEAST_KL:  # a gate that is shut on the prompt
            return nothing
        return {
            "factors": list(FACTORS),
            "token": self.subject.token_strings([token])[0],
            "kl": kl,
            "chance": {name: part[:, token].exp().tolist() for name, part in parts.items()},
        }


def _each(arms: Sequence[Sequence[Edit]]) -> Each:
    return Each(tuple(map(tuple, arms)))


def _kl(plain: Tensor, other: Tensor) -> float:
    """KL(plain || other) of log probabilities [d_vocab], in nats."""
    return max(0.0, float((plain.exp() * (plain - other)).sum()))


__all__ = ["Session"]
