"""What a billion tokens cost, and what breaks first at a hundred billion: measured here, computed from there.

python benchmarks/scale.py [--model FOLDER --hook NAME --d-sae 1024 --k 32] [--rows 60000] [--threads 1]
       [--tokens 1e11] [--workers 64] [--part-documents 4096] [--document-rows 500]
       [--memory-gb 256 --disk-tb 100] [--worker NAME:forward=R,encode=R,index=R,price=P ...]
       [--out scale.json]

Measured, in turns, medians over rounds, on documents of the synthetic world: rows/s of the forward pass that
stops at the hook, of the encoder, of what an index takes besides these two, of writing activations besides
the forward, of merging two stores, of reading the corpus; bytes a row and a code; memory a document in a
merge.

--worker names a worker that was not measured here by its own rates (rows/s; those left out are this
machine's) and its price an hour, in any currency. Nothing has a price by default. Its seconds a row are the
sum of its steps, since a worker does one after the other. --document-rows are the rows of a document in the
corpus that is planned for; --memory-gb and --disk-tb those of the machine that merges, by default this one's.

A limit holds up to the number of tokens in the last column; the first one in the table breaks first.

python benchmarks/scale.py --train D_IN,D_SAE,K,BATCH [--devices 8 64] [--card-gb 80] [--tflops 400]
       [--card-gb-s 2000] [--link-gb-s 50]

computes instead, of a topk step divided among devices, what each holds, what each sends, and the times that
this takes at the rates that are given (none is measured): which part is the longest, or whether memory does
not suffice.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import pickle
import shutil
import statistics
import tempfile
import time
import tracemalloc
from pathlib import Path
from typing import Any

import torch

import saelab
from saelab.harvesting.batches import batches
from saelab.harvesting.index import PART_CODES, PART_ROWS
from saelab.stores.manifest import MAX_MANIFEST_BYTES
from saelab.stores.merging import AT_ONCE, _Part

STEPS = ("forward", "encode", "index", "write", "merge")
WEEK = 7 * 24 * 3600


def main() -> None:
    parser = argparse.ArgumentParser(description="What harvest and index cost at scale")
    parser.add_argument("--model", default="embedded", help="a folder or hub id")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--hook", default="blocks.2.hook_resid_post")
    parser.add_argument("--d-sae", type=int, default=1024)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=float, default=1e11)
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--part-documents", type=int, default=4096)
    parser.add_argument("--document-rows", type=float, help="rows of a document; by default as measured")
    parser.add_argument("--memory-gb", type=float, help="of the merging machine")
    parser.add_argument("--disk-tb", type=float, help="of the shared storage")
    parser.add_argument("--worker", action="append", default=[], metavar="NAME:forward=R,...,price=P")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    parser.add_argument("--train", metavar="D_IN,D_SAE,K,BATCH", help="model a training step instead")
    parser.add_argument("--devices", type=int, nargs="+", default=[8, 64])
    parser.add_argument("--card-gb", type=float, default=80.0, help="memory of a device")
    parser.add_argument("--tflops", type=float, default=400.0, help="rate of the encoder's product")
    parser.add_argument("--card-gb-s", type=float, default=2_000.0, help="rate of a device's memory")
    parser.add_argument("--link-gb-s", type=float, default=50.0, help="what a device sends and receives")
    options = parser.parse_args()
    if options.train:
        shape = [int(number) for number in options.train.split(",")]
        for row in (
            step(*shape, n, shard, options) for n in options.devices for shard in ("data", "latents")
        ):
            print("  ".join(f"{k} {v:,.2f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))
        return
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(options, Path(folder))
    print(f"measured on this machine, {options.threads} thread(s), d_sae {options.d_sae}, k {options.k}")
    for name, value in found.items():
        print(f"  {name:34} {value:14,.1f}")
    workers = [worker("this machine"), *map(worker, options.worker)]
    table = costs(found, workers)
    heads = ("harvest, h", "index, h", "price", "price")
    print(f"\na billion tokens\n  {'worker':20} {' '.join(f'{head:>11}' for head in heads)}")
    for row in table:
        told = [f"{row[name]:11,.2f}" if row[name] is not None else f"{'-':>11}" for name in list(row)[1:]]
        print(f"  {row['worker']:20} {' '.join(told)}")
    limits = breaks(found, workers[-1], options)
    whose = f"{options.workers} workers ({workers[-1]['name']})"
    print(f"\n{options.tokens:.0e} tokens, {whose}: what breaks first")
    for row in limits:
        mark = "breaks" if row["until"] < options.tokens else "holds"
        need = f"{row['needs']:>10} of {row['has']:>10}"
        print(f"  {mark:7} {row['what']:44} {need}   up to {row['until']:.1e} tokens")
    if options.out:
        told = {**vars(options), "out": str(options.out), "measured": found, "costs": table, "limits": limits}
        options.out.write_text(json.dumps(told, indent=2))


def worker(text: str) -> dict[str, Any]:
    """`NAME:forward=R,price=P` as data. A step that is left out has the rate that is measured here."""
    name, _, rest = text.partition(":")
    given = {key: float(value) for key, value in (pair.split("=") for pair in rest.split(",") if pair)}
    unknown = set(given) - {*STEPS, "price"}
    if unknown:
        message = f"a worker has {', '.join(STEPS)} (rows/s) and price (an hour), not {', '.join(unknown)}"
        raise SystemExit(message)
    return {"name": name, **given}


def measure(options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Rates and sizes by name."""
    name = str(saelab.embedded.model_folder()) if options.model == "embedded" else options.model
    subject = saelab.load_subject(name, device=options.device)
    config = saelab.recipe(
        "topk", d_in=subject.width(options.hook), d_sae=options.d_sae, k=options.k, hook=options.hook
    )
    corpus = saelab.corpora.world(seed=0, n_documents=options.rows)
    n = rows = 0
    for document in corpus:
        rows, n = rows + min(len(subject.to_tokens(document.text)), subject.n_ctx) - 1, n + 1
        if rows >= options.rows:
            break
    corpus = saelab.corpora.as_corpus(list(corpus.take(n)))
    points = [saelab.HookPoint(options.hook)]
    steps = ("read", "forward", "encode", "harvest", "index", "merge")
    times: dict[str, list[float]] = {step: [] for step in steps}

    def timed(name: str, call: Any) -> Any:
        start = time.perf_counter()
        with torch.no_grad():
            result = call()
        times[name].append(time.perf_counter() - start)
        return result

    def forward() -> torch.Tensor:
        return torch.cat([b.acts[options.hook] for b in batches(subject, corpus, points)])

    quiet: dict[str, Any] = {"progress": False}
    acts = forward()
    sae = saelab.SAE.create(config, seed=0, rows=acts[:16_384]).eval()
    for i in range(options.rounds):
        timed("read", lambda: pickle.dumps(list(saelab.corpora.world(seed=0, n_documents=n))))
        timed("forward", forward)
        timed("encode", lambda: [sae.encode_sparse(part) for part in acts.split(4096)])
        timed("harvest", lambda i=i: saelab.harvest(subject, corpus, points, folder / f"a{i}", **quiet))
        timed("index", lambda i=i: saelab.index(subject, sae, corpus, folder / f"f{i}", **quiet))
        halves = [folder / f"f{i}-{half}" for half in (0, 1)]
        for half, out in enumerate(halves):
            saelab.index(subject, sae, corpus, out, shard=(half, 2), **quiet)
        timed("merge", lambda i=i, halves=halves: saelab.stores.merge(halves, folder / f"m{i}"))
    seconds = {name: statistics.median(values) for name, values in times.items()}
    seconds["write"] = seconds["harvest"] - seconds["forward"]
    seconds["index"] -= seconds["forward"] + seconds["encode"]
    store = saelab.FeatureStore.open(folder / "f0")
    none = saelab.index(subject, sae, corpus, folder / "none", codes="none", progress=False)
    n_rows = store.n_rows
    # what they take besides rows, which is of each latent: of half the corpus, doubled, minus the whole
    half = saelab.FeatureStore.open(folder / "f0-0"), saelab.FeatureStore.open(folder / "f0-1")
    latents = max(0, sum(size(part.manifest) for part in half) - size(store.manifest))
    tracemalloc.start()
    part = _Part(store)
    memory = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    part.close()
    entry = {"shard-00000.safetensors": next(iter(store.manifest["files"].values()))}
    text = sum(len(pickle.dumps(document)) for document in corpus)
    # a step that vanishes beside the others, in the noise of their difference, has no rate
    rates = {f"{step} rows/s": n_rows / seconds[step] if seconds[step] > 0 else math.inf for step in STEPS}
    return {
        "rows": n_rows,
        "rows a document": n_rows / n,
        "read rows/s": n_rows / seconds["read"],
        **rates,
        "bytes a row of activations": size(saelab.ActivationStore.open(folder / "a0").manifest) / n_rows,
        "bytes of the index, of latents": latents,
        "bytes a row of the index": (size(store.manifest) - latents) / n_rows,
        "bytes a row of it without codes": (size(none.manifest) - latents) / n_rows,
        "bytes a code": (size(store.manifest) - size(none.manifest)) / store.manifest["n_codes"],
        "codes a row": store.manifest["n_codes"] / n_rows,
        "bytes of a pickled document": text / n,
        "bytes of memory a document, merging": memory / n,
        "bytes of a file's line in a manifest": len(json.dumps(entry)),
    }


