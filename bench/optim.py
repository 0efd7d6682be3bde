"A step of Muon and AdamW together against torch's own two optimisers on the same parameters, in turns; and how much of it is Muon's matrix products."
import statistics, sys, time
import torch
from llmbook.core import set_seed
from llmbook.model.config import ModelConfig, get_config
from llmbook.model.transformer import Transformer
from llmbook.train.optim import lm_opt, newton_schulz

ROUNDS = {'12M': 21, '125M': 5}
SIZES = {'12M': ModelConfig(vocab_size=4096, n_layer=6, d_model=384, n_head=6, n_kv_head=2, context=256), '125M': get_config('gpt2')}


def sides(config):
    "A step of ours, and one of torch's, on models of their own with the same gradients."
    res = []
    for ours in (True, False):
        set_seed(0)
        m = Transformer(config)
        for p in m.parameters(): p.grad = torch.randn_like(p)
        opt = lm_opt(m)(list(m.parameters()), lr=1e-3)
        if ours: res.append(opt.step); continue
        groups = opt.opt.param_groups
        muon = torch.optim.Muon([p for g in groups if g['kind'] == 'muon' for p in g['params']], lr=1e-3, weight_decay=.1, adjust_lr_fn='match_rms_adamw')
        adam = torch.optim.AdamW([dict(params=g['params'], weight_decay=g['weight_decay']) for g in groups if g['kind'] == 'adamw'],
                                 lr=1e-3, betas=(.9, .95), fused=True)
        res.append(lambda: (muon.step(), adam.step()))
    return *res, [p for g in groups if g['kind'] == 'muon' for p in g['params']]


def products(ps):
    "Seconds for the matrix products of Newton and Schulz alone, as fast as this machine multiplies matrices."
    flops = sum(5 * 2 * min(p.shape) ** 2 * (2 * max(p.shape) + min(p.shape)) for p in ps)
    a = torch.randn(1024, 1024)
    return flops / (2 * 1024 ** 3 / min(clock(lambda: a @ a) for _ in range(20)))


def clock(f):
    start = time.perf_counter(); f()
    return time.perf_counter() - start


if __name__ == '__main__':
    for name in sys.argv[1:] or SIZES:
        mine, theirs, ps = sides(SIZES[name])
        mine(), theirs()
        times = [(clock(mine), clock(theirs)) for _ in range(ROUNDS[name])]
        a, b = (statistics.median(t) for t in zip(*times))
        print(f'{name}: ours {a * 1e3:.0f} ms a step, torch {b * 1e3:.0f} ms, the matrix products alone {products(ps) * 1e3:.0f} ms')
        print(f'optim_{name}: ratio {statistics.median(y / x for x, y in times):.2f} goal 1')
