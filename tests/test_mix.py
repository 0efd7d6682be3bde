"Splits, mixtures, curricula, and the search for evaluation items, against slow and obvious versions of themselves."
import gzip, json, math, pickle, random
from functools import partial
import numpy as np
import pytest
from real_data import DATA, needs_data
from run_program import output_of
from llmbook.core import UserError
from llmbook.dedup.decontaminate import (
    Decontaminator, Overlap, bare_words, contaminated, contamination, eval_items, ngram_hashes, bare_word_hashes
)
from llmbook.prepare.splits import SPLITS, assign_splits, split_of
from llmbook.read.doc import Doc
from llmbook.tokens.mixture import Curriculum, mixture_rows, mixture_weights

SIZES = dict(web=9000, books=800, code=400, maths=20)


# splits

def held_out(keys, split='valid', **shares): return {key for key in keys if split_of(key, **shares) == split}

def test_splits_stay_where_they_are():
    "Hold the shares and members of splits, which are stored in people's folders: they must never change."
    assert SPLITS == ('train', 'valid', 'test')
    keys = [f'k{k}' for k in range(200)]
    assert [split_of(key) for key in keys] == [split_of(key, 42, .02, .02) for key in keys]

def test_splits_have_their_shares():
    keys = [f'key{i}' for i in range(20_000)]
    share = len(held_out(keys, valid=.1, test=.05)) / len(keys)
    assert abs(share - .1) < 4 * math.sqrt(.1 * .9 / len(keys))
    assert held_out(keys, valid=.02) <= held_out(keys, valid=.05), 'a larger share keeps those that were held out'

def test_splits_do_not_depend_on_order_or_company():
    docs = [Doc('x', f'd{i}', meta=dict(package=f'p{i % 37}')) for i in range(500)]
    def assigned(docs):
        return dict(zip((doc.id for doc in docs), assign_splits(docs, by='package', valid=.2, test=.2)))
    all_of_them = assigned(docs)
    shuffled = random.Random(1).sample(docs, 500)
    assert assigned(shuffled) == all_of_them
    assert assigned(shuffled[:100]).items() <= all_of_them.items()

def test_few_documents_fill_every_split():
    for seed in range(300):
        docs = [Doc('x', f'{seed}-{i}') for i in range(3 + seed % 4)]
        assert set(assign_splits(docs, seed=seed, valid=.25, test=.25)) == {'train', 'valid', 'test'}
        two = assign_splits(docs[:2], seed=seed, valid=.25, test=.25)
        assert len(set(two)) == 2
        assert 'train' in two


# mixtures

def random_mixture(rng):
    "Return the sizes of some sources, a cap of epochs, a temperature and a total that the cap allows."
    sizes = {}
    for i in range(rng.randint(1, 8)):
        scale = rng.choice([0, 1, 5, 100, 10_000])
        sizes[f's{i}'] = scale * rng.random() + 1e-3
    cap = rng.choice([.5, 1, 4])
    temperature = rng.choice([.5, 1, 3, math.inf])
    total = rng.random() * cap * sum(sizes.values())
    return sizes, cap, temperature, total

@pytest.mark.parametrize('seed', range(40))
def test_a_capped_mixture_is_one(seed):
    sizes, cap, temperature, total = random_mixture(random.Random(seed))
    capped = mixture_weights(sizes, temperature, epoch_cap=cap, total=total)
    assert list(capped) == list(sizes)
    assert math.isclose(sum(capped.values()), 1, abs_tol=1e-9)

def test_temperature():
    natural = mixture_weights(SIZES)
    total = sum(SIZES.values())
    for name, n in SIZES.items(): assert natural[name] == pytest.approx(n / total)
    even = mixture_weights(SIZES, math.inf)
    assert list(even.values()) == pytest.approx([.25] * 4)
    small = [mixture_weights(SIZES, t)['maths'] for t in (1, 2, 3, 5, 10)]
    assert small == sorted(small)

def test_exactly_all_of_it():
    natural = pytest.approx(mixture_weights(SIZES))
    twice = mixture_weights(SIZES, 5, epoch_cap=2, total=2 * sum(SIZES.values()))
    assert twice == natural, 'nothing is left to choose'
    assert mixture_weights(SIZES, 3, epoch_cap=1) == natural, 'without a total: as much as there is'

