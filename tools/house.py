"""What the tools and the tests need to know of the repository: its notebooks, their numbers, the modules they make."""
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
    "A notebook's cells as (type, source, outputs)."
    nb = json.loads(path.read_text(encoding='utf-8'))
    return [(c['cell_type'], ''.join(c['source']), c.get('outputs', [])) for c in nb['cells']]


def module(path):
    "The module a notebook makes (`data.sources`), or None."
    return next((m[1] for kind, src, _ in cells(path) if kind == 'code' and (m := DEFAULT_EXP.search(src))), None)


def title(path):
    "A notebook's first heading."
    return next((m[1].strip() for kind, src, _ in cells(path) if kind == 'markdown' and (m := re.match(r'# (.+)', src))), path.stem)


def page(name):
    "A notebook's page on the site: as nbdev has it, the number goes (`api/10_read/08_sources.ipynb`: `api/read/sources`)."
    return re.sub(r'(^|/)\d+[a-zA-Z0-9]*_', r'\1', name.lower().removesuffix('.ipynb'))


def front(source):
    "What nbdev keeps of a title's cell in a processed notebook: title, description, output-file."
    return yaml.safe_load(re.match(r'\s*---\n(.*?)\n---', source, re.S)[1])
