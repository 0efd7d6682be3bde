"Multiple choice, shots, calibration, CORE and tasks, held against definitions and against lm-evaluation-harness."
import json, math
from dataclasses import replace
import numpy as np
import pytest
import torch
from llmbook.core import UserError, import_transformers
from llmbook.evaluate import perplexity
from llmbook.evaluate.sides import measure_text
from llmbook.evaluate.calibration import (
    brier_binary, brier_summed, calibration_error, calibration_rows, confidences, reliability_table, selective_accuracy
)
from llmbook.evaluate.choices import choice_scores, choice_values, draw_shots, letters_of, shares_of, shuffled
from llmbook.evaluate.core_score import CORE_BASELINES, core_row, core_score, load_core
from llmbook.evaluate.item_page import changed_items, pick_items, show_items
from llmbook.evaluate.logs import write_harness_samples, write_inspect_log
from llmbook.evaluate.run import evaluate, order_spread, prompt_spread
from llmbook.evaluate.stats import item_ids, row, with_items
from llmbook.evaluate.task_files import EMBEDDED, load_task, task_from_facts
from llmbook.evaluate.tasks import EvalTask, extract_answer, prompted, questions, same_answer, token_f1
from llmbook.model.config import ModelConfig
from llmbook.model.hf import save_pretrained
from llmbook.model.transformer import Transformer
from llmbook.tokens.tokenizer import train_tokenizer

TOWNS = dict(France='Paris', Italy='Rome', Spain='Madrid', Greece='Athens', Austria='Vienna', Peru='Lima')
DOCS = [dict(country=country, capital=town) for country, town in TOWNS.items()]


def capitals(**options):
    options = dict(prompt='The capital of {{ country }} is', choices=list(TOWNS.values()), answer='capital') | options
    return EvalTask('capitals', DOCS, **options)


@pytest.fixture(scope='module')
def tiny():
    words = f"The capital of {' '.join(TOWNS)} is {' '.join(TOWNS.values())} . Question : Answer 1 2 3 4 5 + = \n"
    tok = train_tokenizer([words] * 30, 340)
    torch.manual_seed(0)
    shape = dict(vocab_size=tok.get_vocab_size(), n_layer=2, d_model=48, n_head=4, n_kv_head=2, context=256)
    model = Transformer(ModelConfig(**shape)).eval()
    with torch.no_grad():
        for p in model.parameters(): p.mul_(2)
    return model, tok


# ---- values of choices ----

def test_each_rule_divides_by_its_own_length():
    values = choice_values([-6., -8.], ['Zürich', 'Ulm'], tokens=[2, 1], unconditional=[-9., -9.])
    assert values['acc'].tolist() == [-6., -8.]
    assert values['acc_norm'].tolist() == [-1., -8 / 3]
    assert values['acc_bytes'].tolist() == [-6 / 7, -8 / 3]
    assert values['acc_token'].tolist() == [-3., -8.]
    assert values['acc_mutual_info'].tolist() == [3., 1.]


def test_several_choices_may_be_right():
    scores, _ = choice_scores(choice_values([-1., -2., -3.], ['a', 'b', 'c']), [1, 0])
    assert scores['acc'] == 1.


def test_near_ties_are_marked():
    _, details = choice_scores(choice_values([-1., -1. - 9e-5], ['ab', 'cd']), [0])
    assert details['near_ties'] == ['acc', 'acc_norm', 'acc_bytes']
    _, details = choice_scores(choice_values([-1., -1.01], ['ab', 'cd']), [0])
    assert 'near_ties' not in details


def test_shares_of_very_unlikely_choices_are_numbers():
    assert shares_of([-5000., -5001.]) == pytest.approx([1 / (1 + math.exp(-1)), 1 - 1 / (1 + math.exp(-1))])


# ---- shots (lighteval#1307, nanochat#551) ----

def test_lighteval_1307_shots_are_a_pure_function_of_the_seed_and_the_question():
    names = [f'q{i}' for i in range(30)]
    reversed_pool = names[::-1]
    first = [draw_shots(names, 5, name, seed=3) for name in names]
    asked_in_reverse = [draw_shots(names, 5, name, seed=3) for name in reversed_pool]
    of_another_seed = [draw_shots(names, 5, name, seed=4) for name in names]
    assert asked_in_reverse == first[::-1]
    assert of_another_seed != first
    for name, drawn in zip(names, first):
        again = draw_shots(reversed_pool, 5, name, seed=3)
        assert [reversed_pool[i] for i in again] == [names[i] for i in drawn]


