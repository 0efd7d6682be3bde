"Several chats in a row: nothing leaks, nothing is lost, and the loss sees the answers alone."
import numpy as np
import pytest, torch
from fastai.data.core import DataLoaders
from torch import nn
from llmbook.core import UserError, import_transformers, set_seed
from llmbook.model.config import ModelConfig
from llmbook.model.hf_wrap import as_lm
from llmbook.model.transformer import Transformer
from llmbook.pretrain.run import lm_learner
from llmbook.tokens.loaders import IGNORE
from llmbook.train.accumulate import Accumulate
from llmbook.train.loss import LMLoss
from llmbook.tune.chat import ChatRow
from llmbook.tune.pack import AnswerLoss, ChatLoader, can_pack, chat_dls, row_length


def chat(n, answer, seed=0, weight=1.):
    r = np.random.default_rng([seed, n])
    weights = np.zeros(n, np.float32)
    if answer: weights[-answer:] = weight
    return ChatRow(r.integers(1, 200, n).astype(np.int32), np.zeros(n, np.uint8), weights)


CHATS = [chat(n, a, i) for i, (n, a) in enumerate([(6, 3), (9, 2), (5, 4), (12, 5), (3, 1), (17, 8)])]


def ours(family='qwen3'):
    set_seed(0)
    heads = 2 if family == 'gpt2' else 1
    return Transformer(ModelConfig(vocab_size=200, n_layer=2, d_model=32, n_head=2, n_kv_head=heads, context=64,
                                   family=family)).eval()


def wrapped():
    transformers = import_transformers()
    set_seed(0)
    config = transformers.GPTNeoXConfig(vocab_size=200, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                                        intermediate_size=64, max_position_embeddings=64)
    return as_lm(transformers.GPTNeoXForCausalLM(config).eval())


MODELS = dict(qwen3=ours, gpt2=lambda: ours('gpt2'), wrapped=wrapped)


def summed(model, dl, loss=None):
    "Return the nats of all batches of an epoch, and their targets."
    loss = loss or LMLoss(model.head)
    total = n = 0
    for *xb, y in dl:
        targets = int((y != IGNORE).sum())
        total += float(loss(model(*xb), y)) * targets
        n += targets
    return total, n


@pytest.mark.parametrize('name', MODELS)
@torch.no_grad()
def test_packed_loss_is_that_of_the_chats_alone(name):
    "transformers#46634, axolotl#3796: packing leaks."
    model = MODELS[name]()
    packed, n = summed(model, ChatLoader(CHATS, bs=2, seq_len=32, shuffle=False))
    alone, m = summed(model, ChatLoader(CHATS, bs=1, shuffle=False, packed=False))
    assert n == m == sum(row.n_targets for row in CHATS)
    assert packed / n == pytest.approx(alone / m, abs=1e-6)


@pytest.mark.parametrize('name', MODELS)
@torch.no_grad()
def test_a_changed_chat_changes_no_other(name):
    model = MODELS[name]()
    x, docs, _ = ChatLoader(CHATS, bs=4, seq_len=32, shuffle=False).one_batch()
    changed = x.clone()
    changed[docs == 0] = 7
    others = docs > 0
    torch.testing.assert_close(model(x, docs)[others], model(changed, docs)[others], atol=1e-6, rtol=0)


def inputs_and_targets(row):
    "Return what a model is given of a chat, and what it has to say, as lists."
    targets = np.where(row.trained[1:], row.ids[1:], IGNORE)
    return row.ids[:-1].tolist(), targets.tolist()


def unpacked(x, docs, y):
    "Return inputs and targets of each chat in a batch, as lists."
    chats = []
    for tokens, places, targets in zip(x, docs, y):
        n_chats = int(places.max()) + 1 # what fills the row has the place -1
        for k in range(n_chats):
            own = places == k
            chats.append((tokens[own].tolist(), targets[own].tolist()))
    return chats


