"The commands as a person types them: a run, the same plan killed and resumed, one-line errors."
import json, os, shutil, signal, subprocess, sys
from pathlib import Path
import numpy as np, pytest, torch
from machines import BY_HAND
from llmbook.core import write_json
from llmbook.tokens.shards import ShardWriter, write_manifest
from llmbook.plan.planner import plan

BIN = Path(sys.executable).parent
PROGRAMS = Path(__file__).parent/'programs'
SMALL = ['--minutes', '.1', '--max-bytes', '1000000', '--vocab-size', '1024', '--tasks', 'translation', '--plant', '3']
MADE = ['plan.json', 'data/card.json', 'data/manifest.json', 'pretrain/history.csv', 'finetune/translation/result.json',
        'evaluation.json', 'summary.json', 'model/config.json', 'model/model.safetensors', 'model/tokenizer.json',
        'model/README.md', 'evaluation/items', 'ledger.jsonl']


def command(name, *args, cwd=None, **env):
    env = {**os.environ, 'HF_HUB_OFFLINE': '1', 'OMP_NUM_THREADS': '1', **env}
    return subprocess.run([BIN/name, *map(str, args)], capture_output=True, text=True, cwd=cwd, timeout=600, env=env)


def read(path): return json.loads(path.read_text(encoding='utf-8'))


@pytest.fixture(scope='module')
def first(tmp_path_factory):
    "Make a run; return its folder and what it printed."
    out = tmp_path_factory.mktemp('runs')/'first'
    r = command('llmbook-run', '--out', out, *SMALL)
    assert r.returncode == 0, r.stderr[-3000:]
    return out, r.stdout


def test_ends_with_the_numbers_and_the_report(first):
    out, printed = first
    lines = printed.strip().splitlines()
    assert lines[-1] == f'report: {out/"report.html"}'
    assert lines[-3].startswith(('bleu', 'Bits'))
    page = (out/'report.html').read_text(encoding='utf-8')
    assert '<script src' not in page
    assert 'http-equiv="refresh"' not in page
    for f in MADE: assert (out/f).exists(), f


def test_every_number_has_n_and_signature(first):
    out, _ = first
    rows = read(out/'evaluation.json')['rows']
    assert {'perplexity', 'bits_per_byte'} <= {r['metric'] for r in rows}
    assert any(r.get('group') == 'xz' for r in rows)
    for r in rows:
        assert r['n'] > 0
        assert r['signature']
        low, high = r['low'], r['high']
        if low is not None: assert low - 1e-9 <= r['value'] <= high + 1e-9


def test_planted_secrets_are_in_the_data_and_their_exposure_in_the_report(first):
    out, _ = first
    planted = read(out/'data/planted.json')
    assert planted['n'] == len(planted['secrets']) == 3
    assert read(out/'data/card.json')['planted']['times'] == {'101': 1, '102': 4, '103': 16}
    rows = [r for r in read(out/'evaluation.json')['rows'] if r['metric'] == 'exposure']
    assert [r['group'] for r in rows] == [f'planted {n} times' for n in (1, 4, 16)]
    assert all(0 <= r['value'] <= 8 for r in rows)
    assert 'planted 16 times' in (out/'report.html').read_text(encoding='utf-8')


def test_second_run_finds_all_done(first):
    out, _ = first
    r = command('llmbook-run', '--out', out, *SMALL)
    assert r.returncode == 0
    assert r.stdout.count('done before') == 7


def test_other_settings_are_refused(first):
    out, _ = first
    r = command('llmbook-run', '--out', out, *SMALL, '--seed', '7')
    assert r.returncode != 0
    assert 'seed 42 there, 7 now' in r.stderr
    assert 'Traceback' not in r.stderr


