"""The dashboard: what it shows, that it changes nothing, and its buttons, pressed in a browser while a cell trains.

The browser test runs JupyterLab in a headless Chromium; it skips where there is no chromedriver (.ci/run installs it).
"""
import csv, math, re, signal, warnings
from pathlib import Path
import pytest, torch
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.callback.core import Callback
from lab import Page, browser_only, jupyter_lab
from llmbook.core import UserError
from llmbook.checkpoint.checkpoint import Checkpoint
from llmbook.model.config import ModelConfig
from llmbook.pretrain.run import lm_learner
from llmbook.report.curves import column, history_picture, smooth
from llmbook.show.charts import line_chart, log_axis, thin_out
from llmbook.train.telemetry import Samples, Telemetry
from llmbook.widgets.dashboard import SCREENS, Dashboard, HtmlScreen, browse_curves, dashboard_line, dashboard_page

EVIL = '<script>document.title="owned"</script><img src=x onerror="document.title=\'owned\'">'
CONFIG = ModelConfig(vocab_size=64, n_layer=1, d_model=32, n_head=2, context=32)
NAN = float('nan')


class Batches:
    "Batches that depend on their number alone."
    def __init__(self, n, rows=4):
        self.n = n
        self.rows = rows
        self.at = 0

    def seek(self, step): self.at = step % self.n
    def __len__(self): return self.n

    def __iter__(self):
        first, self.at = self.at, 0
        for i in range(first, self.n):
            g = torch.Generator().manual_seed(i)
            x = torch.randint(0, 64, (self.rows, 33), generator=g).sort(1).values
            yield x[:, :-1], x[:, 1:]


def tiny(n=30, cbs=(), rows=4, **kwargs):
    "Return a learner of a few thousand weights."
    return lm_learner(DataLoaders(Batches(n, rows), Batches(3)), CONFIG, lr=3e-3, cbs=[*cbs], **kwargs)

def writes(text=EVIL):
    "Return samples of a model that always writes `text`."
    def write(model, prompts): return [prompt + text for prompt in prompts]
    return Samples(write, ['Once', 'def'])

def fit_quietly(learn, fit, *args):
    with learn.no_bar(), learn.no_logging(): fit(*args)

def weights(learn): return torch.cat([p.detach().flatten() for p in learn.model.parameters()])
def same(a, b): return torch.equal(weights(a), weights(b))
def steps(rows): return [row['step'] for row in rows]


class At(Callback):
    "Do something after a step of training, as a hand on a button might."
    order = 57
    def __init__(self, step, do):
        self.step = step
        self.do = do
    def after_batch(self):
        if self.training and self.train_iter == self.step: self.do(self.learn)

def stop_at(step): return At(step, lambda learn: learn.dashboard.requests.stop())
def pause_at(step): return At(step, lambda learn: learn.dashboard.requests.pause())


# ---- the picture ----------------------------------------------------------------------------------------------------

def rows(n, **more):
    "Return n rows of a history."
    return [dict(step=10 * i, tokens=640 * i, lr=.1, loss=4 + 1 / i, **more) for i in range(1, n + 1)]

HISTORIES = [
    [],
    [dict(step=1)],
    rows(1),
    rows(2),
    [dict(r, loss=NAN) for r in rows(5)],
    [dict(step=3, valid_loss=2.)],
    [dict(step=3, loss='?')],
    [dict(loss=3.)],
    rows(1, memory=0, tokens_per_s=None, skipped=1),
    [dict(step=10, loss=0., lr=0., grad_norm=-1.)],
    [dict(step=i, loss=y) for i, y in enumerate((1e308, -1e308, 1.))],
    [dict(step=x, loss=1.) for x in (-1e300, 1e300, 1e308, 10**400)],
    rows(3, skipped=None),
    [dict(step='1', loss='2'), dict(step=2, loss=5e-324), dict(step=3, loss=0.)],
]

