"What only a GPU meets: with stand-ins everywhere, and for real where there is one."
import types
import pytest, torch
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from llmbook.core import set_seed
from llmbook.model.config import ModelConfig
from llmbook.model.layers import KVCache
from llmbook.model.transformer import Transformer
from llmbook.train import loss, telemetry
from llmbook.train.telemetry import Clock
from llmbook.checkpoint.checkpoint import Checkpoint
from llmbook.checkpoint.identity import load_recorder
from llmbook.checkpoint.spikes import SpikeGuard
from llmbook.pretrain.run import lm_learner
from llmbook.generate import cuda_graph
from llmbook.generate.cuda_graph import FixedStep, Replayed
from llmbook.generate.decoder import Decoder
from llmbook.generate.text import generate_ids

CONFIG = ModelConfig(vocab_size=64, n_layer=2, d_model=64, n_head=4, n_kv_head=2, context=64)
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')


class Rows:
    "A loader that can seek."
    def __init__(self, n=12, device='cpu'):
        g = torch.Generator().manual_seed(1)
        rows = torch.randint(0, 64, (n, 8, 17), generator=g)
        self.batches = [b.to(device) for b in rows]
        self.at = 0

    def __len__(self): return len(self.batches)

    def to(self, device): return self

    def seek(self, i):
        self.at = i % len(self.batches)
        return self

    def __iter__(self):
        start, self.at = self.at, 0
        return iter([(b[:, :-1], b[:, 1:]) for b in self.batches[start:]])


def learner(*cbs, device='cpu', **kwargs):
    train = Rows(device=device)
    valid = Rows(2, device)
    dls = DataLoaders(train, valid, device=device)
    return lm_learner(dls, CONFIG, lr=1e-2, cbs=list(cbs), **kwargs)


def fit(learn, n=1):
    with learn.no_bar(), learn.no_logging(): learn.fit(n)
    return learn


def flat(model): return torch.cat([p.detach().flatten().cpu() for p in model.parameters()])


class Late(Clock):
    "A device whose copies arrive when it is waited for, and not before."
    def __init__(self, device):
        super().__init__(device)
        self.under_way = []

    def reached(self, mark): return False

    def send(self, x):
        there = torch.full_like(x, torch.nan)
        self.under_way.append((there, x))
        return there

    def between(self, a, b):
        for there, x in self.under_way: there.copy_(x)
        self.under_way.clear()
        return b - a


def test_what_was_sent_is_read_after_it_has_arrived(monkeypatch):
    def rows():
        history = fit(learner()).telemetry.rows
        return [(r['step'], r['tokens'], r['loss']) for r in history if 'loss' in r]
    plain = rows()
    monkeypatch.setattr(telemetry, 'Clock', Late)
    assert rows() == plain


def test_losses_from_a_file_go_to_where_the_next_ones_are_made():
    recorder = types.SimpleNamespace(smooth_loss=types.SimpleNamespace())
    model = torch.nn.Linear(1, 1, device='meta')
    learn = types.SimpleNamespace(recorder=recorder, cbs=[], model=model)
    record = dict(lrs=torch.zeros(3, dtype=torch.float64), losses=torch.ones(3))
    load_recorder(learn, dict(iters=[], values=[], smooth=[0., 3]), record)
    assert len(recorder.losses) == 3
    assert all(l.device.type == 'meta' and l.ndim == 0 for l in recorder.losses)


def test_losses_that_wait_in_a_spike_guard_too():
    guard = SpikeGuard()
    guard.learn = types.SimpleNamespace(model=torch.nn.Linear(1, 1, device='meta'))
    state = dict(recent=[], pending=[1., 2.], high=0, since=0, skipped=0, rewinds=[])
    guard.load_checkpoint_state(dict(state))
    assert [p.device.type for p in guard.pending] == ['meta'] * 2
    guard.learn.model = torch.nn.Linear(1, 1)
    guard.load_checkpoint_state(dict(state))
    assert guard.checkpoint_state()['pending'] == [1., 2.]


@pytest.mark.parametrize('family', ['qwen3', 'llama', 'gpt2'])
@pytest.mark.parametrize('pad', [None, (3, 0, 5)])
def test_a_fixed_step_is_the_decoders(family, pad):
    set_seed(0)
    config = ModelConfig(family=family, vocab_size=64, n_layer=2, d_model=64, n_head=4, context=40)
    model = Transformer(config).eval()
    x = torch.randint(64, (3, 30))
    pad = None if pad is None else torch.tensor(pad)
    with torch.inference_mode():
        a = Decoder(model, 3, 40, pad)
        b = Decoder(model, 3, 40, pad)
        prompts = x[:, :10]
        a(prompts)
        b(prompts)
        step = FixedStep(b)
        for t in range(10, 30):
            step.x.copy_(x[:, t])
            step.pos.fill_(t)
            want = a(x[:, t:t + 1])
            assert torch.allclose(step(), want, atol=1e-5)


