"Telemetry: sums by hand, no waiting, a bounded history in files, a resumed run's history, trackers."
import csv, importlib.machinery, json, math, re, sys, time, types, warnings
from types import SimpleNamespace
import pytest, torch
from torch import nn
from fastai.callback.core import Callback, CancelBatchException
from fastai.callback.progress import ProgressCallback
from fastai.data.core import DataLoaders
from fastai.learner import AvgSmoothLoss
from llmbook.core import UserError
from llmbook.checkpoint.checkpoint import Checkpoint
from llmbook.train.learner import LMLearner
from llmbook.train.history import COLUMNS, Thinned, merge_rows, read_history, write_history
from llmbook.train.loss import LMLoss
from llmbook.tokens.loaders import IGNORE
from llmbook.train.metrics import Perplexity, SmoothLoss, TokenLoss
from llmbook.train.optim import LMOptim
from llmbook.train.pace import Pace
from llmbook.train.progress import Progress
from llmbook.train.accumulate import Accumulate, ClipGrad
from llmbook.train import telemetry
from llmbook.train.telemetry import NOT_TRAINING, Samples, Telemetry
from llmbook.train.trackers import TrackioCallback, need, tensorboard, wandb_tracker

CLOCKED = ('seconds', 'wall', 'tokens_per_s', 'mfu', 'memory', 'memory_peak', *NOT_TRAINING)


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7, bias=False)
    def forward(self, x): return self.embed(x)


def batches(n, seed=0):
    "Return batches with unequal numbers of targets."
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
    def __iter__(self):
        start, self.at = self.at, 0
        return iter(self[start:])


def learner(cbs=None, n=12, seed=0, lr=.05):
    torch.manual_seed(seed)
    m = Tiny()
    dls = DataLoaders(Seekable(batches(n)), batches(2, 1))
    learn = LMLearner(dls, m, LMLoss(m.head), opt_func=LMOptim, lr=lr, metrics=Perplexity())
    learn.remove_cb(ProgressCallback)
    learn.add_cbs(cbs)
    learn.recorder.loss = TokenLoss()
    learn.recorder.smooth_loss = SmoothLoss()
    learn.logger = lambda *args: None
    return learn


def fitted(cbs=None, epochs=1, **kwargs):
    learn = learner(cbs, **kwargs)
    learn.fit(epochs)
    return learn


def training_rows(learn): return [r for r in learn.telemetry.rows if 'loss' in r]


def by_hand(monkeypatch, module):
    "Put a clock that is set by hand into a module; return a list that holds its time."
    now = [0.]
    monkeypatch.setattr(module, 'time', types.SimpleNamespace(perf_counter=lambda: now[0]))
    return now


def targets(y): return int((y != IGNORE).sum())


class Losses(Callback):
    "The loss and the number of targets of every batch."
    order = 54
    def before_fit(self): self.seen = []
    def after_batch(self):
        if self.training: self.seen.append((float(self.loss), targets(self.yb[0])))


# --- rows

@pytest.mark.parametrize('accumulate', [1, 3])
def test_loss_is_the_mean_of_all_targets(accumulate):
    "Token-weighted over the interval, also where an interval ends between the micro-batches of one step."
    cbs = [Telemetry(every=5), Losses()]
    if accumulate > 1: cbs.append(Accumulate(accumulate))
    learn = fitted(cbs)
    rows = training_rows(learn)
    assert [r['step'] for r in rows] == [1, 5, 10, 12]
    seen = learn.losses.seen
    intervals = (seen[:1], seen[1:5], seen[5:10], seen[10:])
    for r, interval in zip(rows, intervals):
        total = sum(n for _, n in interval)
        nats = sum(loss * n for loss, n in interval)
        assert r['targets'] == total
        assert r['loss'] == pytest.approx(nats / total, rel=1e-6)
    assert [r['tokens'] for r in rows] == [16, 80, 160, 192]


def test_a_curve_begins_with_the_first_step():
    "Whatever lies between the rows; memory is looked at there as well."
    for every in (1, 2, 10, 100):
        first, *rest = training_rows(fitted([Telemetry(every=every), Losses()]))
        assert first['step'] == 1 and first['tokens'] == 16 and first['memory'] > 0
        assert [r['step'] for r in rest] == [*range(max(every, 2), 13, every)] + ([12] if 12 % every else [])


