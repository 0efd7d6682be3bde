"""nanoGPT's published CPU recipe on tinyshakespeare against our best settings: seconds to its validation loss.

The recipe: characters, context 64, 4 layers, 4 heads, 128 wide, AdamW, batch 12, 2,000 iterations, cosine decay from
1e-3 to 1e-4, no dropout. Our settings have no more parameters. Both arms train through the Learner. The loss is that
of the whole last tenth of the text; scoring it is not counted as training. Seconds are steps times the median step,
so that what else the machine did in one arm's time does not count. An arm that ends above the published 1.88 counts
with the time of its whole run and its own last loss: the other arm then has to reach that loss and 1.88 too. The text
is read from LLMBOOK_DATA/tinyshakespeare.
"""
import os, statistics, sys, time
from pathlib import Path
import torch
from fastai.callback.core import Callback
from fastai.callback.schedule import ParamScheduler
from fastai.data.core import DataLoaders
from llmbook.core import set_seed
from llmbook.model.config import ModelConfig
from llmbook.train.loss import token_nats
from llmbook.train.schedules import cosine
from llmbook.pretrain.run import lm_learner

GOAL, T, BS = 1.88, 64, 12
SHARED = Path(__file__).resolve().parents[2]/'shared'/'data'


def text():
    "Return the ids of all characters, and the number of different characters."
    f = Path(os.environ.get('LLMBOOK_DATA', SHARED))/'tinyshakespeare'/'input.txt'
    if not f.exists():
        sys.exit(f'shakespeare: expected the text at {f}, found none: '
                 'set LLMBOOK_DATA to the folder that holds tinyshakespeare/input.txt')
    s = f.read_text()
    ids = {c: i for i, c in enumerate(sorted(set(s)))}
    return torch.tensor([ids[c] for c in s]), len(ids)


class Batches:
    "Random windows of a text."
    bs, seq_len = BS, T
    def __init__(self, ids, steps, seed=1): self.ids, self.steps, self.seed = ids, steps, seed
    def __len__(self): return self.steps
    def __iter__(self):
        g = torch.Generator().manual_seed(self.seed)
        for _ in range(self.steps):
            start = torch.randint(len(self.ids) - T, (BS, 1), generator=g)
            windows = self.ids[start + torch.arange(T + 1)]
            yield windows[:, :-1], windows[:, 1:]


class Score(Callback):
    "The time of training, and the validation loss now and then."
    order = 95
    def __init__(self, valid, every):
        self.valid, self.every = valid, every
        self.seconds = [] # of each step
        self.scores = [] # (step, loss)

    def before_train(self): self.start = time.perf_counter()

    def after_batch(self):
        self.seconds.append(time.perf_counter() - self.start)
        last = self.train_iter == len(self.dls.train)
        if last or self.train_iter % self.every == 0: self.scores.append((self.train_iter, self.score()))
        self.start = time.perf_counter()

    @property
    def rows(self): # (step, seconds, loss)
        step = statistics.median(self.seconds)
        return [(n, n * step, loss) for n, loss in self.scores]

    @torch.no_grad()
    def score(self):
        n = (len(self.valid) - 1) // T
        x, y = self.valid[:n * T].view(n, T), self.valid[1:n * T + 1].view(n, T)
        nats = 0
        for i in range(0, n, 256):
            h = self.model(x[i:i + 256])
            nats += token_nats(h, self.model.head.weight, y[i:i + 256]).sum().item()
        return nats / (n * T)


def arm(name, config, steps, lr, train, every, **kwargs):
    "Train one arm; return its number of parameters, and (step, seconds, loss) of each score."
    ids, vocab = text()
    cut = int(.9 * len(ids))
    set_seed(1)
    score = Score(ids[cut:], every)
    dls = DataLoaders(Batches(ids[:cut], steps), [])
    model_config = ModelConfig(vocab_size=vocab, context=T, **config)
    learn = lm_learner(dls, model_config, lr=lr, cbs=score, **kwargs)
    with learn.no_bar(), learn.no_logging(): train(learn)
    n = sum(p.numel() for p in learn.model.parameters())
    print(f'{name}: {n:,} parameters, {steps:,} steps of {BS} x {T}')
    for step, seconds, loss in score.rows: print(f'  step {step:5}  {seconds:6.1f} s  loss {loss:.4f}')
    return n, score.rows


def recipe():
    def train(learn):
        learn.create_opt()
        learn.opt.set_hyper('sqr_mom', .99)
        learn.fit(1, cbs=ParamScheduler({'lr': cosine(1e-3, warmup=.05, final=.1)}), wd=.1)
    return arm('recipe', dict(family='gpt2', n_layer=4, d_model=128, n_head=4), 2000, 1e-3, train, 250, muon=False)


def best():
    def train(learn): learn.fit_wsd(1, warmup=.05, decay=.5)
    return arm('ours', dict(n_layer=3, d_model=96, n_head=3, n_kv_head=3), 350, 8e-3, train, 50)


def seconds_to(goal, rows): return next((seconds for _, seconds, loss in rows if loss <= goal), None)


if __name__ == '__main__':
    n_ours, ours = best()
    n_theirs, theirs = recipe()
    assert n_ours <= n_theirs
    goal = max(GOAL, theirs[-1][2])
    took, theirs_took = seconds_to(GOAL, ours), seconds_to(goal, theirs)
    if took: print(f'recipe: loss {goal:.3f} after {theirs_took:.1f} s; ours: {GOAL} after {took:.1f} s')
    else: print(f'ours did not reach {GOAL}')
    print(f'shakespeare: ratio {theirs_took / took if took else 0:.2f} goal 4.0')
