"Training: gradients against the naive way, real kills and resumes, a full disk, a golden curve, a known optimum."
import errno, json, os, signal, subprocess, sys, warnings
from pathlib import Path
import numpy as np, pytest, torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from llmbook.core import UserError, set_seed
from llmbook.tokens.loaders import lm_dls
from llmbook.tokens.shards import ShardWriter, write_manifest
from llmbook.tokens.tokenizer import save_tokenizer, tokenizer_fingerprint, train_tokenizer
from llmbook.model.config import ModelConfig
from llmbook.tiny import Grammar
from llmbook.checkpoint import tensor_files as tensorfiles
from llmbook.checkpoint.checkpoint import Checkpoint, check_checkpoint, load_checkpoint, save_checkpoint
from llmbook.train.loss import linear_cross_entropy, token_nats
from llmbook.tokens.loaders import IGNORE
from llmbook.train.optim import LMOptim, lm_opt
from llmbook.pretrain.run import lm_learner

HERE = Path(__file__).parent
CONFIG = dict(n_layer=2, d_model=32, n_head=2, n_kv_head=1, context=32)


def grammar_data(path):
    "Shards of a grammar whose entropy is known."
    tok, g = train_tokenizer(['a small text'], 300), Grammar()
    save_tokenizer(tok, path)
    def pack(split, n, seed):
        w = ShardWriter(path, split, tokens_per_shard=50_000)
        w.add(4 + np.asarray(g.sample(n, seed=seed)), n)
        return w.close()
    write_manifest(path, dict(train=pack('train', 80_000, 1), valid=pack('valid', 8_000, 2)), tok.get_vocab_size(), tokenizer_fingerprint(tok))
    return g.entropy()


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp('grammar')
    return path, grammar_data(path)


def learner(path, steps=20, cbs=None, **kwargs):
    dls = lm_dls(path, bs=8, seq_len=32, steps=steps, valid_batches=8, device='cpu')
    from llmbook.tokens.shards import read_manifest
    config = ModelConfig(vocab_size=read_manifest(path)['vocab_size'], **CONFIG)
    return lm_learner(dls, config, lr=kwargs.pop('lr', 1e-2), cbs=cbs, **kwargs)


@pytest.mark.parametrize('chunk', [1, 3, 7, 64])
@pytest.mark.parametrize('ignored', [0, 5, 14])
def test_chunked_loss_equals_the_naive_one(chunk, ignored):
    torch.manual_seed(chunk)
    h, w = torch.randn(14, 6, requires_grad=True), torch.randn(9, 6, requires_grad=True)
    y = torch.randint(0, 9, (14,)); y[:ignored] = IGNORE
    total, n = linear_cross_entropy(h, w, y, chunk)
    want = F.cross_entropy(h @ w.T, y, ignore_index=IGNORE, reduction='sum')
    assert n == 14 - ignored and torch.allclose(total, want, atol=1e-5)
    for a, b in zip(torch.autograd.grad(total, (h, w)), torch.autograd.grad(want, (h, w))): assert torch.allclose(a, b, atol=1e-5)
    assert torch.allclose(token_nats(h, w, y, chunk), F.cross_entropy(h @ w.T, y, ignore_index=IGNORE, reduction='none'), atol=1e-5)


def test_loss_of_a_frozen_head_or_body():
    h, w, y = torch.randn(5, 4), torch.randn(7, 4, requires_grad=True), torch.randint(0, 7, (5,))
    linear_cross_entropy(h, w, y)[0].backward()
    assert w.grad is not None
    h2 = h.clone().requires_grad_()
    linear_cross_entropy(h2, w.detach(), y)[0].backward()
    assert torch.allclose(h2.grad, torch.autograd.grad(F.cross_entropy(h2 @ w.T, y, reduction='sum'), h2)[0], atol=1e-5)


def test_optimiser_state_survives(tmp_path):
    set_seed(0)
    model = torch.nn.Sequential(torch.nn.Embedding(5, 4), torch.nn.Linear(4, 4))
    opt = lm_opt(model)([list(l.parameters()) for l in model], lr=.1)
    def step(m, o):
        m(torch.arange(5)).square().sum().backward(); o.step(); o.zero_grad()
    step(model, opt); opt.set_hypers(lr=slice(.01, .1), mom=.8)
    save_checkpoint(tmp_path/'c', model, opt, {})
    twin = torch.nn.Sequential(torch.nn.Embedding(5, 4), torch.nn.Linear(4, 4))
    topt = lm_opt(twin)([list(l.parameters()) for l in twin], lr=.5)
    load_checkpoint(tmp_path/'c', twin, topt)
    assert [h['lr'] for h in topt.hypers] == pytest.approx([.01, .1]) and topt.hypers[0]['mom'] == .8
    step(model, opt); step(twin, topt)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters()))


def test_learns_the_grammar(data):
    path, entropy = data
    learn = learner(path, steps=60)
    with learn.no_bar(), learn.no_logging(): learn.fit_wsd(4)
    loss = learn.recorder.values[-1][1]
    assert entropy - .03 < loss < entropy + .1, f'{loss:.4f} nats against the entropy {entropy:.4f}'


