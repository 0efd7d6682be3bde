"Tokenizers: nothing is lost, nothing becomes a command, nothing depends on chance."
import json, random
from itertools import product
import pytest
from foreign import gpt2_like
from run_program import output_of
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from llmbook.core import UserError
from llmbook.tokens.compare import PARALLEL_TEXTS, compare_tokenizers, comparison_table, plot_vocabulary
from llmbook.tokens.tokenizer import (
    ANSWER, EOT, MIN_VOCAB, PAD, PROMPT, SPECIALS, bytes_per_token, chat_ids, decode, encode_text, llama_cpp_name,
    load_any, mask_id,
    load_tokenizer, not_restored, read_tokenizer, save_tokenizer, special_ids, text_ids, tokenizer_fingerprint,
    train_tokenizer
)

WORDS = ('the be of and that have with a small house stands near river where people meet every morning 1987 3.14 x_1 '
         'self.name def return import naïve Größe été дом 東京 🙂').split()

def texts(n=60, seed=0):
    "Return prose and code that repeat themselves as real text does."
    rng = random.Random(seed)
    def words(k): return ' '.join(rng.choices(WORDS, k=k))
    def prose(): return words(40) + '.\n'
    def code(i): return f'def f{i}(x):\n    if x > {i}:\n        return my_name.append({words(2)!r})\n\n'
    return [prose() if i % 2 else code(i) for i in range(n)]

VARIANTS = list(product(('bpe', 'unigram'), ('single', 'triple', 'none'), (False, True)))

@pytest.fixture(scope='module', params=VARIANTS, ids=lambda v: '-'.join(map(str, v)))
def tok(request):
    model, digits, code = request.param
    return train_tokenizer(texts(), 500, model, digits, code)

@pytest.fixture(scope='module')
def ours(): return train_tokenizer(texts(), 400)


# training

def test_the_default_is_what_it_always_was():
    "Build it step by step as the first version did: people's shards were made with it."
    old = Tokenizer(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    old.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    old.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIALS, min_frequency=2, show_progress=False,
                                  initial_alphabet=alphabet)
    old.train_from_iterator(texts(), trainer)
    old.encode_special_tokens = True
    assert train_tokenizer(['', *texts(), ''], 400).to_str() == old.to_str()

@pytest.mark.parametrize('model', ['bpe', 'unigram'])
def test_trained_twice_it_is_the_same(model):
    "Train in other processes, with other seeds of the hash tables and other numbers of threads."
    here = tokenizer_fingerprint(train_tokenizer(texts(), 450, model, code=True))
    for seed, parallel in (('1', 'true'), ('2', 'false')):
        environment = dict(PYTHONHASHSEED=seed, RAYON_NUM_THREADS=seed, TOKENIZERS_PARALLELISM=parallel)
        assert output_of('tokenizer_fingerprint', model, **environment) == here + '\n'

def test_specials_come_first(tok):
    assert [tok.token_to_id(s) for s in SPECIALS] == [EOT, PAD, PROMPT, ANSWER] == [0, 1, 2, 3]
    assert special_ids(tok) == dict(eot=0, pad=1, prompt=2, answer=3)
    assert tok.get_vocab_size() <= 500
    assert sorted(tok.get_vocab().values()) == list(range(tok.get_vocab_size()))

