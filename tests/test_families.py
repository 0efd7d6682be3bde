"Each family against transformers, against itself, and against files that do not fit."
import pytest, torch
from llmbook.core import UserError, import_transformers, read_json, write_json
from llmbook.model.config import FAMILIES, SIZES, ModelConfig, get_config
from llmbook.model.hf import load_model, save_pretrained
from llmbook.model.layers import KVCache, rotary_tables
from llmbook.model.hf_config import config_from_hf, hf_config, hf_names, hf_tensor
from llmbook.model.transformer import Transformer
from llmbook.model.hf_wrap import WrappedLM, as_lm

STRETCH = dict(factor=4., low_freq_factor=1., high_freq_factor=4., original_max_position_embeddings=32)
CASES = {
    'qwen3':         dict(family='qwen3'),
    'qwen3-geglu':   dict(family='qwen3', mlp='geglu'),
    'llama':         dict(family='llama', n_kv_head=1),
    'llama-untied':  dict(family='llama', tie_embeddings=False, head_dim=24),
    'llama3':        dict(family='llama', rope_scaling=STRETCH, rope_theta=5e5),
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
    "A model whose weights are large enough for differences to show, biases too."
    torch.manual_seed(seed)
    m = Transformer(ModelConfig(**{**dict(vocab_size=320, n_layer=2, d_model=64, n_head=4, context=64), **CASES[name]})).eval()
    with torch.no_grad():
        for n, p in m.named_parameters(): p.copy_(torch.randn_like(p) * .15 + (p.ndim == 1 and n.endswith('weight')))
    return m

def ids(B=3, T=24, seed=1): return torch.randint(4, 320, (B, T), generator=torch.Generator().manual_seed(seed))

def their_class(tf, m): return tf.AutoModelForCausalLM if m.config.traits.causal else tf.AutoModelForMaskedLM

def exported(tf, m, path): return their_class(tf, m).from_pretrained(save_pretrained(m, None, path)).eval()

@pytest.mark.parametrize('name', CASES)
def test_logits_and_gradients_equal_after_export(name, tf, tmp_path):
    m, x = build(name), ids()
    theirs = exported(tf, m, tmp_path)
    a, b = m.logits(m(x)), theirs(x).logits
    assert a.std() > .1 and (a - b).abs().max() < 1e-4
    a.logsumexp(-1).mean().backward(); b.logsumexp(-1).mean().backward()
    ours, grads = dict(m.named_parameters()), dict(theirs.named_parameters())
    for n, (parts, turned) in hf_names(m).items():
        torch.testing.assert_close(hf_tensor([ours[o].grad for o in parts], turned), grads[n].grad, atol=1e-4, rtol=1e-3, msg=n)

@pytest.mark.parametrize('name', CASES)
def test_logits_equal_after_import(name, tf, tmp_path):
    torch.manual_seed(3)
    c = build(name).config
    config = tf.AutoConfig.for_model(**{**hf_config(c), 'initializer_range': .1})
    theirs = getattr(tf, hf_config(c)['architectures'][0])(config).eval()
    with torch.no_grad():
        for n, p in theirs.named_parameters():
            if n.endswith('bias'): p.normal_(std=.1)
    theirs.save_pretrained(tmp_path, max_shard_size='60KB')
    assert (tmp_path/'model.safetensors.index.json').exists()
    m, x = load_model(tmp_path, 'cpu'), ids()
    assert m.config == c
    with torch.no_grad(): assert (m.logits(m(x)) - theirs(x).logits).abs().max() < 1e-4

@pytest.mark.parametrize('name', CASES)
def test_the_configuration_comes_back_as_transformers_writes_it(name, tf):
    c = build(name).config
    assert config_from_hf(tf.AutoConfig.for_model(**hf_config(c)).to_dict()) == c

@pytest.mark.parametrize('name', ['encoder', 'encoder-local'])
def test_padding_of_an_encoder_as_in_transformers(name, tf, tmp_path):
    m, x, real = build(name), ids(), torch.ones(3, 24, dtype=torch.long)
    real[1, 15:] = 0; real[2, :6] = 0
    theirs = exported(tf, m, tmp_path)
    with torch.no_grad(): a, b = m.logits(m(x, real.bool())), theirs(x, attention_mask=real).logits
    assert (a - b)[real.bool()].abs().max() < 1e-4

@pytest.mark.parametrize('name', CASES)
def test_each_document_as_if_alone(name):
    m, x = build(name), ids(2, 30)
    docs = torch.tensor([0] * 7 + [1] * 13 + [2] * 10).expand(2, -1)
    with torch.no_grad():
        alone = torch.cat([m(p) for p in x.split([7, 13, 10], 1)], 1)
        assert (m(x, docs) - alone).abs().max() < 1e-4
        x2 = x.clone(); x2[:, 9] = 5
        assert m(x2, docs)[:, 20:].equal(m(x, docs)[:, 20:]) and m(x2, docs)[:, :7].equal(m(x, docs)[:, :7])

@pytest.mark.parametrize('name', DECODERS)
def test_cache_and_left_padding(name):
    m, x = build(name), ids()
    with torch.inference_mode():
        cache = KVCache(m.config, 3)
        parts = [m(p, cache) for p in x.split([5, 1, 1, 10, 7], 1)]
        assert (torch.cat(parts, 1) - m(x)).abs().max() < 1e-4
        padded = torch.cat((x[:1, :12], torch.cat((torch.ones(1, 7, dtype=torch.long), x[1:2, :5]), 1)))
        cache = KVCache(m.config, 2, pad=torch.tensor([0, 7]))
        h = torch.cat([m(p, cache) for p in padded.split([10, 1, 1], 1)], 1)
        assert h.isfinite().all() and (h[0] - m(x[:1, :12])[0]).abs().max() < 1e-4 and (h[1, 7:] - m(x[1:2, :5])[0]).abs().max() < 1e-4

@pytest.mark.parametrize('name', DECODERS)
def test_the_future_is_hidden_in_decoders_only(name):
    m, x = build(name), ids()
    x2 = x.clone(); x2[:, 12] = (x2[:, 12] + 1) % 320
    with torch.no_grad(): same = (m(x) == m(x2)).all(-1).all(0)
    assert same[:12].all() and not same[12:].any()

def test_an_encoder_sees_both_ways_and_takes_no_cache():
    m, x = build('encoder'), ids()
    x2 = x.clone(); x2[:, 12] = (x2[:, 12] + 1) % 320
    with torch.no_grad(): assert (m(x) != m(x2)).any(-1).all()
    with pytest.raises(UserError, match='expected a decoder'): KVCache(m.config)
    with pytest.raises(UserError, match='reads whole texts'): m(x, KVCache(ModelConfig()))

@pytest.mark.parametrize('name', ['qwen3', 'gpt2', 'encoder-local'])
@pytest.mark.parametrize('every', [1, 2])
def test_recomputing_changes_no_gradient(name, every):
    m, x, docs = build(name), ids(), torch.tensor([0] * 10 + [1] * 14).expand(3, -1)
    def grads(seen):
        m.zero_grad(); m.logits(m(x, seen)).logsumexp(-1).mean().backward()
        return [p.grad.clone() for p in m.parameters()]
    for seen in (None, docs):
        want = grads(seen)
        m.set_recompute(every)
        assert all(a.equal(b) for a, b in zip(want, grads(seen)))
        m.set_recompute(0)
    with torch.no_grad(): assert m.set_recompute(1)(x).equal(m.set_recompute(0)(x))

@pytest.mark.parametrize('name', ['qwen3', 'gpt2', 'encoder-local'])
def test_half_precision_and_autocast(name, tmp_path):
    m, x = build(name), ids()
    with torch.no_grad():
        want = m(x)
        with torch.autocast('cpu', torch.bfloat16): assert (m(x).float() - want).abs().max() < .25
        half = load_model(save_pretrained(m, None, tmp_path, dtype='bfloat16'), 'cpu', 'bfloat16')
        assert {p.dtype for p in half.parameters()} == {torch.bfloat16} and {b.dtype for b in half.buffers()} <= {torch.float32}
        assert (half(x).float() - want).abs().max() < .25
    assert (tmp_path/'model.safetensors').stat().st_size < 2.1 * sum(p.numel() for p in m.parameters()) + 20_000
    assert read_json(tmp_path/'config.json')['torch_dtype'] == 'bfloat16'

# ---- files

@pytest.mark.parametrize('name', ['llama-untied', 'gpt2', 'encoder'])
def test_shards_are_read_by_both_and_old_ones_go(name, tf, tmp_path):
    m, x = build(name), ids()
    save_pretrained(m, None, tmp_path, max_shard=50_000)
    index, files = read_json(tmp_path/'model.safetensors.index.json'), sorted(p.name for p in tmp_path.glob('*.safetensors'))
    assert sorted(set(index['weight_map'].values())) == files and len(files) > 2
    assert sorted(index['weight_map']) == sorted(hf_names(m)) and index['metadata']['total_size'] == 4 * sum(p.numel() for p in m.parameters())
    with torch.no_grad(): assert (m.logits(m(x)) - their_class(tf, m).from_pretrained(tmp_path)(x).logits).abs().max() < 1e-4
    assert all(a.equal(b) for a, b in zip(load_model(tmp_path, 'cpu').parameters(), m.parameters()))
    save_pretrained(m, None, tmp_path, max_shard=150_000)
    assert len(list(tmp_path.glob('*.safetensors'))) < len(files) and load_model(tmp_path, 'cpu').embed.weight.equal(m.embed.weight)
    save_pretrained(m, None, tmp_path)
    assert [p.name for p in tmp_path.glob('model*')] == ['model.safetensors']

def test_a_save_that_fails_leaves_the_old_model(tmp_path, monkeypatch):
    old, new = build('gpt2'), build('gpt2', seed=1)
    save_pretrained(old, None, tmp_path, max_shard=50_000)
    import safetensors.torch
    real, calls = safetensors.torch.save_file, []
    def full(*args, **kw):
        calls.append(1)
        if len(calls) == 3: raise OSError(28, 'No space left on device')
        return real(*args, **kw)
    monkeypatch.setattr(safetensors.torch, 'save_file', full)
    with pytest.raises(OSError): save_pretrained(new, None, tmp_path, max_shard=50_000)
    assert all(a.equal(b) for a, b in zip(load_model(tmp_path, 'cpu').parameters(), old.parameters()))
    assert not [p for p in tmp_path.iterdir() if p.name.endswith('.tmp')]

def test_gpt2_as_openai_stored_it(tf, tmp_path):
    "No prefix, and the causal mask as a tensor of each block."
    from safetensors.torch import load_file, save_file
    m = build('gpt2')
    save_pretrained(m, None, tmp_path)
    state = {n.removeprefix('transformer.'): t for n, t in load_file(tmp_path/'model.safetensors').items()}
    state.update({f'h.{i}.attn.bias': torch.ones(1, 1, 64, 64).tril() for i in range(2)})
    save_file(state, tmp_path/'model.safetensors')
    assert all(a.equal(b) for a, b in zip(load_model(tmp_path, 'cpu').parameters(), m.parameters()))

def test_a_tied_head_may_be_stored_if_it_is_the_embedding(tmp_path):
    from safetensors.torch import load_file, save_file
    m = build('llama')
    save_pretrained(m, None, tmp_path)
    state = load_file(tmp_path/'model.safetensors')
    save_file({**state, 'lm_head.weight': state['model.embed_tokens.weight'].clone()}, tmp_path/'model.safetensors')
    assert load_model(tmp_path, 'cpu').head.weight.equal(m.head.weight)
    save_file({**state, 'lm_head.weight': state['model.embed_tokens.weight'] + 1}, tmp_path/'model.safetensors')
    with pytest.raises(UserError, match='unexpected: lm_head.weight'): load_model(tmp_path, 'cpu')

@pytest.mark.parametrize('name, change, says', [
    ('llama', dict(rope_parameters=dict(rope_type='dynamic', factor=2., rope_theta=1e4)), 'dynamic'), ('llama', dict(mlp_bias=True), 'mlp_bias'),
    ('gpt2', dict(activation_function='gelu'), 'activation_function'), ('gpt2', dict(add_cross_attention=True), 'add_cross'),
    ('encoder', dict(norm_bias=True), 'norm_bias'), ('encoder', dict(decoder_bias=False), 'decoder_bias'),
    ('encoder', dict(layer_types=['sliding_attention'] * 3), 'layer_types'), ('encoder', dict(hidden_activation='relu'), 'hidden_activation'),
    ('qwen3', dict(rope_parameters=dict(rope_type='llama3', **STRETCH, rope_theta=1e4)), 'llama3')])
def test_options_of_other_models(name, change, says, tmp_path):
    save_pretrained(build(name), None, tmp_path)
    write_json(tmp_path/'config.json', {**read_json(tmp_path/'config.json'), **change})
    with pytest.raises(UserError, match=says): load_model(tmp_path, 'cpu')

@pytest.mark.parametrize('kw, says', [(dict(dtype='int8'), 'dtype'), (dict(max_shard=0), 'max_shard')])
def test_bad_arguments_write_nothing(kw, says, tmp_path):
    with pytest.raises(UserError, match=says): save_pretrained(build('gpt2'), None, tmp_path/'m', **kw)
    with pytest.raises(UserError, match='without a gate'): save_pretrained(Transformer(ModelConfig(family='gpt2', n_layer=1, mlp='swiglu')), None, tmp_path/'m')
    assert not (tmp_path/'m').exists()

# ---- configurations

def test_stretched_positions_equal_transformers(tf):
    c = ModelConfig(family='llama', n_head=2, d_model=256, context=256, rope_theta=5e5, rope_scaling=STRETCH)
    rotary = tf.models.llama.modeling_llama.LlamaRotaryEmbedding(tf.LlamaConfig(**hf_config(c)))
    cos, sin = rotary(torch.zeros(1), torch.arange(256)[None])
    ours = rotary_tables(256, 128, 5e5, STRETCH)
    assert (ours[0] - cos[0]).abs().max() < 1e-4 and (ours[1].abs() - sin[0].abs()).abs().max() < 1e-4

@pytest.mark.parametrize('name, n', {'gpt2': 124_439_808, 'gpt2-medium': 354_823_168, 'gpt2-large': 774_030_080, 'gpt2-xl': 1_557_611_200}.items())
def test_published_gpt2_sizes(name, n):
    with torch.device('meta'): assert sum(p.numel() for p in Transformer(get_config(name)).parameters()) == n

@pytest.mark.parametrize('name', [n for n in SIZES if '-' in n or n == 'gpt2'])
def test_published_sizes_have_the_shapes_of_transformers(name, tf):
    c = get_config(name, context=128)
    with torch.device('meta'):
        ours, theirs = Transformer(c), getattr(tf, hf_config(c)['architectures'][0])(tf.AutoConfig.for_model(**hf_config(c)))
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())

