"Models as transformers writes them: taken over with equal logits and written back equal, or wrapped, or refused."
import json, warnings
from pathlib import Path
import pytest, torch
from folders import write_rows
from foreign import quiet_transformers
from safetensors.torch import load_file, save_file
from llmbook.cli import llmbook_export, llmbook_finetune, llmbook_generate
from llmbook.core import UserError, read_json, set_seed, write_json
from llmbook.generate.text import generate, generate_ids
from llmbook.model.hf import load_pretrained, save_pretrained
from llmbook.model.hf_wrap import WrappedLM, as_lm
from llmbook.model.open import load_lm
from llmbook.model.hf_config import config_from_hf
from llmbook.model.transformer import Transformer
from llmbook.plan.flops import count_params
from llmbook.tokens.tokenizer import extend_tokenizer, text_ids, train_tokenizer

BASE = dict(vocab_size=320, hidden_size=64, intermediate_size=112, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64, pad_token_id=1, bos_token_id=None, eos_token_id=0)
ROPE = dict(rope_theta=5e4)
LLAMA3 = dict(rope_type='llama3', factor=8., low_freq_factor=1., high_freq_factor=4.,
              original_max_position_embeddings=32)
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
GPT2 = dict(vocab_size=320, n_embd=64, n_layer=2, n_head=4, n_positions=64, pad_token_id=1, bos_token_id=None,
            eos_token_id=0)
OTHERS = {
    'gpt_neox': dict(vocab_size=320, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
                     max_position_embeddings=64),
    'opt': dict(vocab_size=320, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, ffn_dim=64,
                word_embed_proj_dim=32, max_position_embeddings=64),
    'olmo2': dict(BASE),
    'bloom': dict(vocab_size=320, hidden_size=64, n_layer=2, n_head=4),
}


@pytest.fixture(scope='module')
def tf(): return quiet_transformers()

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


def write_model(theirs, tok, folder, **options):
    "Write a model of transformers and a tokenizer to a folder."
    theirs.save_pretrained(folder, **options)
    tok.save(str(folder/'tokenizer.json'))
    return folder


@pytest.fixture(params=MODELS)
def both(request, tf, tok, tmp_path):
    "Return a model of transformers, what is made of it here, its tokenizer, and its folder of several files."
    theirs = build(tf, request.param)
    folder = write_model(theirs, extend_tokenizer(tok, []), tmp_path/'theirs', max_shard_size='60KB')
    assert (folder/'model.safetensors.index.json').exists()
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        model, its_tok = load_lm(folder, 'cpu')
    return theirs, model, its_tok, folder


def test_a_model_is_taken_over(both):
    theirs, model, _, _ = both
    assert type(model) is Transformer
    expected = their_logits(theirs, ids())
    assert expected.std() > .1
    assert (logits(model, ids()) - expected).abs().max() < 1e-4


def test_a_model_is_written_back(both, tmp_path):
    _, model, its_tok, folder = both
    save_pretrained(model, its_tok, tmp_path/'ours')
    before = tensors(folder)
    after = tensors(tmp_path/'ours')
    assert before.keys() == after.keys()
    for key in before: assert before[key].equal(after[key]), key


def test_transformers_opens_what_is_written_back(tf, both, tmp_path):
    theirs, model, its_tok, _ = both
    save_pretrained(model, its_tok, tmp_path)
    again = tf.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(again) is type(theirs)
    x = ids()
    assert their_logits(again, x).equal(their_logits(theirs, x))


def test_a_model_written_back_has_its_configuration(both, tmp_path):
    _, model, its_tok, _ = both
    save_pretrained(model, its_tok, tmp_path/'ours')
    again, _ = load_pretrained(tmp_path/'ours', 'cpu')
    assert again.config == model.config


def their_answer(theirs, prompt, n):
    "Return the `n` most likely tokens that transformers writes after a prompt."
    options = dict(max_new_tokens=n, do_sample=False, eos_token_id=None, pad_token_id=1)
    row = prompt[None]
    whole = theirs.generate(row, attention_mask=torch.ones_like(row), **options)
    return whole[0, len(prompt):].tolist()


