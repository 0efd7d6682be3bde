"Classification: rows, pooling, groups, schedules, and what is refused."
import numpy as np, pandas as pd
import pytest, torch
from torch import nn
from llmbook.core import UserError, import_transformers, set_seed
from llmbook.model.config import ModelConfig
from llmbook.model.hf_wrap import as_lm
from llmbook.model.transformer import Transformer
from llmbook.tokens.tokenizer import train_tokenizer
from llmbook.tune.classify import (
    Classifier, HubEncoder, LabelLoader, class_dls, class_groups, class_learner, classify, fit_slanted, label_rows,
    pooled, slanted_triangle
)
from llmbook.tune.groups import show_groups

WORDS = dict(good=['fine', 'warm', 'funny', 'bright'], bad=['dull', 'cold', 'long', 'flat'])
NOUNS = ['film', 'play', 'story', 'cast', 'song', 'ending']
PAIRS = [(f'what a {word} {noun}', label) for label, words in WORDS.items() for word in words for noun in NOUNS]
TRAIN = [p for i, p in enumerate(PAIRS) if i % 5]
VALID = PAIRS[::5]


@pytest.fixture(scope='module')
def tok(): return train_tokenizer([text for text, _ in PAIRS], 330)


def ours(tok, family='qwen3', **options):
    set_seed(0)
    heads = dict(n_kv_head=1) if family in ('qwen3', 'llama') else {}
    sizes = dict(vocab_size=tok.get_vocab_size(), n_layer=2, d_model=32, n_head=2, context=32, family=family)
    return Transformer(ModelConfig(**(sizes | heads | options)))


def theirs(tok, config, model):
    "Return a small model of transformers, by the names of its configuration and its class."
    transformers = import_transformers()
    set_seed(0)
    sizes = getattr(transformers, config)(vocab_size=tok.get_vocab_size(), hidden_size=32, num_hidden_layers=2,
                                          num_attention_heads=2, intermediate_size=64, max_position_embeddings=32)
    return getattr(transformers, model)(sizes)


def neox(tok): return as_lm(theirs(tok, 'GPTNeoXConfig', 'GPTNeoXForCausalLM'))
def bert(tok): return HubEncoder(theirs(tok, 'BertConfig', 'BertModel'))


BODIES = dict(qwen3=ours, gpt2=lambda tok: ours(tok, 'gpt2'), encoder=lambda tok: ours(tok, 'encoder'),
              untied=lambda tok: ours(tok, tie_embeddings=False), neox=neox, bert=bert)


def columns(pairs): return tuple(map(list, zip(*pairs)))


def learner(tok, body=None, **options):
    dls = class_dls(tok, columns(TRAIN), columns(VALID), seq_len=24, bs=8, device='cpu')
    return class_learner(body or ours(tok), dls, **options)


def test_a_long_text_keeps_its_beginning_and_its_end(tok):
    text = 'what a fine film ' * 20
    whole = [0, *tok.encode(text).ids]
    (ids, _), _ = label_rows(tok, [text, 'x'], ['a', 'b'], seq_len=10)[0]
    assert ids.tolist() == [*whole[:5], *whole[-5:]]


def texts_of_pass(dl, number):
    "Return (ids without padding, label) of every text in a pass of a loader, sorted."
    seen = []
    for i in range(len(dl)):
        x, lengths, y = dl.batch(number * len(dl) + i)
        for ids, n, label in zip(x, lengths, y):
            text = ids[:n].tolist()
            seen.append((text, int(label)))
    return sorted(seen)


def test_every_text_stands_once_in_a_pass(tok):
    rows, names = label_rows(tok, *columns(TRAIN), 24)
    dl = LabelLoader(rows, bs=7, names=names)
    expected = sorted((ids.tolist(), label) for ids, label in rows)
    assert texts_of_pass(dl, 0) == expected
    assert texts_of_pass(dl, 1) == expected


def test_pooling_by_hand():
    h = torch.tensor([[[1., 0.], [5., -2.], [9., 9.]], [[2., 2.], [0., 0.], [0., 0.]]])
    expected = torch.tensor([[5., -2., 3., -1., 5., 0.], [2., 2., 2., 2., 2., 2.]])
    torch.testing.assert_close(pooled(h, torch.tensor([2, 1])), expected)


