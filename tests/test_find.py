"lr_find suggests what fastai suggests, and leaves no trace, also after errors."
import random
from functools import partial
import numpy as np, pytest, torch
from fastai.callback.core import Callback
from fastai.callback.schedule import minimum, slide, steep, valley
from fastai.callback.tracker import EarlyStoppingCallback, SaveModelCallback
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from folders import contents
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


def silence(learn):
    learn.create_mbar = False
    learn.logger = lambda *args: None
    return learn


def learner(data, path, cbs=(), steps=8, lr=1e-2, **kwargs):
    "Make a Learner whose steps draw random numbers: dropout, and a callback that asks numpy and Python."
    dls = lm_dls(data, bs=4, seq_len=16, steps=steps, valid_batches=2, device='cpu')
    set_seed(0)
    vocab = read_manifest(data)['vocab_size']
    model = Transformer(ModelConfig(vocab_size=vocab, n_layer=1, d_model=32, n_head=2, n_kv_head=1, context=16))
    model.norm = torch.nn.Sequential(model.norm, torch.nn.Dropout(.3))
    learn = lm_learner(dls, model, lr=lr, cbs=[Noise(), *cbs], path=path, **kwargs)
    learn.telemetry.every = 2
    return silence(learn)


class Noise(Callback):
    order, run_valid = 1, False
    def after_pred(self): self.learn.pred = self.pred * (1 + .01 * random.random() + .01 * float(np.random.rand()))


class Hears(Callback):
    "Watches: its order is behind the Recorder's."
    order = 70
    def __init__(self): self.heard = 0
    def after_batch(self): self.heard += 1


def with_everything(data, path):
    "Make a Learner with all that a run may have."
    def sample(model, prompts): return prompts
    samples = Samples(sample, ['a'], path=path/'s.jsonl')
    learn = learner(data, path, [Checkpoint(path/'c', every=4), SpikeGuard(window=8), samples, Hears(), Accumulate(2)])
    learn.telemetry.csv_path = path/'h.csv'
    return learn


MEASURED = {'seconds', 'wall', 'tokens_per_s', 'memory', 'memory_peak', 'lost', 'saving', 'validating', 'sampling',
            'paused', 'start', 'wall0'}


def copied(values): return {k: v.clone() if torch.is_tensor(v) else v for k, v in values.items()}


def without_times(row): return {k: v for k, v in row.items() if k not in MEASURED}


def trace_of_optimiser(opt):
    if opt is None: return None
    moments, _ = optim_tensors(opt)
    return copied(moments), opt.hypers, opt.frozen_idx


def trace_of_recorder(recorder):
    "Return the curves of a Recorder, which has none before its first fit, and the number of its rows."
    rates = [float(rate) for rate in getattr(recorder, 'lrs', [])]
    losses = [float(loss) for loss in getattr(recorder, 'losses', [])]
    return rates, losses, len(getattr(recorder, 'values', []))


def trace(learn):
    "Return the state of a Learner, as values that can be compared."
    recorder, clip = learn.recorder, learn.clip_grad
    return dict(
        model=copied(learn.model.state_dict()),
        modes=[m.training for m in learn.model.modules()],
        grads=copied({name: p.grad for name, p in learn.model.named_parameters()}),
        opt=trace_of_optimiser(learn.opt),
        rng=rng_state(),
        learn=sorted(vars(learn)),
        step=getattr(learn, 'train_iter', None),
        cbs=[(cb.name, sorted(vars(cb))) for cb in learn.cbs],
        position=learn.dls.train.position,
        recorder=trace_of_recorder(recorder),
        smooth=recorder.smooth_loss.state(),
        rows=[without_times(row) for row in learn.telemetry.rows],
        clip=clip.checkpoint_state() | dict(most=clip.most, patience=clip.patience),
        rows_at_once=learn.micro_batches.rows)


def same(a, b):
    "Return whether values are equal, tensors bit for bit."
    if torch.is_tensor(a): return torch.is_tensor(b) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict): return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)): return len(a) == len(b) and all(map(same, a, b))
    return a == b


def differing(a, b): return [k for k in a if not same(a[k], b[k])]


def find(learn, **kwargs):
    options = dict(start_lr=1e-5, num_it=12, show_plot=False, suggest_funcs=None)
    return learn.lr_find(**options | kwargs)


# ---- no trace ----

