"Asking people: the plan, answers on disk, agreement, strengths, stopping, the quality of raters, export."
import json, math, os, signal, subprocess, sys
from collections import Counter
from itertools import permutations
import numpy as np
import pandas as pd
import pytest
from llmbook.commands.rate import llmbook_rate, page_command
from llmbook.core import UserError
from llmbook.evaluate.stats import rows_text, sign_test, wilson
from llmbook.people.agreement import agreement_rows, alpha_row, answer_matrix, krippendorff_alpha
from llmbook.people.answers import RaterSession, choice_of, counted_answers, rater_file, read_answers, read_whole_lines
from llmbook.people.crowd import read_crowd
from llmbook.people.export import export_answers, export_preferences, score_agreement, score_pairs
from llmbook.people.plan import open_plan, pair_answers, plan_rating, rater_tasks, read_pairs, save_plan
from llmbook.people.quality import rater_quality
from llmbook.people.stopping import position_row, preference_evalue, stopping_state
from llmbook.people.strengths import comparable_systems, strengths
from llmbook.people.summary import add_rating, rating_rows, rating_summary
from llmbook.prefer.preferences import rated_chats
from llmbook.report.example import example_run
from llmbook.report.modelcard import model_card
from llmbook.report.report import report_html
from llmbook.report.runs import read_run
from llmbook.tune.formats import load_chats
from llmbook.verdict.power import judgements_needed


def some_pairs(n=20, known=0):
    pairs = []
    for i in range(n):
        known_side = 'a' if i < known else ''
        pairs.append(dict(id=f'p{i}', prompt='say', a=f'good {i}', b=f'bad {i}', system_a='new', system_b='old',
                          known=known_side))
    return pairs


@pytest.fixture
def folder(tmp_path): return save_plan(plan_rating(some_pairs(), repeats=.2, seed=3), tmp_path/'ratings')


# ---- the plan -------------------------------------------------------------------------------------------------------

def shown_left(plan, rater):
    "Return how often each system stands on the left, of what is shown for the first time."
    counts = Counter()
    for task in rater_tasks(plan, rater):
        pair = plan.pair(task.pair)
        if not task.repeat: counts[pair.system_b if task.swapped else pair.system_a] += 1
    return counts


@pytest.mark.parametrize('rater', ['anna', 'ben', 'Ćarla', '3'])
def test_sides_are_balanced_for_each_rater(rater):
    assert shown_left(plan_rating(some_pairs(40)), rater) == dict(new=20, old=20)
    odd = shown_left(plan_rating(some_pairs(41)), rater)
    assert abs(odd['new'] - odd['old']) == 1


def test_sides_are_balanced_whichever_system_is_a():
    pairs = some_pairs(20)
    for pair in pairs[:10]: pair.update(system_a='old', system_b='new')
    assert shown_left(plan_rating(pairs), 'anna') == dict(new=10, old=10)


def test_controls_are_balanced_on_their_own():
    plan = plan_rating(some_pairs(30, known=10))
    known = [task for task in rater_tasks(plan, 'anna') if plan.pair(task.pair).known]
    assert sum(task.swapped for task in known) == 5
    assert not any(task.repeat for task in known)


def test_the_list_follows_from_plan_and_name_alone():
    plan = plan_rating(some_pairs(), seed=1)
    assert rater_tasks(plan, 'anna') == rater_tasks(plan_rating(some_pairs(), seed=1), ' ANNA ')
    for other in (rater_tasks(plan, 'ben'), rater_tasks(plan_rating(some_pairs(), seed=2), 'anna')):
        assert other != rater_tasks(plan, 'anna')


def test_repeats_come_late_with_the_sides_exchanged():
    plan = plan_rating(some_pairs(40), repeats=.2)
    tasks = rater_tasks(plan, 'anna')
    first = {task.pair: task for task in tasks if not task.repeat}
    repeats = [task for task in tasks if task.repeat]
    assert len(repeats) == 8 and [task.number for task in tasks] == list(range(48))
    for task in repeats:
        assert task.swapped != first[task.pair].swapped
        assert task.number - first[task.pair].number >= 10


@pytest.mark.parametrize('n, repeats, wanted', [(1, .5, 1), (2, .5, 3), (3, .1, 3), (10, 0, 10), (10, .5, 15)])
def test_each_pair_is_shown(n, repeats, wanted):
    plan = plan_rating(some_pairs(n), repeats=repeats)
    tasks = rater_tasks(plan, 'anna')
    assert len(tasks) == wanted and {task.pair for task in tasks} == {f'p{i}' for i in range(n)}


def test_pairs_come_from_files_tables_and_pairs(tmp_path):
    records = some_pairs(3)
    (tmp_path/'pairs.jsonl').write_text('\n'.join(map(json.dumps, records)))
    pd.DataFrame(records).to_csv(tmp_path/'pairs.csv', index=False)
    wanted = read_pairs(records)
    assert read_pairs(tmp_path/'pairs.jsonl') == wanted
    assert read_pairs(tmp_path/'pairs.csv') == wanted
    assert read_pairs(pd.DataFrame(records)) == wanted
    assert read_pairs(wanted) == wanted


BAD_PAIRS = [[], [dict(a='x')], [dict(a='x', b=3)], [dict(a='x', b='x')], [dict(a='x', b='y', known='c')], ['text'],
             [None], [dict(id='1', a='x', b='y'), dict(id='1', a='x', b='z')], 'nowhere.jsonl', 5, None]


