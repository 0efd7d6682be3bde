"""Build the site into _docs/: with Quarto through nbdev-docs where there is one, else the same pages with Sphinx.

Both start from nbdev's processed notebooks, `_quarto.yml` and `sidebar.yml`. With Sphinx, which needs no network, each
processed notebook becomes one that MyST-NB reads (directives carried out, documentation of functions as headings with
targets), and Furo dresses it.
"""
import argparse, ast, json, os, re, shutil, sys, tempfile
from functools import cache
from pathlib import Path
import yaml
from docutils.nodes import make_id
from nbdev import serve
from docprocs import CODE, HEADING, Processors, QuartoProcessors, shown_name
from course import terms
from house import ROOT, cells, description, front, module, notebooks, page, part, title
from sidebar import purpose

DIRECTIVE = re.compile(r'^#\|\s*([\w-]+)\s*:?\s*(.*?)\s*$')
NAME_LINK = re.compile(r'\[`([^`\]]+)`\]\(/+((?:api|book)/[^)#]+)#([^)]+)\)')
NB_LINK = re.compile(r'(\]\((?![a-z]+:)[^)\s#]*?)([^/)\s#]+)\.ipynb(#[^)\s]*)?\)')
CALLOUT = re.compile(r'^(:{3,})\s*\{\.callout-(\w+)[^}]*\}', re.M)
UNCOLOURED = re.compile(r'<span class="(?:n|p|w|o|bp)">([^<]*)</span>')


def process():
    "Make nbdev's processed notebooks: the step of `nbdev-proc-nbs` that needs no Quarto."
    set_processors(Processors)
    return serve.proc_nbs(n_workers=2)


def set_processors(processors):
    "Tell nbdev what to process notebooks with; drop what others, or older ones of these, have left in its cache."
    os.chdir(ROOT) # nbdev looks for its configuration from here
    serve.FilterDefaults = processors
    written = [(ROOT/'tools'/name).stat().st_mtime for name in ('alt.py', 'docprocs.py', 'docstrings.py')]
    maker, note = f'{processors.__name__} {max(written)}', ROOT/'_proc/.maker'
    if note.exists() and note.read_text() == maker: return
    shutil.rmtree(note.parent, ignore_errors=True)
    note.parent.mkdir()
    note.write_text(maker)


# ---- one notebook --------------------------------------------------------------------------------------------------

class Names:
    "Where each public name is documented, from the package's own index (_modidx.py)."
    def __init__(self):
        space = {}
        exec((ROOT/'llmbook/_modidx.py').read_text(), space)
        self.at, self.labels, self.placed = {}, {}, set()
        for syms in space['d']['syms'].values():
            for full, (url, _) in syms.items(): self.at.setdefault(url, []).append(full)

    def add(self, full):
        "Give a name that a page documents a target of its own; Sphinx does not tell `Plan` from `plan`."
        label = full.lower()
        while full not in self.labels and label in self.labels.values(): label += '_'
        self.labels.setdefault(full, label)

    def target(self, url, text):
        "Return the link target of what nbdev links to: the name itself, else its class, else the page."
        at = self.at.get(url, [''])
        full = next((x for x in at if x.endswith(text.removesuffix('()'))), at[0])
        while full.count('.') > 1:
            if full in self.labels: return '#' + self.labels[full]
            full = full.rpartition('.')[0]
        return '/' + url.split('#')[0].removesuffix('.html') + '.ipynb'


def split_directives(source):
    "Return the directives of a cell, and its source without them."
    lines = source.splitlines()
    found = [m.groups() for m in map(DIRECTIVE.match, lines) if m]
    directives = {k: v or 'true' for k, v in found}
    return directives, '\n'.join(l for l in lines if not l.startswith('#|')).strip('\n')


def markdown(text, names):
    "Translate links to names, links to other notebooks, and Quarto's call-outs into MyST."
    def name_link(m): return f'[`{m[1]}`]({names.target(f"{m[2]}#{m[3]}", m[1])})'
    def notebook_link(m): return f'{m[1]}{page(m[2])}.ipynb{m[3] or ""})'
    parts = CODE.split(NAME_LINK.sub(name_link, text))
    for i in range(0, len(parts), 2): # every second part is code
        parts[i] = NB_LINK.sub(notebook_link, CALLOUT.sub(r'\1{\2}', parts[i]))
    return ''.join(parts)


def documentation(name, mod, outputs, names):
    "Return a name's entry: target, heading, signature, one line, parameters, and its source to unfold."
    text = tidy_documentation(first_markdown(outputs))
    full = f'llmbook.{mod}.{name}'
    if full in names.placed: return text # one target, though a notebook may show a name twice
    names.placed.add(full)
    label = names.labels[full]
    return f'({label})=\n{text}'


