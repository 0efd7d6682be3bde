"Reading: every format, bad input, bounded memory, and units that do not depend on how the input was cut."
import bz2, csv, dataclasses, gzip, io, json, lzma, os, random, re, tracemalloc, zlib
from collections import Counter
from importlib import metadata
from pathlib import Path
import pytest
from real_data import DATA, needs_data
from run_program import heavy_imports, output_of
from llmbook.core import UserError
from llmbook.read.doc import Doc, Reject
from llmbook.read.filetype import LANGUAGES, file_type, is_licence, path_id
from llmbook.read.licence import Licences, identify_licence, spdx_line
from llmbook.read.html import extract_html
from llmbook.read.formats import read_csv, read_jsonl, read_text
from llmbook.read.sources import Unit, plan_units, read_file, read_sources, read_unit, source_paths
from llmbook.read.streams import Unpacked, as_utf8, decode_page, decode_text, open_stream, read_lines, whole_letters
from llmbook.read.warc import read_warc
from llmbook.filters.content import licence as licence_rule
from llmbook.filters.view import View


def zstd(data):
    try: from compression import zstd
    except ImportError: from backports import zstd
    return zstd.compress(data)

PACK = {'gz': gzip.compress, 'zst': zstd, 'bz2': bz2.compress, 'xz': lzma.compress}

def stream(data): return io.BufferedReader(io.BytesIO(data))
def reasons(docs): return [r.reason if isinstance(r, Reject) else 'read' for r in docs]
def texts(docs): return [d.text for d in docs if isinstance(d, Doc)]

def rows(n, seed=0):
    words = [random.Random(f'{seed}{i}').randint(0, 12) for i in range(n)]
    return [{'text': f'record {i} ' + 'größe 漢字 ' * k, 'n': i} for i, k in enumerate(words)]

def as_jsonl(rs): return b''.join(json.dumps(r, ensure_ascii=False).encode() + b'\n' for r in rs)

def put(folder, files):
    for name, data in files.items():
        p = Path(folder)/name
        p.parent.mkdir(parents=True, exist_ok=True)
        p.write_bytes(data)
    return folder

def as_parquet(rs, group=None):
    import pyarrow as pa, pyarrow.parquet as pq
    buf = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rs), buf, row_group_size=group)
    return buf.getvalue()

def as_csv(rs, delimiter=','):
    buf = io.StringIO()
    writer = csv.DictWriter(buf, rs[0], delimiter=delimiter, lineterminator='\n')
    writer.writeheader()
    writer.writerows(rs)
    return buf.getvalue().encode()

HTML = 'HTTP/1.1 200 OK\r\nContent-Type: text/html'

def as_warc(pages, http=HTML + '; charset=utf-8', kind='response', prefix=''):
    out = b''
    for i, page in enumerate(pages):
        block = (http.encode() + b'\r\n\r\n' if http else b'') + page
        head = (f'WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Record-ID: <urn:uuid:{prefix}{i}>\r\n'
                f'WARC-Date: 2024-01-01T00:00:00Z\r\nWARC-Target-URI: http://site.example/{i}\r\n'
                f'Content-Length: {len(block)}\r\n\r\n')
        out += head.encode() + block + b'\r\n\r\n'
    return out

def collection(folder):
    "Fill a folder with a bit of everything that can be read, and of what cannot."
    odd = os.fsdecode(b'caf\xe9 and\nmore.txt')
    return put(folder, {
        'a.txt': b'A story.',
        'b.md': b'# Notes',
        'page.html': b'<p>page',
        'src/x.py': b'x = 1\n',
        'src/LICENSE': b'Apache License\nVersion 2.0',
        'src/deep/y.rs': b'fn main() {}\n',
        'large.jsonl': as_jsonl(rows(300)),
        'c4.json': as_jsonl(rows(120, 1)),
        'package.json': b'{\n "name": "p"\n}',
        'one.jsonl.gz': gzip.compress(as_jsonl(rows(50, 2))),
        'two.txt.zst': zstd(b'packed text'),
        't.csv': as_csv(rows(40)),
        't.tsv': as_csv(rows(40), '\t'),
        't.parquet': as_parquet(rows(200), 30),
        'p.parquet.gz': gzip.compress(as_parquet(rows(9))),
        'crawl.warc': as_warc([b'<p>one', b'<p>two']),
        'crawl.warc.wet.gz': gzip.compress(as_warc([b'plain'], '', 'conversion', 'wet')),
        'latin.txt': b'caf\xe9',
        'empty.md': b'',
        'photo.jpg': b'..',
        'cut.txt.gz': gzip.compress(b'cut off text')[:-5],
        'broken.jsonl': b'{"text": "ok"}\n{"text": \n[]\n\n{"text": "NaN", "x": NaN}\n{"text": "end"}',
        odd: b'odd name',
        '.hidden/z.txt': b'no'})


# --- units ---

def read_units(units): return [d for u in units for d in read_unit(u)]

def as_json(unit): return json.dumps(dataclasses.asdict(unit), ensure_ascii=False)

@pytest.fixture
def collected(tmp_path):
    "Return a folder with a bit of everything, and what is read of it in one go."
    collection(tmp_path)
    return tmp_path, list(read_sources(tmp_path))

UNIT_SIZES = [150, 1000, 5000, 1 << 20]

@pytest.mark.parametrize('size', UNIT_SIZES)
def test_units_give_what_reading_in_one_go_gives(collected, size):
    folder, whole = collected
    assert read_units(plan_units(folder, size)) == whole

def test_documents_have_names_of_their_own(collected):
    _, whole = collected
    ids = [d.id for d in whole if isinstance(d, Doc)]
    assert len(ids) > 700
    assert len(set(ids)) == len(ids)

@pytest.mark.parametrize('size', UNIT_SIZES)
def test_units_are_the_same_on_every_call_and_travel_as_json(collected, size):
    folder, _ = collected
    units = plan_units(folder, size)
    assert plan_units(str(folder), size) == units
    for unit in units: assert Unit(**json.loads(as_json(unit).encode())) == unit

@pytest.mark.parametrize('size', UNIT_SIZES)
def test_only_large_files_are_divided(collected, size):
    folder, _ = collected
    units = plan_units(folder, size)
    assert len(units) > 1000 // size
    parts = [unit for unit in units if unit.end is not None]
    assert all(len(unit.paths) == 1 for unit in parts)
    assert size > 20_000 or parts

def test_every_reject_has_its_reason(collected):
    _, got = collected
    seen = Counter(reasons(got))
    assert seen.pop('read') > 700
    assert seen == {'not UTF-8': 1, 'empty': 1, 'unknown type': 2, 'truncated': 1, 'broken JSON': 2, 'no text': 1}

def test_another_process_reads_a_unit_alike(tmp_path):
    collection(tmp_path)
    units = plan_units(tmp_path, 1000)
    lines = '\n'.join(json.dumps(dataclasses.asdict(u)) for u in units)
    out = output_of('read_units', stdin=lines)
    for u, line in zip(units, out.splitlines(), strict=True):
        docs = [vars(d) for d in read_unit(u)]
        assert json.loads(line) == docs

BYTE_ORDER_MARK = b'\xef\xbb\xbf'
LONG_LINE = b'{"text": "' + b'x' * 600 + b'"}\n'
ODD_LINES = BYTE_ORDER_MARK + as_jsonl(rows(6)) + b'\n\r\n  \n' + LONG_LINE + b'{"text": "last"}'

def read_odd_lines(start=0, end=None):
    return list(read_jsonl(stream(ODD_LINES), 'f', 'f', start=start, end=end, limit=400))

def test_every_cut_of_jsonl_reads_each_line_once():
    whole = read_odd_lines()
    assert reasons(whole) == ['read'] * 6 + ['too long', 'read']
    for cut in range(1, len(ODD_LINES) + 3):
        assert read_odd_lines(0, cut) + read_odd_lines(cut) == whole, cut

@pytest.mark.parametrize('size', [7, 64, 333])
def test_parts_of_any_size_read_each_line_once(size):
    docs = []
    for start in range(0, len(ODD_LINES), size): docs += read_odd_lines(start, start + size)
    assert docs == read_odd_lines()

def test_an_id_is_the_place_in_the_file():
    data = as_jsonl(rows(20))
    for d in read_jsonl(stream(data), 'f', 'f'):
        _, _, start = d.id.partition(':')
        line = data[int(start):].split(b'\n')[0]
        assert json.loads(line)['text'] == d.text