@pytest.mark.parametrize('history', HISTORIES, ids=lambda h: str(h)[:60])
def test_any_history_has_a_picture(history):
    page = history_picture(history)
    assert page.startswith('<')
    assert 'nan' not in page.lower()
    assert 'inf' not in page.replace('infin', '')
    assert EVIL not in page
    assert page.count('<svg') == page.count('</svg>')


@pytest.mark.parametrize('options', [dict(every='a'), dict(every=-1), dict(share=0), dict(share=NAN),
                                     dict(samples=-1), dict(samples='a')])
def test_what_would_end_the_drawing_is_refused(options):
    with pytest.raises(UserError, match='expected'): Dashboard(**options)


def test_odd_pictures_and_files_are_refused_and_no_samples_are_none(tmp_path):
    for most in (0, 1.5, 'a'):
        with pytest.raises(UserError, match='most'): history_picture(rows(3), most=most)
    (tmp_path/'history.csv').write_text('step,loss\n1,' + '2' * 200_000)
    limit = csv.field_size_limit(131_072) # Python's own; whoever read a table in this process has raised it
    try:
        with pytest.raises(UserError, match='history.csv is not a history'): history_picture(tmp_path)
    finally: csv.field_size_limit(limit)
    view = dict(VIEW, step=1, steps=2, left=None, samples=[dict(step=1, prompt='a', text='abc')])
    assert '<pre' not in dashboard_page(view, samples=0)
    assert '<pre' in dashboard_page(view)


def test_the_picture_stays_small():
    sizes = []
    for n in (320, 3200, 32000):
        page = history_picture(rows(n, grad_norm=1., tokens_per_s=5e4, memory=10**9, skipped=0))
        sizes.append(len(page))
    assert max(sizes) < 1.3 * min(sizes) < 90_000


def test_a_spike_of_one_row_stays_in_sight():
    many = rows(5000, grad_norm=1.)
    many[3000]['grad_norm'] = 50.
    stretches = thin_out(column(many, 'grad_norm'))
    assert max(high for _, _, _, high in stretches) == 50.
    assert max(mean for _, mean, _, _ in stretches) < 5


def test_gaps_are_not_bridged():
    points = [(i, None if 20 <= i < 30 else float(i)) for i in range(60)]
    assert smooth(points) == points, 'straight pieces stay, and the gap too'
    svg = line_chart({'loss': points}, 'loss')
    assert svg.count('<path') == 2
    history = [dict(step=i, loss=loss) for i, loss in points]
    assert history_picture(history).count('None') == 0


def test_the_axis_may_be_tokens():
    assert column(rows(2), 'loss', 'tokens') == [(640, 5.), (1280, 4.5)]
    assert '>tokens<' in history_picture(rows(2), by='tokens')


def test_an_earlier_run_lies_beside_in_every_chart():
    "The columns that both have are drawn twice, over one axis that holds both."
    ours, earlier = rows(50, grad_norm=1.), rows(80, grad_norm=2.)
    page = history_picture(ours, beside=earlier, pointer=False)
    alone = history_picture(ours, pointer=False)
    assert 'earlier training' in page and 'earlier training' not in alone
    assert page.count('<path') > alone.count('<path')
    assert '>700<' in page and '>700<' not in alone


def test_a_part_of_the_axis_shows_what_lies_in_it():
    history = rows(3000)
    history[1500]['loss'] = 40.
    assert '>40<' in history_picture(history, window=(14_000, 16_000))
    assert '>40<' not in history_picture(history, window=(17_000, 19_000))
    assert 'no row between step 90,000 and 99,000' in history_picture(history, window=(90_000, 99_000))


def test_a_logarithmic_axis_has_no_place_for_zero():
    history = [dict(step=step, loss=loss) for step, loss in ((0, 4.), (1, 0.), (2, 3.), (4, -1.), (8, 2.))]
    for log in ('x', 'y', 'xy'):
        page = history_picture(history, log=log, smoothing=0)
        assert 'nan' not in page
        assert page.count('<svg') == 3
    assert math.isclose(log_axis(1, 8, 0, 30)(2), 10)


