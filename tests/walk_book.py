"""Run chapters of the book top to bottom in a browser, and say what went wrong on their pages.

    python tests/walk_book.py            all chapters, in JupyterLab
    python tests/walk_book.py 07 15      two of them
    LLMBOOK_LAB=notebook python tests/walk_book.py --dark --width 800

A chapter is opened as a reader has it: saved outputs, pictures beside it. All cells are run by the menu's command, and
then the page is read: errors of the kernel, widgets that did not appear, pictures that did not load, bars that stand
still, and errors that the browser noted. Screenshots go to a folder. Sizes are those of the tests, unless they are set.
Nothing here belongs to `make test`: a walk takes half an hour.
"""
import argparse, os, re, shutil, sys, tempfile, time
from pathlib import Path
os.environ.setdefault('LLMBOOK_MINUTES', '.2')
os.environ.setdefault('LLMBOOK_MEGABYTES', '3')
from lab import Lab, Page, write_settings

ROOT = Path(__file__).resolve().parent.parent
LONGEST = 1200  # seconds that one chapter may take

RUN_ALL = '''window.jupyterapp.shell.currentWidget.sessionContext.ready
    .then(() => window.jupyterapp.commands.execute("notebook:run-all-cells"))'''

# What the notebook holds: JupyterLab draws only the cells near the window, so the page alone would not do.
OUTPUTS = '''
const cells = window.jupyterapp.shell.currentWidget.content.model.cells;
return [...Array(cells.length).keys()].map(i => cells.get(i)).filter(cell => cell.type === 'code')
    .map(cell => ({ran: cell.executionCount, id: cell.id, outputs: cell.outputs.toJSON()}));
'''

# A look at each cell in turn, so that all of them are drawn.
DRAW_ALL = '''(async () => {
    const notebook = window.jupyterapp.shell.currentWidget.content;
    for (let i = 0; i < notebook.widgets.length; i++) {
        await notebook.scrollToItem(i, 'center');
        await new Promise(next => setTimeout(next, 60));
    }
    await notebook.scrollToItem(0);
})()'''

LOOK_AT = '''(notebook => notebook.scrollToItem(Math.floor({share} * (notebook.widgets.length - 1)), 'start'))(
    window.jupyterapp.shell.currentWidget.content)'''

FAULTS = '''
const found = [];
for (const image of document.querySelectorAll('.jp-Notebook img'))
    if (!image.complete || !image.naturalWidth) found.push('picture did not load: ' + image.src.slice(0, 80));
for (const area of document.querySelectorAll('.jp-OutputArea-output')) {
    const text = area.textContent;
    if (/Error displaying widget|Loading widget|model not found/i.test(text))
        found.push('widget: ' + text.slice(0, 80));
    if (area.scrollWidth > area.clientWidth + 2 && getComputedStyle(area).overflowX === 'visible')
        found.push('wider than its place: ' + text.trim().slice(0, 60));
}
for (const bar of document.querySelectorAll('.jp-Notebook progress'))
    if (bar.value < bar.max) found.push('bar stands at ' + bar.value + ' of ' + bar.max);
return found;
'''


def copy_book(folder):
    "Copy the chapters and their pictures into a folder, as somebody gets them."
    for part in ('book', 'images'): shutil.copytree(ROOT/'nbs'/part, folder/part)


def faults_of(cell):
    "Return what went wrong in a cell, in words."
    found = []
    if cell['ran'] is None: found.append('was not run')
    for output in cell['outputs']:
        if output['output_type'] == 'error': found.append(f'{output["ename"]}: {output["evalue"][:200]}')
        if output.get('name') == 'stderr': found.append(f'stderr: {"".join(output["text"])[:200]}')
    return [f'cell {cell["id"]}: {fault}' for fault in found]


# What a front end notes for an empty notebook too.
KNOWN = re.compile(r"api/settings|lsp/status|[Ss]chema not found|reading 'schema'|settings for")


def browser_errors(driver):
    "Return the errors that the browser noted, without those that every notebook has."
    return [entry['message'][:200] for entry in driver.get_log('browser')
            if entry['level'] == 'SEVERE' and not KNOWN.search(entry['message'])]


def finish(page, promise):
    "Wait for a promise, as long as a chapter may take; return what it was refused for, '' for nothing."
    start = f'window.refused = null; {promise}'
    noted = '.then(() => { window.refused = ""; }, e => { window.refused = String(e); })'
    page.driver.execute_script(start + noted)
    refused = 'return window.refused'
    page.wait(lambda: page.driver.execute_script(refused) is not None, 1, LONGEST)
    return page.driver.execute_script(refused)


def shoot(page, shots, name):
    "Take screenshots of the beginning, the middle and the end of a page."
    shots.mkdir(parents=True, exist_ok=True)
    for place in range(3):
        finish(page, LOOK_AT.format(share=place / 2))
        page.driver.save_screenshot(str(shots/f'{name}-{place}.png'))


def walk(page, shots, name):
    "Run the chapter of a page; return what went wrong, and how many outputs there are."
    driver = page.driver
    error = finish(page, RUN_ALL)
    cells = driver.execute_script(OUTPUTS)
    finish(page, DRAW_ALL)
    found = [error] if error else []
    for cell in cells: found += faults_of(cell)
    found += driver.execute_script(FAULTS) + browser_errors(driver)
    shoot(page, shots, name)
    return found, sum(len(cell['outputs']) for cell in cells)


def arguments():
    "Return what the command line asks for."
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('chapters', nargs='*', help='numbers of chapters, all without one')
    parser.add_argument('--dark', action='store_true', help='the dark theme')
    parser.add_argument('--width', type=int, default=1400, help='width of the window')
    parser.add_argument('--height', type=int, default=1800, help='height of the window')
    parser.add_argument('--shots', type=Path, default=Path('runs/walk'), help='folder of the screenshots')
    return parser.parse_args()


def main():
    "Walk through the chapters, one browser at a time; end with 1 if one of them has a fault."
    asked = arguments()
    folder = Path(tempfile.mkdtemp(prefix='walk-'))
    lab = Lab(expose=True)
    write_settings(lab.folder, f'JupyterLab {"Dark" if asked.dark else "Light"}', 'perCommTarget')
    copy_book(lab.folder/'work')
    paths = sorted((lab.folder/'work/book').glob('*.ipynb'))
    n_faults = 0
    try:
        for path in paths:
            if asked.chapters and path.stem[:2] not in asked.chapters: continue
            if '"cell_type": "code"' not in path.read_text(encoding='utf-8'): continue
            start = time.perf_counter()
            address = lab.address_of(f'book/{path.name}', workspace=path.stem)
            with Page(address, folder/path.stem, asked.width, asked.height) as page:
                found, n_outputs = walk(page, asked.shots, path.stem)
            seconds = time.perf_counter() - start
            print(f'{path.stem}: {seconds:.0f} s, {n_outputs} outputs, {len(found)} faults', flush=True)
            for fault in found: print(f'    {fault}', flush=True)
            n_faults += len(found)
            lab.close('book')
    finally:
        lab.stop()
        shutil.rmtree(folder, ignore_errors=True)
    return 1 if n_faults else 0


if __name__ == '__main__': sys.exit(main())
