"""Peak memory of a preparation with two workers, for a corpus and for one ten times as large. The ratio is small over large."""
import subprocess, sys, threading
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
import psutil
from _corpus import documents, shuffled, write

MB, TIMES = 12, 10
RUN = 'import sys; from llmbook.prepare.pipeline import prepare; prepare(sys.argv[1], sys.argv[2], workers=2, preset="default", progress=False)'


def resident(process):
    "Memory of a process and all its children, in bytes; pages that they share count once (PSS)."
    total = 0
    for p in (process, *process.children(recursive=True)):
        try: total += p.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied): pass
    return total


def peak(path, out):
    "The highest of many looks while `prepare` runs."
    child = subprocess.Popen([sys.executable, '-c', RUN, str(path), str(out)])
    process, highest, over = psutil.Process(child.pid), 0, threading.Event()
    while child.poll() is None:
        try: highest = max(highest, resident(process))
        except psutil.NoSuchProcess: break
        over.wait(.1)
    if child.wait(): sys.exit('prepare failed')
    return highest


if __name__ == '__main__':
    with TemporaryDirectory() as folder:
        folder, docs = Path(folder), list(documents(MB * 1_000_000))
        sizes = [write(folder/'1.jsonl', docs), write(folder/'10.jsonl', chain(docs, (shuffled(d, k) for k in range(1, TIMES) for d in docs)))]
        peaks = [peak(folder/f'{name}.jsonl', folder/f'out{name}') for name in (1, TIMES)]
    for n, p in zip(sizes, peaks): print(f'{n / 1e6:6.1f} MB of text: peak {p / 1e6:.0f} MB in all processes')
    print(f'ten times the text takes {peaks[1] / peaks[0]:.2f} times the memory (goal at most 1.2); under 1,500 MB: {peaks[1] < 1.5e9}')
    print(f'memory: ratio {peaks[0] / peaks[1]:.2f} goal 0.83')
