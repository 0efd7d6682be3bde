"""nbdev's processors for documentation, with four things changed.

To show signatures, nbdev runs exported cells, and also every cell that imports something. An example with an import in
it would then run without the cells before it. Here, a cell that is not exported runs only if all it does is import.

nbdev writes the meaning of a parameter as a comment inside the signature, where a narrow page cuts it off. Here the
signature has names and defaults alone, and a table below it has each parameter's type, default and meaning.

nbdev links a name to its source in a repository, whose address may be unknown. Here the source stands below the table,
folded. Pictures get words (`fig-alt`) for those who cannot see them.
"""
import ast, atexit, inspect, re, textwrap
from functools import cache
from fastcore import docments
from nbdev import processors, showdoc
import alt, docstrings
from house import cells, notebooks


DEFINED = re.compile(r'^(?:async def|def|class)\s+(\w+)', re.M)
PATCHED = re.compile(r'^@patch\b.*\n(?:@.*\n)*def\s+(\w+)\(\s*self\s*:\s*(\w+)', re.M)
EXPORTS = {'export', 'exports', 'exporti'}


class exec_show_docs(processors.exec_show_docs):
    "Execute what signatures need, and no examples; add its source to what documents a name."
    def begin(self):
        super().begin()
        self.sources = exported_sources(self.nb.cells)

    def __call__(self, cell):
        if cell.cell_type != 'code' or not cell.source or not needed(cell): return
        super().__call__(cell)
        source = source_of(shown_name(cell.source), self.sources)
        if source: add_source(cell, source)

    def end(self):
        super().end()
        shell = getattr(self, 'k', None)
        if shell: atexit.unregister(shell.atexit_operations) # which collect garbage for each notebook when all are done


def exported_sources(all_cells):
    "Return, for each name, the exported cell that defines it."
    sources = {}
    for cell in all_cells:
        if cell.cell_type != 'code' or not EXPORTS & set(cell.directives_): continue
        lines = [line for line in cell.source.splitlines() if not line.startswith('#|')]
        code = '\n'.join(lines).strip('\n')
        for name in DEFINED.findall(code): sources.setdefault(name, code)
        for method, cls in PATCHED.findall(code): sources[f'{cls}.{method}'] = code
    return sources


def shown_name(source):
    "Return the name that a `show_doc(...)` cell shows, or None."
    found = re.search(r'^show_doc\((\w[\w.]*)', source, re.M)
    return found and found[1]


def source_of(name, sources):
    "Return the source that defines a name, a method's class where it stands inside it; None if it is not known."
    if not name: return None
    of_class, _, _ = name.partition('.')
    return sources.get(name) or sources.get(of_class)


def add_source(cell, source):
    "Put the source of a name below its documentation, folded."
    for output in cell.outputs:
        written = output.get('data', {}).get('text/markdown')
        if written is None: continue
        output['data']['text/markdown'] = ''.join(written) + folded_source(source)
        return


def folded_source(source):
    "Return source that a reader can unfold."
    code = fenced(source, 'python')
    return f'\n\n<details class="source"><summary>source</summary>\n\n{code}\n\n</details>'


def needed(cell):
    "Return whether a cell is exported, calls `show_doc`, or does nothing but import."
    if EXPORTS & set(cell.directives_) or 'show_doc(' in cell.source: return True
    statements = cell.parsed_() or []
    return bool(statements) and all(isinstance(x, (ast.Import, ast.ImportFrom)) for x in statements)


# ---- words for pictures ----------------------------------------------------------------------------------------------

HEADING = re.compile(r'^(#{2,4}) (.+)$', re.M)
CODE = re.compile(r'(^```.*?^```|`[^`\n]*`)', re.S | re.M)


class tell_pictures(processors.Processor):
    "Give each cell with a picture the words that stand for it, unless it has its own."
    def begin(self): self.above = self.nb.frontmatter_.get('title', '') # the heading that a cell stands under

    def __call__(self, cell):
        if cell.cell_type == 'markdown': self.above = last_heading(cell.source, self.above)
        if cell.cell_type != 'code' or not has_picture(cell) or '#| fig-alt' in cell.source: return
        words = alt.picture_words(cell.source, self.above).replace('"', "'")
        cell.source = f'#| fig-alt: "{words}"\n{cell.source}'


def has_picture(cell):
    "Return whether an output of a cell is a picture."
    kinds = [kind for output in cell.get('outputs', []) for kind in output.get('data', {})]
    return any(kind.startswith('image/') for kind in kinds)


def last_heading(source, above):
    "Return the last heading in a cell's Markdown, or the one above it."
    found = HEADING.findall(CODE.sub('', source))
    return found[-1][1] if found else above


class Processors(processors.FilterDefaults):
    "nbdev's own processors, with those above."
    def base_procs(self): return [exec_show_docs if p is processors.exec_show_docs else p for p in super().base_procs()]
    def xtra_procs(self): return [*super().xtra_procs(), tell_pictures]


# ---- for Quarto ------------------------------------------------------------------------------------------------------

def html_as_markdown(cell):
    "Turn outputs of HTML into Markdown that holds it, for which Quarto fetches no script from another host."
    for output in cell.get('outputs', []):
        data = output.get('data', {})
        html = ''.join(data.pop('text/html', ''))
        if html: data['text/markdown'] = raw_html(html)


def raw_html(html):
    "Return a block of Markdown that Pandoc passes on as HTML."
    return fenced(html, '{=html}') + '\n'