@pytest.mark.parametrize('source', BAD_PAIRS)
def test_what_is_no_pair_is_refused_before_anybody_is_asked(source):
    with pytest.raises(UserError, match='expected|no file|not found'): read_pairs(source)


@pytest.mark.parametrize('options', [
    dict(question=''), dict(question=None), dict(warning=3), dict(repeats=-1), dict(repeats=.6), dict(repeats=math.nan),
    dict(repeats='x'), dict(seed='x'), dict(seed=1.5), dict(seed=None)])
def test_options_that_cannot_be_are_refused(options):
    with pytest.raises(UserError, match='expected'): plan_rating(some_pairs(), **options)


def test_several_systems_meet_on_every_prompt():
    pairs = pair_answers(['p', 'q'], dict(x=['1', '2'], y=['3', '2'], z=['4', '5']))
    assert [pair.systems for pair in pairs] == [('x', 'y'), ('x', 'z'), ('y', 'z'), ('x', 'z'), ('y', 'z')]


def test_another_plan_does_not_enter_a_folder(folder):
    with pytest.raises(UserError, match='another one'): save_plan(plan_rating(some_pairs(), seed=4), folder)
    assert open_plan(folder).seed == 3


# ---- answers on disk ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('answer, swapped, wanted', [
    ('left', False, 'a'), ('left', True, 'b'), ('right', False, 'b'), ('right', True, 'a'), ('tie', True, 'tie'),
    ('both bad', True, 'both bad')])
def test_the_choice_follows_from_answer_and_side(answer, swapped, wanted): assert choice_of(answer, swapped) == wanted


RATER = '''import os, sys
from llmbook.people.answers import RaterSession
session = RaterSession(sys.argv[1], 'anna')
for answer in ('left', 'tie', 'right'): session.answer(answer)
os.kill(os.getpid(), 9)'''


def test_a_killed_kernel_loses_nothing(folder):
    killed = subprocess.run([sys.executable, '-c', RATER, str(folder)], timeout=100)
    assert killed.returncode == -signal.SIGKILL
    session = RaterSession(folder, 'anna')
    assert [record['answer'] for record in session.answers.values()] == ['left', 'tie', 'right']
    assert session.task.number == 3


def test_an_answer_is_flushed_to_the_device(folder, monkeypatch):
    flushed = []
    monkeypatch.setattr(os, 'fsync', lambda handle: flushed.append(handle))
    RaterSession(folder, 'anna').answer('left')
    assert len(flushed) >= 2, 'the file, and the folder with its new name'


def test_half_a_line_costs_no_other_line(folder):
    session = RaterSession(folder, 'anna')
    session.answer('left')
    with open(session.path, 'ab') as f: f.write(b'{"rater": "anna", "task": 1, "ans\xff')
    again = RaterSession(folder, 'anna')
    assert again.done == 1 and again.set_aside == 1
    again.answer('right')
    table = read_answers(folder)
    assert list(table.answer) == ['left', 'right'] and table.attrs['set_aside'] == 1


def test_an_answer_between_the_look_and_the_line_is_not_lost(folder, monkeypatch):
    from llmbook.people import answers as module
    first, second = RaterSession(folder, 'anna'), RaterSession(folder, 'anna')
    write, said = module.add_line, []
    def slow(path, record):
        if not said:
            said.append('begun')
            with pytest.raises(UserError, match='one window'): second.answer('right')
        write(path, record)
    monkeypatch.setattr(module, 'add_line', slow)
    first.answer('left')
    assert len(first.path.read_text().splitlines()) == 1
    assert [a['answer'] for a in RaterSession(folder, 'anna').answers.values()] == ['left']
    with pytest.raises(UserError, match='one window'): second.answer('right')
    second.answer('tie')
    assert RaterSession(folder, 'anna').done == 2


def test_a_name_is_one_however_its_accents_were_typed(folder):
    composed, apart = 'Jos\u00e9', 'Jose\u0301'
    assert rater_file(folder, composed) == rater_file(folder, apart)
    assert rater_file(folder, 'Straße') != rater_file(folder, 'Strasse')


def test_undo_is_kept_and_can_be_repeated(folder):
    session = RaterSession(folder, 'anna')
    for answer in ('left', 'right', 'tie'): session.answer(answer)
    session.undo()
    session.undo()
    assert session.task.number == 1 and RaterSession(folder, 'anna').task.number == 1
    session.answer('both bad')
    assert list(read_answers(folder).answer) == ['left', 'both bad']
    assert len(read_whole_lines(session.path)[0]) == 6, 'nothing is ever removed'


def test_raters_have_files_of_their_own(folder):
    names = ['anna', 'anna b', 'anna/b', 'Änna', 'ánna', '安娜', '../x', '.']
    files = {rater_file(folder, name) for name in names}
    assert len(files) == len(names)
    assert all(file.parent == folder/'answers' and file.name.isascii() for file in files)


def test_time_runs_from_showing_to_answering(folder):
    now = [0.]
    session = RaterSession(folder, 'anna', clock=lambda: now[0])
    now[0] = 4
    session.answer('left')
    now[0] = 5.5
    session.answer('left')
    assert list(read_answers(folder).seconds) == [4, 1.5]


