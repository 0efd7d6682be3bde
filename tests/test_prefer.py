"Preferences: what is read, the losses against TRL's, shared prompts, the reference, runs that resume, what is refused."
import copy, json, math
from collections import defaultdict
from types import SimpleNamespace
import numpy as np
import pytest, torch
from fastai.callback.core import Callback
from torch.nn import functional as F
from llmbook.core import UserError, import_transformers, set_seed
from llmbook.model.config import ModelConfig
from llmbook.model.hf_wrap import as_lm
from llmbook.model.transformer import Transformer
from llmbook.prefer.losses import preference_loss
from llmbook.prefer.objective import PreferenceLoss
from llmbook.prefer.preferences import judged_chats, pair_of, prepare_preferences, rated_chats
from llmbook.prefer.reference import adapters_off, fill_logps, reference_logps
from llmbook.prefer.run import prefer, preference_learner, preferences_for
from llmbook.prefer.shared import PreferenceLoader, answer_logps, preference_dls
from llmbook.prefer.watch import PreferenceWatch, preference_warnings
from llmbook.tokens.tokenizer import train_tokenizer
from llmbook.tune.adapters import adapted_layers, add_adapters
from llmbook.tune.chat import ChatFormat
from llmbook.tune.sft import set_method

WORDS = 'red green blue one two three four five'.split()
RECORDS = []
for i in range(40):
    word = WORDS[i % 8]
    RECORDS.append(dict(prompt=f'say {word} {i}', chosen=f'{word} is fine', rejected=f'no {word} at all for you'))


@pytest.fixture(scope='module')
def tok(): return train_tokenizer([f'{r["prompt"]} {r["chosen"]} {r["rejected"]}' for r in RECORDS], 330)


@pytest.fixture(scope='module')
def fmt(tok): return ChatFormat(tok)


@pytest.fixture(scope='module')
def data(fmt): return prepare_preferences(RECORDS, fmt, 64, valid=.2)


def small(tok, **options):
    set_seed(0)
    sizes = dict(vocab_size=tok.get_vocab_size(), n_layer=2, d_model=32, n_head=2, n_kv_head=1, context=64)
    return Transformer(ModelConfig(**(sizes | options)))


def of_transformers(tok, kind):
    tf = import_transformers()
    tf.utils.logging.set_verbosity_error()
    set_seed(0)
    common = dict(vocab_size=tok.get_vocab_size(), hidden_size=32, num_hidden_layers=2)
    if kind == 'mamba': return tf.MambaForCausalLM(tf.MambaConfig(**common, state_size=4))
    sizes = dict(num_attention_heads=2, intermediate_size=64, max_position_embeddings=64)
    return tf.GPTNeoXForCausalLM(tf.GPTNeoXConfig(**common, **sizes))


# ---- losses

@pytest.fixture
def numbers():
    "Log-probabilities, the reference's, lengths and labels of six comparisons."
    r = np.random.default_rng(0)
    logps = torch.from_numpy(-r.uniform(1, 30, (6, 2))).float()
    ref = logps + torch.from_numpy(r.normal(0, 5, (6, 2))).float()
    n = torch.from_numpy(r.integers(3, 12, (6, 2)))
    good = torch.tensor([True, False, True, True, False, False])
    return logps, ref, n, good


def of_trl(name):
    "Return a module of TRL; skip the test where it is not installed."
    import_transformers()
    return pytest.importorskip(f'trl.{name}', reason='TRL is not installed')


def trl_trainer(**options):
    "Return what TRL's trainers ask of themselves when they compute a loss."
    accelerator = SimpleNamespace(device=torch.device('cpu'), gather=lambda x: x, gather_for_metrics=lambda x: x)
    usual = dict(model=SimpleNamespace(training=True), accelerator=accelerator, ld_alpha=None, beta=.1,
                 precompute_ref_logps=True, f_divergence_type='reverse_kl', loss_weights=[1.], use_weighting=False,
                 aux_loss_enabled=False, label_smoothing=0., _metrics=defaultdict(lambda: defaultdict(list)),
                 _total_train_tokens=0, _tp_size=1)
    return SimpleNamespace(**(usual | options))


