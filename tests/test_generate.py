"Generation against transformers and against its definition, by family."
import math, warnings
import pytest, torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from foreign import byte_level, gpt2_like
from llmbook.core import UserError, import_transformers
from llmbook.generate.fill_mask import fill_mask
from llmbook.generate.cuda_graph import decoder
from llmbook.generate.decoder import Cached, Decoder, Product, Reread
from llmbook.generate.sampling import penalise, shares
from llmbook.generate.text import _Text, generate, generate_ids, show_generate, stream
from llmbook.model.config import ModelConfig
from llmbook.model.hf import save_pretrained
from llmbook.model.hf_wrap import as_lm
from llmbook.model.transformer import Transformer
from llmbook.tokens.tokenizer import decode, encode_text, load_any, train_tokenizer

BASE = dict(vocab_size=320, n_layer=2, d_model=64, n_head=4, context=64, tie_embeddings=False)
MODELS = {'qwen3': dict(n_kv_head=2),
          'llama': dict(family='llama', n_kv_head=2),
          'gpt2': dict(family='gpt2'),
          'relu2': dict(mlp='relu2', n_kv_head=1),
          'odd': dict(vocab_size=317, d_ff=51, n_kv_head=1),
          'wide': dict(head_dim=24, n_kv_head=4)}
TEXTS = ['the cat sat on the mat; the cat ran.', 'def cat(mat):\n    return mat + 1'] * 20


def build(name='qwen3', **kwargs):
    "Make a model with weights so large that no two logits are near each other."
    torch.manual_seed(0)
    config = ModelConfig(**{**BASE, **MODELS[name], **kwargs})
    model = Transformer(config).eval()
    with torch.no_grad():
        for p in model.parameters(): p.copy_(torch.randn_like(p) * .2 + (p.ndim == 1))
    return model


def prompts(n=4, T=9): return torch.randint(4, 300, (n, T), generator=torch.Generator().manual_seed(1)).tolist()


def prompts_of(*lengths): return [p[:n] for p, n in zip(prompts(len(lengths)), lengths)]


def naive(model, ids, n):
    "Continue by the definition: the most likely token after each whole text."
    ids = list(ids)
    with torch.no_grad():
        for _ in range(n):
            h = model(torch.tensor([ids]))
            logits = model.logits(h[0, -1])
            ids.append(logits.argmax().item())
    return ids[-n:]


def greedy(model, ids, n): return generate_ids(model, ids, n, temperature=0, stop=None)


@pytest.fixture(scope='module')
def tok(): return train_tokenizer(TEXTS, 300)


@pytest.fixture(scope='module')
def tf(): return import_transformers()


# ---- the decoder

@pytest.mark.parametrize('pack', [False, True])
@pytest.mark.parametrize('n_rows', [1, 3])
@pytest.mark.parametrize('name', MODELS)
def test_decoder_equals_the_model(name, n_rows, pack):
    model = build(name)
    x = torch.tensor(prompts(3, 30))[:n_rows]
    d = Decoder(model, n_rows, start=8, pack=pack)
    lengths = [7] + [1] * 20 + [3]
    with torch.inference_mode():
        got = [d(part) for part in x.split(lengths, 1)]
        whole = model.logits(model(x))
    ends = torch.tensor(lengths).cumsum(0) - 1 # the decoder gives logits after each part
    want = whole[:, ends]
    differences = torch.stack(got, 1) - want
    assert differences.abs().max() < 1e-3 * want.abs().max()


@pytest.mark.parametrize('name', ['qwen3', 'gpt2', 'relu2', 'wide'])
def test_greedy_equals_the_definition_with_padding(name):
    model = build(name)
    ps = prompts_of(1, 9, 4, 7, 4, 2)
    assert greedy(model, ps, 30) == [naive(model, p, 30) for p in ps]


@pytest.mark.parametrize('penalty', [1., 1.3])
@pytest.mark.parametrize('name', ['qwen3', 'llama', 'gpt2'])
def test_greedy_equals_transformers(name, penalty, tok, tf, tmp_path):
    model, ps = build(name), prompts()
    save_pretrained(model, tok, tmp_path)
    theirs = tf.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    options = dict(
        max_new_tokens=30,
        min_new_tokens=30,
        do_sample=False,
        repetition_penalty=penalty,
        eos_token_id=None,
        pad_token_id=1,
    )
    for rows in (ps, ps[:1]):
        ids = torch.tensor(rows)
        want = theirs.generate(ids, attention_mask=torch.ones_like(ids), **options)
        got = generate_ids(model, rows, 30, temperature=0, stop=None, repetition_penalty=penalty)
        assert got == want[:, 9:].tolist()


