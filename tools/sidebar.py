"""Write nbs/sidebar.yml: the start page, the book, then the stages, each with its folders folded inside, in the order of the flow."""
import yaml
from house import ROOT, notebooks, part

STAGES = {  # heading -> the folders of nbs/api that stand under it
    'Foundations': ('base', 'show'),
    'Data': ('read', 'clean', 'filters', 'dedup', 'tokens', 'prepare'),
    'Architecture': ('model', 'plan'),
    'Pre-training': ('distributed', 'train', 'checkpoint', 'parallel', 'pretrain'),
    'Writing': ('generate',),
    'Fine-tuning': ('tune',),
    'Evaluation': ('evaluate',),
    'Report': ('report',),
    'Notebook': ('widgets',),
    'The whole journey': ('app',),
}
HEAD = '# Written by tools/sidebar.py (make export); not edited by hand.\n'


def folder(path):
    "Return the name of a notebook's folder without its number."
    return path.parent.name.partition('_')[2]


def stage(path):
    "Return the heading that a notebook of the package stands under."
    return next(name for name, folders in STAGES.items() if folder(path) in folders)


def section(name): return dict(section=name, contents=[])


def contents(root=ROOT):
    "Return the sidebar as Quarto reads it: the start page, then sections of files or of sections."
    start, tree = [], {}
    for p in notebooks(root):
        name = p.relative_to(root/'nbs').as_posix()
        if part(p) == '': start.append(name)
        elif part(p) == 'api':
            folders = tree.setdefault(stage(p), {})
            folders.setdefault(folder(p), []).append(name)
        else: tree.setdefault({'book': 'The book', 'records': 'Records'}[part(p)], []).append(name)
    return start + [dict(section=head, contents=listed(inside)) for head, inside in tree.items()]


def listed(inside):
    "Return a stage's contents: files as they are, several folders as sections of their own, one folder as its files."
    if isinstance(inside, list): return inside
    if len(inside) == 1: return next(iter(inside.values()))
    return [dict(section=name, contents=files) for name, files in inside.items()]


def text(root=ROOT):
    "Return what nbs/sidebar.yml should hold."
    return HEAD + yaml.safe_dump({'website': {'sidebar': {'contents': contents(root)}}}, sort_keys=False)


if __name__ == '__main__':
    (ROOT/'nbs/sidebar.yml').write_text(text())
    print(f'nbs/sidebar.yml: {len(notebooks())} notebooks')
