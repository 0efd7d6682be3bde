"Tasks: splits do not leak, the loss sees the answer and its end alone, and the order can be resumed."
import ast, os, runpy, subprocess, sys
from pathlib import Path
import pytest, torch
from llmbook.core import UserError
from llmbook.prepare.splits import SPLITS
from llmbook.tokens.tokenizer import ANSWER, EOT, PAD, PROMPT, decode, train_tokenizer
from llmbook.train.loss import IGNORE
from llmbook.model.config import ModelConfig
from llmbook.model.transformer import Transformer
from llmbook.tune import pairs
from llmbook.tune.pairs import Example, code_pairs, docstring_line, summarization_examples, translation_examples
from llmbook.tune.tasks import TaskLoader, encode_examples, format_prompt, get_task, load_task_file, task_dls

DIGEST = str(Path(__file__).parent/'programs'/'task_digest.py')


@pytest.fixture(scope='module')
def translation(): return get_task('translation', n=1000)


@pytest.fixture(scope='module')
def summarization(): return get_task('summarization', n=500)


@pytest.fixture(scope='module')
def tok(translation, summarization):
    examples = [*translation.splits['train'], *summarization.splits['train']]
    return train_tokenizer([t for e in examples for t in (e.prompt, e.answer)], 600)


def rows_of(tok, examples, seq_len=192):
    rows, _ = encode_examples(tok, examples, seq_len)
    return rows


def overlap(sets):
    train, valid, test = sets
    return train & valid | train & test | valid & test


# ---- leakage ----

@pytest.mark.parametrize('name', ['translation', 'summarization'])
def test_no_prompt_in_two_splits(name, request):
    task = request.getfixturevalue(name)
    prompts = [{e.prompt for e in task.splits[split]} for split in SPLITS]
    assert all(prompts)
    assert not overlap(prompts)
    assert sum(map(len, prompts)) == sum(map(len, task.splits.values())), 'and none twice in one split'


def test_a_phrase_stays_in_one_split_in_every_language(translation):
    def phrases(split): return {e.prompt.split(': ', 1)[1] for e in translation.splits[split]}
    assert not phrases('train') & phrases('test')
    assert not phrases('train') & phrases('valid')
    assert {e.prompt.split(':')[0] for e in translation.splits['test']} == {'German', 'French'}


@pytest.mark.parametrize('key', [lambda e: e.group, lambda e: pairs._words(e.answer)], ids=['package', 'summary'])
def test_packages_and_summaries_stay_in_one_split(summarization, key):
    assert not overlap([{key(e) for e in summarization.splits[split]} for split in SPLITS])


def test_near_identical_functions_are_removed(tmp_path):
    body = '\n'.join(f'    total = total + values[{i}] * weights[{i}]' for i in range(6))
    files = []
    for package, word in (('a', 'sum'), ('b', 'total')):
        path = tmp_path/f'{package}.py'
        path.write_text(f'def add(values, weights):\n    """Return the weighted {word} of values."""\n'
                        f'    total = 0\n{body}\n    return total  # {word}\n')
        files.append((package, 'x.py', path))
    assert len(summarization_examples(files=files)) == 1
    assert summarization_examples(files=files[:1], avoid=['any/x.py#docstrings']) == []


def test_a_package_gives_no_more_than_its_cap(tmp_path):
    def function(word):
        return (f'def {word}(x):\n    """Return the {word} of everything."""\n'
                f'    {word}s = find_{word}(x, key="{word}")\n    return sorted({word}s, reverse=True)\n')
    path = tmp_path/'m.py'
    path.write_text('\n'.join(map(function, ('apple', 'brick', 'cloud', 'delta', 'eagle'))))
    files = [('m', 'm.py', path)]
    assert len(summarization_examples(files=files)) == 5
    assert len(summarization_examples(files=files, per_package=2)) == 2


# ---- what a pair is ----

def test_the_docstring_is_gone_and_the_rest_is_code(summarization):
    for e in summarization.splits['train']:
        f = ast.parse(e.prompt).body[0]
        assert isinstance(f, (ast.FunctionDef, ast.AsyncFunctionDef))
        assert len(e.prompt) <= 480
        assert e.answer not in e.prompt or ast.get_docstring(f) is None
        assert 3 <= len(e.answer.split()) <= 20
        assert '>>>' not in e.answer
        assert ':param' not in e.answer


