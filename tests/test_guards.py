"Guards: bad batches are left out and kept, memory that is out halves the slice, nothing shifts, a run with all of it resumes bit-equal."
import json, warnings
import numpy as np, pytest, torch
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from safetensors.torch import load_file
from llmbook.core import UserError, set_seed
from llmbook.model.config import ModelConfig
from llmbook.model.transformer import Transformer
from llmbook.train.loss import LMLoss
from llmbook.tokens.loaders import IGNORE
from llmbook.train.microbatch import MicroBatches, out_of_memory, slices
from llmbook.train.optim import lm_opt
from llmbook.train.precision import Precision
from llmbook.train.accumulate import Accumulate, ClipGrad, keep_bad
from llmbook.checkpoint.tensor_files import TensorFolder

CONFIG = ModelConfig(vocab_size=64, n_layer=2, d_model=32, n_head=2, n_kv_head=1, context=32)


def batches(n=6, rows=8, seed=0):
    "Rows of 32 with different numbers of targets."
    g = torch.Generator().manual_seed(seed)
    res = []
    for b in torch.randint(0, 64, (n, rows, 33), generator=g):
        x, y = b[:, :-1], b[:, 1:].clone()
        for i in range(rows): y[i, 4 + 5 * i % 28:] = IGNORE
        res.append((x, y))
    return res


class NaNHere(Callback):
    "Makes the loss of some batches not a number, as a broken document would."
    order = -5
    def __init__(self, *at): self.at = at
    def after_loss(self):
        if self.training and self.train_iter in self.at: self.learn.loss_grad = self.loss_grad * float('nan'); self.learn.loss = self.loss_grad.clone()


def learner(path, *cbs, data=None, lr=1e-3, muon=True, dropout=0.):
    set_seed(0)
    model, data = Transformer(CONFIG), data or batches()
    if dropout: model.norm = torch.nn.Sequential(model.norm, torch.nn.Dropout(dropout))
    return Learner(DataLoaders(data, data[:1]), model, LMLoss(model.head), opt_func=lm_opt(model, muon=muon), lr=lr, cbs=cbs, path=path)


def fit(learn, n=1):
    with learn.no_bar(), learn.no_logging(): learn.fit(n)
    return learn


def flat(model): return torch.cat([p.detach().flatten() for p in model.parameters()])


class Refuses(Callback):
    "An allocator that fails above so many rows, in the forward pass, in the backward pass, or both in turns."
    order = -4
    def __init__(self, most, where='forward', text=None): self.most, self.where, self.text, self.failed = most, where, text, 0
    def before_fit(self):
        def forward(m, args):
            if m.training and self.where != 'backward' and len(args[0]) > self.most: self.fail()
        def backward(m, args, out):
            if m.training and self.where != 'forward' and len(args[0]) > self.most and out.requires_grad: out.register_hook(lambda g: self.fail())
        self.hooks = [self.model.register_forward_pre_hook(forward), self.model.blocks[0].register_forward_hook(backward)]
    def fail(self):
        self.failed += 1
        raise RuntimeError(self.text) if self.text else torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 20.00 MiB')


def quietly(f, *args):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always'); res = f(*args)
    return res, [str(w.message) for w in said if 'out of memory' in str(w.message)]


@pytest.mark.parametrize('where', ['forward', 'backward'])
@pytest.mark.parametrize('accumulate', [1, 3])
@pytest.mark.parametrize('clip', [None, .1])
def test_out_of_memory_gives_the_weights_of_the_whole_batch(tmp_path, where, accumulate, clip):
    cbs = lambda: [Precision('fp32'), ClipGrad(clip)] + ([Accumulate(accumulate)] if accumulate > 1 else [])
    want = flat(fit(learner(tmp_path, *cbs(), muon=False)).model)
    fails = Refuses(3, where)
    learn, said = quietly(fit, learner(tmp_path, *cbs(), MicroBatches(), fails, muon=False))
    # only the order of sums differs; AdamW's first steps magnify what is near zero
    assert torch.allclose(want, flat(learn.model), atol=2e-4) and (want - flat(learn.model)).abs().mean() < 2e-6
    assert learn.micro_batches.rows == 2 and fails.failed == 2 and len(said) == 2
    assert not torch.is_autocast_enabled('cpu') and not learn.clip_grad.skipped