@pytest.mark.parametrize('trained', [False, True], ids=['new', 'in the middle'])
def test_nothing_is_left(data, tmp_path, trained):
    learn = with_everything(data, tmp_path)
    if trained: learn.fit_wsd(2)
    def counts(): return learn.hears.heard, len(learn.samples.rows), learn.checkpoint.saves
    before = trace(learn)
    there = contents(tmp_path)
    counted = counts()
    find(learn)
    assert len(learn.lr_search.lrs) == 12, 'it did train: 12 steps of 2 batches'
    del learn.lr_search
    assert not differing(before, trace(learn))
    assert contents(tmp_path) == there
    assert counts() == counted
    assert not hasattr(learn, 'lr_finder')
    assert learn.checkpoint in learn.cbs
    assert learn.telemetry.learn is learn


@pytest.mark.parametrize('precision', ['fp32', 'bf16', 'fp16'])
@pytest.mark.parametrize('trained', [0, 1])
def test_a_fit_afterwards_is_the_one_without_a_search(data, tmp_path, precision, trained):
    "Bit for bit, with dropout and other random numbers; the optimiser may exist already."
    ends = []
    for search in (False, True):
        emulate = precision == 'fp16'
        learn = learner(data, tmp_path, precision='fp32' if emulate else precision, accumulate=2)
        if emulate:
            learn.remove_cb(learn.precision)
            learn.add_cb(Precision('fp16', emulate=True))
        if trained: learn.fit_one_cycle(trained)
        if search:
            find(learn)
            del learn.lr_search
        learn.fit_wsd(2)
        ends.append(trace(learn))
    assert not differing(*ends)


def test_a_checkpointed_run_resumes_behind_a_search(data, tmp_path):
    "Check that the search of the second call is not in the way of what resumes from the first."
    class Stop(Callback):
        order = 80
        def after_batch(self):
            if self.training and self.train_iter == 9: raise KeyboardInterrupt
    whole = learner(data, tmp_path/'a', [Checkpoint(tmp_path/'a', every=4)])
    whole.fit_wsd(2)
    cut = learner(data, tmp_path/'b', [Checkpoint(tmp_path/'b', every=4), Stop()])
    with pytest.raises(KeyboardInterrupt): cut.fit_wsd(2)
    again = learner(data, tmp_path/'b', [Checkpoint(tmp_path/'b', every=4)])
    find(again)
    again.fit_wsd(2)
    assert again.checkpoint.resumed == 8
    a, b = trace(whole), trace(again)
    for k in ('model', 'rng', 'rows'): assert same(a[k], b[k]), k


@pytest.mark.parametrize('error', [KeyboardInterrupt, ValueError, UserError])
def test_an_error_or_an_interrupt_leaves_nothing_either(data, tmp_path, error):
    class Breaks(Callback):
        order, armed = 2, False
        def after_pred(self):
            if self.armed and self.train_iter == 5: raise error('now')
    learn = learner(data, tmp_path, [Breaks()])
    learn.fit(1)
    learn.breaks.armed = True
    before = trace(learn)
    with pytest.raises(error): find(learn)
    assert not differing(before, trace(learn))
    assert not torch.is_autocast_enabled('cpu')
    assert not list(tmp_path.iterdir())
    learn.breaks.armed = False
    find(learn)
    assert len(learn.lr_search.lrs) == 12


def test_from_within_a_fit(data, tmp_path):
    "Between two steps, from a callback: the fit continues as if nothing had been."
    class Asks(Callback):
        order, armed = 95, False
        def after_batch(self):
            if self.armed and self.training and self.train_iter == 5: find(self.learn, num_it=11)
    ends = []
    for asks in (False, True):
        learn = learner(data, tmp_path, [Asks()])
        learn.asks.armed = asks
        learn.fit_wsd(2)
        if asks:
            assert len(learn.lr_search.lrs) == 11
            del learn.lr_search
        ends.append(trace(learn))
    assert not differing(*ends)


