"""Edits on a model that is run by others: `model.generate`, a pipeline, a training loop of one's own."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from saelab.subjects.live import edited


def applied(model: Any, edits: Any, tokenizer: Any = None) -> AbstractContextManager[None]:
    """A context in which every pass of a model is edited.

        with applied(model, Steer(sae, 7, alpha=4.0)):
            model.generate(**tokenizer("Once upon a time", return_tensors="pt"))

    Passes tell edits what `subject.generate` would: positions (left padding is none), what was given, and
    one `Context.past` for all passes from one cache. A cache that is empty begins anew. Which tokens are
    special (`edit.where(special=True)`) a bare model cannot say: what it ends or begins texts with is less
    than what a chat template writes. Its tokenizer says it; a subject has that already.

    Contexts nest: the edits of the inner follow those of the outer. They hold for the thread that entered
    them: while they do, passes and contexts of other threads are refused. When the context is left, also by
    an exception, no hook is left.

    Args:
        model: A Hugging Face causal language model, whose hook points are those of `LanguageModel`; any other
            torch module, at its modules' paths; or a subject of either.
        edits: As in `subject.run`. Those that only TransformerBridge can make are refused.
        tokenizer: Of a bare model that reads `input_ids`, if edits ask for special tokens; contexts that nest
            share the outermost one's.

    Returns:
        The context manager.

    Raises:
        HookError: On entering: a hook point is unknown, does not influence the output, or is the bridge's; or
            another thread is inside. In a pass: another thread runs the model, a part of it is called alone,
            or beam search or assisted generation meets an edit that keeps something of each sample in
            `Context.past`; an edit asks for special tokens, and no tokenizer was given.
        SubjectError: It is no torch module; the tokenizer is none, or not needed.
    """
    return edited(model, edits, tokenizer)


__all__ = ["applied"]
