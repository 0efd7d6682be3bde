"""Write llmbook/assets/docstrings.json: what `help()` and `?` say of the parameters, from the comments beside them.

Python forgets comments when it compiles a module. This table keeps them: for each module the names, and for each name
the text that `llmbook.base.docstrings` puts below the docstring when the module is imported.
"""
import ast, io, json, re, tokenize
from dataclasses import dataclass, field
from house import ROOT

TABLE = 'llmbook/assets/docstrings.json'
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)
GENERATED = ('_modidx.py', '__init__.py')
ERROR = re.compile(r'(?:^|[;.] )(`?[A-Z]\w*Error`?\b.*)') # at the beginning of what is returned, or behind it

# what stands without a comment because it means the same everywhere: by the argument's type, then by its name
TYPES = {
    'Doc': 'the document',
    'ModelConfig': "the model's configuration",
    'Tokenizer': 'the tokenizer',
    'View': 'the document, with its words and lines counted once',
}
NAMES = {
    '*args': 'positional arguments, passed on',
    '**kwargs': 'other keyword arguments, passed on',
    '*shape': 'lengths of the axes',
    'a': 'the earlier mark',
    'ax': 'axes to draw on; None: new ones',
    'b': 'the batch, or the later mark',
    'best': 'whether it is the best so far',
    'big': 'whether ids need 4 bytes',
    'buffer': 'memory to fill',
    'can_sample': 'whether the fit writes samples',
    'cb': 'the callback',
    'closure': 'as in torch; not used',
    'cls': 'class of the new loader; None: the same',
    'dataset': 'other rows; None: the same',
    'dl': 'the loader; None: that of the split',
    'doc': 'the document',
    'ds_idx': 'number of the split: 0 train, 1 valid',
    'done': 'whether the fit is over',
    'end': 'the first batch that is not wanted',
    'enough': 'count beyond which the answer is no longer exact',
    'f': 'the file, or the function to run',
    'h': 'hidden states, (..., D)',
    'high': 'the highest value that fits',
    'i': 'number of the batch',
    'items': 'what the function is called with',
    'item': 'what to predict from',
    'k': 'keys, (B, heads, T, width of a head)',
    'kinds': 'why it is written, such as "last" or "best"',
    'layer': 'number of the layer',
    'learn': 'the Learner',
    'lines': 'lines that were taken out',
    'log': 'whether the loss has a logarithmic axis',
    'low': 'the lowest value that fits',
    'mark': 'name of the moment',
    'max_n': 'rows at most',
    'mean': 'the mean value',
    'model': 'the model',
    'module': 'the module to fill',
    'n': 'tokens in a phrase',
    'n_bytes': 'bytes of text',
    'n_ids': 'number of ids',
    'name': 'full name of the module',
    'number': 'number of the document',
    'opt': 'the optimiser',
    'out': "the model's output",
    'overlap': 'what the text shares with the evaluation sets',
    'page': 'the part of the screen that is a page',
    'part': 'the part of the document',
    'passed': 'whether the filters keep it',
    'path': 'where to look; None: everywhere',
    'places': 'numbers of the rows',
    'question': 'the options, as a stage is asked',
    'reason': 'why it is dropped',
    'record': 'what was read',
    'requests': "the reader's clicks",
    'resume': 'the checkpoint folder to resume from; None: a new fit',
    'row': 'one row of the history',
    'rows': 'numbers of the rows that go on',
    's': 'the state, as it was saved',
    'seed': 'seed of the random choice',
    'show_epochs': 'whether each epoch has a mark',
    'shuffle': 'whether rows are drawn at random',
    'skip_start': 'batches left out at the beginning',
    'spec': 'what the finder returned',
    'split': 'name of the split',
    'splits': 'name and share of each split',
    'src': 'the sources',
    'stage': 'name of the stage',
    'start': 'the first batch',
    'state': 'the state, as it was saved',
    'step': 'the step',
    't': 'the tensor',
    'target': 'not used',
    'text': 'any text',
    'texts': 'texts to score',
    'tok': 'the tokenizer',
    'tokens': 'tokens there are',
    'v': 'values, (B, heads, T, width of a head)',
    'validated': 'whether it comes right after a validation',
    'value': 'the value that decided',
    'view': 'view of a run',
    'windows': 'rows of T + 1 tokens',
    'with_valid': 'whether the validation is drawn too',
    'x': 'the input, (..., D)',
    'y': 'the targets, (B, T)',
}


