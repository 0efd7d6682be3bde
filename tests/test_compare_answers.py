"Two runs compared answer by answer, from the stores of two evaluations: in pairs, with flips and what differs."
from dataclasses import replace
import numpy as np
import pytest
import torch
from fastai.data.core import DataLoaders
from llmbook.core import UserError, set_seed
from llmbook.evaluate.items import ItemScore, ItemStore, Setting
from llmbook.evaluate.run import evaluate
from llmbook.evaluate.stats import item_ids
from llmbook.evaluate.tasks import EvalTask
from llmbook.model.config import ModelConfig
from llmbook.pretrain.run import lm_learner
from llmbook.tokens.loaders import TokenLoader
from llmbook.tokens.shards import TokenView
from llmbook.tokens.tokenizer import encode_text, train_tokenizer
from llmbook.verdict.compare import compare_answers, newest_answers
from llmbook.verdict.weigh import better

COLOURS = ['red', 'green', 'blue', 'grey']
THINGS = [first + last for first in ('ba', 'do', 'ku') for last in 'mnpt']
FACTS = [dict(thing=thing, colour=COLOURS[i % 4]) for i, thing in enumerate(THINGS)]
TASK = EvalTask('colours', FACTS, 'The {{thing}} is', choices=COLOURS, answer='colour')


def trained(tok, steps):
    "Return a tiny model that has read the facts for some steps."
    texts = [f"The {fact['thing']} is {fact['colour']}." for fact in FACTS]
    shuffled = [' '.join(np.random.default_rng(i).permutation(texts)) for i in range(8)]
    windows = TokenView([np.concatenate(encode_text(tok, shuffled)).astype(np.uint16)])
    loaders = [TokenLoader(windows, 8, 32, n, seed=n, tok=tok) for n in (steps, 1)]
    set_seed(0)
    config = ModelConfig(vocab_size=tok.get_vocab_size(), n_layer=1, d_model=32, n_head=2, context=48)
    learn = lm_learner(DataLoaders(*loaders, device=torch.device('cpu')), config, lr=2e-2, seed=0)
    with learn.no_bar(), learn.no_logging(): learn.fit_wsd(1)
    return learn.model


@pytest.fixture(scope='module')
def tok(): return train_tokenizer([f"The {f['thing']} is {f['colour']}." for f in FACTS] * 9, 300)


@pytest.fixture(scope='module')
def runs(tok, tmp_path_factory):
    folder = tmp_path_factory.mktemp('runs')
    few, many = trained(tok, 2), trained(tok, 80)
    return [evaluate(model, tok, TASK, folder/name, label=name) for model, name in ((few, 'few'), (many, 'many'))]


def test_two_trained_runs_are_compared_in_pairs(runs):
    few, many = runs
    found = compare_answers(few, many)
    said = {verdict.metric: verdict for verdict in found.verdicts}
    acc = said['colours acc']
    assert acc.difference == pytest.approx(many.value('colours acc') - few.value('colours acc'))
    assert acc.items == 12 and acc.p_holm >= acc.p
    assert acc.word == 'better' and said['colours brier'].word == 'better'
    assert 'colours chance' not in said # no side is better
    up, down = found.flipped('colours')
    assert up - down == round(12 * acc.difference)
    assert set(found.differs['colours']) == {'model', 'label'}
    assert found.paired['colours'] == (12, 0)


def test_a_pair_of_runs_gives_the_same_from_their_folders(runs):
    from_folders = compare_answers(*(str(run.store.path) for run in runs))
    assert from_folders.lines() == compare_answers(*runs).lines()
    page = from_folders._repr_html_()
    assert 'better' in page and '<table' in page


