"""Shared by all tests: no network, one thread, real data where the machine has it."""

from __future__ import annotations

import gc
import os
import tempfile
from functools import partial
from pathlib import Path

from saelab.files import user_folder

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# before torch is imported, and for every process that a test starts: its threads wait for each other on a
# machine that does other work too, which makes tests of small tensors several times slower than one thread
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Triton's kernels run on the CPU, in its interpreter; `make gpu` says otherwise
os.environ.setdefault("TRITON_INTERPRET", "1")
# Ray would start a process for each core before anybody asks for one
os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
# nobody's labels and lenses: those of whoever runs the tests are no part of them, and are not written to;
# trained models stay where they were fetched to
os.environ.setdefault("SAELAB_REAL_MODELS", str(user_folder("cache") / "real"))
os.environ["SAELAB_DATA"] = str(Path(tempfile.gettempdir()) / "saelab-tests-data")
os.environ["SAELAB_CACHE"] = str(Path(tempfile.gettempdir()) / "saelab-tests-cache")

import kernels
import pytest
from real_lab import CHROMIUM

# with all of torch and transformers in memory a look for cycles is long; nothing waits for one here
gc.set_threshold(10_000, 10, 10)
# nothing that a test writes need outlive the machine, and disks take their time; that files are synced, and
# in which order, tests see that replace this call themselves
os.fsync = lambda descriptor: os.fstat(descriptor) and None

ROOT = Path(__file__).parents[1]
HOOK = "blocks.2.hook_resid_post"
# what the processes of `pytest -n` share out: files, and here several as one, which use something dear
TOGETHER = {
    f"tests/{path}.py": unit
    for unit, folder, names in (
        (
            "browser",
            "browser",
            "boards circuit compared corpus erase export heads hosts keys living map pictures reopened steer "
            "tour watch",
        ),
        (
            "forks",
            "unit",
            "annotations cli cli_train dist estimates evaluating full_disks gguf hub killing merging "
            "releases resuming store_labels",
        ),
    )
    for path in (f"{folder}/test_{name}" for name in names.split())
}
# what they begin with, so that nobody waits for it at the end
FIRST = (
    *("browser", "forks", "notebooks/02_train.ipynb", "tests/unit/test_scale.py"),
    *("notebooks/12_distributed.ipynb", "tests/test_embedded.py", "tests/unit/test_choices.py"),
)
# the browser runs it, as a person does
TOUR, IN_THE_LAB = "notebooks/00_tour.ipynb", "tests/browser/test_tour.py::test_the_tour_runs"


def pytest_configure(config):
    config.option.nbmake_kernel = config.option.nbmake_kernel or kernels.NAME


def pytest_sessionfinish():
    kernels.ended()


def unit_of(nodeid: str) -> str:
    file = nodeid.partition("::")[0]
    return TOGETHER.get(file, file)


def in_a_fork(runtest):
    kernels.offered()
    runtest()


def pytest_collection_modifyitems(config, items):
    for item in items:
        if item.path.suffix == ".ipynb":  # hooks of this file for single tests do not reach it
            item.runtest = partial(in_a_fork, item.runtest)
    if CHROMIUM and any(item.nodeid.startswith(IN_THE_LAB) for item in items):
        items[:] = [item for item in items if not item.nodeid.startswith(TOUR)]
    if hasattr(config, "workerinput"):  # one of the processes of `pytest -n`
        units = [unit_of(item.nodeid) for item in items]
        place = {unit: FIRST.index(unit) if unit in FIRST else len(FIRST) for unit in units}
        items.sort(key=lambda item: place[unit_of(item.nodeid)])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    from xdist.scheduler import LoadScopeScheduling

    class ByUnit(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return unit_of(nodeid)

    config.option.loadscopereorder = False  # the order is that of the tests
    return ByUnit(config, log)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Public data beside the checkout; tests that need it skip where it is absent."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs the public test data at {folder}")
    return folder


@pytest.fixture
def threads():
    """Sets the number of torch's threads until the test is over."""
    import torch

    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def subject():
    """The embedded language model."""
    import saelab

    return saelab.load_subject(str(saelab.embedded.model_folder()))


@pytest.fixture(scope="session")
def small_acts(subject, tmp_path_factory):
    """8,000 activations of the embedded model."""
    import saelab

    corpus = saelab.corpora.world(seed=5, n_documents=400)
    folder = tmp_path_factory.mktemp("small") / "acts"
    return saelab.harvest(subject, corpus, [HOOK], folder, max_rows=8_000, progress=False)


@pytest.fixture(scope="session")
def small_sae(small_acts):
    """64 latents on the embedded model, trained for a moment."""
    return _trained(small_acts, "topk")


@pytest.fixture(scope="session")
def small_lab(subject, small_sae, tmp_path_factory):
    """A Lab over 3,000 tokens."""
    return _lab(subject, small_sae, tmp_path_factory.mktemp("small_store"))


@pytest.fixture(scope="session")
def signed_lab(subject, small_acts, tmp_path_factory):
    """The same of an SAE whose codes have both signs."""
    return _lab(subject, _trained(small_acts, "abs_topk"), tmp_path_factory.mktemp("signed_store"))


def _trained(acts, recipe):
    import saelab

    config = saelab.recipe(recipe, d_in=128, d_sae=64, k=8, hook=HOOK)
    return saelab.train(config, acts, steps=150, batch_size=512, seed=0, progress=False).sae.eval()


def _lab(subject, sae, folder):
    import saelab

    corpus = saelab.corpora.world(seed=6, n_documents=300)
    store = saelab.index(subject, sae, corpus, folder / "features", max_rows=3_000, progress=False)
    return saelab.Lab(subject, sae, store)
