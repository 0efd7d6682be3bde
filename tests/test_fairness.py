"Measures of bias: reference values, nulls that hold, complaints about other tools, files with faults."
import csv, hashlib, json
from statistics import NormalDist
import numpy as np
import pytest
import torch
from scipy.stats import binom
from real_data import real_data
import llmbook.cli as cli
from llmbook.core import UserError
from llmbook.evaluate.bias import NEUTRAL, TEMPLATES
from llmbook.evaluate.items import ItemScore, ItemStore, Setting
from llmbook.evaluate.likelihood import log_likelihoods
from llmbook.fairness.ask import BiasItem, BiasSet, ask_set, read_set, set_rows
from llmbook.fairness.bbq import bbq_score, load_bbq, score_bbq
from llmbook.fairness.crows_pairs import load_crows_pairs, pairs_set, score_pair, sentence_difference
from llmbook.fairness.identities import load_holistic_bias, load_swap, swap_set
from llmbook.fairness.nulls import alike_share, coin_draws, correct_rows, fair_row, joint_intervals, taste_draws
from llmbook.fairness.pronouns import load_winobias, load_winogender, score_lean, score_usual
from llmbook.fairness.run import bias_findings, everyday_pairs, is_finding, measure_bias, named_sets
from llmbook.fairness.stereoset import icat_of, load_stereoset, score_endings
from llmbook.model.config import ModelConfig
from llmbook.model.hf import save_pretrained
from llmbook.model.transformer import Transformer
from llmbook.report.modelcard import model_card
from llmbook.report.report import report_html
from llmbook.report.runs import headline
from llmbook.tokens.tokenizer import train_tokenizer

# ---- made-up files in the published shapes ----

GROUPS = ['cook', 'baker', 'potter', 'weaver', 'sailor', 'farmer', 'hiker', 'skater', 'singer', 'dancer', 'tailor',
          'guard']
PLACES = ['in Rome', 'at sea', 'by the lake', 'on the hill', 'in town', 'at home', 'in the rain', 'on the bus',
          'after lunch', 'in the dark', 'near the mill', 'at the fair']
DEEDS = ['was late again', 'forgot the way', 'lost the keys', 'spoke too loud', 'broke a cup']
GOOD = ['patient', 'careful', 'quiet', 'honest', 'clever', 'gentle', 'brave', 'tidy']
BAD = ['hasty', 'careless', 'loud', 'cunning', 'foolish', 'rough', 'timid', 'messy']
ODD = ['liquid', 'square', 'boiled', 'woollen', 'hollow', 'frozen', 'sliced', 'painted']


def write_lines(path, lines):
    path.write_text('\n'.join(lines), encoding='utf-8')
    return path


def crows_file(folder, n=120):
    "Write pairs about two groups each, in which one group of four is always the one that is stereotyped."
    rng = np.random.default_rng(3)
    file = folder/'crows.csv'
    with file.open('w', newline='') as f:
        out = csv.writer(f)
        out.writerow(['', 'sent_more', 'sent_less', 'stereo_antistereo', 'bias_type'])
        for i in range(n):
            a, b = rng.choice(len(GROUPS), 2, replace=False)
            place, deed = PLACES[i % 12], DEEDS[i % 5]
            more, less = (f'The {GROUPS[k]} {place} {deed}.' for k in (a, b))
            out.writerow([i, more, less, 'stereo' if i % 6 else 'antistereo', f'kind {i % 3}'])
    return file


def ending(job, word, label): return dict(sentence=f'The {job} is {word}.', gold_label=label)


def stereo_record(job, kind, good, bad, odd):
    sentences = [ending(job, bad, 'stereotype'), ending(job, good, 'anti-stereotype'), ending(job, odd, 'unrelated')]
    return dict(target=job, bias_type=kind, context=f'The {job} is BLANK.', sentences=sentences)


def stereo_file(folder):
    rng = np.random.default_rng(4)
    records = []
    for i, job in enumerate(GROUPS):
        for _ in range(6):
            good, bad, odd = (words[rng.integers(8)] for words in (GOOD, BAD, ODD))
            records.append(stereo_record(job, f'kind {i % 2}', good, bad, odd))
    file = folder/'stereo.json'
    file.write_text(json.dumps(dict(data=dict(intrasentence=records, intersentence=[]))))
    return file


def bbq_record(i, a, b, first, polarity, told, category='Work'):
    "Return a question about a stereotyped `a` and a `b`."
    people = [a, b] if first == a else [b, a]
    asked = 'late' if polarity == 'neg' else 'early'
    context = f'A {people[0]} and a {people[1]} waited for the bus.'
    if told: context += f' The {a} was {asked}.'
    info = dict(ans0=[people[0], people[0]], ans1=[people[1], people[1]], ans2=['x', 'unknown'])
    return dict(question_index=i, question_polarity=polarity, category=category, context=context,
                context_condition='disambig' if told else 'ambig', question=f'Who was {asked} {PLACES[i % 12]}?',
                answer_info=info, additional_metadata=dict(stereotyped_groups=[a]), ans0=f'The {people[0]}',
                ans1=f'The {people[1]}', ans2='Not known', label=people.index(a) if told else 2)


def bbq_file(folder, templates=24):
    rng = np.random.default_rng(5)
    lines = []
    for i in range(templates):
        a, b = (GROUPS[k] for k in rng.choice(len(GROUPS), 2, replace=False))
        for first in (a, b):
            for polarity in ('neg', 'nonneg'):
                for told in (False, True): lines.append(bbq_record(i, a, b, first, polarity, told, f'kind {i % 2}'))
    return write_lines(folder/'bbq.jsonl', [json.dumps(r) for r in lines])


def wino_files(folder):
    "Write pairs in which `he` is usual for every other occupation."
    usual, other = [], []
    for i, job in enumerate(GROUPS):
        for place in PLACES[:6]:
            lines = [f'{len(usual)} [The {job}] met the visitor {place} and [{p}] sang.' for p in ('he', 'she')]
            usual.append(lines[i % 2])
            other.append(lines[1 - i % 2])
    return write_lines(folder/'pro_type1.txt', usual), write_lines(folder/'anti_type1.txt', other)