def spread(logps, n):
    "Return (rows, T) log-probabilities of tokens that add up to these, and (rows, T + 1) which tokens are answers."
    longest = int(n.max())
    mask = torch.zeros(len(n), longest + 1, dtype=torch.long)
    tokens = torch.zeros(len(n), longest)
    for row, count in enumerate(n.tolist()):
        mask[row, 1:count + 1] = 1
        tokens[row, :count] = logps[row] / count
    return tokens, mask


def outputs_of(tokens):
    like = dict(log_probs=tokens, entropy=tokens, mean_logits=tokens, is_top1=tokens > 0)
    return lambda **kwargs: SimpleNamespace(**like)


def trl_dpo(kind, logps, ref, n, **options):
    trl = of_trl('trainer.dpo_trainer')
    tokens, mask = spread(logps.T.flatten(), n.T.flatten())
    inputs = dict(input_ids=mask, attention_mask=torch.ones_like(mask), completion_mask=mask,
                  ref_chosen_logps=ref[:, 0], ref_rejected_logps=ref[:, 1])
    trainer = trl_trainer(loss_types=[kind], **options)
    return trl.DPOTrainer._compute_loss(trainer, outputs_of(tokens), inputs, False)


@pytest.mark.parametrize('kind, theirs', [('dpo', 'sigmoid'), ('ipo', 'ipo')])
@pytest.mark.parametrize('beta', [.1, .5])
def test_losses_of_pairs_are_those_of_trl(numbers, kind, theirs, beta):
    logps, ref, n, _ = numbers
    n = n.clamp(max=11)
    expected = trl_dpo(theirs, logps, ref, n, beta=beta)
    found = preference_loss(kind, logps, ref, n, beta=beta).mean()
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_kto_is_that_of_trl(numbers):
    trl = of_trl('trainer.kto_trainer')
    logps, ref, n, good = numbers
    tokens, mask = spread(logps[:, 0], n[:, 0])
    inputs = dict(input_ids=mask, attention_mask=torch.ones_like(mask), completion_mask=mask, label=good,
                  ref_logps=ref[:, 0], ref_KL_logps=ref[:, 1])
    trainer = trl_trainer(loss_type='kto', calculate_KL=True, desirable_weight=1.2, undesirable_weight=.7,
                          _compute_kl_logps=lambda model, batch: logps[:, 1])
    expected = trl.KTOTrainer._compute_loss(trainer, outputs_of(tokens), inputs, False)
    found = preference_loss('kto', logps, ref, n, good, good_weight=1.2, bad_weight=.7).mean()
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_orpo_is_that_of_trl(numbers):
    trl = of_trl('experimental.orpo.orpo_trainer')
    logps, ref, n, _ = numbers
    mean = logps / n
    ratio, *_ = trl.ORPOTrainer.odds_ratio_loss(trl_trainer(), mean[:, 0], mean[:, 1])
    found = preference_loss('orpo', logps, ref, n)
    assert torch.allclose(found, -mean[:, 0] - ratio, rtol=1e-5)


def test_losses_by_hand():
    logps, ref, n = torch.tensor([[-10., -30.]]), torch.tensor([[-20., -30.]]), torch.tensor([[5, 6]])
    good = torch.tensor([True])
    sigmoid_of_1 = 1 / (1 + math.exp(-1))
    assert preference_loss('dpo', logps, ref, n).item() == pytest.approx(-math.log(sigmoid_of_1), rel=1e-5)
    smooth = -.9 * math.log(sigmoid_of_1) - .1 * math.log(1 - sigmoid_of_1)
    assert preference_loss('dpo', logps, ref, n, smoothing=.1).item() == pytest.approx(smooth, rel=1e-5)
    assert preference_loss('ipo', logps, ref, n).item() == pytest.approx((2 - 5) ** 2, rel=1e-5)
    assert preference_loss('kto', logps, ref, n, good).item() == pytest.approx(1 - sigmoid_of_1, rel=1e-5)
    odds = [math.exp(-2) / (1 - math.exp(-2)), math.exp(-5) / (1 - math.exp(-5))]
    orpo = 2 + .1 * math.log(1 + odds[1] / odds[0])
    assert preference_loss('orpo', logps, ref, n).item() == pytest.approx(orpo, rel=1e-5)


# ---- prompts that are shared

def alone(model, row, a):
    "Return the log-probability of an answer in a text of its own, by torch's functions."
    ids = torch.from_numpy(np.concatenate([row.prompt, row.answers[a]])).long()
    logits = model.logits(model(ids[None, :-1]))[0, len(row.prompt) - 1:]
    return -F.cross_entropy(logits, ids[len(row.prompt):], reduction='sum')