def test_bad_losses_are_left_out_and_counted():
    class Poison(Callback):
        order = 1
        def after_loss(self):
            if not self.training or self.train_iter not in (2, 7): return
            self.learn.loss_grad = self.loss_grad * float('nan')
            self.learn.loss = self.loss_grad.clone()
    learn = fitted([Telemetry(every=5), Poison(), ClipGrad(most=0)])
    rows = training_rows(learn)
    assert [r['bad_losses'] for r in rows] == [0, 1, 2, 2]
    assert [r['skipped'] for r in rows] == [0, 1, 2, 2]
    assert rows[1]['targets'] < learn.telemetry.since + 5 * 16
    losses = [r['loss'] for r in rows] + [learn.recorder.smooth_loss.value, *learn.recorder.losses]
    for loss in losses: assert math.isfinite(float(loss))


def test_a_batch_without_a_loss_is_not_counted_twice():
    class Drop(Callback):
        order = 1
        def before_batch(self):
            if self.training and self.train_iter == 3: raise CancelBatchException
    without = fitted([Telemetry(every=4), Drop()]).telemetry.rows[1]
    whole = fitted(Telemetry(every=4)).telemetry.rows[1]
    _, dropped = batches(12)[3]
    assert without['tokens'] == whole['tokens']
    assert without['targets'] == whole['targets'] - targets(dropped)


def test_smooth_loss_equals_fastais_where_all_is_finite():
    ours, theirs = SmoothLoss(), AvgSmoothLoss()
    for loss in torch.rand(50):
        learn = types.SimpleNamespace(loss=loss, to_detach=lambda x: x)
        ours.accumulate(learn)
        theirs.accumulate(learn)
    assert float(ours.value) == pytest.approx(float(theirs.value), rel=1e-5)
    assert float(ours.val) == pytest.approx(float(theirs.val), rel=1e-5)


def feed(metric, *losses):
    for loss in losses: metric.accumulate(types.SimpleNamespace(loss=torch.tensor(loss)))


def test_smooth_loss_restored_by_value_and_count():
    "Older checkpoints have only `val` and `count`."
    a, b = SmoothLoss(), SmoothLoss()
    feed(a, 1., 2., 3.)
    b.val = torch.tensor(float(a.val))
    b.count = a.count
    feed(a, 5.)
    feed(b, 5.)
    assert float(a.value) == pytest.approx(float(b.value), rel=1e-5)


def test_smooth_loss_restored_by_its_state():
    a, b = SmoothLoss(), SmoothLoss()
    feed(a, 1., 2., 3., 5., float('nan'))
    b.load(json.loads(json.dumps(a.state())))
    b.val = torch.tensor(float(a.val))
    b.count = a.count
    feed(a, 7.)
    feed(b, 7.)
    assert float(a.value) == float(b.value)
    assert math.isfinite(float(a.value))


def test_the_device_is_asked_once_an_interval(monkeypatch):
    "Count what is read from tensors in each batch: nothing between the ends of intervals."
    reads = []
    watching = False
    class Watch(Callback):
        order = 99
        def after_batch(self): reads.append(0)
    class Train(Callback):
        order = -5
        def before_train(self):
            nonlocal watching
            watching = True
            reads.append(0)
        def after_train(self):
            nonlocal watching
            watching = False
    def counted(real):
        def count(self, *args, **kwargs):
            if reads and watching: reads[-1] += 1
            return real(self, *args, **kwargs)
        return count
    for name in ('item', 'tolist', '__float__', '__int__', '__bool__'):
        real = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, counted(real))
    learn = learner([Telemetry(every=4), Progress('x', notebook=False), Watch(), Train()], n=13)
    learn.create_mbar = False
    learn.fit(1)
    # reads[i] is what was read while batch i ran; the optimiser of this test reads nothing
    want = [1 if i in (0, 3, 7, 11) else 0 for i in range(13)]
    assert reads[:13] == want, reads


def test_late_numbers_become_rows_when_they_arrive(monkeypatch):
    "As on a GPU: a mark is reached some batches later, and the row names the step at which it was set."
    class Slow:
        cuda = False
        def __init__(self, device): self.t = 0
        def mark(self):
            self.t += 1
            return self.t
        def reached(self, mark): return learn.train_iter % 4 == 3
        def between(self, a, b): return float(b - a)
        def send(self, x): return x
    steps = []
    class See(Callback):
        order = 99
        def after_batch(self):
            if self.training: steps.append([r['step'] for r in self.learn.telemetry.rows])
    monkeypatch.setattr(telemetry, 'Clock', Slow)
    learn = learner([Telemetry(every=4), See()], n=12)
    learn.fit(1)
    assert [steps[i] for i in (1, 3, 5, 6, 11)] == [[], [1], [1], [1, 4], [1, 4, 8]]
    assert [r['step'] for r in training_rows(learn)] == [1, 4, 8, 12]


