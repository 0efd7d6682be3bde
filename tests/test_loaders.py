"Batches: nothing leaks between documents, every row is read once, ranks and resumed runs see the same."
import hashlib, os, subprocess, sys, threading
from itertools import count
import numpy as np, pytest, torch
from fastai.callback.core import Callback, CancelFitException
from fastai.data.core import DataLoaders
from llmbook.core import UserError, set_seed
from llmbook.tokens.packing import best_fit, concatenate
from llmbook.tokens.loaders import IGNORE, TokenLoader, document_ids, lm_dls, read_ahead
from llmbook.tokens.mixture_loader import MixedLoader, mixed_dls
from llmbook.tokens.shuffle import MixedOrder
from llmbook.tokens.shards import (
    ShardWriter, TokenView, check_shards, document_edges, documents, open_tokens, read_manifest, write_manifest
)
from llmbook.tokens.packed_loader import PackedLoader, packed_dls
from llmbook.train.warmup import MixtureSchedule, SequenceWarmup
from llmbook.tokens.tokenizer import EOT, save_tokenizer, tokenizer_fingerprint, train_tokenizer
from llmbook.model.config import ModelConfig
from llmbook.model.layers import document_mask, document_positions
from llmbook.model.transformer import Transformer
from llmbook.checkpoint.checkpoint import Checkpoint
from llmbook.pretrain.run import lm_learner


def corpus(seed=0, n=60, longest=40, vocab=290):
    rng = np.random.default_rng(seed)
    return [rng.integers(4, vocab, rng.integers(0, longest)) for _ in range(n)]

def prepared(path, docs=None, per_shard=200):
    "A data folder with several shards."
    path.mkdir(exist_ok=True)
    tok = train_tokenizer(['a small text'], 300)
    save_tokenizer(tok, path)
    def shards(split, docs):
        w = ShardWriter(path, split, tokens_per_shard=per_shard)
        for d in docs: w.add(d)
        return w.close()
    write_manifest(path, dict(train=shards('train', docs if docs is not None else corpus()), valid=shards('valid', corpus(1, 20))),
                   tok.get_vocab_size(), tokenizer_fingerprint(tok))
    return path

@pytest.fixture(scope='module')
def data(tmp_path_factory): return prepared(tmp_path_factory.mktemp('data')/'d')

@pytest.fixture
def mine(tmp_path): return prepared(tmp_path/'d')

def view(n=3000, seed=0, low=4, high=290): return TokenView([np.random.default_rng(seed).integers(low, high, n).astype(np.uint16)])


# the index of documents

def test_the_index_is_where_the_markers_are(data):
    flat, edges = open_tokens(data)[:], document_edges(data)
    assert len(open_tokens(data).shards) > 3
    assert np.array_equal(edges, np.append(0, np.flatnonzero(flat == EOT) + 1))
    assert [d.tolist() for d in documents(data)] == [d.tolist() for d in corpus()]

def test_a_folder_of_the_first_version_can_be_read(mine):
    import json
    want = [d.tolist() for d in documents(mine)]
    m = json.loads((mine/'manifest.json').read_text()); m['version'] = 1; del m['eot']
    for e in m['splits'].values():
        for s in e['shards']: (mine/s.pop('index')).unlink(); del s['index_sha256']
    (mine/'manifest.json').write_text(json.dumps(m))
    assert [d.tolist() for d in documents(mine)] == want and check_shards(mine) > 3 and read_manifest(mine)['eot'] == EOT
    m['version'] = 3; (mine/'manifest.json').write_text(json.dumps(m))
    with pytest.raises(UserError, match='version 1 or 2'): read_manifest(mine)

@pytest.mark.parametrize('harm', ['flip', 'truncate', 'remove', 'swap'])
def test_a_damaged_index_is_named(mine, harm):
    bad, other = mine/'train-00001.idx', mine/'train-00000.idx'
    b = bytearray(bad.read_bytes())
    if harm == 'flip': b[8] ^= 2; bad.write_bytes(b)
    if harm == 'truncate': bad.write_bytes(b[:-8])
    if harm == 'remove': bad.unlink()
    if harm == 'swap': o = other.read_bytes(); other.write_bytes(b); bad.write_bytes(o)
    with pytest.raises(UserError, match=r'train-0000[01].idx'): check_shards(mine)
    if harm in ('truncate', 'remove'):
        with pytest.raises(UserError, match='train-00001.idx'): document_edges(mine)

