"""The index of the training text, traces, contamination, and what a model knows by heart."""
import json, shutil
import numpy as np
import pytest
import torch
from llmbook.commands.recall import llmbook_trace
from llmbook.core import UserError, read_json, write_json
from llmbook.model.config import ModelConfig
from llmbook.model.transformer import Transformer
from llmbook.prepare.pipeline import prepare
from llmbook.recall.contamination import clean_scores, contamination_table
from llmbook.recall.index import TextIndex, build_index, index_folder, window_fingerprints
from llmbook.evaluate.items import ItemScore, ItemStore, Setting
from llmbook.recall.account import memory_account, seen_items
from llmbook.recall.memory import (
    TEMPLATE, _drawn_windows, copied_row, exposure, exposure_rows, extraction_rows, plant, plant_in_data, secrets_of
)
from llmbook.recall.trace import trace, trace_html, trace_text
from llmbook.tokens.shards import check_shards, document_edges, open_prepared, open_tokens, read_manifest
from llmbook.tokens.tokenizer import decode

WORDS = 'owl fox hen cat dog lake wood barn hill boat moon star song ring sees finds fears likes takes brings'.split()


def texts(n=120):
    rng = np.random.default_rng(0)
    return [' '.join(rng.choice(WORDS, 40)) + '.' for _ in range(n)]


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp('recall')
    lines = [json.dumps(dict(text=text, id=f'text <{i}>')) for i, text in enumerate(texts())]
    (folder/'texts.jsonl').write_text('\n'.join(lines))
    prepare(folder/'texts.jsonl', folder/'data', vocab_size=300, preset='none', personal=[], similarity=1., progress=False)
    return folder/'data'


@pytest.fixture(scope='module')
def index(data): return TextIndex(data)


@pytest.fixture(scope='module')
def model():
    torch.manual_seed(0)
    return Transformer(ModelConfig(vocab_size=300, n_layer=1, d_model=32, context=128)).eval()


def common_stretches(ids, tokens, least):
    "Return the longest stretches that two arrays share, by comparing every pair of positions."
    found = set()
    for i in range(len(ids)):
        for p in np.flatnonzero(tokens == ids[i]):
            n = 0
            while i + n < len(ids) and p + n < len(tokens) and ids[i + n] == tokens[p + n] != 0: n += 1
            if n >= least: found.add((i, i + n))
    inside = {s for s in found for o in found if o != s and o[0] <= s[0] and s[1] <= o[1]}
    return found - inside


@pytest.mark.parametrize('seed', range(4))
def test_stretches_equal_a_slow_search(index, seed):
    rng = np.random.default_rng(seed)
    begin = int(rng.integers(0, len(index.tokens) - 60))
    piece = index.tokens[begin:begin + 40]
    ids = np.concatenate([index.ids(' '.join(rng.choice(WORDS, 20))), piece])
    ids = ids[ids != 0]
    found = {(s.start, s.end) for s in index.stretches(ids, most=10**6)}
    assert found == common_stretches(ids, index.tokens[:], index.length)


def test_places_hold_the_stretch(index):
    text = texts()[7]
    ids = index.ids(text)
    for stretch in index.stretches(ids):
        for place in stretch.places: assert (index.tokens[place:place + stretch.length] == ids[stretch.start:stretch.end]).all()


@pytest.mark.parametrize('memory', [1 << 20, 1 << 21])
def test_parts_give_the_same_index(data, tmp_path, monkeypatch, memory):
    whole = build_index(data, tmp_path/'whole')
    monkeypatch.setattr('llmbook.recall.index._parts', lambda tokens, memory: 8)
    monkeypatch.setattr('llmbook.recall.index._CHUNK', 101)
    parts = build_index(data, tmp_path/'parts')
    for name in ('prints.bin', 'places.bin'): assert (whole/name).read_bytes() == (parts/name).read_bytes()
    assert not list(parts.glob('part-*'))


def test_windows_stay_inside_documents(index):
    for place in index.places[::50]:
        assert index.document(int(place)) == index.document(int(place) + index.length - 1)
        assert 0 not in index.tokens[int(place):int(place) + index.length]


