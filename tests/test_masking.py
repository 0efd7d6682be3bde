"Masks and what moves none of them, what an encoder learns, batches that grow, golden curves of other families."
import json, os
from pathlib import Path
from types import SimpleNamespace
import numpy as np, pytest, torch
from fastai.callback.core import Callback
from llmbook.core import UserError, sha256
from llmbook.checkpoint.checkpoint import Checkpoint
from llmbook.generate.fill_mask import fill_mask, filled
from llmbook.model.config import ModelConfig
from llmbook.plan.flops import flops_by_part
from llmbook.pretrain.run import lm_learner, pretrain
from llmbook.tiny import Grammar
from llmbook.tokens.loaders import IGNORE, lm_dls
from llmbook.tokens.packed_loader import packed_dls
from llmbook.tokens.shards import ShardWriter, read_manifest, write_manifest
from llmbook.tokens.tokenizer import (
    ANSWER, EOT, PAD, load_tokenizer, mask_id, save_tokenizer, special_ids, tokenizer_fingerprint, train_tokenizer
)
from llmbook.train.loss import token_nats
from llmbook.train.masking import MaskTokens, choose_spans, choose_tokens, span_lengths
from llmbook.train.data_schedules import BatchWarmup, SequenceWarmup, growing
from test_faults import stopped_command
from test_train import CONFIG, grammar_data, losses_of_fives

HERE = Path(__file__).parent
ENCODER = dict(family='encoder', n_layer=2, d_model=32, n_head=2, context=32)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp('grammar')
    grammar_data(path)
    return path


@pytest.fixture(scope='module')
def documents(tmp_path_factory):
    "Make shards of many short documents."
    path = tmp_path_factory.mktemp('documents')
    tok = train_tokenizer(['a small text'], 300)
    save_tokenizer(tok, path)
    grammar = Grammar()
    def pack(split, n, seed):
        writer = ShardWriter(path, split, tokens_per_shard=50_000)
        rng = np.random.default_rng(seed)
        for k, length in enumerate(rng.integers(3, 40, n)):
            symbols = np.asarray(grammar.sample(int(length), seed=seed + k))
            writer.add([*(4 + symbols), EOT], 1)
        return writer.close()
    splits = dict(train=pack('train', 400, 1), valid=pack('valid', 60, 9_000))
    write_manifest(path, splits, tok.get_vocab_size(), tokenizer_fingerprint(tok))
    return path


class Fed(Callback):
    "Keeps what the model is given."
    order = 50
    def before_fit(self): self.in_training, self.in_validation = [], []
    def before_batch(self):
        kept = self.in_training if self.training else self.in_validation
        kept.append((*self.xb, *self.yb))


def config_for(data, **kwargs): return ModelConfig(vocab_size=read_manifest(data)['vocab_size'], **kwargs)


def loaders(data, bs=8, steps=12, valid_batches=4, **kwargs):
    return lm_dls(data, bs=bs, seq_len=32, steps=steps, valid_batches=valid_batches, device='cpu', **kwargs)


def encoder(data, bs=8, steps=12, cbs=(), dls=None, lr=1e-2, **kwargs):
    fed = Fed()
    dls = dls or loaders(data, bs, steps)
    return lm_learner(dls, config_for(data, **ENCODER), lr=lr, cbs=[fed, *cbs], **kwargs), fed


def fit(learn, n=1, how='fit_wsd', **kwargs):
    with learn.no_bar(), learn.no_logging(): getattr(learn, how)(n, **kwargs)
    return learn


def flat(learn): return torch.cat([p.detach().flatten() for p in learn.model.parameters()])


def joined(batches):
    "Join batches: one tensor for the inputs, one for the targets."
    return [torch.cat(tensors) for tensors in zip(*batches)]


def callback(data, **kwargs):
    cb = MaskTokens(**kwargs)
    cb.learn = encoder(data)[0]
    cb.get_ready()
    return cb


def same(a, b):
    "Return whether two lists of batches are equal."
    if len(a) != len(b): return False
    pairs = [pair for x, y in zip(a, b) for pair in zip(x, y)]
    return all(s.equal(t) for s, t in pairs)


# ---- what is hidden

@pytest.fixture(params=[False, True], ids=['tokens', 'spans'])
def spans(request): return request.param