def test_golden_curve(data):
    "A change that claims no effect has none: 50 steps, to what another processor's rounding may change."
    learn = learner(data[0], steps=50)
    learn.telemetry.every = 5
    with learn.no_bar(), learn.no_logging(): learn.fit_wsd(1)
    got, golden = [r['loss'] for r in learn.telemetry.rows if 'loss' in r], HERE/'golden'/'loss.json'
    if os.environ.get('LLMBOOK_GOLDEN') == 'write': golden.write_text(json.dumps([round(v, 5) for v in got]) + '\n')
    assert got == pytest.approx(json.loads(golden.read_text()), rel=2e-3)


def test_accumulation_equals_the_big_batch(data):
    from llmbook.tokens.loaders import TokenLoader
    from fastai.data.core import DataLoaders
    big = learner(data[0], steps=6)
    x = [big.dls.train.batch(i) for i in range(6)]
    halves = [(a[i:i + 4], b[i:i + 4]) for a, b in x for i in (0, 4)]
    res = []
    for batches, k in ((x, 1), (halves, 2)):
        learn = learner(data[0], steps=6, accumulate=k)
        learn.dls = DataLoaders(batches, x[:1])
        with learn.no_bar(), learn.no_logging(): learn.fit(1)
        res.append(learn.model)
    assert all(torch.allclose(a, b, atol=2e-5) for a, b in zip(*(m.parameters() for m in res)))


@pytest.mark.parametrize('error', [OSError(errno.ENOSPC, 'No space left on device'), SafetensorError('No space left on device')], ids=['python', 'rust'])
def test_full_disk_is_a_warning_and_nothing_is_damaged(data, tmp_path, monkeypatch, error):
    learn = learner(data[0], steps=12, cbs=Checkpoint(tmp_path, every=4))
    real, calls = tensorfiles.write_safetensors, []
    def full(path, tensors):
        calls.append(path)
        if len(calls) == 6: raise error # the second file of the second save
        return real(path, tensors)
    monkeypatch.setattr(tensorfiles, 'write_safetensors', full)
    with learn.no_bar(), learn.no_logging(), warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter('always'); learn.fit_wsd(1)
    assert [str(w.message).split(' (')[0] for w in seen if 'No space left' in str(w.message)] == ['no checkpoint at step 8']
    assert learn.train_iter == 12 and sorted(f.name for f in tmp_path.glob('*step*')) == ['step-000000004', 'step-000000012'] # tried again; no temporary folder
    for f in tmp_path.glob('step-*'): check_checkpoint(f)


def test_too_little_space_is_known_before_a_save(data, tmp_path, monkeypatch):
    from types import SimpleNamespace
    learn = learner(data[0], steps=12, cbs=Checkpoint(tmp_path, every=4))
    monkeypatch.setattr('shutil.disk_usage', lambda p: SimpleNamespace(free=100_000))
    with learn.no_bar(), learn.no_logging(), pytest.warns(UserWarning, match='no checkpoint at step 8 .*of free disk'): learn.fit_wsd(1)
    assert not list(tmp_path.iterdir()) and learn.train_iter == 12


@pytest.mark.parametrize('harm', ['missing', 'truncated', 'flipped', 'no state'])
def test_damaged_checkpoints_are_named(data, tmp_path, harm):
    learn = learner(data[0], steps=8, cbs=Checkpoint(tmp_path, every=4))
    with learn.no_bar(), learn.no_logging(): learn.fit_wsd(1)
    newest = sorted(tmp_path.glob('step-*'))[-1]
    f = newest/('state.json' if harm == 'no state' else 'model.safetensors')
    if harm in ('missing', 'no state'): f.unlink()
    elif harm == 'truncated': f.write_bytes(f.read_bytes()[:-9])
    else: b = bytearray(f.read_bytes()); b[len(b) // 2] ^= 1; f.write_bytes(b)
    with pytest.raises(UserError, match=f.name): load_checkpoint(newest, learn.model)


def test_no_pickle_is_read():
    "Neither checkpoints nor exported models are opened with pickle."
    import llmbook
    for name in ('train/checkpoint.py', 'train/state.py', 'train/tensorfiles.py', 'model/hub.py'):
        text = (Path(llmbook.__file__).parent/name).read_text()
        assert 'torch.load' not in text and 'pickle.' not in text


def test_validation_weighs_tokens_not_batches(data):
    learn = learner(data[0], steps=4)
    loss = learn.validate()[0]
    nats, n = 0., 0
    with torch.no_grad():
        for x, y in learn.dls.valid:
            t = token_nats(learn.model(x), learn.model.head.weight, y); nats += t.sum().item(); n += y.numel()
    assert loss == pytest.approx(nats / n, rel=1e-5)


def test_frozen_groups_do_not_move(data):
    from llmbook.tune.finetune import layer_groups
    learn = learner(data[0], steps=4, splitter=layer_groups)
    learn.create_opt(); learn.freeze_to(-1)
    before = [p.detach().clone() for p in learn.model.parameters()]
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    moved = [not torch.equal(a, b) for a, b in zip(before, learn.model.parameters())]
    last = {id(p) for p in layer_groups(learn.model)[-1]}
    assert moved == [id(p) in last for p in learn.model.parameters()]
