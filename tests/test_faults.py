"kill -9 at twenty moments of one run, signals to real processes, damaged checkpoints: the result is that of the run never disturbed."
import json, os, random, signal, subprocess, sys, warnings
from pathlib import Path
import pytest, torch
from llmbook.core import UserError, sha256
from llmbook.checkpoint.checkpoint import Checkpoint
from llmbook.checkpoint.state import check_checkpoint
from llmbook.checkpoint.tensor_files import TensorFolder
from test_train import grammar_data, learner

HERE, STEPS, EPOCHS = Path(__file__).parent, 12, 5
INTERVAL = 8 # steps that a kill may cost
EVERY = INTERVAL // 2 # a save begins: it is on the disk before the next does
EVENTS = ('before_batch', 'after_pred', 'after_backward', 'before_step', 'after_step', 'after_batch')

# One process imports everything and is copied (fork) for each start of the run: a start costs a fraction of a second.
SERVER = r'''
import json, os, signal, sys, tempfile, threading; sys.path.insert(0, {here!r})
from fastai.callback.core import Callback
from llmbook.checkpoint import tensor_files as tensorfiles
from llmbook.checkpoint.checkpoint import Checkpoint
from llmbook.train.telemetry import Samples
from test_train import learner
tensorfiles.write_safetensors.__defaults__ = (4096,) # small pieces: a kill finds files half written
log = lambda *a: os.write(out_fd, (' '.join(map(str, a)) + '\n').encode())
def die(where, number=signal.SIGKILL): log('killed', where); os.kill(os.getpid(), number)

class Watch(Callback):
    "Says what is done, and kills at an event of a step."
    order = 90
    def __init__(self, spec): self.spec = spec
    def after_batch(self): log('step', self.train_iter) if self.training else None
def told(name):
    def f(self):
        s = self.spec
        if s.get('event') == name and self.train_iter == s['step'] and self.training != s.get('validation', False):
            for _ in range(s.get('times', 1)): die(name, getattr(signal, s.get('signal', 'SIGKILL')))
    return f
for name in {events!r}:
    if name != 'after_batch': setattr(Watch, name, told(name))
def after_batch(self, old=Watch.after_batch): old(self); told('after_batch')(self)
Watch.after_batch = after_batch

def profile(spec):
    "Counts calls in the thread that writes the save of a step, and kills at one of them."
    seen = dict(n=0)
    def f(frame, event, arg):
        if threading.current_thread().name != 'checkpoint' or learn.checkpoint.step != spec['step']: return
        seen['n'] += 1
        called = arg.__name__ if event.startswith('c_') else frame.f_code.co_name
        if seen['n'] == spec.get('at') or (event in ('call', 'c_call') and called == spec.get('before')): die(f'{{frame.f_code.co_name}}, {{event}} {{called}}')
    threading.setprofile(f)
    return seen

def run(folder, spec):
    global learn
    learn = learner({data!r}, steps={steps}, accumulate=2, cbs=[Checkpoint(folder, every={every}), Watch(spec), Samples(lambda m, p: p, ['a'])])
    learn.dls.train.ahead = 2
    real = learn.checkpoint.write
    def write(step, *args): log('begun', step); real(step, *args); log('sealed', step)
    object.__setattr__(learn.checkpoint, 'write', write)
    seen = profile(spec) if 'save' in spec else None
    with learn.no_bar(), learn.no_logging(): learn.fit_wsd({epochs})
    if seen: log('calls', seen['n'])
    log('finished', learn.checkpoint.resumed, [round(v[1], 9) for v in learn.recorder.values], len(learn.recorder.losses), len(learn.samples.rows))

out_fd = os.open(os.devnull, os.O_WRONLY)
with tempfile.TemporaryDirectory() as warm: # what happens once in a process happens before it is copied; no thread is left
    learn = learner({data!r}, steps=4, accumulate=2, cbs=Checkpoint(warm, every=2))
    with learn.no_bar(), learn.no_logging(): learn.fit_wsd(1)
for line in sys.stdin:
    job = json.loads(line)
    r, out_fd = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(r); os.dup2(2, 1) # what is printed is not an answer
        try: run(job['folder'], job)
        except SystemExit as e: log('exit', e.code)
        except KeyboardInterrupt: log('interrupted', learn.train_iter)
        except BaseException as e: log('error', repr(e))
        finally: os._exit(0)
    os.close(out_fd)
    with os.fdopen(r) as f: said = f.read().splitlines()
    print(json.dumps(dict(status=os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), said=said)), flush=True)
'''