def test_answers_to_another_plan_are_not_counted(folder, tmp_path):
    RaterSession(folder, 'anna').answer('left')
    other = save_plan(plan_rating(some_pairs(), seed=9), tmp_path/'other')
    rater_file(other, 'anna').parent.mkdir()
    rater_file(other, 'anna').write_bytes(rater_file(folder, 'anna').read_bytes())
    with pytest.raises(UserError, match='another one'): RaterSession(other, 'anna')
    table = read_answers(other)
    assert len(table) == 0 and table.attrs['set_aside'] == 1


def test_repeats_and_controls_do_not_count(tmp_path):
    folder = save_plan(plan_rating(some_pairs(20, known=5), repeats=.2), tmp_path)
    session = RaterSession(folder, 'anna')
    while session.task: session.answer('left')
    table = read_answers(folder)
    assert len(table) == 23 and len(counted_answers(table)) == 15
    assert not (set(counted_answers(table).pair) & {f'p{i}' for i in range(5)})


# ---- agreement ------------------------------------------------------------------------------------------------------

def _numbers(line): return [None if x == '*' else int(x) for x in line.split()]


FOUR = [_numbers('1 2 3 3 2 1 4 1 2 * * *'), _numbers('1 2 3 3 2 2 4 1 2 5 * 3'),
        _numbers('* 3 3 3 2 3 4 2 2 5 1 *'), _numbers('1 2 3 3 2 4 4 1 2 5 1 *')]
THREE = [_numbers('* * * * * 3 4 1 2 1 1 3 3 * 3'), _numbers('1 * 2 1 3 3 4 3 * * * * * * *'),
         _numbers('* * 2 1 3 4 4 * 2 1 1 3 3 * 4')]


@pytest.mark.parametrize('answers, level, wanted', [
    (FOUR, 'nominal', .7434), (FOUR, 'interval', .8491), (FOUR, 'ratio', .7974),
    (THREE, 'nominal', .691358), (THREE, 'interval', .810845)])
def test_krippendorff_alpha_has_the_published_values(answers, level, wanted):
    digits = len(str(wanted)) - 2
    assert round(krippendorff_alpha(answers, level), digits) == wanted


def test_draws_without_variation_are_no_perfect_agreement():
    nearly_all_ties = [['tie'] * 19 + ['a'], ['tie'] * 19 + ['b']]
    r = alpha_row(nearly_all_ties)
    assert r['value'] < .5 and r['high'] is None


def test_alpha_does_not_change_with_raters_or_items_exchanged():
    answers = np.array(FOUR, dtype=object)
    assert krippendorff_alpha(answers[::-1]) == pytest.approx(krippendorff_alpha(answers))
    assert krippendorff_alpha(answers[:, ::-1]) == pytest.approx(krippendorff_alpha(answers))


def test_alpha_without_anything_to_agree_on_is_none():
    assert krippendorff_alpha([[1, 1], [1, 1]]) is None
    assert krippendorff_alpha([[1, None], [None, 2]]) is None
    assert alpha_row([[1, None], [None, 2]])['value'] is None


def random_answers(rng, pairs=40, raters=3):
    rows = []
    for pair in range(pairs):
        for rater in range(raters): rows.append(dict(rater=rater, pair=pair, choice=rng.choice(['a', 'b', 'tie'])))
    return pd.DataFrame(rows)


def test_chance_gives_an_alpha_of_zero_inside_its_interval():
    held = 0
    for seed in range(40):
        r = agreement_rows(random_answers(np.random.default_rng(seed)), n_boot=100)[0]
        held += r['low'] <= 0 <= r['high']
    assert held >= 35, 'about 95 % of 40'


@pytest.mark.parametrize('answers, level', [
    ([], 'nominal'), (None, 'nominal'), (5, 'nominal'), ([[1, 2], [1]], 'nominal'),
    ([['a', 'b'], ['a', 'b']], 'interval'), (FOUR, 'ordinal'),
    (FOUR, None),
    ([[-1, 2], [-1, 2]], 'ratio')])
def test_alpha_refuses_what_it_cannot_count(answers, level):
    with pytest.raises(UserError, match='expected'): krippendorff_alpha(answers, level)


# ---- strengths ------------------------------------------------------------------------------------------------------

def won(*games):
    rows = []
    for first, second, times, *choice in games:
        rows += [dict(system_a=first, system_b=second, choice=choice[0] if choice else 'a')] * times
    return pd.DataFrame(rows)


def values(found): return {s.system: s.value for s in found}


CIRCLE = won(('0', '1', 2), ('1', '2', 1), ('2', '0', 1))


@pytest.mark.parametrize('ties', ['half', 'davidson'])
def test_bradley_terry_has_the_values_of_choix(ties):
    found = values(strengths(CIRCLE, ties))
    assert [round(found[name], 4) for name in '012'] == [.4196, -.4196, 0]


def test_a_half_tie_is_half_a_win_for_each():
    with_ties = won(('x', 'y', 6), ('y', 'x', 2), ('x', 'y', 4, 'tie'))
    doubled = won(('x', 'y', 6 * 2 + 4), ('y', 'x', 2 * 2 + 4))
    assert values(strengths(with_ties))['x'] == pytest.approx(values(strengths(doubled))['x'])
    assert 2 * values(strengths(with_ties))['x'] == pytest.approx(math.log(8 / 4))


