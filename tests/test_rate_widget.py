"The rating page: what it shows, hides, keeps and refuses; and in JupyterLab, in a real browser."
import json, os, re, signal, subprocess, urllib.request
from pathlib import Path
import pytest
from lab import INTO_VIEW, Page, browser_only, jupyter_lab, start_browser
from llmbook.commands.rate import page_command, rating_notebook
from llmbook.core import UserError
from llmbook.people.answers import rater_file, read_answers, read_whole_lines
from llmbook.people.plan import plan_rating, save_plan
from llmbook.widgets.rate import rate, rating_html

OWNED = '<img src=x onerror="document.title=\'owned\'"> '


def rude_pairs(n=8):
    "Return pairs of which one text tries to take over the page."
    pairs = []
    for i in range(n):
        pairs.append(dict(prompt='You are', a=f' welcome, friend {i}', b=f'{OWNED}fool {i}', system_a='secret-new',
                          system_b='secret-old'))
    return pairs


def started(folder, rater='anna', **options):
    panel = rate(rude_pairs(), folder, rater, **options)
    panel.start()
    return panel


def lines_of(folder, rater='anna'): return read_whole_lines(rater_file(folder, rater))[0]


# ---- what a rater sees ----------------------------------------------------------------------------------------------

def test_names_of_systems_are_nowhere(tmp_path):
    panel = started(tmp_path)
    for _ in range(4):
        assert 'secret' not in panel.page.value and 'secret' not in repr(panel)
        panel.answer('left')


def test_texts_are_escaped(tmp_path):
    panel = started(tmp_path, question=f'Which {OWNED}?', warning=OWNED)
    begin = rate(folder=tmp_path)
    for page in (panel.page.value, begin.page.value, rating_html(OWNED, OWNED, OWNED, OWNED)):
        assert '<img' not in page and '&lt;img' in page


def test_the_warning_and_the_freedom_to_stop_come_first(tmp_path):
    panel = rate(rude_pairs(), tmp_path, warning='Some texts are insults.')
    assert 'Some texts are insults.' in panel.page.value and 'without a reason' in panel.page.value
    assert 'fool' not in panel.page.value, 'no text before the start'
    assert panel.answers.layout.display == 'none'


@pytest.mark.parametrize('answer', ['left', 'right', 'tie', 'both bad'])
def test_each_answer_is_on_disk_when_the_next_pair_shows(tmp_path, answer):
    panel = started(tmp_path)
    task = panel.session.task
    panel.choices[answer].click()
    line, = lines_of(tmp_path)
    assert (line['answer'], line['pair'], line['swapped']) == (answer, task.pair, task.swapped)
    assert line['seconds'] >= 0 and panel.session.task.number == 1
    assert 'data-turn="2"' in panel.page.value


def test_take_back_shows_the_pair_again(tmp_path):
    panel = started(tmp_path)
    shown = panel.page.value
    panel.answer('left')
    panel.undo_button.click()
    assert re.sub(r'data-turn="\d+"', '', panel.page.value) == re.sub(r'data-turn="\d+"', '', shown)
    assert 'taken back' in panel.status.value and panel.undo_button.disabled
    panel.undo_button.click()
    assert 'to take back' in panel.status.value


def test_a_rater_who_comes_back_goes_on(tmp_path):
    panel = started(tmp_path)
    for answer in ('left', 'tie', 'both bad'): panel.answer(answer)
    again = rate(folder=tmp_path, rater=' ANNA')
    again.start()
    assert again.session.done == 3 and again.session.task == panel.session.task


def test_a_second_rater_sees_nothing_of_the_first(tmp_path):
    started(tmp_path).answer('left')
    ben = started(tmp_path, 'ben')
    assert ben.session.done == 0 and 'anna' not in ben.page.value
    ben.answer('right')
    assert [line['rater'] for line in lines_of(tmp_path, 'ben')] == ['ben']
    assert sorted(read_answers(tmp_path).rater) == ['anna', 'ben']


def test_the_end_thanks_and_shows_no_result(tmp_path):
    panel = started(tmp_path, repeats=0)
    for _ in range(8): panel.answer('left')
    assert 'Thank you' in panel.page.value and 'secret' not in panel.page.value
    assert all(button.disabled for button in panel.choices.values()) and not panel.undo_button.disabled
    panel.choices['left'].click()
    assert 'answered all' in panel.status.value
    panel.undo()
    assert panel.session.done == 7 and 'data-turn' in panel.page.value