@pytest.mark.parametrize('options, expected', [
    (dict(temperature=0), 'temperature'),
    (dict(temperature=-1), 'temperature'),
    (dict(temperature=math.nan), 'temperature'),
    (dict(weights=dict(web=1)), 'every source'),
    (dict(weights=dict(web=1, books=1, code=1, maths=-1)), 'maths'),
    (dict(weights=dict.fromkeys(SIZES, 0)), 'not all 0'),
    (dict(weights=dict(web=1, books=1, code=1, maths=math.nan)), 'maths'),
    (dict(epoch_cap=1, total=10**6), 'draw fewer'),
    (dict(epoch_cap=0), 'over 0'),
    (dict(epoch_cap=1, total=0), 'over 0')])
def test_impossible_mixtures(options, expected):
    with pytest.raises(UserError, match=expected): mixture_weights(SIZES, **options)

def test_more_impossible_mixtures():
    for sizes in ({}, {'a': 0}, {'a': -1}, {'a': math.inf}):
        with pytest.raises(UserError): mixture_weights(sizes)
    with pytest.raises(UserError, match='got none in b'):
        mixture_weights({'a': 1, 'b': 0}, weights={'a': 1, 'b': 1})
    with pytest.raises(UserError, match='z'): mixture_rows(SIZES, dict(z=1))

def test_an_empty_source_gets_nothing():
    assert mixture_weights({'a': 1, 'b': 0}) == {'a': 1, 'b': 0}
    assert [r['epochs'] for r in mixture_rows({'a': 1, 'b': 0}, {'a': 1})] == [1, 0]

def test_a_source_left_out_cannot_pay_for_the_others():
    with pytest.raises(UserError, match='at most 10 tokens'):
        mixture_weights(dict(a=10, b=1000), weights=dict(a=1, b=0), epoch_cap=1, total=500)


# curricula

@pytest.fixture
def curriculum(): return Curriculum([(.2, SIZES), (.5, dict(maths=3, poems=1)), (.9, dict(poems=2))])

def test_curriculum_is_a_mixture_at_every_moment(curriculum):
    assert curriculum.sources == ('web', 'books', 'code', 'maths', 'poems')
    for pct in np.linspace(-.1, 1.1, 200):
        weights = curriculum.at(pct)
        assert math.isclose(sum(weights.values()), 1, abs_tol=1e-12)
        assert min(weights.values()) >= 0
        assert tuple(weights) == curriculum.sources

@pytest.fixture(params=range(40))
def capped(request):
    "Return the epochs of each source in a random mixture with a cap, what each gained by it, and the cap."
    sizes, cap, temperature, total = random_mixture(random.Random(request.param))
    free = mixture_weights(sizes, temperature)
    weights = mixture_weights(sizes, temperature, epoch_cap=cap, total=total)
    epochs = {row['source']: row['epochs'] for row in mixture_rows(sizes, weights, total)}
    gains = {name: weights[name] / free[name] for name in sizes}
    return epochs, gains, cap

def test_a_capped_mixture_keeps_to_its_cap(capped):
    epochs, _, cap = capped
    assert max(epochs.values()) <= cap * (1 + 1e-9)

def test_a_capped_mixture_keeps_proportions_below_the_cap(capped):
    epochs, gains, cap = capped
    at_cap = [name for name in epochs if epochs[name] > cap * (1 - 1e-9)]
    below = [gains[name] for name in epochs if name not in at_cap]
    gain = below[0] if below else math.inf
    assert np.allclose(below, gain)
    for name in at_cap: assert gains[name] <= gain * (1 + 1e-9)

def test_curriculum_holds_at_and_beyond_its_points(curriculum):
    first = {**mixture_weights(SIZES), 'poems': 0}
    assert curriculum.at(0) == curriculum.at(.2) == pytest.approx(first)
    last = dict(web=0, books=0, code=0, maths=0, poems=1)
    assert curriculum.at(1) == curriculum.at(.9) == pytest.approx(last)

def test_curriculum_between_its_points(curriculum):
    halfway = curriculum.at(.35)['maths']
    assert halfway == pytest.approx((20 / 10_220 + .75) / 2)

def test_curriculum_on_average(curriculum):
    pcts = (np.arange(10_000) + .5) / 10_000
    moments = [curriculum.at(pct) for pct in pcts]
    mean = curriculum.mean()
    assert tuple(mean) == curriculum.sources
    for name, weight in mean.items():
        slow = np.mean([weights[name] for weights in moments])
        assert weight == pytest.approx(slow, abs=1e-6)

def test_curriculum_of_one_point_is_a_mixture():
    c = Curriculum([(0, dict(a=1, b=3))])
    assert c.at(0) == c.at(.7) == c.mean() == dict(a=.25, b=.75)

