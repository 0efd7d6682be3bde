"Talking to a model: what it remembers, what is shown, and what is refused."
import subprocess, sys
from pathlib import Path
import pytest, torch
from llmbook.core import UserError, set_seed
from llmbook.model.config import ModelConfig
from llmbook.model.hf import save_pretrained
from llmbook.model.transformer import Transformer
from llmbook.tokens.tokenizer import train_tokenizer
from llmbook.tune.adapters import adapted_layers, add_adapters, save_adapters
from llmbook.tune.chat import CHAT_FILE, ChatFormat
from llmbook.tune.sft import sft
from llmbook.tune.talk import Talk, TextPieces, open_chat_model, talk_in_shell
from llmbook.tune.watch import chat_answers

WORDS = 'red green blue one two three four five'.split()
RECORDS = [dict(prompt=f'say {w} {i}', answer=f'{w}!') for w in WORDS for i in range(6)]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "Return the folder of a model that has learnt to repeat a word, and of an adapter over its base."
    out = tmp_path_factory.mktemp('tuned')
    tok = train_tokenizer([f'{r["prompt"]} {r["answer"]}' for r in RECORDS], 330)
    set_seed(0)
    model = Transformer(ModelConfig(vocab_size=tok.get_vocab_size(), n_layer=2, d_model=64, n_head=2, context=64))
    save_pretrained(model, tok, out/'base')
    sft(model, tok, RECORDS, out, method='full', steps=60, lr=1e-2, tokens=256, device='cpu')
    return out


@pytest.fixture
def talk(folder):
    model, fmt = open_chat_model(folder/'model', device='cpu')
    return Talk(model, fmt, temperature=0, max_new_tokens=8)


def test_pieces_are_the_text_and_never_a_part_of_a_character(talk):
    text = 'na\u00efve 🙂 caf\u00e9'
    pieces = TextPieces(talk.fmt.tok)
    shown = [pieces.add(i) for i in talk.fmt.tok.encode(text).ids]
    assert ''.join(shown) == text
    assert '\ufffd' not in ''.join(shown)


def test_what_is_shown_while_it_is_written_is_the_answer(talk):
    shown = []
    answer = talk.ask('say red 3', on_text=shown.append)
    assert ''.join(shown).strip() == answer == talk.messages[-1]['content']


def test_the_first_answer_is_that_of_a_chat_of_one_question(talk):
    wanted = chat_answers(talk.model, talk.fmt, [[dict(role='user', content='say two 1')]], max_new_tokens=8)[0].text
    assert talk.ask('say two 1') == wanted


def test_the_model_reads_what_was_said_before(talk):
    talk.ask('say red 1')
    before = list(talk.messages)
    talk.ask('say blue 2')
    again = chat_answers(talk.model, talk.fmt, [[*before, dict(role='user', content='say blue 2')]], max_new_tokens=8)
    assert talk.messages[-1]['content'] == again[0].text


def test_a_long_conversation_goes_on_when_the_context_is_full(talk):
    for i in range(12): talk.ask(f'say {WORDS[i % 8]} {i}')
    assert len(talk.messages) == 24


def test_undo_and_clear(talk):
    talk.begin = [dict(role='system', content='be brief')]
    talk.clear()
    talk.ask('say red 1')
    talk.ask('say two 2')
    talk.undo()
    assert [m['role'] for m in talk.messages] == ['system', 'user', 'assistant']
    talk.clear()
    assert talk.messages == talk.begin
    talk.undo()
    assert talk.messages == talk.begin


def test_what_was_said_is_escaped(talk):
    talk.messages = [dict(role='user', content='<script>x</script>')]
    assert '<script>' not in talk._repr_html_()


@pytest.mark.parametrize('text', ['', '  ', None, 5])
def test_nothing_to_answer_is_refused(talk, text):
    with pytest.raises(UserError, match='a text to answer'): talk.ask(text)
    assert talk.messages == []


@pytest.mark.parametrize('options', [dict(temperature=-1), dict(temperature='x'), dict(max_new_tokens=0)])
def test_wrong_options_are_refused(talk, options):
    with pytest.raises(UserError): Talk(talk.model, talk.fmt, **options)


@pytest.fixture
def adapter(folder, tmp_path):
    "Save an adapter with drawn weights over the base; return its model, its template and its folder."
    base, fmt = open_chat_model(folder/'base', device='cpu')
    set_seed(1)
    model = add_adapters(base, r=4)
    for layer in adapted_layers(model).values(): layer.lora_B.data.normal_(std=.1)
    save_adapters(model, tmp_path)
    fmt.save(tmp_path)
    return model.eval(), fmt, tmp_path


