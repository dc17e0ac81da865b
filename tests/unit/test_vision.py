"""Image models of Hugging Face: rows know their patch, class and register tokens are apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers

import saelab
from saelab.subjects import VisionModel
from saelab.types import CorpusError, SubjectError

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}


def _processor():
    return transformers.ViTImageProcessorPil(size={"height": 32, "width": 32})


def _model(kind):
    torch.manual_seed(0)
    if kind == "vit":
        return transformers.ViTModel(transformers.ViTConfig(**SMALL, intermediate_size=32)), 1, "layers.1"
    if kind == "registers":
        config = transformers.Dinov2WithRegistersConfig(**SMALL, mlp_ratio=2, num_register_tokens=3)
        return transformers.Dinov2WithRegistersModel(config), 4, "layer.1"
    config = transformers.CLIPVisionConfig(**SMALL, intermediate_size=32)
    return transformers.CLIPVisionModel(config), 1, "layers.1"


def _images(n=6, height=40, width=50):
    rng = np.random.default_rng(0)
    return list(rng.integers(0, 255, (n, height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("kind", ["vit", "registers", "clip"])
def test_patches_and_extra_tokens_from_any_transformer(kind, tmp_path):
    model, extra, hook = _model(kind)
    subject = VisionModel(model, _processor())
    assert subject.grid == (4, 4)
    assert subject.width(hook) == 16
    config = saelab.recipe("topk", d_in=16, d_sae=32, k=4, hook=hook)
    sae = saelab.SAE.create(config, seed=0, rows=torch.randn(64, 16))
    corpus = saelab.corpora.images(_images(), labels=list("abcabc"))
    store = saelab.index(subject, sae, corpus, tmp_path / "s", batch_size=4, progress=False)
    assert store.facets == ("extra", "patch")
    assert store.n_rows == 6 * (extra + 16)
    document = store.document(2)
    assert document.layout == f"extra {extra}, grid 4x4"
    assert document.labels == ("c",)
    # the library's own pass, row by row
    with torch.no_grad():
        inputs = _processor()(images=_images(), return_tensors="pt")
        states = model(**inputs, output_hidden_states=True).hidden_states
    acts = subject.run(subject.prepare(_images()), read=[hook]).acts[hook]
    assert any(torch.allclose(acts, state) for state in states)
    for row in (0, extra, extra + 5, 2 * (extra + 16) - 1):
        record = store.rows(row)
        image, at = divmod(row, extra + 16)
        facet, name = ("extra", str(at)) if at < extra else ("patch", "{},{}".format(*divmod(at - extra, 4)))
        assert (record.document, record.position, record.facet, record.name) == (image, at, facet, name)
        dense = sae.encode(acts[image, at][None])[0].detach().numpy()
        assert sorted(record.latents.tolist()) == np.flatnonzero(dense).tolist()
    example = store.examples(int(store.latents()["count"].argmax()))[0]
    assert len(example.names) == extra + 16
    lab = saelab.Lab(subject, sae, store)
    assert str(lab.codes(_images()[0]).layout) == f"extra {extra}, grid 4x4"


def test_hook_points_without_patches(tmp_path):
    model, _, _ = _model("vit")
    subject = VisionModel(model, _processor())
    acts = saelab.harvest(subject, _images(), ["pooler"], tmp_path / "a", progress=False)
    assert acts.n_rows == 6


def test_a_folder_is_loaded_with_its_processor(tmp_path):
    model, _, hook = _model("vit")
    model.save_pretrained(tmp_path / "m")
    _processor().save_pretrained(tmp_path / "m")
    subject = VisionModel.load(tmp_path / "m")
    same = VisionModel(model, _processor())
    acts = [s.run(s.prepare(_images(2)), read=[hook]).acts[hook] for s in (subject, same)]
    torch.testing.assert_close(*acts)
    with pytest.raises(SubjectError, match="must load with its processor"):
        VisionModel.load(tmp_path / "nothing")


def test_what_is_no_image_is_refused():
    subject = VisionModel(_model("vit")[0], _processor())
    with pytest.raises(CorpusError, match="images that the model's processor takes"):
        subject.prepare(["a text"])
