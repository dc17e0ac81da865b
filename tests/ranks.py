"""Processes that train as ranks of one run: `start` launches them, the tasks below are what they run.

Each rank writes what its task gives, or the error it ends in, to `<folder>/<task>-<rank>.pt`.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from forks import Forked

from saelab.sae import recipe_options
from saelab.training.shards import divisible

LIMIT = 600
"""Seconds after which a rank counts as hanging, also on a busy machine."""
_OPTIONS: dict[str, dict[str, Any]] = {
    # 5: enough for gradients that are clipped
    "topk": {"aux_coefficient": 5.0, "multi_topk": 0.125, "k_start": 6, "k_anneal": 0.5},
    "matryoshka": {"random_prefixes": True},
    "gba": {"every": 7},
}
OPTIONS: dict[str, dict[str, Any]] = {
    name: ({"k": 3} if "k" in recipe_options(name) else {}) | _OPTIONS.get(name, {})
    for name in divisible("data")
}
"""Of every recipe whose batches ranks divide."""


STEPS, EVERY = 24, 8
"""Of a run, and between its records: enough for latents that die and gradients that are clipped."""
SPLIT: dict[str, Any] = {"accumulate": 3, "held_out": 100, "evaluate_every": EVERY}


def start(n: int, folder: Path, *tasks: str) -> list[Forked]:
    """n ranks as torchrun would start them, without the agent that ends all where one ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = {"WORLD_SIZE": n, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    each = [{name: str(v) for name, v in {**told, "RANK": i, "LOCAL_RANK": i}.items()} for i in range(n)]
    return [Forked("import ranks; ranks.main()", folder, *tasks, **environment) for environment in each]


def finish(processes: list[Forked]) -> list[str]:
    """What they print. Fails where one hangs or ends in an error."""
    deadline = time.monotonic() + LIMIT
    printed = []
    try:
        for process in processes:
            printed += process.communicate(timeout=max(1, deadline - time.monotonic()))
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
    assert not any(process.returncode for process in processes), "\n".join(printed)
    return printed


def torchrun(n: int, folder: Path, *tasks: str) -> None:
    """The same by torchrun itself."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n)]
    done = subprocess.run(
        [*command, __file__, str(folder), *tasks], capture_output=True, text=True, timeout=LIMIT
    )
    assert done.returncode == 0, done.stderr


def read(folder: Path, task: str, n: int = 2) -> list[Any]:
    """What a task gave, by rank."""
    return [torch.load(folder / f"{task}-{rank}.pt", weights_only=False) for rank in range(n)]


def data(n: int = 1_000) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    codes = torch.rand(n, 24, generator=generator) * (torch.rand(n, 24, generator=generator) < 0.12)
    directions = torch.nn.functional.normalize(torch.randn(24, 12, generator=generator), dim=1)
    return codes @ directions + 0.05 * torch.randn(n, 12, generator=generator) + 0.2


def run(recipe: str, **options: Any) -> Any:
    """A Run on batches, and of latents, that two ranks cannot halve."""
    import saelab

    given = {"steps": STEPS, "batch_size": 65, "seed": 0, "lr": 1e-3, "log_every": EVERY, "progress": False}
    rows, own = options.pop("rows", None), OPTIONS[recipe] | options.pop("own", {})
    own = {"d_sae": 49, **own}
    if recipe == "clt":  # inputs and targets of two layers, side by side
        own |= {"d_out": 12, "layers": 2, "d_sae": 50}
        rows = (data(), data().roll(1, 1))
    config = saelab.recipe(recipe, d_in=12, dead_after=65, **own)
    return saelab.train(config, data() if rows is None else rows, **(given | options))


OF_LATENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "annealed": ("relu", {"p_end": 0.5, "decoder_norm_weighted": False}),
    "aimed": ("relu", {"target_l0": 8}),
    "tanh": ("jumprelu", {"penalty": "tanh"}),
    "squared": ("jumprelu", {"target_l0": 8, "target_weight": 0.3}),
    "gate bias": ("gated", {"gate_bias": True, "target_l0": 8}),
    "bias": ("matryoshka", {"bias_level": True, "groups": [3, 30, 16]}),
}
"""What options of recipes whose latents ranks divide add to it."""


def of_latents(name: str, **options: Any) -> Any:
    """A Run of a recipe, or of one of `OF_LATENTS`."""
    recipe, own = OF_LATENTS.get(name, (name, {}))
    return run(recipe, own=own, **options)


def parent() -> Any:
    """An SAE whose 7 latents are split into 49."""
    import saelab

    return saelab.SAE.create(saelab.recipe("batchtopk", d_in=12, d_sae=7, k=1), 3, data())


def state(run: Any) -> dict[str, Any]:
    return {
        "finished": run.finished,
        "history": run.history,
        "state": run.sae.state_dict(),
        "data": run.provenance["data"],
    }


def from_store(folder: Path) -> dict[str, Any]:
    """Trained on the store `acts`; and the rows that were asked for, call by call."""
    from saelab.stores import ActivationStore

    store = ActivationStore.open(folder / "acts")
    asked: list[list[int]] = []

    class Watched:
        def __getattr__(self, name: str) -> Any:
            return getattr(store, name)

        def acts(self, at: Any, hook: str | None = None) -> torch.Tensor:
            asked.append(at.tolist())
            return store.acts(at, hook)

    return {"asked": asked, **state(run("topk", rows=Watched()))}


def _interrupt(event: Any) -> None:
    if event.step == EVERY:
        raise KeyboardInterrupt


def _fail(event: Any) -> None:
    if event.step == EVERY:
        message = "the callback's own error"
        raise ValueError(message)


def _full_disk(rank: int, folder: Path) -> Any:
    """Rank 0 cannot finish its second checkpoint, of which the other goes on to send its pieces."""
    from saelab.training import checkpoints

    write, calls = checkpoints.write_tensors, []

    def full(path: Path, tensors: Any) -> str:
        calls.append(path)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return write(path, tensors)

    checkpoints.write_tensors = full
    try:
        return run("topk", shard="latents", checkpoint_every=EVERY, out=folder / "full")
    finally:
        checkpoints.write_tensors = write


def _broken_rows(rank: int) -> Any:
    """Rows of which rank 1 cannot read the 7th batch."""
    from saelab.training.rows import TensorRows

    gather, calls = TensorRows.gather, []

    def sometimes(self: Any, at: torch.Tensor) -> torch.Tensor:
        calls.append(len(at))
        if rank == 1 and len(at) < 40 and sum(n < 40 for n in calls) == 7:
            message = "the disk is gone"
            raise OSError(message)
        return gather(self, at)

    TensorRows.gather = sometimes
    try:
        return run("topk")
    finally:
        TensorRows.gather = gather


def _die(rank: int) -> Any:
    """Rank 1 ends without a word between two reductions of step 7."""
    from saelab.training import session

    step = session.Firing.update
    calls = []

    def dying(self: Any, codes: Any) -> None:
        calls.append(1)
        if rank == 1 and len(calls) == 7:
            os._exit(0)
        step(self, codes)

    session.Firing.update = dying
    return run("topk", steps=10_000)


def _selections(rank: int) -> list[Any]:
    """batch_top_k and kth_largest of parts, joined, beside those of the whole."""
    from saelab import dist
    from saelab.sae import kernels

    generator = torch.Generator().manual_seed(5)
    found = []
    for i in range(24):
        n, d_sae = (7, 30) if i % 2 else (41, 300)
        score = torch.randn(n, d_sae, generator=generator)
        if i % 3 == 1:  # many ties, at the boundary too
            score = (score * 2).round()
        if i % 4 == 3:  # one rank has nothing positive
            score[: n // 2] = -score[: n // 2].abs()
        if i >= 18:
            score = score.to(torch.bfloat16 if i % 2 else torch.float64)
        total = int(torch.randint(1, n * d_sae // (2 if i % 5 else 1), (), generator=generator))
        positive = score[score > 0]
        k = int(torch.randint(1, len(positive) + 1, (), generator=generator))
        whole = kernels.batch_top_k_reference(score, total)
        kth = positive.sort(descending=True).values[k - 1]
        with dist.joined():
            start, end = dist.rows.bounds(n)
            part = dist.rows.own(score)
            mine = kernels.batch_top_k(part, total) + start * d_sae
            got = dist.ranks.kth_largest(part[part > 0], k)
        expected = whole[(whole >= start * d_sae) & (whole < end * d_sae)]
        found.append((torch.equal(mine, expected), float(got) == float(kth), len(whole)))
    return found


def _shared_latents(rank: int) -> list[Any]:
    """top_k_csr and batch_top_k of latents that ranks share, beside those of the whole."""
    from saelab import dist
    from saelab.sae import kernels

    generator = torch.Generator().manual_seed(6)
    found = []
    for i in range(24):
        n, d_sae = (7, 31) if i % 2 else (41, 300)
        score = torch.randn(n, d_sae, generator=generator)
        if i % 3 == 1:  # many ties, at the boundary too
            score = (score * 2).round()
        if i % 4 == 3:  # one rank has nothing positive
            score[:, : d_sae // 2] = -score[:, : d_sae // 2].abs()
        k = int(torch.randint(1, d_sae // (8 if i % 5 else 1), (), generator=generator))
        total = int(torch.randint(1, n * d_sae // (2 if i % 5 else 1), (), generator=generator))
        chosen, flat = torch.zeros_like(score, dtype=torch.bool), torch.zeros(n * d_sae, dtype=torch.bool)
        signed = i % 4 > 1
        chosen.scatter_(1, kernels.top_k_reference(score.abs() if signed else score, k), True)
        flat[kernels.batch_top_k_reference(score, total)] = True
        with dist.joined():
            dist.divide("latents")
            start, end = dist.latents.bounds(d_sae)
            part = score[:, start:end].contiguous()
            indptr, indices = kernels.top_k_csr(part, k, signed)
            mine = kernels.batch_top_k(part, total)
        got = kernels.Sparse(indptr, indices, torch.ones(len(indices)), end - start).dense() > 0
        batch = torch.zeros(n * (end - start), dtype=torch.bool).index_fill(0, mine, True).view(n, -1)
        found.append(
            (torch.equal(got, chosen[:, start:end]), torch.equal(batch, flat.view(n, -1)[:, start:end]))
        )
    return found


def _drawn(rank: int) -> list[Any]:
    """The random directions of this rank, drawn a few at a time, beside those of one process."""
    from saelab import dist
    from saelab.sae import initial

    initial.DRAWN, found = 16, []
    for d_sae, d_in in [(49, 12), (16, 3), (33, 5), (200, 7), (2, 1)]:
        alone = torch.Generator().manual_seed(2)
        whole = initial._directions(d_sae, d_in, alone)
        shared = torch.Generator().manual_seed(2)
        with dist.joined():
            dist.divide("latents")
            start, end = dist.latents.bounds(d_sae)
            mine = initial._directions(end - start, d_in, shared)
        found.append(
            (torch.equal(mine, whole[start:end]), torch.equal(alone.get_state(), shared.get_state()))
        )
    return found


def _pieces(rank: int) -> list[Any]:
    """Whole tensors put together from parts, by few numbers at a time."""
    from saelab import dist

    dist.PIECE, found = 64, []
    for shape, axis in [((49, 12), 0), ((12, 49), 1), ((49,), 0), ((3, 1), 0), ((1, 2), 1)]:
        whole = torch.arange(49 * 12)[: torch.Size(shape).numel()].reshape(shape)
        with dist.joined():
            dist.divide("latents")
            start, end = dist.latents.bounds(shape[axis])
            part = whole.narrow(axis, start, end - start)
            pieces = list(dist.latents.pieces(part, axis, shape[axis]))
        found.append((torch.equal(torch.cat(pieces), whole), len(pieces)))
    return found


def _threads_left() -> list[list[str]]:
    """The threads of gloo that are left where a run is over and its connections are closed."""
    from saelab import dist

    run("topk")
    before = _threads()
    dist._leave()
    return [before, _threads()]


def _threads() -> list[str]:
    names = [p.read_text() for p in Path("/proc/self/task").glob("*/comm")]
    return [name.strip() for name in names if "gloo" in name]


def task(name: str, rank: int, folder: Path) -> Any:
    if name in OPTIONS:
        return state(run(name))
    if name == "selections":
        return _selections(rank)
    if name == "shared_latents":
        return _shared_latents(rank)
    if name == "drawn":
        return _drawn(rank)
    if name == "pieces":
        return _pieces(rank)
    if name.startswith("latents:"):
        return state(of_latents(name.removeprefix("latents:"), shard="latents"))
    if name == "started":
        return state(run("batchtopk", shard="latents", start=parent()))
    if name == "narrow":
        return state(run("topk", shard="latents", own={"k": 25, "k_start": None}))
    if name == "to_input":
        return state(run("jumprelu", shard="latents", own={"ste_to_input": True}))
    if name == "resampling":
        return state(run("topk", own={"resample_every": 10}))
    if name == "hull":
        return state(run("topk", shard="latents", own={"dictionary": "archetypal"}))
    if name == "mixed":
        return state(run("topk", shard="latents" if rank else "data"))
    if name in ("stopped_latents", "left_latents"):
        out = folder / f"{name}{rank or ''}"
        return state(run("batchtopk", shard="latents", callbacks=[_interrupt], out=out))
    if name in ("continued_latents", "again_latents"):
        return state(run("batchtopk", shard="latents", out=folder / f"stopped_latents{rank or ''}"))
    if name.startswith("options:"):
        return state(run(name[8:], shard="latents" if name == "options:topk" else "data", **SPLIT))
    if name == "full":
        return _full_disk(rank, folder)
    if name == "uneven":
        return state(run("topk", rows=data()[: 1_000 - rank]))
    if name == "other":
        return state(run("topk", rows=data() + (rank == 1) * 1e-3))
    if name == "nonfinite":
        rows = data()
        rows[5, 5] = torch.nan if rank == 1 else 0
        return state(run("topk", rows=rows))
    if name == "small":
        return state(run("topk", batch_size=1))
    if name == "checkpoints":
        return state(run("topk", checkpoint_every=10 + rank, out=folder / name))
    if name in ("stopped", "left"):
        # rank 1 has a folder of its own, in which it must write nothing
        return state(run("topk", callbacks=[_interrupt], out=folder / f"{name}{rank or ''}"))
    if name == "continued":
        return state(run("topk", out=folder / f"stopped{rank or ''}"))
    if name == "again":
        return state(run("topk", out=folder / f"stopped{rank or ''}"))
    if name == "callback":
        return state(run("topk", callbacks=[_fail]))
    if name == "unwritable":
        (folder / "file").write_text("")
        return state(run("topk", out=folder / "file" / "run"))
    if name == "from_store":
        return from_store(folder)
    if name == "broken":
        return _broken_rows(rank)
    if name == "dying":
        return _die(rank)
    if name == "threads":
        return _threads_left()
    if name == "long":
        begun = [lambda event: (folder / "begun").touch() if event.name == "log" else None]
        return state(run("topk", steps=1_000_000, out=folder / name, callbacks=begun))
    raise KeyError(name)


def main() -> None:
    folder, *names = sys.argv[1:]
    rank = int(os.environ["RANK"])
    signal.alarm(LIMIT)  # so that no rank outlives its test
    for name in names:
        try:
            result = task(name, rank, Path(folder))
        except Exception as error:
            result = error
        torch.save(result, Path(folder) / f"{name}-{rank}.pt")


if __name__ == "__main__":
    main()
