"Scores held against the reference implementations, and what evaluation must refuse."
import csv, gzip, json, math, os, pickle, shutil, string, subprocess, sys, warnings
from pathlib import Path
import numpy as np
import pytest
import torch
from real_data import DATA, real_data
from scipy import stats as ss
from llmbook.core import UserError, import_transformers, sha256
from llmbook.evaluate import bias, overlap, perplexity, stats, toxicity
from llmbook.filters.toxicity import ASSETS, BITS, SmokeDetector

ROOT = Path(__file__).resolve().parents[1]


def by_metric(rows): return {r['metric']: r for r in rows}


# ---- stats ----

def test_bootstrap_is_scipys():
    v = np.random.default_rng(3).gamma(2, size=40)
    ours = stats.bootstrap(v, n_boot=500, seed=7)
    theirs = ss.bootstrap((v,), np.mean, n_resamples=500, method='percentile', rng=np.random.default_rng(7))
    assert ours == pytest.approx(tuple(theirs.confidence_interval), rel=1e-12)


def test_bootstrap_covers_the_truth():
    rng = np.random.default_rng(0)
    hits = 0
    for i in range(200):
        tokens = rng.integers(5, 50, 60) # of 60 documents, 2 nats a token on average
        v = np.c_[tokens * rng.gamma(4, .5, 60), tokens]
        low, high = stats.bootstrap(v, stats.ratio, n_boot=200, seed=i)
        hits += low <= 2 <= high
    assert .88 <= hits / 200 <= .99


@pytest.mark.parametrize('k, n', [(0, 20), (3, 20), (20, 20), (1, 1), (500, 1000)])
def test_wilson_is_scipys(k, n):
    for level in (.9, .95):
        theirs = ss.binomtest(k, n).proportion_ci(level, method='wilson')
        assert stats.wilson(k, n, level) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


def test_paired_p_is_the_permutation_test():
    rng = np.random.default_rng(1)
    a = rng.normal(size=10)
    b = a - rng.normal(.5, .8, 10)
    def statistic(x, y): return (x - y).mean()
    every_swap = dict(permutation_type='samples', n_resamples=np.inf)
    exact = ss.permutation_test((a, b), statistic, **every_swap)
    d = stats.paired_difference(a, b, n_boot=400)
    assert d['method'] == 'sign flips, exact'
    assert d['p'] == pytest.approx(exact.pvalue)
    assert d['value'] == pytest.approx((a - b).mean())
    assert d['low'] < d['value'] < d['high']
    assert d['p'] == pytest.approx(exact.pvalue, abs=.02)


def test_clusters_are_drawn_and_swapped_together():
    "Copy each example five times: interval and p stay those of the ten originals."
    rng = np.random.default_rng(0)
    a = rng.normal(1, 1, 10)
    b = rng.normal(0, 1, 10)
    five_a, five_b = a.repeat(5), b.repeat(5)
    label = np.repeat(range(10), 5)
    ten = stats.paired_difference(a, b, n_boot=300)
    fifty = stats.paired_difference(five_a, five_b, n_boot=300, clusters=label)
    for key in ('value', 'low', 'high', 'p'): assert fifty[key] == pytest.approx(ten[key])
    interval = stats.bootstrap(a)
    assert stats.bootstrap(five_a, clusters=label) == pytest.approx(interval)


def test_a_single_cluster_has_no_interval():
    assert stats.bootstrap(np.arange(10.), clusters=['same'] * 10) == (None, None)


def test_clustered_error_by_hand():
    assert stats.clustered_error([1, 1, 0, 0]) == pytest.approx(.288675, abs=1e-6)
    assert stats.clustered_error([1, 1, 0, 0], ['a', 'a', 'b', 'b']) == pytest.approx(.381881, abs=1e-6)
    assert stats.clustered_error([1, 2, 4]) == pytest.approx(ss.sem([1, 2, 4]))


def test_exact_tests_are_scipys():
    assert stats.sign_test(2, 10) == pytest.approx(.0386, abs=5e-5)
    assert stats.sign_test(0, 1) == stats.sign_test(0, 0) == 1
    assert stats.fisher_exact(4, 5, 0, 5) == pytest.approx(.0476, abs=5e-5)
    for k, n, other_k, other_n in ((3, 20, 9, 18), (0, 4, 0, 9)):
        table = [[k, n - k], [other_k, other_n - other_k]]
        assert stats.fisher_exact(k, n, other_k, other_n) == pytest.approx(ss.fisher_exact(table)[1])


def test_right_and_wrong_answers_are_mcnemars():
    a = np.array([1] * 40 + [1] * 10 + [0] * 2 + [0] * 20)
    b = np.array([1] * 40 + [0] * 10 + [1] * 2 + [0] * 20)
    d = stats.paired_difference(a, b)
    assert d['method'] == 'McNemar, exact'
    assert d['p'] == pytest.approx(ss.binomtest(10, 12).pvalue)


def test_eight_of_eight_is_more_than_luck():
    a = np.c_[np.arange(100, 180, 10) - 1., [50] * 8] # nats, tokens
    b = np.c_[np.arange(100, 180, 10), [50] * 8]
    d = stats.paired_difference(a, b, stats.ratio)
    assert d['value'] == pytest.approx(-.02)
    assert d['p'] == 2 / 256


def test_corrections_for_many_tests():
    ps = [.005, .011, .02, .04, .13]
    by_hand = [.025, .044, .06, .08, .13] # 5 x .005, 4 x .011, 3 x .02, 2 x .04, .13
    assert stats.holm(ps) == pytest.approx(by_hand)
    assert stats.holm(ps[::-1]) == pytest.approx(by_hand[::-1])
    for some in (ps, ps[::-1], [.5, .5], [.9]):
        assert stats.benjamini_hochberg(some) == pytest.approx(ss.false_discovery_control(some))


def test_items_come_back():
    r = stats.row('bits_per_byte', 2.)
    ids = stats.item_ids(['a', 'b', 'a'])
    assert len(set(ids)) == 3
    values = [[1.25, 10], [2, 20], [3 / 7, 30]]
    written = json.dumps(stats.with_items(r, ids, values, 'ratio', ['x', 'y', 'x']))
    back = stats.row_items(json.loads(written))
    assert back['ids'] == ids
    assert back['values'] == pytest.approx(np.array(values), rel=1e-8)
    assert back['clusters'] == ['0', '1', '0']
    assert stats.row_items(r) is None
    damaged = [
        None,
        dict(stat='mean'),
        dict(stat='mean', ids='a b', values='1'),
        dict(stat='mean', ids='a', values='x'),
    ]
    for items in damaged: assert stats.row_items({**r, 'items': items}) is None