def test_same_plan_killed_in_pretraining_gives_the_same_evaluation(first, tmp_path):
    "Two runs with one seed and one plan agree in every number, also when the second was killed with -9 on the way."
    out, _ = first
    second, died = tmp_path/'second', tmp_path/'died'
    shutil.copy(PROGRAMS/'die_in_pretraining.py', tmp_path/'sitecustomize.py') # Python reads it at its start
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get('PYTHONPATH')]))
    args = ['--out', second, *SMALL, '--plan', out/'plan.json']
    r = command('llmbook-run', *args, PYTHONPATH=path, LLMBOOK_TEST_DIED=str(died))
    assert r.returncode == -signal.SIGKILL, r.stderr[-2000:]
    assert died.exists()
    r = command('llmbook-run', *args)
    assert r.returncode == 0, r.stderr[-2000:]
    assert r.stdout.count('done before') == 2
    for f in ('evaluation.json', 'finetune/translation/result.json'):
        want = read(out/f)
        got = read(second/f)
        for result in (want, got): result.pop('seconds', None)
        assert got == want, f


def test_exported_model_opens_in_transformers(first):
    from llmbook.core import import_transformers
    from llmbook.tokens.tokenizer import encode_text
    from llmbook.model.hf import load_pretrained
    out, _ = first
    transformers = import_transformers()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out/'model', dtype=torch.float32)
    their_tok = transformers.AutoTokenizer.from_pretrained(out/'model')
    ours, tok = load_pretrained(out/'model', device='cpu')
    text = 'Return the number of items.\n    def f(x): pass'
    ids = encode_text(tok, [text])[0]
    assert their_tok(text, add_special_tokens=False)['input_ids'] == ids
    assert their_tok.decode(ids) == text
    assert their_tok.pad_token != their_tok.eos_token
    x = torch.tensor([ids])
    with torch.no_grad(): gap = theirs(x).logits - ours.logits(ours(x))
    assert gap.abs().max() < 1e-4


def test_compare_reads_runs(first):
    out, _ = first
    r = command('llmbook-compare', out, out)
    assert r.returncode == 0
    assert 'bits_per_byte' in r.stdout
    assert 'is named twice: a run does not differ from itself' in r.stderr


