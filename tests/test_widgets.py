"""Looking at prepared data: rows of long files, thresholds, and the widgets, without a browser and in one.

The last test runs JupyterLab in a headless Chromium; it skips where there is no chromedriver (.ci/run installs it).
"""
import json, random, re, shutil
from functools import partial
from pathlib import Path
import pytest
from folders import read_rows, write_rows
from lab import Page, browser_only, jupyter_lab
from llmbook.core import UserError, human_money, human_time, rounded
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
WORDS = ('the of and to with that a house river people morning considerable understanding work small have be '
         'near').split()


def stories(n=120, seed=0):
    "Return documents of many lengths; every ninth is hostile, the first twenty come twice."
    rng = random.Random(seed)
    docs = []
    def word(share_of_marks): return '#' if rng.random() < share_of_marks else rng.choice(WORDS)
    for i in range(n):
        n_words = int(rng.lognormvariate(4.3, .9)) + 3
        share_of_marks = i % 9 / 40
        words = [word(share_of_marks) for _ in range(n_words)]
        text = f'Story {i}: ' + ' '.join(words)
        if i % 9 == 0: text += EVIL
        docs.append(Doc(text + ' É ß 字.', f'story/{i}'))
    return docs + [Doc(d.text, f'again/{d.id}') for d in docs[:20]]


@pytest.fixture(scope='session')
def docs(): return stories()


@pytest.fixture(scope='session')
def out(docs, tmp_path_factory):
    "Return a prepared folder, to look at and not to change."
    folder = tmp_path_factory.mktemp('prepared')
    source, data = folder/'stories.jsonl', folder/'data'
    write_rows(source, [dict(id=d.id, text=d.text) for d in docs])
    prepare(source, data, vocab_size=400, valid=.1, test=.1, progress=False)
    return data



def shuffled(n, seed):
    order = list(range(n))
    random.Random(seed).shuffle(order)
    return order


# ---- rows -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('block', [1, 7, 64, 1 << 20])
@pytest.mark.parametrize('end', ['\n', ''])
def test_rows_are_the_lines(tmp_path, block, end):
    want = [dict(id=i, text='é\u2028\n' * (i % 5)) for i in range(23)]
    lines = [json.dumps(row, ensure_ascii=i % 2 == 0) for i, row in enumerate(want)]
    content = '\n'.join(lines) + end
    path = tmp_path/'rows.jsonl'
    path.write_bytes(content.encode())
    rows = JsonlRows(path)
    rows.block = block
    for i in shuffled(23, seed=block): assert rows[i] == want[i]
    assert not rows.has(23)
    assert not rows.has(-1)
    with pytest.raises(IndexError): rows[23]


def test_rows_of_an_empty_file(tmp_path):
    path = tmp_path/'rows.jsonl'
    path.touch()
    assert not JsonlRows(path).has(0)
    assert find_document(JsonlRows(path)) == (None, None)


def test_a_long_file_is_not_loaded(tmp_path):
    n, path = 300_000, tmp_path/'rows.jsonl'
    line = b'{"id": %d, "text": "some text that is as long as a line may be"}\n'
    path.write_bytes(b''.join(line % i for i in range(n)))
    rows = JsonlRows(path)
    assert rows[0]['id'] == 0
    assert rows.seen == rows.block < rows.size / 10
    assert rows[n - 1]['id'] == n - 1
    assert len(rows.ends) * rows.ends.itemsize == 8 * n


@pytest.mark.parametrize('bad', ['oops', '[1]', '{"id": 1', '\udcff'])
def test_a_damaged_row_is_named(tmp_path, bad):
    path = tmp_path/'rows.jsonl'
    path.write_bytes(b'{"id": 1}\n' + bad.encode('utf-8', 'surrogateescape') + b'\n{"id": 3}\n')
    rows = JsonlRows(path)
    assert rows[0] == {'id': 1}
    assert rows[2] == {'id': 3}
    with pytest.raises(UserError, match='row 2 of'): rows[1]


# ---- documents of a prepared folder ---------------------------------------------------------------------------------

def test_kept_text_comes_from_the_shards(out):
    kept = KeptDocuments(out)
    rows = read_rows(out/'text/documents.jsonl')
    known = {}
    for split in ('valid', 'test'):
        for row in read_rows(out/f'text/{split}.jsonl'): known[row['id']] = row['text']
    assert len(known) > 10
    assert kept.total == len(rows)

    texts = {rows[i]['id']: kept.text(i, 10**6) for i in shuffled(len(rows), seed=1)}
    assert {name: texts[name] for name in known} == known
    for text in texts.values():
        assert text.startswith('Story ')
        assert text.endswith('字.')
    beginning = kept.text(3, tokens=5)
    assert kept.text(3).startswith(beginning)
    assert kept.text(3) != beginning