class Server:
    "Starts of the run, each in a copy of a process that is warm already."
    def __init__(self, data):
        code = SERVER.format(here=str(HERE), events=EVENTS, data=str(data), steps=STEPS, every=EVERY, epochs=EPOCHS)
        self.p = subprocess.Popen([sys.executable, '-W', 'ignore', '-c', code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                  env={**os.environ, 'OMP_NUM_THREADS': '1', 'HF_HUB_OFFLINE': '1'})
    def start(self, folder, **spec):
        self.p.stdin.write(json.dumps(dict(spec, folder=str(folder))) + '\n'); self.p.stdin.flush()
        r = json.loads(self.p.stdout.readline())
        words = [s.split(' ', 1) for s in r['said']]
        get = lambda k: [v for kind, v in words if kind == k]
        assert not get('error'), get('error')
        steps, begun, sealed = ([int(v) for v in get(k)] for k in ('step', 'begun', 'sealed'))
        return dict(status=r['status'], steps=steps, last=max(steps, default=0), begun=begun, sealed=sealed, killed=get('killed'), calls=get('calls'),
                    finished=get('finished'), exit=get('exit'), interrupted=get('interrupted'))
    def close(self): self.p.stdin.close(); self.p.wait()


def moments(calls, seed=4):
    "Twenty moments in the order of their steps: in steps, in validations, and within saves; some come twice, two before any checkpoint."
    rng, last = random.Random(seed), STEPS * EPOCHS
    steps = [dict(step=s, event=rng.choice(EVENTS)) for s in (1, 2, *rng.sample(range(5, last - 1), 6))]
    valid = [dict(step=STEPS * e, event='after_pred', validation=True) for e in rng.sample(range(1, EPOCHS), 2)]
    saves = rng.sample(range(2 * EVERY, last - EVERY, EVERY), 7)
    within = [dict(at=rng.randrange(1, calls)) for _ in range(3)] + [dict(before=f) for f in ('mkdir', 'join_layouts', 'replace', 'prune')]
    saves = [dict(step=s, save=True, **w) for s, w in zip(saves, within)]
    twice = [rng.choice(steps[2:]), rng.choice(valid), saves[rng.randrange(3)]] # not after the renaming: a checkpoint that is there is not written again
    return sorted(steps + valid + saves + twice, key=lambda m: (m['step'], 'save' in m, m.get('validation', False)))


def kill_and_resume(tmp):
    "The whole run, and the one that is killed twenty times; rows of a table, and how both ended."
    data = tmp/'data'; data.mkdir(); grammar_data(data)
    server = Server(data)
    try:
        whole = server.start(tmp/'whole', step=2 * EVERY, save=True)
        rows, done = [], []
        for m in moments(int(whole['calls'][0])):
            before = server.start(tmp/'cut', **m)
            done.append(before); rows.append(dict(m, status=before['status'], where=(before['killed'] or [''])[0], last=before['last'], begun=before['begun'], sealed=before['sealed']))
        end = server.start(tmp/'cut')
        for row, after in zip(rows, [*done[1:], end]):
            row['from'] = after['steps'][0] - 1 if after['steps'] else None
        return whole, rows, end
    finally: server.close()


def resumed_and_lost(rows):
    "Where each start went on, and what the kill before it had cost."
    at = 0
    for row in rows:
        row['reached'] = max(row['last'], at)
        row['from'] = row['reached'] if row['from'] is None else row['from']
        row['lost'] = row['reached'] - row['from']
        flying = [s for s in row['begun'] if s not in row['sealed']]
        row['while writing'] = row['reached'] - flying[-1] if flying else 0
        at = row['from']
    return rows


def table(rows):
    "The kills as text."
    lines = [f'{"step":>4}  {"killed in":46}{"reached":>8}{"went on from":>14}{"steps lost":>12}{"of them while a save was written":>34}']
    for r in rows:
        where = ('save: ' if 'save' in r else 'validation: ' if 'validation' in r else '') + r['where']
        lines.append(f'{r["step"]:4}  {where:46}{r["reached"]:8}{r["from"]:14}{r["lost"]:12}{r["while writing"]:34}')
    return '\n'.join(lines)


def test_killed_twenty_times_is_the_same_run(tmp_path):
    whole, rows, end = kill_and_resume(tmp_path)
    rows = resumed_and_lost(rows); print('\n' + table(rows))
    assert len(rows) == 20 and all(r['status'] == -signal.SIGKILL for r in rows), rows
    assert max(r['lost'] for r in rows) <= INTERVAL and all(r['lost'] <= EVERY + r['while writing'] for r in rows)
    assert whole['finished'][0].split(' ', 1)[1] == end['finished'][0].split(' ', 1)[1], 'losses, curves and samples differ'
    last = f'step-{STEPS * EPOCHS:09d}'
    for name in ('model', 'optim', 'rng', 'record'): assert sha256(tmp_path/'whole'/last/f'{name}.safetensors') == sha256(tmp_path/'cut'/last/f'{name}.safetensors'), name
    assert not [f for f in (tmp_path/'cut').iterdir() if f.name.startswith(('.', 'damaged', 'other'))]


@pytest.fixture(scope='module')
def server(tmp_path_factory):
    data = tmp_path_factory.mktemp('server'); grammar_data(data)
    s = Server(data); yield s; s.close()


@pytest.fixture(scope='module')
def whole(server, tmp_path_factory):
    out = tmp_path_factory.mktemp('whole')/'run'
    return server.start(out), out


def same_end(whole, end, out):
    assert whole[0]['finished'][0].split(' ', 1)[1] == end['finished'][0].split(' ', 1)[1]
    last = f'step-{STEPS * EPOCHS:09d}/model.safetensors'
    assert sha256(whole[1]/last) == sha256(out/last)


def test_sigterm_saves_stops_and_exits_with_143(server, whole, tmp_path):
    "In the middle of an accumulated step, and in a validation; the save is of the step just ended, and nothing is done again."
    r = server.start(tmp_path, step=9, event='after_pred', signal='SIGTERM')
    assert r['exit'] == ['143'] and r['last'] == 10, 'the step of batches 9 and 10 was ended first'
    r = server.start(tmp_path, step=2 * STEPS, event='after_pred', validation=True, signal='SIGTERM')
    assert r['exit'] == ['143'] and r['steps'][0] == 11 and r['last'] == 2 * STEPS
    r = server.start(tmp_path, step=30, event='after_backward', signal='SIGINT')
    assert r['interrupted'] == ['32'], 'a step of two batches is not left in its middle'
    same_end(whole, server.start(tmp_path), tmp_path)


def test_a_second_sigterm_ends_at_once(server, tmp_path):
    r = server.start(tmp_path, step=9, event='after_pred', signal='SIGTERM', times=2)
    assert r['status'] == -signal.SIGTERM and r['last'] == 9


def damage(f, how):
    data = bytearray(f.read_bytes())
    if how == 'missing': return f.unlink()
    if how == 'truncated': del data[-1:]
    elif how == 'empty': data.clear()
    elif how == 'pickle': data[:] = b'\x80\x04\x95\x0e\0\0\0\0\0\0\0\x8c\x05posix\x94.'
    else: data[len(data) * how // 100] ^= 1 << how % 8
    f.write_bytes(data)


FILES = ('model.safetensors', 'optim.safetensors', 'rng.safetensors', 'record.safetensors', 'state.json', 'layout.json', 'checksums.json')


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "A folder with two checkpoints."
    data, out = tmp_path_factory.mktemp('made'), tmp_path_factory.mktemp('made')/'run'
    grammar_data(data); fit(data, out)
    return data, out


def fit(data, out, how='fit_wsd', args=(2,), cbs=(), steps=8, stop=None, keep=2, every=4, **kwargs):
    learn = learner(data, steps=steps, cbs=[Checkpoint(out, every=every, keep=keep), *cbs, *([Stop(stop)] if stop else [])], **kwargs)
    with learn.no_bar(), learn.no_logging():
        try: getattr(learn, how)(*args)
        except InterruptedError: pass
    return learn


from fastai.callback.core import Callback
class Stop(Callback):
    order = 90
    def __init__(self, at): self.at, self.n = at, 0
    def after_batch(self):
        self.n += self.training
        if self.n == self.at and self.training: raise InterruptedError('cut')


@pytest.mark.parametrize('how', ['missing', 'truncated', 'empty', 'pickle', 1, 37, 50, 99])
@pytest.mark.parametrize('name', FILES)
def test_damage_is_named_and_never_used(made, tmp_path, name, how):
    import shutil
    shutil.copytree(made[1]/'step-000000016', tmp_path/'step-000000016')
    damage(tmp_path/'step-000000016'/name, how)
    with pytest.raises(UserError, match=r'(damaged|lacks|no safetensors file|names|is missing)'): check_checkpoint(tmp_path/'step-000000016')


HARMS = ('truncated', 'flipped bit', 'file missing', 'another model', 'pickle file', 'pickle by name', 'path outside')

def spoil(newest, harm, facts):
    "Do harm to a checkpoint; `facts` are those of its run, so that nothing but its tensors tells another model."
    import shutil
    from llmbook.checkpoint.state import save_checkpoint
    sums = json.loads((newest/'checksums.json').read_text())
    sign = lambda more: (newest/'checksums.json').write_text(json.dumps(sums | more))
    if harm == 'truncated': damage(newest/'model.safetensors', 'truncated')
    if harm == 'flipped bit': damage(newest/'optim.safetensors', 37)
    if harm == 'file missing': damage(newest/'record.safetensors', 'missing')
    if harm == 'another model': shutil.rmtree(newest); save_checkpoint(newest, torch.nn.Linear(2, 2), None, dict(step=20, fit=0, asked=facts))
    if harm == 'pickle file': (newest/'optimizer.pt').write_bytes(b'\x80\x04.')
    if harm == 'pickle by name': damage(newest/'rng.safetensors', 'pickle'); sign({'rng.safetensors': sha256(newest/'rng.safetensors')})
    if harm == 'path outside': sign({'../../secret': 'f' * 64})


def full_disk(data, out):
    "The second save finds the disk full: what was said, and the checkpoints there are at the end."
    from llmbook.checkpoint import tensor_files as tensorfiles
    real, calls = tensorfiles.write_safetensors, []
    def full(path, tensors):
        calls.append(path)
        if len(calls) == 6: raise OSError(28, 'No space left on device')
        return real(path, tensors)
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter('always'); patch.setattr(tensorfiles, 'write_safetensors', full)
        learn = fit(data, out, args=(3,), keep=9)
    return learn, [str(w.message) for w in seen if 'checkpoint' in str(w.message)], sorted(f.name for f in out.iterdir() if 'step' in f.name)


def harmed(data, tmp):
    "A row for each harm done to the newest checkpoint of a run that was cut: what was said, where the run went on, and whether it ended as the whole run."
    import shutil
    whole, rows = fit(data, tmp/'whole', args=(3,)), []
    cut, same = fit(data, tmp/'cut', args=(3,), stop=23), lambda l: all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), l.model.parameters()))
    for harm in HARMS:
        out = tmp/harm.replace(' ', '-')
        shutil.copytree(tmp/'cut', out)
        newest = sorted(out.glob('step-*'))[-1]; spoil(newest, harm, cut.checkpoint.facts)
        with warnings.catch_warnings(record=True) as seen: warnings.simplefilter('always'); again = fit(data, out, args=(3,))
        rows.append(dict(harm=harm, newest=int(newest.name[-9:]), said=' '.join(str(w.message) for w in seen if newest.name in str(w.message)).replace(str(tmp) + '/', ''),
                         resumed=again.checkpoint.resumed, same=same(again)))
    learn, said, kept = full_disk(data, tmp/'full')
    return rows + [dict(harm='disk full at step 8', newest=8, said=' '.join(said).replace(str(tmp) + '/', ''), resumed=None, same=same(learn), kept=kept)]


