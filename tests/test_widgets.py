"""Looking at prepared data: rows of long files, thresholds, and the widgets, without a browser and in one.

The last test runs JupyterLab in a headless Chromium; it skips where there is no chromedriver (.ci/run installs it).
"""
import json, random, re, shutil
from functools import partial
from pathlib import Path
import pytest
from lab import Page, browser_only, jupyter_lab
from llmbook.core import UserError
from llmbook.filters import presets as rules
from llmbook.read.doc import Doc
from llmbook.prepare.explore import (
    DroppedDocuments, JsonlRows, KeptDocuments, candidates, effect, find_document, flips, measure, row_html,
    show_documents, threshold_table, thresholds, value_picture
)
from llmbook.filters.presets import View
from llmbook.prepare.pipeline import prepare
from llmbook.widgets.browser import Browser, browse, choices, tune_filter

EVIL = '<script>document.title="owned"</script><img src=x onerror=alert(1)>'
WORDS = 'the of and to with that a house river people morning considerable understanding work small have be near'.split()


def stories(n=120, seed=0):
    "Documents of many lengths; every ninth is hostile, the first twenty come twice."
    rng, docs = random.Random(seed), []
    for i in range(n):
        text = f'Story {i}: ' + ' '.join('#' if rng.random() < i % 9 / 40 else rng.choice(WORDS) for _ in range(int(rng.lognormvariate(4.3, .9)) + 3))
        docs.append(Doc(text + (EVIL if i % 9 == 0 else '') + ' É ß 字.', f'story/{i}'))
    return docs + [Doc(d.text, f'again/{d.id}') for d in docs[:20]]


@pytest.fixture(scope='session')
def docs(): return stories()


@pytest.fixture(scope='session')
def out(docs, tmp_path_factory):
    "A prepared folder; look, do not touch."
    d = tmp_path_factory.mktemp('prepared')
    (d/'stories.jsonl').write_text(''.join(json.dumps(dict(id=x.id, text=x.text)) + '\n' for x in docs))
    prepare(d/'stories.jsonl', d/'data', vocab_size=400, valid=.1, test=.1, progress=False)
    return d/'data'


def lines(path): return [json.loads(l) for l in path.read_text(encoding='utf-8').splitlines()]


# ---- rows -----------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('block', [1, 7, 64, 1 << 20])
@pytest.mark.parametrize('end', ['\n', ''])
def test_rows_are_the_lines(tmp_path, block, end):
    want = [dict(id=i, text='é\u2028\n' * (i % 5)) for i in range(23)]
    f = tmp_path/'rows.jsonl'
    f.write_bytes(('\n'.join(json.dumps(r, ensure_ascii=i % 2 == 0) for i, r in enumerate(want)) + end).encode())
    rows = JsonlRows(f)
    rows.block = block
    order = list(range(23))
    random.Random(block).shuffle(order)
    assert [rows[i] for i in order] == [want[i] for i in order]
    assert not rows.has(23) and not rows.has(-1)
    with pytest.raises(IndexError): rows[23]


def test_rows_of_an_empty_file(tmp_path):
    (tmp_path/'f').touch()
    assert not JsonlRows(tmp_path/'f').has(0) and find_document(JsonlRows(tmp_path/'f')) == (None, None)


def test_a_long_file_is_not_loaded(tmp_path):
    n, f = 300_000, tmp_path/'rows.jsonl'
    f.write_bytes(b''.join(b'{"id": %d, "text": "some text that is as long as a line may be"}\n' % i for i in range(n)))
    rows = JsonlRows(f)
    assert rows[0]['id'] == 0 and rows.seen == rows.block < rows.size / 10
    assert rows[n - 1]['id'] == n - 1 and len(rows.ends) * rows.ends.itemsize == 8 * n