def both_ways(model, rows):
    "Return (P, 2) log-probabilities with shared prompts, and each answer alone."
    x, docs, which, targets, answer, *_ = PreferenceLoader(rows, len(rows), shuffle=False).batch(0)
    shared, _ = answer_logps(model.head, model(x, docs), which, targets, answer, chunk=16)
    members = which[which >= 0].tolist()
    apart = torch.stack([torch.stack([alone(model, rows[i], a) for a in (0, 1)]) for i in members])
    return shared, apart


def dpo_gradient(model, logps):
    loss = -F.logsigmoid(logps[:, 0] - logps[:, 1]).mean()
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, trained, allow_unused=False)])


FAMILIES = [dict(), dict(family='gpt2', n_kv_head=2), dict(family='llama'), dict(family='mistral', window=5),
            dict(tie_embeddings=False)]


@pytest.mark.parametrize('options', FAMILIES, ids=str)
def test_shared_prompts_give_what_each_answer_gives_alone(tok, data, options):
    model = small(tok, **options)
    shared, apart = both_ways(model, data.rows['valid'])
    assert torch.allclose(shared, apart, atol=1e-5, rtol=1e-5)
    assert torch.allclose(dpo_gradient(model, shared), dpo_gradient(model, apart), atol=1e-5)


@pytest.mark.parametrize('kind', ['gpt_neox', 'mamba'])
def test_shared_prompts_of_models_of_transformers(tok, data, kind):
    "Mamba cannot keep texts apart: its branches are computed one by one."
    model = as_lm(of_transformers(tok, kind)).eval()
    shared, apart = both_ways(model, data.rows['valid'][:4])
    assert torch.allclose(shared, apart, atol=1e-4)
    assert torch.allclose(dpo_gradient(model, shared), dpo_gradient(model, apart), atol=1e-5)


def test_shared_prompts_of_adapters(tok, data):
    model = add_adapters(small(tok), r=4)
    for layer in adapted_layers(model).values(): torch.nn.init.normal_(layer.lora_B, std=.1)
    shared, apart = both_ways(model, data.rows['valid'])
    assert torch.allclose(dpo_gradient(model, shared), dpo_gradient(model, apart), atol=1e-5)


def test_a_row_may_be_longer_than_the_context(tok, fmt):
    long = [dict(prompt=f'say {i} ' * 5, chosen='fine ' * 15, rejected='no ' * 15) for i in range(20)]
    rows = prepare_preferences(long, fmt, 64, valid=.3).rows['train']
    context = max(row.longest for row in rows)
    model = small(tok, context=context)
    assert max(map(len, rows)) > context
    shared, apart = both_ways(model, rows)
    assert torch.allclose(shared, apart, atol=1e-4)
    shorter = small(tok, context=context - 1)
    with pytest.raises(UserError, match=f'at most {context - 1} tokens'): both_ways(shorter, rows)


# ---- the reference

@pytest.mark.parametrize('method', ['full', 'lora', 'pissa', 'dora'])
def test_the_first_loss_is_ln_2(tok, fmt, data, method):
    "trl#1962, trl#6443: the cached reference is not used, or comes from the trained model."
    model = set_method(small(tok), method, **({} if method == 'full' else dict(r=4)))
    learn = preference_learner(model, data, fmt, samples=0, device='cpu')
    with learn.no_bar(): learn.fit(1)
    assert learn.recorder.losses[0].item() == pytest.approx(math.log(2), abs=1e-5)


def test_the_cached_reference_is_the_live_one_in_every_batch(tok, data):
    "trl#7083: cached values come out of order."
    model = small(tok)
    rows = data.rows['train']
    ref = fill_logps(model, rows, torch.full((len(rows), 2), torch.nan), bs=5)
    dls = preference_dls(data.rows, tok, bs=7, device='cpu', ref=dict(train=ref))
    for i in range(2 * len(dls.train)):
        x, docs, which, targets, answer, cached, _ = dls.train.batch(i)
        live, _ = answer_logps(model.head, model(x, docs), which, targets, answer)
        assert torch.allclose(live, cached[which >= 0], atol=1e-4)


