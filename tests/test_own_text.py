"Questions made of held-out text, and its documents as items."
import numpy as np
import pytest
from llmbook.core import UserError
from llmbook.evaluate.items import ItemStore, score_rows
from llmbook.evaluate.own_text import endings_task, store_documents
from llmbook.evaluate.stats import item_ids, row, with_items
from llmbook.evaluate.tasks import questions


def documents(n=8, words=60, kind='prose'):
    return [dict(id=f'{kind} {i}', kind=kind, text=' '.join(f'{kind}-{i}-{j}' for j in range(words))) for i in range(n)]


def test_the_right_ending_follows_its_beginning():
    task = endings_task(documents(), n=20, before=6, after=4)
    asked, rejects = questions(task)
    assert len(asked) == 20 and not rejects
    for q in asked:
        kind, document, last = q.prompt.split()[-1].split('-')
        right = q.choices[q.gold[0]].split()
        assert right[0] == f'{kind}-{document}-{int(last) + 1}'
        assert {len(choice.split()) for choice in q.choices} == {4}
        assert q.cluster == f'{kind} {document}'
        others = [choice for i, choice in enumerate(q.choices) if i != q.gold[0]]
        assert all(choice.split('-')[1] != document for choice in others)


def test_endings_come_from_the_same_kind_where_there_are_enough():
    docs = documents(5) + documents(5, kind='code')
    for q in questions(endings_task(docs, before=6, after=4))[0]:
        kind = q.prompt.split('-')[0]
        assert all(choice.startswith(kind) for choice in q.choices)
    few = documents(4) + documents(1, kind='code')
    assert len(questions(endings_task(few, before=6, after=4))[0]) == 20


def test_a_seed_draws_the_same_questions():
    first, again = (endings_task(documents(), seed=3).docs for _ in range(2))
    assert first == again != endings_task(documents(), seed=4).docs
    places = {record['right'] for record in endings_task(documents(40), n=100).docs}
    assert places == {0, 1, 2, 3}


BAD = [dict(docs=documents(3)), dict(docs=documents(9, words=20)), dict(n=0), dict(each=0), dict(before=0),
       dict(seed=-1), dict(docs='text'), dict(n='many')]


@pytest.mark.parametrize('bad', BAD)
def test_questions_that_cannot_be_made(bad):
    with pytest.raises(UserError, match='expected'): endings_task(**{'docs': documents(), **bad})


def test_documents_are_kept_with_their_bits(tmp_path):
    docs = documents(3)
    pairs = np.array([[20., 10], [30, 10], [10, 20]])
    made = with_items(row('bits_per_byte', 1.5, n=3), item_ids([doc['text'] for doc in docs]), pairs, 'ratio')
    store = ItemStore(tmp_path)
    for _ in range(2): key = store_documents(store, made, docs, 'weights', 'tokens')
    assert store.keys() == [key] and len(store.read(key)) == 3
    summed, = score_rows(store, key)
    assert summed['value'] == pytest.approx(60 / 40), 'a ratio of sums'
    with pytest.raises(UserError, match='items of 2'): store_documents(store, made, docs[:2], 'weights', 'tokens')
