"Kills at twenty moments, signals to real processes, damaged checkpoints: each result is that of an undisturbed run."
import json, os, random, shutil, signal, subprocess, sys, threading, warnings
from pathlib import Path
import pytest, torch
from fastai.callback.core import Callback
from same import same_parameters
from llmbook.core import UserError, sha256
from llmbook.model.config import ModelConfig
from llmbook.tokens.loaders import lm_dls
from llmbook.tokens.mixture_loader import mixed_dls
from llmbook.tokens.packed_loader import packed_dls
from llmbook.checkpoint import tensor_files
from llmbook.checkpoint.checkpoint import Checkpoint
from llmbook.checkpoint.state import check_checkpoint, save_checkpoint
from llmbook.checkpoint.tensor_files import TensorFolder
from llmbook.pretrain.run import lm_learner
from test_train import grammar_data, learner

HERE = Path(__file__).parent
STEPS, EPOCHS = 12, 5
INTERVAL = 8 # steps that a kill may cost
EVERY = INTERVAL // 2 # steps between saves; each is on the disk before the next begins
LAST = f'step-{STEPS * EPOCHS:09d}'
EVENTS = ('before_batch', 'after_pred', 'after_backward', 'before_step', 'after_step', 'after_batch')


# --- kills

SAID = ('step', 'begun', 'sealed', 'killed', 'calls', 'finished', 'exit', 'interrupted', 'error')


class Server:
    "Starts of the run, each in a copy of a process that is warm already (`programs/fault_server.py`)."
    def __init__(self, data):
        command = [sys.executable, '-W', 'ignore', HERE/'programs'/'fault_server.py', data]
        env = {**os.environ, 'OMP_NUM_THREADS': '1', 'HF_HUB_OFFLINE': '1'}
        self.p = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)

    def start(self, folder, **job):
        request = json.dumps(dict(job, folder=str(folder)))
        self.p.stdin.write(request + '\n')
        self.p.stdin.flush()
        answer = json.loads(self.p.stdout.readline())
        said = {k: [] for k in SAID}
        for line in answer['said']:
            kind, _, rest = line.partition(' ')
            said[kind].append(rest)
        assert not said['error'], said['error']
        for kind in ('step', 'begun', 'sealed'): said[kind] = [int(n) for n in said[kind]]
        steps = said['step']
        return said | dict(status=answer['status'], steps=steps, last=max(steps, default=0))

    def close(self):
        self.p.stdin.close()
        self.p.wait()


def moments(calls, seed=4):
    "Return twenty moments by step: in steps, validations and saves; some come twice, two come before any save."
    rng = random.Random(seed)
    last = STEPS * EPOCHS

    numbers = (1, 2, *rng.sample(range(5, last - 1), 6))
    steps = [dict(step=n, event=rng.choice(EVENTS)) for n in numbers]

    epochs = rng.sample(range(1, EPOCHS), 2)
    valid = [dict(step=STEPS * e, event='after_pred', validation=True) for e in epochs]

    numbers = rng.sample(range(2 * EVERY, last - EVERY, EVERY), 7)
    places = [dict(at=rng.randrange(1, calls)) for _ in range(3)]
    places += [dict(before=f) for f in ('mkdir', 'join_layouts', 'replace', 'prune')]
    saves = [dict(step=n, save=True, **place) for n, place in zip(numbers, places)]

    # no save twice after its renaming: a checkpoint that is there is not written again
    twice = [rng.choice(steps[2:]), rng.choice(valid), saves[rng.randrange(3)]]
    def order(m): return m['step'], 'save' in m, m.get('validation', False)
    return sorted(steps + valid + saves + twice, key=order)


def kill_and_resume(tmp):
    "Run once whole, and once with twenty kills; return the first end, a row for each kill, and the second end."
    data = tmp/'data'
    data.mkdir()
    grammar_data(data)
    server = Server(data)
    try:
        whole = server.start(tmp/'whole', step=2 * EVERY, save=True)
        rows, starts = [], []
        for moment in moments(int(whole['calls'][0])):
            start = server.start(tmp/'cut', **moment)
            row = moment | {k: start[k] for k in ('status', 'last', 'begun', 'sealed')}
            row['where'] = start['killed'][0] if start['killed'] else ''
            rows.append(row)
            starts.append(start)
        starts.append(server.start(tmp/'cut'))
    finally: server.close()
    for row, after in zip(rows, starts[1:]):
        steps = after['steps']
        row['from'] = steps[0] - 1 if steps else None
    return whole, rows, starts[-1]


