"""Power, verdicts, ablations and the ledger."""
import json
import numpy as np
import pytest
from scipy import stats
from llmbook.commands.ablate import llmbook_ablate
from llmbook.core import UserError
from llmbook.evaluate.overlap import item_stat
from llmbook.evaluate.stats import item_ids, ratio, row, with_items
from llmbook.verdict.ablate import ablate, ablation_arms, plot_ablation
from llmbook.verdict.ladder import fit_ladder, ladder_table, plot_ladder, predict_rung
from llmbook.verdict.ledger import ledger_html, ledger_markdown, log_run, read_ledger
from llmbook.verdict.power import items_needed, judgements_needed, paired_spread, pairs_needed, smallest_difference
from llmbook.verdict.small_run import small_run, small_settings
from llmbook.verdict.weigh import Verdict, item_scores, verdict_text, weigh, with_holm


def test_published_sample_sizes():
    assert items_needed(.03, (1/9)**.5) == 969 # Miller, 2024
    assert pairs_needed(.05, .2) == 626 # Connor, 1987
    assert judgements_needed(.55) == 783
    assert judgements_needed(.6) == judgements_needed(.4) == 194


@pytest.mark.parametrize('n', [2, 30, 969, 10**6])
def test_the_smallest_difference_needs_these_items(n):
    d = smallest_difference(.7, n)
    assert items_needed(d, .7) in (n, n + 1) # rounded up


def test_spread_in_clusters_grows():
    a = np.repeat([0., 1., 0., 1.], 5)
    b = np.zeros(20)
    clusters = np.repeat([0, 1, 2, 3], 5)
    assert paired_spread(a, b, clusters) > 2 * paired_spread(a, b)
    assert paired_spread(a, b) == pytest.approx(a.std(ddof=1))


BAD_POWER = [
    (items_needed, (0, 1)), (items_needed, (float('nan'), 1)), (items_needed, ('x', 1)), (items_needed, (.1, None)),
    (smallest_difference, (1, 0)), (smallest_difference, (1, 2.5)), (smallest_difference, (1, 10, 1.)),
    (smallest_difference, (1, 10, .8, 0)), (pairs_needed, (.3, .2)), (pairs_needed, (.1, 2)),
    (judgements_needed, (.5,)), (judgements_needed, (0,)), (judgements_needed, (1,)), (judgements_needed, (55,)),
    (paired_spread, ([1], [1])), (paired_spread, ([1, 2], [1])), (paired_spread, ('ab', 'cd'))]


@pytest.mark.parametrize('f, args', BAD_POWER)
def test_bad_questions_about_power(f, args):
    with pytest.raises(UserError, match='expected'): f(*args)


def test_one_seed_is_the_paired_t_test():
    rng = np.random.default_rng(0)
    a, b = rng.random(50), rng.random(50) + .1
    v = weigh(a, b)
    assert v.p == pytest.approx(stats.ttest_rel(b, a).pvalue)
    low, high = stats.ttest_rel(b, a).confidence_interval()
    assert (v.low, v.high) == pytest.approx((low, high))


def test_no_items_is_the_paired_t_test_of_the_seeds():
    a, b = [[1.], [2], [4]], [[2.], [4], [5]]
    v = weigh(a, b)
    assert v.p == pytest.approx(stats.ttest_rel([2, 4, 5], [1, 2, 4]).pvalue)
    assert v.item_error == 0


def test_errors_of_seeds_and_items_by_hand():
    base = np.zeros((2, 4))
    other = np.array([[1., 2, 3, 4], [3, 4, 5, 6]])
    v = weigh(base, other)
    assert v.difference == 3.5
    assert v.seed_error == pytest.approx(1.) # means 2.5 and 4.5
    assert v.item_error == pytest.approx((5/3 / 4)**.5) # means 2, 3, 4, 5


@pytest.mark.parametrize('seeds', [2, 4])
@pytest.mark.parametrize('scatter', [0, .1])
def test_false_findings_stay_at_the_level(seeds, scatter):
    rng = np.random.default_rng(1)
    found = 0
    for _ in range(150):
        a = rng.normal(0, scatter, (seeds, 1)) + rng.normal(0, .5, (seeds, 100))
        b = rng.normal(0, scatter, (seeds, 1)) + rng.normal(0, .5, (seeds, 100))
        found += weigh(a, b).is_found
    assert found / 150 <= .08


