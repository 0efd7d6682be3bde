"Judges of two answers: order, length, a null and a constant answer, kills, and what is refused."
import json
import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize
from llmbook.commands import judge as command
from llmbook.core import UserError
from llmbook.evaluate import judge as J
from llmbook.model.config import ModelConfig
from llmbook.model.transformer import Transformer
from llmbook.tokens.tokenizer import train_tokenizer
from llmbook.tune.chat import ChatFormat

QUESTIONS = [f'question {i}' for i in range(40)]
BASE = [f'answer {i}' for i in range(40)]
NULL, CONSTANT = J.NULL, J.CONSTANT


def takes_first(question, first, second): return 1
def takes_longer(question, first, second): return .5 if len(first) == len(second) else float(len(first) > len(second))
def takes_marked(question, first, second): return (1 + ('good' in first) - ('good' in second)) / 2


def judged(judge, out=None, questions=QUESTIONS, **systems):
    return J.judge_answers(judge, questions, dict(base=BASE[:len(questions)], **systems), 'base', out, progress=False)


# ---- order ----

def test_a_judge_of_places_calls_nobody_better():
    found = judged(J.pair_judge(takes_first), other=[text + ' good' for text in BASE])
    assert found.value('other') == .5
    assert found.value('other', 'first') == 1
    assert found.value('other', 'agree') == 0
    assert found.value('other', 'tie') == 1


def test_both_orders_are_shown():
    seen = []
    def watch(question, first, second):
        seen.append((first, second))
        return .5
    judged(J.pair_judge(watch), questions=QUESTIONS[:1], other=['x'])
    assert {('x', 'answer 0'), ('answer 0', 'x')} <= set(seen)


def test_scores_are_asked_once_and_small_differences_tie():
    calls = []
    def length(messages, answer):
        calls.append(messages)
        return len(answer)
    other = ['answer 12', 'a', 'ab', 'x' * 30, 'y' * 30]
    found = judged(J.score_judge(length, margin=1), questions=QUESTIONS[:5], other=other)
    assert len(calls) == 2 * 5 * 3 # two answers, five questions, three systems
    assert calls[0] == [dict(role='user', content='question 0')]
    wins = found.items().query('label == "other"')['score_win']
    assert wins.tolist() == [.5, 0, 0, 1, 1]


# ---- a null and a constant answer ----

def test_null_and_constant_stand_in_every_table():
    found = judged(J.pair_judge(takes_longer), other=[text + ' good' for text in BASE])
    assert found.value(NULL) == .5
    assert found.value(CONSTANT) == found.value('other') == 1 # the judge is worthless, and it shows
    assert found.places == {'other': 1}
    systems = found.table()['system'].tolist()
    assert systems[0] == 'other'
    assert set(systems[1:]) == {NULL, CONSTANT}


# ---- length ----

def test_length_control_is_a_penalised_logistic_regression():
    rng = np.random.default_rng(3)
    wins, gaps = rng.integers(0, 3, 80) / 2, rng.normal(size=80)
    def loss(beta):
        odds = beta[0] + beta[1] * gaps
        fit = np.logaddexp(0, odds) - wins * odds
        return fit.sum() + J._RIDGE / 2 * (beta**2).sum()
    want = minimize(loss, np.zeros(2), tol=1e-12).x[0]
    got = J._fit_worth(wins, gaps, np.ones((1, 80)))[0]
    assert got == pytest.approx(want, abs=1e-5)


def test_length_control_takes_length_out():
    rng = np.random.default_rng(0)
    base = rng.integers(40, 80, 1000)
    lengths = base + 20 + rng.integers(-40, 40, 1000)
    wins = rng.random(1000) < 1 / (1 + np.exp(-.06 * (lengths - base)))
    rate, low, high = J.length_controlled(wins, lengths, base)
    assert wins.mean() > .65
    assert low < .5 < high
    assert low < rate < high


