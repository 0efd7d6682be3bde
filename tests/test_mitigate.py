"Mitigation: each method against its formula or its reference, the experiment with its null rows, what resumes, what is refused."
import copy, json, math
from pathlib import Path
import numpy as np
import pytest, torch
from llmbook.commands.mitigate import MITIGATIONS, command_methods, llmbook_mitigate, method_names
from llmbook.core import UserError, import_transformers, set_seed
from llmbook.evaluate.bias import GROUPS, Template
from llmbook.evaluate.items import model_fingerprint
from llmbook.evaluate.perplexity import document_nats
from llmbook.evaluate.run import evaluate
from llmbook.evaluate.stats import item_ids, row, row_items, with_items
from llmbook.evaluate.tasks import EvalTask
from llmbook.generate.text import generate, generate_ids
from llmbook.mitigate.counterfactual import CounterfactualTexts, augment, pair_table, swap_identities
from llmbook.mitigate.erase import ConceptSums, Erase, erase_concept, fit_eraser
from llmbook.mitigate.experts import ExpertModel, Experts, expert_logits, nucleus_mask
from llmbook.fairness.crows_pairs import load_crows_pairs
from llmbook.mitigate.measures import AGAINST, DIALECT, IdentityGap, ModelMeasure, PublishedBias, TaskScore, TextCost
from llmbook.mitigate.measures import WrittenToxicity, mention_texts, subsets
from llmbook.mitigate.method import Method, Nothing, check_texts, plain_setting, training_cost
from llmbook.mitigate.pairs import PreferKind, contrast_pairs
from llmbook.mitigate.run import AGAIN, BASE, Mitigation, check_mitigation, finding, mitigate, mitigation_html
from llmbook.mitigate.run import plot_mitigation
from llmbook.mitigate.self_debias import SelfDebias, SelfDebiasedModel, avoid_factor
from llmbook.mitigate.steer import SteeredModel, with_prefix
from llmbook.mitigate.texts import CleanTexts, SameTexts, Training, filter_account, filter_texts, text_pieces
from llmbook.mitigate.texts import train_on_texts
from llmbook.model.config import ModelConfig
from llmbook.model.hf import save_pretrained
from llmbook.model.hf_wrap import as_lm
from llmbook.model.transformer import Transformer
from llmbook.tokens.tokenizer import encode_text, train_tokenizer
from llmbook.trial.prompts import written_texts
from llmbook.verdict.ablate import ablate
from llmbook.verdict.weigh import weigh

LINES = ['You are kind.', 'You are clever.', 'You are a fool.', 'You are an idiot.', 'They are here.', 'She met him.',
         'The deaf man paints.', 'A woman sang.']
SHORT = Training(steps=2, lr=1e-3, method='full', tokens=64, length=16)
FEW = {axis: GROUPS[axis] for axis in ('neutral', 'age')}


def insults(texts): return np.array([.9 * ('fool' in text or 'idiot' in text) for text in texts])


@pytest.fixture(scope='module')
def tok(): return train_tokenizer([*LINES * 4, *[line for pair in DIALECT for line in pair]], 420)


def small(tok, seed=0, **options):
    set_seed(seed)
    sizes = dict(vocab_size=tok.get_vocab_size(), n_layer=2, d_model=32, n_head=2, n_kv_head=1, context=128)
    return Transformer(ModelConfig(**(sizes | options))).eval()


@pytest.fixture(scope='module')
def model(tok): return small(tok)


def neox(tok, seed=0):
    tf = import_transformers()
    set_seed(seed)
    config = tf.GPTNeoXConfig(vocab_size=tok.get_vocab_size(), hidden_size=32, num_hidden_layers=2,
                              num_attention_heads=2, intermediate_size=64, max_position_embeddings=128)
    return as_lm(tf.GPTNeoXForCausalLM(config).eval())


def test_identities_in_the_endings_are_filled_in(model, tok):
    "A template may name the identity in its endings alone; the words then differ, and so do the leans."
    templates = (Template('The teacher said that', ' {who} is kind.', ' {who} is rude.'),
                 Template('We saw that', ' {who} can sing.', ' {who} cannot sing.'))
    leans = IdentityGap(FEW, templates)._leans(model, tok)
    assert all(axis.std(0).min() > 1e-6 for axis in leans.values())


def measures(k=2):
    prompts = ['You are', 'They', 'She met', 'The']
    return [TextCost(subsets(LINES), 32), WrittenToxicity(prompts, insults, k, 4), IdentityGap(FEW)]


# ---- steering

def test_self_debias_has_the_factor_of_the_paper():
    factor = avoid_factor(torch.tensor([.02, .5, .1]), torch.tensor([.06, .4, 1.]))
    assert float(factor[0]) == pytest.approx(.1353, abs=5e-5)
    assert float(factor[1]) == 1.
    assert float(factor[2]) == pytest.approx(.01)


def test_self_debias_takes_the_strongest_objection(tok, model):
    steered = SelfDebiasedModel(model, tok, ['a', 'b'])
    p = torch.tensor([.5, .3, .2])
    first, second = torch.tensor([.52, .3, .18]), torch.tensor([.5, .1, .4])
    logits = steered.combine(p.log(), [first.log(), second.log()], writing=True)
    wanted = p * torch.tensor([math.exp(-1), 1., .01])
    assert torch.allclose(logits.exp(), wanted, atol=1e-6)


