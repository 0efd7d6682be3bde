"Guards: bad batches left out and saved, slices halved when memory runs out, runs with all guards resumed bit for bit."
import json, warnings
import numpy as np, pytest, torch
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from safetensors.torch import load_file
from llmbook.core import UserError, set_seed
from llmbook.tokens.loaders import IGNORE, TokenLoader
from llmbook.tokens.shards import TokenView
from llmbook.model.config import ModelConfig
from llmbook.model.transformer import Transformer
from llmbook.train import accumulate
from llmbook.train.accumulate import Accumulate, ClipGrad, keep_bad
from llmbook.train.loss import LMLoss
from llmbook.train.microbatch import MicroBatches, out_of_memory, slices
from llmbook.train.optim import lm_opt
from llmbook.train.precision import Precision
from llmbook.train.data_schedules import BatchWarmup
from llmbook.checkpoint.checkpoint import Checkpoint
from llmbook.checkpoint.spikes import Shifted, SpikeGuard, spike_level
from llmbook.checkpoint.tensor_files import TensorFolder
from llmbook.pretrain.run import lm_learner
from test_train import grammar_data
from test_train import learner as grammar_learner

CONFIG = ModelConfig(vocab_size=64, n_layer=2, d_model=32, n_head=2, n_kv_head=1, context=32)


def batches(n=6, rows=8, seed=0):
    "Return batches of rows of 32 with different numbers of targets."
    g = torch.Generator().manual_seed(seed)
    res = []
    for b in torch.randint(0, 64, (n, rows, 33), generator=g):
        x = b[:, :-1]
        y = b[:, 1:].clone()
        for i in range(rows): y[i, 4 + 5 * i % 28:] = IGNORE
        res.append((x, y))
    return res


def learner(path, *cbs, data=None, lr=1e-3, muon=True, dropout=0.):
    set_seed(0)
    model = Transformer(CONFIG)
    if dropout: model.norm = torch.nn.Sequential(model.norm, torch.nn.Dropout(dropout))
    data = data or batches()
    dls = DataLoaders(data, data[:1])
    return Learner(dls, model, LMLoss(model.head), opt_func=lm_opt(model, muon=muon), lr=lr, cbs=cbs, path=path)


def fit(learn, n=1):
    with learn.no_bar(), learn.no_logging(): learn.fit(n)
    return learn


def flat(model): return torch.cat([p.detach().flatten() for p in model.parameters()])


class NaNHere(Callback):
    "Make the loss of some batches not a number, as a broken document would."
    order = -5
    def __init__(self, *at): self.at = at
    def after_loss(self):
        if not self.training or self.train_iter not in self.at: return
        self.learn.loss_grad = self.loss_grad * float('nan')
        self.learn.loss = self.loss_grad.clone()


class Refuses(Callback):
    "An allocator that fails above so many rows, in the forward pass or in the backward pass."
    order = -4
    def __init__(self, most, where='forward', text=None):
        self.most = most
        self.where = where
        self.text = text
        self.failed = 0

    def before_fit(self):
        def too_many(m, args): return m.training and len(args[0]) > self.most
        def forward(m, args):
            if self.where != 'backward' and too_many(m, args): self.fail()
        def backward(m, args, out):
            if self.where != 'forward' and too_many(m, args) and out.requires_grad:
                out.register_hook(lambda grad: self.fail())
        self.model.register_forward_pre_hook(forward)
        self.model.blocks[0].register_forward_hook(backward)

    def fail(self):
        self.failed += 1
        if self.text: raise RuntimeError(self.text)
        raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 20.00 MiB')


def quietly(f, *args):
    "Call `f`; return its result and what was said about memory."
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        res = f(*args)
    return res, [str(w.message) for w in caught if 'out of memory' in str(w.message)]


# --- slices of a batch

