"Tokens that a tokenizer gets later: their numbers, their rows in a model, and training that touches no other row."
import copy, json, weakref
import pytest, torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from llmbook.core import UserError, import_transformers, set_seed
from llmbook.model.config import ModelConfig
from llmbook.model.hf import load_pretrained, save_pretrained
from llmbook.model.hf_wrap import as_lm
from llmbook.model.transformer import Transformer
from llmbook.model.vocabulary import extend_vocabulary, grow_rows, train_all_rows, train_only_rows
from llmbook.tokens.tokenizer import (
    encode_text, extend_tokenizer, load_any, missing_marks, new_ids, save_tokenizer, special_ids, text_ids,
    train_tokenizer
)
from llmbook.train.optim import lm_opt

MARKS = ['<|im_start|>', '<|im_end|>']
SMALL = dict(vocab_size=300, n_layer=2, d_model=32, n_head=2, n_kv_head=1, context=32)
KINDS = {
    'tied': dict(),
    'untied': dict(family='llama', tie_embeddings=False),
    'gpt2': dict(family='gpt2', n_kv_head=None),
    'encoder': dict(family='encoder', n_kv_head=None),
}
WRAPPED = {
    'gpt_neox': dict(
        vocab_size=300, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64),
    'gptj': dict(vocab_size=300, n_embd=32, n_layer=1, n_head=2, rotary_dim=4, n_positions=64), # its head has a bias
    'opt': dict( # a tied head
        vocab_size=300, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, ffn_dim=64,
        word_embed_proj_dim=32, max_position_embeddings=64),
}
ALL = [*KINDS, *WRAPPED]


def wrapped(kind):
    "Return a small model of transformers, wrapped."
    tf = import_transformers()
    config = tf.AutoConfig.for_model(kind, **WRAPPED[kind])
    return as_lm(tf.AutoModelForCausalLM.from_config(config))


def build(kind):
    set_seed(0)
    if kind in KINDS: model = Transformer(ModelConfig(**{**SMALL, **KINDS[kind]}))
    else: model = wrapped(kind)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim > 1 or name.endswith('bias'): p.copy_(torch.randn_like(p) * .1)
    return model.eval()


def foreign(*specials):
    "Return a tokenizer as of GPT-2: bytes first, special tokens behind them."
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=260, initial_alphabet=alphabet, show_progress=False)
    tok.train_from_iterator(['hi there'] * 3, trainer)
    tok.add_special_tokens(list(specials))
    return tok


def logits(model, x): return model.logits(model(x))

def rows_of(model):
    "Return the parameters with a row for each token."
    found = [model.embed.weight, model.head.weight]
    if model.head.bias is not None: found.append(model.head.bias)
    return found


# ---- the tokenizer

def ours(): return train_tokenizer(['hi there'] * 9, 262)


@pytest.fixture(params=['foreign', 'ours'])
def tok(request): return foreign('<|endoftext|>') if request.param == 'foreign' else ours()


def test_marks_come_behind_all_other_ids(tok):
    before = tok.to_str()
    top = max(tok.get_vocab().values())
    extended = extend_tokenizer(tok, MARKS)
    assert tok.to_str() == before
    assert new_ids(tok, extended) == [top + 1, top + 2]
    assert [extended.token_to_id(mark) for mark in MARKS] == [top + 1, top + 2]


def test_texts_have_their_ids_and_make_no_mark(tok):
    extended = extend_tokenizer(tok, MARKS)
    assert encode_text(extended, ['hi there']) == encode_text(tok, ['hi there'])
    ids, = encode_text(extended, [' '.join(MARKS)])
    assert not set(ids) & set(new_ids(tok, extended))


@pytest.fixture
def ended(tok):
    "Return a model, its tokenizer with another end and padding, and their ids."
    model = Transformer(ModelConfig(**SMALL))
    tok, _ = extend_vocabulary(model, tok, MARKS, end='<|im_end|>', pad='<|endoftext|>')
    return model, tok, tok.token_to_id('<|im_end|>'), tok.token_to_id('<|endoftext|>')


def test_another_end_is_remembered_by_further_marks(ended):
    _, tok, end, pad = ended
    assert text_ids(tok).end == (end,)
    assert text_ids(tok).pad == pad
    further = extend_tokenizer(tok, ['<|tool|>'])
    assert text_ids(further).end == (end,)


def test_another_end_is_remembered_by_folders(ended, tmp_path):
    model, tok, end, pad = ended
    save_pretrained(model, tok, tmp_path)
    model, again = load_pretrained(tmp_path, 'cpu')
    assert text_ids(again, model).end == (end,)
    assert text_ids(again, model).pad == pad
    generation = json.loads((tmp_path/'generation_config.json').read_text())
    assert generation['eos_token_id'] == end


