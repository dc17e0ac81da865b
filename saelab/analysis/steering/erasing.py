"""What an erasing view asks: why latents stand for a concept, its gate, and what erasing it does and breaks.

Every sample plays one part for all concepts: latents are chosen on some, gates calibrated on others, and what
is shown and measured is of the rest. Beside every figure stand random latents that move activations as far.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from saelab.analysis.steering.arms import AsOne, Controls
from saelab.analysis.steering.concepts import Concept, Parts, concept_of
from saelab.analysis.steering.effects import measuring
from saelab.analysis.steering.erasing_settings import Erased, Settings, edits_of
from saelab.analysis.steering.erasing_told import ARMS, CONTROL, Measured, concept_told, group_told, title_of
from saelab.analysis.steering.gate import GateCurve, calibrate_gate, drawn, numbers, opens_on
from saelab.analysis.steering.known import key_of
from saelab.analysis.steering.passes import passes
from saelab.analysis.steering.results import Effect
from saelab.analysis.steering.selected import documents_of
from saelab.analysis.steering.sheets import figures, forced
from saelab.analysis.steering.writing import Work, Writer, Written, finished
from saelab.capabilities import Generates, HasLogits, lacking
from saelab.interventions import Edit
from saelab.interventions.latents import Erase
from saelab.interventions.replacing import Substitute
from saelab.interventions.samples import Each
from saelab.interventions.storage import text_of
from saelab.subjects.hooks import normalise_edits
from saelab.types import ConfigError, RangeError, short

if TYPE_CHECKING:
    from saelab.corpora import Document
    from saelab.sae import SAE
    from saelab.stores import FeatureStore
    from saelab.types import Subject

COLUMNS = tuple(ARMS.values())
MOST_MEASURED, MOST_CLEAN = 24, 48
"""Samples of a concept, and clean ones, that are measured on at most."""
NATURAL = 512
"""Natural activations that take over with mode="replace", at most."""
DRAWS = 2
"""Of the random latents, in figures."""
TOP = 8
BATCH = 16


class Erasing(Writer):
    """Answers the questions of one erasing view.

    Args:
        subject: Any model; what it cannot do is left out.
        sae: Whose latents are erased.
        store: Of the SAE; not needed.
    """

    def __init__(self, subject: Subject, sae: SAE, store: FeatureStore | None = None) -> None:
        super().__init__()
        self.subject: Any = subject
        self.sae, self.store = sae, store
        self.generates = not lacking(subject, Generates) and hasattr(subject, "stream")
        self.concepts: dict[str, Concept] = {}
        self._parts = Parts()
        self._curves: dict[tuple[str, str], GateCurve] = {}
        self._natural: dict[tuple[str, ...], Tensor] = {}

    def add(
        self,
        name: str,
        positive: Iterable[Any],
        negative: Iterable[Any],
        *,
        held_out: Iterable[Any] | None = None,
        clean: Iterable[Any] | None = None,
        target: Any = None,
        method: str = "difference",
        k: int = 5,
    ) -> None:
        """Choose the latents of a concept, and calibrate its gate.

        Args:
            name: What it is called.
            positive: Samples that hold it.
            negative: Samples that do not.
            held_out: Samples of it that are shown and measured on; None: a quarter of the positive ones.
            clean: Samples without it that are measured on; None: a quarter of the negative ones.
            target: Words, or a function of texts (of a subject that does not generate, of its output); None:
                what is written is judged by the concept's own gate on the untouched subject.
            method: As in `select_latents`.
            k: How many latents, at most.

        Raises:
            ConfigError: There is such a concept, or an option is none.
            CorpusError: Too few samples, or one that is measured on and was fitted on.
            HookError: The SAE has no hook point of this subject.
        """
        if name in self.concepts:
            message = f"A concept must have a name of its own. Got {short(name)} again. Pass another."
            raise ConfigError(message)
        made = concept_of(
            self.subject, self.sae, self._parts, name, positive, negative, held_out=held_out, clean=clean,
            target=target, method=method, k=k, seed=0,
        )  # fmt: skip
        self.concepts[name] = made
        self._natural.clear()
        self._curve(name, "input")

    def settings(self, mode: str, tau: float, gate: str, tokens: int, before: str | None = None) -> str:
        """Settings, as JSON, in which each concept that is new is erased.

        Args:
            mode: As in `Settings`.
            tau: As well.
            gate: As well.
            tokens: As well.
            before: Settings that are kept for the concepts that they know.

        Raises:
            ConfigError: One of them is none of those that there are.
        """
        if before is not None:
            now = Settings.parse(before)
            known = {concept.name: concept for concept in now.concepts}
            mode, tau, gate, tokens, sample = now.mode, now.tau, now.gate, now.tokens, now.sample
        else:
            known, sample = {}, 0
        concepts = tuple(
            known.get(name) or Erased(name, True, concept.selected.latents)
            for name, concept in self.concepts.items()
        )
        return Settings(concepts, mode, tau, gate, sample, tokens).json()

    # ---- questions

    def told(self) -> dict[str, Any]:
        """What is known of the concepts.

        Returns:
            concepts: of each its name, how many samples play which part, its latents with why each was
            chosen, and the AUROC of all together on samples held out of the choice; samples: those that can
            be shown; generates: whether the subject writes.
        """
        return {
            "concepts": [concept_told(concept) for concept in self.concepts.values()],
            "samples": [{"concept": name, "title": title_of(document)} for name, document in self._shown()],
            "generates": self.generates,
        }

    def gate(self, concept: str, gate: str) -> dict[str, Any]:
        """The curve of a concept's gate, which goes by a probe whatever its latents are.

        Args:
            concept: Its name.
            gate: "input" or "token".

        Returns:
            As `saelab.analysis.steering.gate.drawn`.

        Raises:
            ConfigError: There is no such concept.
        """
        return drawn(self._curve(concept, gate))

    def measure(self, settings: str) -> dict[str, Any]:
        """Begin to measure, and let go of what was being done; `more` goes on.

        Args:
            settings: `Settings.json()`.

        Returns:
            run, done, share that is done; at the end the figures, see `measured`.
        """
        return self._begun("measured", settings, self._measuring)

    def measured(self, settings: str) -> dict[str, Any]:
        """What erasing does to concepts that are erased, to those that should stay, and to clean samples.

        Args:
            settings: `Settings.json()`.

        Returns:
            groups: of each its title, kind ("erased", "kept" or "clean"), n, rows of {measure, arms: [value,
            low, high] of each arm} and texts; arms: their names; left_out: what could not be measured.
        """
        return self._once("measured", settings, lambda: finished(self._measuring(settings)))

    def compared(self, settings: str) -> dict[str, Any]:
        """What the edits do to the output of the sample that is shown, beside their control.

        Args:
            settings: `Settings.json()`.

        Returns:
            rows of {measure, arms}, and top: [name, before, after, control] of the outputs that change most:
            probabilities of the next token, of other subjects their outputs.
        """
        return self._once("compared", settings, lambda: self._compared(Settings.parse(settings)))

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
            settings: Those whose sample stays.

        Raises:
            ConfigError: It is of another SAE or subject, or of latents of no concept of the view.
            FormatError: It is no recipe.
        """
        now = Settings.parse(settings)
        mode, edits = edits_of(text, self.sae, self.subject)
        found: dict[str, Any] = {}
        for edit in edits:
            owners = (n for n, c in self.concepts.items() if {*edit.latents} <= {*c.selected.latents})
            owner = next((name for name in owners if name not in found), None)
            if owner is None:
                message = (
                    f"A recipe must erase latents of the view's concepts. Got {short(list(edit.latents))}, "
                    f"not all of one of {', '.join(map(short, self.concepts))}. Add the concept first."
                )
                raise ConfigError(message)
            found[owner] = edit
        concepts = tuple(
            self._loaded(name, found[name])
            if name in found
            else Erased(name, False, concept.selected.latents)
            for name, concept in self.concepts.items()
        )
        some = edits[0]
        made = Settings(
            concepts,
            mode,
            getattr(some, "tau", now.tau),
            getattr(some, "gate", now.gate),
            now.sample,
            now.tokens,
        )
        for edit in edits:
            if isinstance(edit, Substitute) and not torch.equal(edit.natural, self._natural_of(made)):
                message = (
                    "A recipe that replaces activations must hold those of the view's own samples. Got "
                    "others. Apply it by subject.run(inputs, edits=saelab.interventions.load(...))."
                )
                raise ConfigError(message)
        return made.json()

    def sample(self, number: int) -> Any:
        """A held-out sample as the subject reads it.

        Args:
            number: Of `told()["samples"]`.

        Raises:
            RangeError: There is none.
        """
        document = self._document(number)
        return document if document.sample is None else document.sample

    # ---- how they are answered

    def _shown(self) -> list[tuple[str, Document]]:
        return [(n, d) for n, c in self.concepts.items() for d in c.positive.measure]

    def _document(self, number: int) -> Document:
        shown = self._shown()
        if not 0 <= number < len(shown):
            message = f"sample must be below {len(shown)}. Got {number}. Pass one of the held-out samples."
            raise RangeError(message)
        return shown[number][1]

    def _known(self, name: Any) -> Concept:
        if name not in self.concepts:
            message = f"A concept must be one of {', '.join(self.concepts)}. Got {short(name)}. Add it first."
            raise ConfigError(message)
        return self.concepts[name]

    def _curve(self, name: str, gate: Any) -> GateCurve:
        if (name, gate) not in self._curves:
            concept = self._known(name)
            edit = Erase(self.sae, concept.selected.latents, 0.0, gate, 0.0)
            self._curves[name, gate] = calibrate_gate(
                edit, concept.negative.calibrate, concept.positive.calibrate, subject=self.subject
            )
        return self._curves[name, gate]

    def _edits(self, made: Settings) -> list[Edit]:
        natural = self._natural_of(made) if made.mode == "replace" and made.erased else None
        return [made.edit(self.sae, concept, *self._gate(made, concept), natural) for concept in made.erased]

    def _gate(self, made: Settings, concept: Erased) -> tuple[float, Tensor | None]:
        """The threshold of a concept's gate, and the probe that it goes by."""
        self._known(concept.name)
        if made.mode == "ablate" or made.gate == "constant":
            return 0.0, None
        found = self._curve(concept.name, made.gate)
        threshold = found.threshold if concept.threshold is None else concept.threshold
        return threshold, found.edit.probe

    def _without(self, names: Sequence[str], documents: Iterable[Document]) -> list[Document]:
        """Documents that hold none of some concepts, each once."""
        held = frozenset().union(*(self._known(name).keys for name in names))
        by_key = {key_of(document): document for document in documents}
        return [document for key, document in by_key.items() if key not in held]

    def _loaded(self, name: str, edit: Any) -> Erased:
        """A concept as an edit erases it; its threshold is left to the calibration where it is of that."""
        threshold = getattr(edit, "threshold", None)
        if threshold is not None:
            found = self._curve(name, edit.gate)
            if edit.probe is None or not torch.equal(edit.probe, found.edit.probe):
                message = (
                    f"A recipe's gate must go by the probe that the samples of {name!r} give here. Got "
                    f"{'none' if edit.probe is None else 'another'}. Give the view the same samples."
                )
                raise ConfigError(message)
            threshold = None if threshold == found.threshold else threshold
        return Erased(name, True, edit.latents, threshold)

    def _natural_of(self, made: Settings) -> Tensor:
        """float32 [n, width] activations where the SAE writes, of samples without what is erased."""
        names = tuple(concept.name for concept in made.erased)
        if names not in self._natural:
            documents = self._without(names, (d for n in names for d in self.concepts[n].negative.choose))
            if not documents:
                message = (
                    "Natural activations must be of samples without any concept that is erased. Got none. "
                    "Add a concept with negative samples that hold none of the others."
                )
                raise ConfigError(message)
            hook = self.sae.writes[-1]
            rows = torch.cat([
                each.run.acts[str(hook)][each.kept] for each in passes(self.subject, documents, [hook], BATCH)
            ])  # fmt: skip
            self._natural[names] = rows[:: -(-len(rows) // NATURAL)].float().cpu()
        return self._natural[names]

    def _clean(self, made: Settings) -> list[Document]:
        names = [concept.name for concept in made.erased]
        every = (d for concept in self.concepts.values() for d in concept.negative.measure)
        return some_of(self._without(names, every), MOST_CLEAN)

    def _control(self, made: Settings, edits: list[Edit], document: Document) -> list[Edit]:
        """Random latents that move the activations of a sample as far; [] where there are none."""
        if not edits:
            return []
        natural = self._clean(made) or [document]
        found = Controls(self.subject, [CONTROL], 1, None, natural, 0, BATCH).of(edits, [document])
        return [AsOne(found[CONTROL][0])] if CONTROL in found else []

    def _stream(self, settings: str) -> Written:
        made = Settings.parse(settings)
        document = self._document(made.sample)
        edits = self._edits(made)
        arms = [[], edits, self._control(made, edits, document)]
        each = Each(tuple(map(tuple, arms))) if edits else ()
        prompts = [document.text] * len(COLUMNS)
        return Written(self.subject.stream(prompts, each, max_new_tokens=made.tokens), COLUMNS)

    def _measuring(self, settings: str) -> Work:
        return Measured(self._figures(Settings.parse(settings)))

    def _figures(self, made: Settings) -> Iterator[float | dict[str, Any]]:
        edits = self._edits(made)
        if not edits:
            yield {"groups": [], "arms": [], "left_out": []}
            return
        on = [concept.name for concept in made.erased]
        clean = self._clean(made)
        groups, left_out = [], {}
        for at, concept in enumerate(self.concepts.values()):
            first = at == 0
            documents = some_of(concept.positive.measure, MOST_MEASURED)
            work = measuring(
                self.subject, edits, documents, target=self._target(concept),
                clean=clean if first and clean else None,
                controls=[CONTROL], draws=DRAWS, max_new_tokens=made.tokens * self.generates,
                # the session keeps its own samples apart, whatever the same latents were fitted on elsewhere
                allow_fitted=True, batch_size=BATCH,
            )  # fmt: skip
            for step in work:
                if isinstance(step, Effect):
                    kind = "erased" if concept.name in on else "kept"
                    groups.append(group_told(concept.name, kind, step, documents))
                    if first and clean:
                        groups.append(group_told("clean samples", "clean", step, clean))
                    left_out |= step.left_out
                else:
                    yield (at + step) / (len(self.concepts) + 1)
        groups.sort(key=lambda group: ("erased", "kept", "clean").index(group["kind"]))
        yield {
            "groups": groups,
            "arms": list(ARMS.values()),
            "left_out": [f"{name}: {why}" for name, why in left_out.items()],
        }

    def _target(self, concept: Concept) -> Any:
        if concept.target is not None:
            words = isinstance(concept.target, tuple)
            return concept.target if self.generates or not words else None
        if not self.generates:
            return None
        gate = self._curve(concept.name, "input").edit

        def found(texts: Sequence[str]) -> np.ndarray:
            out = np.zeros(len(texts))
            some = [i for i, text in enumerate(texts) if text.strip()]
            documents = documents_of([texts[i] for i in some], self.subject.corpus)
            out[some] = opens_on(gate, self.subject, documents) if some else 0
            return out

        return found

    def _compared(self, made: Settings) -> dict[str, Any]:
        document = self._document(made.sample)
        edits = self._edits(made)
        arms: dict[str, Any] = {name: [] for name in COLUMNS}
        arms["after"] = normalise_edits(edits)
        arms[CONTROL] = normalise_edits(self._control(made, edits, document))
        hooks = list(self.sae.writes)
        # with a prefix the loss is measured too
        sheets, _ = forced(self.subject, arms, [document], hooks, {}, prefix="clean ", batch_size=1)
        told = {name: figures([sheet], 0) for name, sheet in sheets.items()}
        rows = [
            {"measure": name, "arms": [numbers(told[arm][f"clean {name}"].value)[0] for arm in COLUMNS]}
            for name in ("loss", "kl", "output", "identical", "touched")
            if f"clean {name}" in told["before"]
        ]
        return {"rows": rows, "top": self._top(arms, document)}

    def _top(self, arms: Mapping[str, Any], document: Document) -> list[list[Any]]:
        """The outputs that the edits change most, at the last position that counts where there are positions;
        of none of what is no row of numbers."""
        values = []
        words = not lacking(self.subject, HasLogits)
        (each,) = passes(self.subject, [document], list(self.sae.writes), 1)
        for edits in arms.values():
            with torch.no_grad():
                out = self.subject.run(each.inputs, edits=edits).output[0].double().cpu()
            if words:
                out = out[-1].softmax(-1)
            elif out.ndim != 1:
                return []
            values.append(out)
        before, after, *_ = values
        order = (after - before).abs().argsort(descending=True)[:TOP]
        order = order[(after - before)[order] != 0]
        names = (
            self.subject.token_strings(order.tolist()) if words else [f"output {i}" for i in order.tolist()]
        )
        return [
            [name, *numbers(*(float(v[i]) for v in values))] for name, i in zip(names, order, strict=True)
        ]


def some_of(documents: Sequence[Document], most: int) -> list[Document]:
    """Some of them, evenly, at most so many.

    Args:
        documents: Any.
        most: How many.
    """
    return list(documents)[:: max(1, -(-len(documents) // most))]


__all__ = ["Erasing"]
