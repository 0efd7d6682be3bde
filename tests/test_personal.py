"Personal data in many scripts, and what only looks like it: lines with labels, precision and recall."
import re
from collections import Counter
import pytest
from personal_lines import FOUND, LEFT
from llmbook.clean.pii import mask_personal

LABEL = re.compile(r'\[\[(\w+):(.*?)\]\]')
MARK = re.compile('<(email|ip|phone|card|iban|secret)>')

def plain(line): return LABEL.sub(r'\2', line)
def masked(line): return LABEL.sub(r'<\1>', line)

def test_there_are_enough_lines_and_as_many_of_either_sort():
    assert len(FOUND) + len(LEFT) >= 200
    assert .4 < len(FOUND) / (len(FOUND) + len(LEFT)) < .6

@pytest.mark.parametrize('line', FOUND)
def test_personal_data_is_masked_and_nothing_beside_it(line): assert mask_personal(plain(line))[0] == masked(line)

@pytest.mark.parametrize('line', LEFT)
def test_what_only_looks_personal_stays(line): assert mask_personal(line) == (line, {})

def count_kinds(lines, masked_lines):
    "Return how many of each kind there are by the labels of the lines, and how many of them were found."
    wanted, right = Counter(), Counter()
    for line, got in zip(lines, masked_lines, strict=True):
        labels = Counter(kind for kind, _ in LABEL.findall(line))
        marks = Counter(MARK.findall(got))
        wanted += labels
        right += marks & labels
    return wanted, right

def test_precision_and_recall():
    "Count by kind what is found of what is there, and what is found besides, with all lines in one text."
    lines = FOUND + LEFT
    out, found = mask_personal('\n'.join(map(plain, lines)))
    wanted, right = count_kinds(lines, out.split('\n'))
    for kind in wanted:
        assert right[kind] / wanted[kind] >= .98, (kind, 'recall')
        assert right[kind] / found[kind] >= .98, (kind, 'precision')
