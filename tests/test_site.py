"""The site, built off line and opened in a browser: search, sidebar, links between names, no request to another host.

The browser tests need chromium and chromedriver (.ci/run installs them) and skip where they are not.
"""
import functools, http.server, json, os, re, subprocess, sys, threading
from pathlib import Path
from urllib.parse import urlparse
import pytest, yaml
from lab import browser_only, start_browser

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/'tools'))
import docprocs, outputs, sidebar
from house import notebooks, page



@pytest.fixture(scope='session')
def built(tmp_path_factory):
    "Build the site once; return (where it is, what was said on the way)."
    out = tmp_path_factory.mktemp('site')/'html'
    env = {k: v for k, v in os.environ.items() if k != 'IN_TEST'}
    command = [sys.executable, ROOT/'tools/site.py', '--offline', '--out', out]
    r = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert r.returncode == 0, r.stdout + r.stderr
    return out, r.stdout + r.stderr


@pytest.fixture(scope='session')
def site(built): return built[0]


@pytest.fixture(scope='session')
def address(site):
    "Serve the site on a port of this machine."
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args): pass
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}'
    server.shutdown()
    server.server_close()


@pytest.fixture(scope='session')
def browser(tmp_path_factory):
    "Start one browser for all tests, with its network and console logs kept."
    driver = start_browser(tmp_path_factory.mktemp('profile'))
    driver.set_page_load_timeout(60)
    yield driver
    driver.quit()


def wait(browser, f):
    "Return what `f` returns, once it is true."
    from selenium.webdriver.support.ui import WebDriverWait
    return WebDriverWait(browser, 30).until(lambda d: f())


def traffic(browser):
    "Return (requested addresses, address -> status) since the last call."
    asked, status = [], {}
    for entry in browser.get_log('performance'):
        m = json.loads(entry['message'])['message']
        if m['method'] == 'Network.requestWillBeSent': asked.append(m['params']['request']['url'])
        if m['method'] == 'Network.responseReceived':
            response = m['params']['response']
            status[response['url']] = response['status']
    return asked, status


def headings(entries=None):
    "Return the headings of the sidebar at every depth."
    inside = [x for x in (sidebar.contents() if entries is None else entries) if isinstance(x, dict)]
    return [h for x in inside for h in (x['section'], *headings(x['contents']))]


def found(browser, css):
    from selenium.webdriver.common.by import By
    return browser.find_elements(By.CSS_SELECTOR, css)


# ---- without a browser ---------------------------------------------------------------------------------------------

def test_every_notebook_has_a_page(site):
    missing = []
    for path in notebooks():
        name = page(path.relative_to(ROOT/'nbs').as_posix())
        if not (site/f'{name}.html').exists(): missing.append(path.name)
    assert not missing


def test_no_link_is_broken(built):
    warnings = [l for l in built[1].splitlines() if 'WARNING: ' in l]
    assert not warnings, '\n'.join(warnings)


def test_pages_load_nothing_from_elsewhere(site):
    load = re.compile(r'''(?:\bsrc(?:set)?\s*=\s*["']|<link\b[^>]*\bhref\s*=\s*["'])\s*((?:https?:)?//[^"']+)''')
    css = re.compile(r'(?:url\(\s*["\']?|@import\s+["\']?)((?:https?:)?//[^"\')]+)')
    found = [f'{f.relative_to(site)}: {m}' for f in sorted(site.rglob('*')) if f.suffix in ('.html', '.css')
             for m in (load if f.suffix == '.html' else css).findall(f.read_text(encoding='utf-8'))]
    assert not found


def test_math_needs_no_script(site):
    pages = [f.read_text(encoding='utf-8') for f in site.rglob('*.html')]
    assert not any(re.search(r'<script[^>]*(mathjax|katex)', p, re.I) for p in pages)
    assert not any('class="math notranslate' in p for p in pages), 'math that was not turned into MathML'


