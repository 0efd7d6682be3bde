"Preferences: what is read, the losses against TRL's, shared prompts, the reference, runs that resume, what is refused."
import copy, json, math
from collections import defaultdict
from types import SimpleNamespace
import numpy as np
import pytest, torch
from fastai.callback.core import Callback
from torch.nn import functional as F
from llmbook.commands.prefer import llmbook_prefer
from llmbook.core import UserError, import_transformers, set_seed
from llmbook.distributed.launch import launch
from llmbook.model.config import ModelConfig
from llmbook.model.hf import save_pretrained
from llmbook.model.hf_wrap import as_lm
from llmbook.model.transformer import Transformer
from llmbook.parallel.learner import parallel
from llmbook.prefer.losses import preference_loss
from llmbook.prefer.objective import PreferenceLoss
from llmbook.prefer.preferences import judged_chats, preference_pair, prepare_preferences, rated_chats
from llmbook.prefer.reference import adapters_off, fill_logps, reference_logps
from llmbook.prefer.reward_model import RewardLoss, RewardModel, open_reward, score_answers, train_reward
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
    own, other = logps.unbind(1)
    ref_own, ref_other = ref.unbind(1)
    tokens, mask = spread(own, n[:, 0])
    everywhere = torch.ones_like(mask)
    inputs = dict(input_ids=mask, attention_mask=everywhere, completion_mask=mask)
    inputs |= dict(label=good, ref_logps=ref_own, ref_KL_logps=ref_other)
    def other_logps(model, batch): return other
    options = dict(desirable_weight=1.2, undesirable_weight=.7, _compute_kl_logps=other_logps)
    trainer = trl_trainer(loss_type='kto', calculate_KL=True, **options)
    expected = trl.KTOTrainer._compute_loss(trainer, outputs_of(tokens), inputs, False)
    losses = preference_loss('kto', logps, ref, n, good, good_weight=1.2, bad_weight=.7)
    found = losses.mean()
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_orpo_is_that_of_trl(numbers):
    trl = of_trl('experimental.orpo.orpo_trainer')
    logps, ref, n, _ = numbers
    mean = logps / n
    ratio, *_ = trl.ORPOTrainer.odds_ratio_loss(trl_trainer(), mean[:, 0], mean[:, 1])
    found = preference_loss('orpo', logps, ref, n)
    assert torch.allclose(found, -mean[:, 0] - ratio, rtol=1e-5)


@pytest.fixture
def one_pair():
    "Log-probabilities, the reference's and lengths of one pair; its margin under DPO is .1 * (10 - 0) = 1."
    logps = torch.tensor([[-10., -30.]])
    ref = torch.tensor([[-20., -30.]])
    n = torch.tensor([[5, 6]])
    return logps, ref, n


def sigmoid(x): return 1 / (1 + math.exp(-x))


def test_dpo_by_hand(one_pair):
    found = preference_loss('dpo', *one_pair).item()
    assert found == pytest.approx(-math.log(sigmoid(1)), rel=1e-5)


def test_dpo_with_doubt_by_hand(one_pair):
    right = -math.log(sigmoid(1))
    wrong = -math.log(sigmoid(-1))
    found = preference_loss('dpo', *one_pair, smoothing=.1).item()
    assert found == pytest.approx(.9 * right + .1 * wrong, rel=1e-5)


def test_ipo_by_hand(one_pair):
    "Gain 10 nats over 5 tokens for the better answer and none for the worse; the goal is 1 / (2 * .1)."
    found = preference_loss('ipo', *one_pair).item()
    assert found == pytest.approx((2 - 5) ** 2, rel=1e-5)


def test_kto_by_hand(one_pair):
    "Leave the other answer where it was, so that the average is 0."
    good = torch.tensor([True])
    found = preference_loss('kto', *one_pair, good).item()
    assert found == pytest.approx(1 - sigmoid(1), rel=1e-5)


