"""The dashboard: what it shows, that it changes nothing, and its buttons, pressed in a real browser while a cell trains.

The browser test runs JupyterLab in a headless Chromium; it skips where there is no chromedriver (.ci/run installs it).
"""
import re, signal, warnings
from pathlib import Path
import pytest, torch
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.callback.core import Callback
from lab import Page, browser_only, jupyter_lab
from llmbook.core import UserError
from llmbook.report.curves import column, history_picture, smooth
from llmbook.show.charts import line_chart, thin_out
from llmbook.widgets.dashboard import SCREENS, Dashboard, HtmlScreen, dashboard_line, dashboard_page
from llmbook.model.config import ModelConfig
from llmbook.checkpoint.checkpoint import Checkpoint
from llmbook.pretrain.run import lm_learner
from llmbook.train.telemetry import Samples, Telemetry

EVIL = '<script>document.title="owned"</script><img src=x onerror="document.title=\'owned\'">'
CONFIG = ModelConfig(vocab_size=64, n_layer=1, d_model=32, n_head=2, context=32)


class Batches:
    "Batches that depend on their number alone."
    def __init__(self, n, rows=4): self.n, self.rows, self.at = n, rows, 0
    def seek(self, step): self.at = step % self.n
    def __len__(self): return self.n
    def __iter__(self):
        at, self.at = self.at, 0
        for i in range(at, self.n):
            x = torch.randint(0, 64, (self.rows, 33), generator=torch.Generator().manual_seed(i)).sort(1).values
            yield x[:, :-1], x[:, 1:]


def tiny(n=30, cbs=(), rows=4, **kwargs):
    "A learner of a few thousand weights."
    return lm_learner(DataLoaders(Batches(n, rows), Batches(3)), CONFIG, lr=3e-3, cbs=[*cbs], **kwargs)

def writes(text=EVIL): return Samples(lambda model, prompts: [p + text for p in prompts], ['Once', 'def'])
def weights(learn): return torch.cat([p.detach().flatten() for p in learn.model.parameters()])
def same(a, b): return torch.equal(weights(a), weights(b))


class At(Callback):
    "Do something after a step of training, as a hand on a button might."
    order = 57
    def __init__(self, step, do): self.step, self.do = step, do
    def after_batch(self):
        if self.training and self.train_iter == self.step: self.do(self.learn)


# ---- the picture ----------------------------------------------------------------------------------------------------------------

NAN = float('nan')

def rows(n, **more): return [dict(step=10 * i, tokens=640 * i, lr=.1, loss=4 + 1 / i, **more) for i in range(1, n + 1)]


@pytest.mark.parametrize('history', [[], [dict(step=1)], rows(1), rows(2), [dict(r, loss=NAN) for r in rows(5)], [dict(step=3, valid_loss=2.)], [dict(step=3, loss='?')],
                                     [dict(loss=3.)], rows(1, memory=0, tokens_per_s=None, skipped=1), [dict(step=10, loss=0., lr=0., grad_norm=-1.)],
                                     [dict(step=i, loss=y) for i, y in enumerate((1e308, -1e308, 1.))], [dict(step=x, loss=1.) for x in (-1e300, 1e300, 1e308, 10**400)],
                                     rows(3, skipped=None), [dict(step='1', loss='2'), dict(step=2, loss=5e-324), dict(step=3, loss=0.)]], ids=lambda h: str(h)[:60])
def test_any_history_has_a_picture(history):
    page = history_picture(history)
    assert page.startswith('<') and 'nan' not in page.lower() and 'inf' not in page.replace('infin', '') and EVIL not in page
    assert page.count('<svg') == page.count('</svg>')


@pytest.mark.parametrize('kw', [dict(every='a'), dict(every=-1), dict(share=0), dict(share=NAN), dict(samples=-1), dict(samples='a')])
def test_what_would_end_the_drawing_is_refused(kw):
    with pytest.raises(UserError, match='expected'): Dashboard(**kw)


