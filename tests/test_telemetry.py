"Telemetry: sums by hand, no waiting, a bounded history in files, a resumed run's history, trackers."
import csv, json, math, time, types
import pytest, torch
from torch import nn
from fastai.callback.core import Callback, CancelBatchException
from fastai.callback.progress import ProgressCallback
from fastai.data.core import DataLoaders
from llmbook.core import UserError
from llmbook.checkpoint.checkpoint import Checkpoint, LMLearner
from llmbook.train.history import COLUMNS, Thinned, merge_rows, read_history, write_history
from llmbook.train.loss import LMLoss
from llmbook.tokens.loaders import IGNORE
from llmbook.train.metrics import Perplexity, SmoothLoss, TokenLoss
from llmbook.train.optim import LMOptim
from llmbook.train.progress import Progress
from llmbook.train.accumulate import Accumulate, ClipGrad
from llmbook.train.telemetry import KINDS, Samples, Telemetry
from llmbook.train.trackers import TrackioCallback, need, tensorboard, wandb_tracker

CLOCKED = ('seconds', 'wall', 'tokens_per_s', 'mfu', 'memory', 'memory_peak', *KINDS)


class Tiny(nn.Module):
    def __init__(self): super().__init__(); self.embed, self.head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
    def forward(self, x): return self.embed(x)


def batches(n, seed=0):
    "Batches with unequal numbers of targets."
    g = torch.Generator().manual_seed(seed)
    out = []
    for i in range(n):
        x, y = torch.randint(0, 7, (2, 2, 8), generator=g)
        y[:, 1 + i % 7:] = IGNORE
        out.append((x, y))
    return out


class Seekable(list):
    "Batches that can begin in the middle of an epoch."
    at = 0
    def seek(self, i): self.at = i % len(self)
    def __iter__(self): start, self.at = self.at, 0; return iter(self[start:])


def learner(cbs=None, n=12, seed=0, lr=.05):
    torch.manual_seed(seed)
    m = Tiny()
    learn = LMLearner(DataLoaders(Seekable(batches(n)), batches(2, 1)), m, LMLoss(m.head), opt_func=LMOptim, lr=lr, metrics=Perplexity())
    learn.remove_cb(ProgressCallback)
    learn.add_cbs(cbs)
    learn.recorder.loss, learn.recorder.smooth_loss = TokenLoss(), SmoothLoss()
    learn.logger = lambda *a: None
    return learn


class Losses(Callback):
    "What every batch had: loss and number of targets."
    order = 54
    def before_fit(self): self.seen = []
    def after_batch(self):
        if self.training: self.seen.append((float(self.loss), int((self.yb[0] != IGNORE).sum())))


# ---- rows -----------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('accumulate', [1, 3])
def test_loss_is_the_mean_of_all_targets(accumulate):
    "Token-weighted over the interval, also where an interval ends between the micro-batches of one step."
    learn = learner([Telemetry(every=5), Losses()] + [Accumulate(accumulate)] * (accumulate > 1))
    learn.fit(1)
    rows, seen = [r for r in learn.telemetry.rows if 'loss' in r], learn.losses.seen
    assert [r['step'] for r in rows] == [5, 10, 12]
    for r, part in zip(rows, (seen[:5], seen[5:10], seen[10:])):
        assert r['loss'] == pytest.approx(sum(l * n for l, n in part) / sum(n for _, n in part), rel=1e-6)
        assert r['targets'] == sum(n for _, n in part)
    assert [r['tokens'] for r in rows] == [80, 160, 192]


def test_bad_losses_are_left_out_and_counted():
    class Poison(Callback):
        order = 1
        def after_loss(self):
            if self.training and self.train_iter in (2, 7): self.learn.loss_grad = self.loss_grad * float('nan'); self.learn.loss = self.loss_grad.clone()
    learn = learner([Telemetry(every=5), Poison(), ClipGrad(most=0)])
    learn.fit(1)
    rows = [r for r in learn.telemetry.rows if 'loss' in r]
    assert all(math.isfinite(r['loss']) for r in rows) and [r['bad_losses'] for r in rows] == [1, 2, 2]
    assert [r['skipped'] for r in rows] == [1, 2, 2] and rows[0]['targets'] < learn.telemetry.since + 5 * 16
    assert math.isfinite(float(learn.recorder.smooth_loss.value)) and all(math.isfinite(float(l)) for l in learn.recorder.losses)


