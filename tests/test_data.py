"Data from source to split: bad input, the same in every process, accounting, and slow or published answers."
import ast, gzip, json, random
from collections import Counter
from pathlib import Path
import pytest
from real_data import real_data
from run_program import output_of
from llmbook.core import UserError
from llmbook.filters import presets as rules
from llmbook.clean.pii import mask_personal
from llmbook.clean.text import clean, repair
from llmbook.dedup.near import Deduper, choose_bands, dedup, jaccard, shingles
from llmbook.filters.presets import PRESETS, Drop, check
from llmbook.prepare.splits import assign_splits, split_of
from llmbook.read.sources import Doc, Reject, corpus_fingerprint, docstrings, embedded_corpus, read_sources

@pytest.fixture(scope='module')
def docs(): return list(embedded_corpus(3_000_000))

def put(folder, **files):
    "Write files; '__' in a name stands for the dot."
    for name, content in files.items(): (folder/name.replace('__', '.')).write_bytes(content)
    return folder

def reasons(source): return [(r.reason if isinstance(r, Reject) else 'read') for r in read_sources(source)]


# --- sources: bad input ---

@pytest.mark.parametrize('name,content,reason', [
    ('latin.txt', 'café'.encode('latin-1'), 'not UTF-8'),
    ('cut.txt', 'é'.encode()[:1], 'not UTF-8'),
    ('photo.txt', b'\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR', 'binary'),
    ('empty.txt', b'', 'empty'),
    ('utf8_mark.txt', b'\xef\xbb\xbf', 'empty'),
    ('utf16_mark.txt', b'\xff\xfe', 'empty'),
    ('utf16_mark.jsonl', b'\xff\xfe', 'empty'),
    ('utf32_mark.csv', b'\xff\xfe\x00\x00', 'empty'),
    ('blank.md', b' \n\t\n', 'empty'),
])
def test_a_bad_file_is_set_aside_with_its_reason(tmp_path, name, content, reason):
    (tmp_path/name).write_bytes(content)
    r, = read_sources(tmp_path/name)
    assert isinstance(r, Reject)
    assert r.reason == reason
    assert r.id.endswith(name)

@pytest.mark.parametrize('line,reason', [
    (b'{"text": "cut', 'broken JSON'), (b'{"text": "a"} {"text": "b"}', 'broken JSON'), (b'[' * 100_000, 'broken JSON'),
    (b'{"text": "x", "n": ' + b'9' * 5000 + b'}', 'broken JSON'), (b'{"title": "a"}', 'no text'),
    (b'{"text": null}', 'no text'),
    (b'{"text": ["a"]}', 'no text'), (b'["text"]', 'no text'), (b'7', 'no text'), (b'{"text": "  "}', 'empty'),
    (b'{"text": "\\ud83d"}', 'not UTF-8'), (b'{"text": "\xff"}', 'not UTF-8'), (b'\x00\x01', 'binary'),
])
def test_a_bad_line_does_not_stop_the_lines_after_it(tmp_path, line, reason):
    put(tmp_path, a__jsonl=b'{"text": "before"}\n' + line + b'\r\n\n{"text": "after"}')
    assert reasons(tmp_path/'a.jsonl') == ['read', reason, 'read']
    positions = [r.id.rpartition(':')[2] for r in read_sources(tmp_path/'a.jsonl')]
    assert positions == ['0', '19', str(19 + len(line) + 3)]

def test_a_missing_source_is_refused_before_anything_is_read(tmp_path):
    put(tmp_path, a__txt=b'text')
    for bad in ('no/such/folder', str(tmp_path/'*.md'), tmp_path/'none.txt', 'embeded', 'embedded:x', 'embedded:0',
                'embedded:-5'):
        with pytest.raises(UserError): read_sources([tmp_path/'a.txt', bad])   # not iterated
    with pytest.raises(UserError, match='at least one'): read_sources([])

def test_files_that_are_not_read_here(tmp_path):
    put(tmp_path, a__jpg=b'..')
    with pytest.raises(UserError, match='end in'): read_sources(tmp_path/'a.jpg')
    with pytest.raises(UserError, match='end in'): read_sources(tmp_path)
    (tmp_path/'folder.txt').mkdir()
    with pytest.raises(UserError, match='end in'): read_sources(tmp_path)

