"""Compare the rules of Gopher, C4 and FineWeb with datatrove's, on the same documents, in one run on one core.

    python bench/filters.py [MEGABYTES]

Needs datatrove and spaCy, which nothing else here needs: `pip install 'datatrove[processing]' spacy` (into an
environment of its own, if you like, with PYTHONPATH at this checkout: of llmbook only what filters need is
imported). datatrove splits words and sentences with spaCy's blank English pipeline, which needs no download. Time
is processor time. Each filter runs by itself, then all four on each document in turn, where both sides share what
they have measured: llmbook in the view, datatrove in its cache of split texts. llmbook forgets all words it knows
before each pass.
"""
import os
os.environ.setdefault('OMP_NUM_THREADS', '1')
import gzip, json, sys, time
from collections import Counter
from pathlib import Path
from typing import NamedTuple
from llmbook.filters import view as view_module
from llmbook.filters.gopher import GOPHER_QUALITY, GOPHER_REPETITION
from llmbook.filters.presets import check
from llmbook.filters.view import View
from llmbook.filters.web import C4, FINEWEB
from llmbook.read.doc import Doc
from llmbook.read.embedded import embedded_corpus

DATA = Path(os.environ.get('LLMBOOK_DATA', Path(__file__).resolve().parents[2]/'shared/data'))
MB = float(sys.argv[1]) if len(sys.argv) > 1 else 5.
PIECE = 4000 # characters of a document that is cut from a longer text
OURS = {'Gopher quality': GOPHER_QUALITY, 'Gopher repetition': GOPHER_REPETITION, 'FineWeb': FINEWEB, 'C4': C4}


# --- documents ---

def lines(pattern):
    "Yield the lines of the files that a pattern names under LLMBOOK_DATA."
    for path in sorted(DATA.glob(pattern)):
        open_file = gzip.open if path.suffix == '.gz' else open
        with open_file(path, 'rt', encoding='utf-8') as f:
            for line in f:
                if line.strip(): yield line

def pieces(text): return [text[i:i + PIECE].replace('\r\n', '\n') for i in range(0, len(text), PIECE)]

def first_of(texts, share):
    "Return the first texts, up to a share of all bytes."
    left, res = share * MB * 1e6, []
    for t in texts:
        if left < 0: break
        res.append(t)
        left -= len(t.encode())
    return res

def web_pages():
    for pattern in ('web_demo/c4_demo.jsonl', 'dolma_samples/multiple_files/*.jsonl',
                    'dolma_samples/provided/documents/*.gz'):
        for line in lines(pattern): yield json.loads(line)['text']

def articles():
    for line in lines('web_demo/wiki_demo.txt.gz'): yield from pieces(line.strip())

def book_pages():
    for line in lines('gutenberg_books/*.gz'): yield from pieces(json.loads(line)['text'])[::9]

def documents():
    "Return texts by where they are from; only the embedded corpus where there is no LLMBOOK_DATA."
    res = dict(web=first_of(web_pages(), .3), wikipedia=first_of(articles(), .2), books=first_of(book_pages(), .25))
    res = {kind: texts for kind, texts in res.items() if texts}
    embedded = [d.text for d in embedded_corpus(int(MB * 1e6)) if d.kind != 'code']
    return res | dict(embedded=first_of(embedded, .25 if res else 1))

def megabytes(texts): return sum(len(t.encode()) for t in texts) / 1e6


# --- the two sides ---

class Verdict(NamedTuple):
    "What a filter says of a document."
    reason:str|None # None: the document stays
    text:str|None # what is left of a document that stays

def datatrove():
    "Return datatrove's verdict as a function of a filter's name and a text, and a function that forgets split texts."
    try:
        from datatrove.pipeline import filters
        import spacy # noqa: F401
    except ImportError as e:
        print(f'filters: needs datatrove and spaCy beside llmbook ({e.name} is missing): '
              "pip install 'datatrove[processing]' spacy")
        sys.exit(1)
    from datatrove.data import Document
    from datatrove.utils.text import split_into_parts
    made = {'Gopher quality': filters.GopherQualityFilter(), 'Gopher repetition': filters.GopherRepetitionFilter(),
            'FineWeb': filters.FineWebQualityFilter(), 'C4': filters.C4QualityFilter()}
    def verdict(name, text):
        doc = Document(text=text, id='x')
        res = made[name].filter(doc)
        return Verdict(None, doc.text) if res is True else Verdict(res[1], None)
    verdict('C4', 'It takes a while to load. So this is said before the clock runs.')
    return verdict, split_into_parts.cache_clear

