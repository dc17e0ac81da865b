"""Harvest and index by Ray workers: the same store as one process, whoever dies on the way."""

from __future__ import annotations

import builtins
import contextlib
import functools
import inspect
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
from letters import TEXTS, WIDTH, Letters

import saelab
from saelab import scale
from saelab.types import ConfigError, CorpusError, HookError, MissingDependency, Run, StoreError

ray = pytest.importorskip("ray")
HOOKS = ["h", "g"]
MODEL = str(saelab.embedded.model_folder())
OPTIONS = {"batch_size": 2, "progress": False}
PARTS = {**OPTIONS, "part_documents": 50}  # 64, whole stretches of 32: five parts, the last of 4 documents


class Pair(Letters):
    """Costs the workers little to make, and has two hook points."""

    def hooks(self):
        return HOOKS

    def width(self, hook):
        if str(hook) not in HOOKS:
            raise HookError(str(hook))
        return WIDTH

    def run(self, inputs, read=(), edits=(), *, output=True):
        acts = super().run(inputs, ["h"]).acts["h"]
        return Run({str(hook): acts if str(hook) == "h" else acts - 2 for hook in read}, None)


class Here(scale._Pool):
    """The pool's contract in this process, one block after the other, for what does not depend on Ray."""

    def ask(self, subject, hooks):
        return scale._describe(subject, self.gpus, hooks)

    def put(self, value):
        return value

    def _results(self, source, task, folder):
        (read,) = source.get_read_tasks(1)
        worker = scale._Worker(task._replace(sae=None), folder, self.cpus, self.gpus)
        worker.write = functools.partial(task.write, scale._load(task.subject, 0), task.sae)
        for block in read():
            result = worker(block.to_pydict())
            yield {name: value[0] for name, value in result.items()}


@pytest.fixture
def here(monkeypatch):
    @contextlib.contextmanager
    def pool(workers, cpus, gpus):
        yield Here(None, workers, cpus, gpus)

    monkeypatch.setattr(scale, "_pool", pool)


@pytest.fixture(scope="module")
def local_ray():
    """Room for two workers, however many cores there are."""
    # workers do not find the tests: what is of these modules goes to them by value
    for module in (__name__, Letters.__module__):
        ray.cloudpickle.register_pickle_by_value(sys.modules[module])
    for attempt in range(3):  # Ray gives its own processes 30 s, which a busy machine may not
        try:
            ray.init(
                num_cpus=3, include_dashboard=False, log_to_driver=False, object_store_memory=150_000_000
            )
            break
        except Exception:
            ray.shutdown()
            if attempt == 2:
                raise
    yield
    ray.shutdown()


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As many as a worker has: sums depend on it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def corpus():
    documents = saelab.corpora.as_corpus([f"{text} {i}" for i, text in enumerate((TEXTS * 13)[:260])])
    return saelab.corpora.Corpus(lambda: documents, "260 documents", "its fingerprint reads none of them")


@pytest.fixture(scope="module")
def alone(corpus, tmp_path_factory):
    """What one process writes."""
    return saelab.harvest(Pair(), corpus, HOOKS, tmp_path_factory.mktemp("alone") / "acts", **OPTIONS)


def same_rows(a, b):
    assert (a.hooks, a.n_rows, a.dtype) == (b.hooks, b.n_rows, b.dtype)
    for hook in a.hooks:
        ours, theirs = (next(store.batches(store.n_rows, hook=hook)) for store in (a, b))
        assert torch.equal(ours.rows, theirs.rows)
        assert torch.equal(ours.acts, theirs.acts)


def same_features(a, b):
    """All that the stores say; sums of values up to the order in which they were added."""
    wanted = {name for name in b.manifest if name not in ("files", "job")}
    assert {name: a.manifest[name] for name in wanted} == {name: b.manifest[name] for name in wanted}
    sums = ("mean", "mean_abs")
    for table in ("codes_by_latent", "codes_by_row", "documents", "rows", "examples", "latents"):
        ours, theirs = (store.query(f"select * from {table}") for store in (a, b))
        for name in ours.columns:
            if name in sums:
                assert abs(ours[name] - theirs[name]).max() <= 1e-12 * abs(theirs[name]).max()
            else:
                one, other = (frame[name].map(repr) for frame in (ours, theirs))
                assert one.equals(other), (table, name)


