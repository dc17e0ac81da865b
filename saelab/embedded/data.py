"""Token rows for training the embedded model: deterministic chunks, written ahead by a second process."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np

from saelab.corpora import natural
from saelab.corpora.world import document
from saelab.embedded.tokenizer import SPECIAL
from saelab.files import new_file

# share of the documents; the rest comes from the synthetic world
NATURAL, REPEATED = 0.10, 0.07


class Chunk(NamedTuple):
    """Which rows: chunk `index` of `rows` rows of `length` tokens."""

    index: int
    rows: int
    length: int
    seed: int
    families: tuple[str, ...]


def natural_split(held_out: bool) -> list[str]:
    """The standard library's paragraphs; one in twenty, by the CRC of its id, is held out."""
    return [d.text for d in natural() if (crc32(d.id.encode()) % 20 == 0) == held_out]


def write_chunk(tokenizer: Any, paragraphs: list[str], chunk: Chunk, folder: Path) -> Path:
    """uint16 [rows length], each row beginning with a whole document; the same for the same arguments."""
    kinds = crc32(",".join(chunk.families).encode())
    path = folder / f"{chunk.seed}-{kinds}-{chunk.length}-{chunk.rows}-{chunk.index}.npy"
    if path.exists():
        return path
    key = f"Chunk(index={chunk.index}, rows={chunk.rows}, length={chunk.length}, seed={chunk.seed})"
    rng = random.Random(f"rows-{key}")
    encoded = [tokenizer(p).input_ids for p in rng.sample(paragraphs, min(len(paragraphs), 2_000))]
    rows = np.zeros((chunk.rows, chunk.length), dtype=np.uint16)
    documents = _documents(tokenizer, encoded, chunk, rng)
    for row in rows:
        filled = 0
        while filled < chunk.length:
            ids = next(documents)[: chunk.length - filled]
            row[filled : filled + len(ids)] = ids
            filled += len(ids)
    folder.mkdir(parents=True, exist_ok=True)
    with new_file(path) as temporary, temporary.open("wb") as file:
        np.save(file, rows)
    return path


def repeated_tokens(rng: random.Random, length: int, vocabulary: int) -> list[int]:
    """Uniformly random ordinary tokens, `length` of them, twice."""
    half = [rng.randrange(len(SPECIAL), vocabulary) for _ in range(length)]
    return half + half


def _documents(
    tokenizer: Any, paragraphs: list[list[int]], chunk: Chunk, rng: random.Random
) -> Iterator[list[int]]:
    """Each begins with BOS. World documents of different chunks are different."""
    bos, vocabulary = tokenizer.bos_token_id, len(tokenizer)
    first = chunk.index * 10_000_000
    for block in itertools.count():
        numbers = range(first + 1_000 * block, first + 1_000 * (block + 1))
        world = tokenizer([document(chunk.seed, i, families=chunk.families).text for i in numbers]).input_ids
        for ids in world:
            while (draw := rng.random()) < NATURAL + REPEATED:
                if draw < NATURAL:
                    yield rng.choice(paragraphs)
                else:
                    yield [bos, *repeated_tokens(rng, rng.randint(6, (chunk.length - 1) // 2), vocabulary)]
            yield ids