def test_values_under_the_pointer_are_those_of_the_row():
    history = [dict(step=step, loss=10. - step) for step in (1, 2, 3, 4)]
    page = history_picture(history, smoothing=0)
    for step in (1, 2, 3, 4): assert f'>step {step}: training {10 - step}<' in page
    assert 'lb-at' in page and '<g' not in history_picture(history, pointer=False)


@pytest.mark.parametrize('log', ['', 'x', 'y', 'xy'])
@pytest.mark.parametrize('history', HISTORIES, ids=lambda h: str(h)[:60])
def test_any_history_has_a_picture_on_any_axis(history, log):
    page = history_picture(history, log=log, beside=rows(3), smoothing=.2)
    assert page.startswith('<')
    assert 'nan' not in page.lower()


def test_controls_are_the_arguments_of_the_picture():
    history = rows(200)
    shown = browse_curves(history, beside=rows(100))
    assert shown.page.value == str(history_picture(history, beside=rows(100)))
    shown.controls.log_x.value = True
    shown.controls.smoothing.value = .1
    shown.controls.part.value = 25, 75
    shown.controls.earlier.value = False
    assert shown.page.value == str(history_picture(history, log='x', smoothing=.1, window=(500., 1500.)))


# ---- the page -------------------------------------------------------------------------------------------------------

VIEW = dict(state='training', step=3, steps=10, left=70., rows=[], last={}, metrics={}, samples=[], note='')

def test_all_text_is_escaped():
    sample = dict(step=1, prompt=EVIL, text=EVIL + EVIL)
    page = dashboard_page(dict(VIEW, state=f'failed: {EVIL}', note=EVIL, metrics={EVIL: 3.}, samples=[sample]))
    assert '<script' not in page
    assert '<img' not in page
    assert page.count('&lt;script') >= 4


def test_numbers_are_there_or_said_to_be_unknown():
    page = dashboard_page(dict(VIEW, last=dict(loss=3.25, skipped=4, bad_losses=1, memory=2e9)))
    for words in ('3.250', '4, 1 bad losses', '2 GB', 'unknown', 'step 3 of 10, 30%', '1 min 10 s left'):
        assert words in page
    assert '41.0%' in dashboard_page(dict(VIEW, last=dict(mfu=.41)))
    assert dashboard_line(dict(VIEW, steps=0, step=0, left=None)) == 'training: step 0 of 0 (0%)'


@pytest.mark.parametrize('state', ['interrupted', 'done', 'failed: OSError', 'stopped after step 3'])
def test_a_run_that_has_ended_has_no_time_left(state):
    assert ' left' not in dashboard_page(dict(VIEW, state=state))
    assert ' left' not in dashboard_line(dict(VIEW, state=state))


def test_the_axis_ends_where_the_run_will_end():
    view = dict(VIEW, step=100, steps=1000, rows=rows(10), last=dict(step=100, tokens=6400, loss=3.))
    assert '>800<' in dashboard_page(view), 'a number near the end of the run stands under the axis'
    assert '>800<' not in dashboard_page(dict(view, state='done', left=None))
    assert '>50k<' in dashboard_page(view, by='tokens')


def test_letters_of_all_charts_are_about_equally_large():
    page = history_picture(rows(40))
    units = {int(w) for w in re.findall(r'viewBox="0 0 (\d+) ', page)}
    assert units == {1000, 640, 400, 240}
    wide = 1000 / 1000
    small = (1000 - 3 * 18) / 4 / 240
    assert .8 < wide / small < 1.25
    middle = 640 / 640
    small = (640 - 18) / 2 / 240
    assert .7 < middle / small < 1.4


# ---- a fit, without a screen ----------------------------------------------------------------------------------------

