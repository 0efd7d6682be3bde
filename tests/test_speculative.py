"Guessed tokens change nothing but the number of passes; a common beginning is read once and changes nothing at all."
import numpy as np
import pytest, torch
from scipy import stats
from torch import nn
from llmbook.core import UserError, set_seed
from llmbook.generate import text as writing
from llmbook.generate.cuda_graph import decoder
from llmbook.generate.decoder import Cached, Reread
from llmbook.generate.quantise import quantise
from llmbook.generate.speculative import NgramDraft, Speculator
from llmbook.generate.text import generate, generate_ids
from llmbook.model.config import ModelConfig
from llmbook.model.transformer import Transformer
from llmbook.tokens.tokenizer import train_tokenizer

PROMPTS = [[5, 6, 7, 5, 6], [9], [1, 2, 3, 4, 1, 2], [8, 8, 8]]
SAMPLING = [dict(temperature=0), dict(temperature=1.), dict(temperature=.7, top_p=.9), dict(top_k=3), dict(min_p=.2)]


def small(seed=0, n_layer=2, V=24, **options):
    "Return a decoder whose next tokens are not nearly tied."
    set_seed(seed)
    given = dict(vocab_size=V, n_layer=n_layer, d_model=32, n_head=2, context=64) | options
    model = Transformer(ModelConfig(**given))
    for p in model.parameters(): p.data.mul_(5 if p.dim() > 1 else 1)
    return model.eval()


@pytest.fixture(scope='module')
def model(): return small()


class Wrong:
    "Guesses what never comes."
    def __call__(self, ids, n, u, options): return [0] * n


def drafts(model): return ['ngram', model, small(1, 1)]


# ---- exact ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('sampling', SAMPLING)
@pytest.mark.parametrize('which', [0, 1, 2])
def test_texts_are_those_of_the_model_alone(which, sampling, model):
    writer = Speculator(model, drafts(model)[which])
    for seed in (0, 1):
        options = dict(max_new_tokens=30, seed=seed, **sampling)
        assert writer.generate_ids(PROMPTS, **options) == generate_ids(model, PROMPTS, **options)


@pytest.mark.parametrize('ahead', [1, 2, 7, 32])
def test_any_number_of_guesses_gives_the_same(ahead, model):
    writer = Speculator(model, 'ngram', ahead)
    assert writer.generate_ids(PROMPTS, 40, stop=None) == generate_ids(model, PROMPTS, 40, stop=None)


@pytest.mark.parametrize('family', ['llama', 'gpt2', 'qwen2', 'mistral'])
def test_every_family_gives_the_same(family):
    model = small(family=family)
    writer = Speculator(model, small(1, 1, family=family))
    assert writer.generate_ids(PROMPTS, 20, stop=None) == generate_ids(model, PROMPTS, 20, stop=None)


@pytest.mark.parametrize('kind, cache', [('int8', None), ('int4', None), ('int8', 'int8')])
def test_a_quantised_model_gives_the_same(kind, cache):
    model = quantise(small(d_model=64), kind, cache=cache, speed=False, show=False)
    for draft in drafts(model):
        got = Speculator(model, draft).generate_ids(PROMPTS, 20, temperature=0, stop=None)
        assert got == generate_ids(model, PROMPTS, 20, temperature=0, stop=None)


def test_guesses_that_are_all_wrong_cost_passes_alone(model):
    writer = Speculator(model)
    writer.draft = Wrong()
    sure = dict(max_new_tokens=20, temperature=0, stop=None)
    assert writer.generate_ids(PROMPTS, **sure) == generate_ids(model, PROMPTS, **sure)
    assert writer.accepted < writer.proposed and writer.written == 80


def test_the_model_as_its_own_draft_is_always_right(model):
    writer = Speculator(model, model, ahead=4)
    writer.generate_ids(PROMPTS, 20, temperature=1., stop=None)
    assert writer.accepted == writer.proposed
    assert writer.passes == 4 * len(PROMPTS) # 20 tokens in passes of 5
    assert '(100%)' in repr(writer) and '5.00 a pass' in repr(writer)


@torch.no_grad()
def chances(model, rows): # (N, 24) of the next token of each row
    x = torch.tensor(rows)
    logits = model.logits(model(x))[:, -1]
    return logits.softmax(-1)


def chances_of_pairs(model, prompt): # (24 * 24) of each two tokens behind a prompt
    first = chances(model, [prompt])[0]
    second = chances(model, [[*prompt, token] for token in range(24)])
    both = first[:, None] * second
    return both.double().flatten().numpy()