MISTAKES = [ # (command, arguments, what the error says)
    ('llmbook_run', ['--minutes', '0'], 'minutes above 0'),
    ('llmbook_run', ['--minutes', 'inf'], 'minutes above 0'),
    ('llmbook_run', ['--tasks', 'poetry'], 'poetry'),
    ('llmbook_run', ['--seed', '-1'], 'seed of 0 or more'),
    ('llmbook_run', ['--sources', 'nowhere/at/all'], 'nowhere/at/all'),
    ('llmbook_run', ['--vocab-size', '10'], 'vocabulary'),
    ('llmbook_run', ['--plan', 'missing.json'], 'missing.json'),
    ('llmbook_run', ['--out', 'afile'], 'found a file'),
    ('llmbook_run', ['--sources', 'empty', '--out', 'o1'], 'empty'),
    ('llmbook_run', ['--sources', 'tiny.txt', '--out', 'o2'], 'expected'),
    ('llmbook_plan', ['--minutes', '-1'], 'minutes above 0'),
    ('llmbook_plan', ['--minutes', 'nan'], 'minutes above 0'),
    ('llmbook_pretrain', ['nodata'], 'nodata'),
    ('llmbook_pretrain', ['nodata', '--out', 'afile'], 'found a file'),
    ('llmbook_pretrain', ['nodata', '--out', 'planned', '--resume', '--seed', '7'], '--seed 42'),
    ('llmbook_pretrain', ['nodata', '--out', 'planned', '--resume', '--size', 'nano'], '--size pico'),
    ('llmbook_pretrain', ['nodata', '--out', 'planned', '--resume', '--minutes', '3'], '--minutes 1'),
    ('llmbook_pretrain', ['nodata', '--out', 'planned', '--resume', '--seed', '42', '--size', 'pico'], 'nodata'),
    ('llmbook_pretrain', ['nodata', '--out', 'oddplan', '--resume'], 'whose bs is of type int'),
    ('llmbook_pretrain', ['nodata', '--out', 'p1', '--plan', 'planned/plan.json', '--size', 'nano'],
     '--size pico, as in planned/plan.json'),
    ('llmbook_pretrain', ['nodata', '--out', 'planned', '--resume', '--plan', 'planned/other.json'],
     'got another in planned/other.json'),
    ('llmbook_pretrain', ['nodata', '--out', 'p2', '--plan', 'missing.json'], 'missing.json'),
    ('llmbook_plan', ['--data', 'nodata'], 'nodata'),
    ('llmbook_plan', ['--data', 'small', '--vocab-size', '10'], 'leave --vocab-size out'),
    ('llmbook_plan', ['--device', 'h100', '--recompute', '-1'], 'recompute to be a whole number'),
    ('llmbook_pretrain', ['nodata', '--out', 'lost', '--resume'], 'give it with --plan'),
    ('llmbook_pretrain', ['nodata', '--out', 'p3', '--plan', 'tokens.json'], 'bs * seq_len * steps'),
    ('llmbook_pretrain', ['nodata', '--out', 'p3', '--plan', 'cut.json'], 'make it again with'),
    ('llmbook_pretrain', ['nodata', '--out', 'p3', '--parallel', 'zero'], 'ddp or fsdp'),
    ('llmbook_pretrain', ['small', '--out', 'p3', '--plan', 'small/empty.json'], 'figures'),
    ('llmbook_pretrain', ['small', '--out', 'p3', '--plan', 'small/wide.json'], 'a vocabulary of 300'),
    ('llmbook_pretrain', ['small', '--out', 'p3', '--plan', 'small/missing.json'], 'small/missing.json'),
    ('llmbook_pretrain', ['nodata', '--out', 'taken-history.csv'], 'history.csv'),
    ('llmbook_pretrain', ['nodata', '--out', 'taken-checkpoints'], 'checkpoints'),
    ('llmbook_pretrain', ['nodata', '--out', 'taken-model'], 'model'),
    ('llmbook_plan', ['--out', 'empty', '--device', 'h100'], 'got the folder'),
    ('llmbook_plan', ['--minutes', '1e300'], 'minutes above 0'),
    ('llmbook_plan', ['--vocab-size', '3'], '--vocab-size 260 or more'),
    ('llmbook_plan', ['--device', 'h100', '--hours', '1e300'], 'hours above 0'),
    ('llmbook_plan', ['--device', 'h100', '--price', 'nan'], 'price of 0 or more'),
    ('llmbook_plan', ['--device', 'h100', '--size', 'encoder-nano'], 'expected a decoder'),
    ('llmbook_generate', ['nomodel', '--n', '0'], '--n 0'),
    ('llmbook_generate', ['nomodel', '--temperature', 'nan'], '--temperature nan'),
    ('llmbook_evaluate', ['listmodel'], 'expected an object'),
    ('llmbook_evaluate', ['nomodel', '--out', 'empty'], 'got the folder'),
    ('llmbook_finetune', ['nomodel'], 'nomodel'),
    ('llmbook_generate', ['nomodel', '--prompt', 'x'], 'nomodel'),
    ('llmbook_export', ['nomodel'], 'nomodel'),
    ('llmbook_evaluate', ['nomodel'], 'nomodel'),
    ('llmbook_compare', ['nowhere'], 'two or more'),
    ('llmbook_compare', ['nowhere', 'here'], 'nowhere'),
    ('llmbook_prepare', ['hub:some/thing', '--out', 'd'], 'some/thing'),
]


def folder(path):
    path.mkdir(parents=True)
    return path


def make_plans(d):
    "Make plans and their folders, good and damaged."
    good = plan(1, BY_HAND, size='pico').to_dict()
    write_json(folder(d/'planned')/'plan.json', good)
    write_json(d/'planned'/'other.json', good | dict(seed=7))
    write_json(folder(d/'oddplan')/'plan.json', good | dict(bs='a'))
    for out in ('planned', 'lost'): folder(d/out/'checkpoints'/'step-000000010')
    write_json(d/'tokens.json', good | dict(tokens=10))
    (d/'cut.json').write_text('{"bs":')