class Shown:
    "A stand-in for IPython's display, which keeps everything that would have been sent."
    def __init__(self): self.sent = []
    def __call__(self, bundle, raw, display_id):
        self.sent.append(bundle)
        return self
    def update(self, bundle, raw): self.sent.append(bundle)

    @property
    def last(self): return self.sent[-1]['text/html']
    @property
    def any_widget(self): return any('widget' in kind for bundle in self.sent for kind in bundle)


@pytest.fixture
def shown(monkeypatch):
    s = Shown()
    monkeypatch.setattr('IPython.display.display', s)
    return s


@pytest.mark.parametrize('given, words', [
    ({}, 'no flops_per_token given'),
    (dict(flops_per_token=1e6), 'no peak_flops given'),
    (dict(flops_per_token=1e6, peak_flops=1.), 'the peak was measured on a busy machine')])
def test_an_unknown_utilisation_has_a_reason(shown, given, words):
    learn = tiny(n=4, **given)
    learn.fit(1, 1e-3, cbs=[Dashboard('html')])
    assert f'unknown ({words})' in shown.last


@pytest.fixture(scope='module')
def plain():
    "Return a learner after the same fit without a dashboard."
    learn = tiny(cbs=[writes()])
    fit_quietly(learn, learn.fit_wsd, 3)
    return learn


def drawing_each_batch(show): return Dashboard(show, every=0., share=1e9)

@pytest.mark.parametrize('show', ['widget', 'html', 'text'])
def test_the_weights_are_those_without_it(show, shown, plain, capsys):
    learn = tiny(cbs=[writes()])
    learn.fit_wsd(3, cbs=drawing_each_batch(show))
    assert same(learn, plain)
    assert learn.recorder.values[-1][1:3] == plain.recorder.values[-1][1:3]
    printed = capsys.readouterr().out
    if show == 'text':
        assert printed.startswith('starting: step 0 of 90')
        assert printed.splitlines()[-1].startswith('done: step 90 of 90 (100%)')
        assert not shown.sent
        return
    assert printed == ''
    assert len(shown.sent) > 90
    assert all('text/html' in bundle for bundle in shown.sent)
    assert '>done<' in shown.last
    assert not any('widget' in kind for kind in shown.sent[-1])
    assert '<script' not in str(shown.sent)
    assert ('application/vnd.jupyter.widget-view+json' in shown.sent[0]) == (show == 'widget')


def test_where_widgets_are_seen_the_output_is_left_alone(shown):
    def see(learn): learn.dashboard.screen.box._view_count = 1 # what a frontend reports
    learn = tiny(cbs=[At(10, see)])
    learn.fit(1, cbs=drawing_each_batch('widget'))
    assert 8 < len(shown.sent) < 14, 'the output is renewed until then, and once more for the still picture'


def test_nothing_is_read_from_the_device(shown, monkeypatch):
    asked, looks = [], []
    def watch(name):
        read = getattr(torch.Tensor, name)
        def wrap(self, *args, **kwargs):
            asked.append(name)
            return read(self, *args, **kwargs)
        monkeypatch.setattr(torch.Tensor, name, wrap)
    for name in ('item', 'tolist', '__float__', '__bool__', 'cpu', 'numpy'): watch(name)

    def look(learn):
        asked.clear()
        learn.dashboard._show()
        looks.append(list(asked))
    tiny(cbs=[At(15, look), writes()]).fit(2, cbs=Dashboard('html'))
    assert looks == [[]]


class Clock:
    "A stand-in for the module `time`, moved by hand."
    now = 0.
    def monotonic(self): return self.now
    perf_counter = monotonic


