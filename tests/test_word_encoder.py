"Ids from a cache of words are those of the library, in every script; a tokenizer that differs goes to the library."
import random
from itertools import product
from string import ascii_lowercase
import numpy as np, pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from llmbook.core import UserError
from llmbook.tokens import word_encoder as words
from llmbook.tokens.tokenizer import encode_arrays, encode_text, train_tokenizer
from llmbook.tokens.word_encoder import WordEncoder, encode_words, word_encoder, word_pattern

PROSE = ["The miller's wheel didn't turn in 1952; it'll turn on 3 May.  Why?\n\n"
         "\tdef f(x):\n\t    return x  # ½\r\n"] * 5
BLOCKS = (
    0x20, 0x80, 0x300, 0x370, 0x530, 0x590, 0x600, 0x900, 0xe00, 0x1000, 0x1100, 0x16a0, 0x1e00, 0x2000, 0x3000,
    0x4e00, 0xa000, 0xac00, 0xfe00, 0x10000, 0x12000, 0x1f300, 0x20000, 0xe0000)
JOINTS = (' ', '  ', '\n', '\r\n', '\t', "'s", "'LL", '12', '2024', '٣', 'abc', '.', '<|endoftext|>', '\x00', '\x1c',
          '\x85', '\u200b')


def any_script(seed, n=60):
    "Return a text of random characters from every block, with the signs between them that patterns look at."
    rng = random.Random(seed)
    def character(): return chr(rng.choice(BLOCKS) + rng.randrange(120))
    def word(): return ''.join(character() for _ in range(rng.randint(1, 6)))
    def piece(): return rng.choice(JOINTS) if rng.random() < .5 else word()
    return ''.join(piece() for _ in range(n))


TEXTS = [*PROSE, '', ' ', '\n', 'x' * 5000, *(any_script(seed) for seed in range(150))]


def by_library(tok, texts):
    tok.encode_special_tokens = True
    return [np.array(e.ids, '<u4') for e in tok.encode_batch_fast(texts, add_special_tokens=False)]


@pytest.mark.parametrize('code', [False, True])
@pytest.mark.parametrize('digits', ['single', 'triple', 'none'])
@pytest.mark.parametrize('model', ['bpe', 'unigram'])
def test_every_tokenizer_made_here_gives_the_librarys_ids(model, digits, code):
    tok = train_tokenizer(PROSE + TEXTS[-40:], 500, model, digits, code)
    assert word_encoder(tok), 'such a tokenizer is meant to be fast'
    for got, want in zip(encode_words(tok, TEXTS), by_library(tok, TEXTS)):
        assert np.array_equal(got, want)


def test_most_scripts_are_looked_up():
    tok = train_tokenizer(PROSE, 300)
    encode = word_encoder(tok)
    for text in ('Ångström', 'Привет мир', '日本語の文章', 'ภาษาไทย', 'हिन्दी', 'العربية ١٢٣', '한국어', '🙂👍🏽', 'Ⅻ ½ ²'):
        assert encode(text) is not None, text


def changed(change):
    tok = Tokenizer.from_str(train_tokenizer(PROSE, 300).to_str())
    change(tok)
    return tok


def set_normalizer(tok): tok.normalizer = normalizers.NFKC()
def cut_at_spaces(tok): tok.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
def set_prefix_space(tok): tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
def set_truncation(tok): tok.enable_truncation(4)
def set_padding(tok): tok.enable_padding(length=9)
def add_token(tok): tok.add_tokens(['wheel'])
def drop_words(tok):
    removed = pre_tokenizers.Split(Regex(r'\d'), 'removed')
    tok.pre_tokenizer = pre_tokenizers.Sequence([removed, pre_tokenizers.ByteLevel(add_prefix_space=False)])


CHANGES = [set_normalizer, cut_at_spaces, set_prefix_space, set_truncation, set_padding, add_token, drop_words]


@pytest.mark.parametrize('change', CHANGES)
def test_a_tokenizer_that_does_more_is_left_to_the_library(change):
    tok = changed(change)
    assert word_encoder(tok) is None
    for got, want in zip(encode_words(tok, PROSE[:2]), by_library(tok, PROSE[:2])):
        assert np.array_equal(got, want)


@pytest.mark.parametrize('change', [set_normalizer, set_truncation, add_token])
def test_a_tokenizer_changed_afterwards_is_not_served_from_the_cache(change):
    tok = train_tokenizer(PROSE, 300)
    encode_words(tok, PROSE)
    change(tok)
    got, = encode_words(tok, PROSE[:1])
    want, = by_library(tok, PROSE[:1])
    assert np.array_equal(got, want)


def test_a_new_special_token_is_no_token_in_a_text():
    tok = train_tokenizer(PROSE, 300, specials=['<|tool|>'])
    ids, = encode_arrays(tok, ['a<|tool|>b<|endoftext|>'])
    assert ids.min() >= 5
    assert word_encoder(tok)


def test_a_wordpiece_model_is_left_to_the_library():
    tok = Tokenizer(models.WordPiece({'[UNK]': 0, 'a': 1}, unk_token='[UNK]'))
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    assert word_encoder(tok) is None


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(words, 'MOST_WORDS', 50)
    tok = train_tokenizer(PROSE, 300)
    encode = WordEncoder(tok, word_pattern(tok))
    long = 'y' * 100
    names = [''.join(two) for two in product(ascii_lowercase[:12], ascii_lowercase)]
    texts = [f'word{name} {long}' for name in names[:300]]
    for text, want in zip(texts, by_library(tok, texts)):
        assert np.array_equal(encode(text), want)
        assert len(encode.words) <= 50
        assert long not in encode.words


def test_a_foreign_pattern_that_leaves_something_out_is_not_followed():
    tok = train_tokenizer(PROSE, 300)
    encode = WordEncoder(tok, word_pattern(tok))
    encode.pattern = words.regex.compile(r'\p{L}+')
    assert encode('two words') is None


@pytest.mark.parametrize('texts', [['half \ud83d'], [7], [None], [['a', 'b']]])
def test_what_is_no_text_is_refused(texts):
    with pytest.raises(UserError): encode_text(train_tokenizer(PROSE, 300), texts)
