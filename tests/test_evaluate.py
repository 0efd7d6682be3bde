"Scores held against the reference implementations, and what evaluation must refuse."
import csv, gzip, hashlib, io, json, math, os, pickle, subprocess, sys, zipfile
from pathlib import Path
import numpy as np
import pytest
import torch
from scipy import stats as ss
from llmbook.core import UserError, import_transformers, sha256
from llmbook.evaluate import bias, overlap, perplexity, stats, toxicity
from llmbook.filters.toxicity import ASSETS, BITS, SmokeDetector

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get('LLMBOOK_DATA') or ROOT.parent/'shared'/'data')


def data(name):
    "A folder of real data; the test skips by name where it is absent."
    if not (DATA/name).is_dir(): pytest.skip(f'no real data here: {name} (set LLMBOOK_DATA)')
    return DATA/name


# 60 stats

def test_bootstrap_is_scipys():
    v = np.random.default_rng(3).gamma(2, size=40)
    ours = stats.bootstrap(v, n_boot=500, seed=7)
    theirs = ss.bootstrap((v,), np.mean, n_resamples=500, method='percentile', rng=np.random.default_rng(7)).confidence_interval
    assert ours == pytest.approx(tuple(theirs), rel=1e-12)


def test_bootstrap_covers_the_truth():
    rng = np.random.default_rng(0)
    hits = 0
    for i in range(200):
        n = rng.integers(5, 50, 60)                                      # tokens of a document; 2 nats each on average
        v = np.c_[n * rng.gamma(4, .5, 60), n]
        low, high = stats.bootstrap(v, stats.ratio, n_boot=200, seed=i)
        hits += low <= 2 <= high
    assert .88 <= hits / 200 <= .99


@pytest.mark.parametrize('k,n', [(0, 20), (3, 20), (20, 20), (1, 1), (500, 1000)])
def test_wilson_is_scipys(k, n):
    for level in (.9, .95):
        ci = ss.binomtest(k, n).proportion_ci(level, method='wilson')
        assert stats.wilson(k, n, level) == pytest.approx((ci.low, ci.high), abs=1e-9)


def test_paired_p_is_the_permutation_test():
    rng = np.random.default_rng(1)
    a = rng.normal(size=10)
    b = a - rng.normal(.5, .8, 10)
    exact = ss.permutation_test((a, b), lambda x, y: (x - y).mean(), permutation_type='samples', n_resamples=np.inf).pvalue
    d = stats.paired_difference(a, b, n_boot=4000)
    assert d['value'] == pytest.approx((a - b).mean()) and d['low'] < d['value'] < d['high']
    assert d['p'] == pytest.approx(exact, abs=.02)


def test_rows_are_plain_json():
    r = stats.row('x', np.float32(1.5), float('nan'), np.inf, n=np.int64(3))
    assert json.loads(json.dumps(r, allow_nan=False)) == dict(metric='x', split='test', value=1.5, low=None, high=None, n=3, signature='')
    assert '1.5' in stats.rows_text([r])


# 61 perplexity

@pytest.fixture(scope='module')
def small():
    from pydoc_data.topics import topics
    from llmbook.tokens.tokenizer import train_tokenizer
    from llmbook.model.config import ModelConfig
    from llmbook.model.transformer import Transformer
    texts = [topics[k] for k in sorted(topics, key=lambda k: (len(topics[k]), k))[:8]] + ['One short line.', 'Größe: 3 €']
    tok = train_tokenizer(texts, 384)
    torch.manual_seed(0)
    model = Transformer(ModelConfig(vocab_size=tok.get_vocab_size(), n_layer=2, d_model=32, n_head=2, n_kv_head=1, context=32))
    with torch.no_grad():
        for p in model.parameters(): p.mul_(4)                            # far from uniform, so that mistakes show
    return model, tok, texts


def test_nats_do_not_depend_on_batches_or_padding(small):
    model, tok, texts = small
    one = np.concatenate([perplexity.document_nats(model, tok, [t], batch_size=1) for t in texts])
    for bs, chunk in ((2, 7), (5, 1000), (1000, 64)):
        assert perplexity.document_nats(model, tok, texts, batch_size=bs, chunk=chunk) == pytest.approx(one, rel=1e-5)
    back = perplexity.document_nats(model, tok, texts[::-1])[::-1]
    assert back == pytest.approx(one, rel=1e-5)
    assert one[:, 2].tolist() == [len(t.encode()) for t in texts]


