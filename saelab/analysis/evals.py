"""Scores of an SAE, each beside its controls."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from saelab.corpora import Corpus, Document, as_corpus
from saelab.harvesting.batches import side_by_side
from saelab.types import CorpusError, HookPoint, Inputs, Intervention, check_finite

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from saelab.interventions.reconstruction import Replace
    from saelab.sae import SAE
    from saelab.subjects import LanguageModel


@dataclass(frozen=True)
class Scores:
    """What was measured of one SAE on one corpus."""

    fvu: float
    """sum |x - x_hat|^2 / sum |x - mean x|^2 over all rows: 0 is perfect, 1 is what the mean gives"""
    l0: float
    """latents != 0 per row, mean"""
    dead: float
    """fraction of latents that never fired on these rows"""
    loss: float
    """next-token cross-entropy in nats with the activations replaced by the reconstruction"""
    loss_recovered: float
    """(loss ablated - loss) / (loss ablated - loss clean): 1 is the model itself, 0 is mean ablation"""


@dataclass(frozen=True)
class Report:
    """Scores of an SAE beside those of an untrained SAE of the same configuration, on the same rows."""

    hook: str
    n_rows: int
    loss_clean: float
    """nats, the model untouched"""
    loss_ablated: float
    """nats, the activations replaced by their mean"""
    sae: Scores
    untrained: Scores

    def to_frame(self) -> pd.DataFrame:
        """One row a score, columns: this SAE, untrained SAE."""
        import pandas as pd

        names = list(Scores.__dataclass_fields__)
        return pd.DataFrame(
            {
                "this SAE": [getattr(self.sae, n) for n in names],
                "untrained SAE": [getattr(self.untrained, n) for n in names],
            },
            index=pd.Index(names, name="score"),
        )

    def __str__(self) -> str:
        loss = f"loss {self.loss_clean:.3f} clean, {self.loss_ablated:.3f} ablated"
        head = f"{self.hook}, {self.n_rows:,} rows; {loss}"
        return f"{head}\n{self.to_frame().to_string(float_format=lambda v: f'{v:.4g}')}"


def evaluate(
    sae: SAE,
    subject: LanguageModel,
    corpus: Iterable[str | Document],
    *,
    max_rows: int | None = None,
    batch_size: int = 16,
    seed: int = 0,
) -> Report:
    """Reconstruction, sparsity and effect on the loss, beside an untrained SAE.

    BOS is left out of reconstruction, and kept as it is where the loss is measured. Documents longer than
    the context are cut at it. Of a transcoder the target is scored, of a crosscoder all that it reads, from
    the activations of the untouched model.

    max_rows: stop after this many rows. seed: of the untrained SAE.
    Raises HookError on an SAE without hook points, CorpusError on an empty corpus.
    """
    from saelab.interventions.reconstruction import MeanAblate
    from saelab.sae import SAE

    reads = [subject.hook_point(str(hook)) for hook in sae.reads]
    writes = [subject.hook_point(str(hook)) for hook in sae.writes]
    corpus = as_corpus(corpus)
    # the first pass finds the mean, the second measures: flat memory at the price of a partial forward
    total: Tensor | None = None
    sample: tuple[Tensor, Tensor] | None = None
    n_rows = 0
    for batch in _batches(subject, corpus, reads, writes, max_rows, batch_size):
        summed = batch.y.double().sum(0)
        total, n_rows = summed if total is None else total + summed, n_rows + len(batch.y)
        sample = (batch.x, batch.y) if n_rows == len(batch.y) else sample
    if total is None or sample is None or not n_rows:
        message = (
            f"A corpus must hold rows besides BOS to be scored. Got none in {corpus!r}. Pass longer texts."
        )
        raise CorpusError(message)
    means = (total / n_rows).split([subject.width(hook) for hook in writes])
    ablate = [MeanAblate(hook, mean) for hook, mean in zip(writes, means, strict=True)]

    # the control knows as much of the data as training begins with: its mean and scale
    arms = [_Arm(sae), _Arm(SAE.create(sae.config, seed=seed, rows=sample[0], targets=sample[1]))]
    clean = ablated = 0.0
    n_targets = 0
    for batch in _batches(subject, corpus, reads, writes, max_rows, batch_size):
        clean += _summed_loss(subject, batch.inputs)
        ablated += _summed_loss(subject, batch.inputs, *ablate)
        n_targets += int((np.asarray(batch.inputs.lengths) - 1).sum())
        for arm in arms:
            arm.loss += _summed_loss(subject, batch.inputs, *batch.replaced(writes, arm.add(batch)))
    clean, ablated = clean / n_targets, ablated / n_targets
    of_sae, of_untrained = (arm.scores(clean, ablated, n_targets) for arm in arms)
    names = [" + ".join(map(str, hooks)) for hooks in (reads, writes)]
    name = names[0] if names[0] == names[1] else " -> ".join(names)
    return Report(name, n_rows, clean, ablated, of_sae, of_untrained)


@dataclass(frozen=True)
class _Batch:
    """Documents with what the SAE reads and stands for: rows of their tokens, BOS and padding left out."""

    inputs: Inputs
    acts: Mapping[str, Tensor]
    """hook name -> [samples positions width]"""
    kept: Tensor
    """bool [samples positions]: which positions are rows"""
    x: Tensor
    """[rows d_in]"""
    y: Tensor
    """[rows d_out]"""

    def replaced(self, hooks: Sequence[HookPoint], x_hat: Tensor) -> list[Replace]:
        """The edits that put x_hat [rows d_out] where the rows are; the rest stays as it is."""
        from saelab.interventions.reconstruction import Replace

        edits = []
        for hook, part in zip(
            hooks, x_hat.split([self.acts[str(h)].shape[-1] for h in hooks], 1), strict=True
        ):
            values = self.acts[str(hook)].clone()
            values[self.kept.to(values.device)] = part.to(values)
            edits.append(Replace(hook, values))
        return edits


def _batches(
    subject: LanguageModel,
    corpus: Corpus,
    reads: Sequence[HookPoint],
    writes: Sequence[HookPoint],
    max_rows: int | None,
    batch_size: int,
) -> Iterator[_Batch]:
    import torch

    seen = 0
    hooks = list(dict.fromkeys([*reads, *writes]))
    for documents in _grouped(corpus, batch_size):
        inputs = subject.prepare([d.text for d in documents], truncate=True)
        acts = subject.run(inputs, read=hooks, output=False).acts
        kept = torch.as_tensor(inputs.counted)
        rows = {name: each[kept.to(each.device)] for name, each in acts.items()}
        for name, each in rows.items():
            check_finite(each, f"Activations at {name}")
        yield _Batch(inputs, acts, kept, side_by_side(rows, reads), side_by_side(rows, writes))
        seen += int(kept.sum())
        if max_rows is not None and seen >= max_rows:
            return


def _grouped(corpus: Corpus, size: int) -> Iterator[list[Document]]:
    documents = iter(corpus)
    while group := list(itertools.islice(documents, size)):
        yield group


def _summed_loss(subject: LanguageModel, inputs: Inputs, *edits: Intervention) -> float:
    """Cross-entropy in nats of every next token of the batch, summed."""
    import torch
    import torch.nn.functional as F

    logits: Any = subject.run(inputs, edits=edits).output
    ids = inputs.data["input_ids"]
    target = torch.arange(1, ids.shape[1]) < torch.as_tensor(inputs.lengths)[:, None]
    target = target.to(ids.device)
    return float(F.cross_entropy(logits[:, :-1][target].float(), ids[:, 1:][target], reduction="sum"))


class _Arm:
    """One SAE with its running sums."""

    def __init__(self, sae: SAE) -> None:
        from saelab.sae import FVU

        self.sae = sae
        self.fvu = FVU()
        self.fired = np.zeros(sae.config.d_sae, dtype=bool)
        self.nonzero = 0
        self.rows = 0
        self.loss = 0.0

    def add(self, batch: _Batch) -> Tensor:
        """Count a batch; gives x_hat."""
        import torch

        with torch.no_grad():
            forward = self.sae(batch.x)
        self.fvu.update(batch.y, forward.x_hat)
        on = forward.codes != 0
        self.fired |= on.any(0).cpu().numpy()
        self.nonzero += int(on.sum())
        self.rows += len(batch.x)
        return forward.x_hat

    def scores(self, clean: float, ablated: float, n_targets: int) -> Scores:
        loss = self.loss / n_targets
        recovered = (ablated - loss) / (ablated - clean) if ablated != clean else float("nan")
        return Scores(
            fvu=self.fvu.value,
            l0=self.nonzero / self.rows,
            dead=float(1 - self.fired.mean()),
            loss=loss,
            loss_recovered=recovered,
        )
