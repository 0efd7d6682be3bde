"The preparation over processes and over Ray: the same bytes, nothing done twice, nothing lost when a worker dies."
import gzip, json, random
import numpy as np
import pytest
from folders import read_rows, write_rows, write_times
from run_program import output_of, run_program
from llmbook.core import UserError
from llmbook.prepare.card import card_summary
from llmbook.prepare.pipeline import prepare
from llmbook.prepare.units import Sources, divide, unit_size, units
from llmbook.prepare.workers import ProgressBar, choose_workers, run_units
from llmbook.read.sources import read_unit
from llmbook.tokens.shards import check_shards, documents
from llmbook.tokens.tokenizer import decode, load_tokenizer

WORDS = ('the be of and that have with a small house stands near river where people meet every morning '
         'to read and talk about work').split()
MADE_WITH = dict(vocab_size=400, preset='none', valid=.05, test=.05)
OPTIONS = dict(MADE_WITH, progress=False)


def text(i, n=150):
    rng = random.Random(i)
    words = [rng.choice(WORDS) + str(rng.randrange(90)) for _ in range(n)]
    return f'This is story {i}. ' + ' '.join(words)


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    "Write four units: more than 3 MB of jsonl with copies, damage and personal data in it."
    lines = []
    for i in range(3200):
        address = f'\nWrite to me{i}@firm.de' if i % 50 == 0 else ''
        lines.append(json.dumps(dict(id=f'd{i}', text=text(i) + address)))
    copy = dict(id='copy', text=text(7))
    near = dict(id='near', text=text(8) + ' The end.')
    lines[40:40] = ['{"text": broken', json.dumps(copy)]
    lines.append(json.dumps(near))
    path = tmp_path_factory.mktemp('source')/'docs.jsonl'
    path.write_text('\n'.join(lines) + '\n')
    assert path.stat().st_size > 3 << 20
    return path


@pytest.fixture(scope='module')
def alone(source, tmp_path_factory):
    "Prepare the source in one process."
    out = tmp_path_factory.mktemp('alone')/'data'
    return out, prepare(source, out, workers=1, **OPTIONS)


def made(out):
    "Return every file that a preparation made, but for those that hold times."
    files = [p for p in sorted(out.rglob('*')) if p.is_file() and not p.name.startswith('card.')]
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in files}


def timeless(card):
    "Return a card without how long things took and how many workers there were."
    card = {k: v for k, v in card.items() if k not in ('seconds', 'stage_seconds', 'workers')}
    return {**card, 'funnel': [{**step, 'seconds': 0} for step in card['funnel']]}


def test_the_account(alone):
    out, card = alone
    totals = card['totals']
    assert totals['in'] == 3203
    assert totals['in'] == totals['kept'] + totals['dropped'] + totals['rejected']
    assert totals['dropped'] == 2
    assert totals['rejected'] == 1
    assert card['personal'] == {'email': 64}
    assert check_shards(out) == 3
    assert card['source']['fingerprint']
    assert sum(card['lengths']['documents']) == totals['kept']
    file = card['clusters'][0]['file']
    assert file.endswith('docs.jsonl')
    assert card['clusters'] == [
        dict(kept='d7', dropped=['copy'], file=file, files={file: 1}),
        dict(kept='near', dropped=['d8'], file=file, files={file: 1}),
    ]
    assert card['cluster_sizes'] == {'2': 2}


def test_what_was_lost(alone):
    out, _ = alone
    lost = read_rows(out/'rejects.jsonl')
    assert [(r['step'], r['reason']) for r in lost] == [
        ('read', 'broken JSON'),
        ('near-duplicates', 'near_duplicate'),
        ('near-duplicates', 'exact_duplicate')]
    assert lost[1]['id'] == 'd8'
    assert lost[1]['text'] == text(8)
    assert not (out/'.work').exists()


@pytest.mark.parametrize('workers', [2, 3])
def test_processes_make_the_same_bytes(source, alone, tmp_path, workers):
    out, card = alone
    mine = prepare(source, tmp_path/'out', workers=workers, **OPTIONS)
    assert made(tmp_path/'out') == made(out)
    assert timeless(mine) == timeless(card)


def test_ray_makes_the_same_bytes(source, alone, tmp_path):
    pytest.importorskip('ray', reason='needs the extra `scale`')
    options = json.dumps(dict(MADE_WITH, workers=2, engine='ray'))
    output_of('prepare_source', source, tmp_path/'out', options, RAY_USAGE_STATS_ENABLED='0')
    assert made(tmp_path/'out') == made(alone[0])


def test_a_killed_worker_is_replaced(source, alone, tmp_path):
    "Kill a worker in the middle of a unit, as the system does when memory runs out."
    whole, _ = alone
    out, died = tmp_path/'out', tmp_path/'died'
    r = run_program('prepare_worker_killed', source, out, json.dumps(MADE_WITH), died)
    assert r.returncode == 0, r.stderr[-2000:]
    assert not r.stdout, r.stderr[-2000:]
    assert died.exists()
    assert made(out) == made(whole)


