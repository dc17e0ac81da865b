"""Training of the embedded language model, resumable."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from saelab.corpora.world import BASIC, FAMILIES
from saelab.embedded.data import Chunk, write_chunk
from saelab.embedded.optimizers import Optimizers
from saelab.embedded.scores import all_scores

CHUNK_STEPS = 200


class Plan(NamedTuple):
    """How long and how to train.

    lengths: tokens a row, each for an equal share of the steps; most come in short rows, some in rows of the
    full context.
    """

    tokens: int
    seed: int = 0
    families: tuple[str, ...] = tuple(FAMILIES)
    tokens_per_step: int = 8_192
    micro_batches: int = 2
    lengths: tuple[int, ...] = (128, 128, 128, 128, 256)
    warmup: int = 200
    decay_share: float = 0.35
    lr_matrices: float = 6e-3
    lr_others: float = 3e-3

    @property
    def steps(self) -> int:
        return self.tokens // self.tokens_per_step

    def length(self, step: int) -> int:
        """Tokens a row at a step; the same within a chunk."""
        chunk_start = min(step - step % CHUNK_STEPS, self.steps - 1)
        return self.lengths[len(self.lengths) * chunk_start // self.steps]

    def lr(self, step: int) -> float:
        """Factor on both learning rates: warm up, stay, go down to 0 in a straight line."""
        left = (self.steps - step) / max(self.steps * self.decay_share, 1)
        return max(0.0, min(1.0, (step + 1) / self.warmup, left))


def new_model(n_ctx: int = 256, seed: int = 0) -> Any:
    """An untrained model of the embedded architecture: 4 layers, 8 heads, d_model 128."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        n_layer=4,
        n_head=8,
        n_embd=128,
        n_positions=n_ctx,
        vocab_size=1024,
        activation_function="gelu_pytorch_tanh",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=3,
        pad_token_id=3,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        # softmax and matrix products in bfloat16 are the fastest on a CPU, and need the plain attention
        return GPT2LMHeadModel._from_config(config, attn_implementation="eager")


def train_model(
    tokenizer: Any,
    paragraphs: list[str],
    work: Path,
    plan: Plan,
    *,
    model: Any,
    device: str = "cpu",
    report: Callable[[str], None],
) -> tuple[Any, list[dict[str, float]]]:
    """Train a model for one phase, or go on from the checkpoint in `work`.

    Gives the model and the phase's history (step, tokens, loss, scores).
    """
    work.mkdir(parents=True, exist_ok=True)
    model = model.to(device).train()
    optimizers, checkpoint = Optimizers(model, plan, ".h.", 0.01), work / "checkpoint.pt"
    step, history = optimizers.resumed(checkpoint, device, report)

    began, seen, running = time.monotonic(), 0, []
    with _Chunks(tokenizer, paragraphs, work / "rows", plan) as chunks:
        while step < plan.steps:
            rows = chunks.rows(step).to(device)
            optimizers.rate(step)
            total = 0.0
            for some in rows.chunk(plan.micro_batches):
                with torch.autocast(device, dtype=torch.bfloat16):
                    logits = model(some, use_cache=False).logits[:, :-1]
                loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), some[:, 1:].flatten())
                (loss / plan.micro_batches).backward()
                total += loss.item() / plan.micro_batches
            optimizers.step()
            running.append(total)
            step, seen = step + 1, seen + rows.numel()
            if step % CHUNK_STEPS == 0 or step == plan.steps:
                entry = {"step": step, "tokens": step * plan.tokens_per_step, "loss": float(np.mean(running))}
                running = []
                if step % (5 * CHUNK_STEPS) == 0 or step == plan.steps:
                    entry |= all_scores(model, tokenizer)
                    model.train()
                history.append(entry)
                optimizers.save(checkpoint, step, history)
                rate = seen / (time.monotonic() - began)
                report(f"{json.dumps(entry)} {rate:,.0f} tokens/s, {step}/{plan.steps}")
    return model.eval(), history


def phases(tokens: int, seed: int) -> list[Plan]:
    """First the basic families, then all of them: what was learned on few templates is loosened from them.
    Last with more docstrings, whose order of arguments is learned last.

    tokens: of the first phase; the others take 0.6, 0.3 and 0.3 of that.
    """
    later = Plan(
        int(tokens * 0.6),
        seed + 1,
        # the full context in between: after a last part of long rows the order of arguments was lost
        lengths=(128, 128, 256, 128, 128, 128, 256, 128, 128, 128),
        decay_share=0.6,
        lr_matrices=4e-3,
        lr_others=2e-3,
    )
    # a family that is named three times has three times its weight
    docstrings = tuple(f for f in FAMILIES if f.startswith("docstring"))
    families = (*FAMILIES, *docstrings, *docstrings)
    more = later._replace(tokens=int(tokens * 0.3), seed=seed + 1_000, families=families, decay_share=0.8)
    # long rows first: the order of arguments comes back only in short ones
    last = more._replace(seed=seed + 2_000, lengths=(256, *[128] * 9), lr_matrices=3e-3, lr_others=1.5e-3)
    return [Plan(tokens, seed, BASIC), later, more, last]


class _Chunks:
    """Rows of each step, the next chunk being written by another process while this one is read."""

    def __init__(self, tokenizer: Any, paragraphs: list[str], folder: Path, plan: Plan) -> None:
        self._arguments = (tokenizer, paragraphs)
        self._folder, self._plan = folder, plan
        self._pool = ProcessPoolExecutor(1)
        self._coming: dict[int, Future[Path]] = {}
        self._open: tuple[int, np.ndarray] | None = None

    def __enter__(self) -> _Chunks:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def rows(self, step: int) -> torch.Tensor:
        """int64 [rows length] of a step."""
        at = step // CHUNK_STEPS
        if self._open is None or self._open[0] != at:
            for index in (at, at + 1):
                if index not in self._coming:
                    self._coming[index] = self._pool.submit(
                        write_chunk, *self._arguments, self._chunk(index), self._folder
                    )
            path = self._coming.pop(at).result()
            self._open = (at, np.load(path))
            path.unlink()
        per_step = self._plan.tokens_per_step // self._plan.length(step)
        first = step % CHUNK_STEPS * per_step
        return torch.from_numpy(self._open[1][first : first + per_step].astype(np.int64))

    def _chunk(self, index: int) -> Chunk:
        length = self._plan.length(index * CHUNK_STEPS)
        rows = CHUNK_STEPS * (self._plan.tokens_per_step // length)
        return Chunk(index, rows, length, self._plan.seed, self._plan.families)
