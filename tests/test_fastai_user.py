"What a user of fastai types on each kind of Learner: it works, is readable, or says what to use."
import pickle
import numpy as np
import pytest, torch
from fastai.callback.core import Callback
from fastai.callback.progress import ShowGraphCallback
from fastai.interpret import ClassificationInterpretation, Interpretation
from fastai.learner import load_learner
from fastai.metrics import accuracy
from llmbook.core import UserError, set_seed
from llmbook.model.config import ModelConfig
from llmbook.model.transformer import Transformer
from llmbook.prefer.reward_model import RewardModel, reward_learner
from llmbook.prefer.run import preference_learner, preferences_for
from llmbook.reward.puzzles import get_puzzles
from llmbook.reward.rollouts import Sampler
from llmbook.reward.train import grpo_learner
from llmbook.tokens.tokenizer import train_tokenizer
from llmbook.tune.chat import ChatFormat
from llmbook.tune.classify import class_dls, class_learner, classify
from llmbook.tune.sft import chat_learner, prepare_chats, set_method
from test_callbacks import make, quiet
from test_train import grammar_data

WORDS = 'rain snow wind fog ice sun'.split()
QUESTIONS = [f'tell me of {WORDS[i % 6]} {i}' for i in range(36)]
CHOSEN = [f'{WORDS[i % 6]} is fine' for i in range(36)]
REJECTED = [f'{WORDS[i % 6]} is bad' for i in range(36)]


@pytest.fixture(scope='module')
def fmt():
    return ChatFormat(train_tokenizer([*QUESTIONS, *CHOSEN, *REJECTED], 330))


@pytest.fixture(scope='module', autouse=True)
def data(tmp_path_factory):
    "Write the shards once, for every Learner of text."
    MAKERS['text'].data = tmp_path_factory.mktemp('grammar')
    grammar_data(MAKERS['text'].data)


def small(fmt):
    set_seed(0)
    sizes = dict(n_layer=2, d_model=32, n_head=2, n_kv_head=1, context=64)
    return Transformer(ModelConfig(vocab_size=fmt.tok.get_vocab_size(), **sizes))


def of_text(fmt, folder):
    return make(of_text.data, folder/'lm', every=None, steps=8, lr=1e-2)


def of_chats(fmt, folder):
    records = [dict(prompt=q, answer=a) for q, a in zip(QUESTIONS, CHOSEN)]
    data = prepare_chats(records, fmt, 64)
    return chat_learner(set_method(small(fmt), 'full'), data, fmt, lr=1e-2, tokens=256, device='cpu', samples=0)


def pairs(fmt, loss='dpo'):
    records = [dict(prompt=q, chosen=c, rejected=r) for q, c, r in zip(QUESTIONS, CHOSEN, REJECTED)]
    return preferences_for(loss, records, fmt, 64, valid=.2)


def of_pairs(fmt, folder):
    return preference_learner(set_method(small(fmt), 'full'), pairs(fmt), fmt, lr=1e-4, samples=0, device='cpu')


def of_labels_without_pairs(fmt, folder):
    data = pairs(fmt, 'kto')
    return preference_learner(set_method(small(fmt), 'full'), data, fmt, 'kto', lr=1e-4, samples=0, device='cpu')


def of_rewards(fmt, folder):
    return reward_learner(RewardModel(set_method(small(fmt), 'full')), pairs(fmt), fmt, lr=5e-3, device='cpu')


def of_classes(fmt, folder):
    texts = [*CHOSEN, *REJECTED, *(f'{q} and {a}' for q, a in zip(QUESTIONS, REJECTED))]
    labels = ['good'] * 36 + ['bad'] * 72
    dls = class_dls(fmt.tok, (texts, labels), (texts[::5], labels[::5]), seq_len=32, bs=8, device='cpu')
    return class_learner(small(fmt), dls)


def of_puzzles(fmt, folder):
    task = get_puzzles('reverse', longest=4)
    sizes = dict(steps=2, prompts=4, group=4, test=4, tries=2)
    return grpo_learner(small(fmt), task, fmt, lr=1e-3, sampler=Sampler(6), device='cpu', **sizes)


MAKERS = dict(text=of_text, chats=of_chats, pairs=of_pairs, kto=of_labels_without_pairs, rewards=of_rewards,
              classes=of_classes, puzzles=of_puzzles)
WITH_ITEMS = [kind for kind in MAKERS if kind != 'puzzles']


@pytest.fixture(params=MAKERS)
def kind(request): return request.param


@pytest.fixture
def learn(kind, fmt, tmp_path): return made(kind, fmt, tmp_path)


