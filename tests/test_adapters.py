"Adapters: what trains, what merges, what PEFT reads, and what is refused."
import copy, json, warnings
from itertools import pairwise
import pytest, torch
from fastai.data.core import DataLoaders
from torch import nn
from llmbook.checkpoint.checkpoint import Checkpoint
from llmbook.core import UserError, import_transformers, set_seed
from llmbook.generate.text import generate_ids
from llmbook.model.config import ModelConfig
from llmbook.model.hf import load_model, save_pretrained
from llmbook.model.hf_wrap import as_lm
from llmbook.model.transformer import Transformer
from llmbook.model.vocabulary import train_all_rows, train_only_rows
from llmbook.pretrain.run import lm_learner
from llmbook.tiny import copy_task
from llmbook.tune.adapters import (
    ADAPTER_KINDS, AdaptedLinear, adapted_layers, adapter_table, add_adapters, base_fingerprint, drop_adapters,
    load_adapters, low_rank_linear, merge_adapters, merge_gap, save_adapters, set_merged
)
from llmbook.tune.groups import layer_groups, show_groups
from llmbook.tune.quantised import QuantisedLinear, quantise_base

SIZES = dict(vocab_size=300, n_layer=2, d_model=64, n_head=4, n_kv_head=2, context=32)
X = torch.arange(48).view(2, 24) % 300


@pytest.fixture(scope='module')
def peft():
    import_transformers()
    return pytest.importorskip('peft')


def base(family='llama', seed=0, **options):
    set_seed(seed)
    sizes = SIZES | (dict(n_kv_head=4) if family == 'gpt2' else {})
    return Transformer(ModelConfig(**(sizes | options), family=family)).eval()


def learnt(model, kind='lora', **options):
    "Put adapters on a model that have learnt something."
    add_adapters(model, r=4, kind=kind, **options)
    for layer in adapted_layers(model).values():
        nn.init.normal_(layer.lora_B, std=.05)
        if kind == 'dora': layer.magnitude.data *= 1.1
    return model.eval()


@torch.no_grad()
def logits(model): return model.logits(model(X))


