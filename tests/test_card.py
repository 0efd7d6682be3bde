"""The account and the card: workers together count what one would have, any card can be shown, and nothing in it acts.

The last tests look at the page in a headless Chromium; they skip where there is none.
"""
import json, random, re
import numpy as np
import pytest
from lab import browser_only, start_browser
from run_program import heavy_imports, output_of
from llmbook.core import UserError, read_json
from llmbook.prepare.card import (
    card_html, card_warnings, cluster_bins, cluster_picture, funnel_picture, length_picture, middle, save_card,
    show_card
)
from llmbook.prepare.account import Funnel, Lengths, Step, Tally, sample_key
from llmbook.show.charts import bar_chart
from llmbook.show.html import esc, html_table

EVIL = '"\'><script>document.title="owned"</script><img src=x onerror=alert(1)>\x00\ud800\x1b</pre></td></div>'
STEPS = ('read', 'clean', 'filter', 'near-duplicates')


# ---- the account -----------------------------------------------------------------------------------------------------

def fate(i):
    "Return where document i ends, '' for nowhere, why, and what was measured."
    rng = random.Random(i)
    end = rng.choice(('', '', *STEPS))
    reason = rng.choice(('short', 'symbols', 'odd', '<b>'))
    return end, reason, rng.choice((i, i / 7, f'like {i}', ''))


def pass_through(i, steps):
    "Send document i through the steps; return whether it was kept by all of them."
    end, reason, value = fate(i)
    size = 10 + i
    for step in steps:
        with step:
            if step.name == end:
                step.drop(reason, f'doc{i % 50}', f'text {i} \ud800', n_bytes=size, value=value)
                return False
            step.keep(size)
    return True


def account(documents):
    "Return what one worker counts."
    funnel, lengths, tally = Funnel(), Lengths(), Tally()
    steps = [funnel.step(name) for name in STEPS]
    for i in documents:
        if not pass_through(i, steps): continue
        lengths.add(10 + i)
        tally.add(f'language {i % 3}', documents=1, bytes=10 + i)
    return funnel, lengths, tally


def timeless(f): return [{**s, 'seconds': 0} for s in f.as_list()]


def sent(part):
    "Return what arrives of a worker's count, which travels as JSON."
    classes = (Funnel.from_list, Lengths.from_dict, Tally.from_dict)
    funnel, lengths, tally = part
    texts = [json.dumps(x) for x in (funnel.as_list(), lengths.as_dict(), tally.as_dict())]
    return tuple(make(json.loads(text)) for make, text in zip(classes, texts))


def merged(parts, rng):
    "Return one count for all, merged in any order and in any nesting."
    rng.shuffle(parts)
    while len(parts) > 1:
        a = parts.pop(rng.randrange(len(parts)))
        b = parts.pop(rng.randrange(len(parts)))
        parts.append(tuple(x.merge(y) for x, y in zip(a, b)))
    return parts[0]


def deal(rng, n, workers):
    "Deal the numbers to `n` out to workers, in any order."
    hands = [[] for _ in range(workers)]
    for i in rng.sample(range(n), n): rng.choice(hands).append(i)
    return hands

@pytest.mark.parametrize('workers', [1, 2, 3, 8])
@pytest.mark.parametrize('seed, n', [*enumerate((0, 1, 5, 60, 400, 1000))])
def test_workers_together_count_what_one_would(workers, seed, n):
    "Whatever the split and the order of arrival; names come several times, so ties are decided, too."
    rng = random.Random(seed)
    parts = [sent(account(hand)) for hand in deal(rng, n, workers)]
    funnel, lengths, tally = merged(parts, rng)
    alone_funnel, alone_lengths, alone_tally = account(range(n))
    assert timeless(funnel) == json.loads(json.dumps(timeless(alone_funnel)))
    assert lengths.as_dict() == alone_lengths.as_dict()
    assert tally.as_dict() == alone_tally.as_dict()
    assert funnel.check(n) == alone_funnel.check(n)


def test_merging_adds_time():
    first, _, _ = account(range(30))
    second, _, _ = account(range(30, 60))
    sums = [a.ns + b.ns for a, b in zip(first.steps, second.steps)]
    first.merge(second)
    assert [step.ns for step in first.steps] == sums

