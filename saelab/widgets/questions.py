"""Questions of a view, and answers that the views of a page have in common."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from saelab.types import ConfigError, short
from saelab.widgets.wire import Packed


class Ask(NamedTuple):
    """A question with its arguments."""

    question: str
    args: Mapping[str, int | str] = {}

    def key(self) -> str:
        """One name for it here and in the browser, such as `card?latent=7`.

        Raises:
            ConfigError: An argument is neither an integer nor a string: other numbers look different there.
        """
        for name, value in self.args.items():
            if type(value) not in (int, str):
                message = (
                    f"An argument of a question that is kept must be an integer or a string. Got "
                    f"{name}={short(value)}. Pass int(...) or str(...)."
                )
                raise ConfigError(message)
        pairs = [f"{name}={json.dumps(self.args[name], ensure_ascii=False)}" for name in sorted(self.args)]
        return f"{self.question}?{'&'.join(pairs)}" if pairs else self.question


@dataclass(frozen=True)
class Shared:
    """An answering function that other views may have too: a page keeps what it gives once for all."""

    answer: Callable[..., Packed]
    """arguments -> answer, for a view in a notebook"""
    source: Hashable
    """what the answers come from; equal for views that would give the same ones"""
    for_page: Callable[[Sequence[Mapping[str, Any]]], Iterable[Packed]]
    """arguments of up to 64 questions -> their answers in that order, as a page keeps them (maybe coarser)"""
    in_bulk: bool = field(default=False, compare=False)
    """whether `for_page` is faster than one at a time: of equal sources such a one is asked"""

    fetch: Callable[[Sequence[Mapping[str, Any]]], object] | None = field(default=None, compare=False)
    """makes ready what several questions, of these arguments, will be answered with"""

    def __call__(self, **args: Any) -> Packed:
        return self.answer(**args)