def test_the_last_good_one_is_used(made, tmp_path):
    *rows, full = harmed(made[0], tmp_path)
    assert [r['harm'] for r in rows] == list(HARMS)
    for r in rows: assert f"step-{r['newest']:09d}" in r['said'] and r['resumed'] == r['newest'] - 4 and r['same'], r
    assert 'No space left' in full['said'] and full['same'] and full['kept'] == [f'step-{s:09d}' for s in (4, 12, 16, 20, 24)], full


def test_another_run_is_refused_by_name(made):
    data, out = made
    for what, kwargs in {'steps .16 there, 24 here': dict(args=(3,)), 'schedule': dict(lr=2e-2), 'optimiser': dict(muon=False)}.items():
        with pytest.raises(UserError, match=f'another run, which differs in {what}'): fit(data, out, **kwargs)
    for what, change in {r'seed .42 there, 7 here': lambda l: setattr(l.dls.train, 'seed', 7), r'bs .8 there, 4 here': lambda l: setattr(l.dls.train, 'bs', 4)}.items():
        learn = learner(data, steps=8, cbs=Checkpoint(out)); change(learn)
        with pytest.raises(UserError, match=what), learn.no_bar(): learn.fit_wsd(2)


def test_other_data_and_another_model_are_refused(made, tmp_path):
    from llmbook.model.config import ModelConfig
    from llmbook.pretrain.run import lm_learner
    from llmbook.tokens.loaders import lm_dls
    data, out = made
    other = learner(data, steps=8, cbs=Checkpoint(out))
    other.dls.train.places = lambda g, real=other.dls.train.places: real(g) + 1 # the same numbers of everything, other tokens
    with pytest.raises(UserError, match='differs in data'), other.no_bar(): other.fit_wsd(2)
    vocab = other.model.config.vocab_size
    wide = lm_learner(lm_dls(data, bs=8, seq_len=32, steps=8, valid_batches=8, device='cpu'), ModelConfig(vocab_size=vocab, n_layer=1, d_model=32, n_head=2, n_kv_head=1, context=32), lr=1e-2, cbs=Checkpoint(out))
    with pytest.raises(UserError, match=r'differs in model \(\d+ tensors'), wide.no_bar(): wide.fit_wsd(2)


