"""train: activations in, Runs out. One loop for every recipe, and for many SAEs at once."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, overload

import torch
from torch import Tensor
from tqdm.std import tqdm

from saelab import dist
from saelab.config import boolean, integer, integer_or_none, to_dict
from saelab.errors import fitting, out_of_memory
from saelab.files import path_of, write_bytes
from saelab.progress import new_bar
from saelab.sae.config import SAEConfig
from saelab.sae.model import SAE
from saelab.training import checkpoints, shards
from saelab.training.arguments import complete, count_steps
from saelab.training.estimates import check_fits, device_of, plan
from saelab.training.interrupt import Interrupt
from saelab.training.live import Live
from saelab.training.moving import Optimizer, Schedule, Whitening
from saelab.training.rows import Rows, as_held_out, as_rows, check_enough, moved, ordinary
from saelab.training.run import Record, Run, Settings, differences, writing_alone
from saelab.training.session import Diverged, Session
from saelab.training.starting import Start, as_starts
from saelab.training.starting import check as check_start
from saelab.training.streaming import opened
from saelab.training.sweep import members
from saelab.types import ConfigError, DeviceMemoryError, NonFiniteError, RankError, nearest, short

logger = logging.getLogger(__name__)


class Event(NamedTuple):
    """What callbacks receive."""

    name: str
    """"start", "log", "checkpoint" (one is being written, and is on disk by the next), "interrupted" or
    "end"."""
    step: int
    """Steps done."""
    record: Record | None
    """The newest record, None before the first."""
    sae: SAE
    """The SAE as it is now: read it, do not change it."""
    settings: Settings
    number: int = 0
    """Which of the configs, where several are trained at once."""
    live: Live | None = None
    """How far and how fast it is; `live.stop()` ends the run after its step."""


Callback = Callable[[Event], None]


@overload
def train(config: SAEConfig, acts: Any, **options: Any) -> Run: ...


@overload
def train(config: SAEConfig, acts: Any, *, seeds: Sequence[int], **options: Any) -> list[Run]: ...


@overload
def train(config: SAEConfig, acts: Any, *, hooks: str | Sequence[str], **options: Any) -> list[Run]: ...


@overload
def train(config: Sequence[SAEConfig], acts: Any, **options: Any) -> list[Run]: ...


@dist.joined()
@fitting("What training holds", "Lower batch_size or d_sae; with more memory the same call continues.")
def train(  # pyright: ignore[reportInconsistentOverload]
    config: SAEConfig | Sequence[SAEConfig],
    acts: Any,
    *,
    steps: int | None = None,
    tokens: int | None = None,
    batch_size: int,
    seed: int = 0,
    seeds: Sequence[int] | None = None,
    hooks: str | Sequence[str] | None = None,
    out: str | Path | None = None,
    lr: float | str = "auto",
    device: str | torch.device | None = None,
    progress: bool = True,
    log_every: int | None = None,
    checkpoint_every: int | None = None,
    callbacks: Sequence[Callback] = (),
    resume: bool = True,
    precision: str = "float32",
    accumulate: int = 1,
    held_out: Any = None,
    evaluate_every: int | None = None,
    evaluate_rows: int | None = None,
    schedule: str | Schedule = "linear",
    optimizer: str | Optimizer = "adam",
    clip: float | None = 1.0,
    max_norm: float | None = None,
    whiten: bool | Whitening = False,
    start: SAE | Start | Sequence[SAE | Start | None] | None = None,
    shard: str = "data",
) -> Run | list[Run]:
    """Train an SAE, or several on one pass over the activations.

    Unless said otherwise Adam (0.9, 0.999) with gradients clipped to a total norm of 1; the learning rate
    rises linearly over the first 5 % of the steps (at most 1,000) and falls linearly to 0 over the last 20 %.
    Rows are shuffled once a pass, and passes repeat. What the run will take (`saelab.training.estimate`) is
    logged, by `logging` at level INFO, before it starts. Same seed, same numbers (one machine, one thread
    count); the global random state is not touched.

    An interrupt (Ctrl-C) ends the current step, writes a checkpoint and the SAE, and returns the Run with
    finished=False; so does the stop button of `saelab.watch`, or a file `stop` in `out`.
    Under torchrun every process makes the same call and gets the same Runs; rank 0 alone calls the callbacks
    and writes `out`. docs/scale.md says how to launch and what is exact.

    Args:
        config: What `saelab.recipe` gives; a list trains all on the same batches.
        acts: An ActivationStore (its hook is the config's, or its only one), a `saelab.stream`, or a floating
            tensor [n d_in].
        steps: Batches in all; this or `tokens`.
        tokens: Rows in all; this or `steps`.
        batch_size: Rows of a batch.
        seed: Seed of weights and order.
        seeds: Several of them: each config is trained with each, on an order of its own, to the result of a
            call with that seed alone, bit for bit. A stream runs the model once for all.
        hooks: Hook points of the store or stream, or patterns of their names (`blocks.*.hook_resid_post`):
            each config, which has no hook then, is trained at each. A stream runs the model once for all.
        out: A folder for checkpoints and the result, and meanwhile `history.jsonl`, a line for each record;
            for several, one folder each inside, `0-topk`, `1-relu`, ...
        lr: The highest learning rate, or "auto" for `learning_rate(d_sae)`.
        device: Where to train; None for a GPU where there is one.
        progress: Show a bar.
        log_every: Steps between records; by default a hundredth of the run.
        checkpoint_every: Steps between checkpoints; by default a tenth of the run. A thread writes them from
            a copy while training goes on, where memory is free for one (and there is one process).
        callbacks: Called with an `Event` at the start, each logged step, each checkpoint and the end;
            `saelab.training.TensorBoard` and `WandB` are such.
        resume: Continue an interrupted run of the same arguments, to the result of an uninterrupted one bit
            for bit; a finished run is read back. False starts anew.
        precision: "float32" or "bfloat16". The latter computes the dense products (x @ W_enc; of dense codes
            codes @ W_dec) in bfloat16; weights, Adam, losses and sums stay float32. Pre-activations, and so
            codes, are then off by at most 3 * 2^-8 * sum_i |x_i W_ij|, and what is chosen near a boundary is
            chosen by the rounded values (ties still go to the lower index). It saves time, not memory.
        accumulate: Micro-batches of a batch, one after the other, with one update from all of them: less
            memory for pre-activations, the same update. Except for what looks at a batch as a whole, which
            sees the micro-batch: the choice and threshold of batchtopk and matryoshka, the moves of gba and
            the error by which `auxk` divides.
        held_out: Rows that training does not see, on which FVU and L0 are measured in eval mode: a tensor or
            store as for acts, or how many rows to take off the end of acts (of a store the last documents').
            The history has `held_out_fvu` and `held_out_l0` of them.
        evaluate_every: Steps between measurements on `held_out`, made at the end too; by default a tenth of
            the run.
        evaluate_rows: On how many of the held-out rows, drawn once, it is measured before the end, by default
            1,024; the last measurement is of all.
        schedule: Of the learning rate: "linear", "constant", "cosine", "restarts", or a
            `saelab.training.Schedule` with lengths of its own.
        optimizer: "adam", "adamw", "signum", "muon", or a `saelab.training.Optimizer` with betas and weight
            decay of its own.
        clip: The total norm to which the gradients of a step are shortened; None leaves them as they are.
        max_norm: Leave out rows whose norm is beyond this multiple of the median norm (attention sinks,
            massive activations), held-out rows too; 10 is usual. All rows are read once for it before the
            run. `run.provenance["outliers"]` says how many were left out. A stream has it as its own option.
        whiten: Train on whitened rows, of which every direction has variance 1: by the covariance of the rows
            that the run begins with, shrunk by 1 % or by the share of a `saelab.training.Whitening`. Losses,
            FVU and unit decoder norms are those of whitened rows, which callbacks see too. The SAE that is
            given back reads raw rows, with the same codes; the norms of its decoder rows are not 1.
        start: An SAE from which the run starts, or a `saelab.training.Start` that says what of it is taken,
            what is trained, and how latents are split where the config has more; of several configs one each.
        shard: What processes divide: the rows of each batch ("data") or, for widths beyond one device, the
            latents ("latents": of recipes with one vector a latent; docs/scale.md lists them).

    Returns:
        The Run; a list of them where there is a list of configs, seeds or hooks: config by config, of each
        hook point by hook point, of these seed by seed.

    Raises:
        ConfigError: An argument is out of range.
        ShapeError: The rows do not fit the config.
        HookError: The store or stream has no such hook point.
        NonFiniteError: Rows are NaN or infinite, or training diverges; then with the step and the checkpoint
            that is left.
        DeviceMemoryError: It cannot fit, or a step runs out of memory; likewise.
        StoreError: `out` cannot be written, or another process trains into it.
        RankError: Another process fails.
    """
    several = isinstance(config, Sequence) or hooks is not None or seeds is not None
    progress, resume = boolean("progress", progress), boolean("resume", resume)
    out = None if out is None else path_of(out, "out")
    if isinstance(callbacks, str) or not isinstance(callbacks, Iterable) or not all(map(callable, callbacks)):
        message = f"callbacks must be a list of functions. Got {short(callbacks)}. Pass callbacks=[function]."
        raise ConfigError(message)
    asked: dict[str, Any] = {"batch_size": batch_size, "seed": seed, "lr": lr, "log_every": log_every}
    asked |= {"precision": precision, "accumulate": accumulate}
    asked |= {"held_out": held_out, "evaluate_every": evaluate_every, "evaluate_rows": evaluate_rows}
    asked |= {"schedule": schedule, "optimizer": optimizer, "clip": clip, "max_norm": max_norm}
    asked["whiten"] = whiten
    with dist.together(), dist.alone():
        asked["batch_size"] = batch_size = integer("batch_size", batch_size, 1)
        steps = count_steps(steps, tokens, batch_size)
        checkpoint_every = integer_or_none("checkpoint_every", checkpoint_every, 1)
        made = members(config, acts, hooks, seed, seeds)
        jobs, taken, screened = [], {}, {}
        parents = as_starts(start, made[-1].of + 1)
        for number, (each, own_seed, name, of) in enumerate(made):
            parent = parents[of]
            origin = None if parent is None else check_start(each, parent)
            settings = complete(each, steps=steps, start=origin, **{**asked, "seed": own_seed})
            rows, each = as_rows(acts, each)
            if settings.max_norm is not None:
                rows = ordinary(rows, each, settings.max_norm, screened)
            unseen = as_held_out(held_out, each, rows, taken)
            check_enough(rows, batch_size)
            folder = None if out is None else Path(out) / name if several else Path(out)
            jobs.append(_Job(number, each, rows, settings, folder, unseen, parent))
        if not isinstance(shard, str) or shard not in ("data", "latents"):
            hint = nearest(str(shard), ("data", "latents"))
            message = f"shard must be 'data' or 'latents'. Got {shard!r}. {hint}Leave it out for 'data'."
            raise ConfigError(message)
    checkpoint_every = checkpoint_every or max(1, steps // 10)
    with dist.together():
        _check_ranks(jobs, shard, checkpoint_every)
    dist.divide("rows" if shard == "data" else "latents")
    with ExitStack() as held:
        with dist.together(), dist.alone():
            if out is not None and dist.first():
                held.enter_context(writing_alone(Path(out)))
            for job in jobs if dist.first() else []:
                job.prepare(resume)
        for job in jobs:
            job.run = dist.ranks.share(job.run)
        todo = [job for job in jobs if job.run is None]
        if todo:
            where = device_of(device)
            with dist.together(), dist.alone():
                _announce(todo, where)
            found = _found([job.folder for job in todo if job.folder])
            for i, job in enumerate(todo):
                job.open(where, found[i] if found else None)
            try:
                _loop(todo, progress, checkpoint_every, callbacks)
            except BaseException:  # whoever watches is told
                for job in todo:
                    job.session.live.end("failed")
                raise
            finally:
                for job in todo:
                    job.writer.close()
    runs = [job.run for job in jobs if job.run is not None]
    return runs if several else runs[0]


def _announce(jobs: list[_Job], device: torch.device) -> None:
    """Log what the run will take; refuse one that cannot fit."""
    configs, settings = [job.config for job in jobs], [job.settings for job in jobs]
    needed = plan(configs, settings, device, timed=logger.isEnabledFor(logging.INFO))
    check_fits(configs, settings, device, needed)
    logger.info("training %s on %s: %s", ", ".join(c.recipe for c in configs), device, needed)


def _check_ranks(jobs: list[_Job], shard: str, checkpoint_every: int) -> None:
    """Every rank must have been given the same, and something that can be divided. Raises ConfigError,
    RankError."""
    if dist.ranks.size == 1:
        return
    for job in jobs:
        job.identity["data"] = job.rows.fingerprint()
    mine = {str(job.number): job.identity | {"rows": job.rows.n_rows} for job in jobs}
    mine["call"] = {"checkpoint_every": checkpoint_every, "shard": shard, "out": jobs[0].folder is not None}
    told = dist.ranks.everyone(mine)
    for rank, other in enumerate(told):
        if found := differences(told[0], other):
            message = (
                "Every rank must be given the same config, settings and data. Got on rank 0 -> on rank "
                f"{rank}: {'; '.join(found)[:600]}. Make the same call with the same rows everywhere; each "
                "rank reads its own part of every batch."
            )
            raise RankError(message)
    for job in jobs:
        shards.check(job.config, job.settings, shard, dist.ranks.size)


def _found(folders: list[Path]) -> list[checkpoints.Checkpoint] | None:
    """The newest checkpoints in the folders, which rank 0 reads for all."""
    with dist.together(), dist.alone():
        found = checkpoints.latest(folders) if folders and dist.first() else None
    told = dist.ranks.share([checkpoints.outline(each) for each in found] if found else None)
    return found or told


@dataclass
class _Job:
    """One of the SAEs that a call trains."""

    number: int
    config: SAEConfig
    rows: Rows
    settings: Settings
    folder: Path | None
    held_out: Rows | None
    parent: Start | None = None
    identity: dict[str, Any] = field(init=False)
    session: Session = field(init=False)
    writer: checkpoints.Writer = field(init=False, default_factory=checkpoints.Writer)
    run: Run | None = None

    def __post_init__(self) -> None:
        self.identity = {"config": to_dict(self.config), "settings": to_dict(self.settings)}

    @property
    def source(self) -> tuple[str, int]:
        """Equal for jobs that are given the same batches."""
        return self.rows.key(), self.settings.seed

    def prepare(self, resume: bool) -> None:
        """Check the folder, and read the run back if it is finished."""
        if self.folder is None:
            return
        write_bytes(self.folder / ".writable", b"")
        (self.folder / ".writable").unlink()
        if "data" not in self.identity:
            self.identity["data"] = self.rows.fingerprint()
        if self.held_out is not None and not self.settings.held_out:
            self.identity["held_out"] = self.held_out.fingerprint()
        self.run = checkpoints.finished(self.folder, self.identity, resume)

    def open(self, device: torch.device, found: checkpoints.Checkpoint | None) -> None:
        """Make the session, from a checkpoint if there is one."""
        settings = self.settings
        with dist.together(), dist.alone():
            if found is not None and self.folder is not None:
                checkpoints.check_same(found.identity, self.identity, self.folder)
            start = found or self.rows.first(settings.init_rows, settings.batch_size, settings.seed)
        self.session = Session(
            self.config, settings, device, self.identity, self.folder, start, self.held_out, self.parent
        )
        # of several ranks each sends its part while it is written
        self.session.writer = self.writer if dist.ranks.size == 1 else None


def _loop(jobs: list[_Job], progress: bool, checkpoint_every: int, callbacks: Sequence[Callback]) -> None:
    """Step all jobs through the same batches until the end or an interrupt; fills in their runs."""
    settings = jobs[0].settings
    sessions = [job.session for job in jobs]
    first_step = done = sessions[0].progress.step
    started = time.perf_counter()
    interrupt = Interrupt()

    def emit(name: str) -> None:
        with dist.together(), dist.alone(), interrupt.waiting():
            for job in jobs if dist.first() else []:
                history = job.session.history
                last = history[-1] if history else None
                session = job.session
                event = Event(name, done, last, session.sae, job.settings, job.number, session.live)
                for callback in callbacks:
                    callback(event)

    emit("start")
    # jobs that read the same hook in the same order share its batches
    sources = {job.source: (job.rows, job.settings.seed) for job in jobs}
    with ExitStack() as stack, interrupt, _bar(settings, first_step, progress) as bar:
        batches = opened(sources, settings.batch_size, first_step)
        batches = {key: moved(given, sessions[0].device) for key, given in batches.items()}
        for given in batches.values():
            stack.callback(given.close)
        try:
            while done < settings.steps:
                with dist.together():
                    batch = {key: next(given) for key, given in batches.items()}
                with interrupt.held():
                    records = [_step(job, batch[job.source]) for job in jobs]
                    for session, record in zip(sessions, records, strict=True):
                        if record is not None:
                            session.log(record)
                    done += 1
                    for session in sessions:
                        session.live.done(done)
                        interrupt.pending |= session.live.stop_asked()
                bar.update(settings.batch_size)
                logged = [record for record in records if record is not None]
                if logged:
                    bar.set_postfix_str(_line(logged), refresh=False)
                    emit("log")
                if done % checkpoint_every == 0 and done < settings.steps and jobs[0].folder is not None:
                    with interrupt.held():
                        _checkpoint(sessions)
                    emit("checkpoint")
        except KeyboardInterrupt:
            if interrupt.broken:  # a second Ctrl-C cut a step in half: what was on disk stays valid
                raise
            if done < settings.steps:
                _checkpoint(sessions)
    seconds = time.perf_counter() - started
    with dist.together():
        for job in jobs:
            rows = (done - first_step) * settings.batch_size
            job.run = job.session.finish(rows, seconds, outliers=job.rows.outliers())
    emit("end" if done == settings.steps else "interrupted")


def _checkpoint(sessions: list[Session]) -> None:
    with dist.together():
        for session in sessions:
            session.checkpoint()


def _step(job: _Job, batch: Tensor) -> Record | None:
    """One update. Raises NonFiniteError saying where it diverged, DeviceMemoryError saying what to lower,
    both saying what is left."""
    try:
        return job.session.step(batch)
    except Diverged as error:
        settings, step = job.settings, job.session.progress.step
        norms = batch.double().norm(dim=1)
        worst = int(norms.argmax())
        offset, _ = dist.rows.bounds(settings.batch_size)
        where = job.rows.origin(settings.batch_size, settings.seed, step, offset + worst)
        message = (
            f"The loss must stay finite. Got {error} at step {step + 1} of {settings.steps} "
            f"({job.config.recipe}; {_kept(job)}). Pass a lower lr than {settings.lr:.2g}, or look for "
            f"outliers: the longest activation of this batch is {where}, of norm {float(norms[worst]):.3g}, "
            f"the median norm is {float(norms.median()):.3g}."
        )
        raise NonFiniteError(message) from None
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        settings, step = job.settings, job.session.progress.step
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        message = (
            f"A step must fit into the memory of its device. Got, at step {step + 1} of {settings.steps} on "
            f"{job.session.device} ({job.config.recipe}; {_kept(job)}): {first} Pass "
            f"accumulate={min(2 * settings.accumulate, settings.batch_size)} or more, or lower batch_size "
            f"({settings.batch_size}) or d_sae ({job.config.d_sae}). Each of these starts a run of its own; "
            "with more memory the same call continues."
        )
        raise DeviceMemoryError(message) from error


def _kept(job: _Job) -> str:
    """What a run that stops in a step leaves behind."""
    job.writer.close()
    if job.folder is not None and (found := checkpoints.latest([job.folder])):
        return f"the checkpoint of step {found[0].step} in {job.folder} is whole"
    return "no checkpoint yet"


def _line(records: list[Record]) -> str:
    """The figures of one SAE, or the ranges of several."""

    def span(name: str, form: str) -> str:
        values = sorted(getattr(r, name) for r in records)
        low, high = format(values[0], form), format(values[-1], form)
        return low if low == high else f"{low}..{high}"

    forms = {"loss": ".4f", "FVU": ".4f", "L0": ".1f", "dead": ".1%"}
    if all(record.held_out_fvu is not None for record in records):
        forms["held-out FVU"] = ".4f"
    named = {name: name.lower().replace("-", "_").replace(" ", "_") for name in forms}
    return ", ".join(f"{name} {span(named[name], form)}" for name, form in forms.items())


def _bar(settings: Settings, step: int, progress: bool) -> tqdm:
    batch = settings.batch_size
    return new_bar(
        total=settings.steps * batch,
        initial=step * batch,
        desc="train",
        unit=" rows",
        unit_scale=True,
        disable=not boolean("progress", progress) or not dist.first(),
    )


__all__ = ["Callback", "Event", "train"]