def test_pseudo_values_of_a_ratio_have_its_jackknife_error():
    rng = np.random.default_rng(0)
    v = rng.uniform(1, 2, (30, 2))
    scores = item_scores(v, ratio)
    left_out = [ratio(np.delete(v, i, 0)) for i in range(30)]
    jackknife = (29 / 30 * ((left_out - np.mean(left_out))**2).sum())**.5
    assert scores.std(ddof=1) / 30**.5 == pytest.approx(jackknife)


def test_pseudo_values_of_equal_sentences_are_bleu():
    values = np.array([[7, 7, 6, 4, 2, 1, 7, 6, 5, 4]] * 12, float)
    scores = item_scores(values, item_stat('bleu'))
    assert scores == pytest.approx(item_stat('bleu')(values))


def test_words_of_verdicts():
    rng = np.random.default_rng(0)
    noise = rng.normal(0, .1, 100)
    base = np.zeros(100)
    assert weigh(base, noise + .5, 'accuracy').word == 'better'
    assert weigh(base, noise + .5, 'perplexity').word == 'worse'
    assert weigh(base, noise + .5, 'share').word == 'higher'
    assert weigh(base, noise, 'accuracy').word == 'not known'
    assert weigh(base, base, 'accuracy').word == 'equal'


def test_an_open_verdict_says_what_would_decide():
    rng = np.random.default_rng(0)
    text = verdict_text(weigh(rng.random(400), rng.random(400), 'accuracy'))
    assert 'no difference seen' in text
    assert 'would have been' in text
    assert 'items would be needed' in text
    assert 'noise of training is not in it' in text


def test_what_the_correction_takes_away_is_said_as_that():
    "An interval without zero beside 'no difference seen' would read as a contradiction."
    noise = np.random.default_rng(0).normal(0, .1, 100)
    lucky = weigh(np.zeros(100), noise + .025 - noise.mean(), 'accuracy')
    assert lucky.is_found and lucky.low > 0
    others = [weigh(np.zeros(100), noise, f'score {i}') for i in range(9)]
    text = str(with_holm([lucky, *others])[0])
    assert 'left after the correction for several tests' in text
    assert 'if this were the only one' in text
    assert 'needed' not in text


def test_noisy_seeds_ask_for_seeds():
    rng = np.random.default_rng(0)
    seeds = np.array([[.3], [-.1], [.2]])
    text = str(weigh(np.zeros((3, 50)), seeds + rng.normal(0, .01, (3, 50)), 'accuracy'))
    assert 'seeds would be needed' in text


BAD_SCORES = [([[1, 2]], [[1, 2], [3, 4]]), ([], []), (['a'], ['b']), (None, None), ([1, float('nan')], [1, 2]), (1, 2)]


@pytest.mark.parametrize('base, other', BAD_SCORES)
def test_scores_that_cannot_be_weighed(base, other):
    with pytest.raises(UserError, match='expected'): weigh(base, other)


def test_holm_of_verdicts():
    verdicts = [weigh([0, 0, 0, .1], [1, 1.1, .9, 1], f'accuracy {i}') for i in range(3)]
    p = verdicts[0].p
    with_holm(verdicts)
    assert verdicts[0].p_holm == pytest.approx(3 * p)
    assert with_holm([]) == []


ITEMS = item_ids([f'question {i}' for i in range(20)])


def run(settings, seed, folder):
    "Return a score of 20 items that grows with the width."
    (folder/'model').write_text('weights')
    rng = np.random.default_rng(seed)
    values = rng.random(20) + settings['width'] / 10
    return [with_items(row('accuracy', values.mean(), n=20), ITEMS, values)]


def count_runs(made):
    def counted(settings, seed, folder):
        made.append((settings['width'], seed))
        return run(settings, seed, folder)
    return counted


CHANGES = {'wide': dict(width=20), 'same': dict(colour='blue')}
SETTINGS = dict(width=1, colour='red')


def test_an_ablation_finds_what_helps(tmp_path):
    result = ablate(run, SETTINGS, CHANGES, out=tmp_path)
    verdicts = result.verdicts
    assert verdicts['wide', 'accuracy test'].word == 'better'
    assert verdicts['wide', 'accuracy test'].difference == pytest.approx(1.9)
    assert verdicts['same', 'accuracy test'].word == 'equal'
    assert list(result.table['change']) == ['wide', 'same']
    assert 'equal on every item' in str(result)
    plot_ablation(result)


