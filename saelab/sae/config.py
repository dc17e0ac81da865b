"""What an SAE is, as plain data: the name of a recipe, its sizes and options, checked.

This module knows no architecture: `saelab.sae.architectures`, and whoever adds one, fills `RECIPES` by
`register`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn

from saelab.config import integer, is_integer, is_number
from saelab.sae.dictionaries import Archetypal, Dictionary, Free, Frozen
from saelab.sae.sparsifiers import Sparsifier
from saelab.types import ConfigError, HookPoint, nearest, short


@dataclass(frozen=True)
class Option:
    """One option of a recipe."""

    default: Any
    check: Callable[[str, Any, SAEConfig], None]
    """(name, value, config) -> None; raises ConfigError."""
    line: str
    """What it does, for people."""
    structural: bool = False
    """Whether it is part of what an SAE computes, beside k: one that goes on from another has the same."""

    def __repr__(self) -> str:
        return f"Option({short(self.default, 60)}: {short(self.line, 80)})"


def chosen_dictionary(config: SAEConfig) -> Dictionary:
    """Free decoder rows, frozen or archetypal ones, as the options say."""
    options = config.options
    if options["dictionary"] == "free":
        return Free(config.d_sae, config.width_out)
    if options["dictionary"] == "frozen":
        return Frozen(config.d_sae, config.width_out)
    candidates = options["candidates"] or min(config.d_sae, 4096)
    return Archetypal(config.d_sae, config.width_out, candidates, options["delta"], options["mixed"])


@dataclass(frozen=True)
class Recipe:
    """A named architecture: the parts of which an SAE is built, and how it is trained."""

    line: str
    """What it is, for people."""
    options: Mapping[str, Option]
    sparsifier: Callable[[SAEConfig], Sparsifier]
    losses: Callable[[SAEConfig], tuple[str, ...]]
    """Names in `saelab.training.LOSSES`."""
    rules: Callable[[SAEConfig], tuple[str, ...]]
    """Names in `saelab.training.RULES`, in the order in which they apply."""
    dictionary: Callable[[SAEConfig], Dictionary] = chosen_dictionary
    title: Callable[[SAEConfig], str] = lambda c: ""
    """What it is called for people, "" for its name."""
    transcodes: bool = False
    """Whether the target is another activation than the input."""
    skip: bool = False
    """Whether a linear map of the input is added to the output."""
    divides: tuple[str, ...] = ()
    """What ranks may divide among them in training: "data", "latents"."""
    fitted: bool = False
    """Whether it is fitted in closed form or by scikit-learn (`saelab.training.classical`), not trained."""

    def __repr__(self) -> str:
        return f"Recipe({short(self.line, 100)}; {len(self.options)} options)"


RECIPES: dict[str, Recipe] = {}
"""Every recipe by its name."""


def register(name: str, entry: Recipe) -> None:
    """Add a recipe, so that `saelab.recipe(name, ...)` makes configs of it.

    Args:
        name: An identifier.
        entry: The recipe.

    Raises:
        ConfigError: The name is no identifier, or is taken.
    """
    if not isinstance(name, str) or not name.isidentifier():
        message = f"A recipe's name must be an identifier. Got {name!r}. Pass e.g. 'my_topk'."
        raise ConfigError(message)
    if name in RECIPES:
        message = f"A recipe's name must be new. Got {name!r}, which is taken. Choose another."
        raise ConfigError(message)
    RECIPES[name] = entry


class Options(dict[str, Any]):
    """A dict that refuses changes, so that a config cannot be altered after it was checked."""

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        msg = "The options of a config must not change. Got an assignment. Make a new config by recipe(...)."
        raise ConfigError(msg)

    __setitem__ = __delitem__ = update = pop = popitem = clear = setdefault = __ior__ = _refuse  # type: ignore[assignment]

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(tuple(sorted(self.items(), key=lambda item: item[0])))

    def __reduce__(self) -> tuple[Any, ...]:
        return Options, (dict(self),)


@dataclass(frozen=True)
class SAEConfig:
    """What an SAE is, as plain data; `saelab.config.to_dict` and `from_dict` take it through JSON.

    Args:
        d_in: Width of the activations.
        d_sae: Number of latents.
        recipe: A name out of `recipes()`.
        hook: Where the activations were read, or None.
        options: Every option of the recipe (missing ones get the default).
        d_out: Width of a transcoder's target, where it is another activation than the input.
        hook_out: Where that target was read.
        hooks: The points whose activations a crosscoder or a cross-layer transcoder reads one beside the
            other, or ().

    Raises:
        ConfigError: Anything is out of range, or recipe or options are unknown.
    """

    VERSION: ClassVar[int] = 1

    d_in: int
    d_sae: int
    recipe: str
    hook: HookPoint | None = None
    options: Mapping[str, Any] = Options()
    d_out: int | None = None
    hook_out: HookPoint | None = None
    hooks: tuple[HookPoint, ...] = ()

    def __post_init__(self) -> None:
        for name in ("d_in", "d_sae", "d_out"):
            value = getattr(self, name)
            if name != "d_out" or value is not None:
                object.__setattr__(self, name, integer(name, value, 1, 2**31 - 1))
        if not isinstance(self.recipe, str) or self.recipe not in RECIPES:
            msg = (
                f"The recipe must be one of {', '.join(RECIPES)}. Got {self.recipe!r}. "
                f"{nearest(str(self.recipe), RECIPES)}saelab.recipes() lists them."
            )
            raise ConfigError(msg)
        for name in ("hook", "hook_out"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, HookPoint.of(getattr(self, name)))
        object.__setattr__(self, "hooks", tuple(HookPoint.of(hook) for hook in self.hooks))
        self._check_ends(self.entry)
        known = self.entry.options
        for name in self.options:
            if name not in known:
                msg = (
                    f"The recipe {self.recipe!r} has no option {name!r}. {nearest(str(name), known)}"
                    f"Its options are {', '.join(known)}."
                )
                raise ConfigError(msg)
        given = {name: self.options.get(name, option.default) for name, option in known.items()}
        values = Options({name: _hashable(value) for name, value in given.items()})
        object.__setattr__(self, "options", values)
        for name, option in known.items():
            option.check(name, values[name], self)

    def __repr__(self) -> str:
        """The recipe, the sizes, and what differs from its defaults."""
        told = [f"{self.recipe!r}", f"d_in={self.d_in}", f"d_sae={self.d_sae}"]
        named = {"hook": self.hook, "d_out": self.d_out, "hook_out": self.hook_out, "hooks": self.hooks}
        given = {name: value for name, value in self.options.items() if value != self._default(name)}
        for name, value in {**{n: v for n, v in named.items() if v}, **given}.items():
            plain = list(map(str, value)) if name == "hooks" else value
            told.append(f"{name}={short(str(plain) if isinstance(plain, HookPoint) else plain, 60)}")
        text = ", ".join(told)
        return f"SAEConfig({text if len(text) <= 200 else text[:199] + '…'})"

    def _default(self, option: str) -> Any:
        return _hashable(self.entry.options[option].default)

    @property
    def entry(self) -> Recipe:
        """The recipe itself."""
        return RECIPES[self.recipe]

    @property
    def width_out(self) -> int:
        """Width of the reconstruction."""
        return self.d_in if self.d_out is None else self.d_out

    @property
    def layers(self) -> int:
        """How many layers a cross-layer transcoder reads and writes, each by latents of its own; else 1."""
        return self.options.get("layers", 1)

    @property
    def d_read(self) -> int:
        """Width of what one latent reads."""
        return self.d_in // self.layers

    @property
    def widths(self) -> tuple[int, ...]:
        """Widths of the activations that a crosscoder or a cross-layer transcoder reads side by side, else
        ()."""
        if "layers" in self.options:
            return (self.d_read,) * self.layers
        return tuple(self.options.get("widths", ()))

    @property
    def widths_out(self) -> tuple[int, ...]:
        """Widths of the activations that it stands for, side by side; () of one."""
        return self.widths if self.d_out is None else (self.d_out // self.layers,) * len(self.widths)

    @property
    def hooks_out(self) -> tuple[HookPoint, ...]:
        """The points that a cross-layer transcoder writes to, or ()."""
        return tuple(HookPoint.of(hook) for hook in self.options.get("hooks_out", ()))

    @property
    def title(self) -> str:
        """The recipe's name for people, with what an option makes of it."""
        return self.entry.title(self) or self.recipe

    def _check_ends(self, entry: Recipe) -> None:
        if entry.transcodes != (self.d_out is not None) or (
            self.hook_out is not None and not entry.transcodes
        ):
            need = "needs d_out, the width of its target" if entry.transcodes else "has no d_out or hook_out"
            remedy = "Pass d_out=..." if entry.transcodes else "Use 'transcoder', or leave them out."
            msg = f"The recipe {self.recipe!r} {need}. Got d_out={self.d_out!r}. {remedy}"
            raise ConfigError(msg)
        if self.hooks and not {"widths", "layers"} & set(entry.options):
            names = [str(hook) for hook in self.hooks]
            msg = f"The recipe {self.recipe!r} reads one hook. Got {names}. Pass hook=, or use 'crosscoder'."
            raise ConfigError(msg)