@pytest.fixture(params=[.05, .15, .4])
def hidden(request, data, spans):
    "Hide tokens of many rows; give the rate, the callback, the rows, what the model sees, and the targets."
    cb = callback(data, rate=request.param, spans=spans)
    x = torch.randint(4, 300, (4096, 128), generator=torch.Generator().manual_seed(0))
    seen, y = cb.hidden(x, x, torch.arange(len(x)))
    return request.param, cb, x, seen, y


def tokens_a_lot(spans):
    "Return by how much the variance grows, since the targets of a span share one lot."
    return span_lengths().dot(np.arange(1, 11) ** 2) / 3.797 if spans else 1.


def standard_error(share, n, wide): return (share * (1 - share) * wide / n) ** .5


def test_the_rate_of_targets_is_the_one_published(hidden, spans):
    rate, _, _, _, y = hidden
    share = (y != IGNORE).double().mean().item()
    error = (rate * tokens_a_lot(spans) / y.numel()) ** .5
    assert abs(share - rate) < 4 * error


def test_rates_are_those_published(hidden, spans):
    "Count, of the targets, 80 % masked, 10 % random and 10 % shown, to four standard errors."
    _, cb, _, seen, y = hidden
    target = y != IGNORE
    seen = seen[target]
    y = y[target]
    masked = seen == cb.mask_id
    shown = seen == y
    by_chance = 1 / len(cb.text) # a random token that is the right one
    kinds = (
        (masked, .8),
        (~masked & ~shown, .1 * (1 - by_chance)),
        (shown, .1 * (1 + by_chance)),
    )
    for kind, want in kinds:
        share = kind.float().mean().item()
        assert abs(share - want) < 4 * standard_error(want, len(y), tokens_a_lot(spans))


def test_what_is_no_target_is_left_as_it_was(hidden):
    _, _, x, seen, y = hidden
    target = y != IGNORE
    assert seen[~target].equal(x[~target])
    assert y[target].equal(x[target])


def test_span_lengths_by_hand():
    "P(l) = .2 * .8^(l - 1) / (1 - .8^10), and its mean 5 - 10 * .8^10 / (1 - .8^10) = 3.797."
    q = span_lengths()
    longer_than_ten = .8 ** 10
    ten_at_most = 1 - longer_than_ten
    assert q.sum() == pytest.approx(1)
    assert q[0] == pytest.approx(.2 / ten_at_most)
    assert q[3] / q[2] == pytest.approx(.8)
    by_hand = 5 - 10 * longer_than_ten / ten_at_most
    mean = q.dot(np.arange(1, 11))
    assert mean == pytest.approx(by_hand)
    assert mean == pytest.approx(3.797, abs=5e-4)


def test_a_span_has_one_lot():
    chosen, lot = choose_spans(torch.arange(500 * 200).view(500, 200), .5, 3)
    neighbours = chosen[:, :-1] & chosen[:, 1:]
    same_lot = lot[:, :-1] == lot[:, 1:]
    assert same_lot[neighbours].all()


def test_spans_never_touch():
    "On both sides of a gap of one token are two spans."
    positions = torch.arange(500 * 200).view(500, 200)
    chosen, lot = choose_spans(positions, .5, 3)
    left = chosen[:, :-2]
    middle = chosen[:, 1:-1]
    right = chosen[:, 2:]
    gaps = left & ~middle & right
    assert gaps.sum() > 100
    other_lot = lot[:, :-2] != lot[:, 2:]
    assert other_lot[gaps].all()


def test_each_position_is_chosen_equally_often():
    n = 40_000
    for choose in (choose_tokens, choose_spans):
        chosen, *_ = choose(torch.arange(n * 40).view(-1, 40), .15, 5)
        share = chosen.float().mean(0)
        assert (share - .15).abs().max() < 5 * standard_error(.15, n, 1)


def test_batches_hold_specials_and_pads(documents):
    dls = packed_dls(documents, bs=16, seq_len=48, steps=8, valid_batches=2, device='cpu')
    ids, *_ = dls.one_batch()
    assert (ids == PAD).any()
    assert (ids == EOT).any()