def test_other_optimisers_and_callbacks_of_fastai(tmp_path):
    "fastai's own Adam, whose state is kept in another way; its early stopping and model saving are silent."
    from fastai.optimizer import Adam
    set_seed(0)
    m = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 1))
    g = torch.Generator().manual_seed(0)
    inputs = [torch.randn(8, 3, generator=g) for _ in range(6)]
    data = [(x, x.sum(1, keepdim=True)) for x in inputs]
    learn = LMLearner(DataLoaders(data, data[:1]), m, torch.nn.MSELoss(), opt_func=Adam, path=tmp_path, lr=1e-2)
    silence(learn)
    learn.fit(1)
    learn.add_cbs([EarlyStoppingCallback(), SaveModelCallback()])
    def state():
        moments = [copied(learn.opt.state[p]) for p in m.parameters()]
        return copied(m.state_dict()), moments, [dict(h) for h in learn.opt.hypers]
    before = state()
    find(learn)
    assert same(before, state())
    assert not list(tmp_path.rglob('*.pth'))


def test_unchanged_keeps_what_a_fit_would_lose(data, tmp_path):
    "Gradients, a loader's own random state, the out-of-memory halving."
    learn = learner(data, tmp_path)
    learn.dls.train.rng = random.Random(3)
    params = list(learn.model.parameters())
    held = [torch.ones_like(p) for p in params]
    for p, grad in zip(params, held): p.grad = grad
    drawn = random.Random(3).random()
    with unchanged(learn):
        assert all(p.grad is None for p in params)
        learn.fit(1)
        learn.micro_batches.rows = 1
        learn.dls.train.rng.random()
    for p, grad in zip(params, held):
        assert p.grad is grad
        assert (grad == 1).all()
    assert learn.micro_batches.rows is None
    assert learn.dls.train.rng.random() == drawn


# ---- what stops it ----

@pytest.mark.parametrize('what', ['loss', 'gradient'])
def test_what_is_not_finite_ends_the_search_and_is_no_bad_batch(data, tmp_path, what):
    class Poison(Callback):
        order, run_valid = 0, False
        def _now(self, kind): return what == kind and self.train_iter == 7 and hasattr(self.learn, 'lr_finder')
        def after_loss(self):
            if not self._now('loss'): return
            self.learn.loss_grad = self.loss_grad * float('nan')
            self.learn.loss = self.loss_grad.clone()
        def after_backward(self):
            if self._now('gradient'): next(self.model.parameters()).grad[0] = float('inf')
    for accumulate in (1, 2):
        learn = learner(data, tmp_path, [Poison()], accumulate=accumulate)
        before = trace(learn)
        find(learn)
        assert len(learn.lr_search.lrs) == 7 // accumulate
        assert np.isfinite(learn.lr_search.losses).all()
        del learn.lr_search
        assert not differing(before, trace(learn))
        assert learn.clip_grad.skipped == 0
        assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match='stays finite for 7 steps'):
        find(learn, suggest_funcs=valley)


def test_wrong_rates_are_refused_before_anything_happens(data, tmp_path):
    learn = learner(data, tmp_path)
    before = trace(learn)
    for kwargs in (dict(start_lr=0), dict(start_lr=1, end_lr=.1), dict(start_lr=[1e-3, 1.], end_lr=[1e-2, .1])):
        with pytest.raises(UserError, match='rise from above 0'): find(learn, **kwargs)
    assert not differing(before, trace(learn))


# ---- as fastai users expect it ----

def plain(cls, path):
    from llmbook.train.loss import LMLoss
    from llmbook.train.optim import lm_opt
    set_seed(0)
    m = Transformer(ModelConfig(vocab_size=32, n_layer=1, d_model=32, n_head=2, n_kv_head=1, context=16))
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 32, (30, 4, 17), generator=g) // 4
    data = [(b[:, :-1], b[:, 1:]) for b in ids]
    learn = cls(DataLoaders(data, data[:1]), m, LMLoss(m.head), opt_func=lm_opt(m), lr=1e-3, path=path)
    learn.create_mbar = False
    return learn


def test_curve_and_suggestions_are_those_of_fastai(tmp_path):
    fastai = plain(Learner, tmp_path)
    ours = plain(LMLearner, tmp_path)
    options = dict(num_it=60, show_plot=False, suggest_funcs=(valley, slide, steep, partial(minimum)))
    want = fastai.lr_find(**options)
    got = ours.lr_find(**options)
    search = ours.lr_search
    lrs = fastai.recorder.lrs
    losses = [float(loss) for loss in fastai.recorder.losses]
    n = min(len(lrs), len(search.lrs)) # fastai's Recorder does not note the last step twice
    assert n >= 50
    assert lrs[:n] == pytest.approx(search.lrs[:n])
    assert losses[:n] == pytest.approx(search.losses[:n], rel=1e-4)
    assert got._fields == ('valley', 'slide', 'steep', 'minimum')
    assert type(got).__name__ == 'SuggestedLRs'
    assert list(got) == pytest.approx(list(want), rel=1e-5)


