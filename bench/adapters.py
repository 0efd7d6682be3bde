"""LoRA against full tuning and against PEFT under TRL: same model, batches and optimiser, in turns.

Each side runs in a process of its own, so that its peak memory is its own. Needs `peft` and `trl`:
pip install '.[bench]'
"""
import statistics, sys
import torch
from _sides import (
    Clock, fit, learner_ticks, measure, median_ratio, one_round, quiet_transformers, their_llama, their_tokenizer,
    train, trainer_ticks, trl_arguments
)

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


def ours(clock, width, adapted):
    from fastai.data.core import DataLoaders
    from llmbook.core import set_seed
    from llmbook.model.config import ModelConfig
    from llmbook.model.transformer import Transformer
    from llmbook.pretrain.run import lm_learner
    from llmbook.tune.adapters import add_adapters
    set_seed(0)
    model = Transformer(ModelConfig(**SHAPES[width]))
    if adapted: add_adapters(model, r=RANK)
    batches = [(part[:, :-1], part[:, 1:]) for part in rows().split(BS)]
    learn = lm_learner(DataLoaders(batches, []), model, muon=False, precision='fp32', cbs=learner_ticks(clock.tick))
    return fit(learn)


def theirs(clock, width):
    quiet_transformers()
    import peft, trl
    from datasets import Dataset
    args = trl_arguments(per_device_train_batch_size=BS, max_steps=STEPS, learning_rate=3e-3, max_length=T)
    data = Dataset.from_list([dict(input_ids=row.tolist()) for row in rows()[:, :T]])
    lora = peft.LoraConfig(r=RANK, lora_alpha=32, target_modules='all-linear', task_type='CAUSAL_LM')
    trainer = trl.SFTTrainer(their_llama(SHAPES[width]), args, train_dataset=data, processing_class=their_tokenizer(),
                             peft_config=lora, callbacks=[trainer_ticks(clock.tick)])
    return train(trainer)


SIDES = dict(full=lambda clock, width: ours(clock, width, False), lora=lambda clock, width: ours(clock, width, True),
             peft=theirs)


def print_side(side, rounds):
    rate = statistics.median(r[side]['rate'] for r in rounds)
    memory = max(r[side]['step'] for r in rounds) / 1e6
    print(f'  {side}: {rate:,.0f} tokens/s, training takes {memory:,.0f} MB')


def compare(width):
    rounds = [one_round(__file__, SIDES, str(width)) for _ in range(ROUNDS)]
    print(f'\n{width} wide, rank {RANK}, {BS} rows of {T}')
    for side in SIDES: print_side(side, rounds)
    full = median_ratio(rounds, 'rate', 'lora', 'full')
    peft = median_ratio(rounds, 'rate', 'lora', 'peft')
    memory = median_ratio(rounds, 'step', 'peft', 'lora')
    print(f'adapters_full_{width}: ratio {full:.2f} goal {GOALS[width]}')
    print(f'adapters_peft_{width}: ratio {peft:.2f} goal 1.5')
    print(f'adapters_memory_{width}: ratio {memory:.2f} goal 1.0')


if __name__ == '__main__':
    if len(sys.argv) > 2:
        side, width = sys.argv[1:]
        measure(SIDES[side], Clock(BS * T, WARM), int(width))
    else:
        for width in SHAPES: compare(width)
