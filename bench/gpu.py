"""On one GPU: training against `transformers` `Trainer`, writing against the speed of memory, and a run that is killed.

Both sides train GPT-2 (124M, and the 350M size) in bf16 with `torch.compile` and fused AdamW on the same batches;
a third arm has Muon, the default here. Each arm runs in a process of its own, so that its peak memory is its own, and
the arms take turns. MFU is that of the data sheet, with the operations of the model alone. `--rounds 1` is quicker.
`--small` tries the script with little models on whatever is here: its figures say nothing. Needs `accelerate`, as
`Trainer` does: pip install '.[bench]'
"""
import argparse, hashlib, json, os, signal, statistics, subprocess, sys, tempfile, time
from pathlib import Path
import numpy as np, torch
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from llmbook.checkpoint.checkpoint import Checkpoint
from llmbook.core import import_transformers, machine, set_seed
from llmbook.generate.text import generate_ids
from llmbook.model.config import get_config
from llmbook.model.hf_config import hf_config
from llmbook.model.transformer import Transformer
from llmbook.plan.devices import find_device
from llmbook.plan.flops import count_params, flops_per_token
from llmbook.pretrain.run import lm_learner
from llmbook.tokens.loaders import TokenLoader
from llmbook.tokens.shards import TokenView

SMALL = '--small' in sys.argv
DEVICE = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
ON_GPU = DEVICE.type == 'cuda'
SEED = 42
SIZES = {'gpt2': (64, 1024), 'gpt2-medium': (32, 1024)}  # rows and tokens of a batch
WRITERS = ('gpt2', 'qwen3-0.6b', 'qwen3-1.7b')
STEPS, WARM = 30, 10  # steps of an arm, and how many of them are not timed
NEW = 256  # tokens written
KILLED = 47  # step at which a run dies
if SMALL:
    SIZES = {'gpt2': (2, 32)}
    WRITERS = ('gpt2',)
    STEPS, WARM, NEW, KILLED = 20, 5, 8, 33
TINY = dict(n_layer=2, d_model=64, n_head=2, n_kv_head=2, d_ff=256, vocab_size=512, context=64)
ARMS = dict(ours='Learner', theirs='Trainer', muon='Learner with Muon')


def config(size): return get_config(size, **(TINY if SMALL else {}))


def loaders(size):
    "Return training and validation batches of tokens drawn at random."
    rows, T = SIZES[size]
    rng = np.random.default_rng(SEED)
    ids = rng.integers(0, config(size).vocab_size, rows * T * STEPS + 1).astype(np.uint16)
    train = TokenLoader(TokenView([ids]), rows, T, STEPS, SEED, True, device=DEVICE)
    valid = TokenLoader(TokenView([ids]), rows, T, 1, SEED, False, device=DEVICE)
    return train, valid


def now():
    if ON_GPU: torch.cuda.synchronize()
    return time.perf_counter()


def learner(size, muon, *cbs, compile=True):
    dls = DataLoaders(*loaders(size), device=DEVICE)
    return lm_learner(
        dls, config(size), lr=3e-4, muon=muon, precision='bf16', compile=compile, seed=SEED, cbs=list(cbs))


# ---- training --------------------------------------------------------------------------------------------------

class Tick(Callback):
    "Notes the time every five steps."
    order = 90
    def __init__(self): self.at = []
    def after_batch(self):
        if self.train_iter % 5 == 0: self.at.append(now())


def ours(size, muon=False):
    "Train with the Learner; return the times of every fifth step."
    tick = Tick()
    learn = learner(size, muon, tick)
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    return tick.at