@pytest.mark.parametrize('which', [0, 2])
def test_drawn_tokens_follow_the_distribution_of_the_model(which, model):
    n = 500
    prompt = [3, 4, 3]
    writer = Speculator(model, drafts(model)[which], ahead=2)
    texts = writer.generate_ids([prompt] * n, 2, seed=11, stop=None)
    expected = n * chances_of_pairs(model, prompt)
    pairs = [24 * a + b for a, b in texts]
    counts = np.bincount(pairs, minlength=24 * 24)
    common = expected >= 5 # the test wants at least five of each; the rare pairs count together
    seen = np.append(counts[common], counts[~common].sum())
    wanted = np.append(expected[common], expected[~common].sum())
    wanted *= seen.sum() / wanted.sum()
    assert len(seen) > 5
    assert stats.chisquare(seen, wanted).pvalue > .01


def test_a_text_ends_where_the_model_ends_it(model):
    whole, = generate_ids(model, PROMPTS[:1], 30, temperature=0, stop=None)
    end = whole[7]
    got, = Speculator(model, model).generate_ids(PROMPTS[:1], 30, temperature=0, stop=[end])
    assert got == whole[:whole.index(end) + 1]


def test_the_end_of_the_context_is_reached(model):
    writer = Speculator(model, small(1, 1, context=32)) # a draft that ends before the model does
    prompts = [[5] * 10]
    assert writer.generate_ids(prompts, 54, stop=None) == generate_ids(model, prompts, 54, stop=None)


ASKED = [dict(choice=['the cat', 'the mat', 'on']), dict(regex='(sat ){2,4}on'), dict(regex='[a-z ]+'),
         dict(schema=dict(type='object', properties=dict(cat=dict(type='boolean')), required=['cat'],
                          additionalProperties=False))]


@pytest.mark.parametrize('asked', ASKED, ids=str)
@pytest.mark.parametrize('which', [0, 1, 2])
@pytest.mark.filterwarnings('ignore:.*cut off')
def test_constrained_texts_are_the_same(asked, which):
    "Each place of a pass has the rules that hold behind the guesses before it."
    pytest.importorskip('llguidance')
    tok = train_tokenizer(['the cat sat on the mat {"cat": true} {"cat": false}'] * 9, 300)
    size = tok.get_vocab_size()
    model = small(V=size)
    draft = ['ngram', model, small(1, 1, V=size)][which]
    prompts = ['the cat', 'on']
    for options in (dict(temperature=0), dict(seed=3)):
        got = Speculator(model, draft).generate(tok, prompts, max_new_tokens=24, **asked, **options)
        assert got == generate(model, tok, prompts, 24, **asked, **options)


def test_a_constrained_text_that_is_cut_off_is_said():
    pytest.importorskip('llguidance')
    tok = train_tokenizer(['the cat sat on the mat'] * 9, 300)
    writer = Speculator(small(V=tok.get_vocab_size()))
    with pytest.warns(UserWarning, match='1 of 1 texts were cut off'):
        writer.generate(tok, 'the', max_new_tokens=3, regex='(cat){9}')


def test_texts_go_in_and_come_out():
    tok = train_tokenizer(['the cat sat on the mat äöü'] * 9, 300)
    model = small(V=tok.get_vocab_size() + 9)
    prompts = ['the cat', 'on']
    assert Speculator(model).generate(tok, prompts, max_new_tokens=20) == generate(model, tok, prompts, 20)


def test_guesses_of_the_text_itself():
    draft = NgramDraft()
    assert draft([1, 2, 3, 9, 8, 1, 2, 3], 2) == [9, 8]
    assert draft([1, 5, 1, 6, 1], 1) == [6]  # the latest place
    assert draft([1, 2, 3, 4], 3) == draft([7], 3) == []


# ---- the cache goes back -------------------------------------------------------------------------------------------

@pytest.mark.parametrize('make', [decoder, Cached, Reread])
def test_what_was_forgotten_leaves_no_trace(make, model):
    x = torch.randint(24, (1, 12))
    with torch.inference_mode():
        ask = make(model) if make is Reread else make(model, 1)
        ask(x[:, :6])
        ask.every(torch.randint(24, (1, 5)))
        ask.rewind(6)
        every = ask.every(x[:, 6:])
        want = model.logits(model(x))[:, 6:]
    assert (every - want).abs().max() < 1e-4 * want.abs().max()


# ---- refused -------------------------------------------------------------------------------------------------------

def encoder(): return small(family='encoder')

REFUSED = {
    'another name': (dict(draft='small'), 'open the model first'),
    'a number': (dict(draft=3), "'ngram' or a smaller model"),
    'nothing': (dict(draft=None), "'ngram' or a smaller model"),
    'another tokenizer': (dict(draft=small(V=30)), 'of the same tokenizer'),
    'an encoder': (dict(draft=encoder()), 'encoder'),
    'elsewhere': (dict(draft=small().to('meta')), 'expected a draft on cpu'),
    'no guesses': (dict(ahead=0), 'expected ahead'),
    'too many': (dict(ahead=33), '1 to 32'),
    'half a guess': (dict(ahead=1.5), 'expected ahead'),
}