@pytest.mark.parametrize('points', [
    [], [(.5, {})], [(0, dict(a=0))], [(-.1, dict(a=1))], [(1.1, dict(a=1))], [(.5, dict(a=1)), (.4, dict(a=1))],
    [(0, dict(a=math.nan))], [(math.nan, dict(a=1))]])
def test_impossible_curricula(points):
    with pytest.raises(UserError): Curriculum(points)


# words and hashes

ALPHABETS = ['abcdefgh', 'aB3 ', 'éßøДя', '東京はกข', '“”—…\u200b\xad.,_', '🙂\U0001f1e9𝔘ﬁ½', ' \n\t']

def noise(rng, n):
    "Return text of many scripts; a few characters only, so that words repeat."
    return ''.join(rng.choice(rng.choice(ALPHABETS)) for _ in range(n))

def runs_of(words, n): return [tuple(words[i:i + n]) for i in range(len(words) - n + 1)]

def test_curriculum_can_be_sent_to_another_process(curriculum):
    sent = pickle.loads(pickle.dumps(curriculum))
    assert sent.at(.6) == curriculum.at(.6)

def words_and_hashes(seed):
    rng = random.Random(seed)
    length = rng.choice([0, 1, 50, 4000])
    text = noise(rng, length)
    return bare_words(text), bare_word_hashes(text)

@pytest.mark.parametrize('seed', range(20))
def test_hashes_follow_words(seed):
    words, hashes = words_and_hashes(seed)
    assert len(words) == len(hashes)
    pairs = set(zip(words, hashes))
    assert len(pairs) == len(set(words))
    assert len(pairs) == len(set(hashes))

@pytest.mark.parametrize('seed', range(20))
@pytest.mark.parametrize('n', [1, 2, 5])
def test_hashes_of_runs_follow_runs(seed, n):
    words, hashes = words_and_hashes(seed)
    runs = runs_of(words, n)
    run_hashes = ngram_hashes(hashes, n)
    assert len(run_hashes) == len(runs)
    assert len(set(run_hashes)) == len(set(runs))

def random_words(rng, n):
    words = []
    for _ in range(n):
        letters = rng.choices('abcdefghij', k=rng.randint(1, 12))
        words.append(''.join(letters))
    return words

def test_words_do_not_depend_on_the_block_they_stand_in():
    words = random_words(random.Random(0), 60_000)
    hashes = bare_word_hashes(' '.join(words))
    assert len(hashes) == len(words)
    alone = {word: bare_word_hashes(word)[0] for word in set(words)}
    assert all(alone[word] == h for word, h in zip(words, hashes))

def test_a_word_longer_than_a_block_is_survived():
    hashes = bare_word_hashes('a ' + 'x' * 300_000 + ' b')
    assert len(hashes) >= 3
    assert hashes[0] == bare_word_hashes('a')[0]
    assert hashes[-1] == bare_word_hashes('b')[0]

def test_strange_text():
    for text in ('', ' ', '\x00', '…', '\ud800', '\ud800 a', 'İ', '\u0345', 'e\u0301'):
        assert len(bare_word_hashes(text)) == len(bare_words(text))
    assert bare_words('e\u0301t\u00e9') == bare_words('été') == ['été']
    assert bare_words('CO\u00adOP\u200bER') == ['cooper']
    assert bare_words('Straße № ５') == bare_words('straße No 5'), 'compatibility forms'


# evaluation items in documents

def naive(text, items, n, shortest):
    "Return the items of which a text holds a run, and the share of each; words are compared one by one."
    words = bare_words(text)
    res = {}
    for i, item in enumerate(items):
        item_words = bare_words(item)
        if len(item_words) < shortest: continue
        k = min(n, len(item_words))
        runs = set(runs_of(item_words, k))
        found = runs.intersection(runs_of(words, k))
        if found: res[i] = len(found) / len(runs)
    return res

def in_a_run(words, i, runs, k):
    "Say whether the word at `i` belongs to one of the runs of `k` words."
    first = max(0, i - k + 1)
    last = min(i, len(words) - k)
    return any(tuple(words[start:start + k]) in runs for start in range(first, last + 1))

class RandomTexts:
    "Items and texts of few words; half of the texts hide an item."
    def __init__(self, seed):
        self.rng = random.Random(seed)
        n_more = self.rng.choice([2, 60])
        more = [f'w{i}' for i in range(n_more)]
        self.vocabulary = ['the', 'cat', 'Sat', 'on', 'été', '東', 'a1', *more]
        self.n, self.shortest = self.rng.choice([(3, 2), (5, 3), (13, 8), (4, 9)])
        self.items = [self.some_words(20) for _ in range(30)]

    def words(self, k): return ' '.join(self.rng.choices(self.vocabulary, k=k))

    def some_words(self, most): return self.words(self.rng.randint(0, most))

    def text(self):
        text = self.some_words(60)
        if self.rng.random() >= .5: return text
        hidden = self.rng.choice(self.items).upper()
        return text + '\n— ' + hidden + '! ' + self.words(5)