def test_text_that_would_be_wrong_is_not_shown(out, tmp_path):
    shutil.copytree(out, tmp_path/'data')
    path = tmp_path/'data/text/documents.jsonl'
    rows = read_rows(path)
    write_rows(path, rows[1:] + rows[:1])
    kept = KeptDocuments(tmp_path/'data')
    for i in range(5):
        text = kept.text(i, 10**6)
        assert not text or text.startswith('Story')
    assert 'was not stored' in row_html(kept, 0)
    path.write_text('{"id": 1}\n')
    with pytest.raises(UserError, match='row 1 of'): KeptDocuments(tmp_path/'data').text(0)


def first_row(rows, **where):
    "Return the number of the first row with these values."
    return next(i for i, row in enumerate(rows) if all(row[k] == v for k, v in where.items()))


def test_dropped_rows_tell_why(out):
    lost = DroppedDocuments(out)
    rows = read_rows(out/'rejects.jsonl')
    assert lost.total == len(rows) > 20
    assert [lost[i] for i in range(len(rows))] == rows


def test_a_duplicate_names_the_document_that_stays(out):
    rows = read_rows(out/'rejects.jsonl')
    i = first_row(rows, reason='exact_duplicate')
    stays = rows[i]['value']
    assert f'near-duplicates: exact_duplicate, {stays}' in row_html(DroppedDocuments(out), i)


def test_a_filtered_document_shows_what_was_measured(out):
    rows = read_rows(out/'rejects.jsonl')
    i = first_row(rows, step='filter')
    reason = rows[i]['reason']
    assert re.search(rf'filter: {reason}, measured [\d.,]+', row_html(DroppedDocuments(out), i))


@pytest.mark.parametrize('where, text', [
    ({}, ''),
    (dict(step='filter'), ''),
    (dict(step='filter', reason='symbol_ratio'), ''),
    (dict(step=''), 'STORY/1'),
    (dict(reason='no such'), ''),
])
def test_find_agrees_with_a_plain_search(out, where, text):
    lost = DroppedDocuments(out)
    rows = read_rows(out/'rejects.jsonl')
    fits = []
    for i, row in enumerate(rows):
        all_text = f'{row["id"]}\n{lost.text(i)}'
        right_fields = all(not value or row.get(field) == value for field, value in where.items())
        if right_fields and text.casefold() in all_text.casefold(): fits.append(i)

    def walk(at, step, limit):
        found = []
        while at is not None:
            i, at = find_document(lost, at, step, where, text, limit)
            if i is not None: found.append(i)
        return found
    for limit in (1, 3, 1000):
        assert walk(0, 1, limit) == fits
        assert walk(len(rows) - 1, -1, limit) == fits[::-1]


def test_find_searches_kept_text(out):
    kept = KeptDocuments(out)
    words = kept.text(9)[:12].upper()
    i, _ = find_document(kept, text=words)
    assert words in kept.text(i).upper()
    assert find_document(kept, text='words that stand nowhere', limit=40) == (None, 2)


def test_show_documents(out):
    two = show_documents(out, reason='exact_duplicate', n=2)
    assert two.data.count('exact_duplicate') == 2
    assert show_documents(out, 'kept', split='no such').data == '<p>no such document</p>'
    with pytest.raises(UserError, match='expected a file'): show_documents(out.parent)


# ---- thresholds -----------------------------------------------------------------------------------------------------

NAMES = ('word_count', 'word_length', 'symbol_ratio', 'alphabetic_words', 'stop_words', 'bullet_lines',
         'duplicate_lines', 'duplicate_line_chars', 'mean_line', 'longest_line', 'alphanumeric', 'letters')
TUNABLE = [getattr(rules, name) for name in NAMES if hasattr(rules, name)]

@pytest.mark.parametrize('rule', TUNABLE, ids=lambda r: r.__name__)
def test_effect_is_what_the_rule_does(docs, rule):
    "Measured once and compared, any threshold drops what the rule itself would drop."
    values = measure(docs, rule)
    assert all(v is not None for v in values)
    defaults = thresholds(rule)
    settings = [defaults]
    for name in defaults:
        settings += [{**defaults, name: value} for value in candidates(values, n=5)]
    for limits in settings:
        dropped = [i for i, d in enumerate(docs) if rule(View(d), **limits) is not None]
        assert effect(values, **limits) == dropped