def test_orpo_by_hand(one_pair):
    "Pay 10 / 5 nats for a token of the better answer, 30 / 6 for one of the worse."
    better = math.exp(-2)
    worse = math.exp(-5)
    ratio = (worse / (1 - worse)) / (better / (1 - better))
    found = preference_loss('orpo', *one_pair).item()
    assert found == pytest.approx(2 + .1 * math.log(1 + ratio), rel=1e-5)


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
    long = []
    for i in range(20): long.append(dict(prompt=f'say {i} ' * 5, chosen='fine ' * 15, rejected='no ' * 15))
    data = prepare_preferences(long, fmt, 64, valid=.3)
    rows = data.rows['train']
    context = max(row.longest for row in rows)
    longest_row = max(len(row) for row in rows)
    assert longest_row > context
    model = small(tok, context=context)
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
    ref = fill_logps(model, rows, bs=5)
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
    cached = learn.reference['train']
    trained = fill_logps(model, rows)
    assert not torch.allclose(trained, cached, atol=.01)
    with adapters_off(model): live = fill_logps(model, rows)
    assert torch.allclose(live, cached, atol=1e-4)
    for layer in adapted_layers(model).values(): assert not layer.merged


def test_a_stale_reference_is_refused(tok, fmt, data, tmp_path):
    path = tmp_path/'reference.safetensors'
    same = dict(model=small(tok), fmt=fmt, rows=data.rows, path=path)
    reference_logps(**same)
    other_order = data.rows['train'][::-1]
    other_template = ChatFormat(fmt.tok, fmt.template, dict(today='monday'))
    changes = {
        'rows of train': dict(rows=dict(data.rows, train=other_order)),
        'weights': dict(model=small(tok, n_layer=1)),
        'template': dict(fmt=other_template),
        'precision': dict(precision='bf16'),
    }
    for words, change in changes.items():
        options = same | change
        with pytest.raises(UserError, match=words): reference_logps(**options)


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
    again = fill_logps(small(tok), rows, bs=4)
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
    def run(folder, **more): return prefer(small(tok), tok, RECORDS, tmp_path/folder, **options, **more)
    whole = run('whole')
    with pytest.raises(Stop): run('cut', cbs=[StopAt(step)])
    resumed = run('cut')
    check_same_weights(whole.model, resumed.model)
    assert whole.preference_watch.looks == resumed.preference_watch.looks
    written = json.loads((tmp_path/'cut'/'looks.json').read_text())
    steps = [look['step'] for look in written]
    assert steps == [0, 3, 6, 9, 12]


def test_a_resume_opens_the_reference(tok, tmp_path, monkeypatch):
    options = dict(method='full', steps=4, lr=1e-3, bs=4, device='cpu', samples=0)
    with pytest.raises(Stop): prefer(small(tok), tok, RECORDS, tmp_path, cbs=[StopAt(2)], **options)
    from llmbook.prefer import reference
    def refuse(*args, **kwargs): raise AssertionError('computed again')
    monkeypatch.setattr(reference, 'fill_logps', refuse)
    prefer(small(tok), tok, RECORDS, tmp_path, **options)


def test_other_pairs_loss_or_model_are_refused(tok, tmp_path):
    options = dict(method='lora', steps=2, lr=1e-3, bs=4, device='cpu', samples=0)
    prefer(small(tok), tok, RECORDS, tmp_path, **options)
    changed = [dict(r, chosen='red!') if i == 5 else r for i, r in enumerate(RECORDS)]
    with pytest.raises(UserError, match='rows of'): prefer(small(tok), tok, changed, tmp_path, **options)
    with pytest.raises(UserError, match='loss'): prefer(small(tok), tok, RECORDS, tmp_path, **options, loss='ipo')
    with pytest.raises(UserError, match='weights'): prefer(small(tok, n_layer=1), tok, RECORDS, tmp_path, **options)


def test_slices_of_a_batch_weigh_by_pairs(tok, fmt, data):
    def trained(micro_batch):
        learn = preference_learner(set_method(small(tok), 'full'), data, fmt, lr=1e-3, bs=8, samples=0, device='cpu',
                                   micro_batch=micro_batch)
        with learn.no_bar(): learn.fit(1)
        return torch.cat([p.detach().flatten() for p in learn.model.parameters()])

    start = torch.cat([p.detach().flatten() for p in small(tok).parameters()])
    whole, sliced = trained(None), trained(1)
    assert (whole - sliced).norm() < .02 * (whole - start).norm()