@pytest.mark.parametrize('seed', range(30))
def test_finds_what_a_slow_search_finds(seed):
    some = RandomTexts(seed)
    search = Decontaminator(some.items, n=some.n, shortest=some.shortest, common=10**9)
    shortest = min(some.n, some.shortest)
    for _ in range(40):
        text = some.text()
        expected = naive(text, some.items, some.n, shortest)
        found = search.overlap(text)
        if not expected:
            assert found is None
            continue
        assert {i for _, i in found.found} == set(expected)
        assert found.name == 'eval'
        assert found.share == pytest.approx(max(expected.values()))
        assert found.share == pytest.approx(expected[found.item])

LONG = 'one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen'

def test_temperature_of_huge_sources():
    huge = {name: n * 1e12 for name, n in SIZES.items()}
    assert mixture_weights(huge, .05) == pytest.approx(mixture_weights(SIZES, .05)), 'no overflow'

def thirteen_from(k): return ' '.join(LONG.split()[k:k + 13])

def test_thirteen_words_and_not_twelve():
    search = Decontaminator([LONG])
    twelve = ' '.join(LONG.split()[2:14])
    assert search.overlap(twelve) is None
    assert search.overlap(thirteen_from(2)).share == pytest.approx(1 / 4)
    first = thirteen_from(0)
    assert search.overlap(f'x {first} x').words == first

def test_short_items_as_a_whole():
    items = [' '.join(LONG.split()[:k]) for k in range(5, 13)]
    search = Decontaminator(dict(short=items))
    assert search.short == dict(short=3)
    assert search.sizes == dict(short=8)
    assert search.overlap(items[2]) is None
    assert search.overlap(items[3]).item == 3
    assert {i for _, i in search.overlap(LONG).found} == {3, 4, 5, 6, 7}

@pytest.mark.parametrize('seed', range(30))
def test_the_words_shown_are_runs_of_the_item_in_the_text(seed):
    some = RandomTexts(seed)
    search = Decontaminator(some.items, n=some.n, shortest=some.shortest, common=10**9)
    for _ in range(40):
        text = some.text()
        got = search.overlap(text)
        if got is None: continue
        words_of_text = ' '.join(bare_words(text))
        assert f' {got.words} ' in f' {words_of_text} '
        words = got.words.split()
        item_words = bare_words(some.items[got.item])
        k = min(some.n, len(item_words))
        assert len(words) >= k
        runs = set(runs_of(item_words, k))
        assert all(in_a_run(words, i, runs, k) for i in range(len(words)))

def test_common_runs_are_left_out():
    prompt = 'Read the following passage with care and answer the question that is asked below it in one word'
    rng = random.Random(0)
    def item():
        words = rng.choices(LONG.split(), k=20)
        return prompt + ' ' + ' '.join(words)
    items = [item() for _ in range(30)]
    assert Decontaminator(items, common=100).overlap(prompt) is not None
    search = Decontaminator(items)
    assert search.overlap(prompt) is None
    assert search.left_out == 6
    for i, text in enumerate(items): assert search.overlap(text).item == i

def test_copies_of_one_item_are_one_item():
    found = Decontaminator([LONG] * 50).overlap(LONG)
    assert found is not None
    assert len(found.found) == 50

def test_least():
    text = ' '.join(LONG.split()[:14])
    assert Decontaminator([LONG], least=.5).overlap(text).share == .5
    assert Decontaminator([LONG], least=.51).overlap(text) is None

def test_only_short_items_is_no_search_and_no_error():
    search = Decontaminator(['too short'])
    assert search.overlap('too short') is None
    assert contamination([None], search)['eval'] == dict(items=1, short=1, found=0, documents=0)

def test_the_report_of_two_sets():
    more = 'seventeen ' + LONG
    search = Decontaminator(dict(a=[LONG, 'too short'], b=[Doc(LONG, 'x'), more]))
    overlaps = [search.overlap(text) for text in (LONG, 'nothing', LONG.upper(), more)]
    assert isinstance(overlaps[0], Overlap)
    assert contamination(overlaps, search) == dict(
        a=dict(items=2, short=1, found=1, documents=3),
        b=dict(items=2, short=0, found=2, documents=3),
    )

