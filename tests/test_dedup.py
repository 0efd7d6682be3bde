"""Rooms 12.minhash, 13.dedup and 14.repeats: against slow and certain answers, in any batch, process and order, with little memory."""
import gzip, hashlib, os, pickle, random, subprocess, sys, tracemalloc
from collections import Counter, defaultdict
from itertools import combinations
from pathlib import Path
import numpy as np
import pytest
from llmbook.core import UserError
from llmbook.read.embedded import embedded_corpus
from llmbook.dedup.near import Deduper, dedup, find_duplicates
from llmbook.read.doc import Doc
from llmbook.dedup.minhash import Signer, choose_bands, found_by_bands, jaccard, run_hashes, shingles, word_hashes
from llmbook.dedup.repeats import (
    RepeatCounter, cut_spans, drop_repeats, line_keys, remove_repeats, repeated_keys, repeated_spans, window_keys,
    _smallest
)

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get('LLMBOOK_DATA', ROOT.parent/'shared/data'))
TRICKY = ['', ' ', '\n\n\t', '...', 'one', 'a b c d', 'a b c d e', 'A  b\nc\x00d\x7fe', 'x' * 5000, 'ab ' * 5000, '日本語の文章は空白がない。' * 9, 'İstanbul ﬁ ß \u2028 \x85 \xa0 end',
          '\ud800 lone surrogate \udfff', 'naïve café ' * 30, '👩‍👩‍👧 family 👩‍👩‍👧', 'word ' * 4 + '長' * 400]

@pytest.fixture(scope='module')
def docs(): return list(embedded_corpus(2_000_000))

@pytest.fixture(scope='module')
def texts(docs): return [d.text for d in docs]

def words_of(text): return [bytes(w) for w in text.lower().encode('utf-8', 'replace').translate(bytes(max(i, 32) for i in range(256))).split(b' ') if w]

def same(a, b): return all(np.array_equal(getattr(a, k), getattr(b, k)) for k in ('keep', 'cluster', 'kept_for', 'reason', 'pairs'))

def signed(texts, **kwargs): return {**Signer(**kwargs).sign(texts), 'text_of': texts.__getitem__}


# --- numbers for words ---

def test_equal_words_have_equal_numbers_and_others_have_not(texts):
    seen = {}
    for t in [*texts[:150], *TRICKY]:
        words, (x, start, size) = words_of(t), word_hashes(t.lower().encode('utf-8', 'replace'))
        assert size.tolist() == [len(w) for w in words]
        for w, h in zip(words, x.tolist()): assert seen.setdefault(w, h) == h
    assert len(set(seen.values())) == len(seen) > 5000