def test_an_adapter_brings_its_answers_along(folder, adapter):
    model, fmt, saved = adapter
    chats = [[dict(role='user', content=f'say {w} 1')] for w in WORDS]
    wanted = chat_answers(model, fmt, chats, 8)
    opened, its_fmt = open_chat_model(folder/'base', saved, device='cpu')
    assert chat_answers(opened, its_fmt, chats, 8) == wanted


def test_an_adapter_over_another_base_is_refused(folder, adapter):
    _, _, saved = adapter
    with pytest.raises(UserError, match='over which'): open_chat_model(folder/'model', saved, device='cpu')


def test_an_adapter_brings_its_template_and_variables(folder, tmp_path):
    "PEFT keeps the template in tokenizer_config.json alone."
    base, fmt = open_chat_model(folder/'base', device='cpu')
    save_adapters(add_adapters(base, r=4), tmp_path)
    template = "{{ answer_in or '' }}" + fmt.template
    ChatFormat(fmt.tok, template, variables=dict(answer_in='German. ')).save(tmp_path)
    (tmp_path/CHAT_FILE).unlink()
    _, opened = open_chat_model(folder/'base', tmp_path, device='cpu')
    assert opened.template == template
    assert opened.render([dict(role='user', content='say red')]).startswith('German. ')


def test_a_conversation_in_the_shell(talk):
    written = []
    lines = iter(['say red 1', '', '/help', '/undo', 'say two 1', '/bye', 'never read'])
    talk_in_shell(talk, read=lambda prompt: next(lines), write=lambda *a, **k: written.append(''.join(map(str, a))))
    assert len(talk.messages) == 2
    assert next(lines) == 'never read'
    assert sum('/undo' in text for text in written) == 2


def test_the_end_of_the_input_ends_it(talk):
    def read(prompt): raise EOFError
    talk_in_shell(talk, read=read)


def test_ctrl_c_stops_an_answer_and_keeps_the_conversation(talk, monkeypatch):
    written = []
    lines = iter(['say red 1', '/bye'])
    def ask(*args, **kwargs): raise KeyboardInterrupt
    monkeypatch.setattr(talk, 'ask', ask)
    talk_in_shell(talk, read=lambda prompt: next(lines), write=lambda *a, **k: written.append(''.join(map(str, a))))
    assert '\n(stopped)' in written


def test_the_command(folder):
    program = Path(sys.executable).with_name('llmbook-chat')
    r = subprocess.run([program, folder/'model', '--temperature', '0', '--tokens', '8'], input='say red 1\n/bye\n',
                       capture_output=True, text=True)
    assert r.returncode == 0, r.stderr
    assert '> ' in r.stdout and '!' in r.stdout


def test_a_tokenizer_will_do_for_a_format(talk):
    again = Talk(talk.model, talk.fmt.tok, temperature=0, max_new_tokens=8)
    assert again.ask('say red 3') == talk.ask('say red 3')


@pytest.mark.parametrize('dtype', ('float32', 'bfloat16'))
@pytest.mark.parametrize('bits', (None, 'nf4', 'int8'))
def test_an_adapter_is_opened_in_any_type_over_any_base(folder, tmp_path, bits, dtype):
    "The tables of positions stay float32, as in a model without an adapter."
    model, fmt = open_chat_model(folder/'base', device='cpu')
    sft(model, fmt, RECORDS, tmp_path, method='lora', base=bits, steps=4, evaluations=1, lr=1e-2, tokens=256, device='cpu')
    opened, _ = open_chat_model(folder/'base', tmp_path/'adapter', device='cpu', dtype=dtype)
    assert {str(p.dtype) for p in opened.parameters()} == {f'torch.{dtype}'}
    assert {str(b.dtype) for b in opened.buffers()} == {'torch.float32'}
    x = torch.arange(20)[None]
    with torch.no_grad():
        trained = model.eval().logits(model(x))
        found = opened.logits(opened(x)).float()
    close = 1e-4 if dtype == 'float32' else .15
    torch.testing.assert_close(found, trained, atol=close, rtol=close)


def test_a_type_is_refused_before_anything_is_opened(folder, tmp_path):
    with pytest.raises(UserError, match='dtype'): open_chat_model(folder/'base', tmp_path, device='cpu', dtype='int7')