@pytest.mark.parametrize('where', ['forward', 'backward'])
@pytest.mark.parametrize('n', [1, 3])
@pytest.mark.parametrize('clip', [None, .1])
def test_out_of_memory_gives_the_weights_of_the_whole_batch(tmp_path, where, n, clip):
    def guards(): return [Precision('fp32'), ClipGrad(clip)] + ([Accumulate(n)] if n > 1 else [])
    whole = flat(fit(learner(tmp_path, *guards(), muon=False)).model)
    fails = Refuses(3, where)
    learn, said = quietly(fit, learner(tmp_path, *guards(), MicroBatches(), fails, muon=False))
    # only the order of sums differs; AdamW's first steps magnify what is near zero
    sliced = flat(learn.model)
    assert torch.allclose(whole, sliced, atol=2e-4)
    assert (whole - sliced).abs().mean() < 2e-6
    assert learn.micro_batches.rows == 2
    assert fails.failed == 2
    assert len(said) == 2
    assert not torch.is_autocast_enabled('cpu')
    assert not learn.clip_grad.skipped


def test_one_slice_is_what_fastai_does_bit_for_bit(tmp_path):
    def weights(*cbs): return flat(fit(learner(tmp_path, ClipGrad(), Precision('bf16'), *cbs)).model)
    assert torch.equal(weights(), weights(MicroBatches()))


def test_the_gradient_of_slices_is_that_of_the_batch(tmp_path):
    class Keep(Callback):
        order = 50
        grads = None
        def before_step(self):
            if self.grads is not None: return
            grads = [p.grad.flatten().clone() for p in self.model.parameters()]
            self.grads = torch.cat(grads)
    def sliced(rows):
        keep = Keep()
        learn = fit(learner(tmp_path, keep, MicroBatches(rows), data=batches(1)))
        return keep.grads, learn.recorder.losses[0]
    grads, loss = sliced(None)
    for rows in (8, 5, 3, 1):
        got_grads, got_loss = sliced(rows)
        assert torch.allclose(grads, got_grads, atol=1e-6), rows
        assert torch.allclose(loss, got_loss, atol=1e-6), rows


def test_dropout_draws_again_the_same_after_a_failure(tmp_path):
    "Restore the random state: the weights are those of small slices from the start."
    a = fit(learner(tmp_path, MicroBatches(4), dropout=.5))
    b, _ = quietly(fit, learner(tmp_path, MicroBatches(), Refuses(4, 'backward'), dropout=.5))
    assert torch.equal(flat(a.model), flat(b.model))


@pytest.mark.parametrize('text', [
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory:",
    'DefaultCPUAllocator: not enough memory:'])
def test_the_cpus_allocator_is_understood(tmp_path, text):
    text += ' you tried to allocate 1 bytes.'
    learn, said = quietly(fit, learner(tmp_path, MicroBatches(), Refuses(4, text=text)))
    assert learn.micro_batches.rows == 4
    assert len(said) == 1


def test_other_errors_are_not_taken_for_memory(tmp_path):
    assert not out_of_memory(RuntimeError('mat1 and mat2 shapes cannot be multiplied'))
    fails = Refuses(4, text='something else')
    with pytest.raises(RuntimeError, match='something else'):
        fit(learner(tmp_path, MicroBatches(), fails))
    assert fails.failed == 1


def test_a_row_that_does_not_fit_is_refused_with_advice(tmp_path):
    learn = learner(tmp_path, MicroBatches(), Refuses(0))
    with pytest.raises(UserError, match='shorter context, recompute=1, or a smaller model'):
        quietly(fit, learn)


def test_ranks_together_do_not_halve_alone(tmp_path, monkeypatch):
    monkeypatch.setattr('llmbook.train.microbatch.alone', lambda: False)
    learn = learner(tmp_path, MicroBatches(), Refuses(4))
    with pytest.raises(UserError, match='one of several ranks .*micro_batch=4'): fit(learn)


def test_the_size_that_fits_is_remembered():
    rows = []
    for asked in (None, 'auto', 2):
        cb = MicroBatches(asked)
        cb.load_checkpoint_state(dict(rows=4))
        rows.append(cb.rows)
    assert rows == [4, None, 2]


@pytest.mark.parametrize('n, rows', [(10, 3), (7, 7), (1, 4), (16, 5)])
def test_slices_cover_the_batch_and_are_even(n, rows):
    x = torch.arange(n)
    extra = torch.tensor(3)
    inputs = []
    sizes = []
    for (part, same_extra), (target,) in slices((x, extra), (x,), rows):
        assert same_extra is extra
        inputs.append(part)
        sizes.append(len(target))
    assert torch.equal(torch.cat(inputs), x)
    assert max(sizes) <= rows
    assert max(sizes) - min(sizes) <= 1


