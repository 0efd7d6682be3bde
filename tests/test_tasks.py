"What must hold of the tasks: nothing leaks between splits, the loss sees the answer and its end and nothing else, and the order can be resumed."
import ast, os, subprocess, sys
import pytest, torch
from llmbook.core import UserError
from llmbook.tokens.tokenizer import ANSWER, EOT, PAD, PROMPT, decode, train_tokenizer
from llmbook.model.config import ModelConfig
from llmbook.model.transformer import Transformer
from llmbook.tune import pairs
from llmbook.tune.pairs import Example, code_pairs, docstring_line, summarization_examples, translation_examples
from llmbook.tune.tasks import SPLITS, TaskLoader, encode_examples, format_prompt, get_task, load_task_file, task_dls

IGNORE = -100

@pytest.fixture(scope='module')
def translation(): return get_task('translation', n=1000)

@pytest.fixture(scope='module')
def summarization(): return get_task('summarization', n=500)

@pytest.fixture(scope='module')
def tok(translation, summarization):
    return train_tokenizer([t for k in (translation, summarization) for e in k.splits['train'] for t in (e.prompt, e.answer)], 600)

def rows_of(tok, task, split='train', seq_len=192): return encode_examples(tok, task.splits[split], seq_len)[0]


# -- leakage

@pytest.mark.parametrize('name', ['translation', 'summarization'])
def test_no_prompt_in_two_splits(name, request):
    task = request.getfixturevalue(name)
    sets = [{e.prompt for e in task.splits[s]} for s in SPLITS]
    assert all(sets) and not sets[0] & sets[1] and not sets[0] & sets[2] and not sets[1] & sets[2]
    assert sum(map(len, sets)) == sum(map(len, task.splits.values()))          # and none twice in one

def test_a_phrase_stays_in_one_split_in_every_language(translation):
    phrase = lambda s: {e.prompt.split(': ', 1)[1] for e in translation.splits[s]}
    assert not phrase('train') & phrase('test') and not phrase('train') & phrase('valid')
    assert {e.prompt.split(':')[0] for e in translation.splits['test']} == {'German', 'French'}

def test_packages_and_summaries_stay_in_one_split(summarization):
    for key in (lambda e: e.group, lambda e: pairs._words(e.answer)):
        a, b, c = ({key(e) for e in summarization.splits[s]} for s in SPLITS)
        assert not a & b and not a & c and not b & c

def test_near_identical_functions_are_removed(tmp_path):
    body = '\n'.join(f'    total = total + values[{i}] * weights[{i}]' for i in range(6))
    files = []
    for package, word in (('a', 'sum'), ('b', 'total')):
        (tmp_path/f'{package}.py').write_text(f'def add(values, weights):\n    """Return the weighted {word} of values."""\n'
                                              f'    total = 0\n{body}\n    return total  # {word}\n')
        files.append((package, 'x.py', tmp_path/f'{package}.py'))
    assert len(summarization_examples(files=files)) == 1
    assert summarization_examples(files=files[:1], avoid=['any/x.py#docstrings']) == []

def test_cap_a_package(tmp_path):
    words = 'apple brick cloud delta eagle'.split()
    (tmp_path/'m.py').write_text('\n'.join(f'def {w}(x):\n    """Return the {w} of everything."""\n    {w}s = find_{w}(x, key="{w}")\n'
                                           f'    return sorted({w}s, reverse=True)\n' for w in words))
    files = [('m', 'm.py', tmp_path/'m.py')]
    assert len(summarization_examples(files=files)) == 5
    assert len(summarization_examples(files=files, per_package=2)) == 2


# -- what a pair is

def test_the_docstring_is_gone_and_the_rest_is_code(summarization):
    for e in summarization.splits['train']:
        f = ast.parse(e.prompt).body[0]
        assert isinstance(f, (ast.FunctionDef, ast.AsyncFunctionDef)) and len(e.prompt) <= 480
        assert e.answer not in e.prompt or ast.get_docstring(f) is None
        assert 3 <= len(e.answer.split()) <= 20 and '>>>' not in e.answer and ':param' not in e.answer