@pytest.mark.parametrize('model', ['bpe', 'unigram'])
def test_more_specials(model, tmp_path):
    tok = train_tokenizer(texts(), 400, model, specials=['<|tool|>', 'the'])
    assert tok.token_to_id('<|tool|>') == 4
    assert tok.token_to_id('the') == 5
    text = '<|tool|> the the <|endoftext|>the'
    ids, = encode_text(tok, [text])
    assert not set(ids) & set(range(6))
    assert decode(tok, ids) == text
    save_tokenizer(tok, tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert tokenizer_fingerprint(loaded) == tokenizer_fingerprint(tok)

@pytest.mark.parametrize('options, expected', [
    (dict(vocab_size=MIN_VOCAB - 1), '260'),
    (dict(vocab_size=260, specials=['<|a|>']), '261'),
    (dict(model='words'), 'bpe, unigram'),
    (dict(digits='pair'), 'single'),
    (dict(specials=['<|pad|>']), 'differ'),
    (dict(specials=['a', 'a']), 'differ'),
    (dict(specials=['']), 'differ')])
def test_bad_options(options, expected):
    with pytest.raises(UserError, match=expected): train_tokenizer(texts(), **options)

@pytest.mark.parametrize('model', ['bpe', 'unigram'])
def test_little_text(model):
    for none in ([], [''], iter(())):
        with pytest.raises(UserError, match='got none'): train_tokenizer(none, 300, model)
    for little in ('a', ' ', '\n', 'ab' * 3, 'x' * 5_000):
        tok = train_tokenizer([little], 300, model)
        assert MIN_VOCAB <= tok.get_vocab_size() <= 300
        assert not_restored(tok, [little, 'other 🙂']) == []


# nothing is lost

SPACES = ' \t\n\r\x0b\x0c\x85\xa0\u2028\u3000'
STRANGE = ['👩‍👩‍👧', '🇩🇪', 'e\u0301', '\ufeff', '\x00', '\r\n', '    ', '½', '१२३', '１２']

def any_code_point(rng):
    "Return a character of all of Unicode but surrogates."
    below = rng.randrange(0xd800)
    above = rng.randrange(0xe000, 0x110000)
    return chr(rng.choice((below, above)))

def any_character(rng):
    "Return a character or a piece of text, often white space."
    kind = rng.randrange(7)
    if kind == 0: return chr(rng.randrange(128))
    if kind == 1: return rng.choice(SPACES)
    if kind == 2: return rng.choice(WORDS)
    if kind == 3: return any_code_point(rng)
    if kind == 4: return rng.choice(SPECIALS + ['<|', '|>'])
    if kind == 5: return rng.choice(STRANGE)
    return str(rng.randrange(10**6))

def any_text(rng): return ''.join(any_character(rng) for _ in range(rng.randrange(60)))

def test_any_text_comes_back(tok):
    rng = random.Random(0)
    some = [any_text(rng) for _ in range(400)] + ['', *PARALLEL_TEXTS.values()]
    assert not_restored(tok) == []
    assert not_restored(tok, some) == []
    found = {i for ids in encode_text(tok, some) for i in ids}
    assert not found & {0, 1, 2, 3}, 'a text made a special token'

def test_long_runs_take_their_time_only():
    "Patterns that look ahead must not be quadratic in a run of digits or spaces."
    runs = [c * 50_000 for c in ('1', ' ', '\n', 'a ', '-', ' \n')]
    for model, digits, code in VARIANTS[:6]:
        assert not_restored(train_tokenizer(texts(), 300, model, digits, code), runs) == []

def words_of(text, **options):
    "Return the words that a tokenizer cuts a text into before its pieces."
    tok = train_tokenizer(texts(), 300, **options)
    return [word for word, _ in tok.pre_tokenizer.pre_tokenize_str(text)]

@pytest.mark.parametrize('code', [False, True])
def test_digits(code):
    def number(digits): return words_of('a 1234567', digits=digits, code=code)
    assert number('single') == ['a', 'Ġ', *'1234567']
    assert number('triple') == ['a', 'Ġ', '123', '456', '7']
    assert number('none') == ['a', 'Ġ1234567']

def test_code_cuts():
    function = words_of('if my_name.x:\n        return\n\tb', code=True)
    assert function == ['if', 'Ġmy', '_name', '.x', ':ĊĠĠĠĠĠĠĠ', 'Ġreturn', 'Ċ', 'ĉb']
    assert words_of('a\n\n    b  c', code=True) == ['a', 'ĊĊĠĠĠ', 'Ġb', 'Ġ', 'Ġc']

def test_texts_in_a_list_of_text(ours):
    assert encode_text(ours, []) == []
    assert encode_text(ours, ['']) == [[]]
    for bad in ('text', ['\ud800'], [None], [b'x']):
        with pytest.raises(UserError): encode_text(ours, bad)
    assert encode_text(ours, ['house', 'x']) == encode_text(ours, ['house']) + encode_text(ours, ['x'])

def test_encoding_leaves_the_tokenizer_as_it_was(ours):
    tok = Tokenizer.from_str(ours.to_str())
    for setting in (False, True):
        tok.encode_special_tokens = setting
        encode_text(tok, SPECIALS)
        assert tok.encode_special_tokens is setting


# tokenizers from elsewhere

def of_bytes(): return gpt2_like(texts(), 400, '<|endoftext|>')

def llama_like():
    tok = Tokenizer(models.BPE(byte_fallback=True, unk_token='<unk>', fuse_unk=True))
    tok.normalizer = normalizers.Sequence([
        normalizers.Prepend('▁'),
        normalizers.Replace(' ', '▁'),
    ])
    tok.decoder = decoders.Sequence([
        decoders.Replace('▁', ' '),
        decoders.ByteFallback(),
        decoders.Fuse(),
        decoders.Strip(' ', 1, 0),
    ])
    all_bytes = [f'<0x{i:02X}>' for i in range(256)]
    special = ['<unk>', '<s>', '</s>', *all_bytes]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=special, show_progress=False)
    tok.train_from_iterator(texts(), trainer)
    state = json.loads(tok.to_str())
    state['added_tokens'] = [t for t in state['added_tokens'] if t['content'] not in all_bytes]
    return Tokenizer.from_str(json.dumps(state))

