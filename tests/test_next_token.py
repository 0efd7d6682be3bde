"The next token as a table and as a window: held against `generate`, transformers and a hand; and in JupyterLab."
import math
from pathlib import Path
import pytest, torch
from lab import Page, browser_only, jupyter_lab
from llmbook.core import UserError, import_transformers, set_seed
from llmbook.generate.next_token import (
    NextTokens, cut_tokens, draw_token, next_logits, next_tokens, next_tokens_html, prompt_tokens
)
from llmbook.generate.sampling import shares
from llmbook.generate.text import generate, generate_ids
from llmbook.model.config import ModelConfig
from llmbook.model.transformer import Transformer
from llmbook.tokens.tokenizer import decode, token_labels, train_tokenizer
from llmbook.widgets.next_token import NEXT_KEYS, explore_next

OWNED = '<img src=x onerror="document.title=\'owned\'">'


def tiny_pair(text='the cat sat on the mat', **options):
    "Return a model that was never trained, and its tokenizer."
    tok = train_tokenizer([text] * 20, 300)
    set_seed(0)
    sizes = dict(vocab_size=tok.get_vocab_size(), n_layer=2, d_model=32, n_head=2, context=32)
    return Transformer(ModelConfig(**sizes | options)).eval(), tok


@pytest.fixture(scope='module')
def pair(): return tiny_pair()


@pytest.fixture
def panel(pair): return explore_next(*pair, 'the cat', n=5)


# ---- names of tokens -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize('text', ['the cat\n\tsat', 'naïve 日本語 🙂', '\x00\x7f', '', 'a  b\r\n', OWNED])
def test_each_token_has_a_name_that_can_be_seen(pair, text):
    _, tok = pair
    ids, = tok.encode_batch([text])
    labels = token_labels(tok, ids.ids)
    assert len(labels) == len(ids.ids)
    assert all(label and label.isprintable() and ' ' not in label for label in labels)


def test_names_put_together_are_the_text(pair):
    _, tok = pair
    ids = tok.encode('the cat sat').ids
    assert ''.join(token_labels(tok, torch.tensor(ids))).replace('␣', ' ') == 'the cat sat'


def test_a_tokenizer_that_writes_spaces_as_marks_keeps_them():
    from tokenizers import Tokenizer, decoders, models
    vocab = {'▁the': 0, '▁cat': 1, 's': 2, '<0xE6>': 3}
    tok = Tokenizer(models.BPE(vocab, []))
    tok.decoder = decoders.Sequence([decoders.Replace('▁', ' '), decoders.ByteFallback(), decoders.Fuse(),
                                     decoders.Strip(' ', 1, 0)])
    assert token_labels(tok, [0, 1, 2, 3]) == ['␣the', '␣cat', 's', '<0xE6>']


# ---- the table -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('options', [{}, dict(temperature=.3), dict(temperature=2., top_k=7), dict(top_p=.5),
                                     dict(top_k=40, top_p=.2), dict(top_p=0.), dict(top_k=1)])
def test_the_shares_are_those_of_the_draw(pair, options):
    model, tok = pair
    logits = next_logits(model, tok, [0, 5])
    found = cut_tokens(logits, tok, n=len(logits), **options)
    p, ids = shares(logits[None], **options)
    ids = torch.arange(len(logits)) if ids is None else ids[0]
    wanted = torch.zeros(len(logits), dtype=torch.float64)
    wanted[ids] = p[0] / p.sum()
    shown = torch.tensor(found.share, dtype=torch.float64)
    torch.testing.assert_close(shown, wanted[found.ids])
    assert math.isclose(sum(found.share), 1) and math.isclose(sum(found.probability), 1)
    assert found.n_kept == (shown > 0).sum() and found.rest < 1e-9


def test_logits_are_those_of_transformers():
    transformers = import_transformers()
    _, tok = tiny_pair()
    set_seed(1)
    sizes = dict(vocab_size=tok.get_vocab_size(), n_positions=16, n_embd=16, n_layer=1, n_head=2)
    config = transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)
    theirs = transformers.GPT2LMHeadModel(config).eval()
    ids = [3, 1, 4, 1, 5]
    with torch.no_grad(): wanted = theirs(torch.tensor([ids])).logits[0, -1]
    torch.testing.assert_close(next_logits(theirs, tok, ids), wanted)