def test_it_draws_at_most_twice_a_second_and_a_hundredth_of_the_time(shown, monkeypatch):
    clock, dash = Clock(), Dashboard('html')
    monkeypatch.setattr('llmbook.widgets.dashboard.time', clock)
    class Tick(Callback):
        order = At.order
        def after_batch(self): clock.now += .1
    tiny(60, [Tick()]).fit(1, cbs=dash)                                  # 6.3 s of batches, drawing takes nothing
    quick = len(shown.sent)

    page = dash.page_of
    def slow(view):
        clock.now += .02
        return page(view)
    dash.page_of = slow
    tiny(60, [Tick()]).fit(1, cbs=dash)                                  # 20 ms a picture: one in 2 s
    assert 11 <= quick <= 15
    assert 4 <= len(shown.sent) - quick <= 6


def test_a_pause_is_counted_apart_and_the_run_resumes(shown, plain, monkeypatch):
    learn = tiny(cbs=[writes(), pause_at(20)])
    seen = []
    class Hand(HtmlScreen):
        def draw(self, view):
            seen.append(view['state'])
            super().draw(view)
        def listen(self):
            if not seen or seen[-1] != 'paused': return
            seen.append('pressed')
            learn.dashboard.requests.resume()
    monkeypatch.setitem(SCREENS, 'html', Hand)
    dash = Dashboard('html')
    learn.fit_wsd(3, cbs=dash)
    assert same(learn, plain)
    first = seen.index('paused')
    assert seen[first:first + 3] == ['paused', 'pressed', 'training']
    row = learn.telemetry.rows[-1]
    assert 0 < row['paused'] <= dash.idle + .1
    aside = sum(row[k] for k in ('paused', 'validating', 'sampling', 'saving'))
    assert row['seconds'] + aside <= row['wall']


def test_samples_on_demand_change_nothing(shown, plain):
    def draw(model, prompts):
        torch.rand(7)
        return [prompt + EVIL for prompt in prompts]
    def samples(): return Samples(draw, ['Once', 'def'])
    learn = tiny(cbs=[samples(), At(10, lambda learn: learn.dashboard.requests.sample())])
    learn.fit_wsd(3, cbs=Dashboard('html'))
    assert steps(learn.samples.rows) == [10, 10, 30, 30, 60, 60, 90, 90]
    twin = tiny(cbs=[samples()])
    fit_quietly(twin, twin.fit_wsd, 3)
    assert same(learn, twin)


@pytest.mark.parametrize('step', [17, 30, 45])
def test_stop_and_resume_give_the_run_that_was_never_stopped(step, shown, plain, tmp_path):
    learn = tiny(cbs=[writes(), Checkpoint(tmp_path/'ck')])
    learn.fit_wsd(3, cbs=[Dashboard('html'), stop_at(step)])
    assert learn.train_iter == step
    assert f'stopped after step {step}' in shown.last
    assert 'resume=True' in shown.last
    assert learn.validate()[0] > 0, 'the Learner can still be used'
    learn.fit_wsd(3, resume=True, cbs=Dashboard('html'))
    assert same(learn, plain)
    assert steps(learn.telemetry.rows) == steps(plain.telemetry.rows)


def test_stop_waits_for_the_whole_step(shown, tmp_path):
    learn = tiny(cbs=[stop_at(5)], accumulate=4)
    learn.fit(1, cbs=Dashboard('html'))
    assert learn.train_iter == 8
    assert 'Nothing was saved' in shown.last


def test_a_signal_ends_a_pause(shown, tmp_path, monkeypatch):
    learn = tiny(cbs=[Checkpoint(tmp_path/'ck'), pause_at(5)])
    dash = Dashboard('html')
    class Told(HtmlScreen):
        def listen(self):
            if dash.state == 'paused': signal.raise_signal(signal.SIGTERM)
    monkeypatch.setitem(SCREENS, 'html', Told)
    with pytest.raises(SystemExit): learn.fit(1, cbs=dash)
    assert learn.train_iter in (5, 6)
    assert 'stopped after step' in shown.last