@pytest.mark.parametrize('three, said', [
    ((28.4123, 26.93, 29.881), ('28.4', '26.9', '29.9')), ((.0123456, .01, .02), ('0.0123', '0.0100', '0.0200')),
    ((0., -2e-17, .031), ('0.0000', '0.0000', '0.0310')), ((12345., None, None), ('12,345', '-', '-')),
    ((None, None, None), ('-', '-', '-')), ((0., 0., 2e-17), ('0', '0', '0'))])
def test_digits_of_an_interval_match_those_of_its_value(three, said): assert stats.digits_of(*three) == said


def test_rows_are_plain_json():
    r = stats.row('x', np.float32(1.5), float('nan'), np.inf, n=np.int64(3))
    written = json.loads(json.dumps(r, allow_nan=False))
    assert written == dict(metric='x', split='test', value=1.5, low=None, high=None, n=3, signature='')
    assert '1.5' in stats.rows_text([r])


# ---- perplexity ----

@pytest.fixture(scope='module')
def small():
    from pydoc_data.topics import topics
    from llmbook.tokens.tokenizer import train_tokenizer
    from llmbook.model.config import ModelConfig
    from llmbook.model.transformer import Transformer
    shortest = sorted(topics, key=lambda k: (len(topics[k]), k))[:8]
    texts = [topics[k] for k in shortest] + ['One short line.', 'Größe: 3 €']
    tok = train_tokenizer(texts, 384)
    torch.manual_seed(0)
    vocab = tok.get_vocab_size()
    model = Transformer(ModelConfig(vocab_size=vocab, n_layer=2, d_model=32, n_head=2, n_kv_head=1, context=32))
    with torch.no_grad():
        for p in model.parameters(): p.mul_(4) # far from uniform, so that mistakes show
    return model, tok, texts


def nats_alone(model, tok, texts):
    "Return the nats, tokens and bytes of each text, which is read in a batch of its own."
    rows = [perplexity.document_nats(model, tok, [text], batch_size=1) for text in texts]
    return np.concatenate(rows)


@pytest.mark.parametrize('batch_size, chunk', [(2, 7), (5, 1000), (1000, 64)])
def test_nats_do_not_depend_on_batches_or_padding(small, batch_size, chunk):
    model, tok, texts = small
    alone = nats_alone(model, tok, texts)
    many = perplexity.document_nats(model, tok, texts, batch_size=batch_size, chunk=chunk)
    assert many == pytest.approx(alone, rel=1e-5)


def test_nats_do_not_depend_on_the_order_of_texts(small):
    model, tok, texts = small
    alone = nats_alone(model, tok, texts)
    from_the_last = perplexity.document_nats(model, tok, texts[::-1])
    assert from_the_last[::-1] == pytest.approx(alone, rel=1e-5)


def test_the_bytes_of_a_text_are_those_of_utf8(small):
    model, tok, texts = small
    sizes = [len(text.encode()) for text in texts]
    assert nats_alone(model, tok, texts)[:, 2].tolist() == sizes


@pytest.mark.parametrize('stride', [1, 10, 16, 32])
def test_windows_score_each_token_once_with_the_stated_context(small, stride):
    model, tok, texts = small
    ids = tok.encode(texts[4]).ids
    assert len(ids) > 64
    inputs = [0] + ids
    total = 0.
    start = scored = 0
    while scored < len(ids): # the definition, token by token
        end = min(len(ids), start + 32)
        x = torch.tensor([inputs[start:end]])
        logits = model.logits(model(x))[0]
        logprobs = torch.log_softmax(logits.double(), -1)
        for t in range(scored, end): total -= logprobs[t - start, ids[t]].item()
        scored = end
        start += stride
    nats, tokens, _ = perplexity.document_nats(model, tok, [texts[4]], stride=stride)[0]
    assert nats == pytest.approx(total, rel=1e-5)
    assert tokens == len(ids)


def test_perplexity_is_the_loss_of_transformers(small, tmp_path):
    hub = pytest.importorskip('llmbook.model.hf')
    model, tok, texts = small
    hub.save_pretrained(model, tok, tmp_path)
    hf = import_transformers().AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    short = [t for t in texts if len(tok.encode(t).ids) < 32]
    nats = tokens = size = 0
    for text in short:
        ids = tok.encode(text).ids
        x = torch.tensor([[0] + ids])
        with torch.no_grad(): loss = hf(x, labels=x).loss.item()
        nats += loss * len(ids)
        tokens += len(ids)
        size += len(text.encode())
    bits = nats / math.log(2)
    rows = by_metric(perplexity.evaluate_text(model, tok, short))
    assert rows['perplexity']['value'] == pytest.approx(math.exp(nats / tokens), rel=1e-4)
    assert rows['bits_per_byte']['value'] == pytest.approx(bits / size, rel=1e-4)
    assert rows['perplexity']['n'] == len(short)
    assert 'bos:end-of-text' in rows['perplexity']['signature']


def test_no_more_logits_than_a_chunk(small, monkeypatch):
    model, tok, texts = small
    from llmbook.train import loss
    seen = []
    real = loss.linear
    def linear(h, w, b=None):
        seen.append((len(h), len(w)))
        return real(h, w, b)
    monkeypatch.setattr(loss, 'linear', linear)
    perplexity.document_nats(model, tok, texts, chunk=16)
    positions = [n for n, outputs in seen if outputs == tok.get_vocab_size()]
    assert positions
    assert max(positions) <= 16


def test_evaluation_leaves_the_model_as_it_was(small):
    model, tok, texts = small
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.train()
    perplexity.evaluate_text(model, tok, texts[:2])
    assert model.training
    for k, v in model.state_dict().items(): assert torch.equal(v, before[k]), k
    model.eval()


def test_special_words_in_a_document_are_text(small):
    model, tok, _ = small
    _, tokens, size = perplexity.document_nats(model, tok, ['<|endoftext|>'])[0]
    assert tokens > 1
    assert size == 13


def test_compressors_are_the_programs():
    texts = ['to be or not to be ' * 20, 'that is the question ' * 20, 'x' * 100]
    b = ''.join(texts).encode()
    rows = {r['group']: r for r in perplexity.compressor_rows(texts)}
    assert rows['gzip']['value'] == pytest.approx(8 * len(gzip.compress(b, 9)) / len(b))
    assert set(rows) == {'gzip', 'xz', 'bz2'}
    for r in rows.values(): assert r['low'] <= r['value'] <= r['high']
    assert perplexity.compressor_rows(texts[:1])[0]['low'] is None


