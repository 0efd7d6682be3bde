"""Advice on a plan and its widget, without a browser and in JupyterLab in a real one."""
import re
import pytest
from llmbook.core import UserError
from llmbook.model.config import ModelConfig, get_config
from llmbook.plan.devices import DEVICES, Device
from llmbook.plan.memory import memory_estimate
from llmbook.plan.advice import PARTS, advice, memory_picture, planner_html, what_fits
from llmbook.plan.planner import arrange, plan
from llmbook.widgets.planner import Planner, controls, planner
from lab import Page, browser_only, jupyter_lab

EVIL = '<img src=x onerror=alert(1)>'
HAND = dict(device='by hand', type='cpu', cores=2, memory=16e9, peak_flops=330e9, peak_source='measured', dtype='float32', efficiency=.5, efficiency_at=[[64, .3], [256, .5]])

def shown(page, what): return re.search(f'class="lb-{what}"[^>]*>([^<]*)', page)[1]
def words(page): return re.sub(r'\s+', ' ', re.sub('<[^>]*>', ' ', page))


# ---- the page

def test_figures_are_those_of_the_plan():
    page, p = planner_html('h100', count=8, hours=24, price=2.), plan(device='h100', count=8, hours=24, price=2.)
    assert shown(page, 'model') == p.size and shown(page, 'money') == f"{p.expected['money']:,.2f} $" and shown(page, 'tokens-a-parameter') == f"{p.tokens / p.expected['params']:.3g}"
    assert sum(p.expected['parts'].values()) == p.expected['memory'] and 'fits' in words(page)
    for k, v in p.expected['parts'].items(): assert (f'> {k} ' in page) == bool(v)


def test_rows_of_another_length_and_another_optimiser_are_planned():
    p = plan(device='h100', hours=24, size='350m', seq_len=2048, optimizer='adamw', step_tokens=2**17)
    assert p.config['context'] == p.seq_len == 2048 and p.bs * 2048 == 2**17
    e = p.expected
    assert e['memory'] == memory_estimate(get_config('350m', context=2048), e['micro'], precision='bfloat16', optimizer='adamw')['total']


@pytest.mark.parametrize('parts, memory, fits', [(dict(weights=5e9, loss=3e9), 10e9, True), (dict(weights=9.5e9), 10e9, False), (dict(weights=40e9, other=1), 10e9, False)])
def test_the_bar_is_to_scale(parts, memory, fits):
    page = memory_picture(parts | dict(total=1e99), memory, EVIL)
    widths = [float(x) for x in re.findall(r'title="\w+: [^"]*" style="width:([\d.]+)%', page)]
    scale = max(sum(parts.values()), memory) * 1.02
    assert widths == pytest.approx([100 * v / scale for v in parts.values()], abs=.01) and sum(widths) <= 100
    assert ('does not fit' in page) != fits and '<img' not in page