def take_a_step(model, rows):
    opt = torch.optim.AdamW(model.parameters(), lr=.1, fused=True)
    h = model(torch.tensor(rows))
    model.logits(h).logsumexp(-1).mean().backward()
    opt.step()


def test_a_training_step_is_seen():
    model, ps = build(), prompts()
    for rows in (ps, ps[:1]):
        before = greedy(model, rows, 20)
        take_a_step(model, rows)
        after = greedy(model, rows, 20)
        assert after != before
        assert after == [naive(model, p, 20) for p in rows]


class Doubled(torch.nn.Linear):
    "A layer that the decoder does not know."
    def forward(self, x): return super().forward(x) * 2


def test_other_layers_use_the_forward_pass():
    plain, model = build(), build()
    attn = model.blocks[1].attn
    old = attn.v_proj
    attn.v_proj = Doubled(old.in_features, old.out_features, bias=False)
    attn.v_proj.weight = old.weight
    assert type(decoder(model)) is Cached
    assert type(decoder(plain)) is Decoder
    p, = prompts(1)
    written = greedy(model, [p], 20)
    assert written == [naive(model, p, 20)]
    assert written != greedy(plain, [p], 20)


class Wrapped(torch.nn.Module):
    "A model that takes no cache."
    def __init__(self, model):
        super().__init__()
        self.model = model
        self.embed = model.embed
        self.head = model.head
        self.config = model.config
    def forward(self, x): return self.model(x)
    def logits(self, h): return self.model.logits(h)


def test_a_model_without_a_cache():
    model = build()
    ps = prompts_of(3, 9, 3, 7, 9)
    assert type(decoder(Wrapped(model))) is Reread
    assert generate_ids(Wrapped(model), ps, 12, seed=4) == generate_ids(model, ps, 12, seed=4)


def test_an_encoder_is_refused():
    encoder = Transformer(ModelConfig(family='encoder', vocab_size=320, n_layer=1, d_model=32, n_head=2, context=32))
    with pytest.raises(UserError, match='an encoder fills gaps'): generate_ids(encoder, [[5]], 4)


def test_bfloat16_writes():
    written = generate_ids(build().bfloat16(), prompts(), 8, stop=None)
    assert [len(ids) for ids in written] == [8] * 4


def test_the_cache_stays_small():
    d = Decoder(build(context=64), 2, start=4)
    with torch.inference_mode():
        for _ in range(20): d(torch.tensor([[5], [6]]))
        assert d.cache.kv.shape[4] == 32
        with pytest.raises(UserError, match='at most 64'): d(torch.zeros(2, 45, dtype=torch.long))


def test_one_vector_needs_no_copy():
    layer = torch.nn.Linear(32, 64)
    assert Product(layer).views[0].data_ptr() == layer.weight.data_ptr()


# ---- choosing, against transformers

def logits(): return torch.randn(6, 320, generator=torch.Generator().manual_seed(2)) * 3


def warped(tf, x, options):
    "Return logits after the warpers of transformers, in the order in which they are applied there."
    warpers = dict(
        temperature=tf.TemperatureLogitsWarper,
        top_k=tf.TopKLogitsWarper,
        top_p=tf.TopPLogitsWarper,
        min_p=tf.MinPLogitsWarper,
    )
    for name, warper in warpers.items():
        if name in options: x = warper(options[name])(None, x)
    return x


@pytest.mark.parametrize('options', [
    dict(top_k=5),
    dict(top_p=.8),
    dict(min_p=.2),
    dict(temperature=.6, top_k=30, top_p=.9, min_p=.05),
])
def test_shares_equal_transformers(tf, options):
    want = warped(tf, logits().double(), options).softmax(-1)
    p, ids = shares(logits(), **options)
    if ids is not None:
        everywhere = torch.zeros(6, 320, dtype=p.dtype)
        p = everywhere.scatter(1, ids, p)
    torch.testing.assert_close(p / p.sum(-1, keepdim=True), want)