def test_merging_leaves_the_other_alone():
    first, _, _ = account(range(30))
    second, _, _ = account(range(30, 60))
    before = json.dumps(second.as_list())
    first.merge(second)
    for i in range(60, 90): first.steps[0].drop('short', f'doc{i}', 'x')
    assert json.dumps(second.as_list()) == before


def test_a_dictionary_is_a_copy():
    s = Step('x')
    s.drop('r', 'a', 'text')
    d = s.as_dict()
    s.drop('r', 'b', 'text')
    assert d['reasons']['r']['documents'] == 1
    assert len(d['reasons']['r']['examples']) == 1
    assert Step.from_dict(d).as_dict() == d


def test_other_steps_are_not_merged():
    with pytest.raises(AssertionError, match='different steps'): Step('a').merge(Step('b'))
    with pytest.raises(AssertionError, match='expected the steps'): account([1])[0].merge(Funnel())


@pytest.mark.parametrize('n', [0, 1, 3, 10])
def test_examples_are_the_smallest_keys(n):
    s = Step('filter', n_examples=n)
    ids = [f'{folder}/{i}' for folder in 'abc' for i in range(200)]
    for name in ids: s.drop('r', name, 'text')
    shown = [e['id'] for e in s.reasons['r']['examples']]
    assert shown == sorted(ids, key=sample_key)[:n]


def places_of_examples(n_documents, run):
    "Return which of the documents of a run are shown as its examples."
    step = Step('filter')
    for i in range(n_documents): step.drop('r', f'{run}/{i}', 'text')
    ids = [example['id'] for example in step.reasons['r']['examples']]
    return [int(id.split('/')[1]) for id in ids]

def test_examples_are_spread_over_the_corpus():
    "Over many names, an example is as likely from the end as from the beginning."
    places = []
    for run in range(300): places += places_of_examples(20, run)
    n_first = sum(place < 10 for place in places)
    assert abs(n_first / 900 - .5) < .06


def test_keys_are_the_same_in_every_process():
    here = [sample_key('a'), sample_key('\ud800'), sample_key(3)]
    for seed in '12': assert json.loads(output_of('sample_keys', PYTHONHASHSEED=seed)) == here
    assert here[0] == 4681665781835383343


def test_counting_needs_no_torch():
    modules = ['llmbook.prepare.account', 'llmbook.show.charts', 'llmbook.prepare.card']
    assert heavy_imports(modules, ['torch', 'fastai', 'IPython', 'ipywidgets', 'matplotlib']) == {}


@pytest.fixture
def counted_sizes():
    "Return some sizes in order, and their histogram."
    rng = np.random.default_rng(0)
    corners = [0, 1, 2, 3, 4, 1023, 1024]
    sizes = sorted([*corners, *rng.integers(0, 10**6, 500).tolist()])
    lengths = Lengths()
    for n in sizes: lengths.add(n)
    return sizes, lengths.as_dict()

def test_lengths_are_a_histogram(counted_sizes):
    sizes, histogram = counted_sizes
    expected, _ = np.histogram(sizes, histogram['edges'])
    assert histogram['documents'] == expected.tolist()
    assert sum(histogram['documents']) == len(sizes)