def test_pairs_find_what_intervals_would_not(tmp_path): # lm-evaluation-harness#3831
    r = np.random.default_rng(0)
    hard = r.random(300)
    stores = []
    for name, gain in (('a', 0.), ('b', .05)):
        scores = (hard < .5 + gain).astype(float)
        stores.append(stored(tmp_path/name, {f'q{i}': dict(acc=float(s)) for i, s in enumerate(scores)}, name))
    found = compare_answers(*stores)
    verdict, = found.verdicts
    assert verdict.is_found
    unpaired = 1.96 * np.sqrt(2 * .25 / 300) # half the width of an interval of the difference of two such scores
    assert verdict.difference < unpaired


def stored(path, scores, model='m', clusters=None, **more):
    "Return a store with the answers of one setting."
    store = ItemStore(path)
    key = store.begin(Setting('task', model, 'tokenizer', **more))
    names = item_ids(list(scores))
    items = [ItemScore(name, values, prompt=text, cluster=(clusters or {}).get(text, ''))
             for name, (text, values) in zip(names, scores.items())]
    store.add(key, items)
    return store


def test_sources_that_items_share_widen_the_interval(tmp_path):
    scores = {f'q{i}': dict(acc=float(i < 10)) for i in range(20)}
    others = {f'q{i}': dict(acc=float(i < 15)) for i in range(20)}
    source = {f'q{i}': str(i // 5) for i in range(20)}
    alone = compare_answers(stored(tmp_path/'a', scores), stored(tmp_path/'b', others, 'n')).verdicts[0]
    stores = stored(tmp_path/'c', scores, clusters=source), stored(tmp_path/'d', others, 'n', clusters=source)
    together = compare_answers(*stores).verdicts[0]
    assert together.high - together.low > alone.high - alone.low


def test_items_of_one_side_are_left_out_and_counted(tmp_path):
    scores = {f'q{i}': dict(acc=float(i % 2), perplexity=(2. * i + 3, i + 1.)) for i in range(12)}
    fewer = {name: values for name, values in list(scores.items())[3:]}
    found = compare_answers(stored(tmp_path/'a', scores), stored(tmp_path/'b', fewer, 'n', seed=3))
    assert found.paired['task'] == (9, 3) and '3 answered by one of the two' in repr(found)
    assert [verdict.word for verdict in found.verdicts] == ['equal', 'equal']
    assert found.differs['task'] == dict(model=('m', 'n'), seed=(0, 3))


def test_the_newest_of_several_settings_counts(runs, tok, tmp_path):
    few, many = runs
    model = trained(tok, 3)
    for shots in (0, 1): evaluate(model, tok, replace(TASK, shots=shots), tmp_path)
    store = ItemStore(tmp_path/'items')
    assert len(store.keys()) == 2
    setting, answers = newest_answers(store)['colours']
    assert len(answers) == 12 and setting.options['shots'] in (0, 1)


@pytest.mark.parametrize('given', [3, 'nowhere', None])
def test_what_holds_no_answers_is_refused(given, runs):
    with pytest.raises(UserError, match='expected an evaluation'): compare_answers(runs[0], given)


def test_other_tasks_and_other_items_are_refused(tmp_path):
    first = stored(tmp_path/'a', {'q': dict(acc=1.), 'r': dict(acc=0.)})
    others = stored(tmp_path/'b', {'s': dict(acc=1.)})
    with pytest.raises(UserError, match='none in common'): compare_answers(first, others)
    with pytest.raises(UserError, match='one task'): compare_answers(first, empty(tmp_path/'c'))


def empty(path):
    "Return a store that holds a setting of another task."
    store = ItemStore(path)
    key = store.begin(Setting('other', 'm', 't'))
    store.add(key, [ItemScore('a', dict(acc=1.))])
    return store


@pytest.mark.parametrize('metric, way', [('towns acc', 1), ('towns brier', -1), ('towns words', 0), ('acc_norm', 1),
                                         ('sums exact_match', 1), ('bleu_null', 0), ('perplexity', -1)])
def test_a_measure_of_a_task_has_its_side(metric, way): assert better(metric) == way
