"""Build the site into _docs/: Quarto through nbdev-docs where there is a Quarto, else the same pages with Sphinx, off line.

Both start from nbdev's processed notebooks, `_quarto.yml` and `sidebar.yml`. Off line, each processed notebook becomes one that
MyST-NB reads (directives carried out, documentation of functions as headings with targets), and Furo dresses it.
"""
import argparse, json, os, re, shutil, sys, tempfile
from pathlib import Path
import yaml
from nbdev import serve
from docprocs import Processors
from house import ROOT, cells, front, module, notebooks, page

DIRECTIVE = re.compile(r'^#\|\s*([\w-]+)\s*:?\s*(.*?)\s*$')
CODE = re.compile(r'(^```.*?^```|`[^`\n]*`)', re.S | re.M)
NAME_LINK = re.compile(r'\[`([^`\]]+)`\]\(/+((?:api|book)/[^)#]+)#([^)]+)\)')
NB_LINK = re.compile(r'(\]\((?![a-z]+:)[^)\s#]*?)([^/)\s#]+)\.ipynb(#[^)\s]*)?\)')
CALLOUT = re.compile(r'^(:{3,})\s*\{\.callout-(\w+)[^}]*\}', re.M)
DEFINED = re.compile(r'^(?:async def|def|class)\s+(\w+)', re.M)
PATCHED = re.compile(r'^@patch\b.*\n(?:@.*\n)*def\s+(\w+)\(\s*self\s*:\s*(\w+)', re.M)


def process():
    "nbdev's processed notebooks; the step of `nbdev-proc-nbs` that needs no Quarto."
    os.chdir(ROOT) # nbdev looks for its configuration from here
    serve.FilterDefaults = Processors
    return serve.proc_nbs(n_workers=2)


# ---- one notebook -------------------------------------------------------------------------------------------------------------

class Names:
    "Where each public name is documented, from the package's own index (_modidx.py)."
    def __init__(self):
        space = {}
        exec((ROOT/'llmbook/_modidx.py').read_text(), space)
        self.at, self.labels, self.placed = {}, {}, set()
        for syms in space['d']['syms'].values():
            for full, (url, _) in syms.items(): self.at.setdefault(url, []).append(full)

    def add(self, full):
        "A target of its own for a name that a page documents; Sphinx does not tell `Plan` from `plan`."
        label = full.lower()
        while full not in self.labels and label in self.labels.values(): label += '_'
        self.labels.setdefault(full, label)

    def target(self, url, text):
        "The link target of what nbdev links to: the name itself, else its class, else the page."
        at = self.at.get(url, [''])
        full = next((x for x in at if x.endswith(text.removesuffix('()'))), at[0])
        while full.count('.') > 1:
            if full in self.labels: return '#' + self.labels[full]
            full = full.rpartition('.')[0]
        return '/' + url.split('#')[0].removesuffix('.html') + '.ipynb'


def split_directives(source):
    "(directives, source without them)."
    lines = source.splitlines()
    found = [m.groups() for l in lines if (m := DIRECTIVE.match(l))]
    return {k: v or 'true' for k, v in found}, '\n'.join(l for l in lines if not l.startswith('#|')).strip('\n')


def markdown(text, names):
    "Links to names, to other notebooks, and Quarto's call-outs, in MyST's words."
    text = NAME_LINK.sub(lambda m: f'[`{m[1]}`]({names.target(f"{m[2]}#{m[3]}", m[1])})', text)
    parts = CODE.split(text)
    parts[::2] = [NB_LINK.sub(lambda m: f'{m[1]}{page(m[2])}.ipynb{m[3] or ""})', CALLOUT.sub(r'\1{\2}', p)) for p in parts[::2]]
    return ''.join(parts)


def shown_name(source):
    "The name that a `show_doc(...)` cell shows, or None."
    m = re.search(r'^show_doc\((\w[\w.]*)', source, re.M)
    return m and m[1]


