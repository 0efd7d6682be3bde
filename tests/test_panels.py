"All panels in one notebook: each control has a name for a screen reader, and keeps its keys; in a real browser."
from pathlib import Path
from lab import Page, browser_only, jupyter_lab

CELL = '''import sys; sys.path.insert(0, {tests!r})
from test_panels import panels
display(*panels())'''


def panels():
    "Return one panel of each kind, made in the current folder."
    import test_attention, test_chat_widget, test_dashboard, test_items_widget, test_next_token, test_rate_widget
    import test_roles_widget, test_widgets
    from llmbook.all import (browse, browse_bias, browse_items, browse_roles, chat_with, explore_attention,
                             explore_next, planner, prepare, tune_filter)
    from llmbook.filters.presets import word_count
    from llmbook.widgets.dashboard import browse_curves
    from llmbook.widgets.rate import rate
    docs = test_widgets.stories(60)
    source = test_widgets.write_rows(Path('stories.jsonl'), [dict(id=d.id, text=d.text) for d in docs])
    prepare(source, Path('data'), vocab_size=400, valid=.1, test=.1, progress=False)
    rating = rate(test_rate_widget.rude_pairs(), 'ratings', 'anna', warning='insults', repeats=0)
    rating.start()
    chat = chat_with(test_chat_widget.tiny_talk())
    chat.options.selected_index = 0
    return [
        planner(device='h100', count=8, hours=24), browse('data'), tune_filter(docs, word_count),
        browse_curves(test_dashboard.rows(50), beside=test_dashboard.rows(30)), chat,
        browse_items(test_items_widget.two_runs('items')), explore_next(*test_next_token.tiny_pair(), 'the cat', n=5),
        explore_attention(*test_attention.tiny_pair(), 'the cat sat'),
        browse_roles(test_roles_widget.tiny_format(), test_roles_widget.two_chats()),
        browse_bias(test_roles_widget.measured('bias')), rating]


N_PANELS = 11

CONTROLS = {'button', 'textbox', 'combobox', 'listbox', 'slider', 'spinbutton', 'checkbox', 'radio', 'switch',
            'ToggleButton', 'DisclosureTriangle', 'grid'}

# Controls that the Tab key does not come to; of a group that the arrow keys walk through, it comes to one.
UNREACHED = '''return [...document.querySelectorAll('.lb-panel')].flatMap(panel =>
    [...panel.querySelectorAll('button, input, select, textarea, .noUi-handle')]
        .filter(e => e.offsetParent && !e.disabled && e.tabIndex < 0).map(e => e.outerHTML.slice(0, 120)))'''


def named(page):
    "Return (role, name) of each control of the panels, as a screen reader is told."
    ask = page.driver.execute_cdp_cmd
    root = ask('DOM.getDocument', {'depth': 0})['root']['nodeId']
    panels = ask('DOM.querySelectorAll', {'nodeId': root, 'selector': '.lb-panel'})['nodeIds']
    found = []
    for panel in panels:
        for node in ask('Accessibility.queryAXTree', {'nodeId': panel})['nodes']:
            role = node.get('role', {}).get('value')
            if not node['ignored'] and role in CONTROLS: found.append((role, node.get('name', {}).get('value', '')))
    return found


@browser_only
def test_each_control_has_a_name_and_its_keys(tmp_path):
    from selenium.webdriver import ActionChains, Keys
    cell = CELL.format(tests=str(Path(__file__).parent))
    with jupyter_lab(tmp_path, [cell], theme='JupyterLab Dark') as address, Page(address, tmp_path) as page:
        def press(*keys): ActionChains(page.driver).send_keys(*keys).perform()
        page.run()
        page.ended()
        page.wait(lambda: len(page.found('.lb-panel')) == N_PANELS and page.found('.lb-rate-left'))

        page.wait(lambda: named(page) and all(name.strip() for _, name in named(page)), .5)
        found = named(page)
        assert {'button', 'textbox', 'combobox', 'listbox', 'slider', 'checkbox'} <= {role for role, _ in found}
        assert page.driver.execute_script(UNREACHED) == []

        n_cells = len(page.found('.jp-CodeCell'))
        handle = page.found('.lb-panel .noUi-handle')[1]
        page.driver.execute_script('arguments[0].focus()', handle)
        before = page.text('.lb-model, .lb-parameters')
        press(Keys.ARROW_LEFT * 6)
        page.wait(lambda: page.text('.lb-model, .lb-parameters') != before)
        press('d', 'd')
        assert len(page.found('.jp-CodeCell')) == n_cells, 'a letter pressed twice deletes no cell'
