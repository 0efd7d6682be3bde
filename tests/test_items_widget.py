"The browser of answers: what it filters, sorts, compares and escapes; and in JupyterLab, in a real browser."
from pathlib import Path
import pytest
from lab import Page, browser_only, jupyter_lab
from llmbook.core import UserError
from llmbook.evaluate.items import ItemScore, ItemStore, Setting
from llmbook.evaluate.judge import judge_answers, pair_judge
from llmbook.report.reading import CHANGE_ORDERS, answer_line, answer_parts, find_answers, find_store
from llmbook.report.runs import read_run
from llmbook.widgets.items import answer_html, browse_items

OWNED = '<img src=x onerror="document.title=\'owned\'">'
TOWNS = ['Paris', 'Rome', f'Madrid {OWNED}']
COUNTRIES = ['France', 'Italy', f'Spain {OWNED}']


def ask(store, label, picks, task='capitals'):
    "Store the answers of a model that picks these towns, by their numbers."
    key = store.begin(Setting(task, label, 'tok', label=label))
    items = []
    for i, pick in enumerate(picks):
        details = dict(choices=TOWNS, gold=[i], shares=[.5, .3, .2])
        scores = dict(acc=float(pick == i), brier=.1 * i)
        prompt = f'The capital of {COUNTRIES[i]} is'
        items.append(ItemScore(f'q{i}', scores, prompt, TOWNS[pick], TOWNS[i], details=details))
    store.add(key, items)
    return store


def two_runs(folder):
    "Return a store of two models: the second has won Italy and lost Spain."
    store = ItemStore(folder)
    ask(store, 'first', [0, 0, 2])
    return ask(store, 'second', [0, 1, 1])


@pytest.fixture
def store(tmp_path): return two_runs(tmp_path/'items')


@pytest.fixture
def browser(store): return browse_items(store)


def lines(browser): return [label for label, _ in browser.list.options]


def test_answers_are_found_wherever_they_lie(tmp_path):
    run = tmp_path/'run'
    two_runs(run/'evaluation/items')
    for source in (run, read_run(run), run/'evaluation', run/'evaluation/items'):
        assert find_store(source).path.name == 'items'


@pytest.mark.parametrize('source', [None, 3, [], 'nowhere', ''])
def test_what_holds_no_answers_is_refused(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match='expected'): browse_items(source)


def test_an_empty_store_is_refused(tmp_path):
    with pytest.raises(UserError, match='evaluate first'): browse_items(ItemStore(tmp_path))


def test_orders_follow_the_measure(store):
    table = store.read(model='second')
    assert find_answers(table, order='worst first')['item'].tolist() == ['q2', 'q0', 'q1']
    assert find_answers(table, measure='brier', order='worst first')['item'].tolist() == ['q2', 'q1', 'q0']


def test_changes_are_ordered_by_gain(store):
    before, after = store.read(model='first'), store.read(model='second')
    losses = find_answers(after, before, order='losses first')
    assert losses['change'].tolist() == [-1, 0, 1]
    assert find_answers(after, before, order='gains first')['item'].tolist() == ['q1', 'q0', 'q2']
    assert find_answers(after, before, order='losses first', high=.5)['item'].tolist() == ['q2']


def test_repeats_and_missing_scores_are_read(tmp_path):
    store = ItemStore(tmp_path)
    key = store.begin(Setting('words', 'm', 'tok'))
    store.add(key, [ItemScore('a', dict(f1=None), 'why?', details=dict(reason='no answer')),
                    ItemScore('b', dict(f1=.5), 'how?'), ItemScore('b', dict(f1=1.), 'how?', repeat=1)])
    found = find_answers(store.read(key), order='best first')
    assert found['score'].tolist()[:2] == [1., .5]
    nothing = found[found['item'] == 'a'].iloc[0]
    assert answer_line(nothing) == '-  why?'
    assert ('why there is no score', 'no answer') in answer_parts(nothing)
    browser = browse_items(store)
    assert len(lines(browser)) == 3


def test_text_is_escaped(store, browser):
    for _, r in find_answers(store.read(model='first')).iterrows():
        assert '<img' not in answer_html(r)
    browser.order.value = 'worst first'
    shown = browser._repr_mimebundle_()
    assert '<img' not in shown['text/html'] and '&lt;img' in shown['text/html']


def test_the_list_and_the_page_agree(browser):
    assert lines(browser)[0] == '1. 1  The capital of France is'
    browser.list.value = 1
    assert 'The capital of Italy' in browser.page.value
    assert '3 answers' in browser.count.value


def test_the_list_follows_words_and_scores(browser):
    browser.words.value = 'ITALY'
    assert len(lines(browser)) == 1 and '1 answer' in browser.count.value
    browser.words.value = 'nowhere at all'
    assert lines(browser) == [] and 'no answer like this' in browser.page.value
    browser.words.value = ''
    browser.score.value = (0., .4)
    assert [label[3] for label in lines(browser)] == ['0']


