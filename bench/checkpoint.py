"""What checkpoints cost: training with saves against training without, the same steps in turns, in one process.

A save costs a copy in memory, during which training waits, and the work of the thread that writes and hashes, which
takes time from the cores that train. Both are in the difference of the two sides' times. Divided by the number of saves
it is the cost of one; over the default interval it is the share of training that checkpoints take.
`python bench/checkpoint.py [SIZE]`
"""
import os, statistics, sys, tempfile, time
from pathlib import Path
from types import SimpleNamespace
CORES = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
os.environ.setdefault('OMP_NUM_THREADS', str(CORES))
import torch
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from llmbook.core import human_bytes, human_count
from llmbook.model.config import ModelConfig
from llmbook.checkpoint.checkpoint import Checkpoint
from llmbook.pretrain.run import lm_learner

SIZES = dict(
    tiny=dict(n_layer=6, d_model=384, n_head=6, n_kv_head=6),
    small=dict(n_layer=10, d_model=512, n_head=8, n_kv_head=8))
SIZE = sys.argv[1] if len(sys.argv) > 1 else 'tiny'
STEPS, ROUNDS = 40, 8
SAVES_AT = (5, 20) # steps


class Batches:
    "The same batches for both sides."
    def __init__(self):
        g = torch.Generator().manual_seed(0)
        def ids(): return torch.randint(0, 4096, (2, 128), generator=g)
        self.data = [(ids(), ids()) for _ in range(STEPS)]
    def __len__(self): return STEPS
    def seek(self, i): pass
    def __iter__(self): return iter(self.data)


class Clock(Callback):
    "Begin a save at some steps, as a clock would."
    on = False
    def after_batch(self):
        if self.on and self.train_iter in SAVES_AT: self.learn.checkpoint.due = True


def fit(learn, saves):
    "Return the seconds of a fit, and what its saves took, without the wait for the disk at its very end."
    checkpoint = learn.checkpoint
    learn.clock.on = saves
    checkpoint.stalled = 0.
    checkpoint.saves = 0
    learn.__dict__.pop('fits', None) # each round is the first fit of a folder of its own
    with tempfile.TemporaryDirectory() as folder, learn.no_bar(), learn.no_logging():
        checkpoint.kept.folder = Path(folder)
        start = time.perf_counter()
        learn.fit(1)
        seconds = time.perf_counter() - start
    stall = checkpoint.stalled / max(checkpoint.saves, 1)
    return SimpleNamespace(seconds=seconds, stall=stall, took=checkpoint.took, work=checkpoint.work)


def bytes_held(learn):
    moments = [t for state in learn.opt.opt.state.values() for t in state.values()]
    return sum(t.nbytes for t in [*learn.model.parameters(), *moments])


if __name__ == '__main__':
    interval = Checkpoint('.').seconds
    config = ModelConfig(vocab_size=4096, context=128, **SIZES[SIZE])
    checkpoint = Checkpoint('.', seconds=1e9, best=False, final=False)
    learn = lm_learner(DataLoaders(Batches(), []), config, lr=1e-3, cbs=[checkpoint, Clock()])
    fit(learn, True)
    rounds = [(fit(learn, False), fit(learn, True)) for _ in range(ROUNDS)]
    step = statistics.median(without.seconds for without, _ in rounds) / STEPS
    cost = statistics.median((saving.seconds - without.seconds) / len(SAVES_AT) for without, saving in rounds)
    def median(name): return statistics.median(getattr(saving, name) for _, saving in rounds)
    stall, took, work = median('stall'), median('took'), median('work')
    parameters = sum(p.numel() for p in learn.model.parameters())
    print(f'{human_count(parameters)} parameters, {human_bytes(bytes_held(learn))} in a checkpoint, '
          f'{torch.get_num_threads()} threads, {step * 1e3:.0f} ms a step')
    share_of = f'share of {round(interval)} s'
    print(f'{"":44}{"ms":>8}{share_of:>16}')
    costs = {
        'training waits (the copy)': stall,
        'all that a save costs training': cost,
        'processor time of the thread': work,
        'until a save is on the disk (not waited for)': took,
    }
    for name, s in costs.items(): print(f'{name:44}{s * 1e3:8.0f}{s / interval:16.2%}')
    waiting = 100 * stall / interval
    print(f'a step, with its share of a save every {interval:.0f} s: {waiting:.2f} % of its time waiting')
    print(f'checkpoint: ratio {interval / (interval + max(cost, 0)):.4f} goal 0.98')
