"""Runs that start from an SAE: all of it or a part taken, all of it or a part trained, latents split."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from saelab import dist
from saelab.arguments import one_of
from saelab.config import is_number
from saelab.sae.config import SAEConfig
from saelab.sae.dictionaries import Free, Frozen
from saelab.sae.initial import refit
from saelab.sae.model import SAE
from saelab.seeds import mixed
from saelab.training import shards
from saelab.training.run import Origin
from saelab.types import ConfigError, ShapeError, nearest, short

Part = Literal["all", "encoder", "decoder"]
UNIT = 0.01
"""How far norms of decoder rows may be from 1 where a rule keeps them there: files of bfloat16 round them."""
AXES = {"W_enc": 1, "b_enc": 0, "dictionary.W_dec": 0}
TIED = ("tied", "encoder_is_decoder")


@dataclass(frozen=True)
class Start:
    """An SAE that a run starts from, and what becomes of it.

    The encoder is W_enc, b_enc and what the sparsifier learned, the decoder W_dec, b_dec and W_skip. Where
    b_dec is subtracted from the input it is the encoder's too: it is taken with either, and moves only
    where both are trained. Scales of inputs and outputs are taken always. A part that is not taken starts as
    in a new SAE: as the transpose of the other with tied_init, else drawn.

    With a config of m times its latents each is split into m, latent j into m j .. m j + m - 1 (Net2WiderNet,
    Chen et al. 2015, arXiv 1511.05641, with the division in the encoder): directions are its
    own, pre-activations and thresholds an m-th of its own. So the reconstruction is the same (of topk and
    its kin where k is m times as large too; `k_start` lets it fall from there). `noise` makes children
    differ, or they would stay equal for ever: it adds up to 0 over those of one latent, so that codes still
    add up and only rows near a threshold change.

    Args:
        sae: Trained, loaded (`saelab.load_sae`) or made by hand, of the config's recipe and widths.
        taken: "all", "encoder" or "decoder".
        trained: "all", "encoder", "decoder", or names of weights: ("W_dec",), ("b_enc", "log_threshold").
        noise: Norm of what is added to the encoder columns of children, as a share of theirs. With .001 the
            reconstruction is off by less than 1e-3 of its variance; with 0 by rounding.

    Raises:
        ConfigError: An unknown part, or a value out of range.
    """

    sae: SAE
    taken: Part = "all"
    trained: Part | tuple[str, ...] = "all"
    noise: float = 0.001

    def __post_init__(self) -> None:
        if not isinstance(self.sae, SAE):
            message = (
                f"A run starts from an SAE. Got {short(self.sae)}. Pass what saelab.train, saelab.load_sae "
                "or SAE.load gave."
            )
            raise ConfigError(message)
        one_of(*get_args(Part))("taken", self.taken)
        if isinstance(self.trained, str):
            one_of(*get_args(Part))("trained", self.trained)
        elif not isinstance(self.trained, Sequence) or not all(isinstance(n, str) for n in self.trained):
            message = (
                "trained must be 'all', 'encoder', 'decoder' or names of weights. Got "
                f"{short(self.trained)}. Pass e.g. trained=('W_dec', 'b_dec')."
            )
            raise ConfigError(message)
        else:
            object.__setattr__(self, "trained", tuple(self.trained))
        if not is_number(self.noise) or not 0 <= self.noise < 1:
            message = f"noise must be at least 0 and below 1. Got {self.noise!r}. Pass e.g. noise=0.001."
            raise ConfigError(message)


def as_starts(start: Any, n: int) -> list[Start | None]:
    """What each of n configs starts from. Raises ConfigError."""
    if isinstance(start, list | tuple):
        if len(start) != n:
            message = (
                f"start must be one SAE, or one for each of the {n} configs. Got {len(start)}. Pass as many."
            )
            raise ConfigError(message)
        given = list(start)
    else:
        given = [start] * n
    return [s if s is None or isinstance(s, Start) else Start(s) for s in given]


def check(config: SAEConfig, start: Start) -> Origin:
    """What is written of a start. Raises ShapeError, ConfigError where the SAE does not fit the config, or
    the config what is trained."""
    of = start.sae.config
    if of.recipe != config.recipe:
        message = (
            f"A run starts from an SAE of its own recipe, {config.recipe!r}. Got {of.recipe!r}. Make the "
            f"config by saelab.recipe({of.recipe!r}, ...)."
        )
        raise ConfigError(message)
    for name in ("d_in", "d_out"):
        if getattr(of, name) != getattr(config, name):
            message = (
                f"A run starts from an SAE of its own {name}={getattr(config, name)}. Got one of "
                f"{getattr(of, name)}. Make the config with {name}={getattr(of, name)}, or pass another SAE."
            )
            raise ShapeError(message)
    for name, option in config.entry.options.items():
        own, its = config.options[name], of.options[name]
        if option.structural and own != its:
            message = (
                f"A run starts from an SAE of its own {name}={own!r}, which is part of what it computes. Got "
                f"one of {its!r}. Make the config with {name}={its!r}."
            )
            raise ConfigError(message)
    start.sae.check_parameters()
    _check_width(config, start.sae)
    trained = _trained(config, start)
    _check_rules(config, start, trained)
    taken, noise = start.taken, float(start.noise) if config.d_sae != of.d_sae else 0.0
    return Origin(start.sae.fingerprint(), of.d_sae, taken, trained, noise)


def _check_width(config: SAEConfig, sae: SAE) -> None:
    of = sae.config
    if of.d_sae == config.d_sae:
        return
    if config.d_sae % of.d_sae:
        low = max(1, config.d_sae // of.d_sae) * of.d_sae
        message = (
            f"d_sae must be that of the SAE which the run starts from, {of.d_sae}, or a multiple, into which "
            f"latents are split. Got {config.d_sae}. Pass d_sae={low}."
        )
        raise ShapeError(message)
    if sae.sparsifier.split(2) is None or not isinstance(sae.dictionary, Free | Frozen):
        message = (
            f"Latents of {config.title!r} cannot be split so that the reconstruction stays. Got "
            f"d_sae={config.d_sae} from {of.d_sae}. Pass d_sae={of.d_sae}, or use topk, batchtopk, "
            "matryoshka, relu, jumprelu or gated with free decoder rows."
        )
        raise ConfigError(message)


def _trained(config: SAEConfig, start: Start) -> tuple[str, ...]:
    """Names of the parameters that move, or () for all."""
    if start.trained == "all":
        return ()
    with torch.device("meta"):
        made = SAE(config)
    own = [name for name, weight in made.named_parameters() if weight.requires_grad]
    if isinstance(start.trained, str):
        shared = config.options.get("apply_b_dec_to_input", False)
        found = [n for n in own if start.trained in _parts(n) and not (n == "b_dec" and shared)]
        if start.trained == "encoder":
            found = [n for n in found if n != "b_dec"]
    else:
        short_names = [name.rsplit(".", 1)[-1] for name in own]
        for name in start.trained:
            if name not in short_names:
                message = (
                    f"trained must name weights of the SAE: {', '.join(short_names)}. Got {name!r}. "
                    f"{nearest(name, short_names)}Pass trained='all'."
                )
                raise ConfigError(message)
        found = [n for n in own if n.rsplit(".", 1)[-1] in start.trained]
    if not found:
        kind = config.options.get("dictionary")
        message = (
            f"A run must train something. Got trained={start.trained!r}, of which {config.title} with a "
            f"{kind} dictionary has no weight. Pass trained='all'."
        )
        raise ConfigError(message)
    return tuple(found)


def _check_rules(config: SAEConfig, start: Start, trained: tuple[str, ...]) -> None:
    rules = config.entry.rules(config)
    apart = trained or start.taken != "all"
    for name in (each for each in (*TIED, "resample", "aim") if each in rules):
        if (name in TIED and apart) or (name == "resample" and trained):
            what = "resamples both" if name == "resample" else "makes its encoder of its decoder"
            message = (
                f"The parts of an SAE can be taken or trained alone where neither is made of the other. Got "
                f"taken={start.taken!r} and trained={start.trained!r} of {config.title!r}, which {what}. "
                f"{'Pass resample_every=None' if name == 'resample' else 'Leave both out'}."
            )
            raise ConfigError(message)
        if name == "aim" and trained and not encoder_moves(trained):
            message = (
                f"target_l0 moves the encoder. Got target_l0={config.options['target_l0']} and "
                f"trained={start.trained!r}. Pass trained='all', or leave target_l0 out."
            )
            raise ConfigError(message)
    held = not trained or "dictionary.W_dec" in trained
    if "unit_norm" in rules and start.taken != "encoder" and held and type(start.sae.dictionary) is Free:
        norms = start.sae.W_dec.detach().float().norm(dim=1)
        low, high = float(norms.min()), float(norms.max())
        if max(1 - low, high - 1) > UNIT:
            message = (
                f"A run that keeps decoder rows at norm 1 starts from such rows. Got norms from {low:.3g} to "
                f"{high:.3g}. Pass decoder_norm='free' to the recipe."
            )
            raise ConfigError(message)


def encoder_moves(trained: tuple[str, ...]) -> bool:
    """Whether codes can change in training. trained: names of parameters, () for all."""
    return not trained or any("encoder" in _parts(name) for name in trained)


def observes(start: Start, config: SAEConfig) -> bool:
    """Whether thresholds that are learned from batches have to be learned anew: of another k or encoder."""
    of = start.sae.config
    m = config.d_sae // of.d_sae
    same = all((of.options.get(k) or 0) * m == (config.options.get(k) or 0) for k in ("k", "k_start"))
    return start.taken == "decoder" or not same


def begin(sae: SAE, start: Start, config: SAEConfig, seed: int, rows: Tensor, targets: Tensor | None) -> None:
    """Give an SAE, drawn by the seed, what it takes from another, and fit the rest to rows.

    Args:
        sae: Changed. Where ranks share the latents, this rank's.
        start: What it starts from.
        config: Of all latents.
        seed: Of the noise.
        rows: The rows that training begins with.
        targets: Their targets, of transcoders.
    """
    tensors = _children(start, config, seed)
    shared = config.options.get("apply_b_dec_to_input", False)
    low, high = dist.latents.bounds(config.d_sae)
    for name, own in sae.state_dict().items():
        parts = _parts(name)
        if start.taken != "all" and start.taken not in parts and parts:
            continue
        if name == "b_dec" and start.taken == "encoder" and not shared:
            continue
        axis, value = shards.axis_of(name), tensors[name]
        own.copy_(value if axis is None or dist.latents.size == 1 else value.narrow(axis, low, high - low))
    if start.taken == "encoder":
        refit(sae, seed, rows, targets, "decoder", not shared)
    elif start.taken == "decoder":
        refit(sae, seed, rows, targets, "encoder", False)
    seen = getattr(sae.sparsifier, "seen", None)
    if isinstance(seen, Tensor) and observes(start, config):
        seen.zero_()  # a threshold learned for another k, or for no encoder at all, is worth no memory


def _parts(name: str) -> tuple[str, ...]:
    """Which parts a tensor of an SAE belongs to; none for scales."""
    if name == "b_dec":
        return ("encoder", "decoder")
    if name.startswith("dictionary.") or name == "W_skip":
        return ("decoder",)
    return () if name.endswith("_scale") else ("encoder",)


def _children(start: Start, config: SAEConfig, seed: int) -> dict[str, Tensor]:
    """The tensors of the SAE, each latent in m parts. float32 on the CPU."""
    tensors = {name: t.detach().cpu() for name, t in start.sae.state_dict().items()}
    tensors = {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}
    d_sae = start.sae.d_sae
    m = config.d_sae // d_sae
    if m == 1:
        return tensors
    learned = start.sae.sparsifier.split(m) or {}
    tensors |= {f"sparsifier.{name}": t.detach().cpu().float() for name, t in learned.items()}
    tensors |= {name: tensors[name] / m for name in ("W_enc", "b_enc")}
    for name, tensor in tensors.items():
        axis = 0 if name.startswith("sparsifier.") and tensor.ndim else AXES.get(name)
        if axis is not None:
            tensors[name] = tensor.repeat_interleave(m, dim=axis)
    W_enc = tensors["W_enc"]
    generator = torch.Generator().manual_seed(mixed(seed, 1))
    noise = torch.randn(d_sae, m, len(W_enc), generator=generator)
    noise -= noise.mean(1, keepdim=True)
    noise *= start.noise / math.sqrt(len(W_enc) * (1 - 1 / m))
    tensors["W_enc"] = W_enc + W_enc.norm(dim=0) * noise.flatten(0, 1).t()
    return tensors


__all__ = ["Start"]