def test_a_system_that_wins_everything_has_a_finite_rate():
    lengths = np.array([1, 9] * 20)
    rate, low, high = J.length_controlled(np.ones(40), lengths, np.full(40, 5))
    assert .95 < rate < 1
    assert low <= rate <= high


@pytest.mark.parametrize('growth, word', [(5, 'longer'), (-5, 'shorter')])
def test_worth_and_length_that_cannot_be_told_apart_give_no_rate(growth, word):
    base = np.arange(20, 60)
    with pytest.raises(UserError, match=f'{word} on nearly every question'):
        J.length_controlled(np.ones(40), base + growth, base)
    found = judged(J.pair_judge(takes_marked), other=[text + ' good' for text in BASE])
    assert found.value('other', 'lc_win') is None
    row = next(r for r in found.rows if r['group'] == 'other' and r['metric'] == 'judged lc_win')
    assert 'longer on nearly every question' in row['reason']


# ---- what a model says ----

@pytest.mark.parametrize('text, value', [
    ('A', 1), (' b.', 0), ('[[B]]', 0), ('**tie**', .5), ('Verdict: A', 1), ('verdict: **B**', 0),
    ('I think so.\nVerdict: tie', .5), ('Verdict: A\n... no.\nVerdict: B', 0), ('A is good', None), ('', None),
    ('Verdict: Also', None)])
def test_verdicts_are_read(text, value): assert J.parse_verdict(text) == value


def small_model(texts, context):
    tok = train_tokenizer(texts, 400)
    model = Transformer(ModelConfig(vocab_size=tok.get_vocab_size(), n_layer=1, d_model=16, n_head=2, context=context))
    return model.eval(), ChatFormat(tok)


def test_a_model_is_held_to_three_words_and_says_why_it_cannot_judge():
    model, fmt = small_model([J.JUDGE_PROMPT, *BASE], 512)
    judge = J.model_judge(model, fmt)
    long = 'word ' * 600
    short_verdict, long_verdict = judge.compare(['q', 'q'], ['a', long], ['b', 'c'])
    assert short_verdict[1] in ('A', 'B', 'tie')
    assert long_verdict[0] is None
    assert 'more than' in long_verdict[1]
    found = judged(judge, questions=QUESTIONS[:2], other=['fine', long])
    row = next(r for r in found.rows if r['group'] == 'other' and r['metric'] == 'judged win')
    assert row['n'] == row['not_scored'] == 1


def test_the_key_of_a_model_judge_changes_with_model_and_prompt():
    model, fmt = small_model([J.JUDGE_PROMPT, *BASE], 512)
    keys = {J.model_judge(model, fmt).key, J.model_judge(model, fmt, reasons=True).key,
            J.model_judge(model, fmt, template=J.JUDGE_PROMPT + ' ').key}
    model.embed.weight.data[0, 0] += 1
    keys.add(J.model_judge(model, fmt).key)
    assert len(keys) == 4


def test_braces_in_an_answer_stay_text():
    filled = J._filled(J.JUDGE_PROMPT, 'end', '{second}', '{question} {x}', 'Verdict: A')
    assert 'Request:\n{second}\n' in filled
    assert 'Answer A:\n{question} {x}\n' in filled


# ---- the store ----

class Killed(Exception): pass


def test_a_killed_judge_resumes_to_the_same_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(J, '_AT_ONCE', 8)
    other = [text + ' good' if i % 3 else 'x' for i, text in enumerate(BASE)]
    asked = []
    def slow(question, first, second):
        asked.append(question)
        if len(asked) == 70: raise Killed
        return takes_marked(question, first, second)
    judge = J.pair_judge(slow, key='marked')
    with pytest.raises(Killed): judged(judge, tmp_path/'out', other=other)
    n_before = len(asked)
    found = judged(judge, tmp_path/'out', other=other)
    assert n_before + len(asked[n_before:]) < 2 * 3 * 40 + 16 # a group at most is asked again
    whole = judged(J.pair_judge(takes_marked, name='slow', key='marked'), other=other)
    assert found.rows == whole.rows
    assert found.places == whole.places
    n = len(asked)
    judged(judge, tmp_path/'out', other=other)
    assert len(asked) == n # all of it is there