def test_davidson_reproduces_the_shares_of_two_systems():
    found = strengths(won(('x', 'y', 30), ('y', 'x', 10), ('x', 'y', 20, 'tie')), 'davidson')
    x, y = math.exp(values(found)['x']), math.exp(values(found)['y'])
    tie = found.tie_parameter * math.sqrt(x * y)
    shares = np.array([x, y, tie]) / (x + y + tie)
    assert shares == pytest.approx([.5, 1 / 6, 1 / 3])


def test_a_system_without_losses_has_an_open_interval():
    table = won(('new', 'old', 5), ('new', 'base', 3), ('old', 'base', 6), ('base', 'old', 4))
    found = {s.system: s for s in strengths(table)}
    assert found['new'].value is None and found['new'].high is None and found['new'].low > .3
    assert found['old'].value == pytest.approx(math.log(6 / 4) / 2)


def test_two_systems_of_which_one_always_wins():
    x, y = strengths(won(('x', 'y', 10)))
    assert (x.system, x.value, x.high) == ('x', None, None) and x.low > 0
    assert (y.system, y.value, y.low) == ('y', None, None) and y.high < 0
    assert (x.ranks, y.ranks) == ((1, 1), (2, 2))
    few = strengths(won(('x', 'y', 1)))
    assert [s.ranks for s in few] == [(1, 2), (1, 2)], 'one game decides nothing'


def test_systems_that_never_met_are_not_compared():
    assert comparable_systems([(0, 1, .5), (2, 3, .5)], 4) == [[0, 1], [2, 3]]
    found = {s.system: s for s in strengths(won(('x', 'y', 3, 'tie'), ('u', 'v', 2, 'tie')))}
    assert found['x'].value is None and found['u'].value == 0 and found['x'].ranks == (1, 4)


def test_first_place_within_noise_is_a_tied_first_place():
    close_games = ('x', 'y', 11), ('y', 'x', 9)
    clear_games = ('x', 'z', 18), ('z', 'x', 2), ('y', 'z', 17), ('z', 'y', 3)
    close = strengths(won(*close_games, *clear_games))
    ranks = {s.system: s.ranks for s in close}
    assert ranks == dict(x=(1, 2), y=(1, 2), z=(3, 3))


def divided_raters(rng, raters, spread):
    "Return answers of raters who differ in taste, about two systems that are equal on average."
    rows = []
    for rater in range(raters):
        share = 1 / (1 + math.exp(-rng.normal(0, spread)))
        for pair in range(30):
            choice = 'a' if rng.random() < share else 'b'
            rows.append(dict(rater=rater, pair=pair, system_a='x', system_b='y', choice=choice))
    return pd.DataFrame(rows)


def test_intervals_by_rater_hold_where_raters_differ():
    held = Counter()
    for seed in range(100):
        table = divided_raters(np.random.default_rng(seed), 6, 1.)
        alone = table.assign(one=range(len(table)))
        for by in ('rater', 'one'):
            s = strengths(alone, by=by).systems[0]
            held[by] += s.low <= 0 <= s.high
    assert held['rater'] >= 90, 'about 95 % of 100'
    assert held['one'] < 65, 'answers are not independent'


def shared_by(raters, *choices):
    "Return the same answers by each of some raters."
    rows = []
    for rater in range(raters):
        for choice in choices: rows.append(dict(rater=rater, system_a='x', system_b='y', choice=choice))
    return pd.DataFrame(rows)


def test_raters_who_agree_by_accident_settle_nothing():
    found = strengths(shared_by(2, *'aaaaaabbbb'))
    s = found.systems[0]
    assert s.high - s.low > .5 and s.low < 0 < s.high and s.ranks == (1, 2)
    assert list(found.differences.values())[0] > .05
    assert 'Fewer than 5 raters' in repr(found)
    ties = strengths(shared_by(3, *['tie'] * 10)).systems[0]
    assert (ties.value, ties.low, ties.high) == (0, None, None), 'no spread seen is no certainty'


@pytest.mark.parametrize('raters', [2, 3])
def test_few_raters_of_equal_systems_find_little(raters):
    found = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        choices = rng.choice(['a', 'b'], (raters, 10))
        rows = []
        for rater in range(raters):
            rows += [dict(rater=rater, system_a='x', system_b='y', choice=choice) for choice in choices[rater]]
        found += strengths(pd.DataFrame(rows)).systems[0].ranks == (1, 1)
    assert found <= 14, 'at most 7 %'


def test_the_wins_of_one_rater_are_one_witness():
    three = strengths(shared_by(3, *'aaaaa')).systems[0]
    many = strengths(shared_by(8, *'aaaaa')).systems[0]
    assert three.low < 0 and three.ranks == (1, 2)
    assert many.low > 0 and many.ranks == (1, 1)


def test_open_ends_are_compared_after_correction():
    "Six wins are enough for two systems alone, and not for one of many pairs."
    games = [('w', 'x', 6), ('x', 'y', 2), ('y', 'x', 2), ('y', 'z', 2), ('z', 'y', 2)]
    alone = {s.system: s.ranks for s in strengths(won(('w', 'x', 6)))}
    among = {s.system: s.ranks for s in strengths(won(*games))}
    assert alone['w'] == (1, 1) and among['w'] == (1, 4)


def test_the_column_of_the_spread_must_be_there_and_mean_people():
    with pytest.raises(UserError, match='a column of the table'): strengths(shared_by(2, *'ab'), by='raters')
    crowd = shared_by(2, *'aab')
    crowd.attrs['raters'] = 'positions'
    with pytest.raises(UserError, match='positions'): strengths(crowd)
    assert strengths(crowd.assign(pair=[0, 1, 2] * 2), by='pair').clusters == 3


