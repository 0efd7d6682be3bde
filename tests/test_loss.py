"The chunked loss against differences and full logits, in 16 bits and compiled; micro-batches against the big batch."
import pytest, torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from llmbook.core import UserError, set_seed
from llmbook.model.config import ModelConfig
from llmbook.model.transformer import Transformer
from llmbook.tokens.loaders import IGNORE
from llmbook.train.accumulate import Accumulate
from llmbook.train.compile import find_compiler
from llmbook.train.loss import LMLoss, linear_cross_entropy, token_nats
from llmbook.train.microbatch import MicroBatches
from llmbook.train.optim import lm_opt

N, D, V = 11, 5, 7


def case(dtype=torch.float32, ignored=4, seed=0):
    "Make h, w, bias and targets; the last chunk of 4 is shorter, one chunk may be without targets."
    g = torch.Generator().manual_seed(seed)
    def leaf(*shape): return torch.randn(*shape, generator=g, dtype=dtype).requires_grad_()
    h = leaf(N, D)
    w = leaf(V, D)
    b = leaf(V)
    y = torch.randint(0, V, (N,), generator=g)
    y[4:4 + ignored] = IGNORE
    return h, w, b, y


def full(h, w, b, y, z_loss=0.):
    "Return the sum of nats from full logits."
    z = F.linear(h, w, b)
    penalty = (z.logsumexp(-1).square() * (y != IGNORE)).sum()
    return F.cross_entropy(z, y, ignore_index=IGNORE, reduction='sum') + z_loss * penalty


@pytest.mark.parametrize('chunk', [1, 4, 100])
@pytest.mark.parametrize('z_loss', [0., .1])
@pytest.mark.parametrize('bias', [False, True])
def test_gradients_equal_differences(chunk, z_loss, bias):
    h, w, b, y = case(torch.float64)
    def loss(h, w, b=None): return linear_cross_entropy(h, w, y, chunk, b, z_loss)[0]
    leaves = (h, w, b) if bias else (h, w)
    assert torch.autograd.gradcheck(loss, leaves)


def assert_same_gradients(got, want, leaves, **tolerance):
    ours = torch.autograd.grad(got, leaves)
    full = torch.autograd.grad(want, leaves)
    for a, b in zip(ours, full): assert torch.allclose(a, b, **tolerance)


@pytest.mark.parametrize('chunk', [1, 4, 100])
def test_bias_and_z_loss_equal_full_logits(chunk):
    "Compare in float64, to 12 digits."
    h, w, b, y = case(torch.float64)
    got, _ = linear_cross_entropy(h, w, y, chunk, b, .1)
    want = full(h, w, b, y, .1)
    assert torch.allclose(got, want, rtol=1e-12)
    assert got.dtype == torch.float64
    assert_same_gradients(got, want, (h, w, b), rtol=1e-11, atol=1e-13)


def loss_in_bfloat16(h, w, b, y):
    with torch.autocast('cpu', dtype=torch.bfloat16): return linear_cross_entropy(h, w, y, 4, b)


@pytest.mark.parametrize('bias', [False, True])
def test_under_bfloat16_the_sums_and_gradients_of_weights_stay_in_32_bits(bias):
    h, w, b, y = case()
    if not bias: b = None
    leaves = [p for p in (h, w, b) if p is not None]
    got, n = loss_in_bfloat16(h, w, b, y)
    want = full(h, w, b, y)
    assert got.dtype == torch.float32
    assert n == N - 4
    assert abs(got - want) < 1e-2 * want
    ours = torch.autograd.grad(got, leaves)
    exact = torch.autograd.grad(want, leaves)
    for p, a, c in zip(leaves, ours, exact):
        assert a.dtype == p.dtype
        assert (a - c).norm() < 2e-2 * c.norm()


@pytest.mark.parametrize('bias', [False, True])
def test_hidden_states_in_bfloat16_have_gradients_in_bfloat16(bias):
    "Take hidden states as a model under autocast gives them."
    h, w, b, y = case()
    if not bias: b = None
    want = full(h, w, b, y)
    h16 = h.detach().bfloat16().requires_grad_()
    got, _ = loss_in_bfloat16(h16, w, b, y)
    assert got.dtype == torch.float32
    assert abs(got - want) < 1e-2 * want
    gh, gw = torch.autograd.grad(got, (h16, w))
    assert gh.dtype == torch.bfloat16
    assert gw.dtype == torch.float32


@pytest.fixture(params=['eager', 'inductor'])
def backend(request):
    "Give a backend of `torch.compile`; forget what was compiled before and after."
    if request.param == 'inductor':
        try: find_compiler()
        except UserError: pytest.skip('no compiler')
    torch._dynamo.reset()
    yield request.param
    torch._dynamo.reset()


def test_under_torch_compile(backend):
    h, w, b, y = case()
    def loss(h, w, b): return linear_cross_entropy(h, w, y, 4, b, .1)[0]
    got = torch.compile(loss, backend=backend)(h, w, b)
    want = full(h, w, b, y, .1)
    assert torch.allclose(got, want, rtol=1e-5)
    assert_same_gradients(got, want, (h, w, b), atol=1e-5)


def test_nothing_to_predict_gives_zero_and_no_nan():
    "Take a batch of prompts or pads alone, with z-loss."
    h, w, b, _ = case()
    y = torch.full((N,), IGNORE)
    total, n = linear_cross_entropy(h, w, y, 4, b, .1)
    assert total == 0
    assert n == 0
    for g in torch.autograd.grad(total, (h, w, b)): assert not g.any()
    assert not token_nats(h, w, y, 4, b).any()


