"What `make` says on a machine where it cannot set itself up: one line on what to do, and nothing half-made is taken for whole."
import os, shutil, subprocess, sys
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(os.name == 'nt' or not shutil.which('make'), reason='make and a POSIX shell are needed')


@pytest.fixture
def clone(tmp_path):
    "The files that the installation looks at."
    to = tmp_path/'clone'
    (to/'tools').mkdir(parents=True)
    for f in ('Makefile', 'tools/setup.sh', 'settings.ini', 'setup.py', 'pyproject.toml', 'constraints.txt', 'README.md'): shutil.copy(ROOT/f, to/f)
    return to


@pytest.fixture
def bare(tmp_path):
    "A folder of programs in which there is no Python."
    to = tmp_path/'bin'
    to.mkdir()
    for name in ('sh', 'make', 'rm', 'grep', 'tail', 'sed', 'cut', 'cat', 'touch'): (to/name).symlink_to(shutil.which(name))
    return to


def fake(folder, name, version):
    "A program that says it is Python `version`, and is of no use otherwise."
    f = folder/name
    f.write_text(f'#!/bin/sh\ncase "$2" in *platform*) echo {version};; *) exit 1;; esac\n')
    f.chmod(0o755)


def make(clone, path, **env):
    "What `make run` says on standard error, make's own closing line apart."
    r = subprocess.run(['make', 'run'], cwd=clone, env={'PATH': str(path), 'HOME': str(clone), **env}, capture_output=True, text=True)
    assert r.returncode != 0 and not (clone/'.venv/installed').exists()
    return [l for l in r.stderr.splitlines() if not l.startswith('make')]


def test_no_python(clone, bare):
    lines = make(clone, bare)
    assert len(lines) == 1 and 'expected Python 3.11 to 3.13, found none' in lines[0] and 'install one' in lines[0]


@pytest.mark.parametrize('version', ['2.7.18', '3.10.13', '3.14.0'])
def test_python_too_old_or_too_new(clone, bare, version):
    fake(bare, 'python3', version)
    lines = make(clone, bare)
    assert len(lines) == 1 and f'found {version}' in lines[0] and 'install one' in lines[0]
    assert not (clone/'.venv').exists()


def test_a_python_that_was_named_and_does_not_fit(clone, bare):
    fake(bare, 'mine', '3.9.1')
    lines = make(clone, f'{bare}:{Path(sys.executable).parent}', PYTHON='mine')
    assert len(lines) == 1 and 'found 3.9.1 (mine)' in lines[0]


def test_no_network(clone, bare):
    (bare/'python3').symlink_to(sys.executable)
    closed = dict(PIP_INDEX_URL='http://127.0.0.1:9/simple', PIP_RETRIES='1', PIP_CONFIG_FILE=os.devnull, PIP_TIMEOUT='2')
    lines = make(clone, bare, **closed)
    assert len(lines) == 1 and 'the package index cannot be reached: check the network' in lines[0]
    assert make(clone, bare, **closed) == lines, 'a second try goes the same way: the half-made environment was not taken for whole'


def test_an_environment_that_does_not_run_is_made_again(clone, bare):
    (clone/'.venv/bin').mkdir(parents=True)
    (clone/'.venv/bin/python').write_text('half of a program')
    lines = make(clone, bare)
    assert 'found none' in lines[0]
