"""Families of latents by what tells from tokens alone where they fire, and what the latents of a head are."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from saelab.analysis.controls import wilson
from saelab.analysis.results_induction import Families, HeadRoles, Proxy
from saelab.arguments import a_subject, an_integer, checked, full_sae, one_of, real
from saelab.capabilities import HasTokens, need
from saelab.harvesting.batches import batches, check_hooks
from saelab.types import ConfigError, CorpusError, ShapeError

if TYPE_CHECKING:
    from scipy.sparse import csr_array

    from saelab.analysis.results_attention import HeadAttribution
    from saelab.sae import SAE

OFFSETS = (0, 1, 2, 3)
"""Of local proxies: the token itself, and the three before."""
FAR = 10
"""Positions that a token must lie back, at least, to be long-range."""
NAMES = ("induction", "local", "long-range", "unclear")
DEALS = 200


class _Rows(NamedTuple):
    """The rows of some documents."""

    document: np.ndarray
    """int [rows], ascending"""
    token: np.ndarray
    """int [rows], ids of what they show"""
    fires: csr_array
    """[rows d_sae]: the |codes|, or 1 where a latent fires"""


@checked(
    subject=a_subject, sae=full_sae, max_rows=an_integer(100), bar=real(0), strength=real(0),
    least=an_integer(2), seed=an_integer(),
)  # fmt: skip
def families(
    subject: Any, sae: SAE, corpus: Iterable[Any], *, max_rows: int = 20_000, bar: float = 0.8,
    strength: float = 0.5, least: int = 20, seed: int = 0,
) -> Families:  # fmt: skip
    """Sort latents into families by proxies that look at tokens alone, judged on documents of their own.

    For each latent the best proxy of three kinds, by F1, over all tokens X of the vocabulary:

    - local: the token 0 to 3 positions back is X;
    - induction: an earlier token equal to this one was followed by X ("X is next by induction");
    - long-range: X came up 10 positions back or earlier.

    Even documents choose, odd ones judge: a latent is of the family of its best proxy where precision and
    recall on the judging documents both reach the bar, else it is unclear. The control does all of it anew
    with the tokens of all rows shuffled.

    Args:
        subject: The model that the SAE reads.
        sae: Any.
        corpus: Texts; half of them choose, half judge.
        max_rows: Rows that are read, at most.
        bar: For precision and recall.
        strength: A latent counts as firing where its |code| is at least this share of its largest among the
            rows that choose; 0 counts every code.
        least: Rows that a latent must fire on in each half.
        seed: Of the shuffle.

    Raises:
        SubjectError: The subject reads no tokens.
        CorpusError: There are fewer than two documents, or no latent fires often enough.
    """
    need(subject, HasTokens, "A family of latents")
    rows, names = _read(subject, sae, corpus, max_rows)
    even = rows.document % 2 == 0
    if even.all() or not even.any():
        message = (
            "Families need documents to choose proxies on and others to judge them. Got one. Pass two or "
            "more."
        )
        raise CorpusError(message)
    rows = rows._replace(fires=_strong(rows.fires, even, strength))
    mixed = rows._replace(token=np.random.default_rng(seed).permutation(rows.token))
    fired = [np.asarray(rows.fires[half].sum(0)).ravel() for half in (even, ~even)]
    enough = np.flatnonzero(np.minimum(*fired) >= least)
    if not len(enough):
        message = (
            f"Some latent must fire on {least} rows of each half. Got none over {len(rows.token):,} rows. "
            "Pass more texts, or least=."
        )
        raise CorpusError(message)
    own, control = (_judged(each, even, enough, len(names)) for each in (rows, mixed))
    found = []
    for at, latent in enumerate(enough.tolist()):
        kind, token, hits, held, on = (each[at] for each in own)
        sure = kind >= 0 and held > 0 and min(hits / on, hits / held) >= bar
        other = control[2][at], control[3][at], control[4][at]
        family = _family(int(kind)) if sure else "unclear"
        found.append(
            Proxy(
                latent, family, names[int(token)], int(kind) if 0 <= kind < len(OFFSETS) else 0,
                hits / on, wilson(int(hits), int(on)),
                hits / held if held else 0.0, wilson(int(hits), int(held)),
                min(other[0] / other[2], other[0] / other[1]) if other[1] else 0.0, int(on),
            )
        )  # fmt: skip
    return Families(tuple(found), bar, least, int(sae.d_sae - len(found)))


def _family(kind: int) -> str:
    return "local" if kind < len(OFFSETS) else ("induction" if kind == len(OFFSETS) else "long-range")


def _read(subject: Any, sae: SAE, corpus: Iterable[Any], max_rows: int) -> tuple[_Rows, list[str]]:
    from scipy.sparse import csr_array

    documents = subject.corpus(corpus)
    hooks = check_hooks(subject, sae.reads, documents)
    known: dict[str, int] = {}
    document, token, fires = [], [], []
    for batch in batches(subject, documents, hooks, max_rows=max_rows):
        names = [shown.name for shown in batch.rows.vocabulary]
        ids = np.array([known.setdefault(name, len(known)) for name in names])
        document.append(np.asarray(batch.rows.origin[:, 0]))
        token.append(ids[np.asarray(batch.rows.shown)])
        codes = sae.encode_sparse(batch.acts[str(hooks[0])])
        size = np.abs(codes.values)
        fires.append(csr_array((size, codes.indices, codes.indptr), shape=(len(codes), sae.d_sae)))
    if not document:
        message = "A corpus must hold at least one text. Got none. Pass texts."
        raise CorpusError(message)
    from scipy.sparse import vstack

    return _Rows(np.concatenate(document), np.concatenate(token), csr_array(vstack(fires))), list(known)


def _strong(sizes: csr_array, even: np.ndarray, strength: float) -> csr_array:
    """1 where a |code| is at least a share of the latent's largest among the rows that choose."""
    found = sizes.tocoo()
    largest = np.asarray(sizes[even].max(0).todense()).ravel()
    kept = (found.data >= strength * largest[found.col]) & (largest[found.col] > 0)
    ones = np.ones(int(kept.sum()), np.int32)
    return type(sizes)((ones, (found.row[kept], found.col[kept])), shape=sizes.shape)


