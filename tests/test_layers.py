"Data flows through the modules in one direction: a module imports only from earlier places."
import ast, sys
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/'tools'))
from house import module, notebooks, part, place

WIDGETS = (75, 0)  # the first place that may import ipywidgets
MAY_IMPORT_EVERYTHING = ('fastai', 'fastcore')
PLACES = {module(path): place(path) for path in notebooks() if part(path) == 'api' and module(path)}


def package_modules():
    "Return each module of the package by name, with its path."
    found = {}
    for path in sorted((ROOT/'llmbook').rglob('*.py')):
        if path.name in ('__init__.py', '_modidx.py'): continue
        found['.'.join(path.relative_to(ROOT/'llmbook').with_suffix('').parts)] = path
    return found


MODULES = package_modules()


def imports(tree, name):
    "Yield each (module, imported name or None, line) that `tree` imports, also inside functions."
    here = ('llmbook.' + name).split('.')
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names: yield alias.name, None, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = here[:-node.level] if node.level else []
            source = '.'.join(base + ([node.module] if node.module else []))
            for alias in node.names: yield source, alias.name, node.lineno


def own_imports(tree, name):
    "Yield each (module of llmbook, line) that `tree` imports."
    for source, imported, line in imports(tree, name):
        if source.split('.')[0] != 'llmbook': continue
        for full in (source, f'{source}.{imported}'):
            found = full.removeprefix('llmbook.')
            if found in MODULES: yield found, line


@pytest.fixture(params=list(MODULES))
def parsed(request):
    "Return a module's name and its syntax tree."
    return request.param, ast.parse(MODULES[request.param].read_text(encoding='utf-8'))


def test_imports_only_from_earlier_places(parsed):
    name, tree = parsed
    assert name in PLACES, f'llmbook/{name} comes from no notebook in nbs/api: remove it, or export it from one'
    backward = [f'line {line}: {other} {PLACES[other]}' for other, line in own_imports(tree, name)
                if other != name and PLACES[other] >= PLACES[name]]
    assert not backward, f'{name} {PLACES[name]} imports from modules that come later: {backward}'


def test_names_where_each_name_comes_from(parsed):
    name, tree = parsed
    if name == 'all': pytest.skip('llmbook.all exists to be imported with a star')
    stars = [f'{source}:{line}' for source, imported, line in imports(tree, name)
             if imported == '*' and source.split('.')[0] not in MAY_IMPORT_EVERYTHING]
    assert not stars, f'{name} imports everything from {stars}: name what it uses'


def test_widgets_stay_on_top(parsed):
    name, tree = parsed
    used = [line for source, _, line in imports(tree, name) if source.split('.')[0] == 'ipywidgets']
    assert not used or PLACES[name] >= WIDGETS, (
        f'{name} imports ipywidgets (lines {used}): only modules from folder {WIDGETS[0]} on may')


def test_the_check_itself_sees_every_form_of_import():
    forms = ['from llmbook.core import UserError', 'from .core import x', 'import llmbook.core',
             'def f():\n  from llmbook import core']
    tree = ast.parse('\n'.join(forms))
    assert [found for found, _ in own_imports(tree, 'x')] == ['core'] * 4
    relative = ast.parse('from ..core import x')
    assert [found for found, _ in own_imports(relative, 'read.sources')] == ['core']


def test_no_catch_all_modules():
    unwanted = ('utils', 'util', 'helpers', 'misc', 'config_global')
    assert not [m for m in MODULES if m.split('.')[-1] in unwanted]


def test_only_a_few_modules_stand_alone():
    alone = {m for m in MODULES if '.' not in m}
    assert alone == {'core', 'tiny', 'errors', 'journey', 'cli', 'all'}
