"""Tuning on chats of mixed lengths against TRL: padded as by default, and grouped by length.

Model, rows and optimiser are the same. Each side runs in a process of its own, so that its peak memory
is its own. Needs `trl` (pip install '.[bench]') and
raschka_instruction in the folder LLMBOOK_DATA; without it the lengths of chats are drawn.
"""
import json, os, statistics, sys, time
from pathlib import Path
import numpy as np
from _sides import (
    fit, measure, median_ratio, one_round, quiet_transformers, their_llama, their_tokenizer, train, trainer_ticks,
    trl_arguments
)

TOKENS, STEPS, WARM, ROUNDS = 2048, 14, 4, 3
SHAPE = dict(vocab_size=4096, n_layer=6, d_model=384, n_head=6, n_kv_head=6, context=512, family='llama')
GOALS = dict(padded=2.5, grouped=1.3)


def lengths():
    "Return the tokens of each chat's question and answer."
    file = Path(os.environ.get('LLMBOOK_DATA', '../shared/data'))/'raschka_instruction/instruction-data.json'
    if not file.exists(): return drawn_lengths()
    pairs = []
    for record in json.loads(file.read_text()):
        question = record['instruction'] + record['input']
        asked = len(question) // 3 + 4
        answered = len(record['output']) // 3 + 2
        pairs.append((asked, answered))
    return pairs


def drawn_lengths():
    "Draw the tokens of a thousand questions and answers from a log-normal distribution."
    r = np.random.default_rng(0)
    logs = r.normal((3.5, 2.5), .6, (1000, 2))
    return np.exp(logs).astype(int).tolist()


def chats():
    "Return (ids, whether each is trained on) of each chat."
    r = np.random.default_rng(0)
    rows = []
    for asked, answered in lengths():
        ids = r.integers(4, SHAPE['vocab_size'], asked + answered)
        rows.append((ids, np.arange(asked + answered) >= asked))
    return rows


class TokenClock:
    "The time of each step and the tokens in it, padding not counted."
    def __init__(self): self.at, self.tokens = [], []

    def tick(self, tokens):
        self.at.append(time.perf_counter())
        self.tokens.append(tokens)

    def rate(self): return sum(self.tokens[WARM + 1:]) / (self.at[-1] - self.at[WARM])


def ours(clock):
    from fastai.callback.core import Callback
    from llmbook.core import set_seed
    from llmbook.model.config import ModelConfig
    from llmbook.model.transformer import Transformer
    from llmbook.pretrain.run import lm_learner
    from llmbook.tune.chat import ChatRow
    from llmbook.tune.pack import AnswerLoss, chat_dls
    class Tick(Callback):
        order = 90
        run_valid = False
        def after_batch(self): clock.tick(int((self.x[1] >= 0).sum()))
    rows = []
    for ids, trained in chats():
        of_user = np.zeros(len(ids), np.uint8)
        rows.append(ChatRow(ids.astype(np.int32), of_user, trained.astype(np.float32)))
    splits = dict(train=rows, valid=rows[:8])
    dls = chat_dls(splits, None, TOKENS, SHAPE['context'], steps=STEPS, device='cpu')
    set_seed(0)
    model = Transformer(ModelConfig(**SHAPE))
    learn = lm_learner(dls, model, muon=False, precision='fp32', lr=1e-4, wd=0., cbs=Tick())
    learn.loss_func = AnswerLoss(model.head, 512)
    return fit(learn)


def theirs(clock, grouped):
    quiet_transformers()
    import trl
    from datasets import Dataset
    seen = []
    class Counted(trl.SFTTrainer):
        def training_step(self, model, inputs, *args, **kwargs):
            seen.append(int(inputs['attention_mask'].sum()))
            return super().training_step(model, inputs, *args, **kwargs)
    data = chats()
    mean_length = np.mean([len(ids) for ids, _ in data])
    options = dict(train_sampling_strategy='group_by_length') if grouped else {}
    args = trl_arguments(per_device_train_batch_size=round(TOKENS / mean_length), max_steps=STEPS, learning_rate=1e-4,
                         max_length=SHAPE['context'], completion_only_loss=True, **options)
    table = Dataset.from_list([dict(input_ids=ids.tolist(), completion_mask=trained.astype(int).tolist())
                               for ids, trained in data])
    ticks = trainer_ticks(lambda: clock.tick(seen[-1]))
    trainer = Counted(their_llama(SHAPE), args, train_dataset=table, processing_class=their_tokenizer(),
                      callbacks=[ticks])
    return train(trainer)


SIDES = dict(ours=ours, padded=lambda clock: theirs(clock, False), grouped=lambda clock: theirs(clock, True))


def print_side(side, rounds):
    rate = statistics.median(r[side]['rate'] for r in rounds)
    memory = max(r[side]['step'] for r in rounds) / 1e6
    print(f'{side}: {rate:,.0f} tokens/s without padding, training takes {memory:,.0f} MB')


def compare():
    rounds = [one_round(__file__, SIDES) for _ in range(ROUNDS)]
    for side in SIDES: print_side(side, rounds)
    for side, goal in GOALS.items():
        ratio = median_ratio(rounds, 'rate', 'ours', side)
        print(f'tune_{side}: ratio {ratio:.2f} goal {goal}')
    memory = median_ratio(rounds, 'step', 'padded', 'ours')
    print(f'tune_memory: ratio {memory:.2f} goal 1.0')


if __name__ == '__main__':
    if len(sys.argv) > 1: measure(SIDES[sys.argv[1]], TokenClock())
    else: compare()
