"What only a GPU meets: with stand-ins everywhere, and in earnest where there is one."
import types
import pytest, torch
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from llmbook.core import set_seed
from llmbook.generate.decoder import Decoder
from llmbook.generate.text import generate_ids
from llmbook.model.config import ModelConfig
from llmbook.model.layers import KVCache
from llmbook.model.transformer import Transformer
from llmbook.generate.cuda_graph import FixedStep, Replayed
from llmbook.checkpoint.checkpoint import Checkpoint
from llmbook.train.loss import linear_cross_entropy
from llmbook.pretrain.run import lm_learner
from llmbook.checkpoint.identity import load_recorder
from llmbook.train.telemetry import Clock

CONFIG = ModelConfig(vocab_size=64, n_layer=2, d_model=64, n_head=4, n_kv_head=2, context=64)
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')


class Rows:
    "A loader that can seek."
    def __init__(self, n=12, device='cpu'):
        g = torch.Generator().manual_seed(1)
        self.b, self.at = [b.to(device) for b in torch.randint(0, 64, (n, 8, 17), generator=g)], 0
    def __len__(self): return len(self.b)
    def to(self, device): return self
    def seek(self, i): self.at = i % len(self.b); return self
    def __iter__(self):
        start, self.at = self.at, 0
        return iter([(b[:, :-1], b[:, 1:]) for b in self.b[start:]])


def learner(*cbs, device='cpu', **kwargs):
    learn = lm_learner(DataLoaders(Rows(device=device), Rows(2, device), device=device), CONFIG, lr=1e-2, cbs=list(cbs), **kwargs)
    return learn


def fit(learn, n=1):
    with learn.no_bar(), learn.no_logging(): learn.fit(n)
    return learn


def flat(model): return torch.cat([p.detach().flatten().cpu() for p in model.parameters()])


class Late(Clock):
    "A device whose copies arrive when it is waited for, and not before."
    def __init__(self, device): super().__init__(device); self.under_way = []
    def reached(self, mark): return False
    def send(self, x):
        there = torch.full_like(x, torch.nan)
        self.under_way.append((there, x)); return there
    def between(self, a, b):
        for there, x in self.under_way: there.copy_(x)
        self.under_way.clear()
        return b - a


def test_what_was_sent_is_read_after_it_has_arrived(monkeypatch):
    import llmbook.train.telemetry as t
    plain = fit(learner()).telemetry.rows
    monkeypatch.setattr(t, 'Clock', Late)
    late = fit(learner()).telemetry.rows
    assert [(r['step'], r['tokens'], r['loss']) for r in late if 'loss' in r] == [(r['step'], r['tokens'], r['loss']) for r in plain if 'loss' in r]


def test_losses_from_a_file_go_to_where_the_next_ones_are_made():
    learn = types.SimpleNamespace(recorder=types.SimpleNamespace(smooth_loss=types.SimpleNamespace()), cbs=[], model=torch.nn.Linear(1, 1, device='meta'))
    record = dict(lrs=torch.zeros(3, dtype=torch.float64), losses=torch.ones(3))
    load_recorder(learn, dict(iters=[], values=[], smooth=[0., 3]), record)
    assert len(learn.recorder.losses) == 3 and all(l.device.type == 'meta' and l.ndim == 0 for l in learn.recorder.losses)


def test_losses_that_wait_in_a_spike_guard_too():
    from llmbook.checkpoint.spikes import SpikeGuard
    guard = SpikeGuard()
    guard.learn = types.SimpleNamespace(model=torch.nn.Linear(1, 1, device='meta'))
    guard.load_checkpoint_state(dict(recent=[], pending=[1., 2.], high=0, since=0, skipped=0, rewinds=[]))
    assert [p.device.type for p in guard.pending] == ['meta'] * 2
    guard.learn.model = torch.nn.Linear(1, 1)
    guard.load_checkpoint_state(dict(recent=[], pending=[1., 2.], high=0, since=0, skipped=0, rewinds=[]))
    assert guard.checkpoint_state()['pending'] == [1., 2.]


@pytest.mark.parametrize('family', ['qwen3', 'llama', 'gpt2'])
@pytest.mark.parametrize('pad', [None, (3, 0, 5)])
def test_a_fixed_step_is_the_decoders(family, pad):
    set_seed(0)
    model, x = Transformer(ModelConfig(family=family, vocab_size=64, n_layer=2, d_model=64, n_head=4, context=40)).eval(), torch.randint(64, (3, 30))
    pad = None if pad is None else torch.tensor(pad)
    with torch.inference_mode():
        a, b = Decoder(model, 3, 40, pad), Decoder(model, 3, 40, pad)
        a(x[:, :10]); b(x[:, :10])
        step = FixedStep(b)
        for t in range(10, 30):
            step.x.copy_(x[:, t]); step.pos.fill_(t)
            assert torch.allclose(step(), a(x[:, t:t + 1]), atol=1e-5)


