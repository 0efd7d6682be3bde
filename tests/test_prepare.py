"Preparing data: nothing half-made is taken for whole, nothing is lost, and the same question has the same answer."
import errno, json, pickle, random, shutil, signal, threading
from functools import partial
from pathlib import Path
import numpy as np
import pytest
import torch
from folders import read_rows, write_rows, write_times
from real_data import real_data
from run_program import output_of, run_program
from llmbook.core import RunFolder, UserError
from llmbook.base.owner import own_folder
from llmbook.prepare.card import show_card
from llmbook.filters.presets import alphabetic_words, word_count
from llmbook.prepare import passes
from llmbook.prepare.passes import FirstPass, Recipe
from llmbook.prepare.account import Funnel
from llmbook.prepare.pipeline import _commonest_reasons, prepare
from llmbook.prepare.units import split_huge
from llmbook.prepare.work import stored_card
from llmbook.read.doc import Doc
from llmbook.tokens.loaders import TokenLoader, lm_dls
from llmbook.tokens.shards import ShardWriter, TokenView, check_shards, documents, open_tokens, read_manifest
from llmbook.tokens.shuffle import permuted
from llmbook.tokens.tokenizer import EOT, decode, load_tokenizer

WORDS = ('the be of and that have with a small house stands near river where people meet every morning '
         'to read and talk about work').split()
MADE_WITH = dict(vocab_size=400, preset='none', valid=.1, test=.1)
OPTIONS = dict(MADE_WITH, progress=False)


def texts(n=60, seed=0):
    "Return documents that no filter minds and that are not alike."
    rng = random.Random(seed)
    def words(): return ' '.join(rng.choice(WORDS) + str(rng.randrange(50)) for _ in range(80))
    return [f'This is the story of number {i}. {words()}' for i in range(n)]

@pytest.fixture(scope='session')
def source(tmp_path_factory):
    rows = [dict(id=f'd{i}', text=t) for i, t in enumerate(texts())]
    return write_rows(tmp_path_factory.mktemp('source')/'docs.jsonl', rows)

@pytest.fixture(scope='session')
def whole(source, tmp_path_factory):
    "Return a prepared folder that no test changes."
    out = tmp_path_factory.mktemp('whole')/'data'
    prepare(source, out, **OPTIONS)
    return out

@pytest.fixture
def mine(whole, tmp_path): return Path(shutil.copytree(whole, tmp_path/'data'))

def shard_bytes(out): return {p.name: p.read_bytes() for p in sorted(out.glob('*.bin'))}


# shards

