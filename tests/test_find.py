"lr_find: fastai's suggestions, and no trace: weights, moments, dice, data, records, callbacks and files are as before, also after errors."
import random
from functools import partial
import numpy as np, pytest, torch
from fastai.callback.core import Callback
from fastai.callback.schedule import minimum, slide, steep, valley
from fastai.callback.tracker import EarlyStoppingCallback, SaveModelCallback
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from llmbook.core import UserError, set_seed
from llmbook.tokens.loaders import lm_dls
from llmbook.tokens.shards import read_manifest
from llmbook.model.config import ModelConfig
from llmbook.model.transformer import Transformer
from llmbook.checkpoint.checkpoint import Checkpoint
from llmbook.pretrain.lr_find import unchanged
from llmbook.checkpoint.spikes import SpikeGuard
from llmbook.distributed.launch import launch
from llmbook.train.learner import LMLearner
from llmbook.parallel.learner import parallel
from llmbook.train.precision import Precision
from llmbook.pretrain.run import lm_learner
from llmbook.checkpoint.state import optim_tensors, rng_state
from llmbook.train.accumulate import Accumulate
from llmbook.train.telemetry import Samples
from llmbook.distributed.world import join, rank, whole
from test_train import grammar_data


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp('grammar')
    grammar_data(path)
    return path


def learner(data, path, cbs=(), steps=8, **kwargs):
    "A Learner with dice in its steps: dropout, and a callback that asks numpy and Python."
    dls = lm_dls(data, bs=4, seq_len=16, steps=steps, valid_batches=2, device='cpu')
    set_seed(0)
    model = Transformer(ModelConfig(vocab_size=read_manifest(data)['vocab_size'], n_layer=1, d_model=32, n_head=2, n_kv_head=1, context=16))
    model.norm = torch.nn.Sequential(model.norm, torch.nn.Dropout(.3))
    learn = lm_learner(dls, model, lr=kwargs.pop('lr', 1e-2), cbs=[Dice(), *cbs], path=path, **kwargs)
    learn.telemetry.every = 2
    learn.create_mbar, learn.logger = False, lambda *a: None
    return learn


class Dice(Callback):
    order, run_valid = 1, False
    def after_pred(self): self.learn.pred = self.pred * (1 + .01 * random.random() + .01 * float(np.random.rand()))


class Hears(Callback):
    "Watches: its order is behind the Recorder's."
    order = 70
    def __init__(self): self.heard = 0
    def after_batch(self): self.heard += 1


def everything(data, path):
    "All that a run may have."
    said = []
    cbs = [Checkpoint(path/'c', every=4), SpikeGuard(window=8), Samples(lambda m, ps: said.append(1) or ps, ['a'], path=path/'s.jsonl'), Hears(), Accumulate(2)]
    learn = learner(data, path, cbs)
    learn.telemetry.csv_path = path/'h.csv'
    return learn


TIMES = {'seconds', 'wall', 'tokens_per_s', 'memory', 'memory_peak', 'lost', 'saving', 'validating', 'sampling', 'paused', 'start', 'wall0'}


def trace(learn):
    "What there is of a Learner, as values that can be compared."
    opt = None if learn.opt is None else (optim_tensors(learn.opt)[0], learn.opt.hypers, learn.opt.frozen_idx)
    r = learn.recorder
    tel = learn.telemetry
    return dict(model={k: v.clone() for k, v in learn.model.state_dict().items()}, modes=[m.training for m in learn.model.modules()],
                grads=[None if p.grad is None else p.grad.clone() for p in learn.model.parameters()],
                opt=opt and ({k: v.clone() for k, v in opt[0].items()}, opt[1:]), rng=rng_state(), learn=sorted(vars(learn)), step=getattr(learn, 'train_iter', None),
                cbs=[(cb.name, sorted(vars(cb))) for cb in learn.cbs], position=learn.dls.train.position,
                recorder=[[float(x) for x in getattr(r, k, [])] for k in ('lrs', 'losses')] + [len(getattr(r, 'values', []))],
                smooth=learn.recorder.smooth_loss.state(), rows=[{k: v for k, v in row.items() if k not in TIMES} for row in tel.rows],
                clip=learn.clip_grad.checkpoint_state() | dict(most=learn.clip_grad.most, patience=learn.clip_grad.patience), rows_at_once=learn.micro_batches.rows)


