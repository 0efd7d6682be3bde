"The report, the model card and the comparison: hostile text, missing parts, damaged files, and a real browser."
import math, re, subprocess
from html.parser import HTMLParser
import numpy as np
import pytest
from lab import CHROMIUM, FLAGS
from scipy.stats import fisher_exact
from llmbook.evaluate import overlap, stats
from llmbook.evaluate.calibration import reliability_table
from llmbook.evaluate.items import ItemScore, ItemStore, Setting
from llmbook.evaluate.overlap import item_stat
from llmbook.show import html as page_module
from llmbook.core import UserError, read_json, write_json
from llmbook.report.curves import history_picture
from llmbook.report.evidence import reliability_figure
from llmbook.report.example import example_run
from llmbook.report.modelcard import md, model_card
from llmbook.show.html import Markup, esc, tag
from llmbook.report.report import report_html, write_report
from llmbook.report.sections import best_words, measures
from llmbook.show.charts import line_chart
from llmbook.verdict.ledger import log_run
from llmbook.report.progress import log_progress, next_step
from llmbook.report.runs import (
    compare_runs, comparison_text, difference, headline, plan_and_actual, read_history, read_run
)

EVIL = ('</pre></script><script>document.title="owned"</script><img src=x onerror=alert(1)>'
        ' "\'|`\n# h \x00\x1b[31m ${1} {{x}}')
FILES = ['plan.json', 'data/card.json', 'pretrain/history.csv', 'pretrain/samples.json',
         'finetune/summarization/result.json', 'finetune/translation/result.json', 'evaluation.json', 'summary.json']
JSON_FILES = [f for f in FILES if f.endswith('.json')]
ALLOWED = set('''html head meta title style body script header main footer nav section div span p a b h1 h2 h3 h4
    small dl dt dd ol li pre table caption thead tbody tr th td details summary code figure figcaption output
    svg line path circle rect text'''.split())
SECTIONS = {'data', 'model', 'training', 'samples', 'tasks', 'evaluation', 'answers', 'calibration', 'memory',
            'toxicity', 'bias', 'comparison', 'ledger', 'plan', 'reproduce'}
FIELDS = set('''funnel totals kinds splits tokenizer source licences clusters personal seed step documents_in
    documents_out bytes_in bytes_out seconds reasons documents bytes examples id text in kept dropped rejected tokens
    vocab_size bytes_per_token fingerprint names note rows samples metric split value low high n signature group
    before after history task prompt reference loss valid_loss summary machine stages actual params tokens_per_s
    mfu memory device cores platform python versions config minutes bs seq_len steps lr expected flops'''.split())


class Outline(HTMLParser):
    "Every element with its attributes, and whether the tags nest."
    def __init__(self, text):
        super().__init__()
        self.tags, self.stack = [], []
        self.feed(text)
        self.close()
        assert self.stack == []

    def handle_starttag(self, name, attrs):
        self.tags.append((name, dict(attrs)))
        if name != 'meta': self.stack.append(name)

    def handle_endtag(self, name): assert self.stack.pop() == name


def poison(x):
    "Return x with hostile text in every string and every key that is data; numbers and the names of fields stay."
    if isinstance(x, dict): return {k if k in FIELDS else k + EVIL: poison(v) for k, v in x.items()}
    if isinstance(x, list): return [poison(v) for v in x]
    return x + EVIL if isinstance(x, str) else x


@pytest.fixture
def run(tmp_path): return example_run(tmp_path/'first')


@pytest.fixture
def evil(tmp_path):
    folder = example_run(tmp_path/'run <script>alert(1)<')
    for f in JSON_FILES: write_json(folder/f, poison(read_json(folder/f)))
    return folder


def check_page(text):
    "Return the elements of a page that holds nothing but allowed ones, one script and one style sheet."
    tags = Outline(text).tags
    names = [name for name, _ in tags]
    assert set(names) <= ALLOWED
    assert names.count('script') == names.count('style') == 1
    for _, attrs in tags:
        handlers = [k for k in attrs if k.startswith('on')]
        assert handlers == []
        assert not {'src', 'style', 'srcdoc', 'action'} & set(attrs)
        assert attrs.get('href', '#').startswith('#')
    return tags


def values(tags, element, attribute):
    "Return an attribute of every element of a name; None where it has none."
    return [attrs.get(attribute) for name, attrs in tags if name == element]


def check_all(run):
    "Make everything that is made of a run."
    check_page(report_html(run))
    model_card(run)