def test_a_batch_without_a_loss_is_not_counted_twice():
    class Drop(Callback):
        order = 1
        def before_batch(self):
            if self.training and self.train_iter == 3: raise CancelBatchException
    learn = learner([Telemetry(every=4), Drop()])
    learn.fit(1)
    with_it = learner(Telemetry(every=4)); with_it.fit(1)
    a, b = (l.telemetry.rows[0] for l in (learn, with_it))
    assert a['tokens'] == b['tokens'] and a['targets'] == b['targets'] - int((batches(12)[3][1] != IGNORE).sum())


def test_smooth_loss_equals_fastais_where_all_is_finite():
    from fastai.learner import AvgSmoothLoss
    a, b = SmoothLoss(), AvgSmoothLoss()
    for l in torch.rand(50): [m.accumulate(types.SimpleNamespace(loss=l, to_detach=lambda x: x)) for m in (a, b)]
    assert float(a.value) == pytest.approx(float(b.value), rel=1e-5) and float(a.val) == pytest.approx(float(b.val), rel=1e-5)


def test_smooth_loss_set_from_a_checkpoint():
    "By `val` and `count` alone, as older checkpoints have them, and by its whole state."
    a, b, c = SmoothLoss(), SmoothLoss(), SmoothLoss()
    feed = lambda m, *ls: [m.accumulate(types.SimpleNamespace(loss=torch.tensor(l))) for l in ls]
    feed(a, 1., 2., 3.)
    b.val, b.count = torch.tensor(float(a.val)), a.count
    feed(a, 5.); feed(b, 5.)
    assert float(a.value) == pytest.approx(float(b.value), rel=1e-5)
    feed(a, float('nan')); c.load(json.loads(json.dumps(a.state()))); c.val, c.count = torch.tensor(float(a.val)), a.count
    feed(a, 7.); feed(c, 7.)
    assert float(a.value) == float(c.value) and math.isfinite(float(a.value))


def test_the_device_is_asked_once_an_interval(monkeypatch):
    "Nothing is read from a tensor between the ends of intervals."
    reads = []
    class Watch(Callback):
        order = 99
        def after_batch(self): reads.append(0)
    for name in ('item', 'tolist', '__float__', '__int__', '__bool__'):
        real = getattr(torch.Tensor, name)
        def count(self, *a, real=real, **k):
            if reads and watching: reads[-1] += 1
            return real(self, *a, **k)
        monkeypatch.setattr(torch.Tensor, name, count)
    watching = False
    learn = learner([Telemetry(every=4), Progress('x', notebook=False), Watch()], n=13)
    learn.create_mbar = False
    class Start(Callback):
        order = -5
        def before_train(self): nonlocal watching; watching = True; reads.append(0)
        def after_train(self): nonlocal watching; watching = False
    learn.add_cb(Start())
    learn.fit(1)
    # reads[i] is what was read while batch i ran; the optimiser of this test reads nothing
    assert [reads[i] for i in range(13)] == [int(i in (3, 7, 11)) for i in range(13)], reads


def test_late_numbers_become_rows_when_they_arrive():
    "As on a GPU: a mark is reached some batches later, and the row says the step at which it was set."
    class Slow:
        cuda = False
        def __init__(self, device): self.t = 0
        def mark(self): self.t += 1; return self.t
        def reached(self, m): return learn.train_iter % 4 == 3
        def between(self, a, b): return float(b - a)
        def send(self, x): return x
    import llmbook.train.telemetry as t
    learn, real = learner(Telemetry(every=4), n=12), t.Clock
    steps = []
    class See(Callback):
        order = 99
        def after_batch(self):
            if self.training: steps.append([r['step'] for r in self.learn.telemetry.rows])
    learn.add_cb(See())
    t.Clock = Slow
    try: learn.fit(1)
    finally: t.Clock = real
    assert steps[3] == [] and steps[5] == [] and steps[6] == [4] and steps[11] == [4, 8]
    assert [r['step'] for r in learn.telemetry.rows if 'loss' in r] == [4, 8, 12]


