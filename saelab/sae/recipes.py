"""The named architectures, as data: each recipe is a sparsifier, a dictionary, losses, rules and checked
options.

A new architecture is a new part and an entry of `RECIPES`, never a new SAE class. Losses and rules are named
here and live in `saelab.training`, so that loading an SAE needs no training code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn, TypeGuard

from saelab.sae.dictionaries import Dictionary, Free, Scaled
from saelab.sae.sparsifiers import (
    AbsTopK,
    BatchTopK,
    Gated,
    GroupBias,
    JumpReLU,
    ReLU,
    Sparsifier,
    TopAFA,
    TopK,
)
from saelab.types import ConfigError, HookPoint, nearest


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

    d_in: width of the activations. d_sae: number of latents. recipe: a name out of `recipes()`. hook: where
    the activations were read, or None. options: every option of the recipe (missing ones get the default).
    Raises ConfigError for anything out of range and for unknown recipes or options.
    """

    VERSION: ClassVar[int] = 1

    d_in: int
    d_sae: int
    recipe: str
    hook: HookPoint | None = None
    options: Mapping[str, Any] = Options()

    def __post_init__(self) -> None:
        for name in ("d_in", "d_sae"):
            value = getattr(self, name)
            if not _is_int(value) or not 1 <= value < 2**31:
                msg = f"{name} must be an integer in 1..2^31-1. Got {value!r}. Pass the width as an int."
                raise ConfigError(msg)
        if self.recipe not in RECIPES:
            msg = (
                f"The recipe must be one of {', '.join(RECIPES)}. Got {self.recipe!r}. "
                f"{nearest(str(self.recipe), RECIPES)}saelab.recipes() lists them."
            )
            raise ConfigError(msg)
        if self.hook is not None:
            object.__setattr__(self, "hook", HookPoint.of(self.hook))
        known = RECIPES[self.recipe].options
        for name in self.options:
            if name not in known:
                msg = (
                    f"The recipe {self.recipe!r} has no option {name!r}. {nearest(str(name), known)}"
                    f"Its options are {', '.join(known)}."
                )
                raise ConfigError(msg)
        given = {name: self.options.get(name, option.default) for name, option in known.items()}
        # JSON knows no tuples, and options must be hashable
        values = Options({name: tuple(v) if isinstance(v, list) else v for name, v in given.items()})
        object.__setattr__(self, "options", values)
        for name, option in known.items():
            option.check(name, values[name], self)


@dataclass(frozen=True)
class Option:
    """One option of a recipe: its default, its check (name, value, config; raises ConfigError) and a line
    about it."""

    default: Any
    check: Callable[[str, Any, SAEConfig], None]
    line: str


@dataclass(frozen=True)
class Recipe:
    """A named architecture.

    line: one line for people. sparsifier, dictionary: config -> part. losses, rules: config -> names in
    `saelab.training.losses.LOSSES` and `saelab.training.rules.RULES`, in the order in which they apply.
    """

    line: str
    options: Mapping[str, Option]
    sparsifier: Callable[[SAEConfig], Sparsifier]
    losses: Callable[[SAEConfig], tuple[str, ...]]
    rules: Callable[[SAEConfig], tuple[str, ...]]
    dictionary: Callable[[SAEConfig], Dictionary] = lambda c: Free(c.d_sae, c.d_in)


def recipe(
    name: str, *, d_in: int, d_sae: int, hook: HookPoint | str | None = None, **options: Any
) -> SAEConfig:
    """The configuration of a named architecture, its options checked and completed by their defaults.

    >>> recipe("topk", d_in=512, d_sae=8192, k=32).options["k"]
    32

    Raises ConfigError for an unknown recipe or option (naming the nearest) and for values out of range.
    """
    return SAEConfig(d_in, d_sae, name, None if hook is None else HookPoint.of(hook), options)


def recipes() -> dict[str, str]:
    """Name -> one line, for every recipe."""
    return {name: entry.line for name, entry in RECIPES.items()}