def test_an_answer_that_cannot_be_written_is_said_and_does_not_count(tmp_path, monkeypatch):
    panel = started(tmp_path)
    def full(*args): raise OSError('No space left on device')
    monkeypatch.setattr('llmbook.people.answers.add_line', full)
    panel.choices['left'].click()
    assert 'No space left' in panel.status.value
    assert panel.session.done == 0 and panel.session.task.number == 0


def test_two_windows_of_one_rater_do_not_answer_twice(tmp_path):
    one, two = started(tmp_path), started(tmp_path)
    one.answer('left')
    two.choices['left'].click()
    assert 'one window for each rater' in two.status.value
    assert len(lines_of(tmp_path)) == 1 and two.session.task.number == 1


def test_without_widgets_it_is_text(tmp_path):
    panel = rate(rude_pairs(), tmp_path, 'anna')
    assert 'panel.start()' in repr(panel)
    panel.start()
    assert 'LEFT:' in repr(panel) and "panel.answer('left')" in repr(panel)
    shown = panel._repr_mimebundle_()
    assert shown['text/plain'] == repr(panel) and 'lb-rate-pair' in shown['text/html']


def test_every_control_has_a_name(tmp_path):
    panel = started(tmp_path)
    controls = [*panel.choices.values(), panel.undo_button, panel.name, panel.start_button, panel.progress]
    assert all(control.description for control in controls)
    for name in ('left text', 'right text', 'prompt'): assert f'aria-label="{name}"' in panel.page.value
    assert 'role="region"' in panel.page.value and 'tabindex="0"' in panel.page.value


@pytest.mark.parametrize('rater', ['', ' ', 'x' * 61, 'a\nb\x00'])
def test_a_name_that_is_none_is_said_on_the_page(tmp_path, rater):
    panel = rate(rude_pairs(), tmp_path)
    panel.name.value = rater
    panel.start_button.click()
    assert 'expected' in panel.status.value and panel.session is None


def test_answers_before_the_start_are_refused(tmp_path):
    panel = rate(rude_pairs(), tmp_path)
    with pytest.raises(UserError, match='start'): panel.answer('left')
    with pytest.raises(UserError, match='start'): panel.undo()


# ---- in JupyterLab, in a real browser -------------------------------------------------------------------------------

CELL = '''import sys; sys.path.insert(0, {tests!r})
from test_rate_widget import rude_pairs
from llmbook.widgets.rate import rate
panel = rate(rude_pairs(), 'ratings', {rater!r}, warning='insults', repeats=0)
panel'''
SHOWN = 'const all = document.querySelectorAll(".lb-rate"); return all.length ? all[all.length - 1].innerText : ""'
LIGHTNESS = '''const e = document.querySelector('.lb-rate [role="region"]')
const a = getComputedStyle(e).color.match(/[0-9]+/g)
return a.slice(0, 3).reduce((sum, x) => sum + Number(x), 0) / 3'''
HELD = '''const b = document.activeElement
for (const repeat of [false, true, true, true])
  b.dispatchEvent(new KeyboardEvent("keydown", {key: "1", repeat, bubbles: true, cancelable: true}))'''
DOUBLE = 'const b = document.querySelector(".lb-rate-tie"); b.click(); b.click()'
UNNAMED = '''return [...document.querySelectorAll(".lb-rate button, .lb-rate input")]
    .filter(e => e.offsetParent && !e.textContent.trim() && !(e.labels && e.labels.length) && !e.ariaLabel).length'''


def restart_kernels(address):
    "Restart every kernel of a server, as the menu does."
    server, _, token = re.fullmatch(r'(.*?)(/(?:lab|notebooks)/.*token=)(.*)', address).groups()
    listed = urllib.request.urlopen(f'{server}/api/kernels?token={token}', timeout=20).read()
    for kernel in json.loads(listed):
        place = f'{server}/api/kernels/{kernel["id"]}/restart?token={token}'
        urllib.request.urlopen(urllib.request.Request(place, method='POST'), timeout=30).read()


