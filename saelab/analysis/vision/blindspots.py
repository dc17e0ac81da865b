"""Conceptual blindspots: what a generator shows too rarely or too often, by the latents of an SAE."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

from saelab.analysis.controls import CONFIDENCE, DRAWS, OWN, Beside, Control, wilson
from saelab.analysis.vision.chance import false_discovery, permutation_p
from saelab.analysis.vision.codes import NEURONS, UNTRAINED, DocumentCodes, Energies, read
from saelab.analysis.vision.spots import FLAGS, NULL, Blindspots, Neighbours, Spots, Strongest
from saelab.arguments import a_subject, an_integer, checked, flag, full_sae, maybe
from saelab.arguments import real as a_number
from saelab.types import ConfigError, CorpusError, ShapeError

if TYPE_CHECKING:
    from saelab.sae import SAE
    from saelab.types import Subject

COLUMNS = 1024
"""Latents that are drawn for at once."""
IMAGES = 8
"""That are kept of either side for each latent: those in which it has most energy."""


def _share(name: str, value: Any) -> float:
    found = a_number(0)(name, value)
    if not 0 < found < 1:
        message = f"{name} must be between 0 and 1. Got {found:g}. Pass {name}=0.05."
        raise ConfigError(message)
    return found


@checked(
    sae=maybe(full_sae), subject=maybe(a_subject), paired=flag, fdr=_share, least=an_integer(1),
    splits=an_integer(1), draws=an_integer(100), seed=an_integer(), batch_size=an_integer(1),
)  # fmt: skip
def blindspots(
    real: Any,
    generated: Any,
    sae: SAE | None = None,
    subject: Subject | None = None,
    *,
    paired: bool = False,
    fdr: float = 0.05,
    least: int = 5,
    splits: int = 20,
    draws: int = 20_000,
    seed: int = 0,
    batch_size: int = 16,
) -> Blindspots:
    """Which latents have another energy in generated images than in real ones::

        d_k = mean over generated of xi_k - mean over real of xi_k
        r_k = d_k / (mean over generated of xi_k + mean over real of xi_k)

    xi_k, the energy of latent k in an image, is the sum of its codes over all positions; r_k is -1 of what
    the generator never shows, 1 of what real images never show (Bohacek et al., arXiv 2506.19708). A latent
    is flagged where the false-discovery rate of permuted images is at most `fdr`; the paper has no such test,
    and its thresholds are shown apart. The same is done with an untrained SAE, with raw neurons, and with
    halves of the real images, of which none should be flagged. Not of images alone: of whatever documents a
    subject reads.

    Args:
        real: Images, or what else the subject reads; activations where there is no subject; or codes of
            `document_codes`.
        generated: Likewise.
        sae: By which both are read; none with codes.
        subject: That reads both; none with codes or activations.
        paired: Whether image i of both is of one prompt: pairs are then drawn and swapped together.
        fdr: False-discovery rate.
        least: Images in which a latent fires, of both together, to be counted as alive.
        splits: Into halves, of the real images.
        draws: Permutations, at most: the smallest p-value is one over them.
        seed: Of the draws.
        batch_size: Images of a pass.

    Returns:
        Energies and differences of each latent with intervals, what is flagged, and how near each generated
        image comes to a real one.

    Raises:
        CorpusError: Fewer than four real images, or fewer than two generated ones.
        ShapeError: Pairs of which one is missing.
        ConfigError: Nothing to read them by, or codes by different SAEs.
    """
    one = read("real", real, sae, subject, None, batch_size=batch_size, seed=seed)
    two = read("generated", generated, sae, subject, one, batch_size=batch_size, seed=seed)
    for name, found, most in (("real", one, 4), ("generated", two, 2)):
        if len(found) < most:
            message = f"{name} must hold at least {most} documents. Got {len(found)}. Pass more."
            raise CorpusError(message)
    if paired and len(one) != len(two):
        message = f"Pairs must be as many on both sides. Got {len(one)} and {len(two)}. Pass paired=False."
        raise ShapeError(message)
    options: dict[str, Any] = {"least": least, "draws": draws, "seed": seed}
    arms = {
        name: _spots(one.arms[name], two.arms[name], paired=paired, intervals=True, **options)
        for name in (OWN, UNTRAINED, NEURONS)
    }
    null = _nulls(one.arms[OWN], splits, options)
    near = {name: _neighbours(one.arms[name], two.arms[name], paired) for name in arms}
    return Blindspots(
        spots=arms[OWN],
        controls={name: arms[name] for name in (UNTRAINED, NEURONS)},
        null=tuple(null),
        figures=_figures(arms, null, fdr),
        neighbours=near[OWN],
        other_neighbours={name: near[name] for name in (UNTRAINED, NEURONS)},
        fdr=fdr,
        paired=paired,
        ids=(one.ids, two.ids),
        strongest=tuple(_strongest(side, arms[OWN].latents) for side in (one, two)),  # type: ignore[arg-type]
    )


def _strongest(side: DocumentCodes, latents: np.ndarray) -> Strongest:
    columns = side.arms[OWN][:, latents].tocsc()
    shape = (len(latents), IMAGES)
    at, energy = np.full(shape, -1), np.zeros(shape)
    for i, (start, end) in enumerate(itertools.pairwise(columns.indptr)):
        values = columns.data[start:end]
        order = np.lexsort((columns.indices[start:end], -values))[:IMAGES]
        at[i, : len(order)], energy[i, : len(order)] = columns.indices[start:end][order], values[order]
    return Strongest(at, np.where(at < 0, -1, side.documents[at]), energy)


def _spots(
    real: Energies, generated: Energies, *, paired: bool, intervals: bool, least: int, draws: int,
    seed: int,
) -> Spots:  # fmt: skip
    fired = np.stack([np.asarray((side != 0).sum(0)).ravel() for side in (real, generated)], 1)
    latents = np.flatnonzero(fired.sum(1) >= least)
    one, two = real[:, latents].tocsc(), generated[:, latents].tocsc()
    means = [np.asarray(side.mean(0), np.float64).ravel() for side in (one, two)]
    p = permutation_p(one, two, paired=paired, draws=draws, seed=seed)
    difference, relative = differences(*means)
    if intervals:
        of_difference, of_relative = _intervals(one, two, paired, seed)
    else:
        of_difference = of_relative = np.full((len(latents), 2), np.nan)
    return Spots(
        latents=latents,
        fired=fired[latents],
        real=means[0],
        generated=means[1],
        difference=difference,
        difference_interval=of_difference,
        relative=relative,
        relative_interval=of_relative,
        p=p,
        q=false_discovery(p),
    )


def differences(real: np.ndarray, generated: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(d, r) of mean energies of one shape; r is NaN where both are 0."""
    difference, total = generated - real, generated + real
    return difference, np.where(total > 0, difference / np.where(total > 0, total, 1), np.nan)