def test_hidden_cells_and_directives_are_gone(site):
    left = [f.name for f in site.rglob('*.html') if re.search(r'#\|\s*(export|hide|eval|echo|output|default_exp)\b',
                                                              f.read_text(encoding='utf-8'))
            and {'api', 'book'} & set(f.relative_to(site).parts)]
    assert not left


def test_title_comes_from_the_one_configuration(site):
    title = yaml.safe_load((ROOT/'_quarto.yml').read_text())['website']['title']
    assert f'<title>{title}</title>' in (site/'index.html').read_text()


def test_parameters_stand_in_a_table(site):
    page = (site/'api/34_pretrain/run.html').read_text(encoding='utf-8')
    entry = page[page.index('id="llmbook-pretrain-run-lm-learner"'):].partition('</table>')[0]
    for words in ('<th class="head"><p>parameter</p></th>', 'clip', 'float', 'largest norm of the gradient'):
        assert words in entry, words
    assert '# largest' not in entry, 'the comment of the signature'


def test_both_builds_of_the_site_have_the_style_for_dark_pages(site):
    assert (site/'_static/styles.css').read_text() == (ROOT/'nbs/styles.css').read_text()
    assert yaml.safe_load((ROOT/'_quarto.yml').read_text())['format']['html']['css'] == 'styles.css'


def test_quarto_fetches_no_fonts_and_no_scripts():
    "Quarto itself is not here; these are its inputs, which decide what its pages fetch."
    themes = yaml.safe_load((ROOT/'_quarto.yml').read_text())['format']['html']['theme']
    assert all('theme.scss' in theme for theme in themes.values())
    assert '$web-font-path: false;' in (ROOT/'nbs/theme.scss').read_text()
    fenced = '<pre>```</pre>'
    shown = dict(data={'text/html': ['<b>', fenced], 'text/plain': 'b'})
    docprocs.html_as_markdown(dict(outputs=[shown, dict(text='printed')]))
    assert shown['data'] == {'text/markdown': f'````{{=html}}\n<b>{fenced}\n````\n', 'text/plain': 'b'}
    assert docprocs.html_as_markdown in docprocs.QuartoProcessors().procs()


def test_the_fit_brings_the_same_style_along():
    "JupyterLab has no style sheet of ours, so the table's colours come with the output of the fit."
    from fastprogress import fastprogress
    from llmbook.train.progress import TABLE_STYLES, readable_table
    readable_table()
    assert fastprogress.html_styles.endswith(TABLE_STYLES)
    for rule in ('background: transparent !important', 'color: inherit'):
        assert rule in TABLE_STYLES
        assert rule in (ROOT/'nbs/styles.css').read_text()


def pages_of(site): return sorted(site.rglob('*.html'))


def test_every_page_says_what_it_is(site):
    nameless = []
    for f in pages_of(site):
        text = f.read_text(encoding='utf-8')
        is_for_readers = 'genindex' not in f.name and f.name != 'search.html'
        has_all = '<meta property="og:title"' in text and '<meta name="viewport"' in text
        if is_for_readers and not has_all: nameless.append(f.name)
    assert not nameless


def test_a_notebook_is_described_to_search_engines(site):
    text = (site/'api/34_pretrain/run.html').read_text(encoding='utf-8')
    assert re.search(r'<meta name="description" content="[^"]{20,}"', text)


def test_a_wrong_address_leads_back(site):
    text = (site/'404.html').read_text(encoding='utf-8')
    assert '<base href="/">' in text
    assert 'href="index.html"' in text


def test_pictures_have_words(site):
    wordless = []
    for f in pages_of(site):
        for picture in re.findall(r'<img\b[^>]*>', f.read_text(encoding='utf-8')):
            words = re.search(r'\balt="([^"]*)"', picture)
            is_told = words and words[1] and not words[1].endswith(('.png', '.svg', '.jpg'))
            if not is_told: wordless.append((f.name, picture[:80]))
    assert not wordless


HEAVY = 300_000 # bytes of a page without its pictures


