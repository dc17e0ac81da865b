"""A Lab's model, loaded in the background of a notebook."""

from __future__ import annotations

import subprocess
import sys
import threading
import types

import pytest

import saelab
from saelab.progress import in_notebook
from saelab.subjects import ahead
from saelab.subjects.ahead import Ahead, is_small
from saelab.types import StoreError, SubjectError


@pytest.fixture
def notebook(monkeypatch):
    """This process as a kernel."""
    shell = types.SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    return shell


@pytest.fixture
def loads(subject, monkeypatch):
    """How often a model was loaded, which takes a moment."""
    found = []

    def load(name):
        found.append(name)
        threading.Event().wait(0.05)
        return subject

    monkeypatch.setattr(saelab.subjects, "load_subject", load)
    return found


def embedded_lab(**options):
    folder = saelab.embedded.model_folder()
    return saelab.Lab(folder, saelab.embedded.sae_folder(), saelab.embedded.store_folder(), **options)


def test_a_lab_loads_its_model_ahead_in_a_notebook_or_where_asked(loads, subject, request):
    assert not in_notebook()
    assert embedded_lab()._loading._thread is None
    assert embedded_lab(preload=True).subject is subject
    assert len(loads) == 1
    request.getfixturevalue("notebook")
    assert embedded_lab(preload=False)._loading._thread is None
    lab = embedded_lab()
    lab._loading._thread.join()
    assert len(loads) == 2
    assert lab.subject is subject
    assert len(loads) == 2


def test_of_a_large_folder_or_a_name_only_libraries_are_loaded(notebook, loads, subject, monkeypatch):
    assert is_small(saelab.embedded.model_folder())
    assert not is_small("gpt2")
    monkeypatch.setattr(ahead, "MAX_BYTES", 1000)
    lab = embedded_lab()
    lab._loading._thread.join()
    assert loads == []
    assert lab.subject is subject
    assert len(loads) == 1


def test_whoever_asks_meanwhile_waits_and_nothing_is_loaded_twice(loads, subject):
    lab = embedded_lab(preload=True)
    got = []
    threads = [threading.Thread(target=lambda: got.append(lab.subject)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [subject] * 8
    assert len(loads) == 1
    lab = embedded_lab(preload=False)  # and without a thread of the Lab's
    threads = [threading.Thread(target=lambda: got.append(lab.subject)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loads) == 2


def test_what_is_wrong_is_said_at_the_first_use_and_then_tried_anew(tmp_path, small_lab):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    lab = saelab.Lab(tmp_path / "model", small_lab.sae, small_lab.store, preload=True)
    lab._loading._thread.join()
    assert lab.card(3).lens is not None  # needs no model
    with pytest.raises(SubjectError):
        lab.tokens("some text")
    with pytest.raises(SubjectError):
        lab.tokens("some text")
    answers = iter([StoreError("once"), 7])

    def load():
        found = next(answers)
        if isinstance(found, Exception):
            raise found
        return found

    loading = Ahead(load)
    loading.start(whole=True)
    loading._thread.join()
    with pytest.raises(StoreError, match="once"):
        loading.get()
    assert loading.get() == loading.get() == 7


def test_a_process_ends_cleanly_while_it_loads():
    """At once, so within the import of torch: the thread is waited for, and the exit code stays."""
    code = "import sys, saelab; lab = saelab.Lab.embedded(preload=True); sys.exit(7)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stderr) == (7, "")