@pytest.mark.parametrize('stride', [1, 10, 16, 32])
def test_windows_score_each_token_once_with_the_stated_context(small, stride):
    model, tok, texts = small
    ids = tok.encode(texts[4]).ids
    assert len(ids) > 64
    total, start = 0., 0
    full, scored = [0] + ids, 0
    while scored < len(ids):                                              # the definition, token by token
        end = min(len(ids), start + 32)
        lp = torch.log_softmax(model.logits(model(torch.tensor([full[start:end]])))[0].double(), -1)
        for t in range(scored, end): total -= lp[t - start, ids[t]].item()
        scored, start = end, start + stride
    v = perplexity.document_nats(model, tok, [texts[4]], stride=stride)
    assert v[0, 0] == pytest.approx(total, rel=1e-5) and v[0, 1] == len(ids)


def test_perplexity_is_the_loss_of_transformers(small, tmp_path):
    hub = pytest.importorskip('llmbook.model.hf')
    model, tok, texts = small
    hub.save_pretrained(model, tok, tmp_path)
    hf = import_transformers().AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    nats = n = 0
    short = [t for t in texts if len(tok.encode(t).ids) < 32]
    for t in short:
        x = torch.tensor([[0] + tok.encode(t).ids])
        with torch.no_grad(): nats, n = nats + hf(x, labels=x).loss.item() * (x.shape[1] - 1), n + x.shape[1] - 1
    rows = {r['metric']: r for r in perplexity.evaluate_text(model, tok, short)}
    assert rows['perplexity']['value'] == pytest.approx(math.exp(nats / n), rel=1e-4)
    assert rows['bits_per_byte']['value'] == pytest.approx(nats / math.log(2) / sum(len(t.encode()) for t in short), rel=1e-4)
    assert rows['perplexity']['n'] == len(short) and 'bos:end-of-text' in rows['perplexity']['signature']


def test_no_more_logits_than_a_chunk(small, monkeypatch):
    model, tok, texts = small
    from llmbook.train import loss
    seen, real = [], loss.linear
    monkeypatch.setattr(loss, 'linear', lambda h, w, b=None: seen.append((len(h), len(w))) or real(h, w, b))
    perplexity.document_nats(model, tok, texts, chunk=16)
    assert seen and max(n for n, v in seen if v == tok.get_vocab_size()) <= 16


def test_evaluation_leaves_the_model_as_it_was(small):
    model, tok, texts = small
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.train()
    perplexity.evaluate_text(model, tok, texts[:2])
    assert model.training and all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())
    model.eval()


def test_special_words_in_a_document_are_text(small):
    model, tok, _ = small
    v = perplexity.document_nats(model, tok, ['<|endoftext|>'])
    assert v[0, 1] > 1 and v[0, 2] == 13


def test_compressors_are_the_programs():
    texts = ['to be or not to be ' * 20, 'that is the question ' * 20, 'x' * 100]
    b = ''.join(texts).encode()
    rows = {r['group']: r for r in perplexity.compressor_rows(texts)}
    assert rows['gzip']['value'] == pytest.approx(8 * len(gzip.compress(b, 9)) / len(b))
    assert set(rows) == {'gzip', 'xz', 'bz2'} and all(r['low'] <= r['value'] <= r['high'] for r in rows.values())
    assert perplexity.compressor_rows(texts[:1])[0]['low'] is None


def test_continuations_alone_and_in_a_crowd(small):
    model, tok, _ = small
    p, c = ['One', 'One short', '', 'a b c d e f'], [' short line.', ' line.', 'One', ' x']
    many = perplexity.continuation_logprob(model, tok, p, c)
    assert many == pytest.approx(np.concatenate([perplexity.continuation_logprob(model, tok, [a], [b]) for a, b in zip(p, c)]), rel=1e-5)
    assert (many < 0).all()
    with pytest.raises(UserError, match='within 32 tokens'): perplexity.continuation_logprob(model, tok, ['a ' * 100], ['b'])


