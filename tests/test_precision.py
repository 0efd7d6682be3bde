"Precision: what a device cannot do is refused, autocast is always left, an overflowed step is never taken, eight bits within their bounds, no endless compiling."
from functools import partial
import pytest, torch
import torch.nn.functional as F
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from torch import nn
from torch.utils.checkpoint import checkpoint
from llmbook.core import UserError, set_seed
from llmbook.model.config import ModelConfig
from llmbook.model.linear import Linear
from llmbook.model.transformer import Transformer
from llmbook.train.compile import compile_model, find_compiler
from llmbook.train.fp8 import E4M3, E5M2, Float8Linear, from_float8, to_float8, to_fp8
from llmbook.train.loss import LMLoss
from llmbook.train.optim import LMOptim, lm_opt
from llmbook.train.precision import Precision, best_precision, check_precision
from llmbook.train.accumulate import Accumulate, ClipGrad

CONFIG = ModelConfig(vocab_size=64, n_layer=2, d_model=32, n_head=2, n_kv_head=1, context=32)


def batches(n=6, rows=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 64, (n, rows, 33), generator=g)
    return [(b[:, :-1], b[:, 1:]) for b in ids]


def learner(*cbs, data=None, config=CONFIG, lr=1e-3):
    set_seed(0)
    model, data = Transformer(config), data or batches()
    return Learner(DataLoaders(data, data[:2]), model, LMLoss(model.head), opt_func=lm_opt(model), lr=lr, cbs=cbs)


def fit(learn, n=1):
    with learn.no_bar(), learn.no_logging(): learn.fit(n)
    return learn


def flat(model): return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize('capability, allowed, auto', [((7, 0), 'fp32 fp16', 'fp16'), ((7, 5), 'fp32 fp16', 'fp16'),
    ((8, 0), 'fp32 tf32 bf16 fp16', 'bf16'), ((8, 9), 'fp32 tf32 bf16 fp16 fp8', 'bf16'), ((9, 0), 'fp32 tf32 bf16 fp16 fp8', 'bf16')])
def test_cards_are_asked_for_what_they_can(monkeypatch, capability, allowed, auto):
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda d=None: capability)
    assert best_precision('cuda') == check_precision('auto', 'cuda') == auto
    for p in ('fp32', 'tf32', 'bf16', 'fp16', 'fp8'):
        if p in allowed.split(): assert check_precision(p, 'cuda') == p
        else:
            with pytest.raises(UserError, match=f'compute capability .* for {p}, got {capability[0]}.{capability[1]}'): check_precision(p, 'cuda')


@pytest.mark.parametrize('precision', ['tf32', 'fp16', 'fp8'])
def test_refused_on_a_cpu_before_a_step_is_taken(precision):
    learn = learner(Precision(precision)); before = flat(learn.model)
    with pytest.raises(UserError, match=f'CUDA device for {precision}'): fit(learn)
    assert torch.equal(before, flat(learn.model)) and not torch.is_autocast_enabled('cpu')


@pytest.mark.parametrize('where', ['model', 'loss', 'interrupt'])
def test_autocast_is_left_after_an_error(where):
    learn = learner(Precision('bf16'))
    def fails(*a): raise KeyboardInterrupt if where == 'interrupt' else RuntimeError('stop here')
    if where == 'loss': learn.loss_func = fails
    else: learn.model.forward = fails
    with pytest.raises((RuntimeError, KeyboardInterrupt)): fit(learn)
    assert not torch.is_autocast_enabled('cpu')


def test_validation_and_predictions_are_under_the_precision_and_leave_it():
    learn = learner(Precision('bf16')); seen = []
    learn.model.blocks[0].mlp.down_proj.register_forward_hook(lambda m, i, o: seen.append(o.dtype))
    learn.validate(); learn.get_preds(dl=learn.dls.valid, reorder=False)
    assert set(seen) == {torch.bfloat16} and not torch.is_autocast_enabled('cpu')


