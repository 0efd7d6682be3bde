"HTML, personal data and cleaning: real pages, labelled text, published cases, hostile input, properties."
import ast, gzip, json, random, re
from collections import Counter, defaultdict
from urllib.parse import urlsplit
import pytest
from real_data import DATA, needs_data
from run_program import heavy_imports, output_of
from llmbook.core import UserError
from llmbook.clean import text as cleaning, pii as personal
from llmbook.read import html as pages
from llmbook.clean.text import clean, normalise, repair
from llmbook.clean.words import count_words, has_unspaced, space_words, split_words
from llmbook.read.embedded import embedded_corpus
from llmbook.read.doc import Doc
from llmbook.read.html import extract_html, read_page
from llmbook.clean.pii import PERSONAL, mask_personal

@pytest.fixture(scope='module')
def docs(): return list(embedded_corpus(3_000_000))


# --- HTML ---

@pytest.mark.parametrize('page,text', [
    ('', ''), (' \n', ''), ('<html>', ''), ('<body></body>', ''), ('<!-- only a comment -->', ''),
    ('<script>a<b</script><style>p{}</style>', ''),
    ('<nav>Home</nav><footer>Imprint</footer>', ''), ('no tags', 'no tags'),
    ('<p>a &amp; b &eacute; &#228; &#x1F600;', 'a & b é ä 😀'),
    ('<p>never <b>closed <i>tags', 'never closed tags'), ('<h1>H</h1><p>one<p>two', 'H\n\none\n\ntwo'),
    ('<p>a<br>b', 'a\nb'),
    ('<ul><li>a<ul><li>b</ul><li>c</ul>', '  • a\n    • b\n  • c'), ('<ol><li>a<li>b</ol>', '  1. a\n  2. b'),
    ('<pre>def f(x):\n\tif x:\n        return 1 &lt; 2\n</pre>', 'def f(x):\n\tif x:\n        return 1 < 2'),
    ('<pre><code><span>for</span> x in y:\n    <span>pass</span></code></pre>', 'for x in y:\n    pass'),
    ('<table><tr><td>a<td>b<tr><td>c<td>d', 'a\tb\nc\td'), ('<p>a\x00b', 'ab'), ('<p>x \ud800y', 'x y'),
    ('<p title="a > b">c', 'c'),
    ('<p>Press <b>男</b></p><p><a>1</a>–<a>2</a>', 'Press 男\n\n1–2'),
    ('<div hidden>h</div><p style="display:none">i</p><p>j', 'j'),
])
def test_the_text_of_a_page(page, text): assert extract_html(page) == text

def test_title_and_text():
    assert read_page('<title> A &amp; B\n</title><p>x') == ('A & B', 'x')
    assert read_page('<p>x') == ('', 'x')

TEX = r'\pi r^{2}'
MATHML = (f'<math alttext="{TEX}"><semantics><mrow><mi>π</mi><msup><mi>r</mi><mn>2</mn></msup></mrow>'
          f'<annotation encoding="application/x-tex">{TEX}</annotation></semantics></math>')

SVG_FORMULA = f'<span data-tex="{TEX}"><svg></svg></span>'
KATEX = (
    f'<span class="katex"><span class="katex-mathml">{MATHML}</span>'
    '<span class="katex-html" aria-hidden="true">πr2</span></span>')
MATHJAX_3 = (
    '<mjx-container><mjx-math aria-hidden="true"></mjx-math>'
    f'<mjx-assistive-mml>{MATHML}</mjx-assistive-mml></mjx-container>')
MATHJAX_2 = (
    f'<span class="MathJax" data-mathml=\'{MATHML}\'><nobr>πr2</nobr>'
    f'<span class="MJX_Assistive_MathML">{MATHML}</span></span>')

@pytest.mark.parametrize('formula', [
    MATHML,
    f'<span class="mwe-math-element"><span style="display: none">{MATHML}</span><img alt="{TEX}"></span>',
    KATEX,
    f'<span class="MathJax_Preview">..</span><span class="MathJax">πr2</span><script type="math/tex">{TEX}</script>',
    MATHJAX_3,
    MATHJAX_2,
    f'<img class="latex" src="/latex.php?x" alt="{TEX}">',
    SVG_FORMULA])
def test_a_formula_is_there_once_as_tex(formula):
    text = extract_html(f'<p>The area is {formula}, where r is the radius.')
    assert text == f'The area is ${TEX}$, where r is the radius.'

def test_mathml_alone_is_spelled_out():
    math = '<math><mfrac><mi>a</mi><msqrt><mi>b</mi></msqrt></mfrac><mo>+</mo><msub><mi>x</mi><mn>1</mn></msub></math>'
    assert extract_html(f'<p>{math}') == r'\frac{a}{\sqrt{b}}+x_{1}'