def resumed_and_lost(rows):
    "Add to each row where the next start resumed, and what the kill had cost."
    at = 0
    for row in rows:
        row['reached'] = max(row['last'], at)
        if row['from'] is None: row['from'] = row['reached']
        row['lost'] = row['reached'] - row['from']
        unfinished = [s for s in row['begun'] if s not in row['sealed']]
        row['while writing'] = row['reached'] - unfinished[-1] if unfinished else 0
        at = row['from']
    return rows


def table(rows):
    "Return the kills as text."
    lines = [f'{"step":>4}  {"killed in":46}{"reached":>8}{"resumed from":>14}{"steps lost":>12}'
             f'{"of them while a save was written":>34}']
    for r in rows:
        kind = ''
        if 'validation' in r: kind = 'validation: '
        if 'save' in r: kind = 'save: '
        place = kind + r['where']
        lines.append(f'{r["step"]:4}  {place:46}{r["reached"]:8}{r["from"]:14}{r["lost"]:12}'
                     f'{r["while writing"]:34}')
    return '\n'.join(lines)


def what_it_trained(end):
    "Return losses and counts of a run that finished, without the step it was resumed from."
    return end['finished'][0].split(' ', 1)[1]


def test_killed_twenty_times_is_the_same_run(tmp_path):
    whole, rows, end = kill_and_resume(tmp_path)
    rows = resumed_and_lost(rows)
    print('\n' + table(rows))
    assert len(rows) == 20
    for row in rows:
        assert row['status'] == -signal.SIGKILL, row
        assert row['lost'] <= INTERVAL, row
        assert row['lost'] <= EVERY + row['while writing'], row
    assert what_it_trained(whole) == what_it_trained(end), 'losses, curves and samples differ'
    whole_folder, cut_folder = tmp_path/'whole', tmp_path/'cut'
    for kind in ('model', 'optim', 'rng', 'record'):
        name = f'{LAST}/{kind}.safetensors'
        assert sha256(whole_folder/name) == sha256(cut_folder/name), name
    for file in cut_folder.iterdir():
        assert not file.name.startswith(('.', 'damaged', 'other')), file.name


# --- signals

@pytest.fixture(scope='module')
def server(tmp_path_factory):
    data = tmp_path_factory.mktemp('server')
    grammar_data(data)
    s = Server(data)
    yield s
    s.close()


@pytest.fixture(scope='module')
def whole(server, tmp_path_factory):
    out = tmp_path_factory.mktemp('whole')/'run'
    return server.start(out), out


def same_end(whole, end, out):
    whole_end, whole_out = whole
    assert what_it_trained(whole_end) == what_it_trained(end)
    assert sha256(whole_out/LAST/'model.safetensors') == sha256(out/LAST/'model.safetensors')


def test_sigterm_saves_stops_and_exits_with_143(server, whole, tmp_path):
    "Stop in the middle of a step, and in a validation: the step is completed and saved, nothing is repeated."
    r = server.start(tmp_path, step=9, event='after_pred', signal='SIGTERM')
    assert r['exit'] == ['143']
    assert r['last'] == 10, 'the step of batches 9 and 10 was completed first'
    r = server.start(tmp_path, step=2 * STEPS, event='after_pred', validation=True, signal='SIGTERM')
    assert r['exit'] == ['143']
    assert r['steps'][0] == 11
    assert r['last'] == 2 * STEPS
    r = server.start(tmp_path, step=30, event='after_backward', signal='SIGINT')
    assert r['interrupted'] == ['32'], 'a step of two batches is not left in its middle'
    same_end(whole, server.start(tmp_path), tmp_path)


def test_a_second_sigterm_ends_at_once(server, tmp_path):
    r = server.start(tmp_path, step=9, event='after_pred', signal='SIGTERM', times=2)
    assert r['status'] == -signal.SIGTERM
    assert r['last'] == 9


# --- damage

FILES = ('model.safetensors', 'optim.safetensors', 'rng.safetensors', 'record.safetensors',
         'state.json', 'layout.json', 'checksums.json')