def test_a_failed_run_says_so_and_the_next_has_its_bar_again(shown, capsys):
    def fail(learn): raise ValueError(EVIL)
    learn = tiny(cbs=[At(7, fail)])
    with pytest.raises(ValueError): learn.fit(1, cbs=Dashboard('html'))
    assert 'failed: ValueError' in shown.last
    assert '<script' not in shown.last
    assert learn.progress.run
    logger = learn.logger
    learn.remove_cb(At)
    learn.fit(1)
    assert learn.logger is logger
    assert 'training' in capsys.readouterr().err


def test_an_error_in_drawing_is_one_warning(shown, plain):
    learn = tiny(cbs=[writes()])
    dash = drawing_each_batch('html')
    dash.page_of = lambda view: 1 / 0
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter('always')
        learn.fit_wsd(3, cbs=dash)
    messages = [str(t.message) for t in told if 'dashboard' in str(t.message)]
    error = 'ZeroDivisionError: division by zero'
    assert messages == [f'the dashboard could not draw ({error}); training continues']
    assert same(learn, plain)


def test_only_the_first_rank_shows(shown, monkeypatch, capsys):
    monkeypatch.setattr('llmbook.widgets.dashboard.rank', lambda: 1)
    learn = tiny()
    learn.fit(1, cbs=Dashboard())
    assert not shown.sent
    assert 'training:' not in capsys.readouterr().out


def test_no_rank_of_several_waits_for_buttons(shown, monkeypatch):
    monkeypatch.setattr('llmbook.widgets.dashboard.world', lambda: 2)
    learn = tiny(cbs=[stop_at(5)])
    learn.fit(1, cbs=Dashboard('widget'))
    assert learn.train_iter == 30
    assert shown.sent
    assert not shown.any_widget


def plain_learner(*cbs):
    "Return a learner of fastai's own."
    data = DataLoaders(Batches(20), Batches(2))
    return Learner(data, tiny().model, tiny().loss_func, cbs=list(cbs))


def test_a_plain_learner_has_a_dashboard_too(shown):
    learn = plain_learner(Telemetry(), stop_at(5))
    with learn.no_bar(), learn.no_logging(): learn.fit(1, cbs=Dashboard('html'))
    assert learn.train_iter == 5
    assert 'stopped after step 5' in shown.last


def test_a_plain_learner_without_telemetry_has_none():
    learn = plain_learner()
    with pytest.raises(UserError, match='add Telemetry'): learn.fit(1, cbs=Dashboard('html'))


# ---- a real kernel --------------------------------------------------------------------------------------------------

HERE = f'import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\nfrom test_dashboard import *\n'


class Frontend:
    "A frontend that knows no subshells: it sends clicks on the main queue and reads what the kernel publishes."
    def __init__(self, client):
        self.client = client
        self.buttons = {}   # description -> id of the channel
        self.pages = []     # values of the dashboard's page
        self.outputs = {}   # display id -> data
        self.printed = ''

    def read_widget(self, kind, content):
        "Note a button that is made, and a page that a widget shows."
        state = content.get('data', {}).get('state', {})
        is_button = kind == 'comm_open' and state.get('_model_name') == 'ButtonModel'
        if is_button: self.buttons[state['description']] = content['comm_id']
        if 'lb-dashboard' in str(state.get('value')): self.pages.append(state['value'])

    def read(self):
        message = self.client.get_iopub_msg(timeout=60)
        kind, content = message['msg_type'], message['content']
        assert kind != 'error', content
        if kind in ('comm_open', 'comm_msg', 'comm_close'): self.read_widget(kind, content)
        if kind in ('display_data', 'update_display_data'):
            self.outputs[content['transient']['display_id']] = content['data']
        if kind == 'stream': self.printed += content['text']

    def until(self, done):
        while not done(): self.read()

    def click(self, name):
        content = dict(comm_id=self.buttons[name], data=dict(method='custom', content=dict(event='click')))
        message = self.client.session.msg('comm_msg', content)
        self.client.shell_channel.send(message)

    def is_in(self, state): return self.pages and f'>{state}<' in self.pages[-1]