def make_small_data(d):
    "Make data of nine tokens, with a plan that expects nothing and one of too many tokens."
    writer = ShardWriter(d/'small', 'train')
    writer.add(np.arange(9), 9)
    write_manifest(d/'small', dict(train=writer.close()), 300, 'none')
    fitting = plan(1, BY_HAND, size='pico', vocab_size=300)
    write_json(d/'small'/'empty.json', fitting.to_dict() | dict(expected={}))
    too_wide = plan(1, BY_HAND, size='pico')
    write_json(d/'small'/'wide.json', too_wide.to_dict())


def make_inputs(d):
    "Make the files and folders that the mistakes name."
    make_plans(d)
    make_small_data(d)
    folder(d/'taken-history.csv'/'history.csv') # a folder where a file should be, and the other way round
    for name in ('checkpoints', 'model'): (folder(d/f'taken-{name}')/name).write_text('x')
    (folder(d/'listmodel')/'config.json').write_text('[]')
    folder(d/'empty')
    (d/'afile').write_text('x')
    (d/'tiny.txt').write_text('A very small text.\n' * 3)


@pytest.fixture(scope='module')
def refusals(tmp_path_factory):
    "Return what each mistake is answered with; all in one process, since a start takes seconds."
    d = tmp_path_factory.mktemp('mistakes')
    make_inputs(d)
    calls = json.dumps([(name, args) for name, args, _ in MISTAKES])
    command = [sys.executable, PROGRAMS/'commands.py', calls]
    env = {**os.environ, 'HF_HUB_OFFLINE': '1'}
    r = subprocess.run(command, capture_output=True, text=True, cwd=d, timeout=300, env=env)
    assert r.returncode == 0, r.stderr[-3000:]
    assert not (d/'p3'/'plan.json').exists(), 'what was refused leaves no plan'
    return json.loads(r.stdout.splitlines()[-1])


@pytest.mark.parametrize('i', range(len(MISTAKES)), ids=[' '.join([name, *args]) for name, args, _ in MISTAKES])
def test_mistakes_are_one_line(refusals, i):
    said = refusals[i]
    (_, _, expected) = MISTAKES[i]
    assert said.startswith('error: '), said
    assert '\n' not in said
    assert expected in said, said


def test_a_mistake_in_a_shell(tmp_path):
    r = command('llmbook-run', '--minutes', '0', cwd=tmp_path)
    assert r.returncode == 1
    assert r.stdout == ''
    assert r.stderr == 'error: expected minutes above 0, got 0.0\n'
    assert not list(tmp_path.iterdir())


COMMANDS = ['run', 'plan', 'prepare', 'pretrain', 'finetune', 'generate', 'evaluate', 'export', 'compare']
HELP = '''
import sys
from llmbook.cli import llmbook_NAME as command
try: command()
finally:
    heavy = {'torch', 'fastai', 'transformers', 'datasets', 'tokenizers', 'pandas', 'matplotlib', 'pyarrow'}
    print('loaded:', sorted(heavy & set(sys.modules)))
'''


@pytest.mark.parametrize('name', COMMANDS)
def test_help_loads_nothing_heavy(name, tmp_path):
    script = tmp_path/f'llmbook-{name}.py'
    script.write_text(HELP.replace('NAME', name))
    r = subprocess.run([sys.executable, script, '--help'], capture_output=True, text=True)
    assert r.returncode == 0, r.stderr
    assert 'show this help message' in r.stdout
    assert r.stdout.splitlines()[-1] == 'loaded: []'


def test_every_name_of_the_library_is_where_the_commands_look_for_it():
    import llmbook.cli as cli
    for name in cli.LIBRARY: assert callable(getattr(cli, name)), name