def test_time_that_is_not_training_is_apart(monkeypatch):
    "Set the clock by hand: each batch takes 1 s, validation 10 s, a save 100 s in the middle of an interval."
    now = by_hand(monkeypatch, telemetry)
    class Hands(Callback):
        order = 1
        def after_batch(self):
            now[0] += 1 if self.training else 5
            if self.training and self.train_iter == 3:
                with self.learn.telemetry.aside('saving'): now[0] += 100
    learn = fitted([Telemetry(every=4, flops_per_token=2., peak_flops=64.), Hands()], epochs=2, n=8)
    rows = training_rows(learn)
    assert [r['tokens_per_s'] for r in rows] == [16] * 5
    assert [r['mfu'] for r in rows] == [.5] * 5
    last = learn.telemetry.rows[-1]
    assert last['step'] == 16
    assert 'mfu' not in last
    assert (last['seconds'], last['saving'], last['validating'], last['wall']) == (16, 100, 20, 136)


@pytest.mark.parametrize('blocking', [False, True])
def test_a_save_is_no_training(tmp_path, monkeypatch, blocking):
    "Take 100 s for a save, by a clock set by hand: seconds and tokens/s stay as they are."
    now = [0.]
    monkeypatch.setattr(time, 'perf_counter', lambda: now[0])
    class Slow(Checkpoint):
        name = 'checkpoint'
        def gather(self, *args, **kwargs):
            now[0] += 60
            gathered = super().gather(*args, **kwargs)
            now[0] += 40
            return gathered
    class Hands(Callback):
        order = 1
        def after_batch(self): now[0] += self.training
    slow = Slow(tmp_path/'c', every=6, blocking=blocking, final=False, best=False)
    learn = learner([Telemetry(every=4), Hands(), slow], n=12)
    with learn.no_bar(), learn.no_logging(): learn.fit(2)
    assert learn.checkpoint.saves == 4
    assert learn.telemetry.lost['saving'] == pytest.approx(400)
    assert learn.telemetry.seconds == pytest.approx(24)
    assert [r['tokens_per_s'] for r in training_rows(learn)] == pytest.approx([16.] * 7)


def test_sums_of_all_ranks_are_reduced_once_an_interval():
    calls = []
    def reduce(t):
        calls.append(t.clone())
        t.mul_(2) # a second rank with the same numbers
    def rows(reduce):
        telemetry = Telemetry(1., 1e6, every=4, reduce=reduce)
        return training_rows(fitted(telemetry))
    one, two = rows(None), rows(reduce)
    assert len(calls) == 4
    assert [r['loss'] for r in one] == [r['loss'] for r in two]
    assert two[-1]['tokens'] == 2 * one[-1]['tokens']
    assert two[-1]['mfu'] == pytest.approx(two[-1]['tokens_per_s'] / 2e6)


def test_validation_loss_is_reduced_once():
    calls = []
    def reduce(t):
        calls.append(1)
        t += torch.tensor([30., 10.]) # the other rank: 10 targets of 3 nats
    learn = learner(Telemetry())
    learn.recorder.loss = TokenLoss(reduce)
    learn.fit(1)
    loss = LMLoss(learn.model.head)
    nats, n = 30., 10
    with torch.no_grad():
        for x, y in batches(2, 1):
            nats += float(loss(learn.model(x), y)) * targets(y)
            n += targets(y)
    assert learn.telemetry.rows[-1]['valid_loss'] == pytest.approx(nats / n, rel=1e-5)
    assert len(calls) == 1


def test_only_the_first_rank_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(telemetry, 'rank', lambda: 1)
    samples = Samples(lambda model, prompts: prompts, ['a'], path=tmp_path/'samples.jsonl')
    learn = fitted([Telemetry(path=tmp_path/'history.csv'), samples])
    assert learn.telemetry.rows
    assert learn.samples.rows
    assert not list(tmp_path.iterdir())


def test_lr_find_leaves_the_history_alone(tmp_path):
    learn = fitted(Telemetry(path=tmp_path/'history.csv'))
    before = (tmp_path/'history.csv').read_bytes()
    learn.lr_find(num_it=20, show_plot=False)
    assert (tmp_path/'history.csv').read_bytes() == before


