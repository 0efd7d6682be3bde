"The report, the model card and the comparison: hostile text, missing parts, damaged files, and a real browser."
import math, re, shutil, subprocess
from html.parser import HTMLParser
import pytest
from llmbook.show import html as page_module
from llmbook.core import UserError, read_json, write_json
from llmbook.report.example import example_run
from llmbook.report.modelcard import md, model_card
from llmbook.show.html import Markup, esc, tag
from llmbook.report.report import report_html, write_report
from llmbook.report.runs import compare_runs, comparison_text, difference, headline, plan_and_actual, read_history

EVIL = ('</pre></script><script>document.title="owned"</script><img src=x onerror=alert(1)>'
        ' "\'|`\n# h \x00\x1b[31m ${1} {{x}}')
FILES = ['plan.json', 'data/card.json', 'pretrain/history.csv', 'pretrain/samples.json',
         'finetune/summarization/result.json', 'finetune/translation/result.json', 'evaluation.json', 'summary.json']
JSON_FILES = [f for f in FILES if f.endswith('.json')]
ALLOWED = set('''html head meta title style body script header main footer nav section div span p a b h1 h2 h3 h4
    small dl dt dd ol li pre table caption thead tbody tr th td details summary code figure figcaption output
    svg line path circle rect text'''.split())
SECTIONS = {'data', 'model', 'training', 'samples', 'tasks', 'evaluation', 'toxicity', 'bias', 'plan', 'reproduce'}
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
        if line.startswith('| '): assert len(bars) in (3, 5, 8)
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
    assert text.count('class="note"') >= 9


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


def test_compare_tells_what_changed(tmp_path):
    first, second = example_run(tmp_path/'a'), example_run(tmp_path/'b', seed=7, shift=.2)
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


# ---- in a real browser -----------------------------------------------------------------------------------------------

CHROMIUM = next((p for p in map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome')) if p), None)
browser = pytest.mark.skipif(CHROMIUM is None, reason='no Chromium on this machine')
FLAGS = ['--headless', '--no-sandbox', '--disable-gpu', '--no-first-run', '--disable-background-networking',
         '--disable-component-update', '--disable-sync', '--window-size=1000,3000']
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
    cmd = [CHROMIUM, *FLAGS, profile, '--dump-dom', path.absolute().as_uri()]
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