class DiesOnce:
    """A subject whose process is killed (SIGKILL) in the middle of a forward pass, the first time."""

    def __init__(self, mark: Path, after: int) -> None:
        self.mark, self.after = mark, after

    def __call__(self):
        subject = Letters()
        run, calls = subject.run, 0

        def dying(*arguments, **options):
            nonlocal calls
            calls += 1
            if calls == self.after and not self.mark.exists():
                self.mark.write_text(str(os.getpid()))
                os.kill(os.getpid(), signal.SIGKILL)
            return run(*arguments, **options)

        subject.run = dying
        return subject


class Refuses:
    """A subject that can tell what it is, but does no work."""

    def __init__(self, make=Pair) -> None:
        self.make = make

    def __call__(self):
        subject = self.make()

        def refuse(*_, **__):
            msg = "a finished part is not made again"
            raise saelab.types.SubjectError(msg)

        subject.run = refuse
        return subject


# by Ray


@pytest.fixture(scope="module")
def letters_sae():
    return saelab.SAE.create(saelab.recipe("topk", d_in=WIDTH, d_sae=12, k=3, hook="h"), seed=0)


@pytest.mark.slow
def test_an_index_goes_on_and_its_worker_is_killed(local_ray, letters_sae, tmp_path):
    """One of two is killed in notebooks/12_distributed.ipynb."""
    corpus = saelab.corpora.as_corpus([f"{text} {i}" for i, text in enumerate(TEXTS * 10)])
    broken = saelab.corpora.Corpus(lambda: fails_after(corpus, 150), "broken", corpus._key)
    with pytest.raises(CorpusError, match="the disk went away"):
        scale.index(Letters, letters_sae, broken, tmp_path / "features", **PARTS, workers=1)
    parts = tmp_path / ".features-partial" / "parts"
    made = {p.name: p.stat().st_mtime_ns for p in parts.glob("*/manifest.json")}
    dies = DiesOnce(tmp_path / "killed", after=5)
    store = scale.index(dies, letters_sae, corpus, tmp_path / "features", **PARTS, workers=1)
    assert int((tmp_path / "killed").read_text()) != os.getpid()
    assert len(made) < 4
    store.verify()
    wanted = saelab.index(Letters(), letters_sae, corpus, tmp_path / "alone", **OPTIONS)
    same_features(store, wanted)
    again = scale.index(Refuses(Letters), letters_sae, corpus, tmp_path / "features", **PARTS)
    assert again.manifest == store.manifest


@pytest.mark.slow
def test_errors_of_workers_are_those_of_one_process(local_ray, letters_sae, tmp_path):
    corpus = saelab.corpora.as_corpus(TEXTS)
    with pytest.raises(HookError, match=r"blocks\.9"):
        scale.harvest(Letters, corpus, ["blocks.9"], tmp_path / "a", **PARTS)
    with pytest.raises(saelab.types.SubjectError, match="must exist"):
        scale.harvest("/no/such/model", corpus, HOOKS, tmp_path / "a", **PARTS)
    with pytest.raises(saelab.types.SubjectError, match="not made again"):
        scale.index(Refuses(Letters), letters_sae, corpus, tmp_path / "a", **PARTS, workers=1)
    assert not (tmp_path / "a").exists()


# in one process


def test_a_harvest_by_parts_is_that_of_one_process(here, corpus, alone, tmp_path):
    """Of the embedded model, two workers of Ray make it in notebooks/12_distributed.ipynb."""
    store = scale.harvest(Pair, corpus, HOOKS, tmp_path / "acts", **PARTS, shard_rows=1_000)
    store.verify()
    same_rows(store, alone)
    assert max(store.manifest["shard_rows"]) <= 1_000
    told = ("subject", "corpus", "packing", "special_rows", "documents_cut")
    assert {name: store.manifest[name] for name in told} == {name: alone.manifest[name] for name in told}
    assert [p.name for p in tmp_path.iterdir()] == ["acts"]
    assert not (tmp_path / "acts" / "parts").exists()
    again = scale.harvest(Refuses(), corpus, HOOKS, tmp_path / "acts", **PARTS, shard_rows=1_000)
    assert again.fingerprint() == store.fingerprint()
    with pytest.raises(StoreError, match="new or empty"):
        scale.harvest(Pair, corpus, HOOKS[:1], tmp_path / "acts", **PARTS)