@pytest.mark.parametrize('name', MODELS)
def test_it_writes_what_it_writes_in_transformers(name, tf, tok, tmp_path):
    theirs = build(tf, name)
    model, _ = load_lm(write_model(theirs, tok, tmp_path), 'cpu')
    prompts = [row[:n] for row, n in zip(ids(), (4, 15, 30))]
    answers = generate_ids(model, [prompt.tolist() for prompt in prompts], 16, temperature=0, stop=None)
    for prompt, answer in zip(prompts, answers):
        assert answer == their_answer(theirs, prompt, 16)


@pytest.mark.parametrize('name', ['mistral-near', 'qwen2-yarn', 'llama-biased', 'gpt2-odd'])
def test_gradients_are_those_of_transformers(name, tf, tok, tmp_path):
    theirs = build(tf, name)
    model, _ = load_lm(write_model(theirs, tok, tmp_path), 'cpu')
    model.logits(model(ids())).logsumexp(-1).mean().backward()
    theirs(ids()).logits.logsumexp(-1).mean().backward()
    ours = model.embed.weight.grad
    torch.testing.assert_close(ours, theirs.get_input_embeddings().weight.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize('kind', OTHERS)
def test_any_other_model_is_wrapped(kind, tf, tok, tmp_path):
    theirs = make(tf, kind, OTHERS[kind])
    model, _ = load_lm(write_model(theirs, tok, tmp_path), 'cpu')
    assert type(model) is WrappedLM
    torch.testing.assert_close(logits(model, ids()), their_logits(theirs, ids()))


@pytest.mark.parametrize('kind', OTHERS)
def test_a_wrapped_model_is_written_and_opens_again(kind, tf, tok, tmp_path):
    theirs = make(tf, kind, OTHERS[kind])
    model, its_tok = load_lm(write_model(theirs, tok, tmp_path/'theirs'), 'cpu')
    model.save_pretrained(tmp_path/'ours', its_tok)
    again, _ = load_lm(tmp_path/'ours', 'cpu')
    assert logits(again, ids()).equal(logits(model, ids()))
    said = generate(model, its_tok, 'the cat', 5, temperature=0)
    assert generate(again, its_tok, 'the cat', 5, temperature=0) == said


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


def with_old_words(config):
    "Return a configuration that says its rotation as older versions of transformers did."
    rope = dict(config['rope_parameters'])
    theta = rope.pop('rope_theta')
    scaling = dict(rope, type=rope['rope_type'])
    del scaling['rope_type']
    old = dict(config, rope_theta=theta, rope_scaling=scaling)
    del old['rope_parameters']
    return old


@pytest.fixture
def half_model(tf, tok, tmp_path):
    "Write a model in half precision, with the words of an older version; return its folder."
    theirs = build(tf, 'llama-3').to(torch.bfloat16)
    folder = write_model(theirs, tok, tmp_path)
    config = read_json(folder/'config.json')
    write_json(folder/'config.json', with_old_words(config))
    return folder


def test_weights_in_half_precision_and_with_old_words(tf, half_model):
    model, _ = load_lm(half_model, 'cpu')
    assert model.embed.weight.dtype == torch.float32
    theirs = tf.AutoModelForCausalLM.from_pretrained(half_model, dtype=torch.float32).eval()
    assert (logits(model, ids()) - their_logits(theirs, ids())).abs().max() < 1e-4


def test_weights_can_stay_in_half_precision(half_model):
    model, _ = load_lm(half_model, 'cpu')
    half, _ = load_lm(half_model, 'cpu', 'bfloat16')
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


def test_what_is_no_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match='check the name and the network'): load_lm('someone/none')
    with pytest.raises(UserError, match='found none'): load_lm(tmp_path/'none')
    with pytest.raises(UserError, match='found none'): load_lm('../none')
    with pytest.raises(UserError, match='dtype'): load_lm(tmp_path, dtype='int8')


OF_AN_ENCODER = {name: value for name, value in BASE.items() if name != 'num_key_value_heads'}