@browser_only
def test_a_rating_with_the_keyboard_in_jupyterlab(tmp_path):
    from selenium.webdriver import ActionChains, Keys
    tests = str(Path(__file__).parent)
    cells = [CELL.format(tests=tests, rater=rater) for rater in ('anna', 'anna', 'ben')]
    ratings = tmp_path/'work/ratings'
    with jupyter_lab(tmp_path, cells, theme='JupyterLab Dark') as address, Page(address, tmp_path) as page:
        def shown(): return page.driver.execute_script(SHOWN)
        def press(*keys): ActionChains(page.driver).send_keys(*keys).perform()
        def answers(rater='anna'):
            return [line.get('answer', 'undo') for line in lines_of(ratings, rater)]
        def ended(i):
            if page.prompt(i) == '[]:': page.run(i) # not yet run, or forgotten by a kernel that was starting
            return re.fullmatch(r'\[\d+\]:', page.prompt(i))
        def focused():
            button = page.found('.lb-rate-start')[-1]
            if button.is_displayed():
                page.driver.execute_script(INTO_VIEW, button)
                button.click()
            return page.driver.execute_script('return document.activeElement.classList.contains("lb-rate-left")')
        def start(i):
            page.wait(lambda: ended(i), .5)
            page.wait(lambda: len(page.found('.lb-rate')) == i + 1 and 'insults' in shown())
            page.wait(lambda: focused() and 'done' in shown(), .5)

        start(0)
        assert 'left text' in shown() and 'secret-' not in page.driver.page_source
        for i, key in enumerate(['1', '3', '4', Keys.ARROW_RIGHT], 1):
            press(key)
            page.wait(lambda: f'{i} of 8 done' in shown())
        assert answers() == ['left', 'tie', 'both bad', 'right']
        press('u')
        page.wait(lambda: 'taken back; 3 of 8' in shown())
        page.driver.execute_script(HELD)
        page.wait(lambda: '4 of 8 done' in shown())
        page.driver.execute_script(DOUBLE)
        page.wait(lambda: '5 of 8 done' in shown())
        press('2')
        page.wait(lambda: '6 of 8 done' in shown())
        kept = ['left', 'tie', 'both bad', 'right', 'undo', 'left', 'tie', 'right']
        assert answers() == kept, 'a held key and a double click count once'
        assert page.driver.execute_script(UNNAMED) == 0
        assert page.driver.execute_script(LIGHTNESS) > 150, 'light letters on a dark page'

        restart_kernels(address)
        start(1)
        assert '6 of 8 done' in shown(), 'goes on after the restart'
        start(2)
        assert '0 of 8 done' in shown(), 'the second rater begins at the beginning'
        press('2')
        page.wait(lambda: '1 of 8 done' in shown())
        assert answers('ben') == ['right'] and answers() == kept
        assert page.driver.title != 'owned'
        assert not page.found('.lb-rate img, .lb-rate script')


# ---- as a page of its own -------------------------------------------------------------------------------------------

def served(folder):
    "Start the page of a rating with the command's own arguments; return the process and the printed address."
    command = page_command(rating_notebook(folder), browser=False)
    server = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                              start_new_session=True)
    for line in server.stderr:
        found = re.search(r'http://127\.0\.0\.1:\d+/\?token=\S+', line)
        if found: return server, found[0]
    raise AssertionError('the server ended without an address')


@browser_only
def test_the_page_of_the_command_asks_for_its_token_and_keeps_answers(tmp_path):
    pytest.importorskip('voila')
    from selenium.webdriver import ActionChains
    from selenium.webdriver.support.ui import WebDriverWait
    folder = save_plan(plan_rating(rude_pairs(), repeats=0), tmp_path/'ratings')
    server, address = served(folder)
    driver = start_browser(tmp_path/'profile')
    try:
        def wait(done): return WebDriverWait(driver, 60, ignored_exceptions=[Exception]).until(lambda _: done())
        def text(): return driver.find_element('css selector', '.lb-rate').text
        driver.get(address.partition('?')[0])
        assert 'login' in driver.current_url and 'lb-rate' not in driver.page_source
        driver.get(address)
        wait(lambda: 'your name' in text())
        driver.find_element('css selector', '.lb-rate input').send_keys('Anna')
        driver.find_element('css selector', '.lb-rate-start').click()
        wait(lambda: 'lb-rate-left' in driver.switch_to.active_element.get_attribute('class'))
        assert '0 of 8 done' in text()
        ActionChains(driver).send_keys('4').perform()
        wait(lambda: '1 of 8 done' in text())
        assert [line['answer'] for line in lines_of(folder)] == ['both bad']
        assert 'secret-' not in driver.page_source and driver.title != 'owned'
    finally:
        driver.quit()
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()
