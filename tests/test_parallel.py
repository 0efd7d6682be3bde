"Several ranks, as real processes: what they compute equals one rank with the whole batch, and what happens when one is lost."
import json, os, signal, subprocess, sys, tempfile
from pathlib import Path
import numpy as np, pytest, torch
from fastai.callback.core import Callback, CancelFitException
from fastai.data.core import DataLoaders
from torch.utils._python_dispatch import TorchDispatchMode
from llmbook.core import UserError
from llmbook.generate.text import generate_ids
from llmbook.model.config import ModelConfig
from test_train import grammar_data
from llmbook.plan.plan import Plan
from llmbook.distributed.launch import RankFailed, launch
from llmbook.tokens.loaders import IGNORE
from llmbook.parallel.learner import is_sharded, parallel
from llmbook.parallel import checkpoint as shards
from llmbook.train.microbatch import MicroBatches
from llmbook.pretrain.run import lm_learner
from llmbook.parallel.checkpoint import ShardedCheckpoint, load_shards, save_shards
from llmbook.checkpoint.state import save_checkpoint
from llmbook.train.telemetry import Samples
from llmbook.distributed.world import all_sum, any_rank, join, mine, rank, wait_for_all, whole, world

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
        self.start, self.mine = 0, slice(bs * rank() // world(), bs * (rank() + 1) // world())
    def __len__(self): return len(self.x)
    def seek(self, i): self.start = i % len(self)
    def __iter__(self): return ((x[self.mine], y[self.mine]) for x, y in zip(self.x[self.start:], self.y[self.start:]))


class Record(Callback):
    order, run_valid = 60, False
    def before_fit(self): self.norms, self.seen = [], []
    def after_step(self): self.norms.append(float(self.learn.clip_grad.grad_norm))
    def after_batch(self): self.seen.append(float(self.loss.detach()))


class EndAfter(Callback):
    order, run_valid = 90, False
    def __init__(self, n): self.n = n
    def after_batch(self):
        if self.train_iter == self.n: raise CancelFitException


class Told(Callback):
    "SIGTERM to one rank; the ranks agree on it at step 5."
    order, run_valid = 5, False
    def before_fit(self): self.learn.checkpoint.look = 5
    def after_batch(self):
        if self.train_iter == 4 and rank() == 1: os.kill(os.getpid(), signal.SIGTERM)


class Poison(Callback):
    "One rank's gradient is no number in one step."
    order = 7
    def after_loss(self):
        if self.training and self.train_iter == 3 and rank() == world() - 1: self.learn.loss_grad = self.loss_grad * float('nan')


def learner(kind=None, tied=True, cbs=(), steps=STEPS, **kwargs):
    dls = DataLoaders(Rows(steps, 8, 1), Rows(3, 8, 2), device='cpu')
    kwargs.setdefault('path', Path(tempfile.mkdtemp())) # where a bad batch is kept
    learn = lm_learner(dls, ModelConfig(**CONFIG, tie_embeddings=tied), lr=1e-2, seed=3, precision=kwargs.pop('precision', 'fp32'), chunk=20, cbs=[Record(), *cbs], **kwargs)
    return parallel(learn, kind) if kind else learn


def trained(*args, **kwargs):
    "What came out of a run: losses, norms, validation, weights as nested lists."
    learn = learner(*args, **kwargs)
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    return learn, dict(losses=learn.record.seen, norms=learn.record.norms, valid=list(learn.recorder.values[-1])[1:],
                       skipped=learn.clip_grad.skipped, weights={k: whole(p.detach()).clone() for k, p in learn.model.named_parameters()})


ARMS = {f'{kind}-{"muon" if muon else "adamw"}-{n}': (kind, dict(muon=muon, accumulate=n)) for kind in ('ddp', 'fsdp') for muon in (True, False) for n in (1, 2)}
ARMS |= {f'{kind}-untied': (kind, dict(tied=False)) for kind in ('ddp', 'fsdp')}
ARMS |= {f'{kind}-bf16': (kind, dict(precision='bf16')) for kind in ('ddp', 'fsdp')}
ARMS |= {f'{kind}-sliced': (kind, dict(slices=2, accumulate=n)) for kind, n in (('ddp', 2), ('fsdp', 1))}
ARMS |= {f'{kind}-poisoned': (kind, dict(poison=True)) for kind in ('ddp', 'fsdp')}


def arm(kind, kwargs):
    kwargs = dict(kwargs)
    cbs = ([Poison()] if kwargs.pop('poison', False) else []) + ([MicroBatches(n)] if (n := kwargs.pop('slices', None)) else [])
    return trained(kind, cbs=cbs, **kwargs)


class Largest(TorchDispatchMode):
    "The largest tensor that any operation gives."
    most = 0
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(t, torch.Tensor) and t.shape[-1:] == (V,): self.most = max(self.most, t.numel() // V)
        return out


def stopped_and_resumed(kind, folder):
    "Weights of a run of six steps, and of one that ended after four, saved at three, and was started again."
    def weights(path, **kwargs):
        learn = learner(kind, cbs=[ShardedCheckpoint(path, every=3, final=False), *kwargs.pop('more', [])])
        with learn.no_bar(), learn.no_logging(): learn.fit(1)
        return {k: mine(p.detach()).clone() for k, p in learn.model.named_parameters()}, learn
    whole_run, _ = weights(folder/f'{kind}-whole')
    try: weights(folder/f'{kind}-told', more=[Told()])
    except SystemExit as e: code = e.code
    told, learn = weights(folder/f'{kind}-told')
    assert code == 143 and learn.checkpoint.resumed == 5, 'both ranks stop at the next agreement after rank 1 was told, and save'
    assert all(torch.equal(whole_run[k], w) for k, w in told.items())
    weights(folder/f'{kind}-cut', more=[EndAfter(4)])
    resumed, learn = weights(folder/f'{kind}-cut')
    assert learn.checkpoint.resumed == 3 and len(learn.record.seen) == 3
    return not any_rank(any(not torch.equal(whole_run[k], w) for k, w in resumed.items()))


def opened(kind, path, save_to=None):
    "Weights after three more steps from a checkpoint that was written by another number of ranks."
    learn = learner(kind)
    learn.create_opt()
    assert load_shards(path, learn.model, learn.opt)['step'] == STEPS
    if save_to: save_shards(save_to, learn.model, learn.opt, dict(step=STEPS))
    learn.opt.set_hypers(lr=1e-2)
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    return {k: whole(p.detach()).clone() for k, p in learn.model.named_parameters()}


def no_room(path):
    "One rank cannot write its part."
    if rank() == 1:
        def full(*args, **kwargs): raise OSError(28, 'No space left on device')
        shards.write_part = full
    learn = learner('fsdp')
    try: save_shards(path, learn.model, None, {})
    except OSError as e: return str(e), sorted(f.name for f in path.parent.iterdir())


def from_a_plan(data, out, kind):
    "A run in a folder as the command makes it, with samples; the model that was written, and the history."
    from llmbook import cli
    from llmbook.tokens.tokenizer import load_tokenizer
    from llmbook.generate.text import generate
    from llmbook.pretrain.run import pretrain
    plan = Plan(1., 5, {}, 'tiny', ModelConfig(**CONFIG | dict(vocab_size=260)).to_dict(), 8, T, 12, 12 * 8 * T, 1e-2)
    learn = pretrain(data, plan, out, sample=lambda m, ps: generate(m, load_tokenizer(data), list(ps), 8), checkpoint_seconds=.01, parallel=kind)
    cli._planned = lambda *args: plan
    cli.llmbook_pretrain(str(data), out=str(out), resume=True, parallel=kind)
    return dict(weights={k: whole(p.detach()).clone() for k, p in learn.model.named_parameters()}, values=[list(v) for v in learn.recorder.values],
                samples=learn.samples.rows, rows=learn.telemetry.rows)


def everything(folder):
    "All that two ranks have to show, in one start of processes."
    res = {}
    for name, (kind, kwargs) in ARMS.items():
        learn, res[name] = arm(kind, kwargs)
        mine_sum = float(sum(p.double().sum() for p in res[name]['weights'].values()))
        total = float(all_sum(torch.tensor([mine_sum], dtype=torch.float64)))
        res[name] |= dict(model=type(learn.model).__name__, same=abs(total / world() - mine_sum) < 1e-9)
        if name == 'fsdp-muon-1':
            res['held'] = sum(mine(p).nbytes for p in learn.model.parameters()), sum(p.nbytes for p in learn.model.parameters())
            res['moments'] = sum(t.nbytes for s in learn.opt.opt.state.values() for t in s.values() if t.ndim)
            with Largest() as seen, learn.no_bar(), learn.no_logging(): learn.fit(1)
            res['rows of logits'] = seen.most
    writes = lambda m, ps: [str(generate_ids(m, [[5, 6]], 6, temperature=0, stop=None)) for _ in ps]
    res['samples in half'] = trained('fsdp', precision='bf16', cbs=[Samples(writes, ['x'])])[0].samples.rows
    for kind in ('ddp', 'fsdp'):
        res[f'{kind} resumed'] = stopped_and_resumed(kind, folder)
        res[f'{kind} from one'] = opened(kind, folder/'by-one', folder/f'by-two-{kind}')
        res[f'{kind} planned'] = from_a_plan(folder/'data', folder/f'run-{kind}', kind)
    res['no room'] = no_room(folder/'full'/'c')
    return res


def reference(name):
    key = str(ARMS[name][1])
    if key not in REFERENCES: REFERENCES[key] = arm(None, ARMS[name][1])[1]
    return REFERENCES[key]

REFERENCES = {}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp('shards')
    (path/'data').mkdir(); grammar_data(path/'data')
    learn, _ = trained()
    save_checkpoint(path/'by-one', learn.model, learn.opt, dict(step=STEPS))
    return path


@pytest.fixture(scope='module')
def two(folder): return launch(everything, 2, folder, device='cpu')


@pytest.mark.parametrize('name', ARMS)
def test_two_ranks_equal_one_with_the_whole_batch(two, name):
    got, want = two[name], reference(name)
    loose = 20 if 'bf16' in name else 1 # numbers of eight bits, added in another order
    assert np.allclose(got['losses'], want['losses'], atol=2e-4 * loose), (got['losses'], want['losses'])
    assert np.allclose(got['norms'], want['norms'], rtol=2e-3 * loose, equal_nan=True), (got['norms'], want['norms'])
    assert np.allclose(got['valid'], want['valid'], rtol=1e-4 * loose), 'validation loss and perplexity are those of all rows'
    assert got['skipped'] == want['skipped'] == ('poisoned' in name)
    for k, w in want['weights'].items(): assert torch.allclose(got['weights'][k], w, atol=2e-3 * loose), k
    assert got['same'], 'ranks differ'
    assert got['model'] in ('Transformer', 'FSDPTransformer'), 'the engine is around the model only while it runs'


def test_a_rank_of_fsdp_holds_half_and_never_all_logits(two):
    mine, all_of_it = two['held']
    assert mine < .53 * all_of_it and two['moments'] < 2 * mine
    assert len(json.loads(two['samples in half'][0]['text'])[0]) == 6, 'blocks are collected in bfloat16, the embedding is not'
    assert two['rows of logits'] < 4 * T, 'logits of a chunk of 20 rows, not of the 64 positions of the rank'


@pytest.mark.parametrize('kind', ['ddp', 'fsdp'])
def test_resumed_on_as_many_ranks_bit_for_bit(two, kind): assert two[f'{kind} resumed'] is True


@pytest.mark.parametrize('kind', ['ddp', 'fsdp'])
def test_checkpoints_open_on_another_number_of_ranks(two, folder, kind):
    want = opened(None, folder/'by-one')
    for k, w in want.items(): assert torch.allclose(two[f'{kind} from one'][k], w, atol=2e-3), k
    same, there = opened(None, folder/f'by-two-{kind}'), sorted(f.name for f in (folder/f'by-two-{kind}').glob('model*'))
    for k, w in want.items(): assert torch.equal(same[k], w), f'{k}: what one rank saved and two saved again is what one opens'
    assert len(there) == 2


def test_a_full_disk_of_one_rank_is_known_to_all(two):
    said, left = two['no room']
    assert 'No space left' in said or 'another rank' in said
    assert left == [], 'nothing half written remains'


@pytest.mark.parametrize('kind', ['ddp', 'fsdp'])
def test_pretrain_and_its_command_on_two_ranks(two, folder, kind):
    from llmbook.model.hf import load_pretrained
    got, out = two[f'{kind} planned'], folder/f'run-{kind}'
    want = from_a_plan(folder/'data', folder/f'alone-{kind}', None)
    assert np.allclose(got['values'], want['values'], rtol=1e-3)
    assert [r['tokens'] for r in got['rows']] == [r['tokens'] for r in want['rows']], 'tokens of all ranks are counted'
    assert [(r['step'], len(r['text']) > 0) for r in got['samples']] == [(r['step'], len(r['text']) > 0) for r in want['samples']]
    exported = dict(load_pretrained(out/'model')[0].named_parameters())
    for k, w in want['weights'].items():
        assert torch.allclose(got['weights'][k], w, atol=5e-3), k
        assert torch.equal(exported[k], got['weights'][k]), k
    assert {f.name for f in out.iterdir()} == {f.name for f in (folder/f'alone-{kind}').iterdir()}, 'the files of one run, written once'


SCRIPT = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_parallel import Callback, ShardedCheckpoint, learner, rank, torch, whole, join
join('cpu', timeout=30)
out = Path({out!r})
class Killed(Callback):
    order, run_valid = 90, False
    def after_batch(self):
        if self.train_iter == 4 and rank() == 1 and not (out/'killed').exists():
            (out/'killed').touch(); os.kill(os.getpid(), signal.SIGKILL)
learn = learner('ddp', cbs=[ShardedCheckpoint(out/'c', every=3, final=False, blocking=True), Killed()])
with learn.no_bar(), learn.no_logging(): learn.fit(1)
if rank() == 0:
    print('resumed at', learn.checkpoint.resumed)
    from safetensors.torch import save_file
    save_file({{k: p.detach().clone() for k, p in learn.model.named_parameters()}}, out/'end')
"""


def script(out):
    (out/'train.py').write_text(SCRIPT.format(tests=str(Path(__file__).parent), out=str(out)))
    return str(out/'train.py')


def test_killed_under_torchrun_and_resumed(two, tmp_path):
    "kill -9 of a rank: torchrun stops the other one, starts both again, and they go on from the checkpoint to the same end."
    from safetensors.torch import load_file
    p = subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2', '--max-restarts', '1', script(tmp_path)],
                       capture_output=True, text=True, timeout=120)
    assert p.returncode == 0, p.stdout + p.stderr
    assert (tmp_path/'killed').exists() and p.stdout.split().count('resumed') == 1 and 'resumed at 3' in p.stdout
    for k, w in load_file(tmp_path/'end').items(): assert torch.equal(w, two['ddp-muon-1']['weights'][k]), k


def test_the_rank_that_is_left_ends_by_itself(tmp_path):
    "Without any supervisor, as on two machines: rank 1 is killed, and rank 0 ends with an error that says so."
    from socket import socket
    with socket() as s: s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]
    env = dict(os.environ, WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    ps = [subprocess.Popen([sys.executable, script(tmp_path)], env=dict(env, RANK=str(r), LOCAL_RANK=str(r)), stderr=subprocess.PIPE, text=True) for r in (0, 1)]
    said = ps[0].communicate(timeout=60)[1]
    ps[1].communicate(timeout=60)
    assert ps[1].returncode == -signal.SIGKILL and ps[0].returncode == 1
    assert 'rank 0 of 2 has lost another rank in step' in said and 'goes on from its last checkpoint' in said


def stuck():
    learn = learner('ddp', cbs=[Stuck()])
    with learn.no_bar(), learn.no_logging(): learn.fit(1)


class Stuck(Callback):
    order, run_valid = 90, False
    def after_batch(self):
        if self.train_iter == 2 and rank() == 1: signal.pause()


def test_a_rank_that_hangs_is_given_up_after_the_timeout():
    with pytest.raises(UserError, match='rank 0 of 2 has lost another rank'): launch(stuck, 2, device='cpu', timeout=2, grace=1)


def killed():
    if rank() == 1: os.kill(os.getpid(), signal.SIGKILL)
    wait_for_all()


def test_launch_says_which_rank_was_killed():
    with pytest.raises(RankFailed, match=r'rank 1 of 2 was killed \(SIGKILL\)'): launch(killed, 2, device='cpu')


def test_importing_and_a_lone_rank_touch_no_gpu():
    assert not torch.cuda.is_initialized() and world() == 1
    learn = learner()
    assert parallel(learn, 'fsdp') is learn and not is_sharded(learn.model)
    with pytest.raises(UserError, match='got .dp.'): parallel(learn, 'dp')


def test_loaders_that_give_every_rank_the_same_rows_are_refused(monkeypatch):
    from llmbook.parallel import learner as room
    monkeypatch.setattr(room, 'world', lambda: 2)
    learn = type('L', (), dict(cbs=[], dls=type('D', (), dict(train=type('T', (), dict(world=1))))))
    with pytest.raises(UserError, match='loaders for 2 ranks'): room.parallel(learn)
