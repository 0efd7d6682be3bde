"Optimisers held against torch.optim step by step, behind fastai's interface; what goes where; state that survives."
import math
from copy import deepcopy
import pytest, torch
from torch import nn
from llmbook.core import set_seed
from llmbook.model.config import ModelConfig
from llmbook.model.transformer import Transformer
from llmbook.train import optim
from llmbook.train.optim import LMOptim, lm_opt, newton_schulz
from llmbook.checkpoint.state import load_checkpoint, optim_tensors, save_checkpoint

FAMILIES = {'qwen3': {}, 'untied': dict(tie_embeddings=False), 'gpt2': dict(family='gpt2'), 'encoder': dict(family='encoder')}
NS = (3.4445, -4.7750, 2.0315)


def model(family='qwen3', seed=0):
    set_seed(seed)
    return Transformer(ModelConfig(vocab_size=64, n_layer=2, d_model=32, n_head=2, context=16, **FAMILIES[family]))


def hypers(i):
    "What a schedule does: warm-up, plateau, fall; weight decay and momentum change too."
    lr = 3e-3 * min((i + 1) / 5, 1, (20 - i) / 10)
    return dict(lr=lr, wd=.1 if i < 8 else .3, mom=.9 if i < 12 else .8, sqr_mom=.95 if i < 15 else .99)


def grads(ps, seed):
    "Gradients of very different sizes, as training has them."
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(p.shape, generator=g) * 10 ** float(torch.randn((), generator=g)) for p in ps]


# ---- AdamW ----------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize('fused', [True, False])
def test_adamw_is_that_of_torch_step_by_step(family, fused):
    "Bit for bit with torch's fused kernel; with its plain one 3e-7 of weights of size 1, and the moments to 6 digits."
    ours, theirs = model(family), model(family)
    opt = lm_opt(ours, muon=False)(list(ours.parameters()), lr=1.)
    ps = list(theirs.parameters())
    ref = torch.optim.AdamW([dict(params=[p for p in ps if p.ndim >= 2]), dict(params=[p for p in ps if p.ndim < 2])], fused=fused)
    for i in range(20):
        h = hypers(i); opt.set_hypers(**h)
        for g, decays in zip(ref.param_groups, (1, 0)): g.update(lr=h['lr'], weight_decay=h['wd'] * decays, betas=(h['mom'], h['sqr_mom']))
        for p, q, g in zip(ours.parameters(), ps, grads(ps, i)): p.grad, q.grad = g.clone(), g
        opt.step(); ref.step()
        for p, q in zip(ours.parameters(), ps):
            a, b = opt.opt.state[p], ref.state[q]
            assert float(a['step']) == float(b['step']) == i + 1
            pairs = [(p, q), *((a[k], b[k]) for k in ('exp_avg', 'exp_avg_sq'))]
            if fused: assert all(torch.equal(x, y) for x, y in pairs), i
            else:
                assert torch.allclose(p, q, rtol=0, atol=3e-7), i
                assert all(torch.allclose(x, y, rtol=1e-5, atol=1e-6 * float(y.abs().max())) for x, y in pairs[1:]), i


# ---- Muon -----------------------------------------------------------------------------------------------------------------------

def orthogonal(m):
    "Muon's five rounds by the book, in float64."
    a, b, c = NS
    x = m.double() if m.shape[0] <= m.shape[1] else m.double().T
    x = x / x.norm()
    for _ in range(5):
        A = x @ x.T
        x = a * x + (b * A + c * A @ A) @ x
    return x if m.shape[0] <= m.shape[1] else x.T


def off(a, b): return float((a.double() - b.double()).norm() / b.double().norm())


SHAPES = [(24, 24), (32, 96), (96, 32), (128, 128), (144, 400), (400, 144)]


@pytest.mark.parametrize('shape', SHAPES, ids=str)
@pytest.mark.parametrize('half', [False, True], ids=['float32', 'as this machine computes'])
def test_muon_is_that_of_torch_step_by_step(shape, half, monkeypatch):
    """In float32 the path of a reference in float64 to 2e-5 of its length. In bfloat16, where that pays, 3e-2: as near as torch's own, which always computes in it.
    The momentum is torch's to the last bit."""
    if not half: monkeypatch.setattr(optim, '_half_pays', lambda G: False)
    start = .02 * torch.randn(shape, generator=torch.Generator().manual_seed(1))
    ours, theirs, book = nn.Parameter(start.clone()), nn.Parameter(start.clone()), start.double()
    opt, ref = LMOptim([ours], lr=1.), torch.optim.Muon([theirs], adjust_lr_fn='match_rms_adamw')
    buf = torch.zeros(shape, dtype=torch.float64)
    for i in range(20):
        h = hypers(i); opt.set_hypers(**h)
        ref.param_groups[0].update(lr=h['lr'], weight_decay=h['wd'], momentum=h['mom'])
        g, = grads([ours], i)
        ours.grad, theirs.grad = g.clone(), g.clone()
        opt.step(); ref.step()
        buf = buf.lerp(g.double(), 1 - h['mom'])
        book = book * (1 - h['lr'] * h['wd']) - h['lr'] * .2 * math.sqrt(max(shape)) * orthogonal(g.double().lerp(buf, h['mom']))
        assert torch.equal(opt.opt.state[ours]['momentum_buffer'], ref.state[theirs]['momentum_buffer']), i
        mine, exact, torchs = (w.detach() - start for w in (ours, book, theirs))
        assert off(mine, exact) < (3e-2 if half and optim._half_pays(start) else 2e-5), i
        assert off(mine, torchs) < 4e-2 and off(torchs, exact) < 3e-2, i