def test_the_share_of_a_document_is_a_filter():
    search = Decontaminator(dict(a=[LONG, 'too short'], b=[Doc(LONG, 'x'), 'seventeen ' + LONG]))
    assert contaminated(Doc('nothing', 'n'), search) is None
    filter_by_share = partial(contaminated, against=search)
    assert filter_by_share(Doc(LONG, 'l')) == 1.
    assert contaminated.__name__ == 'contaminated'

def test_files(tmp_path):
    rows = [
        dict(text=LONG),
        dict(question='What is it?', choices=['a'], answer='A cat.'),
    ]
    lines = '\n'.join(map(json.dumps, rows))
    plain = tmp_path/'quiz.jsonl'
    plain.write_text(lines)
    packed = tmp_path/'quiz.jsonl.gz'
    with gzip.open(packed, 'wt') as f: f.write(lines)
    expected = dict(quiz=[LONG, 'What is it?\nA cat.'])
    for source in (plain, str(packed), dict(quiz=plain)): assert eval_items(source) == expected

def test_the_bad_line_of_a_file_is_named(tmp_path):
    bad = tmp_path/'bad.jsonl'
    bad.write_text('{"text": "a"}\n{"text": ')
    with pytest.raises(UserError, match='line 2'): eval_items(bad)

def test_items_that_are_none():
    for bad in ('nowhere.jsonl', [], {}, dict(a=[]), [None], dict(a=[['x']])):
        with pytest.raises(UserError): Decontaminator(bad)
    with pytest.raises(UserError): Decontaminator([LONG], least=2)

def test_the_same_in_every_process():
    items = [LONG, 'été 東京 ' * 9]
    search = Decontaminator(dict(a=items))
    there = output_of('decontaminator', pickle.dumps(search).hex(), *items, PYTHONHASHSEED='7')
    sent, made, overlap = there.split(maxsplit=2)
    assert sent == made == search.fingerprint
    assert overlap.strip() == str(search.overlap(LONG))

def test_other_items_or_options_have_another_fingerprint():
    items = [LONG, 'été 東京 ' * 9]
    searches = [Decontaminator(dict(a=items)), Decontaminator(dict(a=[LONG])), Decontaminator(dict(a=items), n=12),
                Decontaminator(dict(b=items))]
    assert len({search.fingerprint for search in searches}) == 4

def test_memory_is_that_of_the_evaluation_set():
    rng = random.Random(0)
    words = LONG.split()
    items = [' '.join(rng.choices(words, k=100)) for _ in range(500)]
    search = Decontaminator(items)
    before = len(pickle.dumps(search))
    for _ in range(50): search.overlap(noise(rng, 2000))
    after = len(pickle.dumps(search))
    assert after == before
    assert after < 64 * len(search.keys) + 100_000


# real text

def open_lines(path): return gzip.open(path, 'rt') if path.suffix == '.gz' else open(path)

def strings(row): return [value for value in row.values() if isinstance(value, str)]

def dialogues(n):
    "Return the longest text of each of the first rows."
    rows = []
    for path in sorted((DATA/'dialogsum').rglob('*dev*.jsonl*')):
        with open_lines(path) as f: rows += map(json.loads, f)
    return [max(strings(row), key=len) for row in rows[:n]]

def long_book(n):
    "Return the first text of more than `n` characters."
    path = sorted((DATA/'gutenberg_books').rglob('*.jsonl.gz'))[0]
    with open_lines(path) as f:
        for line in f:
            for text in strings(json.loads(line)):
                if len(text) > n: return text

def otherwise_set(text, rng):
    "Return half of the texts in another typography."
    if rng.random() >= .5: return text
    return text.replace("'", '’').replace('. ', ' –\n').upper()

@needs_data
def test_real_items_in_real_documents():
    "Find every dialogue hidden in a web page, with another typography; leave pages without any alone."
    items = dialogues(200)
    if not items: pytest.skip('no dialogues in LLMBOOK_DATA')
    book = long_book(300_000)
    pages = [book[i:i + 3000] for i in range(0, 300_000, 3000)]
    search = Decontaminator(dict(dialogues=items))
    rng = random.Random(0)
    for i, (page, item) in enumerate(zip(pages * 2, items)):
        hidden = otherwise_set(item, rng)
        found = search.overlap(page[:1500] + '\n' + hidden + '\n' + page[1500:])
        if len(bare_words(item)) < 8: continue
        assert found
        assert ('dialogues', i) in found.found
    assert not any(map(search.overlap, pages))
