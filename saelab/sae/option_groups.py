"""Options that several recipes share."""

from __future__ import annotations

from saelab.sae.config import Option
from saelab.sae.options import (
    average,
    by_norm,
    flag,
    in_each_row,
    integer_from,
    of_jumprelu,
    one_of,
    positive,
    positive_share,
    real,
    resampling,
    start_of_k,
    target_l0,
    target_weight,
)

NORMALISE = Option(
    "scalar",
    one_of("none", "scalar", "layernorm", "zscore", "sphere"),
    "'scalar' divides inputs by their mean Euclidean norm, fixed when training starts; 'layernorm' centres "
    "each row and divides it by its own norm, 'zscore' by its standard deviation plus 1e-5, 'sphere' brings "
    "it to norm sqrt(d_in) uncentred, all undone by the decoder; 'none' takes them raw.",
    structural=True,
)
NORMALISE_ONE = Option("scalar", one_of("none", "scalar"), NORMALISE.line, structural=True)

START = {
    "b_dec_init": Option(
        "mean",
        one_of("mean", "geometric_median", "zeros"),
        "Where b_dec starts: mean or geometric median of the first activations, or zeros.",
    ),
}

ENCODER = {
    "normalise": NORMALISE,
    "apply_b_dec_to_input": Option(
        True, flag, "Whether b_dec is subtracted from the input before encoding.", structural=True
    ),
    "tied_init": Option(True, flag, "Whether W_enc starts as the transpose of W_dec (else independent)."),
    **START,
}


def decoder(default: str = "free") -> dict[str, Option]:
    return {
        "decoder_norm": Option(
            "recipe",
            one_of("recipe", "unit", "free"),
            "Whether free decoder rows keep norm 1 in training, are free, or do what the recipe does.",
        ),
        "dictionary": Option(
            default,
            one_of("free", "archetypal", "frozen"),
            "'free' decoder rows, 'archetypal' ones near the convex hull of k-means centres of the data, or "
            "'frozen' ones, which stay as they were drawn: a control of what training the decoder brings.",
            structural=True,
        ),
        "candidates": Option(
            None,
            integer_from(1, optional=True),
            "Centres of an archetypal dictionary; None means d_sae, at most 4096. More than 4096 are rows "
            "of the data.",
            structural=True,
        ),
        "mixed": Option(
            None,
            integer_from(1, optional=True),
            "Candidates that a direction of an archetypal dictionary mixes, those nearest to where it "
            "starts; None means all, which takes d_sae times candidates numbers.",
            structural=True,
        ),
        "delta": Option(
            0.0,
            real(0),
            "How far from the hull archetypal rows may lie, in units of a mean input norm.",
            structural=True,
        ),
    }


COMMON = {**ENCODER, **decoder()}

L1_WARMUP = Option(0.05, real(0, 1), "Share of the run over which the L1 weight rises from 0.")

P_END = Option(
    1.0, positive_share, "Exponent that the penalty ends with; below 1 it falls from 1 (p-annealing)."
)

TARGET_L0 = Option(
    None,
    target_l0,
    "L0 that the run ends with: the weight of the sparsity penalty is moved until L0 is there; None: the "
    "weight stays as it is.",
)

L1 = {
    "target_l0": TARGET_L0,
    "l1": Option(0.1, real(0), "Weight of the L1 penalty, relative to the normalised squared error."),
    "l1_warmup": L1_WARMUP,
    "p_end": P_END,
}

L0 = {
    "target_l0": TARGET_L0,
    "target_weight": Option(
        None,
        target_weight,
        "Weight of (L0 / target_l0 - 1)^2 in place of the penalty that is moved (dictionary_learning's "
        "sparsity_penalty): the larger, the nearer L0 comes; 1 to 3 do.",
    ),
    "l0": Option(1e-3, real(0), "Weight of the L0 penalty, relative to the normalised squared error."),
    "l0_warmup": Option(0.1, real(0, 1), "Share of the run over which that weight rises from 0."),
}

JUMP = {
    "bandwidth": Option(
        0.03, positive, "Width of the box about the threshold that gives gradients, in units of pre."
    ),
    "threshold": Option(0.03, positive, "Where every threshold starts, in units of pre."),
    "log_threshold": Option(
        True,
        flag,
        "Whether thresholds are learned as logarithms; else as they are, 0 or less is ReLU.",
        structural=True,
    ),
    "ste_to_input": Option(
        False,
        flag,
        "Whether the box gives its gradient to pre-activations too, and so to the encoder: False in "
        "Rajamanoharan et al. 2024b, True in Anthropic, January 2025.",
    ),
    "pre_act_loss": Option(
        0.0,
        of_jumprelu,
        "Weight of sum_j relu(theta_j - pre_j) ||W_dec_j|| over dead latents, relative to the normalised "
        "squared error, which brings them back (SAELens' pre_act_loss_coefficient).",
    ),
    "pre_act_of": Option(
        "dead", one_of("dead", "all"), "Latents of that loss: dead ones, or all (Anthropic, January 2025)."
    ),
}

DEAD = {
    "dead_after": Option(
        None,
        integer_from(1, optional=True),
        "Rows without firing after which a latent counts as dead; None means a tenth of the "
        "run, at most 10M.",
    ),
}

RESAMPLE = {
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

REVIVAL = {
    "aux_coefficient": Option(1 / 32, real(0), "Weight of the auxk loss; 0 turns it off."),
    "k_aux": Option(
        None, integer_from(1, "d_sae", optional=True), "Dead latents used in each row; None means d_in / 2."
    ),
    **RESAMPLE,
    **DEAD,
}

K_SCHEDULE = {
    "k_start": Option(None, start_of_k, "k at the start of the run, from which it falls to k; None means k."),
    "k_anneal": Option(0.5, real(0, 1), "Share of the run over which it falls, linearly."),
}

ROW = {"k": Option(32, in_each_row, "Latents kept in each row."), **K_SCHEDULE}
BY_NORM = {
    "by_norm": Option(
        False,
        by_norm,
        "Whether pre-activations times decoder norms are ranked, of free rows (SAELens' "
        "rescale_acts_by_decoder_norm).",
        structural=True,
    )
}

THRESHOLD = {
    "threshold_decay": Option(
        0.99,
        real(0, 0.999999),
        "Weight of the past in the moving average of the inference threshold, a step.",
    ),
}

BATCH = {
    "k": Option(
        32, average, "Latents kept in each row, on average over a training batch; it may be a fraction."
    ),
    **K_SCHEDULE,
    **THRESHOLD,
}

ZIPF = {
    "alpha": Option(1.0, real(0), "Exponent of the Zipf law (rank + bump)^-alpha of latents; 0: uniform."),
    "bump": Option(3.0, real(0), "Shift of the ranks in it."),
}
