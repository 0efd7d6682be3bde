"Learning from rewards: what is scored, asked, drawn, learned, resumed and refused."
import math, random
from itertools import combinations
import pytest, torch
import llmbook.generate.decoder as decoder_module
from llmbook.core import UserError, set_seed
from llmbook.generate.text import generate_ids
from llmbook.model.config import ModelConfig
from llmbook.model.transformer import Transformer
from llmbook.reward.puzzles import PUZZLES, PuzzleTask, get_puzzles, task_of_rows
from llmbook.reward.rollouts import Sampler, sample_groups
from llmbook.reward.verify import (
    Rewards, as_rewards, equals_json, find_answer, is_json, is_number, is_text, last_number, pass_at_k, read_number
)

PROMPTS = [[5, 6, 7], [8, 9], [10, 11, 12, 13]]
SAMPLERS = [Sampler(6), Sampler(6, temperature=.5), Sampler(6, temperature=1.7), Sampler(6, top_k=5), Sampler(6, top_p=.5),
            Sampler(6, min_p=.6), Sampler(6, .7, 20, .9), Sampler(6, .7, 20, .9, .1)]


def tiny_model(**options):
    set_seed(0)
    sizes = dict(vocab_size=40, n_layer=2, d_model=32, n_head=2, n_kv_head=1, context=64)
    return Transformer(ModelConfig(**(sizes | options))).eval()


# ---- what an answer is worth

@pytest.mark.parametrize('n, c, k', [(5, 2, 3), (6, 0, 2), (6, 6, 4), (7, 1, 7), (8, 3, 1)])
def test_pass_at_k_counts_every_choice(n, c, k):
    answers = [i < c for i in range(n)]
    choices = list(combinations(answers, k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, choices)) / len(choices))


def test_pass_at_k_is_unbiased():
    rng = random.Random(0)
    p, n, k = .3, 6, 4
    draws = [pass_at_k(n, sum(rng.random() < p for _ in range(n)), k) for _ in range(20_000)]
    assert sum(draws) / len(draws) == pytest.approx(1 - (1 - p) ** k, abs=.005)


@pytest.mark.parametrize('text, value', [
    ('42', 42), ('-3', -3), ('\u22123', -3), ('1,234,567', 1234567), ('.5', .5), ('50%', .5), ('7.', 7), ('1e3', 1000),
    ('1/4', .25), ('$12.50', 12.5), ('1,23', None), ('v2', None), ('', None), ('1/0', None), ('9' * 5000, None)])
def test_numbers_are_read_as_people_write_them(text, value):
    assert read_number(text) == value


def test_a_long_answer_costs_no_time():
    assert last_number('9' * 100_000) is None
    assert find_answer('\\boxed{' * 50_000) is not None
    assert is_json('', '[' * 100_000, {}) == 0


@pytest.mark.parametrize('answer, valid, right', [
    ('{"a": 1}', 1, 1), (' {"a" : 1.0} ', 1, 1), ('{"a": true}', 1, 0), ('{"a": 1, "a": 1}', 0, 0), ('{"a": Infinity}', 0, 0),
    ('{"a": 1} done', 0, 0), ('', 0, 0), ("{'a': 1}", 0, 0)])
def test_json_is_read_strictly(answer, valid, right):
    meta = dict(answer='{"a": 1}')
    assert (is_json('', answer, meta), equals_json('', answer, meta)) == (valid, right)


def test_form_cannot_make_an_answer_right():
    rewards = Rewards(correct=is_text, form=(lambda *_: 1, 5))
    parts = rewards.parts('', 'wrong', dict(answer='right'))
    assert rewards.total(parts) == 5
    assert not rewards.solved(parts)


@pytest.mark.parametrize('reward, said', [
    (lambda *_: None, 'a finite number'), (lambda *_: math.inf, 'a finite number'), (lambda *_: 'good', 'a finite number'),
    (lambda *_: 1 / 0, 'ZeroDivisionError'), (lambda prompt, answer: 1., 'TypeError')])
def test_a_broken_reward_is_named_with_its_answer(reward, said):
    with pytest.raises(UserError, match=f'(?s)correct.*{said}|{said}.*correct') as e:
        as_rewards(reward)('2 + 2', 'four', {})
    assert 'four' in str(e.value)


# ---- puzzles