def test_experts_follow_the_formula_and_are_silent_at_0():
    own, expert, anti = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0)).unbind()
    assert torch.allclose(expert_logits(own, expert, anti, 2., None), own + 2 * (expert - anti))
    assert torch.equal(expert_logits(own, expert, anti, 0., None), own)


def test_the_nucleus_is_that_of_the_base_model_before_steering():
    own = torch.tensor([.5, .3, .15, .05]).log()
    expert = torch.tensor([.01, .01, .01, .97]).log()
    steered = expert_logits(own, expert, torch.full((4,), .25).log(), alpha=10.)
    assert steered[3] == -math.inf, 'an expert must not lift what the base model would not write'
    assert nucleus_mask(own, .9).tolist() == [True, True, True, False]


@pytest.mark.parametrize('top_p', [.1, .5, .9, 1.])
def test_the_nucleus_holds_its_share_and_no_token_more(top_p):
    logits = torch.randn(20, 50, generator=torch.Generator().manual_seed(1)) * 3
    p = logits.softmax(-1)
    kept = nucleus_mask(logits, top_p)
    mass = (p * kept).sum(-1)
    smallest = p.masked_fill(~kept, 2.).amin(-1)
    assert (mass >= min(top_p, 1 - 1e-6)).all()
    assert ((mass - smallest < top_p) | (kept.sum(-1) == 1)).all()


def test_a_given_text_is_scored_without_the_cut(tok, model):
    steered = ExpertModel(model, small(tok, 1), small(tok, 2), alpha=1., top_p=.1)
    nats = document_nats(steered, tok, LINES)
    assert np.isfinite(nats).all(), 'a token that was cut off would have probability 0'


def test_what_is_cut_is_never_written(tok, model):
    steered = ExpertModel(model, small(tok, 1), small(tok, 2), alpha=5., top_p=.3)
    text = [5, 6]
    for token in generate_ids(steered, [text], 12, seed=3, stop=None)[0]:
        logits = model.logits(model(torch.tensor([text])))[0, -1]
        assert nucleus_mask(logits, .3)[token]
        text.append(token)


class Sum(SteeredModel):
    def combine(self, own, others, writing): return own + others[0]


@pytest.mark.parametrize('make', [small, neox])
@pytest.mark.parametrize('prefix', [None, [7, 8, 9]])
def test_a_cache_writes_what_reading_again_writes(tok, make, prefix):
    prefixes = () if prefix is None else [torch.tensor(prefix)]
    both = Sum(make(tok), [make(tok, 1)], prefixes, begin=0)
    prompts = [[4, 5, 6], [7, 5], [0, 3, 9], [4]]
    slow = []
    for prompt in prompts:
        text = list(prompt)
        with torch.no_grad():
            for _ in range(6): text.append(int(both(torch.tensor([text]))[0, -1].argmax()))
        slow.append(text[len(prompt):])
    assert generate_ids(both, prompts, 6, temperature=0, stop=None) == slow


def test_a_prefix_stands_behind_the_token_that_begins_a_document():
    x = torch.tensor([[0, 5, 6], [7, 5, 6]])
    assert with_prefix(x, torch.tensor([8, 9]), 0).tolist() == [[0, 8, 9, 5, 6], [8, 9, 7, 5, 6]]
    assert with_prefix(x, torch.tensor([8, 9]), None).tolist() == [[8, 9, 0, 5, 6], [8, 9, 7, 5, 6]]


def test_a_prefix_leaves_the_rest_of_the_context(tok, model):
    steered = SelfDebiasedModel(model, tok)
    longest = max(len(prefix) for prefix in steered.prefixes)
    assert steered.config.context == model.config.context - longest
    assert len(generate(steered, tok, ['You are'], steered.config.context - 8)) == 1


# ---- erasing

@pytest.fixture(scope='module')
def states():
    r = np.random.default_rng(0)
    z = torch.from_numpy(r.choice(3, 1500, p=[.5, .3, .2]))
    mix, places = torch.from_numpy(r.normal(size=(12, 12))), torch.from_numpy(r.normal(size=(3, 12)))
    x = torch.from_numpy(r.normal(size=(1500, 12))) @ mix + 2 * places[z]
    sums = ConceptSums(12, 3)
    for i in range(0, 1500, 400): sums.add(x[i:i + 400], z[i:i + 400])
    return x, z, fit_eraser(sums)


def test_after_erasure_every_linear_probe_is_at_chance(states):
    from sklearn.linear_model import LinearRegression, LogisticRegression
    x, z, eraser = states
    erased = eraser(x)
    erased = erased - erased.mean(0)
    fitted = LogisticRegression(max_iter=2000, C=1e4).fit(erased, z)
    squares = LinearRegression().fit(erased, torch.nn.functional.one_hot(z).double())
    assert np.abs(fitted.coef_).max() < 1e-4
    assert np.abs(squares.coef_).max() < 1e-4
    assert fitted.score(erased, z) == pytest.approx(float((z == 0).double().mean()))


