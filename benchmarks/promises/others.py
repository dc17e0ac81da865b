"""The same edits on trained models that are no language models: an ImageNet CNN and a sentence encoder."""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import saelab
from promises.report import Report
from saelab.analysis import dose_response
from saelab.interventions import Each, Erase, Scale, Steer
from saelab.sae import SAE

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
import real_models

SEEDS, LATENTS, ALPHAS = 3, 4, (0.05, 0.1, 0.2)
ANIMALS = 398
"""ImageNet's classes before it are animals."""
CONTROLS = ("random direction", "random latents")
POLARITY = real_models.DATA / "language" / "text" / "sentence_polarity.zip"


def missing() -> str:
    """Why the models or texts cannot be had, or ""."""
    absent = "" if POLARITY.is_file() else f"needs public data, which are not at {POLARITY}"
    return absent or real_models.missing(real_models.CNN) or real_models.missing(real_models.MINILM)


class Subject(NamedTuple):
    """A model, where it is edited, and what of its output is wanted."""

    name: str
    model: Any
    hook: str
    fitted: list[Any]
    judged: list[Any]
    wanted: Callable[[Tensor], Tensor]
    """output -> a number for each sample"""


def measure(seeds: Iterable[int]) -> Report:
    report = Report(
        "Edits on models that are no language models",
        "EfficientNet-Lite0 at _blocks.10 on CIFAR-10 and all-MiniLM-L6-v2 at encoder.layer.3 on reviews of "
        f"films, TopK SAEs of 512 latents trained anew for each seed. The {LATENTS} latents that raise the "
        "log-odds of ImageNet's animals (of the encoder: the mean output along the difference of good and "
        "bad reviews) most by a first-order estimate, on samples that trained the SAE, are pushed up "
        "everywhere; alpha in units of a latent's largest activation. wanted: change of that figure on new "
        "samples, in standard deviations of it over samples. output: change of the whole output, relative. "
        "Controls go as far at the same rows, 2 draws each.",
    )
    exact: dict[str, list[float]] = {"bits": [], "delta": []}
    notes: list[str] = []
    for seed in seeds:
        for subject in (_pictures(seed), _sentences(seed)):
            _one(report, subject, seed, exact, notes)
    report.promise("outputs that a null edit changes in any bit", exact["bits"], high=0)
    report.promise("largest error of a delta, of the largest activation", exact["delta"], high=3e-6)
    for name in ("CNN", "encoder"):
        plain, sae = report.of(f"{name}, no edit", "FVU, untrained"), report.of(f"{name}, no edit", "FVU")
        report.promise(f"FVU of the SAE / of an untrained one, {name}", sae / plain, high=0.7)
        own = np.array([report.of(f"{name}, edit {alpha:g}", "wanted") for alpha in ALPHAS])
        report.promise(f"wanted, least over alpha, {name}", own.min(0), 0)
        for control in CONTROLS:
            other = [report.of(f"{name}, {control} {alpha:g}", "wanted") for alpha in ALPHAS]
            report.promise(f"that of {control} taken off, least over alpha, {name}", (own - other).min(0), 0)
    report.notes.append(
        f"95 % over samples of the change at alpha {ALPHAS[0]:g}, by seed: {'; '.join(notes)}."
    )
    return report


def _pictures(seed: int) -> Subject:
    images, _, _ = real_models.images(64 * 3)
    some = images[64 * seed : 64 * (seed + 1)]

    def animals(logits: Tensor) -> Tensor:
        return logits[:, :ANIMALS].logsumexp(-1) - logits[:, ANIMALS:].logsumexp(-1)

    return Subject("CNN", real_models.cnn(), "_blocks.10", some[:48], some[48:], animals)


def _sentences(seed: int) -> Subject:
    model, draw = real_models.minilm(), np.random.default_rng(seed)
    sides = []
    with zipfile.ZipFile(POLARITY) as file:
        for end in (".pos", ".neg"):
            name = next(name for name in file.namelist() if name.endswith(end))
            lines = file.read(name).decode("latin-1").splitlines()
            sides.append([lines[i].strip() for i in draw.permutation(len(lines))[:240]])
    with torch.no_grad():
        good, bad = (
            torch.cat([model.run(model.prepare(side[i : i + 40])).output.mean(1) for i in range(0, 160, 40)])
            for side in sides
        )
    axis = torch.nn.functional.normalize(good.mean(0) - bad.mean(0), dim=0)
    fitted = [text for pair in zip(*(side[:160] for side in sides), strict=True) for text in pair]
    judged = [text for pair in zip(*(side[160:184] for side in sides), strict=True) for text in pair]
    return Subject("encoder", model, "encoder.layer.3", fitted, judged, lambda out: (out @ axis).mean(1))