# --- bad batches

@pytest.mark.parametrize('rows', [None, 3])
def test_a_bad_micro_batch_is_left_out_alone_and_nothing_shifts(tmp_path, rows):
    "Batches 2 and 5 of 8, steps of 3 + 3 + 2: the weights of the same windows without their targets."
    data, blank = batches(8), batches(8)
    for i in (2, 5):
        x, y = blank[i]
        blank[i] = (x, torch.full_like(y, IGNORE))
    def guards(): return [Accumulate(3), ClipGrad(1., most=8), MicroBatches(rows)]
    want = fit(learner(tmp_path/'a', *guards(), data=blank))
    got = fit(learner(tmp_path/'b', *guards(), NaNHere(2, 5), data=data))
    assert torch.allclose(flat(want.model), flat(got.model), atol=1e-6)
    assert got.accumulate.left_out == (6 if rows else 2)
    assert got.clip_grad.skipped == 0
    saved = load_file(tmp_path/'b/bad/step-2.safetensors')
    saved_x, saved_y = saved['x0'], saved['y0']
    x, y = data[2]
    n = len(saved_x)
    assert len(saved_y) == n
    assert torch.equal(saved_x, x[:n])
    assert torch.equal(saved_y, y[:n])


def test_a_window_ends_with_its_epoch(tmp_path):
    steps = []
    class Count(Callback):
        order = 60
        def after_step(self): steps.append(self.train_iter)
    fit(learner(tmp_path, Accumulate(4), Count(), data=batches(6)), 2)
    assert steps == [3, 5, 9, 11]


def test_a_window_of_nothing_but_bad_batches_takes_no_step(tmp_path):
    learn = learner(tmp_path, Accumulate(3), ClipGrad(), NaNHere(0, 1, 2), data=batches(3))
    before = flat(learn.model)
    fit(learn)
    assert torch.equal(before, flat(learn.model))
    assert not learn.opt.opt.state
    assert learn.accumulate.left_out == 3


@pytest.mark.parametrize('clip', [None, 1.])
def test_a_bad_step_is_skipped_counted_and_saved(tmp_path, clip):
    data = batches(6)
    want = fit(learner(tmp_path, ClipGrad(clip), data=data[:2] + data[3:]))
    got = fit(learner(tmp_path, ClipGrad(clip), NaNHere(2), data=data))
    assert torch.equal(flat(want.model), flat(got.model))
    assert got.clip_grad.skipped == 1
    assert got.clip_grad.in_a_row == 0
    saved = load_file(tmp_path/'bad/step-2.safetensors')
    x, y = data[2]
    assert torch.equal(saved['x0'], x)
    assert torch.equal(saved['y0'], y)
    assert len(saved['rng']) == len(torch.get_rng_state())
    why = json.loads((tmp_path/'bad/step-2.json').read_text())
    assert why['reason'] == 'loss'
    assert why['batch'] == 2


def test_an_infinite_gradient_of_a_finite_loss_is_skipped(tmp_path):
    class Inf(Callback):
        order = 10
        def before_step(self):
            grad = next(self.model.parameters()).grad
            grad[0, 0] = float('inf') if self.train_iter == 1 else 0
    learn = fit(learner(tmp_path, ClipGrad(None), Inf()))
    assert learn.clip_grad.skipped == 1
    assert flat(learn.model).isfinite().all()
    why = json.loads((tmp_path/'bad/step-1.json').read_text())
    want = dict(reason='gradient', loss=0, norm=0, epoch=0, in_a_row=1, micro_batches=1, batch=1)
    assert why | dict(loss=0, norm=0) == want


def test_bad_files_are_few_and_a_full_disk_is_a_warning(tmp_path, monkeypatch):
    fit(learner(tmp_path, ClipGrad(most=2, patience=9), NaNHere(0, 1, 2, 3)))
    names = sorted(f.name for f in (tmp_path/'bad').iterdir())
    assert names == ['step-0.json', 'step-0.safetensors', 'step-1.json', 'step-1.safetensors']
    def full(*args): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(accumulate, 'save_file', full)
    with pytest.warns(UserWarning, match='not saved .*No space left'):
        saved = keep_bad(tmp_path/'c', 1, {}, {})
    assert saved is None


