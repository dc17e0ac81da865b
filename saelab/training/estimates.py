"""What a run will take, told before it starts: memory and time."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from saelab import dist
from saelab.arguments import an_integer, checked
from saelab.devices import torch_device
from saelab.sae.config import SAEConfig
from saelab.sae.dictionaries import Free
from saelab.sae.initial import start_rows
from saelab.sae.model import SAE
from saelab.training.arguments import check_configs, complete, count_steps
from saelab.training.moving import Optimizer, Whitening
from saelab.training.run import Settings
from saelab.training.starting import Start, as_starts
from saelab.training.starting import check as check_start
from saelab.types import DeviceMemoryError

# Peak memory of a step in matrices [rows d_sae] of float32 and its time in products of [rows d_in] and
# [d_in d_sae], measured on one CPU thread: matrices topk 1.15, batchtopk and matryoshka 1.35 (codes stay
# sparse), jumprelu 3.1, relu 4.3, top_afa 4.6, gba 5.6 (they may be dense); 0.45 more in bfloat16; at
# initialisation as much where codes stay sparse, else 2.
SPARSE, DENSE, ROUNDED, START = 1.3, 5.0, 0.5, 2.5
SPARSE_TIME, DENSE_TIME = 2.0, 6.5
PROBE = {"cpu": 2**28, "cuda": 2**36}


@dataclass(frozen=True)
class Estimate:
    """What training is about to take. Sizes in bytes, float32 where nothing else is said.

    `memory` is within a factor of 1.4 of the measured peak where it exceeds some hundred megabytes, `seconds`
    is a rough one: products times what a step took as a multiple of them. Activations that are in
    memory already are not counted. Weights, gradients and moments of several SAEs add up; the rest is that
    of the largest.
    """

    weights: int
    """All parameters."""
    gradients: int
    """As many, and as much again for what is made of them in a step."""
    optimizer: int
    """Its moments, two of Adam."""
    activations: int
    """What is made of the pre-activations [rows d_sae] of a micro-batch: the matrix itself and a little where
    codes stay sparse, several such matrices where they may be dense."""
    rows: int
    """The batch, and the rows that training starts from."""
    start: int
    """What initialisation takes besides weights and rows, before the first step."""
    steps: int
    seconds: float | None
    """All steps, from one measured product on this device; None where it was not measured."""

    @property
    def memory(self) -> int:
        """The peak: of initialisation or of a step, whichever is larger. What is written goes to disk in
        pieces, or where memory is free for it from a copy of weights and moments, which is not counted."""
        start = 2 * self.weights + self.start
        step = self.weights + self.gradients + self.optimizer + self.activations
        return self.rows + max(start, step)

    def __str__(self) -> str:
        names = ("weights", "gradients", "optimizer", "activations", "rows", "start")
        sizes = ", ".join(f"{name} {_size(getattr(self, name))}" for name in names if getattr(self, name))
        seconds = (
            "" if self.seconds is None else f"; about {_duration(self.seconds)} for {self.steps:,} steps"
        )
        return f"{_size(self.memory)} of memory at the peak ({sizes}){seconds}"


@checked(batch_size=an_integer(1))
def estimate(
    config: SAEConfig | Sequence[SAEConfig],
    *,
    steps: int | None = None,
    tokens: int | None = None,
    batch_size: int,
    accumulate: int = 1,
    precision: str = "float32",
    optimizer: str | Optimizer = "adam",
    whiten: bool | Whitening = False,
    start: SAE | Start | Sequence[SAE | Start | None] | None = None,
    device: str | torch.device | None = None,
) -> Estimate:
    """Memory and time of `saelab.train` with the same arguments, without training.

    It takes some hundredths of a second.

    Args:
        config: What `saelab.recipe` gives, or several.
        steps: Batches in all; this or `tokens`.
        tokens: Rows in all; this or `steps`.
        batch_size: Rows of a batch.
        accumulate: Micro-batches of a batch.
        precision: "float32" or "bfloat16".
        optimizer: Which.
        whiten: Whether rows are whitened, which takes two matrices [d_in d_in] and a product with a batch.
        start: What runs start from: weights that do not move have no gradients and moments.
        device: Where to train; None for a GPU where there is one.

    Raises:
        ConfigError: An argument is out of range.
    """
    configs = list(config) if isinstance(config, Sequence) else [config]
    check_configs(configs)
    steps = count_steps(steps, tokens, batch_size)
    asked = {"steps": steps, "batch_size": batch_size, "accumulate": accumulate, "precision": precision}
    asked |= {"optimizer": optimizer, "whiten": whiten}
    origins = [
        None if parent is None else check_start(config, parent)
        for config, parent in zip(configs, as_starts(start, len(configs)), strict=True)
    ]
    each = [complete(c, **asked, start=origin) for c, origin in zip(configs, origins, strict=True)]
    return plan(configs, each, device_of(device), timed=True)


def plan(
    configs: Sequence[SAEConfig], each: Sequence[Settings], device: torch.device, *, timed: bool
) -> Estimate:
    """The estimate of SAEs that are trained on the same batches. each: settings of each. timed: measure a
    product for `seconds`."""
    settings = each[0]
    sizes = [_weights(config) for config in configs]
    moving = [_weights(c, s.start.trained if s.start else ()) for c, s in zip(configs, each, strict=True)]
    batch, micro = settings.batch_size, -(-settings.batch_size // settings.accumulate)
    dense = [_dense(config) for config in configs]
    activations, start, products = [], [], 0.0
    for config, is_dense in zip(configs, dense, strict=True):
        matrices = (DENSE if is_dense else SPARSE) + (settings.precision == "bfloat16") * ROUNDED
        # of dense codes those of the other micro-batches are kept till the end of the step
        kept = (batch - micro) * is_dense
        activations.append(int(4 * config.d_sae * (matrices * micro + kept)))
        on_device = device.type == "cpu"
        some = min(settings.init_rows, start_rows(config.d_sae))
        start.append(int((START if is_dense else SPARSE) * 4 * config.d_sae * some) * on_device)
        products += (DENSE_TIME if is_dense else SPARSE_TIME) * 2 * batch * config.d_read * config.d_sae
    widest = max(config.d_in for config in configs)
    whitened = [config.d_in for config, own in zip(configs, each, strict=True) if own.whiten]
    # two matrices and, at the start, the rows and some of both in float64
    white = sum(12 * d_in**2 + (batch + 4 * settings.init_rows) * d_in for d_in in whitened)
    products += sum(2 * batch * d_in**2 for d_in in whitened)
    return Estimate(
        weights=sum(sizes),
        gradients=sum(moving) + max(moving),
        optimizer=settings.optimizer.moments * sum(moving),
        activations=max(activations),
        rows=4 * widest * (7 * batch + 2 * settings.init_rows) + 4 * white,
        start=max(start),
        steps=settings.steps,
        seconds=settings.steps * products / _speed(configs[0], settings, device) if timed else None,
    )


def check_fits(
    configs: Sequence[SAEConfig], each: Sequence[Settings], device: torch.device, needed: Estimate
) -> None:
    """Raises DeviceMemoryError, saying what to lower, where the free memory of the device is known and
    smaller than what is needed."""
    free = free_memory(device)
    if free is None or needed.memory <= free:
        return
    remedy = f"Lower d_sae, by a factor of {needed.memory / max(free, 1):.1f} or more"
    settings = each[0]
    accumulate = settings.accumulate
    while accumulate < settings.batch_size:
        accumulate = min(2 * accumulate, settings.batch_size)
        less = [replace(own, accumulate=accumulate) for own in each]
        if plan(configs, less, device, timed=False).memory <= free:
            remedy = f"Pass accumulate={accumulate}, or a batch_size of {settings.batch_size // accumulate}"
            break
    few = ", or train fewer SAEs at once" if len(configs) > 1 else ""
    message = (
        f"A run must fit into the free memory of its device. Got {device} with {_size(free)} free, and an "
        f"estimate of {needed}. {remedy}{few}."
    )
    raise DeviceMemoryError(message)


def device_of(device: str | torch.device | None) -> torch.device:
    """As asked, by default this process's GPU where there is one."""
    return dist.local_device() if device is None else torch_device(device)


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be had on a device, or None where that is not known (on CPU, all but Linux)."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type != "cpu":
        return None
    try:
        found = re.search(r"MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text())
        own = Path("/proc/self/cgroup").read_text()
    except OSError:
        return None
    limits = [int(found[1]) * 1024] if found else []
    limits += cgroup_free(Path("/sys/fs/cgroup"), own)
    return min(limits, default=None)


def cgroup_free(root: Path, own: str) -> list[int]:
    """What each limit that a container or job sets for this process leaves: bytes. own: the content of
    /proc/self/cgroup. File caches count as free: the kernel drops them when memory is short."""
    left = []
    for line in own.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        base = root / controllers  # version 1 has a folder a controller
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        limit, usage, cache = names if controllers else ("memory.max", "memory.current", "inactive_file")
        inner = base / path.lstrip("/")
        # inside of a container the path is that of the host: then only the root exists
        for folder in (inner, *inner.parents):
            if not folder.is_relative_to(base):
                break
            try:
                most = (folder / limit).read_text().strip()
                used = int((folder / usage).read_text())
                found = re.search(rf"^{cache} (\d+)$", (folder / "memory.stat").read_text(), re.MULTILINE)
            except OSError:
                continue
            if most.isdigit():
                left.append(max(0, int(most) - used + (int(found[1]) if found else 0)))
    return left


def _weights(config: SAEConfig, only: tuple[str, ...] = ()) -> int:
    """Bytes of the parameters, or of some by name."""
    with torch.device("meta"):
        sae = SAE(config)
    return 4 * sum(p.numel() for name, p in sae.named_parameters() if not only or name in only)


def _dense(config: SAEConfig) -> bool:
    """Whether codes may be dense in training: a row on which every latent is equally on tells."""
    sparsifier = config.entry.sparsifier(config).train()
    pre, x = torch.ones(2, config.d_sae), torch.full((2, config.d_in), 1e9)
    dictionary = Free(config.d_sae, 1)
    dictionary.set(torch.ones(config.d_sae, 1))
    with torch.no_grad():
        return sparsifier.select(pre, x, dictionary) is None


def _speed(config: SAEConfig, settings: Settings, device: torch.device) -> float:
    """Floating-point operations a second of x @ W_enc, measured on a small part of one."""
    most = PROBE.get(device.type, PROBE["cpu"])
    rows = min(settings.batch_size, 256 if device.type == "cpu" else settings.batch_size)
    d_sae = max(1, min(config.d_sae, most // (2 * rows * config.d_in)))
    dtype = getattr(torch, settings.precision)
    x = torch.ones(rows, config.d_in, device=device, dtype=dtype)
    W = torch.ones(d_sae, config.d_in, device=device, dtype=dtype).t()
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        torch.mm(x, W)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - started)
    return 2 * rows * config.d_in * d_sae / best


def _size(n: int) -> str:
    return f"{n / 1e9:.2f} GB" if n >= 1e9 else f"{n / 1e6:.1f} MB"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