def test_another_judge_or_answer_is_never_served(tmp_path):
    other = [text + ' good' for text in BASE]
    assert judged(J.pair_judge(takes_marked), tmp_path, other=other).value('other') == 1
    assert judged(J.pair_judge(takes_first), tmp_path, other=other).value('other') == .5
    assert judged(J.pair_judge(takes_marked), tmp_path, other=BASE).value('other') == .5
    parts = sorted(tmp_path.glob('items/*/part-*.parquet'))
    assert {'item', 'answer', 'scores'} <= set(pd.read_parquet(parts[0]).columns)


def test_systems_with_the_same_answers_have_rows_of_their_own():
    found = judged(J.pair_judge(takes_longer), one=BASE, two=BASE)
    assert [found.value(name) for name in ('one', 'two', NULL)] == [.5] * 3


# ---- places ----

def test_systems_within_noise_share_a_place():
    rng = np.random.default_rng(0)
    names = [f'q{i}' for i in range(300)]
    def wins(p): return dict(zip(names, (rng.random(300) < p).astype(float)))
    assert J.places_of(dict(a=wins(.5), b=wins(.5), c=wins(.5))) == dict(a=1, b=1, c=1)
    assert J.places_of(dict(a=wins(.3), b=wins(.9), c=wins(.6))) == dict(b=1, c=2, a=3)
    assert J.places_of(dict(a=wins(.5))) == dict(a=1)
    assert J.places_of({}) == {}


# ---- the command ----

def test_the_command_judges_by_a_reward_model_and_keeps_the_verdicts(tmp_path, monkeypatch):
    records = [dict(prompt=q, base=a, other=a + ' good', n=3) for q, a in zip(QUESTIONS, BASE)]
    path = tmp_path/'answers.jsonl'
    path.write_text('\n'.join(json.dumps(r) for r in [*records, dict(prompt='lacks an answer', base='x')]))
    (tmp_path/'reward').mkdir()
    (tmp_path/'reward'/'reward_head.safetensors').touch()
    monkeypatch.setattr(command, 'open_reward', lambda folder: None)
    monkeypatch.setattr(command, 'open_chat_model', lambda folder: (None, None))
    monkeypatch.setattr(command, 'model_fingerprint', lambda model: 'known')
    monkeypatch.setattr(command, 'reward_judge', lambda model, fmt: lambda messages, answer: float('good' in answer))
    out = tmp_path/'judged'
    found = command.llmbook_judge(str(path), judge=str(tmp_path/'reward'), base='base', out=str(out), limit=30)
    assert found.value('other') == 1
    assert found.rows[0]['n'] == 30
    written = json.loads((out/'judged.json').read_text())
    assert written['base'] == 'base'
    assert len(written['rows']) == len(found.rows)


def test_answers_of_several_systems_are_read_from_a_table(tmp_path):
    path = tmp_path/'answers.csv'
    path.write_text('question,base,other\n1+1,3,two\n2+2,,four\n')
    questions, answers, set_aside = command.answers_of_systems(path, 'base')
    assert questions[0] == '1+1'
    assert answers['other'][0] == 'two'
    assert set_aside + len(questions) == 2
    for records, why in (([], 'records'), ([dict(prompt='x', base='y')], 'beside'), ([dict(base='y')], 'question')):
        with pytest.raises(UserError, match=why): command.answers_of_systems(records, 'base')


# ---- refusals ----

