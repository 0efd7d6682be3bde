"The chat window: what it asks, shows, stops and keeps; and in JupyterLab, in a real browser."
import threading
from pathlib import Path
import pytest
from lab import Page, browser_only, jupyter_lab
from llmbook.core import UserError, set_seed
from llmbook.model.config import ModelConfig
from llmbook.model.transformer import Transformer
from llmbook.tokens.tokenizer import train_tokenizer
from llmbook.tune.chat import ChatFormat
from llmbook.tune.talk import Talk
from llmbook.widgets.chat import ChatPanel, chat_with, conversation_html

OWNED = '<img src=x onerror="document.title=\'owned\'"> '


def tiny_talk(kind=Talk, **options):
    "Return a conversation with a model that was never trained."
    tok = train_tokenizer(['say red green blue'] * 10, 300)
    set_seed(0)
    model = Transformer(ModelConfig(vocab_size=tok.get_vocab_size(), n_layer=1, d_model=32, n_head=2, context=64))
    return kind(model.eval(), ChatFormat(tok), **options)


class Endless(Talk):
    "A conversation with somebody who writes until he is told to stop."
    pace = threading.Event()
    def _answer(self, messages, on_text):
        written = ''
        while True:
            written += OWNED
            if on_text(OWNED): return written
            self.pace.wait(.005)


@pytest.fixture
def panel(): return chat_with(tiny_talk(max_new_tokens=6, temperature=1))


def press_enter(panel, text):
    "Do what the browser does: the key first, then the letters."
    panel._key_pressed(panel.line, dict(event='submit'), [])
    panel.line.value = text
    panel.thread.join()


def test_enter_sends_the_line_and_empties_it(panel):
    press_enter(panel, 'say red')
    assert [m['role'] for m in panel.talk.messages] == ['user', 'assistant']
    assert panel.line.value == ''
    assert 'say red' in panel.page.value
    assert 'answered after' in panel.status.value


def test_the_window_answers_as_the_talk_does(panel):
    wanted = tiny_talk(max_new_tokens=6, temperature=1).ask('say red')
    assert panel.ask('say red') == wanted


def test_an_answer_is_shown_while_it_is_written(panel, monkeypatch):
    shown = []
    monkeypatch.setattr(panel, 'between', -1)
    monkeypatch.setattr(panel, 'draw', lambda messages=None, writing=False: shown.append((messages, writing)))
    answer = panel.ask('say red')
    parts = [messages[-1]['content'] for messages, writing in shown if writing]
    assert parts and all(answer.startswith(part.strip()) for part in parts)


def test_stop_ends_the_answer_and_keeps_it():
    panel = ChatPanel(tiny_talk(Endless))
    panel.line.value = 'go'
    panel.send()
    while 'is writing' not in panel.status.value: panel.talk.pace.wait(.001)
    panel.line.value = 'the next question'
    panel.send()
    assert 'still writing' in panel.status.value
    panel.stop()
    panel.thread.join()
    assert panel.talk.messages[-1]['content'].startswith(OWNED)
    assert panel.line.value == 'the next question'
    assert panel.stop_button.disabled


def test_one_question_at_a_time(panel):
    with panel.busy, pytest.raises(UserError, match='one question at a time'): panel.ask('say red')


def test_what_fails_goes_back_into_the_line(panel, monkeypatch):
    def fails(*args): raise ValueError('no <memory>')
    monkeypatch.setattr(panel.talk, 'ask', fails)
    press_enter(panel, 'say red')
    assert panel.line.value == 'say red'
    assert 'ValueError: no &lt;memory&gt;' in panel.status.value
    assert not panel.busy.locked()


@pytest.mark.parametrize('role', ['user', 'assistant', 'system', 'tool'])
def test_what_is_said_is_escaped(role):
    page = conversation_html([dict(role=role, content=OWNED)])
    assert '<img' not in page and '&lt;img' in page


def test_options_reach_the_talk(panel):
    panel.temperature.value = 1.5
    panel.top_p.value = .5
    panel.length.value = 3
    panel.system.value = 'be brief'
    assert panel.talk.options == dict(temperature=1.5, top_p=.5)
    assert panel.talk.most == 3
    assert panel.talk.messages == [dict(role='system', content='be brief')]
    assert panel.length.max == panel.talk.model.config.context // 2


