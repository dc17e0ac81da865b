"""What every torch subject does alike: run, refuse dead hook points, find widths, hash weights."""

from __future__ import annotations

import hashlib
import json
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from saelab.config import boolean
from saelab.devices import holding
from saelab.subjects.hooks import (
    EditFn,
    Site,
    View,
    all_tensors,
    main_tensor,
    normalise_edits,
    normalise_reads,
)
from saelab.subjects.passes import Passed, ensure_live
from saelab.types import HookPoint, Inputs, Run, SubjectError

_HASH_EACH_TIME = 64 << 20  # bytes of weights below which hashing is quicker than doubting a cached digest


class TorchSubject(ABC):
    """Base of `LanguageModel` and `TorchModule`; see `saelab.types.Subject` for the protocol."""

    def __init__(self, module: nn.Module) -> None:
        if not isinstance(module, nn.Module):
            msg = f"A subject is made of a torch.nn.Module. Got {type(module).__name__}. Pass a module."
            raise SubjectError(msg)
        self.module = module.eval()
        self._widths: dict[tuple[str, str], int] = {}
        self._digest: tuple[Any, str] | None = None
        # hooks hang on the module while it runs, and a stream runs it in a thread of its own
        self._lock = threading.RLock()

    def __repr__(self) -> str:
        weights = sum(p.numel() for p in self.module.parameters())
        return f"{type(self).__name__}({type(self.module).__name__}, {weights:,} parameters)"

    @abstractmethod
    def hooks(self) -> list[str]:
        """Every hook point's name."""

    @abstractmethod
    def _site(self, hook: HookPoint) -> Site:
        """Raises HookError where there is none."""

    @abstractmethod
    def _forward(
        self,
        inputs: Inputs,
        reads: list[HookPoint],
        edits: list[tuple[HookPoint, EditFn]],
        output: bool,
        grad: bool,
    ) -> Passed:
        """One pass, without the check of liveness."""

    @abstractmethod
    def _view(self, inputs: Inputs) -> View:
        """Of the tensors of a pass over these inputs."""

    @abstractmethod
    def _example(self, hook: HookPoint, inputs: Inputs | None) -> Inputs:
        """A small input for the checks of a hook point. inputs: those of the run that asks, if any."""

    @property
    def device(self) -> torch.device:
        """Where the model's weights lie."""
        first = next(chain(self.module.parameters(), self.module.buffers()), None)
        return torch.device("cpu") if first is None else first.device

    def hook_point(self, name: HookPoint | str) -> HookPoint:
        """The HookPoint of a name, checked. Raises HookError on unknown names, with the nearest one."""
        hook = HookPoint.of(name)
        self._site(hook)
        return hook

    def width(self, hook: HookPoint | str) -> int:
        """Size of the last axis at a hook point, heads concatenated.

        Raises:
            HookError: The hook point is unknown, or not met in a pass.
        """
        point = HookPoint.of(hook)
        key = self._key(point)
        if key not in self._widths:
            with self._lock:
                self._check(point)
        return self._widths[key]

    def run(
        self,
        inputs: Inputs,
        read: Sequence[HookPoint | str] | HookPoint | str = (),
        edits: Sequence[Any] | Any = (),
        *,
        output: bool = True,
        grad: bool = False,
    ) -> Run:
        """One forward pass in eval mode. Safe to call from several threads: one pass at a time.

        Args:
            inputs: What `prepare` gave.
            read: Hook points; `Run.acts` holds each under its name as [samples, positions, width], of
                `name@all` the positions of one call after those of another. Reading changes nothing: the
                output is the same bit for bit.
            edits: Objects with `.hooks`, called with ([samples, positions, width], `Context`), such as those
                of `saelab.interventions`; or pairs (hook, callable) of which the callable takes (acts) or
                (acts, context). Several at one hook compose in order, and a hook that is edited is read
                after its edits. At `name@all` it is called once for each call.
            output: False allows the pass to stop after the last hook point that is read, but for `name@all`,
                whose last call nobody knows; `Run.output` is then None.
            grad: Keep the graph. The tensors in `acts` are those that flow on through the network, so that
                torch.autograd.grad(metric, acts) works. By default nothing is recorded.

        Returns:
            What was read, and the output.

        Raises:
            HookError: A hook point is unknown, does not influence the output (checked when it is first
                used), or is another call than the pass makes.
            ShapeError: An edit returns another shape.
        """
        if not isinstance(inputs, Inputs):
            msg = f"run() takes prepared inputs. Got {type(inputs).__name__}. Pass subject.prepare([...])."
            raise SubjectError(msg)
        output, grad = boolean("output", output), boolean("grad", grad)
        reads, changes = normalise_reads(read), normalise_edits(edits)
        with self._lock:
            self._ready([*reads, *(h for h, _ in changes)], inputs)
            passed = self._forward(inputs, reads, changes, output, grad)
        return Run(
            acts={h.name: passed.acts[h.name] for h in reads},
            output=main_tensor(passed.output)[0] if output else None,
            spaces=passed.spaces,
            calls=passed.calls,
        )

    def fingerprint(self) -> str:
        """sha256 hex digest of architecture and weights; equal for equal models, whatever the device.

        Up to 64 MiB the weights are hashed at each call; above, when the version counter of one has moved.
        """
        tensors = dict(self.module.state_dict())
        size = sum(t.numel() * t.element_size() for t in tensors.values())
        state = [(name, t.data_ptr(), t._version) for name, t in tensors.items()]
        if self._digest is None or self._digest[0] != state or size < _HASH_EACH_TIME:
            self._digest = (state, _sha256(self._architecture(), tensors))
        return self._digest[1]

    def _architecture(self) -> Any:
        return [type(self.module).__name__, repr(self.module)]

    def _ready(self, hooks: Sequence[HookPoint], inputs: Inputs | None = None) -> None:
        """Check each hook point at its first use. inputs: those of the run that asks, if any."""
        with self._lock:
            new = list({key: h for h in hooks if (key := self._key(h)) not in self._widths}.values())
            for i, hook in enumerate(new):
                if i == 1:  # by then there is an example
                    self._check_together([each for each in new[1:] if each.call is None])
                if self._key(hook) not in self._widths:
                    self._check(hook, inputs)

    def _check_together(self, hooks: Sequence[HookPoint]) -> None:
        """What one pass and one gradient show of many hook points: those that the output answers to need no
        passes of their own, which of a large model take seconds each. Of the others nothing is said."""
        found: Sequence[Tensor | None] = ()
        acts: list[Tensor] = []
        if not hooks:
            return
        try:
            with torch.enable_grad():
                passed = self._forward(self._example(hooks[0], None), list(hooks), [], True, True)
                acts = [passed.acts[hook.name] for hook in hooks]
                found = torch.autograd.grad(_any_of(passed.output), acts, allow_unused=True)
        except Exception:  # whatever hinders a gradient, each is tried by itself
            return
        for hook, own, grad in zip(hooks, acts, found, strict=True):
            if grad is not None and bool(grad.isfinite().all()) and bool(grad.any()):
                self._widths[self._key(hook)] = own.shape[-1]

    def _check(self, hook: HookPoint, inputs: Inputs | None = None) -> None:
        """Liveness and width, once for a hook point. inputs: those of the run that asks, if any."""
        example = self._example(hook, inputs)

        def run(edits: Sequence[tuple[HookPoint, EditFn]]) -> list[Tensor]:
            return all_tensors(self._forward(example, [], list(edits), True, False).output)

        acts = self._forward(example, [hook], [], True, False).acts
        ensure_live(run, hook)
        self._widths[self._key(hook)] = acts[hook.name].shape[-1]

    def _key(self, hook: HookPoint) -> tuple[str, str]:
        """One name for all spellings of a hook point. Raises HookError where it is unknown."""
        point = self.hook_point(hook)
        return point.name, point.io

    def _to_device(self, data: Mapping[str, Any]) -> dict[str, Any]:
        device = holding(self.device, "A model", SubjectError)
        return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in data.items()}


def _any_of(output: Any) -> Tensor:
    """A number that depends on all of an output."""
    draw = torch.Generator().manual_seed(0)
    parts = [t.float().cpu() for t in all_tensors(output) if t.requires_grad]
    return torch.stack([(t * torch.randn(t.shape, generator=draw)).sum() for t in parts]).sum()


# where a model came from, how it is run, and numbers of its tokenizer: none changes what its weights compute
_NO_FACTS = (
    "_name_or_path", "architectures", "bos_token_id", "dtype", "eos_token_id", "pad_token_id", "torch_dtype",
    "transformers_version", "use_cache",
)  # fmt: skip


def config_facts(config: Any) -> dict[str, Any] | None:
    """What a Hugging Face config sets off its defaults: a library's new settings then change no digest."""
    if not hasattr(config, "to_diff_dict"):
        return None
    return {k: v for k, v in config.to_diff_dict().items() if k not in _NO_FACTS}


def _sha256(architecture: Any, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(architecture, sort_keys=True, default=str).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


__all__ = ["TorchSubject", "config_facts"]