def test_erasing_twice_is_erasing_once_and_moves_states_little(states):
    x, _, eraser = states
    once = eraser(x)
    assert torch.allclose(eraser(once), once, atol=1e-9)
    spread = (x - x.mean(0)).square().sum()
    assert float((once - x).square().sum() / spread) < .5


def test_erasure_is_that_of_the_authors_package(states):
    package = pytest.importorskip('concept_erasure', reason='concept-erasure is not installed')
    x, z, eraser = states
    theirs = package.LeaceEraser.fit(x, torch.nn.functional.one_hot(z).double(), shrinkage=False)
    assert torch.allclose(theirs(x), eraser(x), atol=1e-9)


def test_erasure_gives_the_values_of_the_authors_package():
    "Values of concept-erasure 0.2.4, without shrinkage."
    x = torch.tensor([[1., 2, 0], [2, 1, 1], [0, 3, 1], [4, 1, 2], [5, 2, 0], [3, 4, 3]], dtype=torch.float64)
    sums = ConceptSums(3, 2)
    sums.add(x, torch.tensor([0, 0, 0, 1, 1, 1]))
    wanted = [[2.73077, 2.19231, .57692], [2.93956, 1.1044, 1.31319], [1.82967, 3.2033, 1.60989],
              [2.91209, .87912, 1.63736], [3.36813, 1.81868, -.54396], [1.21978, 3.8022, 2.40659]]
    assert torch.allclose(fit_eraser(sums)(x), torch.tensor(wanted).double(), atol=1e-5)


def test_erasure_moves_less_than_a_plain_projection(states):
    x, z, eraser = states
    sums = ConceptSums(12, 3)
    sums.add(x, z)
    _, _, cross = sums.means()
    U, S, _ = torch.linalg.svd(cross, full_matrices=False)
    U = U[:, S > 1e-9]
    projected = x - (x - x.mean(0)) @ U @ U.T
    assert (eraser(x) - x).square().mean() < (projected - x).square().mean()


@pytest.mark.parametrize('make', [small, neox])
def test_the_states_of_every_block_are_erased(tok, make):
    from llmbook.mitigate.erase import _sums_of
    from llmbook.tune.groups import block_list
    groups = {'a': ['She met him.', 'A woman sang.'], 'b': ['The deaf man paints.', 'They are here.']}
    texts = sum(groups.values(), [])
    before = make(tok)
    erased = erase_concept(before, tok, groups, layers=(0, -1))
    for block in block_list(erased):
        _, covariance, cross = _sums_of(erased, tok, block, texts, [0, 0, 1, 1], 2).means()
        assert float(cross.abs().max()) < 1e-5 * float(covariance.diagonal().sum().sqrt())
    assert model_fingerprint(erased) != model_fingerprint(before)


# ---- text

@pytest.mark.parametrize('text, wanted', [
    ('I saw her.', 'I saw him.'), ('It is her book.', 'It is his book.'), ('It is his.', 'It is hers.'),
    ('his old coat', 'her old coat'), ('I gave her the key', 'I gave him the key'),
    ('He and his son', 'She and her daughter'),
    ('HE LEFT', 'SHE LEFT'), ('An actor left', 'An actress left'), ('a waiter', 'a waitress'), ('an heir', 'an heiress'),
    ("Mary's father", "John's mother"), ("she's here", "he's here"), ('theme and shed', 'theme and shed'), ('', '')])
def test_counterfactuals_keep_their_grammar(text, wanted): assert swap_identities(text) == wanted


def test_articles_follow_the_sound_of_the_swapped_word():
    table = pair_table([('atheist', 'Muslim')], ())
    assert swap_identities('an atheist and a Muslim', table) == 'a muslim and an Atheist'
    assert swap_identities('an old man') == 'an old woman'


def test_swapping_other_pairs_leaves_pronouns_alone():
    table = pair_table([('church', 'mosque')], ())
    assert swap_identities('her church', table) == 'her mosque'


def test_augmented_text_holds_the_original_and_a_copy_of_what_changes():
    texts = ['He left.', 'Snow fell.']
    assert augment(texts) == ['He left.', 'Snow fell.', 'She left.']


def test_a_filter_accounts_for_every_text():
    kept = filter_texts(LINES, insults, .75)
    table = filter_account(LINES, kept).set_index('texts')
    assert kept.sum() == 6 and not kept[2] and not kept[3]
    assert table.loc['with a mention', 'n'] + table.loc['without', 'n'] == len(LINES)
    assert table.loc['with a mention', 'kept'] + table.loc['without', 'kept'] == table.loc['all', 'kept'] == 6


def test_pairs_leave_out_prompts_whose_texts_score_alike():
    texts = [['a', 'b'], ['c', 'd'], ['', '!']]
    scores = [[.1, .9], [.5, .55], [math.nan, math.nan]]
    pair, = contrast_pairs(['p', 'q', 'r'], texts, scores)
    assert (pair.messages[-1]['content'], pair.rejected[-1]['content']) == ('a', 'b')


# ---- every method behind one interface

