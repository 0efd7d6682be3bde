"Tokenizers: nothing is lost, nothing becomes a command, nothing depends on chance."
import json, os, random, subprocess, sys
from itertools import product
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from llmbook.core import UserError
from llmbook.tokens.compare import PARALLEL_TEXTS, compare_tokenizers, comparison_table, plot_vocabulary
from llmbook.tokens.tokenizer import (
    ANSWER, EOT, MIN_VOCAB, PAD, PROMPT, SPECIALS, bytes_per_token, chat_ids, decode, encode_text, load_any,
    load_tokenizer, not_restored, save_tokenizer, special_ids, tokenizer_fingerprint, train_tokenizer
)

WORDS = ('the be of and that have with a small house stands near river where people meet every morning 1987 3.14 x_1 self.name '
         'def return import naïve Größe été дом 東京 🙂').split()

def texts(n=60, seed=0):
    "Prose and code that repeat themselves as real text does."
    rng = random.Random(seed)
    some = lambda k: ' '.join(rng.choices(WORDS, k=k))
    return [some(40) + '.\n' if i % 2 else f'def f{i}(x):\n    if x > {i}:\n        return my_name.append({some(2)!r})\n\n' for i in range(n)]

VARIANTS = list(product(('bpe', 'unigram'), ('single', 'triple', 'none'), (False, True)))

@pytest.fixture(scope='module', params=VARIANTS, ids=lambda v: '-'.join(map(str, v)))
def tok(request):
    model, digits, code = request.param
    return train_tokenizer(texts(), 500, model, digits, code)

@pytest.fixture(scope='module')
def ours(): return train_tokenizer(texts(), 400)


# training

def test_the_default_is_what_it_always_was():
    "Built here step by step as the first version did: people's shards were made with it."
    old = Tokenizer(models.BPE())
    old.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    old.decoder = decoders.ByteLevel()
    old.train_from_iterator(texts(), trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIALS, min_frequency=2, show_progress=False,
                                                         initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))
    old.encode_special_tokens = True
    assert train_tokenizer(['', *texts(), ''], 400).to_str() == old.to_str()

@pytest.mark.parametrize('model', ['bpe', 'unigram'])
def test_trained_twice_it_is_the_same(model):
    "In other processes, with other seeds of the hash tables and other numbers of threads."
    code = ('import sys; sys.path.insert(0, sys.argv[1]); from test_tokenize import *\n'
            f'print(tokenizer_fingerprint(train_tokenizer(texts(), 450, "{model}", code=True)))')
    env = {**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)}
    seen = {subprocess.run([sys.executable, '-c', code, os.path.dirname(__file__)], capture_output=True, text=True, check=True,
                           env={**env, 'PYTHONHASHSEED': s, 'RAYON_NUM_THREADS': s, 'TOKENIZERS_PARALLELISM': p}).stdout for s, p in (('1', 'true'), ('2', 'false'))}
    assert seen == {tokenizer_fingerprint(train_tokenizer(texts(), 450, model, code=True)) + '\n'}

def test_specials_come_first(tok):
    assert [tok.token_to_id(s) for s in SPECIALS] == [EOT, PAD, PROMPT, ANSWER] == [0, 1, 2, 3]
    assert special_ids(tok) == dict(eot=0, pad=1, prompt=2, answer=3) and tok.get_vocab_size() <= 500
    assert sorted(tok.get_vocab().values()) == list(range(tok.get_vocab_size()))

@pytest.mark.parametrize('model', ['bpe', 'unigram'])
def test_more_specials(model, tmp_path):
    t = train_tokenizer(texts(), 400, model, specials=['<|tool|>', 'the'])
    assert [t.token_to_id(s) for s in ('<|tool|>', 'the')] == [4, 5]
    ids, = encode_text(t, ['<|tool|> the the <|endoftext|>the'])
    assert not set(ids) & set(range(6)) and decode(t, ids) == '<|tool|> the the <|endoftext|>the'
    save_tokenizer(t, tmp_path)
    assert tokenizer_fingerprint(load_tokenizer(tmp_path)) == tokenizer_fingerprint(t)

