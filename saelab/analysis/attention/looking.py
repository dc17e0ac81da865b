"""What a view of heads asks: of one text where every head looks, of a latent who wrote it there, and what the
model does without."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from saelab.analysis.attention.direct import asked_of, dfa, head_attribution, head_readings, read_text
from saelab.analysis.attention.effects import compared_heads, edge_changes, layers_before, pre_without
from saelab.analysis.attention.examples import head_examples
from saelab.analysis.attention.frozen import place_of, writing_layers
from saelab.analysis.attention.induction import induction_scores, prefix_curves
from saelab.analysis.attention.measures import MEASURES, even_pattern, row_measures
from saelab.analysis.attention.recursive import ATTENTION, MLPS, recursive_dfa
from saelab.analysis.attention.through import edge_effects
from saelab.capabilities import HasHeads, HasTokens, need
from saelab.config import integer
from saelab.types import ConfigError, CorpusError, HookError, RangeError, SaelabError, ShapeError, StoreError

if TYPE_CHECKING:
    from saelab.analysis.results_attention import DFA, EdgeChanges, EdgeEffects, HeadEffects, RecursiveDFA
    from saelab.analysis.results_heads import HeadExamples
    from saelab.analysis.results_induction import InductionScores, PrefixCurves
    from saelab.sae import SAE
    from saelab.stores import FeatureStore

MOST_TOKENS = 512
"""Of a text: its patterns are held."""
SMALL = 1 << 12
"""Layers times width up to which parts come along with a view."""
EDGES = 96
"""That are taken out in a check."""
SEQUENCES, LENGTH = 24, 96
"""Random ones for each length of a prefix, and tokens of each."""
TOP = 10
"""Latents of a head that are told."""
DOCUMENTS, FEWER = 300, 60
"""Of the store, over which heads are told: of a small model, and of others."""
TRUE_OF = {
    "z": (
        "A part on attn.hook_z is what its edge moves: on the shipped SAEs parts and what changes without "
        "the edge agree (Spearman 1.00)."
    ),
    "stream": (
        "A part on the residual stream is what was written directly, not all that changes without it: on the "
        "shipped SAEs Spearman with real changes is 0.33 to 0.61, and sizes are foretold no better than by "
        "the pattern. The gradient through all that comes after foretells them by 0.93 to 0.98."
    ),
}
"""Kinds of places -> how far parts can be trusted (docs/results/attention.md)."""
WEIGHED = {
    "z": (
        "on the shipped SAEs shares of the encoder agree with what is lost without a head of the layer "
        "(Spearman 0.55 to 0.59; the pattern alone -0.24 to -0.17)"
    ),
    "stream": (
        "what could be written: on the shipped SAEs these shares foretell nothing of what is lost without a "
        "head (Spearman -0.17 to 0.03)"
    ),
}
"""The same of shares of weights."""


class Where(NamedTuple):
    """A latent along the text."""

    dest: int
    """where its |code| is largest; where it never fires, its pre-activation"""
    fires: bool
    pre: np.ndarray
    """float64 [positions]"""
    codes: np.ndarray
    """float64 [positions]"""


class Measure(NamedTuple):
    """What a head's pattern is like on the text, mean over the positions behind the first."""

    what: str
    values: np.ndarray
    """float64 [layers heads]"""
    even: float
    """of a head that attends to all positions before alike"""


class Belonging(NamedTuple):
    """Latents that belong to a head by weights alone."""

    sae: str
    """its name; "" for the session's own"""
    kind: str
    """of share: "decoder", "encoder" or "reads\""""
    latents: list[tuple[int, float]]
    """(latent, share), the largest first"""
    equal: float
    """the share of each head where all have the same"""


