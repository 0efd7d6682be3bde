"""ULMFiT's ablation of how a language model is tuned before it classifies, on a small model of ours.

One model is pre-trained on books and encyclopedia articles. 10,662 film sentences are cut into five folds. For each
fold, copies of the model are tuned on sentences of the other four: not at all, wholly, with rates that fall from layer
to layer, and with the slanted triangle as well. Each then becomes a classifier in the same way, and is asked about the
whole fold. Two more arms: a model that was never pre-trained, and a classifier whose layers all train from the start.

A fold is a seed: it draws the head and the orders. What is done is kept: a second call of
`python bench/ulmfit.py RESULTS.jsonl [FOLD...]` resumes the pre-training, and then goes on with the next arm. Folds can
be done by processes of their own, once the model is there. Needs gutenberg_books, wikitext2 and nltk_classification in
the folder LLMBOOK_DATA.
"""
import copy, gzip, json, math, os, sys, time, zipfile
from pathlib import Path
import numpy as np
import torch
from fastai.data.core import DataLoaders
from llmbook.checkpoint.checkpoint import Checkpoint
from llmbook.core import set_seed
from llmbook.evaluate.stats import paired_difference
from llmbook.model.config import ModelConfig
from llmbook.model.hf import load_pretrained, save_pretrained
from llmbook.model.transformer import Transformer
from llmbook.pretrain.run import lm_learner
from llmbook.tokens.loaders import TokenLoader
from llmbook.tokens.shards import TokenView
from llmbook.tokens.tokenizer import encode_text, text_ids, train_tokenizer
from llmbook.tune.classify import class_dls, class_learner, classify, fit_slanted
from llmbook.tune.groups import GradualUnfreeze, layer_groups, layerwise_decay

DATA = Path(os.environ.get('LLMBOOK_DATA', Path(__file__).resolve().parents[2]/'shared/data'))
FOLDS = 5
SHAPE = dict(n_layer=3, d_model=96, n_head=2, n_kv_head=2, context=128, tie_embeddings=False)
SENTENCES = 2000 # of the other folds, for tuning the language model and for the classifier
VOCABULARY, WINDOW, BOOKS = 3000, 64, 8_000_000 # tokens, tokens in a row, characters
PRETRAIN_ROWS, PRETRAIN_STEPS, PRETRAIN_RATE = 64, 400, 3e-3
TUNE_ROWS, TUNE_EPOCHS, TUNE_RATE = 16, 2, 1e-3
CLASS_ROWS, CLASS_EPOCHS, CLASS_RATE = 32, 3, 2e-3
FALL = 1 / 2.6 # rate of a layer divided by the rate of the layer above it, as published
PUBLISHED = dict(none=6.99, full=5.86, discriminative=5.55, slanted=5.00) # error on IMDb, table 6
ARMS = [*PUBLISHED, 'at_once', 'scratch']


# ---- text ----------------------------------------------------------------------------------------------------------

def pretraining_text():
    "Return the books and the articles, as a list of texts."
    texts = []
    with gzip.open(DATA/'gutenberg_books/books.jsonl.gz', 'rt', encoding='utf-8') as lines:
        left = BOOKS
        for line in lines:
            text = json.loads(line)['text'].replace('\r\n', '\n')
            left -= len(text)
            if left < 0: break
            texts.append(text)
    for name in ('valid', 'test'):
        with gzip.open(DATA/f'wikitext2/{name}.txt.gz', 'rt', encoding='utf-8') as f: texts.append(f.read())
    return texts


def sentences():
    "Return (texts, labels) of the film sentences, in an order that is always the same."
    pairs = []
    with zipfile.ZipFile(DATA/'nltk_classification/sentence_polarity.zip') as archive:
        for label in ('neg', 'pos'):
            raw = archive.read(f'sentence_polarity/rt-polarity.{label}')
            for line in raw.decode('latin-1').splitlines(): pairs.append((line.strip(), label))
    order = np.random.default_rng(0).permutation(len(pairs))
    texts, labels = zip(*[pairs[i] for i in order])
    return list(texts), list(labels)


