"Masks: what they are made of, that nothing moves them, what an encoder learns; batches that grow; golden curves of the other families."
import json, os
from pathlib import Path
from types import SimpleNamespace
import numpy as np, pytest, torch
from fastai.callback.core import Callback
from llmbook.core import UserError, sha256
from llmbook.tokens.loaders import lm_dls
from llmbook.tokens.shards import ShardWriter, read_manifest, write_manifest
from llmbook.tokens.packed_loader import packed_dls
from llmbook.train.warmup import SequenceWarmup
from llmbook.tokens.tokenizer import (
    ANSWER, EOT, PAD, load_tokenizer, mask_id, save_tokenizer, special_ids, tokenizer_fingerprint, train_tokenizer
)
from llmbook.generate.fill_mask import fill_mask, filled
from llmbook.plan.flops import flops_by_part
from llmbook.model.config import ModelConfig
from llmbook.tiny import Grammar
from llmbook.train.warmup import BatchWarmup, growing
from llmbook.checkpoint.checkpoint import Checkpoint
from llmbook.train.loss import IGNORE, token_nats
from llmbook.train.masking import MaskTokens, choose_spans, choose_tokens, span_lengths
from llmbook.pretrain.run import lm_learner, pretrain
from test_faults import stopped_command
from test_train import CONFIG, grammar_data

HERE = Path(__file__).parent
ENCODER = dict(family='encoder', n_layer=2, d_model=32, n_head=2, context=32)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp('grammar')
    grammar_data(path)
    return path


@pytest.fixture(scope='module')
def documents(tmp_path_factory):
    "Shards of many short documents."
    path, tok, g = tmp_path_factory.mktemp('documents'), train_tokenizer(['a small text'], 300), Grammar()
    save_tokenizer(tok, path)
    def pack(split, n, seed):
        w, rng = ShardWriter(path, split, tokens_per_shard=50_000), np.random.default_rng(seed)
        for k, m in enumerate(rng.integers(3, 40, n)): w.add([*(4 + np.asarray(g.sample(int(m), seed=seed + k))), EOT], 1)
        return w.close()
    write_manifest(path, dict(train=pack('train', 400, 1), valid=pack('valid', 60, 9_000)), tok.get_vocab_size(), tokenizer_fingerprint(tok))
    return path


class Fed(Callback):
    "Keeps what the model is given."
    order = 50
    def before_fit(self): self.in_training, self.in_validation = [], []
    def before_batch(self): (self.in_training if self.training else self.in_validation).append((*self.xb, *self.yb))


def encoder(data, bs=8, steps=12, cbs=(), dls=None, seq_len=32, **kwargs):
    dls = dls or lm_dls(data, bs=bs, seq_len=seq_len, steps=steps, valid_batches=4, device='cpu')
    return lm_learner(dls, ModelConfig(vocab_size=read_manifest(data)['vocab_size'], **ENCODER), lr=kwargs.pop('lr', 1e-2), cbs=[fed := Fed(), *cbs], **kwargs), fed


def fit(learn, n=1, how='fit_wsd', **kwargs):
    with learn.no_bar(), learn.no_logging(): getattr(learn, how)(n, **kwargs)
    return learn


def flat(learn): return torch.cat([p.detach().flatten() for p in learn.model.parameters()])


def callback(data, **kwargs):
    cb = MaskTokens(**kwargs)
    cb.learn = encoder(data)[0]
    cb.get_ready()
    return cb


def same(a, b): return len(a) == len(b) and all(s.equal(t) for x, y in zip(a, b) for s, t in zip(x, y))


# what is hidden

@pytest.mark.parametrize('spans', [False, True], ids=['tokens', 'spans'])
@pytest.mark.parametrize('rate', [.05, .15, .4])
def test_rates_are_those_published(data, spans, rate):
    "The share of targets, and of them 80 % masked, 10 % random, 10 % shown; four standard errors of the count."
    cb = callback(data, rate=rate, spans=spans)
    x = torch.randint(4, 300, (4096, 128), generator=torch.Generator().manual_seed(0))
    seen, y = cb.hidden(x, x, torch.arange(len(x)))
    t = y != IGNORE
    n, wide = t.sum().item(), span_lengths().dot(np.arange(1, 11) ** 2) / 3.797 if spans else 1.            # targets of a stretch share one lot
    for got, want in (((seen == cb.mask_id)[t], .8), (((seen != cb.mask_id) & (seen != y))[t], .1 * (1 - 1 / len(cb.text))), ((seen == y)[t], .1 * (1 + 1 / len(cb.text)))):
        assert abs(got.float().mean().item() - want) < 4 * (want * (1 - want) * wide / n) ** .5
    assert abs(n / t.numel() - rate) < 4 * (rate * wide / t.numel()) ** .5
    assert seen[~t].equal(x[~t]) and y[t].equal(x[t])


