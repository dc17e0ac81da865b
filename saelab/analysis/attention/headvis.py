"""Heads in folders, as HeadVis shows them and neuronpedia.org exports them.

config.json says which heads there are and what the metrics are, scatter_data.json has a row of metrics for
each head, and heads/L{layer}H{head}.json the sequences of one, in intervals by their strongest weight. Their
attention is sparse: a flat index query * tokens + key, and a value. What else a folder may hold (projections
under umap/, pairs of features under attributions/, a server's settings) is not read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from saelab.analysis.attention.sums import Weighed, shares
from saelab.analysis.results_heads import HeadExamples, HeadMeasure, HeadSequence, OneHead
from saelab.arguments import checked, place
from saelab.config import holds_float32, is_integer, is_number, is_unicode
from saelab.files import read_json
from saelab.types import FormatError, short

MOST_BYTES = 2**27
"""Of a file: a head's is 5 to 15 MB."""
MOST_LAYERS, MOST_HEADS = 512, 256
"""Of a model, and of a layer."""
MOST_TOKENS, MOST_PAIRS = 4096, 2**29
"""Of a sequence, and of all sequences of a head: of their patterns, which are held one by one."""
MOST_INTERVALS, MOST_METRICS = 1000, 100
LONGEST = 400
"""Characters of a name."""
NAMES = {
    "self_attention_score": "self",
    "prev_token_score": "previous",
    "previous_token_score": "previous",
    "pattern_entropy": "spread",
    "qk_distance": "distance",
    "induction_score": "induction",
}
"""HeadVis's metrics -> what `head_examples` calls them."""
REMEDY = "Pass a folder of HeadVis or of neuronpedia.org's exports: config.json, scatter_data.json, heads/."


@checked(folder=place)
def read_headvis(folder: str | Path) -> HeadExamples:
    """What heads do over a corpus, out of a folder of HeadVis or of neuronpedia.org's exports
    (v1/MODEL/headvis/DATASET).

    Metrics are as the folder has them, without intervals, since it has none. A head's file is read when the
    head is asked for (`HeadExamples.head`); shares of tokens and distances are made anew of its sequences, so
    that they stand beside even attention and have intervals: the file's own tables are sums over the same
    sequences.

    Args:
        folder: The folder.

    Raises:
        StoreError: A file cannot be read.
        FormatError: The folder is none of HeadVis: not JSON, without heads, with one twice or out of range,
            with metrics that are no numbers, or with files of other names than L{layer}H{head}.json.
    """
    folder = Path(folder)
    path = folder / "config.json"
    config = read_json(path, "HeadVis configuration", most=MOST_BYTES, remedy=REMEDY)
    heads = config.get("heads")
    if not (isinstance(heads, list) and heads and all(map(_is_head, heads))):
        most = f"below {MOST_LAYERS} and {MOST_HEADS}"
        _refuse(path, f"must have heads, a list of [layer, head] {most}", short(heads))
    known = [(int(layer), int(head)) for layer, head in heads]
    if len(set(known)) < len(known):
        _refuse(path, "must have each head once", f"{next(e for e in known if known.count(e) > 1)} twice")
    pattern = config.get("head_data_pattern", "L{layer}H{head}.json")
    if not (isinstance(pattern, str) and re.fullmatch(r"[\w.-]*\{layer\}[\w.-]*\{head\}[\w.-]*", pattern)):
        _refuse(path, "must have files named by {layer} and {head}, within heads/", short(pattern))
    intervals = config.get("n_intervals", 1)
    if not (is_integer(intervals) and 1 <= intervals <= MOST_INTERVALS):
        _refuse(path, f"must have n_intervals from 1 to {MOST_INTERVALS:,}", short(intervals))
    layers = _count(path, config, "n_layers", 1 + max(layer for layer, _ in known), MOST_LAYERS)
    each = _count(path, config, "n_heads", 1 + max(head for _, head in known), MOST_HEADS)
    pipeline = config.get("pipeline_config")
    said = (pipeline if isinstance(pipeline, dict) else {}) | config
    n = said.get("actual_sequences_processed", said.get("n_sequences", 0))
    files = {(i, h): _file(folder, pattern, i, h) for i, h in known}
    return HeadExamples(
        model=_name(said.get("model_name"), "a model"),
        corpus=_name(said.get("dataset_name"), "a corpus"),
        layers=layers,
        heads=each,
        n=n if is_integer(n) and n >= 0 else 0,
        intervals=intervals,
        measures=_measures(folder / "scatter_data.json", config, (layers, each)),
        known=_Files(files, intervals),
    )


