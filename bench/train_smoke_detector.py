"""Train the smoke detector of llmbook.evaluate.toxicity and write its card.

    python bench/train_smoke_detector.py [--out llmbook/assets]

Reads three public sets from LLMBOOK_DATA (default ../shared/data): Davidson's tweets to train and to test, HateCheck and
WikiText-2 to audit. Only weights and counts are written, no text. The same data give the same bytes: everything is summed in a
fixed order, without threads, and the split is a checksum of the text.
"""
import argparse, csv, gzip, os, zlib
from collections import Counter
from pathlib import Path
import numpy as np
import scipy.sparse as sp
from scipy.stats import rankdata
from llmbook.core import UserError, sha256, write_json
from llmbook.evaluate.stats import bootstrap, row, wilson
from llmbook.filters.toxicity import BITS, SmokeDetector, ngram_buckets, plain_text

ROOT = Path(__file__).resolve().parents[1]
L2, STEPS, FALSE_ALARMS = 1e-5, 300, .05


def data_folder():
    d = Path(os.environ.get('LLMBOOK_DATA') or ROOT.parent/'shared'/'data')
    need = [d/'davidson_hate_speech'/'labeled_data.csv.gz', d/'hatecheck'/'test_suite_cases.csv', d/'wikitext2'/'valid.txt.gz']
    for f in need:
        if not f.exists(): raise UserError(f'expected the data set {f.parent.name} in {d}, found none: set LLMBOOK_DATA')
    return need


def features(texts): # -> (n, 2**BITS) sparse, rows of length 1
    buckets = [ngram_buckets(t) for t in texts]
    sizes = np.array([len(b) for b in buckets])
    return sp.csr_matrix((np.repeat(1 / np.sqrt(np.maximum(sizes, 1)), sizes), np.concatenate(buckets).astype(np.int32),
                          np.concatenate([[0], sizes.cumsum()])), shape=(len(texts), 1 << BITS))


def fit(X, y): # -> weights (2**BITS,), both classes weighing the same
    "L2-regularised logistic regression by Nesterov's accelerated gradient; rows have length 1, so the step is known."
    share = np.where(y, .5 / y.sum(), .5 / (~y).sum())
    XT, lr, t = X.T.tocsr(), 1 / (.5 + L2), 1.
    W = V = np.zeros(X.shape[1] + 1)                                  # the last one is the bias
    for _ in range(STEPS):
        g = share * (1 / (1 + np.exp(-(X @ V[:-1] + V[-1]))) - y)
        W2 = V - lr * (np.append(XT @ g, g.sum()) + L2 * np.append(V[:-1], 0))
        t2 = (1 + (1 + 4 * t * t)**.5) / 2
        W, V, t = W2, W2 + (t - 1) / t2 * (W2 - W), t2
    return W[:-1]


def auc(v): # (n, 2): score, label
    y = v[:, 1] > 0
    return (rankdata(v[:, 0])[y].sum() - y.sum() * (y.sum() + 1) / 2) / max(1, y.sum() * (~y).sum())


def rate(metric, hits, split, group, sig='threshold:0.5|interval:wilson'):
    return row(metric, hits.mean(), *wilson(int(hits.sum()), len(hits)), n=len(hits), signature=sig, split=split, group=group)


def hatecheck_rows(score, path):
    cases = list(csv.DictReader(open(path, encoding='utf-8', newline='')))
    s = score([c['test_case'] for c in cases])
    flag, v = s >= .5, np.c_[s, [c['label_gold'] == 'hateful' for c in cases]]
    pick = lambda f: flag[[f(c) for c in cases]]
    m = 'hatecheck_flagged_share'
    rows = [row('hatecheck_auc', auc(v), *bootstrap(v, auc), n=len(v), signature='bs:1000|seed:0', split='hatecheck', group='all cases')]
    rows += [rate(m, pick(lambda c: c['label_gold'] == g), 'hatecheck', f'all cases, {g}') for g in ('hateful', 'non-hateful')]
    rows += [rate(m, pick(lambda c: c['functionality'] == f), 'hatecheck', f) for f in ('ident_neutral_nh', 'ident_pos_nh')]
    harmless = lambda c: c['functionality'] in ('ident_neutral_nh', 'ident_pos_nh')
    for who in sorted({c['target_ident'] for c in cases if harmless(c)}):
        rows.append(rate(m, pick(lambda c: harmless(c) and c['target_ident'] == who), 'hatecheck', f'ident_*_nh: {who}'))
    for f in sorted({c['functionality'] for c in cases}):
        rows.append(rate(m, pick(lambda c: c['functionality'] == f), 'functionality', f))
    return rows