def test_a_limit_does_not_change_the_shots(tiny, tmp_path):
    task = capitals(shots=2)
    few = evaluate(*tiny, task, tmp_path/'few', limit=2, progress=False).items()
    all_of_them = evaluate(*tiny, task, tmp_path/'all', progress=False).items()
    assert few['prompt'].tolist() == all_of_them['prompt'].tolist()[:2]


def test_a_question_is_never_its_own_example():
    names = [f'q{i}' for i in range(6)]
    for name in names: assert names.index(name) not in draw_shots(names, 5, name)
    asked = prompted(replace(capitals(shots=5), docs=[DOCS[0], *DOCS]))
    assert 'France is Paris' not in asked.before(asked.questions[0])


def test_nanochat_551_more_shots_than_questions_are_refused(tiny):
    with pytest.raises(UserError, match='at most 5 shots'): evaluate(*tiny, capitals(shots=6), progress=False)


def test_fixed_shots_are_the_first_ones():
    asked = prompted(capitals(shots=2, fixed_shots=True))
    assert asked.before(asked.questions[3]) == 'The capital of France is Paris\n\nThe capital of Italy is Rome\n\n'


# ---- orders and prompts ----

def test_an_order_keeps_what_is_right():
    for seed in range(20):
        choices, gold = shuffled(['a', 'b', 'c', 'd'], [1, 3], 'q', seed)
        assert {choices[g] for g in gold} == {'b', 'd'}
    assert shuffled(['a', 'b'], [0], 'q', 0) == (['a', 'b'], [0])


def test_spreads_of_orders_and_prompts(tiny):
    prompt = '{{ country }}? {% for o in options %}{{ "ABCDEF"[loop.index0] }} {{ o }} {% endfor %}'
    spread = order_spread(*tiny, capitals(letters=True, prompt=prompt), orders=3, progress=False)
    assert list(spread.values) == ['order 0', 'order 1', 'order 2']
    assert min(spread.values.values()) <= spread.mean() <= max(spread.values.values())
    assert prompt_spread(*tiny, capitals(), ['{{ country }}', '{{ country }}:'], progress=False).deviation() is not None


def test_nanochat_806_a_task_whose_input_does_not_matter_keeps_its_score(tiny):
    blind = evaluate(*tiny, capitals(prompt='The capital is'), progress=False)
    assert len(set(blind.items()['answer'])) == 1 # one answer to every question: the prompt was not read
    assert blind.value('capitals acc') == pytest.approx(blind.value('capitals chance'))


# ---- calibration ----

def test_the_calibration_error_of_five_answers():
    assert calibration_error([.25, .25, .55, .75, .75], [0, 0, 1, 1, 1], bins=2) == pytest.approx(.29)


def test_both_brier_scores():
    assert brier_summed([.7, .3], 0) == pytest.approx(.18)
    assert brier_binary(.7, True) == pytest.approx(.09)


def test_bins_of_equal_mass_hold_equally_many():
    table = reliability_table(np.linspace(.01, .3, 40), np.ones(40), bins=4, equal='mass')
    assert table['n'].tolist() == [10] * 4


def test_the_error_is_zero_for_a_calibrated_model():
    sure = np.repeat([.25, .75], 400)
    right = np.concatenate([np.arange(400) % 4 == 0, np.arange(400) % 4 > 0]).astype(float)
    assert calibration_error(sure, right, bins=2) == pytest.approx(0)


def test_selective_accuracy_answers_the_surest_first():
    found = selective_accuracy([.9, .8, .3, .2], [1, 1, 0, 0], [.5, 1.])
    assert (found[.5], found[1.]) == (1., .5)
    assert found['area'] == pytest.approx((1 + 1 + 2 / 3 + 1 / 2) / 4)


def test_calibration_of_an_evaluation(tiny):
    table = evaluate(*tiny, capitals(), progress=False).items()
    sure, right = confidences(table)
    rows = {r['metric']: r['value'] for r in calibration_rows(table, bins=3)}
    assert rows['overconfidence'] == pytest.approx(sure.mean() - right.mean())
    assert rows['brier_binary'] == pytest.approx(((sure - right) ** 2).mean())


# ---- CORE ----

