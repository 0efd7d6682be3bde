"""nanoGPT's published CPU recipe on tinyshakespeare against our best settings at no more parameters: seconds of training to its validation loss.

The recipe: characters, context 64, 4 layers, 4 heads, 128 wide, AdamW, batch 12, 2,000 iterations, cosine decay from 1e-3 to 1e-4, no dropout. Both arms
train through the Learner. The loss is that of the whole last tenth of the text; scoring it is not counted as training. Seconds are steps times the median
step, so that what else the machine did in one arm's time does not count. An arm that ends above the published
1.88 counts with the time of its whole run and its own last loss: the other one then has to reach that loss and 1.88 too. The text is read from
LLMBOOK_DATA/tinyshakespeare.
"""
import os, statistics, sys, time
from pathlib import Path
import numpy as np, torch
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from llmbook.core import set_seed
from llmbook.model.config import ModelConfig
from llmbook.train.loss import token_nats
from llmbook.pretrain.run import lm_learner

GOAL, T = 1.88, 64


def text():
    "Ids of all characters, and how many kinds there are."
    f = Path(os.environ.get('LLMBOOK_DATA', Path(__file__).resolve().parents[2]/'shared'/'data'))/'tinyshakespeare'/'input.txt'
    if not f.exists(): sys.exit(f'shakespeare: expected the text at {f}, found none: set LLMBOOK_DATA to the folder that holds tinyshakespeare/input.txt')
    s = f.read_text()
    kinds = {c: i for i, c in enumerate(sorted(set(s)))}
    return torch.tensor([kinds[c] for c in s]), len(kinds)


class Batches:
    "Random windows of the first nine tenths."
    def __init__(self, ids, bs, steps, seed=1): self.ids, self.bs, self.steps, self.seed = ids, bs, steps, seed
    def __len__(self): return self.steps
    def __iter__(self):
        g = torch.Generator().manual_seed(self.seed)
        for _ in range(self.steps):
            at = torch.randint(len(self.ids) - T, (self.bs, 1), generator=g) + torch.arange(T + 1)
            w = self.ids[at]
            yield w[:, :-1], w[:, 1:]


class Score(Callback):
    "Time of training, and the validation loss now and then."
    order = 95
    def __init__(self, valid, every): self.valid, self.every, self.steps, self.scores = valid, every, [], []
    def before_train(self): self.start = time.perf_counter()
    def after_batch(self):
        self.steps.append(time.perf_counter() - self.start)
        if not self.train_iter % self.every or self.train_iter == len(self.dls.train): self.scores.append((self.train_iter, self.score()))
        self.start = time.perf_counter()
    @property
    def rows(self): return [(n, n * statistics.median(self.steps), loss) for n, loss in self.scores]
    @torch.no_grad()
    def score(self):
        n = (len(self.valid) - 1) // T
        x, y = self.valid[:n * T].view(n, T), self.valid[1:n * T + 1].view(n, T)
        return sum(token_nats(self.model(x[i:i + 256]), self.model.head.weight, y[i:i + 256]).sum().item() for i in range(0, n, 256)) / (n * T)


def arm(name, config, bs, steps, lr, schedule, every, **kwargs):
    ids, vocab = text()
    cut = int(.9 * len(ids))
    set_seed(1)
    score = Score(ids[cut:], every)
    learn = lm_learner(DataLoaders(Batches(ids[:cut], bs, steps), []), ModelConfig(vocab_size=vocab, context=T, **config), lr=lr, cbs=score, **kwargs)
    with learn.no_bar(), learn.no_logging(): schedule(learn)
    n = sum(p.numel() for p in learn.model.parameters())
    print(f'{name}: {n:,} parameters, {steps:,} steps of {bs} x {T}')
    for step, seconds, loss in score.rows: print(f'  step {step:5}  {seconds:6.1f} s  loss {loss:.4f}')
    return n, score.rows


def recipe():
    from llmbook.train.schedules import cosine
    from fastai.callback.schedule import ParamScheduler
    sched = lambda learn: learn.fit(1, cbs=ParamScheduler({'lr': cosine(1e-3, warmup=.05, final=.1)}), wd=.1)
    def run(learn):
        learn.create_opt(); learn.opt.set_hyper('sqr_mom', .99); sched(learn)
    return arm('recipe', dict(family='gpt2', n_layer=4, d_model=128, n_head=4), 12, 2000, 1e-3, run, 250, muon=False)


def best(): return arm('ours', dict(n_layer=3, d_model=96, n_head=3, n_kv_head=3), 12, 350, 8e-3, lambda l: l.fit_wsd(1, warmup=.05, decay=.5), 50)


if __name__ == '__main__':
    (n_ours, ours), (n_theirs, theirs) = best(), recipe()
    assert n_ours <= n_theirs
    goal = max(GOAL, theirs[-1][2])
    took = lambda rows, goal: next((s for _, s, loss in rows if loss <= goal), None)
    a, b = took(ours, GOAL), took(theirs, goal)
    print(f'recipe: loss {goal:.3f} after {b:.1f} s; ours: {GOAL} after {a:.1f} s' if a else f'ours did not reach {GOAL}')
    print(f'shakespeare: ratio {b / a if a else 0:.2f} goal 4.0')