def test_a_folder_is_read_sorted_without_hidden_files_or_loops(tmp_path):
    for name in ('b/z.txt', 'b/a.md', 'a.PY', '.hidden.txt', '.git/x.txt', 'b/__pycache__/c.py', 'photo.jpg'):
        (tmp_path/name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path/name).write_text('some text')
    (tmp_path/'b'/'loop').symlink_to(tmp_path)
    found = list(read_sources([tmp_path, tmp_path/'b'/'z.txt', f'{tmp_path}/**/*.md']))
    assert [Path(d.id).relative_to(tmp_path).as_posix() for d in found] == ['a.PY', 'b/a.md', 'b/z.txt', 'photo.jpg']
    assert [getattr(d, 'kind', 'set aside') for d in found] == ['code', 'prose', 'prose', 'set aside']

def test_what_a_jsonl_record_may_say(tmp_path):
    first = b'{"text": "a", "id": 7, "kind": "code", "licence": "MIT", "stars": 3}'
    put(tmp_path, a__jsonl=b'\xef\xbb\xbf' + first + b'\n{"text": "b", "kind": "poem", "meta": {"x": 1}}')
    a, b = read_sources(tmp_path/'a.jsonl')
    assert (a.id, a.kind, a.licence, a.meta) == ('7', 'code', 'MIT', {'stars': 3})
    assert (b.kind, b.meta) == ('prose', {'x': 1})

def test_a_byte_order_mark_is_not_text(tmp_path):
    put(tmp_path, a__txt='\ufeffText'.encode())
    assert next(read_sources(tmp_path/'a.txt')).text == 'Text'


# --- the embedded corpus ---

def test_the_corpus_is_the_same_in_every_process():
    first, second = [output_of('corpus_and_duplicates', PYTHONHASHSEED=seed) for seed in '01']
    assert first == second
    assert first.split()[0] == corpus_fingerprint(embedded_corpus(400_000))

def test_a_small_corpus_is_the_beginning_of_a_large_one(docs):
    small = list(embedded_corpus(200_000))
    assert [d.id for d in small] == [d.id for d in docs[:len(small)]]
    assert sum(d.nbytes for d in small) <= 200_000 < sum(d.nbytes for d in docs[:len(small) + 1])
    assert corpus_fingerprint(small) != corpus_fingerprint(reversed(small))

def shares(docs, key):
    "Return the share of the bytes of each value of `key(doc)`."
    total = sum(d.nbytes for d in docs)
    counts = Counter()
    for d in docs: counts[key(d)] += d.nbytes
    return {k: n / total for k, n in counts.items()}

def test_the_corpus_is_balanced_and_says_nothing_of_this_machine(docs):
    ids = [d.id for d in docs]
    assert len(set(ids)) == len(ids)
    for i in ids:
        assert not i.startswith('/')
        assert 'site-packages' not in i
    kinds = shares(docs, lambda d: d.kind)
    assert kinds['code'] > .3
    assert kinds['prose'] > .3
    assert 0 < kinds['licence'] < .1
    packages = shares(docs, lambda d: d.meta['package'])
    assert len(packages) > 30
    assert 'llmbook' not in packages
    assert packages.pop('python') < .3
    assert all(share < .1 for share in packages.values())

def test_no_file_is_there_as_code_and_as_docstrings(docs):
    code = {d.id for d in docs if d.kind == 'code'}
    assert not code & {d.id.removesuffix('#docstrings') for d in docs if d.id.endswith('#docstrings')}

def documented(source):
    "Return the docstrings in a Python source that the parser finds."
    definitions = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = [ast.get_docstring(node) for node in ast.walk(ast.parse(source)) if isinstance(node, definitions)]
    return [text for text in found if text]

def programs(docs): return [d.text for d in docs if d.kind == 'code']

def long_docstrings(text):
    "Return the longer docstrings that Python's parser finds; none where it finds no program."
    try: found = documented(text)
    except (SyntaxError, ValueError): return []
    return [docstring for docstring in found if len(docstring) > 150 and '\\' not in docstring]

