"""Give each notebook's title a cell of its own.

nbdev turns the cell that starts with `# Title` into the page's title and description (its `> ` line, also the module's
docstring) and drops whatever else stands in that cell. So the introduction has to start in the next one.
"""
import hashlib, json
from house import ROOT, notebooks


def rest(source):
    "Return (title and description, what else the cell holds)."
    lines = source.splitlines()
    n = 1
    while n < len(lines) and (not lines[n].strip() or lines[n].startswith('>')): n += 1
    return '\n'.join(lines[:n]).strip(), '\n'.join(lines[n:]).strip()


def title_cell(nb):
    "Return the index of the cell with the title, or None."
    for i, cell in enumerate(nb['cells']):
        if cell['cell_type'] == 'markdown' and ''.join(cell['source']).startswith('# '): return i


def crowded(path):
    "Return whether text shares the title's cell."
    nb = json.loads(path.read_text(encoding='utf-8'))
    i = title_cell(nb)
    return i is not None and bool(rest(''.join(nb['cells'][i]['source']))[1])


def split(path):
    "Move the text in the title's cell to a cell of its own."
    nb = json.loads(path.read_text(encoding='utf-8'))
    i = title_cell(nb)
    cell = nb['cells'][i]
    source = ''.join(cell['source'])
    head, body = rest(source)
    digest = hashlib.sha1(f'markdown{body}'.encode())
    name = digest.hexdigest()[:8]
    new = dict(cell, id=name, source=body.splitlines(True))
    cell['source'] = head.splitlines(True)
    nb['cells'].insert(i + 1, new)
    text = json.dumps(nb, indent=1, ensure_ascii=False, sort_keys=True)
    path.write_text(f'{text}\n', encoding='utf-8')


if __name__ == '__main__':
    for p in notebooks():
        if not crowded(p): continue
        split(p)
        print(f'{p.relative_to(ROOT)}: the introduction moved out of the title cell')
