"Rooms 06 and 07 of data: language, licences, word lists, the smoke detector and the n-gram model."
import csv, gzip, json, multiprocessing, os, random, re, subprocess, sys, zipfile, zlib
from functools import partial
from pathlib import Path
from types import SimpleNamespace
import numpy as np
import pytest
from llmbook.core import UserError
from llmbook.filters import content, ngram_lm as ngram, toxicity as smoke
from llmbook.clean import language
from llmbook.read.doc import Doc
from llmbook.filters.ngram_lm import NgramModel

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get('LLMBOOK_DATA', ROOT.parent/'shared/data'))
needs_data = pytest.mark.skipif(not DATA.exists(), reason='needs LLMBOOK_DATA')


def view(text='', **kw): return SimpleNamespace(doc=Doc(text, 'x', **kw), text=text)


def texts(n, seed=0, letters='abcdefgh ijklm NOPQ .,!&@ é ß 猫 \n 12'):
    rng = random.Random(seed)
    return [''.join(rng.choice(letters) for _ in range(rng.randint(0, 700))) for _ in range(n)]


# what workers import must start fast
def test_imports_neither_torch_nor_the_identifier():
    code = 'import sys, llmbook.filters.content, llmbook.clean.language, llmbook.filters.toxicity, llmbook.filters.ngram_lm\n' \
           "print([m for m in ('torch', 'fastai', 'py3langid', 'matplotlib', 'scipy') if m in sys.modules])"
    assert subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True).stdout.strip() == '[]'


# smoke
def by_definition(d, text):
    logits = [d.w[b].sum() / len(b)**.5 + d.bias for b in map(smoke.ngram_buckets, smoke._windows(text)) if len(b)]
    return 1 / (1 + np.exp(-max(logits))) if logits else 0.


def test_smoke_is_what_its_definition_says():
    d = smoke.SmokeDetector()
    some = texts(60) + ['', '  ', '?!', 'a', 'ab', '\ud800', 'RT @x: https://y.z/w &amp;lt; BART @', 'x' * 20_000, 'damn ' * 3000, '&' * 300, 'ſ' * 250]
    assert d(some) == pytest.approx([by_definition(d, t) for t in some], abs=1e-12)


def test_plain_text_by_table():
    for t in texts(300, 1, [chr(c) for c in range(128)]) + texts(50, 2): assert smoke._plain(t) == smoke.plain_text(t)


def test_smoke_names_stay_where_they_were():
    from llmbook.evaluate import toxicity
    for n in ('BITS', 'plain_text', 'ngram_buckets', 'SmokeDetector', 'ASSETS'): assert getattr(toxicity, n) is getattr(smoke, n)


@needs_data
def test_toxicity_rule_on_held_out_tweets():
    with gzip.open(DATA/'davidson_hate_speech/labeled_data.csv.gz', 'rt', encoding='utf-8', newline='') as f: rows = list(csv.DictReader(f))
    rows = [r for r in rows if zlib.crc32(smoke.plain_text(r['tweet']).encode()) % 10 == 9]     # not trained on
    hit = {c: np.mean([content.toxicity(view(r['tweet'])) is not None for r in rows if r['class'] == c]) for c in '012'}
    assert hit['0'] > .6 and hit['1'] > .8 and hit['2'] < .02, hit


@needs_data
def test_toxicity_rule_leaves_plain_pages_alone():
    with open(DATA/'web_demo/c4_demo.jsonl', encoding='utf-8') as f: pages = [json.loads(l)['text'] for l in f]
    assert sum(content.toxicity(view(t)) is not None for t in pages) <= 3


def test_toxicity_is_not_asked_of_code():
    assert content.toxicity(view('damn you', kind='code'), high=-1) is None and content.toxicity(view('damn you'), high=-1) > 0


# language
def test_language_of_what_has_no_letters():
    for t in ('', '   ', '12 345', '!?', '\n\n', '🙂🙂'): assert language.identify(t) == ('zxx', 0.)