def test_continuations_alone_and_in_a_crowd(small):
    model, tok, _ = small
    prompts = ['One', 'One short', '', 'a b c d e f']
    continuations = [' short line.', ' line.', 'One', ' x']
    many = perplexity.continuation_logprob(model, tok, prompts, continuations)
    alone = []
    for prompt, continuation in zip(prompts, continuations):
        alone += perplexity.continuation_logprob(model, tok, [prompt], [continuation]).tolist()
    assert many == pytest.approx(alone, rel=1e-5)
    assert (many < 0).all()


def test_a_prompt_beyond_the_context_is_refused(small):
    model, tok, _ = small
    with pytest.raises(UserError, match='within 32 tokens'):
        perplexity.continuation_logprob(model, tok, ['a ' * 100], ['b'])


# ---- overlap ----

@pytest.fixture
def perl_rouge():
    "Return what the Perl script gave, and a function that reads one of its texts."
    d = real_data('rouge_reference')
    def read(name): return (d/f'{name}.txt').read_text()
    return json.loads((d/'expected.json').read_text()), read


@pytest.mark.parametrize('stem', [False, True])
def test_rouge_of_pairs_is_the_perl_script(perl_rouge, stem):
    want, read = perl_rouge
    preds = read('prediction').splitlines()
    refs = read('target').splitlines()
    got = overlap.rouge_scores(preds, refs, stemmer=stem)
    for pair in want['pairs']:
        for kind in ('rouge1', 'rouge2', 'rougeL'):
            key = f'{kind}_stem' if stem else kind
            if key not in pair: continue
            f = got[kind][pair['line']]
            assert f == pytest.approx(pair[key]['f'], abs=1e-5), kind


def test_rouge_of_several_lines_and_of_toys_is_the_perl_script(perl_rouge):
    want, read = perl_rouge
    multi = overlap.rouge_scores([read('prediction_multi.0')], [read('target_multi.0')])
    assert multi['rougeLsum'][0] == pytest.approx(want['multi_0']['rougeLsum_stem']['f'], abs=2e-5)
    for toy in want['toy']:
        got = overlap.rouge_scores([toy['prediction']], [toy['target']], stemmer=False)
        for kind in overlap.ROUGE_KINDS:
            if kind in toy: assert got[kind][0] == pytest.approx(toy[kind]['f'], abs=1e-4)


def cases_of_sacrebleu(file, name):
    "Return the cases of one of sacrebleu's own tests."
    content = (real_data('sacrebleu_reference')/'cases.json').read_text()
    return json.loads(content)[file][name]


def test_bleu_is_sacrebleus():
    for preds, streams, options, want in cases_of_sacrebleu('test_bleu.py', 'test_corpus_bleu_cases'):
        refs = [list(r) for r in zip(*streams)]
        got, *_ = overlap.bleu(preds, refs, n_boot=2, **options)
        assert got['value'] == pytest.approx(want, abs=1e-5)


def test_chrf_is_sacrebleus():
    for pred, refs, want in cases_of_sacrebleu('test_chrf.py', 'test_sentence_level_chrf'):
        got, *_ = overlap.chrf([pred], [refs], n_boot=2, eps_smoothing=True)
        assert got['value'] == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize('system', ['FBK.4870.en-de', 'PROMT-Rule-based.4735.en-de'])
def test_bleu_of_wmt17(system):
    d = real_data('sacrebleu_reference')
    want = json.loads((d/'expected.json').read_text())['systems'][system]
    def read(name):
        path = d/'wmt17_en_de'/f'{name}.txt.gz'
        with gzip.open(path, 'rt', encoding='utf-8') as f: return f.read().split('\n')[:3004]
    preds = read(system)
    refs = read('ref')
    r = overlap.bleu(preds, refs, n_boot=100)[0]
    assert r['value'] == pytest.approx(want['bleu_mteval13a'], abs=.006)
    assert r['low'] < r['value'] < r['high']
    assert r['n'] == 3004
    for part in ('tok:13a', 'bs:100', 'version:'): assert part in r['signature']
    if 'chrf' in want:
        chrf = overlap.chrf(preds, refs, n_boot=2)[0]
        assert chrf['value'] == pytest.approx(want['chrf'], abs=1e-4)


def lines_of(rng, alphabet, lines=5, words=12):
    "Return a text of up to so many lines of up to so many words, some of them empty."
    made = []
    for _ in range(rng.integers(1, lines)):
        chosen = rng.choice(alphabet, rng.integers(0, words))
        made.append(' '.join(chosen))
    return '\n'.join(made)


def rouge_by_reference(preds, refs, stem, tokenizer=None):
    "Return what rouge-score itself says, (n, 4)."
    from rouge_score.rouge_scorer import RougeScorer
    scorer = RougeScorer(list(overlap.ROUGE_KINDS), use_stemmer=stem, tokenizer=tokenizer)
    found = [scorer.score_multi(some, pred) for pred, some in zip(preds, refs)]
    return [[scores[kind].fmeasure for kind in overlap.ROUGE_KINDS] for scores in found]


@pytest.mark.parametrize('stem', [True, False])
@pytest.mark.parametrize('alphabet', [
    list('abcd'), ['running', 'runs', 'Run!', 'dies', "it's", '3.5', 'café', 'İx', '-'], list(string.ascii_lowercase)])
def test_fast_rouge_is_that_of_rouge_score(stem, alphabet):
    rng = np.random.default_rng(0)
    preds = [lines_of(rng, alphabet) for _ in range(150)]
    refs = [[lines_of(rng, alphabet) for _ in range(rng.integers(1, 3))] for _ in preds]
    with warnings.catch_warnings():
        warnings.simplefilter('ignore') # some references are empty
        got = overlap.rouge_scores(preds, refs, stem, words='latin')
    want = rouge_by_reference(preds, refs, stem)
    assert np.abs(np.stack(list(got.values()), 1) - want).max() <= 1e-12


@pytest.mark.parametrize('words', ['unicode', 'signs'])
def test_fast_rouge_in_every_script_is_that_of_rouge_score_with_these_words(words):
    from rouge_score.tokenizers import DefaultTokenizer
    rng = np.random.default_rng(1)
    alphabet = ['кот', '红色的', 'สวัสดี', 'नमस्ते', 'cats', '🙂', '?!']
    preds = [lines_of(rng, alphabet) for _ in range(80)]
    refs = [[lines_of(rng, alphabet)] for _ in preds]
    own = overlap.UnicodeWords(DefaultTokenizer(True), signs=words == 'signs')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        got = overlap.rouge_scores(preds, refs, words=words)
    want = rouge_by_reference(preds, refs, True, own)
    assert np.abs(np.stack(list(got.values()), 1) - want).max() <= 1e-12


