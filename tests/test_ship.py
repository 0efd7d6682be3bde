"Models that leave: GGUF files, second engines, and what is compared before a folder is called done."
import pytest, torch
from tokenizers import AddedToken, normalizers
from llmbook.core import UserError, set_seed
from llmbook.model.config import ModelConfig
from llmbook.model.gguf import load_gguf, load_gguf_tokenizer
from llmbook.model.transformer import Transformer
from llmbook.ship.engines import ENGINES, EngineQuestion
from llmbook.ship.gguf_writer import (
    GGUF_KINDS, as_stored, model_faults, save_gguf, tokenizer_faults
)
from llmbook.ship.verify import (
    PROMPTS, Verification, check_engine, check_gguf, fuzz_texts, prompt_ids_of
)
from llmbook.tokens.tokenizer import encode_text, extend_tokenizer, train_tokenizer

pytest.importorskip('gguf', reason='gguf is not installed')
TEXT = ['the cat sat on the mat in 1987, and it did not move until the dog came', "I'm 12; they've 3.5"] * 9
SMALL = dict(vocab_size=330, n_layer=2, d_model=64, n_head=4, context=96)
LLAMA3 = dict(factor=8., low_freq_factor=1., high_freq_factor=4., original_max_position_embeddings=32)
CASES = {
    'qwen3': dict(head_dim=32),
    'qwen3-untied': dict(tie_embeddings=False),
    'qwen2': dict(family='qwen2'),
    'llama': dict(family='llama'),
    'llama-biased': dict(family='llama', attn_bias='all', mlp_bias=True),
    'llama-linear': dict(family='llama', rope_scaling=dict(type='linear', factor=4.)),
    'llama-3': dict(family='llama', rope_scaling=LLAMA3),
    'mistral': dict(family='mistral'),
    'gpt2': dict(family='gpt2'),
}


@pytest.fixture(scope='module')
def tok(): return train_tokenizer(TEXT, 320)


def small(**options):
    "Return a model whose likeliest token stands out, with every bias and norm in use."
    set_seed(0)
    model = Transformer(ModelConfig(**{**SMALL, **options})).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            gain = p.ndim == 1 and name.endswith('weight')
            p.copy_(torch.randn_like(p) * .15 + gain)
    return model


def logits(model, x):
    with torch.no_grad(): return model.logits(model(x))

def some_ids(): return torch.randint(4, 300, (2, 20), generator=torch.Generator().manual_seed(1))


# ---- the file

@pytest.mark.parametrize('name', CASES)
def test_a_file_holds_the_numbers_of_the_model(name, tok, tmp_path):
    model = small(**CASES[name])
    path = save_gguf(model, tok, tmp_path/'m.gguf', 'F32')
    stored = as_stored(model, path)
    for n, p in model.named_parameters(): assert p.equal(stored.get_parameter(n)), n
    assert logits(stored, some_ids()).equal(logits(model, some_ids()))


@pytest.mark.parametrize('name', ['qwen3', 'qwen3-untied', 'qwen2', 'llama', 'llama-linear'])
def test_our_reader_opens_what_is_written(name, tok, tmp_path):
    model = small(**CASES[name])
    back, back_tok = load_gguf(save_gguf(model, tok, tmp_path/'m.gguf', 'F32'), 'cpu')
    assert back.config == model.config
    assert logits(back, some_ids()).equal(logits(model, some_ids()))
    assert encode_text(back_tok, TEXT) == encode_text(tok, TEXT)


@pytest.mark.parametrize('kind', GGUF_KINDS)
def test_every_kind_is_within_a_step(kind, tok, tmp_path):
    model = small()
    v = Verification()
    check_gguf(v, save_gguf(model, tok, tmp_path/'m.gguf', kind), kind, model, tok, TEXT)
    assert not v.failed, v
    if kind == 'F32': assert v.checks[0].value == '0.0e+00'


