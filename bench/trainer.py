"""The Learner against `transformers` `Trainer`: same architecture, weights, batches, optimiser, precision, in turns.

Each side runs in a process of its own, so that its peak memory is its own. Needs `accelerate`, as `Trainer` does:
pip install '.[bench]'
"""
import json, resource, statistics, subprocess, sys, tempfile, time
import torch

STEPS, WARM, ROUNDS = 24, 4, 3
BS, T = 8, 256
SHAPE = dict(vocab_size=4096, n_layer=6, d_model=384, n_head=6, n_kv_head=2, context=T)


def batches():
    g = torch.Generator().manual_seed(0)
    return [torch.randint(4096, (BS, T + 1), generator=g) for _ in range(STEPS)]


class Clock:
    "The time of each step, from the end of one to the end of the next."
    def __init__(self): self.at = []
    def tick(self): self.at.append(time.perf_counter())

    def rate(self):
        after_warm_up = self.at[WARM:]
        seconds = [b - a for a, b in zip(after_warm_up, after_warm_up[1:])]
        return BS * T / statistics.median(seconds)


def ours(clock):
    from fastai.callback.core import Callback
    from fastai.data.core import DataLoaders
    from llmbook.model.config import ModelConfig
    from llmbook.pretrain.run import lm_learner
    class Tick(Callback):
        order = 90
        def after_batch(self): clock.tick()
    dls = DataLoaders([(w[:, :-1], w[:, 1:]) for w in batches()], [])
    learn = lm_learner(dls, ModelConfig(**SHAPE), muon=False, precision='fp32', cbs=Tick())
    before = peak()
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    return before


def theirs(clock):
    from llmbook.core import import_transformers
    from llmbook.model.config import ModelConfig
    from llmbook.model.hf_config import hf_config
    tf = import_transformers()
    tf.utils.logging.set_verbosity_error()
    class Tick(tf.TrainerCallback):
        def on_step_end(self, *args, **kwargs): clock.tick()
    model = tf.Qwen3ForCausalLM(tf.Qwen3Config(**hf_config(ModelConfig(**SHAPE)))).float()
    args = tf.TrainingArguments(
        tempfile.mkdtemp(), per_device_train_batch_size=BS, max_steps=STEPS, optim='adamw_torch_fused',
        max_grad_norm=1., weight_decay=.1, learning_rate=3e-3, use_cpu=True,
        save_strategy='no', logging_steps=10, disable_tqdm=True, report_to=[])
    rows = [dict(input_ids=r[:-1], labels=r[:-1]) for w in batches() for r in w] # shifted inside the model
    trainer = tf.Trainer(model, args, train_dataset=rows, callbacks=[Tick()])
    trainer.remove_callback(tf.trainer_callback.PrinterCallback)
    before = peak()
    trainer.train()
    return before


def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(side):
    "Train one side in this process and print what it took."
    clock = Clock()
    before = dict(ours=ours, theirs=theirs)[side](clock)
    print(json.dumps(dict(rate=clock.rate(), peak=peak(), step=peak() - before)))


def child(side):
    "Measure one side in a process of its own."
    r = subprocess.run([sys.executable, __file__, side], capture_output=True, text=True)
    if r.returncode: sys.exit(r.stderr[-2000:])
    return json.loads(r.stdout.splitlines()[-1])


def show(name, runs):
    "Print the median speed and the largest memory of a side's runs."
    rate = statistics.median(r['rate'] for r in runs)
    memory = max(r['peak'] for r in runs) / 1e6
    training = max(r['step'] for r in runs) / 1e6
    print(f'{name}: {rate:,.0f} tokens/s, peak memory {memory:,.0f} MB, of which training {training:,.0f} MB')


def compare():
    rounds = [(child('ours'), child('theirs')) for _ in range(ROUNDS)]
    of_learner, of_trainer = zip(*rounds)
    show('Learner', of_learner)
    show('Trainer', of_trainer)
    memory = [theirs['step'] / ours['step'] for ours, theirs in rounds]
    rate = [ours['rate'] / theirs['rate'] for ours, theirs in rounds]
    memory_ratio, rate_ratio = statistics.median(memory), statistics.median(rate)
    print(f'trainer_memory: ratio {memory_ratio:.2f} goal 1.0')
    print(f'trainer: ratio {rate_ratio:.2f} goal 1.3')


if __name__ == '__main__': measure(sys.argv[1]) if len(sys.argv) > 1 else compare()
