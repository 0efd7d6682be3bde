"""Training and writing while another program keeps one core busy, and while none does.

torch's own way of waiting stands against `share_cores`. Each figure is that of a fresh process, since OpenMP reads its
settings once. GOMP_SPINCOUNT=300000 is what GNU's OpenMP does by default; set by a user, it also keeps llmbook from
changing how threads wait.
"""
import math, os, statistics, subprocess, sys, time

ROUNDS, SECONDS = 3, 3.
AS_TORCH = {'GOMP_SPINCOUNT': '300000'}
TASKS = ('train_small', 'train_12m', 'write')
SMALL = dict(n_layer=4, d_model=128, n_head=4, n_kv_head=4)
LARGE = dict(n_layer=6, d_model=384, n_head=6, n_kv_head=6)


def measure(task):
    "Return the tokens a second of a task, in this process."
    import torch
    from llmbook.core import set_seed
    from llmbook.model.config import ModelConfig
    from llmbook.model.transformer import Transformer
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    set_seed(0)
    shape = LARGE if task == 'train_12m' else SMALL
    model = Transformer(ModelConfig(vocab_size=4096, context=256, **shape))
    if task == 'write': return writing_rate(model)
    return training_rate(model)


def writing_rate(model):
    "Return the tokens a second of writing one text."
    from llmbook.generate.text import generate_ids
    model.eval()
    def write(): generate_ids(model, [[5, 6, 7]], 30, temperature=0, stop=None)
    return 30 * calls_a_second(write)


def training_rate(model):
    "Return the tokens a second of a Learner's steps."
    import torch
    from fastai.data.core import DataLoaders
    from llmbook.pretrain.run import lm_learner
    ids = torch.randint(0, 4096, (8, 257))
    batch = (ids[:, :-1].contiguous(), ids[:, 1:].contiguous())
    learn = lm_learner(DataLoaders([batch] * 2, []), model, lr=1e-3, seed=0)
    def two_steps():
        with learn.no_bar(), learn.no_logging(): learn.fit(1)
    return 2 * batch[0].numel() * calls_a_second(two_steps)


def calls_a_second(f):
    "Return how often a second `f` is done, after a second in which it gets used to the machine."
    warm = time.perf_counter() + 1.5
    while time.perf_counter() < warm: f()
    count, start = 0, time.perf_counter()
    while time.perf_counter() < start + SECONDS:
        f()
        count += 1
    return count / (time.perf_counter() - start)


def in_new_process(task, settings):
    "Return what `measure` says in a fresh process with some environment variables."
    chosen = ('OMP_WAIT_POLICY', 'GOMP_SPINCOUNT', 'OMP_NUM_THREADS', 'MKL_NUM_THREADS')
    env = {name: value for name, value in os.environ.items() if name not in chosen} | settings
    r = subprocess.run([sys.executable, __file__, task], env=env, stdout=subprocess.PIPE, text=True, check=True)
    return float(r.stdout.split()[-1])


def compare(task):
    "Return the medians of both ways of waiting, measured in turns."
    rates = [(in_new_process(task, AS_TORCH), in_new_process(task, {})) for _ in range(ROUNDS)]
    return [statistics.median(side) for side in zip(*rates)]


def table(name):
    "Print both ways of waiting for each task, and return the mean ratio."
    ratios = []
    for task in TASKS:
        torch_rate, shared_rate = compare(task)
        ratios.append(shared_rate / torch_rate)
        print(f'{name:5} {task:12} as torch waits {torch_rate:8,.0f} tokens/s, sharing {shared_rate:8,.0f}: '
              f'{ratios[-1]:.2f} times', flush=True)
    return math.prod(ratios) ** (1 / len(ratios))


def beside_a_neighbour(f, *args):
    "Return f(*args), called while another process keeps one core busy."
    neighbour = subprocess.Popen([sys.executable, '-c', 'while True: pass'])
    try: return f(*args)
    finally: neighbour.kill()


if __name__ == '__main__':
    if len(sys.argv) > 1 and sys.argv[1] in TASKS:
        print(measure(sys.argv[1]))
        sys.exit()
    idle = table('idle')
    busy = beside_a_neighbour(table, 'busy')
    print(f'threads_idle: ratio {idle:.3f} goal 0.97')
    print(f'threads: ratio {busy:.2f} goal 2.5')