def noisy_sentences(n, seed=0):
    "Return references of some words, and two systems' answers, of which the second is the better one."
    rng = np.random.default_rng(seed)
    words = 'the cat sat on a mat and slept all day long near an old red door'.split()
    refs = [' '.join(rng.choice(words, rng.integers(4, 12))) for _ in range(n)]
    def spoilt(text, share):
        kept = [rng.choice(words) if rng.random() < share else word for word in text.split()]
        return ' '.join(kept)
    return refs, [spoilt(ref, .45) for ref in refs], [spoilt(ref, .4) for ref in refs]


CORPUS_METRICS = dict(bleu='BLEU', chrf='CHRF', ter='TER')


def sacrebleu_metric(name):
    from sacrebleu import metrics
    return getattr(metrics, CORPUS_METRICS[name])()


@pytest.mark.parametrize('name', CORPUS_METRICS)
def test_value_interval_and_signature_are_those_of_sacrebleu(name):
    refs, preds, _ = noisy_sentences(60)
    r, = getattr(overlap, name)(preds, refs, n_boot=200)
    metric = sacrebleu_metric(name)
    want = metric.corpus_score(preds, [refs], n_bootstrap=200)
    details = json.loads(want.format(width=9, is_json=True, signature=str(metric.get_signature())))
    mean, half = details['confidence_mean'], details['confidence_var']
    assert r['value'] == pytest.approx(want.score, abs=1e-9)
    assert (r['low'], r['high']) == pytest.approx((mean - half, mean + half), abs=2e-9)
    assert r['signature'] == f'{want.name}|{metric.get_signature()}'


@pytest.mark.parametrize('seed', ['7', 'none'])
def test_sacrebleus_seed_decides_the_draws(seed, monkeypatch):
    monkeypatch.setenv('SACREBLEU_SEED', seed)
    refs, preds, _ = noisy_sentences(40)
    r, = overlap.bleu(preds, refs, n_boot=100)
    assert f'seed:{seed}' in r['signature']
    if seed == 'none': return
    metric = sacrebleu_metric('bleu')
    want = metric.corpus_score(preds, [refs], n_bootstrap=100)
    assert r['high'] - r['low'] == pytest.approx(2 * want._ci, abs=1e-8)


@pytest.mark.parametrize('name', CORPUS_METRICS)
def test_randomisation_is_that_of_sacrebleu(name):
    from sacrebleu.significance import PairedTest
    refs, a, b = noisy_sentences(60)
    rows = [getattr(overlap, name)(preds, refs, n_boot=0)[0] for preds in (a, b)]
    got = overlap.randomization_test(*rows, n=500)
    _, found = PairedTest([('a', a), ('b', b)], {name: sacrebleu_metric(name)}, [refs], 'ar', n_samples=500)()
    want = found[next(key for key in found if key != 'System')][1]
    assert got['p_sacrebleu'] == pytest.approx(want.p_value, abs=1e-12)
    assert .002 < want.p_value < .9
    assert got['p'] >= got['p_sacrebleu']
    assert got['value'] == pytest.approx(rows[1]['value'] - rows[0]['value'], abs=1e-6)


def test_randomisation_of_a_system_against_itself():
    refs, a, _ = noisy_sentences(12)
    r, = overlap.bleu(a, refs, n_boot=0)
    found = overlap.randomization_test(r, r, n=64)
    assert found['value'] == 0
    assert found['p'] == 1
    assert found['p_sacrebleu'] == 1 / 65 # no shuffle gives a larger difference than none


def test_sums_beyond_32_bits_take_the_slow_way():
    metric = sacrebleu_metric('bleu')
    lengths, matches, totals = [2**23 + 1, 2**23], [2**22, 2**21, 2**20, 2**19], [2**23 + 1, 2**23, 2**22, 2**21]
    counts = [lengths + matches + totals] * 3 + [[4, 4, 3, 2, 1, 0, 4, 3, 2, 1]]
    got = overlap._resampled_scores('bleu', metric, counts, 20)
    from sacrebleu.significance import _bootstrap_resample
    _, want = _bootstrap_resample(counts, metric, 20)
    assert got.tolist() == [score.score for score in want]


def test_ter_by_hand():
    ref = ['on monday the cat sat on the mat']
    edits_of = {'the cat sat on the mat on monday': 1, 'on monday the dog sat': 4, 'no ' * 12: 12, '': 8}
    for pred, edits in edits_of.items():
        r, = overlap.ter([pred], ref, n_boot=0)
        assert r['value'] == pytest.approx(100 * edits / 8)
    both, = overlap.ter(['a b c', 'a'], ['a b c d', 'a b'], n_boot=0)
    assert both['value'] == pytest.approx(100 * 2 / 6) # a ratio of sums, not a mean of ratios


def test_scripts_without_spaces_are_split_or_refused():
    chinese = ['我喜欢喝茶和咖啡']
    signature = overlap.bleu(chinese, chinese, n_boot=0)[0]
    assert 'tok:zh' in signature['signature']
    assert signature['value'] == pytest.approx(100)
    assert 'tok:char' in overlap.bleu(['こんにちは世界'], ['こんにちは世界'], n_boot=0)[0]['signature']
    russian, = overlap.bleu(['Москва столица большой России'] * 2, ['Москва 我'] * 2, n_boot=0)
    assert 'tok:13a' in russian['signature']
    assert 'asian:yes' in overlap.ter(chinese, chinese, n_boot=0)[0]['signature']
    for text in ('こんにちは世界', 'สวัสดีชาวโลก'):
        with pytest.raises(UserError, match='use chrf'): overlap.ter([text], [text])
    with pytest.raises(UserError, match='use chrf'): overlap.ter(chinese, chinese, asian_support=False)


def test_references_in_unequal_numbers():
    refs = [['the cat sat on a mat', 'the cat sat on the mat'], 'a dog']
    r = overlap.bleu(['the cat sat on the mat', 'a dog'], refs)[0]
    assert r['value'] == pytest.approx(100)
    assert 'nrefs:var' in r['signature']
    assert overlap.rouge_scores(['a cat'], [['nothing', 'a cat']])['rouge2'][0] == 1


@pytest.mark.parametrize('n_boot', [0, 1])
def test_without_resamples_there_is_no_interval(n_boot):
    texts = ['a b c d e', 'b c d e f q']
    for score in (overlap.bleu, overlap.chrf, overlap.ter):
        r, = score(texts, ['a b c d e', 'z c d e f t'], n_boot=n_boot)
        assert r['low'] is None
        assert r['high'] is None
    assert overlap.rouge(texts, texts, n_boot=0)[0]['low'] is None


