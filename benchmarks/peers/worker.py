"""One training loop in a process of its own: `worker.py NAME d_in,d_sae,k,batch TURN THREADS DEVICE`.

It is run by saelab's interpreter or by that of the peers' environment, and imports only the library that it
is asked for. Each line on stdin has it do TURN steps, which it answers by a line of JSON on stdout:
{"seconds": a step, "bytes": by which memory rose above what weights, Adam's moments and rows take, "held":
bytes then}. The first turn is done unasked, to warm up. Seconds on one CPU thread are CPU time, which is not
longer where other processes take turns on the core; on several threads, or a GPU, they are wall time.

NAME: "product", the bare x @ W_enc; "encode", saelab's encode_sparse; "plain"; "saelab:RECIPE" or
"saelab:RECIPE:PRECISION"; "sparsify"; "saelens"; "saelens_sparse"; "dictionary_learning". No latent is dead,
so that no loss of dead latents runs.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NEVER = 10**9
"""Steps of a run that is ended from outside."""


@dataclass
class Shape:
    """What is trained. Rows are d_in wide, steps take `batch` of them."""

    d_in: int
    d_sae: int
    k: int
    batch: int
    turn: int
    device: str

    def rows(self) -> Tensor:
        """Four batches of rows about a mean that is not 0."""
        generator = torch.Generator().manual_seed(0)
        return (torch.randn(4 * self.batch, self.d_in, generator=generator) + 1).to(self.device)

    def batches(self) -> Callable[[], Tensor]:
        """Gives them in turn."""
        parts, state = self.rows().split(self.batch), [0]

        def draw() -> Tensor:
            state[0] += 1
            return parts[state[0] % len(parts)]

        return draw


class Server:
    """Does a turn for each line of stdin, and ends the process with it."""

    def __init__(self, turn: int, cuda: bool) -> None:
        # libraries print: the answers get stdout for themselves
        self.out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self.turn, self.left, self.cuda = turn, turn, cuda
        self.clock = time.process_time if torch.get_num_threads() == 1 and not cuda else time.perf_counter
        self.started = self.held = 0.0

    def after(self, parameters: Iterable[Tensor]) -> None:
        """To be called after each step: returns when the next one is to be done."""
        self.left -= 1
        if self.left:
            return
        if self.cuda:
            torch.cuda.synchronize()
        seconds = (self.clock() - self.started) / self.turn
        peak = torch.cuda.max_memory_allocated() if self.cuda else _status("VmHWM")
        answer = {"seconds": seconds, "bytes": peak - self.held, "held": self.held}
        print(json.dumps(answer), file=self.out, flush=True)
        if not sys.stdin.readline():
            os._exit(0)
        for parameter in parameters:
            parameter.grad = None
        self._restart_peak()
        self.left, self.started = self.turn, self.clock()

    def _restart_peak(self) -> None:
        gc.collect()
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            self.held = torch.cuda.memory_allocated()
        elif sys.platform == "linux":
            Path("/proc/self/clear_refs").write_text("5")  # the peak becomes what is resident now
            self.held = _status("VmRSS")


def _status(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines() if sys.platform == "linux" else []
    return next((1024.0 * int(line.split()[1]) for line in lines if line.startswith(key + ":")), 0.0)


def _loop(server: Server, parameters: Iterable[Tensor], step: Callable[[], object]) -> None:
    parameters = list(parameters)
    while True:
        step()
        server.after(parameters)


def product(server: Server, shape: Shape) -> None:
    """x @ W_enc, W_enc laid out as saelab keeps it."""
    x = shape.batches()
    W_enc = torch.randn(shape.d_sae, shape.d_in, device=shape.device).t()
    _loop(server, [], lambda: x() @ W_enc)


def encode(server: Server, shape: Shape) -> None:
    """saelab's encode_sparse."""
    import saelab
    from saelab.sae import SAE

    config = saelab.recipe("topk", d_in=shape.d_in, d_sae=shape.d_sae, k=shape.k)
    sae, x = SAE.create(config, 0, shape.rows()).to(shape.device), shape.batches()
    _loop(server, [], lambda: sae.encode_sparse(x()))


def ours(server: Server, shape: Shape, name: str) -> None:
    """`saelab.train` as it stands: batches gathered, forward, backward, rules, clipping, Adam, counts."""
    import saelab

    recipe, _, precision = name.partition(":")
    config = saelab.recipe(recipe, d_in=shape.d_in, d_sae=shape.d_sae, k=shape.k, dead_after=10**12)

    def turn(event: Any) -> None:
        if event.name == "log" and event.step % shape.turn == 0:  # the very first step is logged too
            server.left = 1
            server.after(event.sae.parameters())

    rows = shape.rows()
    saelab.train(config, rows, steps=NEVER, batch_size=shape.batch, log_every=shape.turn, device=shape.device,
                 precision=precision or "float32", progress=False, callbacks=[turn])  # fmt: skip


