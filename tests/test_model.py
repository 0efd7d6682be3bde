"The model against transformers' Qwen3, against itself, and against bad files."
import pickle
import numpy as np, pytest, torch
from safetensors.torch import load_file, save_file
from same import same_parameters
from llmbook.core import UserError, import_transformers, read_json, write_json
from llmbook.tokens.tokenizer import encode_text, train_tokenizer
from llmbook.generate.text import generate, generate_ids
from llmbook.model.config import ModelConfig
from llmbook.model.hf import load_model, load_pretrained, save_pretrained
from llmbook.model.hf_config import hf_config, hf_names
from llmbook.model.layers import KVCache, RMSNorm, rotary_tables, rotate
from llmbook.model.transformer import Transformer

SHAPES = {
    'gqa':      dict(vocab_size=320, n_layer=2, d_model=64, n_head=4, n_kv_head=2, context=64),
    'mha':      dict(vocab_size=320, n_layer=2, d_model=64, n_head=4, n_kv_head=4, context=64),
    'mqa':      dict(vocab_size=320, n_layer=1, d_model=48, n_head=3, n_kv_head=1, context=64),
    'oddvocab': dict(vocab_size=317, n_layer=2, d_model=32, n_head=2, n_kv_head=1, context=48, d_ff=50),
    'untied':   dict(vocab_size=320, n_layer=2, d_model=64, n_head=4, n_kv_head=2, context=64, tie_embeddings=False),
    'widehead': dict(vocab_size=320, n_layer=3, d_model=32, n_head=2, n_kv_head=2, context=64, head_dim=48,
                     rope_theta=1e6),
}
TEXTS = ['the cat sat on the mat; the cat ran.', 'def cat(mat):\n    return mat + 1'] * 20

def build(name, seed=0, loud=True):
    "Return a model of some shape; `loud` weights are large enough for differences to show."
    torch.manual_seed(seed)
    m = Transformer(ModelConfig(**SHAPES[name]))
    if not loud: return m
    with torch.no_grad():
        for p in m.parameters(): p.copy_(torch.randn_like(p) * .2 + (p.ndim == 1))
    return m

def ids(m, B=3, T=24, seed=1):
    return torch.randint(m.config.vocab_size, (B, T), generator=torch.Generator().manual_seed(seed))

def logits(m, x):
    with torch.no_grad(): return m.logits(m(x))

def their_logits(theirs, x):
    with torch.no_grad(): return theirs(x).logits

def largest_difference(a, b): return (a - b).abs().max()


@pytest.fixture(scope='module')
def tok(): return train_tokenizer(TEXTS, 300)

@pytest.fixture(scope='module')
def tf():
    tf = import_transformers()
    tf.utils.logging.disable_progress_bar()
    return tf

# ---- parity with transformers

@pytest.mark.parametrize('name', SHAPES)
def test_logits_equal_after_export(name, tok, tf, tmp_path):
    m = build(name)
    x = ids(m)
    save_pretrained(m, tok, tmp_path)
    theirs = tf.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(theirs).__name__ == 'Qwen3ForCausalLM'
    assert logits(m, x).std() > .1
    assert largest_difference(logits(m, x), their_logits(theirs, x)) < 1e-4

def new_qwen3(tf, name):
    torch.manual_seed(3)
    numbers = hf_config(ModelConfig(**SHAPES[name]))
    return tf.Qwen3ForCausalLM(tf.Qwen3Config(**{**numbers, 'initializer_range': .1})).eval()

@pytest.mark.parametrize('name', SHAPES)
def test_logits_equal_after_import(name, tf, tmp_path):
    theirs = new_qwen3(tf, name)
    theirs.save_pretrained(tmp_path)
    m = load_model(tmp_path, 'cpu')
    x = ids(m)
    assert largest_difference(logits(m, x), their_logits(theirs, x)) < 1e-4

def names_in_transformers(m):
    "Return the name in transformers of each of our parameters."
    names = {}
    for theirs, (ours, _) in hf_names(m).items():
        for name in ours: names[name] = theirs
    return names

