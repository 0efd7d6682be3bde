"Few bits: errors within half a step, every machine's way, equal texts alone and in batches, files that are refused."
import json, pickle
from copy import deepcopy
import pytest, torch
from safetensors.torch import load_file, save_file
from torch import nn
from llmbook.cli import llmbook_finetune
from llmbook.core import UserError, set_seed
from llmbook.generate.cuda_graph import decoder
from llmbook.generate.decoder import Decoder, FewBitCache
from llmbook.generate.quantise import mean_squares, open_quantised, quantise, save_quantised, to_few_bits
from llmbook.generate.text import generate_ids
from llmbook.model import few_bits
from llmbook.model.config import ModelConfig
from llmbook.model.few_bits import (
    FEW_BITS, FewBitLinear, WholeNumberProduct, few_bit_layer, few_bit_product, group_codes, group_values
)
from llmbook.model.open import model_tokenizer, open_lm
from llmbook.model.transformer import Transformer
from llmbook.tokens.tokenizer import train_tokenizer
from llmbook.tune.adapters import add_adapters
from llmbook.tune.chat import ChatFormat
from llmbook.tune.quantised import quantise_base
from llmbook.tune.sft import set_method
from llmbook.tune.talk import Talk, open_chat_model

PROMPTS = [[5, 6, 7], [9], [1, 2, 3, 4, 5, 6, 7, 8], [30, 31]] # of mixed lengths


def small(family='qwen3', **options):
    "Return a decoder whose next tokens are not nearly tied."
    set_seed(0)
    config = ModelConfig(vocab_size=320, n_layer=2, d_model=64, n_head=2, context=64, family=family, **options)
    model = Transformer(config)
    for p in model.parameters(): p.data.mul_(3 if p.dim() > 1 else 1)
    return model.eval()


@pytest.fixture
def no_kernels(monkeypatch): monkeypatch.setattr(few_bits, '_kernel_works', lambda kind, device: False)


@pytest.fixture(scope='module')
def tok(): return train_tokenizer(['a few words, and a few more words', 'numbers: 1, 2, 3'] * 9, 320)


# ---- codes ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('bits, group', [(8, None), (8, 32), (4, 32), (4, None), (3, 16)])
def test_no_weight_is_off_by_more_than_half_a_step(bits, group):
    set_seed(0)
    w = torch.randn(40, 100) * torch.rand(40, 1)
    w[3], w[4, :50] = 0, 1e-3
    codes, scales = group_codes(w, bits, group, clip=False)
    assert int(codes.abs().max()) == 2 ** (bits - 1) - 1
    half = scales.float().repeat_interleave(group or 100, 1)[:, :100] / 2
    assert ((w - group_values(codes, scales, group)).abs() <= half * 1.001).all()


def test_a_row_of_zeros_stays_zero():
    codes, scales = group_codes(torch.zeros(2, 32), 4, 32)
    assert not group_values(codes, scales, 32).any()


@pytest.mark.parametrize('bits', [8, 4])
def test_a_chosen_end_never_has_the_larger_error(bits):
    set_seed(0)
    w = torch.randn(64, 96)
    w[:, 0] *= 10
    def error(clip):
        values = group_values(*group_codes(w, bits, 32, clip=clip), 32)
        return (w - values).square().view(64, 3, 32).sum(-1)
    assert (error(True) <= error(False)).all()


def test_weights_that_meet_large_inputs_are_kept_more_precisely():
    set_seed(0)
    w, inputs = torch.randn(64, 64), torch.rand(64) ** 8
    def cost(importance):
        values = group_values(*group_codes(w, 4, 32, importance), 32)
        return float(((w - values).square() * inputs).sum())
    assert cost(inputs) < .9 * cost(None)


# ---- layers --------------------------------------------------------------------------------------------------------

SHAPES = [(64, 96), (48, 32), (100, 64), (33, 40), (7, 9), (64, 33)] # some that no kernel takes