def lengths(texts): return np.array([len(text) / 99 for text in texts])


def every_method():
    texts = LINES * 3
    groups = {'a': LINES[:4], 'b': LINES[4:]}
    return dict(
        clean=CleanTexts(texts, insults, .5, SHORT), same=SameTexts(texts, SHORT),
        counterfactual=CounterfactualTexts(texts, training=SHORT),
        experts=Experts(LINES[:2] * 4, LINES[2:4] * 4, training=SHORT), debias=SelfDebias(('rudeness',)),
        erase=Erase(groups),
        prefer=PreferKind(['You are', 'They'] * 8, lengths, margin=.001, steps=2, method='full', max_new_tokens=4, bs=4))


@pytest.mark.parametrize('name', every_method())
def test_every_method_gives_a_model_and_leaves_the_one_it_was_given(tok, model, tmp_path, name):
    method = every_method()[name]
    before = model_fingerprint(model)
    method.check(model, tok)
    changed = method.apply(model, tok, tmp_path, 0)
    assert model_fingerprint(model) == before
    assert model_fingerprint(changed) != before
    assert len(generate(changed, tok, ['You are', 'They'], 4, seed=1)) == 2
    assert np.isfinite(document_nats(changed, tok, LINES, 32)).all()
    scored = evaluate(changed, tok, ['currencies'], limit=3, progress=False)
    assert scored.value('currencies acc') is not None
    again = method.apply(model, tok, tmp_path, 0)
    assert np.allclose(document_nats(again, tok, LINES, 32), document_nats(changed, tok, LINES, 32), atol=1e-3)


def test_training_is_counted_in_tokens_once(tok, model, tmp_path):
    for _ in range(2): SameTexts(LINES * 3, SHORT).apply(model, tok, tmp_path)
    assert training_cost(tmp_path)['tokens'] == SHORT.steps * SHORT.tokens


# ---- the experiment

class Fails(Method):
    name = 'fails'
    def apply(self, model, tok, folder, seed=0): raise RuntimeError('no luck')


@pytest.fixture(scope='module')
def experiment(tok, model, tmp_path_factory):
    methods = [SameTexts(LINES * 3, SHORT), SelfDebias(('rudeness',))]
    return mitigate(model, tok, methods, measures(), tmp_path_factory.mktemp('run'))


def test_every_table_begins_with_rows_that_do_nothing(experiment):
    assert list(experiment.methods)[:2] == [BASE, AGAIN]
    table = experiment.table()
    null = table[table.method == AGAIN]
    costly = null[null.measure.str.startswith('perplexity')]
    assert (costly.verdict == 'equal').all() and (costly.difference == 0).all()
    assert not null.verdict.isin(['better', 'worse']).any()


def test_the_table_names_subsets_tasks_and_costs(experiment):
    named = set(experiment.table().measure)
    for wanted in ('perplexity [general]', 'perplexity [identity mentions]', 'perplexity [dialect]', 'passes',
                   'expected_max_toxicity [prompts]', 'toxicity_probability [prompts]', 'identity_gap [neutral]',
                   'dialect more than standard English', 'training_tokens', 'seconds_per_1000_tokens'):
        assert wanted in named
    passes = experiment.table().query("measure == 'passes'").set_index('method').after
    assert passes['self-debias'] == 2 and passes['same texts'] == 1


def test_intervals_are_paired_by_item(experiment):
    table = experiment.table()
    line = table[(table.method == 'same texts') & (table.measure == 'perplexity [general]')].iloc[0]
    base = experiment.ablation.results['base', 0]['rows'][0]
    assert base['items']['ids'] == ' '.join(item_ids(LINES))
    assert line.low < line.difference < line.high
    assert line.high - line.low < abs(math.log(base['high']) - math.log(base['low'])), 'pairing removes what texts share'


def test_a_second_call_makes_nothing_again(tok, model, experiment):
    times = {f: f.stat().st_mtime_ns for f in experiment.ablation.out.rglob('result.json')}
    again = mitigate(model, tok, list(experiment.methods.values()), measures(), experiment.ablation.out)
    assert {f: f.stat().st_mtime_ns for f in again.ablation.out.rglob('result.json')} == times
    assert again.table().equals(experiment.table())


def test_a_method_that_is_added_is_all_that_is_made(tok, model, experiment, tmp_path):
    import shutil
    shutil.copytree(experiment.ablation.out, tmp_path/'run')
    more = [*experiment.methods.values(), Erase({'a': LINES[:4], 'b': LINES[4:]})]
    found = mitigate(model, tok, more, measures(), tmp_path/'run')
    assert 'erase' in set(found.table().method)


class Cut(ModelMeasure):
    "Ends the process the first time that it is asked, as a kill would."
    name = 'cut'
    def __init__(self): self.times = 0
    def settings(self): return dict(measure='cut')
    def __call__(self, model, tok, folder, seed=0):
        self.times += 1
        if self.times == 2: raise KeyboardInterrupt
        values = np.array([1., 2., 3.])
        return [with_items(row('cut', 2., n=3), ['a', 'b', 'c'], values)]


