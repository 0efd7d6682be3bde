"What somebody types on the first day and cannot work: one line that says what to do, and nothing is lost."
import inspect, subprocess, sys, warnings
from types import SimpleNamespace
import numpy as np, pytest
from fastai.callback.progress import ProgressCallback
from llmbook import cli
from llmbook.core import UserError
from llmbook.errors import plain_errors
from llmbook.journey import Settings, journey
from llmbook.model.config import ModelConfig
from llmbook.model.hf import load_pretrained
from llmbook.model.transformer import Transformer
from llmbook.prepare.card import card_html, show_card
from llmbook.prepare.pipeline import prepare
from llmbook.pretrain.run import lm_learner
from llmbook.report import runs
from llmbook.report.runs import difference
from llmbook.tokens.tokenizer import train_tokenizer
from llmbook.train.progress import Progress
from llmbook.tune.classify import class_dls, class_learner
from llmbook.verdict.weigh import better

TEXTS = [f'The {word} mill stands beside the {other} river, and nobody has counted its {word} windows yet.'
         for word in ('old', 'tall', 'grey', 'red') for other in ('long', 'deep', 'cold', 'wide')]


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp('texts')
    for i, text in enumerate(TEXTS): (folder/f'{i}.txt').write_text(f'{text} Number {i}.')
    return folder


def snapshot(folder): return {p: p.read_bytes() for p in sorted(folder.rglob('*')) if p.is_file()}



def test_finished_data_of_other_options_is_not_replaced_without_force(source, tmp_path):
    options = dict(preset='none', vocab_size=300, similarity=1., valid=.1, test=.1, progress=False)
    out = tmp_path/'data'
    first = prepare(str(source), out, **options)
    before = snapshot(out)
    with pytest.raises(UserError, match=r'16 documents, .* training tokens, made otherwise: seed was 42 and is 1.*--force'):
        prepare(str(source), out, **options, seed=1, replace=False)
    assert snapshot(out) == before
    assert prepare(str(source), out, **options, replace=False) == first
    assert prepare(str(source), out, **options, seed=1)['question'] != first['question']


def test_the_command_refuses_and_takes_force(monkeypatch):
    seen = {}
    def stands_in(*args, **kwargs):
        seen.update(kwargs)
        raise UserError('that is enough')
    monkeypatch.setitem(cli.__dict__, 'prepare', stands_in)
    for force in (False, True):
        with pytest.raises(UserError, match='enough'): cli.llmbook_prepare('embedded', force=force)
        assert seen['replace'] is force
    assert inspect.signature(cli.llmbook_prepare).parameters['force'].default is False


@pytest.mark.parametrize('call, message', [
    (lambda: prepare(vocab_size='1000'), "expected vocab_size to be a whole number, got '1000'"),
    (lambda: prepare(seed=1.5), 'expected seed to be a whole number'),
    (lambda: show_card('x'), "expected a data card, got 'x'"),
    (lambda: card_html(None), 'expected a data card'),
    (lambda: lm_learner('my_data', ModelConfig(vocab_size=300)), r"got 'my_data': give lm_dls\('my_data', bs"),
    (lambda: load_pretrained('gpt2'), r"load_lm\('gpt2'\) and open_lm"),
    (lambda: load_pretrained('Qwen/Qwen3-0.6B'), r"load_lm\('Qwen/Qwen3-0.6B'\)"),
])
def test_a_first_mistake_is_one_line(call, message):
    with pytest.raises(UserError, match=message) as e: call()
    assert '\n' not in str(e.value)


def test_a_run_does_not_settle_in_a_folder_of_something_else(tmp_path):
    (tmp_path/'thesis.tex').write_text('do not lose me')
    before = snapshot(tmp_path)
    with pytest.raises(UserError, match='which holds thesis.tex: give another --out'):
        journey(tmp_path, Settings(minutes=.01), progress=lambda words: None)
    assert snapshot(tmp_path) == before


WARNS = '''import warnings
from llmbook import errors
errors.is_cli = lambda: True
@errors.plain_errors
def f(): warnings.warn("the file\\n is old")
f()'''

def test_a_warning_of_a_command_is_one_line_without_a_place_in_the_program():
    r = subprocess.run([sys.executable, '-c', WARNS], capture_output=True, text=True)
    assert r.stderr == 'warning: the file is old\n'


def test_warnings_stay_as_they_are_in_a_notebook():
    @plain_errors
    def f(): return 1
    before = warnings.formatwarning
    assert f() == 1 and warnings.formatwarning is before


def test_a_classifier_has_one_bar():
    tok = train_tokenizer(TEXTS, 300)
    model = Transformer(ModelConfig(vocab_size=tok.get_vocab_size(), n_layer=1, d_model=32, n_head=2, context=64))
    rows = TEXTS[:8], ['a', 'b'] * 4
    learn = class_learner(model, class_dls(tok, rows, rows, seq_len=32, bs=4, device='cpu'))
    bars = [cb for cb in learn.cbs if isinstance(cb, ProgressCallback)]
    assert [type(bar) for bar in bars] == [Progress]


def score(value, metric='bits_per_byte'):
    return dict(metric=metric, value=value, low=value - .01, high=value + .01, n=100, signature='x')


def test_what_chance_does_is_neither_better_nor_worse():
    assert better('toxicity_gap_null') == 0 and better('toxicity_gap') == -1
    assert difference(score(.5, 'toxicity_gap_null'), score(.1, 'toxicity_gap_null'))['verdict'] == 'less'


@pytest.mark.parametrize('low, high, verdict', [(-.3, -.1, 'better'), (-.3, .01, 'within noise'), (-.3, 0, 'within noise')])
def test_a_difference_whose_interval_holds_zero_is_not_called_better(low, high, verdict, monkeypatch):
    "An exact test over few items can say less than .05 where the interval over items still holds zero."
    found = dict(value=-.2, low=low, high=high, p=.04, n=9, method='signs')
    items = dict(ids=['a', 'b'], values=np.zeros(2), clusters=None, stat='mean')
    monkeypatch.setattr(runs, 'row_items', lambda row: items)
    monkeypatch.setattr(runs, 'item_stat', lambda name: None)
    monkeypatch.setattr(runs, 'paired_difference', lambda *args, **kwargs: found)
    monkeypatch.setattr(runs, 'weigh', lambda *args, **kwargs: SimpleNamespace(smallest=None))
    monkeypatch.setattr(runs, 'item_scores', lambda *args: None)
    assert difference(score(.5), score(.3))['verdict'] == verdict
