"The store of scores: nothing is lost, nothing stale is served, and rows come from items alone."
import json, math
from dataclasses import replace
from pathlib import Path
import numpy as np
import pandas as pd
import pytest
import torch
from llmbook.core import UserError, write_json
from llmbook.evaluate.items import (
    MEASURES, ItemScore, ItemStore, Measure, Setting, item_values, measure_of, model_fingerprint, old_rows,
    rows_as_items, score_rows
)
from llmbook.evaluate.run import evaluate
from llmbook.evaluate.stats import clustered_error, item_ids, row_items
from llmbook.evaluate.tasks import EvalTask
from llmbook.model.config import ModelConfig
from llmbook.model.transformer import Transformer
from llmbook.tokens.tokenizer import train_tokenizer

SETTING = Setting('task', 'model', 'tokenizer', data='data', options=dict(shots=2))


def answers(n, **more):
    names = item_ids([f'question {i}' for i in range(n)])
    return [ItemScore(name, dict(acc=float(i % 2)), f'question {i}', **more) for i, name in enumerate(names)]


@pytest.fixture
def store(tmp_path): return ItemStore(tmp_path/'items')


@pytest.fixture(scope='module')
def tiny():
    words = 'The capital of France Italy Spain Greece is Paris Rome Madrid Athens .'
    tok = train_tokenizer([words] * 30, 320)
    torch.manual_seed(0)
    shape = dict(vocab_size=tok.get_vocab_size(), n_layer=2, d_model=32, n_head=2, n_kv_head=1, context=96)
    return Transformer(ModelConfig(**shape)).eval(), tok


def capitals(**options):
    towns = dict(France='Paris', Italy='Rome', Spain='Madrid', Greece='Athens')
    docs = [dict(country=country, capital=town) for country, town in towns.items()]
    return EvalTask('capitals', docs, 'The capital of {{ country }} is', list(towns.values()), 'capital', **options)


# ---- what is stored ----

def test_pandas_reads_a_setting_without_the_package(store):
    key = store.begin(SETTING)
    store.add(key, answers(5, details=dict(choices=['a', 'b'])))
    table = pd.read_parquet(store.path/key)
    assert table['prompt'].tolist() == [f'question {i}' for i in range(5)]
    assert [json.loads(s) for s in table['scores']] == [dict(acc=float(i % 2)) for i in range(5)]


def test_a_table_has_settings_scores_and_details(store):
    key = store.begin(replace(SETTING, label='mine'))
    store.add(key, answers(4))
    table = store.read(task='task', model='mine')
    assert table['score_acc'].tolist() == [0., 1., 0., 1.]
    assert set(table['key']) == {key}
    assert len(store.read(task='another')) == 0


def test_text_that_is_no_unicode_is_stored(store):
    key = store.begin(SETTING)
    store.add(key, [ItemScore('a', dict(acc=1.), prompt='half \ud800 pair', answer='\x00')])
    assert store.read(key)['answer'].tolist() == ['\x00']


def test_an_item_counts_once(store):
    key = store.begin(SETTING)
    store.add(key, answers(3))
    store.add(key, answers(3))
    assert len(store.read(key)) == 3


def test_a_damaged_part_is_asked_again(store):
    key = store.begin(SETTING)
    store.add(key, answers(2))
    store.add(key, answers(4)[2:])
    (store.path/key/'part-000000.parquet').write_bytes(b'PAR1')
    with pytest.warns(UserWarning, match='cannot be read'): done = store.done(key)
    assert done == {(item.item, 0) for item in answers(4)[2:]}


def test_unfinished_parts_are_not_read(store):
    key = store.begin(SETTING)
    (store.path/key/'.part-000000.parquet.123.tmp').write_bytes(b'half')
    assert store.done(key) == set()


# ---- what is never stale (ao#3073) ----

@pytest.mark.parametrize('change', [
    dict(model='other'), dict(tokenizer='other'), dict(version='2'), dict(data='other'), dict(seed=1),
    dict(options=dict(shots=3)), dict(task='other')])
def test_a_changed_setting_has_another_key(change):
    assert replace(SETTING, **change).key != SETTING.key
    assert replace(SETTING, label='a name', measures={}).key == SETTING.key


def test_ao_3073_a_changed_weight_is_another_model(tiny):
    model, _ = tiny
    before = model_fingerprint(model)
    with torch.no_grad(): model.blocks[0].attn.q_proj.weight[0, 0] += 1e-4
    after = model_fingerprint(model)
    with torch.no_grad(): model.blocks[0].attn.q_proj.weight[0, 0] -= 1e-4
    assert before != after
    assert model_fingerprint(Transformer(ModelConfig(**{**model.config.to_dict(), 'rope_theta': 5e4}))) != before


@pytest.mark.parametrize('change', [
    dict(prompt='{{ country }}:'), dict(shots=1), dict(order=1), dict(delimiter='  '), dict(letters=True),
    dict(version='2')])
def test_a_changed_task_is_asked_anew(tiny, tmp_path, change):
    first = evaluate(*tiny, capitals(), tmp_path, progress=False)
    second = evaluate(*tiny, replace(capitals(), **change), tmp_path, progress=False)
    assert first.keys != second.keys


