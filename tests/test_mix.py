"Splits, mixtures, curricula, and the search for evaluation items, against slow and obvious versions of themselves."
import gzip, json, math, os, pickle, random, re, subprocess, sys
from functools import partial
from pathlib import Path
import numpy as np
import pytest
from llmbook.core import UserError
from llmbook.dedup.decontaminate import (
    Decontaminator, Overlap, bare_word_hashes, bare_words, contaminated, contamination, eval_items, ngram_hashes
)
from llmbook.read.doc import Doc
from llmbook.prepare.splits import SPLITS, assign_splits, split_of
from llmbook.tokens.mixture import Curriculum, mixture_rows, mixture_weights

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get('LLMBOOK_DATA', ROOT.parent/'shared/data'))
SIZES = dict(web=9000, books=800, code=400, maths=20)


# splits

def test_splits_stay_where_they_are():
    "The shares and members of splits are stored in people's folders: they must never change."
    assert SPLITS == ('train', 'valid', 'test')
    assert [k for k in range(200) if split_of(f'k{k}') != 'train'] == [k for k in range(200) if split_of(f'k{k}', 42, .02, .02) != 'train']
    keys = [f'key{i}' for i in range(20_000)]
    share = sum(split_of(k, valid=.1, test=.05) == 'valid' for k in keys) / len(keys)
    assert abs(share - .1) < 4 * math.sqrt(.1 * .9 / len(keys))
    small = {k for k in keys if split_of(k, valid=.02) == 'valid'}
    assert small <= {k for k in keys if split_of(k, valid=.05) == 'valid'}, 'a larger share keeps those that were held out'

def test_splits_do_not_depend_on_order_or_company():
    docs = [Doc('x', f'd{i}', meta=dict(package=f'p{i % 37}')) for i in range(500)]
    one = dict(zip((d.id for d in docs), assign_splits(docs, by='package', valid=.2, test=.2)))
    shuffled = random.Random(1).sample(docs, 500)
    assert one == dict(zip((d.id for d in shuffled), assign_splits(shuffled, by='package', valid=.2, test=.2)))
    some = shuffled[:100]
    assert all(one[d.id] == s for d, s in zip(some, assign_splits(some, by='package', valid=.2, test=.2)))


# mixtures

@pytest.mark.parametrize('seed', range(40))
def test_a_capped_mixture_is_one(seed):
    rng = random.Random(seed)
    sizes = {f's{i}': rng.choice([0, 1, 5, 100, 10_000]) * rng.random() + 1e-3 for i in range(rng.randint(1, 8))}
    cap, t = rng.choice([.5, 1, 4]), rng.choice([.5, 1, 3, math.inf])
    total = rng.random() * cap * sum(sizes.values())
    free, w = mixture_weights(sizes, t), mixture_weights(sizes, t, epoch_cap=cap, total=total)
    assert list(w) == list(sizes) and math.isclose(sum(w.values()), 1, abs_tol=1e-9)
    rows = {r['source']: r for r in mixture_rows(sizes, w, total)}
    assert all(r['epochs'] <= cap * (1 + 1e-9) for r in rows.values())
    at_cap = {k for k in w if rows[k]['epochs'] > cap * (1 - 1e-9)}
    others = [w[k] / free[k] for k in w if k not in at_cap]
    assert np.allclose(others, others[0] if others else 0), 'those below the cap keep their proportions'
    assert all(w[k] <= free[k] * (others[0] if others else math.inf) * (1 + 1e-9) for k in at_cap)

def test_temperature():
    assert mixture_weights(SIZES) == pytest.approx({k: n / sum(SIZES.values()) for k, n in SIZES.items()})
    assert list(mixture_weights(SIZES, math.inf).values()) == pytest.approx([.25] * 4)
    small = [mixture_weights(SIZES, t)['maths'] for t in (1, 2, 3, 5, 10)]
    assert small == sorted(small)
    assert mixture_weights({k: n * 1e12 for k, n in SIZES.items()}, .05) == pytest.approx(mixture_weights(SIZES, .05)), 'no overflow'

def test_exactly_all_of_it():
    w = mixture_weights(SIZES, 5, epoch_cap=2, total=2 * sum(SIZES.values()))
    assert w == pytest.approx(mixture_weights(SIZES)), 'nothing is left to choose'
    assert mixture_weights(SIZES, 3, epoch_cap=1) == pytest.approx(mixture_weights(SIZES)), 'without a total: as much as there is'