def test_time_that_is_not_training_is_apart(monkeypatch):
    "A clock by hand: each batch takes 1 s, validation 10 s, a save 100 s in the middle of an interval."
    import llmbook.train.telemetry as t
    now = [0.]
    monkeypatch.setattr(t, 'time', types.SimpleNamespace(perf_counter=lambda: now[0]))
    class Hands(Callback):
        order = 1
        def after_batch(self):
            now[0] += 1 if self.training else 5
            if self.training and self.train_iter == 3:
                with self.learn.telemetry.aside('saving'): now[0] += 100
    learn = learner([Telemetry(every=4, flops_per_token=2., peak_flops=64.), Hands()], n=8)
    learn.fit(2)
    rows = learn.telemetry.rows
    assert [r['tokens_per_s'] for r in rows if 'loss' in r] == [16] * 4 and rows[-1]['mfu' if 'mfu' in rows[-1] else 'step'] == 16
    assert [r['mfu'] for r in rows if 'loss' in r] == [.5] * 4
    last = rows[-1]
    assert (last['seconds'], last['saving'], last['validating'], last['wall']) == (16, 100, 20, 136)


@pytest.mark.parametrize('blocking', [False, True])
def test_a_save_is_no_training(tmp_path, monkeypatch, blocking):
    "A save that takes 100 s by a clock set by hand leaves seconds and tokens/s as they are."
    now = [0.]
    monkeypatch.setattr(time, 'perf_counter', lambda: now[0])
    class Slow(Checkpoint):
        name = 'checkpoint'
        def gather(self, *a, **k): now[0] += 60; out = super().gather(*a, **k); now[0] += 40; return out
    class Hands(Callback):
        order = 1
        def after_batch(self): now[0] += self.training
    learn = learner([Telemetry(every=4), Hands(), Slow(tmp_path/'c', every=6, blocking=blocking, final=False, best=False)], n=12)
    with learn.no_bar(), learn.no_logging(): learn.fit(2)
    t = learn.telemetry
    assert learn.checkpoint.saves == 4 and t.lost['saving'] == pytest.approx(400)
    assert t.seconds == pytest.approx(24)
    assert [r['tokens_per_s'] for r in t.rows if 'loss' in r] == pytest.approx([16.] * 6)


def test_sums_of_all_ranks_are_reduced_once_an_interval():
    calls = []
    def reduce(t): calls.append(t.clone()); t.mul_(2) # a second rank with the same numbers
    one, two = learner(Telemetry(every=4, flops_per_token=1., peak_flops=1.)), learner(Telemetry(every=4, flops_per_token=1., peak_flops=1., reduce=reduce))
    one.fit(1); two.fit(1)
    a, b = ([r for r in l.telemetry.rows if 'loss' in r] for l in (one, two))
    assert len(calls) == 3 and [r['loss'] for r in a] == [r['loss'] for r in b] and b[-1]['tokens'] == 2 * a[-1]['tokens']
    assert b[-1]['mfu'] == pytest.approx(b[-1]['tokens_per_s'] / 2)


def test_validation_loss_is_reduced_once():
    calls = []
    def reduce(t): calls.append(1); t += torch.tensor([30., 10.]) # the other rank: 10 targets of 3 nats
    learn = learner(Telemetry())
    learn.recorder.loss = TokenLoss(reduce)
    learn.fit(1)
    m = LMLoss(learn.model.head)
    with torch.no_grad(): own = [(float(m(learn.model(x), y)), int((y != IGNORE).sum())) for x, y in batches(2, 1)]
    want = (30 + sum(l * n for l, n in own)) / (10 + sum(n for _, n in own))
    assert learn.telemetry.rows[-1]['valid_loss'] == pytest.approx(want, rel=1e-5) and len(calls) == 1


def test_only_the_first_rank_writes(tmp_path, monkeypatch):
    import llmbook.train.telemetry as t
    monkeypatch.setattr(t, 'rank', lambda: 1)
    learn = learner([Telemetry(path=tmp_path/'history.csv'), Samples(lambda m, ps: ps, ['a'], path=tmp_path/'samples.jsonl')])
    learn.fit(1)
    assert learn.telemetry.rows and learn.samples.rows and not list(tmp_path.iterdir())