def test_gradients_equal(tok, tf, tmp_path):
    m = build('gqa')
    save_pretrained(m, tok, tmp_path)
    theirs = tf.AutoModelForCausalLM.from_pretrained(tmp_path)
    x = ids(m).clamp(min=4)  # the padding token of transformers takes no gradient
    m.logits(m(x)).logsumexp(-1).mean().backward()
    theirs(x).logits.logsumexp(-1).mean().backward()
    their_names = names_in_transformers(m)
    their_parameters = dict(theirs.named_parameters())
    for name, p in m.named_parameters():
        want = their_parameters[their_names[name]].grad
        torch.testing.assert_close(p.grad, want, atol=1e-4, rtol=1e-3, msg=name)

def test_sharded_weights_are_read(tf, tmp_path):
    theirs = new_qwen3(tf, 'untied')
    theirs.save_pretrained(tmp_path, max_shard_size='100KB')
    assert not (tmp_path/'model.safetensors').exists()
    m = load_model(tmp_path, 'cpu')
    x = ids(m)
    assert largest_difference(logits(m, x), their_logits(theirs, x)) < 1e-4

def test_tokenizer_and_special_tokens_agree(tok, tf, tmp_path):
    save_pretrained(build('gqa'), tok, tmp_path)
    theirs = tf.AutoTokenizer.from_pretrained(tmp_path)
    code = 'def f(x):\n\treturn 1987  # naïve 日本'
    for text in ('the cat', code, ''):
        ours, = encode_text(tok, [text])
        assert theirs(text)['input_ids'] == ours
        if text == code: assert theirs.decode(ours) == code
    generation = tf.GenerationConfig.from_pretrained(tmp_path)
    for told in (theirs, generation):
        assert told.eos_token_id == 0
        assert told.pad_token_id == 1

@pytest.mark.parametrize('name', ['gqa', 'untied'])
def test_greedy_generation_equals_transformers(name, tok, tf, tmp_path):
    m = build(name)
    save_pretrained(m, tok, tmp_path)
    theirs = tf.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    prompts = ids(m, B=4, T=9)
    ours = generate_ids(m, prompts.tolist(), 30, temperature=0)
    all_real = torch.ones_like(prompts)
    out = theirs.generate(prompts, attention_mask=all_real, max_new_tokens=30, do_sample=False)
    for got, want in zip(ours, out[:, 9:].tolist()):
        if 0 in want: want = want[:want.index(0) + 1]
        assert got == want

# ---- the model against itself

@pytest.mark.parametrize('name', SHAPES)
@torch.no_grad()
def test_the_future_is_hidden(name):
    m = build(name)
    x = ids(m)
    before = m(x)
    for t in (1, 12, 23):
        changed = x.clone()
        changed[:, t] = (x[:, t] + 1) % m.config.vocab_size
        after = m(changed)
        assert torch.equal(before[:, :t], after[:, :t])
        assert not torch.equal(before[:, t:], after[:, t:])

def test_rows_do_not_see_each_other():
    m = build('gqa')
    x = ids(m)
    changed = x.clone()
    changed[1] = 5
    with torch.no_grad(): a, b = m(x), m(changed)
    assert torch.equal(a[[0, 2]], b[[0, 2]])

@pytest.mark.parametrize('name', SHAPES)
def test_cache_equals_no_cache(name):
    m = build(name)
    x = ids(m)
    with torch.inference_mode():
        cache = KVCache(m.config, 3)
        parts = [m(part, cache) for part in x.split([5, 1, 1, 10, 7], 1)]
        assert largest_difference(torch.cat(parts, 1), m(x)) < 1e-4
    assert cache.pos == 24

@torch.inference_mode()
def test_left_padding_changes_nothing():
    m = build('gqa')
    long = ids(m, 1, 12)
    short = ids(m, 1, 5, seed=2)
    padding = torch.ones(1, 7, dtype=torch.long)
    padded = torch.cat((padding, short), 1)
    rows = torch.cat((long, padded))
    cache = KVCache(m.config, 2, pad=torch.tensor([0, 7]))
    of_long, of_padded = m(rows, cache)
    assert of_long.isfinite().all()
    assert of_padded.isfinite().all()
    assert largest_difference(of_long, m(long)[0]) < 1e-4
    assert largest_difference(of_padded[7:], m(short)[0]) < 1e-4

