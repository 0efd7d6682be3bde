"""Gopher's quality and repetition rules, C4's and FineWeb's: ours against datatrove, on the same documents, in one run on one core.

Needs datatrove and spaCy, which nothing else here needs: `pip install 'datatrove[processing]' spacy` (into an environment of its own, if you like, with
PYTHONPATH at this checkout: of llmbook only what filters need is imported). datatrove splits words and sentences with spaCy's blank English pipeline,
which needs no download. Time is processor time. Each filter runs by itself, then all four on each document in turn, where both sides share what they have measured:
ours in the view, datatrove in its cache of split texts. Ours forgets all words it knows before each pass. `python bench/filters.py [MEGABYTES]`
"""
import os
os.environ.setdefault('OMP_NUM_THREADS', '1')
import gzip, json, sys, time
from collections import Counter
from pathlib import Path
from llmbook.filters import view as words
from llmbook.read.embedded import embedded_corpus
from llmbook.read.doc import Doc
from llmbook.filters.presets import check
from llmbook.filters.gopher import GOPHER_QUALITY, GOPHER_REPETITION
from llmbook.filters.web import C4, FINEWEB
from llmbook.filters.view import View

DATA = Path(os.environ.get('LLMBOOK_DATA', Path(__file__).resolve().parents[2]/'shared/data'))
MB, PIECE = float(sys.argv[1]) if len(sys.argv) > 1 else 5., 4000
OURS = {'Gopher quality': GOPHER_QUALITY, 'Gopher repetition': GOPHER_REPETITION, 'FineWeb': FINEWEB, 'C4': C4}


def lines(pattern):
    "The lines of the files that a pattern names under LLMBOOK_DATA."
    for f in sorted(DATA.glob(pattern)):
        with (gzip.open if f.suffix == '.gz' else open)(f, 'rt', encoding='utf-8') as rows: yield from (r for r in rows if r.strip())

def pieces(text): return [text[i:i + PIECE].replace('\r\n', '\n') for i in range(0, len(text), PIECE)]

def some(texts, share):
    "The first texts up to a share of all bytes."
    left, res = share * MB * 1e6, []
    for t in texts:
        if left < 0: break
        res.append(t)
        left -= len(t.encode())
    return res

def documents():
    "Texts by where they are from; only the embedded corpus where there is no LLMBOOK_DATA."
    embedded = [d.text for d in embedded_corpus(int(MB * 1e6)) if d.kind != 'code']
    web = ('web_demo/c4_demo.jsonl', 'dolma_samples/multiple_files/*.jsonl', 'dolma_samples/provided/documents/*.gz')
    res = dict(web=some((json.loads(l)['text'] for p in web for l in lines(p)), .3),
               wikipedia=some((p for l in lines('web_demo/wiki_demo.txt.gz') for p in pieces(l.strip())), .2),
               books=some((p for l in lines('gutenberg_books/*.gz') for p in pieces(json.loads(l)['text'])[::9]), .25))
    res = {k: v for k, v in res.items() if v}
    return res | dict(embedded=some(embedded, .25 if res else 1))


def theirs():
    "datatrove's filters with their defaults, and how to forget what was split."
    try:
        from datatrove.pipeline.filters import C4QualityFilter, FineWebQualityFilter, GopherQualityFilter, GopherRepetitionFilter
        import spacy # noqa: F401
    except ImportError as e:
        print(f"filters: needs datatrove and spaCy beside llmbook ({e.name} is missing): pip install 'datatrove[processing]' spacy")
        sys.exit(1)
    from datatrove.data import Document
    from datatrove.utils.text import split_into_parts
    made = dict(zip(OURS, (GopherQualityFilter(), GopherRepetitionFilter(), FineWebQualityFilter(), C4QualityFilter())))
    def verdict(name, text):
        doc = Document(text=text, id='x')
        res = made[name].filter(doc)
        return (None, doc.text) if res is True else (res[1], None)
    verdict('C4', 'It takes a while to load. So this is said before the clock runs.')
    return verdict, split_into_parts.cache_clear

def verdict(rules, view):
    "The same with ours: (reason, text), either of them None."
    for rule in rules:
        value = rule(view)
        if isinstance(value, Doc): view = View(value)
        elif value is not None: return getattr(rule, 'func', rule).__name__, None
    return None, view.text

def timed(f, texts):
    "(seconds, results) of one pass."
    start = time.process_time()
    res = [f(t) for t in texts]
    return time.process_time() - start, res

def our_pass(names, texts, repeat=3):
    "Ours on all texts, each pass with an empty memory; the least of several times."
    passes = []
    def one(t):
        v = View(Doc(t, 'x'))
        return [verdict(OURS[n], v) for n in names]
    for _ in range(repeat):
        words._VOCABULARY.forget()
        passes.append(timed(one, texts))
    return min(s for s, _ in passes), passes[0][1]

def main():
    their, clear = theirs()
    docs = documents()
    texts = [t for ts in docs.values() for t in ts]
    size = sum(len(t.encode()) for t in texts) / 1e6
    print(f'{len(texts)} documents, {size:.1f} MB:', ', '.join(f'{len(v)} {k}' for k, v in docs.items()))
    print(f'{"":18} {"ours":>8} {"theirs":>8} {"ratio":>7} {"agree":>8}   MB/s, decisions; dropped by ours, by theirs')
    worst = 1.
    for names in (*([n] for n in OURS), list(OURS)):
        seconds, mine = our_pass(names, texts)
        clear()
        other_seconds, other = timed(lambda t: [their(n, t) for n in names], texts)
        pairs = [(a[i], b[i], t, n) for a, b, t in zip(mine, other, texts) for i, n in enumerate(names)]
        same = sum((a[0] is None) == (b[0] is None) for a, b, *_ in pairs) / len(pairs)
        worst, ratio = min(worst, same), other_seconds / seconds
        drops = f'{sum(a[0] is not None for a, *_ in pairs)}, {sum(b[0] is not None for _, b, *_ in pairs)}'
        print(f'{names[0] if len(names) == 1 else "all four":18} {size/seconds:8.2f} {size/other_seconds:8.2f} {ratio:7.1f} {same:8.2%}   {drops}', flush=True)
    text_differs = sum(a[1] != b[1] for a, b, _, n in pairs if n == 'C4' and a[0] is None and b[0] is None)
    print(f'documents that both C4 filters keep, with another text: {text_differs}')
    differ = Counter((n, a[0], b[0]) for a, b, _, n in pairs if (a[0] is None) != (b[0] is None))
    for (n, a, b), c in sorted(differ.items(), key=str): print(f'  differ {c}: {n}, ours {a}, theirs {b}')
    for kind in docs:
        words._VOCABULARY.forget()
        n = sum(len(t.encode()) for t in docs[kind]) / 1e6
        first, again = (timed(lambda t: check(Doc(t, 'x'), 'web'), docs[kind])[0] for _ in range(2))
        print(f"preset 'web' on {kind:10} {n/first:6.1f} MB/s, again {n/again:.1f}")
    print(f'worst agreement {worst:.2%} goal 98%')
    print(f'filters: ratio {ratio:.1f} goal 10')
    if worst < .98: sys.exit(1)


if __name__ == '__main__': main()