# ---- several ranks

def weights_after(records, losses):
    "Train with each loss on all ranks together; return the weights and the training accuracy of each."
    tok = train_tokenizer([f'{r["prompt"]} {r["chosen"]} {r["rejected"]}' for r in records], 330)
    fmt = ChatFormat(tok)
    found = {}
    for loss in losses:
        data = preferences_for(loss, records, fmt, 64, valid=.2)
        model = set_method(small(tok), 'full')
        learn = parallel(preference_learner(model, data, fmt, loss, lr=1e-3, bs=10, samples=0, device='cpu'))
        with learn.no_bar(), learn.no_logging(): learn.fit(1)
        weights = torch.cat([p.detach().flatten() for p in learn.model.parameters()])
        found[loss] = weights, learn.preference_watch.looks[-1]
    return found


def test_ranks_train_what_one_process_trains(tok):
    losses = ['dpo', 'kto']
    alone = weights_after(RECORDS, losses)
    together = launch(weights_after, 2, RECORDS, losses, device='cpu')
    before = torch.cat([p.detach().flatten() for p in small(tok).parameters()])
    for loss in losses:
        one, look = alone[loss]
        two, their_look = together[loss]
        assert (one - two).norm() < .02 * (one - before).norm()
        for name in ('accuracy', 'margin', 'chosen'): assert their_look[name] == pytest.approx(look[name], abs=1e-3)
    for name in ('train_accuracy', 'train_margin'):
        assert together['dpo'][1][name] == pytest.approx(alone['dpo'][1][name], abs=1e-3)


def test_a_rank_without_rows_has_no_loss(tok, data):
    loader = PreferenceLoader(data.rows['train'][:1], 4, rank=0, world=2)
    (x, docs), rest = loader.batch(0)[:2], loader.batch(0)[2:]
    model = small(tok)
    loss = PreferenceLoss(model.head)(model(x, docs), *rest)
    loss.backward()
    assert loss == 0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())
    with pytest.raises(UserError, match='a rank from 0 to 1'): PreferenceLoader(data.rows['train'], rank=2, world=2)


@pytest.mark.parametrize('loss', ['dpo', 'ipo', 'kto', 'orpo'])
def test_every_loss_learns_the_preference(tok, fmt, loss):
    data = preferences_for(loss, RECORDS, fmt, 64, valid=.2)
    learn = preference_learner(set_method(small(tok), 'full'), data, fmt, loss, lr=3e-3, samples=0, device='cpu')
    with learn.no_bar(): learn.fit(3)
    table = learn.preference_watch.table()
    assert table.accuracy.iloc[-1] > .9
    assert table.margin.iloc[-1] > table.margin.iloc[0]
    assert table.kl.iloc[-1] > 0 == table.kl.iloc[0]


def test_a_wrapped_model_and_a_quantised_base(tok, fmt, data):
    wrapped = set_method(of_transformers(tok, 'gpt_neox'), 'lora', r=4)
    coded = set_method(small(tok), 'lora', 'int8', r=4)
    for model in (wrapped, coded):
        learn = preference_learner(model, data, fmt, lr=1e-2, samples=0, device='cpu', precision='fp32')
        with learn.no_bar(): learn.fit(2)
        assert learn.recorder.losses[0].item() == pytest.approx(math.log(2), abs=1e-4)
        assert learn.preference_watch.table().accuracy.iloc[-1] > .9


# ---- what is shown

def test_a_fall_of_the_chosen_with_longer_or_repeated_answers_is_said():
    "trl#800: the log-probability of the chosen answer falls, repetition."
    first = dict(chosen=-1., accuracy=.5, length=20., distinct=.9)
    fell = dict(chosen=-1.3, accuracy=.8, length=20., distinct=.9)
    assert preference_warnings(first, fell) == []
    assert 'grow from 20 to 60 tokens' in preference_warnings(first, dict(fell, length=60.))[0]
    assert 'repeats itself: 30% of the words' in preference_warnings(first, dict(fell, distinct=.3))[0]
    assert preference_warnings(first, dict(fell, chosen=-.9, length=60.)) == []
    assert 'right way round' in preference_warnings(first, dict(fell, accuracy=.2))[0]


