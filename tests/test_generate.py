"Generation against transformers and against its definition, by family."
import pytest, torch
from llmbook.core import UserError, import_transformers
from llmbook.tokens.tokenizer import decode, encode_text, train_tokenizer
from llmbook.generate.decoder import Cached, Decoder, Product, Reread
from llmbook.generate.cuda_graph import decoder
from llmbook.generate.text import _Text, generate, generate_ids, show_generate, stream
from llmbook.model.config import ModelConfig
from llmbook.model.hf import save_pretrained
from llmbook.model.transformer import Transformer
from llmbook.generate.sampling import penalise, shares

BASE = dict(vocab_size=320, n_layer=2, d_model=64, n_head=4, context=64, tie_embeddings=False)
MODELS = {'qwen3': dict(n_kv_head=2), 'llama': dict(family='llama', n_kv_head=2), 'gpt2': dict(family='gpt2'),
          'relu2': dict(mlp='relu2', n_kv_head=1), 'odd': dict(vocab_size=317, d_ff=51, n_kv_head=1), 'wide': dict(head_dim=24, n_kv_head=4)}
TEXTS = ['the cat sat on the mat; the cat ran.', 'def cat(mat):\n    return mat + 1'] * 20

def build(name='qwen3', **kw):
    "A model with weights so large that no two logits are near each other."
    torch.manual_seed(0)
    m = Transformer(ModelConfig(**{**BASE, **MODELS[name], **kw})).eval()
    with torch.no_grad():
        for p in m.parameters(): p.copy_(torch.randn_like(p) * .2 + (p.ndim == 1))
    return m

def prompts(n=4, T=9): return torch.randint(4, 300, (n, T), generator=torch.Generator().manual_seed(1)).tolist()

def naive(m, ids, n):
    ids = list(ids)
    with torch.no_grad():
        for _ in range(n): ids.append(m.logits(m(torch.tensor([ids]))[0, -1]).argmax().item())
    return ids[-n:]

@pytest.fixture(scope='module')
def tok(): return train_tokenizer(TEXTS, 300)

@pytest.fixture(scope='module')
def tf(): return import_transformers()

# ---- the decoder

@pytest.mark.parametrize('pack', [False, True])
@pytest.mark.parametrize('name', MODELS)
def test_decoder_equals_the_model(name, pack):
    m, x = build(name), torch.tensor(prompts(3, 30))
    for rows in (x[:1], x):
        d = Decoder(m, len(rows), start=8, pack=pack)
        with torch.inference_mode():
            got = torch.stack([d(p) for p in rows.split([7] + [1] * 20 + [3], 1)], 1)
            want = m.logits(m(rows))
        want = torch.cat((want[:, 6:27], want[:, 29:]), 1)
        assert (got - want).abs().max() < 1e-3 * want.abs().max()

@pytest.mark.parametrize('name', ['qwen3', 'gpt2', 'relu2', 'wide'])
def test_greedy_equals_the_definition_with_padding(name):
    m, ps = build(name), [p[:n] for p, n in zip(prompts(6), (1, 9, 4, 7, 4, 2))]
    assert generate_ids(m, ps, 30, temperature=0, stop=None) == [naive(m, p, 30) for p in ps]

@pytest.mark.parametrize('name', ['qwen3', 'llama', 'gpt2'])
def test_greedy_equals_transformers(name, tok, tf, tmp_path):
    m, ps = build(name), prompts()
    save_pretrained(m, tok, tmp_path)
    theirs = tf.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    for rows in (ps, ps[:1]):
        ids = torch.tensor(rows)
        for penalty in (1., 1.3):
            want = theirs.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=30, min_new_tokens=30, do_sample=False,
                                   repetition_penalty=penalty, eos_token_id=None, pad_token_id=1)
            assert generate_ids(m, rows, 30, temperature=0, stop=None, repetition_penalty=penalty) == want[:, 9:].tolist()

