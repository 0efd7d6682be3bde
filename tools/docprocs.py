"""nbdev's processors for documentation, with two things changed.

To show signatures, nbdev runs exported cells, and also every cell that imports something. An example with an import in
it would then run without the cells before it. Here, a cell that is not exported runs only if all it does is import.

nbdev writes the meaning of a parameter as a comment inside the signature, where a narrow page cuts it off. Here the
signature has names and defaults alone, and a table below it has each parameter's type, default and meaning.
"""
import ast, inspect, re, textwrap
from functools import cache
from fastcore import docments
from nbdev import processors, showdoc
import docstrings


class exec_show_docs(processors.exec_show_docs):
    "Execute what signatures need, and no examples."
    def __call__(self, cell):
        if cell.cell_type == 'code' and cell.source and needed(cell): super().__call__(cell)


def needed(cell):
    "Return whether a cell is exported, calls `show_doc`, or does nothing but import."
    if {'export', 'exports', 'exporti'} & set(cell.directives_) or 'show_doc(' in cell.source: return True
    statements = cell.parsed_() or []
    return bool(statements) and all(isinstance(x, (ast.Import, ast.ImportFrom)) for x in statements)


class Processors(processors.FilterDefaults):
    "nbdev's own processors, with the one above in its place."
    def base_procs(self): return [exec_show_docs if p is processors.exec_show_docs else p for p in super().base_procs()]


# ---- for Quarto ------------------------------------------------------------------------------------------------------

def html_as_markdown(cell):
    "Turn outputs of HTML into Markdown that holds it, for which Quarto fetches no script from another host."
    for output in cell.get('outputs', []):
        data = output.get('data', {})
        html = ''.join(data.pop('text/html', ''))
        if html: data['text/markdown'] = raw_html(html)


def raw_html(html):
    "Return a block of Markdown that Pandoc passes on as HTML, with a fence that is longer than any inside."
    longest = max(map(len, re.findall('`+', html)), default=0)
    fence = '`' * max(3, longest + 1)
    return f'{fence}{{=html}}\n{html}\n{fence}\n'


class QuartoProcessors(Processors):
    "The processors above, and what only Quarto needs."
    def xtra_procs(self): return [*super().xtra_procs(), html_as_markdown]


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
