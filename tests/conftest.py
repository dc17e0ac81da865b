"""Shared by all tests: no network, real data where the machine has it."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Public data beside the checkout; tests that need it skip where it is absent."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs the public test data at {folder}")
    return folder


@pytest.fixture(scope="session")
def subject():
    """The embedded language model."""
    import saelab

    return saelab.load_subject(str(saelab.embedded.model_folder()))


@pytest.fixture(scope="session")
def small_sae(subject, tmp_path_factory):
    """64 latents on the embedded model, trained for a moment."""
    import saelab

    hook = "blocks.2.hook_resid_post"
    corpus = saelab.corpora.world(seed=5, n_documents=400)
    acts = saelab.harvest(
        subject, corpus, [hook], tmp_path_factory.mktemp("small") / "acts", max_rows=8_000, progress=False
    )
    config = saelab.recipe("topk", d_in=128, d_sae=64, k=8, hook=hook)
    return saelab.train(config, acts, steps=150, batch_size=512, seed=0, progress=False).sae.eval()


@pytest.fixture(scope="session")
def small_lab(subject, small_sae, tmp_path_factory):
    """A Lab over 3,000 tokens."""
    import saelab

    corpus = saelab.corpora.world(seed=6, n_documents=300)
    folder = tmp_path_factory.mktemp("small_store") / "features"
    store = saelab.index(subject, small_sae, corpus, folder, max_rows=3_000, progress=False)
    return saelab.Lab(subject, small_sae, store)