PICKLE = b'\x80\x04\x95\x0e\0\0\0\0\0\0\0\x8c\x05posix\x94.'


class Stop(Callback):
    "Interrupt after so many batches, counted through all fits."
    order = 90
    def __init__(self, at):
        self.at = at
        self.n = 0
    def after_batch(self):
        self.n += self.training
        if self.n == self.at and self.training: raise InterruptedError('cut')
    def checkpoint_state(self): return None # a power failure is no part of the run, nor is its count
    def load_checkpoint_state(self, s): pass


def stops(stop): return [Stop(stop)] if stop else []


def fit_learner(learn, how='fit_wsd', *args):
    with learn.no_bar(), learn.no_logging():
        try: getattr(learn, how)(*args)
        except InterruptedError: pass
    return learn


def fit(data, out, how='fit_wsd', args=(2,), cbs=(), steps=8, stop=None, keep=2, every=4, **kwargs):
    checkpoint = Checkpoint(out, every=every, keep=keep)
    return fit_learner(learner(data, steps=steps, cbs=[checkpoint, *cbs, *stops(stop)], **kwargs), how, *args)


def same(a, b): return same_parameters(a.model, b.model)


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "Return the data, and a folder with two checkpoints."
    data = tmp_path_factory.mktemp('made')
    out = tmp_path_factory.mktemp('made')/'run'
    grammar_data(data)
    fit(data, out)
    return data, out