def test_ranks_save_their_bad_rows_under_names_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(accumulate, 'alone', lambda: False)
    for r in (0, 3):
        monkeypatch.setattr(accumulate, 'rank', lambda: r)
        saved = keep_bad(tmp_path, 7, dict(x0=torch.full((2, 3), r)), dict(reason='loss'))
        assert saved.name == f'step-7-rank-{r}.safetensors'
        another = keep_bad(tmp_path, 8, dict(x0=torch.zeros(1)), dict(reason='loss'), most=1)
        assert another is None # each rank counts its own
    assert len(list(tmp_path.glob('*.safetensors'))) == 2


def test_the_run_stops_after_too_many_in_a_row(tmp_path):
    bad = learner(tmp_path, ClipGrad(patience=3), NaNHere(1, 2, 3))
    with pytest.raises(UserError, match='3 steps in a row'): fit(bad)
    fit(learner(tmp_path, ClipGrad(patience=3), NaNHere(0, 1, 3, 4)))


def test_counts_survive_a_validation(tmp_path):
    learn = fit(learner(tmp_path, ClipGrad(), NaNHere(2)))
    learn.validate()
    assert learn.clip_grad.skipped == 1


def test_gradients_do_not_survive_an_error(tmp_path):
    data = batches(2)
    whole = fit(learner(tmp_path, ClipGrad(), data=data))
    cut = learner(tmp_path, ClipGrad(), data=data)
    x, _ = data[0]
    left_over = cut.model(x).sum() * 9
    left_over.backward() # as after an interrupt between backward and step
    fit(cut)
    assert torch.equal(flat(cut.model), flat(whole.model))


# --- spikes

POISON = range(47, 53)


class Stop(Callback):
    "Interrupt at a step, once there were so many rewinds."
    order = 90
    def __init__(self, at, rewinds=0): self.at, self.rewinds = at, rewinds
    def after_batch(self):
        if not self.training or self.train_iter != self.at: return
        if len(self.spike_guard.rewinds) >= self.rewinds: raise KeyboardInterrupt


class Poisoned(TokenLoader):
    "Text that counts upwards, with a few batches of noise in the middle."
    def batches(self, start, end):
        for i in range(start, end):
            g = torch.Generator().manual_seed(i)
            first = torch.randint(0, 64, (self.bs, 1), generator=g)
            text = (first + torch.arange(self.seq_len + 1)) % 64
            x = text[:, :-1]
            y = text[:, 1:]
            if i in POISON: y = torch.randint(0, 64, (self.bs, self.seq_len), generator=g)
            yield x, y


def poisoned_dls(steps):
    tokens = TokenView([np.zeros(4000, np.uint16)])
    train, valid = (Poisoned(tokens, 4, 16, steps=n) for n in (steps, 1))
    return DataLoaders(train, valid, device=torch.device('cpu'))


def run(path, *cbs, guard=None):
    guard = guard or SpikeGuard(window=20, skip=15)
    learn = lm_learner(poisoned_dls(20), CONFIG, lr=5e-3, cbs=[guard, Checkpoint(path, every=5, keep=4), *cbs])
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try: fit(learn, 4)
        except KeyboardInterrupt: pass
    return learn


def test_a_spike_is_rewound_past_its_data_and_a_killed_run_comes_to_the_same_weights(tmp_path):
    def losses(learn): return [float(l) for l in learn.recorder.losses]
    whole = run(tmp_path/'whole')
    rewind, = whole.spike_guard.rewinds
    assert rewind['spike'] == 47
    assert rewind['back_to'] == 45
    assert rewind['skip'] == 15
    assert whole.spike_guard.skipped == 15
    assert whole.train_iter == 80
    newest = TensorFolder(whole.checkpoint.kept.all()[-1])
    assert newest.read('record', 'losses').tolist() == losses(whole) # as they are after the rewind
    for at, rewinds in ((43, 0), (48, 0), (47, 1), (60, 1), (63, 1)):
        run(tmp_path/'cut', Stop(at, rewinds))
    last = run(tmp_path/'cut')
    assert last.checkpoint.resumed == 60
    assert torch.equal(flat(whole.model), flat(last.model))
    assert losses(whole) == losses(last)