@pytest.mark.parametrize('kw', [dict(temperature=0), dict(temperature=.8), dict(top_k=10), dict(top_p=.9),
                                dict(top_k=40, top_p=.8)])
def test_batched_generation_equals_one_by_one(kw):
    m = build('gqa')
    prompts = [ids(m, 1, n, seed=n)[0].tolist() for n in (1, 9, 4, 17, 4)] + [[]]
    together = generate_ids(m, prompts, 24, seed=3, **kw)
    assert together == generate_ids(m, prompts, 24, seed=3, batch_size=1, **kw)
    assert together == generate_ids(m, prompts, 24, seed=3, batch_size=4, **kw)
    assert together[:2] == generate_ids(m, prompts[:2], 24, seed=3, **kw)

def test_rows_that_stop_end_in_the_stop_token():
    m = build('gqa')
    prompts = [[5 + i] for i in range(12)]
    stopped = generate_ids(m, prompts, 40, seed=1, stop=7, temperature=3.)
    free = generate_ids(m, prompts, 40, seed=1, stop=None, temperature=3.)
    assert stopped == [f[:f.index(7) + 1] if 7 in f else f for f in free]
    assert any(7 in f for f in free)
    assert any(7 not in f for f in free)

def test_sampling_follows_the_model():
    m = build('mqa')
    n = 2000
    prompt = [5, 6]
    last_logits = logits(m, torch.tensor([prompt]))[0, -1]
    probs = last_logits.double().softmax(-1)
    answers = generate_ids(m, [prompt] * n, 1, batch_size=500)
    tokens = [answer[0] for answer in answers]
    drawn = np.bincount(tokens, minlength=320) / n
    likeliest, ids = probs.topk(5)
    for i, p in zip(ids.tolist(), likeliest.tolist()):
        deviation = (p * (1 - p) / n) ** .5
        assert abs(drawn[i] - p) < 4 * deviation

def test_prompt_text_cannot_hold_special_tokens(tok):
    m = build('gqa')
    prompt, = encode_text(tok, ['cat<|endoftext|>'])
    assert 0 not in prompt
    assert generate(m, tok, 'cat<|endoftext|>', 8) == generate(m, tok, prompt_ids=[prompt], max_new_tokens=8)

def test_a_long_prompt_keeps_its_end():
    m = build('gqa')
    prompt = ids(m, 1, 200)[0].tolist()
    assert generate_ids(m, [prompt], 10) == generate_ids(m, [prompt[-54:]], 10)

@pytest.mark.parametrize('name', SHAPES)
def test_no_nan_forward_and_backward_on_every_shape(name):
    m = build(name, loud=False)
    one_token = torch.zeros(1, 1, dtype=torch.long)
    full_rows = torch.full((2, m.config.context), 3)
    for x in (ids(m), one_token, full_rows):
        m.zero_grad()
        z = m.logits(m(x))
        assert z.isfinite().all()
        assert z.shape == (*x.shape, m.config.vocab_size)
        loss = torch.nn.functional.cross_entropy(z.flatten(0, 1), x.flatten())
        loss.backward()
        for p in m.parameters(): assert p.grad.isfinite().all()

