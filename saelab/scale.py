"""Harvest and index on many machines: a Ray Data pipeline of documents in, parts of a store out.

One task reads the corpus, in blocks of `part_documents`; actors that hold subject and SAE turn each into a
part: a whole store in a folder of its own, on storage that all of them see, which appears by one rename. At
the end the parts become one store. A worker that dies has its block done again by another; a job that dies
goes on, when it is called again, with the parts that are missing.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import itertools
import json
import logging
import math
import os
import pickle
import shutil
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from saelab.arguments import an_sae, checked, listed, place
from saelab.capabilities import HasTokens, lacking
from saelab.config import boolean, integer, is_number
from saelab.corpora import Corpus, Document, as_corpus
from saelab.errors import needing
from saelab.files import read_json, read_json_or_none
from saelab.harvesting import harvest as harvest_alone
from saelab.harvesting import index as index_alone
from saelab.harvesting.batches import batches, check_hooks
from saelab.progress import new_bar
from saelab.stores import ActivationStore, ActivationWriter, FeatureStore
from saelab.stores import manifest as manifests
from saelab.stores.joining import JOINED, join
from saelab.stores.merging import merge_into
from saelab.subjects import load_subject
from saelab.subjects.packing import check_packing, stretch_size
from saelab.types import ConfigError, CorpusError, HookPoint, SaelabError

if TYPE_CHECKING:
    from saelab.sae import SAE
    from saelab.types import Subject

    Make = str | Path | Callable[[], Subject]

F = TypeVar("F", bound=Callable[..., Any])


def _with_options_of(alone: Callable[..., Any], *without: str) -> Callable[[F], F]:
    """Gives a function the options of the one that does the same in one process, with their defaults."""

    def decorate(function: F) -> F:
        own = inspect.signature(function)
        taken = [each for each in own.parameters.values() if each.kind is not each.VAR_KEYWORD]
        known = {*own.parameters, *without}
        theirs = inspect.signature(alone).parameters.values()
        more = [each for each in theirs if each.kind is each.KEYWORD_ONLY and each.name not in known]
        signature = own.replace(parameters=[*taken, *more])

        @functools.wraps(function)
        def completed(*args: Any, **options: Any) -> Any:
            given = signature.bind(*args, **options)
            given.apply_defaults()
            return function(*given.args, **given.kwargs)

        vars(completed)["__signature__"] = signature
        return completed  # type: ignore[return-value]

    return decorate


@_with_options_of(harvest_alone, "max_rows", "max_norm")
@checked(out=place)
def harvest(
    subject: Make,
    corpus: Iterable[str | Document],
    hooks: Iterable[HookPoint | str],
    out: str | Path,
    *,
    workers: int = 2,
    cpus: float = 1,
    gpus: float = 0,
    part_documents: int = 4096,
    **options: Any,
) -> ActivationStore:
    """`saelab.harvest` by Ray workers: the same rows in the same order, in shards that end with each part.

    Ray is used as it is initialised (`ray.init(address=...)` joins a cluster), else started on this machine
    for the call. The same call after a failure goes on with the parts that are missing; where the store is
    finished, it is opened, and where the subject is a folder that looks as it did, without Ray and the model.

    Args:
        subject: The name or folder of a language model, which each worker loads (on the GPU that Ray gives
            it, with gpus > 0), or a function that makes a subject.
        corpus: Texts; `corpus.take(n)` cuts it.
        hooks: Names of hook points.
        out: A folder that all workers see by this path.
        workers: How many actors.
        cpus: CPU cores of each worker, which has as many threads.
        gpus: GPUs of each worker.
        part_documents: Documents in a part; made a multiple of those that run together, so that none meets
            other neighbours than in one process: on like machines, rows are bit for bit those of one process
            of as many threads as a worker has.
        options: Those of `saelab.harvest`, all but max_rows and max_norm.

    Raises:
        MissingDependency: Ray is not installed.
        ConfigError: Workers or parts below 1, or a subject that reads no texts.
        SaelabError: What `saelab.harvest` raises.
    """
    names = [str(h) for h in ([hooks] if isinstance(hooks, str | HookPoint) else listed("hooks", hooks))]
    call = _Call("harvest", subject, corpus, out, workers, cpus, gpus, part_documents, **_how(options))
    writing = {name: options[name] for name in ("dtype", "shard_rows")}
    reading = {name: options[name] for name in options.keys() - writing.keys()}
    write = functools.partial(_write_activations, names, reading, writing)
    call.run(names, {"hooks": names, **options}, None, write, join)
    return ActivationStore.open(out)


@_with_options_of(index_alone, "max_rows", "shard", "append")
@checked(out=place, sae=an_sae)
def index(
    subject: Make,
    sae: SAE,
    corpus: Iterable[str | Document],
    out: str | Path,
    *,
    workers: int = 2,
    cpus: float = 1,
    gpus: float = 0,
    part_documents: int = 4096,
    **options: Any,
) -> FeatureStore:
    """`saelab.index` by Ray workers: each part is indexed by itself, and all are merged.

    They are merged as `saelab.stores.merge` does, with what that promises: counts, histograms, tokens,
    examples and codes are those of one process.

    Args:
        subject: As for `harvest`.
        sae: Its `reads` says at which hook points.
        corpus: Texts; `corpus.take(n)` cuts it.
        out: A folder that all workers see by this path.
        workers: How many actors.
        cpus: CPU cores of each worker, which has as many threads.
        gpus: GPUs of each worker.
        part_documents: As for `harvest`.
        options: Those of `saelab.index`, all but max_rows, shard and append.

    Raises:
        MissingDependency: Ray is not installed.
        ConfigError: Workers or parts below 1, or a subject that reads no texts.
        SaelabError: What `saelab.index` raises.
    """
    call = _Call("index", subject, corpus, out, workers, cpus, gpus, part_documents, **_how(options))
    write, spec = functools.partial(_write_features, options), {"sae": sae.fingerprint(), **options}
    call.run([str(hook) for hook in sae.reads], spec, sae, write, _merge)
    return FeatureStore.open(out)


def _how(options: dict[str, Any]) -> dict[str, Any]:
    """What of the options does not change the result, taken out of them."""
    return {name: options.pop(name) for name in ("overwrite", "progress")}


class _Call(NamedTuple):
    """A call of `harvest` or `index`: what the two have in common."""

    name: str
    subject: Make
    corpus: Any
    out: str | Path
    workers: int
    cpus: float
    gpus: float
    part_documents: int
    overwrite: bool
    progress: bool

    def run(
        self, hooks: list[str], spec: dict[str, Any], sae: Any, write: Callable[..., int],
        finish: Callable[[Path, list[Path], dict[str, Any]], None],
    ) -> None:  # fmt: skip
        """Make the parts that are missing, and the store out of all: nothing where it is there.

        Args:
            hooks: Names of hook points that are read.
            spec: What else determines the result.
            sae: What each worker needs besides the subject, or None.
            write: See `_Task`.
            finish: (folder, parts, fields of the manifest) makes the store.
        """
        boolean("overwrite", self.overwrite)
        if not isinstance(self.subject, str | Path) and not callable(self.subject):
            message = (
                "subject must be a model's name or folder, or a function that makes a subject. Got "
                f"{type(self.subject).__name__}. Pass e.g. lambda: saelab.load_subject(...)."
            )
            raise ConfigError(message)
        check_packing(spec["packing"], spec["long"])
        texts = as_corpus(self.corpus)
        size = _part_size(self.part_documents, spec["batch_size"], spec["packing"])
        seen = _seen(self.subject)
        job = {"subject": _known(self.out, seen), "corpus": texts.fingerprint(), **spec}
        job["part_documents"] = size
        if not self.overwrite and manifests.finished(self.out, job):
            return
        with _pool(self.workers, self.cpus, self.gpus) as pool:
            job["subject"] = pool.ask(self.subject, hooks)["subject"]
            if not self.overwrite and manifests.finished(self.out, job):
                return
            with manifests.resumable(self.out, job, self.overwrite) as folder:
                task = _Task(self.subject, None if sae is None else pool.put(sae), write)
                parts = pool.parts(folder, task, texts, size, self.name, self.progress)
                told = {"corpus": job["corpus"], "job": manifests.through_json(job), "seen": seen}
                finish(folder, parts, told)


def _seen(subject: Make) -> str | None:
    """How a model's folder looks, by the names, sizes and times of its files; None where only loading the
    subject tells whether it is the same."""
    if not isinstance(subject, str | Path) or not Path(subject).is_dir():
        return None
    files = sorted(path for path in Path(subject).rglob("*") if path.is_file())
    told = [(str(p.relative_to(subject)), (s := p.stat()).st_size, s.st_mtime_ns) for p in files]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def _known(out: str | Path, seen: str | None) -> str | None:
    """The fingerprint of the subject that a finished store was made with, if its folder looks as it did."""
    manifest = read_json_or_none(Path(out) / manifests.NAME) or {}
    return manifest.get("subject") if seen and manifest.get("seen") == seen else None


def _part_size(part_documents: int, batch_size: int, packing: str) -> int:
    """Documents in a part: whole stretches of those that run together."""
    part_documents = integer("part_documents", part_documents, 1)
    stretch = stretch_size(batch_size, packing)
    return -(-part_documents // stretch) * stretch


# what runs on the workers


class _Task(NamedTuple):
    """What makes a part: write(subject, sae, documents, number of the first, folder) -> rows. sae: Ray's
    reference to it, or None."""

    subject: Make
    sae: Any
    write: Callable[..., int]


def _load(subject: Make, gpus: float) -> Any:
    if isinstance(subject, str | Path):
        return load_subject(subject, device="cuda" if gpus else "cpu")
    return subject()


def _describe(subject: Make, gpus: float, hooks: Sequence[str]) -> dict[str, Any]:
    """What the caller must know of the subject, without loading it there."""
    loaded = _load(subject, gpus)
    if lacking(loaded, HasTokens):
        message = (
            f"saelab.scale runs documents through language models. Got a {type(loaded).__name__}. Use "
            "saelab.harvest or saelab.index for it."
        )
        raise ConfigError(message)
    check_hooks(loaded, hooks, [])
    return {"subject": loaded.fingerprint()}


def _write_activations(
    hooks: Sequence[str], reading: dict[str, Any], writing: dict[str, Any], subject: Any, sae: None,
    documents: list[Document], first: int, place: Path,
) -> int:  # fmt: skip
    import torch

    points = check_hooks(subject, hooks, documents)
    widths = {str(point): subject.width(point) for point in points}
    with manifests.building(place) as folder, ActivationWriter(folder, widths, **writing) as writer:
        told = {"special_rows": 0, "documents_cut": 0, "tokens_cut": 0}
        for batch in batches(subject, documents, points, **reading):
            rows = torch.from_numpy(batch.rows.origin[:, :2].copy())
            rows[:, 0] += first
            writer.add(batch.acts, rows)
            told["special_rows"] += int(batch.rows.special.sum())
            told["documents_cut"] += len(batch.cut)
            told["tokens_cut"] += sum(batch.cut.values())
        if not writer.n_rows:
            message = "A part must hold rows besides BOS. Got none. Pass longer texts, or include_bos=True."
            raise CorpusError(message)
        writer.finish(told)
    return writer.n_rows


def _write_features(
    options: dict[str, Any], subject: Any, sae: SAE, documents: list[Document], first: int, place: Path
) -> int:
    corpus = Corpus(lambda: documents, f"the documents from {first} on", n_documents=len(documents))
    return index_alone(subject, sae, corpus, place, **options, progress=False).n_rows


class _Worker:
    """An actor: holds subject and SAE, and makes a part of each block."""

    def __init__(self, task: _Task, folder: Path, cpus: float, gpus: float) -> None:
        import ray
        import torch

        torch.set_num_threads(max(1, int(cpus)))
        sae: Any = None if task.sae is None else ray.get(task.sae)
        sae = sae and sae.to("cuda" if gpus else "cpu")
        self.write = functools.partial(task.write, _load(task.subject, gpus), sae)
        self.folder = folder

    def __call__(self, block: dict[str, Any]) -> dict[str, Any]:
        number, first = int(block["part"][0]), int(block["first"][0])
        place = _place(self.folder, number)
        # it is there where a worker died after its part was whole and before it could say so
        rows, error = _rows(place), b""
        try:
            rows = rows or self.write(pickle.loads(block["documents"][0]), first, place)
        except SaelabError as raised:  # told as data: of an exception Ray Data passes on the text alone
            error = pickle.dumps(raised)
        return {"part": [number], "rows": [rows], "error": [error]}


def _place(folder: Path, number: int) -> Path:
    return folder / f"{number:08}"


def _rows(place: Path) -> int:
    """Rows of a part that is there, else 0."""
    path = place / manifests.NAME
    return int(read_json(path, "manifest of a part")["n_rows"]) if path.is_file() else 0


# what runs where the call is made


class _Pool:
    """Ray, and what each worker reserves of it."""

    def __init__(self, ray: Any, workers: int, cpus: float, gpus: float) -> None:
        self.ray, self.workers, self.cpus, self.gpus = ray, workers, cpus, gpus

    def ask(self, subject: Make, hooks: Sequence[str]) -> dict[str, Any]:
        """What the subject is, from a worker that loads it. Raises what it raises."""
        task = self.ray.remote(num_cpus=self.cpus, num_gpus=self.gpus)(_describe)
        with _own_errors():
            return self.ray.get(task.remote(subject, self.gpus, list(hooks)))

    def put(self, value: Any) -> Any:
        """One copy on each machine, which its workers read."""
        return self.ray.put(value)

    def parts(
        self, out: Path, task: _Task, corpus: Corpus, size: int, name: str, progress: bool
    ) -> list[Path]:
        """The folders of all parts, in order, once all are there."""
        folder = out / manifests.PARTS
        folder.mkdir(exist_ok=True)
        if (folder / JOINED).is_file():  # all were there
            return []
        done = {int(place.name): _rows(place) for place in folder.iterdir() if place.name.isdigit()}
        done = {number: rows for number, rows in done.items() if rows}
        before = sum(done.values())
        source = _source(corpus, size, frozenset(done))
        with (
            new_bar(desc=name, unit="row", unit_scale=True, disable=not progress, initial=before) as bar,
            contextlib.closing(self._results(source, task, folder)) as results,  # else it works on
        ):
            for result in results:
                if result["error"]:
                    raise pickle.loads(result["error"])
                done[result["part"]] = result["rows"]
                bar.update(result["rows"])
        if sorted(done) != list(range(len(done))):
            gap = next(number for number in itertools.count() if number not in done)
            message = f"Every part must be there in the end. Got none of number {gap}. Call again."
            raise SaelabError(message)
        return [_place(folder, number) for number in sorted(done)]

    def _results(self, source: Any, task: _Task, folder: Path) -> Generator[Any, None, None]:
        data = self.ray.data
        with _quiet(data):
            blocks = data.read_datasource(source, num_cpus=0.01, override_num_blocks=1)
            blocks = blocks.map_batches(
                _Worker,
                fn_constructor_args=(task, folder.resolve(), self.cpus, self.gpus),
                batch_size=1,
                compute=data.ActorPoolStrategy(size=self.workers),
                num_cpus=self.cpus,
                num_gpus=self.gpus,
            )
            # each part is a block of its own, however small: what Ray puts together goes to one worker
            blocks.context.target_max_block_size = 1
            with _own_errors():
                yield from blocks.iter_rows()


@contextlib.contextmanager
def _pool(workers: int, cpus: float, gpus: float) -> Iterator[_Pool]:
    """Ray as it is, or started for as long as it is needed. Raises ConfigError, MissingDependency."""
    workers = integer("workers", workers, 1)
    if not (is_number(cpus) and cpus > 0 and is_number(gpus) and gpus >= 0):
        message = (
            f"cpus must be a number above 0, gpus one not below 0. Got cpus={cpus!r}, gpus={gpus!r}. "
            "Leave them out for a CPU each."
        )
        raise ConfigError(message)
    with needing("saelab.scale", "Ray", "'ray[data]>=2.60'"):
        import ray
        import ray.data
    if ray.is_initialized():
        yield _Pool(ray, workers, cpus, gpus)
        return
    own: dict[str, Any] = {"include_dashboard": False, "num_cpus": math.ceil(workers * cpus) + 1}
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
    ray.init(**quiet, **({} if os.environ.get("RAY_ADDRESS") else own))
    try:
        yield _Pool(ray, workers, cpus, gpus)
    finally:
        ray.shutdown()


def _source(corpus: Corpus, size: int, done: frozenset[int]) -> Any:
    """The blocks of documents whose part is not there, read one after another by one task."""
    import pyarrow as pa
    from ray.data import Datasource, ReadTask
    from ray.data.block import BlockMetadata

    kinds = pa.schema([("part", pa.int64()), ("first", pa.int64()), ("documents", pa.large_binary())])

    def read() -> Iterator[pa.Table]:
        documents = iter(corpus)
        for number in itertools.count():
            some = list(itertools.islice(documents, size))
            if not some:
                return
            if number not in done:
                row = {"part": [number], "first": [number * size], "documents": [pickle.dumps(some)]}
                yield pa.table(row, schema=kinds)

    class Documents(Datasource):
        def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
            unknown = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
            return [ReadTask(read, unknown)]

        def estimate_inmemory_data_size(self) -> int | None:
            return None

    return Documents()


@contextlib.contextmanager
def _own_errors() -> Iterator[None]:
    """What a task raised on purpose, in place of Ray's error around it."""
    try:
        yield
    except Exception as error:
        seen: BaseException | None = error
        while seen is not None:
            inner = getattr(seen, "cause", None) or seen.__cause__
            if isinstance(seen, SaelabError) and not isinstance(inner, SaelabError):
                raise type(seen)(*seen.args) from None
            seen = inner
        raise


@contextlib.contextmanager
def _quiet(data: Any) -> Iterator[None]:
    """Without Ray Data's own bars and messages below an error; our bar counts rows."""
    context, logger = data.DataContext.get_current(), logging.getLogger("ray.data")
    before, level = context.print_on_execution_start, logger.level
    bars = context.enable_progress_bars
    context.print_on_execution_start = context.enable_progress_bars = False
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        context.print_on_execution_start, context.enable_progress_bars = before, bars
        logger.setLevel(level)


def _merge(folder: Path, parts: list[Path], fields: dict[str, Any]) -> None:
    """The store out of its parts, which stay until it is whole. The manifest comes last."""
    whole = folder / manifests.PARTS / "whole"
    shutil.rmtree(whole, ignore_errors=True)
    whole.mkdir()
    merge_into(whole, [FeatureStore.open(part) for part in parts], fields)
    for file in sorted(whole.iterdir(), key=lambda file: file.name == manifests.NAME):
        file.replace(folder / file.name)
