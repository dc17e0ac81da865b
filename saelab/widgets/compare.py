"""Two SAEs side by side: pairs of latents, what each has alone, a text under both, their scores."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from saelab.analysis.results import LatentTable, SampleCodes
from saelab.stores.characters import joined
from saelab.types import ConfigError, short
from saelab.widgets import still_compare
from saelab.widgets.base import View, checked_questions
from saelab.widgets.cards import card_answers
from saelab.widgets.questions import Ask
from saelab.widgets.selection import Number, Selection
from saelab.widgets.sides import strongest_values
from saelab.widgets.source import HasSources
from saelab.widgets.wire import Packed, clean, cleaned, rounded

PAGE_CARDS = 200
"""Latents of each SAE whose cards an exported page holds: those of the first pairs."""
TEXTS = 8
"""Texts that are kept as they were read."""


class CompareView(View):
    """A list of pairs to sort and filter, beside the cards of the chosen one; what each SAE has alone; one
    text under both; their scores beside untrained ones.

    Args:
        compared: What `saelab.analysis.compare` gives.
        tables: One line a latent, of each SAE.
        questions: Of our SAE: "card"; "scores" (a function without arguments), where a model is at hand.
        other_questions: Of theirs: "card".
        read: Reads a text under both SAEs, where a model is at hand.
        other_selection: What the views of the other SAE share.
        options: `other`: the chosen latent of the other SAE. Others: see `View`.

    Raises:
        ConfigError: A question is missing, or an option unknown.
    """

    kind = "compare"
    follows = ("latent",)
    other = Number().tag(sync=True)

    def __init__(
        self,
        compared: Any,
        tables: tuple[LatentTable, LatentTable],
        questions: Mapping[str, Callable[..., Any]],
        other_questions: Mapping[str, Callable[..., Any]],
        *,
        read: tuple[Callable[[str], SampleCodes], Callable[[str], SampleCodes]] | None = None,
        other_selection: Selection | None = None,
        **options: Any,
    ) -> None:
        self.compared, self.tables = compared, tables
        self.questions = checked_questions(questions, "card")
        self.other_questions = checked_questions(other_questions, "card")
        self.other_selection = other_selection if other_selection is not None else Selection()
        self.scored: Any = None
        self._read = None if read is None else lru_cache(TEXTS)(lambda text: (read[0](text), read[1](text)))
        self._open_on(options)
        if options.get("other") is not None:  # first, so that our SAE is the one that is chosen
            self.other_selection.latent = options["other"]
        super().__init__(**options)
        self.observe(self._chosen_other, "other")
        self.other_selection.observe(self._selected_other, "latent")

    @staticmethod
    def of(lab: HasSources, other: HasSources | str, *, sae: str | None = None) -> CompareView:
        """Two SAEs side by side: layers, runs, or whatever two stores are of.

        Latents are paired by their decoders where both SAEs have one width, and by firing together where both
        stores are of the same rows, beside what chance finds.

        Args:
            lab: whose SAE is ours.
            other: the name of another SAE of this Lab, or another Lab, whose chosen SAE is taken.
            sae: name of our SAE; None: the chosen one.

        Raises:
            ConfigError: There is no such SAE.
            StoreError: An SAE has no store, or the two share neither a width nor rows.
        """
        ours = lab.source(sae)
        if not isinstance(other, str) and not hasattr(other, "source"):
            message = (
                f"other must be the name of an SAE of this Lab, or a Lab. Got {short(other)}. Pass "
                "lab.compare('name') or lab.compare(Lab(...))."
            )
            raise ConfigError(message)
        theirs = lab.source(other) if isinstance(other, str) else other.source()
        return CompareView(
            ours.questions["compare"](theirs),
            (ours.table(), theirs.table()),
            questions={**ours.questions, "scores": lambda: ours.questions["scores"](theirs)},
            other_questions=theirs.questions,
            read=(ours.codes, theirs.codes),
            selection=ours.selection,
            other_selection=theirs.selection,
            edits=ours.edits,
        )

    def answers(self) -> Mapping[str, Callable[..., Packed]]:
        own, others = card_answers(self.questions), card_answers(self.other_questions)
        return {
            "pairs": lambda: pack_pairs(self.compared),
            "names": self._names,
            "text": self._text,
            "scores": self._scores,
            **own,
            **{f"other_{question}": answer for question, answer in others.items()},
        }

    def first(self) -> Iterable[Ask]:
        chosen = (("card", self.latent), ("other_card", self.other))
        cards = [Ask(name, {"latent": latent}) for name, latent in chosen if latent is not None]
        return [Ask("pairs"), Ask("names"), *cards]

    def exported(self) -> Iterable[Ask]:
        sides = zip(("card", "other_card"), self.compared.pairs[:PAGE_CARDS].T, strict=True)
        cards = [Ask(name, {"latent": int(j)}) for name, side in sides for j in np.unique(side)]
        scores = [] if self.scored is None else [Ask("scores")]
        return {ask.key(): ask for ask in [*self.first(), *scores, *cards]}.values()

    def left_out(self) -> str:
        n = len(self.compared.pairs)
        return f"the cards of all pairs but the first {PAGE_CARDS} of {n:,}" if n > PAGE_CARDS else ""

    def text(self) -> str:
        lines = [str(self.compared)]
        for i, j in self.compared.pairs[:10].tolist():
            told = (f"#{k} {table.names[k]}" for k, table in zip((i, j), self.tables, strict=True))
            lines.append(" | ".join(told))
        return "\n".join(lines if self.scored is None else [*lines, str(self.scored)])

    def html(self) -> str:
        return still_compare.compared(self.compared, self.tables, self.questions["card"],
                                      self.other_questions["card"], (self.latent, self.other))  # fmt: skip

    def close(self) -> None:
        """Take the view away, in the browser too; both selections let go of it."""
        if self._link is not None:
            self.other_selection.unobserve(self._selected_other, "latent")
        super().close()

    def _open_on(self, options: dict[str, Any]) -> None:
        """Where nothing of ours is chosen the first pair is; else the first partner of what is."""
        chosen = options.get("latent")
        if chosen is None and options.get("selection") is not None:
            chosen = options["selection"].latent
        pairs = (
            self.compared.pairs
            if chosen is None
            else self.compared.pairs[self.compared.pairs[:, 0] == chosen]
        )
        if len(pairs) and options.get("other") is None:
            options["latent"], options["other"] = map(int, pairs[0])

    def _names(self) -> Packed:
        ours, theirs = (list(map(clean, table.names)) for table in self.tables)
        return Packed({}, {"ours": ours, "theirs": theirs})

    def _text(self, text: str, latent: int, other: int) -> Packed:
        """A text and the codes of both chosen latents along it; of the strongest latent of each position for
        -1."""
        if self._read is None:
            message = "A text is read by a model. Got none. Make the view by a Lab with one."
            raise ConfigError(message)
        both = self._read(text)
        return pack_text(both, (latent, other))

    def _scores(self) -> Packed:
        if self.scored is None:
            if "scores" not in self.questions:
                message = "Scores are measured with a model. Got none. Make the view by a Lab with one."
                raise ConfigError(message)
            self.scored = self.questions["scores"]()
        frame = self.scored.to_frame().drop(columns="beside")  # all beside untrained SAEs
        rows = [[str(score), clean(str(sae)), *map(rounded, map(float, values))]
                for score, sae, *values in frame.itertuples(index=False, name=None)]  # fmt: skip
        of = {name: [report.hook, report.n_rows] for name, report in self.scored.reports.items()}
        return Packed({"columns": list(frame.columns), "rows": rows, "of": of})

    def _chosen_other(self, change: Any) -> None:
        self.other_selection.latent = change.new

    def _selected_other(self, change: Any) -> None:
        self.other = change.new


def pack_pairs(compared: Any) -> Packed:
    """Pairs and own latents.

    Args:
        compared: What `saelab.analysis.compare` gives.

    Returns:
        Header: `names` of the SAEs, `measures` (name -> what both thresholds are), `shares` (rows of words),
        `reasons`. Fields: `ours`, `theirs` int32 of pairs; for each measure M `M` float32 and `M_kind` uint8
        of pairs, and the latents `M_own_ours`, `M_own_theirs`, `M_left_ours`, `M_left_theirs` int32.
    """
    shares = [
        [measure, clean(name), str(side.share), rounded(side.threshold)]
        for measure, both in compared.sides.items()
        for name, side in zip(compared.names, both, strict=True)
    ]
    header = {
        "names": [clean(name) for name in compared.names],
        "n_latents": list(compared.n_latents),
        "measures": list(compared.sides),
        "shares": shares,
        "reasons": [clean(reason) for reason in compared.reasons],
    }
    fields: dict[str, Any] = {}
    for at, name in enumerate(("ours", "theirs")):
        fields[name] = compared.pairs[:, at].astype(np.int32)
        for measure in compared.sides:
            fields[f"{measure}_own_{name}"] = compared.own[measure][at].astype(np.int32)
            fields[f"{measure}_left_{name}"] = compared.left_out[measure][at].astype(np.int32)
    for measure in compared.sides:
        fields[measure] = compared.scores[measure].astype(np.float32)
        fields[f"{measure}_kind"] = compared.kinds[measure].astype(np.uint8)
    return Packed(header, fields)


def pack_text(both: tuple[SampleCodes, SampleCodes], latents: tuple[int, int]) -> Packed:
    """One text under two SAEs.

    Args:
        both: Its codes.
        latents: Of each SAE; -1 for the strongest of each position.

    Returns:
        Fields of either side, `ours` and `theirs` before them: `names` (json) and `values` float32 of each
        position; two models may cut a text differently.
    """
    fields: dict[str, Any] = {}
    for name, codes, latent in zip(("ours", "theirs"), both, latents, strict=True):
        fields[f"{name}_names"] = cleaned(joined(codes.names))
        fields[f"{name}_values"] = codes.of(latent) if latent >= 0 else strongest_values(codes)
    return Packed({}, fields)


__all__ = ["CompareView", "pack_pairs", "pack_text"]
