"""The planner that works in a page: its script and Python give the same numbers, its form says them."""
import random
import pytest
from lab import browser_only, start_browser
from llmbook.core import UserError
from llmbook.model.config import SIZES, get_config
from llmbook.plan.devices import DEVICES, GRID
from llmbook.plan.planner import plan
from llmbook.widgets.page_planner import page_planner

DECODERS = [name for name in SIZES if get_config(name).traits.causal]


@pytest.fixture(scope='module')
def page(tmp_path_factory):
    "Open a page that holds nothing but the planner."
    folder = tmp_path_factory.mktemp('planner')
    file = folder/'planner.html'
    file.write_text(f'<!doctype html><meta charset="utf-8"><title>planner</title>{page_planner()}', encoding='utf-8')
    driver = start_browser(folder/'profile')
    driver.get(file.as_uri())
    yield driver
    driver.quit()


def drawn_budget(r):
    "Draw the choices of a plan."
    budget = dict(
        device=r.choice(list(DEVICES)),
        count=r.choice([1, 1, 2, 3, 8, 64, 1024]),
        hours=r.choice([.1, 1, 7.3, 24, 1000]),
        size=r.choice(['', '', *DECODERS]),
        grid=r.choice(list(GRID)))
    if r.random() < .4: budget['text'] = int(10 ** r.uniform(5, 12))
    if r.random() < .3: budget['price'] = round(r.uniform(0, 9), 2)
    return budget


def planned(budget):
    "Return the plan that Python makes, None where it refuses."
    asked = dict(budget)
    asked['tokens_available'] = asked.pop('text', None)
    asked['size'] = asked['size'] or None
    try: return plan(**asked)
    except UserError: return None


def same_numbers(ours, p):
    "Return what the page and Python say of one plan, side by side."
    e = p.expected
    sides = dict(
        size=(ours['size'], p.size), steps=(ours['steps'], p.steps), tokens=(ours['tokens'], p.tokens),
        rows=(ours['bs'], e['micro']), accumulate=(ours['accumulate'], e['accumulate']), memory=(ours['memory'], e['memory']),
        recompute=(ours['recompute'], e['recompute']), sharding=(ours['sharding'], e['sharding']))
    for name in ('seconds', 'loss', 'kwh', 'kg', 'money'):
        other = e[name]
        sides[name] = (ours[name], other if other is None else pytest.approx(other, rel=1e-9))
    return sides


@browser_only
def test_a_hundred_budgets_are_planned_as_python_plans_them(page):
    r = random.Random(0)
    budgets = [drawn_budget(r) for _ in range(100)]
    ask = 'const root = document.querySelector(".llmbook-planner"); return arguments[0].map(root.plan)'
    refused = 0
    for budget, ours in zip(budgets, page.execute_script(ask, budgets)):
        p = planned(budget)
        if p is None:
            refused += 1
            assert 'problem' in ours, budget
            continue
        for name, (here, there) in same_numbers(ours, p).items(): assert here == there, (budget, name)
    assert refused < 70


@browser_only
def test_the_form_shows_a_plan_and_the_call_that_makes_it(page):
    page.refresh()
    text = page.find_element('css selector', '.llmbook-planner').text
    assert 'llama3.2-1b' in text
    assert "plan(device='h100', count=8, hours=24)" in text
    hours = page.find_element('xpath', '//label[starts-with(normalize-space(), "hours")]/input')
    hours.clear()
    hours.send_keys('-1')
    text = page.find_element('css selector', '.llmbook-planner').text
    assert 'Give a whole number of devices' in text


@browser_only
@pytest.mark.parametrize('label, number', [('tokens of text', '0'), ('$ an hour', '-1')])
def test_no_text_and_a_negative_price_are_no_plan(page, label, number):
    page.refresh()
    field = page.find_element('xpath', f'//label[starts-with(normalize-space(), "{label}")]/input')
    field.send_keys(number)
    assert 'or leave them empty' in page.find_element('css selector', '.llmbook-planner').text


@browser_only
def test_every_field_has_a_label(page):
    fields = page.find_elements('css selector', '.llmbook-planner select, .llmbook-planner input')
    assert len(fields) == 7
    assert all(field.find_element('xpath', '..').tag_name == 'label' for field in fields)
