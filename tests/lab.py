"""A headless Chromium, and one JupyterLab for all tests of a session: what browser tests share.

With LLMBOOK_LAB=notebook it is Notebook 7 instead, where the package `notebook` is installed.
"""
import atexit, json, os, queue, re, secrets, shutil, signal, subprocess, sys, tempfile, threading, urllib.request
from contextlib import contextmanager
from functools import cache
from pathlib import Path
import pytest

CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
DRIVER = shutil.which('chromedriver')
FLAGS = ['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-sync',
         '--disable-background-networking', '--disable-component-update', '--disable-dev-shm-usage']
FRONT = os.environ.get('LLMBOOK_LAB', 'jupyterlab')  # the module of the front end: jupyterlab or notebook
browser_only = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason='no chromium and chromedriver on this machine')


def start_browser(profile, width=1280, height=900):
    "Start a browser that keeps its profile in a folder, and logs what it asks the network for."
    from selenium import webdriver
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    own_flags = [f'--window-size={width},{height}', f'--user-data-dir={profile}']
    for flag in FLAGS + own_flags: options.add_argument(flag)
    options.set_capability('goog:loggingPrefs', {'performance': 'ALL', 'browser': 'ALL'})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=DRIVER))


def _write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_settings(folder, theme, subshells):
    "Write JupyterLab's settings: no announcements, a theme, and how widgets use the subshells of a kernel."
    no_news = {'@jupyterlab/apputils-extension:announcements': True}
    _write_json(folder/'config/labconfig/page_config.json', dict(disabledExtensions=no_news))
    settings = folder/'settings/@jupyterlab/apputils-extension'
    _write_json(settings/'themes.jupyterlab-settings', dict(theme=theme))
    _write_json(settings/'kernels-settings.jupyterlab-settings', dict(commsOverSubshells=subshells))


def _write_notebook(path, cells):
    import nbformat
    path.parent.mkdir()
    kernel = dict(kernelspec=dict(name='python3', display_name='Python 3', language='python'))
    code = [nbformat.v4.new_code_cell(cell) for cell in cells]
    nbformat.write(nbformat.v4.new_notebook(cells=code, metadata=kernel), path)


def _start_server(folder, token, expose):
    "Start a server that keeps everything it writes in `folder`."
    places = dict(HOME=folder, JUPYTER_CONFIG_DIR=folder/'config', JUPYTER_RUNTIME_DIR=folder/'runtime',
                  JUPYTER_DATA_DIR=folder/'share', JUPYTERLAB_SETTINGS_DIR=folder/'settings',
                  JUPYTERLAB_WORKSPACES_DIR=folder/'workspaces', IPYTHONDIR=folder/'ipython')
    env = {**os.environ, **{name: str(path) for name, path in places.items()}, 'OMP_NUM_THREADS': '1'}
    command = [sys.executable, '-m', FRONT, '--no-browser', '--ip=127.0.0.1', '--port=0',
               f'--IdentityProvider.token={token}', '--allow-root']
    # a page that shows its application as `window.jupyterapp` can be asked for commands
    if expose: command.append('--JupyterNotebookApp.expose_app_in_browser=True' if FRONT == 'notebook'
                              else '--LabApp.expose_app_in_browser=True')
    return subprocess.Popen(command, cwd=folder/'work', env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                            text=True, start_new_session=True)


def _address(server):
    "Return the address that the server prints, and keep reading: a pipe that nobody reads would stop the server."
    lines = queue.Queue()
    def read():
        for line in server.stderr: lines.put(line)
    threading.Thread(target=read, daemon=True).start()
    while True:
        found = re.search(r'(http://127\.0\.0\.1:\d+)/(?:lab|tree)\?token', lines.get(timeout=120))
        if found: return found[1]


