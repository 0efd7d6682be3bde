"The commands as a person types them: a run, the same plan killed and resumed, one-line errors."
import json, os, signal, subprocess, sys
from pathlib import Path
import numpy as np, pytest, torch
from llmbook.core import write_json
from llmbook.tokens.shards import ShardWriter, write_manifest
from llmbook.plan.planner import plan

BIN = Path(sys.executable).parent
SMALL = ['--minutes', '.1', '--max-bytes', '1000000', '--vocab-size', '1024', '--tasks', 'translation']


def command(name, *args, cwd=None, **env):
    return subprocess.run([BIN/name, *map(str, args)], capture_output=True, text=True, cwd=cwd, timeout=600,
                          env={**os.environ, 'HF_HUB_OFFLINE': '1', 'OMP_NUM_THREADS': '1', **env})


@pytest.fixture(scope='module')
def first(tmp_path_factory):
    out = tmp_path_factory.mktemp('runs')/'first'
    r = command('llmbook-run', '--out', out, *SMALL)
    assert r.returncode == 0, r.stderr[-3000:]
    return out, r


def test_ends_with_the_numbers_and_the_report(first):
    out, r = first
    lines = r.stdout.strip().splitlines()
    assert lines[-1] == f'report: {out/"report.html"}' and lines[-3].startswith(('bleu', 'Bits'))
    page = (out/'report.html').read_text(encoding='utf-8')
    assert '<script src' not in page and 'http-equiv="refresh"' not in page
    for f in ('plan.json', 'data/card.json', 'data/manifest.json', 'pretrain/history.csv', 'finetune/translation/result.json',
              'evaluation.json', 'summary.json', 'model/config.json', 'model/model.safetensors', 'model/tokenizer.json', 'model/README.md'):
        assert (out/f).exists(), f


def test_every_number_has_n_and_signature(first):
    rows = json.loads((first[0]/'evaluation.json').read_text())['rows']
    assert {'perplexity', 'bits_per_byte'} <= {r['metric'] for r in rows} and any(r.get('group') == 'xz' for r in rows)
    assert all(r['n'] > 0 and r['signature'] for r in rows)
    assert all(r['low'] is None or r['low'] <= r['value'] + 1e-9 and r['value'] <= r['high'] + 1e-9 for r in rows)


def test_second_run_finds_all_done(first):
    r = command('llmbook-run', '--out', first[0], *SMALL)
    assert r.returncode == 0 and r.stdout.count('done before') == 7


def test_another_question_is_refused(first):
    r = command('llmbook-run', '--out', first[0], *SMALL, '--seed', '7')
    assert r.returncode != 0 and 'seed 42 there, 7 now' in r.stderr and 'Traceback' not in r.stderr


def test_same_plan_killed_in_pretraining_gives_the_same_evaluation(first, tmp_path):
    "Two runs with one seed and one plan agree in every number, also when the second was killed with -9 on the way."
    out, plan = first[0], first[0]/'plan.json'
    kill = tmp_path/'sitecustomize.py'   # read by Python at its start: dies at step 12 of pre-training, once
    kill.write_text(f'''
import os, signal, sys
if sys.argv[0].endswith('llmbook-run'):
    import llmbook.train.telemetry as t
    real = t.Telemetry.after_batch
    def after_batch(self):
        real(self)
        if self.training and self.train_iter == 12 and not os.path.exists({str(tmp_path/"died")!r}):
            open({str(tmp_path/"died")!r}, 'w').close(); self.learn.checkpoint.save(); os.kill(os.getpid(), signal.SIGKILL)
    t.Telemetry.after_batch = after_batch
''')
    args = ['--out', tmp_path/'second', *SMALL, '--plan', plan]
    r = command('llmbook-run', *args, PYTHONPATH=str(tmp_path))
    assert r.returncode == -signal.SIGKILL and (tmp_path/'died').exists(), r.stderr[-2000:]
    r = command('llmbook-run', *args)
    assert r.returncode == 0 and r.stdout.count('done before') == 2, r.stderr[-2000:]
    for f in ('evaluation.json', 'finetune/translation/result.json'):
        a, b = (json.loads((d/f).read_text()) for d in (out, tmp_path/'second'))
        for d in (a, b): d.pop('seconds', None)
        assert a == b, f


def test_exported_model_opens_in_transformers(first):
    from llmbook.core import import_transformers
    from llmbook.tokens.tokenizer import encode_text
    from llmbook.model.hf import load_pretrained
    tf = import_transformers()
    theirs, their_tok = tf.AutoModelForCausalLM.from_pretrained(first[0]/'model', dtype=torch.float32), tf.AutoTokenizer.from_pretrained(first[0]/'model')
    ours, tok = load_pretrained(first[0]/'model', device='cpu')
    text = 'Return the number of items.\n    def f(x): pass'
    ids = encode_text(tok, [text])[0]
    assert their_tok(text, add_special_tokens=False)['input_ids'] == ids and their_tok.decode(ids) == text
    assert their_tok.pad_token != their_tok.eos_token
    with torch.no_grad(): gap = theirs(torch.tensor([ids])).logits - ours.logits(ours(torch.tensor([ids])))
    assert gap.abs().max() < 1e-4