def _one(
    report: Report, subject: Subject, seed: int, exact: dict[str, list[float]], notes: list[str]
) -> None:
    model, hook = subject.model, subject.hook
    parts = [subject.fitted[i : i + 16] for i in range(0, len(subject.fitted), 16)]
    rows = torch.cat([_rows(model, hook, some) for some in parts])
    config = saelab.recipe("topk", d_in=rows.shape[1], d_sae=512, k=16, hook=hook)
    sae = saelab.train(config, rows, steps=400, batch_size=512, seed=seed, progress=False).sae.eval()
    slope = torch.zeros(rows.shape[1])
    for some in parts:
        run = model.run(model.prepare(some), read=hook, grad=True)
        slope += torch.autograd.grad(subject.wanted(run.output).sum(), run.acts[hook])[0].sum((0, 1))
    with torch.no_grad():
        peaks = torch.stack([sae.encode(part).amax(0) for part in rows.split(4096)]).amax(0)
        raised = slope @ (sae.W_dec * sae.out_scale).T * peaks
        fresh = SAE.create(config, seed=seed, rows=rows[:2000]).eval()
        new = _rows(model, hook, subject.judged)
        spread = (new - new.mean(0)).square().sum()
        fvu, control = (float((new - each(new).x_hat).square().sum() / spread) for each in (sae, fresh))
    latents = raised.argsort(descending=True)[:LATENTS].tolist()

    def steer(alpha: float) -> list[Steer]:
        return [Steer(sae, j, alpha, "max", peak=float(peaks[j])) for j in latents]

    bits, delta = _exact(model, sae, subject.judged[:4], latents[0])
    exact["bits"].append(bits)
    exact["delta"].append(delta)
    found = dose_response(
        model, steer, ALPHAS, subject.judged, target=subject.wanted, controls=CONTROLS, draws=2, seed=seed,
        batch_size=16,
    )  # fmt: skip
    with torch.no_grad():
        plain = subject.wanted(model.run(model.prepare(subject.judged)).output)
    base, size = found.figure_of("target", "no edit").value, float(plain.std())
    report.add(
        f"{subject.name}, no edit", {"wanted": 0.0, "output": 0.0, "FVU": fvu, "FVU, untrained": control}
    )
    for arm in ("edit", *CONTROLS):
        for alpha in ALPHAS:
            figures = found.arm(arm, alpha).figures
            moved = (figures["target"].value - base) / size
            report.add(
                f"{subject.name}, {arm} {alpha:g}", {"wanted": moved, "output": figures["output"].value}
            )
    moved = _moved(subject, steer(ALPHAS[0]), plain) / size
    draws = np.random.default_rng(seed).integers(len(moved), size=(2000, len(moved)))
    low, high = np.percentile(moved[draws].mean(1), [2.5, 97.5])
    notes.append(f"{subject.name} {moved.mean():.3f} [{low:.3f}, {high:.3f}]")


def _moved(subject: Subject, edits: Any, plain: Tensor) -> np.ndarray:
    with torch.no_grad():
        inputs = subject.model.prepare(subject.judged)
        return (subject.wanted(subject.model.run(inputs, edits=edits).output) - plain).numpy()


def _rows(model: Any, hook: str, samples: Sequence[Any]) -> Tensor:
    """Those that count."""
    inputs = model.prepare(samples)
    acts = model.run(inputs, read=hook, output=False).acts[hook]
    return acts.flatten(0, 1) if inputs.counted is None else acts[torch.from_numpy(inputs.counted)]


def _exact(model: Any, sae: SAE, samples: Sequence[Any], j: int) -> tuple[float, float]:
    """How many of the outputs null edits change, and the largest error of what edits add."""
    inputs, hook = model.prepare(samples), sae.config.hook
    run = model.run(inputs, read=hook)
    x = run.acts[hook.name]
    shut = {"gate": "token", "threshold": 1e6}
    null = [Steer(sae, j, 0.0), Scale(sae, [j], 1.0), Erase(sae, [j], 0.0, "input", 1e6)]
    null += [Steer(sae, j, 5.0, **shut), Each([[Steer(sae, j, 0.0)]] * len(samples))]
    bits = sum(not torch.equal(model.run(inputs, edits=edit).output, run.output) for edit in null)
    here = torch.ones(x.shape[:2]) if inputs.counted is None else torch.from_numpy(inputs.counted)
    here = here.bool()[..., None]
    with torch.no_grad():
        row = sae.W_dec[j] * sae.out_scale
        codes = sae.encode(x)[..., j, None]
    errors = [
        (model.run(inputs, read=hook, edits=edit).acts[hook.name] - x - torch.where(here, added, 0))
        .abs()
        .max()
        for edit, added in ((Steer(sae, j, 2.5), 2.5 * row), (Scale(sae, [j], -1.0), -2 * codes * row))
    ]
    return float(bits), float(max(errors) / x.abs().max())