def test_span_lengths_by_hand():
    "P(l) = .2 * .8^(l - 1) / (1 - .8^10), and its mean 5 - 10 * .8^10 / (1 - .8^10) = 3.797."
    q = span_lengths()
    assert q.sum() == pytest.approx(1) and q[0] == pytest.approx(.2 / (1 - .8 ** 10)) and q[3] / q[2] == pytest.approx(.8)
    assert q.dot(np.arange(1, 11)) == pytest.approx(5 - 10 * .8 ** 10 / (1 - .8 ** 10)) == pytest.approx(3.797, abs=5e-4)


def test_spans_never_touch_and_share_one_lot():
    i = torch.arange(500 * 200).view(500, 200)
    chosen, lot = choose_spans(i, .5, 3)
    both = chosen[:, 1:] & chosen[:, :-1]
    assert (lot[:, 1:] == lot[:, :-1])[both].all()
    gaps = ~chosen[:, 1:-1] & chosen[:, 2:] & chosen[:, :-2]
    a, b = lot[:, 2:][gaps], lot[:, :-2][gaps]
    assert gaps.sum() > 100 and (a != b).all()                         # on both sides of a gap of one token are two stretches


def test_each_place_is_chosen_as_often():
    for f in (choose_tokens, choose_spans):
        c = f(torch.arange(40_000 * 40).view(-1, 40), .15, 5)[0].float().mean(0)
        assert (c - .15).abs().max() < 5 * (.15 * .85 / 40_000) ** .5


def test_neither_specials_nor_pads_are_targets_or_drawn(documents):
    dls = packed_dls(documents, bs=16, seq_len=48, steps=8, valid_batches=2, device='cpu')
    assert (dls.one_batch()[0] == PAD).any() and (dls.one_batch()[0] == EOT).any()
    learn, fed = encoder(documents, dls=lm_dls(documents, bs=16, seq_len=32, steps=30, device='cpu'), cbs=[MaskTokens(rate=.5)])
    fit(learn)
    for x, y in fed.in_training: assert not torch.isin(y, torch.tensor([EOT, PAD, 2, 3])).any() and not torch.isin(x, torch.tensor([PAD, 2])).any()
    drawn = torch.cat([x[(y != IGNORE) & (x != y) & (x != ANSWER)] for x, y in fed.in_training])
    assert len(drawn) > 500 and drawn.min() >= 4 and len(drawn.unique()) > 200


def test_documents_of_a_packed_row_stay_apart_and_pads_are_not_read(documents):
    "The mask of documents goes through untouched; another document does not change what a target costs."
    dls = packed_dls(documents, bs=4, seq_len=32, steps=4, valid_batches=2, device='cpu')
    learn, fed = encoder(documents, dls=dls)
    fit(learn)
    raw, (x, docs, y) = dls.train.batch(0), fed.in_training[0]
    assert docs.equal(raw[1]) and not (y[raw[0] == PAD] != IGNORE).any() and (y != IGNORE).any(1).all()
    first = docs == 0
    other = torch.where(first, x, (x + 1).clamp(max=299))
    learn.model.eval()
    nats = [token_nats(learn.model(t, docs), learn.model.head.weight, y, bias=learn.model.head.bias) for t in (x, other)]
    assert first.any() and torch.allclose(nats[0][first], nats[1][first], atol=1e-6)


def test_the_mask_token():
    own = train_tokenizer(['a small text'], 300, specials=['<|mask|>'])
    assert mask_id(own) == 4 and mask_id(train_tokenizer(['a small text'], 300)) == ANSWER == special_ids(own)['answer']


# nothing moves them

def test_another_batch_size_or_accumulation_sees_the_same_masks(data):
    "The same rows hidden in the same way, so that accumulation gives the big batch's weights."
    a, b = encoder(data, bs=16, steps=6), encoder(data, bs=4, steps=24, accumulate=4)
    for l, _ in (a, b): fit(l, how='fit')
    rows = [[torch.cat(t) for t in zip(*s.in_training)] for _, s in (a, b)]
    assert all(s.equal(t) for s, t in zip(*rows))
    assert torch.allclose(flat(a[0]), flat(b[0]), atol=5e-5)