def unfreeze():
    from llmbook.tune.finetune import GradualUnfreeze
    return GradualUnfreeze(.6)


WAYS = dict(one_cycle=('fit_one_cycle', (3,)), flat_cos=('fit_flat_cos', (3,)), sgdr=('fit_sgdr', (2, 1)), plain=('fit', (3,)), wsd=('fit_wsd', (3,)), fine_tune=('fine_tune', (2,)))


@pytest.mark.parametrize('way', WAYS)
def test_every_way_to_fit_goes_on_bit_for_bit(made, tmp_path, way):
    "Stopped twice, before and after the end of an epoch; layers open one by one; a step of two batches."
    from llmbook.tune.finetune import layer_groups
    name, args = WAYS[way]
    run = lambda out, stop=None: fit(made[0], out, name, args, cbs=[] if way == 'fine_tune' else [unfreeze()], stop=stop, splitter=layer_groups, accumulate=2, every=3)
    whole = run(tmp_path/'whole')
    run(tmp_path/'cut', 7); run(tmp_path/'cut', 10)
    again = run(tmp_path/'cut')
    assert again.checkpoint.resumed and all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), again.model.parameters()))
    a, b = whole.recorder, again.recorder
    assert a.values == b.values and a.lrs == b.lrs and torch.equal(torch.stack(a.losses), torch.stack(b.losses)) and getattr(a, 'hps', 0) == getattr(b, 'hps', 0)


