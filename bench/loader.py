"""Reading batches against training on them.

Measures a seek far into a large corpus, the speed of the loader beside a nano model's steps, and whether several ranks
together read the same order as one. The ratio is the seconds of a step over those of reading a batch.
"""
import json, tempfile, time
from pathlib import Path
import numpy as np
import torch
from llmbook.core import set_seed
from llmbook.model.config import get_config
from llmbook.model.transformer import Transformer
from llmbook.tokens.loaders import TokenLoader
from llmbook.tokens.shards import TokenView, open_tokens
from llmbook.train.loss import LMLoss
from llmbook.train.optim import lm_opt

SHARD, TOKENS = 1 << 24, 10 ** 10
BS, T = 16, 256
ROUNDS = 5


def best(f):
    "Return the processor's seconds for the fastest of several calls: the machine may be busy."
    took = []
    for _ in range(ROUNDS):
        start = time.process_time()
        f()
        took.append(time.process_time() - start)
    return min(took)


def sparse(folder):
    "Make a folder that claims ten billion tokens, in files that are holes."
    shards, left = [], TOKENS
    while left > 0:
        n = min(SHARD, left)
        name = f'train-{len(shards):05d}.bin'
        with open(folder/name, 'wb') as f: f.truncate(2 * n)
        shards.append(dict(file=name, tokens=n, documents=0, sha256=''))
        left -= n
    train = dict(tokens=TOKENS, documents=0, bytes=0, shards=shards)
    manifest = dict(version=1, dtype='uint16', vocab_size=4096, tokenizer='', splits=dict(train=train))
    (folder/'manifest.json').write_text(json.dumps(manifest))


def far_seek():
    "Return the seconds of the slowest of several seeks."
    with tempfile.TemporaryDirectory() as folder:
        sparse(Path(folder))
        opening = best(lambda: open_tokens(folder))
        dl = TokenLoader(open_tokens(folder), bs=BS, seq_len=T, steps=1000)
        took = []
        for k in range(ROUNDS): # another position each time
            start = time.perf_counter()
            dl.seek(1_000_000 + k).one_batch()
            took.append(time.perf_counter() - start)
    print(f'{TOKENS:,} tokens in {len(dl.dataset.shards)} shards: opened in {opening * 1e3:.0f} ms; '
          f'batch 1,000,000 in {min(took) * 1e3:.1f} ms, at worst {max(took) * 1e3:.1f} ms (goal 50)')
    return max(took)


def read_seconds(tokens, **kwargs):
    "Return the seconds in which a batch is read."
    dl = TokenLoader(tokens, BS, T, steps=100, **kwargs)
    def epoch():
        for _ in dl.seek(0): pass
    return best(epoch) / 100


def step_seconds(tokens):
    "Return the seconds of a nano model's step on two cores, if they shared the work perfectly."
    set_seed(0)
    model = Transformer(get_config('nano'))
    loss = LMLoss(model.head, 512)
    opt = lm_opt(model)(list(model.parameters()), lr=1e-3)
    x, y = TokenLoader(tokens, BS, T).batch(0)
    def step():
        loss(model(x), y).backward()
        opt.step()
        opt.zero_grad()
    step()
    return best(step) / 2


def rows_of_ranks(tokens, world):
    "Return the rows of an epoch as `world` ranks read them together."
    ranks = [TokenLoader(tokens, 8 // world, 32, 20, rank=rank, world=world) for rank in range(world)]
    batches = zip(*([x for x, _ in dl] for dl in ranks))
    return torch.cat([torch.cat(parts) for parts in batches])


def same_order():
    "Say whether the order of rows is the same for one, two and four ranks."
    tokens = TokenView([np.arange(60_000, dtype=np.uint16)])
    one = rows_of_ranks(tokens, 1)
    return all(torch.equal(one, rows_of_ranks(tokens, world)) for world in (2, 4))


if __name__ == '__main__':
    torch.set_num_threads(1) # threads that wait for each other count as work
    assert far_seek() < .05, 'a far seek took too long'
    assert same_order(), 'the order depends on the number of ranks'
    print('1, 2 and 4 ranks together read the same rows in the same order')
    tokens = TokenView([np.random.default_rng(0).integers(1, 4096, 4_000_000).astype(np.uint16)])
    plain = read_seconds(tokens)
    masked, ahead = read_seconds(tokens, document_mask=True), read_seconds(tokens, ahead=2)
    step = step_seconds(tokens)
    print(f'a batch of {BS} x {T}: read in {plain * 1e3:.2f} ms ({masked * 1e3:.2f} with documents, '
          f'{ahead * 1e3:.2f} through a thread); a nano model needs {step * 1e3:.0f} ms on two cores')
    print(f'loader: ratio {step / plain:.0f} goal 50')
