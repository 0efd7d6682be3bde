"""Make the outputs of notebooks fit for every reader: no state of widgets, no folders of one machine, words as well as HTML.

The state of a widget is of no use without its kernel, and a site loads scripts from elsewhere for a page that holds
one. A progress bar that was stored as a widget shows its first moment for ever, so it goes as a whole. A warning names
the file that it comes from; the folders above the package are of no use to a reader. A table of a fit is stored as HTML twice, once in the place of
plain text; who reads the notebook as a text finds lines there.
"""
import json, re
from house import ROOT, notebooks
from llmbook.show.html import html_text

VIEW = 'application/vnd.jupyter.widget-view+json'
HTML_OBJECT = '<IPython.core.display.HTML object>'
BAR = re.compile(r'\d+%\|')
ABOVE = re.compile(r'/(?:[\w.+-]+/)+(?=llmbook/[\w/]+\.py\b)') # the folders above a file of the package


def without_view(output):
    "Return an output without its widget; None if nothing but a progress bar or a widget's name would be left."
    data = output.get('data', {})
    if VIEW not in data: return output
    rest = {kind: value for kind, value in data.items() if kind != VIEW}
    words = ''.join(rest.get('text/plain', ''))
    is_bare = set(rest) <= {'text/plain'}
    if is_bare and (BAR.search(words) or '(' in words or not words): return None
    return dict(output, data=rest)


def without_folders(output):
    "Return an output whose text names the files of the package by their place in it."
    if 'text' not in output: return output
    text = ''.join(output['text'])
    return dict(output, text=ABOVE.sub('', text).splitlines(True))


def with_words(output):
    "Return an output whose plain text has no tags, if it has HTML as well."
    data = output.get('data', {})
    plain = ''.join(data.get('text/plain', ''))
    silent = '</' in plain or plain == HTML_OBJECT
    words = html_text(''.join(data.get('text/html', '')))
    if not silent or not words: return output
    return dict(output, data={**data, 'text/plain': words.splitlines(True)})


def cleaned(output):
    "Return an output as it is stored; None for one that goes as a whole."
    output = without_view(output)
    return output and with_words(without_folders(output))


def clean(nb):
    "Make the outputs of a notebook fit for every reader; return whether there was anything to do."
    found = nb['metadata'].pop('widgets', None) is not None
    for cell in nb['cells']:
        outputs = cell.get('outputs', [])
        kept = [output for output in map(cleaned, outputs) if output is not None]
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
        print(f'{path.relative_to(ROOT)}: outputs made fit for every reader')


if __name__ == '__main__': main()
