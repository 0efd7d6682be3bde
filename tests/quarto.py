"""What Quarto would make of the processed notebooks, as far as Pandoc can tell: Quarto writes its Markdown and calls it.

Quarto turns a notebook into Markdown (front matter, cells as divs, outputs as fences) and hands it to Pandoc. The same
two steps are done here, without Quarto's filters: enough to see headings, anchors, links, pictures, math and raw HTML.
"""
import html, re, shutil, subprocess
from html.parser import HTMLParser
import pytest

PANDOC = shutil.which('pandoc')
pandoc_only = pytest.mark.skipif(not PANDOC, reason='no pandoc on this machine')
OPTION = re.compile(r'^#\|\s*([\w-]+)\s*:\s*(.*?)\s*$', re.M)
PICTURES = {'image/png': 'png', 'image/svg+xml': 'svg', 'image/jpeg': 'jpg'}


def fenced(text, mark=''):
    "Return text in a fence that is longer than any inside it."
    longest = max(map(len, re.findall('`+', text)), default=0)
    fence = '`' * max(3, longest + 1)
    return f'{fence}{mark}\n{text}\n{fence}'


def options_of(source):
    "Return the options of a cell, its lines `#| name: value`."
    return {name: value.strip('"') for name, value in OPTION.findall(source)}


def without_options(source):
    return '\n'.join(line for line in source.splitlines() if not line.startswith('#|')).strip('\n')


def output_markdown(output, options, number):
    "Return an output as Quarto writes it: Markdown as it is, a picture, or text in a fence."
    data = output.get('data', {})
    for kind, ending in PICTURES.items():
        if kind not in data: continue
        words = html.escape(options.get('fig-alt', ''))
        return f'![](figure-{number}.{ending}){{fig-alt="{words}"}}'
    if 'text/markdown' in data: return ''.join(data['text/markdown'])
    text = ''.join(data.get('text/plain', '') or output.get('text', ''))
    return fenced(text) if text else ''


def cell_markdown(cell, number):
    "Return one cell as Quarto writes it."
    source = ''.join(cell['source'])
    if cell['cell_type'] != 'code': return source
    options = options_of(source)
    if options.get('include') == 'false': return ''
    parts = []
    if options.get('echo') != 'false': parts.append(fenced(without_options(source), ' {.python .cell-code}'))
    if options.get('output') != 'false':
        for output in cell.get('outputs', []):
            written = output_markdown(output, options, number)
            if options.get('output') != 'asis': written = f'::: {{.cell-output}}\n{written}\n:::'
            parts.append(written)
    inside = '\n\n'.join(parts)
    return inside if options.get('output') == 'asis' else f':::: {{.cell}}\n{inside}\n::::'


def as_markdown(cells):
    "Return the cells of a processed notebook as the Markdown that Quarto gives to Pandoc."
    return '\n\n'.join(cell_markdown(cell, number) for number, cell in enumerate(cells))


def converted(markdown):
    "Return Pandoc's HTML of Markdown, and what it warned of."
    command = [PANDOC, '--from', 'markdown', '--to', 'html5', '--mathml', '--no-highlight', '--wrap', 'preserve']
    done = subprocess.run(command, input=markdown, capture_output=True, text=True, check=True)
    return done.stdout, done.stderr


class Look(HTMLParser):
    "What a page holds: its anchors, its links, what it loads, pictures without words, and its text outside code."
    LOADS = {'script': 'src', 'img': 'src', 'link': 'href', 'iframe': 'src', 'source': 'src'}

    def __init__(self, text):
        super().__init__()
        self.anchors, self.links, self.loads, self.wordless, self.text = [], [], [], [], []
        self.in_code = 0
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        said = dict(attributes)
        if 'id' in said: self.anchors.append(said['id'])
        if tag == 'a' and 'href' in said: self.links.append(said['href'])
        if tag in self.LOADS and said.get(self.LOADS[tag]): self.loads.append(said[self.LOADS[tag]])
        is_told = said.get('alt') or said.get('data-fig-alt')
        if tag == 'img' and not is_told: self.wordless.append(said.get('src', '')[:60])
        if tag in ('pre', 'code', 'style', 'script'): self.in_code += 1

    def handle_endtag(self, tag):
        if tag in ('pre', 'code', 'style', 'script'): self.in_code -= 1

    def handle_data(self, data):
        if not self.in_code: self.text.append(data)
