"Every callback of fastai, its metrics and its predictions with our Learner: they work, or say what to use."
import inspect, warnings
from functools import partial
import numpy as np
import pytest, torch
import fastai.callback.all as callbacks
import fastai.metrics as metrics
from fastai.callback.core import Callback
from fastai.callback.progress import CSVLogger, ProgressCallback, ShowGraphCallback
from fastai.callback.training import GradientAccumulation, GradientClip
from fastai.interpret import Interpretation
from fastai.learner import AvgMetric, Learner, Metric, load_learner
from fastcore.foundation import L
from llmbook.core import UserError
from llmbook.model.config import ModelConfig
from llmbook.pretrain.run import lm_learner
from llmbook.tokens.loaders import IGNORE, lm_dls
from llmbook.train.interop import REFUSED
from llmbook.train.progress import Progress
from test_callbacks import fit, make, quiet, resumed, same
from test_train import grammar_data


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp('interop')
    grammar_data(folder)
    return folder


# --- a walk through all callbacks

OPTIONS = dict(
    EarlyStoppingCallback=dict(patience=2), FetchPredsCallback=dict(), GradientAccumulation=dict(n_acc=8),
    SaveModelCallback=dict(), ParamScheduler=dict(scheds={'lr': lambda p: 1e-3}), LRFinder=dict(num_it=3),
    ShortEpochCallback=dict(pct=.5))
def is_callback(value): return inspect.isclass(value) and issubclass(value, Callback) and value is not Callback


NO_CALLBACKS_OF_A_FIT = ('TrainEvalCallback', 'Recorder', 'GatherPredsCallback', 'LRFinder')
ALL = {name: cls for name, cls in vars(callbacks).items()
       if is_callback(cls) and name not in NO_CALLBACKS_OF_A_FIT}


def test_the_walk_misses_none():
    assert set(REFUSED) <= set(ALL)
    assert {'CSVLogger', 'ActivationStats', 'BnFreeze', 'CollectDataCallback', 'MCDropoutCallback'} <= set(ALL)


@pytest.mark.parametrize('name', sorted(ALL))
def test_every_callback_works_or_says_what_to_use(data, tmp_path, name):
    cb = ALL[name](**OPTIONS.get(name, {}))
    if name in REFUSED:
        with pytest.raises(UserError, match=f'got {name}: .*(use|leave it out)'):
            make(data, tmp_path, cb)
        return
    learn = make(data, tmp_path, cb)
    with learn.no_logging(): learn.fit(2)
    assert learn.train_iter == 8
    assert all(torch.isfinite(p).all() for p in learn.model.parameters())


def test_they_can_be_given_to_a_fit_and_are_gone_after_it(data, tmp_path):
    learn = make(data, tmp_path, every=None)
    with quiet(learn):
        learn.fit(1, cbs=GradientAccumulation(8))
        assert not hasattr(learn, 'accumulate')
        with pytest.raises(UserError, match='tokens cannot be blended'):
            learn.fit(1, cbs=callbacks.MixUp())
    assert [type(cb) for cb in learn._grab_cbs(ProgressCallback)] == [Progress], 'no_bar gives our bar back'


def test_accumulated_rows_give_the_step_of_the_big_batch(data, tmp_path):
    big = make(data, tmp_path/'big', bs=16, precision='fp32')
    small = make(data, tmp_path/'small', GradientAccumulation(16), bs=8, steps=8, precision='fp32')
    halves = []
    for step in range(4):
        x, y = big.dls.train.batch(step)
        halves.append((x[:8], y[:8]))
        halves.append((x[8:], y[8:]))
    small.dls.train.batches = lambda start, end: iter(halves)
    fit(big, 1)
    fit(small, 1)
    for a, b in zip(big.model.parameters(), small.model.parameters()):
        assert torch.allclose(a, b, atol=2e-5)


def test_two_ways_of_accumulating_are_refused(data, tmp_path):
    with pytest.raises(UserError, match='got two'):
        make(data, tmp_path, GradientAccumulation(16), accumulate=2)


def test_a_clip_of_fastai_clips(data, tmp_path):
    theirs = fit(make(data, tmp_path/'a', GradientClip(.1), clip=None), 1)
    assert same(theirs, fit(make(data, tmp_path/'b', clip=.1), 1))


@pytest.mark.parametrize('notebook', [False, True])
def test_a_graph_is_shown_where_there_is_one(data, tmp_path, notebook):
    learn = make(data, tmp_path, ShowGraphCallback(), every=None)
    learn.remove_cb(Progress)
    learn.add_cb(Progress(notebook=notebook))
    with learn.no_logging(): learn.fit(2)
    assert len(learn.show_graph.nb_batches) == 2


# --- the log of a run that resumes

def rows(path): return [line.rsplit(',', 1)[0] for line in path.read_text().splitlines()] # without the times