def test_odd_pictures_and_files_are_refused_and_no_samples_are_none(tmp_path):
    for most in (0, 1.5, 'a'):
        with pytest.raises(UserError, match='most'): history_picture(rows(3), most=most)
    (tmp_path/'history.csv').write_text('step,loss\n1,' + '2' * 200_000)
    with pytest.raises(UserError, match='history.csv is not a history'): history_picture(tmp_path)
    view = dict(state='training', step=1, steps=2, left=None, rows=[], last={}, metrics={}, note='', samples=[dict(step=1, prompt='a', text='abc')])
    assert '<pre' not in dashboard_page(view, samples=0) and '<pre' in dashboard_page(view)


def test_the_picture_stays_small():
    sizes = [len(history_picture(rows(n, grad_norm=1., tokens_per_s=5e4, memory=10**9, skipped=0))) for n in (320, 3200, 32000)]
    assert max(sizes) < 1.3 * min(sizes) < 60_000


def test_a_spike_of_one_row_stays_in_sight():
    many = rows(5000, grad_norm=1.)
    many[3000]['grad_norm'] = 50.
    heights = [x for _, *x in thin_out(column(many, 'grad_norm'))]
    assert max(high for _, _, high in heights) == 50. and max(mean for mean, _, _ in heights) < 5


def test_gaps_are_not_bridged():
    points = [(i, None if 20 <= i < 30 else float(i)) for i in range(60)]
    assert smooth(points) == points                                  # straight pieces stay, and the gap too
    svg = line_chart({'loss': points}, 'loss')
    assert svg.count('<path') == 2 and history_picture([dict(step=i, loss=v) for i, v in points]).count('None') == 0


def test_the_axis_may_be_tokens():
    assert column(rows(2), 'loss', 'tokens') == [(640, 5.), (1280, 4.5)] and '>tokens<' in history_picture(rows(2), by='tokens')


# ---- the page -------------------------------------------------------------------------------------------------------------------

VIEW = dict(state='training', step=3, steps=10, left=70., rows=[], last={}, metrics={}, samples=[], note='')

def test_all_text_is_escaped():
    page = dashboard_page(dict(VIEW, state=f'failed: {EVIL}', note=EVIL, metrics={EVIL: 3.}, samples=[dict(step=1, prompt=EVIL, text=EVIL + EVIL)]))
    assert '<script' not in page and '<img' not in page and page.count('&lt;script') >= 4


def test_numbers_are_there_or_said_to_be_unknown():
    page = dashboard_page(dict(VIEW, last=dict(loss=3.25, skipped=4, bad_losses=1, memory=2e9)))
    assert all(t in page for t in ('3.250', '4, 1 bad losses', '2 GB', 'unknown', 'step 3 of 10, 30%', '1 min 10 s left'))
    assert '41.0%' in dashboard_page(dict(VIEW, last=dict(mfu=.41)))
    assert dashboard_line(dict(VIEW, steps=0, step=0, left=None)) == 'training: step 0 of 0 (0%)'


# ---- a fit, without a screen -------------------------------------------------------------------------------------------------------

class Shown:
    "Stands for IPython's display: everything that would have been sent."
    def __init__(self): self.sent = []
    def __call__(self, bundle, raw, display_id): self.sent.append(bundle); return self
    def update(self, bundle, raw): self.sent.append(bundle)


@pytest.fixture
def shown(monkeypatch):
    s = Shown()
    monkeypatch.setattr('IPython.display.display', s)
    return s


@pytest.fixture(scope='module')
def plain():
    "The same fit without a dashboard."
    learn = tiny(cbs=[writes()])
    with learn.no_bar(), learn.no_logging(): learn.fit_wsd(3)
    return learn


@pytest.mark.parametrize('show', ['widget', 'html', 'text'])
def test_the_weights_are_those_without_it(show, shown, plain, capsys):
    learn = tiny(cbs=[writes()])
    learn.fit_wsd(3, cbs=Dashboard(show, every=0., share=1e9))          # drawn after every batch
    assert same(learn, plain) and learn.recorder.values[-1][1:3] == plain.recorder.values[-1][1:3]
    said = capsys.readouterr()
    if show == 'text': assert said.out.startswith('starting: step 0 of 90') and said.out.splitlines()[-1].startswith('done: step 90 of 90 (100%)') and not shown.sent
    else:
        assert said.out == '' and len(shown.sent) > 90 and all('text/html' in b for b in shown.sent)
        assert '>done<' in shown.sent[-1]['text/html'] and not any('widget' in k for k in shown.sent[-1]) and '<script' not in str(shown.sent)
        assert ('application/vnd.jupyter.widget-view+json' in shown.sent[0]) == (show == 'widget')