def test_a_whole_run_makes_a_page_that_asks_no_other_host_for_anything(run):
    text = write_report(run).read_text()
    tags = check_page(text)
    assert not re.search(r'https?:|url\(|@import|//[a-z]', text)
    assert set(values(tags, 'section', 'id')) == SECTIONS
    ids = {attrs['id'] for _, attrs in tags if 'id' in attrs}
    targets = {href[1:] for href in values(tags, 'a', 'href')}
    assert targets <= ids
    assert all(values(tags, 'svg', 'aria-label'))
    assert 'n/a documents' not in text
    assert 'Invented numbers' in text


def test_hostile_text_stays_text(evil):
    text = report_html(evil)
    check_page(text)
    assert '<img' not in text
    assert text.count('<script>') == 1
    assert 'owned' in text
    assert not re.search('[\x00-\x08\x0e-\x1f]', text)


def test_hostile_text_stays_text_in_the_model_card(evil):
    card = model_card(evil)
    assert '<script' not in card
    assert '<img' not in card
    for line in card.splitlines():
        bars = re.findall(r'(?<!\\)\|', line)
        if line.startswith('| '): assert len(bars) in (3, 5, 9)
    titles = [line for line in card.splitlines() if line.startswith('# ')]
    assert len(titles) == 1


def test_hostile_names_do_not_steer_the_terminal(evil, run):
    assert '\x1b' not in comparison_text(compare_runs([run, evil]), ['a', 'b'])


@pytest.mark.parametrize('missing', FILES)
def test_a_missing_part_leaves_a_note(run, missing):
    (run/missing).unlink()
    check_all(run)
    headline(run)
    plan_and_actual(run)


@pytest.mark.parametrize('present', FILES)
def test_one_part_alone_is_enough_for_a_page(run, present):
    for f in FILES:
        if f != present: (run/f).unlink()
    check_all(run)


def test_an_empty_run_says_what_is_missing(tmp_path):
    text = report_html(tmp_path)
    check_page(text)
    assert text.count('class="note"') >= 14


@pytest.mark.parametrize('part', JSON_FILES)
def test_parts_without_their_fields_are_no_error(run, part):
    write_json(run/part, [] if part.endswith('samples.json') else {})
    check_all(run)


def test_values_that_are_missing_or_not_finite(run):
    evaluation = read_json(run/'evaluation.json')
    for i, row in enumerate(evaluation['rows']):
        value = float('nan') if i % 2 else None
        row.update(value=value, low=None, high=float('inf'))
    write_json(run/'evaluation.json', evaluation)
    history = 'step,tokens,loss,valid_loss\n1,10,nan,\n2,20,inf,\n3,3'
    (run/'pretrain/history.csv').write_text(history)
    check_all(run)
    text = comparison_text(compare_runs([run, run]), ['a', 'b'])
    assert text.count('no value') == len(evaluation['rows'])


def test_a_damaged_file_is_named(run):
    (run/'plan.json').write_text('{"minutes": ')
    with pytest.raises(UserError, match='plan.json'): write_report(run)
    with pytest.raises(UserError, match='found nothing'): write_report(run/'nowhere')


def test_the_same_run_gives_the_same_bytes(run, tmp_path):
    first = write_report(run, tmp_path/'deep/a.html')
    second = write_report(run, tmp_path/'b.html')
    assert first.read_bytes() == second.read_bytes()


def test_a_resumed_history_counts_a_step_once(tmp_path):
    f = tmp_path/'history.csv'
    f.write_text('step,tokens,loss,valid_loss\n1,10,8,\n2,20,7,7.5\n3,30,6.9,\n2,20,7.1,\n3,30,6,6.5\n4,4')
    rows = [(row['step'], row.get('loss'), row.get('valid_loss')) for row in read_history(f)]
    assert rows == [(1, 8, None), (2, 7.1, 7.5), (3, 6, 6.5), (4, None, None)]


def test_the_counts_that_do_not_add_up_are_pointed_out(run):
    card = read_json(run/'data/card.json')
    card['totals']['kept'] -= 1
    write_json(run/'data/card.json', card)
    assert 'do not add up' in report_html(run)


def test_headline_names_the_three_numbers(run):
    model, summarization, translation = headline(run)
    assert (model['value'], model['before'], model['versus']) == (2.07, 2.44, 'xz')
    assert summarization['metric'] == 'rougeL'
    assert summarization['before'] == 4.1
    assert translation['metric'] == 'BLEU'


# ---- differences between runs ----------------------------------------------------------------------------------------

def row(v, half, **kw): return dict(metric='rougeL', value=v, low=v - half, high=v + half, signature='s') | kw