def damage(f, how):
    "Damage a file in a way, or flip a bit at so many hundredths of it."
    content = bytearray(f.read_bytes())
    if how == 'missing': return f.unlink()
    if how == 'truncated': del content[-1:]
    elif how == 'empty': content.clear()
    elif how == 'pickle': content[:] = PICKLE
    else: content[len(content) * how // 100] ^= 1 << how % 8
    f.write_bytes(content)


@pytest.mark.parametrize('how', ['missing', 'truncated', 'empty', 'pickle', 1, 37, 50, 99])
@pytest.mark.parametrize('name', FILES)
def test_damage_is_named_and_never_used(made, tmp_path, name, how):
    copy = tmp_path/'step-000000016'
    shutil.copytree(made[1]/copy.name, copy)
    damage(copy/name, how)
    with pytest.raises(UserError, match=r'(damaged|lacks|no safetensors file|names|is missing)'):
        check_checkpoint(copy)


HARMS = ('truncated', 'flipped bit', 'file missing', 'another model', 'pickle file', 'pickle by name', 'path outside')


def spoil(newest, harm, facts):
    "Harm a checkpoint; `facts` are those of its run, so that only its tensors tell that a model is another."
    def add_checksum(name, checksum):
        checksums = json.loads((newest/'checksums.json').read_text())
        (newest/'checksums.json').write_text(json.dumps(checksums | {name: checksum}))
    if harm == 'truncated': damage(newest/'model.safetensors', 'truncated')
    if harm == 'flipped bit': damage(newest/'optim.safetensors', 37)
    if harm == 'file missing': damage(newest/'record.safetensors', 'missing')
    if harm == 'another model':
        shutil.rmtree(newest)
        save_checkpoint(newest, torch.nn.Linear(2, 2), None, dict(step=20, fit=0, asked=facts))
    if harm == 'pickle file': (newest/'optimizer.pt').write_bytes(b'\x80\x04.')
    if harm == 'pickle by name':
        damage(newest/'rng.safetensors', 'pickle')
        add_checksum('rng.safetensors', sha256(newest/'rng.safetensors'))
    if harm == 'path outside': add_checksum('../../secret', 'f' * 64)


def full_disk(data, out):
    "Train with a disk that is full at the second save; return the Learner, what was said, and the checkpoints."
    write = tensor_files.write_safetensors
    calls = []
    def full(path, tensors):
        calls.append(path)
        if len(calls) == 6: raise OSError(28, 'No space left on device')
        return write(path, tensors)
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        patch.setattr(tensor_files, 'write_safetensors', full)
        learn = fit(data, out, args=(3,), keep=9)
    said = [str(w.message) for w in caught if 'checkpoint' in str(w.message)]
    return learn, said, sorted(f.name for f in out.iterdir() if 'step' in f.name)


def harmed(data, tmp):
    "Return a row for each harm to a cut run's newest checkpoint: what was said, where it resumed, and its end."
    whole = fit(data, tmp/'whole', args=(3,))
    cut = fit(data, tmp/'cut', args=(3,), stop=23)
    def short(said): return ' '.join(said).replace(f'{tmp}/', '')
    rows = []
    for harm in HARMS:
        out = tmp/harm.replace(' ', '-')
        shutil.copytree(tmp/'cut', out)
        newest = sorted(out.glob('step-*'))[-1]
        spoil(newest, harm, cut.checkpoint.facts)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            again = fit(data, out, args=(3,))
        said = [str(w.message) for w in caught if newest.name in str(w.message)]
        rows.append(dict(harm=harm, newest=int(newest.name[-9:]), said=short(said),
                         resumed=again.checkpoint.resumed, same=same(whole, again)))
    learn, said, kept = full_disk(data, tmp/'full')
    rows.append(dict(harm='disk full at step 8', newest=8, said=short(said),
                     resumed=None, same=same(whole, learn), kept=kept))
    return rows


def test_the_last_good_one_is_used(made, tmp_path):
    *rows, full = harmed(made[0], tmp_path)
    assert [r['harm'] for r in rows] == list(HARMS)
    for r in rows:
        newest = r['newest']
        assert f'step-{newest:09d}' in r['said'], r
        assert r['resumed'] == newest - 4, r
        assert r['same'], r
    assert 'No space left' in full['said'], full
    assert full['same'], full
    assert full['kept'] == [f'step-{s:09d}' for s in (4, 12, 16, 20, 24)], full


# --- another run

@pytest.mark.parametrize('what, kwargs', [
    ('steps .16 there, 24 here', dict(args=(3,))), ('schedule', dict(lr=2e-2)), ('optimiser', dict(muon=False))])
def test_another_run_is_refused_by_name(made, what, kwargs):
    data, out = made
    with pytest.raises(UserError, match=f'another run, which differs in {what}'):
        fit(data, out, **kwargs)


@pytest.mark.parametrize('name, value, what', [('seed', 7, 'seed .42 there, 7 here'), ('bs', 4, 'bs .8 there, 4 here')])
def test_another_loader_is_refused_by_name(made, name, value, what):
    data, out = made
    learn = learner(data, steps=8, cbs=Checkpoint(out))
    setattr(learn.dls.train, name, value)
    with pytest.raises(UserError, match=what), learn.no_bar(): learn.fit_wsd(2)


def test_other_data_are_refused(made):
    data, out = made
    other = learner(data, steps=8, cbs=Checkpoint(out))
    places = other.dls.train.places
    other.dls.train.places = lambda g: places(g) + 1 # the same numbers of everything, other tokens
    with pytest.raises(UserError, match='differs in data'), other.no_bar(): other.fit_wsd(2)


def test_another_model_is_refused(made):
    data, out = made
    vocab_size = learner(data, steps=8).model.config.vocab_size
    config = ModelConfig(vocab_size=vocab_size, n_layer=1, d_model=32, n_head=2, n_kv_head=1, context=32)
    dls = lm_dls(data, bs=8, seq_len=32, steps=8, valid_batches=8, device='cpu')
    shallow = lm_learner(dls, config, lr=1e-2, cbs=Checkpoint(out))
    with pytest.raises(UserError, match=r'differs in model \(\d+ tensors'), shallow.no_bar():
        shallow.fit_wsd(2)


# --- every way to train resumes

WAYS = {
    'one_cycle': ('fit_one_cycle', (3,)),
    'flat_cos': ('fit_flat_cos', (3,)),
    'sgdr': ('fit_sgdr', (2, 1)),
    'plain': ('fit', (3,)),
    'wsd': ('fit_wsd', (3,)),
    'fine_tune': ('fine_tune', (2,)),
}


@pytest.mark.parametrize('way', WAYS)
def test_every_way_to_fit_resumes_bit_for_bit(made, tmp_path, way):
    "Stop twice, before and after the end of an epoch; layers open one by one; a step has two batches."
    from llmbook.tune.finetune import GradualUnfreeze, layer_groups
    name, args = WAYS[way]
    def run(out, stop=None):
        cbs = [] if way == 'fine_tune' else [GradualUnfreeze(.6)]
        return fit(made[0], out, name, args, cbs, stop=stop, splitter=layer_groups, accumulate=2, every=3)
    whole = run(tmp_path/'whole')
    run(tmp_path/'cut', 7)
    run(tmp_path/'cut', 10)
    again = run(tmp_path/'cut')
    assert again.checkpoint.resumed
    assert same(whole, again)
    a, b = whole.recorder, again.recorder
    assert a.values == b.values
    assert a.lrs == b.lrs
    assert torch.equal(torch.stack(a.losses), torch.stack(b.losses))
    assert getattr(a, 'hps', 0) == getattr(b, 'hps', 0)


@pytest.mark.parametrize('kind', ['packed', 'mixed'])
def test_other_loaders_resume_bit_for_bit(made, tmp_path, kind):
    data = made[0]
    def loaders():
        options = dict(valid_batches=4, device='cpu', ahead=2)
        if kind == 'packed': return packed_dls(data, 8, 32, 8, **options)
        return mixed_dls(dict(a=data, b=data), dict(a=.7, b=.3), 8, 32, 8, **options)
    def run(out, stop=None):
        learn = learner(data, steps=8, cbs=[Checkpoint(out, every=3), *stops(stop)])
        learn.dls = loaders()
        return fit_learner(learn, 'fit_wsd', 3)
    whole = run(tmp_path/'whole')
    run(tmp_path/'cut', 11)
    again = run(tmp_path/'cut')
    assert again.checkpoint.resumed == 9
    assert same(whole, again)


def test_lr_find_and_validate_leave_the_folder_alone(made, tmp_path):
    learn = learner(made[0], steps=8, cbs=Checkpoint(tmp_path/'run', every=2))
    learn.path = tmp_path
    with learn.no_bar(), learn.no_logging():
        learn.lr_find(num_it=10, show_plot=False)
        learn.validate()
        assert not (tmp_path/'run').exists()
        learn.fit_wsd(1)
        saves = learn.checkpoint.saves
        learn.validate()
    assert learn.checkpoint.saves == saves


def test_a_script_that_fits_twice_resumes_in_the_second_fit(made, tmp_path):
    def script(name, stop=None):
        learn = learner(made[0], steps=8, cbs=[Checkpoint(tmp_path/name, every=3), *stops(stop)])
        with learn.no_bar(), learn.no_logging():
            try:
                learn.fit_wsd(1)
                learn.fit_wsd(2)
            except InterruptedError: pass
        return learn
    whole = script('run')
    script('cut', 13)
    again = script('cut')
    assert again.checkpoint.number == 1
    assert again.checkpoint.resumed == 3
    assert same(whole, again)


def test_the_best_is_retained_and_loaded(made, tmp_path):
    class Worse(Callback):
        "Spoil the weights after the second epoch."
        order = 40
        @torch.no_grad()
        def before_validate(self):
            if self.epoch < 2: return
            for p in self.model.parameters(): p.mul_(1.5)
    learn = fit(made[0], tmp_path, args=(4,), cbs=[Worse()], keep=1)
    losses = [v[1] for v in learn.recorder.values]
    best = losses.index(min(losses)) + 1
    assert best < 4
    assert sorted(f.name for f in tmp_path.glob('step-*')) == [f'step-{8 * best:09d}', 'step-000000032']
    learn.checkpoint.load_best()
    assert float(learn.validate()[0]) == pytest.approx(losses[best - 1], abs=1e-6)


def test_the_snapshot_is_not_torn(made, tmp_path):
    "Hold up a save while training continues: it writes the step it was begun in."
    gate = threading.Event()
    class Note(Callback):
        order = 90
        def __init__(self): self.seen = {}
        def after_batch(self):
            if self.training: self.seen[self.train_iter] = self.model.embed.weight.detach().clone()
            if self.train_iter == 7: gate.set()
    note = Note()
    learn = learner(made[0], steps=8, cbs=[Checkpoint(tmp_path, every=4, best=False), note])
    write = learn.checkpoint.write
    def held_up(step, *args):
        gate.wait()
        write(step, *args)
    object.__setattr__(learn.checkpoint, 'write', held_up)
    fit_learner(learn, 'fit_wsd', 1)
    saved = TensorFolder(tmp_path/'step-000000004').read('model', 'embed.weight')
    assert torch.equal(saved, note.seen[4])
    assert not torch.equal(saved, note.seen[7])


# --- the command

def stopped_command(tmp_path, data, step, how, *args):
    "Return a function that calls `llmbook-pretrain`; its first call for `cut` runs the code `how` after a step."
    paths = [str(HERE/'programs'/'stop'), os.environ.get('PYTHONPATH', '')]
    env = os.environ | dict(PYTHONPATH=os.pathsep.join(paths), OMP_NUM_THREADS='1', STOP_STEP=str(step), STOP_HOW=how)
    program = Path(sys.executable).parent/'llmbook-pretrain'
    def command(out, *more):
        call = [program, data, '--minutes', '.05', '--out', tmp_path/out, *args, *more]
        return subprocess.run(call, capture_output=True, text=True, env=env, timeout=300)
    return command


def test_the_command_saves_at_sigterm_and_resumes(made, tmp_path):
    "Stop `llmbook-pretrain` after step 12, and call it again with --resume: the model is that of an undisturbed run."
    command = stopped_command(tmp_path, made[0], 12, 'os.kill(os.getpid(), signal.SIGTERM)')
    r = command('cut', '--checkpoint-minutes', '10')
    said = r.stderr[-2000:]
    assert r.returncode == 143, said
    assert 'SIGTERM: stopped after step 12' in r.stdout, said
    assert 'Traceback' not in r.stderr, said
    (tmp_path/'whole').mkdir()
    shutil.copy(tmp_path/'cut/plan.json', tmp_path/'whole/plan.json')
    for out in ('cut', 'whole'):
        r = command(out, '--resume', '--keep', '1')
        assert r.returncode == 0, r.stderr[-2000:]
    def model(out): return sha256(tmp_path/out/'model/model.safetensors')
    assert model('cut') == model('whole')


# --- two ranks

class SeekableList(list):
    "Batches of a list that begin in the middle of an epoch."
    at = 0
    def seek(self, i): self.at = i % len(self)
    def __iter__(self): return iter(self[self.at:])


class Tell(Callback):
    "Tell one rank to stop at a step, as a signal would."
    def __init__(self, at): self.at = at
    def after_batch(self):
        from llmbook.distributed.world import rank
        if not self.training or self.train_iter != self.at: return
        if rank() == 1: self.learn.checkpoint.wish.ask(signal.SIGTERM)


def two_ranks(out, kind):
    "On each rank, run once whole, and once stopped by an error, stopped by a signal to one rank, and resumed."
    from test_parallel import learner as ranks_learner
    from llmbook.parallel.checkpoint import ShardedCheckpoint
    from llmbook.distributed.world import whole
    def run(name, stop=None, tell=None):
        cbs = [ShardedCheckpoint(out/name, every=4), Tell(tell), *stops(stop)]
        learn = ranks_learner(kind, steps=12, cbs=cbs)
        learn.dls.loaders = [SeekableList(learn.dls.train), *learn.dls.loaders[1:]]
        try: fit_learner(learn, 'fit', 2)
        except SystemExit as e: return e.code, learn.train_iter
        weights = {k: whole(p.detach()).clone() for k, p in learn.model.named_parameters()}
        return learn.checkpoint.resumed, weights
    return [run('whole'), run('cut', stop=7), run('cut', tell=13), run('cut')]


@pytest.mark.parametrize('kind', ['ddp', 'fsdp'])
def test_two_ranks_resume_bit_for_bit(tmp_path, kind):
    "Let each rank write its part in a thread; a signal to one of them stops both at the same step."
    d = torch.distributed
    if not d.is_available() or not d.is_gloo_available(): pytest.skip('this torch has no gloo')
    from llmbook.distributed.launch import launch
    (none, whole), _, told, (resumed, again) = launch(two_ranks, 2, tmp_path, kind, device='cpu')
    assert none is None
    assert told == (143, 20)
    assert resumed == 20
    assert all(torch.equal(whole[k], again[k]) for k in whole)
    written = {f.name for f in (tmp_path/'cut'/'step-000000024').iterdir()}
    assert written >= {'model-00001-of-00002.safetensors', 'state.json', 'checksums.json'}
    assert not list((tmp_path/'cut').glob('.*'))
