"""A DPO step with a cached reference and shared prompts, against the naive form and against TRL.

The naive form computes each answer with its own prompt, for the model and for a live reference: four passes forward and
two back, each over answers padded to the longest of the batch. Model, pairs, optimiser and the head on targets alone
are the same. TRL computes both answers in one padded batch, with a live reference, as it does by default. Each side runs in
a process of its own. Needs `trl` (pip install '.[bench]') and raschka_instruction in the folder LLMBOOK_DATA; without
it the lengths of pairs are drawn.
"""
import copy, json, os, statistics, sys
from pathlib import Path
import numpy as np
from _sides import (
    Clock, fit, learner_ticks, measure, median_ratio, one_round, peak, quiet_transformers, their_llama,
    their_tokenizer, train, trainer_arguments, trainer_ticks
)

PAIRS, STEPS, WARM, ROUNDS = 8, 10, 3, 3
SHAPE = dict(vocab_size=4096, n_layer=6, d_model=384, n_head=6, n_kv_head=6, context=512, family='llama')
GOALS = dict(naive=1.5, trl=1.5)
MARKS = 8  # tokens of a chat template around a question


def tokens_of(text): return len(text) // 3 + 2


def lengths():
    "Return the tokens of each pair's question, better and worse answer."
    folder = Path(os.environ.get('LLMBOOK_DATA', '../shared/data'))/'raschka_instruction'
    file = folder/'instruction-data-with-preference.json'
    if not file.exists(): return drawn_lengths()
    found = []
    for record in json.loads(file.read_text()):
        question = tokens_of(record['instruction'] + record['input']) + MARKS
        found.append((question, tokens_of(record['chosen']), tokens_of(record['rejected'])))
    return found


def drawn_lengths():
    "Draw the tokens of a thousand questions and answers from a log-normal distribution."
    logs = np.random.default_rng(0).normal((3.5, 3., 3.), .5, (1000, 3))
    return (np.exp(logs).astype(int) + 2).tolist()


def pairs():
    "Return (question, better answer, worse answer) as ids."
    r = np.random.default_rng(0)
    return [[r.integers(4, SHAPE['vocab_size'], n).astype(np.int32) for n in sizes] for sizes in lengths()]


def rows():
    from llmbook.prefer.preferences import PreferenceRow
    found = []
    for prompt, *answers in pairs():
        found.append(PreferenceRow(prompt, answers, [np.ones(len(ids), bool) for ids in answers]))
    return found


def our_model():
    from llmbook.core import set_seed
    from llmbook.model.config import ModelConfig
    from llmbook.model.transformer import Transformer
    set_seed(0)
    return Transformer(ModelConfig(**SHAPE))


def ours(clock):
    import torch
    from llmbook.prefer.objective import PreferenceLoss
    from llmbook.prefer.shared import preference_dls
    from llmbook.pretrain.run import lm_learner
    found = rows()
    ref = dict(train=torch.zeros(len(found), 2), valid=torch.zeros(2, 2))  # what the cache holds costs nothing
    dls = preference_dls(dict(train=found, valid=found[:2]), None, PAIRS, steps=STEPS, device='cpu', ref=ref)
    model = our_model()
    learn = lm_learner(dls, model, muon=False, precision='fp32', lr=1e-6, wd=0., metrics=[],
                       cbs=learner_ticks(clock.tick))
    learn.loss_func = PreferenceLoss(model.head)
    return fit(learn)


def padded(texts):
    "Return (B, T) ids filled up at their right."
    import torch
    x = torch.zeros(len(texts), max(map(len, texts)), dtype=torch.long)
    for row, ids in zip(x, texts): row[:len(ids)] = torch.from_numpy(ids)
    return x