def test_nothing_is_computed_twice(tiny, tmp_path, monkeypatch):
    first = evaluate(*tiny, capitals(shots=2), tmp_path, progress=False)
    def never(*args): raise AssertionError('asked again')
    monkeypatch.setattr('llmbook.evaluate.run.LikelihoodRun', never)
    assert evaluate(*tiny, capitals(shots=2), tmp_path, progress=False).rows == first.rows


# ---- killed and resumed (lm-eval#2533 #2140, lighteval#880) ----

@pytest.mark.parametrize('after', [0, 1, 3])
def test_lm_eval_2533_a_kill_anywhere_gives_the_same_rows(tiny, tmp_path, monkeypatch, after):
    whole = evaluate(*tiny, capitals(shots=2), tmp_path/'whole', progress=False)
    add, written = ItemStore.add, []

    class Killed(BaseException): pass

    def cut(self, key, items):
        if len(written) >= after: raise Killed
        written.extend(items)
        add(self, key, items)

    monkeypatch.setattr('llmbook.evaluate.run._SAVE_SECONDS', 0.)
    monkeypatch.setattr(ItemStore, 'add', cut)
    with pytest.raises(Killed): evaluate(*tiny, capitals(shots=2), tmp_path/'cut', batch_size=1, progress=False)
    monkeypatch.setattr(ItemStore, 'add', add)
    there = len(ItemStore(tmp_path/'cut/items').read())
    assert there == after
    resumed = evaluate(*tiny, capitals(shots=2), tmp_path/'cut', progress=False)
    assert_same_rows(whole.rows, resumed.rows)


def assert_same_rows(rows, others):
    assert [row_items(r)['ids'] for r in rows] == [row_items(r)['ids'] for r in others]
    assert [r['metric'] for r in rows] == [r['metric'] for r in others]
    for one, other in zip(rows, others):
        assert one['n'] == other['n']
        assert one['value'] == pytest.approx(other['value'], abs=1e-5)
        assert one['low'] == pytest.approx(other['low'], abs=1e-4)


def test_drawn_answers_are_the_same_after_a_kill(tiny, tmp_path):
    def written(found):
        items = found.items().sort_values(['item', 'repeat'])
        return items['answer'].tolist()

    docs = [dict(a=i) for i in range(5)]
    drawn = dict(max_new_tokens=4, temperature=1., repeats=3)
    sums = EvalTask('sums', docs, 'France {{ a }}', answer='Paris', **drawn)
    whole = evaluate(*tiny, sums, tmp_path/'whole', progress=False)
    part = evaluate(*tiny, sums, tmp_path/'part', limit=2, progress=False)
    assert part.rows[0]['n'] == 2
    resumed = evaluate(*tiny, sums, tmp_path/'part', progress=False)
    assert written(resumed) == written(whole)


# ---- rows ----

def test_attempts_are_averaged_by_question(store):
    key = store.begin(SETTING)
    right = dict(a=[1., 1., 0., 0.], b=[0., 0., 0., 0.], c=[1., 0., 0., 0.])
    for repeat in range(4):
        items = []
        for name, scores in right.items():
            items.append(ItemScore(name, dict(exact_match=scores[repeat]), repeat=repeat))
        store.add(key, items)
    rows = score_rows(store, key, ['exact_match', 'pass@1', 'pass@2'])
    mean, one, two = [r['value'] for r in rows]
    assert mean == pytest.approx((2 / 4 + 0 + 1 / 4) / 3)
    assert one == mean
    assert two == pytest.approx((5 / 6 + 0 + 1 / 2) / 3) # of the six pairs of a's attempts, one has none that is right


def test_pass_at_k_needs_k_attempts(store):
    key = store.begin(SETTING)
    store.add(key, [ItemScore('a', dict(exact_match=1.), repeat=repeat) for repeat in range(2)])
    with pytest.raises(UserError, match='n=2, c=2, k=3'): score_rows(store, key, ['pass@3'])


def test_evaluate_688_a_ratio_is_one_of_sums(store):
    key = store.begin(SETTING)
    store.add(key, [ItemScore('a', dict(perplexity=(10., 5.))), ItemScore('b', dict(perplexity=(1., 20.)))])
    r, = score_rows(store, key)
    assert r['value'] == pytest.approx(math.exp(11 / 25))
    assert r['value'] != pytest.approx((math.exp(2) + math.exp(.05)) / 2)


def test_lm_eval_760_every_measure_has_a_target_or_a_reason():
    for name, measure in MEASURES.items(): assert measure.target is not None or measure.why, name
    assert measure_of('stereotype_share').target == .5
    assert measure_of('stereotype_share').better == 'near target'
    assert measure_of('brier').target == 0.
    assert measure_of('perplexity').target is None


def test_helm_766_no_item_gives_no_value_and_its_reason(store):
    key = store.begin(SETTING)
    store.add(key, [ItemScore('a', dict(share=None), details=dict(reason='nobody is mentioned'))])
    r, = score_rows(store, key)
    assert (r['value'], r['low'], r['n'], r['reason']) == (None, None, 0, 'nobody is mentioned')


