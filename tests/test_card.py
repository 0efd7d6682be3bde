"""The account and the card: workers together count what one would have, any card can be shown, and nothing in it acts.

The last tests look at the page in a headless Chromium; they skip where there is none.
"""
import copy, json, os, random, re, shutil, subprocess, sys
import numpy as np
import pytest
from llmbook.core import UserError, read_json
from llmbook.prepare.card import (
    card_html, cluster_bins, cluster_picture, funnel_picture, length_picture, middle, save_card, show_card
)
from llmbook.prepare.account import Funnel, Lengths, Step, Tally, sample_key
from llmbook.show.charts import bar_chart
from llmbook.show.html import esc, html_table

EVIL = '"\'><script>document.title="owned"</script><img src=x onerror=alert(1)>\x00\ud800\x1b</pre></td></div>'
STEPS = ('read', 'clean', 'filter', 'near-duplicates')


# ---- the account ----------------------------------------------------------------------------------------------------------------

def fate(i):
    "Where document i ends, '' for nowhere, and why."
    rng = random.Random(i)
    return rng.choice(('', '', *STEPS)), rng.choice(('short', 'symbols', 'odd', '<b>')), rng.choice((i, i / 7, f'like {i}', ''))


def account(documents):
    "What one worker counts."
    f, lengths, tally = Funnel(), Lengths(), Tally()
    steps = [f.step(s) for s in STEPS]
    for i in documents:
        end, reason, value = fate(i)
        for s in steps:
            with s: n = 10 + i
            if s.name == end: s.drop(reason, f'doc{i % 50}', f'text {i} \ud800', n_bytes=n, value=value); break
            s.keep(n)
        else: lengths.add(n); tally.add(f'language {i % 3}', documents=1, bytes=n)
    return f, lengths, tally


def timeless(f): return [{**s, 'seconds': 0} for s in f.as_list()]


@pytest.mark.parametrize('workers', [1, 2, 3, 8])
@pytest.mark.parametrize('seed', range(6))
def test_workers_together_count_what_one_would(workers, seed):
    "Whatever the split and the order of coming back; names come several times, so ties are decided, too."
    rng, n = random.Random(seed), rng_size(seed)
    hands = [[] for _ in range(workers)]
    for i in rng.sample(range(n), n): rng.choice(hands).append(i)
    parts = []
    for hand in hands:
        f, lengths, tally = account(hand)
        sent = json.loads(json.dumps(dict(f=f.as_list(), l=lengths.as_dict(), t=tally.as_dict())))
        parts.append((Funnel.from_list(sent['f']), Lengths.from_dict(sent['l']), Tally.from_dict(sent['t'])))
    rng.shuffle(parts)
    while len(parts) > 1:                                                   # in any order, and in any nesting
        a, b = parts.pop(rng.randrange(len(parts))), parts.pop(rng.randrange(len(parts)))
        parts.append(tuple(x.merge(y) for x, y in zip(a, b)))
    f, lengths, tally = account(range(n))
    assert timeless(parts[0][0]) == json.loads(json.dumps(timeless(f)))
    assert parts[0][1].as_dict() == lengths.as_dict() and parts[0][2].as_dict() == tally.as_dict()
    assert parts[0][0].check(n) == f.check(n)


def rng_size(seed): return (0, 1, 5, 60, 400, 1000)[seed]


def test_merging_leaves_the_other_alone_and_adds_time():
    (a, _, _), (b, _, _) = account(range(30)), account(range(30, 60))
    before, ns = json.dumps(b.as_list()), [s.ns for s in a.steps]
    a.merge(b)
    assert [s.ns for s in a.steps] == [x + s.ns for x, s in zip(ns, b.steps)]
    for i in range(60, 90): a.steps[0].drop('short', f'doc{i}', 'x')
    assert json.dumps(b.as_list()) == before