QWEN2_7B = [
    .7810196876525879, .4893040835857391, .7403178811073303, .813973069190979, .5810580253601074, .8600000143051147,
    .8583128452301025, .8030467629432678, .4580000042915344, .7189986705780029, .7911770343780518, .8681318759918213,
    .7245461940765381, .17399999499320984, .3478260934352875, .5386363863945007, .699999988079071, .53125,
    .6749290227890015, .46461230516433716, .8715596199035645, .5712000131607056]
OLMO_1B = [
    .6224855780601501, .20928356647491456, .6497711539268494, .6342592835426331, .3464163839817047, .699999988079071,
    .2702702581882477, .7611533999443054, .3700000047683716, .5635551810264587, .6331408023834229, .7545787692070007,
    .5998421311378479, .21799999475479126, .23043477535247803, .4371212124824524, .2142857164144516, .03125,
    .3736991584300995, .3020167946815491, .5400611758232117, .258899986743927]


@pytest.mark.parametrize('accuracies, version, published', [
    (OLMO_1B, 1, .29721629605993444), (OLMO_1B, 2, .2723463896451061),
    (QWEN2_7B, 1, .5746248774239971), (QWEN2_7B, 2, .564871379370866)])
def test_core_is_the_published_one(accuracies, version, published):
    assert core_score(dict(zip(CORE_BASELINES, accuracies)), version) == pytest.approx(published, abs=1e-12)


def test_the_interval_of_core_comes_from_its_items():
    right = np.arange(100) % 2
    rows = []
    for name in CORE_BASELINES:
        r = with_items(row(f'{name} acc', .5, n=100), item_ids([f'{name}{i}' for i in range(100)]), right)
        rows.append({**r, 'task': name})
    r = core_row(rows)
    assert r['low'] < r['value'] < r['high']
    assert r['n'] == 2200
    with pytest.raises(UserError, match='21 are missing'): core_row(rows[:1])
    assert core_row(rows[:1], partial=True)['metric'] == 'centred mean of 1 tasks of CORE'


def test_core_from_a_folder(tiny, tmp_path):
    (tmp_path/'eval_data').mkdir()
    copa = dict(query='The capital of Italy is', choices=['Rome', 'Paris'], gold=0)
    winograd = dict(context_options=['Rome is', 'Paris is'], continuation='Italy', gold=0)
    squad = dict(context='Italy :', continuation='Rome')
    tasks = [('copa', 'multiple_choice', copa), ('winograd', 'schema', winograd), ('squad', 'language_modeling', squad)]
    lines = ['icl_tasks:']
    for name, kind, record in tasks:
        lines.append(f'- {{label: {name}, dataset_uri: {name}.jsonl, num_fewshot: [0], icl_task_type: {kind}}}')
        (tmp_path/f'eval_data/{name}.jsonl').write_text(json.dumps(record) + '\n')
    (tmp_path/'core.yaml').write_text('\n'.join(lines))
    found = evaluate(*tiny, load_core(tmp_path), progress=False)
    assert [r['metric'] for r in found.rows] == ['copa acc', 'winograd acc', 'squad greedy']
    assert core_row(found.rows, partial=True)['n'] == 3


# ---- tasks ----

def test_a_task_is_ten_lines(tiny):
    found = evaluate(*tiny, EvalTask(
        'sums',
        docs=[dict(a=a, b=b) for a in range(3) for b in range(3)],
        prompt='{{ a }} + {{ b }} =',
        answer='{{ a + b }}',
        max_new_tokens=3,
        metrics={'right': lambda answer, right, record: float(answer in right)},
    ), progress=False)
    assert [r['metric'] for r in found.rows] == ['sums right']
    assert found.rows[0]['n'] == 9


def test_written_answers_are_held_to_a_form(tiny, tmp_path):
    pytest.importorskip('llguidance')
    towns = list(TOWNS.values())
    def share_of_towns(**options):
        kept = {'town': lambda answer, right, record: float(answer in towns)}
        task = EvalTask('capitals', DOCS, 'The capital of {{ country }} is', answer='capital', metrics=kept, **options)
        row, = evaluate(*tiny, task, tmp_path, progress=False).rows
        return row['value'], row['signature']
    free, its_signature = share_of_towns()
    held, signature = share_of_towns(constrain=dict(choice=[f' {town}' for town in towns]))
    assert (free, held) == (0, 1)
    assert signature.replace('|held to:choice', '') == its_signature != signature
    assert share_of_towns()[0] == 0 # the store keeps both apart