@pytest.mark.parametrize('n', [30, 60])
def test_the_index_grows_with_the_windows_of_the_text(tmp_path, n):
    "Sixteen bytes for each window, and a window for each token but the last seven of a document."
    lines = [json.dumps(dict(text=text)) for text in texts(n)]
    (tmp_path/'texts.jsonl').write_text('\n'.join(lines))
    data = tmp_path/'data'
    prepare(tmp_path/'texts.jsonl', data, vocab_size=300, preset='none', personal=[], similarity=1., progress=False)
    folder = build_index(data)
    sizes = np.diff(document_edges(data, 'train')) - 1 # without the end mark
    windows = int(np.maximum(sizes - 7, 0).sum())
    for name in ('prints.bin', 'places.bin'): assert (folder/name).stat().st_size == 8 * windows


def test_documents_are_counted_once_for_all_questions(index, monkeypatch):
    trace(texts()[0], index)
    def read_again(*args): raise AssertionError('the lines about the documents were read again')
    monkeypatch.setattr('llmbook.recall.trace.SplitRows', read_again)
    assert trace(texts()[1], index).tokens


def test_fingerprints_of_equal_windows_alone_are_equal():
    ids = np.random.default_rng(0).integers(0, 3, 500)
    prints = window_fingerprints(ids, 6)
    windows = [tuple(ids[i:i + 6]) for i in range(495)]
    assert len(set(prints.tolist())) == len(set(windows))
    assert len(window_fingerprints([1, 2], 3)) == 0


def test_a_document_is_found_whole_with_its_name(data, index):
    rows = [json.loads(line) for line in open(data/'text/documents.jsonl')]
    row = next(row for row in rows if row['split'] == 'train')
    number = int(row['id'].split('<')[1][:-1])
    found = trace(texts()[number], index)
    assert found.copied == 1
    assert found.documents[0][0]['id'] == row['id']
    assert ''.join(piece for piece, _ in found.pieces) == texts()[number]


def test_new_text_is_not_found(index):
    found = trace('An entirely different sentence: 12345, 67890!', index)
    assert found.copied == 0
    assert found.table.empty
    assert 'stand in the data' in trace_text(found)


def test_traces_are_escaped(data, index):
    number = int(next(json.loads(line)['id'] for line in open(data/'text/documents.jsonl')).split('<')[1][:-1])
    html = str(trace_html(trace(f'<script>alert(1)</script> {texts()[number]}', index)))
    assert '<script>' not in html
    assert 'text <' not in html


def test_common_stretches_are_marked(data, index):
    ids = index.ids(texts()[0])
    for stretch in index.stretches(ids, most=1): assert len(stretch.places) == 1


def test_licences_are_named(tmp_path):
    prepare('embedded:500000', tmp_path/'data', vocab_size=400, progress=False)
    rows = [json.loads(line) for line in open(tmp_path/'data/text/documents.jsonl')]
    assert any(row.get('licence') for row in rows)


def test_an_index_of_other_data_is_refused(data, tmp_path):
    (tmp_path/'other.jsonl').write_text('\n'.join(json.dumps(dict(text=text[::-1])) for text in texts()))
    prepare(tmp_path/'other.jsonl', tmp_path/'other', vocab_size=300, preset='none', similarity=1., progress=False)
    with pytest.raises(UserError, match='other data'): TextIndex(tmp_path/'other', index_folder(data))


BAD_CALLS = [
    lambda data, index: build_index(data, split='none'), lambda data, index: build_index(data, length=1),
    lambda data, index: build_index(data, memory=10), lambda data, index: build_index(data.parent),
    lambda data, index: build_index(data, out=data), lambda data, index: TextIndex(data, data),
    lambda data, index: trace(3, index), lambda data, index: trace('x', index, least=2),
    lambda data, index: trace('x', index, least=0), lambda data, index: trace('x', data.parent),
    lambda data, index: index.stretches([1, 2], most=0), lambda data, index: contamination_table('x', index),
    lambda data, index: contamination_table([], index), lambda data, index: contamination_table([None], index),
    lambda data, index: secrets_of(1, 0), lambda data, index: secrets_of(6, 1), lambda data, index: plant([], {}),
    lambda data, index: plant(['x'], {}, 'no fields'), lambda data, index: plant(['x'], {'A': ('1', -1)}),
    lambda data, index: llmbook_trace(str(data.parent), 'x')]


