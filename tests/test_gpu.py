"What only a GPU meets: with stand-ins everywhere, and with a real one where there is one."
import types
import pytest, torch
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from llmbook.core import set_seed
from llmbook.checkpoint.checkpoint import Checkpoint
from llmbook.checkpoint.identity import load_recorder
from llmbook.checkpoint.spikes import SpikeGuard
from llmbook.generate import cuda_graph
from llmbook.generate.cuda_graph import FixedStep, Replayed
from llmbook.generate.decoder import Decoder
from llmbook.generate.text import generate_ids
from llmbook.model.config import ModelConfig
from llmbook.model.layers import KVCache
from llmbook.model.transformer import Transformer
from llmbook.pretrain.run import lm_learner
from llmbook.train import loss, telemetry
from llmbook.train.loss import linear_cross_entropy
from llmbook.train.telemetry import Clock

CONFIG = ModelConfig(vocab_size=64, n_layer=2, d_model=64, n_head=4, n_kv_head=2, context=64)
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')


class Rows:
    "A loader that can seek."
    def __init__(self, n=12, device='cpu'):
        ids = torch.randint(0, 64, (n, 8, 17), generator=torch.Generator().manual_seed(1))
        self.batches = [b.to(device) for b in ids]
        self.at = 0
    def __len__(self): return len(self.batches)
    def to(self, device): return self
    def seek(self, i):
        self.at = i % len(self)
        return self
    def __iter__(self):
        start, self.at = self.at, 0
        return iter([(b[:, :-1], b[:, 1:]) for b in self.batches[start:]])


def learner(*cbs, device='cpu', **kwargs):
    dls = DataLoaders(Rows(device=device), Rows(2, device), device=device)
    return lm_learner(dls, CONFIG, lr=1e-2, cbs=list(cbs), **kwargs)


def fit(learn, n=1):
    with learn.no_bar(), learn.no_logging(): learn.fit(n)
    return learn


def flat(model): return torch.cat([p.detach().flatten().cpu() for p in model.parameters()])


# ---- with stand-ins

class Late(Clock):
    "A device whose copies arrive when it is waited for, and not before."
    def __init__(self, device):
        super().__init__(device)
        self.under_way = []
    def reached(self, mark): return False
    def send(self, x):
        copy = torch.full_like(x, torch.nan)
        self.under_way.append((copy, x))
        return copy
    def between(self, a, b):
        for copy, x in self.under_way: copy.copy_(x)
        self.under_way.clear()
        return b - a


def test_what_was_sent_is_read_after_it_has_arrived(monkeypatch):
    def losses(): return [(r['step'], r['tokens'], r['loss']) for r in fit(learner()).telemetry.rows if 'loss' in r]
    plain = losses()
    monkeypatch.setattr(telemetry, 'Clock', Late)
    assert losses() == plain


def test_losses_from_a_file_go_to_where_the_next_ones_are_made():
    recorder = types.SimpleNamespace(smooth_loss=types.SimpleNamespace())
    learn = types.SimpleNamespace(recorder=recorder, cbs=[], model=torch.nn.Linear(1, 1, device='meta'))
    tensors = dict(lrs=torch.zeros(3, dtype=torch.float64), losses=torch.ones(3))
    load_recorder(learn, dict(iters=[], values=[], smooth=[0., 3]), tensors)
    assert len(recorder.losses) == 3
    assert all(l.device.type == 'meta' and l.ndim == 0 for l in recorder.losses)


def test_losses_that_wait_in_a_spike_guard_go_there_too():
    def state(): return dict(recent=[], pending=[1., 2.], high=0, since=0, skipped=0, rewinds=[])
    guard = SpikeGuard()
    guard.learn = types.SimpleNamespace(model=torch.nn.Linear(1, 1, device='meta'))
    guard.load_checkpoint_state(state())
    assert [p.device.type for p in guard.pending] == ['meta'] * 2
    guard.learn.model = torch.nn.Linear(1, 1)
    guard.load_checkpoint_state(state())
    assert guard.checkpoint_state()['pending'] == [1., 2.]


@pytest.mark.parametrize('family', ['qwen3', 'llama', 'gpt2'])
@pytest.mark.parametrize('pad', [None, (3, 0, 5)])
def test_a_fixed_step_computes_what_the_decoder_does(family, pad):
    set_seed(0)
    model = Transformer(ModelConfig(family=family, vocab_size=64, n_layer=2, d_model=64, n_head=4, context=40)).eval()
    x = torch.randint(64, (3, 30))
    if pad is not None: pad = torch.tensor(pad)
    with torch.inference_mode():
        plain, fixed = (Decoder(model, 3, 40, pad) for _ in range(2))
        for d in (plain, fixed): d(x[:, :10])
        step = FixedStep(fixed)
        for t in range(10, 30):
            step.x.copy_(x[:, t])
            step.pos.fill_(t)
            assert torch.allclose(step(), plain(x[:, t:t + 1]), atol=1e-5)


