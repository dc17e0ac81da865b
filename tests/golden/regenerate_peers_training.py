"""Write peers_training.npz: losses, gradients and updates of other libraries' own training code.

Usage, in an environment of these libraries (benchmarks/peers/install.sh makes one):
`python tests/golden/regenerate_peers_training.py`. Read by test_golden_peers_training.py. SAELens 6.54.12,
dictionary_learning 0.1.0, sparsify 1.3.3.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

FILE = Path(__file__).with_name("peers_training.npz")
N, D_IN, D_SAE = 64, 8, 24
JUMPRELU = {
    "step": {},
    "step_to_input": {"jumprelu_ste_to_input": True},
    "tanh_to_input": {"jumprelu_ste_to_input": True, "jumprelu_sparsity_loss_mode": "tanh"},
    "pre_act": {"pre_act_loss_coefficient": 0.05},
}


def weights() -> dict[str, Tensor]:
    """Of one SAE, with decoder rows of many norms; rows; which latents are dead."""
    generator = torch.Generator().manual_seed(5)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return {
        "x": draw(N, D_IN) + 0.5,
        "W_enc": draw(D_IN, D_SAE) / 3,
        "b_enc": draw(D_SAE) / 10,
        "W_dec": draw(D_SAE, D_IN) * torch.linspace(0.3, 2, D_SAE)[:, None] / 3,
        "b_dec": draw(D_IN) / 10,
        "threshold": torch.linspace(0.05, 0.6, D_SAE),
        "dead": torch.arange(D_SAE) % 5 == 0,
    }


def of_saelens(kind: str, config: dict[str, Any], l0: float) -> dict[str, np.ndarray]:
    """Losses, reconstruction and gradients of one training pass."""
    from sae_lens.saes import batchtopk_sae, jumprelu_sae, topk_sae
    from sae_lens.saes.sae import TrainStepInput

    made = {
        "jumprelu": (jumprelu_sae.JumpReLUTrainingSAEConfig, jumprelu_sae.JumpReLUTrainingSAE),
        "topk": (topk_sae.TopKTrainingSAEConfig, topk_sae.TopKTrainingSAE),
        "batchtopk": (batchtopk_sae.BatchTopKTrainingSAEConfig, batchtopk_sae.BatchTopKTrainingSAE),
    }[kind]
    given = weights()
    sae = made[1](made[0](d_in=D_IN, d_sae=D_SAE, apply_b_dec_to_input=True, **config))
    with torch.no_grad():
        for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
            getattr(sae, name).copy_(given[name])
        if kind == "jumprelu":
            sae.threshold.copy_(given["threshold"])
    coefficients = {"l0": l0} if kind == "jumprelu" else {}
    dead = given["dead"] if kind == "jumprelu" else None
    passed = TrainStepInput(
        sae_in=given["x"],
        coefficients=coefficients,
        dead_neuron_mask=dead,
        n_training_steps=0,
        is_logging_step=False,
    )
    out = sae.training_forward_pass(passed)
    out.loss.backward()
    names = ("W_enc", "b_enc", "W_dec", "b_dec", *(["threshold"] if kind == "jumprelu" else []))
    kept = {f"grad.{name}": getattr(sae, name).grad for name in names}
    kept |= {"loss": out.loss, "x_hat": out.sae_out}
    kept |= {f"loss.{name}": value for name, value in out.losses.items()}
    return {name: tensor.detach().double().numpy() for name, tensor in kept.items()}


def saelens() -> dict[str, np.ndarray]:
    """Every case's numbers."""
    found = {}
    for name, own in JUMPRELU.items():
        told = of_saelens("jumprelu", {"jumprelu_bandwidth": 0.2, **own}, 0.3)
        found |= {f"jumprelu.{name}.{k}": v for k, v in told.items()}
    cases = {"topk": {"k": 3}, "batchtopk": {"k": 2.5}}
    for kind, own in cases.items():
        by_norm = {"rescale_acts_by_decoder_norm": True, **own}
        found |= {f"{kind}.by_norm.{k}": v for k, v in of_saelens(kind, by_norm, 0).items()}
    plain = {"rescale_acts_by_decoder_norm": False, "k": 0.6}
    found |= {f"batchtopk.fraction.{k}": v for k, v in of_saelens("batchtopk", plain, 0).items()}
    return found


