"""What the manifest of a feature store must say besides its files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from saelab.config import is_integer
from saelab.stores.feature_writer import kept_share
from saelab.types import ConfigError

FIELDS = {
    "n_latents": int,
    "n_rows": int,
    "n_documents": int,
    "hook": dict,
    "sae": str,
    "subject": str,
    "codes": str,
    "signed": bool,
    "facets": list,
}
_COUNTS = (
    "n_latents", "n_rows", "n_documents", "n_codes", "sample_rows", "seed", "n_examples", "n_quantile",
    "documents_cut", "tokens_cut",
)  # fmt: skip
_LATER = ("documents_cut", "tokens_cut")
"""What older stores do not say."""


def wrong_fields(manifest: Mapping[str, Any], tables: Iterable[str]) -> list[str]:
    """The names of what is missing, or of another type or range.

    Args:
        manifest: Its files are listed and checked by size.
        tables: Those that the store must have.
    """
    wrong = [name for name, kind in FIELDS.items() if not isinstance(manifest.get(name), kind)]
    found = {name: manifest.get(name, 0 if name in _LATER else None) for name in _COUNTS}
    wrong += [name for name, value in found.items() if name not in wrong and not _is_count(value)]
    window = manifest.get("window")
    if not isinstance(window, list) or len(window) != 2 or not all(map(_is_count, window)):
        wrong.append("window")
    if "codes" not in wrong and not _is_share(manifest["codes"]):
        wrong.append("codes")
    return wrong + [f"files/{t}.parquet" for t in tables if f"{t}.parquet" not in manifest["files"]]


def _is_count(value: Any) -> bool:
    return is_integer(value) and 0 <= value < 2**63


def _is_share(codes: str) -> bool:
    try:
        kept_share(codes)
    except ConfigError:
        return False
    return True