def test_penalty_equals_transformers(tf):
    ids = torch.tensor(prompts(6))
    x = logits()
    seen = torch.zeros(6, 320, dtype=torch.bool).scatter(1, ids, True)
    want = tf.RepetitionPenaltyLogitsProcessor(1.4)(ids, x.clone())
    assert penalise(x, seen, 1.4).equal(want)


def test_penalty_does_not_depend_on_the_batch():
    model = build()
    ps = prompts_of(1, 9, 4, 7, 4)
    options = dict(seed=2, repetition_penalty=1.5, min_p=.02)
    assert generate_ids(model, ps, 20, **options) == generate_ids(model, ps, 20, batch_size=1, **options)


BAD = [dict(min_p=-.1), dict(min_p=1.1), dict(repetition_penalty=0), dict(top_p=1.01), dict(top_p=-.1),
       dict(top_k=1.5), dict(batch_size=0),
       dict(temperature=float('nan')), dict(seed='x'), dict(seed=-1), dict(stop='x'),
       *(dict(max_new_tokens=n) for n in (0, -1, 2.5, True, 10 ** 6))]

@pytest.mark.parametrize('bad', BAD)
def test_bad_settings_are_refused(bad):
    name = next(iter(bad))
    settings = dict(max_new_tokens=4) | bad
    with pytest.raises(UserError, match=f'expected {name} '):
        generate_ids(build(), [[5]], **settings)


def test_a_prompt_that_is_cut_gives_a_warning():
    model = build(context=64)
    with pytest.warns(UserWarning, match='has 70 tokens, and the model sees the last 54'):
        cut = greedy(model, [[5] * 70], 10)
    assert cut == greedy(model, [[5] * 54], 10)


# ---- stop texts and streams

def feed(tok, text, stop):
    "Feed a text token by token; return what was shown, the text, and whether a stop text ended it."
    row = _Text(tok, stop)
    shown = ''
    for i in encode_text(tok, [text])[0]:
        piece, over = row.add(i)
        shown += piece
        assert not any(s in shown for s in stop)
        if over: break
    return shown + row.rest(), row.text, over


@pytest.mark.parametrize('stop, want', [
    (['mat; the c'], 'the cat sat on the '),
    (['x', ' on', 'sat'], 'the cat '),
    (['nowhere'], None),
    (['.'], 'the cat sat on the mat; the cat ran')])
def test_stop_texts_are_found_across_tokens_and_never_shown(tok, stop, want):
    shown, text, over = feed(tok, TEXTS[0], stop)
    assert shown == text == (want or TEXTS[0])
    assert over == (want is not None)


def test_what_only_began_like_a_stop_text_is_shown(tok):
    shown, *_ = feed(tok, 'the cat sat on the ma', ['the mat'])
    assert shown == 'the cat sat on the ma'


def test_half_characters_wait(tok):
    row = _Text(tok, [])
    pieces = [row.add(i)[0] for i in encode_text(tok, ['日本é'])[0]]
    assert [p for p in pieces if p] == ['日', '本', 'é']


def cut_at(text, stop):
    "Return a text up to the first of the stop texts."
    starts = [text.index(s) for s in stop if s in text]
    return text[:min(starts, default=len(text))]


def test_stop_texts_end_each_row_by_itself(tok):
    model, ps = build(), ['the cat', 'def', 'mat;']
    free = generate(model, tok, ps, 40, seed=3, stop_at_eot=False)
    stop = [free[0][5:7], free[1][9:11]]
    want = [cut_at(text, stop) for text in free]
    assert len(want[0]) <= 5
    assert len(want[1]) <= 9
    pieces = ['', '', '']
    def tell(row, piece): pieces[row] += piece
    written = generate(model, tok, ps, 40, seed=3, stop_at_eot=False, stop=stop, on_text=tell)
    assert written == want
    assert pieces == want


@pytest.mark.parametrize('stop', [None, 'a'])
def test_a_stream_gives_the_same_text(tok, stop):
    model = build()
    whole, = generate(model, tok, 'the cat', 20, seed=1, stop=stop)
    assert ''.join(stream(model, tok, 'the cat', max_new_tokens=20, seed=1, stop=stop)) == whole


def test_the_reader_of_a_stream_may_train_between_two_pieces(tok):
    pieces = stream(build(), tok, 'the cat', max_new_tokens=20)
    next(pieces)
    assert not torch.is_inference_mode_enabled()


def test_shown_text_is_escaped(tok, capsys):
    shown = show_generate(build(), tok, '<script>x</script>', max_new_tokens=3)
    assert isinstance(shown, str)
    assert '<script>' not in capsys.readouterr().out