def made(kind, fmt, tmp_path):
    learner = MAKERS[kind](fmt, tmp_path)
    learner.path = tmp_path
    return learner


class Interrupted(Callback):
    "Somebody presses stop in the second step."
    def after_batch(self):
        if self.training and self.train_iter == 2: raise KeyboardInterrupt


def test_a_first_hour(learn, kind, capsys):
    learn.dls.show_batch(max_n=2)
    first = learn.dls.decode_batch(learn.dls.one_batch(), max_n=1)[0]
    shown = capsys.readouterr().out
    assert all(isinstance(text, str) for text in first)
    if kind == 'text': assert repr(first[0]) in shown
    else: assert first[-1].split()[0] in shown
    before = [p.clone() for p in learn.model.parameters()]
    summary = str(learn.summary())
    assert '0x' not in summary and 'frozenset' not in summary
    with quiet(learn):
        found = learn.lr_find(num_it=12, show_plot=False)
        assert found.valley > 0
        assert all(map(torch.equal, before, learn.model.parameters()))
        with pytest.raises(KeyboardInterrupt): learn.fit(1, 1e-3, cbs=Interrupted())
        learn.fit_one_cycle(1, 1e-3)
        learn.fine_tune(1, 1e-3)
        learn.freeze()
        learn.fit(1, 1e-3)
        learn.unfreeze()
        values = learn.validate()
        assert len(values) == 1 + len(learn.metrics)
        learn.recorder.plot_loss()
        learn.recorder.plot_sched()
    with learn.no_logging(): learn.fit(1, 1e-3, cbs=ShowGraphCallback())


def test_a_summary_leaves_no_trace(fmt, tmp_path, capsys):
    watched = made('pairs', fmt, tmp_path)
    text = str(watched.summary())
    assert not watched.preference_watch.looks
    assert not watched.preference_watch.valid_parts
    assert 'PreferenceWatch' in text
    assert 'step/s' not in capsys.readouterr().err, 'no bar'
    with quiet(watched): watched.fit(1)
    assert len(watched.preference_watch.looks) == 2


@pytest.mark.parametrize('kind', WITH_ITEMS)
def test_results_and_worst_items_are_texts(learn, kind, capsys):
    learn.show_results(max_n=2)
    shown = capsys.readouterr().out
    wanted = dict(text='predicted', chats='predicted', pairs='reward of rejected', kto='label', rewards='reward of chosen',
                  classes='found')
    assert wanted[kind] in shown
    worst = learn.top_losses(3)
    assert [loss for loss, _ in worst] == sorted((loss for loss, _ in worst), reverse=True)
    interpretation = Interpretation.from_learner(learn)
    losses, places = interpretation.top_losses(3)
    assert losses.tolist() == pytest.approx([loss for loss, _ in worst], abs=1e-4)
    capsys.readouterr()
    interpretation.plot_top_losses(2)
    shown = capsys.readouterr().out
    assert 'loss' in shown and 'text' in shown
    interpretation.show_results(places.tolist()[:1])
    assert capsys.readouterr().out


def test_the_loss_of_a_chat_is_that_of_its_targets_alone(fmt, tmp_path):
    learn = made('chats', fmt, tmp_path)
    by_text = {text: loss for loss, text in learn.top_losses(100)}
    chats = learn.dls.valid.dataset
    assert len(by_text) == len(chats)
    for row in chats:
        ids = torch.tensor(row.ids.astype(np.int64))
        with torch.no_grad(): logits = learn.model.logits(learn.model(ids[None, :-1]))[0]
        nats = torch.nn.functional.cross_entropy(logits, ids[1:], reduction='none')
        trained = torch.from_numpy(row.trained[1:])
        assert by_text[learn.dls.valid.decode(row.ids.tolist())] == pytest.approx(float(nats[trained].mean()), abs=1e-4)


