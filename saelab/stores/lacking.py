"""What a store does not know, and says so: one that was made of an export, in place of a corpus.

Its manifest names these tables under `lacks`, and under `absent` the ranges of latents of which the export
holds nothing. The tables have no files, so that nothing reads them as empty.
"""

from __future__ import annotations

import itertools
import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from typing import Any

from saelab.config import is_integer
from saelab.types import StoreError

WHAT = {
    "codes_by_latent": "The rows on which a latent fires",
    "codes_by_row": "What fires on a row",
    "rows": "Rows, one by one",
    "firings": "How often a latent fires on a token",
    "vocabulary": "How often a token comes up",
    "tokens": "How often a latent fires on a token",
    "sample": "Codes of sampled rows",
    "coactivation": "Which latents fire together",
}
LACKED = tuple(name for name in WHAT if name != "tokens")
"""Tables that may be lacking; `tokens` is a view of two of them."""
_MISSING = re.compile(r"Table with name (\w+) does not exist")


def lacks(manifest: Mapping[str, Any], *names: str) -> bool:
    """Whether a store lacks any of these tables.

    Args:
        manifest: Of the store.
        names: Of tables.
    """
    return not set(names).isdisjoint(manifest.get("lacks", ()))


def need(manifest: Mapping[str, Any], table: str) -> None:
    """Refuse what a store cannot answer.

    Args:
        manifest: Of the store.
        table: That the answer lies in.

    Raises:
        StoreError: The store lacks it.
    """
    if lacks(manifest, table):
        raise StoreError(_complaint(manifest, table))


def need_latent(manifest: Mapping[str, Any], latent: int) -> None:
    """Refuse a latent of which the store knows nothing.

    Args:
        manifest: Of the store.
        latent: One of its numbers.

    Raises:
        StoreError: It is absent.
    """
    absent = manifest.get("absent", ())
    at = bisect_right(absent, [latent, 2**62]) - 1
    if at >= 0 and latent <= absent[at][1]:
        message = (
            f"A latent must be among those of {_export(manifest)}. Got {latent}, of which it holds nothing: "
            "latents that never fired are often left out there. Pass another, or index a corpus with "
            "saelab.index."
        )
        raise StoreError(message)


def need_directions(manifest: Mapping[str, Any]) -> None:
    """Refuse to look for directions that an export did not have.

    Args:
        manifest: Of a store without directions.

    Raises:
        StoreError: It was made of an export.
    """
    if "export" in manifest:
        message = (
            f"Directions of latents are needed. Got a store made of {_export(manifest)}, which has none. "
            "Index a corpus with the SAE by saelab.index, which writes its decoder's rows."
        )
        raise StoreError(message)


def check_made_with(manifest: Mapping[str, Any], given: Any) -> None:
    """Refuse an SAE or a subject that a store was not made with.

    Args:
        manifest: Of the store.
        given: The SAE or subject.

    Raises:
        StoreError: Its fingerprint is another, or the store was made of an export, which has none.
    """
    if not hasattr(given, "fingerprint"):
        message = (
            f"A store is checked against an SAE or a subject. Got {type(given).__name__}. Load it first."
        )
        raise StoreError(message)
    kind = "sae" if hasattr(given, "encode_sparse") else "subject"
    if "export" in manifest:
        what = {"sae": "an SAE", "subject": "a model"}[kind]
        message = (
            f"A store is used with {what} that it was made with. Got {what} beside {_export(manifest)}, in "
            "which that cannot be seen. Open the store alone, Lab(stores=store), or index a corpus with "
            "saelab.index."
        )
        raise StoreError(message)
    if given.fingerprint() != manifest[kind]:
        message = (
            f"A store must be read with the {kind} that it was indexed with, {manifest[kind][:12]}. "
            f"Got another, {given.fingerprint()[:12]}. Load the right one, or index anew with "
            f"saelab.index."
        )
        raise StoreError(message)


def absent(manifest: Mapping[str, Any]) -> Iterable[int]:
    """The latents of which a store knows nothing, ascending.

    Args:
        manifest: Of the store.
    """
    for first, last in manifest.get("absent", ()):
        yield from range(first, last + 1)


def explained(manifest: Mapping[str, Any], error: Exception) -> StoreError | None:
    """The error of a query that asked for a table which the store lacks; None where it did not.

    Args:
        manifest: Of the store.
        error: What the database said.
    """
    found = _MISSING.search(str(error))
    name = found[1].lower() if found else ""
    if lacks(manifest, name) or (name == "tokens" and lacks(manifest, "firings")):
        return StoreError(_complaint(manifest, name))
    return None


def wrong(manifest: Mapping[str, Any]) -> list[str]:
    """The names of the fields above that are not as they must be.

    Args:
        manifest: As it was read.
    """
    lacked, ranges = manifest.get("lacks", []), manifest.get("absent", [])
    bad = []
    if not isinstance(lacked, list) or any(name not in LACKED for name in lacked):
        bad.append("lacks")
    if not isinstance(ranges, list) or not all(map(_is_range, ranges)):
        bad.append("absent")
    elif any(one[1] >= other[0] for one, other in itertools.pairwise(ranges)):
        bad.append("absent")
    return bad


def _is_range(pair: Any) -> bool:
    good = isinstance(pair, list) and len(pair) == 2 and all(map(is_integer, pair))
    return good and 0 <= pair[0] <= pair[1] < 2**31


def _complaint(manifest: Mapping[str, Any], table: str) -> str:
    return (
        f"{WHAT[table]}: that needs the table {table}. Got a store made of {_export(manifest)}, which does "
        "not say it. Index a corpus with the SAE and its model by saelab.index, or use the tables latents, "
        "examples, documents and labels."
    )


def _export(manifest: Mapping[str, Any]) -> str:
    said = manifest.get("export")
    of = said.get("of") if isinstance(said, Mapping) else None
    return f"Neuronpedia's export of {of}" if isinstance(of, str) else "an export"
