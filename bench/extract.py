"""Score the main text of labelled web pages: llmbook, Resiliparse's own rules, and trafilatura where it is installed.

    python bench/extract.py FOLDER [--worst N]

The folder holds, for each page, `NAME.html` (UTF-8) and `NAME.txt`, the text that a person would call its content.
Each folder in it is a group that gets a line of its own. The pages stay where they are: public sets of this kind are
made of other people's articles.

A page's precision is the share of the words of the extracted text that stand in the label, its recall the share of the
label's words that were extracted; words are counted as often as they occur, and each character of a script without
spaces is a word. The table has the means over the pages. Time is processor time, each extractor by itself, after it
has read one page. The ratio is trafilatura's time by llmbook's.
"""
import re, sys, time
from collections import Counter
from functools import partial
from pathlib import Path
from llmbook.read.html import extract_html

GOAL = 5.
NO_SPACES = '\u0e00-\u0e7f\u1000-\u109f\u3040-\u30ff\u4e00-\u9fff' # Thai, Burmese, Japanese, Chinese
WORD = re.compile(rf'[{NO_SPACES}]|[^\W{NO_SPACES}]+')


def words(text): return Counter(WORD.findall(text.lower()))


def read_pages(folder):
    "Return [(group, name, page, words of the label)]."
    pages = []
    for label in sorted(folder.rglob('*.txt')):
        page = label.with_suffix('.html')
        if not page.is_file(): continue
        wanted = words(label.read_text(encoding='utf-8'))
        group = '' if label.parent == folder else label.parent.name
        if wanted: pages.append((group, label.stem, page.read_text(encoding='utf-8', errors='replace'), wanted))
    return pages


def score(found, wanted):
    "Return F1, precision and recall of one page, each from 0 to 1."
    shared = (found & wanted).total()
    if not shared: return 0., 0., 0.
    precision, recall = shared / found.total(), shared / wanted.total()
    return 2 * precision * recall / (precision + recall), precision, recall


def extractors():
    "Return the functions that are compared: {name: function from a page to its text}."
    from resiliparse.extract.html2text import extract_plain_text
    res = {'llmbook': extract_html, 'Resiliparse, all text': partial(extract_plain_text, alt_texts=False),
           'Resiliparse, main content': partial(extract_plain_text, main_content=True, alt_texts=False)}
    try: from trafilatura import extract
    except ImportError: print('trafilatura is not installed: `pip install trafilatura`')
    else: res['trafilatura'] = lambda page: extract(page) or ''
    return res


def mean(rows): return [sum(column) / len(rows) for column in zip(*rows)]


def show(name, rows, seconds=None):
    f1, precision, recall = mean(rows)
    line = f'{name:28}{len(rows):6}{f1:8.3f}{precision:11.3f}{recall:8.3f}'
    print(line if seconds is None else f'{line}{1000 * seconds / len(rows):11.2f}')


def compare(pages, worst):
    "Print the table and return the seconds that each extractor took."
    seconds = {}
    print(f'{"":28}{"pages":>6}{"F1":>8}{"precision":>11}{"recall":>8}{"ms a page":>11}')
    groups, names, sources, wanted = zip(*pages)
    for side, extract in extractors().items():
        extract(sources[0]) # warm up
        start = time.process_time()
        texts = [extract(source) for source in sources]
        seconds[side] = time.process_time() - start
        rows = [score(words(text), want) for text, want in zip(texts, wanted)]
        show(side, rows, seconds[side])
        for group in sorted(set(groups) - {''}):
            of_group = [row for row, its_group in zip(rows, groups) if its_group == group]
            show(f'  {group}', of_group)
        if side == 'llmbook': show_worst(rows, names, worst)
    return seconds


def show_worst(rows, names, n):
    "Print the n pages with the lowest F1."
    ranked = sorted(zip(rows, names))
    for (f1, precision, recall), name in ranked[:n]:
        print(f'    {name[:24]:24}{"":6}{f1:8.3f}{precision:11.3f}{recall:8.3f}')


def main(args):
    if not args:
        print(__doc__.partition('\n\n')[0])
        print('extract: no folder of labelled pages was named, so nothing was measured')
        return
    pages = read_pages(Path(args[0]))
    if not pages: sys.exit(f"expected a folder with NAME.html and NAME.txt, found no such pair in '{args[0]}'")
    seconds = compare(pages, int(args[2]) if args[1:2] == ['--worst'] else 0)
    if 'trafilatura' in seconds:
        print(f'extract: ratio {seconds["trafilatura"] / seconds["llmbook"]:.2f} goal {GOAL:.2f}')


if __name__ == '__main__': main(sys.argv[1:])