def test_scores_of_a_validation_are_those_of_all_its_pairs(tok, fmt, data):
    model = set_method(small(tok), 'full')
    learn = preference_learner(model, data, fmt, lr=1e-3, bs=3, samples=0, device='cpu')
    with learn.no_bar(): learn.fit(1)
    look = learn.preference_watch.looks[-1]
    rows = data.rows['valid']
    logps = fill_logps(model, rows)
    rewards = .1 * (logps - learn.reference['valid'])
    chosen, rejected = rewards.mean(0).tolist()
    assert look['margin'] == pytest.approx(chosen - rejected, abs=1e-5)
    nats = logps[:, 0].sum().item()
    tokens = sum(row.counts[0] for row in rows)
    assert look['chosen'] == pytest.approx(nats / tokens, rel=1e-5)
    assert look['train_accuracy'] >= .5


def test_what_models_write_is_escaped(fmt, data):
    watch = PreferenceWatch(fmt, data.chats['valid'], data.rows['valid'])
    watch.looks = [dict(step=0, answers=['<script>x</script>'] * 8)] * 2
    assert '<script>' not in watch.samples()


# ---- where preferences come from

def test_in_is_used_and_set_aside(fmt):
    "trl#6668: nothing vanishes, and nothing is cut."
    bad = [dict(prompt='a', chosen='b', rejected='b'), dict(prompt='a', answer='b'), 'text',
           dict(prompt='x' * 900, chosen='y', rejected='z'), dict(prompt='a', chosen='', rejected='z')]
    data = prepare_preferences(RECORDS + bad, fmt, 64)
    assert data.total == len(RECORDS) + len(bad)
    assert len(data.rejects) == len(bad)
    assert sum(map(len, data.rows.values())) == len(RECORDS)


def test_rows_are_what_the_chat_format_makes(fmt, data):
    for chat, row in zip(data.chats['train'], data.rows['train']):
        for messages, ids, learned in zip((chat.messages, chat.rejected), row.answers, row.learned):
            whole = fmt.encode(messages, 'last')
            assert np.array_equal(np.concatenate([row.prompt, ids]), whole.ids)
            assert np.array_equal(learned, whole.trained[len(row.prompt):])
            assert learned[-1] and ids[-1] == fmt.end


def written(records, file):
    "Write records into a file, one a line; return the file."
    lines = [json.dumps(record) for record in records]
    file.write_text('\n'.join(lines))
    return file


def test_labels_of_a_file(fmt, tmp_path):
    records = []
    for i in range(30):
        is_good = i % 2 == 1
        answer = 'red' if is_good else 'no'
        records.append(dict(prompt=f'say {i}', completion=answer, label=is_good))
    file = written(records, tmp_path/'labels.jsonl')
    data = preferences_for('kto', str(file), fmt, 64)
    rows = data.rows['train'] + data.rows['valid']
    labels = [row.label for row in rows]
    assert sorted(labels) == [False] * 15 + [True] * 15
    chats = data.chats['train'] + data.chats['valid']
    of_question = {chat.messages[0]['content']: chat.label for chat in chats}
    assert of_question['say 3'] is True
    assert of_question['say 4'] is False


def vote(choice, a='yes', b='no'): return dict(prompt='?', a=a, b=b, choice=choice)


def better_answers(data): return [chat.messages[-1]['content'] for chat in data.chats]


def test_raters_decide_by_majority_whatever_the_side():
    swapped = vote('b', a='no', b='yes')
    rated = rated_chats([vote('a'), swapped, vote('b')])
    assert better_answers(rated) == ['yes']


