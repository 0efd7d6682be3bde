"Measures of bias: reference values, nulls that hold, complaints about other tools, files with faults."
import csv, json, math
from pathlib import Path
import numpy as np
import pytest
import torch
from real_data import DATA
from llmbook.core import UserError
from llmbook.evaluate.items import ItemStore
from llmbook.fairness.ask import BiasItem, ask_set, set_rows
from llmbook.fairness.bbq import bbq_score, load_bbq, score_answers
from llmbook.fairness.crows_pairs import load_crows_pairs, score_pair, sentence_difference
from llmbook.fairness.nulls import (
    alike_share, coin_draws, correct_rows, fair_row, joint_intervals, p_from_draws, ratio_of_sums, taste_draws
)
from llmbook.fairness.pronouns import load_winobias, load_winogender, score_lean, score_usual
from llmbook.fairness.stereoset import icat_of, load_stereoset, score_endings
from llmbook.model.config import ModelConfig
from llmbook.model.transformer import Transformer
from llmbook.tokens.tokenizer import train_tokenizer
from scipy.stats import binom

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

class Reader:
    "Gives log-likelihoods from tastes for words, from noise for whole texts, and from what is planted."
    def __init__(self, seed, planted=None, taste=1., noise=1.):
        self.seed, self.planted, self.taste, self.noise = seed, planted, taste, noise
        self.words = {}

    def word(self, word):
        if word not in self.words:
            rng = np.random.default_rng([self.seed, *word.encode()])
            self.words[word] = rng.normal()
        return self.words[word]

    def __call__(self, context, text):
        rng = np.random.default_rng([self.seed, *(context + text).encode()])
        words = text.lower().replace('.', '').split()
        value = self.taste * sum(map(self.word, words)) + self.noise * rng.normal()
        if self.planted: value += self.planted(context, text)
        return value - 5. * len(words), len(words)


def answered(bias_set, reader, store):
    "Store what a reader answers, and return the rows."
    from llmbook.evaluate.items import ItemScore, Setting
    key = store.begin(Setting(bias_set.name, f'reader {reader.seed} {bool(reader.planted)}', 'words'))
    answers = []
    for one in bias_set.items:
        found = [reader(*pair) for pair in one.pairs]
        logprob, tokens = (np.array(column, float) for column in zip(*found))
        scores, details = bias_set.score(one, logprob, tokens)
        answers.append(ItemScore(one.item, scores, cluster=str(one.facts.get('cluster', '')),
                                 details=one.facts | details))
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
    class Fixed:
        seed, planted = 0, None
    reader = Fixed()
    items = {one.pairs[0][0]: picked[one.item] for one in questions.items}
    answers = {one.pairs[0][0]: [text for _, text in one.pairs] for one in questions.items}
    def read(context, text): return (-1. if answers[context].index(text) == items[context] else -9.), 1
    Fixed.__call__ = lambda self, context, text: read(context, text)
    return answered(questions, reader, ItemStore(folder/'items'))


def test_stereoset_is_averaged_over_terms(tmp_path):
    "One term with nine stereotypes of nine, another with none of one: 50 over terms, 90 over items."
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
    "The store's numbers are what the model gives for each sentence on its own."
    from llmbook.evaluate.likelihood import log_likelihoods
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
    for seed in range(10):
        model, tok = random_model(sets[name], seed)
        key = ask_set(model, tok, sets[name], store, batch_size=64)
        rows = set_rows(store, key, sets[name], seed=seed, draws=499)
        ps += [r['p'] for r in rows if 'group' not in r and r.get('p') is not None]
    assert sum(p < .05 for p in ps) <= most_by_chance(len(ps)), ps


@pytest.mark.parametrize('name', NAMES)
def test_readers_with_a_taste_for_words_are_no_finding(sets, name, tmp_path):
    ps = []
    store = ItemStore(tmp_path)
    for seed in range(20):
        rows = answered(sets[name], Reader(seed), store)
        ps += [r['p'] for r in rows if 'group' not in r and r.get('p') is not None]
    assert sum(p < .05 for p in ps) <= most_by_chance(len(ps)), ps
    assert np.mean(ps) < .8, 'p-values of a null spread over 0 to 1'
