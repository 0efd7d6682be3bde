"The windows for roles of a chat and for rows of a measure of bias; without a browser, and in JupyterLab."
import json, math
from pathlib import Path
import pytest
from lab import Page, browser_only, jupyter_lab
from llmbook.core import UserError, set_seed
from llmbook.fairness.crows_pairs import pairs_set
from llmbook.fairness.run import everyday_pairs, measure_bias
from llmbook.model.config import ModelConfig
from llmbook.model.transformer import Transformer
from llmbook.tokens.tokenizer import train_tokenizer
from llmbook.tune.chat import ChatFormat, Conversation, encode_chats
from llmbook.widgets.bias import bias_sources, browse_bias, items_behind, row_facts, bias_row_html, row_picture
from llmbook.widgets.roles import browse_roles, role_counts, roles_html

OWNED = '<img src=x onerror="document.title=\'owned\'">'


def said(role, content): return dict(role=role, content=content)


def two_chats():
    "Return a conversation of two turns, and one without an answer that tries to write into the page."
    first = [said('system', 'be brief'), said('user', 'say red'), said('assistant', 'red'), said('user', OWNED),
             said('assistant', OWNED)]
    return [first, [said('user', OWNED)]]


def tiny_format(): return ChatFormat(train_tokenizer(['say red green blue'] * 20, 300))


@pytest.fixture(scope='module')
def fmt(): return tiny_format()


@pytest.fixture
def roles(fmt): return browse_roles(fmt, two_chats())


# ---- roles ---------------------------------------------------------------------------------------------------------

def test_counts_are_those_of_the_row(fmt):
    rows, _ = encode_chats(fmt, two_chats())
    counts = role_counts(rows).set_index('role')
    assert counts['tokens'].sum() == len(rows[0])
    assert counts['trained on'].sum() == rows[0].n_targets
    assert counts.loc['assistant', 'tokens'] == counts.loc['assistant', 'trained on']
    assert counts.loc[['user', 'system'], 'trained on'].sum() == 0
    assert role_counts([]).empty


def test_the_window_learns_what_training_learns(roles, fmt):
    for train in ('all', 'last'):
        roles.train.value = train
        wanted, _ = encode_chats(fmt, two_chats()[:1], train=train)
        assert [row.weights.tolist() for row in roles.rows] == [row.weights.tolist() for row in wanted]
        assert f'{wanted[0].n_targets} tokens trained on' in roles.status.value


def test_a_chat_without_a_row_says_why(roles):
    roles.next.click()
    assert 'Nothing is learnt from this chat: </b>nothing to train on' in roles.page.value
    roles.next.click()
    assert roles.at.value == 2, 'the last one'
    roles.back.click()
    roles.back.click()
    assert roles.at.value == 1


def test_long_chats_are_set_aside_or_cut(roles):
    roles.seq_len.value = len(roles.rows[0]) - 2
    assert 'longer than' in roles.page.value
    roles.too_long.value = 'cut'
    assert roles.rows and 'say red' not in roles.page.value


def test_what_is_said_is_escaped(roles):
    for number in (1, 2):
        roles.at.value = number
        assert '<img' not in roles.page.value and '<img' not in roles._repr_mimebundle_()['text/html']


def test_roles_are_text_too(roles):
    assert 'assistant* | red' in repr(roles) and 'as text' in roles.page.value
    assert repr(roles) == roles._repr_mimebundle_()['text/plain']


def test_chats_come_from_anywhere(fmt, tmp_path):
    path = tmp_path/'chats.jsonl'
    path.write_text(''.join(json.dumps(dict(messages=chat)) + '\n' for chat in two_chats()))
    assert len(browse_roles(fmt, str(path)).chats) == 2
    assert len(browse_roles(fmt.tok, [Conversation(two_chats()[0])]).chats) == 1
    pairs = [dict(prompt='say red', answer='red')]
    assert browse_roles(fmt, pairs).rows


@pytest.mark.parametrize('wrong', [[], 'no/such/file.jsonl'])
def test_no_chats_are_refused(fmt, wrong):
    with pytest.raises(UserError, match='expected'): browse_roles(fmt, wrong)


def test_every_control_of_roles_has_a_name(roles):
    controls = [roles.at, roles.back, roles.next, roles.train, roles.seq_len, roles.too_long]
    assert all(control.description for control in controls)
    assert 'role="status"' in roles.status.value


def test_several_rows_are_all_shown(fmt):
    row, = encode_chats(fmt, two_chats())[0]
    assert '2 rows' in roles_html([row, row]) and roles_html([row, row]).count('as text') == 2


# ---- bias ----------------------------------------------------------------------------------------------------------

def measured(folder):
    "Measure a model that was never trained by a few pairs, one of which tries to write into the page."
    pairs = [*everyday_pairs()[::4], (f'The poor man {OWNED}.', f'The rich man {OWNED}.', 'stereo', OWNED)]
    tok = train_tokenizer([sentence for pair in pairs for sentence in pair[:2]], 400)
    set_seed(0)
    model = Transformer(ModelConfig(vocab_size=tok.get_vocab_size(), n_layer=1, d_model=32, n_head=2, context=128))
    return measure_bias(model.eval(), tok, pairs_set(pairs, 'everyday'), folder, draws=99, progress=False)


@pytest.fixture(scope='module')
def evaluation(tmp_path_factory): return measured(tmp_path_factory.mktemp('bias'))