def test_neither_specials_nor_pads_are_targets_or_drawn(documents):
    dls = lm_dls(documents, bs=16, seq_len=32, steps=30, device='cpu')
    learn, fed = encoder(documents, dls=dls, cbs=[MaskTokens(rate=.5)])
    fit(learn)
    x, y = joined(fed.in_training)
    specials = torch.tensor([EOT, PAD, 2, 3])
    never_read = torch.tensor([PAD, 2])
    assert not torch.isin(y, specials).any()
    assert not torch.isin(x, never_read).any()
    is_target = y != IGNORE
    was_replaced = (x != y) & (x != ANSWER)
    drawn = x[is_target & was_replaced]
    assert len(drawn) > 500
    assert drawn.min() >= 4
    assert len(drawn.unique()) > 200


def test_documents_of_a_packed_row_stay_apart_and_pads_are_not_read(documents):
    "Pass the mask of documents untouched; another document must not change the loss of a target."
    dls = packed_dls(documents, bs=4, seq_len=32, steps=4, valid_batches=2, device='cpu')
    learn, fed = encoder(documents, dls=dls)
    fit(learn)
    unmasked, unmasked_docs, _ = dls.train.batch(0)
    x, docs, y = fed.in_training[0]
    target = y != IGNORE
    assert docs.equal(unmasked_docs)
    assert target.any(1).all()
    assert not target[unmasked == PAD].any()
    first = docs == 0
    assert first.any()
    other = (x + 1).clamp(max=299)
    changed = torch.where(first, x, other)
    model = learn.model.eval()
    def nats(ids): return token_nats(model(ids, docs), model.head.weight, y, bias=model.head.bias)
    assert torch.allclose(nats(x)[first], nats(changed)[first], atol=1e-6)


def test_the_mask_token():
    own = train_tokenizer(['a small text'], 300, specials=['<|mask|>'])
    assert mask_id(own) == 4
    assert mask_id(train_tokenizer(['a small text'], 300)) == ANSWER == special_ids(own)['answer']


# ---- nothing moves them

def test_another_batch_size_or_accumulation_sees_the_same_masks(data):
    "Hide the same rows in the same way, so that accumulation gives the big batch's weights."
    big, fed_big = encoder(data, bs=16, steps=6, precision='fp32')
    small, fed_small = encoder(data, bs=4, steps=24, accumulate=4, precision='fp32')
    for learn in (big, small): fit(learn, how='fit')
    for a, b in zip(joined(fed_big.in_training), joined(fed_small.in_training)): assert a.equal(b)
    assert torch.allclose(flat(big), flat(small), atol=5e-5)


def test_micro_batches_see_the_masks_of_the_batch(data):
    a, fed_a = encoder(data, bs=16, steps=6, precision='fp32')
    b, fed_b = encoder(data, bs=16, steps=6, micro_batch=3, precision='fp32')
    for learn in (a, b): fit(learn, how='fit')
    assert same(fed_a.in_training, fed_b.in_training)
    assert torch.allclose(flat(a), flat(b), atol=5e-5)


def test_validation_always_has_the_same_masks(data):
    learn, fed = encoder(data)
    loss, *_ = learn.validate()
    torch.rand(3)
    again, *_ = learn.validate()
    assert again == loss
    fit(learn, 2)
    k = len(fed.in_validation) // 2
    assert same(fed.in_validation[:k], fed.in_validation[k:])
    assert not same(fed.in_training[:12], fed.in_training[12:])


def test_validation_has_the_same_masks_for_each_batch_size(data):
    rows = []
    for bs, n in ((8, 4), (4, 8)):
        learn, fed = encoder(data, dls=loaders(data, bs, steps=2, valid_batches=n))
        fit(learn)
        rows.append(joined(fed.in_validation))
    for a, b in zip(*rows): assert a.equal(b)


def test_masks_draw_nothing_from_the_generators(data):
    cb = callback(data, spans=True)
    x = torch.randint(4, 300, (4, 32))
    before = torch.get_rng_state()
    cb.hidden(x, x, torch.arange(4))
    assert torch.get_rng_state().equal(before)


def test_rows_cut_by_a_schedule_are_hidden_too(data):
    learn, fed = encoder(data, cbs=[SequenceWarmup([(.5, 8)])])
    fit(learn)
    assert fed.in_training[0][0].shape == (32, 8)
    assert all((y != IGNORE).any(1).all() for _, y in fed.in_training)


