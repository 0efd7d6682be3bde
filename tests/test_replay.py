"""The replay of a run: its moments, and its slider in a browser without a server."""
import pytest
from lab import browser_only, start_browser
from llmbook.widgets.replay import frame_ends, moment, replay

ROWS = [dict(step=step, loss=4 - step / 100, tokens=64 * step, seconds=step / 2, lr=1e-3) for step in range(2, 202, 2)]
TEXTS = [dict(step=100, prompt='Once', text='Once <b>upon</b>'), dict(step=200, prompt='Once', text='Once again')]


def test_a_moment_knows_nothing_of_what_came_later():
    view = moment(ROWS, 50, TEXTS)
    assert view['step'] == 100
    assert view['left'] == pytest.approx(50)
    assert view['samples'] == TEXTS[:1]
    assert view['state'] == 'training'


def test_the_last_moment_is_the_whole_run():
    view = moment(ROWS, len(ROWS), TEXTS)
    assert (view['state'], view['left'], view['samples']) == ('done', None, TEXTS)


@pytest.mark.parametrize('n', [1, 2, 5, 1000])
def test_frames_rise_and_end_with_all_rows(n):
    ends = frame_ends(n, 8)
    assert ends == sorted(set(ends))
    assert ends[-1] == n
    assert ends[0] >= 1


def test_texts_of_the_model_are_escaped():
    page = str(replay(ROWS, TEXTS))
    assert '<b>upon' not in page
    assert '&lt;b&gt;upon' in page


def test_a_replay_is_small():
    assert len(str(replay(ROWS, TEXTS))) < 200_000


@browser_only
def test_the_slider_shows_one_moment(tmp_path):
    file = tmp_path/'replay.html'
    file.write_text(f'<!doctype html><meta charset="utf-8">{replay(ROWS, TEXTS, frames=4)}', encoding='utf-8')
    browser = start_browser(tmp_path/'profile')
    try:
        browser.get(file.as_uri())
        shown = lambda: [f.get_attribute('data-step') for f in browser.find_elements('css selector', '.frame') if f.is_displayed()]
        assert shown() == ['200']
        slider = browser.find_element('css selector', 'input[type=range]')
        slider.send_keys('\ue012') # the left arrow key
        before_last = shown()
        assert len(before_last) == 1 and before_last != ['200']
        assert slider.get_attribute('aria-valuetext') == f'step {before_last[0]}'
    finally: browser.quit()