def plain(server: Server, shape: Shape) -> None:
    """TopK training as one would write it down: a dense code matrix, autograd, fused Adam."""
    W_dec = nn.Parameter(F.normalize(torch.randn(shape.d_sae, shape.d_in, device=shape.device), dim=1))
    W_enc = nn.Parameter(W_dec.detach().t().contiguous())
    b_enc = nn.Parameter(torch.zeros(shape.d_sae, device=shape.device))
    b_dec = nn.Parameter(torch.zeros(shape.d_in, device=shape.device))
    parameters = [W_enc, b_enc, W_dec, b_dec]
    optimizer = torch.optim.Adam(parameters, lr=1e-4, fused=True)
    batch = shape.batches()

    def step() -> None:
        x = batch()
        values, indices = ((x - b_dec) @ W_enc + b_enc).topk(shape.k, dim=1)
        codes = x.new_zeros(len(x), shape.d_sae).scatter(1, indices, values.relu())
        loss = (codes @ W_dec + b_dec - x).square().sum() / len(x)
        optimizer.zero_grad()
        loss.backward()
        with torch.no_grad():
            grad = W_dec.grad
            assert grad is not None
            grad -= (grad * W_dec).sum(1, keepdim=True) * W_dec
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            W_dec.div_(W_dec.norm(dim=1, keepdim=True))

    _loop(server, parameters, step)


def sparsify(server: Server, shape: Shape) -> None:
    """sparsify's SparseCoder, stepped as its Trainer does with optimizer="adam". The Trainer itself reads its
    activations from a language model in hooks, so that its lines around the coder stand here."""
    from sparsify import SparseCoder, SparseCoderConfig

    config = SparseCoderConfig(num_latents=shape.d_sae, k=shape.k)
    sae = SparseCoder(shape.d_in, config, shape.device, dtype=torch.float32)
    optimizer = torch.optim.Adam(sae.parameters(), lr=1e-4)
    batch = shape.batches()
    since = torch.zeros(shape.d_sae, dtype=torch.long, device=shape.device)
    fired = torch.zeros(shape.d_sae, dtype=torch.bool, device=shape.device)

    def step() -> None:
        x = batch()
        sae.set_decoder_norm_to_unit_norm()
        out = sae(x=x, y=x, dead_mask=None, total_variance=(x - x.mean(0)).pow(2).sum())
        fired[out.latent_indices.flatten()] = True
        float(out.fvu.detach())
        (out.fvu + 0.0 * out.auxk_loss + out.multi_topk_fvu / 8).backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        optimizer.zero_grad()
        since.add_(len(x))
        since[fired] = 0
        fired.zero_()

    _loop(server, sae.parameters(), step)


def saelens(server: Server, shape: Shape, sparse: bool = False) -> None:
    """SAELens' SAETrainer.step of its TopKTrainingSAE, with its defaults or with use_sparse_activations,
    which needs rescale_acts_by_decoder_norm off: the product of sparse codes and norms has no backward pass.
    """
    from sae_lens import SAETrainer, TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.config import LoggingConfig, SAETrainerConfig

    config = TopKTrainingSAEConfig(d_in=shape.d_in, d_sae=shape.d_sae, k=shape.k, device=shape.device,
                                   use_sparse_activations=sparse,
                                   rescale_acts_by_decoder_norm=not sparse)  # fmt: skip
    settings = SAETrainerConfig(total_training_samples=NEVER * shape.batch, lr=1e-4, lr_end=1e-5,
                                train_batch_size_samples=shape.batch, device=shape.device,
                                dead_feature_window=NEVER, autocast=shape.device == "cuda",
                                logger=LoggingConfig(log_to_wandb=False))  # fmt: skip
    batch = shape.batches()
    trainer = SAETrainer(settings, TopKTrainingSAE(config), iter(batch, None))
    _loop(server, trainer.sae.parameters(), lambda: trainer.step(batch()))


def dictionary_learning(server: Server, shape: Shape) -> None:
    """dictionary_learning's TopKTrainer.update."""
    from dictionary_learning.trainers.top_k import TopKTrainer

    trainer = TopKTrainer(steps=NEVER, activation_dim=shape.d_in, dict_size=shape.d_sae, k=shape.k, layer=0,
                          lm_name="", device=shape.device)  # fmt: skip
    batch = shape.batches()
    _loop(server, trainer.ae.parameters(), lambda: trainer.update(1, batch()))


LOOPS: dict[str, Callable[[Server, Shape], None]] = {
    "product": product,
    "encode": encode,
    "plain": plain,
    "sparsify": sparsify,
    "saelens": saelens,
    "saelens_sparse": lambda server, shape: saelens(server, shape, sparse=True),
    "dictionary_learning": dictionary_learning,
}


def main() -> None:
    name, sizes, turn, threads, device = sys.argv[1:]
    torch.set_num_threads(int(threads))
    shape = Shape(*map(int, sizes.split(",")), int(turn), device)
    server = Server(shape.turn, device == "cuda")
    if name.startswith("saelab:"):
        ours(server, shape, name.removeprefix("saelab:"))
    else:
        LOOPS[name](server, shape)


if __name__ == "__main__":
    main()