@pytest.mark.parametrize('page,rows', [
    ('<tr><th>name<th>Mon<th>Tue<tr><td>Ann<td><td>8', [['name', 'Mon', 'Tue'], ['Ann', '', '8']]),
    ('<tr><td><p>Ann</p><td><p>8</p><tr><td>Bob<br>B.<td><ul><li>9</ul>', [['Ann', '8'], ['Bob B.', '9']]),
    ('<tr><td><pre>--flag</pre><td>What it does', [['--flag', 'What it does']]),
    ('<tr><td>a<td>b<td><tr><td><td>c<td>', [['a', 'b', ''], ['', 'c', '']]),
    ('<tr><th colspan=2>A<th>B<tr><td>1<td>2<td>3', [['A', '', 'B'], ['1', '2', '3']]),
    ('<tr><td rowspan=2>a<td>1<td>2<tr><td>3<td>4<tr><td>b<td>5<td>6',
     [['a', '1', '2'], ['', '3', '4'], ['b', '5', '6']]),
    ('<tr><td colspan=100000>a<td>b<td>c<tr><td rowspan=100000>1<td>2<td>3', [['a', 'b', 'c'], ['1', '2', '3']])])
def test_a_table_keeps_its_rows_and_columns(page, rows):
    text = extract_html(f'<p>Before.</p><table>{page}</table><p>After.')
    lines = text.removeprefix('Before.').removesuffix('After.').strip('\n').split('\n')
    assert [line.split('\t') for line in lines] == rows

def test_tables_in_tables_and_captions_stay():
    text = extract_html('<table><caption>Grain</caption><tr><td>rye<td>1</table>'
                        '<table><tr><td>outer<td><table><tr><td>x<td>y<tr><td>z<td>w</table></table>')
    assert text.startswith('Grain\nrye\t1')
    for line in ('outer', 'x\ty', 'z\tw'): assert line in text

@pytest.mark.parametrize('page,want', [
    ('<ol start=4><li>four<li>five', ['4. four', '5. five']), ('<ol><li value=7>a<li>b', ['7. a', '8. b']),
    ('<ol reversed><li>c<li>b<li>a', ['3. c', '2. b', '1. a']), ('<ol type=a><li>x<li>y', ['a. x', 'b. y']),
    ('<ol start=3 type=I><li><a href=x>x</a>', ['III. x']), ('<ol start=-1><li>x<li>y', ['-1. x', '0. y']),
    ('<ol start=2><li>x<ol><li>y</ol><li><b>z</b>', ['2. x', '1. y', '3. z'])])
def test_items_have_the_numbers_of_the_page(page, want):
    assert [line.strip() for line in extract_html(page).split('\n') if line.strip()] == want

XHTML = 'xmlns="http://www.w3.org/1999/xhtml"'

HEAD_WITH_SCRIPT = '<head><script src="a.js"/><title>T</title></head>'
CDATA_SCRIPT = '<script>//<![CDATA[\nif (a < b) x("<p/>")\n//]]></script>'

@pytest.mark.parametrize('page,want', [
    (f'<html {XHTML}><head><title/></head><body><p>Text.</p></body></html>', ('', 'Text.')),
    (f'<?xml version="1.0"?><html {XHTML}>{HEAD_WITH_SCRIPT}<body><p>Text.</p></body></html>', ('T', 'Text.')),
    ('<html><head><title/><style/></head><body>Text.', ('', 'Text.')),
    (f'<html {XHTML}><body><div class="x"/><p>One <a id="y"/>two<br/>three</p></body></html>', ('', 'One two\nthree')),
    (f'<html {XHTML}><body>{CDATA_SCRIPT}<p><![CDATA[a < b]]></p></body></html>', ('', 'a < b')),
    ('<h:html xmlns:h="http://www.w3.org/1999/xhtml"><h:body><h:p>Text.</h:p></h:body></h:html>', ('', 'Text.')),
    (f'<!DOCTYPE html [<!ENTITY mill "The Mill">]><html {XHTML}><body><p>&mill; &amp; &eacute;</p></body></html>',
     ('', 'The Mill & é')),
    ('<script src=http://a.org/>var x = "code"</script><p>Text.', ('', 'Text.'))])
def test_xhtml_is_read_as_its_authors_meant_it(page, want): assert read_page(page) == want

GUTTER = '<td class="gutter"><pre>1\n2</pre></td>'

@pytest.mark.parametrize('inside,want', [
    ('<figure class="highlight"><pre><code>for x in y:\n    go(x)</code></pre></figure>', 'for x in y:\n    go(x)'),
    (f'<figure><table><tr>{GUTTER}<td class="code"><pre>a = 1\nb = 2</pre></td></tr></table></figure>',
     'a = 1\nb = 2'),
    ('<figure><table><tr><td>iron</td><td>7.9</td></tr></table></figure>', 'iron\t7.9'),
    ('<figure><img src="m.png"><figcaption>The mill after the flood.</figcaption></figure>',
     'The mill after the flood.'),
    ('<figure><blockquote><p>Water is life.</p></blockquote></figure>', 'Water is life.'),
    ('<blockquote>Water is life.<footer>A miller</footer></blockquote>', 'A miller'),
    ('<details><summary>More</summary><p>It is inside.</p></details>', 'More\n\nIt is inside.'),
    ('<h3><button aria-expanded="false">Why a mill?</button></h3>', 'Why a mill?'),
    ('<dl><dt>Sluice<dd>A gate for water.</dl>', 'Sluice\nA gate for water.'),
    ('<details><summary>More</summary>It is inside.</details>', 'More\nIt is inside.'),
    ('<iframe srcdoc="<p>A page in a page.</p>"></iframe>', 'A page in a page.'),
    ('<menu><li>Beans, cooked slowly</menu>', 'Beans, cooked slowly'),
    ('<aside><p>A word on the wheel.</p></aside>', 'A word on the wheel.'),
    ('<div role="alert">Mind the wheel.</div>', 'Mind the wheel.'),
    ('<pre>a = 1\t\t# one\n\tb = 2</pre>', 'a = 1\t\t# one\n\tb = 2'),
    ('<aside class="admonition note"><p>Mind the wheel.</p></aside>', 'Mind the wheel.'),
    ('<p hidden="until-found">Found by search.</p>', 'Found by search.'),
    ('<div class="hidden md:block">On large screens.</div>', 'On large screens.'),
    ('<my-box><template shadowrootmode="open"><p>In the shadow.</p></template></my-box>', 'In the shadow.')])