def fold(data, seed):
    "Return the training and the held-out part of a fold, each (texts, labels)."
    parts = []
    for is_held_out in (False, True):
        chosen = [i for i in range(len(data[0])) if (i % FOLDS == seed) == is_held_out]
        if not is_held_out: chosen = chosen[:SENTENCES]
        parts.append(([data[0][i] for i in chosen], [data[1][i] for i in chosen]))
    return parts


def token_view(tok, texts):
    "Return texts as one row of ids, with an end mark behind each."
    end = text_ids(tok).end[0]
    ids = []
    for text in encode_text(tok, texts): ids += [*text, end]
    return TokenView([np.array(ids, np.uint16)])


# ---- the three trainings -------------------------------------------------------------------------------------------

def loaders(tok, train, valid, rows, steps, seed):
    "Return loaders of windows of two rows of ids; an epoch of `steps` batches, or one pass."
    training = TokenLoader(train, rows, WINDOW, steps, seed=seed, tok=tok)
    validation = TokenLoader(valid, rows, WINDOW, None, shuffle=False, tok=tok)
    return DataLoaders(training, validation, device='cpu')


def pretrained(folder):
    "Return the pre-trained model and its tokenizer; pre-train them first, or resume, if they aren't there."
    if not (folder/'model').exists():
        texts = pretraining_text()
        tok = train_tokenizer(texts, VOCABULARY)
        ids = token_view(tok, texts)
        cut = len(ids) - 40_000
        dls = loaders(tok, TokenView([ids[:cut]]), TokenView([ids[cut:]]), PRETRAIN_ROWS, PRETRAIN_STEPS, seed=0)
        config = ModelConfig(vocab_size=tok.get_vocab_size(), **SHAPE)
        learn = lm_learner(dls, config, lr=PRETRAIN_RATE, seed=0, cbs=Checkpoint(folder/'checkpoints', every=50))
        with learn.no_bar(): learn.fit_wsd(1, resume=True)
        print(f'pre-trained on {PRETRAIN_STEPS * PRETRAIN_ROWS * WINDOW:,} tokens of {len(ids):,}, '
              f'validation loss {learn.recorder.values[-1][1]:.3f}', flush=True)
        save_pretrained(learn.model, tok, folder/'model')
    return load_pretrained(folder/'model')


def tune(model, tok, train, valid, arm, seed):
    "Tune a language model on texts in the way of an arm; return its loss on the held-out ones."
    dls = loaders(tok, token_view(tok, train), token_view(tok, valid), TUNE_ROWS, None, seed)
    learn = lm_learner(dls, model, lr=TUNE_RATE, wd=.01, muon=False, splitter=layer_groups)
    with learn.no_bar(), learn.no_logging():
        if arm == 'none': return learn.validate()[0]
        rate = TUNE_RATE if arm == 'full' else layerwise_decay(learn, TUNE_RATE, FALL)
        if arm in ('full', 'discriminative'): learn.fit(TUNE_EPOCHS, rate)
        else: fit_slanted(learn, TUNE_EPOCHS, rate)
        return learn.recorder.values[-1][1]


def right_answers(model, tok, train, valid, arm, seed):
    "Make a classifier of a language model and train it; return for each held-out text whether its label was found."
    few = [part[:64] for part in valid] # enough for the table that nobody reads
    dls = class_dls(tok, train, few, seq_len=WINDOW, bs=CLASS_ROWS, seed=seed, device='cpu')
    learn = class_learner(model, dls, lr=CLASS_RATE, seed=seed)
    is_plain = arm in ('at_once', 'scratch')
    with learn.no_bar(), learn.no_logging():
        if arm == 'scratch': fit_slanted(learn, CLASS_EPOCHS, CLASS_RATE)
        else:
            unfreezing = [] if is_plain else [GradualUnfreeze(.5)]
            fit_slanted(learn, CLASS_EPOCHS, layerwise_decay(learn, CLASS_RATE, FALL), cbs=unfreezing)
    found = classify(learn, valid[0], bs=256).label
    return [int(a == b) for a, b in zip(found, valid[1])]