@pytest.mark.parametrize('name', BODIES)
@torch.no_grad()
def test_what_fills_a_row_up_changes_nothing(tok, name):
    model = Classifier(BODIES[name](tok), 2).eval()
    x, lengths = torch.tensor([[5, 6, 7, 8], [9, 5, 0, 0]]), torch.tensor([4, 2])
    longer = nn.functional.pad(x, (0, 5), value=11)
    torch.testing.assert_close(model(x, lengths), model(longer, lengths), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('name', BODIES)
def test_any_body_learns(tok, name):
    learn = learner(tok, BODIES[name](tok))
    learn.fit_one_cycle(14, slice(1e-3, 1e-2))
    assert learn.validate()[1] > .8


def test_groups_are_embedding_blocks_and_head(tok):
    learn = learner(tok)
    layers = list(show_groups(learn).layers)
    assert [layer.split('.')[0] for layer in layers] == ['body', 'body', 'body', 'classify']
    assert len(class_groups(Classifier(ours(tok, tie_embeddings=False), 2))) >= 4


def test_freezing_trains_the_head_alone(tok):
    learn = learner(tok)
    learn.freeze()
    before = {name: p.detach().clone() for name, p in learn.model.named_parameters()}
    learn.fit(1)
    changed = {name.split('.')[0] for name, p in learn.model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {'classify'}


def test_the_slanted_triangle_by_hand():
    "Howard and Ruder 2018, equation 3, with cut_frac .1 and ratio 32."
    T = 1000
    cut = int(T * .1)
    for t in (0, 50, 100, 300, 1000):
        p = t / cut if t < cut else 1 - (t - cut) / (cut * (1 / .1 - 1))
        assert slanted_triangle(t / T) == pytest.approx((1 + p * 31) / 32)


def test_rates_follow_the_triangle_in_every_group(tok):
    from fastai.callback.core import Callback
    seen = []
    class Watch(Callback):
        def before_step(self): seen.append([h['lr'] for h in self.opt.hypers])
    learn = learner(tok)
    fit_slanted(learn, 2, slice(1e-4, 8e-4), cbs=Watch())
    seen = np.array(seen)
    assert seen.shape[1] == 4
    np.testing.assert_allclose(seen[:, -1] / seen[:, 0], 8, rtol=1e-5)
    assert seen[:, -1].argmax() <= len(seen) * .2


@pytest.fixture(scope='module')
def trained(tok):
    learn = learner(tok)
    learn.fit_one_cycle(14, slice(1e-3, 1e-2))
    return learn


def test_labels_of_new_texts_come_in_their_order(trained):
    texts = ['what a warm film', 'x', 'what a dull and cold and flat and long story', 'what a bright song']
    table = classify(trained, texts, bs=2)
    alone = pd.concat([classify(trained, [text]) for text in texts])
    assert list(table.label) == list(alone.label)
    np.testing.assert_allclose(table.good, alone.good, atol=1e-5)
    warm, _, dull, bright = table.label
    assert (warm, dull, bright) == ('good', 'bad', 'good')


@pytest.mark.parametrize('call, message', [
    (lambda tok: label_rows(tok, [], [], 24), 'a label for each text'),
    (lambda tok: label_rows(tok, ['a', 'b'], ['x'], 24), 'a label for each text'),
    (lambda tok: label_rows(tok, ['a', 'b'], ['x', 'x'], 24), 'two different labels'),
    (lambda tok: label_rows(tok, ['a', 'b'], ['x', 'y'], 24, names=['x', 'z']), 'got y too'),
    (lambda tok: label_rows(tok, ['a', 5], ['x', 'y'], 24), 'texts'),
    (lambda tok: label_rows(tok, ['a', 'b'], ['x', 'y'], 2), 'seq_len'),
    (lambda tok: LabelLoader([]), 'got none'),
    (lambda tok: Classifier(ours(tok), 1), 'n_classes'),
    (lambda tok: Classifier(ours(tok), 2, dropout=1), 'dropout'),
    (lambda tok: HubEncoder(nn.Linear(2, 2)), 'load it with AutoModel'),
    (lambda tok: learner(tok, lr=0), 'lr'),
    (lambda tok: fit_slanted(learner(tok), 1, 1e-3, cut=0), 'cut'),
])
def test_bad_input_is_refused_in_words(tok, call, message):
    with pytest.raises(UserError, match=message): call(tok)


def test_results_are_texts_with_labels_and_what_was_found(tok, capsys):
    learn = learner(tok)
    learn.show_results(max_n=3)
    shown = capsys.readouterr().out
    assert 'found' in shown and 'what a' in shown
    assert '<|endoftext|>' not in shown


def test_a_table_of_texts_and_labels(tok):
    import pandas as pd
    table = pd.DataFrame(PAIRS, columns=['text', 'label'])
    dls = class_dls(tok, table, table, seq_len=24, device='cpu')
    assert dls.names == ['bad', 'good']
    with pytest.raises(UserError, match='got words, label'):
        class_dls(tok, table.rename(columns=dict(text='words')), table, device='cpu')
    with pytest.raises(UserError, match='texts, labels'): class_dls(tok, table.text, table.label, device='cpu')