def test_the_middle_of_lengths_holds_the_median(counted_sizes):
    sizes, histogram = counted_sizes
    low, high = middle(histogram)
    median = sizes[(len(sizes) - 1) // 2]
    assert low <= median < high


def test_no_documents_have_no_middle_and_no_picture():
    assert middle({}) is None
    assert middle(dict(edges=[], documents=[])) is None
    assert length_picture({}) == ''


def test_cluster_bins():
    assert cluster_bins({}) == ([], [])
    assert cluster_picture({}) == '' == cluster_picture({'1': 4})
    names, counts = cluster_bins({str(k): 1 for k in range(2, 33)})
    assert names == ['2', '3–4', '5–8', '9–16', '17–32']
    assert counts == [1, 2, 4, 8, 16]


# ---- the card --------------------------------------------------------------------------------------------------------

def full_card():
    "Return a card with every key."
    funnel, lengths, tally = account(range(300))
    return dict(
        funnel=funnel.as_list(),
        totals=funnel.check(300),
        kinds=tally.as_dict(),
        languages=tally.as_dict(),
        sources={f's{i}': dict(documents=1, bytes=i) for i in range(40)},
        by_kind={'language 0': dict(bytes_per_token=3.2)},
        lengths=lengths.as_dict(),
        token_lengths=lengths.as_dict(),
        splits={name: dict(documents=9, bytes=90, tokens=30) for name in ('train', 'valid', 'test')},
        licences={'MIT': 5, '': 7},
        tokenizer=dict(vocab_size=400, bytes_per_token=3.1, fingerprint='abc', trained_on=dict(documents=3, bytes=40)),
        source=dict(names=['here', 'there'], fingerprint='def', note='made up'),
        clusters=[dict(kept='a', dropped=[f'b{i}' for i in range(40)]), dict(kept='c', dropped=['d'])],
        cluster_sizes={'2': 1, '41': 1},
        repeats=dict(lines=4, bytes=50),
        contamination={'sums': dict(items=9, found=0, documents=0)},
        personal=dict(email=3),
        seed=1,
        options=dict(preset='default', seed=1, weights=dict(a=1)),
        question='012',
        workers=2,
        seconds=3.)


SHOWN = ('could not be read', 'near-duplicates', 'MB/s', 'language 2', '28 others', 'none stated', 'bytes per token',
         'Evaluation sets', 'Repeated lines', 'email', 'time on the clock', 'weights', 'and 20 more',
         'by length in tokens', 'abc', 'def', '012')

def test_card_shows_everything():
    page = show_card(full_card()).data
    for word in SHOWN: assert word in page, word


def test_a_card_without_any_of_its_keys():
    card = full_card()
    for key in card:
        without = {k: v for k, v in card.items() if k != key}
        card_html(without)
        funnel_picture(without)
        alone = {'funnel': card['funnel'], key: card[key]}
        card_html(alone)
    for old in ({}, dict(funnel=[]), dict(funnel=card['funnel'])):
        assert 'Where it comes from' in card_html(old)


OPTIONAL = 'kinds languages sources splits tokenizer source repeats contamination options by_kind lengths'.split()

def test_a_card_whose_parts_are_empty():
    for key in OPTIONAL: card_html({**full_card(), key: {}})
    empty = dict(clusters=[], personal={}, cluster_sizes={}, licences={}, funnel=[], totals={})
    card_html({**full_card(), **empty})


def test_a_card_through_json_is_the_same_page(tmp_path):
    card = full_card()
    again = json.loads(json.dumps(card))
    assert card_html(again) == card_html(card)


def spoil(x, names):
    "Return x with hostile text in front of every text, and of every name if wanted."
    if isinstance(x, dict): return {(EVIL + k if names else k): spoil(v, names) for k, v in x.items()}
    if isinstance(x, list): return [spoil(v, names) for v in x]
    return EVIL + x if isinstance(x, str) else x


def spoil_keys(d): return {EVIL + k: v for k, v in d.items()}


NAMED = ('kinds', 'languages', 'sources', 'splits', 'contamination') # keys of these are names; their values have fields
FIXED = ('source', 'clusters', 'funnel') # keys of these are fields

def spoiled_card(key, names):
    "Return a card with hostile text under one of its keys."
    card = full_card()
    if key == 'seed':
        card['seed'] = EVIL
    elif names and key in NAMED:
        card[key] = spoil_keys(card[key])
    elif names and key == 'funnel':
        for step in card['funnel']: step['reasons'] = spoil_keys(step['reasons'])
    else:
        card[key] = spoil(card[key], names and key not in FIXED)
    return card


@pytest.mark.parametrize('names', [False, True])
@pytest.mark.parametrize('key', [*NAMED, *FIXED, 'licences', 'personal', 'options', 'question', 'seed'])
def test_hostile_text_stays_text(tmp_path, key, names):
    page = save_card(spoiled_card(key, names), tmp_path/'card.html').read_text(encoding='utf-8')
    assert '<script' not in page
    assert '<img' not in page
    assert not re.search('[\x00-\x08\x1b]', page)


def test_values_are_escaped():
    assert esc('<&"\'>\x1b\ud800') == '&lt;&amp;&quot;&#x27;&gt;\ufffd\ufffd'
    assert esc(3) == '3'
    hostile = html_table(['<i>'], [[EVIL], [True], [None]])
    harmless = html_table(['a'], [['x'], [True], ['y']])
    assert hostile.count('<') == harmless.count('<')
    assert '<img' not in bar_chart([1, 2], {0: EVIL}, EVIL, {1: EVIL})


def test_save_card(tmp_path):
    page = save_card(full_card(), tmp_path/'new/card.html')
    text = page.read_text(encoding='utf-8')
    assert text.count('://') == 0
    assert "default-src 'none'" in text
    left = [path.name for path in page.parent.iterdir()]
    assert left == ['card.html']

def test_a_card_can_be_saved_as_json(tmp_path):
    card = full_card()
    saved = read_json(save_card(card, tmp_path/'card.json'))
    assert saved == json.loads(json.dumps(card))
    with pytest.raises(UserError, match='.html or .json'): save_card(card, tmp_path/'card.pdf')


def test_size_stays_bounded():
    "Many names, reasons and examples do not make an endless page."
    card = full_card()
    names = [f'name {i}' for i in range(100_000)]
    counted = {name: dict(documents=1, bytes=i) for i, name in enumerate(names)}
    card['licences'] = dict.fromkeys(names, 1)
    card['languages'] = counted
    card['sources'] = counted
    cluster = dict(kept='x', dropped=names[:50_000])
    card['clusters'] = [cluster] * 100
    assert len(card_html(card)) < 100_000


# ---- in a real browser -----------------------------------------------------------------------------------------------

PARTS = '[role=group] > div, summary, pre'
OPEN_ALL = 'document.querySelectorAll("details").forEach(e => e.open = true)'
WIDTH = 'return document.documentElement.scrollWidth'
RIGHT_EDGES = f'return [...document.querySelectorAll("{PARTS}, svg")].map(e => e.getBoundingClientRect().right)'
CUT_OFF = f'return [...document.querySelectorAll("{PARTS}")].filter(e => e.scrollWidth > e.clientWidth + 1).length'
BACKGROUND = 'return getComputedStyle(document.body).backgroundColor'


@pytest.fixture
def driver(tmp_path):
    driver = start_browser(tmp_path/'profile', 1100, 900)
    yield driver
    driver.quit()


def look(driver, page, width, theme):
    "Open the page in a window of a width, light or dark."
    media = dict(features=[dict(name='prefers-color-scheme', value=theme)])
    metrics = dict(width=width, height=900, deviceScaleFactor=1, mobile=width < 500)
    driver.execute_cdp_cmd('Emulation.setEmulatedMedia', media)
    driver.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', metrics)
    driver.get(page.as_uri())
    driver.execute_script(OPEN_ALL)


def requested(driver):
    "Return every address that was asked for."
    messages = [json.loads(entry['message'])['message'] for entry in driver.get_log('performance')]
    return {m['params']['request']['url'] for m in messages if m['method'] == 'Network.requestWillBeSent'}


def evil_reason(i):
    example = dict(id=EVIL, text=EVIL, value=.5)
    return f'{EVIL} a_reason_with_a_long_name_{i}', dict(documents=9 - i, bytes=9, examples=[example])


@browser_only
def test_the_page_in_a_browser(driver, tmp_path):
    "On a desk and on a phone: nothing sticks out or is cut off, no text of a document acts, the network is not asked."
    card = full_card()
    card['funnel'][2]['reasons'] = dict(map(evil_reason, range(8)))
    page = save_card(card, tmp_path/'card.html')
    brightness = {}
    for width, theme in ((390, 'light'), (1100, 'dark')):
        look(driver, page, width, theme)
        assert driver.execute_script(WIDTH) <= width
        edges = driver.execute_script(RIGHT_EDGES)
        assert len(edges) > 20
        assert max(edges) <= width
        assert driver.execute_script(CUT_OFF) == 0
        assert driver.title.startswith('Data card')
        colour = re.findall(r'\d+', driver.execute_script(BACKGROUND))[:3]
        brightness[theme] = sum(map(int, colour))
    assert brightness['light'] > 600, brightness
    assert brightness['dark'] < 150, brightness
    addresses = requested(driver)
    assert page.as_uri() in addresses
    schemes = {address.split(':')[0] for address in addresses}
    assert not schemes & {'http', 'https', 'ws', 'wss'}
    severe = [entry for entry in driver.get_log('browser') if entry['level'] == 'SEVERE']
    assert severe == []

def test_a_warning_blames_the_language_only_where_rules_are_for_another():
    lost = dict(documents=30, dropped=29, reasons=dict(stop_words=29))
    german, english, unknown = [card_warnings(dict(filtered_languages={code: lost}))[0] for code in ('de', 'en', '')]
    assert 'another language' in german
    for warning in (english, unknown):
        assert 'another language' not in warning and 'rejects.jsonl' in warning