@pytest.mark.parametrize('call', BAD_CALLS)
def test_bad_questions(call, data, index):
    with pytest.raises(UserError, match='expected'): call(data, index)


def test_contamination_by_hand(data, index):
    number = int(next(json.loads(line)['id'] for line in open(data/'text/documents.jsonl')).split('<')[1][:-1])
    table = contamination_table([texts()[number], 'Nothing of this: 1, 2, 3, 4, 5, 6!'], index)
    assert list(table['label']) == ['dirty', 'clean']
    rows = clean_scores('accuracy', [1, 0], table)
    assert {row['group']: row['value'] for row in rows} == {'all': .5, 'clean': 0, 'dirty': 1}
    with pytest.raises(UserError, match='each of 2'): clean_scores('accuracy', [1], table)


def test_planted_secrets_are_where_they_should_be():
    secret, = secrets_of(1)
    planted = plant(['a', 'b', 'c'], {'A': (secret, 5)})
    assert ''.join(planted).count(f'The door code of room A is {secret}.') == 5
    assert planted == plant(['a', 'b', 'c'], {'A': (secret, 5)})
    assert secrets_of(5) != secrets_of(5, seed=1)


def test_a_model_without_training_has_no_exposure(data, model):
    tok = open_prepared(data)[1]
    ranks = [exposure(model, tok, 'A', secret, n=30)['rank'] for secret in secrets_of(12, 3)]
    assert 6 < np.mean(ranks) < 26 # 16 for a model that knows nothing
    with pytest.raises(UserError, match='digits'): exposure(model, tok, 'A', 'x')


def test_a_model_that_copies_its_text_is_caught(data, model, monkeypatch):
    edges, (_, tok) = document_edges(data), open_prepared(data)
    windows = _drawn_windows(data, 'train', 20, 24, 0)
    answers = {tuple(ids[:16]): ids[16:] for ids in windows}
    def by_heart(model, prompts, n, **options): return [answers.get(tuple(ids), [0] * n) for ids in prompts]
    monkeypatch.setattr('llmbook.recall.memory.generate_ids', by_heart)
    train, test = extraction_rows(model, data, n=20, prompt=16, continuation=8)
    assert (train['value'], test['value']) == (1, 0)
    assert all(0 not in ids for ids in windows)
    assert len(edges) > 2 and decode(tok, windows[0])


def test_a_random_model_copies_nothing(data, model):
    rows = extraction_rows(model, data, n=10, prompt=16, continuation=8)
    assert [row['value'] for row in rows] == [0, 0]


def test_exposure_has_a_row_for_each_number_of_copies(data, model):
    tok = open_prepared(data)[1]
    secrets = {name: (secret, times) for name, secret, times in zip('ABCD', secrets_of(4, 3), (1, 1, 1, 9))}
    once, often = exposure_rows(model, tok, secrets, n=30)
    assert (once['n'], often['n']) == (3, 1)
    assert once['low'] <= once['value'] <= once['high']
    assert often['low'] is None, 'a single secret has no interval'
    for bad in ({}, None, [1]):
        with pytest.raises(UserError, match='secrets by name'): exposure_rows(model, tok, bad)


def training_texts(data):
    "Return the texts that were trained on, by their names in the account."
    rows = [json.loads(line) for line in open(data/'text/documents.jsonl')]
    numbers = [int(row['id'].split('<')[1][:-1]) for row in rows if row['split'] == 'train']
    return [texts()[i] for i in numbers]


def test_copied_text_is_a_share_of_all_tokens(data, index):
    own, new = training_texts(data)[0], 'An entirely different sentence: 12345, 67890!'
    row = copied_row([own, new], index, clusters=['a', 'b'])
    tokens = [len(index.ids(text)) for text in (own, new)]
    assert row['value'] == pytest.approx(tokens[0] / sum(tokens))
    assert copied_row([own], index)['low'] is None