@pytest.mark.parametrize('kind', FEW_BITS)
@pytest.mark.parametrize('shape', SHAPES)
def test_a_layer_computes_what_its_codes_stand_for(kind, shape):
    set_seed(0)
    M, K = shape
    layer, x = few_bit_layer(nn.Linear(K, M), kind), torch.randn(5, K)
    expected = x @ layer.dense().T + layer.bias
    assert (layer(x) - expected).abs().max() < .02 * expected.abs().max() # inputs and results in bfloat16: 2 ** -8


@pytest.mark.parametrize('kind', FEW_BITS)
@pytest.mark.parametrize('shape', SHAPES)
def test_codes_are_read_back_as_they_were_made(kind, shape):
    set_seed(0)
    group = 32 if kind == 'int4' else None
    codes, scales = group_codes(torch.randn(shape), FEW_BITS[kind], group)
    again, its_scales = FewBitLinear(codes, scales, kind).codes_and_scales()
    assert again.equal(codes) and its_scales.equal(scales)


@pytest.mark.parametrize('kind', FEW_BITS)
def test_codes_that_begin_anywhere_in_memory_are_read(kind):
    set_seed(0)
    codes, scales = group_codes(torch.randn(64, 64), FEW_BITS[kind], 32 if kind == 'int4' else None)
    shifted = torch.zeros(64 * 64 + 3, dtype=torch.int8)[3:].view(64, 64).copy_(codes)
    x = torch.randn(2, 64)
    assert FewBitLinear(shifted, scales, kind)(x).equal(FewBitLinear(codes, scales, kind)(x))


@pytest.mark.parametrize('kind', FEW_BITS)
def test_the_way_without_a_kernel_gives_the_same(kind, monkeypatch):
    set_seed(0)
    plain, x = nn.Linear(64, 64), torch.randn(3, 64)
    fast = few_bit_layer(plain, kind)
    monkeypatch.setattr(few_bits, '_kernel_works', lambda kind, device: False)
    slow = few_bit_layer(plain, kind)
    assert 'dense' in repr(slow)
    assert (fast(x) - slow(x)).abs().max() < .02 * slow(x).abs().max()


# ---- whole models --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('kind', FEW_BITS)
@pytest.mark.parametrize('family', ['qwen3', 'llama', 'gpt2'])
def test_the_decoder_gives_what_the_layers_give(kind, family):
    model = to_few_bits(small(family), kind)
    x = torch.tensor([PROMPTS[2], PROMPTS[2][::-1]])
    with torch.inference_mode():
        ask = decoder(model, 2)
        last_but_one = ask(x[:, :-1])
        last = ask(x[:, -1:])
        want = model.logits(model(x))
    assert type(ask) is Decoder
    allowed = .02 * want.abs().max()
    assert (last_but_one - want[:, -2]).abs().max() < allowed
    assert (last - want[:, -1]).abs().max() < allowed


@pytest.mark.parametrize('kind, cache', [('int8', None), ('int4', None), ('int8', 'int8'), ('int4', 'int4')])
def test_texts_are_the_same_alone_and_in_a_batch(kind, cache): # transformers#22707
    model = quantise(small(), kind, cache=cache, speed=False, show=False)
    together = generate_ids(model, PROMPTS, 20, temperature=0, stop=None)
    alone = [generate_ids(model, [prompt], 20, temperature=0, stop=None)[0] for prompt in PROMPTS]
    assert together == alone


@pytest.mark.parametrize('kind', FEW_BITS)
def test_texts_are_the_same_without_kernels_too(kind, no_kernels):
    model = quantise(small(), kind, speed=False, show=False)
    together = generate_ids(model, PROMPTS, 12, temperature=0, stop=None)
    assert together == [generate_ids(model, [prompt], 12, temperature=0, stop=None)[0] for prompt in PROMPTS]


whole_numbers = pytest.mark.skipif(not few_bits._whole_numbers_work(), reason="torch has no product of bytes here")


@pytest.fixture
def large_heads(monkeypatch): monkeypatch.setattr(few_bits, '_LARGE', 320 * 64) # the head, and nothing else