def test_every_record_is_accounted_for(tiny, tmp_path):
    docs = [*DOCS, dict(country='Atlantis'), dict(country='Mars', capital='Olympus')]
    found = evaluate(*tiny, replace(capitals(), docs=docs), tmp_path, progress=False)
    account, = found.accounts
    assert (account['records'], account['asked'], account['set_aside']) == (8, 6, 2)
    assert account['reasons'] == {"no field 'capital'": 1, "expected one of the choices, got 'Olympus'": 1}
    assert '2 of 8 records set aside' in found._repr_html_()


def test_a_choice_that_is_too_long_is_not_scored_and_counted(tiny):
    task = replace(capitals(), choices=[*TOWNS.values(), 'Rome ' * 400])
    found = evaluate(*tiny, task, progress=False)
    assert found.rows[0]['n'] == 0
    assert found.rows[0]['value'] is None
    assert 'at most 256 tokens' in found.rows[0]['reason']


@pytest.mark.parametrize('text, rule, wanted', [
    ('The answer is 42.', r'\d+', '42'), ('1 then 2', (r'\d+', -1), '2'), ('none', r'\d+', '[invalid]'),
    ('#### 5', r'#### (\d+)', '5'), (' plain ', None, 'plain'), ('x', lambda t: t * 2, 'xx'),
    ('a7', r'(b\d)|(a\d)', 'a7')])
def test_answers_are_extracted(text, rule, wanted): assert extract_answer(text, rule) == wanted


def test_answers_are_compared_as_asked():
    assert same_answer('$1,000', ['1000'], regexes_to_ignore=[',', r'\$']) == 1
    assert same_answer('Yes!', ['yes'], ignore_case=True, ignore_punctuation=True) == 1
    assert same_answer('yes', ['no', 'yes']) == 1
    assert token_f1('the cat sat', ['a cat']) == pytest.approx(2 / 3)


def test_embedded_tasks_can_be_asked(tiny):
    found = evaluate(*tiny, list(EMBEDDED), limit=4, progress=False)
    assert {r['task'] for r in found.rows} == set(EMBEDDED)


# ---- perplexity: which unit (lm-eval#806 #2301 #1833) ----

def test_lm_eval_2301_word_token_and_byte_stand_together(tiny):
    texts = ['The capital of Italy is Rome', 'Paris is the capital of France .']
    found = evaluate(*tiny, EvalTask('texts', texts, kind='text'), progress=False)
    nats, tokens, size = perplexity.document_nats(*tiny, texts).sum(0)
    words = sum(len(t.split()) for t in texts)
    wanted = dict(
        perplexity=math.exp(nats / tokens),
        word_perplexity=math.exp(nats / words),
        byte_perplexity=math.exp(nats / size),
        bits_per_byte=nats / size / math.log(2),
    )
    for name, value in wanted.items():
        assert found.value(f'texts {name}') == pytest.approx(value), name


def test_lm_eval_806_bits_per_byte_is_the_logarithm_of_byte_perplexity():
    assert math.log2(1.5015845643537054) == pytest.approx(.5864857250704371, abs=1e-12)


def test_lm_eval_806_one_text_gives_its_three_numbers():
    nats_of_byte, nats_of_word = math.log(1.5015845643537054), math.log(8.792073612124492)
    n_bytes = 1e6
    n_words = n_bytes * nats_of_byte / nats_of_word
    v = np.array([[n_bytes * nats_of_byte, 3e5, n_bytes]] * 2)
    found = {r['metric']: r['value'] for r in perplexity.unit_rows(v, [n_words, n_words])}
    assert found['word_perplexity'] == pytest.approx(8.792073612124492, abs=1e-12)
    assert found['byte_perplexity'] == pytest.approx(1.5015845643537054, abs=1e-12)
    assert found['bits_per_byte'] == pytest.approx(.5864857250704371, abs=1e-12)


# ---- perplexity: its sides ----

SIDE_TEXTS = ['word ' * n for n in (3, 30, 90, 300)]