class Copies:
    "Batches of the copy task that can begin at any step."
    def __init__(self, steps):
        self.steps, self.position = steps, 0

    def __len__(self): return self.steps

    def seek(self, batch):
        self.position = batch
        return self

    def batch(self, i): return tuple(map(torch.tensor, copy_task(rows=16, seed=i)))

    def __iter__(self):
        start, self.position = self.position, (self.position // self.steps + 1) * self.steps
        return map(self.batch, range(start, self.position))


def batches(n=6): return DataLoaders(Copies(n), Copies(1))


def learner(model, **options):
    return lm_learner(batches(), model, lr=1e-2, splitter=layer_groups, precision='float32', **options)


# ---- one layer

@pytest.mark.parametrize('kind', ADAPTER_KINDS)
@pytest.mark.parametrize('biased', [True, False])
def test_a_new_adapter_changes_nothing(kind, biased):
    set_seed(0)
    layer = nn.Linear(24, 16, bias=biased)
    x = torch.randn(3, 5, 24)
    expected = layer(x)
    torch.testing.assert_close(AdaptedLinear(layer, 4, 8, kind)(x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('kind', ADAPTER_KINDS)
def test_gradients_are_those_of_the_dense_matrix(kind):
    "In float64, where the plain path of autograd computes, and in float32, where ours does."
    set_seed(0)
    layer = AdaptedLinear(nn.Linear(24, 16), 4, 8, kind)
    nn.init.normal_(layer.lora_B, std=.3)
    x = torch.randn(7, 24)
    trained = [p for p in layer.parameters() if p.requires_grad]
    ours = torch.autograd.grad(layer(x).square().sum(), trained)
    exact = copy.deepcopy(layer).double()
    theirs = torch.autograd.grad(exact(x.double()).square().sum(), [p for p in exact.parameters() if p.requires_grad])
    for a, b in zip(ours, theirs): torch.testing.assert_close(a.double(), b, atol=1e-3, rtol=1e-4)


def test_the_base_gets_no_gradient_and_dropout_only_touches_the_correction():
    set_seed(0)
    layer = AdaptedLinear(nn.Linear(24, 16), 4, 8, dropout=.5).train()
    x = torch.randn(7, 24)
    torch.testing.assert_close(layer(x), layer.base(x), atol=1e-6, rtol=1e-6)  # B is zero
    layer(x).sum().backward()
    assert layer.base.weight.grad is None
    assert layer.lora_B.grad.abs().sum() > 0


def three_layers(kind, **options):
    set_seed(0)
    layers = [AdaptedLinear(nn.Linear(24, n, bias=n < 16), 4, 8, kind, **options) for n in (16, 8, 8)]
    for layer in layers: nn.init.normal_(layer.lora_B, std=.3)
    return layers


def outputs_and_gradients(layers, x, compute):
    "Return what layers compute, and the gradients of their input and of all that trains in them."
    x = x.clone().requires_grad_()
    outputs = compute(x)
    total = sum((i + 1) * y.square().sum() for i, y in enumerate(outputs))
    trained = [p for layer in layers for p in layer.parameters() if p.requires_grad]
    return *outputs, *torch.autograd.grad(total, [x, *trained])


@pytest.mark.parametrize('kind', ADAPTER_KINDS)
def test_layers_with_one_input_compute_together_what_they_compute_alone(kind):
    layers = three_layers(kind)
    x = torch.randn(2, 7, 24)
    together = outputs_and_gradients(layers, x, lambda x: AdaptedLinear.joint(layers, x))
    alone = outputs_and_gradients(layers, x, lambda x: [layer(x) for layer in layers])
    for a, b in zip(together, alone): torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize('kind', ADAPTER_KINDS)
def test_a_gated_layer_keeps_gate_and_branch_alone(kind):
    layer = three_layers(kind)[0]
    gate, up = torch.randn(2, 2, 5, 24)
    kept = []
    def usual(x): return [layer(nn.functional.silu(gate + x) * (up - x))]
    def ours(x): return [layer.gated(gate + x, up - x)]
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(tuple(t.shape)) or t, lambda t: t):
        got = outputs_and_gradients([layer], torch.zeros(24), ours)
    for a, b in zip(got, outputs_and_gradients([layer], torch.zeros(24), usual)):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-5)
    assert kept.count((2, 5, 24)) == 2


def test_layers_that_drop_inputs_compute_alone():
    x = torch.randn(5, 24)
    layers = three_layers('lora')
    want = [layer(x) for layer in layers]
    layers = three_layers('lora', dropout=.5)
    assert not layers[0].train().takes_gate(x)
    for a, b in zip(want, AdaptedLinear.joint([layer.eval() for layer in layers], x)):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_frozen_factors_pass_the_gradient_on():
    layers = three_layers('lora')
    x = torch.randn(5, 24)
    gradient = outputs_and_gradients(layers, x, lambda x: AdaptedLinear.joint(layers, x))[3]
    for layer in layers: layer.requires_grad_(False)
    x.requires_grad_()
    outputs = AdaptedLinear.joint(layers, x)
    sum((i + 1) * y.square().sum() for i, y in enumerate(outputs)).backward()
    torch.testing.assert_close(x.grad, gradient)


def test_rows_without_tokens():
    layer = nn.Linear(24, 16)
    assert low_rank_linear(torch.zeros(0, 24), layer, torch.zeros(4, 24), torch.zeros(16, 4), 1.).shape == (0, 16)


# ---- training

@pytest.mark.parametrize('kind', ADAPTER_KINDS)
def test_training_lowers_the_loss_and_leaves_the_base_as_it_is(kind):
    model = add_adapters(base(n_layer=3), r=4, kind=kind)
    before = base_fingerprint(model)
    learn = learner(model)
    first = learn.validate()[0]
    learn.fit(3)
    assert learn.validate()[0] < first - .05
    assert base_fingerprint(model) == before
    assert len(show_groups(learn)) == 3


def test_opening_and_closing_groups_never_opens_the_base():
    model = add_adapters(base(), r=4)
    learn = learner(model)
    learn.freeze()
    learn.unfreeze()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained and all('.lora_' in name for name in trained)
    assert sum(show_groups(learn).parameters) == sum(p.numel() for n, p in model.named_parameters() if n in trained)


class Stop(Exception): pass


@pytest.mark.parametrize('kind', ADAPTER_KINDS)
def test_a_run_that_was_cut_resumes_bit_for_bit(kind, tmp_path):
    from fastai.callback.core import Callback
    class StopAt(Callback):
        order, run_valid = 90, False
        def after_batch(self):
            if self.learn.train_iter == 8: raise Stop
    def run(folder, *cbs):
        model = add_adapters(base(), r=4, kind=kind)
        learn = learner(model, cbs=[Checkpoint(folder, every=3), *cbs])
        learn.fit(2)
        return model
    whole = run(tmp_path/'whole')
    with pytest.raises(Stop): run(tmp_path/'cut', StopAt())
    resumed = run(tmp_path/'cut')
    for (name, a), b in zip(whole.named_parameters(), resumed.parameters()): assert torch.equal(a, b), name


def test_a_checkpoint_holds_the_adapters_alone(tmp_path):
    model = add_adapters(base(d_model=128), r=2)
    learner(model, cbs=Checkpoint(tmp_path, every=3)).fit(1)
    size = sum(file.stat().st_size for file in tmp_path.rglob('*.safetensors'))
    whole = sum(p.nbytes for p in model.parameters())
    assert size < whole / 2


def test_a_checkpoint_over_another_base_is_refused(tmp_path):
    learner(add_adapters(base(), r=4), cbs=Checkpoint(tmp_path)).fit(1)
    with pytest.raises(Exception, match='differs in base'):
        learner(add_adapters(base(seed=1), r=4), cbs=Checkpoint(tmp_path)).fit(1)


# ---- merging (peft#2502, peft#1035: merged differs from adapter)

@pytest.mark.parametrize('kind', ADAPTER_KINDS)
@pytest.mark.parametrize('family', ['llama', 'qwen3', 'gpt2'])
def test_merged_and_unmerged_are_exact(kind, family):
    model = learnt(base(family), kind)
    exact = logits(model)
    for merged in (True, False):
        set_merged(model, merged)
        torch.testing.assert_close(logits(model), exact, atol=1e-5, rtol=1e-5)
    plain = merge_adapters(model)
    assert not adapted_layers(plain)
    torch.testing.assert_close(logits(plain), exact, atol=1e-5, rtol=1e-5)


def test_a_merged_model_is_written_and_an_adapted_one_is_refused(tmp_path):
    model = learnt(base())
    exact = logits(model)
    with pytest.raises(UserError, match='merge_adapters'): save_pretrained(model, None, tmp_path/'m')
    save_pretrained(merge_adapters(model), None, tmp_path/'m')
    torch.testing.assert_close(logits(load_model(tmp_path/'m', device='cpu')), exact, atol=1e-5, rtol=1e-5)


def test_dropped_adapters_give_the_base_back():
    model = base()
    exact = logits(model)
    dropped = drop_adapters(set_merged(learnt(model)))
    torch.testing.assert_close(logits(dropped), exact, atol=1e-5, rtol=1e-5)
    assert all(p.requires_grad for p in dropped.parameters())


def test_decoding_sees_the_adapters():
    model = learnt(base(), alpha=64.)
    got = generate_ids(model, [[5, 6, 7]], max_new_tokens=8, temperature=0.)
    merged = generate_ids(merge_adapters(copy.deepcopy(model)), [[5, 6, 7]], max_new_tokens=8, temperature=0.)
    assert got == merged
    assert got != generate_ids(base(), [[5, 6, 7]], max_new_tokens=8, temperature=0.)


def test_a_tied_head_is_refused_before_training():
    "peft#2399: an adapter of the embedding that the tied head does not see."
    for target in ('embed', 'head'):
        with pytest.raises(UserError, match='train them as a whole'): add_adapters(base(), targets=[target])


# ---- a quantised base

@pytest.mark.parametrize('bits', ['int8', 'nf4'])
def test_adapters_train_over_a_quantised_base(bits):
    model = add_adapters(quantise_base(base(), bits), r=4)
    assert all(isinstance(layer.base, QuantisedLinear) for layer in adapted_layers(model).values())
    learn = learner(model)
    first = learn.validate()[0]
    learn.fit(3)
    assert learn.validate()[0] < first - .05
    exact = logits(model.eval())
    torch.testing.assert_close(logits(merge_adapters(model)), exact, atol=1e-5, rtol=1e-5)


def test_both_merges_over_a_quantised_base_are_measured():
    "transformers#31293: merged onto another base than it was trained on."
    full = base()
    gaps = merge_gap(learnt(quantise_base(copy.deepcopy(full), 'nf4')), X, other=full)
    assert gaps['own base']['largest'] < 1e-5
    assert gaps['other base']['largest'] > .01


def test_gradients_pass_through_a_quantised_base():
    set_seed(0)
    layer = QuantisedLinear(nn.Linear(100, 16), 'nf4')
    x = torch.randn(5, 100, requires_grad=True)
    gradient, = torch.autograd.grad(layer(x).square().sum(), x)
    w = layer.dense()
    by_hand = 2 * (x @ w.T + layer.bias) @ w
    torch.testing.assert_close(gradient, by_hand.detach(), atol=1e-4, rtol=1e-4)


# ---- files

@pytest.mark.parametrize('kind', ADAPTER_KINDS)
@pytest.mark.parametrize('family', ['llama', 'qwen3', 'gpt2'])
def test_peft_opens_what_we_save(peft, tmp_path, kind, family):
    transformers = import_transformers()
    model = base(family)
    save_pretrained(model, None, tmp_path/'base')
    exact = logits(learnt(model, kind))
    save_adapters(model, tmp_path/'adapter')
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path/'base')
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)  # peft only warns of keys that are missing
        theirs = peft.PeftModel.from_pretrained(theirs, tmp_path/'adapter').eval()
    with torch.no_grad(): got = theirs(X).logits
    torch.testing.assert_close(got, exact, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize('family', ['llama', 'gpt2'])
@pytest.mark.parametrize('options', [
    dict(target_modules='all-linear'),
    dict(target_modules='all-linear', use_rslora=True),
    dict(target_modules='all-linear', use_dora=True),
    dict(target_modules='all-linear', alpha_pattern={'mlp.down_proj': 3}),
], ids=['lora', 'rslora', 'dora', 'alpha_pattern'])
def test_we_open_what_peft_saves(peft, tmp_path, family, options):
    transformers = import_transformers()
    model = base(family)
    save_pretrained(model, None, tmp_path/'base')
    set_seed(3)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path/'base')
    config = peft.LoraConfig(r=4, lora_alpha=8, task_type='CAUSAL_LM', init_lora_weights=False, **options)
    theirs = peft.get_peft_model(theirs, config).eval()
    with torch.no_grad(): exact = theirs(X).logits
    theirs.save_pretrained(tmp_path/'adapter')
    with pytest.warns(UserWarning, match='does not say over which weights'): load_adapters(model, tmp_path/'adapter')
    torch.testing.assert_close(logits(model.eval()), exact, atol=1e-4, rtol=1e-4)


