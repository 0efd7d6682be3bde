"""What `make test` runs: every notebook, then every test. Each part says how long it took; all run, also when one fails."""
import os, subprocess, sys, time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
WORKERS = 2


def cores(): return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def part(name, *command, **env):
    "Run one part and say how it went."
    print(f'== {name}', flush=True)
    start = time.perf_counter()
    ok = subprocess.run([str(c) for c in command], cwd=ROOT, env={**os.environ, **env}).returncode == 0
    print(f'== {name}: {"ok" if ok else "FAILED"} in {time.perf_counter() - start:.0f} s', flush=True)
    return ok


def notebooks():
    "The notebooks share the cores: each worker's share of threads, or they would stand in each other's way."
    threads = str(max(1, cores() // WORKERS))
    return part('notebooks', BIN/'nbdev-test', 'nbs', '--skip-folder-re', '^[_.]|^records$', '--n-workers', WORKERS,
                '--timing', OMP_NUM_THREADS=threads, MPLBACKEND='agg', HF_HUB_OFFLINE='1',
                LLMBOOK_MINUTES='.2', LLMBOOK_MEGABYTES='3') # the book at a smaller size


def tests(*args):
    "pytest comes last, so that its closing line is the last one."
    return subprocess.run([sys.executable, '-m', 'pytest', '-q', '--durations=8', *args], cwd=ROOT,
                          env={**os.environ, 'HF_HUB_OFFLINE': '1'}).returncode == 0


if __name__ == '__main__':
    good = notebooks()
    print('== tests', flush=True)
    good_tests = tests(*sys.argv[1:])
    if not good: print('notebooks FAILED, see above', flush=True)
    sys.exit(0 if good and good_tests else 1)
