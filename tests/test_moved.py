"Imports that were written for version 0.1.0 find what they name, and say where it is today."
import importlib, json, warnings
from pathlib import Path
import pytest
from llmbook.base.moved import MOVED

OLD = Path(__file__).parent/'made_by_0_1_0'
NAMES = json.loads((OLD/'names.json').read_text(encoding='utf-8'))
IN_ALL = json.loads((OLD/'all.json').read_text(encoding='utf-8'))
PALETTE = 'one palette stands in show.charts'
RENAMED_IN_PLACE = 'the module is where it was, and calls it something else'
GONE = {  # names that no import leads to any more, and why
    'curves.INKS': PALETTE, 'data.pictures.FILL': PALETTE,
    'model.scaling.LEFT': 'part of BOX', 'model.scaling.BOTTOM': 'part of BOX',
    'evaluate.overlap.KINDS': RENAMED_IN_PLACE, 'evaluate.toxicity.check_checkpoint': RENAMED_IN_PLACE,
    'train.telemetry.KINDS': RENAMED_IN_PLACE,
    'model.plan.KINDS': 'types come from the fields of the dataclass', 'data.stages.EXCERPT': 'part of RejectLog',
    'clicks.handle': 'private today',
}


@pytest.mark.parametrize('old', list(NAMES))
def test_every_name_is_found(old):
    module = importlib.import_module(f'llmbook.{old}')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', DeprecationWarning)
        lost = [name for name in NAMES[old] if f'{old}.{name}' not in GONE and not hasattr(module, name)]
    assert not lost


def test_the_star_import_gives_every_name_that_it_gave():
    module = importlib.import_module('llmbook.all')
    assert set(IN_ALL) <= set(module.__all__)


@pytest.mark.parametrize('old', list(MOVED))
def test_every_new_address_exists(old):
    for new in MOVED[old].split(): importlib.import_module(f'llmbook.{new}')


def test_an_old_import_says_the_new_address():
    with pytest.warns(DeprecationWarning, match=r'llmbook\.read\.doc\.Doc now'):
        from llmbook.data.doc import Doc
    assert Doc.__module__ == 'llmbook.read.doc'


def test_what_is_nowhere_is_refused():
    with pytest.raises(ImportError): importlib.import_module('llmbook.data.nothing')
    with pytest.raises(ImportError):
        from llmbook.data.doc import Nothing
    with pytest.raises(ImportError): importlib.import_module('llmbook.nothing')