@pytest.mark.parametrize('doc', [
    '',
    'Two words',
    'Half of a sentence that\ngoes on',
    '>>> f(1) is a test',
    ':param x: the number of things',
    'See https://example.org for more',
    'Returns a list of things:',
    'word ' * 21])
def test_lines_that_will_not_do(doc): assert docstring_line(doc) == ''


@pytest.mark.parametrize('source', [
    'def f(x): "Return the sum of it."; return sum(x for x in range(100) if x > 3)',      # docstring shares its line
    'def f(x):\n    """Return the sum of it."""\n',                                        # nothing else
    'def f(x:\n    """Return the sum of it."""\n    return x\n',                           # does not parse
    'def f(x):\n    """Return the sum of it."""\n    return x' + ' + 1' * 300])            # too long
def test_functions_that_will_not_do(source): assert list(code_pairs(source, min_chars=1)) == []


def test_nested_and_async_functions_and_closing_brackets():
    source = ('class A:\n'
              '    async def f(\n'
              '        self,\n'
              '        x=")",\n'
              '    ) -> int:\n'
              '        """Wait for the value of x."""\n'
              '\n'
              '        # one\n'
              '# at the margin\n'
              '        y = await x\n'
              '        return y\n'
              '\n'
              'z = 1\n')
    (code, line), = code_pairs(source, min_chars=1)
    assert line == 'Wait for the value of x'
    assert code.endswith('return y')
    assert 'z = 1' not in code
    assert '# one' in code


def test_every_kind_in_every_language():
    found = translation_examples(n=2000, targets=tuple(pairs._LANGUAGES))
    assert len({e.group for e in found}) == len(pairs._LANGUAGES) * len(pairs._KINDS)
    for e in found:
        assert e.answer
        assert '\xa0' not in e.answer
        assert '\u202f' not in e.answer
    for unit in pairs._UNITS: assert pairs.units.format_unit(2, unit, length='long', locale='de')


# ---- labels ----

def check_targets(tok, example, x, y):
    "Assert that the targets are the answer and its end, asked for one position earlier."
    t = y[y != IGNORE]
    assert t[-1] == EOT
    assert (t == EOT).sum() == 1
    assert decode(tok, t[:-1], False) == example.answer
    for mark in (PAD, PROMPT, ANSWER): assert not (y == mark).any()
    start = x.tolist().index(ANSWER)
    end = start + len(t)
    assert x[:start + 1].tolist() == format_prompt(tok, example.prompt)
    assert (y[:start] == IGNORE).all()
    assert y[start] != IGNORE, '<|answer|> predicts the first token'
    assert (y[end:] == IGNORE).all(), 'pads are no targets'
    assert (x[end:] == PAD).all()
    assert y[start:end - 1].tolist() == x[start + 1:end].tolist(), 'shifted by one'


@pytest.mark.parametrize('name', ['translation', 'summarization'])
def test_targets_are_the_answer_and_its_end(name, request, tok):
    valid = request.getfixturevalue(name).splits['valid']
    rows = rows_of(tok, valid)
    kept = [e for e in valid if rows_of(tok, [e])]
    dl = TaskLoader(rows, bs=4, shuffle=False)
    order = dl.get_idxs()
    assert sorted(order) == list(range(len(rows)))
    walked = []
    for x, y in dl: walked += zip(x, y)
    assert len(walked) == len(kept)
    for i, (x, y) in zip(order, walked): check_targets(tok, kept[i], x, y)


def test_special_tokens_in_text_stay_text(tok):
    sneaky = 'a<|endoftext|>b<|pad|><|answer|>yes<|prompt|>'
    tok.encode_special_tokens = False
    def marks(ids): return [i for i in ids if i < 4]
    ids = format_prompt(tok, sneaky)
    assert marks(ids) == [PROMPT, ANSWER]
    assert decode(tok, ids[1:-1], False) == sneaky
    (ids, _), = rows_of(tok, [Example(sneaky, sneaky)], 500)
    assert marks(ids) == [PROMPT, ANSWER, EOT]


def test_what_does_not_fit_is_set_aside_whole(tok, translation):
    some = translation.splits['train']
    need = longest_row(tok, some)
    rows, aside = encode_examples(tok, some, need - 1)
    assert aside
    assert len(rows) + len(aside) == len(some)
    for ids, _ in rows:
        assert ids[-1] == EOT
        assert len(ids) <= need