@pytest.mark.parametrize('given, message', [
    (dict(questions=[]), 'a question at least'), (dict(questions='text'), 'a text for each|to be a list'),
    (dict(answers=dict(base=BASE, other=BASE[:3])), 'a text for each of 40 questions from other, got 3'),
    (dict(answers=dict(base=BASE, other=[None] * 40)), 'from other'), (dict(answers=[BASE]), 'dict'),
    (dict(base='nobody'), "the base 'nobody'"), (dict(judge=takes_first), 'judge'),
    (dict(answers={'base': BASE, CONSTANT: BASE}), 'other names'), (dict(clusters=['a']), 'a label for each of 40')])
def test_what_cannot_be_judged_is_refused_before_anything_is_asked(given, message, tmp_path):
    asked = dict(judge=J.pair_judge(takes_first), questions=QUESTIONS, answers=dict(base=BASE, other=BASE), base='base')
    with pytest.raises(UserError, match=message): J.judge_answers(**asked | given, out=tmp_path/'out', progress=False)
    assert not (tmp_path/'out').exists()


@pytest.mark.parametrize('verdict', [2, -1, float('nan'), 'A', None])
def test_an_odd_verdict_is_set_aside_with_its_reason(verdict):
    found = judged(J.pair_judge(lambda question, first, second: verdict), questions=QUESTIONS[:3], other=BASE[:3])
    row = found.rows[0]
    assert row['value'] is None
    assert row['reason']


def test_other_refusals():
    for call in (lambda: J.score_judge(takes_first, margin=-1), lambda: J.pair_judge('text'),
                 lambda: judged(J.pair_judge(takes_first), other=BASE).value('other', 'nothing'),
                 lambda: J.length_controlled([1], [2, 3], [4])):
        with pytest.raises(UserError): call()

# ---- what a verdict depends on, and what hangs together ----

def scaled(c): return lambda messages, answer: c * len(answer)


def test_judges_of_one_source_have_keys_of_their_own(tmp_path):
    shorter, longer = J.score_judge(scaled(-1), 'a'), J.score_judge(scaled(1), 'a')
    assert shorter.key != longer.key
    assert J.score_judge(scaled(1), 'a').key == longer.key
    other = [text + ' good' for text in BASE]
    assert judged(longer, tmp_path, other=other).value('other') == 1
    assert judged(shorter, tmp_path, other=other).value('other') == 0


def test_a_model_inside_a_judge_counts_with_its_weights():
    model, fmt = small_model(BASE, 64)
    def judge():
        def is_long(question, first, second): return float(len(fmt.tok.encode(first).ids) > model.config.context)
        return J.pair_judge(is_long)
    before = judge().key
    assert judge().key == before
    model.embed.weight.data[0, 0] += 1
    assert judge().key != before


def test_a_judge_that_cannot_be_described_needs_a_key():
    lines = iter('abc')
    def odd(question, first, second): return next(lines)
    with pytest.raises(UserError, match='give key='): J.pair_judge(odd)
    assert J.pair_judge(odd, key='mine').key


def test_copies_of_one_source_are_one_witness():
    "Four sources with fifteen copies each part nobody, though sixty questions would."
    questions = [f'source {i % 4}, copy {i}' for i in range(60)]
    answers = dict(base=['b'] * 60, other=['good b'] * 60, third=['b'] * 60)
    judge = J.pair_judge(takes_marked)
    sources = [f'source {i % 4}' for i in range(60)]
    alone = J.judge_answers(judge, questions, answers, 'base', progress=False)
    together = J.judge_answers(judge, questions, answers, 'base', clusters=sources, progress=False)
    assert alone.places == dict(other=1, third=2)
    assert together.places == dict(other=1, third=1)


