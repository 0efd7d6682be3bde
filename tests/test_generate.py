"Generation against transformers and against its definition, by family."
import pytest, torch
from llmbook.core import UserError, import_transformers
from llmbook.generate.cuda_graph import decoder
from llmbook.generate.decoder import Cached, Decoder, Product, Reread
from llmbook.generate.sampling import penalise, shares
from llmbook.generate.text import _Text, generate, generate_ids, show_generate, stream
from llmbook.model.config import ModelConfig
from llmbook.model.hf import save_pretrained
from llmbook.model.transformer import Transformer
from llmbook.tokens.tokenizer import encode_text, train_tokenizer

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
    difference = (torch.stack(got, 1) - want).abs().max()
    assert difference < 1e-3 * want.abs().max()


@pytest.mark.parametrize('name', ['qwen3', 'gpt2', 'relu2', 'wide'])
def test_greedy_equals_the_definition_with_padding(name):
    model, ps = build(name), prompts_of(1, 9, 4, 7, 4, 2)
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
        self.model, self.embed, self.head, self.config = model, model.embed, model.head, model.config
    def forward(self, x): return self.model(x)
    def logits(self, h): return self.model.logits(h)


def test_a_model_without_a_cache():
    model, ps = build(), prompts_of(3, 9, 3, 7, 9)
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
    ids, x = torch.tensor(prompts(6)), logits()
    seen = torch.zeros(6, 320, dtype=torch.bool).scatter(1, ids, True)
    want = tf.RepetitionPenaltyLogitsProcessor(1.4)(ids, x.clone())
    assert penalise(x, seen, 1.4).equal(want)


def test_penalty_does_not_depend_on_the_batch():
    model, ps = build(), prompts_of(1, 9, 4, 7, 4)
    options = dict(seed=2, repetition_penalty=1.5, min_p=.02)
    assert generate_ids(model, ps, 20, **options) == generate_ids(model, ps, 20, batch_size=1, **options)


BAD = [dict(min_p=-.1), dict(min_p=1.1), dict(repetition_penalty=0), dict(top_p=0), dict(top_k=1.5), dict(batch_size=0),
       dict(temperature=float('nan')), dict(seed='x'), *(dict(max_new_tokens=n) for n in (0, -1, 2.5, True, 10 ** 6))]

@pytest.mark.parametrize('bad', BAD)
def test_bad_settings_are_refused(bad):
    name = next(iter(bad))
    settings = dict(max_new_tokens=4) | bad
    with pytest.raises(UserError, match=f'expected {name} '): generate_ids(build(), [[5]], **settings)


def test_a_prompt_that_is_cut_gives_a_warning():
    model = build(context=64)
    with pytest.warns(UserWarning, match='has 70 tokens, and the model sees the last 54'):
        cut = greedy(model, [[5] * 70], 10)
    assert cut == greedy(model, [[5] * 54], 10)


# ---- stop texts and streams

def feed(tok, text, stop):
    "Feed a text token by token; return what was shown, the text, and whether a stop text ended it."
    row, shown = _Text(tok, stop), ''
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