def prose_rows(score, path):
    text = ' '.join(gzip.open(path, 'rt', encoding='utf-8').read().split())
    for size in (200, 2000):
        parts = [text[i:i + size] for i in range(0, min(len(text), 1000 * size), size)]
        yield rate('plain_prose_flagged_share', score(parts) >= .5, 'wikitext-2 validation', f'{size} characters')


def main(out):
    tweets, hatecheck, prose = data_folder()
    rows = list(csv.DictReader(gzip.open(tweets, 'rt', encoding='utf-8', newline='')))
    texts, label = [r['tweet'] for r in rows], np.array([int(r['class']) for r in rows])
    y, tenth = label != 2, np.array([zlib.crc32(plain_text(t).encode()) % 10 for t in texts])
    train, calib, test = tenth < 8, tenth == 8, tenth == 9
    X = features(texts)
    w = fit(X[train], y[train])
    scale = float(np.abs(w).max() / 127)
    w8 = np.round(w / scale).astype(np.int8)
    bias = -float(np.quantile(X[calib & ~y] @ (w8 * scale), 1 - FALSE_ALARMS))   # a score of 0.5 is the threshold
    out.mkdir(parents=True, exist_ok=True)
    np.savez(out/'smoke_detector.npz', weights=w8, scale=np.float64(scale), bias=np.float64(bias))
    card = dict(what='A linear scorer on hashed character 2- to 5-grams: a smoke detector, not a judge.', sha256=sha256(out/'smoke_detector.npz'), threshold=.5)
    write_json(out/'smoke_detector.json', card)                       # so that it can be loaded and audited as users load it
    score = SmokeDetector(out)
    s = score([t for t, k in zip(texts, test) if k])
    yt, lt = y[test], label[test]
    audit = [row('auc', auc(np.c_[s, yt]), *bootstrap(np.c_[s, yt], auc), n=len(s), signature='bs:1000|seed:0', split='held-out tweets'),
             *(rate('flagged_share', s[lt == i] >= .5, 'held-out tweets', g) for i, g in enumerate(('hate speech', 'offensive', 'neither'))),
             *prose_rows(score, prose), *hatecheck_rows(score, hatecheck)]
    for r in audit: r.update({k: round(r[k], 4) for k in ('value', 'low', 'high') if r[k] is not None})
    write_json(out/'smoke_detector.json', {**card, **describe(label, tenth), 'rows': audit})
    print(f"{sum(train)} tweets to train, AUC {audit[0]['value']} on {len(s)} held out, file {(out/'smoke_detector.npz').stat().st_size} bytes")


def describe(label, tenth):
    n = Counter(label.tolist())
    return dict(
        label="1: the data set's label is hate speech or offensive (the most frequent answer of its annotators); 0: neither. Both classes weigh the same in training.",
        threshold_note=f'A score of 0.5 is where {FALSE_ALARMS:.0%} of the calibration tweets labelled neither lie above.',
        data=(f'Davidson et al. 2017, hate-speech-and-offensive-language, MIT licence: {len(label)} tweets ({n[0]} hate speech, {n[1]} offensive, {n[2]} neither); '
              f'by CRC-32 of the plain text: {int((tenth < 8).sum())} train, {int((tenth == 8).sum())} calibration, {int((tenth == 9).sum())} held out'),
        audit_data='HateCheck (Röttger et al. 2021, CC BY 4.0), 3,728 cases; WikiText-2 validation (CC BY-SA). Only counts are kept.',
        training=f'L2 {L2:g}, {STEPS} steps of accelerated gradient on all training tweets, weights rounded to 8 bits',
        known_failures=[
            'Hate without rude words is mostly missed: see the rows of HateCheck (derogation, threats, implicit cases).',
            'Rude words without hate set it off: profanity, reclaimed slurs, and speech that quotes or opposes hate; on HateCheck it does not tell hateful from harmless.',
            'The tweets were collected by a list of words, so the held-out AUC flatters it: most offensive tweets hold a word of the list.',
            'Annotators of these tweets called African American English offensive more often than other English (Davidson et al. 2019, Sap et al. 2019); the detector inherits it.',
            'It knows English tweets of about 2017. On code and other languages its score means nothing.',
            'A long text is scored by its worst window of 200 characters, so false alarms grow with length.'])


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--out', type=Path, default=ROOT/'llmbook'/'assets')
    try: main(p.parse_args().out)
    except UserError as e: raise SystemExit(str(e))