def test_clicks_reach_a_kernel_that_trains():
    "Clicks come on the main queue, in which other requests wait already and keep their order."
    from jupyter_client import KernelManager
    manager = KernelManager(kernel_name='python3')
    manager.start_kernel()
    try:
        client = manager.client()
        client.start_channels()
        client.wait_for_ready(timeout=60)
        front = Frontend(client)
        client.execute(HERE + 'learn = tiny(40)\nlearn.fit(10_000, cbs=Dashboard())')
        front.until(lambda: front.is_in('training'))
        for i in range(3): client.execute(f'print("cell {i}")')
        front.click('Pause')
        front.until(lambda: front.is_in('paused'))
        front.click('Pause')
        front.until(lambda: front.is_in('training'))
        front.click('Stop')
        front.until(lambda: front.printed.count('cell') == 3)
        assert re.findall(r'cell \d', front.printed) == ['cell 0', 'cell 1', 'cell 2']
        (still,) = front.outputs.values()
        assert set(still) == {'text/html', 'text/plain'}
        assert 'stopped after step' in still['text/html']
        assert '<svg' in still['text/html']
    finally: manager.shutdown_kernel(now=True)


# ---- a real browser -------------------------------------------------------------------------------------------------

def look_at_the_curves(page):
    "Make the loss logarithmic while the run is paused, and read the values under the pointer."
    from selenium.webdriver import ActionChains
    def drawing(): return page.driver.execute_script("return document.querySelector('.lb-dashboard svg').innerHTML")
    plain = drawing()
    page.driver.find_element('xpath', '//label[contains(., "log loss")]//input').click()
    page.wait(lambda: drawing() != plain)
    def read():
        strip = next(strip for strip in page.found('.lb-dashboard .lb-at g') if strip.size['width'])
        area = strip.find_element('css selector', 'path')
        ActionChains(page.driver).move_to_element(area).perform()
        return strip.value_of_css_property('opacity') == '1' and 'training' in strip.get_attribute('textContent')
    page.wait(read)


@browser_only
def test_a_hand_on_the_buttons_while_the_cell_trains(tmp_path):
    folder = str(tmp_path/'checkpoints')
    train = (f'{HERE}learn = tiny(40, [writes(), Checkpoint({folder!r})], rows=16)\n'
             'learn.fit(10_000, cbs=Dashboard())')
    again = 'learn.fit(10_000, resume=True, cbs=[Dashboard(), stop_at(learn.train_iter + 20)])'
    with jupyter_lab(tmp_path, [train, again]) as address, Page(address, tmp_path) as page:
        def state(): return page.text('.lb-state')
        def step(): return int(re.match(r'step ([\d,]+)', page.text('.lb-place'))[1].replace(',', ''))

        page.run()
        page.wait(lambda: state() in ('training', 'validating') and step() > 100)
        page.click('Pause')
        page.wait(lambda: state() == 'paused')
        assert page.prompt(0) == '[*]:'
        assert len(page.found('.lb-dashboard svg')) == 7  # loss in three widths, the others in two
        paused = step()
        look_at_the_curves(page)
        assert step() == paused
        page.click('Sample now')
        page.wait(lambda: f'written at step {paused:,}' in page.driver.page_source)
        assert step() == paused

        page.click('Resume')
        page.wait(lambda: step() > paused)
        page.click('Stop')
        page.ended()
        page.wait(lambda: state().startswith('stopped after step') and not page.found('button.jupyter-button'))
        stopped = step()
        assert stopped > paused
        assert 'resume=True' in page.driver.page_source
        assert 'owned' not in page.driver.title

        page.run(1)
        page.ended(1)
        page.wait(lambda: f'stopped after step {stopped + 20:,}' in page.driver.page_source)
        assert not page.found('.lb-dashboard script, .lb-dashboard img')
