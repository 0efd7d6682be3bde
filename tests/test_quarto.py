"""What Quarto would do with the site, checked on what it reads: its configuration, its colours, and processed notebooks.

Quarto itself is not needed. Where Pandoc is installed, which Quarto calls, a few pages go through it.
"""
import posixpath, re, sys
from functools import cache
from pathlib import Path
import pytest, yaml
from fastcore.nbio import read_nb
import quarto

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/'tools'))
import course, docprocs
from house import page

CONFIGURATION = yaml.safe_load((ROOT/'_quarto.yml').read_text(encoding='utf-8'))
PAGES = ['index.ipynb', 'book/00_course.ipynb', 'book/03_where_text_comes_from.ipynb', 'book/07_tokens.ipynb',
         'book/92_glossary.ipynb', 'api/13_dedup/01_minhash.ipynb']

# the options of Quarto's schema that this site uses
OPTIONS = {
    'format.html': ['theme', 'toc', 'code-overflow', 'highlight-style', 'html-math-method', 'css'],
    'website': ['title', 'description', 'favicon', 'page-navigation', 'search', 'open-graph', 'twitter-card', 'sidebar'],
    'website.sidebar': ['style', 'collapse-level'],
}


@pytest.mark.parametrize('place', OPTIONS)
def test_options_are_quartos(place):
    found = CONFIGURATION
    for name in place.split('.'): found = found[name]
    assert set(found) <= set(OPTIONS[place])


def test_files_of_the_configuration_are_there():
    html = CONFIGURATION['format']['html']
    styles = [name for names in html['theme'].values() for name in names if name.endswith('.scss')]
    named = [*styles, html['css'], CONFIGURATION['website']['favicon'], *CONFIGURATION['metadata-files']]
    assert [name for name in named if not (ROOT/'nbs'/name).exists()] == []


# ---- colours -------------------------------------------------------------------------------------------------------

def colours(name):
    "Return the colours that a file of SCSS defines."
    text = (ROOT/f'nbs/{name}.scss').read_text(encoding='utf-8')
    return dict(re.findall(r'^\$([\w-]+): (#[0-9a-f]{6});', text, re.M))


def luminance(colour):
    shares = [int(colour[i:i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = [x / 12.92 if x <= .04045 else ((x + .055) / 1.055) ** 2.4 for x in shares]
    return .2126 * red + .7152 * green + .0722 * blue


def contrast(one, other):
    darker, lighter = sorted([luminance(one), luminance(other)])
    return (lighter + .05) / (darker + .05)


def test_contrast_is_what_the_guidelines_say():
    assert contrast('#000000', '#ffffff') == pytest.approx(21)
    assert contrast('#767676', '#ffffff') == pytest.approx(4.54, abs=.01)


TEXTS = [('body-color', 'body-bg'), ('link-color', 'body-bg'), ('text-muted', 'body-bg'), ('sidebar-fg', 'sidebar-bg'),
         ('link-color', 'sidebar-bg'), ('text-muted', 'sidebar-bg'), ('code-color', 'code-bg'), ('link-color', 'code-bg')]


@pytest.mark.parametrize('theme', ['light', 'dark'])
@pytest.mark.parametrize('text, ground', TEXTS)
def test_colours_can_be_read(theme, text, ground):
    found = colours(theme)
    assert contrast(found[text], found[ground]) >= 4.5


def test_the_rules_use_colours_that_both_themes_have():
    used = set(re.findall(r'\$([\w-]+)', (ROOT/'nbs/theme.scss').read_text().partition('scss:rules')[2]))
    assert used
    assert used <= set(colours('light')) and used <= set(colours('dark'))


# ---- pages ---------------------------------------------------------------------------------------------------------

@cache
def looks():
    "Return page -> what it holds, for the pages that are tried."
    found = {}
    for name in PAGES:
        notebook = read_nb(ROOT/'nbs'/name)
        docprocs.QuartoProcessors()(notebook)
        html, warnings = quarto.converted(quarto.as_markdown(notebook.cells))
        assert not warnings, (name, warnings)
        found[f'{page(name)}.html'] = quarto.Look(html)
    return found


def target(of, link):
    "Return the page and the anchor that a link of a page leads to."
    path, _, anchor = link.partition('#')
    if not path: return of, anchor
    if not path.startswith('/'): path = posixpath.normpath(posixpath.join(posixpath.dirname(of), path))
    path = path.lstrip('/')
    return (f'{page(path)}.html' if path.endswith('.ipynb') else path), anchor


@quarto.pandoc_only
def test_links_between_pages_hold():
    n_checked = 0
    for name, look in looks().items():
        for link in look.links:
            to, anchor = target(name, link)
            if re.match('[a-z]+:', link) or to not in looks() or not anchor: continue
            n_checked += 1
            assert anchor in looks()[to].anchors, (name, link)
    assert n_checked > 100


@quarto.pandoc_only
def test_pages_ask_no_other_host():
    asked = {name: [x for x in look.loads if re.match('(https?:)?//', x)] for name, look in looks().items()}
    assert not any(asked.values()), asked


@quarto.pandoc_only
def test_every_picture_has_words():
    wordless = {name: look.wordless for name, look in looks().items() if look.wordless}
    assert not wordless


@quarto.pandoc_only
def test_all_markdown_is_read_as_it_is_meant():
    "A list without an empty line before it, or a fence of another dialect, would stand on the page as it is written."
    left = {}
    for name, look in looks().items():
        marks = [re.findall(r'\n(?:[-*] |#{1,4} |:::|> |</?\w+>).{0,40}', text) for text in look.text]
        if any(marks): left[name] = [mark for found in marks for mark in found]
    assert not left


def test_links_lead_to_headings_that_are_there():
    "nbdev links to names of the package, also to those that no page shows."
    def led(address): return docprocs.NAME_LINK.sub(docprocs.documented_anchor, f'[x](/api/m.html#{address})')
    assert led('lm_learner') == '[x](/api/m.html#lm_learner)'
    assert led('chatformat.no_such_method') == '[x](/api/m.html#chatformat)'
    assert led('_private') == '[x](/api/m.html)'


@quarto.pandoc_only
def test_a_function_has_its_source_below_it():
    notebook = read_nb(ROOT/'nbs/api/13_dedup/01_minhash.ipynb')
    docprocs.QuartoProcessors()(notebook)
    text, _ = quarto.converted(quarto.as_markdown(notebook.cells))
    assert re.search(r'id="word_hashes".*?<summary>\s*source\s*</summary>.*?def word_hashes\(', text, re.S)


@quarto.pandoc_only
def test_anchors_of_both_builds_are_the_same():
    headings = ['Learning rate', 'robots.txt', 'Cache (KV cache)', '8-bit weights', 'ROUGE-L', 'A line: two, and three']
    html, _ = quarto.converted('\n\n'.join(f'## {heading}' for heading in headings))
    assert quarto.Look(html).anchors == [course.anchor(heading) for heading in headings]