@pytest.mark.parametrize('family', ['qwen3', 'gpt2', 'llama'])
@pytest.mark.parametrize('options', [dict(seed=0), dict(seed=9, top_p=.8), dict(seed=2, temperature=.4, top_k=9)])
def test_draws_write_what_generate_writes(family, options):
    model, tok = tiny_pair(family=family)
    start = prompt_tokens(model, tok, 'the cat')
    ids = [*start]
    for place in range(6): ids.append(draw_token(next_logits(model, tok, ids), place=place, **options))
    assert ids[len(start):] == generate_ids(model, [start], 6, stop=None, **options)[0]


def test_an_empty_text_begins_a_document(pair):
    model, tok = pair
    wanted = generate(model, tok, '', 1, temperature=0, stop_at_eot=False)[0]
    best = next_tokens(model, tok, temperature=0, n=1).ids
    assert decode(tok, best) == wanted


def test_of_a_long_text_the_end_is_read(pair):
    model, tok = pair
    ids = [5 + i % 40 for i in range(100)]
    assert next_logits(model, tok, ids).equal(next_logits(model, tok, ids[-32:]))


def test_ids_that_the_tokenizer_cannot_spell_are_never_listed():
    model, tok = tiny_pair()
    wide, _ = tiny_pair(vocab_size=tok.get_vocab_size() + 50)
    found = next_tokens(wide, tok, 'the', n=10**4)
    assert found.n_vocab == len(found.ids) == tok.get_vocab_size()


@pytest.mark.parametrize('options', [dict(temperature=-1), dict(temperature=math.nan), dict(top_p=1.1), dict(top_k=-1),
                                     dict(n=0), dict(top_k=2.5)])
def test_settings_that_cannot_be_are_refused(pair, options):
    with pytest.raises(UserError, match=next(iter(options))): next_tokens(*pair, 'the', **options)


def test_an_encoder_is_refused():
    with pytest.raises(UserError, match='expected a decoder'): next_tokens(*tiny_pair(family='encoder'), 'the')


def test_weights_that_diverged_are_refused():
    model, tok = tiny_pair()
    model.norm.weight.data.fill_(math.nan)
    with pytest.raises(UserError, match='NaN'): next_tokens(model, tok, 'the')


def test_the_table_says_what_was_cut_and_escapes(pair):
    found = NextTokens([1, 2], [OWNED, 'b'], [.75, .25], [1., 0.], 1, 9)
    page = next_tokens_html(found)
    assert '<img' not in page and '&lt;img' in page
    assert 'cut, 25 %' in page and 'kept, 100 %' in page
    assert found.summary() == '1 of 9 tokens may be drawn'
    assert found.table()['kept'].tolist() == [True, False]


# ---- the window, without a browser ---------------------------------------------------------------------------------

def test_typing_starts_over(panel):
    panel.draw()
    assert panel.added
    panel.text.value = 'the mat'
    assert panel.added == []
    assert panel.start == prompt_tokens(panel.model, panel.tok, 'the mat')


def test_a_click_appends_the_token_of_its_line(panel):
    token = panel.found.ids[3]
    panel.buttons[3].click()
    assert panel.added == [token]
    assert panel.text.value.startswith('the cat')
    panel.actions[1].click()
    assert panel.added == [] and panel.text.value == 'the cat'
    panel.actions[1].click()
    assert 'nothing was appended' in panel.status.value


def test_draws_of_the_window_are_those_of_generate(panel):
    panel.temperature.value, panel.top_p.value, panel.seed.value = .7, .9, 5
    for _ in range(4): panel.actions[0].click()
    assert panel.added == generate_ids(panel.model, [panel.start], 4, temperature=.7, top_p=.9, seed=5, stop=None)[0]
    panel.actions[2].click()
    assert panel.text.value == 'the cat' and 'back to your text' in panel.status.value