def bert_like():
    tok = Tokenizer(models.WordPiece(unk_token='[UNK]'))
    tok.normalizer = normalizers.BertNormalizer()
    tok.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tok.decoder = decoders.WordPiece()
    special = ['[PAD]', '[UNK]', '[CLS]', '[SEP]']
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    tok.train_from_iterator(texts(), trainer)
    return tok

OTHERS = [
    (of_bytes, '<|endoftext|>', ['<|pad|>', '<|prompt|>', '<|answer|>'], True),
    (llama_like, '</s>', ['<|pad|>', '<|prompt|>', '<|answer|>'], True),
    (bert_like, '<|endoftext|>', ['<|endoftext|>', '<|prompt|>', '<|answer|>'], False)]

def load_other(make, folder):
    "Save a tokenizer from elsewhere, with settings that cut and fill texts, and load it."
    theirs = make()
    theirs.enable_truncation(4)
    theirs.enable_padding(length=4)
    save_tokenizer(theirs, folder)
    return theirs, load_any(folder)

@pytest.mark.parametrize('make, eot, added, lossless', OTHERS)
def test_any_tokenizer_is_made_usable(make, eot, added, lossless, tmp_path):
    theirs, got = load_other(make, tmp_path)
    size = theirs.get_vocab_size()
    assert got.vocab_size == size + len(added)
    assert got.added == added
    added_ids = [got.special[name] for name in added]
    assert added_ids == list(range(size, got.vocab_size))
    assert got.ids['eot'] == got.special[eot]
    assert len(set(got.ids.values())) == 4
    pieces = got.tok.get_vocab().items()
    own = {piece: i for piece, i in pieces if i < size}
    assert own == theirs.get_vocab(), "the file's numbers stay"

@pytest.mark.parametrize('make, eot, added, lossless', OTHERS)
def test_any_tokenizer_tells_what_was_changed(make, eot, added, lossless, tmp_path):
    _, got = load_other(make, tmp_path)
    notes = '\n'.join(got.notes)
    assert ('not lossless' in notes) is not lossless
    assert 'switched off' in notes
    assert 'eot ' + eot in repr(got)