def size(manifest: dict[str, Any]) -> int:
    return sum(entry["bytes"] for entry in manifest["files"].values())


def costs(found: dict[str, float], workers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Hours of one worker for a billion tokens, and their price where the worker has one."""
    table = []
    for each in workers:
        row: dict[str, Any] = {"worker": each["name"]}
        for job, steps in (("harvest", ("forward", "write")), ("index", ("forward", "encode", "index"))):
            row[f"{job}, h"] = 1e9 * sum(1 / rate(found, each, step) for step in steps) / 3600
        price = each.get("price")
        for job in ("harvest", "index"):
            row[f"{job}, price"] = None if price is None else price * row[f"{job}, h"]
        table.append(row)
    return table


def rate(found: dict[str, float], each: dict[str, Any], step: str) -> float:
    return each.get(step, found[f"{step} rows/s"])


def breaks(
    found: dict[str, float], each: dict[str, Any], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Each limit: what it needs at so many tokens, what there is, up to how many tokens it holds; the first
    to break first."""
    tokens, length = options.tokens, options.document_rows or found["rows a document"]
    documents, part_rows = tokens / length, options.part_documents * length
    disk = options.disk_tb * 1e12 if options.disk_tb else float(shutil.disk_usage("/tmp").free)
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    memory = options.memory_gb * 1e9 if options.memory_gb else float(pages)
    parts = tokens / part_rows
    levels = max(1, math.ceil(math.log(max(parts, 2), AT_ONCE)))
    own = sum(1 / rate(found, each, step) for step in ("forward", "encode", "index"))
    rows = []

    def limit(what: str, needs: float, has: float, unit: str, slope: float = 1.0) -> None:
        """slope: power of the tokens with which the need grows; 0 where it does not."""
        until = math.inf if needs <= has and not slope else 0.0 if not slope else tokens * has / needs
        rows.append({"what": what, "needs": said(needs, unit), "has": said(has, unit), "until": until})

    copies = 1 + levels  # the parts, and what each level of merging makes of them
    full, bare = (found[f"bytes a row of {name}"] for name in ("the index", "it without codes"))
    limit("disk: activations of one hook", tokens * found["bytes a row of activations"], disk, "B")
    limit(f"disk: index, codes='full', {copies} times", copies * tokens * full, disk, "B")
    limit(f"disk: index, codes='none', {copies} times", copies * tokens * bare, disk, "B")
    limit("time: workers, a week", tokens * own / options.workers, WEEK, "s")
    limit("time: merge on one machine, a week", tokens * levels / rate(found, each, "merge"), WEEK, "s")
    limit("time: one task reads the corpus, a week", tokens / found["read rows/s"], WEEK, "s")
    limit("memory: merge, by document", documents * found["bytes of memory a document, merging"], memory, "B")
    limit("memory: training, an epoch's order in int64", 8 * tokens, memory, "B")
    spill = min(part_rows * found["codes a row"], PART_ROWS * found["codes a row"], PART_CODES) * 16
    limit("disk: sort of a part on each worker", spill * options.workers, disk, "B", slope=0)
    block = options.part_documents * found["bytes of a pickled document"] * length / found["rows a document"]
    # Ray's object store is 30 % of a machine's memory
    limit("object store: two blocks a worker", 2 * options.workers * block, 0.3 * memory, "B", slope=0)
    limit("int32: positions in a document", length, 2**31, "", slope=0)
    limit("int64: row numbers, counts", tokens, 2**63, "")
    limit("number of files: 16 a part", 16 * parts, os.statvfs("/tmp").f_favail, "")
    lines = parts * found["bytes of a file's line in a manifest"]
    limit("manifest of activations: lines of its files", lines, MAX_MANIFEST_BYTES, "B")
    return sorted(rows, key=lambda row: row["until"])


def step(
    d_in: int, d_sae: int, k: int, batch: int, devices: int, shard: str, card: argparse.Namespace
) -> dict[str, Any]:
    """A topk step of one device of several: GB that it holds, MB that it sends and receives each way in the
    collective calls of `saelab.dist` (a ring: 2 (p - 1) / p of what is summed, p - 1 times what is gathered),
    and ms of its product, of Adam in its memory and of the link.

    shard: "data" sums all gradients; "latents" sums the reconstruction and gathers each rank's k candidates.
    """
    weights, ring = 2 * d_in * d_sae, 2 * (devices - 1) / devices
    rows, own = (batch / devices, weights) if shard == "data" else (batch, weights / devices)
    if shard == "data":
        sent, pre = (
            ring * 4 * weights,
            min(rows * d_sae, 2**28),
        )  # beyond which pre-activations come in pieces
    else:
        sent = ring * 4 * rows * d_in + (devices - 1) * 4 * rows * k
        pre = rows * d_sae / devices + rows * devices * k * (devices > 1)
    held = 16 * own + 4 * pre + 4 * 4 * rows * d_in + 28 * rows * k
    times = {
        "product": 2 * batch * d_in * d_sae / devices / (1e12 * card.tflops),
        "Adam": 28 * own / (1e9 * card.card_gb_s),
        "link": sent / (1e9 * card.link_gb_s),
    }
    longest = max(times, key=lambda name: times[name])
    return {
        "devices": devices,
        "shard": shard,
        "GB held": held / 1e9,
        "MB sent": sent / 1e6,
        **{f"{name} ms": 1e3 * seconds for name, seconds in times.items()},
        "first": "memory" if held > 1e9 * card.card_gb else longest,
    }


def said(value: float, unit: str) -> str:
    if unit == "s":
        return f"{value / 3600:,.1f} h"
    steps = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
    scale = next((step for step in steps if value >= step[0]), (1, ""))
    return f"{value / scale[0]:,.1f} {scale[1]}{unit}".strip()


if __name__ == "__main__":
    main()