@pytest.mark.parametrize('name', PUZZLES)
def test_puzzles_are_seeded_held_out_and_solved_by_their_answers(name):
    task, again = get_puzzles(name), get_puzzles(name)
    trained = {task.puzzle(i).prompt for i in range(150)}
    tested = task.distinct(15)
    assert not trained & {puzzle.prompt for puzzle in tested}
    assert tested == again.distinct(15)
    assert task.fingerprint() == again.fingerprint() != get_puzzles(name, seed=1).fingerprint()
    for puzzle in tested:
        assert task.rewards.solved(task.scores(puzzle, puzzle.answer))
        assert not task.rewards.solved(task.scores(puzzle, puzzle.answer + ' x'))


def test_rows_of_ones_own():
    rows = [dict(prompt=f'{a}?', answer=a, hint=-a) for a in range(100)]
    task = task_of_rows(rows, lambda prompt, answer, meta: meta['hint'])
    assert task.scores(task.puzzle(0), '') == dict(correct=-float(task.puzzle(0).answer))
    assert {p.prompt for p in task.distinct(5)}.isdisjoint(task.puzzle(i).prompt for i in range(200))


# ---- groups of answers

def counted(monkeypatch):
    "Return a list to which each call of the decoder adds (rows, tokens of each)."
    calls = []
    call = decoder_module.Decoder.__call__
    def counting(self, x):
        calls.append(tuple(x.shape))
        return call(self, x)
    monkeypatch.setattr(decoder_module.Decoder, '__call__', counting)
    return calls


def test_a_group_reads_its_prompt_once(monkeypatch):
    calls = counted(monkeypatch)
    sample_groups(tiny_model(), PROMPTS, 8, Sampler(5), ends=[])
    assert calls == [(3, 4)] + [(24, 1)] * 4


@pytest.mark.parametrize('sampler', SAMPLERS, ids=str)
def test_groups_write_what_generate_ids_writes(sampler):
    model = tiny_model()
    groups = sample_groups(model, PROMPTS, 4, sampler, ends=[1, 2, 3], seed=5)
    repeated = [prompt for prompt in PROMPTS for _ in range(4)]
    written = generate_ids(model, repeated, sampler.max_new_tokens, seed=5, stop=[1, 2, 3], **sampler.options)
    assert [rollout.ids for group in groups for rollout in group] == written


def test_an_answer_ends_with_its_mark_or_was_cut():
    rollouts = sum(sample_groups(tiny_model(), PROMPTS, 20, Sampler(8), ends=[1, 2, 3]), [])
    assert 0 < sum(r.stopped for r in rollouts) < len(rollouts)
    for r in rollouts:
        assert len(r.ids) == len(r.logps)
        assert r.stopped == (r.ids[-1] in (1, 2, 3))
        assert not {1, 2, 3} & set(r.ids[:-1])
        assert r.stopped or len(r.ids) == 8


def test_banned_ids_are_never_drawn():
    banned = torch.zeros(40, dtype=torch.bool)
    banned[10:] = True
    groups = sample_groups(tiny_model(), PROMPTS, 8, Sampler(8), ends=[], banned=banned)
    assert max(max(r.ids) for group in groups for r in group) < 10


BAD = {
    'no reward': lambda: Rewards(),
    'a goal that is no part': lambda: Rewards(goal='right', correct=is_text),
    'a reward that is no function': lambda: Rewards(correct=1),
    'a weight that is no number': lambda: Rewards(correct=(is_text, 'much')),
    'a form that does not exist': lambda: find_answer('x', 'last'),
    'more choices than answers': lambda: pass_at_k(3, 1, 4),
    'puzzles that do not exist': lambda: get_puzzles('chess'),
    'an option that does not exist': lambda: get_puzzles('sum', base=2),
    'nothing held out': lambda: get_puzzles('sum', held_out=0),
    'more puzzles than there are': lambda: get_puzzles('letters', longest=2).distinct(80),
    'rows without answers': lambda: task_of_rows([dict(prompt='x')], is_text),
    'a task without a function': lambda: PuzzleTask('x', None, is_text),
    'a temperature of 0': lambda: Sampler(temperature=0),
    'an empty prompt': lambda: sample_groups(tiny_model(), [[]], 2, Sampler(4), []),
    'answers longer than the context': lambda: sample_groups(tiny_model(), [[5]], 2, Sampler(64), []),
}


@pytest.mark.parametrize('what', BAD)
def test_bad_input_is_refused_before_work_starts(what):
    with pytest.raises(UserError, match='expected'): BAD[what]()
