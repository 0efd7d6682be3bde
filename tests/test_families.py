"Each family against transformers, against itself, and against files that do not fit."
import json
import pytest, torch
import safetensors.torch
from tokenizers import Tokenizer, processors
from safetensors.torch import load_file, save_file
from foreign import gpt2_like
from same import same_parameters
from llmbook.core import UserError, import_transformers, read_json, write_json
from llmbook.model.config import FAMILIES, SIZES, ModelConfig, get_config
from llmbook.evaluate.perplexity import continuation_logprob, document_nats, evaluate_text
from llmbook.generate.text import generate, generate_ids, stream
from llmbook.model.hf import check_finite, load_model, load_pretrained, save_pretrained
from llmbook.generate.cuda_graph import FixedStep
from llmbook.generate.decoder import Decoder
from llmbook.model.layers import KVCache, rotary_tables
from llmbook.model.hf_config import config_from_hf, hf_config, hf_names, hf_tensor
from llmbook.model.transformer import Transformer
from llmbook.tokens.tokenizer import encode_text, read_tokenizer, text_ids, train_tokenizer
from llmbook.model.hf_wrap import WrappedLM, as_lm, as_reader

STRETCH = dict(factor=4., low_freq_factor=1., high_freq_factor=4., original_max_position_embeddings=32)
YARN = dict(type='yarn', factor=4., original_max_position_embeddings=16)
CASES = {
    'qwen3':         dict(family='qwen3'),
    'qwen3-geglu':   dict(family='qwen3', mlp='geglu'),
    'llama':         dict(family='llama', n_kv_head=1),
    'llama-untied':  dict(family='llama', tie_embeddings=False, head_dim=24),
    'llama3':        dict(family='llama', rope_scaling=STRETCH, rope_theta=5e5),
    'llama-biased':  dict(family='llama', attn_bias='all', mlp_bias=True),
    'llama-linear':  dict(family='llama', rope_scaling=dict(type='linear', factor=3.)),
    'llama-dynamic': dict(family='llama', rope_scaling=dict(type='dynamic', factor=2.)),
    'mistral':       dict(family='mistral', head_dim=24, tie_embeddings=False),
    'mistral-near':  dict(family='mistral', window=7, n_kv_head=1),
    'qwen2':         dict(family='qwen2'),
    'qwen2-near':    dict(family='qwen2', window=5, tie_embeddings=False, rope_scaling=YARN),
    'qwen3-biased':  dict(family='qwen3', attn_bias='all', rope_scaling={**YARN, 'truncate': False, 'beta_fast': 8.}),
    'qwen3-near':    dict(family='qwen3', window=6, head_dim=32, rope_scaling=STRETCH),
    'gpt2':          dict(family='gpt2'),
    'gpt2-relu2':    dict(family='gpt2', mlp='relu2', d_ff=96, tie_embeddings=False),
    'encoder':       dict(family='encoder', n_layer=3),
    'encoder-local': dict(family='encoder', n_layer=5, window=3, rope_theta=160_000.),
    'encoder-every': dict(family='encoder', n_layer=4, window=2, global_every=2, mlp='swiglu', tie_embeddings=False),
}
DECODERS = [n for n in CASES if 'encoder' not in n]

@pytest.fixture(scope='module')
def tf():
    tf = import_transformers()
    tf.utils.logging.disable_progress_bar()
    return tf

def build(name, seed=0):
    "Return a model whose weights are large enough for differences to show, biases too."
    torch.manual_seed(seed)
    small = dict(vocab_size=320, n_layer=2, d_model=64, n_head=4, context=64)
    m = Transformer(ModelConfig(**{**small, **CASES[name]})).eval()
    with torch.no_grad():
        for n, p in m.named_parameters():
            gain = p.ndim == 1 and n.endswith('weight')
            p.copy_(torch.randn_like(p) * .15 + gain)
    return m

def ids(B=3, T=24, seed=1): return torch.randint(4, 320, (B, T), generator=torch.Generator().manual_seed(seed))

def changed(x, i, to=None):
    x = x.clone()
    x[:, i] = (x[:, i] + 1) % 320 if to is None else to
    return x

def documents(*lengths, rows):
    "Return the number of each token's document, the same in all rows."
    return torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths)).expand(rows, -1)

def largest_difference(a, b): return (a - b).abs().max()


def count(m): return sum(p.numel() for p in m.parameters())

def their_class(tf, m): return tf.AutoModelForCausalLM if m.config.traits.causal else tf.AutoModelForMaskedLM

def exported(tf, m, path): return their_class(tf, m).from_pretrained(save_pretrained(m, None, path)).eval()

@pytest.mark.parametrize('name', CASES)
def test_logits_and_gradients_equal_after_export(name, tf, tmp_path):
    m, x = build(name), ids()
    theirs = exported(tf, m, tmp_path)
    ours_z = m.logits(m(x))
    their_z = theirs(x).logits
    assert ours_z.std() > .1
    assert largest_difference(ours_z, their_z) < 1e-4
    ours_z.logsumexp(-1).mean().backward()
    their_z.logsumexp(-1).mean().backward()
    ours = dict(m.named_parameters())
    their_parameters = dict(theirs.named_parameters())
    for name, (parts, transposed) in hf_names(m).items():
        got = hf_tensor([ours[part].grad for part in parts], transposed)
        want = their_parameters[name].grad
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-3, msg=name)