def test_words_of_every_length_count_to_the_last_byte():
    for n in [*range(1, 40), 63, 64, 65, 200, 4096]:
        w = bytes(33 + i % 90 for i in range(n))
        other = [w[:i] + bytes([w[i] ^ 128]) + w[i + 1:] for i in {0, n // 2, n - 1}] + [w[:-1], w + b'!', w[8:16] + w[:8] + w[16:]]
        x = word_hashes(b' '.join([w, *(o for o in other if o and o != w), w]))[0]
        assert x[0] == x[-1] and len(set(x.tolist())) == len(x) - 1

def test_runs_against_whole_numbers():
    P, x = 0x9E3779B97F4A7C15 | 1, np.random.default_rng(0).integers(0, 1 << 63, 40, np.uint64)
    for n in range(1, 41):
        byhand = [sum(int(v) * P**(n - 1 - k) for k, v in enumerate(x[i:i + n])) % 2**64 for i in range(41 - n)]
        assert np.array_equal(run_hashes(x, n), run_hashes(np.array(byhand, np.uint64), 1))
    assert len(run_hashes(x, 41)) == 0

def test_similarity_is_that_of_real_sets_of_words(texts):
    few = [t for t in [*texts[:100], *TRICKY] if len(t) < 5000 and len(t) <= 20 * len(words_of(t))]
    def true(t, n=5): w = words_of(t); return {tuple(w[i:i + n]) for i in range(max(len(w) - n + 1, 1))} if w else set()
    real, ours = [true(t) for t in few], [shingles(t) for t in few]
    assert [len(s) for s in real] == [len(s) for s in ours]
    for (a, x), (b, y) in combinations(zip(real, ours), 2): assert jaccard(x, y) == len(a & b) / max(len(a | b), 1)


# --- signatures ---

def test_a_signature_does_not_depend_on_company_or_batch(texts):
    some = texts[:40] + TRICKY + ['w%d ' % i * 70_000 for i in range(2)] + texts[40:60]
    together, alone = Signer().sign(iter(some)), [Signer().sign([t]) for t in some]
    for k in together: assert np.array_equal(together[k], np.concatenate([s[k] for s in alone]))
    assert together['exact'].dtype == together['bands'].dtype == np.uint64 and together['length'].tolist() == [len(t) for t in some]
    assert {k: (v.shape, v.dtype) for k, v in Signer().sign([]).items()} == dict(exact=((0, 2), np.uint64), bands=((0, 25), np.uint64), length=((0,), np.int64))

def test_the_same_numbers_in_every_process():
    code = ("import hashlib; from llmbook.dedup.minhash import Signer; s = Signer().sign(['One two three four five six seven.', 'antidisestablishmentarianism ' * 9])\n"
            "print(hashlib.sha256(s['exact'].astype('<u8').tobytes()).hexdigest()[:16], hashlib.sha256(s['bands'].astype('<u8').tobytes()).hexdigest())")
    runs = [subprocess.run([sys.executable, '-c', code], env={**os.environ, 'PYTHONHASHSEED': s, 'RAYON_NUM_THREADS': n}, capture_output=True, text=True, check=True).stdout
            for s, n in (('0', '1'), ('1', '2'))]
    assert runs[0] == runs[1] and runs[0].split()[0] == GOLDEN              # on every machine, too

GOLDEN = 'a851dc92d2a68922'

def test_a_signer_is_small_and_travels():
    s = Signer(.5, 64, 3)
    t = pickle.loads(pickle.dumps(s))
    assert vars(t) == vars(s) and len(pickle.dumps(s)) < 200
    for bad in (dict(threshold=0), dict(threshold=1.01), dict(n=0), dict(threshold=.05)):
        with pytest.raises(UserError): Signer(**bad)

def test_exact_means_equal_words():
    rng, words = random.Random(0), ['alpha', 'beta', 'gamma', 'delta']
    some = [' '.join(rng.choices(words, k=rng.randrange(9))) for _ in range(300)]
    some += [t.upper().replace(' ', rng.choice(['\n', '  ', '\t '])) + rng.choice(['', ' ']) for t in some] + TRICKY
    by_words, by_key = defaultdict(set), defaultdict(set)
    for i, (t, key) in enumerate(zip(some, Signer().sign(some)['exact'].tolist())): by_words[tuple(words_of(t))].add(i); by_key[tuple(key)].add(i)
    assert sorted(map(sorted, by_words.values())) == sorted(map(sorted, by_key.values()))

def test_exact_sees_two_words_change_places_however_far_apart():
    w = [f'w{i}' for i in range(140_000)]
    swapped = []
    for a, b in ((0, 65_536), (5, 131_077), (1, 2)): v = list(w); v[a], v[b] = v[b], v[a]; swapped.append(' '.join(v))
    keys = Signer().sign([' '.join(w), *swapped])['exact']
    assert len({tuple(k) for k in keys.tolist()}) == 4

def test_bands_find_as_many_as_the_formula_says():
    "Two thousand pairs of sets with a known similarity."
    rng, s = np.random.default_rng(0), Signer()
    for shared, own in ((80, 20), (60, 40), (40, 60)):
        sets = []
        for _ in range(2000):
            c = rng.integers(1, 1 << 63, shared, np.uint64)
            sets += [c, rng.integers(1, 1 << 63, own, np.uint64), c, rng.integers(1, 1 << 63, own, np.uint64)]
        b = s._bands(np.concatenate(sets), np.arange(4001) * (shared + own))
        p = found_by_bands(shared / (shared + 2 * own), s.bands, s.rows)
        assert abs((b[::2] == b[1::2]).any(1).mean() - p) < .04
    assert choose_bands() == (25, 5) and found_by_bands(.8, 25, 5) > .9999


# --- duplicates ---

def components(sets, threshold):
    label = list(range(len(sets)))
    for i, j in combinations(range(len(sets)), 2):
        if label[i] != label[j] and jaccard(sets[i], sets[j]) >= threshold:
            a, b = sorted((label[i], label[j])); label = [a if l == b else l for l in label]
    return label

@pytest.mark.parametrize('threshold', [.5, .8])
def test_against_every_pair(texts, threshold):
    some = [t[:6000] for t in texts[:350]]
    r = find_duplicates(**signed(some, threshold=threshold), threshold=threshold)
    assert r.cluster.tolist() == components([shingles(t) for t in some], threshold) and 20 < r.keep.sum() < 350
    assert len(r.pairs) == 350 - r.keep.sum() and all(s >= threshold for _, _, s in r.pairs.tolist())
    near = [(i, j, s) for i, j, s in r.pairs.tolist() if s < 1]
    assert near and all(jaccard(shingles(some[i]), shingles(some[j])) == s for i, j, s in near)

@pytest.mark.parametrize('n', [100, 1000])
@pytest.mark.skipif(not DATA.exists(), reason='needs LLMBOOK_DATA')
def test_published_near_duplicates(n):
    f = DATA/'minhash_near_duplicates'
    raw = (f/f'articles_{n}.train').read_text() if n == 100 else gzip.decompress((f/f'articles_{n}.train.gz').read_bytes()).decode()
    ids, bodies = zip(*(l.split(' ', 1) for l in raw.splitlines() if l.strip()))
    truth = {frozenset(l.split()) for l in (f/f'articles_{n}.truth').read_text().splitlines() if l.strip()}
    found = find_duplicates(**signed(bodies, threshold=.5), threshold=.5)
    assert {frozenset((ids[i], ids[j])) for i, j, _ in found.pairs.tolist()} == truth and len(truth) == (5 if n == 100 else 10)

def test_it_does_not_matter_how_the_numbers_are_stored_or_cut(texts, tmp_path):
    some = (texts + texts[:30])[:300] + texts[:30]
    s = Signer().sign(some)
    want = find_duplicates(**s, text_of=some.__getitem__)
    for cuts in ((1, 2, 299), (100,), tuple(range(10, 330, 10))):
        parts = [Signer().sign(some[a:z]) for a, z in zip((0, *cuts), (*cuts, len(some)))]
        assert same(want, find_duplicates(*([p[k] for p in parts] for k in ('exact', 'bands', 'length')), some.__getitem__))
    maps = []
    for k, v in s.items(): np.save(tmp_path/f'{k}.npy', v); maps.append(np.load(tmp_path/f'{k}.npy', mmap_mode='r'))
    assert same(want, find_duplicates(*maps, some.__getitem__))
    assert same(want, find_duplicates(**s, text_of=some.__getitem__, memory=1))        # no set is remembered

def test_texts_are_fetched_for_candidates_only(texts):
    different, asked = [t for t, k in zip(texts, dedup(enumerate(texts)).keep) if k], Counter()
    def text_of(i): asked[i] += 1; return different[i]
    r = find_duplicates(**Signer().sign(different), text_of=text_of)
    assert r.keep.all() and len(asked) < len(different) / 3 and max(asked.values()) == 1

def filled(k, n=100): return ' '.join(f'part{i}' if i % 25 else f'part{i}x{k}' for i in range(n))

def test_work_on_a_crowded_bucket_is_linear(monkeypatch):
    from llmbook.dedup import near as room
    calls = Counter()
    monkeypatch.setattr(room, 'jaccard', lambda a, b: calls.update(['all']) or jaccard(a, b))
    for n in (300, 600):
        calls.clear()
        r = find_duplicates(**signed([filled(k) for k in range(n)]), limit=5)
        assert r.keep.all() and 0 < calls['all'] <= 40 * n                 # eight times the limit for each

def test_copies_are_found_in_a_crowd():
    forms = [filled(k) for k in range(300)] + [filled(k) + f' remark {k}' for k in range(300)]
    assert find_duplicates(**signed(forms), limit=20).cluster[300:].tolist() == list(range(300))

def test_bridges_in_a_large_bucket():
    "A chain whose ends are not alike is one cluster, whatever the order."
    w = [f'word{i}' for i in range(300)]
    def version(k): return ' '.join([*[f'new{i}' for i in range(k)], *w[k:]])
    chain = [version(k) for k in range(0, 120, 2)]
    for seed in range(3):
        some = random.Random(seed).sample(chain, len(chain))
        r = find_duplicates(**signed(some), limit=4)
        assert set(r.cluster.tolist()) == {0} and jaccard(shingles(chain[0]), shingles(chain[-1])) < .5

def test_rules():
    base = ' '.join(f'word{i}' for i in range(200))
    s = signed([base, base + ' and more', base.upper(), 'another', base + ' and mine'])
    assert find_duplicates(**s).kept_for.tolist() == [1, 1, 1, 3, 1]
    assert find_duplicates(**s, rule='first').kept_for.tolist() == [0, 0, 0, 3, 0]
    assert find_duplicates(**s, rule=max).kept_for.tolist() == [4, 4, 4, 3, 4]
    assert find_duplicates(**s, rule='first').reason.tolist() == ['', 'near_duplicate', 'exact_duplicate', '', 'near_duplicate']
    with pytest.raises(UserError, match='one of'): find_duplicates(**s, rule=lambda members: 3)
    with pytest.raises(UserError, match='longest'): find_duplicates(**s, rule='shortest')
    with pytest.raises(UserError, match='sign them again'): find_duplicates(s['exact'], s['bands'][:3], s['length'], s['text_of'])
    with pytest.raises(UserError, match='sign them again'): find_duplicates(s['exact'], [s['bands'][:3], s['bands'][3:, :9]], s['length'], s['text_of'])

def test_nothing_and_hardly_anything():
    for empty in ([], np.empty((0, 2), np.uint64)):
        r = find_duplicates(empty, [] if isinstance(empty, list) else np.empty((0, 25), np.uint64), [], None)
        assert len(r.keep) == len(r.pairs) == 0
    r = dedup([(str(i), t) for i, t in enumerate(TRICKY)] * 2)
    n = len(TRICKY)
    assert r.cluster[n:] == r.cluster[:n] and r.cluster[:3] == [0, 0, 0] and r.cluster[3:n] == list(range(3, n))

def test_progress_and_memory(tmp_path):
    rng, n, seen = np.random.default_rng(0), 50_000, []
    s = dict(exact=rng.integers(0, 1 << 62, (n, 2), np.uint64), bands=rng.integers(0, 1 << 62, (n, 25), np.uint64), length=np.zeros(n, np.int64))
    tracemalloc.start()
    find_duplicates(**s, text_of=None, progress=seen.append)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 130 * n and seen[-1] == 1 and seen == sorted(seen)

def test_a_deduper_can_go_on_after_a_result(texts):
    d = Deduper(batch=7)
    for i, t in enumerate(texts[:20]): d.add(f'{i:03}', t)
    assert len(d.result().keep) == 20
    for i, t in enumerate(texts[:20]): d.add(f'{i + 20:03}', t)
    r = d.result()
    assert r == dedup((f'{i:03}', t) for i, t in enumerate(texts[:20] * 2)) and sum(r.keep) <= 20 and r.cluster[20:] == r.cluster[:20]


# --- repeated lines ---

def naive_lines(texts, docs, shortest=30, cut='\n'):
    "Lines by their words, in how many documents: with a dictionary."
    n = Counter(l for t in texts for l in {' '.join(p.lower().split()) for p in t.split(cut)})
    return {l for l, k in n.items() if k >= docs and sum(c.isalnum() if c.isascii() else len(c.encode()) for c in l) >= shortest}

@pytest.mark.parametrize('cut', ['\n', '\n\n'])
def test_lines_against_a_dictionary(texts, tmp_path, cut):
    some = [t for t in texts if '\x85' not in t and '\xa0' not in t and '\u3000' not in t]
    c = RepeatCounter(tmp_path)
    for i, t in enumerate(some): c.add(i, line_keys(t, cut=cut))
    c.flush()
    keys, first = repeated_keys(tmp_path, 2)
    want = naive_lines(some, 2, cut=cut)
    assert 30 < len(want) and set(keys.tolist()) == {int(line_keys(l)[0]) for l in want} and (np.diff(keys) > 0).all()
    owner = {}
    for i, t in enumerate(some):
        for k in line_keys(t, cut=cut).tolist(): owner.setdefault(k, i)
    assert first.tolist() == [owner[k] for k in keys.tolist()]

def test_a_key_for_each_line():
    for t in TRICKY + ['a\r\nb\r\n', '\n', 'x\n\ny']:
        for cut in ('\n', '\n\n'): assert len(line_keys(t, 0, cut)) == len(t.split(cut))
    long = 'the same words in another place of the page'
    a, b, c, d = line_keys(f'{long}\n  {long.upper()} \n{long} .\n{"-" * 90}')
    assert a == b != c and a > 0 and d == 0

def test_counting_is_the_same_for_any_workers_and_budget(tmp_path):
    rng = np.random.default_rng(0)
    lists = [rng.integers(0, 400, rng.integers(0, 60)).astype(np.uint64) * np.uint64(2**55 + 12345) for _ in range(300)]
    n, owner = Counter(k for l in lists for k in set(l.tolist()) if k), {}
    for i, l in enumerate(lists):
        for k in l.tolist(): owner.setdefault(k, i)
    want = sorted((k, owner[k]) for k, v in n.items() if v >= 22)
    assert 50 < len(want) < 350
    for case, (workers, memory, part) in enumerate([(1, 1 << 20, 1 << 20), (3, 20_000, 30_000), (7, 1, 90_000)]):
        counters = [RepeatCounter(tmp_path/str(case), f'w{k}', memory) for k in range(workers)]
        for i in np.random.default_rng(case).permutation(300): counters[i % workers].add(int(i), lists[i])
        for c in counters: c.flush()
        keys, first = repeated_keys(tmp_path/str(case), 22, part)
        assert list(zip(keys.tolist(), first.tolist())) == want

def test_a_worker_that_starts_again_counts_once_and_damage_is_noticed(tmp_path):
    k = np.arange(1, 9, dtype=np.uint64)
    for _ in range(3):
        c = RepeatCounter(tmp_path, 'w', memory=1); c.add(0, k); c.add(0, k[:0])
    assert len(repeated_keys(tmp_path, 2)[0]) == 0
    RepeatCounter(tmp_path/'none').flush()
    assert len(repeated_keys(tmp_path/'none', 2)[0]) == 0
    f = next(tmp_path.glob('*.run'))
    f.write_bytes(f.read_bytes()[:-1])
    with pytest.raises(UserError, match='count that part again'): repeated_keys(tmp_path, 2)

def test_what_is_removed_and_what_stays():
    line = 'A line of many words that is on every single page of the site.'
    docs = [Doc(f'Page {i} begins.\n\n{line}\n\nPage {i} ends.' + f'\n{line}' * (i == 3), f'd{i}') for i in range(5)]
    docs += [Doc(f'import x\n# {line}\n{line}', f'c{i}', kind='code') for i in range(4)]
    out, total = drop_repeats(docs)
    assert out[0] is docs[0] and all(a is b for a, b in zip(out[5:], docs[5:]))
    assert [d.text for d in out[1:5]] == [f'Page {i} begins.\n\nPage {i} ends.' for i in range(1, 5)]
    assert total == dict(lines=5, bytes=sum(a.nbytes - b.nbytes for a, b in zip(docs, out)), documents=4)
    every, more = drop_repeats(docs, keep_first=False)
    assert line not in every[0].text and more['lines'] == 6 and drop_repeats(out)[1]['lines'] == 0
    assert drop_repeats(docs, at_least=6)[1]['lines'] == 0 and drop_repeats([])[0] == []
    assert line in docs[1].text                                            # what was given is not changed

def test_bytes_are_accounted_for(texts):
    keys = np.unique(np.concatenate([line_keys(t)[::3] for t in texts[:100]]))
    keys = keys[keys > 0]
    for t in texts[:100]:
        new, n, n_bytes = remove_repeats(t, keys)
        assert len(t.encode()) - len(new.encode()) == n_bytes and (n > 0) == (new != t)
        assert remove_repeats(new, keys) == (new, 0, 0)
    assert remove_repeats('\ud800 ' + 'many letters that are not repeated', keys)[1] == 0


# --- repeated passages ---

def test_the_smallest_of_neighbours():
    rng = np.random.default_rng(0)
    for n in (0, 1, 5, 49, 50, 51, 400):
        h = rng.integers(0, 99, n, np.uint64)
        for w in (1, 2, 7, 50): assert _smallest(h, w).tolist() == ([h[i:i + w].min() for i in range(max(n - w + 1, 1))] if n else [])

def passages(texts, tmp_path, n, sample):
    c = RepeatCounter(tmp_path)
    for i, t in enumerate(texts): c.add(i, window_keys(t, n, sample))
    c.flush()
    keys, first = repeated_keys(tmp_path, 2)
    return [repeated_spans(t, i, keys, first, texts.__getitem__, n) for i, t in enumerate(texts)]

def test_planted_passages_are_found_with_their_edges(tmp_path):
    rng, n, sample = random.Random(0), 10, 8
    def fresh(k): return [f'w{rng.randrange(10**9)}' for _ in range(k)]
    own = [fresh(300)]
    texts, planted = [' '.join(own[0])], {}
    for i in range(1, 40):
        old, size = rng.choice(own), rng.choice([n - 1, n + sample - 1, n + sample, 60])
        at = rng.randrange(len(old) - size)
        a, b = fresh(rng.randrange(40)), fresh(rng.randrange(61, 90))
        own.append(b)
        passage = ' '.join(old[at:at + size])
        planted[i] = (passage, size >= n + sample - 1, len(' '.join(a)) + bool(a))
        texts.append('  '.join(x for x in (' '.join(a), passage.upper(), ' '.join(b)) if x))
    for i, spans in enumerate(passages(texts, tmp_path, n, sample)):
        said = [texts[i][a:z].lower() for a, z in spans]
        if i and planted[i][1]: assert said == [planted[i][0].lower()]
        else: assert not said
        if said: assert said[0] not in cut_spans(texts[i], spans).lower()

def test_every_span_is_in_an_earlier_document(texts, tmp_path):
    some = [' '.join(t.lower().split()) for t in texts if t.isascii()]
    all_spans = passages(some, tmp_path, 50, 50)
    assert sum(map(len, all_spans)) > 20
    for i, spans in enumerate(all_spans):
        assert all(a < z for a, z in spans) and all(x[1] < y[0] for x, y in zip(spans, spans[1:]))
        for a, z in spans:
            words = some[i][a:z].split()
            assert len(words) >= 50
            assert any(' '.join(words[:50]) in o for o in some[:i]) and any(' '.join(words[-50:]) in o for o in some[:i])

def test_cutting():
    assert cut_spans('one two three', []) == 'one two three'
    assert cut_spans(' one two three ', [(5, 8)]) == 'one\n\nthree' and cut_spans('one', [(0, 3)]) == ''