def test_blocks_meet_the_same_neighbours(here, subject, tmp_path):
    hook, long = ["blocks.1.hook_resid_post"], saelab.corpora.world(seed=7, n_documents=520)
    options = {"packing": "blocks", "dtype": "bfloat16", "include_bos": True, **OPTIONS}
    one = saelab.harvest(subject, long, hook, tmp_path / "one", **options)
    two = scale.harvest(MODEL, long, hook, tmp_path / "two", **options, part_documents=1)
    assert len(two.manifest["shard_rows"]) == 3  # 256 documents are cut into blocks together
    same_rows(two, one)
    (ours,), (theirs,) = (store.manifest["rounding"].values() for store in (two, one))
    assert ours["max"] == theirs["max"]
    assert ours["rms"] == pytest.approx(theirs["rms"], rel=1e-12)


def test_sampled_codes_are_those_of_one_process(here, corpus, letters_sae, tmp_path):
    options = {"codes": "sampled=0.3", "window": (2, 5), "n_quantile": 7, "seed": 5, **OPTIONS}
    one = saelab.index(Pair(), letters_sae, corpus, tmp_path / "one", **options)
    two = scale.index(Pair, letters_sae, corpus, tmp_path / "two", **options, part_documents=50)
    same_features(two, one)


def test_a_finished_job_needs_neither_ray_nor_the_model(here, small_sae, tmp_path, monkeypatch):
    model, hooks = tmp_path / "model", ["blocks.1.hook_resid_post", "blocks.2.hook_resid_post"]
    corpus = saelab.corpora.world(seed=7, n_documents=70)
    shutil.copytree(MODEL, model)
    acts = scale.harvest(str(model), corpus, hooks, tmp_path / "acts", **PARTS)
    features = scale.index(model, small_sae, corpus, tmp_path / "features", **PARTS)

    def asked(*_):
        msg = "Ray is asked for"
        raise AssertionError(msg)

    monkeypatch.setattr(scale, "_pool", asked)
    again = scale.harvest(model, corpus, hooks, tmp_path / "acts", **PARTS)
    assert again.fingerprint() == acts.fingerprint()
    assert scale.index(model, small_sae, corpus, tmp_path / "features", **PARTS).manifest == features.manifest
    with pytest.raises(AssertionError, match="Ray"):
        scale.harvest(model, corpus, hooks[:1], tmp_path / "acts", **PARTS)
    os.utime(model / "config.json")
    with pytest.raises(AssertionError, match="Ray"):
        scale.index(model, small_sae, corpus, tmp_path / "features", **PARTS)


def test_options_are_those_of_one_process():
    for name, without in (("harvest", {"max_rows", "max_norm"}), ("index", {"max_rows", "shard", "append"})):
        theirs = inspect.signature(getattr(saelab, name)).parameters
        ours = inspect.signature(getattr(scale, name)).parameters
        own = {"workers", "cpus", "gpus", "part_documents"}
        assert set(ours) == (set(theirs) - without) | own
        assert all(ours[each].default == theirs[each].default for each in set(ours) - own)
    for wrong in ("max_rows", "batchsize"):
        with pytest.raises(TypeError, match=wrong):
            scale.harvest(MODEL, [], HOOKS, "out", **{wrong: 3})


def test_a_part_that_was_lost_is_made_again_and_no_other(here, corpus, alone, tmp_path):
    broken = saelab.corpora.Corpus(lambda: fails_after(corpus, 200), "broken", corpus._key)
    seen = []
    for lost in (None, "00000001"):
        parts = tmp_path / ".acts-partial" / "parts"
        if lost:
            shutil.rmtree(parts / lost)
        with pytest.raises(CorpusError, match="the disk went away"):
            scale.harvest(Pair, broken, HOOKS, tmp_path / "acts", **PARTS)
        assert not (tmp_path / "acts").exists()
        made = {p.parent.name: p.stat().st_mtime_ns for p in parts.glob("*/manifest.json")}
        assert sorted(made) == ["00000000", "00000001", "00000002"]
        seen.append(made)
    first, then = seen
    assert [name for name in then if then[name] != first[name]] == ["00000001"]
    with pytest.raises(StoreError, match="dtype"):
        scale.harvest(Pair, corpus, HOOKS, tmp_path / "acts", **PARTS, dtype="float16")
    store = scale.harvest(Pair, corpus, HOOKS, tmp_path / "acts", **PARTS)
    store.verify()
    same_rows(store, alone)


