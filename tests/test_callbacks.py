"fastai's own callbacks and a user's beside a Learner of this package: they resume, and do what they do elsewhere."
import random
from collections import Counter, defaultdict, deque
from contextlib import ExitStack, contextmanager
import numpy as np
import pytest, torch
from fastai.callback.core import Callback, CancelFitException
from fastai.callback.tracker import EarlyStoppingCallback, ReduceLROnPlateau, SaveModelCallback
from llmbook.checkpoint.checkpoint import Checkpoint
from llmbook.core import UserError
from llmbook.model.config import ModelConfig
from llmbook.pretrain.run import lm_learner
from llmbook.tokens.loaders import lm_dls
from llmbook.tokens.shards import read_manifest
from test_train import grammar_data

STEPS = 4


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp('callbacks')
    grammar_data(folder)
    return folder


def make(data, out, *cbs, steps=STEPS, every=2, bs=4, lr=3e-3, **options):
    out.mkdir(parents=True, exist_ok=True)
    vocab_size = read_manifest(data)['vocab_size']
    config = ModelConfig(vocab_size=vocab_size, n_layer=2, d_model=32, n_head=2, n_kv_head=1, context=32)
    dls = lm_dls(data, bs=bs, seq_len=32, steps=steps, valid_batches=2, device='cpu')
    checkpoint = [Checkpoint(out/'c', every=every)] if every else []
    return lm_learner(dls, config, path=out, lr=lr, cbs=[*checkpoint, *cbs], **options)


@contextmanager
def quiet(learn):
    with ExitStack() as stack:
        stack.enter_context(learn.no_bar())
        stack.enter_context(learn.no_logging())
        yield learn


class Cut(Callback):
    "The power fails at a step."
    order, run_valid = 95, False
    def __init__(self, at): self.at = at
    def after_batch(self):
        if self.train_iter == self.at: raise InterruptedError


class Says(Callback):
    "Writes validation losses into the recorder, whatever the model does."
    order = 51
    def __init__(self, losses): self.losses = losses
    def after_epoch(self): self.recorder.values[-1][1] = self.losses[self.epoch]


def fit(learn, epochs):
    with quiet(learn):
        try: learn.fit(epochs)
        except InterruptedError: pass
    return learn


def resumed(build, at, epochs):
    "Return a run that was cut at a step and called again."
    fit(build(Cut(at)), epochs)
    return fit(build(), epochs)


def weights(learn): return [p.detach().clone() for p in learn.model.parameters()]
def same(a, b): return all(map(torch.equal, weights(a), weights(b)))


# --- what fastai's trackers know

@pytest.mark.parametrize('at', [2, 5, 11, 14, 17])
def test_an_early_stop_waits_as_long_as_it_would_have_without_a_cut(data, tmp_path, at):
    losses = [3., 2., 2.5, 2.6, 2.7, 2.8, 2.9, 3.]
    def build(*cbs): return make(data, tmp_path, Says(losses), EarlyStoppingCallback(patience=3), *cbs)
    assert len(resumed(build, at, 8).recorder.values) == 5


def test_a_run_that_has_stopped_has_stopped(data, tmp_path):
    def build(): return make(data, tmp_path, Says([3., 2., 2.5, 2.6, 2.7]), EarlyStoppingCallback(patience=1))
    first = fit(build(), 5)
    again = fit(build(), 5)
    assert len(first.recorder.values) == len(again.recorder.values) == 3
    assert again.checkpoint.resumed == 3 * STEPS
    assert same(first, again)


class StopsAfterValidation(Callback):
    def after_validate(self):
        if getattr(self, 'epoch', 0) == 1: raise CancelFitException


def test_a_users_own_stop_behind_a_validation_is_an_end_too(data, tmp_path):
    for _ in range(2): learn = fit(make(data, tmp_path, StopsAfterValidation()), 4)
    assert learn.checkpoint.resumed == learn.train_iter == 2 * STEPS


class StopsWithin(Callback):
    def after_batch(self):
        if self.training and self.train_iter == 6: raise CancelFitException


def test_a_fit_that_is_cancelled_within_an_epoch_goes_on(data, tmp_path):
    fit(make(data, tmp_path, StopsWithin()), 3)
    assert fit(make(data, tmp_path), 3).train_iter == 3 * STEPS


