"Models as transformers writes them: taken over with equal logits and written back equal, or wrapped, or refused."
import json, warnings
import pytest, torch
from safetensors.torch import load_file, save_file
from llmbook.cli import llmbook_export, llmbook_finetune, llmbook_generate
from llmbook.core import UserError, import_transformers, read_json, set_seed, write_json
from llmbook.generate.text import generate, generate_ids
from llmbook.model.hf import load_pretrained, save_pretrained
from llmbook.model.hf_wrap import WrappedLM, as_lm, load_lm
from llmbook.model.hf_config import config_from_hf
from llmbook.model.transformer import Transformer
from llmbook.plan.flops import count_params
from llmbook.tokens.tokenizer import extend_tokenizer, text_ids, train_tokenizer

BASE = dict(vocab_size=320, hidden_size=64, intermediate_size=112, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64, pad_token_id=1, bos_token_id=None, eos_token_id=0)
ROPE = dict(rope_theta=5e4)
LLAMA3 = dict(rope_type='llama3', factor=8., low_freq_factor=1., high_freq_factor=4., original_max_position_embeddings=32)
YARN = dict(rope_type='yarn', factor=4., original_max_position_embeddings=16)
MODELS = { # name: model type, and options that few models have
    'llama': ('llama', dict(rope_parameters=dict(rope_type='default', **ROPE))),
    'llama-biased': ('llama', dict(attention_bias=True, mlp_bias=True, head_dim=40, rms_norm_eps=1e-4)),
    'llama-3': ('llama', dict(rope_parameters={**LLAMA3, **ROPE}, tie_word_embeddings=True, num_key_value_heads=1)),
    'llama-linear': ('llama', dict(rope_parameters=dict(rope_type='linear', factor=2., **ROPE), hidden_act='gelu')),
    'llama-dynamic': ('llama', dict(rope_parameters=dict(rope_type='dynamic', factor=2., **ROPE))),
    'mistral': ('mistral', dict(sliding_window=None, head_dim=24)),
    'mistral-near': ('mistral', dict(sliding_window=9, tie_word_embeddings=True)),
    'mistral-wide': ('mistral', dict(sliding_window=4096, num_key_value_heads=4)),
    'qwen2': ('qwen2', dict(tie_word_embeddings=True)),
    'qwen2-unused': ('qwen2', dict(use_sliding_window=False, sliding_window=8, max_window_layers=1)),
    'qwen2-near': ('qwen2', dict(use_sliding_window=True, sliding_window=8, max_window_layers=0)),
    'qwen2-yarn': ('qwen2', dict(rope_parameters={**YARN, **ROPE, 'beta_fast': 16., 'attention_factor': 1.3})),
    'qwen3': ('qwen3', dict(head_dim=16)),
    'qwen3-biased': ('qwen3', dict(head_dim=32, attention_bias=True, tie_word_embeddings=True)),
    'qwen3-yarn': ('qwen3', dict(head_dim=16, rope_parameters={**YARN, **ROPE})),
    'gpt2': ('gpt2', {}),
    'gpt2-odd': ('gpt2', dict(n_inner=100, tie_word_embeddings=False, layer_norm_epsilon=1e-3)),
}
GPT2 = dict(vocab_size=320, n_embd=64, n_layer=2, n_head=4, n_positions=64, pad_token_id=1, bos_token_id=None, eos_token_id=0)
OTHERS = {
    'gpt_neox': dict(vocab_size=320, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
                     max_position_embeddings=64),
    'opt': dict(vocab_size=320, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, ffn_dim=64,
                word_embed_proj_dim=32, max_position_embeddings=64),
    'olmo2': dict(BASE),
    'bloom': dict(vocab_size=320, hidden_size=64, n_layer=2, n_head=4),
}


@pytest.fixture(scope='module')
def tf():
    tf = import_transformers()
    tf.utils.logging.disable_progress_bar()
    return tf

@pytest.fixture(scope='module')
def tok(): return train_tokenizer(['the cat sat on the mat and the dog'] * 9, 280)


def make(tf, kind, options):
    "Return a model of transformers whose weights are large enough for differences to show."
    set_seed(0)
    model = tf.AutoModelForCausalLM.from_config(tf.AutoConfig.for_model(kind, **options)).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim > 1 or name.endswith('bias'): p.copy_(torch.randn_like(p) * .12)
    return model