def test_another_run_shows_what_changed(browser):
    browser.run.value = 'second'
    assert 'second' not in [name for name, _ in browser.other.options]
    browser.other.value = 'first'
    assert browser.order.options == CHANGE_ORDERS
    browser.order.value = 'losses first'
    assert lines(browser)[0].startswith('1. 1 → 0  The capital of Spain')
    assert 'answer before, score 1' in browser.page.value
    browser.run.value = 'first'
    assert browser.other.value == ''


def test_runs_without_a_common_question_say_so(tmp_path):
    store = two_runs(tmp_path)
    key = store.begin(Setting('capitals', 'third', 'tok', label='third'))
    store.add(key, [ItemScore('another', dict(acc=1.), 'The capital of Norway is')])
    browser = browse_items(store)
    browser.run.value = 'third'
    browser.other.value = 'first'
    assert 'no question in common' in browser.count.value


def test_tasks_and_names_are_kept_apart(store, tmp_path):
    ask(store, 'first', [0, 1, 2], task='other')
    again = two_runs(tmp_path/'again')
    browser = browse_items(store, again)
    assert list(browser.task.options) == ['capitals', 'other']
    assert len(set(browser.run.options)) == 4
    browser.task.value = 'other'
    assert list(browser.run.options) == ['first']


def test_equal_answers_in_several_stores_have_names_of_their_own(tmp_path):
    stores = [two_runs(tmp_path/name) for name in 'abc']
    assert len(browse_items(*stores).run.options) == 6


def test_a_judges_own_measure_says_what_it_is(tmp_path):
    asked = ['question 0', 'question 1', 'question 2']
    judge = pair_judge(lambda question, first, second: .5, name='even')
    judge_answers(judge, asked, dict(base=['x'] * 3, other=['y'] * 3), 'base', tmp_path, progress=False)
    browser = browse_items(tmp_path)
    browser.measure.value = 'win'
    assert 'share of questions won' in browser.count.value


def test_a_long_list_says_what_it_leaves_out(tmp_path):
    store = ItemStore(tmp_path)
    key = store.begin(Setting('many', 'm', 'tok'))
    store.add(key, [ItemScore(f'q{i}', dict(acc=1.), f'{i}') for i in range(502)])
    browser = browse_items(store)
    assert len(lines(browser)) == 500
    assert '502 answers, of which the first 500 are listed' in browser.count.value


def test_without_widgets_it_is_a_page_and_text(browser):
    shown = browser._repr_mimebundle_()
    assert shown['text/html'].count('<details') == 3
    assert repr(browser) == shown['text/plain']
    assert repr(browser).splitlines()[1] == '1  The capital of France is'


def test_every_control_has_a_name(browser):
    controls = [browser.task, browser.run, browser.other, browser.measure, browser.order, browser.score,
                browser.words, browser.list]
    assert all(control.description for control in controls)
    assert 'aria-label="prompt"' in browser.page.value and 'role="status"' in browser.count.value


# ---- in JupyterLab, in a real browser -------------------------------------------------------------------------------

CELL = '''import sys; sys.path.insert(0, {tests!r})
from test_items_widget import two_runs
from llmbook.widgets.items import browse_items
browser = browse_items(two_runs('items'))
browser'''

UNNAMED = '''return [...document.querySelectorAll(".lb-items select, .lb-items input")]
    .filter(e => !(e.labels && e.labels.length && e.labels[0].textContent.trim()) && !e.ariaLabel).length'''
CONTRAST = '''const e = document.querySelector(".lb-answer pre"), a = getComputedStyle(e).color.match(/[0-9]+/g)
return a.slice(0, 3).reduce((sum, x) => sum + Number(x), 0) / 3'''


@browser_only
def test_answers_are_read_with_the_keyboard_in_jupyterlab(tmp_path):
    from selenium.webdriver import ActionChains, Keys
    cell = CELL.format(tests=str(Path(__file__).parent))
    with jupyter_lab(tmp_path, [cell], theme='JupyterLab Dark') as address, Page(address, tmp_path) as page:
        def shown(): return page.text('.lb-answer')
        def press(*keys): ActionChains(page.driver).send_keys(*keys).perform()

        page.run()
        page.ended()
        page.wait(lambda: 'capital of France' in shown())
        page.driver.execute_script('document.querySelector(".lb-items select[size]").focus()')
        press(Keys.ARROW_DOWN)
        page.wait(lambda: 'capital of Italy' in shown())
        press(Keys.ARROW_DOWN)
        page.wait(lambda: 'capital of Spain' in shown() and '<img' in shown())
        assert page.driver.execute_script(UNNAMED) == 0
        assert page.driver.execute_script(CONTRAST) > 150, 'light letters on a dark page'

        page.found('.lb-items input[type="text"]')[0].click()
        press('italy', Keys.ENTER)
        page.wait(lambda: '1 answer' in page.text('.lb-items [role="status"]') and 'Italy' in shown())
        assert page.driver.title != 'owned'
        assert not page.found('.lb-items img, .lb-items script')