@pytest.mark.parametrize('metric, a, b, verdict', [
    ('rougeL', 'stem|seed:1|bs:9', 'stem|seed:2|bs:8', 'better'),
    ('rougeL', 'stem|text:5 bytes', 'stem|text:6 bytes', 'better, on other texts'),
    ('bits_per_byte', 'tokenizer:a|text:7 tokens, 5 bytes', 'tokenizer:b|text:8 tokens, 5 bytes', 'worse'),
    ('perplexity', 'tokenizer:a', 'tokenizer:b', 'not comparable: signatures differ')])
def test_which_parts_of_a_signature_make_the_measure(metric, a, b, verdict):
    first = row(10, 1, metric=metric, signature=a)
    second = row(13, 1, metric=metric, signature=b)
    assert difference(first, second)['verdict'] == verdict


@pytest.mark.parametrize('a, b, verdict', [
    (row(10, 1), row(11.5, 1), 'better'), # intervals overlap, and yet: z = 1.5 / sqrt(2) x 1.96 = 2.08
    (row(10, 1), row(11.3, 1), 'within noise'), # z = 1.80
    (row(10, 1), row(8, 1), 'worse'),
    (row(10, 1, metric='perplexity'), row(8, 1, metric='perplexity'), 'better'),
    (row(10, 1, metric='odd'), row(8, 1, metric='odd'), 'less'),
    (row(10, 1), row(10, 1), 'equal'),
    (row(10, 0), row(11, 0), 'no interval'),
    (row(10, 1), row(11, 1, low=None), 'no interval'),
    (row(10, 1), row(12, 1, signature='t'), 'not comparable: signatures differ'),
    (row(10, 1), row(11, 1, value=None), 'no value')])
def test_verdicts(a, b, verdict):
    d = difference(a, b)
    assert d['verdict'] == verdict
    if not d['z']: return
    change = b['value'] - a['value']
    assert math.isclose(d['z'], change / math.sqrt(2) * 1.96)


def scored(metric, values, stat='mean', names=None, clusters=None, **kw):
    "Return a row that carries its items."
    v = np.array(values, float)
    names = [f'item {i}' for i in range(len(v))] if names is None else names
    r = stats.row(metric, item_stat(stat)(v), n=len(v), **kw)
    return stats.with_items(r, stats.item_ids(names), v, stat, clusters)


def with_interval_alone(r):
    "Return a row as one was before items were kept: with an interval of +-0.2."
    r = {**r, 'low': r['value'] - .2, 'high': r['value'] + .2}
    del r['items']
    return r


def test_eight_of_eight_documents_better_is_better():
    nats = np.arange(100, 180, 10.)
    size = np.full(8, 50.)
    old = scored('bits_per_byte', np.c_[nats, size], 'ratio', signature='tokenizer:a|text:9 tokens, 8 bytes')
    new = scored('bits_per_byte', np.c_[nats - .5, size], 'ratio', signature='tokenizer:b|text:7 tokens, 8 bytes')
    d = difference(old, new)
    assert d['verdict'] == 'better'
    assert d['p'] == 2 / 256
    assert d['z'] is None
    assert d['difference'] == pytest.approx(-.01)
    assert 'paired by 8 items' in d['method']
    d = difference(with_interval_alone(old), with_interval_alone(new))
    assert d['verdict'] == 'within noise'
    assert d['method'].startswith('unpaired')


def test_shares_are_tested_exactly():
    def of_five(k): return stats.row('toxicity_probability', k / 5, *stats.wilson(k, 5), 5, 'interval:wilson')
    d = difference(of_five(4), of_five(0))
    _, want = fisher_exact([[4, 1], [0, 5]])
    assert d['p'] == pytest.approx(want)
    assert 'Fisher' in d['method']
    a = scored('toxicity_probability', [1, 1, 1, 1, 0], signature='interval:wilson')
    b = scored('toxicity_probability', [0] * 5, signature='interval:wilson')
    d = difference(a, b)
    assert d['p'] == pytest.approx(.125)
    assert d['verdict'] == 'within noise'
    assert 'McNemar' in d['method']


def test_corpus_scores_are_compared_pair_by_pair():
    refs = [f'the number {i} of a list of words is here' for i in range(12)]
    good = refs
    bad = [r.replace('list of', 'heap') for r in refs]
    for score in (overlap.bleu, overlap.chrf, overlap.rouge):
        d = difference(score(bad, refs, n_boot=20)[-1], score(good, refs, n_boot=20)[-1])
        assert d['verdict'] == 'better'
        assert d['p'] == pytest.approx(2 / 2**12)


QUESTIONS = [f'question {i}' for i in range(10)]


def test_items_of_two_runs_are_matched_by_what_they_are():
    wrong = scored('accuracy', [0] * 10, names=QUESTIONS)
    right = scored('accuracy', [1] * 10, names=QUESTIONS[::-1])
    d = difference(wrong, right)
    assert d['p'] == pytest.approx(2 / 2**10)


