"Layer groups: what trains, at which rate, and which requests are refused."
import pytest, torch
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from llmbook.core import UserError, import_transformers, set_seed
from llmbook.model.config import ModelConfig
from llmbook.model.hf_wrap import as_lm
from llmbook.model.transformer import Transformer
from llmbook.pretrain.run import lm_learner
from llmbook.tiny import copy_task
from llmbook.tune.finetune import finetune_learner
from llmbook.tune.groups import GradualUnfreeze, check_groups, layer_groups, layerwise_decay, show_groups
from llmbook.tune.quantised import quantise_base

SIZES = dict(vocab_size=300, n_layer=3, d_model=32, n_head=2, n_kv_head=1, context=32)


def batches():
    x, y = map(torch.tensor, copy_task(rows=8))
    return DataLoaders([(x, y)] * 4, [(x, y)])


def learner(lr=slice(1e-3, 8e-3), **options):
    set_seed(0)
    return lm_learner(batches(), Transformer(ModelConfig(**SIZES, **options)), lr=lr, splitter=layer_groups)


def weights(learn): return {name: p.detach().clone() for name, p in learn.model.named_parameters()}


def changed(learn, before):
    "Return the names of layers in which a weight is another one than before."
    now = weights(learn)
    names = [name for name in before if not torch.equal(before[name], now[name])]
    return {'.'.join(name.split('.')[:2]) if name.startswith('blocks') else name.split('.')[0] for name in names}


def test_a_head_with_weights_of_its_own_is_a_group():
    table = show_groups(learner(tie_embeddings=False))
    assert list(table.layers) == ['embed', 'blocks.0', 'blocks.1', 'blocks.2', 'norm, head']
    assert list(show_groups(learner()).layers) == ['embed', 'blocks.0', 'blocks.1', 'blocks.2, norm']


def test_the_table_counts_every_parameter_and_shows_the_rates_of_the_optimiser():
    learn = learner()
    table = show_groups(learn)
    assert table.parameters.sum() == sum(p.numel() for p in learn.model.parameters())
    assert list(table.rate) == pytest.approx([1e-3, 2e-3, 4e-3, 8e-3])
    learn.fit(1, lr=slice(1e-4, 8e-4))
    assert list(show_groups(learn).rate) == pytest.approx([1e-4, 2e-4, 4e-4, 8e-4])


@pytest.mark.parametrize('n, trained', [(-1, {'blocks.2', 'norm'}), (2, {'blocks.1', 'blocks.2', 'norm'})])
def test_only_open_groups_change(n, trained):
    learn = learner()
    learn.freeze_to(n)
    before = weights(learn)
    learn.fit(1)
    assert changed(learn, before) == trained
    assert set(show_groups(learn).state) == {'frozen', 'trained'}


def test_fine_tune_opens_the_last_group_first_and_then_all():
    learn = learner()
    before = weights(learn)
    learn.fine_tune(1, 1e-3)
    assert changed(learn, before) == {'embed', 'blocks.0', 'blocks.1', 'blocks.2', 'norm'}
    assert list(show_groups(learn).state) == ['trained'] * 4


def test_layerwise_decay_by_hand():
    learn = learner()
    learn.fit(1, lr=layerwise_decay(learn, 1e-3, decay=.5))
    assert [h['lr'] for h in learn.opt.hypers] == pytest.approx([1.25e-4, 2.5e-4, 5e-4, 1e-3])


@pytest.mark.parametrize('n', [5, -5, 1.5, True, 'all', None])
def test_a_place_that_is_no_group_is_refused(n):
    with pytest.raises(UserError, match='4 layer groups'): learner().freeze_to(n)


@pytest.mark.parametrize('lr', [[1e-3, 1e-2], [1e-3] * 5])
def test_a_wrong_count_of_rates_is_refused(lr):
    with pytest.raises(UserError, match='4 layer groups'): learner().fit_one_cycle(1, lr)


