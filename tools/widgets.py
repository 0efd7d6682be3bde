"""Remove from the notebooks what widgets left there.

The state of a widget is of no use without its kernel, and a site loads scripts from elsewhere for a page that holds
one.
A progress bar that was stored as a widget shows its first moment for ever, so it goes as a whole.
"""
import json, re
from house import ROOT, notebooks

VIEW = 'application/vnd.jupyter.widget-view+json'
BAR = re.compile(r'\d+%\|')


def without_view(output):
    "Return an output without its widget; None if nothing but a progress bar or a widget's name would be left."
    data = output.get('data', {})
    if VIEW not in data: return output
    rest = {kind: value for kind, value in data.items() if kind != VIEW}
    words = ''.join(rest.get('text/plain', ''))
    is_bare = set(rest) <= {'text/plain'}
    if is_bare and (BAR.search(words) or '(' in words or not words): return None
    return dict(output, data=rest)


def clean(nb):
    "Remove the state and the views of widgets from a notebook; return whether there were any."
    found = nb['metadata'].pop('widgets', None) is not None
    for cell in nb['cells']:
        outputs = cell.get('outputs', [])
        kept = [output for output in map(without_view, outputs) if output is not None]
        if kept == outputs: continue
        cell['outputs'] = kept
        found = True
    return found


def main():
    for path in notebooks():
        nb = json.loads(path.read_text(encoding='utf-8'))
        if not clean(nb): continue
        text = json.dumps(nb, indent=1, ensure_ascii=False, sort_keys=True)
        path.write_text(f'{text}\n', encoding='utf-8')
        print(f'{path.relative_to(ROOT)}: without the state of widgets')


if __name__ == '__main__': main()
