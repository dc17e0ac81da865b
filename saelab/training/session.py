"""One SAE in training: its state, one step, its checkpoints."""

from __future__ import annotations

import functools
import math
import platform
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saelab import dist
from saelab.sae.config import SAEConfig
from saelab.sae.kernels import Sparse
from saelab.sae.memory import Kept, kept
from saelab.sae.metrics import FVU
from saelab.sae.model import SAE
from saelab.sae.network import Forward
from saelab.training import checkpoints, shards
from saelab.training.arguments import EVALUATE_ROWS
from saelab.training.live import NAME, Live
from saelab.training.losses import LOSSES, Firing, Progress, n_nonzero
from saelab.training.optimizers import Optimizers
from saelab.training.rows import Rows
from saelab.training.rules import RULES
from saelab.training.run import LINES, Record, Run, Settings, append_lines
from saelab.training.starting import Start, begin, encoder_moves, observes
from saelab.training.whitening import Whitener, check_folds, fit


class Diverged(Exception):
    """The loss of a step is not finite; the step was not done."""


WHITENING = tuple(f"whiten.{name}" for name in Whitener._fields)
Beyond = Callable[[Tensor], Tensor]


class Part(NamedTuple):
    """A micro-batch."""

    rows: Tensor
    """[n width]"""
    beyond: Beyond | None = None
    """of rows that stand in a pass of the model: what the reconstruction [n d_out], put in their place, does
    to it, a loss"""