def test_layer_groups_and_steps_of_several_batches(data, tmp_path):
    "With accumulation a rate holds for a whole step, and its loss is that of all its tokens."
    seen = []
    class Rates(Callback):
        order, run_valid = 50, False
        def before_batch(self): seen.append([h['lr'] for h in self.opt.hypers])
    def two_groups(m): return [[*m.embed.parameters()], [*m.blocks.parameters(), *m.norm.parameters()]]
    learn = learner(data, tmp_path, [Rates()], accumulate=3, steps=9, splitter=two_groups)
    find(learn, start_lr=[1e-5, 1e-4], end_lr=[1e-3, 1e-1], stop_div=False)
    assert len(learn.lr_search.lrs) == 12
    assert len(seen) == 36
    assert seen[0] == pytest.approx([1e-5, 1e-4])
    of_steps = seen[::3]
    assert seen[1::3] == of_steps
    assert seen[2::3] == of_steps
    before_the_end = 1 / 12 # the last of twelve steps does not reach the highest rates
    last_of_body = 1e-3 / 100 ** before_the_end
    last_of_head = 1e-1 / 1000 ** before_the_end
    assert seen[-1] == pytest.approx([last_of_body, last_of_head])
    rates_of_head = [head for _, head in of_steps]
    assert learn.lr_search.lrs == pytest.approx(rates_of_head)


def test_picture(data, tmp_path):
    from matplotlib import pyplot as plt
    learn = learner(data, tmp_path)
    got = find(learn, num_it=30, suggest_funcs=(valley, steep), show_plot=True)
    ax = plt.gca()
    labels = [t.get_text() for t in ax.get_legend().texts]
    assert ax.get_xscale() == 'log'
    assert len(ax.lines) == 3
    assert labels == [f'valley {got.valley:.1e}', f'steep {got.steep:.1e}']
    plt.close('all')
    find(learn, num_it=30)
    assert not plt.get_fignums()


# ---- several ranks ----

class LastRankFails(Callback):
    "In a search, makes the loss of the last rank NaN in batch `at`."
    order = 0
    def after_loss(self):
        if self.at != self.train_iter or not hasattr(self.learn, 'lr_finder') or rank() != 1: return
        self.learn.loss_grad = self.loss_grad * float('nan')
        self.learn.loss = self.learn.loss_grad


def after_a_fit(kind, search, at):
    "Return the weights after a fit, and the steps of a search before it, if there was one."
    from test_parallel import CONFIG, Rows
    dls = DataLoaders(Rows(6, 4, 0), Rows(2, 4, 1))
    learn = silence(lm_learner(dls, ModelConfig(**CONFIG), lr=1e-2, accumulate=2, cbs=LastRankFails()))
    learn.last_rank_fails.at = at
    parallel(learn, kind)
    steps = None
    if search:
        find(learn)
        steps = len(learn.lr_search.lrs)
    learn.fit_wsd(1)
    return [whole(p.detach()).clone() for p in learn.model.parameters()], steps


def on_ranks():
    "Return, for each kind, whether a fit after a search is the one without it, and how many steps the searches had."
    join('cpu')
    torch.set_num_threads(1)
    never, in_the_middle = -1, 5 # of a step: batches are accumulated by two
    searches = dict(ddp=(never, in_the_middle), fsdp=(in_the_middle,))
    res = {}
    for kind, ats in searches.items():
        want, _ = after_a_fit(kind, search=False, at=never)
        ends = [after_a_fit(kind, search=True, at=at) for at in ats]
        equal = [all(map(torch.equal, want, weights)) for weights, _ in ends]
        res[kind] = equal, [steps for _, steps in ends]
    return res


has_gloo = torch.distributed.is_available() and torch.distributed.is_gloo_available()

@pytest.mark.skipif(not has_gloo, reason='this torch has no gloo')
def test_ranks_search_together_and_stop_together():
    got = launch(on_ranks, 2, timeout=120)
    got = got[0] if isinstance(got, list) else got
    assert got == dict(ddp=([True, True], [12, 2]), fsdp=([True], [2]))
