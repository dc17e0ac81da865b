"""A sample as a heatmap of its latents: tokens, items, patches over their picture."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import traitlets

from saelab.analysis.results import LAYERS, UNITS, Difference, Predictions, SampleCodes
from saelab.arguments import flag, is_listed, one_of
from saelab.types import ConfigError
from saelab.widgets import still, still_text
from saelab.widgets.base import View, checked_questions
from saelab.widgets.cards import asks_card, card_answers
from saelab.widgets.questions import Ask
from saelab.widgets.selection import Selection
from saelab.widgets.sides import Side, is_long, pack_difference, strongest
from saelab.widgets.source import HasSources, Source
from saelab.widgets.wire import Packed

LATENT = "latent"
"""The layer of the chosen latent."""
PAGE_CARDS = 256
"""Cards of a long text that a page holds, at most."""


class SampleView(View):
    """Positions shaded by the chosen latent; without one, or where it is silent, by the strongest of each; by
    several latents at once; or by how well the model predicts each.

    Args:
        codes: The sample's.
        questions: See `card_answers`; "labels": () -> {latent: label}, if there are any.
        predict: What the model predicts of the sample, asked when a layer is first shown; None where there is
            no language model.
        layers: Names of what it knows.
        difference: From another sample, which stands beside this one.
        against: What the model predicts of that one.
        options: `with_card`: show the chosen latent's card below. `layer`, `unit`: what colours at first.
            Others: see `View`.

    Raises:
        ConfigError: A question is missing, or an option unknown.
    """

    kind = "sample"
    follows = ("latent", "latents", "row", "document")
    with_card = traitlets.Bool(False).tag(sync=True)
    layer = traitlets.Unicode(LATENT).tag(sync=True)
    unit = traitlets.Unicode("nats").tag(sync=True)
    compared = traitlets.Bool(False).tag(sync=True)

    def __init__(
        self,
        codes: SampleCodes,
        questions: Mapping[str, Callable[..., Any]],
        *,
        predict: Callable[[], Predictions] | None = None,
        layers: Sequence[str] = (),
        difference: Difference | None = None,
        against: Callable[[], Predictions] | None = None,
        **options: Any,
    ) -> None:
        self.codes, self.difference = codes, difference
        self.questions = checked_questions(questions, "card")
        self.sides = [Side(codes, tuple(layers), predict)]
        if difference is not None:
            self.sides.append(Side(difference.second, tuple(layers), against))
        super().__init__(compared=difference is not None, **options)

    @staticmethod
    def of(
        lab: HasSources,
        sample: Any,
        latent: int | None = None,
        *,
        latents: Sequence[int] | None = None,
        layer: str = LATENT,
        unit: str = "nats",
        against: Any = None,
        edits: Any = (),
        control: Any = None,
        sae: str | None = None,
        with_card: bool = False,
        follow: bool = False,
    ) -> SampleView:
        """A sample of whatever kind the subject reads as a heatmap: a text, a dialogue, an image, items.

        Hover over a position for its latents, click one to colour the sample by it.

        Args:
            lab: whose subject reads it.
            sample: what the subject reads.
            latent: colours the sample; the view is pinned to it. Without one it is linked: it follows what
                is chosen in the other linked views of its SAE.
            latents: colour it together, each in a colour and a lane of its own; the view is pinned to them.
            layer: what colours it at first: "latent", or of a text that a language model reads "loss",
                "log_probability", "entropy", "sae_kl" or "sae_loss"; see `saelab.analysis.predictions`.
            unit: of a loss, "nats" or "bits".
            against: another sample, which stands beside this one, with the latents that differ most.
            edits: interventions: the sample stands beside itself with these. Layers are then "edits_kl" and
                "edits_loss".
            control: what says the same as `sample`, beside whose difference that from `against` stands; by
                default a text behind a line's end. See `saelab.analysis.sample_difference`.
            sae: name of the SAE; None: the chosen one.
            with_card: show the chosen latent's card.
            follow: choose the latent (or latents) in every linked view, and be one of them.

        Raises:
            CorpusError: The sample is empty, or of another kind.
            RangeError: A latent is out of range.
            ConfigError: There is no such layer, or unit.
        """
        source = lab.source(sae)
        layer, unit = one_of(LATENT, *LAYERS)("layer", layer), one_of(*UNITS)("unit", unit)
        selection = _selection(source, latent, latents, flag("follow", follow))
        ask = source.questions
        given = () if is_listed(edits) and not list(edits) else edits
        difference = None
        if against is not None or given or control is not None:
            difference = ask["difference"](sample, against, given, control)
        codes = source.codes(sample) if difference is None else difference.first
        names = [name for name in ask["layers"]() if name.startswith("edits_") == bool(given)]
        if layer != LATENT and layer not in names:
            message = (
                f"layer must be one that is known of this sample, {', '.join([LATENT, *names])}. Got "
                f"{layer!r}. Leave it out, or pass a language model and its SAE."
            )
            raise ConfigError(message)
        # with edits both sides show what these do: it is asked for once
        predict = cache(lambda: ask["predictions"](sample, given))
        return SampleView(
            codes,
            questions=ask,
            predict=predict,
            layers=names,
            difference=difference,
            against=predict if given else lambda: ask["predictions"](against, ()),
            selection=selection,
            layer=layer,
            unit=unit,
            with_card=flag("with_card", with_card),
            edits=source.edits,
        )

    def answers(self) -> Mapping[str, Callable[..., Packed]]:
        return {
            "codes": lambda side=0: self.sides[side].codes_answer(self._labels()),
            "chunk": lambda number, side=0: self.sides[side].chunk(number),
            "along": lambda latent, side=0: self.sides[side].along(latent),
            "layer": lambda name, unit, side=0: self.sides[side].layer(name, unit),
            **({"difference": self._difference} if self.compared else {}),
            **card_answers(self.questions),
        }

    def _difference(self) -> Packed:
        assert self.difference is not None
        return pack_difference(self.difference)

    def first(self) -> Iterable[Ask]:
        sides: list[dict[str, int | str]] = [{}, {"side": 1}] if self.compared else [{}]
        layer = {"name": self.layer, "unit": self.unit}
        layers = [] if self.layer == LATENT else [Ask("layer", layer | side) for side in sides]
        difference = [Ask("difference")] if self.compared else []
        codes = [Ask("codes", side) for side in sides]
        return [*difference, *codes, *layers, *(asks_card(self.latent) if self.with_card else [])]

    def exported(self) -> Iterable[Ask]:
        fired: Iterable[Any] = np.unique(self.codes.codes.indices) if self.with_card else []
        if self.with_card and is_long(self.codes):
            fired = strongest(self.codes, PAGE_CARDS)
        cards = (Ask("card", {"latent": int(j)}) for j in fired)
        held = (ask for number, side in enumerate(self.sides) for ask in side.asks(number))
        return [*self.first(), *held, *cards]

    def left_out(self) -> str:
        said = [side.left_out for side in self.sides]
        if self.with_card and is_long(self.codes):
            fired = len(np.unique(self.codes.codes.indices))
            if fired > PAGE_CARDS:
                said.append(f"the cards of all but the {PAGE_CARDS} strongest of {fired:,} latents")
        return "; ".join(dict.fromkeys(filter(None, said)))

    def text(self) -> str:
        return str(self.codes) if self.difference is None else str(self.difference)

    def _labels(self) -> Mapping[int, str]:
        return self.questions["labels"]() if "labels" in self.questions else {}

    def html(self) -> str:
        shown = []
        for number, side in enumerate(self.sides):
            if self.difference is not None:
                shown.append(f"<div><b>{still.escaped(self.difference.titles[number])}</b></div>")
            if self.layer != LATENT:
                shown.append(still_text.by_layer(side.codes, side.predictions.layer(self.layer, self.unit)))
            elif self.latents:
                shown.append(still_text.by_latents(side.codes, self.latents, self._labels()))
            else:
                shown.append(still.sample(side.codes, self.latent, self._labels()))
        if self.difference is not None:
            shown.append(still_text.differing(self.difference, self._labels()))
        if self.with_card and self.latent is not None:
            shown.append(still.card(self.questions["card"](self.latent)))
        return still.frame(*shown)


def _selection(source: Source, latent: int | None, latents: Any, follow: bool) -> Selection:
    """What the view shows at first, and moves."""
    found = source.selection_for(latent, follow)
    if latents is None:
        return found
    own = Selection(latents=latents).latents or ()
    checked = tuple(map(source.checked, own))
    if follow:
        found.latents = checked
        return found
    return Selection(sae=source.selection.sae, latent=latent, latents=checked)
