"""Rules about content: language, licences, length, word lists, the toxicity detector and the n-gram model."""
import csv, gzip, json, multiprocessing, random, re, zipfile, zlib
from collections import Counter
from functools import partial
from types import SimpleNamespace
import numpy as np
import pytest
from real_data import DATA, needs_data
from run_program import heavy_imports
from llmbook.clean import language
from llmbook.core import UserError
from llmbook.filters import content, toxicity
from llmbook.filters.content import licence, spdx
from llmbook.filters.ngram_lm import NgramModel
from llmbook.filters.view import View
from llmbook.read.doc import Doc
from llmbook.read.licence import identify_licence



def view(text='', **kw): return SimpleNamespace(doc=Doc(text, 'x', **kw), text=text)


def texts(n, seed=0, letters='abcdefgh ijklm NOPQ .,!&@ é ß 猫 \n 12'):
    rng = random.Random(seed)
    return [''.join(rng.choice(letters) for _ in range(rng.randint(0, 700))) for _ in range(n)]


# what workers import must start fast
def test_imports_neither_torch_nor_the_identifier():
    modules = ['llmbook.clean.language', 'llmbook.filters.content', 'llmbook.filters.ngram_lm',
               'llmbook.filters.toxicity']
    assert heavy_imports(modules, ['torch', 'fastai', 'py3langid', 'matplotlib', 'scipy']) == {}


# toxicity
def by_definition(detector, text):
    filled = [b for b in map(toxicity.ngram_buckets, toxicity._windows(text)) if len(b)]
    if not filled: return 0.
    worst = max(detector.w[b].sum() / len(b)**.5 + detector.bias for b in filled)
    return 1 / (1 + np.exp(-worst))


def test_the_score_is_what_its_definition_says():
    detector = toxicity.ToxicityDetector()
    odd = ['', '  ', '?!', 'a', 'ab', '\ud800', 'RT @x: https://y.z/w &amp;lt; BART @',
           'x' * 20_000, 'damn ' * 3000, '&' * 300, 'ſ' * 250]
    some = texts(60) + odd
    assert detector(some) == pytest.approx([by_definition(detector, t) for t in some], abs=1e-12)


def test_plain_text_by_table():
    ascii_texts = texts(300, 1, [chr(c) for c in range(128)])
    for t in ascii_texts + texts(50, 2): assert toxicity._plain(t) == toxicity.plain_text(t)


def test_names_stay_where_they_were():
    from llmbook.evaluate import toxicity as evaluate
    for name in ('BITS', 'plain_text', 'ngram_buckets', 'SmokeDetector', 'ASSETS'):
        assert getattr(evaluate, name) is getattr(toxicity, name)


def is_held_out(tweet):
    "Tell whether a tweet is in the tenth that the detector was not trained on."
    plain = toxicity.plain_text(tweet)
    return zlib.crc32(plain.encode()) % 10 == 9


def labelled_tweets():
    path = DATA/'davidson_hate_speech/labeled_data.csv.gz'
    with gzip.open(path, 'rt', encoding='utf-8', newline='') as f: return list(csv.DictReader(f))

@needs_data
def test_toxicity_rule_on_held_out_tweets():
    refused = {'0': [], '1': [], '2': []} # by label
    for row in labelled_tweets():
        tweet = row['tweet']
        if not is_held_out(tweet): continue
        verdict = content.toxicity(view(tweet))
        refused[row['class']].append(verdict is not None)
    share = {label: np.mean(verdicts) for label, verdicts in refused.items()}
    assert share['0'] > .6, 'hate speech'
    assert share['1'] > .8, 'offensive'
    assert share['2'] < .02, 'neither'

def test_a_short_text_is_its_sample(): assert language.sample_text('abc') == 'abc'


@needs_data
def test_toxicity_rule_leaves_plain_pages_alone():
    with open(DATA/'web_demo/c4_demo.jsonl', encoding='utf-8') as f:
        pages = [json.loads(line)['text'] for line in f]
    assert sum(content.toxicity(view(t)) is not None for t in pages) <= 3


