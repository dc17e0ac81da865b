"""Any torch.nn.Module as a subject: a CNN, a vision transformer, a text encoder, a network of one's own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from saelab.corpora import Document
from saelab.layout import Layout
from saelab.subjects.base import TorchSubject, config_facts
from saelab.subjects.hooks import EditFn, Site, View, main_tensor, plan
from saelab.subjects.passes import Passed, no_fast_path, run_hooked
from saelab.subjects.reading import How, ReadsSamples, SampleReading
from saelab.types import (
    ConfigError,
    CorpusError,
    HookError,
    HookPoint,
    Inputs,
    ShapeError,
    SubjectError,
    nearest,
    short,
)


class TorchModule(ReadsSamples, TorchSubject):
    """A module that is read and edited at its submodules' inputs and outputs.

    Hook points are module paths, or any suffix of one that is unique: "layer.3" for "vit.encoder.layer.3";
    HookPoint("layer.3", io="in") is the input. Where a module is called several times in a pass, "mid@3" is
    its fourth call and "mid@all" every one. Activations come, and edits see them, as
    [samples, positions, width]:
    - [samples, positions, width] as it is;
    - [samples, channels, *space] with the channel as width and the pixels, row by row, as positions
      (`Run.spaces` says how they lie);
    - [samples, width] with one position.
    Edits are mapped back to the module's own shape and structure.

    Args:
        module: Put into eval mode. It may return a tensor, a tuple, a dict or a ModelOutput; of these the
            first tensor counts.
        prepare: Raw samples -> a tensor, a mapping of forward's keyword arguments, or Inputs; by default
            tensors and arrays are stacked.
        label: (inputs, sample, position) -> text for people; by default where the position lies.
        example: Raw samples for `prepare`, one is enough. It tells which submodules take part in the forward
            pass and serves the checks; without it the first inputs that are run do.
        layout: How positions lie, as `saelab.layout` writes it ("extra 1, grid 14x14"), or a function of a
            raw sample; by default pixels of a map are a grid, everything else a line.
        loss: (output, inputs) -> loss of each sample, [samples]; with it scores that need a loss are
            possible.

    Raises:
        SubjectError: What is passed as `module` is no torch module.
    """

    def __init__(
        self,
        module: nn.Module,
        prepare: Callable[[Sequence[Any]], Any] | None = None,
        label: Callable[[Inputs, int, int], str] | None = None,
        example: Any = None,
        layout: Callable[[Any], str] | str | None = None,
        loss: Callable[[Any, Inputs], Any] | None = None,
    ) -> None:
        for name, given in (("prepare", prepare), ("label", label), ("loss", loss)):
            if not (given is None or callable(given)):
                msg = f"{name} must be a function. Got {short(given)}. Leave it out, or pass one."
                raise ConfigError(msg)
        super().__init__(module)
        written = layout if layout is None or callable(layout) else str(Layout.parse(layout))
        self._layout = None if written is None else _lying(written)
        if loss is not None:
            self.loss = partial(self._loss, loss)  # a subject without one lacks the capability
        self._paths = {name: m for name, m in module.named_modules(remove_duplicate=False) if name}
        self._prepare = prepare
        self._label = label
        self._names: list[str] | None = None
        self._sample: Inputs | None = None
        if example is not None:
            self._sample = example if isinstance(example, Inputs) else self.prepare(example)

    def hooks(self) -> list[str]:
        """Paths of the submodules, in their order; those only that an example shows to take part.

        A module that is called several times comes as "path@all", or call by call ("path@0", ...) where the
        calls differ in shape.
        """
        if self._names is None:
            names = [n for n, m in self._paths.items() if not isinstance(m, (nn.ModuleList, nn.ModuleDict))]
            if self._sample is None:
                return names
            calls = self._calls(self._sample)
            self._names = [full for n in names for full in _with_calls(n, calls.get(id(self._paths[n]), []))]
        return list(self._names)

    def hook_point(self, name: HookPoint | str) -> HookPoint:
        """The HookPoint under its full path.

        Raises:
            HookError: The name is unknown or ambiguous.
        """
        hook = HookPoint.of(name)
        call = "" if hook.call is None else f"@{hook.call}"
        return HookPoint(self._resolve(hook.module) + call, hook.io, hook.n_heads)

    def prepare(self, raw: Any) -> Inputs:
        """Raw samples to inputs.

        Raises:
            CorpusError: There is none.
            SubjectError: `prepare` gives no tensors.
        """
        if raw is None or (hasattr(raw, "__len__") and len(raw) == 0):
            msg = f"Samples must not be empty. Got {raw!r}. Pass at least one."
            raise CorpusError(msg)
        made = self._prepare(raw) if self._prepare is not None else _stack(raw)
        if isinstance(made, Inputs):
            return made
        if isinstance(made, Tensor):
            made = {_first_parameter(self.module): made}
        if not isinstance(made, Mapping) or not any(isinstance(v, Tensor) for v in made.values()):
            msg = (
                "prepare must give a tensor, a mapping of keyword arguments with tensors, or Inputs. "
                f"Got {type(made).__name__}. Return what the module's forward takes."
            )
            raise SubjectError(msg)
        tensors = {k: v for k, v in made.items() if v is not None}
        return as_inputs(tensors)

    def label(self, inputs: Inputs, sample: int, position: int) -> str:
        """What the `label` function says, else the position.

        Args:
            inputs: What `prepare` gave.
            sample: Its number, from 0.
            position: In the sample, from 0.
        """
        return f"position {position}" if self._label is None else self._label(inputs, sample, position)

    def prime(self, document: Document) -> None:
        """Learn from a sample what shapes flow, where no example was given."""
        if self._sample is None:
            self._sample = self.prepare([document.raw])

    def read(self, documents: Sequence[tuple[int, Document]], how: How) -> SampleReading:
        """How consecutive documents are read: each is one sample.

        Args:
            documents: (number in the corpus, document).
            how: its batch size counts.
        """
        return SampleReading(documents, how.batch_size, self.prepare, self._layout, self._label)

    def _loss(
        self, measure: Callable[[Any, Inputs], Any], inputs: Inputs, edits: Any = ()
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `saelab.capabilities.HasLoss`.

        Raises:
            ShapeError: The function gives no loss for each sample.
        """
        found = torch.as_tensor(measure(self.run(inputs, edits=edits).output, inputs)).detach()
        if found.shape != (len(inputs),):
            message = (
                f"loss must give one number for each of {len(inputs)} samples. Got shape "
                f"{list(found.shape)}. Pass e.g. cross_entropy(output, target, reduction='none')."
            )
            raise ShapeError(message)
        return found.double().cpu().numpy(), np.ones(len(inputs), dtype=np.int64)

    def _site(self, hook: HookPoint) -> Site:
        return Site(self._paths[self._resolve(hook.module)], hook.io)

    def _resolve(self, name: str) -> str:
        if name in self._paths:
            return name
        found = [path for path in self._paths if path.endswith(f".{name}")]
        if len({id(self._paths[path]) for path in found}) == 1:
            return found[0]
        if found:
            shown = ", ".join(found[:8]) + (", ..." if len(found) > 8 else "")
            msg = (
                "A hook point's name must be a path or a suffix that one module has. "
                f"Got {name!r}, which {len(found)} have: {shown}. Write more of the path."
            )
            raise HookError(msg)
        msg = (
            f"A hook point must be a module's path, or a suffix of one. Got {name!r}. "
            f"{nearest(name, self._paths)}subject.hooks() lists them."
        )
        raise HookError(msg)

    def _forward(
        self,
        inputs: Inputs,
        reads: list[HookPoint],
        edits: list[tuple[HookPoint, EditFn]],
        output: bool,
        grad: bool,
    ) -> Passed:
        if self.module.training:
            self.module.eval()
        with no_fast_path():
            return run_hooked(
                lambda: self._call(inputs),
                plan(reads, edits, self._site),
                self._view(inputs),
                inputs,
                output=output,
                grad=grad,
            )

    def _view(self, inputs: Inputs) -> View:
        return canonical(len(inputs))

    @property
    def has_example(self) -> bool:
        """Whether hook points can be checked before anything is run."""
        return self._sample is not None

    def _call(self, inputs: Inputs) -> Any:
        data = self._to_device(inputs.data)
        return self.module(*data.values()) if _POSITIONAL in data else self.module(**data)

    def _check(self, hook: HookPoint, inputs: Inputs | None = None) -> None:
        if self._sample is None and inputs is not None:
            self._sample = _first_sample(inputs)
        super()._check(hook, inputs)

    def _example(self, hook: HookPoint, inputs: Inputs | None) -> Inputs:
        if inputs is not None and hook.call is not None:
            return _first_sample(inputs)  # how many calls there are may depend on what it is run on
        if self._sample is None:
            msg = (
                "An example is needed to find the width of a hook point and check it. Got none. "
                "Pass TorchModule(..., example=[sample]), or run() some inputs first."
            )
            raise HookError(msg)
        return self._sample

    def _calls(self, inputs: Inputs) -> dict[int, list[Any]]:
        """id(module) -> of each call that gives a tensor what its canonical shape follows from, None where it
        has none: the samples are not its first axis."""
        calls: dict[int, list[Any]] = {}

        def note(module: nn.Module, args: Any, output: Any) -> None:
            own, _ = main_tensor(output)
            if own is not None:
                apart = own.ndim >= 2 and own.shape[0] in (1, len(inputs))
                calls.setdefault(id(module), []).append(own.shape[1:] if apart else None)

        with self._lock:
            handles = [m.register_forward_hook(note) for m in set(self._paths.values())]
            try:
                with torch.no_grad(), no_fast_path():
                    self._call(inputs)
            finally:
                for handle in handles:
                    handle.remove()
        return calls

    def _architecture(self) -> Any:
        return [
            type(self.module).__name__,
            repr(self.module),
            config_facts(getattr(self.module, "config", None)),
        ]


