"""The named architectures, as data: each recipe is a sparsifier, a dictionary, losses, rules and checked
options.

A new architecture is a new part and a `register` call, never a new SAE class. Losses and rules are named here
and live in `saelab.training`, so that loading an SAE needs no training code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from saelab.sae.batchwise import BatchAbsTopK, BatchTopK, FeatureChoice, GroupBias
from saelab.sae.config import Option, Recipe, SAEConfig, register
from saelab.sae.dictionaries import Scaled
from saelab.sae.option_groups import (
    BATCH,
    BY_NORM,
    COMMON,
    DEAD,
    ENCODER,
    JUMP,
    L0,
    L1,
    L1_WARMUP,
    RESAMPLE,
    REVIVAL,
    ROW,
    TARGET_L0,
    ZIPF,
    decoder,
)
from saelab.sae.options import (
    flag,
    groups,
    integer_from,
    one_of,
    positive,
    positive_share,
    real,
    sigma,
)
from saelab.sae.sparsifiers import (
    AbsTopK,
    Gated,
    Gaussian,
    GroupMax,
    Identity,
    JumpReLU,
    MatchingPursuit,
    ReLU,
    TopAFA,
    TopK,
)


def rules_of(*names: str) -> Callable[[SAEConfig], tuple[str, ...]]:
    """These rules, and those that options turn on."""

    def rules(config: SAEConfig) -> tuple[str, ...]:
        schedule = ("anneal_k",) if config.options.get("k_start") else ()
        revival = ("resample",) if config.options.get("resample_every") else ()
        moved = config.options.get("target_l0") is not None and config.options.get("target_weight") is None
        aim = ("aim",) if moved and config.options.get("sparsity", "l1") in ("l1", "jumprelu") else ()
        asked = config.options.get("decoder_norm", "recipe")
        own = [name for name in names if name != "unit_norm" or asked != "free"]
        if asked == "unit" and "unit_norm" not in own:
            own.insert(0, "unit_norm")
        return (*schedule, *own, *aim, *revival)

    return rules


def with_auxk(*losses: str) -> Callable[[SAEConfig], tuple[str, ...]]:
    """These losses, and auxk unless its coefficient is 0."""
    return lambda c: (*losses, "auxk") if c.options["aux_coefficient"] else losses


def jump_relu(config: SAEConfig) -> JumpReLU:
    return JumpReLU(
        config.d_sae,
        *(config.options[key] for key in ("threshold", "bandwidth", "log_threshold", "ste_to_input")),
    )


def _batch(config: SAEConfig) -> BatchTopK:
    return BatchTopK(*(config.options[key] for key in ("k", "threshold_decay", "by_norm")))


def pre_act(config: SAEConfig) -> tuple[str, ...]:
    return ("pre_act",) if config.options["pre_act_loss"] else ()


PURSUIT = ("max_iterations", "residual_threshold", "stop_on_duplicate", "finish_step", "whole_product")
"""Options of matching pursuit's sparsifier."""