def test_loss_and_gradient_are_those_of_peft(peft, tmp_path):
    transformers = import_transformers()
    model = learnt(base())
    save_pretrained(base(), None, tmp_path/'base')
    save_adapters(model, tmp_path/'adapter')
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path/'base')
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path/'adapter', is_trainable=True).eval()
    y = X.roll(-1, 1)
    ours_loss = nn.functional.cross_entropy(model.logits(model(X)).flatten(0, 1), y.flatten())
    theirs_loss = nn.functional.cross_entropy(theirs(X).logits.flatten(0, 1), y.flatten())
    torch.testing.assert_close(ours_loss, theirs_loss, atol=1e-5, rtol=1e-5)
    ours_loss.backward()
    theirs_loss.backward()
    wanted = {name: p.grad for name, p in theirs.named_parameters() if p.requires_grad}
    for i in range(2):
        ours = model.blocks[i].attn.q_proj.lora_A.grad
        name = f'base_model.model.model.layers.{i}.self_attn.q_proj.lora_A.default.weight'
        torch.testing.assert_close(ours, wanted[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize('targets', [('q_proj', 'v_proj'), ('q_proj',), ('mlp.up_proj',)])
@pytest.mark.parametrize('family', ['llama', 'gpt2'])
def test_adapters_on_some_layers_survive_the_file(tmp_path, family, targets):
    model = learnt(base(family), targets=targets)
    exact = logits(model)
    save_adapters(model, tmp_path)
    loaded = load_adapters(base(family), tmp_path)
    assert set(adapted_layers(loaded)) == set(adapted_layers(model))
    torch.testing.assert_close(logits(loaded.eval()), exact, atol=1e-5, rtol=1e-5)


def test_a_wrapped_model(peft, tmp_path):
    transformers = import_transformers()
    config = transformers.GPTNeoXConfig(vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                                        intermediate_size=64, max_position_embeddings=32)
    set_seed(0)
    hub = transformers.GPTNeoXForCausalLM(config).eval()
    hub.save_pretrained(tmp_path/'base')
    model = learnt(as_lm(hub))
    exact = logits(model)
    save_adapters(model, tmp_path/'adapter')
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path/'base')
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path/'adapter').eval()
    with torch.no_grad(): torch.testing.assert_close(theirs(X).logits, exact, atol=1e-4, rtol=1e-4)
    ours = as_lm(transformers.AutoModelForCausalLM.from_pretrained(tmp_path/'base'))
    torch.testing.assert_close(logits(load_adapters(ours, tmp_path/'adapter').eval()), exact, atol=1e-5, rtol=1e-5)