@pytest.mark.parametrize('name', CASES)
def test_logits_equal_after_import(name, tf, tmp_path):
    torch.manual_seed(3)
    c = build(name).config
    numbers = {**hf_config(c), 'initializer_range': .1}
    cls = getattr(tf, numbers['architectures'][0])
    theirs = cls(tf.AutoConfig.for_model(**numbers)).eval()
    with torch.no_grad():
        for n, p in theirs.named_parameters():
            if n.endswith('bias'): p.normal_(std=.1)
    theirs.save_pretrained(tmp_path, max_shard_size='60KB')
    assert (tmp_path/'model.safetensors.index.json').exists()
    m = load_model(tmp_path, 'cpu')
    x = ids()
    assert m.config == c
    with torch.no_grad(): assert largest_difference(m.logits(m(x)), theirs(x).logits) < 1e-4

@pytest.mark.parametrize('name', CASES)
def test_the_configuration_comes_back_as_transformers_writes_it(name, tf):
    c = build(name).config
    assert config_from_hf(tf.AutoConfig.for_model(**hf_config(c)).to_dict()) == c

@pytest.mark.parametrize('name', ['encoder', 'encoder-local'])
def test_padding_of_an_encoder_as_in_transformers(name, tf, tmp_path):
    m, x = build(name), ids()
    real = torch.ones(3, 24, dtype=torch.bool)
    real[1, 15:] = False
    real[2, :6] = False
    theirs = exported(tf, m, tmp_path)
    with torch.no_grad():
        a = m.logits(m(x, real))
        b = theirs(x, attention_mask=real.long()).logits
    assert largest_difference(a[real], b[real]) < 1e-4

@pytest.mark.parametrize('name', CASES)
def test_each_document_as_if_alone(name):
    m, x = build(name), ids(2, 30)
    lengths = [7, 13, 10]
    docs = documents(*lengths, rows=2)
    with torch.no_grad():
        together = m(x, docs)
        alone = [m(part) for part in x.split(lengths, 1)]
        after = m(changed(x, 9, to=5), docs)
    assert largest_difference(together, torch.cat(alone, 1)) < 1e-4
    assert after[:, :7].equal(together[:, :7])
    assert after[:, 20:].equal(together[:, 20:])

@pytest.mark.parametrize('name', DECODERS)
def test_a_cache_changes_nothing(name):
    m, x = build(name), ids()
    with torch.inference_mode():
        cache = KVCache(m.config, 3)
        parts = [m(part, cache) for part in x.split([5, 1, 1, 10, 7], 1)]
        assert largest_difference(torch.cat(parts, 1), m(x)) < 1e-4

@pytest.mark.parametrize('name', DECODERS)
@torch.inference_mode()
def test_left_padding_changes_nothing(name):
    m, x = build(name), ids()
    long = x[:1, :12]
    short = x[1:2, :5]
    padding = torch.ones(1, 7, dtype=torch.long)
    padded = torch.cat((padding, short), 1)
    rows = torch.cat((long, padded))
    cache = KVCache(m.config, 2, pad=torch.tensor([0, 7]))
    parts = [m(part, cache) for part in rows.split([10, 1, 1], 1)]
    of_long, of_padded = torch.cat(parts, 1)
    assert of_long.isfinite().all()
    assert of_padded.isfinite().all()
    assert largest_difference(of_long, m(long)[0]) < 1e-4
    assert largest_difference(of_padded[7:], m(short)[0]) < 1e-4

@pytest.mark.parametrize('name', DECODERS)
def test_the_future_is_hidden_in_decoders_only(name):
    m, x = build(name), ids()
    with torch.no_grad(): same = (m(x) == m(changed(x, 12))).all(-1).all(0)
    assert same[:12].all()
    near = m.config.window or 12
    assert not same[12:12 + near].any()
    out_of_reach = 12 + m.config.n_layer * (near - 1) + 1 # every layer passes it on by a window
    assert same[out_of_reach:].all()

@pytest.mark.parametrize('name', [name for name in DECODERS if 'near' in name] + ['qwen2', 'llama-biased'])
def test_generation_sees_what_the_forward_pass_sees(name):
    m = build(name)
    prompts = [x[:n].tolist() for x, n in zip(ids(), (3, 11, 20))]
    got = generate_ids(m, prompts, 20, temperature=0, stop=None)
    for prompt, new in zip(prompts, got):
        with torch.no_grad(): z = m.logits(m(torch.tensor([prompt + new])))
        assert z[0, len(prompt) - 1:-1].argmax(-1).tolist() == new

@pytest.mark.parametrize('pad', [None, torch.tensor([0, 9, 2])])
@pytest.mark.parametrize('name', ['mistral-near', 'qwen3'])
def test_a_step_that_is_recorded_sees_the_same_window(name, pad):
    m, x = build(name), ids()
    prompt, token = x[:, :16], x[:, 16]
    recorded, plain = Decoder(m, 3, 24, pad), Decoder(m, 3, 24, pad)
    with torch.no_grad():
        for decoder in (recorded, plain): decoder(prompt)
        step = FixedStep(recorded)
        step.x.copy_(token)
        step.pos.fill_(16)
        got = step()
        want = plain(token[:, None])
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)

