"""Advice on a plan and its widget, without a browser and in JupyterLab in a real one."""
import re
import pytest
from machines import BY_HAND
from llmbook.core import UserError
from llmbook.model.config import ModelConfig, get_config
from llmbook.plan.devices import DEVICES, Device
from llmbook.plan.memory import memory_estimate
from llmbook.plan.advice import PARTS, advice, memory_picture, planner_html, what_fits
from llmbook.plan.planner import arrange, plan
from llmbook.widgets.planner import Planner, controls, planner
from lab import Page, browser_only, jupyter_lab

EVIL = '<img src=x onerror=alert(1)>'

def shown(page, what): return re.search(f'class="lb-{what}"[^>]*>([^<]*)', page)[1]
def words(page): return re.sub(r'\s+', ' ', re.sub('<[^>]*>', ' ', page))


# ---- the page

def test_figures_are_those_of_the_plan():
    page = planner_html('h100', count=8, hours=24, price=2.)
    p = plan(device='h100', count=8, hours=24, price=2.)
    money = p.expected['money']
    tokens_a_parameter = p.tokens / p.expected['params']
    assert shown(page, 'model') == p.size
    assert shown(page, 'money') == f'{money:.0f} $', 'cents would be a precision that nobody has'
    assert shown(page, 'tokens-a-parameter') == f'{tokens_a_parameter:.1f}'
    assert 'fits' in words(page)


def test_parts_of_the_memory_are_those_of_the_plan():
    page = planner_html('h100', count=8, hours=24, price=2.)
    p = plan(device='h100', count=8, hours=24, price=2.)
    parts = p.expected['parts']
    assert sum(parts.values()) == p.expected['memory']
    for name, size in parts.items():
        is_shown = f'> {name} ' in page
        assert is_shown == bool(size), name


def test_large_sums_are_rounded_and_have_no_exponent():
    p = plan(device='h100', count=64, hours=720, price=3.1)
    figures = planner_html('h100', count=64, hours=720, price=3.1)
    said = [shown(figures, name) for name in ('money', 'energy', 'carbon', 'time')] + [str(p)]
    for text in said: assert not re.search(r'\d\.\d\de\+|\d{4}\.\d\d', text), text
    assert re.fullmatch(r'\d{2,3},\d00 \$', shown(figures, 'money'))
    assert re.fullmatch(r'\d{2},\d00 kWh', shown(figures, 'energy'))


def test_rows_of_another_length_and_another_optimiser_are_planned():
    p = plan(device='h100', hours=24, size='350m', seq_len=2048, optimizer='adamw', step_tokens=2**17)
    assert p.config['context'] == p.seq_len == 2048
    assert p.bs * 2048 == 2**17
    config = get_config('350m', context=2048)
    estimate = memory_estimate(config, p.expected['micro'], precision='bfloat16', optimizer='adamw')
    assert p.expected['memory'] == estimate['total']


@pytest.mark.parametrize('parts, memory, fits', [
    (dict(weights=5e9, loss=3e9), 10e9, True),
    (dict(weights=9.5e9), 10e9, False),
    (dict(weights=40e9, other=1), 10e9, False),
])
def test_the_bar_is_to_scale(parts, memory, fits):
    page = memory_picture(parts | dict(total=1e99), memory, EVIL)
    widths = [float(x) for x in re.findall(r'title="\w+: [^"]*" style="width:([\d.]+)%', page)]
    scale = max(sum(parts.values()), memory) * 1.02
    assert widths == pytest.approx([100 * v / scale for v in parts.values()], abs=.01)
    assert sum(widths) <= 100
    assert ('does not fit' in page) != fits
    assert '<img' not in page


CASES = [('qwen3-8b', 't4', 1), ('qwen3-4b', 'rtx3090', 1), ('llama3.1-8b', 'h100', 2), ('qwen3-1.7b', 't4', 1)]