def first_markdown(outputs):
    "Return the first Markdown among a cell's outputs, '' if there is none."
    for output in outputs:
        written = output.get('data', {}).get('text/markdown')
        if written is not None: return ''.join(written)
    return ''


def tidy_documentation(text):
    "Return what `docprocs` writes about a name, the name as code."
    return re.sub(r'^### (.+)$', r'### `\1`', text.strip(), count=1, flags=re.M)


def convert(processed, original, names):
    "Return one processed notebook as MyST-NB wants it."
    nb = json.loads(processed.read_text(encoding='utf-8'))
    mod = module(original)
    converted = []
    for cell in nb['cells']:
        kind = cell['cell_type']
        src = ''.join(cell['source'])
        if kind == 'raw': converted += [md_cell(heading(front(src), mod)), *take_along(original)]
        elif kind == 'markdown': converted.append(md_cell(markdown(src, names)))
        else: converted += code_cells(cell, src, mod, names)
    shown = [cell for cell in converted if is_shown(cell)]
    kernel = dict(name='python3', language='python', display_name='python3')
    return dict(nbformat=4, nbformat_minor=4, cells=shown, metadata=dict(kernelspec=kernel))


def take_along(path):
    "Return the cell of a chapter that says how to run it: downloaded, or in JupyterLab."
    inside = path.relative_to(ROOT/'nbs').as_posix()
    if not inside.startswith('book/'): return []
    lab = f'http://localhost:8888/lab/tree/{inside}'
    download = f'<a href="{path.name}" download>Download the notebook</a>'
    title_of_link = 'after `make lab` in a copy of the project'
    return [md_cell(f'<p class="take-along">{download}<a href="{lab}" title="{title_of_link}">'
                    'Open in JupyterLab</a></p>')]


def is_shown(cell):
    "Return whether a cell holds something for a reader, other than the warning that a file is generated."
    source = cell['source']
    is_warning = source.startswith('<!-- WARNING')
    return bool(source.strip()) and not is_warning


def md_cell(text): return dict(cell_type='markdown', metadata={}, source=text)


def heading(head, mod):
    "Return the page's title, its module and its description."
    lines = [f"# {head.get('title', 'Untitled')}"]
    if mod: lines.append(f'<p class="module"><code>llmbook.{mod}</code></p>')
    if 'description' in head: lines.append(str(head['description']))
    return '\n\n'.join(lines)


def code_cells(cell, src, mod, names):
    "Return a code cell with its directives carried out: nothing, documentation, plain Markdown, or code with outputs."
    directives, body = split_directives(src)
    output = directives.get('output')
    outputs = [] if output == 'false' else cell.get('outputs', [])
    name = shown_name(body)
    if name and mod:
        text = documentation(name, mod, outputs, names)
        return [md_cell(markdown(text, names))]
    if directives.get('include') == 'false': return []
    if output == 'asis': return [md_cell(markdown(output_text(o), names)) for o in outputs]
    tags = []
    if directives.get('echo') == 'false': tags = ['remove-input']
    elif directives.get('code-fold') == 'true': tags = ['hide-input']
    words = directives.get('fig-alt', '').strip('"')
    summary = directives.get('code-summary', 'the code')
    return [code_cell(body, outputs, tags, words, summary)]


def code_cell(source, outputs, tags, words, summary):
    "Return a cell of code; tags hide its input or leave it out, words stand for its pictures, a summary for its input."
    config = dict(image=dict(alt=words), code_prompt_show=summary, code_prompt_hide=summary)
    metadata = dict(tags=tags, mystnb=config)
    return dict(cell_type='code', metadata=metadata, source=source, outputs=outputs, execution_count=None)


def output_text(output):
    "Return an output's Markdown, or what it printed."
    return ''.join(output.get('data', {}).get('text/markdown', '') or output.get('text', ''))


# ---- the site ------------------------------------------------------------------------------------------------------