# --- a history that stays short, in files

def test_ten_million_steps_fit(tmp_path):
    "Add many rows: few stay, evenly spread, with the sums of all."
    t = Thinned(64)
    for i in range(1, 100_001):
        t.add(dict(step=10 * i, loss=float(i), targets=8, tokens_per_s=100.))
    rows = t.rows
    assert len(rows) <= 64
    assert rows[-1]['step'] == 1_000_000
    gaps = [b['step'] - a['step'] for a, b in zip(rows, rows[1:])]
    assert len(set(gaps[:-1])) == 1
    targets = sum(r['targets'] for r in rows)
    nats = sum(r['targets'] * r['loss'] for r in rows)
    assert targets == 800_000
    assert nats / targets == pytest.approx(50_000.5)


def test_thinning_resumes_from_its_state():
    whole, cut = Thinned(8), Thinned(8)
    for i in range(100):
        for t in (whole, cut): t.add(dict(step=i, loss=i / 7, targets=3))
        if i % 13 == 0:
            state = json.loads(json.dumps(cut.state()))
            cut = Thinned(8)
            cut.load(state)
    assert cut.rows == whole.rows


def test_validation_rows_are_kept_apart():
    rows = fitted(Telemetry(every=1, most=4), epochs=7, n=10).telemetry.rows
    assert len(rows) <= 8
    assert rows[-1]['step'] == 70
    assert 'valid_loss' in rows[-1]
    assert rows == sorted(rows, key=lambda r: r['step'])


@pytest.mark.parametrize('kind', ['csv', 'parquet'])
def test_files_hold_what_was_kept(tmp_path, kind):
    learn = fitted([Telemetry(every=5, path=tmp_path/'history.csv'), ClipGrad()], epochs=2)
    want = {}
    for r in learn.telemetry.rows: want.setdefault(r['step'], {}).update(r)
    assert read_history(tmp_path/f'history.{kind}') == [want[s] for s in sorted(want)]
    assert not [f for f in tmp_path.iterdir() if f.name.startswith('.')]


def test_csv_has_the_columns_of_older_versions_first(tmp_path):
    write_history(tmp_path/'h.csv', [dict(step=1, loss=2.)])
    with open(tmp_path/'h.csv') as f: head = next(csv.reader(f))
    assert head[:9] == ['step', 'tokens', 'loss', 'valid_loss', 'lr', 'grad_norm', 'tokens_per_s', 'mfu', 'seconds']
    assert tuple(head) == COLUMNS


def test_a_failed_write_leaves_the_old_file(tmp_path):
    write_history(tmp_path/'h.parquet', [dict(step=1, loss=2.)])
    with pytest.raises(Exception): write_history(tmp_path/'h.parquet', [dict(step='x')])
    assert read_history(tmp_path/'h.parquet') == [dict(step=1, loss=2)]
    assert len(list(tmp_path.iterdir())) == 1


def test_a_damaged_parquet_is_named(tmp_path):
    (tmp_path/'h.parquet').write_bytes(b'PAR1 nothing')
    with pytest.raises(UserError, match='not a parquet file'): read_history(tmp_path/'h.parquet')


def test_merging_takes_what_is_there():
    assert merge_rows(dict(step=1, loss=2.), dict(step=2)) == dict(step=2, loss=2.)
    a = dict(step=1, loss=None, targets=0)
    b = dict(step=2, loss=3., targets=4)
    assert merge_rows(a, b) == b


# --- a run that was stopped

class Die(Callback):
    order = 90
    def __init__(self, at): self.at = at
    def after_batch(self):
        if self.training and self.train_iter in self.at: raise RuntimeError('killed')


def without_clock(rows): return [{k: v for k, v in r.items() if k not in CLOCKED} for r in rows]


