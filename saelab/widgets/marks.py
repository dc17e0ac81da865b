"""Notes, tags and lists of latents: answers that views have in common, and what a browser writes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from saelab.types import ConfigError
from saelab.widgets.questions import Ask
from saelab.widgets.wire import Packed, clean

ACTIONS = ("add", "remove")


def mark_answers(questions: Mapping[str, Callable[..., Any]]) -> dict[str, Callable[..., Packed]]:
    """The answers to "marks", what is noted of all latents, and to "mark", which writes. None of them where
    it is not known.

    Args:
        questions: "notes", "tags", "lists": functions that give those of `saelab.stores.FeatureStore`.
    """
    if not all(name in questions for name in ("notes", "tags", "lists")):
        return {}
    notes, tags, lists = questions["notes"], questions["tags"], questions["lists"]

    def marks(written: int = 0) -> Packed:
        # written: how many times it was, so that what came along with a view is not taken for news
        told, fields = {}, {}
        for kind, named in (("tags", tags()), ("lists", lists())):
            found = dict(named)
            told[kind] = [[clean(name), len(latents)] for name, latents in found.items()]
            fields[kind] = np.fromiter(itertools.chain.from_iterable(found.values()), np.int32)
        return Packed(told, {**fields, "notes": {str(j): clean(text) for j, text in dict(notes()).items()}})

    def mark(kind: str, action: str, name: str, latents: Sequence[int]) -> Packed:
        if kind == "note":
            for latent in latents:
                notes()[latent] = name
            return Packed({})
        named = {"tag": tags, "list": lists}.get(kind)
        if named is None or action not in ACTIONS:
            message = f"A mark is a note, or a tag or list to add or remove. Got {action} {kind}. Name one."
            raise ConfigError(message)
        getattr(named(), action)(name, latents)
        return Packed({})

    return {"marks": marks, "mark": mark}


def asks_marks(questions: Mapping[str, Callable[..., Any]]) -> list[Ask]:
    """The question for all marks; none where they are not known."""
    return [Ask("marks")] if mark_answers(questions) else []