class Source:
    "A module's syntax tree, with the comments that the tree leaves out."
    def __init__(self, text):
        self.tree = ast.parse(text)
        self.comments = {} # line -> words
        self.alone = set() # lines that hold nothing but a comment
        self.colons = [] # lines of the colons outside all brackets, in order
        depth = 0
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            line, column = token.start
            if token.type == tokenize.COMMENT:
                self.comments[line] = token.string.lstrip('# ').strip()
                if not token.line[:column].strip(): self.alone.add(line)
            if token.type != tokenize.OP: continue
            if token.string in '([{': depth += 1
            if token.string in ')]}': depth -= 1
            if token.string == ':' and depth == 0: self.colons.append(line)

    def closing_line(self, node):
        "Return the line of the colon that ends a function's signature."
        return next(line for line in self.colons if line >= node.lineno)

    def comment(self, first, last, closing=None):
        "Return the comment beside the lines from `first` to `last`, else the whole lines of comment above them."
        for line in range(first, last + 1):
            if line in self.comments and line != closing: return self.comments[line]
        above = []
        while (first := first - 1) in self.alone: above.insert(0, self.comments[first])
        return ' '.join(above)


@dataclass
class Described:
    "What the comments of a function or a class say."
    parameters: dict = field(default_factory=dict) # argument, with its stars -> meaning
    returned: str = ''
    fields: dict = field(default_factory=dict) # field of a class -> meaning

    def outcomes(self):
        "Return what is returned, and what is raised: the part from the first error's name on."
        found = ERROR.search(self.returned)
        if not found: return self.returned, ''
        return self.returned[:found.start()].rstrip(' ;.'), self.returned[found.start(1):]

    def text(self):
        "Return what is put below the docstring."
        parts = [listed('Args', self.parameters), listed('Attributes', self.fields)]
        returned, raised = self.outcomes()
        if returned: parts.append(f'Returns:\n    {returned}')
        if raised: parts.append(f'Raises:\n    {raised}')
        return '\n\n'.join(part for part in parts if part)


def listed(head, meanings):
    "Return one part of a text: a heading, then a line for each name."
    lines = [f'    {name}: {meaning}' for name, meaning in meanings.items()]
    return '\n'.join([f'{head}:', *lines]) if lines else ''


# ---- a function ------------------------------------------------------------------------------------------------------

def arguments(node):
    "Return (argument, its name with stars, its last line) for each argument of a function."
    a = node.args
    plain = [*a.posonlyargs, *a.args]
    without_default = len(plain) - len(a.defaults)
    defaults = [None] * without_default + a.defaults
    found = []
    def add(arg, default, stars=''):
        last = default or arg
        found.append((arg, f'{stars}{arg.arg}', last.end_lineno))

    for arg, default in zip(plain, defaults): add(arg, default)
    if a.vararg: add(a.vararg, None, '*')
    for arg, default in zip(a.kwonlyargs, a.kw_defaults): add(arg, default)
    if a.kwarg: add(a.kwarg, None, '**')
    return found


def beside_each(source, found, closing):
    "Return line -> the comment beside the arguments of that line; arguments that share a line share its comment."
    return {last: source.comment(arg.lineno, last, closing) for arg, _, last in found}