@pytest.mark.parametrize('preds, refs', [
    (['a b c d e'] * 5, ['a b c d e'] * 5), (['x'] * 5, ['a b c d e'] * 5),
    (['a b c d', 'x', 'y'], ['a b c d', 'q', 'r']),
    (['', ''], ['a', 'b'])])
def test_a_value_lies_in_its_interval(preds, refs):
    for score in (overlap.rouge, overlap.bleu, overlap.chrf):
        for r in score(preds, refs, n_boot=50):
            assert 0 <= r['low'] <= r['value'] <= r['high'] <= 100
            assert r['value'] == 0 or r['value'] > 1e-9


@pytest.mark.parametrize('text', [
    'Москва столица России', 'สวัสดีชาวโลก', '你好世界朋友', 'こんにちは世界', 'नमस्ते दुनिया कैसे', 'مرحبا بالعالم كله',
    'שלום עולם טוב'])
def test_rouge_of_the_same_text_is_1_in_every_script(text):
    rows = by_metric(overlap.rouge([text] * 3, [text] * 3))
    assert [rows[kind]['value'] for kind in overlap.ROUGE_KINDS] == [1] * 4
    assert 'unicode' in rows['rouge1']['signature']
    assert overlap.rouge(['other words'], [text])[0]['value'] == 0


@pytest.mark.parametrize('text', ['١٢٣', '１２３', '۴۵', '½', 'Ⅷ', 'ŁŻ', '🙂 🙃', '❤️', '?!', '...', '́', '𒀀'])
def test_identical_texts_never_score_0_in_silence(text):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        rows = overlap.rouge([text, 'plain words'], [text, 'plain words'], n_boot=0)
    bigrams = overlap.rouge_scores([text], [text])['rouge2'][0]
    assert [r['value'] for r in rows] == pytest.approx([1, (1 + bigrams) / 2, 1, 1])
    assert 'unicode' in rows[0]['signature']
    assert overlap.rouge_scores(['other'], [text])['rouge1'] == 0


@pytest.mark.parametrize('refs, words', [
    ([''], None), (['\u200b', 'a'], None), (['привет'], 'latin'), (['?!'], 'unicode')])
def test_references_without_words_are_named(refs, words):
    with pytest.warns(UserWarning, match=f'1 of {len(refs)} references hold no words'):
        overlap.rouge(refs, refs, words=words, n_boot=0)


def test_words_are_chosen_for_all_references_and_named():
    assert 'signs' not in overlap.rouge(['a'], ['привет'], n_boot=0)[0]['signature']
    assert 'signs' in overlap.rouge(['a', 'b'], ['привет', '🙂'], n_boot=0)[0]['signature']
    both = overlap.rouge_scores(['the cats sat!', '🙂'], ['the cat sat?', '🙂'])
    assert both['rouge1'].tolist() == [1, 1] # signs beside words stay out


def test_a_score_that_cannot_be_above_0_is_named():
    with pytest.warns(UserWarning, match='bleu is 0 even for the references'):
        overlap.bleu(['你好'], ['你好'], n_boot=0)
    with pytest.warns(UserWarning, match='chrf is 0 even'): overlap.chrf(['a'], [' '], n_boot=0)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert overlap.bleu(['x'], ['one two three four'], n_boot=0)[0]['value'] == 0
        assert overlap.bleu(['你好世界'], ['你好世界'], n_boot=0, tokenize='zh')[0]['value'] == pytest.approx(100)


def test_rouge_in_other_scripts_by_hand():
    f = overlap.rouge_scores(['красный старый дом', '红色的家'], ['старый дом', '红色家'])
    assert f['rouge1'] == pytest.approx([.8, 6 / 7]) # 2 of 3 and 2 of 2 words; 3 of 4 and 3 of 3 characters
    assert f['rouge2'] == pytest.approx([2 / 3, 2 / 5])


def test_words_of_any_script_leave_plain_text_as_it_was():
    preds = ['The runners were running_quickly, 3.5 km!', 'Über naïve cafés', '']
    refs = ['A runner runs quickly; 3 km', 'The naive cafe', 'x']
    plain = overlap.rouge_scores(preds[:1], refs[:1], words='latin')
    other = overlap.rouge_scores(preds[:1], refs[:1], words='unicode')
    for kind in overlap.ROUGE_KINDS: assert plain[kind] == pytest.approx(other[kind], abs=1e-12)
    assert 'a-z0-9' in overlap.rouge(preds, refs)[0]['signature']


def test_corpus_scores_from_the_counts_of_items():
    rng = np.random.default_rng(0)
    words = 'the cat sat on a mat and slept all day long'.split()
    refs = [' '.join(rng.choice(words, 9)) for _ in range(20)]
    preds = [' '.join(rng.permutation(r.split())) for r in refs]
    rows = []
    for score in (overlap.rouge, overlap.bleu, overlap.chrf, overlap.ter): rows += score(preds, refs, n_boot=10)
    for row in rows:
        items = stats.row_items(row)
        stat = overlap.item_stat(items['stat'])
        assert stat(items['values']) == pytest.approx(row['value'], abs=1e-6)
    floored, *_ = overlap.bleu(preds, refs, smooth_method='floor', n_boot=0)
    assert stats.row_items(floored) is None


@pytest.mark.parametrize('metric', [overlap.rouge, overlap.bleu, overlap.chrf, overlap.ter])
def test_overlap_refuses(metric):
    with pytest.raises(UserError, match='at least one prediction'): metric([], [])
    with pytest.raises(UserError, match='2 predictions and 1 references'):
        metric(['a', 'b'], ['a'])
    with pytest.raises(UserError, match='a list of references'): metric(['a'], 'a')
    with pytest.raises(UserError, match='text, got NoneType'): metric([None], ['a'])
    with pytest.raises(UserError, match='none for number 0'): metric(['a'], [[]])
    assert metric(['', ''], ['a word', 'b'])[0]['value'] == (100 if metric is overlap.ter else 0)


# ---- toxicity ----

DETECTOR = ROOT/'llmbook'/'assets'/'smoke_detector.npz'


def detector_card(): return json.loads(DETECTOR.with_suffix('.json').read_text(encoding='utf-8'))


def test_smoke_detector_is_small_and_plain():
    assert DETECTOR.stat().st_size < 200_000
    assert sha256(DETECTOR) == detector_card()['sha256']
    with np.load(DETECTOR, allow_pickle=False) as z: weights = z['weights']
    assert weights.dtype == np.int8
    assert len(weights) == 2**BITS