@pytest.mark.parametrize('bad', ['oops', '[1]', '{"id": 1', '\udcff'])
def test_a_damaged_row_is_named(tmp_path, bad):
    f = tmp_path/'rows.jsonl'
    f.write_bytes(b'{"id": 1}\n' + bad.encode('utf-8', 'surrogateescape') + b'\n{"id": 3}\n')
    rows = JsonlRows(f)
    assert rows[0] == {'id': 1} and rows[2] == {'id': 3}
    with pytest.raises(UserError, match='row 2 of'): rows[1]


# ---- documents of a prepared folder ---------------------------------------------------------------------------------------------

def test_kept_text_comes_from_the_shards(out):
    kept, rows = KeptDocuments(out), lines(out/'text/documents.jsonl')
    known = {r['id']: r['text'] for s in ('valid', 'test') for r in lines(out/f'text/{s}.jsonl')}
    assert len(known) > 10 and kept.total == len(rows)
    order = list(range(len(rows)))
    random.Random(1).shuffle(order)
    texts = {rows[i]['id']: kept.text(i, 10**6) for i in order}
    assert {k: texts[k] for k in known} == known
    assert all(t.startswith('Story ') and t.endswith('字.') for t in texts.values())
    assert kept.text(3, tokens=5) == kept.text(3)[:len(kept.text(3, tokens=5))] != kept.text(3)


def test_text_that_would_be_wrong_is_not_shown(out, tmp_path):
    shutil.copytree(out, tmp_path/'data')
    f = tmp_path/'data/text/documents.jsonl'
    rows = lines(f)
    f.write_text(''.join(json.dumps(r) + '\n' for r in rows[1:] + rows[:1]))
    kept = KeptDocuments(tmp_path/'data')
    wrong = [i for i in range(5) if (t := kept.text(i, 10**6)) and not t.startswith('Story')]
    assert not wrong and 'was not stored' in row_html(kept, 0)
    f.write_text('{"id": 1}\n')
    with pytest.raises(UserError, match='row 1 of'): KeptDocuments(tmp_path/'data').text(0)


def test_dropped_rows_tell_why(out):
    lost, rows = DroppedDocuments(out), lines(out/'rejects.jsonl')
    assert lost.total == len(rows) > 20 and [lost[i] for i in range(len(rows))] == rows
    i = next(i for i, r in enumerate(rows) if r['reason'] == 'exact_duplicate')
    assert f'near-duplicates: exact_duplicate, {rows[i]["value"]}' in row_html(lost, i)
    i = next(i for i, r in enumerate(rows) if r['step'] == 'filter')
    assert re.search(rf"filter: {rows[i]['reason']}, measured [\d.,]+", row_html(lost, i))


@pytest.mark.parametrize('where, text', [({}, ''), (dict(step='filter'), ''), (dict(step='filter', reason='symbol_ratio'), ''),
                                         (dict(step=''), 'STORY/1'), (dict(reason='no such'), '')])
def test_find_agrees_with_a_plain_search(out, where, text):
    lost, rows = DroppedDocuments(out), lines(out/'rejects.jsonl')
    fits = [i for i, r in enumerate(rows) if all(not v or r.get(k) == v for k, v in where.items())
            and (not text or text.casefold() in (r['id'] + '\n' + lost.text(i)).casefold())]
    def walk(at, step, limit):
        found = []
        while at is not None:
            i, at = find_document(lost, at, step, where, text, limit)
            if i is not None: found.append(i)
        return found
    for limit in (1, 3, 1000):
        assert walk(0, 1, limit) == fits and walk(len(rows) - 1, -1, limit) == fits[::-1]


def test_find_searches_kept_text(out):
    kept = KeptDocuments(out)
    some = kept.text(9)[:12].upper()
    i, _ = find_document(kept, text=some)
    assert some in kept.text(i).upper()
    assert find_document(kept, text='words that stand nowhere', limit=40) == (None, 2)


def test_show_documents(out):
    assert show_documents(out, reason='exact_duplicate', n=2).data.count('exact_duplicate') == 2
    assert show_documents(out, 'kept', split='no such').data == '<p>no such document</p>'
    with pytest.raises(UserError, match='expected a file'): show_documents(out.parent)