def test_remedies_do():
    "Check that the size really fits after the change that each sentence names."
    for size, card, count in CASES:
        fit = what_fits(size, card, count)
        if fit['fits']: continue
        config = get_config(size)
        device = DEVICES[card]
        precision = 'bfloat16' if 'bfloat16' in device.tflops else 'float16'
        assert fit['words']
        assert sum(fit['parts'].values()) > .9 * device.memory
        said = ' | '.join(fit['words'])
        def named(pattern): return re.search(pattern, said)

        if m := named(r'rows of (\d+)'):
            shorter = ModelConfig.from_dict(config.to_dict() | dict(context=int(m[1])))
            assert arrange(shorter, device, count, precision)
        if m := named(r'(\d+) devices'):
            enough = int(m[1])
            assert arrange(config, device, enough, precision)
            assert not arrange(config, device, enough // 2, precision)
        if m := named(r'more memory: ([^|]*)'):
            for name in m[1].split(','):
                assert arrange(config, DEVICES[name.strip()], count, precision)
        if m := named(r'smaller model: (\S+)'):
            smaller = get_config(m[1], context=config.context)
            assert arrange(smaller, device, count, precision)


def test_what_does_not_fit_is_shown_and_said():
    page = planner_html('rtx3090', size='qwen3-8b', hours=48)
    assert 'does not fit' in words(page)
    assert 'What would help' in words(page)
    assert '<li>' in page
    assert PARTS['optimizer'] in page


HERE = dict(device='here', machine=BY_HAND)

@pytest.mark.parametrize('choices, says', [
    (dict(device=EVIL), 'expected a device'),
    (dict(hours=0), 'hours above 0'),
    (dict(hours=float('nan')), 'hours above 0'),
    (dict(hours='a'), 'hours above 0'),
    (dict(size=EVIL), 'expected a size'),
    (dict(count=0), 'one device'),
    (dict(device='t4', precision='fp8'), 'on T4'),
    (dict(mfu=2), 'share of the peak'),
    (dict(price=-1), 'price of 0 or more'),
    (dict(grid=EVIL), 'expected a grid'),
    (dict(seq_len=0), 'context'),
    (dict(optimizer='sgd'), 'optimizer'),
    (dict(HERE, size='qwen3-8b'), 'expected a size'),
    (dict(HERE, hours=-1), 'minutes above 0'),
    (dict(HERE, hours='a'), 'minutes above 0'),
    (dict(HERE, price=float('nan')), 'price of 0 or more'),
])
def test_a_mistake_is_text_of_the_page(choices, says):
    page = planner_html(**choices)
    assert 'role="alert"' in page
    assert says in words(page)
    assert '<img' not in page
    assert 'Traceback' not in page


def test_names_are_escaped():
    device = Device(EVIL, 'X', dict(float32=10., bfloat16=100.), 80e9, 1e12, 300., EVIL, 1.)
    assert '<img' not in planner_html(device)
    assert '<img' not in planner_html(device, size='qwen3-8b')
    assert '<img' not in planner_html('here', hours=.1, machine=dict(BY_HAND, device=EVIL))


def test_advice():
    def said(**choices): return ' | '.join(advice(plan(**choices)))
    few = said(device='a10', hours=2, size='350m')
    assert 'fewer than the 20 wanted' in few
    assert 'No price' in few
    assert 'FSDP' in said(device='h100', count=8, hours=24, size='qwen3-8b')
    enough = said(device='h100', count=8, hours=24)
    assert 'wanted' not in enough
    assert 'FSDP' not in enough


# ---- the widget, without a browser

MOVES = dict(hours=3., count=4, size='350m', seq_len=512, step_tokens=2**18, price='2.5', grid='france',
             optimizer='adamw', mfu=.5, precision='fp8')

def test_a_move_is_a_new_page():
    p = planner(device='h100', count=8, hours=24.)
    assert planner_html('h100', count=8, hours=24., mfu=.4) in p.page.value
    assert 'text/html' in p._repr_mimebundle_()
    before = shown(p.page.value, 'parameters')
    for name, value in MOVES.items():
        page = p.page.value
        p.controls[name].value = value
        assert p.page.value != page, name
    assert shown(p.page.value, 'parameters') != before
    assert planner_html(**p.choices) in p.page.value


def test_precisions_and_their_share_follow_the_device():
    p = planner(device='h100', precision='fp8')
    device, precision, mfu = (p.controls[name] for name in ('device', 'precision', 'mfu'))
    assert mfu.value == .25
    device.value = 't4'
    assert precision.value == ''
    assert mfu.value == .4
    assert ('fp8', 'fp8') not in precision.options
    assert 'float16' in words(p.page.value)
    mfu.value = .3
    device.value = 'h100'
    precision.value = 'fp8'
    assert mfu.value == .3, 'what a hand has moved stays'


@pytest.mark.parametrize('start', [
    dict(device='h100', count=8, hours=24),
    dict(device='t4', hours=5.5, price=.3, size='125m'),
    dict(device='a100', precision='tf32', seq_len=512, step_tokens=2**16, grid='norway', mfu=.3, optimizer='adamw'),
])
def test_the_call_is_the_plan(start):
    p = planner(**start)
    planned = eval(p.call, dict(plan=plan))
    assert planned.size == shown(p.page.value, 'model')
    assert planned == plan(**{'count': 1, 'hours': 24., **start})


def test_this_machine_is_asked_for_little():
    p = planner(BY_HAND, device='here', hours=.5)
    visible = [name for name, control in p.controls.items() if control.layout.display != 'none']
    assert visible == ['device', 'hours', 'size', 'price']
    planned = plan(30, BY_HAND)
    assert shown(p.page.value, 'model') == planned.size
    call = p.call.replace(')', ', machine=BY_HAND)')
    assert eval(call, dict(plan=plan, BY_HAND=BY_HAND)) == planned

    p.controls['price'].value = '.1'
    assert shown(p.page.value, 'money') == '0.05 $'
    assert shown(p.page.value, 'carbon') == 'unknown'
    p.controls['device'].value = 'h100'
    assert p.controls['count'].layout.display == ''
    assert 'H100' in p.page.value


def test_mistakes_of_a_hand_are_told():
    p = planner()
    price = p.controls['price']
    price.value = EVIL
    assert 'a price in $ an hour' in words(p.page.value)
    assert '<img' not in p.page.value
    price.value = '-3'
    assert 'price of 0 or more' in words(p.page.value)
    price.value = ''
    assert 'role="alert"' not in p.page.value


def test_both_ends_of_every_choice_have_a_page():
    for name, control in controls().items():
        if not hasattr(control, 'options'): continue
        for option in (control.options[0], control.options[-1]):
            value = option[1] if isinstance(option, tuple) else option
            assert planner(BY_HAND, **{name: value}).page.value, (name, value)


@pytest.mark.parametrize('start', [
    dict(device='abacus'),
    dict(colour='red'),
    dict(count=3),
    dict(hours=0),
    dict(hours=float('inf')),
    dict(hours='day'),
    dict(precision='int4'),
    dict(device='t4', precision='fp8'),
])
def test_choices_there_are_not_are_refused(start):
    with pytest.raises(UserError, match='expected'): Planner(**start)


# ---- in JupyterLab, in a real browser

CELL = '''from llmbook.widgets.planner import planner
p = planner(device="h100", count=8, hours=24)
display(p)'''

@browser_only
def test_a_slider_moves_the_figures_in_jupyterlab(tmp_path):
    from selenium.webdriver import ActionChains, Keys
    from selenium.webdriver.support.ui import Select
    with jupyter_lab(tmp_path, [CELL]) as address, Page(address, tmp_path) as page:
        def figure(name): return page.text(f'.lb-{name}')
        def menu(i): return Select(page.found('.widget-dropdown select')[i])
        def refusal():
            boxes = page.found('.lb-refused')
            return boxes[0].text if boxes else ''

        page.run()
        page.wait(lambda: figure('model'))
        expected = planner_html('h100', count=8, hours=24., mfu=.4)
        parameters = shown(expected, 'parameters')
        money = shown(expected, 'money')
        assert figure('parameters') == parameters
        assert figure('money') == money

        hours = page.found('.widget-hslider .noUi-handle')[1]
        page.driver.execute_script('arguments[0].scrollIntoView({block: "center"}); arguments[0].focus()', hours)
        ActionChains(page.driver).send_keys(Keys.ARROW_LEFT * 6).perform()
        page.wait(lambda: figure('money') != money and figure('parameters') != parameters)

        sizes = menu(1)
        label = next(option.text for option in sizes.options if option.text.startswith('qwen3-8b'))
        sizes.select_by_visible_text(label)
        page.wait(lambda: figure('model') == 'qwen3-8b')
        menu(0).select_by_visible_text('T4')
        page.wait(lambda: 'does not fit' in refusal())

        price = page.found('.widget-text input')[0]
        price.send_keys('three', Keys.ENTER)
        page.wait(lambda: 'a price in $ an hour' in refusal())
        assert 'Traceback' not in page.driver.page_source
