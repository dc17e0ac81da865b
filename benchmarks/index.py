"""What an index costs: its time beside the floor that none goes below, the latency of a card, bytes a code.

python benchmarks/index.py [--rows 20000] [--d-sae 16384] [--k 32] [--hook NAME] [--rounds 5] [--record]

The floor is the forward pass that stops at the layer that is read, over the same documents, tokenised and
padded beforehand in the same batches, and then the product with the encoder, in chunks into one kept buffer.
The index starts from texts and ends with every file hashed. The two are timed in turns; the figure is the
median over rounds of the index's time divided by the floor's. "with codes, written" is the same over the
stopped forward, `encode_sparse` and one write of every table of the store out of memory. The model has
random weights and the shape of the embedded one, so nothing is downloaded; they give codes at the full k of
every row, spread over the latents: the most work that a TopK SAE can give.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import torch
import transformers
from results import record
from tokenizers import Tokenizer, models, pre_tokenizers

import saelab
from saelab.analysis import card
from saelab.sae import SAE
from saelab.stores import FeatureStore, tables
from saelab.subjects import LanguageModel

CHUNK = 1024  # rows of a product


def main() -> None:
    parser = argparse.ArgumentParser(description="What an index costs")
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--d-sae", type=int, default=16_384)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--hook", default="blocks.2.hook_resid_post", help="blocks.3 is the deepest")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--record", action="store_true", help="keep the figures in benchmarks/results")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    subject = make_subject()
    sae = make_sae(subject, options.hook, options.d_sae, options.k)
    texts = take(subject, options.rows)
    inputs = padded(subject, texts)
    with tempfile.TemporaryDirectory() as folder:
        results = measure(subject, sae, texts, inputs, Path(folder), options.rounds)
    for name, value in results.items():
        print(f"{name:32} {value:,.3f}" if isinstance(value, float) else f"{name:32} {value:,}")
    if options.record:
        named = {name: getattr(options, name) for name in ("k", "hook", "rounds", "threads")}
        record(f"index-{options.d_sae}-{options.rows}", [{"latents": options.d_sae, **results}], **named)


def measure(
    subject: LanguageModel,
    sae: SAE,
    texts: list[str],
    inputs: list[saelab.types.Inputs],
    folder: Path,
    rounds: int,
) -> dict[str, float | int]:
    """Figures by name; seconds are medians."""
    product, encoded = floor(subject, sae, inputs), encoding(subject, sae, inputs)
    floors, index, of_cpu, wholes = [], [], [], []
    for i in range(rounds):
        start = time.process_time()
        floors.append(seconds(product))
        middle, out = time.process_time(), folder / str(i)
        index.append(seconds(lambda out=out: saelab.index(subject, sae, texts, out, progress=False)))
        of_cpu.append((time.process_time() - middle) / (middle - start))
        wholes.append(seconds(encoded) + seconds(writing(out)))
    store = FeatureStore.open(folder / str(rounds - 1))
    n_codes = store.manifest["n_codes"]
    sizes = {name: entry["bytes"] for name, entry in store.manifest["files"].items()}
    opened = seconds(lambda: FeatureStore.open(folder / "0").latent(0))
    jumps = [(j * 389) % store.n_latents for j in range(200)]
    for j in jumps[:3]:
        card(store, j)
    cards = sorted(seconds(lambda j=j: card(store, j)) for j in jumps)
    rows = sorted(seconds(lambda j=j: store.rows(j * store.n_rows // store.n_latents)) for j in jumps)
    codes = sorted(seconds(lambda j=j: store.codes(j)) for j in jumps)
    return {
        "rows": store.n_rows,
        "codes": n_codes,
        "floor rows/s": store.n_rows / statistics.median(floors),
        "index rows/s": store.n_rows / statistics.median(index),
        "index / floor": statistics.median(i / f for f, i in zip(floors, index, strict=True)),
        "index / floor, CPU": statistics.median(of_cpu),
        "index / floor with codes, written": statistics.median(
            i / w for w, i in zip(wholes, index, strict=True)
        ),
        "open and one latent, ms": opened * 1000,
        "card median, ms": cards[100] * 1000,
        "card slowest of 200, ms": cards[-1] * 1000,
        "rows(i) median, ms": rows[100] * 1000,
        "codes(j) median, ms": codes[100] * 1000,
        "bytes a code, by latent": sizes["codes_by_latent.parquet"] / n_codes,
        "bytes a code, by row": sizes["codes_by_row.parquet"] / n_codes,
        "bytes of the store": sum(sizes.values()),
    }


def seconds(call: Callable[[], object]) -> float:
    """Wall time of one call, without gradients."""
    start = time.perf_counter()
    with torch.no_grad():
        call()
    return time.perf_counter() - start


def floor(subject: LanguageModel, sae: SAE, inputs: list[saelab.types.Inputs]) -> Callable[[], None]:
    """What no index can do without: the stopped forward, and the product in chunks into one kept buffer."""
    hook, W_enc = str(sae.reads[0]), sae.W_enc.detach()
    buffer = torch.empty(CHUNK, W_enc.shape[1])

    def run() -> None:
        for batch in inputs:
            rows = subject.run(batch, read=[hook], output=False).acts[hook].flatten(0, 1)
            for chunk in rows.split(CHUNK):
                torch.mm(chunk, W_enc, out=buffer[: len(chunk)])

    return run


def encoding(subject: LanguageModel, sae: SAE, inputs: list[saelab.types.Inputs]) -> Callable[[], None]:
    """The stopped forward, and the codes."""
    hook = str(sae.reads[0])

    def run() -> None:
        for batch in inputs:
            sae.encode_sparse(subject.run(batch, read=[hook], output=False).acts[hook])

    return run


def writing(store: Path) -> Callable[[], None]:
    """One write of every table of a store, which are in memory."""
    whole = {
        name: pq.read_table(tables.path(store, name)).cast(tables.SCHEMAS[name]) for name in tables.SCHEMAS
    }

    def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            for name, table in whole.items():
                with tables.writer(Path(folder), name) as file:
                    file.write_table(table)

    return run


def make_subject(layers: int = 4, width: int = 128, heads: int = 8, context: int = 256) -> LanguageModel:
    """Random weights over 256 bytes and a BOS."""
    torch.manual_seed(0)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({"<|bos|>": 0} | {c: i + 1 for i, c in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|bos|>", eos_token="<|bos|>"
    )
    config = transformers.GPT2Config(
        vocab_size=1024, n_embd=width, n_layer=layers, n_head=heads, n_positions=context,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return LanguageModel(transformers.GPT2LMHeadModel(config).eval(), tokenizer)


def make_sae(subject: LanguageModel, hook: str, d_sae: int, k: int) -> SAE:
    """An untrained TopK SAE."""
    return SAE.create(saelab.recipe("topk", d_in=subject.width(hook), d_sae=d_sae, k=k, hook=hook)).eval()


def take(subject: LanguageModel, rows: int) -> list[str]:
    """Documents of the world that hold at least so many rows."""
    texts, n = [], 0
    for document in saelab.corpora.world(seed=0, n_documents=rows):
        if n >= rows:
            break
        texts.append(document.text)
        n += min(len(subject.to_tokens(document.text)), subject.n_ctx) - 1
    return texts


def padded(subject: LanguageModel, texts: list[str], batch_size: int = 16) -> list[saelab.types.Inputs]:
    """The batches that the index makes of these texts."""
    out = []
    for first in range(0, len(texts), 16 * batch_size):
        stretch = texts[first : first + 16 * batch_size]
        ids = sorted((subject.to_tokens(t)[: subject.n_ctx] for t in stretch), key=len)
        out += [subject.prepare_tokens(ids[i : i + batch_size]) for i in range(0, len(ids), batch_size)]
    return out


if __name__ == "__main__":
    main()