def recipe(
    name: str,
    *,
    d_in: int,
    d_sae: int,
    hook: HookPoint | str | None = None,
    d_out: int | None = None,
    hook_out: HookPoint | str | None = None,
    hooks: Sequence[HookPoint | str] = (),
    **options: Any,
) -> SAEConfig:
    """The configuration of a named architecture, its options checked and completed by their defaults.

    >>> recipe("topk", d_in=512, d_sae=8192, k=32).options["k"]
    32

    Args:
        name: One of `saelab.recipes()`.
        d_in: Width of the activations that it reads.
        d_sae: How many latents.
        hook: The hook point that it reads.
        d_out: Width of a transcoder's target.
        hook_out: The hook point of a transcoder's target.
        hooks: What a crosscoder reads.
        options: Those of the architecture; `saelab.sae.recipe_options(name)` lists them.

    Raises:
        ConfigError: An unknown recipe or option (naming the nearest), or a value out of range.
    """
    if not isinstance(hooks, Iterable):
        message = f"hooks must be a list of hook points. Got {short(hooks)}. Pass the names of two or more."
        raise ConfigError(message)
    at = None if hook is None else HookPoint.of(hook)
    out = None if hook_out is None else HookPoint.of(hook_out)
    return SAEConfig(d_in, d_sae, name, at, options, d_out, out, tuple(HookPoint.of(h) for h in hooks))


def recipes() -> dict[str, str]:
    """Name -> one line, for every recipe."""
    return {name: entry.line for name, entry in RECIPES.items()}


def recipe_options(name: str) -> dict[str, str]:
    """Option -> one line with its default, for a recipe.

    Raises:
        ConfigError: There is no such recipe.
    """
    if not isinstance(name, str) or name not in RECIPES:
        hint = nearest(str(name), RECIPES)
        message = f"The recipe must be one of {', '.join(RECIPES)}. Got {name!r}. {hint}See saelab.recipes()."
        raise ConfigError(message)
    return {
        key: f"{option.line} Default: {option.default!r}." for key, option in RECIPES[name].options.items()
    }


def _hashable(value: Any) -> Any:
    """JSON knows no tuples, options must be hashable, and NumPy's numbers are not Python's."""
    if isinstance(value, list | tuple):
        return tuple(_hashable(item) for item in value)
    if is_integer(value):
        return int(value)
    return float(value) if is_number(value) else value
