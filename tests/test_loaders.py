"Batches: nothing leaks between documents, every row is read once, ranks and resumed runs see the same."
import hashlib, json, threading
from itertools import count, product
import numpy as np
import pytest
import torch
from fastai.callback.core import Callback, CancelFitException
from fastai.data.core import DataLoaders
from run_program import output_of
from llmbook.checkpoint.checkpoint import Checkpoint
from llmbook.core import UserError, set_seed
from llmbook.model.config import ModelConfig
from llmbook.model.layers import document_mask, document_positions
from llmbook.model.transformer import Transformer
from llmbook.pretrain.run import lm_learner
from llmbook.tokens.loaders import IGNORE, TokenLoader, document_ids, lm_dls, read_ahead
from llmbook.tokens.mixture_loader import MixedLoader, mixed_dls
from llmbook.tokens.packed_loader import PackedLoader, packed_dls
from llmbook.tokens.packing import best_fit, concatenate
from llmbook.tokens.shards import (
    ShardWriter, TokenView, check_shards, document_edges, documents, open_tokens, read_manifest, write_manifest
)
from llmbook.tokens.shuffle import MixedOrder
from llmbook.tokens.tokenizer import EOT, PAD, save_tokenizer, tokenizer_fingerprint, train_tokenizer
from llmbook.train.data_schedules import MixtureSchedule, SequenceWarmup


def corpus(seed=0, n=60, longest=40, vocab=290):
    rng = np.random.default_rng(seed)
    return [rng.integers(4, vocab, rng.integers(0, longest)) for _ in range(n)]

def prepared(path, docs=None, per_shard=200):
    "Make a data folder with several shards."
    path.mkdir(exist_ok=True)
    tok = train_tokenizer(['a small text'], 300)
    save_tokenizer(tok, path)
    def shards(split, docs):
        writer = ShardWriter(path, split, tokens_per_shard=per_shard)
        for doc in docs: writer.add(doc)
        return writer.close()
    train = corpus() if docs is None else docs
    splits = dict(train=shards('train', train), valid=shards('valid', corpus(1, 20)))
    write_manifest(path, splits, tok.get_vocab_size(), tokenizer_fingerprint(tok))
    return path

@pytest.fixture(scope='module')
def data(tmp_path_factory): return prepared(tmp_path_factory.mktemp('data')/'d')

@pytest.fixture
def mine(tmp_path): return prepared(tmp_path/'d')

def view(n=3000, seed=0, low=4, high=290):
    return TokenView([np.random.default_rng(seed).integers(low, high, n).astype(np.uint16)])

def two_epochs(dl): return [b for _ in range(2) for b in dl]

def as_lists(data): return [doc.tolist() for doc in documents(data)]


# the index of documents

def test_the_index_is_where_the_markers_are(data):
    flat = open_tokens(data)[:]
    edges = document_edges(data)
    assert len(open_tokens(data).shards) > 3
    assert np.array_equal(edges, np.append(0, np.flatnonzero(flat == EOT) + 1))
    assert as_lists(data) == [doc.tolist() for doc in corpus()]

def test_a_folder_of_the_first_version_can_be_read(mine):
    expected = as_lists(mine)
    path = mine/'manifest.json'
    manifest = json.loads(path.read_text())
    manifest['version'] = 1
    del manifest['eot']
    for entry in manifest['splits'].values():
        for shard in entry['shards']:
            (mine/shard.pop('index')).unlink()
            del shard['index_sha256']
    path.write_text(json.dumps(manifest))
    assert as_lists(mine) == expected
    assert check_shards(mine) > 3
    assert read_manifest(mine)['eot'] == EOT

def test_a_folder_of_a_later_version_is_refused(mine):
    path = mine/'manifest.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), 'version': 3}))
    with pytest.raises(UserError, match='version 1 or 2'): read_manifest(mine)