def run(model, tok, data, arm, seed, tuned_folder):
    "Do one arm on one fold."
    start = time.process_time()
    train, valid = fold(data, seed)
    set_seed(seed)
    loss = None
    if arm == 'scratch': model = Transformer(model.config)
    elif arm == 'at_once': model, _ = load_pretrained(tuned_folder)
    else:
        model = copy.deepcopy(model)
        loss = tune(model, tok, train[0], valid[0], arm, seed)
    if arm == 'slanted': save_pretrained(model, tok, tuned_folder)
    tuning = time.process_time() - start
    right = right_answers(model, tok, train, valid, arm, seed)
    return dict(arm=arm, seed=seed, loss=loss, error=100 * (1 - np.mean(right)),
                tuning_cpu=tuning, cpu=time.process_time() - start, right=''.join(map(str, right)))


# ---- results -------------------------------------------------------------------------------------------------------

def read(path):
    "Return the results of a file by (arm, seed)."
    if not path.exists(): return {}
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return {(r['arm'], r['seed']): r for r in found}


def interval(values):
    "Return mean, low and high of a few values by Student's t."
    from scipy.stats import t
    mean = np.mean(values)
    half = t.ppf(.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def of_arm(results, arm): return [results[arm, seed] for seed in range(FOLDS)]


def finished(results):
    "Return the arms that were done on every fold."
    return [arm for arm in ARMS if all((arm, seed) in results for seed in range(FOLDS))]


def print_errors(results):
    "Print the error of each arm over the folds, and the loss of its language model."
    print(f'{"arm":<16}{"error":>8}{"95 % over folds":>20}{"loss of the tuned model":>26}{"published":>12}')
    for arm in finished(results):
        rows = of_arm(results, arm)
        mean, low, high = interval([r['error'] for r in rows])
        losses = [r['loss'] for r in rows if r['loss'] is not None]
        loss = f'{np.mean(losses):.3f}' if losses else '-'
        between = f'[{low:.2f}, {high:.2f}]'
        print(f'{arm:<16}{mean:>8.2f}{between:>20}{loss:>26}{PUBLISHED.get(arm, "-"):>12}')


def print_difference(results, a, b):
    "Print how much lower the error of arm `b` is than that of arm `a`, over folds and over sentences."
    first, second = of_arm(results, a), of_arm(results, b)
    gains = [x['error'] - y['error'] for x, y in zip(first, second)]
    mean, low, high = interval(gains)
    lower = sum(gain > 0 for gain in gains)
    print(f'{a} - {b}: {mean:+.2f} points, lower in {lower} of {FOLDS} folds, over folds [{low:+.2f}, {high:+.2f}]')
    wrong = []
    for rows in (first, second):
        bits = ''.join(row['right'] for row in rows)
        wrong.append([100. * (bit == '0') for bit in bits])
    found = paired_difference(*wrong)
    print(f'    over sentences [{found["low"]:+.2f}, {found["high"]:+.2f}], p {found["p"]:.3f}')


PAIRS = [('none', 'full'), ('full', 'discriminative'), ('discriminative', 'slanted'), ('none', 'slanted'),
         ('at_once', 'slanted'), ('scratch', 'none')] # the second is expected to be better


def report(results):
    "Print both tables, as far as arms are finished."
    print_errors(results)
    print()
    done = finished(results)
    for a, b in PAIRS:
        if a in done and b in done: print_difference(results, a, b)


def main(path, folds):
    torch.set_num_threads(1)
    path.parent.mkdir(parents=True, exist_ok=True)
    model, tok = pretrained(path.with_suffix('.pretrained'))
    data, results = sentences(), read(path)
    for arm in ARMS:
        for seed in folds:
            if (arm, seed) in results: continue
            result = run(model, tok, data, arm, seed, path.with_suffix(f'.tuned{seed}'))
            with open(path, 'a') as f: f.write(json.dumps(result) + '\n')
            print({name: value for name, value in result.items() if name != 'right'}, flush=True)
    report(read(path))


if __name__ == '__main__': main(Path(sys.argv[1]), [int(word) for word in sys.argv[2:]] or range(FOLDS))
