"Log-likelihoods held against the plain way, against other batches and orders, and against lm-evaluation-harness."
import math
from types import SimpleNamespace
import numpy as np
import pytest
import torch
from llmbook.core import UserError, import_transformers
from llmbook.evaluate import likelihood, perplexity
from llmbook.evaluate.choices import NEAR
from llmbook.evaluate.likelihood import LikelihoodRun, encode_pairs, families, log_likelihoods, rows_of
from llmbook.model.config import ModelConfig
from llmbook.model.hf import save_pretrained
from llmbook.model.hf_wrap import WrappedLogits, as_lm
from llmbook.model.transformer import Transformer
from llmbook.tokens.tokenizer import encode_text, train_tokenizer

WORDS = ('the capital of France Italy Spain Greece is Paris Rome Madrid Athens and a town by the sea . '
         'Question : Answer').split()
SHAPE = dict(n_layer=2, d_model=48, n_head=4, n_kv_head=2, context=96)
FAMILIES = dict(llama=dict(family='llama'), qwen3=dict(family='qwen3'), gpt2=dict(family='gpt2', n_kv_head=4),
                mistral=dict(family='mistral', window=12))


@pytest.fixture(scope='module')
def tok(): return train_tokenizer([' '.join(WORDS)] * 40, 340)


def make(tok, **options):
    torch.manual_seed(0)
    model = Transformer(ModelConfig(vocab_size=tok.get_vocab_size(), **{**SHAPE, **options})).eval()
    with torch.no_grad():
        for p in model.parameters(): p.mul_(3) # far from uniform, so that mistakes show
    return model


@pytest.fixture(scope='module')
def model(tok): return make(tok)


@pytest.fixture(scope='module')
def theirs(model, tok, tmp_path_factory):
    folder = tmp_path_factory.mktemp('exported')
    save_pretrained(model, tok, folder)
    return import_transformers().AutoModelForCausalLM.from_pretrained(folder).eval(), folder


def text(r, n): return ' '.join(r.choice(WORDS, n))


def some_pairs(n=12, shared='', seed=0):
    "Return pairs with contexts and continuations of mixed lengths."
    r = np.random.default_rng(seed)
    pairs = []
    for _ in range(n):
        context = shared + text(r, r.integers(1, 12))
        for _ in range(r.integers(1, 5)): pairs.append((context, ' ' + text(r, r.integers(1, 5))))
    return pairs


SHARED = 'Question : the capital of Italy is Rome . ' * 3


def plain_way(model, tok, pairs):
    "Return the sum of log-probabilities of each continuation, read alone with its context."
    sums = []
    for context, continuation in pairs:
        bare = context.rstrip()
        whole, before = encode_text(tok, [bare + context[len(bare):] + continuation, bare])
        n = len(whole) - len(before)
        ids = whole if before else [0, *whole]
        ids = ids[-97:]
        x = torch.tensor([ids[:-1]])
        y = torch.tensor(ids[1:])
        with torch.no_grad(): logits = model.logits(model(x))[0]
        logprob = logits.double().log_softmax(-1)[range(len(y)), y]
        sums.append(float(logprob[-n:].sum()))
    return np.array(sums)


# ---- the same numbers as the plain way (lm-eval#1351) ----

@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize('shared', ['', SHARED], ids=['no prefix', 'prefix'])
def test_lm_eval_1351_shared_prefixes_give_equal_numbers(tok, family, shared):
    model = make(tok, **FAMILIES[family])
    pairs = some_pairs(shared=shared)
    assert log_likelihoods(model, tok, pairs).logprob == pytest.approx(plain_way(model, tok, pairs), abs=1e-4)


@pytest.mark.parametrize('shared', ['', SHARED], ids=['no prefix', 'prefix'])
def test_models_of_transformers_share_prefixes_too(model, tok, theirs, shared):
    hub, _ = theirs
    wrapped = as_lm(hub)
    pairs = some_pairs(shared=shared)
    assert likelihood._reader(wrapped).branches
    ours = log_likelihoods(model, tok, pairs).logprob
    for other in (hub, wrapped, WrappedLogits(hub)):
        assert log_likelihoods(other, tok, pairs).logprob == pytest.approx(ours, abs=1e-4)


def test_a_model_without_branches_is_read_plainly(model, tok, theirs, monkeypatch):
    wrapped = as_lm(theirs[0])
    monkeypatch.setattr(likelihood._WrappedReader, 'works', lambda self: False)
    assert not likelihood._reader(wrapped).branches
    pairs = some_pairs()
    wanted = log_likelihoods(model, tok, pairs).logprob
    assert log_likelihoods(wrapped, tok, pairs).logprob == pytest.approx(wanted, abs=1e-4)