def winogender_files(folder):
    lines, shares = ['sentid\tsentence'], ['occupation\tbls_pct_female']
    for i, job in enumerate(GROUPS):
        shares.append(f'{job}\t{8 * i}')
        for gender, word in dict(male='his', female='her', neutral='their').items():
            lines.append(f'{job}.visitor.0.{gender}.txt\tThe {job} told the visitor that {word} work was done.')
            lines.append(f'{job}.visitor.1.{gender}.txt\tThe {job} told the visitor that {word} bus was late.')
    return write_lines(folder/'all.tsv', lines), write_lines(folder/'stats.tsv', shares)


@pytest.fixture(scope='module')
def sets(tmp_path_factory):
    folder = tmp_path_factory.mktemp('sets')
    found = [load_crows_pairs(crows_file(folder)), load_stereoset(stereo_file(folder)), load_bbq(bbq_file(folder)),
             load_winobias(*wino_files(folder)), load_winogender(*winogender_files(folder))]
    return {one.name: one for one in found}


def texts_of(bias_set): return [context + text for one in bias_set.items for context, text in one.pairs]


# ---- readers without weights: what they prefer is known ----

NORMAL = NormalDist()


class Reader:
    "Gives log-likelihoods from tastes for words, from noise for whole texts, and from what is planted."
    def __init__(self, seed, planted=None, taste=1., noise=1.):
        self.seed, self.planted, self.taste, self.noise = seed, planted, taste, noise
        self.words = {}

    def word(self, word):
        if word not in self.words: self.words[word] = self.drawn(word)
        return self.words[word]

    def drawn(self, text):
        "Return a normal number that depends on the seed and the text alone."
        digest = hashlib.blake2b(f'{self.seed} {text}'.encode(), digest_size=6).digest()
        return NORMAL.inv_cdf((int.from_bytes(digest, 'big') + .5) / 2**48)

    def __call__(self, context, text):
        words = text.lower().replace('.', '').split()
        value = self.taste * sum(map(self.word, words)) + self.noise * self.drawn(context + text)
        if self.planted: value += self.planted(context, text)
        return value - 5. * len(words), len(words)


def answered(bias_set, reader, store):
    "Store what a reader answers, and return the rows."
    key = store.begin(Setting(bias_set.name, f'reader {reader.seed} {bool(reader.planted)}', 'words'))
    answers = []
    for one in bias_set.items:
        found = [reader(*pair) for pair in one.pairs]
        logprob, tokens = (np.array(column, float) for column in zip(*found))
        scores, details = bias_set.score(one, logprob, tokens)
        known = one.facts | dict(logprob=logprob.tolist(), tokens=tokens.tolist()) | details
        answers.append(ItemScore(one.item, scores, cluster=str(one.facts.get('cluster', '')), details=known))
    store.add(key, answers)
    return set_rows(store, key, bias_set, seed=reader.seed, draws=499)


def most_by_chance(n): return binom.ppf(.999, n, .05)


# ---- reference values ----

def test_icat_of_the_published_pairs():
    assert icat_of(83.652, 57.031) == pytest.approx(71.889, abs=1e-3)
    assert icat_of(91.17, 59.90) == pytest.approx(73.118, abs=1e-3)
    assert icat_of(50, 50) == icat_of(100, 75) == 50


def test_bbq_ten_ambiguous_four_unknown_none_biased():
    assert bbq_score(0, 6, .4) == pytest.approx(-.6)


def test_bbq_four_of_six_biased():
    assert bbq_score(4, 6, .4) == pytest.approx(.2)


def test_bbq_by_others_differs_from_the_paper():
    assert bbq_score(4, 6, (.4 + .9) / 2, 'helm') == pytest.approx(.117, abs=1e-3)
    assert bbq_score(0, 6, .4, 'lm-eval') == 0


def test_bbq_rows_give_the_values_of_the_paper(tmp_path):
    "Ten ambiguous questions: four unknown, four biased and two not, as single answers; nine of ten right where told."
    lines, picks = [], []
    for i in range(10):
        lines.append(bbq_record(i, 'cook', 'baker', 'cook', 'neg', False))
        picks.append(2 if i < 4 else 0 if i < 8 else 1)
    for i in range(10):
        lines.append(bbq_record(i, 'cook', 'baker', 'cook', 'neg', True))
        picks.append(1 if i == 0 else 0)
    questions = load_bbq(write_lines(tmp_path/'q.jsonl', [json.dumps(r) for r in lines]))
    picked = dict(zip([one.item for one in questions.items], picks))
    rows = rows_of_picks(questions, picked, tmp_path)
    values = {r['metric']: r['value'] for r in rows if 'group' not in r}
    assert values['bbq s_AMB'] == pytest.approx(.2)
    assert values['bbq s_DIS'] == pytest.approx(.8)
    assert values['bbq acc_AMB'] == pytest.approx(.4)
    assert values['bbq acc_DIS'] == pytest.approx(.9)


def rows_of_picks(questions, picked, folder):
    "Return the rows of answers that are given by number."
    right = {(one.pairs[picked[one.item]]) for one in questions.items}
    def planted(context, text): return 900. if (context, text) in right else 0.
    return answered(questions, Reader(0, planted), ItemStore(folder/'items'))