@pytest.mark.parametrize('name', DECODERS)
def test_left_padding_as_in_transformers(name, tf, tmp_path):
    m, x = build(name), ids()
    theirs = exported(tf, m, tmp_path)
    pad = torch.tensor([0, 9, 2])
    from_first_token = torch.arange(24) - pad[:, None]
    real = from_first_token >= 0
    positions = from_first_token.clamp(min=0)
    cache = KVCache(m.config, 3, 24, pad)
    with torch.no_grad():
        a = m.logits(m(x, cache))
        b = theirs(x, attention_mask=real.long(), position_ids=positions).logits
    assert largest_difference(a[real], b[real]) < 1e-4

def test_an_encoder_sees_both_ways_and_takes_no_cache():
    m, x = build('encoder'), ids()
    with torch.no_grad(): assert (m(x) != m(changed(x, 12))).any(-1).all()
    with pytest.raises(UserError, match='expected a decoder'): KVCache(m.config)
    with pytest.raises(UserError, match='reads whole texts'): m(x, KVCache(ModelConfig()))

def gradients(m, x, docs):
    m.zero_grad()
    m.logits(m(x, docs)).logsumexp(-1).mean().backward()
    return [p.grad.clone() for p in m.parameters()]

@pytest.mark.parametrize('name', ['qwen3', 'gpt2', 'encoder-local'])
@pytest.mark.parametrize('every', [1, 2])
def test_recomputing_changes_no_gradient(name, every):
    m, x = build(name), ids()
    for docs in (None, documents(10, 14, rows=3)):
        m.set_recompute(0)
        want = gradients(m, x, docs)
        m.set_recompute(every)
        got = gradients(m, x, docs)
        for a, b in zip(want, got, strict=True): assert a.equal(b)

@pytest.mark.parametrize('name', ['qwen3', 'gpt2', 'encoder-local'])
@torch.no_grad()
def test_recomputing_changes_no_output(name):
    m, x = build(name), ids()
    m.set_recompute(1)
    recomputed = m(x)
    m.set_recompute(0)
    assert recomputed.equal(m(x))

IN_HALF = ['qwen3', 'gpt2', 'encoder-local']


@pytest.mark.parametrize('name', IN_HALF)
@torch.no_grad()
def test_autocast_is_near(name):
    m, x = build(name), ids()
    with torch.autocast('cpu', torch.bfloat16): mixed = m(x)
    assert largest_difference(mixed.float(), m(x)) < .25


@pytest.mark.parametrize('name', IN_HALF)
@torch.no_grad()
def test_half_precision_is_small_and_near(name, tmp_path):
    m, x = build(name), ids()
    save_pretrained(m, None, tmp_path, dtype='bfloat16')
    n_bytes = (tmp_path/'model.safetensors').stat().st_size
    assert n_bytes < 2.1 * count(m) + 20_000
    assert read_json(tmp_path/'config.json')['torch_dtype'] == 'bfloat16'
    half = load_model(tmp_path, 'cpu', 'bfloat16')
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert {b.dtype for b in half.buffers()} <= {torch.float32}
    assert largest_difference(half(x).float(), m(x)) < .25

# ---- files

def weight_files(folder): return sorted(path.name for path in folder.glob('*.safetensors'))

@pytest.mark.parametrize('name', ['llama-untied', 'gpt2', 'encoder'])
def test_shards_are_read_by_both(name, tf, tmp_path):
    m, x = build(name), ids()
    save_pretrained(m, None, tmp_path, max_shard=50_000)
    index = read_json(tmp_path/'model.safetensors.index.json')
    place = index['weight_map']
    files = weight_files(tmp_path)
    assert len(files) > 2
    assert sorted(set(place.values())) == files
    assert sorted(place) == sorted(hf_names(m))
    assert index['metadata']['total_size'] == 4 * count(m)
    theirs = their_class(tf, m).from_pretrained(tmp_path)
    with torch.no_grad(): assert largest_difference(m.logits(m(x)), theirs(x).logits) < 1e-4
    assert same_parameters(load_model(tmp_path, 'cpu'), m)

@pytest.mark.parametrize('name', ['llama-untied', 'gpt2', 'encoder'])
def test_old_shards_go(name, tmp_path):
    m = build(name)
    save_pretrained(m, None, tmp_path, max_shard=50_000)
    n_files = len(weight_files(tmp_path))
    save_pretrained(m, None, tmp_path, max_shard=150_000)
    assert len(weight_files(tmp_path)) < n_files
    assert load_model(tmp_path, 'cpu').embed.weight.equal(m.embed.weight)
    save_pretrained(m, None, tmp_path)
    assert [path.name for path in tmp_path.glob('model*')] == ['model.safetensors']

