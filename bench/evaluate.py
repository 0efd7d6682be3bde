"""Log-likelihoods and perplexity against lm-evaluation-harness, overlap against rouge-score and sacreBLEU.

    python bench/evaluate.py                   all of it, on a small model of our own
    python bench/evaluate.py likelihood        log-likelihoods and perplexity alone
    python bench/evaluate.py smollm2           the same on SmolLM2-135M-Instruct, fewer questions
    python bench/evaluate.py overlap           ROUGE, BLEU's bootstrap and randomisation alone

Each side of a likelihood runs in a process of its own and reads text, so that tokenising is in the time; loading is
not. The limit beside each goal counts the tokens that have to be read: with C tokens of context and k choices of L,
k(C + L) become C + kL; what comes before every question is read once. Numbers have to agree to 1e-4 nats, those of
SmolLM2 relative to their size: over 49,152 tokens torch's log_softmax, which lm-eval takes, is off by 3e-4 nats itself.
The overlap measures run side by side in this process, on the processor's clock; the limit is what no method can leave
out: splitting texts into words and stemming for ROUGE, drawing the random numbers for the others.
Needs `lm-eval` for the likelihoods (pip install '.[bench]').
"""
import json, os, random, sys, tempfile, time
from pathlib import Path
from types import SimpleNamespace
import numpy as np
from _sides import child, quiet_transformers

ROUNDS, BATCH, CONTEXT = 2, 16, 1024
SHAPE = dict(n_layer=6, d_model=256, n_head=4, n_kv_head=2, context=CONTEXT, family='llama')
GOALS = dict(no_shots=2.5, random_shots=3.3, fixed_shots=12., short_documents=3., long_documents=1.5)
QUESTIONS = dict(no_shots=40, random_shots=8, fixed_shots=24)
OVERLAP_GOALS = dict(rouge=15., rouge_no_stems=15., bleu_bootstrap=10., bleu_randomisation=20.)
FEWER = dict(no_shots=6, random_shots=1, fixed_shots=2) # questions for a larger model


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


def is_large(): return os.environ.get('EVALUATE_MODEL') == 'smollm2'


def how_many(name): return (FEWER if is_large() else QUESTIONS)[name]


def pairs(name):
    "Return the pairs of a workload of multiple choice."
    r = np.random.default_rng(1)
    found = sentences()
    fixed = shots(r, found)
    made = []
    for _ in range(how_many(name)):
        asked, choices = question(r, found)
        before = dict(no_shots='', fixed_shots=fixed).get(name)
        if before is None: before = shots(r, found)
        made += [(before + asked, choice) for choice in choices]
    return made


def documents(name):
    "Return texts of mixed lengths, or long ones."
    r = np.random.default_rng(2)
    found = sentences()
    if name == 'long_documents': sizes = np.full(1 if is_large() else 3, 240)
    else: sizes = np.exp(r.normal(1., 1.1, 10 if is_large() else 96)).astype(int) + 1
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
    if is_large():
        from llmbook.model.smollm import smollm2
        return save_pretrained(*smollm2('cpu'), folder)
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
        options = dict(context=CONTEXT, stride=CONTEXT, batch_size=BATCH, full_last=True)
        found = document_nats(model, tok, texts, **options)
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
    relative = gap / np.maximum(1, np.abs(theirs)) # a document's sum has hundreds of terms, a larger model's are larger
    if name not in QUESTIONS: return said, relative.max() <= 1e-4
    same, n = same_choices(ours, theirs)
    said = f'{said}, the same choice in {same} of {n} questions'
    return said, (relative if is_large() else gap).max() <= 1e-4


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
        n_rounds = 1 if is_large() else ROUNDS
        rounds = [{side: child(__file__, side, folder) for side in SIDES} for _ in range(n_rounds)]
        counted = limits(folder)
    for name in GOALS: report(name, rounds, counted.get(name))


# ---- overlap -------------------------------------------------------------------------------------------------------

def summaries(n=1500):
    "Return made-up summaries of some sentences, a line each, and their references: a quarter of the words differ."
    found = sentences()
    words = ' '.join(found).split()
    r = random.Random(0)
    def spoilt(line): return ' '.join(word if r.random() < .75 else r.choice(words) for word in line.split())
    preds, refs = [], []
    for _ in range(n):
        k, first = r.randint(3, 6), r.randrange(len(found) - 10)
        shift = r.randint(0, 2)
        refs.append('\n'.join(found[first:first + k]))
        preds.append('\n'.join(spoilt(line) for line in found[first + shift:first + shift + k]))
    return preds, refs


def cpu_seconds(compute, rounds=3):
    "Return the least processor time of some rounds, and what was computed."
    seconds = []
    for _ in range(rounds):
        start = time.process_time()
        found = compute()
        seconds.append(time.process_time() - start)
    return min(seconds), found