# 62 overlap

def test_rouge_is_the_perl_script():
    d = data('rouge_reference')
    want = json.loads((d/'expected.json').read_text())
    preds, refs = ((d/f'{n}.txt').read_text().splitlines() for n in ('prediction', 'target'))
    for stem in (False, True):
        got = overlap.rouge_scores(preds, refs, stemmer=stem)
        for p in want['pairs']:
            for k in ('rouge1', 'rouge2', 'rougeL'):
                key = k + '_stem' * stem
                if key in p: assert got[k][p['line']] == pytest.approx(p[key]['f'], abs=1e-5), (k, stem)
    multi = overlap.rouge_scores([(d/'prediction_multi.0.txt').read_text()], [(d/'target_multi.0.txt').read_text()])
    assert multi['rougeLsum'][0] == pytest.approx(want['multi_0']['rougeLsum_stem']['f'], abs=2e-5)
    for t in want['toy']:
        got = overlap.rouge_scores([t['prediction']], [t['target']], stemmer=False)
        for k in overlap.ROUGE_KINDS:
            if k in t: assert got[k][0] == pytest.approx(t[k]['f'], abs=1e-4)


def test_bleu_and_chrf_are_sacrebleus():
    d = data('sacrebleu_reference')
    cases = json.loads((d/'cases.json').read_text())
    for preds, streams, kw, want in cases['test_bleu.py']['test_corpus_bleu_cases']:
        got = overlap.bleu(preds, [list(r) for r in zip(*streams)], n_boot=2, **kw)[0]
        assert got['value'] == pytest.approx(want, abs=1e-5)
    for pred, refs, want in cases['test_chrf.py']['test_sentence_level_chrf']:
        assert overlap.chrf([pred], [refs], n_boot=2, eps_smoothing=True)[0]['value'] == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize('system', ['FBK.4870.en-de', 'PROMT-Rule-based.4735.en-de'])
def test_bleu_of_wmt17(system):
    d = data('sacrebleu_reference')
    want = json.loads((d/'expected.json').read_text())['systems'][system]
    read = lambda n: gzip.open(d/'wmt17_en_de'/f'{n}.txt.gz', 'rt', encoding='utf-8').read().split('\n')[:3004]
    r = overlap.bleu(read(system), read('ref'), n_boot=100)[0]
    assert r['value'] == pytest.approx(want['bleu_mteval13a'], abs=.006) and r['low'] < r['value'] < r['high'] and r['n'] == 3004
    assert 'tok:13a' in r['signature'] and 'bs:100' in r['signature'] and 'version:' in r['signature']
    if 'chrf' in want: assert overlap.chrf(read(system), read('ref'), n_boot=2)[0]['value'] == pytest.approx(want['chrf'], abs=1e-4)


def test_references_in_unequal_numbers():
    r = overlap.bleu(['the cat sat on the mat', 'a dog'], [['the cat sat on a mat', 'the cat sat on the mat'], 'a dog'])[0]
    assert r['value'] == pytest.approx(100) and 'nrefs:var' in r['signature']
    assert overlap.rouge_scores(['a cat'], [['nothing', 'a cat']])['rouge2'][0] == 1


def test_overlap_refuses():
    for f in (overlap.rouge, overlap.bleu, overlap.chrf):
        with pytest.raises(UserError, match='at least one prediction'): f([], [])
        with pytest.raises(UserError, match='2 predictions and 1 references'): f(['a', 'b'], ['a'])
        with pytest.raises(UserError, match='a list of references'): f(['a'], 'a')
        with pytest.raises(UserError, match='text, got NoneType'): f([None], ['a'])
        with pytest.raises(UserError, match='none for number 0'): f(['a'], [[]])
        assert f(['', ''], ['a word', 'b'])[0]['value'] == 0


# 63 toxicity