def test_over_another_base_it_is_refused(tmp_path):
    "peft#1932, peft#2118: adapters that do not belong to the base answer badly without an error."
    save_adapters(learnt(base()), tmp_path)
    with pytest.raises(UserError, match='over which'): load_adapters(base(seed=1), tmp_path)
    assert adapted_layers(load_adapters(base(seed=1), tmp_path, other_base=True))


def edited(folder, **options):
    file = folder/'adapter_config.json'
    file.write_text(json.dumps(json.loads(file.read_text()) | options))


def rewritten(folder, change):
    from safetensors.torch import load_file, save_file
    tensors = load_file(folder/'adapter_model.safetensors')
    save_file(change(tensors), folder/'adapter_model.safetensors')


@pytest.mark.parametrize('spoil, message', [
    (lambda f: (f/'adapter_config.json').unlink(), 'expected adapter_config.json'),
    (lambda f: (f/'adapter_model.safetensors').write_bytes(b'no'), 'cannot be read'),
    (lambda f: (f/'adapter_model.safetensors').rename(f/'adapter_model.bin'), 'could run code'),
    (lambda f: (f/'adapter_model.safetensors').unlink(), 'found none'),
    (lambda f: edited(f, peft_type='IA3'), "got 'IA3'"),
    (lambda f: edited(f, bias='all'), "got bias 'all'"),
    (lambda f: edited(f, modules_to_save=['lm_head']), 'modules_to_save'),
    (lambda f: (f/'adapter_config.json').write_text('[]'), "got 'list'"),
    (lambda f: rewritten(f, lambda t: {k: v for k, v in t.items() if 'lora_B' not in k}), 'not whole'),
    (lambda f: rewritten(f, lambda t: {k.replace('layers.1', 'layers.7'): v for k, v in t.items()}), 'another model'),
    (lambda f: rewritten(f, lambda t: {k: v[:, :2].clone() for k, v in t.items()}), 'belongs to another model'),
    (lambda f: rewritten(f, lambda t: {}), 'found none'),
])
@pytest.mark.filterwarnings('ignore:.*does not say over which')
def test_broken_files_are_refused_in_words(tmp_path, spoil, message):
    save_adapters(learnt(base()), tmp_path)
    spoil(tmp_path)
    model = base()
    with pytest.raises(UserError, match=message): load_adapters(model, tmp_path)
    assert not adapted_layers(model)