def test_what_is_text_stays(inside, want):
    assert want in extract_html(f'<article><p>Before.</p>{inside}<p>After.</p></article>')

LONG = 'The miller went to the mill early in the morning, and that was the day of the flood. ' * 3
ARTICLE = ''.join(f'<p>{i}. {LONG}</p>' for i in range(6))

@pytest.mark.parametrize('noise', [
    '<div class="related-posts"><h3>NOISE</h3><p>Another story about a baker and his oven.</p></div>',
    '<div class="postCategories">Filed under NOISE</div>', '<ul id="social-share"><li>NOISE</ul>',
    '<section class="newsletter"><p>Get NOISE in your inbox every week.</p></section>',
    '<ul><li><a href=/a>NOISE and how to avoid it</a><li><a href=/b>Ten more things about rivers</a></ul>',
    '<div><div><a href=/a>NOISE</a></div><div><a href=/b>Next</a></div></div>'])
def test_what_stands_around_an_article_goes(noise):
    page = f'<div class="page"><div class="text"><h1>The flood</h1>{ARTICLE}</div>{noise}</div>'
    text = extract_html(page)
    assert 'NOISE' not in text
    assert text.startswith('The flood')
    assert text.count('the day of the flood') == 18

TOPICS = """social-history category-theory menu-prices dinner-menu date-palms time-travel share-prices
    related-rates search-algorithms comment-on-law tag-grammar advertising-history cookie-recipe profit-sharing
    subscript-notation socialHistory rating-scales navigation-at-sea skip-lists credit-cards time-zone""".split()
TOWN = '<p>The town grew around its market, and the river carried the grain to the sea.</p>'
BLOCKS = {'div': TOWN,
          'section': f'<h2>The town</h2>{TOWN}',
          'table': '<tr><td>Soup of the river</td><td>4.50</td></tr><tr><td>Bread</td><td>2</td></tr>'}

@pytest.mark.parametrize('tag', BLOCKS)
@pytest.mark.parametrize('name', TOPICS)
def test_a_name_of_a_topic_is_no_name_of_furniture(name, tag):
    block = f'<{tag} class="{name}">{BLOCKS[tag]}</{tag}>'
    at_the_end = f'<article><h1>T</h1>{ARTICLE}{block}</article>'
    assert 'river' in extract_html(at_the_end)
    assert 'river' in extract_html(page_around(block))

def page_around(block):
    "Return a page with a block in the middle of its article."
    return f'<div class="page"><h1>T</h1>{ARTICLE}{block}{ARTICLE}</div>'

FURNITURE = ['social-share', 'related-posts', 'newsletter-box', 'site-footer', 'ads', 'socialIcons', 'widget_text']

@pytest.mark.parametrize('name', FURNITURE)
def test_running_text_stays_whatever_its_name_is_and_short_furniture_goes(name):
    short = f'<div class="{name}"><p>Tell your friends.</p></div>'
    assert 'friends' not in extract_html(page_around(short))
    paragraphs = ''.join(f'<p>{i}: the river rose again. {LONG}</p>' for i in range(3))
    long = f'<div class="{name}">{paragraphs}</div>'
    assert 'rose again' in extract_html(page_around(long))

@pytest.mark.parametrize('list_', [
    '<ul class="time-line"><li>1900 the mill was built<li>1950 it burned</ul>',
    '<ol class="ranking"><li>the mill<li>the bakery</ol>'])
def test_a_list_without_links_stays(list_):
    assert 'the mill' in extract_html(f'<div><h1>T</h1>{ARTICLE}{list_}{ARTICLE}</div>')

def test_a_menu_of_links_goes_and_a_menu_of_dishes_stays():
    links = ''.join(f'<li><a href="/{i}">Department number {i}</a></li>' for i in range(5))
    dishes = '<li>Soup 4.50</li><li>Bread 2.00</li>'
    menus = f'<ul class="main-menu">{links}</ul><ul class="menu">{dishes}</ul>'
    text = extract_html(f'<div><h1>T</h1>{ARTICLE}{menus}{ARTICLE}</div>')
    assert 'Soup' in text
    assert 'Department' not in text

SURVEYS = [f'<li><a href="/{i}">On the mills of river number {i}, a survey</a>, by A. Miller' for i in range(9)]

