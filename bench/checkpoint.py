"""What checkpoints cost: training with saves against training without, the same steps in turns, in one process.

A save costs a copy in memory, during which training waits, and the work of the thread that writes and hashes, which takes time from the cores that train. Both are in the difference of the two
sides' times; over the saves that were made it is the cost of one, and over the default interval the share of training that checkpoints take. `python bench/checkpoint.py [SIZE]`
"""
import os, statistics, sys, tempfile, time
os.environ.setdefault('OMP_NUM_THREADS', str(len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()))
import torch
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from llmbook.core import human_bytes, human_count
from llmbook.model.config import ModelConfig
from llmbook.checkpoint.checkpoint import Checkpoint
from llmbook.pretrain.run import lm_learner

SIZE, STEPS, AT, ROUNDS = sys.argv[1] if len(sys.argv) > 1 else 'tiny', 40, (5, 20), 8
SIZES = dict(tiny=dict(n_layer=6, d_model=384, n_head=6, n_kv_head=6), small=dict(n_layer=10, d_model=512, n_head=8, n_kv_head=8))


class Batches:
    "The same batches for both sides."
    def __init__(self):
        g = torch.Generator().manual_seed(0)
        self.data = [tuple(torch.randint(0, 4096, (2, 128), generator=g) for _ in 'xy') for _ in range(STEPS)]
    def __len__(self): return STEPS
    def seek(self, i): pass
    def __iter__(self): return iter(self.data)


class Clock(Callback):
    "Begin a save at some steps, as a clock would."
    on = False
    def after_batch(self):
        if self.on and self.train_iter in AT: self.learn.checkpoint.due = True


def fit(learn, saves):
    "Seconds of a fit, without the wait for the disk at its very end."
    learn.clock.on, learn.checkpoint.stalled, learn.checkpoint.saves = saves, 0., 0
    learn.__dict__.pop('fits', None) # each round is the first fit of a folder of its own
    with tempfile.TemporaryDirectory() as folder, learn.no_bar(), learn.no_logging():
        learn.checkpoint.kept.folder = type(learn.checkpoint.kept.folder)(folder)
        start = time.perf_counter(); learn.fit(1)
        return time.perf_counter() - start, learn.checkpoint.stalled / max(learn.checkpoint.saves, 1), learn.checkpoint.took, learn.checkpoint.work


if __name__ == '__main__':
    interval = Checkpoint('.').seconds
    learn = lm_learner(DataLoaders(Batches(), []), ModelConfig(vocab_size=4096, context=128, **SIZES[SIZE]), lr=1e-3,
                       cbs=[Checkpoint('.', seconds=1e9, best=False, final=False), Clock()])
    fit(learn, True)
    rounds = [(fit(learn, False), fit(learn, True)) for _ in range(ROUNDS)]
    without, with_ = ([r[k] for r in rounds] for k in (0, 1))
    step, saves = statistics.median(t for t, *_ in without) / STEPS, len(AT)
    cost = statistics.median((b[0] - a[0]) / saves for a, b in rounds)
    stall, took, work = (statistics.median(w[k] for w in with_) for k in (1, 2, 3))
    held = sum(p.nbytes for p in learn.model.parameters()) + sum(t.nbytes for s in learn.opt.opt.state.values() for t in s.values())
    print(f'{human_count(sum(p.numel() for p in learn.model.parameters()))} parameters, {human_bytes(held)} in a checkpoint, {torch.get_num_threads()} threads, {step * 1e3:.0f} ms a step')
    print(f'{"":44}{"ms":>8}{"share of " + str(round(interval)) + " s":>16}')
    for name, s in (('training waits (the copy)', stall), ('all that a save costs training', cost), ('processor time of the thread', work), ('until a save is on the disk (not waited for)', took)):
        print(f'{name:44}{s * 1e3:8.0f}{s / interval:16.2%}')
    print(f'a step, with its share of a save every {interval:.0f} s: {100 * stall / interval:.2f} % of its time waiting')
    print(f'checkpoint: ratio {interval / (interval + max(cost, 0)):.4f} goal 0.98')
