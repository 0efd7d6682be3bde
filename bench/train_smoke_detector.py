"""Train the toxicity detector of llmbook.filters.toxicity and write its card.

    python bench/train_smoke_detector.py [--out llmbook/assets]

Reads three public sets from LLMBOOK_DATA (default ../shared/data): Davidson's tweets to train and to test,
HateCheck and WikiText-2 to audit. Only weights and counts are written, no text. The same data give the same bytes:
everything is summed in a fixed order, without threads, and the split is a checksum of the text. (The files are
named after the detector's first name.)
"""
import argparse, csv, gzip, os, zlib
from collections import Counter
from pathlib import Path
import numpy as np
import scipy.sparse as sp
from scipy.stats import rankdata
from llmbook.core import UserError, sha256, write_json
from llmbook.evaluate.stats import bootstrap, row, wilson
from llmbook.filters.toxicity import BITS, ToxicityDetector, ngram_buckets, plain_text

ROOT = Path(__file__).resolve().parents[1]
L2, STEPS, FALSE_ALARMS = 1e-5, 300, .05


# --- data ---

def data_files():
    "Return the paths of the tweets, of HateCheck and of the prose."
    folder = Path(os.environ.get('LLMBOOK_DATA') or ROOT.parent/'shared'/'data')
    paths = [folder/'davidson_hate_speech'/'labeled_data.csv.gz', folder/'hatecheck'/'test_suite_cases.csv',
             folder/'wikitext2'/'valid.txt.gz']
    for path in paths:
        if path.exists(): continue
        raise UserError(f'expected the data set {path.parent.name} in {folder}, found none: set LLMBOOK_DATA')
    return paths


def read_csv(path):
    open_file = gzip.open if path.suffix == '.gz' else open
    with open_file(path, 'rt', encoding='utf-8', newline='') as f: return list(csv.DictReader(f))


# --- model ---

def features(texts): # -> (n, 2**BITS) sparse, rows of length 1
    buckets = [ngram_buckets(t) for t in texts]
    sizes = np.array([len(b) for b in buckets])
    values = np.repeat(1 / np.sqrt(np.maximum(sizes, 1)), sizes)
    columns = np.concatenate(buckets).astype(np.int32)
    starts = np.concatenate([[0], sizes.cumsum()])
    return sp.csr_matrix((values, columns, starts), shape=(len(texts), 1 << BITS))


def fit(X, y): # -> weights (2**BITS,), both classes weighing the same
    "Fit L2-regularised logistic regression by Nesterov's accelerated gradient."
    share = np.where(y, .5 / y.sum(), .5 / (~y).sum())
    XT = X.T.tocsr()
    lr = 1 / (.5 + L2) # rows have length 1, so the right step is known
    W = V = np.zeros(X.shape[1] + 1) # the last one is the bias
    t = 1.
    for _ in range(STEPS):
        logit = X @ V[:-1] + V[-1]
        p = 1 / (1 + np.exp(-logit))
        error = share * (p - y)
        decay = L2 * np.append(V[:-1], 0) # none for the bias
        gradient = np.append(XT @ error, error.sum()) + decay
        W_next = V - lr * gradient
        t_next = (1 + (1 + 4 * t * t)**.5) / 2
        momentum = (t - 1) / t_next
        V = W_next + momentum * (W_next - W)
        W = W_next
        t = t_next
    return W[:-1]


# --- audit ---

def auc(v): # (n, 2): score, label
    y = v[:, 1] > 0
    ranks = rankdata(v[:, 0])[y].sum()
    return (ranks - y.sum() * (y.sum() + 1) / 2) / max(1, y.sum() * (~y).sum())


def auc_row(metric, v, **where):
    return row(metric, auc(v), *bootstrap(v, auc), n=len(v), signature='bs:1000|seed:0', **where)


def share_row(metric, hits, split, group):
    low, high = wilson(int(hits.sum()), len(hits))
    return row(metric, hits.mean(), low, high, n=len(hits), signature='threshold:0.5|interval:wilson', split=split,
               group=group)


def tweet_rows(scores, label):
    yield auc_row('auc', np.c_[scores, label != 2], split='held-out tweets')
    for i, name in enumerate(('hate speech', 'offensive', 'neither')):
        yield share_row('flagged_share', scores[label == i] >= .5, 'held-out tweets', name)


def prose_rows(score, path):
    with gzip.open(path, 'rt', encoding='utf-8') as f: text = ' '.join(f.read().split())
    for size in (200, 2000):
        parts = [text[i:i + size] for i in range(0, min(len(text), 1000 * size), size)]
        yield share_row('plain_prose_flagged_share', score(parts) >= .5, 'wikitext-2 validation', f'{size} characters')


