"""One training loop in a process of its own: `worker.py NAME d_in,d_sae,k,batch TURN THREADS DEVICE`.

It is run by saelab's interpreter or by that of the peers' environment, and imports only the library that it
is asked for. Each line on stdin has it do TURN steps, which it answers by a line of JSON on stdout:
{"seconds": a step, "wall": the same by the clock on the wall, "bytes": by which memory rose above what
weights, Adam's moments and rows take, "held": bytes then}. The first turn is done unasked, to warm up.
Seconds on one CPU thread are CPU time of all that the process does, which is not longer where other processes
take turns on the core; on several threads, or a GPU, they are wall time.

NAME: "product", x @ W_enc into a buffer that is kept; "product:fresh", into memory that is new each time;
"plain", TopK as one would write it down; either with ":bfloat16", too; else LIBRARY:RECIPE[:HOW ..]. Of
saelab any recipe, HOW a precision,
"half" or "sparse", or "bare" (the update alone), "store" (a whole run: rows of a store on disk, a folder,
records and what else is usual), "checkpoints" and "evaluations" (with one a turn, these of 6,000 held-out
rows); of sparsify "topk" and "group_max", HOW "fused" (its Adam); of saelens and dictionary_learning those of
their tables below, HOW "sparse". LIBRARY:encode:RECIPE is the dense encoding of saelab or saelens alone,
saelab:encode_sparse:RECIPE the other. No latent is dead, so that no loss of dead latents runs. Sparsity that
is learned starts where the library starts it: half of all latents on, but for saelab's jumprelu, whose
thresholds are lowered by "half". With "sparse" it starts at k a row, by a lower bias of the encoder, as late
in a run (topk of saelens: with its sparse codes instead).
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import sys
import tempfile
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
LR = 1e-5
"""So low that a turn leaves what is on as it is."""
WORDS = ("half", "sparse", "bare", "store", "checkpoints", "evaluations")
"""What is said of a run of saelab beside its precision."""


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
        self.closing: Callable[[], object] = lambda: None
        self.clock = time.process_time if torch.get_num_threads() == 1 and not cuda else time.perf_counter
        self.started = self.walled = self.held = 0.0

    def after(self, parameters: Iterable[Tensor]) -> None:
        """To be called after each step: returns when the next one is to be done."""
        self.left -= 1
        if self.left:
            return
        if self.cuda:
            torch.cuda.synchronize()
        seconds = (self.clock() - self.started) / self.turn
        peak = torch.cuda.max_memory_allocated() if self.cuda else _status("VmHWM")
        wall = (time.perf_counter() - self.walled) / self.turn
        answer = {"seconds": seconds, "wall": wall, "bytes": peak - self.held, "held": self.held}
        print(json.dumps(answer), file=self.out, flush=True)
        if not sys.stdin.readline():
            self.closing()
            os._exit(0)
        for parameter in parameters:
            parameter.grad = None
        self._restart_peak()
        self.left, self.walled, self.started = self.turn, time.perf_counter(), self.clock()

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


def product(server: Server, shape: Shape, how: str = "") -> None:
    """x @ W_enc, W_enc laid out as saelab keeps it."""
    x = shape.batches()
    W_enc = torch.randn(shape.d_sae, shape.d_in, device=shape.device).t()
    out = None if how == "fresh" else torch.empty(shape.batch, shape.d_sae, device=shape.device)
    if how == "bfloat16":
        half, W_enc, out = x().bfloat16(), W_enc.bfloat16(), torch.empty_like(out, dtype=torch.bfloat16)
        _loop(server, [], lambda: torch.mm(half, W_enc, out=out))
    _loop(server, [], lambda: torch.mm(x(), W_enc, out=out))


def encode(server: Server, shape: Shape, library: str, recipe: str, sparse: bool = False) -> None:
    """Dense codes, or saelab's sparse ones, without gradient, of an SAE that has just been made."""
    x, rows = shape.batches(), shape.rows()
    if library == "saelab":
        from saelab.sae import SAE

        made = SAE.create(_config(recipe, shape), 0, rows).to(shape.device).eval()
        call = made.encode_sparse if sparse else made.encode
    else:
        import sae_lens

        name = {"relu": "Standard", "topk": "TopK", "jumprelu": "JumpReLU", "gated": "Gated"}[recipe]
        more = {"k": shape.k} if recipe == "topk" else {}
        config = getattr(sae_lens, f"{name}SAEConfig")(d_in=shape.d_in, d_sae=shape.d_sae, **more)
        call = getattr(sae_lens, f"{name}SAE")(config).to(shape.device).encode
    with torch.no_grad():
        _loop(server, [], lambda: call(x()))