def test_bf16_is_near_float32():
    a, b = (fit(learner(Precision(p))) for p in ('fp32', 'bf16'))
    assert 0 < (flat(a.model) - flat(b.model)).abs().max() < 5e-3


def test_recomputed_activations_are_recomputed_in_the_same_precision():
    def run(recompute):
        learn, seen = learner(Precision('bf16')), []
        if recompute:
            for b in learn.model.blocks:
                b.forward = partial(checkpoint, b.forward, use_reentrant=False)
        learn.model.blocks[0].attn.q_proj.register_forward_hook(lambda m, i, o: seen.append(o.dtype))
        return flat(fit(learn).model), seen
    (a, s), (b, t) = run(False), run(True)
    assert torch.equal(a, b) and set(s + t) == {torch.bfloat16} and len(t) > len(s)


def poisoned(n=8): # a batch of the head's inputs so large that float16 overflows at any usual scale
    g = torch.Generator().manual_seed(1)
    return [(torch.randn(8, 4, generator=g), torch.full((8, 1), 30.)) for _ in range(n)]


@pytest.mark.parametrize('clip', [None, 'none', 1.])
@pytest.mark.parametrize('muon', [False, True])
def test_an_overflowed_fp16_step_is_not_taken(clip, muon):
    set_seed(0)
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 1)); data = poisoned(1)
    cbs = [Precision('fp16', emulate=True)] + ([ClipGrad(clip if clip != 'none' else None, most=0)] if clip else [])
    learn = Learner(DataLoaders(data, data), model, nn.MSELoss(), opt_func=partial(LMOptim, muon=muon), lr=.1, cbs=cbs)
    before = flat(model)
    fit(learn)
    assert learn.precision.skipped == 1 and torch.equal(before, flat(model)) and not learn.opt.opt.state
    assert learn.precision.scaler.get_scale() == 2. ** 15
    if clip: assert learn.clip_grad.skipped == 0 # the scale was at fault, not the data
    learn.dls = DataLoaders(poisoned(12), data)
    fit(learn)
    assert not torch.equal(before, flat(model)) and flat(model).isfinite().all()


def test_fp16_with_a_loss_that_is_never_finite_comes_to_an_end():
    x = torch.full((4, 4), float('nan')); data = [(x, torch.zeros(4, 1))] * 40
    learn = Learner(DataLoaders(data, data[:1]), nn.Linear(4, 1), nn.MSELoss(), opt_func=LMOptim, lr=.1, cbs=Precision('fp16', emulate=True))
    with pytest.raises(UserError, match='not finite at any scale'): fit(learn)
    guarded = Learner(DataLoaders(data, data[:1]), nn.Linear(4, 1), nn.MSELoss(), opt_func=LMOptim, lr=.1,
                      cbs=[Precision('fp16', emulate=True), ClipGrad(None, patience=3, most=0)])
    with pytest.raises(UserError, match='3 steps in a row'): fit(guarded)


def test_fp16_under_accumulation_equals_float32_accumulation():
    set_seed(0); base = nn.Linear(4, 1); g = torch.Generator().manual_seed(0)
    data = [(torch.randn(8, 4, generator=g), torch.randn(8, 1, generator=g)) for _ in range(6)]
    def run(p):
        m = nn.Linear(4, 1); m.load_state_dict(base.state_dict())
        learn = Learner(DataLoaders(data, data), m, nn.MSELoss(), opt_func=LMOptim, lr=.01, cbs=[cb := Precision(p, emulate=True), Accumulate(2)])
        if p == 'fp16': cb.scaler = torch.amp.GradScaler('cpu', init_scale=64.)
        return flat(fit(learn).model)
    assert torch.allclose(run('fp32'), run('fp16'), atol=2e-3)


def test_the_scale_is_in_the_checkpoint_state():
    learn = learner(Precision('fp16', emulate=True)); fit(learn)
    learn.precision.scaler.update(128.)
    twin = learner(Precision('fp16', emulate=True)); fit(twin)
    twin.precision.load_checkpoint_state(learn.precision.checkpoint_state())
    assert twin.precision.scaler.get_scale() == 128.


