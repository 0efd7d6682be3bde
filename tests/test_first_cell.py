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


def run_cell(folder, monkeypatch, is_missing):
    "Run the first cell in a folder; return what it asked of the shell."
    shell = Shell()
    monkeypatch.chdir(folder)
    if is_missing: monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    exec(first_cell.text(), dict(get_ipython=lambda: shell))
    return shell.asked


def test_it_installs_what_settings_name(tmp_path, monkeypatch):
    assert run_cell(tmp_path, monkeypatch, is_missing=True) == [('pip', 'install -q llmbook')]


def test_in_a_checkout_it_installs_that(tmp_path, monkeypatch):
    (tmp_path/'llmbook').mkdir()
    (tmp_path/'llmbook/__init__.py').touch()
    inside = tmp_path/'nbs/book'
    inside.mkdir(parents=True)
    assert run_cell(inside, monkeypatch, is_missing=True) == [('pip', 'install -q -e ../..')]


def test_where_llmbook_is_it_does_nothing(tmp_path, monkeypatch):
    assert run_cell(tmp_path, monkeypatch, is_missing=False) == []


def test_what_pip_is_given_is_no_command(tmp_path):
    settings = (ROOT/'settings.ini').read_text(encoding='utf-8')
    (tmp_path/'settings.ini').write_text(settings.replace('install_from = llmbook', 'install_from = llmbook @ x'))
    assert "'llmbook @ x'" in first_cell.text(tmp_path)


# ---- a chapter by itself -------------------------------------------------------------------------------------------

def test_a_chapter_runs_alone_in_an_empty_folder(tmp_path):
    alone = tmp_path/'22_scores_that_lie.ipynb'
    shutil.copy(ROOT/'nbs/book'/alone.name, alone)
    places = dict(HOME=tmp_path, JUPYTER_CONFIG_DIR=tmp_path/'config', IPYTHONDIR=tmp_path/'ipython')
    env = {**os.environ, **{name: str(path) for name, path in places.items()}, 'PYTHONPATH': str(ROOT)}
    command = [sys.executable, '-m', 'jupyter', 'execute', '--timeout=300', alone.name]
    done = subprocess.run(command, cwd=tmp_path, env=env | dict(MPLBACKEND='agg'), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