def test_marks_for_the_roles_that_are_missing(tmp_path):
    tok = foreign('</s>')
    assert missing_marks(tok) == ['<|pad|>', '<|prompt|>', '<|answer|>']
    extended = extend_tokenizer(tok, missing_marks(tok))
    assert missing_marks(extended) == []
    assert special_ids(extended)['eot'] == tok.token_to_id('</s>')
    save_tokenizer(tok, tmp_path)
    assert load_any(tmp_path).tok.get_vocab() == extended.get_vocab()


@pytest.mark.parametrize('marks, kw, says', [
    ('<|user|>', {}, 'a list of marks'),
    ([''], {}, 'names'),
    ([3], {}, 'names'),
    (['h'], {}, 'holds this name as text'),
    ([], dict(end='<|none|>'), 'add it to the marks'),
    (['<|user|>'], dict(pad='hi'), 'add it to the marks'),
])
def test_marks_that_are_none(marks, kw, says):
    with pytest.raises(UserError, match=says): extend_tokenizer(foreign('<|endoftext|>'), marks, **kw)


# ---- the model

OLD_TEXT = torch.tensor([[5, 6, 7, 8]])


@pytest.mark.parametrize('kind', ALL)
def test_old_tokens_keep_their_logits(kind):
    model = build(kind)
    before = logits(model, OLD_TEXT).detach()
    assert grow_rows(model, 303) == 3
    after = logits(model, OLD_TEXT).detach()
    torch.testing.assert_close(after[..., :300], before, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize('kind', ALL)
def test_new_tokens_start_at_the_mean(kind):
    model = build(kind)
    mean = logits(model, OLD_TEXT).detach().mean(-1)
    grow_rows(model, 303)
    for i in (300, 301, 302):
        logits_of_new = logits(model, OLD_TEXT)[..., i]
        torch.testing.assert_close(logits_of_new, mean, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model.embed.weight[301], model.embed.weight[:300].mean(0))


@pytest.mark.parametrize('kind', ALL)
def test_a_grown_model_knows_its_size_and_stays_tied(kind):
    model = build(kind)
    tied = model.embed.weight is model.head.weight
    grow_rows(model, 303)
    assert model.config.vocab_size == 303
    new_token = torch.tensor([[302]])
    assert logits(model, new_token).shape == (1, 1, 303)
    assert (model.embed.weight is model.head.weight) == tied


def test_a_spare_row_starts_at_the_mean_too():
    model = build('untied')
    tok = foreign('<|endoftext|>')
    n = tok.get_vocab_size()
    before = model.embed.weight.detach().clone()
    _, new = extend_vocabulary(model, tok, MARKS)
    assert new == [n, n + 1]
    assert model.config.vocab_size == 300
    old = [i for i in range(300) if i not in new]
    assert model.embed.weight[old].equal(before[old])
    for weight in rows_of(model):
        mean = weight[old].mean(0)
        for i in new: torch.testing.assert_close(weight[i], mean)


@pytest.fixture(params=['tied', 'untied', 'gpt2'])
def grown(request, tmp_path):
    "Save a model that got tokens; return it, a text with new tokens, and the folder."
    model = build(request.param)
    tok, new = extend_vocabulary(model, ours(), [f'<|{i}|>' for i in range(60)])
    save_pretrained(model, tok, tmp_path)
    return model, torch.tensor([[5, new[0], new[-1]]]), tmp_path


def test_a_grown_model_is_saved_and_opens_in_transformers(grown):
    model, x, folder = grown
    theirs = import_transformers().AutoModelForCausalLM.from_pretrained(folder).eval()
    assert (logits(model, x) - theirs(x).logits).abs().max() < 1e-4


def test_a_grown_model_is_saved_and_opens_here(grown):
    model, x, folder = grown
    again, _ = load_pretrained(folder, 'cpu')
    assert logits(again, x).equal(logits(model, x))


@pytest.fixture
def saved(tmp_path):
    "Return a model that was saved with its tokenizer and opened again."
    save_pretrained(build('tied'), ours(), tmp_path)
    model, _ = load_pretrained(tmp_path, 'cpu')
    return model


OTHER_TOKENIZERS = [
    (foreign('<|endoftext|>'), 'got another'),
    (foreign(*map(str, range(300, 400))), 'at most 300'),
]


@pytest.mark.parametrize('other, says', OTHER_TOKENIZERS)
def test_a_tokenizer_of_another_model_is_refused_and_changes_nothing(saved, other, says):
    with pytest.raises(UserError, match=says): extend_vocabulary(saved, other, MARKS)
    assert saved.config.vocab_size == 300


def test_what_is_no_language_model_is_refused():
    with pytest.raises(UserError, match='as_lm'): extend_vocabulary(torch.nn.Linear(2, 2), ours(), MARKS)


# ---- training

def take_steps(model, opt, ids, n=4):
    x = torch.tensor([[5, *ids, 6]] * 3)
    for _ in range(n):
        logits(model, x).logsumexp(-1).mean().backward()
        opt.step()
        opt.zero_grad()


def copies(parameters): return [p.detach().clone() for p in parameters]


def differing_rows(p, old):
    "Return which rows of a matrix, or entries of a vector, differ."
    differs = p != old
    if p.ndim > 1: differs = differs.flatten(1).any(1)
    return differs.nonzero().flatten().tolist()


def open_rows(model, before):
    "Return which rows of each parameter differ."
    return [differing_rows(p, old) for p, old in zip(rows_of(model), before)]


def others(model):
    "Return the parameters that have no row for each token."
    with_rows = set(map(id, rows_of(model)))
    return [p for p in model.parameters() if id(p) not in with_rows]


@pytest.mark.parametrize('muon', [True, False])
@pytest.mark.parametrize('kind', ALL)
def test_only_new_rows_move(kind, muon):
    model = build(kind).train()
    _, new = extend_vocabulary(model, ours(), MARKS)
    train_only_rows(model, new)
    before = copies(rows_of(model))
    matrix = next(p for p in others(model) if p.ndim == 2)
    matrix_before = matrix.detach().clone()
    make_optimiser = lm_opt(model, muon=muon)
    opt = make_optimiser(list(model.parameters()), lr=.01, wd=.5)
    take_steps(model, opt, new)
    for rows in open_rows(model, before): assert rows == new
    assert not matrix.equal(matrix_before), 'the rest trains'


@pytest.mark.parametrize('muon', [True, False])
@pytest.mark.parametrize('kind', ALL)
def test_all_rows_move_again(kind, muon):
    model = build(kind).train()
    _, new = extend_vocabulary(model, ours(), MARKS)
    train_only_rows(model, new)
    opt = lm_opt(model, muon=muon)(list(model.parameters()), lr=.01, wd=.5)
    take_steps(model, opt, new)
    before = copies(rows_of(model))
    train_all_rows(model)
    take_steps(model, opt, new)
    assert open_rows(model, before)[0] != new


@pytest.mark.parametrize('kind', ['tied', 'untied'])
def test_new_rows_train_in_a_frozen_group(kind):
    model = build(kind).train()
    new = [298, 299]
    train_only_rows(model, new)
    n_own = 1 if kind == 'tied' else 2
    groups = [rows_of(model)[:n_own], others(model)]
    before = copies(rows_of(model))
    opt = lm_opt(model)(groups, lr=.01, wd=.5)
    for frozen in (1, 0):
        opt.freeze_to(frozen)
        take_steps(model, opt, new)
        for rows in open_rows(model, before): assert rows == new


@pytest.mark.parametrize('ids', [[], [-1], [300]])
def test_rows_that_are_not_there(ids):
    with pytest.raises(UserError, match='expected ids of 0 to 299'): train_only_rows(build('tied'), ids)


@pytest.mark.parametrize('kind', ALL)
def test_a_copy_and_a_grown_model_train_the_same_rows(kind):
    model = build(kind).train()
    train_only_rows(model, [5, 6])
    twin = copy.deepcopy(model)
    again = copy.deepcopy(twin)
    grow_rows(model, model.config.vocab_size + 3)
    for m in (twin, again, model):
        before = copies(rows_of(m))
        opt = lm_opt(m)(list(m.parameters()), lr=.01, wd=.5)
        take_steps(m, opt, [7])
        for rows in open_rows(m, before): assert rows == [5, 6]
    train_all_rows(twin)
    assert copy.deepcopy(twin).embed.weight.requires_grad and not hasattr(copy.deepcopy(twin).embed.weight, 'trained_rows')


def test_rows_that_train_can_be_written_and_are_freed(tmp_path):
    model = build('tied')
    train_only_rows(model, [5])
    torch.save(model.state_dict(), tmp_path/'state.pt')
    torch.save(model, tmp_path/'model.pt')
    opened = torch.load(tmp_path/'model.pt', weights_only=False)
    train_all_rows(opened)
    gone = weakref.ref(model.embed.weight)
    del model
    assert gone() is None