def test_rows_of_chats_can_be_predicted(fmt, tmp_path):
    learn = made('chats', fmt, tmp_path)
    with quiet(learn): probabilities, targets = learn.get_preds()
    assert len(probabilities) == len(targets) == len(learn.dls.valid.order(0)[0])
    assert float(probabilities[0].sum(-1).mean()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize('kind, call, words', [
    ('pairs', lambda learn: learn.get_preds(), 'top_losses'),
    ('rewards', lambda learn: learn.predict('x'), 'score_answers'),
    ('pairs', lambda learn: learn.predict('x'), r"chat_answers\(learn.model, fmt, \['x'\]\)"),
    ('chats', lambda learn: learn.predict('x'), 'chat_answers'),
    ('chats', lambda learn: learn.save_encoder('x'), 'class_learner'),
    ('text', lambda learn: learn.load_encoder('x'), 'class_learner'),
    ('text', lambda learn: learn.dls.test_dl(['a text']), 'text_bits'),
    ('puzzles', lambda learn: learn.get_preds(), 'reward_watch.samples'),
    ('puzzles', lambda learn: learn.show_results(), 'reward_watch.samples'),
    ('puzzles', lambda learn: learn.validate(ds_idx=0), r'learn.validate\(\)'),
    ('pairs', lambda learn: ClassificationInterpretation.from_learner(learn), 'few classes'),
    ('classes', lambda learn: learn.predict(['a', 'b']), 'classify'),
    ('chats', lambda learn: Interpretation.from_learner(learn).plot_top_losses(0), '1 or more'),
])
def test_what_does_not_work_says_what_does(kind, call, words, fmt, tmp_path):
    learn = made(kind, fmt, tmp_path)
    with pytest.raises(UserError, match=words), quiet(learn): call(learn)


@pytest.mark.parametrize('kind', ['pairs', 'rewards', 'puzzles'])
def test_a_metric_of_another_task_is_told_so(kind, fmt, tmp_path):
    learn = made(kind, fmt, tmp_path)
    learn.metrics = [accuracy]
    with pytest.raises(UserError, match='got accuracy, .* the metrics that the Learner came with'), quiet(learn):
        learn.fit(1)


# --- a classifier

@pytest.fixture(scope='module')
def trained(fmt, tmp_path_factory):
    learn = made('classes', fmt, tmp_path_factory.mktemp('classes'))
    with quiet(learn): learn.fit_one_cycle(4, 1e-2)
    return learn


def test_predictions_of_a_classifier_stand_in_the_order_of_the_texts(trained):
    texts = ['sun is fine', *QUESTIONS[:3], 'fog is bad']
    with quiet(trained): shares, labels = trained.get_preds(dl=trained.dls.test_dl(texts))
    assert np.allclose(shares.numpy(), classify(trained, texts)[['bad', 'good']].to_numpy(), atol=1e-5)
    valid = trained.dls.valid.dataset
    with quiet(trained): _, labels, decoded = trained.get_preds(with_decoded=True)
    assert labels.tolist() == [label for _, label in valid]
    assert decoded.shape == labels.shape


def test_a_classifier_predicts_as_in_fastai_also_when_loaded(trained, tmp_path):
    label, number, shares = trained.predict('sun is fine')
    assert label == trained.names[int(number)] == 'good'
    assert float(shares.sum()) == pytest.approx(1, abs=1e-5)
    trained.export('c.pkl')
    with pytest.warns(UserWarning, match='insecure pickle'): other = load_learner(trained.path/'c.pkl')
    assert other.predict('sun is fine')[0] == 'good'
    assert other.predict('fog is bad')[2].tolist() == trained.predict('fog is bad')[2].tolist()


def test_a_confusion_matrix_counts_the_texts(trained, capsys):
    with quiet(trained):
        interpretation = ClassificationInterpretation.from_learner(trained)
        counts = interpretation.confusion_matrix()
        interpretation.plot_confusion_matrix()
        interpretation.print_classification_report()
        confused = interpretation.most_confused()
    assert counts.sum() == len(trained.dls.valid.dataset)
    assert all(name in capsys.readouterr().out for name in ['good'])
    assert isinstance(confused, list)
    assert trained.dls.c == 2
    assert trained.dls.vocab[1] == ['bad', 'good']
    worst = interpretation.table(interpretation.top_losses(2)[1].tolist())
    assert list(worst.columns) == ['text', 'label', 'found', 'probability', 'loss']
    assert worst.loss.is_monotonic_decreasing


# --- files

@pytest.mark.parametrize('kind', MAKERS)
def test_an_export_carries_no_texts(kind, fmt, tmp_path):
    learn = made(kind, fmt, tmp_path)
    with quiet(learn): learn.validate()
    learn.export('x.pkl')
    if kind == 'text': return
    written = (tmp_path/'x.pkl').read_bytes()
    assert b'tell me of rain' not in written
    with pytest.warns(UserWarning, match='insecure pickle'): other = load_learner(tmp_path/'x.pkl')
    if kind != 'classes':
        with pytest.raises(UserError, match='expected a prompt'): other.predict('x')


class Harm:
    def __reduce__(self): return print, ('harm',)


def test_a_loaded_model_is_not_unpickled(fmt, tmp_path, capsys):
    learn = made('chats', fmt, tmp_path)
    (tmp_path/'models').mkdir()
    torch.save(dict(model=Harm()), tmp_path/'models'/'x.pth')
    with pytest.raises(pickle.UnpicklingError): learn.load('x')
    assert 'harm' not in capsys.readouterr().out
