"Run a small program of `tests/programs` in a process of its own."
import os, subprocess, sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent


def run_program(name, *args, **env):
    "Run `tests/programs/NAME.py` with arguments and further environment variables; return the finished process."
    path = os.pathsep.join([str(TESTS.parent), str(TESTS), os.environ.get('PYTHONPATH', '')])
    command = [sys.executable, '-X', 'utf8', str(TESTS/'programs'/f'{name}.py'), *map(str, args)]
    env = {**os.environ, 'PYTHONPATH': path, **env}
    return subprocess.run(command, capture_output=True, encoding='utf-8', env=env, timeout=300)