def stop(*args): raise KeyboardInterrupt


def interrupt(source, out, monkeypatch):
    "Stop a preparation between its passes."
    import llmbook.prepare.pipeline as pipeline
    with monkeypatch.context() as m:
        m.setattr(pipeline, 'train_tokenizer', stop)
        with pytest.raises(KeyboardInterrupt): prepare(source, out, workers=1, **OPTIONS)


def test_finished_units_are_not_done_again(source, alone, tmp_path, monkeypatch):
    "Stopped between the passes, the second call reads no unit and encodes each once."
    import llmbook.prepare.passes as passes
    import llmbook.prepare.pipeline as pipeline
    out = tmp_path/'out'
    read = out/'.work'/'read'
    interrupt(source, out, monkeypatch)
    assert len(list(read.iterdir())) == 4
    stamps = write_times(read)
    with monkeypatch.context() as m:
        m.setattr(passes, 'read_unit', lambda *a: pytest.fail('a finished unit was read again'))
        m.setattr(pipeline.shutil, 'rmtree', lambda *a, **k: None)
        prepare(source, out, workers=1, **OPTIONS)
    assert stamps == write_times(read)
    assert made(alone[0]).items() <= made(out).items()


def test_another_question_starts_over(source, tmp_path, monkeypatch):
    interrupt(source, tmp_path/'out', monkeypatch)
    card = prepare(source, tmp_path/'out', workers=1, personal=[], **OPTIONS)
    assert card['personal'] == {}
    assert check_shards(tmp_path/'out')


def test_a_worker_killed_in_every_try_is_reported(source, alone, tmp_path):
    whole, _ = alone
    out = tmp_path/'out'
    r = run_program('prepare_worker_killed', source, out, json.dumps(MADE_WITH), '')
    assert r.returncode == 0, r.stderr[-2000:]
    assert 'refused: a worker process was killed twice' in r.stdout, r.stdout
    prepare(source, out, workers=1, **OPTIONS)
    assert made(out) == made(whole)

BOILERPLATE = 'All rights reserved by the good people of this imaginary web site and their heirs.'

def with_boilerplate(n):
    "Return rows of which every second ends with the line, and one that is nothing else."
    rows = []
    for i in range(n):
        ending = '\n' + BOILERPLATE if i % 2 else ''
        rows.append(dict(id=f'd{i}', text=text(i) + ending))
    rows.append(dict(id='only', text=BOILERPLATE + '\n'))
    return rows


def test_lines_that_stand_everywhere_go(tmp_path):
    source = write_rows(tmp_path/'a.jsonl', with_boilerplate(60))
    out = tmp_path/'out'
    card = prepare(source, out, repeats=5, **OPTIONS)
    assert card['totals']['kept'] == 60
    assert card['repeats']['lines'] == 29
    step = card['funnel'][-1]
    assert step['step'] == 'repeated lines'
    assert step['reasons']['only repeated lines']['documents'] == 1
    tok = load_tokenizer(out)
    n_with_line = 0
    for split in card['splits']:
        for doc in documents(out, split): n_with_line += BOILERPLATE in decode(tok, doc)
    assert n_with_line == 1, 'the first document that has the line keeps it'


@pytest.fixture
def guarded(tmp_path):
    "Prepare sixty texts, two of which hold an evaluation item; return the folder made and its card."
    item = text(1000, 40)
    texts = [text(i) for i in range(60)]
    for i in (3, 5): texts[i] += ' ' + item
    rows = [dict(id=f'd{i}', text=t) for i, t in enumerate(texts)]
    source = write_rows(tmp_path/'a.jsonl', rows)
    out = tmp_path/'out'
    return out, prepare(source, out, against={'exam': [item, text(2000, 40)]}, **OPTIONS)

def test_evaluation_items_are_counted(guarded):
    _, card = guarded
    assert card['contamination'] == {'exam': dict(items=2, found=1, documents=2)}
    assert card['totals']['dropped'] == 2

def test_evaluation_items_are_kept_out(guarded):
    out, _ = guarded
    lost = read_rows(out/'rejects.jsonl')
    assert [row['id'] for row in lost] == ['d3', 'd5']
    assert [row['step'] for row in lost] == ['contamination'] * 2


def test_a_tokenizer_can_be_given(source, alone, tmp_path):
    out, card = alone
    mine = prepare(source, tmp_path/'out', tokenizer=out, workers=1, **{**OPTIONS, 'vocab_size': 999})
    assert mine['tokenizer']['fingerprint'] == card['tokenizer']['fingerprint']
    assert (tmp_path/'out/train-00000.bin').read_bytes() == (out/'train-00000.bin').read_bytes()
    with pytest.raises(UserError, match='tokenizer'):
        prepare(source, tmp_path/'no', tokenizer=tmp_path/'none', **OPTIONS)


@pytest.fixture
def two_sources(source): return Sources([str(source), 'embedded'], max_bytes=1_500_000)

