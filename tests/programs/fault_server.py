"""Start runs that are killed, each in a copy of this process: `python fault_server.py DATA`.

One process imports everything and is copied (fork) for each run, so that a start costs a fraction of a second. Reads a
job a line from its input (folder, and the moment at which to die) and answers with a line: exit status, what was said.
"""
import json, os, signal, sys, tempfile, threading
from pathlib import Path
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from fastai.callback.core import Callback
from llmbook.checkpoint import tensor_files
from llmbook.checkpoint.checkpoint import Checkpoint
from llmbook.train.telemetry import Samples
from test_faults import EPOCHS, EVENTS, EVERY, STEPS
from test_train import learner

DATA = sys.argv[1]
tensor_files.write_safetensors.__defaults__ = (4096,) # small pieces: a kill finds files half written
out = os.open(os.devnull, os.O_WRONLY)


def log(*words): os.write(out, (' '.join(map(str, words)) + '\n').encode())


def die(where, number=signal.SIGKILL):
    log('killed', where)
    os.kill(os.getpid(), number)


class Watch(Callback):
    "Say which steps are done, and send this process a signal at an event of a step."
    order = 90
    def __init__(self, job): self.job = job

    def at(self, event):
        job = self.job
        in_training = not job.get('validation', False)
        if job.get('event') != event or self.train_iter != job['step'] or self.training != in_training: return
        for _ in range(job.get('times', 1)): die(event, getattr(signal, job.get('signal', 'SIGKILL')))

    def after_batch(self):
        if self.training: log('step', self.train_iter)
        self.at('after_batch')


def watch(event):
    def f(self): self.at(event)
    setattr(Watch, event, f)

for event in EVENTS:
    if event != 'after_batch': watch(event)


class Profile:
    "Count calls in the thread that writes the save of a step, and die at one of them."
    def __init__(self, learn, job):
        self.learn, self.job = learn, job
        self.n = 0
        threading.setprofile(self)

    def __call__(self, frame, event, arg):
        job = self.job
        if threading.current_thread().name != 'checkpoint' or self.learn.checkpoint.step != job['step']: return
        self.n += 1
        name = frame.f_code.co_name
        called = arg.__name__ if event.startswith('c_') else name
        before = event in ('call', 'c_call') and called == job.get('before')
        if before or self.n == job.get('at'): die(f'{name}, {event} {called}')


def log_writes(checkpoint):
    real = checkpoint.write
    def write(step, *args):
        log('begun', step)
        real(step, *args)
        log('sealed', step)
    object.__setattr__(checkpoint, 'write', write)


def run(job):
    samples = Samples(lambda model, prompts: prompts, ['a'])
    cbs = [Checkpoint(job['folder'], every=EVERY), Watch(job), samples]
    learn = learner(DATA, steps=STEPS, accumulate=2, cbs=cbs)
    learn.dls.train.ahead = 2
    log_writes(learn.checkpoint)
    profile = Profile(learn, job) if 'save' in job else None
    try:
        with learn.no_bar(), learn.no_logging(): learn.fit_wsd(EPOCHS)
    except KeyboardInterrupt:
        log('interrupted', learn.train_iter)
        return
    if profile: log('calls', profile.n)
    losses = [round(v[1], 9) for v in learn.recorder.values]
    log('finished', learn.checkpoint.resumed, losses, len(learn.recorder.losses), len(samples.rows))


def run_and_exit(job):
    os.dup2(2, 1) # what is printed is no answer
    try: run(job)
    except SystemExit as e: log('exit', e.code)
    except BaseException as e: log('error', repr(e))
    finally: os._exit(0)


def answer(job):
    global out
    reader, out = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(reader)
        run_and_exit(job)
    os.close(out)
    with os.fdopen(reader) as f: said = f.read().splitlines()
    _, status = os.waitpid(pid, 0)
    return dict(status=os.waitstatus_to_exitcode(status), said=said)


if __name__ == '__main__':
    # what happens once in a process happens before it is copied; no thread is left
    with tempfile.TemporaryDirectory() as warm:
        learn = learner(DATA, steps=4, accumulate=2, cbs=Checkpoint(warm, every=2))
        with learn.no_bar(), learn.no_logging(): learn.fit_wsd(1)
    for line in sys.stdin: print(json.dumps(answer(json.loads(line))), flush=True)