def fenced(text, mark):
    "Return a block of Markdown with a fence that is longer than any inside."
    longest = max(map(len, re.findall('`+', text)), default=0)
    fence = '`' * max(3, longest + 1)
    return f'{fence}{mark}\n{text}\n{fence}'


NAME_LINK = re.compile(r'(\]\(/+(?:api|book)/[^)#]+)#([^)]+)\)')


@cache
def documented():
    "Return the anchors of all names that have a heading: what is exported, and what a notebook shows besides."
    found = set()
    for path in notebooks():
        for kind, source, _ in cells(path):
            if kind != 'code': continue
            found.add(shown_name(source))
            if not re.search(r'^#\|\s*export', source, re.M): continue
            found.update(name for name in DEFINED.findall(source) if name[0] != '_')
            found.update(f'{cls}.{method}' for method, cls in PATCHED.findall(source))
    return {name.lower() for name in found if name}


def documented_anchor(m):
    "Return a link to a name as it was, or to its class, or to the page, whichever has a heading."
    page, anchor = m[1], m[2]
    of_class, _, _ = anchor.partition('.')
    for one in (anchor, of_class):
        if one in documented(): return f'{page}#{one})'
    return f'{page})'


def link_documented(cell):
    "Lead links to names that no page documents to their class or to their page."
    if cell.cell_type == 'markdown': cell.source = NAME_LINK.sub(documented_anchor, cell.source)
    for output in cell.get('outputs', []):
        data = output.get('data', {})
        if 'text/markdown' not in data: continue
        data['text/markdown'] = NAME_LINK.sub(documented_anchor, ''.join(data['text/markdown']))


class QuartoProcessors(Processors):
    "The processors above, and what only Quarto needs."
    def xtra_procs(self): return [*super().xtra_procs(), link_documented, html_as_markdown]


# ---- a name's signature and its table --------------------------------------------------------------------------------

@cache
def meanings():
    "Return name -> what its comments say; names are unique in the package."
    return {name: said for names in docstrings.described().values() for name, said in names.items()}


def stars(p): return {p.VAR_POSITIONAL: '*', p.VAR_KEYWORD: '**'}.get(p.kind, '')


def shown_default(p):
    "Return a parameter's default as code, or ''."
    if p.default is p.empty: return ''
    if inspect.isfunction(p.default) or inspect.isclass(p.default): return p.default.__name__
    text = repr(p.default)
    return text if len(text) <= 60 else f'{text[:57]}...'


def signature(name, sig, is_class):
    "Return a call with the names and defaults of its parameters, folded to the width of a page."
    words = []
    for p in sig.parameters.values():
        if p.name == 'self': continue
        default = shown_default(p)
        ending = f'={default}' if default else ''
        words.append(stars(p) + p.name + ending)
    start = 'class ' if is_class else ''
    line = f"{start}{name}({', '.join(words)})"
    return '\n    '.join(textwrap.wrap(line, 84, break_long_words=False, break_on_hyphens=False))


def shown_type(annotation):
    "Return an annotation as code, or ''."
    return '' if annotation is inspect.Parameter.empty else docments._type_str(annotation)


def cell(text, code=False):
    "Return text for one cell of a Markdown table."
    text = str(text).replace('|', '\\|')
    if code: return f'`{text}`' if text else ''
    return text.replace('<', '&lt;').replace('*', '\\*')


def parameter_row(p, said):
    "Return the cells of one parameter; None for one without a meaning."
    name = stars(p) + p.name
    meaning = said.parameters.get(name)
    if not meaning: return None
    kind, default = shown_type(p.annotation), shown_default(p)
    return cell(name, code=True), cell(kind, code=True), cell(default, code=True), cell(meaning)


def outcome_rows(said, sig):
    "Return the rows on what is returned and on what is raised; none where there is nothing to say."
    kind = shown_type(sig.return_annotation)
    returned, raised = said.outcomes()
    rows = []
    if returned or kind not in ('', 'None'): rows.append(('returns', cell(kind, code=True), '', cell(returned)))
    if raised: rows.append(('raises', '', '', cell(raised)))
    return rows


def parameter_table(said, sig):
    "Return a table of the parameters and of what is returned; '' if there is nothing to say."
    rows = [parameter_row(p, said) for p in sig.parameters.values()]
    rows += outcome_rows(said, sig)
    for name, meaning in said.fields.items():
        row = (cell(name, code=True), '', '', cell(meaning))
        rows.append(row)
    lines = ['| parameter | type | default | meaning |', '|---|---|---|---|']
    for row in filter(None, rows): # a parameter or a result without a word has no row
        cells = ' | '.join(row)
        lines.append(f'| {cells} |')
    return '\n'.join(lines) if len(lines) > 2 else ''


class TableRenderer(showdoc.BasicMarkdownRenderer):
    "Shows a name as its signature, its docstring, and a table of its parameters."
    def _repr_markdown_(self):
        said = meanings().get(self.nm, docstrings.Described())
        parts = [f"{'#' * self.title_level} {self.nm}"]
        if self.sig: parts.append(f'```python\n{signature(self.nm, self.sig, inspect.isclass(self.sym))}\n```')
        if self.docs: parts.append(self.docs.partition('\n\nArgs:')[0])
        if self.sig: parts.append(parameter_table(said, self.sig))
        return '\n\n'.join(part for part in parts if part)


showdoc.BasicMarkdownRenderer = TableRenderer
