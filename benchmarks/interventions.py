"""What an edit costs in one forward pass.

benchmarks/peers/install.sh                   # once: SAELens, in an environment of its own
python benchmarks/interventions.py [--rounds 15] [--d-sae 16384] [--record interventions]

The same batch is run by the bare model, with a hook of one's own that adds a vector, and by `subject.run`
with each edit, an SAE of --d-sae latents with random weights. Within a round each follows another; "x model"
and "x hook" are medians of the ratios within a round, of processor time of the one thread that works: what a
clock on the wall tells on a shared machine is mostly the neighbours). A topk SAE has to look at all its
latents to know one of them; of a jumprelu SAE the columns of the edit suffice. A splice stands beside the
same arithmetic in a hook by hand, and beside SAELens'.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from generation import PROMPT, models
from results import record

import saelab
from saelab.interventions import AddDirection, Erase, Scale, Steer
from saelab.sae import SAE

THEIRS = ("SAELens, model", "SAELens, splice", "SAELens, splice and hook at 5 latents")
PEERS = Path(__file__).parents[1] / ".venv-peers" / "bin" / "python"
SAMPLES, WORDS = 4, 6
"""Copies of the prompt in a batch, and how often it is repeated in each."""


def main() -> None:
    parser = argparse.ArgumentParser(description="What an edit costs in one forward pass")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--d-sae", type=int, default=16_384)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", choices=["embedded", "SmolLM2-135M"], help="one of the models")
    parser.add_argument("--record", help="keep the figures as benchmarks/results/NAME.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for name, load in models().items():
        if options.only in (None, name):
            for what, figures in measure(load(), options.rounds, options.d_sae).items():
                rows.append({"model": name, "pass": what} | figures)
                print(rows[-1], flush=True)
    if options.record:
        facts = {"rounds": options.rounds, "d_sae": options.d_sae, "threads": options.threads}
        record(options.record, rows, **facts)


def measure(subject: Any, rounds: int, d_sae: int) -> dict[str, dict[str, float]]:
    """What was run -> milliseconds, and how many times those of the plain pass and of the bare hook."""
    number = subject.n_layers // 2
    hook = f"blocks.{number}.hook_resid_post"
    inputs = subject.prepare([" ".join([PROMPT] * WORDS)] * SAMPLES)
    vector = torch.randn(subject.d_model, generator=torch.Generator().manual_seed(0))
    block = subject._arch.layers[number]

    def sae(recipe: str, **options: Any) -> SAE:
        return SAE.create(saelab.recipe(recipe, d_in=subject.d_model, d_sae=d_sae, hook=hook, **options))

    def bare() -> None:
        def add(module: Any, given: Any, output: Any) -> Any:
            return (output[0] + vector, *output[1:]) if isinstance(output, tuple) else output + vector

        handle = block.register_forward_hook(add)
        try:
            plain()
        finally:
            handle.remove()

    def plain() -> None:
        with torch.no_grad():
            subject.model(**inputs.data, use_cache=False)

    topk, jump = sae("topk", k=32), sae("jumprelu")

    def by_hand() -> None:
        def replaced(module: Any, given: Any, output: Any) -> Any:
            x = output[0] if isinstance(output, tuple) else output
            pre = (x / jump.input_scale - jump.b_in()) @ jump.W_enc + jump.b_enc
            x_hat = ((pre * (pre > jump.sparsifier.threshold)) @ jump.W_dec + jump.b_dec) * jump.input_scale
            new = x_hat + (x - x_hat)
            return (new, *output[1:]) if isinstance(output, tuple) else new

        handle = block.register_forward_hook(replaced)
        try:
            plain()
        finally:
            handle.remove()

    def splice(error: bool) -> None:
        with saelab.spliced(subject.model, {hook: jump}, error):
            plain()

    edits = {
        "AddDirection": AddDirection(hook, vector),
        "Steer, constant": Steer(topk, 3, 1.0),
        "Steer by token, jumprelu": Steer(jump, 3, 1.0, gate="token", threshold=0.1),
        "Erase of 5 latents by input, jumprelu": Erase(jump, range(5), threshold=0.1),
        "Scale of 5 latents, topk": Scale(topk, range(5), 2.0),
    }
    runs: dict[str, Callable[[], Any]] = {"bare model": plain, "bare hook": bare}
    runs["subject.run"] = lambda: subject.run(inputs)
    runs |= {"SAE by hand in a hook, jumprelu": by_hand}
    for name, error in (("spliced, jumprelu", True), ("spliced without its error, jumprelu", False)):
        runs[name] = lambda error=error: splice(error)
    runs |= {name: lambda edit=edit: subject.run(inputs, edits=edit) for name, edit in edits.items()}
    peer = Peer(subject, inputs, number, d_sae) if PEERS.exists() else None
    seconds: dict[str, list[float]] = {name: [] for name in (*runs, *(THEIRS if peer else ()))}
    for turn in range(rounds + 2):
        for name, value in (peer.turn() if peer else {}).items():
            if turn > 1:
                seconds[name].append(value)
        for name, run in runs.items():
            begin = time.thread_time()
            run()
            if turn > 1:
                seconds[name].append(time.thread_time() - begin)
    if peer:
        peer.close()

    def times(name: str, base: str) -> float:
        return round(statistics.median(a / b for a, b in zip(seconds[name], seconds[base], strict=True)), 3)

    return {
        name: {
            "ms": round(1000 * statistics.median(own), 2),
            "x model": times(name, THEIRS[0] if name in THEIRS else "bare model"),
            "x hook": times(name, "bare hook"),
        }
        for name, own in seconds.items()
    }


class Peer:
    """SAELens in a process of its own, on the same sizes.

    Args:
        subject: Whose sizes they are.
        inputs: The batch, of whose shape another is run.
        layer: Where the SAE stands.
        d_sae: Its latents.
    """

    def __init__(self, subject: Any, inputs: Any, layer: int, d_sae: int) -> None:
        config = subject.model.config
        heads = config.num_attention_heads
        shape = {
            "n_heads": heads, "d_model": subject.d_model, "d_head": subject.d_model // heads,
            "n_layers": subject.n_layers, "n_ctx": subject.n_ctx, "d_vocab": subject.d_vocab, "layer": layer,
        }  # fmt: skip
        if config.model_type == "llama":
            shape |= {"d_mlp": config.intermediate_size, "n_key_value_heads": config.num_key_value_heads}
        sizes = [*inputs.data["input_ids"].shape, torch.get_num_threads()]
        worker = Path(__file__).parent / "peers" / "splice_worker.py"
        command = [PEERS, worker, json.dumps(shape), d_sae, *sizes]
        self.process = subprocess.Popen(
            list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def turn(self) -> dict[str, float]:
        """Seconds of each, once."""
        assert self.process.stdin
        assert self.process.stdout
        print(file=self.process.stdin, flush=True)
        return dict(zip(THEIRS, json.loads(self.process.stdout.readline()).values(), strict=True))

    def close(self) -> None:
        """End it."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


if __name__ == "__main__":
    main()