def test_a_model_that_fills_gaps_is_refused(tf, tok, tmp_path):
    bert = tf.BertForMaskedLM(tf.BertConfig(**OF_AN_ENCODER))
    write_model(bert, tok, tmp_path/'bert')
    with pytest.raises(UserError): load_lm(tmp_path/'bert', 'cpu')
    modern = tf.ModernBertForMaskedLM(tf.ModernBertConfig(**OF_AN_ENCODER))
    write_model(modern, tok, tmp_path/'modern')
    with pytest.raises(UserError, match='fills gaps'): load_lm(tmp_path/'modern', 'cpu')


def remove_weight(file):
    "Remove a matrix of the second layer from a file of weights; return its name."
    state = load_file(file)
    name = next(name for name in state if 'layers.1' in name and name.endswith('weight'))
    del state[name]
    save_file(state, file, metadata={'format': 'pt'})
    return name


@pytest.mark.parametrize('kind', ['gpt_neox', 'qwen2'])
def test_missing_weights_are_not_drawn_at_random(kind, tf, tok, tmp_path):
    theirs = make(tf, kind, OTHERS.get(kind, BASE))
    write_model(theirs, tok, tmp_path)
    name = remove_weight(tmp_path/'model.safetensors')
    with pytest.raises(UserError, match=name): load_lm(tmp_path, 'cpu')


def test_a_pickle_and_a_missing_tokenizer_are_refused(tf, tmp_path):
    theirs = make(tf, 'gpt_neox', OTHERS['gpt_neox'])
    theirs.save_pretrained(tmp_path)
    with pytest.raises(UserError, match='tokenizer.json'): load_lm(tmp_path, 'cpu')
    torch.save(theirs.state_dict(), tmp_path/'pytorch_model.bin')
    (tmp_path/'model.safetensors').unlink()
    with pytest.raises(UserError, match='safetensors'): load_lm(tmp_path, 'cpu')


def write_older_tokenizer(tok, folder):
    "Write a tokenizer as vocab.json and merges.txt, without a tokenizer.json."
    model = json.loads(tok.to_str())['model']
    write_json(folder/'vocab.json', model['vocab'])
    lines = ['#version: 0.2']
    for merge in model['merges']: lines.append(merge if isinstance(merge, str) else ' '.join(merge))
    (folder/'merges.txt').write_text('\n'.join(lines))
    write_json(folder/'tokenizer_config.json', dict(tokenizer_class='GPT2Tokenizer', eos_token='<|endoftext|>'))


def test_an_older_tokenizer_is_made_anew(tf, tok, tmp_path):
    build(tf, 'gpt2').save_pretrained(tmp_path)
    write_older_tokenizer(tok, tmp_path)
    model, made = load_lm(tmp_path, 'cpu')
    theirs = tf.AutoTokenizer.from_pretrained(tmp_path)
    assert made.encode('the cat').ids == theirs('the cat').input_ids
    assert text_ids(made, model).end == (0,)


TEMPLATE = '{{ messages[0]["content"] }}'


@pytest.fixture(params=['chat_template.jinja', 'tokenizer_config.json'])
def model_with_template(request, tf, tok, tmp_path):
    "Write a model with its template in one of two places, open it and write it again; return that folder."
    theirs = write_model(build(tf, 'qwen2'), tok, tmp_path/'theirs')
    file = theirs/request.param
    if file.suffix == '.jinja': file.write_text(TEMPLATE)
    else: write_json(file, dict(chat_template=TEMPLATE))
    model, its_tok = load_lm(theirs, 'cpu')
    return save_pretrained(model, its_tok, tmp_path/'ours')


def test_a_chat_template_is_kept_in_both_places(tf, model_with_template):
    folder = model_with_template
    assert (folder/'chat_template.jinja').read_text() == TEMPLATE
    assert read_json(folder/'tokenizer_config.json')['chat_template'] == TEMPLATE
    messages = [dict(role='user', content='hello')]
    theirs = tf.AutoTokenizer.from_pretrained(folder)
    assert theirs.apply_chat_template(messages, tokenize=False) == 'hello'


WINDOWS = [
    ('mistral', dict(sliding_window=12)),
    ('qwen2', dict(use_sliding_window=True, sliding_window=12, max_window_layers=1)),
]


