"""What the tools and the tests need to know of the repository: its notebooks, their numbers, the modules they make."""
import json, re
from pathlib import Path
import yaml

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_EXP = re.compile(r'^\s*#\|\s*default_exp\s+([\w.]+)', re.M)


def notebooks(root=ROOT):
    "Every notebook below nbs/, in the order of the flow: index, book, api, records."
    rank = {'book': 1, 'api': 2, 'records': 3}
    found = [p for p in (root/'nbs').rglob('*.ipynb') if not any(x[0] in '._' for x in p.relative_to(root).parts)]
    return sorted(found, key=lambda p: (rank.get(p.parent.name, 0), number(p) is None, number(p) or 0, p.name))


def number(path):
    "The number a notebook's name starts with, or None."
    m = re.match(r'\d+', path.name)
    return int(m[0]) if m else None


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
    "A notebook's page on the site: as nbdev has it, the number goes (`api/10_data.sources.ipynb`: `api/data.sources`)."
    return re.sub(r'(^|/)\d+[a-zA-Z0-9]*_', r'\1', name.lower().removesuffix('.ipynb'))


def front(source):
    "What nbdev keeps of a title's cell in a processed notebook: title, description, output-file."
    return yaml.safe_load(re.match(r'\s*---\n(.*?)\n---', source, re.S)[1])