def build(tf, name):
    kind, options = MODELS[name]
    return make(tf, kind, (GPT2 if kind == 'gpt2' else BASE) | options)

def ids(T=40): return torch.randint(2, 320, (3, T), generator=torch.Generator().manual_seed(1))

def logits(model, x):
    with torch.no_grad(): return model.logits(model(x))

def their_logits(model, x, **kw):
    with torch.no_grad(): return model(x, **kw).logits

def tensors(folder):
    "Return all tensors of a folder by name, from one file or several."
    found = {}
    for file in sorted(folder.glob('*.safetensors')): found |= load_file(file)
    return found


@pytest.mark.parametrize('name', MODELS)
def test_a_model_is_taken_over_and_written_back(name, tf, tok, tmp_path):
    theirs = build(tf, name)
    theirs.save_pretrained(tmp_path/'theirs', max_shard_size='60KB')
    assert (tmp_path/'theirs/model.safetensors.index.json').exists()
    extend_tokenizer(tok, []).save(str(tmp_path/'theirs/tokenizer.json'))
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        model, its_tok = load_lm(tmp_path/'theirs', 'cpu')
    assert type(model) is Transformer
    want = their_logits(theirs, ids())
    assert want.std() > .1
    assert (logits(model, ids()) - want).abs().max() < 1e-4
    save_pretrained(model, its_tok, tmp_path/'ours')
    again = tf.AutoModelForCausalLM.from_pretrained(tmp_path/'ours').eval()
    assert type(again) is type(theirs)
    assert their_logits(again, ids()).equal(want)
    before, after = tensors(tmp_path/'theirs'), tensors(tmp_path/'ours')
    assert before.keys() == after.keys()
    for key in before: assert before[key].equal(after[key]), key
    assert load_pretrained(tmp_path/'ours', 'cpu')[0].config == model.config


@pytest.mark.parametrize('name', MODELS)
def test_it_writes_what_it_writes_in_transformers(name, tf, tok, tmp_path):
    theirs = build(tf, name)
    theirs.save_pretrained(tmp_path)
    tok.save(str(tmp_path/'tokenizer.json'))
    model, _ = load_lm(tmp_path, 'cpu')
    prompts = [x[:n] for x, n in zip(ids(), (4, 15, 30))]
    got = generate_ids(model, [x.tolist() for x in prompts], 16, temperature=0, stop=None)
    for x, new in zip(prompts, got):
        options = dict(max_new_tokens=16, do_sample=False, eos_token_id=None, pad_token_id=1)
        want = theirs.generate(x[None], attention_mask=torch.ones_like(x[None]), **options)
        assert new == want[0, len(x):].tolist()