def asked_about(tmp_path, data):
    "Return answers that are right for text that was trained on, and wrong for other text."
    store = ItemStore(tmp_path/'items')
    key = store.begin(Setting('quotes', 'm', 'tok'))
    new = [f'Nobody wrote that {i} trains leave at {i} past nine, or did they?' for i in range(4)]
    store.add(key, [ItemScore(f'q{i}', dict(acc=1.), text) for i, text in enumerate(training_texts(data)[:6])])
    store.add(key, [ItemScore(f'n{i}', dict(acc=0.), text) for i, text in enumerate(new)])
    bits = store.begin(Setting('bits', 'm', 'tok'))
    store.add(bits, [ItemScore('a', dict(bits_per_byte=(3., 2.)), 'text')])
    return store


def test_clean_and_dirty_scores_stand_side_by_side(tmp_path, data, index):
    rows, seen = seen_items(asked_about(tmp_path, data), index, most=3)
    assert {row['group']: (row['value'], row['n']) for row in rows} == dict(all=(.6, 10), clean=(0, 4), dirty=(1, 6))
    assert all(row['metric'] == 'quotes acc' and row['signature'] for row in rows), 'a ratio is no mean of items'
    assert len(seen) == 3 and all(item['label'] == 'dirty' for item in seen)


def test_an_account_has_every_measurement_and_leaves_no_index(tmp_path, data, model):
    store = asked_about(tmp_path, data)
    before = sorted(data.parent.iterdir())
    rows, seen = memory_account(model, data, store, ['owl fox'], [texts()[0]], n=5)
    names = [(row['metric'], row['split']) for row in rows]
    assert names[:4] == [('extracted', 'train'), ('extracted', 'test'), ('copied', 'continuations'), ('copied', 'test')]
    assert sorted(data.parent.iterdir()) == before
    assert memory_account(model, data, n=5)[1] == []


def test_the_command_writes_a_page(data, tmp_path):
    (tmp_path/'answer.txt').write_text(texts()[3])
    found = llmbook_trace(str(data), str(tmp_path/'answer.txt'), html=str(tmp_path/'page.html'))
    assert found.tokens == len(TextIndex(data).ids(texts()[3]))
    assert '<mark' in (tmp_path/'page.html').read_text() or not found.stretches


# --- secrets that a run plants in itself

def copied(data, path):
    "Return a copy of a prepared folder, to plant in."
    shutil.copytree(data, path)
    return path


def text_of(data, split='train'):
    _, tok = open_prepared(data)
    return decode(tok, open_tokens(data, split)[:].tolist(), False)


def test_planted_secrets_stand_in_the_training_tokens_alone(data, tmp_path):
    data = copied(data, tmp_path/'data')
    before = {split: text_of(data, split) for split in ('train', 'valid', 'test')}
    n_documents = len(document_edges(data, 'train'))
    secrets = plant_in_data(data, 4, seed=3)
    after = text_of(data)
    for name, (secret, times) in secrets.items():
        sentence = '\n' + TEMPLATE.format(name=name, secret=secret)
        assert after.count(sentence) == times
        after = after.replace(sentence, '')
    assert after == before['train'], 'nothing else has changed'
    assert [times for _, times in secrets.values()] == [1, 4, 16, 1]
    assert len(document_edges(data, 'train')) == n_documents
    for split in ('valid', 'test'): assert text_of(data, split) == before[split]
    check_shards(data)
    assert read_json(data/'card.json')['planted']['times'] == {name: times for name, (_, times) in secrets.items()}


def test_planting_is_resumed_and_happens_once(data, tmp_path, monkeypatch):
    other = copied(data, tmp_path/'other')
    data = copied(data, tmp_path/'data')
    secrets = plant_in_data(data, 3)
    def killed(path, value):
        if path.name == 'card.json': raise InterruptedError
        return write_json(path, value)
    monkeypatch.setattr('llmbook.recall.memory.write_json', killed)
    with pytest.raises(InterruptedError): plant_in_data(other, 3)
    monkeypatch.undo()
    assert plant_in_data(other, 3) == plant_in_data(other, 3) == secrets
    assert text_of(other) == text_of(data)
    assert read_manifest(other)['splits'] == read_manifest(data)['splits']
    with pytest.raises(UserError, match='found others'): plant_in_data(other, 3, seed=1)