@pytest.mark.parametrize('page', [
    ''.join(f'<p class="paywall">{i} {LONG}</p>' for i in range(6)),
    f'<div class="content with-sidebar">{ARTICLE}</div>',
    ''.join(f'<div class="comment"><b>Ann {i}</b><p>{LONG}</p></div>' for i in range(9)),
    '<ul>' + ''.join(SURVEYS) + '</ul>',
    '<pre><code><span class="hljs-comment"># turn the wheel</span>\nturn()</code></pre>',
    '<h2 id="share-and-enjoy">Share and enjoy</h2><p>Short.'])
def test_a_name_or_a_link_alone_removes_no_text(page):
    kept = Counter(re.findall(r'\w+', extract_html(page)))
    without_tags = re.sub('<.*?>', ' ', page)
    assert kept == Counter(re.findall(r'\w+', without_tags))

def test_a_guess_that_leaves_nothing_is_taken_back():
    body = '<p>' + 'All of the text is in here. ' * 9
    assert len(extract_html(f'<div class="hidden">{body}</div><nav>Home</nav>')) > 200
    beside_a_teaser = extract_html(f'<div class="sidebar">Teaser</div>{body}')
    assert beside_a_teaser.startswith('All')
    assert 'Teaser' not in beside_a_teaser
    assert extract_html('<p>Short.</p><div class="cookies">We use cookies.</div>') == 'Short.'

@pytest.mark.parametrize('unit', ['<div>', '<ul><li>a', '<ol><li>', '<b>', '<table><tr><td>', '<a href=x>', '<pre>\n',
                                  '<!--', '&lt;', '<', '<svg><g>', '<p ', '<blockquote>x', '<dl><dd>a',
                                  '<select><option>', '</p>'])
def test_pages_made_to_hurt_come_out_no_larger_than_they_went_in(unit):
    for n in (100, 50_000):
        page = unit * n + 'end'
        assert len(extract_html(page)) <= 2 * len(page)

def test_a_process_reads_a_deep_page_within_little_memory(): output_of('read_deep_page')

SOUP = ['<p>', '</p>', '<div class="', '">', '<script>secret()</script>', '<style>secret{}</style>', 'word ', '&amp',
        '&#xFFFFFFF;', '<!--', '-->', '<![CDATA[', ']]>', '<table>', '<tr>',
        '<td>', '</div>', '\x00', '\ud83d', '<ul>', '<li>', '<pre>', '\n', '\t', '日', '<title>', '</title>', '<body>',
        '<frameset>', '<template>', '<plaintext', "='", '>']

TAGS = ['<p>', '</p>', '<div>', '</div>', 'word ', '<ul>', '<li>', '<b>', '</b>']

def test_tag_soup_never_raises():
    rng = random.Random(1)
    for _ in range(2000):
        page = ''.join(rng.choices(SOUP, k=rng.randint(1, 25)))
        extract_html(page).encode()

def test_scripts_never_come_through_tag_soup():
    rng = random.Random(2)
    for _ in range(300):
        inner = ''.join(rng.choices(TAGS, k=12))
        assert 'secret' not in extract_html(inner + '<script>secret()</script>' + inner)

def warc(name):
    "Yield the pages of a WARC file: (address, HTML)."
    from fastwarc.warc import ArchiveIterator, WarcRecordType
    with open(DATA/name, 'rb') as f:
        for r in ArchiveIterator(f, record_types=WarcRecordType.response):
            if 'html' not in (r.http_content_type or ''): continue
            yield r.headers['WARC-Target-URI'].strip('<>'), r.reader.read().decode('utf-8', 'replace')

def line_key(line): return ' '.join(re.findall(r'\w+', line.lower()))

def line_keys(text):
    "Return the lines of a text as their words, without those that have none."
    return {line_key(line) for line in text.split('\n')} - {''}

CRAWLS = ('whirlwind_warc/whirlwind.warc.gz', 'dolma_samples/warc/sample-0000.warc.gz',
          'dolma_samples/warc/sample-0001.warc.gz')

def pages_of_sites():
    "Return the pages of each site in the crawls, in their order, each page once."
    found = defaultdict(dict)
    for name in CRAWLS:
        for url, page in warc(name):
            site = urlsplit(url).netloc.removeprefix('www.')
            found[site][page] = None
    return [list(pages) for pages in found.values()]

def different_pages(site):
    "Return the lines of each page of a site, without pages that say what an earlier one said."
    _, everything = pages._library()
    lines = {}
    for page in site:
        found = line_keys(everything(page, alt_texts=False, list_bullets=False))
        if found not in lines.values(): lines[page] = found
    return lines

def sites():
    "Yield (page, lines that only this page of its site has, lines that at least half of the site's pages have)."
    for site in pages_of_sites():
        lines = different_pages(site)
        if len(lines) == 1: continue
        count = Counter()
        for found in lines.values(): count.update(found)
        at_least = max(2, len(lines) / 2)
        for page, found in lines.items():
            own = {line for line in found if count[line] == 1 and line.count(' ') > 6}
            shared = {line for line in found if count[line] >= at_least}
            yield page, own, shared

