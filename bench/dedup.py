"""Find near-duplicates among real documents: llmbook against datasketch's MinHashLSH, in turns, in one run.

Both are compared with comparing every pair. Needs datasketch (`pip install datasketch`), which nothing else here
needs. Same shingles (five lower-cased words), same threshold, 128 permutations. datasketch gets its bulk call, and
is shown with its own hash (SHA-1, its default; the ratio is against that) and with a faster one (xxhash). It stops
at candidates, while llmbook also compares them. Processor time on one core, the best of a few rounds.
"""
import os
for name in ('OMP_NUM_THREADS', 'RAYON_NUM_THREADS'): os.environ.setdefault(name, '1')
import sys, time
from functools import partial
from itertools import combinations
from llmbook.dedup.minhash import Signer, jaccard, shingles
from llmbook.dedup.near import find_duplicates
from llmbook.read.embedded import embedded_corpus

MB, ROUNDS, THRESHOLD = 4, 3, .8


def ours(texts):
    "Find pairs that were compared and are alike: whether a pair is in one cluster, and the links."
    signed = Signer(THRESHOLD).sign(texts)
    r = find_duplicates(**signed, text_of=texts.__getitem__, threshold=THRESHOLD)
    def together(i, j): return r.cluster[i] == r.cluster[j]
    return together, {(i, j) for i, j, _ in r.pairs.tolist()}


def five_words(text):
    words = text.lower().split()
    return {' '.join(words[i:i + 5]).encode('utf-8', 'replace') for i in range(max(len(words) - 4, 1))}


def theirs(texts, **kwargs):
    "Find candidate pairs: whether a pair is among them, and the pairs."
    from datasketch import MinHash, MinHashLSH
    lsh = MinHashLSH(THRESHOLD, num_perm=128)
    found = set()
    signatures = MinHash.generator((five_words(t) for t in texts), num_perm=128, **kwargs)
    for i, m in enumerate(signatures):
        found.update((j, i) for j in lsh.query(m))
        lsh.insert(i, m)
    return lambda i, j: (i, j) in found, found


def clock(f, texts):
    start = time.process_time()
    res = f(texts)
    return time.process_time() - start, res


def every_pair(texts):
    "Return the pairs of documents whose shingles are alike, the slow and certain way."
    sets = [shingles(t) for t in texts]
    pairs = set()
    for i, j in combinations(range(len(sets)), 2):
        small, large = sorted((len(sets[i]), len(sets[j])))
        if small < THRESHOLD * max(large, 1): continue
        if jaccard(sets[i], sets[j]) >= THRESHOLD: pairs.add((i, j))
    return pairs


def in_turns(sides, texts):
    "Return the shortest time of each side over all rounds, and what each side found."
    seconds = dict.fromkeys(sides, float('inf'))
    answers = {}
    for _ in range(ROUNDS):
        for name, find in sides.items():
            took, answers[name] = clock(find, texts)
            seconds[name] = min(seconds[name], took)
    return seconds, answers


def main():
    try: import datasketch # noqa: F401
    except ImportError:
        sys.exit('dedup: expected datasketch beside llmbook, it is not installed: pip install datasketch')
    from xxhash import xxh32_intdigest
    sides = {'llmbook': ours, 'datasketch': theirs, 'with xxhash': partial(theirs, hashfunc=xxh32_intdigest)}
    texts = [d.text for d in embedded_corpus(MB * 1_000_000)]
    size = sum(len(t.encode()) for t in texts) / 1e6
    true = every_pair(texts)
    for find in sides.values(): find(texts[:50]) # warm up
    seconds, answers = in_turns(sides, texts)

    print(f'{len(texts)} documents, {size:.1f} MB, {len(true)} pairs with a similarity of {THRESHOLD} or more')
    print(f'{"":12}{"MB/s":>8}{"true pairs found":>18}{"false pairs":>13}')
    for name, (together, found) in answers.items():
        hits = sum(together(i, j) for i, j in true)
        false = len(found - true)
        print(f'{name:12}{size / seconds[name]:8.1f}{hits:18}{false:13}')
    ratio = seconds['datasketch'] / seconds['llmbook']
    print(f'dedup: ratio {ratio:.2f} goal 10')


if __name__ == '__main__': main()
