"""What the heads of a language model do in a pass: where each looks, and what it reads there.

transformers hands queries, keys and values of every layer to an attention function that is looked up by name.
One is registered here that calls the model's own plain function and keeps the weights that this gives, with
the values that they are multiplied by. So grouped queries, rotary positions, soft caps, windows and sinks are
the model's own. What a model does besides, a gate or a norm behind the heads, an identity shows:

    z[query, head] = sum_key pattern[head, query, key] value[head // group, key]
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import torch

from saelab.arguments import a_function
from saelab.config import integer
from saelab.subjects.bridge import weights
from saelab.subjects.head_maps import LayerMaps, measured
from saelab.types import RangeError, SaelabError, SubjectError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from saelab.types import HookPoint, Inputs, Run

NAME = "saelab_recorded"


class Attended(NamedTuple):
    """One pass, and what its heads did."""

    run: Run
    """what was read, and the output"""
    patterns: dict[int, Tensor]
    """layer -> [samples heads queries keys]: the weights of the values"""
    values: dict[int, Tensor]
    """layer -> [samples kv_heads keys d_head]; query heads share them in groups, in their order"""


class ReadsHeads:
    """How a language model tells what its heads do; `LanguageModel` has what it asks for."""

    model: Any
    d_vocab: int
    n_ctx: int
    n_layers: int
    _arch: Any
    _lock: threading.RLock
    hooks: Any
    padded: Any
    run: Any
    _heads: tuple[Any, dict[int, LayerMaps]] | None = None
    """the state of the weights for which the identity was shown, and the maps measured since"""

    def attend(
        self,
        inputs: Inputs,
        read: Sequence[HookPoint | str] = (),
        edits: Sequence[Any] | Any = (),
        *,
        patterns: Callable[[int, Tensor], Tensor] | None = None,
        output: bool = True,
        grad: bool = False,
    ) -> Attended:
        """`run`, with the patterns and values of the layers that the pass comes to.

        Args:
            inputs: What `prepare` gave.
            read: As in `run`.
            edits: As in `run`.
            patterns: (layer, pattern [samples heads queries keys]) -> what takes its place.
            output: As in `run`.
            grad: As in `run`; values are then part of the graph.

        Raises:
            SubjectError: A layer hands no attention to transformers' functions, or does more to its heads
                than weigh values.
            ConfigError: `patterns` is no function.
        """
        if patterns is not None:
            a_function("lambda layer, pattern: pattern, changed")("patterns", patterns)
        self._check_heads()
        with _recorded(self, patterns) as seen:
            run = self.run(inputs, read, edits, output=output, grad=grad)
        return Attended(run, seen.patterns, seen.values)

    def layer_maps(self, layer: int) -> LayerMaps:
        """The linear maps of a layer that its heads read and write through, measured once for its weights.

        Args:
            layer: From 0.

        Raises:
            RangeError: There is no such layer.
            SubjectError: As `attend`.
        """
        layer = integer(
            "layer", layer, 0, self.n_layers - 1, error=RangeError, remedy="Pass one of the model."
        )
        known = self._check_heads()
        if not known:
            known.update(measured(self))
        return known[layer]

    def _check_heads(self) -> dict[int, LayerMaps]:
        """Refuse a model whose heads are not what the identity says. Raises SubjectError."""
        state = weights(self.model)
        if self._heads is not None and self._heads[0] == state:
            return self._heads[1]
        known = self.hooks()
        hooks = [f"blocks.{i}.attn.hook_z" for i in range(self.n_layers)]
        for i, hook in enumerate(hooks):
            if hook not in known:
                _refuse(self, f"layer {i} without heads")
        draw = torch.Generator().manual_seed(0)
        ids = torch.randint(self.d_vocab, (min(24, self.n_ctx),), generator=draw).tolist()
        try:
            with _recorded(self, None) as seen:
                run = self.run(self.padded([ids]), hooks)
        except SaelabError:
            raise
        except Exception as error:
            _refuse(self, f"{type(error).__name__}: {str(error)[:200]}")
        for i, hook in enumerate(hooks):
            if i not in seen.patterns:
                _refuse(self, f"layer {i}, which does not")
            z, found = run.acts[hook].float(), heads_of(seen.patterns[i], seen.values[i]).float()
            close = 1e-3 if run.acts[hook].dtype.itemsize > 2 else 0.05
            if found.shape != z.shape or not (found - z).norm() <= close * z.norm():
                _refuse(self, f"layer {i}, whose z is not what its pattern makes of its values")
        self._heads = (state, {})
        return self._heads[1]


def heads_of(pattern: Tensor, value: Tensor) -> Tensor:
    """[samples queries heads * d_head]: what heads make of values.

    Args:
        pattern: [samples heads queries keys].
        value: [samples kv_heads keys d_head].
    """
    group = pattern.shape[1] // value.shape[1]
    return (pattern @ value.repeat_interleave(group, 1)).transpose(1, 2).flatten(2)


def _refuse(subject: Any, got: str) -> NoReturn:
    message = (
        "What heads do is read of models whose layers all hand attention to transformers' functions. Got "
        f"{type(subject.model).__name__} with {got}. Use another model, or SAEs without their heads."
    )
    raise SubjectError(message)


class _Watch:
    """Of one pass: which module is of which layer, and what was seen."""

    def __init__(self, layers: Sequence[nn.Module], edit: Callable[[int, Tensor], Tensor] | None) -> None:
        self.layer = {module: i for i, layer in enumerate(layers) for module in layer.modules()}
        self.edit = edit
        self.patterns: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}


_WATCHES: dict[nn.Module, _Watch] = {}
"""Modules of the models that are in a pass."""


@contextmanager
def _recorded(subject: Any, edit: Callable[[int, Tensor], Tensor] | None) -> Iterator[_Watch]:
    """Within it passes of the subject leave what their heads do."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, eager_mask

    AttentionInterface.register(NAME, _plain)
    AttentionMaskInterface.register(NAME, eager_mask)
    watch = _Watch(subject._arch.layers, edit)
    own = (getattr(module, "config", None) for module in subject.model.modules())
    configs: dict[int, Any] = {id(c): c for c in own if hasattr(c, "_attn_implementation_internal")}
    with subject._lock:
        before = [(config, config._attn_implementation_internal) for config in configs.values()]
        try:
            for config in configs.values():
                config._attn_implementation_internal = NAME
            _WATCHES.update(dict.fromkeys(watch.layer, watch))
            yield watch
        finally:
            for config, name in before:
                config._attn_implementation_internal = name
            for module in watch.layer:
                _WATCHES.pop(module, None)


def _plain(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **named: Any) -> Any:
    """An attention function: that of the model's own file, watched."""
    own: Any = vars(sys.modules[type(module).__module__])["eager_attention_forward"]
    out, pattern = own(module, query, key, value, *rest, **named)
    watch = _WATCHES.get(module)
    if watch is None:
        return out, pattern
    layer = watch.layer[module]
    if watch.edit is not None:
        pattern = watch.edit(layer, pattern.clone()).to(pattern)
        out = heads_of(pattern, value).unflatten(2, (pattern.shape[1], -1))
    watch.patterns[layer], watch.values[layer] = pattern.detach(), value
    return out, pattern


__all__ = ["Attended", "ReadsHeads", "heads_of"]