def test_a_save_that_fails_leaves_the_old_model(tmp_path, monkeypatch):
    old = build('gpt2')
    new = build('gpt2', seed=1)
    save_pretrained(old, None, tmp_path, max_shard=50_000)
    real = safetensors.torch.save_file
    calls = []
    def full(*args, **kw):
        calls.append(1)
        if len(calls) == 3: raise OSError(28, 'No space left on device')
        return real(*args, **kw)
    monkeypatch.setattr(safetensors.torch, 'save_file', full)
    with pytest.raises(OSError): save_pretrained(new, None, tmp_path, max_shard=50_000)
    assert same_parameters(load_model(tmp_path, 'cpu'), old)
    assert not list(tmp_path.glob('*.tmp'))

def test_gpt2_as_openai_stored_it(tmp_path):
    "Read names without a prefix, and ignore the causal mask that each block has as a tensor."
    m = build('gpt2')
    save_pretrained(m, None, tmp_path)
    saved = load_file(tmp_path/'model.safetensors')
    state = {name.removeprefix('transformer.'): t for name, t in saved.items()}
    for i in range(2): state[f'h.{i}.attn.bias'] = torch.ones(1, 1, 64, 64).tril()
    save_file(state, tmp_path/'model.safetensors')
    assert same_parameters(load_model(tmp_path, 'cpu'), m)

def test_a_tied_head_may_be_stored_if_it_is_the_embedding(tmp_path):
    m = build('llama')
    save_pretrained(m, None, tmp_path)
    path = tmp_path/'model.safetensors'
    state = load_file(path)
    embedding = state['model.embed_tokens.weight']
    save_file({**state, 'lm_head.weight': embedding.clone()}, path)
    loaded = load_model(tmp_path, 'cpu')
    assert loaded.head.weight.equal(m.head.weight)
    save_file({**state, 'lm_head.weight': embedding + 1}, path)
    with pytest.raises(UserError, match='unexpected: lm_head.weight'): load_model(tmp_path, 'cpu')

@pytest.mark.parametrize('name, change, says', [
    ('llama', dict(rope_parameters=dict(rope_type='proportional', factor=2., rope_theta=1e4)), 'proportional'),
    ('llama', dict(mlp_bias=True), 'missing: model.layers.0.mlp.gate_proj.bias'),
    ('llama', dict(attention_bias=True), 'missing: model.layers.0.self_attn.q_proj.bias'),
    ('qwen2', dict(model_type='llama'), 'unexpected: model.layers.0.self_attn.q_proj.bias'),
    ('gpt2', dict(activation_function='gelu'), 'activation_function'),
    ('gpt2', dict(add_cross_attention=True), 'add_cross'),
    ('encoder', dict(norm_bias=True), 'norm_bias'),
    ('encoder', dict(decoder_bias=False), 'decoder_bias'),
    ('encoder', dict(layer_types=['sliding_attention'] * 3), 'layer_types'),
    ('encoder', dict(hidden_activation='relu'), 'hidden_activation'),
    ('qwen3', dict(rope_parameters=dict(rope_type='longrope', rope_theta=1e4)), 'longrope'),
    ('qwen3', dict(use_sliding_window=True, sliding_window=8,
                   layer_types=['full_attention', 'sliding_attention']), 'layer_types'),
    ('qwen2', dict(use_sliding_window=True, sliding_window=8, max_window_layers=1), 'layer_types'),
    ('llama', dict(quantization_config=dict(bits=4)), 'quantization_config'),
    ('mistral', dict(hidden_act='gelu_new'), 'hidden_act'),
    ('llama', dict(partial_rotary_factor=.5), 'partial_rotary_factor'),
])
def test_options_of_other_models(name, change, says, tmp_path):
    save_pretrained(build(name), None, tmp_path)
    write_json(tmp_path/'config.json', {**read_json(tmp_path/'config.json'), **change})
    with pytest.raises(UserError, match=says): load_model(tmp_path, 'cpu')

@pytest.mark.parametrize('kw, says', [(dict(dtype='int8'), 'dtype'), (dict(max_shard=0), 'max_shard')])
def test_bad_arguments_write_nothing(kw, says, tmp_path):
    with pytest.raises(UserError, match=says):
        save_pretrained(build('gpt2'), None, tmp_path/'m', **kw)
    gated = Transformer(ModelConfig(family='gpt2', n_layer=1, mlp='swiglu'))
    with pytest.raises(UserError, match='without a gate'):
        save_pretrained(gated, None, tmp_path/'m')
    assert not (tmp_path/'m').exists()

# ---- configurations

def test_stretched_positions_equal_transformers(tf):
    c = ModelConfig(family='llama', n_head=2, d_model=256, context=256, rope_theta=5e5, rope_scaling=STRETCH)
    rotary = tf.models.llama.modeling_llama.LlamaRotaryEmbedding(tf.LlamaConfig(**hf_config(c)))
    their_cos, their_sin = rotary(torch.zeros(1), torch.arange(256)[None])
    cos, sin = rotary_tables(256, 128, 5e5, STRETCH)
    assert largest_difference(cos, their_cos[0]) < 1e-4
    assert largest_difference(sin.abs(), their_sin[0].abs()) < 1e-4

@pytest.mark.parametrize('name, n', [('gpt2', 124_439_808), ('gpt2-medium', 354_823_168), ('gpt2-large', 774_030_080),
                                     ('gpt2-xl', 1_557_611_200)])
