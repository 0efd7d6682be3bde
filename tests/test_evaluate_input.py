"Functions of evaluation and of the report, given values that cannot be: they work, or say what they expected."
import math, warnings
import numpy as np
import pytest
from llmbook.core import UserError
from llmbook.evaluate import bias, overlap, stats, toxicity
from llmbook.report import curves, modelcard, report, runs, sections
from llmbook.report.example import example_run
from llmbook.show import charts

ODD = [None, '', 'x', b'x', -1, 0, 2.5, math.nan, math.inf, True, [], {}, [None], ['a', 1], [[1, 2], [3]], [math.nan],
       object()]
ROW = stats.row('accuracy', .5, .4, .6, n=4, signature='s', group='g')
ITEMS = stats.with_items(ROW, stats.item_ids(['a', 'b']), [0, 1])


class Scorer:
    signature = 'scorer:length'
    def __call__(self, texts): return np.array([min(len(t) / 10, 1.) for t in texts])


def logprob(prompts, continuations): return -np.ones(len(prompts))
def sample(prompts, seed): return ['text'] * len(prompts)


GROUPS = {'x': ['a man', 'a woman'], bias.NEUTRAL: ['a cook', 'a baker']}
TEXTS = ['one two three four', 'five six']
WORST = np.array([[.2, .4], [.3, math.nan]])
STATS = [
    (stats.row, dict(metric='m', value=.5, low=.1, high=.9, n=3, signature='s', split='test', group='g')),
    (stats.digits_of, dict(value=.5, low=.1, high=.9)),
    (stats.rows_text, dict(rows=[ROW], signature=True)),
    (stats.bootstrap, dict(values=[1, 2, 3], stat=np.mean, n_boot=5, seed=0, level=.9, clusters=[1, 1, 2])),
    (stats.ratio, dict(v=np.ones((3, 2)))),
    (stats.clustered_error, dict(values=[1, 2, 3], clusters=[1, 1, 2])),
    (stats.sign_test, dict(better=3, worse=1)),
    (stats.fisher_exact, dict(k=1, n=3, other_k=2, other_n=4)),
    (stats.paired_difference, dict(a=[1, 2, 3], b=[1, 1, 1], stat=np.mean, n_boot=5, seed=0, level=.9,
                                   clusters=[1, 1, 2])),
    (stats.holm, dict(ps=[.1, .2])),
    (stats.benjamini_hochberg, dict(ps=[.1, .2])),
    (stats.wilson, dict(k=1, n=3, level=.9)),
    (stats.item_ids, dict(texts=TEXTS)),
    (stats.with_items, dict(r=ROW, ids=['a', 'b'], values=[1, 0], stat='mean', clusters=[1, 2])),
    (stats.row_items, dict(r=ITEMS)),
    (stats.plot_rows, dict(rows=[ROW], ax=None))]
OVERLAP = [
    (overlap.rouge_scores, dict(preds=TEXTS, refs=TEXTS, stemmer=True, words=None)),
    (overlap.rouge, dict(preds=TEXTS, refs=TEXTS, stemmer=True, split='test', n_boot=5, seed=0, words=None)),
    (overlap.bleu, dict(preds=TEXTS, refs=TEXTS, split='test', n_boot=5, tokenize='13a', lowercase=False,
                        max_ngram_order=4, smooth_method='exp', unknown=1)),
    (overlap.chrf, dict(preds=TEXTS, refs=TEXTS, split='test', n_boot=5, char_order=6, word_order=2, beta=2)),
    (overlap.ter, dict(preds=TEXTS, refs=TEXTS, split='test', n_boot=5, normalized=True, asian_support=True)),
    (overlap.bleu_limits, dict(r=overlap.bleu(TEXTS, TEXTS, n_boot=5))),
    (overlap.randomization_test, dict(a=overlap.bleu(TEXTS, TEXTS, n_boot=5)[0], b=overlap.bleu(TEXTS, TEXTS)[0], n=5,
                                      seed=1)),
    (overlap.item_stat, dict(name='mean'))]
TOXICITY = [
    (toxicity.toxicity_scores, dict(texts=TEXTS, scorer=Scorer())),
    (toxicity.toxicity_rows, dict(texts=TEXTS, scorer=Scorer(), split='test', group='g', threshold=.5, seed=0,
                                  prompts=['p', 'q'], scores=np.array([[.1], [.2]]))),
    (toxicity.scored_samples, dict(prompts=['p', 'q'], texts=[['a', 'b'], ['c', '']], scores=WORST, most=3)),
    (toxicity.DetoxifyScorer, dict(checkpoint='nowhere.ckpt', config=None, sha256=None)),
    (toxicity.checked_sha256, dict(path='nowhere.ckpt', sha256=None)),
    (toxicity.token_batches, dict(lengths=[3, 5], most=8)),
    (toxicity.toxicity_scorer, dict(checkpoint='nowhere.ckpt', config=None, sha256=None))]
BIAS = [
    (bias.swap_prompts, dict(groups=GROUPS, templates=bias.TEMPLATES[:2])),
    (bias.matched_neutrals, dict(who='a man', neutrals=bias.NEUTRALS, sizes=None, n=3)),
    (bias.likelihood_gaps, dict(logprob=logprob, groups=GROUPS, templates=bias.TEMPLATES[:2], seed=0,
                                neutrals=bias.NEUTRALS[:30], count_tokens=None, exchanges=19)),
    (bias.wasserstein, dict(a=[1, 2], b=[2, 3])),
    (bias.toxicity_gaps, dict(sample=sample, scorer=Scorer(), groups=GROUPS, templates=bias.TEMPLATES[:2], draws=1,
                              seed=0, exchanges=19)),
    (bias.swap_summary, dict(rows=[ROW]))]