def test_where_widgets_are_seen_the_output_is_left_alone(shown):
    see = At(10, lambda l: setattr(l.dashboard.screen.box, '_view_count', 1))   # what a frontend reports
    learn = tiny(cbs=[see])
    learn.fit(1, cbs=Dashboard('widget', every=0., share=1e9))
    assert 8 < len(shown.sent) < 14                                           # until then, and the still picture


def test_nothing_is_read_from_the_device(shown, monkeypatch):
    asked = []
    for name in ('item', 'tolist', '__float__', '__bool__', 'cpu', 'numpy'):
        def wrap(self, *a, _f=getattr(torch.Tensor, name), _n=name, **k): asked.append(_n); return _f(self, *a, **k)
        monkeypatch.setattr(torch.Tensor, name, wrap)
    looks = []
    def look(l): asked.clear(); l.dashboard._show(); looks.append(list(asked))
    tiny(cbs=[At(15, look), writes()]).fit(2, cbs=Dashboard('html'))
    assert looks == [[]]


def test_it_draws_at_most_twice_a_second_and_a_hundredth_of_the_time(shown, monkeypatch):
    dash, now = Dashboard('html'), [0.]
    monkeypatch.setattr('llmbook.widgets.dashboard.time', type('T', (), dict(monotonic=lambda: now[0], perf_counter=lambda: now[0])))
    def tick(): now[0] += .1
    every = At(None, None); every.after_batch = tick
    tiny(60, [every]).fit(1, cbs=dash)                                   # 6.3 s of batches, drawing takes nothing
    quick = len(shown.sent)
    page = dash.page_of
    def slow(view): now[0] += .02; return page(view)
    dash.page_of = slow
    tiny(60, [every]).fit(1, cbs=dash)                                   # 20 ms a picture: one in 2 s
    assert 11 <= quick <= 15 and 4 <= len(shown.sent) - quick <= 6


def test_pausing_is_counted_apart_and_goes_on(shown, plain, monkeypatch):
    learn, seen = tiny(cbs=[writes(), At(20, lambda l: l.dashboard.requests.pause())]), []
    class Hand(HtmlScreen):
        def draw(self, view): seen.append(view['state']); super().draw(view)
        def listen(self):
            if seen and seen[-1] == 'paused': seen.append('pressed'); learn.dashboard.requests.resume()
    monkeypatch.setitem(SCREENS, 'html', Hand)
    dash = Dashboard('html')
    learn.fit_wsd(3, cbs=dash)
    assert same(learn, plain) and seen[seen.index('paused'):][:3] == ['paused', 'pressed', 'training']
    row = learn.telemetry.rows[-1]
    assert 0 < row['paused'] <= dash.idle + .1 and row['seconds'] + sum(row[k] for k in ('paused', 'validating', 'sampling', 'saving')) <= row['wall']


def test_samples_on_demand_change_nothing(shown, plain):
    def draw(model, prompts): torch.rand(7); return [p + EVIL for p in prompts]
    learn = tiny(cbs=[Samples(draw, ['Once', 'def']), At(10, lambda l: l.dashboard.requests.sample())])
    learn.fit_wsd(3, cbs=Dashboard('html'))
    assert [r['step'] for r in learn.samples.rows] == [10, 10, 30, 30, 60, 60, 90, 90]
    twin = tiny(cbs=[Samples(draw, ['Once', 'def'])])
    with twin.no_bar(), twin.no_logging(): twin.fit_wsd(3)
    assert same(learn, twin)


