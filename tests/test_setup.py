"What `make` says where it cannot set itself up: one line on what to do, and nothing half-made is taken for whole."
import os, shutil, subprocess, sys
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parent.parent
NO_MAKE = os.name == 'nt' or not shutil.which('make')
pytestmark = pytest.mark.skipif(NO_MAKE, reason='make and a POSIX shell are needed')
FILES = ('Makefile', 'tools/setup.sh', 'settings.ini', 'setup.py', 'pyproject.toml', 'constraints.txt', 'README.md')
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
    assert 'the package index cannot be reached: check the network' in line
    again = the_line(clone, bare, **closed)
    assert again == line, 'the half-made environment of the first try was taken for whole'


def test_an_environment_that_does_not_run_is_made_again(clone, bare):
    (clone/'.venv/bin').mkdir(parents=True)
    (clone/'.venv/bin/python').write_text('half of a program')
    lines = make(clone, bare)
    assert 'found none' in lines[0]