def test_an_index_that_does_not_rise_is_refused_unread(mine):
    bad = mine/'train-00000.idx'
    n = len(bad.read_bytes()) // 8
    for begins in (np.arange(n) + 1, np.zeros(n), np.arange(n) * 10_000):
        bad.write_bytes(begins.astype('<u8').tobytes())
        with pytest.raises(UserError, match='train-00000.idx to rise'): document_edges(mine)

def test_another_end_marker(tmp_path):
    w = ShardWriter(tmp_path, 'train', eot=7)
    for d in ([1, 0, 2], [3]): w.add(d)
    write_manifest(tmp_path, dict(train=w.close()), 10, 'x', eot=7)
    assert [d.tolist() for d in documents(tmp_path)] == [[1, 0, 2], [3]] and open_tokens(tmp_path)[:].tolist() == [1, 0, 2, 7, 3, 7]


# packing

def naive_fit(lengths, size):
    room = []
    for n in sorted([n % size for n in lengths if n % size], reverse=True):
        fits = [r for r in room if r >= n]
        if fits: room[room.index(min(fits))] -= n
        else: room.append(size - n)
    return sorted(room + [0] * sum(n // size for n in lengths))

@pytest.mark.parametrize('seed', range(12))
def test_best_fit_is_best_fit(seed):
    rng = np.random.default_rng(seed)
    size = int(rng.integers(1, 70))
    lengths = rng.integers(1, 2 * size + 2, rng.integers(0, 300))
    for pack in (best_fit, concatenate):
        p, q = pack(lengths, size), pack(lengths, size).quality()
        pieces = sorted(x for r in range(len(p)) for x in p[r])
        covered = np.concatenate([[d * 1000 + o + np.arange(n)] for d, o, n in pieces], 1)[0] if pieces else np.array([])
        assert covered.tolist() == [d * 1000 + k for d, n in enumerate(lengths) for k in range(n)]    # each token once
        assert all(0 < sum(n for *_, n in p[r]) <= size for r in range(len(p)))
    p = best_fit(lengths, size)
    assert sorted(size - sum(n for *_, n in p[r]) for r in range(len(p))) == naive_fit(lengths.tolist(), size)
    assert p.quality()['cut_needlessly'] == 0
    assert all(n == size for r in range(len(p)) for d, o, n in p[r] if o + n < lengths[d])             # cut into full rows first

def test_concatenation_wastes_nothing_but_the_end():
    q = concatenate([5, 7, 2, 12, 3, 4], 8).quality()
    assert q['rows'] == 5 and q['padding'] == pytest.approx(7 / 40) and q['cut'] == 3 / 6 and q['cut_needlessly'] == 2 / 6

@pytest.mark.parametrize('bad', [[0], [-3], [1.5], [[1]]])
def test_lengths_that_are_none(bad):
    with pytest.raises(UserError): best_fit(bad, 8)
    with pytest.raises(UserError): concatenate(bad, 8)

@pytest.mark.parametrize('pack', [best_fit, concatenate])
def test_each_id_is_a_target_once_with_what_stood_before_it(data, pack):
    edges, tokens = document_edges(data), open_tokens(data)
    dl = PackedLoader(tokens, edges, pack(np.diff(edges), 24), bs=1)
    seen = []
    for x, docs, y in dl:
        real = y != IGNORE
        assert (x[~real] == 1).all() and (docs[~real] == -1).all() and (docs[real] >= 0).all()
        seen += list(zip(x[real].tolist(), y[real].tolist()))
        new = torch.cat((torch.ones(1, 1, dtype=bool), docs[:, 1:] != docs[:, :-1]), 1)
        if pack is best_fit: assert not ((x == EOT) & ~new).any()                     # a marker is the beginning of a piece
    flat = tokens[:].tolist()
    assert sorted(seen) == sorted(zip([EOT] + flat[:-1], flat))

def test_packed_rows_from_a_folder(data):
    dls = packed_dls(data, bs=2, seq_len=32, steps=7, device='cpu')
    walked = [b for _ in range(2) for b in dls.train]
    for k in (0, 5, 9):
        late = packed_dls(data, bs=2, seq_len=32, steps=7, device='cpu').train.seek(k)
        for a, b in zip(walked[k], next(iter(late))): assert torch.equal(a, b)
    parts = [packed_dls(data, bs=1, seq_len=32, steps=7, device='cpu', rank=r, world=2).train.batch(3) for r in (0, 1)]
    for a, b in zip(walked[3], zip(*parts)): assert torch.equal(a, torch.cat(b))
    with pytest.raises(UserError, match='steps of 1'): packed_dls(data, 2, 32, 0)
    assert len(dls.valid) and dls.n_inp == 2 and packed_dls(data, 2, 32, 7, device='cpu', document_mask=False).n_inp == 1


# documents in a row do not see each other

CONFIG = ModelConfig(vocab_size=300, n_layer=2, d_model=32, n_head=4, n_kv_head=2, context=64)

@pytest.fixture(scope='module')
def model():
    set_seed(0)
    m = Transformer(CONFIG)
    for p in m.parameters():
        if p.dim() > 1: torch.nn.init.normal_(p, std=.2)           # far from the quiet of a fresh model
    return m

@pytest.fixture(params=['windows', 'packed'])
def batch(request, data):
    if request.param == 'windows': return lm_dls(data, 4, 48, 3, device='cpu', document_mask=True).train.batch(1)
    return packed_dls(data, 4, 48, 3, device='cpu').train.batch(1)

def test_nothing_leaks(model, batch):
    "Change a token of one document: with the numbers no other document's logits change, without them they do."
    x, docs, y = batch
    leaked = 0
    with torch.no_grad():
        want, plain = model.logits(model(x, docs)), model.logits(model(x))
        for row in range(len(x)):
            for d in docs[row].unique().tolist():
                at = int((docs[row] == d).nonzero()[0])
                x2 = x.clone(); x2[row, at] = (x2[row, at] + 17) % 300
                other = docs[row] != d
                assert torch.equal(model.logits(model(x2, docs))[row][other], want[row][other])
                leaked += int((model.logits(model(x2))[row] != plain[row]).any(-1)[other].sum())
    assert leaked > 20

def test_a_gradient_stays_in_its_document(model, batch):
    x, docs, _ = batch
    h = []
    handle = model.embed.register_forward_hook(lambda m, i, o: h.append(o.requires_grad_()) or o.retain_grad())
    try: out = model(x, docs)
    finally: handle.remove()
    d = int(docs[0, 20])
    out[0][docs[0] == d].sum().backward()
    touched = h[0].grad.abs().sum(-1) > 0
    assert touched[0][docs[0] == d].any() and not touched[0][docs[0] != d].any() and not touched[1:].any()
    model.zero_grad()

def test_a_packed_row_equals_its_documents_alone(model, batch):
    x, docs, _ = batch
    with torch.no_grad():
        got = model.logits(model(x, docs))
        for row in range(len(x)):
            for d in docs[row].unique().tolist():
                m = docs[row] == d
                assert torch.allclose(got[row][m], model.logits(model(x[row][m][None]))[0], atol=1e-4)

def test_one_document_is_the_plain_model(model):
    x = torch.randint(300, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(): assert torch.allclose(model(x, torch.zeros_like(x)), model(x), atol=1e-5)

def test_positions_and_mask_by_hand():
    docs = torch.tensor([[3, 3, 1, 1, 1, -1], [0, 1, 2, 3, 4, 5]])
    assert document_positions(docs).tolist() == [[0, 1, 0, 1, 2, 0], [0] * 6]
    want = [[[docs[b, q] == docs[b, k] and k <= q for k in range(6)] for q in range(6)] for b in range(2)]
    assert document_mask(docs)[:, 0].tolist() == [[[bool(v) for v in r] for r in m] for m in want]
    assert document_ids(torch.tensor([[5, 0, 6, 0, 0, 7]])).tolist() == [[0, 1, 1, 2, 3, 3]]
    with pytest.raises(UserError, match='document for each token'): Transformer(CONFIG)(torch.zeros(2, 6, dtype=torch.long), docs[:1])

@pytest.mark.parametrize('make', [lm_dls, packed_dls])
def test_a_learner_trains_on_documents(data, make, tmp_path):
    kwargs = dict(document_mask=True) if make is lm_dls else {}
    learn = lm_learner(make(data, 4, 32, 6, valid_batches=2, device='cpu', **kwargs), ModelConfig(**{**CONFIG.to_dict(), 'n_layer': 1}), lr=1e-2, path=tmp_path)
    with learn.no_bar(), learn.no_logging():
        learn.fit(3)
        first, last = (r['loss'] for r in (learn.telemetry.rows[0], [r for r in learn.telemetry.rows if 'loss' in r][-1]))
        assert learn.telemetry.tokens == 3 * 6 * 4 * 32 and np.isfinite(last)
        assert learn.validate() == learn.validate()
        preds, y = learn.get_preds(act=lambda h: h)
        assert preds.shape[:2] == y.shape
        learn.show_results(max_n=1)
    learn.dls.show_batch(max_n=1)


# ranks

def loaders(kind, data, **kwargs):
    if kind == 'windows': return lm_dls(data, kwargs.pop('bs'), 16, 5, device='cpu', **kwargs).train
    if kind == 'packed': return packed_dls(data, kwargs.pop('bs'), 16, 5, device='cpu', **kwargs).train
    return MixedLoader(dict(a=view(), b=view(900, 1)), dict(a=2, b=1), seq_len=16, steps=5, **kwargs)

@pytest.mark.parametrize('kind', ['windows', 'packed', 'mixed'])
def test_the_ranks_together_read_what_one_reads(data, kind):
    one = [b for _ in range(2) for b in loaders(kind, data, bs=8)]
    for world in (2, 4):
        ranks = [[b for _ in range(2) for b in loaders(kind, data, bs=8 // world, rank=r, world=world)] for r in range(world)]
        assert all(len(r) == len(one) for r in ranks)
        for whole, *parts in zip(one, *ranks):
            for a, b in zip(whole, zip(*parts)): assert torch.equal(a, torch.cat(b))

@pytest.mark.parametrize('n', [1, 2, 5, 8, 9, 13])
def test_an_uneven_last_batch(n):
    "Every window once, and every rank takes as many steps, some of them on nothing."
    tokens = TokenView([np.arange(n * 4 + 1, dtype=np.uint16)])
    one = torch.cat([y for _, y in TokenLoader(tokens, 4, 4, shuffle=False)])
    assert one[:, 0].tolist() == [4 * i + 1 for i in range(n)]
    ranks = [TokenLoader(tokens, 1, 4, shuffle=False, rank=r, world=4) for r in range(4)]
    assert len({len(list(dl)) for dl in ranks}) == 1
    got = torch.cat([torch.cat(ys) for ys in zip(*([y for _, y in dl] for dl in ranks))])
    assert torch.equal(got[(got != IGNORE).any(1)], one)
    assert all(len(dl.get_idxs()) == sum(len(y) for _, y in dl) for dl in ranks)

@pytest.mark.parametrize('rank, world', [(1, 1), (-1, 2), (0, 0)])
def test_a_rank_that_is_none(rank, world):
    with pytest.raises(UserError, match='rank'): TokenLoader(view(), 4, 16, rank=rank, world=world)


# seeking

def huge(tokens=10 ** 10, shard=1 << 24):
    "Ten billion tokens in 597 shards that take no memory."
    one = np.broadcast_to(np.uint16(5), (shard,))
    return TokenView([one] * (tokens // shard + 1))

def test_a_seek_touches_nothing_but_its_batch():
    tokens, asked = huge(), []
    tokens.windows = lambda starts, n, real=tokens.windows: asked.append(len(starts)) or real(starts, n)
    dl = TokenLoader(tokens, bs=32, seq_len=1024, steps=1000)
    x, y = dl.seek(1_000_000).one_batch()
    assert asked == [32] and x.shape == (32, 1024)
    a, b = dl.starts(1_000_000), dl.starts(1_000_000)
    assert np.array_equal(a, b) and len(set(a)) == 32 and a.max() + 1025 <= len(tokens)

def test_beyond_the_end_is_the_next_pass():
    dl = TokenLoader(view(803), bs=7, seq_len=16, steps=3)
    n = dl.n_windows
    rows = dl.starts(0, 3 * n)
    for p in range(7): assert len(set(rows[p * n:(p + 1) * n] // 16)) == n
    assert torch.equal(dl.seek(10 ** 9).one_batch()[0], dl.batch(10 ** 9)[0])

def test_a_row_longer_than_the_split(data):
    n = len(open_tokens(data, 'valid'))
    with pytest.raises(UserError, match=f'{n + 1:,} validation tokens for one window, found {n:,}'): lm_dls(data, 1, n, 2, device='cpu')
    x, *_ = packed_dls(data, 1, n, 2, device='cpu').train.one_batch()                # packed rows can be longer: they are padded
    assert x.shape == (1, n)


# reading ahead

def ahead_threads(): return [t for t in threading.enumerate() if t.name == 'read-ahead']

@pytest.mark.parametrize('n', [1, 2, 7])
def test_reading_ahead_changes_nothing(data, n):
    a, b = (lm_dls(data, 4, 16, 9, device='cpu', ahead=k).train for k in (0, n))
    for _ in range(2):
        for p, q in zip(a, b, strict=True): assert torch.equal(p[0], q[0]) and torch.equal(p[1], q[1])
    assert a.position == b.position == 18 and not ahead_threads()

def test_at_most_n_batches_wait():
    made, go = [], threading.Event()
    def batches():
        for i in count():
            made.append(i)
            if i == 3: go.set()                                    # two wait, one was taken, and the next is in the thread's hand
            yield i
    it = read_ahead(batches(), 2)
    assert next(it) == 0 and go.wait(5)
    it.close()
    assert len(made) == 4 and not ahead_threads()

def test_errors_and_early_ends():
    def bad():
        yield 1
        raise OSError('gone')
    it = read_ahead(bad())
    assert next(it) == 1
    with pytest.raises(OSError, match='gone'): next(it)
    for b in read_ahead(count()):
        if b == 5: break
    with pytest.raises(ZeroDivisionError):
        for b in read_ahead(count(), 1): 1 / (b - 3)
    read_ahead(count())                                            # never begun
    assert list(read_ahead([])) == [] and not ahead_threads()


# mixtures

@pytest.mark.parametrize('seed', range(6))
def test_a_mixture_draws_every_row_of_a_source_in_turn(seed):
    rng = np.random.default_rng(seed)
    names, K, N = [f's{i}' for i in range(rng.integers(1, 40))], int(rng.integers(1, 30)), int(rng.integers(1, 5000))
    parts = [dict(zip(names, rng.random(len(names)) ** 4)) for _ in range(K)]
    order = MixedOrder(names, parts, rows=N, seed=seed)
    s, k = order.draw(np.arange(2 * N))
    for j in range(len(names)): assert k[s == j].tolist() == list(range((s == j).sum()))
    some = rng.integers(0, 2 * N, 50)
    s2, k2 = order.draw(some)
    assert np.array_equal(s2, s[some]) and np.array_equal(k2, k[some])
    again = MixedOrder(names, parts, rows=N, seed=seed).draw(some)
    assert np.array_equal(again[0], s2) and np.array_equal(again[1], k2)

def test_shares_come_out_in_every_stretch():
    order = MixedOrder(['a', 'b', 'c'], dict(a=.899, b=.1, c=.001))
    for g in (0, 5_000, 10 ** 11):
        s, _ = order.draw(np.arange(g, g + 1000))
        assert np.abs(np.bincount(s, minlength=3) - [899, 100, 1]).max() <= 14
    changing = MixedOrder(['a', 'b'], [dict(a=1), dict(b=1)], rows=640).draw(np.arange(1000))[0]
    assert not changing[:320].any() and changing[320:].all()
    few = MixedOrder(['a', 'b'], [dict(a=1)] * 3 + [dict(b=1)], rows=64).draw(np.arange(64))[0]       # shorter than a block: the mean
    assert few.sum() == 16

@pytest.mark.parametrize('bad', [dict(a=-1, b=2), dict(a=0, b=0), dict(a=float('nan')), dict(z=1), dict(a=float('inf'))])
def test_weights_that_make_no_sense(bad):
    with pytest.raises(UserError): MixedLoader(dict(a=view(), b=view()), bad, seq_len=8)

def test_taking_a_source_out_leaves_the_others_in_order():
    a, b, c = view(), view(900, 1, 300, 400), view(900, 2, 500, 600)
    rows = lambda dl, low, high: [r for i in range(20) for r in dl.batch(i)[0].tolist() if low <= min(r) and max(r) < high]
    both, three = (rows(MixedLoader(s, dict.fromkeys(s, 1), bs=8, seq_len=16), 300, 400) for s in (dict(a=a, b=b), dict(a=a, b=b, c=c)))
    assert len(three) > 30 and both[:len(three)] == three

def test_passes_counts_what_was_read():
    dl = MixedLoader(dict(a=view(), b=view(500, 1)), dict(a=.8, b=.2), bs=8, seq_len=16, steps=5)
    for i in (0, 1, 7, 100):
        drawn = np.bincount(dl.starts(0, i)[:, 0], minlength=2) if i else np.zeros(2)
        assert list(dl.passes(i).values()) == pytest.approx((drawn / [dl.readers[n].n_windows for n in 'ab']).tolist())

def test_mixing_prepared_folders(data, tmp_path):
    other = prepared(tmp_path/'other', corpus(5))
    dls = mixed_dls(dict(one=data, two=other), None, 4, 16, 5, device='cpu', document_mask=True)
    assert len(dls.one_batch()) == 3 and dls.n_inp == 2 and sum(len(y) for *_, y in dls.valid) > len(open_tokens(data, 'valid')) // 16
    assert dls.train.new(shuffle=False).order is dls.train.order
    (other/'tokenizer.json').write_text((other/'tokenizer.json').read_text().replace('"a"', '"b"', 1))
    with pytest.raises(UserError, match='tokenizer'): mixed_dls(dict(one=data, two=other), None, 4, 16, 5)
    with pytest.raises(UserError, match='at least one'): mixed_dls({}, None, 4, 16, 5)


# schedules, stopped and resumed

class Watch(Callback):
    order = 90
    def __init__(self, stop=None): self.seen, self.stop_at = {}, stop
    def after_pred(self):
        if self.training: self.seen[self.train_iter] = self.xb[0].shape, hashlib.sha256(self.xb[0].numpy().tobytes()).hexdigest()
    def after_batch(self):
        if self.training and self.train_iter == self.stop_at: raise CancelFitException

def run(folder, *, stop=None, weights=lambda p: dict(a=1 - p, b=p), stages=((.3, 8), (.6, 16))):
    train = MixedLoader(dict(a=view(), b=view(1500, 1)), bs=4, seq_len=32, steps=12)
    learn = lm_learner(DataLoaders(train, TokenLoader(view(400, 3), 4, 32, shuffle=False)), ModelConfig(**{**CONFIG.to_dict(), 'n_layer': 1}), lr=1e-2, path=folder,
                       cbs=[watch := Watch(stop), MixtureSchedule(weights), SequenceWarmup(stages), Checkpoint(folder, every=5, final=False)])
    with learn.no_bar(), learn.no_logging(): learn.fit(3)
    return watch.seen, learn

def test_a_resumed_run_sees_the_same_batches(tmp_path):
    whole, a = run(tmp_path/'a')
    assert [whole[i][0][1] for i in (0, 10, 11, 21, 22, 35)] == [8, 8, 16, 16, 32, 32]
    got = {}
    for stop in (8, 17, 29, None):                                 # between checkpoints, before and after the ends of epochs and stages
        seen, b = run(tmp_path/'b', stop=stop)
        got |= seen
        assert {k: whole[k] for k in seen} == seen
    assert sorted(got) == list(range(36))
    assert all(p.equal(q) for p, q in zip(a.model.parameters(), b.model.parameters()))

def test_another_schedule_is_refused(tmp_path):
    run(tmp_path, stop=8)
    with pytest.raises(UserError, match='mixture schedule that the run began with'): run(tmp_path, weights=lambda p: dict(a=1, b=1))
    with pytest.raises(UserError, match='sequence warmup that the run began with'): run(tmp_path, stages=[(.3, 8)])

@pytest.mark.parametrize('stages', [[(0, 8)], [(.5, 8), (.5, 16)], [(1.1, 8)], [(.5, 0)]])
def test_stages_that_make_no_sense(stages):
    with pytest.raises(UserError, match='rising shares'): SequenceWarmup(stages)

def test_a_stage_that_does_not_divide(tmp_path):
    with pytest.raises(UserError, match='divide the rows of 32 tokens, got 7'): run(tmp_path, stages=[(.5, 7)])

def test_the_same_order_in_another_process():
    "Without torch, which these rooms do not import."
    code = '''import sys, hashlib, numpy as np
from llmbook.tokens.packing import best_fit
from llmbook.tokens.shuffle import MixedOrder, permuted
g = np.arange(10 ** 6, 10 ** 6 + 500)
p = best_fit(permuted(g, 10 ** 7, 3) % 90 + 1, 64)
found = *MixedOrder(['a', 'b'], dict(a=2, b=1)).draw(g), p.first, p.doc, p.offset
assert 'torch' not in sys.modules and 'fastai' not in sys.modules
print(hashlib.sha256(b''.join(np.ascontiguousarray(v, '<i8').tobytes() for v in found)).hexdigest())'''
    runs = [subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env={**os.environ, 'PYTHONHASHSEED': s}) for s in '12']
    assert runs[0].stdout and runs[0].stdout == runs[1].stdout, runs[0].stderr