@pytest.mark.parametrize('table, options', [
    (pd.DataFrame(), {}), (won(('x', 'x', 3)), {}), (won(('x', 'y', 1, 'maybe')), {}), (CIRCLE, dict(ties='drop')),
    (CIRCLE, dict(level=2)), (CIRCLE, dict(level='x')), (None, {})])
def test_strengths_refuse_what_they_cannot_fit(table, options):
    with pytest.raises(UserError, match='expected'): strengths(table, **options)


# ---- when to stop ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('k, n, wanted', [(15, 20, 2.40), (17, 20, 39.0), (148, 226, 3242), (0, 0, 1)])
def test_the_evalue_has_the_published_values(k, n, wanted):
    assert preference_evalue(k, n) == pytest.approx(wanted, rel=2e-3)
    assert preference_evalue(n - k, n) == pytest.approx(preference_evalue(k, n))


def test_stop_at_twenty():
    assert not stopping_state(decided(15, 5), 'x', 'y').may_stop
    settled = stopping_state(decided(17, 3), 'y', 'x')
    assert settled.may_stop and settled.more == 0 and 'you may stop' in str(settled)
    assert (settled.better, settled.wins, settled.losses) == ('x', 17, 3)


def test_a_finding_stays_when_the_evidence_goes_down():
    state = stopping_state(decided(12, 0, then=12), 'x', 'y')
    assert state.evalue < 20 < state.highest and state.may_stop


def test_the_one_who_was_ahead_at_the_finding_is_named():
    "Seven for x settle it; eight for y afterwards settle nothing for y."
    state = stopping_state(decided(7, 0, then=8), 'x', 'y')
    assert state.may_stop
    assert (state.better, state.wins, state.losses) == ('x', 7, 8)


def test_a_lead_that_turned_is_said():
    assert 'the lead turned' in str(stopping_state(decided(7, 0, then=8), 'x', 'y'))
    assert 'turned' not in str(stopping_state(decided(17, 3), 'x', 'y'))


def test_ten_comparisons_need_ten_times_the_evidence():
    table = decided(17, 3)
    assert stopping_state(table, 'x', 'y').may_stop
    one_of_ten = stopping_state(table, 'x', 'y', comparisons=10)
    assert not one_of_ten.may_stop and one_of_ten.enough == 200 and one_of_ten.needed > 20
    with pytest.raises(UserError): stopping_state(table, 'x', 'y', comparisons=0)


def test_the_summary_asks_more_of_several_systems(tmp_path):
    pairs = pair_answers([f'p{i}' for i in range(8)], {name: [f'{name} {i}' for i in range(8)] for name in 'xyz'})
    folder = save_plan(plan_rating(pairs, repeats=0), tmp_path)
    rated(folder, 'anna', leftmost)
    assert {state.enough for state in rating_summary(folder, n_boot=10).states} == {60}


def test_judgements_needed_have_the_published_values():
    assert (judgements_needed(.55), judgements_needed(.60)) == (783, 194)


def test_how_many_more_counts_ties_too():
    state = stopping_state(decided(12, 8, ties=20), 'x', 'y')
    at_once = round(12.5 / 21 * state.needed)
    assert 15 < preference_evalue(at_once, state.needed) < 27
    assert state.more == state.needed - 20 and state.more_pairs == 2 * state.more
    even = stopping_state(decided(5, 5), 'x', 'y')
    assert even.more is None and even.more_pairs is None and 'even' in str(even)


def decided(wins, losses, then=0, ties=0):
    "Return first answers: wins of x and losses in turns, and `then` more losses."
    choices = ['a', 'b'] * losses + ['a'] * (wins - losses) + ['b'] * then + ['tie'] * ties
    return pd.DataFrame(dict(pair=range(len(choices)), system_a='x', system_b='y', choice=choices))


def looks(rng, raters, counted):
    "Return the highest e-value when several raters, who share their taste of a pair, are looked at one by one."
    rows = []
    for pair in range(40):
        liked = rng.random() < .5
        for rater in range(raters):
            same = rng.random() < .9
            rows.append(dict(pair=pair, system_a='x', system_b='y', choice='a' if liked == same else 'b'))
    table = pd.DataFrame(rows)
    if not counted: table['pair'] = range(len(table)) # as if each answer were about a pair of its own
    return stopping_state(table, 'x', 'y').highest


def test_looking_after_every_answer_finds_nothing_where_nothing_is():
    by_pair = by_answer = 0
    for seed in range(100):
        by_pair += looks(np.random.default_rng(seed), 5, True) >= 20
        by_answer += looks(np.random.default_rng(seed), 5, False) >= 20
    assert by_pair <= 5
    assert by_answer > 15, 'answers to one pair are not independent'


@pytest.mark.parametrize('call', [
    lambda: preference_evalue(3, 2), lambda: preference_evalue(-1, 2), lambda: preference_evalue(1.5, 2),
    lambda: stopping_state(decided(1, 1), 'x', 'z'), lambda: stopping_state(pd.DataFrame(), 'x', 'y'),
    lambda: position_row(pd.DataFrame())])
def test_stopping_refuses_what_it_cannot_judge(call):
    with pytest.raises(UserError, match='expected'): call()


