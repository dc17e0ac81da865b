"""The main job: from the embedded model to a page that shows what an SAE trained on the spot has found."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from saelab import analysis, corpora, embedded
from saelab.harvesting import harvest, index
from saelab.sae import recipe
from saelab.subjects import load_subject
from saelab.training import train
from saelab.types import ConfigError

if TYPE_CHECKING:
    from saelab.analysis import Concepts, Report
    from saelab.lab import Lab
    from saelab.training import Run

HOOK = "blocks.2.hook_resid_post"
TEXTS = {
    "Two names": "When Rosa and Tobin went to the market, Rosa gave the basket to",
    "A span of years": "The war lasted from the year 1732 to the year 17",
    "A dialogue": "<|user|>Thank you, could you please tell me about the sea?<|end|><|assistant|>",
}


@dataclass(frozen=True)
class DemoResult:
    """What the main job found, and where it wrote it down."""

    page: Path
    report: Report
    concepts: Concepts
    run: Run
    lab: Lab
    seconds: float

    def lines(self) -> list[str]:
        """Three lines of what was found."""
        best = self.concepts.found[0]
        scores, untrained = self.report.sae, self.report.untrained
        n_real = sum(c.f1 > 2 * c.f1_shuffled for c in self.concepts.found)
        return [
            f"{scores.l0:.0f} of {self.lab.store.n_latents:,} latents a token explain {1 - scores.fvu:.1%} of the "
            f"variance at {self.report.hook} (untrained SAE: {1 - untrained.fvu:.1%}).",
            f"With the reconstruction in its place the model keeps {scores.loss_recovered:.1%} of what the layer "
            f"gives to its loss (untrained SAE: {untrained.loss_recovered:.1%}).",
            f"Latent {best.latent} fires on {best.label!r} (F1 {best.f1:.2f}, shuffled labels {best.f1_shuffled:.2f}); "
            f"{n_real} of {len(self.concepts.found)} labels have a latent twice as good as chance.",
        ]


def demo(
    out: str | Path = "demo",
    *,
    rows: int = 200_000,
    steps: int = 2_000,
    d_sae: int = 1024,
    k: int = 16,
    index_rows: int = 60_000,
    seed: int = 0,
    progress: bool = True,
) -> DemoResult:
    """Harvest, train, index, evaluate, and write `out/report.html`. Same seed, same numbers.

    rows: activations to train on. steps: of 1,024 activations each. index_rows: tokens to find examples in, from
    documents that neither the model nor the SAE was trained on.
    Raises ConfigError on a number that is not positive, StoreError where `out` cannot be written.
    """
    for name, value in (("rows", rows), ("steps", steps), ("index_rows", index_rows)):
        if value < 1:
            message = f"{name} must be at least 1. Got {value}. Leave it out for the default."
            raise ConfigError(message)
    started = time.monotonic()
    out = Path(out)
    subject = load_subject(str(embedded.model_folder()))
    # documents are numbered from the seed on; the model's own training used seed 0 (see embedded/provenance.json)
    training = corpora.world(seed=seed + 1, n_documents=rows // 20)
    fresh = corpora.world(seed=seed + 2, n_documents=index_rows // 20)

    acts = harvest(subject, training, [HOOK], out / "acts", max_rows=rows, overwrite=True, progress=progress)
    config = recipe("topk", d_in=subject.width(HOOK), d_sae=d_sae, k=k, hook=HOOK)
    run = train(config, acts, steps=steps, batch_size=1024, seed=seed, out=out / "run", progress=progress)
    store = index(
        subject, run.sae, fresh, out / "features", max_rows=index_rows, overwrite=True, progress=progress
    )
    report = analysis.evaluate(run.sae, subject, fresh, max_rows=20_000, seed=seed)
    found = analysis.concepts(store, corpora.row_labels(subject, store, fresh), seed=seed)

    lab = Lab(subject, run.sae, store)
    page = write_page(out / "report.html", lab, run, report, found)
    return DemoResult(page, report, found, run, lab, time.monotonic() - started)
