"""train: activations in, a Run out. One loop for every recipe."""

from __future__ import annotations

import contextlib
import math
import platform
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from saelab.config import to_dict, write_bytes
from saelab.sae.kernels import Sparse
from saelab.sae.metrics import fvu
from saelab.sae.model import SAE, Forward
from saelab.sae.recipes import RECIPES, SAEConfig
from saelab.training import checkpoints
from saelab.training.losses import LOSSES, Firing, Progress
from saelab.training.rows import Rows, as_rows
from saelab.training.rules import RULES
from saelab.training.run import Record, Run, Settings, differences
from saelab.types import ConfigError, NonFiniteError

INIT_ROWS = 16_384


class Event(NamedTuple):
    """What callbacks receive."""

    name: str
    """"start", "log", "checkpoint", "interrupted" or "end"."""
    step: int
    """Steps done."""
    record: Record | None
    """The newest record, None before the first."""
    sae: SAE
    """The SAE as it is now: read it, do not change it."""


Callback = Callable[[Event], None]


def learning_rate(d_sae: int) -> float:
    """The default learning rate: 7.5e-4 * sqrt(2^14 / d_sae).

    The scaling with width is that of Gao et al. (2024, figure 3); the factor is 3.75 times theirs, which
    suits the short runs (1,000 to 10,000 steps) of this library.
    """
    return 7.5e-4 * math.sqrt(2**14 / d_sae)