class Section:
    "A heading of the sidebar: a page of its own that lists what is folded inside."
    def __init__(self, entry, above='contents'):
        self.title = entry['section']
        self.path = f"{above}/{self.title.lower().replace(' ', '-')}"
        self.inside = [Section(x, self.path) if isinstance(x, dict) else x for x in entry['contents']]

    def pages(self):
        "Return the notebooks of this section and of those inside it."
        return [p for x in self.inside for p in (x.pages() if isinstance(x, Section) else [x])]

    def descriptions(self):
        "Return page -> its one line, for the page of this section and of those inside it."
        lines = {self.path: purpose(self.title) or f'What stands under {self.title}'}
        for x in self.inside:
            if isinstance(x, Section): lines |= x.descriptions()
        return lines

    def write(self, folder):
        "Write the page of this section, and those of the sections inside it, where Sphinx reads."
        to = folder/f'{self.path}.md'
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_text(f'# {self.title}\n\n{self.listing()}\n\n{toctree(self.inside)}\n', encoding='utf-8')
        for x in self.inside:
            if isinstance(x, Section): x.write(folder)

    def listing(self, level=0):
        "Return a list of links: each notebook with its one line, each section with its notebooks below it."
        bullet = '  ' * level + '- '
        lines = []
        for x in self.inside:
            if isinstance(x, Section):
                lines.append(f'{bullet}[{x.title}](/{x.path}.md): {purpose(x.title)}')
                lines.append(x.listing(level + 1))
            else: lines.append(bullet + notebook_link(x))
        return '\n'.join(lines)


def notebook_link(name):
    "Return a link to a notebook's page, followed by its module and its one line."
    path = ROOT/'nbs'/name
    mod, line = module(path), description(path)
    text = f'[{title(path)}](/{page(name)}.ipynb)'
    if mod: text += f' (`{mod}`)'
    return f'{text}: {line}' if line else text


def toctree(entries):
    "Return a sidebar's part as Sphinx reads it."
    paths = [x.path if isinstance(x, Section) else page(x) for x in entries if x != 'index.ipynb']
    return '```{toctree}\n:hidden:\n\n' + '\n'.join(f'/{p}' for p in paths) + '\n```'


def stage(processed, folder):
    "Write what Sphinx reads: every page in the sidebar, the pages of its headings, and the files beside them."
    entries = sidebar_entries()
    sections = [x for x in entries if isinstance(x, Section)]
    listed = ['index.ipynb']
    for section in sections: listed += section.pages()
    copy_other_files(processed, folder)
    for section in sections: section.write(folder)
    names = documented_names(processed, listed)
    for name in listed:
        nb = convert(processed/name, ROOT/'nbs'/name, names)
        if name == 'index.ipynb': nb['cells'].append(md_cell(toctree(entries)))
        write_page(folder/f'{page(name)}.ipynb', nb)
    return search_entries(processed, listed, names)


def search_entries(processed, listed, names):
    """Return what the search knows.

    Pages are [title, module, address, line, what they answer]; each name and heading is [kind, text, page, anchor,
    line].
    """
    pages, entries = [], []
    asked = yaml.safe_load((ROOT/'tools/asked.yml').read_text(encoding='utf-8'))
    for name in listed:
        path = ROOT/'nbs'/name
        mod = module(path)
        for kind, src, _ in cells(processed/name):
            if kind == 'markdown':
                texts = [text for _, text in HEADING.findall(CODE.sub('', src))]
                entries += [['heading', text, len(pages), make_id(text), ''] for text in texts]
            shown = shown_name(src) if kind == 'code' and mod else None
            if not shown: continue
            label = make_id(names.labels[f'llmbook.{mod}.{shown}'])
            entries.append(['name', shown, len(pages), label, first_line(shown)])
        answers = asked.get(name, []) + [term.lower() for term, _ in terms(path) if part(path) == 'book']
        pages.append([title(path), mod or '', f'{page(name)}.html', description(path), answers])
    return pages, entries


def first_line(name):
    "Return the first line of a public name's docstring, or ''."
    said = docstrings_by_name().get(name)
    return said.partition('\n')[0] if said else ''


@cache
def docstrings_by_name():
    "Return name -> docstring of the functions, classes and methods of the package."
    found = {}
    for path in (ROOT/'llmbook').rglob('*.py'):
        tree = ast.parse(path.read_text(encoding='utf-8'))
        for node in tree.body:
            if not isinstance(node, (ast.FunctionDef, ast.ClassDef)): continue
            found[node.name] = ast.get_docstring(node) or ''
            methods = [x for x in getattr(node, 'body', []) if isinstance(x, ast.FunctionDef)]
            if not isinstance(node, ast.ClassDef): continue
            for method in methods: found[f'{node.name}.{method.name}'] = ast.get_docstring(method) or ''
    return found


def sidebar_entries():
    "Return what the sidebar lists at its top: sections, and notebooks by their names."
    site = yaml.safe_load((ROOT/'nbs/sidebar.yml').read_text())['website']
    contents = site['sidebar']['contents']
    return [Section(x) if isinstance(x, dict) else x for x in contents]


def write_page(path, nb):
    "Write a notebook, and the folder that it lies in."
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(nb), encoding='utf-8')


def copy_other_files(processed, folder):
    "Copy the files beside the notebooks, such as images."
    for f in processed.rglob('*'):
        inside = f.relative_to(processed)
        if not f.is_file() or f.suffix in ('.ipynb', '.yml', '.py') or '_docs' in inside.parts: continue
        (folder/inside).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(f, folder/inside)