def test_compare_reads_runs(first):
    r = command('llmbook-compare', first[0], first[0])
    assert r.returncode == 0 and 'bits_per_byte' in r.stdout


HAND = dict(device='by hand', type='cpu', cores=2, memory=16e9, peak_flops=330e9, peak_source='measured', dtype='float32',
            efficiency=.5, efficiency_at=[[64, .3], [256, .5]])
MISTAKES = [
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
    *(('llmbook_pretrain', ['nodata', '--out', 'planned', '--resume', *a], says) for a, says in (
        (['--seed', '7'], '--seed 42'), (['--size', 'nano'], '--size pico'), (['--minutes', '3'], '--minutes 1'), (['--seed', '42', '--size', 'pico'], 'nodata'))),
    ('llmbook_pretrain', ['nodata', '--out', 'oddplan', '--resume'], 'whose bs is of type int'),
    ('llmbook_pretrain', ['nodata', '--out', 'p1', '--plan', 'planned/plan.json', '--size', 'nano'], '--size pico, as in planned/plan.json'),
    ('llmbook_pretrain', ['nodata', '--out', 'planned', '--resume', '--plan', 'planned/other.json'], 'got another in planned/other.json'),
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
    *(('llmbook_pretrain', ['nodata', '--out', f'taken-{k}'], k) for k in ('history.csv', 'checkpoints', 'model')),
    ('llmbook_plan', ['--out', 'empty', '--device', 'h100'], 'got the folder'),
    ('llmbook_plan', ['--minutes', '1e300'], 'minutes above 0'),
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
SHELL = """
import contextlib, io, json, sys
from fastcore.script import _run_cli
import llmbook.cli as cli
res = []
for name, args, _ in json.loads(sys.argv[1]):
    sys.argv = [name, *args]
    with contextlib.redirect_stdout(io.StringIO()):
        try: _run_cli(getattr(cli, name).__wrapped__, False); res.append('accepted')
        except SystemExit as e: res.append(str(e))
        except BaseException as e: res.append(f'{type(e).__name__}: {e}')
print(json.dumps(res))
"""


@pytest.fixture(scope='module')
def refusals(tmp_path_factory):
    "What each mistake is answered with, all in one process, since a start takes seconds."
    d = tmp_path_factory.mktemp('mistakes')
    good = plan(1, HAND, size='pico').to_dict()
    for out, p in (('planned', good), ('oddplan', good | dict(bs='a'))): (d/out).mkdir(); write_json(d/out/'plan.json', p)
    write_json(d/'planned'/'other.json', good | dict(seed=7))
    for out in ('planned', 'lost'): (d/out/'checkpoints'/'step-000000010').mkdir(parents=True)
    write_json(d/'tokens.json', good | dict(tokens=10))
    (d/'cut.json').write_text('{"bs":')
    w = ShardWriter(d/'small', 'train'); w.add(np.arange(9), 9); small = w.close()
    write_manifest(d/'small', dict(train=small), 300, 'none')
    for name, p in (('empty', plan(1, HAND, size='pico', vocab_size=300).to_dict() | dict(expected={})), ('wide', good)): write_json(d/'small'/f'{name}.json', p)
    for k in ('history.csv', 'checkpoints', 'model'): (d/f'taken-{k}').mkdir(); (d/f'taken-{k}'/k).mkdir() if '.' in k else (d/f'taken-{k}'/k).write_text('x')
    (d/'listmodel').mkdir(); (d/'listmodel'/'config.json').write_text('[]')
    (d/'afile').write_text('x'); (d/'empty').mkdir(); (d/'tiny.txt').write_text('A very small text.\n' * 3)
    r = subprocess.run([sys.executable, '-c', SHELL, json.dumps(MISTAKES)], capture_output=True, text=True, cwd=d, timeout=300,
                       env={**os.environ, 'HF_HUB_OFFLINE': '1'})
    assert r.returncode == 0, r.stderr[-3000:]
    assert not (d/'p3'/'plan.json').exists() # what was refused leaves no plan
    return json.loads(r.stdout.splitlines()[-1])


@pytest.mark.parametrize('i', range(len(MISTAKES)), ids=lambda i: ' '.join([MISTAKES[i][0], *MISTAKES[i][1]]))
def test_mistakes_are_one_line(refusals, i):
    said = refusals[i]
    assert said.startswith('error: ') and '\n' not in said and MISTAKES[i][2] in said, said


def test_a_mistake_in_a_shell(tmp_path):
    r = command('llmbook-run', '--minutes', '0', cwd=tmp_path)
    assert r.returncode == 1 and r.stdout == '' and r.stderr == 'error: expected minutes above 0, got 0.0\n'
    assert not list(tmp_path.iterdir())