def print_overlap(name, ours, theirs, limit, gap):
    "Print the times of both sides, the limit, the largest difference and the ratio of a workload."
    print(f'{name}: {ours:.3f} s, reference {theirs:.3f} s; limit {theirs / limit:.0f}; largest difference {gap:.0e}')
    if gap > 1e-9: sys.exit(f'{name}: expected equal numbers')
    print(f'evaluate_{name}: ratio {theirs / ours:.1f} goal {OVERLAP_GOALS[name]}')


def compare_rouge(name, stemmer):
    "Compare the four kinds of ROUGE with rouge-score; every word is stemmed for the first time."
    from rouge_score.rouge_scorer import RougeScorer
    from llmbook.evaluate import overlap
    preds, refs = summaries()
    def ours():
        overlap._STEMS.clear()
        return overlap.rouge_scores(preds, refs, stemmer)
    def split():
        overlap._STEMS.clear()
        words, _ = overlap._splitter('latin', stemmer)
        for text in preds + refs: words(text)
    scorer = RougeScorer(list(overlap.ROUGE_KINDS), use_stemmer=stemmer)
    def theirs(): return [scorer.score(ref, pred) for ref, pred in zip(refs, preds)]
    seconds, found = cpu_seconds(ours)
    limit, _ = cpu_seconds(split)
    reference, scores = cpu_seconds(theirs, 1)
    wanted = {kind: np.array([score[kind].fmeasure for score in scores]) for kind in found}
    gap = max(abs(found[kind] - wanted[kind]).max() for kind in found)
    print_overlap(name, seconds, reference, limit, gap)


def spoilt_corpus(refs, share, seed):
    "Return translations that lack some words."
    r = random.Random(seed)
    return [' '.join(word for word in ref.split() if r.random() > share) for ref in refs]


def compare_bootstrap():
    "Compare 1,000 resamples of BLEU from the same counts."
    from sacrebleu.metrics import BLEU
    from sacrebleu.significance import _bootstrap_resample
    from llmbook.evaluate import overlap
    refs = sentences()[:3000]
    metric = BLEU()
    counts = np.array(metric._extract_corpus_statistics(spoilt_corpus(refs, .2, 0), [refs]))
    ours, found = cpu_seconds(lambda: overlap._resampled_scores('bleu', metric, counts, 1000))
    theirs, (_, scores) = cpu_seconds(lambda: _bootstrap_resample(counts, metric, 1000))
    drawing, _ = cpu_seconds(lambda: np.random.default_rng(0).choice(len(refs), size=(1000, len(refs))))
    gap = abs(found - [score.score for score in scores]).max()
    print_overlap('bleu_bootstrap', ours, theirs, drawing, gap)


def compare_randomisation():
    "Compare 10,000 shuffles of two systems from the same counts: sacreBLEU is given those of the second at once."
    from sacrebleu.metrics import BLEU
    from sacrebleu.significance import PairedTest
    from llmbook.evaluate.overlap import bleu, randomization_test
    refs = sentences()[:3000]
    systems = [spoilt_corpus(refs, share, seed) for share, seed in ((.2, 0), (.195, 1))]
    rows = [bleu(preds, refs, n_boot=0)[0] for preds in systems]
    metric = BLEU()
    named = list(zip('ab', systems))
    test = PairedTest(named, dict(BLEU=metric), [refs], 'ar')
    counts = metric._extract_corpus_statistics(systems[1], [refs])
    metric._extract_corpus_statistics = lambda *texts: counts
    ours, found = cpu_seconds(lambda: randomization_test(*rows))
    theirs, (_, scores) = cpu_seconds(test, 1)
    drawing, _ = cpu_seconds(lambda: np.random.default_rng(0).integers(2, size=(10_000, len(refs)), dtype=bool))
    gap = abs(found['p_sacrebleu'] - scores['BLEU'][1].p_value)
    print_overlap('bleu_randomisation', ours, theirs, drawing, gap)


def compare_overlap():
    compare_rouge('rouge', stemmer=True)
    compare_rouge('rouge_no_stems', stemmer=False)
    compare_bootstrap()
    compare_randomisation()


def main(what='all'):
    if what == 'smollm2': os.environ['EVALUATE_MODEL'] = what
    if what not in ('all', 'likelihood', 'smollm2', 'overlap'): sys.exit(f'unknown: {what}')
    if what != 'likelihood' and not is_large(): compare_overlap()
    if what != 'overlap': compare()


if __name__ == '__main__':
    if len(sys.argv) > 2: measure(*sys.argv[1:])
    else: main(*sys.argv[1:])