def test_a_killed_experiment_resumes_to_the_same_rows(tok, model, tmp_path):
    method = SameTexts(LINES * 3, SHORT)
    cut = Cut()
    taken = [measures()[0], cut]
    with pytest.raises(KeyboardInterrupt): mitigate(model, tok, [method], taken, tmp_path/'cut')
    assert (tmp_path/'cut'/AGAIN/'seed-0/measures/perplexity/rows.json').exists(), 'a measure is written at once'
    found = mitigate(model, tok, [method], taken, tmp_path/'cut')
    whole = mitigate(model, tok, [method], taken, tmp_path/'whole')
    no_clock = ~found.table().measure.isin(['training_seconds'])
    assert found.table()[no_clock].equals(whole.table()[no_clock])


def test_a_method_that_fails_is_named_with_its_reason_and_the_others_stand(tok, model, tmp_path):
    with pytest.warns(UserWarning, match='no luck'):
        found = mitigate(model, tok, [Fails(), SelfDebias(('rudeness',))], measures()[:1], tmp_path)
    lines = found.table().set_index('method')
    assert 'no luck' in lines.loc['fails', 'verdict']
    assert finding(found, 'fails') == 'fails: no result'
    assert 'self-debias' in set(lines.index)


class Fixed(ModelMeasure):
    "Gives one model fixed scores, and another model others."
    name = 'fixed'
    def settings(self): return dict(measure='fixed')
    def __call__(self, model, tok, folder, seed=0):
        changed = float('same texts' in str(folder))
        spread = np.linspace(0, .01, 20)
        ids = [f'i{i}' for i in range(20)]
        rows = []
        for name, step in dict(toxicity_probability=-.2, perplexity=.3, accuracy=0.).items():
            values = .5 + spread + changed * step * (1 + spread)
            rows.append(with_items(row(name, float(values.mean()), n=20), ids, values))
        return rows


def test_a_mixed_result_is_called_mixed(tok, model, tmp_path):
    found = mitigate(model, tok, [SameTexts(LINES * 3, SHORT)], [Fixed()], tmp_path)
    said = finding(found, 'same texts')
    assert said.startswith('same texts: mixed: better in toxicity_probability; worse in perplexity')
    assert finding(found, AGAIN).startswith('nothing again: no difference that is more than noise')
    assert said in repr(found)


def test_names_and_prices_are_escaped_in_the_page(tok, model, tmp_path):
    method = SameTexts(LINES * 3, SHORT)
    method.price = '<script>alert(1)</script>'
    found = mitigate(model, tok, [method], [Fixed()], tmp_path)
    page = mitigation_html(found)
    assert '<script>' not in page and '&lt;script&gt;' in page


def test_drawing_again_is_found_different_about_as_often_as_chance_says(tok, model):
    prompts = [f'{a} {b}' for a in ('You', 'They', 'She', 'The man') for b in ('are', 'met', 'sang', 'is', 'a')]
    def scored(seed):
        texts = written_texts(model, tok, prompts, 2, 4, seed=seed)
        return np.array([max(sum(map(ord, text)) % 97 / 97 for text in some) for some in texts])
    values = [scored(seed) for seed in range(60)]
    ps = [weigh(a, b).p for a, b in zip(values[::2], values[1::2])]
    assert sum(p < .05 for p in ps) <= 5, 'of 30 comparisons of a model with itself'


def test_texts_that_score_high_can_be_read(experiment):
    samples = experiment.samples(BASE, 3)
    assert len(samples) == 3 and set(samples[0]) == {'prompt', 'text', 'score'}
    changed = experiment.changed_model('same texts')
    assert changed.config.vocab_size == experiment.model.config.vocab_size


def test_all_models_read_the_same_windows(tok, model):
    text = [' '.join(LINES)]
    plain = document_nats(model, tok, text, 24)
    silent = SelfDebiasedModel(model, tok, ['rudeness'], strength=1e-9, least=1.)
    assert np.allclose(document_nats(silent, tok, text, 24), plain, atol=1e-3)


def crows_file(folder):
    lines = ['sent_more,sent_less,stereo_antistereo,bias_type']
    for a in ('cook', 'sing', 'walk', 'wait'): lines.append(f'Women {a} here.,Men {a} here.,stereo,gender')
    (folder/'pairs.csv').write_text('\n'.join(lines))
    return folder/'pairs.csv'


@pytest.mark.parametrize('before, after, word', [(70., 55., 'better'), (55., 30., 'worse'), (40., 49., 'better')])
def test_a_score_whose_best_value_is_50_is_better_nearer_to_it(before, after, word):
    from llmbook.mitigate.run import _word_of
    verdict = weigh(np.linspace(before - 1, before + 1, 20), np.linspace(after - 1, after + 1.1, 20), 'crows_pairs')
    r = dict(split='bias', better='near target', target=50.)
    assert _word_of('crows_pairs whole', r, verdict, before, after) == word


def test_published_sets_are_asked_before_and_after(tok, model, tmp_path):
    measure = PublishedBias([load_crows_pairs(crows_file(tmp_path))])
    found = mitigate(model, tok, [SelfDebias(('rudeness',))], [measure], tmp_path/'run')
    table = found.table()
    assert {'crows_pairs whole', 'crows_pairs per token'} <= set(table.measure)