def _measures(path: Path, config: dict[str, Any], shape: tuple[int, int]) -> dict[str, HeadMeasure]:
    """The metrics of scatter_data.json."""
    rows = read_json(path, "HeadVis table of metrics", list, MOST_BYTES, REMEDY)
    found: dict[str, np.ndarray] = {}
    seen: set[tuple[int, int]] = set()
    for row in rows:
        at: Any = (row.get("layer"), row.get("head")) if isinstance(row, dict) else None
        if not (at and _is_head(at) and at[0] < shape[0] and at[1] < shape[1]):
            _refuse(path, "must have rows with layer and head of the configuration", short(row))
        if at in seen:
            _refuse(path, "must have one row for each head", f"{at} twice")
        seen.add(at)
        for name, value in row.items():
            if name in ("layer", "head"):
                continue
            if value is not None and not holds_float32(value):
                _refuse(path, "must have finite numbers as metrics", f"{short(value)} as {short(name, 60)}")
            if len(found) >= MOST_METRICS and name not in found:
                _refuse(path, f"must have at most {MOST_METRICS} metrics", f"more, of them {short(name, 60)}")
            values = found.setdefault(name, np.full(shape, np.nan))
            values[at] = np.nan if value is None else value
    described = config.get("metric_descriptions")
    described = described if isinstance(described, dict) else {}
    nothing = np.full(shape, np.nan)
    return {
        NAMES.get(name, name): HeadMeasure(_name(described.get(name), name), values, nothing, nothing, np.nan)
        for name, values in found.items()
    }


class _Files(Mapping[tuple[int, int], OneHead]):
    """(layer, head) -> what its file says, read when it is asked for."""

    def __init__(self, paths: Mapping[tuple[int, int], Path], intervals: int) -> None:
        self._paths, self._intervals = paths, intervals

    def __getitem__(self, at: tuple[int, int]) -> OneHead:
        return _head(self._paths[at], *at, self._intervals)

    def __contains__(self, at: object) -> bool:
        return at in self._paths

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)


def _head(path: Path, layer: int, head: int, intervals: int) -> OneHead:
    """What the file of one head says."""
    data = read_json(path, "HeadVis file of a head", most=MOST_BYTES, remedy=REMEDY)
    raw = data.get("sequences")
    if not isinstance(raw, list):
        _refuse(path, "must have sequences, a list", short(raw))
    sequences = [_sequence(path, i, each, intervals) for i, each in enumerate(raw)]
    pairs = sum(len(each.tokens) ** 2 for each in sequences)
    if pairs > MOST_PAIRS:
        _refuse(path, f"must have patterns of at most {MOST_PAIRS:,} pairs of tokens", f"{pairs:,}")
    weighed = Weighed(1)
    numbers: dict[str, int] = {}
    for each in sequences:
        ids = np.array([numbers.setdefault(token, len(numbers)) for token in each.tokens], dtype=int)
        pattern = np.zeros((1, len(ids), len(ids)), np.float32)
        pattern[0, each.edges[:, 0], each.edges[:, 1]] = each.weights
        if len(ids):
            weighed.add(ids, pattern)
    names = list(numbers)
    looked, looking = (shares(weighed, side, 0, lambda ids: [names[i] for i in ids]) for side in range(2))
    order = sorted(sequences, key=lambda each: (-each.interval, -each.strongest))
    return OneHead(
        layer, head, tuple(order), looked, looking, *_histogram(path, data), weighed.shares_away(0),
        weighed.shares_away(-1),
    )  # fmt: skip


