"Data walks through the rooms in one direction: a room imports only from rooms with lower numbers."
import ast, sys
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/'tools'))
from house import module, notebooks, part, place

WIDGETS = (75, 0)  # the first place that may import ipywidgets
RANK = {m: place(p) for p in notebooks() if part(p) == 'api' and (m := module(p))}
MODULES = {'.'.join(p.relative_to(ROOT/'llmbook').with_suffix('').parts): p
           for p in sorted((ROOT/'llmbook').rglob('*.py')) if p.name not in ('__init__.py', '_modidx.py')}


def imports(tree, name):
    "Each (module, imported name or None, line) that `tree` imports, also inside functions."
    here = ('llmbook.' + name).split('.')
    for n in ast.walk(tree):
        if isinstance(n, ast.Import):
            for a in n.names: yield a.name, None, n.lineno
        elif isinstance(n, ast.ImportFrom):
            base = here[:-n.level] if n.level else []
            for a in n.names: yield '.'.join(base + ([n.module] if n.module else [])), a.name, n.lineno


def rooms(tree, name):
    "Each (room, line) of llmbook that `tree` imports."
    for mod, what, line in imports(tree, name):
        if mod.split('.')[0] != 'llmbook': continue
        for full in (mod, f'{mod}.{what}'):
            if (room := full.removeprefix('llmbook.')) in MODULES: yield room, line


@pytest.fixture(params=list(MODULES))
def room(request):
    name = request.param
    return name, ast.parse(MODULES[name].read_text(encoding='utf-8'))


def test_imports_only_from_lower_rooms(room):
    name, tree = room
    assert name in RANK, f'llmbook/{name} comes from no notebook in nbs/api: remove it, or export it from one'
    backward = [f'line {line}: {other} ({RANK[other]})' for other, line in rooms(tree, name)
                if other != name and RANK[other] >= RANK[name]]
    assert not backward, f'{name} ({RANK[name]}) imports from rooms that come later: {backward}'


def test_names_where_each_name_comes_from(room):
    name, tree = room
    if name == 'all': pytest.skip('llmbook.all exists to be imported with a star')
    stars = [f'{mod}:{line}' for mod, what, line in imports(tree, name)
             if what == '*' and mod.split('.')[0] not in ('fastai', 'fastcore')]
    assert not stars, f'{name} imports everything from {stars}: name what it uses'


def test_widgets_stay_on_top(room):
    name, tree = room
    used = [line for mod, _, line in imports(tree, name) if mod.split('.')[0] == 'ipywidgets']
    assert not used or RANK[name] >= WIDGETS, f'{name} imports ipywidgets (lines {used}): only modules from folder {WIDGETS[0]} on may'


def test_the_check_itself_sees_every_form_of_import():
    tree = ast.parse('from llmbook.core import UserError\nfrom .core import x\nimport llmbook.core\ndef f():\n  from llmbook import core')
    assert [r for r, _ in rooms(tree, 'x')] == ['core'] * 4
    assert [r for r, _ in rooms(ast.parse('from ..core import x'), 'data.sources')] == ['core']


def test_no_catch_all_modules():
    assert not [m for m in MODULES if m.split('.')[-1] in ('utils', 'util', 'helpers', 'misc', 'config_global')]
