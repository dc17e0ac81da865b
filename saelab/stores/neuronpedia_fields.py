"""What the lines of Neuronpedia's bulk exports say of a feature and of a window of text.

By the code that writes them (repository hijohnnylin/neuronpedia at ebb8426fc550, folder
utils/neuronpedia-utils/neuronpedia_utils: export-data.py, convert-saedashboard-to-neuronpedia-export.py,
convert-llamascope-arrow-to-neuronpedia-export.py; apps/webapp/prisma/schema.prisma, lib/utils/activations.ts,
components/activations-list.tsx and feature-stats.tsx):

- `v1/MODEL/SOURCE/features/batch-N.jsonl.gz` has a feature a line: `modelId`, `layer` (the id of the source),
  `index` (a string, or a number), `frac_nonzero` (share of tokens where it is > 0, to five places; -1 where
  who uploaded it did not say), `maxActApprox` (largest value among its windows), the histogram of its values
  that are not 0 as `freq_hist_data_bar_values` (centres of bins of equal width, to three places) and
  `..._heights` (counts), the same of its effect on logits as `logits_hist_data_bar_*`, `pos_str` and
  `pos_values` (tokens that it raises most, and how far), `neg_str` and `neg_values`, and where somebody gave
  them `vector` (the decoder's row) and `hookName`. All lists may be empty. Features that never fired in the
  run may be left out;
- `activations/batch-N.jsonl.gz` has a window a line, in any order: `modelId`, `layer`, `index`, `tokens`,
  `values` (one for each token), `maxValue`, `maxValueTokenIndex`, `minValue`; `binMin`, `binMax` and
  `binContains`, which are -1, the largest value and -1 of the strongest windows, the bounds of an interval
  and the share of firings in it of windows drawn out of it, or null; `dataSource`, "bottom" of the lowest
  windows of signed features; sometimes `qualifyingTokenIndex`, the token for which a window was drawn;
- `source.jsonl` has one line: `id`, `modelId`, `num_prompts`, `num_tokens_in_prompt`, `dataset`,
  `saelensConfig`, `hfRepoId`, `hfFolderId`, ...

Tokens are shown as Neuronpedia shows them: the signs that stand for white space are replaced by it.
"""

from __future__ import annotations

import hashlib
import math
import re
from typing import Any, NamedTuple

import numpy as np

from saelab.stores.neuronpedia import latent_of, text_of
from saelab.types import short

MAX_LATENT = 2**24
MAX_TOKEN = 2**14
"""Characters of one token, at most."""
MAX_TOKENS = 2**16
"""Tokens of one window, at most."""
MAX_BINS = 4096
MAX_WIDTH = 2**17
"""Numbers of a vector, at most."""
WHITE = {"\u2581": " ", "\u0120": " ", "\u010a": "\n", "\u0109": "\t", "<0x0A>": "\n"}
_WHITE = re.compile("|".join(map(re.escape, WHITE)))
_FINEST = 0.0015
"""How far two neighbours of a list that was rounded to three places may be off."""


class Feature(NamedTuple):
    """What a line of `features/` says."""

    latent: int
    share: float | None
    """of tokens where it is not 0; None where that is not said"""
    most: float
    """largest value that was seen, 0 where that is not said"""
    heights: list[int]
    """tokens in each bin; empty where that is not said"""
    edges: list[float]
    """of the bins, ascending; one more, or empty"""
    raised: list[tuple[str, float]]
    """(token, logit), largest first"""
    lowered: list[tuple[str, float]]
    """(token, logit), smallest first"""
    spread: float
    """standard deviation of the logits over the vocabulary, NaN where that is not said"""
    vector: np.ndarray
    """float32 [d], or empty"""
    hook: str
    """"" where that is not said"""


class Window(NamedTuple):
    """What a line of `activations/` says, of a window where the latent fires."""

    latent: int
    kind: str
    """as in `saelab.stores.Example`"""
    bin: float | None
    """upper bound of the interval of a "quantile" window"""
    peak: int
    """the token that fires"""
    value: float
    """there"""
    key: bytes
    """a hash of its tokens"""
    tokens: list[str]
    values: np.ndarray
    """float32 [len(tokens)]"""


def feature_of(row: dict[str, Any]) -> Feature:
    """A feature out of its line.

    Args:
        row: The line.

    Raises:
        ValueError: A field is not as it must be.
    """
    share = _number(row, "frac_nonzero")
    if share is not None and not 0 <= share <= 1:
        if share != -1:
            message = f"frac_nonzero {share}, which is no share"
            raise ValueError(message)
        share = None
    heights, edges = _histogram(row, "freq_hist_data_bar")
    if share is None and not heights:
        message = "a feature with neither frac_nonzero nor a histogram"
        raise ValueError(message)
    return Feature(
        latent=_latent(row),
        share=share,
        most=_number(row, "maxActApprox") or 0.0,
        heights=heights,
        edges=edges,
        raised=_logits(row, "pos"),
        lowered=_logits(row, "neg"),
        spread=_spread(*_histogram(row, "logits_hist_data_bar")),
        vector=_numbers(row, "vector", MAX_WIDTH),
        hook=text_of(row, "hookName").strip(),
    )