def test_published_gpt2_sizes(name, n):
    with torch.device('meta'): m = Transformer(get_config(name))
    assert count(m) == n

@pytest.mark.parametrize('name', [n for n in SIZES if '-' in n or n == 'gpt2'])
def test_published_sizes_have_the_shapes_of_transformers(name, tf):
    c = get_config(name, context=128)
    numbers = hf_config(c)
    cls = getattr(tf, numbers['architectures'][0])
    with torch.device('meta'):
        ours = Transformer(c)
        theirs = cls(tf.AutoConfig.for_model(**numbers))
    assert count(ours) == count(theirs)

@pytest.mark.parametrize('family', FAMILIES)
def test_a_new_model_is_undecided_in_every_family(family):
    torch.manual_seed(0)
    m = Transformer(ModelConfig(family=family, vocab_size=300, context=64))
    with torch.no_grad(): z = m.logits(m(ids(4, 64) % 300))
    even = torch.tensor(300.).log()
    assert abs(z.logsumexp(-1).mean() - even) < .1
    for name, p in m.named_parameters():
        if name.endswith('bias'): assert p.eq(0).all()

@pytest.mark.parametrize('kw, says', [
    (dict(family='bert'), 'family'),
    (dict(mlp='tanh'), 'mlp'),
    (dict(family='gpt2', head_dim=32), 'head_dim'),
    (dict(family='gpt2', rope_scaling=STRETCH), 'only decoders that rotate'),
    (dict(family='qwen2', attn_bias='none'), 'attn_bias'),
    (dict(family='mistral', mlp_bias=True), 'mlp_bias'),
    (dict(rope_scaling=dict(type='longrope', factor=2.)), 'longrope'),
    (dict(rope_scaling=dict(type='yarn', factor=2.)), 'original_max'),
    (dict(family='llama', rope_scaling=dict(factor=2)), 'low_freq_factor'),
    (dict(family='encoder', window=-1), 'window'),
    (dict(family='gpt2', window=2), 'window 0'),
    (dict(family='llama', n_head=3), 'divide'),
])
def test_bad_configurations(kw, says):
    with pytest.raises(UserError, match=says): ModelConfig(**kw)

# ---- any other model of transformers

