"""Erasing concepts: their latents and gates, what the model gives then, and what that breaks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import traitlets

from saelab.types import StoreError
from saelab.widgets import still
from saelab.widgets.base import View
from saelab.widgets.cards import asks_card, card_answers
from saelab.widgets.questions import Ask
from saelab.widgets.source import HasSources, Source
from saelab.widgets.wire import Packed, clean, picture

if TYPE_CHECKING:
    import pandas as pd

PLAIN = ("begin", "measure", "more", "stop", "written", "compared", "measured", "gate")
"""Questions that the session answers as they are."""


class EraseView(View):
    """Concepts as toggles, their latents with why each was chosen, their gates, and before and after on
    held-out samples beside random latents.

    Args:
        session: Answers the questions: `saelab.analysis.steering.erasing.Erasing`.
        source: Of the SAE.
        settings: The first ones, as JSON.
        options: See `View`.

    Raises:
        ConfigError: An option is unknown.
    """

    kind = "erase"
    follows = ("latent", "row", "document")

    settings = traitlets.Unicode().tag(sync=True)

    def __init__(self, session: Any, source: Source, settings: str, **options: Any) -> None:
        self.session, self.source = session, source
        super().__init__(settings=settings, **options)

    @staticmethod
    def of(
        lab: HasSources,
        concept: str,
        positive: Iterable[Any],
        negative: Iterable[Any],
        *,
        held_out: Iterable[Any] | None = None,
        clean: Iterable[Any] | None = None,
        target: Any = None,
        method: str = "difference",
        k: int = 5,
        mode: str = "scale",
        tau: float = 0.0,
        gate: str = "input",
        max_new_tokens: int = 30,
        sae: str | None = None,
    ) -> EraseView:
        """Erase a concept: latents are chosen by contrast, a gate is calibrated, and what erasing does and
        breaks is shown on samples that had no part in either, beside random latents. `add` takes further
        concepts.

        Args:
            lab: whose model and latents they are.
            concept: What it is called.
            positive: Samples that hold it: texts, or what else the subject reads. A half chooses latents, a
                quarter calibrates the gate, a quarter is shown and measured on.
            negative: Samples that do not.
            held_out: Samples of it to show and measure on, instead of that quarter.
            clean: Samples without it to measure on, instead of that quarter.
            target: What is counted in continuations: words, or a function of texts (of a subject that does
                not generate, of its output); None: they are judged by the concept's own gate, which reads
                them on the untouched subject.
            method: Of `saelab.analysis.select_latents`.
            k: Latents, at most.
            mode: At first: "scale" (`saelab.interventions.Erase`), "ablate" (`Ablate`, which has no gate) or
                "replace" (`Substitute`: natural activations take over).
            tau: What codes are multiplied by, with "scale".
            gate: Where it acts: "input", "token" or "constant".
            max_new_tokens: How many tokens are written.
            sae: name of the SAE; None: the chosen one.

        Raises:
            CorpusError: Too few samples, one on both sides, or one that is measured on and was fitted on.
            ConfigError: An option is none of those that there are.
            HookError: The SAE has no hook point of the subject.
        """
        source = lab.source(sae)
        session = source.questions["session"]("erasing")
        session.settings(mode, tau, gate, max_new_tokens)  # refuses them before anything is computed
        session.add(
            cleaned(concept),
            positive,
            negative,
            held_out=held_out,
            clean=clean,
            target=target,
            method=method,
            k=k,
        )
        settings = session.settings(mode, tau, gate, max_new_tokens)
        return EraseView(session, source, settings, selection=source.selection, edits=source.edits)

    def add(
        self,
        concept: str,
        positive: Iterable[Any],
        negative: Iterable[Any],
        *,
        held_out: Iterable[Any] | None = None,
        clean: Iterable[Any] | None = None,
        target: Any = None,
        method: str = "difference",
        k: int = 5,
    ) -> EraseView:
        """Another concept, which is erased too until it is switched off; then it is one that should stay.

        Args:
            concept: What it is called.
            positive: As in `lab.erase`, and so are the others.
            negative: Samples without it.
            held_out: Samples of it to measure on.
            clean: Samples without it to measure on.
            target: What is counted in continuations.
            method: Of the choice.
            k: Latents, at most.

        Returns:
            The view itself.

        Raises:
            CorpusError: As `lab.erase`; also where one of its samples was measured on or fitted on for
                another concept, and would now be the other.
            ConfigError: There is such a concept.
        """
        self.session.add(
            cleaned(concept),
            positive,
            negative,
            held_out=held_out,
            clean=clean,
            target=target,
            method=method,
            k=k,
        )
        self.settings = self.session.settings("scale", 0.0, "input", 1, before=self.settings)
        self.opening = self._opening()
        return self

    def figures(self) -> pd.DataFrame:
        """Measure what erasing does with the settings that the view began with.

        Returns:
            One line a figure: group, kind ("erased", "kept", "clean"), measure, arm ("before", "after",
            "random latents"), value, from, to (95 %).
        """
        import pandas as pd

        columns = ["group", "kind", "measure", "arm", "value", "from", "to"]
        lines = [
            [group["title"], group["kind"], row["measure"], arm, *figure]
            for group in self.session.measured(self.settings)["groups"]
            for row in group["rows"]
            for arm, figure in row["arms"].items()
            if figure is not None
        ]
        return pd.DataFrame(lines, columns=columns)

    def answers(self) -> Mapping[str, Callable[..., Packed]]:
        session, questions = self.session, self.source.questions
        return {
            **{name: _packed(getattr(session, name)) for name in PLAIN},
            **card_answers(questions),
            # what came along with a view is not asked for anew: by the number of concepts it shows its age
            "told": lambda concepts: Packed({}, {"told": self._told()}),
            "input": self._input,
            "recipe": lambda settings: Packed({}, {"text": session.recipe(settings)}),
            "load": lambda text, settings: Packed({"settings": session.load(text, settings)}),
            "kept": lambda: Packed({}, {"settings": self._kept()}),
        }

    def first(self) -> Iterable[Ask]:
        written = "written" if self.session.generates else "input"
        return [self._asks_told(), *self._asks(self.settings, written)]

    def exported(self) -> Iterable[Ask]:
        written = "written" if self.session.generates else "input"
        asks = [self._asks_told(), Ask("kept")]
        for settings in self._kept():
            asks += [*self._asks(settings, written), Ask("measured", {"settings": settings})]
        if self._has_cards():
            latents = [j for c in self.session.concepts.values() for j in c.selected.latents]
            asks += [ask for latent in latents for ask in asks_card(latent)]
        return list({ask.key(): ask for ask in asks}.values())

    def text(self) -> str:
        made = json.loads(self.settings)
        lines = [self._title(made)]
        for told, own in zip(self._told()["concepts"], made["concepts"], strict=True):
            low, high = (_number(v) for v in told["auroc"][1:])
            lines.append(
                f"{told['name']} ({'erased' if own['on'] else 'kept'}): latents by {told['method']}, AUROC "
                f"{_number(told['auroc'][0])} [{low}, {high}] held out"
            )
            lines += [
                f"  #{each['latent']} {each['name']}  input {_number(each['input_score'])}, output "
                f"{_number(each['output_score'])}, alone {_number(each['held_out'])}"
                for each in told["latents"]
            ]
            lines += [f"  {note}" for note in told["notes"]]
        if self.session.generates:
            columns = self.session.written(self.settings)["columns"]
            lines += [f"{c['name']}: {''.join(c['tokens'])}" for c in columns]
        known = self.session.kept.get(("measured", self.settings))
        for group in known["groups"] if known else []:
            lines.append(f"{group['title']} ({group['kind']}, {group['n']} samples)")
            lines += [f"  {row['measure']}: {_arms(row['arms'])}" for row in group["rows"]]
        return clean("\n".join(lines))

    def html(self) -> str:
        shown = [still.words(self.text())]
        if self.session.generates:
            shown += map(still.written, self.session.written(self.settings)["columns"])
        return still.frame(*shown)

    def _title(self, made: Mapping[str, Any]) -> str:
        names = ", ".join(c["name"] for c in made["concepts"] if c["on"]) or "nothing"
        how = {"scale": f"scale by {made['tau']:g}", "ablate": "ablate", "replace": "detect and replace"}
        gate = "" if made["mode"] == "ablate" else f", gate {made['gate']}"
        return f"erasing {names}: {how[made['mode']]}{gate}"

    def _asks_told(self) -> Ask:
        return Ask("told", {"concepts": len(self.session.concepts)})

    def _asks(self, settings: str, written: str) -> list[Ask]:
        made = json.loads(settings)
        args = {"settings": settings} if written == "written" else {"sample": made["sample"]}
        asks = [Ask(written, args), Ask("compared", {"settings": settings})]
        for concept in made["concepts"]:
            if concept["latents"] and made["mode"] != "ablate" and made["gate"] != "constant":
                asks.append(Ask("gate", {"concept": concept["name"], "gate": made["gate"]}))
        return asks

    def _kept(self) -> list[str]:
        """All settings of which something was computed to its end."""
        kept = (settings for question, settings in self.session.kept if question in ("written", "measured"))
        current = len(json.loads(self.settings)["concepts"])
        return [
            settings
            for settings in dict.fromkeys([self.settings, *kept])
            if len(json.loads(settings)["concepts"]) == current
        ]

    def _told(self) -> dict[str, Any]:
        told, names = self.session.told(), self._names()
        for concept in told["concepts"]:
            for each in concept["latents"]:
                each["name"] = names[each["latent"]] if each["latent"] < len(names) else ""
        return cleaned({**told, "cards": bool(names)})

    def _input(self, sample: int) -> Packed:
        """What a sample shows where it is no prompt: its picture, if it has one."""
        document = self.source.codes(self.session.sample(sample)).document
        labels = clean(", ".join(document.labels))
        return Packed(
            {"title": clean(document.title), "labels": labels}, {"picture": picture(document.media)}
        )

    def _names(self) -> list[str]:
        try:
            return list(self.source.table().names)
        except StoreError:  # an SAE without a store has neither names nor cards
            return []

    def _has_cards(self) -> bool:
        return bool(self._names())


def cleaned(value: Any) -> Any:
    """JSON data whose strings can be sent."""
    if isinstance(value, dict):
        return {clean(key): cleaned(each) for key, each in value.items()}
    if isinstance(value, list):
        return [cleaned(each) for each in value]
    return clean(value) if isinstance(value, str) else value


def _packed(answer: Callable[..., dict[str, Any]]) -> Callable[..., Packed]:
    return lambda **args: Packed(cleaned(answer(**args)))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _arms(arms: Mapping[str, list[float | None] | None]) -> str:
    told = []
    for name, figure in arms.items():
        if figure is not None:
            value, low, high = map(_number, figure)
            told.append(f"{name} {value} [{low}, {high}]")
    return "; ".join(told)
