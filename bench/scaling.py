"""Tokens a second times training operations a token, from `nano` to 350M parameters: does cost grow with the size, and with nothing else?

Each size is trained in a process of its own, so that its peak memory is its own; the processes take turns. Context and vocabulary are those of
the named size: 256 tokens and 4,096 words for the small ones, 1,024 and 50,304 for the large, as they are trained in earnest. A step sees 32 rows,
the batch that a plan for a processor takes for all but the shortest runs, in micro-batches of about 2,048 tokens, which fit the memory at every size.
Micro-batches and updates (clipping and the optimiser) are timed apart, and a step is so many of the one and one of the other: nothing
else happens in it, and a step of the largest size takes minutes. The next larger size, qwen3-0.6b, would take too many of them.
"""
import json, math, subprocess, sys, time

SIZES, ROWS, MICRO, ROUNDS, CHUNK, SEED = ('nano', 'micro', 'mini', 'small', 'medium', '12m', '30m', '125m', '350m'), 32, 2048, 2, 512, 42
FROM, GOAL = 10_000_000, .75 # parameters from which on a size counts, and how near it has to come to the best


def held(what='VmHWM'):
    "The most memory this process has held, in bytes; VmRSS: what it holds now. Only Linux says."
    return next(int(line.split()[1]) for line in open('/proc/self/status') if line.startswith(what)) * 1024


class Worker:
    "One size in this process: a model, its optimiser and a batch."
    def __init__(self, name):
        import torch
        from llmbook.core import set_seed
        from llmbook.model.config import get_config
        from llmbook.model.transformer import Transformer
        from llmbook.train.learner import keep_heap
        from llmbook.train.loss import LMLoss
        from llmbook.train.optim import lm_opt
        from llmbook.train.precision import check_precision
        keep_heap(); set_seed(SEED)
        self.torch, self.precision = torch, check_precision('auto', 'cpu')
        def build(c):
            self.c, self.model, self.rows = c, Transformer(c), max(1, MICRO // c.context)
            self.loss, self.opt = LMLoss(self.model.head, CHUNK), lm_opt(self.model)(list(self.model.parameters()), lr=1e-4)
            self.x, self.y = torch.randint(c.vocab_size, (2, self.rows, c.context))
        build(get_config('pico', context=16)); self.rows = 1; self.x, self.y = self.x[:1], self.y[:1]
        self.round(0)                                                 # what the libraries take once is no part of a size
        self.base = held('VmRSS')
        build(get_config(name))

    def micro(self):
        with self.torch.autocast('cpu', self.torch.bfloat16, enabled=self.precision == 'bf16'): loss = self.loss(self.model(self.x), self.y)
        loss.backward()

    def update(self):
        self.torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.)
        self.opt.step(); self.opt.zero_grad()

    def round(self, seconds):
        "Micro-batches for about some seconds, two or more (one for no seconds), and an update: seconds of each."
        times, start = [], time.perf_counter()
        while len(times) < (2 if seconds else 1) or time.perf_counter() - start < seconds: times.append(clock(self.micro))
        return dict(micro=sum(times) / len(times), update=clock(self.update))

    def about(self):
        "What the size is, and what the budget says of it."
        from llmbook.plan.flops import count_params, flops_per_token
        from llmbook.plan.memory import memory_estimate
        guess = memory_estimate(self.c, self.rows, precision='bfloat16' if self.precision == 'bf16' else 'float32', loss_chunk=CHUNK)
        return dict(params=count_params(self.c)['total'], flops=flops_per_token(self.c), context=self.c.context, vocab=self.c.vocab_size, rows=self.rows,
                    accumulate=ROWS // self.rows, precision=self.precision, peak=held() - self.base, guess=guess['total'])


def clock(f):
    start = time.perf_counter(); f()
    return time.perf_counter() - start


def serve(name):
    "Answer each line of standard input: seconds of a round, or nothing for what is known about the size."
    worker = Worker(name)
    for line in sys.stdin: print(json.dumps(worker.round(float(line)) if line.strip() else worker.about()), flush=True)


def measure(names=SIZES, rounds=ROUNDS, seconds=1.):
    "A row for each size; the rounds go over all sizes."
    from llmbook.model.config import get_config
    from llmbook.plan.devices import measure_machine
    from llmbook.plan.local import expected_rate
    ps = {n: subprocess.Popen([sys.executable, __file__, n], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for n in names}
    def ask(n, line):
        ps[n].stdin.write(f'{line}\n'); ps[n].stdin.flush()
        return json.loads(ps[n].stdout.readline())
    try:
        for n in names: ask(n, 0)                                     # the first step brings what the others find
        machine = measure_machine()
        took = [{n: ask(n, seconds) for n in names} for _ in range(rounds)]
        rows = [dict(size=n, **{k: min(t[n][k] for t in took) for k in ('micro', 'update')}, **ask(n, ''), expected=expected_rate(get_config(n), machine)) for n in names]
    finally:
        for p in ps.values(): p.stdin.close(); p.wait()
    return [reckon(r) for r in rows], machine


def reckon(r):
    "A row with its step put together."
    tokens, step = ROWS * r['context'], r['accumulate'] * r['micro'] + r['update']
    return dict(r, tokens=tokens, step=step, rate=tokens / step, speed=tokens / step * r['flops'], share=r['update'] / step, guessed=tokens / r['expected'])


def table(rows):
    "The sizes as text."
    best = max(r['speed'] for r in rows)
    lines = [f'{"size":8}{"parameters":>11}{"context":>9}{"words":>8}{"tokens/s":>10}{"GFLOP/s":>9}{"of best":>9}{"update":>8}{"step, s":>9}{"expected":>10}{"MB":>8}{"expected":>10}']
    for r in rows: lines.append(f"{r['size']:8}{r['params'] / 1e6:10.1f}M{r['context']:9,}{r['vocab']:8,}{r['rate']:10,.0f}{r['speed'] / 1e9:9.0f}{r['speed'] / best:9.2f}{r['share']:8.1%}"
                                f"{r['step']:9.2f}{r['guessed']:10.2f}{r['peak'] / 1e6:8,.0f}{r['guess'] / 1e6:10,.0f}")
    return '\n'.join(lines)


def ratio(rows):
    "The slowest of the large sizes over the fastest of all."
    return min((r['speed'] for r in rows if r['params'] >= FROM), default=math.nan) / max(r['speed'] for r in rows)


if __name__ == '__main__':
    if len(sys.argv) == 2: serve(sys.argv[1])
    else:
        rows, machine = measure(sys.argv[1:] or SIZES)
        print(f"{machine['device']}, {machine['peak_flops'] / 1e9:.0f} GFLOP/s in a large product, {rows[0]['precision']}; {ROWS} rows a step; update: share of the step")
        print(table(rows))
        print(f'scaling: ratio {ratio(rows):.2f} goal {GOAL}')