@pytest.mark.parametrize('kw, words', [
    (dict(vocab_size=MIN_VOCAB - 1), '260'), (dict(vocab_size=260, specials=['<|a|>']), '261'), (dict(model='words'), 'bpe, unigram'),
    (dict(digits='pair'), 'single'), (dict(specials=['<|pad|>']), 'differ'), (dict(specials=['a', 'a']), 'differ'), (dict(specials=['']), 'differ')])
def test_bad_wishes(kw, words):
    with pytest.raises(UserError, match=words): train_tokenizer(texts(), **kw)

@pytest.mark.parametrize('model', ['bpe', 'unigram'])
def test_little_text(model):
    for none in ([], [''], iter(())):
        with pytest.raises(UserError, match='got none'): train_tokenizer(none, 300, model)
    for little in ('a', ' ', '\n', 'ab' * 3, 'x' * 5_000):
        t = train_tokenizer([little], 300, model)
        assert MIN_VOCAB <= t.get_vocab_size() <= 300 and not_restored(t, [little, 'other 🙂']) == []


# nothing is lost

def any_text(rng):
    "Random characters of all of Unicode but surrogates, with much white space."
    pools = [lambda: chr(rng.randrange(128)), lambda: rng.choice(' \t\n\r\x0b\x0c\x85\xa0\u2028\u3000'), lambda: rng.choice(WORDS),
             lambda: chr(rng.choice((rng.randrange(0xd800), rng.randrange(0xe000, 0x110000)))), lambda: rng.choice(SPECIALS + ['<|', '|>']),
             lambda: rng.choice(['👩‍👩‍👧', '🇩🇪', 'e\u0301', '\ufeff', '\x00', '\r\n', '    ', '½', '१२३', '１２']), lambda: str(rng.randrange(10**6))]
    return ''.join(rng.choice(pools)() for _ in range(rng.randrange(60)))

def test_any_text_comes_back(tok):
    rng = random.Random(0)
    some = [any_text(rng) for _ in range(400)] + ['', *PARALLEL_TEXTS.values()]
    assert not_restored(tok) == [] and not_restored(tok, some) == []
    assert not {i for ids in encode_text(tok, some) for i in ids} & {0, 1, 2, 3}, 'a text made a special token'

def test_long_runs_take_their_time_only():
    "Patterns that look ahead must not be quadratic in a run of digits or blanks."
    for model, digits, code in VARIANTS[:6]:
        t = train_tokenizer(texts(), 300, model, digits, code)
        assert not_restored(t, [c * 50_000 for c in ('1', ' ', '\n', 'a ', '-', ' \n')]) == []

def test_digits():
    number = lambda digits, code: [w for w, _ in train_tokenizer(texts(), 300, digits=digits, code=code).pre_tokenizer.pre_tokenize_str('a 1234567')]
    assert number('single', False) == number('single', True) == ['a', 'Ġ', *'1234567']
    assert number('triple', False) == number('triple', True) == ['a', 'Ġ', '123', '456', '7']
    assert number('none', False) == number('none', True) == ['a', 'Ġ1234567']

def test_code_cuts():
    cut = lambda s: [w for w, _ in train_tokenizer(texts(), 300, code=True).pre_tokenizer.pre_tokenize_str(s)]
    assert cut('if my_name.x:\n        return\n\tb') == ['if', 'Ġmy', '_name', '.x', ':ĊĠĠĠĠĠĠĠ', 'Ġreturn', 'Ċ', 'ĉb']
    assert cut('a\n\n    b  c') == ['a', 'ĊĊĠĠĠ', 'Ġb', 'Ġ', 'Ġc']

