"""Prompts with named attributes, and a model that is read and written at places of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from saelab.analysis.controls import wilson
from saelab.arguments import a_subject, checked, is_listed
from saelab.capabilities import HasLogits, HasTokens, need
from saelab.config import is_integer
from saelab.corpora.world_prompts import AttributedPrompts
from saelab.types import ConfigError, CorpusError, HookError, Inputs, check_finite, short

if TYPE_CHECKING:
    import pandas as pd

TOGETHER = 64
"""Prompts of one pass."""
Tokens = tuple[tuple[int, ...], ...]


class Location(NamedTuple):
    """Where activations are read and written: a hook point at a position, all of it or one head of it."""

    hook: str
    position: int = -1
    """of the prompt, from 0 (which is BOS, where the model has it); below 0 from its end, -1 is its last
    token"""
    head: int | None = None
    """which head, where they are concatenated (`hook_z`)"""

    def __str__(self) -> str:
        return f"{self.hook}{'' if self.head is None else f' head {self.head}'} at {self.position}"


@dataclass(frozen=True, eq=False)
class AttributeTask:
    """Prompts with attributes as a model reads them. Made by `attribute_task`."""

    prompts: Tokens
    right: np.ndarray
    """int64 [n]: the token that follows each"""
    wrong: np.ndarray
    """int64 [n]: one that must not"""
    attributes: Mapping[str, np.ndarray]
    """attribute -> str [n], its values"""
    twins: Mapping[str, Tokens]
    """attribute -> of each prompt the one with another value of it"""
    changed: Mapping[str, np.ndarray]
    """attribute -> str [n], its value in the twin"""
    score: np.ndarray
    """float64 [n]: logit of the right token - logit of the wrong one"""

    def to_frame(self) -> pd.DataFrame:
        """One line for each prompt: right and wrong token, score, and its value of each attribute."""
        import pandas as pd

        known = {"right": self.right, "wrong": self.wrong, "score": self.score}
        return pd.DataFrame(known | {name: each for name, each in self.attributes.items()})

    @property
    def accuracy(self) -> float:
        """Share of prompts after which the right token is likelier than the wrong one."""
        return float((self.score > 0).mean())

    def __repr__(self) -> str:
        low, high = wilson(int((self.score > 0).sum()), len(self.score))
        return (
            f"AttributeTask({len(self.prompts)} prompts of {', '.join(self.attributes)}; right in "
            f"{self.accuracy:.1%} [{low:.1%}, {high:.1%}], logit difference {self.score.mean():.3g})"
        )


@checked(subject=a_subject)
def attribute_task(subject: Any, prompts: AttributedPrompts) -> AttributeTask:
    """Prompts with attributes, tokenised, and what the model makes of them.

    Args:
        subject: A language model.
        prompts: What `saelab.corpora.attributed_prompts` gives, or one's own.

    Returns:
        The task; its `repr` says whether the model does it.

    Raises:
        SubjectError: The subject is no language model.
        CorpusError: Lists are not as long as the prompts, a right answer begins as its wrong one does, a twin
            has the value that its prompt has, or a prompt does not fit into the context.
        ConfigError: They are no attributed prompts.
    """
    need(subject, HasTokens, "A task of attributes")
    need(subject, HasLogits, "A task of attributes")
    if not isinstance(prompts, AttributedPrompts):
        message = (
            f"prompts must be AttributedPrompts. Got {type(prompts).__name__}: {short(prompts, 80)}. Pass "
            "what saelab.corpora.attributed_prompts gives, or make your own."
        )
        raise ConfigError(message)
    _check_lengths(prompts)
    ids = [tuple(subject.to_tokens(text)) for text in prompts.prompts]
    twins = {key: tuple(tuple(subject.to_tokens(t)) for t in texts) for key, texts in prompts.twins.items()}
    for tokens in (*ids, *(each for of in twins.values() for each in of)):
        if len(tokens) > subject.n_ctx:
            most = subject.n_ctx
            message = f"A prompt must fit into the context of {most} tokens. Got {len(tokens)}. Shorten it."
            raise CorpusError(message)
    right, wrong = (
        np.array([subject.to_tokens(text, bos=False)[0] for text in side], dtype=np.int64)
        for side in (prompts.right, prompts.wrong)
    )
    same = np.flatnonzero(right == wrong)
    if len(same):
        message = (
            "Right and wrong answers must differ in their first token. Got "
            f"{prompts.right[same[0]]!r} and {prompts.wrong[same[0]]!r}. Leave this prompt out."
        )
        raise CorpusError(message)
    task = AttributeTask(
        tuple(ids), right, wrong,
        {key: np.array([str(v) for v in values]) for key, values in prompts.attributes.items()}, twins,
        {key: np.array([str(v) for v in values]) for key, values in prompts.changed.items()},
        np.zeros(len(ids)),
    )  # fmt: skip
    for key, values in task.attributes.items():
        alike = np.flatnonzero(values == task.changed[key])
        if len(alike):
            message = (
                f"A twin must have another value of its attribute. Got {values[alike[0]]!r} of {key!r} in "
                f"prompt {alike[0]} and in its twin. Change it."
            )
            raise CorpusError(message)
    task.score[:] = answers(subject, task).score
    return task


def _check_lengths(prompts: AttributedPrompts) -> None:
    n = len(prompts.prompts)
    keys = set(prompts.attributes)
    if not n or not keys or keys != set(prompts.twins) or keys != set(prompts.changed):
        message = (
            f"Attributed prompts must have attributes, and twins and values of each. Got {n} prompts, "
            f"attributes {sorted(keys)}, twins of {sorted(prompts.twins)}, changed {sorted(prompts.changed)}."
            " Give all three the same names."
        )
        raise CorpusError(message)
    sizes = {"right": len(prompts.right), "wrong": len(prompts.wrong)}
    for kind in ("attributes", "twins", "changed"):
        sizes |= {f"{kind}[{key!r}]": len(values) for key, values in getattr(prompts, kind).items()}
    for name, size in sizes.items():
        if size != n:
            message = (
                f"Every list must be as long as the prompts, {n}. Got {size} for {name}. Give one for each."
            )
            raise CorpusError(message)


class Answers(NamedTuple):
    """What follows prompts."""

    score: np.ndarray
    """float64 [n]: logit of the right token - logit of the wrong one"""
    top: np.ndarray
    """int64 [n]: the likeliest token"""


Acts = dict[Location, Tensor]
"""Activations by where they lie, float32 [n width] on the CPU."""


def locations_of(subject: Any, at: Location | str | Sequence[Location | str]) -> tuple[Location, ...]:
    """Places as they are meant, checked against the model.

    Args:
        subject: The model.
        at: A hook point's name stands for its last position.

    Raises:
        ConfigError: There is none, one twice, or a position is no integer.
        HookError: There is no such hook point, or it has no such head.
    """
    given = list(at) if is_listed(at) and not isinstance(at, Location) else [at]
    found = []
    for each in given:
        location = Location(each) if isinstance(each, str) else each
        if not isinstance(location, Location) or not is_integer(location.position):
            message = (
                f"A location must be a hook point's name or a Location. Got {short(each)}. Pass e.g. "
                "Location('blocks.2.hook_resid_post', -1)."
            )
            raise ConfigError(message)
        heads = subject.hook_point(location.hook).n_heads
        if location.head is not None and not (
            is_integer(location.head) and 0 <= location.head < (heads or 0)
        ):
            message = (
                f"A head must be one of {heads or 0} at {location.hook!r}. Got {short(location.head)}. Leave "
                "it out, or take a hook_z."
            )
            raise HookError(message)
        found.append(location)
    if not found or len(set(found)) < len(found):
        message = (
            f"Locations must be one or more, each once. Got {', '.join(map(str, found)) or 'none'}. Pass "
            "e.g. 'blocks.2.hook_resid_post'."
        )
        raise ConfigError(message)
    return tuple(found)


def width_of(subject: Any, location: Location) -> int:
    """How wide activations are there."""
    width = subject.width(location.hook)
    return width if location.head is None else width // subject.hook_point(location.hook).n_heads


def read_at(subject: Any, prompts: Tokens, at: Sequence[Location]) -> Acts:
    """Activations of prompts at some locations.

    Args:
        subject: The model.
        prompts: Token ids.
        at: Where.

    Raises:
        CorpusError: A prompt has no such position.
        NonFiniteError: They are NaN or infinite.
    """
    hooks = list(dict.fromkeys(location.hook for location in at))
    out = {location: torch.zeros(len(prompts), width_of(subject, location)) for location in at}
    for numbers, inputs, length in _batches(subject, prompts):
        acts = subject.run(inputs, read=hooks, output=False).acts
        for location in at:
            rows = acts[location.hook][:, _position(location, length)]
            out[location][numbers] = rows[:, _columns(subject, location)].float().cpu()
    for location, rows in out.items():
        check_finite(rows, f"Activations at {location}")
    return out


def answers(subject: Any, task: AttributeTask, new: Mapping[Location, Tensor] | None = None) -> Answers:
    """What follows each prompt while other activations stand at some locations.

    Args:
        subject: The model.
        task: Whose prompts.
        new: Location -> [n width]; None: nothing is changed.
    """
    found = Answers(np.zeros(len(task.prompts)), np.zeros(len(task.prompts), dtype=np.int64))
    for numbers, inputs, length in _batches(subject, task.prompts):
        edits = [
            (location.hook, _writer(subject, location, rows[numbers], _position(location, length)))
            for location, rows in (new or {}).items()
        ]
        last = subject.run(inputs, edits=edits).output[:, -1].float().cpu()
        rows = torch.arange(len(numbers))
        right, wrong = (torch.from_numpy(side[numbers]) for side in (task.right, task.wrong))
        found.score[numbers] = (last[rows, right] - last[rows, wrong]).double().numpy()
        found.top[numbers] = last.argmax(1).numpy()
    return found


def _writer(subject: Any, location: Location, rows: Tensor, position: int) -> Any:
    columns = _columns(subject, location)

    def write(acts: Tensor) -> Tensor:
        acts = acts.clone()
        acts[:, position, columns] = rows.to(acts)
        return acts

    return write


def _columns(subject: Any, location: Location) -> slice:
    if location.head is None:
        return slice(None)
    width = width_of(subject, location)
    return slice(location.head * width, (location.head + 1) * width)


def _position(location: Location, length: int) -> int:
    position = location.position
    if not -length <= position < length:
        message = (
            f"A position must be one of each prompt's. Got {position} at {location.hook!r}, where a prompt "
            f"has {length} tokens. Pass {-length} to {length - 1}."
        )
        raise CorpusError(message)
    return position % length


def _batches(subject: Any, prompts: Tokens) -> Iterator[tuple[np.ndarray, Inputs, int]]:
    """Numbers of prompts of one length, those prompts, and the length."""
    lengths = np.array([len(tokens) for tokens in prompts])
    for length in np.unique(lengths):
        of = np.flatnonzero(lengths == length)
        for start in range(0, len(of), TOGETHER):
            numbers = of[start : start + TOGETHER]
            yield numbers, subject.prepare_tokens([list(prompts[i]) for i in numbers]), int(length)


__all__ = [
    "Acts", "Answers", "AttributeTask", "Location", "answers", "attribute_task", "locations_of", "read_at",
    "width_of",
]  # fmt: skip