def test_micro_batches_see_the_masks_of_the_batch(data):
    a, b = encoder(data, bs=16, steps=6), encoder(data, bs=16, steps=6, micro_batch=3)
    for l, _ in (a, b): fit(l, how='fit')
    assert same(a[1].in_training, b[1].in_training) and torch.allclose(flat(a[0]), flat(b[0]), atol=5e-5)


def test_validation_has_the_same_masks_at_each_time_and_for_each_batch_size(data):
    learn, fed = encoder(data)
    loss = learn.validate()[0]
    torch.rand(3)
    assert learn.validate()[0] == loss
    fit(learn, 2)
    k = len(fed.in_validation) // 2
    assert same(fed.in_validation[:k], fed.in_validation[k:]) and not same(fed.in_training[:12], fed.in_training[12:])
    by = []
    for bs, n in ((8, 4), (4, 8)):
        l, s = encoder(data, dls=lm_dls(data, bs=bs, seq_len=32, steps=2, valid_batches=n, device='cpu'))
        fit(l)
        by.append([torch.cat(t) for t in zip(*s.in_validation)])
    assert all(a.equal(b) for a, b in zip(*by))


def test_masks_draw_nothing_from_the_generators(data):
    cb, x = callback(data, spans=True), torch.randint(4, 300, (4, 32))
    before = torch.get_rng_state()
    cb.hidden(x, x, torch.arange(4))
    assert torch.get_rng_state().equal(before)


def test_rows_cut_by_a_schedule_are_hidden_too(data):
    learn, fed = encoder(data, cbs=[SequenceWarmup([(.5, 8)])])
    fit(learn)
    assert fed.in_training[0][0].shape == (32, 8) and all((y != IGNORE).any(1).all() for _, y in fed.in_training)


