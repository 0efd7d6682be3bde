"Attention weights: held against the layers, a softmax by hand and transformers; and the window, in JupyterLab too."
import re
from pathlib import Path
import numpy as np
import pytest, torch
from lab import Page, browser_only, jupyter_lab
from llmbook.core import UserError, import_transformers, set_seed
from llmbook.model.attention import (
    AttentionMaps, attention_grid, attention_weights, even_scores, head_pictures, head_scores, repeated_ids,
    strongest_links
)
from llmbook.model.config import FAMILIES, ModelConfig
from llmbook.model.hf import save_pretrained
from llmbook.model.transformer import Transformer
from llmbook.tokens.tokenizer import train_tokenizer
from llmbook.tune.adapters import add_adapters
from llmbook.widgets.attention import ATTENTION_KEYS, explore_attention, layer_scores_html

OWNED = '<img src=x onerror="document.title=\'owned\'">'
TEXT = 'the cat sat on the mat, the cat'


def tiny_pair(family='qwen3', text=TEXT, **options):
    "Return a model that was never trained, with weights that differ more than at the start, and its tokenizer."
    tok = train_tokenizer([text] * 20, 300)
    set_seed(0)
    sizes = dict(vocab_size=tok.get_vocab_size(), family=family, n_layer=2, d_model=32, n_head=4, context=64)
    model = Transformer(ModelConfig(**sizes | options)).eval()
    for p in model.parameters(): p.data.mul_(4)
    return model, tok


@pytest.fixture(scope='module')
def pair(): return tiny_pair()


@pytest.fixture(scope='module')
def maps(pair): return attention_weights(*pair, TEXT)


# ---- the weights ---------------------------------------------------------------------------------------------------

VARIANTS = [dict(family=family) for family in FAMILIES] + [dict(n_kv_head=2), dict(n_kv_head=1), dict(window=3)]


