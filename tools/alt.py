"Words that stand for a picture: from the call that drew it, or from the names of its axes."
import ast, re

AXES = re.compile(r"\b(title|xlabel|ylabel)\s*=\s*f?(['\"])(.+?)\2|set_(title|xlabel|ylabel)\(\s*f?(['\"])(.+?)\5")

# the functions of `llmbook.teach.pictures`: what they draw, and the defaults of their axes
DRAWN = {
    'draw_lines': ('lines', 'step', 'nats a token'), 'draw_points': ('points', '', ''), 'draw_bars': ('bars', '', ''),
    'draw_counts': ('a histogram', '', 'how many'), 'draw_grids': ('squares', 'is looked at', 'looks'),
}
# what other functions draw, whatever they are given
ALWAYS = {
    'lr_find': 'loss against learning rate',
    'plot_loss': 'the loss of training and validation at each step',
    'plot_rows': 'scores as points, each with its interval',
    'plot_reliability': 'share of right answers against confidence',
    'plot_ablation': 'the score of each variant and of each seed',
    'plot_vocabulary': 'bytes a token against vocabulary size',
    'plot_ladder': 'loss of small runs against their size, and the curve through them',
    'plot_mitigation': 'what each method gained and what it cost',
    'draw_map': 'the paths of runs on a map of weights',
}


def picture_words(source, above):
    "Return what the picture of a cell shows, after the heading that it stands under."
    heading = re.sub('[`*]', '', above)
    said = {}
    for m in AXES.finditer(source): said.setdefault(m[1] or m[4], m[3] or m[6])
    of = said.get('title', heading)
    if '{' in of: of = heading # filled in only when the cell ran
    if 'ylabel' in said and 'xlabel' in said: return f"{of}: {said['ylabel']} against {said['xlabel']}"
    drawn = [words for words in map(words_of_call, calls(source)) if words]
    if drawn: return f"{of}: {', and '.join(drawn)}"
    return f"{of}: {said.get('ylabel') or said.get('xlabel') or 'a picture'}"


def calls(source):
    "Return the calls in a cell, in their order; none if it is not Python alone."
    try: tree = ast.parse(source)
    except SyntaxError: return []
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return sorted(found, key=lambda node: (node.lineno, node.col_offset))


def words_of_call(call):
    "Return what a call draws, or None."
    name = getattr(call.func, 'id', None) or getattr(call.func, 'attr', None)
    if name in ALWAYS: return ALWAYS[name]
    if name not in DRAWN: return None
    kind, x, y = DRAWN[name]
    x, y = axis(call, 1, 'x_title', x), axis(call, 2, 'y_title', y)
    if name == 'draw_bars': y = '' # its third argument is a format
    names = curve_names(call)
    of = f' for {names}' if names else ''
    titles = ' against '.join(title for title in (y, x) if title)
    return f'{kind} of {titles}{of}' if titles else f'{kind}{of}'


def axis(call, place, name, default):
    "Return an axis's title: the argument of a call, by place or by name, or its default."
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    node = call.args[place] if len(call.args) > place else given.get(name)
    is_text = isinstance(node, ast.Constant) and isinstance(node.value, str)
    return node.value if is_text else default


def curve_names(call):
    "Return the names of what is drawn, where the call itself holds them."
    first = call.args[0] if call.args else None
    if not isinstance(first, ast.Dict): return ''
    names = [key.value for key in first.keys if isinstance(key, ast.Constant) and key.value]
    return ', '.join(map(str, names)) if len(names) == len(first.keys) < 7 else ''