def same(a, b):
    "Equal values, tensors bit for bit."
    if torch.is_tensor(a): return torch.is_tensor(b) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict): return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)): return len(a) == len(b) and all(map(same, a, b))
    return a == b


def differing(a, b): return [k for k in a if not same(a[k], b[k])]


def files(path): return {f: f.read_bytes() for f in sorted(path.rglob('*')) if f.is_file()}


def find(learn, **kwargs): return learn.lr_find(**{**dict(start_lr=1e-5, num_it=12, show_plot=False, suggest_funcs=None), **kwargs})


# ---- no trace -------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('trained', [False, True], ids=['new', 'in the middle'])
def test_nothing_is_left(data, tmp_path, trained):
    learn = everything(data, tmp_path)
    if trained: learn.fit_wsd(2)
    before, there = trace(learn), files(tmp_path)
    heard, rows, saves = learn.hears.heard, len(learn.samples.rows), learn.checkpoint.saves
    find(learn)
    assert len(learn.lr_search.lrs) == 12                                    # it did train: 12 steps of 2 batches
    del learn.lr_search
    assert not differing(before, trace(learn)) and files(tmp_path) == there
    assert (heard, rows, saves) == (learn.hears.heard, len(learn.samples.rows), learn.checkpoint.saves)
    assert not hasattr(learn, 'lr_finder') and learn.checkpoint in learn.cbs and learn.telemetry.learn is learn


@pytest.mark.parametrize('precision', ['fp32', 'bf16', 'fp16'])
@pytest.mark.parametrize('trained', [0, 1])
def test_a_fit_afterwards_is_the_one_without_a_search(data, tmp_path, precision, trained):
    "Bit for bit, with dropout and other dice; the optimiser may be there already."
    ends = []
    for search in (False, True):
        learn = learner(data, tmp_path, precision=precision if precision != 'fp16' else 'fp32', accumulate=2)
        if precision == 'fp16': learn.remove_cb(learn.precision); learn.add_cb(Precision('fp16', emulate=True))
        if trained: learn.fit_one_cycle(trained)
        if search: find(learn); del learn.lr_search
        learn.fit_wsd(2)
        ends.append(trace(learn))
    assert not differing(*ends)


def test_a_checkpointed_run_resumes_behind_a_search(data, tmp_path):
    "The search of the second call is not in the way of what goes on from the first."
    class Stop(Callback):
        order = 80
        def after_batch(self):
            if self.training and self.train_iter == 9: raise KeyboardInterrupt
    whole = learner(data, tmp_path/'a', [Checkpoint(tmp_path/'a', every=4)]); whole.fit_wsd(2)
    cut = learner(data, tmp_path/'b', [Checkpoint(tmp_path/'b', every=4), Stop()])
    with pytest.raises(KeyboardInterrupt): cut.fit_wsd(2)
    again = learner(data, tmp_path/'b', [Checkpoint(tmp_path/'b', every=4)])
    find(again); again.fit_wsd(2)
    assert again.checkpoint.resumed == 8
    a, b = trace(whole), trace(again)
    assert same(a['model'], b['model']) and same(a['rng'], b['rng']) and same(a['rows'], b['rows'])


@pytest.mark.parametrize('error', [KeyboardInterrupt, ValueError, UserError])
def test_an_error_or_an_interrupt_leaves_nothing_either(data, tmp_path, error):
    class Breaks(Callback):
        order, armed = 2, False
        def after_pred(self):
            if self.armed and self.train_iter == 5: raise error('now')
    learn = learner(data, tmp_path, [Breaks()])
    learn.fit(1); learn.breaks.armed = True
    before = trace(learn)
    with pytest.raises(error): find(learn)
    assert not differing(before, trace(learn)) and not torch.is_autocast_enabled('cpu') and not list(tmp_path.iterdir())
    learn.breaks.armed = False; find(learn)
    assert len(learn.lr_search.lrs) == 12


def test_from_within_a_fit(data, tmp_path):
    "Between two steps, from a callback: the fit goes on as if nothing had been."
    class Asks(Callback):
        order, armed = 95, False
        def after_batch(self):
            if self.armed and self.training and self.train_iter == 5: self.learn.lr_find(start_lr=1e-5, num_it=11, show_plot=False, suggest_funcs=None)
    ends = []
    for asks in (False, True):
        learn = learner(data, tmp_path, [Asks()]); learn.asks.armed = asks
        learn.fit_wsd(2)
        if asks: assert len(learn.lr_search.lrs) == 11; del learn.lr_search
        ends.append(trace(learn))
    assert not differing(*ends)