def test_one_slice_is_what_fastai_does_bit_for_bit(tmp_path):
    a, b = (fit(learner(tmp_path, ClipGrad(), Precision('bf16'), *cbs)).model for cbs in ([], [MicroBatches()]))
    assert torch.equal(flat(a), flat(b))


def test_the_gradient_of_slices_is_that_of_the_batch(tmp_path):
    grads = {}
    class Keep(Callback):
        order = 50
        def before_step(self): grads.setdefault(self.key, torch.cat([p.grad.flatten().clone() for p in self.model.parameters()]))
    for rows in (None, 8, 5, 3, 1):
        k = Keep(); k.key = rows
        learn = fit(learner(tmp_path, k, MicroBatches(rows), data=batches(1)))
        grads[rows, 'loss'] = learn.recorder.losses[0]
    for rows in (8, 5, 3, 1):
        assert torch.allclose(grads[None], grads[rows], atol=1e-6), rows
        assert torch.allclose(grads[None, 'loss'], grads[rows, 'loss'], atol=1e-6)


def test_dropout_draws_again_the_same_after_a_failure(tmp_path):
    "A failure puts the generator back: the same weights as with the small slices from the start."
    a = fit(learner(tmp_path, MicroBatches(4), dropout=.5)).model
    b, _ = quietly(fit, learner(tmp_path, MicroBatches(), Refuses(4, 'backward'), dropout=.5))
    assert torch.equal(flat(a), flat(b.model))


@pytest.mark.parametrize('text', ['[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can\'t allocate memory: you tried to allocate 1 bytes.',
                                  'DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes.'])
def test_the_cpus_allocator_is_understood(tmp_path, text):
    learn, said = quietly(fit, learner(tmp_path, MicroBatches(), Refuses(4, text=text)))
    assert learn.micro_batches.rows == 4 and len(said) == 1


def test_other_errors_are_not_taken_for_memory(tmp_path):
    assert not out_of_memory(RuntimeError('mat1 and mat2 shapes cannot be multiplied'))
    fails = Refuses(4, text='something else')
    with pytest.raises(RuntimeError, match='something else'): fit(learner(tmp_path, MicroBatches(), fails))
    assert fails.failed == 1


def test_a_row_that_does_not_fit_is_refused_with_advice(tmp_path):
    with pytest.raises(UserError, match='shorter context, recompute=1, or a smaller model'): quietly(fit, learner(tmp_path, MicroBatches(), Refuses(0)))


def test_ranks_together_do_not_halve_alone(tmp_path, monkeypatch):
    monkeypatch.setattr('llmbook.train.microbatch.alone', lambda: False)
    with pytest.raises(UserError, match='one of several ranks .*micro_batch=4'): fit(learner(tmp_path, MicroBatches(), Refuses(4)))


def test_the_size_that_fits_is_remembered():
    a, b, c = MicroBatches(), MicroBatches('auto'), MicroBatches(2)
    for cb in (a, b, c): cb.load_checkpoint_state(dict(rows=4))
    assert (a.rows, b.rows, c.rows) == (4, None, 2)


@pytest.mark.parametrize('n, rows', [(10, 3), (7, 7), (1, 4), (16, 5)])
def test_slices_cover_the_batch_and_are_even(n, rows):
    x, extra = torch.arange(n), torch.tensor(3)
    parts = slices((x, extra), (x,), rows)
    assert torch.equal(torch.cat([p[0][0] for p in parts]), x) and all(p[0][1] is extra for p in parts)
    sizes = [len(p[1][0]) for p in parts]
    assert max(sizes) <= rows and max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize('rows', [None, 3])