def replayed(f):
    "Return what recording gives, on a CPU: the result always lies in the same tensor."
    out = f().clone()
    return lambda: out.copy_(f()), out


@pytest.mark.parametrize('prompts', [[[5]], [[5, 6, 7], [8], [9, 10]]])
def test_a_replayed_text_is_the_same(prompts, monkeypatch):
    "Write past two sizes of the cache, with rows that end earlier."
    set_seed(0)
    model = Transformer(CONFIG).eval()
    def texts(): return [generate_ids(model, prompts, 50, temperature=t, seed=3, stop=7) for t in (0, 1.)]
    want = texts()
    monkeypatch.setattr(Replayed, 'record', staticmethod(replayed))
    monkeypatch.setattr(cuda_graph, 'Decoder', Replayed)
    assert want == texts()


def test_a_text_to_begin_with_needs_no_mask():
    cache = KVCache(CONFIG, 2)
    assert cache.mask(5) is None
    cache.pos = 1
    assert cache.mask(5).shape == (1, 1, 5, 6)
    assert cache.mask(1) is None
    padded = KVCache(CONFIG, 2, pad=torch.tensor([1, 0]))
    assert padded.mask(5).shape == (2, 1, 5, 5)


def test_validation_makes_no_gradient_of_the_head(monkeypatch):
    products = []
    times = loss.times
    def counted(*args):
        products.append(1)
        return times(*args)
    monkeypatch.setattr(loss, 'times', counted)
    h = torch.randn(6, 8, requires_grad=True)
    w = torch.randn(11, 8, requires_grad=True)
    y = torch.randint(0, 11, (6,))
    with torch.no_grad(): a, _ = loss.linear_cross_entropy(h, w, y)
    assert not products
    assert not a.requires_grad
    b, _ = loss.linear_cross_entropy(h, w, y)
    assert products
    assert b.requires_grad
    assert torch.equal(a, b.detach())


KINDS = [
    dict(precision='fp32'),
    dict(precision='bf16'),
    dict(precision='fp16'),
    dict(precision='bf16', compile=True),
    dict(precision='bf16', accumulate=2, recompute=1),
]


@gpu
@pytest.mark.parametrize('kw', KINDS)
def test_training_there_is_training_here(kw):
    same_steps = {k: v for k, v in kw.items() if k == 'accumulate'}
    here = fit(learner(precision='fp32', **same_steps))
    there = fit(learner(device='cuda', **kw))
    assert next(there.model.parameters()).is_cuda
    a, b = (float(learn.recorder.values[-1][1]) for learn in (here, there))
    tolerance = 1e-3 if kw['precision'] == 'fp32' else .05
    assert abs(a - b) < tolerance
    there.recorder.plot_loss()
    assert there.telemetry.rows[-2]['memory_peak'] > 0


@gpu
@pytest.mark.parametrize('kw', [dict(precision='fp32'), dict(precision='bf16')])
def test_stopped_and_resumed_there(kw, tmp_path):
    class Stop(Callback):
        order = 90
        def after_batch(self):
            if self.training and self.train_iter == 7: raise KeyboardInterrupt
    def run(*cbs): return fit(learner(*cbs, device='cuda', **kw))
    def checkpoint(): return Checkpoint(tmp_path/'c', every=3)
    whole = run()
    try: run(checkpoint(), Stop())
    except KeyboardInterrupt: pass
    again = run(checkpoint())
    assert again.checkpoint.resumed
    assert torch.equal(flat(whole.model), flat(again.model))
    assert whole.recorder.values == again.recorder.values


@gpu
@pytest.mark.parametrize('prompts', [[[5]], [[5, 6, 7], [8], [9, 10]]])
def test_writing_there_is_writing_here(prompts):
    set_seed(0)
    model = Transformer(CONFIG).eval()
    here = generate_ids(model, prompts, 50, temperature=0, stop=None)
    assert here == generate_ids(model.cuda(), prompts, 50, temperature=0, stop=None)
    in_bf16 = generate_ids(model.bfloat16(), prompts, 50, stop=None)
    assert all(len(t) == 50 for t in in_bf16)


@gpu
def test_the_loss_there_is_the_loss_here():
    h = torch.randn(100, 64)
    w = torch.randn(300, 64)
    y = torch.randint(0, 300, (100,))
    def total_and_gradients(device, **kw):
        a = h.to(device).requires_grad_()
        b = w.to(device).requires_grad_()
        with torch.autocast(device, torch.bfloat16):
            total, _ = loss.linear_cross_entropy(a, b, y.to(device), 32, **kw)
        gradients = torch.autograd.grad(total, (a, b))
        return [t.cpu() for t in (total, *gradients)]
    want = total_and_gradients('cpu')
    for kw in ({}, dict(compile=True)):
        got = total_and_gradients('cuda', **kw)
        for a, b in zip(got, want): assert (a - b).norm() < 1e-2 * b.norm()