@pytest.mark.parametrize('kw, words', [
    (dict(temperature=0), 'temperature'), (dict(temperature=-1), 'temperature'), (dict(temperature=math.nan), 'temperature'),
    (dict(weights=dict(web=1)), 'every source'), (dict(weights=dict(web=1, books=1, code=1, maths=-1)), 'maths'),
    (dict(weights=dict.fromkeys(SIZES, 0)), 'not all 0'), (dict(weights=dict(web=1, books=1, code=1, maths=math.nan)), 'maths'),
    (dict(epoch_cap=1, total=10**6), 'draw fewer'), (dict(epoch_cap=0), 'over 0'), (dict(epoch_cap=1, total=0), 'over 0')])
def test_impossible_mixtures(kw, words):
    with pytest.raises(UserError, match=words): mixture_weights(SIZES, **kw)

def test_more_impossible_mixtures():
    for sizes in ({}, {'a': 0}, {'a': -1}, {'a': math.inf}):
        with pytest.raises(UserError): mixture_weights(sizes)
    with pytest.raises(UserError, match='got none in b'): mixture_weights({'a': 1, 'b': 0}, weights={'a': 1, 'b': 1})
    with pytest.raises(UserError, match='z'): mixture_rows(SIZES, dict(z=1))
    assert mixture_weights({'a': 1, 'b': 0}) == {'a': 1, 'b': 0}
    assert [r['epochs'] for r in mixture_rows({'a': 1, 'b': 0}, {'a': 1})] == [1, 0]

def test_a_source_left_out_cannot_pay_for_the_others():
    with pytest.raises(UserError, match='at most 10 tokens'): mixture_weights(dict(a=10, b=1000), weights=dict(a=1, b=0), epoch_cap=1, total=500)


# curricula

def test_curriculum_between_its_points():
    c = Curriculum([(.2, SIZES), (.5, dict(maths=3, poems=1)), (.9, dict(poems=2))])
    assert c.sources == ('web', 'books', 'code', 'maths', 'poems')
    for x in np.linspace(-.1, 1.1, 200):
        assert math.isclose(sum(c.at(x).values()), 1, abs_tol=1e-12) and min(c.at(x).values()) >= 0 and tuple(c.at(x)) == c.sources
    assert c.at(0) == c.at(.2) == pytest.approx({**mixture_weights(SIZES), 'poems': 0})
    assert c.at(1) == c.at(.9) == pytest.approx(dict(web=0, books=0, code=0, maths=0, poems=1))
    assert c.at(.35)['maths'] == pytest.approx((20 / 10_220 + .75) / 2)
    xs = (np.arange(10_000) + .5) / 10_000
    assert c.mean() == pytest.approx({k: np.mean([c.at(x)[k] for x in xs]) for k in c.sources}, abs=1e-6)
    assert pickle.loads(pickle.dumps(c)).at(.6) == c.at(.6)

def test_curriculum_of_one_point_is_a_mixture():
    c = Curriculum([(0, dict(a=1, b=3))])
    assert c.at(0) == c.at(.7) == c.mean() == dict(a=.25, b=.75)

@pytest.mark.parametrize('points', [[], [(.5, {})], [(0, dict(a=0))], [(-.1, dict(a=1))], [(1.1, dict(a=1))],
                                    [(.5, dict(a=1)), (.4, dict(a=1))], [(0, dict(a=math.nan))], [(math.nan, dict(a=1))]])
def test_impossible_curricula(points):
    with pytest.raises(UserError): Curriculum(points)


# words and hashes

ALPHABETS = ['abcdefgh', 'aB3 ', 'éßøДя', '東京はกข', '“”—…\u200b\xad.,_', '🙂\U0001f1e9𝔘ﬁ½', ' \n\t']

def noise(rng, n):
    "Text of many scripts; a few characters only, so that words repeat."
    return ''.join(rng.choice(rng.choice(ALPHABETS)) for _ in range(n))

@pytest.mark.parametrize('seed', range(20))
def test_hashes_follow_words(seed):
    rng = random.Random(seed)
    text = noise(rng, rng.choice([0, 1, 50, 4000]))
    words, h = bare_words(text), bare_word_hashes(text)
    assert len(words) == len(h)
    same = {}
    assert all(same.setdefault(w, x) == x for w, x in zip(words, h)) and len(set(same.values())) == len(same)
    for n in (1, 2, 5):
        grams = [tuple(words[i:i + n]) for i in range(len(words) - n + 1)]
        g = ngram_hashes(h, n)
        assert len(g) == len(grams) and len(set(g)) == len(set(grams))

def test_words_do_not_depend_on_the_block_they_stand_in():
    rng = random.Random(0)
    words = [''.join(rng.choices('abcdefghij', k=rng.randint(1, 12))) for _ in range(60_000)]
    h = bare_word_hashes(' '.join(words))
    assert len(h) == len(words)
    small = {w: bare_word_hashes(w)[0] for w in set(words)}
    assert all(small[w] == x for w, x in zip(words, h))