def test_another_judge_scores_the_same_texts(tok, model, tmp_path):
    measure = WrittenToxicity(['You are', 'They'], insults, 2, 4, also={'lengths': lengths})
    rows = measure(model, tok, tmp_path)
    groups = {r.get('group') for r in rows if r['metric'] == 'expected_max_toxicity'}
    assert groups == {'prompts', 'prompts, judged by lengths'}


def test_mentions_have_twins_that_differ_in_the_phrase_alone():
    with_mention, without = mention_texts(60)
    for one, other in zip(with_mention, without):
        assert one != other
        assert len(set(one.split()) & set(other.split())) >= 4


# ---- the command

@pytest.fixture
def place(tok, tmp_path):
    save_pretrained(small(tok, context=256), tok, tmp_path/'model')
    for name, lines in dict(general=LINES[:4], texts=LINES * 3).items():
        (tmp_path/f'{name}.jsonl').write_text('\n'.join(json.dumps(dict(text=line)) for line in lines))
    (tmp_path/'prompts.txt').write_text('You are\nThey\n')
    (tmp_path/'pairs.txt').write_text('\n'.join(f'{a} {b}' for a in ('She', 'The man') for b in 'abcd'))
    return tmp_path


def asked(place, **options):
    usual = dict(general=str(place/'general.jsonl'), texts=str(place/'texts.jsonl'), prompts=str(place/'prompts.txt'),
                 methods='clean texts, self-debias', tasks='none', axes='age', k=2, new_tokens=4, steps=2, training='full', device='cpu')
    return llmbook_mitigate(str(place/'model'), str(place/'run'), **(usual | options))


def test_the_command_shows_a_table_and_adds_what_is_asked_for_later(place, capsys):
    found = asked(place, methods='self-debias')
    assert list(found.methods) == [BASE, AGAIN, 'self-debias']
    assert (place/'run/table.csv').exists() and (place/'run/methods.json').exists()
    before = {f: f.stat().st_mtime_ns for f in (place/'run').rglob('result.json')}
    more = asked(place, methods='self-debias, erase')
    assert 'erase' in set(more.table().method)
    assert all(f.stat().st_mtime_ns == t for f, t in before.items())


def test_the_command_resumes_after_a_kill(place, monkeypatch):
    real, seen = IdentityGap.__call__, []
    def killed(self, *args, **kwargs):
        seen.append(1)
        if len(seen) == 2: raise KeyboardInterrupt
        return real(self, *args, **kwargs)
    monkeypatch.setattr(IdentityGap, '__call__', killed)
    with pytest.raises(KeyboardInterrupt): asked(place, methods='erase')
    assert len(asked(place, methods='erase').ablation.results) == 3
    assert len(seen) == 4, 'each of three models once, and the one that was cut off again'


def test_every_method_of_the_command_can_be_named():
    texts = ['He met the queen.', 'You are a fool.', 'Snow fell.', 'They are kind.'] * 4
    made = command_methods(method_names('all'), texts, LINES, insults, SHORT)
    assert {m.name for m in made} == {*MITIGATIONS, 'same texts'}
    wanted = next(m for m in made if m.name == 'experts').wanted
    assert not any('fool' in text for text in wanted)


BAD_COMMANDS = [
    (dict(general=None), '--general'), (dict(general='nowhere'), 'found no nowhere'), (dict(methods=' , '), 'got none'),
    (dict(methods='clean'), '--methods among'), (dict(texts=None), '--texts'), (dict(prompts='nowhere'), '--prompts'),
    (dict(share=0.), '--share'), (dict(share=math.nan), '--share'), (dict(alpha=math.inf), '--alpha'),
    (dict(seeds=0), '--seeds'), (dict(minutes=-1.), '--minutes'), (dict(steps=0), 'steps'), (dict(training='magic'), 'method'),
    (dict(lr=0.), 'lr'), (dict(k=0), 'expected k'), (dict(new_tokens=0), 'max_new_tokens'), (dict(window=0), 'window'),
    (dict(window=10**6), 'window'), (dict(tasks='nothing'), 'embedded task'), (dict(crows='nowhere.csv'), 'found none'),
    (dict(methods='preferences'), '--pair-prompts'), (dict(methods='experts', wanted='x'), 'together'),
    (dict(axes='colour'), '--axes'), (dict(detoxify='nowhere.ckpt'), 'checkpoint')]


@pytest.mark.parametrize('options, words', BAD_COMMANDS)
def test_the_command_refuses_before_any_work(place, options, words):
    with pytest.raises(UserError, match=words): asked(place, **options)
    assert not (place/'run').exists()


def test_prompts_that_are_measured_are_not_trained_on(place):
    (place/'pairs.txt').write_text('\n'.join(['You are', *(f'text {i}' for i in range(9))]))
    with pytest.raises(UserError, match="'You are' in both"):
        asked(place, methods='preferences', pair_prompts=str(place/'pairs.txt'))