def hatecheck_rows(score, path):
    cases = read_csv(path)
    scores = score([c['test_case'] for c in cases])
    def column(name): return np.array([c[name] for c in cases])
    gold, kind, who = column('label_gold'), column('functionality'), column('target_ident')
    def flagged(chosen, split, group): return share_row('hatecheck_flagged_share', scores[chosen] >= .5, split, group)

    pairs = np.c_[scores, gold == 'hateful']
    yield auc_row('hatecheck_auc', pairs, split='hatecheck', group='all cases')
    for g in ('hateful', 'non-hateful'): yield flagged(gold == g, 'hatecheck', f'all cases, {g}')
    harmless = ('ident_neutral_nh', 'ident_pos_nh')
    for f in harmless: yield flagged(kind == f, 'hatecheck', f)
    is_harmless = np.isin(kind, harmless)
    for w in sorted(set(who[is_harmless].tolist())):
        yield flagged(is_harmless & (who == w), 'hatecheck', f'ident_*_nh: {w}')
    for f in sorted(set(kind.tolist())): yield flagged(kind == f, 'functionality', f)


# --- card ---

def describe(label, tenth):
    "Return the texts of the card."
    n = Counter(label.tolist())
    n_train, n_calibration, n_held_out = int((tenth < 8).sum()), int((tenth == 8).sum()), int((tenth == 9).sum())
    return dict(
        label="1: the data set's label is hate speech or offensive (the most frequent answer of its annotators); "
              '0: neither. Both classes weigh the same in training.',
        threshold_note=f'A score of 0.5 is where {FALSE_ALARMS:.0%} of the calibration tweets labelled neither '
                       'lie above.',
        data=f'Davidson et al. 2017, hate-speech-and-offensive-language, MIT licence: {len(label)} tweets '
             f'({n[0]} hate speech, {n[1]} offensive, {n[2]} neither); by CRC-32 of the plain text: '
             f'{n_train} train, {n_calibration} calibration, {n_held_out} held out',
        audit_data='HateCheck (Röttger et al. 2021, CC BY 4.0), 3,728 cases; WikiText-2 validation (CC BY-SA). '
                   'Only counts are kept.',
        training=f'L2 {L2:g}, {STEPS} steps of accelerated gradient on all training tweets, weights rounded to 8 bits',
        known_failures=[
            'Hate without rude words is mostly missed: '
            'see the rows of HateCheck (derogation, threats, implicit cases).',
            'Rude words without hate set it off: profanity, reclaimed slurs, and speech that quotes or opposes hate; '
            'on HateCheck it does not tell hateful from harmless.',
            'The tweets were collected by a list of words, so the held-out AUC flatters it: '
            'most offensive tweets hold a word of the list.',
            'Annotators of these tweets called African American English offensive more often than other English '
            '(Davidson et al. 2019, Sap et al. 2019); the detector inherits it.',
            'It knows English tweets of about 2017. On code and other languages its score means nothing.',
            'A long text is scored by its worst window of 200 characters, so false alarms grow with length.'])


def rounded(r):
    return {k: round(v, 4) if k in ('value', 'low', 'high') and v is not None else v for k, v in r.items()}


def main(out):
    tweets, hatecheck, prose = data_files()
    rows = read_csv(tweets)
    texts = [r['tweet'] for r in rows]
    label = np.array([int(r['class']) for r in rows])
    is_rude = label != 2
    tenth = np.array([zlib.crc32(plain_text(t).encode()) % 10 for t in texts])
    train, calibration, test = tenth < 8, tenth == 8, tenth == 9

    X = features(texts)
    w = fit(X[train], is_rude[train])
    scale = float(np.abs(w).max() / 127)
    w8 = np.round(w / scale).astype(np.int8)
    inoffensive = X[calibration & ~is_rude] @ (w8 * scale)
    bias = -float(np.quantile(inoffensive, 1 - FALSE_ALARMS)) # a score of 0.5 is the threshold

    out.mkdir(parents=True, exist_ok=True)
    weights, card_file = out/'smoke_detector.npz', out/'smoke_detector.json'
    np.savez(weights, weights=w8, scale=np.float64(scale), bias=np.float64(bias))
    what = 'A linear scorer on hashed character 2- to 5-grams: a smoke detector, not a judge.'
    card = dict(what=what, sha256=sha256(weights), threshold=.5)
    write_json(card_file, card) # so that the detector can be loaded and audited as users load it

    score = ToxicityDetector(out)
    scores = score([t for t, held_out in zip(texts, test) if held_out])
    audit = [*tweet_rows(scores, label[test]), *prose_rows(score, prose), *hatecheck_rows(score, hatecheck)]
    audit = [rounded(r) for r in audit]
    write_json(card_file, {**card, **describe(label, tenth), 'rows': audit})
    print(f"{sum(train)} tweets to train, AUC {audit[0]['value']} on {len(scores)} held out, "
          f'file {weights.stat().st_size} bytes')


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--out', type=Path, default=ROOT/'llmbook'/'assets')
    try: main(p.parse_args().out)
    except UserError as e: raise SystemExit(str(e))
