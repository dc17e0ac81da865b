"""Maps that were made, kept beside their store, or in the user's cache where that cannot be written.

`.map-KEY.safetensors` is no part of the store: it is derived from the files whose hashes its key names, with
the options that it names, and is ignored where anything in it is odd. Tensors: `place` float32 [n 2],
`cluster` int32 [n], `faith` float32 [3 pictures, 3 measures, value and interval], `names` uint8, a JSON list
of strings.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from saelab.analysis.maps.faithful import Faith, Share
from saelab.analysis.maps.results import CONTROLS, LatentMap
from saelab.config import is_unicode
from saelab.files import parse_json
from saelab.stores import derived
from saelab.types import FormatError

if TYPE_CHECKING:
    from saelab.stores import FeatureStore

VERSION = 1


def read(store: FeatureStore, options: Mapping[str, Any]) -> LatentMap | None:
    """The map of a store that was made with these options; None where none is kept that is sound."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    pictures = _pictures(options)
    for path in derived.places(store.folder, *_names(store, options)):
        with contextlib.suppress(
            OSError, SafetensorError, FormatError, ValueError, KeyError, TypeError, OverflowError
        ):
            found = load_file(path)
            place, cluster, faith = found["place"], found["cluster"], found["faith"]
            names = parse_json(found["names"].tobytes(), path, of=list)
            n = store.n_latents
            sound = place.shape == (n, 2) and place.dtype == np.float32
            sound &= cluster.shape == (n,) and cluster.dtype == np.int32 and bool((cluster >= -1).all())
            sound &= int(cluster.max(initial=-1)) < len(names) and not np.isinf(place).any()
            sound &= faith.shape == (len(pictures), 3, 3) and bool(np.isfinite(faith).all())
            if not sound or not all(isinstance(name, str) and is_unicode(name) for name in names):
                continue
            judged = {
                name: Faith(*(Share(*map(float, share)) for share in each))
                for name, each in zip(pictures, faith, strict=True)
            }
            dead = store.latents()["count"].to_numpy() == 0
            own = {"by": options["by"], "method": options["method"], "seed": options["seed"]}
            return LatentMap(
                **own,
                x=place[:, 0],
                y=place[:, 1],
                dead=dead,
                cluster=cluster,
                names=tuple(names),
                faith=judged,
            )
    return None


def keep(store: FeatureStore, options: Mapping[str, Any], made: LatentMap) -> None:
    """Write a map beside its store, else into the user's cache, else nowhere."""
    from safetensors.numpy import save_file

    tensors = {
        "place": np.ascontiguousarray(np.stack([made.x, made.y], 1), np.float32),
        "cluster": np.ascontiguousarray(made.cluster, np.int32),
        "faith": np.array([made.faith[name] for name in _pictures(options)], np.float32),
        "names": np.frombuffer(json.dumps(list(made.names)).encode(), np.uint8),
    }
    derived.write(store.folder, *_names(store, options), lambda path: save_file(tensors, path))


def _pictures(options: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys([options["method"], *CONTROLS]))


def _names(store: FeatureStore, options: Mapping[str, Any]) -> tuple[str, str]:
    """Of the file beside the store, and in the user's cache."""
    said = {"version": VERSION, "files": store.manifest["files"], **options}
    key = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:32]
    return f".map-{key}.safetensors", f"maps/{key}.safetensors"


__all__ = ["keep", "read"]