def damage(bad, other, harm):
    "Flip a bit of an index, cut its end off, remove it, or let it change places with another."
    good = bad.read_bytes()
    if harm == 'flip':
        flipped = bytearray(good)
        flipped[8] ^= 2
        bad.write_bytes(flipped)
    if harm == 'truncate': bad.write_bytes(good[:-8])
    if harm == 'remove': bad.unlink()
    if harm == 'swap':
        bad.write_bytes(other.read_bytes())
        other.write_bytes(good)

@pytest.mark.parametrize('harm', ['flip', 'truncate', 'remove', 'swap'])
def test_a_damaged_index_is_named(mine, harm):
    damage(mine/'train-00001.idx', mine/'train-00000.idx', harm)
    with pytest.raises(UserError, match=r'train-0000[01].idx'): check_shards(mine)

@pytest.mark.parametrize('harm', ['truncate', 'remove'])
def test_an_index_of_another_length_is_named_on_reading(mine, harm):
    damage(mine/'train-00001.idx', mine/'train-00000.idx', harm)
    with pytest.raises(UserError, match='train-00001.idx'): document_edges(mine)

def test_an_index_that_does_not_rise_is_refused_unread(mine):
    bad = mine/'train-00000.idx'
    n = len(bad.read_bytes()) // 8
    for begins in (np.arange(n) + 1, np.zeros(n), np.arange(n) * 10_000):
        bad.write_bytes(begins.astype('<u8').tobytes())
        with pytest.raises(UserError, match='train-00000.idx to rise'): document_edges(mine)

def test_another_end_marker(tmp_path):
    writer = ShardWriter(tmp_path, 'train', eot=7)
    for doc in ([1, 0, 2], [3]): writer.add(doc)
    write_manifest(tmp_path, dict(train=writer.close()), 10, 'x', eot=7)
    assert as_lists(tmp_path) == [[1, 0, 2], [3]]
    assert open_tokens(tmp_path)[:].tolist() == [1, 0, 2, 7, 3, 7]


# packing

