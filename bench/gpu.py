"""On one GPU: tokens a second and MFU against `transformers` `Trainer`, how near to its memory's speed one text is written, and a run that is killed.

Both sides train GPT-2 (124M, and the 350M size) in bf16 with `torch.compile` and fused AdamW on the same batches; a third arm has Muon, the default here. Each arm runs in a process of its
own, so that its peak memory is its own, and they take turns. MFU is that of the data sheet, with the operations of the model alone. `--small` tries the script with little models on whatever is here: its figures say nothing.
Needs `accelerate`, as `Trainer` does: pip install '.[bench]'
"""
import hashlib, json, os, signal, statistics, subprocess, sys, tempfile, time
from pathlib import Path
import numpy as np, torch
from llmbook.core import import_transformers, machine, set_seed
from llmbook.tokens.loaders import TokenLoader
from llmbook.tokens.shards import TokenView
from llmbook.plan.flops import count_params, flops_per_token
from llmbook.model.config import get_config
from llmbook.plan.devices import find_device

SMALL, ON = '--small' in sys.argv, 'cuda' if torch.cuda.is_available() else 'cpu'
SIZES, WRITERS = {'gpt2': (64, 1024), 'gpt2-medium': (32, 1024)}, ('gpt2', 'qwen3-0.6b', 'qwen3-1.7b')   # rows and tokens of a batch
STEPS, WARM, ROUNDS, NEW, KILLED, SEED = 30, 10, 2, 256, 47, 42
if SMALL: SIZES, WRITERS, STEPS, WARM, ROUNDS, NEW, KILLED = {'gpt2': (2, 32)}, ('gpt2',), 20, 5, 1, 8, 33


def config(size): return get_config(size, **dict(n_layer=2, d_model=64, n_head=2, n_kv_head=2, d_ff=256, vocab_size=512, context=64) if SMALL else {})


def loaders(size):
    "Training and validation batches of tokens drawn at random."
    rows, T = SIZES[size]
    ids = np.random.default_rng(SEED).integers(0, config(size).vocab_size, rows * T * STEPS + 1).astype(np.uint16)
    return [TokenLoader(TokenView([ids]), rows, T, steps, SEED, shuffle, device=torch.device(ON)) for steps, shuffle in ((STEPS, True), (1, False))]


def now():
    if ON == 'cuda': torch.cuda.synchronize()
    return time.perf_counter()


def learner(size, muon, *cbs, compile=True):
    from fastai.data.core import DataLoaders
    from llmbook.pretrain.run import lm_learner
    dls = DataLoaders(*loaders(size), device=torch.device(ON))
    return lm_learner(dls, config(size), lr=3e-4, muon=muon, precision='bf16', compile=compile, seed=SEED, cbs=list(cbs))


def ours(size, at, muon=False):
    from fastai.callback.core import Callback
    class Tick(Callback):
        order = 90
        def after_batch(self): at.append(now()) if self.train_iter % 5 == 0 else None
    learn = learner(size, muon, Tick())
    with learn.no_bar(), learn.no_logging(): learn.fit(1)


def theirs(size, at):
    from llmbook.model.hf import hf_config
    tf = import_transformers()
    tf.utils.logging.set_verbosity_error()
    class Tick(tf.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs): at.append(now()) if state.global_step % 5 == 0 else None
    model = tf.GPT2LMHeadModel(tf.GPT2Config(**hf_config(config(size))))
    args = tf.TrainingArguments(tempfile.mkdtemp(), per_device_train_batch_size=SIZES[size][0], max_steps=STEPS, optim='adamw_torch_fused', bf16=True, torch_compile=True, max_grad_norm=1.,
                                report_to=[], save_strategy='no', logging_steps=10, disable_tqdm=True, use_cpu=ON == 'cpu', weight_decay=.1, learning_rate=3e-4, dataloader_pin_memory=ON == 'cuda')
    rows = [dict(input_ids=r, labels=r) for dl in [loaders(size)[0]] for i in range(STEPS) for r in dl.batch(i)[0].cpu()]   # shifted inside the model
    trainer = tf.Trainer(model, args, train_dataset=rows, callbacks=[Tick()])
    trainer.remove_callback(tf.trainer_callback.PrinterCallback)
    trainer.train()


