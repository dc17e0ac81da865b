"""The main job: from the embedded model to a page that shows what an SAE trained on the spot has found."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from saelab import analysis, corpora, embedded
from saelab.config import integer
from saelab.harvesting import harvest, index
from saelab.lab import Lab
from saelab.sae import recipe
from saelab.subjects import load_subject
from saelab.training import train
from saelab.widgets import Lines, Table, Text, Views, page

if TYPE_CHECKING:
    from saelab.analysis import Concepts, Report
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
        best, report = self.concepts.found[0], self.report
        explained, by_chance = 1 - report.sae.fvu, 1 - report.untrained.fvu
        kept, kept_by_chance = report.sae.loss_recovered, report.untrained.loss_recovered
        strong = sum(c.f1 > 2 * c.f1_shuffled for c in self.concepts.found)
        n, n_labels = self.lab.store.n_latents, len(self.concepts.found)
        return [
            f"{report.sae.l0:.0f} of {n:,} latents a token explain {explained:.1%} of the variance at "
            f"{report.hook} (untrained SAE: {by_chance:.1%}).",
            f"With the reconstruction in its place the model keeps {kept:.1%} of what the layer gives to "
            f"its loss (untrained SAE: {kept_by_chance:.1%}).",
            f"Latent {best.latent} fires on {best.label!r}: F1 {best.f1:.2f}, with shuffled labels "
            f"{best.f1_shuffled:.2f}. {strong} of {n_labels} labels have a latent twice as good as chance.",
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

    Args:
        out: A folder.
        rows: Activations to train on.
        steps: Training steps of 1,024 activations each.
        d_sae: Latents.
        k: Latents of each row.
        index_rows: Tokens to find examples in, from documents that neither the model nor the SAE was trained
            on.
        seed: Seed of texts and weights.
        progress: Show bars.

    Raises:
        ConfigError: A number is not positive.
        StoreError: `out` cannot be written.
    """
    for name, value in (("rows", rows), ("steps", steps), ("index_rows", index_rows)):
        integer(name, value, 1)
    started = time.monotonic()
    out = Path(out)
    subject = load_subject(str(embedded.model_folder()))
    # documents are numbered from the seed on; the model's own training used 0, 1, 1000 and 2000
    # (see embedded/provenance.json)
    training = corpora.world(seed=seed + 1, n_documents=rows // 20)
    fresh = corpora.world(seed=seed + 2, n_documents=index_rows // 20)

    acts = harvest(subject, training, [HOOK], out / "acts", max_rows=rows, overwrite=True, progress=progress)
    config = recipe("topk", d_in=subject.width(HOOK), d_sae=d_sae, k=k, hook=HOOK)
    run = train(
        config,
        acts,
        steps=steps,
        batch_size=min(1024, acts.n_rows),
        seed=seed,
        out=out / "run",
        progress=progress,
        resume=False,
    )
    store = index(
        subject, run.sae, fresh, out / "features", max_rows=index_rows, overwrite=True, progress=progress
    )
    report = analysis.evaluate(run.sae, subject, fresh, max_rows=20_000, seed=seed)
    found = analysis.concepts(store, analysis.row_labels(subject, store, fresh), seed=seed)

    # latents that stand for a label well beyond chance are named after it
    labels = {c.latent: c.label for c in reversed(found.found) if c.f1 > 0.5 and c.f1 > 2 * c.f1_shuffled}
    lab = Lab(subject, run.sae, store, labels=labels)
    result = DemoResult(out / "report.html", report, found, run, lab, 0.0)
    write_report(result)
    return replace(result, seconds=time.monotonic() - started)


def write_report(result: DemoResult) -> None:
    """The page: findings, scores beside their controls, the browser, three texts, the training curve."""
    report, lab, run = result.report, result.lab, result.run
    columns = ["this SAE", "from", "to", "untrained SAE"]
    scores = [
        [name, f"{own:.4g}", f"{low:.4g} to {high:.4g}", f"{control:.4g}"]
        for name, own, low, high, control in report.to_frame()[columns].itertuples(name=None)
    ]
    best = [
        [
            c.label,
            f"#{c.latent}",
            f"{c.precision:.2f}",
            f"{c.recall:.2f}",
            f"{c.f1:.2f}",
            f"{c.f1_shuffled:.2f}",
        ]
        for c in result.concepts.found[:20]
    ]
    history = run.to_frame()
    views = [lab.tokens(text, with_card=False) for text in TEXTS.values()]
    if result.concepts.found:
        lab.selection.latent = result.concepts.found[0].latent
    browser = lab.features()
    page(
        result.page,
        "What a small language model knows",
        [
            Text("", result.lines()),
            Table(
                "Scores beside an untrained SAE", ["", "this SAE", "95 % interval", "untrained SAE"], scores
            ),
            Text(
                "",
                [
                    "fvu: variance unexplained, 0 is perfect. l0: latents on per token. dead: "
                    "latents that never fired. "
                    "loss: nats with the reconstruction in place; the model alone has "
                    f"{report.loss_clean:.3f}, with the layer's mean in place {report.loss_ablated:.3f}. "
                    "loss_recovered: 1 is the model alone, 0 the mean.",
                ],
            ),
            Views("Every latent", [browser]),
            Views("Three texts", views, list(TEXTS)),
            Table(
                "Latents that stand for a label, beside the best by chance",
                ["label", "latent", "precision", "recall", "F1", "F1, labels shuffled"],
                best,
            ),
            Lines("Training", list(history["step"]), {"FVU": list(history["fvu"])}, "step", "FVU"),
        ],
    )
    for view in (browser, *views):  # ipywidgets keeps those that are not closed, and the store with them
        view.close()