@pytest.mark.parametrize('make, eot, added, lossless', OTHERS)
def test_any_tokenizer_keeps_text_and_commands_apart(make, eot, added, lossless, tmp_path):
    _, got = load_other(make, tmp_path)
    commands = set(got.ids.values())
    long = ' '.join(WORDS[:16] * 20)
    ids, = encode_text(got.tok, [long])
    assert len(ids) > 300
    assert not set(ids) & commands
    if lossless: assert decode(got.tok, ids) == long
    sneaky, = encode_text(got.tok, [''.join(got.special)])
    assert not set(sneaky) & commands, 'a text made a special token'

@pytest.mark.parametrize('make, eot, added, lossless', OTHERS)
def test_any_tokenizer_is_completed_once(make, eot, added, lossless, tmp_path):
    _, got = load_other(make, tmp_path)
    save_tokenizer(got.tok, tmp_path)
    again = load_any(tmp_path)
    assert again.added == []
    assert again.ids == got.ids == special_ids(again.tok)

def test_ours_needs_nothing(ours, tmp_path):
    save_tokenizer(ours, tmp_path)
    got = load_any(tmp_path)
    assert (got.added, got.notes, got.ids) == ([], [], dict(eot=0, pad=1, prompt=2, answer=3))
    strict = load_tokenizer(tmp_path)
    assert tokenizer_fingerprint(got.tok) == tokenizer_fingerprint(ours) == tokenizer_fingerprint(strict)

def test_the_strict_reader_stays_strict(tmp_path):
    save_tokenizer(of_bytes(), tmp_path)
    with pytest.raises(UserError, match='ids 0 to 3'): load_tokenizer(tmp_path)

def test_what_looks_special_but_is_text(tmp_path):
    """Names that the file does not mark as special are pieces of text.

    Taking one for the end would end every document that has it."""
    tok = of_bytes()
    tok.add_tokens([AddedToken('</s>', special=False)])
    assert 'eot' in load_any(save_tokenizer(tok, tmp_path)).ids
    assert load_any(tmp_path).ids['eot'] == tok.token_to_id('<|endoftext|>')

def test_a_vocabulary_with_gaps_is_refused(tmp_path):
    tok = Tokenizer(models.WordLevel({'a': 0, 'b': 1, '[UNK]': 9}, unk_token='[UNK]'))
    with pytest.raises(UserError, match='gaps'): load_any(save_tokenizer(tok, tmp_path))

# which ids frame a text

def elsewhere(*specials):
    "Make a tokenizer whose special tokens come behind all bytes."
    return gpt2_like(['hi'], 256, *specials) # their ids are 256 and more

def framed(tok, folder, **files):
    "Return the ids of a tokenizer that was read from a folder with these settings."
    save_tokenizer(tok, folder)
    for name, content in files.items(): (folder/f'{name}.json').write_text(json.dumps(content))
    return text_ids(read_tokenizer(folder))

def test_ours_has_its_fixed_ids(ours, tmp_path):
    assert framed(ours, tmp_path, config=dict(eos_token_id=2)) == text_ids(ours)
    ids = text_ids(ours)
    assert (ids.end, ids.bos, ids.begin, ids.pad) == ((EOT,), None, EOT, PAD)

GPT2, LLAMA3 = ('<|endoftext|>',), ('<|begin_of_text|>', '<|end_of_text|>', '<|eot_id|>')
OLDER_FILE = dict(eos_token=dict(content='[A]'), bos_token='[B]', pad_token='[C]')
BOTH_FILES = dict(tokenizer_config=dict(eos_token='[A]'), config=dict(eos_token_id=256))
ROWS = { # special tokens, settings, end, bos, begin, pad
    'by name alone': (GPT2, {}, (256,), None, 256, None),
    'none': ((), {}, (), None, None, None),
    'a default that nobody filled in': (GPT2, dict(config=dict(bos_token_id=1, eos_token_id=2, pad_token_id=0)),
                                        (256,), None, 256, None),
    'as GPT-2 says it': (GPT2, dict(tokenizer_config=dict(eos_token='<|endoftext|>', bos_token='<|endoftext|>')),
                         (256,), 256, 256, None),
    'several': (LLAMA3, dict(tokenizer_config=dict(bos_token='<|begin_of_text|>', eos_token='<|eot_id|>'),
                             generation_config=dict(eos_token_id=[257, 258])), (258, 257), 256, 256, None),
    'the older file': (('[A]', '[B]', '[C]'), dict(special_tokens_map=OLDER_FILE), (256,), 257, 257, 258),
    'the tokenizer before the model': (('[A]', '</s>'), BOTH_FILES, (256,), None, 256, None),
    'only the model says it': ((), dict(config=dict(eos_token_id=33)), (33,), None, 33, None),
    'out of range': ((), dict(config=dict(eos_token_id=50256)), (), None, None, None),
}