@pytest.mark.parametrize('doc', ['', 'Two words', 'Half of a sentence that\ngoes on', '>>> f(1) is a test', ':param x: the number of things',
                                 'See https://example.org for more', 'Returns a list of things:', 'word ' * 21])
def test_lines_that_will_not_do(doc): assert docstring_line(doc) == ''

@pytest.mark.parametrize('source', [
    'def f(x): "Return the sum of it."; return sum(x for x in range(100) if x > 3)',      # docstring shares its line
    'def f(x):\n    """Return the sum of it."""\n',                                        # nothing else
    'def f(x:\n    """Return the sum of it."""\n    return x\n',                           # does not parse
    'def f(x):\n    """Return the sum of it."""\n    return x' + ' + 1' * 300])            # too long
def test_functions_that_will_not_do(source): assert list(code_pairs(source, min_chars=1)) == []

def test_nested_and_async_functions_and_closing_brackets():
    source = ('class A:\n    async def f(\n        self,\n        x=")",\n    ) -> int:\n        """Wait for the value of x."""\n\n'
              '        # one\n# at the margin\n        y = await x\n        return y\n\nz = 1\n')
    (code, line), = code_pairs(source, min_chars=1)
    assert line == 'Wait for the value of x' and code.endswith('return y') and 'z = 1' not in code and '# one' in code

def test_every_kind_in_every_language():
    found = translation_examples(n=2000, targets=tuple(pairs._LANGUAGES))
    assert len({e.group for e in found}) == len(pairs._LANGUAGES) * len(pairs._KINDS)
    assert all(e.answer and '\xa0' not in e.answer and '\u202f' not in e.answer for e in found)
    for u in pairs._UNITS: assert pairs.units.format_unit(2, u, length='long', locale='de')


# -- labels

@pytest.mark.parametrize('name', ['translation', 'summarization'])
def test_targets_are_the_answer_and_its_end(name, request, tok):
    task = request.getfixturevalue(name)
    rows = rows_of(tok, task, 'valid')
    kept = [e for e in task.splits['valid'] if len(encode_examples(tok, [e], 192)[0])]
    dl = TaskLoader(rows, bs=4, shuffle=False)
    order = dl.get_idxs()
    assert sorted(order) == list(range(len(rows)))
    walked = [p for x, y in dl for p in zip(x, y)]
    assert len(walked) == len(kept)
    for i, (x, y) in zip(order, walked):
        e, t = kept[i], y[y != IGNORE]
        assert t[-1] == EOT and (t == EOT).sum() == 1 and decode(tok, t[:-1], False) == e.answer
        assert not ((y == PAD) | (y == PROMPT) | (y == ANSWER)).any()
        start = (x == ANSWER).nonzero()[0, 0]
        assert x[:start + 1].tolist() == format_prompt(tok, e.prompt)
        assert (y[:start] == IGNORE).all() and y[start] != IGNORE              # <|answer|> predicts the first token
        end = start + len(t)
        assert (y[end:] == IGNORE).all() and (x[end:] == PAD).all()            # pads are no targets
        assert y[start:end - 1].tolist() == x[start + 1:end].tolist()          # shifted by one

def test_special_tokens_in_text_stay_text(tok):
    sneaky = 'a<|endoftext|>b<|pad|><|answer|>yes<|prompt|>'
    tok.encode_special_tokens = False
    ids = format_prompt(tok, sneaky)
    assert [i for i in ids if i < 4] == [PROMPT, ANSWER] and decode(tok, ids[1:-1], False) == sneaky
    (ids, n), = encode_examples(tok, [Example(sneaky, sneaky)], 500)[0]
    assert [i for i in ids if i < 4] == [PROMPT, ANSWER, EOT]

def test_what_does_not_fit_is_set_aside_whole(tok, translation):
    some = translation.splits['train']
    need = max(len(i) - 1 for i, _ in encode_examples(tok, some, 500)[0])
    rows, aside = encode_examples(tok, some, need - 1)
    assert aside and len(rows) + len(aside) == len(some)
    assert all(ids[-1] == EOT and len(ids) <= need for ids, _ in rows)
    assert len(encode_examples(tok, some, need)[1]) == 0
    x, y = TaskLoader(encode_examples(tok, some, need)[0], bs=len(some), seq_len=need).one_batch()
    assert x.shape[1] <= need                                                  # rounding up respects the context

