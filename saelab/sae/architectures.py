"""The named architectures, as data: each recipe is a sparsifier, a dictionary, losses, rules and checked
options.

A new architecture is a new part and an entry of `RECIPES`, never a new SAE class. Losses and rules are named
here and live in `saelab.training`, so that loading an SAE needs no training code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from saelab.sae.batchwise import BatchTopK, FeatureChoice, GroupBias
from saelab.sae.dictionaries import Archetypal, Dictionary, Free, Joint, Scaled
from saelab.sae.options import (
    Option,
    flag,
    groups,
    one_of,
    positive,
    positive_share,
    real,
    resampling,
    sigma,
    start_of_k,
    whole,
    widths,
)
from saelab.sae.sparsifiers import (
    AbsTopK,
    Gated,
    Gaussian,
    GroupMax,
    JumpReLU,
    MatchingPursuit,
    ReLU,
    Sparsifier,
    TopAFA,
    TopK,
)

if TYPE_CHECKING:
    from saelab.sae.recipes import SAEConfig


@dataclass(frozen=True)
class Recipe:
    """A named architecture.

    line: one line for people. sparsifier, dictionary: config -> part. losses, rules: config -> names in
    `saelab.training.losses.LOSSES` and `saelab.training.rules.RULES`, in the order in which they apply.
    title: what it is called for people, "" for its name. transcodes: whether the target is another activation
    than the input. skip: whether a linear map of the input is added to the output.
    """

    line: str
    options: Mapping[str, Option]
    sparsifier: Callable[[SAEConfig], Sparsifier]
    losses: Callable[[SAEConfig], tuple[str, ...]]
    rules: Callable[[SAEConfig], tuple[str, ...]]
    dictionary: Callable[[SAEConfig], Dictionary] = lambda c: _dictionary(c)
    title: Callable[[SAEConfig], str] = lambda c: ""
    transcodes: bool = False
    skip: bool = False


_NORMALISE = Option(
    "scalar",
    one_of("none", "scalar", "layernorm", "zscore", "sphere"),
    "'scalar' divides inputs by their mean Euclidean norm, fixed when training starts; 'layernorm' centres "
    "each row and divides it by its own norm, 'zscore' by its standard deviation plus 1e-5, 'sphere' brings "
    "it to norm sqrt(d_in) uncentred, all undone by the decoder; 'none' takes them raw.",
)
_NORMALISE_ONE = Option("scalar", one_of("none", "scalar"), _NORMALISE.line)

_START = {
    "b_dec_init": Option(
        "mean",
        one_of("mean", "geometric_median", "zeros"),
        "Where b_dec starts: mean or geometric median of the first activations, or zeros.",
    ),
}

_ENCODER = {
    "normalise": _NORMALISE,
    "apply_b_dec_to_input": Option(True, flag, "Whether b_dec is subtracted from the input before encoding."),
    "tied_init": Option(True, flag, "Whether W_enc starts as the transpose of W_dec (else independent)."),
    **_START,
}


def _decoder(default: str = "free") -> dict[str, Option]:
    return {
        "dictionary": Option(
            default,
            one_of("free", "archetypal"),
            "'free' decoder rows, or 'archetypal': near the convex hull of k-means centres of the data.",
        ),
        "candidates": Option(
            None,
            whole(1, optional=True),
            "Centres of an archetypal dictionary; None means d_sae, at most 4096.",
        ),
        "delta": Option(1.0, real(0), "How far from the hull archetypal rows may lie, in normalised units."),
    }


_COMMON = {**_ENCODER, **_decoder()}

_L1_WARMUP = Option(0.05, real(0, 1), "Share of the run over which the L1 weight rises from 0.")

_P_END = Option(
    1.0, positive_share, "Exponent that the penalty ends with; below 1 it falls from 1 (p-annealing)."
)

_L1 = {
    "l1": Option(0.1, real(0), "Weight of the L1 penalty, relative to the normalised squared error."),
    "l1_warmup": _L1_WARMUP,
    "p_end": _P_END,
}

_DEAD = {
    "dead_after": Option(
        None,
        whole(1, optional=True),
        "Rows without firing after which a latent counts as dead; None means a tenth of the "
        "run, at most 10M.",
    ),
}

_RESAMPLE = {
    "resample_every": Option(
        None,
        resampling,
        "Steps between two resamplings of dead latents, in the first half of the run, or None.",
    ),
    "resample_scale": Option(
        1.0,
        positive,
        "Norm of a resampled encoder column, as a share of the mean norm of the others; 0.2 in Bricken et "
        "al., for latents that need not be among the largest.",
    ),
}

_REVIVAL = {
    "aux_coefficient": Option(1 / 32, real(0), "Weight of the auxk loss; 0 turns it off."),
    "k_aux": Option(
        None, whole(1, "d_sae", optional=True), "Dead latents used in each row; None means d_in / 2."
    ),
    **_RESAMPLE,
    **_DEAD,
}

_K_SCHEDULE = {
    "k_start": Option(None, start_of_k, "k at the start of the run, from which it falls to k; None means k."),
    "k_anneal": Option(0.5, real(0, 1), "Share of the run over which it falls, linearly."),
}

_ROW = {"k": Option(32, whole(1, "d_sae"), "Latents kept in each row."), **_K_SCHEDULE}

_THRESHOLD = {
    "threshold_decay": Option(
        0.99,
        real(0, 0.999999),
        "Weight of the past in the moving average of the inference threshold, a step.",
    ),
}

_BATCH = {
    "k": Option(32, whole(1, "d_sae"), "Latents kept in each row, on average over a training batch."),
    **_K_SCHEDULE,
    **_THRESHOLD,
}

_ZIPF = {
    "alpha": Option(1.0, real(0), "Exponent of the Zipf law (rank + bump)^-alpha of latents; 0: uniform."),
    "bump": Option(3.0, real(0), "Shift of the ranks in it."),
}


def _dictionary(config: SAEConfig) -> Dictionary:
    options = config.options
    if options["dictionary"] == "free":
        return Free(config.d_sae, config.width_out)
    candidates = options["candidates"] or min(config.d_sae, 4096)
    return Archetypal(config.d_sae, config.width_out, candidates, options["delta"])


def _rules(*names: str) -> Callable[[SAEConfig], tuple[str, ...]]:
    """These rules, and those that options turn on."""

    def rules(config: SAEConfig) -> tuple[str, ...]:
        schedule = ("anneal_k",) if config.options.get("k_start") else ()
        revival = ("resample",) if config.options.get("resample_every") else ()
        return (*schedule, *names, *revival)

    return rules


def _with_auxk(*losses: str) -> Callable[[SAEConfig], tuple[str, ...]]:
    """These losses, and auxk unless its coefficient is 0."""
    return lambda c: (*losses, "auxk") if c.options["aux_coefficient"] else losses


def _transcoder(line: str, skip: bool = False) -> Recipe:
    return Recipe(
        line=line,
        options={
            **_BATCH,
            "sparsity": Option(
                "topk",
                one_of("topk", "batchtopk", "l1"),
                "Whether rows keep k each, or k on average over a batch, or an L1 penalty decides.",
            ),
            **_L1,
            **_REVIVAL,
            "normalise": _NORMALISE_ONE,
            **_START,
            **_decoder(),
        },
        sparsifier=lambda c: {
            "topk": lambda: TopK(c.options["k"]),
            "batchtopk": lambda: BatchTopK(c.options["k"], c.options["threshold_decay"]),
            "l1": ReLU,
        }[c.options["sparsity"]](),
        losses=lambda c: _with_auxk("mse", *(["l1"] if c.options["sparsity"] == "l1" else []))(c),
        rules=lambda c: _rules(*([] if c.options["sparsity"] == "l1" else ["unit_norm"]))(c),
        transcodes=True,
        skip=skip,
    )


RECIPES: dict[str, Recipe] = {
    "topk": Recipe(
        line="TopK: the k largest pre-activations of a row, dead latents revived by auxk (Gao et al. 2024).",
        options={
            **_ROW,
            "multi_topk": Option(
                0.0, real(0), "Weight of the error of keeping 4 k latents; 1/8 in Gao et al., 0 turns it off."
            ),
            **_REVIVAL,
            **_COMMON,
        },
        sparsifier=lambda c: TopK(c.options["k"]),
        losses=lambda c: _with_auxk("mse", *(["multi_topk"] if c.options["multi_topk"] else []))(c),
        rules=_rules("unit_norm"),
    ),
    "batchtopk": Recipe(
        line="BatchTopK: k a row on average over a batch, a learned threshold afterwards (Bussmann 2024).",
        options={**_BATCH, **_REVIVAL, **_COMMON},
        sparsifier=lambda c: BatchTopK(c.options["k"], c.options["threshold_decay"]),
        losses=_with_auxk("mse"),
        rules=_rules("unit_norm"),
    ),
    "matryoshka": Recipe(
        line="Matryoshka: BatchTopK whose nested prefixes each reconstruct alone (Bussmann et al. 2025).",
        options={
            "groups": Option(
                None,
                groups,
                "Latents that each prefix adds to the one before; None means 1/16, 1/16, 1/8, 1/4, 1/2.",
            ),
            "bias_level": Option(
                False,
                flag,
                "Whether the decoder bias alone counts as a prefix, as in the code of Bussmann et al.; "
                "else only the groups, as in dictionary_learning.",
            ),
            "random_prefixes": Option(
                False, flag, "Whether inner prefixes are drawn anew each step, P(length) ~ 1 / length."
            ),
            **_BATCH,
            **_REVIVAL,
            **_COMMON,
        },
        sparsifier=lambda c: BatchTopK(c.options["k"], c.options["threshold_decay"]),
        losses=_with_auxk("prefixes"),
        rules=_rules("unit_norm"),
    ),
    "abs_topk": Recipe(
        line="AbsTopK: the k largest magnitudes of a row with their signs, two poles a latent (2510.00404).",
        options={
            **_ROW,
            **_REVIVAL,
            **_COMMON,
        },
        sparsifier=lambda c: AbsTopK(c.options["k"]),
        losses=_with_auxk("mse"),
        rules=_rules("unit_norm"),
    ),
    "top_afa": Recipe(
        line="top-AFA: as many latents as make a row's code as long as its input (2503.24277).",
        options={
            "afa": Option(1 / 32, real(0), "Weight of the squared difference of these lengths."),
            **_REVIVAL,
            **_COMMON,
        },
        sparsifier=lambda c: TopAFA(),
        losses=_with_auxk("mse", "afa"),
        rules=_rules("unit_norm"),
    ),
    "jumprelu": Recipe(
        line="JumpReLU: learned thresholds, under an L0 or tanh penalty (Rajamanoharan et al. 2024b).",
        options={
            "penalty": Option(
                "l0",
                one_of("l0", "tanh"),
                "'l0': the number of codes, decoder rows keep unit norm (Rajamanoharan 2024); 'tanh': "
                "sum_j tanh(c f_j ||W_dec_j||), decoder norms are free (Anthropic, January 2025).",
            ),
            "l0": Option(1e-3, real(0), "Weight of the penalty, relative to the normalised squared error."),
            "l0_warmup": Option(0.1, real(0, 1), "Share of the run over which that weight rises from 0."),
            "tanh_scale": Option(
                4.0, real(0), "c of the tanh penalty, for inputs scaled to norm sqrt(d_in)."
            ),
            "bandwidth": Option(
                0.03, positive, "Width of the box about the threshold that gives gradients, in units of pre."
            ),
            "threshold": Option(0.03, positive, "Where every threshold starts, in units of pre."),
            "log_threshold": Option(
                True,
                flag,
                "Whether thresholds are learned as logarithms; else as they are, 0 or less is ReLU.",
            ),
            **_REVIVAL,
            "resample_scale": replace(_RESAMPLE["resample_scale"], default=0.2),
            **_COMMON,
        },
        sparsifier=lambda c: JumpReLU(
            c.d_sae, *(c.options[key] for key in ("threshold", "bandwidth", "log_threshold"))
        ),
        losses=lambda c: _with_auxk("mse", c.options["penalty"])(c),
        rules=lambda c: _rules(*(["unit_norm"] if c.options["penalty"] == "l0" else []))(c),
    ),
    "gba": Recipe(
        line="Group bias adaptation: feedback, not gradients, sets how often each latent fires (2506.14002).",
        options={
            "groups": Option(10, whole(1), "Equal groups of latents, each with a target frequency."),
            "high": Option(0.5, positive_share, "Target frequency of the first group."),
            "low": Option(1e-3, positive_share, "Target frequency of the last group; geometric between."),
            "rate": Option(0.01, positive, "Share of the largest pre-activation by which a bias moves."),
            "every": Option(50, whole(1), "Steps between two moves of the biases."),
            "never": Option(1e-6, real(0, 1), "Share of rows below which a latent's bias rises again."),
            "magnitude": Option(
                "pre",
                one_of("pre", "biased"),
                "What a latent that is on gives: 'pre', its input without the bias, or 'biased', with it.",
            ),
            **_DEAD,
            **{name: option for name, option in _ENCODER.items() if name != "tied_init"},
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
                real(0),
                "Weight of the L1 penalty on the gate, relative to the normalised squared error.",
            ),
            "l1_warmup": _L1_WARMUP,
            "gate_bias": Option(False, flag, "Whether the gate has a bias of its own, beside b_enc."),
            **_REVIVAL,
            "resample_scale": replace(_RESAMPLE["resample_scale"], default=0.2),
            **_COMMON,
        },
        sparsifier=lambda c: Gated(c.d_sae, c.options["gate_bias"]),
        losses=_with_auxk("mse", "gate"),
        rules=_rules("unit_norm"),
    ),
    "relu": Recipe(
        line="ReLU with an L1 penalty on codes times decoder norms, or on codes (Bricken et al. 2023).",
        options={
            **_L1,
            "decoder_norm_weighted": Option(
                True,
                flag,
                "True: the penalty is sum_j f_j ||W_dec_j|| and decoder norms are free (Anthropic, "
                "April 2024); "
                "False: sum_j f_j, and decoder rows keep unit norm.",
            ),
            **_REVIVAL,
            "resample_scale": replace(_RESAMPLE["resample_scale"], default=0.2),
            **_COMMON,
        },
        sparsifier=lambda c: ReLU(),
        losses=_with_auxk("mse", "l1"),
        rules=lambda c: _rules(*([] if c.options["decoder_norm_weighted"] else ["unit_norm"]))(c),
    ),
    "mutual_choice": Recipe(
        line="Mutual choice: BatchTopK, with latents that fire below a Zipf law revived (2411.02124).",
        options={
            **_BATCH,
            **_ZIPF,
            "zipf_floor": Option(
                0.5,
                real(0),
                "Share of the Zipf law's density below which a latent is revived; 0: only the dead.",
            ),
            **_REVIVAL,
            **_COMMON,
        },
        sparsifier=lambda c: BatchTopK(c.options["k"], c.options["threshold_decay"]),
        losses=lambda c: ("mse", "aux_zipf") if c.options["aux_coefficient"] else ("mse",),
        rules=_rules("unit_norm"),
    ),
    "feature_choice": Recipe(
        line="Feature choice: each latent keeps its largest rows of a batch, by a Zipf law (2411.02124).",
        options={**_BATCH, **_ZIPF, **_REVIVAL, **_COMMON},
        sparsifier=lambda c: FeatureChoice(
            c.d_sae, *(c.options[key] for key in ("k", "alpha", "bump", "threshold_decay"))
        ),
        losses=_with_auxk("mse"),
        rules=_rules("unit_norm"),
    ),
    "group_max": Recipe(
        line="GroupMax: the largest pre-activation of each of k groups of latents (sparsify).",
        options={
            "k": Option(32, whole(1, "d_sae"), "Groups, each of which gives at most one code."),
            **_REVIVAL,
            **_COMMON,
        },
        sparsifier=lambda c: GroupMax(c.d_sae, c.options["k"]),
        losses=_with_auxk("mse"),
        rules=_rules("unit_norm"),
    ),
    "variational": Recipe(
        line="Variational: TopK of Gaussian codes under a KL divergence (2509.22994).",
        options={
            **_ROW,
            "sampling": Option(
                True,
                flag,
                "Whether training draws codes; without it (and sigma 1) the divergence is an L2 penalty.",
            ),
            "sigma": Option(None, sigma, "Standard deviation of codes; None means a learned one for each."),
            "log_variance": Option(
                -2.0, real(-10, 2), "Where log sigma^2 starts, if learned, in squared units of pre."
            ),
            "kl": Option(1e-3, real(0), "Weight of the divergence, beside the normalised squared error."),
            "kl_warmup": Option(0.1, real(0, 1), "Share of the run over which that weight rises from 0."),
            **_REVIVAL,
            **_COMMON,
        },
        sparsifier=lambda c: Gaussian(
            c.d_in, c.d_sae, *(c.options[key] for key in ("k", "sampling", "sigma", "log_variance"))
        ),
        losses=_with_auxk("mse", "kl"),
        rules=_rules("unit_norm"),
        title=lambda c: "" if c.options["sampling"] else "TopK with an L2 penalty (variational, not sampled)",
    ),
    "archetypal": Recipe(
        line="Archetypal: TopK whose directions lie near the hull of data points (2502.12892).",
        options={**_ROW, **_REVIVAL, **_ENCODER, **_decoder("archetypal")},
        sparsifier=lambda c: TopK(c.options["k"]),
        losses=_with_auxk("mse"),
        rules=_rules("unit_norm"),
    ),
    "matching_pursuit": Recipe(
        line="Matching pursuit: latents one after another, each on what the others left (2506.03093).",
        options={
            "max_iterations": Option(32, whole(1), "Most latents of a row."),
            "residual_threshold": Option(
                1e-2, real(0), "Norm of the rest at which a row is done, in units of the normalised input."
            ),
            "stop_on_duplicate": Option(True, flag, "Whether a row is done when a latent comes again."),
            **_REVIVAL,
            **{name: option for name, option in _COMMON.items() if name != "tied_init"},
        },
        sparsifier=lambda c: MatchingPursuit(
            *(c.options[key] for key in ("max_iterations", "residual_threshold", "stop_on_duplicate"))
        ),
        losses=_with_auxk("mse"),
        rules=_rules("unit_norm", "encoder_is_decoder"),
    ),
    "transcoder": _transcoder("Transcoder: from the input of a part of the model to its output."),
    "skip_transcoder": _transcoder(
        "Skip transcoder: a transcoder with a linear map of the input beside (2501.18823).", skip=True
    ),
    "crosscoder": Recipe(
        line="Crosscoder: one code for several layers or models (Lindsey et al. 2024).",
        options={
            "widths": Option((), widths, "Width of each activation that is read, side by side."),
            "sparsity": Option(
                "batchtopk",
                one_of("batchtopk", "l1"),
                "'batchtopk' ranks codes times the sum of their directions' norms; 'l1' penalises that.",
            ),
            **_BATCH,
            **_L1,
            **_REVIVAL,
            **_ENCODER,
            "normalise": _NORMALISE_ONE,
        },
        sparsifier=lambda c: (
            BatchTopK(c.options["k"], c.options["threshold_decay"], by_norm=True)
            if c.options["sparsity"] == "batchtopk"
            else ReLU()
        ),
        losses=lambda c: _with_auxk("mse", *(["l1"] if c.options["sparsity"] == "l1" else []))(c),
        rules=_rules(),
        dictionary=lambda c: Joint(c.d_sae, c.widths),
    ),
}
