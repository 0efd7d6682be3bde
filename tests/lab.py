"JupyterLab with one notebook, in a headless Chromium: what browser tests share."
import json, os, queue, re, secrets, shutil, signal, subprocess, sys, threading, urllib.request
from contextlib import contextmanager
import pytest

CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
DRIVER = shutil.which('chromedriver')
FLAGS = ['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
         '--disable-component-update', '--disable-sync', '--disable-dev-shm-usage']
browser_only = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason='no chromium and chromedriver on this machine')


@contextmanager
def jupyter_lab(folder, cells, theme='JupyterLab Light', subshells='perCommTarget'):
    "A server with a notebook of these cells; gives its address."
    pytest.importorskip('jupyterlab')
    import nbformat
    work, config, token = folder/'work', folder/'config', secrets.token_hex(16)
    def write(path, what): path.parent.mkdir(parents=True, exist_ok=True); path.write_text(json.dumps(what))
    write(config/'labconfig/page_config.json', dict(disabledExtensions={'@jupyterlab/apputils-extension:announcements': True}))
    write(folder/'settings/@jupyterlab/apputils-extension/themes.jupyterlab-settings', dict(theme=theme))
    write(folder/'settings/@jupyterlab/apputils-extension/kernels-settings.jupyterlab-settings', dict(commsOverSubshells=subshells))
    work.mkdir()
    kernel = dict(kernelspec=dict(name='python3', display_name='Python 3', language='python'))
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells], metadata=kernel), work/'look.ipynb')
    env = {**os.environ, 'HOME': str(folder), 'JUPYTER_CONFIG_DIR': str(config), 'JUPYTER_RUNTIME_DIR': str(folder/'runtime'), 'JUPYTER_DATA_DIR': str(folder/'share'),
           'JUPYTERLAB_SETTINGS_DIR': str(folder/'settings'), 'IPYTHONDIR': str(folder/'ipython'), 'OMP_NUM_THREADS': '1'}
    command = [sys.executable, '-m', 'jupyterlab', '--no-browser', '--ip=127.0.0.1', '--port=0', f'--IdentityProvider.token={token}', '--allow-root']
    server = subprocess.Popen(command, cwd=work, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True)
    said = queue.Queue()
    threading.Thread(target=lambda: [said.put(line) for line in server.stderr], daemon=True).start() # a pipe nobody reads would stop the server
    try:
        while not (m := re.search(r'(http://127\.0\.0\.1:\d+)/lab\?token', said.get(timeout=60))): pass
        yield f'{m[1]}/lab/tree/look.ipynb?token={token}'
        urllib.request.urlopen(urllib.request.Request(f'{m[1]}/api/shutdown?token={token}', method='POST'), timeout=20).read()
        server.wait(20)
    finally:
        if server.poll() is None: os.killpg(server.pid, signal.SIGKILL)
        server.wait()


class Page:
    "A notebook in a browser; a context that ends with the browser."
    def __init__(self, address, folder, width=1280, height=1400):
        from selenium import webdriver
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for flag in FLAGS + [f'--window-size={width},{height}', f'--user-data-dir={folder/"profile"}']: options.add_argument(flag)
        self.driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=DRIVER))
        self.driver.get(address)
        self.wait(lambda: self.found('.jp-Notebook-ExecutionIndicator[data-status="idle"]'))
    def __enter__(self): return self
    def __exit__(self, *args): self.driver.quit()

    def found(self, css): return self.driver.find_elements('css selector', css)
    def wait(self, f, every=.1, seconds=60):
        from selenium.webdriver.support.ui import WebDriverWait
        return WebDriverWait(self.driver, seconds, poll_frequency=every, ignored_exceptions=[Exception]).until(lambda d: f())
    def prompt(self, i): return re.sub(r'\s', '', self.found('.jp-CodeCell .jp-InputPrompt')[i].get_attribute('textContent'))
    def text(self, css):
        "Of the first element, '' if there is none; read at once, since the page may be renewed at any moment."
        return self.driver.execute_script('const e = document.querySelector(arguments[0]); return e ? e.textContent : ""', css)
    def run(self, i=0):
        "Run a cell by its keys; in a page that is still being built they may be lost, and then they are pressed again."
        from selenium.webdriver import ActionChains, Keys
        def press():
            if self.prompt(i) != '[]:': return True
            self.found('.jp-Notebook .cm-content')[i].click()
            ActionChains(self.driver).key_down(Keys.SHIFT).send_keys(Keys.ENTER).key_up(Keys.SHIFT).perform()
        self.wait(press, .5)
    def ended(self, i=0): return self.wait(lambda: re.fullmatch(r'\[\d+\]:', self.prompt(i)))
    def click(self, text):
        "A hand on a button with this text."
        def press():
            b = next(b for b in self.found('button.jupyter-button') if b.text == text)
            self.driver.execute_script('arguments[0].scrollIntoView({block: "center"})', b)
            b.click()
            return True
        self.wait(press, .5)
