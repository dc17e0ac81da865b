"""Dialogues through a tokenizer's chat template: ids, and which of them the template wrote."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from saelab.arguments import is_listed
from saelab.types import CorpusError, short

Message = tuple[str, str]
"""(role, content)"""


def render(
    tokenizer: Any, messages: Sequence[Message], answer: bool = False
) -> tuple[str, list[tuple[int, int]]]:
    """The dialogue as text by the chat template, and where in it each content stands (start, end).

    The template's own parts are found by rendering the same roles with contents that occur nowhere else, so
    nothing is guessed of markers or of contents that look like them. answer: whether the template opens the
    turn in which the model answers. Raises CorpusError where the tokenizer
    has no template, where the template refuses the dialogue, or where it changes contents.
    """
    messages = check_messages(messages)
    if not getattr(tokenizer, "chat_template", None):
        message = (
            "Dialogues need the tokenizer's chat template. Got a tokenizer without one. "
            "Set tokenizer.chat_template, or pass the dialogues as texts."
        )
        raise CorpusError(message)
    marks = [f"\ue000{i}\ue001" for i in range(len(messages))]
    frame = _apply(tokenizer, [(role, mark) for (role, _), mark in zip(messages, marks, strict=True)], answer)
    between, rest = [], frame
    for mark in marks:
        before, found, rest = rest.partition(mark)
        if not found or mark in rest:
            message = (
                "A chat template must write each message once and in order. Got another order or a message "
                "left out. Pass the dialogue as a text."
            )
            raise CorpusError(message)
        between.append(before)
    text, spans = "", []
    for before, (_, content) in zip(between, messages, strict=True):
        text += before
        spans.append((len(text), len(text) + len(content)))
        text += content
    text += rest
    whole = _apply(tokenizer, messages, answer)
    if whole == text:
        return text, spans
    stripped = [(role, content.strip()) for role, content in messages]
    if stripped != list(messages) and _apply(tokenizer, stripped, answer) == whole:
        return render(tokenizer, stripped, answer)
    message = (
        "A chat template must write contents as they are. Got a template that changes them. "
        "Pass the dialogue as a text."
    )
    raise CorpusError(message)


def encode(
    tokenizer: Any, messages: Sequence[Message], bos_id: int | None, answer: bool = False
) -> tuple[list[int], list[bool]]:
    """(ids, whether the template or the tokenizer wrote each), BOS first where the model has one.

    A token that the template and a content share counts as the content's. Raises what `render` raises, and
    CorpusError where the tokenizer tells no offsets.
    """
    text, spans = render(tokenizer, messages, answer)
    if not getattr(tokenizer, "is_fast", False):
        message = (
            "Dialogues need a tokenizer that tells offsets. Got a slow one. Load the fast version of it."
        )
        raise CorpusError(message)
    told = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids, special = list(told["input_ids"]), []
    at = 0
    for start, end in told["offset_mapping"]:
        while at < len(spans) and spans[at][1] <= start:
            at += 1
        special.append(at == len(spans) or end <= spans[at][0] or start == end)
    if bos_id is not None and ids[:1] != [bos_id]:
        ids, special = [bos_id, *ids], [True, *special]
    return ids, special


def check_messages(messages: Any) -> list[Message]:
    """Pairs of strings, one or more. Raises CorpusError on anything else."""
    found = list(messages) if is_listed(messages) else []
    pairs = (isinstance(each, (tuple, list)) and len(each) == 2 for each in found)
    if not found or not all(pairs) or not all(isinstance(part, str) for each in found for part in each):
        message = (
            f"A dialogue must be a list of (role, content). Got {short(messages)}. Pass e.g. "
            "[('user', 'Who are you?')]."
        )
        raise CorpusError(message)
    return [(role, content) for role, content in found]


def turn_ends(tokenizer: Any, messages: Sequence[Message], bos_id: int | None) -> frozenset[int]:
    """The token that the template writes after an answer, or none where it takes no answer here."""
    try:
        ids, template = encode(tokenizer, [*messages, ("assistant", "a")], bos_id)
    except CorpusError:
        return frozenset()
    after = len(template) - template[::-1].index(False)
    return frozenset(ids[after : after + 1])


def _apply(tokenizer: Any, messages: Sequence[Message], answer: bool) -> str:
    dicts = [{"role": role, "content": content} for role, content in messages]
    opened = {"add_generation_prompt": True} if answer else {}
    try:
        return tokenizer.apply_chat_template(dicts, tokenize=False, **opened)
    except Exception as error:  # jinja2 raises what the template says
        message = f"A dialogue must fit the chat template. Got: {error}. Correct its roles or their order."
        raise CorpusError(message) from None


__all__ = ["encode", "render", "turn_ends"]