def test_divided_raters_are_set_aside():
    divided = [vote('a'), vote('b')]
    with pytest.raises(UserError, match='divided'): rated_chats(divided)
    other_names = dict(prompt='?', left='1', right='2', winner='right')
    assert better_answers(rated_chats([*divided, other_names])) == ['2']


def test_a_judge_prefers_and_ties_are_set_aside():
    found = judged_chats(['a?', 'b?', 'c?'], ['1', '22', 'x'], ['333', '2', 'y'], lambda messages, answer: len(answer))
    assert better_answers(found) == ['333', '22']
    assert [reject.reason for reject in found.rejects] == ['the judge sees no difference']


# ---- reward models

def answered(text):
    "Return a chat that ends with this answer."
    return [dict(role='user', content='say red'), dict(role='assistant', content=text)]


def test_a_reward_model_starts_at_ln_2_learns_and_is_opened_again(tok, fmt, tmp_path):
    options = dict(steps=12, evaluations=2, lr=5e-3, bs=8, device='cpu', adapter=dict(r=4))
    learn = train_reward(small(tok), fmt, RECORDS, tmp_path, **options)
    first_loss = learn.recorder.losses[0].item()
    assert first_loss == pytest.approx(math.log(2), abs=1e-6)
    accuracy = learn.recorder.values[-1][2]
    assert accuracy > .9
    texts = 'red is fine', 'no red at all for you', 'red'
    chats = [answered(text) for text in texts]
    scores = score_answers(learn.model, fmt, chats)
    opened = open_reward(tmp_path, small(tok))
    assert score_answers(opened, fmt, chats) == pytest.approx(scores, abs=1e-4)
    for chat, score in zip(chats, scores):
        alone = score_answers(learn.model, fmt, [chat])
        assert alone == pytest.approx([score], abs=1e-4)


@pytest.mark.parametrize('method', ['full', 'lora'])
def test_a_reward_model_that_was_cut_ends_in_the_same_bits(tok, tmp_path, method):
    options = dict(method=method, steps=8, lr=1e-3, bs=4, device='cpu')
    whole = train_reward(small(tok), tok, RECORDS, tmp_path/'whole', **options)
    cut = tmp_path/'cut'
    with pytest.raises(Stop): train_reward(small(tok), tok, RECORDS, cut, cbs=[StopAt(5)], **options)
    check_same_weights(whole.model, train_reward(small(tok), tok, RECORDS, cut, **options).model)


def test_a_whole_reward_model_is_opened_from_its_folder(tok, fmt, tmp_path):
    learn = train_reward(small(tok), fmt, RECORDS, tmp_path, method='full', steps=2, lr=1e-3, device='cpu')
    chats = [answered('red is fine')]
    opened = open_reward(tmp_path, device='cpu')
    assert score_answers(opened, fmt, chats) == pytest.approx(score_answers(learn.model, fmt, chats), abs=1e-5)


def test_the_score_of_a_pair_is_that_of_each_answer_alone(tok, fmt, data):
    model = RewardModel(small(tok))
    torch.nn.init.normal_(model.head.weight)
    loader = PreferenceLoader(data.rows['valid'], 9, shuffle=False, whole=True)
    x, docs, which, *rest = loader.batch(0)
    loss = RewardLoss(model.head)
    loss(model(x, docs), which, *rest)
    found = loss.last.rewards[:, 0].tolist()
    chats = data.chats['valid']
    members = which[which >= 0].tolist()
    chosen = [chats[i].messages for i in members]
    assert found == pytest.approx(score_answers(model, fmt, chosen), abs=1e-4)


# ---- what is refused, before anything is computed