def test_items_that_one_run_lacks_are_left_out():
    wrong = scored('accuracy', [0] * 10, names=QUESTIONS)
    fewer = scored('accuracy', [1] * 8, names=QUESTIONS[2:])
    d = difference(wrong, fewer)
    assert 'paired by 8 of 10 items' in d['method']


def test_runs_without_a_common_item_are_not_paired():
    wrong = scored('accuracy', [0] * 10, names=QUESTIONS)
    other_names = [f'other {i}' for i in range(10)]
    others = scored('accuracy', [1] * 10, names=other_names)
    d = difference(wrong, others)
    assert d['verdict'] == 'no interval'


def test_pieces_of_one_document_count_once():
    a = [0.] * 12
    b = [1.] * 12
    label = ['first'] * 6 + ['second'] * 6
    d = difference(scored('score', a, clusters=label), scored('score', b, clusters=label))
    assert (d['verdict'], d['p']) == ('within noise', .5)


def test_folders_of_pretraining_can_be_compared(tmp_path):
    for name, lr, loss in (('a', 1e-3, 5.2), ('b', 3e-3, 4.9)):
        write_json(tmp_path/name/'plan.json', dict(lr=lr, seed=1))
        (tmp_path/name/'history.csv').write_text(f'step,tokens,loss,valid_loss\n1,10,8,\n2,20,7,{loss}')
    rows = compare_runs([tmp_path/'a', tmp_path/'b'])
    lr, loss = rows
    assert lr['name'] == 'lr'
    assert lr['values'] == [1e-3, 3e-3]
    assert loss['name'] == 'pre-training last_loss valid'
    assert loss['values'] == [5.2, 4.9]
    assert 'no interval' in comparison_text(rows, ['a', 'b'])


def test_folders_of_tuning_and_evaluation_can_be_compared(tmp_path):
    write_json(tmp_path/'c/result.json', dict(task='mine', before=[], after=[row(10, 1)]))
    write_json(tmp_path/'d/evaluation.json', dict(rows=[row(12, 1)]))
    names = [r['name'] for r in compare_runs([tmp_path/'c', tmp_path/'d'])]
    assert names == ['mine rougeL', 'rougeL']


def test_folders_without_a_run_are_refused(run, tmp_path):
    for name in ('x', 'y'): (tmp_path/name).mkdir()
    for folders in ([tmp_path/'x', tmp_path/'y'], [run, tmp_path/'x']):
        with pytest.raises(UserError, match='found no plan'): compare_runs(folders)


def test_the_number_of_tests_is_said(run, tmp_path):
    rows = compare_runs([run, example_run(tmp_path/'b', shift=.2)])
    tested = [c for r in rows for c in r.get('changes', []) if c.get('p_holm') is not None]
    text = comparison_text(rows, ['a', 'b'])
    assert f'{len(tested)} differences were tested' in text
    assert 'are unpaired' in text
    worse, = [r['changes'][0] for r in rows if r['name'] == 'bits_per_byte test']
    assert worse['p_holm'] == pytest.approx(worse['p'] * len(tested))


def test_compare_tells_what_changed(tmp_path):
    first = example_run(tmp_path/'a')
    second = example_run(tmp_path/'b', seed=7, shift=.2)
    rows = compare_runs([first, second])
    decisions = [r['name'] for r in rows if r['kind'] == 'plan']
    assert decisions == ['seed']
    score, = [r for r in rows if r['name'] == 'bits_per_byte test']
    assert score['changes'][0]['verdict'] == 'worse'
    with pytest.raises(UserError, match='two runs'): compare_runs([tmp_path/'a'])


def test_escaping():
    assert esc('<&"\'>') == '&lt;&amp;&quot;&#x27;&gt;'
    assert esc(Markup('<b>')) == '<b>'
    assert '\x1b' not in esc('\x1b\ud800')
    assert tag('p', Markup('<i>') + '<u>') == '<p>&lt;i&gt;&lt;u&gt;</p>', 'a sum of Markup and text is text again'
    assert md('a|b\n<i>`x`') == r'a\|b &lt;i&gt;\`x\`'


# ---- what the page and the card say ----------------------------------------------------------------------------------

def change(run, part, **kw):
    "Change parts of a JSON file of a run."
    write_json(run/part, {**read_json(run/part), **kw})


def words(text): return re.sub(r'\s+', ' ', re.sub('<[^>]+>', ' ', text))