def documentation(name, mod, outputs, sources, names):
    "A name's entry: target, heading, signature, one line, and its source to unfold."
    md = next((''.join(o['data']['text/markdown']) for o in outputs if 'text/markdown' in o.get('data', {})), '')
    md = re.sub(r'\A---\n', '', md)
    md = re.sub(r'^\[source\]\([^)]*\)\{[^}]*\}\n', '', md, flags=re.M).strip()
    md = re.sub(r'^### (.+)$', lambda m: f'### `{m[1]}`', md, count=1, flags=re.M)
    md = re.sub(r'^\*(.*)\*$', r'\1', md, flags=re.M | re.S) if '\n*' in md else md
    src = sources.get(name) or sources.get(name.split('.')[0])
    fold = f'\n\n<details class="source"><summary>source</summary>\n\n```python\n{src}\n```\n\n</details>' if src else ''
    full = f'llmbook.{mod}.{name}'
    target = '' if full in names.placed else f'({names.labels[full]})=\n' # a target once, though a notebook may show a name twice
    names.placed.add(full)
    return f'{target}{md}{fold}'


def exported_sources(path):
    "Name -> the exported cell that defines it, without directives."
    res = {}
    for kind, src, _ in cells(path):
        found, body = split_directives(src)
        if kind == 'code' and 'export' in found:
            for name in DEFINED.findall(body): res.setdefault(name, body)
            for method, cls in PATCHED.findall(body): res[f'{cls}.{method}'] = body
    return res


def convert(processed, original, names):
    "One processed notebook as MyST-NB wants it."
    nb, mod, sources = json.loads(processed.read_text(encoding='utf-8')), module(original), exported_sources(original)
    out = []
    for c in nb['cells']:
        src = ''.join(c['source'])
        if c['cell_type'] == 'raw': out.append(md_cell(heading(front(src), mod)))
        elif c['cell_type'] == 'markdown': out.append(md_cell(markdown(src, names)))
        else: out += code_cells(c, src, mod, sources, names)
    out = [c for c in out if c['source'].strip() and not c['source'].startswith('<!-- WARNING')]
    return dict(nbformat=4, nbformat_minor=4, cells=out, metadata={'kernelspec': {'name': 'python3', 'language': 'python', 'display_name': 'python3'}})


def md_cell(text): return dict(cell_type='markdown', metadata={}, source=text)


def heading(head, mod):
    "The page's title, its module and its description."
    lines = [f"# {head.get('title', 'Untitled')}"]
    if mod: lines.append(f'<p class="module"><code>llmbook.{mod}</code></p>')
    if 'description' in head: lines.append(str(head['description']))
    return '\n\n'.join(lines)


def code_cells(cell, src, mod, sources, names):
    "A code cell with its directives carried out: nothing, documentation, plain Markdown, or code with outputs."
    found, body = split_directives(src)
    outputs = [] if found.get('output') == 'false' else cell.get('outputs', [])
    if (name := shown_name(body)) and mod: return [md_cell(markdown(documentation(name, mod, outputs, sources, names), names))]
    if found.get('include') == 'false': return []
    if found.get('output') == 'asis':
        return [md_cell(markdown(''.join(o.get('data', {}).get('text/markdown', '') or o.get('text', '')), names)) for o in outputs]
    tags = ['remove-input'] if found.get('echo') == 'false' else []
    return [dict(cell_type='code', metadata={'tags': tags}, source=body, outputs=outputs, execution_count=None)]


# ---- the site -----------------------------------------------------------------------------------------------------------------

def sections(contents):
    "The sidebar as (heading, pages)."
    top = [page(x) for x in contents if isinstance(x, str) and x != 'index.ipynb']
    return ([(None, top)] if top else []) + [(x['section'], [page(p) for p in x['contents']]) for x in contents if isinstance(x, dict)]


def toctree(contents):
    "The sidebar as Sphinx reads it, at the end of the start page."
    return '\n\n'.join('```{toctree}\n:hidden:\n' + (f':caption: {head}\n' if head else '') + '\n' + '\n'.join(f'/{p}' for p in pages) + '\n```'
                       for head, pages in sections(contents))


