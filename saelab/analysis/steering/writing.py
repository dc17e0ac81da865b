"""Texts written side by side, pulled a few tokens at a time, so that whoever asks may stop asking."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from difflib import SequenceMatcher
from typing import Any, Protocol

import numpy as np

KEPT = 200
"""Settings whose answers are kept."""


class Work(Protocol):
    """What is done in steps, and can be stopped between them."""

    done: bool

    def more(self, n: int) -> None:
        """Go on by n steps, at most."""
        ...

    def close(self) -> None:
        """Do no more."""
        ...

    def told(self) -> dict[str, Any]:
        """What there is so far, and under `done` whether that is all."""
        ...


class Written:
    """Texts that are being written, side by side from one prompt.

    Args:
        steps: Of `subject.stream`.
        names: Of the columns.
    """

    def __init__(self, steps: Iterator[Any], names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.done = False
        self._steps = steps
        self._ids: list[list[int]] = [[] for _ in names]
        self._texts: list[list[str]] = [[] for _ in names]

    def more(self, n: int) -> None:
        """Go on by n tokens, at most."""
        for _ in range(n):
            step = next(self._steps, None)
            if step is None:
                self.done = True
                return
            for ids, texts, new, text in zip(self._ids, self._texts, step.ids, step.texts, strict=True):
                if new >= 0 or text:
                    ids.append(int(new))
                    texts.append(text)

    def close(self) -> None:
        """Write no more, and free the cache."""
        self._steps.close()  # type: ignore[attr-defined]

    def told(self) -> dict[str, Any]:
        """Of each column its tokens, and which of them differ from the first column's."""
        columns = [
            {"name": name, "tokens": texts, "changed": _changed(self._ids[0], ids)}
            for name, ids, texts in zip(self.names, self._ids, self._texts, strict=True)
        ]
        return {"done": self.done, "columns": columns}


class Writer:
    """Does one piece of work at a time, a later one instead of an earlier one, and keeps what was finished.

    A subclass says what is written: `_stream`.
    """

    def __init__(self) -> None:
        self._run: tuple[int, str, str, Work] | None = None
        self._n = 0
        self.kept: dict[tuple[str, str], dict[str, Any]] = {}
        """(question, settings) -> answer, of all that was computed to its end"""

    @abstractmethod
    def _stream(self, settings: str) -> Written:
        """What is written with these settings. Raises ConfigError, CorpusError."""

    def begin(self, settings: str, n: int = 1) -> dict[str, Any]:
        """Begin to write, and let go of what was being done.

        Args:
            settings: As JSON.
            n: Tokens that are written at once.

        Returns:
            run: Its number; done; columns: name, tokens and changed of each.

        Raises:
            ConfigError: A setting is wrong.
            CorpusError: The prompt does not fit the context.
        """
        return self._begun("written", settings, self._stream, n)

    def more(self, run: int, n: int = 4) -> dict[str, Any]:
        """Go on with what was begun.

        Args:
            run: Its number.
            n: Tokens, or steps, at most.

        Returns:
            As where it was begun; `stale` alone where another run has begun since, or it was stopped.
        """
        if self._run is None or self._run[0] != run:
            return {"run": run, "stale": True}
        _, question, settings, work = self._run
        work.more(n)
        told = work.told()
        if work.done:
            self._run = None
            self._keep(question, settings, told)
        return {"run": run, **told}

    def stop(self, run: int | None = None) -> dict[str, Any]:
        """Do no more.

        Args:
            run: Of that one, if it is still at work; None: of whichever is.
        """
        if self._run is not None and run in (None, self._run[0]):
            self._run[3].close()
            self._run = None
        return {}

    def written(self, settings: str) -> dict[str, Any]:
        """The whole texts of some settings.

        Args:
            settings: As JSON.

        Returns:
            done, columns.
        """
        return self._once("written", settings, lambda: finished(self._stream(settings)))

    def _begun(self, question: str, settings: str, make: Callable[[str], Work], n: int = 1) -> dict[str, Any]:
        """Begin a piece of work, unless it was done before."""
        self.stop()
        self._n += 1
        if (known := self.kept.get((question, settings))) is not None:
            return {"run": self._n, **known}
        self._run = (self._n, question, settings, make(settings))
        return self.more(self._n, n)

    def _once(self, question: str, settings: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        found = self.kept.get((question, settings))
        return found if found is not None else self._keep(question, settings, make())

    def _keep(self, question: str, settings: str, answer: dict[str, Any]) -> dict[str, Any]:
        self.kept[question, settings] = answer
        while len(self.kept) > 3 * KEPT:
            del self.kept[next(iter(self.kept))]
        return answer


def finished(work: Work) -> dict[str, Any]:
    """What a piece of work comes to."""
    while not work.done:
        work.more(1000)
    return work.told()


def _changed(plain: Sequence[int], own: Sequence[int]) -> list[int]:
    """Of each token 1 where it is none of those that both texts have in common, in order."""
    changed = np.ones(len(own), int)
    for block in SequenceMatcher(None, plain, own, autojunk=False).get_matching_blocks():
        changed[block.b : block.b + block.size] = 0
    return changed.tolist()


__all__ = ["Work", "Writer", "Written", "finished"]