def test_other_optimisers_and_callbacks_of_fastai(tmp_path):
    "fastai's own Adam, whose state is kept in another way; its early stopping and model saving are silent."
    from fastai.optimizer import Adam
    set_seed(0); m = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 1))
    g = torch.Generator().manual_seed(0)
    data = [(x := torch.randn(8, 3, generator=g), x.sum(1, keepdim=True)) for _ in range(6)]
    learn = LMLearner(DataLoaders(data, data[:1]), m, torch.nn.MSELoss(), opt_func=Adam, path=tmp_path, lr=1e-2)
    learn.create_mbar, learn.logger = False, lambda *a: None
    learn.fit(1)
    learn.add_cbs([EarlyStoppingCallback(), SaveModelCallback()])
    opt = lambda: [{k: v.clone() if torch.is_tensor(v) else v for k, v in learn.opt.state[p].items()} for p in m.parameters()]
    a = ({k: v.clone() for k, v in m.state_dict().items()}, opt(), [dict(h) for h in learn.opt.hypers])
    find(learn)
    assert same(a, (m.state_dict(), opt(), [dict(h) for h in learn.opt.hypers])) and not list(tmp_path.rglob('*.pth'))


def test_unchanged_keeps_what_a_fit_would_lose(data, tmp_path):
    "Gradients, a loader's own dice, the out-of-memory halving."
    learn = learner(data, tmp_path)
    learn.dls.train.rng = random.Random(3)
    for p in learn.model.parameters(): p.grad = torch.ones_like(p)
    held, drawn = [p.grad for p in learn.model.parameters()], random.Random(3).random()
    with unchanged(learn):
        assert all(p.grad is None for p in learn.model.parameters())
        learn.fit(1); learn.micro_batches.rows = 1; learn.dls.train.rng.random()
    assert all(p.grad is g and (g == 1).all() for p, g in zip(learn.model.parameters(), held))
    assert learn.micro_batches.rows is None and learn.dls.train.rng.random() == drawn


# ---- what stops it --------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('what', ['loss', 'gradient'])
def test_what_is_not_finite_ends_the_search_and_is_no_bad_batch(data, tmp_path, what):
    class Poison(Callback):
        order, run_valid = 0, False
        def after_loss(self):
            if self.train_iter != 7 or not hasattr(self.learn, 'lr_finder'): return
            if what == 'loss': self.learn.loss_grad = self.loss_grad * float('nan'); self.learn.loss = self.loss_grad.clone()
        def after_backward(self):
            if self.train_iter == 7 and hasattr(self.learn, 'lr_finder') and what == 'gradient': next(self.model.parameters()).grad[0] = float('inf')
    for accumulate in (1, 2):
        learn = learner(data, tmp_path, [Poison()], accumulate=accumulate)
        before = trace(learn)
        find(learn)
        assert len(learn.lr_search.lrs) == 7 // accumulate and np.isfinite(learn.lr_search.losses).all()
        del learn.lr_search
        assert not differing(before, trace(learn)) and learn.clip_grad.skipped == 0 and not list(tmp_path.iterdir())
    with pytest.raises(UserError, match='stays finite for 7 steps'): find(learn, suggest_funcs=valley)


def test_wrong_rates_are_refused_before_anything_happens(data, tmp_path):
    learn = learner(data, tmp_path); before = trace(learn)
    for kwargs in (dict(start_lr=0), dict(start_lr=1, end_lr=.1), dict(start_lr=[1e-3, 1.], end_lr=[1e-2, .1])):
        with pytest.raises(UserError, match='rise from above 0'): find(learn, **kwargs)
    assert not differing(before, trace(learn))


# ---- as fastai users expect it --------------------------------------------------------------------------------------------------

def plain(cls, path):
    from llmbook.train.loss import LMLoss
    from llmbook.train.optim import lm_opt
    set_seed(0); m = Transformer(ModelConfig(vocab_size=32, n_layer=1, d_model=32, n_head=2, n_kv_head=1, context=16))
    ids = torch.randint(0, 32, (30, 4, 17), generator=torch.Generator().manual_seed(0)) // 4
    data = [(b[:, :-1], b[:, 1:]) for b in ids]
    learn = cls(DataLoaders(data, data[:1]), m, LMLoss(m.head), opt_func=lm_opt(m), lr=1e-3, path=path)
    learn.create_mbar = False
    return learn