def test_what_just_fits_is_kept(tok, translation):
    some = translation.splits['train']
    need = longest_row(tok, some)
    rows, aside = encode_examples(tok, some, need)
    assert len(aside) == 0
    x, y = TaskLoader(rows, bs=len(some), seq_len=need).one_batch()
    assert x.shape[1] <= need, 'rounding up respects the context'


def longest_row(tok, examples):
    "Return the positions that the longest example needs."
    return max(len(ids) - 1 for ids, _ in rows_of(tok, examples, 500))


def test_a_foreign_tokenizer_is_refused():
    from tokenizers import Tokenizer, models
    with pytest.raises(UserError, match='trained by llmbook'): format_prompt(Tokenizer(models.BPE()), 'x')


# ---- order ----

@pytest.fixture(scope='module')
def rows(tok, summarization): return rows_of(tok, summarization.splits['train'])


def equal(a, b): return all(torch.equal(u, v) for u, v in zip(a, b))


def test_seek_equals_walking(rows):
    def make(): return TaskLoader(rows, bs=8, steps=7, seed=3)
    walked = make()
    batches = [b for _ in range(20) for b in walked]
    n = walked.per_pass
    assert len(batches) == 140
    assert 140 > 2 * n
    for start in (0, 5, 7, n - 1, n, 2 * n + 3):
        dl = make()
        dl.seek(start)
        rest = list(dl)
        assert len(rest) == 7 - start % 7
        assert all(map(equal, rest, batches[start:]))
        assert equal(next(iter(dl)), batches[start + len(rest)]), 'and it continues from there'


def test_looking_changes_nothing(rows):
    a, b = TaskLoader(rows, bs=8), TaskLoader(rows, bs=8)
    a.one_batch()
    a.one_batch()
    torch.rand(3)
    assert all(map(equal, a, b))


def test_a_pass_has_every_row_once_and_passes_differ(rows):
    def flat(order): return [i for batch in order for i in batch.tolist()]
    dl = TaskLoader(rows, bs=8, seed=1)
    passes = [flat(dl.order(p)) for p in range(3)]
    assert all(sorted(p) == list(range(len(rows))) for p in passes)
    assert passes[0] != passes[1] != passes[2]
    assert dl.order(0) is not passes[0]
    assert passes[0] != flat(TaskLoader(rows, bs=8, seed=2).order(0))


def test_validation_is_the_same_each_time(rows):
    dl = TaskLoader(rows, bs=8, shuffle=False)
    assert all(map(equal, list(dl), list(dl)))


def test_sorting_saves_padding(rows):
    def share(batches): return torch.cat([(x == PAD).float().flatten() for x, _ in batches]).mean()
    assert share(TaskLoader(rows, bs=8)) < .5 * share(TaskLoader(rows, bs=8, fixed=True))


def test_the_same_in_every_process():
    here = runpy.run_path(DIGEST)['digest']()
    env = {**os.environ, 'PYTHONHASHSEED': '1'}
    there = subprocess.run([sys.executable, DIGEST], capture_output=True, text=True, check=True, env=env)
    assert there.stdout.strip() == here


# ---- files of your own ----

BAD_LINES = {
    b'{"prompt": "a"': 'not JSON',
    b'{"prompt": "c", "answer": 1}': 'no text in answer',
    b'{"prompt": " ", "answer": "b"}': 'no text in prompt',
    b'[]': 'not an object with prompt and answer',
    b'\xff\xfe': 'not UTF-8',
    b'{"prompt": "d", "answer": "e", "split": "dev"}': 'split is not train, valid or test',
    b'[' * 100_000: 'not JSON',
    b'{"prompt": "\\ud800", "answer": "half"}': 'not UTF-8'}


def test_bad_lines_are_counted(tmp_path):
    path = tmp_path/'mine.jsonl'
    good = b'{"prompt": "a", "answer": "b", "split": "train", "group": 3}'
    path.write_bytes(b'\n'.join([good, b'', *BAD_LINES, b'']))
    task = get_task(str(path))
    assert task.splits == dict(train=[Example('a', 'b', '3')], valid=[], test=[])
    assert [r.reason for r in task.rejects] == list(BAD_LINES.values())
    assert task.rejects[0].id == 'mine.jsonl:3'