def test_smoke_detector_is_small_and_plain():
    f = ROOT/'llmbook'/'assets'/'smoke_detector.npz'
    card = json.loads(f.with_suffix('.json').read_text(encoding='utf-8'))
    assert f.stat().st_size < 200_000 and sha256(f) == card['sha256']
    with np.load(f, allow_pickle=False) as z: assert z['weights'].dtype == np.int8 and len(z['weights']) == 2**BITS
    for key in ('label', 'data', 'known_failures', 'threshold'): assert card[key]
    assert 'MIT' in card['data'] and 'not a judge' in card['what']
    rows = {(r['metric'], r.get('group')): r for r in card['rows']}
    auc = rows['auc', None]
    assert .9 < auc['low'] < auc['value'] < auc['high'] < 1
    for k in ('ident_neutral_nh', 'ident_pos_nh'): assert rows['hatecheck_flagged_share', k]['n'] > 100


def test_smoke_detector_comes_out_the_same_again(tmp_path):
    for name in ('davidson_hate_speech', 'hatecheck', 'wikitext2'): data(name)
    subprocess.run([sys.executable, ROOT/'bench'/'train_smoke_detector.py', '--out', tmp_path], check=True, cwd=ROOT, env={**os.environ, 'LLMBOOK_DATA': str(DATA)})
    for name in ('smoke_detector.npz', 'smoke_detector.json'):
        assert (tmp_path/name).read_bytes() == (ROOT/'llmbook'/'assets'/name).read_bytes(), name


def test_no_text_of_the_data_sets_is_kept():
    cases = list(csv.DictReader(open(data('hatecheck')/'test_suite_cases.csv', encoding='utf-8', newline='')))
    tweets = csv.DictReader(gzip.open(data('davidson_hate_speech')/'labeled_data.csv.gz', 'rt', encoding='utf-8', newline=''))
    texts = {c['test_case'].strip() for c in cases} | {t['tweet'].strip() for t in tweets if len(t['tweet']) > 20}
    files = [ROOT/'llmbook'/'assets'/'smoke_detector.json', ROOT/'bench'/'train_smoke_detector.py',
             *(ROOT/'nbs'/'api').glob('6*_evaluate.*.ipynb'), Path(__file__)]
    held = [f.name for f in files for s in [f.read_text(encoding='utf-8')] if any(t in s for t in texts)]
    assert held == []


def test_smoke_detector_scores():
    s = SmokeDetector()
    texts = ['You are a stupid idiot, shut up', 'The list is sorted in place.', '', '\ud800 \U0001f600', 'x ' * 3000]
    v = s(texts)
    assert v.shape == (5,) and v[0] > .5 > v[1] and v[2] == 0 and ((0 <= v) & (v <= 1)).all()
    assert np.array_equal(v, np.concatenate([s([t]) for t in texts])) and s([]).shape == (0,)
    assert s(['Sort it. ' * 100 + texts[0]])[0] > .5                      # one insult in a long text is seen


def test_a_changed_smoke_detector_is_refused(tmp_path):
    for n in ('npz', 'json'): (tmp_path/f'smoke_detector.{n}').write_bytes((ASSETS/f'smoke_detector.{n}').read_bytes())
    SmokeDetector(tmp_path)
    f = tmp_path/'smoke_detector.npz'
    f.write_bytes(f.read_bytes()[:-1] + b'!')
    with pytest.raises(UserError, match='another file'): SmokeDetector(tmp_path)


def test_known_checkpoints_are_detoxifys():
    import_transformers()
    from detoxify.detoxify import MODEL_URLS
    assert {u.rsplit('/', 1)[1] for u in MODEL_URLS.values()} == set(toxicity.CHECKPOINTS)


@pytest.fixture(scope='module')
def detox(tmp_path_factory):
    "A BERT of random weights, stored as detoxify stores its own."
    tf, d = import_transformers(), tmp_path_factory.mktemp('detox')
    words = 'the list is sorted you are kind rude and so on'.split()
    (d/'vocab.txt').write_text('\n'.join(['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', *words]) + '\n')
    tf.BertTokenizer(str(d/'vocab.txt'), model_max_length=32).save_pretrained(d)
    conf = tf.BertConfig(vocab_size=5 + len(words), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                         intermediate_size=32, num_labels=3, max_position_embeddings=40, initializer_range=.5)
    conf.save_pretrained(d)
    torch.manual_seed(0)
    model = tf.BertForSequenceClassification(conf)
    args = dict(num_classes=3, model_type=str(d), model_name='BertForSequenceClassification', tokenizer_name='BertTokenizer')
    ck = {'config': {'arch': {'args': args}, 'dataset': {'args': {'classes': ['insult', 'toxic', 'threat']}}}, 'state_dict': model.state_dict()}
    torch.save(ck, d/'made.ckpt')
    return d, ck


