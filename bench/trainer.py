"""The Learner against `transformers` `Trainer`: same architecture, weights, batches, optimiser, precision, in turns.

Each side runs in a process of its own, so that its peak memory is its own. Needs `accelerate`, as `Trainer` does:
pip install '.[bench]'
"""
import statistics, sys
import torch
from _sides import (
    Clock, fit, learner_ticks, measure, median_ratio, one_round, quiet_transformers, train, trainer_arguments,
    trainer_ticks
)

STEPS, WARM, ROUNDS = 24, 4, 3
BS, T = 8, 256
SHAPE = dict(vocab_size=4096, n_layer=6, d_model=384, n_head=6, n_kv_head=2, context=T)


def batches():
    g = torch.Generator().manual_seed(0)
    return [torch.randint(4096, (BS, T + 1), generator=g) for _ in range(STEPS)]


def ours(clock):
    from fastai.data.core import DataLoaders
    from llmbook.model.config import ModelConfig
    from llmbook.pretrain.run import lm_learner
    dls = DataLoaders([(w[:, :-1], w[:, 1:]) for w in batches()], [])
    learn = lm_learner(dls, ModelConfig(**SHAPE), muon=False, precision='fp32', cbs=learner_ticks(clock.tick))
    return fit(learn)


def theirs(clock):
    from llmbook.model.config import ModelConfig
    from llmbook.model.hf_config import hf_config
    tf = quiet_transformers()
    model = tf.Qwen3ForCausalLM(tf.Qwen3Config(**hf_config(ModelConfig(**SHAPE)))).float()
    args = trainer_arguments(tf.TrainingArguments, per_device_train_batch_size=BS, max_steps=STEPS, weight_decay=.1,
                             learning_rate=3e-3)
    rows = [dict(input_ids=r[:-1], labels=r[:-1]) for w in batches() for r in w] # shifted inside the model
    return train(tf.Trainer(model, args, train_dataset=rows, callbacks=[trainer_ticks(clock.tick)]))


SIDES = dict(ours=ours, theirs=theirs)


def print_side(name, runs):
    "Print the median speed and the largest memory of a side's runs."
    rate = statistics.median(r['rate'] for r in runs)
    memory = max(r['peak'] for r in runs) / 1e6
    training = max(r['step'] for r in runs) / 1e6
    print(f'{name}: {rate:,.0f} tokens/s, peak memory {memory:,.0f} MB, of which training {training:,.0f} MB')


def compare():
    rounds = [one_round(__file__, SIDES) for _ in range(ROUNDS)]
    print_side('Learner', [r['ours'] for r in rounds])
    print_side('Trainer', [r['theirs'] for r in rounds])
    memory = median_ratio(rounds, 'step', 'theirs', 'ours')
    rate = median_ratio(rounds, 'rate', 'ours', 'theirs')
    print(f'trainer_memory: ratio {memory:.2f} goal 1.0')
    print(f'trainer: ratio {rate:.2f} goal 1.3')


if __name__ == '__main__':
    if len(sys.argv) > 1: measure(SIDES[sys.argv[1]], Clock(BS * T, WARM))
    else: compare()