@pytest.mark.parametrize('append', [False, True])
def test_a_resumed_log_is_that_of_the_run_never_cut(data, tmp_path, append):
    def build(out, *cbs): return make(data, tmp_path/out, CSVLogger(append=append), *cbs)
    whole = fit(build('whole'), 3)
    again = resumed(partial(build, 'cut'), 10, 3)
    assert rows(tmp_path/'whole'/'history.csv') == rows(tmp_path/'cut'/'history.csv')
    assert len(whole.csv_logger.read_log()) == len(again.csv_logger.read_log()) == 3
    fit(build('cut'), 3) # nothing is left to do
    assert len(rows(tmp_path/'cut'/'history.csv')) == 4


# --- metrics

def right(preds, targs): return (preds.argmax(-1) == targs).float().mean()
def right_of_one(preds, targs, k): return right(preds, targs)

class Counts(Metric):
    "A metric of the user's own."
    def reset(self): self.hits = self.n = 0
    def accumulate(self, learn):
        self.hits += int((learn.pred.argmax(-1) == learn.y).sum())
        self.n += len(learn.yb[0])
    @property
    def value(self): return self.hits / self.n

KINDS = dict(
    function=metrics.accuracy, own=right, wrong=metrics.error_rate, partial=partial(right_of_one, k=1),
    instance=AvgMetric(right), cls=Counts, object=Counts(), top=partial(metrics.top_k_accuracy, k=1),
    f1=lambda: metrics.F1Score(average='micro'))


def by_hand(learn):
    "Return the share of right tokens among all targets of the validation."
    hits = n = 0
    with torch.no_grad():
        for x, y in learn.dls.valid:
            likeliest = learn.model.logits(learn.model(x)).argmax(-1)
            hits += int((likeliest == y).sum())
            n += int((y != IGNORE).sum())
    return hits / n


@pytest.mark.parametrize('kind', KINDS)
def test_metrics_see_logits(data, tmp_path, kind):
    metric = KINDS[kind]() if kind == 'f1' else KINDS[kind]
    learn = make(data, tmp_path, metrics=[metric], every=None, steps=30, lr=1e-2, chunk=7)
    fit(learn, 1)
    share = by_hand(learn)
    assert share > .1
    want = 1 - share if kind == 'wrong' else share
    _, _, value = learn.recorder.values[-1]
    assert float(value) == pytest.approx(want, abs=1e-6)
    _, again = learn.validate()
    assert again == pytest.approx(float(value))
    learn.metrics = L(right)
    _, of_right = learn.validate()
    assert float(of_right) == pytest.approx(share, abs=1e-6)


def test_masked_targets_do_not_count(data, tmp_path):
    both = [metrics.accuracy, metrics.Perplexity()]
    learn = fit(make(data, tmp_path, metrics=both, every=None, steps=20, lr=1e-2), 1)
    positions = torch.arange(32)
    batches = []
    for i, (x, y) in enumerate(learn.dls.valid): # each batch hides 20 targets of a row fewer
        hidden = positions < 30 - 20 * i
        batches.append((x, y.masked_fill(hidden, IGNORE)))
    learn.dls.loaders[1] = batches
    loss, accuracy, perplexity = learn.validate()
    assert accuracy == pytest.approx(by_hand(learn), abs=1e-6)
    assert perplexity == pytest.approx(np.exp(loss), rel=1e-4)


def test_no_more_logits_are_held_than_the_loss_holds(data, tmp_path):
    seen = []
    def largest(preds, targs):
        seen.append(len(preds))
        return right(preds, targs)
    fit(make(data, tmp_path, metrics=largest, every=None, chunk=10), 1)
    assert max(seen) == 10


@pytest.mark.parametrize('metric', [metrics.RocAuc, metrics.APScoreBinary, lambda: metrics.rmse])
def test_a_metric_that_would_hold_all_scores_is_refused(data, tmp_path, metric):
    with pytest.raises(UserError, match='would keep all scores'):
        make(data, tmp_path, metrics=metric())


def test_metrics_of_training_are_refused(data, tmp_path):
    learn = make(data, tmp_path, metrics=right, every=None)
    learn.recorder.train_metrics = True
    with pytest.raises(UserError, match='learn.validate'), quiet(learn): learn.fit(1)


def test_a_masked_model_is_measured_at_the_gaps(data, tmp_path):
    config = ModelConfig.from_dict(dict(vocab_size=300, n_layer=1, d_model=32, n_head=2, context=32, family='encoder'))
    dls = lm_dls(data, bs=8, seq_len=32, steps=5, valid_batches=2, device='cpu')
    learn = fit(lm_learner(dls, config, path=tmp_path, metrics=[metrics.accuracy]), 1)
    assert 0 <= float(learn.recorder.values[-1][2]) <= 1


# --- predictions, and what cannot be

@pytest.fixture(scope='module')
def trained(data, tmp_path_factory):
    return fit(make(data, tmp_path_factory.mktemp('trained'), every=None, steps=20, lr=1e-2), 1)


