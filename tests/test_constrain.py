"Constrained answers: texts have the form asked for, alone and in batches; what cannot be kept to is refused."
import json, re, sys, warnings
import pytest, torch
from llmbook.core import UserError, set_seed
from llmbook.generate.constrain import Rules, answer_grammar
from llmbook.generate.text import generate, stream
from llmbook.model.config import ModelConfig
from llmbook.model.transformer import Transformer
from llmbook.tokens.tokenizer import encode_text, train_tokenizer

pytest.importorskip('llguidance')
WORDS = ['yes no maybe', '12 34 56', '{"name": "Ann", "age": 1}', 'äöü 日本 😀', 'the cat sat on the mat']
PROMPTS = ['the cat', 'yes', 'a b c d e f', '12']
DATE = r'(19|20)[0-9]{2}-[01][0-9]'
PERSON = {
    'type': 'object',
    'properties': {'name': {'enum': ['Ann', 'Bob']}, 'age': {'type': 'integer', 'minimum': 0, 'maximum': 99},
                   'tags': {'type': 'array', 'items': {'enum': ['a', 'b']}, 'maxItems': 2}},
    'required': ['name', 'age', 'tags'],
    'additionalProperties': False,
}


@pytest.fixture(scope='module')
def tok(): return train_tokenizer(WORDS * 9, 320)


@pytest.fixture(scope='module')
def model(tok):
    set_seed(0)
    more = tok.get_vocab_size() + 13 # rows that the tokenizer does not know
    return Transformer(ModelConfig(vocab_size=more, n_layer=1, d_model=32, n_head=2, context=128)).eval()


def is_person(text):
    found = json.loads(text)
    fits = found['name'] in ('Ann', 'Bob') and 0 <= found['age'] <= 99
    return fits and set(found) == {'name', 'age', 'tags'} and set(found['tags']) <= {'a', 'b'}


CHOICES = ['yes', 'yes sir', 'no "quoted" \\ text', 'two\nlines', '日本', "it's {x} %a /b/"]
FORMS = {
    'choice': (dict(choice=CHOICES), CHOICES.__contains__),
    'one choice': (dict(choice=['maybe']), 'maybe'.__eq__),
    'regex': (dict(regex=DATE), lambda text: re.fullmatch(DATE, text)),
    'letters beyond ASCII': (dict(regex='[äöü]{2}😀'), lambda text: re.fullmatch('[äöü]{2}😀', text)),
    'schema': (dict(schema=PERSON), is_person),
    'schema as text': (dict(schema=json.dumps(PERSON)), is_person),
}

SAMPLING = [dict(temperature=0), dict(temperature=2.), dict(top_k=3), dict(top_p=.5, min_p=.1),
            dict(repetition_penalty=3.)]

@pytest.mark.parametrize('sampling', SAMPLING)
@pytest.mark.parametrize('form', FORMS)
def test_every_text_has_the_form(form, sampling, model, tok):
    asked, fits = FORMS[form]
    texts = generate(model, tok, PROMPTS, 90, seed=3, **asked, **sampling)
    assert all(fits(text) for text in texts), texts


@pytest.mark.parametrize('form', FORMS)
def test_texts_are_the_same_alone_and_in_a_batch(form, model, tok): # transformers#22707
    asked, _ = FORMS[form]
    together = generate(model, tok, PROMPTS, 90, **asked)
    assert generate(model, tok, PROMPTS, 90, batch_size=1, **asked) == together
    assert generate(model, tok, PROMPTS[:2], 90, **asked) == together[:2]


def test_a_stream_gives_the_same_text(model, tok):
    asked = dict(schema=PERSON, seed=5, max_new_tokens=90)
    assert ''.join(stream(model, tok, PROMPTS[0], **asked)) == generate(model, tok, PROMPTS[0], **asked)[0]