def test_a_foreign_tokenizer_is_refused():
    from tokenizers import Tokenizer, models
    with pytest.raises(UserError, match='trained by llmbook'): format_prompt(Tokenizer(models.BPE()), 'x')


# -- order

@pytest.fixture(scope='module')
def rows(tok, summarization): return rows_of(tok, summarization)

def equal(a, b): return all(torch.equal(u, v) for u, v in zip(a, b))

def test_seek_equals_walking(rows):
    make = lambda: TaskLoader(rows, bs=8, steps=7, seed=3)
    walked = make()
    batches = [b for _ in range(20) for b in walked]
    n = walked.per_pass
    assert len(batches) == 140 and 140 > 2 * n
    for start in (0, 5, 7, n - 1, n, 2 * n + 3):
        dl = make(); dl.seek(start)
        rest = list(dl)
        assert len(rest) == 7 - start % 7 and all(map(equal, rest, batches[start:]))
        assert equal(next(iter(dl)), batches[start + len(rest)])               # and goes on from there

def test_looking_changes_nothing(rows):
    a, b = TaskLoader(rows, bs=8), TaskLoader(rows, bs=8)
    a.one_batch(); a.one_batch(); torch.rand(3)
    assert all(map(equal, a, b))

def test_a_pass_has_every_row_once_and_passes_differ(rows):
    dl = TaskLoader(rows, bs=8, seed=1)
    passes = [[i for b in dl.order(p) for i in b.tolist()] for p in range(3)]
    assert all(sorted(p) == list(range(len(rows))) for p in passes)
    assert passes[0] != passes[1] != passes[2] and dl.order(0) is not passes[0]
    assert passes[0] != [i for b in TaskLoader(rows, bs=8, seed=2).order(0) for i in b.tolist()]

def test_validation_is_the_same_each_time(rows):
    dl = TaskLoader(rows, bs=8, shuffle=False)
    assert all(map(equal, list(dl), list(dl)))

def test_sorting_saves_padding(rows):
    share = lambda b: torch.cat([(x == PAD).float().flatten() for x, _ in b]).mean()
    dl = TaskLoader(rows, bs=8)
    plain = TaskLoader(rows, bs=8, fixed=True)
    assert share(dl) < .5 * share(plain)

DIGEST = '''
import hashlib
from llmbook.tokens.tokenizer import train_tokenizer
from llmbook.tune.tasks import *
out = hashlib.sha256()
for name in ('translation', 'summarization'):
    task = get_task(name, n=200)
    for s in ('train', 'valid', 'test'): out.update(repr(task.splits[s]).encode())
    tok = train_tokenizer([e.prompt + e.answer for e in task.splits['train']], 400)
    dl = TaskLoader(encode_examples(tok, task.splits['train'], 400)[0], bs=4, seed=7)
    for i in range(60): out.update(dl.batch(i)[1].numpy().tobytes())
print(out.hexdigest())
'''

def test_the_same_in_every_process():
    exec(DIGEST.replace('print(', 'here = ('), scope := {})
    there = subprocess.run([sys.executable, '-c', DIGEST], capture_output=True, text=True, check=True, env={**os.environ, 'PYTHONHASHSEED': '1'})
    assert there.stdout.strip() == scope['here']


# -- files of one's own

def test_bad_lines_are_counted(tmp_path):
    f = tmp_path/'mine.jsonl'
    f.write_bytes(b'{"prompt": "a", "answer": "b", "split": "train", "group": 3}\n\n{"prompt": "a"\n{"prompt": "c", "answer": 1}\n'
                  b'{"prompt": " ", "answer": "b"}\n[]\n\xff\xfe\n{"prompt": "d", "answer": "e", "split": "dev"}\n' + b'[' * 100_000 + b'\n'
                  b'{"prompt": "\\ud800", "answer": "half"}\n')
    task = get_task(str(f))
    assert task.splits == dict(train=[Example('a', 'b', '3')], valid=[], test=[]) and len(task.rejects) == 8
    assert [r.reason for r in task.rejects] == ['not JSON', 'no text in answer', 'no text in prompt', 'not an object with prompt and answer',
                                                'not UTF-8', 'split is not train, valid or test', 'not JSON', 'not UTF-8']
    assert task.rejects[0].id == 'mine.jsonl:3'