def test_predictions_are_probabilities(trained):
    with quiet(trained):
        preds, targets, decoded = trained.get_preds(with_decoded=True)
        logits, _ = trained.get_preds(act=lambda h: h)
    vocab_size = trained.dls.tok.get_vocab_size()
    assert preds.shape == (*targets.shape, vocab_size)
    assert torch.allclose(preds.sum(-1), torch.ones(targets.shape), atol=1e-5)
    assert torch.equal(decoded, preds.argmax(-1))
    assert torch.allclose(logits.softmax(-1), preds)


def test_losses_are_those_of_the_predictions(trained):
    with quiet(trained):
        preds, targets = trained.get_preds()
        inputs, nothing, _, losses = trained.get_preds(with_input=True, with_preds=False, with_loss=True)
    assert nothing is None
    of_targets = preds.gather(-1, targets[..., None])[..., 0]
    nats = -of_targets.log().mean(1)
    assert torch.allclose(losses, nats, atol=1e-4)


def test_predictions_that_would_not_fit_are_refused(trained, monkeypatch):
    monkeypatch.setattr(type(trained), 'most_scores', 1000)
    with pytest.raises(UserError, match='give fewer batches'): trained.get_preds()


def test_the_texts_that_are_predicted_worst(trained, capsys):
    losses = [loss for loss, text in trained.top_losses(3)]
    assert losses == sorted(losses, reverse=True)
    assert len(losses) == 3
    with quiet(trained):
        interpretation = Interpretation.from_learner(trained)
        assert interpretation.top_losses(1)[0].item() == pytest.approx(losses[0], abs=1e-4)
        interpretation.plot_top_losses(1)
    assert repr(trained.top_losses(1)[0][1]) in capsys.readouterr().out


@pytest.mark.parametrize('call, words', [
    (lambda learn: learn.predict('The captain'), r"generate\(learn.model, learn.dls.tok, 'The captain'\)"),
    (lambda learn: learn.tta(), 'get_preds'),
    (lambda learn: learn.to_non_native_fp16(), 'to_fp16'),
    (lambda learn: learn.to_channelslast(), 'leave it out')])
def test_what_a_text_has_no_use_for_names_what_to_use(trained, call, words):
    with pytest.raises(UserError, match=words): call(trained)


def test_what_else_a_learner_of_fastai_does(trained, capsys):
    with quiet(trained):
        text = str(trained.summary())
        trained.show_results(max_n=1)
        trained.show_training_loop()
        trained.save('x')
        before = [p.clone() for p in trained.model.parameters()]
        trained.fit(1)
        trained.load('x')
    assert 'Total params' in text
    assert all(map(torch.equal, before, trained.model.parameters()))


def test_precision_by_fastais_names(data, tmp_path):
    learn = fit(make(data, tmp_path, every=None).to_bf16(), 1)
    assert learn.precision.used == 'bf16'
    assert fit(learn.to_fp32(), 1).precision.used == 'fp32'


def test_a_validation_of_one_point_is_seen(data, tmp_path):
    learn = fit(make(data, tmp_path, every=None, steps=8), 1)
    marks = {line.get_label(): line.get_marker() for line in learn.recorder.plot_loss().lines}
    assert marks['valid'] == 'o'
    assert marks['train'] != 'o'


# --- export

def loaded(path):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return load_learner(path)


def kinds_of_groups(learn): return [group['kind'] for group in learn.opt.opt.param_groups]


def with_metrics(data, path):
    return fit(make(data, path, CSVLogger(), metrics=[metrics.accuracy, right]), 1)


def test_an_export_leaves_the_learner_as_it_was(data, tmp_path):
    learn = with_metrics(data, tmp_path)
    before = dict(vars(learn))
    learn.export('x.pkl')
    assert vars(learn).keys() == before.keys()
    assert learn.opt is before['opt']
    assert learn.dls is before['dls']
    assert (tmp_path/'x.pkl').stat().st_size < 4e6, 'no data and no moments'


def test_an_exported_learner_predicts_and_can_train_again(data, tmp_path):
    learn = with_metrics(data, tmp_path)
    learn.export('x.pkl')
    other = loaded(tmp_path/'x.pkl')
    x, _ = learn.dls.valid.one_batch()
    for each in (learn, other): each.model.eval()
    assert torch.equal(other.model(x), learn.model(x))
    assert other.dls.tok.get_vocab_size() == learn.dls.tok.get_vocab_size()
    with pytest.raises(UserError, match='learn.dls = '), quiet(other): other.fit(1)
    other.dls = learn.dls
    fit(other, 1)
    assert kinds_of_groups(other) == kinds_of_groups(learn)


def test_a_plain_learner_of_fastai_exports_our_loaders(data, tmp_path):
    dls = lm_dls(data, bs=8, seq_len=32, steps=5, valid_batches=2, device='cpu')
    model = torch.nn.Sequential(torch.nn.Embedding(300, 8), torch.nn.Linear(8, 300))
    learn = Learner(dls, model, loss_func=torch.nn.functional.cross_entropy, path=tmp_path)
    learn.export('x.pkl')
    x = torch.arange(10)[None]
    assert torch.equal(loaded(tmp_path/'x.pkl').model(x), model(x))
