"Rows of any answers: length, ends, variety and repetition, in an evaluation, a run's report and on their own."
import json
import numpy as np
import pytest
import torch
from llmbook.core import UserError
from llmbook.evaluate.run import evaluate
from llmbook.evaluate.stats import row_items
from llmbook.evaluate.tasks import EvalTask
from llmbook.evaluate.written import WRITTEN, written_rows, written_scores
from llmbook.generate.text import generate, generate_answers
from llmbook.generate.variety import span_counts
from llmbook.model.config import ModelConfig
from llmbook.model.transformer import Transformer
from llmbook.prefer.watch import distinct_share
from llmbook.recipes.style import distinct, repetition
from llmbook.report.report import report_html
from llmbook.report.sections import readable_name
from llmbook.tokens.tokenizer import train_tokenizer

LOOP = 'no one knows why . ' * 10


@pytest.fixture(scope='module')
def tiny():
    tok = train_tokenizer(['the cat sat on the mat and the dog ran'] * 30, 300)
    torch.manual_seed(0)
    shape = dict(vocab_size=tok.get_vocab_size(), n_layer=1, d_model=32, n_head=2, n_kv_head=1, context=64)
    return Transformer(ModelConfig(**shape)).eval(), tok


def named(rows): return {r['metric'].split()[-1]: r for r in rows}


def test_one_count_is_behind_every_share():
    words = LOOP.split()
    different, every = span_counts(words, 2)
    assert distinct(LOOP.replace('.', ''), 1) == 4 / 40
    assert distinct_share([LOOP], most=1000) == span_counts(words)[0] / len(words)
    assert (different, every) == (5, 49)
    assert repetition('a b c d a b c d') == 1 - 4 / 5


@pytest.mark.parametrize('text, words', [('今天 天气', 4), ('สวัสดี', 4), ('so, it goes', 3), ('', 0)])
def test_words_of_every_script_count(text, words):
    share = written_scores(text)['distinct_1']
    assert (share[1] if share else 0) == words


def test_rows_are_ratios_of_sums_and_leave_short_answers_out():
    rows = named(written_rows([LOOP, 'yes'], ['why?', 'really?'], [False, True]))
    assert list(rows) == list(WRITTEN)
    assert rows['distinct_1']['value'] == 5 / 41 # 40 words of the loop, no sign among them, and one more
    assert rows['repetition']['n'] == 1 and rows['repetition']['not_scored'] == 1
    assert rows['stopped']['value'] == .5
    assert all(r['target'] is None and r['read'] for r in rows.values())


def test_answers_without_any_word_have_a_reason():
    rows = named(written_rows(['', ' '], ['a', 'b']))
    assert rows['distinct_1']['value'] is None and rows['distinct_1']['reason'] == 'too few words'
    assert rows['words']['value'] == 0 and 'stopped' not in rows


def test_answers_to_the_same_prompts_pair_up():
    first, second = (named(written_rows(texts, ['a', 'b'])) for texts in (['one', 'two'], ['one more', 'two']))
    assert row_items(first['words'])['ids'] == row_items(second['words'])['ids']


def test_clusters_widen_the_interval():
    texts = ['a a a a'] * 8 + ['a b c d'] * 8
    alone = named(written_rows(texts))['distinct_1']
    together = named(written_rows(texts, clusters=[i // 4 for i in range(16)]))['distinct_1']
    assert together['high'] - together['low'] > alone['high'] - alone['low']


@pytest.mark.parametrize('options', [dict(answers='text'), dict(answers=[]), dict(answers=[1]),
                                     dict(answers=['a'], stopped=[True, False]), dict(answers=['a'], clusters=[])])
def test_what_cannot_be_counted_is_refused(options):
    with pytest.raises(UserError, match='expected'): written_rows(**options)


def test_an_answer_says_whether_it_ended(tiny):
    model, tok = tiny
    prompts = ['the cat', 'a dog', 'on']
    texts = generate(model, tok, prompts, 10, temperature=0.)
    assert [a.text for a in generate_answers(model, tok, prompts, 10, temperature=0.)] == texts
    assert all(texts)
    stop = texts[0][1]
    for answer, whole in zip(generate_answers(model, tok, prompts, 10, temperature=0., stop=stop), texts):
        assert answer.stopped == (stop in whole) or answer.tokens < 10
        assert answer.text == whole.split(stop)[0]
    cut = generate_answers(model, tok, prompts, 4, stop_at_eot=False)
    assert [(a.tokens, a.stopped) for a in cut] == [(4, False)] * 3


def test_a_task_that_is_written_has_the_rows(tiny, tmp_path):
    model, tok = tiny
    task = EvalTask('sums', [dict(q=f'{i} + 1 =', a=str(i + 1)) for i in range(4)], 'q', answer='a', max_new_tokens=12)
    found = evaluate(model, tok, task, tmp_path)
    rows = named(found.rows)
    assert set(rows) == {'exact_match', *WRITTEN}
    items = found.items()
    assert np.mean(items['score_stopped']) == rows['stopped']['value']
    page = report_html(tmp_path)
    for name in WRITTEN: assert readable_name(f'sums {name}') in page


def test_a_score_of_the_tasks_own_by_that_name_stays(tiny):
    model, tok = tiny
    task = EvalTask('own', [dict(q='a', a='b')], 'q', answer='a', metrics=dict(words=lambda *_: 7.), max_new_tokens=4)
    assert evaluate(model, tok, task).value('own words') == 7
    json.dumps(evaluate(model, tok, task).rows)