def test_broken_adapters_are_not_written(tmp_path):
    model = learnt(base())
    next(iter(adapted_layers(model).values())).lora_A.data[0, 0] = float('nan')
    with pytest.raises(UserError, match='NaN or infinity'): save_adapters(model, tmp_path)
    assert not list(tmp_path.glob('*.safetensors'))


@pytest.mark.parametrize('options, message', [
    (dict(r=0), 'r to be a whole number'), (dict(r=2.5), 'r to be a whole number'), (dict(r=4096), 'rank of at most'),
    (dict(alpha=0), 'alpha to be a number above 0'), (dict(alpha='x'), 'alpha'), (dict(kind='loha'), "got 'loha'"),
    (dict(dropout=1), 'dropout'), (dict(dropout=-.1), 'dropout of 0 or more'), (dict(targets='q_prj'), "got 'q_prj'"),
])
def test_wrong_options_are_refused_and_leave_the_model_as_it_is(options, message):
    model = base()
    with pytest.raises(UserError, match=message): add_adapters(model, **options)
    assert not adapted_layers(model) and all(p.requires_grad for p in model.parameters())


def test_the_table_counts_what_trains():
    table = adapter_table(base(d_model=256), ranks=(4,))
    trained = sum(p.numel() for p in add_adapters(base(d_model=256), r=4).parameters() if p.requires_grad)
    assert list(table.trained[1:]) == [trained] * 3
    from_small_to_large = ['rank 4, base nf4', 'rank 4, base int8', 'rank 4, base float32', 'full']
    memory = [table.MB[name] for name in from_small_to_large]
    for smaller, larger in pairwise(memory): assert smaller < larger