def test_sides_are_read_once_and_are_the_rows_of_the_whole(tiny):
    docs = [dict(text=text, kind=kind, id=f'd{i}') for i, (text, kind) in enumerate(zip(SIDE_TEXTS, 'aabb'))]
    measured = measure_text(*tiny, docs, stride=64, edges=(16, 64))
    assert measured.rows() == perplexity.evaluate_text(*tiny, docs, stride=64)
    v = perplexity.document_nats(*tiny, docs, stride=64)
    assert measured.counts == pytest.approx(v, rel=1e-12)
    by_group = {(r.get('group'), r['metric']): r for r in measured.side_rows()}
    for kind, part in (('a', v[:2]), ('b', v[2:])):
        nats, tokens, size = part.sum(0)
        assert by_group[kind, 'perplexity']['value'] == pytest.approx(math.exp(nats / tokens))
        assert by_group[kind, 'bits_per_byte']['value'] == pytest.approx(nats / size / math.log(2))
    for r in by_group.values(): assert '|window:256|stride:64' in r['signature']


def test_positions_are_those_of_the_document(tiny):
    measured = measure_text(*tiny, SIDE_TEXTS, edges=(4, 16))
    one_by_one = [measure_text(*tiny, [text], edges=(4, 16)).bands[0] for text in SIDE_TEXTS]
    assert measured.bands == pytest.approx(np.array(one_by_one), rel=1e-5)
    context = tiny[0].config.context
    nats, documents = perplexity.position_nats(*tiny, SIDE_TEXTS, context=context)[:4].T
    assert measured.bands[:, 0].sum() == pytest.approx((nats * documents).sum(), rel=1e-5)
    groups = [r['group'] for r in measured.side_rows() if r.get('group')]
    assert groups[-3:] == ['tokens 1 to 4', 'tokens 5 to 16', 'from token 17']


def test_pieces_of_a_document_are_drawn_together_in_every_part(tiny):
    pieces = [dict(text=text, id=f'book #{i}', kind='b' if i else 'a') for i, text in enumerate(SIDE_TEXTS)]
    measured = measure_text(*tiny, pieces)
    part = [r for r in measured.side_rows() if r.get('group') == 'b']
    assert len(part) == 4
    for r in part: assert r['low'] is None # three pieces of one book are one draw


def test_a_perplexity_that_no_number_holds_is_none():
    v = np.array([[5e3, 10., 1e4]] * 3)
    found = {r['metric']: r['value'] for r in perplexity.unit_rows(v, [1, 1, 1])}
    assert found['word_perplexity'] is None
    assert found['perplexity'] == pytest.approx(math.exp(500))
    letters = math.log(8.792073612124492) / math.log(1.5015845643537054) # bytes a word of that text
    assert 5 < letters < 6


# ---- files of lm-evaluation-harness ----

YAML = '''
task: towns
output_type: multiple_choice
test_split: test
doc_to_text: "Question: capital of {{country}}?\\nAnswer:"
doc_to_choice: ["Paris", "Rome", "Madrid", "Athens", "Vienna", "Lima"]
doc_to_target: "{{['Paris', 'Rome', 'Madrid', 'Athens', 'Vienna', 'Lima'].index(capital)}}"
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
metric_list: [{metric: acc}, {metric: acc_norm}, {metric: acc_bytes}, {metric: acc_mutual_info}]
metadata: {version: 3.0}
'''


def written_task(folder, text=YAML):
    data = folder/'towns.jsonl'
    data.write_text('\n'.join(map(json.dumps, DOCS)))
    (folder/'towns.yaml').write_text(text.replace('DATA', str(data)))
    return folder/'towns.yaml'


def test_a_yaml_file_is_a_task(tmp_path):
    task = load_task(written_task(tmp_path))
    assert (task.name, task.version, task.unconditional) == ('towns', '3.0', True)
    asked = prompted(task)
    assert asked.pairs(asked.questions[1])[1] == ('Question: capital of Italy?\nAnswer:', ' Rome')
    assert asked.questions[1].gold == [1]


