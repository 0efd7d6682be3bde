"The wheel holds the package alone, installs and runs away from the repository; importing it is cheap and quiet."
import ast, json, os, re, shutil, subprocess, sys, sysconfig, venv, zipfile
from configparser import ConfigParser
from importlib.metadata import packages_distributions
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parent.parent
PROBE = Path(__file__).resolve().parent/'programs'/'import_quietly.py'
sys.path.insert(0, str(ROOT/'tools'))
from house import module, notebooks


def settings():
    parser = ConfigParser(delimiters=['='])
    parser.read(ROOT/'settings.ini', encoding='utf-8')
    return parser['DEFAULT']


def setting_lines(name): return [line.strip() for line in SETTINGS[name].splitlines() if line.strip()]


SETTINGS = settings()
SCRIPTS = [line.split('=')[0].strip() for line in setting_lines('console_scripts')]
MODULES = [f'llmbook.{m}' for p in notebooks() if (m := module(p))]
HEAVY = ['transformers', 'datasets', 'detoxify', 'ray', 'sacrebleu', 'rouge_score']
# used where they are; IPython comes with ipywidgets, compression with Python 3.14
OPTIONAL = {'gguf', 'ray', 'torchvision', 'IPython', 'compression', 'reasoning_gym', 'openai'}


def run(*command, cwd):
    command = [str(c) for c in command]
    env = {**os.environ, 'HF_HUB_OFFLINE': '1'}
    r = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
    assert r.returncode == 0, f'{command}\n{r.stdout}\n{r.stderr}'
    return r.stdout


@pytest.fixture(scope='session')
def wheel(tmp_path_factory):
    "Build the wheel from a copy, so that the tree stays as it is, without fetching anything."
    src = tmp_path_factory.mktemp('source')
    out = tmp_path_factory.mktemp('wheel')
    hidden = shutil.ignore_patterns('__pycache__', '.*')
    for f in ('settings.ini', 'setup.py', 'pyproject.toml', 'README.md', 'LICENSE'):
        shutil.copy(ROOT/f, src/f)
    for d in ('llmbook', 'nbs', 'tests'):
        shutil.copytree(ROOT/d, src/d, ignore=hidden, symlinks=True)
    offline = ['--no-build-isolation', '--no-deps', '--no-index']
    run(sys.executable, '-m', 'pip', 'wheel', *offline, '-w', out, src, cwd=out)
    return next(out.glob('llmbook-*.whl'))


@pytest.fixture(scope='session')
def python(wheel, tmp_path_factory):
    "Make an environment with the wheel in it; requirements are borrowed from this one, the editable llmbook is not."
    env = tmp_path_factory.mktemp('env')
    venv.create(env, with_pip=False, symlinks=True)
    site = next(env.glob('lib/python*/site-packages'))
    borrowed = sysconfig.get_path('purelib') # a path that is added so does not run its own .pth files
    (site/'borrowed.pth').write_text(f'{borrowed}\n')
    offline = ['-q', '--no-deps', '--no-index', '--force-reinstall']
    run(sys.executable, '-m', 'pip', '--python', env/'bin/python', 'install', *offline, wheel, cwd=env)
    return env/'bin/python'


@pytest.fixture
def elsewhere(tmp_path): return tmp_path


def package_files():
    "Return the files that a wheel must have: modules, assets, and the mark of a typed package."
    wanted = set()
    for path in (ROOT/'llmbook').rglob('*'):
        belongs = path.suffix == '.py' or 'assets' in path.parts or path.name == 'py.typed'
        if belongs and path.is_file() and '__pycache__' not in path.parts: wanted.add(path.relative_to(ROOT).as_posix())
    return wanted


def test_wheel_holds_the_package_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    stray = [n for n in names if not re.match(r'llmbook(-[\d.]+\.dist-info)?/', n)]
    assert not stray, f'in the wheel, and should not be: {stray}'
    wanted = package_files()
    assert 'llmbook/py.typed' in wanted, 'type checkers would ignore the annotations'
    assert wanted <= set(names), f'missing from the wheel: {wanted - set(names)}'
    assert any(n.endswith('/LICENSE') for n in names)


def requirement_name(line): return re.split(r'[<>=!~;]', line)[0]


def test_wheel_says_what_settings_say(wheel):
    archive = zipfile.ZipFile(wheel)
    def read(ending):
        name = next(name for name in archive.namelist() if name.endswith(ending))
        return archive.read(name).decode()
    meta = read('.dist-info/METADATA')
    points = read('.dist-info/entry_points.txt')
    assert f"Version: {SETTINGS['version']}\n" in meta
    assert 'License-Expression: Apache-2.0' in meta
    requirements = re.findall(r'^Requires-Dist: ([\w.-]+)([^\n]*)$', meta, re.M)
    required = {name for name, rest in requirements if 'extra ==' not in rest}
    assert required == {requirement_name(line) for line in setting_lines('requirements')}
    assert [s for s in SCRIPTS if f'{s} = ' not in points] == []


def imported_packages(path):
    "Return the top names of what a file imports from other packages."
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import): names += [a.name for a in node.names]
        if isinstance(node, ast.ImportFrom) and not node.level: names.append(node.module)
    return {(name or '').split('.')[0] for name in names} - set(sys.stdlib_module_names) - {'llmbook', ''}


def normal(name):
    "Return a distribution's name as indexes compare it."
    return re.sub(r'[-_.]+', '-', name.lower())


def required_distributions():
    "Return the names of what settings.ini requires, without extras."
    lines = setting_lines('requirements')
    return {normal(requirement_name(line.split('[')[0])) for line in lines}


def test_every_import_is_required():
    "Find everything the package imports in settings.ini, so that an empty environment has it."
    distributions = packages_distributions()
    required = required_distributions()
    missing = set()
    for path in (ROOT/'llmbook').rglob('*.py'):
        for top in imported_packages(path) - OPTIONAL:
            providers = {normal(name) for name in distributions.get(top, [top])}
            if required.isdisjoint(providers): missing.add(f'{path.relative_to(ROOT)}: {top}')
    assert not missing, f'imported and not in settings.ini: {sorted(missing)}'


def test_wheel_runs_elsewhere(python, elsewhere):
    code = 'import llmbook; print(llmbook.__version__, llmbook.__file__)'
    version, file = run(python, '-c', code, cwd=elsewhere).split()
    assert version == SETTINGS['version']
    assert Path(file).is_relative_to(python.parent.parent), f'imported from {file}, not from the wheel'


def test_star_import_elsewhere(python, elsewhere):
    if 'llmbook.all' not in MODULES: pytest.skip('llmbook.all is not there yet')
    code = 'from llmbook.all import *; print(callable(lm_learner), callable(prepare), callable(generate))'
    assert run(python, '-c', code, cwd=elsewhere).split()[-3:] == ['True'] * 3


@pytest.mark.parametrize('script', SCRIPTS)
def test_commands_are_installed(python, script): assert (python.parent/script).exists()


def test_a_command_runs_elsewhere(python, elsewhere):
    if 'llmbook.cli' not in MODULES: pytest.skip('llmbook.cli is not there yet')
    assert '--minutes' in run(python.parent/'llmbook-plan', '--help', cwd=elsewhere)


def test_importing_is_cheap_and_quiet(python, elsewhere):
    "Import every module without a network, a CUDA context, or a heavy library that only some functions need."
    out = run(python, PROBE, json.dumps(MODULES), json.dumps(HEAVY), cwd=elsewhere)
    assert json.loads(out.splitlines()[-1]) == {}, 'imported too early (move it into the function that needs it)'