def test_units_are_of_a_size(two_sources, tmp_path):
    found = list(units(two_sources, tmp_path))
    sizes = [unit.n_bytes for unit in found]
    assert sum(sizes) > 4e6
    assert max(sizes) < 2 * unit_size(two_sources.n_bytes)
    assert list(units(two_sources, tmp_path)) == found

def test_units_hold_everything_once(two_sources, tmp_path):
    records = []
    for unit in units(two_sources, tmp_path): records += read_unit(unit)
    names = {(record.source, record.id) for record in records}
    assert len(records) > 3300
    assert len(names) == len(records)


@pytest.mark.parametrize('n', [3, 10, 500])
def test_dividing_fills_every_split(n):
    rng = np.random.default_rng(n)
    draws = rng.random(n)
    order = rng.random(n)
    sizes = rng.integers(1, 1000, n)
    split = divide(draws, order, sizes, .1, .1)
    assert set(split.tolist()) == {0, 1, 2}

def test_dividing_without_shares_leaves_all_to_train_on():
    rng = np.random.default_rng(0)
    split = divide(rng.random(50), rng.random(50), np.ones(50), 0, 0)
    assert set(split.tolist()) == {0}


@pytest.fixture(params=range(40))
def divided(request):
    "Divide up to thirty documents, one of them large; return their groups' names, their sizes and splits."
    rng = np.random.default_rng(request.param)
    n = int(rng.integers(3, 30))
    sizes = rng.integers(1, 1000, n)
    sizes[rng.integers(n)] = 50_000
    group = rng.integers(0, 4, n).astype(np.uint64)
    names = [f'g{k}' if k else f'd{i}' for i, k in enumerate(group)]
    split = divide(rng.random(n), rng.random(n), sizes, .1, .1, group)
    return names, sizes, split

def test_dividing_keeps_groups_together(divided):
    names, _, split = divided
    side_of = dict(zip(names, split))
    for name, side in zip(names, split): assert side_of[name] == side

def test_dividing_leaves_most_to_train_on(divided):
    names, sizes, split = divided
    if len(set(names)) < 3: return
    assert set(split.tolist()) == {0, 1, 2}
    assert sizes[split == 0].sum() > .4 * sizes.sum()


def test_engines_and_workers():
    with pytest.raises(UserError, match='local, ray'): list(run_units(str, [1], engine='dask'))
    with pytest.raises(UserError, match='1 worker'): choose_workers(0, 10)


def test_an_error_of_a_unit_arrives():
    def divided(x): return 1 / x
    with pytest.raises(ZeroDivisionError): list(run_units(divided, [1, 0], 2))


@pytest.mark.parametrize('workers', [1, 2])
def test_an_error_of_the_source_arrives(workers):
    def broken():
        yield 1
        raise UserError('the third source is gone')
    with pytest.raises(UserError, match='third source'): list(run_units(str, broken(), workers))


def test_the_bar_never_goes_back():
    progress = ProgressBar(dict(a=400, b=600), show=False)
    for stage, part in (('a', .5), ('b', 1), ('a', .1)): progress(stage, part)
    assert progress.at == 1000



ODD_ROWS = ['{"text": ', '{"text": "", "id": "void"}', '{"text": "1 2 3"}']

@pytest.fixture(scope='module')
def cut_off(tmp_path_factory):
    "Prepare a folder of files with odd records and without their ends; return the folder made and its card."
    folder = tmp_path_factory.mktemp('cut')
    source = folder/'in'
    source.mkdir()
    rows = [json.dumps(dict(text=text(i), id=f'd{i}')) for i in range(40)]
    packed_text = gzip.compress(text(50).encode())
    packed_rows = gzip.compress('\n'.join(rows).encode())
    (source/'a.jsonl').write_text('\n'.join(rows + ODD_ROWS))
    (source/'b.txt.gz').write_bytes(packed_text[:-6])
    (source/'c.jsonl.gz').write_bytes(packed_rows[:-100])
    card = prepare(source, folder/'out', **OPTIONS)
    return folder/'out', card

def test_what_could_not_be_read_has_a_size_or_says_that_it_has_none(cut_off):
    _, card = cut_off
    lost = {}
    for name, reason in card['funnel'][0]['reasons'].items():
        lost[name] = reason['documents'], reason['bytes'], reason.get('unknown')
    assert lost == {'broken JSON': (1, 10, None), 'empty': (1, 27, None), 'truncated': (1, 0, 1)}
    assert card['left_out'] == {'read: truncated': dict(parts=1, bytes=0, unknown=1)}

def test_the_summary_says_what_has_no_size(cut_off):
    _, card = cut_off
    summary = '\n'.join(card_summary(card))
    assert 'truncated 1 (size unknown)' in summary
    assert 'by read: truncated: 1 parts (size unknown)' in summary

def test_what_could_not_be_read_has_a_place_and_a_size(cut_off):
    out, _ = cut_off
    rejects = read_rows(out/'rejects.jsonl')
    copies = [row for row in rejects if row['step'] == 'near-duplicates']
    assert len(copies) == 39
    for row in copies: assert 'c.jsonl.gz:' in row['place'] or 'a.jsonl:' in row['place']