def test_pages_are_light(site):
    heavy = {}
    for f in pages_of(site):
        text = re.sub(r'<svg\b.*?</svg>', '', f.read_text(encoding='utf-8'), flags=re.S)
        text = re.sub(r'src="data:[^"]*"', '', text)
        size = len(text.encode())
        if size > HEAVY: heavy[f.name] = size
    assert not heavy


def test_a_chapter_can_be_taken_along(site):
    for path in (ROOT/'nbs/book').glob('*.ipynb'):
        text = (site/f'{page(path.relative_to(ROOT / "nbs").as_posix())}.html').read_text(encoding='utf-8')
        assert f'href="{path.name}" download' in text
        assert (site/'book'/path.name).read_bytes() == path.read_bytes()


def test_the_search_knows_every_page(site):
    script = (site/'_static/names.js').read_text(encoding='utf-8')
    known = json.loads(script.splitlines()[0].removeprefix('const sitePages = '))
    assert len(known) == len(notebooks())
    assert all((site/address).exists() for _, _, address, _, _ in known)


def test_no_notebook_holds_the_state_of_widgets():
    "A page with such a state loads scripts from a foreign host."
    stray = [path.name for path in notebooks() if outputs.clean(json.loads(path.read_text(encoding='utf-8')))]
    assert not stray, 'run `make export`'


def test_a_warning_names_the_file_and_not_the_machine():
    said = dict(output_type='stream', text=['/srv/me/work/llmbook/tune/sft.py:12: UserWarning: a\n', '  warn(b)\n'])
    assert outputs.without_folders(said)['text'] == ['llmbook/tune/sft.py:12: UserWarning: a\n', '  warn(b)\n']


def test_who_reads_a_notebook_as_text_finds_words():
    html = '<div><table><tr><th>epoch</th><th>loss</th></tr><tr><td>0</td><td>2.4</td></tr></table></div>'
    shown = dict(output_type='display_data', data={'text/html': [html], 'text/plain': [html]})
    assert outputs.with_words(shown)['data'] == {'text/html': [html], 'text/plain': ['epoch  loss\n', '0  2.4']}
    plain = dict(output_type='display_data', data={'text/html': [html], 'text/plain': ['Learner()']})
    assert outputs.with_words(plain) is plain


def test_what_a_widget_leaves_besides_is_kept():
    plain = dict(output_type='display_data', data={'text/html': '<b>12</b>', 'text/plain': 'twelve', outputs.VIEW: {}})
    assert outputs.without_view(plain)['data'] == {'text/html': '<b>12</b>', 'text/plain': 'twelve'}
    bar = dict(output_type='display_data', data={'text/plain': 'loading:   0%|          | 0/28', outputs.VIEW: {}})
    assert outputs.without_view(bar) is None


# ---- in the browser ------------------------------------------------------------------------------------------------

def is_web(address): return urlparse(address).scheme in ('http', 'https', 'ws')

@browser_only
def test_every_sidebar_link_opens(browser, address):
    browser.get(f'{address}/index.html')
    traffic(browser)
    browser.get_log('browser')
    links = [a.get_attribute('href') for a in found(browser, '.sidebar-tree a.reference.internal')]
    n_pages = len(notebooks()) - 1 # the start page has no link
    assert len(links) == n_pages + len(headings())
    for link in links:
        browser.get(link)
        asked, status = traffic(browser)
        title = found(browser, 'article h1')[0].text
        assert status[link] == 200, link
        assert title.strip('¶# '), link
        away = [u for u in asked if is_web(u) and not u.startswith(address)]
        assert not away, f'{link} asks {away}'
        assert all(s < 400 for s in status.values()), (link, status)
        errors = [e['message'] for e in browser.get_log('browser') if e['level'] == 'SEVERE']
        assert not errors, (link, errors)


def links_shown(browser):
    "Return the texts of the links of the sidebar that a reader sees."
    links = found(browser, '.sidebar-tree a.reference.internal')
    return [link.text for link in links if link.is_displayed()]


