"Arguments of a wrong kind are refused by name, before work begins; what is replaced, broken or changed is told."
import ast, importlib, inspect, math
from pathlib import Path
import pytest, torch
import torch.nn.functional as F
from fastai.interpret import ClassificationInterpretation, SegmentationInterpretation
from fastai.metrics import Dice, JaccardCoeff, accuracy, accuracy_multi, foreground_acc, mse, rmse
from torch import nn
import llmbook
from llmbook.base.arguments import checked, plain_kinds
from llmbook.core import UserError
from llmbook.pretrain.run import lm_learner
from llmbook.tokens.loaders import IGNORE, lm_dls
from llmbook.train.loss import LMLoss, plain_head
from llmbook.train.masking import MaskedLoss
from llmbook.train.optim import lm_opt
from test_callbacks import Cut, data, fit, make, quiet


# ---- every public function of training and checkpoints, by its own annotations ----

# what runs for each batch, tensor or loss, where a check would cost what the work does;
# and what the program alone calls
UNCHECKED = {
    'accumulate': ('ClipGrad.report',),
    'learner': ('StopSignals.ask', 'LMLearner.fit'), # `check_fit_options` looks at a fit, whichever method begins it
    'loss': ('token_nats', 'head_cross_entropy', 'head_nats'),
    'masking': ('hashed', 'share', 'choose_tokens', 'choose_spans', 'hide', 'MaskTokens.show_results'),
    'microbatch': ('slices',),
    'optim': ('newton_schulz', 'on_whole', 'check_rate'),
    'interop': ('on_logits',),
    'pace': ('pace_words', 'Pace.look', 'Pace.judge'),
    'precision': ('take_over',),
    'progress': ('progress_words',),
    'telemetry': ('interval_sums', 'Telemetry.aside', 'Telemetry.save'),
    'trackers': ('need',),
    'data_schedules': ('BatchWarmup.size', 'SequenceWarmup.length'),
    'attributes': ('Encoder.encode',),
    'retention': ('Kept.path', 'Kept.mark_best', 'Kept.remove'),
    'identity': ('which_fit',),
    'spikes': ('spike_level', 'Shifted.__init__', 'SpikeGuard.judge'),
    'tensor_files': ('write_part', 'seal', 'sync_folder', 'leave_note', 'collect_notes', 'TensorFolder.shapes',
                     'TensorFolder.read'),
}


def functions_in(module, tree):
    "Yield (name, function) for the public functions, constructors and methods that a module's source defines."
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith('_'):
            yield patched(module, node) if is_patch(node) else (node.name, getattr(module, node.name))
        if isinstance(node, ast.ClassDef) and not node.name.startswith('_'):
            yield from methods_in(module, node)


def is_patch(function):
    return any('patch' in ast.dump(d) for d in function.decorator_list)


def patched(module, function):
    "Return (name, function) of a function that is patched into the class of its first argument."
    name = function.args.args[0].annotation.id
    cls = getattr(module, name)
    return f'{name}.{function.name}', inspect.getattr_static(cls, function.name)


def methods_in(module, node):
    "Yield (name, function) for the constructor and the public methods of a class."
    members = vars(getattr(module, node.name))
    for method in node.body:
        if not isinstance(method, ast.FunctionDef): continue
        if method.name == '__init__' or not method.name.startswith('_'):
            yield f'{node.name}.{method.name}', members[method.name]


def checked_functions(folder):
    "Yield (name, function) for the functions of a folder that are to check their arguments."
    package = Path(llmbook.__file__).parent
    for file in sorted((package/folder).glob('*.py')):
        module = importlib.import_module(f'llmbook.{folder}.{file.stem}')
        tree = ast.parse(file.read_text(encoding='utf-8'))
        unchecked = UNCHECKED.get(file.stem, ())
        for name, f in functions_in(module, tree):
            if callable(f) and name not in unchecked: yield f'{folder}.{file.stem}.{name}', f


def parameters():
    "Yield (function, parameter) for what has a plain kind."
    found = {'tokens.loaders.lm_dls': lm_dls, 'pretrain.run.lm_learner': lm_learner}
    for folder in ('train', 'checkpoint'): found.update(checked_functions(folder))
    for name, f in found.items():
        for p in inspect.signature(f).parameters.values():
            if plain_kinds(p.annotation): yield pytest.param(f, p.name, id=f'{name}-{p.name}')


