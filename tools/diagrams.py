"""Write the drawings that open the chapters into nbs/images/.

A drawing is a file in tools/drawings/: a label that is spoken, a size, boxes, and arrows. An arrow is a list of boxes
in their order, or of corners [x, y]. Change a drawing there and run this file.
"""
import yaml
from house import ROOT
from llmbook.teach.diagram import Diagram

NAMES = sorted(path.stem for path in (ROOT/'tools/drawings').glob('*.yml'))


def drawing(name):
    "Return a drawing made from its file."
    parts = yaml.safe_load((ROOT/f'tools/drawings/{name}.yml').read_text(encoding='utf-8'))
    made = Diagram(parts['label'], *parts['size'])
    for box in parts['boxes']: made.box(**box)
    for way in parts['arrows']: add_arrow(made, way)
    return made


def add_arrow(made, way):
    "Add an arrow along some corners, or arrows from each box to the next."
    if isinstance(way[0], list): made.line(*way)
    else: made.arrows(*way)


if __name__ == '__main__':
    for name in NAMES: drawing(name).save(ROOT/f'nbs/images/{name}.svg')
    print(f'nbs/images: {len(NAMES)} drawings')