def test_scores_are_those_of_lm_eval(tiny, tmp_path):
    tf = import_transformers() # before others import it
    lm_eval = pytest.importorskip('lm_eval')
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    model, tok = tiny
    save_pretrained(model, tok, tmp_path/'model')
    hub_model = tf.AutoModelForCausalLM.from_pretrained(tmp_path/'model').eval()
    hub_tok = tf.AutoTokenizer.from_pretrained(tmp_path/'model')
    hub = HFLM(pretrained=hub_model, tokenizer=hub_tok, batch_size=4)
    file = written_task(tmp_path)
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    theirs = lm_eval.simple_evaluate(hub, tasks=['towns'], task_manager=manager, bootstrap_iters=0)
    found = evaluate(model, tok, load_task(file), progress=False)
    scores = theirs['results']['towns']
    for name in ('acc', 'acc_norm', 'acc_bytes', 'acc_mutual_info'):
        assert found.value(f'towns {name}') == pytest.approx(scores[f'{name},none']), name
    for sample, (_, ours) in zip(theirs['samples']['towns'], found.items().iterrows()):
        wanted = [float(resp[0][0]) for resp in sample['resps']][:6]
        assert ours['details']['logprob'] == pytest.approx(wanted, abs=1e-4)
        assert ours['prompt'] == sample['arguments'][0][0]


@pytest.mark.parametrize('change, why', [
    (dict(doc_to_text='!function utils.f'), 'needs code'), (dict(output_type='image'), 'expected output_type'),
    (dict(doc_to_image='x'), 'doc_to_image'), (dict(metric_list='[{metric: rouge9}]'), 'expected a measure'),
    (dict(include='../../../etc/passwd'), 'include')])
def test_what_a_file_cannot_do_is_refused(tmp_path, change, why):
    (name, value), = change.items()
    lines = [line for line in YAML.splitlines() if not line.startswith(name)]
    with pytest.raises(UserError, match=why): load_task(written_task(tmp_path, '\n'.join([*lines, f'{name}: {value}'])))


@pytest.mark.parametrize('text, why', [
    ('a: [', 'not YAML'), ('- 1', 'expected a task'), ('a: !!python/object/apply:os.system [x]', 'read safely')])
def test_files_that_are_no_tasks_are_refused(tmp_path, text, why):
    with pytest.raises(UserError, match=why): load_task(written_task(tmp_path, text))


@pytest.mark.parametrize('source', ['nothing', '', 3, None, '/no/such/file.yaml'])
def test_names_that_are_no_tasks_are_refused(source):
    with pytest.raises(UserError, match='expected'): load_task(source)


def test_filters_become_a_rule():
    last_number = dict(function='regex', regex_pattern=r'(\d+)', group_select=-1)
    take_first = dict(function='take_first')
    majority = dict(function='majority')
    records = [dict(q='1', a='2')]
    facts = dict(
        doc_to_text='{{q}}',
        doc_to_target='{{a}}',
        generation_kwargs=dict(until=['\n'], max_gen_toks=9),
        filter_list=[dict(filter=[last_number, take_first])],
        metric_list=[dict(metric='exact_match', ignore_case=True)],
    )
    task = task_from_facts(facts, records, path='sums.yaml')
    assert (task.kind, task.stop, task.max_new_tokens) == ('generate', ('\n',), 9)
    assert extract_answer('1 and 2', task.extract) == '2'
    assert task.normalise == dict(ignore_case=True)
    facts['filter_list'] = [dict(filter=[majority])]
    with pytest.raises(UserError, match='expected filters'): task_from_facts(facts, records)


# ---- logs and the page ----

def test_logs_hold_what_the_store_holds(tiny, tmp_path):
    found = evaluate(*tiny, capitals(shots=1), progress=False, label='tiny')
    key, = found.keys
    wanted = found.items()['score_acc'].tolist()
    harness_file = write_harness_samples(found.store, key, tmp_path)
    lines = [json.loads(line) for line in harness_file.read_text().splitlines()]
    assert [line['acc'] for line in lines] == wanted
    assert lines[0]['arguments']['gen_args_1']['arg_1'] == ' Rome'
    inspect_file = write_inspect_log(found.store, key, tmp_path)
    log = json.loads(inspect_file.read_text())
    assert [sample['scores']['acc']['value'] for sample in log['samples']] == wanted
    first_score = log['results']['scores'][0]
    assert first_score['metrics']['mean']['value'] == found.value('capitals acc')


def test_inspect_opens_its_log(tiny, tmp_path):
    log = pytest.importorskip('inspect_ai.log')
    found = evaluate(*tiny, capitals(), progress=False)
    read = log.read_eval_log(str(write_inspect_log(found.store, found.keys[0], tmp_path)))
    assert len(read.samples) == 6
    assert read.status == 'success'