def test_a_head_with_nothing_to_predict_has_gradients_of_zero():
    h, *_ = case()
    y = torch.full((N,), IGNORE)
    head = torch.nn.Linear(D, V)
    rows = h.detach()[None].requires_grad_()
    loss = LMLoss(head, chunk=4)(rows, y[None])
    loss.backward()
    assert loss == 0
    assert not head.weight.grad.any()
    assert not head.bias.grad.any()


def test_logits_out_of_all_bounds_give_finite_gradients():
    h, w, _, _ = case()
    big = (h.detach() * 1e4).requires_grad_()
    y = torch.arange(N) % V
    loss, _ = linear_cross_entropy(big, w, y, 4)
    assert loss.isfinite()
    for g in torch.autograd.grad(loss, (big, w)): assert g.isfinite().all()


# ---- N micro-batches are the big batch

CONFIG = ModelConfig(vocab_size=64, n_layer=1, d_model=16, n_head=2, n_kv_head=1, context=16)


def big_batch():
    "Make 8 rows with 1 to 16 targets, one of them with none."
    ids = torch.randint(0, 64, (8, 17), generator=torch.Generator().manual_seed(0))
    x = ids[:, :-1]
    y = ids[:, 1:].clone()
    n_targets = (1, 16, 3, 0, 9, 2, 16, 5)
    for row, n in zip(y, n_targets): row[n:] = IGNORE
    return x, y


class Gradient(Callback):
    "Keeps the gradient that the optimiser would get."
    order = 50
    def before_step(self): self.learn.gradients = [p.grad.clone() for p in self.model.parameters()]


def gradients(batches, *cbs):
    set_seed(0)
    model = Transformer(CONFIG)
    dls = DataLoaders(batches, batches[:1])
    loss = LMLoss(model.head, chunk=7)
    learn = Learner(dls, model, loss, opt_func=lm_opt(model), lr=1e-3, cbs=[Gradient(), *cbs])
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    return learn.gradients


def gradients_of_full_logits(x, y):
    set_seed(0)
    model = Transformer(CONFIG)
    logits = model.logits(model(x))
    F.cross_entropy(logits.flatten(0, 1), y.flatten(), ignore_index=IGNORE).backward()
    return [p.grad for p in model.parameters()]


@pytest.mark.parametrize('cuts', [(1, 8), (4, 8), (1, 4, 6, 8), (3, 4, 8)], ids=str)
@pytest.mark.parametrize('rows', [None, 1, 2, 3])
def test_the_gradient_of_unequal_micro_batches_is_that_of_the_big_batch(cuts, rows):
    "Compare to 1e-6; a part without any target (rows 3 to 4) adds nothing."
    x, y = big_batch()
    starts = (0, *cuts)
    parts = [(x[start:end], y[start:end]) for start, end in zip(starts, cuts)]
    def micro(): return [MicroBatches(rows)] if rows else []
    accumulated = gradients(parts, Accumulate(len(parts)), *micro())
    whole = gradients([(x, y)], *micro())
    want = gradients_of_full_logits(x, y)
    for a, b, c in zip(accumulated, whole, want):
        assert torch.allclose(a, c, rtol=1e-4, atol=1e-6)
        assert torch.allclose(b, c, rtol=1e-4, atol=1e-6)


BAD_CHUNKS = [-1, 0, 1.5, None]
both_losses = pytest.mark.parametrize('f', [linear_cross_entropy, token_nats], ids=lambda f: f.__name__)


@both_losses
@pytest.mark.parametrize('y', [-1, V])
def test_targets_that_are_no_tokens_are_refused(f, y):
    targets = torch.full((6,), y)
    with pytest.raises((RuntimeError, IndexError)): f(torch.randn(6, D), torch.randn(V, D), targets)


@both_losses
@pytest.mark.parametrize('chunk', BAD_CHUNKS)
def test_bad_chunks_are_refused(f, chunk):
    targets = torch.zeros(6, dtype=torch.long)
    with pytest.raises(UserError): f(torch.randn(6, D), torch.randn(V, D), targets, chunk=chunk)


@pytest.mark.parametrize('chunk', BAD_CHUNKS)
def test_a_loss_of_bad_chunks_is_refused(chunk):
    with pytest.raises(UserError): LMLoss(torch.nn.Linear(D, V), chunk=chunk)


@both_losses
def test_no_targets_have_no_loss(f):
    nothing = torch.full((6,), IGNORE)
    first, *_ = f(torch.randn(6, D), torch.randn(V, D), nothing)
    assert not first.any()


@pytest.mark.parametrize('kw', [{}, dict(z_loss=.1), dict(bias=True), dict(compile=True)], ids=str)
def test_a_padded_head_gives_the_same(kw, monkeypatch):
    "Pad as on a GPU, where the number of tokens becomes a multiple of 64."
    import llmbook.train.loss as loss
    monkeypatch.setattr(loss, '_compiled', lambda: loss._one_pass)
    torch.manual_seed(0)
    tensors = dict(h=torch.randn(20, D), w=torch.randn(V, D))
    y = torch.randint(0, V, (20,))
    y[3] = IGNORE
    options = dict(kw)
    if options.pop('bias', False): tensors['bias'] = torch.randn(V)

    def results():
        leaves = {name: t.clone().requires_grad_() for name, t in tensors.items()}
        total, n = linear_cross_entropy(y=y, chunk=8, **leaves, **options)
        return [total.detach(), n, *torch.autograd.grad(total, list(leaves.values()))]

    plain = results()
    monkeypatch.setattr(loss, '_padding', lambda w: -len(w) % 64)
    assert V % 64
    for a, b in zip(results(), plain): torch.testing.assert_close(a, b)
