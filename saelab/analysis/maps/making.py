"""Maps of latents are made once: what was computed is kept beside the store."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from saelab.analysis.maps import keeping
from saelab.analysis.maps.clusters import clustered, named
from saelab.analysis.maps.faithful import Faith, faith
from saelab.analysis.maps.layouts import METHODS, Tell, laid
from saelab.analysis.maps.profiles import BY, never_fire, profile
from saelab.analysis.maps.results import CONTROLS, LatentMap
from saelab.arguments import a_function, a_store, an_integer, checked, flag, maybe, one_of

if TYPE_CHECKING:
    from saelab.stores import FeatureStore


CHECKS: dict[str, Any] = {
    "store": a_store,
    "by": one_of(*BY),
    "method": one_of(*METHODS),
    "seed": an_integer(),
    "n_neighbors": an_integer(2),
}
"""What whoever makes a map checks, here or in the background."""


@checked(**CHECKS, keep=flag, progress=maybe(a_function("print")))
def latent_map(
    store: FeatureStore,
    by: str = "decoder",
    method: str = "pca",
    *,
    seed: int = 0,
    n_neighbors: int = 15,
    keep: bool = True,
    progress: Callable[[str, float], None] | None = None,
) -> LatentMap:
    """A picture of all latents, in which alike ones are near, and how far that can be trusted.

    Latents are alike by their decoder directions; by the sampled rows on which they fire; or by what they
    fire on. PCA takes seconds, UMAP (umap-learn) and t-SNE (openTSNE) minutes, on one thread, since they are
    seeded: `start_map` makes them in the background. What was computed is kept beside the store, or where
    that cannot be written in the user's cache. Beside every picture stand trustworthiness and continuity
    (scikit-learn's definition) and the share of nearest neighbours that it keeps, of PCA and of a random
    projection too.

    Args:
        store: Of the latents.
        by: "decoder", "cofiring" or "tokens".
        method: "pca", "umap" or "tsne".
        seed: Of whatever is drawn.
        n_neighbors: That UMAP looks at; half of t-SNE's perplexity.
        keep: Whether what was kept is read, and what was made is kept.
        progress: Called with what is being done and the share of it that is done.

    Returns:
        The map.

    Raises:
        ConfigError: An option is none of these.
        StoreError: The store has no directions, or fewer than two latents that could be placed.
        MissingDependency: The method's library is not installed: pip install 'saelab[map]'.
    """
    options = {"by": by, "method": method, "seed": seed, "n_neighbors": n_neighbors}
    tell = progress or (lambda what, share: None)
    if not keep:
        return _made(store, options, tell)
    if (found := keeping.read(store, options)) is None:
        with keeping.alone(store, options, lambda: tell("waiting", 0.0)):
            found = keeping.read(store, options)  # another may have made it meanwhile
            if found is None:
                found = _made(store, options, tell)
                keeping.keep(store, options, found)
                tell("done", 1.0)
    return found


def _made(store: FeatureStore, options: Mapping[str, Any], tell: Tell) -> LatentMap:
    """The map with these options, made anew."""
    by, method, seed = options["by"], options["method"], options["seed"]
    tell("profiles", 0.0)
    own = profile(store, by, seed)
    pictures: dict[str, np.ndarray] = {}
    for name in dict.fromkeys([method, *CONTROLS]):
        pictures[name] = laid(own.rows, name, seed=seed, n_neighbors=options["n_neighbors"], tell=tell)
    judged: dict[str, Faith] = {}
    for i, (name, picture) in enumerate(pictures.items()):
        tell("neighbours", i / len(pictures))
        judged[name] = faith(own.rows, picture, seed=seed)
    tell("clusters", 0.0)
    clusters = clustered(pictures[method], seed)
    place = np.full((store.n_latents, 2), np.nan, np.float32)
    place[own.latents] = pictures[method]
    cluster = np.full(store.n_latents, -1, np.int32)
    cluster[own.latents] = clusters
    return LatentMap(
        by=by,
        method=method,
        x=place[:, 0],
        y=place[:, 1],
        dead=never_fire(store),
        cluster=cluster,
        names=tuple(named(store, own.latents, clusters)),
        faith=judged,
        seed=seed,
    )


__all__ = ["latent_map"]
