"""Near-duplicates among real documents: ours against datasketch's MinHashLSH, in turns, in one run; and both against comparing every pair.

Needs datasketch (`pip install datasketch`), which nothing else here needs. Same shingles (five lower-cased words), same threshold, 128 permutations.
datasketch gets its bulk call, and is shown with its own hash (SHA-1, its default; the ratio is against that) and with a faster one (xxhash). It stops at
candidates, while ours also compares them. Processor time on one core, the best of a few rounds.
"""
import os
for k in ('OMP_NUM_THREADS', 'RAYON_NUM_THREADS'): os.environ.setdefault(k, '1')
import sys, time
from functools import partial
from itertools import combinations
from llmbook.read.embedded import embedded_corpus
from llmbook.dedup.minhash import Signer, jaccard, shingles
from llmbook.dedup.near import find_duplicates

MB, ROUNDS, THRESHOLD = 4, 3, .8


def ours(texts):
    "Pairs that were compared and found alike."
    r = find_duplicates(**Signer(THRESHOLD).sign(texts), text_of=texts.__getitem__, threshold=THRESHOLD)
    return r, None


def theirs(texts, **kwargs):
    "Candidate pairs."
    from datasketch import MinHash, MinHashLSH

    def grams(text):
        words = text.lower().split()
        return {' '.join(words[i:i + 5]).encode('utf-8', 'replace') for i in range(max(len(words) - 4, 1))}
    lsh, found = MinHashLSH(THRESHOLD, num_perm=128), []
    for i, m in enumerate(MinHash.generator((grams(t) for t in texts), num_perm=128, **kwargs)):
        found += [(j, i) for j in lsh.query(m)]
        lsh.insert(i, m)
    return None, found


def clock(f, texts):
    start = time.process_time(); res = f(texts)
    return time.process_time() - start, res


def every_pair(texts):
    "The truth: pairs of documents whose shingles are alike."
    sets = [shingles(t) for t in texts]
    return {(i, j) for i, j in combinations(range(len(sets)), 2)
            if min(len(sets[i]), len(sets[j])) >= THRESHOLD * max(len(sets[i]), len(sets[j]), 1) and jaccard(sets[i], sets[j]) >= THRESHOLD}


if __name__ == '__main__':
    try: import datasketch # noqa: F401
    except ImportError: sys.exit('dedup: expected datasketch beside llmbook, it is not installed: pip install datasketch')
    from xxhash import xxh32_intdigest
    sides = dict(llmbook=ours, datasketch=theirs) | {'with xxhash': partial(theirs, hashfunc=xxh32_intdigest)}
    texts = [d.text for d in embedded_corpus(MB * 1_000_000)]
    size, true = sum(len(t.encode()) for t in texts) / 1e6, every_pair(texts)
    for f in sides.values(): f(texts[:50])
    rounds = [{name: clock(f, texts) for name, f in sides.items()} for _ in range(ROUNDS)]
    print(f'{len(texts)} documents, {size:.1f} MB, {len(true)} pairs with a similarity of {THRESHOLD} or more')
    print(f'{"":12}{"MB/s":>8}{"true pairs found":>18}{"false pairs":>13}')
    for name in sides:
        r, found = rounds[0][name][1]
        if r: hits, false = sum(r.cluster[i] == r.cluster[j] for i, j in true), sum((i, j) not in true for i, j, _ in r.pairs.tolist())
        else: hits, false = len(true & set(found)), len(set(found) - true)
        print(f'{name:12}{size / min(t[name][0] for t in rounds):8.1f}{hits:18}{false:13}')
    a, b = (min(t[name][0] for t in rounds) for name in ('llmbook', 'datasketch'))
    print(f'dedup: ratio {b / a:.2f} goal 10')
