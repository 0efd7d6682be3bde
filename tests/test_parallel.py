"Several ranks, as real processes: what they compute equals one rank with the whole batch, and what happens when one is lost."
import json, os, signal, subprocess, sys, time
from pathlib import Path
import numpy as np, pytest, torch
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from torch.utils._python_dispatch import TorchDispatchMode
from llmbook.core import UserError, set_seed
from llmbook.model.config import ModelConfig
from llmbook.model.transformer import Transformer
from llmbook.train.launch import RankFailed, launch
from llmbook.train.loss import IGNORE
from llmbook.train.parallel import is_sharded, parallel
from llmbook.train.pretrain import lm_learner
from llmbook.train.world import all_sum, any_rank, mine, rank, wait_for_all, whole, world

needs_gloo = pytest.mark.skipif(not torch.distributed.is_available() or not torch.distributed.is_gloo_available(), reason='this torch has no gloo')
pytestmark = needs_gloo
V, T, STEPS = 301, 16, 6 # 301 and 33 rows do not divide by the ranks
CONFIG = dict(vocab_size=V, n_layer=2, d_model=32, n_head=2, n_kv_head=1, d_ff=33, context=T)


class Rows:
    "The same global batches for any number of ranks; each rank reads its rows. Targets are spread unevenly."
    def __init__(self, n, bs, seed):
        g = torch.Generator().manual_seed(seed)
        self.x, self.y = (torch.randint(0, V, (n, bs, T), generator=g) for _ in 'xy')
        for i in range(bs): self.y[:, i, T - 2 * i:] = IGNORE
        self.mine = slice(bs * rank() // world(), bs * (rank() + 1) // world())
    def __len__(self): return len(self.x)
    def __iter__(self): return ((x[self.mine], y[self.mine]) for x, y in zip(self.x, self.y))


class Norms(Callback):
    order, run_valid = 60, False
    def before_fit(self): self.norms, self.seen = [], []
    def after_step(self): self.norms.append(float(self.learn.clip_grad.grad_norm))
    def after_batch(self): self.seen.append(float(self.loss))


class Poison(Callback):
    "One rank's gradient is no number in one step."
    order = 7
    def after_loss(self):
        if self.training and self.train_iter == 3 and rank() == world() - 1: self.learn.loss_grad = self.loss_grad * float('nan')


def learner(kind=None, tied=True, cbs=(), steps=STEPS, **kwargs):
    dls = DataLoaders(Rows(steps, 8, 1), Rows(3, 8, 2), device='cpu')
    learn = lm_learner(dls, ModelConfig(**CONFIG, tie_embeddings=tied), lr=1e-2, seed=3, precision='fp32', chunk=20, cbs=[Norms(), *cbs], **kwargs)
    return parallel(learn, kind) if kind else learn


def trained(*args, **kwargs):
    "What came out of a run: losses, norms, validation, weights as nested lists."
    learn = learner(*args, **kwargs)
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    return learn, dict(losses=learn.norms.seen, norms=learn.norms.norms, valid=list(learn.recorder.values[-1])[1:],
                       skipped=learn.clip_grad.skipped, weights={k: whole(p.detach()).clone() for k, p in learn.model.named_parameters()})


ARMS = {f'{kind}-{"muon" if muon else "adamw"}-{n}': (kind, dict(muon=muon, accumulate=n)) for kind in ('ddp', 'fsdp') for muon in (True, False) for n in (1, 2)}
ARMS |= {f'{kind}-untied': (kind, dict(tied=False)) for kind in ('ddp', 'fsdp')}
ARMS |= {f'{kind}-poisoned': (kind, dict(poison=True)) for kind in ('ddp', 'fsdp')}


def arm(kind, kwargs):
    kwargs = dict(kwargs)
    return trained(kind, cbs=[Poison()] if kwargs.pop('poison', False) else [], **kwargs)


class Largest(TorchDispatchMode):
    "The largest tensor that any operation gives."
    most = 0
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(t, torch.Tensor) and t.shape[-1:] == (V,): self.most = max(self.most, t.numel() // V)
        return out


def everything():
    "All that two ranks have to show, in one start of processes."
    res = {}
    for name, (kind, kwargs) in ARMS.items():
        learn, res[name] = arm(kind, kwargs)
        total = all_sum(torch.tensor([float(sum(p.sum() for p in res[name]['weights'].values()))]))
        same = float(sum(p.sum() for p in res[name]['weights'].values()))
        res[name] |= dict(plain=type(learn.model).__name__, same=abs(float(total) / world() - same) < 1e-4 * (1 + abs(same)))
        if name == 'fsdp-muon-1':
            res['held'] = sum(mine(p).nbytes for p in learn.model.parameters()), sum(p.nbytes for p in learn.model.parameters())
            with Largest() as seen, learn.no_bar(), learn.no_logging(): learn.fit(1)
            res['rows of logits'] = seen.most
    return res


@pytest.fixture(scope='module')
def two(): return launch(everything, 2, device='cpu')


@pytest.mark.parametrize('name', ARMS)
def test_two_ranks_equal_one_with_the_whole_batch(two, name):
    got, want = two[name], arm(None, ARMS[name][1])[1]
    assert np.allclose(got['losses'], want['losses'], atol=2e-4), (got['losses'], want['losses'])
    assert np.allclose(got['norms'], want['norms'], rtol=2e-3, equal_nan=True), (got['norms'], want['norms'])
    assert np.allclose(got['valid'], want['valid'], rtol=1e-4), 'validation loss and perplexity are those of all rows'
    for k, w in want['weights'].items(): assert torch.allclose(got['weights'][k], w, atol=2e-3), k
    assert got['same'], 'ranks differ'
    assert got['plain'] in ('Transformer', 'FSDPTransformer')