def test_a_dictionary_is_a_copy():
    s = Step('x')
    s.drop('r', 'a', 'text')
    d = s.as_dict()
    s.drop('r', 'b', 'text')
    assert d['reasons']['r']['documents'] == 1 and len(d['reasons']['r']['examples']) == 1
    assert Step.from_dict(d).as_dict() == d


def test_other_steps_are_not_merged():
    with pytest.raises(AssertionError, match='different steps'): Step('a').merge(Step('b'))
    with pytest.raises(AssertionError, match='expected the steps'): account([1])[0].merge(Funnel())


@pytest.mark.parametrize('n', [0, 1, 3, 10])
def test_examples_are_the_smallest_keys(n):
    s, ids = Step('filter', n_examples=n), [f'{folder}/{i}' for folder in 'abc' for i in range(200)]
    for i in ids: s.drop('r', i, 'text')
    assert [e['id'] for e in s.reasons['r']['examples']] == sorted(ids, key=sample_key)[:n]


def test_examples_are_spread_over_the_corpus():
    "Over many names, an example is as likely from the end as from the beginning."
    firsts = 0
    for k in range(300):
        s = Step('filter')
        for i in range(20): s.drop('r', f'{k}/{i}', 'text')
        firsts += sum(int(e['id'].split('/')[1]) < 10 for e in s.reasons['r']['examples'])
    assert abs(firsts / 900 - .5) < .06


def test_keys_are_the_same_in_every_process():
    code = "from llmbook.prepare.account import sample_key; print(sample_key('a'), sample_key('\\ud800'), sample_key(3))"
    runs = {subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, env={**os.environ, 'PYTHONHASHSEED': s}).stdout
            for s in ('1', '2')}
    assert runs == {f"{sample_key('a')} {sample_key(chr(0xd800))} {sample_key(3)}\n"}
    assert sample_key('a') == 4681665781835383343


def test_counting_needs_no_torch():
    code = ("import sys, llmbook.prepare.account, llmbook.show.charts, llmbook.prepare.card\n"
            "print([m for m in ('torch', 'fastai', 'IPython', 'ipywidgets', 'matplotlib') if m in sys.modules])")
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == '[]'