@browser_only
def test_the_sidebar_is_folded(browser, address):
    browser.get(f'{address}/index.html')
    seen = links_shown(browser)
    sections = [x['section'] for x in sidebar.contents() if isinstance(x, dict)]
    assert seen == sections
    assert len(seen) <= 14
    browser.get(f'{address}/contents/data/filters.html')
    opened = links_shown(browser)
    assert 'filters' in opened
    assert len(opened) > len(seen) + 8


@browser_only
def test_search_finds_a_function(browser, address):
    browser.get(f'{address}/index.html')
    box = found(browser, 'input[name=q]')[0]
    box.send_keys('atomic_path')
    box.submit()
    def is_hit(link): return 'core.html#' in link.get_attribute('href') and 'atomic-path' in link.get_attribute('href')
    hits = wait(browser, lambda: [a for a in found(browser, '.search a') if is_hit(a)])
    hits[0].click()
    wait(browser, lambda: 'api/00_base/core.html' in browser.current_url)
    assert 'atomic_path' in found(browser, 'section:target, :target section, :target')[0].text
    errors = [e['message'] for e in browser.get_log('browser') if e['level'] == 'SEVERE']
    assert not errors


@browser_only
def test_names_link_to_their_documentation(browser, address):
    browser.get(f'{address}/api/00_base/core.html')
    link = next(a for a in found(browser, 'article p a.reference') if a.text == 'refused')
    target = link.get_attribute('href').split('#')[1]
    browser.get(link.get_attribute('href'))
    heading = 'return document.getElementById(arguments[0])?.closest("section")?.querySelector("h3")?.textContent'
    assert browser.execute_script(heading, target).startswith('refused')


@browser_only
def test_light_and_dark(browser, address):
    shade = lambda: browser.execute_script('return getComputedStyle(document.body).backgroundColor')
    brightness = {}
    for theme in ('light', 'dark'):
        show_in(browser, f'{address}/api/00_base/core.html', theme)
        red_green_blue = re.findall(r'\d+', shade())[:3]
        brightness[theme] = sum(map(int, red_green_blue))
    assert brightness['light'] > 600
    assert brightness['dark'] < 150


CONTRAST = (Path(__file__).parent/'programs'/'contrast.js').read_text()


def show_in(browser, address, theme):
    browser.get(address)
    browser.execute_script('localStorage.setItem("theme", arguments[0])', theme)
    browser.refresh()


@browser_only
@pytest.mark.parametrize('theme', ['light', 'dark'])
def test_the_table_of_a_fit_can_be_read(browser, address, theme):
    show_in(browser, f'{address}/api/34_pretrain/run.html', theme)
    cells = browser.execute_script(CONTRAST, 'table.fastprogress th, table.fastprogress td')
    assert len(cells) >= 10
    faint = [(text, round(ratio, 1)) for text, ratio in cells if ratio < 4.5]
    assert not faint


@browser_only
@pytest.mark.parametrize('theme', ['light', 'dark'])
def test_tables_of_parameters_can_be_read(browser, address, theme):
    show_in(browser, f'{address}/api/34_pretrain/run.html', theme)
    cells = browser.execute_script(CONTRAST, 'article table:not(.fastprogress) td code, article table th')
    assert not [(text, round(ratio, 1)) for text, ratio in cells if ratio < 4.5]


@browser_only
def test_a_narrow_screen_has_no_sideways_scroll(browser, address):
    phone = dict(width=390, height=844, deviceScaleFactor=1, mobile=True)
    browser.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', phone)
    wide = []
    for page in ('index.html', 'api/00_base/core.html'):
        browser.get(f'{address}/{page}')
        if browser.execute_script('return document.documentElement.scrollWidth') > 392: wide.append(page)
    browser.execute_cdp_cmd('Emulation.clearDeviceMetricsOverride', {})
    assert not wide


def set_width(browser, width):
    screen = dict(width=width, height=900, deviceScaleFactor=1, mobile=False)
    browser.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', screen)


