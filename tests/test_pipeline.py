"The preparation over processes and over Ray: the same bytes, nothing done twice, nothing lost when a worker dies."
import json, os, random, signal, subprocess, sys
from pathlib import Path
import numpy as np
import pytest
from llmbook.core import UserError
from llmbook.prepare.workers import ProgressBar, choose_workers, run_units
from llmbook.prepare.units import Sources, divide, unit_size, units
from llmbook.tokens.shards import check_shards, documents
from llmbook.prepare.pipeline import prepare
from llmbook.read.sources import read_unit
from llmbook.tokens.tokenizer import decode, load_tokenizer

WORDS = 'the be of and that have with a small house stands near river where people meet every morning to read and talk about work'.split()
OPTIONS = dict(vocab_size=400, preset='none', valid=.05, test=.05, progress=False)


def text(i, n=150):
    rng = random.Random(i)
    return f'This is story {i}. ' + ' '.join(rng.choice(WORDS) + str(rng.randrange(90)) for _ in range(n))


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    "Four units: more than 3 MB of jsonl with copies, damage and personal data in it."
    f = tmp_path_factory.mktemp('source')/'docs.jsonl'
    rows = [json.dumps(dict(id=f'd{i}', text=text(i) + (f'\nWrite to me{i}@firm.de' if i % 50 == 0 else ''))) for i in range(3200)]
    rows[40:40] = ['{"text": broken', json.dumps(dict(id='copy', text=text(7)))]
    rows += [json.dumps(dict(id='near', text=text(8) + ' The end.'))]
    f.write_text('\n'.join(rows) + '\n')
    assert f.stat().st_size > 3 << 20
    return f


@pytest.fixture(scope='module')
def alone(source, tmp_path_factory):
    "What one process makes of it."
    out = tmp_path_factory.mktemp('alone')/'data'
    return out, prepare(source, out, workers=1, **OPTIONS)


def made(out):
    "Every file that a preparation made, but for those that hold times."
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in sorted(out.rglob('*')) if p.is_file() and not p.name.startswith('card.')}


def timeless(card):
    "A card without how long things took and how many did it."
    return {k: v if k != 'funnel' else [{**s, 'seconds': 0} for s in v] for k, v in card.items() if k not in ('seconds', 'stage_seconds', 'workers')}


def run_python(code, *args, **env):
    return subprocess.run([sys.executable, '-c', code, *map(str, args)], capture_output=True, text=True, env={**os.environ, **env}, timeout=300)


def test_the_account(alone):
    out, card = alone
    t = card['totals']
    assert t['in'] == 3203 == t['kept'] + t['dropped'] + t['rejected'] and (t['dropped'], t['rejected']) == (2, 1)
    assert card['personal'] == {'email': 64} and check_shards(out) == 3
    assert card['source']['fingerprint'] and sum(card['lengths']['documents']) == t['kept']
    assert card['clusters'] == [dict(kept='d7', dropped=['copy']), dict(kept='near', dropped=['d8'])] and card['cluster_sizes'] == {'2': 2}
    lost = [json.loads(l) for l in open(out/'rejects.jsonl')]
    assert [(r['step'], r['reason']) for r in lost] == [('read', 'broken JSON'), ('near-duplicates', 'near_duplicate'), ('near-duplicates', 'exact_duplicate')]
    assert lost[1]['id'] == 'd8' and lost[1]['text'] == text(8) and not (out/'.work').exists()


@pytest.mark.parametrize('workers', [2, 3])
def test_processes_make_the_same_bytes(source, alone, tmp_path, workers):
    card = prepare(source, tmp_path/'out', workers=workers, **OPTIONS)
    assert made(tmp_path/'out') == made(alone[0]) and timeless(card) == timeless(alone[1])


def test_ray_makes_the_same_bytes(source, alone, tmp_path):
    ray = pytest.importorskip('ray', reason='needs the extra `scale`')
    code = '''import sys
from llmbook.prepare.pipeline import prepare
prepare(sys.argv[1], sys.argv[2], vocab_size=400, preset='none', valid=.05, test=.05, progress=False, workers=2, engine='ray')'''
    r = run_python(code, source, tmp_path/'out', RAY_USAGE_STATS_ENABLED='0')
    assert r.returncode == 0, r.stderr[-3000:]
    assert made(tmp_path/'out') == made(alone[0])


def test_a_killed_worker_is_replaced(source, alone, tmp_path):
    "A worker dies in the middle of a unit, as if the system had taken its memory; then in every try."
    code = '''import os, signal, sys
import llmbook.prepare.pipeline as p
from functools import wraps
def read_stage(recipe, job, real=p.read_stage):
    died = sys_argv[3]
    if job[0] == 2 and not (died and os.path.exists(died)):
        if died: open(died, 'w').close()
        os.kill(os.getpid(), 9)
    return real(recipe, job)
sys_argv = sys.argv
p.read_stage = read_stage
try: p.prepare(sys.argv[1], sys.argv[2], vocab_size=400, preset='none', valid=.05, test=.05, progress=False, workers=2)
except p.UserError as e: print('refused:', e)'''
    r = run_python(code, source, tmp_path/'out', tmp_path/'died')
    assert r.returncode == 0 and not r.stdout and (tmp_path/'died').exists(), r.stderr[-2000:]
    assert made(tmp_path/'out') == made(alone[0])
    r = run_python(code, source, tmp_path/'other', '')
    assert r.returncode == 0 and 'refused: a worker process was killed twice' in r.stdout, r.stdout + r.stderr[-2000:]
    prepare(source, tmp_path/'other', workers=1, **OPTIONS)
    assert made(tmp_path/'other') == made(alone[0])