def train_on_this_rank(out):
    "Train an encoder on this rank's half of each batch; return its losses and weights."
    from llmbook.distributed.world import join, rank, world
    from llmbook.parallel.learner import parallel
    device = join('cpu')
    bs = 16 // world()
    dls = lm_dls(out, bs=bs, seq_len=32, steps=6, valid_batches=2, device=device, rank=rank(), world=world())
    learn, _ = encoder(out, dls=dls, cbs=[MaskTokens(spans=True)], path=out, precision='fp32')
    fit(parallel(learn, 'ddp'), how='fit')
    train_loss, valid_loss, *_ = learn.recorder.values[-1]
    return [float(train_loss), float(valid_loss)], flat(learn).tolist()


no_gloo = not torch.distributed.is_available() or not torch.distributed.is_gloo_available()

@pytest.mark.skipif(no_gloo, reason='this torch has no gloo')
def test_two_ranks_are_one_rank_with_twice_the_batch(data):
    from llmbook.distributed.launch import launch
    losses, weights = train_on_this_rank(data)
    losses_of_two, weights_of_two = launch(train_on_this_rank, 2, data, device='cpu')
    assert losses_of_two == pytest.approx(losses, abs=2e-4)
    assert np.abs(np.array(weights_of_two) - np.array(weights)).max() < 1e-4


class StopAt(Callback):
    "Breaks training off after a batch."
    order, run_valid = 90, False
    def __init__(self, at): self.at = at
    def after_batch(self):
        if self.train_iter == self.at: raise InterruptedError


def test_stopped_anywhere_a_run_resumes_bit_for_bit(data, tmp_path, spans):
    def run(out, *cbs):
        cbs = [MaskTokens(spans=spans), Checkpoint(tmp_path/out, every=4), *cbs]
        learn, fed = encoder(data, steps=10, cbs=cbs)
        try: fit(learn, 3)
        except InterruptedError: pass
        return learn, fed
    whole, first = run('whole')
    run('cut', StopAt(17))
    again, rest = run('cut')
    k = again.checkpoint.resumed
    assert 0 < k <= 17
    assert same(first.in_training, rest.in_training)  # the batches before the stop come back with the callback
    assert flat(whole).equal(flat(again))
    assert whole.recorder.values == again.recorder.values
    cbs = [MaskTokens(spans=spans, rate=.3), Checkpoint(tmp_path/'cut', every=4)]
    other, _ = encoder(data, steps=10, cbs=cbs)
    with pytest.raises(UserError, match='masks that the run began with.*rate'): fit(other, 3)


def test_the_command_trains_an_encoder_and_a_kill_changes_nothing(data, tmp_path):
    "Kill `llmbook-pretrain --size encoder-nano` with -9 after step 7, and call it again."
    kill = 'self.learn.checkpoint.wait(); os.kill(os.getpid(), signal.SIGKILL)'
    cut, whole = tmp_path/'cut', tmp_path/'whole'
    command = stopped_command(tmp_path, data, 7, kill, '--size', 'encoder-nano')
    killed = command('cut', '--checkpoint-minutes', '.0001')
    assert killed.returncode == -9, killed.stderr[-2000:]
    assert any((cut/'checkpoints').glob('step-*')), killed.stderr[-2000:]
    plan = json.loads((cut/'plan.json').read_text())
    assert plan['size'] == 'encoder-nano'
    assert plan['config']['family'] == 'encoder'
    whole.mkdir()
    (whole/'plan.json').write_text(json.dumps(plan))
    for out in ('cut', 'whole'):
        resumed = command(out, '--resume')
        assert resumed.returncode == 0, resumed.stderr[-2000:]
    assert sha256(cut/'model/model.safetensors') == sha256(whole/'model/model.safetensors')
    tokenizer_config = json.loads((cut/'model/tokenizer_config.json').read_text())
    assert tokenizer_config['mask_token'] == '<|answer|>'


# ---- what is learnt

def without_context(grammar, text):
    "Return the least loss of a model that sees the position of a target alone: hidden, shown, or with another token."
    n = grammar.n_symbols
    share = grammar.stationary.reshape(-1, n).sum(0) # of each symbol
    hidden = -(share * np.log(share)).sum()
    at_random = np.full(n, .5 / text)
    kept = np.diag(share / 2)
    replaced = np.outer(share, at_random)
    joint = kept + replaced # of a target and the symbol that is seen in its place
    given = joint / joint.sum(0)
    shown = -(joint * np.log(given)).sum()
    no_symbol = .5 * (1 - n / text) # tokens at random that no text holds, and that say nothing
    return .8 * hidden + .2 * (shown + no_symbol * hidden)


