"""Run every benchmark in bench/ and repeat their lines `NAME: ratio R goal G` together at the end."""
import re, subprocess, sys
from pathlib import Path
import torch

ROOT = Path(__file__).resolve().parent.parent
RATIO = re.compile(r'^\w+: ratio \S+ goal \S+', re.M)


def has_ratio(script):
    "Return whether a script ends with a ratio here: train_* make files, gpu needs a GPU, extract needs labelled pages."
    if script.name.startswith(('train_', '_')) or script.stem == 'extract': return False
    if script.stem == 'gpu' and not torch.cuda.is_available(): return False
    return 'ratio' in script.read_text()


def run(script):
    "Run one benchmark and return its ratio lines, or a line that says it failed."
    print(f'== {script.stem}', flush=True)
    r = subprocess.run([sys.executable, str(script)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    print(r.stdout, flush=True)
    lines = RATIO.findall(r.stdout)
    if not lines or r.returncode: return f'{script.stem}: FAILED'
    return '\n'.join(lines)


if __name__ == '__main__':
    scripts = sorted((ROOT/'bench').glob('*.py'))
    lines = [run(script) for script in scripts if has_ratio(script)]
    print('\n'.join(lines) or 'bench/ holds no benchmark yet')
    sys.exit(any(line.endswith('FAILED') for line in lines))