def test_a_bad_micro_batch_is_left_out_alone_and_nothing_shifts(tmp_path, rows):
    "Batches 2 and 5 of 8, steps of 3 + 3 + 2: the weights of the same windows without their targets."
    data, blank = batches(8), batches(8)
    for i in (2, 5): blank[i] = (blank[i][0], torch.full_like(blank[i][1], IGNORE))
    cbs = lambda: [Accumulate(3), ClipGrad(1., most=8), MicroBatches(rows)]
    want = fit(learner(tmp_path/'a', *cbs(), data=blank))
    got = fit(learner(tmp_path/'b', *cbs(), NaNHere(2, 5), data=data))
    assert torch.allclose(flat(want.model), flat(got.model), atol=1e-6)
    assert got.accumulate.left_out == (2 if not rows else 6) and got.clip_grad.skipped == 0
    kept = load_file(tmp_path/'b/bad/step-2.safetensors')
    assert torch.equal(kept['x0'], data[2][0][:len(kept['x0'])]) and torch.equal(kept['y0'], data[2][1][:len(kept['y0'])])


def test_a_window_ends_with_its_epoch(tmp_path):
    steps = []
    class Count(Callback):
        order = 60
        def after_step(self): steps.append(self.train_iter)
    fit(learner(tmp_path, Accumulate(4), Count(), data=batches(6)), 2)
    assert steps == [3, 5, 9, 11]


def test_a_window_of_nothing_but_bad_batches_takes_no_step(tmp_path):
    learn = learner(tmp_path, Accumulate(3), ClipGrad(), NaNHere(0, 1, 2), data=batches(3)); before = flat(learn.model)
    fit(learn)
    assert torch.equal(before, flat(learn.model)) and not learn.opt.opt.state and learn.accumulate.left_out == 3


@pytest.mark.parametrize('clip', [None, 1.])
def test_a_bad_step_is_skipped_counted_and_kept(tmp_path, clip):
    data = batches(6)
    want = fit(learner(tmp_path, ClipGrad(clip), data=data[:2] + data[3:]))
    got = fit(learner(tmp_path, ClipGrad(clip), NaNHere(2), data=data))
    assert torch.equal(flat(want.model), flat(got.model)) and got.clip_grad.skipped == 1 and got.clip_grad.in_a_row == 0
    kept, why = load_file(tmp_path/'bad/step-2.safetensors'), json.loads((tmp_path/'bad/step-2.json').read_text())
    assert torch.equal(kept['x0'], data[2][0]) and torch.equal(kept['y0'], data[2][1]) and why['reason'] == 'loss' and why['batch'] == 2
    assert len(kept['rng']) == len(torch.get_rng_state())


def test_an_infinite_gradient_of_a_finite_loss_is_skipped(tmp_path):
    class Inf(Callback):
        order = 10
        def before_step(self): next(self.model.parameters()).grad[0, 0] = float('inf') if self.train_iter == 1 else 0
    learn = fit(learner(tmp_path, ClipGrad(None), Inf()))
    assert learn.clip_grad.skipped == 1 and flat(learn.model).isfinite().all()
    assert json.loads((tmp_path/'bad/step-1.json').read_text()) | dict(loss=0, norm=0) == dict(
        reason='gradient', loss=0, norm=0, epoch=0, in_a_row=1, micro_batches=1, batch=1)


def test_bad_files_are_few_and_a_full_disk_is_a_warning(tmp_path, monkeypatch):
    fit(learner(tmp_path, ClipGrad(most=2, patience=9), NaNHere(0, 1, 2, 3)))
    assert sorted(f.name for f in (tmp_path/'bad').iterdir()) == [f'step-{i}.{e}' for i in (0, 1) for e in ('json', 'safetensors')]
    def full(*a): raise OSError(28, 'No space left on device')
    monkeypatch.setattr('llmbook.train.accumulate.save_file', full)
    with pytest.warns(UserWarning, match='not kept .*No space left'): assert keep_bad(tmp_path/'c', 1, {}, {}) is None


def test_the_run_stops_after_too_many_in_a_row(tmp_path):
    with pytest.raises(UserError, match='3 steps in a row'): fit(learner(tmp_path, ClipGrad(patience=3), NaNHere(1, 2, 3)))
    fit(learner(tmp_path, ClipGrad(patience=3), NaNHere(0, 1, 3, 4)))