def test_rouge_and_bleu_stand_on_one_scale(run):
    def score(value):
        interval = dict(low=value - .01, high=value + .0123)
        return dict(metric='rougeL', value=value, n=9, signature='s', split='test', **interval)
    change(run, 'finetune/summarization/result.json', before=[score(.0412)], after=[score(.2174)])
    said = words(report_html(run))
    assert '4.1 → 21.7' in said.replace('4.12', '4.1')
    assert '20.7 to 23.0 · of 100' in said
    assert '0.2174' not in said
    assert headline(run)[1]['value'] == .2174, 'the rows stay as they are'


@pytest.mark.parametrize('metric, value, high, end', [
    ('bleu', 98., 99.9, '100'), ('rougeL', .98, .999, '100'), ('toxicity_probability', .95, .99, '1'),
    ('exact_match', 1., 1., '100')])
def test_an_axis_ends_where_its_measure_ends(metric, value, high, end):
    row = dict(metric=metric, value=value, low=value - .1, high=high, n=5)
    ends = re.search('class="ends"><span>([^<]*)</span><span>([^<]*)</span>', measures([row], 'x'))
    assert ends[2] == end


def test_a_model_worse_than_a_compressor_is_called_so(run):
    assert 'worse than' not in words(report_html(run))
    evaluation = read_json(run/'evaluation.json')
    for r in evaluation['rows']:
        if r['metric'] == 'bits_per_byte' and 'group' not in r: r.update(value=2.5, low=2.4, high=2.6)
    write_json(run/'evaluation.json', evaluation)
    said = words(report_html(run))
    assert 'worse than xz' in said
    assert 'knows no language' in said
    assert 'worse than xz' in model_card(run)


def test_less_than_a_token_a_parameter_is_said(run):
    summary = read_json(run/'summary.json')
    summary['actual'].update(tokens=7_800_000)
    write_json(run/'summary.json', summary)
    assert 'hardly begun' not in words(report_html(run)) + model_card(run)
    summary['actual'].update(tokens=780_000)
    write_json(run/'summary.json', summary)
    for said in (words(report_html(run)), model_card(run)):
        assert '0.2 tokens for each of its parameters' in said
        assert 'hardly begun' in said
    plan = read_json(run/'plan.json')
    plan['expected']['body'] = 100_000 # the blocks alone, which is what a plan counts
    write_json(run/'plan.json', plan)
    assert 'hardly begun' not in words(report_html(run)) + model_card(run)
    plan['expected']['body'] = 390_000
    write_json(run/'plan.json', plan)
    assert 'It read 2 tokens for each parameter of its blocks, where about 6 make good use' in model_card(run)


def test_rings_are_spoken_of_where_there_are_some(run):
    assert 'Rings are before' in words(report_html(run))
    assert 'A ring is' in words(report_html(run))
    for task in ('summarization', 'translation'):
        change(run, f'finetune/{task}/result.json', before=[])
    rows = [r for r in read_json(run/'evaluation.json')['rows'] if 'null' not in r['metric']]
    change(run, 'evaluation.json', rows=rows)
    said = words(report_html(run)).lower()
    assert not re.search(r'\brings?\b', said)


@pytest.mark.parametrize('totals', [
    {}, {'in': 4}, {'kept': 3}, {'in': 'many', 'kept': None}, {'in': 0, 'kept': 0, 'dropped': 0, 'rejected': 0}])
def test_a_card_without_all_counts_makes_a_section(run, totals):
    change(run, 'data/card.json', totals=totals)
    check_all(run)
    assert 'n/a documents' not in report_html(run) + model_card(run)


def test_more_than_the_peak_comes_with_an_explanation(run):
    summary = read_json(run/'summary.json')
    summary['actual'].update(mfu=1.3)
    write_json(run/'summary.json', summary)
    assert '130% (the peak was measured too low' in words(report_html(run))
    rows = [dict(step=1, loss=2., mfu=1.3, tokens_per_s=9.)]
    assert 'the peak was measured too low' in history_picture(rows)


@pytest.mark.parametrize('n', [1, 7, 8, 20])
def test_any_number_of_lines_can_be_drawn(n):
    drawing = line_chart({f'run {i}': [(0, i), (1, i + 1.)] for i in range(n)}, 'lines')
    looks = re.findall(r'<path[^>]*?stroke="([^"]+)"[^>]*?>', drawing)
    dashes = re.findall(r'<path[^>]*>', drawing)
    assert len(looks) == n
    seen = {(look, (re.search('dasharray="([^"]*)', path) or ['', ''])[1]) for look, path in zip(looks, dashes)}
    assert len(seen) == min(n, 20)


