"""The whole preparation (read, clean, filter, near-duplicates, tokenise, pack) against `encode_batch` alone.

Both work on the same text, on every core. The tokenizer is made before and given to both: what happens to every byte
is compared. The ratio is preparation's MB/s over encode_batch's.
"""
import json, statistics, sys, time
from pathlib import Path
from tempfile import TemporaryDirectory
from _corpus import documents, write
from llmbook.prepare.pipeline import prepare
from llmbook.prepare.workers import n_cores
from llmbook.tokens.tokenizer import load_tokenizer

MB, ROUNDS = 24, 3


def encode_alone(path, tok):
    "Return the seconds it takes to encode every text, a few hundred at a time, to ids and nothing else."
    texts = [json.loads(line)['text'] for line in open(path, encoding='utf-8')]
    start = time.perf_counter()
    for i in range(0, len(texts), 512): tok.encode_batch(texts[i:i + 512], add_special_tokens=False)
    return time.perf_counter() - start


def prepared(path, out, tok, **options):
    "Return the seconds that a preparation takes, and its card."
    start = time.perf_counter()
    card = prepare(path, out, tokenizer=tok, progress=False, **options)
    return time.perf_counter() - start, card


def report(preset, speed, card):
    "Print the speed of a preparation and of its steps."
    totals = card['totals']
    print(f'preset {preset}: {speed:.2f} MB/s, {totals["kept"]} of {totals["in"]} documents kept, '
          f'stages {card["stage_seconds"]}')
    for step in card['funnel']:
        seconds = step['seconds']
        step_speed = step['bytes_in'] / 1e6 / max(seconds, 1e-9)
        print(f'    {step["step"]:16} {seconds:6.2f} s of the workers, {step_speed:6.1f} MB/s')


if __name__ == '__main__':
    presets = sys.argv[1:] or ['default', 'prose']
    with TemporaryDirectory() as folder:
        folder = Path(folder)
        text, first = folder/'text.jsonl', folder/'first'
        n = write(text, documents(MB * 1_000_000)) / 1e6
        prepare(text, first, vocab_size=4096, progress=False)
        tok = load_tokenizer(first)
        alone = statistics.median(encode_alone(text, tok) for _ in range(ROUNDS))
        print(f'{n:.1f} MB on {n_cores()} cores; encode_batch alone: {n / alone:.2f} MB/s')
        ratios = []
        for preset in presets:
            runs = [prepared(text, folder/f'{preset}{i}', first, preset=preset) for i in range(ROUNDS)]
            seconds = statistics.median(s for s, _ in runs)
            ratios.append(alone / seconds)
            report(preset, n / seconds, runs[0][1])
    print(f'prepare: ratio {min(ratios):.2f} goal 0.3')