def theirs(size):
    "Train with `Trainer`; return the times of every fifth step."
    tf = import_transformers()
    tf.utils.logging.set_verbosity_error()
    at = []

    class TheirTick(tf.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step % 5 == 0: at.append(now())

    train, _ = loaders(size)
    rows = [r for i in range(STEPS) for r in train.batch(i)[0].cpu()]
    examples = [dict(input_ids=r, labels=r) for r in rows]  # shifted inside the model
    args = tf.TrainingArguments(
        tempfile.mkdtemp(), per_device_train_batch_size=SIZES[size][0], max_steps=STEPS,
        optim='adamw_torch_fused', learning_rate=3e-4, weight_decay=.1, max_grad_norm=1.,
        bf16=True, torch_compile=True, use_cpu=not ON_GPU, dataloader_pin_memory=ON_GPU,
        report_to=[], save_strategy='no', logging_steps=10, disable_tqdm=True)
    model = tf.GPT2LMHeadModel(tf.GPT2Config(**hf_config(config(size))))
    trainer = tf.Trainer(model, args, train_dataset=examples, callbacks=[TheirTick()])
    trainer.remove_callback(tf.trainer_callback.PrinterCallback)
    trainer.train()
    return at


def trained(arm, size):
    "Return tokens a second after the warm-up, and the peak memory in bytes."
    at = dict(ours=ours, muon=lambda s: ours(s, True), theirs=theirs)[arm](size)
    rows, T = SIZES[size]
    timed = at[WARM // 5:]
    gaps = [b - a for a, b in zip(timed, timed[1:])]
    rate = 5 * rows * T / statistics.median(gaps) if len(gaps) > 1 else 0.
    return dict(rate=rate, memory=torch.cuda.max_memory_allocated() if ON_GPU else 0)


def median_rate(results, arm): return statistics.median(r[arm]['rate'] for r in results)


def mfu(results, arm, size, card):
    "Return the share of the card's promised operations that an arm uses."
    _, T = SIZES[size]
    per_token = flops_per_token(config(size), T)
    return median_rate(results, arm) * per_token / card.peak('bfloat16')


def arm_line(results, arm, size, card):
    "Return what an arm reached, in words; `card` is None where its figures are not known."
    share = f'{mfu(results, arm, size, card):.1%}' if card else 'unknown'
    gigabytes = max(r[arm]['memory'] for r in results) / 1e9
    return f'{median_rate(results, arm):,.0f} tokens/s, MFU {share}, {gigabytes:.1f} GB'


def train_table(card, rounds):
    "Print a line an arm, and the ratios, for each size."
    for size in SIZES:
        results = []
        for _ in range(rounds): results.append({arm: child(arm, size) for arm in ARMS})
        for arm, name in ARMS.items():
            reached = arm_line(results, arm, size, card)
            print(f'{size}, {name}: {reached}', flush=True)
        key = 'gpu_' + size.replace('-', '_')
        if card:
            share = mfu(results, 'ours', size, card)
            print(f'{key}_mfu: ratio {share:.2f} goal 0.5')
        ratios = [r['ours']['rate'] / max(r['theirs']['rate'], 1e-9) for r in results]
        ratio = statistics.median(ratios)
        print(f'{key}: ratio {ratio:.2f} goal 1.2', flush=True)


# ---- writing ---------------------------------------------------------------------------------------------------

def written(size):
    "Return tokens a second of one text, greedy, in bfloat16, and the bytes of the weights."
    set_seed(SEED)
    with torch.device(DEVICE): model = Transformer(config(size)).to(torch.bfloat16).eval()

    def seconds(n):
        start = now()
        generate_ids(model, [[5] * 16], n, temperature=0, stop=None)
        return now() - start

    seconds(NEW)
    spans = [seconds(NEW) - seconds(NEW // 2) for _ in range(3)]  # the difference is free of the start
    weights = {id(p): p.numel() for p in model.parameters()}
    return dict(rate=(NEW - NEW // 2) / statistics.median(spans), bytes=2 * sum(weights.values()))


def writing_table(card):
    "Print how fast each size writes one text, and which share of the memory's speed that is."
    for size in WRITERS:
        r = child('write', size)
        millions = count_params(config(size))['total'] / 1e6
        print(f"{size} ({millions:.0f}M): {r['rate']:.0f} tokens/s for one text")
        key = 'gpu_write_' + size.replace('-', '_').replace('.', '_')
        if card: print(f"{key}: ratio {r['rate'] * r['bytes'] / card.bandwidth:.2f} goal 0.5", flush=True)


# ---- a kill ----------------------------------------------------------------------------------------------------

class Kill(Callback):
    "Kills the process at a step, once, if a file says so."
    order = 90
    def __init__(self, file): self.file = file
    def after_batch(self):
        if self.training and self.train_iter == KILLED and self.file.exists():
            self.file.unlink()
            os.kill(os.getpid(), signal.SIGKILL)


def run_to_the_end(folder):
    """Train the first size for two epochs; return a fingerprint of its weights.

    Some backward passes add in an order that changes from run to run, so two whole runs are compared as well.
    """
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cuda.enable_cudnn_sdp(False)
    checkpoint = Checkpoint(Path(folder)/'checkpoints', every=5)
    learn = learner(next(iter(SIZES)), True, checkpoint, Kill(Path(folder)/'kill'), compile=False)
    with learn.no_bar(), learn.no_logging(): learn.fit(2)
    sha = hashlib.sha256()
    for p in learn.model.parameters(): sha.update(p.detach().float().cpu().numpy().tobytes())
    return dict(sha=sha.hexdigest()[:16], resumed=learn.checkpoint.resumed)


def resume_lines():
    "Print whether two whole runs agree, and whether a killed and resumed one agrees with them."
    with tempfile.TemporaryDirectory() as folder:
        folders = [Path(folder)/name for name in ('first', 'second', 'killed')]
        for f in folders: f.mkdir()
        (folders[2]/'kill').touch()
        first, second = child('run', folders[0]), child('run', folders[1])
        child('run', folders[2], may_die=True)
        killed = child('run', folders[2])
    print('two whole runs:', verdict(first, second))
    print(f"killed at step {KILLED}, resumed from step {killed['resumed']}:", verdict(first, killed))


def verdict(a, b):
    same = 'equal' if a['sha'] == b['sha'] else 'DIFFERENT'
    return f"the weights are {same} ({a['sha']}, {b['sha']})"


# ---- processes -------------------------------------------------------------------------------------------------

def child(what, *args, may_die=False):
    "Run one arm in a process of its own; return what it found, or None if it was killed."
    command = [sys.executable, __file__, '--arm', what, *map(str, args)]
    if SMALL: command.append('--small')
    env = {**os.environ, 'CUBLAS_WORKSPACE_CONFIG': ':4096:8'}  # deterministic products on a GPU need it
    r = subprocess.run(command, capture_output=True, text=True, env=env)
    if r.returncode and may_die: return None
    if r.returncode: sys.exit(r.stderr[-3000:])
    return json.loads(r.stdout.splitlines()[-1])


def arm(what, first):
    "Return what one process finds."
    if what == 'write': return written(first)
    if what == 'run': return run_to_the_end(first)
    return trained(what, first)


def main(rounds):
    facts = machine()
    card = find_device(facts['device']) if ON_GPU else None
    print(f"{facts['device']}, torch {facts['versions']['torch']}, seed {SEED}", flush=True)
    train_table(card, rounds)
    writing_table(card)
    resume_lines()


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--arm', nargs=2)
    parser.add_argument('--rounds', type=int, default=1 if SMALL else 2, help='how often the arms take turns')
    parser.add_argument('--small', action='store_true', help='little models, on whatever is here')
    args = parser.parse_args()
    if args.arm: print(json.dumps(arm(*args.arm)))
    elif not ON_GPU and not SMALL: print('gpu: no CUDA device here; --small tries the script itself')
    else: main(args.rounds)