def score(extract, gold):
    "Return the shares of the characters of text and of surroundings that are kept."
    kept = noise = text = around = 0
    for page, own, shared in gold:
        out = extract(page)
        whole = f' {line_key(out)} '
        lines = {line_key(line) for line in out.split('\n')}
        kept += sum(len(line) for line in own if f' {line} ' in whole)
        text += sum(map(len, own))
        noise += sum(len(line) for line in shared if line in lines)
        around += sum(map(len, shared))
    return kept / text, noise / around

@needs_data
def test_real_pages_keep_their_text_and_lose_what_every_page_of_the_site_has():
    pytest.importorskip('fastwarc')
    gold = list(sites())
    assert len(gold) >= 20
    kept, noise = score(extract_html, gold)
    assert kept > .98
    assert noise < .15
    _, lay_out = pages._library()
    theirs, _ = score(lambda p: lay_out(p, main_content=True, alt_texts=False), gold)
    assert kept > theirs + .05

def words_in(text): return Counter(re.findall(r'\w+', text))

@needs_data
def test_common_crawls_text_of_the_same_page_has_every_word_of_ours():
    pytest.importorskip('fastwarc')
    (_, page), = warc('whirlwind_warc/whirlwind.warc.gz')
    text = extract_html(page)
    wet = (DATA/'whirlwind_warc/whirlwind.warc.wet').read_text(encoding='utf-8')
    _, their_text, *_ = wet.split('Content-Length: 4456')
    ours = words_in(text)
    theirs = words_in(their_text)
    assert (ours & theirs).total() / ours.total() > .98
    assert ours.total() < .8 * theirs.total()
    assert 'Escopete ye un municipio' in text
    assert 'mover a la barra lateral' not in text


# --- personal data ---

KEY = '-----BEGIN {0}PRIVATE KEY-----\n' + 'MIIEvQIBADANBgkqhkiG9w0BAQEFAASC\n' * 6 + '-----END {0}PRIVATE KEY-----'
MASKED = {
    'email': ['ada.l@maths.ox.ac.uk', 'first+last@sub.host.museum', 'X_9%s@a-b.de' % '', 'o@o.io'],
    'ip': ['8.8.8.8', '93.184.216.34', '2606:4700::6810:84e5', '2a00:1450:4001:81b:0:0:0:200e',
           '2a00:1450:4001:81b::200e'],
    'phone': ['+44 20 7946 0018', '+49 (0)30 901820', '+1 212-736-5000', '+33 1 42 68 53 00', '+4915112345678',
              '(212) 736-5000', '212-736-5000', '212.736.5000', '1-800-736-5000', '(718) 575 1816',
              '+32 (0)2 790 75 75'],
    'card': ['4111 1111 1111 1111', '4111-1111-1111-1111', '5555555555554444', '378282246310005', '3782 822463 10005',
             '6011 1111 1111 1117', '3056 930902 5904'],
    'iban': ['DE89 3704 0044 0532 0130 00', 'GB82WEST12345698765432', 'FR14 2004 1010 0505 0001 3M02 606',
             'NO93 8601 1117 947', 'MT84MALT011000012345MTLCAST001S'],
    'secret': ['AKIA' + 'Q2W3E4R5T6Y7U2I3', 'ghp_' + 'a1B2c3' * 6,
               'github_pat_' + 'aB3dE9xY7zQ' * 2 + '_' + 'kL5mN8pR' * 7, 'glpat-' + 'x9Y8z7' * 4,
               'xoxb-' + '123456789012-1234567890123-' + 'aBcD3fGh' * 3, 'sk_live_' + '4eC39HqLyjWD' * 2,
               'AIza' + 'x9Yz7' * 7,
               'eyJ' + 'hbGciOiJ' * 2 + '.eyJ' + 'zdWIiOiI' * 2 + '.' + 'c2lnbmF0' * 3,
               'hf_' + 'AbCdEfGhIjKlMnOpQ' * 2, KEY.format(''), KEY.format('RSA '), KEY.format('OPENSSH ')],
}
@pytest.mark.parametrize('kind,value', [(k, v) for k, vs in MASKED.items() for v in vs])
def test_each_kind_is_found_wherever_it_stands(kind, value):
    brackets = ('(', ')') if kind != 'card' else ('[', ']') # bare digits in round brackets are somebody's argument
    around = [('', ''), ('write ', ' now'), brackets, ('"', '"'), ('größer: ', ', ok'), ('a\n', '\nb'),
              ('x, ', '. Then'), ('', '\n')]
    for before, after in around:
        masked = f'{before}<{kind}>{after}'
        assert mask_personal(before + value + after) == (masked, {kind: 1}), (before, value, after)

