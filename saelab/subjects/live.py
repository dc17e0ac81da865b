"""Edits in passes that others make: what a model is called with tells where each pass stands, and every hook
goes when the context is left."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from torch import Tensor, nn

from saelab.config import is_integer
from saelab.subjects.base import TorchSubject
from saelab.subjects.bridge import is_bridge_point
from saelab.subjects.hooks import EditFn, normalise_edits, plan
from saelab.subjects.language import LanguageModel
from saelab.subjects.memory import CACHES
from saelab.subjects.passes import LIVE, Pass, attached, no_fast_path
from saelab.subjects.tokens import CONTEXTS
from saelab.subjects.torch_module import TorchModule, as_inputs
from saelab.types import HookError, HookPoint, Inputs, SubjectError

Changes = Sequence[tuple[HookPoint, EditFn]]


@contextmanager
def edited(model: Any, edits: Any, tokenizer: Any = None) -> Iterator[None]:
    """See `saelab.interventions.applied`."""
    module = model.module if isinstance(model, TorchSubject) else model
    if not isinstance(module, nn.Module):
        message = (
            f"Edits are applied to a torch module or a subject of one. Got {type(model).__name__}. Pass "
            "model, or subject."
        )
        raise SubjectError(message)
    changes = normalise_edits(edits)
    with _ENTERING:
        live = LIVE.get(id(module))
        _check_tokenizer(tokenizer, model, live)
        if live is not None and live.thread != threading.get_ident():
            message = (
                "Edits are applied to a model in one thread at a time. Got a model to which another thread "
                "applies its own. Wait until it has left its context, or copy the model."
            )
            raise HookError(message)
        live = live or _Live(
            model if isinstance(model, TorchSubject) else _subject(module, tokenizer), tokenizer
        )
        live.enter(changes)
    try:
        yield
    finally:
        with _ENTERING:
            live.leave()


def standing(model: Any) -> list[tuple[tuple[str, str], HookPoint, EditFn]]:
    """What is applied to a model now: one name for all spellings of where, where, and the edit.

    Args:
        model: As `edited` takes it.
    """
    module = model.module if isinstance(model, TorchSubject) else model
    live = LIVE.get(id(module))
    if live is None:
        return []
    return [(live.subject._key(hook), hook, edit) for layer in live.layers for hook, edit in layer]


_ENTERING = threading.RLock()


class _Live:
    """What one thread applies to one module: the layers of nested contexts, as one list of edits."""

    def __init__(self, subject: TorchSubject, tokenizer: Any) -> None:
        self.subject, self.module, self.thread = subject, subject.module, threading.get_ident()
        self.tokenizer = tokenizer
        self.layers: list[Changes] = []
        self.hooked = ExitStack()
        self.now: Pass | None = None
        self.resting = False
        self.pasts: WeakKeyDictionary[Any, dict[Any, Any]] = WeakKeyDictionary()
        self.prompt: int | None = None
        """Columns of the prompt, while `generate` runs."""
        self.reorders = ""
        """What exchanges samples or takes tokens back, while `generate` runs."""
        self.signature = inspect.signature(self.module.forward)

    def enter(self, changes: Changes) -> None:
        hooks = [hook for hook, _ in changes]
        for hook in hooks:
            point = self.subject.hook_point(hook)
            if isinstance(self.subject, LanguageModel) and is_bridge_point(
                point.module, self.subject.n_layers
            ):
                message = (
                    "Edits of a model that others run must be at its modules' inputs or outputs. Got "
                    f"{hook.name!r}, which only TransformerBridge has. Run it by subject.run or "
                    "subject.generate, or edit a point out of subject.hooks()."
                )
                raise HookError(message)
        if not isinstance(self.subject, TorchModule) or self.subject.has_example:
            self._check(hooks, None)
        self.layers.append(changes)
        self._hook()

    def leave(self) -> None:
        """The innermost context."""
        self.layers.pop()
        self._hook()

    def _hook(self) -> None:
        """Hooks for the layers that there are, in place of those before."""
        self.hooked.close()
        LIVE.pop(id(self.module), None)
        if not self.layers:
            return
        LIVE[id(self.module)] = self
        stack = self.hooked = ExitStack()
        changes = [change for layer in self.layers for change in layer]
        self.traffic = plan([], changes, self.subject._site)
        stack.enter_context(no_fast_path())
        stack.enter_context(attached(self.traffic, self._visit))
        module = self.module
        stack.enter_context(module.register_forward_pre_hook(self._begin, prepend=True, with_kwargs=True))
        stack.enter_context(module.register_forward_hook(self._end, always_call=True))
        if hasattr(module, "generate"):
            stack.enter_context(_watched(module))

    def _check(self, hooks: Sequence[HookPoint], inputs: Inputs | None) -> None:
        """What `run` checks of a hook point at its first use, the module as it is, without edits."""
        training = [m for m in self.module.modules() if m.training]
        before, self.resting = self.resting, True
        try:
            self.subject._ready(hooks, inputs)
        finally:
            self.resting = before
            for m in training:
                m.training = True

    def _mine(self) -> bool:
        """Whether a pass is to be edited. Raises HookError where it is made in another thread."""
        if threading.get_ident() == self.thread:
            return not self.resting
        message = (
            "A model whose edits are applied runs in the thread that applied them. Got a pass in another, "
            "which would go unedited. Write `with applied(model, edits):` in that thread, or wait until the "
            "context is left."
        )
        raise HookError(message)

    def _begin(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if not self._mine():
            return
        self.now = None
        told = dict(self.signature.bind_partial(*args, **kwargs).arguments)
        for parameter in self.signature.parameters.values():
            if parameter.kind is parameter.VAR_KEYWORD:
                told |= told.pop(parameter.name, {})
        cache = next((told[name] for name in CACHES if told.get(name) is not None), None)
        if isinstance(self.subject, LanguageModel):
            inputs, goes_on = _inputs(self.subject, told, cache, self.prompt)
        else:
            inputs, goes_on = _given(told, args, self.tokenizer), False
        hooks = [hook for layer in self.layers for hook, _ in layer]
        self._check(hooks, inputs)
        past = self.pasts.get(cache, {}) if goes_on else {}
        if cache is not None:
            self.pasts[cache] = past
        self.now = Pass(self.traffic, self.subject._view(inputs), inputs, True, False, past)

    def _visit(self, i: int, own: Tensor) -> Tensor:
        if not self._mine():
            return own
        if self.now is None:
            message = (
                "Applied edits run in passes of the whole model. Got a call of a part of it alone, at "
                f"{self.traffic[i].hooks()[0].name!r}. Call the model that was given to applied()."
            )
            raise HookError(message)
        return self.now.visit(i, own)

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        now, self.now = self.now, None
        if now is None or output is None or not self._mine():  # without an output the pass has failed
            return
        now.check_calls()
        cache = next((c for c in (getattr(output, name, None) for name in CACHES) if c is not None), None)
        if cache is not None and not isinstance(cache, (tuple, list)):
            self.pasts[cache] = now.past
        if self.reorders and now.past:
            message = (
                f"Edits that keep what they have seen of each sample need samples that stay where they are. "
                f"Got {self.reorders}. Generate with num_beams=1 and no assistant."
            )
            raise HookError(message)


@contextmanager
def _watched(module: Any) -> Iterator[None]:
    """`module.generate` says where the prompt ends, and what it does to the order of samples."""
    generate, own = module.generate, vars(module).get("generate")

    def watched(*args: Any, **kwargs: Any) -> Any:
        live = LIVE.get(id(module))
        if live is None or live.thread != threading.get_ident():  # whose passes are refused
            return generate(*args, **kwargs)
        before = live.prompt, live.reorders
        live.prompt, live.reorders = _columns(args, kwargs), _reorders(module, kwargs)
        try:
            return generate(*args, **kwargs)
        finally:
            live.prompt, live.reorders = before

    module.generate = watched
    try:
        yield
    finally:
        if vars(module).get("generate") is watched:
            del module.generate
            if own is not None:
                module.generate = own


def _columns(args: Sequence[Any], kwargs: dict[str, Any]) -> int | None:
    named = (kwargs.get(name) for name in ("inputs", "input_ids", "inputs_embeds"))
    prompt = next((value for value in (*args[:1], *named) if isinstance(value, Tensor)), None)
    return None if prompt is None else prompt.shape[1]


def _reorders(module: Any, kwargs: dict[str, Any]) -> str:
    config = kwargs.get("generation_config") or getattr(module, "generation_config", None)

    def asked(name: str) -> Any:
        return kwargs.get(name, getattr(config, name, None))

    if (asked("num_beams") or 1) > 1:
        return "beam search"
    if kwargs.get("assistant_model") is not None or asked("prompt_lookup_num_tokens"):
        return "assisted generation"
    return ""


def _inputs(
    subject: LanguageModel, told: dict[str, Any], cache: Any, prompt: int | None
) -> tuple[Inputs, bool]:
    """What a language model's pass is of, and whether it goes on from a cache."""
    main = "input_ids" if isinstance(told.get("input_ids"), Tensor) else "inputs_embeds"
    if not isinstance(told.get(main), Tensor):
        message = "A pass must be given input_ids. Got none. Call model(input_ids=...)."
        raise SubjectError(message)
    samples, positions = told[main].shape[:2]
    mask = told.get("attention_mask")
    mask = mask.bool().cpu().numpy() if isinstance(mask, Tensor) and mask.ndim == 2 else None
    start = _read_before(cache, mask, positions)
    if mask is None or mask.shape[1] < positions:
        mask = np.ones((samples, positions), dtype=bool)
    before = start if mask.shape[1] == positions else 0
    real = np.broadcast_to(mask[:, -positions:], (samples, positions))
    number = before + np.broadcast_to(mask.cumsum(1)[:, -positions:], (samples, positions)) - 1
    own = told.get("position_ids")
    if isinstance(own, Tensor) and own.ndim == 2 and own.shape[1] == positions:
        number = np.broadcast_to(own.cpu().numpy(), (samples, positions))
    ids = told[main].cpu().numpy() if main == "input_ids" else np.full((samples, positions), -1)
    bos = subject.bos_id
    known = not isinstance(subject.tokenizer, _Wordless) and main == "input_ids"
    column = np.broadcast_to(start + np.arange(positions), (samples, positions))
    data = {name: value for name, value in told.items() if isinstance(value, Tensor)}
    inputs = Inputs(
        {main: data.pop(main)} | data,
        real.sum(1),
        counted=real if bos is None else real & (ids != bos),
        positions=np.where(real, number, -1),
        given=np.full((samples, positions), start == 0) if prompt is None else column < prompt,
        special=real & np.isin(ids, list(subject.special_ids)) if known else None,
    )
    return inputs, start > 0