@pytest.mark.parametrize('case', REFUSED)
def test_a_draft_that_cannot_serve_is_refused(case, model):
    options, words = REFUSED[case]
    with pytest.raises(UserError, match=words): Speculator(model, **options)


OPTIONS = {
    'too long': dict(max_new_tokens=64), 'no tokens': dict(max_new_tokens=0), 'cold': dict(temperature=-1),
    'a share above 1': dict(top_p=2.), 'a text to stop at': dict(stop='end'), 'no seed': dict(seed=-1),
}

@pytest.mark.parametrize('case', OPTIONS)
def test_bad_options_are_refused(case, model):
    with pytest.raises(UserError, match='expected'): Speculator(model).generate_ids(PROMPTS, **OPTIONS[case])


def test_tokens_of_another_vocabulary_are_refused(model):
    with pytest.raises(UserError, match='another tokenizer'): Speculator(model).generate_ids([[24]], 5)


def test_a_broken_model_is_said(model):
    broken = small()
    broken.norm.weight.data[0] = float('nan')
    with pytest.raises(UserError, match='NaN or infinity'): Speculator(broken).generate_ids(PROMPTS, 5)


# ---- a common beginning --------------------------------------------------------------------------------------------

SYSTEM = [7, 3, 11, 2, 19, 5, 5, 8, 13, 1, 17, 20]
SHARED = [[*SYSTEM, 1, 2, 3], [*SYSTEM, 4], [*SYSTEM, 1, 2], SYSTEM]

@pytest.fixture
def read(monkeypatch):
    "Return a list of the shapes that a model reads, and let beginnings of any length be shared."
    shapes = []
    for kind in (Cached, writing.decoder(small(), 1).__class__):
        whole = kind.__call__
        def noting(self, x, whole=whole):
            shapes.append(tuple(x.shape))
            return whole(self, x)
        monkeypatch.setattr(kind, '__call__', noting)
    return shapes


def apart(model, prompts, **options): return generate_ids(model, prompts, 20, batch_size=1, stop=None, **options)


@pytest.mark.parametrize('sampling', SAMPLING[:3])
@pytest.mark.parametrize('family', ['qwen3', 'llama', 'gpt2', 'qwen2'])
def test_a_common_beginning_changes_no_text(family, sampling, read):
    model = small(family=family)
    together = generate_ids(model, SHARED, 20, stop=None, **sampling)
    assert read[:2] == [(1, 11), (4, 4)] # each row keeps a token to begin with
    assert together == apart(model, SHARED, **sampling)


def test_one_prompt_for_many_texts_is_read_once(read):
    model = small()
    together = generate_ids(model, [SYSTEM] * 6, 20, stop=None)
    assert read[:2] == [(1, 11), (6, 1)]
    assert together == apart(model, [SYSTEM] * 6) and len(set(map(tuple, together))) > 1


@pytest.mark.parametrize('kind, cache', [('int8', None), ('int4', 'int4')])
def test_a_quantised_model_reads_it_once_too(kind, cache, read):
    model = quantise(small(d_model=64), kind, cache=cache, speed=False, show=False)
    read.clear()
    together = generate_ids(model, SHARED, 20, temperature=0, stop=None)
    assert read[0] == (1, 11) and together == apart(model, SHARED, temperature=0)


def test_rows_that_end_leave_the_others_as_they_are():
    model = small()
    texts = apart(model, SHARED)
    ends = [text[3] for text in texts[:3]]
    want = generate_ids(model, SHARED, 20, stop=ends, batch_size=1)
    assert generate_ids(model, SHARED, 20, stop=ends) == want


def test_what_shares_little_is_read_row_by_row(read):
    generate_ids(small(), [[1, 2, 3], [1, 2, 4]], 5)
    assert read[0] == (2, 3)


def test_a_window_is_not_widened(read):
    model = small(family='mistral', window=8)
    assert generate_ids(model, SHARED, 20, stop=None) == apart(model, SHARED)
    assert read[0] == (4, 15)                # pads would stand between
    even = [[*SYSTEM, 1], [*SYSTEM, 2], [*SYSTEM, 3]]
    read.clear()
    assert generate_ids(model, even, 20, stop=None) == apart(model, even)
    assert (1, 12) in read


def test_a_model_without_a_cache_reads_each_row(model):
    class Wrapped(nn.Module):
        "A model that is not ours."
        def __init__(self):
            super().__init__()
            self.model, self.config, self.embed = model, model.config, model.embed
        def forward(self, x): return self.model(x)
        def logits(self, h): return self.model.logits(h)
    even = [[*SYSTEM, i] for i in range(4)]
    assert generate_ids(Wrapped(), even, 8, stop=None) == generate_ids(model, even, 8, stop=None)