@pytest.mark.parametrize('name', ROWS)
def test_the_ids_that_frame_a_text(name, tmp_path):
    specials, files, *want = ROWS[name]
    ids = framed(elsewhere(*specials), tmp_path, **files)
    assert [ids.end, ids.bos, ids.begin, ids.pad] == want

def test_a_template_says_what_opens_a_text():
    tok = elsewhere('<s>', '</s>')
    marks = [('<s>', 256), ('</s>', 257)]
    tok.post_processor = processors.TemplateProcessing(single='<s> $A </s>', special_tokens=marks)
    ids = text_ids(tok)
    assert (ids.front, ids.bos, ids.end) == ((256,), 256, (257,))

def test_what_cannot_be_spelt_has_an_id():
    tok = Tokenizer(models.WordLevel({'a': 0, '<unk>': 1}, unk_token='<unk>'))
    assert text_ids(tok).unknown == 1

def test_an_appended_token_takes_a_role_only_if_none_has_it(tmp_path):
    framed(elsewhere('[A]'), tmp_path, tokenizer_config=dict(eos_token='[A]', pad_token='[A]'))
    theirs = load_any(tmp_path)
    assert theirs.added == ['<|prompt|>', '<|answer|>']
    assert theirs.ids == dict(eot=256, pad=256, prompt=257, answer=258)

def test_settings_that_are_damaged_are_named(tmp_path):
    save_tokenizer(elsewhere(), tmp_path)
    (tmp_path/'tokenizer_config.json').write_text('{"eos')
    with pytest.raises(UserError, match='tokenizer_config.json is not valid JSON'):
        read_tokenizer(tmp_path)

def test_a_default_that_is_out_of_range_hides_nothing(tmp_path):
    files = dict(generation_config=dict(bos_token_id=50256, eos_token_id=50256),
                 config=dict(bos_token_id=256, eos_token_id=257))
    ids = framed(elsewhere('[A]', '[B]'), tmp_path, **files)
    assert (ids.end, ids.bos) == ((257,), 256)

@pytest.mark.parametrize('digits, code, name', [
    ('single', False, 'smollm'), ('none', False, 'gpt-2'), ('triple', False, None), ('single', True, None)])
def test_the_name_that_llama_cpp_has(digits, code, name):
    tok = train_tokenizer(texts(), 400, digits=digits, code=code)
    if name: assert llama_cpp_name(tok) == name
    else:
        with pytest.raises(UserError, match='llama.cpp has no name'): llama_cpp_name(tok)

@pytest.mark.parametrize('make', [
    lambda: train_tokenizer(texts(), 400, model='unigram'), lambda: Tokenizer(models.BPE())])
def test_what_llama_cpp_cannot_cut_is_refused(make):
    with pytest.raises(UserError, match='llama.cpp has no name'): llama_cpp_name(make())

def test_the_token_for_a_gap_is_the_one_that_is_named(tmp_path):
    framed(elsewhere('[A]', '[GAP]'), tmp_path, tokenizer_config=dict(mask_token='[GAP]'))
    assert mask_id(read_tokenizer(tmp_path)) == 257