@pytest.fixture
def shapes_read(monkeypatch):
    "Return a list that grows by the shape of each batch that a model reads."
    shapes, forward = [], Transformer.forward

    def noted(self, x, seen=None):
        shapes.append(x.shape)
        return forward(self, x, seen)

    monkeypatch.setattr(Transformer, 'forward', noted)
    return shapes


def test_a_context_is_read_once(model, tok, shapes_read):
    context = 'the capital of Italy is a town by the sea and'
    pairs = [(context, f' {word} and Rome') for word in ('Paris', 'Athens', 'France', 'Madrid')]
    log_likelihoods(model, tok, pairs)
    tokens = len(encode_text(tok, [context])[0])
    longest = max(len(ids) for ids in encode_text(tok, [pair[1] for pair in pairs]))
    assert sum(rows * width for rows, width in shapes_read) <= tokens + 4 * (longest - 1)


def test_a_prefix_is_read_once(model, tok, shapes_read):
    log_likelihoods(model, tok, some_pairs(shared=SHARED), batch_size=4)
    prefix = len(encode_text(tok, [SHARED])[0])
    assert sum(width >= prefix - 1 for _, width in shapes_read) == 1


# ---- batches and order (lm-eval#1645 #879 #3055) ----

@pytest.mark.parametrize('batch_size', [1, 7, 32])
@pytest.mark.parametrize('shared', ['', SHARED], ids=['no prefix', 'prefix'])
def test_lm_eval_1645_batches_and_order_change_nothing(model, tok, batch_size, shared):
    pairs = some_pairs(20, shared)
    order = np.random.default_rng(3).permutation(len(pairs))
    first = log_likelihoods(model, tok, pairs, batch_size=16)
    again = log_likelihoods(model, tok, [pairs[i] for i in order], batch_size=batch_size)
    assert again.logprob == pytest.approx(first.logprob[order], abs=NEAR / 4)
    assert (again.greedy == first.greedy[order]).all()
    assert (again.tokens == first.tokens[order]).all()


def test_equal_pairs_have_equal_numbers(model, tok):
    found = log_likelihoods(model, tok, [('the capital', ' of')] * 3)
    assert len(set(found.logprob)) == 1


# ---- conventions (lm-eval#1465 #3333 #2382) ----

def test_lm_eval_1465_the_begin_mark_stands_once(model, tok):
    pair, = encode_pairs(tok, [('', ' Paris')], 0)
    assert pair.context == [0]
    assert 0 not in pair.continuation
    words = likelihood.likelihood_signature(model, tok)
    assert 'empty context:<|endoftext|>' in words
    assert 'front:none' in words


def test_a_tokenizer_that_puts_a_mark_in_front_does_so_once(tok):
    from tokenizers import processors
    from tokenizers import Tokenizer
    marked = Tokenizer.from_str(tok.to_str())
    first = marked.id_to_token(0)
    marked.post_processor = processors.TemplateProcessing(single=f'{first} $A', special_tokens=[(first, 0)])
    with_context, without = encode_pairs(marked, [('the capital', ' of'), ('', ' Paris')], 0)
    assert with_context.context.count(0) == 1
    assert without.context + without.continuation == [0, *encode_text(tok, [' Paris'])[0]]


def test_spaces_belong_to_the_continuation(tok):
    one, other = encode_pairs(tok, [('the capital of ', 'France'), ('the capital of', ' France')], 0)
    assert one == other


def test_a_letter_joined_across_the_boundary_is_marked(model, tok):
    found = log_likelihoods(model, tok, [('the capi', 'tal of Italy is'), ('the capital', ' of')])
    assert found.merged.tolist() == [True, False]


def test_long_contexts_lose_their_left(model, tok):
    context = 'the capital of Italy is Rome . ' * 20
    pairs = [(context, ' Paris and Rome'), (context, ' Paris')]
    found = log_likelihoods(model, tok, pairs)
    assert found.logprob == pytest.approx(plain_way(model, tok, pairs), abs=1e-4)
    n = len(encode_text(tok, [context.rstrip()])[0])
    assert found.cut.tolist() == [n + len(encode_text(tok, ['  Paris and Rome'])[0]) - 1 - 96,
                                  n + len(encode_text(tok, ['  Paris'])[0]) - 1 - 96]