@pytest.mark.parametrize('harm', ['flip', 'truncate', 'remove'])
def test_damaged_shard_is_named(mine, harm):
    assert check_shards(mine) == 3
    bad = mine/'train-00000.bin'
    data = bytearray(bad.read_bytes())
    if harm == 'flip':
        data[len(data) // 2] ^= 4
        bad.write_bytes(data)
    if harm == 'truncate': bad.write_bytes(data[:-1])
    if harm == 'remove': bad.unlink()
    with pytest.raises(UserError, match='train-00000.bin'): check_shards(mine)

def test_opening_notices_size_but_need_not_read(mine):
    bad = mine/'train-00000.bin'
    bad.write_bytes(bad.read_bytes()[:-2])
    with pytest.raises(UserError, match='train-00000.bin'): open_tokens(mine, 'train')
    with pytest.raises(UserError): lm_dls(mine, 2, 8, 2, device='cpu')

def test_wrong_tokenizer_is_noticed(mine):
    path = mine/'tokenizer.json'
    tokenizer = json.loads(path.read_text())
    tokenizer['model']['merges'].pop()
    path.write_text(json.dumps(tokenizer))
    with pytest.raises(UserError, match='tokenizer'): lm_dls(mine, 2, 8, 2, device='cpu')

def write_shards(folder, docs):
    "Write documents as shards of 50 tokens; return the manifest's entry and a view."
    writer = ShardWriter(folder, 'train', tokens_per_shard=50)
    for doc in docs: writer.add(doc)
    entry = writer.close()
    files = [folder/shard['file'] for shard in entry['shards']]
    return entry, TokenView([np.fromfile(path, '<u2') for path in files])

SPANS = [slice(0, 10), slice(45, 260), slice(-30, None), slice(7, 7), slice(0, None)]

@pytest.fixture
def sharded(tmp_path):
    "Write forty documents as shards; return their tokens in a row, the manifest's entry and a view."
    rng = np.random.default_rng(0)
    docs = [rng.integers(4, 300, rng.integers(1, 40)) for _ in range(40)]
    flat = np.concatenate([np.append(doc, EOT) for doc in docs])
    return flat, *write_shards(tmp_path, docs)

def test_shards_count_what_they_hold(sharded):
    flat, entry, view = sharded
    assert len(view.shards) > 5
    assert entry['tokens'] == len(flat)
    assert entry['documents'] == 40

def test_windows_across_shards(sharded):
    flat, _, view = sharded
    starts = np.arange(len(flat) - 120)
    windows = np.stack([flat[start:start + 120] for start in starts])
    assert np.array_equal(view.windows(starts, 120), windows)

def test_a_view_is_read_like_an_array(sharded):
    flat, _, view = sharded
    for span in SPANS: assert np.array_equal(view[span], flat[span])
    assert view[-1] == EOT
    assert view[60] == flat[60]
    with pytest.raises(IndexError): view[len(flat)]


# order

@pytest.mark.parametrize('n', [1, 2, 3, 7, 64, 101, 5000])
@pytest.mark.parametrize('seed', [1, 2])
def test_permutation(n, seed):
    order = permuted(np.arange(n), n, seed)
    assert np.array_equal(np.sort(order), np.arange(n))

@pytest.mark.parametrize('n', [64, 101, 5000])
def test_permutations_of_two_seeds_differ(n):
    first = permuted(np.arange(n), n, 1)
    second = permuted(np.arange(n), n, 2)
    assert (first != second).mean() > .9
    assert (first != np.arange(n)).mean() > .9

def test_permutation_looks_random():
    "Neighbours in the order are far apart in the corpus: no stripes, no runs."
    n = 10_007
    x = permuted(np.arange(n), n, 5).astype(float)
    assert abs(np.corrcoef(x[:-1], x[1:])[0, 1]) < .05
    assert abs(np.abs(np.diff(x)).mean() / n - 1/3) < .02

def starts_of_passes(dl, n_passes):
    "Return where the windows of each pass over the data begin."
    n = dl.n_windows
    n_batches = n_passes * n // dl.bs + 1
    rows = np.concatenate([dl.starts(i) for i in range(n_batches)])
    return [rows[p * n:(p + 1) * n] for p in range(n_passes)]

def test_every_window_once_a_pass():
    tokens = TokenView([np.arange(2003, dtype=np.uint16)])
    dl = TokenLoader(tokens, bs=7, seq_len=10, steps=5, seed=3)
    for starts in starts_of_passes(dl, 3):
        assert starts.max() + 11 <= 2003
        assert sorted(starts // 10) == list(range(dl.n_windows))
        offsets = set(starts % 10)
        assert len(offsets) == 1

def test_two_passes_have_two_orders():
    tokens = TokenView([np.arange(2003, dtype=np.uint16)])
    first, second = starts_of_passes(TokenLoader(tokens, bs=7, seq_len=10, steps=5, seed=3), 2)
    assert not np.array_equal(first // 10, second // 10)

def make_dls(data): return lm_dls(data, bs=4, seq_len=16, steps=10, device='cpu')

def walk(dl, epochs): return [batch for _ in range(epochs) for batch in dl]

@pytest.mark.parametrize('k', [0, 1, 9, 10, 13, 25])
def test_seek_equals_walking(whole, k):
    walked = walk(make_dls(whole).train, 3)
    late = make_dls(whole).train.seek(k)
    rest = walk(late, 3 - k // 10)
    assert len(rest) == 30 - k
    for (x, y), (late_x, late_y) in zip(walked[k:], rest):
        assert torch.equal(x, late_x)
        assert torch.equal(y, late_y)

def test_targets_are_the_tokens_one_later(whole):
    for x, y in walk(make_dls(whole).train, 3):
        assert torch.equal(x[:, 1:], y[:, :-1])
        assert x.shape == (4, 16)
        assert x.is_contiguous()
        assert y.is_contiguous()

def test_abandoned_epoch_and_peeking(whole):
    dl = make_dls(whole).train
    for i, _ in enumerate(dl):
        if i == 3: break
    assert dl.position == 10
    assert torch.equal(dl.one_batch()[0], dl.batch(10)[0])
    assert dl.position == 10
    with pytest.raises(UserError): dl.seek(-1)

def test_same_batches_in_another_process(whole):
    first, second = [output_of('batches_digest', whole, PYTHONHASHSEED=seed) for seed in '12']
    assert first
    assert first == second

def validation_of(folder): return lm_dls(folder, bs=4, seq_len=16, steps=3, valid_batches=1000, device='cpu').valid

def test_validation_is_fixed(whole):
    dl = validation_of(whole)
    first = [x for x, _ in dl]
    again = [x for x, _ in dl]
    assert len(first) == len(dl)
    assert all(map(torch.equal, first, again))

def test_validation_is_fixed_and_covers_the_split(whole):
    rows = torch.cat([x for x, _ in validation_of(whole)])
    ids = open_tokens(whole, 'valid')[:]
    n = (len(ids) - 1) // 16
    assert np.array_equal(rows.numpy().ravel(), ids[:n * 16])

def test_too_small_for_a_batch(whole):
    n = len(open_tokens(whole))
    expected = f'100 x 1000 .* 100,001 .* found {n:,}'
    with pytest.raises(UserError, match=expected): lm_dls(whole, 100, 1000, 5, device='cpu')


# fastai

def test_learner_uses_it(whole, tmp_path):
    from fastai.callback.schedule import Learner # with lr_find and fit_one_cycle
    from torch import nn
    dls = lm_dls(whole, bs=4, seq_len=16, steps=6, valid_batches=2, device='cpu')
    V = read_manifest(whole)['vocab_size']

    def loss(pred, y, reduction='mean'):
        return nn.functional.cross_entropy(pred.flatten(0, 1), y.flatten(), reduction=reduction)

    model = nn.Sequential(nn.Embedding(V, 8), nn.Linear(8, V))
    learn = Learner(dls, model, loss_func=loss, path=tmp_path)
    with learn.no_bar(), learn.no_logging():
        learn.lr_find(num_it=8, show_plot=False)
        assert dls.train.position == 12
        dls.train.seek(0)
        learn.fit_one_cycle(2)
        assert dls.train.position == 12
        assert learn.validate() == learn.validate()
        preds, targets = learn.get_preds()
        assert preds.shape == (8, 16, V)
        assert targets.shape == (8, 16)
        preds, _, losses = learn.get_preds(ds_idx=0, with_loss=True)
        assert preds.shape == (24, 16, V)
        assert losses.shape == (24,)
        one_batch = dls.valid.new(bs=2, steps=1)
        preds, _ = learn.get_preds(dl=one_batch)
        assert preds.shape == (2, 16, V)
        learn.show_results(max_n=2)
    dls.show_batch(max_n=2)
    assert dls.n_inp == 1
    assert len(dls.train) == 6
    assert torch.device(dls.to('cpu').device) == torch.device('cpu')


# preparing

PLACES = ['train_tokenizer', 'check_space', 'save_tokenizer', 'write_json', 'write_manifest', 'second shard',
          'find_duplicates', 'pack_stage']

def kill_preparation(source, out, where):
    killed = run_program('prepare_killed', source, out, json.dumps(MADE_WITH), where)
    assert killed.returncode == -signal.SIGKILL, killed.stderr

@pytest.mark.parametrize('where', PLACES)
def test_killed_in_the_middle(source, whole, tmp_path, where):
    out = tmp_path/'data'
    kill_preparation(source, out, where)
    with pytest.raises(UserError, match='manifest'): open_tokens(out)
    with pytest.raises(UserError): lm_dls(out, 2, 8, 2, device='cpu')
    prepare(source, out, **OPTIONS)
    assert check_shards(out) == 3
    assert shard_bytes(out) == shard_bytes(whole)
    assert not list(out.rglob('.*')), 'nothing of the work is left'

def test_kill_over_an_older_preparation(source, mine):
    "While another seed is being prepared, the old answer no longer counts."
    r = run_program('prepare_killed', source, mine, json.dumps(dict(MADE_WITH, seed=1)), 'train_tokenizer')
    assert r.returncode == -signal.SIGKILL
    with pytest.raises(UserError, match='manifest'): read_manifest(mine)

def test_second_call_does_nothing(source, mine):
    before = write_times(mine)
    card = prepare(source, mine, **OPTIONS)
    assert card == json.loads((mine/'card.json').read_text())
    assert before == write_times(mine)

@pytest.mark.parametrize('f', ['train-00000.bin', 'tokenizer.json', 'card.json', 'manifest.json', 'text/test.jsonl'])
def test_second_call_mends(source, whole, mine, f):
    (mine/f).unlink()
    prepare(source, mine, **OPTIONS)
    assert shard_bytes(mine) == shard_bytes(whole)
    assert (mine/f).exists()

def test_other_question_is_prepared_again(source, mine, whole):
    card = prepare(source, mine, **{**OPTIONS, 'seed': 1})
    assert card['seed'] == 1
    assert shard_bytes(mine) != shard_bytes(whole)
    assert check_shards(mine)

def test_two_prepares_are_byte_identical(tmp_path):
    "Prepare the embedded corpus in two processes with different hash seeds."
    options = json.dumps(dict(vocab_size=512, max_bytes=300_000, valid=.1, test=.1))
    for seed in '12':
        output_of('prepare_source', 'embedded', tmp_path/seed, options, PYTHONHASHSEED=seed)
    a = shard_bytes(tmp_path/'1')
    b = shard_bytes(tmp_path/'2')
    assert a == b
    assert len(a) == 3
    for f in ('tokenizer.json', 'manifest.json', 'rejects.jsonl', 'text/documents.jsonl', 'text/valid.jsonl'):
        assert (tmp_path/'1'/f).read_bytes() == (tmp_path/'2'/f).read_bytes(), f

@pytest.fixture(scope='module')
def mixed_folder(tmp_path_factory):
    "Return a folder of files, good and bad."
    folder = tmp_path_factory.mktemp('in')
    good = texts(40)
    for i, text in enumerate(good): (folder/f'{i:02d}.txt').write_text(text)
    (folder/'copy.txt').write_text(good[0])
    (folder/'near.txt').write_text(good[1] + ' And an end.')
    (folder/'latin.txt').write_bytes('café'.encode('latin-1'))
    (folder/'empty.txt').write_text('')
    (folder/'invisible.txt').write_text('\u200b\u200b')
    row = json.dumps(dict(text=texts(1, seed=9)[0]))
    (folder/'rows.jsonl').write_text('{"text": "broken\n' + row + '\n{"title": 1}\n')
    return folder

@pytest.fixture(scope='module')
def mixed(mixed_folder, tmp_path_factory):
    "Prepare the folder of good and bad files; return the folder made and its card."
    out = tmp_path_factory.mktemp('mixed')/'out'
    return out, prepare(mixed_folder, out, **{**OPTIONS, 'preset': 'default'})

def test_everything_is_accounted_for(mixed):
    out, card = mixed
    totals = card['totals']
    assert totals['in'] == 48
    assert totals['in'] == card['funnel'][0]['documents_in']
    assert totals['rejected'] == 4
    lost = totals['dropped'] + totals['rejected']
    assert totals['kept'] + lost == 48
    assert len(read_rows(out/'rejects.jsonl')) == lost
    assert len(read_rows(out/'text'/'documents.jsonl')) == totals['kept']

@pytest.mark.parametrize('part', ['kinds', 'splits'])
def test_parts_of_a_card_add_up(mixed, part):
    _, card = mixed
    counted = sum(entry['documents'] for entry in card[part].values())
    assert counted == card['totals']['kept']

def test_copies_have_their_reasons(mixed):
    _, card = mixed
    reasons = card['funnel'][3]['reasons']
    assert 'exact_duplicate' in reasons
    assert 'near_duplicate' in reasons

def two_versions_of_each(n):
    "Return rows with two versions each of some texts; their names begin with the number of the text."
    rows = []
    for i, text in enumerate(texts(n)):
        rows.append(dict(id=f'{i}-0', text=text))
        rows.append(dict(id=f'{i}-1', text=f'{text} Indeed so.'))
    return rows

def test_no_text_is_in_two_splits(tmp_path):
    source = write_rows(tmp_path/'twice.jsonl', two_versions_of_each(50))
    prepare(source, tmp_path/'out', **OPTIONS)
    kept = [row['id'] for row in read_rows(tmp_path/'out'/'text'/'documents.jsonl')]
    originals = {id.split('-')[0] for id in kept}
    assert len(kept) == 50
    assert len(originals) == 50

@pytest.mark.parametrize('split', ['train', 'valid', 'test'])
def test_every_split_holds_its_documents(mixed, split):
    out, card = mixed
    assert list(card['splits']) == ['train', 'valid', 'test']
    rows = [row for row in read_rows(out/'text'/'documents.jsonl') if row['split'] == split]
    lengths = [len(ids) + 1 for ids in documents(out, split)]
    assert lengths == [row['tokens'] for row in rows]
    assert card['splits'][split]['bytes'] == sum(row['bytes'] for row in rows)
    assert card['splits'][split]['documents']

@pytest.fixture
def sly(tmp_path):
    "Prepare texts that hold commands; return them, the folder made and its splits."
    command = '<|endoftext|><|answer|>'
    sly_texts = [text[:50] + command + text[50:] for text in texts(30)]
    source = write_rows(tmp_path/'sly.jsonl', [dict(text=text) for text in sly_texts])
    card = prepare(source, tmp_path/'out', **OPTIONS)
    return sly_texts, tmp_path/'out', card['splits']

def test_text_cannot_end_itself(sly):
    _, out, splits = sly
    ids = open_tokens(out)[:]
    assert (ids == EOT).sum() == splits['train']['documents']
    assert not np.isin(ids, (1, 2, 3)).any()

def test_commands_in_a_text_are_kept_as_text(sly):
    sly_texts, out, splits = sly
    tok = load_tokenizer(out)
    restored = set()
    for split in splits:
        for doc in documents(out, split): restored.add(decode(tok, doc))
    assert restored == set(sly_texts)

def test_a_folder_without_files(tmp_path):
    (tmp_path/'empty').mkdir()
    with pytest.raises(UserError): prepare(tmp_path/'empty', tmp_path/'a', **OPTIONS)

def test_a_file_is_not_overwritten(source):
    with pytest.raises(UserError, match='a file'): prepare(source, source, **OPTIONS)

@pytest.mark.parametrize('bad', [dict(vocab_size=10), dict(preset='none such'), dict(valid=.6), dict(test=-1)])
def test_bad_options_make_nothing(source, tmp_path, bad):
    with pytest.raises(UserError): prepare(source, tmp_path/'b', **{**OPTIONS, **bad})
    assert not (tmp_path/'b').exists()

def test_card_is_escaped(tmp_path):
    evil = '<script>alert(1)</script>'
    rows = [dict(id=f'{evil}{i}', text=f'{text} {evil}') for i, text in enumerate(texts(20))]
    too_short = dict(id=evil + 'x', text=evil)
    copies = rows[:2]
    source = write_rows(tmp_path/'evil.jsonl', [*rows, too_short, *copies])
    card = prepare(source, tmp_path/'out', **{**OPTIONS, 'preset': 'default'})
    assert card['totals']['dropped'] == 3
    page = show_card(card).data
    assert '<script' not in page
    assert '&lt;script&gt;' in page

@pytest.fixture
def small(tmp_path):
    "Return a folder with an empty file."
    folder = tmp_path/'small'
    folder.mkdir()
    (folder/'a.txt').write_text('')
    return folder

def test_too_little(small, tmp_path):
    out = tmp_path/'a'
    with pytest.raises(UserError, match='kept none of 1: 1 empty'): prepare(small, out, **OPTIONS)
    (small/'a.txt').write_text('one')
    (small/'b.txt').write_text('two')
    expected = 'at least 3 documents.* got 2 with 6 bytes'
    with pytest.raises(UserError, match=expected): prepare(small, out, **OPTIONS)
    with pytest.raises(UserError, match='manifest'): read_manifest(out)

@pytest.mark.parametrize('name', ['write_bytes', 'write_text'])
def test_disk_full(source, whole, tmp_path, monkeypatch, name):
    def full(*args, **kwargs): raise OSError(errno.ENOSPC, 'No space left on device')
    out = tmp_path/'out'
    with monkeypatch.context() as m:
        m.setattr(Path, name, full)
        with pytest.raises(UserError, match='disk is full'): prepare(source, out, **OPTIONS)
    assert stored_card(out, 'any') is None
    assert not list(out.glob('.*.tmp'))
    prepare(source, out, **OPTIONS) # resumes from the work folder
    assert shard_bytes(out) == shard_bytes(whole)
    assert not list(out.glob('.*'))

def test_disk_too_small_is_known_before(source, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, 'disk_usage', lambda p: shutil._ntuple_diskusage(100, 90, 10))
    with pytest.raises(UserError, match='free disk'): prepare(source, tmp_path/'out', **OPTIONS)

def test_one_long_file(tmp_path):
    "Divide a single text between the splits."
    texts = sorted(real_data('tinyshakespeare').glob('*.txt'))
    files = [f for f in texts if 'readme' not in f.name.lower()]
    if not files: pytest.skip('tinyshakespeare in LLMBOOK_DATA has no text')
    card = prepare(files, tmp_path/'out', vocab_size=512, progress=False)
    assert all(s['tokens'] > 5000 for s in card['splits'].values()), card['funnel']

# a folder that is read and a folder that is made

@pytest.fixture
def notes(tmp_path):
    "Return a folder of texts."
    folder = tmp_path/'notes'
    folder.mkdir()
    for i, text in enumerate(texts(8)): (folder/f'{i}.txt').write_text(text)
    return folder

def snapshot(folder): return {p: p.stat().st_mtime_ns for p in sorted(folder.rglob('*')) if p.is_file()}

@pytest.mark.parametrize('source,out', [('.', 'data'), ('.', 'a/b/data'), ('.', '.'), ('*', 'data'), ('**/*', 'data'),
                                        ('../notes', 'data'), ('.', 'link')])
def test_what_is_made_inside_the_source_is_no_source(notes, monkeypatch, source, out):
    monkeypatch.chdir(notes)
    (notes/'elsewhere').mkdir()
    (notes/'link').symlink_to(notes/'elsewhere')
    first = prepare(source, out, **OPTIONS)
    assert first['totals']['in'] == 8
    before = snapshot(notes)
    assert prepare(source, out, **OPTIONS) == first
    assert snapshot(notes) == before
    other = prepare(source, out, **{**OPTIONS, 'seed': 1}) # made again, from the same eight texts
    assert other['totals']['in'] == 8
    assert sorted(p.name for p in notes.glob('?.txt')) == [f'{i}.txt' for i in range(8)]
    second_folder = prepare(source, 'second', **OPTIONS)
    assert second_folder['totals']['in'] == 8
    assert second_folder['source']['outputs'] > 0

def test_a_source_inside_the_folder_that_is_made(notes, tmp_path):
    first = prepare(notes, tmp_path, **OPTIONS)
    assert prepare(notes, tmp_path, **OPTIONS) == first
    assert prepare(notes, tmp_path, **{**OPTIONS, 'seed': 1})['totals']['in'] == 8

def test_what_a_run_made_is_no_source(notes):
    run = notes/'runs'/'one'
    RunFolder(run).mark('data', 'question', 'answer')
    for name in ('plan.json', 'pretrain/history.csv', 'pretrain/notes.txt', 'model/README.md', 'evaluation.json'):
        (run/name).parent.mkdir(exist_ok=True)
        (run/name).write_text('{"text": "made by a run"}')
    (run/'own.txt').write_text(texts(9)[-1])
    prepare(notes, run/'data', **OPTIONS)
    card = prepare(notes, run/'data', **{**OPTIONS, 'seed': 1})
    assert card['totals']['in'] == 9

@pytest.mark.parametrize('name', [
    'tokenizer.json', 'card.json', 'text/valid.jsonl', 'rejects.jsonl', 'train-00000.bin', '.work/mine',
])
def test_files_of_another_origin_are_not_replaced(source, tmp_path, name):
    (tmp_path/name).parent.mkdir(exist_ok=True)
    (tmp_path/name).write_text('{"question": "mine"}')
    before = snapshot(tmp_path)
    with pytest.raises(UserError, match='another origin'): prepare(source, tmp_path, **OPTIONS)
    assert snapshot(tmp_path) == before

def test_other_files_stay(source, tmp_path):
    (tmp_path/'text').mkdir()
    for name in ('notes.txt', 'text/mine.jsonl', 'question.json'):
        (tmp_path/name).write_text('mine')
    for seed in (1, 2): prepare(source, tmp_path, **OPTIONS, seed=seed)
    for name in ('notes.txt', 'text/mine.jsonl', 'question.json'):
        assert (tmp_path/name).read_text() == 'mine'

def test_a_file_that_would_be_replaced_is_no_source(source, mine):
    before = snapshot(mine)
    for given in (dict(sources=mine/'text'/'test.jsonl'), dict(sources=source, tokenizer=mine, seed=3)):
        with pytest.raises(UserError, match='made again'):
            prepare(**{**OPTIONS, **given}, out=mine)
    with pytest.raises(UserError, match='only what an earlier'): prepare(mine, mine, **OPTIONS)
    assert snapshot(mine) == before

def test_a_folder_that_is_being_made_has_an_owner(source, tmp_path):
    with own_folder(tmp_path/'out', 'a preparation'):
        seen = []
        def second():
            try: prepare(source, tmp_path/'out', **OPTIONS)
            except UserError as e: seen.append(str(e))
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert 'nothing else writes to' in seen[0]
    assert prepare(source, tmp_path/'out', **OPTIONS)['totals']['kept'] == 60


# what is said

def test_what_was_left_out_is_said(tmp_path, capsys):
    rows = [dict(id=f'd{i}', text=t) for i, t in enumerate(texts(30))]
    rows += [dict(id=f'short{i}', text='Too short by far.') for i in range(20)] + [dict(id='none', body='x')]
    source = write_rows(tmp_path/'a.jsonl', rows)
    card = prepare(source, tmp_path/'out', **{**OPTIONS, 'preset': {'prose': [word_count]}, 'progress': True})
    said = capsys.readouterr().out
    assert '51 documents came in, 30 are kept' in said
    assert 'left out by read: no text 1' in said
    assert 'left out by filter: word_count 20' in said
    greedy, few = card['warnings']
    assert greedy.startswith('filter: word_count took 20 documents, 39% of the documents')
    assert few.startswith('Few documents: valid ')
    page = (tmp_path/'out'/'card.html').read_text()
    for warning in card['warnings']:
        assert f'note: {warning}' in said
        assert warning.split(',')[0] in page

def test_a_language_that_is_lost_is_named(tmp_path, capsys):
    def no_german(v): return 1 if v.doc.language == 'de' else None
    german = ['Der Müller ging am frühen Morgen zur Mühle, weil das Wasser hoch stand.',
              'Seine Tochter brachte ihm später ein Stück Brot und etwas Käse aus dem Keller.',
              'Am Abend saßen sie vor dem Haus und sprachen lange über die Ernte und den Winter.']
    rows = [dict(text=text) for text in german]
    for i, text in enumerate(texts(40)): rows.append(dict(id=f'd{i}', text=text))
    source = write_rows(tmp_path/'a.jsonl', rows)
    card = prepare(source, tmp_path/'out', **{**OPTIONS, 'preset': {'prose': [no_german]}})
    warning = "Language 'de': the filters dropped 3 of 3 documents (no_german 3)"
    assert any(w.startswith(warning) for w in card['warnings'])
    assert "note: Language 'de'" in capsys.readouterr().out

def test_one_text_for_all_splits_is_said(tmp_path):
    card = prepare(library(tmp_path/'books', 1), tmp_path/'out', **OPTIONS)
    assert any('passages of one text' in w for w in card['warnings'])

def test_the_text_may_stand_in_another_field(tmp_path):
    rows = [dict(id=f'd{i}', content=t, title='x') for i, t in enumerate(texts(40))]
    source = write_rows(tmp_path/'a.jsonl', rows)
    expected = 'kept none of 40: 40 no text .*got id, content, title: give text_field'
    with pytest.raises(UserError, match=expected): prepare(source, tmp_path/'out', **OPTIONS)
    card = prepare(source, tmp_path/'out', text_field='content', **OPTIONS)
    assert card['totals']['kept'] == 40
    assert prepare(source, tmp_path/'out', text_field='content', **OPTIONS) == card

def test_reasons_of_several_steps_add_up():
    funnel = Funnel()
    for name in ('filter', 'near-duplicates'): funnel.step(name).drop('empty', name, 'x')
    assert _commonest_reasons(funnel) == '2 empty'

def test_a_worker_gets_a_small_recipe(source, tmp_path, monkeypatch):
    sent = []
    def run(f, items, *args):
        sent.append(len(pickle.dumps(f)))
        return map(f, items)
    monkeypatch.setattr('llmbook.prepare.pipeline.run_units', run)
    exam = [' '.join(f'w{i}x{k}' for k in range(40)) for i in range(2_000)]
    prepare(source, tmp_path/'out', against=dict(exam=exam), **OPTIONS)
    assert max(sent) < 2_000

@pytest.fixture
def grouped(tmp_path):
    "Prepare two files that hold versions of one text; return the card."
    text, *others = texts(40)
    rows = [dict(id='x', text=text), dict(id='y', text=f'{text} The end.')]
    for k, other in enumerate(others): rows.append(dict(id=f'a{k}', text=other))
    write_rows(tmp_path/'a.jsonl', rows)
    write_rows(tmp_path/'b.jsonl', [dict(id='z', text=text)])
    return prepare(tmp_path/'*.jsonl', tmp_path/'out', **OPTIONS)

def test_groups_name_the_files_of_their_documents(grouped):
    group, = grouped['clusters']
    assert group['kept'] == 'y'
    assert Path(group['file']).name == 'a.jsonl'
    numbers = {Path(file).name: n for file, n in group['files'].items()}
    assert numbers == {'a.jsonl': 1, 'b.jsonl': 1}
    assert 'b.jsonl' in show_card(grouped).data

def test_books_with_and_without_a_notice_are_one(tmp_path):
    folder = library(tmp_path/'books', 4, n_characters=319_000)
    notice = ' '.join(f'{word} notice {i}' for i, word in enumerate(WORDS * 10))
    book = (folder/'book0.txt').read_text()
    (folder/'before.txt').write_text(notice + '\n\n' + book)
    (folder/'after.txt').write_text(book + '\n\n' + notice)
    assert prepare(folder, tmp_path/'out', **OPTIONS)['totals'] == {'in': 6, 'kept': 4, 'dropped': 2, 'rejected': 0}


# long documents

def library(folder, n, n_characters=150_000):
    "Write books of different words, each longer than a part."
    folder.mkdir()
    for i in range(n):
        rng = random.Random(i)
        names = [f'{rng.choice(WORDS)}{rng.randrange(10 ** 6)}' for _ in range(2_000)]
        paragraphs = []
        while sum(map(len, paragraphs)) < n_characters: paragraphs.append(' '.join(rng.choices(names, k=60)))
        (folder/f'book{i}.txt').write_text('\n\n'.join(paragraphs))
    return folder

def book_of(row): return Path(row['id'].partition('#')[0]).name

def test_a_book_stands_on_one_side(tmp_path):
    prepare(library(tmp_path/'books', 6), tmp_path/'out', **OPTIONS)
    rows = read_rows(tmp_path/'out'/'text'/'documents.jsonl')
    sides = {(book_of(row), row['split']) for row in rows}
    assert len(sides) == len(rows) == 6
    assert {split for _, split in sides} == {'train', 'valid', 'test'}

def test_parts_of_a_file_that_is_too_large_stay_together(tmp_path, monkeypatch):
    monkeypatch.setattr(passes, 'split_huge', partial(split_huge, longest=40_000))
    card = prepare(library(tmp_path/'books', 5), tmp_path/'out', **OPTIONS)
    rows = read_rows(tmp_path/'out'/'text'/'documents.jsonl')
    assert len(rows) == card['totals']['kept'] > 15
    assert len({(book_of(row), row['split']) for row in rows}) == 5

def kept_texts(folder):
    "Return the text of every document in the shards of a prepared folder."
    tok = load_tokenizer(folder)
    found = []
    for split in ('train', 'valid', 'test'):
        found += [decode(tok, ids) for ids in documents(folder, split)]
    return found

@pytest.mark.parametrize('longest', [40_000, 4_000_000])
def test_the_end_of_a_text_that_is_alone_is_held_out(tmp_path, monkeypatch, longest):
    monkeypatch.setattr(passes, 'split_huge', partial(split_huge, longest=longest))
    source = library(tmp_path/'books', 1)
    card = prepare(source, tmp_path/'out', **OPTIONS)
    kept = kept_texts(tmp_path/'out')
    assert ' '.join(kept).split() == (source/'book0.txt').read_text().split()
    assert all(s['bytes'] > 9_000 for s in card['splits'].values())

NOISE = {
    'script': 'var a = {"key": 1, "other": [2, 3]}; if (a) { go(a.key); }\n',
    'style': '.menu > li:hover { color: red; margin: 0 auto; }\n',
}

def noisy_page(text, element):
    "Return a page with a short text and a long script or style."
    head = f'<{element}>{NOISE[element] * 3_000}</{element}>'
    return f'<html><head>{head}</head><body><article><p>{text}</p></article></body></html>'

def test_a_page_is_extracted_before_it_is_cut(tmp_path):
    *of_files, of_row = texts(6, seed=3) + texts(1, seed=4)
    folder = tmp_path/'pages'
    folder.mkdir()
    for i, text in enumerate(of_files):
        element = ('script', 'style')[i % 2]
        (folder/f'{i}.html').write_text(noisy_page(text, element))
    row = dict(id='row', kind='html', text=noisy_page(of_row, 'script'))
    write_rows(folder/'more.jsonl', [row])
    card = prepare(folder, tmp_path/'out', **OPTIONS)
    assert card['totals'] == {'in': 7, 'kept': 7, 'dropped': 0, 'rejected': 0}
    assert sorted(kept_texts(tmp_path/'out')) == sorted([*of_files, of_row])

def test_a_long_text_loses_only_the_parts_that_are_refused(tmp_path):
    folder = library(tmp_path/'books', 4)
    book = folder/'book0.txt'
    story = book.read_text()
    table = '0 1 2 3 4 5 6\n' * 20_000
    chapter = 'This is what the people have told of that house. ' + story[:60_000]
    book.write_text(f'{story}\n\n{table}\n\n{chapter}')
    card = prepare(folder, tmp_path/'out', **{**OPTIONS, 'preset': {'prose': [alphabetic_words]}})
    assert card['totals']['kept'] == 4
    lost = read_rows(tmp_path/'out'/'rejects.jsonl')
    assert lost
    for row in lost:
        assert row['id'].startswith(str(book))
        assert row['reason'] != ''
    left_out = card['left_out']
    assert left_out.keys() == {f'filter: {row["reason"]}' for row in lost}
    assert sum(n['parts'] for n in left_out.values()) == len(lost)

def test_a_long_program_is_judged_as_one(tmp_path):
    lines = [f'def function_{i}(value): return value * {i} + other_{i * 7}' for i in range(4_000)]
    first = FirstPass(tmp_path, Recipe(str(tmp_path)))
    program = Doc('\n'.join(lines), 'a.py', kind='code')
    assert first.filtered(program) == program
    made = Doc('# Code generated by tables.py. DO NOT EDIT.\n' + program.text, 'b.py', kind='code')
    assert first.filtered(made).reason == 'generated'

@pytest.fixture
def book_with_an_item(tmp_path):
    "Prepare books, one of which ends with an evaluation item; return the item, the folder made and its card."
    folder = library(tmp_path/'books', 4)
    item = ' '.join(f'{word}{i}' for i, word in enumerate(WORDS))
    with open(folder/'book0.txt', 'a') as f: f.write(f'\n\n{item}')
    card = prepare(folder, tmp_path/'out', against={'exam': [item]}, **OPTIONS)
    return item, tmp_path/'out', card

def test_an_evaluation_item_in_a_book_is_counted(book_with_an_item):
    _, _, card = book_with_an_item
    assert card['contamination'] == {'exam': dict(items=1, found=1, documents=1)}
    assert card['left_out']['contamination: holds exam']['parts'] == 1

def test_an_evaluation_item_in_a_book_costs_the_part_that_holds_it(book_with_an_item):
    item, out, card = book_with_an_item
    kept = kept_texts(out)
    assert len(kept) == 4
    assert card['totals']['kept'] == 4
    assert not any(item in text for text in kept)

def test_hub_source_keeps_to_its_budget(tmp_path, monkeypatch):
    "Take the path of files with a stand-in for the network."
    import llmbook.prepare.units as units
    def stories(name): return (Doc(t, f'{name}:{i}') for i, t in enumerate(texts(1000)))
    monkeypatch.setattr(units, 'hub_dataset', stories)
    card = prepare('hub:some/stories', tmp_path/'out', max_bytes=20_000, **OPTIONS)
    assert 15_000 < card['funnel'][0]['bytes_in'] <= 20_000
    assert card['source']['names'] == ['hub:some/stories']
