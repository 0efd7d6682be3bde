"DDP on two processes of one thread against one process of two threads: the same model, optimiser and rows, in turns."
import statistics, time
import torch
from fastai.data.core import DataLoaders
from llmbook.model.config import ModelConfig
from llmbook.distributed.launch import launch
from llmbook.parallel.learner import parallel
from llmbook.pretrain.run import lm_learner
from llmbook.distributed.world import rank, wait_for_all

STEPS, ROUNDS, BS, T, V = 12, 4, 32, 128, 2048
CONFIG = ModelConfig(vocab_size=V, n_layer=4, d_model=192, n_head=4, context=T)


class Batches:
    "The same rows for both sides; one of two ranks reads half of them."
    def __init__(self, part, parts):
        g = torch.Generator().manual_seed(0)
        own = slice(BS * part // parts, BS * (part + 1) // parts)
        def rows(): return torch.randint(0, V, (BS, T), generator=g)[own]
        self.data = [(rows(), rows()) for _ in range(STEPS)]
    def __len__(self): return STEPS
    def __iter__(self): return iter(self.data)


def learner(part, parts):
    dls = DataLoaders(Batches(part, parts), [], device='cpu')
    return lm_learner(dls, CONFIG, lr=1e-3, seed=0, precision='fp32')


def tokens_per_s(learn, threads):
    torch.set_num_threads(threads)
    with learn.no_bar(), learn.no_logging():
        start = time.perf_counter()
        learn.fit(1)
    return STEPS * BS * T / (time.perf_counter() - start)


def rounds():
    together, alone = parallel(learner(rank(), 2)), learner(0, 1)
    res = []
    for _ in range(ROUNDS + 1):
        wait_for_all()
        two = tokens_per_s(together, threads=1)
        wait_for_all()
        one = tokens_per_s(alone, threads=2) if rank() == 0 else 0 # the other rank sleeps at the next line
        res.append((two, one))
        wait_for_all()
    return res[1:]


if __name__ == '__main__':
    res = launch(rounds, 2, device='cpu')
    two, one = (statistics.median(r) for r in zip(*res))
    params = sum(p.numel() for p in learner(0, 1).model.parameters())
    print(f'{params / 1e6:.1f}M parameters, {BS} rows of {T} tokens a step')
    print(f'one process, two threads    {one:8,.0f} tokens/s')
    print(f'two processes, one thread   {two:8,.0f} tokens/s')
    print(f'parallel: ratio {statistics.median(a / b for a, b in res):.3f} goal 0.9')
