"""Does it matter how texts are packed before an SAE is trained on them?

python benchmarks/packing.py [--seeds 3] [--tokens 200000] [--out packing.json] [--log FILE.md]

SAEs of one recipe, equal steps and equal tokens, on the embedded model's activations of: dialogues each
alone ("dialogue", FAST), the same in blocks whose tokens see each other ("blocks", BT on chat data),
plain texts in such blocks (BT on plain text), and dialogues in blocks that see only themselves
("blocks_masked", which isolates leakage and positions from the data). All are scored on held-out dialogues,
each alone, beside an untrained SAE. Figures are means over seeds (of data, order and weights) with their
standard deviation; MSE is of an element in raw units.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import time
from pathlib import Path
from typing import Any

import torch

import saelab
from saelab.analysis import TokenScores, special_tokens
from saelab.corpora import Corpus, dialogues, natural, world
from saelab.corpora.world import FAMILIES

HOOK = "blocks.2.hook_resid_post"
D_SAE, K, BATCH = 1024, 16, 512
TURN = re.compile(r"<\|(user|assistant)\|>(.*?)<\|end\|>", re.DOTALL)
ARMS = {
    "dialogues alone (FAST)": ("dialogue", "chat"),
    "dialogues in masked blocks": ("blocks_masked", "chat"),
    "dialogues in blocks, BT": ("blocks", "chat"),
    "plain text in blocks, BT": ("blocks", "plain"),
}
COLUMNS = ["MSE", "log2 MSE", "FVU", "L0", "MSE special", "log2 special", "FVU special"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=200_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="write every figure as JSON")
    parser.add_argument("--log", type=Path, help="append the table to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    begin = time.perf_counter()
    subject = saelab.Lab.embedded().subject
    results: dict[str, list[dict[str, float]]] = {}
    for seed in range(options.seeds):
        for name, scores in measure(subject, seed, options.tokens).items():
            results.setdefault(name, []).append(scores)
    lines = table(results)
    print("\n".join(lines))
    print(f"\n{time.perf_counter() - begin:.0f} s")
    if options.out:
        options.out.write_text(json.dumps({"tokens": options.tokens, "results": results}, indent=2))
    if options.log:
        with options.log.open("a", encoding="utf-8") as file:
            file.write("\n" + "\n".join(lines) + "\n")


def chats(seed: int, n: int) -> Corpus:
    """Dialogues of the labelled world."""
    texts = world(seed=seed, n_documents=n, families=("chat",))
    turns = [TURN.findall(document.text) for document in texts]
    return dialogues([[{"role": r, "content": c} for r, c in each] for each in turns if each])


def measure(subject: Any, seed: int, tokens: int) -> dict[str, dict[str, float]]:
    """Every arm on data of its own seed, scored on the same held-out dialogues."""
    others = [family for family in FAMILIES if family != "chat"]
    plain = [d.text for d in world(seed=seed, n_documents=8_000, families=others)]
    data: dict[str, Any] = {"chat": chats(seed, 8_000), "plain": [*plain, *(d.text for d in natural())]}
    held_out = chats(10_000 + seed, 300)
    found: dict[str, dict[str, float]] = {}
    control: dict[str, float] = {}
    for name, (packing, kind) in ARMS.items():
        config = saelab.recipe("topk", d_in=subject.width(HOOK), d_sae=D_SAE, k=K, hook=HOOK)
        rows = saelab.stream(subject, data[kind], HOOK, buffer_rows=32_768, packing=packing)
        run = saelab.train(config, rows, tokens=tokens, batch_size=BATCH, seed=seed, progress=False)
        assert run.history[-1].rows == -(-tokens // BATCH) * BATCH
        scores = special_tokens(run.sae, subject, held_out, seed=seed)
        found[name] = together(scores.special, scores.other)
        control = together(scores.untrained_special, scores.untrained_other)
    return found | {"untrained": control}


def together(special: TokenScores, other: TokenScores) -> dict[str, float]:
    """Of all rows, and of the special ones."""
    n = special.n_rows + other.n_rows
    mse = (special.mse * special.n_rows + other.mse * other.n_rows) / n
    variance = sum(s.mse * s.n_rows / s.fvu for s in (special, other)) / n
    l0 = (special.l0 * special.n_rows + other.l0 * other.n_rows) / n
    whole = TokenScores(n, mse, mse / variance, l0)
    values = [whole.mse, whole.log2_mse, whole.fvu, whole.l0, special.mse, special.log2_mse, special.fvu]
    return dict(zip(COLUMNS, values, strict=True))


def table(results: dict[str, list[dict[str, float]]]) -> list[str]:
    """Markdown."""
    lines = [f"| trained on | {' | '.join(COLUMNS)} |", f"|---|{'---:|' * len(COLUMNS)}"]
    for name, runs in results.items():
        cells = []
        for column in COLUMNS:
            values = [run[column] for run in runs]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.mean(values):.4g} ± {spread:.2g}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    main()
