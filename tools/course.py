"""Make the pages that are gathered from the chapters: the course, the glossary, the quiz, the list of the start page.

A chapter says what it is made of by its form. A term is explained in a box, `> **Term**: meaning`; a question stands
in a numbered line, with its answer folded below it; an exercise has a heading, a cell that checks it, and a folded
solution. This file reads these forms, so that no page repeats by hand what a chapter says.
"""
import hashlib, json, re
from pathlib import Path
from first_cell import put_first_cell
from house import ROOT, cells, description, notebooks, part, title
from sidebar import PARTS

BOX = re.compile(r'^> \*\*(?:\[(?P<linked>[^\]]+)\]\([^)]*\)|(?P<plain>[^*\[\]]+))\*\*: (?P<meaning>.+)$')
QUESTION = re.compile(r'^(\d+)\. (.+?)\n\n<details><summary>Answer</summary>\n\n(.+?)\n\n</details>', re.S | re.M)
SOLUTION = re.compile(r'<details><summary>Solution</summary>\n\n```python\n(.+?)\n```\n\n</details>', re.S)
EXERCISE = re.compile(r'^### Exercise (\d): (.+)$', re.M)
CHAPTER_LINE = re.compile(r'^  - \*[^*]+\*: \[')
WORDS_A_MINUTE = 180  # of prose that is thought about
EXERCISE_MINUTES = 10
GLOSSARY, QUIZ, COURSE = '92_glossary', '91_quiz', '00_course'
MADE = (GLOSSARY, QUIZ, COURSE)


def chapters(root=ROOT):
    "Return the notebooks of the book that somebody has written, in their order."
    return [path for path in notebooks(root) if part(path) == 'book' and path.stem not in MADE]


def markdown(path):
    "Return the text of a chapter, without its code."
    return '\n\n'.join(source for kind, source, _ in cells(path) if kind == 'markdown')


def terms(path):
    "Return the terms that a chapter explains in its boxes, as pairs of a term and its meaning."
    found = [BOX.match(line) for line in markdown(path).splitlines()]
    return [(match['linked'] or match['plain'], match['meaning']) for match in found if match]


def questions(path):
    "Return a chapter's questions, as triples of a number, the question and the answer."
    _, _, section = markdown(path).partition('\n## Questions\n') # other numbered lists stand before it
    return [(int(number), ask, answer) for number, ask, answer in QUESTION.findall(section)]


def exercises(path):
    "Return a chapter's exercises, as (number, title, source of the cell that checks, solution)."
    found = []
    inside = cells(path)
    for place, (kind, source, _) in enumerate(inside):
        heading = EXERCISE.search(source) if kind == 'markdown' else None
        if not heading: continue
        check = inside[place + 1][1]
        solution = SOLUTION.search(inside[place + 2][1])
        found.append((int(heading[1]), heading[2], check, solution[1] if solution else None))
    return found


def anchor(heading):
    "Return the anchor of a heading, as Pandoc makes it; the offline build takes it from here, too."
    kept = re.sub(r'[^\w\s.-]', '', heading.lower())
    joined = re.sub(r'\s+', '-', kept.strip())
    return re.sub(r'^[\W\d_]+', '', joined) or 'section'


def link_terms(path):
    "Link each term of a chapter's boxes to the glossary; return whether something changed."
    notebook = json.loads(path.read_text(encoding='utf-8'))
    before = json.dumps(notebook)
    for cell in notebook['cells']:
        if cell['cell_type'] != 'markdown': continue
        lines = [linked(line) for line in ''.join(cell['source']).split('\n')]
        cell['source'] = '\n'.join(lines).splitlines(True)
    if json.dumps(notebook) == before: return False
    write(path, notebook)
    return True


def linked(line):
    "Return a line of a box with its term linked to the glossary."
    match = BOX.match(line)
    if not match: return line
    term = match['linked'] or match['plain']
    return f'> **[{term}]({GLOSSARY}.ipynb#{anchor(term)})**: {match["meaning"]}'


def write(path, notebook):
    "Write a notebook as nbdev-clean leaves it."
    text = json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True)
    path.write_text(f'{text}\n', encoding='utf-8')


# ---- the pages -----------------------------------------------------------------------------------------------------

def glossary(paths):
    "Return the glossary's Markdown, one cell a letter."
    found = [(term, meaning, path) for path in paths for term, meaning in terms(path)]
    found.sort(key=lambda entry: entry[0].lower())
    made = ['# Glossary\n\n> Every term that the chapters explain, with the chapter that explains it',
            'These are the boxes of the chapters, in the order of the alphabet. This page is made from them '
            '(`tools/course.py`): change a meaning in its chapter.']
    for term, meaning, path in found:
        where = f'Explained in [{title(path)}]({path.name}).'
        sentence = meaning[0].upper() + meaning[1:]
        made.append(f'## {term}\n\n{sentence}\n\n{where}')
    return made


