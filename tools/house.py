"""What the tools and the tests know of the repository: its notebooks, their places, the modules they make."""
import json, re
from pathlib import Path
import yaml

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_EXP = re.compile(r'^\s*#\|\s*default_exp\s+([\w.]+)', re.M)
PARTS = ('', 'book', 'api', 'records')  # of nbs/, in the order of reading; the start page lies beside them


def notebooks(root=ROOT):
    "Return every notebook below nbs/ in the order of the flow: start page, book, api, records."
    found = [p for p in (root/'nbs').rglob('*.ipynb') if not any(x[0] in '._' for x in p.relative_to(root).parts)]
    return sorted(found, key=lambda p: (PARTS.index(part(p)), place(p), p.name))


def part(path):
    "Return the part of nbs/ that a notebook belongs to: 'book', 'api', 'records', or '' for the start page."
    inside = path.parts[path.parts.index('nbs') + 1:-1]
    return inside[0] if inside else ''


def place(path):
    "Return a notebook's place in the flow, (folder number, notebook number); a name without a number counts as 0."
    return tuple(int(m[0]) if (m := re.match(r'\d+', name)) else 0 for name in (path.parent.name, path.name))


def cells(path):
    "Return a notebook's cells as (type, source, outputs)."
    nb = json.loads(path.read_text(encoding='utf-8'))
    return [(c['cell_type'], ''.join(c['source']), c.get('outputs', [])) for c in nb['cells']]


def module(path):
    "Return the module that a notebook makes, such as `read.sources`, or None."
    for kind, src, _ in cells(path):
        found = DEFAULT_EXP.search(src) if kind == 'code' else None
        if found: return found[1]
    return None


def title(path):
    "Return a notebook's first heading."
    source = title_cell(path)
    return source.splitlines()[0].removeprefix('# ').strip() if source else path.stem


def title_cell(path):
    "Return the text of the cell that begins with a notebook's title, or ''."
    return next((src for kind, src, _ in cells(path) if kind == 'markdown' and src.startswith('# ')), '')


def description(path):
    "Return the line that begins with `> ` below a notebook's title, or ''."
    return next((line[1:].strip() for line in title_cell(path).splitlines() if line.startswith('>')), '')


def page(name):
    "Return a notebook's page as nbdev names it: `api/10_read/10_sources.ipynb` becomes `api/10_read/sources`."
    folder, _, file = name.lower().removesuffix('.ipynb').rpartition('/')
    file = re.sub(r'^\d+[a-z0-9]*_', '', file)
    return f'{folder}/{file}' if folder else file


def front(source):
    "Return what nbdev keeps of a title's cell in a processed notebook: title, description, output-file."
    return yaml.safe_load(re.match(r'\s*---\n(.*?)\n---', source, re.S)[1])
