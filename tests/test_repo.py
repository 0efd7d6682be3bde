"The repository agrees with itself: package, README and sidebar come from the notebooks; nothing stored is private."
import ast, filecmp, os, re, shutil, subprocess, sys
from configparser import ConfigParser
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/'tools'))
import house, sidebar, titles

BIN = Path(sys.executable).parent
# written apart, or this file would hold them too
PRIVATE = ['/work' + '/main', '/work' + '/shared', '/tmp' + '/w/', '/opt' + '/pypi', '/opt' + '/wheels',
           '.lib' + 'rary/', 'pypi' + '.org',
           'files.python' + 'hosted', 'npm' + 'js', 'deb' + '.debian', 'conda.anaconda' + '.org', '/root' + '/.',
           '/home' + '/']


def files():
    "Return the files that are, or would be, committed."
    r = subprocess.run(['git', 'ls-files', '-co', '--exclude-standard'], cwd=ROOT, capture_output=True, text=True)
    if r.returncode: pytest.skip('not a git repository')
    return [ROOT/f for f in r.stdout.splitlines() if (ROOT/f).is_file() and not (ROOT/f).is_symlink()]


def run(*command, cwd):
    env = {k: v for k, v in os.environ.items() if k != 'IN_TEST'}
    r = subprocess.run([str(c) for c in command], cwd=cwd, env=env, capture_output=True, text=True)
    assert r.returncode == 0, r.stdout + r.stderr
    return r.stdout


@pytest.fixture(scope='session')
def copy(tmp_path_factory):
    "Export and clean the notebooks beside an empty package: what the repository should hold."
    to = tmp_path_factory.mktemp('copy')
    for f in ('pyproject.toml', 'settings.ini'): shutil.copy(ROOT/f, to/f)
    shutil.copytree(ROOT/'nbs', to/'nbs', symlinks=True, ignore=shutil.ignore_patterns('.*', '_*'))
    (to/'llmbook').mkdir()
    shutil.copy(ROOT/'llmbook/__init__.py', to/'llmbook/__init__.py')
    run(BIN/'nbdev-export', cwd=to)
    run(BIN/'nbdev-clean', cwd=to)
    return to


def modules(root): return {p.relative_to(root).as_posix() for p in (root/'llmbook').rglob('*.py')}


def test_package_is_in_step_with_the_notebooks(copy):
    assert modules(ROOT) == modules(copy), 'modules without a notebook, or notebooks not exported: run `make export`'
    differ = [m for m in sorted(modules(ROOT)) if not filecmp.cmp(ROOT/m, copy/m, shallow=False)]
    assert not differ, f'out of step with the notebooks: {differ}: run `make export` (edit notebooks, not the package)'


def test_notebooks_are_clean(copy):
    paths = [p.relative_to(ROOT) for p in house.notebooks()]
    unclean = [str(p) for p in paths if (ROOT/p).read_bytes() != (copy/p).read_bytes()]
    assert not unclean, f'run `make export` (nbdev-clean): {unclean}'


def test_readme_comes_from_the_start_page():
    made = run(sys.executable, ROOT/'tools/readme.py', '--stdout', cwd=ROOT)
    assert (ROOT/'README.md').read_text() == made, 'run `make readme`'


def test_sidebar_lists_every_notebook():
    assert (ROOT/'nbs/sidebar.yml').read_text() == sidebar.text(), 'run `make export`'


def test_one_configuration_for_the_site():
    link = ROOT/'nbs/_quarto.yml'
    assert link.resolve() == ROOT/'_quarto.yml', 'nbs/_quarto.yml should be a link to ../_quarto.yml'


def test_titles_have_a_cell_of_their_own():
    crowded = [p.name for p in house.notebooks() if titles.crowded(p)]
    assert not crowded, f'the site would drop what shares a cell with the title: run `make export` for {crowded}'


def test_no_notebook_stores_an_error():
    bad = [f'{p.name}#{i}' for p in house.notebooks() for i, (_, _, outs) in enumerate(house.cells(p))
           if any(o.get('output_type') == 'error' for o in outs)]
    assert not bad, f'stored errors in {bad}: run them again (an error that should be shown goes through `refused`)'


def test_what_a_notebook_prints_is_stored():
    "A page is read by more people than run it."
    silent = []
    for path in filter(house.part, house.notebooks()): # the start page becomes the README, which runs nothing
        printing = [outs for kind, source, outs in house.cells(path) if kind == 'code' and re.search(r'^print\(', source, re.M)]
        if printing and not any(printing): silent.append(path.name)
    assert not silent, 'run these and store their outputs'


def test_version_is_the_same_everywhere():
    cfg = ConfigParser(delimiters=['='])
    cfg.read(ROOT/'settings.ini', encoding='utf-8')
    init = re.search(r'__version__ = "(.*)"', (ROOT/'llmbook/__init__.py').read_text())
    assert init
    assert init[1] == cfg['DEFAULT']['version']
    assert f"## {cfg['DEFAULT']['version']}" in (ROOT/'CHANGELOG.md').read_text()


def test_requirements_are_pinned():
    cfg = ConfigParser(delimiters=['='])
    cfg.read(ROOT/'settings.ini', encoding='utf-8')
    lines = [x for x in (cfg['DEFAULT']['requirements'] + cfg['DEFAULT']['dev_requirements']).splitlines() if x.strip()]
    pinned = {l.split('==')[0] for l in (ROOT/'constraints.txt').read_text().splitlines() if '==' in l}
    names = [re.split(r'[<>=!~\[;]', line)[0].strip().lower() for line in lines]
    missing = [x for x in (re.sub(r'[-_.]+', '-', name) for name in names) if x not in pinned]
    assert not missing, f'not in constraints.txt: {missing}'


def test_nothing_private_is_stored():
    found = [f'{f.relative_to(ROOT)}: {w}' for f in files() for w in PRIVATE if w.encode() in f.read_bytes()]
    assert not found, f'paths or hosts of one machine: {found}'


def test_files_stay_small():
    big = [f'{f.relative_to(ROOT)} {f.stat().st_size >> 10} KB' for f in files() if f.stat().st_size > 2 << 20]
    assert not big, f'over 2 MB: {big}'


def test_public_names_have_a_docstring():
    bare = []
    for m in sorted(modules(ROOT)):
        if m.endswith(('_modidx.py', '__init__.py')): continue
        for n in ast.parse((ROOT/m).read_text()).body:
            is_definition = isinstance(n, (ast.FunctionDef, ast.ClassDef))
            is_public = is_definition and not n.name.startswith('_')
            if is_public and not ast.get_docstring(n): bare.append(f'{m}: {n.name}')
    assert not bare, f'without a docstring: {bare}'