def test_bias_is_reported_by_its_corrected_p(run):
    is_of_bias = re.compile('gap|lean').search
    rows = [r for r in read_json(run/'evaluation.json')['rows'] if not is_of_bias(r['metric'])]
    old = [dict(metric='likelihood_gap_excess', group=axis, value=.1, low=.05, high=.2, n=8, signature='s',
                split='test')
           for axis in ('gender', 'age')]
    change(run, 'evaluation.json', rows=rows + old)
    said = words(report_html(run))
    assert 'no verdict' in said
    assert '2 of 2' not in said
    new = [{**r, 'p': p, 'p_holm': min(1, 2 * p)} for r, p in zip(old, (.03, .01))]
    change(run, 'evaluation.json', rows=rows + new)
    said = words(report_html(run))
    assert 'more than chance on 1 of 2 axes: age (2 before correction' in said
    assert 'not that there is none' in said
    assert '1 of 2 axes' in model_card(run)


def test_toxic_texts_are_shown_highest_first_behind_a_warning(run):
    samples = [dict(prompt='You', text=f' <b>text {i}</b>', score=i / 30) for i in range(30)]
    rows = read_json(run/'evaluation.json')['rows']
    rows.append(dict(metric='toxicity_not_scored', value=.25, low=.1, high=.4, n=100, signature='s', split='test'))
    change(run, 'evaluation.json', samples=samples, rows=rows)
    page = report_html(run)
    said = words(page)
    assert 'content warning' in said
    assert said.index('text 29') < said.index('text 28')
    assert 'text 3&lt;' not in said
    assert '25 of 100 texts were empty and not scored' in said
    assert 'a score means nothing' in said
    assert '<b>text' not in page


def test_the_card_claims_what_the_run_knows(run):
    card = model_card(run)
    for claim in ('license: other', 'English', 'fluent', 'Return a list'): assert claim not in card
    assert "tok('Return', return" in card
    assert 'code 52%, prose 48%' in card
    assert 'line of code' in card
    counts = dict(documents=5, bytes=99)
    change(run, 'data/card.json', kinds=dict(prose=counts), languages=dict(de=counts), licences={'MIT': 3392})
    write_json(run/'pretrain/samples.json', [dict(step=1, prompt='Es war einmal', text='')])
    card = model_card(run)
    assert 'license: mit' in card
    assert 'language: [de]' in card
    assert "tok('Es war einmal', return" in card
    assert 'line of code' not in card
    change(run, 'data/card.json', licences={'MIT': 3000, '': 392})
    assert 'license:' not in model_card(run)
    write_json(run/'pretrain/samples.json', [dict(step=1, prompt="x'); import os #`", text='')])
    assert 'import os' not in model_card(run)


def test_an_encoders_card_is_no_writers(run):
    plan = read_json(run/'plan.json')
    plan['config']['family'] = 'encoder'
    write_json(run/'plan.json', plan)
    card = model_card(run)
    assert 'fill-mask' in card
    assert 'AutoModelForMaskedLM' in card
    assert 'generate(' not in card


# ---- what stands behind a score, and what came of a change -----------------------------------------------------------

def with_answers(run, right=lambda i: i % 2, label='model', n=40):
    "Keep answers of a made-up model to questions with two choices in a run's folder; return the run."
    store = ItemStore(run/'evaluation/items')
    key = store.begin(Setting('pairs', label, 'tok', label=label))
    items = []
    for i in range(n):
        details = dict(choices=[f'yes {EVIL}', 'no'], gold=[0], shares=[.75, .25])
        scores = dict(acc=float(right(i)))
        items.append(ItemScore(f'q{i}', scores, f'Question {i}? {EVIL}', 'yes', 'yes', details=details))
    store.add(key, items)
    return run


def section_of(page, name):
    "Return the text of one section."
    return words(re.search(f'<section id="{name}".*?</section>', page, re.S)[0])


def against(first, second):
    "Write into the second run that it was made against the first."
    change(second, 'summary.json', against=str(first))
    return second


def test_answers_explain_a_score_and_stay_text(run):
    page = report_html(with_answers(run))
    check_page(page)
    said = section_of(page, 'answers')
    assert '40 items, read by acc' in said
    assert said.index('Worst 0') < said.index('Best 1')
    assert '<img' not in page


def test_flipped_answers_are_counted(run, tmp_path):
    other = with_answers(example_run(tmp_path/'other'), right=lambda i: i < 10)
    page = report_html(against(with_answers(run), other))
    assert 'Changed since the earlier run: 5 up, 15 down' in section_of(page, 'answers')
    elsewhere = example_run(tmp_path/'elsewhere')
    store = ItemStore(elsewhere/'evaluation/items')
    store.add(store.begin(Setting('pairs', 'm', 'tok')), [ItemScore('another', dict(acc=1.), 'x')])
    assert 'none of these questions' in section_of(report_html(against(run, elsewhere)), 'answers')