_POSITIONAL = "<positional>"


def as_inputs(tensors: Mapping[str, Tensor]) -> Inputs:
    """Keyword arguments of a module as inputs: an attention mask says what is padding."""
    mask = tensors.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.ndim != 2:
        return Inputs(tensors)
    counted = mask.bool().cpu().numpy()
    return Inputs(tensors, counted.sum(1, dtype=np.int64), counted)


def _lying(layout: Callable[[Any], str] | str) -> Callable[[Any, int], str | None]:
    return lambda raw, n: layout(raw) if callable(layout) else layout


def _with_calls(name: str, shapes: list[Any]) -> list[str]:
    """The hook points of a module that gave tensors of these shapes in the calls of a pass."""
    if not shapes or None in shapes:
        return []
    if len(shapes) == 1:
        return [name]
    alike = all(shape == shapes[0] for shape in shapes)
    return [f"{name}@all"] if alike else [f"{name}@{i}" for i in range(len(shapes))]


def canonical(samples: int) -> View:
    """From the tensors of a pass over so many samples to [samples, positions, width], and back."""

    def to(own: Tensor) -> Tensor:
        if own.ndim < 2 or own.shape[0] not in (1, samples):
            msg = (
                f"A hook point's tensor must be [samples, ...] with {samples} samples and at least 2 axes. "
                f"Got shape {list(own.shape)}. Hook a parent or neighbour that keeps the samples apart."
            )
            raise ShapeError(msg)
        if own.ndim == 2:
            own = own.unsqueeze(1)
        elif own.ndim > 3:
            own = own.flatten(2).transpose(1, 2)
        return own if own.shape[0] == samples else own.expand(samples, -1, -1)

    def back(acts: Tensor, own: Tensor) -> Tensor:
        if own.ndim == 2:
            return acts.squeeze(1)
        return acts.transpose(1, 2).reshape(len(acts), *own.shape[1:]) if own.ndim > 3 else acts

    return View(to, back, lambda own: tuple(own.shape[2:]) if own.ndim > 3 else ())


def _stack(raw: Any) -> Tensor | Mapping[str, Any]:
    if isinstance(raw, (Tensor, Mapping)):
        return raw
    try:
        if isinstance(raw, np.ndarray):
            return torch.as_tensor(raw)
        return torch.stack([torch.as_tensor(np.asarray(x) if not isinstance(x, Tensor) else x) for x in raw])
    except (TypeError, ValueError, RuntimeError) as error:
        msg = (
            "Samples must be tensors or arrays of one shape where no prepare function is given. "
            f"Got {type(raw).__name__} ({error}). Pass TorchModule(module, prepare=...)."
        )
        raise CorpusError(msg) from None


def _first_parameter(module: nn.Module) -> str:
    for parameter in inspect.signature(module.forward).parameters.values():
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            return parameter.name
        break
    return _POSITIONAL


def _first_sample(inputs: Inputs) -> Inputs:
    n = len(inputs)
    data = {
        k: v[:1] if isinstance(v, Tensor) and v.ndim and len(v) == n else v for k, v in inputs.data.items()
    }
    lengths, counted = (None if x is None else x[:1] for x in (inputs.lengths, inputs.counted))
    return Inputs(data, lengths, counted)


__all__ = ["TorchModule", "as_inputs", "canonical"]