class Lab:
    "A JupyterLab that serves the notebooks of many tests, each in a folder and a workspace of its own."
    def __init__(self, expose=False):
        self.folder = Path(tempfile.mkdtemp(prefix='lab-'))
        (self.folder/'work').mkdir()
        write_settings(self.folder, 'JupyterLab Light', 'perCommTarget')
        self.token = secrets.token_hex(16)
        self.server = _start_server(self.folder, self.token, expose)
        self.address = _address(self.server)
        self.n_notebooks = 0

    def open(self, folder, cells):
        "Write a notebook into the folder of a test, and return its name and address here."
        self.n_notebooks += 1
        name = f'n{self.n_notebooks}'
        _write_notebook(folder/'work/look.ipynb', cells)
        (self.folder/'work'/name).symlink_to(folder/'work')
        return name, self.address_of(f'{name}/look.ipynb', workspace=name)

    def address_of(self, path, workspace):
        "Return where a notebook opens; Notebook 7 has no workspaces."
        place = f'notebooks/{path}' if FRONT == 'notebook' else f'lab/workspaces/{workspace}/tree/{path}'
        return f'{self.address}/{place}?token={self.token}'

    def ask(self, path, method='GET'):
        "Ask the server's own interface."
        url = f'{self.address}/api/{path}?token={self.token}'
        with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=120) as answer:
            return answer.read()

    def close(self, name):
        "End the kernels of a notebook."
        for session in json.loads(self.ask('sessions')):
            if session['path'].startswith(f'{name}/'): self.ask(f'sessions/{session["id"]}', 'DELETE')

    def stop(self):
        "End the server and its kernels, and remove what it wrote."
        try:
            self.ask('shutdown', 'POST')
            self.server.wait(20)
        except (OSError, subprocess.TimeoutExpired): os.killpg(self.server.pid, signal.SIGKILL)
        self.server.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


@cache
def shared_lab():
    "Start JupyterLab once for all tests; it ends with them."
    lab = Lab()
    atexit.register(lab.stop)
    return lab


@contextmanager
def jupyter_lab(folder, cells, theme='JupyterLab Light', subshells='perCommTarget'):
    "Write a notebook of these cells into the shared JupyterLab, and give its address."
    pytest.importorskip(FRONT)
    lab = shared_lab()
    write_settings(lab.folder, theme, subshells) # a page reads them when it is opened
    name, address = lab.open(folder, cells)
    try: yield address
    finally: lab.close(name)


# Elements are read by scripts where the page may be renewed between two commands of the driver.
TEXT = 'const e = document.querySelector(arguments[0]); return e ? e.textContent : ""'
INTO_VIEW = 'arguments[0].scrollIntoView({block: "center"})'


class Page:
    "A notebook in a browser; a context that ends with the browser."
    def __init__(self, address, folder, width=1280, height=1400):
        self.folder = folder
        self.driver = start_browser(folder/'profile', width, height)
        self.driver.get(address)
        self.wait(lambda: self.found('.jp-CodeCell') and self.has_kernel())

    def __enter__(self): return self
    def __exit__(self, kind, *args):
        "End the browser; where a test failed, a picture of the page stays in its folder."
        if kind: self.driver.save_screenshot(str(self.folder/'failed.png'))
        self.driver.quit()

    def wait(self, done, every=.1, seconds=120):
        from selenium.webdriver.support.ui import WebDriverWait
        wait = WebDriverWait(self.driver, seconds, poll_frequency=every, ignored_exceptions=[Exception])
        return wait.until(lambda driver: done())

    def has_kernel(self):
        "Return whether the page knows its kernel: a cell that is run earlier asks for one."
        if FRONT == 'notebook': return self.found('.jp-NotebookKernelStatus-fade')
        # the notebook's own indicator says idle before there is a kernel
        return '| Idle' in self.text('#jp-main-statusbar')

    def found(self, css): return self.driver.find_elements('css selector', css)

    def text(self, css):
        "Return the text of the first element, '' if there is none."
        return self.driver.execute_script(TEXT, css)

    def prompt(self, i):
        "Return the prompt of a cell: '[ ]:', '[*]:' or '[3]:', without spaces."
        prompt = self.found('.jp-CodeCell .jp-InputPrompt')[i]
        return re.sub(r'\s', '', prompt.get_attribute('textContent'))

    def run(self, i=0):
        "Press the keys that run a cell, again and again until the page, which may still be built, has heard them."
        from selenium.webdriver import ActionChains, Keys
        def press():
            if self.prompt(i) != '[]:': return True
            self.found('.jp-Notebook .cm-content')[i].click()
            ActionChains(self.driver).key_down(Keys.SHIFT).send_keys(Keys.ENTER).key_up(Keys.SHIFT).perform()
        self.wait(press, .5)

    def ended(self, i=0): return self.wait(lambda: re.fullmatch(r'\[\d+\]:', self.prompt(i)))

    def click(self, text):
        "Press the button with this text."
        def press():
            button = next(b for b in self.found('button.jupyter-button') if b.text == text)
            self.driver.execute_script(INTO_VIEW, button)
            button.click()
            return True
        self.wait(press, .5)