def test_units_do_not_read_a_long_line_again_and_again(tmp_path):
    data = b'x' * 1_000_000 + b'\n{"text": "after"}\n'
    (tmp_path/'a.jsonl').write_bytes(data)
    class Counted(io.BytesIO):
        n = 0
        def readinto(self, b):
            n = super().readinto(b)
            Counted.n += n
            return n
    for u in plan_units(tmp_path, 10_000):
        f = io.BufferedReader(Counted(data), 1000)
        list(read_jsonl(f, 'a', 'a', start=u.start, end=u.end, limit=1000))
    assert Counted.n < 9_000_000, 'a hundred parts of a line of a megabyte'

def test_small_files_travel_together_and_packed_ones_stay_whole(tmp_path):
    files = {f'{i:03}.txt': b'x' * 100 for i in range(100)}
    put(tmp_path, files | {'z.jsonl.gz': gzip.compress(as_jsonl(rows(2000)), 1)})
    *small, packed = plan_units(tmp_path, 1000)
    assert [len(u.paths) for u in small] == [10] * 10
    assert packed.paths[0].endswith('.gz')
    assert (packed.start, packed.end) == (0, None)
    assert sum(u.n_bytes for u in (*small, packed)) == sum(p.stat().st_size for p in tmp_path.iterdir())

def test_what_is_no_file_has_no_units(tmp_path):
    for bad in ('embedded', 'embedded:1000', 'no/such/file.txt', []):
        with pytest.raises(UserError): plan_units(bad)
    with pytest.raises(UserError, match='more than 0'): plan_units(tmp_path, 0)

def test_starting_a_worker_is_cheap():
    heavy = ['torch', 'fastai', 'pyarrow', 'fastwarc', 'pypdf', 'datasets']
    assert heavy_imports(['llmbook.read.sources'], heavy) == {}


# --- parity with the libraries that know the format ---

def test_jsonl_reads_what_json_reads():
    data = as_jsonl(rows(200))
    want = [json.loads(line) for line in data.splitlines()]
    docs = list(read_jsonl(stream(data), 'f', 'f'))
    assert [(d.text, d.meta['n']) for d in docs] == [(r['text'], r['n']) for r in want]

CELLS = ['plain', 'with, comma', 'with "quotes"', 'two\nlines', 'größe', ' x ', 'a\r\nb']

@pytest.fixture
def odd_table(): return as_csv([{'text': text, 'n': str(i)} for i, text in enumerate(CELLS)])

def test_csv_reads_what_csv_reads(odd_table):
    by_library = csv.DictReader(io.StringIO(odd_table.decode(), newline=''))
    assert [row['text'] for row in by_library] == CELLS
    assert texts(read_csv(stream(odd_table), 'f', 'f')) == CELLS

def test_a_row_of_csv_has_its_line_and_its_other_cells(odd_table):
    docs = list(read_csv(stream(odd_table), 'f', 'f'))
    assert docs[3].id == 'f:4'
    assert docs[1].meta == {'n': '1'}

def test_parquet_reads_what_pyarrow_reads(tmp_path):
    import datetime
    more = {'day': datetime.date(2024, 1, 1), 'score': float('nan'), 'tags': ['a', None]}
    rs = [r | more for r in rows(500)]
    f = tmp_path/'f.parquet'
    f.write_bytes(as_parquet(rs, 100))
    docs = list(read_sources(f))
    assert texts(docs) == [r['text'] for r in rs]
    assert docs[-1].id.endswith('f.parquet:499')
    assert docs[7].meta == {'n': 7, 'day': '2024-01-01', 'score': None, 'tags': ['a', None]}
    json.dumps([d.meta for d in docs], allow_nan=False)

@pytest.mark.parametrize('packing', PACK)
def test_packed_files_are_read_like_plain_ones(tmp_path, packing):
    files = {'a.jsonl': as_jsonl(rows(300)), 'b.txt': b'text ' * 9000, 'c.csv': as_csv(rows(20)),
             'd.html': b'<p>page', 'e.warc': as_warc([b'<p>x'] * 9), 'f.parquet': as_parquet(rows(9)), 'g.py': b'x = 1'}
    plain = put(tmp_path/'plain', files)
    packed = put(tmp_path/'packed', {f'{name}.{packing}': PACK[packing](data) for name, data in files.items()})
    def read(folder): return [(d.text, d.kind, d.language, d.meta) for d in read_sources(folder)]
    assert read(packed) == read(plain)

def shaped(shape):
    "Make data that packs badly, well, or by turns."
    rng = random.Random(shape)
    if shape == 'random': return rng.randbytes(300_000)
    if shape == 'words': return b''.join(b'%x and some words\n' % rng.getrandbits(64) for _ in range(20_000))
    if shape == 'repeated': return b'a' * 2_000_000
    return rng.randbytes(300_000) + b'z' * 2_000_000 + rng.randbytes(99_999)

@pytest.mark.parametrize('packing', PACK)
@pytest.mark.parametrize('shape', ['random', 'words', 'repeated', 'mixed'])
def test_large_archives_come_out_whole(packing, shape):
    data = shaped(shape)
    packed = PACK[packing](data)
    for step in (1 << 18, 5_000):
        s = Unpacked(io.BytesIO(packed), packing)
        assert io.BufferedReader(s, step).read() == data
        assert not s.damage

def test_archives_one_after_the_other_with_padding():
    two = gzip.compress(b'one ') + gzip.compress(b'two')
    padded = two + b'\0' * 99_999
    frames = zstd(b'one ') + zstd(b'two')
    for data, packing in ((two, 'gz'), (padded, 'gz'), (frames, 'zst')):
        s = Unpacked(io.BytesIO(data), packing)
        assert io.BufferedReader(s).read() == b'one two'
        assert not s.damage

CRAWLS = ('whirlwind_warc/whirlwind.warc', 'whirlwind_warc/whirlwind.warc.gz', 'whirlwind_warc/whirlwind.warc.wet.gz',
          'dolma_samples/warc/sample-0000.warc.gz', 'dolma_samples/warc/sample-0001.warc.gz')

@needs_data
def test_real_crawls():
    plain, packed, wet = [next(read_file(DATA/name)) for name in CRAWLS[:3]]
    assert plain == dataclasses.replace(packed, source=plain.source)
    assert plain.kind == 'html'
    assert plain.id.startswith('urn:uuid:')
    assert wet.kind == 'prose'
    assert plain.meta == {'url': wet.meta['url'], 'date': '2024-05-18T01:58:10Z', 'language': 'an'}

@needs_data
@pytest.mark.parametrize('name, n', [*((name, 1) for name in CRAWLS[:3]), (CRAWLS[3], 22), (CRAWLS[4], 15)])
def test_real_crawls_lose_no_page(name, n):
    docs = list(read_file(DATA/name))
    assert len(docs) == n
    assert reasons(docs) == ['read'] * n

@needs_data
@pytest.mark.parametrize('name', CRAWLS)
def test_crawls_give_as_many_pages_as_they_have_records_of_pages(name):
    raw = (DATA/name).read_bytes()
    if name.endswith('gz'): raw = gzip.decompress(raw)
    pages = re.findall(rb'\r\nWARC-Type: (?:response|conversion)\r\n', raw)
    assert len(list(read_file(DATA/name))) == len(pages)

@needs_data
def test_real_jsonl_by_any_suffix():
    for name in ('dolma_samples/provided/documents/000.json.gz', 'dolma_samples/multiple_files/cc_en_head-0091.jsonl',
                 'gutenberg_books/*.jsonl.gz'):
        docs = list(read_sources(f'{DATA/name}'))
        assert len(docs) >= 10
        assert all(isinstance(d, Doc) for d in docs)
    table = DATA/'davidson_hate_speech'/'labeled_data.csv.gz'
    docs = list(read_sources(table, text_field='tweet'))
    text = gzip.decompress(table.read_bytes()).decode()
    assert texts(docs) == [r['tweet'] for r in csv.DictReader(io.StringIO(text, newline=''))]


# --- damage ---

WHOLE = {
    'a.jsonl': lambda: as_jsonl(rows(400)),
    'a.txt': lambda: b'many words of text\n' * 3000,
    'a.csv': lambda: as_csv(rows(300)),
    'a.warc': lambda: as_warc([b'<p>' + bytes(str(i), 'ascii') * 50 for i in range(60)]),
    'a.parquet': lambda: as_parquet(rows(300), 50),
    'a.html': lambda: b'<p>' + b'word ' * 3000}