def test_a_word_longer_than_a_block_is_survived():
    h = bare_word_hashes('a ' + 'x' * 300_000 + ' b')
    assert len(h) >= 3 and h[0] == bare_word_hashes('a')[0] and h[-1] == bare_word_hashes('b')[0]

def test_strange_text():
    for t in ('', ' ', '\x00', '…', '\ud800', '\ud800 a', 'İ', '\u0345', 'e\u0301'): assert len(bare_word_hashes(t)) == len(bare_words(t))
    assert bare_words('e\u0301t\u00e9') == bare_words('été') == ['été']
    assert bare_words('CO\u00adOP\u200bER') == ['cooper']
    assert bare_words('Straße № ５') == bare_words('straße No 5'), 'compatibility forms'


# evaluation items in documents

def naive(text, items, n, shortest):
    "The items of which a text holds a run, and of each the share; words compared one by one."
    words, res = bare_words(text), {}
    for i, item in enumerate(items):
        w = bare_words(item)
        if len(w) < shortest: continue
        k = min(n, len(w))
        runs = {tuple(w[j:j + k]) for j in range(len(w) - k + 1)}
        there = {tuple(words[j:j + k]) for j in range(len(words) - k + 1)} & runs
        if there: res[i] = len(there) / len(runs)
    return res

@pytest.mark.parametrize('seed', range(30))
def test_finds_what_a_slow_search_finds(seed):
    rng = random.Random(seed)
    vocabulary = ['the', 'cat', 'Sat', 'on', 'été', '東', 'a1'] + [f'w{i}' for i in range(rng.choice([2, 60]))]
    some = lambda n: ' '.join(rng.choices(vocabulary, k=n))
    n, shortest = rng.choice([(3, 2), (5, 3), (13, 8), (4, 9)])
    items = [some(rng.randint(0, 20)) for _ in range(30)]
    d = Decontaminator(items, n=n, shortest=shortest, common=10**9)
    for _ in range(40):
        text = some(rng.randint(0, 60))
        if rng.random() < .5: text += '\n— ' + rng.choice(items).upper() + '! ' + some(5)
        want, got = naive(text, items, n, min(n, shortest)), d.overlap(text)
        assert (got is None) == (not want)
        if not want: continue
        assert {i for _, i in got.found} == set(want) and got.share == pytest.approx(max(want.values()))
        assert want[got.item] == pytest.approx(got.share) and got.name == 'eval'
        words, w = got.words.split(), bare_words(items[got.item])
        assert len(words) >= min(n, len(w)) and f' {got.words} ' in f" {' '.join(bare_words(text))} "
        k = min(n, len(w))
        runs = {tuple(w[j:j + k]) for j in range(len(w) - k + 1)}
        assert all(any(tuple(words[j:j + k]) in runs for j in range(max(0, x - k + 1), min(x, len(words) - k) + 1)) for x in range(len(words)))

LONG = 'one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen'

def test_thirteen_words_and_not_twelve():
    d = Decontaminator([LONG])
    words = LONG.split()
    assert d.overlap(' '.join(words[2:15])).share == pytest.approx(1 / 4)
    assert d.overlap(' '.join(words[2:14])) is None
    assert d.overlap('x ' + ' '.join(words[:13]) + ' x').words == ' '.join(words[:13])

def test_short_items_as_a_whole():
    items = [' '.join(LONG.split()[:k]) for k in range(5, 13)]
    d = Decontaminator(dict(short=items))
    assert d.short == dict(short=3) and d.sizes == dict(short=8)
    assert d.overlap(items[2]) is None and d.overlap(items[3]).item == 3
    assert {i for _, i in d.overlap(LONG).found} == {3, 4, 5, 6, 7}

def test_common_runs_are_left_out():
    prompt = 'Read the following passage with care and answer the question that is asked below it in one word'
    rng = random.Random(0)
    items = [prompt + ' ' + ' '.join(rng.choices(LONG.split(), k=20)) for _ in range(30)]
    assert Decontaminator(items, common=100).overlap(prompt) is not None
    d = Decontaminator(items)
    assert d.overlap(prompt) is None and d.left_out == 6
    assert all(d.overlap(x).item == i for i, x in enumerate(items))
    again = Decontaminator([LONG] * 50)
    assert again.overlap(LONG) is not None and len(again.overlap(LONG).found) == 50, 'fifty copies of one item are one item'

def test_least():
    words = LONG.split()
    assert Decontaminator([LONG], least=.5).overlap(' '.join(words[:14])).share == .5
    assert Decontaminator([LONG], least=.51).overlap(' '.join(words[:14])) is None