def test_docstrings_are_those_that_the_parser_finds(docs):
    n_found = total = 0
    for text in programs(docs)[:80]:
        expected = long_docstrings(text)
        got = docstrings(text)
        n_found += sum(docstring.strip() in got for docstring in expected)
        total += len(expected)
    assert total > 50
    assert n_found > .95 * total, f'{n_found} of {total}'

def test_a_program_without_docstrings(): assert docstrings('x = 1\n') == ''


# --- clean ---

NASTY = ['\r\n', '\r', '\n', '\n\n\n\n\n', '\t', '    ', ' ', '\xa0', '\x00', '\x0c', '\x1b[31m', '\x1b', '\u200b',
         '\u200d', '\ufeff', '\u202e', '\ud800',
         '\u2028', '\x85', '\xad', 'e\u0301', 'é', 'Ã©', 'â€™', 'ÃƒÂ¶', 'a', 'Word', '#', '“', '日本', 'Ã', '\x9d', '👩‍👧']

@pytest.mark.parametrize('kind', ['prose', 'code', 'licence'])
def test_cleaning_twice_is_cleaning_once(kind):
    rng = random.Random(0)
    for _ in range(3000):
        once = clean(Doc(''.join(rng.choices(NASTY, k=rng.randint(1, 12))), 'x', kind=kind))
        assert clean(once).text == once.text
        once.text.encode()
        assert not set(once.text) & set('\r\x00\x0c\x1b\u200b\ufeff\u202e\u2028')

def test_the_whole_corpus_is_clean_after_cleaning(docs):
    once = [clean(d) for d in docs]
    assert all(clean(d) is d for d in once)
    assert any(a is not b for a, b in zip(once, docs))

def shape(tree): return [(type(n).__name__, getattr(n, 'name', getattr(n, 'id', ''))) for n in ast.walk(tree)]

def test_code_means_the_same_after_cleaning(docs):
    for d in [d for d in docs if d.kind == 'code'][:60]:
        try: before = ast.parse(d.text)
        except (SyntaxError, ValueError): continue
        assert shape(ast.parse(clean(d).text)) == shape(before)

def test_code_is_not_repaired_and_prose_is():
    assert clean(Doc("\tx = 'cafÃ©'", 'x', kind='code')).text == "\tx = 'cafÃ©'"
    assert clean(Doc("\tx = 'cafÃ©'", 'x')).text == "\tx = 'café'"

@pytest.mark.parametrize('name', ['in-the-wild', 'synthetic', 'negative', 'language-names'])
def test_ftfys_own_cases(name):
    cases = json.loads(real_data('ftfy_cases', f'{name}.json').read_text(encoding='utf-8'))
    solved = [c for c in cases if c['expect'] == 'pass']
    for c in solved:
        want = c.get('fixed-encoding', c['fixed'])
        assert repair(c['original']) == want, c['label']
    assert len(solved) > 10

def test_damage_on_one_line_leaves_the_others_alone():
    assert repair('naïve façade\ncafÃ©\n“ÂµTorrent”') == 'naïve façade\ncafé\n“µTorrent”'

def test_personal_data():
    people = 'a.b+c@mail.example.org x.y@uni.edu, <z@host.co.uk>;'
    text, counts = mask_personal(f'{people} 8.8.8.8 10.0.0.1 300.1.1.1 1.2.3 2001.1.1.1.1')
    assert text == 'a.b+c@mail.example.org <email>, <<email>>; <ip> 10.0.0.1 300.1.1.1 1.2.3 2001.1.1.1.1'
    assert counts == {'email': 2, 'ip': 1}
    assert mask_personal('@decorator\nW @ h\nx@y\na@b.c(d)')[1] == {}

def test_long_runs_do_not_hang():
    for s in (' ' * 300_000 + 'x', 'a.' * 150_000, 'a' * 300_000 + '@', '1.' * 150_000, '\x1b[' + '0;' * 150_000,
              'a@' + 'b.' * 150_000):
        mask_personal(clean(Doc(s, 'x')).text)
        check(Doc(s, 'x'))
        check(Doc(s, 'x', kind='code'))
        docstrings(s)


# --- filter ---