SMALL = dict(vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
OTHERS = {
    'gpt_neox': dict(SMALL, intermediate_size=64, max_position_embeddings=64),
    'opt': dict(SMALL, ffn_dim=64, word_embed_proj_dim=16, max_position_embeddings=64),
    'mamba': dict(vocab_size=100, hidden_size=32, num_hidden_layers=2, state_size=4),
    'gptj': dict(vocab_size=100, n_embd=32, n_layer=2, n_head=4, rotary_dim=4, n_positions=64),
    'mistral': dict(SMALL, intermediate_size=64, num_key_value_heads=2, tie_word_embeddings=True),
    'bloom': dict(vocab_size=100, hidden_size=32, n_layer=2, n_head=4),
}

def other(tf, kind, **kw):
    "Return a small model of transformers whose weights are large enough for differences to show."
    torch.manual_seed(0)
    config = tf.AutoConfig.for_model(kind, **OTHERS.get(kind, {}), **kw)
    m = tf.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for n, p in m.named_parameters():
            size = .2 if p.ndim > 1 or n == 'lm_head.bias' else 0
            p.add_(torch.randn_like(p) * size)
    return m

def gradients_of_all(m, z):
    return torch.autograd.grad(z.logsumexp(-1).mean(), list(m.parameters()), allow_unused=True)

@pytest.mark.parametrize('kind', OTHERS)
def test_any_causal_model_gives_its_own_logits_and_gradients(kind, tf):
    theirs = other(tf, kind)
    x = ids() % 100
    lm = as_lm(theirs)
    ours_z = lm.logits(lm(x))
    their_z = theirs(x).logits
    assert their_z.std() > .1
    assert largest_difference(ours_z, their_z) < 1e-4
    got = gradients_of_all(lm, ours_z)
    want = gradients_of_all(theirs, their_z)
    for g, w in zip(got, want):
        assert (g is None) == (w is None)
        assert g is None or torch.allclose(g, w, atol=1e-4)

@pytest.mark.parametrize('kind, how', [('gpt_neox', 'sdpa'), ('gpt_neox', 'eager'), ('opt', 'sdpa'),
                                       ('mistral', 'sdpa')])
def test_documents_in_other_models(kind, how, tf):
    lm = as_lm(other(tf, kind, attn_implementation=how))
    x = ids(2, 20) % 100
    with torch.no_grad():
        alone = torch.cat((lm(x[:, :8]), lm(x[:, 8:])), 1)
        assert largest_difference(lm(x, documents(8, 12, rows=2)), alone) < 1e-4
        assert largest_difference(lm(x), alone) > 1e-4

@pytest.mark.parametrize('kind', ['mamba', 'bloom'])
def test_models_that_cannot_keep_documents_apart_say_so(kind, tf):
    lm = as_lm(other(tf, kind))
    with pytest.raises(UserError, match='cannot keep them apart'):
        lm(ids() % 100, torch.zeros(3, 24))

FEW = dict(SMALL, intermediate_size=64, num_key_value_heads=2, pad_token_id=0)

@pytest.mark.parametrize('kind, kw', [
    ('gemma2', dict(FEW, head_dim=8)),
    ('cohere', dict(FEW, logit_scale=.5)),
    ('granite', dict(FEW, logits_scaling=2.)),
])
def test_models_that_change_their_logits_are_not_wrapped(kind, kw, tf):
    with pytest.raises(UserError, match='scales or limits'): as_lm(other(tf, kind, **kw))

def test_what_is_no_causal_model_is_not_wrapped(tf):
    config = tf.T5Config(vocab_size=50, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    for wrong in (tf.T5ForConditionalGeneration(config), torch.nn.Linear(2, 2)):
        with pytest.raises(UserError, match='AutoModelForCausalLM'): as_lm(wrong)

def test_a_wrapped_model_refuses_long_rows_and_a_cache(tf):
    lm = as_lm(other(tf, 'gpt_neox'))
    with pytest.raises(UserError, match='at most 64'): lm(torch.zeros(1, 65, dtype=torch.long))
    with pytest.raises(UserError, match='got a cache'): lm(ids() % 100, KVCache(ModelConfig()))

@pytest.mark.parametrize('kind', OTHERS)
def test_any_causal_model_is_wrapped_once(kind, tf):
    lm = as_lm(other(tf, kind))
    assert lm.config.vocab_size == 100
    assert lm.head.weight.shape == lm.embed.weight.shape
    assert as_lm(lm) is lm

def test_a_wrapped_model_is_saved_as_it_was(tf, tmp_path):
    lm = as_lm(other(tf, 'gpt_neox'))
    x = ids() % 100
    assert sorted(lm.state_dict()) == sorted('model.' + name for name in lm.model.state_dict())
    tok = foreign()
    lm.save_pretrained(tmp_path, tok)
    theirs = tf.AutoTokenizer.from_pretrained(tmp_path)
    assert (theirs.eos_token, len(theirs)) == ('<|endoftext|>', tok.get_vocab_size())
    loaded = tf.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad(): assert as_lm(loaded)(x).equal(lm(x))

def test_a_wrapped_model_recomputes(tf):
    lm = as_lm(other(tf, 'gpt_neox')).train()
    x = ids() % 100
    def gradient(every):
        lm.set_recompute(every)
        loss = lm(x).square().mean()
        return torch.autograd.grad(loss, lm.embed.weight)[0]
    assert torch.allclose(gradient(0), gradient(1), atol=1e-6)

def test_our_own_model_passes_through():
    m = build('gpt2')
    assert as_lm(m) is m
    assert not isinstance(m, WrappedLM)


# ---- models that are only asked, with tokenizers from elsewhere

def foreign(*specials):
    "Make a tokenizer as other models have it."
    return gpt2_like(['the cat sat on the mat'] * 9, 264, *(specials or ['<|endoftext|>']))

DOCS = ['the cat sat on the mat!', 'naïve café', 'a b c d e f g 1987']
WIDE = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=64)
SHARED = dict(WIDE, num_key_value_heads=1)
OLD = dict(n_embd=32, n_layer=2, n_head=4, n_positions=64)
ASKED = {
    'llama': SHARED, 'mistral': SHARED, 'qwen2': SHARED, 'qwen3': dict(SHARED, head_dim=16), 'stablelm': SHARED,
    'phi': WIDE, 'phi3': dict(SHARED, pad_token_id=0), 'gpt_neox': WIDE, 'gptj': dict(OLD, rotary_dim=4), 'gpt2': OLD,
    'gpt_bigcode': OLD, 'codegen': dict(OLD, rotary_dim=4), 'opt': dict(WIDE, ffn_dim=64, word_embed_proj_dim=32),
    'olmo2': SHARED,
    'gemma': dict(SHARED, head_dim=16), 'gemma2': dict(SHARED, head_dim=16, final_logit_softcapping=5.),
    'cohere': dict(SHARED, logit_scale=.3), 'granite': dict(SHARED, logits_scaling=4.),
    'mixtral': dict(SHARED, num_local_experts=2),
    'bloom': dict(hidden_size=32, n_layer=2, n_head=2),
    'mamba': dict(hidden_size=32, num_hidden_layers=2, state_size=4),
    'rwkv': dict(hidden_size=32, num_hidden_layers=2, context_length=64),
    'mpt': dict(d_model=32, n_layers=2, n_heads=2, max_seq_len=64),
    'falcon': dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, alibi=True),
}

def asked(tf, kind, n_ids):
    torch.manual_seed(0)
    m = tf.AutoModelForCausalLM.from_config(tf.AutoConfig.for_model(kind, vocab_size=n_ids, **ASKED[kind])).eval()
    with torch.no_grad():
        for p in m.parameters(): p.add_(torch.randn_like(p) * .1)
    return m

def their_nats(m, tok, begin):
    total = 0.
    for doc in DOCS:
        x = torch.tensor([[begin] + tok.encode(doc).ids])
        with torch.no_grad(): total += m(input_ids=x, labels=x).loss.item() * (x.shape[1] - 1)
    return total