def test_a_worse_model_is_not_saved_over_the_best(data, tmp_path, monkeypatch):
    saved = []
    def _save(self, name): saved.append(self.epoch)
    monkeypatch.setattr(SaveModelCallback, '_save', _save)
    monkeypatch.setattr(SaveModelCallback, 'after_fit', lambda self: None)
    def build(*cbs): return make(data, tmp_path, Says([3., 1., 2.5, 2.6, 2.7, 2.8]), SaveModelCallback(), *cbs)
    resumed(build, 14, 6)
    assert saved == [0, 1]


def test_two_callbacks_of_one_class_keep_apart(data, tmp_path):
    def build(*cbs):
        patient = EarlyStoppingCallback(patience=4)
        better = EarlyStoppingCallback(monitor='perplexity', comp=np.less, patience=50)
        return make(data, tmp_path, Says([3., 2., 2.5, 2.6, 2.7, 2.8, 2.9]), patient, better, *cbs)
    assert len(resumed(build, 17, 7).recorder.values) == 6


def test_a_reduced_rate_reaches_the_optimiser_and_stays_reduced(data, tmp_path):
    def build(*cbs): return make(data, tmp_path, Says([3., 3., 3., 3.]), ReduceLROnPlateau(patience=2), *cbs, lr=1e-3)
    learn = resumed(build, 14, 4)
    assert learn.opt.hypers[-1]['lr'] == pytest.approx(1e-4)
    assert learn.recorder.lrs[11] == pytest.approx(1e-3)
    assert learn.recorder.lrs[12] == pytest.approx(1e-4)


def test_new_options_count_in_a_run_that_resumes(data, tmp_path):
    losses = [3., 2., 2.5, 2.6, 2.7, 2.8, 2.9, 3.]
    fit(make(data, tmp_path, Says(losses), EarlyStoppingCallback(patience=3), Cut(14)), 8)
    assert len(fit(make(data, tmp_path, Says(losses), EarlyStoppingCallback(patience=5)), 8).recorder.values) == 7


# --- attributes of a user's callbacks

class Meter:
    def __init__(self): self.total, self.function = 0., max


class Remembers(Callback):
    "Keeps a state of every kind, each changed by every step."
    order, run_valid = 70, False
    def __init__(self):
        self.count, self.text = 0, ''
        self.rows, self.recent, self.words = [], deque(maxlen=3), Counter()
        self.by_sign, self.seen = defaultdict(list), set()
        self.draw = random.Random(1)
        self.np_draw = np.random.default_rng(1)
        self.torch_draw = torch.Generator()
        self.mean = torch.zeros(2)
        self.sums = np.zeros(3, np.uint16)
        self.meter = Meter()
        self.average = None
    def before_fit(self):
        self.average = torch.optim.swa_utils.AveragedModel(self.model)
        self.torch_draw.manual_seed(1)
    def after_batch(self):
        n = self.draw.randrange(100) + int(self.np_draw.integers(100))
        x = float(torch.rand(1, generator=self.torch_draw)[0])
        self.count += 1
        self.text = f'{self.text}{n % 10}'
        self.rows.append((n, x, dict(step=self.train_iter)))
        self.recent.append(n)
        self.words[n % 3] += 1
        self.by_sign[n % 2 == 0].append(n)
        self.seen |= {n}
        self.mean = self.mean * .9 + x
        self.sums += n
        self.meter.total += n
        self.average.update_parameters(self.model)


NOT_PLAIN = ('learn', 'draw', 'np_draw', 'torch_draw', 'average', 'meter') # what has no comparable text


def remembered(cb):
    kept = {k: v for k, v in vars(cb).items() if k not in NOT_PLAIN}
    averages = torch.cat([p.flatten() for p in cb.average.parameters()]).tolist()
    return repr(kept), cb.meter.total, averages, cb.draw.random(), cb.np_draw.random()


def test_plain_attributes_of_every_kind_resume(data, tmp_path):
    whole = fit(make(data, tmp_path/'whole', Remembers()), 3)
    again = resumed(lambda *cbs: make(data, tmp_path/'cut', Remembers(), *cbs), 7, 3)
    assert again.checkpoint.resumed == 6
    assert remembered(whole.remembers) == remembered(again.remembers)
    assert whole.remembers.recent.maxlen == again.remembers.recent.maxlen == 3
    assert type(again.remembers.by_sign) is defaultdict
    assert same(whole, again)


def numbers():
    while True: yield 1

class Noise(Callback):
    def __init__(self): self.numbers = numbers()