def test_the_error_of_clustered_items():
    assert clustered_error([1, 1, 0, 0]) == pytest.approx(.2887, abs=1e-4)
    assert clustered_error([1, 1, 0, 0], ['a', 'a', 'b', 'b']) == pytest.approx(.3819, abs=1e-4)


def test_clusters_widen_the_interval(store):
    alone, together = store.begin(SETTING), store.begin(replace(SETTING, seed=9))
    r = np.random.default_rng(0)
    names = item_ids([str(i) for i in range(200)])
    by_passage = r.random(20) < .5
    singles, clustered = [], []
    for i, name in enumerate(names):
        passage = i // 10
        scores = dict(acc=float(by_passage[passage]))
        singles.append(ItemScore(name, scores))
        clustered.append(ItemScore(name, scores, cluster=f'passage {passage}'))
    store.add(alone, singles)
    store.add(together, clustered)
    wide, = score_rows(store, together)
    narrow, = score_rows(store, alone)
    assert wide['high'] - wide['low'] > 2 * (narrow['high'] - narrow['low'])
    assert '20 clusters' in wide['signature']


def test_lighteval_408_the_bootstrap_needs_sums_of_clusters(store, monkeypatch):
    from llmbook.evaluate import items
    real = items.bootstrap
    sizes = []

    def counted(values, *args, **kwargs):
        sizes.append(len(values))
        return real(values, *args, **kwargs)

    monkeypatch.setattr(items, 'bootstrap', counted)
    key = store.begin(SETTING)
    store.add(key, [ItemScore(str(i), dict(acc=1.), cluster=str(i % 5)) for i in range(500)])
    score_rows(store, key)
    assert sizes == [5]


def test_rows_carry_their_items(store):
    key = store.begin(SETTING)
    store.add(key, answers(6))
    r, = score_rows(store, key)
    names, values, _ = item_values(store.read(key), 'acc')
    assert names == row_items(r)['ids']
    wanted = {item.item: item.scores['acc'] for item in answers(6)}
    assert dict(zip(names, row_items(r)['values'])) == wanted


# ---- old evaluations ----

def test_old_evaluations_open(tmp_path):
    made = Path(__file__).parent/'made_by_0_1_0'
    files = sorted(made.rglob('evaluation.json'))
    for file in files:
        assert old_rows(file)
        assert old_rows(file.parent)
    rows = [dict(metric='m', value=.5, low=None, high=None, n=2, split='test', signature='s',
                 items=dict(stat='mean', ids='a b', values='0 1'))]
    write_json(tmp_path/'evaluation.json', dict(rows=rows))
    assert rows_as_items(old_rows(tmp_path))['numerator'].tolist() == [0., 1.]


def test_rows_of_other_tasks_stay_in_the_file(tiny, tmp_path):
    old = dict(metric='perplexity', value=9., low=8., high=10., n=3, split='test', signature='old')
    write_json(tmp_path/'evaluation.json', dict(rows=[old]))
    evaluate(*tiny, capitals(), tmp_path, progress=False)
    evaluate(*tiny, capitals(), tmp_path, progress=False)
    metrics = [r['metric'] for r in old_rows(tmp_path)]
    assert metrics[0] == 'perplexity'
    assert metrics.count('capitals acc') == 1


# ---- refused ----

@pytest.mark.parametrize('item, why', [
    (dict(item='a', scores=dict(acc=1.)), 'ItemScore'),
    (ItemScore('', dict(acc=1.)), 'without spaces'),
    (ItemScore('a b', dict(acc=1.)), 'without spaces'),
    (ItemScore('a', {}), 'a score at least'),
    (ItemScore('a', dict(acc=math.inf)), 'finite number'),
    (ItemScore('a', dict(acc='1')), 'finite number'),
    (ItemScore('a', dict(acc=(1., 2., 3.))), 'finite number')])
def test_bad_items_are_refused_before_anything_is_written(store, item, why):
    key = store.begin(SETTING)
    with pytest.raises(UserError, match=why): store.add(key, [*answers(2), item])
    assert store.done(key) == set()


def test_bad_stores_and_settings_are_refused(store, tmp_path):
    (tmp_path/'file').write_text('x')
    with pytest.raises(UserError, match='found a file'): ItemStore(tmp_path/'file')
    with pytest.raises(UserError, match='expected path to be'): ItemStore(3)
    with pytest.raises(UserError, match='expected a Setting'): store.begin('task')
    with pytest.raises(UserError, match='expected a key'): store.add('../../etc', answers(1))
    with pytest.raises(UserError, match='expected a stat'): Measure('median')
    key = store.begin(SETTING)
    (store.path/key/'_setting.json').write_text('{"other": 1}')
    with pytest.raises(UserError, match='expected a setting'): store.setting(key)
    with pytest.raises(UserError, match='found none'): old_rows(tmp_path/'nothing.json')
    with pytest.raises(UserError, match='expected a measure'): item_values(pd.DataFrame(dict(item=['a'])), 'acc')
