"Run a small program of `tests/programs` in a process of its own."
import json, os, subprocess, sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent
PROGRAMS = TESTS/'programs'


def run_program(name, *args, stdin=None, **env):
    "Run `tests/programs/NAME.py` with arguments and further environment variables; return the finished process."
    path = os.pathsep.join([str(TESTS.parent), str(TESTS), os.environ.get('PYTHONPATH', '')])
    command = [sys.executable, '-X', 'utf8', str(PROGRAMS/f'{name}.py'), *map(str, args)]
    env = {**os.environ, 'PYTHONPATH': path, **env}
    return subprocess.run(command, input=stdin, capture_output=True, encoding='utf-8', env=env, timeout=300)


def output_of(name, *args, stdin=None, **env):
    "Return what a program prints; it must end well."
    process = run_program(name, *args, stdin=stdin, **env)
    assert process.returncode == 0, process.stderr
    return process.stdout


def heavy_imports(modules, heavy):
    "Return which of the heavy libraries importing these modules brings in: {module: [library]}."
    return json.loads(output_of('import_quietly', json.dumps(modules), json.dumps(heavy)).splitlines()[-1])