def test_a_true_answer_ends_a_row():
    model, ps = build(), prompts()
    free = generate_ids(model, ps, 20, seed=1, stop=None)
    want = [ids[:1] if row == 1 else ids for row, ids in enumerate(free)]
    assert generate_ids(model, ps, 20, seed=1, stop=None, on_token=lambda row, token: row == 1) == want


# ---- a model that writes what it is told, and tokenizers from elsewhere

class Scripted(torch.nn.Module):
    "Writes one row of tokens, whatever the prompt is."
    def __init__(self, vocab_size, ids):
        super().__init__()
        self.config = ModelConfig(vocab_size=vocab_size, n_layer=1, d_model=32, n_head=2, context=96)
        self.embed = torch.nn.Embedding(vocab_size, 1)
        self.ids = list(ids) + [4] * 96
        self.start = None

    def forward(self, x):
        self.start = self.start or x.shape[1]
        h = torch.zeros(*x.shape, 1)
        h[:, -1] = self.ids[x.shape[1] - self.start]
        return h

    def logits(self, h): return torch.nn.functional.one_hot(h[..., 0].long(), self.config.vocab_size).float()


def write(tok, text, ids=None, **options):
    "Return what `generate` and `stream` make of a scripted text."
    if ids is None: ids = encode_text(tok, [text])[0]
    n_ids = max(tok.get_vocab().values()) + 1
    settings = dict(max_new_tokens=len(ids), temperature=0, stop_at_eot=False) | options
    whole, = generate(Scripted(n_ids, ids), tok, 'q', **settings)
    pieces = list(stream(Scripted(n_ids, ids), tok, 'q', **settings))
    assert ''.join(pieces) == whole
    return whole, pieces


def metaspace(prepend):
    tok = Tokenizer(models.BPE(unk_token='<unk>', byte_fallback=True))
    tok.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend)
    tok.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme=prepend)])
    return tok

def word_pieces():
    tok = Tokenizer(models.WordPiece(unk_token='<unk>'))
    tok.pre_tokenizer = pre_tokenizers.Whitespace()
    tok.decoder = decoders.WordPiece()
    return tok

def trained(tok, text='the cat sat on the mat; q a b c d x y END of it'):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet()) if isinstance(tok.decoder, decoders.ByteLevel) else []
    specials = ['<unk>', '<s>', '</s>'] + [f'<0x{b:02X}>' for b in range(256)] * (not alphabet)
    kind = trainers.WordPieceTrainer if isinstance(tok.model, models.WordPiece) else trainers.BpeTrainer
    tok.train_from_iterator([text] * 9, kind(vocab_size=700, special_tokens=specials, initial_alphabet=alphabet,
                                             show_progress=False))
    return tok

PREFIXES = {
    'bytes': lambda: byte_level(),
    'bytes, space in front': lambda: byte_level(True),
    'metaspace, always': lambda: metaspace('always'),
    'metaspace, first': lambda: metaspace('first'),
    'metaspace, never': lambda: metaspace('never'),
    'word pieces': word_pieces,
}

@pytest.mark.parametrize('stop', [None, 'sat', ['mat; q', 'END'], ['t on', ' on the m', 'n']])
@pytest.mark.parametrize('name', PREFIXES)
def test_a_stream_is_what_generate_returns_for_any_prefix_setting(name, stop):
    tok = trained(PREFIXES[name]())
    text = 'the cat sat on the mat; q END of it'
    whole, pieces = write(tok, text, stop=stop)
    stops = [stop] if isinstance(stop, str) else stop or []
    for s in stops: assert s not in whole
    for piece in pieces: assert '\ufffd' not in piece
    if stop: return
    prompt, added = encode_text(tok, ['q', text])
    assert decode(tok, prompt) + whole == decode(tok, prompt + added)

@pytest.mark.parametrize('text, stop, want', [
    ('abé!', 'bé', 'a'),
    ('x日本y', '日本', 'x'),
    ('x日x日本y', ['日本', '本y'], 'x日x'),
    ('🙂🙃🙂🙂', '🙂🙂', '🙂🙃'),
    ('aab, aac', 'aac', 'aab, '),
    ('abcabd', ['bd', 'cabd'], 'ab'),
    ('日日日', '日', '')])
