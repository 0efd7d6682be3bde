"""Peak memory of a preparation with two workers, for a corpus and for one ten times as large.

The ratio is small over large.
"""
import subprocess, sys, threading
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
import psutil
from _corpus import documents, shuffled, write

MB, TIMES = 12, 10


def resident(process):
    "Return the memory of a process and all its children, in bytes; pages that they share count once (PSS)."
    total = 0
    for p in (process, *process.children(recursive=True)):
        try: total += p.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied): pass
    return total


def peak(path, out):
    "Return the highest of many measurements while `prepare` runs."
    program = Path(__file__).parent/'_prepare.py'
    child = subprocess.Popen([sys.executable, program, path, out])
    process = psutil.Process(child.pid)
    highest = 0
    never = threading.Event()
    while child.poll() is None:
        try: highest = max(highest, resident(process))
        except psutil.NoSuchProcess: break
        never.wait(.1)
    if child.wait(): sys.exit('prepare failed')
    return highest


if __name__ == '__main__':
    with TemporaryDirectory() as folder:
        folder = Path(folder)
        docs = list(documents(MB * 1_000_000))
        more = (shuffled(doc, k) for k in range(1, TIMES) for doc in docs)
        sizes = [write(folder/'1.jsonl', docs), write(folder/'10.jsonl', chain(docs, more))]
        peaks = [peak(folder/f'{name}.jsonl', folder/f'out{name}') for name in (1, TIMES)]
    for n, p in zip(sizes, peaks): print(f'{n / 1e6:6.1f} MB of text: peak {p / 1e6:.0f} MB in all processes')
    small, large = peaks
    print(f'ten times the text takes {large / small:.2f} times the memory (goal at most 1.2); '
          f'under 1,500 MB: {large < 1.5e9}')
    print(f'memory: ratio {small / large:.2f} goal 0.83')
