"Reading batches against eating them: a far seek, the speed of the loader beside a nano model's steps, and the order for several ranks."
import json, tempfile, time
from pathlib import Path
import numpy as np, torch
from llmbook.core import set_seed
from llmbook.tokens.loaders import TokenLoader
from llmbook.tokens.shards import TokenView, open_tokens
from llmbook.model.config import get_config
from llmbook.model.transformer import Transformer
from llmbook.train.loss import LMLoss
from llmbook.train.optim import lm_opt

SHARD, TOKENS, BS, T, ROUNDS = 1 << 24, 10 ** 10, 16, 256, 5


def best(f, n=ROUNDS):
    "Seconds of the processor, the best of several: the machine may be busy."
    def once(): t = time.process_time(); f(); return time.process_time() - t
    return min(once() for _ in range(n))


def sparse(folder):
    "A folder that claims ten billion tokens, in files that are holes."
    shards, left = [], TOKENS
    while left > 0:
        n, name = min(SHARD, left), f'train-{len(shards):05d}.bin'
        with open(folder/name, 'wb') as f: f.truncate(2 * n)
        shards.append(dict(file=name, tokens=n, documents=0, sha256=''))
        left -= n
    m = dict(version=1, dtype='uint16', vocab_size=4096, tokenizer='', splits=dict(train=dict(tokens=TOKENS, documents=0, bytes=0, shards=shards)))
    (folder/'manifest.json').write_text(json.dumps(m))


def far_seek():
    with tempfile.TemporaryDirectory() as d:
        sparse(Path(d))
        opening = best(lambda: open_tokens(d))
        dl = TokenLoader(open_tokens(d), bs=BS, seq_len=T, steps=1000)
        took = []
        for k in range(ROUNDS):                                        # another place each time
            t = time.perf_counter(); dl.seek(1_000_000 + k).one_batch(); took.append(time.perf_counter() - t)
        print(f'{TOKENS:,} tokens in {len(dl.dataset.shards)} shards: opened in {opening * 1e3:.0f} ms; '
              f'batch 1,000,000 in {min(took) * 1e3:.1f} ms, at worst {max(took) * 1e3:.1f} ms (goal 50)')
        return max(took)


def speeds():
    "Seconds for a batch: reading it, and a nano model's step on it."
    tokens = TokenView([np.random.default_rng(0).integers(1, 4096, 4_000_000).astype(np.uint16)])
    def read(**kwargs):
        dl = TokenLoader(tokens, BS, T, steps=100, **kwargs)
        return best(lambda: [None for _ in dl.seek(0)]) / 100
    set_seed(0)
    model = Transformer(get_config('nano')); loss = LMLoss(model.head, 512)
    opt = lm_opt(model)(list(model.parameters()), lr=1e-3)
    x, y = TokenLoader(tokens, BS, T).batch(0)
    def step(): loss(model(x), y).backward(); opt.step(); opt.zero_grad()
    step()
    return read(), read(document_mask=True), read(ahead=2), best(step) / 2           # two cores, if they shared the work perfectly


def orders():
    tokens = TokenView([np.arange(60_000, dtype=np.uint16)])
    rows = [torch.cat([torch.cat(p) for p in zip(*([x for x, _ in TokenLoader(tokens, 8 // w, 32, 20, rank=r, world=w)] for r in range(w)))]) for w in (1, 2, 4)]
    return all(torch.equal(rows[0], r) for r in rows)


if __name__ == '__main__':
    torch.set_num_threads(1)                                                       # threads that wait for each other count as work
    assert far_seek() < .05, 'a far seek took too long'
    assert orders(), 'the order depends on the number of ranks'
    print('1, 2 and 4 ranks together read the same rows in the same order')
    plain, masked, ahead, step = speeds()
    print(f'a batch of {BS} x {T}: read in {plain * 1e3:.2f} ms ({masked * 1e3:.2f} with documents, {ahead * 1e3:.2f} through a thread); '
          f'a nano model needs {step * 1e3:.0f} ms on two cores')
    print(f'loader: ratio {step / plain:.0f} goal 50')
