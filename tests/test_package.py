"The wheel: what is in it, that it installs and runs away from the repository, and that importing it is cheap and quiet."
import json, os, re, shutil, subprocess, sys, sysconfig, venv, zipfile
from configparser import ConfigParser
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/'tools'))
from house import module, notebooks

CFG = ConfigParser(delimiters=['='])
CFG.read(ROOT/'settings.ini', encoding='utf-8')
CFG = CFG['DEFAULT']
SCRIPTS = [l.split('=')[0].strip() for l in CFG['console_scripts'].splitlines() if l.strip()]
MODULES = [f'llmbook.{m}' for p in notebooks() if (m := module(p))]
HEAVY = ['transformers', 'datasets', 'detoxify', 'ray', 'sacrebleu', 'rouge_score']


def run(*command, cwd, **env):
    r = subprocess.run([str(c) for c in command], cwd=cwd, env={**os.environ, 'HF_HUB_OFFLINE': '1', **env}, capture_output=True, text=True)
    assert r.returncode == 0, f'{command}\n{r.stdout}\n{r.stderr}'
    return r.stdout


@pytest.fixture(scope='session')
def wheel(tmp_path_factory):
    "The wheel, built from a copy so that the tree stays as it is, without fetching anything."
    src, out = tmp_path_factory.mktemp('source'), tmp_path_factory.mktemp('wheel')
    for f in ('settings.ini', 'setup.py', 'pyproject.toml', 'README.md', 'LICENSE'): shutil.copy(ROOT/f, src/f)
    for d in ('llmbook', 'nbs', 'tests'): shutil.copytree(ROOT/d, src/d, ignore=shutil.ignore_patterns('__pycache__', '.*'), symlinks=True)
    run(sys.executable, '-m', 'pip', 'wheel', '--no-build-isolation', '--no-deps', '--no-index', '-w', out, src, cwd=out)
    return next(out.glob('llmbook-*.whl'))


@pytest.fixture(scope='session')
def python(wheel, tmp_path_factory):
    "A new environment with the wheel in it; what it requires is borrowed from this one, the editable llmbook is not."
    env = tmp_path_factory.mktemp('env')
    venv.create(env, with_pip=False, symlinks=True)
    site = next(env.glob('lib/python*/site-packages'))
    (site/'borrowed.pth').write_text(sysconfig.get_path('purelib') + '\n') # a path added this way does not run its own .pth files
    run(sys.executable, '-m', 'pip', '--python', env/'bin/python', 'install', '-q', '--no-deps', '--no-index', '--force-reinstall', wheel, cwd=env)
    return env/'bin/python'


@pytest.fixture
def elsewhere(tmp_path): return tmp_path


def test_wheel_holds_the_package_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    stray = [n for n in names if not re.match(r'llmbook(-[\d.]+\.dist-info)?/', n)]
    assert not stray, f'in the wheel, and should not be: {stray}'
    wanted = {p.relative_to(ROOT).as_posix() for p in (ROOT/'llmbook').rglob('*')
              if p.is_file() and '__pycache__' not in p.parts and (p.suffix == '.py' or 'assets' in p.parts)}
    assert wanted <= set(names), f'missing from the wheel: {wanted - set(names)}'
    assert any(n.endswith('/LICENSE') for n in names)


def test_wheel_says_what_settings_say(wheel):
    z = zipfile.ZipFile(wheel)
    read = lambda name: z.read(next(n for n in z.namelist() if n.endswith(name))).decode()
    meta, points = read('.dist-info/METADATA'), read('.dist-info/entry_points.txt')
    assert f"Version: {CFG['version']}\n" in meta and 'License-Expression: Apache-2.0' in meta
    required = {m[0] for m in re.findall(r'^Requires-Dist: ([\w.-]+)([^\n]*)$', meta, re.M) if 'extra ==' not in m[1]}
    assert required == {re.split(r'[<>=!~;]', x.strip())[0] for x in CFG['requirements'].splitlines() if x.strip()}
    assert [s for s in SCRIPTS if f'{s} = ' not in points] == []


def test_every_import_is_required():
    "What the package imports stands in settings.ini, so that an empty environment has it."
    import ast
    from importlib.metadata import packages_distributions
    dists = packages_distributions()
    norm = lambda s: re.sub(r'[-_.]+', '-', s.lower())
    required = {norm(re.split(r'[<>=!~\[;]', x.strip())[0]) for x in CFG['requirements'].splitlines() if x.strip()}
    optional = {'ray', 'torchvision', 'IPython', 'compression'} # used where they are; IPython comes with ipywidgets, compression with Python 3.14
    missing = set()
    for p in (ROOT/'llmbook').rglob('*.py'):
        for n in ast.walk(ast.parse(p.read_text())):
            names = [a.name for a in n.names] if isinstance(n, ast.Import) else [n.module] if isinstance(n, ast.ImportFrom) and not n.level else []
            for top in {(x or '').split('.')[0] for x in names} - set(sys.stdlib_module_names) - {'llmbook', ''} - optional:
                if not required & {norm(d) for d in dists.get(top, [top])}: missing.add(f'{p.relative_to(ROOT)}: {top}')
    assert not missing, f'imported and not in settings.ini: {sorted(missing)}'


def test_wheel_runs_elsewhere(python, elsewhere):
    out = run(python, '-c', 'import llmbook; print(llmbook.__version__, llmbook.__file__)', cwd=elsewhere).split()
    assert out[0] == CFG['version']
    assert Path(out[1]).is_relative_to(python.parent.parent), f'imported from {out[1]}, not from the wheel'


def test_star_import_elsewhere(python, elsewhere):
    if 'llmbook.all' not in MODULES: pytest.skip('llmbook.all is not there yet')
    code = 'from llmbook.all import *; print(callable(lm_learner), callable(prepare), callable(generate))'
    assert run(python, '-c', code, cwd=elsewhere).split()[-3:] == ['True'] * 3


@pytest.mark.parametrize('script', SCRIPTS)
def test_commands_are_installed(python, script): assert (python.parent/script).exists()


def test_a_command_runs_elsewhere(python, elsewhere):
    if 'llmbook.cli' not in MODULES: pytest.skip('llmbook.cli is not there yet')
    assert '--minutes' in run(python.parent/'llmbook-plan', '--help', cwd=elsewhere)


PROBE = '''
import importlib, json, socket, sys
def refuse(*a, **k): raise RuntimeError("a module uses the network while it is imported")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
res, seen = {}, set()
for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
    now = {h for h in json.loads(sys.argv[2]) if h in sys.modules}
    if "matplotlib" in sys.modules and "fastai" not in sys.modules: now.add("matplotlib")
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_initialized(): now.add("a CUDA context")
    if now - seen: res[name] = sorted(now - seen)
    seen |= now
print(json.dumps(res))
'''


def test_importing_is_cheap_and_quiet(python, elsewhere):
    "No network, no CUDA context, none of the heavy libraries that only some functions need."
    out = run(python, '-c', PROBE, json.dumps(MODULES), json.dumps(HEAVY), cwd=elsewhere)
    assert json.loads(out.splitlines()[-1]) == {}, 'imported too early (move it into the function that needs it)'
