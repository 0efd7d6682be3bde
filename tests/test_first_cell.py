"Each chapter runs anywhere: its first cell installs llmbook where it is missing, and nothing else is assumed."
import copy, json, os, re, shutil, subprocess, sys
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/'tools'))
import course, first_cell

CHAPTERS = [path for path in course.chapters() if '"cell_type": "code"' in path.read_text(encoding='utf-8')]
NAMES = [path.stem for path in CHAPTERS]


def read(path): return json.loads(path.read_text(encoding='utf-8'))


def code_of(notebook):
    "Return the source of each code cell."
    return [''.join(cell['source']) for cell in notebook['cells'] if cell['cell_type'] == 'code']


# ---- every chapter has it, once ------------------------------------------------------------------------------------

@pytest.mark.parametrize('path', CHAPTERS, ids=NAMES)
def test_a_chapter_begins_with_the_first_cell(path):
    first, *others = code_of(read(path))
    assert first == first_cell.text(), 'run `make export`'
    assert not [source for source in others if 'find_spec' in source or 'pip install' in source]


@pytest.mark.parametrize('path', CHAPTERS, ids=NAMES)
def test_a_chapter_assumes_no_kernel_and_no_place(path):
    notebook = read(path)
    assert notebook['metadata']['kernelspec']['name'] == 'python3', "every machine's own Python"
    assert 'widgets' not in notebook['metadata'], 'the state of a widget needs its kernel'
    for source in code_of(notebook)[1:]: assert not re.search(r'[\'"](\.\./|~/|[A-Z]:\\)', source)


def made(*kinds):
    "Return a notebook of cells of these kinds."
    cells = [dict(cell_type=kind, id=f'c{i}', metadata={}, source=['x']) for i, kind in enumerate(kinds)]
    return dict(cells=cells)


@pytest.mark.parametrize('kinds, place', [(('markdown', 'code', 'code'), 1), (('code',), 0)])
def test_the_cell_stands_before_all_code(kinds, place):
    notebook = made(*kinds)
    before = copy.deepcopy(notebook)
    cells = first_cell.with_first_cell(notebook, 'new')
    assert cells[place]['id'] == first_cell.NAME and notebook == before
    again = first_cell.with_first_cell(dict(cells=cells), 'new')
    assert again == cells, 'it never appears twice'
    later = first_cell.with_first_cell(dict(cells=[*cells[place + 1:], cells[place]]), 'newer')
    assert [cell['id'] for cell in later].count(first_cell.NAME) == 1


def test_a_page_without_code_has_none():
    notebook = made('markdown', 'markdown')
    assert first_cell.with_first_cell(notebook, 'new') == notebook['cells']


# ---- what it does --------------------------------------------------------------------------------------------------

class Shell:
    "Notes what a notebook asks of its shell."
    def __init__(self): self.asked = []
    def run_line_magic(self, name, line): self.asked.append((name, line))


def run_cell(folder, monkeypatch, looks, root=ROOT):
    """Run the first cell in a folder; return what it asked of the shell.

    `looks` says what the cell finds when it looks for llmbook, before and after an installation.
    """
    shell = Shell()
    answers = iter(looks)
    monkeypatch.chdir(folder)
    monkeypatch.setattr('importlib.util.find_spec', lambda name: next(answers))
    exec(first_cell.text(root), dict(get_ipython=lambda: shell))
    return shell.asked


def settings_with(folder, source):
    "Write settings into a folder in which llmbook is published."
    settings = (ROOT/'settings.ini').read_text(encoding='utf-8')
    assert 'install_from =\n' in settings
    (folder/'settings.ini').write_text(settings.replace('install_from =', f'install_from = {source}'))
    return folder


def test_it_installs_what_settings_name(tmp_path, monkeypatch):
    root = settings_with(tmp_path, 'llmbook')
    assert run_cell(tmp_path, monkeypatch, [None, 'there'], root) == [('pip', 'install -q llmbook')]


def test_published_nowhere_it_asks_no_index_and_says_what_helps(tmp_path, monkeypatch):
    with pytest.raises(ModuleNotFoundError, match='not installed here: put its wheel, .* run this cell again'):
        run_cell(tmp_path, monkeypatch, [None, None])


def test_a_failed_installation_is_told(tmp_path, monkeypatch):
    root = settings_with(tmp_path, 'llmbook')
    with pytest.raises(ModuleNotFoundError, match='tried llmbook'): run_cell(tmp_path, monkeypatch, [None, None], root)


def test_a_wheel_beside_the_chapter_comes_first(tmp_path, monkeypatch):
    root = settings_with(tmp_path, 'llmbook')
    for version in ('0.1.0', '0.2.0'): (tmp_path/f'llmbook-{version}-py3-none-any.whl').touch()
    asked = run_cell(tmp_path, monkeypatch, [None, 'there'], root)
    assert asked == [('pip', 'install -q llmbook-0.2.0-py3-none-any.whl')]