@pytest.mark.parametrize('name', ['mistral-near', 'qwen2-yarn', 'llama-biased', 'gpt2-odd'])
def test_gradients_are_those_of_transformers(name, tf, tok, tmp_path):
    theirs = build(tf, name)
    theirs.save_pretrained(tmp_path)
    tok.save(str(tmp_path/'tokenizer.json'))
    model, _ = load_lm(tmp_path, 'cpu')
    model.logits(model(ids())).logsumexp(-1).mean().backward()
    theirs(ids()).logits.logsumexp(-1).mean().backward()
    torch.testing.assert_close(model.embed.weight.grad, theirs.get_input_embeddings().weight.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize('kind', OTHERS)
def test_any_other_model_is_wrapped(kind, tf, tok, tmp_path):
    theirs = make(tf, kind, OTHERS[kind])
    theirs.save_pretrained(tmp_path/'theirs')
    tok.save(str(tmp_path/'theirs/tokenizer.json'))
    model, its_tok = load_lm(tmp_path/'theirs', 'cpu')
    assert type(model) is WrappedLM
    torch.testing.assert_close(logits(model, ids()), their_logits(theirs, ids()))
    model.save_pretrained(tmp_path/'ours', its_tok)
    again, _ = load_lm(tmp_path/'ours', 'cpu')
    assert logits(again, ids()).equal(logits(model, ids()))
    assert generate(model, its_tok, 'the cat', 5, temperature=0) == generate(again, its_tok, 'the cat', 5, temperature=0)


@pytest.mark.parametrize('options, says', [
    (dict(rope_parameters=dict(rope_type='longrope', short_factor=[1.] * 8, long_factor=[2.] * 8, rope_theta=1e4,
                               original_max_position_embeddings=32)), 'longrope'),
    (dict(use_sliding_window=True, sliding_window=8, max_window_layers=1), 'layer_types'),
    (dict(hidden_act='gelu_new'), 'hidden_act'),
])
def test_options_that_ours_lacks_are_named_and_computed_by_transformers(options, says, tf, tok, tmp_path):
    theirs = make(tf, 'qwen2', BASE | options)
    theirs.save_pretrained(tmp_path)
    tok.save(str(tmp_path/'tokenizer.json'))
    with pytest.raises(UserError, match=says): load_pretrained(tmp_path, 'cpu')
    with pytest.warns(UserWarning, match=says): model, _ = load_lm(tmp_path, 'cpu')
    assert type(model) is WrappedLM
    torch.testing.assert_close(logits(model, ids(30)), their_logits(theirs, ids(30)))


def test_weights_in_half_precision_and_with_old_words(tf, tok, tmp_path):
    build(tf, 'llama-3').to(torch.bfloat16).save_pretrained(tmp_path)
    tok.save(str(tmp_path/'tokenizer.json'))
    config = read_json(tmp_path/'config.json')
    rope = config.pop('rope_parameters')
    old = dict(config, rope_theta=rope.pop('rope_theta'), rope_scaling=dict(rope, type=rope.pop('rope_type')))
    write_json(tmp_path/'config.json', old)
    model, _ = load_lm(tmp_path, 'cpu')
    assert model.embed.weight.dtype == torch.float32
    theirs = tf.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert (logits(model, ids()) - their_logits(theirs, ids())).abs().max() < 1e-4
    half, _ = load_lm(tmp_path, 'cpu', 'bfloat16')
    assert half.embed.weight.equal(model.embed.weight.bfloat16())


def test_a_name_on_the_hub_is_fetched_without_code_or_pickles(tf, tok, tmp_path, monkeypatch):
    build(tf, 'qwen2').save_pretrained(tmp_path)
    tok.save(str(tmp_path/'tokenizer.json'))
    asked = []
    def download(name, revision=None, allow_patterns=()):
        asked.append((name, revision))
        assert not any(word in pattern for pattern in allow_patterns for word in ('.py', '.bin', '.pt'))
        return str(tmp_path)
    monkeypatch.setattr('huggingface_hub.snapshot_download', download)
    monkeypatch.chdir(tmp_path)
    model, _ = load_lm('someone/their-model', 'cpu', revision='v2')
    assert asked == [('someone/their-model', 'v2')]
    assert model.config.family == 'qwen2'


def test_what_is_no_model(tf, tok, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match='check the name and the network'): load_lm('someone/none')
    with pytest.raises(UserError, match='found none'): load_lm(tmp_path/'none')
    with pytest.raises(UserError, match='found none'): load_lm('../none')
    with pytest.raises(UserError, match='dtype'): load_lm(tmp_path, dtype='int8')
    bert = tf.BertForMaskedLM(tf.BertConfig(**{k: v for k, v in BASE.items() if k != 'num_key_value_heads'}))
    bert.save_pretrained(tmp_path/'bert')
    tok.save('bert/tokenizer.json')
    with pytest.raises(UserError): load_lm(tmp_path/'bert', 'cpu')
    modern = tf.ModernBertForMaskedLM(tf.ModernBertConfig(**{k: v for k, v in BASE.items() if k != 'num_key_value_heads'}))
    modern.save_pretrained(tmp_path/'modern')
    tok.save('modern/tokenizer.json')
    with pytest.raises(UserError, match='fills gaps'): load_lm(tmp_path/'modern', 'cpu')


@pytest.mark.parametrize('kind', ['gpt_neox', 'qwen2'])
def test_missing_weights_are_not_drawn_at_random(kind, tf, tok, tmp_path):
    theirs = make(tf, kind, OTHERS.get(kind, BASE))
    theirs.save_pretrained(tmp_path)
    tok.save(str(tmp_path/'tokenizer.json'))
    file = tmp_path/'model.safetensors'
    state = load_file(file)
    name = next(name for name in state if 'layers.1' in name and name.endswith('weight'))
    save_file({key: w for key, w in state.items() if key != name}, file, metadata={'format': 'pt'})
    with pytest.raises(UserError, match=name): load_lm(tmp_path, 'cpu')


def test_a_pickle_and_a_missing_tokenizer_are_refused(tf, tmp_path):
    theirs = make(tf, 'gpt_neox', OTHERS['gpt_neox'])
    theirs.save_pretrained(tmp_path)
    with pytest.raises(UserError, match='tokenizer.json'): load_lm(tmp_path, 'cpu')
    torch.save(theirs.state_dict(), tmp_path/'pytorch_model.bin')
    (tmp_path/'model.safetensors').unlink()
    with pytest.raises(UserError, match='safetensors'): load_lm(tmp_path, 'cpu')


def test_an_older_tokenizer_is_made_anew(tf, tok, tmp_path):
    build(tf, 'gpt2').save_pretrained(tmp_path)
    parts = json.loads(tok.to_str())['model']
    (tmp_path/'vocab.json').write_text(json.dumps(parts['vocab']))
    merges = [merge if isinstance(merge, str) else ' '.join(merge) for merge in parts['merges']]
    (tmp_path/'merges.txt').write_text('#version: 0.2\n' + '\n'.join(merges))
    write_json(tmp_path/'tokenizer_config.json', dict(tokenizer_class='GPT2Tokenizer', eos_token='<|endoftext|>'))
    model, made = load_lm(tmp_path, 'cpu')
    assert made.encode('the cat').ids == tf.AutoTokenizer.from_pretrained(tmp_path)('the cat').input_ids
    assert text_ids(made, model).end == (0,)


@pytest.mark.parametrize('place', ['chat_template.jinja', 'tokenizer_config.json'])
def test_a_chat_template_is_kept_in_both_places(place, tf, tok, tmp_path):
    theirs = tmp_path/'theirs'
    build(tf, 'qwen2').save_pretrained(theirs)
    tok.save(str(theirs/'tokenizer.json'))
    template = '{{ messages[0]["content"] }}'
    if place.endswith('jinja'): (theirs/place).write_text(template)
    else: write_json(theirs/place, dict(chat_template=template))
    folder = save_pretrained(*load_lm(theirs, 'cpu'), tmp_path/'ours')
    assert (folder/'chat_template.jinja').read_text() == template
    assert read_json(folder/'tokenizer_config.json')['chat_template'] == template
    messages = [dict(role='user', content='hello')]
    assert tf.AutoTokenizer.from_pretrained(folder).apply_chat_template(messages, tokenize=False) == 'hello'


@pytest.mark.parametrize('kind, options', [('mistral', dict(sliding_window=12)), ('qwen2', dict(use_sliding_window=True, sliding_window=12, max_window_layers=1))])
def test_a_wrapped_model_keeps_its_window_apart_from_documents(kind, options, tf):
    model = as_lm(make(tf, kind, BASE | options))
    docs = torch.tensor([0] * 4 + [1] * 8).expand(3, -1)
    x = ids(12)
    with torch.no_grad():
        alone = torch.cat((model(x[:, :4]), model(x[:, 4:])), 1)
        torch.testing.assert_close(model(x, docs), alone, atol=1e-5, rtol=1e-4)
        with pytest.raises(UserError, match='at most 12 tokens, the window'): model(ids(13), torch.zeros(3, 13, dtype=torch.long))


PUBLISHED = { # config.json as it is on the hub, without what has no effect, and the number of weights that is published
    'Llama-3.2-1B': (1_235_814_400, dict(
        model_type='llama', attention_bias=False, head_dim=64, hidden_act='silu', hidden_size=2048, intermediate_size=8192,
        max_position_embeddings=131072, mlp_bias=False, num_attention_heads=32, num_hidden_layers=16, num_key_value_heads=8,
        rms_norm_eps=1e-5, rope_theta=5e5, tie_word_embeddings=True, vocab_size=128256,
        rope_scaling=dict(factor=32., high_freq_factor=4., low_freq_factor=1., original_max_position_embeddings=8192, rope_type='llama3'))),
    'TinyLlama-1.1B': (1_100_048_384, dict(
        model_type='llama', hidden_act='silu', hidden_size=2048, intermediate_size=5632, max_position_embeddings=2048, num_attention_heads=32,
        num_hidden_layers=22, num_key_value_heads=4, pretraining_tp=1, rms_norm_eps=1e-5, rope_scaling=None, tie_word_embeddings=False,
        vocab_size=32000)),
    'Mistral-7B-v0.1': (7_241_732_096, dict(
        model_type='mistral', hidden_act='silu', hidden_size=4096, intermediate_size=14336, max_position_embeddings=32768,
        num_attention_heads=32, num_hidden_layers=32, num_key_value_heads=8, rms_norm_eps=1e-5, rope_theta=10000., sliding_window=4096,
        tie_word_embeddings=False, vocab_size=32000)),
    'Qwen2.5-0.5B': (494_032_768, dict(
        model_type='qwen2', hidden_act='silu', hidden_size=896, intermediate_size=4864, max_position_embeddings=32768, max_window_layers=24,
        num_attention_heads=14, num_hidden_layers=24, num_key_value_heads=2, rms_norm_eps=1e-6, rope_theta=1e6, sliding_window=32768,
        tie_word_embeddings=True, use_mrope=False, use_sliding_window=False, vocab_size=151936)),
    'Qwen3-0.6B': (596_049_920, dict(
        model_type='qwen3', attention_bias=False, head_dim=128, hidden_act='silu', hidden_size=1024, intermediate_size=3072,
        max_position_embeddings=40960, max_window_layers=28, num_attention_heads=16, num_hidden_layers=28, num_key_value_heads=8,
        rms_norm_eps=1e-6, rope_scaling=None, rope_theta=1e6, sliding_window=None, tie_word_embeddings=True, use_sliding_window=False,
        vocab_size=151936)),
    'gpt2': (124_439_808, dict(
        model_type='gpt2', activation_function='gelu_new', layer_norm_epsilon=1e-5, n_ctx=1024, n_embd=768, n_head=12, n_layer=12,
        n_positions=1024, vocab_size=50257)),
}

@pytest.mark.parametrize('name', PUBLISHED)
def test_published_models_have_as_many_weights_as_is_published(name, tf):
    n, facts = PUBLISHED[name]
    config = config_from_hf(facts)
    with torch.device('meta'): model = Transformer(config)
    assert sum(p.numel() for p in model.parameters()) == n
    assert count_params(config)['total'] == n
    theirs = tf.AutoConfig.for_model(**facts)
    assert config_from_hf(theirs.to_dict()) == config


def test_a_wrapped_model_is_tuned_written_and_asked_by_commands(tf, tok, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    set_seed(0)
    config = tf.AutoConfig.for_model('gpt_neox', **OTHERS['gpt_neox'])
    tf.AutoModelForCausalLM.from_config(config).save_pretrained('theirs')
    tok.save('theirs/tokenizer.json')
    pairs = [json.dumps(dict(prompt=f'say {i}', answer='cat')) for i in range(60)]
    (tmp_path/'pairs.jsonl').write_text('\n'.join(pairs))
    llmbook_finetune('theirs', task='pairs.jsonl', out='tuned', steps=8, evaluations=2, bs=8, pairs=4)
    assert llmbook_generate('tuned', prompt='say 3', answer=True, tokens=4, temperature=0.) == ['cat']
    llmbook_export('tuned', out='exported')
    model, _ = load_lm('exported', 'cpu')
    assert type(model) is WrappedLM


def test_a_command_takes_a_name_on_the_hub(tf, tok, tmp_path, monkeypatch):
    build(tf, 'qwen2').save_pretrained(tmp_path)
    tok.save(str(tmp_path/'tokenizer.json'))
    monkeypatch.setattr('huggingface_hub.snapshot_download', lambda name, **options: str(tmp_path))
    monkeypatch.chdir(tmp_path.parent)
    assert len(llmbook_generate('someone/their-model', prompt='the cat', tokens=4)) == 1


@pytest.mark.parametrize('kind', ['llama', 'mistral', 'qwen2', 'qwen3'])
@pytest.mark.parametrize('more', [{}, dict(use_sliding_window=True, max_window_layers=0), dict(rope_theta=5e5), dict(rms_norm_eps=1e-5)])
def test_what_a_file_leaves_out_is_what_transformers_takes(kind, more, tf):
    names = ('vocab_size', 'hidden_size', 'intermediate_size', 'num_hidden_layers', 'num_attention_heads', 'num_key_value_heads')
    facts = {'model_type': kind, 'max_position_embeddings': 8192, **{name: BASE[name] for name in names}, **more}
    assert config_from_hf(facts) == config_from_hf(tf.AutoConfig.for_model(**facts).to_dict())