def test_sets_and_report():
    sets = dict(a=[LONG, 'too short'], b=[Doc(LONG, 'x'), 'seventeen ' + LONG])
    d = Decontaminator(sets)
    docs = [LONG, 'nothing', LONG.upper(), 'seventeen ' + LONG]
    assert contamination(map(d.overlap, docs), d) == dict(a=dict(items=2, short=1, found=1, documents=3), b=dict(items=2, short=0, found=2, documents=3))
    assert contaminated(Doc('nothing', 'n'), d) is None and partial(contaminated, against=d)(Doc(LONG, 'l')) == 1.
    assert contaminated.__name__ == 'contaminated' and isinstance(d.overlap(LONG), Overlap)

def test_only_short_items_is_no_search_and_no_error():
    d = Decontaminator(['too short'])
    assert d.overlap('too short') is None and contamination([None], d)['eval'] == dict(items=1, short=1, found=0, documents=0)

def test_files(tmp_path):
    rows = [dict(text=LONG), dict(question='What is it?', choices=['a'], answer='A cat.')]
    (tmp_path/'quiz.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    with gzip.open(tmp_path/'quiz.jsonl.gz', 'wt') as f: f.write('\n'.join(map(json.dumps, rows)))
    want = dict(quiz=[LONG, 'What is it?\nA cat.'])
    assert eval_items(tmp_path/'quiz.jsonl') == eval_items(str(tmp_path/'quiz.jsonl.gz')) == eval_items(dict(quiz=tmp_path/'quiz.jsonl')) == want
    (tmp_path/'bad.jsonl').write_text('{"text": "a"}\n{"text": ')
    with pytest.raises(UserError, match='line 2'): eval_items(tmp_path/'bad.jsonl')
    for bad in ('nowhere.jsonl', [], {}, dict(a=[]), [None], dict(a=[['x']])):
        with pytest.raises(UserError): Decontaminator(bad)
    with pytest.raises(UserError): Decontaminator([LONG], least=2)

def test_the_same_in_every_process():
    d = Decontaminator(dict(a=[LONG, 'été 東京 ' * 9]))
    code = ('import pickle, sys; from llmbook.dedup.decontaminate import Decontaminator as D\n'
            'd = pickle.loads(bytes.fromhex(sys.argv[1])); assert "torch" not in sys.modules and "fastai" not in sys.modules\n'
            'print(d.fingerprint, D(dict(a=[sys.argv[2], "été 東京 " * 9])).fingerprint, d.overlap(sys.argv[2]))')
    r = subprocess.run([sys.executable, '-X', 'utf8', '-c', code, pickle.dumps(d).hex(), LONG], capture_output=True, text=True,
                       env={**os.environ, 'PYTHONHASHSEED': '7'})
    assert r.stdout.strip() == f'{d.fingerprint} {d.fingerprint} {d.overlap(LONG)}', r.stderr
    others = [Decontaminator(dict(a=[LONG])), Decontaminator(dict(a=[LONG, 'été 東京 ' * 9]), n=12), Decontaminator(dict(b=[LONG, 'été 東京 ' * 9]))]
    assert len({d.fingerprint, *(o.fingerprint for o in others)}) == 4

def test_memory_is_that_of_the_evaluation_set():
    rng = random.Random(0)
    d = Decontaminator([' '.join(rng.choices(LONG.split(), k=100)) for _ in range(500)])
    before = len(pickle.dumps(d))
    for _ in range(50): d.overlap(noise(rng, 2000))
    assert len(pickle.dumps(d)) == before < 64 * len(d.keys) + 100_000


@pytest.mark.skipif(not DATA.exists(), reason='needs LLMBOOK_DATA')
def test_real_items_in_real_documents():
    "Dialogues hidden in web pages, with another typography, are all found; pages without any are left alone."
    rows = [json.loads(l) for f in sorted((DATA/'dialogsum').rglob('*dev*.jsonl*')) for l in (gzip.open(f, 'rt') if f.suffix == '.gz' else open(f))][:200]
    if not rows: pytest.skip('no dialogues in LLMBOOK_DATA')
    items = [max((v for v in r.values() if isinstance(v, str)), key=len) for r in rows]
    books = sorted((DATA/'gutenberg_books').rglob('*.jsonl.gz'))
    with gzip.open(books[0], 'rt') as f: page = next(t for l in f for t in json.loads(l).values() if isinstance(t, str) and len(t) > 300_000)
    pages = [page[i:i + 3000] for i in range(0, 300_000, 3000)]
    d = Decontaminator(dict(dialogues=items))
    rng = random.Random(0)
    change = lambda t: re.sub(r"'", '’', t).replace('. ', ' –\n').upper() if rng.random() < .5 else t
    hidden = [p[:1500] + '\n' + change(x) + '\n' + p[1500:] for p, x in zip(pages * 2, items)]
    found = [d.overlap(h) for h in hidden]
    assert all(o and ('dialogues', i) in o.found for i, o in enumerate(found) if len(bare_words(items[i])) >= 8)
    assert not any(map(d.overlap, pages))