def test_a_training_step_is_seen():
    m, ps = build(), prompts()
    for rows in (ps, ps[:1]):
        before = generate_ids(m, rows, 20, temperature=0, stop=None)
        opt = torch.optim.AdamW(m.parameters(), lr=.1, fused=True)
        m.logits(m(torch.tensor(rows))).logsumexp(-1).mean().backward()
        opt.step()
        after = generate_ids(m, rows, 20, temperature=0, stop=None)
        assert after != before and after == [naive(m, p, 20) for p in rows]

def test_other_layers_use_the_forward_pass():
    class Doubled(torch.nn.Linear):
        def forward(self, x): return super().forward(x) * 2
    m = build()
    q = m.blocks[1].attn.v_proj
    m.blocks[1].attn.v_proj = Doubled(q.in_features, q.out_features, bias=False)
    m.blocks[1].attn.v_proj.weight = q.weight
    assert type(decoder(m)) is Cached and type(decoder(build())) is Decoder
    p, = prompts(1)
    assert generate_ids(m, [p], 20, temperature=0, stop=None) == [naive(m, p, 20)] != generate_ids(build(), [p], 20, temperature=0, stop=None)

def test_a_model_without_a_cache():
    class Wrapped(torch.nn.Module):
        def __init__(self, m): super().__init__(); self.m, self.embed, self.head, self.config = m, m.embed, m.head, m.config
        def forward(self, x): return self.m(x)
        def logits(self, h): return self.m.logits(h)
    m, ps = build(), [p[:n] for p, n in zip(prompts(5), (3, 9, 3, 7, 9))]
    assert type(decoder(Wrapped(m))) is Reread
    assert generate_ids(Wrapped(m), ps, 12, seed=4) == generate_ids(m, ps, 12, seed=4)

def test_an_encoder_is_refused():
    m = Transformer(ModelConfig(family='encoder', vocab_size=320, n_layer=1, d_model=32, n_head=2, context=32))
    with pytest.raises(UserError, match='an encoder fills gaps'): generate_ids(m, [[5]], 4)

def test_bfloat16_writes():
    m = build().bfloat16()
    assert [len(o) for o in generate_ids(m, prompts(), 8, stop=None)] == [8] * 4

def test_the_cache_stays_small():
    d = Decoder(build(context=64), 2, start=4)
    with torch.inference_mode():
        for _ in range(20): d(torch.tensor([[5], [6]]))
    assert d.cache.kv.shape[4] == 32
    with torch.inference_mode(), pytest.raises(UserError, match='at most 64'): d(torch.zeros(2, 45, dtype=torch.long))

def test_one_vector_needs_no_copy():
    w = torch.nn.Linear(32, 64)
    assert Product(w).views[0].data_ptr() == w.weight.data_ptr()

# ---- choosing, against transformers

def logits(): return torch.randn(6, 320, generator=torch.Generator().manual_seed(2)) * 3

@pytest.mark.parametrize('kw', [dict(top_k=5), dict(top_p=.8), dict(min_p=.2), dict(temperature=.6, top_k=30, top_p=.9, min_p=.05)])
def test_shares_equal_transformers(tf, kw):
    x, want = logits(), logits().double()
    if 'temperature' in kw: want = tf.TemperatureLogitsWarper(kw['temperature'])(None, want)
    if 'top_k' in kw: want = tf.TopKLogitsWarper(kw['top_k'])(None, want)
    if 'top_p' in kw: want = tf.TopPLogitsWarper(kw['top_p'])(None, want)
    if 'min_p' in kw: want = tf.MinPLogitsWarper(kw['min_p'])(None, want)
    p, ids = shares(x, **kw)
    full = p if ids is None else torch.zeros(6, 320, dtype=p.dtype).scatter(1, ids, p)
    torch.testing.assert_close(full / full.sum(-1, keepdim=True), want.softmax(-1))

def test_penalty_equals_transformers(tf):
    ids, x = torch.tensor(prompts(6)), logits()
    seen = torch.zeros(6, 320, dtype=torch.bool).scatter(1, ids, True)
    assert penalise(x, seen, 1.4).equal(tf.RepetitionPenaltyLogitsProcessor(1.4)(ids, x.clone()))