HARMLESS = '''\
me@example.com|x@test|git@github.com:a/b.git|@decorator|W @ h|a@b.c(d)|user@localhost|name@|@name|10.0.0.1
192.168.1.255|127.0.0.1|0.0.0.0|255.255.255.255|224.0.0.1|300.1.1.1|1.2.3|1.2.3.4.5|v91.10.77.3
version 91.10.77.3|foo==91.10.77.3|section 3.2.14.1|3.2.1.4|3.2.2.10|::1|fe80::1|2001:db8::1|12:30:45
00:1A:2B:3C:4D:5E|std::vector|a[1::2]|2019-01-05|2019-01-05T12:30:45+0200|ISBN 978-0-306-40615-7|ISSN 1234-5678
(212) 555-0123|123-456-7890|212-136-5000|3.14159265358979|1,234,567,890|+1 to that|+999 12345678|1e+10000000000
x+4915112345678|550e8400-e29b-41d4-a716-446655440000|4111 1111 1111 1112|0000 0000 0000 0000|1234567812345670
9999999999999995|0.4111111111111111|default_rng(348932549825235)|DE88 3704 0044 0532 0130 00|ISO8859 CP1252
ABCD1234ABCD1234|ZZ89370400440532013000|-----BEGIN PRIVATE KEY-----
the -----BEGIN PRIVATE KEY----- line and the -----END PRIVATE KEY----- line|ghp_short|AKIAIOSFODNN7EXAMPLE
sk-learn is a package|eyJ.eyJ.x|api_key = "your-api-key-goes-here-1"|password = "correct horse battery staple"
token = get_token()|tokenizer = "bert-base-uncased-and-more-2"|sha256 = "q8Zt3LmX0vR7kP2wYb5N"|password: hunter2
'''.strip().replace('\n', '|').split('|')

@pytest.mark.parametrize('text', HARMLESS)
def test_what_only_looks_personal_stays(text):
    for around in ('{}', 'say {} now', '\n{}\n'):
        assert mask_personal(around.format(text)) == (around.format(text), {})

def test_assigned_secrets_keep_their_names():
    value = 'q8Zt3LmX0vR7' + 'kP2wYb5N'
    for code in ("api_key = '{}'", '"api-key": "{}"', "os.environ['AWS_SECRET_ACCESS_KEY'] = '{}'",
                 'client_secret="{}"', 'PASSWORD = "{}"'):
        assert mask_personal(code.format(value)) == (code.format('<secret>'), {'secret': 1})

def test_kinds_are_chosen_and_checked():
    text = 'a.b@uni.edu 8.8.8.8 +44 20 7946 0018'
    assert mask_personal(text, ('ip',)) == ('a.b@uni.edu <ip> +44 20 7946 0018', {'ip': 1})
    assert mask_personal(text, ()) == (text, {})
    assert mask_personal(text)[1] == mask_personal(text, PERSONAL)[1] == {'email': 1, 'ip': 1, 'phone': 1}
    with pytest.raises(UserError, match='name'): mask_personal(text, ('email', 'name'))

def random_text(rng, pieces, most): return ''.join(rng.choices(pieces, k=rng.randint(1, most)))

VALUES = [value for values in MASKED.values() for value in values]
AROUND = [' ', '', '\n', '-', '.', '+', '1', '(', ')', 'Tel. ', '@', ':', 'ä', '"', 'key = "', '4', 'x']

def test_masking_twice_changes_nothing_and_counts_what_it_wrote():
    rng = random.Random(2)
    for _ in range(3000):
        out, counts = mask_personal(random_text(rng, VALUES + AROUND, 8))
        assert mask_personal(out) == (out, {})
        written = Counter(re.findall('<(email|ip|phone|card|iban|secret)>', out))
        assert written == counts or sum(counts.values()) > 1

def everywhere(text):
    "Mask with every pattern on the whole text, except those that need a word before."
    for step in personal._STEPS:
        if step.pattern is not personal._LABELLED: text = step.pattern.sub(step.check, text)
    return text

def c4_texts():
    "Return a hundred texts of C4, or none where the data is not there."
    if not DATA.exists(): return []
    lines = (DATA/'web_demo'/'c4_demo.jsonl').read_text(encoding='utf-8').splitlines()
    return [json.loads(line)['text'] for line in lines[:100]]

def test_looking_first_finds_what_looking_everywhere_finds(docs):
    n_masked = 0
    for text in [d.text for d in docs] + c4_texts():
        _, counts = mask_personal(text)
        if everywhere(text) != text: assert counts
        n_masked += bool(counts)
    assert n_masked > 5

@pytest.mark.parametrize('run', ['1.', '1-', '+1', 'a@', 'a.', '@', '1111 ', 'DE11 ', 'AA00', '0:', '::', '"=', 'eyJ',
                                 'sk-', '-----BEGIN PRIVATE KEY-----', 'key="', 'Tel. ', '(212) ', 'xoxb-', '1', 'a',
                                 'aA1', '2001:'])
def test_long_runs_are_read_in_one_go(run):
    for text in (run * 30_000, ' '.join([run] * 20_000), '\n'.join([run] * 20_000)):
        mask_personal(text)

def dolma(*parts):
    "Return the records of a file of Dolma's samples."
    with gzip.open(DATA.joinpath('dolma_samples', 'provided', *parts), 'rt', encoding='utf-8') as f:
        return [json.loads(line) for line in f]

def labelled_addresses(texts):
    "Return, by document, the addresses that Dolma labelled with a high score."
    wanted = {}
    for record in dolma('attributes', 'pii', '000.json.gz'):
        id = record['id']
        labels = record['attributes'].get('pii', {}).get('email', [])
        wanted[id] = Counter(texts[id][start:end] for start, end, score in labels if score > .5)
    return wanted

