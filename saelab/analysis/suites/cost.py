"""The suite "cost"."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from saelab.analysis.controls import Alone
from saelab.analysis.sources import Passes
from saelab.analysis.suites.registry import Found, Suite, register

if TYPE_CHECKING:
    from collections.abc import Callable

    from saelab.analysis.sources import Ground
    from saelab.sae import SAE

PROPERTY = "a property of the SAE, the same for an untrained one"


@register("cost")
@dataclass(frozen=True)
class Cost(Suite):
    """What does it take to run it? Parameters, memory, and rows a second of encoding and of a whole pass,
    beside the subject's own where there is one.

    Rows a second are of processor time, the median of some rounds: what a machine with nothing else to do
    gives, divided by the threads that it uses. They are no property of the SAE alone, and differ between
    machines and runs.
    """

    rows: int = 2048
    """that are encoded at once"""
    rounds: int = 5

    def run(self, sae: SAE, ground: Ground) -> Found:
        import torch

        source = ground.source(sae)
        block = next(iter(source.blocks()))
        x = block.x.to(sae.device)[: self.rows]
        x = x.repeat(-(-self.rows // len(x)), 1)[: self.rows]
        weights = list(sae.state_dict().values())
        where = f"measured on this machine ({sae.device.type}, {torch.get_num_threads()} threads)"
        mode = sae.training
        sae.eval()
        try:
            with torch.no_grad():
                rates = {
                    "encoded rows a second": self._rate(lambda: sae.encode_sparse(x), len(x)),
                    "reconstructed rows a second": self._rate(lambda: sae(x, sparse=True), len(x)),
                }
        finally:
            sae.train(mode)
        if isinstance(source, Passes):
            hooks, inputs = source.reads, block.inputs
            run = source.subject.run
            rates["rows a second of the subject up to it"] = self._rate(
                lambda: run(inputs, read=hooks, output=False), len(block.x)
            )
        found = {
            "parameters": Alone(float(sum(p.numel() for p in sae.parameters())), PROPERTY),
            "MB": Alone(sum(w.numel() * w.element_size() for w in weights) / 1e6, PROPERTY),
        }
        found |= {name: Alone(rate, where, len(x)) for name, rate in rates.items()}
        return Found(found)

    def _rate(self, call: Callable[[], object], n: int) -> float:
        """Rows of a second, the first round left out."""
        import torch

        seconds = []
        for _ in range(self.rounds + 1):
            # a GPU's time is none of the processor's
            gpu = torch.cuda.is_available()
            clock = time.perf_counter if gpu else time.process_time
            start = clock()
            call()
            if gpu:
                torch.cuda.synchronize()
            seconds.append(clock() - start)
        return n / max(sorted(seconds[1:])[self.rounds // 2], 1e-9)