@pytest.mark.parametrize('step', [17, 30, 45])
def test_stop_and_resume_give_the_run_that_was_never_stopped(step, shown, plain, tmp_path):
    stop = At(step, lambda l: l.dashboard.requests.stop())
    learn = tiny(cbs=[writes(), Checkpoint(tmp_path/'ck')])
    learn.fit_wsd(3, cbs=[Dashboard('html'), stop])
    assert learn.train_iter == step and f'stopped after step {step}' in shown.sent[-1]['text/html'] and 'resume=True' in shown.sent[-1]['text/html']
    assert learn.validate()[0] > 0                                             # the Learner can be used
    learn.fit_wsd(3, resume=True, cbs=Dashboard('html'))
    assert same(learn, plain) and [r['step'] for r in learn.telemetry.rows] == [r['step'] for r in plain.telemetry.rows]


def test_stop_waits_for_the_whole_step(shown, tmp_path):
    learn = tiny(cbs=[At(5, lambda l: l.dashboard.requests.stop())], accumulate=4)
    learn.fit(1, cbs=Dashboard('html'))
    assert learn.train_iter == 8 and 'Nothing was saved' in shown.sent[-1]['text/html']


def test_a_signal_ends_a_pause(shown, tmp_path, monkeypatch):
    learn = tiny(cbs=[Checkpoint(tmp_path/'ck'), At(5, lambda l: l.dashboard.requests.pause())])
    dash = Dashboard('html')
    class Told(HtmlScreen):
        def listen(self):
            if dash.state == 'paused': signal.raise_signal(signal.SIGTERM)
    monkeypatch.setitem(SCREENS, 'html', Told)
    with pytest.raises(SystemExit): learn.fit(1, cbs=dash)
    assert learn.train_iter in (5, 6) and 'stopped after step' in shown.sent[-1]['text/html']


def test_a_failed_run_says_so_and_the_next_has_its_bar_again(shown, capsys):
    def fail(l): raise ValueError(EVIL)
    learn = tiny(cbs=[At(7, fail)])
    with pytest.raises(ValueError): learn.fit(1, cbs=Dashboard('html'))
    assert 'failed: ValueError' in shown.sent[-1]['text/html'] and '<script' not in shown.sent[-1]['text/html'] and learn.progress.run
    logger = learn.logger
    learn.remove_cb(At); learn.fit(1)
    assert learn.logger is logger and 'training' in capsys.readouterr().err


def test_an_error_in_drawing_is_one_warning(shown, plain):
    learn, dash = tiny(cbs=[writes()]), Dashboard('html', every=0., share=1e9)
    dash.page_of = lambda view: 1 / 0
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter('always')
        learn.fit_wsd(3, cbs=dash)
    assert [str(t.message) for t in told if 'dashboard' in str(t.message)] == ['the dashboard could not draw (ZeroDivisionError: division by zero); training continues']
    assert same(learn, plain)


def test_one_rank_shows_and_none_waits_for_buttons(shown, monkeypatch, capsys):
    monkeypatch.setattr('llmbook.widgets.dashboard.rank', lambda: 1)
    learn = tiny(); learn.fit(1, cbs=Dashboard())
    assert not shown.sent and 'training:' not in capsys.readouterr().out
    monkeypatch.undo()
    monkeypatch.setattr('IPython.display.display', shown)
    monkeypatch.setattr('llmbook.widgets.dashboard.world', lambda: 2)
    learn = tiny(cbs=[At(5, lambda l: l.dashboard.requests.stop())])
    learn.fit(1, cbs=Dashboard('widget'))
    assert learn.train_iter == 30 and not any('widget' in k for b in shown.sent for k in b)


def test_a_plain_learner_has_a_dashboard_too(shown):
    learn = Learner(DataLoaders(Batches(20), Batches(2)), (t := tiny()).model, t.loss_func, cbs=[Telemetry(), At(5, lambda l: l.dashboard.requests.stop())])
    with learn.no_bar(), learn.no_logging(): learn.fit(1, cbs=Dashboard('html'))
    assert learn.train_iter == 5 and 'stopped after step 5' in shown.sent[-1]['text/html']
    learn = Learner(DataLoaders(Batches(20), Batches(2)), t.model, t.loss_func)
    with pytest.raises(UserError, match='add Telemetry'): learn.fit(1, cbs=Dashboard('html'))


