"""Put a first cell into each chapter that installs llmbook where it is missing.

A chapter is opened in JupyterLab, Notebook, VS Code or Colab, often as a file of its own that somebody was sent. The
cell stands before a chapter's first code, is folded on the site, and does nothing where llmbook can be imported. What
pip is given stands in settings.ini (`install_from`); a wheel beside the chapter comes before it, and the checkout that a
chapter stands in before both. Where none of them helps, the cell says what would, since pip's own message cannot.
"""
import json
from configparser import ConfigParser
from house import ROOT

NAME = 'first-cell' # id of the cell: there is one in a chapter
TEXT = '''#| code-fold: true
#| code-summary: llmbook is installed here where it is missing
import importlib, sys
from importlib.util import find_spec
from pathlib import Path
if find_spec('llmbook') is None:
    source = 'INSTALL_FROM'
    for wheel in sorted(Path().glob('llmbook-*.whl')):
        source = str(wheel)
    if Path('../../llmbook/__init__.py').exists():
        source = '-e ../..'
        sys.path.append(str(Path('../..').resolve()))
    if source:
        get_ipython().run_line_magic('pip', f'install -q {source}')
    importlib.invalidate_caches()
    if find_spec('llmbook') is None:
        tried = f' (tried {source})' if source else ''
        raise ModuleNotFoundError(
            f'expected llmbook, which is not installed here{tried}: put its wheel, llmbook-*.whl, '
            'beside this notebook, or open the notebook inside the repository; then run this cell '
            'again. In the repository, `pip wheel --no-deps .` makes the wheel.')'''


def text(root=ROOT):
    "Return the source of the cell."
    settings = ConfigParser(delimiters=['='])
    settings.read(root/'settings.ini', encoding='utf-8')
    source = settings['DEFAULT']['install_from']
    if ' ' in source: source = f'"{source}"' # the shell is to see one word: name @ address
    return TEXT.replace('INSTALL_FROM', source)


def with_first_cell(notebook, source):
    "Return a notebook's cells with the first cell before all other code; those of a notebook without code as they are."
    others = [cell for cell in notebook['cells'] if cell.get('id') != NAME]
    code = [place for place, cell in enumerate(others) if cell['cell_type'] == 'code']
    if not code: return others
    first = dict(cell_type='code', execution_count=None, id=NAME, metadata={}, outputs=[],
                 source=source.splitlines(True))
    return [*others[:code[0]], first, *others[code[0]:]]


def put_first_cell(path):
    "Write a chapter with its first cell; return whether something changed."
    notebook = json.loads(path.read_text(encoding='utf-8'))
    cells = with_first_cell(notebook, text())
    if cells == notebook['cells']: return False
    written = json.dumps(notebook | dict(cells=cells), indent=1, ensure_ascii=False, sort_keys=True)
    path.write_text(f'{written}\n', encoding='utf-8')
    return True