@pytest.mark.parametrize('every, accumulate', [(5, 1), (4, 1), (5, 3), (1, 1)])
def test_resumed_history_is_that_of_the_run_never_stopped(tmp_path, every, accumulate):
    "Compare all columns except the clock's, bit for bit; no step comes twice; the files too."
    def weight(model, prompts): return [f'{float(model.head.weight.sum()):.6f}'] * len(prompts)
    def run(name, at=()):
        folder = tmp_path/name
        cbs = [
            Telemetry(every=every, most=8, path=folder/'history.csv'),
            ClipGrad(),
            Die(at),
            Checkpoint(folder/'ck', every=3, final=False),
            Samples(weight, ['p'], path=folder/'samples.jsonl'),
        ]
        if accumulate > 1: cbs.append(Accumulate(accumulate))
        return fitted(cbs, epochs=3)
    whole = run('whole')
    for at in (7, 11, 17, 25, 29):
        with pytest.raises(RuntimeError, match='killed'): run('cut', (at,))
    cut = run('cut')
    assert without_clock(cut.telemetry.rows) == without_clock(whole.telemetry.rows)
    for name in ('history.csv', 'history.parquet'):
        a = without_clock(read_history(tmp_path/'cut'/name))
        b = without_clock(read_history(tmp_path/'whole'/name))
        assert a == b
        steps = [r['step'] for r in a]
        assert steps == sorted(set(steps))
    assert (tmp_path/'cut/samples.jsonl').read_text() == (tmp_path/'whole/samples.jsonl').read_text()
    assert float(cut.recorder.smooth_loss.value) == float(whole.recorder.smooth_loss.value)


def test_the_clock_runs_on_after_a_resume(tmp_path, monkeypatch):
    "Count seconds before the last save; those between it and the kill are lost, and so are those after the kill."
    now = by_hand(monkeypatch, telemetry)
    class Hands(Callback):
        order = 1
        def after_batch(self): now[0] += 1 if self.training else 10
    def run(at=()):
        checkpoint = Checkpoint(tmp_path/'ck', every=4, final=False)
        return fitted([Telemetry(every=5), Hands(), checkpoint, Die(at)], n=12)
    with pytest.raises(RuntimeError): run((7,))
    now[0] += 1000
    learn = run()
    last = learn.telemetry.rows[-1]
    assert (last['seconds'], last['validating'], last['wall']) == (12, 20, 32)
    assert [r['tokens_per_s'] for r in training_rows(learn)] == [16, 16, 16, 16]


def test_a_rewind_within_a_fit_drops_what_was_under_way():
    "Load an earlier state in the middle of a fit, as a guard does: its numbers hold, the clock runs on."
    class Back(Callback):
        order = 95
        def after_batch(self):
            t = self.learn.telemetry
            if not self.training: return
            if self.train_iter == 5: self.state = json.loads(json.dumps(t.checkpoint_state()))
            if self.train_iter == 11:
                t.load_checkpoint_state(self.state)
                self.found = (t.tokens, t.since, len(t.losses), t.late, t.wall >= self.state['wall'])
    learn = fitted([Telemetry(every=4), Back()])
    assert learn.back.found == (64, 16, 1, [], True)


# --- samples, progress

def test_samples_can_be_taken_at_any_time(tmp_path):
    def odd(model, prompts): return [f'{p}\u2028"<b>' for p in prompts]
    samples = fitted(Samples(odd, ['a', 'b'], path=tmp_path/'s.jsonl')).samples
    assert samples.take(['c']) == [dict(step=12, prompt='c', text='c\u2028"<b>')]
    rows = [json.loads(l) for l in (tmp_path/'s.jsonl').read_text().split('\n') if l]
    assert rows == samples.rows
    assert [r['prompt'] for r in rows] == ['a', 'b', 'c']


def test_progress_line_says_speed_loss_validation_and_the_time_left(capfd):
    learn = fitted([Telemetry(every=2), Progress('tiny', notebook=False)], epochs=2)
    said = capfd.readouterr().err.split('\r')[-1]
    for word in ('tiny: 100%', '24/24', 'loss ', 'validation ', 'tokens/s'):
        assert word in said, said
    assert learn.progress.line is None


# --- trackers

def stand_in(name, **parts):
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    vars(module).update(parts)
    return module


def have(name):
    try: __import__(name)
    except ImportError: return False
    return True


@pytest.fixture
def fresh(monkeypatch):
    "Return a function that installs stand-ins; fastai's callbacks are imported anew, so that they see them."
    callbacks = ('fastai.callback.tensorboard', 'fastai.callback.wandb')
    for name in callbacks: monkeypatch.delitem(sys.modules, name, raising=False)
    def install(*modules):
        for m in modules: monkeypatch.setitem(sys.modules, m.__name__, m)
    yield install
    for name in callbacks: sys.modules.pop(name, None)


def scalars(folder):
    "Return (name, value, step) of what TensorBoard's files hold."
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    events = EventAccumulator(str(folder))
    events.Reload()
    return [(tag, s.value, s.step) for tag in events.Tags()['scalars'] for s in events.Scalars(tag)]