def test_the_same_model_gives_the_same_bytes(tok, tmp_path):
    first = save_gguf(small(), tok, tmp_path/'a.gguf', 'Q8_0').read_bytes()
    assert save_gguf(small(), tok, tmp_path/'b.gguf', 'Q8_0').read_bytes() == first


def test_llama_cpp_8649_27277_a_new_vocabulary_has_its_pre_tokenizer(tmp_path):
    "BPE pre-tokenizer was not recognized: the rule is named, not guessed from a hash."
    for digits, name in (('single', 'smollm'), ('none', 'gpt-2')):
        tok = train_tokenizer(TEXT, 320, digits=digits)
        path = save_gguf(small(), tok, tmp_path/f'{name}.gguf', 'F16')
        from gguf import GGUFReader
        assert GGUFReader(path).fields['tokenizer.ggml.pre'].contents() == name
        texts = fuzz_texts(tok, 2000, seed=1)
        assert encode_text(load_gguf_tokenizer(path), texts) == encode_text(tok, texts)


def test_special_tokens_and_ends_are_named(tok, tmp_path):
    from gguf import GGUFReader
    more = extend_tokenizer(tok, ['<|im_start|>', '<|im_end|>'])
    more.add_tokens([AddedToken('plain word', normalized=False)])
    path = save_gguf(small(), more, tmp_path/'m.gguf', template='{{ messages }}', end=more.token_to_id('<|im_end|>'))
    facts = {name: field.contents() for name, field in GGUFReader(path).fields.items()}
    kinds = facts['tokenizer.ggml.token_type']
    names = facts['tokenizer.ggml.tokens']
    assert [names[i] for i, kind in enumerate(kinds) if kind == 3] == [
        '<|endoftext|>', '<|pad|>', '<|prompt|>', '<|answer|>', '<|im_start|>', '<|im_end|>']
    assert names[kinds.index(4)] == 'plain word'
    assert kinds.count(5) == 330 - len(more.get_vocab())
    assert facts['tokenizer.ggml.eos_token_id'] == 0
    assert facts['tokenizer.ggml.eot_token_id'] == more.token_to_id('<|im_end|>')
    assert facts['tokenizer.ggml.add_bos_token'] is False
    assert facts['tokenizer.chat_template'] == '{{ messages }}'
    assert facts['general.file_type'] == 1


def test_a_begin_mark_is_put_where_the_tokenizer_puts_it(tok, tmp_path):
    from tokenizers import processors
    begun = extend_tokenizer(tok, ['<s>'])
    begin = ('<s>', begun.token_to_id('<s>'))
    begun.post_processor = processors.TemplateProcessing(single='<s> $A', special_tokens=[begin])
    path = save_gguf(small(), begun, tmp_path/'m.gguf')
    back = load_gguf_tokenizer(path)
    assert back.encode('the cat').ids == begun.encode('the cat').ids
    assert back.encode('the cat').tokens[0] == '<s>'


# ---- what is refused

def odd_tokenizer(**changes):
    tok = train_tokenizer(TEXT, 320, **changes.pop('train', {}))
    if 'normalizer' in changes: tok.normalizer = changes['normalizer']
    if 'token' in changes: tok.add_special_tokens([changes['token']])
    return tok