# ---- thresholds -----------------------------------------------------------------------------------------------------------------

TUNABLE = [getattr(rules, n) for n in ('word_count', 'word_length', 'symbol_ratio', 'alphabetic_words', 'stop_words', 'bullet_lines', 'duplicate_lines',
                                       'duplicate_line_chars', 'mean_line', 'longest_line', 'alphanumeric', 'letters') if hasattr(rules, n)]

@pytest.mark.parametrize('rule', TUNABLE, ids=lambda r: r.__name__)
def test_effect_is_what_the_rule_does(docs, rule):
    "Measured once and compared, any threshold drops what the rule itself would drop."
    values = measure(docs, rule)
    assert all(v is not None for v in values)
    for t in [thresholds(rule), *({k: c} for k in thresholds(rule) for c in candidates(values, n=5))]:
        full = {**thresholds(rule), **t}
        assert effect(values, **full) == [i for i, d in enumerate(docs) if rule(View(d), **full) is not None]


def test_where_a_rule_does_not_apply():
    docs = [Doc('le mot', 'fr', language='fr'), Doc('word', 'en', language='en')]
    values = measure(docs, rules.stop_words)
    assert values == [None, 0] and effect(values, low=5) == [1] and flips(values, {}, dict(low=5)) == ([1], [])


def test_flips_and_candidates():
    values = [1, 5, None, 9, 10, 30]
    assert flips(values, dict(low=6), dict(low=10)) == ([3], []) and flips(values, dict(low=10), dict(low=1)) == ([], [3, 1, 0])
    assert flips(values, dict(low=2, high=20), dict(low=0, high=8)) == ([3, 4], [0])
    assert candidates(values, [7, None]) == sorted(set(candidates(values)) | {7}) and candidates([], [3]) == [3]
    assert candidates([float('nan'), 2.0]) == [2]


@pytest.mark.parametrize('rule', [rules.generated, rules.lorem_ipsum, max, partial(max, 3), 'word_count', lambda v, low=None: None])
def test_rules_without_a_threshold_are_refused(docs, rule):
    with pytest.raises(UserError, match='nothing to tune'): tune_filter(docs, rule)


@pytest.mark.parametrize('values', [[], [None], [3], [3, 3, 3], [0, 1], [1, 10**6, 3, None], [float('inf'), 1.0], [-5, 5]])
def test_pictures_of_any_values(values):
    for t in ({}, dict(low=2), dict(low=-1, high=10**9), dict(high=float('inf')), dict(low=0)):
        picture = value_picture(values, EVIL, **t)
        assert '<img' not in picture and 'nan' not in picture and bool(picture) == any(v is not None and v < float('inf') for v in values)


def test_threshold_table(docs):
    page = threshold_table(docs, partial(rules.word_count, low=33)).data
    assert '33 (as it is)' in page and page.count('<tr>') > 5


# ---- widgets, without a browser -------------------------------------------------------------------------------------------------

def test_browser_walks_and_filters(out):
    b, rows = browse(out), lines(out/'rejects.jsonl')
    assert (b.at, b.position.value) == (0, f'row 1 of {len(rows)}')
    b.next.click(); b.next.click(); b.back.click()
    assert b.at == 1
    b.menus['dropped']['reason'].value = 'exact_duplicate'
    seen = [b.at]
    while b.go(1) is not None: seen.append(b.at)
    assert seen == [i for i, r in enumerate(rows) if r['reason'] == 'exact_duplicate'] and b.position.value == 'no more like this'
    assert 'exact_duplicate' in b.page.value and b.at == seen[-1]
    b.search.value = 'nothing that stands in a text'
    assert b.page.value == '' and b.position.value == 'none like this' and b.go(1) is None