def test_no_part_of_a_stop_text_is_streamed(text, stop, want):
    tok = train_tokenizer(['a'], 260) # each byte is a token
    assert write(tok, text, stop=stop)[0] == want

def test_a_character_that_never_ends_is_left_out():
    tok = train_tokenizer(['a'], 260)
    ids, = encode_text(tok, ['ab日'])
    for n, want in ((2, 'ab'), (3, 'ab'), (4, 'ab'), (5, 'ab日')):
        whole, pieces = write(tok, '', ids[:n])
        assert whole == want
        assert '\ufffd' not in ''.join(pieces)


def test_a_byte_that_cannot_begin_a_character_is_shown_as_wrong():
    tok = train_tokenizer(['a'], 260)
    a, wrong = tok.token_to_id('a'), tok.token_to_id('Ģ')
    whole, _ = write(tok, '', [a, wrong])
    assert whole == 'a\ufffd'

def test_a_stop_text_in_the_prompt_ends_nothing():
    tok = train_tokenizer(['a'], 260)
    model = Scripted(260, encode_text(tok, ['ND then END.'])[0])
    assert generate(model, tok, 'END of E', 12, temperature=0, stop='END') == ['ND then ']

def plain_bytes(*specials):
    "Make a tokenizer without merges, in which 0 is an exclamation mark."
    return gpt2_like(['hi'], 256, *specials)

def test_a_text_ends_with_the_tokenizers_own_end():
    tok = plain_bytes('<|endoftext|>')
    ids = encode_text(tok, ['hi!!'])[0] + [256] + encode_text(tok, ['never'])[0]
    assert generate(Scripted(257, ids), tok, 'q', 20, temperature=0) == ['hi!!']
    pieces = stream(Scripted(257, ids), tok, 'q', max_new_tokens=20, temperature=0)
    assert ''.join(pieces) == 'hi!!'

@pytest.mark.parametrize('end', ['<|end_of_text|>', '<|eot_id|>'])
def test_any_of_several_ends_ends_a_text(end, tmp_path):
    tok = plain_bytes('<|begin_of_text|>', '<|end_of_text|>', '<|eot_id|>')
    tok.save(str(tmp_path/'tokenizer.json'))
    (tmp_path/'generation_config.json').write_text('{"eos_token_id": [257, 258]}')
    tok = load_any(tmp_path).tok
    ids = encode_text(tok, ['hi!'])[0] + [tok.token_to_id(end)] + encode_text(tok, ['never'])[0]
    n_ids = max(tok.get_vocab().values()) + 1
    assert generate(Scripted(n_ids, ids), tok, 'q', 20, temperature=0) == ['hi!']

def test_a_tokenizer_without_an_end_writes_on_and_needs_a_prompt():
    tok = plain_bytes()
    ids = encode_text(tok, ['hi!! you'])[0]
    assert generate(Scripted(256, ids), tok, 'q', len(ids), temperature=0) == ['hi!! you']
    with pytest.raises(UserError, match='no token that begins or ends'):
        generate(Scripted(256, ids), tok, '', 4)

def small_gpt2(tf, n_ids, **options):
    torch.manual_seed(0)
    config = tf.GPT2Config(vocab_size=n_ids, n_positions=64, n_embd=32, n_layer=2, n_head=2, **options)
    hf = tf.GPT2LMHeadModel(config)
    with torch.no_grad():
        for p in hf.parameters(): p.add_(torch.randn_like(p) * .1)
    return hf

def test_what_a_template_puts_in_front_is_there_as_in_transformers(tf):
    tok = plain_bytes('<s>', '</s>')
    tok.post_processor = processors.TemplateProcessing(single='<s> $A', special_tokens=[('<s>', 256)])
    hf = small_gpt2(tf, 258, eos_token_id=257, bos_token_id=256).eval()
    own = Tokenizer.from_str(tok.to_str())
    fast = tf.PreTrainedTokenizerFast(tokenizer_object=own, bos_token='<s>', eos_token='</s>')
    x = fast('the cat', return_tensors='pt').input_ids
    assert x[0, 0] == 256
    out = hf.generate(x, max_new_tokens=20, do_sample=False, pad_token_id=257)
    new = out[0, x.shape[1]:]
    want = fast.decode(new, skip_special_tokens=True)
    written, = generate(hf, tok, 'the cat', 20, temperature=0)
    assert want.startswith(written)
    assert len(want) - len(written) <= 1 # an unfinished character
    ids, = generate_ids(hf, x.tolist(), 20, temperature=0)
    assert ids == new.tolist()