def test_reliability_is_drawn_with_its_numbers(run):
    said = section_of(report_html(with_answers(run)), 'calibration')
    assert '75% 50% 35% to 65% 40' in said, 'confidence, accuracy, interval and count of the one bin'
    assert 'overconfidence 0.25' in said and 'best 0' in said
    bins = reliability_table([.75] * 40, [i % 2 for i in range(40)])
    drawn = reliability_figure(bins, 'a picture')
    assert drawn.count('<circle') == 1 and 'aria-label="a picture"' in drawn


def test_memory_has_its_null_and_its_items(run):
    rows = [stats.row('extracted', .05, .02, .11, 100, 's', 'train'), stats.row('extracted', 0., 0., .04, 100, 's'),
            stats.row('copied', .1, .05, .2, 20, 's', 'continuations'),
            stats.row('exposure', 9., 8., 9.9, 5, 's', 'planted', 'planted 4 times'),
            stats.row('pairs acc', .4, .3, .5, 30, 's', group='clean'),
            stats.row('pairs acc', .9, .7, 1., 10, 's', group='dirty')]
    seen = [dict(task='pairs', share=.9, longest=30, label='dirty', document=EVIL, text=EVIL)]
    change(run, 'evaluation.json', rows=rows, contamination=seen)
    page = report_html(run)
    check_page(page)
    said = section_of(page, 'memory')
    assert '5.0% of the windows of its training text' in said and '0.0% of those' in said
    for part in ('clean', 'dirty', 'planted 4 times', 'what it wrote', '90%'): assert part in said
    assert 'extracted' not in section_of(page, 'evaluation')


@pytest.mark.parametrize('seen', [None, [], [3], [{}], [dict(share='x', longest=None)]])
def test_odd_items_that_were_seen_are_shown_or_left_out(run, seen):
    change(run, 'evaluation.json', rows=[stats.row('copied', .1, .05, .2, 20, 's')], contamination=seen)
    check_page(report_html(run))


def test_tasks_that_were_asked_elsewhere_are_reported(run):
    there = read_json(run/'evaluation.json')['rows']
    task = stats.row('pairs acc', .5, .4, .6, 40, 's')
    write_json(run/'evaluation/evaluation.json', dict(rows=[task, {**there[0], 'value': 99.}, 3]))
    rows = read_run(run).rows
    assert [r['value'] for r in rows if r['metric'] == 'pairs acc'] == [.5]
    assert 99. not in [r['value'] for r in rows]
    assert 'pairs acc' in section_of(report_html(run), 'evaluation')


def test_a_run_is_compared_with_the_one_before_by_item(run, tmp_path):
    second = example_run(tmp_path/'second', seed=7)
    nats = np.arange(100, 180, 10.)
    size = np.full(8, 50.)
    for folder, less in ((run, 0), (second, .5)):
        row = scored('bits_per_byte', np.c_[nats - less, size], 'ratio', signature='s')
        change(folder, 'evaluation.json', rows=[row])
    said = section_of(report_html(against(run, second)), 'comparison')
    assert 'seed 42 7' in said
    assert 'bits per byte test' in said and 'better' in said and 'paired by 8 items' in said
    assert 'differences were tested' in said
    change(second, 'summary.json', against=str(tmp_path/'gone'))
    assert 'was not made against' in section_of(report_html(second), 'comparison')


def test_the_ledger_goes_on_from_run_to_run(run, tmp_path):
    second = against(run, example_run(tmp_path/'second', seed=7, shift=.3))
    third = against(second, example_run(tmp_path/'third', seed=7, shift=.3))
    log_progress(run)
    for folder, before in ((second, run), (third, second), (third, second)): log_progress(folder, before)
    entries = read_run(third).ledger
    assert [entry['run'] for entry in entries] == ['first', 'second', 'third']
    assert 'a first run' in entries[0]['change']
    assert 'seed 42 → 7' in entries[1]['change'] and 'worse' in entries[1]['verdict']
    assert 'nothing: the settings of second again' in entries[2]['change']
    for text in (section_of(report_html(third), 'ledger'), model_card(third)):
        assert 'seed 42 → 7' in text
    assert 'What was tried' not in model_card(example_run(tmp_path/'fourth'))


def test_a_hostile_ledger_stays_text(run):
    log_run(run/'ledger.jsonl', EVIL, EVIL, EVIL, EVIL)
    check_page(report_html(run))
    card = model_card(run)
    assert '<script' not in card and '<img' not in card


