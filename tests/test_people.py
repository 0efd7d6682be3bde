"Asking people: the plan, answers on disk, agreement, strengths, stopping, the quality of raters, export."
import json, math, os, signal, subprocess, sys
from collections import Counter
import numpy as np
import pandas as pd
import pytest
from llmbook.core import UserError
from llmbook.people.agreement import agreement_rows, alpha_row, krippendorff_alpha
from llmbook.people.answers import RaterSession, choice_of, counted_answers, rater_file, read_answers, read_lines
from llmbook.people.plan import RatingPair, open_plan, pair_answers, plan_rating, rater_tasks, read_pairs, save_plan
from llmbook.people.strengths import comparable_systems, strengths


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


def test_undo_is_kept_and_can_be_repeated(folder):
    session = RaterSession(folder, 'anna')
    for answer in ('left', 'right', 'tie'): session.answer(answer)
    session.undo()
    session.undo()
    assert session.task.number == 1 and RaterSession(folder, 'anna').task.number == 1
    session.answer('both bad')
    assert list(read_answers(folder).answer) == ['left', 'both bad']
    assert len(read_lines(session.path)[0]) == 6, 'nothing is ever removed'


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
    ([], 'nominal'), ([[1, 2], [1]], 'nominal'), ([['a', 'b'], ['a', 'b']], 'interval'), (FOUR, 'ordinal'),
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
    for seed in range(200):
        table = divided_raters(np.random.default_rng(seed), 6, 1.)
        alone = table.assign(one=range(len(table)))
        for by in ('rater', 'one'):
            s = strengths(alone, by=by).systems[0]
            held[by] += s.low <= 0 <= s.high
    assert held['rater'] >= 182, 'about 95 % of 200'
    assert held['one'] < 130, 'answers are not independent'


@pytest.mark.parametrize('table, options', [
    (pd.DataFrame(), {}), (won(('x', 'x', 3)), {}), (won(('x', 'y', 1, 'maybe')), {}), (CIRCLE, dict(ties='drop')),
    (CIRCLE, dict(level=2)), (CIRCLE, dict(level='x')), (None, {})])
def test_strengths_refuse_what_they_cannot_fit(table, options):
    with pytest.raises(UserError, match='expected'): strengths(table, **options)
