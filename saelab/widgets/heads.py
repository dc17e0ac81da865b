"""Attention heads on a text: where each looks, which wrote a latent, and what the model does without it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import traitlets

from saelab.analysis.results import SampleCodes
from saelab.analysis.results_heads import HeadExamples
from saelab.arguments import maybe, one_of
from saelab.stores.characters import joined
from saelab.types import ConfigError, SaelabError, StoreError
from saelab.widgets import still, still_heads
from saelab.widgets.base import View
from saelab.widgets.cards import asks_card, card_answers
from saelab.widgets.heads_packed import (
    pack_check,
    pack_corpus,
    pack_dfa,
    pack_effects,
    pack_head,
    pack_matrices,
    pack_parts,
    pack_pattern,
    pack_prefix,
    pack_tree,
    pack_where,
)  # fmt: skip
from saelab.widgets.questions import Ask
from saelab.widgets.sides import pack_codes
from saelab.widgets.source import HasSources, Source
from saelab.widgets.wire import Packed, clean, cleaned, rounded

if TYPE_CHECKING:
    from saelab.analysis.results_attention import DFA

COLOURS = ("dfa", "gradient", "weights", "ablation", "attention", "corpus", "induction")
DEEP, SHALLOW = (4, 3), (3, 2)
"""Depth and width of the way back, in a small model and in others."""
KEPT = 256
"""Answers to one question that took a pass, at most, that a page can have."""


class HeadsView(View):
    """Layers x heads, coloured by who wrote a latent, what is lost without a head, or where it looks; the
    pattern of a head, its latents, the sources of a token, and the way back as a tree.

    Args:
        session: Answers the questions: `saelab.analysis.attention.looking.HeadSession`, with its text.
        source: Of the SAE.
        others: Name -> source of another SAE of the Lab, whose latents may lie on the way back.
        options: `layer`, `head`, `dest`: what is looked at first, -1 for none (of dest: where the latent is
            strongest). `colour`: the grid's. Others: see `View`.

    Raises:
        ConfigError: An option is unknown.
    """

    kind = "heads"
    follows = ("latent", "row", "document")

    layer = traitlets.Int(-1).tag(sync=True)
    head = traitlets.Int(-1).tag(sync=True)
    dest = traitlets.Int(-1).tag(sync=True)
    colour = traitlets.Unicode("").tag(sync=True)

    def __init__(
        self,
        session: Any,
        source: Source,
        others: Callable[[str], Source] | None = None,
        **options: Any,
    ) -> None:
        self.session, self.source, self._others = session, source, others
        self._kept: dict[str, dict[str, tuple[Ask, Packed]]] = {}
        super().__init__(**options)

    @staticmethod
    def of(
        lab: HasSources,
        text: str,
        latent: int | None = None,
        *,
        dest: int | None = None,
        colour: str | None = None,
        examples: HeadExamples | None = None,
        sae: str | None = None,
        follow: bool = False,
    ) -> HeadsView:
        """Attention heads on a text: which of them, from which tokens, wrote a latent, and what the model
        does without each.

        A grid of layers and heads, coloured by what heads moved (`saelab.analysis.dfa`), by the latent's
        weights, by what is lost without a head, or by where heads look; of a chosen head its pattern and the
        latents that belong to it; the sources of a chosen token; the way back to the embeddings as a tree.
        Scores stand beside their controls.

        Args:
            lab: whose subject reads the text. SAEs of it on attention, and transcoders, are met on the way
                back.
            text: of two tokens at least.
            latent: whose heads are told; the view is pinned to it. Without one it is linked: it follows what
                is chosen in the other linked views of its SAE.
            dest: the position that is looked at, BOS counted; None: where the latent is strongest.
            colour: of the grid at first: "dfa", "gradient", "weights", "ablation", "attention", "corpus" or
                "induction"; None: "dfa" where a latent is chosen that heads write, else "attention".
            examples: what heads do over a corpus: of `saelab.analysis.head_examples` or `read_headvis`; None:
                over the first documents of the SAE's store, when the view asks.
            sae: name of the SAE; None: the chosen one.
            follow: choose the latent in every linked view, and be one of them.

        Raises:
            SubjectError: The subject has no attention that can be read.
            CorpusError: The text has fewer than two tokens, or more than 512.
            RangeError: The latent or position is out of range.
            ConfigError: There is no such colour, or the examples are none.
            ShapeError: They are of a model of other layers and heads.
        """
        source = lab.source(sae)
        colour = maybe(one_of(*COLOURS))("colour", colour)
        selection = source.selection_for(latent, follow)
        session = source.questions["session"]("heads")
        session.read(text, lambda: _saes(lab))
        if examples is not None:
            session.over(_examples(examples))
        attributed = selection.latent is not None and not session.why
        return HeadsView(
            session,
            source,
            lab.source,
            dest=-1 if dest is None else session.position(dest),
            colour=colour or ("dfa" if attributed else "attention"),
            selection=selection,
            edits=source.edits,
        )

    # ---- for the browser

    def answers(self) -> Mapping[str, Callable[..., Packed]]:
        session = self.session
        kept: dict[str, Callable[..., Packed]] = {
            "where": lambda latent: pack_where(session.where(latent), self._name(latent)),
            "dfa": lambda latent, dest: pack_dfa(session.dfa(latent, dest), session.patterns[:, :, dest]),
            "gradient": lambda latent, dest: pack_parts(session.gradient(latent, dest)),
            "shares": lambda latent: pack_matrices(session.shares(latent)),
            "pattern": lambda layer, head: pack_pattern(session.patterns[layer, head]),
            "top": self._top,
            "without": lambda latent, dest, layer: Packed(
                {}, {"effects": session.without(latent, dest, layer).astype(np.float32)}
            ),
            "effects": lambda latent, dest: pack_effects(session.effects(latent, dest)),
            "check": lambda latent, dest: pack_check(session.check(latent, dest)),
            "tree": self._tree,
            "corpus": lambda: pack_corpus(session.corpus),
            "examples": lambda layer, head: pack_head(session.corpus.head(layer, head), session.corpus),
            "prefix": lambda length: pack_prefix(session.prefix(length)),
            "induction": lambda: pack_matrices(_induction(session.induction())),
        }
        own = card_answers(self.source.questions)
        others = {f"other_{name}": self._of_other(name) for name in own} if self._others else {}
        return {
            "told": self._told,
            "codes": lambda: pack_codes(self._codes(), self._labels()),
            **{name: self._keeping(name, answer) for name, answer in kept.items()},
            "choose": self._choose,
            **own,
            **others,
        }

    def first(self) -> Iterable[Ask]:
        asks = [Ask("told")]
        if self._fires_known():
            asks.append(Ask("codes"))
        if self.latent is not None and not self.session.why and self.session.small:
            asks += self._asks(self.latent, self.dest)
        return asks

    def exported(self) -> Iterable[Ask]:
        session, latent = self.session, self.latent
        asks = [*self.first()]
        layers, heads = session.patterns.shape[:2]
        if latent is not None and not session.why:
            where = session.where(latent)
            asks += self._asks(latent, self.dest)
            asks += [Ask("dfa", {"latent": latent, "dest": i}) for i in range(len(session.tokens))]
            asks.append(Ask("gradient", {"latent": latent, "dest": where.dest}))
            asks.append(self._asks_tree(latent, where.dest))
        asks += [ask for known in self._kept.values() for ask, _ in known.values()]
        asks += [Ask(q, {"layer": i, "head": j}) for q in ("pattern", "top")
                 for i in range(layers) for j in range(heads)]  # fmt: skip
        if self._names():
            asks += [ask for j in self._fired() for ask in asks_card(j)]
        return {ask.key(): ask for ask in asks}.values()

    def left_out(self) -> str:
        if self.latent is None or self.session.why:
            return "who wrote latents" if not self.session.why else ""
        return (
            f"heads and sources of other latents than #{self.latent}, and what takes passes of the model and "
            "was not asked for in the notebook"
        )

    def text(self) -> str:
        return clean("\n".join(self._lines(self._known())))

    def html(self) -> str:
        found = self._known()
        if found is None:
            return still.frame(still.words("\n".join(self._lines(found))))
        return still.frame(still_heads.form(self.session, found, self._name(self.latent)))

    def _lines(self, found: DFA | None) -> list[str]:
        lines = still_heads.lines(self.session, found, self._name(self.latent))
        if found is None and self.latent is not None and not self.session.why:
            lines.append(f"latent {self.latent}: who wrote it is told when the view asks")
        return lines

    # ---- answers

    def _told(self) -> Packed:
        session = self.session
        layers, heads = session.patterns.shape[:2]
        header = {
            "sae": clean(str(self.source.selection.sae)), "hook": str(session.sae.hook), "kind": session.kind,
            "why": clean(session.why), "said": clean(session.said), "weighed": session.weighed,
            "layers": layers, "heads": heads,
            "first": session.first, "before": list(session.before), "codes": self._fires_known(),
            "cards": bool(self._names()), "way": dict(zip(("depth", "width"), self._way, strict=True)),
            "measures": [[name, each.what, rounded(each.even)] for name, each in session.measures.items()],
        }  # fmt: skip
        measures = {name: each.values.astype(np.float32) for name, each in session.measures.items()}
        return Packed(header, {"names": cleaned(joined(session.tokens)), **measures})

    def _tree(self, latent: int, dest: int, depth: int, width: int) -> Packed:
        called = {str(sae.hook): name for name, sae in self.session.met.items()}
        tree = self.session.tree(latent, dest, depth, width)
        names = {hook: self._names_of(name) for hook, name in called.items()}
        return pack_tree(tree, called, names)

    def _top(self, layer: int, head: int) -> Packed:
        found = []
        for own in self.session.top(layer, head):
            names = self._names_of(own.sae) if own.sae else self._names()
            told = [
                [j, rounded(share), clean(names[j]) if j < len(names) else ""] for j, share in own.latents
            ]
            of = {"sae": clean(own.sae), "kind": own.kind, "equal": rounded(own.equal)}
            found.append({**of, "latents": told})
        return Packed({"lists": found})

    def _choose(self, sae: str, latent: int) -> Packed:
        """Choose a latent of another SAE of the Lab."""
        if self._others is None:
            message = "Latents of other SAEs are chosen in a Lab. Got a view without one. Use lab.heads(...)."
            raise ConfigError(message)
        source = self._others(sae)
        source.choose(source.checked(latent))
        return Packed({})

    def _of_other(self, question: str) -> Callable[..., Packed]:
        def answer(sae: str, **args: Any) -> Packed:
            assert self._others is not None
            return card_answers(self._others(sae).questions)[question](**args)

        return answer

    def _keeping(self, question: str, answer: Callable[..., Packed]) -> Callable[..., Packed]:
        """The answer, kept: a page has what was asked for in the notebook."""

        def kept(**args: Any) -> Packed:
            known, ask = self._kept.setdefault(question, {}), Ask(question, args)
            key = ask.key()
            if key not in known:
                while len(known) >= KEPT:
                    known.pop(next(iter(known)))
                known[key] = ask, answer(**args)
            return known[key][1]

        return kept

    # ---- what is known

    def _known(self) -> DFA | None:
        """The parts of the chosen latent where it is looked at; of a large model if they were asked for."""
        if self.latent is None or self.session.why:
            return None
        dest = self.dest if self.dest >= 0 else self.session.where(self.latent).dest
        asked = Ask("dfa", {"latent": self.latent, "dest": dest}).key() in self._kept.get("dfa", {})
        return self.session.dfa(self.latent, dest) if self.session.small or asked else None

    def _asks(self, latent: int, dest: int) -> list[Ask]:
        at = dest if dest >= 0 else self.session.where(latent).dest
        of: dict[str, int | str] = {"latent": latent}
        return [Ask("where", of), Ask("dfa", {**of, "dest": at}), Ask("shares", of)]

    def _asks_tree(self, latent: int, dest: int) -> Ask:
        depth, width = self._way
        return Ask("tree", {"latent": latent, "dest": dest, "depth": depth, "width": width})

    @property
    def _way(self) -> tuple[int, int]:
        return DEEP if self.session.small else SHALLOW

    def _codes(self) -> SampleCodes:
        if self._read is None:
            self._read = self.source.codes(self.session.text)
        return self._read

    _read: SampleCodes | None = None

    def _fires_known(self) -> bool:
        """Whether it is known which latents fire where: not of an SAE of another model."""
        try:
            return len(self._codes().shown) == len(self.session.tokens)
        except SaelabError:
            return False

    def _fired(self) -> list[int]:
        return [int(j) for j in np.unique(self._codes().codes.indices)] if self._fires_known() else []

    def _labels(self) -> Mapping[int, str]:
        return self.source.questions["labels"]()

    def _names(self) -> list[str]:
        try:
            return list(self.source.table().names)
        except StoreError:  # an SAE without a store has neither names nor cards
            return []

    def _names_of(self, sae: str) -> list[str]:
        try:
            return [] if self._others is None else list(self._others(sae).table().names)
        except StoreError:
            return []

    def _name(self, latent: int | None) -> str:
        names = self._names() if latent is not None else []
        return names[latent] if latent is not None and latent < len(names) else ""


def _examples(given: Any) -> HeadExamples:
    if not isinstance(given, HeadExamples):
        message = (
            f"examples must be HeadExamples. Got {type(given).__name__}. Pass what head_examples(subject, "
            "corpus) or read_headvis(folder) gives."
        )
        raise ConfigError(message)
    return given


def _saes(lab: HasSources) -> dict[str, Any]:
    """The SAEs of a Lab, without those of which only the store is at hand."""
    found = {}
    for name in lab.saes:
        try:
            found[name] = lab.saes[name]
        except ConfigError:
            continue
    return found


def _induction(scores: Any) -> dict[str, np.ndarray]:
    names = ("scores", "low", "high", "control", "duplicate", "previous")
    return {name: getattr(scores, name) for name in names}
