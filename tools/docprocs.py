"""nbdev's processors for documentation, with one changed.

To show signatures, nbdev runs exported cells, and also every cell that imports something. An example with an import in
it would then run without the cells before it. Here, a cell that is not exported runs only if all it does is import.
"""
import ast
from nbdev import processors


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