@pytest.fixture
def bias(evaluation): return browse_bias(evaluation)


def test_rows_and_answers_are_those_of_the_folder(evaluation):
    rows, store = bias_sources(evaluation.store.path.parent)
    assert [row['value'] for row in rows] == [row['value'] for row in evaluation.rows]
    assert store.keys() == evaluation.keys


def test_a_row_has_its_null_its_target_and_its_limits(evaluation):
    for row in evaluation.rows:
        facts = dict(row_facts(row))
        needed = {'value, 95 % interval', 'best value', 'null, its range', 'value and null', 'it does not show'}
        assert needed <= set(facts)
        assert facts['best value'] == '50' and facts['items'] == f'{row["n"]:,}'
    with pytest.raises(UserError, match='with its null'): row_facts(dict(metric='ppl', value=3.))


def test_the_items_behind_a_row_make_its_value(evaluation):
    "Find the value of a row again as the share of its items whose first sentence is preferred, per token."
    for row in evaluation.rows:
        if row['metric'] != 'everyday per token': continue
        found = items_behind(evaluation.store, row)
        assert len(found) == row['n']
        assert 100 * (found['preference'] > 0).mean() == pytest.approx(row['value'])
        assert found['preference'].abs().is_monotonic_decreasing


def test_items_that_were_not_scored_stand_last(evaluation, monkeypatch):
    row, store = evaluation.rows[0], evaluation.store
    table = store.read(evaluation.keys[0])
    table.at[0, 'details'] = dict(texts=['a'], reason='too long', group='age')
    monkeypatch.setattr(store, 'read', lambda key: table)
    found = items_behind(store, row)
    assert math.isnan(found['preference'].iloc[-1]) and found['reason'].iloc[-1] == 'too long'


def test_a_picture_holds_what_the_row_has(evaluation):
    row = evaluation.rows[0]
    whole = row_picture(row)
    assert 'lb-null' in whole and 'lb-target' in whole and 'null, its range' in whole
    assert 'nan' not in whole
    alone = dict(metric='m', value=1., null=None, target=None, shows_not='much')
    assert row_picture(alone).count('<circle') == 1
    assert row_picture(alone | dict(value=None, reason='none asked')) == ''


def test_sentences_are_shown_on_request(bias):
    assert bias.items.value == ''
    bias.show_items.value = True
    assert 'Content warning' in bias.items.value and 'aria-label="texts"' in bias.items.value
    bias.show_items.value = False
    assert bias.items.value == ''


def test_another_row_shows_its_own_items(bias):
    bias.show_items.value = True
    place = next(i for i, row in enumerate(bias.rows) if row.get('group') == 'age')
    bias.list.value = place
    n_items = bias.rows[place]['n']
    assert f'of {n_items} items' in bias.items.value and '>age<' in bias.page.value


def test_bias_is_escaped_and_text_too(bias):
    bias.show_items.value = True
    shown = [bias.items.value, bias.page.value, bias._repr_mimebundle_()['text/html'],
             *(bias_row_html(row) for row in bias.rows)]
    assert not [page for page in shown if '<img' in page]
    assert 'it does not show' in repr(bias)
    assert bias.list.description and bias.show_items.description


@pytest.mark.parametrize('wrong', [5, 'no/such/folder'])
def test_what_holds_no_measure_is_refused(wrong):
    with pytest.raises(UserError, match='expected'): browse_bias(wrong)


# ---- in JupyterLab, in a real browser -------------------------------------------------------------------------------

CELL = '''import sys; sys.path.insert(0, {tests!r})
from test_roles_widget import measured, tiny_format, two_chats
from llmbook.widgets.bias import browse_bias
from llmbook.widgets.roles import browse_roles
roles, bias = browse_roles(tiny_format(), two_chats()), browse_bias(measured('bias'))
display(roles, bias)'''

UNNAMED = '''return [...document.querySelectorAll(".lb-roles select, .lb-roles input, .lb-bias select, .lb-bias input")]
    .filter(e => !(e.labels && e.labels.length && e.labels[0].textContent.trim()) && !e.ariaLabel).length'''


@browser_only
def test_roles_and_bias_in_jupyterlab(tmp_path):
    from selenium.webdriver import ActionChains, Keys
    cell = CELL.format(tests=str(Path(__file__).parent))
    with jupyter_lab(tmp_path, [cell], theme='JupyterLab Dark') as address, Page(address, tmp_path) as page:
        page.run()
        page.ended()
        page.wait(lambda: 'chat 1 of 2' in page.text('.lb-roles [role="status"]') and page.found('.lb-bias-row'))
        page.click('Next ▶')
        page.wait(lambda: 'Nothing is learnt' in page.text('.lb-roles-none'))

        first = page.text('.lb-bias-row')
        page.driver.execute_script('document.querySelector(".lb-bias select").focus()')
        ActionChains(page.driver).send_keys(Keys.ARROW_DOWN).perform()
        page.wait(lambda: page.text('.lb-bias-row') not in ('', first))
        assert not page.found('.lb-bias-items')
        page.found('.lb-bias input[type="checkbox"]')[0].click()
        page.wait(lambda: 'Content warning' in page.text('.lb-bias-items'))
        assert page.driver.execute_script(UNNAMED) == 0
        assert page.driver.title != 'owned'
        assert not page.found('.lb-roles img, .lb-bias img, .lb-roles script, .lb-bias script')