def test_the_card_of_the_smoke_detector_says_where_it_fails():
    card = detector_card()
    for key in ('label', 'data', 'known_failures', 'threshold'): assert card[key]
    assert 'MIT' in card['data']
    assert 'not a judge' in card['what']


def test_the_card_of_the_smoke_detector_has_its_scores():
    rows = {(r['metric'], r.get('group')): r for r in detector_card()['rows']}
    auc = rows['auc', None]
    assert .9 < auc['low'] < auc['value'] < auc['high'] < 1
    for k in ('ident_neutral_nh', 'ident_pos_nh'):
        assert rows['hatecheck_flagged_share', k]['n'] > 100


def test_smoke_detector_comes_out_the_same_again(tmp_path):
    for name in ('davidson_hate_speech', 'hatecheck', 'wikitext2'): real_data(name)
    command = [sys.executable, ROOT/'bench'/'train_smoke_detector.py', '--out', tmp_path]
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, 'LLMBOOK_DATA': str(DATA)})
    for name in ('smoke_detector.npz', 'smoke_detector.json'):
        assert (tmp_path/name).read_bytes() == (ROOT/'llmbook'/'assets'/name).read_bytes(), name


def column(path, name):
    "Return the texts in a column of a CSV file, which may be compressed."
    opened = gzip.open if path.suffix == '.gz' else open
    with opened(path, 'rt', encoding='utf-8', newline='') as f:
        return [row[name] for row in csv.DictReader(f)]


def test_no_text_of_the_data_sets_is_kept():
    cases = column(real_data('hatecheck')/'test_suite_cases.csv', 'test_case')
    tweets = column(real_data('davidson_hate_speech')/'labeled_data.csv.gz', 'tweet')
    texts = {case.strip() for case in cases}
    texts |= {tweet.strip() for tweet in tweets if len(tweet) > 20}
    notebooks = sorted((ROOT/'nbs'/'api'/'60_evaluate').glob('*.ipynb'))
    assert notebooks
    card = ROOT/'llmbook'/'assets'/'smoke_detector.json'
    bench = ROOT/'bench'/'train_smoke_detector.py'
    for f in [card, bench, *notebooks, Path(__file__)]:
        content = f.read_text(encoding='utf-8')
        assert not any(t in content for t in texts), f.name


def test_smoke_detector_scores():
    detector = SmokeDetector()
    texts = ['You are a stupid idiot, shut up', 'The list is sorted in place.', '', '\ud800 \U0001f600', 'x ' * 3000]
    scores = detector(texts)
    assert scores.shape == (5,)
    assert scores[0] > .5 > scores[1]
    assert scores[2] == 0
    assert ((0 <= scores) & (scores <= 1)).all()
    alone = [detector([text])[0] for text in texts]
    assert scores.tolist() == alone
    assert detector([]).shape == (0,)
    assert detector(['Sort it. ' * 100 + texts[0]])[0] > .5, 'one insult in a long text is seen'


def test_a_changed_smoke_detector_is_refused(tmp_path):
    for name in ('smoke_detector.npz', 'smoke_detector.json'):
        shutil.copy(ASSETS/name, tmp_path/name)
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
    "Make a BERT of random weights, stored as detoxify stores its own; return its folder and what the checkpoint holds."
    tf = import_transformers()
    d = tmp_path_factory.mktemp('detox')
    words = 'the list is sorted you are kind rude and so on'.split()
    (d/'vocab.txt').write_text('\n'.join(['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', *words]) + '\n')
    tf.BertTokenizer(str(d/'vocab.txt'), model_max_length=32).save_pretrained(d)
    conf = tf.BertConfig(vocab_size=5 + len(words), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                         intermediate_size=32, num_labels=3, max_position_embeddings=40, initializer_range=.5)
    conf.save_pretrained(d)
    torch.manual_seed(0)
    model = tf.BertForSequenceClassification(conf)
    arch = dict(
        num_classes=3, model_type=str(d), model_name='BertForSequenceClassification', tokenizer_name='BertTokenizer')
    config = dict(arch=dict(args=arch), dataset=dict(args=dict(classes=['insult', 'toxic', 'threat'])))
    stored = dict(config=config, state_dict=model.state_dict())
    torch.save(stored, d/'made.ckpt')
    return d, stored


def test_detoxify_scores_are_detoxifys(detox):
    from detoxify import Detoxify
    d, _ = detox
    texts = ['you are kind', 'the list is sorted and so on', 'rude', 'you are rude rude rude']
    ours = made_scorer(d)(texts)
    scorer = Detoxify(checkpoint=str(d/'made.ckpt'), huggingface_config_path=str(d))
    theirs = scorer.predict(texts)['toxicity']
    assert ours == pytest.approx(np.array(theirs), abs=1e-6)
    assert np.ptp(theirs) > .01


def made_scorer(d):
    "Return the scorer of the checkpoint that the fixture `detox` makes."
    checkpoint = d/'made.ckpt'
    return toxicity.DetoxifyScorer(checkpoint, config=d, sha256=sha256(checkpoint), batch_size=3)


@pytest.mark.parametrize('texts', [[], ['you are kind']])
def test_detoxify_gives_one_score_a_text(detox, texts):
    scores = made_scorer(detox[0])(texts)
    assert isinstance(scores, np.ndarray)
    assert scores.shape == (len(texts),)


def test_detoxify_reads_beyond_its_window(detox):
    scorer = made_scorer(detox[0])
    kind = 'kind ' * 25
    long, short, _ = scorer([kind + 'rude ' * 200, kind, 'rude ' * 20])
    assert long != pytest.approx(short, abs=1e-4)
    assert 'sha256' in scorer.signature


def test_checkpoints_that_are_refused(detox, tmp_path):
    d, stored = detox
    with pytest.raises(UserError, match='name its sha256'):
        toxicity.toxicity_scorer(d/'made.ckpt', config=d)
    with pytest.raises(UserError, match='do not use'):
        toxicity.toxicity_scorer(d/'made.ckpt', d, '0' * 64)
    with pytest.raises(UserError, match='64 hexadecimal'):
        toxicity.toxicity_scorer(d/'made.ckpt', d, 'c121')
    with pytest.raises(UserError, match='found none'):
        toxicity.toxicity_scorer(tmp_path/'absent.ckpt')
    fake = tmp_path/toxicity.CHECKPOINTS[0]
    fake.write_bytes((d/'made.ckpt').read_bytes())
    with pytest.raises(UserError, match='with sha256 c1212f89'): toxicity.toxicity_scorer(fake, d)

    def refused(change, match):
        config = json.loads(json.dumps(stored['config'])) # a deep copy
        new = dict(config=config, state_dict=dict(stored['state_dict']))
        change(new)
        path = tmp_path/'x.ckpt'
        torch.save(new, path)
        with pytest.raises(UserError, match=match): toxicity.DetoxifyScorer(path, d, sha256(path))
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
    for name in ('evil.ckpt', 'old.ckpt'):
        path = tmp_path/name
        with pytest.raises(UserError, match='tensors and plain values'):
            toxicity.DetoxifyScorer(path, tmp_path, sha256(path))
    assert not mark.exists()


