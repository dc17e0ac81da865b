"""One activation store out of several over consecutive parts of a corpus."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from saelab.files import read_json, write_json
from saelab.stores import manifest as manifests
from saelab.stores.activations import ActivationStore
from saelab.stores.shards import KIND, shard_name

JOINED = "joined.json"
"""Says what goes where, once all parts are there."""


COUNTS = ("special_rows", "documents_cut", "tokens_cut")
"""of a store's manifest, which add up"""


def join(folder: Path, parts: list[Path], fields: dict[str, Any]) -> None:
    """The store out of its parts, whose shards are moved, not copied.

    What goes where is written down first, so that a process that was killed meanwhile can be gone on with.

    Args:
        folder: Where the store is made, with the parts in its subfolder `parts`.
        parts: Folders of whole stores, in order; none where what goes where is written down.
        fields: Of the manifest: the job, with subject and packing, and what else is known.
    """
    plan = folder / manifests.PARTS / JOINED
    if not plan.is_file():
        stores = [ActivationStore.open(part) for part in parts]
        moves = []
        for part, store in zip(parts, stores, strict=True):
            names = [shard_name(number) for number in range(len(store.manifest["shard_rows"]))]
            moves += [(f"{part.name}/{name}", store.manifest["files"][name]) for name in names]
        own = {
            "n_rows": sum(store.n_rows for store in stores),
            "dtype": stores[0].dtype,
            "hooks": stores[0].manifest["hooks"],
            "shard_rows": [rows for store in stores for rows in store.manifest["shard_rows"]],
            **{name: sum(s.manifest[name] for s in stores) for name in COUNTS},
        }
        rounding = {hook: _rounding(stores, hook) for hook in own["hooks"] if own["dtype"] != "float32"}
        own |= {"rounding": rounding} if rounding else {}
        own |= {name: fields["job"][name] for name in ("subject", "packing")}
        write_json(plan, {"moves": moves, "fields": {**own, **fields}})
    told = read_json(plan, "plan of a store")
    for number, (source, _) in enumerate(told["moves"]):
        if (plan.parent / source).is_file():
            (plan.parent / source).replace(folder / shard_name(number))
    known = {shard_name(number): entry for number, (_, entry) in enumerate(told["moves"])}
    manifests.write_manifest(folder, KIND, told["fields"], known)


def _rounding(stores: Sequence[ActivationStore], hook: str) -> dict[str, float]:
    """Relative error of the stored rows of all: largest, and root of the mean square."""
    each = [(store.manifest["rounding"][hook], store.n_rows) for store in stores]
    squares = sum(error["rms"] ** 2 * n for error, n in each)
    return {"max": max(error["max"] for error, _ in each), "rms": (squares / sum(n for _, n in each)) ** 0.5}