@pytest.fixture
def any_width(browser):
    yield browser
    browser.execute_cdp_cmd('Emulation.clearDeviceMetricsOverride', {})


@browser_only
def test_the_page_takes_the_width_that_there_is(any_width, address):
    any_width.get(f'{address}/book/tokens.html')
    shares = {}
    for width in (1100, 1313, 1400, 1551, 1920):
        set_width(any_width, width)
        size = 'return [document.querySelector(".content").offsetWidth, document.documentElement.scrollWidth]'
        content, whole = any_width.execute_script(size)
        assert whole <= width, width
        shares[width] = content / width
    assert min(shares.values()) > .6, shares


SCROLLED = """return [...document.querySelectorAll('article pre')].filter(e => e.scrollWidth > e.clientWidth + 1)
    .map(e => e.textContent.trim().slice(0, 60))"""


@browser_only
def test_no_block_of_a_chapter_scrolls_sideways(any_width, address):
    set_width(any_width, 1400)
    wide = {}
    for path in sorted((ROOT/'nbs/book').glob('*.ipynb')):
        name = page(path.relative_to(ROOT/'nbs').as_posix())
        any_width.get(f'{address}/{name}.html')
        found_wide = any_width.execute_script(SCROLLED)
        if found_wide: wide[name] = found_wide
    assert not wide


HAS_TEXT = """.filter(e => e.getClientRects().length && [...e.childNodes].some(c => c.nodeType === 3 && c.textContent.trim()))"""
READ = ('index', 'book/pretraining', 'api/34_pretrain/run', 'api/70_report/report', 'api/75_widgets/page_planner', '404')


@browser_only
@pytest.mark.parametrize('theme', ['light', 'dark'])
def test_all_text_can_be_read(browser, address, theme):
    everything = '[...document.querySelectorAll(arguments[0])]'
    assert everything in CONTRAST
    script = CONTRAST.replace(everything, everything + HAS_TEXT)
    faint = {}
    for name in READ:
        show_in(browser, f'{address}/{name}.html', theme)
        texts = browser.execute_script(script, 'body *')
        assert len(texts) > 15, name
        low = [(text, round(ratio, 1)) for text, ratio in texts if ratio < 4.5]
        if low: faint[name] = low[:5]
    assert not faint


NAMED = [('learning rate', 'Learning rate'), ('tokenizer', 'Tokenizer'), ('save model', 'Models on disk'),
         ('lm_lerner', 'lm_learner'), ('perplexity', 'Perplexity'), ('fine-tuning', 'Fine-tuning')]


@browser_only
@pytest.mark.parametrize('query, wanted', NAMED)
def test_names_and_titles_are_found_first(browser, address, query, wanted):
    browser.get(f'{address}/search.html?q={query}')
    first = [link.text for link in found(browser, '.names-found li a')][:3]
    assert wanted in first


