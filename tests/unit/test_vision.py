"""Image models of Hugging Face: rows know their patch, class and register tokens are apart."""

from __future__ import annotations

import io

import numpy as np
import pytest
import subjects_zoo as zoo
import torch
import transformers as t
from PIL import Image

import saelab
from saelab import interventions
from saelab.subjects import VisionModel
from saelab.types import ConfigError, CorpusError, HookError, SubjectError

BEFORE = {
    "vit": 1,
    "deit": 2,
    "beit": 1,
    "dinov2": 1,
    "dinov2 registers": 4,
    "dinov3": 4,
    "clip": 1,
    "siglip": 0,
}
HOOK = "blocks.1.hook_resid_post"
CUT = {
    "squashed": lambda: zoo.vision_processor(),
    "middle": lambda: t.CLIPImageProcessorPil(size={"shortest_edge": 40}, crop_size=SQUARE),
    "padded": lambda: t.CLIPImageProcessorPil(do_resize=False, crop_size={"height": 400, "width": 96}),
    "convnext": lambda: t.ConvNextImageProcessorPil(size={"shortest_edge": 32}, crop_pct=0.8),
    "dino": lambda: t.BitImageProcessorPil(size={"shortest_edge": 64}, crop_size=SQUARE),
}
SQUARE = {"height": 32, "width": 32}


def _sae(hook, width=16):
    config = saelab.recipe("topk", d_in=width, d_sae=32, k=4, hook=hook)
    return saelab.SAE.create(config, seed=0, rows=torch.randn(64, width))


@pytest.mark.parametrize("kind", BEFORE)
def test_patches_class_and_register_tokens_from_any_transformer(kind, tmp_path):
    model, before = zoo.vision_model(kind, head=False), BEFORE[kind]
    subject = VisionModel(model, zoo.vision_processor())
    assert (subject.grid, subject.before) == ((4, 4), before)
    assert subject.width(HOOK) == 16
    images = zoo.pictures(6)
    corpus = saelab.corpora.images(images, labels=list("abcabc"))
    sae = _sae(HOOK)
    store = saelab.index(subject, sae, corpus, tmp_path / "s", batch_size=4, progress=False)
    registers = 3 if before == 4 else 0
    names = [("class", "class")] * (before > 0) + [("extra", str(i)) for i in range(1, before - registers)]
    names += [("register", str(i + 1)) for i in range(registers)]
    names += [("patch", f"{i},{j}") for i in range(4) for j in range(4)]
    assert set(store.facets) == {facet for facet, _ in names}
    assert store.n_rows == 6 * len(names)
    document = store.document(2)
    assert document.layout == ("grid 4x4" if not before else f"extra {before}, grid 4x4")
    assert document.labels == ("c",)
    # the library's own states, row by row
    with torch.no_grad():
        inputs = zoo.vision_processor()(images=images, return_tensors="pt")
        states = model(**inputs, output_hidden_states=True).hidden_states
    acts = subject.run(subject.prepare(images), read=[HOOK, "blocks.0.hook_resid_post"]).acts
    last = states[2] if kind != "clip" else states[-1]
    torch.testing.assert_close(acts["blocks.0.hook_resid_post"], states[1])
    torch.testing.assert_close(acts[HOOK], last)
    for row in (0, before, before + 5, 2 * len(names) - 1):
        record = store.rows(row)
        image, at = divmod(row, len(names))
        assert (record.document, record.position, record.facet, record.name) == (image, at, *names[at])
        dense = sae.encode(acts[HOOK][image, at][None])[0].detach().numpy()
        assert sorted(record.latents.tolist()) == np.flatnonzero(dense).tolist()
    example = store.examples(int(store.latents()["count"].argmax()))[0]
    assert len(example.names) == len(names)
    lab = saelab.Lab(subject, sae, store)
    assert str(lab.codes(images[0]).layout) == document.layout


@pytest.mark.parametrize("kind", ["vit", "clip", "siglip", "dinov2 registers"])
def test_an_edit_reaches_states_that_the_library_captured_first(kind):
    """A hook that is appended after them would change nothing that is read of them, without an error."""
    model = zoo.vision_model(kind, head=False)
    inputs = zoo.vision_processor()(images=zoo.pictures(2), return_tensors="pt")
    with torch.no_grad():
        model(**inputs, output_hidden_states=True)
    subject = VisionModel(model, zoo.vision_processor())
    zero = ("blocks.0.hook_resid_post", torch.zeros_like)
    with torch.no_grad(), interventions.applied(subject, [zero]):
        states = model(**inputs, output_hidden_states=True).hidden_states
    assert not states[1].any()
    assert states[2].any()


