"The Learner with its usual callbacks against a bare loop: same model, optimiser and batches, in turns."
import statistics, time
import torch
from fastai.data.core import DataLoaders
from llmbook.core import set_seed
from llmbook.model.config import ModelConfig
from llmbook.model.transformer import Transformer
from llmbook.pretrain.run import lm_learner
from llmbook.train.loss import LMLoss
from llmbook.train.optim import lm_opt

STEPS, ROUNDS = 40, 15
CONFIG = ModelConfig(vocab_size=1024, n_layer=2, d_model=64, n_head=2, n_kv_head=1, context=64)


class Batches:
    "The same batches for both sides."
    def __init__(self):
        g = torch.Generator().manual_seed(0)
        def ids(): return torch.randint(0, 1024, (44, 64), generator=g)
        self.data = [(ids(), ids()) for _ in range(STEPS)]
    def __len__(self): return STEPS
    def __iter__(self): return iter(self.data)


def bare(data):
    "Return the seconds of a step in a bare loop."
    set_seed(0)
    model = Transformer(CONFIG)
    loss, opt = LMLoss(model.head, 512), lm_opt(model)(list(model.parameters()), lr=1e-3)
    start = time.perf_counter()
    for x, y in data:
        loss(model(x), y).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.)
        opt.step()
        opt.zero_grad()
    return (time.perf_counter() - start) / STEPS


def learner(data):
    "Return the seconds of a step in the Learner."
    learn = lm_learner(DataLoaders(data, []), CONFIG, lr=1e-3, seed=0)
    with learn.no_bar(), learn.no_logging():
        start = time.perf_counter()
        learn.fit(1)
    return (time.perf_counter() - start) / STEPS


if __name__ == '__main__':
    data = Batches()
    bare(data)
    learner(data)
    times = [(bare(data), learner(data)) for _ in range(ROUNDS)]
    bare_ms, learner_ms = (1e3 * statistics.median(t) for t in zip(*times))
    print(f'bare loop {bare_ms:.1f} ms a step, Learner {learner_ms:.1f} ms')
    print(f'learner: ratio {statistics.median(a / b for a, b in times):.3f} goal 0.97')