def window_of(row: dict[str, Any]) -> Window | None:
    """A window out of its line; None where the latent fires nowhere in it.

    Args:
        row: The line.

    Raises:
        ValueError: A field is not as it must be.
    """
    latent = _latent(row)
    tokens = _texts(row, "tokens", MAX_TOKENS)
    values = _numbers(row, "values", MAX_TOKENS)
    if len(tokens) != len(values):
        message = f"{len(tokens)} tokens beside {len(values)} values"
        raise ValueError(message)
    if not values.any():
        return None
    lowest = text_of(row, "dataSource") == "bottom"
    low, high = _number(row, "binMin"), _number(row, "binMax")
    drawn = low is not None and high is not None and low != -1 and not lowest
    peak = _index(row, "qualifyingTokenIndex", len(tokens))
    if peak is None or not values[peak]:
        peak = int(values.argmin() if lowest and values.min() < 0 else values.argmax())
        if values[peak] <= 0:  # it is never above 0
            peak = int(values.argmin())
    kind = "quantile" if drawn else "top" if values[peak] > 0 else "bottom"
    key = hashlib.blake2b("\0".join(f"{len(token)}:{token}" for token in tokens).encode(), digest_size=16)
    return Window(
        latent, kind, high if drawn else None, peak, float(values[peak]), key.digest(), tokens,
        values,
    )  # fmt: skip


def shown(token: str) -> str:
    """A token as it is read.

    Args:
        token: As the export has it.
    """
    return _WHITE.sub(lambda found: WHITE[found[0]], token)


def _latent(row: dict[str, Any]) -> int:
    latent = latent_of(row["index"])
    if latent >= MAX_LATENT:
        message = f"the index {latent}, where {MAX_LATENT - 1:,} is the largest that is read"
        raise ValueError(message)
    return latent


def _number(row: dict[str, Any], key: str) -> float | None:
    value = row.get(key)
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < 3e38:
        message = f"the {key} {short(value)}, which is no number of float32's range"
        raise ValueError(message)
    return float(value)


def _numbers(row: dict[str, Any], key: str, most: int) -> np.ndarray:
    """float32 [n]; empty for null."""
    value = row.get(key)
    if value is None:
        return np.zeros(0, np.float32)
    if not isinstance(value, list) or len(value) > most:
        message = f"the {key} {short(value)}, which is no list of at most {most:,} numbers"
        raise ValueError(message)
    found = np.asarray(value) if value else np.zeros(0)
    # objects where they are of several kinds, or integers beyond all bounds
    if found.dtype.kind not in "if" or found.ndim != 1 or not (np.abs(found) < 3e38).all():
        message = f"the {key} {short(value)}, not all of which are numbers of float32's range"
        raise ValueError(message)
    return found.astype(np.float32)


def _texts(row: dict[str, Any], key: str, most: int) -> list[str]:
    value = row.get(key)
    if value is None:
        return []
    if not isinstance(value, list) or len(value) > most:
        message = f"the {key} {short(value)}, which is no list of at most {most:,} texts"
        raise ValueError(message)
    if not all(isinstance(token, str) and len(token) <= MAX_TOKEN for token in value):
        message = f"the {key} {short(value)}, not all of which are texts of at most {MAX_TOKEN:,} characters"
        raise ValueError(message)
    joined = "".join(value)
    joined.encode()  # a lone surrogate is JSON, but no text
    return [shown(token) for token in value] if _WHITE.search(joined) else value


def _index(row: dict[str, Any], key: str, n: int) -> int | None:
    value = row.get(key)
    if value is None or value == -1:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < n:
        message = f"the {key} {short(value)}, which is none of {n} tokens"
        raise ValueError(message)
    return value


def _logits(row: dict[str, Any], side: str) -> list[tuple[str, float]]:
    texts, values = _texts(row, f"{side}_str", MAX_TOKENS), _numbers(row, f"{side}_values", MAX_TOKENS)
    if len(texts) != len(values):
        message = f"{len(texts)} {side}_str beside {len(values)} {side}_values"
        raise ValueError(message)
    pairs = zip(texts, values.tolist(), strict=True)
    return sorted(pairs, key=lambda pair: -pair[1] if side == "pos" else pair[1])


def _histogram(row: dict[str, Any], name: str) -> tuple[list[int], list[float]]:
    """(counts, edges) of a histogram; empty where there is none, or where its heights are no counts."""
    heights = _numbers(row, f"{name}_heights", MAX_BINS).astype(np.float64)
    values = _numbers(row, f"{name}_values", MAX_BINS).astype(np.float64)
    if not len(heights):
        return [], []
    if len(values) not in (len(heights), len(heights) + 1) or (np.diff(values) < 0).any():
        message = f"{name}_values that are not {len(heights)} ascending centres of bins, nor their edges"
        raise ValueError(message)
    if (heights < 0).any():
        message = f"{name}_heights below 0"
        raise ValueError(message)
    if (heights != np.rint(heights)).any():
        return [], []
    edges = values if len(values) > len(heights) else _edges(values)
    if len(np.unique(edges)) < len(edges):
        return [], []
    return heights.astype(np.int64).tolist(), edges.tolist()


def _edges(centres: np.ndarray) -> np.ndarray:
    """float64 [n + 1]: of bins of one width, unless the centres say otherwise by more than their rounding."""
    n = len(centres)
    if n == 1:
        half = max(abs(centres[0]), 1.0) * 2.0**-10
        return np.array([centres[0] - half, centres[0] + half])
    step = (centres[-1] - centres[0]) / (n - 1)
    even = centres[0] + step * np.arange(n)
    if np.abs(even - centres).max() <= _FINEST + 1e-3 * step:
        return centres[0] + step * (np.arange(n + 1) - 0.5)
    middle = (centres[1:] + centres[:-1]) / 2
    return np.r_[2 * centres[0] - middle[0], middle, 2 * centres[-1] - middle[-1]]


def _spread(heights: list[int], edges: list[float]) -> float:
    """Standard deviation of what a histogram counts, all of a bin at its centre."""
    total = sum(heights)
    if not total:
        return math.nan
    counts, bounds = np.array(heights, np.float64), np.array(edges)
    centres = (bounds[1:] + bounds[:-1]) / 2
    mean = counts @ centres / total
    return float(np.sqrt(counts @ (centres - mean) ** 2 / total))