@pytest.mark.parametrize('load', [load_any, load_tokenizer])
def test_damaged_files(load, tmp_path):
    with pytest.raises(UserError, match='found none'): load(tmp_path/'none.json')
    (tmp_path/'tokenizer.json').write_text('{"version": "1.0"')
    with pytest.raises(UserError, match='not a tokenizer'): load(tmp_path)


# conversations

USER = dict(role='user', content='<|answer|>the house')
ASSISTANT = dict(role='assistant', content='river<|endoftext|>')
SYSTEM = dict(role='system', content='Be brief.')

def test_chats(ours):
    ids, mask = chat_ids(ours, [USER, ASSISTANT, USER, ASSISTANT])
    assert [i for i in ids if i < 4] == [PROMPT, ANSWER, EOT] * 2
    assert len(ids) == len(mask)
    answers = [i for i, is_answer in zip(ids, mask) if is_answer]
    assert decode(ours, answers, False) == 'river<|endoftext|><|endoftext|>' * 2

def test_a_chat_that_waits_for_an_answer(ours):
    whole, _ = chat_ids(ours, [USER, ASSISTANT, USER, ASSISTANT])
    open_ids, _ = chat_ids(ours, [USER, ASSISTANT, USER])
    assert open_ids == whole[:len(open_ids)]
    _, mask = chat_ids(ours, [USER])
    assert not mask[-1]

def test_a_system_message_opens_the_first_prompt(ours):
    ids, _ = chat_ids(ours, [SYSTEM, USER])
    assert decode(ours, ids, False) == '<|prompt|>Be brief.\n\n<|answer|>the house<|answer|>'

@pytest.mark.parametrize('bad', [[], [ASSISTANT], [USER, USER], [SYSTEM], [USER, SYSTEM], [SYSTEM, SYSTEM, USER],
                                 [dict(content='x')]])
def test_chats_out_of_turn(ours, bad):
    with pytest.raises(UserError, match='in turn'): chat_ids(ours, bad)


# measuring

@pytest.fixture
def compared(ours):
    "Return two tokenizers, the texts of three kinds, and the rows of their comparison."
    kinds = dict(code=texts()[::2], prose=texts()[1::2], one='The house.')
    tokenizers = dict(ours=ours, code=train_tokenizer(texts(), 400, code=True))
    return tokenizers, kinds, compare_tokenizers(tokenizers, kinds)

def test_a_comparison_has_a_row_for_each_kind_and_tokenizer(compared, ours):
    tokenizers, kinds, rows = compared
    names = [(row['kind'], row['tokenizer']) for row in rows]
    assert names == list(product(kinds, tokenizers))
    assert rows[0]['bytes_per_token'] == bytes_per_token(ours, kinds['code'])

def test_comparison_adds_up(compared):
    _, _, rows = compared
    for row in rows:
        n_bytes = row['bytes_per_token'] * row['tokens']
        assert n_bytes == pytest.approx(row['bytes'])
        n_tokens = row['fertility'] * row['words']
        assert n_tokens == pytest.approx(row['tokens'])

def test_the_table_of_a_comparison_has_lines_of_one_length(compared):
    _, _, rows = compared
    lines = comparison_table(rows, 'fertility').split('\n')
    assert len(lines) == 3
    lengths = {len(line) for line in lines}
    assert len(lengths) == 1

def test_a_comparison_counts_words_without_spaces(ours):
    row, = compare_tokenizers(dict(ours=ours), dict(Chinese=['猫在窗边。', '狗在门口。']))
    assert row['words'] == 8

@pytest.mark.parametrize('bad', [[], '', [' ']])
def test_a_comparison_on_nothing(ours, bad):
    with pytest.raises(UserError, match='poems'):
        compare_tokenizers(dict(ours=ours), dict(poems=bad))

def test_picture():
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot as plt
    tokenizers = {str(size): train_tokenizer(texts(), size) for size in (270, 300)}
    fig = plot_vocabulary(tokenizers, dict(all=texts()))
    assert len(fig.axes) == 2
    assert len(fig.axes[0].lines) == 1
    plt.close(fig)
