"""Edits by name: what every edit is, and how it becomes JSON and comes back.

An edit is one file: a frozen dataclass below `Edit`, under the decorator `register`. Its fields may be SAEs,
hook points, tensors, other edits, plain data, and tuples, mappings and dataclasses of these; they go through
JSON by their annotations, so that an edit has no code for it.
"""

from __future__ import annotations

import base64
import math
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from saelab import config
from saelab.arguments import checked, floats, is_listed
from saelab.config import boolean, is_integer
from saelab.interventions.places import given_of, known_of, positions_of
from saelab.sae import SAE
from saelab.types import ConfigError, Context, HookPoint, Intervention, ShapeError, nearest, short

E = TypeVar("E", bound="type[Edit]")
_KINDS: dict[str, type[Edit]] = {}
_DTYPES = {
    name: getattr(torch, name)
    for name in "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool".split()
}


class Edit(ABC):
    """An edit of activations that is known by a name. It holds no state: what a pass leaves for later lies in
    `Context.shared`.

    VERSION and MIGRATIONS are those of `saelab.config`, for an edit whose fields have changed.
    """

    KIND: ClassVar[str] = ""
    VERSION: ClassVar[int] = 1

    @property
    @abstractmethod
    def hooks(self) -> tuple[HookPoint, ...]:
        """Where it edits; of several it is called at each, in the order of the pass."""

    @abstractmethod
    def __call__(self, acts: Tensor, context: Context) -> Tensor:
        """The edited activations.

        Args:
            acts: [samples, positions, width], its own to write into.
            context: What is known of the pass. Positions that do not count stay as they are.
        """

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data, of which `saelab.interventions.load` makes it again.

        An SAE is in it by its fingerprint, a tensor by its bytes.

        Raises:
            ConfigError: Its class is not registered, or it holds what JSON cannot.
        """
        if _KINDS.get(self.KIND) is not type(self):
            message = (
                f"An edit must be registered to become JSON. Got a {type(self).__name__}. Put "
                "@saelab.interventions.register('a name') above its class."
            )
            raise ConfigError(message)
        return {"kind": self.KIND, "version": self.VERSION} | config.to_dict(self, _written)

    def where(
        self,
        *,
        positions: Sequence[int] | None = None,
        tokens: Sequence[int] | None = None,
        special: bool = False,
        mask: Tensor | None = None,
    ) -> Where:
        """This edit at some positions alone, those for which all that is said here holds.

        A gate still looks at every position that counts. Positions that are named are written though they
        count as no rows elsewhere, such as BOS; padding never is.

        Args:
            positions: Their numbers in each sample, from 0; below 0 they count from the end of what was given
                (-1 is the last token of a prompt).
            tokens: Ids of the tokens that they must hold.
            special: True: those of special tokens.
            mask: bool [samples, positions], or [positions] for every sample; positions beyond it are not
                edited.

        Raises:
            ConfigError: Nothing is said, or it is none of these.
        """
        return Where(self, _numbers("positions", positions), _numbers("tokens", tokens), special, mask)


@dataclass(frozen=True, eq=False)
class AtOnePlace(Edit):
    """An edit of one hook point, its first field.

    Attributes:
        hook: Where.
    """

    hook: HookPoint

    def __post_init__(self) -> None:
        object.__setattr__(self, "hook", HookPoint.of(self.hook))

    @property
    def hooks(self) -> tuple[HookPoint, ...]:
        return (self.hook,)


@dataclass(frozen=True, eq=False)
class Where(Edit):
    """An edit at some positions alone. See `Edit.where`, which makes it.

    Attributes:
        edit: Any.
        positions: Their numbers, or None.
        tokens: Ids of their tokens, or None.
        special: Whether they must be of special tokens.
        mask: bool [samples, positions] or [positions], or None.
    """

    edit: Edit
    positions: tuple[int, ...] | None = None
    tokens: tuple[int, ...] | None = None
    special: bool = False
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        boolean("special", self.special)
        if self.mask is not None:
            try:
                mask = torch.as_tensor(self.mask)
                got = f"{mask.dtype} {list(mask.shape)}"
            except (TypeError, ValueError, RuntimeError):  # of what is no array
                mask, got = torch.empty(0), short(self.mask)
            if mask.dtype != torch.bool or mask.ndim not in (1, 2) or not mask.numel():
                message = (
                    f"mask must be bool, [samples, positions] or [positions]. Got {got}. Pass e.g. "
                    "acts.norm(dim=-1) > 3."
                )
                raise ConfigError(message)
            object.__setattr__(self, "mask", mask)
        if self.positions is None and self.tokens is None and not self.special and self.mask is None:
            message = (
                "where() must say which positions. Got nothing. Pass positions, tokens, special=True or mask."
            )
            raise ConfigError(message)

    @property
    def hooks(self) -> tuple[HookPoint, ...]:
        return self.edit.hooks

    def __call__(self, acts: Tensor, context: Context) -> Tensor:
        named = self.named(acts, context)
        new = self.edit(acts.clone(), replace(context, counted=counted(acts, context) | named))
        return torch.where(named[..., None], new.to(acts), acts)

    def named(self, acts: Tensor, context: Context) -> Tensor:
        """Where it may write.

        Args:
            acts: [samples, positions, width].
            context: What the edit is told.

        Returns:
            bool [samples, positions].

        Raises:
            HookError: The inputs do not say what is asked of them.
            ShapeError: The mask is of other samples or positions.
        """
        at = positions_of(acts, context)
        named = at >= 0
        if self.positions is not None:
            given = given_of(acts, context)
            end = (at if given is None else torch.where(given, at, -1)).amax(1, keepdim=True) + 1
            here = torch.zeros_like(named)
            for number in self.positions:
                # where nothing of the input is in this pass, nothing is counted from its end
                here |= at == number if number >= 0 else (at == end + number) & (end > 0)
            named &= here
        if self.tokens is not None:
            remedy = "Pass positions or a mask."
            ids = known_of(acts, context, "input_ids", remedy)
            named &= torch.isin(ids, torch.tensor(self.tokens, device=ids.device))
        if self.special:
            remedy = "Pass tokens, positions or a mask; to applied() the model's tokenizer."
            named &= known_of(acts, context, "special", remedy)
        return named if self.mask is None else named & self._masked(self.mask.to(at.device), at, context)

    def _masked(self, mask: Tensor, at: Tensor, context: Context) -> Tensor:
        inputs = context.inputs
        grows = inputs is not None and (inputs.given is not None or inputs.positions is not None)
        fits = mask.ndim == 1 or len(mask) == len(at)
        if not fits or (not grows and mask.shape[-1] != at.shape[1]):
            message = (
                f"mask must be of the {list(at.shape)} samples and positions of {context.hook.name!r}. Got "
                f"{list(mask.shape)}. Make it for this batch."
            )
            raise ShapeError(message)
        every = mask.expand(len(at), -1)
        within = (at >= 0) & (at < every.shape[1])
        return within & every.gather(1, at.clamp(0, every.shape[1] - 1))


def _numbers(name: str, value: Any) -> tuple[int, ...] | None:
    if value is None:
        return None
    if not is_listed(value) or not len(tuple(value)) or not all(map(is_integer, value)):
        message = f"{name} must be a list of integers. Got {short(value)}. Pass e.g. {name}=[0]."
        raise ConfigError(message)
    return tuple(int(each) for each in value)


def register(kind: str) -> Callable[[E], E]:
    """A class decorator that makes an edit known by a name.

    Args:
        kind: The name, as it stands in JSON.

    Raises:
        ConfigError: The class is no frozen dataclass below `Edit`, its annotations cannot be resolved, or
            another class has the name.
    """

    def decorated(cls: E) -> E:
        params = getattr(cls, "__dataclass_params__", None)
        if not (issubclass(cls, Edit) and params is not None and params.frozen):
            message = (
                f"An edit must be a frozen dataclass below saelab.interventions.Edit. Got {cls.__name__}. "
                "Write @register(...), @dataclass(frozen=True) and class Name(Edit)."
            )
            raise ConfigError(message)
        old = _KINDS.get(kind)
        # a cell of a notebook may define a class anew
        if old is not None and (old.__module__, old.__qualname__) != (cls.__module__, cls.__qualname__):
            message = (
                f"An edit's name must be its own. Got {kind!r}, which {old.__module__}.{old.__qualname__} "
                "has. Register it under another."
            )
            raise ConfigError(message)
        taken = set(cls.__dataclass_fields__) & {"kind", "version"}  # type: ignore[attr-defined]
        if taken:
            message = (
                f"Fields of an edit must not be called kind or version. Got {sorted(taken)} in "
                f"{cls.__name__}. Rename them."
            )
            raise ConfigError(message)
        try:
            typing.get_type_hints(cls)
        except (NameError, TypeError) as error:
            message = (
                f"The annotations of an edit must be known when it is registered. Got {cls.__name__}: "
                f"{error}. Import what they name at the top of the module."
            )
            raise ConfigError(message) from None
        cls.KIND = kind
        if "VERSION" not in vars(cls):
            cls.VERSION = 1
        _KINDS[kind] = cls
        return cls

    return decorated


def registered() -> dict[str, type[Edit]]:
    """Every edit that is known, by its name."""
    return dict(_KINDS)


@checked(acts=floats)
def counted(acts: Tensor, context: Context) -> Tensor:
    """Where an edit may write: all that an edit with an own idea of its positions has to respect.

    Args:
        acts: [samples, positions, width].
        context: What the edit is told.

    Returns:
        bool [samples, positions].
    """
    if context.counted is None:
        return torch.ones(acts.shape[:-1], dtype=torch.bool, device=acts.device)
    return context.counted


class AnotherSAE(ConfigError):
    """An edit that was made with an SAE which is not at hand."""


class Reader:
    """Edits of plain data. saes: those that they may need."""

    def __init__(self, saes: Iterable[SAE]) -> None:
        self._saes = list(saes)
        for sae in self._saes:
            if not isinstance(sae, SAE):
                message = f"saes must be SAEs. Got a {type(sae).__name__}. Pass [sae]."
                raise ConfigError(message)
        self._by_fingerprint: dict[str, SAE] | None = None

    def edit(self, data: Any, where: str) -> Edit:
        """One edit. Raises ConfigError where the data are those of none, AnotherSAE where its SAE is not
        there."""
        if not isinstance(data, Mapping) or not isinstance(data.get("kind"), str):
            message = f"{where} must be an object with a kind. Got {short(data)}. Write it by edit.to_dict()."
            raise ConfigError(message)
        kind = data["kind"]
        if kind not in _KINDS:
            message = (
                f"{where} must be of a registered kind ({', '.join(_KINDS)}). Got {short(kind)}. "
                f"{nearest(kind, _KINDS)}Import the module that registers it, or update saelab."
            )
            raise ConfigError(message)
        fields = {key: value for key, value in data.items() if key != "kind"}
        return config.from_dict(_KINDS[kind], fields, self._read)

    def _read(self, hint: Any, value: Any, where: str) -> Any:
        """See `saelab.config.from_dict`."""
        if hint is SAE:
            return self._sae(value, where)
        if hint is Tensor:
            return _tensor(value, where)
        wanted = Edit if hint is Intervention else hint
        if isinstance(wanted, type) and issubclass(wanted, Edit):
            found = self.edit(value, where)
            if not isinstance(found, wanted):
                message = f"{where} must be a {wanted.__name__}. Got a {type(found).__name__}. Pass another."
                raise ConfigError(message)
            return found
        if isinstance(value, float) and not math.isfinite(value):
            message = f"{where} must be finite. Got {value}. Write another number."
            raise ConfigError(message)
        return NotImplemented

    def _sae(self, data: Any, where: str) -> SAE:
        fingerprint = data.get("fingerprint") if isinstance(data, Mapping) else None
        if not isinstance(fingerprint, str):
            message = f"{where} must give the fingerprint of an SAE. Got {short(data)}. Write the edit again."
            raise ConfigError(message)
        if self._by_fingerprint is None:
            self._by_fingerprint = {sae.fingerprint(): sae for sae in self._saes}
        if fingerprint not in self._by_fingerprint:
            wanted = f"{fingerprint[:12]} at {short(data.get('hooks', 'an unknown hook point'))}"
            offered = [f"{name[:12]} at {_names(sae)}" for name, sae in self._by_fingerprint.items()]
            message = (
                f"{where} must be the SAE that the edit was made with, {wanted}. Got "
                f"{', '.join(offered) or 'no SAE'}. Pass it: load(..., saes=[sae])."
            )
            raise AnotherSAE(message)
        return self._by_fingerprint[fingerprint]


def _written(value: Any, where: str) -> Any:
    """See `saelab.config.to_dict`."""
    if isinstance(value, Edit):
        return value.to_dict()
    if isinstance(value, SAE):
        return {"fingerprint": value.fingerprint(), "hooks": _names(value), "d_sae": value.d_sae}
    if isinstance(value, Tensor):
        name = str(value.dtype).removeprefix("torch.")
        if name not in _DTYPES or value.layout != torch.strided or not value.numel():
            message = (
                f"{where} must be a dense tensor of {', '.join(_DTYPES)} that is not empty. Got "
                f"{value.dtype} {tuple(value.shape)}, {value.layout}. Convert it."
            )
            raise ConfigError(message)
        data = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return {"dtype": name, "shape": list(value.shape), "base64": base64.b64encode(data).decode()}
    return NotImplemented


def _tensor(data: Any, where: str) -> Tensor:
    try:
        fields = dict(data)
        kind, shape, text = _DTYPES[fields.pop("dtype")], fields.pop("shape"), fields.pop("base64")
        raw = bytearray(base64.b64decode(text, validate=True))
        sized = isinstance(shape, list) and len(shape) <= 8 and all(is_integer(n) and n > 0 for n in shape)
        if fields or not sized or math.prod(shape) * kind.itemsize != len(raw):
            raise ValueError
    except (KeyError, TypeError, ValueError):
        message = (
            f"{where} must be a tensor: a dtype ({', '.join(_DTYPES)}), a shape and the base64 of as many "
            f"bytes. Got {short(data)}. Write the edit again."
        )
        raise ConfigError(message) from None
    flat = torch.frombuffer(raw, dtype=torch.uint8)
    return (flat != 0 if kind is torch.bool else flat.view(kind)).reshape(shape)


def _names(sae: SAE) -> list[str]:
    known = sae.config.hook, *sae.config.hooks, sae.config.hook_out
    return [str(hook) for hook in dict.fromkeys(known) if hook is not None]


register("where")(Where)

__all__ = ["AnotherSAE", "AtOnePlace", "Edit", "Reader", "Where", "counted", "register", "registered"]