def test_a_model_alone_knows_its_ends(tf):
    hf = small_gpt2(tf, 300, eos_token_id=[7, 9], bos_token_id=5).eval()
    free, = generate_ids(hf, [[5, 6]], 40, seed=1, stop=None)
    cut, = generate_ids(hf, [[5, 6]], 40, seed=1)
    at = min([free.index(i) for i in (7, 9) if i in free], default=39)
    assert cut == free[:at + 1]
    assert generate_ids(hf, [[]], 8, seed=1) == generate_ids(hf, [[5]], 8, seed=1)


# ---- broken models, training models, padded vocabularies

def broken(value, where='mlp'):
    model = build('gpt2')
    with torch.no_grad():
        if where == 'mlp': model.blocks[0].mlp.down_proj.weight[0, 0] = value
        else: model.embed.weight[where] = value
    return model

@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize('options', [
    dict(temperature=0), dict(), dict(top_k=5, top_p=.9), dict(repetition_penalty=1.2)])
def test_logits_that_are_no_numbers_are_refused(options, value):
    with pytest.raises(UserError, match='NaN or infinity for prompt 0'):
        generate_ids(broken(value), [[5, 6]], 8, stop=None, **options)

def test_one_bad_row_of_a_batch_is_named():
    model = broken(math.nan, where=77)
    fine = [[5, 6], [7, 8], [9, 10, 11]]
    assert len(generate_ids(model, fine, 4, stop=None)) == 3
    with pytest.raises(UserError, match='for prompt 1'):
        generate_ids(model, [[5, 6], [77, 8], [9, 10]], 4, stop=None)

def test_half_precision_that_overflows_is_refused(tok):
    model = build('gpt2')
    with torch.no_grad(): model.blocks[0].mlp.down_proj.weight.mul_(1e6)
    assert all(p.isfinite().all() for p in model.parameters())
    with pytest.raises(UserError, match='float16 is too narrow'):
        list(stream(model.half(), tok, 'the cat', max_new_tokens=4, temperature=0))

def test_an_encoder_with_nan_is_refused(tok):
    encoder = Transformer(ModelConfig(family='encoder', vocab_size=320, n_layer=1, d_model=32, n_head=2, context=32))
    with torch.no_grad(): encoder.embed.weight[5] = math.nan
    with pytest.raises(UserError, match='diverged'): fill_mask(encoder, tok, 'the <|mask|> sat')

def dropping(tf): return as_lm(small_gpt2(tf, 300, resid_pdrop=.3, embd_pdrop=.3, attn_pdrop=.3).train())

def modes(model): return [m.training for m in model.modules()]

def test_greedy_text_does_not_depend_on_dropout(tf, tok):
    model = dropping(tf)
    model.model.transformer.h[0].eval() # one part by itself, which gets its own mode back
    before = modes(model)
    texts = {generate(model, tok, 'the cat', 12, temperature=0)[0] for _ in range(4)}
    assert len(texts) == 1
    assert modes(model) == before
    assert texts == set(generate(model.eval(), tok, ['the cat'], 12, temperature=0))

def test_the_mode_comes_back_after_an_error_and_from_an_abandoned_reader(tf, tok):
    model = dropping(tf)
    pieces = stream(model, tok, 'the cat', max_new_tokens=20)
    next(pieces)
    assert all(modes(model)) # a reader may train here
    del pieces
    def fail(row, piece): raise KeyError(piece)
    with pytest.raises(KeyError): generate(model, tok, 'the cat', 20, on_text=fail)
    with pytest.raises(Exception): generate_ids(model, [[5] * 4], 8, top_k='x')
    assert all(modes(model))

def test_ids_beyond_the_tokenizer_are_never_drawn(tf):
    tok = plain_bytes('<|endoftext|>')
    model = as_lm(small_gpt2(tf, 320).eval())
    rows = generate_ids(model, [[5]] * 20, 30, stop=None)
    assert max(map(max, rows)) > 256
    seen = []
    def count(row, text): seen.append(text)
    texts = generate(model, tok, ['a'] * 20, 30, stop_at_eot=False, on_text=count)
    assert ''.join(seen)
    assert len(texts) == 20