def test_greedy_is_what_greedy_decoding_writes(model, tok):
    from llmbook.generate.text import generate_ids
    context = encode_text(tok, ['the capital of Italy'])[0]
    written, = generate_ids(model, [context], 1, temperature=0., stop=None)
    best = tok.decode(written)
    found = log_likelihoods(model, tok, [('the capital of Italy', best), ('the capital of Italy', ' sea')])
    assert found.greedy.tolist() == [encode_text(tok, [best])[0] == written, False]


def test_families_share_what_is_worth_sharing():
    long = tuple(range(40))
    starts = [(*long, 50), (*long, 60, 61), (1, 2), (90,) * 30]
    rows = rows_of({i: (start, [1], 0) for i, start in enumerate(starts)})
    found = {len(prefix): len(some) for prefix, some in families(rows)}
    assert found == {40: 2, 0: 2}


def test_subjects_with_examples_of_their_own_are_families():
    start = tuple(range(20))
    rows = rows_of({n: ((*start, *((100 + n % 3,) * 60), n), [1], 0) for n in range(9)})
    assert sorted(len(prefix) for prefix, _ in families(rows)) == [80, 80, 80]


# ---- lm-evaluation-harness itself ----

@pytest.fixture(scope='module')
def harness(theirs):
    pytest.importorskip('lm_eval')
    from lm_eval.models.huggingface import HFLM
    hub, folder = theirs
    tokenizer = import_transformers().AutoTokenizer.from_pretrained(folder)
    return HFLM(pretrained=hub, tokenizer=tokenizer, batch_size=4, max_length=96)


@pytest.mark.parametrize('shared', ['', SHARED], ids=['no prefix', 'prefix'])
def test_numbers_are_those_of_lm_eval(model, tok, harness, shared):
    pairs = [*some_pairs(shared=shared), ('', ' Paris'), ('the capital of ', 'Rome'), ('the capi', 'tal of Italy is'),
             ('the sea . ' * 60, ' Paris and Rome')]
    found = log_likelihoods(model, tok, pairs)
    wanted = harness.loglikelihood([SimpleNamespace(args=pair) for pair in pairs], disable_tqdm=True)
    assert found.logprob == pytest.approx([logprob for logprob, _ in wanted], abs=1e-4)
    assert found.greedy.tolist() == [greedy for _, greedy in wanted]


def test_perplexity_is_that_of_lm_eval(model, tok, harness):
    r = np.random.default_rng(1)
    docs = [text(r, n) for n in (3, 20, 200, 130)] # some longer than the context
    wanted = harness.loglikelihood_rolling([SimpleNamespace(args=(doc,)) for doc in docs], disable_tqdm=True)
    found = perplexity.document_nats(model, tok, docs, stride=96, full_last=True)
    assert found[:, 0] == pytest.approx([-x for x in wanted], rel=1e-5)


# ---- refused ----

@pytest.mark.parametrize('pairs, why', [
    ('a b', 'list of'), (['a b'], 'two texts'), ([('a', '')], 'continuation with text'), ([('a', 3)], 'two texts'),
    ([('a', 'b', 'c')], 'two texts'), (5, 'list of'), ([('the', ' sea' * 99)], 'at most 96 tokens')])
def test_bad_pairs_are_refused(model, tok, pairs, why):
    with pytest.raises(UserError, match=why): log_likelihoods(model, tok, pairs)


@pytest.mark.parametrize('size', [0, -1, 2.5, True, 'x'])
def test_bad_batches_are_refused(model, tok, size):
    with pytest.raises(UserError, match='batch_size'): log_likelihoods(model, tok, [('a', 'b')], batch_size=size)


def test_another_tokenizer_is_refused(model):
    other = train_tokenizer([' '.join(f'{a}{b}{c}' for a in 'abcdefgh' for b in 'uvwxyz' for c in 'klm')] * 9, 700)
    with pytest.raises(UserError, match='not the one of this model'):
        log_likelihoods(model, other, [('a', other.decode([other.get_vocab_size() - 1]))])


def test_weights_that_are_no_numbers_are_named(tok):
    model = make(tok)
    with torch.no_grad(): model.embed.weight.fill_(math.nan)
    with pytest.raises(UserError, match='NaN for pair'): log_likelihoods(model, tok, [('a', ' b')])


def test_a_run_knows_what_it_cannot_score(model, tok):
    run = LikelihoodRun(model, tok, [('the', ' sea'), ('the', ' sea' * 99)])
    assert list(run.faults) == [1]
    assert [numbers for numbers, *_ in run] == [[0]]
