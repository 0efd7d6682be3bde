"`help()` and `?` explain every parameter of every public name, from the comments beside them."
import ast, importlib, inspect, subprocess, sys
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/'tools'))
import docstrings
from llmbook.base.docstrings import TEXTS, find_documented

DESCRIBED = docstrings.described()
NAMES = [(module, name) for module, names in TEXTS.items() for name in names]


def test_the_table_is_in_step_with_the_package():
    assert (ROOT/docstrings.TABLE).read_text(encoding='utf-8') == docstrings.written(), 'run `make export`'


def test_every_parameter_has_a_meaning():
    bare = [f'{module}.{name}: {argument}' for module, names in DESCRIBED.items() for name, said in names.items()
            for argument, meaning in said.parameters.items() if not meaning]
    assert not bare, f'put a comment beside them: {bare}'


def documented(module, name): return find_documented(importlib.import_module(f'llmbook.{module}'), name)


def test_every_name_shows_its_text():
    silent = []
    for module, name in NAMES:
        found = documented(module, name)
        if found is None or TEXTS[module][name] not in inspect.getdoc(found): silent.append(f'{module}.{name}')
    assert not silent, 'the table has them, and help() does not show them'


def test_hints_in_quotes_can_be_evaluated():
    "Evaluate hints as the site does when it shows a name; one that cannot be stops its build."
    for module, name in NAMES:
        hints = getattr(documented(module, name), '__annotations__', {})
        names = vars(importlib.import_module(f'llmbook.{module}'))
        for hint in hints.values():
            if isinstance(hint, str): eval(hint, names)


@pytest.mark.parametrize('module, name', [
    ('core', 'refused'), ('pretrain.run', 'lm_learner'), ('prepare.pipeline', 'prepare'), ('plan.planner', 'plan'),
    ('generate.text', 'generate'), ('tune.finetune', 'finetune'), ('model.config', 'ModelConfig'),
    ('plan.record', 'Plan'),
    ('widgets.dashboard', 'Dashboard'), ('checkpoint.checkpoint', 'Checkpoint'), ('read.doc', 'Doc')])
def test_each_argument_of_the_signature_is_explained(module, name):
    found = documented(module, name)
    lines = inspect.getdoc(found).splitlines()
    for argument in inspect.signature(found).parameters:
        beginnings = tuple(f'{stars}{argument}: ' for stars in ('', '*', '**'))
        assert any(line.strip().startswith(beginnings) for line in lines), argument


def test_a_method_keeps_the_first_line_of_what_it_overrides():
    doc = inspect.getdoc(documented('train.learner', 'LMLearner.fit'))
    assert doc.startswith('Fit')
    assert 'resume: ' in doc


def test_a_second_import_says_nothing_twice():
    module = importlib.reload(importlib.import_module('llmbook.base.docstrings'))
    doc = documented('core', 'whole_number').__doc__
    module.explain(importlib.import_module('llmbook.core'))
    assert documented('core', 'whole_number').__doc__ == doc
    assert doc.count('Args:') == 1


def test_no_source_is_parsed_and_modules_look_as_always():
    code = ("import sys; before = set(sys.modules); import llmbook.core, inspect\n"
            "assert 'fastcore.docments' not in sys.modules and 'torch' not in sys.modules\n"
            "assert inspect.getsource(llmbook.core.finite).startswith('def finite')\n"
            "print(llmbook.core.__spec__.origin, inspect.getdoc(llmbook.core.finite))")
    said = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    assert 'core.py' in said.stdout
    assert 'x: any value' in said.stdout


# ---- how comments are read ----

def described(text):
    source = docstrings.Source(text)
    return docstrings.of_module(source, {})


def test_where_a_comment_may_stand():
    said = described('''
def f(
    a, # first
    b:dict={'x': lambda y: 1}, # second
    # above
    # the third
    c=(1,
       2),
    d=1, e=2, # two on a line
    *args, # several
    g=1, # by name
    **kwargs # the rest
) -> int: # a number
    return 1 # not this one
def g(): # a remark on the body
    pass
''')
    assert said['g'].text() == ''
    said = said['f']
    assert said.parameters == {
        'a': 'first',
        'b': 'second',
        'c': 'above the third',
        'd': 'two on a line',
        'e': 'two on a line',
        '*args': 'several',
        'g': 'by name',
        '**kwargs': 'the rest',
    }
    assert said.returned == 'a number'


def test_what_is_raised_has_a_heading_of_its_own():
    said = described('''
def f(
    a, # first
) -> tuple: # (model, table); UserError if there is none
    pass
def g(
    a, # first
) -> None: # `ValueError` for a bad name
    pass
def h(
    a, # first
) -> str: # a text, or a `TemplateError` that says why there is none
    pass
''')
    assert said['f'].outcomes() == ('(model, table)', 'UserError if there is none')
    assert said['f'].text().endswith('Returns:\n    (model, table)\n\nRaises:\n    UserError if there is none')
    assert said['g'].outcomes() == ('', '`ValueError` for a bad name')
    assert said['h'].outcomes() == ('a text, or a `TemplateError` that says why there is none', '')


def test_classes_methods_and_what_they_inherit():
    said = described('''
class A:
    size:int # how many
    def __init__(self,
        n, # a number
    ): pass
    def go(self, v:View) -> int: # where
        pass
    @staticmethod
    def of(
        q # a letter
    ): pass
    def _private(self): pass # no
class B(A): pass
@patch
def stop(self:A,
    when # a time
): pass
@dataclass
class C:
    x:int=1 # width
''')
    assert said['A'].parameters == said['B'].parameters == {'n': 'a number'}
    assert said['A'].fields == {'size': 'how many'}
    assert said['A.go'].returned == 'where'
    assert said['A.go'].parameters['v'] == docstrings.TYPES['View']
    assert said['A.of'].parameters == {'q': 'a letter'}
    assert said['A.stop'].parameters == {'when': 'a time'}
    assert said['C'].parameters == {'x': 'width'}
    assert 'A._private' not in said


def public_dataclasses():
    "Yield the syntax tree of each public dataclass of the package."
    for path in (ROOT/'llmbook').rglob('*.py'):
        for node in ast.parse(path.read_text(encoding='utf-8')).body:
            is_public = isinstance(node, ast.ClassDef) and not node.name.startswith('_')
            if is_public and docstrings.is_decorated(node, 'dataclass'): yield node


def has_own_init(node):
    methods = [x.name for x in node.body if isinstance(x, docstrings.FUNCTION)]
    return '__init__' in methods


def comments_of(name):
    "Return what the first module that defines a class says of it."
    return next(names[name] for names in DESCRIBED.values() if name in names)


def test_fields_of_dataclasses_are_explained():
    bare = []
    for node in public_dataclasses():
        if has_own_init(node): continue
        described_fields = comments_of(node.name).parameters
        fields = [x.target.id for x in node.body if isinstance(x, ast.AnnAssign)]
        for field in fields:
            is_public = not field.startswith('_')
            if is_public and field not in described_fields: bare.append(f'{node.name}.{field}')
    assert not bare
