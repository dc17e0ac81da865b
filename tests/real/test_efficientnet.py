"""An ImageNet CNN through TorchModule: harvest, train, index, card."""

from __future__ import annotations

import numpy as np
import pytest
import real_models
import torch

import saelab

HOOK = "_blocks.10"
FIRST_THING = 398
"""ImageNet's classes before it are animals."""
ANIMALS = ("bird", "cat", "deer", "dog", "frog", "horse")


@pytest.fixture(scope="module")
def images():
    return real_models.images(240)


@pytest.fixture(scope="module")
def acts(cnn, images, tmp_path_factory):
    out = tmp_path_factory.mktemp("cnn") / "acts"
    return saelab.harvest(cnn, images[0][:96], [HOOK], out, batch_size=16, progress=False)


@pytest.fixture(scope="module")
def run(cnn, acts):
    config = saelab.recipe("topk", d_in=cnn.width(HOOK), d_sae=512, k=16, hook=HOOK)
    options = {"batch_size": 512, "seed": 0, "progress": False}
    return saelab.train(config, acts, steps=200, **options), saelab.train(config, acts, steps=1, **options)


def test_it_sees_what_the_pictures_show(cnn, images):
    """Of tiny CIFAR-10 pictures, enlarged, animals are taken for animals and vehicles for vehicles."""
    pictures, names, source = images
    if source != "CIFAR-10":
        pytest.skip("needs the public test data: the digits of scikit-learn are none of ImageNet's classes")
    best = torch.cat([cnn.run(cnn.prepare(pictures[i : i + 16])).output.argmax(-1) for i in range(0, 80, 16)])
    animal = np.array([name in ANIMALS for name in names[:80]])
    taken = best.numpy() < FIRST_THING
    assert taken[animal].mean() > 0.6, taken[animal]
    assert taken[~animal].mean() < 0.25, taken[~animal]


def test_hook_values_are_the_modules_outputs(cnn, images):
    inputs = cnn.prepare(images[0][:2])
    kept = []
    handle = cnn.module._blocks[10].register_forward_hook(lambda module, args, output: kept.append(output))
    with torch.no_grad():
        logits = cnn.module(inputs.data["inputs"])
    handle.remove()
    run = cnn.run(inputs, read=HOOK)
    assert torch.equal(run.acts[HOOK], kept[0].flatten(2).transpose(1, 2))
    assert torch.equal(run.output, logits)
    assert run.acts[HOOK].shape == (2, 14 * 14, 112)
    assert len(cnn.hooks()) > 150


def test_a_trained_sae_explains_pictures_that_it_did_not_see(cnn, images, run):
    trained, untrained = (r.sae.eval() for r in run)
    rows = cnn.run(cnn.prepare(images[0][160:184]), read=HOOK, output=False).acts[HOOK].flatten(0, 1)
    spread = (rows - rows.mean(0)).square().sum()

    def fvu(sae):
        with torch.no_grad():
            return float((rows - sae(rows).x_hat).square().sum() / spread)

    assert fvu(trained) < 0.6 * fvu(untrained), (fvu(trained), fvu(untrained))


def test_an_index_of_pictures_and_a_card(cnn, images, run, tmp_path):
    pictures = images[0][200:216]
    store = saelab.index(cnn, run[0].sae, pictures, tmp_path / "features", batch_size=16, progress=False)
    assert (store.n_latents, store.n_rows) == (512, 16 * 196)
    busy = int(store.latents().sort_values("count", ascending=False)["latent"].iloc[40])
    card = saelab.analysis.card(store, busy, run[0].sae, cnn)
    assert card.top.windows[0].value == card.stats.max
    # the strongest row of the store is what the SAE gives there
    example = store.examples(busy, 1)[0]
    acts = cnn.run(cnn.prepare([pictures[example.document]]), read=HOOK, output=False).acts[HOOK][0]
    with torch.no_grad():
        values = run[0].sae.encode(acts)[:, busy]
    assert int(values.argmax()) == example.position
    assert np.isclose(float(values.max()), example.value, rtol=1e-3)