def packed_file(folder, name, packing):
    "Return the path for a file of WHOLE and its bytes."
    data = WHOLE[name]()
    if not packing: return folder/name, data
    return folder/f'{name}.{packing}', PACK[packing](data)

@pytest.fixture(params=[.01, .3, .77, .999])
def cut_share(request): return request.param

def cut_file(folder, name, packing, share):
    "Write a file that lacks its end; return what it would hold and what is read."
    f, packed = packed_file(folder, name, packing)
    f.write_bytes(packed)
    whole = texts(read_file(f))
    n_bytes = max(int(len(packed) * share), 6)
    f.write_bytes(packed[:n_bytes])
    return whole, list(read_file(f))

@pytest.mark.parametrize('name', WHOLE)
@pytest.mark.parametrize('packing', ['', 'gz', 'zst', 'bz2', 'xz'])
def test_a_file_that_stops_in_the_middle(tmp_path, name, packing, cut_share):
    whole, got = cut_file(tmp_path, name, packing, cut_share)
    kept = texts(got)
    if name in ('a.txt', 'a.html'): assert ''.join(whole).startswith(''.join(kept))
    else: assert kept[:-1] == whole[:len(kept)][:-1]

@pytest.mark.parametrize('name', WHOLE)
@pytest.mark.parametrize('packing', ['gz', 'zst', 'bz2', 'xz'])
def test_a_packed_file_that_stops_says_so(tmp_path, name, packing, cut_share):
    _, got = cut_file(tmp_path, name, packing, cut_share)
    lost = [reason for reason in reasons(got) if reason != 'read']
    assert lost[-1] in ('truncated', 'damaged'), got[-2:]
    if packing != 'bz2' and name != 'a.parquet': assert 'truncated' in lost, got[-2:]

@pytest.mark.parametrize('name', ['a.warc', 'a.parquet'])
def test_a_file_of_records_that_stops_has_fewer_or_says_so(tmp_path, name, cut_share):
    whole, got = cut_file(tmp_path, name, '', cut_share)
    assert len(texts(got)) < len(whole) or reasons(got) != ['read'] * len(got)

