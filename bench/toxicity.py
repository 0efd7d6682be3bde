"""Detoxify's scores on texts of mixed lengths: our scorer against detoxify's own `predict`, equal to 1e-5.

`python bench/toxicity.py` makes a small BERT with random weights in detoxify's checkpoint format, since the published
weights (440 MB) are on a release page. `predict` pads all texts to the longest; ours are sorted by length and batched
by tokens. Both sides run in turns in one process, on the processor.
"""
import statistics, sys, tempfile, time
from pathlib import Path
import numpy as np
import torch
from llmbook.core import import_transformers, sha256
from llmbook.evaluate.toxicity import DetoxifyScorer

ROUNDS, TEXTS, GOAL = 3, 192, 3.
WORDS = [f'word{i}' for i in range(200)]


def write_checkpoint(folder):
    "Write a small BERT with its tokenizer and a checkpoint as detoxify stores them; return the checkpoint."
    tf = import_transformers()
    vocabulary = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', *WORDS]
    (folder/'vocab.txt').write_text('\n'.join(vocabulary) + '\n')
    tf.BertTokenizer(str(folder/'vocab.txt'), model_max_length=512).save_pretrained(folder)
    config = tf.BertConfig(vocab_size=len(vocabulary), hidden_size=256, num_hidden_layers=4, num_attention_heads=4,
                           intermediate_size=1024, num_labels=2, initializer_range=.1)
    config.save_pretrained(folder)
    torch.manual_seed(0)
    model = tf.BertForSequenceClassification(config)
    arch = dict(num_classes=2, model_type=str(folder), model_name='BertForSequenceClassification',
                tokenizer_name='BertTokenizer')
    stored = dict(arch=dict(args=arch), dataset=dict(args=dict(classes=['toxic', 'insult'])))
    torch.save(dict(config=stored, state_dict=model.state_dict()), folder/'small.ckpt')
    return folder/'small.ckpt'


def mixed_texts(n=TEXTS):
    "Make texts whose lengths are as mixed as those of comments: a median of 30 words, a few of 400."
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(np.log(30), 1, n), 1, 400).astype(int)
    lengths[0] = 400
    return [' '.join(rng.choice(WORDS, length)) for length in lengths]


def seconds_of(f, texts):
    "Return what a side gives and how long it took."
    start = time.perf_counter()
    scores = f(texts)
    return np.array(scores), time.perf_counter() - start


def main():
    import_transformers() # before detoxify does, so that a torchvision that does not fit is hidden
    from detoxify import Detoxify
    texts = mixed_texts()
    with tempfile.TemporaryDirectory() as d:
        checkpoint = write_checkpoint(Path(d))
        ours = DetoxifyScorer(checkpoint, config=d, sha256=sha256(checkpoint))
        theirs = Detoxify(checkpoint=str(checkpoint), huggingface_config_path=d)
        sides = dict(ours=ours, theirs=lambda some: theirs.predict(some)['toxicity'])
        for f in sides.values(): f(texts[:16])
        rounds = []
        for _ in range(ROUNDS): rounds.append({name: seconds_of(f, texts) for name, f in sides.items()})
    a, b = rounds[0]['ours'][0], rounds[0]['theirs'][0]
    apart = float(np.abs(a - b).max())
    if apart > 1e-5: sys.exit(f'the scores differ by {apart:.2g}')
    for name in sides:
        seconds = statistics.median(r[name][1] for r in rounds)
        print(f'{name:6} {seconds:6.2f} s for {len(texts)} texts, {len(texts) / seconds:6.1f} a second')
    ratio = statistics.median(r['theirs'][1] / r['ours'][1] for r in rounds)
    print(f'largest difference of a score {apart:.1g}')
    print(f'toxicity: ratio {ratio:.2f} goal {GOAL:g}')


if __name__ == '__main__': main()