def test_handmade_norm_equals_torch():
    norm = RMSNorm(64)
    x = (torch.randn(5, 7, 64) * 3).requires_grad_()
    with torch.no_grad(): norm.weight.uniform_(.5, 2)
    ours = norm(x)
    theirs = torch.nn.functional.rms_norm(x, (64,), norm.weight, 1e-6)
    torch.testing.assert_close(ours, theirs)
    def gradients(y): return torch.autograd.grad(y.square().sum(), (x, norm.weight))
    our_x, our_weight = gradients(ours)
    their_x, their_weight = gradients(theirs)
    torch.testing.assert_close(our_x, their_x, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(our_weight, their_weight, atol=1e-4, rtol=1e-4)

def test_init_depends_on_the_seed_only():
    one, again, other = (build('gqa', seed, loud=False) for seed in (0, 0, 1))
    assert same_parameters(one, again)
    assert not one.embed.weight.equal(other.embed.weight)
    assert 'cos' not in one.state_dict()

def test_too_long_is_refused():
    m = build('gqa')
    x = torch.zeros(1, 65, dtype=torch.long)
    with pytest.raises(UserError, match='at most 64 tokens, got 65'): m(x)
    with pytest.raises(UserError, match='at most 8 tokens, got 9'):
        m(x[:, :9], KVCache(m.config, 1, 8))

# ---- files that do not fit

@pytest.fixture
def saved(tok, tmp_path): return save_pretrained(build('gqa', loud=False), tok, tmp_path/'m')

def test_all_misfits_are_listed_at_once(saved):
    state = load_file(saved/'model.safetensors')
    del state['model.norm.weight']
    state['extra.weight'] = torch.zeros(2)
    state['model.layers.0.mlp.up_proj.weight'] = torch.zeros(3, 4)
    save_file(state, saved/'model.safetensors')
    with pytest.raises(UserError) as e: load_pretrained(saved)
    assert 'missing: model.norm.weight (64,)' in str(e.value)
    assert 'unexpected: extra.weight (2,)' in str(e.value)
    assert 'got (3, 4): model.layers.0.mlp.up_proj.weight' in str(e.value)

def test_handmade_norm_of_zeros_is_zero():
    norm = RMSNorm(64)
    with torch.no_grad(): norm.weight.uniform_(.5, 2)
    assert norm(torch.zeros(3, 64)).eq(0).all()

def test_a_pickle_is_refused(saved):
    class Evil:
        def __reduce__(self): return (open, (str(saved/'owned'), 'w'))
    pickled = pickle.dumps(Evil())
    weights = saved/'model.safetensors'
    weights.unlink()
    (saved/'pytorch_model.bin').write_bytes(pickled)
    with pytest.raises(UserError, match='pickles can run code'): load_pretrained(saved)
    weights.write_bytes(pickled)
    with pytest.raises(UserError, match='damaged'): load_pretrained(saved)
    assert not (saved/'owned').exists()

def test_an_index_cannot_lead_outside(saved, tmp_path):
    (saved/'model.safetensors').rename(tmp_path/'outside.safetensors')
    write_json(saved/'model.safetensors.index.json', {'weight_map': {'a': '../outside.safetensors'}})
    with pytest.raises(UserError, match='found none'): load_model(saved)

@pytest.mark.parametrize('change, says', [
    (dict(model_type='mixtral'), 'only these families'),
    (dict(attention_bias=True), 'missing: model.layers.0.self_attn.q_proj.bias'),
    (dict(hidden_act='gelu_new'), 'hidden_act'),
    (dict(use_sliding_window=True, sliding_window=8, layer_types=['full_attention', 'sliding_attention']),
     'layer_types'),
    (dict(rope_parameters=dict(rope_type='longrope', rope_theta=1e4)), 'longrope'),
    (dict(num_attention_heads=3), 'divide'),
    (dict(hidden_size='wide'), 'd_model'),
])
def test_options_that_are_not_supported(saved, change, says):
    write_json(saved/'config.json', {**read_json(saved/'config.json'), **change})
    with pytest.raises(UserError, match=says): load_pretrained(saved)

def test_half_a_file_and_a_wrong_tokenizer(saved, tok):
    whole = (saved/'model.safetensors').read_bytes()
    (saved/'model.safetensors').write_bytes(whole[:len(whole) // 2])
    with pytest.raises(UserError, match='damaged'): load_pretrained(saved)
    small = Transformer(ModelConfig(vocab_size=270, n_layer=1, d_model=32, n_head=2, n_kv_head=1))
    with pytest.raises(UserError, match='not the one of this model'):
        save_pretrained(small, tok, saved)


def test_a_rotation_by_hand_is_that_of_autograd_to_the_bit():
    torch.manual_seed(0)
    x = torch.randn(2, 6, 3, 8).transpose(1, 2).requires_grad_()
    cos, sin = rotary_tables(6, 8)
    first, second = x.chunk(2, -1)
    usual = torch.addcmul(x * cos, torch.cat((second, first), -1), sin)
    ours = rotate(x, cos, sin)
    g = torch.randn_like(usual)
    assert torch.equal(ours, usual)
    assert torch.equal(*[torch.autograd.grad(y, x, g)[0] for y in (ours, usual)])