def quiz(paths):
    "Return the quiz's Markdown, one cell a chapter."
    made = ['# The quiz\n\n> The questions of all chapters, with answers that unfold',
            'Answer aloud before you unfold. This page is made from the chapters (`tools/course.py`).']
    for path in paths:
        parts = [f'## {title(path)}', f'From the chapter [{title(path)}]({path.name}).']
        for number, ask, answer in questions(path):
            parts.append(f'**{number}.** {ask}\n\n<details><summary>Answer</summary>\n\n{answer}\n\n</details>')
        made.append('\n\n'.join(parts))
    return made


def reading_minutes(path):
    "Return how long a chapter takes to read, rounded up to five minutes."
    words = len(markdown(path).split())
    return -(-words // (5 * WORDS_A_MINUTE)) * 5


def way(name, purpose, paths):
    "Return one part of the book: what it is for, and a row for each chapter."
    rows = ['| | chapter | what it is about | to read | exercises |', '|---|---|---|---|---|']
    for path in paths:
        minutes = f'{reading_minutes(path)} min'
        link = f'[{title(path)}]({path.name})'
        rows.append(f'| {path.stem[:2]} | {link} | {description(path)} | {minutes} | {len(exercises(path))} |')
    return f'### {name}\n\nAfter it you can {purpose}.\n\n' + '\n'.join(rows)


def course(paths):
    "Return the course's Markdown: the path with times, and the map."
    made = ['# The course\n\n> The way through the chapters, with times, and a map of what stands where',
            (ROOT/'tools/static/course.md').read_text(encoding='utf-8').strip()]
    made.append('## The way')
    for part_name, (first, last, purpose) in PARTS.items():
        inside = [path for path in paths if first <= path.stem[:2] <= last]
        if inside: made.append(way(part_name, purpose, inside))
    reading = sum(map(reading_minutes, paths)) / 60
    solving = sum(len(exercises(path)) for path in paths) * EXERCISE_MINUTES / 60
    made.append(f'Together about {reading:.1f} hours to read, and {solving:.1f} hours for the exercises, at {EXERCISE_MINUTES} minutes '
                'each. The cells of most chapters run in a minute or two, those of the first in ten.')
    made.append('## The map\n\n' + '\n'.join(map_lines(paths)))
    made.append(f'## Beside the chapters\n\n- [The quiz]({QUIZ}.ipynb): the questions of all chapters.\n'
                f'- [The glossary]({GLOSSARY}.ipynb): every term that a chapter explains.')
    return made


def map_lines(paths):
    "Return one line for each chapter: its terms, linked to the glossary."
    lines = []
    for path in paths:
        named = [f'[{term}]({GLOSSARY}.ipynb#{anchor(term)})' for term, _ in terms(path)]
        if named: lines.append(f'- **[{title(path)}]({path.name})**: ' + ', '.join(named))
    return lines


def chapter_list(paths):
    "Return the lines of the start page that list the chapters, a line a part."
    lines = []
    for part_name, (first, last, _) in PARTS.items():
        links = [f'[{small_title(path)}](book/{path.name})' for path in paths if first <= path.stem[:2] <= last]
        if links: lines.append(f'  - *{part_name}*: {", ".join(links)}.')
    return lines


def small_title(path):
    "Return a chapter's title as it stands inside a sentence."
    name = title(path)
    return name[0].lower() + name[1:]


def with_chapters(source, lines):
    "Return the text of the start page with the lines of its chapters exchanged."
    kept = source.split('\n')
    old = [i for i, line in enumerate(kept) if CHAPTER_LINE.match(line)]
    return '\n'.join(kept[:old[0]] + lines + kept[old[-1] + 1:]) if old else source


def update_start_page(paths, root=ROOT):
    "Write the list of chapters into the start page."
    path = root/'nbs/index.ipynb'
    notebook = json.loads(path.read_text(encoding='utf-8'))
    for cell in notebook['cells']:
        cell['source'] = with_chapters(''.join(cell['source']), chapter_list(paths)).splitlines(True)
    write(path, notebook)


def page(texts):
    "Return a notebook of Markdown cells."
    made = []
    for text in texts:
        name = hashlib.sha1(text.encode()).hexdigest()[:8]
        made.append(dict(cell_type='markdown', id=name, metadata={}, source=text.splitlines(True)))
    kernel = dict(display_name='python3', language='python', name='python3')
    return dict(cells=made, metadata=dict(kernelspec=kernel), nbformat=4, nbformat_minor=5)


def pages(root=ROOT):
    "Return name -> notebook for the pages that are made."
    paths = chapters(root)
    return {GLOSSARY: page(glossary(paths)), QUIZ: page(quiz(paths)), COURSE: page(course(paths))}


if __name__ == '__main__':
    for path in chapters():
        link_terms(path)
        put_first_cell(path)
    update_start_page(chapters())
    for name, notebook in pages().items(): write(ROOT/f'nbs/book/{name}.ipynb', notebook)
    print(f'nbs/book: {len(chapters())} chapters, {sum(len(terms(path)) for path in chapters())} terms')
