"Several ranks, as real processes: they compute what one rank with the whole batch computes, and survive a loss."
import json, os, signal, socket, subprocess, sys, tempfile
from functools import partial
from pathlib import Path
from unittest.mock import patch
import numpy as np, pytest, torch
from fastai.callback.core import Callback, CancelFitException
from fastai.data.core import DataLoaders
from torch.utils._python_dispatch import TorchDispatchMode
from llmbook.core import UserError
from llmbook.generate.text import generate_ids
from llmbook.model.config import ModelConfig
from llmbook.model.transformer import Transformer
from llmbook.tune.adapters import add_adapters
from test_train import grammar_data
from llmbook.plan.record import Plan
from llmbook.distributed.launch import RankFailed, launch
from llmbook.tokens.loaders import IGNORE
from llmbook.parallel.learner import is_sharded, parallel, whole_model
from llmbook.parallel import checkpoint as sharded_checkpoint
from llmbook.train.microbatch import MicroBatches
from llmbook.pretrain.run import lm_learner
from llmbook.parallel.checkpoint import ShardedCheckpoint, load_shards, save_shards
from llmbook.checkpoint.state import save_checkpoint
from llmbook.train.telemetry import Samples
from llmbook.distributed.world import all_sum, any_rank, mine, rank, wait_for_all, whole, world

has_gloo = torch.distributed.is_available() and torch.distributed.is_gloo_available()
pytestmark = pytest.mark.skipif(not has_gloo, reason='this torch has no gloo')
V, T, STEPS = 301, 16, 6 # 301 and 33 rows cannot be divided by the number of ranks
CONFIG = dict(vocab_size=V, n_layer=2, d_model=32, n_head=2, n_kv_head=1, d_ff=33, context=T)
PROGRAM = str(Path(__file__).parent/'programs'/'train_and_be_killed.py')