def test_lengths_are_a_histogram():
    rng = np.random.default_rng(0)
    n = np.concatenate([[0, 1, 2, 3, 4, 1023, 1024], rng.integers(0, 10**6, 500)])
    lengths = Lengths()
    for x in n.tolist(): lengths.add(x)
    d = lengths.as_dict()
    assert d['documents'] == np.histogram(n, d['edges'])[0].tolist() and sum(d['documents']) == len(n)
    low, high = middle(d)
    assert low <= np.sort(n)[(len(n) - 1) // 2] < high
    assert middle({}) is None and middle(dict(edges=[], documents=[])) is None and length_picture({}) == ''


def test_cluster_bins():
    assert cluster_bins({}) == ([], []) and cluster_picture({}) == '' == cluster_picture({'1': 4})
    names, counts = cluster_bins({str(k): 1 for k in range(2, 33)})
    assert names == ['2', '3–4', '5–8', '9–16', '17–32'] and counts == [1, 2, 4, 8, 16]


# ---- the card -------------------------------------------------------------------------------------------------------------------

def full_card():
    f, lengths, tally = account(range(300))
    clusters = [dict(kept='a', dropped=[f'b{i}' for i in range(40)]), dict(kept='c', dropped=['d'])]
    return dict(
        funnel=f.as_list(), totals=f.check(300), kinds=tally.as_dict(), languages=tally.as_dict(), sources={f's{i}': dict(documents=1, bytes=i) for i in range(40)},
        by_kind={'language 0': dict(bytes_per_token=3.2)}, lengths=lengths.as_dict(), token_lengths=lengths.as_dict(),
        splits={s: dict(documents=9, bytes=90, tokens=30) for s in ('train', 'valid', 'test')}, licences={'MIT': 5, '': 7},
        tokenizer=dict(vocab_size=400, bytes_per_token=3.1, fingerprint='abc', trained_on=dict(documents=3, bytes=40)),
        source=dict(names=['here', 'there'], fingerprint='def', note='made up'), clusters=clusters, cluster_sizes={'2': 1, '41': 1},
        repeats=dict(lines=4, bytes=50), contamination={'sums': dict(items=9, found=0, documents=0)}, personal=dict(email=3), seed=1,
        options=dict(preset='default', seed=1, weights=dict(a=1)), question='012', workers=2, seconds=3.)


def paths(x, at=()):
    "The place of every value in nested dictionaries and lists."
    items = x.items() if isinstance(x, dict) else enumerate(x) if isinstance(x, list) else ()
    for k, v in items: yield at + (k,); yield from paths(v, at + (k,))


def test_card_shows_everything():
    page = show_card(full_card()).data
    for word in ('could not be read', 'near-duplicates', 'MB/s', 'language 2', '28 others', 'none stated', 'bytes per token', 'Evaluation sets', 'Repeated lines',
                 'email', 'time on the clock', 'weights', 'and 20 more', 'by length in tokens', 'abc', 'def', '012'):
        assert word in page, word


def test_a_card_without_any_of_its_keys():
    card = full_card()
    for key in card:
        some = {k: v for k, v in card.items() if k != key}
        card_html(some); funnel_picture(some)
        if key != 'funnel': card_html(dict(funnel=card['funnel'], **({key: card[key]})))
    for old in ({}, dict(funnel=[]), dict(funnel=card['funnel'])): assert 'Where it comes from' in card_html(old)


OPTIONAL = 'kinds languages sources splits tokenizer source repeats contamination options by_kind lengths'.split()

def test_a_card_whose_parts_are_empty():
    for key in OPTIONAL: card_html({**full_card(), key: {}})
    card_html({**full_card(), 'clusters': [], 'personal': {}, 'cluster_sizes': {}, 'licences': {}, 'funnel': [], 'totals': {}})


def test_a_card_through_json_is_the_same_page(tmp_path):
    card = full_card()
    again = json.loads(json.dumps(card))
    assert card_html(again) == card_html(card)


def test_hostile_text_stays_text(tmp_path):
    "Every text and every name in the card is hostile."
    def spoil(x):
        if isinstance(x, dict): return {(EVIL + k if spoil_names else k): spoil(v) for k, v in x.items()}
        if isinstance(x, list): return [spoil(v) for v in x]
        return EVIL + x if isinstance(x, str) else x
    for where in ('funnel', 'kinds', 'languages', 'sources', 'splits', 'licences', 'source', 'clusters', 'contamination', 'personal', 'options', 'question', 'seed'):
        for spoil_names in (False, True):
            card, value = full_card(), full_card()[where]
            if where in ('kinds', 'languages', 'sources', 'splits', 'contamination') and spoil_names: card[where] = {EVIL + k: v for k, v in value.items()}
            elif where == 'funnel' and spoil_names: card[where] = [{**s, 'reasons': {EVIL + k: r for k, r in s['reasons'].items()}} for s in value]
            elif where in ('source', 'clusters', 'funnel'): spoil_names = False; card[where] = spoil(value)
            else: card[where] = spoil(value) if where != 'seed' else EVIL
            page = save_card(card, tmp_path/'card.html').read_text(encoding='utf-8')
            assert '<script' not in page and '<img' not in page and not re.search('[\x00-\x08\x1b]', page), where


def test_plain():
    assert esc('<&"\'>\x1b\ud800') == '&lt;&amp;&quot;&#x27;&gt;\ufffd\ufffd' and esc(3) == '3'
    assert html_table(['<i>'], [[EVIL], [True], [None]]).count('<') == html_table(['a'], [['x'], [True], ['y']]).count('<')
    assert '<img' not in bar_chart([1, 2], {0: EVIL}, EVIL, {1: EVIL})


def test_save_card(tmp_path):
    card = full_card()
    page = save_card(card, tmp_path/'new/card.html')
    assert page.read_text(encoding='utf-8').count('://') == 0 and "default-src 'none'" in page.read_text(encoding='utf-8')
    assert read_json(save_card(card, tmp_path/'card.json')) == json.loads(json.dumps(card))
    assert [p.name for p in (tmp_path/'new').iterdir()] == ['card.html']
    with pytest.raises(UserError, match='.html or .json'): save_card(card, tmp_path/'card.pdf')


def test_size_stays_bounded():
    "Many names, reasons and examples do not make an endless page."
    card = full_card()
    for key in ('languages', 'sources', 'licences'): card[key] = {f'name {i}': 1 if key == 'licences' else dict(documents=1, bytes=i) for i in range(100_000)}
    card['clusters'] = [dict(kept='x', dropped=[f'{i}' for i in range(50_000)]) for _ in range(100)]
    assert len(card_html(card)) < 100_000


# ---- in a real browser ------------------------------------------------------------------------------------------------------------

CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
DRIVER = shutil.which('chromedriver')
FLAGS = ['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
         '--disable-component-update', '--disable-sync', '--disable-dev-shm-usage', '--window-size=1100,900']


@pytest.mark.skipif(not (CHROMIUM and DRIVER), reason='no chromium and chromedriver on this machine')
def test_the_page_in_a_browser(tmp_path):
    "On a desk and on a phone, light and dark: nothing sticks out, no reason is cut off, no text of a document acts, nothing is asked of the network."
    from selenium import webdriver
    card = full_card()
    card['funnel'][2]['reasons'] = {f'{EVIL} a_reason_with_a_long_name_{i}': dict(documents=9 - i, bytes=9, examples=[dict(id=EVIL, text=EVIL, value=.5)]) for i in range(8)}
    page = save_card(card, tmp_path/'card.html')
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in FLAGS + [f'--user-data-dir={tmp_path/"profile"}']: options.add_argument(flag)
    options.set_capability('goog:loggingPrefs', {'performance': 'ALL', 'browser': 'ALL'})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=DRIVER))
    try:
        shades = {}
        for width, theme in ((390, 'light'), (1100, 'dark')):
            driver.execute_cdp_cmd('Emulation.setEmulatedMedia', dict(features=[dict(name='prefers-color-scheme', value=theme)]))
            driver.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', dict(width=width, height=900, deviceScaleFactor=1, mobile=width < 500))
            driver.get(page.as_uri())
            driver.execute_script('document.querySelectorAll("details").forEach(e => e.open = true)')
            assert driver.execute_script('return document.documentElement.scrollWidth') <= width
            edges = driver.execute_script('return [...document.querySelectorAll("[role=group] > div, summary, pre, svg")].map(e => e.getBoundingClientRect().right)')
            assert len(edges) > 20 and max(edges) <= width
            cut = driver.execute_script('return [...document.querySelectorAll("[role=group] > div, summary, pre")].filter(e => e.scrollWidth > e.clientWidth + 1).length')
            assert cut == 0 and driver.title.startswith('Data card')
            shades[theme] = sum(int(x) for x in re.findall(r'\d+', driver.execute_script('return getComputedStyle(document.body).backgroundColor'))[:3])
        assert shades['light'] > 600 and shades['dark'] < 150, shades
        asked = [json.loads(e['message'])['message'] for e in driver.get_log('performance')]
        urls = {m['params']['request']['url'] for m in asked if m['method'] == 'Network.requestWillBeSent'}
        assert not [u for u in urls if u.split(':')[0] in ('http', 'https', 'ws', 'wss')] and page.as_uri() in urls
        assert not [e for e in driver.get_log('browser') if e['level'] == 'SEVERE']
    finally: driver.quit()