@pytest.mark.parametrize('name, message', [('sumarise', 'among summarization, translation'), ('none.jsonl', 'found none')])
def test_unknown_tasks(name, message):
    for targets in ([], ['xx']):
        with pytest.raises(UserError, match='expected a language'): translation_examples(targets=targets)
    with pytest.raises(UserError, match=message): get_task(name)

def test_a_file_without_validation_pairs_is_refused_before_training(tmp_path, tok):
    (tmp_path/'one.jsonl').write_text('{"prompt": "a", "answer": "b", "split": "train"}\n')
    with pytest.raises(UserError, match='valid split'): task_dls(load_task_file(tmp_path/'one.jsonl'), tok, device='cpu')
    (tmp_path/'one.jsonl').write_text('nothing\n')
    with pytest.raises(UserError, match='1 set aside'): load_task_file(tmp_path/'one.jsonl')


# -- fastai

class Hidden(torch.nn.Module):
    "Hidden states out, as our models give."
    def __init__(self, v, d=32):
        super().__init__()
        self.embed, self.rnn, self.head = torch.nn.Embedding(v, d), torch.nn.GRU(d, d, batch_first=True), torch.nn.Linear(d, v, bias=False)
    def forward(self, x): return self.rnn(self.embed(x))[0]

def test_a_learner_takes_it(tok, translation, capsys):
    from fastai.basics import Learner
    from fastai.callback.progress import ProgressCallback
    from llmbook.train.loss import LMLoss
    dls = task_dls(translation, tok, bs=16, seq_len=64, steps=6, device='cpu')
    assert dls.n_inp == 1 and len(dls.train) == 6 and dls.set_aside == dict(train=[], valid=[])
    model = Hidden(tok.get_vocab_size())
    learn = Learner(dls, model, loss_func=LMLoss(model.head))
    with learn.no_bar(), learn.no_logging():
        before = learn.validate()[0]
        learn.fit(2, 1e-2)
        assert dls.train.position == 12 and learn.validate()[0] < before
        h, y = learn.get_preds()
        for i in (0, -1): assert decode(tok, y[i][y[i] != IGNORE]) == translation.splits['valid'][i].answer
        assert h.shape[:2] == y.shape and len(y) == len(translation.splits['valid'])
        _, y = learn.get_preds(dl=dls.train)                                   # in the order of the examples, for a shuffled loader too
        for i in (0, 500, -1): assert decode(tok, y[i][y[i] != IGNORE]) == translation.splits['train'][i].answer
        learn.show_results(max_n=2); dls.show_batch(max_n=2)
    assert ': ' in capsys.readouterr().out

def test_tables_are_escaped(tok, monkeypatch):
    import IPython, IPython.display
    shown = []
    monkeypatch.setattr(IPython, 'get_ipython', lambda: True)
    monkeypatch.setattr(IPython.display, 'display', shown.append)
    rows, _ = encode_examples(tok, [Example('<script>alert(1)</script>', '<b>bold</b>')], 200)
    dl = TaskLoader(rows, bs=1, tok=tok)
    dl.show_batch(); dl.show_results(dl.one_batch(), dl.one_batch()[1])
    assert len(shown) == 2
    for h in shown: assert '<script>' not in h.data and '<b>' not in h.data and 'script&gt;' in h.data


def test_of_a_question_that_is_too_long_the_mark_and_the_end_are_read(monkeypatch):
    import llmbook.tune.finetune as f
    tok, model, seen = train_tokenizer(['some text here'] * 9, 300), Transformer(ModelConfig(vocab_size=300, n_layer=1, d_model=32, n_head=2, context=64)), []
    monkeypatch.setattr(f, 'generate', lambda model, tok, prompt_ids, **kw: seen.append(prompt_ids) or [''])
    for new, lengths in ((48, [7, 16]), (62, [2, 2])):
        f.answers(model, tok, ['short', 'x' * 500], new)
        assert [len(i) for i in seen[-1]] == lengths and all((i[0], i[-1]) == (PROMPT, ANSWER) for i in seen[-1])
