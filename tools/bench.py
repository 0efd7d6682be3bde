"""Run every benchmark in bench/ and repeat their lines `NAME: ratio R goal G` together at the end."""
import re, subprocess, sys
from pathlib import Path
import torch

ROOT = Path(__file__).resolve().parent.parent
RATIO = re.compile(r'^\w+: ratio \S+ goal \S+', re.M)


def benches():
    "The scripts that end with a ratio; those named train_* make files instead, and that of a GPU needs one."
    fit = lambda f: not f.name.startswith(('train_', '_')) and 'ratio' in f.read_text() and (f.stem != 'gpu' or torch.cuda.is_available())
    return [f for f in sorted((ROOT/'bench').glob('*.py')) if fit(f)]


def run(script):
    "One benchmark: its ratio lines, or a line that says it failed."
    print(f'== {script.stem}', flush=True)
    r = subprocess.run([sys.executable, str(script)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    print(r.stdout, flush=True)
    lines = RATIO.findall(r.stdout)
    return '\n'.join(lines) if lines and r.returncode == 0 else f'{script.stem}: FAILED'


if __name__ == '__main__':
    lines = [run(f) for f in benches()]
    print('\n'.join(lines) or 'bench/ holds no benchmark yet')
    sys.exit(any(l.endswith('FAILED') for l in lines))
