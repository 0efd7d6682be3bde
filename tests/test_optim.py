"Optimisers held against torch.optim step by step, behind fastai's interface; what goes where; state that survives."
import math
from copy import deepcopy
import pytest, torch
from torch import nn
from llmbook.core import UserError
from llmbook.core import set_seed
from llmbook.checkpoint.state import load_checkpoint, optim_tensors, save_checkpoint
from llmbook.model.config import ModelConfig
from llmbook.model.transformer import Transformer
from llmbook.train import optim
from llmbook.train.optim import LMOptim, lm_opt, newton_schulz

FAMILIES = {'qwen3': {}, 'untied': dict(tie_embeddings=False),
            'gpt2': dict(family='gpt2'), 'encoder': dict(family='encoder')}
NS = (3.4445, -4.7750, 2.0315)


def model(family='qwen3', seed=0):
    set_seed(seed)
    config = ModelConfig(vocab_size=64, n_layer=2, d_model=32, n_head=2, context=16, **FAMILIES[family])
    return Transformer(config)


def hypers(i):
    "Return what a schedule sets at step `i`: warm-up, plateau, fall; weight decay and momentum change too."
    lr = 3e-3 * min((i + 1) / 5, 1, (20 - i) / 10)
    return dict(lr=lr, wd=.1 if i < 8 else .3, mom=.9 if i < 12 else .8, sqr_mom=.95 if i < 15 else .99)


def grads(ps, seed):
    "Make gradients of very different sizes, as training has them."
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(p.shape, generator=g) * 10 ** float(torch.randn((), generator=g)) for p in ps]


def set_grads(ps, seed):
    for p, g in zip(ps, grads(ps, seed)): p.grad = g


# ---- AdamW

def adamw_of_torch(m, fused):
    "Return torch's AdamW with matrices, which decay, and vectors, which do not, in groups of their own."
    matrices = [p for p in m.parameters() if p.ndim >= 2]
    vectors = [p for p in m.parameters() if p.ndim < 2]
    return torch.optim.AdamW([dict(params=matrices), dict(params=vectors)], fused=fused)


def assert_near(x, y, step):
    "Compare moments to 6 digits."
    assert torch.allclose(x, y, rtol=1e-5, atol=1e-6 * float(y.abs().max())), step


@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize('fused', [True, False])
def test_adamw_equals_torch_step_by_step(family, fused):
    "Compare bit for bit with torch's fused kernel; with its plain one, weights to 3e-7 and moments to 6 digits."
    ours, theirs = model(family), model(family)
    ps = list(ours.parameters())
    qs = list(theirs.parameters())
    opt = lm_opt(ours, muon=False)(ps, lr=1.)
    ref = adamw_of_torch(theirs, fused)
    for i in range(20):
        h = hypers(i)
        opt.set_hypers(**h)
        for group, decay in zip(ref.param_groups, (h['wd'], 0)):
            group.update(lr=h['lr'], weight_decay=decay, betas=(h['mom'], h['sqr_mom']))
        set_grads(ps, i)
        set_grads(qs, i)
        opt.step()
        ref.step()
        for p, q in zip(ps, qs):
            mine = opt.opt.state[p]
            torchs = ref.state[q]
            assert float(mine['step']) == float(torchs['step']) == i + 1
            if fused: assert torch.equal(p, q), i
            else: assert torch.allclose(p, q, rtol=0, atol=3e-7), i
            for moment in ('exp_avg', 'exp_avg_sq'):
                if fused: assert torch.equal(mine[moment], torchs[moment]), i
                else: assert_near(mine[moment], torchs[moment], i)


# ---- Muon

def orthogonal(m):
    "Compute Muon's five rounds by the book, in float64."
    if m.shape[0] > m.shape[1]: return orthogonal(m.T).T
    a, b, c = NS
    x = m.double()
    x = x / x.norm()
    for _ in range(5):
        A = x @ x.T
        x = a * x + (b * A + c * A @ A) @ x
    return x


def off(a, b): return float((a.double() - b.double()).norm() / b.double().norm())