@pytest.mark.parametrize('kind', ['lora', 'dora', 'pissa', 'rslora'])
def test_adapters_off_is_the_live_reference_in_the_middle_of_training(tok, fmt, data, kind):
    model = set_method(small(tok), kind, r=4)
    learn = preference_learner(model, data, fmt, lr=1e-2, samples=0, device='cpu')
    with learn.no_bar(): learn.fit(1)
    rows = data.rows['train']
    def live(): return fill_logps(model, rows, torch.full((len(rows), 2), torch.nan))
    assert not torch.allclose(live(), learn.reference['train'], atol=.01)
    with adapters_off(model): assert torch.allclose(live(), learn.reference['train'], atol=1e-4)
    assert all(not layer.merged for layer in adapted_layers(model).values())


def test_a_stale_reference_is_refused(tok, fmt, data, tmp_path):
    path = tmp_path/'reference.safetensors'
    reference_logps(small(tok), fmt, data.rows, path)
    in_another_order = dict(data.rows, train=data.rows['train'][::-1])
    with pytest.raises(UserError, match='rows of train'): reference_logps(small(tok), fmt, in_another_order, path)
    with pytest.raises(UserError, match='weights'): reference_logps(small(tok, n_layer=1), fmt, data.rows, path)
    other = ChatFormat(fmt.tok, fmt.template, dict(today='monday'))
    with pytest.raises(UserError, match='template'): reference_logps(small(tok), other, data.rows, path)
    with pytest.raises(UserError, match='precision'):
        reference_logps(small(tok), fmt, data.rows, path, precision='bf16')


def test_a_reference_that_was_stopped_resumes_with_the_same_bits(tok, fmt, data, tmp_path):
    path = tmp_path/'reference.safetensors'
    whole = reference_logps(small(tok), fmt, data.rows)
    rows = data.rows['train']
    found = torch.full((len(rows), 2), torch.nan)
    seen = []
    def stop():
        seen.append(1)
        if len(seen) == 2: raise Stop
    with pytest.raises(Stop): fill_logps(small(tok), rows, found, bs=4, after_batch=stop)
    assert 0 < torch.isnan(found).sum() < found.numel()
    fill_logps(small(tok), rows, found, bs=4)
    again = fill_logps(small(tok), rows, torch.full((len(rows), 2), torch.nan), bs=4)
    assert torch.equal(found, again)
    assert torch.allclose(found, whole['train'], atol=1e-4)


# ---- runs

class Stop(Exception): pass


class StopAt(Callback):
    order, run_valid = 90, False
    def __init__(self, step): self.step = step
    def after_batch(self):
        if self.learn.train_iter == self.step: raise Stop


def check_same_weights(one, other):
    found = dict(other.named_parameters())
    for name, p in one.named_parameters(): assert torch.equal(p, found[name]), name


RUNS = [('dpo', 'full', 5), ('dpo', 'lora', 11), ('kto', 'lora', 6), ('ipo', 'full', 3), ('orpo', 'dora', 9)]


@pytest.mark.parametrize('loss, method, step', RUNS)
def test_a_run_that_was_cut_ends_in_the_same_bits(tok, tmp_path, loss, method, step):
    "accelerate#4071 for preferences: a resume in a later epoch repeats or skips data, or computes another reference."
    options = dict(loss=loss, method=method, steps=12, lr=1e-3, bs=4, device='cpu', samples=2, max_new_tokens=8)
    whole = prefer(small(tok), tok, RECORDS, tmp_path/'whole', **options)
    cut = tmp_path/'cut'
    with pytest.raises(Stop): prefer(small(tok), tok, RECORDS, cut, cbs=[StopAt(step)], **options)
    resumed = prefer(small(tok), tok, RECORDS, cut, **options)
    check_same_weights(whole.model, resumed.model)
    assert whole.preference_watch.looks == resumed.preference_watch.looks
    steps = [look['step'] for look in json.loads((cut/'looks.json').read_text())]
    assert steps == [0, 3, 6, 9, 12]


def test_a_resume_opens_the_reference(tok, tmp_path, monkeypatch):
    options = dict(method='full', steps=4, lr=1e-3, bs=4, device='cpu', samples=0)
    with pytest.raises(Stop): prefer(small(tok), tok, RECORDS, tmp_path, cbs=[StopAt(2)], **options)
    from llmbook.prefer import reference
    def refuse(*args, **kwargs): raise AssertionError('computed again')
    monkeypatch.setattr(reference, 'fill_logps', refuse)
    prefer(small(tok), tok, RECORDS, tmp_path, **options)
