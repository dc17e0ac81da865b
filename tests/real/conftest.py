"""The trained models, each loaded once; skipped with a reason where they are not at hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import real_models

import saelab


def pytest_collection_modifyitems(items):
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.real)


def _needs(name: str) -> None:
    if reason := real_models.missing(name):
        pytest.skip(reason)


@pytest.fixture(scope="session")
def smollm2():
    _needs(real_models.SMOLLM2)
    pytest.importorskip("gguf", reason="needs gguf: pip install 'saelab[gguf]'")
    return saelab.load_subject(real_models.smollm2_file(), progress=False)


@pytest.fixture(scope="session")
def cnn():
    _needs(real_models.CNN)
    return real_models.cnn()


@pytest.fixture(scope="session")
def minilm():
    _needs(real_models.MINILM)
    return real_models.minilm()