class Rows:
    "The same global batches for any number of ranks; each rank reads its rows. Targets are spread unevenly."
    def __init__(self, n, bs, seed):
        g = torch.Generator().manual_seed(seed)
        self.x = torch.randint(0, V, (n, bs, T), generator=g)
        self.y = torch.randint(0, V, (n, bs, T), generator=g)
        for i in range(bs): self.y[:, i, T - 2 * i:] = IGNORE
        self.start = 0
        self.mine = slice(bs * rank() // world(), bs * (rank() + 1) // world())
    def __len__(self): return len(self.x)
    def seek(self, i): self.start = i % len(self)
    def __iter__(self):
        for x, y in zip(self.x[self.start:], self.y[self.start:]): yield x[self.mine], y[self.mine]


class Record(Callback):
    order, run_valid = 60, False
    def before_fit(self):
        self.norms = []
        self.seen = []
    def after_step(self): self.norms.append(float(self.learn.clip_grad.grad_norm))
    def after_batch(self): self.seen.append(float(self.loss.detach()))


class EndAfter(Callback):
    order, run_valid = 90, False
    def __init__(self, n): self.n = n
    def after_batch(self):
        if self.train_iter == self.n: raise CancelFitException


class Told(Callback):
    "Sends SIGTERM to one rank; the ranks agree on it at step 5."
    order, run_valid = 5, False
    def before_fit(self): self.learn.checkpoint.look = 5
    def after_batch(self):
        if self.train_iter == 4 and rank() == 1: os.kill(os.getpid(), signal.SIGTERM)


class Poison(Callback):
    "Makes one rank's gradient NaN in one step."
    order = 7
    def after_loss(self):
        if not self.training or self.train_iter != 3 or rank() != world() - 1: return
        self.learn.loss_grad = self.loss_grad * float('nan')


def learner(kind=None, tied=True, cbs=(), steps=STEPS, **kwargs):
    dls = DataLoaders(Rows(steps, 8, 1), Rows(3, 8, 2), device='cpu')
    kwargs = dict(precision='fp32', path=Path(tempfile.mkdtemp())) | kwargs # a bad batch is kept in the path
    config = ModelConfig(**CONFIG, tie_embeddings=tied)
    learn = lm_learner(dls, config, lr=1e-2, seed=3, chunk=20, cbs=[Record(), *cbs], **kwargs)
    return parallel(learn, kind) if kind else learn


def whole_weights(learn): return {name: whole(p.detach()).clone() for name, p in learn.model.named_parameters()}
def own_weights(learn): return {name: mine(p.detach()).clone() for name, p in learn.model.named_parameters()}


def fit(learn):
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    return learn


def trained(*args, **kwargs):
    "Return a trained Learner, and its losses, norms, validation and weights."
    learn = fit(learner(*args, **kwargs))
    return learn, dict(
        losses=learn.record.seen,
        norms=learn.record.norms,
        valid=list(learn.recorder.values[-1])[1:],
        skipped=learn.clip_grad.skipped,
        weights=whole_weights(learn))


def all_arms():
    "Return the trainings that are compared: {name: (kind, arguments of `arm`)}."
    of_both = {
        'muon-1': dict(muon=True, accumulate=1),
        'muon-2': dict(muon=True, accumulate=2),
        'adamw-1': dict(muon=False, accumulate=1),
        'adamw-2': dict(muon=False, accumulate=2),
        'untied': dict(tied=False),
        'bf16': dict(precision='bf16'),
        'poisoned': dict(poison=True),
    }
    res = {}
    for kind in ('ddp', 'fsdp'):
        for name, options in of_both.items(): res[f'{kind}-{name}'] = (kind, options)
    res['ddp-sliced'] = ('ddp', dict(slices=2, accumulate=2))
    res['fsdp-sliced'] = ('fsdp', dict(slices=2, accumulate=1))
    return res

ARMS = all_arms()


def arm(kind, kwargs):
    kwargs = dict(kwargs)
    cbs = []
    if kwargs.pop('poison', False): cbs.append(Poison())
    slices = kwargs.pop('slices', None)
    if slices: cbs.append(MicroBatches(slices))
    return trained(kind, cbs=cbs, **kwargs)


class Largest(TorchDispatchMode):
    "The largest number of rows of logits that any operation returns."
    most = 0
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(t, torch.Tensor) and t.shape[-1:] == (V,): self.most = max(self.most, t.numel() // V)
        return out


def stopped_and_resumed(kind, folder):
    "Return whether a run that ended after four steps, saved at three and was resumed, equals one of six steps."
    def run(name, *cbs):
        checkpoint = ShardedCheckpoint(folder/f'{kind}-{name}', every=3, final=False)
        learn = fit(learner(kind, cbs=[checkpoint, *cbs]))
        return own_weights(learn), learn
    never_stopped, _ = run('whole')
    try: run('told', Told())
    except SystemExit as e: code = e.code
    told, learn = run('told')
    assert code == 143
    assert learn.checkpoint.resumed == 5, 'both ranks stop at the next agreement after rank 1 was told, and save'
    for k, w in told.items(): assert torch.equal(never_stopped[k], w), k
    run('cut', EndAfter(4))
    resumed, learn = run('cut')
    assert learn.checkpoint.resumed == 3
    assert len(learn.record.seen) == 6, 'the three of before the cut come back with the checkpoint'
    differ = [k for k, w in resumed.items() if not torch.equal(never_stopped[k], w)]
    return not any_rank(len(differ) > 0)


def opened(kind, path, save_to=None):
    "Return the weights after training on from a checkpoint that another number of ranks wrote."
    learn = learner(kind)
    learn.create_opt()
    assert load_shards(path, learn.model, learn.opt)['step'] == STEPS
    if save_to: save_shards(save_to, learn.model, learn.opt, dict(step=STEPS))
    learn.opt.set_hypers(lr=1e-2)
    return whole_weights(fit(learn))


def no_space_on_one(path):
    "Save where one rank cannot write its part; return the error, and which files are left."
    if rank() == 1:
        def full(*args, **kwargs): raise OSError(28, 'No space left on device')
        sharded_checkpoint.write_part = full
    learn = learner('fsdp')
    try: save_shards(path, learn.model, None, {})
    except OSError as e: return str(e), sorted(f.name for f in path.parent.iterdir())


def from_a_plan(data, out, kind):
    "Run in a folder as the command does, with samples; return the trained model's weights, and the history."
    from llmbook import cli
    from llmbook.tokens.tokenizer import load_tokenizer
    from llmbook.generate.text import generate
    from llmbook.pretrain import run
    config = ModelConfig(**CONFIG | dict(vocab_size=260)).to_dict()
    plan = Plan(1., 5, {}, 'tiny', config, 8, T, 12, 12 * 8 * T, 1e-2)
    def sample(model, prompts): return generate(model, load_tokenizer(data), list(prompts), 8)
    in_fp32 = partial(lm_learner, precision='fp32') # 'auto' takes bf16 where the CPU has units for it
    with patch.object(run, 'lm_learner', in_fp32), patch.object(cli, '_planned', lambda *args: plan):
        learn = run.pretrain(data, plan, out, sample=sample, checkpoint_seconds=.01, parallel=kind)
        cli.llmbook_pretrain(str(data), out=str(out), resume=True, parallel=kind)
    values = [list(v) for v in learn.recorder.values]
    return dict(weights=whole_weights(learn), values=values, samples=learn.samples.rows, rows=learn.telemetry.rows)


def added_by_resume(path):
    "Return the class of the checkpoint that a fit with `resume` adds, and its folders."
    learn = learner('ddp', path=path)
    with learn.no_bar(), learn.no_logging(): learn.fit(1, resume=True)
    return type(learn.checkpoint).__name__, sorted(f.name for f in (path/'checkpoints').glob('step-*'))


def same_on_all_ranks(weights):
    "Return whether the sum of this rank's weights is the mean of the sums of all ranks."
    own_sum = float(sum(p.double().sum() for p in weights.values()))
    total = all_sum(torch.tensor([own_sum], dtype=torch.float64))
    mean = float(total) / world()
    return abs(mean - own_sum) < 1e-9


def train_all_arms():
    res = {}
    for name, (kind, kwargs) in ARMS.items():
        learn, got = arm(kind, kwargs)
        got['model'] = type(learn.model).__name__
        got['same'] = same_on_all_ranks(got['weights'])
        res[name] = got
        if name == 'fsdp-muon-1': res |= memory_of(learn)
    return res


def memory_of(learn):
    "Return the bytes of this rank's weights, of all weights and of this rank's moments, and the most rows of logits."
    params = list(learn.model.parameters())
    own = sum(mine(p).nbytes for p in params)
    full = sum(p.nbytes for p in params)
    moments = 0
    for state in learn.opt.opt.state.values():
        moments += sum(t.nbytes for t in state.values() if t.ndim)
    with Largest() as seen: fit(learn)
    return {'held': (own, full), 'moments': moments, 'rows of logits': seen.most}


def everything(folder):
    "Do all that two ranks have to show, in one start of processes."
    res = train_all_arms()
    def writes(model, prompts):
        ids = [generate_ids(model, [[5, 6]], 6, temperature=0, stop=None) for _ in prompts]
        return [str(i) for i in ids]
    learn, _ = trained('fsdp', precision='bf16', cbs=[Samples(writes, ['x'])])
    res['samples in half'] = learn.samples.rows
    for kind in ('ddp', 'fsdp'):
        res[f'{kind} resumed'] = stopped_and_resumed(kind, folder)
        res[f'{kind} from one'] = opened(kind, folder/'by-one', folder/f'by-two-{kind}')
        res[f'{kind} planned'] = from_a_plan(folder/'data', folder/f'run-{kind}', kind)
    res['added'] = added_by_resume(folder/'added')
    res['no space'] = no_space_on_one(folder/'full'/'c') # last: its disk stays full
    return res


REFERENCES = {}

def reference(name):
    "Return what one rank gives with the whole batch."
    _, kwargs = ARMS[name]
    key = str(kwargs)
    if key not in REFERENCES: _, REFERENCES[key] = arm(None, kwargs)
    return REFERENCES[key]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp('shards')
    (path/'data').mkdir()
    grammar_data(path/'data')
    learn, _ = trained()
    save_checkpoint(path/'by-one', learn.model, learn.opt, dict(step=STEPS))
    return path


@pytest.fixture(scope='module')
def two(folder): return launch(everything, 2, folder, device='cpu')


@pytest.mark.parametrize('name', ARMS)
def test_two_ranks_equal_one_with_the_whole_batch(two, name):
    got = two[name]
    want = reference(name)
    loose = 20 if 'bf16' in name else 1 # numbers of eight bits, added in another order
    def close(key, **tolerance):
        tolerance = {k: v * loose for k, v in tolerance.items()}
        assert np.allclose(got[key], want[key], equal_nan=key == 'norms', **tolerance), (key, got[key], want[key])
    close('losses', atol=2e-4)
    close('norms', rtol=2e-3)
    close('valid', rtol=1e-4) # validation loss and perplexity are those of all rows
    skipped = 'poisoned' in name
    assert want['skipped'] == skipped
    assert got['skipped'] == skipped
    for k, w in want['weights'].items():
        assert torch.allclose(got['weights'][k], w, atol=2e-3 * loose), k
    assert got['same'], 'ranks differ'
    assert got['model'] in ('Transformer', 'FSDPTransformer'), 'the engine is around the model only while it runs'


def test_a_rank_of_fsdp_holds_half_and_never_all_logits(two):
    own, full = two['held']
    assert own < .53 * full
    assert two['moments'] < 2 * own
    text = two['samples in half'][0]['text']
    assert len(json.loads(text)[0]) == 6, 'blocks are collected in bfloat16, the embedding is not'
    assert two['rows of logits'] < 4 * T, 'logits of a chunk of 20 rows, not of the 64 positions of the rank'


@pytest.mark.parametrize('kind', ['ddp', 'fsdp'])
def test_resumed_on_as_many_ranks_bit_for_bit(two, kind): assert two[f'{kind} resumed'] is True


@pytest.mark.parametrize('kind', ['ddp', 'fsdp'])
def test_checkpoints_open_on_another_number_of_ranks(two, folder, kind):
    want = opened(None, folder/'by-one')
    for k, w in want.items(): assert torch.allclose(two[f'{kind} from one'][k], w, atol=2e-3), k
    by_two = folder/f'by-two-{kind}'
    saved_again = opened(None, by_two)
    for k, w in want.items():
        assert torch.equal(saved_again[k], w), f'{k} changed when two ranks saved it again'
    assert len(list(by_two.glob('model*'))) == 2


def test_a_full_disk_of_one_rank_is_known_to_all(two):
    said, left = two['no space']
    assert 'No space left' in said or 'another rank' in said
    assert left == [], 'nothing half written remains'


def test_a_fit_with_resume_adds_the_checkpoint_of_all_ranks(two):
    name, folders = two['added']
    assert name == 'ShardedCheckpoint'
    assert folders == [f'step-{STEPS:09}']


@pytest.mark.parametrize('kind', ['ddp', 'fsdp'])
def test_pretrain_and_its_command_on_two_ranks(two, folder, kind):
    from llmbook.model.hf import load_pretrained
    got = two[f'{kind} planned']
    out = folder/f'run-{kind}'
    alone = folder/f'alone-{kind}'
    want = from_a_plan(folder/'data', alone, None)
    def tokens(run): return [r['tokens'] for r in run['rows']]
    def samples(run): return [(r['step'], len(r['text']) > 0) for r in run['samples']]
    assert np.allclose(got['values'], want['values'], rtol=1e-3)
    assert tokens(got) == tokens(want), 'tokens of all ranks are counted'
    assert samples(got) == samples(want)
    model, _ = load_pretrained(out/'model')
    exported = dict(model.named_parameters())
    for k, w in want['weights'].items():
        assert torch.allclose(got['weights'][k], w, atol=5e-3), k
        assert torch.equal(exported[k], got['weights'][k]), k
    def files(path): return {f.name for f in path.iterdir()}
    assert files(out) == files(alone), 'the files of one run, written once'


def test_killed_under_torchrun_and_resumed(two, tmp_path):
    "After kill -9 of a rank torchrun stops the other one and starts both again; they resume and reach the same end."
    from safetensors.torch import load_file
    torchrun = [sys.executable, '-m', 'torch.distributed.run']
    options = ['--standalone', '--nproc-per-node', '2', '--max-restarts', '1']
    command = [*torchrun, *options, PROGRAM, str(tmp_path)]
    p = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert p.returncode == 0, p.stdout + p.stderr
    assert (tmp_path/'killed').exists()
    assert p.stdout.split().count('resumed') == 1
    assert 'resumed at 3' in p.stdout
    for k, w in load_file(tmp_path/'end').items():
        assert torch.equal(w, two['ddp-muon-1']['weights'][k]), k


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def test_the_rank_that_is_left_ends_by_itself(tmp_path):
    "Without any supervisor, as on two machines: rank 1 is killed, and rank 0 ends with an error that says so."
    env = dict(os.environ, WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=str(free_port()))
    def start(r):
        own = dict(env, RANK=str(r), LOCAL_RANK=str(r))
        return subprocess.Popen([sys.executable, PROGRAM, str(tmp_path)], env=own, stderr=subprocess.PIPE, text=True)
    first, second = start(0), start(1)
    _, said = first.communicate(timeout=60)
    second.communicate(timeout=60)
    assert second.returncode == -signal.SIGKILL
    assert first.returncode == 1
    assert 'rank 0 of 2 has lost another rank in step' in said
    assert 'resumes from its last checkpoint' in said


class Stuck(Callback):
    order, run_valid = 90, False
    def after_batch(self):
        if self.train_iter == 2 and rank() == 1: signal.pause()


def hangs(): fit(learner('ddp', cbs=[Stuck()]))


def test_a_rank_that_hangs_is_given_up_after_the_timeout():
    with pytest.raises(UserError, match='rank 0 of 2 has lost another rank'):
        launch(hangs, 2, device='cpu', timeout=2, grace=1)


def is_killed():
    if rank() == 1: os.kill(os.getpid(), signal.SIGKILL)
    wait_for_all()


def test_launch_says_which_rank_was_killed():
    with pytest.raises(RankFailed, match=r'rank 1 of 2 was killed \(SIGKILL\)'):
        launch(is_killed, 2, device='cpu')


def test_importing_and_a_lone_rank_touch_no_gpu():
    assert not torch.cuda.is_initialized()
    assert world() == 1
    learn = learner()
    assert parallel(learn, 'fsdp') is learn
    assert not is_sharded(learn.model)
    with pytest.raises(UserError, match='got .dp.'): parallel(learn, 'dp')


def test_loaders_that_give_every_rank_the_same_rows_are_refused(monkeypatch):
    from types import SimpleNamespace as Named
    from llmbook.parallel import learner as module
    monkeypatch.setattr(module, 'world', lambda: 2)
    learn = Named(cbs=[], dls=Named(train=Named(world=1)))
    with pytest.raises(UserError, match='loaders for 2 ranks'): module.parallel(learn)


def test_a_sharded_model_with_other_weights_is_refused(monkeypatch):
    "Their names would not be found in a plain model, which would be exported as it began."
    model = Transformer(ModelConfig(vocab_size=64, n_layer=1, d_model=32, n_head=2, context=16))
    monkeypatch.setattr('llmbook.parallel.learner.is_sharded', lambda model: True)
    model.reshard = lambda: None
    assert torch.equal(whole_model(model).embed.weight, model.embed.weight)
    add_adapters(model, r=2)
    with pytest.raises(UserError, match='that are lacking or unknown, such as blocks.0'): whole_model(model)
    with pytest.raises(UserError, match='expected a Transformer'): whole_model(torch.nn.Linear(2, 2))