def test_counts_survive_a_validation_and_gradients_do_not_survive_an_error(tmp_path):
    learn = fit(learner(tmp_path, ClipGrad(), NaNHere(2)))
    learn.validate()
    assert learn.clip_grad.skipped == 1
    data = batches(2); want = fit(learner(tmp_path, ClipGrad(), data=data))
    cut = learner(tmp_path, ClipGrad(), data=data)
    (cut.model(data[0][0]).sum() * 9).backward() # as after an interrupt between backward and step
    assert torch.equal(flat(fit(cut).model), flat(want.model))


# --- spikes

from llmbook.tokens.loaders import TokenLoader
from llmbook.checkpoint.checkpoint import Checkpoint
from llmbook.checkpoint.spikes import Shifted, SpikeGuard, spike_level
from llmbook.pretrain.run import lm_learner

POISON = range(47, 53)


class Stop(Callback):
    order = 90
    def __init__(self, at, after=0): self.at, self.after = at, after
    def after_batch(self):
        if self.training and self.train_iter == self.at and len(self.spike_guard.rewinds) >= self.after: raise KeyboardInterrupt


class Poisoned(TokenLoader):
    "Text that counts upwards; a few batches of noise in the middle."
    def batches(self, start, end):
        for i in range(start, end):
            g = torch.Generator().manual_seed(i)
            x = (torch.randint(0, 64, (self.bs, 1), generator=g) + torch.arange(self.seq_len + 1)) % 64
            yield x[:, :-1], torch.randint(0, 64, (self.bs, self.seq_len), generator=g) if i in POISON else x[:, 1:]


def run(path, *cbs, guard=None):
    from llmbook.tokens.shards import TokenView
    tokens = TokenView([np.zeros(4000, np.uint16)])
    dls = DataLoaders(Poisoned(tokens, 4, 16, steps=20), Poisoned(tokens, 4, 16, steps=1), device=torch.device('cpu'))
    learn = lm_learner(dls, CONFIG, lr=5e-3, cbs=[guard or SpikeGuard(window=20, skip=15), Checkpoint(path, every=5, keep=4), *cbs])
    with learn.no_bar(), learn.no_logging(), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try: learn.fit(4)
        except KeyboardInterrupt: pass
    return learn


def test_a_spike_is_rewound_past_its_data_and_a_killed_run_comes_to_the_same_weights(tmp_path):
    whole = run(tmp_path/'whole')
    assert [(r['spike'], r['back_to'], r['skip']) for r in whole.spike_guard.rewinds] == [(47, 45, 15)]
    saved = TensorFolder(whole.checkpoint.kept.all()[-1]).read('record', 'losses')
    assert saved.tolist() == [float(l) for l in whole.recorder.losses] # as they are after the rewind
    assert whole.train_iter == 80 and whole.spike_guard.skipped == 15
    for at, after in ((43, 0), (48, 0), (47, 1), (60, 1), (63, 1)): run(tmp_path/'cut', Stop(at, after))
    last = run(tmp_path/'cut')
    assert last.checkpoint.resumed == 60 and torch.equal(flat(whole.model), flat(last.model))
    assert [float(v) for v in whole.recorder.losses] == [float(v) for v in last.recorder.losses]


def test_too_many_spikes_stop_the_run(tmp_path):
    with pytest.raises(UserError, match='after 1 rewinds'): run(tmp_path, guard=SpikeGuard(window=20, skip=2, patience=2, most=1))


def test_no_checkpoint_before_the_spike_is_a_warning(tmp_path):
    learn = run(tmp_path, guard=SpikeGuard(window=20, back=40))
    assert learn.train_iter == 80 and not learn.spike_guard.rewinds