def test_where_a_rule_does_not_apply():
    def english_words(v, low=2):
        if not v.english: return None
        return len(v.counts) if len(v.counts) < low else None

    docs = [Doc('le mot', 'fr', language='fr'), Doc('word', 'en', language='en')]
    values = measure(docs, english_words)
    assert values == [None, 1]
    assert effect(values, low=5) == [1]
    assert flips(values, {}, dict(low=5)) == ([1], [])


def test_flips_and_candidates():
    values = [1, 5, None, 9, 10, 30]
    assert flips(values, dict(low=6), dict(low=10)) == ([3], [])
    assert flips(values, dict(low=10), dict(low=1)) == ([], [3, 1, 0])
    assert flips(values, dict(low=2, high=20), dict(low=0, high=8)) == ([3, 4], [0])
    assert candidates(values, [7, None]) == sorted(set(candidates(values)) | {7})
    assert candidates([], [3]) == [3]
    assert candidates([float('nan'), 2.0]) == [2]


@pytest.mark.parametrize('rule', [rules.generated, max, partial(max, 3), 'word_count',
                                  lambda v, low=None: None])
def test_rules_without_a_threshold_are_refused(docs, rule):
    with pytest.raises(UserError, match='nothing to tune'): tune_filter(docs, rule)


INF = float('inf')

@pytest.mark.parametrize('values', [[], [None], [3], [3, 3, 3], [0, 1], [1, 10**6, 3, None], [INF, 1.0], [-5, 5]])
def test_pictures_of_any_values(values):
    something = any(v is not None and v < INF for v in values)
    for limits in ({}, dict(low=2), dict(low=-1, high=10**9), dict(high=INF), dict(low=0)):
        picture = value_picture(values, EVIL, **limits)
        assert '<img' not in picture
        assert 'nan' not in picture
        assert bool(picture) == something


@pytest.mark.parametrize('far', [90_000, 10**7])
def test_a_value_far_out_does_not_squeeze_the_others(far):
    values = [*range(100, 200), far]
    picture = value_picture(values, 'characters', low=120)
    bars = len(re.findall(r'<rect', picture))
    assert bars >= 24, 'the hundred values take most of the width'
    assert f'1 above' in picture
    assert f'up to {far:,}' in picture


def test_a_threshold_beyond_the_axis_has_no_line():
    values = [*range(100, 200)]
    inside = value_picture(values, 'characters', low=150)
    assert '>low 150<' in inside
    outside = value_picture(values, 'characters', low=150, high=10**6)
    assert '>high 1,000,000<' not in outside
    assert 'high 1,000,000 lies to the right' in outside
    logarithmic = value_picture([1, 10, 10**3, 10**5], 'characters', low=0)
    assert 'low 0 lies to the left' in logarithmic, 'a logarithmic axis has no 0'
    near = value_picture(values, 'characters', high=210)
    assert '>high 210<' in near, 'the axis reaches as far as a threshold that is near'


def test_all_documents_are_pale_when_the_threshold_is_beyond_them():
    picture = value_picture([*range(100, 200)], 'characters', low=10**6)
    assert picture.count('opacity="0.35"') == picture.count('<rect')


@pytest.mark.parametrize('value, words', [
    (23_812.4, '23,800'), (999.6, '1,000'), (2.5, '2.5'), (2.0, '2'), (.01234, '0.0123'), (0, '0'),
    (-45_678, '-45,700'),
    (None, 'n/a'), (float('nan'), 'n/a'), (float('inf'), 'n/a')])
def test_estimates_are_rounded_for_people(value, words): assert rounded(value) == words


@pytest.mark.parametrize('value, words', [(64_512.08, '64,500 $'), (99.5, '99.50 $'), (.05, '0.05 $'), (None, 'n/a')])
def test_money(value, words): assert human_money(value) == words


@pytest.mark.parametrize('seconds, words', [(3720, '1 h 2 min'), (90 * 86400, '90 days 0 h'), (.2, '200 ms')])
def test_durations(seconds, words): assert human_time(seconds) == words


def test_threshold_table(docs):
    page = threshold_table(docs, partial(rules.word_count, low=33)).data
    assert '33 (as it is)' in page
    assert page.count('<tr>') > 5


