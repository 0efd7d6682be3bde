"""Deduplication: against slow and certain answers, in any batch, process and order, with little memory."""
import gzip, pickle, random, tracemalloc
from collections import Counter, defaultdict
from itertools import combinations
import numpy as np
import pytest
from real_data import DATA, needs_data
from run_program import output_of
from llmbook.core import UserError
from llmbook.dedup import near
from llmbook.dedup.decontaminate import Decontaminator
from llmbook.dedup.minhash import Signer, choose_bands, found_by_bands, jaccard, run_hashes, shingles, word_hashes
from llmbook.dedup.near import Deduper, dedup, find_duplicates
from llmbook.dedup.repeats import (
    RepeatCounter, cut_spans, drop_repeats, line_keys, remove_repeats, repeated_keys, repeated_spans, window_keys,
    _smallest
)
from llmbook.read.doc import Doc
from llmbook.read.embedded import embedded_corpus

TRICKY = ['', ' ', '\n\n\t', '...', 'one', 'a b c d', 'a b c d e', 'A  b\nc\x00d\x7fe', 'x' * 5000, 'ab ' * 5000,
          '日本語の文章は空白がない。' * 9, 'İstanbul ﬁ ß \u2028 \x85 \xa0 end', '\ud800 lone surrogate \udfff',
          'naïve café ' * 30, '👩‍👩‍👧 family 👩‍👩‍👧', 'word ' * 4 + '長' * 400]
GOLDEN = 'a851dc92d2a68922' # of the exact hashes that tests/programs/signatures.py prints, on every machine

@pytest.fixture(scope='module')
def docs(): return list(embedded_corpus(2_000_000))

@pytest.fixture(scope='module')
def texts(docs): return [d.text for d in docs]

def words_of(text):
    "Return the words of a text in lower case, in bytes."
    to_space = bytes(max(i, 32) for i in range(256))
    data = text.lower().encode('utf-8', 'replace').translate(to_space)
    return [w for w in data.split(b' ') if w]

def same(a, b):
    columns = ('keep', 'cluster', 'kept_for', 'reason', 'pairs')
    return all(np.array_equal(getattr(a, k), getattr(b, k)) for k in columns)

def signed(texts, **kwargs): return {**Signer(**kwargs).sign(texts), 'text_of': texts.__getitem__}


# --- numbers for words ---

def test_equal_words_have_equal_numbers_and_others_have_not(texts):
    seen = {}
    for text in [*texts[:150], *TRICKY]:
        words = words_of(text)
        numbers, _, sizes = word_hashes(text.lower().encode('utf-8', 'replace'))
        assert sizes.tolist() == [len(word) for word in words]
        for word, number in zip(words, numbers.tolist()):
            assert seen.setdefault(word, number) == number
    assert len(seen) > 5000
    assert len(set(seen.values())) == len(seen)