@pytest.mark.parametrize('kind', ASKED)
def test_nats_equal_transformers(kind, tf):
    tok = foreign()
    end = tok.token_to_id('<|endoftext|>')
    m = asked(tf, kind, end + 1)
    want = their_nats(m, tok, end)
    at_once = document_nats(m, tok, DOCS)
    in_parts = document_nats(m, tok, DOCS, batch_size=1, chunk=3)
    assert at_once[:, 0].sum() == pytest.approx(want, rel=1e-5)
    assert in_parts[:, 0].sum() == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize('kind', ASKED)
def test_greedy_text_equals_transformers(kind, tf):
    tok = foreign()
    m = asked(tf, kind, tok.token_to_id('<|endoftext|>') + 1)
    x = torch.tensor([tok.encode('the cat').ids])
    options = dict(max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0)
    whole, = m.generate(x, attention_mask=torch.ones_like(x), **options).tolist()
    theirs = whole[x.shape[1]:]
    assert generate_ids(m, x.tolist(), 12, temperature=0, stop=None) == [theirs]
    pieces = stream(m, tok, 'the cat', max_new_tokens=12, temperature=0)
    assert generate(m, tok, 'the cat', 12, temperature=0) == [''.join(pieces)]

@pytest.mark.parametrize('kind', ['bloom', 'mamba'])
def test_a_model_without_a_limit_has_windows_and_writes_on(kind, tf):
    tok = foreign()
    reader = as_reader(asked(tf, kind, 265))
    assert reader.config.context is None
    rows = evaluate_text(reader, tok, DOCS)
    assert 'window:1024' in rows[0]['signature']
    assert len(generate_ids(reader, [[5] * 100], 30, stop=None)[0]) == 30
    with pytest.raises(UserError, match='expected max_new_tokens >= 1'):
        generate_ids(reader, [[5]], 0)
    assert continuation_logprob(reader, tok, ['the'], [' cat']).shape == (1,)

def test_a_document_begins_as_its_tokenizer_says(tf):
    tok = foreign('<s>', '</s>')
    tok.post_processor = processors.TemplateProcessing(single='<s> $A', special_tokens=[('<s>', 264)])
    m = asked(tf, 'llama', 266)
    want = 0.
    for doc in DOCS:
        x = torch.tensor([tok.encode(doc).ids])
        assert x[0, 0] == 264
        n_targets = x.shape[1] - 1
        with torch.no_grad(): want += m(input_ids=x, labels=x).loss.item() * n_targets
    assert document_nats(m, tok, DOCS)[:, 0].sum() == pytest.approx(want, rel=1e-5)
    assert 'bos:<s>' in evaluate_text(m, tok, DOCS)[0]['signature']

def test_what_no_nats_can_be_made_with_is_refused(tf):
    m = asked(tf, 'gpt2', 265)
    tok = foreign()
    wrong = [('context', 0), ('context', 2.5), ('context', 65), ('stride', 0), ('batch_size', 0), ('chunk', 0)]
    for name, value in wrong:
        with pytest.raises(UserError, match=f'expected a? ?{name}'):
            document_nats(m, tok, DOCS, **{name: value})
    state = json.loads(tok.to_str())
    state['added_tokens'] = []
    without_ends = Tokenizer.from_str(json.dumps(state))
    with pytest.raises(UserError, match='begins or ends a text'):
        document_nats(m, without_ends, DOCS)
    smaller = asked(tf, 'gpt2', 260)
    with pytest.raises(UserError, match='not the one of this model'):
        document_nats(smaller, tok, DOCS)


def test_weights_that_are_no_numbers_make_no_nats(tf):
    m = asked(tf, 'gpt2', 265)
    tok = foreign()
    with torch.no_grad(): m.transformer.wte.weight[5] = float('nan')
    with pytest.raises(UserError, match='got NaN from GPT2LMHeadModel'):
        document_nats(m, tok, DOCS)
    ours = build('llama-untied')
    first_byte, *_ = tok.encode('é').ids
    with torch.no_grad(): ours.embed.weight[first_byte] = float('nan')
    with pytest.raises(UserError, match='got NaN in document 1'): document_nats(ours, tok, DOCS)

def test_an_encoder_is_no_reader(tf):
    torch.manual_seed(0)
    config = tf.BertConfig(vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
                           intermediate_size=64)
    with pytest.raises(UserError, match='tokens that come later'):
        as_reader(tf.BertForMaskedLM(config))
    with pytest.raises(UserError, match='AutoModelForCausalLM'): as_reader(torch.nn.Linear(2, 2))

def test_asking_leaves_each_part_in_its_mode(tf):
    m = asked(tf, 'gpt2', 265).train()
    m.transformer.h[0].eval()
    before = [part.training for part in m.modules()]
    first = document_nats(m, foreign(), DOCS)
    assert (first == document_nats(m, foreign(), DOCS)).all()
    assert [part.training for part in m.modules()] == before


# ---- folders

