"""Where every head looks over a corpus, in one pass: its strongest sequences beside drawn ones, the tokens
that it looks at and from, and what its pattern is like."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from saelab.analysis.attention.measures import MEASURES, even_pattern, row_measures
from saelab.analysis.attention.sums import Ratios, Weighed, shares
from saelab.analysis.results_heads import BINS, DRAWN, HeadExamples, HeadMeasure, HeadSequence, OneHead
from saelab.arguments import a_subject, an_integer, checked
from saelab.capabilities import HasHeads, HasTokens, need
from saelab.subjects.reading import How
from saelab.types import CorpusError

AT_ONCE = 4
"""Sequences of a pass: their patterns of all layers are held."""
LEAST = 3
"""Tokens of a sequence: one that looks and one before it, behind the first."""
PER_QUERY, FAINT = 8, 0.005
"""Edges that are kept of each position that looks, and the weight below which none is."""
INDUCTION = "attention to what followed an earlier occurrence of the token"


@checked(
    subject=a_subject, n=an_integer(1), drawn=an_integer(0), documents=an_integer(2),
    length=an_integer(LEAST), seed=an_integer(),
)  # fmt: skip
def head_examples(
    subject: Any, corpus: Iterable[Any], *, n: int = 10, drawn: int = 5, documents: int = 1_000,
    length: int = 128, seed: int = 0,
) -> HeadExamples:  # fmt: skip
    """The strongest sequences of every head over a corpus, the tokens that it looks at, and what its pattern
    is like (what HeadVis shows of heads; Luger et al. 2026).

    A sequence is the beginning of a document. It counts by the largest weight from a token to one before it;
    the first position, where heads rest, counts on neither side, nor does a token's weight on itself. Beside
    the strongest stand sequences that are drawn, the same of every head. Tokens are told by their share of
    that weight: those furthest above even attention on every second document, with their share on the others.
    Intervals are of a ratio over documents, by its linearisation. Of sequences that are not told nothing is
    kept but sums, so memory does not grow with the corpus: 64 bytes for each head and each token of the
    vocabulary that occurs.

    Args:
        subject: A language model whose heads can be read.
        corpus: Texts, read up to `documents`; those of fewer than three tokens are passed over.
        n: Sequences of each head, at most.
        drawn: Others that are drawn, at most.
        documents: That are read, at most.
        length: Tokens of a sequence, at most.
        seed: Of the draw.

    Raises:
        SubjectError: The subject has no attention that can be read.
        CorpusError: The corpus holds no two sequences of three tokens.
    """
    need(subject, HasHeads, "Examples of heads")
    need(subject, HasTokens, "Examples of heads")
    data = subject.corpus(corpus)
    over = _Over(subject.n_layers, n, drawn, seed)
    for number, ids, pattern in _patterns(subject, data, documents, min(length, subject.n_ctx)):
        over.add(number, ids, pattern)
    if over.n < 2:
        message = (
            f"A corpus must hold two documents of {LEAST} tokens or more. Got {over.n} in the first "
            f"{documents:,}. Pass others."
        )
        raise CorpusError(message)
    return over.found(subject, getattr(data, "name", "a corpus"))


def _patterns(
    subject: Any, corpus: Iterable[Any], documents: int, length: int
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(document, ids [tokens], pattern float32 [layers heads tokens tokens]) of each sequence."""
    last = f"blocks.{subject.n_layers - 1}.attn.hook_z"
    waiting: list[tuple[int, list[int]]] = []

    def run() -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        if not waiting:
            return
        seen = subject.attend(subject.padded([ids for _, ids in waiting]), [last], output=False).patterns
        for at, (number, ids) in enumerate(waiting):
            k = len(ids)
            layers = [seen[i][at, :, :k, :k].detach().float().cpu().numpy() for i in range(subject.n_layers)]
            yield number, np.array(ids), np.stack(layers)
        waiting.clear()

    for number, document in enumerate(corpus):
        if number >= documents:
            break
        _, inputs = next(iter(subject.read([(number, document)], How(1, include_bos=True)).passes()))
        ids = inputs.data["input_ids"][0][: int(inputs.lengths[0])].tolist()[:length]
        if len(ids) >= LEAST:
            waiting.append((number, ids))
        if len(waiting) == AT_ONCE:
            yield from run()
    yield from run()


class _Sparse(NamedTuple):
    """A sequence of one head, as it is kept."""

    document: int
    strongest: float
    edges: np.ndarray
    weights: np.ndarray