def variants(word):
    "Return words that differ from a word by a byte, by their length, or by the order of their blocks."
    blocks_swapped = word[8:16] + word[:8] + word[16:]
    res = [word[:-1], word + b'!', blocks_swapped]
    for i in {0, len(word) // 2, len(word) - 1}:
        changed = bytearray(word)
        changed[i] ^= 128
        res.append(bytes(changed))
    return [v for v in res if v and v != word]

def test_words_of_every_length_count_to_the_last_byte():
    for n in [*range(1, 40), 63, 64, 65, 200, 4096]:
        word = bytes(33 + i % 90 for i in range(n))
        x, _, _ = word_hashes(b' '.join([word, *variants(word), word]))
        assert x[0] == x[-1]
        assert len(set(x.tolist())) == len(x) - 1

def polynomial(run, P=0x9E3779B97F4A7C15 | 1):
    "Return the number of a run of words, modulo 2**64, by Horner's rule."
    total = 0
    for v in run: total = total * P + v
    return total % 2**64

def test_runs_against_whole_numbers():
    x = np.random.default_rng(0).integers(0, 1 << 63, 40, np.uint64)
    for n in range(1, 41):
        by_hand = [polynomial(x[i:i + n].tolist()) for i in range(41 - n)]
        scrambled = run_hashes(np.array(by_hand, np.uint64), 1)
        assert np.array_equal(run_hashes(x, n), scrambled)
    assert len(run_hashes(x, 41)) == 0

def plain_shingles(text, n=5):
    words = words_of(text)
    if not words: return set()
    return {tuple(words[i:i + n]) for i in range(max(len(words) - n + 1, 1))}

def is_short(text):
    "Return whether a text has few characters, and no more than 20 for each word."
    return len(text) < 5000 and len(text) <= 20 * len(words_of(text))

def plain_jaccard(a, b):
    "Return the share of the members of two sets that both have; 0 for two empty sets."
    n_all = len(a | b)
    return len(a & b) / max(n_all, 1)

def test_similarity_is_that_of_real_sets_of_words(texts):
    few = [text for text in [*texts[:100], *TRICKY] if is_short(text)]
    real = [plain_shingles(text) for text in few]
    ours = [shingles(text) for text in few]
    assert [len(s) for s in real] == [len(s) for s in ours]
    for i, j in combinations(range(len(few)), 2):
        assert jaccard(ours[i], ours[j]) == plain_jaccard(real[i], real[j])


# --- signatures ---

def test_a_signature_does_not_depend_on_company_or_batch(texts):
    many_words = ['w%d ' % i * 70_000 for i in range(2)]
    some = texts[:40] + TRICKY + many_words + texts[40:60]
    together = Signer().sign(iter(some))
    alone = [Signer().sign([text]) for text in some]
    for name in together:
        column = np.concatenate([signature[name] for signature in alone])
        assert np.array_equal(together[name], column)

def test_signatures_are_whole_numbers_and_lengths(texts):
    some = texts[:40] + TRICKY
    signatures = Signer().sign(some)
    assert signatures['exact'].dtype == np.uint64
    assert signatures['bands'].dtype == np.uint64
    assert signatures['length'].tolist() == [len(text) for text in some]

def test_signatures_of_no_texts_have_their_shapes():
    shapes = {k: (v.shape, v.dtype) for k, v in Signer().sign([]).items()}
    assert shapes == dict(exact=((0, 2), np.uint64), bands=((0, 25), np.uint64), length=((0,), np.int64))

def test_the_same_numbers_in_every_process():
    first = output_of('signatures', PYTHONHASHSEED='0', RAYON_NUM_THREADS='1')
    second = output_of('signatures', PYTHONHASHSEED='1', RAYON_NUM_THREADS='2')
    assert first == second
    assert first.split()[0] == GOLDEN

def test_a_signer_is_small_and_travels():
    s = Signer(.5, 64, 3)
    t = pickle.loads(pickle.dumps(s))
    assert vars(t) == vars(s)
    assert len(pickle.dumps(s)) < 200
    for bad in (dict(threshold=0), dict(threshold=1.01), dict(n=0), dict(threshold=.05)):
        with pytest.raises(UserError): Signer(**bad)

def same_groups(first, second):
    "Return whether two lists of labels divide their places alike."
    by_first = defaultdict(list)
    by_second = defaultdict(list)
    for i, label in enumerate(first): by_first[label].append(i)
    for i, label in enumerate(second): by_second[label].append(i)
    return sorted(by_first.values()) == sorted(by_second.values())

def test_exact_means_equal_words():
    rng = random.Random(0)
    def few_words(): return ' '.join(rng.choices(['alpha', 'beta', 'gamma', 'delta'], k=rng.randrange(9)))
    def other_spaces(text):
        space = rng.choice(['\n', '  ', '\t '])
        end = rng.choice(['', ' '])
        return text.upper().replace(' ', space) + end
    some = [few_words() for _ in range(300)]
    some += [other_spaces(text) for text in some]
    some += TRICKY
    keys = [tuple(key) for key in Signer().sign(some)['exact'].tolist()]
    words = [tuple(words_of(text)) for text in some]
    assert same_groups(keys, words)

def swapped(words, a, b):
    res = list(words)
    res[a] = words[b]
    res[b] = words[a]
    return ' '.join(res)

def test_exact_sees_two_words_change_places_however_far_apart():
    words = [f'w{i}' for i in range(140_000)]
    versions = [' '.join(words)]
    for a, b in ((0, 65_536), (5, 131_077), (1, 2)): versions.append(swapped(words, a, b))
    keys = Signer().sign(versions)['exact']
    assert len(set(map(tuple, keys.tolist()))) == 4

def random_set(rng, n): return rng.integers(1, 1 << 63, n, np.uint64)

def pair_of_sets(rng, n_shared, n_own):
    "Return the members of two sets in a row; each has `n_shared` of both and `n_own` of its own."
    shared = random_set(rng, n_shared)
    return [shared, random_set(rng, n_own), shared, random_set(rng, n_own)]

@pytest.mark.parametrize('n_shared, n_own', [(80, 20), (60, 40), (40, 60)])
def test_bands_find_as_many_as_the_formula_says(n_shared, n_own):
    "Sign two thousand pairs of sets with a known similarity."
    rng = np.random.default_rng(0)
    signer = Signer()
    sets = []
    for _ in range(2000): sets += pair_of_sets(rng, n_shared, n_own)
    offsets = np.arange(4001) * (n_shared + n_own)
    bands = signer._bands(np.concatenate(sets), offsets)
    agree = (bands[::2] == bands[1::2]).any(1)
    similarity = n_shared / (n_shared + 2 * n_own)
    expected = found_by_bands(similarity, signer.bands, signer.rows)
    assert abs(agree.mean() - expected) < .04

def test_the_default_bands_find_nearly_all():
    assert choose_bands() == (25, 5)
    assert found_by_bands(.8, 25, 5) > .9999


# --- duplicates ---

def components(sets, threshold):
    label = list(range(len(sets)))
    for i, j in combinations(range(len(sets)), 2):
        if label[i] == label[j] or jaccard(sets[i], sets[j]) < threshold: continue
        first, last = sorted((label[i], label[j]))
        label = [first if old == last else old for old in label]
    return label

@pytest.mark.parametrize('threshold', [.5, .8])
def test_against_every_pair(texts, threshold):
    some = [text[:6000] for text in texts[:350]]
    sets = [shingles(text) for text in some]
    found = find_duplicates(**signed(some, threshold=threshold), threshold=threshold)
    assert found.cluster.tolist() == components(sets, threshold)
    n_kept = found.keep.sum()
    assert 20 < n_kept < 350
    assert len(found.pairs) == 350 - n_kept

@pytest.mark.parametrize('threshold', [.5, .8])
def test_a_pair_has_its_similarity(texts, threshold):
    some = [text[:6000] for text in texts[:350]]
    links = find_duplicates(**signed(some, threshold=threshold), threshold=threshold).pairs.tolist()
    near_links = [link for link in links if link[2] < 1]
    assert near_links
    for _, _, similarity in links: assert similarity >= threshold
    for i, j, similarity in near_links:
        assert similarity == jaccard(shingles(some[i]), shingles(some[j]))

def lines_of(path):
    "Return the lines of a file, or of a .gz file, that are not blank."
    data = path.read_bytes()
    if path.suffix == '.gz': data = gzip.decompress(data)
    return [line for line in data.decode().splitlines() if line.strip()]

def read_articles(file):
    "Return the names and the bodies of a file of articles."
    articles = [line.split(' ', 1) for line in lines_of(file)]
    ids = [id for id, _ in articles]
    bodies = [body for _, body in articles]
    return ids, bodies

def true_pairs(file):
    "Return the pairs of near duplicates that were published for a file of articles."
    name = file.name.removesuffix('.gz').replace('.train', '.truth')
    return {frozenset(line.split()) for line in lines_of(file.with_name(name))}

@pytest.mark.parametrize('name,n_pairs', [('articles_100.train', 5), ('articles_1000.train.gz', 10)])
@needs_data
def test_published_near_duplicates(name, n_pairs):
    file = DATA/'minhash_near_duplicates'/name
    ids, bodies = read_articles(file)
    found = find_duplicates(**signed(bodies, threshold=.5), threshold=.5)
    pairs = {frozenset((ids[i], ids[j])) for i, j, _ in found.pairs.tolist()}
    assert len(pairs) == n_pairs
    assert pairs == true_pairs(file)

@pytest.fixture(scope='module')
def repeating(texts): return (texts + texts[:30])[:300] + texts[:30]

def test_it_does_not_matter_whether_sets_are_remembered(repeating):
    s = signed(repeating)
    assert same(find_duplicates(**s), find_duplicates(**s, memory=1))

@pytest.mark.parametrize('cuts', [[1, 2, 299], [100], [*range(10, 330, 10)]], ids=len)
def test_it_does_not_matter_how_the_numbers_are_cut(repeating, cuts):
    want = find_duplicates(**signed(repeating))
    starts = [0] + cuts
    ends = cuts + [len(repeating)]
    parts = [Signer().sign(repeating[a:z]) for a, z in zip(starts, ends)]
    columns = {k: [p[k] for p in parts] for k in parts[0]}
    assert same(want, find_duplicates(**columns, text_of=repeating.__getitem__))

def test_it_does_not_matter_how_the_numbers_are_stored(repeating, tmp_path):
    want = find_duplicates(**signed(repeating))
    maps = {}
    for k, v in Signer().sign(repeating).items():
        f = tmp_path/f'{k}.npy'
        np.save(f, v)
        maps[k] = np.load(f, mmap_mode='r')
    assert same(want, find_duplicates(**maps, text_of=repeating.__getitem__))

def test_texts_are_fetched_for_candidates_only(texts):
    different = [t for t, keep in zip(texts, dedup(enumerate(texts)).keep) if keep]
    fetched = Counter()
    def text_of(i):
        fetched[i] += 1
        return different[i]
    r = find_duplicates(**Signer().sign(different), text_of=text_of)
    assert r.keep.all()
    assert len(fetched) < len(different) / 3
    assert max(fetched.values()) == 1

def filled(k, n=100): return ' '.join(f'part{i}' if i % 25 else f'part{i}x{k}' for i in range(n))

def test_work_on_a_crowded_bucket_is_linear(monkeypatch):
    calls = Counter()
    def counting_jaccard(a, b):
        calls['all'] += 1
        return jaccard(a, b)
    monkeypatch.setattr(near, 'jaccard', counting_jaccard)
    for n in (300, 600):
        calls.clear()
        r = find_duplicates(**signed([filled(k) for k in range(n)]), limit=5)
        assert r.keep.all()
        assert 0 < calls['all'] <= 40 * n # eight times the limit for each

def test_copies_are_found_in_a_crowd():
    forms = [filled(k) for k in range(300)] + [filled(k) + f' remark {k}' for k in range(300)]
    r = find_duplicates(**signed(forms), limit=20)
    assert r.cluster[300:].tolist() == list(range(300))

def test_bridges_in_a_large_bucket():
    "Find one cluster in a chain whose ends are not alike, whatever the order."
    words = [f'word{i}' for i in range(300)]
    new = [f'new{i}' for i in range(300)]
    chain = [' '.join(new[:k] + words[k:]) for k in range(0, 120, 2)]
    first = shingles(chain[0])
    last = shingles(chain[-1])
    assert jaccard(first, last) < .5
    for seed in range(3):
        some = random.Random(seed).sample(chain, len(chain))
        r = find_duplicates(**signed(some), limit=4)
        assert set(r.cluster.tolist()) == {0}

@pytest.fixture
def versions():
    base = ' '.join(f'word{i}' for i in range(200))
    return signed([base, base + ' and more', base.upper(), 'another', base + ' and mine'])

def test_rules(versions):
    assert find_duplicates(**versions).kept_for.tolist() == [1, 1, 1, 3, 1]
    assert find_duplicates(**versions, rule=max).kept_for.tolist() == [4, 4, 4, 3, 4]
    first = find_duplicates(**versions, rule='first')
    assert first.kept_for.tolist() == [0, 0, 0, 3, 0]
    assert first.reason.tolist() == ['', 'near_duplicate', 'exact_duplicate', '', 'near_duplicate']

def test_what_does_not_fit_is_refused(versions):
    s, bands = versions, versions['bands']
    with pytest.raises(UserError, match='one of'): find_duplicates(**s, rule=lambda members: 3)
    with pytest.raises(UserError, match='longest'): find_duplicates(**s, rule='shortest')
    for other in (bands[:3], [bands[:3], bands[3:, :9]]):
        with pytest.raises(UserError, match='sign them again'):
            find_duplicates(**{**s, 'bands': other})

def test_nothing():
    as_lists = find_duplicates([], [], [], None)
    exact = np.empty((0, 2), np.uint64)
    bands = np.empty((0, 25), np.uint64)
    as_arrays = find_duplicates(exact, bands, [], None)
    for r in (as_lists, as_arrays):
        assert len(r.keep) == 0
        assert len(r.pairs) == 0

def test_hardly_anything():
    named = [(str(i), t) for i, t in enumerate(TRICKY)]
    r = dedup(named * 2)
    n = len(TRICKY)
    assert r.cluster[n:] == r.cluster[:n]
    assert r.cluster[:3] == [0, 0, 0]
    assert r.cluster[3:n] == list(range(3, n))

def random_pairs(n):
    "Return random signatures of `n` texts."
    rng = np.random.default_rng(0)
    exact = rng.integers(0, 1 << 62, (n, 2), np.uint64)
    bands = rng.integers(0, 1 << 62, (n, 25), np.uint64)
    return dict(exact=exact, bands=bands, length=np.zeros(n, np.int64))

def test_progress_rises_to_one():
    seen = []
    find_duplicates(**random_pairs(50_000), text_of=None, progress=seen.append)
    assert seen[-1] == 1
    assert seen == sorted(seen)

def test_memory_stays_small():
    n = 50_000
    signatures = random_pairs(n)
    tracemalloc.start()
    find_duplicates(**signatures, text_of=None)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 130 * n

def add_all(deduper, named):
    for id, text in named: deduper.add(id, text)

def test_a_deduper_takes_more_after_a_result(texts):
    named = [(f'{i:03}', text) for i, text in enumerate(texts[:20] * 2)]
    deduper = Deduper(batch=7)
    add_all(deduper, named[:20])
    assert len(deduper.result().keep) == 20
    add_all(deduper, named[20:])
    assert deduper.result() == dedup(named)

def test_the_second_copy_of_all_texts_goes(texts):
    named = [(f'{i:03}', text) for i, text in enumerate(texts[:20] * 2)]
    found = dedup(named)
    assert sum(found.keep) <= 20
    assert found.cluster[20:] == found.cluster[:20]


# --- repeated lines ---

def counted(folder, keys, name='0', **kwargs):
    "Count the keys of documents 0, 1, ... in a folder."
    c = RepeatCounter(folder, name, **kwargs)
    for i, k in enumerate(keys): c.add(i, k)
    c.flush()
    return c

def owners(keys):
    "Return the first list that holds each key."
    owner = {}
    for i, row in enumerate(keys):
        for k in row.tolist(): owner.setdefault(k, i)
    return owner

def letters(line): return sum(c.isalnum() if c.isascii() else len(c.encode()) for c in line)

def naive_lines(texts, docs, shortest=30, cut='\n'):
    "Return the lines, as words, that are in `docs` documents or more, with a dictionary."
    n = Counter()
    for t in texts:
        lines = {' '.join(part.lower().split()) for part in t.split(cut)}
        n.update(lines)
    return {line for line, k in n.items() if k >= docs and letters(line) >= shortest}

RARE_SPACES = {'\x85', '\xa0', '\u3000'}

@pytest.fixture
def common(texts): return [text for text in texts if not RARE_SPACES & set(text)]

@pytest.mark.parametrize('cut', ['\n', '\n\n'])
def test_lines_against_a_dictionary(common, tmp_path, cut):
    counted(tmp_path, [line_keys(text, cut=cut) for text in common])
    keys, _ = repeated_keys(tmp_path, 2)
    want = naive_lines(common, 2, cut=cut)
    assert 30 < len(want)
    assert set(keys.tolist()) == {int(line_keys(line)[0]) for line in want}
    assert (np.diff(keys) > 0).all()

@pytest.mark.parametrize('cut', ['\n', '\n\n'])
def test_the_first_document_of_a_line_is_known(common, tmp_path, cut):
    all_keys = [line_keys(text, cut=cut) for text in common]
    counted(tmp_path, all_keys)
    keys, first = repeated_keys(tmp_path, 2)
    owner = owners(all_keys)
    assert len(keys)
    assert first.tolist() == [owner[key] for key in keys.tolist()]

def test_a_key_for_each_line():
    for t in TRICKY + ['a\r\nb\r\n', '\n', 'x\n\ny']:
        for cut in ('\n', '\n\n'): assert len(line_keys(t, 0, cut)) == len(t.split(cut))

def test_lines_of_equal_words_have_equal_keys():
    long = 'the same words in another place of the page'
    a, b, c, d = line_keys(f'{long}\n  {long.upper()} \n{long} .\n{"-" * 90}')
    assert a == b
    assert b != c
    assert a > 0
    assert d == 0

def random_keys(rng):
    "Return up to 60 keys out of 400 that are spread over all numbers; 0 is one of them."
    few = rng.integers(0, 400, rng.integers(0, 60))
    return few.astype(np.uint64) * np.uint64(2**55 + 12345)

def in_documents(lists, at_least):
    "Return the keys, 0 apart, that are in this many lists or more, in order."
    n = Counter()
    for row in lists: n.update(set(row.tolist()) - {0})
    return sorted(key for key, times in n.items() if times >= at_least)

@pytest.mark.parametrize('workers,memory,memory_to_add', [(1, 1 << 20, 1 << 20), (3, 20_000, 30_000), (7, 1, 90_000)])
def test_counting_is_the_same_for_any_workers_and_budget(tmp_path, workers, memory, memory_to_add):
    rng = np.random.default_rng(0)
    lists = [random_keys(rng) for _ in range(300)]
    want = in_documents(lists, 22)
    assert 50 < len(want) < 350

    counters = [RepeatCounter(tmp_path, f'w{k}', memory) for k in range(workers)]
    any_order = np.random.default_rng(workers).permutation(300).tolist()
    for i in any_order: counters[i % workers].add(i, lists[i])
    for counter in counters: counter.flush()
    keys, first = repeated_keys(tmp_path, 22, memory_to_add)
    owner = owners(lists)
    assert keys.tolist() == want
    assert first.tolist() == [owner[key] for key in want]

def test_a_worker_that_starts_again_counts_once(tmp_path):
    k = np.arange(1, 9, dtype=np.uint64)
    for _ in range(3): counted(tmp_path, [k, k[:0]], 'w', memory=1)
    assert len(repeated_keys(tmp_path, 2)[0]) == 0
    counted(tmp_path/'none', [])
    assert len(repeated_keys(tmp_path/'none', 2)[0]) == 0

def test_a_damaged_run_is_noticed(tmp_path):
    counted(tmp_path, [np.arange(1, 9, dtype=np.uint64)])
    f = next(tmp_path.glob('*.run'))
    f.write_bytes(f.read_bytes()[:-1])
    with pytest.raises(UserError, match='count that part again'): repeated_keys(tmp_path, 2)

LINE = 'A line of many words that is on every single page of the site.'

@pytest.fixture
def site():
    pages = [Doc(f'Page {i} begins.\n\n{LINE}\n\nPage {i} ends.', f'd{i}') for i in range(5)]
    pages[3].text += f'\n{LINE}'
    programs = [Doc(f'import x\n# {LINE}\n{LINE}', f'c{i}', kind='code') for i in range(4)]
    return pages + programs

def test_what_is_removed_and_what_stays(site):
    out, _ = drop_repeats(site)
    assert out[0] is site[0]
    for i in range(1, 5): assert out[i].text == f'Page {i} begins.\n\nPage {i} ends.'
    for program, old in zip(out[5:], site[5:], strict=True): assert program is old
    assert LINE in site[1].text # the documents that were given are not changed

def test_what_is_removed_is_counted(site):
    out, total = drop_repeats(site)
    n_bytes = sum(d.nbytes for d in site) - sum(d.nbytes for d in out)
    assert total == dict(lines=5, bytes=n_bytes, documents=4)
    _, total = drop_repeats(out)
    assert total['lines'] == 0

def test_options_of_removal(site):
    everywhere, total = drop_repeats(site, keep_first=False)
    assert LINE not in everywhere[0].text
    assert total['lines'] == 6
    _, total = drop_repeats(site, at_least=6)
    assert total['lines'] == 0
    out, _ = drop_repeats([])
    assert out == []

def some_repeated(texts):
    "Return every third key of the lines of these texts, as if they had been found to repeat."
    third = [line_keys(text)[::3] for text in texts]
    keys = np.unique(np.concatenate(third))
    return keys[keys > 0]

def test_bytes_are_accounted_for(texts):
    keys = some_repeated(texts[:100])
    for text in texts[:100]:
        new, n, n_bytes = remove_repeats(text, keys)
        assert len(text.encode()) - len(new.encode()) == n_bytes
        assert (n > 0) == (new != text)
        assert remove_repeats(new, keys) == (new, 0, 0)

def test_half_a_pair_is_in_no_repeated_line(texts):
    _, n, _ = remove_repeats('\ud800 ' + 'many letters that are not repeated', some_repeated(texts[:100]))
    assert n == 0


# --- repeated passages ---

def plain_smallest(h, w):
    if not len(h): return []
    n_windows = max(len(h) - w + 1, 1)
    return [h[i:i + w].min() for i in range(n_windows)]

def test_the_smallest_of_neighbours():
    rng = np.random.default_rng(0)
    for n in (0, 1, 5, 49, 50, 51, 400):
        h = rng.integers(0, 99, n, np.uint64)
        for w in (1, 2, 7, 50): assert _smallest(h, w).tolist() == plain_smallest(h, w)

def passages(texts, folder, n, sample):
    counted(folder, [window_keys(t, n, sample) for t in texts])
    keys, first = repeated_keys(folder, 2)
    return [repeated_spans(t, i, keys, first, texts.__getitem__, n) for i, t in enumerate(texts)]

def random_words(rng, n): return [f'w{rng.randrange(10**9)}' for _ in range(n)]

def plant(sizes, certain):
    """Return texts that each quote a passage of an earlier one, in capitals, and these passages.

    The passage of a text is None if it has fewer than `certain` words."""
    rng = random.Random(0)
    own = [random_words(rng, 300)]
    texts = [' '.join(own[0])]
    planted = [None]
    for _ in range(1, 40):
        old = rng.choice(own)
        size = rng.choice(sizes)
        at = rng.randrange(len(old) - size)
        passage = ' '.join(old[at:at + size])
        before = ' '.join(random_words(rng, rng.randrange(40)))
        own.append(random_words(rng, rng.randrange(61, 90)))
        after = ' '.join(own[-1])
        text = f'{before}  {passage.upper()}  {after}'
        texts.append(text.strip())
        planted.append(passage if size >= certain else None)
    return texts, planted

def test_planted_passages_are_found_with_their_edges(tmp_path):
    n, sample = 10, 8
    certain = n + sample - 1 # words of a passage that is found for certain
    texts, planted = plant([n - 1, certain, certain + 1, 60], certain)
    found = passages(texts, tmp_path, n, sample)
    for text, passage, spans in zip(texts, planted, found, strict=True):
        said = [text[a:z].lower() for a, z in spans]
        if passage is None: assert said == []
        else:
            assert said == [passage]
            assert passage not in cut_spans(text, spans).lower()

def is_said_before(words, earlier):
    said = ' '.join(words)
    return any(said in text for text in earlier)

def test_every_span_is_in_an_earlier_document(texts, tmp_path):
    some = [' '.join(text.lower().split()) for text in texts if text.isascii()]
    all_spans = passages(some, tmp_path, 50, 50)
    assert sum(map(len, all_spans)) > 20
    for i, spans in enumerate(all_spans):
        for start, end in spans:
            words = some[i][start:end].split()
            assert len(words) >= 50
            assert is_said_before(words[:50], some[:i])
            assert is_said_before(words[-50:], some[:i])

def test_spans_are_in_order_and_apart(texts, tmp_path):
    for spans in passages(texts, tmp_path, 50, 50):
        bounds = [x for span in spans for x in span]
        assert all(x < y for x, y in zip(bounds, bounds[1:]))

def test_cutting():
    assert cut_spans('one two three', []) == 'one two three'
    assert cut_spans(' one two three ', [(5, 8)]) == 'one\n\nthree'
    assert cut_spans('one', [(0, 3)]) == ''


# scripts without spaces

HAN = '磨坊主清晨就去了水因为下雨之后河涨高轮子终于又转起来他的女儿送面包一点奶酪和壶从地窖里取出凉茶晚上们坐在屋前望着谈很久收成冬天事情'
THAI = ['กา', 'บ้าน', 'น้ำ', 'แม่', 'เด็ก', 'ไป', 'มา', 'ดี', 'วัน', 'คืน', 'ข้าว', 'ปลา', 'ต้น', 'ไม้', 'ฝน', 'ลม',
        'เรือ', 'ทาง']
KANA = 'あいうえおかきくけこさしすせそたちつてとなにぬねのはひふへほまみむめも'

def in_lines(parts, size):
    "Join characters to lines of `size`."
    lines = [''.join(parts[i:i + size]) for i in range(0, len(parts), size)]
    return '\n'.join(lines)

@pytest.mark.parametrize('letters', [HAN, THAI, KANA], ids=['Han', 'Thai', 'Hiragana'])
@pytest.mark.parametrize('line', [5, 12, 1000])
def test_a_text_without_spaces_and_its_edited_copy(letters, line):
    rng = random.Random(3)
    pieces = rng.choices(letters, k=720)
    copy = list(pieces)
    for k in range(60, 720, 120): copy[k] = letters[0]
    versions = dict(a=pieces, b=copy, c=rng.choices(letters, k=720))
    found = dedup((name, in_lines(version, line)) for name, version in versions.items())
    assert found.keep.count(True) == 2
    assert found.keep[2]

def test_a_text_of_two_scripts_is_compared_in_both():
    rng = random.Random(4)
    english = ' '.join(rng.choices('the mill stands by a river and turns its wheel'.split(), k=60))
    texts = [english + '\n' + ''.join(rng.choices(HAN, k=300)) for _ in range(2)]
    assert dedup(zip('ab', texts)).keep == [True, True]

def random_han(rng, n): return ''.join(rng.choices(HAN, k=n))

def spans_in_last(texts, folder):
    "Return the spans of the last text that stand in an earlier one."
    *_, spans = passages(texts, folder, 50, 50)
    return spans

def test_passages_without_spaces_are_found(tmp_path):
    rng = random.Random(5)
    passage = random_han(rng, 150)
    first = random_han(rng, 100) + '\n' + passage + '\n' + random_han(rng, 80)
    second = random_han(rng, 70) + passage + random_han(rng, 90)
    (start, end), = spans_in_last([first, second], tmp_path)
    assert second[start:end] == passage

@pytest.mark.parametrize('letters', [HAN, THAI, KANA], ids=['Han', 'Thai', 'Hiragana'])
def test_an_evaluation_item_without_spaces_is_found(letters):
    rng = random.Random(6)
    item = ''.join(rng.choices(letters, k=30))
    guard = Decontaminator({'exam': [item]})
    before, after = (''.join(rng.choices(letters, k=40)) for _ in range(2))
    assert guard.overlap(f'{before}。{item}。{after}').share == 1
    assert guard.overlap(before + after) is None

def numbered_words(start, n): return ' '.join(f'w{i}' for i in range(start, start + n))

def test_a_saved_search_finds_the_same(tmp_path):
    exam = dict(a=[numbered_words(start, 20) for start in range(0, 400, 20)], b=['too short'])
    guard = Decontaminator(exam)
    guard.save(tmp_path/'guard.npz')
    again = Decontaminator.load(tmp_path/'guard.npz')
    assert again.fingerprint == guard.fingerprint
    assert repr(again) == repr(guard)
    text = 'Said: ' + exam['a'][3]
    assert again.overlap(text) == guard.overlap(text)
