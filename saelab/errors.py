"""The errors, and what their messages are made of. Imports nothing, so everything may import it."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Iterator


class SaelabError(Exception):
    """Base of every error that saelab raises on purpose: it states rule, value received and remedy."""


class ConfigError(SaelabError):
    """An option, recipe or configuration that breaks a rule."""


class ShapeError(SaelabError):
    """An array of the wrong shape, width or dtype."""


class NonFiniteError(SaelabError):
    """NaN or infinity where finite numbers are required."""


class RangeError(SaelabError, IndexError):
    """A latent, row or document index outside of its range."""


class HookError(SaelabError):
    """A hook point that does not exist, is ambiguous, or does not influence the output."""


class CorpusError(SaelabError):
    """An empty corpus, an empty or non-string text, a document that does not fit."""


class SubjectError(SaelabError):
    """A model that cannot be found, loaded or run."""


class StoreError(SaelabError):
    """A store that is missing, truncated, of a newer version, of another SAE, or cannot be written."""


class FormatError(SaelabError):
    """A file in an unknown, unsafe or inconsistent format."""


class DeviceMemoryError(SaelabError, MemoryError):
    """A computation that does not fit into the memory of its device."""


class RankError(SaelabError):
    """A process of a distributed run that failed, was lost, or was given something else than the others."""


class JobError(SaelabError):
    """A job in the background that failed, was lost, or was cancelled."""


class NotReady(JobError, TimeoutError):
    """A job in the background that is still at work."""


class MissingDependency(SaelabError, ImportError):
    """An optional library that is not installed; the message gives the pip command."""


@contextlib.contextmanager
def needing(what: str, library: str, install: str) -> Iterator[None]:
    """Raise an import that fails as a MissingDependency.

    >>> with needing("A figure", "plotly", "plotly"):
    ...     import plotly

    Args:
        what: Needs it, for the message.
        library: Its name for people.
        install: What pip takes, with quotes where a shell needs them.

    Raises:
        MissingDependency: It is not installed, or a part of it is not.
    """
    try:
        yield
    except ImportError as error:
        message = f"{what} needs {library}. Got: {error}. Install it: pip install {install}"
        raise MissingDependency(message) from error


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory did not suffice: torch raises a RuntimeError for it."""
    says = str(error).lower()
    words = ("not enough memory", "can't allocate memory", "out of memory")
    return isinstance(error, MemoryError) or any(each in says for each in words)


@contextlib.contextmanager
def fitting(what: str, remedy: str) -> Iterator[None]:
    """Raise what says that memory did not suffice as a DeviceMemoryError.

    Args:
        what: Must fit into memory.
        remedy: What to do.

    Raises:
        DeviceMemoryError: It does not.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, SaelabError) or not out_of_memory(error):
            raise
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        message = f"{what} must fit into memory. Got: {first} {remedy}"
        raise DeviceMemoryError(message) from error


def headline(self: object) -> str:
    """The type of a result and the first line of its text, as the `__repr__` of what has a `__str__`: the
    whole is what print shows.
    """
    lines = str(self).splitlines() or [""]
    first = lines[0] if len(lines[0]) <= 120 else f"{lines[0][:119]}…"
    return f"{type(self).__name__}({first}{' …' if len(lines) > 1 else ''})"


def short(value: object, most: int = 200) -> str:
    """repr, cut short for messages: files may hold megabytes where a name should be.

    Args:
        value: Anything.
        most: Characters.
    """
    text = repr(value)
    return text if len(text) <= most else text[: most - 3] + "..."


def nearest(word: str, known: Iterable[str]) -> str:
    """`Did you mean 'x'? ` for the known name nearest to a word, else "" (for error messages).

    Args:
        word: What was given.
        known: What there is.
    """
    match = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"Did you mean {match[0]!r}? " if match else ""