def spectra(rows, columns):
    g = torch.Generator().manual_seed(0)
    u, w = (torch.linalg.qr(torch.randn(n, rows, generator=g))[0] for n in (rows, columns))
    for name, s in (('flat', torch.ones(rows)), ('falling', 1 / torch.arange(1., rows + 1)), ('steep', torch.arange(1., rows + 1) ** -2),
                    ('one direction', torch.cat([torch.ones(1), torch.full((rows - 1,), 1e-3)])), ('half empty', (torch.arange(rows) < rows // 2).float())):
        yield name, u * s @ w.T


@pytest.mark.parametrize('tall', [False, True])
@pytest.mark.parametrize('half', [False, True])
def test_joined_rounds_are_as_near_to_the_book_as_torch(half, tall):
    "Also where one direction is far above the others: what rounding adds to the small matrices must not grow."
    for name, m in spectra(128, 400):
        if tall: m = m.T
        got, want = optim._alone(prepared(m, half), 5), orthogonal(m if not tall else m.T)
        theirs = torch.optim._muon._zeropower_via_newtonschulz(m, NS, 5, 1e-7)
        assert off(got, want) < 1.3 * off(theirs if not tall else theirs.T, want) + .03 if half else off(got, want) < 1e-4, name
        assert torch.linalg.svdvals(got.float()).max() < 1.35, name


def prepared(m, half):
    x = m.T if m.shape[0] > m.shape[1] else m
    x = x.bfloat16() if half else x
    return x / x.norm()


def test_a_zero_gradient_moves_nothing():
    for shape in SHAPES: assert not newton_schulz(torch.zeros(2, *shape)).any()


def test_stacked_and_alone_agree():
    "A matrix's update does not depend on what else has its shape."
    for shape in SHAPES:
        m = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
        for x, y in zip(newton_schulz(m), m): assert off(newton_schulz(y[None])[0], x) < 1e-3, shape


# ---- what goes where ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('family', FAMILIES)
def test_embeddings_heads_and_vectors_are_never_muons(family):
    m = model(family)
    opt, names = lm_opt(m)(list(m.parameters()), lr=1e-3), {id(p): n for n, p in m.named_parameters()}
    where = {names[id(p)]: (g['kind'], g['weight_decay']) for g in opt.opt.param_groups for p in g['params']}
    assert set(where) == set(names.values())                                # each once, tied ones too
    assert sum(len(g['params']) for g in opt.opt.param_groups) == len(names)
    for n, p in m.named_parameters():
        block = n.startswith('blocks') or n.startswith('predict')
        want = ('muon', .1) if p.ndim == 2 and block else ('adamw', .1) if p.ndim == 2 else ('adamw', 0)
        assert where[n] == want, n
    outside = [n for n in where if n.split('.')[0] in ('embed', 'pos', 'head')]
    assert outside and all(where[n][0] == 'adamw' for n in outside)


def test_decay_only_on_matrices_and_embeddings():
    "With gradients of zero, AdamW and Muon do nothing but decay."
    m = model('gpt2')
    opt, before = lm_opt(m, wd=.5)(list(m.parameters()), lr=.1), [p.detach().clone() for p in m.parameters()]
    for p in m.parameters(): p.grad = torch.zeros_like(p)
    opt.step()
    for b, p in zip(before, m.parameters()): assert torch.allclose(p, b * (1 - .1 * .5) if p.ndim >= 2 else b, atol=1e-7)


# ---- fastai's interface ---------------------------------------------------------------------------------------------------------

def layers(m): return [[*m.embed.parameters()], *([*b.parameters()] for b in m.blocks), [*m.norm.parameters()]]


def groups(opt, i): return [g for g, o in zip(opt.opt.param_groups, opt.owner) if o == i]


def test_hyperparameters_reach_every_part_of_a_layer_group():
    m = model(); opt = lm_opt(m)(layers(m), lr=1e-3)
    opt.set_hypers(lr=slice(1e-4, 1e-1), wd=[0., .1, .2, .3], mom=.7, sqr_mom=.8, eps=1e-6)
    want = [1e-4, 1e-3, 1e-2, 1e-1]
    assert [h['lr'] for h in opt.hypers] == pytest.approx(want) and [h['wd'] for h in opt.hypers] == [0., .1, .2, .3]
    for i in range(4):
        for g in groups(opt, i):
            assert g['lr'] == pytest.approx(want[i]) and g['betas'] == (.7, .8) and g['momentum'] == .7 and g['eps'] == 1e-6
            assert all(g['weight_decay'] == (i / 10 if p.ndim >= 2 else 0) for p in g['params'])
    opt.set_hypers(lr=slice(1e-2)) # the last group's, a tenth for the others
    assert [h['lr'] for h in opt.hypers] == pytest.approx([1e-3, 1e-3, 1e-3, 1e-2])
    with pytest.raises(AssertionError, match='2 values for lr'): opt.set_hypers(lr=[1., 2.])


def test_a_layer_groups_rate_is_that_of_an_optimiser_with_that_rate():
    a, b = model(), model()
    opt, alone = lm_opt(a)(layers(a), lr=1e-3), [lm_opt(b)(ps, lr=1e-3) for ps in layers(b)]
    opt.set_hypers(lr=slice(1e-4, 1e-1))
    for o, lr in zip(alone, (1e-4, 1e-3, 1e-2, 1e-1)): o.set_hypers(lr=lr)
    for i in range(3):
        for m in (a, b):
            ps = [p for l in layers(m) for p in l]
            for p, g in zip(ps, grads(ps, i)): p.grad = g
        opt.step(); [o.step() for o in alone]
    assert all(torch.allclose(p, q, rtol=1e-6, atol=1e-7) for p, q in zip(a.parameters(), b.parameters()))


@pytest.mark.parametrize('n', [1, -1, 0])
def test_frozen_groups_stay_and_the_others_learn(n):
    m = model(); opt = lm_opt(m)(layers(m), lr=1e-2)
    opt.freeze_to(n)
    before, x = [p.detach().clone() for p in m.parameters()], torch.randint(0, 64, (2, 16))
    m.logits(m(x)).square().mean().backward(); opt.step(); opt.zero_grad()
    frozen = {id(p) for l in layers(m)[:n if n >= 0 else 3] for p in l}
    assert opt.frozen_idx == (n if n >= 0 else 3)
    for b, p in zip(before, m.parameters()):
        assert p.requires_grad == (id(p) not in frozen) and torch.equal(b, p) == (id(p) in frozen) and p.grad is None
        assert bool(opt.opt.state.get(p)) == (id(p) not in frozen)
    opt.unfreeze(); assert all(p.requires_grad for p in m.parameters())
    opt.clear_state(); assert not opt.opt.state


# ---- state ----------------------------------------------------------------------------------------------------------------------

def run(m, opt, steps):
    for i in steps:
        opt.set_hypers(**{k: v for k, v in hypers(i).items() if k != 'wd'})
        for p, g in zip(m.parameters(), grads(list(m.parameters()), i)): p.grad = g
        opt.step(); opt.zero_grad()


@pytest.mark.parametrize('muon', [True, False])
@pytest.mark.parametrize('way', ['state_dict', 'checkpoint'])
def test_state_put_into_a_new_optimiser_goes_on_bit_for_bit(muon, way, tmp_path):
    a, b = model('gpt2'), model('gpt2', seed=1)
    opt, other = (lm_opt(m, muon=muon)(layers(m), lr=1.) for m in (a, b))
    opt.set_hypers(wd=[.01, .1, .3, .5])
    run(a, opt, range(7))
    if way == 'state_dict':
        b.load_state_dict(a.state_dict()); other.load_state_dict(deepcopy(opt.state_dict()))
    else:
        save_checkpoint(tmp_path/'c', a, opt, {}); load_checkpoint(tmp_path/'c', b, other)
    assert other.hypers == opt.hypers and other.hypers[-1]['wd'] == .5       # also where a group has only vectors
    run(a, opt, range(7, 14)); run(b, other, range(7, 14))
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))
    assert all(torch.equal(x, y) for x, y in zip(optim_tensors(opt)[0].values(), optim_tensors(other)[0].values()))


def test_older_states_without_the_decay_asked_for_are_understood():
    m = model(); opt = lm_opt(m, wd=.2)(list(m.parameters()), lr=1e-3)
    state = opt.state_dict()
    state['param_groups'] = [{k: v for k, v in g.items() if k != 'wd'} for g in state['param_groups']]
    other = lm_opt(m, wd=.7)(list(m.parameters()), lr=1e-3)
    other.load_state_dict(state)
    assert other.hypers[0]['wd'] == .2 and other.state_dict()['param_groups'][0]['wd'] == .2