def recipe_options(name: str) -> dict[str, str]:
    """Option -> one line with its default, for the recipe `name`."""
    if name not in RECIPES:
        hint = nearest(str(name), RECIPES)
        message = f"The recipe must be one of {', '.join(RECIPES)}. Got {name!r}. {hint}See saelab.recipes()."
        raise ConfigError(message)
    return {
        key: f"{option.line} Default: {option.default!r}." for key, option in RECIPES[name].options.items()
    }


def _is_int(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _whole(
    low: int, high: str | None = None, *, optional: bool = False
) -> Callable[[str, Any, SAEConfig], None]:
    """An integer from `low` to the config's field `high`."""

    def check(name: str, value: Any, config: SAEConfig) -> None:
        if value is None and optional:
            return
        top = 2**63 if high is None else getattr(config, high)
        if _is_int(value) and low <= value <= top:
            return
        if high is None:
            msg = f"{name} must be an integer >= {low}. Got {value!r}. Pass {name}={low} or more."
            raise ConfigError(msg)
        remedy = "Pass a whole number." if not _is_int(value) else f"Pass {name}>={low}."
        if _is_int(value) and value > top:
            remedy = f"Pass {name}<={top} or widen the SAE."
        msg = f"{name} must be between {low} and {high}={top}. Got {value!r}. {remedy}"
        raise ConfigError(msg)

    return check


def _real(low: float, high: float | None = None) -> Callable[[str, Any, SAEConfig], None]:
    def check(name: str, value: Any, config: SAEConfig) -> None:
        good = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not good or not low <= value <= (float("inf") if high is None else high) or value == float("inf"):
            upper = "finite" if high is None else f"at most {high}"
            msg = f"{name} must be a number of at least {low} and {upper}. Got {value!r}. Pass one."
            raise ConfigError(msg)

    return check


def _groups(name: str, value: Any, config: SAEConfig) -> None:
    if value is None:
        return
    good = isinstance(value, tuple) and all(_is_int(size) and size >= 1 for size in value)
    if not good or sum(value) != config.d_sae:
        msg = (
            f"{name} must be sizes of at least 1 that add up to d_sae={config.d_sae}, or None. Got "
            f"{value!r}. Pass a list like [d_sae // 4, d_sae - d_sae // 4]."
        )
        raise ConfigError(msg)


def _positive(name: str, value: Any, config: SAEConfig) -> None:
    _real(0)(name, value, config)
    if value == 0:
        msg = f"{name} must be greater than 0. Got {value!r}. Pass a small number instead."
        raise ConfigError(msg)


def _positive_share(name: str, value: Any, config: SAEConfig) -> None:
    _real(0, 1)(name, value, config)
    _positive(name, value, config)


def _flag(name: str, value: Any, config: SAEConfig) -> None:
    if not isinstance(value, bool):
        msg = f"{name} must be True or False. Got {value!r}. Pass a bool."
        raise ConfigError(msg)


def _one_of(*choices: str) -> Callable[[str, Any, SAEConfig], None]:
    def check(name: str, value: Any, config: SAEConfig) -> None:
        if value not in choices:
            hint = nearest(str(value), choices)
            raise ConfigError(
                f"{name} must be one of {', '.join(map(repr, choices))}. Got {value!r}. {hint}".strip()
            )

    return check


_COMMON = {
    "normalise": Option(
        "scalar",
        _one_of("none", "scalar"),
        "'scalar' divides inputs by their mean Euclidean norm, fixed when training starts; 'none' takes "
        "them raw.",
    ),
    "apply_b_dec_to_input": Option(
        True, _flag, "Whether b_dec is subtracted from the input before encoding."
    ),
    "tied_init": Option(True, _flag, "Whether W_enc starts as the transpose of W_dec (else independent)."),
    "b_dec_init": Option(
        "mean",
        _one_of("mean", "geometric_median", "zeros"),
        "Where b_dec starts: mean or geometric median of the first activations, or zeros.",
    ),
}

_L1_WARMUP = Option(0.05, _real(0, 1), "Share of the run over which the L1 weight rises from 0.")

_DEAD = {
    "dead_after": Option(
        None,
        _whole(1, optional=True),
        "Rows without firing after which a latent counts as dead; None means a tenth of the "
        "run, at most 10M.",
    ),
}

_REVIVAL = {
    "aux_coefficient": Option(1 / 32, _real(0), "Weight of the auxk loss; 0 turns it off."),
    "k_aux": Option(
        None, _whole(1, "d_sae", optional=True), "Dead latents used in each row; None means d_in / 2."
    ),
    **_DEAD,
}

_BATCH = {
    "k": Option(32, _whole(1, "d_sae"), "Latents kept in each row, on average over a training batch."),
    "threshold_decay": Option(
        0.99,
        _real(0, 0.999999),
        "Weight of the past in the moving average of the inference threshold, a step.",
    ),
}


def _with_auxk(*losses: str) -> Callable[[SAEConfig], tuple[str, ...]]:
    """These losses, and auxk unless its coefficient is 0."""
    return lambda c: (*losses, "auxk") if c.options["aux_coefficient"] else losses


RECIPES: dict[str, Recipe] = {
    "topk": Recipe(
        line="TopK: the k largest pre-activations of a row, dead latents revived by auxk (Gao et al. 2024).",
        options={
            "k": Option(32, _whole(1, "d_sae"), "Latents kept in each row."),
            **_REVIVAL,
            **_COMMON,
        },
        sparsifier=lambda c: TopK(c.options["k"]),
        losses=_with_auxk("mse"),
        rules=lambda c: ("unit_norm",),
    ),
    "batchtopk": Recipe(
        line="BatchTopK: k a row on average over a batch, a learned threshold afterwards (Bussmann 2024).",
        options={**_BATCH, **_REVIVAL, **_COMMON},
        sparsifier=lambda c: BatchTopK(c.options["k"], c.options["threshold_decay"]),
        losses=_with_auxk("mse"),
        rules=lambda c: ("unit_norm",),
    ),
    "matryoshka": Recipe(
        line="Matryoshka: BatchTopK whose nested prefixes each reconstruct alone (Bussmann et al. 2025).",
        options={
            "groups": Option(
                None,
                _groups,
                "Latents that each prefix adds to the one before; None means 1/16, 1/16, 1/8, 1/4, 1/2.",
            ),
            "bias_level": Option(
                False,
                _flag,
                "Whether the decoder bias alone counts as a prefix, as in the code of Bussmann et al.; "
                "else only the groups, as in dictionary_learning.",
            ),
            "random_prefixes": Option(
                False, _flag, "Whether inner prefixes are drawn anew each step, P(length) ~ 1 / length."
            ),
            **_BATCH,
            **_REVIVAL,
            **_COMMON,
        },
        sparsifier=lambda c: BatchTopK(c.options["k"], c.options["threshold_decay"]),
        losses=_with_auxk("prefixes"),
        rules=lambda c: ("unit_norm",),
    ),
    "abs_topk": Recipe(
        line="AbsTopK: the k largest magnitudes of a row with their signs, two poles a latent (2510.00404).",
        options={
            "k": Option(32, _whole(1, "d_sae"), "Latents kept in each row."),
            **_REVIVAL,
            **_COMMON,
        },
        sparsifier=lambda c: AbsTopK(c.options["k"]),
        losses=_with_auxk("mse"),
        rules=lambda c: ("unit_norm",),
    ),
    "top_afa": Recipe(
        line="top-AFA: as many latents as make a row's code as long as its input (2503.24277).",
        options={
            "afa": Option(1 / 32, _real(0), "Weight of the squared difference of these lengths."),
            **_REVIVAL,
            **_COMMON,
        },
        sparsifier=lambda c: TopAFA(),
        losses=_with_auxk("mse", "afa"),
        rules=lambda c: ("unit_norm",),
    ),
    "jumprelu": Recipe(
        line="JumpReLU: learned thresholds, under an L0 or tanh penalty (Rajamanoharan et al. 2024b).",
        options={
            "penalty": Option(
                "l0",
                _one_of("l0", "tanh"),
                "'l0': the number of codes, decoder rows keep unit norm (Rajamanoharan 2024); 'tanh': "
                "sum_j tanh(c f_j ||W_dec_j||), decoder norms are free (Anthropic, January 2025).",
            ),
            "l0": Option(1e-3, _real(0), "Weight of the penalty, relative to the normalised squared error."),
            "l0_warmup": Option(0.1, _real(0, 1), "Share of the run over which that weight rises from 0."),
            "tanh_scale": Option(
                4.0, _real(0), "c of the tanh penalty, for inputs scaled to norm sqrt(d_in)."
            ),
            "bandwidth": Option(
                0.03, _positive, "Width of the box about the threshold that gives gradients, in units of pre."
            ),
            "threshold": Option(0.03, _positive, "Where every threshold starts, in units of pre."),
            **_REVIVAL,
            **_COMMON,
        },
        sparsifier=lambda c: JumpReLU(c.d_sae, c.options["threshold"], c.options["bandwidth"]),
        losses=lambda c: _with_auxk("mse", c.options["penalty"])(c),
        rules=lambda c: ("unit_norm",) if c.options["penalty"] == "l0" else (),
    ),
    "gba": Recipe(
        line="Group bias adaptation: feedback, not gradients, sets how often each latent fires (2506.14002).",
        options={
            "groups": Option(10, _whole(1), "Equal groups of latents, each with a target frequency."),
            "high": Option(0.5, _positive_share, "Target frequency of the first group."),
            "low": Option(1e-3, _positive_share, "Target frequency of the last group; geometric between."),
            "rate": Option(0.01, _positive, "Share of the largest pre-activation by which a bias moves."),
            "every": Option(50, _whole(1), "Steps between two moves of the biases."),
            "never": Option(1e-6, _real(0, 1), "Share of rows below which a latent's bias rises again."),
            "magnitude": Option(
                "pre",
                _one_of("pre", "biased"),
                "What a latent that is on gives: 'pre', its input without the bias, or 'biased', with it.",
            ),
            **_DEAD,
            **{name: option for name, option in _COMMON.items() if name != "tied_init"},
        },
        sparsifier=lambda c: GroupBias.geometric(
            c.d_sae,
            **{
                key: c.options[key]
                for key in ("groups", "high", "low", "rate", "every", "never", "magnitude")
            },
        ),
        losses=lambda c: ("mse",),
        rules=lambda c: ("tied",),
        dictionary=lambda c: Scaled(c.d_sae, c.d_in),
    ),
    "gated": Recipe(
        line="Gated: one path chooses latents, another their size (Rajamanoharan et al. 2024a).",
        options={
            "l1": Option(
                0.3,
                _real(0),
                "Weight of the L1 penalty on the gate, relative to the normalised squared error.",
            ),
            "l1_warmup": _L1_WARMUP,
            **_REVIVAL,
            **_COMMON,
        },
        sparsifier=lambda c: Gated(c.d_sae),
        losses=_with_auxk("mse", "gate"),
        rules=lambda c: ("unit_norm",),
    ),
    "relu": Recipe(
        line="ReLU with an L1 penalty on codes times decoder norms, or on codes (Bricken et al. 2023).",
        options={
            "l1": Option(
                0.1, _real(0), "Weight of the L1 penalty, relative to the normalised squared error."
            ),
            "l1_warmup": _L1_WARMUP,
            "decoder_norm_weighted": Option(
                True,
                _flag,
                "True: the penalty is sum_j f_j ||W_dec_j|| and decoder norms are free (Anthropic, "
                "April 2024); "
                "False: sum_j f_j, and decoder rows keep unit norm.",
            ),
            **_DEAD,
            **_COMMON,
        },
        sparsifier=lambda c: ReLU(),
        losses=lambda c: ("mse", "l1"),
        rules=lambda c: () if c.options["decoder_norm_weighted"] else ("unit_norm",),
    ),
}