@needs_data
def test_labelled_addresses_of_a_crawl():
    "Find every address that Dolma labelled with a high score, and besides only telephone numbers, which it has not."
    texts = {d['id']: d['text'] for d in dolma('documents', '000.json.gz')}
    wanted = labelled_addresses(texts)
    assert sum(map(len, wanted.values())) == 3
    for id, text in texts.items():
        out, counts = mask_personal(text)
        n_phones = len(re.findall(r'(?:Tel\.?|Fax):? [+\d]', text))
        assert counts.get('email', 0) == wanted[id].total()
        assert counts.get('phone', 0) == n_phones
        assert set(counts) <= {'email', 'phone'}
        for address in wanted[id]: assert address not in out


# --- repair ---

@needs_data
def test_ftfys_cases_that_it_solves_are_solved_and_its_known_failures_are_ours():
    solved = failed = 0
    for f in sorted((DATA/'ftfy_cases').glob('*.json')):
        for case in json.loads(f.read_text(encoding='utf-8')):
            ok = repair(case['original']) == case.get('fixed-encoding', case['fixed'])
            assert ok == (case['expect'] == 'pass'), case['label']
            solved += ok
            failed += not ok
    assert (solved, failed) == (151, 10)

def looks_bad(text):
    _, _, suspicious = cleaning._library()
    return any(map(suspicious, cleaning._RUN.findall(text)))

def letters_of_mojibake():
    from ftfy.badness import MOJIBAKE_CATEGORIES
    category = re.compile(f"[{''.join(MOJIBAKE_CATEGORIES.values())}ЂœŒў‚Ä†°β€√≈×à]")
    return [chr(c) for c in range(128, 0x2600) if category.match(chr(c))]

def test_the_quick_look_never_says_no_where_ftfy_says_yes():
    from ftfy.badness import is_bad
    letters = [*letters_of_mojibake(), *' aZ0.,?']
    rng = random.Random(3)
    hits = 0
    for _ in range(60_000):
        text = random_text(rng, letters, 4)
        if not is_bad(text): continue
        hits += 1
        assert text.isascii() or looks_bad(text), ascii(text)
    assert hits > 5000

@pytest.mark.parametrize('text', ['вЂ', 'ГўВЂВ“a', 'β€™', 'ā€', '‚Äì', '√±', 'Ã¡', 'a Â b', 'Â a', 'aà²'])
def test_the_quick_look_sees_common_damage(text):
    from ftfy.badness import is_bad
    assert looks_bad(text) or not is_bad(text)

def test_repair_of_a_text_is_that_of_its_lines():
    from ftfy import fix_encoding
    rng = random.Random(4)
    parts = ['cafÃ©', 'Ã©', 'â€™', 'ÃƒÂ¶', ' ', 'x', 'ä', '“', '–', '日本', 'Привет', '\n', 'Â', 'Ð¿Ñ€Ð¸']
    for _ in range(1500):
        s = ''.join(rng.choices(parts, k=rng.randint(1, 10)))
        assert repair(s) == '\n'.join(map(fix_encoding, s.split('\n')))


# --- normalise ---

@pytest.mark.parametrize('text', ['می\u200cخواهم', 'क्\u200dष', 'ක්\u200dර', '👩\u200d👩\u200d👧', '❤\ufe0f\u200d🔥',
                                  '🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f', 'é', 'ǅ', 'ﬁ',
                                  '　全角', 'naïve', '\ta\n b'])
def test_spelling_stays(text): assert normalise(text) == text

@pytest.mark.parametrize('text,want', [
    ('pass\u200dword', 'password'), ('a\u200cb', 'ab'), ('\u200dx', 'x'), ('a\u200b\u200b', 'a'),
    ('\ufeffa\ufeff', 'a'), ('co\xadop', 'coop'), ('a\u202eb\u202c', 'ab'), ('\u2066a\u2069', 'a'),
    ('hi\U000e0068\U000e0069', 'hi'), ('e\u0301', 'é'), ('a\r\nb\rc\u2028d\x85e\x0cf', 'a\nb\nc\nd\ne\nf'),
    ('\x1b[1;31mred\x1b[0m', 'red'), ('a\x00\x07b', 'ab'), ('\ud800x', 'x'), ('a\ufffcb\ufdd0', 'ab')])
def test_what_is_not_there_to_be_read_goes(text, want): assert normalise(text) == want

def test_code_keeps_its_letters_and_its_lines():
    assert normalise('s = "e\u0301"', code=True) == 's = "e\u0301"'
    assert normalise('\x0cdef f():\r\n\treturn "a\x0cb\u2028c"', code=True) == 'def f():\n\treturn "a b c"'
    assert normalise('x = 1 # \u202e hidden \u2066', code=True) == 'x = 1 #  hidden '


# --- clean ---

NASTY = ['\r\n', '\r', '\n', '\n\n\n\n\n', '\t', '    ', ' ', '\xa0', '\x00', '\x0c', '\x1b[31m', '\x1b', '\u200b',
         '\u200d', '\u200c', '\ufeff', '\u202e', '\ud800', '\u2028', '\x85', '\xad', 'e\u0301', '\u0301', 'é', 'Ã©',
         'â€™', 'ÃƒÂ¶', 'a', 'Word', '#', '“', '日本', 'Ã', 'Â', '\x9d', '👩‍👧', '🏴', '\U000e0067', '\u2009', '\u3000',
         'क्', '<p>', '&eacute;', '<pre>', '<script>', 'a@b.de', '+44 20 7946 0018']

