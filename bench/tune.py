"""Tuning on chats of mixed lengths against TRL: padded as by default, and grouped by length.

    python bench/tune.py [raschka|multi30k]     tokens per second and memory, in rounds; both data sets by default
    python bench/tune.py --loss [raschka]       validation loss after the same data, over three seeds

Model, rows and optimiser are the same. Each side runs in a process of its own, so that its peak memory is its own.
Needs `trl` (pip install '.[bench]') and the data in the folder LLMBOOK_DATA; without it the lengths of chats are drawn.
"""
import gzip, json, os, statistics, sys, time
from pathlib import Path
import numpy as np
from _sides import (
    fit, measure, median_ratio, one_round, quiet_transformers, their_llama, their_tokenizer, train, trainer_ticks,
    trl_arguments
)

TOKENS, STEPS, WARM, ROUNDS = 2048, 14, 4, 3
SHAPE = dict(vocab_size=4096, n_layer=6, d_model=384, n_head=6, n_kv_head=6, context=512, family='llama')
GOALS = dict(padded=2.5, grouped=1.3)
DATA = ('raschka', 'multi30k')
FOLDER = Path(os.environ.get('LLMBOOK_DATA', '../shared/data'))


# ---- the chats -----------------------------------------------------------------------------------------------------

def texts(data):
    "Return (question, answer) of each chat; none if the data is not here."
    if data == 'multi30k': return translations(FOLDER/'multi30k')
    file = FOLDER/'raschka_instruction/instruction-data.json'
    if not file.exists(): return []
    records = json.loads(file.read_text())
    return [(record['instruction'] + record['input'], record['output']) for record in records]


def translations(folder, most=2000):
    "Return the first sentences in English and in German."
    sides = []
    for language in ('en', 'de'):
        file = folder/f'train.{language}.gz'
        if not file.exists(): return []
        lines = gzip.decompress(file.read_bytes()).decode().splitlines()
        sides.append(lines[:most])
    return list(zip(*sides))