def train(
    config: SAEConfig,
    acts: Any,
    *,
    steps: int,
    batch_size: int,
    seed: int = 0,
    out: str | Path | None = None,
    lr: float | None = None,
    device: str | torch.device | None = None,
    progress: bool = True,
    log_every: int | None = None,
    checkpoint_every: int | None = None,
    callbacks: Sequence[Callback] = (),
    resume: bool = True,
) -> Run:
    """Train an SAE.

    config: of `saelab.recipe`. acts: an ActivationStore (its hook is the config's, or its only one) or a
    floating tensor [n d_in]; rows are shuffled once a pass and passes repeat until `steps` batches of
    `batch_size` are done. Adam (0.9, 0.999); lr by default `learning_rate(d_sae)`, rising linearly over the
    first 5 % of the steps (at most 1,000) and falling linearly to 0 over the last 20 %; gradients clipped to
    a total norm of 1.

    out: a folder for checkpoints (every `checkpoint_every` steps, by default a tenth of the run) and the
    result. With resume=True a call with the same arguments continues an interrupted run, and the result
    equals that of an uninterrupted one bit for bit; a finished run is read back. resume=False starts anew.
    callbacks: called with an `Event` at the start, each logged step, each checkpoint and the end. An
    interrupt (Ctrl-C) ends the current step, writes a checkpoint and returns the Run with finished=False.

    Same seed, same numbers (one machine, one thread count); the global random state is not touched. Raises
    ConfigError, ShapeError, HookError, NonFiniteError before any work; NonFiniteError where training
    diverges; StoreError where `out` cannot be written.
    """
    _check_config(config)
    for name, value in (("steps", steps), ("batch_size", batch_size)):
        _check_whole(name, value, 1)
    for name, value in (("log_every", log_every), ("checkpoint_every", checkpoint_every)):
        if value is not None:
            _check_whole(name, value, 1)
    _check_whole("seed", seed, 0)
    rows, config = as_rows(acts, config, batch_size)
    settings = _settings(config, steps, batch_size, seed, lr, log_every)
    folder = None if out is None else Path(out)
    identity: dict[str, Any] = {"config": to_dict(config), "settings": to_dict(settings)}
    found = None
    if folder is not None:
        write_bytes(folder / ".writable", b"")
        (folder / ".writable").unlink()
        identity["data"] = rows.fingerprint()
        if resume:
            if (folder / "run.json").is_file():
                return _finished(folder, identity)
            found = checkpoints.latest(folder)
            if found is not None:
                _check_same(found.identity, identity, folder)
        else:
            (folder / "run.json").unlink(missing_ok=True)
            checkpoints.remove(folder)
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    trainer = _Trainer(config, rows, settings, where, identity, folder, callbacks, found)
    return trainer.run(progress, checkpoint_every or max(1, steps // 10))


class _Trainer:
    """One run's state and its loop."""

    def __init__(
        self,
        config: SAEConfig,
        rows: Rows,
        settings: Settings,
        device: torch.device,
        identity: dict[str, Any],
        folder: Path | None,
        callbacks: Sequence[Callback],
        found: checkpoints.Checkpoint | None,
    ) -> None:
        self.rows, self.settings, self.device, self.identity = rows, settings, device, identity
        self.folder, self.callbacks = folder, callbacks
        self.history: list[Record] = []
        self.firing = Firing(config.d_sae, settings.dead_after, device)
        if found is None:
            first = rows.first(settings.init_rows, settings.batch_size, settings.seed)
            self.sae = SAE.create(config, settings.seed, first).to(device)
            variance = float((first - first.mean(0)).double().square().sum(1).mean())
        else:
            self.sae, variance = SAE(config).to(device), found.variance
        self.sae.train()
        self.progress = Progress(settings.steps, max(variance, torch.finfo(torch.float32).tiny), self.firing)
        self.parameters = dict(self.sae.named_parameters())
        self.optimizer = torch.optim.Adam(
            self.parameters.values(),
            lr=settings.lr,
            betas=(settings.beta1, settings.beta2),
            fused=True,
        )
        recipe = RECIPES[config.recipe]
        self.losses = [LOSSES[name](config, self.progress) for name in recipe.losses(config)]
        self.rules = [RULES[name]() for name in recipe.rules(config)]
        if found is not None:
            self._restore(found)

    def run(self, progress: bool, checkpoint_every: int) -> Run:
        settings = self.settings
        started, first_step = time.perf_counter(), self.progress.step
        self._emit("start")
        with _Interrupt() as interrupt, self._bar(progress) as bar:
            batches = self.rows.batches(settings.batch_size, settings.seed, start=first_step)
            try:
                while self.progress.step < settings.steps:
                    batch = next(batches)
                    with interrupt.held():
                        record = self._step(batch)
                        if record is not None:
                            self.history.append(record)
                    bar.update(settings.batch_size)
                    if record is not None:
                        bar.set_postfix_str(
                            f"loss {record.loss:.4f}, FVU {record.fvu:.4f}, L0 {record.l0:.1f}, "
                            f"dead {record.dead:.1%}",
                            refresh=False,
                        )
                        self._emit("log")
                    due = self.progress.step % checkpoint_every == 0 and self.progress.step < settings.steps
                    if self.folder is not None and due:
                        with interrupt.held():
                            self._checkpoint(self.folder)
                        self._emit("checkpoint")
            except KeyboardInterrupt:
                if interrupt.broken:  # a second Ctrl-C cut a step in half: what was on disk stays valid
                    raise
                if self.folder is not None and self.progress.step < settings.steps:
                    self._checkpoint(self.folder)
        finished = self.progress.step == settings.steps
        seconds = time.perf_counter() - started
        done = (self.progress.step - first_step) * settings.batch_size
        self.sae.eval()
        provenance = {
            "data": self.identity.get("data"),
            "weights": self.sae.fingerprint(),
            "seconds": round(seconds, 3),
            "rows_per_second": round(done / max(seconds, 1e-9)),
            "device": str(self.device),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "saelab": _saelab_version(),
            "python": platform.python_version(),
        }
        run = Run(self.sae, self.history, self.sae.config, settings, finished, provenance, self.folder)
        if finished and self.folder is not None:
            run.save(self.folder)
            checkpoints.remove(self.folder)
        self._emit("end" if finished else "interrupted")
        return run

    def _step(self, batch: Tensor) -> Record | None:
        """One update. Counts as done only at its end."""
        sae, step, settings = self.sae, self.progress.step, self.settings
        forward = sae(batch.to(self.device), sparse=True)
        loss = torch.stack([term(sae, forward) for term in self.losses]).sum()
        value = float(loss.detach())
        if not math.isfinite(value):
            message = (
                f"The loss must stay finite. Got {value} at step {step + 1} of {settings.steps}. "
                f"Pass a lower lr than {settings.lr:.2g}, or look for outliers in the activations."
            )
            raise NonFiniteError(message)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for rule in self.rules:
            rule.gradient(sae, forward, step)
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), settings.clip)
        lr = settings.lr * _schedule(step, settings)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        for rule in self.rules:
            rule(sae, forward, step)
        sae.dictionary.project()
        with torch.no_grad():
            codes = forward.codes
            sae.sparsifier.observe(codes)
            self.firing.update(codes)
        self.progress.step = step + 1
        if (step + 1) % settings.log_every and step + 1 != settings.steps and step:
            return None
        return self._record(forward, value, lr)

    @torch.no_grad()
    def _record(self, forward: Forward, loss: float, lr: float) -> Record:
        codes = forward.codes.values if isinstance(forward.codes, Sparse) else forward.codes
        return Record(
            step=self.progress.step,
            rows=self.progress.step * self.settings.batch_size,
            loss=loss,
            fvu=fvu(forward.x, forward.x_hat),
            l0=int((codes != 0).sum()) / len(forward.x),
            dead=float(self.firing.dead.float().mean()),
            lr=lr,
        )

    def _checkpoint(self, folder: Path) -> None:
        tensors = {f"sae.{name}": t for name, t in self.sae.state_dict().items()}
        for name, parameter in self.parameters.items():
            tensors |= {f"adam.{key}.{name}": t for key, t in self.optimizer.state[parameter].items()}
        tensors["firing"] = self.firing.since
        history = [record.to_plain() for record in self.history]
        checkpoints.write(
            folder,
            checkpoints.Checkpoint(
                self.progress.step, self.identity, history, self.progress.variance, tensors
            ),
        )

    def _restore(self, found: checkpoints.Checkpoint) -> None:
        self.sae.load_state_dict({n[4:]: t for n, t in found.tensors.items() if n.startswith("sae.")})
        for key in ("step", "exp_avg", "exp_avg_sq"):
            for name, parameter in self.parameters.items():
                if f"adam.{key}.{name}" not in found.tensors:  # a weight that gets no gradient
                    continue
                saved = found.tensors[f"adam.{key}.{name}"].to(self.device)
                # Adam works on the memory as it lies: moments must have their parameter's layout
                state = torch.empty_like(parameter if saved.ndim else saved, dtype=saved.dtype)
                self.optimizer.state[parameter][key] = state.copy_(saved)
        self.firing.since.copy_(found.tensors["firing"])
        self.progress.step = found.step
        self.history = [Record.from_plain(values) for values in found.history]

    def _bar(self, progress: bool) -> tqdm:
        batch = self.settings.batch_size
        return tqdm(
            total=self.settings.steps * batch,
            initial=self.progress.step * batch,
            desc="train",
            unit=" rows",
            unit_scale=True,
            disable=not progress,
        )

    def _emit(self, name: str) -> None:
        record = self.history[-1] if self.history else None
        for callback in self.callbacks:
            callback(Event(name, self.progress.step, record, self.sae))