def test_a_slider_cuts_and_the_line_says_so(panel):
    panel.top_k.value = 2
    assert ['cut' in line.value for line in panel.lines] == [False, False, True, True, True]
    assert 'cut' in panel.buttons[4].tooltip and 'share' in panel.buttons[0].tooltip
    panel.temperature.value = 0
    assert panel.found.n_kept == 1 and '1 of' in panel.status.value


def test_lines_without_a_token_are_hidden():
    model, tok = tiny_pair()
    panel = explore_next(model, tok, 'the', n=tok.get_vocab_size() + 3)
    assert [row.layout.display for row in panel.rows[-4:]] == [None, 'none', 'none', 'none']


def test_a_warning_about_the_text_is_shown(panel):
    panel.text.value = 'the cat '
    assert 'ends in a space' in panel.status.value


def test_a_rude_text_is_escaped():
    panel = explore_next(*tiny_pair(OWNED), OWNED)
    panel.append(panel.tok.token_to_id('img') or panel.tok.encode('<').ids[0])
    shown = [panel.status.value, *(line.value for line in panel.lines), panel._repr_mimebundle_()['text/html']]
    assert not [html for html in shown if '<img' in html]


def test_without_widgets_it_is_a_table(panel):
    bundle = panel._repr_mimebundle_()
    assert '<table' in bundle['text/html'] and '<script' not in bundle['text/html']
    assert bundle['text/plain'].splitlines()[0] == 'the cat'


def test_every_control_has_a_name(panel):
    named = [panel.text, panel.temperature, panel.top_p, panel.top_k, panel.seed, *panel.actions, *panel.buttons]
    assert all(control.description for control in named)
    assert "'role', 'status'" in NEXT_KEYS


@pytest.mark.parametrize('wrong', [(None,), (5, None), ('no/such/folder.gguf',)])
def test_what_is_no_model_is_refused(wrong):
    with pytest.raises(UserError): explore_next(*wrong)


# ---- in JupyterLab, in a real browser -------------------------------------------------------------------------------

CELL = '''import sys; sys.path.insert(0, {tests!r})
from test_next_token import OWNED, tiny_pair
from llmbook.widgets.next_token import explore_next
panel = explore_next(*tiny_pair(OWNED), OWNED, n=5)
panel'''

UNNAMED = '''return [...document.querySelectorAll(".lb-next-panel textarea, .lb-next-panel input")]
    .filter(e => !(e.labels && e.labels.length && e.labels[0].textContent.trim()) && !e.ariaLabel).length'''
FOCUSED = 'return document.activeElement.textContent'


@browser_only
def test_tokens_are_appended_by_keys_in_jupyterlab(tmp_path):
    from selenium.webdriver import ActionChains, Keys
    cell = CELL.format(tests=str(Path(__file__).parent))
    with jupyter_lab(tmp_path, [cell], theme='JupyterLab Dark') as address, Page(address, tmp_path) as page:
        def status(): return page.text('.lb-next-status [role="status"]')
        def names(): return [e.text for e in page.found('.lb-next-token')]
        def press(*keys): ActionChains(page.driver).send_keys(*keys).perform()
        def field(): return page.driver.execute_script('return document.querySelector(".lb-next-panel textarea").value')

        page.run()
        page.ended()
        page.wait(lambda: len(names()) == 5 and all(names()))
        first, second, *_ = names()
        n_cells = len(page.found('.jp-CodeCell'))
        page.driver.execute_script('document.querySelector(".lb-next-token").focus()')
        press(Keys.ARROW_DOWN)
        assert page.driver.execute_script(FOCUSED) == second
        press('d', 'd', '1')
        page.wait(lambda: f'appended {first}' in status() and field() != OWNED)
        assert len(page.found('.jp-CodeCell')) == n_cells, 'a letter pressed twice deletes no cell'
        page.click('Take back')
        page.wait(lambda: field() == OWNED)

        handle = page.found('.lb-next-panel .noUi-handle')[1]
        page.driver.execute_script('arguments[0].focus()', handle)
        press(*[Keys.ARROW_LEFT] * 99)
        page.wait(lambda: 'cut' in page.text('.lb-next-panel'))
        assert page.driver.execute_script(UNNAMED) == 0
        assert page.driver.title != 'owned'
        assert not page.found('.lb-next-panel img, .lb-next-panel script')