def test_dora_on_a_part_of_a_joined_layer_over_codes_is_written_and_opened(tmp_path):
    def base():
        set_seed(0)
        config = ModelConfig(vocab_size=90, n_layer=1, d_model=64, n_head=4, context=64, family='gpt2')
        return quantise_base(Transformer(config), 'nf4').eval()
    model = add_adapters(base(), r=4, kind='dora', targets=('q_proj', 'up_proj')).eval()
    for layer in adapted_layers(model).values(): nn.init.normal_(layer.lora_B, std=.05)
    x = torch.randint(90, (2, 20))
    save_adapters(model, tmp_path)
    opened = load_adapters(base(), tmp_path).eval()
    torch.testing.assert_close(opened.logits(opened(x)), model.logits(model(x)), atol=1e-5, rtol=1e-5)


# ---- what changes silently if nobody looks

@pytest.mark.parametrize('p', [0., .1])
def test_recomputed_blocks_drop_the_same_inputs_again(p):
    def gradient(every):
        model = learnt(base(), dropout=p).train().set_recompute(every)
        set_seed(5)
        model.logits(model(X)).square().mean().backward()
        return [layer.lora_A.grad for layer in adapted_layers(model).values()]
    for plain, again in zip(gradient(0), gradient(1)): torch.testing.assert_close(plain, again, atol=1e-7, rtol=1e-5)


def with_alpha(peft, folder, pattern):
    "Make an adapter of PEFT with another alpha for some layers; return its logits."
    transformers = import_transformers()
    save_pretrained(base(), None, folder/'base')
    set_seed(3)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder/'base')
    config = peft.LoraConfig(r=4, lora_alpha=8, task_type='CAUSAL_LM', init_lora_weights=False,
                             target_modules='all-linear', alpha_pattern={pattern: 64})
    theirs = peft.get_peft_model(theirs, config).eval()
    theirs.save_pretrained(folder/'adapter')
    with torch.no_grad(): return theirs(X).logits


