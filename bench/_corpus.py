"""Text for the benchmarks of data preparation: LLMBOOK_DATA where there is one, and the embedded corpus."""
import gzip, json, os, random
from pathlib import Path
from llmbook.prepare.units import split_long
from llmbook.read.doc import Doc
from llmbook.read.embedded import embedded_corpus

DATA = Path(os.environ.get('LLMBOOK_DATA', Path(__file__).resolve().parents[2]/'shared/data'))


def books():
    "Yield the books of gutenberg_books, in parts of a few thousand characters; nothing without LLMBOOK_DATA."
    for f in sorted(DATA.glob('gutenberg_books/*.jsonl.gz')):
        with gzip.open(f, 'rt', encoding='utf-8') as lines:
            for i, line in enumerate(lines):
                yield from split_long(Doc(json.loads(line)['text'], f'book{i}'), 6_000)


def documents(n_bytes):
    "Yield about `n_bytes` of prose and code: half books, half the embedded corpus."
    for docs in (books(), embedded_corpus(n_bytes)):
        left = n_bytes // 2
        for doc in docs:
            left -= doc.nbytes
            if left < 0: break
            yield doc


def shuffled(doc, seed):
    "Shuffle the words of each line: a new text of the same kind, no near-duplicate of the old one."
    rng = random.Random(f'{seed}:{doc.id}')
    lines = []
    for line in doc.text.split('\n'):
        words = line.split(' ')
        rng.shuffle(words)
        lines.append(' '.join(words))
    return Doc('\n'.join(lines), f'{doc.id}@{seed}', doc.source, doc.kind, doc.language)


def write(path, docs):
    "Write documents as jsonl and return how many bytes of text they hold."
    total = 0
    with open(path, 'w', encoding='utf-8') as f:
        for doc in docs:
            row = dict(id=doc.id, text=doc.text, kind=doc.kind, language=doc.language)
            f.write(json.dumps(row, ensure_ascii=False) + '\n')
            total += doc.nbytes
    return total