def naive_logps(model, batch, answer):
    "Return the log-probability of one answer of each pair, with its own prompt before it."
    import torch
    from llmbook.prefer.shared import target_logps
    texts = [np.concatenate([pair[0], pair[answer]]) for pair in batch]
    ids = padded(texts)
    x, y = ids[:, :-1], ids[:, 1:]
    h = model(x)
    counts = torch.zeros(x.shape, dtype=torch.bool)
    for row, pair in zip(counts, batch):
        first = len(pair[0]) - 1
        row[first:first + len(pair[answer])] = True
    logps = target_logps(model.head, h[counts], y[counts])
    rows, _ = counts.nonzero(as_tuple=True)
    return torch.zeros(len(batch)).index_add(0, rows, logps)


def batches(data):
    "Yield the items of each step's batch, in the order that the naive form takes."
    order = np.random.default_rng(1).permutation(len(data))
    for start in range(0, STEPS * PAIRS, PAIRS):
        yield [data[i] for i in order[start:start + PAIRS]]


def naive(clock):
    import torch
    from llmbook.prefer.losses import dpo_loss
    from llmbook.train.learner import keep_heap
    keep_heap()
    data = pairs()
    model, reference = our_model(), our_model()
    opt = torch.optim.AdamW(model.parameters(), lr=1e-6, weight_decay=0., fused=True)
    before = peak()
    for batch in batches(data):
        with torch.no_grad(): ref = [naive_logps(reference, batch, answer) for answer in (1, 2)]
        loss = dpo_loss(naive_logps(model, batch, 1), naive_logps(model, batch, 2), *ref).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.)
        opt.step()
        opt.zero_grad()
        clock.tick()
    return before


def as_texts(prompt, chosen, rejected):
    "Return texts of as many tokens: TRL reads no ids, its tokenizer here takes digits one by one and adds an end."
    def digits(ids, n): return ''.join(str(i % 10) for i in ids[:n])
    return dict(prompt=digits(prompt, None), chosen=digits(chosen, -1), rejected=digits(rejected, -1))


def theirs(clock):
    quiet_transformers()
    import trl
    from datasets import Dataset
    table = Dataset.from_list([as_texts(*pair) for pair in pairs()])
    args = trainer_arguments(trl.DPOConfig, bf16=False, gradient_checkpointing=False, max_steps=STEPS,
                             per_device_train_batch_size=PAIRS, learning_rate=1e-6, max_length=SHAPE['context'])
    model = their_llama(SHAPE)
    trainer = trl.DPOTrainer(model, copy.deepcopy(model), args, train_dataset=table,
                             processing_class=their_tokenizer(), callbacks=[trainer_ticks(clock.tick)])
    return train(trainer)


SIDES = dict(ours=ours, naive=naive, trl=theirs)


def limit():
    "Return what the naive form could gain at most: by the cache, and by what it need not compute twice or pad."
    shared = apart = padding = 0
    for batch in batches(lengths()):
        prompt, chosen, rejected = np.array(batch).T
        with_chosen = prompt + chosen - 1
        with_rejected = prompt + rejected - 1
        shared += (with_chosen + rejected).sum()
        apart += (with_chosen + with_rejected).sum()
        padding += len(batch) * (with_chosen.max() + with_rejected.max())
    cache = 4 / 3  # four passes instead of three: forward counts one, backward two
    return cache, apart / shared, padding / apart


def print_side(side, rounds):
    rate = statistics.median(r[side]['rate'] for r in rounds)
    memory = max(r[side]['step'] for r in rounds) / 1e6
    print(f'{side}: {rate:.1f} pairs/s, training takes {memory:,.0f} MB')


def print_limit():
    cache, sharing, padding = limit()
    every = cache * sharing * padding
    print(f'limits beside the naive form: cache {cache:.2f}, shared prompts {sharing:.2f}, padding {padding:.2f}, '
          f'all {every:.2f}')


def compare():
    rounds = [one_round(__file__, SIDES) for _ in range(ROUNDS)]
    for side in SIDES: print_side(side, rounds)
    print_limit()
    for side, goal in GOALS.items():
        ratio = median_ratio(rounds, 'rate', 'ours', side)
        print(f'preference_{side}: ratio {ratio:.2f} goal {goal}')


if __name__ == '__main__':
    if len(sys.argv) > 1: measure(SIDES[sys.argv[1]], Clock(PAIRS, WARM))
    else: compare()