def documented_names(processed, listed):
    "Return which names have an entry of their own, before any page links to one."
    names = Names()
    for p in listed:
        mod = module(ROOT/'nbs'/p)
        for kind, src, _ in cells(processed/p):
            name = shown_name(src) if kind == 'code' and mod else None
            if name: names.add(f'llmbook.{mod}.{name}')
    return names


def settings():
    "Return Sphinx's configuration, made from the site's one configuration."
    site = yaml.safe_load((ROOT/'_quarto.yml').read_text())['website']
    return dict(
        project=site['title'], html_title=site['title'], html_theme='furo',
        extensions=['myst_nb', 'mathml', 'site_page'],
        html_favicon=site['favicon'], html_logo=site['favicon'], page_descriptions=page_descriptions(site),
        html_static_path=[str(ROOT/'tools/static'), str(ROOT/'nbs/styles.css')],
        html_css_files=['styles.css', 'site.css'],
        html_copy_source=False, html_show_sourcelink=False, html_show_copyright=False, html_show_sphinx=False,
        html_theme_options=dict(sidebar_hide_name=False, navigation_with_keys=True,
            light_css_variables={'color-brand-primary': '#3d5f8f', 'color-brand-content': '#2f5f9e'},
            dark_css_variables={'color-brand-primary': '#8fb3e6', 'color-brand-content': '#8fb3e6'}),
        pygments_style='default', html_math_renderer='mathml',
        nb_execution_mode='off', nb_ipywidgets_js={}, nb_merge_streams=True, nb_output_stderr='show',
        myst_enable_extensions=['dollarmath', 'colon_fence', 'deflist', 'attrs_inline', 'attrs_block', 'tasklist'],
        myst_heading_anchors=4, myst_heading_slug_func='course.anchor', html_use_index=False,
        myst_dmath_allow_space=False, myst_dmath_allow_digits=False, suppress_warnings=['mystnb.unknown_mime_type'],
        exclude_patterns=['_docs'])


def page_descriptions(site):
    "Return page -> its one line, the site's own for the start page."
    lines = {page(p.relative_to(ROOT/'nbs').as_posix()): description(p) for p in notebooks()}
    for entry in sidebar_entries():
        if isinstance(entry, Section): lines |= entry.descriptions()
    return lines | {'index': site['description'], 'search': f"Search {site['title']}"}


def build(out):
    "Build the site off line; return the number of Sphinx's warnings, which are printed as they come."
    sys.path.insert(0, str(ROOT/'tools')) # for the extension `mathml`
    from sphinx.application import Sphinx
    processed = process()
    with tempfile.TemporaryDirectory() as d:
        src = Path(d)/'src'
        src.mkdir()
        entries = stage(processed, src)
        html, trees = str(Path(d)/'html'), str(Path(d)/'trees')
        app = Sphinx(str(src), None, html, trees, 'html', confoverrides=settings(), status=None, parallel=1)
        app.build()
        if app.statuscode: raise SystemExit('sphinx could not build the site, see above')
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(Path(d)/'html', out, ignore=shutil.ignore_patterns('.buildinfo', '.doctrees'))
    for path in out.rglob('*.html'): path.write_text(lighter(path.read_text(encoding='utf-8')), encoding='utf-8')
    write_search(out/'_static/names.js', *entries)
    for path in (ROOT/'nbs/book').glob('*.ipynb'): shutil.copy2(path, out/'book'/path.name)
    return app._warncount


def lighter(html):
    "Return a page without the marks of names, punctuation, operators and spaces in code: a quarter of its bytes."
    return UNCOLOURED.sub(r'\1', html)


def write_search(path, pages, entries):
    "Write what the search knows, as a script."
    def text(found): return json.dumps(found, ensure_ascii=False, separators=(',', ':'))
    path.write_text(f'const sitePages = {text(pages)}\nconst siteEntries = {text(entries)}\n', encoding='utf-8')


def quarto():
    "Build the site with Quarto, as `nbdev-docs` does."
    from nbdev.quarto import nbdev_docs
    set_processors(QuartoProcessors)
    nbdev_docs.__wrapped__(n_workers=2)


if __name__ == '__main__':
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument('--out', default=ROOT/'_docs', type=Path, help='where to')
    ap.add_argument('--offline', action='store_true', help='with Sphinx, also where there is a Quarto')
    args = ap.parse_args()
    if shutil.which('quarto') and not args.offline: sys.exit(quarto())
    n = build(args.out.resolve())
    warnings = f', {n} warnings' if n else ''
    print(f'{args.out}/index.html: {len(notebooks())} notebooks{warnings}')
