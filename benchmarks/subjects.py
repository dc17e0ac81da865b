"""What a read costs: our hooks with early stop, the model's own forward, TransformerBridge's cache.

python benchmarks/subjects.py [--out subjects.json] [--rounds 9] [--threads 2]

Models are made from configs with random weights, so nothing is downloaded. The ways are timed in turns, and
each figure is the median over rounds of its time divided by that of the plain forward in the same round.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from saelab.subjects import LanguageModel

SHAPES = {  # name: layers, d_model, heads, vocabulary, samples, positions, layer that is read
    "tiny: 4 x 128, 1,024 tokens": (4, 128, 8, 1024, 16, 256, 1),
    "deep: 8 x 256, 8,192 tokens": (8, 256, 8, 8192, 8, 128, 3),
    "wide vocabulary: 4 x 256, 50,257 tokens": (4, 256, 8, 50257, 4, 128, 2),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = {name: measure(shape, options.rounds) for name, shape in SHAPES.items()}
    for name, rows in results.items():
        print(f"\n{name}  (plain forward {rows['plain forward']['seconds'] * 1000:.1f} ms)")
        for way, row in rows.items():
            print(f"  {way:34} {row['ratio']:5.2f} x   [{row['low']:.2f}, {row['high']:.2f}]")
    if options.out:
        options.out.write_text(json.dumps(results, indent=2))


def measure(shape: tuple[int, ...], rounds: int) -> dict[str, dict[str, float]]:
    """way -> median seconds, and ratio to the plain forward of the same round (median, quartiles)."""
    layers, width, heads, vocabulary, samples, positions, layer = shape
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=vocabulary, n_embd=width, n_layer=layers, n_head=heads, n_positions=positions,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config)
    subject = LanguageModel(model, byte_tokenizer())
    inputs = subject.prepare_tokens(torch.randint(vocabulary, (samples, positions)))
    hook, z = f"blocks.{layer}.hook_resid_post", f"blocks.{layer}.attn.hook_z"
    last = f"blocks.{layers - 1}.hook_resid_post"
    ids = inputs.data["input_ids"]
    bridge = boot(model, subject.tokenizer)

    def plain() -> None:
        with torch.no_grad():
            model(**inputs.data, use_cache=False)

    def cache(**options: int) -> Callable[[], None]:
        def run() -> None:
            with torch.no_grad():
                bridge.run_with_cache(ids, names_filter=[hook], **options)

        return run

    def bridge_forward() -> None:
        with torch.no_grad():
            bridge(ids)

    ways: dict[str, Callable[[], object]] = {
        "plain forward": plain,
        f"ours, block {layer}, early stop": lambda: subject.run(inputs, read=hook, output=False),
        "ours, hook_z there, early stop": lambda: subject.run(inputs, read=z, output=False),
        "ours, last block, no unembedding": lambda: subject.run(inputs, read=last, output=False),
        "ours, read and output": lambda: subject.run(inputs, read=hook),
        "ours, output only": lambda: subject.run(inputs),
        "bridge forward": bridge_forward,
        "bridge cache of one point": cache(),
        "bridge cache, stop_at_layer": cache(stop_at_layer=layer + 1),
    }
    for way in ways.values():
        way()
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - start)
    base = times["plain forward"]
    rows = {}
    for name, seconds in times.items():
        ratios = sorted(s / b for s, b in zip(seconds, base, strict=True))
        low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
        rows[name] = {
            "seconds": statistics.median(seconds),
            "ratio": statistics.median(ratios),
            "low": low,
            "high": high,
        }
    return rows


def boot(model: torch.nn.Module, tokenizer: transformers.PreTrainedTokenizerFast) -> object:
    """TransformerBridge as its users boot it."""
    from transformer_lens.model_bridge import TransformerBridge

    twin = copy.deepcopy(model)
    twin.config.architectures = [type(model).__name__]
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.init_kwargs = {"name_or_path": "none", "add_bos_token": True}
    return TransformerBridge.boot_transformers("gpt2", hf_model=twin, tokenizer=tokenizer, device="cpu")


def byte_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """256 bytes and a BOS; enough where only ids are run."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<|bos|>": 0} | {c: i + 1 for i, c in enumerate(alphabet)}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|bos|>", eos_token="<|bos|>"
    )


if __name__ == "__main__":
    main()