@pytest.mark.parametrize('kind', ['packed', 'mixed'])
def test_other_loaders_go_on_bit_for_bit(made, tmp_path, kind):
    from llmbook.tokens.mixture_loader import mixed_dls
    from llmbook.tokens.packed_loader import packed_dls
    def run(out, stop=None):
        learn = learner(made[0], steps=8, cbs=[Checkpoint(out, every=3), *([Stop(stop)] if stop else [])])
        kw = dict(valid_batches=4, device='cpu', ahead=2)
        learn.dls = packed_dls(made[0], 8, 32, 8, **kw) if kind == 'packed' else mixed_dls(dict(a=made[0], b=made[0]), dict(a=.7, b=.3), 8, 32, 8, **kw)
        with learn.no_bar(), learn.no_logging():
            try: learn.fit_wsd(3)
            except InterruptedError: pass
        return learn
    whole = run(tmp_path/'whole'); run(tmp_path/'cut', 11); again = run(tmp_path/'cut')
    assert again.checkpoint.resumed == 9 and all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), again.model.parameters()))


def test_lr_find_and_validate_leave_the_folder_alone(made, tmp_path):
    learn = learner(made[0], steps=8, cbs=Checkpoint(tmp_path/'run', every=2))
    learn.path = tmp_path
    with learn.no_bar(), learn.no_logging(): learn.lr_find(num_it=10, show_plot=False); learn.validate()
    assert not (tmp_path/'run').exists()
    with learn.no_bar(), learn.no_logging(): learn.fit_wsd(1); n = learn.checkpoint.saves; learn.validate()
    assert learn.checkpoint.saves == n


