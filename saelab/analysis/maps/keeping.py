"""Maps that were made, kept beside their store, or in the user's cache where that cannot be written.

`.map-KEY.safetensors` is no part of the store: it is derived from the files whose hashes its key names, with
the options that it names, and is ignored where anything in it is odd. Tensors: `place` float32 [n 2],
`cluster` int32 [n], `dead` bool [n], `faith` float32 [3 pictures, 3 measures, value and interval], `names`
uint8, a JSON list of strings.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from saelab.analysis.maps.faithful import Faith, Share
from saelab.analysis.maps.results import CONTROLS, LatentMap
from saelab.config import is_unicode
from saelab.files import parse_json
from saelab.stores import derived
from saelab.stores.manifest import lock
from saelab.types import FormatError, StoreError

if TYPE_CHECKING:
    from saelab.stores import FeatureStore

VERSION = 2
PATIENCE = 0.2
"""Seconds between two looks at whether another has made a map."""


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
            place, cluster, dead, faith = (found[name] for name in ("place", "cluster", "dead", "faith"))
            names = parse_json(found["names"].tobytes(), path, of=list)
            n = store.n_latents
            sound = place.shape == (n, 2) and place.dtype == np.float32
            sound &= cluster.shape == (n,) and cluster.dtype == np.int32 and bool((cluster >= -1).all())
            sound &= dead.shape == (n,) and dead.dtype == bool
            sound &= int(cluster.max(initial=-1)) < len(names) and not np.isinf(place).any()
            sound &= faith.shape == (len(pictures), 3, 3) and bool(np.isfinite(faith).all())
            if not sound or not all(isinstance(name, str) and is_unicode(name) for name in names):
                continue
            judged = {
                name: Faith(*(Share(*map(float, share)) for share in each))
                for name, each in zip(pictures, faith, strict=True)
            }
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
        "dead": np.ascontiguousarray(made.dead, bool),
        "faith": np.array([made.faith[name] for name in _pictures(options)], np.float32),
        "names": np.frombuffer(json.dumps(list(made.names)).encode(), np.uint8),
    }
    derived.write(store.folder, *_names(store, options), lambda path: save_file(tensors, path))


@contextlib.contextmanager
def alone(store: FeatureStore, options: Mapping[str, Any], waiting: Callable[[], object]) -> Iterator[None]:
    """Be the only one, of all threads and processes, that makes this map.

    Args:
        store: Of the latents.
        options: Of the map.
        waiting: Called again and again while another makes it; what it raises ends the waiting.
    """
    with contextlib.ExitStack() as held:
        for path in derived.writable(store.folder, *_names(store, options)):
            while True:
                try:
                    held.enter_context(lock(path.with_suffix(".lock"), path))
                except StoreError:
                    waiting()
                    time.sleep(PATIENCE)
                except OSError:
                    break  # not here
                else:
                    for left in path.parent.glob(f".{path.name}.*.tmp"):  # by one that was killed
                        with contextlib.suppress(OSError):
                            left.unlink()
                    yield
                    return
        yield


def sweep(store: FeatureStore, options: Mapping[str, Any]) -> None:
    """Remove what a process that was killed has left, where no other makes this map now."""

    class Busy(Exception):
        pass

    def busy() -> None:
        raise Busy

    with contextlib.suppress(Busy), alone(store, options, busy):
        pass


def key(store: FeatureStore, options: Mapping[str, Any]) -> str:
    """By which a map is known: of the store's files, and of the options."""
    said = {"version": VERSION, "files": store.manifest["files"], **options}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:32]


def _pictures(options: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys([options["method"], *CONTROLS]))


def _names(store: FeatureStore, options: Mapping[str, Any]) -> tuple[str, str]:
    """Of the file beside the store, and in the user's cache."""
    own = key(store, options)
    return f".map-{own}.safetensors", f"maps/{own}.safetensors"


__all__ = ["alone", "keep", "key", "read", "sweep"]