def test_a_page_escapes_and_cuts(tiny):
    docs = [dict(country='<script>alert(1)</script>', capital='Paris'), dict(country='x' * 5000, capital='Rome')]
    table = evaluate(*tiny, replace(capitals(), docs=docs), progress=False).items()
    page = show_items(pick_items(table, 'acc'))
    assert '<script>' not in page
    assert '&lt;script&gt;' in page
    assert 'x' * 2000 not in page


def test_changes_come_first(tiny):
    model, tok = tiny
    before = evaluate(model, tok, capitals(), progress=False).items()
    after = evaluate(model, tok, capitals(prompt='{{ country }} :'), progress=False).items()
    changes = changed_items(before, after, 'brier')
    sizes = changes['change'].abs().tolist()
    assert sizes == sorted(sizes, reverse=True)
    assert len(changes) == 6


# ---- refused ----

@pytest.mark.parametrize('f, args, why', [
    (choice_values, ([-1.], ['a', 'b']), 'each of 2 choices'), (choice_values, ([], []), 'log-likelihood'),
    (choice_values, ([-1.], ['']), 'choices with text'), (letters_of, (30,), '1 to 26'),
    (draw_shots, (['a'], -1, 'a'), 'expected k'), (draw_shots, ('a', 1, 'a', 1.5), 'seed'),
    (calibration_error, ([1.1], [1]), 'from 0 to 1'), (calibration_error, ([.5], [2]), '0 or 1'),
    (calibration_error, ([], []), 'for each answer'), (reliability_table, ([.5], [1], 0), 'bins'),
    (reliability_table, ([.5], [1], 2, 'size'), "'width' or 'mass'"), (brier_summed, ([.5], 3), 'number of one'),
    (selective_accuracy, ([.5], [1], [2.]), 'coverage'), (core_score, ({},), '22 are missing')])
def test_bad_arguments_are_refused(f, args, why):
    with pytest.raises(UserError, match=why): f(*args)


@pytest.mark.parametrize('options, why', [
    (dict(name='a b'), 'expected a name'), (dict(docs=[]), 'list of records'), (dict(docs='x'), 'list of records'),
    (dict(docs=[1]), 'dictionaries'), (dict(kind='quiz'), 'expected a kind'), (dict(answer=None), 'expected an answer'),
    (dict(shots=-1), 'shots'), (dict(shots=1.5), 'shots'), (dict(kind='generate', repeats=2), 'temperature above 0'),
    (dict(pool=['x']), 'dictionaries'), (dict(constrain=dict(regex='a')), 'answers are written'),
    (dict(kind='generate', constrain='a+'), 'dict\\(regex'),
    (dict(kind='generate', constrain=dict(regex='(')), 'kept to')])
def test_bad_tasks_are_refused(options, why):
    facts = dict(name='t', docs=DOCS, prompt='{{ country }}', choices=['Paris'], answer='capital') | options
    with pytest.raises(UserError, match=why): EvalTask(**facts)


@pytest.mark.parametrize('prompt', ['{{ country', '{{ nobody }}', '{% for i in range(10**9) %}x{% endfor %}', 5])
def test_prompts_that_cannot_be_made_are_refused(prompt):
    with pytest.raises(UserError, match='expected'): prompted(replace(capitals(), prompt=prompt))


# ---- the command ----

def test_the_command_asks_tasks_and_refuses_what_it_cannot(tiny, tmp_path, capsys):
    import llmbook.cli as cli
    save_pretrained(*tiny, tmp_path/'model')
    model, out = str(tmp_path/'model'), str(tmp_path/'out')
    cli.llmbook_evaluate(model, tasks='currencies', limit=3, shots=1, out=out, logs='inspect')
    said = capsys.readouterr().out
    assert 'currencies acc' in said
    assert len(list((tmp_path/'out/inspect').glob('*.json'))) == 1
    refusals = [
        (dict(tasks='nothing'), 'embedded task'),
        (dict(out='x.json'), 'a folder with --tasks'),
        (dict(logs='helm'), '--logs among'),
        (dict(limit=0), '--limit'),
        (dict(shots=-1), '--shots'),
    ]
    for change, why in refusals:
        options = dict(tasks='sums', out=out) | change
        with pytest.raises(UserError, match=why): cli.llmbook_evaluate(model, **options)
    with pytest.raises(UserError, match='tasks or texts'): cli.llmbook_evaluate(model, 'a.txt', tasks='sums', out=out)