def test_without_weights_the_smoke_detector_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    scorer = toxicity.toxicity_scorer()
    assert scorer.name == 'toxicity detector'
    assert 'not a judge' in scorer.note
    assert 'not on this machine' in scorer.note
    (tmp_path/'checkpoints').mkdir()
    (tmp_path/'checkpoints'/toxicity.CHECKPOINTS[0]).write_bytes(b'damaged')
    assert 'do not use this file' in toxicity.toxicity_scorer().note


class Length:
    "Score a text by its characters."
    signature = 'scorer:length'
    def __call__(self, texts): return np.array([len(t) / 10 for t in texts])


def test_toxicity_rows_by_hand():
    texts = [['a', 'aaaaa'], ['aa', 'aaa'], ['aaaaaaaaa', '']]
    worst = [.5, .3, .9]
    rows = by_metric(toxicity.toxicity_rows(texts, Length()))
    assert rows['expected_max_toxicity']['value'] == pytest.approx(sum(worst) / 3)
    assert rows['max_toxicity_deviation']['value'] == pytest.approx(np.std(worst))
    assert rows['toxicity_probability']['value'] == pytest.approx(2 / 3)
    assert 'k:2' in rows['toxicity_probability']['signature']
    of_one, _, _ = toxicity.toxicity_rows(['aaaa'], Length())
    assert of_one['value'] == pytest.approx(.4)


PROMPTS = ['p', 'q', 'r']
SOME_EMPTY = [['aaaa', ''], [' ', '\n'], ['aaaaaaa', 'a']] # the texts that follow each prompt


def test_an_empty_text_has_no_toxicity():
    scores = toxicity.toxicity_scores(SOME_EMPTY, Length())
    assert np.isnan(scores).tolist() == [[False, True], [True, True], [False, False]]


def test_empty_texts_are_counted_apart():
    rows = by_metric(toxicity.toxicity_rows(SOME_EMPTY, Length(), prompts=PROMPTS))
    highest = rows['expected_max_toxicity']
    assert highest['value'] == pytest.approx(.55)
    assert highest['n'] == 2
    not_scored = rows['toxicity_not_scored']
    assert not_scored['value'] == .5
    assert not_scored['n'] == 6
    items = stats.row_items(rows['toxicity_probability'])
    assert items['values'].tolist() == [0, 1]


def test_rows_take_scores_that_were_made_before():
    scores = toxicity.toxicity_scores(SOME_EMPTY, Length())
    given = toxicity.toxicity_rows(SOME_EMPTY, Length(), prompts=PROMPTS, scores=scores)
    made = toxicity.toxicity_rows(SOME_EMPTY, Length(), prompts=PROMPTS)
    assert [r['metric'] for r in given] == [r['metric'] for r in made]
    assert [r['value'] for r in given] == [r['value'] for r in made]


def test_empty_texts_are_no_samples():
    scores = toxicity.toxicity_scores(SOME_EMPTY, Length())
    first, second = toxicity.scored_samples(PROMPTS, SOME_EMPTY, scores, most=2)
    assert first == dict(prompt='r', text='aaaaaaa', score=.7)
    assert second == dict(prompt='p', text='aaaa', score=.4)


def test_empty_texts_alone_have_no_toxicity():
    rows = toxicity.toxicity_rows([['', '']], Length())
    assert [r['metric'] for r in rows] == ['toxicity_not_scored']


# ---- bias ----

def test_wasserstein_is_scipys():
    rng = np.random.default_rng(0)
    for k in (1, 5, 30):
        a = rng.random(k)
        b = rng.random(k)
        assert bias.wasserstein(a, b) == pytest.approx(ss.wasserstein_distance(a, b))


def test_prompts_differ_in_the_identity_alone():
    for axis, who, i, prompt in bias.swap_prompts():
        before, after = bias.TEMPLATES[i].prompt.split('{who}')
        assert prompt == before + who + after
        assert who in bias.GROUPS[axis]


def test_likelihood_gaps_by_hand():
    groups = {'x': ['a', 'b']}
    templates = [bias.Template('{who} is', ' good', ' bad'), bias.Template('see {who}', ' win', ' lose')]
    def one(prompt, continuation): # unkind words about a are less likely
        about_a = 'a' in prompt.split()
        unkind = continuation in (' bad', ' lose')
        return -1.4 if about_a and unkind else -1.
    def logprob(prompts, continuations): return list(map(one, prompts, continuations))
    rows = bias.likelihood_gaps(logprob, groups, templates)
    values = {(r['metric'], r['group']): r['value'] for r in rows}
    assert values['likelihood_gap', 'x'] == pytest.approx(.2), 'half of the continuations move by 0.4'
    assert values['unkind_lean', 'x: a'] == pytest.approx(-.2)
    assert values['unkind_lean', 'x: b'] == pytest.approx(.2)


def written_score(texts):
    "Score a text that is a number by that number."
    return np.array([float(text) for text in texts])


def gaps_of(writer, draws):
    templates = [bias.Template(f'{i} {{who}}', ' a', ' b') for i in range(40)]
    groups = {'x': ['a', 'b', 'c']}
    rows = bias.toxicity_gaps(writer, written_score, groups, templates, draws=draws)
    return by_metric(rows)


def test_an_even_handed_writer_has_no_excess():
    def at_random(prompts, seed):
        rng = np.random.default_rng([5, seed])
        return [str(u) for u in rng.random(len(prompts))]
    rows = gaps_of(at_random, draws=4)
    excess = rows['toxicity_gap_excess']
    assert excess['low'] < 0 < excess['high']
    assert rows['toxicity_gap_null']['value'] > .05


def test_a_writer_who_always_says_the_same_has_no_gap():
    def always_the_same(prompts, seed): return ['0.5'] * len(prompts)
    rows = gaps_of(always_the_same, draws=2)
    assert rows['toxicity_gap']['value'] == 0
    assert rows['toxicity_gap_null']['value'] == 0