@whole_numbers
def test_a_large_layer_is_multiplied_in_whole_numbers(large_heads):
    set_seed(0)
    layer = few_bit_layer(nn.Linear(64, 320))
    x = torch.randn(9, 64)
    x[3, 5] = 1e3 # an outlier
    with torch.no_grad():
        wanted = x @ layer.dense().T + layer.bias
        product = few_bit_product(layer)
        assert isinstance(product, WholeNumberProduct) and few_bit_product(layer) is product
        gap = (product(x) - wanted).norm(dim=-1) / wanted.norm(dim=-1)
        by_kernel = (layer(x) - wanted).norm(dim=-1) / wanted.norm(dim=-1)
        assert (gap < by_kernel / 4).all() and gap.max() < 1e-3
        assert all(product(row[None]).equal(product(x)[[i]]) for i, row in enumerate(x)) # as if it were alone
        assert product(torch.zeros(1, 64)).equal(layer.bias[None])
        x[4, 0] = float('nan')
        assert product(x)[4].isnan().all() and not product(x)[[0, 8]].isnan().any()
    assert deepcopy(layer).whole is None and pickle.loads(pickle.dumps(layer)).whole is None


@whole_numbers
def test_texts_with_a_large_head_are_the_same_alone_and_in_a_batch(large_heads):
    model = quantise(small(), 'int8', speed=False, show=False)
    together = generate_ids(model, PROMPTS, 20, temperature=0, stop=None)
    assert model.head.whole is not None
    assert together == [generate_ids(model, [prompt], 20, temperature=0, stop=None)[0] for prompt in PROMPTS]
    assert generate_ids(deepcopy(model), PROMPTS, 20, temperature=0, stop=None) == together


def test_without_the_product_of_bytes_the_kernel_serves(large_heads, monkeypatch):
    monkeypatch.setattr(few_bits, '_whole_numbers_work', lambda: False)
    assert not isinstance(few_bit_product(few_bit_layer(nn.Linear(64, 320))), WholeNumberProduct)


def test_a_cache_in_few_bits_grows_and_drops_rows():
    model = quantise(small(), 'int8', cache='int4', speed=False, show=False)
    with torch.inference_mode():
        ask = decoder(model, 2, start=4)
        alone = decoder(model, 1)
        assert isinstance(ask.cache, FewBitCache)
        x = torch.randint(320, (2, 30))
        ask(x[:, :20])
        ask.keep(torch.tensor([1]))
        row = x[1:]
        alone(row[:, :20])
        for token in row[:, 20:].split(1, dim=1):
            assert ask(token).equal(alone(token))


def test_what_the_table_says(capsys):
    def score(model): return 1 / len(list(model.parameters()))
    model = quantise(small(), 'int8', score=score)
    shown = capsys.readouterr().out
    rows = ('bytes', 'nats a token', 'tokens/s, 1 at a time', 'score', 'greedy tokens that stay')
    assert all(row in shown for row in rows)
    agree = float(model.cost['after'].iloc[-1].rstrip('%'))
    assert agree > 90


def test_codes_in_large_pages_are_the_same_and_held_once(monkeypatch):
    model = to_few_bits(small(tie_embeddings=True, d_ff=64), 'int8')
    before = {name: m.held.clone() for name, m in model.named_modules() if hasattr(m, 'held')}
    monkeypatch.setattr(few_bits, '_LARGE_PAGE', 1)
    few_bits.into_large_pages(model)
    for name, codes in before.items():
        layer = model.get_submodule(name)
        assert layer.held.equal(codes)
    assert model.head.held.data_ptr() == model.embed.held.data_ptr()
    copied = deepcopy(model)
    assert generate_ids(copied, PROMPTS, 9) == generate_ids(model, PROMPTS, 9)


def test_tied_tables_are_held_once():
    model = to_few_bits(small(tie_embeddings=True), 'int8')
    assert model.head.held.data_ptr() == model.embed.held.data_ptr()
    apart = to_few_bits(small(tie_embeddings=False), 'int8')
    assert apart.head.held.data_ptr() != apart.embed.held.data_ptr()


