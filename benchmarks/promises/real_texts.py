"""Real texts, each in one part alone: for making an SAE and choosing latents, for judging, for prompting."""

from __future__ import annotations

import csv
import html
import random
import re
import sys
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
import real_models

TOXICITY = real_models.DATA / "prompts" / "toxicity"
NEEDED = (
    TOXICITY / "tweets_train.csv",
    TOXICITY / "ldnoobw_en.txt",
    real_models.DATA / "language" / "text" / "wikitext2_valid.txt",
    real_models.DATA / "concepts" / "axbench" / "concept10_train.parquet",
)
PARTS = {"choosing": 45, "judging": 30, "prompting": 25}
"""Of the tweets, in per cent."""
FOLD = 5
"""Every so manieth paragraph and dialogue is held out."""
_NOISE = re.compile(r"https?://\S+|\bRT @\w+:?|@\w+:?|[\u201c\u201d\"]|#(?=\w)|[^\x00-\x7f]")


class Tweet(NamedTuple):
    """A tweet without names, links and marks."""

    text: str
    offensive: bool
    """what people said of it: hateful or offensive language, against neither"""


def missing() -> str:
    """Why the real texts or the model cannot be had, or ""."""
    absent = [path for path in NEEDED if not path.is_file()]
    if absent:
        return f"needs public data, which are not at {absent[0]}"
    return real_models.missing(real_models.SMOLLM2)


def tweets(part: str) -> list[Tweet]:
    """Those of one of `PARTS`, in an order of their own. Equal texts are in one part."""
    with (TOXICITY / "tweets_train.csv").open(encoding="utf-8", newline="") as file:
        found = {_clean(line["tweet"]): line["class"] != "2" for line in csv.DictReader(file)}
    low = 0
    for name, share in PARTS.items():
        if name == part:
            chosen = {text for text in found if len(text.split()) > 3 and low <= _draw(text) < low + share}
            return [Tweet(text, found[text]) for text in _shuffled(chosen)]
        low += share
    raise KeyError(part)


def paragraphs(held_out: bool) -> list[str]:
    """Of WikiText, its marks of the tokeniser taken back."""
    lines = NEEDED[2].read_text(encoding="utf-8").splitlines()
    texts = [_untokenised(line.strip())[:800] for line in lines if len(line) > 200]
    return _shuffled({text for i, text in enumerate(texts) if (i % FOLD == 0) == held_out})


def dialogues(held_out: bool, characters: int = 600) -> list[list[dict[str, str]]]:
    """Instructions with their answers, the answers cut."""
    import pandas as pd

    rows = pd.read_parquet(NEEDED[3], columns=["input", "output"]).drop_duplicates("input")
    pairs = [
        (asked.strip(), answer.strip()[:characters].strip())
        for i, (asked, answer) in enumerate(rows.itertuples(index=False))
        if (i % FOLD == 0) == held_out and len(asked) < characters
    ]
    return [
        [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        for asked, answer in pairs
        if asked and answer
    ]


def halves(seed: int, texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """The profanities that these texts hold, in two halves that are about as frequent.

    Words of which one begins or ends with the other (as plurals do) are in the same half; of groups that are
    neighbours in frequency one goes to each.
    """
    words = [w.strip().lower() for w in NEEDED[1].read_text(encoding="utf-8").splitlines()]
    told = " ".join(f" {' '.join(re.findall(r'[a-z]+', text.lower()))} " for text in texts)
    counts = {w: told.count(f" {w} ") for w in words if re.fullmatch(r"[a-z ]+", w)}
    groups: list[list[str]] = []
    for word in sorted((w for w, n in counts.items() if n), key=lambda w: (len(w), w)):
        kin = next((g for g in groups if any(word.startswith(w) or word.endswith(w) for w in g)), None)
        groups.append([word]) if kin is None else kin.append(word)
    groups.sort(key=lambda group: -sum(counts[word] for word in group))
    draw, found = random.Random(seed), ([], [])
    for i in range(0, len(groups), 2):
        pair = groups[i : i + 2]
        draw.shuffle(pair)
        for half, group in zip(found, pair, strict=False):
            half += group
    return found


def mixture() -> Iterator[str]:
    """What an SAE is trained on beside dialogues: tweets and paragraphs of the shown parts."""
    both = [tweet.text for tweet in tweets("choosing")] + paragraphs(held_out=False)
    return iter(_shuffled(set(both)))


def _clean(text: str) -> str:
    return " ".join(_NOISE.sub(" ", html.unescape(html.unescape(text))).split())


def _untokenised(text: str) -> str:
    text = re.sub(r" @([-.,])@ ", r"\1", text)
    return re.sub(r" ([.,;:!?)'])", r"\1", re.sub(r"\( ", "(", text))


def _draw(text: str) -> int:
    """0 to 99, the same for the same text."""
    return zlib.crc32(text.encode()) % 100


def _shuffled(texts: set[str]) -> list[str]:
    found = sorted(texts)
    random.Random(0).shuffle(found)
    return found