def test_language_survives_anything():
    for t in texts(30, 3) + ['\ud800abc', 'a' * 100_000, '\0\0a', 'é' * 3]:
        l, p = language.identify(t)
        assert isinstance(l, str) and 0 <= p <= 1


def test_sample_is_bounded_and_spread():
    assert language.sample_text('abc') == 'abc'
    t = ''.join(chr(97 + i * 26 // 10_000) for i in range(10_000))
    s = language.sample_text(t, 3, 100)
    assert len(s) == 302 and s[0] == 'a' and s[-1] == 'z' and s[151] == t[5000]
    assert language.sample_text(t, 1, 50) == t[:50]


def test_language_rule():
    t = 'The door was closed, and nobody in the house heard a sound until the morning.'
    assert language.language(view(t)) is None
    assert language.language(view(t), allow=['de', 'fr']).startswith('en ')
    assert language.language(view(t), low=1.1).startswith('en ')
    assert language.language(view('1 + 1')) == 'zxx 0.00' and language.language(view('1 + 1', kind='code')) is None
    for allow in ('en', (), ('xx',), ('English',)):
        with pytest.raises(UserError, match='codes of languages'): language.language(view(t), allow=allow)


def _names(t): return language.identify(t)


def test_language_is_the_same_in_another_process():
    some = texts(5, 4) + ['Das Haus am See ist alt.', 'La maison est vieille.']
    here = [language.identify(t) for t in some]
    for kind in ('fork', 'spawn'):
        with multiprocessing.get_context(kind).Pool(1) as pool: assert pool.map(_names, some) == here


@needs_data
def test_language_accuracy():
    "Paragraphs in languages with two-letter codes, against what the library they come from says."
    two = dict(eng='en', deu='de', fra='fr', spa='es', ita='it', por='pt', nld='nl', pol='pl', rus='ru', ukr='uk', ces='cs', swe='sv', dan='da', nob='no',
               fin='fi', hun='hu', ron='ro', tur='tr', arb='ar', pes='fa', hin='hi', cmn='zh', jpn='ja', kor='ko', vie='vi', ell='el', heb='he', tha='th',
               bul='bg', ben='bn', tam='ta', tel='te', swh='sw', est='et', lit='lt', lvs='lv', slk='sk', slv='sl', cat='ca', eus='eu', isl='is', gle='ga')
    with open(DATA/'language_id/franc_fixtures.jsonl', encoding='utf-8') as f: rows = [r for l in f if (r := json.loads(l))['iso6393'] in two]
    right = [language.identify(r['text'])[0] == two[r['iso6393']] for r in rows]
    assert len(right) >= 35 and np.mean(right) >= .95
    z = zipfile.ZipFile(DATA/'language_id/udhr2.zip')
    others = [z.read(n).decode()[1000:1600] for n in z.namelist() if n.endswith('.txt') and 'eng' not in n]
    assert sum(language.language(view(t)) is None for t in others) <= 4            # Scots and Pidgin look like English


# licences
@pytest.mark.parametrize('stated, want', [
    ('MIT', 'MIT'), ('mit', 'MIT'), ('MIT License', 'MIT'), ('The MIT License (MIT)', 'MIT'), ('Expat', 'MIT'), ('License :: OSI Approved :: MIT License', 'MIT'),
    ('Apache 2.0', 'Apache-2.0'), ('Apache License 2.0', 'Apache-2.0'), ('Apache License, Version 2.0', 'Apache-2.0'), ('Apache Software License', 'Apache-2.0'),
    ('apache-2.0', 'Apache-2.0'), ('3-Clause BSD License', 'BSD-3-Clause'), ('New BSD', 'BSD-3-Clause'), ('BSD', 'LicenseRef-BSD'), ('BSD License', 'LicenseRef-BSD'),
    ('ISC License (ISCL)', 'ISC'), ('Python Software Foundation License', 'PSF-2.0'), ('Mozilla Public License 2.0 (MPL 2.0)', 'MPL-2.0'),
    ('The Unlicense (Unlicense)', 'Unlicense'), ('GPLv3', 'GPL-3.0-only'), ('GPL v3', 'GPL-3.0-only'), ('GPLv3+', 'GPL-3.0-or-later'), ('gpl-3.0', 'GPL-3.0'),
    ('GNU General Public License v2 or later (GPLv2+)', 'GPL-2.0-or-later'), ('GNU Lesser General Public License v3 (LGPLv3)', 'LGPL-3.0-only'),
    ('cc-by-4.0', 'CC-BY-4.0'), ('CC BY 4.0', 'CC-BY-4.0'), ('Creative Commons Attribution 4.0 International', 'CC-BY-4.0'), ('CC BY-NC 4.0', 'CC-BY-NC-4.0'),
    ('Creative Commons Attribution-ShareAlike 4.0', 'CC-BY-SA-4.0'), ('CC0 1.0 Universal (CC0 1.0) Public Domain Dedication', 'CC0-1.0'),
    ('MIT License, BSD License', 'MIT AND LicenseRef-BSD'), ('MIT, proprietary', ''), ('mit or apache-2.0', 'MIT OR Apache-2.0'),
    ('', ''), ('  ', ''), ('other', ''), ('All rights reserved', ''), ('unknown', ''), (',,', ''), ('MIT OR', ''), ('(' * 300 + 'MIT' + ')' * 300, ''), ('x' * 10_000, '')])
def test_spdx(stated, want): assert content.spdx(stated) == want


def test_spdx_takes_whatever_comes():
    rng = random.Random(0)
    parts = ['MIT', 'AND', 'OR', 'WITH', '(', ')', 'gpl', ',', 'Apache-2.0', 'LLVM-exception', '\0', 'import os', '__class__', '+', 'é']
    for _ in range(400):
        s = rng.choice(['', ' ']).join(rng.choices(parts, k=rng.randint(1, 9)))
        e = content.spdx(s)
        assert isinstance(e, str) and content.licence(view(licence=s), unknown='keep') in (None, e)


@pytest.mark.parametrize('expression, ok', [
    ('MIT', True), ('GPL-3.0-only', False), ('MIT OR GPL-3.0-only', True), ('MIT AND GPL-3.0-only', False), ('GPL-3.0-only OR MIT AND ISC', True),
    ('(GPL-3.0-only OR MIT) AND MPL-2.0', False), ('(MPL-2.0 OR MIT) AND (ISC OR GPL-2.0-only)', True), ('GPL-2.0-only WITH Classpath-exception-2.0', False),
    ('Apache-2.0 WITH LLVM-exception AND MIT', True), ('MIT AND MIT AND MPL-2.0', False)])
def test_licence_reads_expressions(expression, ok):
    assert (content.licence(view(licence=expression)) is None) == ok
    assert (content.licence(view(licence=expression), unknown='keep') is None) == ok


def test_licence_unknown_and_own_list():
    assert content.licence(view()) == 'not stated' and content.licence(view(licence='ask me')) == 'ask me'
    assert content.licence(view(), unknown='keep') is content.licence(view(licence='ask me'), unknown='keep') is None
    assert content.licence(view(licence='MIT'), allow={'ISC'}) == 'MIT' and content.licence(view(licence='isc'), allow=['ISC']) is None
    with pytest.raises(UserError, match='got one string'): content.licence(view(), allow='MIT')
    with pytest.raises(UserError, match='drop'): content.licence(view(), unknown='x')


def test_permissive_names_are_spdx_names():
    assert {content.spdx(n) for n in content.PERMISSIVE} == set(content.PERMISSIVE)


# length
def test_length():
    assert [content.length(view('x' * n), 3, 5) for n in (2, 3, 5, 6)] == [2, None, None, 6]
    assert content.length(view()) == 0


# word lists
def test_words_as_c4_finds_them():
    "The regular expression of C4's published code, over random texts and words."
    rng = random.Random(0)
    words = sorted({''.join(rng.choices('abc', k=rng.randint(1, 3))) for _ in range(25)} | {'a b', 'ca-b', 'b*c', 'c$', 'a b c'})
    c4, ours = re.compile(r'(?:\W|^)({})(?:\W|$)'.format('|'.join(map(re.escape, words)))), content.WordList(words)
    for _ in range(3000):
        t = re.sub(' +', ' ', ''.join(rng.choices('abcdABC  -*$_.', k=rng.randint(0, 12)))).strip()
        assert bool(ours.find(t)) == bool(c4.search(t.lower())), t


@pytest.mark.parametrize('word, text, hit', [
    ('cat', 'CAT!', True), ('cat', 'concatenate', False), ('cat', 'cat_s', False), ('cat', 'cat2', False), ('cat', "the cat's", True), ('straße', 'STRASSE', True),
    ('nai\u0308f', 'so naïf', True), ('naif', 'so naïf', False), ('naif', 'so nai\u0308f', False), ('cafe', 'cafe\u0301', False), ('two words', 'Two\n\t words', True),
    ('two words', 'two wordsmiths', False), ('кот', 'вот кот.', True), ('кот', 'который', False), ('猫', '小猫在睡觉', True), ('แมว', 'มีแมวดำ', True),
    ('कम', 'कमल', False), ('कम', 'यह कम है', True), ('कम', 'कमी', False), ('고양이', '고양이 한 마리', True), ('고양이', '고양이가', False), ('🙂', 'ok🙂', False), ('🙂', 'ok 🙂!', True)])
def test_whole_words(word, text, hit): assert content.WordList([word]).find(text) == ([content._fold(word)] if hit else [])


def test_bad_words(tmp_path):
    f = tmp_path/'words.txt'; f.write_text('Cat\n\ntwo words\n', encoding='utf-8')
    for words in (f, str(f), ['cat', 'two words'], content.WordList(['cat', 'two words'])):
        assert content.bad_words(view('a cat, two words'), words) == 2 and content.bad_words(view('a cat, a cat'), words, high=1) is None
    assert content.bad_words(view('nothing'), f) is None
    for words, match in ((None, 'none of its own'), (tmp_path/'absent', 'one word a line'), ([], 'at least one'), ([' '], 'at least one')):
        with pytest.raises(UserError, match=match): content.bad_words(view('a'), words)
    (tmp_path/'latin').write_bytes(b'\xff\xfe\xfa')
    with pytest.raises(UserError, match='could not read'): content.bad_words(view('a'), tmp_path/'latin')


# n-grams
def test_ngrams_give_a_distribution():
    "The 256 next bytes add up to one after any context, as long as no run lost its place; and never to more."
    some = [t for t in texts(30, 5) if t]
    for bits, loss in ((20, 1e-4), (8, 1.)):
        m = NgramModel.train(some, bits=bits)
        for context in ('abcde', 'zzzzz', 'éé', some[0][:9]):
            total = sum(2.0**-m._bits(np.frombuffer(b'\n' * 5 + context.encode() + bytes([b]), np.uint8))[-1] for b in range(256))
            assert 1 - loss <= total <= 1 + 1e-4, (bits, context, total)


def test_ngrams_in_plain_python():
    some, k = [t for t in texts(6, 6, 'ab é') if t], (1, 20, 10, 4, 2)      # few letters: few runs, each with a place of its own
    m, counts = NgramModel.train(some, bits=20, k=k), {}
    joined = b''.join(b'\n' * 5 + t.encode() for t in some) + b'\n' * 5
    for end in range(5, len(joined) + 1):
        for n in range(6): counts[joined[end - n:end]] = counts.get(joined[end - n:end], 0) + 1
    def bits(t):
        b, s = b'\n' * 5 + t.encode(), 0.
        for i in range(5, len(b)):
            p = 1 / 256
            for n in range(5):
                c = b[i - n:i]
                p = (counts.get(c + b[i:i + 1], 0) + k[n] * p) / (counts.get(c, 0) + k[n])
            s -= np.log2(p)
        return s / (len(b) - 5)
    assert np.count_nonzero(m.high) == len({c for c in counts if len(c) > 2})
    for t in some[:2] + texts(3, 7) + ['unseen ζ']:
        if t: assert m.bits_per_byte(t) == pytest.approx(bits(t), rel=1e-4)


def test_ngrams_in_blocks_and_edges():
    m = NgramModel.train(texts(20, 8))
    t = ''.join(texts(9, 9))
    assert m.bits_per_byte(t, block=100) == pytest.approx(m.bits_per_byte(t), rel=1e-6)
    assert m.bits_per_byte('') == 0. and m.bits_per_byte('\ud800') > 0
    assert m.bits_per_byte(t) == NgramModel.train(texts(20, 8)).bits_per_byte(t)
    assert NgramModel.train(['a' * 1000] * 10, limit=2000).total < 4000
    for bad, match in (('text', 'wrap it'), ([], 'some text'), ([''], 'some text')):
        with pytest.raises(UserError, match=match): NgramModel.train(bad)


def test_ngrams_kept(tmp_path):
    m = NgramModel.train(texts(20, 10))
    a, b = m.save(tmp_path/'a'), m.save(tmp_path/'b.npz')
    assert a.read_bytes() == b.read_bytes() and not [f for f in tmp_path.iterdir() if f not in (a, b)]
    assert NgramModel.load(a).bits_per_byte('abc def') == m.bits_per_byte('abc def')
    assert content.perplexity(view('abc'), a, high=0) == content.perplexity(view('abc'), m, high=0) > 0
    raw = a.read_bytes()
    with np.load(a) as z: arrays = dict(z)
    np.savez(tmp_path/'changed.npz', **{**arrays, 'low1': arrays['low1'] + 1})
    np.savez(tmp_path/'other.npz', **{**arrays, 'format': 'x'})
    np.savez(tmp_path/'pickled.npz', **{**arrays, 'high': np.array([{}], dtype=object)})
    (tmp_path/'cut').write_bytes(raw[:len(raw) // 2]); (tmp_path/'text').write_text('no')
    for f in ('changed.npz', 'other.npz', 'pickled.npz', 'cut', 'text'):
        with pytest.raises(UserError, match='train it again'): NgramModel.load(tmp_path/f)
    with pytest.raises(UserError, match='no file'): NgramModel.load(tmp_path/'absent')
    with pytest.raises(UserError, match='got int'): content.perplexity(view('a'), 3)


@needs_data
def test_perplexity_tells_prose_from_the_rest():
    with gzip.open(DATA/'wikitext2/valid.txt.gz', 'rt', encoding='utf-8') as f: text = ' '.join(f.read().split())
    parts = [text[i:i + 2000] for i in range(0, 1_000_000, 2000)]
    m, held = NgramModel.train(parts[::2]), parts[1::2]
    rng = random.Random(0)
    shuffled = [''.join(rng.sample(p, len(p))) for p in held]
    z = zipfile.ZipFile(DATA/'language_id/udhr2.zip')
    other = [z.read(f'udhr2/{l}.txt').decode()[1000:3000] for l in ('fra', 'fin', 'rus', 'deu_1901', 'ita', 'pol')]
    x = [m.bits_per_byte(p) for p in held]
    assert np.median(x) < 3
    assert all(content.perplexity(view(t), m, high=np.quantile(x, .99)) is not None for t in shuffled + other)


def test_rules_can_go_to_other_processes(tmp_path):
    m = NgramModel.train(texts(20, 11)).save(tmp_path/'m')
    rules = [content.toxicity, content.length, partial(content.bad_words, words=('a', 'b c')), partial(content.perplexity, model=m, high=1.), partial(language.language, allow=('de',))]
    v = view('a text that goes to another process, damn it')
    with multiprocessing.get_context('spawn').Pool(1) as pool: there = [pool.apply(r, (v,)) for r in rules]
    assert there == [r(v) for r in rules] and there[2] == 1