class Wrong:
    "A value of no plain kind."


@pytest.mark.parametrize('f,name', list(parameters()))
def test_a_wrong_kind_is_refused_by_name(f, name):
    with pytest.raises(UserError, match=rf'^expected {name} to be .*, got .*: give one'): f(**{name: Wrong()})


@checked
def of_plain_kinds(whole:int=1, number:float=1., switch:bool=True, text:str|None=None): return whole, number


WRONG_KINDS = dict(whole=(True, 2.), number=(True, torch.ones(2)), switch=(1,), text=(3,))


def test_kinds_are_those_of_a_reader():
    f = of_plain_kinds
    f(whole=3, number=3, switch=False)
    f(number=torch.tensor(.5))
    f(text=None)
    for name, values in WRONG_KINDS.items():
        for wrong in values:
            with pytest.raises(UserError, match=f'expected {name} to be'): f(**{name: wrong})
    with pytest.raises(TypeError, match='unexpected keyword'): f(other=1)


@pytest.mark.parametrize('options', [
    dict(bs=2.5), dict(bs=True), dict(seed='x'), dict(seq_len='32'), dict(steps=1.), dict(document_mask='yes')])
def test_loaders_take_no_wrong_kind(data, options):
    with pytest.raises(UserError, match=f'expected {next(iter(options))} to be'):
        lm_dls(data, **{**dict(bs=4, seq_len=32, steps=4, device='cpu'), **options})


@pytest.mark.parametrize('options', [
    dict(muon='yes'), dict(lr='x'), dict(lr=math.nan), dict(lr=slice(1e-3, 'x')), dict(wd='x'), dict(clip='1'),
    dict(accumulate=2.), dict(micro_batch=1.5), dict(compile='no'), dict(seed=1.5), dict(precision=16), dict(chunk=.5),
    dict(label=3), dict(cbs=3)])
def test_a_learner_takes_no_wrong_kind(data, tmp_path, options):
    cbs = [options.pop('cbs')] if 'cbs' in options else []
    with pytest.raises(UserError, match='^expected .*got'): make(data, tmp_path, *cbs, **options)


# ---- fits ----

BAD_FITS = [
    ('fit', (1.5,), {}),
    ('fit', ('1',), {}),
    ('fit', (-1,), {}),
    ('fit', (True,), {}),
    ('fit', (1,), dict(lr='x')),
    ('fit', (1,), dict(lr=-1.)),
    ('fit', (1,), dict(wd='x')),
    ('fit', (1,), dict(reset_opt='no')),
    ('fit', (1,), dict(cbs=3)),
    ('fit_one_cycle', (1.5,), {}),
    ('fit_one_cycle', (1,), dict(lr_max='x')),
    ('fit_one_cycle', (1,), dict(pct_start='x')),
    ('fit_flat_cos', (1,), dict(lr='x')),
    ('fit_sgdr', (1, 1.5), {}),
    ('fine_tune', (1.5,), {}),
    ('fine_tune', (1,), dict(base_lr='x')),
    ('fine_tune', (1,), dict(freeze_epochs=.5)),
    ('fit_wsd', (1.5,), {}),
    ('fit_wsd', (1,), dict(lr_max='x')),
    ('fit_cosine', (1,), dict(warmup='x')),
    ('freeze_to', ('x',), {}),
    ('validate', (5,), {}),
    ('get_preds', (2,), {}),
    ('show_results', (), dict(max_n='x')),
    ('top_losses', (0,), {}),
    ('top_losses', (), dict(ds_idx=9)),
]


@pytest.fixture(scope='module')
def untouched(data, tmp_path_factory):
    learn = make(data, tmp_path_factory.mktemp('untouched'), every=None)
    return learn, {k: v.clone() for k, v in learn.model.state_dict().items()}