def test_every_chat_is_seen_once_in_a_pass_whole_and_with_its_targets():
    wanted = sorted(inputs_and_targets(row) for row in CHATS)
    dl = ChatLoader(CHATS, bs=2, seq_len=24, seed=3)
    for number in range(3):
        seen = []
        first = number * len(dl)
        for i in range(first, first + len(dl)): seen += unpacked(*dl.batch(i))
        assert sorted(seen) == wanted


def test_passes_differ_and_batches_depend_on_their_number_alone():
    chats = [chat(n, 2, n) for n in range(4, 40)]
    dl = ChatLoader(chats, bs=4, seed=1)
    again = ChatLoader(chats, bs=4, seed=1)
    n = len(dl)
    for i in (0, n - 1, 2 * n, 5): assert all(map(torch.equal, dl.batch(i), again.batch(i)))
    assert not torch.equal(dl.batch(0)[0], dl.batch(n)[0])


def test_seeking_gives_the_batches_from_there():
    dl = ChatLoader(CHATS, bs=1, seq_len=17)
    whole = [b[0] for b in dl]
    rest = [b[0] for b in dl.seek(2)]
    assert all(map(torch.equal, rest, whole[2:]))


@pytest.mark.parametrize('packed', [True, False])
def test_the_answer_loss_is_the_plain_loss_and_so_is_its_gradient(packed):
    model = ours()
    *xb, y = ChatLoader(CHATS, bs=4, shuffle=False, packed=packed).one_batch()
    losses, gradients = [], []
    for kind in (LMLoss, AnswerLoss):
        model.zero_grad()
        loss = kind(model.head)(model(*xb), y)
        loss.backward()
        losses.append(loss.item())
        gradients.append([p.grad.clone() for p in model.parameters()])
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    for a, b in zip(*gradients): torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def test_loss_and_gradient_are_those_of_transformers(tmp_path):
    "The same model and batch: their loss over labels of one padded batch."
    from llmbook.model.hf import save_pretrained
    transformers = import_transformers()
    model = ours('gpt2')
    save_pretrained(model, None, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    x, y = ChatLoader(CHATS, bs=6, shuffle=False, packed=False).one_batch()
    labels = torch.cat([torch.full((len(x), 1), IGNORE), y[:, :-1]], 1)  # theirs shifts by itself
    keep = y[:, -1] == IGNORE
    their_loss = theirs(input_ids=x[keep], labels=labels[keep]).loss
    our_loss = AnswerLoss(model.head)(model(x[keep]), y[keep])
    torch.testing.assert_close(our_loss, their_loss, atol=1e-5, rtol=1e-5)
    our_loss.backward()
    their_loss.backward()
    torch.testing.assert_close(model.embed.weight.grad, theirs.transformer.wte.weight.grad, atol=1e-5, rtol=1e-4)


def test_a_row_without_targets_changes_nothing():
    "Soup#532: one row without targets makes every weight NaN; trl#6320: a loss of 0.0 that goes unnoticed."
    model = ours()
    empty = chat(8, 0)
    with_it, without = ([*CHATS, empty], CHATS)
    gradients = []
    for chats in (with_it, without):
        model.zero_grad()
        *xb, y = ChatLoader(chats, bs=8, shuffle=False, packed=False).one_batch()
        AnswerLoss(model.head)(model(*xb), y).backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for a, b in zip(*gradients): torch.testing.assert_close(a, b, atol=1e-7, rtol=1e-4)
    model.zero_grad()
    *xb, y = ChatLoader([empty], bs=1, shuffle=False).one_batch()
    loss = AnswerLoss(model.head)(model(*xb), y)
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad.abs().max() == 0 for p in model.parameters())


def test_weights_by_message():
    model = ours()
    chats = [chat(6, 3, weight=.25), chat(9, 4)]
    x, docs, y, w = ChatLoader(chats, bs=1, shuffle=False).one_batch()
    nats = nn.functional.cross_entropy(model.logits(model(x, docs)).flatten(0, 1), y.flatten(), ignore_index=IGNORE,
                                       reduction='none')
    by_hand = (nats * w.flatten()).sum() / (y != IGNORE).sum()  # the loader's weights are 1 on average
    torch.testing.assert_close(AnswerLoss(model.head)(model(x, docs), y, w), by_hand, atol=1e-6, rtol=1e-5)