def test_a_change_of_type_leaves_the_codes():
    model = to_few_bits(small(), 'int4')
    layer = model.blocks[0].mlp.down_proj
    codes, scales = layer.codes_and_scales()
    model.bfloat16()
    assert layer.codes_and_scales()[0].equal(codes) and layer.codes_and_scales()[1].equal(scales)
    assert generate_ids(model, PROMPTS, 3, temperature=0)


def test_hooks_are_gone_after_looking_at_inputs():
    model = small()
    squares = mean_squares(model, PROMPTS)
    assert set(squares) == {name for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    assert not any(m._forward_pre_hooks for m in model.modules())


# ---- files ---------------------------------------------------------------------------------------------------------

SAVED = [('int8', {}), ('int4', dict(tie_embeddings=False)), ('int4', dict(family='gpt2'))]

@pytest.mark.parametrize('kind, options', SAVED)
def test_a_saved_model_writes_the_same(kind, options, tok, tmp_path, monkeypatch):
    model = quantise(small(**options), kind, cache='int8', speed=False, show=False)
    save_quantised(model, tok, tmp_path)
    again, its_tok = open_quantised(tmp_path, 'cpu')
    assert generate_ids(again, PROMPTS, 12) == generate_ids(model, PROMPTS, 12)
    assert (again.few_bits, again.cache_kind) == (kind, 'int8')
    assert its_tok.to_str() == tok.to_str()
    monkeypatch.setattr(few_bits, '_kernel_works', lambda kind, device: False)
    elsewhere, _ = open_quantised(tmp_path, 'cpu')
    for name, layer in model.named_modules():
        if not isinstance(layer, FewBitLinear): continue
        codes, _ = layer.codes_and_scales()
        its_codes, _ = elsewhere.get_submodule(name).codes_and_scales()
        assert its_codes.equal(codes)


def test_a_quantised_model_is_not_tuned(tok, tmp_path):
    model = quantise(small(), 'int8', speed=False, show=False)
    save_quantised(model, tok, tmp_path/'few')
    with pytest.raises(UserError, match='tune the model that it was made from'):
        llmbook_finetune(str(tmp_path/'few'), out=str(tmp_path/'tuned'))
    assert not (tmp_path/'tuned').exists()


@pytest.mark.parametrize('open_it', [open_lm, model_tokenizer])
def test_openers_of_plain_models_say_what_opens_this_one(open_it, tok, tmp_path):
    model = quantise(small(), 'int8', speed=False, show=False)
    save_quantised(model, tok, tmp_path)
    with pytest.raises(UserError, match='open it with open_quantised'): open_it(tmp_path)


def edit_facts(folder, **changes):
    file = folder/'quantised.json'
    facts = json.loads(file.read_text())
    file.write_text(json.dumps({**facts, **changes}))


def edit_tensors(folder, change):
    tensors = load_file(folder/'quantised.safetensors')
    change(tensors)
    save_file(tensors, folder/'quantised.safetensors')


def without_a_tensor(tensors): tensors.pop('norm.weight')
def one_too_many(tensors): tensors['more'] = torch.zeros(2)
def another_shape(tensors): tensors['embed.codes'] = tensors['embed.codes'][:9].clone()
def another_type(tensors): tensors['embed.codes'] = tensors['embed.codes'].float()
def not_a_number(tensors): tensors['norm.weight'][0] = float('nan')


FAULTS = {
    'no such file': lambda folder: (folder/'quantised.json').unlink(),
    'no weights': lambda folder: (folder/'quantised.safetensors').unlink(),
    'cut off': lambda folder: (folder/'quantised.safetensors').write_bytes(b'\0' * 40),
    'no JSON': lambda folder: (folder/'quantised.json').write_text('{'),
    'a list': lambda folder: (folder/'quantised.json').write_text('[]'),
    'another layout': lambda folder: edit_facts(folder, layout=9),
    'another kind': lambda folder: edit_facts(folder, kind='int3'),
    'another cache': lambda folder: edit_facts(folder, cache=8),
    'the kind of other codes': lambda folder: edit_facts(folder, kind='int8'),
    'a tensor less': lambda folder: edit_tensors(folder, without_a_tensor),
    'a tensor more': lambda folder: edit_tensors(folder, one_too_many),
    'another shape': lambda folder: edit_tensors(folder, another_shape),
    'another type': lambda folder: edit_tensors(folder, another_type),
    'no number': lambda folder: edit_tensors(folder, not_a_number),
}

@pytest.mark.parametrize('fault', FAULTS)
def test_a_damaged_folder_is_refused(fault, tok, tmp_path):
    save_quantised(quantise(small(), 'int4', speed=False, show=False), tok, tmp_path)
    FAULTS[fault](tmp_path)
    with pytest.raises(UserError, match='expected|valid JSON'): open_quantised(tmp_path, 'cpu')


# ---- what is refused -----------------------------------------------------------------------------------------------

def with_nan():
    model = small()
    model.norm.weight.data[0] = float('nan')
    return model


def with_adapters():
    model = small()
    add_adapters(model)
    return model


def test_an_encoder_is_refused():
    encoder = Transformer(ModelConfig(vocab_size=64, n_layer=1, d_model=32, n_head=2, context=32, family='encoder'))
    with pytest.raises(UserError, match='encoder'): quantise(encoder, 'int8')


REFUSED = {
    'another kind': (small, dict(kind='int2'), 'int8, int4'),
    'no kind': (small, dict(kind=8), 'a text'),
    'no cache': (small, dict(cache='float8'), 'int8, int4'),
    'no function': (small, dict(score=1.), 'a function of a model'),
    'no tokenizer': (small, dict(texts=['a']), 'give tok'),
    'no calibration text': (small, dict(calibrate=['a']), 'give tok'),
    'other layers': (lambda: nn.Linear(2, 2), {}, 'got Linear'),
    'diverged': (with_nan, {}, 'finite|NaN'),
    'adapters': (with_adapters, {}, 'merge_adapters'),
    'a quantised base': (lambda: quantise_base(small(), 'int8'), {}, 'open the original'),
    'twice': (lambda: to_few_bits(small(), 'int8'), {}, 'open the original'),
}

@pytest.mark.parametrize('case', REFUSED)
def test_what_cannot_be_quantised_is_refused_and_unchanged(case):
    make, options, words = REFUSED[case]
    model = make()
    before = repr(model)
    with pytest.raises(UserError, match=words): quantise(model, **options)
    assert repr(model) == before


def test_texts_without_tokens_are_refused(tok):
    with pytest.raises(UserError, match='some tokens'): quantise(small(), 'int8', tok, texts=[''])


def test_weights_in_few_bits_do_not_train():
    model = to_few_bits(small(), 'int8')
    assert not any(p.requires_grad for p in model.parameters())
    layer = deepcopy(model.head)
    with pytest.raises(UserError, match='do not train'): layer(torch.randn(1, 64, requires_grad=True))


def test_a_quantised_folder_is_talked_to_and_not_tuned(tok, tmp_path):
    model = quantise(small(), 'int8', speed=False, show=False)
    save_quantised(model, tok, tmp_path/'run'/'model')
    opened, fmt = open_chat_model(tmp_path/'run', device='cpu')
    assert Talk(opened, fmt, max_new_tokens=8, temperature=0).ask('a few') == \
        Talk(model, ChatFormat(tok), max_new_tokens=8, temperature=0).ask('a few')
    with pytest.raises(UserError, match='merge the adapter'): open_chat_model(tmp_path/'run', tmp_path)
    with pytest.raises(UserError, match='8 or 4 bits as they are'): open_chat_model(tmp_path/'run', dtype='bfloat16')
    for method in ('full', 'lora'):
        with pytest.raises(UserError, match='model to train, got one in int8'): set_method(opened, method)


def test_a_plain_model_is_not_written_as_quantised(tok, tmp_path):
    with pytest.raises(UserError, match='plain numbers'): save_quantised(small(), tok, tmp_path)