def ours(server: Server, shape: Shape, recipe: str, *how: str) -> None:
    """`saelab.train` as it stands: batches gathered, forward, backward, rules, clipping, Adam, counts."""
    import saelab

    rows = shape.rows()
    if "bare" in how:
        bare(server, shape, recipe)

    def turn(event: Any) -> None:
        if event.name == "start" and "sparse" in how:
            with torch.no_grad():
                lower(event.sae.b_enc, event.sae(rows[: shape.batch]).pre, shape.k)
        if event.name == "log" and event.step % shape.turn == 0:  # the very first step is logged too
            server.left = 1
            server.after(event.sae.parameters())

    config = _config(recipe, shape, **({"threshold": 1e-4} if "half" in how else {}))
    given: dict[str, Any] = {"precision": ([w for w in how if w not in WORDS] or ["float32"])[0]}
    if "checkpoints" in how:
        given["checkpoint_every"] = shape.turn
    if "evaluations" in how:
        given |= {"held_out": 6_000, "evaluate_every": shape.turn}
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        server.closing = lambda: shutil.rmtree(folder)
        if "store" in how:
            many = torch.cat([rows] * max(1, 2**16 // len(rows)))
            given["out"] = Path(folder) / "run"
            rows = saelab.ActivationStore.create(Path(folder) / "acts", {"acts": many})
        saelab.train(config, rows, steps=NEVER, batch_size=shape.batch, log_every=shape.turn, lr=LR,
                     device=shape.device, progress=False, callbacks=[turn], **given)  # fmt: skip


def bare(server: Server, shape: Shape, recipe: str) -> None:
    """The update of a step alone, on batches that are at hand, with no record."""
    from saelab.training.arguments import complete
    from saelab.training.session import Session

    config, device = _config(recipe, shape), torch.device(shape.device)
    settings = complete(config, steps=NEVER, batch_size=shape.batch, log_every=NEVER, lr=LR)
    session, batch = Session(config, settings, device, {}, None, shape.rows()), shape.batches()
    _loop(server, session.sae.parameters(), lambda: session.step(batch()))


def _config(recipe: str, shape: Shape, **more: Any) -> Any:
    """Of a recipe of saelab, with k where it has one, and nothing dead."""
    import saelab
    from saelab.sae.config import RECIPES

    if "k" in RECIPES[recipe].options:
        more["k"] = shape.k
    if RECIPES[recipe].transcodes:
        more["d_out"] = shape.d_in
    return saelab.recipe(recipe, d_in=shape.d_in, d_sae=shape.d_sae, dead_after=10**12, **more)


@torch.no_grad()
def lower(bias: Tensor, pre: Tensor, k: int) -> None:
    """Lower a bias of the encoder so far that about k latents of a row stay on."""
    flat = pre.reshape(-1)
    bias -= flat.kthvalue(len(flat) - k * len(pre)).values


def plain(server: Server, shape: Shape, how: str = "") -> None:
    """TopK training as one would write it down: a dense code matrix, autograd, fused Adam; "bfloat16": the
    products under autocast."""
    precision = torch.autocast(shape.device, torch.bfloat16, enabled=how == "bfloat16")
    W_dec = nn.Parameter(F.normalize(torch.randn(shape.d_sae, shape.d_in, device=shape.device), dim=1))
    W_enc = nn.Parameter(W_dec.detach().t().contiguous())
    b_enc = nn.Parameter(torch.zeros(shape.d_sae, device=shape.device))
    b_dec = nn.Parameter(torch.zeros(shape.d_in, device=shape.device))
    parameters = [W_enc, b_enc, W_dec, b_dec]
    optimizer = torch.optim.Adam(parameters, lr=LR, fused=True)
    batch = shape.batches()

    def step() -> None:
        x = batch()
        with precision:
            pre = (x - b_dec) @ W_enc + b_enc
            values, indices = pre.topk(shape.k, dim=1)
            codes = torch.zeros_like(pre).scatter(1, indices, values.relu())
            x_hat = codes @ W_dec + b_dec
        loss = (x_hat - x).square().sum() / len(x)
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


def sparsify(server: Server, shape: Shape, recipe: str, how: str = "") -> None:
    """sparsify's SparseCoder, stepped as its Trainer does with optimizer="adam". The Trainer itself reads its
    activations from a language model in hooks, so that its lines around the coder stand here."""
    from sparsify import SparseCoder, SparseCoderConfig

    activation = {"topk": "topk", "group_max": "groupmax"}[recipe]
    config = SparseCoderConfig(num_latents=shape.d_sae, k=shape.k, activation=activation)
    sae = SparseCoder(shape.d_in, config, shape.device, dtype=torch.float32)
    optimizer = torch.optim.Adam(sae.parameters(), lr=LR, fused=how == "fused" or None)
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


SAELENS = {
    "topk": "TopK",
    "batchtopk": "BatchTopK",
    "matryoshka": "MatryoshkaBatchTopK",
    "abs_topk": "AbsTopK",
    "relu": "Standard",
    "jumprelu": "JumpReLU",
    "gated": "Gated",
    "matching_pursuit": "MatchingPursuit",
}
"""Recipe to the name of SAELens' class."""


def saelens(server: Server, shape: Shape, recipe: str, how: str = "") -> None:
    """SAELens' SAETrainer.step, with its defaults. TopK "sparse" is use_sparse_activations, which needs
    rescale_acts_by_decoder_norm off: the product of sparse codes and norms has no backward pass."""
    import sae_lens
    from sae_lens import SAETrainer
    from sae_lens.config import LoggingConfig, SAETrainerConfig

    more: dict[str, Any] = {"k": shape.k} if "topk" in recipe or recipe == "matryoshka" else {}
    if recipe == "topk":
        more |= {
            "use_sparse_activations": how == "sparse",
            "rescale_acts_by_decoder_norm": how != "sparse",
        }
    elif recipe == "matryoshka":
        more["matryoshka_widths"] = [shape.d_sae // 2**i for i in (4, 3, 2, 1, 0)]
    name = f"{SAELENS[recipe]}TrainingSAE"
    config = getattr(sae_lens, name + "Config")(
        d_in=shape.d_in, d_sae=shape.d_sae, device=shape.device, **more
    )
    settings = SAETrainerConfig(total_training_samples=NEVER * shape.batch, lr=LR, lr_end=LR / 10,
                                train_batch_size_samples=shape.batch, device=shape.device,
                                dead_feature_window=NEVER, autocast=shape.device == "cuda",
                                logger=LoggingConfig(log_to_wandb=False))  # fmt: skip
    batch = shape.batches()
    trainer = SAETrainer(settings, getattr(sae_lens, name)(config), iter(batch, None))
    sae = trainer.sae
    if how == "sparse" and recipe != "topk":
        bias = sae.b_gate if recipe == "gated" else sae.b_enc
        lower(bias, (batch() - sae.b_dec * sae.cfg.apply_b_dec_to_input) @ sae.W_enc, shape.k)
    _loop(server, sae.parameters(), lambda: trainer.step(batch()))


def dictionary_learning(server: Server, shape: Shape, recipe: str, how: str = "") -> None:
    """The `update` of dictionary_learning's trainers."""
    from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
    from dictionary_learning.trainers.gdm import GatedSAETrainer
    from dictionary_learning.trainers.jumprelu import JumpReluTrainer
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer
    from dictionary_learning.trainers.standard import StandardTrainerAprilUpdate
    from dictionary_learning.trainers.top_k import TopKTrainer

    make = {
        "topk": TopKTrainer,
        "batchtopk": BatchTopKTrainer,
        "matryoshka": MatryoshkaBatchTopKTrainer,
        "relu": StandardTrainerAprilUpdate,
        "jumprelu": JumpReluTrainer,
        "gated": GatedSAETrainer,
    }[recipe]
    more: dict[str, Any] = {"k": shape.k} if "topk" in recipe or recipe == "matryoshka" else {}
    if recipe == "matryoshka":
        more["group_fractions"] = [1 / 16, 1 / 16, 1 / 8, 1 / 4, 1 / 2]
    trainer = make(steps=NEVER, activation_dim=shape.d_in, dict_size=shape.d_sae, layer=0, lm_name="", lr=LR,
                   device=shape.device, **more)  # fmt: skip
    batch, ae = shape.batches(), trainer.ae
    if how == "sparse":
        bias = {"relu": "bias", "gated": "gate_bias", "jumprelu": "b_enc"}[recipe]
        x = batch() - (0 if recipe == "jumprelu" else ae.bias if recipe == "relu" else ae.decoder_bias)
        pre = x @ (ae.W_enc if recipe == "jumprelu" else ae.encoder.weight.t())
        lower(ae.encoder.bias if recipe == "relu" else getattr(ae, bias), pre, shape.k)
    _loop(server, ae.parameters(), lambda: trainer.update(1, batch()))


LIBRARIES: dict[str, Callable[..., None]] = {
    "saelab": ours,
    "sparsify": sparsify,
    "saelens": saelens,
    "dictionary_learning": dictionary_learning,
}


def main() -> None:
    name, sizes, turn, threads, device = sys.argv[1:]
    torch.set_num_threads(int(threads))
    shape = Shape(*map(int, sizes.split(",")), int(turn), device)
    server = Server(shape.turn, device == "cuda")
    first, *rest = name.split(":")
    if first == "product":
        product(server, shape, *rest)
    elif first == "plain":
        plain(server, shape, *rest)
    elif rest[0] in ("encode", "encode_sparse"):
        encode(server, shape, first, rest[1], sparse=rest[0] == "encode_sparse")
    else:
        LIBRARIES[first](server, shape, *rest)


if __name__ == "__main__":
    main()