def naive_fit(lengths, size):
    "Return the free tokens of each row, by the rule of best fit decreasing as it is written."
    n_full = sum(n // size for n in lengths)
    rests = [n % size for n in lengths if n % size]
    free = []
    for n in sorted(rests, reverse=True):
        fits = [f for f in free if f >= n]
        if fits: free[free.index(min(fits))] -= n
        else: free.append(size - n)
    return sorted(free + [0] * n_full)

def random_lengths(seed):
    rng = np.random.default_rng(seed)
    size = int(rng.integers(1, 70))
    return rng.integers(1, 2 * size + 2, rng.integers(0, 300)), size

def filled(packing): return [sum(n for _, _, n in packing[row]) for row in range(len(packing))]

def pieces_of(packing): return [piece for row in range(len(packing)) for piece in packing[row]]

def tokens_of(pieces):
    "Return the document and the place in it of each token of some pieces."
    found = []
    for doc, offset, n in pieces:
        found += [(doc, offset + k) for k in range(n)]
    return found

@pytest.mark.parametrize('pack', [best_fit, concatenate])
@pytest.mark.parametrize('seed', range(12))
def test_a_packing_holds_each_token_once(pack, seed):
    lengths, size = random_lengths(seed)
    packing = pack(lengths, size)
    whole = [(doc, 0, n) for doc, n in enumerate(lengths)]
    assert tokens_of(sorted(pieces_of(packing))) == tokens_of(whole)
    assert all(0 < n <= size for n in filled(packing))

@pytest.mark.parametrize('seed', range(12))
def test_best_fit_is_best_fit(seed):
    lengths, size = random_lengths(seed)
    packing = best_fit(lengths, size)
    free = [size - n for n in filled(packing)]
    assert sorted(free) == naive_fit(lengths.tolist(), size)
    assert packing.quality()['cut_needlessly'] == 0
    for doc, offset, n in pieces_of(packing):
        is_cut = offset + n < lengths[doc]
        if is_cut: assert n == size, 'cut into full rows first'

def test_concatenation_wastes_nothing_but_the_end():
    q = concatenate([5, 7, 2, 12, 3, 4], 8).quality()
    assert q['rows'] == 5
    assert q['padding'] == pytest.approx(7 / 40)
    assert q['cut'] == 3 / 6
    assert q['cut_needlessly'] == 2 / 6

@pytest.mark.parametrize('bad', [[0], [-3], [1.5], [[1]]])
def test_lengths_that_are_none(bad):
    with pytest.raises(UserError): best_fit(bad, 8)
    with pytest.raises(UserError): concatenate(bad, 8)

@pytest.mark.parametrize('pack', [best_fit, concatenate])
def test_each_id_is_a_target_once_with_what_stood_before_it(data, pack):
    edges = document_edges(data)
    tokens = open_tokens(data)
    packing = pack(np.diff(edges), 24)
    seen = []
    for x, _, y in PackedLoader(tokens, edges, packing, bs=1):
        real = y != IGNORE
        seen += zip(x[real].tolist(), y[real].tolist())
    flat = tokens[:].tolist()
    before = [EOT] + flat[:-1]
    assert sorted(seen) == sorted(zip(before, flat))

@pytest.mark.parametrize('pack', [best_fit, concatenate])
def test_what_fills_a_row_up_is_in_no_document(data, pack):
    edges = document_edges(data)
    packing = pack(np.diff(edges), 24)
    for x, docs, y in PackedLoader(open_tokens(data), edges, packing, bs=1):
        real = y != IGNORE
        assert (docs[real] >= 0).all()
        assert (docs[~real] == -1).all()
        assert (x[~real] == PAD).all()

def test_best_fit_has_a_marker_only_where_a_piece_begins(data):
    edges = document_edges(data)
    packing = best_fit(np.diff(edges), 24)
    for x, docs, _ in PackedLoader(open_tokens(data), edges, packing, bs=1):
        begins = torch.ones_like(docs, dtype=bool)
        begins[:, 1:] = docs[:, 1:] != docs[:, :-1]
        assert not ((x == EOT) & ~begins).any()

def make_packed(data, bs=2, **kwargs):
    return packed_dls(data, bs=bs, seq_len=32, steps=7, device='cpu', **kwargs)

def assert_equal_batches(a, b):
    for x, y in zip(a, b, strict=True): assert torch.equal(x, y)

def joined(parts):
    "Join the batches of the ranks into one."
    return [torch.cat(tensors) for tensors in zip(*parts)]

def test_packed_rows_from_a_folder(data):
    dls = make_packed(data)
    assert len(dls.valid)
    assert dls.n_inp == 2
    assert make_packed(data, document_mask=False).n_inp == 1

@pytest.mark.parametrize('k', [0, 5, 9])
def test_packed_rows_are_found_by_a_seek(data, k):
    walked = two_epochs(make_packed(data).train)
    late = make_packed(data).train.seek(k)
    assert_equal_batches(walked[k], next(iter(late)))

def test_packed_rows_of_two_ranks_are_those_of_one(data):
    whole = make_packed(data).train.batch(3)
    parts = [make_packed(data, bs=1, rank=rank, world=2).train.batch(3) for rank in (0, 1)]
    assert_equal_batches(whole, joined(parts))


# documents in a row do not see each other

CONFIG = ModelConfig(vocab_size=300, n_layer=2, d_model=32, n_head=4, n_kv_head=2, context=64)
SHALLOW = ModelConfig(**{**CONFIG.to_dict(), 'n_layer': 1})

@pytest.fixture(scope='module')
def model():
    set_seed(0)
    m = Transformer(CONFIG)
    for p in m.parameters():
        if p.dim() > 1: torch.nn.init.normal_(p, std=.2) # larger than in a fresh model, so that leaks show
    return m

@pytest.fixture(params=['windows', 'packed'])
def batch(request, data):
    if request.param == 'windows': return lm_dls(data, 4, 48, 3, device='cpu', document_mask=True).train.batch(1)
    return packed_dls(data, 4, 48, 3, device='cpu').train.batch(1)

def each_document(docs):
    "Yield the row and the number of each document in a batch."
    for row in range(len(docs)):
        for doc in docs[row].unique().tolist(): yield row, doc

def test_packed_rows_need_a_step(data):
    with pytest.raises(UserError, match='steps of 1'): packed_dls(data, 2, 32, 0)

def other_token(x, row, position):
    "Return a copy of the batch with another token at a position."
    changed = x.clone()
    changed[row, position] = (x[row, position] + 17) % 300
    return changed

@torch.no_grad()
def test_nothing_leaks(model, batch):
    "Change a token of one document: with the numbers no other document's logits change, without them they do."
    x, docs, _ = batch
    expected = model.logits(model(x, docs))
    plain = model.logits(model(x))
    leaked = 0
    for row, doc in each_document(docs):
        others = docs[row] != doc
        first = int((docs[row] == doc).nonzero()[0])
        changed = other_token(x, row, first)
        masked = model.logits(model(changed, docs))
        assert torch.equal(masked[row][others], expected[row][others])
        unmasked = model.logits(model(changed))
        leaks = (unmasked[row] != plain[row]).any(-1)
        leaked += int(leaks[others].sum())
    assert leaked > 20

def keep_embedding(model, x, docs):
    "Return what the model computes, and the embeddings of the batch, which will have a gradient."
    kept = []
    def keep_gradient(module, inputs, h):
        h.requires_grad_()
        h.retain_grad()
        kept.append(h)
    handle = model.embed.register_forward_hook(keep_gradient)
    try: out = model(x, docs)
    finally: handle.remove()
    return out, kept[0]

def test_a_gradient_stays_in_its_document(model, batch):
    x, docs, _ = batch
    out, embedded = keep_embedding(model, x, docs)
    own = docs[0] == docs[0, 20]
    out[0][own].sum().backward()
    touched = embedded.grad.abs().sum(-1) > 0
    assert touched[0][own].any()
    assert not touched[0][~own].any()
    assert not touched[1:].any()
    model.zero_grad()

def test_a_packed_row_equals_its_documents_alone(model, batch):
    x, docs, _ = batch
    with torch.no_grad():
        together = model.logits(model(x, docs))
        for row, doc in each_document(docs):
            own = docs[row] == doc
            document = x[row][own]
            alone = model.logits(model(document[None]))[0]
            assert torch.allclose(together[row][own], alone, atol=1e-4)

def test_positions_by_hand():
    docs = torch.tensor([[3, 3, 1, 1, 1, -1], [0, 1, 2, 3, 4, 5]])
    first, second = document_positions(docs).tolist()
    assert first == [0, 1, 0, 1, 2, 0]
    assert second == [0] * 6

def test_one_document_is_the_plain_model(model):
    x = torch.randint(300, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(): assert torch.allclose(model(x, torch.zeros_like(x)), model(x), atol=1e-5)

@pytest.mark.parametrize('row', [[3, 3, 1, 1, 1, -1], [0, 1, 2, 3, 4, 5]])
def test_positions_and_mask_by_hand(row):
    mask, = document_mask(torch.tensor([row]))[:, 0].tolist()
    for query, key in product(range(6), range(6)):
        is_seen = row[query] == row[key] and key <= query
        assert mask[query][key] == is_seen

def test_document_ids_by_hand():
    tokens = torch.tensor([[5, 0, 6, 0, 0, 7]])
    assert document_ids(tokens).tolist() == [[0, 1, 1, 2, 3, 3]]

def test_a_model_needs_a_document_for_each_token():
    x = torch.zeros(2, 6, dtype=torch.long)
    with pytest.raises(UserError, match='document for each token'): Transformer(CONFIG)(x, x[:1])

@pytest.fixture(params=[lm_dls, packed_dls])
def documents_learner(request, data, tmp_path):
    options = dict(document_mask=True) if request.param is lm_dls else {}
    dls = request.param(data, 4, 32, 6, valid_batches=2, device='cpu', **options)
    learn = lm_learner(dls, SHALLOW, lr=1e-2, path=tmp_path)
    with learn.no_bar(), learn.no_logging(): yield learn

def test_a_learner_trains_on_documents(documents_learner):
    documents_learner.fit(3)
    telemetry = documents_learner.telemetry
    losses = [row['loss'] for row in telemetry.rows if 'loss' in row]
    assert 'loss' in telemetry.rows[0]
    assert np.isfinite(losses[-1])
    assert telemetry.tokens == 3 * 6 * 4 * 32

def test_a_learner_of_documents_validates_and_shows_them(documents_learner):
    learn = documents_learner
    learn.fit(1)
    assert learn.validate() == learn.validate()
    predictions, y = learn.get_preds(act=lambda h: h)
    assert predictions.shape[:2] == y.shape
    learn.show_results(max_n=1)
    learn.dls.show_batch(max_n=1)


# ranks

def loader(kind, data, bs, **kwargs):
    if kind == 'windows': return lm_dls(data, bs, 16, 5, device='cpu', **kwargs).train
    if kind == 'packed': return packed_dls(data, bs, 16, 5, device='cpu', **kwargs).train
    sources = dict(a=view(), b=view(900, 1))
    return MixedLoader(sources, dict(a=2, b=1), bs=bs, seq_len=16, steps=5, **kwargs)

@pytest.mark.parametrize('kind', ['windows', 'packed', 'mixed'])
@pytest.mark.parametrize('world', [2, 4])
def test_the_ranks_together_read_what_one_reads(data, kind, world):
    one = two_epochs(loader(kind, data, bs=8))
    ranks = []
    for rank in range(world):
        dl = loader(kind, data, bs=8 // world, rank=rank, world=world)
        ranks.append(two_epochs(dl))
    for whole, *parts in zip(one, *ranks, strict=True): assert_equal_batches(whole, joined(parts))

def numbered_windows(n): return TokenView([np.arange(n * 4 + 1, dtype=np.uint16)])

def targets_of(tokens, rank, world):
    "Return the targets of each step of a rank."
    dl = TokenLoader(tokens, 1, 4, shuffle=False, rank=rank, world=world)
    targets = [y for _, y in dl]
    assert len(dl.get_idxs()) == sum(len(y) for y in targets)
    return targets

@pytest.mark.parametrize('n', [1, 2, 5, 8, 9, 13])
def test_every_window_is_read_once(n):
    batches = [y for _, y in TokenLoader(numbered_windows(n), 4, 4, shuffle=False)]
    assert torch.cat(batches)[:, 0].tolist() == [4 * i + 1 for i in range(n)]

@pytest.mark.parametrize('n', [1, 2, 5, 8, 9, 13])
def test_an_uneven_last_batch(n):
    "Let every rank take as many steps, some of them on nothing."
    tokens = numbered_windows(n)
    one = torch.cat([y for _, y in TokenLoader(tokens, 4, 4, shuffle=False)])
    ranks = [targets_of(tokens, rank, 4) for rank in range(4)]
    steps = [torch.cat(parts) for parts in zip(*ranks, strict=True)]
    together = torch.cat(steps)
    real = (together != IGNORE).any(1)
    assert torch.equal(together[real], one)

@pytest.mark.parametrize('rank, world', [(1, 1), (-1, 2), (0, 0)])
def test_a_rank_that_is_none(rank, world):
    with pytest.raises(UserError, match='rank'): TokenLoader(view(), 4, 16, rank=rank, world=world)


# seeking

def huge(tokens=10 ** 10, shard=1 << 24):
    "Return ten billion tokens in 597 shards that take no memory."
    one = np.broadcast_to(np.uint16(5), (shard,))
    return TokenView([one] * (tokens // shard + 1))

def count_windows(tokens):
    "Let a view note how many windows each call asks for; return the notes."
    asked = []
    windows = tokens.windows
    def counted(starts, length):
        asked.append(len(starts))
        return windows(starts, length)
    tokens.windows = counted
    return asked

def test_a_seek_touches_nothing_but_its_batch():
    tokens = huge()
    asked = count_windows(tokens)
    x, _ = TokenLoader(tokens, bs=32, seq_len=1024, steps=1000).seek(1_000_000).one_batch()
    assert asked == [32]
    assert x.shape == (32, 1024)

def test_a_far_batch_has_its_own_windows():
    tokens = huge()
    dl = TokenLoader(tokens, bs=32, seq_len=1024, steps=1000)
    starts = dl.starts(1_000_000)
    assert np.array_equal(starts, dl.starts(1_000_000))
    assert len(set(starts)) == 32
    assert starts.max() + 1025 <= len(tokens)

def test_beyond_the_end_is_the_next_pass():
    dl = TokenLoader(view(803), bs=7, seq_len=16, steps=3)
    n = dl.n_windows
    rows = dl.starts(0, 3 * n)
    for p in range(7):
        windows = rows[p * n:(p + 1) * n] // 16
        assert len(set(windows)) == n

def test_a_seek_far_beyond_the_end_is_that_batch():
    dl = TokenLoader(view(803), bs=7, seq_len=16, steps=3)
    x, _ = dl.seek(10 ** 9).one_batch()
    far, _ = dl.batch(10 ** 9)
    assert torch.equal(x, far)

def test_a_row_longer_than_the_split(data):
    n = len(open_tokens(data, 'valid'))
    expected = f'{n + 1:,} validation tokens for one window, found {n:,}'
    with pytest.raises(UserError, match=expected): lm_dls(data, 1, n, 2, device='cpu')
    x, *_ = packed_dls(data, 1, n, 2, device='cpu').train.one_batch() # packed rows can be longer: they are padded
    assert x.shape == (1, n)


# reading ahead

def ahead_threads(): return [t for t in threading.enumerate() if t.name == 'read-ahead']

@pytest.mark.parametrize('n', [1, 2, 7])
def test_reading_ahead_changes_nothing(data, n):
    plain = lm_dls(data, 4, 16, 9, device='cpu', ahead=0).train
    ahead = lm_dls(data, 4, 16, 9, device='cpu', ahead=n).train
    for _ in range(2):
        for expected, batch in zip(plain, ahead, strict=True): assert_equal_batches(expected, batch)
    assert plain.position == 18
    assert ahead.position == 18
    assert not ahead_threads()

def test_at_most_n_batches_wait():
    made, go = [], threading.Event()
    def batches():
        for i in count():
            made.append(i)
            if i == 3: go.set() # two wait, one was taken, and the thread holds the next
            yield i
    it = read_ahead(batches(), 2)
    assert next(it) == 0
    assert go.wait(5)
    it.close()
    assert len(made) == 4
    assert not ahead_threads()

def test_an_error_of_the_thread_arrives():
    def bad():
        yield 1
        raise OSError('gone')
    it = read_ahead(bad())
    assert next(it) == 1
    with pytest.raises(OSError, match='gone'): next(it)
    assert not ahead_threads()

def test_leaving_early_ends_the_thread():
    for b in read_ahead(count()):
        if b == 5: break
    with pytest.raises(ZeroDivisionError):
        for b in read_ahead(count(), 1): 1 / (b - 3)
    read_ahead(count()) # never begun
    assert list(read_ahead([])) == []
    assert not ahead_threads()


# mixtures

@pytest.fixture(params=range(6))
def mixed_order(request):
    "Return a maker of one random order, and its sources and rows."
    seed = request.param
    rng = np.random.default_rng(seed)
    names = [f's{i}' for i in range(rng.integers(1, 40))]
    n_parts = int(rng.integers(1, 30))
    n_rows = int(rng.integers(1, 5000))
    parts = []
    for _ in range(n_parts):
        shares = rng.random(len(names)) ** 4
        parts.append(dict(zip(names, shares)))
    some = rng.integers(0, 2 * n_rows, 50)
    def make(): return MixedOrder(names, parts, rows=n_rows, seed=seed)
    return make, len(names), n_rows, some

def test_a_mixture_draws_every_row_of_a_source_in_turn(mixed_order):
    make, n_sources, n_rows, _ = mixed_order
    source, number = make().draw(np.arange(2 * n_rows))
    for j in range(n_sources):
        own = source == j
        assert number[own].tolist() == list(range(own.sum()))

def test_shares_come_out_in_every_span():
    order = MixedOrder(['a', 'b', 'c'], dict(a=.899, b=.1, c=.001))
    for start in (0, 5_000, 10 ** 11):
        source, _ = order.draw(np.arange(start, start + 1000))
        assert np.abs(np.bincount(source, minlength=3) - [899, 100, 1]).max() <= 14

def test_shares_change_with_the_part_of_the_run():
    order = MixedOrder(['a', 'b'], [dict(a=1), dict(b=1)], rows=640)
    source, _ = order.draw(np.arange(1000))
    assert not source[:320].any()
    assert source[320:].all()

def test_a_run_shorter_than_a_block_has_the_mean_of_its_parts():
    parts = [dict(a=1)] * 3 + [dict(b=1)]
    source, _ = MixedOrder(['a', 'b'], parts, rows=64).draw(np.arange(64))
    assert source.sum() == 16

NAN, INF = float('nan'), float('inf')

@pytest.mark.parametrize('bad', [dict(a=-1, b=2), dict(a=0, b=0), dict(a=NAN), dict(z=1), dict(a=INF)])
def test_weights_that_make_no_sense(bad):
    with pytest.raises(UserError): MixedLoader(dict(a=view(), b=view()), bad, seq_len=8)

def test_a_mixture_draws_some_rows_as_it_draws_all(mixed_order):
    make, _, n_rows, some = mixed_order
    order = make()
    source, number = order.draw(np.arange(2 * n_rows))
    for later in (order, make()):
        some_source, some_number = later.draw(some)
        assert np.array_equal(some_source, source[some])
        assert np.array_equal(some_number, number[some])

def within(rows, low, high):
    "Return the rows whose tokens are all from `low` to below `high`."
    return [row for row in rows if low <= min(row) and max(row) < high]

def rows_of_b(sources):
    "Return the rows of the first twenty batches of a mixture that come from source b, in order."
    dl = MixedLoader(sources, dict.fromkeys(sources, 1), bs=8, seq_len=16)
    rows = []
    for i in range(20):
        x, _ = dl.batch(i)
        rows += x.tolist()
    return within(rows, 300, 400)

def test_taking_a_source_out_leaves_the_others_in_order():
    sources = dict(a=view(), b=view(900, 1, 300, 400), c=view(900, 2, 500, 600))
    three = rows_of_b(sources)
    del sources['c']
    two = rows_of_b(sources)
    assert len(three) > 30
    assert two[:len(three)] == three

def drawn_from(dl, n_batches):
    "Return the number of each source in the rows of the first batches."
    if n_batches == 0: return np.array([], int)
    return dl.starts(0, n_batches)[:, 0]

@pytest.mark.parametrize('n_batches', [0, 1, 7, 100])
def test_passes_counts_what_was_read(n_batches):
    sources = dict(a=view(), b=view(500, 1))
    dl = MixedLoader(sources, dict(a=.8, b=.2), bs=8, seq_len=16, steps=5)
    drawn = drawn_from(dl, n_batches)
    passes = dl.passes(n_batches)
    assert list(passes) == ['a', 'b']
    for j, name in enumerate(passes):
        n_windows = dl.readers[name].n_windows
        assert passes[name] == pytest.approx((drawn == j).sum() / n_windows)

def test_mixing_prepared_folders(data, tmp_path):
    folders = dict(one=data, two=prepared(tmp_path/'other', corpus(5)))
    dls = mixed_dls(folders, None, 4, 16, 5, device='cpu', document_mask=True)
    assert len(dls.one_batch()) == 3
    assert dls.n_inp == 2
    n_valid = sum(len(y) for *_, y in dls.valid)
    assert n_valid > len(open_tokens(data, 'valid')) // 16
    assert dls.train.new(shuffle=False).order is dls.train.order


# schedules, stopped and resumed

class Watch(Callback):
    "Note the shape and a digest of each batch; stop the run after a given step."
    order = 90

    def __init__(self, stop=None):
        self.seen = {}
        self.stop_at = stop

    def after_pred(self):
        if not self.training: return
        x = self.xb[0]
        self.seen[self.train_iter] = x.shape, hashlib.sha256(x.numpy().tobytes()).hexdigest()

    def after_batch(self):
        if self.training and self.train_iter == self.stop_at: raise CancelFitException

def to_b(pct): return dict(a=1 - pct, b=pct)

def run(folder, stop=None, weights=to_b, stages=((.3, 8), (.6, 16))):
    train = MixedLoader(dict(a=view(), b=view(1500, 1)), bs=4, seq_len=32, steps=12)
    dls = DataLoaders(train, TokenLoader(view(400, 3), 4, 32, shuffle=False))
    watch = Watch(stop)
    cbs = [watch, MixtureSchedule(weights), SequenceWarmup(stages), Checkpoint(folder, every=5, final=False)]
    learn = lm_learner(dls, SHALLOW, lr=1e-2, path=folder, cbs=cbs)
    with learn.no_bar(), learn.no_logging(): learn.fit(3)
    return watch.seen, learn

def test_mixed_folders_need_one_tokenizer(data, tmp_path):
    other = prepared(tmp_path/'other', corpus(5))
    path = other/'tokenizer.json'
    path.write_text(path.read_text().replace('"a"', '"b"', 1))
    with pytest.raises(UserError, match='tokenizer'):
        mixed_dls(dict(one=data, two=other), None, 4, 16, 5)

def test_a_mixture_needs_a_folder():
    with pytest.raises(UserError, match='at least one'): mixed_dls({}, None, 4, 16, 5)

def test_a_resumed_run_sees_the_same_batches(tmp_path):
    whole, uninterrupted = run(tmp_path/'a')
    found = {}
    for stop in (8, 17, 29, None): # between checkpoints, before and after the ends of epochs and stages
        seen, resumed = run(tmp_path/'b', stop=stop)
        found |= seen
        assert seen.items() <= whole.items()
    assert sorted(found) == list(range(36))
    parameters = zip(uninterrupted.model.parameters(), resumed.model.parameters(), strict=True)
    for p, q in parameters: assert p.equal(q)

def test_rows_grow_with_the_stages(tmp_path):
    seen, _ = run(tmp_path)
    lengths = []
    for step in (0, 10, 11, 21, 22, 35):
        (_, seq_len), _ = seen[step]
        lengths.append(seq_len)
    assert lengths == [8, 8, 16, 16, 32, 32]

def test_another_schedule_is_refused(tmp_path):
    run(tmp_path, stop=8)
    with pytest.raises(UserError, match='mixture schedule that the run began with'):
        run(tmp_path, weights=lambda pct: dict(a=1, b=1))
    with pytest.raises(UserError, match='sequence warmup that the run began with'):
        run(tmp_path, stages=[(.3, 8)])

@pytest.mark.parametrize('stages', [[(0, 8)], [(.5, 8), (.5, 16)], [(1.1, 8)], [(.5, 0)]])
def test_stages_that_make_no_sense(stages):
    with pytest.raises(UserError, match='rising shares'): SequenceWarmup(stages)

def test_a_stage_that_does_not_divide(tmp_path):
    with pytest.raises(UserError, match='divide the rows of 32 tokens, got 7'):
        run(tmp_path, stages=[(.5, 7)])

def test_the_same_order_in_another_process():
    "Compare two processes; they also assert that these modules do not import torch."
    first, second = [output_of('order_digest', PYTHONHASHSEED=seed) for seed in '12']
    assert first
    assert first == second