# ---- the quality of raters ------------------------------------------------------------------------------------------

def rated(folder, rater, choose):
    "Let a rater answer everything; `choose(task, pair)` gives the answer."
    session = RaterSession(folder, rater)
    while session.task: session.answer(choose(session.task, session.plan.pair(session.task.pair)))


def best(task, pair): return 'right' if task.swapped else 'left'
def leftmost(task, pair): return 'left'


@pytest.fixture
def controlled(tmp_path):
    folder = save_plan(plan_rating(some_pairs(30, known=10), repeats=.2), tmp_path/'controlled')
    rated(folder, 'careful', best)
    rated(folder, 'lefty', leftmost)
    return folder


def test_who_answers_by_side_is_seen(controlled):
    quality = rater_quality(read_answers(controlled)).set_index('rater')
    assert quality.same_at_repeats['careful'].startswith('4 of 4')
    assert quality.same_at_repeats['lefty'].startswith('0 of 4')
    assert quality.controls_right['careful'].startswith('10 of 10')
    assert quality.controls_right['lefty'].startswith('5 of 10')
    assert quality.p_of_side['lefty'] < 1e-6 < .3 < quality.p_of_side['careful']


def test_fast_answers_are_counted(folder):
    now = [0.]
    session = RaterSession(folder, 'anna', clock=lambda: now[0])
    for seconds in (1, 1, 5, 9):
        now[0] += seconds
        session.answer('tie')
    quality = rater_quality(read_answers(folder)).iloc[0]
    assert (quality.fast, quality.median_seconds, quality.ties) == (.5, 3, 1)
    assert quality.same_at_repeats == quality.controls_right == '-'


def test_honest_raters_have_no_side_after_the_correction(tmp_path):
    folder = save_plan(plan_rating(some_pairs(20), repeats=0), tmp_path)
    rng = np.random.default_rng(0)
    for i in range(10): rated(folder, f'rater {i}', lambda task, pair: rng.choice(['left', 'right']))
    assert rater_quality(read_answers(folder)).p_of_side.min() > .05


# ---- export, and scores that agree ----------------------------------------------------------------------------------

@pytest.fixture
def mixed(tmp_path):
    "Return a rating of ten pairs: six decided for a, one for b, a tie, a divided one, a control."
    folder = save_plan(plan_rating(some_pairs(10, known=1), repeats=0), tmp_path/'mixed')
    opinions = {'p0': 'aa', 'p1': 'bb', 'p2': 'tt', 'p3': 'ab'}
    for i, rater in enumerate(('anna', 'ben')):
        def choose(task, pair):
            wanted = opinions.get(pair.id, 'aa')[i]
            if wanted == 't': return 'tie'
            return 'left' if (wanted == 'a') != task.swapped else 'right'
        rated(folder, rater, choose)
    return folder


def test_preferences_are_read_by_training_and_all_pairs_are_accounted_for(mixed, tmp_path):
    exported = export_preferences(mixed, tmp_path/'pairs.jsonl')
    assert exported.written == 7 and exported.left_out == dict(controls=1, ties=1, divided=1)
    chats = load_chats(tmp_path/'pairs.jsonl').chats
    assert len(chats) == 7
    by_text = {chat.messages[-1]['content']: chat.rejected[-1]['content'] for chat in chats}
    assert by_text['bad 1'] == 'good 1' and by_text['good 5'] == 'bad 5'


def test_all_answers_are_exported_without_names(mixed, tmp_path):
    assert export_answers(mixed, tmp_path/'all.jsonl') == 20
    text = (tmp_path/'all.jsonl').read_text()
    assert 'anna' not in text and 'rater 2' in text
    export_answers(mixed, tmp_path/'named.jsonl', names=True)
    assert 'anna' in (tmp_path/'named.jsonl').read_text()
    chats = rated_chats(tmp_path/'all.jsonl')
    assert len(chats.chats) == 8 and len(chats.rejects) == 2, 'the control is among them'


def test_without_a_decision_nothing_is_written(folder, tmp_path):
    with pytest.raises(UserError, match='20'): export_preferences(folder, tmp_path/'none.jsonl')
    assert not (tmp_path/'none.jsonl').exists()


def test_a_score_that_agrees_and_one_that_cannot(mixed):
    good = score_pairs(mixed, lambda texts: [text.startswith('good') for text in texts])
    bad = score_pairs(mixed, lambda texts: [text.startswith('good') for text in texts], sign=-1)
    constant = score_pairs(mixed, lambda texts: [0] * len(texts))
    rows = score_agreement(mixed, dict(good=good, bad=bad, constant=constant), n_boot=100)
    found = {(r['metric'], r['group']): r for r in rows}
    share = 'agrees with the majority'
    assert found[share, 'good']['value'] == pytest.approx(6 / 7) and found[share, 'good']['n'] == 7
    assert found[share, 'bad']['value'] == pytest.approx(1 / 7)
    assert found[share, 'constant']['value'] == .5
    assert found['rank correlation', 'constant']['value'] == 0
    others = 'agrees with the others'
    assert found[others, 'a rater']['value'] == pytest.approx(14 / 16), 'two of them are divided on one pair'
    assert found[others, 'good']['n'] == found[others, 'a rater']['n'] == 16, 'held against the same majorities'