def record_on_a_cpu(f):
    "Do what recording does: the result always lies in the same tensor."
    out = f().clone()
    return lambda: out.copy_(f()), out


@pytest.mark.parametrize('prompts', [[[5]], [[5, 6, 7], [8], [9, 10]]])
def test_a_replayed_text_is_the_same(prompts, monkeypatch):
    "Go past two sizes of the cache, with rows that end earlier."
    set_seed(0)
    model = Transformer(CONFIG).eval()
    def texts(): return [generate_ids(model, prompts, 50, temperature=t, seed=3, stop=7) for t in (0, 1.)]
    want = texts()
    monkeypatch.setattr(Replayed, 'record', staticmethod(record_on_a_cpu))
    monkeypatch.setattr(cuda_graph, 'Decoder', Replayed)
    assert want == texts()


def test_a_text_to_begin_with_needs_no_mask():
    cache = KVCache(CONFIG, 2)
    assert cache.mask(5) is None
    cache.pos = 1
    assert cache.mask(5).shape == (1, 1, 5, 6)
    assert cache.mask(1) is None
    assert KVCache(CONFIG, 2, pad=torch.tensor([1, 0])).mask(5).shape == (2, 1, 5, 5)


def test_validation_makes_no_gradient_of_the_head(monkeypatch):
    products, times = [], loss.times
    def counted(a, w):
        products.append(a)
        return times(a, w)
    monkeypatch.setattr(loss, 'times', counted)
    h, w, y = torch.randn(6, 8), torch.randn(11, 8, requires_grad=True), torch.randint(0, 11, (6,))
    with torch.no_grad(): validated = linear_cross_entropy(h, w, y)[0]
    assert not products
    assert not validated.requires_grad
    trained = linear_cross_entropy(h, w, y)[0]
    assert products
    assert trained.requires_grad
    assert torch.equal(validated, trained.detach())


# ---- with a GPU

@gpu
@pytest.mark.parametrize('options', [
    dict(precision='fp32'), dict(precision='bf16'), dict(precision='fp16'),
    dict(precision='bf16', compile=True), dict(precision='bf16', accumulate=2, recompute=1)])
def test_training_there_is_training_here(options):
    accumulate = {k: v for k, v in options.items() if k == 'accumulate'}
    here, there = fit(learner(precision='fp32', **accumulate)), fit(learner(device='cuda', **options))
    assert next(there.model.parameters()).is_cuda
    a, b = (float(learn.recorder.values[-1][1]) for learn in (here, there))
    assert abs(a - b) < (1e-3 if options['precision'] == 'fp32' else .05)
    there.recorder.plot_loss()
    assert there.telemetry.rows[-2]['memory_peak'] > 0


class Stop(Callback):
    order = 90
    def after_batch(self):
        if self.training and self.train_iter == 7: raise KeyboardInterrupt


@gpu
@pytest.mark.parametrize('options', [dict(precision='fp32'), dict(precision='bf16')])
def test_stopped_and_resumed_there(options, tmp_path):
    def run(*cbs): return fit(learner(*cbs, device='cuda', **options))
    def saving(): return Checkpoint(tmp_path/'c', every=3)
    whole = run()
    try: run(saving(), Stop())
    except KeyboardInterrupt: pass
    again = run(saving())
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
    assert all(len(text) == 50 for text in generate_ids(model.bfloat16(), prompts, 50, stop=None))


@gpu
def test_the_loss_there_is_the_loss_here():
    h, w, y = torch.randn(100, 64), torch.randn(300, 64), torch.randint(0, 300, (100,))
    def loss_and_gradients(device, **options):
        a, b = h.to(device).requires_grad_(), w.to(device).requires_grad_()
        with torch.autocast(device, torch.bfloat16): total = linear_cross_entropy(a, b, y.to(device), 32, **options)[0]
        return [t.cpu() for t in (total, *torch.autograd.grad(total, (a, b)))]
    want = loss_and_gradients('cpu')
    for options in (dict(), dict(compile=True)):
        for a, b in zip(loss_and_gradients('cuda', **options), want): assert (a - b).norm() < 1e-2 * b.norm()