def test_an_encoder_learns_the_grammar(data):
    grammar = Grammar()
    dls = loaders(data, bs=16, steps=80, valid_batches=8)
    learn, _ = encoder(data, dls=dls, lr=2e-2)
    fit(learn, 5)
    _, loss, perplexity, *_ = learn.recorder.values[-1]
    blind = without_context(grammar, 296)
    symbol = grammar.entropy(0)
    said = f'{loss:.4f} nats against {symbol:.4f} for a symbol, {blind:.4f} for the position alone'
    assert loss < blind - .15, said
    assert loss < symbol - .3, said
    assert learn.recorder.metric_names[3] == 'masked_perplexity'
    assert perplexity == pytest.approx(np.exp(loss), rel=1e-5)


ENCODER_CONFIG = ModelConfig(vocab_size=300, **ENCODER)

DECODER_CONFIG = ModelConfig(vocab_size=300, **CONFIG)

@pytest.mark.parametrize('config, options, said', [
    (ENCODER_CONFIG, dict(objective='next'), 'would have to predict'),
    (DECODER_CONFIG, dict(objective='masked'), 'one side of a gap'),
    (DECODER_CONFIG, dict(cbs=MaskTokens()), 'one side of a gap'),
    (ENCODER_CONFIG, dict(objective='both'), "got 'both'"),
])
def test_objectives_that_cannot_work_are_refused(data, config, options, said):
    dls = loaders(data, bs=4, steps=2, valid_batches=1)
    with pytest.raises(UserError, match=said): lm_learner(dls, config, **options)


def test_an_encoder_is_not_scored_or_tuned_like_a_decoder(data):
    "It would see the answers: the best perplexity that ever was, and worth nothing."
    from llmbook.evaluate.perplexity import evaluate_text
    from llmbook.tune.finetune import finetune_learner
    learn = encoder(data)[0]
    tok = load_tokenizer(data)
    with pytest.raises(UserError, match='expected a decoder'):
        evaluate_text(learn.model, tok, ['a text'])
    with pytest.raises(UserError, match='would have to predict'):
        finetune_learner(learn.model, learn.dls)


def test_encoders_alone_are_masked(data):
    dls = loaders(data, bs=4, steps=2, valid_batches=1)
    assert not hasattr(lm_learner(dls, DECODER_CONFIG), 'mask_tokens')
    assert lm_learner(dls, ENCODER_CONFIG, objective='masked').mask_tokens.rate == .15


@pytest.fixture(scope='module')
def filled_run(data, tmp_path_factory):
    "Train an encoder in a folder, with filled gaps as samples; give the folder, the Learner and the tokenizer."
    out = tmp_path_factory.mktemp('filled')/'out'
    tok = load_tokenizer(data)
    plan = SimpleNamespace(
        config=config_for(data, **ENCODER).to_dict(),
        bs=8,
        seq_len=32,
        steps=6,
        lr=1e-2,
        seed=1,
        machine=dict(peak_flops=1e12),
    )
    def sample(model, texts): return filled(model, tok, texts)
    options = dict(evaluations=2, device='cpu', sample=sample, prompts=['a <|mask|> b'])
    return out, pretrain(data, plan, out, **options), tok


def test_a_run_in_a_folder_with_gaps_as_samples(filled_run):
    out, learn, tok = filled_run
    samples = json.loads((out/'samples.json').read_text())
    assert [sample['step'] for sample in samples] == [3, 6]
    for sample in samples:
        assert sample['prompt'] == 'a <|mask|> b'
        assert '<|mask|>' not in sample['text']
    with pytest.raises(UserError, match='where something is missing'):
        fill_mask(learn.model, tok, 'a b')


def test_telemetry_of_an_encoder_counts_positions_but_logits_of_targets_alone(filled_run):
    _, learn, _ = filled_run
    config = learn.model.config
    flops = flops_by_part(config, 32)['total']
    left_out = round(.85 * 6 * config.vocab_size * 32) # logits of positions without a target
    assert learn.telemetry.flops_per_token == flops - left_out
    assert learn.telemetry.rows[-1]['tokens'] == 6 * 8 * 32 # positions read, not targets