def test_finished_units_are_not_done_again(source, alone, tmp_path, monkeypatch):
    "Stopped between the passes; the second call reads no unit and encodes each once."
    import llmbook.prepare.pipeline as p, llmbook.prepare.passes as st
    def stop(*a): raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setattr(p, 'train_tokenizer', stop)
        with pytest.raises(KeyboardInterrupt): prepare(source, tmp_path/'out', workers=1, **OPTIONS)
    done = sorted(x.name for x in (tmp_path/'out/.work/read').iterdir())
    assert len(done) == 4
    stamps = {x: x.stat().st_mtime_ns for x in (tmp_path/'out/.work/read').rglob('*')}
    with monkeypatch.context() as m:
        m.setattr(st, 'read_unit', lambda *a: pytest.fail('a finished unit was read again'))
        m.setattr(p.shutil, 'rmtree', lambda *a, **k: None)
        prepare(source, tmp_path/'out', workers=1, **OPTIONS)
    assert stamps == {x: x.stat().st_mtime_ns for x in (tmp_path/'out/.work/read').rglob('*')}
    assert made(alone[0]).items() <= made(tmp_path/'out').items()


def test_another_question_starts_over(source, tmp_path, monkeypatch):
    import llmbook.prepare.pipeline as p
    def stop(*a): raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setattr(p, 'train_tokenizer', stop)
        with pytest.raises(KeyboardInterrupt): prepare(source, tmp_path/'out', workers=1, **OPTIONS)
    card = prepare(source, tmp_path/'out', workers=1, **{**OPTIONS, 'personal': []})
    assert card['personal'] == {} and check_shards(tmp_path/'out')


def test_lines_that_stand_everywhere_go(tmp_path):
    boiler = 'All rights reserved by the good people of this imaginary web site and their heirs.'
    rows = [dict(id=f'd{i}', text=f'{text(i)}\n{boiler}' if i % 2 else text(i)) for i in range(60)] + [dict(id='only', text=f'{boiler}\n')]
    f = tmp_path/'a.jsonl'; f.write_text(''.join(json.dumps(r) + '\n' for r in rows))
    card = prepare(f, tmp_path/'out', repeats=5, **OPTIONS)
    assert card['repeats']['lines'] == 29 and card['funnel'][-1]['step'] == 'repeated lines'
    assert card['funnel'][-1]['reasons']['only repeated lines']['documents'] == 1 and card['totals']['kept'] == 60
    tok = load_tokenizer(tmp_path/'out')
    texts = [decode(tok, d) for s in card['splits'] for d in documents(tmp_path/'out', s)]
    assert sum(boiler in t for t in texts) == 1 # the first that has it keeps it


def test_evaluation_items_are_kept_out(tmp_path):
    item = text(1000, 40)
    rows = [dict(id=f'd{i}', text=text(i) + (' ' + item if i in (3, 5) else '')) for i in range(60)]
    f = tmp_path/'a.jsonl'; f.write_text(''.join(json.dumps(r) + '\n' for r in rows))
    card = prepare(f, tmp_path/'out', against={'exam': [item, text(2000, 40)]}, **OPTIONS)
    assert card['contamination'] == {'exam': dict(items=2, found=1, documents=2)} and card['totals']['dropped'] == 2
    lost = [json.loads(l) for l in open(tmp_path/'out'/'rejects.jsonl')]
    assert [r['id'] for r in lost] == ['d3', 'd5'] and all(r['step'] == 'contamination' for r in lost)


def test_a_tokenizer_can_be_given(source, alone, tmp_path):
    card = prepare(source, tmp_path/'out', tokenizer=alone[0], workers=1, **{**OPTIONS, 'vocab_size': 999})
    assert card['tokenizer']['fingerprint'] == alone[1]['tokenizer']['fingerprint']
    assert (tmp_path/'out/train-00000.bin').read_bytes() == (alone[0]/'train-00000.bin').read_bytes()
    with pytest.raises(UserError, match='tokenizer'): prepare(source, tmp_path/'no', tokenizer=tmp_path/'none', **OPTIONS)


def test_units_hold_everything_once(source, tmp_path):
    src = Sources([str(source), 'embedded'], max_bytes=1_500_000)
    found = list(units(src, tmp_path))
    assert sum(u.n_bytes for u in found) > 4e6 and max(u.n_bytes for u in found) < 2 * unit_size(src.n_bytes)
    records = [r for u in found for r in read_unit(u)]
    assert len({(r.source, r.id) for r in records}) == len(records) > 3300
    assert [u for u in units(src, tmp_path)] == found


def test_dividing_fills_every_split():
    rng = np.random.default_rng(0)
    for n in (3, 10, 500):
        split = divide(rng.random(n), rng.random(n), rng.integers(1, 1000, n), .1, .1)
        assert set(split.tolist()) == {0, 1, 2}
    assert set(divide(rng.random(50), rng.random(50), np.ones(50), 0, 0).tolist()) == {0}


def test_engines_and_workers(monkeypatch):
    with pytest.raises(UserError, match='local, ray'): list(run_units(str, [1], engine='dask'))
    with pytest.raises(UserError, match='1 worker'): choose_workers(0, 10)
    def broken():
        yield 1
        raise UserError('the third source is gone')
    for workers in (1, 2):
        with pytest.raises(UserError, match='third source'): list(run_units(str, broken(), workers))
    with pytest.raises(ZeroDivisionError): list(run_units(lambda x: 1 / x, [1, 0], 2))
    p = ProgressBar(dict(a=400, b=600), show=False)
    p('a', .5); p('b', 1); p('a', .1)
    assert p.at == 1000