PROSE = 'It was the best of times, and to be in the town with that old book was a joy that we have not had since.'
ANIMALS = 'cat dog hen pig cow fox owl bee ant elk'.split()
NOUNS = (
    'cat dog hen pig cow fox owl bee ant elk wolf hare swan crow goat lamb toad newt seal lynx mole boar deer duck '
    'frog crab barley oats wheat rye hops malt yeast water copper kettle barrel cellar bottle label crate wagon horse '
    'road town market')
LOREM = (
    ' Lorem ipsum dolor sit amet, consectetur adipiscing elit, sed do eiusmod tempor incididunt ut labore et dolore '
    'magna aliqua, ut enim ad minim veniam, quis nostrud exercitation ullamco laboris nisi ut aliquip ex ea commodo '
    'consequat.')
LONG = ' '.join(f'Sentence {w} is here to be read and it says that the {w} of the house have gone with the {w}s.'
                for w in ANIMALS)

@pytest.mark.parametrize('text,kind,reason', [
    ('', 'prose', 'no_letters'), ('1234 ' * 40, 'prose', 'no_letters'), ('too short', 'prose', 'word_count'),
    ('https://host.example/a/very/long/address ' * 30, 'prose', 'word_length'),
    (LONG + ' #' * 60, 'prose', 'symbol_ratio'),
    ('\n'.join('- ' + s for s in LONG.split('.')), 'prose', 'bullet_lines'),
    (LONG.replace('. ', ' ...\n') + '...', 'prose', 'ellipsis_lines'),
    (LONG + LOREM * 3, 'prose', 'lorem_ipsum'),
    ('one 12:30 | 2024 3,14 || 77% 88% 99% ' * 9, 'prose', 'alphabetic_words'),
    (NOUNS, 'prose', 'stop_words'),
    ('The rain and the sun.\nhave to be\n' * 12, 'prose', 'duplicate_lines'),
    ((LONG + '\n') * 2, 'prose', 'duplicate_line_chars'),
    ('the merchandise of the merchandise of the merchandise of ' * 4, 'prose', 'top_ngram'),
    ('x = 1', 'code', 'word_count'), ('x = 1\n' * 9 + 'y = "' + 'ab ' * 500 + '"', 'code', 'longest_line'),
    ('\n'.join('value = "' + 'abc ' * 40 + '"' for _ in range(9)), 'code', 'mean_line'),
    ('# Code generated by a tool. DO NOT EDIT.\n' + 'import sys\n' * 9, 'code', 'generated'),
    ('{ } [ ] ( ) ; ; - - = = + + a\n' * 9, 'code', 'alphanumeric'),
    ('    0x1F, 0x2E, 17, 255, 128,\n' * 9 + 'x', 'code', 'letters'),
])
def test_every_rule_has_a_text_that_it_drops(text, kind, reason):
    assert check(Doc(text, 'x', kind=kind)).reason == reason

def test_ordinary_text_stays():
    german = 'Gerste, Hafer und Weizen wachsen hinter unserem Haus, und im Sommer ist alles gelb bis an den Wald.'
    generated = '# AUTOGENERATED! DO NOT EDIT! File to edit: ../nbs/00_core.ipynb\n'
    assert check(Doc(LONG, 'x')) is None
    assert check(Doc(PROSE, 'x')) is None
    assert check(Doc(german, 'x', language='de')) is None
    assert check(Doc(generated + 'def first(x): return next(iter(x))\n' * 3, 'x', kind='code')) is None

def test_reasons_are_names_in_the_module_and_presets_are_checked():
    rules = [rule for kinds in PRESETS.values() for rules_of_kind in kinds.values() for rule in rules_of_kind]
    used = {getattr(rule, 'func', rule).__name__ for rule in rules}
    assert len(used) >= 16
    assert all(name.isidentifier() for name in used)
    with pytest.raises(UserError, match='default, gopher, none'): check(Doc('x', 'x'), 'strictest')
    assert check(Doc('one two', 'x'), {'prose': [lambda v: len(v.words)]}) == Drop('<lambda>', 2)
    assert check(Doc('x', 'x'), 'none') is None