QUESTION = [dict(role='user', content='say red')]
SAME = [dict(prompt='a', chosen='b', rejected='b')] * 20
CHATS = [dict(prompt='a', answer='b')] * 20
GOOD = [dict(prompt=f'a{i}', answer='b', label=True) for i in range(30)]
REFUSED = { # arguments of `prefer` that cannot work -> what the message says
    'another loss': (dict(loss='ppo'), 'loss of dpo'),
    'a beta of nothing': (dict(beta=0), 'beta'),
    'an option of another loss': (dict(loss='ipo', loss_options=dict(smoothing=.1)), 'options of ipo'),
    'half of the pairs in doubt': (dict(loss_options=dict(smoothing=.5)), 'below 0.5'),
    'another method': (dict(method='qlora'), 'method of'),
    'a base under all weights': (dict(method='full', base='nf4'), 'adapters only'),
    'no steps': (dict(steps=0), 'steps'),
    'half a step': (dict(steps=2.5), 'steps'),
    'a batch of nothing': (dict(bs=0), 'bs'),
    'a negative rate': (dict(lr=-1.), 'lr'),
    'chats without preferences': (dict(source=CHATS), 'no rejected answer'),
    'pairs without a difference': (dict(source=SAME), 'the same'),
    'good answers alone': (dict(source=GOOD, loss='kto'), 'good ones alone'),
    'a file that is not there': (dict(source='no/pairs.jsonl'), 'pairs.jsonl'),
    'a share of validation above 1': (dict(data=dict(valid=2)), 'share between'),
}


@pytest.mark.parametrize('what', REFUSED)
def test_a_run_that_cannot_work_is_refused(tok, tmp_path, what):
    options, words = REFUSED[what]
    options = dict(source=RECORDS) | options
    with pytest.raises(UserError, match=words): prefer(small(tok), tok, out=tmp_path/'out', **options)
    assert not list(tmp_path.rglob('*.safetensors'))


def broken(tok):
    model = small(tok)
    with torch.no_grad(): model.embed.weight[0] = torch.nan
    return model


def test_a_model_that_cannot_work_is_refused(tok, tmp_path):
    with pytest.raises(UserError, match='without adapters'): prefer(add_adapters(small(tok)), tok, RECORDS, tmp_path)
    with pytest.raises(UserError, match='tokens|vocabulary'): prefer(small(tok, vocab_size=99), tok, RECORDS, tmp_path)
    with pytest.raises(UserError, match='finite|NaN'): prefer(broken(tok), tok, RECORDS, tmp_path)
    with pytest.raises(UserError, match='no rejected'): train_reward(small(tok), tok, GOOD, tmp_path)


def test_pairs_that_cannot_be_made_are_refused():
    with pytest.raises(UserError, match='two different'): preference_pair(QUESTION, 'yes', 'yes')
    with pytest.raises(UserError, match='as texts'): preference_pair(QUESTION, 'yes', None)
    with pytest.raises(UserError, match='function'): judged_chats(['a'], ['b'], ['c'], 'judge')
    with pytest.raises(UserError, match='none that decide'): rated_chats([dict(prompt='a', a='b', b='c')])


# ---- the command

@pytest.fixture
def model_folder(tok, tmp_path):
    save_pretrained(small(tok), tok, tmp_path/'model')
    return str(tmp_path/'model')


QUICK = dict(steps=2, evaluations=1, lr=1e-3, device='cpu')


def test_the_command(model_folder, tmp_path, capsys):
    file = written(RECORDS, tmp_path/'pairs.jsonl')
    out = tmp_path/'out'
    llmbook_prefer(model_folder, str(file), str(out), **QUICK)
    said = capsys.readouterr().out
    assert '40 preferences' in said
    assert 'accuracy' in said
    assert f'adapter: {out/"adapter"}' in said


def test_the_command_trains_a_reward_model_from_columns_of_other_names(model_folder, tmp_path):
    renamed = []
    for record in RECORDS:
        renamed.append(dict(q=record['prompt'], chosen=record['chosen'], rejected=record['rejected']))
    file = written(renamed, tmp_path/'pairs.jsonl')
    out = tmp_path/'judge'
    llmbook_prefer(model_folder, str(file), str(out), loss='reward', prompt='q', **QUICK)
    assert (out/'reward_head.safetensors').is_file()


def test_a_reward_model_has_no_beta(model_folder, tmp_path):
    file = written(RECORDS, tmp_path/'pairs.jsonl')
    with pytest.raises(UserError, match='--beta'):
        llmbook_prefer(model_folder, str(file), str(tmp_path/'x'), loss='reward', beta=1., **QUICK)
