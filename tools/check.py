"""Run what `make test` runs: every notebook, then every test.

Each part says how long it took, and the tests run even when a notebook fails.
"""
import os, subprocess, sys, time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
WORKERS = 2


def cores(): return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def threads():
    "Return how many threads torch may use in each worker, as text."
    return str(max(1, cores() // WORKERS))


def part(name, *command, **env):
    "Run one part, say how it went, and return whether it succeeded."
    print(f'== {name}', flush=True)
    start = time.perf_counter()
    ok = subprocess.run([str(c) for c in command], cwd=ROOT, env={**os.environ, **env}).returncode == 0
    verdict = 'ok' if ok else 'FAILED'
    print(f'== {name}: {verdict} in {time.perf_counter() - start:.0f} s', flush=True)
    return ok


def notebooks():
    "Run every notebook but the records; each worker gets its share of the cores."
    command = [BIN/'nbdev-test', 'nbs', '--skip-folder-re', '^[_.]|^records$', '--n-workers', WORKERS, '--timing']
    smaller_book = dict(LLMBOOK_MINUTES='.2', LLMBOOK_MEGABYTES='3')
    return part('notebooks', *command, OMP_NUM_THREADS=threads(), MPLBACKEND='agg', HF_HUB_OFFLINE='1', **smaller_book)


def tests(*args):
    "Run pytest, which comes last so that its closing line is the last one; a file of tests stays with one worker."
    workers = ['-n', str(WORKERS), '--dist', 'loadfile']
    command = [sys.executable, '-m', 'pytest', '-q', '--durations=8', *workers, *args]
    env = {**os.environ, 'HF_HUB_OFFLINE': '1', 'OMP_NUM_THREADS': threads()}
    return subprocess.run(command, cwd=ROOT, env=env).returncode == 0


if __name__ == '__main__':
    good_notebooks = notebooks()
    print('== tests', flush=True)
    good_tests = tests(*sys.argv[1:])
    if not good_notebooks: print('notebooks FAILED, see above', flush=True)
    sys.exit(0 if good_notebooks and good_tests else 1)