def test_a_new_fit_of_a_trained_learner_is_a_new_fit(made, tmp_path):
    "And a plain script that fits twice goes on in the second."
    def script(stop=None):
        learn = learner(made[0], steps=8, cbs=[Checkpoint(tmp_path/('cut' if stop else 'run'), every=3), *([Stop(stop)] if stop else [])])
        with learn.no_bar(), learn.no_logging():
            try: learn.fit_wsd(1); learn.fit_wsd(2)
            except InterruptedError: pass
        return learn
    whole = script()
    script(13); again = script(1000)
    assert again.checkpoint.number == 1 and again.checkpoint.resumed == 3 and all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), again.model.parameters()))


def test_the_best_is_kept_and_loaded(made, tmp_path):
    class Worse(Callback):
        "After the second epoch the weights are spoilt."
        order = 40
        def before_validate(self):
            if self.epoch >= 2:
                with torch.no_grad():
                    for p in self.model.parameters(): p.mul_(1.5)
    learn = fit(made[0], tmp_path, args=(4,), cbs=[Worse()], keep=1)
    losses = [v[1] for v in learn.recorder.values]
    best = losses.index(min(losses)) + 1
    assert sorted(f.name for f in tmp_path.glob('step-*')) == [f'step-{8 * best:09d}', 'step-000000032'] and best < 4
    learn.checkpoint.load_best()
    assert float(learn.validate()[0]) == pytest.approx(losses[best - 1], abs=1e-6)


def test_the_snapshot_is_not_torn(made, tmp_path):
    "Training goes on while a save is held up: what it writes is the step it was begun in."
    import threading
    gate = threading.Event()
    class Note(Callback):
        order, seen = 90, {}
        def after_batch(self):
            if self.training: self.seen[self.train_iter] = self.model.embed.weight.detach().clone()
            if self.train_iter == 7: gate.set()
    learn = learner(made[0], steps=8, cbs=[Checkpoint(tmp_path, every=4, best=False), note := Note()])
    real = learn.checkpoint.write
    object.__setattr__(learn.checkpoint, 'write', lambda step, *a: (gate.wait(), real(step, *a)))
    with learn.no_bar(), learn.no_logging(): learn.fit_wsd(1)
    saved = TensorFolder(tmp_path/'step-000000004').read('model', 'embed.weight')
    assert torch.equal(saved, note.seen[4]) and not torch.equal(saved, note.seen[7])