@pytest.mark.parametrize('method,args,options', BAD_FITS)
def test_a_wrong_fit_is_refused_before_a_step(untouched, method, args, options):
    learn, weights = untouched
    with quiet(learn), pytest.raises(UserError, match='expected .*got'): getattr(learn, method)(*args, **options)
    assert learn.train_iter == 0
    for name, value in learn.model.state_dict().items(): assert torch.equal(value, weights[name])


def test_no_epochs_are_none(untouched):
    learn, _ = untouched
    with quiet(learn): learn.fit(0)
    assert learn.train_iter == 0


# ---- fastai's tools for other tasks ----

@pytest.mark.parametrize('metric', [accuracy_multi, foreground_acc, mse, rmse, Dice(), JaccardCoeff()])
def test_metrics_of_other_tasks_are_refused_at_once(data, tmp_path, metric):
    with pytest.raises(UserError, match='one token out of many, got .*: use accuracy|keep all scores'):
        make(data, tmp_path, every=None, metrics=metric)


def test_a_metric_that_fails_says_what_it_was_given(data, tmp_path):
    def of_words(preds, targs): return preds.words
    learn = make(data, tmp_path, every=None, metrics=[accuracy, of_words])
    message = r'a metric of scores \(\d+, \d+\) and targets \(\d+,\), got of_words, which fails'
    with pytest.raises(UserError, match=message): fit(learn, 1)


@pytest.mark.parametrize('cls', [ClassificationInterpretation, SegmentationInterpretation])
def test_interpretations_of_classes_name_what_to_use(untouched, cls):
    with pytest.raises(UserError, match=f'for {cls.__name__}, got one of .* tokens: use learn.top_losses'):
        cls.from_learner(untouched[0])


# ---- heads ----

class Capped(nn.Linear):
    "A linear head that bounds its logits."
    def forward(self, x): return 5 * torch.tanh(super().forward(x) / 5)


class Adapted(nn.Module):
    "A frozen head and a trained addition, which shows the frozen weight as adapters do."
    def __init__(self, head):
        super().__init__()
        self.base, self.add = head, nn.Linear(head.in_features, head.out_features, bias=False)
    @property
    def weight(self): return self.base.weight
    @property
    def bias(self): return self.base.bias
    def forward(self, x): return self.base(x) + self.add(x)


def heads(D, V):
    layers = nn.Sequential(nn.Linear(D, D), nn.Tanh(), nn.Linear(D, V))
    return dict(capped=Capped(D, V), adapted=Adapted(nn.Linear(D, V)), layers=layers)


HEADS = ['capped', 'adapted', 'layers']


def head_and_inputs(name):
    "Return a head, activations of 2 rows of 7 tokens, and their targets, three of which don't count."
    torch.manual_seed(0)
    head = heads(8, 11)[name]
    h = (4 * torch.randn(2, 7, 8)).requires_grad_()
    y = torch.randint(0, 11, (2, 7))
    y[0, :3] = IGNORE
    return head, h, y


def naive_loss(head, h, y, reduction='mean'):
    logits = head(h).flatten(0, 1)
    return F.cross_entropy(logits, y.flatten(), ignore_index=IGNORE, reduction=reduction)


@pytest.mark.parametrize('name', HEADS)
@pytest.mark.parametrize('chunk', [3, 64])
def test_a_head_with_other_parts_is_used_as_a_whole(name, chunk):
    head, h, y = head_and_inputs(name)
    assert plain_head(head) is None
    ours = LMLoss(head, chunk)(h, y)
    theirs = naive_loss(head, h, y)
    torch.testing.assert_close(ours, theirs)
    inputs = [h, *head.parameters()]
    our_gradients = torch.autograd.grad(ours, inputs)
    their_gradients = torch.autograd.grad(theirs, inputs)
    for a, b in zip(our_gradients, their_gradients): torch.testing.assert_close(a, b)


@pytest.mark.parametrize('name', HEADS)
@pytest.mark.parametrize('chunk', [3, 64])
def test_such_a_head_gives_the_loss_of_each_token_and_the_likeliest(name, chunk):
    head, h, y = head_and_inputs(name)
    loss = LMLoss(head, chunk)
    loss.reduction = 'none'
    each = naive_loss(head, h, y, reduction='none')
    torch.testing.assert_close(loss(h, y).flatten(), each)
    assert torch.equal(loss.decodes(h), head(h).argmax(-1))