@pytest.mark.parametrize('specials', [
    ('<|endoftext|>',), ('<s>', '</s>', '<pad>'), ('<|begin_of_text|>', '<|end_of_text|>', '<|eot_id|>'),
])
def test_an_export_names_the_tokenizers_own_ids(specials, tf, tmp_path):
    tok = foreign(*specials)
    n_ids = tok.get_vocab_size()
    m = Transformer(ModelConfig(family='llama', vocab_size=n_ids, n_layer=1, d_model=32, n_head=2, context=64)).eval()
    save_pretrained(m, tok, tmp_path/'a')
    config = read_json(tmp_path/'a/config.json')
    theirs = tf.AutoTokenizer.from_pretrained(tmp_path/'a')
    assert config['eos_token_id'] == theirs.eos_token_id == text_ids(tok).end[0]
    assert config['bos_token_id'] == theirs.bos_token_id
    assert config['pad_token_id'] == theirs.pad_token_id
    assert len(theirs) == n_ids
    assert theirs('the cat!').input_ids == encode_text(tok, ['the cat!'])[0]
    back, back_tok = load_pretrained(tmp_path/'a', 'cpu')
    assert text_ids(back_tok) == text_ids(tok)
    save_pretrained(back, None, tmp_path/'b')
    assert read_json(tmp_path/'b/config.json') == config

def test_a_gpt2_from_elsewhere_is_read_and_written_with_its_ids(tf, tmp_path):
    tok = foreign()
    theirs = asked(tf, 'gpt2', 265)
    theirs.config.eos_token_id = theirs.config.bos_token_id = theirs.generation_config.eos_token_id = 264
    theirs.save_pretrained(tmp_path/'a')
    tok.save(str(tmp_path/'a/tokenizer.json'))
    model, tok = load_pretrained(tmp_path/'a', 'cpu')
    save_pretrained(model, tok, tmp_path/'b')
    for name in ('config', 'generation_config'):
        assert read_json(tmp_path/f'b/{name}.json')['eos_token_id'] == 264
    assert read_json(tmp_path/'b/config.json')['n_ctx'] == 64 # for llama.cpp's converter
    save_pretrained(load_model(tmp_path/'a', 'cpu'), None, tmp_path/'c')
    assert read_json(tmp_path/'c/config.json')['eos_token_id'] == 264

def test_ends_may_be_several(tmp_path):
    tok = foreign('<|end_of_text|>', '<|eot_id|>')
    tok.save(str(tmp_path/'tokenizer.json'))
    write_json(tmp_path/'generation_config.json', dict(eos_token_id=[264, 265]))
    tok = read_tokenizer(tmp_path)
    m = Transformer(ModelConfig(vocab_size=266, n_layer=1, d_model=32, n_head=2, context=64))
    save_pretrained(m, tok, tmp_path/'m')
    assert read_json(tmp_path/'m/config.json')['eos_token_id'] == [264, 265]
    assert read_json(tmp_path/'m/tokenizer_config.json')['eos_token'] == '<|end_of_text|>'

@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_weights_that_are_no_numbers(value, tmp_path):
    m = build('llama')
    with torch.no_grad(): m.blocks[1].attn.k_proj.weight[3, 4] = value
    with pytest.raises(UserError, match='in blocks.1.attn.k_proj.weight'): check_finite(m)
    with pytest.warns(UserWarning, match='in blocks.1.attn.k_proj.weight'): save_pretrained(m, None, tmp_path/'m')
    with pytest.raises(UserError, match='in model.layers.1.self_attn.k_proj.weight'): load_model(tmp_path/'m')

def test_a_model_of_transformers_with_broken_weights_is_written_with_a_warning(tf, tmp_path):
    lm = as_lm(their_class(tf, build('llama')).from_pretrained(save_pretrained(build('llama'), None, tmp_path/'good')))
    with torch.no_grad(): next(lm.model.parameters())[0, 0] = float('nan')
    with pytest.warns(UserWarning, match='holds NaN or infinity'): lm.save_pretrained(tmp_path/'bad')

def test_a_dtype_too_narrow_for_the_weights_writes_nothing(tmp_path):
    m = build('gpt2')
    with torch.no_grad(): m.embed.weight[7, 7] = 1e5
    with pytest.raises(UserError, match='float16, in which embed.weight would be infinite'):
        save_pretrained(m, None, tmp_path/'m', dtype='float16')
    assert not (tmp_path/'m').exists()
    save_pretrained(m, None, tmp_path/'m', dtype='bfloat16')
    with pytest.raises(UserError, match='wider range'): load_model(tmp_path/'m', dtype='float16')

@pytest.mark.parametrize('inside', ['', 'model', 'pretrain/model'])
def test_the_folder_of_a_run_opens_its_model(inside, tmp_path):
    tok = train_tokenizer(['a'], 260)
    m = Transformer(ModelConfig(vocab_size=260, n_layer=1, d_model=32, n_head=2, context=64)).eval()
    save_pretrained(m, tok, tmp_path/inside)
    assert same_parameters(load_pretrained(tmp_path, 'cpu')[0], m)

def test_a_folder_without_a_model_says_where_one_is(tmp_path):
    with pytest.raises(UserError, match='found no config.json'): load_pretrained(tmp_path)
    save_pretrained(build('gpt2'), None, tmp_path/'other')
    with pytest.raises(UserError, match='give one of .*other'): load_model(tmp_path)