def _judged(rows: _Rows, even: np.ndarray, latents: np.ndarray, n_tokens: int) -> tuple[np.ndarray, ...]:
    """Of each latent: the kind of its best proxy, its token, rows of the judging half where both hold, where
    the proxy holds, and where the latent fires."""
    proxies = _proxies(rows, n_tokens)
    fires = rows.fires[:, latents]
    best = np.full(len(latents), -1.0)
    kind, token = np.full(len(latents), -1), np.zeros(len(latents), dtype=int)
    told = []
    for number, proxy in enumerate(proxies):
        counts = [_counts(proxy[half], fires[half]) for half in (even, ~even)]
        both, holds, on = counts[0]
        f1 = 2 * both / np.maximum(holds[:, None] + on[None], 1)
        at = f1.argmax(0)
        value = f1[at, np.arange(len(latents))]
        better = value > best
        best[better], kind[better], token[better] = value[better], number, at[better]
        told.append(counts[1])
    every = np.arange(len(latents))
    hits = np.array([told[k][0][t, i] for k, t, i in zip(kind, token, every, strict=True)])
    holds = np.array([told[k][1][t] for k, t in zip(kind, token, strict=True)])
    return kind, token, hits, holds, told[0][2]


def _counts(proxy: csr_array, fires: csr_array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows where both hold [tokens latents], where the proxy does [tokens], and the latent [latents]."""
    both = np.asarray((proxy.T @ fires).todense())
    return both, np.asarray(proxy.sum(0)).ravel(), np.asarray(fires.sum(0)).ravel()


def _proxies(rows: _Rows, n_tokens: int) -> list[csr_array]:
    """bool [rows tokens] of each kind: a token at each offset; next by induction; far back."""
    from scipy.sparse import csr_array

    n, ids = len(rows.token), rows.token
    starts = np.flatnonzero(np.r_[True, rows.document[1:] != rows.document[:-1]])
    place = np.arange(n) - np.repeat(starts, np.diff(np.r_[starts, n]))
    found = []
    for offset in OFFSETS:
        at = np.flatnonzero(place >= offset)
        found.append(csr_array((np.ones(len(at), np.int32), (at, ids[at - offset])), shape=(n, n_tokens)))
    after: list[tuple[int, int]] = []
    far: list[tuple[int, int]] = []
    for start, end in zip(starts, np.r_[starts[1:], n], strict=True):
        followed: dict[int, set[int]] = {}
        seen: set[int] = set()
        for i in range(start, end):
            after += [(i, x) for x in followed.get(ids[i], ())]
            if i > start:
                followed.setdefault(ids[i - 1], set()).add(ids[i])
            if i - FAR >= start:
                seen.add(ids[i - FAR])
            far += [(i, x) for x in seen]
    for pairs in (after, far):
        at = np.array(pairs, dtype=int).reshape(-1, 2)
        found.append(csr_array((np.ones(len(at), np.int32), (at[:, 0], at[:, 1])), shape=(n, n_tokens)))
    return found


@checked(n=an_integer(2), kind=one_of("decoder", "encoder", "corrected"), seed=an_integer())
def head_roles(
    found: Families, attribution: HeadAttribution, *, n: int = 10, kind: str = "decoder", seed: int = 0
) -> HeadRoles:
    """What the latents that belong to each head are for: whether they are of one family or of several.

    Args:
        found: Of the SAE.
        attribution: Of the same SAE.
        n: Latents of each head, those with the largest share in it.
        kind: Which share: "decoder", "encoder" or "corrected".
        seed: Of the deals.

    Returns:
        Counts by head. A head is of several families where its clear latents are; one with fewer than two of
        these is not judged. The control deals the same latents to heads at random.

    Raises:
        ConfigError: These are no families, or no attribution.
        ShapeError: They are of SAEs of different widths.
    """
    if not isinstance(found, Families) or not hasattr(attribution, "decoder"):
        message = (
            f"Roles of heads need what families and head_attribution give. Got {type(found).__name__} and "
            f"{type(attribution).__name__}. Pass these of one SAE."
        )
        raise ConfigError(message)
    d_sae = len(attribution.decoder)
    if len(found.proxies) + found.unjudged != d_sae:
        message = (
            f"Families and attribution must be of one SAE. Got {len(found.proxies) + found.unjudged} and "
            f"{d_sae} latents. Pass these of one SAE."
        )
        raise ShapeError(message)
    known = {proxy.latent: NAMES.index(proxy.family) for proxy in found.proxies}
    judged_too = np.isin(np.arange(d_sae), list(known))[:, None]
    share = np.where(judged_too, np.nan_to_num(getattr(attribution, kind)), 0)
    tops = [np.argsort(-own, kind="stable")[:n] for own in share.T]
    roles = np.array([
        [known[int(j)] if own[j] > 0 else -1 for j in top] for own, top in zip(share.T, tops, strict=True)
    ])  # fmt: skip
    several, judged = _several(roles)
    draw = np.random.default_rng(seed)
    shares = []
    for _ in range(DEALS):
        mixed, of = _several(draw.permutation(roles.ravel()).reshape(roles.shape))
        shares.append(mixed / of if of else np.nan)
    counts = np.stack([(roles == role).sum(1) for role in range(len(NAMES))], 1)
    control = float(np.nanmean(shares)) if np.isfinite(shares).any() else float("nan")
    return HeadRoles(counts, several, judged, wilson(several, judged), control, n)


def _several(roles: np.ndarray) -> tuple[int, int]:
    """(heads of several families, heads with at least two clear latents)"""
    clear = [row[(row >= 0) & (row < 3)] for row in roles]
    judged = [row for row in clear if len(row) >= 2]
    return sum(len(np.unique(row)) > 1 for row in judged), len(judged)


__all__ = ["families", "head_roles"]