def test_curve_and_suggestions_are_those_of_fastai(tmp_path):
    a, b = plain(Learner, tmp_path), plain(LMLearner, tmp_path)
    funcs = (valley, slide, steep, partial(minimum))
    want, got = (l.lr_find(num_it=60, show_plot=False, suggest_funcs=funcs) for l in (a, b))
    n = min(len(a.recorder.lrs), len(b.lr_search.lrs))                       # fastai's Recorder does not note the last step twice
    assert n >= 50 and a.recorder.lrs[:n] == pytest.approx(b.lr_search.lrs[:n])
    assert [float(l) for l in a.recorder.losses[:n]] == pytest.approx(b.lr_search.losses[:n], rel=1e-4)
    assert got._fields == ('valley', 'slide', 'steep', 'minimum') and type(got).__name__ == 'SuggestedLRs' and list(got) == pytest.approx(list(want), rel=1e-5)


def test_layer_groups_and_steps_of_several_batches(data, tmp_path):
    "A list of rates is one a group; with accumulation a rate holds for a whole step, and its loss is that of all its tokens."
    seen = []
    class Rates(Callback):
        order, run_valid = 50, False
        def before_batch(self): seen.append([h['lr'] for h in self.opt.hypers])
    learn = learner(data, tmp_path, [Rates()], accumulate=3, steps=9, splitter=lambda m: [[*m.embed.parameters()], [*m.blocks.parameters(), *m.norm.parameters()]])
    find(learn, start_lr=[1e-5, 1e-4], end_lr=[1e-3, 1e-1], stop_div=False)
    assert len(learn.lr_search.lrs) == 12 and len(seen) == 36 and seen[0] == pytest.approx([1e-5, 1e-4])
    assert all(seen[i] == seen[i + 1] == seen[i + 2] for i in range(0, 36, 3)) and seen[-1] == pytest.approx([1e-3 * 100 ** (-1 / 12), 1e-1 * 1000 ** (-1 / 12)])
    assert learn.lr_search.lrs == pytest.approx([s[1] for s in seen[::3]])


def test_picture(data, tmp_path):
    from matplotlib import pyplot as plt
    learn = learner(data, tmp_path)
    got = find(learn, num_it=30, suggest_funcs=(valley, steep), show_plot=True)
    ax = plt.gca()
    assert ax.get_xscale() == 'log' and len(ax.lines) == 3 and [t.get_text() for t in ax.get_legend().texts] == [f'valley {got.valley:.1e}', f'steep {got.steep:.1e}']
    plt.close('all')
    find(learn, num_it=30); assert not plt.get_fignums()


# ---- several ranks --------------------------------------------------------------------------------------------------------------

def on_ranks():
    "Is a fit after a search the one without it, also if a loss of the last rank has ended the search in the middle of a step? And how many steps had the searches?"
    from test_parallel import CONFIG, Rows
    join('cpu'); torch.set_num_threads(1)
    class Poison(Callback):
        order = 0
        def after_loss(self):
            if self.at == self.train_iter and hasattr(self.learn, 'lr_finder') and rank() == 1: self.learn.loss = self.learn.loss_grad = self.loss_grad * float('nan')
    res = {}
    for kind in ('ddp', 'fsdp'):
        ends, steps = [], []
        for search, at in ((False, -1), (True, -1), (True, 5))[::1 if kind == 'ddp' else 2]:
            learn = lm_learner(DataLoaders(Rows(6, 4, 0), Rows(2, 4, 1)), ModelConfig(**CONFIG), lr=1e-2, accumulate=2, cbs=Poison())
            learn.poison.at, learn.create_mbar, learn.logger = at, False, lambda *a: None
            parallel(learn, kind)
            if search: find(learn); steps.append(len(learn.lr_search.lrs))
            learn.fit_wsd(1)
            ends.append([whole(p.detach()).clone() for p in learn.model.parameters()])
        res[kind] = ([all(map(torch.equal, ends[0], e)) for e in ends[1:]], steps)
    return res


@pytest.mark.skipif(not torch.distributed.is_available() or not torch.distributed.is_gloo_available(), reason='this torch has no gloo')
def test_ranks_search_together_and_stop_together():
    got = launch(on_ranks, 2, timeout=120)
    got = got[0] if isinstance(got, list) else got
    assert got == dict(ddp=([True, True], [12, 2]), fsdp=([True], [2]))