def our_verdict(rules, view):
    for rule in rules:
        value = rule(view)
        if isinstance(value, Doc): view = View(value)
        elif value is not None: return Verdict(getattr(rule, 'func', rule).__name__, None)
    return Verdict(None, view.text)

def timed(f, texts):
    "Return the processor seconds and the results of one pass."
    start = time.process_time()
    res = [f(t) for t in texts]
    return time.process_time() - start, res

def our_pass(names, texts, repeat=3):
    "Return the least seconds of several passes, each with an empty memory, and the verdicts of each text."
    passes = []
    def verdicts(text):
        view = View(Doc(text, 'x'))
        return [our_verdict(OURS[name], view) for name in names]
    for _ in range(repeat):
        view_module._VOCABULARY.forget()
        passes.append(timed(verdicts, texts))
    return min(seconds for seconds, _ in passes), passes[0][1]


# --- the comparison ---

class Decision(NamedTuple):
    "What both sides say of one document."
    name:str # of the filter
    ours:Verdict
    theirs:Verdict

    @property
    def same(self): return (self.ours.reason is None) == (self.theirs.reason is None)

def compare(title, names, texts, their_verdict, clear):
    "Run some filters on both sides, print a row; return the decisions and how many times faster ours are."
    seconds, ours = our_pass(names, texts)
    clear()
    def their_verdicts(text): return [their_verdict(name, text) for name in names]
    their_seconds, theirs = timed(their_verdicts, texts)
    decisions = []
    for our_row, their_row in zip(ours, theirs):
        decisions += [Decision(*row) for row in zip(names, our_row, their_row)]
    size = megabytes(texts)
    ratio = their_seconds / seconds
    speed = f'{size / seconds:8.2f} {size / their_seconds:8.2f} {ratio:7.1f}'
    our_drops = sum(d.ours.reason is not None for d in decisions)
    their_drops = sum(d.theirs.reason is not None for d in decisions)
    print(f'{title:18} {speed} {agreement(decisions):8.2%}   {our_drops}, {their_drops}', flush=True)
    return decisions, ratio

def agreement(decisions): return sum(d.same for d in decisions) / len(decisions)

def print_differences(decisions):
    other_text = sum(d.ours.text != d.theirs.text for d in decisions
                     if d.name == 'C4' and d.ours.reason is None and d.theirs.reason is None)
    print(f'documents that both C4 filters keep, with another text: {other_text}')
    differ = Counter((d.name, d.ours.reason, d.theirs.reason) for d in decisions if not d.same)
    for (name, ours, theirs), n in sorted(differ.items(), key=str):
        print(f'  differ {n}: {name}, ours {ours}, theirs {theirs}')

def print_preset_speed(kind, texts):
    view_module._VOCABULARY.forget()
    def checked(text): return check(Doc(text, 'x'), 'web')
    first, _ = timed(checked, texts)
    again, _ = timed(checked, texts)
    size = megabytes(texts)
    print(f"preset 'web' on {kind:10} {size / first:6.1f} MB/s, again {size / again:.1f}")

def main():
    their_verdict, clear = datatrove()
    docs = documents()
    texts = [t for kind in docs.values() for t in kind]
    counts = ', '.join(f'{len(kind_texts)} {kind}' for kind, kind_texts in docs.items())
    print(f'{len(texts)} documents, {megabytes(texts):.1f} MB: {counts}')
    print(f'{"":18} {"ours":>8} {"theirs":>8} {"ratio":>7} {"agree":>8}   MB/s, decisions; dropped by ours, by theirs')
    worst = 1.
    for name in OURS:
        decisions, _ = compare(name, [name], texts, their_verdict, clear)
        worst = min(worst, agreement(decisions))
    decisions, ratio = compare('all four', list(OURS), texts, their_verdict, clear)
    worst = min(worst, agreement(decisions))
    print_differences(decisions)
    for kind, kind_texts in docs.items(): print_preset_speed(kind, kind_texts)
    print(f'worst agreement {worst:.2%} goal 98%')
    print(f'filters: ratio {ratio:.1f} goal 10')
    if worst < .98: sys.exit(1)


if __name__ == '__main__': main()