def test_rows_are_chosen_by_what_they_show(tmp_path):
    images = zoo.pictures(5)
    stores = {}
    for rows, n, shown in (("all", 20, None), ("patches", 16, "patch"), ("class", 1, "class")):
        subject = zoo.vision_subject("dinov2 registers", rows=rows)
        out = tmp_path / rows
        stores[rows] = saelab.harvest(subject, images, [HOOK], out, batch_size=2, progress=False)
        assert stores[rows].n_rows == 5 * n
        sae = _sae(HOOK)
        index = saelab.index(subject, sae, images, tmp_path / f"i-{rows}", progress=False)
        assert index.n_rows == 5 * n
        if shown is not None:
            assert index.facets == (shown,)
            example = index.examples(int(index.latents()["count"].argmax()))[0]
            assert example.names[example.position - example.start] != ""
        run = saelab.train(
            saelab.recipe("topk", d_in=16, d_sae=32, k=4, hook=HOOK),
            saelab.stream(subject, images * 8, HOOK, buffer_rows=64, batch_size=4), steps=2, batch_size=8,
            progress=False,
        )  # fmt: skip
        assert run.sae.d_sae == 32
        # an edit by an SAE leaves alone what is no row
        seen = {}
        keep = (HOOK, lambda acts, context, seen=seen: seen.update(counted=context.counted) or acts)
        subject.run(subject.prepare(images[:2]), edits=[keep])
        counted = np.ones((2, 20), bool) if seen["counted"] is None else seen["counted"].numpy()
        expected = {"all": range(20), "patches": range(4, 20), "class": [0]}[rows]
        assert [np.flatnonzero(c).tolist() for c in counted] == [list(expected)] * 2
        lab = saelab.Lab(subject, sae, index)
        assert len(lab.codes(images[0]).shown) == 20
    rows = {
        name: store.acts(np.arange(store.n_rows), HOOK).numpy().reshape(5, -1, 16)
        for name, store in stores.items()
    }
    np.testing.assert_array_equal(rows["patches"], rows["all"][:, 4:])
    np.testing.assert_array_equal(rows["class"], rows["all"][:, :1])
    with pytest.raises(ConfigError, match="rows must be one of"):
        zoo.vision_subject("vit", rows="patch")
    siglip = zoo.vision_subject("siglip", rows="class")
    with pytest.raises(HookError, match="a model with a class token"):
        saelab.harvest(siglip, images, [HOOK], tmp_path / "none", progress=False)


def test_towers_of_models_that_read_texts_too():
    vision, text = zoo.VISION_SIZES | {"intermediate_size": 32}, {"hidden_size": 16, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 50, "eos_token_id": 2}
    for model in (
        t.CLIPModel(t.CLIPConfig(text_config=text, vision_config=vision)),
        t.SiglipModel(t.SiglipConfig(text_config=text, vision_config=vision)),
    ):
        subject = VisionModel(model, zoo.vision_processor())
        images = zoo.pictures(2)
        with torch.no_grad():
            states = model.vision_model(
                **zoo.vision_processor()(images=images, return_tensors="pt"), output_hidden_states=True
            ).hidden_states
        acts = subject.run(subject.prepare(images), read=["blocks.0.hook_resid_post"]).acts
        torch.testing.assert_close(acts["blocks.0.hook_resid_post"], states[1])


