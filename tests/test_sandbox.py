"Code that a model wrote: what is never run, what is run behind walls, and what it earns."
import builtins, os, platform, select, subprocess, sys
import pytest, torch, torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence
from llmbook.core import UserError, set_seed
from llmbook.model.config import ModelConfig
from llmbook.model.transformer import Transformer
from llmbook.reward.rollouts import Sampler
from llmbook.reward.train import grpo_learner
from llmbook.tokens.tokenizer import train_tokenizer
from llmbook.tune.chat import ChatFormat
import llmbook.reward.sandbox as sandbox
from llmbook.reward.sandbox import (
    called, calls_passed, can_limit, code_in, code_task, defines_function, function_in, harm_in, has_lock, passes_calls,
    same_values, trial_calls
)

limited = pytest.mark.skipif(not can_limit(), reason='needs limits of the operating system')
locked = pytest.mark.skipif(not has_lock(), reason='needs seccomp')


def function(body, name='f', args='x'): return f'def {name}({args}):\n    ' + body.replace('\n', '\n    ')


# ---- the first wall

@pytest.mark.parametrize('body', [
    'import os', 'return open(x)', 'return eval(x)', 'return exec(x)', 'return __import__(x)', 'return getattr(x, "a")',
    'return x.__class__', 'return x._a', 'return "{0.__class__}".format(x)', 'return x.gi_frame', 'return globals()',
    'return type(x)', 'return print(x)', 'return other(x)', 'global y', 'class A: pass', 'with x: pass', 'del x',
    'match x:\n    case Exception(__traceback__=t): return t', 'return f"{x.__class__}"', 'return x.read()',
    'return input()', 'return (lambda: __builtins__)()', 'return str.format_map("{a}", x)', 'return breakpoint()'])
def test_what_could_harm_is_never_run(body):
    assert harm_in(function(body))
    assert called(function(body), 'f', ['(1,)']) is None


@pytest.mark.parametrize('code', [
    'import os', 'x = 1', '@d\n' + function('return x'), 'async def f(): pass', '', 'def f(',
    function('return x') + '\nf(1)', '#' * 20_000])
def test_what_is_more_than_functions_is_never_run(code): assert harm_in(code)


# ---- both walls

@limited
def test_a_function_is_called_elsewhere():
    assert called(function('return sorted(x)[0]'), 'f', ['([3, 1],)', '(4,)', '("ba",)']) == ['1', None, "'a'"]
    assert called(function('return {x, "b", "a"}'), 'f', ['("c",)']) == ["set 'a', 'b', 'c'"]
    assert called(function('return lambda: x'), 'f', ['(1,)']) == [None]
    assert called(function('return x'), 'g', ['(1,)']) == [None]


@limited
@pytest.mark.parametrize('body, value', [
    ('while True: pass', None), ('return [0] * 10**10', [None]), ('return f(x)', [None]),
    ('return 10 ** 10 ** 10', None)])
def test_what_takes_too_much_is_ended(body, value): assert called(function(body), 'f', ['(1,)'], seconds=1) == value


def test_code_is_found_in_an_answer():
    code = function('return x')
    indented = '    ' + code.replace('\n', '\n    ')
    for answer in (code, f'```\n{code}\n```', f'Here:\n```python\n{code}\n```\nBye', indented):
        assert function_in(code_in(answer), 'f') is not None
    assert function_in(code_in('I cannot.'), 'f') is None
    assert function_in(code, 'g') is None


@limited
def test_a_function_is_held_against_the_real_one():
    wanted = trial_calls(function('return x[-1]'), 'f')
    assert len(set(wanted.values())) > 1
    assert same_values(function('return x[len(x) - 1]'), 'f', wanted)
    assert not same_values(function('return x[0]'), 'f', wanted)
    assert not same_values(function('import os'), 'f', wanted)
    assert trial_calls(function('return 1'), 'f') == {}
    assert trial_calls(function('return open(x)'), 'f') == {}
    assert trial_calls(function('return 1', args='*x'), 'f') == {}


# ---- the second wall without the first

def behind(body, seconds=1):
    "Run any code behind the second wall alone; return what it says."
    lock = sandbox._CALLS[platform.machine()]
    task = dict(code=function(body, args=''), name='f', calls=['()'], allowed=dir(builtins))
    return sandbox._elsewhere(task, seconds, 256, lock)


@locked
@pytest.mark.parametrize('body', [
    'open("/etc/passwd")', 'open("new", "w")', 'import os\nos.fork()', 'import os\nos.listdir("/")',
    'import os\nos.remove("/tmp/x")', 'import os\nos.kill(os.getppid(), 0)', 'import os\nos.stat("/etc/passwd")',
    'import os\nos.dup(1)', 'import time\ntime.sleep(60)',
    'import _thread\n_thread.start_new_thread(print, ())', 'import os\nos.close(0)\nopen("/etc/passwd")'])
def test_the_lock_turns_what_reaches_out_into_an_error(body): assert behind(f'{body}\nreturn 1') == [None]


