"DDP on two processes of one thread against one process of two threads: the same model, optimiser and rows, in turns."
import statistics, time
import torch
from fastai.data.core import DataLoaders
from llmbook.model.config import ModelConfig
from llmbook.distributed.launch import launch
from llmbook.parallel.learner import parallel
from llmbook.pretrain.run import lm_learner
from llmbook.distributed.world import rank, wait_for_all, world

STEPS, ROUNDS, BS, T = 12, 4, 32, 128
CONFIG = ModelConfig(vocab_size=2048, n_layer=4, d_model=192, n_head=4, context=T)


class Batches:
    "The same rows for both sides; one of two ranks reads half of them."
    def __init__(self, part, parts):
        g = torch.Generator().manual_seed(0)
        self.data = [tuple(torch.randint(0, 2048, (BS, T), generator=g)[BS * part // parts:BS * (part + 1) // parts] for _ in 'xy') for _ in range(STEPS)]
    def __len__(self): return STEPS
    def __iter__(self): return iter(self.data)


def learner(part, parts):
    return lm_learner(DataLoaders(Batches(part, parts), [], device='cpu'), CONFIG, lr=1e-3, seed=0, precision='fp32')


def timed(learn, threads):
    torch.set_num_threads(threads)
    with learn.no_bar(), learn.no_logging():
        start = time.perf_counter(); learn.fit(1)
    return STEPS * BS * T / (time.perf_counter() - start)


def rounds():
    together, alone = parallel(learner(rank(), 2)), learner(0, 1)
    res = []
    for _ in range(ROUNDS + 1):
        wait_for_all()
        ddp = timed(together, 1)
        wait_for_all()
        res.append((ddp, timed(alone, 2) if rank() == 0 else 0)) # the other rank sleeps at the next line
        wait_for_all()
    return res[1:]


if __name__ == '__main__':
    res = launch(rounds, 2, device='cpu')
    ddp, one = (statistics.median(r) for r in zip(*res))
    print(f'{sum(p.numel() for p in learner(0, 1).model.parameters()) / 1e6:.1f}M parameters, {BS} rows of {T} tokens a step\n'
          f'one process, two threads    {one:8,.0f} tokens/s\ntwo processes, one thread   {ddp:8,.0f} tokens/s')
    print(f'parallel: ratio {statistics.median(a / b for a, b in res):.3f} goal 0.9')