def test_a_slow_rise_and_a_single_high_loss_are_no_spikes():
    g = SpikeGuard(window=20)
    for i in range(60): g.judge(2 + .01 * (i % 7) + (5 if i == 40 else 0), i)
    for i in range(60): g.judge(2 + .02 * i, 60 + i)
    g.judge(float('nan'), 200)
    assert g.high == 0 and max(g.recent) < 4
    assert spike_level([1., 1.1, .9, 1., 30.]) < 2


def test_shifted_batches_cross_the_loaders_epochs():
    class Dl:
        def __len__(self): return 4
        def seek(self, i): self.at = i; return self
        def __iter__(self): return iter(range(self.at, (self.at // 4 + 1) * 4))
    assert list(Shifted(Dl(), 6, 9)) == list(range(6, 15))


def test_ranks_keep_their_bad_rows_under_names_of_their_own(tmp_path, monkeypatch):
    from llmbook.train import accumulate as steps
    monkeypatch.setattr(steps, 'alone', lambda: False)
    for r in (0, 3):
        monkeypatch.setattr(steps, 'rank', lambda: r)
        assert steps.keep_bad(tmp_path, 7, dict(x0=torch.full((2, 3), r)), dict(reason='loss')).name == f'step-7-rank-{r}.safetensors'
        assert steps.keep_bad(tmp_path, 8, dict(x0=torch.zeros(1)), dict(reason='loss'), most=1) is None # each rank counts its own
    assert len(list(tmp_path.glob('*.safetensors'))) == 2


# --- what is left behind

from llmbook.train.warmup import BatchWarmup

class Jump(Callback):
    "Noise for targets at some steps of one fit, once."
    order = -5
    def __init__(self, *at): self.at, self.todo = at, []
    def before_batch(self):
        if self.training and self.train_iter in self.todo: self.todo.remove(self.train_iter); self.learn.yb = (torch.randint(0, 64, self.yb[0].shape),)


def text(*cbs, steps=24, **kwargs):
    from llmbook.tokens.shards import TokenView
    dl = lambda n: Poisoned(TokenView([np.zeros(4000, np.uint16)]), 4, 16, steps=n)
    return lm_learner(DataLoaders(dl(steps), dl(1), device=torch.device('cpu')), CONFIG, lr=5e-3, cbs=list(cbs), **kwargs)


def test_a_spike_of_a_second_fit_goes_back_within_it_and_touches_nothing_else(tmp_path):
    for name in ('step-mine-999', 'step-old', 'step-000000004-backup'): (tmp_path/name).mkdir()
    jump = Jump(18, 19, 20)
    learn = text(Checkpoint(tmp_path, every=4, keep=20), SpikeGuard(window=8, skip=10, patience=2), jump)
    fit(learn); before = {f.name for f in tmp_path.iterdir()}
    jump.todo = list(jump.at)
    with pytest.warns(UserWarning, match='back to step 16'): fit(learn)
    assert [r['back_to'] for r in learn.spike_guard.rewinds] == [16] and learn.checkpoint.resumed == 16
    assert before - {'best.json'} <= {f.name for f in tmp_path.iterdir()} and (tmp_path/'step-000000040').is_dir()


class Break(Callback):
    order = 90
    def after_batch(self):
        if self.train_iter == 1: raise KeyboardInterrupt


def test_a_fit_that_breaks_off_gives_the_full_step_back():
    learn = text(accumulate=8)
    with pytest.raises(KeyboardInterrupt), learn.no_bar(), learn.no_logging(): learn.fit(1, cbs=[BatchWarmup(until=.9), Break()])
    assert fit(learn).accumulate.n == 8


@pytest.mark.parametrize('make', [lambda p: SpikeGuard(), lambda p: MicroBatches(2), lambda p: Precision('bf16')], ids=['spikes', 'micro', 'precision'])
def test_a_callback_that_is_removed_leaves_the_learner_whole(tmp_path, make):
    learn = text(Checkpoint(tmp_path, every=4), steps=4)
    learn.remove_cbs([cb for cb in learn.cbs if isinstance(cb, type(make(0)))])
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, cbs=[make(tmp_path)]); learn.fit(1)
        new = make(tmp_path); learn.fit(1, cbs=[new])
    assert not isinstance(getattr(new.inner, '__self__', None), type(new)) and learn.train_iter == 4


nan = float('nan')
@pytest.mark.parametrize('cb, kwargs', [(SpikeGuard, k) for k in (dict(z=nan), dict(window=2.5), dict(most=-1), dict(skip=1.5), dict(back=-1), dict(every=0), dict(least=nan))] +
                         [(BatchWarmup, k) for k in (dict(stages=[(nan, 1)]), dict(stages=[(.5, 1.5)]), dict(until=nan), dict(first=1.5))])
def test_what_cannot_be_meant_is_refused(cb, kwargs):
    with pytest.raises(UserError, match='expected'): cb(**kwargs)


def test_a_stage_larger_than_the_accumulation_is_refused():
    with pytest.raises(UserError, match='up to 4'): fit(text(BatchWarmup(stages=[(.5, 100)]), accumulate=4))


def test_what_cannot_be_trained_is_refused_before_it_begins(tmp_path):
    from llmbook.core import UserError
    from llmbook.tokens.tokenizer import train_tokenizer
    config, data = ModelConfig(vocab_size=64, n_layer=1, d_model=16, n_head=2, n_kv_head=1, context=16), [(torch.zeros(2, 8, dtype=torch.long),) * 2]
    def learner(c=config, tok=None, **kwargs):
        dls = DataLoaders(data, data)
        if tok is not None: dls.train = type('Dl', (list,), dict(tok=tok))(data)
        return lm_learner(dls, c, precision='fp32', path=tmp_path, **kwargs)
    for kwargs in (dict(accumulate=0), dict(accumulate=1.5), dict(recompute=-5), dict(chunk=0)):
        with pytest.raises(UserError, match='expected'): learner(**kwargs)
    for kwargs in (dict(lr=float('nan')), dict(lr=-1.), dict(lr=slice(1e-4, float('nan'))), dict(wd=float('nan'))):
        with pytest.raises(UserError, match='learning rate and a decay'): learner(**kwargs).create_opt()
    frozen = learner()
    for p in frozen.model.parameters(): p.requires_grad_(False)
    with pytest.raises(UserError, match='all are frozen'): frozen.create_opt()
    with pytest.raises(UserError, match='at most 64 tokens'): learner(tok=train_tokenizer(['some text'] * 9, 300))


def test_a_place_or_an_optimiser_that_cannot_be_saved_is_refused_before_the_first_step(tmp_path):
    from fastai.optimizer import Adam
    from test_train import grammar_data, learner
    (tmp_path/'data').mkdir(); grammar_data(tmp_path/'data')
    (tmp_path/'file').write_text('')
    for cb, opt in ((Checkpoint(tmp_path/'file'/'x'), None), (Checkpoint(tmp_path/'file'), None), (Checkpoint(tmp_path/'c'), Adam)):
        learn = learner(tmp_path/'data', steps=8, cbs=cb)
        if opt: learn.opt_func = opt
        with pytest.raises(UserError), learn.no_bar(), learn.no_logging(): learn.fit(1)
        assert learn.train_iter == 0


def test_a_run_that_goes_on_differently_is_refused(tmp_path):
    from test_train import grammar_data, learner
    (tmp_path/'data').mkdir(); grammar_data(tmp_path/'data')
    class Cut(Callback):
        order = 99
        def after_batch(self):
            if self.training and self.train_iter == 5: raise KeyboardInterrupt
    def run(cut=False, **kwargs):
        learn = learner(tmp_path/'data', steps=8, cbs=[Checkpoint(tmp_path/'c', every=2, blocking=True)] + [Cut()] * cut, **kwargs)
        with learn.no_bar(), learn.no_logging(): learn.fit(1)
        return learn
    with pytest.raises(KeyboardInterrupt): run(cut=True)
    for kwargs, word in ((dict(accumulate=2), 'accumulate'), (dict(clip=.1), 'clip'), (dict(precision='bf16'), 'precision')):
        with pytest.raises(UserError, match=word): run(**kwargs)
    assert run().checkpoint.resumed == 4