def stopped_command(tmp_path, data, step, how, *args):
    "A function that calls `llmbook-pretrain`; the first call for the folder `cut` does `how` after a step."
    (tmp_path/'sitecustomize.py').write_text(f'''
import os, signal, sys
if sys.argv[0].endswith('llmbook-pretrain') and 'cut' in ' '.join(sys.argv) and '--resume' not in sys.argv:
    import llmbook.train.telemetry as t
    real = t.Telemetry.after_batch
    def after_batch(self):
        real(self)
        if self.training and self.train_iter == {step}: {how}
    t.Telemetry.after_batch = after_batch
''')
    env = {**os.environ, 'PYTHONPATH': os.pathsep.join([str(tmp_path), os.environ.get('PYTHONPATH', '')]), 'OMP_NUM_THREADS': '1'}
    return lambda out, *more: subprocess.run([Path(sys.executable).parent/'llmbook-pretrain', data, '--minutes', '.02', '--out', tmp_path/out, *args, *more],
                                             capture_output=True, text=True, env=env, timeout=300)


def test_the_command_saves_at_sigterm_and_goes_on(made, tmp_path):
    "`llmbook-pretrain` told to stop after step 12, and called again with --resume: the model of the run that was not stopped."
    command = stopped_command(tmp_path, made[0], 12, 'os.kill(os.getpid(), signal.SIGTERM)')
    r = command('cut', '--checkpoint-minutes', '10')
    assert r.returncode == 143 and 'SIGTERM: stopped after step 12' in r.stdout and 'Traceback' not in r.stderr, r.stderr[-2000:]
    (tmp_path/'whole').mkdir(); (tmp_path/'whole/plan.json').write_text((tmp_path/'cut/plan.json').read_text())
    for out in ('cut', 'whole'):
        r = command(out, '--resume', '--keep', '1'); assert r.returncode == 0, r.stderr[-2000:]
    assert sha256(tmp_path/'cut/model/model.safetensors') == sha256(tmp_path/'whole/model/model.safetensors')


def two_ranks(out, kind):
    "On each rank: a whole run, and one that is stopped by an error, told to stop by a signal to one rank, and gone on with."
    from test_parallel import learner as ranks_learner
    from llmbook.parallel.checkpoint import ShardedCheckpoint
    from llmbook.distributed.world import rank, whole
    class Data(list):
        def __init__(self, rows): super().__init__(rows); self.at = 0
        def seek(self, i): self.at = i % len(self)
        def __iter__(self): return iter(self[self.at:])
    class Tell(Callback):
        def __init__(self, at): self.at = at
        def after_batch(self):
            if self.training and self.train_iter == self.at and rank() == 1: self.learn.checkpoint.wish.ask(signal.SIGTERM)
    def run(name, stop=None, tell=None):
        learn = ranks_learner(kind, steps=12, cbs=[ShardedCheckpoint(out/name, every=4), Tell(tell), *([Stop(stop)] if stop else [])])
        learn.dls.loaders = [Data(learn.dls.train), *learn.dls.loaders[1:]]
        with learn.no_bar(), learn.no_logging():
            try: learn.fit(2)
            except InterruptedError: pass
            except SystemExit as e: return e.code, learn.train_iter
        return learn.checkpoint.resumed, {k: whole(p.detach()).clone() for k, p in learn.model.named_parameters()}
    return [run('whole'), run('cut', stop=7), run('cut', tell=13), run('cut')]


@pytest.mark.parametrize('kind', ['ddp', 'fsdp'])
def test_two_ranks_go_on_bit_for_bit(tmp_path, kind):
    "Each writes its part in a thread; a signal to one of them stops both at the same step."
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available(): pytest.skip('this torch has no gloo')
    from llmbook.distributed.launch import launch
    (none, whole), _, told, (resumed, again) = launch(two_ranks, 2, tmp_path, kind, device='cpu')
    assert none is None and told == (143, 20) and resumed == 20
    assert all(torch.equal(whole[k], again[k]) for k in whole)
    assert {f.name for f in (tmp_path/'cut'/'step-000000024').iterdir()} >= {'model-00001-of-00002.safetensors', 'state.json', 'checksums.json'}
    assert not list((tmp_path/'cut').glob('.*'))