def replayed(f):
    "What recording gives, on a CPU: the result always lies in the same tensor."
    out = f().clone()
    return lambda: out.copy_(f()), out


@pytest.mark.parametrize('prompts', [[[5]], [[5, 6, 7], [8], [9, 10]]])
def test_a_replayed_text_is_the_same(prompts, monkeypatch):
    "Past two sizes of the cache, and with rows that end earlier."
    import llmbook.generate.cuda_graph as r
    set_seed(0)
    model = Transformer(CONFIG).eval()
    want = [generate_ids(model, prompts, 50, temperature=t, seed=3, stop=7) for t in (0, 1.)]
    monkeypatch.setattr(r.Replayed, 'record', staticmethod(replayed))
    monkeypatch.setattr(r, 'Decoder', Replayed)
    assert want == [generate_ids(model, prompts, 50, temperature=t, seed=3, stop=7) for t in (0, 1.)]


def test_a_text_to_begin_with_needs_no_mask():
    cache = KVCache(CONFIG, 2)
    assert cache.mask(5) is None
    cache.pos = 1
    assert cache.mask(5).shape == (1, 1, 5, 6) and cache.mask(1) is None
    assert KVCache(CONFIG, 2, pad=torch.tensor([1, 0])).mask(5).shape == (2, 1, 5, 5)


def test_validation_makes_no_gradient_of_the_head():
    products = []
    import llmbook.train.loss as l
    times = l.times
    h, w, y = torch.randn(6, 8), torch.randn(11, 8, requires_grad=True), torch.randint(0, 11, (6,))
    try:
        l.times = lambda *a: products.append(1) or times(*a)
        with torch.no_grad(): a = linear_cross_entropy(h, w, y)[0]
        assert not products and not a.requires_grad
        b = linear_cross_entropy(h, w, y)[0]
        assert products and b.requires_grad and torch.equal(a, b.detach())
    finally: l.times = times


@gpu
@pytest.mark.parametrize('kw', [dict(precision='fp32'), dict(precision='bf16'), dict(precision='fp16'), dict(precision='bf16', compile=True), dict(precision='bf16', accumulate=2, recompute=1)])
def test_training_there_is_training_here(kw):
    here, there = fit(learner(precision='fp32', **{k: v for k, v in kw.items() if k == 'accumulate'})), fit(learner(device='cuda', **kw))
    assert next(there.model.parameters()).is_cuda
    a, b = (l.recorder.values[-1][1] for l in (here, there))
    assert abs(float(a) - float(b)) < (1e-3 if kw['precision'] == 'fp32' else .05)
    there.recorder.plot_loss()
    assert there.telemetry.rows[-2]['memory_peak'] > 0


@gpu
@pytest.mark.parametrize('kw', [dict(precision='fp32'), dict(precision='bf16')])
def test_stopped_and_resumed_there(kw, tmp_path):
    class Stop(Callback):
        order = 90
        def after_batch(self):
            if self.training and self.train_iter == 7: raise KeyboardInterrupt
    whole = fit(learner(device='cuda', **kw))
    try: fit(learner(Checkpoint(tmp_path/'c', every=3), Stop(), device='cuda', **kw))
    except KeyboardInterrupt: pass
    again = fit(learner(Checkpoint(tmp_path/'c', every=3), device='cuda', **kw))
    assert again.checkpoint.resumed and torch.equal(flat(whole.model), flat(again.model)) and whole.recorder.values == again.recorder.values


@gpu
@pytest.mark.parametrize('prompts', [[[5]], [[5, 6, 7], [8], [9, 10]]])
def test_writing_there_is_writing_here(prompts):
    set_seed(0)
    model = Transformer(CONFIG).eval()
    here = generate_ids(model, prompts, 50, temperature=0, stop=None)
    assert here == generate_ids(model.cuda(), prompts, 50, temperature=0, stop=None)
    assert all(len(t) == 50 for t in generate_ids(model.bfloat16(), prompts, 50, stop=None))


@gpu
def test_the_loss_there_is_the_loss_here():
    h, w, y = torch.randn(100, 64), torch.randn(300, 64), torch.randint(0, 300, (100,))
    def both(device, **kw):
        a, b = h.to(device).requires_grad_(), w.to(device).requires_grad_()
        with torch.autocast(device, torch.bfloat16): total = linear_cross_entropy(a, b, y.to(device), 32, **kw)[0]
        return [t.cpu() for t in (total, *torch.autograd.grad(total, (a, b)))]
    want = both('cpu')
    for kw in ({}, dict(compile=True)):
        for a, b in zip(both('cuda', **kw), want): assert (a - b).norm() < 1e-2 * b.norm()