SHAPES = [(24, 24), (32, 96), (96, 32), (128, 128), (144, 400), (400, 144)]


class MuonByTheBook:
    "Muon's momentum, update and decay, in float64."
    def __init__(self, start):
        self.w = start.double()
        self.buffer = torch.zeros_like(self.w)
        self.scale = .2 * math.sqrt(max(start.shape))

    def step(self, g, lr, wd, mom):
        g = g.double()
        self.buffer = self.buffer.lerp(g, 1 - mom)
        update = orthogonal(g.lerp(self.buffer, mom))
        self.w = self.w * (1 - lr * wd) - lr * self.scale * update


@pytest.mark.parametrize('shape', SHAPES, ids=str)
@pytest.mark.parametrize('half', [False, True], ids=['float32', 'as this machine computes'])
def test_muon_equals_torch_step_by_step(shape, half, monkeypatch):
    """Compare with float64: to 2e-5 of the path's length in float32, and to 3e-2 in bfloat16, where that pays.

    torch's own Muon always computes in bfloat16 and is as near. The momentum is torch's to the last bit."""
    if not half: monkeypatch.setattr(optim, '_half_pays', lambda G: False)
    start = .02 * torch.randn(shape, generator=torch.Generator().manual_seed(1))
    bound = 3e-2 if half and optim._half_pays(start) else 2e-5
    ours = nn.Parameter(start.clone())
    theirs = nn.Parameter(start.clone())
    opt = LMOptim([ours], lr=1.)
    ref = torch.optim.Muon([theirs], adjust_lr_fn='match_rms_adamw')
    book = MuonByTheBook(start)
    for i in range(20):
        h = hypers(i)
        lr, wd, mom = h['lr'], h['wd'], h['mom']
        opt.set_hypers(**h)
        ref.param_groups[0].update(lr=lr, weight_decay=wd, momentum=mom)
        g, = grads([ours], i)
        ours.grad = g.clone()
        theirs.grad = g.clone()
        opt.step()
        ref.step()
        book.step(g, lr, wd, mom)
        mine = opt.opt.state[ours]
        torchs = ref.state[theirs]
        assert torch.equal(mine['momentum_buffer'], torchs['momentum_buffer']), i
        our_path, their_path, exact_path = [w.detach() - start for w in (ours, theirs, book.w)]
        assert off(our_path, exact_path) < bound, i
        assert off(our_path, their_path) < 4e-2, i
        assert off(their_path, exact_path) < 3e-2, i


def orthonormal(n, k, generator):
    "Return (n, k) numbers with orthonormal columns."
    return torch.linalg.qr(torch.randn(n, k, generator=generator))[0]


