"""Log-likelihoods and perplexity against lm-evaluation-harness, on the same exported model and the same texts.

Each side runs in a process of its own and reads text, so that tokenising is in the time; loading is not. The limit
beside each goal counts the tokens that have to be read: with C tokens of context and k choices of L, k(C + L) become
C + kL; what comes before every question is read once. Numbers have to agree to 1e-4 nats.
Needs `lm-eval` (pip install '.[bench]').
"""
import json, sys, tempfile, time
from pathlib import Path
from types import SimpleNamespace
import numpy as np
from _sides import child, quiet_transformers

ROUNDS, BATCH, CONTEXT = 2, 16, 1024
SHAPE = dict(n_layer=6, d_model=256, n_head=4, n_kv_head=2, context=CONTEXT, family='llama')
GOALS = dict(no_shots=2.5, random_shots=3.3, fixed_shots=12., short_documents=3., long_documents=1.5)
QUESTIONS = dict(no_shots=40, random_shots=8, fixed_shots=24)


def sentences():
    "Return the sentences of the interpreter's documentation, in a fixed order."
    from pydoc_data.topics import topics
    words = ' '.join(topics[name] for name in sorted(topics)).split()
    lengths = np.random.default_rng(0).integers(6, 16, len(words) // 10)
    ends = np.cumsum(lengths)
    return [' '.join(words[end - n:end]) for n, end in zip(lengths, ends) if end < len(words)]


def question(r, found):
    "Return a question of some sentences and its four choices."
    start = int(r.integers(len(found) - 5))
    return ' '.join(found[start:start + 4]), [f' {found[i]}' for i in r.integers(len(found), size=4)]


def shots(r, found, n=10):
    "Return solved questions."
    solved = []
    for _ in range(n):
        asked, choices = question(r, found)
        solved.append(asked + choices[0] + '\n\n')
    return ''.join(solved)


def pairs(name):
    "Return the pairs of a workload of multiple choice."
    r = np.random.default_rng(1)
    found = sentences()
    fixed = shots(r, found)
    made = []
    for _ in range(QUESTIONS[name]):
        asked, choices = question(r, found)
        before = dict(no_shots='', fixed_shots=fixed).get(name)
        if before is None: before = shots(r, found)
        made += [(before + asked, choice) for choice in choices]
    return made


def documents(name):
    "Return texts of mixed lengths, or long ones."
    r = np.random.default_rng(2)
    found = sentences()
    if name == 'long_documents': sizes = np.full(3, 240)
    else: sizes = np.exp(r.normal(1., 1.1, 96)).astype(int) + 1
    if name == 'short_documents': sizes = sizes.clip(max=60)
    starts = r.integers(len(found) - 300, size=len(sizes))
    return [' '.join(found[start:start + n]) for start, n in zip(starts, sizes)]


def model_folder(folder):
    "Write a model with a tokenizer, as every side reads it."
    import torch
    from llmbook.model.config import ModelConfig
    from llmbook.model.hf import save_pretrained
    from llmbook.model.transformer import Transformer
    from llmbook.tokens.tokenizer import train_tokenizer
    tok = train_tokenizer(sentences(), 4096)
    torch.manual_seed(0)
    save_pretrained(Transformer(ModelConfig(vocab_size=tok.get_vocab_size(), **SHAPE)), tok, folder)


def limits(folder):
    "Return how many tokens the plain way reads for each that has to be read."
    from llmbook.model.open import model_tokenizer
    tok = model_tokenizer(folder)
    def tokens(text): return len(tok.encode(text).ids)
    found = {}
    for name in QUESTIONS:
        contexts, plain, needed = set(), 0, 0
        made = pairs(name)
        shared = tokens(shots(np.random.default_rng(1), sentences())) if name == 'fixed_shots' else 0
        for context, choice in made:
            n = tokens(context)
            plain += n + tokens(choice)
            needed += tokens(choice) - 1
            if context not in contexts: needed += n - shared
            contexts.add(context)
        found[name] = plain / (needed + shared)
    sizes = [tokens(text) for text in documents('short_documents')]
    batches = [sizes[i:i + BATCH] for i in range(0, len(sizes), BATCH)]
    found['short_documents'] = sum(len(b) * max(b) for b in batches) / sum(sizes)
    return found


def ours(folder):
    from llmbook.evaluate.likelihood import log_likelihoods
    from llmbook.evaluate.perplexity import document_nats
    from llmbook.model.open import load_lm
    model, tok = load_lm(folder, 'cpu')

    def likelihoods(some): return log_likelihoods(model, tok, some, BATCH).logprob.tolist()

    def nats(texts):
        found = document_nats(model, tok, texts, stride=CONTEXT, batch_size=BATCH, full_last=True)
        return (-found[:, 0]).tolist()

    return likelihoods, nats


def theirs(folder):
    tf = quiet_transformers()
    from lm_eval.models.huggingface import HFLM
    model = tf.AutoModelForCausalLM.from_pretrained(folder).eval()
    tok = tf.AutoTokenizer.from_pretrained(folder)
    hub = HFLM(pretrained=model, tokenizer=tok, batch_size=BATCH, max_length=CONTEXT)

    def asked(args): return [SimpleNamespace(args=one) for one in args]

    def likelihoods(some):
        found = hub.loglikelihood(asked(some), disable_tqdm=True)
        return [logprob for logprob, _ in found]

    def nats(texts):
        requests = asked([(text,) for text in texts])
        return hub.loglikelihood_rolling(requests, disable_tqdm=True)

    return likelihoods, nats


SIDES = dict(ours=ours, theirs=theirs)


def measure(side, folder):
    "Print the seconds and the numbers of each workload."
    likelihoods, nats = SIDES[side](folder)
    likelihoods(pairs('no_shots')[:8]) # warm
    seconds, values = {}, {}
    for name in GOALS:
        work = pairs(name) if name in QUESTIONS else documents(name)
        compute = likelihoods if name in QUESTIONS else nats
        start = time.perf_counter()
        values[name] = compute(work)
        seconds[name] = time.perf_counter() - start
    print(json.dumps(dict(seconds=seconds, values=values)))


def same_choices(ours, theirs):
    "Return on how many questions both pick the same choice, and how many there are."
    a, b = np.reshape(ours, (-1, 4)), np.reshape(theirs, (-1, 4))
    return int((a.argmax(1) == b.argmax(1)).sum()), len(a)


def agreement(name, ours, theirs):
    "Return what is said of two lists of numbers, and whether they are equal up to rounding."
    gap = np.abs(np.subtract(ours, theirs))
    said = f'largest difference {gap.max():.1e} nats'
    if name in QUESTIONS:
        same, n = same_choices(ours, theirs)
        return f'{said}, the same choice in {same} of {n} questions', gap.max() <= 1e-4
    relative = gap / np.maximum(1, np.abs(theirs)) # a document's sum has hundreds of terms
    return said, relative.max() <= 1e-4


def seconds_of(rounds, side, name):
    "Return the seconds of a workload on one side, round by round."
    return np.array([r[side]['seconds'][name] for r in rounds])


def report(name, rounds, limit):
    "Print the times, the agreement and the ratio of a workload."
    first = rounds[0]
    said, is_equal = agreement(name, first['ours']['values'][name], first['theirs']['values'][name])
    ours = seconds_of(rounds, 'ours', name)
    theirs = seconds_of(rounds, 'theirs', name)
    if limit: said = f'limit {limit:.1f}; {said}'
    print(f'{name}: {np.median(ours):.2f} s, lm-eval {np.median(theirs):.2f} s; {said}')
    if not is_equal: sys.exit(f'{name}: expected equal numbers')
    ratio = np.median(theirs / ours)
    print(f'evaluate_{name}: ratio {ratio:.2f} goal {GOALS[name]}')


def compare():
    with tempfile.TemporaryDirectory() as folder:
        model_folder(Path(folder)/'model')
        folder = str(Path(folder)/'model')
        rounds = [{side: child(__file__, side, folder) for side in SIDES} for _ in range(ROUNDS)]
        counted = limits(folder)
    for name in GOALS: report(name, rounds, counted.get(name))


if __name__ == '__main__':
    if len(sys.argv) > 1: measure(*sys.argv[1:])
    else: compare()