def test_lr_find_leaves_the_history_alone(tmp_path):
    learn = learner(Telemetry(path=tmp_path/'history.csv'))
    learn.fit(1)
    before = (tmp_path/'history.csv').read_bytes()
    learn.lr_find(num_it=20, show_plot=False)
    assert (tmp_path/'history.csv').read_bytes() == before


# ---- a history that stays short, in files ----------------------------------------------------------------------------------------

def test_ten_million_steps_fit(tmp_path):
    "A million rows come in; few stay, evenly spread, with the sums of all."
    t = Thinned(64)
    for i in range(1, 100_001): t.add(dict(step=10 * i, loss=float(i), targets=8, tokens_per_s=100.))
    gaps = [b['step'] - a['step'] for a, b in zip(t.rows, t.rows[1:])]
    assert len(t.rows) <= 64 and len(set(gaps[:-1])) == 1 and t.rows[-1]['step'] == 1_000_000
    assert sum(r['targets'] for r in t.rows) == 800_000
    assert sum(r['targets'] * r['loss'] for r in t.rows) / 800_000 == pytest.approx(50_000.5)


def test_thinning_goes_on_from_its_state():
    whole, cut = Thinned(8), Thinned(8)
    for i in range(100):
        whole.add(dict(step=i, loss=i / 7, targets=3)); cut.add(dict(step=i, loss=i / 7, targets=3))
        if i % 13 == 0: s = json.loads(json.dumps(cut.state())); cut = Thinned(8); cut.load(s)
    assert cut.rows == whole.rows


def test_validation_rows_are_kept_apart():
    learn = learner(Telemetry(every=1, most=4), n=10)
    learn.fit(7)
    rows = learn.telemetry.rows
    assert len(rows) <= 8 and rows[-1]['step'] == 70 and 'valid_loss' in rows[-1] and rows == sorted(rows, key=lambda r: r['step'])


@pytest.mark.parametrize('kind', ['csv', 'parquet'])
def test_files_hold_what_was_kept(tmp_path, kind):
    learn = learner([Telemetry(every=5, path=tmp_path/'history.csv'), ClipGrad()])
    learn.fit(2)
    back, want = read_history(tmp_path/f'history.{kind}'), {}
    for r in learn.telemetry.rows: want.setdefault(r['step'], {}).update(r)
    assert back == [want[s] for s in sorted(want)]
    assert not [f for f in tmp_path.iterdir() if f.name.startswith('.')]


def test_csv_has_the_columns_of_older_versions_first(tmp_path):
    write_history(tmp_path/'h.csv', [dict(step=1, loss=2.)])
    head = next(csv.reader(open(tmp_path/'h.csv')))
    assert head[:9] == ['step', 'tokens', 'loss', 'valid_loss', 'lr', 'grad_norm', 'tokens_per_s', 'mfu', 'seconds'] and tuple(head) == COLUMNS


def test_a_failed_write_leaves_the_old_file(tmp_path):
    write_history(tmp_path/'h.parquet', [dict(step=1, loss=2.)])
    with pytest.raises(Exception): write_history(tmp_path/'h.parquet', [dict(step='x')])
    assert read_history(tmp_path/'h.parquet') == [dict(step=1, loss=2)] and len(list(tmp_path.iterdir())) == 1


def test_a_damaged_parquet_is_named(tmp_path):
    (tmp_path/'h.parquet').write_bytes(b'PAR1 nothing')
    with pytest.raises(UserError, match='not a parquet file'): read_history(tmp_path/'h.parquet')


def test_merging_takes_what_is_there():
    assert merge_rows(dict(step=1, loss=2.), dict(step=2)) == dict(step=2, loss=2.)
    assert merge_rows(dict(step=1, loss=None, targets=0), dict(step=2, loss=3., targets=4)) == dict(step=2, loss=3., targets=4)


# ---- a run that was stopped ------------------------------------------------------------------------------------------------------

class Die(Callback):
    order = 90
    def __init__(self, at): self.at = at
    def after_batch(self):
        if self.training and self.train_iter in self.at: raise RuntimeError('killed')


