"""Write nbs/sidebar.yml: the start page, the book, then the rooms in the order that data walks through them."""
import yaml
from house import ROOT, notebooks, number

ROOMS = {0: 'Foundations', 2: 'Text, parts and rules', 10: 'Data', 20: 'Model', 28: 'Train', 39: 'Generate', 49: 'Tune', 60: 'Evaluate', 67: 'Report', 71: 'Widgets', 80: 'Journey'}
HEAD = '# Written by tools/sidebar.py (make export); not edited by hand.\n'


def section(path):
    "The heading a notebook stands under; the start page stands under none."
    if path.parent.name == 'book': return 'The book'
    if path.parent.name == 'records': return 'Records'
    if path.parent.name == 'api': return 'Journey' if number(path) is None else ROOMS[max(n for n in ROOMS if n <= number(path))]


def contents(root=ROOT):
    "The sidebar as Quarto wants it: files, and sections of files."
    res = []
    for p in notebooks(root):
        head, name = section(p), p.relative_to(root/'nbs').as_posix()
        if head is None: res.append(name)
        elif res and isinstance(res[-1], dict) and res[-1]['section'] == head: res[-1]['contents'].append(name)
        else: res.append({'section': head, 'contents': [name]})
    return res


def text(root=ROOT):
    "What nbs/sidebar.yml should hold."
    return HEAD + yaml.safe_dump({'website': {'sidebar': {'contents': contents(root)}}}, sort_keys=False)


if __name__ == '__main__':
    (ROOT/'nbs/sidebar.yml').write_text(text())
    print(f'nbs/sidebar.yml: {len(notebooks())} notebooks')