@pytest.mark.parametrize('pattern', ['q_proj', r'.*layers\.0\.self_attn\.[qk]_proj'])
@pytest.mark.filterwarnings('ignore:.*does not say over which')
def test_another_alpha_for_some_layers_survives_reading_and_writing(peft, tmp_path, pattern):
    exact = with_alpha(peft, tmp_path, pattern)
    model = load_adapters(base(), tmp_path/'adapter').eval()
    torch.testing.assert_close(logits(model), exact, atol=1e-4, rtol=1e-4)
    save_adapters(model, tmp_path/'again')
    torch.testing.assert_close(logits(load_adapters(base(), tmp_path/'again').eval()), exact, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize('option', [dict(init_lora_weights='pissa'), dict(init_lora_weights='loftq'),
                                    dict(alora_invocation_tokens=[5]), dict(use_qalora=True)])
def test_an_adapter_that_is_more_than_a_correction_is_refused(tmp_path, option):
    save_adapters(learnt(base()), tmp_path)
    edited(tmp_path, **option)
    with pytest.raises(UserError, match=next(iter(option))): load_adapters(base(), tmp_path)


def test_a_merge_over_a_partly_adapted_quantised_base_is_whole(tmp_path):
    model = learnt(quantise_base(base(), 'nf4'), targets=('q_proj',))
    exact = logits(model)
    merged = merge_adapters(model)
    assert not any(isinstance(m, QuantisedLinear) for m in merged.modules())
    save_pretrained(merged, None, tmp_path/'m')
    torch.testing.assert_close(logits(load_model(tmp_path/'m', device='cpu')), exact, atol=1e-5, rtol=1e-5)


def test_merged_adapters_are_not_trained():
    model = set_merged(learnt(base())).train()
    with pytest.raises(UserError, match='set_merged'): model(X)
    assert model.eval()(X).isfinite().all()


def test_the_gap_of_a_merge_is_measured_without_dropout():
    model = learnt(base(), dropout=.3).train()
    assert merge_gap(model, X)['own base']['largest'] < 1e-4
    assert model.training


# ---- 16 bits, and a base of codes

def in_bfloat16(layer): return layer.to(torch.bfloat16)


@pytest.mark.parametrize('kind', ADAPTER_KINDS)
@pytest.mark.parametrize('bits', (None, 'nf4'))
def test_a_base_in_bfloat16_computes_outside_of_autocast(kind, bits):
    set_seed(0)
    layer = in_bfloat16(nn.Linear(64, 32))
    adapted = AdaptedLinear(QuantisedLinear(layer, bits) if bits else layer, 4, 8, kind)
    nn.init.normal_(adapted.lora_B, std=.3)
    x = torch.randn(7, 64, dtype=torch.bfloat16)
    y = adapted(x)
    assert y.dtype == torch.bfloat16
    exact = x.double() @ adapted.dense().double().T + layer.bias.double()
    torch.testing.assert_close(y.double(), exact, atol=.05, rtol=.02)
    y.float().square().sum().backward()
    assert adapted.lora_A.grad.dtype == torch.float32 and adapted.lora_A.grad.abs().sum() > 0


def test_a_correction_over_bfloat16_is_that_of_peft(peft):
    set_seed(0)
    layer = nn.Sequential(in_bfloat16(nn.Linear(64, 32)))
    theirs = peft.get_peft_model(copy.deepcopy(layer), peft.LoraConfig(r=4, lora_alpha=8, target_modules=['0']))
    adapted = AdaptedLinear(layer[0], 4, 8)
    nn.init.normal_(adapted.lora_B, std=.3)
    lora = theirs.base_model.model[0]
    lora.lora_A['default'].weight.data.copy_(adapted.lora_A)
    lora.lora_B['default'].weight.data.copy_(adapted.lora_B)
    x = torch.randn(7, 64, dtype=torch.bfloat16)
    torch.testing.assert_close(adapted(x), theirs(x), atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize('x_type, autocast, dropout', (
    (torch.float32, False, .3), (torch.bfloat16, False, 0), (torch.float64, False, 0), (torch.float32, True, 0),
    (torch.float32, True, .3)))
@pytest.mark.parametrize('bits', ('int8', 'nf4'))
def test_no_dense_matrix_is_kept_of_a_base_of_codes(bits, x_type, autocast, dropout):
    layer = AdaptedLinear(QuantisedLinear(nn.Linear(128, 64), bits), 4, dropout=dropout).train()
    if x_type == torch.float64: layer.double()
    x = torch.randn(3, 128, dtype=x_type, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        with torch.autocast('cpu', torch.bfloat16, enabled=autocast): y = layer(x)
    assert max(kept) < 64 * 128
    y.float().sum().backward()
    assert x.grad.dtype == x_type and x.grad.abs().sum() > 0


def test_gradients_over_codes_are_those_of_the_dense_matrix_under_autocast():
    set_seed(0)
    layer = AdaptedLinear(QuantisedLinear(nn.Linear(128, 64, bias=False)), 4)
    nn.init.normal_(layer.lora_B, std=.3)
    dense = nn.Linear(128, 64, bias=False)
    dense.weight.data = layer.dense()
    x = torch.randn(5, 128)
    grads = []
    for m in (layer, dense):
        given = x.clone().requires_grad_()
        with torch.autocast('cpu', torch.bfloat16): y = m(given)
        y.float().square().sum().backward()
        grads.append(given.grad)
    torch.testing.assert_close(*grads, atol=.5, rtol=.05)


@pytest.mark.parametrize('targets', ((), ('q_proj',)))
def test_a_model_in_16_bits_is_merged_in_its_type(targets):
    model = quantise_base(in_bfloat16(base()), 'nf4')
    merge_adapters(learnt(model, targets=targets))
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert torch.isfinite(logits(model)).all()


def test_a_model_of_codes_keeps_its_scales_when_its_type_changes():
    model = quantise_base(base(), 'nf4')
    before = [m.dense() for m in model.modules() if isinstance(m, QuantisedLinear)]
    in_bfloat16(model)
    after = [m.dense() for m in model.modules() if isinstance(m, QuantisedLinear)]
    assert all(map(torch.equal, before, after))
    assert merge_adapters(learnt(model)).blocks[0].attn.q_proj.weight.dtype == torch.bfloat16


def test_weights_larger_than_float16_holds_survive_nf4():
    w = torch.randn(4, 128)
    w[0, 0] = 1e5
    layer = nn.Linear(128, 4)
    layer.weight.data = w
    values = QuantisedLinear(layer).dense()
    assert values[0, 0] == 1e5 and torch.isfinite(values).all()
    layer.weight.data[0, 0] = 65504
    assert QuantisedLinear(layer).scales.dtype == torch.float16


def test_levels_are_numbers_under_another_default_device():
    from llmbook.tune import quantised
    layer = QuantisedLinear(nn.Linear(64, 4))
    values = layer.dense()
    quantised._PAIRS.clear()
    with torch.device('meta'): again = layer.dense()
    assert torch.equal(values, again)


def test_adapters_leave_the_draws_of_gpus_alone(monkeypatch):
    seeded = []
    monkeypatch.setattr(torch.cuda, 'manual_seed_all', seeded.append)
    model = base()
    seeded.clear()
    state = torch.get_rng_state()
    add_adapters(model)
    assert not seeded and torch.equal(torch.get_rng_state(), state)


def test_lengths_of_merged_rows_move_with_the_model():
    model = set_merged(learnt(base(), 'dora'))
    layer = next(iter(adapted_layers(model).values()))
    model.to('meta')
    assert layer.kept_gain.is_meta


# ---- the base that an adapter was trained over is made again

def test_a_plain_model_becomes_the_quantised_base_of_an_adapter(tmp_path):
    for bits in ('int8', 'nf4'):
        model = learnt(quantise_base(base(), bits))
        folder = save_adapters(model, tmp_path/bits)
        opened = load_adapters(base(), folder).eval()
        assert torch.equal(logits(opened), logits(model))
        assert opened.adapters.base == model.adapters.base and opened.base_kind == bits
        again = save_adapters(opened, tmp_path/f'{bits}_again')
        assert torch.equal(logits(load_adapters(base(), again).eval()), logits(model))
        merged = merge_adapters(opened)
        assert not merged.base_kind


@pytest.mark.parametrize('bits', (None, 'nf4'))
@pytest.mark.parametrize('dtype', (torch.bfloat16, torch.float16))
def test_a_float32_model_becomes_the_base_in_16_bits_of_an_adapter(tmp_path, bits, dtype):
    model = base().to(dtype)
    if bits: quantise_base(model, bits)
    learnt(model)
    folder = save_adapters(model, tmp_path)
    opened = load_adapters(base(), folder)
    assert base_fingerprint(opened) == model.adapters.base
    assert next(opened.parameters()).dtype == torch.float32


def test_another_base_stays_as_it_is(tmp_path):
    folder = save_adapters(learnt(quantise_base(base(), 'nf4')), tmp_path/'nf4')
    for other in (base(seed=1), quantise_base(base(), 'int8')):
        before = base_fingerprint(other)
        with pytest.raises(UserError, match='over which'): load_adapters(other, folder)
        assert base_fingerprint(other) == before
    with pytest.raises(UserError, match='in float32'): load_adapters(base().to(torch.bfloat16), folder)
    assert not getattr(load_adapters(base(), folder, other_base=True), 'base_kind', '')


# ---- rows for new tokens

def test_rows_that_train_and_adapters_refuse_one_another(tmp_path):
    folder = save_adapters(learnt(base()), tmp_path)
    model = base()
    train_only_rows(model, [3])
    before = base_fingerprint(model)
    for put in (add_adapters, quantise_base, lambda model: load_adapters(model, folder)):
        with pytest.raises(UserError, match='train_all_rows'): put(model)
    assert base_fingerprint(model) == before and not adapted_layers(model)
    train_all_rows(model)
    add_adapters(model)
    with pytest.raises(UserError, match='train the rows first'): train_only_rows(model, [3])
    assert not model.embed.weight.requires_grad