def test_browser_shows_what_was_kept(out):
    b, rows = Browser(out), lines(out/'text/documents.jsonl')
    b.what.value = 'kept'
    assert set(b.menu_row.children) == set(b.menus['kept'].values())
    b.menus['kept']['split'].value = 'test'
    assert b.at == next(i for i, r in enumerate(rows) if r['split'] == 'test') and 'split test' in b.page.value
    b.search.value = 'DOCUMENT.title'
    while b.at >= 0 and b.go(1) is not None: pass
    assert '<script' not in b.page.value and '<img' not in b.page.value


def test_browser_goes_on_where_a_walk_stopped(out, monkeypatch):
    monkeypatch.setattr('llmbook.widgets.browser.find_document', lambda *a: find_document(*a, limit=4))
    b, want = Browser(out), max(i for i, r in enumerate(lines(out/'rejects.jsonl')))
    b.search.value = lines(out/'rejects.jsonl')[want]['id']
    for _ in range(100):
        if b.page.value: break
        assert 'press again' in b.position.value
        b.next.click()
    assert b.at == want


def test_choices_of_a_poor_card():
    assert choices({}) == dict(dropped=dict(step=[('any step', '')], reason=[('any reason', '')]),
                               kept=dict(split=[('any split', '')], kind=[('any kind', '')]))


def test_tuner_moves(docs):
    t = tune_filter(docs, rules.word_count)
    base, slider = list(t.dropped), t.sliders['low']
    assert f'>{len(docs) - len(base)}</b>' in t.page.value and 'would be' not in t.page.value
    for _, value in slider.options[::7]:
        slider.value = value
        assert t.dropped == [i for i, d in enumerate(docs) if not value <= len(d.text.split()) <= 100_000]
        lost, back = flips(t.values, t.defaults, t.current)
        assert (f'{len(lost)} would be lost in addition' in t.page.value) == bool(lost) and (f'{len(back)} would come back' in t.page.value) == bool(back)
        assert '<script' not in t.page.value and '<img' not in t.page.value
    assert 'text/html' in t._repr_mimebundle_()


def test_widgets_refuse(out, docs):
    with pytest.raises(UserError, match='prepared folder'): browse(out.parent)
    for bad in ([], ['text'], [docs[0], 3]):
        with pytest.raises(UserError, match='expected documents'): tune_filter(bad, rules.word_count)


# ---- widgets in JupyterLab, in a real browser -------------------------------------------------------------------------------------

CELL = '''import sys; sys.path.insert(0, {tests!r})
from test_widgets import stories
from llmbook.filters.presets import word_count
from llmbook.widgets.browser import browse, tune_filter
tuner, browser = tune_filter(stories(), word_count), browse({out!r})
display(tuner, browser)'''


@browser_only
def test_the_widgets_in_jupyterlab(docs, out, tmp_path):
    from selenium.webdriver import ActionChains, Keys
    cell = CELL.format(tests=str(Path(__file__).parent), out=str(out))
    with jupyter_lab(tmp_path, [cell]) as address, Page(address, tmp_path) as page:
        def number(css): return int(page.text(css).replace(',', ''))
        page.run(); page.ended()
        said = ' '.join(e.text for e in page.found('.jp-RenderedText'))
        assert page.found('.lb-dropped'), f'the cell ran without showing the widgets: {said[-500:]}'
        own = number('.lb-dropped')
        assert own == len(effect(measure(docs, rules.word_count), low=50, high=100_000))
        handle = page.found('.widget-hslider .noUi-handle')[0]
        page.driver.execute_script('arguments[0].focus()', handle)
        ActionChains(page.driver).send_keys(Keys.ARROW_RIGHT * 20).perform()
        page.wait(lambda: number('.lb-dropped') > own and 'would be lost in addition' in page.driver.page_source)
        page.click('▶')
        page.wait(lambda: any(re.fullmatch(r'row 2 of \d+', e.text) for e in page.found('.widget-html-content')))
        assert 'owned' not in page.driver.title and not page.found('.widget-html-content script, .widget-html-content img')