@pytest.mark.parametrize('dtype, bits', [(E4M3, 3), (E5M2, 2)])
def test_eight_bits_round_to_half_a_unit(dtype, bits):
    x = torch.logspace(-3, 0, 500) * torch.tensor([1., -1.]).repeat(250)
    q, s = to_fp8(x, dtype)
    assert (((q.float() * s) - x).abs() / x.abs()).max() <= 2. ** -(bits + 1) * 1.001
    zero, s = to_fp8(torch.zeros(4), dtype)
    assert (zero.float() == 0).all() and s > 0
    assert to_fp8(torch.tensor([1., float('nan')]), dtype)[0].float().isnan().any()


@pytest.mark.parametrize('bias', [False, True])
def test_fp8_gradients_are_near_those_of_float32(bias):
    set_seed(1); m = nn.Linear(64, 48, bias=bias); x, g = torch.randn(2, 32, 64), torch.randn(2, 32, 48)
    def run():
        a = x.clone().requires_grad_(); m.zero_grad(); y = m(a); y.backward(g)
        return [y.detach(), a.grad, *(p.grad.clone() for p in m.parameters())]
    want = run(); m.__class__ = Float8Linear; got = run()
    for a, b in zip(want, got): assert ((a - b).norm() / a.norm()) < .08 and F.cosine_similarity(a.flatten(), b.flatten(), 0) > .997


def test_fp8_leaves_what_does_not_fit_and_gives_layers_back():
    model = Transformer(CONFIG)
    odd = nn.Sequential(nn.Linear(16, 20), nn.Linear(32, 16))
    assert to_float8(odd) == (1, ['0']) and to_float8(model)[0] == 14 and type(model.head) is Linear
    x = torch.randn(3, 5, 32) # 15 rows: not a multiple of 16
    m = model.blocks[0].attn.q_proj
    assert torch.equal(m(x), F.linear(x, m.weight)) and torch.equal(m.eval()(torch.randn(1, 16, 32) * 0), torch.zeros(1, 16, 32))
    from_float8(model)
    assert not any(isinstance(k, Float8Linear) for k in model.modules())


def test_fp8_trains_nearly_as_float32_does():
    "The optimiser's float32 weights stay; training in eight bits comes to nearly the same loss."
    data = batches(1) * 40
    a, b = (fit(learner(Precision(p, emulate=True), data=data, lr=1e-2)) for p in ('fp32', 'fp8'))
    losses = [m.loss_func(m.model(data[0][0]), data[0][1]).item() for m in (a, b)]
    assert losses[0] < 3 and abs(losses[0] - losses[1]) < .1, losses
    assert b.precision.layers == (14, []) and all(p.dtype == torch.float32 for p in b.model.parameters())
    assert not any(isinstance(m, Float8Linear) for m in b.model.modules())


def test_no_compiler_is_said_before_the_start(monkeypatch):
    monkeypatch.setattr('shutil.which', lambda name: None)
    with pytest.raises(UserError, match='C\\+\\+ compiler'): compile_model(Transformer(CONFIG))
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(UserError, match='Triton'): find_compiler('cuda')


def test_compiled_training_and_validation_do_not_recompile_without_end():
    graphs = []
    def counting(gm, inputs): graphs.append(1); return gm.forward
    data = batches(3) + [(x[:3], y[:3]) for x, y in batches(1)]
    plain, learn = learner(Precision('bf16'), data=data), learner(Precision('bf16'), data=data)
    compile_model(learn.model, backend=counting)
    fit(learn); first = len(graphs); fit(learn, 2); fit(plain, 1); fit(plain, 2)
    assert 0 < first == len(graphs) <= 6
    assert torch.allclose(flat(plain.model), flat(learn.model), atol=1e-3) # F.rms_norm in place of the hand-written gradient
    torch._dynamo.reset()