# ---- widgets, without a browser -------------------------------------------------------------------------------------

def test_browser_walks_and_filters(out):
    b = browse(out)
    rows = read_rows(out/'rejects.jsonl')
    assert b.at == 0
    assert b.position.value == f'row 1 of {len(rows)}'
    b.next.click()
    b.next.click()
    b.back.click()
    assert b.at == 1

    b.menus['dropped']['reason'].value = 'exact_duplicate'
    seen = [b.at]
    while b.go(1) is not None: seen.append(b.at)
    assert seen == [i for i, row in enumerate(rows) if row['reason'] == 'exact_duplicate']
    assert b.position.value == 'no more like this'
    assert 'exact_duplicate' in b.page.value
    assert b.at == seen[-1]

    b.search.value = 'nothing that stands in a text'
    assert b.page.value == ''
    assert b.position.value == 'none like this'
    assert b.go(1) is None


def test_browser_shows_what_was_kept(out):
    b = Browser(out)
    rows = read_rows(out/'text/documents.jsonl')
    b.what.value = 'kept'
    menus = b.menus['kept']
    assert set(b.menu_row.children) == set(menus.values())
    menus['split'].value = 'test'
    assert b.at == first_row(rows, split='test')
    assert 'split test' in b.page.value
    b.search.value = 'DOCUMENT.title'
    while b.at >= 0 and b.go(1) is not None: pass
    assert '<script' not in b.page.value
    assert '<img' not in b.page.value


def test_browser_continues_where_a_search_stopped(out, monkeypatch):
    def find_few(*args): return find_document(*args, limit=4)
    monkeypatch.setattr('llmbook.widgets.browser.find_document', find_few)
    b = Browser(out)
    rows = read_rows(out/'rejects.jsonl')
    b.search.value = rows[-1]['id']
    for _ in range(100):
        if b.page.value: break
        assert 'press again' in b.position.value
        b.next.click()
    assert b.at == len(rows) - 1


def test_choices_of_a_poor_card():
    dropped = dict(step=[('any step', '')], reason=[('any reason', '')])
    kept = dict(split=[('any split', '')], kind=[('any kind', '')])
    assert choices({}) == dict(dropped=dropped, kept=kept)


def test_tuner_moves(docs):
    t = tune_filter(docs, rules.word_count)
    slider = t.sliders['low']
    n_kept = len(docs) - len(t.dropped)
    assert f'>{n_kept}</b>' in t.page.value
    assert 'would be' not in t.page.value
    n_words = [len(d.text.split()) for d in docs]
    for _, low in slider.options[::7]:
        slider.value = low
        page = t.page.value
        assert t.dropped == [i for i, n in enumerate(n_words) if not low <= n <= 100_000]
        lost, back = flips(t.values, t.defaults, t.current)
        assert (f'{len(lost)} would be lost in addition' in page) == bool(lost)
        assert (f'{len(back)} would come back' in page) == bool(back)
        assert '<script' not in page
        assert '<img' not in page
    assert 'text/html' in t._repr_mimebundle_()


def test_widgets_refuse(out, docs):
    with pytest.raises(UserError, match='prepared folder'): browse(out.parent)
    for bad in ([], ['text'], [docs[0], 3]):
        with pytest.raises(UserError, match='expected documents'):
            tune_filter(bad, rules.word_count)


# ---- widgets in JupyterLab, in a real browser -----------------------------------------------------------------------

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
        def n_dropped(): return int(page.text('.lb-dropped').replace(',', ''))
        def texts(): return [e.text for e in page.found('.widget-html-content')]

        page.run()
        page.ended()
        printed = ' '.join(e.text for e in page.found('.jp-RenderedText'))
        assert page.found('.lb-dropped'), f'the cell ran without showing the widgets: {printed[-500:]}'
        by_default = n_dropped()
        assert by_default == len(effect(measure(docs, rules.word_count), low=50, high=100_000))

        handle = page.found('.widget-hslider .noUi-handle')[0]
        page.driver.execute_script('arguments[0].focus()', handle)
        ActionChains(page.driver).send_keys(Keys.ARROW_RIGHT * 20).perform()
        page.wait(lambda: n_dropped() > by_default and 'would be lost in addition' in page.driver.page_source)

        page.click('Next ▶')
        page.wait(lambda: any(re.fullmatch(r'row 2 of \d+', text) for text in texts()))
        assert 'owned' not in page.driver.title
        assert not page.found('.widget-html-content script, .widget-html-content img')
