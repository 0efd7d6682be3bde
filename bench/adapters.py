"""LoRA against full tuning and against PEFT under TRL: same model, batches and optimiser, in turns.

Each side runs in a process of its own, so that its peak memory is its own. Needs `peft` and `trl`:
pip install '.[bench]'
"""
import json, resource, statistics, subprocess, sys, tempfile, time
import torch

STEPS, WARM, ROUNDS = 14, 4, 3
BS, T, RANK = 8, 128, 16
SHAPES = {
    256: dict(vocab_size=4096, n_layer=6, d_model=256, n_head=4, n_kv_head=4, context=T, family='llama'),
    576: dict(vocab_size=4096, n_layer=6, d_model=576, n_head=9, n_kv_head=3, context=T, family='llama'),
}
GOALS = {256: 1.2, 576: 1.3}


def rows():
    g = torch.Generator().manual_seed(0)
    return torch.randint(4096, (STEPS * BS, T + 1), generator=g)


class Clock:
    "The time of each step, from the end of one to the end of the next."
    def __init__(self): self.at = []
    def tick(self): self.at.append(time.perf_counter())

    def rate(self):
        after_warm_up = self.at[WARM:]
        seconds = [b - a for a, b in zip(after_warm_up, after_warm_up[1:])]
        return BS * T / statistics.median(seconds)


def ours(clock, width, adapted):
    from fastai.callback.core import Callback
    from fastai.data.core import DataLoaders
    from llmbook.core import set_seed
    from llmbook.model.config import ModelConfig
    from llmbook.model.transformer import Transformer
    from llmbook.pretrain.run import lm_learner
    from llmbook.tune.adapters import add_adapters
    class Tick(Callback):
        order = 90
        def after_batch(self): clock.tick()
    set_seed(0)
    model = Transformer(ModelConfig(**SHAPES[width]))
    if adapted: add_adapters(model, r=RANK)
    batches = [(part[:, :-1], part[:, 1:]) for part in rows().split(BS)]
    learn = lm_learner(DataLoaders(batches, []), model, muon=False, precision='fp32', cbs=Tick())
    before = peak()
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    return before


def theirs(clock, width):
    from llmbook.core import import_transformers
    tf = import_transformers()
    import peft, trl
    from datasets import Dataset
    from llmbook.model.config import ModelConfig
    from llmbook.model.hf_config import hf_config
    from llmbook.tokens.tokenizer import train_tokenizer
    tf.utils.logging.set_verbosity_error()
    class Tick(tf.TrainerCallback):
        def on_step_end(self, *args, **kwargs): clock.tick()
    config = hf_config(ModelConfig(**SHAPES[width]))
    model = tf.LlamaForCausalLM(tf.LlamaConfig(**config)).float()
    tok = tf.PreTrainedTokenizerFast(tokenizer_object=train_tokenizer(['a text'], 300), eos_token='<|endoftext|>',
                                     pad_token='<|pad|>')
    args = trl.SFTConfig(
        tempfile.mkdtemp(), per_device_train_batch_size=BS, max_steps=STEPS, optim='adamw_torch_fused', bf16=False,
        gradient_checkpointing=False, max_grad_norm=1., learning_rate=3e-3, use_cpu=True, max_length=T,
        save_strategy='no', logging_steps=10, disable_tqdm=True, report_to=[])
    data = Dataset.from_list([dict(input_ids=row.tolist()) for row in rows()[:, :T]])
    lora = peft.LoraConfig(r=RANK, lora_alpha=32, target_modules='all-linear', task_type='CAUSAL_LM')
    trainer = trl.SFTTrainer(model, args, train_dataset=data, processing_class=tok, peft_config=lora,
                             callbacks=[Tick()])
    trainer.remove_callback(tf.trainer_callback.PrinterCallback)
    before = peak()
    trainer.train()
    return before


SIDES = dict(full=lambda clock, width: ours(clock, width, False), lora=lambda clock, width: ours(clock, width, True),
             peft=theirs)


def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(side, width):
    "Train one side in this process and print what it took."
    clock = Clock()
    before = SIDES[side](clock, width)
    print(json.dumps(dict(rate=clock.rate(), step=peak() - before)))


def child(side, width):
    "Measure one side in a process of its own."
    r = subprocess.run([sys.executable, __file__, side, str(width)], capture_output=True, text=True)
    if r.returncode: sys.exit(r.stderr[-2000:])
    return json.loads(r.stdout.splitlines()[-1])


def one_round(width):
    "Measure each side once, one after the other."
    return {side: child(side, width) for side in SIDES}


def median_ratio(rounds, figure, above, below):
    "Return the median over the rounds of a figure of one side by that of another."
    ratios = [r[above][figure] / r[below][figure] for r in rounds]
    return statistics.median(ratios)


def print_side(side, rounds):
    rate = statistics.median(r[side]['rate'] for r in rounds)
    memory = max(r[side]['step'] for r in rounds) / 1e6
    print(f'  {side}: {rate:,.0f} tokens/s, training takes {memory:,.0f} MB')


def compare(width):
    rounds = [one_round(width) for _ in range(ROUNDS)]
    print(f'\n{width} wide, rank {RANK}, {BS} rows of {T}')
    for side in SIDES: print_side(side, rounds)
    full = median_ratio(rounds, 'rate', 'lora', 'full')
    peft = median_ratio(rounds, 'rate', 'lora', 'peft')
    memory = median_ratio(rounds, 'step', 'peft', 'lora')
    print(f'adapters_full_{width}: ratio {full:.2f} goal {GOALS[width]}')
    print(f'adapters_peft_{width}: ratio {peft:.2f} goal 1.5')
    print(f'adapters_memory_{width}: ratio {memory:.2f} goal 1.0')


if __name__ == '__main__':
    if len(sys.argv) > 2: measure(sys.argv[1], int(sys.argv[2]))
    else:
        for width in SHAPES: compare(width)
