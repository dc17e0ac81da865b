"""How a continuation is chosen token by token, and how tokens become text that can be shown at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saelab.arguments import is_listed
from saelab.config import integer, is_number
from saelab.seeds import mixed
from saelab.types import ConfigError, NonFiniteError, short

UNKNOWN = "\ufffd"
"""What a decoder writes for bytes that are no character, or not yet."""


class Sampling(NamedTuple):
    """How a text goes on."""

    max_new_tokens: int
    temperature: float
    seed: int | tuple[int, ...]
    """of all samples, or one for each"""
    top_p: float
    stop: tuple[str, ...]

    def chooser(self, sample: int) -> Callable[[Tensor], int]:
        """A function from the logits of the next token, float32 [d_vocab] on the CPU, to the token.

        Each sample of a batch draws from a generator of its own, so that the others change nothing. With a
        seed of its own it draws as if it were alone.
        """
        if self.temperature == 0:
            return lambda logits: int(_finite(logits).argmax())
        own = mixed(self.seed, sample) if isinstance(self.seed, int) else mixed(self.seed[sample], 0)
        draw = torch.Generator().manual_seed(own)

        def choose(logits: Tensor) -> int:
            # float64 from the largest on: a temperature near 0 overflows nothing
            logits = (_finite(logits) - logits.max()).double() / self.temperature
            chances = torch.softmax(logits, -1)
            if self.top_p < 1:
                ordered, tokens = chances.sort(descending=True, stable=True)
                # the token that reaches top_p is the last that may come
                chances[tokens[ordered.cumsum(-1) - ordered >= self.top_p]] = 0
            # in the order of the vocabulary: one by size would be shuffled by the last bit of the logits
            return int(torch.multinomial(chances, 1, generator=draw))

        return choose


def _finite(logits: Tensor) -> Tensor:
    if not math.isfinite(logits.max()):  # a token may be ruled out by -inf, but not all
        message = (
            "Logits must be finite to choose a token. Got NaN or infinity. Check what the edits return, and "
            "the model in another dtype (float16 often overflows)."
        )
        raise NonFiniteError(message)
    return logits


class Writer:
    """The text of one sample as its tokens come.

    Args:
        tokenizer: The subject's.
        prompt: Ids that are there already; they are decoded together with what follows, so that spaces
            between words come out as in the whole text.
        stop: Strings at which the text ends; what stands before is its end.
    """

    def __init__(self, tokenizer: Any, prompt: Sequence[int], stop: Sequence[str]) -> None:
        self._tokenizer, self._stop = tokenizer, stop
        self._ids = list(prompt)
        self._seen, self._done = 0, len(self._ids)
        """The tokens before `_done` were decoded; those from `_seen` on give the ones after them context."""
        self._held = ""
        """Text that may be the beginning of a stop string."""
        self.stopped = False

    def add(self, token: int) -> str:
        """The text that can be shown now, "" in the middle of a character."""
        self._ids.append(token)
        return self._decode(whole=False)

    def end(self) -> str:
        """The rest, where no token follows."""
        text = self._decode(whole=True)
        held, self._held = self._held, ""
        return text + ("" if self.stopped else held)

    def _decode(self, whole: bool) -> str:
        before = decoded(self._tokenizer, self._ids[self._seen : self._done])
        after = decoded(self._tokenizer, self._ids[self._seen :])
        if self.stopped or len(after) <= len(before) or (after.endswith(UNKNOWN) and not whole):
            return ""
        # what was shown lies before `_done`: every window begins where a character does
        self._seen, self._done = self._done, len(self._ids)
        text, self._held = self._held + after[len(before) :], ""
        found = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.stopped = True
            return text[: min(found)]
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of tokens, special ones left out."""
    if not ids:
        return ""
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of a text may be the beginning of a stop string."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)


def a_share(name: str, value: Any) -> float:
    """A check of `saelab.arguments.checked`: a number in (0, 1]."""
    if not is_number(value) or not 0 < value <= 1:
        message = f"{name} must be a number in (0, 1]. Got {short(value)}. Pass {name}=1.0 for every token."
        raise ConfigError(message)
    return float(value)


def seeds(name: str, value: Any) -> int | tuple[int, ...]:
    """A check of `saelab.arguments.checked`: a seed, or one for each sample."""
    if is_listed(value):
        return tuple(integer(name, each, 0) for each in value)
    return integer(name, value, 0)


def stop_strings(name: str, value: Any) -> tuple[str, ...]:
    """A check of `saelab.arguments.checked`: a string or several, none empty."""
    found = (value,) if isinstance(value, str) else tuple(value) if is_listed(value) else (value,)
    if not all(isinstance(each, str) and each for each in found):
        message = f"{name} must be strings that are not empty. Got {short(value)}. Pass {name}=['\\n']."
        raise ConfigError(message)
    return found


__all__ = ["Sampling", "Writer", "a_share", "decoded", "seeds", "stop_strings"]