def test_detoxify_scores_are_detoxifys(detox):
    from detoxify import Detoxify
    d, _ = detox
    texts = ['you are kind', 'the list is sorted and so on', 'rude', 'you are rude rude rude']
    ours = toxicity.DetoxifyScorer(d/'made.ckpt', config=d, sha256=sha256(d/'made.ckpt'), batch_size=3)
    theirs = Detoxify(checkpoint=str(d/'made.ckpt'), huggingface_config_path=str(d)).predict(texts)['toxicity']
    assert ours(texts) == pytest.approx(np.array(theirs), abs=1e-6) and np.ptp(theirs) > .01
    one = ours(texts[:1])
    assert isinstance(one, np.ndarray) and one.shape == (1,) and ours([]).shape == (0,)
    long = ours(['kind ' * 25 + 'rude ' * 200, 'kind ' * 25, 'rude ' * 20])
    assert long[0] != pytest.approx(long[1], abs=1e-4)                   # what lies beyond the window counts
    assert 'sha256' in ours.signature


def test_checkpoints_that_are_refused(detox, tmp_path):
    d, ck = detox
    with pytest.raises(UserError, match='name its sha256'): toxicity.toxicity_scorer(d/'made.ckpt', config=d)
    with pytest.raises(UserError, match='do not use'): toxicity.toxicity_scorer(d/'made.ckpt', d, '0' * 64)
    with pytest.raises(UserError, match='64 hexadecimal'): toxicity.toxicity_scorer(d/'made.ckpt', d, 'c121')
    with pytest.raises(UserError, match='found none'): toxicity.toxicity_scorer(tmp_path/'absent.ckpt')
    fake = tmp_path/toxicity.CHECKPOINTS[0]
    fake.write_bytes((d/'made.ckpt').read_bytes())
    with pytest.raises(UserError, match='with sha256 c1212f89'): toxicity.toxicity_scorer(fake, d)

    def refused(change, match):
        new = {**ck, 'config': json.loads(json.dumps(ck['config'])), 'state_dict': dict(ck['state_dict'])}
        change(new)
        torch.save(new, tmp_path/'x.ckpt')
        with pytest.raises(UserError, match=match): toxicity.DetoxifyScorer(tmp_path/'x.ckpt', d, sha256(tmp_path/'x.ckpt'))
    refused(lambda c: c['config']['arch']['args'].update(model_name='AutoModel'), 'expected one of')
    refused(lambda c: c['state_dict'].pop('classifier.bias'), '1 missing or unexpected')
    refused(lambda c: c['config']['dataset']['args'].update(classes=['a', 'b', 'c']), 'a class toxicity')
    refused(lambda c: c.pop('config'), 'as detoxify stores')


class Evil:
    def __init__(self, path): self.path = path
    def __reduce__(self): return open, (self.path, 'w')


def test_a_checkpoint_cannot_run_code(tmp_path):
    mark = tmp_path/'pwned'
    torch.save({'config': Evil(str(mark))}, tmp_path/'evil.ckpt')
    (tmp_path/'old.ckpt').write_bytes(pickle.dumps(Evil(str(mark))))
    for n in ('evil.ckpt', 'old.ckpt'):
        with pytest.raises(UserError, match='tensors and plain values'): toxicity.DetoxifyScorer(tmp_path/n, tmp_path, sha256(tmp_path/n))
    assert not mark.exists()


def test_without_weights_the_smoke_detector_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    s = toxicity.toxicity_scorer()
    assert s.name == 'toxicity detector' and 'not a judge' in s.note and 'not on this machine' in s.note
    (tmp_path/'checkpoints').mkdir()
    (tmp_path/'checkpoints'/toxicity.CHECKPOINTS[0]).write_bytes(b'damaged')
    assert 'do not use this file' in toxicity.toxicity_scorer().note


