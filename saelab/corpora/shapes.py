"""Labelled pictures of figures, any number of them, as the world is for text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from saelab.arguments import checked, having, mapping, maybe, one_of
from saelab.config import integer, is_number
from saelab.corpora.documents import Corpus, Document
from saelab.corpora.figures import ATTRIBUTES, COUNTS, PARENTS, Scene, covered, drawn, scene
from saelab.corpora.pictures import need_pillow, thumbnail
from saelab.types import ConfigError, CorpusError, nearest, short

if TYPE_CHECKING:
    from collections.abc import Sequence

SPLITS = ("train", "heldout")
_ID = re.compile(r"shapes-(train|heldout)-(\d{1,18})-(\d{1,18})")


@checked(shares=maybe(mapping))
def shapes(
    seed: int = 0,
    n_documents: int = 10_000,
    *,
    split: str = "train",
    size: int = 48,
    shares: Mapping[str, float] | None = None,
) -> Corpus:
    """A corpus of drawn pictures, one to four alike figures on a background, whose attributes are known.

    Every picture has one value of each of `saelab.corpora.SHAPE_ATTRIBUTES`, drawn independently: family,
    shape and variant (24 variants, two of each of three shapes of four families; `SHAPE_PARENTS` is their
    tree), colour, texture, position (of the largest figure), background and count. Its labels are these
    values, in this order; `saelab.corpora.shape_mask` says which pixels the figures cover. Documents' ids are
    `shapes-{split}-{seed}-{i}`; document i is written without the others, and shows the same at every size.

    With `shares`, values are drawn more or less often; a picture stays as it is unless its own value is drawn
    anew, so that corpora of one seed are pairs that differ in what was planted.

    Args:
        seed: Another seed gives other pictures, 0 or more.
        n_documents: How many.
        split: "train" or "heldout": the same kinds of pictures, none of them the same.
        size: Pixels of a side.
        shares: Value of an attribute -> how many times its usual weight it has, 0 for never:
            {"star": 0.05, "blue": 4}.

    Raises:
        ConfigError: An unknown split or value, a weight below 0, weights that leave an attribute without a
            value, a seed below 0, fewer than one document, or a size outside of 16..512.
        MissingDependency: Pillow is not installed.
    """
    need_pillow()
    one_of(*SPLITS)("split", split)
    seed, n_documents = integer("seed", seed, 0, 10**18 - 1), integer("n_documents", n_documents, 1)
    size = integer("size", size, 16, 512)
    weights = _weights(shares or {})
    told = {name: float(share) for name, share in sorted((shares or {}).items())}

    def make() -> Iterator[Document]:
        return (_document(seed, i, split, size, weights) for i in range(n_documents))

    key = f"shapes-1:{seed}:{n_documents}:{split}:{size}:{told}"
    own = f", shares={told}" if told else ""
    return Corpus(make, f"shapes(seed={seed}, {n_documents:,} documents, {split}{own})", key, n_documents)


@checked(document=having("a document", "Pass one of saelab.corpora.shapes.", "id", "labels", "sample"))
def shape_mask(document: Document) -> np.ndarray:
    """Which pixels of a picture its figures cover, bool [size size]: those that they cover half of.

    Args:
        document: Of `saelab.corpora.shapes`.

    Raises:
        CorpusError: It is of another corpus.
    """
    found = _ID.fullmatch(str(document.id))
    chosen = dict(zip(ATTRIBUTES, document.labels, strict=False))
    if found is None or any(chosen.get(name) not in values for name, values in ATTRIBUTES.items()):
        message = (
            f"A document must be of saelab.corpora.shapes. Got {document.id!r:.80} with labels "
            f"{short(document.labels)}. Pass one that its iteration gives."
        )
        raise CorpusError(message)
    split, seed, i = found.groups()
    rng = _source(int(seed), int(i), split)
    _scores(rng)
    return covered(*_placed(rng, chosen), len(document.sample)) >= 0.5


def _document(seed: int, i: int, split: str, size: int, weights: Sequence[np.ndarray]) -> Document:
    rng = _source(seed, i, split)
    drawn_anew = {
        name: ATTRIBUTES[name][int((score + weight).argmax())]
        for (name, score), weight in zip(_scores(rng).items(), weights, strict=True)
    }
    shape = PARENTS[drawn_anew["variant"]]
    chosen = {"family": PARENTS[shape], "shape": shape, **drawn_anew}
    made, _, count = _placed(rng, chosen)
    pixels = drawn(made, chosen, size)
    end = "" if count == 1 else "es" if chosen["variant"].endswith("s") else "s"
    told = f"{chosen['count']} {chosen['colour']} {chosen['texture']} {chosen['variant']}{end}"
    text = f"{told}, {chosen['position']}, {chosen['background']} background"
    labels = tuple(chosen[name] for name in ATTRIBUTES)
    media = thumbnail(pixels)
    return Document(
        f"shapes-{split}-{seed}-{i}", text, kind="image", sample=pixels, labels=labels, media=media
    )


def _source(seed: int, i: int, split: str) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(SPLITS.index(split), i)))


DRAWN = ("variant", "colour", "texture", "position", "background", "count")


def _scores(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Attribute -> Gumbel noise of each value: the largest sum with a log weight is a draw by the weights,
    and another weight of one value changes no choice among the others."""
    return {name: rng.gumbel(size=len(ATTRIBUTES[name])) for name in DRAWN}


def _placed(rng: np.random.Generator, chosen: Mapping[str, str]) -> tuple[Scene, str, int]:
    count = COUNTS.index(chosen["count"]) + 1
    return scene(rng, chosen["position"], count), chosen["variant"], count


def _weights(shares: Mapping[str, float]) -> list[np.ndarray]:
    """Log weight of each value of the attributes that are drawn."""
    known = [value for values in ATTRIBUTES.values() for value in values]
    for name, share in shares.items():
        if not isinstance(name, str) or name not in known:
            near = nearest(str(name), known)
            message = (
                f"shares must name values of attributes. Got {short(name)}. {near}"
                "saelab.corpora.SHAPE_ATTRIBUTES lists them."
            )
            raise ConfigError(message)
        if not is_number(share) or not 0 <= share < 1e6:
            message = (
                f"A share must be a number of 0 or more, times the usual weight. Got {short(share)} for "
                f"{name!r}. Pass e.g. 0.05 to have it rarely, 4 to have it often."
            )
            raise ConfigError(message)
    found = []
    for name in DRAWN:
        own = np.array([shares.get(value, 1.0) for value in ATTRIBUTES[name]], np.float64)
        if name == "variant":
            for i, value in enumerate(ATTRIBUTES[name]):
                own[i] *= shares.get(PARENTS[value], 1.0) * shares.get(PARENTS[PARENTS[value]], 1.0)
        if not own.any():
            message = (
                f"shares must leave a {name} to draw. Got {short(dict(shares))}. "
                "Pass a share above 0 for one of them."
            )
            raise ConfigError(message)
        with np.errstate(divide="ignore"):
            found.append(np.log(own))
    return found