register(
    "topk",
    Recipe(
        line="TopK: the k largest pre-activations of a row, dead latents revived by auxk (Gao et al. 2024).",
        options={
            **ROW,
            **BY_NORM,
            "multi_topk": Option(
                0.0, real(0), "Weight of the error of keeping 4 k latents; 1/8 in Gao et al., 0 turns it off."
            ),
            **REVIVAL,
            **COMMON,
        },
        sparsifier=lambda c: TopK(c.options["k"], c.options["by_norm"]),
        losses=lambda c: with_auxk("mse", *(["multi_topk"] if c.options["multi_topk"] else []))(c),
        rules=rules_of("unit_norm"),
        divides=("data", "latents"),
    ),
)
register(
    "batchtopk",
    Recipe(
        line="BatchTopK: k a row on average over a batch, a learned threshold afterwards (Bussmann 2024).",
        options={**BATCH, **BY_NORM, **REVIVAL, **COMMON},
        sparsifier=lambda c: _batch(c),
        losses=with_auxk("mse"),
        rules=rules_of("unit_norm"),
        divides=("data", "latents"),
    ),
)
register(
    "matryoshka",
    Recipe(
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
            **BATCH,
            **BY_NORM,
            **REVIVAL,
            **COMMON,
        },
        sparsifier=lambda c: _batch(c),
        losses=with_auxk("prefixes"),
        rules=rules_of("unit_norm"),
        divides=("data", "latents"),
    ),
)
register(
    "abs_topk",
    Recipe(
        line="AbsTopK: the k largest magnitudes of a row with their signs, two poles a latent (2510.00404).",
        options={
            **ROW,
            **REVIVAL,
            **COMMON,
        },
        sparsifier=lambda c: AbsTopK(c.options["k"]),
        losses=with_auxk("mse"),
        rules=rules_of("unit_norm"),
        divides=("data", "latents"),
    ),
)
register(
    "batch_abs_topk",
    Recipe(
        line="Batch AbsTopK: k magnitudes a row on average over a batch, with their signs (2510.00404).",
        options={**BATCH, **REVIVAL, **COMMON},
        sparsifier=lambda c: BatchAbsTopK(c.options["k"], c.options["threshold_decay"]),
        losses=with_auxk("mse"),
        rules=rules_of("unit_norm"),
        divides=("data", "latents"),
    ),
)
register(
    "top_afa",
    Recipe(
        line="top-AFA: as many latents as make a row's code as long as its input (2503.24277).",
        options={
            "afa": Option(1 / 32, real(0), "Weight of their squared difference, at norm sqrt(d_in)."),
            **REVIVAL,
            **COMMON,
        },
        sparsifier=lambda c: TopAFA(),
        losses=with_auxk("mse", "afa"),
        rules=rules_of("unit_norm"),
        divides=("data",),
    ),
)
register(
    "jumprelu",
    Recipe(
        line="JumpReLU: learned thresholds, under an L0 or tanh penalty (Rajamanoharan et al. 2024b).",
        options={
            "penalty": Option(
                "l0",
                one_of("l0", "tanh"),
                "'l0': the number of codes, decoder rows keep unit norm (Rajamanoharan 2024); 'tanh': "
                "sum_j tanh(c f_j ||W_dec_j||), decoder norms are free (Anthropic, January 2025).",
            ),
            **L0,
            "tanh_scale": Option(
                4.0, real(0), "c of the tanh penalty, for inputs scaled to norm sqrt(d_in)."
            ),
            **JUMP,
            **REVIVAL,
            "resample_scale": replace(RESAMPLE["resample_scale"], default=0.2),
            **COMMON,
        },
        sparsifier=lambda c: jump_relu(c),
        losses=lambda c: with_auxk("mse", c.options["penalty"], *pre_act(c))(c),
        rules=lambda c: rules_of(*(["unit_norm"] if c.options["penalty"] == "l0" else []))(c),
        divides=("data", "latents"),
    ),
)
register(
    "gba",
    Recipe(
        line="Group bias adaptation: feedback, not gradients, sets how often each latent fires (2506.14002).",
        options={
            "groups": Option(10, integer_from(1), "Equal groups of latents, each with a target frequency."),
            "high": Option(0.5, positive_share, "Target frequency of the first group."),
            "low": Option(1e-3, positive_share, "Target frequency of the last group; geometric between."),
            "rate": Option(0.01, positive, "Share of the largest pre-activation by which a bias moves."),
            "every": Option(50, integer_from(1), "Steps between two moves of the biases."),
            "never": Option(1e-6, real(0, 1), "Share of rows below which a latent's bias rises again."),
            "magnitude": Option(
                "pre",
                one_of("pre", "biased"),
                "What a latent that is on gives: 'pre', its input without the bias, or 'biased', with it.",
                structural=True,
            ),
            **DEAD,
            **{name: option for name, option in ENCODER.items() if name != "tied_init"},
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
        divides=("data",),
    ),
)
register(
    "gated",
    Recipe(
        line="Gated: one path chooses latents, another their size (Rajamanoharan et al. 2024a).",
        options={
            "target_l0": TARGET_L0,
            "l1": Option(
                0.3,
                real(0),
                "Weight of the L1 penalty on the gate, relative to the normalised squared error.",
            ),
            "l1_warmup": L1_WARMUP,
            "gate_bias": Option(
                False, flag, "Whether the gate has a bias of its own, beside b_enc.", structural=True
            ),
            **REVIVAL,
            "resample_scale": replace(RESAMPLE["resample_scale"], default=0.2),
            **COMMON,
        },
        sparsifier=lambda c: Gated(c.d_sae, c.options["gate_bias"]),
        losses=with_auxk("mse", "gate"),
        rules=rules_of("unit_norm"),
        divides=("data", "latents"),
    ),
)
register(
    "relu",
    Recipe(
        line="ReLU with an L1 penalty on codes times decoder norms, or on codes (Bricken et al. 2023).",
        options={
            **L1,
            "decoder_norm_weighted": Option(
                True,
                flag,
                "True: the penalty is sum_j f_j ||W_dec_j|| and decoder norms are free (Anthropic, "
                "April 2024); "
                "False: sum_j f_j, and decoder rows keep unit norm.",
            ),
            **REVIVAL,
            "resample_scale": replace(RESAMPLE["resample_scale"], default=0.2),
            **COMMON,
        },
        sparsifier=lambda c: ReLU(),
        losses=with_auxk("mse", "l1"),
        rules=lambda c: rules_of(*([] if c.options["decoder_norm_weighted"] else ["unit_norm"]))(c),
        divides=("data", "latents"),
    ),
)
register(
    "mutual_choice",
    Recipe(
        line="Mutual choice: BatchTopK, with latents that fire below a Zipf law revived (2411.02124).",
        options={
            **BATCH,
            **ZIPF,
            "zipf_floor": Option(
                0.5,
                real(0),
                "Share of the Zipf law's density below which a latent is revived; 0: only the dead.",
            ),
            **REVIVAL,
            **COMMON,
        },
        sparsifier=lambda c: BatchTopK(c.options["k"], c.options["threshold_decay"]),
        losses=lambda c: ("mse", "aux_zipf") if c.options["aux_coefficient"] else ("mse",),
        rules=rules_of("unit_norm"),
    ),
)
register(
    "feature_choice",
    Recipe(
        line="Feature choice: each latent keeps its largest rows of a batch, by a Zipf law (2411.02124).",
        options={**BATCH, **ZIPF, **REVIVAL, **COMMON},
        sparsifier=lambda c: FeatureChoice(
            c.d_sae, *(c.options[key] for key in ("k", "alpha", "bump", "threshold_decay"))
        ),
        losses=with_auxk("mse"),
        rules=rules_of("unit_norm"),
    ),
)
register(
    "group_max",
    Recipe(
        line="GroupMax: the largest pre-activation of each of k groups of latents (sparsify).",
        options={
            "k": Option(32, integer_from(1, "d_sae"), "Groups, each of which gives at most one code."),
            **REVIVAL,
            **COMMON,
        },
        sparsifier=lambda c: GroupMax(c.d_sae, c.options["k"]),
        losses=with_auxk("mse"),
        rules=rules_of("unit_norm"),
    ),
)
register(
    "variational",
    Recipe(
        line="Variational: TopK of Gaussian codes under a KL divergence (2509.22994).",
        options={
            **ROW,
            "sampling": Option(
                True,
                flag,
                "Whether training draws codes; without it (and sigma 1) the divergence is an L2 penalty.",
            ),
            "sigma": Option(
                None,
                sigma,
                "Standard deviation of codes; None means a learned one for each.",
                structural=True,
            ),
            "log_variance": Option(
                -2.0, real(-10, 2), "Where log sigma^2 starts, if learned, in squared units of pre."
            ),
            "kl": Option(1e-3, real(0), "Weight of the divergence, beside the normalised squared error."),
            "kl_warmup": Option(0.1, real(0, 1), "Share of the run over which that weight rises from 0."),
            **REVIVAL,
            **COMMON,
        },
        sparsifier=lambda c: Gaussian(
            c.d_in, c.d_sae, *(c.options[key] for key in ("k", "sampling", "sigma", "log_variance"))
        ),
        losses=with_auxk("mse", "kl"),
        rules=rules_of("unit_norm"),
        title=lambda c: "" if c.options["sampling"] else "TopK with an L2 penalty (variational, not sampled)",
    ),
)
register(
    "identity",
    Recipe(
        line="Identity: codes are the pre-activations, a linear autoencoder without sparsity.",
        options={**REVIVAL, **COMMON},
        sparsifier=lambda c: Identity(),
        losses=lambda c: ("mse",),
        rules=rules_of("unit_norm"),
    ),
)
register(
    "archetypal",
    Recipe(
        line="Archetypal: TopK whose directions lie near the hull of data points (2502.12892).",
        options={**ROW, **REVIVAL, **ENCODER, **decoder("archetypal")},
        sparsifier=lambda c: TopK(c.options["k"]),
        losses=with_auxk("mse"),
        rules=rules_of("unit_norm"),
    ),
)
register(
    "matching_pursuit",
    Recipe(
        line="Matching pursuit: latents one after another, each on what the others left (2506.03093).",
        options={
            "max_iterations": Option(32, integer_from(1), "Most latents of a row."),
            "residual_threshold": Option(
                1e-2, real(0), "Norm of the rest at which a row is done, in units of the normalised input."
            ),
            "stop_on_duplicate": Option(True, flag, "Whether a row is done when a latent comes again."),
            "finish_step": Option(
                False, flag, "Whether a row takes one step more before it is seen to be done (SAELens)."
            ),
            "whole_product": Option(
                False,
                flag,
                "Whether products are codes whatever their sign and the norm of directions, in "
                "max_iterations steps of every row (overcomplete).",
                structural=True,
            ),
            **REVIVAL,
            **{name: option for name, option in COMMON.items() if name != "tied_init"},
        },
        sparsifier=lambda c: MatchingPursuit(**{key: c.options[key] for key in PURSUIT}),
        losses=with_auxk("mse"),
        rules=rules_of("unit_norm", "encoder_is_decoder"),
    ),
)