def test_most_of_the_embedded_corpus_stays(docs):
    for kind in ('prose', 'code', 'licence'):
        mine = [clean(d) for d in docs if d.kind == kind]
        assert sum(check(d) is None for d in mine) > .9 * len(mine), kind

def test_published_web_text_passes_the_published_rules():
    lines = real_data('web_demo', 'c4_demo.jsonl').read_text(encoding='utf-8').splitlines()
    verdicts = [check(Doc(json.loads(line)['text'], 'x', language='en')) for line in lines]
    kept = verdicts.count(None)
    assert kept > .9 * len(lines), f'{kept} of {len(lines)}'


# --- dedup ---

def every_pair(texts, threshold=.8):
    "Return the label of each text's connected component, by comparing all pairs."
    sets = [shingles(t) for t in texts]
    label = list(range(len(texts)))
    for j in range(len(sets)):
        for i in range(j):
            if jaccard(sets[i], sets[j]) < threshold: continue
            first, second = sorted((label[i], label[j]))
            label = [first if old == second else old for old in label]
    return label

@pytest.fixture(scope='module')
def licence_texts(): return [d.text for d in embedded_corpus(6_000_000) if d.kind == 'licence']

@pytest.fixture(scope='module')
def one_licence_each(licence_texts): return dedup((str(i), text) for i, text in enumerate(licence_texts))

def test_licences_against_every_pair(licence_texts, one_licence_each):
    assert one_licence_each.cluster == every_pair(licence_texts)
    n_kept = sum(one_licence_each.keep)
    assert 5 < n_kept < len(licence_texts)
    n_links = len(licence_texts) - n_kept # links make a forest: one less than members, in every cluster
    assert len(one_licence_each.pairs) == n_links

def test_pairs_of_licences_are_as_similar_as_they_say(licence_texts, one_licence_each):
    for i, j, similarity in one_licence_each.pairs:
        if similarity == 1: continue
        assert similarity == jaccard(shingles(licence_texts[i]), shingles(licence_texts[j]))
        assert similarity >= .8

def lines_of(name):
    "Return the lines of a file of the published near-duplicates that are not blank."
    f = real_data('minhash_near_duplicates', name)
    raw = gzip.decompress(f.read_bytes()) if f.suffix == '.gz' else f.read_bytes()
    return [line for line in raw.decode().splitlines() if line.strip()]

@pytest.mark.parametrize('articles_file,truth_file', [('articles_100.train', 'articles_100.truth'),
                                                      ('articles_1000.train.gz', 'articles_1000.truth')])
def test_published_near_duplicates(articles_file, truth_file):
    articles = [tuple(line.split(' ', 1)) for line in lines_of(articles_file)]
    truth = {frozenset(line.split()) for line in lines_of(truth_file)}
    ids = [id for id, _ in articles]
    r = dedup(articles, threshold=.5)
    assert {frozenset((ids[i], ids[j])) for i, j, _ in r.pairs} == truth

VERSION = ' '.join(f'word{i}' for i in range(200))
EQUAL = [('b', VERSION), ('a', VERSION)]

def test_which_copy_stays():
    others = [('c', VERSION + ' more'), ('d', VERSION.upper() + '\n'), ('e', 'something else')]
    found = dedup(EQUAL + others)
    assert found.keep == [False, False, True, False, True]
    assert found.kept_for == [2, 2, 2, 2, 4]
    assert found.cluster == [0, 0, 0, 0, 4]
    assert found.reason == ['near_duplicate', 'near_duplicate', '', 'near_duplicate', '']

def test_which_equal_copy_stays():
    found = dedup(EQUAL)
    assert found.keep == [False, True]
    assert found.reason == ['exact_duplicate', '']

def test_the_order_of_the_documents_does_not_matter(docs):
    some = docs[:400]
    shuffled = random.Random(1).sample(some, len(some))
    def kept(ds): return {d.id for d, keep in zip(ds, dedup(ds).keep) if keep}
    assert kept(some) == kept(shuffled)

def test_texts_without_words_or_spaces():
    japanese = '日本語の文章は空白がない。' * 9
    r = dedup([('a', ''), ('b', ' '), ('c', '...'), ('d', japanese), ('e', japanese + '終'), ('f', 'one')])
    assert r.cluster == [0, 0, 2, 3, 3, 5]