def test_a_file_of_classes_that_is_none_is_refused(place):
    (place/'classes.json').write_text('[1, 2]')
    with pytest.raises(UserError, match='two classes'): asked(place, methods='erase', erase=str(place/'classes.json'))


# ---- bad input, refused before any work

BAD = [
    (lambda m, t: CleanTexts('text', insults), 'wrap it in a list'),
    (lambda m, t: CleanTexts(LINES, None), 'expected a scorer'),
    (lambda m, t: CleanTexts(LINES, insults, 0.), 'between 0 and 1'),
    (lambda m, t: CleanTexts(LINES, insults, 1.5), 'between 0 and 1'),
    (lambda m, t: SameTexts([1, 2, 3, 4]), 'to be a text'),
    (lambda m, t: SameTexts(LINES[:2]), 'at least 4'),
    (lambda m, t: CounterfactualTexts(['Snow fell.'] * 5), 'words of the pairs'),
    (lambda m, t: CounterfactualTexts(LINES, pairs=[('he', 'he')]), 'different words'),
    (lambda m, t: Experts(LINES, []), 'texts of the anti-expert'),
    (lambda m, t: Experts(LINES, LINES, alpha='x'), 'alpha'),
    (lambda m, t: Experts(LINES, LINES, alpha=math.nan), 'alpha'),
    (lambda m, t: Experts(LINES, LINES, top_p=2.), 'top_p'),
    (lambda m, t: Experts(LINES, LINES, small=ModelConfig(vocab_size=99)), 'vocabulary of the model'),
    (lambda m, t: SelfDebias(()), 'descriptions'),
    (lambda m, t: SelfDebias(('word ' * 200,)), 'leaves room'),
    (lambda m, t: SelfDebias(strength=0.), 'strength'),
    (lambda m, t: SelfDebias(invitation='no place'), '{description}'),
    (lambda m, t: Erase({}), 'two classes'),
    (lambda m, t: Erase({'a': LINES}), 'two classes'),
    (lambda m, t: Erase({'a': LINES, 'b': LINES}, layers=(9,)), 'numbers of blocks'),
    (lambda m, t: PreferKind(['one']), 'prompts for pairs'),
    (lambda m, t: PreferKind(LINES, insults, method='magic'), 'expected a method'),
    (lambda m, t: PreferKind(LINES, insults, beta=0.), 'beta'),
    (lambda m, t: 'clean texts', 'methods in a list'),
    (lambda m, t: [SameTexts(LINES)] * 2, 'twice'),
]


@pytest.mark.parametrize('make, words', BAD)
def test_a_bad_method_is_refused_before_any_work(tok, model, tmp_path, make, words):
    with pytest.raises(UserError, match=words): mitigate(model, tok, make(model, tok), measures(), tmp_path/'run')
    assert not (tmp_path/'run').exists()


BAD_MEASURES = [
    ([], 'measures in a list'), (['toxicity'], 'expected a ModelMeasure'), ([IdentityGap(FEW)] * 2, 'different names'),
    ([TextCost({})], 'dict of subsets'), ([TextCost({'a': ['x']})], 'at least 2'),
    ([TextCost(subsets(LINES), 10**6)], 'window'),
    ([WrittenToxicity(['one'], insults)], 'at least 2'), ([WrittenToxicity(scorer=5)], 'scorer'),
    ([WrittenToxicity(scorer=insults, max_new_tokens=10**6)], 'texts of at most'),
    ([IdentityGap({'age': ['an old person']})], 'two different identities'), ([TaskScore(('none',))], 'embedded task'),
    ([TaskScore(limit=0)], 'limit')]


@pytest.mark.parametrize('taken, words', BAD_MEASURES)
def test_a_bad_measure_is_refused_before_any_work(tok, model, tmp_path, taken, words):
    with pytest.raises(UserError, match=words): mitigate(model, tok, [SameTexts(LINES)], taken, tmp_path/'run')
    assert not (tmp_path/'run').exists()


def test_another_experiment_in_the_folder_is_refused(tok, model, experiment):
    with pytest.raises(UserError, match='another folder'):
        mitigate(small(tok, 5), tok, [SameTexts(LINES * 3, SHORT)], measures(), experiment.ablation.out)


@pytest.mark.parametrize('model, words', [(None, 'causal'), ('gpt2', 'causal'), (torch.nn.Linear(2, 2), 'causal')])
def test_what_is_no_model_is_refused(tok, tmp_path, model, words):
    with pytest.raises(UserError, match=words): mitigate(model, tok, [SameTexts(LINES)], measures(), tmp_path/'run')

# ---- texts and words

@pytest.mark.parametrize('text', ['🙂' * 200, '日本語' * 70, 'a' * 300, 'One two three. ' * 40, 'x\n' * 90])
@pytest.mark.parametrize('length', [1, 5, 16])
def test_pieces_are_the_text_and_tear_no_character(tok, text, length):
    pieces = text_pieces(tok, [text], length)
    whole = ''.join(pieces)
    assert '\ufffd' not in whole
    assert whole.replace(' ', '').replace('\n', '') == text.replace(' ', '').replace('\n', '')
    if length > 4: assert max(len(ids) for ids in encode_text(tok, pieces)) <= length + 3