class HeadSession:
    """Answers the questions of one view of heads. `read` gives it its text.

    Args:
        subject: A language model whose heads can be read.
        sae: Whose latents are asked for.
        store: Whose documents heads are told over, where no others are given.

    Raises:
        SubjectError: The subject has no attention that can be read.
    """

    def __init__(self, subject: Any, sae: SAE, store: FeatureStore | None = None) -> None:
        need(subject, HasHeads, "A view of heads")
        need(subject, HasTokens, "A view of heads")
        self.subject, self.sae, self.store = subject, sae, store
        self.text = ""
        self.tokens: tuple[str, ...] = ()
        self.why = ""
        """why latents of this SAE are not attributed to heads; "" where they are"""
        self._inputs: Any = None
        self._others: Callable[[], Mapping[str, SAE]] = dict
        self.dfa = lru_cache(256)(self._dfa)
        self.gradient = lru_cache(256)(self._gradient)
        self._without = lru_cache(1 << 12)(self._without_layer)

    def read(self, text: str, others: Callable[[], Mapping[str, SAE]] = dict) -> None:
        """Take a text.

        Args:
            text: Any, of two tokens at least.
            others: Gives the SAEs that may be met on the way back, by name, when they are first asked for.

        Raises:
            SubjectError: What its heads do cannot be read.
            CorpusError: The text has fewer than two tokens, or more than are shown.
        """
        self._inputs, self.tokens = read_text(self.subject, text)
        if len(self.tokens) > MOST_TOKENS:
            message = (
                f"A view of heads takes texts of at most {MOST_TOKENS} tokens. Got {len(self.tokens)}. Pass "
                "a part of it."
            )
            raise CorpusError(message)
        self.text, self._others = text, others
        try:
            asked_of(self.subject, self.sae, text, 0)
        except (HookError, ShapeError) as error:
            self.why = str(error)

    @property
    def small(self) -> bool:
        """Whether a model's maps are measured in a moment (see `saelab.subjects.head_maps`): not of one of
        many layers, whose parts are told when they are asked for."""
        return self.subject.n_layers * self.subject.width("blocks.0.hook_resid_pre") <= SMALL

    def position(self, dest: int) -> int:
        """A position of the text. Raises RangeError."""
        remedy = "Pass a position of the text, BOS counted."
        return integer("dest", dest, 0, len(self.tokens) - 1, error=RangeError, remedy=remedy)

    # ---- the text

    @cached_property
    def patterns(self) -> np.ndarray:
        """float32 [layers heads positions positions]: from each position (the third) to each."""
        last = f"blocks.{self.subject.n_layers - 1}.attn.hook_z"
        seen = self.subject.attend(self._inputs, [last], output=False).patterns
        return np.stack([seen[i][0].detach().float().cpu().numpy() for i in range(self.subject.n_layers)])

    @property
    def first(self) -> int:
        """Positions before the text's own: 1 where BOS stands there."""
        return int(self.subject.bos_id is not None)

    @cached_property
    def measures(self) -> Mapping[str, Measure]:
        """What each head's pattern is like: "self", "previous", "first", "spread" and "distance"."""
        found = row_measures(self.patterns.astype(np.float64))
        even = row_measures(even_pattern(len(self.tokens)))
        return {
            name: Measure(what, found[name].mean(-1), float(even[name].mean()))
            for name, what in MEASURES.items()
        }

    # ---- a latent

    @property
    def kind(self) -> str:
        """By what the SAE reads, "z" or "stream"; "" where its latents are attributed to no head."""
        return "" if self.why else "z" if str(self.sae.hook).endswith("attn.hook_z") else "stream"

    @property
    def writing(self) -> tuple[int, ...]:
        """The layers whose heads write directly what the SAE reads; none where none is attributed."""
        return () if self.why else writing_layers(self.subject, place_of(self.sae.hook))

    @property
    def said(self) -> str:
        """How far parts of this SAE's latents can be trusted."""
        return TRUE_OF.get(self.kind, self.why)

    @property
    def weighed(self) -> str:
        """How far shares of its latents' weights can be trusted."""
        return WEIGHED.get(self.kind, "")

    def where(self, latent: int) -> Where:
        """Where a latent fires on the text.

        Args:
            latent: Of the SAE.

        Raises:
            RangeError: There is no such latent.
            HookError, ShapeError: The SAE is on another hook point than heads write to.
        """
        asked = asked_of(self.subject, self.sae, self.text, latent)
        with torch.no_grad():
            out = self.sae(self._read.to(self.sae.W_enc))
        pre, codes = (each[:, asked.latent].double().cpu().numpy() for each in (out.pre, out.codes))
        size = np.abs(codes)
        return Where(int(size.argmax() if size.any() else pre.argmax()), bool(size.any()), pre, codes)

    @cached_property
    def _read(self) -> torch.Tensor:
        """[positions d_in]: what the SAE reads."""
        hook = str(self.sae.hook)
        return self.subject.run(self._inputs, [hook], output=False).acts[hook][0]

    def _dfa(self, latent: int, dest: int) -> DFA:
        """Of a latent at a position, kept."""
        return dfa(self.subject, self.sae, self.text, latent, dest)

    def _gradient(self, latent: int, dest: int) -> EdgeEffects:
        """What edges are worth to a latent at a position through all that comes after them, kept."""
        return edge_effects(self.subject, self.sae, self.text, latent, dest)

    def shares(self, latent: int) -> Mapping[str, np.ndarray]:
        """What a latent's weights say: kind of share -> float64 [layers heads] of all layers, NaN of those
        that do not write there.

        Args:
            latent: Of the SAE.

        Returns:
            "decoder", "encoder" and "corrected" of an SAE on hook_z, "reads" of others.

        Raises:
            HookError: As `head_readings`.
        """
        if self.kind == "z":
            own = self._attribution
            rows = {name: getattr(own, name)[latent][None] for name in ("decoder", "encoder", "corrected")}
        else:
            rows = {"reads": self._readings[latent]}
        whole = {name: np.full(self.patterns.shape[:2], np.nan) for name in rows}
        for name, own in rows.items():
            whole[name][list(self.writing)] = own
        return whole

    @cached_property
    def _attribution(self) -> Any:
        """By the sizes of z on this text."""
        heads = self.patterns.shape[1]
        size = self._read[1:].float().unflatten(1, (heads, -1)).square().sum(-1).mean(0).sqrt()
        return head_attribution(self.sae, heads, size.double().cpu().numpy())

    @cached_property
    def _readings(self) -> np.ndarray:
        return head_readings(self.subject, self.sae)

    def top(self, layer: int, head: int) -> list[Belonging]:
        """The latents that belong to a head most, by weights alone.

        Args:
            layer: Of the model.
            head: Of the layer.

        Returns:
            Of each SAE that tells: one on the layer's hook_z, and this one.
        """
        found: list[Belonging] = []
        heads = self.patterns.shape[1]
        own, hook = str(self.sae.hook), f"blocks.{layer}.attn.hook_z"
        if own == hook:
            found += [
                Belonging("", kind, self._attribution.top(head, TOP, kind), 1 / heads)
                for kind in ("decoder", "encoder")
            ]
        for name, sae in self.met.items():
            if str(sae.hook) == hook != own:
                told = head_attribution(sae, heads)
                found.append(Belonging(name, "decoder", told.top(head, TOP, "decoder"), 1 / heads))
        if self.kind == "stream":
            if layer in self.writing:
                share = np.nan_to_num(self._readings[:, self.writing.index(layer), head], nan=-1.0)
                order = np.argsort(-share, kind="stable")[:TOP]
                latents = [(int(j), float(share[j])) for j in order if share[j] > 0]
                found.append(Belonging("", "reads", latents, 1 / (heads * len(self.writing))))
        return found

    # ---- without a head, without an edge

    @property
    def before(self) -> tuple[int, ...]:
        """The layers whose heads can change a latent; none where latents are not attributed."""
        return () if self.why else layers_before(self.writing)

    def without(self, latent: int, dest: int, layer: int) -> np.ndarray:
        """float64 [heads]: what a latent's pre-activation loses without each head of a layer.

        Args:
            latent: Of the SAE.
            dest: The position.
            layer: One of `before`.

        Raises:
            ConfigError: No head of the layer comes before the latent.
        """
        if layer not in self.before:
            message = (
                f"layer must be one whose heads come before the latent, {list(self.before)}. Got {layer}. "
                "Pass another."
            )
            raise ConfigError(message)
        return self._without(latent, dest, layer)

    def _without_layer(self, latent: int, dest: int, layer: int) -> np.ndarray:
        heads = [(layer, head, None) for head in range(self.patterns.shape[1])]
        pre = self.dfa(latent, dest).pre
        return pre - pre_without(self.subject, self.sae, self._inputs, latent, dest, heads)

    def effects(self, latent: int, dest: int) -> HeadEffects:
        """What a latent's pre-activation loses without each head before it, beside its parts.

        Args:
            latent: Of the SAE.
            dest: The position.
        """
        rows = np.stack([self.without(latent, dest, layer) for layer in self.before])
        patterns = self.patterns[list(self.before), :, dest]
        return compared_heads(self.dfa(latent, dest), self.before, rows, patterns)

    def check(self, latent: int, dest: int) -> EdgeChanges:
        """Whether parts of a latent at a position are what changes without their edges.

        Args:
            latent: Of the SAE.
            dest: The position.
        """
        return edge_changes(self.subject, self.sae, self.text, latent, dest, n=EDGES)

    # ---- further back

    @cached_property
    def met(self) -> Mapping[str, SAE]:
        """The SAEs that can be met on the way back, by name: one at most for the attention and the MLP of a
        layer, a transcoder before an SAE on what the MLP gives."""
        found: dict[tuple[str, str], tuple[str, SAE]] = {}
        others = sorted(self._others().items(), key=lambda pair: str(pair[1].hook) == str(pair[1].writes[-1]))
        for name, sae in others:
            layer, _, kind = str(sae.writes[-1]).removeprefix("blocks.").partition(".")
            if len(sae.reads) > 1 or not layer.isdigit() or kind not in (*ATTENTION, *MLPS):
                continue
            try:
                fits = self.subject.width(sae.hook) == sae.d_in
                fits &= self.subject.width(sae.writes[-1]) == sae.config.d_out if sae.config.d_out else True
            except SaelabError:
                continue
            if fits:
                found.setdefault(("attention" if kind in ATTENTION else "mlp", layer), (name, sae))
        return dict(found.values())

    def tree(self, latent: int, dest: int, depth: int, width: int) -> RecursiveDFA:
        """A latent at a position, followed back to the embeddings.

        Args:
            latent: Of the SAE.
            dest: The position.
            depth: Steps back, at most.
            width: Parts of a step that are followed.

        Raises:
            SubjectError, HookError: As `recursive_dfa`.
        """
        return recursive_dfa(
            self.subject, self.sae, self.text, latent, dest, self.met, depth=depth, width=width
        )

    # ---- heads that repeat

    def prefix(self, length: int) -> PrefixCurves:
        """How all heads continue a prefix of a length in random tokens.

        Args:
            length: Tokens, 1 to 9.
        """
        return prefix_curves(self.subject, [length], n=SEQUENCES, length=LENGTH)

    # ---- over a corpus

    def over(self, given: HeadExamples) -> None:
        """Take what heads do over a corpus, in place of the store's documents.

        Args:
            given: Of a model of the same layers and heads.

        Raises:
            ShapeError: It is of another model.
        """
        own = self.patterns.shape[:2]
        if (given.layers, given.heads) != own:
            message = (
                f"Examples must be of the model's {own[0]} layers of {own[1]} heads. Got {given.layers} of "
                f"{given.heads}, of {given.model}. Pass what head_examples(lab.subject, ...) gives."
            )
            raise ShapeError(message)
        self.corpus = given

    @cached_property
    def corpus(self) -> HeadExamples:
        """What heads do over the first documents of the store. Raises StoreError."""
        texts: list[str] = []
        if self.store is not None:
            n = min(DOCUMENTS if self.small else FEWER, self.store.n_documents)
            texts = [each.text for each in self.store.documents(range(n)).values() if each.text]
        if not texts:
            message = (
                "Heads are told over the documents of a store of this SAE. Got none with texts. Pass "
                "examples=head_examples(subject, corpus), or read_headvis(folder)."
            )
            raise StoreError(message)
        return head_examples(self.subject, texts, documents=len(texts))

    # ---- heads that repeat, on random tokens

    def induction(self) -> InductionScores:
        """How all heads repeat random tokens."""
        return induction_scores(self.subject, n=SEQUENCES)


__all__ = ["Belonging", "HeadSession", "Measure", "Where"]
