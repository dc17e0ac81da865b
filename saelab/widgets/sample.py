"""A sample as a heatmap of its latents: tokens, items, patches over their picture."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import traitlets

from saelab.analysis.results import SampleCodes
from saelab.arguments import flag
from saelab.stores.characters import joined
from saelab.widgets import still
from saelab.widgets.base import View, checked_questions
from saelab.widgets.cards import asks_card, card_answers
from saelab.widgets.questions import Ask
from saelab.widgets.source import HasSources
from saelab.widgets.wire import Packed, clean, picture


class SampleView(View):
    """Positions shaded by the chosen latent; without one, or where it is silent, by the strongest of each.

    Args:
        codes: The sample's.
        questions: See `card_answers`; "labels": () -> {latent: label}, if there are any.
        options: `with_card`: show the chosen latent's card below. Others: see `View`.

    Raises:
        ConfigError: A question is missing, or an option unknown.
    """

    kind = "sample"
    follows = ("latent", "row", "document")
    with_card = traitlets.Bool(False).tag(sync=True)

    def __init__(
        self, codes: SampleCodes, questions: Mapping[str, Callable[..., Any]], **options: Any
    ) -> None:
        self.codes = codes
        self.questions = checked_questions(questions, "card")
        super().__init__(**options)

    @staticmethod
    def of(
        lab: HasSources,
        sample: Any,
        latent: int | None = None,
        *,
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
            sae: name of the SAE; None: the chosen one.
            with_card: show the chosen latent's card.
            follow: choose the latent in every linked view, and be one of them.

        Raises:
            CorpusError: The sample is empty, or of another kind.
            RangeError: The latent is out of range.
        """
        source = lab.source(sae)
        codes, questions = source.codes(sample), source.questions
        selection = source.selection_for(latent, follow)
        return SampleView(
            codes,
            questions=questions,
            selection=selection,
            with_card=flag("with_card", with_card),
            edits=source.edits,
        )

    def answers(self) -> Mapping[str, Callable[..., Packed]]:
        return {"codes": lambda: pack_codes(self.codes, self._labels()), **card_answers(self.questions)}

    def first(self) -> Iterable[Ask]:
        return [Ask("codes"), *(asks_card(self.latent) if self.with_card else [])]

    def exported(self) -> Iterable[Ask]:
        fired = np.unique(self.codes.codes.indices) if self.with_card else []
        return [Ask("codes"), *(Ask("card", {"latent": int(j)}) for j in fired)]

    def text(self) -> str:
        return str(self.codes)

    def _labels(self) -> Mapping[int, str]:
        return self.questions["labels"]() if "labels" in self.questions else {}

    def html(self) -> str:
        shown = [still.sample(self.codes, self.latent, self._labels())]
        if self.with_card and self.latent is not None:
            shown.append(still.card(self.questions["card"](self.latent)))
        return still.frame(*shown)


def pack_codes(result: SampleCodes, labels: Mapping[int, str] | None = None) -> Packed:
    """What each position shows, of which kind that is, how they lie, whether they are counted, and the codes
    in CSR form; the picture, if there is one; of the latents that fire the labels."""
    codes, document = result.codes, result.document
    fired = map(int, np.unique(codes.indices))
    kinds = {facet: i for i, facet in enumerate(dict.fromkeys(each.facet for each in result.shown))}
    return Packed(
        {
            "facets": list(kinds),
            "parts": [list(part) for part in result.parts()],
            "calls": result.calls,
            "parted": result.parted,
            "starts": list(result.starts),
            "labels": list(map(clean, document.labels)),
            "named": {str(j): clean(labels[j]) for j in fired if labels and labels.get(j)},
        },
        {
            "names": [None if name is None else clean(name) for name in joined(result.names)],
            "facets": np.array([kinds[each.facet] for each in result.shown], np.uint8),
            "counted": result.counted,
            "indptr": codes.indptr.astype(np.int32),
            "indices": codes.indices.astype(np.int32),
            "values": codes.values.astype(np.float32),
            "picture": picture(document.media),
        },
    )