# what somebody new types, and the pages of which one has to be among the first three
ASKED = {
    'attention': 'model/layers', 'batch size': 'tokens/loaders', 'beam search': 'book/writing',
    'benchmark': 'book/benchmarks_and_judges', 'bf16': 'train/precision', 'bias': 'book/toxicity_and_bias',
    'bleu': 'evaluate/overlap', 'chat template': 'book/chats tokens/template', 'chinchilla': 'plan/scaling',
    'common crawl': 'book/where_text_comes_from', 'confidence interval': 'evaluate/stats', 'cost': 'plan/devices',
    'deduplicate': 'book/duplicates', 'distributed training': 'book/scaling_out',
    'dpo': 'book/preferences', 'early stopping': 'book/pretraining', 'evaluate model': 'evaluate/run',
    'export to ollama': 'ship/ship', 'fine tune on my own data': 'book/your_own_pairs', 'finetune': 'tune/finetune',
    'generate text': 'book/writing', 'gguf': 'book/shipping', 'gradient accumulation': 'train/accumulate',
    'how do I train a model': 'pretrain', 'how much memory': 'plan/memory', 'huggingface': 'model/hf',
    'install': 'index', 'instruct': 'tune/sft', 'is it better': 'verdict/weigh', 'kv cache': 'generate/decoder',
    'learning rate': 'pretrain/lr_find', 'license': 'read/licence', 'lm_lerner': 'pretrain/run',
    'load model': 'model/hf', 'lora': 'book/adapters', 'loss spike': 'checkpoint/spikes',
    'memorization': 'recall/memory',
    'mixed precision': 'book/precision_and_speed', 'model card': 'report/modelcard', 'multi gpu': 'book/scaling_out',
    'nan loss': 'checkpoint/spikes', 'ollama': 'ship/modelfile', 'out of memory': 'train/microbatch',
    'overfitting': 'book/pretraining', 'pdf': 'read/formats', 'personal data': 'clean/pii', 'pii': 'clean/pii',
    'planner': 'widgets/page_planner', 'plot loss': 'train/interop', 'privacy': 'book/memory_and_privacy',
    'push to hub': 'ship/push', 'quantization': 'book/adapters', 'remove duplicates': 'book/duplicates',
    'resume training': 'checkpoint/checkpoint', 'reward model': 'prefer/reward_model', 'rlhf': 'book/preferences',
    'rouge': 'book/scores_that_lie', 'run out of memory': 'train/microbatch', 'save model': 'model/hf',
    'save_pretraned': 'model/hf', 'serve a model': 'ship/serve', 'small model': 'model/smollm',
    'tokeniser': 'tokens/tokenizer',
    'tokenizer': 'tokens/tokenizer', 'top p': 'generate/sampling', 'toxicity': 'book/toxicity_and_bias',
    'train from scratch': 'book/whole_journey', 'train tokenizer': 'tokens/tokenizer', 'translate': 'recipes/answers',
    'vocabulary size': 'book/tokens', 'wandb': 'train/trackers', 'what is a checkpoint': 'checkpoint/checkpoint',
}


@browser_only
def test_what_people_ask_is_answered(browser, address):
    browser.get(f'{address}/search.html')
    missed = {}
    for query, wanted in ASKED.items():
        first = browser.execute_script('return found(arguments[0]).slice(0, 3).map(entry => entry[3])', query)
        pages = [re.sub(r'/\d+_', '/', page.partition('.html')[0]) for page in first]
        if not any(want in page for want in wanted.split() for page in pages): missed[query] = first
    assert not missed


def test_pages_that_answer_are_there():
    "The words are in tools/asked.yml."
    asked = yaml.safe_load((ROOT/'tools/asked.yml').read_text(encoding='utf-8'))
    assert [name for name in asked if not (ROOT/'nbs'/name).exists()] == []


def test_titles_tell_pages_apart(site):
    "In the tabs of a browser, in bookmarks, in what a search engine shows."
    titles = {}
    for f in pages_of(site):
        title = re.search(r'<title>(.*?)</title>', f.read_text(encoding='utf-8'), re.S)[1]
        titles.setdefault(title, []).append(f.name)
    assert not [names for names in titles.values() if len(names) > 1]


@browser_only
def test_a_printed_chapter_is_whole(browser, address):
    browser.get(f'{address}/book/tokens.html')
    seen = 'return [...document.querySelectorAll(arguments[0])].map(e => e.checkVisibility({contentVisibilityAuto: true}))'
    def answers(): return browser.execute_script(seen, 'article details:not(.source, .hide) > p')
    def around(): return browser.execute_script(seen, '.sidebar-drawer, .toc-drawer, .mobile-header, p.take-along')
    assert len(answers()) >= 3 and len(around()) >= 4
    browser.execute_cdp_cmd('Emulation.setEmulatedMedia', dict(media='print'))
    try: wait(browser, lambda: all(answers()) and not any(around())) # the new look comes with the next frame
    finally: browser.execute_cdp_cmd('Emulation.setEmulatedMedia', dict(media=''))