@pytest.mark.parametrize('kind, options', WINDOWS)
def test_a_wrapped_model_keeps_its_window_apart_from_documents(kind, options, tf):
    model = as_lm(make(tf, kind, BASE | options))
    docs = torch.tensor([0] * 4 + [1] * 8).expand(3, -1)
    x = ids(12)
    with torch.no_grad():
        alone = torch.cat((model(x[:, :4]), model(x[:, 4:])), 1)
        torch.testing.assert_close(model(x, docs), alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize('kind, options', WINDOWS)
def test_documents_beyond_the_window_of_a_wrapped_model_are_refused(kind, options, tf):
    model = as_lm(make(tf, kind, BASE | options))
    docs = torch.zeros(3, 13, dtype=torch.long)
    with pytest.raises(UserError, match='at most 12 tokens, the window'): model(ids(13), docs)


PUBLISHED = read_json(Path(__file__).with_name('published_models.json'))

@pytest.mark.parametrize('name', PUBLISHED)
def test_published_models_have_as_many_weights_as_is_published(name):
    published = PUBLISHED[name]
    config = config_from_hf(published['config'])
    with torch.device('meta'): model = Transformer(config)
    assert sum(p.numel() for p in model.parameters()) == published['weights']
    assert count_params(config)['total'] == published['weights']


@pytest.mark.parametrize('name', PUBLISHED)
def test_published_models_are_read_as_transformers_reads_them(name, tf):
    config = PUBLISHED[name]['config']
    theirs = tf.AutoConfig.for_model(**config)
    assert config_from_hf(theirs.to_dict()) == config_from_hf(config)


def write_wrapped(tf, tok, folder):
    "Write a model of a family that is only wrapped, with its weights as transformers draws them."
    set_seed(0)
    config = tf.AutoConfig.for_model('gpt_neox', **OTHERS['gpt_neox'])
    model = tf.AutoModelForCausalLM.from_config(config)
    write_model(model, tok, folder)


def test_a_wrapped_model_is_tuned_written_and_asked_by_commands(tf, tok, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_wrapped(tf, tok, tmp_path/'theirs')
    pairs = [dict(prompt=f'say {i}', answer='cat') for i in range(60)]
    write_rows(tmp_path/'pairs.jsonl', pairs)
    llmbook_finetune('theirs', task='pairs.jsonl', out='tuned', steps=8, evaluations=2, bs=8, pairs=4)
    assert llmbook_generate('tuned', prompt='say 3', answer=True, tokens=4, temperature=0.) == ['cat']
    llmbook_export('tuned', out='exported', texts=500)
    model, _ = load_lm('exported', 'cpu')
    assert type(model) is WrappedLM


def test_a_command_takes_a_name_on_the_hub(tf, tok, tmp_path, monkeypatch):
    build(tf, 'qwen2').save_pretrained(tmp_path)
    tok.save(str(tmp_path/'tokenizer.json'))
    monkeypatch.setattr('huggingface_hub.snapshot_download', lambda name, **options: str(tmp_path))
    monkeypatch.chdir(tmp_path.parent)
    assert len(llmbook_generate('someone/their-model', prompt='the cat', tokens=4)) == 1


SIZES = {name: BASE[name] for name in (
    'vocab_size', 'hidden_size', 'intermediate_size', 'num_hidden_layers', 'num_attention_heads',
    'num_key_value_heads')}
STATED = [
    {},
    dict(use_sliding_window=True, max_window_layers=0),
    dict(rope_theta=5e5),
    dict(rms_norm_eps=1e-5),
]


@pytest.mark.parametrize('kind', ['llama', 'mistral', 'qwen2', 'qwen3'])
@pytest.mark.parametrize('more', STATED)
def test_what_a_file_leaves_out_is_what_transformers_takes(kind, more, tf):
    facts = dict(model_type=kind, max_position_embeddings=8192, **SIZES, **more)
    theirs = tf.AutoConfig.for_model(**facts)
    assert config_from_hf(facts) == config_from_hf(theirs.to_dict())