@pytest.mark.parametrize("name", CUT)
@pytest.mark.parametrize("shape", [(120, 200), (231, 150), (64, 64), (33, 500)])
def test_a_patch_is_found_again_in_the_image(name, shape):
    """A picture that is bright in one patch's box alone comes out of the processor bright in that patch."""
    made = CUT[name]()
    subject = VisionModel(zoo.vision_model("vit", head=False), zoo.vision_processor())
    subject.processor = made
    for row, column in ((0, 0), (1, 2), (3, 3)):
        at = 1 + 4 * row + column
        image = np.zeros((*shape, 3), np.uint8)
        left, top, right, bottom = (round(side) for side in subject.box(image, at))
        image[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = 255
        if not image.any():  # it lies in what the processor pads
            assert name == "padded"
            continue
        pixels = made(images=[image], return_tensors="pt", do_normalize=False)["pixel_values"][0, 0]
        height, width = pixels.shape
        cells = pixels.reshape(4, height // 4, 4, width // 4).mean((1, 3))
        assert int(cells.argmax()) == 4 * row + column
        others = cells.flatten()[np.arange(16) != 4 * row + column]
        assert others.max() < 0.35 * cells.max(), (name, cells)


def test_a_processor_that_does_something_else_says_so():
    class Flipped:
        do_resize, size, do_center_crop = True, {"height": 32, "width": 32}, False

        def __call__(self, images, return_tensors, **options):
            own = zoo.vision_processor()(images=images, return_tensors=return_tensors, **options)
            return {"pixel_values": own["pixel_values"].flip(-1)}

    subject = VisionModel(zoo.vision_model("vit"), Flipped())
    with pytest.raises(SubjectError, match="does something else"):
        subject.box(zoo.pictures(1)[0], 3)
    image = zoo.pictures(1)[0]
    assert subject.seen(image) is image
    with pytest.raises(CorpusError, match="must be a patch"):
        zoo.vision_subject("vit").box(image, 0)


def test_images_of_every_size_run_together():
    images = [zoo.pictures(1, *shape)[0] for shape in ((20, 30), (300, 40), (32, 32))]
    subject = zoo.vision_subject("clip")
    together = subject.run(subject.prepare(images), read=HOOK).acts[HOOK]
    for image, own in zip(images, together, strict=True):
        alone = subject.run(subject.prepare([image]), read=HOOK).acts[HOOK][0]
        torch.testing.assert_close(own, alone, atol=1e-5, rtol=1e-5)
    floats, pil = images[0] / np.float32(255), Image.fromarray(images[0])
    for other in (floats, pil, torch.from_numpy(images[0]).permute(2, 0, 1)):
        assert torch.equal(
            subject.prepare([other]).data["pixel_values"][0],
            subject.prepare(images[:1]).data["pixel_values"][0],
        )


def test_a_picture_is_cut_as_the_model_sees_it(tmp_path):
    """Else what is shaded is not what the patches hold."""
    flag = np.zeros((32, 96, 3), np.uint8)
    flag[:, :32, 0] = flag[:, 32:64, 1] = flag[:, 64:, 2] = 250
    model, sae = zoo.vision_model("clip", head=False), _sae(HOOK)
    middle = t.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=SQUARE)
    for processor, width, green in ((middle, 32, 1.0), (zoo.vision_processor(), 96, 1 / 3)):
        subject = VisionModel(model, processor)
        corpus = saelab.corpora.images([flag])
        store = saelab.index(subject, sae, corpus, tmp_path / str(width), progress=False)
        sample = saelab.Lab(subject, sae).codes(flag).document
        for media in (store.document(0).media, sample.media):
            shown = np.asarray(Image.open(io.BytesIO(media)))
            assert shown.shape == (32, width, 3)
            assert (shown.argmax(-1) == 1).mean() == pytest.approx(green, abs=0.02)


def test_hook_points_without_patches(tmp_path):
    subject = VisionModel(zoo.vision_model("vit", head=False), zoo.vision_processor(), rows="patches")
    acts = saelab.harvest(subject, zoo.pictures(6), ["pooler"], tmp_path / "a", progress=False)
    assert acts.n_rows == 6
    cnn = zoo.vision_subject("resnet")
    maps = saelab.harvest(cnn, zoo.pictures(6), ["stages.0"], tmp_path / "b", progress=False)
    height, width = cnn.run(cnn.prepare(zoo.pictures(1)), read=["stages.0"]).spaces["stages.0"]
    assert maps.n_rows == 6 * height * width


@pytest.mark.parametrize("kind", ["vit", "dinov2 registers", "resnet"])
def test_a_folder_is_loaded_with_its_processor_and_its_head(kind, tmp_path):
    hook = HOOK if kind != "resnet" else "stages.1"
    for head in (True, False):
        model = zoo.vision_model(kind, head=head)
        model.save_pretrained(tmp_path / "m")
        t.ViTImageProcessorPil(size=SQUARE, image_mean=[0.2] * 3).save_pretrained(tmp_path / "m")
        subject = VisionModel.load(tmp_path / "m")
        assert type(subject.module) is type(model)
        assert list(subject.processor.image_mean) == [0.2] * 3
        same = VisionModel(model, subject.processor)
        acts = [s.run(s.prepare(zoo.pictures(2)), read=[hook]).acts[hook] for s in (subject, same)]
        torch.testing.assert_close(*acts)
    with pytest.raises(SubjectError, match="must load with its processor"):
        VisionModel.load(tmp_path / "nothing")


def test_what_is_no_image_is_refused():
    subject = zoo.vision_subject("vit")
    with pytest.raises(CorpusError, match="images that the model's processor takes"):
        subject.prepare(["a text"])


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2", "resnet18"])
def test_models_of_timm(name, tmp_path):
    timm = pytest.importorskip("timm", reason="needs timm, which is no part of saelab", exc_type=Exception)
    torch.manual_seed(0)
    side = 56 if "patch14" in name else 64
    small = {"img_size": side, "embed_dim": 32, "depth": 2, "num_heads": 2} if "vit" in name else {}
    told = {"input_size": (3, side, side), "crop_pct": 0.9}
    module = timm.create_model(name, pretrained=False, pretrained_cfg_overlay=told, **small)
    subject = VisionModel.timm(module, rows="patches")
    images = zoo.pictures(2, 90, 130)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(module))
    expected = torch.stack([transform(Image.fromarray(image)) for image in images])
    assert torch.equal(subject.prepare(images).data["x"], expected)
    kept = []
    hook, own = ("blocks.1.hook_resid_post", "blocks") if "vit" in name else ("layer2", None)
    block = module.blocks[1] if own else module.layer2
    handle = block.register_forward_hook(lambda module, args, output: kept.append(output))
    with torch.no_grad():
        module(expected)
    handle.remove()
    run = subject.run(subject.prepare(images), read=hook)
    assert torch.equal(run.acts[hook], kept[0] if own else kept[0].flatten(2).transpose(1, 2))
    if own:
        rows, columns = subject.grid
        assert subject.before == kept[0].shape[1] - rows * columns == (5 if "reg4" in name else 1)
        acts = saelab.harvest(subject, images, [hook], tmp_path / "a", progress=False)
        assert acts.n_rows == 2 * rows * columns
    box = subject.box(images[0], subject.before or 0, None if own else "grid 7x7")
    assert box.left > 0 or box.top > 0
