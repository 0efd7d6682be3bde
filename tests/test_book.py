"The chapters of the book have one form, their exercises can be solved, and the pages made from them are in step."
import re, sys
from pathlib import Path
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/'tools'))
import course, diagrams, house
from llmbook.core import UserError
from llmbook.teach.answer import Exercise, Mark, answers_agree
from llmbook.teach.exercises import EXERCISES, check_answer

CHAPTERS = course.chapters()
WHOLE = [path for path in CHAPTERS if '## Exercises' in course.markdown(path)]
NAMES = [path.stem for path in WHOLE]


# ---- checks of answers ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize('answer,wanted,same', [
    (2.501, 2.5, True), (2.6, 2.5, False), ('2.5', 2.5, False), (True, 1, False), (1, True, False),
    (np.float32(2.5), 2.5, True), ([1, 2], (1, 2), True), ([[1, 2]], [1, 2], False), ('Nfc ', 'NFC', True),
    ({'a': [1, 2]}, {'a': [1, 2]}, True), ({'a': 1, 'b': 2}, {'a': 1}, False), ({1, 2}, {2, 1}, True),
    ([1, 2], {1, 2}, False), (float('nan'), 1., False), (None, 1., False), (['x'], ['x'], True), (['x'], ['y'], False),
    (None, None, True), (0, None, False), ([1, None], [1, None], True), ([1, 2], [1, None], False),
    ('a\nb', 'a b', True), ('a b', 'a\nb', False), ('a\nb\n', 'a\nb', False), ('A\nb', 'a\nb', False),
    ({'a': None}, {'a': None}, True), (['a\n'], ['a'], True), (['a'], ['a\n'], False), (1, [1, None], False),
])
def test_answers_are_compared_as_a_reader_would(answer, wanted, same):
    assert answers_agree(answer, wanted) is same


def test_case_and_space_count_where_an_exercise_says_so():
    strict = Exercise('NFC', 'general', exact=True, mistakes=(('nfc', 'mind the case'),))
    assert strict.mark('NFC')
    assert strict.mark('nfc').text == 'mind the case'
    assert strict.mark(' NFC').text == 'general'
    assert Exercise(None, 'general').mark(None)
    assert Exercise(None, 'general').mark(...).right is None


def test_a_tensor_is_an_array():
    import torch
    assert answers_agree(torch.tensor([1., 2.], requires_grad=True), [1, 2])
    assert answers_agree(torch.tensor(3.), 3)


def test_a_known_mistake_has_its_own_hint():
    exercise = Exercise(2.5, 'general', mistakes=((3., 'special'),))
    assert exercise.mark(3).text == 'special'
    assert exercise.mark(9).text == 'general'
    assert exercise.mark(...).right is None
    assert 'number' in exercise.mark('two').text


def test_a_function_that_raises_is_a_hint_and_changes_nothing():
    def wanted(values): return sorted(values)
    def spoils(values): values.clear()
    inputs = (([2, 1],),)
    exercise = Exercise(wanted, 'sort', inputs=inputs)
    assert 'ZeroDivisionError' in exercise.mark(lambda values: 1 / 0).text
    assert 'return' in exercise.mark(spoils).text
    assert inputs == (([2, 1],),)
    assert exercise.mark(sorted)


def test_what_a_reader_typed_is_escaped():
    def rude(values): raise ValueError('<script>alert(1)</script>')
    mark = Exercise(len, 'count', inputs=(([],),)).mark(rude)
    assert '<script>' not in mark._repr_html_()
    assert '<script>' in repr(mark)


def test_a_mark_is_read_without_colour():
    assert repr(Mark(True, 'well done.')) == 'Right: well done.'
    assert 'role="status"' in Mark(False, 'x')._repr_html_()


def test_an_unknown_exercise_is_refused():
    with pytest.raises(UserError, match='expected the name of an exercise'): check_answer('77.1', 1)


@pytest.mark.parametrize('name', sorted(EXERCISES))
def test_no_exercise_shows_its_answer(name):
    exercise = EXERCISES[name]
    said = [exercise.hint, exercise.praise, *(hint for _, hint in exercise.mistakes)]
    for wrong in (None, 'nonsense', 10**9, [], len):
        mark = exercise.mark(wrong)
        assert mark.right is False
        said.append(mark.text)
    if exercise.inputs: return
    assert not [text for text in said if f'{exercise.wanted:.4g}' in re.findall(r'[\d.]+\d', text)]