def _read_before(cache: Any, mask: np.ndarray | None, positions: int) -> int:
    """Columns that a cache holds, padding among them."""
    if cache is None:
        return 0
    try:
        return int(cache.get_seq_length())
    except (AttributeError, ValueError, TypeError, NotImplementedError):  # states, which have no length
        return 0 if mask is None else mask.shape[1] - positions


def _given(told: dict[str, Any], args: Sequence[Any], tokenizer: Any) -> Inputs:
    """What a pass of any module is of."""
    tensors = {name: value for name, value in told.items() if isinstance(value, Tensor)}
    tensors = tensors or {f"argument {i}": value for i, value in enumerate(args) if isinstance(value, Tensor)}
    if not tensors:
        message = "A pass must be given a tensor. Got none. Call the module on a batch."
        raise SubjectError(message)
    inputs, ids = as_inputs(tensors), tensors.get("input_ids")
    if tokenizer is None or ids is None or ids.ndim != 2:
        return inputs
    special = np.isin(ids.cpu().numpy(), tokenizer.all_special_ids)
    return replace(inputs, special=special if inputs.counted is None else special & inputs.counted)


def _check_tokenizer(tokenizer: Any, model: Any, live: _Live | None) -> None:
    """Refuse what tells no special tokens, or tells them to those who know. Raises SubjectError."""
    if tokenizer is None or (live is not None and tokenizer is live.tokenizer):
        return
    if not hasattr(tokenizer, "all_special_ids") or not hasattr(tokenizer, "convert_ids_to_tokens"):
        rule, remedy = "tokenizer must be the model's tokenizer", "Load it by AutoTokenizer"
    elif isinstance(model, LanguageModel):
        rule, remedy = "A subject has its own tokenizer", "Leave tokenizer out"
    elif live is not None:
        rule, remedy = "Contexts that nest share a tokenizer", "Pass it to the outermost"
    else:
        return
    message = f"{rule}. Got a {type(tokenizer).__name__}. {remedy}."
    raise SubjectError(message)


class _Wordless:
    """In the place of a tokenizer, where a model has come without one: all that it knows is BOS."""

    all_special_ids: tuple[int, ...] = ()
    eos_token_id = None

    def __init__(self, bos: Any) -> None:
        self.bos_token_id = bos if is_integer(bos) else None

    def __len__(self) -> int:
        return 0

    def convert_ids_to_tokens(self, token: int) -> None:
        return None


def _subject(module: nn.Module, tokenizer: Any) -> TorchSubject:
    """A bare module as a subject, left in the mode in which it was."""
    training = [m for m in module.modules() if m.training]
    head: Callable[[], Any] = getattr(module, "get_output_embeddings", lambda: None)
    try:
        if head() is None:
            return TorchModule(module)
        config: Any = getattr(module, "config", None)
        text = config.get_text_config() if hasattr(config, "get_text_config") else config
        known = any(is_integer(getattr(text, name, None)) for name in CONTEXTS)
        bos = getattr(text, "bos_token_id", None)
        return LanguageModel(module, tokenizer or _Wordless(bos), None if known else 1 << 20)
    finally:
        for m in training:
            m.training = True


__all__ = ["edited", "standing"]
