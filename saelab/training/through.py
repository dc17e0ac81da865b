"""Training through the model: what counts is what the reconstruction does to what the model says.

The end-to-end loss is KL(p || q) of what the model says as it is (p) and with the reconstruction in place of
the rows (q), with or without the reconstruction of later layers (Braun et al. 2024, arXiv 2405.12241), beside
the recipe's own losses. A short fine-tuning of an SAE that was trained locally, with both losses brought to
one size (Karvonen 2025, arXiv 2503.17272), gives most of what it brings.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from saelab import dist
from saelab.arguments import a_subject, checked, listed, one_of
from saelab.capabilities import HasTargets, need
from saelab.config import boolean, integer, integer_or_none, is_number, to_dict
from saelab.errors import fitting
from saelab.files import path_of
from saelab.harvesting.batches import check_hooks, side_by_side
from saelab.interventions.reconstruction import Reconstruct
from saelab.progress import new_bar
from saelab.sae.config import SAEConfig
from saelab.subjects.reading import How
from saelab.training import checkpoints
from saelab.training.arguments import complete
from saelab.training.estimates import device_of
from saelab.training.interrupt import Interrupt
from saelab.training.model_passes import Pass, Passes, Place
from saelab.training.moving import Optimizer, Schedule
from saelab.training.run import Run, writing_alone
from saelab.training.session import Beyond, Diverged, Part, Session
from saelab.training.starting import Start, as_starts
from saelab.training.starting import check as check_start
from saelab.types import ConfigError, HookPoint, NonFiniteError, short

if TYPE_CHECKING:
    from saelab.sae import SAE
    from saelab.types import Subject

FIRST_ROWS = 4_096
"""Rows that a new SAE is made of."""
LOCAL = ("mse", "prefixes")
"""Losses of recipes that are of the reconstruction itself."""


@dataclass(frozen=True)
class Objective:
    """What is minimised, beside the recipe's penalties.

    Args:
        output: "kl": KL of what the model says from what it says untouched; "ce": its own loss (nats).
        weight: Of that, or "balance": so that it is as large as the recipe's loss of the reconstruction, or 1
            where `local` is 0.
        local: Weight of the recipe's loss of the reconstruction.
        later: Hook points after the SAE's; their fraction of variance unexplained, a mean, is added.
        later_weight: Of that.

    Raises:
        ConfigError: A value is out of range.
    """

    output: Literal["kl", "ce"] = "kl"
    weight: float | Literal["balance"] = "balance"
    local: float = 1.0
    later: tuple[str, ...] = ()
    later_weight: float = 1.0

    def __post_init__(self) -> None:
        one_of("kl", "ce")("output", self.output)
        for name in ("weight", "local", "later_weight"):
            value = getattr(self, name)
            if not (name == "weight" and value == "balance") and not (
                is_number(value) and 0 <= value < math.inf
            ):
                message = f"{name} must be a finite number from 0 on. Got {value!r}. Leave it out."
                raise ConfigError(message)
        later = [self.later] if isinstance(self.later, str | HookPoint) else listed("later", self.later)
        object.__setattr__(self, "later", tuple(str(HookPoint.of(hook)) for hook in later))


_Batch = list[tuple[Pass, Tensor, Tensor]]
"""(pass, which of its rows [samples positions], these [n width])"""


@fitting("A pass", "Pass a lower documents, or batch_size.")
@checked(subject=a_subject)
def end_to_end(
    config: SAEConfig,
    subject: Subject,
    corpus: Any,
    *,
    steps: int,
    batch_size: int,
    start: SAE | Start | None = None,
    objective: Objective | None = None,
    spliced: Sequence[SAE] = (),
    seed: int = 0,
    lr: float | str = "auto",
    documents: int = 16,
    packing: str = "document",
    long: str = "split",
    schedule: str | Schedule = "linear",
    optimizer: str | Optimizer = "adam",
    clip: float | None = 1.0,
    max_norm: float | None = None,
    log_every: int | None = None,
    out: str | Path | None = None,
    checkpoint_every: int | None = None,
    resume: bool = True,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> Run:
    """Train an SAE by what its reconstruction does to what the model says.

    Each step runs documents through the model twice: as they are, and with the reconstruction of `batch_size`
    rows in their place, through which the gradient goes back. The model's weights are not touched. The
    corpus is read in order, pass after pass; passes of a stretch of documents come in an order drawn by the
    seed.

    Args:
        config: What `saelab.recipe` gives, with its hook; an autoencoder or a transcoder.
        subject: A model that says logits of targets (`HasTargets`).
        corpus: What it reads.
        steps: Updates.
        batch_size: Rows of an update.
        start: An SAE to fine-tune, or a `saelab.training.Start`; None draws a new one.
        objective: What is minimised; by default the recipe's losses and a KL that is as large.
        spliced: Other SAEs that stand in the model too: the rows carry their errors, and the output is
            compared with that of the model without any. So SAEs of several layers learn, one after the
            other, to be used together.
        seed: Of weights and order.
        lr: The highest learning rate, or "auto" for `learning_rate(d_sae)`; a fine-tuning wants a tenth.
        documents: Of a pass.
        packing: See `saelab.harvest`.
        long: See `saelab.harvest`.
        schedule: See `saelab.train`.
        optimizer: See `saelab.train`.
        clip: See `saelab.train`.
        max_norm: Rows beyond this multiple of the median norm of the first 4,096 are neither trained on nor
            replaced; 10 is usual. `run.provenance["outliers"]` says how many.
        log_every: Steps between records; by default a hundredth of the run.
        out: A folder for the result and its checkpoints. The same call continues from the newest, with the
            result of one that was never stopped; a finished run is read back.
        checkpoint_every: Steps between checkpoints; by default a tenth of the run.
        resume: Continue what `out` holds; False starts anew, over it.
        device: Where the SAE is trained; None for a GPU where there is one.
        progress: Show a bar.

    Returns:
        The Run. Its records' loss is of all terms; FVU is that of the rows, as in `saelab.train`.

    Raises:
        ConfigError: An argument is out of range, the config reads no hook point or several, or `out` holds
            another run.
        HookError: The subject has no such hook point.
        SubjectError: The subject has no targets.
        CorpusError: There are no rows.
        ShapeError: The SAE to start from does not fit.
        NonFiniteError: Training diverges.
        DeviceMemoryError: A pass does not fit into memory.
        StoreError: `out` cannot be written.
        FormatError: None of its checkpoints is whole.
    """
    need(subject, HasTargets, "Training end to end")
    objective = Objective() if objective is None else objective
    if not isinstance(config, SAEConfig) or config.hook is None or config.widths or dist.ranks.size > 1:
        message = (
            "Training end to end is of one autoencoder or transcoder with its hook, in one process. Got "
            f"{config.title if isinstance(config, SAEConfig) else short(config)}. Pass "
            "saelab.recipe(..., hook=...)."
        )
        raise ConfigError(message)
    (parent,) = as_starts(start, 1)
    origin = None if parent is None else check_start(config, parent)
    settings = complete(
        config, steps=integer("steps", steps, 1), batch_size=integer("batch_size", batch_size, 1), seed=seed,
        lr=lr, log_every=log_every, schedule=schedule, optimizer=optimizer, clip=clip, max_norm=max_norm,
        start=origin,
    )  # fmt: skip
    texts, where = subject.corpus(corpus), device_of(device)
    folder = None if out is None else path_of(out, "out")
    how = How(integer("documents", documents, 1), packing, long)
    others = [Reconstruct(sae) for sae in listed("spliced", spliced)]
    model = _Model(subject, texts, config, objective, how, settings.seed, others)
    every = integer_or_none("checkpoint_every", checkpoint_every, 1) or max(1, settings.steps // 10)
    told = {"objective": to_dict(objective), "subject": subject.fingerprint(), **asdict(how)}
    told["spliced"] = [edit.sae.fingerprint() for edit in others]
    identity = {"config": to_dict(config), "settings": to_dict(settings), "data": texts.fingerprint()}
    identity["end_to_end"] = told
    with ExitStack() as held:
        found = None
        if folder is not None:  # before the model runs
            held.enter_context(writing_alone(folder))
            done = checkpoints.finished(folder, identity, boolean("resume", resume))
            if done is not None:
                return done
            (found,) = checkpoints.latest([folder]) or [None]
        if found is not None and folder is not None:
            checkpoints.check_same(found.identity, identity, folder)
        if settings.max_norm is not None:
            model.passes.within(settings.max_norm)
        start_at = model.first(settings.batch_size) if found is None else found
        session = Session(config, settings, where, identity, folder, start_at, parent=parent)
        session.weights = dict.fromkeys(LOCAL, objective.local)
        place = Place() if found is None else Place.of(found.tensors["place"])
        started, before = time.perf_counter(), session.progress.step
        _loop(session, model, place, every, boolean("progress", progress))
        n_rows = (session.progress.step - before) * settings.batch_size
        more = {"end_to_end": told, "outliers": model.passes.outliers()}
        return session.finish(n_rows, time.perf_counter() - started, **more)


def _loop(session: Session, model: _Model, place: Place, every: int, progress: bool) -> None:
    """All steps that are left, or those until an interrupt."""
    settings = session.settings
    size, first = settings.batch_size, session.progress.step
    bar = new_bar(
        total=settings.steps * size, initial=first * size, desc="train", unit=" rows", unit_scale=True,
        disable=not progress,
    )  # fmt: skip

    def checkpoint() -> None:
        session.checkpoint(place=torch.tensor(place))

    with bar, Interrupt() as interrupt:
        try:
            for batch, after in itertools.islice(model.batches(size, place), settings.steps - first):
                with interrupt.held():
                    given = [
                        Part(rows.to(session.device), model.beyond(each, at)) for each, at, rows in batch
                    ]
                    record = session.step(given)
                    if record is not None:
                        session.log(record)
                    place, done = after, session.progress.step
                    session.live.done(done)
                    interrupt.pending |= session.live.stop_asked()
                    if done % every == 0 and done < settings.steps:
                        checkpoint()
                bar.update(size)
        except Diverged as error:
            step = session.progress.step + 1
            message = f"The loss must stay finite. Got {error} at step {step}. Pass lr<{settings.lr:.2g}."
            raise NonFiniteError(message) from None
        except KeyboardInterrupt:
            if interrupt.broken:
                raise
            if session.progress.step < settings.steps:
                checkpoint()


class _Model:
    """The model beneath an SAE: its passes, and what a reconstruction does to them."""

    def __init__(
        self,
        subject: Any,
        corpus: Any,
        config: SAEConfig,
        objective: Objective,
        how: How,
        seed: int,
        others: Sequence[Reconstruct],
    ) -> None:
        self.subject, self.objective, self.others = subject, objective, others
        assert config.hook is not None
        self.reads = check_hooks(subject, [config.hook], corpus)
        self.writes = check_hooks(subject, [config.hook_out or config.hook], corpus)
        self.sides = self.reads if config.d_out is None else [*self.reads, *self.writes]
        self.later = check_hooks(subject, objective.later, corpus) if objective.later else []
        named = {str(hook): hook for hook in (*self.reads, *self.writes, *self.later)}
        hooks: list[HookPoint] = list(named.values())
        self.passes = Passes(
            subject, corpus, hooks, how, seed, probabilities=objective.output == "kl", edits=others
        )

    def first(self, size: int) -> Tensor:
        """[n width], what a new SAE is made of"""
        looked_at = itertools.islice(self.batches(size, Place()), max(1, FIRST_ROWS // size))
        return torch.cat([rows for batch, _ in looked_at for _, _, rows in batch])

    def batches(self, size: int, place: Place) -> Iterator[tuple[_Batch, Place]]:
        """Endless batches of `size` rows, from a place on: (the batch, the place after it)."""
        held: _Batch = []
        n = 0
        for each, reached in self.passes.after(place):
            rows = side_by_side({name: x[each.kept] for name, x in each.arriving.items()}, self.sides)
            at = reached.rows
            while at < len(rows):
                end = min(len(rows), at + size - n)
                which = each.kept.nonzero()[at:end]
                held.append((each, which, rows[at:end]))
                n, at = n + end - at, end
                if n == size:
                    yield held, reached._replace(rows=at)
                    held, n = [], 0

    def beyond(self, each: Pass, which: Tensor) -> Beyond | None:
        """The loss of a reconstruction in place of some rows of a pass; None where nothing of it counts."""
        objective = self.objective
        if objective.weight == 0 and not (self.later and objective.later_weight):
            return None

        def loss(x_hat: Tensor) -> Tensor:
            def edit(acts: Tensor) -> Tensor:
                out = acts.clone()
                out[which[:, 0], which[:, 1]] = x_hat.to(out)
                return out

            edits = [*self.others, (self.writes[0], edit)]
            run = self.subject.run(each.inputs, read=self.later, edits=edits, grad=True)
            told = (each.ce if objective.output == "ce" else each.kl)(run.output).to(x_hat.device)
            total = told * self._weight(told, x_hat, each, which)
            for hook in self.later:
                clean, now = each.acts[str(hook)][each.kept], run.acts[str(hook)][each.kept]
                spread = (clean - clean.mean(0)).square().sum().clamp_min(1e-12)
                share = (now - clean).square().sum() / spread / len(self.later)
                total = total + objective.later_weight * share.to(total.device)
            return total

        return loss

    def _weight(self, told: Tensor, x_hat: Tensor, each: Pass, which: Tensor) -> Tensor | float:
        if self.objective.weight != "balance":
            return self.objective.weight
        if not self.objective.local:
            return 1.0
        wanted = each.arriving[str(self.writes[0])][which[:, 0], which[:, 1]].to(x_hat)
        spread = (wanted - wanted.mean(0)).square().sum().clamp_min(1e-12)
        own = (wanted - x_hat.detach()).square().sum() / spread
        return self.objective.local * own / told.detach().clamp_min(1e-8)


__all__ = ["Objective", "end_to_end"]
