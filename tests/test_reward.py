"Learning from rewards: what is scored, asked, drawn, learned, resumed and refused."
import copy, json, math, random, sys
from importlib.util import find_spec
from itertools import combinations
from types import SimpleNamespace
import numpy as np
import pytest, torch
from datasets import Dataset
import llmbook.generate.decoder as decoder_module
from llmbook.commands.reward import find_task
from llmbook.core import UserError, import_transformers, set_seed
from llmbook.evaluate.passes import pass_rows
from llmbook.generate.text import generate_ids
from llmbook.model.config import ModelConfig
from llmbook.model.hf import load_pretrained, save_pretrained
from llmbook.model.transformer import Transformer
from llmbook.reward.grpo import GRPOLoss, advantages, check_clip, clipped_loss, group_rows, zero_variance
from llmbook.reward.puzzles import PUZZLES, PuzzleTask, get_puzzles, gym_task, task_of_rows
from llmbook.reward.rollouts import Rollout, Sampler, sample_groups
from llmbook.reward.train import RewardWatch, answer_puzzles, grpo, grpo_learner, pass_rates
from llmbook.tokens.tokenizer import train_tokenizer
from llmbook.tune.adapters import add_adapters, load_adapters
from llmbook.tune.chat import ChatFormat
from same import same_parameters
from test_callbacks import Cut
from llmbook.reward.verify import (
    Rewards, as_rewards, ended_itself, equals_json, find_answer, is_json, is_number, is_text, last_number, pass_at_k,
    read_number
)

PROMPTS = [[5, 6, 7], [8, 9], [10, 11, 12, 13]]
SAMPLERS = [Sampler(6), Sampler(6, temperature=.5), Sampler(6, temperature=1.7), Sampler(6, top_k=5),
            Sampler(6, top_p=.5), Sampler(6, min_p=.6), Sampler(6, .7, 20, .9), Sampler(6, .7, 20, .9, .1)]


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
    ('{"a": 1}', 1, 1), (' {"a" : 1.0} ', 1, 1), ('{"a": true}', 1, 0), ('{"a": 1, "a": 1}', 0, 0),
    ('{"a": Infinity}', 0, 0), ('{"a": 1} done', 0, 0), ('', 0, 0), ("{'a': 1}", 0, 0)])
def test_json_is_read_strictly(answer, valid, right):
    meta = dict(answer='{"a": 1}')
    assert (is_json('', answer, meta), equals_json('', answer, meta)) == (valid, right)


def test_form_cannot_make_an_answer_right():
    rewards = Rewards(correct=is_text, form=(lambda *_: 1, 5))
    parts = rewards.parts('', 'wrong', dict(answer='right'))
    assert rewards.total(parts) == 5
    assert not rewards.solved(parts)


