"""One text through a subject and an SAE."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from saelab.analysis.results import TokenCodes
from saelab.harvesting.batches import side_by_side

if TYPE_CHECKING:
    from saelab.sae import SAE
    from saelab.subjects import LanguageModel


def token_codes(subject: LanguageModel, sae: SAE, text: str) -> TokenCodes:
    """The codes of every latent on each token of a text (BOS included, marked as not counted).

    Raises CorpusError on an empty or non-string text or one longer than the context, HookError where the SAE
    has no hook point of this subject.
    """
    inputs = subject.prepare([text])
    acts = side_by_side(subject.run(inputs, read=sae.reads, output=False).acts, sae.reads)[0]
    ids = inputs.data["input_ids"][0].tolist()
    counted = np.array([i != subject.bos_id or at > 0 for at, i in enumerate(ids)], dtype=bool)
    return TokenCodes(text, subject.token_strings(ids), sae.encode_sparse(acts), counted)


def search(subject: LanguageModel, sae: SAE, text: str, n: int = 50) -> list[tuple[int, float]]:
    """(latent, value) of the n latents that a text fires most by |value|, BOS left out; the value with its
    sign, of equals the first in the text.

    Raises what `token_codes` raises.
    """
    found = token_codes(subject, sae, text)
    codes = found.codes
    kept = found.counted[codes.row_ids()] & (codes.values != 0)
    latents, values = codes.indices[kept], codes.values[kept]
    order = np.lexsort((latents, -np.abs(values)))
    _, first = np.unique(latents[order], return_index=True)
    return [(int(latents[i]), float(values[i])) for i in order[np.sort(first)[:n]]]