def two(out):
    "The losses and weights of an encoder on this rank, of its half of each batch."
    from llmbook.parallel.learner import parallel
    from llmbook.distributed.world import join, rank, world
    device = join('cpu')
    dls = lm_dls(out, bs=16 // world(), seq_len=32, steps=6, valid_batches=2, device=device, rank=rank(), world=world())
    learn, _ = encoder(out, dls=dls, cbs=[MaskTokens(spans=True)], path=out)
    fit(parallel(learn, 'ddp'), how='fit')
    return [float(v) for v in learn.recorder.values[-1][:2]], flat(learn).tolist()


@pytest.mark.skipif(not torch.distributed.is_available() or not torch.distributed.is_gloo_available(), reason='this torch has no gloo')
def test_two_ranks_are_one_rank_with_twice_the_batch(data):
    from llmbook.distributed.launch import launch
    one, both = two(data), launch(two, 2, data, device='cpu')
    assert both[0] == pytest.approx(one[0], abs=2e-4) and np.abs(np.array(both[1]) - np.array(one[1])).max() < 1e-4


@pytest.mark.parametrize('spans', [False, True], ids=['tokens', 'spans'])
def test_stopped_anywhere_it_goes_on_bit_for_bit(data, tmp_path, spans):
    class Stop(Callback):
        order, run_valid = 90, False
        def after_batch(self):
            if self.train_iter == 17: raise InterruptedError
    def run(out, *cbs):
        learn, fed = encoder(data, steps=10, cbs=[MaskTokens(spans=spans), Checkpoint(tmp_path/out, every=4), *cbs])
        try: fit(learn, 3)
        except InterruptedError: pass
        return learn, fed
    whole, first = run('whole')
    run('cut', Stop())
    again, rest = run('cut')
    k = again.checkpoint.resumed
    assert 0 < k <= 17 and same(first.in_training[k:], rest.in_training) and flat(whole).equal(flat(again)) and whole.recorder.values == again.recorder.values
    other, _ = encoder(data, steps=10, cbs=[MaskTokens(spans=spans, rate=.3), Checkpoint(tmp_path/'cut', every=4)])
    with pytest.raises(UserError, match='masks that the run began with.*rate'): fit(other, 3)


def test_the_command_trains_an_encoder_and_is_the_same_after_a_kill(data, tmp_path):
    "`llmbook-pretrain --size encoder-nano`, killed with -9 after step 7 and called again."
    command = stopped_command(tmp_path, data, 7, 'self.learn.checkpoint.wait(); os.kill(os.getpid(), signal.SIGKILL)', '--size', 'encoder-nano')
    r = command('cut', '--checkpoint-minutes', '.0001')
    assert r.returncode == -9 and any((tmp_path/'cut/checkpoints').glob('step-*')), r.stderr[-2000:]
    made = json.loads((tmp_path/'cut/plan.json').read_text())
    assert made['size'] == 'encoder-nano' and made['config']['family'] == 'encoder'
    (tmp_path/'whole').mkdir(); (tmp_path/'whole/plan.json').write_text(json.dumps(made))
    for out in ('cut', 'whole'):
        r = command(out, '--resume'); assert r.returncode == 0, r.stderr[-2000:]
    assert sha256(tmp_path/'cut/model/model.safetensors') == sha256(tmp_path/'whole/model/model.safetensors')
    assert json.loads((tmp_path/'cut/model/tokenizer_config.json').read_text())['mask_token'] == '<|answer|>'


# what is learnt

def without_context(g, text):
    "The least loss of who sees the place of a target alone: hidden, shown, or another token."
    one = g.stationary.reshape(g.n_symbols, -1).sum(0) if g.order == 1 else g.stationary.reshape(g.n_symbols, g.n_symbols).sum(0)
    h, n = -(one * np.log(one)).sum(), g.n_symbols
    joint = np.diag(one / 2) + np.outer(one, np.full(n, .5 / text))
    return .8 * h + .2 * (-(joint * np.log(joint / joint.sum(0))).sum() + .5 * (1 - n / text) * h)


def test_an_encoder_learns_the_grammar(data):
    g, dls = Grammar(), lm_dls(data, bs=16, seq_len=32, steps=80, valid_batches=8, device='cpu')
    learn, _ = encoder(data, dls=dls, lr=2e-2)
    fit(learn, 5)
    loss, blind = learn.recorder.values[-1][1], without_context(g, 296)
    assert loss < blind - .15 and loss < g.entropy(0) - .3, f'{loss:.4f} nats against {g.entropy(0):.4f} for a symbol, {blind:.4f} for the place alone'
    assert learn.recorder.metric_names[3] == 'masked_perplexity' and learn.recorder.values[-1][2] == pytest.approx(np.exp(loss), rel=1e-5)


def test_objectives_that_cannot_be_are_refused(data):
    dls = lm_dls(data, bs=4, seq_len=32, steps=2, valid_batches=1, device='cpu')
    enc, dec = (ModelConfig(vocab_size=300, **c) for c in (ENCODER, CONFIG))
    for config, kw, say in ((enc, dict(objective='next'), 'would have to predict'), (dec, dict(objective='masked'), 'one side of a gap'),
                            (dec, dict(cbs=MaskTokens()), 'one side of a gap'), (enc, dict(objective='both'), "got 'both'")):
        with pytest.raises(UserError, match=say): lm_learner(dls, config, **kw)
    assert not hasattr(lm_learner(dls, dec), 'mask_tokens') and lm_learner(dls, enc, objective='masked').mask_tokens.rate == .15


def test_an_encoder_is_not_scored_or_tuned_like_a_decoder(data):
    "It would see the answers: the best perplexity that ever was, and worth nothing."
    from llmbook.evaluate.perplexity import evaluate_text
    from llmbook.tune.finetune import finetune_learner
    learn, tok = encoder(data)[0], load_tokenizer(data)
    with pytest.raises(UserError, match='expected a decoder'): evaluate_text(learn.model, tok, ['a text'])
    with pytest.raises(UserError, match='would have to predict'): finetune_learner(learn.model, learn.dls)


def test_a_run_in_a_folder_with_gaps_as_samples(data, tmp_path):
    tok = load_tokenizer(data)
    plan = SimpleNamespace(config=ModelConfig(vocab_size=read_manifest(data)['vocab_size'], **ENCODER).to_dict(), bs=8, seq_len=32, steps=6, lr=1e-2, seed=1,
                           machine=dict(peak_flops=1e12))
    learn = pretrain(data, plan, tmp_path/'out', evaluations=2, sample=lambda m, texts: filled(m, tok, texts), prompts=['a <|mask|> b'], device='cpu')
    rows = json.loads((tmp_path/'out/samples.json').read_text())
    assert [r['step'] for r in rows] == [3, 6] and all('<|mask|>' not in r['text'] and r['prompt'] == 'a <|mask|> b' for r in rows)
    f = flops_by_part(learn.model.config, 32)
    assert learn.telemetry.flops_per_token == f['total'] - round(.85 * 6 * learn.model.config.vocab_size * 32)
    assert learn.telemetry.rows[-1]['tokens'] == 6 * 8 * 32                # positions read, not targets
    with pytest.raises(UserError, match='where something is missing'): fill_mask(learn.model, tok, 'a b')


# batches that grow

@pytest.mark.parametrize('shape, want', [('double', [1, 2, 4]), ('linear', [1, 2, 3, 4, 5, 6, 7])])
def test_stages_grow_to_the_full_size(shape, want):
    s = growing(8, .5, shape=shape)
    assert [k for _, k in s] == want and s[-1][0] == pytest.approx(.5) and np.allclose(np.diff([0, *(a for a, _ in s)]), .5 / len(want))
    assert growing(6, .5, 2) == [(.25, 2), (.5, 4)] and growing(4, .5, 4) == []


class Sizes(Callback):
    "The batches that each step of the optimiser took."
    order, run_valid = 95, False
    def before_fit(self): self.taken, self.at = [], 0
    def after_step(self): self.taken.append(self.train_iter + 1 - self.at); self.at += self.taken[-1]


def grown(data, out=None, stop=None, **kwargs):
    class Stop(Callback):
        order, run_valid = 90, False
        def after_batch(self):
            if self.train_iter == stop: raise InterruptedError
    cbs = [BatchWarmup(**kwargs), Sizes(), *([Checkpoint(out, every=5)] if out else []), *([Stop()] if stop else [])]
    dls = lm_dls(data, bs=4, seq_len=32, steps=20, valid_batches=2, device='cpu')
    learn = lm_learner(dls, ModelConfig(vocab_size=read_manifest(data)['vocab_size'], **CONFIG), lr=1e-2, accumulate=4, cbs=cbs)
    try: fit(learn, 3)
    except InterruptedError: pass
    return learn


def test_a_grown_batch_counts_all_tokens_and_ends_at_the_full_size(data):
    learn = grown(data, until=.5)
    assert learn.sizes.taken == [1] * 15 + [2, 2, 1] + [2] * 5 + [4, 4, 2] + [4] * 5 and learn.accumulate.n == 4 # epochs of 20
    assert learn.telemetry.rows[-1]['tokens'] == 60 * 4 * 32 and sum(r.get('targets', 0) for r in learn.telemetry.rows) == 60 * 4 * 32
    steps = [r['step'] for r in learn.telemetry.rows if 'loss' in r]
    assert steps == sorted(steps) and steps[-1] == 60


def test_the_last_stage_is_the_accumulation_alone(data):
    "After its stages a step is what Accumulate does by itself: with none, the same weights."
    a = grown(data, stages=[(1e-9, 1)])
    dls = lm_dls(data, bs=4, seq_len=32, steps=20, valid_batches=2, device='cpu')
    b = fit(lm_learner(dls, ModelConfig(vocab_size=read_manifest(data)['vocab_size'], **CONFIG), lr=1e-2, accumulate=4), 3)
    assert a.sizes.taken[0] == 1 and a.sizes.taken[1:5] == [4] * 4
    c = grown(data, first=4)
    assert flat(c).equal(flat(b))


@pytest.mark.parametrize('stop', [17, 22])
def test_a_grown_batch_goes_on_bit_for_bit(data, tmp_path, stop):
    whole = grown(data, tmp_path/'whole', until=.6)
    grown(data, tmp_path/'cut', stop, until=.6)
    again = grown(data, tmp_path/'cut', until=.6)
    assert again.checkpoint.resumed and flat(whole).equal(flat(again)) and whole.recorder.values == again.recorder.values


def test_other_stages_are_refused(data, tmp_path):
    grown(data, tmp_path, 17, until=.6)
    with pytest.raises(UserError, match='batch sizes that the run began with.*stages'): grown(data, tmp_path, until=.3)


# golden curves

@pytest.mark.parametrize('family', ['gpt2', 'encoder'])
def test_golden_curve(data, family):
    "A change that claims no effect has none: 50 steps, to what another processor's rounding may change."
    config = ModelConfig(vocab_size=read_manifest(data)['vocab_size'], family=family, n_layer=2, d_model=32, n_head=2, context=32)
    threads = torch.get_num_threads(); torch.set_num_threads(1)
    learn = lm_learner(lm_dls(data, bs=8, seq_len=32, steps=50, valid_batches=8, device='cpu'), config, lr=1e-2, precision='fp32')
    learn.telemetry.every = 5
    try: fit(learn)
    finally: torch.set_num_threads(threads)
    got, golden = [r['loss'] for r in learn.telemetry.rows if 'loss' in r], HERE/'golden'/f'loss_{family}.json'
    if os.environ.get('LLMBOOK_GOLDEN') == 'write': golden.write_text(json.dumps([round(v, 5) for v in got]) + '\n')
    assert got == pytest.approx(json.loads(golden.read_text()), rel=2e-3)