def test_clusters_are_those_of_the_call(tmp_path):
    rng = np.random.default_rng(0)
    other = [('good ' if rng.random() < .6 else '') + 'x' * int(rng.integers(4, 20)) for _ in BASE]
    answers = dict(base=BASE, other=other)
    sources = [str(i // 8) for i in range(40)]
    judge = J.pair_judge(takes_marked)
    def asked(clusters):
        return J.judge_answers(judge, QUESTIONS, answers, 'base', tmp_path, clusters=clusters, progress=False)
    alone, by_source, again = asked(None), asked(sources), asked(None)
    assert 'over 5 clusters' in by_source.rows[0]['signature']
    lc = [next(r for r in found.rows if r['metric'] == 'judged lc_win') for found in (alone, by_source)]
    assert (lc[0]['low'], lc[0]['high']) != (lc[1]['low'], lc[1]['high']) and 'over 5 clusters' in lc[1]['signature']
    assert alone.rows == again.rows
    assert set(by_source.items()['cluster']) == set(sources)


def test_many_systems_can_still_be_told_apart():
    rng = np.random.default_rng(1)
    names = [f'q{i}' for i in range(100)]
    def wins(p): return dict(zip(names, rng.choice([0, .5, 1], 100, p=[1 - p, 0, p]) * .5 + .25))
    systems = {f'system {i}': wins(.4) for i in range(11)} | dict(best=wins(.9))
    places = J.places_of(systems)
    assert places['best'] == 1 and min(place for name, place in places.items() if name != 'best') > 1


def test_a_consistent_judge_agrees_whatever_the_rounding():
    def leans(question, first, second): return .3 if 'good' in first else .7
    found = judged(J.pair_judge(leans), other=[text + ' good' for text in BASE])
    assert found.value('other', 'agree') == 1


def test_rows_of_other_judges_and_systems_stay(tmp_path):
    other = [text + ' good' for text in BASE]
    judged(J.pair_judge(takes_marked), tmp_path, other=other)
    judged(J.pair_judge(takes_longer), tmp_path, other=other)
    judged(J.pair_judge(takes_longer), tmp_path, third=other)
    rows = json.loads((tmp_path/'judged.json').read_text())['rows']
    asked = {(r['judge'], r['group']) for r in rows}
    assert len(asked) == 7 and len(rows) == 6 * 7

# ---- columns that are systems ----

DESCRIBED = [dict(id=f'q{i}', category='sums', question=f'{i} + 1?', base=str(i), other=str(i + 1)) for i in range(4)]


def test_columns_that_describe_are_no_systems():
    _, answers, _ = command.answers_of_systems(DESCRIBED, 'base')
    assert list(answers) == ['base', 'other']
    _, answers, _ = command.answers_of_systems(DESCRIBED, 'base', ['category'])
    assert list(answers) == ['base', 'category']
    with pytest.raises(UserError, match='the systems nobody'): command.answers_of_systems(DESCRIBED, 'base', ['nobody'])


def test_a_system_whose_first_answer_is_missing_stays():
    for missing in ('', None):
        records = [dict(DESCRIBED[0], other=missing), *DESCRIBED[1:]]
        questions, answers, set_aside = command.answers_of_systems(records, 'base')
        assert set(answers) == {'base', 'other'} and len(questions) == 3 and set_aside == 1


def test_unreadable_lines_are_counted(tmp_path):
    path = tmp_path/'answers.jsonl'
    path.write_text('\n'.join([json.dumps(DESCRIBED[0]), '{no json', json.dumps(DESCRIBED[1])]))
    assert command.answers_of_systems(path, 'base')[2] == 1


def test_a_file_without_a_whole_line_opens_no_judge(tmp_path, monkeypatch):
    path = tmp_path/'answers.jsonl'
    path.write_text('\n'.join(json.dumps(r) for r in (dict(question='q', base='x'), dict(question='q', other='y'))))
    monkeypatch.setattr(command, 'open_judge', lambda *a: pytest.fail('the judge was opened'))
    with pytest.raises(UserError, match='none of 2'):
        command.llmbook_judge(str(path), base='base', out=str(tmp_path/'out'))
    assert not (tmp_path/'out').exists()
