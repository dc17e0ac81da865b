"""What a view of heads sends: results on attention as headers and fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from saelab.analysis.results_attention import DFA, KINDS, EdgeChanges, EdgeEffects, HeadEffects, RecursiveDFA
from saelab.analysis.results_heads import AWAY, HeadExamples, OneHead, TokenShare
from saelab.analysis.results_induction import PrefixCurves
from saelab.stores.characters import joined
from saelab.widgets.wire import Packed, clean, cleaned, rounded

WHOLE = 65_535
"""What a weight of 1 is sent as."""
LISTED = 24
"""Edges of a check."""


def pack_where(where: Any, name: str) -> Packed:
    """A latent along the text.

    Args:
        where: See `saelab.analysis.attention.looking.Where`.
        name: What the latent is called.

    Returns:
        Header: `dest`, `fires`, `name`. Fields `pre`, `codes` float32 [positions].
    """
    fields = {name: getattr(where, name).astype(np.float32) for name in ("pre", "codes")}
    return Packed({"dest": where.dest, "fires": where.fires, "name": clean(name)}, fields)


def pack_dfa(found: DFA, patterns: np.ndarray) -> Packed:
    """A latent at a position, by heads and sources.

    Args:
        found: The parts.
        patterns: [layers heads positions], of all layers, from the position.

    Returns:
        Header: `pre`, `code`, `total`, `layers` (that write there), `rest` ([what, part]). Fields: `parts`
        float32 [layers heads positions] of those layers, `weights` uint16 of all (65535 is 1).
    """
    header = {
        "latent": found.latent, "dest": found.dest, "pre": rounded(found.pre), "code": rounded(found.code),
        "total": rounded(found.total), "layers": list(found.layers),
        "rest": [[clean(what), rounded(part)] for what, part in found.rest],
    }  # fmt: skip
    return Packed(header, {"parts": found.parts.astype(np.float32), "weights": quantised(patterns)})


def pack_parts(found: EdgeEffects) -> Packed:
    """What edges are worth: header `layers`, `total` of all; `parts` float32 [layers heads positions]."""
    header = {"layers": list(found.layers), "total": rounded(float(found.parts.sum()))}
    return Packed(header, {"parts": found.parts.astype(np.float32)})


def pack_pattern(pattern: np.ndarray) -> Packed:
    """`weights` uint16 [positions positions] of one head, from each position to each (65535 is 1)."""
    return Packed({}, {"weights": quantised(pattern)})


def pack_matrices(found: Mapping[str, np.ndarray]) -> Packed:
    """A float32 field [layers heads] of each name."""
    return Packed({"names": list(found)}, {name: each.astype(np.float32) for name, each in found.items()})


def pack_effects(found: HeadEffects) -> Packed:
    """What heads are worth, beside what attribution says.

    Returns:
        Header: `layers`, `average`, `agreement`, `sizes` (see `beside`). Fields: `effects`, `parts` float32
        [layers heads].
    """
    header = {
        "layers": list(found.layers), "average": rounded(found.average),
        "agreement": beside(found.agreement), "sizes": beside(found.sizes),
    }  # fmt: skip
    return Packed(header, {name: getattr(found, name).astype(np.float32) for name in ("effects", "parts")})


def pack_check(found: EdgeChanges) -> Packed:
    """Parts beside what changes: `n`, `agreement`, `sizes`, `foretold` (by gradient), and of the largest
    `edges` [layer, head, source, part, change, weight]."""
    edges = [
        [*edge[:3], rounded(edge.part), rounded(float(change)), rounded(float(weight))]
        for edge, change, weight in zip(found.edges, found.changes, found.weights, strict=True)
    ]
    return Packed({
        "n": len(edges), "edges": edges[:LISTED], "agreement": beside(found.agreement),
        "sizes": beside(found.sizes), "foretold": beside(found.foretold),
    })  # fmt: skip


def pack_tree(found: RecursiveDFA, called: Mapping[str, str], names: Mapping[str, Sequence[str]]) -> Packed:
    """The way back.

    Args:
        found: The tree.
        called: Hook point of an SAE on the way -> what the Lab calls it.
        names: The same -> what its latents are called.

    Returns:
        Header: `pre`, `sums` and `errors` by depth, `kinds` (name, what it is), `saes` (what the Lab calls
        those of latents and errors). Fields, one line for each branch, a parent before its children: `parent`
        int32 (-1 of the root), `kind` uint8, `value`, `code` float32, `layer`, `head`, `position`, `latent`,
        `sae`, `count` int32 (-1 for none; `sae` a number in `saes`); `called` json, what latents are called.
    """
    branches = list(found.root.walk())
    kinds, hooks = list(KINDS), list(dict.fromkeys(branch.sae for _, branch in branches if branch.sae))
    parents, way = [], []
    for i, (depth, _) in enumerate(branches):
        del way[depth:]
        parents.append(way[-1] if way else -1)
        way.append(i)
    numbers = {
        name: np.array(
            [-1 if (value := getattr(branch, name)) is None else value for _, branch in branches], np.int32
        )
        for name in ("layer", "head", "position", "latent", "count")
    }
    fields: dict[str, Any] = {
        "parent": np.array(parents, np.int32),
        "kind": np.array([kinds.index(branch.kind) for _, branch in branches], np.uint8),
        "value": np.array([branch.value for _, branch in branches], np.float32),
        "code": np.array([branch.code for _, branch in branches], np.float32),
        "sae": np.array([hooks.index(b.sae) if b.sae else -1 for _, b in branches], np.int32),
        "called": [clean(_called(branch, names)) for _, branch in branches],
        **numbers,
    }
    header = {
        "pre": rounded(found.pre), "dest": found.dest, "depth": found.depth,
        "sums": [rounded(each) for each in found.sums], "errors": [rounded(each) for each in found.errors()],
        "kinds": [[name, what] for name, what in KINDS.items()],
        "hooks": hooks, "saes": [clean(called.get(hook, "")) for hook in hooks],
    }  # fmt: skip
    return Packed(header, fields)


def pack_prefix(found: PrefixCurves) -> Packed:
    """One length of a prefix: `scores`, `low`, `high`, `control`, `drop`, `drop_low`, `drop_high` float32
    [layers heads]; header `n`, `length`."""
    names = ("scores", "low", "high", "control", "drop", "drop_low", "drop_high")
    fields = {name: getattr(found, name)[..., 0].astype(np.float32) for name in names}
    return Packed({"n": found.n, "length": found.length}, fields)


def pack_corpus(found: HeadExamples) -> Packed:
    """What all heads do over a corpus: header `n`, `corpus`, `model`, and of each measure its name, what it
    is, and that of even attention (null where it is not known); a float32 field [layers heads] of each."""
    measures = found.measures.items()
    header = {
        "n": found.n, "corpus": clean(found.corpus), "model": clean(found.model),
        "measures": [[clean(name), clean(each.what), rounded(each.even)] for name, each in measures],
    }  # fmt: skip
    return Packed(header, {clean(name): each.values.astype(np.float32) for name, each in measures})


def pack_head(one: OneHead, found: HeadExamples) -> Packed:
    """What one head does over a corpus.

    Args:
        one: The head.
        found: What it is of.

    Returns:
        Header: `n`, `corpus`, `intervals`; `measures` [what, value, low, high, even]; `keys`, `queries`
        [token, share, low, high, even, apart]; `away`, `even` and their `edges`; `strongest` and its `bins`;
        `sequences` with `document`, `interval`, `strongest`, `best` ([query, key] or null), and how many
        `tokens` and `edges` each has in the fields. Fields: `names` json, `pairs` uint16 [edges 2],
        `weights` uint16 [edges].
    """
    at = one.layer, one.head
    measures = [
        [clean(each.what), *map(rounded, (each.values[at], each.low[at], each.high[at], each.even))]
        for each in found.measures.values()
    ]
    sequences = [
        {
            "document": each.document, "interval": each.interval, "strongest": rounded(each.strongest),
            "best": each.best, "tokens": len(each.tokens), "edges": len(each.weights),
        }
        for each in one.sequences
    ]  # fmt: skip
    header = {
        "n": found.n, "corpus": clean(found.corpus), "intervals": found.intervals, "measures": measures,
        "keys": [_told(each) for each in one.keys], "queries": [_told(each) for each in one.queries],
        "away": [rounded(each) for each in one.away], "even": [rounded(each) for each in one.even_away],
        "edges": list(AWAY), "strongest": one.strongest.tolist(),
        "bins": [rounded(each) for each in one.bins], "sequences": sequences,
    }  # fmt: skip
    names = [name for each in one.sequences for name in cleaned(joined(each.tokens))]
    pairs = [each.edges for each in one.sequences] or [np.zeros((0, 2))]
    weights = [each.weights for each in one.sequences] or [np.zeros(0)]
    fields = {"pairs": np.concatenate(pairs).astype(np.uint16), "weights": quantised(np.concatenate(weights))}
    return Packed(header, {"names": names, **fields})


def _told(each: TokenShare) -> list[Any]:
    return [clean(each.token), *map(rounded, (each.share, each.low, each.high, each.even)), bool(each.apart)]


def beside(score: Any) -> dict[str, Any]:
    """A score with its control (`saelab.analysis.controls.Beside`): `value`, `interval`, `control`,
    `control_interval`, `n`, `what`, `apart`."""
    return {
        "value": rounded(score.value), "interval": [rounded(each) for each in score.interval],
        "control": rounded(score.control), "n": score.n, "what": score.what, "apart": bool(score.apart),
        "control_interval": [rounded(each) for each in score.control_interval],
    }  # fmt: skip


def quantised(weights: np.ndarray) -> np.ndarray:
    """uint16: weights of 0 to 1 in steps of a 65,535th."""
    return np.round(np.clip(weights, 0, 1) * WHOLE).astype(np.uint16)


def _called(branch: Any, names: Mapping[str, Sequence[str]]) -> str:
    known = list(names.get(branch.sae, ()))
    return known[branch.latent] if branch.latent is not None and branch.latent < len(known) else ""