@pytest.mark.parametrize('family', FAMILIES)
def test_a_new_model_is_undecided_in_every_family(family):
    torch.manual_seed(0)
    m = Transformer(ModelConfig(family=family, vocab_size=300, context=64))
    with torch.no_grad(): z = m.logits(m(ids(4, 64) % 300))
    assert abs(z.logsumexp(-1).mean() - torch.tensor(300.).log()) < .1
    assert all(p.eq(0).all() for n, p in m.named_parameters() if n.endswith('bias'))

def test_bad_configurations():
    for kw, says in [(dict(family='bert'), 'family'), (dict(mlp='tanh'), 'mlp'), (dict(family='gpt2', head_dim=32), 'head_dim'),
                     (dict(rope_scaling=STRETCH), 'only llama'), (dict(family='llama', rope_scaling=dict(factor=2)), 'low_freq_factor'),
                     (dict(family='encoder', window=-1), 'window'), (dict(family='gpt2', window=2), 'only encoders'), (dict(family='llama', n_head=3), 'divide')]:
        with pytest.raises(UserError, match=says): ModelConfig(**kw)

# ---- any other model of transformers

SMALL = dict(vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
OTHERS = {
    'gpt_neox': dict(SMALL, intermediate_size=64, max_position_embeddings=64), 'opt': dict(SMALL, ffn_dim=64, word_embed_proj_dim=16, max_position_embeddings=64),
    'mamba': dict(vocab_size=100, hidden_size=32, num_hidden_layers=2, state_size=4), 'gptj': dict(vocab_size=100, n_embd=32, n_layer=2, n_head=4, rotary_dim=4, n_positions=64),
    'mistral': dict(SMALL, intermediate_size=64, num_key_value_heads=2, tie_word_embeddings=True), 'bloom': dict(vocab_size=100, hidden_size=32, n_layer=2, n_head=4),
}

def other(tf, kind, **kw):
    torch.manual_seed(0)
    m = tf.AutoModelForCausalLM.from_config(tf.AutoConfig.for_model(kind, **OTHERS.get(kind, {}), **kw)).eval()
    with torch.no_grad():
        for n, p in m.named_parameters(): p.add_(torch.randn_like(p) * (.2 if p.ndim > 1 or n == 'lm_head.bias' else 0))
    return m

@pytest.mark.parametrize('kind', OTHERS)
def test_any_causal_model_gives_its_own_logits_and_gradients(kind, tf):
    theirs, x = other(tf, kind), ids() % 100
    lm = as_lm(theirs)
    a, b = lm.logits(lm(x)), theirs(x).logits
    assert b.std() > .1 and (a - b).abs().max() < 1e-4
    ga = torch.autograd.grad(a.logsumexp(-1).mean(), list(lm.parameters()), allow_unused=True)
    gb = torch.autograd.grad(b.logsumexp(-1).mean(), list(theirs.parameters()), allow_unused=True)
    for p, q in zip(ga, gb): assert (p is None) == (q is None) and (p is None or torch.allclose(p, q, atol=1e-4))
    assert lm.config.vocab_size == 100 and lm.head.weight.shape == lm.embed.weight.shape and as_lm(lm) is lm

@pytest.mark.parametrize('kind, how', [('gpt_neox', 'sdpa'), ('gpt_neox', 'eager'), ('opt', 'sdpa'), ('mistral', 'sdpa')])
def test_documents_in_other_models(kind, how, tf):
    lm, x, docs = as_lm(other(tf, kind, attn_implementation=how)), ids(2, 20) % 100, torch.tensor([0] * 8 + [1] * 12).expand(2, -1)
    with torch.no_grad():
        alone = torch.cat((lm(x[:, :8]), lm(x[:, 8:])), 1)
        assert (lm(x, docs) - alone).abs().max() < 1e-4 < (lm(x) - alone).abs().max()

@pytest.mark.parametrize('kind', ['mamba', 'bloom'])
def test_models_that_cannot_keep_documents_apart_say_so(kind, tf):
    with pytest.raises(UserError, match='cannot keep them apart'): as_lm(other(tf, kind))(ids() % 100, torch.zeros(3, 24))

def test_what_is_not_wrapped(tf):
    few = dict(SMALL, intermediate_size=64, num_key_value_heads=2, pad_token_id=0)
    for kind, kw in {'gemma2': dict(few, head_dim=8), 'cohere': dict(few, logit_scale=.5), 'granite': dict(few, logits_scaling=2.)}.items():
        with pytest.raises(UserError, match='scales or limits'): as_lm(other(tf, kind, **kw))
    for wrong in (tf.T5ForConditionalGeneration(tf.T5Config(vocab_size=50, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)), torch.nn.Linear(2, 2)):
        with pytest.raises(UserError, match='AutoModelForCausalLM'): as_lm(wrong)
    lm = as_lm(other(tf, 'gpt_neox'))
    with pytest.raises(UserError, match='at most 64'): lm(torch.zeros(1, 65, dtype=torch.long))
    with pytest.raises(UserError, match='got a cache'): lm(ids() % 100, KVCache(ModelConfig()))

def test_a_wrapped_model_is_saved_as_it_was_and_recomputes(tf, tmp_path):
    lm, x = as_lm(other(tf, 'gpt_neox')), ids() % 100
    lm.save_pretrained(tmp_path)
    with torch.no_grad(): assert as_lm(tf.AutoModelForCausalLM.from_pretrained(tmp_path).eval())(x).equal(lm(x))
    lm.train()
    g = [torch.autograd.grad(lm.set_recompute(e)(x).square().mean(), lm.embed.weight)[0] for e in (0, 1)]
    assert torch.allclose(*g, atol=1e-6)
    assert sorted(lm.state_dict()) == sorted(f'model.{k}' for k in lm.model.state_dict())

def test_our_own_model_passes_through():
    m = build('gpt2')
    assert as_lm(m) is m and not isinstance(m, WrappedLM)