def trained(arm, size):
    "Tokens a second after the warm-up, and the most memory."
    at = []
    dict(ours=ours, muon=lambda s, a: ours(s, a, True), theirs=theirs)[arm](size, at)
    rows, T = SIZES[size]
    rate = 5 * rows * T / statistics.median(b - a for a, b in zip(at[WARM // 5:], at[WARM // 5 + 1:])) if len(at) > WARM // 5 + 1 else 0.
    return dict(rate=rate, memory=torch.cuda.max_memory_allocated() if ON == 'cuda' else 0)


def written(_, size):
    "Tokens a second of one text, greedy, bfloat16."
    from llmbook.generate.text import generate_ids
    from llmbook.model.transformer import Transformer
    set_seed(SEED)
    with torch.device(ON): model = Transformer(config(size)).to(torch.bfloat16).eval()
    def go(n): t = now(); generate_ids(model, [[5] * 16], n, temperature=0, stop=None); return now() - t
    go(NEW)
    spans = [(go(NEW), go(NEW // 2)) for _ in range(3)]                               # the difference is free of the start
    return dict(rate=(NEW - NEW // 2) / statistics.median(a - b for a, b in spans), bytes=2 * sum(p.numel() for p in {id(p): p for p in model.parameters()}.values()))


def run_to_the_end(folder, _):
    "The first size for two epochs, killed once if a file says so; a fingerprint of its weights."
    from fastai.callback.core import Callback
    from llmbook.checkpoint.checkpoint import Checkpoint
    class Kill(Callback):
        order = 90
        def after_batch(self):
            if self.training and self.train_iter == KILLED and (f := Path(folder)/'kill').exists(): f.unlink(); os.kill(os.getpid(), signal.SIGKILL)
    learn = learner(next(iter(SIZES)), True, Checkpoint(Path(folder)/'checkpoints', every=5), Kill(), compile=False)
    with learn.no_bar(), learn.no_logging(): learn.fit(2)
    h = hashlib.sha256()
    for p in learn.model.parameters(): h.update(p.detach().float().cpu().numpy().tobytes())
    return dict(sha=h.hexdigest()[:16], resumed=learn.checkpoint.resumed)


def child(what, *args, may_die=False):
    r = subprocess.run([sys.executable, __file__, 'arm', what, *map(str, args), *['--small'] * SMALL], capture_output=True, text=True)
    if r.returncode and not may_die: sys.exit(r.stderr[-3000:])
    return None if r.returncode else json.loads(r.stdout.splitlines()[-1])


def train_table(card):
    for size in SIZES:
        c, peak = config(size), card and card.peak('bfloat16')
        res = [{arm: child(arm, size) for arm in ('ours', 'theirs', 'muon')} for _ in range(ROUNDS)]
        for arm in res[0]:
            rate, most = statistics.median(r[arm]['rate'] for r in res), max(r[arm]['memory'] for r in res)
            mfu = f"{rate * flops_per_token(c, SIZES[size][1]) / peak:.1%}" if peak else 'unknown'
            print(f"{size}, {dict(ours='Learner', theirs='Trainer', muon='Learner with Muon')[arm]}: {rate:,.0f} tokens/s, MFU {mfu}, {most / 1e9:.1f} GB", flush=True)
        if peak: print(f"gpu_{size.replace('-', '_')}_mfu: ratio {statistics.median(r['ours']['rate'] for r in res) * flops_per_token(c, SIZES[size][1]) / peak:.2f} goal 0.5")
        if res[0]['theirs']['rate']: print(f"gpu_{size.replace('-', '_')}: ratio {statistics.median(r['ours']['rate'] / r['theirs']['rate'] for r in res):.2f} goal 1.2", flush=True)


def writing_table(card):
    for size in WRITERS:
        r = child('write', size)
        print(f"{size} ({count_params(config(size))['total'] / 1e6:.0f}M): {r['rate']:.0f} tokens/s for one text")
        if card: print(f"gpu_write_{size.replace('-', '_').replace('.', '_')}: ratio {r['rate'] * r['bytes'] / card.bandwidth:.2f} goal 0.5", flush=True)


def resume_line():
    with tempfile.TemporaryDirectory() as a, tempfile.TemporaryDirectory() as b:
        (Path(b)/'kill').touch()
        whole, _, again = child('run', a, ''), child('run', b, '', may_die=True), child('run', b, '')
        print(f"killed at step {KILLED}, gone on from step {again['resumed']}: the weights are {'equal' if whole['sha'] == again['sha'] else 'DIFFERENT'} ({whole['sha']}, {again['sha']})")


if __name__ == '__main__':
    if 'arm' in sys.argv:
        _, _, what, first, *_ = sys.argv
        print(json.dumps(written(what, first) if what == 'write' else run_to_the_end(first, what) if what == 'run' else trained(what, first)))
    elif ON == 'cpu' and not SMALL: print('gpu: no CUDA device here; --small tries the script itself')
    else:
        m, card = machine(), find_device(machine()['device']) if ON == 'cuda' else None
        print(f"{m['device']}, torch {m['versions']['torch']}, seed {SEED}", flush=True)
        train_table(card); writing_table(card); resume_line()