def test_no_documents_at_all():
    r = dedup([])
    assert r.keep == []
    assert repr(r).startswith('DedupResult(0')

def test_batches_make_no_difference(docs):
    def run(batch):
        d = Deduper(batch=batch)
        for x in docs[:200]: d.add(x.id, x.text)
        return d.result()
    assert run(1) == run(7) == run(1000)

def test_bands():
    for threshold in (.3, .5, .8, .95, 1.):
        bands, rows = choose_bands(threshold)
        missed = (1 - threshold**rows)**bands
        assert bands * rows <= 128
        assert missed <= 1e-3
    for bad in (0, -1, 1.01):
        with pytest.raises(UserError): Deduper(bad)
    with pytest.raises(UserError, match='more hashes'): Deduper(.05)


# --- mix ---

def test_a_split_never_changes():
    assert [split_of(f'key{i}') for i in range(100)].count('train') == 96
    splits = {key: split_of(key, 1, .3, .3) for key in 'abcdef'}
    assert splits == dict(a='train', b='valid', c='test', d='test', e='valid', f='test')

def test_near_duplicates_are_never_separated(docs):
    r = dedup(docs)
    for seed in range(5):
        splits = assign_splits(docs, r.cluster, seed=seed, valid=.2, test=.2)
        assert all(splits[i] == splits[j] for i, j, _ in r.pairs)

def test_packages_are_never_cut(docs):
    splits = assign_splits(docs, by='package', valid=.1, test=.1)
    split_of_package = {}
    for d, split in zip(docs, splits):
        assert split_of_package.setdefault(d.meta['package'], split) == split
    assert set(splits) == {'train', 'valid', 'test'}

def test_a_new_document_moves_no_other(docs):
    assert assign_splits(docs[:-50]) == assign_splits(docs)[:-50]

def test_shares_come_out_and_the_choice_of_files_does_not_bend_them(docs):
    for seed in (42, 1, 2):
        n = Counter(assign_splits(docs, seed=seed, valid=.1, test=.1))
        assert all(.06 < n[s] / len(docs) < .14 for s in ('valid', 'test')), n

def test_small_corpora():
    few = [Doc(f'text {i}', f'{i}') for i in range(3)]
    assert sorted(assign_splits(few)) == ['test', 'train', 'valid']
    assert assign_splits(few[:1]) == ['train']
    assert assign_splits([]) == []
    assert set(assign_splits(few, valid=0, test=0)) == {'train'}

def test_impossible_splits_are_refused():
    few = [Doc(f'text {i}', f'{i}') for i in range(3)]
    with pytest.raises(UserError): assign_splits(few, valid=-.1)
    with pytest.raises(UserError): assign_splits(few, valid=.6, test=.4)
    with pytest.raises(ValueError): assign_splits(few, [0])


# --- together ---

def test_in_is_kept_plus_dropped_plus_rejected(tmp_path):
    other = json.dumps({'text': LONG.replace('cat', 'cow')})
    put(tmp_path,
        a__txt=LONG.encode(),
        b__txt=b'\xff\xfe',
        c__md=f'{LONG}\n'.encode(),
        d__py=b'x = 1\n',
        e__txt=b'',
        f__jsonl=b'{"text": "short"}\n{"text": \n' + other.encode())
    got = list(read_sources([tmp_path, 'embedded:300000']))
    rejected = [r.reason for r in got if isinstance(r, Reject)]
    assert sorted(rejected) == ['broken JSON', 'empty', 'empty'] # b.txt holds the mark of UTF-16 and nothing else

    cleaned = [clean(r) for r in got if isinstance(r, Doc)]
    survivors, dropped = [], Counter()
    for d in cleaned:
        drop = check(d)
        if drop: dropped[drop.reason] += 1
        else: survivors.append(d)

    r = dedup(survivors)
    dropped.update(reason for reason in r.reason if reason)
    assert dropped['exact_duplicate'] >= 1
    kept = [d for d, keep in zip(survivors, r.keep) if keep]
    assert len(got) == len(kept) + dropped.total() + len(rejected)
    assert set(assign_splits(kept)) == {'train', 'valid', 'test'}