def spectra(rows, columns):
    "Yield (name, matrix) for singular values of different shapes."
    g = torch.Generator().manual_seed(0)
    u = orthonormal(rows, rows, g)
    w = orthonormal(columns, rows, g)
    numbers = torch.arange(1., rows + 1)
    one_direction = torch.full((rows,), 1e-3)
    one_direction[0] = 1
    values = {
        'flat': torch.ones(rows),
        'falling': 1 / numbers,
        'steep': numbers ** -2,
        'one direction': one_direction,
        'half empty': (numbers <= rows // 2).float(),
    }
    for name, s in values.items(): yield name, u * s @ w.T


def prepared(m, half):
    x = m.T if m.shape[0] > m.shape[1] else m
    if half: x = x.bfloat16()
    return x / x.norm()


@pytest.mark.parametrize('tall', [False, True])
@pytest.mark.parametrize('half', [False, True])
def test_joined_rounds_are_as_near_to_the_book_as_torch(half, tall):
    "Include a direction far above the others: what rounding adds to the small matrices must not grow."
    for name, wide in spectra(128, 400):
        m = wide.T if tall else wide
        got = optim._alone(prepared(m, half), 5)
        want = orthogonal(wide)
        theirs = torch.optim._muon._zeropower_via_newtonschulz(m, NS, 5, 1e-7)
        if tall: theirs = theirs.T
        bound = 1.3 * off(theirs, want) + .03 if half else 1e-4
        assert off(got, want) < bound, name
        largest = torch.linalg.svdvals(got.float()).max()
        assert largest < 1.35, name


def test_a_zero_gradient_moves_nothing():
    for shape in SHAPES: assert not newton_schulz(torch.zeros(2, *shape)).any()


def test_stacked_and_alone_agree():
    "Update a matrix in the same way whatever else has its shape."
    for shape in SHAPES:
        stack = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
        for x, m in zip(newton_schulz(stack), stack):
            assert off(newton_schulz(m[None])[0], x) < 1e-3, shape


# ---- what goes where

def where_parameters_go(m, opt):
    "Return the kind of optimiser and the weight decay of each parameter, by its name."
    names = {id(p): name for name, p in m.named_parameters()}
    where = {}
    for group in opt.opt.param_groups:
        for p in group['params']:
            name = names[id(p)]
            assert name not in where, 'each once, tied ones too'
            where[name] = group['kind'], group['weight_decay']
    return where


@pytest.mark.parametrize('family', FAMILIES)
def test_muon_takes_the_matrices_of_blocks_alone(family):
    m = model(family)
    opt = lm_opt(m)(list(m.parameters()), lr=1e-3)
    where = where_parameters_go(m, opt)
    parameters = dict(m.named_parameters())
    assert set(where) == set(parameters)
    for name, p in parameters.items():
        in_block = name.startswith(('blocks', 'predict'))
        is_matrix = p.ndim == 2
        kind = 'muon' if is_matrix and in_block else 'adamw'
        decay = .1 if is_matrix else 0
        assert where[name] == (kind, decay), name


@pytest.mark.parametrize('family', FAMILIES)
def test_muon_never_takes_embeddings_and_heads(family):
    m = model(family)
    where = where_parameters_go(m, lm_opt(m)(list(m.parameters()), lr=1e-3))
    outside = [name for name in where if name.split('.')[0] in ('embed', 'pos', 'head')]
    assert outside
    for name in outside:
        kind, _ = where[name]
        assert kind == 'adamw'


def test_only_matrices_and_embeddings_decay():
    "With gradients of zero, AdamW and Muon do nothing but decay."
    m = model('gpt2')
    opt = lm_opt(m, wd=.5)(list(m.parameters()), lr=.1)
    before = [p.detach().clone() for p in m.parameters()]
    for p in m.parameters(): p.grad = torch.zeros_like(p)
    opt.step()
    decayed = 1 - .1 * .5
    for b, p in zip(before, m.parameters()):
        want = b * decayed if p.ndim >= 2 else b
        assert torch.allclose(p, want, atol=1e-7)


# ---- fastai's interface

def layers(m):
    blocks = [[*b.parameters()] for b in m.blocks]
    return [[*m.embed.parameters()], *blocks, [*m.norm.parameters()]]


def groups(opt, i): return [g for g, owner in zip(opt.opt.param_groups, opt.owner) if owner == i]


def test_hyperparameters_reach_every_part_of_a_layer_group():
    m = model()
    opt = lm_opt(m)(layers(m), lr=1e-3)
    rates = [1e-4, 1e-3, 1e-2, 1e-1]
    decays = [0., .1, .2, .3]
    opt.set_hypers(lr=slice(1e-4, 1e-1), wd=decays, mom=.7, sqr_mom=.8, eps=1e-6)
    assert [h['lr'] for h in opt.hypers] == pytest.approx(rates)
    assert [h['wd'] for h in opt.hypers] == decays
    for i in range(4):
        for group in groups(opt, i):
            assert group['lr'] == pytest.approx(rates[i])
            assert group['betas'] == (.7, .8)
            assert group['momentum'] == .7
            assert group['eps'] == 1e-6
            for p in group['params']:
                decay = i / 10 if p.ndim >= 2 else 0
                assert group['weight_decay'] == decay


def test_a_slice_gives_the_last_group_its_rate_and_the_others_a_tenth():
    m = model()
    opt = lm_opt(m)(layers(m), lr=1e-3)
    opt.set_hypers(lr=slice(1e-2))
    assert [h['lr'] for h in opt.hypers] == pytest.approx([1e-3, 1e-3, 1e-3, 1e-2])
    with pytest.raises(UserError, match='one for each of the 4 layer groups, got 2'): opt.set_hypers(lr=[1., 2.])


def test_a_layer_group_learns_as_with_an_optimiser_of_its_own():
    together, apart = model(), model()
    opt = lm_opt(together)(layers(together), lr=1e-3)
    opt.set_hypers(lr=slice(1e-4, 1e-1))
    alone = []
    for ps, lr in zip(layers(apart), (1e-4, 1e-3, 1e-2, 1e-1)):
        one = lm_opt(apart)(ps, lr=1e-3)
        one.set_hypers(lr=lr)
        alone.append(one)
    for i in range(3):
        for m in (together, apart):
            in_layers = [p for layer in layers(m) for p in layer]
            set_grads(in_layers, i)
        opt.step()
        for one in alone: one.step()
    for p, q in zip(together.parameters(), apart.parameters()):
        assert torch.allclose(p, q, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize('n', [1, -1, 0])
def test_frozen_groups_stay_and_the_others_learn(n):
    m = model()
    opt = lm_opt(m)(layers(m), lr=1e-2)
    opt.freeze_to(n)
    before = [p.detach().clone() for p in m.parameters()]
    x = torch.randint(0, 64, (2, 16))
    m.logits(m(x)).square().mean().backward()
    opt.step()
    opt.zero_grad()
    first = n if n >= 0 else 3 # the first group that learns
    assert opt.frozen_idx == first
    frozen = {id(p) for layer in layers(m)[:first] for p in layer}
    for b, p in zip(before, m.parameters()):
        stays = id(p) in frozen
        assert p.requires_grad == (not stays)
        assert torch.equal(b, p) == stays
        assert p.grad is None
        assert bool(opt.opt.state.get(p)) == (not stays)
    opt.unfreeze()
    assert all(p.requires_grad for p in m.parameters())
    opt.clear_state()
    assert not opt.opt.state


# ---- state

def run(m, opt, steps):
    for i in steps:
        h = hypers(i)
        del h['wd']
        opt.set_hypers(**h)
        set_grads(list(m.parameters()), i)
        opt.step()
        opt.zero_grad()


@pytest.mark.parametrize('muon', [True, False])
@pytest.mark.parametrize('way', ['state_dict', 'checkpoint'])
def test_state_put_into_a_new_optimiser_resumes_bit_for_bit(muon, way, tmp_path):
    a = model('gpt2')
    b = model('gpt2', seed=1)
    def make(m): return lm_opt(m, muon=muon)(layers(m), lr=1.)
    opt, other = make(a), make(b)
    opt.set_hypers(wd=[.01, .1, .3, .5])
    run(a, opt, range(7))
    if way == 'state_dict':
        b.load_state_dict(a.state_dict())
        other.load_state_dict(deepcopy(opt.state_dict()))
    else:
        save_checkpoint(tmp_path/'c', a, opt, {})
        load_checkpoint(tmp_path/'c', b, other)
    assert other.hypers == opt.hypers
    assert other.hypers[-1]['wd'] == .5 # also where a group has only vectors
    run(a, opt, range(7, 14))
    run(b, other, range(7, 14))
    for p, q in zip(a.parameters(), b.parameters()): assert torch.equal(p, q)
    tensors, _ = optim_tensors(opt)
    others, _ = optim_tensors(other)
    for x, y in zip(tensors.values(), others.values()): assert torch.equal(x, y)


def test_older_states_that_lack_the_chosen_decay_are_understood():
    m = model()
    opt = lm_opt(m, wd=.2)(list(m.parameters()), lr=1e-3)
    state = opt.state_dict()
    for g in state['param_groups']: g.pop('wd')
    other = lm_opt(m, wd=.7)(list(m.parameters()), lr=1e-3)
    other.load_state_dict(state)
    assert other.hypers[0]['wd'] == .2
    assert other.state_dict()['param_groups'][0]['wd'] == .2