# ---- batches that grow

@pytest.mark.parametrize('shape, want', [('double', [1, 2, 4]), ('linear', [1, 2, 3, 4, 5, 6, 7])])
def test_stages_grow_to_the_full_size(shape, want):
    stages = growing(8, .5, shape=shape)
    ends = [end for end, _ in stages]
    assert [size for _, size in stages] == want
    assert ends[-1] == pytest.approx(.5)
    assert np.allclose(np.diff([0, *ends]), .5 / len(want))


def test_stages_begin_at_the_first_size():
    assert growing(6, .5, 2) == [(.25, 2), (.5, 4)]
    assert growing(4, .5, 4) == []


class Sizes(Callback):
    "Counts the batches that each step of the optimiser takes."
    order, run_valid = 95, False
    def before_fit(self): self.taken, self.at = [], 0
    def after_step(self):
        self.taken.append(self.train_iter + 1 - self.at)
        self.at += self.taken[-1]


def accumulating(data, cbs=()):
    dls = lm_dls(data, bs=4, seq_len=32, steps=20, valid_batches=2, device='cpu')
    return lm_learner(dls, config_for(data, **CONFIG), lr=1e-2, accumulate=4, cbs=list(cbs))


def grown(data, out=None, stop=None, **kwargs):
    cbs = [BatchWarmup(**kwargs), Sizes()]
    if out: cbs.append(Checkpoint(out, every=5))
    if stop: cbs.append(StopAt(stop))
    learn = accumulating(data, cbs)
    try: fit(learn, 3)
    except InterruptedError: pass
    return learn


def test_a_grown_batch_ends_at_the_full_size(data):
    learn = grown(data, until=.5)
    epochs = [*[1] * 15, 2, 2, 1], [*[2] * 5, 4, 4, 2], [4] * 5 # of 20 batches each
    assert learn.sizes.taken == sum(epochs, [])
    assert learn.accumulate.n == 4


def test_a_grown_batch_counts_all_tokens(data):
    rows = grown(data, until=.5).telemetry.rows
    n_tokens = 60 * 4 * 32
    assert rows[-1]['tokens'] == n_tokens
    assert sum(row.get('targets', 0) for row in rows) == n_tokens
    steps = [row['step'] for row in rows if 'loss' in row]
    assert steps == sorted(steps)
    assert steps[-1] == 60


def test_without_stages_a_step_is_the_accumulation_alone(data):
    one_stage = grown(data, stages=[(1e-9, 1)])
    assert one_stage.sizes.taken[:5] == [1] + [4] * 4
    plain = fit(accumulating(data), 3)
    assert flat(grown(data, first=4)).equal(flat(plain))


@pytest.mark.parametrize('stop', [17, 22])
def test_a_grown_batch_resumes_bit_for_bit(data, tmp_path, stop):
    whole = grown(data, tmp_path/'whole', until=.6)
    grown(data, tmp_path/'cut', stop, until=.6)
    again = grown(data, tmp_path/'cut', until=.6)
    assert again.checkpoint.resumed
    assert flat(whole).equal(flat(again))
    assert whole.recorder.values == again.recorder.values


def test_other_stages_are_refused(data, tmp_path):
    grown(data, tmp_path, 17, until=.6)
    with pytest.raises(UserError, match='batch sizes that the run began with.*stages'):
        grown(data, tmp_path, until=.3)


# ---- golden curves

@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize('family', ['gpt2', 'encoder'])
def test_golden_curve(data, family, one_thread):
    "Compare 50 steps with a stored curve, up to the rounding of another processor."
    config = config_for(data, family=family, n_layer=2, d_model=32, n_head=2, context=32)
    dls = loaders(data, steps=50, valid_batches=8)
    learn = lm_learner(dls, config, lr=1e-2, precision='fp32')
    learn.telemetry.every = 5
    fit(learn)
    losses = losses_of_fives(learn)
    golden = HERE/'golden'/f'loss_{family}.json'
    if os.environ.get('LLMBOOK_GOLDEN') == 'write':
        golden.write_text(json.dumps([round(loss, 5) for loss in losses]) + '\n')
    assert losses == pytest.approx(json.loads(golden.read_text()), rel=2e-3)
