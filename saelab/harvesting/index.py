"""A subject's activations through an SAE, to a feature store: one forward pass for all latents."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saelab.harvesting.batches import batches, check_hooks, corpus_of
from saelab.stores import FeatureStore
from saelab.stores.feature_writer import FeatureWriter
from saelab.stores.manifest import building
from saelab.types import ConfigError, HookError, ShapeError

if TYPE_CHECKING:
    from saelab.sae import SAE
    from saelab.types import Subject


def index(
    subject: Subject,
    sae: SAE,
    corpus: Iterable[Any],
    out: str | Path,
    *,
    max_rows: int | None = None,
    batch_size: int = 16,
    n_examples: int = 20,
    n_quantile: int = 20,
    window: tuple[int, int] = (10, 10),
    long: str = "truncate",
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = True,
) -> FeatureStore:
    """Run the corpus through subject and SAE once, and write down where every latent fires.

    Rows are those of `saelab.harvest`: every token but BOS and padding. Codes and rows are written as they
    come; the sort by latent spills to disk. Nothing is left at `out` if it is interrupted.

    max_rows: stop there, exactly. n_examples: strongest windows kept of each latent; n_quantile: windows
    spread over five equal parts of its range of values, chosen by `seed`. window: tokens before and after
    the firing.
    Raises HookError, ShapeError where the SAE does not fit the hook point, CorpusError, NonFiniteError,
    ConfigError, StoreError.
    """
    from tqdm.auto import tqdm

    hook = sae.config.hook
    if hook is None:
        message = (
            "An SAE must name the hook point that it reads. Got hook=None. Set it: "
            "saelab.recipe(..., hook=...)."
        )
        raise HookError(message)
    if min(n_examples, n_quantile, *window) < 0:
        message = (
            f"Numbers of examples and tokens must not be negative. Got {(n_examples, n_quantile, *window)}."
        )
        raise ConfigError(f"{message} Pass 0 for none.")
    texts = corpus_of(subject, corpus)
    (point,) = check_hooks(subject, [hook], texts)
    width = subject.width(point)
    if width != sae.config.d_in:
        message = (
            f"The SAE's d_in must be the width of {point}, {width}. Got d_in={sae.config.d_in}. "
            "Pass the SAE of this hook point, or the subject that it was trained on."
        )
        raise ShapeError(message)
    options = {"window": window, "n_examples": n_examples, "n_quantile": n_quantile, "seed": seed}
    with (
        building(out, overwrite) as folder,
        tqdm(total=max_rows, unit="row", unit_scale=True, desc="index", disable=not progress) as bar,
    ):
        writer = FeatureWriter(folder, sae.config.d_sae, **options)
        try:
            for batch in batches(
                subject, texts, [point], batch_size=batch_size, max_rows=max_rows, long=long
            ):
                documents = [(batch.first + i, d.id, d.kind, d.text) for i, d in enumerate(batch.documents)]
                codes = sae.encode_sparse(batch.acts[str(point)])
                writer.add(codes, batch.rows, batch.tokens, batch.token_ids, documents)
                bar.update(len(batch.rows))
            writer.finish(
                {
                    "hook": asdict(point),
                    "sae": sae.fingerprint(),
                    "subject": subject.fingerprint(),
                    "corpus": texts.fingerprint() if hasattr(texts, "fingerprint") else None,
                }
            )
        finally:
            writer.close()
    return FeatureStore.open(out)