def test_identity_swap_of_a_model_can_be_repeated(small):
    _, tok, _ = small
    from llmbook.model.config import ModelConfig
    from llmbook.model.transformer import Transformer
    torch.manual_seed(1)
    vocab = tok.get_vocab_size()
    model = Transformer(ModelConfig(vocab_size=vocab, n_layer=1, d_model=16, n_head=2, n_kv_head=1, context=128))
    groups = {axis: bias.GROUPS[axis][:2] for axis in (bias.NEUTRAL, 'gender')}
    options = dict(groups=groups, templates=bias.TEMPLATES[:2], draws=1, max_new_tokens=4)
    def run(batch_size): return bias.identity_swap(model, tok, **options, batch_size=batch_size)
    def values(rows): return [r['value'] for r in rows]
    rows = run(64)
    assert run(64) == rows
    assert {r['split'] for r in rows} == {'identity swap'}
    assert values(run(3)) == pytest.approx(values(rows), abs=1e-4)


def untrained(tok, seed, width=32):
    "Return a function that gives likelihoods of a model with random weights."
    from llmbook.model.config import ModelConfig
    from llmbook.model.transformer import Transformer
    torch.manual_seed(seed)
    vocab = tok.get_vocab_size()
    model = Transformer(ModelConfig(vocab_size=vocab, n_layer=1, d_model=width, n_head=2, context=160)).eval()
    def logprob(prompts, continuations): return perplexity.continuation_logprob(model, tok, prompts, continuations, 128)
    return logprob


CONTROL = {'control': ['a tall person', 'a left-handed person', 'a quick reader']}


def test_models_that_know_nothing_show_bias_one_time_in_twenty():
    from llmbook.tokens.tokenizer import train_tokenizer
    from scipy.stats import binom
    texts = [t.prompt + t.kind + t.unkind for t in bias.TEMPLATES] + bias.NEUTRALS
    tok = train_tokenizer(texts, 900)
    ps, low = [], []
    for seed in range(8):
        rows = bias.likelihood_gaps(untrained(tok, seed), {**bias.GROUPS, **CONTROL}, exchanges=499)
        excess = [r for r in rows if r['metric'] == 'likelihood_gap_excess']
        ps += [r['p'] for r in excess]
        low += [r['low'] for r in excess]
    n = len(ps)
    assert n == 8 * 9
    most = binom.ppf(.999, n, .05)
    assert sum(p < .05 for p in ps) <= most
    assert sum(x > 0 for x in low) <= most
    assert .3 < np.mean(ps) < .75, 'p-values of a true null spread over 0 to 1'


def by_identity(unkind_about, strength=1.):
    "Return likelihoods of a made-up model: all words move them a little, unkind ones about some identity move them up."
    import zlib
    unkind = {t.unkind for t in bias.TEMPLATES}
    def one(prompt, continuation):
        noise = zlib.crc32((prompt + continuation).encode()) / 2**32
        about = any(who in prompt for who in unkind_about)
        return -3 + noise + strength * (about and continuation in unkind)
    def logprob(prompts, continuations): return list(map(one, prompts, continuations))
    return logprob


def excess_of(logprob, groups=bias.GROUPS):
    rows = bias.likelihood_gaps(logprob, groups, exchanges=499)
    return {r['group']: r for r in rows if r['metric'] == 'likelihood_gap_excess'}, rows


def test_a_planted_association_is_found_and_no_other():
    axes, rows = excess_of(by_identity(['an old person']))
    found = [axis for axis, r in axes.items() if r.get('p_holm', 1) < .05]
    assert found == ['age']
    assert axes['age']['low'] > 0
    said = bias.swap_summary(rows)
    assert '1 of 7 axes' in said
    assert 'an old person' in said


def test_words_that_move_every_phrase_are_no_bias():
    "Neutral phrases that lean as much as the identities do take the excess away, however consistent the lean."
    leaning = ['an old person', 'a tall', 'a bearded', 'a musical', 'a rural', 'a quiet', 'a bilingual', 'a sleepy',
               'a busy']
    axes, _ = excess_of(by_identity(leaning))
    assert axes['age']['p'] > .05
    assert bias.likelihood_gaps(by_identity(leaning), {'age': bias.GROUPS['age']}, neutrals=[])[-1]['p'] < .05


def fair_writer(prompts, seed):
    rng = np.random.default_rng([11, seed])
    toxicities = rng.random(len(prompts)) / 2
    return list(map(str, toxicities))


def rude_writer(prompts, seed):
    "Write as the fair writer does, but more rudely about an old person."
    texts = []
    for prompt, fair in zip(prompts, fair_writer(prompts, seed)):
        extra = .4 if 'an old person' in prompt else 0.
        texts.append(str(float(fair) + extra))
    return texts


@pytest.mark.parametrize('writer, rude_about', [(fair_writer, []), (rude_writer, ['age'])])
def test_toxicity_of_a_writer_who_is_rude_about_one_identity(writer, rude_about):
    rows = bias.toxicity_gaps(writer, written_score, draws=2, exchanges=499)
    excess = [row for row in rows if row['metric'] == 'toxicity_gap_excess']
    found = [row['group'] for row in excess if row.get('p_holm', 1) < .05]
    assert found == rude_about


def test_old_rows_of_bias_get_no_verdict():
    old = [stats.row('likelihood_gap_excess', .04, .03, .05, n=8, group='gender')]
    assert 'no verdict' in bias.swap_summary(old)


def test_rouge_is_the_same_in_blocks_of_any_size(monkeypatch):
    r = np.random.default_rng(0)
    def text(): return '\n'.join(' '.join(r.choice(list('abcdef'), 5)) for _ in range(r.integers(1, 4)))
    preds, refs = [text() for _ in range(30)], [[text() for _ in range(r.integers(1, 4))] for _ in range(30)]
    wanted = overlap.rouge_scores(preds, refs, stemmer=False)
    one_by_one = [overlap.rouge_scores([pred], [some], stemmer=False) for pred, some in zip(preds, refs)]
    for size in (1, 40, 1 << 30):
        monkeypatch.setattr(overlap, '_BLOCK', size)
        found = overlap.rouge_scores(preds, refs, stemmer=False)
        for kind, f in wanted.items():
            assert (found[kind] == f).all()
            assert [scores[kind][0] for scores in one_by_one] == f.tolist()


@pytest.mark.parametrize('draws', [1, 70, 1 << 30])
def test_resamples_are_those_of_numpy_in_blocks_of_any_size(draws, monkeypatch):
    monkeypatch.setattr(overlap, '_DRAWS', draws)
    counts = np.random.default_rng(1).integers(0, 50, (33, 10)).astype(np.float32)
    found = overlap._drawn_sums(counts, 7, np.random.default_rng(5))
    drawn = np.random.default_rng(5).choice(33, size=(7, 33))
    assert (found == counts[drawn].sum(1)).all()
