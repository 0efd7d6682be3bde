"""Learning from rewards: the update with shared prompts against copies of them, and a whole step against TRL's.

Prompts of 48 tokens, groups of 8 answers of 16 tokens. With shared prompts 176 positions are computed instead of 512,
so the update can be 2.9 times as fast at most. A step draws the answers, scores them and updates; both sides have
the same shape of model, prompts, numbers of answers and optimiser, each in a process of its own. Needs `trl`
(pip install '.[bench]') for the second.
"""
import statistics, sys, tempfile, time
from importlib.util import find_spec
import numpy as np
import torch
from _sides import (
    Clock, fit, learner_ticks, measure, median_ratio, one_round, quiet_transformers, their_llama, train,
    trainer_arguments, trainer_ticks
)

PROMPT, ANSWER, GROUP, PROMPTS = 48, 16, 8, 8
STEPS, WARM, ROUNDS = 8, 2, 2
SHAPE = dict(vocab_size=1024, n_layer=4, d_model=256, n_head=4, n_kv_head=4, context=96, family='llama')
GOALS = dict(update=2., step=3.)


# ---- the update ------------------------------------------------------------------------------------------------------

def rollouts():
    "Return drawn prompts, groups of answers and advantages."
    from llmbook.reward.grpo import advantages
    from llmbook.reward.rollouts import Rollout
    r = np.random.default_rng(0)
    prompts = r.integers(4, SHAPE['vocab_size'], (PROMPTS, PROMPT)).tolist()
    logp = -float(np.log(SHAPE['vocab_size']))
    def answer(): return Rollout(r.integers(4, SHAPE['vocab_size'], ANSWER).tolist(), [logp] * ANSWER, False)
    groups = [[answer() for _ in range(GROUP)] for _ in range(PROMPTS)]
    return prompts, groups, advantages(r.integers(0, 2, (PROMPTS, GROUP)))


def update(model, loss, batch):
    "Compute a loss and its gradient; return the seconds."
    inputs, targets = batch
    model.zero_grad()
    start = time.perf_counter()
    loss(model(*inputs), *targets).backward()
    return time.perf_counter() - start


def compare_updates():
    from llmbook.core import set_seed
    from llmbook.model.config import ModelConfig
    from llmbook.model.transformer import Transformer
    from llmbook.reward.grpo import GRPOLoss, group_rows
    set_seed(0)
    model = Transformer(ModelConfig(**SHAPE))
    loss = GRPOLoss(model.head)
    prompts, groups, better = rollouts()
    batches = {name: group_rows(prompts, groups, better, shared=name == 'shared') for name in ('shared', 'naive')}
    for name, (inputs, _) in batches.items(): print(f'{name}: {inputs[0].numel()} positions')
    ratios = []
    for i in range(2 + 8):
        seconds = {name: update(model, loss, batch) for name, batch in batches.items()}
        if i >= 2: ratios.append(seconds['naive'] / seconds['shared'])
    limit = (PROMPT + ANSWER) * GROUP / (PROMPT + ANSWER * GROUP)
    print(f'the limit is {limit:.2f}')
    print(f'reward_update: ratio {statistics.median(ratios):.2f} goal {GOALS["update"]}')


# ---- a whole step ----------------------------------------------------------------------------------------------------

def vocabulary():
    "Return a tokenizer of the model's size, and words that are one token each."
    from llmbook.tokens.tokenizer import train_tokenizer
    r = np.random.default_rng(1)
    letters = list('abcdefghijklmnopqrstuvwxyz')
    words = [''.join(r.choice(letters, 4)) for _ in range(400)]
    tok = train_tokenizer([' '.join(words)] * 3, SHAPE['vocab_size'])
    single = [word for word in words if len(tok.encode(f' {word}').ids) == 1]
    return tok, single


def texts(words, n, most):
    "Return prompts of equally many words."
    r = np.random.default_rng(2)
    return [' '.join(['', *r.choice(words, most)]) for _ in range(n)]


def score(text): return float(len(text) % 2) # any rule that some answers keep and some do not


def ours(clock):
    from llmbook.core import set_seed
    from llmbook.model.config import ModelConfig
    from llmbook.model.transformer import Transformer
    from llmbook.reward.puzzles import task_of_rows
    from llmbook.reward.rollouts import Sampler
    from llmbook.reward.train import grpo_learner
    from llmbook.tune.chat import ChatFormat
    tok, words = vocabulary()
    fmt = ChatFormat(tok)
    marks = len(fmt.prompt_ids([dict(role='user', content=' x')])) - 1
    rows = [dict(prompt=text, answer='') for text in texts(words, 200, PROMPT - marks)]
    task = task_of_rows(rows, lambda prompt, answer, meta: score(answer))
    set_seed(0)
    model = Transformer(ModelConfig(**SHAPE | dict(vocab_size=tok.get_vocab_size())))
    learn = grpo_learner(model, task, fmt, lr=1e-4, steps=STEPS, prompts=PROMPTS, group=GROUP, sampler=Sampler(ANSWER),
                         test=1, tries=1, device='cpu', cbs=learner_ticks(clock.tick))
    return fit(learn)


def theirs(clock):
    tf = quiet_transformers()
    import trl
    from datasets import Dataset
    tok, words = vocabulary()
    own = tf.PreTrainedTokenizerFast(tokenizer_object=tok, eos_token='<|endoftext|>', pad_token='<|pad|>')
    rows = [dict(prompt=text) for text in texts(words, 200, PROMPT)]
    def reward(completions, **kwargs): return [score(text) for text in completions]
    args = trainer_arguments(trl.GRPOConfig, bf16=False, gradient_checkpointing=False, max_steps=STEPS,
                             learning_rate=1e-4, per_device_train_batch_size=PROMPTS * GROUP,
                             num_generations=GROUP, max_completion_length=ANSWER, beta=0., scale_rewards='none')
    model = their_llama(SHAPE | dict(vocab_size=tok.get_vocab_size()))
    trainer = trl.GRPOTrainer(model, reward_funcs=reward, args=args, train_dataset=Dataset.from_list(rows),
                              processing_class=own, callbacks=[trainer_ticks(clock.tick)])
    return train(trainer)


SIDES = dict(ours=ours, theirs=theirs)


def compare_steps():
    rounds = [one_round(__file__, SIDES) for _ in range(ROUNDS)]
    answers = PROMPTS * GROUP
    for side in SIDES:
        rate = statistics.median(r[side]['rate'] for r in rounds)
        print(f'{side}: {answers / rate:.3f} s a step of {answers} answers')
    print(f'reward_step: ratio {median_ratio(rounds, "rate", "ours", "theirs"):.2f} goal {GOALS["step"]}')


if __name__ == '__main__':
    if len(sys.argv) > 1: measure(SIDES[sys.argv[1]], Clock(PROMPTS * GROUP, WARM))
    else:
        compare_updates()
        if find_spec('trl'): compare_steps()
        else: print('reward_step: trl is not installed')