def test_what_came_before_is_kept_to_the_last_line(tmp_path):
    data = as_jsonl(rows(2000))
    want = [r['text'] for r in rows(2000)]
    for packing in ('gz', 'zst'):
        packed = PACK[packing](data)
        f = tmp_path/f'a.jsonl.{packing}'
        f.write_bytes(packed[:len(packed) * 2 // 3])
        *docs, last = read_file(f)
        assert last.reason == 'truncated'
        assert len(docs) > 500
        assert texts(docs) == want[:len(docs)]
    f = tmp_path/'a.jsonl.gz'
    lines = zlib.decompressobj(31).decompress(f.read_bytes()).count(b'\n')
    assert len(list(read_file(f))) - 1 == lines

def flip(data, rng):
    "Return data with some bytes changed, sometimes with another end."
    bad = bytearray(data)
    for _ in range(rng.choice((1, 3, 40))): bad[rng.randrange(len(bad))] = rng.randrange(256)
    if rng.random() < .2: bad[rng.randrange(len(bad)):] = rng.randbytes(rng.randrange(300))
    return bad

@pytest.mark.parametrize('name', WHOLE)
@pytest.mark.parametrize('packing', ['', 'gz', 'zst'])
def test_flipped_bytes_never_stop_a_run(tmp_path, name, packing):
    rng = random.Random(f'{name}{packing}')
    f, packed = packed_file(tmp_path, name, packing)
    for _ in range(25):
        f.write_bytes(flip(packed, rng))
        for r in read_file(f):
            assert isinstance(r, (Doc, Reject))
            r.id.encode()
            if isinstance(r, Reject): continue
            r.text.encode()
            json.dumps(r.meta, allow_nan=False, ensure_ascii=False).encode()

def a_bomb(packing):
    if packing != 'gz': return PACK[packing](b'a' * (120 << 20))
    z = zlib.compressobj(9, zlib.DEFLATED, 31)
    return b''.join(z.compress(b'a' * (1 << 20)) for _ in range(300)) + z.flush()

def peak_of_reading(path, limit):
    "Return what `read_file` gives, with only the end of each text, and the peak of the memory it took."
    tracemalloc.start()
    got = []
    for r in read_file(path, limit=limit):
        if isinstance(r, Doc): r = dataclasses.replace(r, text=r.text[-30:])
        got.append(r)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return got, peak

@pytest.mark.parametrize('name', ['a.jsonl.gz', 'a.jsonl.xz', 'a.jsonl.zst', 'a.txt.zst', 'a.csv.zst', 'a.warc.zst'])
def test_a_bomb_stops_early_and_takes_no_memory(tmp_path, name):
    f = tmp_path/name
    f.write_bytes(a_bomb(f.suffix[1:]))
    got, peak = peak_of_reading(f, 4 << 20)
    assert got[-1].reason == ('too long' if name == 'a.csv.zst' else 'bomb')
    assert len(got) < 40
    assert peak < 60e6, got[-1]

@pytest.mark.parametrize('name', ['a.jsonl', 'a.csv', 'a.txt', 'a.html'])
def test_a_line_without_an_end(tmp_path, name):
    f = tmp_path/name
    with open(f, 'wb') as out:
        if name == 'a.csv': out.write(b'text\n')
        out.seek(100 << 20) # a hole of zeros: no space on the disk
        out.write(b'\n{"text": "after"}\n')
    got, peak = peak_of_reading(f, 1 << 20)
    assert peak < 12e6
    assert set(reasons(got)) <= {'too long', 'read', 'binary'}
    if name in ('a.jsonl', 'a.csv'): assert reasons(got) == ['too long', 'read']

def test_a_quote_that_is_never_closed_costs_rows_and_no_memory():
    data = b'text\nfine\n"open' + b'\nrow' * 200_000
    tracemalloc.start()
    got = reasons(read_csv(stream(data), 'f', 'f'))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(got) == 2
    assert got[0] == 'read'
    assert peak < 40e6

@pytest.mark.parametrize('limit', [64, 1000])
def test_large_text_comes_in_pieces_that_join_to_the_whole(limit):
    for text in ('größe 漢字 👩 word\n' * 500, '漢' * 3000, 'x' * 999, 'ab\n' + 'é' * 1000):
        data = text.encode()
        docs = list(read_text(stream(data), 'f', 'f', limit=limit))
        assert ''.join(d.text for d in docs) == text
        assert all(d.nbytes <= limit for d in docs)
        numbered = [f'f#{i}' for i, _ in enumerate(docs, 1)]
        assert [d.id for d in docs] == (['f'] if len(data) <= limit else numbered)

def test_whole_letters_at_every_cut():
    data = 'aé漢👩'.encode()
    for i in range(len(data) + 1):
        whole = whole_letters(data[:i])
        assert data.startswith(whole)
        assert whole.decode() == data[:i].decode(errors='ignore')


# --- folders ---

def test_names_that_no_one_expects(tmp_path):
    names = [b'with space.txt', b'two\nlines.txt', b'clear\x1b[2J.txt', b'caf\xe9.txt', 'größe.txt'.encode(),
             b'\xff\xfe.txt', b'a:1#2.txt']
    for name in names:
        path = os.path.join(os.fsencode(tmp_path), name)
        Path(os.fsdecode(path)).write_bytes(b'text of ' + name.hex().encode())
    docs = list(read_sources(tmp_path))
    assert len(docs) == len(names)
    assert len({d.id for d in docs}) == len(names)
    for d in docs:
        assert d.id.isprintable()
        d.id.encode()
    assert read_units(plan_units(tmp_path, 50)) == docs

@pytest.fixture
def linked(tmp_path):
    "Make two folders, the first with links to itself, to the second, and to nothing."
    real, other = tmp_path/'folder', tmp_path/'elsewhere'
    put(real, {'a/x.txt': b'x', 'a/b/y.txt': b'y'})
    put(other, {'z.txt': b'z', 'sub/w.txt': b'w'})
    links = {
        '0first': 'folder/a',
        'a/up': 'folder',
        'a/b/self': 'folder/a/b',
        'copy.txt': 'folder/a/x.txt',
        'loop': 'folder/loop',
        'out': 'elsewhere',
        'out2': 'elsewhere/sub',
        'a/z.txt': 'elsewhere/z.txt'}
    for at, to in links.items(): (real/at).symlink_to(tmp_path/to)
    return real, other

def test_links_are_followed_once_and_never_for_ever(linked):
    real, other = linked
    for source in (real, f'{real}/**/*.txt', [real/'a', real, other]):
        assert sorted(texts(read_sources(source))) == ['w', 'x', 'y', 'z']

def test_a_linked_file_has_the_name_of_its_real_place(linked):
    real, _ = linked
    got = list(read_sources(real))
    names = {d.id for d in got if isinstance(d, Doc)}
    assert names >= {path_id(real/'a/x.txt'), path_id(real/'a/b/y.txt')}
    rejects = [r.reason for r in got if isinstance(r, Reject)]
    assert rejects == ['unreadable']

def test_what_is_no_regular_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path/'pipe.txt')
    (tmp_path/'a.txt').write_text('x')
    assert reasons(read_sources(tmp_path)) == ['read', 'unreadable']
    with pytest.raises(UserError): read_sources(tmp_path/'pipe.txt')

def test_what_may_not_be_read_is_named(tmp_path, monkeypatch):
    put(tmp_path, {'a.txt': b'x', 'secret/b.txt': b'y', 'locked.txt': b'z'})
    def is_denied(path): return 'secret' in os.fspath(path) or 'locked' in os.fspath(path)
    def deny(f):
        def inner(path, *args, **kwargs):
            if is_denied(path): raise PermissionError(13, 'Permission denied')
            return f(path, *args, **kwargs)
        return inner
    monkeypatch.setattr(os, 'scandir', deny(os.scandir))
    monkeypatch.setattr(os, 'listdir', deny(os.listdir))
    monkeypatch.setattr('builtins.open', deny(open))
    got = list(read_sources(tmp_path))
    said = [(Path(r.id).name, getattr(r, 'reason', 'read'), getattr(r, 'value', '')) for r in got]
    assert said == [('a.txt', 'read', ''), ('locked.txt', 'unreadable', 'Permission denied'),
                    ('secret', 'unreadable', 'Permission denied')]
    assert read_units(plan_units(tmp_path)) == got

def test_a_very_deep_folder(tmp_path):
    deep = tmp_path.joinpath(*['d'] * 150)
    deep.mkdir(parents=True)
    (deep/'x.py').write_text('x = 1')
    (tmp_path/'COPYING').write_text('Mozilla Public License Version 2.0')
    licence, code = sorted(read_sources(tmp_path), key=lambda d: len(d.id))
    assert code.licence == licence.licence == 'MPL-2.0'

def test_every_file_is_accounted_for(collected):
    folder, got = collected
    ids = {r.id for r in got}
    files = [path for path in folder.rglob('*') if path.is_file() and '.hidden' not in path.parts]
    for name in map(path_id, files):
        of_a_part = [id for id in ids if id.startswith((f'{name}:', 'urn'))]
        assert name in ids or of_a_part
    assert len(source_paths(folder)) == len(files) - 1

def test_another_field(tmp_path):
    table = as_parquet([{'content': 'three'}])
    put(tmp_path, {'a.jsonl': b'{"content": "one", "text": 7}\n', 'b.csv': b'content,n\ntwo,1\n', 'c.parquet': table})
    docs = list(read_sources(tmp_path, text_field='content'))
    assert texts(docs) == ['one', 'two', 'three']
    assert read_units(plan_units(tmp_path, text_field='content')) == docs
    assert reasons(read_sources(tmp_path)) == ['no text'] * 3

def test_json_that_is_no_document_and_tables_that_are_broken(tmp_path):
    put(tmp_path, {'a.json': b'[1, 2]', 'b.json': b'{"text": "one line"}', 'c.parquet': b'PAR1 no footer',
                   'd.parquet': b'nothing', 'e.csv': b'\xff,\nx\n', 'f.pdf': b'%PDF nothing', 'g.jsonl': b''})
    assert reasons(read_sources(tmp_path)) == ['unknown type', 'read', 'truncated', 'damaged', 'not UTF-8', 'damaged',
                                               'empty']


# --- what a name and a head say ---

@pytest.mark.parametrize('name,want', [
    ('a.TXT', 'text prose  '), ('a.md.zst', 'text prose  zst'), ('x.tar.gz', None), ('gz', None), ('.gz', None),
    ('a.rs.gz', 'text code rust gz'), ('a.htm', 'html html  '), ('LICENSE', 'text licence  '),
    ('LICENSE.md', 'text licence  '), ('license.py', 'text code python '), ('notice.jsonl', 'jsonl prose  '),
    ('Dockerfile', 'text code docker '), ('CMakeLists.txt', 'text code cmake '), ('a', None), ('a.warc.wat.gz', None),
    ('README', 'text prose  '), ('c4-train.00000-of-01024.json.gz', 'json prose  gz'), ('UNLICENSE', 'text licence  ')])
def test_file_types(name, want):
    got = file_type(f'some/{name}')
    assert (got and ' '.join(got)) == want

def test_languages():
    assert len(set(LANGUAGES.values())) >= 40
    assert all(suffix == suffix.lower() for suffix in LANGUAGES)

@pytest.mark.parametrize('text,want', [
    ('MIT License\n\nPermission is hereby granted, free of charge, to any person obtaining a copy', 'MIT'),
    ('Permission is hereby granted, free of charge,\n to any person obtaining a copy', 'MIT'),
    ('                  Apache License\n            Version 2.0, January 2004', 'Apache-2.0'),
    ('GNU GENERAL PUBLIC LICENSE\n Version 2, June 1991 ... GNU Lesser General Public License', 'GPL-2.0'),
    ('GNU GENERAL PUBLIC LICENSE Version 3 ... GNU Affero General Public License', 'GPL-3.0'),
    ('GNU LESSER GENERAL PUBLIC LICENSE Version 2.1', 'LGPL-2.1'),
    ('GNU AFFERO GENERAL PUBLIC LICENSE Version 3', 'AGPL-3.0'),
    ('Redistribution and use in source and binary forms, with', 'BSD-2-Clause'),
    ('Redistribution and use in source and binary forms ... Neither the name of', 'BSD-3-Clause'),
    ('Mozilla Public License Version 2.0', 'MPL-2.0'),
    ('ISC License\nPermission to use, copy, modify, and/or distribute this software', 'ISC'),
    ('This is free and unencumbered software released', 'Unlicense'),
    ('Creative Commons Attribution-NonCommercial-ShareAlike 3.0', 'CC-BY-NC-SA-3.0'),
    ('Creative Commons Attribution 4.0 International', 'CC-BY-4.0'), ('CC0 1.0 Universal', 'CC0-1.0'),
    ('Boost Software License - Version 1.0', 'BSL-1.0'),
    ('SPDX-License-Identifier: GPL-2.0-only WITH Linux-syscall-note', 'GPL-2.0-only WITH Linux-syscall-note'),
    ('You may not use this.', ''), ('', ''),
    ('GNU General Public License as published by the Free Software Foundation, either version 2 of the License, or '
     '(at your option) any later version.', 'GPL-2.0-or-later'),
    ('This file is under the GNU Lesser General Public License, version 2.1 only.', 'LGPL-2.1-only'),
    ('Apache License v2.0 ... https://www.apache.org/licenses/LICENSE-2.0', 'Apache-2.0'),
    ('Eclipse Public License - v 2.0', 'EPL-2.0'), ('SIL OPEN FONT LICENSE Version 1.1', 'OFL-1.1'),
    ('Code and text are under the MIT license.', 'MIT'), ('The MIT License or the ISC License', 'MIT OR ISC'),
    ('Dual licensed under the MIT license and the Apache License, Version 2.0.', 'MIT OR Apache-2.0'),
    ('Programs: BSD-2-Clause. Manuals: GNU Free Documentation License, Version 1.3', 'BSD-2-Clause AND GFDL-1.3')])
def test_licences(text, want): assert identify_licence(text) == want

FREE_TEXT = (
    'Permission is hereby granted, free of charge, to any person obtaining a copy of this software, to deal in the '
    'Software without restriction, subject to this permission notice.')

@pytest.mark.parametrize('text,want', [
    ('Attribution-NonCommercial-NoDerivatives 4.0 International\n\n' + '=' * 60, 'CC-BY-NC-ND-4.0'),
    ('Creative Commons Legal Code\n\nAttribution-NoDerivs 3.0 Unported', 'CC-BY-ND-3.0'),
    ('Creative Commons Attribution Share Alike 2.5', 'CC-BY-SA-2.5'),
    ('Creative Commons Attribution Non-Commercial No Derivatives 2.0 Generic', 'CC-BY-NC-ND-2.0'),
    ('All of it is under CC BY-SA 4.0.', 'CC-BY-SA-4.0'), ('cc-by-nc-sa-3.0', 'CC-BY-NC-SA-3.0'),
    ('[terms](http://creativecommons.org/licenses/by-nd/3.0/us/)', 'CC-BY-ND-3.0'),
    ('<a rel="license" href="https://creativecommons.org/licenses/by/4.0">', 'CC-BY-4.0'),
    ('https://creativecommons.org/publicdomain/zero/1.0/', 'CC0-1.0'),
    ('Creative Commons Legal Code\n\nCC0 1.0 Universal\nCREATIVE COMMONS CORPORATION IS NOT A LAW FIRM', 'CC0-1.0'),
    ('Namensnennung - Nicht kommerziell 4.0 International', 'CC-BY-NC-4.0'), ('SSPL-1.0', 'SSPL-1.0'),
    ('Licencia Creative Commons Atribución-NoComercial 4.0 Internacional', 'CC-BY-NC-4.0'),
    ('CC BY-NC', 'LicenseRef-CC-BY-NC'), ('Shared with a Creative Commons licence.', ''),
    ('Code: MIT License. Data: CC BY-NC 4.0.', 'MIT AND CC-BY-NC-4.0'),
    ('MIT License\n' + FREE_TEXT * 20 + '\nPictures: CC BY-ND 4.0', 'MIT AND CC-BY-ND-4.0')])
def test_creative_commons_keeps_its_conditions(text, want): assert identify_licence(text) == want

BSD_TEXT = (
    'Redistribution and use in source and binary forms, with or without modification, are permitted. Neither the '
    'name of the owner may be used.')

@pytest.mark.parametrize('head', ['NumPy License', 'Project licence', 'Source code of the mill'])
def test_a_project_may_head_a_common_licence_with_its_own_name(head):
    assert identify_licence(f'{head}\n{BSD_TEXT}') == 'BSD-3-Clause'

@pytest.mark.parametrize('text,want', [
    ('Business Source License 1.1\nChange License: Mozilla Public License 2.0', 'BUSL-1.1'),
    ('Server Side Public License\nVERSION 1 ... GNU Affero General Public License', 'SSPL-1.0'),
    ('Elastic License 2.0 (ELv2)', 'Elastic-2.0'),
    ('Available under the Server Side Public License or the Elastic License 2.0', 'SSPL-1.0 OR Elastic-2.0'),
    ('"Commons Clause" License Condition v1.0\nSoftware: Mill\nLicense: Apache License 2.0',
     'Apache-2.0 AND LicenseRef-Commons-Clause'),
    ('MIT License\n' + FREE_TEXT + ' The Software shall be used for Good, not Evil.', 'JSON'),
    ('PolyForm Noncommercial License 1.0.0', 'PolyForm-Noncommercial-1.0.0'),
    (FREE_TEXT + ' Commercial use is not permitted.', 'LicenseRef-Not-Commercial'),
    (FREE_TEXT + ' It is for research purposes only.', 'LicenseRef-Not-Commercial'),
    (FREE_TEXT + ' You may not sell it.', 'LicenseRef-Not-Commercial'),
    ('Apache 2.0, non-profit use only', 'LicenseRef-Not-Commercial'),
    ('MIT License, but you may not use it commercially', 'LicenseRef-Not-Commercial'),
    ('Everything here is free for non-commercial use', 'LicenseRef-Not-Commercial'),
    (FREE_TEXT + ' For any purpose, commercial or non-commercial.', 'MIT'),
    ('Redistribution and use in source and binary forms ... not in a nuclear facility',
     'LicenseRef-BSD-2-Clause-Modified'),
    ('Upstream Compatibility License v. 1.0 (UCL-1.0)\n' + 'It applies to any work. ' * 200 + 'Apache License 2.0',
     'UCL-1.0'),
    ('SENDMAIL LICENSE The following terms apply.\n' + BSD_TEXT, 'Sendmail'),
    ('-----\nUBUNTU FONT LICENCE Version 1.0\n-----\n' + FREE_TEXT, 'Ubuntu-font-1.0'),
    ('The Licensed Fonts may be used.\n' + FREE_TEXT, 'LicenseRef-MIT-Modified'),
    (FREE_TEXT + ' No copy of one or more of the fonts may be sold by itself.', 'LicenseRef-MIT-Modified'),
    ('Redistributions must be allowed under substantially the same terms as this license. ' + BSD_TEXT,
     'LicenseRef-BSD-3-Clause-Modified'),
    ('Q PUBLIC LICENSE version 1.0\n' + BSD_TEXT, 'LicenseRef-Q-Public'),
    ('The Reciprocal Public License 1.5\n' + BSD_TEXT, 'LicenseRef-Reciprocal-Public')])
def test_a_condition_is_never_lost(text, want):
    assert identify_licence(text) == want
    if want != 'MIT': assert not is_permitted(want)

def test_a_page_says_its_licence_in_a_link(tmp_path):
    link = '<a class="x" href="https://creativecommons.org/licenses/by-nc/4.0/" rel="license noopener">terms</a>'
    put(tmp_path, {'LICENSE': b'MIT License', 'a.html': f'<p>Text.</p>{link}'.encode(), 'b.html': b'<p>Text.</p>',
                   'c.html': link.replace('rel=', 'data-x=').encode()})
    found = {Path(d.id).name: d.licence for d in read_sources(tmp_path)}
    assert found == {'LICENSE': 'MIT', 'a.html': 'CC-BY-NC-4.0', 'b.html': 'MIT', 'c.html': 'MIT'}

def is_permitted(name): return licence_rule(View(Doc('x', 'x', licence=name))) is None

def without_versions(name):
    "Return the name of a licence without -only and -or-later."
    return name.split('-only')[0].split('-or')[0]

def licence_of(dist):
    "Return what an installed package states of its licence, and the file with it if there is just one."
    stated = dist.metadata.get('License-Expression') or ''
    files = [f for f in dist.files or () if is_licence(f.name) and '.dist-info' in str(f)]
    return stated, files[0].locate() if len(files) == 1 else None

def test_installed_packages_and_the_texts_of_the_system():
    "Hold the licence of every installed package against the name in its metadata."
    n_right = 0
    wrong = []
    for dist in metadata.distributions():
        stated, file = licence_of(dist)
        if not stated or ' ' in stated or file is None: continue
        found = identify_licence(file.read_text(errors='replace'))
        if without_versions(found) == without_versions(stated): n_right += 1
        elif found: wrong.append((dist.name, stated, found))
    assert n_right > 10 * len(wrong), wrong

@pytest.mark.parametrize('name, want', [
    ('Apache-2.0', 'Apache-2.0'), ('GPL-2', 'GPL-2.0'), ('GPL-3', 'GPL-3.0'), ('LGPL-2.1', 'LGPL-2.1'),
    ('LGPL-3', 'LGPL-3.0'), ('MPL-2.0', 'MPL-2.0'), ('CC0-1.0', 'CC0-1.0'), ('GFDL-1.3', 'GFDL-1.3'),
    ('BSD', 'BSD-3-Clause')])
def test_the_licences_of_the_system(name, want):
    path = Path('/usr/share/common-licenses', name)
    if not path.exists(): pytest.skip(f'no {path}')
    assert identify_licence(path.read_text()) == want

@pytest.mark.parametrize('name', [
    'LICENSE', 'LICENCE.txt', 'license.md', 'LICENSE-APACHE', 'LICENSE_1_0.txt', 'COPYING.LESSER', 'COPYING3',
    'licenses.txt', 'NOTICE', 'notice.md', 'UNLICENSE', 'Copyright.txt', 'LICENSE.numpy', 'license-3rdparty.txt',
    'LICENSE-CC-BY-NC-4.0'])
def test_licence_files(name): assert is_licence(name)

@pytest.mark.parametrize('name', [
    'noticeboard.txt', 'copyright-history.md', 'licence-plates.md', 'licensed.txt', 'noticing.md',
    'license-to-kill.txt', 'copying-machines.md', 'notice-of-meeting.txt', 'licensing.md',
    'notices_of_the_town.txt', 'license.py', 'copyrighted_works.txt'])
def test_texts_about_something_else(name): assert not is_licence(name)

def test_a_licence_is_found_upwards_and_not_above_the_source(tmp_path):
    put(tmp_path, {
        'LICENSE': b'Apache License Version 2.0', 'src/a/b.c': b'int x;', 'src/own/COPYING': b'ISC License',
        'src/own/c.c': b'int y;', 'src/own/d.c': b'// SPDX-License-Identifier: MIT\n',
        'src/two/LICENSE-MIT': b'MIT License',
        'src/two/LICENSE-APACHE': b'Apache License Version 2.0', 'src/two/e.c': b'int z;'})
    below = {Path(d.id).name: d.licence for d in read_sources(tmp_path/'src')}
    assert below == {'b.c': '', 'COPYING': 'ISC', 'c.c': 'ISC', 'd.c': 'MIT', 'LICENSE-MIT': 'MIT',
                     'LICENSE-APACHE': 'Apache-2.0', 'e.c': 'Apache-2.0, MIT'}
    from_above = {Path(d.id).name: d.licence for d in read_sources(tmp_path)}
    assert from_above['b.c'] == 'Apache-2.0'
    assert Licences().of(tmp_path/'src'/'a'/'b.c') == ''
    assert spdx_line('# nothing') == ''


# --- pages ---

WORDS = {'koi8-r': 'Привет', 'cp1251': 'Привет', 'shift_jis': '日本語', 'gb18030': '中文', 'euc_kr': '한국어',
         'big5': '中文'}

@pytest.mark.parametrize('codec,label', [('utf-8', 'utf-8'), ('cp1252', 'iso-8859-1'), ('koi8-r', 'KOI8-R'),
                                         ('shift_jis', 'Shift_JIS'), ('gb18030', 'gb2312'), ('euc_kr', 'euc-kr'),
                                         ('utf-16', 'utf-16'), ('cp1251', 'windows-1251'), ('big5', 'Big5')])
def test_pages_in_the_encoding_they_declare(codec, label):
    word = WORDS.get(codec, 'größer')
    page = f'<html><head><meta charset={label}></head><p>{word}'
    other = page.replace(label, 'x') # the page says nothing of use, the server does
    assert decode_page(page.encode(codec), 'p') == page
    assert decode_page(other.encode(codec), 'p', declared=label) == other

def test_an_encoding_that_takes_pages_apart_is_not_used():
    for label in ('unicode_escape', 'punycode', 'utf-7', 'zip', 'rot13', 'idna', 'undefined', 'x' * 39, '../../etc'):
        page = f'<meta charset={label}><p>plain \\x41 +AEE-'
        assert decode_page(page.encode(), 'p') == page
    assert decode_page(b'<p>' + b'\xff' * 50, 'p').reason == 'not UTF-8'
    assert decode_page(b'<p>a\0', 'p').reason == 'binary'
    assert decode_page('größer '.encode() * 300 + b'\xff', 'p').endswith('\ufffd')

def test_one_bad_record_costs_one_record():
    packed = HTML + '\r\nContent-Encoding: gzip'
    records = [ # page, headers, what becomes of it
        (b'<p>fine', HTML + '; charset=utf-8', 'read'),
        (gzip.compress(b'<p>packed')[:20], packed, 'damaged'),
        (b'<p>decoded already', packed, 'read'),
        (b'<p>decoded already', HTML + '\r\nTransfer-Encoding: chunked', 'read'),
        (gzip.compress(b'<p>packed'), packed, 'read'),
        (b'', HTML + '\r\nContent-Encoding: identity', 'empty'),
        (b'no HTTP', '', 'no page'),
        (b'<p>gone', 'HTTP/1.1 410 Gone\r\nContent-Type: text/html', 'no page'),
        (b'{}', 'HTTP/1.1 200 OK\r\nContent-Type: application/json', 'unknown type'),
        (b'<p>end', HTML + '; charset=utf-8', 'read')]
    data = b''.join(as_warc([page], http) for page, http, _ in records)
    assert reasons(read_warc(stream(data), 'f', 'f')) == [want for _, _, want in records]

def plain_lines(data, limit=10**9):
    "Return each line with its position, and None for a line that is too long."
    res, at = [], 0
    for line in data.splitlines(True):
        res.append((at, line if len(line) <= limit else None))
        at += len(line)
    return res

def test_lines_of_any_length():
    rng = random.Random(0)
    for _ in range(100):
        data = bytes(rng.choices(b'ab\n', k=rng.randint(0, 150)))
        assert list(read_lines(stream(data))) == plain_lines(data)
        assert list(read_lines(stream(data), limit=4)) == plain_lines(data, limit=4)

def test_streams_close_their_files(tmp_path):
    (tmp_path/'a.txt.gz').write_bytes(gzip.compress(b'x'))
    with open_stream(tmp_path/'a.txt.gz') as f: inner = f.raw.file
    assert inner.closed


# --- encodings that nobody declared, or declared wrongly ---

MILL = {
    'cp1252': 'Der Müller ging früh zur Mühle, weil das Wasser später über die Brücke stieg. “So hoch”, sagte er '
              '– 5 €.',
    'iso-8859-2': 'Młynarz poszedł wcześnie rano do młyna, bo woda była wysoka. Później przyniosła mu chleb i '
                  'ser żółty.',
    'cp1251': 'Мельник рано утром пошёл к мельнице, потому что после дождя вода поднялась высоко.',
    'koi8-r': 'Мельник рано утром пошёл к мельнице, потому что после дождя вода поднялась высоко.',
    'koi8-u': 'Їжак і лисиця жили біля річки, і їм було добре; ґава ж літала над млином і стежила за всіма.',
    'cp1125': 'Їжак і лисиця жили біля річки, і їм було добре; ґава ж літала над млином і стежила за всіма.',
    'cp1253': 'Ο μυλωνάς πήγε νωρίς το πρωί στον μύλο γιατί το νερό ήταν ψηλά.',
    'shift_jis': '粉屋は朝早く水車小屋へ行った。雨のあとで川の水が増え、車輪がまた回り始めたからである。',
    'gb18030': '磨坊主清晨就去了水磨，因为下雨之后河水涨高了，轮子终于又转了起来。',
    'euc_kr': '방앗간 주인은 비가 온 뒤 물이 높아져서 아침 일찍 물레방아로 갔다.'}

@pytest.mark.parametrize('codec', MILL)
@pytest.mark.parametrize('declared', ['', '<meta charset="utf-8">', '<meta charset="iso-8859-1">'])
def test_a_page_is_read_in_the_encoding_that_it_is_in(codec, declared):
    page = f'<html><head>{declared}</head><body><p>{MILL[codec]}</p></body></html>'
    assert decode_page(page.encode(codec), 'p') == page

def test_drawn_tables_stay_what_they_are():
    table = '╓──────╖ Мельник рано утром ╢ пошёл к мельнице ╟ потому что вода ╖ поднялась высоко'
    assert decode_text(table.encode('koi8-r'), 'f') == table

@pytest.mark.parametrize('label', ['koi8-r', 'koi8-u'])
def test_ukrainian_is_read_right_whatever_the_page_says_of_its_encoding(label):
    page = f'<meta charset="{label}"><p>{MILL["koi8-u"]}'
    assert decode_page(page.encode('koi8-u'), 'p') == page

def test_utf8_is_recognised_under_a_wrong_name():
    page = '<meta charset="iso-8859-1"><p>größer, früher, später, höher'
    assert decode_page(page.encode(), 'p') == page
    assert decode_page(page.encode(), 'p', declared='windows-1252') == page

@pytest.mark.parametrize('codec', ['utf-16', 'utf-32', 'utf-8-sig'])
def test_a_byte_order_mark_says_the_encoding(tmp_path, codec):
    put(tmp_path, {
        'a.txt': 'größe 漢字\n'.encode(codec), 'b.html': '<p>größe 漢字'.encode(codec),
        'c.csv': 'n,text\n1,größe 漢字\n'.encode(codec), 'd.tsv': 'text\tn\ngröße 漢字\t1\n'.encode(codec),
        'e.jsonl': '{"text": "größe 漢字"}\n{"text": "größe 漢字"}\n'.encode(codec)})
    docs = list(read_sources(tmp_path))
    assert [t.strip().removeprefix('<p>') for t in texts(docs)] == ['größe 漢字'] * 6
    assert read_units(plan_units(tmp_path, 20)) == docs # a file in UTF-16 is not cut at bytes that look like a line end

def test_text_in_an_older_encoding_is_read_if_there_is_enough_of_it(tmp_path):
    for codec, text in MILL.items(): assert decode_text(text.encode(codec), 'f') == text
    assert decode_text('Größe'.encode('cp1252'), 'f').reason == 'not UTF-8'

@pytest.mark.parametrize('data', [
    b'\xff' * 60, b'\xff\xfe' + bytes(range(256)), b'\x89PNG\r\n\x1a\n' + bytes(range(128, 256)) * 3,
    random.Random(1).randbytes(500), zlib.compress(b'many words of text ' * 50 + bytes(range(256)))])
def test_what_is_no_text_is_set_aside(data):
    assert decode_text(data, 'f').reason in ('binary', 'not UTF-8')
    assert decode_page(data, 'f').reason in ('binary', 'not UTF-8')

def test_utf16_that_breaks_off_keeps_what_came_before(tmp_path):
    (tmp_path/'a.jsonl').write_bytes('{"text": "whole"}\n{"text": "half"}\n'.encode('utf-16')[:-5])
    got = list(read_file(tmp_path/'a.jsonl'))
    assert texts(got) == ['whole']
    assert reasons(got)[-1] in ('not UTF-8', 'broken JSON')
    plain = stream(b'no mark')
    assert as_utf8(plain) is plain


# --- records of a crawl ---

def a_record(kind, block, content_type, n=1, length=None, more=''):
    head = (f'WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Record-ID: <urn:uuid:{n}>\r\nWARC-Target-URI: http://a.org/{n}\r\n'
            f'{more}' + (f'Content-Type: {content_type}\r\n' if content_type else '') +
            f'Content-Length: {len(block) if length is None else length}\r\n\r\n')
    return head.encode() + block + b'\r\n\r\n'

PAGE = b'<html><body><p>The mill stands by the river.</p></body></html>'
HTTP = 'application/http; msgtype=response'
def an_answer(*headers, body=PAGE): return '\r\n'.join(('HTTP/1.1 200 OK', *headers, '', '')).encode() + body
def crawl(*records): return list(read_warc(stream(b''.join(records)), 'f', 'f'))

@pytest.mark.parametrize('kind,block,content_type,want', [
    ('resource', PAGE, 'text/html', 'html'), ('resource', PAGE, 'Text/HTML; Charset=UTF-8', 'html'),
    ('resource', b'Plain text.', 'text/plain', 'prose'), ('resource', PAGE, '', 'html'),
    ('conversion', b'Plain text.', 'text/plain', 'prose'), ('conversion', PAGE, 'APPLICATION/XHTML+XML', 'html'),
    ('response', an_answer('Content-Type: TEXT/HTML;charset=utf-8'), 'Application/HTTP;msgtype=response', 'html'),
    ('response', an_answer('content-type: text/plain', body=b'Plain text.'), HTTP, 'prose'),
    ('resource', b'%PDF-1.7', 'application/pdf', 'unknown type'),
    ('conversion', b'\x89PNG', 'image/png', 'unknown type'),
    ('response', b'10.0.0.1', 'text/dns', 'unknown type'),
    ('revisit', an_answer('Content-Type: text/html', body=b''), HTTP, 'no page'),
    ('continuation', b'the rest', 'text/html', 'no page')])
def test_every_record_with_content_is_a_document_or_set_aside(kind, block, content_type, want):
    got, = crawl(a_record(kind, block, content_type))
    assert (got.kind if isinstance(got, Doc) else got.reason) == want

def test_records_about_the_crawl_are_passed_over():
    about = [a_record(kind, b'software: x', 'application/warc-fields') for kind in ('warcinfo', 'request', 'metadata')]
    assert reasons(crawl(*about, a_record('resource', PAGE, 'text/html'))) == ['read']

def chunked(data): return b'%x\r\n%s\r\n0\r\n\r\n' % (len(data), data)

@pytest.mark.parametrize('headers,body', [
    (['Transfer-Encoding: chunked'], PAGE), (['Transfer-Encoding: chunked'], chunked(PAGE)),
    (['Content-Encoding: gzip'], PAGE), (['Content-Encoding: GZIP'], gzip.compress(PAGE)),
    (['Content-Encoding: br'], PAGE), (['Content-Encoding: deflate'], zlib.compress(PAGE)),
    (['Content-Encoding: deflate'], zlib.compress(PAGE)[2:-4]), (['Content-Encoding: x-gzip'], gzip.compress(PAGE)),
    (['Content-Encoding: deflate'], gzip.compress(PAGE)), (['Content-Encoding: gzip'], zlib.compress(PAGE)),
    (['Transfer-Encoding: chunked', 'Content-Encoding: deflate'], chunked(zlib.compress(PAGE)[2:-4])),
    (['Transfer-Encoding: chunked', 'Content-Encoding: gzip'], PAGE),
    (['Transfer-Encoding: chunked', 'Content-Encoding: gzip'], chunked(PAGE)),
    (['Transfer-Encoding: chunked', 'Content-Encoding: gzip'], gzip.compress(PAGE)),
    (['Transfer-Encoding: chunked', 'Content-Encoding: gzip'], chunked(gzip.compress(PAGE)))])
def test_a_body_is_unpacked_as_far_as_it_is_packed(headers, body):
    doc, = crawl(a_record('response', an_answer('Content-Type: text/html', *headers, body=body), HTTP))
    assert doc.text == PAGE.decode()

def test_a_body_that_lost_its_end_is_read_where_the_crawl_says_that_it_cut_it():
    block = an_answer('Content-Type: text/html', 'Content-Encoding: gzip', body=gzip.compress(PAGE * 50)[:-20])
    assert reasons(crawl(a_record('response', block, HTTP))) == ['damaged']
    doc, = crawl(a_record('response', block, HTTP, more='WARC-Truncated: length\r\n'))
    assert doc.meta['cut'] == 'length'

ANSWER = an_answer('Content-Type: text/html')
SECOND, THIRD = [a_record('response', ANSWER, HTTP, n) for n in (2, 3)]

@pytest.mark.parametrize('n_extra,others,want', [
    (20, [SECOND], ['read', 'damaged']),
    (60, [SECOND], ['read', 'damaged']),
    (4 + len(SECOND), [SECOND], ['read', 'read']),
    (4 + len(SECOND) + len(THIRD), [SECOND, THIRD], ['read', 'read', 'read'])], ids=['20', '60', 'all', 'two'])
def test_a_record_that_another_swallowed_is_not_lost_in_silence(n_extra, others, want):
    greedy = a_record('response', ANSWER, HTTP, 1, len(ANSWER) + n_extra)
    got = crawl(greedy, *others)
    assert reasons(got)[:len(want)] == want
    assert len(got) <= len(want) + 1
    assert all(text == PAGE.decode() for text in texts(got))


@pytest.mark.parametrize('head,end', [
    ('HTTP/1.1 200 OK\nContent-Type: text/html', '\n\n'), ('HTTP/1.1 200 OK\r\nContent-Type: text/html', '\n\n'),
    ('HTTP/1.1 200 OK\nContent-Type: text/html\r\nX-Y: z', '\r\n\r\n'),
    ('HTTP/1.1 200 OK\nContent-Type: text/html', '\r\n\n')])
def test_a_head_may_end_its_lines_as_it_likes(head, end):
    page = PAGE + b'\n\nThe end.\r\n\r\n'
    doc, = crawl(a_record('response', f'{head}{end}'.encode() + page, HTTP))
    assert doc.text == page.decode()

RANDOM_PAGES = [b'<p>' + random.Random(i).randbytes(300).hex().encode() for i in range(7)]

def archives_of(pages, pack): return [pack(as_warc([page], prefix=str(i))) for i, page in enumerate(pages)]

def damaged(archive, where):
    "Return an archive with two changed bytes at a place."
    bad = bytearray(archive)
    at = len(bad) // 2 if where == 'middle' else where
    bad[at] ^= 0x55
    bad[at + 1] ^= 0x33
    return bytes(bad)

@pytest.fixture(params=[0, 3, 6])
def damaged_number(request): return request.param

def damaged_crawl(file, packing, where, number):
    "Write seven archives one after another, of which one is damaged; return what is read."
    archives = archives_of(RANDOM_PAGES, PACK[packing])
    archives[number] = damaged(archives[number], where)
    file.write_bytes(b''.join(archives))
    return list(read_file(file)), len(archives[number])

@pytest.mark.parametrize('packing', [name for name in PACK if name != 'zst'])
@pytest.mark.parametrize('where', [0, 1, 25, 'middle', -6])
def test_a_damaged_archive_costs_one_record_of_a_crawl(tmp_path, packing, where, damaged_number):
    got, _ = damaged_crawl(tmp_path/f'crawl.warc.{packing}', packing, where, damaged_number)
    pages = [page.decode() for page in RANDOM_PAGES]
    bad = pages.pop(damaged_number)
    assert [text for text in texts(got) if text != bad] == pages

@pytest.mark.parametrize('packing', [name for name in PACK if name != 'zst'])
@pytest.mark.parametrize('where', [0, 1, 25, 'middle', -6])
def test_a_damaged_archive_is_named_with_its_size(tmp_path, packing, where, damaged_number):
    f = tmp_path/f'crawl.warc.{packing}'
    got, n_bytes = damaged_crawl(f, packing, where, damaged_number)
    lost, = [record for record in got if isinstance(record, Reject)]
    assert path_id(f) in lost.id
    is_last = damaged_number == 6
    assert (lost.reason, lost.n_bytes) == ('damaged', n_bytes) or is_last

@pytest.mark.parametrize('where', [0, 1, 25, 'middle', -6])
def test_damage_that_no_checksum_shows_costs_no_other_record(tmp_path, where, damaged_number):
    got, _ = damaged_crawl(tmp_path/'crawl.warc.zst', 'zst', where, damaged_number)
    assert len(got) == 7

def read_archives(*archives):
    "Read the records of .gz archives that stand one after another."
    unpacked = Unpacked(io.BytesIO(b''.join(archives)), 'gz')
    return list(read_warc(io.BufferedReader(unpacked), 'f', 'f'))

@pytest.fixture
def five_archives():
    "Return five archives; those in the second and third place are damaged."
    archives = archives_of(RANDOM_PAGES[:5], gzip.compress)
    for i in (1, 2): archives[i] = archives[i][:40] + b'\xff' * 4 + archives[i][44:]
    return archives

def test_each_damaged_archive_counts_once(five_archives):
    first, bad, also_bad, *_ = five_archives
    got = read_archives(*five_archives)
    assert reasons(got) == ['read', 'damaged', 'damaged', 'read', 'read']
    start = len(first)
    assert (got[1].id, got[1].n_bytes) == (f'f@{start}', len(bad))
    assert (got[2].id, got[2].n_bytes) == (f'f@{start + len(bad)}', len(also_bad))

def test_damaged_archives_alone_count_once(five_archives):
    _, bad, also_bad, *_ = five_archives
    assert reasons(read_archives(bad, also_bad)) == ['damaged', 'damaged']
    assert reasons(read_archives(bad)) == ['damaged']
    assert reasons(read_archives(b'no archive')) == ['damaged']

def test_a_damaged_record_is_set_aside_although_its_text_came_out():
    good = gzip.compress(as_warc([PAGE]))
    bad = good[:-6] + b'??' + good[-4:]
    assert reasons(read_archives(bad, good)) == ['damaged', 'read']

def test_what_a_crawl_loses_names_the_file_and_the_place():
    first = a_record('resource', PAGE, 'text/html')
    got = crawl(first, a_record('resource', b'%PDF-1.7', 'application/pdf', 2))
    assert (got[0].id, got[0].place, got[1].id) == ('urn:uuid:1', 'f:0', f'f:{len(first)}')


# --- where it was, how much it was ---

def test_records_with_names_of_their_own_say_where_they_are(tmp_path):
    put(tmp_path, {'a.jsonl': b'{"text": "one", "id": 7}\n{"text": "two"}\n{"text": "three", "source": "wiki"}\n',
                   'b.csv': b'id,text\nx,four\n'})
    placed = {d.text: d.place.removeprefix(f'{path_id(tmp_path)}/') for d in read_sources(tmp_path)}
    assert placed == {'one': 'a.jsonl:0', 'two': '', 'three': 'a.jsonl:41', 'four': 'b.csv:1'}

@pytest.mark.parametrize('line,why', [
    (b'{"text": null}', "expected a string in 'text', got null"),
    (b'{"text": 3}', "expected a string in 'text', got a number"),
    (b'{"text": ["a"]}', "expected a string in 'text', got a list"), (b'[1]', 'expected an object, got a list'),
    (b'{"body": "a", "n": 1}', "expected a field 'text', got body, n"),
    (b'{}', "expected a field 'text', got no field at all")])
def test_a_record_without_a_text_says_what_stands_there(line, why):
    got, = read_jsonl(stream(line + b'\n'), 'f', 'f')
    assert (got.reason, got.value, got.n_bytes) == ('no text', why, len(line) + 1)

def test_tables_say_what_is_missing(tmp_path):
    import pyarrow as pa, pyarrow.parquet as pq
    pq.write_table(pa.table({'text': ['one', None], 'n': [1, 2]}), tmp_path/'a.parquet')
    lost = list(read_file(tmp_path/'a.parquet'))[1]
    assert (lost.reason, lost.value) == ('no text', "expected a string in 'text', got null")
    short = list(read_csv(stream(b'id,text\n7\n'), 'f', 'f'))[0]
    assert short.value == "cells in the row: 1; 'text' is column 2"

@pytest.mark.parametrize('name', ['a.txt.gz', 'a.html.gz'])
def test_a_text_without_its_end_is_one_document(tmp_path, name):
    put(tmp_path, {name: gzip.compress(b'The mill stands by the river. ' * 50)[:-5]})
    doc, lost = read_sources(tmp_path)
    assert lost.part_of == doc.id and lost.reason == 'truncated' and lost.n_bytes is None

def test_what_is_lost_has_a_size(tmp_path):
    files = {'a.bin.txt': b'a\0b', 'b.jpg': b'picture', 'c.txt': b' \n', 'd.jsonl': b'{"text": \n',
             'e.warc': b'no archive'}
    put(tmp_path, files)
    sizes = {r.id.split('/')[-1].split(':')[0]: r.n_bytes for f in sorted(tmp_path.iterdir()) for r in read_file(f)}
    assert sizes == {name: len(data) for name, data in files.items()}


# --- what may not be read ---

def test_a_folder_that_may_not_be_listed_is_named(tmp_path, monkeypatch):
    put(tmp_path, {'secret/b.txt': b'y'})
    def deny(f):
        def inner(path, *args, **kwargs):
            if 'secret' in os.fspath(path): raise PermissionError(13, 'Permission denied')
            return f(path, *args, **kwargs)
        return inner
    for name in ('scandir', 'listdir'): monkeypatch.setattr(os, name, deny(getattr(os, name)))
    for source in (tmp_path/'secret', tmp_path, f'{tmp_path}/secret/*.txt'):
        with pytest.raises(UserError, match="allowed to read '.*secret.*Permission denied"):
            read_sources(source)


IDS = ('related-work', 'cookies', 'login', 'tags', 'menu', 'author', 'comments', 'share-data', 'navigation', 'print')
MANUAL = '<p>' + 'The server answers each request with a page and keeps a copy of it. ' * 8 + '</p>'


OPEN_TAGS = ['<section id="{}">', '<div class="section" id="{}">', '<section class="level2" id="{}">']
ADVICE = '<p>Set it in the request; it is read again when the page is loaded.</p>'

@pytest.mark.parametrize('open_tag', OPEN_TAGS)
@pytest.mark.parametrize('id', IDS)
def test_a_section_named_after_its_heading_is_text(id, open_tag):
    heading = id.replace('-', ' ').capitalize()
    tag = open_tag.format(id)
    end = '</section>' if tag.startswith('<section') else '</div>'
    section = f'{tag}<h2>{heading}<a href="#{id}">¶</a></h2>{ADVICE}{end}'
    text = extract_html(f'<main><h1>Manual</h1>{MANUAL}{section}</main>')
    assert heading in text
    assert 'Set it in the request' in text


NEWSLETTER = '<p>The best of the week in your box, each Friday, free of any charge.</p><form><input></form>'
RELATED = '<ul><li><a href="/a">The other mill</a></li><li><a href="/b">A third one</a></li></ul>'
COMMENTS = '<p>What a wonderful page about mills this is, thank you for it!</p>'
VILLAGE = '<p>The fair begins on the first Sunday of the month, as it did before.</p>'

@pytest.mark.parametrize('block', [
    f'<div id="newsletter"><h3>Newsletter</h3>{NEWSLETTER}</div>',
    f'<section id="related"><h2>Related</h2>{RELATED}</section>',
    f'<div id="comments" class="comments-area"><h2>Comments</h2>{COMMENTS}</div>',
    f'<div id="sidebar"><h3>More from the village</h3>{VILLAGE}</div>'])
def test_a_block_beside_the_text_goes_although_it_has_a_heading(block):
    beside = extract_html(f'<body><main><h1>Manual</h1>{MANUAL * 2}</main>{block}</body>')
    inside = extract_html(f'<body><article><h1>Manual</h1>{MANUAL * 2}{block}</article></body>')
    for word in ('Friday', 'third one', 'wonderful', 'Sunday'):
        assert word not in beside
        assert word not in inside