def _sequence(path: Path, number: int, raw: Any, intervals: int) -> HeadSequence:
    """One sequence of a file."""
    where = f"sequence {number}"
    if not isinstance(raw, dict):
        _refuse(path, "must have sequences that are objects", f"{short(raw)} as {where}")
    tokens = raw.get("tokens")
    if not (isinstance(tokens, list) and all(isinstance(each, str) for each in tokens)):
        _refuse(path, "must have tokens, a list of strings, in each sequence", f"{short(tokens)} in {where}")
    n = len(tokens)
    if n > MOST_TOKENS:
        _refuse(path, f"must have at most {MOST_TOKENS:,} tokens in a sequence", f"{n:,} in {where}")
    if raw.get("seq_len", n) != n:
        _refuse(path, f"must have seq_len equal to its {n} tokens", f"{short(raw['seq_len'])} in {where}")
    at, values = raw.get("attention_indices"), raw.get("attention_values")
    if not (isinstance(at, list) and isinstance(values, list) and len(at) == len(values)):
        rule = "must have as many attention_values as attention_indices"
        _refuse(path, rule, f"{short(values)} and {short(at)} in {where}")
    if not all(is_integer(each) and 0 <= each < n * n for each in at) or len(set(at)) < len(at):
        got = next((e for e in at if not (is_integer(e) and 0 <= e < n * n)), "one twice")
        _refuse(path, f"must have attention_indices below {n * n:,}, each once", f"{short(got)} in {where}")
    if not all(is_number(each) and 0 <= each <= 1.001 for each in values):
        got = next(e for e in values if not (is_number(e) and 0 <= e <= 1.001))
        _refuse(path, "must have attention_values from 0 to 1", f"{short(got)} in {where}")
    interval, strongest, name = (raw.get(key) for key in ("interval", "max_activation", "sequence_id"))
    if not (is_integer(interval) and 1 <= interval <= intervals):
        _refuse(path, f"must have an interval from 1 to {intervals}", f"{short(interval)} in {where}")
    if not holds_float32(strongest):
        _refuse(path, "must have a finite number as max_activation", f"{short(strongest)} in {where}")
    edges = np.stack(np.divmod(np.array(at, dtype=np.int64), max(n, 1)), 1).astype(np.int32)
    return HeadSequence(
        int(name) if is_integer(name) and 0 <= name < 2**53 else number, int(interval), float(strongest),
        tuple(tokens), edges, np.array(values, dtype=np.float32),
    )  # fmt: skip


def _histogram(path: Path, data: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """(counts int64 [bins], edges float64 [bins + 1]) of strongest weights; none where the file has none."""
    raw = data.get("histogram")
    if not raw:
        return np.zeros(0, np.int64), np.zeros(1)
    raw = raw if isinstance(raw, dict) else {}
    edges, values = raw.get("bin_edges"), raw.get("bin_values")
    if not (isinstance(edges, list) and isinstance(values, list) and len(edges) == len(values) + 1):
        _refuse(path, "must have a histogram with bin_edges, one more than bin_values", short(raw))
    if not (all(map(holds_float32, edges)) and edges == sorted(set(edges))):
        _refuse(path, "must have a histogram whose bin_edges rise", short(edges))
    if not all(is_integer(each) and 0 <= each < 2**53 for each in values):
        _refuse(path, "must have a histogram of counts", short(values))
    return np.array(values, np.int64), np.array(edges, float)


def _file(folder: Path, pattern: str, layer: int, head: int) -> Path:
    return folder / "heads" / pattern.replace("{layer}", str(layer)).replace("{head}", str(head))


def _name(value: Any, otherwise: str) -> str:
    """A text of a file, cut."""
    return value[:LONGEST] if isinstance(value, str) and is_unicode(value) else otherwise


def _is_head(at: Any) -> bool:
    """Whether it is (layer, head)."""
    if not (isinstance(at, list | tuple) and len(at) == 2 and all(map(is_integer, at))):
        return False
    return 0 <= at[0] < MOST_LAYERS and 0 <= at[1] < MOST_HEADS


def _count(path: Path, config: dict[str, Any], name: str, least: int, most: int) -> int:
    """A number of layers or heads."""
    value = config.get(name, least)
    if not (is_integer(value) and least <= value <= most):
        _refuse(path, f"must have {name} from {least} to {most:,}", short(value))
    return int(value)


def _refuse(path: Path, rule: str, got: str) -> NoReturn:
    message = f"A folder of HeadVis {rule}. Got {got} in {path}. {REMEDY}"
    raise FormatError(message)


__all__ = ["read_headvis"]