def test_tensorboard_through_fastais_callback(fresh, tmp_path):
    told = []
    class SummaryWriter:
        def __init__(self, log_dir=None): pass
        def add_scalar(self, name, value, step): told.append((name, float(value), step))
        def close(self): pass
    installed = have('tensorboard')
    if not installed: fresh(stand_in('tensorboard'), stand_in('torch.utils.tensorboard', SummaryWriter=SummaryWriter))
    learn = fitted([Telemetry(every=4), ClipGrad(), tensorboard(tmp_path/'tb', every=4)], epochs=2)
    if installed: told = scalars(tmp_path/'tb')
    def steps(name): return [step for tag, _, step in told if tag == name]
    assert steps('train_loss') == steps('telemetry/loss') == [1, 4, 8, 12, 16, 20, 24]
    assert steps('lr_0')
    assert steps('valid_loss') == [12, 24]
    losses = [value for tag, value, _ in told if tag == 'telemetry/loss']
    assert losses == pytest.approx([r['loss'] for r in training_rows(learn)], rel=1e-5)


def test_wandb_through_fastais_callback(fresh, tmp_path, monkeypatch):
    logged = []
    if have('wandb'):
        import wandb
        monkeypatch.setenv('WANDB_SILENT', 'true')
        run = wandb.init(mode='offline', dir=str(tmp_path), project='x')
        real = wandb.log
        def log(row, step=None):
            logged.append(dict(row))
            real(row, step=step)
        monkeypatch.setattr(wandb, 'log', log)
    else:
        run = types.SimpleNamespace(step=0, finish=lambda: None)
        config = types.SimpleNamespace(update=lambda *args, **kwargs: None)
        fresh(stand_in('wandb', run=run, config=config, log=lambda row, step=None: logged.append(dict(row))))
    learn = fitted([Telemetry(every=4), ClipGrad(), wandb_tracker(every=4)], epochs=2)
    run.finish()
    def values(name): return [row[name] for row in logged if name in row]
    assert len(values('train_loss')) == 7
    assert values('valid_loss') == pytest.approx([v[1] for v in learn.recorder.values])
    assert values('telemetry/loss') == [r['loss'] for r in training_rows(learn)]


@pytest.mark.parametrize('make', [tensorboard, wandb_tracker, lambda: TrackioCallback('x')],
                         ids=['tensorboard', 'wandb', 'trackio'])
def test_a_tracker_that_is_not_there_is_named(make, monkeypatch):
    for name in ('tensorboard', 'wandb', 'trackio'): monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match='pip install'): make()


@pytest.mark.skipif(not have('trackio'), reason='no trackio')
def test_trackio_for_real(tmp_path, monkeypatch):
    monkeypatch.setenv('TRACKIO_DIR', str(tmp_path))
    fitted([Telemetry(every=4), TrackioCallback('tiny', name='one')])
    assert need('trackio')


# --- the speed against the plan's

def paced(planned, seconds, rates, **options):
    "Return the words of a run whose telemetry shows these tokens in each second."
    pace = Pace(planned, 10_000, **options)
    telemetry = SimpleNamespace(tokens=0, seconds=0.)
    pace.learn = SimpleNamespace(telemetry=telemetry)
    pace.before_fit()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        pace.after_batch()
        for tokens in rates:
            telemetry.tokens += tokens
            telemetry.seconds += seconds
            pace.after_batch()
        pace.after_train()
    return [str(w.message) for w in caught]


@pytest.mark.parametrize('planned, rates, words', [
    (100, [1, 100, 100, 100, 100], None), # the first interval warms up
    (100, [100, 140, 140, 140, 140], None),
    (100, [100, 160, 160, 160, 160], 'about 16k tokens instead of 10k'),
    (100, [100, 50, 50, 50, 50], '(?s)times as few as planned.*the tokens stay as planned'),
    (100, [300], 'about 30k tokens')])
def test_a_run_far_from_its_plan_says_so_once(planned, rates, words):
    said = paced(planned, 1., rates)
    assert len(said) == bool(words)
    if words: assert re.search(words, said[0])


def test_a_resumed_run_is_judged_by_what_it_does_now():
    pace = Pace(100, 10_000)
    telemetry = SimpleNamespace(tokens=5_000, seconds=5_000.) # one token a second before
    pace.learn = SimpleNamespace(telemetry=telemetry)
    pace.before_fit()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for _ in range(5):
            pace.after_batch()
            telemetry.tokens, telemetry.seconds = telemetry.tokens + 100, telemetry.seconds + 1
    assert pace.judged