class _Interrupt:
    """Within `held()`, Ctrl-C waits for the end of the block, so that no step is half done. A second one
    does not wait; `broken` tells that it left a block half done."""

    def __init__(self) -> None:
        self.pending = self.holding = self.broken = False

    def __enter__(self) -> _Interrupt:
        self.previous: Any = None
        if threading.current_thread() is threading.main_thread():
            self.previous = signal.getsignal(signal.SIGINT)
            if self.previous is not None:
                signal.signal(signal.SIGINT, self._arrived)
        return self

    def __exit__(self, *exception: object) -> None:
        if self.previous is not None:
            signal.signal(signal.SIGINT, self.previous)

    def _arrived(self, signum: int, frame: Any) -> None:
        if not self.holding or self.pending:
            raise KeyboardInterrupt
        self.pending = True

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        self.holding = True
        try:
            yield
        except BaseException:
            self.broken = True
            raise
        finally:
            self.holding = False
        if self.pending:
            self.pending = False
            raise KeyboardInterrupt


def _schedule(step: int, settings: Settings) -> float:
    """Factor of the learning rate at a step (from 0): linear rise, plateau, linear fall towards 0."""
    rise = min(1.0, (step + 1) / settings.warmup_steps) if settings.warmup_steps else 1.0
    fall = min(1.0, (settings.steps - step) / settings.decay_steps) if settings.decay_steps else 1.0
    return rise * fall


def _settings(
    config: SAEConfig, steps: int, batch_size: int, seed: int, lr: float | None, log_every: int | None
) -> Settings:
    lr = learning_rate(config.d_sae) if lr is None else lr
    if not isinstance(lr, (int, float)) or isinstance(lr, bool) or not 0 < lr < math.inf:
        message = f"lr must be a positive finite number. Got {lr!r}. Pass lr=None for the default."
        raise ConfigError(message)
    return Settings(
        steps=steps,
        batch_size=batch_size,
        seed=seed,
        lr=float(lr),
        warmup_steps=min(1000, steps // 20),
        decay_steps=steps // 5,
        beta1=0.9,
        beta2=0.999,
        clip=1.0,
        dead_after=config.options["dead_after"] or max(1, min(10_000_000, steps * batch_size // 10)),
        init_rows=INIT_ROWS,
        log_every=log_every or max(1, steps // 100),
    )


def _check_config(config: Any) -> None:
    if not isinstance(config, SAEConfig):
        message = f"train needs an SAEConfig. Got {type(config).__name__}. Make one by saelab.recipe(...)."
        raise ConfigError(message)


def _check_whole(name: str, value: Any, low: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        message = f"{name} must be an integer >= {low}. Got {value!r}. Pass {name}={low} or more."
        raise ConfigError(message)


def _check_same(old: dict[str, Any], new: dict[str, Any], folder: Path) -> None:
    found = differences(old, new)
    if found:
        message = (
            f"A run continues only with the same config, settings and data. Got in {folder}: "
            f"{'; '.join(found)}. "
            "Pass the old values, another out, or resume=False to start anew."
        )
        raise ConfigError(message)


def _finished(folder: Path, identity: dict[str, Any]) -> Run:
    run = Run.load(folder)
    old = {
        "config": to_dict(run.config),
        "settings": to_dict(run.settings),
        "data": run.provenance.get("data"),
    }
    _check_same(old, identity, folder)
    return run


def _saelab_version() -> str:
    try:
        return version("saelab")
    except PackageNotFoundError:  # a checkout that is not installed
        return "unknown"


__all__ = ["Callback", "Event", "learning_rate", "train"]