@pytest.mark.parametrize('options', VARIANTS, ids=str)
def test_the_weights_make_what_the_layer_writes(options):
    "Weights times values, through the output matrix, are the output of each layer, mask and all."
    model, tok = tiny_pair(**options)
    values, outputs = [], []
    for block in model.blocks:
        block.attn.v_proj.register_forward_hook(lambda layer, args, out: values.append(out))
        block.attn.register_forward_hook(lambda attn, args, out: outputs.append(out))
    maps = attention_weights(model, tok, TEXT)
    for block, weights, v, out in zip(model.blocks, torch.from_numpy(maps.weights), values, outputs):
        v = v.unflatten(-1, (-1, block.attn.head_dim)).transpose(1, 2)
        v = v.repeat_interleave(len(weights) // v.shape[1], 1)
        joined = (weights @ v).transpose(1, 2).flatten(2)
        torch.testing.assert_close(block.attn.o_proj(joined), out, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(maps.weights.sum(-1), 1, atol=1e-5)


def test_the_weights_are_a_softmax_of_queries_and_keys():
    model, tok = tiny_pair('gpt2', n_head=1, n_layer=1, d_model=8)
    maps = attention_weights(model, tok, 'the cat sat')
    block, = model.blocks
    positions = torch.arange(len(maps))
    x = block.attn_norm(model.embed(torch.tensor(maps.ids)) + model.pos(positions))
    q, k = block.attn.q_proj(x), block.attn.k_proj(x)
    for t in positions:
        scores = k[:t + 1] @ q[t] / 8**.5
        e = scores.exp()
        found = torch.from_numpy(maps.weights[0, 0, t, :t + 1])
        torch.testing.assert_close(found, e / e.sum(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('family', ['qwen3', 'llama', 'gpt2'])
def test_the_weights_are_those_of_transformers(family, tmp_path):
    transformers = import_transformers()
    model, tok = tiny_pair(family)
    save_pretrained(model, tok, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    before = theirs.config._attn_implementation
    ours = attention_weights(model, tok, TEXT)
    wrapped = attention_weights(theirs, tok, TEXT)
    assert theirs.config._attn_implementation == before
    theirs.set_attn_implementation('eager')
    with torch.no_grad(): wanted = theirs(torch.tensor([ours.ids]), output_attentions=True).attentions
    np.testing.assert_allclose(ours.weights, torch.cat(wanted).numpy(), atol=1e-4)
    np.testing.assert_allclose(wrapped.weights, ours.weights, atol=1e-4)


def test_an_adapter_counts():
    model, tok = tiny_pair()
    before = attention_weights(model, tok, TEXT).weights
    add_adapters(model)
    np.testing.assert_allclose(attention_weights(model, tok, TEXT).weights, before, atol=1e-5)
    for p in model.parameters():
        if p.requires_grad: p.data.add_(.3)
    assert np.abs(attention_weights(model, tok, TEXT).weights - before).max() > 1e-3


def test_nothing_is_left_on_the_model(pair):
    model, tok = pair
    model.train()
    attention_weights(model, tok, TEXT)
    assert model.training and not any(b.attn._forward_pre_hooks for b in model.blocks)
    model.eval()
    with pytest.raises(UserError): attention_weights(model, tok, TEXT * 9)
    assert not any(b.attn._forward_pre_hooks for b in model.blocks)


@pytest.mark.parametrize('wrong', [dict(text=''), dict(text=None), dict(ids=[]), dict(ids=[-1]), dict(ids=[10**6]),
                                   dict(text='the cat ' * 60)])
def test_what_cannot_be_read_is_refused(pair, wrong):
    with pytest.raises(UserError, match='expected'): attention_weights(*pair, **wrong)


# ---- scores --------------------------------------------------------------------------------------------------------

def made_maps(ids, *heads):
    "Return maps of one layer whose heads put all weight on one place: functions from a place to a place."
    weights = np.zeros((1, len(heads), len(ids), len(ids)), np.float32)
    for head, look in enumerate(heads):
        for t in range(len(ids)): weights[0, head, t, look(t)] = 1
    return AttentionMaps(list(ids), [chr(97 + i) for i in ids], weights)


def test_scores_of_heads_made_by_hand():
    half = [3, 1, 4, 2]
    maps = made_maps(half * 2, lambda t: max(t - 1, 0), lambda t: 0, lambda t: t - 3 if t >= 4 else t, lambda t: t)
    scores = head_scores(maps)
    assert scores['previous'].tolist() == [1, 0, 0, 0]
    assert scores['first'].tolist() == [0, 1, 0, 0]
    assert scores['induction'].tolist() == [0, 0, 1, 0]
    assert scores['head'].tolist() == [0, 1, 2, 3]


def test_even_scores_are_those_of_a_head_that_looks_evenly():
    ids = repeated_ids(50, 6)
    even = np.tril(np.ones((12, 12), np.float32))
    maps = AttentionMaps(ids, ['x'] * 12, (even / even.sum(-1, keepdims=True))[None, None])
    scores = head_scores(maps).iloc[0]
    for name, value in even_scores(maps).items(): assert scores[name] == pytest.approx(value, abs=1e-6)
    assert scores['induction'] == pytest.approx(np.mean([1 / (t + 1) for t in range(6, 12)]), abs=1e-6)


def test_a_text_without_repetition_has_no_induction():
    scores = head_scores(made_maps([1, 2, 3], lambda t: t))
    assert scores['induction'].isna().all()
    with pytest.raises(UserError, match='three tokens'): head_scores(made_maps([1, 2], lambda t: t))


def test_repeated_ids_are_a_row_twice():
    ids = repeated_ids(100, 30, seed=4)
    assert ids[:30] == ids[30:] and len(set(ids)) == 30 and ids != repeated_ids(100, 30, seed=5)
    with pytest.raises(UserError, match='up to 9'): repeated_ids(9, 10)


# ---- pictures ------------------------------------------------------------------------------------------------------

def test_each_head_has_a_picture_with_words(maps):
    pages = head_pictures(maps), head_pictures(maps, layer=1)
    assert [page.count('<img') for page in pages] == [8, 4]
    assert re.search(r'alt="layer 1, head 3: previous \d+%, first \d+%, induction \d+%"', pages[1])
    assert head_pictures(maps) == pages[0], 'the same bytes each time'
    assert head_pictures(made_maps([1, 2], lambda t: t)).count('<img') == 1
    with pytest.raises(UserError, match='a layer from 0 to 1'): head_pictures(maps, layer=2)


def test_a_picture_is_as_dark_as_the_weight():
    import base64, io
    from matplotlib.image import imread
    page = head_pictures(made_maps([1, 2, 3], lambda t: 0))
    data = re.search(r'base64,([^"]+)', page)[1]
    image = imread(io.BytesIO(base64.b64decode(data)))
    assert image[..., 3].tolist() == [[1, 0, 0]] * 3


def test_the_grid_has_a_cell_for_each_pair_that_can_be():
    grid = attention_grid(made_maps([0, 1, 0, 2], lambda t: 0), head=0)
    assert grid.count('title="') == 10 and grid.count('tabindex="0"') == 1
    assert 'title="c → a: 1.00"' in grid and 'title="c → c: 0.00"' in grid
    assert 'scope="row"' in grid and 'scope="col"' in grid
    cut = attention_grid(made_maps(range(20), lambda t: 0), most=5)
    assert 'the first 5 of 20 tokens' in cut and cut.count('title="') == 15


def test_an_encoder_looks_ahead_and_its_grid_is_full():
    model, tok = tiny_pair('encoder')
    maps = attention_weights(model, tok, 'the cat sat')
    assert attention_grid(maps).count('title="') == len(maps)**2


def test_links_are_the_largest_weights(maps):
    links = strongest_links(maps, 1, 2)
    assert links['weight'].tolist() == maps.weights[1, 2].max(-1).tolist()
    assert links['looks at'].tolist() == [maps.labels[j] for j in links['place']]


def test_a_rude_text_is_escaped():
    model, tok = tiny_pair(text=OWNED)
    rude = AttentionMaps([1, 2, 3], [OWNED] * 3, np.full((1, 1, 3, 3), 1 / 3, np.float32))
    panel = explore_attention(model, tok, OWNED)
    panel.text.value = OWNED * 2
    shown = [attention_grid(rude), attention_grid(panel.maps), panel.page.value]
    assert not [page for page in shown if '<img' in page]


# ---- the window, without a browser ---------------------------------------------------------------------------------

@pytest.fixture
def panel(pair): return explore_attention(*pair, TEXT)


def test_sliders_choose_what_is_drawn(panel):
    panel.layer.value, panel.head.value = 1, 2
    assert 'layer 1, head 2' in panel.page.value
    assert 'alt="layer 1, head 0' in panel.pictures.value and 'alt="layer 0' not in panel.pictures.value
    assert (panel.layer.max, panel.head.max) == (1, 3)


def test_a_sentence_is_read_as_it_is_typed(panel, pair):
    panel.text.value = 'the mat'
    assert panel.maps.ids == attention_weights(*pair, 'the mat').ids
    panel.text.value = 'the cat ' * 60
    assert 'at most 64 tokens' in panel.page.value and 'mat' in panel.page.value
    panel.text.value = 'a'
    assert 'layer 0' in panel.pictures.value


def test_without_widgets_it_is_the_grid_and_the_pictures(panel):
    bundle = panel._repr_mimebundle_()
    assert 'role="grid"' in bundle['text/html'] and '<script' not in bundle['text/html']
    assert bundle['text/plain'].startswith('layer 0, head 0')


def test_every_control_has_a_name(panel):
    assert all(control.description for control in (panel.text, panel.layer, panel.head))
    assert 'role="status"' in panel.page.value and 'textContent' in ATTENTION_KEYS


def test_the_highest_score_stands_out(panel):
    page = layer_scores_html(panel.maps, 0)
    assert page.count('<b>') >= 3 and 'looking evenly' in page


# ---- in JupyterLab, in a real browser -------------------------------------------------------------------------------

CELL = '''import sys; sys.path.insert(0, {tests!r})
from test_attention import OWNED, tiny_pair
from llmbook.widgets.attention import explore_attention
panel = explore_attention(*tiny_pair(text=OWNED), OWNED)
panel'''

HOVER = '''document.querySelector('.lb-attention-grid tr:nth-child(4) td[title]')
    .dispatchEvent(new PointerEvent('pointerover', {bubbles: true}))'''
SHADES = '''return [...document.querySelectorAll(".lb-attention-grid th")].map(e => getComputedStyle(e).color)[1]
    .match(/[0-9]+/g).slice(0, 3).reduce((sum, x) => sum + Number(x), 0) / 3'''


@browser_only
def test_the_grid_is_walked_through_in_jupyterlab(tmp_path):
    from selenium.webdriver import ActionChains, Keys
    cell = CELL.format(tests=str(Path(__file__).parent))
    with jupyter_lab(tmp_path, [cell], theme='JupyterLab Dark') as address, Page(address, tmp_path) as page:
        def said(): return page.text('.lb-attention-said')
        def press(*keys): ActionChains(page.driver).send_keys(*keys).perform()
        def title(): return page.driver.execute_script('return document.activeElement.title')

        page.run()
        page.ended()
        page.wait(lambda: page.found('.lb-attention-grid td[tabindex="0"]'))
        page.driver.execute_script('document.querySelector(".lb-attention-grid td[tabindex]").focus()')
        first = title()
        press(Keys.ARROW_DOWN, Keys.ARROW_RIGHT)
        assert title() != first and said() == title()
        page.driver.execute_script(HOVER)
        assert said() != title()
        assert page.driver.execute_script(SHADES) > 150, 'light letters on a dark page'

        handle = page.found('.lb-attention .noUi-handle')[1]
        page.driver.execute_script('arguments[0].focus()', handle)
        press(Keys.ARROW_RIGHT)
        page.wait(lambda: 'head 1' in page.text('.lb-attention-grid caption'))
        assert page.driver.title != 'owned'
        assert not page.found('.lb-attention-grid img, .lb-attention-grid script')