def _intervals(real: Any, generated: Any, paired: bool, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """float64 [m 2] each: 95 % of both differences, images drawn anew."""
    rng = np.random.default_rng(seed)
    drawn = [drawn_weights(rng, real.shape[0])]
    drawn.append(drawn[0] if paired else drawn_weights(rng, generated.shape[0]))
    tail, parts = 50 * (1 - CONFIDENCE), []
    for low in range(0, real.shape[1], COLUMNS):
        some = slice(low, low + COLUMNS)
        means = [np.asarray(side[:, some].T @ w.T) for side, w in zip((real, generated), drawn, strict=True)]
        both = np.stack(differences(*means))
        # of a latent that no draw shows there is no relative difference
        both = np.where(np.isnan(both).all(2, keepdims=True), 0, both)
        ends = np.nanpercentile(both, [tail, 100 - tail], 2)
        parts.append(ends.transpose(1, 2, 0))
    found = np.concatenate(parts, 1) if parts else np.zeros((2, 0, 2))
    return found[0], found[1]


def drawn_weights(rng: np.random.Generator, n: int) -> np.ndarray:
    """float64 [draws n]: weights of a mean over documents drawn anew."""
    return rng.multinomial(n, np.full(n, 1 / n), size=DRAWS) / n


def _nulls(real: Energies, splits: int, options: dict[str, Any]) -> list[Spots]:
    """Real images against real images that were held out."""
    n, found = real.shape[0], []
    for split in range(splits):
        order = np.random.default_rng([options["seed"], split]).permutation(n)
        halves = real[np.sort(order[: n // 2])], real[np.sort(order[n // 2 :])]
        found.append(_spots(*halves, paired=False, intervals=False, **options))
    return found


def _figures(arms: dict[str, Spots], null: list[Spots], fdr: float) -> dict[str, Beside]:
    """The share of the alive latents that is flagged, either way and both."""
    found = {}
    for called, of in FLAGS.items():
        shares = {name: of(spots, fdr) for name, spots in arms.items()}
        own, *others = shares.items()
        by_chance = np.array([of(spots, fdr).mean() if len(spots) else 0.0 for spots in null])
        ends = (float(by_chance.min()), float(by_chance.max()))
        also = tuple(Control(name, *_flagged(each)) for name, each in others)
        value, interval = _flagged(own[1])
        found[f"{called} share"] = Beside(
            value, float(by_chance.mean()), interval, ends, len(own[1]), NULL, also
        )
    return found


def _flagged(each: np.ndarray) -> tuple[float, tuple[float, float]]:
    return float(each.mean()) if len(each) else float("nan"), wilson(int(each.sum()), len(each))


def _neighbours(real: Energies, generated: Energies, paired: bool) -> Neighbours:
    """How far each generated image is from its pair, or from the nearest real one."""
    among, _ = _nearest(real, real, apart=True)
    if paired:
        gap = (generated - real).astype(np.float64)
        distance = np.sqrt(np.asarray(gap.multiply(gap).sum(1)).ravel())
        return Neighbours(distance, np.arange(real.shape[0]), among)
    distance, at = _nearest(generated, real, apart=False)
    return Neighbours(distance, at, among)


def _nearest(of: Energies, to: Energies, *, apart: bool) -> tuple[np.ndarray, np.ndarray]:
    """(Euclidean distance, which) of the nearest row of `to`; apart: not the row of the same number."""
    rows, others = of.astype(np.float64).tocsr(), to.astype(np.float64).tocsr()
    sizes = [np.asarray(each.multiply(each).sum(1)).ravel() for each in (rows, others)]
    distance, at = np.empty(rows.shape[0]), np.empty(rows.shape[0], np.int64)
    for low in range(0, rows.shape[0], COLUMNS):
        some = slice(low, low + COLUMNS)
        product = np.asarray((rows[some] @ others.T).todense())
        square = sizes[0][some, None] + sizes[1] - 2 * product
        if apart:
            here = np.arange(len(square))
            square[here, low + here] = np.inf
        at[some] = square.argmin(1)
    gap = rows - others[at]  # anew: the difference of squares has no digits left where images are equal
    distance = np.sqrt(np.asarray(gap.multiply(gap).sum(1)).ravel())
    return distance, at


__all__ = ["blindspots", "differences", "drawn_weights"]