UNSEEN = set('\r\x00\x0c\x1b\u200b\ufeff\u202e\u2028')

@pytest.mark.parametrize('kind', ['prose', 'code', 'licence', 'html'])
def test_cleaning_and_masking_twice_is_doing_it_once(kind):
    rng = random.Random(5)
    for _ in range(2500):
        once = clean(Doc(random_text(rng, NASTY, 14), 'x', kind=kind))
        assert clean(once) is once
        assert once.kind == ('prose' if kind == 'html' else kind)
        once.text.encode()
        assert not set(once.text) & UNSEEN
        assert once.text == once.text.strip('\n')

def any_character(rng): return chr(int(2 ** rng.uniform(0, 20.08)))

def test_any_characters_at_all():
    rng = random.Random(6)
    for kind in ('prose', 'code', 'html') * 400:
        n = rng.randint(0, 40)
        text = ''.join(any_character(rng) for _ in range(n))
        once = clean(Doc(text, 'x', kind=kind))
        once.text.encode()
        assert clean(once).text == once.text

def test_a_page_becomes_prose_and_keeps_its_title():
    page = '<title>T &amp; t</title><nav>Home</nav><h1>H</h1><p>cafÃ©&nbsp;x'
    d = clean(Doc(page, 'p', source='crawl', kind='html', language='fr', meta={'url': 'u'}))
    meta = {'url': 'u', 'title': 'T & t'}
    assert d == Doc('H\n\ncafé x', 'p', source='crawl', kind='prose', language='fr', meta=meta)
    assert clean(Doc('<nav>x</nav>', 'p', kind='html')) == Doc('', 'p', kind='prose')

def program(text):
    "Return what the parser sees, without the white space in strings (that at line ends is removed)."
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            visible = ''.join(c for c in node.value if ord(c) > 31 or c == '\n')
            node.value = re.sub(r'\s+', '', visible)
    return ast.dump(tree)

def test_python_is_the_same_program_after_cleaning(docs):
    seen = 0
    for d in [d for d in docs if d.kind == 'code'][:120]:
        try: before = program(d.text)
        except (SyntaxError, ValueError): continue
        after = clean(d).text
        assert program(after) == before, d.id
        ours = ['', *after.split('\n')]
        theirs = [line for line in d.text.split('\n') if line.isascii() and line.isprintable()]
        assert all(line.rstrip() in ours for line in theirs)   # lines and their indentation
        seen += 1
    assert seen > 80

def test_the_same_in_every_process():
    first, second = [output_of('clean_digest', PYTHONHASHSEED=seed) for seed in '01']
    assert first == second

def test_importing_costs_little():
    assert heavy_imports(['llmbook.clean.text'], ['torch', 'fastai', 'resiliparse', 'ftfy', 'wcwidth']) == {}


# --- words of every script ---

@pytest.mark.parametrize('text,words', [
    ('', []), ('  one\ntwo, three. ', ['one', 'two,', 'three.']), ('Größe 5 км — да', ['Größe', '5', 'км', '—', 'да']),
    ('한국어는 띄어 쓴다.', ['한국어는', '띄어', '쓴다.']), ('हिन्दी में लिखो।', ['हिन्दी', 'में', 'लिखो।']),
    ('你好，世界。', ['你', '好，', '世', '界。']), ('用Python 3.12写', ['用', 'Python', '3.12', '写']),
    ('コンピュータは速い。', ['コンピュータ', 'は', '速', 'い。']), ('น้ำใจเธอ', ['น้ำ', 'ใจ', 'เธ', 'อ']),
    ('ຂ້ອຍຮັກເຈົ້າ', ['ຂ້', 'ອ', 'ຍ', 'ຮັ', 'ກ', 'ເຈົ້າ']), ('ខ្ញុំស្រលាញ់', ['ខ្ញុំ', 'ស្រ', 'លា', 'ញ់']),
    ('မန္တလေး', ['မ', 'န္တ', 'လေး']), ('བོད་ཡིག་ནི།', ['བོད་', 'ཡིག་', 'ནི།']), ('猫\u3000犬', ['猫', '犬']),
    ('𠀀𠀁', ['𠀀', '𠀁']),
])
def test_words_in_any_script(text, words):
    assert split_words(text) == words
    assert count_words(text) == len(words)

def test_words_lose_no_character_and_leave_spaced_text_alone():
    rng = random.Random(1)
    pieces = ['a', 'é', ' ', '\n', '9', '.', '「', '」', '猫', 'は', 'カ', 'ー', 'ไ', 'ท', 'ำ', '้', 'ក', '្', 'မ', '္', 'བ',
              '་', 'ह', 'ि']
    for _ in range(2000):
        text = ''.join(rng.choices(pieces, k=rng.randint(0, 40)))
        words = split_words(text)
        assert ''.join(words) == ''.join(text.split())
        assert space_words(text).split() == words
        if not has_unspaced(text):
            assert words == text.split()
            assert space_words(text) is text
