"Products of linear layers: every way gives the same, the fastest is measured once, a resumed run keeps its own."
import json
import pytest, torch
import torch.nn.functional as F
from llmbook.model import linear as products
from llmbook.model.linear import Linear, gated_down, linear, product_ways, times, use_product_ways, way

KINDS = ('output', 'input', 'weight')
needs_onednn = pytest.mark.skipif(products._onednn is None, reason='this torch has no oneDNN')


@pytest.fixture(autouse=True)
def own_choices(monkeypatch, tmp_path):
    "Forget every choice, and keep the file of choices in an empty folder."
    monkeypatch.setattr(products, '_chosen', {})
    monkeypatch.setenv('LLMBOOK_CACHE', str(tmp_path))
    monkeypatch.delenv('LLMBOOK_PRODUCTS', raising=False)


def stored(tmp_path): return json.loads((tmp_path/'products.json').read_text())


def gradients(f, inputs):
    "Return the gradients, for all inputs, of the sum of squares of what a function makes of them."
    return torch.autograd.grad(f(*inputs).square().sum(), inputs)


def assert_close(found, expected):
    for a, b in zip(found, expected, strict=True): assert torch.allclose(a, b, rtol=1e-4, atol=1e-4)


@needs_onednn
@pytest.mark.parametrize('slow', [(), *((kind,) for kind in KINDS), KINDS])
def test_values_and_gradients_do_not_depend_on_the_way(slow):
    torch.manual_seed(0)
    layer = Linear(48, 32)
    x = torch.randn(3, 7, 48, requires_grad=True)
    inputs = (x, layer.weight, layer.bias)
    expected = gradients(F.linear, inputs)
    ways = dict.fromkeys(KINDS, 'onednn') | dict.fromkeys(slow, 'torch')
    use_product_ways(ways)
    assert_close(gradients(linear, inputs), expected)


def gated_by_hand(gate, up, weight): return F.linear(F.silu(gate) * up, weight)


@needs_onednn
@pytest.mark.parametrize('name', ['torch', 'onednn'])
def test_the_gated_layer_agrees_in_both_ways(name):
    torch.manual_seed(0)
    shapes = [(20, 24), (20, 24), (8, 24)]
    inputs = [torch.randn(shape, requires_grad=True) for shape in shapes]
    expected = gradients(gated_by_hand, inputs)
    use_product_ways(dict.fromkeys(KINDS, name))
    assert_close(gradients(gated_down, inputs), expected)


def test_the_layout_tells_the_three_products_apart():
    x = torch.ones(5, 3)
    w = torch.ones(4, 3)
    g = torch.ones(5, 4)
    pairs = [(x, w), (g, w.T), (g.T, x.T)]
    assert [products._layout(*pair) for pair in pairs] == list(KINDS)


def test_a_matrix_with_gaps_has_no_layout_and_its_product():
    gaps = torch.ones(5, 6)[:, ::2]
    w = torch.ones(4, 3)
    assert products._layout(gaps, w) == ''
    assert torch.equal(times(gaps, w), gaps @ w.T)


def ways(calls):
    "Return two ways whose calls are noted; nothing is measured by the clock."
    def note(name): return lambda: calls.append(name)
    return lambda: dict(a=note('a'), b=note('b'))


def test_a_choice_is_measured_once_and_kept_in_a_file(monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(products, '_best_times', lambda options: dict(a=1., b=.5))
    assert way('kind', ways(calls)) == 'b'
    assert stored(tmp_path)[products.machine_key()] == {'kind': 'b'}
    monkeypatch.setattr(products, '_best_times', lambda options: pytest.fail('measured again'))
    assert way('kind', ways(calls)) == 'b'
    products._chosen.clear()  # as a new process begins
    assert way('kind', ways(calls)) == 'b'


@pytest.mark.parametrize('second, want', [(.95, 'a'), (.85, 'b')])
def test_the_first_way_wins_unless_another_is_clearly_faster(monkeypatch, second, want):
    monkeypatch.setattr(products, '_best_times', lambda options: dict(a=1., b=second))
    assert way('kind', ways([])) == want


@pytest.mark.parametrize('text', ['', '[]', '{"x": 1', 'null', '{"%s": {"kind": "none of them"}}'])
def test_a_damaged_file_is_measured_over(monkeypatch, tmp_path, text):
    (tmp_path/'products.json').write_text(text.replace('%s', products.machine_key()))
    monkeypatch.setattr(products, '_best_times', lambda options: dict(a=1., b=.5))
    assert way('kind', ways([])) == 'b'
    assert stored(tmp_path)[products.machine_key()] == {'kind': 'b'}


def test_measuring_can_be_switched_off(monkeypatch, tmp_path):
    monkeypatch.setenv('LLMBOOK_PRODUCTS', 'first')
    monkeypatch.setattr(products, '_best_times', lambda options: pytest.fail('measured'))
    assert way('kind', ways([])) == 'a'
    assert not (tmp_path/'products.json').exists()


def test_a_folder_that_cannot_be_written_does_no_harm(monkeypatch, tmp_path):
    (tmp_path/'file').write_text('')
    monkeypatch.setenv('LLMBOOK_CACHE', str(tmp_path/'file'))  # a file where the folder should be
    monkeypatch.setattr(products, '_best_times', lambda options: dict(a=1., b=.5))
    assert way('kind', ways([])) == 'b'


def test_a_resumed_run_computes_as_it_began():
    use_product_ways(dict(output='onednn'))
    kept = json.loads(json.dumps(product_ways()))
    products._chosen.clear()
    use_product_ways(dict(output='torch'))
    use_product_ways(kept)
    assert way('output', dict) == 'onednn'