def test_ids_beyond_the_tokenizer_fill_no_mask():
    config = ModelConfig(family='encoder', vocab_size=320, n_layer=1, d_model=32, n_head=2, context=32)
    tok = train_tokenizer(['a'], 260)
    found = fill_mask(Transformer(config), tok, 'a<|mask|>b<|mask|>', top_k=400)
    assert found
    for answer in found: assert answer['token'] < 260

def test_unspelt_ids_get_no_share_when_only_they_are_likely():
    tok = plain_bytes('<|endoftext|>')
    ids = encode_text(tok, ['ab'])[0]
    model = Scripted(300, [ids[0], 290, 290])
    assert generate(model, tok, 'q', 3, temperature=0)[0].startswith('a')
    equal_logits = Scripted(300, [290] * 9) # the first of them is taken
    assert generate(equal_logits, tok, 'q', 4, temperature=0, stop_at_eot=False) == ['!!!!']

@pytest.mark.parametrize('off, on', [(dict(top_k=0), dict(top_k=None)), (dict(top_p=1), dict(top_p=None)),
                                     (dict(temperature=0), dict(top_p=0)), (dict(temperature=0), dict(top_k=1))])
def test_settings_take_the_fields_meaning(off, on):
    model, ps = build(), prompts()
    assert generate_ids(model, ps, 12, seed=3, **off) == generate_ids(model, ps, 12, seed=3, **on)

def test_a_trailing_space_is_kept_with_a_warning(tok):
    model = build()
    with pytest.warns(UserWarning, match='ends in a space'):
        spaced = generate(model, tok, 'the cat ', 8, temperature=0)
    ids = encode_text(tok, ['the cat '])
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert generate(model, tok, prompt_ids=ids, max_new_tokens=8, temperature=0) == spaced
        generate(model, tok, 'the cat\n', 8)


@pytest.mark.parametrize('wrong', [[None], [5], [['a']], 5, 2.5, b'text'])
def test_prompts_that_are_no_texts_are_refused(wrong, tok):
    with pytest.raises(UserError, match='prompts that are texts'): generate(build(), tok, wrong, 4)


def test_ids_may_be_lists_arrays_or_tensors(tok):
    model, ps = build(), prompts()
    want = greedy(model, ps, 6)
    for given in (torch.tensor(ps), torch.tensor(ps).numpy(), tuple(map(tuple, ps))):
        assert greedy(model, given, 6) == want
    texts = generate(model, tok, prompt_ids=ps, max_new_tokens=6, temperature=0)
    assert generate(model, tok, prompt_ids=torch.tensor(ps), max_new_tokens=6, temperature=0) == texts


@pytest.mark.parametrize('wrong, says', [
    ([[-1]], 'from 0 to 319, got -1'),
    ([[5, 320]], 'got 320'),
    ([5, 6], 'a list of ids for each'),
    (['the'], 'a list of ids for each'),
    ([[1.5]], 'ids are whole numbers'),
    (5, 'a list of ids'),
    (None, 'a list of ids'),
    ([[None]], 'a list of ids'),
    (torch.tensor([[1.]]), 'whole numbers'),
])
def test_ids_that_cannot_be_are_refused(wrong, says):
    with pytest.raises(UserError, match=says): generate_ids(build(), wrong, 4)


@pytest.mark.parametrize('stop', [5, 0, 2.5, [5], ['a', ''], b'a', True])
def test_stop_texts_that_cannot_be_are_refused(stop, tok):
    for ask in (generate, lambda *args, **kw: list(stream(*args, **kw))):
        with pytest.raises(UserError, match='expected stop texts'):
            ask(build(), tok, 'the', stop=stop)


def test_listeners_that_cannot_be_called_are_refused_at_once(tok):
    with pytest.raises(UserError, match='expected on_text to be a function'):
        generate(build(), tok, 'the', on_text=5)
    with pytest.raises(UserError, match='expected on_token to be a function'):
        generate_ids(build(), [[5]], on_token='x')


def test_ids_may_come_from_an_iterator():
    model = build()
    assert generate_ids(model, iter([[5], [6, 7]]), 4) == generate_ids(model, [[5], [6, 7]], 4)


def test_what_is_no_tokenizer_is_refused(tok, tf):
    fast = tf.PreTrainedTokenizerFast(tokenizer_object=tok)
    with pytest.raises(UserError, match='backend_tokenizer'): generate(build(), fast, 'the cat', 4)
    assert generate(build(), fast.backend_tokenizer, 'the cat', 4) == generate(build(), tok, 'the cat', 4)