def test_what_was_cut_off_is_said(model, tok):
    with pytest.warns(UserWarning, match='4 of 4 texts were cut off after 5 tokens'):
        texts = generate(model, tok, PROMPTS, 5, regex='[a-z]{60}', top_k=1)
    assert all(re.fullmatch('[a-z]*', text) for text in texts)


def test_what_is_complete_is_not_called_cut_off(model, tok):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        generate(model, tok, PROMPTS, 3, regex='[a-z]*')
        generate(model, tok, PROMPTS, 40, choice=['yes', 'no'])


def test_the_likeliest_choice_is_found_token_by_token(tok):
    V = tok.get_vocab_size()
    model = Transformer(ModelConfig(vocab_size=V, n_layer=1, d_model=32, n_head=2, context=32)).eval()
    wanted, = encode_text(tok, ['no'])
    model.head.weight = torch.nn.Parameter(model.head.weight.detach().clone())
    first = model.logits(model(torch.tensor([[5]])))[0, -1]
    with torch.no_grad(): model.head.weight[wanted[0]] += 9 * model(torch.tensor([[5]]))[0, -1] * first.abs().max()
    assert generate(model, tok, prompt_ids=[[5]], max_new_tokens=9, temperature=0, choice=['yes', 'no']) == ['no']


def test_all_tokens_that_spell_a_choice_are_allowed(tok):
    rules = Rules(tok, answer_grammar(choice=['yes', 'no']), tok.get_vocab_size(), [0])
    rules.start(1)
    allowed = rules.allowed([0])[0].nonzero().flatten().tolist()
    spelt = {tok.id_to_token(i) for i in allowed}
    assert spelt == {word for word in tok.get_vocab() if 'yes'.startswith(word) or 'no'.startswith(word)}


def test_a_row_that_is_over_waits_for_the_others(model, tok):
    texts = generate(model, tok, PROMPTS, 60, choice=['no', 'the cat sat on the mat, the cat sat on the mat'], seed=1)
    assert len(set(map(len, texts))) == 2


BAD = {
    'two': (dict(choice=['a'], regex='a'), 'leave one'),
    'three': (dict(choice=['a'], regex='a', schema={}), 'leave one'),
    'no choices': (dict(choice=[]), 'list of texts'),
    'an empty choice': (dict(choice=['a', '']), 'none of them empty'),
    'a number': (dict(choice=[1, 2]), 'list of texts'),
    'a set': (dict(choice={'a': 1}), 'list of texts'),
    'an open group': (dict(regex='(a'), 'unclosed group'),
    'an empty expression': (dict(regex=''), 'expected regex'),
    'no expression': (dict(regex=5), 'expected regex'),
    'look-ahead': (dict(regex='(?=a)a'), 'look-around'),
    'a back-reference': (dict(regex=r'(a)\1'), 'backreferences'),
    'broken JSON': (dict(schema='{'), 'expected a JSON schema'),
    'a list': (dict(schema='[1]'), 'to be an object'),
    'an unknown type': (dict(schema={'type': 'text'}), 'kept to'),
    'what no schema holds': (dict(schema={'enum': {1, 2}}), 'another value'),
    'a type that is none': (dict(schema={'type': 'integer', 'minimum': 'x'}), 'kept to'),
    'nothing fits': (dict(schema={'type': 'integer', 'minimum': 2, 'maximum': 1}), 'kept to'),
    'no end': (dict(choice=['a'], stop_at_eot=False), 'stop_at_eot'),
}

@pytest.mark.parametrize('case', BAD)
def test_what_cannot_be_kept_to_is_refused(case, model, tok):
    asked, words = BAD[case]
    with pytest.raises(UserError, match=words): generate(model, tok, 'the cat', 9, **asked)


def test_without_the_library_the_way_out_is_named(model, tok, monkeypatch):
    monkeypatch.setitem(sys.modules, 'llguidance', None)
    with pytest.raises(UserError, match='pip install llguidance'): generate(model, tok, 'the', 9, choice=['a'])