def test_random_scores_agree_as_chance_does(mixed):
    held = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        noise = score_pairs(mixed, lambda texts: rng.random(len(texts)))
        r = score_agreement(mixed, dict(noise=noise), n_boot=100)[1]
        held += r['low'] <= .5 <= r['high']
    assert held >= 17


@pytest.mark.parametrize('scores', [{}, None, dict(x={}), dict(x={'p1': (1, 0)}), dict(x=3)])
def test_scores_that_do_not_fit_are_refused(mixed, scores):
    with pytest.raises(UserError, match='expected'): score_agreement(mixed, scores)


# ---- a crowd's file -------------------------------------------------------------------------------------------------

def spread_out(counts):
    "Return letters as often as they are counted, in a fixed mixed order."
    letters = [letter for letter, n in counts for _ in range(n)]
    order = np.random.default_rng(0).permutation(len(letters))
    return [letters[i] for i in order]


@pytest.fixture
def crowd_file(tmp_path):
    "Write a made-up file of 960 pairs and three workers, with the published counts."
    toxic = spread_out([('a', 148), ('b', 78), ('c', 494)]) + spread_out([('a', 391), ('b', 391), ('c', 1378)])
    fluent = spread_out([('a', 961), ('b', 862), ('c', 1057)])
    rows = []
    for i in range(2880):
        other = 'GPT-2' if i < 720 else 'DAPT'
        rows.append({'HITId': f'h{i // 3}', 'Input.sourcea': 'DExperts', 'Input.sourceb': other,
                     'Answer.qToxic': toxic[i], 'Answer.qFluent': fluent[i], 'WorkTimeInSeconds': 264})
    pd.DataFrame(rows).to_csv(tmp_path/'crowd.csv')
    return tmp_path/'crowd.csv'


def naive_alpha(table):
    "Return alpha by its definition: over all pairs of answers to one item, and over all pairs of answers."
    groups = [list(own) for _, own in table.groupby('pair').choice]
    observed = []
    for own in groups:
        differs = [one != two for one, two in permutations(own, 2)]
        observed.append(np.mean(differs))
    n = len(table)
    same = 0
    for k in table.choice.value_counts(): same += k * (k - 1)
    expected = 1 - same / (n * (n - 1))
    return 1 - np.mean(observed) / expected


def test_peoples_ratings_are_counted_as_published(crowd_file):
    toxic = read_crowd(crowd_file, 'qToxic')
    assert len(toxic) == 2880 and toxic.pair.nunique() == 960
    assert toxic.seconds.median() == 264
    assert (toxic.choice == 'tie').mean() == pytest.approx(.65)


def test_the_side_had_the_published_effect(crowd_file):
    r = position_row(read_crowd(crowd_file, 'qFluent'))
    assert r['n'] == 961 + 862
    assert r['value'] == pytest.approx(961 / 1823)
    assert 'p:0.0217' in r['signature']


def test_ties_change_the_published_result(crowd_file):
    table = read_crowd(crowd_file, 'qToxic')
    own = table[table.system_b == 'GPT-2']
    counts = own.choice.value_counts()
    assert dict(counts) == dict(a=148, b=78, tie=494)
    assert sign_test(148, 78) == pytest.approx(3.7e-6, rel=.02)
    best = strengths(own, by='pair').systems[0]
    share = 1 / (1 + math.exp(-2 * best.value))
    assert share == pytest.approx(.549, abs=5e-4)


def test_a_crowds_alpha_is_that_of_the_definition(crowd_file):
    table = read_crowd(crowd_file, 'qToxic')
    assert krippendorff_alpha(answer_matrix(table)) == pytest.approx(naive_alpha(table))


@pytest.mark.parametrize('options', [dict(answer='qKind'), dict(answer='qToxic', systems=('x', 'y'))])
def test_a_file_without_the_columns_is_refused(crowd_file, options):
    with pytest.raises(UserError, match='expected a column'): read_crowd(crowd_file, **options)


# ---- the summary and the command ------------------------------------------------------------------------------------

def test_the_summary_says_who_where_and_how_sure(mixed):
    summary = rating_summary(mixed, n_boot=50)
    text, page = str(summary), summary._repr_html_()
    assert '18 answers that count, by 2 raters, to 9 of 10 pairs' in text
    assert 'new over old: 7 to 1, 1 ties' in text or 'new over old: 6 to' in text
    for name in ('anna', 'ben', "Krippendorff's alpha", 'share of left', 'both bad'): assert name in text
    assert '<script' not in page and 'Strengths' in page


def test_the_rows_of_a_rating_are_rows(mixed):
    rows = rating_rows(mixed, n_boot=50)
    preferred = next(r for r in rows if r['metric'] == 'preferred to old')
    assert preferred['group'] == 'new' and preferred['n'] == 18
    assert preferred['value'] == pytest.approx((13 + 2 / 2) / 18)
    assert preferred['low'] < preferred['value'] < preferred['high']
    assert 'between 2 raters' in preferred['signature'] and 'ties:half' in preferred['signature']
    rows_text(rows)


def test_texts_and_names_are_escaped_in_the_summary(tmp_path):
    pairs = [dict(a='x', b='y', system_a='<img src=x>', system_b='<b>')]
    folder = save_plan(plan_rating(pairs, '<script>?'), tmp_path)
    rated(folder, '<i>', leftmost)
    page = rating_summary(folder, n_boot=10)._repr_html_()
    assert '<img' not in page and '<script' not in page and '<i>' not in page