def test_a_system_prompt_changes_with_the_next_question(panel):
    panel.ask('say red')
    with panel.busy: panel.system.value = 'be brief'
    assert panel.talk.messages[0]['role'] == 'user'
    panel.ask('say blue')
    assert [m['role'] for m in panel.talk.messages] == ['system', 'user', 'assistant', 'user', 'assistant']


def test_roles_show_what_the_model_was_given(panel):
    panel.show_roles.value = True
    assert 'an answer, got none yet' in panel.status.value
    panel.ask('say red')
    assert 'tokens' in panel.roles.value and 'not trained on' in panel.roles.value
    panel.show_roles.value = False
    assert panel.roles.value == ''


def test_roles_leave_out_what_the_context_had_no_room_for(panel):
    for i in range(12): panel.ask(f'say red {i}')
    row = panel.talk.last_row()
    context = panel.talk.model.config.context
    assert len(row) <= context
    assert 'say red 11' in panel.talk.fmt.tok.decode(row.ids.tolist())


def test_take_back_restart_and_copy(panel):
    panel.ask('say red')
    panel.ask('say blue')
    panel.take_back()
    assert panel.line.value == 'say blue'
    panel.copy()
    assert panel.plain.value == repr(panel.talk) and panel.plain.layout.display == ''
    panel.copy()
    assert panel.plain.layout.display == 'none'
    with panel.busy: panel.restart()
    assert len(panel.talk.messages) == 2
    panel.restart()
    assert panel.talk.messages == []


def test_without_widgets_it_is_text(panel):
    panel.ask('say red')
    assert repr(panel).startswith('user: say red\nassistant:')
    assert 'say red' in panel._repr_mimebundle_()['text/html']


def test_every_control_has_a_name(panel):
    named = [panel.line, panel.send_button, panel.stop_button, *panel.actions, panel.show_roles, panel.plain,
             panel.system, panel.temperature, panel.top_p, panel.length]
    assert all(control.description for control in named)
    assert 'aria-label="conversation"' in panel.page.value


@pytest.mark.parametrize('source', [None, 5, ['a']])
def test_no_model_is_refused(source):
    with pytest.raises(UserError, match='folder or name of a model'): chat_with(source)


# ---- in JupyterLab, in a real browser -------------------------------------------------------------------------------

CELL = '''import sys; sys.path.insert(0, {tests!r})
from test_chat_widget import Endless, tiny_talk
from llmbook.widgets.chat import chat_with
panel = chat_with(tiny_talk(Endless))
panel'''


@browser_only
def test_enter_sends_and_escape_stops_in_jupyterlab(tmp_path):
    from selenium.webdriver import ActionChains, Keys
    cell = CELL.format(tests=str(Path(__file__).parent))
    with jupyter_lab(tmp_path, [cell], theme='JupyterLab Dark') as address, Page(address, tmp_path) as page:
        def log(): return page.text('.lb-chat-log')
        def status(): return page.text('.lb-chat-status')
        def press(*keys): ActionChains(page.driver).send_keys(*keys).perform()

        page.run()
        page.ended()
        page.wait(lambda: page.found('.lb-chat input[type="text"]'))
        page.found('.lb-chat input[type="text"]')[0].click()
        press('say it all', Keys.ENTER)
        page.wait(lambda: 'say it all' in log() and '<img' in log() and 'is writing' in status())
        assert not page.found('.lb-chat-stop[disabled]')
        press(Keys.ESCAPE)
        page.wait(lambda: 'stopped after' in status() and page.found('.lb-chat-stop[disabled]'))
        focused = page.driver.execute_script('return document.activeElement.closest(".lb-chat input") !== null')
        assert focused, 'the line keeps the keyboard'
        assert page.found('.lb-chat-status [role="status"]')
        page.click('Restart')
        page.wait(lambda: 'nothing said yet' in log())
        assert page.driver.title != 'owned'
        assert not page.found('.lb-chat img, .lb-chat script')