@pytest.mark.parametrize('every, accumulate', [(5, 1), (4, 1), (5, 3), (1, 1)])
def test_resumed_history_is_that_of_the_run_never_stopped(tmp_path, every, accumulate):
    "All columns except the clock's, bit for bit; no step twice; the file too."
    def run(folder, at=()):
        cbs = [Telemetry(every=every, most=8, path=tmp_path/folder/'history.csv'), ClipGrad(), Checkpoint(tmp_path/folder/'ck', every=3, final=False), Die(at),
               Samples(lambda m, ps: [f'{float(m.head.weight.sum()):.6f}'] * len(ps), ['p'], path=tmp_path/folder/'samples.jsonl')]
        learn = learner(cbs + [Accumulate(accumulate)] * (accumulate > 1))
        try: learn.fit(3)
        except RuntimeError: return False
        return learn
    whole = run('whole')
    for at in ((7,), (11,), (17,), (25,), (29,)): assert not run('cut', at)
    cut = run('cut')
    plain = lambda rows: [{k: v for k, v in r.items() if k not in CLOCKED} for r in rows]
    assert plain(cut.telemetry.rows) == plain(whole.telemetry.rows)
    for name in ('history.csv', 'history.parquet'):
        a, b = (plain(read_history(tmp_path/f/name)) for f in ('cut', 'whole'))
        assert a == b and [r['step'] for r in a] == sorted({r['step'] for r in a})
    assert (tmp_path/'cut/samples.jsonl').read_text() == (tmp_path/'whole/samples.jsonl').read_text()
    assert float(cut.recorder.smooth_loss.value) == float(whole.recorder.smooth_loss.value)


def test_clock_goes_on_after_a_resume(tmp_path, monkeypatch):
    "Seconds before the kill are kept, those between the last save and the kill are lost, those while it lay dead do not count."
    import llmbook.train.telemetry as t
    now = [0.]
    monkeypatch.setattr(t, 'time', types.SimpleNamespace(perf_counter=lambda: now[0]))
    class Hands(Callback):
        order = 1
        def after_batch(self): now[0] += 1 if self.training else 10
    def run(at=()): return learner([Telemetry(every=5), Hands(), Checkpoint(tmp_path/'ck', every=4, final=False), Die(at)], n=12)
    with pytest.raises(RuntimeError): run((7,)).fit(1)
    now[0] += 1000
    learn = run(); learn.fit(1)
    last = learn.telemetry.rows[-1]
    assert (last['seconds'], last['validating'], last['wall']) == (12, 20, 32)
    assert [r['tokens_per_s'] for r in learn.telemetry.rows if 'loss' in r] == [16, 16, 16]


# ---- samples, progress -----------------------------------------------------------------------------------------------------------

def test_samples_can_be_taken_at_any_time(tmp_path):
    learn = learner(Samples(lambda m, ps: [f'{p}\u2028"<b>' for p in ps], ['a', 'b'], path=tmp_path/'s.jsonl'))
    learn.fit(1)
    assert learn.samples.take(['c'])[0] == dict(step=12, prompt='c', text='c\u2028"<b>')
    rows = [json.loads(l) for l in (tmp_path/'s.jsonl').read_text().split('\n') if l]
    assert rows == learn.samples.rows and [r['prompt'] for r in rows] == ['a', 'b', 'c']


def test_progress_line_says_speed_loss_validation_and_the_time_left(capfd):
    learn = learner([Telemetry(every=2), Progress('tiny', notebook=False)])
    learn.fit(2)
    said = capfd.readouterr().err.split('\r')[-1]
    for word in ('tiny: 100%', '24/24', 'loss ', 'validation ', 'tokens/s'): assert word in said, said
    assert learn.progress.line is None


# ---- trackers --------------------------------------------------------------------------------------------------------------------

def modules(**parts):
    "A stand-in package."
    import importlib.machinery
    out = {}
    for name, names in parts.items():
        m = types.ModuleType(name.replace('__', '.')); m.__spec__ = importlib.machinery.ModuleSpec(m.__name__, None); m.__dict__.update(names)
        out[m.__name__] = m
    return out


def have(name):
    try: __import__(name); return True
    except ImportError: return False