def test_in_a_checkout_it_installs_that(tmp_path, monkeypatch):
    monkeypatch.setattr('sys.path', [*sys.path])
    (tmp_path/'llmbook').mkdir()
    (tmp_path/'llmbook/__init__.py').touch()
    inside = tmp_path/'nbs/book'
    inside.mkdir(parents=True)
    assert run_cell(inside, monkeypatch, [None, 'there']) == [('pip', 'install -q -e ../..')]
    assert sys.path[-1] == str(tmp_path), 'an editable installation is seen by kernels that start later'


def test_where_llmbook_is_it_does_nothing(tmp_path, monkeypatch):
    assert run_cell(tmp_path, monkeypatch, ['there']) == []


def test_an_address_is_one_word_to_the_shell(tmp_path, monkeypatch):
    root = settings_with(tmp_path, 'llmbook @ https://x.org/y')
    asked = run_cell(tmp_path, monkeypatch, [None, 'there'], root)
    assert asked == [('pip', 'install -q "llmbook @ https://x.org/y"')]


# ---- what other front ends ask of a file ----------------------------------------------------------------------------

BOOK = ROOT/'nbs/book'
PAGES = sorted(BOOK.glob('*.ipynb'))
WRITTEN = {'kernelspec', 'language_info'} # keys that every front end writes; others belong to one of them
LINK = re.compile(r'\]\((?!https?://|#|mailto:)([^)#\s]+)')


@pytest.mark.parametrize('path', PAGES, ids=[path.stem for path in PAGES])
def test_a_page_is_a_plain_notebook(path):
    notebook = read(path)
    assert (notebook['nbformat'], notebook['nbformat_minor']) == (4, 5)
    assert set(notebook['metadata']) <= WRITTEN
    assert notebook['metadata']['kernelspec']['language'] == 'python'
    assert notebook['metadata']['kernelspec']['display_name']
    ids = [cell['id'] for cell in notebook['cells']]
    assert len(set(ids)) == len(ids)
    for cell in notebook['cells']:
        assert not cell.get('attachments'), 'pictures lie in nbs/images'
        assert not set(cell['metadata']) & {'vscode', 'colab', 'scrolled', 'id', 'outputId'}


@pytest.mark.parametrize('path', PAGES, ids=[path.stem for path in PAGES])
def test_links_and_pictures_lie_beside_it(path):
    prose = course.markdown(path)
    for link in LINK.findall(prose): assert (path.parent/link).exists(), link


@pytest.mark.parametrize('path', CHAPTERS, ids=NAMES)
def test_only_the_first_cell_asks_for_ipython(path):
    for source in code_of(read(path))[1:]:
        assert 'get_ipython' not in source
        assert not [line for line in source.splitlines() if re.match(r'\s*[%!]', line)]


@pytest.mark.parametrize('path', CHAPTERS, ids=NAMES)
def test_what_a_widget_leaves_can_be_read(path):
    for cell in read(path)['cells']:
        for output in cell.get('outputs', []):
            shown = ''.join(output.get('data', {}).get('text/plain', ''))
            assert not re.match(r'\w+\(children=|<llmbook.* object at', shown)


def test_widgets_come_from_ipywidgets_alone():
    for path in sorted((ROOT/'llmbook').rglob('*.py')):
        source = path.read_text(encoding='utf-8')
        own = re.search(r'_view_module|_model_module|anywidget|ipympl', source)
        assert not own, f'{path}: no front end would have it'


def test_each_panel_says_in_words_what_it_shows():
    from pkgutil import iter_modules
    from llmbook import widgets
    from llmbook.widgets.parts import Panel
    for module in iter_modules(widgets.__path__): __import__(f'llmbook.widgets.{module.name}')
    kinds = Panel.__subclasses__()
    assert len(kinds) >= 11
    assert not [kind.__name__ for kind in kinds if '__repr__' not in vars(kind)]


# ---- a chapter by itself -------------------------------------------------------------------------------------------

def test_a_chapter_runs_alone_in_an_empty_folder(tmp_path):
    alone = tmp_path/'22_scores_that_lie.ipynb'
    shutil.copy(ROOT/'nbs/book'/alone.name, alone)
    places = dict(HOME=tmp_path, JUPYTER_CONFIG_DIR=tmp_path/'config', IPYTHONDIR=tmp_path/'ipython')
    env = {**os.environ, **{name: str(path) for name, path in places.items()}, 'PYTHONPATH': str(ROOT)}
    command = [sys.executable, '-m', 'jupyter', 'execute', '--timeout=300', alone.name]
    done = subprocess.run(command, cwd=tmp_path, env=env | dict(MPLBACKEND='agg'), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
