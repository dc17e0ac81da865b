"""What the manifest of a feature store must say besides its files."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saelab.config import is_integer
from saelab.stores import lacking, tables
from saelab.stores import manifest as manifests
from saelab.types import ConfigError, StoreError

KIND = "features"
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


def kept_share(codes: str) -> float:
    """The share of rows whose codes are kept: 1 of "full", p of "sampled=p", 0 of "none".
    Raises ConfigError."""
    found = re.fullmatch(r"sampled=([0-9.eE+-]+)", codes) if isinstance(codes, str) else None
    with contextlib.suppress(ValueError):
        share = {"full": 1.0, "none": 0.0}.get(str(codes), float(found[1]) if found else -1)
        if 0 < share < 1 or (isinstance(codes, str) and codes in ("full", "none")):
            return share
    message = (
        f"codes must be 'full', 'none' or 'sampled=p' with 0 < p < 1. Got {codes!r}. Pass e.g. "
        "codes='sampled=0.1'."
    )
    raise ConfigError(message)


def checked_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a feature store, its files checked by size.

    Raises:
        StoreError: There is no whole feature store of a known version.
    """
    manifest = manifests.settled(folder, KIND)
    if manifest["version"] < 2:
        message = (
            f"Feature stores are of version 2 now. Got version {manifest['version']} in {folder}. Make a "
            f"new one of it: saelab.stores.migrate({str(folder)!r}), which leaves it as it is until that "
            "is whole."
        )
        raise StoreError(message)
    wrong = _wrong(manifest)
    if wrong:
        message = (
            f"The manifest of a feature store must hold {', '.join(FIELDS)} and a file for each table. "
            f"Got none or another type for {', '.join(wrong)} in {folder}. Write the store again."
        )
        raise StoreError(message)
    return manifest


def _wrong(manifest: Mapping[str, Any]) -> list[str]:
    """The names of what is missing, or of another type or range."""
    wrong = [name for name, kind in FIELDS.items() if not isinstance(manifest.get(name), kind)]
    found = {name: manifest.get(name, 0 if name in _LATER else None) for name in _COUNTS}
    wrong += [name for name, value in found.items() if name not in wrong and not _is_count(value)]
    window = manifest.get("window")
    if not isinstance(window, list) or len(window) != 2 or not all(map(_is_count, window)):
        wrong.append("window")
    if "codes" not in wrong and not _is_share(manifest["codes"]):
        wrong.append("codes")
    wrong += lacking.wrong(manifest)
    there = [name for name in tables.SCHEMAS if "lacks" in wrong or not lacking.lacks(manifest, name)]
    return wrong + [f"files/{t}.parquet" for t in there if f"{t}.parquet" not in manifest["files"]]


def _is_count(value: Any) -> bool:
    return is_integer(value) and 0 <= value < 2**63


def _is_share(codes: str) -> bool:
    try:
        kept_share(codes)
    except ConfigError:
        return False
    return True