class Session:
    """What the rest of a run depends on.

    start: the rows that training begins with, from which everything is made anew, or a checkpoint to go on
    from. parent: the SAE that the run starts from, and what becomes of it.
    """

    def __init__(
        self,
        config: SAEConfig,
        settings: Settings,
        device: torch.device,
        identity: dict[str, Any],
        folder: Path | None,
        start: Tensor | checkpoints.Checkpoint,
        held_out: Rows | None = None,
        parent: Start | None = None,
    ) -> None:
        self.config, self.settings, self.device = config, settings, device
        self.identity, self.folder, self.held_out = identity, folder, held_out
        self.writer: checkpoints.Writer | None = None
        """what writes checkpoints while training goes on"""
        self.history: list[Record] = []
        self.memory = Kept()
        own = shards.local(config)
        self.firing = Firing(own.d_sae, settings.dead_after, device)
        self.whitener: Whitener | None = None
        if isinstance(start, Tensor):
            x, y = split(start, config)
            if settings.whiten is not None:
                raw, self.whitener = x.cpu(), fit(x, settings.whiten)
                x = self.whitener(raw)
            with dist.same_rows():
                sae = SAE.create(own, settings.seed, *((x, y) if parent is None else ()))
                if parent is not None:
                    begin(sae, parent, config, settings.seed, x, y)
            shards.align(sae)
            wanted = sae.target(x, y)
            variance = dist.ranks.share(float((wanted - wanted.mean(0)).double().square().sum(1).mean()))
            if self.whitener is not None:
                check_folds(sae, self.whitener, raw)
            self.sae = sae.to(device)
        else:
            self.sae, variance = SAE(own).to(device), start.variance
        if self.whitener is not None:
            self.whitener = self.whitener.to(device)
        self.sae.train()
        self.progress = Progress(settings.steps, max(variance, torch.finfo(torch.float32).tiny), self.firing)
        moving = settings.start.trained if settings.start is not None else ()
        self.parameters = {n: p for n, p in self.sae.named_parameters() if not moving or n in moving}
        self.held = [
            p for n, p in self.sae.named_parameters() if p.requires_grad and n not in self.parameters
        ]
        for parameter in self.held:
            parameter.requires_grad_(False)
        self.observes = encoder_moves(moving) or (parent is not None and observes(parent, config))
        self.projects = not moving or any(name.startswith("dictionary.") for name in moving)
        self.optimizer = Optimizers(settings.optimizer, self.parameters, settings.lr)
        recipe = config.entry
        self.losses = {name: LOSSES[name](config, self.progress) for name in recipe.losses(config)}
        self.weights: dict[str, float] = {}
        """of losses that do not count as they are"""
        rules = [n for n in recipe.rules(config) if n != "unit_norm" or self.projects]
        self.rules = [RULES[name](config, self.progress) for name in rules]
        if not isinstance(start, Tensor):
            self._restore(start)
        if (
            folder is not None and dist.first()
        ):  # what a run that was killed logged after its checkpoint comes again
            (folder / LINES).unlink(missing_ok=True)
            append_lines(folder, self.history)
        told, steps = folder if dist.first() else None, (settings.steps, settings.batch_size)
        self.live = Live(told, config.title, config.d_sae, *steps, self.progress.step)

    def step(self, batch: Tensor | Sequence[Part]) -> Record | None:
        """One update, from the gradients of all micro-batches of a batch, where ranks share it with this
        rank's part of it. Counts as done only at its end.

        batch: Rows, or micro-batches with a loss of what comes after."""
        step, settings = self.progress.step, self.settings
        last = step + 1 == settings.steps
        evaluated = bool(settings.evaluate_every) and (last or (step + 1) % settings.evaluate_every == 0)
        # under autocast products are bfloat16, and not those of `saelab.sae.dense`
        with nullcontext() if settings.precision == "bfloat16" else kept(self.memory):
            done, loss, lr = self._update(batch)
            if (step + 1) % settings.log_every and not last and step and not evaluated:
                return None
            record = self._record(done, loss, lr)
        return record._replace(**self._evaluate(last)) if evaluated else record

    def _update(self, batch: Tensor | Sequence[Part]) -> tuple[list[Forward], float, float]:
        """The update of `step`: (the passes of its micro-batches, without graph; loss; learning rate)."""
        sae, step, settings = self.sae, self.progress.step, self.settings
        for rule in self.rules:
            rule.before(sae)
        self.optimizer.zero_grad()
        loss, done = 0.0, []
        if isinstance(batch, Tensor):
            batch = [Part(rows) for rows in self._seen(batch).tensor_split(settings.accumulate)]
        for rows, beyond in batch:
            forward, share = self._backward(rows, len(rows) / settings.batch_size, beyond)
            loss += share
            done.append(forward)
        dist.rows.sum_gradients(list(self.parameters.values()))
        for rule in self.rules:
            rule.gradient(sae, done[-1])
        self._clip()
        lr = settings.lr * settings.schedule.factor(step, settings.steps)
        self.optimizer.step(lr)
        for rule in self.rules:
            rule.after(sae, done[-1], self.optimizer)
        if self.projects:
            sae.dictionary.project()
        with torch.no_grad():
            for forward in done if self.observes else ():
                sae.sparsifier.observe(forward.codes, forward.pre, sae.dictionary)
            self.firing.update(*(forward.codes for forward in done))
        self.progress.step = step + 1
        return done, loss, lr

    def _seen(self, rows: Tensor) -> Tensor:
        """What the SAE sees of raw rows."""
        rows = rows.to(self.device)
        return rows if self.whitener is None else self.whitener(rows)

    def log(self, record: Record) -> None:
        """Add to the history, and to its file if the run has a folder. Raises StoreError."""
        self.history.append(record)
        # where latents are divided each rank knows its own
        self.live.log(record.step, self.firing.density if dist.latents.size == 1 else None)
        if self.folder is not None and dist.first():
            append_lines(self.folder, [record])

    def _backward(self, rows: Tensor, share: float, beyond: Beyond | None) -> tuple[Forward, float]:
        """Add a micro-batch's part of the gradient: (its pass, without graph; its part of the loss, over
        ranks)."""
        # in older torch a cast cached without gradient kept it from later ones (pytorch issue 65766), and the
        # encoder product of a pass whose codes are sparse is such a one
        precision = torch.autocast(
            self.device.type,
            torch.bfloat16,
            enabled=self.settings.precision == "bfloat16",
            cache_enabled=False,
        )
        with precision:
            forward = self.sae(*split(rows, self.sae.config), sparse=True)
        own = [self.weights.get(name, 1.0) * term(self.sae, forward) for name, term in self.losses.items()]
        if beyond is not None:
            own.append(beyond(forward.x_hat))
        loss = torch.stack(own).sum() * share
        value = float(dist.rows.total(loss.detach()))
        if not math.isfinite(value):
            raise Diverged(value)
        pre = forward.pre.detach()
        if not self.sae.sparsifier.observes_pre:
            # the largest tensor of a step: where codes are sparse no gradient needs it, else the graph has it
            pre = pre.new_empty(0, pre.shape[-1])
        forward = forward._replace(pre=pre)
        # a loss of what comes after goes through the model, whose weights it leaves alone
        loss.backward(inputs=[p for p in self.parameters.values() if p.requires_grad])
        codes = forward.codes
        codes = codes._replace(values=codes.values.detach()) if isinstance(codes, Sparse) else codes.detach()
        return forward._replace(codes=codes, x_hat=forward.x_hat.detach()), value

    def _clip(self) -> None:
        """Bring the gradient of the whole SAE to a norm of at most `clip`."""
        if self.settings.clip is None:
            return
        own = [p for name, p in self.parameters.items() if name != "b_dec" and p.grad is not None]
        if dist.latents.size == 1:
            torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.settings.clip)
            return
        norm = torch.nn.utils.get_total_norm([p.grad for p in own if p.grad is not None])
        square = dist.latents.total(norm.square())
        if self.sae.b_dec.grad is not None:  # which all hold
            square = square + self.sae.b_dec.grad.square().sum()
        torch.nn.utils.clip_grads_with_norm_(self.parameters.values(), self.settings.clip, square.sqrt())

    @torch.no_grad()
    def _record(self, done: list[Forward], loss: float, lr: float) -> Record:
        explained, nonzero = FVU(), 0
        for forward in done:
            assert forward.y is not None
            explained.update(forward.y, forward.x_hat)
            nonzero += n_nonzero(forward.codes)
        return Record(
            step=self.progress.step,
            rows=self.progress.step * self.settings.batch_size,
            loss=loss,
            fvu=explained.over_ranks().value,
            l0=dist.ranks.count(nonzero) / self.settings.batch_size,
            dead=dist.latents.count(int(self.firing.dead.sum())) / self.config.d_sae,
            lr=lr,
        )

    @torch.no_grad()
    def _evaluate(self, last: bool) -> dict[str, float]:
        """FVU and L0 on held-out rows, as after training: in eval mode and float32. last: on all of them."""
        assert self.held_out is not None
        explained, nonzero = FVU(), 0
        size = -(-self.settings.batch_size // self.settings.accumulate)
        self.sae.eval()
        with dist.same_rows(), kept(self.memory):
            for at in (torch.arange(self.held_out.n_rows) if last else self.looked_at).split(size):
                rows = self._seen(self.held_out.gather(at))
                forward = self.sae(*split(rows, self.config), sparse=True)
                assert forward.y is not None
                explained.update(forward.y, forward.x_hat)
                nonzero += n_nonzero(forward.codes)
        self.sae.train()
        return {"held_out_fvu": explained.value, "held_out_l0": dist.latents.count(nonzero) / explained.n}

    @functools.cached_property
    def looked_at(self) -> Tensor:
        """Which held-out rows are measured before the end: `evaluate_rows` of them, drawn once."""
        assert self.held_out is not None
        generator = torch.Generator().manual_seed(self.settings.seed)
        drawn = torch.randperm(self.held_out.n_rows, generator=generator)
        return drawn[: self.settings.evaluate_rows or EVALUATE_ROWS].sort().values

    def checkpoint(self, **more: Tensor) -> None:
        """Write one, if the run has a folder; rank 0 does. more: kept beside it. Raises StoreError."""
        if self.folder is None:
            return
        tensors = more | {f"sae.{name}": t for name, t in self.sae.state_dict().items()}
        for name, parameter in self.parameters.items():
            tensors |= {f"moves.{key}.{name}": t for key, t in self.optimizer.state(parameter).items()}
        tensors |= {"firing": self.firing.since, "density": self.firing.density}
        if self.whitener is not None:
            tensors |= dict(zip(WHITENING, self.whitener, strict=True))
        tensors["aim"] = torch.tensor(self.progress.aim, dtype=torch.float64)
        given = shards.given(tensors, self.config.d_sae)
        made = checkpoints.Checkpoint(
            self.progress.step, self.identity, list(self.history), self.progress.variance, given
        )
        try:
            if dist.first():
                (self.writer.write if self.writer else checkpoints.write)(self.folder, made)
        finally:  # the others read the pieces too, or rank 0 would wait for them
            for tensor in given.values():
                for _ in tensor.pieces if isinstance(tensor, shards.Pieces) else ():
                    pass

    def _restore(self, found: checkpoints.Checkpoint) -> None:
        tensors = {
            name: shards.received(name, tensor, self.config.d_sae)
            for name, tensor in found.tensors.items()
            if isinstance(tensor, Tensor)
        }
        self.sae.load_state_dict({n[4:]: t for n, t in tensors.items() if n.startswith("sae.")})
        for full, saved in tensors.items():
            kind, _, rest = full.partition(".")
            if kind not in ("moves", "adam"):  # the second of checkpoints before 0.2
                continue
            key, _, name = rest.partition(".")
            parameter = self.parameters[name]
            # optimizers work on the memory as it lies: moments must have their parameter's layout
            state = torch.empty_like(parameter if saved.ndim else saved, dtype=saved.dtype)
            self.optimizer.state(parameter)[key] = state.to(self.device).copy_(saved)
        if self.settings.whiten is not None:
            self.whitener = Whitener(*(tensors[name].to(self.device) for name in WHITENING))
        self.firing.since.copy_(tensors["firing"])
        self.firing.density.copy_(tensors["density"])
        self.firing.rows = found.step * self.settings.batch_size
        self.progress.step = found.step
        if "aim" in tensors:  # not in checkpoints before 0.2
            moved, lately = tensors["aim"].tolist()
            self.progress.aim = moved, lately
        self.history = list(found.history)

    def finish(self, rows: int, seconds: float, **told: Any) -> Run:
        """The Run as it is now; written and rid of its checkpoints if every step is done. Of another the SAE
        is written, beside the checkpoint by which it goes on.

        rows, seconds: of this call. told: more of the provenance.
        """
        sae = shards.whole(self.sae, self.config).eval()
        if self.whitener is not None:
            self.whitener.fold(sae)
        for parameter in self.held:
            parameter.requires_grad_(True)
        finished = self.progress.step == self.settings.steps
        if self.writer is not None and not finished:
            self.writer.wait()
        self.live.end("finished" if finished else "stopped" if self.live.stop_asked() else "interrupted")
        provenance = {
            "ended": self.live.state,
            "data": self.identity.get("data"),
            "held_out": self.identity.get("held_out"),
            **told,
            "weights": sae.fingerprint(),
            "start": self.settings.start and self.settings.start.weights,
            "seconds": round(seconds, 3),
            "rows_per_second": round(rows / max(seconds, 1e-9)),
            "device": str(self.device),
            "ranks": dist.ranks.size,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "saelab": _saelab_version(),
            "python": platform.python_version(),
        }
        live = self.live.to_dict()
        run = Run(sae, self.history, self.config, self.settings, finished, provenance, self.folder, live)
        if self.folder is None or not dist.first():
            return run
        if not finished:
            sae.save(self.folder)
            return run
        run.save(self.folder)
        checkpoints.remove(self.folder)
        for name in (LINES, NAME):
            (self.folder / name).unlink(missing_ok=True)
        return run


def split(rows: Tensor, config: SAEConfig) -> tuple[Tensor, Tensor | None]:
    """(inputs, targets) of training rows, which hold both side by side for a transcoder."""
    return (rows, None) if config.d_out is None else (rows[:, : config.d_in], rows[:, config.d_in :])


def _saelab_version() -> str:
    try:
        return version("saelab")
    except PackageNotFoundError:  # a checkout that is not installed
        return "unknown"