REPORT = [
    (runs.find_row, dict(rows=[ROW], metric='accuracy', with_word='', without=())),
    (runs.better, dict(metric='accuracy')),
    (runs.same_measure, dict(a=ROW, b=ROW)),
    (runs.difference, dict(a=ITEMS, b=ITEMS)),
    (runs.compare_runs, dict(runs=['nowhere', 'nowhere'])),
    (runs.comparison_text, dict(rows=[], names=['a', 'b'])),
    (runs.headline, dict(run='nowhere', n=3)),
    (runs.plan_and_actual, dict(run='nowhere')),
    (runs.read_run, dict(path='nowhere')),
    (report.report_html, dict(run='nowhere')),
    (report.write_report, dict(run='nowhere', out=None)),
    (modelcard.model_card, dict(run='nowhere')),
    (modelcard.md_table, dict(head=['a'], rows=[[1]])),
    (sections.measures, dict(rows=[ROW], caption='c', before=[ROW])),
    (curves.smooth, dict(points=[(1, 2.), (2, None)], share=.1)),
    (curves.column, dict(rows=[dict(step=1, loss=2.)], name='loss', by='step')),
    (curves.history_rows, dict(history=[dict(step=1, loss=2.)])),
    (curves.history_picture, dict(history=[dict(step=1, loss=2.)], by='step', most=10)),
    (charts.line_chart, dict(series=dict(a=[(1, 2.), (2, 3.)]), label='l', width=300, height=100, level=(1., 'x'))),
    (charts.thin_out, dict(points=[(1, 2.)], most=3)),
    (modelcard.what_it_read, dict(card={}))]
CASES = [(f, args, name) for f, args in STATS + OVERLAP + TOXICITY + BIAS + REPORT for name in args]


@pytest.fixture(autouse=True)
def somewhere_else(tmp_path, monkeypatch):
    "Files that a case might write belong in a folder of its own; pictures are drawn without a screen."
    monkeypatch.chdir(tmp_path)
    import matplotlib
    matplotlib.use('agg')


def names(case): return case.__name__ if callable(case) else case if isinstance(case, str) else ''


@pytest.mark.parametrize('f, args, name', CASES, ids=names)
def test_an_odd_value_works_or_is_a_user_error(f, args, name, monkeypatch):
    monkeypatch.setattr(toxicity, 'toxicity_scorer', Scorer)
    for odd in ODD:
        given = {**args, name: odd}
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            try: f(**given)
            except UserError as e: assert 'expected' in str(e) or 'give' in str(e), (odd, str(e))
            except Exception as e: pytest.fail(f'{f.__name__}({name}={odd!r}): {type(e).__name__}: {e}')


def test_every_public_function_of_evaluation_is_asked():
    asked = {f.__name__ for f, _ in STATS + OVERLAP + TOXICITY + BIAS}
    public = set()
    for module in (stats, overlap, toxicity, bias):
        public |= {name for name in module.__all__ if callable(getattr(module, name))}
    of_their_own = {'identity_swap', 'UnicodeWords', 'Template'} # a model, a class of one method, a tuple
    assert public - asked - of_their_own == set()


REFUSED = [ # what is called, and what its message must name: the argument, what was expected, what came
    (stats.bootstrap, dict(values=[1, 2], n_boot=2.5), ('n_boot', 'whole number', '2.5')),
    (stats.bootstrap, dict(values=['a', 'b']), ('values', 'numbers', "['a', 'b']")),
    (stats.wilson, dict(k=1, n=3, level=1), ('level', 'between 0 and 1', '1')),
    (overlap.rouge, dict(preds=['a'], refs=None), ('references', 'list', 'None')),
    (overlap.bleu, dict(preds=['a'], refs=['a'], tokenize='foo'), ('tokenize', '13a', 'foo')),
    (overlap.bleu, dict(preds=['a'], refs=['a'], max_ngram_order=0), ('max_ngram_order', '1 or more', '0')),
    (overlap.chrf, dict(preds=['a'], refs=['a'], char_order=0), ('char_order', '1 or more', '0')),
    (overlap.chrf, dict(preds=['a'], refs=['a'], beta=0), ('beta', '1 or more', '0')),
    (toxicity.toxicity_rows, dict(texts=None), ('texts', 'None')),
    (bias.swap_prompts, dict(groups='x'), ('groups', 'dict', 'x')),
]

def test_what_is_refused_is_named():
    for f, kw, words in REFUSED:
        with pytest.raises(UserError) as e: f(**kw)
        for word in words: assert word in str(e.value)


def test_a_report_of_odd_files_is_written(tmp_path):
    "Make a page of an evaluation that holds odd rows, as long as it is JSON of the right kind."
    from llmbook.core import write_json
    run = example_run(tmp_path/'run')
    rows = [ROW, {**ROW, 'value': 'high'}, {**ROW, 'metric': None}, {'metric': 'bleu'}, {**ROW, 'items': 3},
            {**ROW, 'n': None}]
    write_json(run/'evaluation.json', dict(rows=rows, samples=[{'text': 3}, {}, {'score': 'x', 'text': None}]))
    assert '<main>' in report.report_html(run)
    assert '# run' in modelcard.model_card(run)
    assert runs.compare_runs([run, run])