@pytest.mark.parametrize('name', sorted(EXERCISES))
def test_each_mistake_is_told_by_its_hint(name):
    exercise = EXERCISES[name]
    for wrong, hint in exercise.mistakes: assert exercise.mark(wrong) == Mark(False, hint)


# ---- chapters ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('path', WHOLE, ids=NAMES)
def test_a_solution_is_right_and_an_open_answer_is_open(path):
    found = course.exercises(path)
    assert [number for number, *_ in found] == [1, 2, 3]
    for number, _, check, solution in found:
        name = f'{path.stem[:2]}.{number}'
        assert f"check_answer('{name}'" in check and solution
        space = dict(check_answer=check_answer)
        exec(check, space)
        variable = re.search(r'^(\w+) = \.\.\.', check, re.M)[1]
        assert check_answer(name, space[variable]).right is None
        exec(solution, space)
        assert check_answer(name, space[variable]), name


@pytest.mark.parametrize('path', WHOLE, ids=NAMES)
def test_a_chapter_has_the_form_of_the_book(path):
    text = course.markdown(path)
    picture = re.search(r'!\[([^\]]{20,})\]\(\.\./images/(\S+\.svg)\)', text)
    assert picture and (ROOT/'nbs/images'/picture[2]).exists(), 'no drawing with an alternative text'
    assert '?' in text.partition('![')[0], 'no question opens the chapter'
    asked = course.questions(path)
    assert 3 <= len(asked) <= 9
    assert max(len(ask) for _, ask, _ in asked) < 400, 'more than the question was taken for it'
    assert course.terms(path)
    assert re.search(r'^## What next\n\n.*\.ipynb\)', text, re.M | re.S)
    papers = text.partition('## Three papers')[2]
    assert len(re.findall(r'https://arxiv\.org/abs/\d{4}\.\d{4,5}', papers)) == 3


@pytest.mark.parametrize('path', WHOLE, ids=NAMES)
def test_code_fits_the_page(path):
    code = [source for kind, source, _ in house.cells(path) if kind == 'code']
    long = [line for source in code for line in source.splitlines() if len(line) > 100]
    assert not long
    prose = len(course.markdown(path).split())
    assert prose >= 1.5 * len(' '.join(code).split())


def test_a_term_is_explained_once():
    found = [term.lower() for path in CHAPTERS for term, _ in course.terms(path)]
    twice = sorted({term for term in found if found.count(term) > 1})
    assert not twice


def test_pages_made_from_the_chapters_are_in_step():
    for name, notebook in course.pages().items():
        stored = house.cells(ROOT/f'nbs/book/{name}.ipynb')
        made = [''.join(cell['source']) for cell in notebook['cells']]
        assert [source for _, source, _ in stored] == made, 'run `make export`'
    unlinked = [line for path in CHAPTERS for line in course.markdown(path).splitlines() if course.linked(line) != line]
    assert not unlinked, 'run `make export`'


# ---- drawings ------------------------------------------------------------------------------------------------------

def luminance(colour):
    "Return the relative luminance of a colour such as '#2f5f93' (WCAG)."
    parts = [int(colour[i:i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= .04045 else ((part + .055) / 1.055)**2.4 for part in parts]
    return .2126 * linear[0] + .7152 * linear[1] + .0722 * linear[2]


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + .05) / (low + .05)


@pytest.mark.parametrize('name', diagrams.NAMES)
def test_a_drawing_is_in_step_and_readable(name):
    stored = (ROOT/f'nbs/images/{name}.svg').read_text(encoding='utf-8')
    assert stored == str(diagrams.drawing(name)), 'run tools/diagrams.py'
    assert 'aria-label="' in stored
    grounds = set(re.findall(r'<rect [^>]*fill="(#\w+)"', stored))
    assert all(contrast(ground, '#ffffff') >= 4.5 for ground in grounds)
    arrows = set(re.findall(r'stroke="(#\w+)"', stored))
    assert all(contrast(arrow, page) >= 3 for arrow in arrows for page in ('#ffffff', '#000000', '#222222'))


def test_the_start_page_lists_every_chapter():
    text = course.markdown(ROOT/'nbs/index.ipynb')
    assert course.chapter_list(CHAPTERS)
    missing = [line for line in course.chapter_list(CHAPTERS) if line not in text]
    assert not missing, 'run `make export`'