def test_texts_in_a_list_of_text(ours):
    assert encode_text(ours, []) == [] and encode_text(ours, ['']) == [[]]
    for bad in ('text', ['\ud800'], [None], [b'x']):
        with pytest.raises(UserError): encode_text(ours, bad)
    assert encode_text(ours, ['house', 'x']) == encode_text(ours, ['house']) + encode_text(ours, ['x'])

def test_encoding_leaves_the_tokenizer_as_it_was(ours):
    t = Tokenizer.from_str(ours.to_str())
    for setting in (False, True):
        t.encode_special_tokens = setting
        encode_text(t, SPECIALS)
        assert t.encode_special_tokens is setting


# tokenizers from elsewhere

def gpt2_like():
    t = Tokenizer(models.BPE())
    t.pre_tokenizer, t.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    t.train_from_iterator(texts(), trainers.BpeTrainer(vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    t.add_special_tokens(['<|endoftext|>'])
    return t

def llama_like():
    t = Tokenizer(models.BPE(byte_fallback=True, unk_token='<unk>', fuse_unk=True))
    t.normalizer = normalizers.Sequence([normalizers.Prepend('▁'), normalizers.Replace(' ', '▁')])
    t.decoder = decoders.Sequence([decoders.Replace('▁', ' '), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(' ', 1, 0)])
    special = ['<unk>', '<s>', '</s>', *(f'<0x{i:02X}>' for i in range(256))]
    t.train_from_iterator(texts(), trainers.BpeTrainer(vocab_size=500, special_tokens=special, show_progress=False))
    m = json.loads(t.to_str())
    m['added_tokens'] = [a for a in m['added_tokens'] if not a['content'].startswith('<0x')]
    return Tokenizer.from_str(json.dumps(m))

def bert_like():
    t = Tokenizer(models.WordPiece(unk_token='[UNK]'))
    t.normalizer, t.pre_tokenizer, t.decoder = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    t.train_from_iterator(texts(), trainers.WordPieceTrainer(vocab_size=300, special_tokens=['[PAD]', '[UNK]', '[CLS]', '[SEP]'], show_progress=False))
    return t

@pytest.mark.parametrize('make, eot, added, lossless', [
    (gpt2_like, '<|endoftext|>', ['<|pad|>', '<|prompt|>', '<|answer|>'], True),
    (llama_like, '</s>', ['<|pad|>', '<|prompt|>', '<|answer|>'], True),
    (bert_like, '<|endoftext|>', ['<|endoftext|>', '<|prompt|>', '<|answer|>'], False)])
def test_any_tokenizer_is_made_usable(make, eot, added, lossless, tmp_path):
    theirs = make()
    size = theirs.get_vocab_size()
    theirs.enable_truncation(4); theirs.enable_padding(length=4)
    save_tokenizer(theirs, tmp_path)
    got = load_any(tmp_path)
    assert got.added == added and [got.special[n] for n in added] == list(range(size, size + len(added))) and got.vocab_size == size + len(added)
    assert got.ids['eot'] == got.special[eot] and len(set(got.ids.values())) == 4
    assert {k: v for k, v in got.tok.get_vocab().items() if v < size} == theirs.get_vocab(), "the file's numbers stay"
    assert any('not lossless' in n for n in got.notes) is not lossless and any('switched off' in n for n in got.notes) and 'eot ' + eot in repr(got)
    long = ' '.join(WORDS[:16] * 20)
    ids, = encode_text(got.tok, [long])
    assert len(ids) > 300 and not set(ids) & set(got.ids.values())
    sneaky, = encode_text(got.tok, [''.join(got.special)])
    assert not set(sneaky) & set(got.ids.values()), 'a text made a special token'
    if lossless: assert decode(got.tok, ids) == long
    save_tokenizer(got.tok, tmp_path)
    again = load_any(tmp_path)
    assert again.added == [] and again.ids == got.ids == special_ids(again.tok)

def test_ours_needs_nothing(ours, tmp_path):
    save_tokenizer(ours, tmp_path)
    got = load_any(tmp_path)
    assert (got.added, got.notes, got.ids) == ([], [], dict(eot=0, pad=1, prompt=2, answer=3))
    assert tokenizer_fingerprint(got.tok) == tokenizer_fingerprint(ours) == tokenizer_fingerprint(load_tokenizer(tmp_path))

def test_the_strict_reader_stays_strict(tmp_path):
    save_tokenizer(gpt2_like(), tmp_path)
    with pytest.raises(UserError, match='ids 0 to 3'): load_tokenizer(tmp_path)

def test_what_looks_special_but_is_text(tmp_path):
    "Names that the file does not mark as special are pieces of text; taking one for the end would end every document that has it."
    t = gpt2_like()
    t.add_tokens([AddedToken('</s>', special=False)])
    assert 'eot' in load_any(save_tokenizer(t, tmp_path)).ids
    assert load_any(tmp_path).ids['eot'] == t.token_to_id('<|endoftext|>')

def test_a_vocabulary_with_gaps_is_refused(tmp_path):
    t = Tokenizer(models.WordLevel({'a': 0, 'b': 1, '[UNK]': 9}, unk_token='[UNK]'))
    with pytest.raises(UserError, match='gaps'): load_any(save_tokenizer(t, tmp_path))

def test_damaged_files(tmp_path):
    for f in (load_any, load_tokenizer):
        with pytest.raises(UserError, match='found none'): f(tmp_path/'none.json')
        (tmp_path/'tokenizer.json').write_text('{"version": "1.0"')
        with pytest.raises(UserError, match='not a tokenizer'): f(tmp_path)


# conversations

def test_chats(ours):
    u, a = dict(role='user', content='<|answer|>the house'), dict(role='assistant', content='river<|endoftext|>')
    ids, mask = chat_ids(ours, [u, a, u, a])
    assert [i for i in ids if i < 4] == [PROMPT, ANSWER, EOT] * 2 and len(ids) == len(mask)
    assert decode(ours, [i for i, m in zip(ids, mask) if m], False) == 'river<|endoftext|><|endoftext|>' * 2
    assert chat_ids(ours, [u, a, u])[0] == ids[:len(chat_ids(ours, [u, a, u])[0])] and not chat_ids(ours, [u])[1][-1]
    system = dict(role='system', content='Be brief.')
    assert decode(ours, chat_ids(ours, [system, u])[0], False) == '<|prompt|>Be brief.\n\n<|answer|>the house<|answer|>'
    for bad in ([], [a], [u, u], [system], [u, system], [system, system, u], [dict(content='x')]):
        with pytest.raises(UserError, match='in turn'): chat_ids(ours, bad)


# measuring

def test_comparison_adds_up(ours):
    kinds = dict(code=texts()[::2], prose=texts()[1::2], one='The house.')
    rows = compare_tokenizers(dict(ours=ours, code=train_tokenizer(texts(), 400, code=True)), kinds)
    assert [(r['tokenizer'], r['kind']) for r in rows] == [(t, k) for k in kinds for t in ('ours', 'code')]
    for r in rows: assert r['bytes_per_token'] * r['tokens'] == pytest.approx(r['bytes']) and r['fertility'] * r['words'] == pytest.approx(r['tokens'])
    assert rows[0]['bytes_per_token'] == bytes_per_token(ours, kinds['code'])
    lines = comparison_table(rows, 'fertility').split('\n')
    assert len(lines) == 3 and len(set(map(len, lines))) == 1
    for bad in ([], '', [' ']):
        with pytest.raises(UserError, match='poems'): compare_tokenizers(dict(ours=ours), dict(poems=bad))

def test_picture():
    import matplotlib; matplotlib.use('Agg')
    from matplotlib import pyplot as plt
    fig = plot_vocabulary({str(v): train_tokenizer(texts(), v) for v in (270, 300)}, dict(all=texts()))
    assert len(fig.axes) == 2 and len(fig.axes[0].lines) == 1
    plt.close(fig)
