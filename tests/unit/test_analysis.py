"""analysis against brute force, on the embedded model and a small SAE."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
import torch

import saelab
from saelab import analysis, corpora
from saelab.analysis import searches
from saelab.types import CorpusError, HookError, RangeError, ShapeError

HOOK = "blocks.2.hook_resid_post"


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [d.text for d in corpora.world(seed=77, n_documents=12)]


# ---- logit lens ----------------------------------------------------------------------------------


@pytest.mark.parametrize("latent", [0, 5, 63])
def test_logit_lens_is_the_derivative_of_the_logits(subject, small_sae, latent):
    """Moving along the decoder row at a residual vector orthogonal to it changes the logits by the lens /
    sigma.
    """
    model = subject.model
    direction = small_sae.W_dec[latent].detach().double()
    centred = direction - direction.mean()
    generator = torch.Generator().manual_seed(latent)
    x = torch.randn(len(direction), generator=generator, dtype=torch.float64)
    x = x - x.mean()
    x = x - centred * (x @ centred) / (centred @ centred)
    sigma = x.std(correction=0)

    def logits(v):
        norm, head = model.transformer.ln_f, model.lm_head
        normed = torch.nn.functional.layer_norm(
            v, v.shape, norm.weight.double(), norm.bias.double(), norm.eps
        )
        return normed @ head.weight.double().T

    step = 1e-4
    slope = (logits(x + step * direction) - logits(x - step * direction)) / (2 * step) * sigma
    slope = (slope - slope.mean()).detach().numpy()
    found = analysis.direct_logits(small_sae, subject, [latent])[0]
    np.testing.assert_allclose(found, slope, atol=1e-4)

    lens = analysis.logit_lens(small_sae, subject, latent, n=4)
    best = np.argsort(-slope)[:4]
    assert [t for t, _ in lens.top] == subject.token_strings(best.tolist())
    np.testing.assert_allclose([v for _, v in lens.top], slope[best], atol=1e-4)
    assert lens.bottom[0][1] == pytest.approx(slope.min(), abs=1e-4)
    assert lens.spread == pytest.approx(slope.std(), rel=1e-3)


def test_logit_lens_of_a_head_latent_goes_through_the_output_projection(subject):
    hook = subject.hook_point("blocks.1.attn.hook_z")
    sae = saelab.SAE.create(saelab.recipe("topk", d_in=128, d_sae=16, k=2, hook=hook), seed=0)
    projection = subject.model.transformer.h[1].attn.c_proj.weight  # Conv1D: [in out]
    residual = sae.W_dec[3] @ projection
    ln_f = subject.model.transformer.ln_f
    expected = ((residual - residual.mean()) * ln_f.weight) @ subject.model.lm_head.weight.T
    expected = (expected - expected.mean()).detach().numpy()
    np.testing.assert_allclose(analysis.direct_logits(sae, subject, [3])[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("latent", [-1, 64, 1.5, True, None])
def test_logit_lens_refuses_other_latents(subject, small_sae, latent):
    with pytest.raises(RangeError, match=r"0\.\.63"):
        analysis.logit_lens(small_sae, subject, latent)


def test_logit_lens_refuses_hooks_off_the_residual_stream(subject):
    width = subject.width("blocks.1.mlp.hook_pre")
    config = saelab.recipe("topk", d_in=width, d_sae=8, k=2, hook="blocks.1.mlp.hook_pre")
    with pytest.raises(HookError):
        analysis.logit_lens(saelab.SAE.create(config, seed=0), subject, 0)


# ---- one text ------------------------------------------------------------------------------------


def test_sample_codes_equal_the_dense_path(subject, small_sae):
    text = "Rosa went to the market. <|user|>hello"
    found = analysis.sample_codes(subject, small_sae, text)
    ids = subject.to_tokens(text)
    hidden = subject.model(torch.tensor([ids]), output_hidden_states=True).hidden_states[3][0]
    dense = small_sae.encode(hidden).detach().numpy()
    np.testing.assert_allclose(found.codes.dense(), dense, atol=1e-5)
    assert len(found.names) == len(ids)
    assert not found.counted[0]
    assert found.counted[1:].all()

    strongest = int(np.abs(dense[3]).argmax())
    assert found.top(3, 1)[0][0] == strongest
    np.testing.assert_allclose(found.of(strongest), dense[:, strongest], atol=1e-5)
    assert (found.to_frame()["value"] != 0).all()


@pytest.mark.parametrize("which", ["small_lab", "signed_lab"])
def test_search_without_a_store_ranks_by_the_largest_value_without_bos(which, request):
    lab = request.getfixturevalue(which)
    text = "counting: 1 2 3 4 5 6"
    dense = analysis.sample_codes(lab.subject, lab.sae, text).codes.dense()[1:]
    strongest = dense[np.abs(dense).argmax(0), np.arange(dense.shape[1])]
    found = analysis.search(lab.subject, lab.sae, text, n=10)
    assert [f.latent for f in found] == np.argsort(-np.abs(strongest), kind="stable")[: len(found)].tolist()
    assert all(f.value == pytest.approx(strongest[f.latent]) for f in found)
    assert all(f.score == abs(f.value) and np.isnan(f.lift) for f in found)
    assert (min(f.value for f in found) < 0) == (which == "signed_lab")


@pytest.mark.parametrize("text", ["year", " year", "Rosa went to the market, " * 4])
def test_search_ranks_by_what_is_specific(subject, small_lab, text):
    """Against loops over dense codes: a short text behind openings, a long one as it stands."""
    store, sae = small_lab.store, small_lab.sae
    beginnings = searches.openings(store)
    assert len(beginnings) == searches.OPENINGS == len(set(beginnings))
    assert all(begin.strip() for begin in beginnings)
    short = len(subject.to_tokens(text)) - 1 <= searches.SHORT
    rows = []
    for opening in beginnings if short else [""]:
        spaced = " " + text.strip() if opening.endswith(" ") else text
        dense = analysis.sample_codes(subject, sae, opening.strip() + spaced).codes.dense()
        rows += list(dense[len(subject.to_tokens(opening.strip())) if opening else 1 :])
    fires, n_rows = store.latents()["count"], store.n_rows
    expected = {}
    for latent in range(store.n_latents):
        on = [row[latent] for row in rows if row[latent]]
        if on:
            share, density = len(on) / len(rows), (fires[latent] + 1) / (n_rows + 1)
            expected[latent] = (share * np.log2(share / density), max(on, key=abs), share, share / density)
    found = analysis.search(subject, sae, text, n=99, store=store)
    assert {f.latent for f in found} == set(expected)
    for each in found:
        np.testing.assert_allclose(each[1:], expected[each.latent], rtol=1e-4)
    scores = [f.score for f in found]
    assert scores == sorted(scores, reverse=True)
    assert analysis.search(subject, sae, text, n=3, store=store) == found[:3]
    frame = small_lab.search(text, n=3)
    assert list(frame) == ["latent", "score", "value", "share", "lift"]
    assert [tuple(line) for line in frame.itertuples(index=False)] == found[:3]


@pytest.mark.parametrize("text", ["", None, 3, b"bytes", [], [3]])
def test_bad_texts_are_refused(subject, small_sae, text):
    with pytest.raises(CorpusError):
        analysis.sample_codes(subject, small_sae, text)


def test_a_text_beyond_the_context_is_read_in_parts(subject, small_sae):
    """Each as it is alone: the codes of a part are those of its own tokens behind BOS."""
    text = "Rosa went to the market. " * 80
    found = analysis.sample_codes(subject, small_sae, text)
    ids = subject.to_tokens(text)
    assert len(found.shown) == len(ids) > 2 * subject.n_ctx
    assert found.starts == tuple(range(256, len(ids), 255))
    edges = [1, *found.starts, len(ids)]
    for first, last in itertools.pairwise(edges):
        part = torch.tensor([[ids[0], *ids[first:last]]])
        hidden = subject.model(part, output_hidden_states=True).hidden_states[3][0, 1:]
        dense = small_sae.encode(hidden).detach().numpy()
        np.testing.assert_allclose(found.codes.dense()[first:last], dense, atol=1e-4)
    said = f"longer than the model's context: read in {len(edges) - 1} parts, each without the others"
    assert str(found).splitlines()[0] == said
    assert analysis.sample_codes(subject, small_sae, "short").parted == ""


def test_a_dialogue_is_read_as_the_template_writes_it(subject, small_sae):
    chat = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "Of course!"}]
    found = analysis.sample_codes(subject, small_sae, chat)
    written = subject.tokenizer.apply_chat_template(chat, tokenize=False)
    plain = analysis.sample_codes(subject, small_sae, written)
    assert found.names == plain.names
    assert "<|assistant|>" in found.names
    np.testing.assert_array_equal(found.codes.dense(), plain.codes.dense())
    document = next(iter(corpora.dialogues([chat])))
    np.testing.assert_array_equal(
        analysis.sample_codes(subject, small_sae, document).codes.dense(), found.codes.dense()
    )


# ---- store ---------------------------------------------------------------------------------------


def test_card_shows_what_the_store_holds(small_lab):
    store = small_lab.store
    counts = store.latents()["count"].to_numpy()
    latent = int(counts.argmax())
    card = small_lab.card(latent)
    assert card.stats.count == counts[latent] == card.stats.histogram.sum()
    values = [w.value for w in card.top.windows]
    assert values == sorted(values, reverse=True)
    assert values[0] == pytest.approx(card.stats.max)
    for window in card.top.windows + card.quantile.windows:
        assert window.values[window.position - window.start] == pytest.approx(window.value)
        assert len(window.names) == len(window.values)
    assert card.lens is not None
    assert str(latent) in str(card)


def test_table_has_a_line_a_latent(small_lab):
    table = small_lab.table
    frame = small_lab.store.latents()
    assert len(table) == small_lab.store.n_latents == len(table.names)
    np.testing.assert_array_equal(table.count, frame["count"])
    assert all(bool(name) == bool(count) for name, count in zip(table.names, table.count, strict=True))


def test_a_signed_card_shows_both_poles_of_what_the_store_holds(signed_lab):
    store = signed_lab.store
    frame = store.latents()
    latent = int(np.minimum(frame["negative"], frame["count"] - frame["negative"]).to_numpy().argmax())
    rows, values = store.codes(latent)
    card = signed_lab.card(latent)
    assert 0 < card.stats.negative == (values < 0).sum() < len(values)
    assert card.stats.mean_abs == pytest.approx(np.abs(values).mean(), rel=1e-5)
    for examples, sign in ((card.top, 1), (card.bottom, -1)):
        best = sorted(
            (r for r, v in zip(rows, values, strict=True) if v * sign > 0),
            key=dict(zip(rows, -np.abs(values), strict=True)).get,
        )[:20]
        assert [w.row for w in examples.windows] == best
    strength = [abs(w.value) for w in card.quantile.windows]
    assert strength == sorted(strength)

    # the poles' logits: what one unit of either raises most
    effect = analysis.direct_logits(signed_lab.sae, signed_lab.subject, [latent])[0]
    for pairs, logits in ((card.lens.top, effect), (card.lens.bottom, -effect)):
        best = np.argsort(-logits, kind="stable")[: len(pairs)]
        assert [t for t, _ in pairs] == signed_lab.subject.token_strings(best.tolist())

    name = signed_lab.table.names[latent]
    up, down = (
        [t.strip() or repr(t)[1:-1].replace(" ", "␣") for t in tokens[latent]] for tokens in store.apart
    )
    assert name == "  ".join([*up, "\N{MINUS SIGN}", *down])


# ---- scores --------------------------------------------------------------------------------------


def test_evaluate_equals_brute_force(subject, small_sae, texts):
    report = analysis.evaluate(small_sae, subject, texts, batch_size=5)
    hidden, clean, spliced = [], [], []
    for text in texts:
        ids = torch.tensor([subject.to_tokens(text)])[:, : subject.n_ctx]
        with torch.no_grad():
            states = subject.model(ids, output_hidden_states=True)
        hidden.append(states.hidden_states[3][0, 1:])
        clean.append(torch.nn.functional.cross_entropy(states.logits[0, :-1], ids[0, 1:], reduction="none"))

        def splice(module, inputs, output):
            block = output[0] if isinstance(output, tuple) else output
            changed = small_sae(block).x_hat
            changed[:, 0] = block[:, 0]
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        handle = subject.model.transformer.h[2].register_forward_hook(splice)
        with torch.no_grad():
            logits = subject.model(ids).logits
        handle.remove()
        spliced.append(torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="none"))
    x = torch.cat(hidden)
    with torch.no_grad():
        codes, x_hat = small_sae.encode(x), small_sae(x).x_hat
    fvu = ((x - x_hat) ** 2).sum() / ((x - x.mean(0)) ** 2).sum()
    assert report.n_rows == len(x)
    assert report.sae.fvu == pytest.approx(float(fvu), rel=1e-4)
    assert report.sae.l0 == pytest.approx(float((codes != 0).sum(1).float().mean()), rel=1e-6)
    assert report.sae.dead == pytest.approx(float((codes == 0).all(0).float().mean()), abs=1e-6)
    assert report.loss_clean == pytest.approx(float(torch.cat(clean).mean()), rel=1e-4)
    assert report.sae.loss == pytest.approx(float(torch.cat(spliced).mean()), rel=1e-4)


def test_a_trained_sae_beats_its_untrained_twin(subject, small_sae, texts):
    report = analysis.evaluate(small_sae, subject, texts)
    assert report.sae.fvu < 0.5 * report.untrained.fvu
    assert report.sae.loss_recovered > report.untrained.loss_recovered + 0.2
    assert report.loss_clean < report.sae.loss < report.loss_ablated
    assert list(report.to_frame().columns) == ["this SAE", "untrained SAE", "from", "to"]


def test_evaluate_stops_at_max_rows(subject, small_sae, texts):
    few = analysis.evaluate(small_sae, subject, texts, max_rows=50, batch_size=1)
    assert 50 <= few.n_rows < 50 + subject.n_ctx


class PlantedStore:
    """Latent 1 fires exactly on the rows labelled 'a'; the others fire at random."""

    n_latents = 6
    n_rows = 4000
    signed = False

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.labels = np.where(
            rng.random(self.n_rows) < 0.1, "a", np.where(rng.random(self.n_rows) < 0.3, "b", "")
        )
        pairs = [(1, r) for r in np.flatnonzero(self.labels == "a")]
        pairs += [(j, r) for j in (0, 2, 3, 4) for r in np.flatnonzero(rng.random(self.n_rows) < 0.1)]
        self.codes = pd.DataFrame(sorted(pairs), columns=["latent", "row"]).assign(value=1.0)

    def need_codes(self) -> None:
        pass

    def latents(self) -> pd.DataFrame:
        raise NotImplementedError

    def query(self, sql: str) -> pd.DataFrame:
        return self.codes


@pytest.mark.parametrize("seed", range(3))
def test_concepts_finds_the_planted_latent_and_nothing_by_chance(seed):
    store = PlantedStore(seed)
    found = analysis.concepts(store, store.labels, seed=seed)
    a, b = found["a"], found["b"]
    assert (a.latent, a.pole, a.precision, a.recall, a.f1) == (1, "", 1.0, 1.0, 1.0)
    assert a.base_rate == pytest.approx((store.labels == "a").mean())
    assert a.f1_shuffled < 0.2
    assert b.f1 < 1.6 * b.f1_shuffled  # nothing was planted for b
    assert {c.label for c in found.found} == {"a", "b"}


def test_concepts_finds_what_each_pole_stands_for():
    store = PlantedStore(0)
    store.signed = True
    # latent 1 is > 0 on the rows labelled "a", < 0 on those labelled "b", and 5 is != 0 on both
    rng = np.random.default_rng(0)
    pairs = [(1, r, 1.0 if store.labels[r] == "a" else -1.0) for r in np.flatnonzero(store.labels != "")]
    pairs += [(j, r, rng.choice([-1.0, 1.0])) for j in (0, 2) for r in rng.choice(4000, 400, replace=False)]
    store.codes = pd.DataFrame(sorted(pairs), columns=["latent", "row", "value"])
    found = analysis.concepts(store, store.labels)
    for label, pole in (("a", "+"), ("b", "-")):
        best = found[label]
        assert (best.latent, best.pole, best.precision, best.recall, best.f1) == (1, pole, 1.0, 1.0, 1.0)
    either = analysis.concepts(store, np.where(store.labels != "", "any", ""))["any"]
    assert (either.latent, either.pole, either.f1) == (1, "", 1.0)


def test_concepts_wants_a_label_a_row():
    store = PlantedStore(0)
    with pytest.raises(ShapeError, match="4000"):
        analysis.concepts(store, ["a"] * 10)
