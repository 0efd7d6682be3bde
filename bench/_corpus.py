"""Text for the benchmarks of data preparation: LLMBOOK_DATA where there is one, and the embedded corpus."""
import gzip, json, os, random
from pathlib import Path
from llmbook.read.embedded import embedded_corpus
from llmbook.prepare.units import split_long
from llmbook.read.doc import Doc

DATA = Path(os.environ.get('LLMBOOK_DATA', Path(__file__).resolve().parents[2]/'shared/data'))


def books():
    "The books of gutenberg_books, in parts of a few thousand characters; nothing where there is no LLMBOOK_DATA."
    for f in sorted(DATA.glob('gutenberg_books/*.jsonl.gz')):
        with gzip.open(f, 'rt', encoding='utf-8') as lines:
            for i, line in enumerate(lines):
                yield from split_long(Doc(json.loads(line)['text'], f'book{i}'), 6_000)


def documents(n_bytes):
    "About `n_bytes` of prose and code: half books, half the embedded corpus."
    for docs in (books(), embedded_corpus(n_bytes)):
        left = n_bytes // 2
        for d in docs:
            if (left := left - d.nbytes) < 0: break
            yield d


def shuffled(doc, seed):
    "The document with the words of each line in another order: a new text of the same kind, no near-duplicate of the old one."
    rng, lines = random.Random(f'{seed}:{doc.id}'), []
    for line in doc.text.split('\n'):
        words = line.split(' ')
        rng.shuffle(words)
        lines.append(' '.join(words))
    return Doc('\n'.join(lines), f'{doc.id}@{seed}', doc.source, doc.kind, doc.language)


def write(path, docs):
    "Documents as jsonl; how many bytes of text they hold."
    total = 0
    with open(path, 'w', encoding='utf-8') as f:
        for d in docs:
            f.write(json.dumps(dict(id=d.id, text=d.text, kind=d.kind, language=d.language), ensure_ascii=False) + '\n')
            total += d.nbytes
    return total