UNEVEN = [chat(20, 1, 0), chat(6, 5, 1), chat(30, 25, 2), chat(9, 2, 3)]


def trained_on_uneven(bs, **options):
    "Return a model after one pass over the four chats in their order, `bs` at a time."
    train = ChatLoader(UNEVEN, bs=bs, shuffle=False, packed=False)
    valid = ChatLoader(UNEVEN, bs=4, shuffle=False, packed=False)
    model = ours()
    learn = lm_learner(DataLoaders(train, valid), model, lr=1e-2, precision='float32', muon=False, **options)
    learn.loss_func = AnswerLoss(model.head)
    learn.fit(1)
    return model


def test_accumulation_of_uneven_batches_is_the_big_batch():
    "transformers#34191, transformers#37766: the mean of means is not the mean."
    whole = trained_on_uneven(bs=4)
    parts = trained_on_uneven(bs=1, accumulate=4)
    for a, b in zip(whole.parameters(), parts.parameters()): torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-3)


def test_a_model_that_cannot_keep_chats_apart_is_known():
    transformers = import_transformers()
    set_seed(0)
    config = transformers.BloomConfig(vocab_size=200, hidden_size=32, n_layer=2, n_head=2)
    assert can_pack(ours()) and can_pack(wrapped())
    assert not can_pack(as_lm(transformers.BloomForCausalLM(config).eval()))


@pytest.mark.parametrize('make, message', [
    (lambda: ChatLoader([]), 'got none'),
    (lambda: ChatLoader('text'), 'got none'),
    (lambda: ChatLoader([([1, 2], 1)]), 'expected ChatRows'),
    (lambda: ChatLoader(CHATS, bs=0), 'bs to be a whole number'),
    (lambda: ChatLoader(CHATS, steps=1.5), 'steps to be a whole number'),
    (lambda: ChatLoader(CHATS, seq_len=8), 'got one of 16'),
    (lambda: ChatLoader(CHATS, seed='x'), 'seed'),
    (lambda: row_length([5, 100], most=64), 'got one of 100'),
    (lambda: chat_dls(dict(train=CHATS), None), 'valid split'),
    (lambda: chat_dls(dict(train=CHATS, valid=CHATS), None, tokens=0), 'tokens to be a whole number'),
])
def test_bad_input_is_refused_in_words(make, message):
    with pytest.raises(UserError, match=message): make()


def gradient(chats, bs):
    "Return the gradient of chats whose batches of `bs` count by their targets."
    model = ours()
    loss_func = AnswerLoss(model.head)
    batches = list(ChatLoader(chats, bs=bs, seq_len=8, shuffle=False))
    targets = [int((y != IGNORE).sum()) for _, _, y, _ in batches]
    for (x, docs, y, w), n in zip(batches, targets):
        loss = loss_func(model(x, docs), y, w)
        share = n / sum(targets)
        (loss * share).backward()
    return [p.grad for p in model.parameters()]


def test_weights_in_slices_are_the_weights_of_the_whole():
    "Hold a batch that is cut for want of memory against the whole one: it must not change what is learned."
    chats = [chat(9, 4, weight=2.), chat(9, 4, seed=1, weight=.5)]
    for whole, parts in zip(gradient(chats, bs=2), gradient(chats, bs=1)):
        torch.testing.assert_close(whole, parts, atol=1e-6, rtol=1e-4)


def test_a_weighted_batch_without_targets_has_a_gradient_of_zero():
    model = ours()
    x = torch.arange(6)[None]
    y = torch.full_like(x, IGNORE)
    loss = AnswerLoss(model.head)(model(x), y, torch.zeros(1, 6))
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is None or p.grad.abs().max() == 0 for p in model.parameters())