@pytest.fixture
def fresh(monkeypatch):
    "fastai's callbacks are imported anew, so that they see the stand-ins."
    import sys
    for name in ('fastai.callback.tensorboard', 'fastai.callback.wandb'): monkeypatch.delitem(sys.modules, name, raising=False)
    yield lambda ms: [monkeypatch.setitem(sys.modules, k, m) for k, m in ms.items()]
    for name in ('fastai.callback.tensorboard', 'fastai.callback.wandb'): sys.modules.pop(name, None)


def test_tensorboard_through_fastais_callback(fresh, tmp_path):
    told = []
    if not have('tensorboard'):
        class SummaryWriter:
            def __init__(self, log_dir=None): pass
            def add_scalar(self, name, value, step): told.append((name, float(value), step))
            def close(self): told.append('closed')
        fresh(modules(tensorboard={}, torch__utils__tensorboard=dict(SummaryWriter=SummaryWriter)))
    learn = learner([Telemetry(every=4), ClipGrad(), tensorboard(tmp_path/'tb', every=4)])
    learn.fit(2)
    if not told:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        e = EventAccumulator(str(tmp_path/'tb')); e.Reload()
        told = [(tag, s.value, s.step) for tag in e.Tags()['scalars'] for s in e.Scalars(tag)]
    steps = lambda name: [t[2] for t in told if t[0] == name]
    assert steps('train_loss') == [4, 8, 12, 16, 20, 24] == steps('telemetry/loss') and steps('lr_0') and steps('valid_loss') == [12, 24]
    want = [r['loss'] for r in learn.telemetry.rows if 'loss' in r]
    assert [t[1] for t in told if t[0] == 'telemetry/loss'] == pytest.approx(want, rel=1e-5)


def test_wandb_through_fastais_callback(fresh, tmp_path, monkeypatch):
    logged = []
    if have('wandb'):
        import wandb
        monkeypatch.setenv('WANDB_SILENT', 'true')
        run = wandb.init(mode='offline', dir=str(tmp_path), project='x')
        real = wandb.log
        monkeypatch.setattr(wandb, 'log', lambda row, step=None: (logged.append(dict(row)), real(row, step=step)))
    else:
        run = types.SimpleNamespace(step=0, finish=lambda: None)
        wandb = types.SimpleNamespace(run=run, config=types.SimpleNamespace(update=lambda *a, **k: None), log=lambda row, step=None: logged.append(dict(row)))
        fresh(modules(wandb=vars(wandb)))
    learn = learner([Telemetry(every=4), ClipGrad(), wandb_tracker(every=4)])
    learn.fit(2)
    run.finish()
    assert sum('train_loss' in r for r in logged) == 6 and [r['valid_loss'] for r in logged if 'valid_loss' in r] == pytest.approx([v[1] for v in learn.recorder.values])
    assert [r['telemetry/loss'] for r in logged if 'telemetry/loss' in r] == [r['loss'] for r in learn.telemetry.rows if 'loss' in r]


@pytest.mark.parametrize('make', [lambda: tensorboard(), lambda: wandb_tracker(), lambda: TrackioCallback('x')], ids=['tensorboard', 'wandb', 'trackio'])
def test_a_tracker_that_is_not_there_is_named(make, monkeypatch):
    import sys
    for name in ('tensorboard', 'wandb', 'trackio'): monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match='pip install'): make()


@pytest.mark.skipif(not have('trackio'), reason='no trackio')
def test_trackio_for_real(tmp_path, monkeypatch):
    monkeypatch.setenv('TRACKIO_DIR', str(tmp_path))
    learn = learner([Telemetry(every=4), TrackioCallback('tiny', name='one')])
    learn.fit(1)
    assert need('trackio')


def test_a_rewind_within_a_fit_drops_what_was_under_way():
    "A guard that loads an earlier state in the middle of a fit: its numbers hold, the clock runs on."
    learn = learner(Telemetry(every=4))
    class Back(Callback):
        order = 95
        def after_batch(self):
            t = self.learn.telemetry
            if not self.training: return
            if self.train_iter == 5: self.state = json.loads(json.dumps(t.checkpoint_state()))
            if self.train_iter == 11:
                t.load_checkpoint_state(self.state)
                self.found = (t.tokens, t.since, len(t.losses), t.late, t.wall >= self.state['wall'])
    learn.add_cb(Back())
    learn.fit(1)
    assert learn.back.found == (64, 16, 1, [], True)