def stage(processed, folder):
    "Write what Sphinx reads: every page in the sidebar, and the files beside them."
    contents = yaml.safe_load((ROOT/'nbs/sidebar.yml').read_text())['website']['sidebar']['contents']
    listed = ['index.ipynb'] + [p for x in contents if isinstance(x, dict) for p in x['contents']]
    for f in processed.rglob('*'):
        if f.is_file() and f.suffix not in ('.ipynb', '.yml', '.py') and '_docs' not in f.relative_to(processed).parts:
            (folder/f.relative_to(processed)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(f, folder/f.relative_to(processed))
    names = Names()
    for p in listed: # which names have an entry of their own, before any page links to one
        mod = module(ROOT/'nbs'/p)
        for kind, src, _ in cells(processed/p):
            if kind == 'code' and mod and (n := shown_name(src)): names.add(f'llmbook.{mod}.{n}')
    for p in listed:
        nb = convert(processed/p, ROOT/'nbs'/p, names)
        if p == 'index.ipynb': nb['cells'].append(md_cell(toctree(contents)))
        to = folder/(page(p) + '.ipynb')
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_text(json.dumps(nb), encoding='utf-8')


def settings():
    "Sphinx's configuration, from the site's one configuration."
    site = yaml.safe_load((ROOT/'_quarto.yml').read_text())['website']
    return dict(
        project=site['title'], html_title=site['title'], html_theme='furo', extensions=['myst_nb', 'mathml'],
        html_favicon=site['favicon'], html_static_path=[str(ROOT/'tools/static')], html_css_files=['site.css'],
        html_copy_source=False, html_show_sourcelink=False, html_show_copyright=False,
        html_theme_options=dict(sidebar_hide_name=False, navigation_with_keys=True,
            light_css_variables={'color-brand-primary': '#3d5f8f', 'color-brand-content': '#2f5f9e'},
            dark_css_variables={'color-brand-primary': '#8fb3e6', 'color-brand-content': '#8fb3e6'}),
        pygments_style='default', html_math_renderer='mathml',
        nb_execution_mode='off', nb_ipywidgets_js={}, nb_merge_streams=True, nb_output_stderr='show',
        myst_enable_extensions=['dollarmath', 'colon_fence', 'deflist', 'attrs_inline', 'attrs_block'], myst_heading_anchors=4,
        myst_dmath_allow_space=False, myst_dmath_allow_digits=False, suppress_warnings=['mystnb.unknown_mime_type'],
        exclude_patterns=['_docs'])


def build(out):
    "The site off line; the number of Sphinx's warnings, printed as they come."
    sys.path.insert(0, str(ROOT/'tools')) # for the extension `mathml`
    from sphinx.application import Sphinx
    processed = process()
    with tempfile.TemporaryDirectory() as d:
        src = Path(d)/'src'
        src.mkdir()
        stage(processed, src)
        app = Sphinx(str(src), None, str(Path(d)/'html'), str(Path(d)/'trees'), 'html', confoverrides=settings(), status=None, parallel=1)
        app.build()
        if app.statuscode: raise SystemExit('sphinx could not build the site, see above')
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(Path(d)/'html', out, ignore=shutil.ignore_patterns('.buildinfo', '.doctrees'))
    return app._warncount


def quarto():
    "The site with Quarto, as `nbdev-docs` makes it."
    from nbdev.quarto import nbdev_docs
    os.chdir(ROOT)
    serve.FilterDefaults = Processors
    nbdev_docs.__wrapped__(n_workers=2)


if __name__ == '__main__':
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument('--out', default=ROOT/'_docs', type=Path, help='where to')
    ap.add_argument('--offline', action='store_true', help='with Sphinx, also where there is a Quarto')
    args = ap.parse_args()
    if shutil.which('quarto') and not args.offline: sys.exit(quarto())
    n = build(args.out.resolve())
    print(f'{args.out}/index.html: {len(notebooks())} pages' + (f', {n} warnings' if n else ''))