class _Over:
    """What is summed over the sequences of a corpus; the last head of every sum is the even one."""

    def __init__(self, layers: int, n: int, drawn: int, seed: int) -> None:
        self.layers, self.most, self.drawn, self.seed = layers, n, drawn, seed
        self.n = self.heads = 0
        self.ids: dict[int, np.ndarray] = {}

    def _begin(self, heads: int) -> None:
        self.heads = heads
        every = self.layers * heads + 1
        self.best: list[list[tuple[float, int, _Sparse]]] = [[] for _ in range(every - 1)]
        self.others: list[tuple[float, int, list[_Sparse]]] = []
        self.strongest = np.zeros((every - 1, BINS), np.int64)
        self.measures = Ratios((len(MEASURES), every))
        self.induction = Ratios((every,))
        self.weighed = Weighed(every - 1)

    def add(self, document: int, ids: np.ndarray, pattern: np.ndarray) -> None:
        """A sequence: ids [n] and pattern [layers heads n n]."""
        if not self.heads:
            self._begin(pattern.shape[1])
        n = len(ids)
        flat = pattern.reshape(-1, n, n)
        every = np.concatenate([flat, even_pattern(n)[None].astype(flat.dtype)])
        rows = row_measures(every)
        self.measures.add([rows[name].sum(-1, dtype=float) for name in MEASURES], n - 1)
        query, key = _after_earlier(ids)
        self.induction.add(every[:, query, key].sum(-1, dtype=float), len(np.unique(query)))
        strongest = self.weighed.add(ids, flat)
        np.add.at(self.strongest, (np.arange(len(flat)), _bin(strongest)), 1)
        self._keep(document, ids, flat, strongest)
        self.n += 1

    def _keep(self, document: int, ids: np.ndarray, flat: np.ndarray, strongest: np.ndarray) -> None:
        """Keep the sequence where it is among the strongest of a head, or drawn."""
        kept: dict[int, _Sparse] = {}

        def sparse(head: int) -> _Sparse:
            if head not in kept:
                kept[head] = _Sparse(document, float(strongest[head]), *_edges(flat[head]))
            return kept[head]

        for head, best in enumerate(self.best):
            # of equal ones the first that was read is kept
            place = (float(strongest[head]), -self.n)
            if len(best) < self.most:
                heapq.heappush(best, (*place, sparse(head)))
            elif place > best[0][:2]:
                heapq.heapreplace(best, (*place, sparse(head)))
        if self.drawn:  # those with the smallest of random numbers are a draw without replacement
            number = -float(np.random.default_rng([self.seed, document]).random())
            if len(self.others) < self.drawn or number > self.others[0][0]:
                own = (number, document, [sparse(head) for head in range(len(flat))])
                full = len(self.others) == self.drawn
                (heapq.heapreplace if full else heapq.heappush)(self.others, own)
        self.ids[document] = ids
        if len(self.ids) > 4 * (self.drawn + self.most * len(self.best)):
            self._forget()

    def _forget(self) -> None:
        """Leave out the tokens of sequences that are kept of no head any more."""
        needed = {own.document for best in self.best for _, _, own in best}
        needed |= {document for _, document, _ in self.others}
        self.ids = {document: ids for document, ids in self.ids.items() if document in needed}

    def found(self, subject: Any, corpus: str) -> HeadExamples:
        """The result."""
        shape = (self.layers, self.heads)
        self._forget()
        strings = {number: tuple(subject.token_strings(ids.tolist())) for number, ids in self.ids.items()}
        others = sorted(self.others, key=lambda each: each[1])
        known = {}
        for at, best in enumerate(self.best):
            order = [own for _, _, own in sorted(best, key=lambda each: (-each[0], -each[1]))]
            drawn = [own[at] for _, _, own in others]
            sequences = [
                HeadSequence(each.document, interval, each.strongest, strings[each.document], *each[2:])
                for interval, some in ((1, order), (DRAWN, drawn))
                for each in some
            ]
            layer, head = divmod(at, self.heads)
            looked, looking = (shares(self.weighed, side, at, subject.token_strings) for side in range(2))
            known[layer, head] = OneHead(
                layer, head, tuple(sequences), looked, looking, self.strongest[at],
                np.linspace(0, 1, BINS + 1), self.weighed.shares_away(at), self.weighed.shares_away(-1),
            )  # fmt: skip
        told = dict(zip(MEASURES, np.stack(self.measures.told(), 1), strict=True))
        told["induction"] = np.stack(self.induction.told())
        what = MEASURES | {"induction": INDUCTION}
        measures = {}
        for name, own in told.items():
            value, low, high = own[:, :-1].reshape(3, *shape)
            measures[name] = HeadMeasure(what[name], value, low, high, float(own[0, -1]))
        return HeadExamples(repr(subject), corpus, *shape, self.n, 1, measures, known)


def _after_earlier(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(query, key) of every position and what followed each earlier occurrence of its token."""
    query, before = np.nonzero(np.tril(ids[:, None] == ids, -1))
    return query, before + 1


def _bin(strongest: np.ndarray) -> np.ndarray:
    return np.minimum((np.clip(strongest, 0, 1) * BINS).astype(int), BINS - 1)


def _edges(pattern: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(int32 [edges 2], float32 [edges]): the largest weights of each position."""
    n = len(pattern)
    k = min(PER_QUERY, n)
    keys = np.sort(np.argpartition(-pattern, k - 1, axis=1)[:, :k], axis=1)
    weights = np.take_along_axis(pattern, keys, 1)
    query = np.broadcast_to(np.arange(n)[:, None], keys.shape)
    kept = (weights >= FAINT) & (keys <= query)
    return np.stack([query[kept], keys[kept]], 1).astype(np.int32), weights[kept].astype(np.float32)


__all__ = ["head_examples"]