def dictionary_learning() -> dict[str, np.ndarray]:
    """p-annealing: the exponent and the weighted penalty step by step on one batch, and gradients at its end;
    the loss of dead latents of BatchTopK; the loss of a target L0 of JumpReLU."""
    from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
    from dictionary_learning.trainers.jumprelu import JumpReluTrainer
    from dictionary_learning.trainers.p_anneal import PAnnealTrainer

    given, found = weights(), {}
    told = {"activation_dim": D_IN, "dict_size": D_SAE, "layer": 0, "lm_name": "none", "device": "cpu"}
    anneal = PAnnealTrainer(
        **told, steps=40, anneal_start=8, n_sparsity_updates=5, p_end=0.5, sparsity_function="Lp^p",
        sparsity_queue_length=1, initial_sparsity_penalty=0.2, sparsity_warmup_steps=None, warmup_steps=0,
    )  # fmt: skip
    for weight, value in _linear(anneal.ae, given):
        weight.data.copy_(value)
    steps = []
    for step in range(40):
        anneal.loss(given["x"], step)
        steps.append([anneal.p, anneal.scaled_lp_loss.item()])
    anneal.p = 0.5
    _, codes = anneal.ae(given["x"], output_features=True)
    anneal.lp_norm(codes, 0.5).backward()
    grads = {"W_enc": anneal.ae.encoder.weight.grad.t(), "b_enc": anneal.ae.encoder.bias.grad}
    found |= {f"p_anneal.grad.{name}": grad.numpy() for name, grad in grads.items()}
    found["p_anneal.steps"] = np.array(steps)

    batch = BatchTopKTrainer(**told, steps=10, k=2, warmup_steps=0)
    for weight, value in _linear(batch.ae, given):
        weight.data.copy_(value)
    batch.num_tokens_since_fired[given["dead"]] = 10**8
    codes, _, acts = batch.ae.encode(given["x"], return_active=True, use_threshold=False)
    error = (given["x"] - batch.ae.decode(codes)).detach()
    loss = batch.get_auxiliary_loss(error, acts)
    loss.backward()
    found |= {
        "auxk.loss": loss.detach().numpy(),
        "auxk.error": error.numpy(),
        "auxk.grad.W_enc": batch.ae.encoder.weight.grad.t().numpy(),
        "auxk.grad.b_enc": batch.ae.encoder.bias.grad.numpy(),
        "auxk.grad.W_dec": batch.ae.decoder.weight.grad.t().numpy(),
    }

    jump = JumpReluTrainer(
        **told, steps=10, sparsity_penalty=0.7, target_l0=3.0, sparsity_warmup_steps=None,
        bandwidth=0.2, warmup_steps=0,
    )  # fmt: skip
    for name in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold"):
        getattr(jump.ae, name).data.copy_(given[name])
    found["target_l0.loss"] = jump.loss(given["x"], 0).detach().numpy()
    return found | resampled(told)


def resampled(told: dict[str, Any]) -> dict[str, np.ndarray]:
    """What neuron resampling makes of dead latents, the rows that are drawn given."""
    from dictionary_learning.trainers.standard import StandardTrainer

    given = to_resample()
    trainer = StandardTrainer(**told, steps=10, sparsity_warmup_steps=None, warmup_steps=1, resample_steps=5)
    trainer.loss(given["x"], 0).backward()
    trainer.optimizer.step()  # whose moments are reset
    for weight, value in _linear(trainer.ae, given):
        weight.data.copy_(value)
    draw, torch.multinomial = torch.multinomial, lambda *args, **options: given["rows"]
    trainer.resample_neurons(given["dead"].clone(), given["x"])
    torch.multinomial = draw
    names = ("W_enc", "b_enc", "W_dec", "b_dec")
    after = [weight.detach().numpy() for weight, _ in _linear(trainer.ae, given)]
    return {
        f"resample.{name}": value.T if name[0] == "W" else value
        for name, value in zip(names, after, strict=True)
    }


def to_resample() -> dict[str, Tensor]:
    """Weights, rows and draws for which both libraries mean the same: rows and decoder rows of norm 1, and no
    decoder bias."""
    given = weights()
    unit = torch.nn.functional.normalize
    rows = torch.arange(int(given["dead"].sum())) * 3 + 1
    return given | {
        "x": unit(given["x"], dim=1), "W_dec": unit(given["W_dec"], dim=1), "rows": rows,
        "b_dec": torch.zeros(D_IN),
    }  # fmt: skip


def updates() -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """Two matrices, one higher and one wider, and three gradients of them."""
    generator = torch.Generator().manual_seed(6)
    shapes = {"W_enc": (D_IN, D_SAE), "W_dec": (D_SAE, D_IN)}
    made = [{n: torch.randn(s, generator=generator) for n, s in shapes.items()} for _ in range(4)]
    return made[0], made[1:]


def sparsify() -> dict[str, np.ndarray]:
    """Three updates of its optimizers."""
    from sparsify.muon import Muon
    from sparsify.sign_sgd import SignSGD

    found = {}
    for name, make in (
        ("muon", lambda p: Muon(p, lr=0.01, ddp=False)),
        ("sign", lambda p: SignSGD(p, lr=0.01)),
    ):
        start, grads = updates()
        optimizer = make(list(start.values()))
        for each in grads:
            for key, weight in start.items():
                weight.grad = each[key].clone()
            optimizer.step()
        found |= {f"{name}.{key}": weight.numpy() for key, weight in start.items()}
    return found


def _linear(ae: Any, given: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Weights of an encoder and a decoder that are torch's Linear, beside what they shall be."""
    bias = ae.bias if hasattr(ae, "bias") else ae.b_dec
    pairs = [(ae.encoder.weight, given["W_enc"].t()), (ae.encoder.bias, given["b_enc"])]
    return [*pairs, (ae.decoder.weight, given["W_dec"].t()), (bias, given["b_dec"])]


def main() -> None:
    """Write the file anew."""
    torch.set_num_threads(1)
    np.savez_compressed(FILE, **saelens(), **dictionary_learning(), **sparsify())


if __name__ == "__main__":
    main()