@pytest.mark.parametrize('reward, said', [
    (lambda *_: None, 'a finite number'), (lambda *_: math.inf, 'a finite number'),
    (lambda *_: 'good', 'a finite number'),
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


def test_tasks_of_reasoning_gym(monkeypatch):
    "Use a stand-in with the two calls that the adapter makes."
    class Data:
        def __getitem__(self, i): return dict(question=f'{i}?', answer=str(i), metadata=dict(i=i))
        def score_answer(self, answer, entry): return 1. if answer == entry['answer'] else .01
    def create_dataset(name, seed, size, **options):
        if name != 'numbers': raise ValueError(f"Dataset '{name}' not registered")
        return Data()
    monkeypatch.setitem(sys.modules, 'reasoning_gym', SimpleNamespace(create_dataset=create_dataset))
    task = gym_task('numbers')
    puzzle = task.puzzle(0)
    assert task.scores(puzzle, puzzle.answer) == dict(correct=1)
    assert task.scores(puzzle, 'x') == dict(correct=.01)
    assert not task.rewards.solved(task.scores(puzzle, 'x'))
    with pytest.raises(UserError, match='not registered'): gym_task('chess')


def test_a_file_of_questions(tmp_path):
    records = [dict(question=f'{n} + 1?', answer=f'{n} and 1\n#### {n + 1:,}') for n in range(995, 1005)]
    file = tmp_path/'sums.jsonl'
    file.write_text('\n'.join(map(json.dumps, records)))
    task = find_task(str(file), 'number')
    puzzle = task.puzzle(0)
    right = int(puzzle.prompt.split()[0]) + 1
    assert task.scores(puzzle, f'it is {right}.') == dict(correct=1)
    assert task.scores(puzzle, f'it is {right + 1}.') == dict(correct=0)


def test_rows_before_and_after_are_paired():
    before = dict(right=[0, 0, 4, 4] * 5, tries=4)
    after = dict(right=[1, 1, 4, 4] * 5, tries=4)
    rows = {}
    for row in pass_rows([before, after], ks=(1, 4)): rows[row['metric'], row['group']] = row
    first = rows['pass@1', 'before']
    difference = rows['pass@1', 'difference']
    assert first['value'] == .5
    assert first['low'] < .5 < first['high']
    assert rows['pass@1', 'after']['value'] == .625
    assert rows['pass@4', 'after']['value'] == 1
    assert difference['value'] == .125
    assert difference['low'] > 0


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



# ---- the update

REWARDS = [[1, 0, 0, 1], [0, 0, 1, 0], [1, 1, 1, 0]]


def updated(model, groups, rewards=REWARDS, shared=True, loss=None, **options):
    "Return the loss, the gradient and what the loss has seen of one update."
    model.zero_grad()
    inputs, targets = group_rows(PROMPTS, groups, advantages(rewards), shared=shared, **options)
    loss = loss or GRPOLoss(model.head)
    value = loss(model(*inputs), *targets)
    value.backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
    return value.item(), gradient, loss.shares()


@pytest.mark.parametrize('sampler', SAMPLERS, ids=str)
def test_the_ratio_is_1_at_the_first_update_for_every_sampler(sampler):
    "trl#4159, trl#6789: the importance ratio was wrong under a temperature or top-p."
    model = tiny_model()
    groups = sample_groups(model, PROMPTS, 4, sampler, ends=[1, 2, 3])
    _, gradient, seen = updated(model, groups, loss=GRPOLoss(model.head, temperature=sampler.temperature))
    assert seen['ratio_off'] < 1e-5
    assert seen['clipped'] == 0
    assert gradient.norm() > 0


@pytest.mark.parametrize('family', ['qwen3', 'llama', 'gpt2'])
@pytest.mark.parametrize('normalise', ['tokens', 'answers', 'length'])
def test_a_shared_prompt_gives_the_loss_and_the_gradient_of_copies(family, normalise):
    options = dict(n_kv_head=2) if family == 'gpt2' else {}
    model = tiny_model(family=family, **options)
    groups = sample_groups(model, PROMPTS, 4, Sampler(6, top_k=9), ends=[1, 2, 3])
    options = dict(normalise=normalise, longest=6)
    loss, gradient, _ = updated(model, groups, **options)
    naive_loss, naive, _ = updated(model, groups, shared=False, **options)
    assert loss == pytest.approx(naive_loss, abs=1e-5)
    assert (gradient - naive).abs().max() < 1e-5


def test_the_gradient_of_the_cut_softmax_leaves_other_tokens_alone():
    "Only what could be drawn is praised or blamed."
    model = tiny_model(tie_embeddings=False)
    groups = sample_groups(model, PROMPTS, 4, Sampler(6, top_k=2), ends=[])
    updated(model, groups)
    could = {int(i) for group in groups for rollout in group for ids in rollout.left for i in ids}
    others = [i for i in range(40) if i not in could]
    assert others
    assert model.head.weight.grad[others].abs().max() == 0


def test_flat_groups_are_left_out_without_a_difference():
    model = tiny_model()
    groups = sample_groups(model, PROMPTS, 4, Sampler(6), ends=[1, 2, 3])
    flat = [[1, 0, 0, 1], [1, 1, 1, 1], [0, 0, 0, 0]]
    loss, gradient, _ = updated(model, groups, flat)
    with_all, same, _ = updated(model, groups, flat, skip=False)
    assert loss == pytest.approx(with_all, abs=1e-6)
    assert (gradient - same).abs().max() < 1e-6
    assert zero_variance(flat) == pytest.approx(2 / 3)


def test_a_short_group_beside_a_long_one_fits_the_context():
    model = tiny_model(context=16)
    prompts = [[5, 6], [7, 8]]
    groups = sample_groups(model, prompts, 8, Sampler(14), ends=[])
    groups[1] = [Rollout(r.ids[:1], r.logps[:1], True) for r in groups[1]]
    inputs, targets = group_rows(prompts, groups, advantages([[1, 0] * 4] * 2))
    loss = GRPOLoss(model.head)
    loss(model(*inputs), *targets)
    assert loss.shares()['ratio_off'] < 1e-5


def test_advantages_by_hand():
    rewards = [[1, 0, 0, 1]]
    assert advantages(rewards).tolist() == [[.5, -.5, -.5, .5]]
    deviation = math.sqrt(1 / 3)
    by_sigma = advantages(rewards, 'group')
    assert by_sigma[0, 0] == pytest.approx(.5 / (deviation + 1e-4))


@pytest.mark.parametrize('change, weight, loss, is_clipped', [
    (.3, 1., -1.28, True), (.3, -1., math.exp(.3), False), (-.3, 1., -math.exp(-.3), False), (-.3, -1., .8, True),
    (.1, 2., -2 * math.exp(.1), False), (-.1, -2., 2 * math.exp(-.1), False)])
def test_clipped_losses_by_hand(change, weight, loss, is_clipped):
    now = torch.tensor([change])
    losses, clipped = clipped_loss(now, torch.zeros(1), torch.tensor([weight]), (.2, .28))
    assert losses.tolist() == pytest.approx([loss], abs=1e-6)
    assert clipped.tolist() == [is_clipped]


def their_trainer(folder, tok, model, **options):
    "Return TRL's trainer for a model of ours, without training."
    transformers = import_transformers()
    import trl
    save_pretrained(model, tok, folder/'model')
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder/'model', attn_implementation='eager').float()
    own = transformers.PreTrainedTokenizerFast(tokenizer_object=tok, eos_token='<|endoftext|>', pad_token='<|pad|>')
    args = trl.GRPOConfig(output_dir=str(folder), per_device_train_batch_size=12, num_generations=4, report_to='none',
                          use_cpu=True, bf16=False, max_completion_length=6, gradient_checkpointing=False, **options)
    trainer = trl.GRPOTrainer(theirs, reward_funcs=lambda **_: [0.], args=args, processing_class=own,
                              train_dataset=Dataset.from_list([dict(prompt='a')]))
    trainer.current_gradient_accumulation_steps = 1
    return trainer


def their_inputs(groups, better):
    "Return the same rollouts as TRL takes them: prompts filled up at the left, answers at the right."
    rollouts = sum(groups, [])
    P, A = max(map(len, PROMPTS)), max(len(r.ids) for r in rollouts)
    prompts = [[0] * (P - len(p)) + p for p in PROMPTS for _ in groups[0]]
    prompt_mask = [[0] * (P - len(p)) + [1] * len(p) for p in PROMPTS for _ in groups[0]]
    def filled(values): return [list(v) + [0] * (A - len(v)) for v in values]
    answers = filled([r.ids for r in rollouts])
    mask = torch.tensor(filled([[1] * len(r.ids) for r in rollouts]))
    return dict(prompt_ids=torch.tensor(prompts),
                prompt_mask=torch.tensor(prompt_mask),
                completion_ids=torch.tensor(answers),
                completion_mask=mask,
                advantages=torch.tensor(better.flatten(), dtype=torch.float32),
                old_per_token_logps=torch.tensor(filled([r.logps for r in rollouts])),
                num_items_in_batch=mask.sum())


@pytest.mark.skipif(find_spec('trl') is None, reason='trl is not installed')
@pytest.mark.parametrize('loss_type, normalise', [('dapo', 'tokens'), ('grpo', 'answers'), ('dr_grpo', 'length')])
def test_the_loss_is_that_of_trl(tmp_path, fmt, loss_type, normalise):
    model = tiny_model(vocab_size=fmt.tok.get_vocab_size(), family='llama')
    trainer = their_trainer(tmp_path, fmt.tok, model, loss_type=loss_type, temperature=.7)
    groups = sample_groups(model, PROMPTS, 4, Sampler(6, temperature=.7), ends=[30, 40])
    rng = np.random.default_rng(0)
    for rollout in sum(groups, []): # as if some updates had come between, so that the clip acts
        rollout.logps = [logp + float(rng.normal(0, .2)) for logp in rollout.logps]
    for scale in ('none', 'group'):
        better = advantages(REWARDS, scale)
        theirs = trainer._compute_loss(trainer.model.train(), their_inputs(groups, better))
        inputs, targets = group_rows(PROMPTS, groups, better, normalise, longest=6)
        loss = GRPOLoss(model.head, temperature=.7)
        ours = loss(model(*inputs), *targets)
        assert ours.item() == pytest.approx(theirs.item(), abs=1e-5)
        assert 0 < loss.shares()['clipped'] < 1


# ---- a run

@pytest.fixture(scope='module')
def task(): return get_puzzles('copy', shortest=1, longest=2, alphabet='abc', held_out=.4)


@pytest.fixture(scope='module')
def fmt(task):
    texts = [f'{task.puzzle(i).prompt} {task.puzzle(i).answer}' for i in range(40)]
    return ChatFormat(train_tokenizer(texts, 270))


def small(fmt): return tiny_model(vocab_size=fmt.tok.get_vocab_size()).train()


def half(prompt, answer, meta): return len(answer) % 2 # so that a model that knows nothing has rewards to compare


@pytest.fixture(scope='module')
def luck(task):
    return PuzzleTask('luck', task.make, half, held_out=.4)


RUN = dict(method='full', steps=6, evaluations=2, lr=1e-3, prompts=3, group=4, test=4, tries=2, sampler=Sampler(6),
           device='cpu')


@pytest.mark.parametrize('method, updates, sampler', [
    ('full', 1, Sampler(6)), ('lora', 1, Sampler(6, .8, 9)), ('full', 2, Sampler(6, top_p=.8))], ids=str)
@pytest.mark.parametrize('at', [2, 5]) # in the first epoch, and in the second between two updates of a rollout
def test_a_resumed_run_is_the_run_that_was_never_stopped(tmp_path, fmt, luck, method, updates, sampler, at):
    "accelerate#4071 for GRPO: a resume in a later epoch repeats or skips data; here the sampler too."
    options = RUN | dict(method=method, updates=updates, sampler=sampler, redraws=1, every=1)
    whole = grpo(small(fmt), fmt, luck, tmp_path/'whole', **options)
    cut = tmp_path/'cut'
    with pytest.raises(InterruptedError): grpo(small(fmt), fmt, luck, cut, cbs=[Cut(at)], **options)
    resumed = grpo(small(fmt), fmt, luck, cut, **options)
    assert same_parameters(whole.model, resumed.model)
    assert whole.reward_watch.rows == resumed.reward_watch.rows
    assert whole.reward_watch.looks == resumed.reward_watch.looks


def test_a_loss_of_0_is_explained(fmt, task):
    "trl#3452, trl#2703: 'GRPO loss 0: broken?'"
    learn = grpo_learner(small(fmt), task, fmt, steps=2, prompts=3, group=4, test=4, tries=2, sampler=Sampler(6),
                         device='cpu')
    with pytest.warns(UserWarning, match='all answers had the same reward'): learn.fit(1)
    steps = learn.reward_watch.steps()
    assert list(steps.flat) == [1, 1]
    assert list(steps.norm) == [0, 0]


def test_the_gradient_lives_where_the_loss_is_0(fmt, luck):
    "trl#3452, trl#2703: the loss says nothing, so reward, gradient and share of flat groups stand beside it."
    learn = grpo_learner(small(fmt), luck, fmt, steps=2, prompts=8, group=8, test=4, tries=2, normalise='answers',
                         sampler=Sampler(6), device='cpu')
    learn.fit(1)
    steps = learn.reward_watch.steps()
    assert steps['loss'].abs().max() < 1e-6
    assert steps.norm.min() > .01
    assert {'reward', 'of correct', 'flat', 'tokens', 'stops'} <= set(steps)


def test_the_first_update_of_a_run_has_a_ratio_of_1(fmt, luck):
    learn = grpo_learner(small(fmt), luck, fmt, steps=3, prompts=4, group=4, test=4, tries=2, updates=3, lr=.01,
                         sampler=Sampler(6, .7, 50, .9), device='cpu')
    learn.fit(1)
    off = list(learn.reward_watch.steps().ratio_off)
    assert off[0] < 1e-5
    assert min(off[1:]) > 1e-3


def test_a_reward_is_learned(fmt, task):
    "Raise the share of answers that end, on prompts that training never met."
    brief = PuzzleTask('brief', task.make, ended_itself, held_out=.4)
    learn = grpo_learner(small(fmt), brief, fmt, steps=30, prompts=8, group=8, test=4, tries=16, lr=5e-3,
                         sampler=Sampler(6), device='cpu')
    learn.fit(1)
    before, after = learn.reward_watch.table()['pass@1']
    assert before < .3
    assert after > .8


def test_cheating_is_said(fmt, task):
    watch = RewardWatch()
    for step, reward, solved in ((0, .2, .5), (10, .9, .1)):
        watch.looks.append(dict(step=step, right=[1], tries=2, figures=dict(reward=reward, solved=solved), samples=[]))
    watch.rows.append(dict(step=10, flat=.1))
    with pytest.warns(UserWarning, match='paid for something else'): watch._warn()


def test_adapters_are_trained_and_written(tmp_path, fmt, luck):
    model = small(fmt)
    base = copy.deepcopy(model)
    learn = grpo(model, fmt, luck, tmp_path, **RUN | dict(method='lora', adapter=dict(r=2)))
    again = load_adapters(base, tmp_path/'adapter')
    x = torch.tensor([[5, 6, 7]])
    with torch.no_grad(): assert (again.eval()(x) - learn.model.eval()(x)).abs().max() < 1e-5


def test_what_a_run_leaves(tmp_path, fmt, luck):
    learn = grpo(small(fmt), fmt, luck, tmp_path, **RUN)
    assert json.loads((tmp_path/'looks.json').read_text()) == learn.reward_watch.looks
    assert len((tmp_path/'rewards.csv').read_text().splitlines()) == 1 + RUN['steps']
    model, _ = load_pretrained(tmp_path/'model')
    assert same_parameters(model, learn.model)


def test_what_a_model_wrote_is_shown_escaped():
    watch = RewardWatch()
    for answer in ('<b>1</b>', '<script>'): watch.looks.append(dict(step=0, samples=[['1 + 1 =', '2', answer]]))
    assert '&lt;script&gt;' in watch.samples()
    assert '<script>' not in watch.samples()


def test_another_task_or_sampler_is_another_run(tmp_path, fmt, luck, task):
    grpo(small(fmt), fmt, luck, tmp_path, **RUN)
    for other in (dict(task=task), dict(sampler=Sampler(5)), dict(group=5), dict(clip=.3)):
        options = dict(task=luck) | RUN | other
        with pytest.raises(UserError, match='another run'): grpo(small(fmt), fmt, out=tmp_path, **options)


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
    'puzzles that are no file': lambda: find_task('nowhere.jsonl'),
    'one look': lambda: pass_rows([dict(right=[1], tries=2)]),
    'a temperature of 0': lambda: Sampler(temperature=0),
    'an empty prompt': lambda: sample_groups(tiny_model(), [[]], 2, Sampler(4), []),
    'a group of one': lambda: advantages([[1.]]),
    'a reward that is no number': lambda: advantages([[1., math.nan]]),
    'a clip of nothing': lambda: check_clip(0),
    'a single row of answers': lambda: pass_rates([1, 0]),
    'answers longer than the context': lambda: sample_groups(tiny_model(), [[5]], 2, Sampler(64), []),
}


@pytest.mark.parametrize('what', BAD)
def test_bad_input_is_refused_before_work_starts(what):
    with pytest.raises(UserError, match='expected'): BAD[what]()