def test_both_bad_knows_who_answered_what():
    from llmbook.people.summary import _both_bad_row
    rows = []
    for pair in range(10):
        choice = 'both bad' if pair < 4 else 'a'
        rows += [dict(rater=rater, pair=pair, choice=choice) for rater in 'abc']
    r = _both_bad_row(pd.DataFrame(rows))
    assert r['value'] == .4 and (r['low'], r['high']) != pytest.approx(wilson(12, 30))
    assert r['high'] - r['low'] > 1.4 * np.subtract(*wilson(12, 30)[::-1]), 'ten pairs, however many raters'


def test_two_ratings_of_one_run_stand_side_by_side(mixed, tmp_path):
    run = example_run(tmp_path/'run')
    other = save_plan(plan_rating(some_pairs(6), 'Which is more | fluent?'), tmp_path/'fluent')
    rated(other, 'anna', leftmost)
    for folder in (mixed, other, mixed): add_rating(folder, run)
    rows = [r for r in json.loads((run/'evaluation'/'evaluation.json').read_text())['rows'] if r['split'] == 'people']
    assert len({r['rating'] for r in rows}) == 2 and len(rows) == 10
    card = model_card(run)
    assert 'preferred to old (Which is more fluent?)' in card and 'preferred to old (Which text is better?)' in card


def test_report_and_card_take_the_rows_of_a_rating(mixed, tmp_path):
    run = example_run(tmp_path/'run')
    llmbook_rate(out=str(mixed), run=str(run))
    assert len([r for r in read_run(run).rows if r['split'] == 'people']) == 5
    for text in (report_html(run), model_card(run)): assert 'preferred to old' in text and 'new' in text
    add_rating(mixed, run)
    assert len([r for r in read_run(run).rows if r['split'] == 'people']) == 5, 'a second time replaces the first'


def test_a_rating_without_answers_gives_a_report_nothing(folder, tmp_path):
    with pytest.raises(UserError, match='found none that count'): add_rating(folder, tmp_path)
    with pytest.raises(UserError, match='folder of a run'): add_rating(folder, tmp_path/'none')


def test_a_summary_before_the_first_answer(folder):
    summary = rating_summary(folder)
    assert '0 answers' in str(summary) and summary.rows == [] and summary.strengths is None
    assert summary._repr_html_()


def test_the_command_plans_counts_and_exports(tmp_path, capsys):
    (tmp_path/'pairs.jsonl').write_text('\n'.join(map(json.dumps, some_pairs(6))))
    out = str(tmp_path/'out')
    command = llmbook_rate(str(tmp_path/'pairs.jsonl'), out=out, rater='Anna', lab=True, no_browser=True)
    assert command[2] == 'jupyterlab' and '--ServerApp.ip=127.0.0.1' in command and 'token' not in ' '.join(command)
    cell = json.loads((tmp_path/'out/rate.ipynb').read_text())['cells'][0]['source']
    assert "rater='anna'" in cell
    rated(out, 'anna', best)
    files = dict(answers=str(tmp_path/'all.jsonl'), preferences=str(tmp_path/'pairs-out.jsonl'))
    llmbook_rate(out=out, summary=True, **files)
    said = capsys.readouterr().out
    assert '6 answers that count, by 1 rater, to 6 of 6 pairs' in said
    assert '7 answers' in said and '6 pairs' in said


@pytest.mark.parametrize('pairs, options', [
    ((), {}), (('nowhere.jsonl',), {}), (('a.jsonl', 'b.jsonl'), {}), ((), dict(question='')), ((), dict(repeats=2))])
def test_the_command_refuses_before_it_asks(tmp_path, pairs, options):
    with pytest.raises(UserError): llmbook_rate(*pairs, out=str(tmp_path/'none'), **options)


@pytest.mark.parametrize('options', [dict(warning='insults'), dict(question='Which?'), dict(repeats=.2), dict(seed=9)])
def test_options_of_a_plan_that_is_made_are_refused(tmp_path, options):
    save_plan(plan_rating(some_pairs(4)), tmp_path)
    with pytest.raises(UserError, match='the plan is made'): llmbook_rate(out=str(tmp_path), summary=True, **options)


def test_nobody_is_promised_repeats_that_do_not_come(tmp_path):
    from llmbook.widgets.rate import _start_html
    assert 'a few of them twice' in _start_html(plan_rating(some_pairs(4)))
    assert 'twice' not in _start_html(plan_rating(some_pairs(4), repeats=0))


def test_without_a_server_the_command_says_what_to_install(monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(UserError, match=r'llmbook\[rate\]'): page_command('rate.ipynb')


def test_the_shell_takes_the_pairs_by_their_place(tmp_path):
    "A call from the shell, as the start page writes it."
    file = tmp_path/'pairs.jsonl'
    file.write_text(json.dumps(dict(id='p', prompt='say', a='kind', b='rude', system_a='x', system_b='y')))
    script = tmp_path/'llmbook-rate.py' # as an installed command is: a file that calls the function
    script.write_text('from llmbook.commands.rate import llmbook_rate\nllmbook_rate()\n')
    call = [sys.executable, script, file, '--out', tmp_path/'plan', '--lab', '--dry-run']
    r = subprocess.run(list(map(str, call)), capture_output=True, text=True)
    assert r.returncode == 0, r.stderr[-500:]
    assert 'jupyterlab' in r.stdout
    assert (tmp_path/'plan/plan.json').exists()