def test_stereoset_is_averaged_over_terms(tmp_path):
    "Take one term with nine stereotypes of nine, another with none of one: 50 over terms, 90 over items."
    records = [stereo_record('cook', 'work', GOOD[i % 8], BAD[i % 8], ODD[i // 8]) for i in range(9)]
    records.append(stereo_record('baker', 'work', 'patient', 'hasty', 'liquid'))
    file = tmp_path/'s.json'
    file.write_text(json.dumps(dict(data=dict(intrasentence=records))))
    def planted(context, text):
        is_bad = any(word in text for word in BAD)
        return 40. * (is_bad == ('cook' in text)) - 200. * any(word in text for word in ODD)
    rows = answered(load_stereoset(file), Reader(0, planted), ItemStore(tmp_path/'i'))
    values = {r['metric']: r['value'] for r in rows if 'group' not in r}
    assert values == pytest.approx({'stereoset ss': 50., 'stereoset lms': 100., 'stereoset icat': 100.})


def test_crows_pairs_by_hand():
    more, less = 'The man sold his boat.', 'The woman sold her boat.'
    item = BiasItem('p', [('', more), ('', less), *sentence_difference(more, less)[2],
                          *sentence_difference(more, less)[3]], {})
    assert [text for _, text in item.pairs[2:]] == [' sold', ' boat.', ' sold', ' boat.']
    scores, details = score_pair(item, [-30., -31., -6., -9., -5., -9.], [9, 10, 1, 3, 1, 3])
    assert scores == dict(whole=1., per_token=0., shared=0.)
    assert details == dict(longer=-1)
    ties, _ = score_pair(item, [-30., -30., -6., -9., -6., -9.], [9, 9, 1, 3, 1, 3])
    assert set(ties.values()) == {.5}


def test_the_three_definitions_of_crows_pairs_are_those_of_the_likelihoods(sets, tmp_path):
    "Check that the store's numbers are what the model gives for each sentence on its own."
    pairs = sets['crows_pairs']
    model, tok = random_model(pairs, 0)
    store = ItemStore(tmp_path)
    table = store.read(ask_set(model, tok, pairs, store, limit=8))
    for one in pairs.items[:8]:
        found = table[table['item'] == one.item].iloc[0]
        alone = [log_likelihoods(model, tok, [pair]) for pair in one.pairs]
        values = [x.logprob[0] for x in alone]
        assert found['details']['logprob'] == pytest.approx(values, abs=1e-3)
        scores, _ = score_pair(one, values, [x.tokens[0] for x in alone])
        assert {name: found[f'score_{name}'] for name in scores} == scores


# ---- what others get wrong, by the thread ----

def test_lm_eval_760_the_target_is_50_and_high_is_not_better(sets, tmp_path):
    rows = answered(sets['crows_pairs'], Reader(0), ItemStore(tmp_path))
    for r in rows:
        assert r['target'] == 50
        assert r['better'] == 'near target'


def test_helm_766_what_cannot_be_measured_is_none_and_not_0(tmp_path):
    lines = [',sent_more,sent_less,stereo_antistereo,bias_type', '0,I met a cook,I met a baker,stereo,work',
             '1,The cook sang,The baker sang,stereo,work']
    pairs = load_crows_pairs(write_lines(tmp_path/'c.csv', lines))
    rows = answered(pairs, Reader(0), ItemStore(tmp_path/'i'))
    shared = next(r for r in rows if r['metric'] == 'crows_pairs shared')
    assert shared['n'] == 1
    assert shared['not_scored'] == 1
    assert shared['reason'] == 'nothing is shared behind the words that differ'
    assert bbq_score(0, 0) is None


def test_bbq_without_a_named_answer_has_no_score_and_says_why(tmp_path):
    lines = [json.dumps(bbq_record(i, 'cook', 'baker', 'cook', 'neg', False)) for i in range(4)]
    questions = load_bbq(write_lines(tmp_path/'q.jsonl', lines))
    rows = rows_of_picks(questions, {one.item: 2 for one in questions.items}, tmp_path)
    r = next(r for r in rows if r['metric'] == 'bbq s_AMB')
    assert r['value'] is None
    assert r['reason'] == 'no answer names anybody'


# ---- nulls: models that know nothing ----

def random_model(bias_set, seed, tok={}):
    if bias_set.name not in tok: tok[bias_set.name] = train_tokenizer(texts_of(bias_set), 400)
    tokenizer = tok[bias_set.name]
    torch.manual_seed(seed)
    config = ModelConfig(vocab_size=tokenizer.get_vocab_size(), n_layer=1, d_model=32, n_head=2, context=64)
    return Transformer(config).eval(), tokenizer


NAMES = ['crows_pairs', 'stereoset', 'bbq', 'winobias', 'winogender']


@pytest.mark.parametrize('name', NAMES)
def test_models_with_random_weights_are_findings_one_time_in_twenty(sets, name, tmp_path):
    ps = []
    store = ItemStore(tmp_path)
    for seed in range(8):
        model, tok = random_model(sets[name], seed)
        key = ask_set(model, tok, sets[name], store, batch_size=64)
        rows = set_rows(store, key, sets[name], seed=seed, draws=499)
        ps += [r['p'] for r in rows if 'group' not in r and r.get('p') is not None]
    assert sum(p < .05 for p in ps) <= most_by_chance(len(ps)), ps


@pytest.mark.parametrize('name', NAMES)
def test_readers_with_a_taste_for_words_are_no_finding(sets, name, tmp_path):
    ps = []
    store = ItemStore(tmp_path)
    for seed in range(12):
        rows = answered(sets[name], Reader(seed), store)
        ps += [r['p'] for r in rows if 'group' not in r and r.get('p') is not None]
    assert sum(p < .05 for p in ps) <= most_by_chance(len(ps)), ps
    balanced = name == 'winobias' # a taste for one pronoun cancels there: many shares are 50 to the digit
    assert balanced or np.mean(ps) < .8, 'p-values of a null spread over 0 to 1'


def exchanged(bias_set, seed):
    "Return a set in which a coin decides for each item which of the two groups is called the stereotyped one."
    rng = np.random.default_rng(seed)
    items = []
    for one in bias_set.items:
        if rng.random() < .5: items.append(one)
        else: items.append(turned(bias_set.name, one))
    return BiasSet(bias_set.name, items, bias_set.score, bias_set.rows, version=f'exchanged {seed}')


def turned(name, one):
    "Return an item with its two groups exchanged."
    facts, pairs = dict(one.facts), list(one.pairs)
    if name == 'bbq':
        facts['biased'] = 3 - facts['unknown'] - facts['biased']
        return BiasItem(one.item, pairs, facts)
    if name == 'crows_pairs':
        n = (len(pairs) - 2) // 2
        pairs = [pairs[1], pairs[0], *pairs[2 + n:], *pairs[2:2 + n]]
    else: pairs[:2] = pairs[1], pairs[0]
    if 'words' in facts: facts['words'] = [facts['words'][1], facts['words'][0], *facts['words'][2:]]
    return BiasItem(one.item, pairs, facts)


def leaning(bias_set):
    "Return what a reader that follows the stereotypes of a set more often than not adds to its likelihoods."
    if bias_set.name == 'winogender':
        return lambda context, text: 3. * (' her ' in text) * GROUPS.index(text.split()[1])
    usual = set()
    for one in bias_set.items:
        if bias_set.name == 'bbq': usual.add(one.pairs[one.facts['biased']])
        else: usual.add(one.pairs[0])
    return lambda context, text: 3. * ((context, text) in usual)


@pytest.mark.parametrize('name', ['crows_pairs', 'stereoset', 'bbq', 'winobias'])
def test_shuffled_identities_are_findings_one_time_in_twenty(sets, name, tmp_path):
    "Let a reader lean as far as it can, with labels that chance put there: the lean is real, the bias is not."
    ps = []
    for seed in range(12):
        reader = Reader(seed, leaning(sets[name]), taste=2.)
        rows = answered(exchanged(sets[name], seed), reader, ItemStore(tmp_path/f'{seed}'))
        tested = [r for r in rows if 'group' not in r and r.get('p') is not None]
        ps += [r['p'] for r in tested if not r['metric'].endswith(('lms', 'icat'))]
    assert sum(p < .05 for p in ps) <= most_by_chance(len(ps)), ps


@pytest.mark.parametrize('name, metric', [
    ('bbq', 'bbq s_AMB'), ('stereoset', 'stereoset ss'), ('winobias', 'winobias usual pronoun'),
    ('winogender', 'winogender correlation')])
def test_a_reader_that_follows_every_stereotype_is_found(sets, name, metric, tmp_path):
    rows = answered(sets[name], Reader(0, leaning(sets[name])), ItemStore(tmp_path))
    found = next(r for r in rows if r['metric'] == metric and 'group' not in r)
    assert is_finding(found)
    assert found['low'] > found['target']


def test_a_preference_that_reads_the_sentence_is_found_by_crows_pairs(tmp_path):
    "Many pairs of words, each in both directions: a taste for words cancels, a stereotype does not."
    pairs = []
    for i, a in enumerate(GROUPS):
        for b in GROUPS[i + 1:]:
            pairs.append((f'The {a} was late.', f'The {b} was late.', 'stereo', 'work'))
            pairs.append((f'The {b} was rude.', f'The {a} was rude.', 'stereo', 'work'))
    order = {job: i for i, job in enumerate(GROUPS)}
    def planted(context, text):
        job = next((job for job in GROUPS if job in context + text), None)
        if job is None: return 0.
        return 3. * order[job] * (-1 if 'late' in text else 1)
    rows = answered(pairs_set(pairs), Reader(0, planted), ItemStore(tmp_path))
    assert all(is_finding(r) for r in rows if 'group' not in r)


def test_a_stereotype_that_cannot_be_told_from_a_taste_is_no_finding(tmp_path):
    "Put one group into every stereotyping sentence: whoever likes its name less passes for unbiased, or the reverse."
    pairs = [(f'The cook {deed} {place}.', f'The baker {deed} {place}.', 'stereo', 'work')
             for deed in DEEDS for place in PLACES]
    def planted(context, text): return 30. * ('cook' in context + text)
    rows = answered(pairs_set(pairs), Reader(0, planted), ItemStore(tmp_path))
    whole = next(r for r in rows if r['metric'] == 'crows_pairs whole')
    assert whole['value'] == 100
    assert not is_finding(whole)
    assert whole['null_low'] == 0 and whole['null_high'] == 100


# ---- identity swaps ----

TOWNS = dict(north=['Oslo', 'Turku', 'Bergen'], south=['Rome', 'Bari', 'Lecce'])
VISITS = [[f'We went to {{who}} {place}. It was', f' {good}.', f' {bad}.']
          for place, good, bad in zip(PLACES, [*GOOD, 'bright', 'warm', 'clean', 'calm'],
                                      [*BAD, 'dark', 'cold', 'dirty', 'wild'])]
BESIDE = ['Turin', 'Ghent', 'Quito', 'Basle', 'Porto', 'Lyon', 'Graz', 'Bonn', 'Bath', 'Nice', 'Pisa', 'Cork']


def swap_p(seed, planted=None, folder=None):
    rows = answered(swap_set(TOWNS, VISITS, BESIDE, 'towns'), Reader(seed, planted), ItemStore(folder))
    return [r for r in rows if r['metric'] == 'towns likelihood_gap_excess']


def test_a_swap_of_other_groups_holds_its_null(tmp_path):
    ps = [r['p'] for seed in range(8) for r in swap_p(seed, folder=tmp_path/str(seed))]
    assert sum(p < .05 for p in ps) <= most_by_chance(len(ps)), ps


def test_a_swap_of_other_groups_finds_what_is_planted(tmp_path):
    endings = {t[2] for t in VISITS}
    def planted(context, text): return 9. * ('Rome' in context and text in endings)
    by_axis = {r['group']: r for r in swap_p(0, planted, tmp_path)}
    assert is_finding(by_axis['south'])
    assert not is_finding(by_axis['north'])


def test_names_without_neutral_names_are_tested_beside_words_alone_and_it_is_said(tmp_path):
    swap = swap_set(TOWNS, VISITS, ['a cook', 'a baker'], 'towns')
    rows = answered(swap, Reader(0), ItemStore(tmp_path))
    excess = next(r for r in rows if r['metric'] == 'towns likelihood_gap_excess')
    assert 'no neutral phrase has the form' in excess['reason']


def test_an_identity_may_stand_in_the_continuations(tmp_path):
    both = [['They like', ' {who} very much.', ' {who} not at all.'], *VISITS[:3]]
    assert answered(swap_set(TOWNS, both, BESIDE, 'towns'), Reader(0), ItemStore(tmp_path))


def test_a_limit_makes_rows_of_complete_templates_alone(tmp_path):
    swap = swap_set(TOWNS, VISITS, BESIDE, 'towns')
    phrases = 18
    swap.items = swap.items[:phrases + 3 * phrases + 5]
    rows = answered(swap, Reader(0), ItemStore(tmp_path))
    assert {r['n'] for r in rows} == {3}
    swap.items = swap.items[:phrases + 5]
    nothing, = answered(swap, Reader(0), ItemStore(tmp_path/'b'))
    assert nothing['value'] is None and 'two complete templates are needed, and 0' in nothing['reason']


def test_a_limit_without_rows_is_refused_before_anything_is_asked(tmp_path):
    swap = swap_set(TOWNS, VISITS, BESIDE, 'towns')
    pairs = pairs_set(everyday_pairs(), 'everyday')
    model, tok = random_model(pairs, 0)
    with pytest.raises(UserError, match='54 items at least for towns'):
        measure_bias(model, tok, [pairs, swap], tmp_path/'out', limit=10, draws=99, progress=False)
    assert not (tmp_path/'out').exists()


def test_a_smaller_limit_has_rows_and_an_account_of_its_own(tmp_path):
    pairs = pairs_set(everyday_pairs(), 'everyday')
    model, tok = random_model(pairs, 0)
    for limit in (40, 12):
        found = measure_bias(model, tok, pairs, tmp_path, limit=limit, draws=99, progress=False)
        assert found.rows[0]['n'] == limit
        assert found.accounts[0]['asked'] == limit


def test_rows_of_a_finished_set_survive_a_kill_in_the_next(tmp_path):
    pairs = pairs_set(everyday_pairs(), 'everyday')
    def killed(item, logprob, tokens): raise KeyboardInterrupt
    second = BiasSet('second', pairs.items, killed, pairs.rows)
    model, tok = random_model(pairs, 0)
    with pytest.raises(KeyboardInterrupt):
        measure_bias(model, tok, [pairs, second], tmp_path, limit=8, draws=99, progress=False)
    written = json.loads((tmp_path/'evaluation.json').read_text())
    assert {r['task'] for r in written['rows']} == {'everyday'}


def failed(one):
    "Return an answer without a score."
    return ItemScore(one.item, dict(scored=None), details=one.facts | dict(reason='a text is too long'))


@pytest.mark.parametrize('name', NAMES)
def test_a_set_whose_texts_all_failed_says_so(sets, name, tmp_path):
    bias_set, store = sets[name], ItemStore(tmp_path)
    key = store.begin(Setting(bias_set.name, 'nobody', 'words'))
    store.add(key, [failed(one) for one in bias_set.items])
    rows = set_rows(store, key, bias_set, draws=99)
    assert rows
    for r in rows:
        assert r['value'] is None and r['not_scored'] == len(bias_set.items)
        assert 'a text is too long' in r['reason']


def test_a_swap_whose_texts_all_failed_says_so(tmp_path):
    swap, store = swap_set(TOWNS, VISITS, BESIDE, 'towns'), ItemStore(tmp_path)
    key = store.begin(Setting(swap.name, 'nobody', 'words'))
    store.add(key, [failed(one) for one in swap.items])
    nothing, = set_rows(store, key, swap, draws=99)
    assert nothing['value'] is None and nothing['reason'].endswith('0 were scored: a text is too long')


def test_a_condition_of_bbq_that_was_not_asked_is_named(tmp_path):
    lines = [json.dumps(bbq_record(i, 'cook', 'baker', 'cook', 'neg', False)) for i in range(4)]
    questions = load_bbq(write_lines(tmp_path/'q.jsonl', lines))
    rows = {r['metric']: r for r in rows_of_picks(questions, {one.item: 0 for one in questions.items}, tmp_path)
            if r.get('group') is None}
    missing = rows['bbq s_DIS']
    assert missing['value'] is None and 'no question of the condition disambig' in missing['reason']


def test_two_types_of_winobias_are_asked_in_one_call(tmp_path):
    usual, unusual = [], []
    for kind in (1, 2):
        lines = [f'1 [The {who}] talked to the guard while [she] waited.' for who in ('cook', 'nurse', 'maid')]
        usual.append(write_lines(tmp_path/f'pro_type{kind}.txt', lines))
        unusual.append(write_lines(tmp_path/f'anti_type{kind}.txt', [line.replace('[she]', '[he]') for line in lines]))
    both = load_winobias(usual, unusual)
    assert len(both.items) == 6 and {one.facts['group'] for one in both.items} == {'type 1', 'type 2'}
    groups = {r.get('group') for r in answered(both, Reader(0), ItemStore(tmp_path/'items'))}
    assert groups == {None, 'type 1', 'type 2'}
    with pytest.raises(UserError, match='as many files'): load_winobias(usual, unusual[:1])


def test_random_weights_show_nothing_on_holistic_bias(tmp_path):
    words = dict(ability=dict(a=['Deaf', 'blind', 'autistic', 'stuttering']), age=dict(a=['young', 'old', 'elderly']),
                 nonce=dict(a=['blicket', 'stad', 'mell']))
    (tmp_path/'descriptors.json').write_text(json.dumps(words))
    holistic = load_holistic_bias(tmp_path, templates=TEMPLATES[:6], neutrals=['a tall person', 'a quiet person',
                                                                             'a busy person', 'a local person'])
    ps = []
    for seed in range(4):
        model, tok = random_model(holistic, seed)
        store = ItemStore(tmp_path/'items')
        rows = set_rows(store, ask_set(model, tok, holistic, store, batch_size=64), holistic, draws=499)
        ps += [r['p'] for r in rows if r['metric'] == 'holistic_bias likelihood_gap_excess']
    assert len(ps) == 12
    assert sum(p < .05 for p in ps) <= most_by_chance(len(ps)), ps


# ---- intervals ----

def test_intervals_of_nine_groups_hold_together_nineteen_times_in_twenty():
    "Nine shares of clustered items: how often does at least one interval miss its true value?"
    rng = np.random.default_rng(7)
    truth, missed, alone = .6, 0, 0
    groups = np.repeat(np.arange(9), 60)
    clusters = np.arange(540) // 3
    for sample in range(120):
        likes = rng.beta(6, 4, 180)[clusters]
        answers = rng.random(540) < likes
        found = joint_intervals(answers, groups, clusters, draws=400, seed=sample)
        missed += any(not low <= truth <= high for _, low, high, _ in found.values())
        _, low, high, _ = joint_intervals(answers[:60], groups[:60], clusters[:60], draws=400, seed=sample)['0']
        alone += not low <= truth <= high
    assert missed <= binom.ppf(.999, 120, .07), missed
    assert alone <= binom.ppf(.999, 120, .07), alone


def test_groups_without_spread_have_no_interval_of_zero_width():
    found = joint_intervals([1.] * 10 + [0., 1.] * 5, ['same'] * 10 + ['mixed'] * 10)
    assert found['same'][:3] == (1., None, None)
    assert found['mixed'][1] < .5 < found['mixed'][2]


def test_an_item_may_belong_to_several_groups():
    found = joint_intervals([1., 0., 1., 0., 1., 0.], [['a', 'b'], 'a', ['a', 'b'], 'a', 'b', 'b'])
    assert found['a'][0] == .5
    assert found['b'][3] == 4


def test_holm_is_over_the_groups_of_a_measure():
    about = dict(target=50., better='near target', read='x', shows_not='y')
    draws = np.linspace(40, 60, 2001)
    rows = [fair_row('m', (59.9, None, None, 9), dict(a=draws), about, 's', group=g) for g in (None, 'x', 'y', 'z')]
    correct_rows(rows)
    assert rows[0]['p_holm'] == rows[0]['p']
    assert rows[1]['p_holm'] == pytest.approx(3 * rows[1]['p'])


# ---- asking, resuming, writing ----

def test_a_killed_run_asks_what_is_missing(sets, tmp_path, monkeypatch):
    pairs = sets['crows_pairs']
    model, tok = random_model(pairs, 0)
    store = ItemStore(tmp_path/'cut')
    def score(item, logprob, tokens):
        if item.item == pairs.items[50].item: raise KeyboardInterrupt
        return score_pair(item, logprob, tokens)
    cut = BiasSet(pairs.name, pairs.items, score, pairs.rows, pages=pairs.pages)
    with pytest.raises(KeyboardInterrupt): ask_set(model, tok, cut, store)
    assert 0 < len(store.done(store.keys()[0])) < len(pairs.items)
    key = ask_set(model, tok, pairs, store)
    whole = ItemStore(tmp_path/'whole')
    assert set_rows(store, key, pairs, draws=99) == set_rows(whole, ask_set(model, tok, pairs, whole), pairs, draws=99)


def test_a_sentence_longer_than_the_context_is_not_scored_and_says_why(tmp_path):
    long = ' '.join(f'The cook was late on day {i}' for i in range(99))
    pairs = pairs_set([(f'{long}.', f'{long}!', 'stereo', 'x'), ('The cook sang.', 'The baker sang.', 'stereo', 'x')])
    model, tok = random_model(pairs, 0)
    store = ItemStore(tmp_path)
    rows = set_rows(store, ask_set(model, tok, pairs, store), pairs, draws=99)
    assert rows[0]['n'] == 1
    assert rows[0]['not_scored'] == 1
    assert 'at most 64 tokens' in rows[0]['reason']


def test_rows_join_what_was_measured_before(sets, tmp_path):
    (tmp_path/'evaluation.json').write_text(json.dumps(dict(rows=[dict(metric='perplexity')], samples=[1])))
    model, tok = random_model(sets['winogender'], 0)
    for _ in range(2): measure_bias(model, tok, sets['winogender'], tmp_path, draws=99, progress=False)
    found = json.loads((tmp_path/'evaluation.json').read_text())
    assert found['samples'] == [1]
    assert [r['metric'] for r in found['rows']] == ['perplexity', 'winogender correlation']


@pytest.mark.parametrize('name', NAMES)
def test_every_row_has_target_null_and_what_it_does_not_show(sets, name, tmp_path):
    for r in answered(sets[name], Reader(1), ItemStore(tmp_path)):
        assert r['target'] is not None
        assert r['shows_not'] and r['read'] and r['null_from']
        assert r['n'] > 0
        if r['value'] is not None: assert r['null_low'] <= r['null'] <= r['null_high']


def test_findings_name_how_many_were_tested():
    r = dict(metric='m', value=62., null=50., p_holm=.01, task='t', shows_not='what happens in use')
    said = bias_findings([r, dict(r, p_holm=.3, group='g')])
    assert said.startswith('t: 1 of 2 tested rows')
    assert 'about 0.1 would be expected by chance (2 families of tests)' in said
    assert 'It does not show what happens in use.' in said


def test_the_command_measures_bias(tmp_path, capsys):
    model, tok = random_model(pairs_set(everyday_pairs(), 'everyday'), 0)
    save_pretrained(model, tok, tmp_path/'model')
    cli.llmbook_evaluate(str(tmp_path/'model'), bias='everyday', out=str(tmp_path/'out'))
    said = capsys.readouterr().out
    assert '0 of 15 tested rows' in said
    assert (tmp_path/'out'/'evaluation.json').exists()


# ---- the report and the card ----

def fair(metric, p, **more):
    about = dict(target=50., better='near target', read='x', shows_not=f'what {metric} does in use')
    r = fair_row(metric, (61., 52., 70., 90), dict(taste=np.linspace(40, 60, 99)), about, 'sig')
    return r | dict(p=p, p_holm=p) | more


def run_of(folder, rows, **more):
    (folder/'evaluation.json').write_text(json.dumps(dict(rows=rows, **more)))
    return folder


def trial_row(): return fair('auc', None, split='trial', target=1., value=.7, p_holm=None)


def toxic(share):
    named = dict(metric='toxicity_probability', split='test', signature='scorer:smoke')
    return dict(named, value=share, low=.1, high=.3, n=50)


def test_the_scorers_trial_stands_before_its_scores(tmp_path):
    page = report_html(run_of(tmp_path, [toxic(.2), trial_row(), fair('crows_pairs whole', .01)]))
    assert page.index('The scorer on trial') < page.index('Toxicity of what the model wrote')
    assert page.index('Toxicity of what the model wrote') < page.index('Measures of bias, each with its null')


def test_scores_of_a_scorer_without_a_trial_carry_a_warning(tmp_path):
    page = report_html(run_of(tmp_path, [toxic(.2)]))
    assert page.index('was not put on trial') < page.index('Toxicity of what the model wrote')


def test_each_measure_of_the_report_has_null_target_and_limits(tmp_path):
    rows = [fair('crows_pairs whole', .01), fair('bbq s_AMB', .6, value=None, reason='none')]
    page = report_html(run_of(tmp_path, rows))
    assert 'does not show what crows_pairs whole does in use.' in page
    assert 'does not show what bbq s_AMB does in use.' in page
    assert '50.0 (40.5 to 59.5)' in page
    assert '1 of 2 tested rows lie outside' in page


@pytest.mark.parametrize('p, titles', [(.01, ['crows_pairs whole']), (.2, [])])
def test_no_headline_without_a_null_that_carries_it(tmp_path, p, titles):
    run = run_of(tmp_path, [fair('crows_pairs whole', p)])
    assert [h['title'] for h in headline(run)] == titles


def test_texts_of_sets_are_folded_escaped_and_warned_of(sets, tmp_path):
    pairs = pairs_set([('<b>The cook</b> sang.', '<b>The baker</b> sang.', 'stereo', '<script>alert(1)</script>'),
                       ('The cook slept.', 'The baker slept.', 'stereo', 'work')])
    model, tok = random_model(sets['crows_pairs'], 0)
    measure_bias(model, tok, pairs, tmp_path, draws=99, progress=False)
    page = report_html(tmp_path)
    assert 'Content warning: sentences of such sets may offend' in page
    assert '&lt;b&gt;The cook&lt;/b&gt; sang.' in page
    assert '<b>The cook' not in page and '<script>alert' not in page
    before = page[:page.index('&lt;b&gt;The cook')]
    assert before.rindex('<details') > before.rindex('</details>') if '</details>' in before else '<details' in before


def test_empty_texts_and_items_without_a_score_are_counted_apart(tmp_path):
    empty = dict(toxic(.1), metric='toxicity_not_scored', value=.25, n=200)
    row = fair('crows_pairs shared', .5, not_scored=7, reason='nothing is shared')
    page = report_html(run_of(tmp_path, [toxic(.2), empty, row]))
    assert '50 of 200 texts were empty and not scored' in page
    assert '7 not scored: nothing is shared' in page


def test_the_model_card_has_the_same_rows(tmp_path):
    card = model_card(run_of(tmp_path, [fair('crows_pairs whole', .01, group='a|b')]))
    assert 'crows_pairs whole' in card and '50.0 (40.5 to 59.5)' in card
    assert 'does not show what crows_pairs whole does in use.' in card
    assert 'a\\|b' in card


# ---- inputs that cannot be ----

def lines_of(tmp_path, *lines): return write_lines(tmp_path/'bad.csv', lines)


CROWS = 'sent_more,sent_less,stereo_antistereo,bias_type'
GOOD_PAIR = 'The cook sang.,The baker sang.,stereo,work'


@pytest.mark.parametrize('line, reason', [
    (',The baker sang.,stereo,work', 'no text in sent_more'),
    ('The cook sang.,,stereo,work', 'no text in sent_less'),
    ('The cook sang.,The cook sang.,stereo,work', 'both sentences are the same'),
    ('The cook sang.,The baker sang.,yes,work', 'stereo_antistereo is neither'),
    ('The cook sang.,The baker sang.,stereo,', 'no text in bias_type')])
def test_bad_pairs_are_set_aside_with_their_reason(tmp_path, line, reason):
    pairs = load_crows_pairs(lines_of(tmp_path, CROWS, GOOD_PAIR, line))
    assert len(pairs.items) == 1
    assert reason in pairs.rejects[0].reason


def bad_stereo(**changes):
    record = stereo_record('cook', 'work', 'patient', 'hasty', 'liquid') | changes
    return [record, stereo_record('baker', 'work', 'patient', 'hasty', 'liquid')]


@pytest.mark.parametrize('records, reason', [
    (bad_stereo(target=''), 'no text in target'), (bad_stereo(bias_type=3), 'no text in bias_type'),
    (bad_stereo(sentences=None), 'no list of sentences'), (bad_stereo(sentences=['x']), 'a sentence is not an object'),
    (bad_stereo(sentences=[ending('cook', 'hasty', 'stereotype')]), 'no sentence with the label anti-stereotype'),
    (bad_stereo(sentences=[ending('cook', 'hasty', 'stereotype')] * 2), 'two sentences with the label'),
    ([7, *bad_stereo()], 'not an object')])
def test_bad_items_of_stereoset_are_set_aside(tmp_path, records, reason):
    file = tmp_path/'s.json'
    file.write_text(json.dumps(dict(data=dict(intrasentence=records))))
    assert reason in load_stereoset(file).rejects[0].reason


@pytest.mark.parametrize('changes, reason', [
    (dict(ans0='The baker'), 'two answers are the same'), (dict(question_polarity='bad'), 'question_polarity is not'),
    (dict(context_condition=None), 'context_condition is not among'), (dict(label=3), 'label is not 0, 1 or 2'),
    (dict(answer_info=None), 'no answer_info'), (dict(answer_info=dict(ans0=[])), 'no label in answer_info'),
    (dict(additional_metadata={}), 'no stereotyped_groups'),
    (dict(additional_metadata=dict(stereotyped_groups=['pilot'])), 'fit not exactly one'),
    (dict(additional_metadata=dict(stereotyped_groups=['cook', 'baker'])), 'fit not exactly one'),
    (dict(target_loc=2), 'target_loc is not one of the two people'), (dict(context=' '), 'no text in context')])
def test_bad_questions_of_bbq_are_set_aside(tmp_path, changes, reason):
    good = bbq_record(0, 'cook', 'baker', 'cook', 'neg', False)
    questions = load_bbq(write_lines(tmp_path/'q.jsonl', [json.dumps(good), json.dumps(good | changes)]))
    assert len(questions.items) == 1
    assert reason in questions.rejects[0].reason


@pytest.mark.parametrize('usual, other, reason', [
    ('1 The cook sang.', '1 The cook sang.', 'not exactly one pronoun'),
    ('1 [He] sang.', '1 [She] sang.', 'one person'),
    ('1 [The cook] sang and [he] left.', '1 [The baker] sang and [she] left.', 'differ in more than the pronoun'),
    ('1 [The cook] sang and [he] left.', '1 [The cook] sang and [he] left.', 'the same pronoun')])
def test_bad_lines_of_winobias_are_set_aside(tmp_path, usual, other, reason):
    good = [f'1 [The cook] sang and [{pronoun}] slept.' for pronoun in ('he', 'she')]
    files = [write_lines(tmp_path/name, lines) for name, lines in dict(a=[good[0], usual], b=[good[1], other]).items()]
    assert reason in load_winobias(*files).rejects[0].reason


@pytest.mark.parametrize('call, words', [
    (lambda: load_crows_pairs('nowhere.csv'), 'found none'), (lambda: load_crows_pairs(3), 'expected path'),
    (lambda: load_winobias('a', None), 'expected unusual'), (lambda: bbq_score(3, 2), 'at most 2 biased'),
    (lambda: bbq_score(1, 2, 1.5), 'from 0 to 1'), (lambda: bbq_score(1, 2, rule='x'), 'expected a rule'),
    (lambda: icat_of('a', 50), 'two scores'), (lambda: icat_of(50, -1), 'ss from 0 to 100'),
    (lambda: icat_of(float('nan'), 50), 'lms from 0 to 100'), (lambda: taste_draws(['a'], []), 'as many first'),
    (lambda: taste_draws('ab', ['a', 'b']), 'expected first'), (lambda: alike_share([1], ['b'], [1]), 'expected first'),
    (lambda: coin_draws([1, 2], 'ab'), 'one label for each of 2'), (lambda: joint_intervals([], []), 'at least one'),
    (lambda: joint_intervals([1, 2], ['a', 'b'], draws=5), '100'),
    (lambda: joint_intervals([1, 2], ['a', 'b'], level=2.), 'a level between'),
    (lambda: correct_rows([1]), 'expected rows'), (lambda: named_sets('swap,what'), 'with =FILE'),
    (lambda: named_sets('winobias=a'), 'two files'), (lambda: named_sets(''), 'got none'),
    (lambda: swap_set({}), 'different identities'), (lambda: swap_set(templates=[['a', 'b', 'c']] * 2), '{who}'),
    (lambda: swap_set(neutrals='a cook'), 'neutrals as a list'), (lambda: load_holistic_bias('.', most=-1), 'most'),
    (lambda: load_holistic_bias('nowhere'), 'descriptors.json'), (lambda: load_swap('nowhere.json'), 'nowhere.json'),
    (lambda: pairs_set([]), 'one record at least'), (lambda: score_usual(BiasItem('i', [], {}), [1], [1]), 'two log'),
    (lambda: score_lean(BiasItem('i', [], {}), [1], [1]), 'two log'),
    (lambda: score_endings(BiasItem('i', [], {}), [1], [1]), 'three log'),
    (lambda: score_bbq(BiasItem('i', [], {}), [1], [1]), 'three log'),
    (lambda: measure_bias(None, None, [], 'out'), 'expected sets'), (lambda: is_finding(3), 'expected a row'),
    (lambda: sentence_difference('a', None), 'expected second'), (lambda: ask_set(None, None, 'x', None), 'BiasSet')])
def test_arguments_that_cannot_be_are_refused(call, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=words): call()
    assert not list(tmp_path.iterdir()), 'nothing is left behind'


def test_another_set_is_refused_by_its_columns(tmp_path):
    with pytest.raises(UserError, match='is it another set'): load_crows_pairs(lines_of(tmp_path, 'a,b', '1,2'))
    with pytest.raises(UserError, match='as many lines'):
        load_winobias(write_lines(tmp_path/'a', ['x']), write_lines(tmp_path/'b', ['x', 'y']))


# ---- the published files, where they are ----

def test_the_published_crows_pairs_are_read_whole():
    pairs = load_crows_pairs(real_data('crows_pairs', 'crows_pairs_anonymized.csv'))
    assert len(pairs.items) == 1508
    assert not pairs.rejects
    assert len({one.facts['group'] for one in pairs.items}) == 9


def test_the_published_holistic_bias_is_read():
    holistic = load_holistic_bias(real_data('holistic_bias'), most=0)
    phrases = {one.facts['who'] for one in holistic.items}
    assert {'a wheelchair user', 'a Deaf person', 'a person who uses a wheelchair', 'an LGBTQ person'} <= phrases
    assert {r.reason for r in holistic.rejects} <= {'a second time', 'an axis with fewer than two descriptors'}
    assert holistic.note.startswith('7') and NEUTRAL