def test_too_many_spikes_stop_the_run(tmp_path):
    guard = SpikeGuard(window=20, skip=2, patience=2, most=1)
    with pytest.raises(UserError, match='after 1 rewinds'): run(tmp_path, guard=guard)


def test_no_checkpoint_before_the_spike_is_a_warning(tmp_path):
    learn = run(tmp_path, guard=SpikeGuard(window=20, back=40))
    assert learn.train_iter == 80
    assert not learn.spike_guard.rewinds


def test_a_slow_rise_and_a_single_high_loss_are_no_spikes():
    guard = SpikeGuard(window=20)
    for i in range(60):
        jump = 5 if i == 40 else 0
        guard.judge(2 + .01 * (i % 7) + jump, i)
    for i in range(60): guard.judge(2 + .02 * i, 60 + i)
    guard.judge(float('nan'), 200)
    assert guard.high == 0
    assert max(guard.recent) < 4
    assert spike_level([1., 1.1, .9, 1., 30.]) < 2


def test_shifted_batches_cross_the_loaders_epochs():
    class Loader:
        def __len__(self): return 4
        def seek(self, i):
            self.at = i
            return self
        def __iter__(self): return iter(range(self.at, (self.at // 4 + 1) * 4))
    assert list(Shifted(Loader(), 6, 9)) == list(range(6, 15))


class Jump(Callback):
    "Give noise for targets at some steps of one fit, once."
    order = -5
    def __init__(self, *at):
        self.at = at
        self.todo = []
    def before_batch(self):
        if not self.training or self.train_iter not in self.todo: return
        self.todo.remove(self.train_iter)
        self.learn.yb = (torch.randint(0, 64, self.yb[0].shape),)


def text_learner(*cbs, steps=24, **kwargs):
    return lm_learner(poisoned_dls(steps), CONFIG, lr=5e-3, cbs=list(cbs), **kwargs)


def test_a_spike_of_a_second_fit_goes_back_within_it_and_touches_nothing_else(tmp_path):
    for name in ('step-mine-999', 'step-old', 'step-000000004-backup'): (tmp_path/name).mkdir()
    jump = Jump(18, 19, 20)
    learn = text_learner(Checkpoint(tmp_path, every=4, keep=20), SpikeGuard(window=8, skip=10, patience=2), jump)
    fit(learn)
    before = {f.name for f in tmp_path.iterdir()}
    jump.todo = list(jump.at)
    with pytest.warns(UserWarning, match='back to step 16'): fit(learn)
    assert [r['back_to'] for r in learn.spike_guard.rewinds] == [16]
    assert learn.checkpoint.resumed == 16
    assert before - {'best.json'} <= {f.name for f in tmp_path.iterdir()}
    assert (tmp_path/'step-000000040').is_dir()


# --- what is left behind

class Break(Callback):
    order = 90
    def __init__(self, at=1): self.at = at
    def after_batch(self):
        if self.training and self.train_iter == self.at: raise KeyboardInterrupt


def test_an_interrupted_fit_restores_the_full_step():
    learn = text_learner(accumulate=8)
    with pytest.raises(KeyboardInterrupt), learn.no_bar(), learn.no_logging():
        learn.fit(1, cbs=[BatchWarmup(until=.9), Break()])
    assert fit(learn).accumulate.n == 8


@pytest.mark.parametrize('make', [SpikeGuard, lambda: MicroBatches(2), lambda: Precision('bf16')],
                         ids=['spikes', 'micro', 'precision'])
def test_a_callback_that_is_removed_leaves_the_learner_whole(tmp_path, make):
    learn = text_learner(Checkpoint(tmp_path, every=4), steps=4)
    kind = type(make())
    learn.remove_cbs([cb for cb in learn.cbs if isinstance(cb, kind)])
    new = make()
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, cbs=[make()])
        learn.fit(1)
        learn.fit(1, cbs=[new])
    assert not isinstance(getattr(new.inner, '__self__', None), kind)
    assert learn.train_iter == 4


# --- what is refused

NAN = float('nan')
INVALID = {
    SpikeGuard: [dict(z=NAN), dict(least=NAN), dict(window=2.5), dict(most=-1), dict(skip=1.5), dict(back=-1),
                 dict(every=0)],
    BatchWarmup: [dict(stages=[(NAN, 1)]), dict(stages=[(.5, 1.5)]), dict(until=NAN), dict(first=1.5)],
}


@pytest.mark.parametrize('cb, kwargs', [(cb, kwargs) for cb, options in INVALID.items() for kwargs in options])
def test_invalid_options_are_refused(cb, kwargs):
    with pytest.raises(UserError, match='expected'): cb(**kwargs)


def test_a_stage_larger_than_the_accumulation_is_refused():
    learn = text_learner(BatchWarmup(stages=[(.5, 100)]), accumulate=4)
    with pytest.raises(UserError, match='up to 4'): fit(learn)


def two_rows():
    zeros = torch.zeros(2, 8, dtype=torch.long)
    data = [(zeros, zeros)]
    return DataLoaders(data, data)


def of_64_tokens(path, dls=None, **kwargs):
    "Return a learner of a model with 64 tokens in its vocabulary."
    config = ModelConfig(vocab_size=64, n_layer=1, d_model=16, n_head=2, n_kv_head=1, context=16)
    return lm_learner(dls or two_rows(), config, precision='fp32', path=path, **kwargs)


@pytest.mark.parametrize('kwargs', [dict(accumulate=0), dict(accumulate=1.5), dict(recompute=-5), dict(chunk=0)])
def test_bad_counts_are_refused_before_training(tmp_path, kwargs):
    with pytest.raises(UserError, match='expected'): of_64_tokens(tmp_path, **kwargs)


@pytest.mark.parametrize('kwargs', [dict(lr=NAN), dict(lr=-1.), dict(lr=slice(1e-4, NAN)), dict(wd=NAN)])
def test_bad_rates_are_refused_before_training(tmp_path, kwargs):
    with pytest.raises(UserError, match='to be a number of 0 or more'): of_64_tokens(tmp_path, **kwargs)


def test_a_model_frozen_whole_is_refused(tmp_path):
    learn = of_64_tokens(tmp_path)
    for p in learn.model.parameters(): p.requires_grad_(False)
    with pytest.raises(UserError, match='all are frozen'): learn.create_opt()


def test_a_tokenizer_of_more_tokens_than_the_model_is_refused(tmp_path):
    from llmbook.tokens.tokenizer import train_tokenizer
    class WithTokenizer(list): tok = train_tokenizer(['some text'] * 9, 300)
    dls = two_rows()
    dls.train = WithTokenizer(dls.train)
    with pytest.raises(UserError, match='at most 64 tokens'): of_64_tokens(tmp_path, dls)


def test_a_place_or_an_optimiser_that_cannot_be_saved_is_refused_before_the_first_step(tmp_path):
    from fastai.optimizer import Adam
    (tmp_path/'data').mkdir()
    grammar_data(tmp_path/'data')
    (tmp_path/'file').write_text('')
    for place, opt in (('file/x', None), ('file', None), ('c', Adam)):
        learn = grammar_learner(tmp_path/'data', steps=8, cbs=Checkpoint(tmp_path/place))
        if opt: learn.opt_func = opt
        with pytest.raises(UserError): fit(learn)
        assert learn.train_iter == 0


def test_a_run_that_resumes_differently_is_refused(tmp_path):
    (tmp_path/'data').mkdir()
    grammar_data(tmp_path/'data')
    def resume(*cbs, **kwargs):
        checkpoint = Checkpoint(tmp_path/'c', every=2, blocking=True)
        return fit(grammar_learner(tmp_path/'data', steps=8, cbs=[checkpoint, *cbs], **kwargs))
    with pytest.raises(KeyboardInterrupt): resume(Break(5))
    for name, value in dict(accumulate=2, clip=.1, precision='bf16').items():
        with pytest.raises(UserError, match=name): resume(**{name: value})
    assert resume().checkpoint.resumed == 4