def fails_after(corpus, n):
    for i, document in enumerate(corpus):
        if i == n:
            msg = "the disk went away"
            raise CorpusError(msg)
        yield document


def test_a_join_that_was_killed_is_gone_on_with(here, corpus, alone, tmp_path, monkeypatch):
    true = scale.manifests.write_manifest

    def killed(folder, *rest):
        if folder.name == ".acts-partial":
            raise KeyboardInterrupt
        true(folder, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(scale.manifests, "write_manifest", killed)
        with pytest.raises(KeyboardInterrupt):
            scale.harvest(Pair, corpus, HOOKS, tmp_path / "acts", **PARTS)
    partial = tmp_path / ".acts-partial"
    (partial / "shard-00003.safetensors").replace(partial / "parts" / "00000003" / "shard-00000.safetensors")
    store = scale.harvest(Refuses(), corpus, HOOKS, tmp_path / "acts", **PARTS)
    store.verify()
    same_rows(store, alone)


def test_a_merge_that_was_killed_is_done_again(here, corpus, letters_sae, tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("saelab.stores.merging._Merge._latents", killed)
        with pytest.raises(KeyboardInterrupt):
            scale.index(Pair, letters_sae, corpus, tmp_path / "two", **PARTS)
    assert (tmp_path / ".two-partial" / "parts" / "00000004" / "manifest.json").is_file()
    two = scale.index(Refuses(), letters_sae, corpus, tmp_path / "two", **PARTS)
    two.verify()
    one = saelab.index(Pair(), letters_sae, corpus, tmp_path / "one", **OPTIONS)
    same_features(two, one)
    assert set(two.manifest["files"]) == set(one.manifest["files"])


def test_only_missing_blocks_are_passed_on_and_no_part_is_made_twice(corpus, tmp_path):
    (read,) = scale._source(corpus, 64, frozenset({0, 3})).get_read_tasks(1)
    blocks = [block.to_pydict() for block in read()]
    assert [(block["part"], block["first"]) for block in blocks] == [([1], [64]), ([2], [128]), ([4], [256])]
    made = []

    def write(subject, sae, documents, first, place):
        made.append((first, len(documents)))
        place.mkdir()
        (place / "manifest.json").write_text('{"n_rows": 7}')
        return 7

    worker = scale._Worker(scale._Task(lambda: None, None, write), tmp_path, 1, 0)
    for _ in range(2):
        assert worker(blocks[2]) == {"part": [4], "rows": [7], "error": [b""]}
    assert made == [(256, 4)]


def test_a_part_that_never_came_is_told(here, corpus, tmp_path, monkeypatch):
    results = Here._results
    monkeypatch.setattr(Here, "_results", lambda *a: (r for r in results(*a) if r["part"] != 2))
    with pytest.raises(saelab.SaelabError, match="none of number 2"):
        scale.harvest(Pair, corpus, HOOKS, tmp_path / "acts", **PARTS)


def test_another_kind_of_subject_is_sent_away(here, corpus, tmp_path):
    def module():
        return saelab.TorchModule(torch.nn.Linear(2, 2), prepare=torch.tensor)

    with pytest.raises(ConfigError, match="language models"):
        scale.harvest(module, corpus, ["0"], tmp_path / "a", **PARTS)


@pytest.mark.parametrize(
    "wrong", [{"workers": 0}, {"cpus": 0}, {"gpus": -1}, {"part_documents": 0}, {"part_documents": 1.5}]
)
def test_what_makes_no_pool_is_refused(wrong, corpus, tmp_path):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        scale.harvest(Pair, corpus, HOOKS, tmp_path / "a", **{"progress": False, **wrong})


def test_without_ray_it_says_how_to_get_it(corpus, tmp_path, monkeypatch):
    whole = builtins.__import__

    def without(name, *rest):
        if name.split(".")[0] == "ray":
            raise ImportError(name)
        return whole(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingDependency, match=r"pip install 'ray\[data\]"):
        scale.harvest(Pair, corpus, HOOKS, tmp_path / "a", **PARTS)
