"""Write README.md from nbs/index.ipynb without Quarto.

nbdev processes the notebook, nbconvert turns it into Markdown, and the links are made to fit the top folder.
"""
import os, re, sys
from nbconvert import MarkdownExporter
from nbdev.processors import FilterDefaults
from nbformat import from_dict
from fastcore.nbio import read_nb
from house import ROOT, front

NOTE = '<!-- Written by tools/readme.py from nbs/index.ipynb; not edited by hand. -->\n\n'
FENCES = re.compile(r'^(```.*?^```)', re.S | re.M)
SITE_LINK = re.compile(r'\[([^\]]+)\]\(/+api/[^)]*\)')
RELATIVE = re.compile(r'(\]\()(?![a-z]+:|[/#])')


def processed():
    "Return the start page's cells with nbdev's directives carried out, as plain dicts."
    os.chdir(ROOT) # nbdev looks for its configuration from here
    os.environ['IN_TEST'] = '1'
    nb = read_nb(ROOT/'nbs/index.ipynb')
    FilterDefaults()(nb)
    return [dict(c) for c in nb.cells if c.get('source')]


def tidy(cell):
    "Return one cell without its directives; the title that nbdev moved to the front matter becomes a heading again."
    kind = cell['cell_type']
    src = ''.join(cell['source']) # also of a text, which is joined to itself
    if kind == 'raw':
        head = front(src)
        lines = [f"# {head['title']}"]
        if 'description' in head: lines.append(f"> {head['description']}")
        return dict(cell_type='markdown', metadata={}, source='\n\n'.join(lines))
    shown = [line for line in src.splitlines() if not line.startswith(('#| ', '<!-- WARNING'))]
    res = dict(cell_type=kind, metadata={}, source='\n'.join(shown))
    if kind == 'code': res |= dict(execution_count=None, outputs=cell.get('outputs', []))
    return res


def prose(text):
    "Put nbs/ before relative links, and remove links into the site, which has no address yet."
    return RELATIVE.sub(r'\1nbs/', SITE_LINK.sub(r'\1', text))


def text():
    "Return what README.md should hold."
    cells = [c for c in map(tidy, processed()) if c['source'].strip()]
    nb = from_dict(dict(nbformat=4, nbformat_minor=4, metadata={'language_info': {'name': 'python'}}, cells=cells))
    body, _ = MarkdownExporter().from_notebook_node(nb)
    body = ''.join(part if part.startswith('```') else prose(part) for part in FENCES.split(body))
    return NOTE + re.sub(r'\n{3,}', '\n\n', body).strip() + '\n'


if __name__ == '__main__':
    if '--stdout' in sys.argv: sys.stdout.write(text())
    else:
        (ROOT/'README.md').write_text(text())
        print('README.md written')