# ---- a real kernel ----------------------------------------------------------------------------------------------------------------

HERE = f'import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\nfrom test_dashboard import *\n'

def test_clicks_reach_a_kernel_that_trains():
    "As a frontend that knows no subshells sends them: on the main queue, in which other requests wait already and keep their order."
    from jupyter_client import KernelManager
    manager = KernelManager(kernel_name='python3')
    manager.start_kernel()
    try:
        k = manager.client(); k.start_channels(); k.wait_for_ready(timeout=60)
        buttons, pages, outputs, prints = {}, [], {}, []
        def until(f):
            while not f():
                m = k.get_iopub_msg(timeout=60); c, kind = m['content'], m['msg_type']
                assert kind != 'error', c
                state = c.get('data', {}).get('state', {}) if kind.startswith('comm') else {}
                if kind == 'comm_open' and state.get('_model_name') == 'ButtonModel': buttons[state['description']] = c['comm_id']
                if 'lb-dashboard' in str(state.get('value')): pages.append(state['value'])
                if kind in ('display_data', 'update_display_data'): outputs[c['transient']['display_id']] = c['data']
                if kind == 'stream': prints.append(c['text'])
        def click(name):
            k.shell_channel.send(k.session.msg('comm_msg', dict(comm_id=buttons[name], data=dict(method='custom', content=dict(event='click')))))
        k.execute(HERE + 'learn = tiny(40)\nlearn.fit(10_000, cbs=Dashboard())')
        until(lambda: pages and '>training<' in pages[-1])
        for i in range(3): k.execute(f'print("cell {i}")')
        click('Pause'); until(lambda: '>paused<' in pages[-1])
        click('Pause'); until(lambda: '>training<' in pages[-1])
        click('Stop'); until(lambda: ''.join(prints).count('cell') == 3)
        assert re.findall(r'cell \d', ''.join(prints)) == ['cell 0', 'cell 1', 'cell 2']
        (still,) = outputs.values()
        assert set(still) == {'text/html', 'text/plain'} and 'stopped after step' in still['text/html'] and '<svg' in still['text/html']
    finally: manager.shutdown_kernel(now=True)


# ---- a real browser ---------------------------------------------------------------------------------------------------------------

@browser_only
def test_a_hand_on_the_buttons_while_the_cell_trains(tmp_path):
    train = HERE + f'learn = tiny(40, [writes(), Checkpoint({str(tmp_path/"checkpoints")!r})], rows=16)\nlearn.fit(10_000, cbs=Dashboard())'
    again = 'learn.fit(10_000, resume=True, cbs=[Dashboard(), At(learn.train_iter + 20, lambda l: l.dashboard.requests.stop())])'
    with jupyter_lab(tmp_path, [train, again]) as address, Page(address, tmp_path) as page:
        place = lambda: int(re.match(r'step ([\d,]+)', page.text('.lb-place'))[1].replace(',', ''))
        page.run()
        page.wait(lambda: page.text('.lb-state') in ('training', 'validating') and place() > 100)
        page.click('Pause'); page.wait(lambda: page.text('.lb-state') == 'paused')
        assert page.prompt(0) == '[*]:' and len(page.found('.lb-dashboard svg')) == 6
        at = place()
        page.click('Sample now'); page.wait(lambda: f'written at step {at:,}' in page.driver.page_source)
        assert place() == at
        page.click('Resume'); page.wait(lambda: place() > at)
        page.click('Stop'); page.ended()
        page.wait(lambda: page.text('.lb-state').startswith('stopped after step') and not page.found('button.jupyter-button'))
        stopped = place()
        assert stopped > at and 'resume=True' in page.driver.page_source and 'owned' not in page.driver.title
        page.run(1); page.ended(1)
        page.wait(lambda: f'stopped after step {stopped + 20:,}' in page.driver.page_source)
        assert not page.found('.lb-dashboard script, .lb-dashboard img')