@pytest.mark.parametrize('name', HEADS)
@pytest.mark.parametrize('chunk', [3, 64])
def test_such_a_head_loses_nothing_without_targets(name, chunk):
    head, h, y = head_and_inputs(name)
    nothing = MaskedLoss(head, chunk)(h, torch.full_like(y, IGNORE))
    assert nothing.item() == 0
    assert nothing.requires_grad


@pytest.fixture
def replaced(data, tmp_path):
    "Return a function that makes a learner whose model got another head afterwards."
    def build(name):
        learn = make(data, tmp_path, every=None)
        torch.manual_seed(1)
        learn.model.head = heads(32, learn.model.config.vocab_size)[name]
        return learn
    return build


@pytest.mark.parametrize('name', HEADS)
def test_a_learner_whose_head_was_replaced_is_refused(replaced, name):
    learn = replaced(name)
    with pytest.raises(UserError, match="the model's was replaced"): fit(learn, 1)
    with quiet(learn), pytest.raises(UserError, match="the model's was replaced"): learn.validate()


@pytest.mark.parametrize('name', HEADS)
def test_a_model_with_such_a_head_trains_all_of_it(replaced, name):
    first = replaced(name)
    model = first.model
    before = {k: v.clone() for k, v in model.head.named_parameters()}
    learn = lm_learner(first.dls, model, lr=1e-2, metrics=accuracy)
    fit(learn, 1)
    for k, v in model.head.named_parameters(): assert not torch.equal(v, before[k]), k
    x, y = next(iter(learn.dls.valid))
    model.eval()
    with torch.no_grad(): by_hand = naive_loss(model.head, model(x), y)
    torch.testing.assert_close(learn.loss_func(model(x), y).detach(), by_hand)
    with learn.no_bar(): scores, _ = learn.get_preds()
    assert scores.shape[-1] == model.config.vocab_size


def test_muon_leaves_a_head_of_several_layers():
    model = nn.Module()
    model.body, model.head = nn.Linear(8, 8), heads(8, 11)['layers']
    opt = lm_opt(model)(list(model.parameters()), lr=1e-3)
    muon = []
    for group in opt.opt.param_groups:
        if group['kind'] == 'muon': muon += group['params']
    assert len(muon) == 1
    assert muon[0] is model.body.weight


# ---- what a run is resumed with ----

def test_another_seed_of_the_weights_is_told(data, tmp_path):
    fit(make(data, tmp_path, Cut(3), seed=1), 2)
    other = make(data, tmp_path, seed=2)
    with pytest.raises(UserError, match=r'differs in model_seed \(1 there, 2 here\)'): fit(other, 2)
    learn = make(data, tmp_path, seed=1)
    fit(learn, 2)
    assert learn.train_iter == 8


def test_another_z_loss_or_epsilon_is_told(data, tmp_path):
    def cut_run(**options):
        learn = make(data, tmp_path, Cut(3), **options)
        learn.loss_func.z_loss = 1e-4
        return learn
    fit(cut_run(), 2)
    with pytest.raises(UserError, match=r'z_loss \(0.0001 there, 0.0 here\)'): fit(make(data, tmp_path), 2)
    other = cut_run()
    other.opt_func = lm_opt(other.model, eps=1e-6)
    with pytest.raises(UserError, match='differs in eps'): fit(other, 2)


# ---- exports ----

def test_a_learner_of_broken_weights_is_not_exported(data, tmp_path):
    learn = make(data, tmp_path, every=None)
    with torch.no_grad(): learn.model.embed.weight[0, 0] = math.inf
    with pytest.raises(UserError, match='expected finite weights'): learn.export('x.pkl')
    assert not (tmp_path/'x.pkl').exists()


def test_a_slice_of_rates_is_spread_over_the_layers(data, tmp_path):
    def split(m): return [list(m.embed.parameters()), list(m.blocks.parameters())]
    learn = make(data, tmp_path, every=None, lr=slice(1e-3, 1e-2), splitter=split)
    fit(learn, 1)
    assert [h['lr'] for h in learn.opt.hypers] == pytest.approx([1e-3, 1e-2])