def test_what_cannot_be_saved_is_refused_before_the_first_step(data, tmp_path):
    learn = make(data, tmp_path, Noise())
    with pytest.raises(UserError, match='noise.numbers of type generator'), quiet(learn):
        learn.fit(1)
    assert learn.train_iter == 0
    fit(make(data, tmp_path/'no checkpoint', Noise(), every=None), 1) # nothing to save there


class MadeLate(Callback):
    def after_batch(self):
        if self.training and self.train_iter == 3: self.averaged = torch.optim.swa_utils.AveragedModel(self.model)


def test_what_turns_up_later_and_cannot_be_saved_is_named(data, tmp_path):
    with pytest.warns(UserWarning, match='made_late.averaged'):
        fit(make(data, tmp_path, MadeLate()), 1)


def test_a_save_before_the_checkpoints_own_turn(data, tmp_path):
    class Saves(Callback):
        order = 0
        def after_batch(self):
            if self.training and self.train_iter in (STEPS, 2 * STEPS): self.learn.checkpoint.save()
    def build(*cbs): return make(data, tmp_path/'cut', Saves(), *cbs, every=1000)
    whole = fit(make(data, tmp_path/'whole', every=1000), 3)
    fit(build(Cut(2 * STEPS)), 3)
    assert same(whole, fit(build(), 3))
    with pytest.raises(UserError, match='expected a fit under way'): whole.checkpoint.save()


# --- epochs that a callback shortens

def test_a_shortened_epoch_counts_in_full(data, tmp_path):
    from fastai.callback.training import ShortEpochCallback
    learn = fit(make(data, tmp_path, ShortEpochCallback(.25, short_valid=False), every=None), 3)
    assert learn.train_iter == 3 * STEPS
    assert len(learn.recorder.lrs) == 3 # as in fastai: the second batch ends it


def test_epochs_can_be_skipped(data, tmp_path):
    learn = make(data, tmp_path, every=None)
    with quiet(learn): learn.fit(3, start_epoch=2)
    assert learn.train_iter == 3 * STEPS
    assert len(learn.recorder.lrs) == STEPS


# --- layer groups, and weights that are broken

def test_groups_that_stay_open_keep_their_moments(data, tmp_path):
    def two(model): return [[*model.blocks.parameters(), *model.embed.parameters()], [*model.norm.parameters()]]
    learn = make(data, tmp_path, every=None, splitter=two)
    learn.freeze()
    fit(learn, 1)
    learn.unfreeze()
    fit(learn, 1)
    assert int(learn.opt.opt.state[learn.model.norm.weight]['step']) == 2 * STEPS


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_broken_weights_are_refused_by_name(data, tmp_path, value):
    learn = make(data, tmp_path)
    learn.model.blocks[0].mlp.down_proj.weight.data[0, 0] = value
    with pytest.raises(UserError, match='such as blocks.0.mlp.down_proj.weight'), quiet(learn):
        learn.fit(1)
    assert learn.train_iter == 0


@pytest.mark.parametrize('lr', [1e9, 1e30])
def test_a_rate_that_destroys_the_model_is_an_error(data, tmp_path, lr):
    with pytest.raises(UserError, match='lower the learning rate'):
        fit(make(data, tmp_path, lr=lr, clip=None), 2)


def test_another_learning_rate_is_another_run(data, tmp_path):
    fit(make(data, tmp_path, Cut(3)), 1)
    with pytest.raises(UserError, match='lr'): fit(make(data, tmp_path, lr=1e-2), 1)  # it was cut
    fit(make(data, tmp_path), 1)
    with pytest.raises(UserError, match='lr'):
        fit(make(data, tmp_path, lr=1e-2), 1)  # it is finished


class Intruder(Callback):
    "Trains another Learner in the same folder while the first one is training."
    order, run_valid = 90, False
    def __init__(self, other): self.other, self.said = other, None
    def after_batch(self):
        if self.said: return
        try: fit(self.other, 1)
        except UserError as e: self.said = str(e)


def test_two_learners_of_one_process_do_not_share_a_folder(data, tmp_path):
    intruder = Intruder(make(data, tmp_path))
    first = fit(make(data, tmp_path, intruder), 1)
    assert 'another Learner is training' in intruder.said
    alone = fit(make(data, tmp_path/'alone'), 1)
    assert same(first, alone)
    fit(make(data, tmp_path), 1)  # afterwards the folder is free