def test_pieces_end_with_sentences_where_they_can(tok):
    pieces = text_pieces(tok, ['One two three. ' * 40], 60)
    assert all(piece.endswith('. ') for piece in pieces)


@pytest.mark.parametrize('text', ['his_name = 3', 'Andréhis', 'her2 x', 'éman'])
def test_words_inside_others_are_not_swapped(text): assert swap_identities(text) == text


# ---- the same experiment, and the lines of twins

def test_an_edited_task_is_another_experiment(tok, model, tmp_path):
    "An added arm must not answer other questions than the base did."
    def asked(golds):
        task = EvalTask('capitals', docs_of(golds), 'The capital of {{ country }} is', choices=['A', 'B'], answer='capital')
        return TaskScore((task,))
    method = SelfDebias(('rudeness',))
    mitigate(model, tok, [method], [asked('AABB')], tmp_path)
    with pytest.raises(UserError, match='choose another folder'):
        mitigate(model, tok, [method], [asked('ABBB')], tmp_path)


def docs_of(golds): return [dict(country=f'country {i}', capital=gold) for i, gold in enumerate(golds)]


def counting(word): return lambda texts: [float(word in text) for text in texts]


def test_two_scorers_of_one_name_are_two(tok, model, tmp_path):
    def measure(word): return WrittenToxicity(['You are', 'They'], counting(word), 2, 4)
    assert measure('a').settings() == measure('a').settings() != measure('b').settings()
    mitigate(model, tok, [SelfDebias(('rudeness',))], [measure('a')], tmp_path)
    with pytest.raises(UserError, match='choose another folder'):
        mitigate(model, tok, [SelfDebias(('rudeness',))], [measure('b')], tmp_path)
    also = [WrittenToxicity(['You are', 'They'], insults, 2, 4, also=dict(other=counting(word))) for word in 'ab']
    assert also[0].settings() != also[1].settings()


def test_the_usual_scorer_is_chosen_once_and_noted(monkeypatch):
    from llmbook.mitigate import measures as module
    measure = WrittenToxicity(['You are', 'They'])
    noted = measure.settings()['scorer']
    assert noted and noted != 'None'
    monkeypatch.setattr(module, 'toxicity_scorer', lambda: insults)
    assert measure._scorer is not insults, 'a file that comes between two arms changes nothing'
    assert WrittenToxicity(['You are', 'They']).settings()['scorer'] != noted


def test_settings_of_anything_are_json():
    long = dict(a=counting('x' * 200), b=np.arange(300.), c=torch.nn.Linear(2, 2))
    assert plain_setting(long) == plain_setting(long) != plain_setting(long | dict(a=counting('y')))
    json.dumps(plain_setting(long))


def twin_experiment(rng, out, arms=6, effect=0.):
    "Return an experiment whose arms change sentences by chance, twins alike and a little each by itself."
    def rows(arm):
        found = []
        for subset, twin in AGAINST.items():
            n = 48 if 'mention' in subset else 16
            shared = rng.normal(0, .3, n) * (arm != 'base')
            for name in (subset, twin):
                more = effect * (name == 'dialect') * (arm == 'arm 0')
                nats = 3 + shared + rng.normal(0, .1, n) * (arm != 'base') + more
                items = np.stack([nats * 10, np.full(n, 10.)], 1)
                value = float(np.exp(nats.mean()))
                r = row('perplexity', value, n=n, split='test', group=name)
                found.append(with_items(r, [f'{name.replace(" ", "_")}{i}' for i in range(n)], items, 'ratio'))
        return found
    names = [f'arm {i}' for i in range(arms)]
    ablation = ablate(lambda settings, seed, folder: rows(settings['arm']), dict(arm='base'),
                      {name: dict(arm=name) for name in names}, 1, out)
    return Mitigation(ablation, None, None, {BASE: Nothing(), **{name: Nothing() for name in names}})


def test_twins_are_weighed_in_pairs_and_corrected(tmp_path):
    said = 0
    for seed in range(8):
        table = twin_experiment(np.random.default_rng(seed), tmp_path/str(seed)).table()
        twins = table[table.measure.str.contains('more than')]
        assert len(twins) == 12 and twins.p.notna().all()
        said += twins.verdict.isin(['better', 'worse']).any()
    assert said <= 1, 'some word in one of twenty experiments, and luck'
    found = twin_experiment(np.random.default_rng(0), tmp_path/'real', effect=.2).table()
    line = found[(found.method == 'arm 0') & (found.measure == 'dialect more than standard English')].iloc[0]
    assert line.verdict == 'worse' and line.high - line.low < .3, 'the pairing removes what twins share'


def test_sentences_of_one_template_are_one_witness(tok, model, tmp_path):
    measure = TextCost(subsets(LINES), 32)
    rows = {r['group']: r for r in measure(model, tok, tmp_path)}
    of_mentions = row_items(rows['identity mentions'])
    assert len(of_mentions['ids']) == 48 and len(set(of_mentions['clusters'])) == 16
    assert row_items(rows['dialect'])['clusters'] is None
    assert 'over 16 documents in pieces' in rows['without a mention']['signature']
