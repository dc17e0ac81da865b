"""Texts that a language model writes, with edits running: whole, as a stream, and as an answer in a chat."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from saelab.arguments import an_integer, checked, flag, real
from saelab.subjects import chat
from saelab.subjects.hooks import EditFn, main_tensor, normalise_edits
from saelab.subjects.memory import Memory, remembers
from saelab.subjects.tokens import check_texts, eos_ids
from saelab.subjects.writing import Sampling, Writer, a_share, decoded, seeds, stop_strings
from saelab.types import ConfigError, CorpusError, HookPoint, Inputs, short

if TYPE_CHECKING:
    from torch import Tensor

_checked = checked(
    max_new_tokens=an_integer(), temperature=real(0), seed=seeds, top_p=a_share, stop=stop_strings,
    use_cache=flag,
)  # fmt: skip


class Step(NamedTuple):
    """What one step of a generation gave."""

    ids: np.ndarray
    """int64 [samples]: the new token of each; -1 where the sample has ended"""
    texts: tuple[str, ...]
    """the text that each sample goes on by; "" while a character is incomplete, or what came may be the
    beginning of a stop string"""


class WritesTexts:
    """How a language model continues texts; `LanguageModel` has what it asks for."""

    module: Any
    tokenizer: Any
    n_ctx: int
    bos_id: int | None
    special_ids: frozenset[int]
    _lock: threading.RLock
    to_tokens: Any
    padded: Any
    _forward: Any
    _ready: Any

    @_checked
    def generate(
        self,
        prompt: str | Sequence[str],
        edits: Sequence[Any] | Any = (),
        max_new_tokens: int = 50,
        temperature: float = 0.0,
        seed: int | Sequence[int] = 0,
        *,
        top_p: float = 1.0,
        stop: str | Sequence[str] = (),
        use_cache: bool = True,
    ) -> Any:
        """The prompt and its continuation, special tokens left out; it ends at EOS or with the context.

        Args:
            prompt: A text, or several that are continued side by side, each as it would be alone; "" starts
                from BOS.
            edits: As in `run`, at every position of the prompt and of what is written. With a cache they see
                each position once: `Context.inputs` says which, and `Context.past` is one dict for the whole
                generation.
            max_new_tokens: At most so many.
            temperature: 0 takes the likeliest token; above, tokens are sampled.
            seed: Seed of the sampling; each sample draws by itself. Several, one for each prompt: samples of
                the same seed draw alike.
            top_p: Only the likeliest tokens that together have this probability are sampled.
            stop: Strings at which the continuation ends; they are cut off.
            use_cache: False runs the whole text anew at each step. The cache gives the same texts, faster; it
                is left out where a measurement shows that this model, at these hook points or with prompts
                of different lengths, would not go on from it as from the whole text.

        Returns:
            A str, or a list of them for several prompts.

        Raises:
            CorpusError: A prompt does not fit the context, or there is none.
            ConfigError: A negative temperature or length, top_p outside of (0, 1], an empty stop string.
            HookError: As in `run`.
            NonFiniteError: The logits are not finite.
        """
        rows = self._prompts(prompt)
        texts = [decoded(self.tokenizer, ids) for ids in rows]
        how = Sampling(max_new_tokens, temperature, seed, top_p, stop)  # type: ignore[arg-type]
        for step in self._written(rows, edits, how, use_cache):
            texts = [text + new for text, new in zip(texts, step.texts, strict=True)]
        return texts[0] if isinstance(prompt, str) else texts

    @_checked
    def stream(
        self,
        prompt: str | Sequence[str],
        edits: Sequence[Any] | Any = (),
        max_new_tokens: int = 50,
        temperature: float = 0.0,
        seed: int | Sequence[int] = 0,
        *,
        top_p: float = 1.0,
        stop: str | Sequence[str] = (),
        use_cache: bool = True,
    ) -> Iterator[Step]:
        """`generate`, a `Step` at a time.

        The model is held during a step alone, so that several streams go on side by side. Nothing is
        computed before the next step is asked for; closing the stream, or letting it go, frees the cache.

        Args:
            prompt: A text, or several.
            edits: As in `run`.
            max_new_tokens: At most so many.
            temperature: 0 takes the likeliest token; above, tokens are sampled.
            seed: Seed of the sampling, or one for each prompt.
            top_p: Only the likeliest tokens that together have this probability are sampled.
            stop: Strings at which the continuation ends; they are cut off.
            use_cache: False runs the whole text anew at each step.

        Returns:
            An iterator of `Step`. Joined with the prompt, the texts of a sample are what `generate` returns.

        Raises:
            CorpusError: A prompt does not fit the context, or there is none.
            ConfigError: A negative temperature or length, top_p outside of (0, 1], an empty stop string.
            HookError: As in `run`.
            NonFiniteError: The logits are not finite.
        """
        how = Sampling(max_new_tokens, temperature, seed, top_p, stop)  # type: ignore[arg-type]
        return self._written(self._prompts(prompt), edits, how, use_cache)

    @_checked
    def chat(
        self,
        messages: Sequence[tuple[str, str]],
        edits: Sequence[Any] | Any = (),
        max_new_tokens: int = 50,
        temperature: float = 0.0,
        seed: int = 0,
        *,
        top_p: float = 1.0,
        stop: str | Sequence[str] = (),
        use_cache: bool = True,
    ) -> str:
        """The answer to a dialogue, by the tokenizer's chat template; it ends with the turn.

        Args:
            messages: (role, content) of each: [("user", "Who are you?")].
            edits: As in `run`.
            max_new_tokens: At most so many.
            temperature: 0 takes the likeliest token; above, tokens are sampled.
            seed: Seed of the sampling.
            top_p: Only the likeliest tokens that together have this probability are sampled.
            stop: Strings at which the answer ends; they are cut off.
            use_cache: False runs the whole text anew at each step.

        Raises:
            CorpusError: The tokenizer has no template, it refuses the dialogue, or that does not fit the
                context.
            ConfigError: A negative temperature or length, top_p outside of (0, 1], an empty stop string.
            HookError: As in `run`.
            NonFiniteError: The logits are not finite.
        """
        ids, _ = self.chat_tokens(messages, answer=True)
        how = Sampling(max_new_tokens, temperature, seed, top_p, stop)  # type: ignore[arg-type]
        ends = chat.turn_ends(self.tokenizer, messages, self.bos_id) & self.special_ids
        return "".join(step.texts[0] for step in self._written([ids], edits, how, use_cache, ends))

    @checked(answer=flag)
    def chat_tokens(
        self, messages: Sequence[tuple[str, str]], answer: bool = False
    ) -> tuple[list[int], list[bool]]:
        """A dialogue by the tokenizer's chat template.

        Args:
            messages: (role, content) of each.
            answer: Whether the template opens the turn in which the model answers.

        Returns:
            (ids, whether the template wrote each).

        Raises:
            CorpusError: The tokenizer has no template, or it refuses the dialogue.
        """
        return chat.encode(self.tokenizer, messages, self.bos_id, answer)

    def _prompts(self, prompt: Any) -> list[list[int]]:
        """Ids of each prompt."""
        if isinstance(prompt, (list, tuple)) and not prompt:
            msg = f"Prompts must not be an empty list. Got {short(prompt)}. Pass a text, or several."
            raise CorpusError(msg)
        start = None if self.bos_id is None else [self.bos_id]
        texts = check_texts(prompt)
        return [start if isinstance(t, str) and not t and start else self.to_tokens(t) for t in texts]

    def _written(
        self,
        rows: Sequence[Sequence[int]],
        edits: Any,
        how: Sampling,
        use_cache: bool,
        ends: frozenset[int] = frozenset(),
    ) -> Iterator[Step]:
        """The steps from ids on; what is wrong with the arguments is said here, not at the first step."""
        self.padded(rows)
        if isinstance(how.seed, tuple) and len(how.seed) != len(rows):
            message = (
                f"Seeds must be one for each prompt, or one for all. Got {len(how.seed)} for {len(rows)} "
                "prompts. Pass seed=0."
            )
            raise ConfigError(message)
        changes = normalise_edits(edits)
        self._ready([hook for hook, _ in changes])
        return self._steps([list(ids) for ids in rows], changes, how, use_cache, ends)

    def _steps(
        self,
        rows: list[list[int]],
        changes: list[tuple[HookPoint, EditFn]],
        how: Sampling,
        use_cache: bool,
        ends: frozenset[int],
    ) -> Iterator[Step]:
        prompts = [len(ids) for ids in rows]
        ends = ends | eos_ids(self.module, self.tokenizer)
        writers = [Writer(self.tokenizer, ids, how.stop) for ids in rows]
        choose = [how.chooser(i) for i in range(len(rows))]
        left = [min(how.max_new_tokens, self.n_ctx - n) for n in prompts]
        live = [n > 0 for n in left]
        memory: Memory | None = None
        if any(live) and use_cache:
            with self._lock:
                memory = Memory(self, rows) if remembers(self, rows, changes) else None
        while any(live):
            with self._lock:
                if memory is None:
                    logits = self._anew(rows, prompts, changes)
                else:
                    logits = memory.read(changes)[:, -1].float().cpu()
            ids, texts = np.full(len(rows), -1), [""] * len(rows)
            for i in [i for i, on in enumerate(live) if on]:
                new = choose[i](logits[i])
                live[i] = new not in ends
                if live[i]:
                    rows[i].append(new)
                    left[i] -= 1
                    ids[i], texts[i] = new, writers[i].add(new)
                    live[i] = left[i] > 0 and not writers[i].stopped
                if not live[i]:
                    texts[i] += writers[i].end()
            if memory is not None:
                memory.add(np.where(live, ids, -1))
            if (ids >= 0).any() or any(texts):
                yield Step(ids, tuple(texts))

    def _anew(
        self, rows: list[list[int]], prompts: list[int], changes: list[tuple[HookPoint, EditFn]]
    ) -> Tensor:
        """Logits of the next token of each sample, float32 [samples, d_vocab], of the whole texts."""
        inputs: Inputs = self.padded(rows)
        width = inputs.data["input_ids"].shape[1]
        inputs = replace(inputs, given=np.arange(width) < np.array(prompts)[:, None])
        logits: Any = main_tensor(self._forward(inputs, [], changes, True, False).output)[0]
        return logits[range(len(rows)), [len(ids) - 1 for ids in rows]].float().cpu()


__all__ = ["Step", "WritesTexts"]