def test_a_table_keeps_p_and_its_correction_apart(tmp_path):
    changes = {f'width {width}': dict(width=width) for width in (2, 3, 20)}
    result = ablate(run, SETTINGS, changes, out=tmp_path)
    for line in result.table.itertuples():
        verdict = result.verdicts[line.change, line.metric]
        assert (line.p, line.p_holm) == (verdict.p, verdict.p_holm)
        assert (line.p < .05) == (line.low > 0 or line.high < 0)
        assert (line.p_holm < .05) == (line.verdict != 'not known')
    assert (result.table['p_holm'] >= result.table['p']).all()
    assert (result.table['p_holm'] > result.table['p']).any()


def test_a_killed_ablation_resumes(tmp_path):
    made = []
    def killed(settings, seed, folder):
        if len(made) == 4: raise KeyboardInterrupt
        return count_runs(made)(settings, seed, folder)
    with pytest.raises(KeyboardInterrupt): ablate(killed, SETTINGS, CHANGES, out=tmp_path)
    first = list(made)
    resumed = ablate(count_runs(made), SETTINGS, CHANGES, out=tmp_path)
    assert len(made) == len(set(made)) + 3 # width 1 stands for base and for the other colour
    assert first == made[:4]
    whole = ablate(run, SETTINGS, CHANGES, out=tmp_path/'whole')
    assert resumed.table.drop(columns='seconds').equals(whole.table.drop(columns='seconds'))


def test_runs_side_by_side_give_the_same(tmp_path):
    one = ablate(run, SETTINGS, CHANGES, out=tmp_path/'one')
    two = ablate(run, SETTINGS, CHANGES, out=tmp_path/'two', workers=2)
    assert one.table.drop(columns='seconds').equals(two.table.drop(columns='seconds'))


def test_a_failing_arm_stops_no_other(tmp_path):
    def fragile(settings, seed, folder):
        if settings['width'] == 20: raise ValueError('too wide')
        return run(settings, seed, folder)
    with pytest.warns(UserWarning, match='too wide'): result = ablate(fragile, SETTINGS, CHANGES, out=tmp_path)
    assert set(result.failed) == {('wide', 0), ('wide', 1), ('wide', 2)}
    assert result.table.set_index('change')['verdict']['wide'] == 'ValueError: too wide'
    mended = ablate(run, SETTINGS, CHANGES, out=tmp_path)
    assert not mended.failed


def test_seeds_count_where_both_arms_have_them(tmp_path):
    ablate(run, SETTINGS, {'wide': dict(width=20)}, seeds=2, out=tmp_path)
    result = ablate(run, SETTINGS, {'wide': dict(width=20)}, seeds=[0, 1, 5], out=tmp_path)
    assert result.verdicts['wide', 'accuracy test'].seeds == 3


BAD_ABLATIONS = [
    dict(settings=None), dict(settings=dict(width=object())), dict(changes={}), dict(changes=None),
    dict(changes={'a': None}), dict(changes={'a': {}}), dict(changes={'a': dict(widht=1)}),
    dict(changes={'base': dict(width=2)}), dict(changes={'a/b': dict(width=2)}), dict(changes={'': dict(width=2)}),
    dict(changes={1: dict(width=2)}), dict(seeds=0), dict(seeds=[]), dict(seeds=[1, 1]), dict(seeds='3'),
    dict(seeds=[-1]), dict(minutes=0), dict(minutes='5'), dict(workers=0), dict(run=None)]


@pytest.mark.parametrize('bad', BAD_ABLATIONS)
def test_ablations_that_cannot_be(bad, tmp_path):
    given = dict(run=run, settings=SETTINGS, changes=CHANGES, out=tmp_path/'new') | bad
    with pytest.raises(UserError, match='expected'): ablate(**given)
    assert not (tmp_path/'new').exists()


def test_a_folder_holds_one_experiment(tmp_path):
    ablate(run, SETTINGS, CHANGES, seeds=1, out=tmp_path)
    with pytest.raises(UserError, match='another folder'): ablate(run, dict(SETTINGS, width=2), CHANGES, out=tmp_path)


@pytest.mark.parametrize('result', [None, [], {}, 'x', [1], dict(accuracy='high'), dict(accuracy=float('nan'))])
def test_runs_without_rows_are_said(result, tmp_path):
    def empty(settings, seed, folder): return result
    with pytest.warns(UserWarning, match='expected'): found = ablate(empty, SETTINGS, CHANGES, seeds=1, out=tmp_path)
    assert not found.results
    assert 'no result' in str(found)