def test_toxicity_rows_by_hand():
    class Length:
        signature = 'scorer:length'
        def __call__(self, texts): return np.array([len(t) / 10 for t in texts])
    rows = {r['metric']: r for r in toxicity.toxicity_rows([['a', 'a' * 5], ['a' * 2, 'a' * 3], ['a' * 9, '']], Length())}
    assert rows['expected_max_toxicity']['value'] == pytest.approx((.5 + .3 + .9) / 3)
    assert rows['max_toxicity_deviation']['value'] == pytest.approx(np.std([.5, .3, .9]))
    assert rows['toxicity_probability']['value'] == pytest.approx(2 / 3) and 'k:2' in rows['toxicity_probability']['signature']
    assert toxicity.toxicity_rows(['aaaa'], Length())[0]['value'] == pytest.approx(.4)


# 64 bias

def test_wasserstein_is_scipys():
    rng = np.random.default_rng(0)
    for k in (1, 5, 30):
        a, b = rng.random(k), rng.random(k)
        assert bias.wasserstein(a, b) == pytest.approx(ss.wasserstein_distance(a, b))


def test_prompts_differ_in_the_identity_alone():
    for axis, who, i, prompt in bias.swap_prompts():
        before, after = bias.TEMPLATES[i].prompt.split('{who}')
        assert prompt == before + who + after and who in bias.GROUPS[axis]


def test_likelihood_gaps_by_hand():
    groups, T = {'x': ['a', 'b']}, [bias.Template('{who} is', ' good', ' bad'), bias.Template('see {who}', ' win', ' lose')]
    unkind = {' bad', ' lose'}
    lp = lambda ps, cs: np.array([-1. - .4 * ('a ' in p + ' ') * (c in unkind) for p, c in zip(ps, cs)])
    rows = {(r['metric'], r['group']): r['value'] for r in bias.likelihood_gaps(lp, groups, T)}
    assert rows['likelihood_gap', 'x'] == pytest.approx(.2)              # half of the continuations move by 0.4
    assert rows['unkind_lean', 'x: a'] == pytest.approx(-.2) and rows['unkind_lean', 'x: b'] == pytest.approx(.2)


def test_an_even_handed_writer_has_no_excess():
    class Score:
        def __call__(self, texts): return np.array([float(t) for t in texts])
    sample = lambda prompts, seed: [str(u) for u in np.random.default_rng([5, seed]).random(len(prompts))]
    T = [bias.Template(f'{i} {{who}}', ' a', ' b') for i in range(40)]
    groups = {'x': ['a', 'b', 'c']}
    rows = {r['metric']: r for r in bias.toxicity_gaps(sample, Score(), groups, T, draws=4)}
    assert rows['toxicity_gap_excess']['low'] < 0 < rows['toxicity_gap_excess']['high'] and rows['toxicity_gap_null']['value'] > .05
    same = {r['metric']: r for r in bias.toxicity_gaps(lambda p, s: ['0.5'] * len(p), Score(), groups, T, draws=2)}
    assert same['toxicity_gap']['value'] == same['toxicity_gap_null']['value'] == 0


def test_identity_swap_of_a_model_can_be_repeated(small):
    _, tok, _ = small
    from llmbook.model.config import ModelConfig
    from llmbook.model.transformer import Transformer
    torch.manual_seed(1)
    model = Transformer(ModelConfig(vocab_size=tok.get_vocab_size(), n_layer=1, d_model=16, n_head=2, n_kv_head=1, context=128))
    groups = {a: bias.GROUPS[a][:2] for a in (bias.NEUTRAL, 'gender')}
    run = lambda bs: bias.identity_swap(model, tok, groups=groups, templates=bias.TEMPLATES[:2], draws=1, max_new_tokens=4, batch_size=bs)
    a, b = run(64), run(64)
    assert a == b and {r['split'] for r in a} == {'identity swap'}
    c = run(3)
    assert [r['value'] for r in c] == pytest.approx([r['value'] for r in a], abs=1e-4)