@pytest.mark.parametrize('name, message', [
    ('sumarise', 'among summarization, translation'),
    ('none.jsonl', 'found none')])
def test_unknown_tasks_are_refused(name, message):
    with pytest.raises(UserError, match=message): get_task(name)


@pytest.mark.parametrize('targets', [[], ['xx']])
def test_unknown_languages_are_refused(targets):
    with pytest.raises(UserError, match='expected a language'): translation_examples(targets=targets)


def test_a_file_without_validation_pairs_is_refused_before_training(tmp_path, tok):
    path = tmp_path/'one.jsonl'
    path.write_text('{"prompt": "a", "answer": "b", "split": "train"}\n')
    with pytest.raises(UserError, match='valid split'): task_dls(load_task_file(path), tok, device='cpu')
    path.write_text('nothing\n')
    with pytest.raises(UserError, match='1 set aside'): load_task_file(path)


# ---- fastai ----

class Hidden(torch.nn.Module):
    "A model that returns hidden states, as ours do."
    def __init__(self, v, d=32):
        super().__init__()
        self.embed = torch.nn.Embedding(v, d)
        self.rnn = torch.nn.GRU(d, d, batch_first=True)
        self.head = torch.nn.Linear(d, v, bias=False)
    def forward(self, x):
        h, _ = self.rnn(self.embed(x))
        return h


def test_a_learner_takes_it(tok, translation, capsys):
    from fastai.basics import Learner
    from fastai.callback.progress import ProgressCallback
    from llmbook.train.loss import LMLoss
    train, valid = translation.splits['train'], translation.splits['valid']
    def answer(y): return decode(tok, y[y != IGNORE])
    dls = task_dls(translation, tok, bs=16, seq_len=64, steps=6, device='cpu')
    assert dls.n_inp == 1
    assert len(dls.train) == 6
    assert dls.set_aside == dict(train=[], valid=[])
    model = Hidden(tok.get_vocab_size())
    learn = Learner(dls, model, loss_func=LMLoss(model.head))
    with learn.no_bar(), learn.no_logging():
        before = learn.validate()[0]
        learn.fit(2, 1e-2)
        assert dls.train.position == 12
        assert learn.validate()[0] < before
        h, y = learn.get_preds()
        for i in (0, -1): assert answer(y[i]) == valid[i].answer
        assert h.shape[:2] == y.shape
        assert len(y) == len(valid)
        _, y = learn.get_preds(dl=dls.train)
        for i in (0, 500, -1): assert answer(y[i]) == train[i].answer, 'in the order of the examples, though shuffled'
        learn.show_results(max_n=2)
        dls.show_batch(max_n=2)
    assert ': ' in capsys.readouterr().out


def test_tables_are_escaped(tok, monkeypatch):
    import IPython, IPython.display
    shown = []
    monkeypatch.setattr(IPython, 'get_ipython', lambda: True)
    monkeypatch.setattr(IPython.display, 'display', shown.append)
    rows = rows_of(tok, [Example('<script>alert(1)</script>', '<b>bold</b>')], 200)
    dl = TaskLoader(rows, bs=1, tok=tok)
    dl.show_batch()
    x, y = dl.one_batch()
    dl.show_results((x, y), y)
    assert len(shown) == 2
    for html in shown:
        assert '<script>' not in html.data
        assert '<b>' not in html.data
        assert 'script&gt;' in html.data


def test_the_mark_and_the_end_of_a_prompt_that_is_too_long_are_read(monkeypatch):
    from llmbook.tune import finetune as module
    tok = train_tokenizer(['some text here'] * 9, 300)
    model = Transformer(ModelConfig(vocab_size=300, n_layer=1, d_model=32, n_head=2, context=64))
    seen = []
    def generate(model, tok, prompt_ids, **kwargs):
        seen.append(prompt_ids)
        return ['']
    monkeypatch.setattr(module, 'generate', generate)
    for new_tokens, lengths in ((48, [7, 16]), (62, [2, 2])):
        module.answers(model, tok, ['short', 'x' * 500], new_tokens)
        assert [len(ids) for ids in seen[-1]] == lengths
        for ids in seen[-1]: assert (ids[0], ids[-1]) == (PROMPT, ANSWER)