def of_function(source, node, is_method=False):
    "Return what a function's comments say; the first argument of a method is left out."
    closing = source.closing_line(node)
    found = arguments(node)
    if is_method: found = found[1:]
    comments = beside_each(source, found, closing)
    meanings = {}
    for arg, name, last in found:
        kind = ast.unparse(arg.annotation) if arg.annotation else ''
        usual = TYPES.get(kind) or NAMES.get(name, '')
        meanings[name] = comments[last] or usual
    says_returned = node.returns or closing > node.lineno # else the comment on a `def` line is about the body
    returned = source.comments.get(closing, '') if says_returned else ''
    return Described(meanings, returned)


# ---- a class ---------------------------------------------------------------------------------------------------------

def is_decorated(node, name): return any(name in ast.unparse(d) for d in node.decorator_list)


def of_fields(source, node):
    "Return field -> meaning for the public fields of a class that have a comment."
    found = {}
    for x in node.body:
        if not isinstance(x, ast.AnnAssign) or not isinstance(x.target, ast.Name): continue
        meaning = source.comment(x.lineno, x.end_lineno)
        if meaning and not x.target.id.startswith('_'): found[x.target.id] = meaning
    return found


def of_class(source, node, classes):
    "Return what a class says: its own `__init__` and fields, else what the class says that it inherits from."
    fields = of_fields(source, node)
    methods = {x.name: x for x in node.body if isinstance(x, FUNCTION)}
    if '__init__' in methods:
        said = of_function(source, methods['__init__'], is_method=True)
        return Described(said.parameters, fields=fields)
    if is_decorated(node, 'dataclass'): return Described(fields)
    above = [classes[name] for name in map(ast.unparse, node.bases) if name in classes]
    inherited = above[0].parameters if above else {}
    return Described(inherited, fields=fields)


def patched_class(node):
    "Return the class that a function with `@patch` becomes a method of, or ''."
    if not is_decorated(node, 'patch') or not node.args.args: return ''
    annotation = node.args.args[0].annotation
    return annotation.id if isinstance(annotation, ast.Name) else ''


# ---- the package -----------------------------------------------------------------------------------------------------

def of_methods(source, node):
    "Return Class.method -> what its comments say, for the methods that stand in the class."
    found = {}
    for method in node.body:
        if not isinstance(method, FUNCTION) or is_decorated(method, '.setter'): continue
        is_static = is_decorated(method, 'staticmethod')
        found[f'{node.name}.{method.name}'] = of_function(source, method, not is_static)
    return found


def of_module(source, classes):
    "Return name -> what its comments say, for public functions, classes and methods; adds the classes to `classes`."
    found = {}
    for node in source.tree.body:
        if isinstance(node, FUNCTION):
            owner = patched_class(node)
            name = f'{owner}.{node.name}' if owner else node.name
            found[name] = of_function(source, node, bool(owner))
        if isinstance(node, ast.ClassDef):
            found[node.name] = classes[node.name] = of_class(source, node, classes)
            found |= of_methods(source, node)
    return {name: said for name, said in found.items() if is_public(name)}


def is_public(name):
    "Return whether neither a class nor its method is private; a call counts as public."
    return not any(part.startswith('_') and part != '__call__' for part in name.split('.'))


def described(root=ROOT):
    "Return module -> name -> what its comments say, for the whole package."
    sources = {}
    for path in sorted((root/'llmbook').rglob('*.py')):
        if path.name in GENERATED: continue
        module = '.'.join(path.relative_to(root/'llmbook').with_suffix('').parts)
        sources[module] = Source(path.read_text(encoding='utf-8'))
    classes = {}
    for source in sources.values(): of_module(source, classes) # all classes first: one may inherit from a later module
    return {module: of_module(source, classes) for module, source in sources.items()}


def written(root=ROOT):
    "Return what the file should hold: a line for each name, so that changes to several can be merged."
    table = {}
    for module, names in described(root).items():
        texts = {name: said.text() for name, said in names.items()}
        table[module] = {name: text for name, text in texts.items() if text}
    return json.dumps(table, indent=0, ensure_ascii=False) + '\n'


if __name__ == '__main__':
    (ROOT/TABLE).write_text(written(), encoding='utf-8')
    print(f'{TABLE} written')
