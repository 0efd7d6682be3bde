"""Muon and AdamW together against torch's own two optimisers on the same parameters, step by step in turns.

The time of Muon's matrix products alone is printed beside them."""
import statistics, sys, time
import torch
from llmbook.core import set_seed
from llmbook.model.config import ModelConfig, get_config
from llmbook.model.transformer import Transformer
from llmbook.train.optim import lm_opt

ROUNDS = {'12M': 21, '125M': 5}
SIZES = {'12M': ModelConfig(vocab_size=4096, n_layer=6, d_model=384, n_head=6, n_kv_head=2, context=256),
         '125M': get_config('gpt2')}


def our_optimiser(config):
    "Make our optimiser for a model with gradients."
    set_seed(0)
    model = Transformer(config)
    for p in model.parameters(): p.grad = torch.randn_like(p)
    return lm_opt(model)(list(model.parameters()), lr=1e-3)


def of_kind(groups, kind): return [g for g in groups if g['kind'] == kind]


def muon_matrices(groups): return [p for g in of_kind(groups, 'muon') for p in g['params']]


def sides(config):
    "Return a step of ours, one of torch's on a model of its own with the same gradients, and Muon's matrices."
    ours = our_optimiser(config)
    groups = our_optimiser(config).opt.param_groups
    matrices = muon_matrices(groups)
    rest = [dict(params=g['params'], weight_decay=g['weight_decay']) for g in of_kind(groups, 'adamw')]
    muon = torch.optim.Muon(matrices, lr=1e-3, weight_decay=.1, adjust_lr_fn='match_rms_adamw')
    adamw = torch.optim.AdamW(rest, lr=1e-3, betas=(.9, .95), fused=True)
    def theirs():
        muon.step()
        adamw.step()
    return ours.step, theirs, matrices


def products(matrices):
    "Return the seconds of Newton-Schulz's matrix products alone, at the speed at which this machine multiplies matrices."
    flops = 0
    for p in matrices:
        low, high = sorted(p.shape)
        flops += 5 * 2 * low ** 2 * (2 * high + low)
    a = torch.randn(1024, 1024)
    fastest = min(clock(lambda: a @ a) for _ in range(20))
    return flops / (2 * 1024 ** 3 / fastest)


def clock(f):
    start = time.perf_counter()
    f()
    return time.perf_counter() - start


if __name__ == '__main__':
    for name in sys.argv[1:] or SIZES:
        ours, theirs, matrices = sides(SIZES[name])
        ours()
        theirs()
        times = [(clock(ours), clock(theirs)) for _ in range(ROUNDS[name])]
        our_ms, their_ms = (1e3 * statistics.median(t) for t in zip(*times))
        print(f'{name}: ours {our_ms:.0f} ms a step, torch {their_ms:.0f} ms, '
              f'the matrix products alone {products(matrices) * 1e3:.0f} ms')
        ratio = statistics.median(b / a for a, b in times)
        print(f'optim_{name}: ratio {ratio:.2f} goal 1')