def test_toxicity_is_not_asked_of_code():
    assert content.toxicity(view('damn you', kind='code'), high=-1) is None
    assert content.toxicity(view('damn you'), high=-1) > 0


# language
def test_language_of_what_has_no_letters():
    for t in ('', '   ', '12 345', '!?', '\n\n', '🙂🙂'): assert language.identify(t) == ('zxx', 0.)


def test_language_survives_anything():
    for t in texts(30, 3) + ['\ud800abc', 'a' * 100_000, '\0\0a', 'é' * 3]:
        code, p = language.identify(t)
        assert isinstance(code, str)
        assert 0 <= p <= 1


def test_sample_is_bounded_and_spread():
    letters = [chr(97 + i * 26 // 10_000) for i in range(10_000)]
    text = ''.join(letters)
    sample = language.sample_text(text, 3, 100)
    assert len(sample) == 302
    assert sample[0] == 'a'
    assert sample[-1] == 'z'
    assert sample[151] == text[5000]
    assert language.sample_text(text, 1, 50) == text[:50]


ENGLISH = 'The door was closed, and nobody in the house heard a sound until the morning.'

def test_language_rule():
    v = view(ENGLISH)
    assert language.language(v) is None
    assert language.language(v, allow=['de', 'fr']).startswith('en ')
    assert language.language(v, low=1.1).startswith('en ')

def test_numbers_have_no_language_and_code_needs_none():
    assert language.language(view('1 + 1')) == 'zxx 0.00'
    assert language.language(view('1 + 1', kind='code')) is None

@pytest.mark.parametrize('allow', ['en', (), ('xx',), ('English',)])
def test_languages_are_named_by_codes(allow):
    with pytest.raises(UserError, match='codes of languages'): language.language(view(ENGLISH), allow=allow)

def test_a_licence_that_is_not_known():
    nothing = view()
    unreadable = view(licence='ask me')
    assert content.licence(nothing) == 'not stated'
    assert content.licence(unreadable) == 'ask me'
    assert content.licence(nothing, unknown='keep') is None
    assert content.licence(unreadable, unknown='keep') is None
    with pytest.raises(UserError, match='drop'): content.licence(nothing, unknown='x')


def identify(t): return language.identify(t)


def test_language_is_the_same_in_another_process():
    some = texts(5, 4) + ['Das Haus am See ist alt.', 'La maison est vieille.']
    here = [language.identify(t) for t in some]
    for kind in ('fork', 'spawn'):
        with multiprocessing.get_context(kind).Pool(1) as pool:
            assert pool.map(identify, some) == here


TWO_LETTERS = dict(
    eng='en', deu='de', fra='fr', spa='es', ita='it', por='pt', nld='nl', pol='pl', rus='ru', ukr='uk', ces='cs',
    swe='sv', dan='da', nob='no', fin='fi', hun='hu', ron='ro', tur='tr', arb='ar', pes='fa', hin='hi', cmn='zh',
    jpn='ja', kor='ko', vie='vi', ell='el', heb='he', tha='th', bul='bg', ben='bn', tam='ta', tel='te', swh='sw',
    est='et', lit='lt', lvs='lv', slk='sk', slv='sl', cat='ca', eus='eu', isl='is', gle='ga')


@needs_data
def test_language_accuracy_on_paragraphs():
    "Compare with the labels of the library that the paragraphs come from, where a language has a code of two letters."
    with open(DATA/'language_id/franc_fixtures.jsonl', encoding='utf-8') as f:
        rows = [json.loads(line) for line in f]
    rows = [row for row in rows if row['iso6393'] in TWO_LETTERS]
    right = [language.identify(row['text'])[0] == TWO_LETTERS[row['iso6393']] for row in rows]
    assert len(right) >= 35
    assert np.mean(right) >= .95


@needs_data
def test_hardly_any_other_language_passes_for_english():
    with zipfile.ZipFile(DATA/'language_id/udhr2.zip') as z:
        names = [n for n in z.namelist() if n.endswith('.txt') and 'eng' not in n]
        others = [z.read(n).decode()[1000:1600] for n in names]
    assert sum(language.language(view(t)) is None for t in others) <= 4 # Scots and Pidgin look like English


# licences
@pytest.mark.parametrize('stated, want', [
    ('MIT', 'MIT'), ('mit', 'MIT'), ('MIT License', 'MIT'), ('The MIT License (MIT)', 'MIT'), ('Expat', 'MIT'),
    ('License :: OSI Approved :: MIT License', 'MIT'),
    ('Apache 2.0', 'Apache-2.0'), ('Apache License 2.0', 'Apache-2.0'), ('Apache License, Version 2.0', 'Apache-2.0'),
    ('Apache Software License', 'Apache-2.0'), ('apache-2.0', 'Apache-2.0'),
    ('3-Clause BSD License', 'BSD-3-Clause'), ('New BSD', 'BSD-3-Clause'),
    ('BSD', 'LicenseRef-BSD'), ('BSD License', 'LicenseRef-BSD'),
    ('ISC License (ISCL)', 'ISC'), ('Python Software Foundation License', 'PSF-2.0'),
    ('Mozilla Public License 2.0 (MPL 2.0)', 'MPL-2.0'), ('The Unlicense (Unlicense)', 'Unlicense'),
    ('GPLv3', 'GPL-3.0-only'), ('GPL v3', 'GPL-3.0-only'), ('GPLv3+', 'GPL-3.0-or-later'), ('gpl-3.0', 'GPL-3.0'),
    ('GNU General Public License v2 or later (GPLv2+)', 'GPL-2.0-or-later'),
    ('GNU Lesser General Public License v3 (LGPLv3)', 'LGPL-3.0-only'),
    ('cc-by-4.0', 'CC-BY-4.0'), ('CC BY 4.0', 'CC-BY-4.0'),
    ('Creative Commons Attribution 4.0 International', 'CC-BY-4.0'), ('CC BY-NC 4.0', 'CC-BY-NC-4.0'),
    ('Creative Commons Attribution-ShareAlike 4.0', 'CC-BY-SA-4.0'),
    ('CC0 1.0 Universal (CC0 1.0) Public Domain Dedication', 'CC0-1.0'),
    ('MIT License, BSD License', 'MIT AND LicenseRef-BSD'), ('MIT, proprietary', ''),
    ('mit or apache-2.0', 'MIT OR Apache-2.0'), ('CC BY-NC-SA 4.0', 'CC-BY-NC-SA-4.0'),
    ('CC BY ND 3.0', 'CC-BY-ND-3.0'),
    ('BSD 3-Clause (non-commercial)', 'LicenseRef-Not-Commercial'),
    ('Apache License 2.0 with Commons Clause', 'Apache-2.0 AND LicenseRef-Commons-Clause'),
    ('', ''), ('  ', ''), ('other', ''), ('All rights reserved', ''), ('unknown', ''), (',,', ''), ('MIT OR', ''),
    ('(' * 300 + 'MIT' + ')' * 300, ''), ('x' * 10_000, '')])
def test_spdx(stated, want): assert content.spdx(stated) == want


def test_spdx_takes_whatever_comes():
    rng = random.Random(0)
    parts = ['MIT', 'AND', 'OR', 'WITH', '(', ')', 'gpl', ',', 'Apache-2.0', 'LLVM-exception', '\0', 'import os',
             '__class__', '+', 'é']
    for _ in range(400):
        stated = rng.choice(['', ' ']).join(rng.choices(parts, k=rng.randint(1, 9)))
        name = content.spdx(stated)
        assert isinstance(name, str)
        assert content.licence(view(licence=stated), unknown='keep') in (None, name)


@pytest.mark.parametrize('expression, ok', [
    ('MIT', True), ('GPL-3.0-only', False), ('MIT OR GPL-3.0-only', True), ('MIT AND GPL-3.0-only', False),
    ('GPL-3.0-only OR MIT AND ISC', True), ('(GPL-3.0-only OR MIT) AND MPL-2.0', False),
    ('(MPL-2.0 OR MIT) AND (ISC OR GPL-2.0-only)', True), ('GPL-2.0-only WITH Classpath-exception-2.0', False),
    ('Apache-2.0 WITH LLVM-exception AND MIT', True), ('MIT AND MIT AND MPL-2.0', False)])
def test_licence_reads_expressions(expression, ok):
    assert (content.licence(view(licence=expression)) is None) == ok
    assert (content.licence(view(licence=expression), unknown='keep') is None) == ok


def test_licence_unknown_and_own_list():
    assert content.licence(view(licence='MIT'), allow={'ISC'}) == 'MIT'
    assert content.licence(view(licence='isc'), allow=['ISC']) is None
    with pytest.raises(UserError, match='got one string'): content.licence(view(), allow='MIT')


def test_permissive_names_are_spdx_names():
    assert {content.spdx(n) for n in content.PERMISSIVE} == set(content.PERMISSIVE)


# length
def test_length():
    assert [content.length(view('x' * n), 3, 5) for n in (2, 3, 5, 6)] == [2, None, None, 6]
    assert content.length(view()) == 0


# word lists
def test_words_as_c4_finds_them():
    "Compare with the regular expression of C4's published code, over random texts and words."
    rng = random.Random(0)
    words = {'a b', 'ca-b', 'b*c', 'c$', 'a b c'}
    for _ in range(25): words.add(''.join(rng.choices('abc', k=rng.randint(1, 3))))
    words = sorted(words)
    any_word = '|'.join(map(re.escape, words))
    c4 = re.compile(rf'(?:\W|^)({any_word})(?:\W|$)')
    ours = content.WordList(words)
    for _ in range(3000):
        t = ''.join(rng.choices('abcdABC  -*$_.', k=rng.randint(0, 12)))
        t = re.sub(' +', ' ', t).strip()
        found = ours.find(t)
        wanted = c4.search(t.lower())
        assert bool(found) == bool(wanted), t


@pytest.mark.parametrize('word, text, hit', [
    ('cat', 'CAT!', True), ('cat', 'concatenate', False), ('cat', 'cat_s', False), ('cat', 'cat2', False),
    ('cat', "the cat's", True), ('straße', 'STRASSE', True),
    ('nai\u0308f', 'so naïf', True), ('naif', 'so naïf', False), ('naif', 'so nai\u0308f', False),
    ('cafe', 'cafe\u0301', False), ('two words', 'Two\n\t words', True), ('two words', 'two wordsmiths', False),
    ('кот', 'вот кот.', True), ('кот', 'который', False), ('猫', '小猫在睡觉', True), ('แมว', 'มีแมวดำ', True),
    ('कम', 'कमल', False), ('कम', 'यह कम है', True), ('कम', 'कमी', False),
    ('고양이', '고양이 한 마리', True), ('고양이', '고양이가', False), ('🙂', 'ok🙂', False), ('🙂', 'ok 🙂!', True)])
def test_whole_words(word, text, hit):
    assert content.WordList([word]).find(text) == ([content._fold(word)] if hit else [])


def test_bad_words(tmp_path):
    f = tmp_path/'words.txt'
    f.write_text('Cat\n\ntwo words\n', encoding='utf-8')
    for words in (f, str(f), ['cat', 'two words'], content.WordList(['cat', 'two words'])):
        assert content.bad_words(view('a cat, two words'), words) == 2
        assert content.bad_words(view('a cat, a cat'), words, high=1) is None
    assert content.bad_words(view('nothing'), f) is None


def test_bad_words_refuses_lists_that_are_none(tmp_path):
    (tmp_path/'latin').write_bytes(b'\xff\xfe\xfa')
    for words, match in ((None, 'none of its own'), (tmp_path/'absent', 'one word a line'), ([], 'at least one'),
                         ([' '], 'at least one'), (tmp_path/'latin', 'could not read')):
        with pytest.raises(UserError, match=match): content.bad_words(view('a'), words)


# n-grams
LINES = b'\n' * 5 # what a text begins with


def probability(model, context, byte):
    "Return the probability of a byte after a text."
    text = LINES + context.encode() + bytes([byte])
    bits = model._bits(np.frombuffer(text, np.uint8))
    return 2.0**-bits[-1]


def test_ngrams_give_a_distribution():
    "Add up the 256 next bytes after a context: to one as long as no run lost its slot, and never to more."
    some = [t for t in texts(30, 5) if t]
    for bits, loss in ((20, 1e-4), (8, 1.)):
        m = NgramModel.train(some, bits=bits)
        for context in ('abcde', 'zzzzz', 'éé', some[0][:9]):
            total = sum(probability(m, context, b) for b in range(256))
            assert 1 - loss <= total <= 1 + 1e-4, (bits, context, total)


def plain_probability(counts, k, before, byte):
    p = 1 / 256
    for n, weight in enumerate(k):
        context = before[len(before) - n:]
        seen = counts[context + byte]
        total = counts[context]
        p = (seen + weight * p) / (total + weight)
    return p


def plain_bits(counts, k, text):
    b = LINES + text.encode()
    bits = 0.
    for i in range(5, len(b)): bits -= np.log2(plain_probability(counts, k, b[:i], b[i:i + 1]))
    return bits / (len(b) - 5)


def count_runs(texts, longest):
    "Return how often each run of up to `longest` bytes stands before the end of a byte."
    joined = b''.join(LINES + text.encode() for text in texts) + LINES
    counts = Counter()
    for end in range(longest, len(joined) + 1):
        for n in range(longest + 1): counts[joined[end - n:end]] += 1
    return counts

def test_ngrams_in_plain_python():
    some = [text for text in texts(6, 6, 'ab é') if text] # few letters: few runs, each with a slot of its own
    k = (1, 20, 10, 4, 2)
    model = NgramModel.train(some, bits=20, k=k)
    counts = count_runs(some, 5)
    n_runs = sum(len(run) > 2 for run in counts)
    assert np.count_nonzero(model.high) == n_runs
    for text in some[:2] + texts(3, 7) + ['unseen ζ']:
        if not text: continue
        expected = plain_bits(counts, k, text)
        assert model.bits_per_byte(text) == pytest.approx(expected, rel=1e-4)


def test_ngrams_in_blocks_and_edges():
    m = NgramModel.train(texts(20, 8))
    t = ''.join(texts(9, 9))
    bits = m.bits_per_byte(t)
    assert m.bits_per_byte(t, block=100) == pytest.approx(bits, rel=1e-6)
    assert m.bits_per_byte('') == 0.
    assert m.bits_per_byte('\ud800') > 0
    again = NgramModel.train(texts(20, 8))
    assert again.bits_per_byte(t) == bits


def test_ngrams_train_on_some_text_and_not_too_much():
    m = NgramModel.train(['a' * 1000] * 10, limit=2000)
    assert m.total < 4000
    for bad, match in (('text', 'wrap it'), ([], 'some text'), ([''], 'some text')):
        with pytest.raises(UserError, match=match): NgramModel.train(bad)


def test_ngrams_saved_and_loaded(tmp_path):
    model = NgramModel.train(texts(20, 10))
    first = model.save(tmp_path/'a')
    second = model.save(tmp_path/'b.npz')
    assert first.read_bytes() == second.read_bytes()
    assert set(tmp_path.iterdir()) == {first, second}
    assert NgramModel.load(first).bits_per_byte('abc def') == model.bits_per_byte('abc def')

def test_the_rule_takes_ngrams_or_their_file(tmp_path):
    model = NgramModel.train(texts(20, 10))
    by_file = content.perplexity(view('abc'), model.save(tmp_path/'a'), high=0)
    by_model = content.perplexity(view('abc'), model, high=0)
    assert by_file == by_model
    assert by_file > 0


@pytest.fixture
def saved_ngrams(tmp_path): return NgramModel.train(texts(20, 10)).save(tmp_path/'a')

def test_changed_arrays_are_no_ngrams(saved_ngrams, tmp_path):
    with np.load(saved_ngrams) as stored: arrays = dict(stored)
    changes = dict(low1=arrays['low1'] + 1), dict(format='x'), dict(high=np.array([{}], dtype=object))
    for change in changes:
        np.savez(tmp_path/'changed.npz', **{**arrays, **change})
        with pytest.raises(UserError, match='train it again'): NgramModel.load(tmp_path/'changed.npz')

def test_other_files_are_no_ngrams(saved_ngrams, tmp_path):
    raw = saved_ngrams.read_bytes()
    for data in (raw[:len(raw) // 2], b'no'):
        (tmp_path/'other').write_bytes(data)
        with pytest.raises(UserError, match='train it again'): NgramModel.load(tmp_path/'other')
    with pytest.raises(UserError, match='no file'): NgramModel.load(tmp_path/'absent')
    with pytest.raises(UserError, match='got int'): content.perplexity(view('a'), 3)


def declarations(codes):
    "Return a page of the declaration of human rights in each of some languages."
    with zipfile.ZipFile(DATA/'language_id/udhr2.zip') as z:
        whole = [z.read(f'udhr2/{code}.txt').decode() for code in codes]
    return [text[1000:3000] for text in whole]


def parts_of_wikitext():
    with gzip.open(DATA/'wikitext2/valid.txt.gz', 'rt', encoding='utf-8') as f: words = f.read().split()
    text = ' '.join(words)
    return [text[i:i + 2000] for i in range(0, 1_000_000, 2000)]

@needs_data
def test_perplexity_tells_prose_from_the_rest():
    parts = parts_of_wikitext()
    model = NgramModel.train(parts[::2])
    held_out = parts[1::2]
    bits = [model.bits_per_byte(part) for part in held_out]
    assert np.median(bits) < 3

    high = np.quantile(bits, .99)
    rng = random.Random(0)
    shuffled = [''.join(rng.sample(part, len(part))) for part in held_out]
    others = declarations(['fra', 'fin', 'rus', 'deu_1901', 'ita', 'pol'])
    for text in shuffled + others: assert content.perplexity(view(text), model, high=high) is not None


def test_rules_can_go_to_other_processes(tmp_path):
    m = NgramModel.train(texts(20, 11)).save(tmp_path/'m')
    rules = [
        content.toxicity,
        content.length,
        partial(content.bad_words, words=('a', 'b c')),
        partial(content.perplexity, model=m, high=1.),
        partial(language.language, allow=('de',))]
    v = view('a text that goes to another process, damn it')
    with multiprocessing.get_context('spawn').Pool(1) as pool:
        there = [pool.apply(rule, (v,)) for rule in rules]
    assert there == [rule(v) for rule in rules]
    assert there[2] == 1


@pytest.mark.parametrize('notice, name', [
    ('Licensed under the GPL, version 3', 'GPL-3.0'), ('Released under the GPL.', 'LicenseRef-GPL'),
    ('under the terms of the GNU General Public License as published by the FSF; see section 2.2 for more',
     'LicenseRef-GPL'),
    ('Mozilla Public License, version 6.4', 'LicenseRef-MPL'), ('GNU Lesser General Public License v2.1', 'LGPL-2.1')])
def test_a_number_nearby_is_no_version(notice, name): assert identify_licence(notice) == name


@pytest.mark.parametrize('stated', ['GPL-2.2', 'GPL-9', 'AGPL-3.1', 'LGPL-2.2', 'MPL-6.4', 'CC BY-NC 9.0', 'EUPL 7'])
def test_a_version_that_nobody_published_keeps_its_familys_conditions(stated):
    doc = Doc('x = 1', 'a.py', kind='code', licence=stated)
    assert licence(View(doc), unknown='keep') == spdx(stated) != ''
