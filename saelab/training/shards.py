"""An SAE whose latents ranks divide: which tensors are cut, and how they are put together again.

Each rank holds an SAE of its own latents. The encoder product, the weights' gradients and Adam are local; the
selection is that over all latents (saelab.sae.kernels), and the partial reconstructions are added up.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from saelab import dist
from saelab.sae.config import RECIPES, SAEConfig
from saelab.sae.model import SAE
from saelab.tensors import Pieces
from saelab.training.run import Settings
from saelab.types import ConfigError

_OF_LATENTS = (
    "b_enc", "W_dec", "log_threshold", "raw_threshold", "r_mag", "b_mag", "b_gate", "firing", "density"
)  # fmt: skip


def divisible(shard: str) -> list[str]:
    """The recipes whose step is that of one process, where ranks divide the rows of a batch ("data") or the
    latents."""
    return [name for name, entry in RECIPES.items() if shard in entry.divides]


def check(config: SAEConfig, settings: Settings, shard: str, ranks: int) -> None:
    """Raises ConfigError where ranks cannot train this SAE together."""
    options = config.options
    shares = ranks * settings.accumulate if shard == "data" else 1
    if settings.batch_size < shares:
        message = (
            f"batch_size is divided among {ranks} ranks with accumulate={settings.accumulate} and "
            f"must be at least {shares}. Got {settings.batch_size}. Pass more, or start fewer ranks."
        )
        raise ConfigError(message)
    if shard == "latents" and settings.optimizer.kind == "muon":
        message = (
            "Muon makes the update of a whole matrix, of which each rank has a part with shard='latents'. "
            "Got optimizer='muon'. Pass another optimizer, or shard='data'."
        )
        raise ConfigError(message)
    if shard not in config.entry.divides:
        message = (
            f"With shard={shard!r} ranks can train {', '.join(divisible(shard))}. Got {config.recipe!r}. "
            "Train it in one process, or choose one of these."
        )
        raise ConfigError(message)
    if options.get("resample_every") is not None:
        message = (
            f"Ranks cannot resample dead latents together. Got resample_every={options['resample_every']}. "
            "Pass None, or train in one process."
        )
        raise ConfigError(message)
    if shard == "data":
        return
    if options["dictionary"] != "free":
        message = (
            f"Only free decoder rows can be divided. Got dictionary={options['dictionary']!r}. Pass 'free', "
            "or shard='data'."
        )
        raise ConfigError(message)
    for name in ("ste_to_input", "pre_act_loss"):
        if options.get(name):
            message = (
                f"With shard='latents' {name} must be left out: it moves latents of which a rank has none. "
                f"Got {name}={options[name]}. Leave it out, or pass shard='data'."
            )
            raise ConfigError(message)
    least, k = config.d_sae // ranks, max(options.get("k", 1), options.get("k_start") or 0)
    if least < k:
        message = (
            f"Each rank must hold at least k={k} latents. Got d_sae={config.d_sae} on {ranks} ranks, {least} "
            "each. Start fewer ranks, or pass shard='data'."
        )
        raise ConfigError(message)


def local(config: SAEConfig) -> SAEConfig:
    """The config of this rank's latents."""
    start, end = dist.latents.bounds(config.d_sae)
    own = end - start
    if dist.latents.size == 1:
        return config
    # of groups the losses and rules have those of all latents
    given = {name: None if name == "groups" else value for name, value in config.options.items()}
    return replace(config, d_sae=own, options=given)


def align(sae: SAE) -> None:
    """Give every rank what rank 0 holds, of all that is not divided: machines may round differently."""
    for name, tensor in sae.state_dict().items():
        if dist.latents.size == 1 or axis_of(name) is None:
            tensor.copy_(dist.ranks.spread(tensor))


def whole(sae: SAE, config: SAEConfig) -> SAE:
    """The SAE of all latents, on the CPU of every rank; itself where they are not divided."""
    if dist.latents.size == 1:
        return sae
    joined = SAE(config)
    held = sae.state_dict()
    for name, target in joined.state_dict().items():
        at = 0
        for piece in _pieces(name, held[name], config.d_sae):
            rows = target[at : at + len(piece)] if target.ndim else target
            rows.copy_(piece)
            at += len(piece) if target.ndim else 0
    return joined.train(sae.training)


def given(tensors: dict[str, Tensor], d_sae: int) -> dict[str, Tensor | Pieces]:
    """The whole tensors, by name, those with the widest numbers first. Every rank must read all pieces in
    this order."""
    found: dict[str, Tensor | Pieces] = {}
    for name, tensor in sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0])):
        axis = axis_of(name)
        if axis is None or dist.latents.size == 1:
            found[name] = tensor
        else:
            shape = [d_sae if i == axis else n for i, n in enumerate(tensor.shape)]
            found[name] = Pieces(tuple(shape), tensor.dtype, _pieces(name, tensor, d_sae))
    return found


def received(name: str, tensor: Tensor, d_sae: int) -> Tensor:
    """This rank's part of a whole tensor that rank 0 has; elsewhere only its shape and type are read."""
    if dist.ranks.size == 1:
        return tensor
    whole = tensor if dist.first() else torch.empty(tensor.shape, dtype=tensor.dtype)
    axis = axis_of(name)
    if axis is None or dist.latents.size == 1:
        return dist.ranks.spread(whole)
    mine = whole
    for rank in range(dist.latents.size):
        start, end = dist.latents.bounds(d_sae, rank)
        sent = dist.latents.spread(whole.narrow(axis, start, end - start))
        if rank == dist.latents.rank:
            mine = sent
    return mine


def axis_of(name: str) -> int | None:
    """Along which axis ranks divide a tensor of a run's state, None for one that all hold."""
    if name.split(".")[1:2] == ["step"]:
        return None
    last = name.rsplit(".", 1)[-1]
    return 1 if last == "W_enc" else 0 if last in _OF_LATENTS else None


def _pieces(name: str, tensor: Tensor, d_sae: int) -> Iterator[Tensor]:
    axis = axis_of(name)
    return iter([tensor]) if axis is None else dist.latents.pieces(tensor, axis, d_sae)