@pytest.mark.parametrize('wrong, message', [
    (lambda groups: groups[1:], 'in none, such as embed.weight'),
    (lambda groups: [*groups, groups[-1]], 'in two'),
    (lambda groups: [*groups, []], 'none in group 4'),
    (lambda groups: None, 'list of layer groups'),
])
def test_a_wrong_splitter_is_refused_before_training(wrong, message):
    model = Transformer(ModelConfig(**SIZES))
    with pytest.raises(UserError, match=message):
        finetune_learner(model, batches(), splitter=lambda m: wrong(layer_groups(m)))


def test_frozen_parameters_need_no_group():
    model = Transformer(ModelConfig(**SIZES))
    groups = layer_groups(model)[1:]
    model.embed.weight.requires_grad_(False)
    assert check_groups(model, groups) == groups


def frozen_names(model): return {name for name, p in model.named_parameters() if not p.requires_grad}


@pytest.mark.parametrize('share', [0, .5])
def test_what_was_frozen_stays_frozen(share):
    model = Transformer(ModelConfig(**SIZES))
    model.embed.weight.requires_grad_(False)
    model.blocks[1].requires_grad_(False)
    frozen = frozen_names(model)
    learn = finetune_learner(model, batches(), share=share)
    before = weights(learn)
    learn.fit(2)
    learn.freeze_to(-1)
    learn.unfreeze()
    learn.fit(1)
    assert frozen_names(model) == frozen
    assert changed(learn, before) == {'blocks.0', 'blocks.2', 'norm'}
    assert list(show_groups(learn).layers) == ['blocks.0', 'blocks.2, norm']


def test_biases_beside_quantised_weights_stay_frozen():
    transformers = import_transformers()
    config = transformers.GPTNeoXConfig(vocab_size=300, hidden_size=32, num_hidden_layers=2,
                                        num_attention_heads=2, intermediate_size=64, max_position_embeddings=32)
    model = quantise_base(as_lm(transformers.GPTNeoXForCausalLM(config)), 'int8')
    model.head.weight.requires_grad_(True)
    frozen = frozen_names(model)
    learn = lm_learner(batches(), model, splitter=layer_groups, precision='float32')
    learn.unfreeze()
    assert any(name.endswith('bias') for name in frozen)
    assert frozen_names(model) == frozen


class Stop(Exception): pass


class StopEarly(Callback):
    order = 100
    def after_batch(self): raise Stop


def test_groups_that_an_interrupted_run_left_closed_train_in_the_next():
    model = Transformer(ModelConfig(**SIZES))
    learn = finetune_learner(model, batches(), share=.5, cbs=[StopEarly()])
    with pytest.raises(Stop): learn.fit(1)
    assert frozen_names(model)
    again = finetune_learner(model, batches(), share=0)
    again.unfreeze()
    assert len(show_groups(again)) == 4
    assert not frozen_names(model)


def test_groups_that_another_learner_froze_can_be_opened():
    learn = learner()
    learn.freeze_to(-1)
    again = finetune_learner(learn.model, batches(), share=0)
    assert list(show_groups(again).state) == ['frozen', 'frozen', 'frozen', 'trained']
    again.unfreeze()
    assert not frozen_names(again.model)


def test_rates_of_a_learner_with_frozen_groups_are_for_all_its_groups():
    learn = learner()
    learn.freeze_to(-1)
    assert layerwise_decay(learn, 1e-3, decay=.5) == slice(1.25e-4, 1e-3)


def test_gradual_unfreezing_opens_groups_by_the_share_of_the_run():
    learn = learner()
    learn.add_cb(GradualUnfreeze(share=.5))
    learn.fit(2)
    assert learn.gradual_unfreeze.now == 4
    assert list(show_groups(learn).state) == ['trained'] * 4


def test_a_wrapped_model_has_a_group_for_each_block():
    transformers = import_transformers()
    config = transformers.GPTNeoXConfig(vocab_size=300, hidden_size=32, num_hidden_layers=2,
                                        num_attention_heads=2, intermediate_size=64, max_position_embeddings=32)
    model = transformers.GPTNeoXForCausalLM(config)
    learn = lm_learner(batches(), model, splitter=layer_groups, precision='float32')
    layers = list(show_groups(learn).layers)
    assert len(layers) == 4
    assert [name.endswith(end) for name, end in zip(layers[1:3], ('layers.0', 'layers.1'))] == [True, True]