def test_penalty_does_not_depend_on_the_batch():
    m, ps = build(), [p[:n] for p, n in zip(prompts(5), (1, 9, 4, 7, 4))]
    kw = dict(seed=2, repetition_penalty=1.5, min_p=.02)
    assert generate_ids(m, ps, 20, **kw) == generate_ids(m, ps, 20, batch_size=1, **kw)

@pytest.mark.parametrize('kw', [dict(min_p=-.1), dict(min_p=1.1), dict(repetition_penalty=0), dict(top_p=0), dict(top_k=1.5), dict(batch_size=0), dict(temperature=float('nan')),
                                *(dict(max_new_tokens=n) for n in (0, -1, 2.5, True, 10 ** 6)), dict(seed='x')])
def test_bad_settings_are_refused(kw):
    with pytest.raises(UserError, match=f'expected {next(iter(kw))} '): generate_ids(build(), [[5]], **dict(max_new_tokens=4) | kw)

def test_a_prompt_that_is_cut_is_said():
    m = build(context=64)
    with pytest.warns(UserWarning, match='has 70 tokens, and the model sees the last 54'): cut = generate_ids(m, [[5] * 70], 10, temperature=0, stop=None)
    assert cut == generate_ids(m, [[5] * 54], 10, temperature=0, stop=None)

# ---- stop texts and streams

def feed(tok, text, stop):
    row, told = _Text(tok, stop), ''
    for i in encode_text(tok, [text])[0]:
        piece, over = row.add(i)
        told += piece
        assert not any(s in told for s in stop)
        if over: break
    return told + row.rest(), row.text, over

@pytest.mark.parametrize('stop, want', [(['mat; the c'], 'the cat sat on the '), (['x', ' on', 'sat'], 'the cat '), (['nowhere'], None), (['.'], 'the cat sat on the mat; the cat ran')])
def test_stop_texts_are_found_across_tokens_and_never_shown(tok, stop, want):
    told, text, over = feed(tok, TEXTS[0], stop)
    assert told == text == (want or TEXTS[0]) and over == (want is not None)

def test_what_only_began_like_a_stop_text_is_shown(tok): assert feed(tok, 'the cat sat on the ma', ['the mat'])[0] == 'the cat sat on the ma'

def test_half_characters_wait(tok):
    row = _Text(tok, [])
    pieces = [row.add(i)[0] for i in encode_text(tok, ['日本é'])[0]]
    assert [p for p in pieces if p] == ['日', '本', 'é']

def test_stop_texts_end_each_row_by_itself(tok):
    m, ps = build(), ['the cat', 'def', 'mat;']
    free = generate(m, tok, ps, 40, seed=3, stop_at_eot=False)
    stop = [free[0][5:7], free[1][9:11]]
    cut = [f[:min([f.index(s) for s in stop if s in f], default=len(f))] for f in free]
    pieces = ['', '', '']
    def tell(row, piece): pieces[row] += piece
    assert generate(m, tok, ps, 40, seed=3, stop_at_eot=False, stop=stop, on_text=tell) == cut == pieces
    assert len(cut[0]) <= 5 and len(cut[1]) <= 9

def test_a_stream_gives_the_same_text(tok):
    m = build()
    for stop in (None, 'a'):
        whole, = generate(m, tok, 'the cat', 20, seed=1, stop=stop)
        assert ''.join(stream(m, tok, 'the cat', max_new_tokens=20, seed=1, stop=stop)) == whole
    s = stream(m, tok, 'the cat', max_new_tokens=20)
    next(s)
    assert not torch.is_inference_mode_enabled()                       # the reader's own code may train between two pieces

def test_shown_text_is_escaped(tok, capsys):
    shown = show_generate(build(), tok, '<script>x</script>', max_new_tokens=3)
    assert isinstance(shown, str) and '<script>' not in capsys.readouterr().out

def test_a_true_answer_ends_a_row():
    m, ps = build(), prompts()
    free = generate_ids(m, ps, 20, seed=1, stop=None)
    assert generate_ids(m, ps, 20, seed=1, stop=None, on_token=lambda row, t: row == 1) == [f[:1] if i == 1 else f for i, f in enumerate(free)]
