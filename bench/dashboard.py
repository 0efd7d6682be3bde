"""A fit with the dashboard against one without: same model and batches, in turns.

What would be sent to a notebook is made and written as JSON.
"""
import json, statistics, time
import IPython.display, torch
from fastai.data.core import DataLoaders
from llmbook.model.config import ModelConfig
from llmbook.pretrain.run import lm_learner
from llmbook.widgets.dashboard import Dashboard

STEPS = 240
ROUNDS = 8
CONFIG = ModelConfig(vocab_size=1024, n_layer=2, d_model=64, n_head=2, n_kv_head=1, context=64)


class Batches:
    "The same batches for both sides."
    def __init__(self, n=STEPS):
        g = torch.Generator().manual_seed(0)
        def tokens(): return torch.randint(0, 1024, (32, 64), generator=g)
        self.data = [(tokens(), tokens()) for _ in range(n)]
    def __len__(self): return len(self.data)
    def __iter__(self): return iter(self.data)


class Sent:
    "A stand-in for a notebook, which counts the bytes it is sent."
    n = 0
    def __call__(self, bundle, **kwargs):
        self.update(bundle)
        return self
    def update(self, bundle, **kwargs): self.n += len(json.dumps(bundle))


def fit(data, cbs=None):
    "Return the seconds a step takes."
    learn = lm_learner(DataLoaders(data, []), CONFIG, lr=1e-3, seed=0)
    with learn.no_bar(), learn.no_logging():
        start = time.perf_counter()
        learn.fit(1, cbs=cbs)
    return (time.perf_counter() - start) / STEPS


if __name__ == '__main__':
    data, sent = Batches(), Sent()
    IPython.display.display = sent
    fit(Batches(20))
    without, with_dashboard = [], []
    for _ in range(ROUNDS):
        dash = Dashboard('widget')
        without.append(fit(data))
        with_dashboard.append(fit(data, dash))
    before, after = statistics.median(without), statistics.median(with_dashboard)
    drawing = dash.spent / (STEPS * with_dashboard[-1])
    ratios = [a / b for a, b in zip(without, with_dashboard)]
    print(f'{before * 1e3:.2f} ms a step without, {after * 1e3:.2f} ms with')
    print(f'{drawing:.1%} of the last fit went into drawing, {sent.n / ROUNDS / 1e3:.0f} kB sent a fit')
    print(f'dashboard: ratio {statistics.median(ratios):.3f} goal 0.98')