@locked
@pytest.mark.parametrize('call', [
    'socket(2, 1, 0)', 'fork()', 'open(b"/etc/passwd", 0)', 'kill(1, 0)', 'unlink(b"/tmp/x")', 'setuid(0)',
    'personality(0)', 'ptrace(16, 1, 0, 0)'])
def test_the_lock_holds_below_python(call):
    "Even a call of the C library, past everything that Python forbids, is not permitted."
    assert behind(f'import ctypes\nreturn ctypes.CDLL(None).{call}') == ['-1']


@locked
def test_what_goes_on_for_ever_is_ended_behind_the_lock():
    assert behind('while True: pass') is None
    assert behind('return len("x" * 10**9)') == [None]
    assert behind('import os\nwhile True: os.write(1, b"x" * 10**6)') is None


@limited
def test_processes_are_ended_with_what_they_started():
    "Keep no process that a process started: it would hold the output open."
    here, there = os.pipe()
    program = 'import os, time\nif os.fork() == 0: time.sleep(600)'
    process = subprocess.Popen([sys.executable, '-c', program], start_new_session=True, pass_fds=[there])
    os.close(there)
    assert sandbox._ended(process, 20) == 0
    assert select.select([here], [], [], 60)[0] # nobody holds the other end any more
    os.close(here)


@limited
def test_without_a_lock_limits_and_the_first_wall_remain(monkeypatch):
    monkeypatch.setattr(sandbox, 'has_lock', lambda: False)
    assert called(function('return x + 1'), 'f', ['(1,)']) == ['2']
    assert called(function('return open(x)'), 'f', ['("a",)']) is None


# ---- what code earns

META = dict(function='f', calls={'(1,)': '2', '(2,)': '3'})


@limited
def test_rewards_of_code():
    def earned(answer): return [score('', answer, META) for score in (passes_calls, calls_passed, defines_function)]
    assert earned(function('return x + 1')) == [1, 1, 1]
    assert earned('```python\n' + function('return x + 1') + '\n```') == [1, 1, 1]
    assert earned(function('return 2')) == [0, .5, 1]
    assert earned(function('import os\nreturn x + 1')) == [0, 0, 1]
    assert earned(function('return x + 1', name='g')) == [0, 0, 0]
    assert earned('') == [0, 0, 0]


@limited
def test_an_answer_is_run_once(monkeypatch):
    ran = []
    monkeypatch.setattr(sandbox, 'called', lambda code, name, calls: ran.append(code) or ['2', '3'])
    sandbox._values_of.cache_clear()
    for _ in range(3): assert passes_calls('', function('return x - -1'), META) == 1
    assert len(ran) == 1
    sandbox._values_of.cache_clear()


@pytest.mark.parametrize('meta', [
    {}, dict(answer='1'), dict(function='f', calls={}), dict(function=1, calls={'(1,)': '2'})])
def test_a_prompt_without_calls_is_refused(meta):
    with pytest.raises(UserError, match='code_task makes both'): calls_passed('', 'a', meta)


@limited
def test_functions_that_cannot_be_judged_are_counted():
    unfit = [('say', function('print(x)')), ('same', function('return 1')), ('no', 'x = 1')]
    examples = [('add', function('return x + 1')), *unfit]
    task = code_task(examples)
    assert task.left_out == 3
    with pytest.raises(UserError, match='none among 3'): code_task(examples[1:])


def warm_start(model, fmt, chats):
    "Train a model for a moment, so that it writes functions."
    rows = []
    for prompt, answer in chats:
        messages = [dict(role='user', content=prompt), dict(role='assistant', content=answer)]
        rows.append(torch.tensor(fmt.encode(messages).ids, dtype=torch.long))
    x = pad_sequence(rows, batch_first=True)
    opt = torch.optim.AdamW(model.parameters(), 5e-3)
    for _ in range(80):
        logits = model.logits(model(x[:, :-1]))
        F.cross_entropy(logits.flatten(0, 1), x[:, 1:].flatten()).backward()
        opt.step()
        opt.zero_grad()


@limited
def test_code_is_learned_by_running_it():
    "Teach a model that adds 1, 2 or 3 by chance to add 1, which alone earns a reward."
    codes = [f'def f(x): return x + {n}' for n in (1, 2, 3)]
    requests = [(prompt, codes[0]) for prompt in ('add one', 'one more', 'count up', 'the next')]
    task = code_task(requests, held_out=.4)
    chats = [(prompt, code) for prompt, _ in requests for code in codes]
    fmt = ChatFormat(train_tokenizer([f'{prompt} {code}' for prompt, code in chats], 290))
    set_seed(0)
    sizes = dict(vocab_size=fmt.tok.get_vocab_size(), n_layer=2, d_model=32, n_head=2, n_kv_head=1, context=64)
    model = Transformer(ModelConfig(**sizes))
    warm_start(model, fmt, chats)
    learn = grpo_learner(model, task, fmt, steps=12, prompts=4, group=8, test=1, tries=2, lr=3e-3, sampler=Sampler(24),
                         device='cpu')
    learn.fit(1)
    reward = learn.reward_watch.steps()['reward']
    assert reward[-3:].mean() > reward[:3].mean() + .2