def test_remedies_do():
    "Each sentence names a change after which the size really fits."
    for size, card, count in (('qwen3-8b', 't4', 1), ('qwen3-4b', 'rtx3090', 1), ('llama3.1-8b', 'h100', 2), ('qwen3-1.7b', 't4', 1)):
        f = what_fits(size, card, count)
        if f['fits']: continue
        c, d = get_config(size), DEVICES[card]
        precision = 'bfloat16' if 'bfloat16' in d.tflops else 'float16'
        said = ' | '.join(f['words'])
        assert f['words'] and sum(f['parts'].values()) > .9 * d.memory
        if m := re.search(r'rows of (\d+)', said): assert arrange(ModelConfig.from_dict(c.to_dict() | dict(context=int(m[1]))), d, count, precision)
        if m := re.search(r'(\d+) devices', said): assert arrange(c, d, int(m[1]), precision) and not arrange(c, d, int(m[1]) // 2, precision)
        if m := re.search(r'more memory: ([^|]*)', said): assert all(arrange(c, DEVICES[k.strip()], count, precision) for k in m[1].split(','))
        if m := re.search(r'smaller model: (\S+)', said): assert arrange(get_config(m[1], context=c.context), d, count, precision)


def test_what_does_not_fit_is_shown_and_said():
    page = planner_html('rtx3090', size='qwen3-8b', hours=48)
    assert 'does not fit' in words(page) and 'What would help' in words(page) and '<li>' in page and PARTS['optimizer'] in page


@pytest.mark.parametrize('kw, says', [(dict(device=EVIL), 'expected a device'), (dict(hours=0), 'hours above 0'), (dict(hours=float('nan')), 'hours above 0'), (dict(size=EVIL), 'expected a size'), (dict(count=0), 'one device'),
                                      (dict(device='t4', precision='fp8'), 'on T4'), (dict(mfu=2), 'share of the peak'), (dict(price=-1), 'price of 0 or more'), (dict(grid=EVIL), 'expected a grid'), (dict(seq_len=0), 'context'),
                                      (dict(device='here', machine=HAND, size='qwen3-8b'), 'expected a size'), (dict(device='here', machine=HAND, hours=-1), 'minutes above 0'), (dict(optimizer='sgd'), 'optimizer'),
                                      (dict(hours='a'), 'hours above 0'), (dict(device='here', machine=HAND, hours='a'), 'minutes above 0'), (dict(device='here', machine=HAND, price=float('nan')), 'price of 0 or more')])
def test_a_mistake_is_text_of_the_page(kw, says):
    page = planner_html(**kw)
    assert 'role="alert"' in page and says in words(page) and '<img' not in page and 'Traceback' not in page


def test_names_are_escaped():
    d = Device(EVIL, 'X', dict(float32=10., bfloat16=100.), 80e9, 1e12, 300., EVIL, 1.)
    for page in (planner_html(d), planner_html(d, size='qwen3-8b'), planner_html('here', hours=.1, machine=dict(HAND, device=EVIL))): assert '<img' not in page


def test_advice():
    few = plan(device='a10', hours=2, size='350m')
    assert any('fewer than the 20 wanted' in r for r in advice(few)) and any('No price' in r for r in advice(few))
    assert any('FSDP' in r for r in advice(plan(device='h100', count=8, hours=24, size='qwen3-8b')))
    assert not any('wanted' in r or 'FSDP' in r for r in advice(plan(device='h100', count=8, hours=24)))


# ---- the widget, without a browser

def test_a_move_is_a_new_page():
    p = planner(device='h100', count=8, hours=24.)
    assert planner_html('h100', count=8, hours=24., mfu=.4) in p.page.value and 'text/html' in p._repr_mimebundle_()
    before = shown(p.page.value, 'parameters')
    for k, v in dict(hours=3., count=4, size='350m', seq_len=512, step_tokens=2**18, price='2.5', grid='france', optimizer='adamw', mfu=.5, precision='fp8').items():
        page = p.page.value
        p.controls[k].value = v
        assert p.page.value != page, k
    assert shown(p.page.value, 'parameters') != before and planner_html(**p.choices) in p.page.value


def test_precisions_and_their_share_follow_the_device():
    p = planner(device='h100', precision='fp8')
    assert p.controls['mfu'].value == .25
    p.controls['device'].value = 't4'
    assert p.controls['precision'].value == '' and p.controls['mfu'].value == .4 and ('fp8', 'fp8') not in p.controls['precision'].options and 'float16' in words(p.page.value)
    p.controls['mfu'].value = .3; p.controls['device'].value = 'h100'; p.controls['precision'].value = 'fp8'
    assert p.controls['mfu'].value == .3, 'what a hand has moved stays'


@pytest.mark.parametrize('start', [dict(device='h100', count=8, hours=24), dict(device='t4', hours=5.5, price=.3, size='125m'), dict(device='a100', precision='tf32', seq_len=512, step_tokens=2**16, grid='norway', mfu=.3, optimizer='adamw')])
def test_the_call_is_the_plan(start):
    p = planner(**start)
    q = eval(p.call, dict(plan=plan))
    assert q.size == shown(p.page.value, 'model') and q == plan(**dict(dict(count=1, hours=24.), **start))


def test_this_machine_is_asked_for_little():
    p = planner(HAND, device='here', hours=.5)
    assert [k for k, c in p.controls.items() if c.layout.display != 'none'] == ['device', 'hours', 'size', 'price']
    assert shown(p.page.value, 'model') == plan(30, HAND).size and eval(p.call.replace(')', ', machine=HAND)'), dict(plan=plan, HAND=HAND)) == plan(30, HAND)
    p.controls['price'].value = '.1'
    assert shown(p.page.value, 'money') == '0.05 $' and shown(p.page.value, 'carbon') == 'unknown'
    p.controls['device'].value = 'h100'
    assert p.controls['count'].layout.display == '' and 'H100' in p.page.value


def test_mistakes_of_a_hand_are_told():
    p = planner()
    p.controls['price'].value = EVIL
    assert 'a price in $ an hour' in words(p.page.value) and '<img' not in p.page.value
    p.controls['price'].value = '-3'
    assert 'price of 0 or more' in words(p.page.value)
    p.controls['price'].value = ''
    assert 'role="alert"' not in p.page.value
    for k, c in controls().items():                                    # every end of every choice
        if not hasattr(c, 'options'): continue
        for v in (c.options[0][1] if isinstance(c.options[0], tuple) else c.options[0], c.options[-1][1] if isinstance(c.options[-1], tuple) else c.options[-1]):
            q = planner(HAND, **{k: v}); assert q.page.value, (k, v)


@pytest.mark.parametrize('start', [dict(device='abacus'), dict(colour='red'), dict(count=3), dict(hours=0), dict(hours=float('inf')), dict(hours='day'), dict(precision='int4'), dict(device='t4', precision='fp8')])
def test_choices_there_are_not_are_refused(start):
    with pytest.raises(UserError, match='expected'): Planner(**start)


# ---- in JupyterLab, in a real browser

@browser_only
def test_a_slider_moves_the_figures_in_jupyterlab(tmp_path):
    from selenium.webdriver import ActionChains, Keys
    from selenium.webdriver.support.ui import Select
    cell = 'from llmbook.widgets.planner import planner\np = planner(device="h100", count=8, hours=24)\ndisplay(p)'
    with jupyter_lab(tmp_path, [cell]) as address, Page(address, tmp_path) as page:
        def figure(k): return page.text(f'.lb-{k}')
        page.run(); page.wait(lambda: figure('model'))
        expected = planner_html('h100', count=8, hours=24., mfu=.4)
        assert figure('parameters') == shown(expected, 'parameters') and figure('money') == shown(expected, 'money')
        handle = page.found('.widget-hslider .noUi-handle')[1]               # hours
        page.driver.execute_script('arguments[0].scrollIntoView({block: "center"}); arguments[0].focus()', handle)
        ActionChains(page.driver).send_keys(Keys.ARROW_LEFT * 6).perform()
        page.wait(lambda: figure('money') != shown(expected, 'money') and figure('parameters') != shown(expected, 'parameters'))
        Select(page.found('.widget-dropdown select')[1]).select_by_visible_text(next(o.text for o in Select(page.found('.widget-dropdown select')[1]).options if o.text.startswith('qwen3-8b')))
        page.wait(lambda: figure('model') == 'qwen3-8b')
        Select(page.found('.widget-dropdown select')[0]).select_by_visible_text('T4')
        page.wait(lambda: page.found('.lb-refused') and 'does not fit' in page.found('.lb-refused')[0].text)
        price = page.found('.widget-text input')[0]
        price.send_keys('three', Keys.ENTER)
        page.wait(lambda: 'a price in $ an hour' in page.found('.lb-refused')[0].text)
        assert 'Traceback' not in page.driver.page_source
