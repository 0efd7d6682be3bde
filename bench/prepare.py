"""The whole preparation (read, clean, filter, near-duplicates, tokenise, pack) against `encode_batch` alone on the same text, on every core.

The tokenizer is made before and given to both: the comparison is of what happens to every byte. The ratio is preparation's MB/s over encode_batch's.
"""
import json, statistics, sys, time
from pathlib import Path
from tempfile import TemporaryDirectory
from _corpus import documents, write
from llmbook.prepare.workers import n_cores
from llmbook.prepare.pipeline import prepare
from llmbook.tokens.tokenizer import load_tokenizer

MB, ROUNDS = 24, 3


def encode_alone(path, tok):
    "Seconds to encode every text, a few hundred at a time, ids and nothing else."
    texts = [json.loads(l)['text'] for l in open(path, encoding='utf-8')]
    start = time.perf_counter()
    for i in range(0, len(texts), 512): tok.encode_batch(texts[i:i + 512], add_special_tokens=False)
    return time.perf_counter() - start


def prepared(path, out, tok, **options):
    start = time.perf_counter()
    card = prepare(path, out, tokenizer=tok, progress=False, **options)
    return time.perf_counter() - start, card


if __name__ == '__main__':
    presets = sys.argv[1:] or ['default', 'prose']
    with TemporaryDirectory() as folder:
        folder = Path(folder)
        n = write(folder/'text.jsonl', documents(MB * 1_000_000)) / 1e6
        prepare(folder/'text.jsonl', folder/'first', vocab_size=4096, progress=False)
        tok = load_tokenizer(folder/'first')
        alone = statistics.median(encode_alone(folder/'text.jsonl', tok) for _ in range(ROUNDS))
        print(f'{n:.1f} MB on {n_cores()} cores; encode_batch alone: {n / alone:.2f} MB/s')
        ratios = {}
        for preset in presets:
            runs = [prepared(folder/'text.jsonl', folder/f'{preset}{i}', folder/'first', preset=preset) for i in range(ROUNDS)]
            seconds = statistics.median(s for s, _ in runs)
            card = runs[0][1]
            ratios[preset] = alone / seconds
            print(f'preset {preset}: {n / seconds:.2f} MB/s, {card["totals"]["kept"]} of {card["totals"]["in"]} documents kept, stages {card["stage_seconds"]}')
            for s in card['funnel']: print(f'    {s["step"]:16} {s["seconds"]:6.2f} s of the workers, {s["bytes_in"] / 1e6 / max(s["seconds"], 1e-9):6.1f} MB/s')
    print(f'prepare: ratio {min(ratios.values()):.2f} goal 0.3')