@pytest.mark.parametrize('options, kind, says', [
    (dict(family='encoder'), 'F16', 'decoders, not encoder'),
    (dict(window=16), 'F16', 'train with window=0'),
    (dict(mlp='geglu'), 'F16', "train with mlp='swiglu'"),
    (dict(family='gpt2', mlp='relu2'), 'F16', "train with mlp='gelu'"),
    (dict(attn_bias='all'), 'F16', "attn_bias='none'"),
    (dict(d_model=48, head_dim=16), 'Q8_0', 'd_model 48 cannot be divided by 32'),
    (dict(d_ff=100), 'Q4_0', 'choose widths that are multiples of 32'),
    (dict(rope_scaling=dict(type='yarn', factor=2., original_max_position_embeddings=48)), 'F16', 'linear or llama3'),
    (dict(), 'Q4_K_M', 'llama-quantize'),
])
def test_a_model_without_a_counterpart_is_refused(options, kind, says, tok, tmp_path):
    with pytest.raises(UserError, match=says): save_gguf(small(**options), tok, tmp_path/'m.gguf', kind)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('changes, says', [
    (dict(train=dict(code=True)), "digits='single' or 'none'"),
    (dict(train=dict(digits='triple')), 'llama.cpp has no name'),
    (dict(train=dict(model='unigram')), 'byte-level BPE'),
    (dict(normalizer=normalizers.NFC()), 'no normalizer NFC'),
    (dict(token=AddedToken('<x>', lstrip=True)), '<x> has lstrip'),
])
def test_a_tokenizer_without_a_counterpart_is_refused(changes, says, tmp_path):
    with pytest.raises(UserError, match=says): save_gguf(small(), odd_tokenizer(**changes), tmp_path/'m.gguf')
    assert not list(tmp_path.iterdir())


def test_all_faults_are_told_at_once():
    model = small(window=16, attn_bias='all', d_ff=100)
    assert len(model_faults(model, 'Q8_0')) == 3
    assert len(tokenizer_faults(odd_tokenizer(normalizer=normalizers.NFC(), token=AddedToken('<x>', rstrip=True)))) == 2


@pytest.mark.parametrize('number, kind, says', [
    (float('nan'), 'F32', 'NaN'), (float('inf'), 'Q8_0', 'infinity'),
    (1e6, 'F16', 'write BF16'), (1e6, 'Q4_0', 'write BF16')])
def test_damaged_weights_are_refused(number, kind, says, tok, tmp_path):
    model = small()
    model.blocks[1].mlp.up_proj.weight.data[3, 5] = number
    with pytest.raises(UserError, match=says): save_gguf(model, tok, tmp_path/'m.gguf', kind)
    assert not list(tmp_path.iterdir())


def test_a_tokenizer_that_is_too_large_is_refused(tok, tmp_path):
    with pytest.raises(UserError, match='at most 280 tokens'): save_gguf(small(vocab_size=280), tok, tmp_path/'m.gguf')
    with pytest.raises(UserError, match='make it first'): save_gguf(small(), tok, tmp_path/'none'/'m.gguf')


# ---- second engines

engine_cases = pytest.mark.parametrize('engine', ENGINES, ids=lambda engine: engine.name)

@engine_cases
@pytest.mark.parametrize('name, kind', [('qwen3', 'F32'), ('llama', 'Q8_0'), ('llama-3', 'F32'), ('gpt2', 'F32')])
def test_a_second_engine_computes_the_same(engine, name, kind, tok, tmp_path):
    if not engine.here(): pytest.skip(f'{engine.name} is not installed: {engine.install}')
    model = small(**CASES[name])
    if model.config.family in engine.unread: pytest.skip(f'{engine.name} does not read {model.config.family}')
    path = save_gguf(model, tok, tmp_path/'m.gguf', kind, template='{{ messages }}')
    texts = fuzz_texts(tok, 1000) if engine.keeps_text else []
    question = EngineQuestion(path, prompt_ids_of(PROMPTS[:4], tok, longest=40), tok, 12, (0,), texts, context=64)
    v = Verification()
    check_engine(v, engine, question, as_stored(model, path), 5e-3 if kind == 'F32' else .05)
    assert not v.failed, v
    assert len(v.checks) == 3


def test_an_engine_that_is_wrong_is_found_out(tok, tmp_path):
    class Wrong:
        name = 'another'
        def ask(self, question):
            from llmbook.ship.engines import EngineAnswer
            return EngineAnswer([[[[5, .9], [6, .1]]] * 4 for _ in question.prompts], [[1] for _ in question.texts])
    model = small()
    question = EngineQuestion('m.gguf', [[8, 9]], tok, 4, (0,), ['the cat'])
    v = Verification()
    check_engine(v, Wrong(), question, model, .05)
    assert len(v.failed) == 3
    with pytest.raises(UserError, match='do not use out'): v.refuse('out')