def test_a_ledger_survives_damage(tmp_path):
    path = tmp_path/'ledger.jsonl'
    log_run(path, 'a', 'first', 'fine')
    with path.open('a') as f: f.write('half a li\n[1]\n{"run": 3}\n')
    log_run(path, 'b', 'second', weigh([0, 1, 0], [1, 1, 1], 'accuracy'), 'more items')
    table = read_ledger(path)
    assert list(table['run']) == ['a', 'b']
    assert table.attrs['set_aside'] == [2, 3, 4]
    assert json.loads(path.read_text().splitlines()[-1])['items'] == 3


def test_a_ledger_is_escaped(tmp_path):
    path = tmp_path/'ledger.jsonl'
    log_run(path, '<b>', 'x | y\nz', '<script>', '&')
    assert '<script>' not in ledger_html(path)
    assert ledger_markdown(path).splitlines()[-1] == '| &lt;b&gt; | x &#124; y z | &lt;script&gt; | &amp; |'


def test_arms_hold_all_settings():
    arms = ablation_arms(SETTINGS, CHANGES)
    assert arms == {'base': SETTINGS, 'wide': dict(width=20, colour='red'), 'same': dict(width=1, colour='blue')}
    assert isinstance(weigh([0, 1], [1, 1]), Verdict)


def power_law(x, floor=1.7, slope=2., exponent=.3): return floor + slope * (x / 1e6)**-exponent


RUNGS = 1e6 * 4.**np.arange(5)


def test_a_ladder_finds_its_law():
    ladder = fit_ladder(RUNGS, power_law(RUNGS), draws=20)
    assert ladder.floor == pytest.approx(1.7, abs=.01)
    assert ladder.exponent == pytest.approx(.3, abs=.005)
    value, low, high = predict_rung(ladder, 1e9)
    assert value == pytest.approx(power_law(1e9), abs=.01)
    assert low <= value <= high


def test_predictions_are_less_certain_further_away():
    losses = power_law(RUNGS) + np.array([.01, -.01, .01, -.01, .01])
    ladder = fit_ladder(RUNGS, losses, draws=100)
    near, far = predict_rung(ladder, 1e9), predict_rung(ladder, 1e12)
    assert far[2] - far[1] > near[2] - near[1]


def test_a_law_without_a_floor_has_none():
    ladder = fit_ladder(RUNGS, power_law(RUNGS, 0.), draws=20)
    assert ladder.floor == pytest.approx(0, abs=.02)


def test_losses_that_rise_give_a_flat_line():
    ladder = fit_ladder(RUNGS, [1., 1.1, 1.2, 1.3, 1.4], draws=20)
    assert ladder.slope == 0
    assert ladder.floor == pytest.approx(1.2)


def test_predictions_are_held_against_runs():
    ladder = fit_ladder(RUNGS, power_law(RUNGS), draws=20)
    table = ladder_table(ladder, [(1e9, float(power_law(1e9))), (1e10, 3.)])
    assert list(table['within']) == [True, False]
    plot_ladder(ladder, [(1e9, 2.)])


BAD_LADDERS = [([1, 2, 3], [1, 2, 3]), ([1, 1, 1, 1], [1, 2, 3, 4]), ([1, 2, 3, 4], [1, 2, 3]), ('abcd', 'abcd'),
               ([1, 2, 3, 0], [1, 2, 3, 4]), ([1, 2, 3, 4], [1, 2, 3, float('nan')]), (None, None)]


@pytest.mark.parametrize('x, y', BAD_LADDERS)
def test_points_that_make_no_ladder(x, y):
    with pytest.raises(UserError, match='expected'): fit_ladder(x, y)


SMALL = dict(size='pico', max_bytes=800_000, vocab_size=400, tokens=4096, batch=4, seq_len=64)


def test_small_runs_share_their_data_and_repeat(tmp_path):
    settings = small_settings(**SMALL)
    first = small_run(settings, 0, tmp_path/'a'/'base'/'seed-0')
    again = small_run(settings, 0, tmp_path/'a'/'base'/'seed-1')
    other = small_run(settings, 1, tmp_path/'a'/'base'/'seed-2')
    assert first == again != other
    assert len(list((tmp_path/'a'/'data').iterdir())) == 1


BAD_COMMANDS = [('preset=none', ''), ('a: preset', ''), ('a: colour=1', ''), ('', ''), ('a: preset=none', ''),
                ('a: size=vast', ''), ('a: lr=0.01', 'colour=1'), ('a: lr=0.01', 'tokens=1')]


@pytest.mark.parametrize('change, base', BAD_COMMANDS)
def test_ablations_of_the_command_that_cannot_be(change, base, tmp_path):
    with pytest.raises(UserError, match='expected'): llmbook_ablate(str(tmp_path/'out'), change, base)
    assert not (tmp_path/'out').exists()