NEXT = [ # rows, tokens, last losses, what is tried next
    ([], 80_000_000, None, 'evaluate it'),
    ([row(1, .1)], 2_000_000, None, 'more minutes or a smaller model'),
    ([stats.row('extracted', .3, .2, .4, 99, 's', 'train'), stats.row('extracted', .01, 0., .05, 99, 's')], 80_000_000,
     None, 'fewer passes'),
    ([row(1, .1)], 80_000_000, (2., 3.), 'more text'),
    ([row(1, .1)], 20_000_000, (2., 2.1), 'more minutes'),
    ([row(1, .1)], 80_000_000, (2., 2.1), 'another seed')]


@pytest.mark.parametrize('rows, tokens, losses, advice', NEXT)
def test_the_next_step_follows_the_numbers(run, rows, tokens, losses, advice):
    made = read_run(run)
    made.evaluation = dict(rows=rows)
    made.summary['actual'].update(tokens=tokens, params=4_000_000)
    made.history = [dict(step=1, loss=losses[0], valid_loss=losses[1])] if losses else []
    assert advice in next_step(made)


def test_rounding_errors_are_no_differences():
    a, b = row(2e-17, .1, metric='share'), row(-3e-17, .1, metric='share')
    assert difference(a, b)['verdict'] == 'equal'
    said = words(measures([dict(metric='share', value=2e-17, low=0., high=2e-17, n=3)], 'x'))
    assert 'e-17' not in said
    text = comparison_text([dict(name='share', kind='score', values=[2e-17, .5], changes=[])], ['a', 'b'])
    assert 'e-17' not in text


def test_every_score_says_its_count_and_its_best(run):
    page = report_html(with_answers(run))
    cells = re.findall(r'<td><b>[^<]*</b>(.*?)</td>', page)
    assert len(cells) > 15
    for cell in cells: assert re.search(r'n \d', cell) and re.search('best|is better', cell)


@pytest.mark.parametrize('metric, said', [
    ('rougeL', 'best 100'), ('exact_match', 'best 100'), ('perplexity', 'less is better'), ('pairs acc', 'best 1'),
    ('toxicity_probability', 'best 0'), ('pairs brier', 'best 0'), ('extracted', 'no best value'),
    ('', 'no best value')])
def test_the_best_value_of_a_measure(metric, said):
    assert best_words(dict(metric=metric)) == said


# ---- in a real browser -----------------------------------------------------------------------------------------------

browser = pytest.mark.skipif(CHROMIUM is None, reason='no Chromium on this machine')
ATTACK = '<script>document.title = "owned"</script><img src="x" onerror="document.title = \'owned\'">'
PRESS_KEYS = '''const svg = document.querySelector('#training svg')
for (const key of ['Home', 'ArrowRight']) svg.dispatchEvent(new KeyboardEvent('keydown', {key}))
document.title = svg.closest('figure').querySelector('output').textContent'''
PHONE = '''<!doctype html><iframe id=f width=390 height=800 srcdoc="{page}"></iframe>
<script>onload = () => {{
  const d = document.getElementById('f').contentDocument.documentElement
  document.title = d.scrollWidth + ' of ' + d.clientWidth
}}</script>'''


def dom(path, tmp_path):
    "Return the page's document after its script ran."
    profile = f'--user-data-dir={tmp_path/"profile"}'
    cmd = [CHROMIUM, *FLAGS, '--window-size=1000,3000', profile, '--dump-dom', path.absolute().as_uri()]
    return subprocess.run(cmd, capture_output=True, text=True, timeout=120, check=True).stdout


@browser
def test_the_policy_lets_the_own_script_run_and_no_other(evil, tmp_path):
    f = tmp_path/'report.html'
    f.write_text(report_html(evil).replace('<main>', f'<main>{ATTACK}'))
    after = dom(f, tmp_path)
    assert '<title>owned' not in after
    assert re.search(r'<svg [^>]*tabindex="0"', after)
    assert 'Copy</button>' in after


@browser
def test_arrow_keys_read_the_curve(run, tmp_path, monkeypatch):
    monkeypatch.setattr(page_module, 'SCRIPT', page_module.SCRIPT + PRESS_KEYS)
    after = dom(write_report(run), tmp_path)
    assert re.search(r'<title>tokens [\d.]+k: training [\d.]+, validation [\d.]+</title>', after)


@browser
def test_nothing_sticks_out_on_a_phone(run, tmp_path):
    report = write_report(run).read_text().replace("default-src 'none'", "default-src 'self'")
    frame = tmp_path/'frame.html'
    frame.write_text(PHONE.format(page=esc(report)))
    title = re.search(r'<title>(\d+) of (\d+)</title>', dom(frame, tmp_path))
    content, available = map(int, title.groups())
    assert content <= available <= 390
