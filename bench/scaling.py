"""Tokens a second times training operations a token, from `nano` to 350M parameters: does cost grow with size alone?

Each size is trained in a process of its own, so that its peak memory is its own; the processes take turns. Context and
vocabulary are those of the named size, as it is really trained: 256 tokens and 4,096 words for the small sizes, 1,024
and 50,304 for the large ones. A step sees 32 rows, the batch that a plan for a processor takes for all but the shortest
runs, in micro-batches of about 2,048 tokens, which fit the memory at every size.

Micro-batches and updates (clipping and the optimiser) are timed separately, and a step is the sum of as many of each as
it needs: nothing else happens in it, and a step of the largest size takes minutes. The next larger size, qwen3-0.6b,
would take too many of them.
"""
import json, math, subprocess, sys, time
import torch
from llmbook.core import set_seed
from llmbook.model.config import get_config
from llmbook.model.transformer import Transformer
from llmbook.plan.devices import measure_machine
from llmbook.plan.flops import count_params, flops_per_token
from llmbook.plan.minutes import expected_rate
from llmbook.plan.memory import memory_estimate
from llmbook.train.learner import keep_heap
from llmbook.train.loss import LMLoss
from llmbook.train.optim import lm_opt
from llmbook.train.precision import check_precision

SIZES = ('nano', 'micro', 'mini', 'small', 'medium', '12m', '30m', '125m', '350m')
ROWS = 32           # of a step
MICRO = 2048        # tokens of a micro-batch, about
ROUNDS = 2          # over all sizes; the best counts
CHUNK = 512         # positions whose logits are held at once
SEED = 42
FROM = 10_000_000   # parameters from which on a size counts
GOAL = .75          # how near such a size has to come to the best


def held(what='VmHWM'):
    "Return the most memory this process has held, in bytes; 'VmRSS' for what it holds now. Only Linux says."
    for line in open('/proc/self/status'):
        if line.startswith(what): return int(line.split()[1]) * 1024


def clock(f):
    "Return the seconds that a call takes."
    start = time.perf_counter()
    f()
    return time.perf_counter() - start


class Worker:
    "One size in this process: a model, its optimiser and a batch."
    def __init__(self, name):
        keep_heap()
        set_seed(SEED)
        self.precision = check_precision('auto', 'cpu')
        self.build(get_config('pico', context=16), rows=1)
        self.round(0)  # what the libraries take once is not part of a size
        self.base = held('VmRSS')
        c = get_config(name)
        self.build(c, rows=max(1, MICRO // c.context))

    def build(self, c, rows):
        self.c = c
        self.rows = rows
        self.model = Transformer(c)
        self.loss = LMLoss(self.model.head, CHUNK)
        self.opt = lm_opt(self.model)(list(self.model.parameters()), lr=1e-4)
        self.x, self.y = torch.randint(c.vocab_size, (2, rows, c.context))

    def micro(self):
        with torch.autocast('cpu', torch.bfloat16, enabled=self.precision == 'bf16'):
            loss = self.loss(self.model(self.x), self.y)
        loss.backward()

    def update(self):
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.)
        self.opt.step()
        self.opt.zero_grad()

    def round(self, seconds):
        "Time micro-batches for about some seconds, two at least (one for no seconds), and an update."
        least = 2 if seconds else 1
        times, start = [], time.perf_counter()
        while len(times) < least or time.perf_counter() - start < seconds: times.append(clock(self.micro))
        return dict(micro=sum(times) / len(times), update=clock(self.update))

    def about(self):
        "Return what the size is, and what the estimate says of its memory."
        precision = 'bfloat16' if self.precision == 'bf16' else 'float32'
        estimate = memory_estimate(self.c, self.rows, precision=precision, loss_chunk=CHUNK)
        return dict(
            params=count_params(self.c)['total'],
            flops=flops_per_token(self.c),
            context=self.c.context,
            vocab=self.c.vocab_size,
            rows=self.rows,
            accumulate=ROWS // self.rows,
            precision=self.precision,
            peak=held() - self.base,
            guess=estimate['total'],
        )


def serve(name):
    "Answer each line of standard input: seconds of a round, or an empty line for what is known about the size."
    worker = Worker(name)
    for line in sys.stdin:
        answer = worker.round(float(line)) if line.strip() else worker.about()
        print(json.dumps(answer), flush=True)


def measure(names=SIZES, rounds=ROUNDS, seconds=1.):
    "Return a row for each size, and the machine; the rounds go over all sizes."
    workers = {}
    for name in names:
        command = [sys.executable, __file__, name]
        workers[name] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    def ask(name, line):
        workers[name].stdin.write(f'{line}\n')
        workers[name].stdin.flush()
        return json.loads(workers[name].stdout.readline())
    try:
        for name in names: ask(name, 0)  # the first step takes memory and time that later ones find ready
        machine = measure_machine()
        took = [{name: ask(name, seconds) for name in names} for _ in range(rounds)]
        rows = []
        for name in names:
            best = {k: min(t[name][k] for t in took) for k in ('micro', 'update')}
            expected = expected_rate(get_config(name), machine)
            rows.append(dict(size=name, **best, **ask(name, ''), expected=expected))
    finally:
        for p in workers.values():
            p.stdin.close()
            p.wait()
    return [with_step(r) for r in rows], machine


def with_step(r):
    "Return a row with its step put together."
    tokens = ROWS * r['context']
    step = r['accumulate'] * r['micro'] + r['update']
    rate = tokens / step
    return dict(
        r,
        tokens=tokens,
        step=step,
        rate=rate,
        speed=rate * r['flops'],
        share=r['update'] / step,
        guessed=tokens / r['expected'])


HEADS = { # heading of a column -> its width
    'parameters': 11, 'context': 9, 'words': 8, 'tokens/s': 10, 'GFLOP/s': 9, 'of best': 9, 'update': 8,
    'step, s': 9, 'expected s': 11, 'MB': 8, 'expected MB': 12}


def table(rows):
    "Return the sizes as text."
    best = max(r['speed'] for r in rows)
    heads = [head.rjust(width) for head, width in HEADS.items()]
    lines = ['size    ' + ''.join(heads)]
    for r in rows:
        cells = [
            f"{r['params'] / 1e6:.1f}M",
            f"{r['context']:,}",
            f"{r['vocab']:,}",
            f"{r['rate']:,.0f}",
            f"{r['speed'] / 1e9:.0f}",
            f"{r['speed'] / best:.2f}",
            f"{r['share']:.1%}",
            f"{r['step']:.2f}",
            f"{r['guessed']:.2f}",
            f"{r['peak'] / 1e6:,.0f}",
            f"{r['guess'] / 1e6:,.0f}"]
        padded = [cell.rjust(width) for cell, width in zip(cells, HEADS.values(), strict=True)]
        lines.append(f"{r['size']:8}" + ''.join(padded))
    return '\n'.join(lines)


def ratio(rows):
    "Return the speed of the slowest large size over that of the fastest of all."
    slowest = min((r['speed'] for r in rows if r['params'] >= FROM), default=math.nan)
    return slowest / max(r['speed'] for r in rows)


if __name__ == '__main__':
    if len(sys.argv) == 2: serve(sys.argv[1])
    else:
        rows, machine = measure(sys.argv[1:] or SIZES)
        peak = f"{machine['peak_flops'] / 1e9:.0f} GFLOP/s in a large product"
        print(f"{machine['device']}, {peak}, {rows[0]['precision']}; {ROWS} rows a step; update: share of the step")
        print(table(rows))
        print(f'scaling: ratio {ratio(rows):.2f} goal {GOAL}')