def lengths(data):
    "Return the tokens of each chat's question and answer, at three characters a token."
    pairs = texts(data)
    if not pairs: return drawn_lengths()
    return [(len(question) // 3 + 4, len(answer) // 3 + 2) for question, answer in pairs]


def drawn_lengths():
    "Draw the tokens of a thousand questions and answers from a log-normal distribution."
    r = np.random.default_rng(0)
    logs = r.normal((3.5, 2.5), .6, (1000, 2))
    return np.exp(logs).astype(int).tolist()


def chats(data):
    "Return (ids, whether each is trained on) of each chat; the ids are drawn."
    r = np.random.default_rng(0)
    rows = []
    for asked, answered in lengths(data):
        ids = r.integers(4, SHAPE['vocab_size'], asked + answered)
        rows.append((ids, np.arange(asked + answered) >= asked))
    return rows


def chat_rows(pairs):
    "Return chats as rows of ours."
    from llmbook.tune.chat import ChatRow
    rows = []
    for ids, trained in pairs:
        of_user = np.zeros(len(ids), np.uint8)
        rows.append(ChatRow(ids.astype(np.int32), of_user, trained.astype(np.float32)))
    return rows


def their_batch(pairs): return round(TOKENS / np.mean([len(ids) for ids, _ in pairs]))


def their_table(pairs):
    from datasets import Dataset
    return Dataset.from_list([dict(input_ids=ids.tolist(), completion_mask=trained.astype(int).tolist())
                              for ids, trained in pairs])


def padding(data):
    "Return the positions for each token in random batches, and in our packed rows: their ratio is what padding costs."
    from llmbook.tune.pack import ChatLoader, chat_dls
    pairs = chats(data)
    sizes = np.array([len(ids) for ids, _ in pairs])
    bs = their_batch(pairs)
    shuffled = np.random.default_rng(0).permutation(sizes)
    whole = len(sizes) // bs * bs
    batches = shuffled[:whole].reshape(-1, bs)
    padded = bs * batches.max(1).sum()
    theirs = padded / batches.sum()

    rows = chat_rows(pairs)
    dls = chat_dls(dict(train=rows, valid=rows[:8]), None, TOKENS, SHAPE['context'], device='cpu')
    positions, tokens = 0, 0
    for i in range(len(dls.train)):
        x, docs, *_ = dls.train.batch(i)
        positions += x.numel()
        tokens += int((docs >= 0).sum())
    return theirs, positions / tokens


# ---- speed ---------------------------------------------------------------------------------------------------------

class TokenClock:
    "The time of each step and the tokens in it, padding not counted."
    def __init__(self): self.at, self.tokens = [], []

    def tick(self, tokens):
        self.at.append(time.perf_counter())
        self.tokens.append(tokens)

    def rate(self): return sum(self.tokens[WARM + 1:]) / (self.at[-1] - self.at[WARM])


def ours(clock, data, rates=1):
    from fastai.callback.core import Callback
    from llmbook.core import set_seed
    from llmbook.model.config import ModelConfig
    from llmbook.model.transformer import Transformer
    from llmbook.pretrain.run import lm_learner
    from llmbook.tune.groups import layer_groups
    from llmbook.tune.pack import AnswerLoss, chat_dls
    class Tick(Callback):
        order = 90
        run_valid = False
        def after_batch(self): clock.tick(int((self.x[1] >= 0).sum()))
    rows = chat_rows(chats(data))
    dls = chat_dls(dict(train=rows, valid=rows[:8]), None, TOKENS, SHAPE['context'], steps=STEPS, device='cpu')
    set_seed(0)
    model = Transformer(ModelConfig(**SHAPE))
    options = dict(lr=slice(1e-4 / rates, 1e-4), splitter=layer_groups) if rates > 1 else dict(lr=1e-4)
    learn = lm_learner(dls, model, muon=False, precision='fp32', wd=0., cbs=Tick(), **options)
    learn.loss_func = AnswerLoss(model.head, 512)
    return fit(learn)


def theirs(clock, data, grouped):
    quiet_transformers()
    import trl
    seen = []
    class Counted(trl.SFTTrainer):
        def training_step(self, model, inputs, *args, **kwargs):
            seen.append(int(inputs['attention_mask'].sum()))
            return super().training_step(model, inputs, *args, **kwargs)
    pairs = chats(data)
    options = dict(train_sampling_strategy='group_by_length') if grouped else {}
    args = trl_arguments(per_device_train_batch_size=their_batch(pairs), max_steps=STEPS, learning_rate=1e-4,
                         max_length=SHAPE['context'], completion_only_loss=True, **options)
    ticks = trainer_ticks(lambda: clock.tick(seen[-1]))
    trainer = Counted(their_llama(SHAPE), args, train_dataset=their_table(pairs), processing_class=their_tokenizer(),
                      callbacks=[ticks])
    return train(trainer)


SIDES = dict(
    ours=ours,
    rates=lambda clock, data: ours(clock, data, rates=4),
    padded=lambda clock, data: theirs(clock, data, False),
    grouped=lambda clock, data: theirs(clock, data, True))


def print_side(side, rounds):
    rate = statistics.median(r[side]['rate'] for r in rounds)
    memory = max(r[side]['step'] for r in rounds) / 1e6
    print(f'{side}: {rate:,.0f} tokens/s without padding, training takes {memory:,.0f} MB')


def compare(data):
    rounds = [one_round(__file__, SIDES, data) for _ in range(ROUNDS)]
    in_theirs, in_ours = padding(data)
    print(f'\n{data}: {in_theirs:.2f} positions for each token in their padded batches, {in_ours:.2f} in ours; '
          f'padding alone is worth {in_theirs / in_ours:.2f}')
    for side in SIDES: print_side(side, rounds)
    for side, goal in GOALS.items():
        ratio = median_ratio(rounds, 'rate', 'ours', side)
        print(f'tune_{data}_{side}: ratio {ratio:.2f} goal {goal}')
    print(f"tune_{data}_rates: ratio {median_ratio(rounds, 'rate', 'rates', 'ours'):.2f} goal 0.97")
    print(f"tune_{data}_memory: ratio {median_ratio(rounds, 'step', 'padded', 'ours'):.2f} goal 1.0", flush=True)


# ---- loss ----------------------------------------------------------------------------------------------------------

SEEDS, PASSES, RATE = 3, 4, 1e-3
SMALL = dict(vocab_size=2048, n_layer=4, d_model=128, n_head=4, n_kv_head=4, context=512, family='llama')
T_OF_TWO = 4.303 # Student's t for 95 % and three seeds


def encoded(data):
    "Return the chats as ids of a tokenizer of their own texts, those of training and the last tenth."
    from llmbook.tokens.tokenizer import encode_text, train_tokenizer
    pairs = texts(data)
    if not pairs: sys.exit(f'expected {data} in {FOLDER}, found none: set LLMBOOK_DATA')
    tok = train_tokenizer([text for pair in pairs for text in pair], SMALL['vocab_size'])
    rows = []
    for question, answer in pairs:
        asked, answered = encode_text(tok, [question + '\n', answer])
        ids = np.array([*asked, *answered, 0])
        if len(ids) <= SMALL['context']: rows.append((ids, np.arange(len(ids)) >= len(asked)))
    n = len(rows) * 9 // 10
    return rows[:n], rows[n:]


def first_model(seed):
    from llmbook.core import set_seed
    from llmbook.model.config import ModelConfig
    from llmbook.model.transformer import Transformer
    set_seed(seed)
    return Transformer(ModelConfig(**SMALL))


def validation_loss(model, pairs):
    "Return the mean nats of an answer's token, one chat in a row."
    import torch
    from llmbook.tune.pack import AnswerLoss, ChatLoader
    loss = AnswerLoss(model.head)
    nats = n = 0
    with torch.no_grad():
        for x, y in ChatLoader(chat_rows(pairs), bs=16, packed=False, shuffle=False):
            targets = int((y >= 0).sum())
            nats += float(loss(model.eval()(x), y)) * targets
            n += targets
    return nats / n


def our_loss(rows, held_out, seed):
    from llmbook.pretrain.run import lm_learner
    from llmbook.tune.pack import AnswerLoss, chat_dls
    model = first_model(seed)
    dls = chat_dls(dict(train=chat_rows(rows), valid=chat_rows(held_out)), None, TOKENS, seed=seed, device='cpu')
    learn = lm_learner(dls, model, muon=False, precision='fp32', lr=RATE, wd=0.)
    learn.loss_func = AnswerLoss(model.head, 512)
    with learn.no_bar(), learn.no_logging(): learn.fit(PASSES)
    return validation_loss(model, held_out), learn.train_iter


def their_loss(rows, held_out, seed):
    tf = quiet_transformers()
    import tempfile, trl
    from llmbook.model.hf import load_model, save_pretrained
    folder = tempfile.mkdtemp()
    save_pretrained(first_model(seed), None, folder)
    model = tf.AutoModelForCausalLM.from_pretrained(folder).float()
    from llmbook.train.optim import LMOptim
    args = trl_arguments(per_device_train_batch_size=their_batch(rows), num_train_epochs=PASSES, learning_rate=RATE,
                         lr_scheduler_type='constant', max_length=SMALL['context'], completion_only_loss=True, seed=seed,
                         weight_decay=0., **our_moments())
    trainer = trl.SFTTrainer(model, args, train_dataset=their_table(rows), processing_class=their_tokenizer())
    train(trainer)
    model.save_pretrained(folder)
    return validation_loss(load_model(folder, device='cpu'), held_out), trainer.state.global_step


def our_moments():
    "Return the decays of AdamW's averages as ours takes them, as arguments of a Trainer."
    import torch
    from llmbook.train.optim import LMOptim
    opt = LMOptim([torch.nn.Parameter(torch.zeros(1))], lr=RATE, muon=False)
    group = opt.opt.param_groups[0]
    first, second = group['betas']
    return dict(adam_beta1=first, adam_beta2=second, adam_epsilon=group['eps'])


def compare_losses(data):
    rows, held_out = encoded(data)
    print(f'{data}: {len(rows)} chats of training, {len(held_out)} held out, {PASSES} passes')
    differences = []
    for seed in range(SEEDS):
        own, own_steps = our_loss(rows, held_out, seed)
        other, other_steps = their_loss(rows, held_out, seed)
        differences.append(own - other)
        print(f'seed {seed}: ours {own:.4f} nats after {own_steps} steps, TRL {other:.4f} after {other_steps}', flush=True)
    mean = statistics.mean(differences)
    half = T_OF_TWO * statistics.stdev(differences) / SEEDS ** .5
    print(f'tune_loss_{data}: ours less TRL {mean:+.4f} nats, 95 % interval {mean - half:+.4f} to {mean + half:+.4f}; '
          f'before training {validation_loss(first_model(0), held_out):.4f}')


if __name__ == '__main__':
    words = sys.argv[1:]
    if words[:1] == ['--loss']:
        for data in words[1:] or DATA: compare_losses(data)
    elif len(words) == 2: measure(SIDES[words[0]], TokenClock(), words[1])
    else:
        for data in words or DATA: compare(data)
