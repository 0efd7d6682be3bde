"Budgets against real models, a real process, the papers' tables and values by hand."
import json, math, os, subprocess, sys
from pathlib import Path
import pytest, torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from llmbook.core import UserError
from llmbook.plan.flops import count_params, flops_by_part, flops_per_token
from llmbook.model.config import SIZES, ModelConfig, get_config
from llmbook.plan.devices import carbon_intensity, machine_cost
from llmbook.plan.devices import DEVICES, Device, find_device, get_device, measure_machine, peak_flops
from llmbook.plan.local import expected_rate
from llmbook.plan.memory import PRECISIONS, accumulation, activation_bytes, largest_batch, memory_estimate
from llmbook.plan.plan import Plan
from llmbook.plan.planner import arrange, plan
from llmbook.plan.scaling import compute_optimal, isoflop_picture, predicted_loss
from llmbook.model.transformer import Transformer
from llmbook.train.loss import LMLoss
from llmbook.train.optim import lm_opt

SHAPES = {
    'gqa':      dict(n_layer=2, d_model=64, n_head=4, n_kv_head=2),
    'mqa':      dict(n_layer=1, d_model=48, n_head=3, n_kv_head=1),
    'untied':   dict(n_layer=2, d_model=64, n_head=4, n_kv_head=2, tie_embeddings=False),
    'widehead': dict(n_layer=3, d_model=32, n_head=2, n_kv_head=2, head_dim=48, d_ff=50),
    'llama':    dict(n_layer=2, d_model=64, n_head=4, n_kv_head=2, family='llama'),
    'gpt2':     dict(n_layer=2, d_model=64, n_head=4, family='gpt2'),
    'encoder':  dict(n_layer=2, d_model=64, n_head=4, family='encoder'),
    'window':   dict(n_layer=4, d_model=64, n_head=4, family='encoder', window=8),
    **{f'{f}-{m}': dict(n_layer=2, d_model=64, n_head=4, family=f, mlp=m)
       for f, m in (('qwen3', 'relu2'), ('qwen3', 'gelu'), ('llama', 'geglu'), ('gpt2', 'swiglu'), ('gpt2', 'relu2'), ('encoder', 'gelu'))},
}

def shape(name): return ModelConfig(vocab_size=320, context=64, **SHAPES[name])


# ---- parameters and operations

@pytest.mark.parametrize('name', SHAPES)
def test_parameters_are_those_of_the_model(name):
    c, p = shape(name), count_params(shape(name))
    m = Transformer(c)
    assert p['total'] == sum(q.numel() for q in m.parameters())
    assert p['body'] == sum(q.numel() for n, q in m.named_parameters() if n.startswith(('blocks', 'norm', 'embed_norm')))


@pytest.mark.parametrize('name', SIZES)
def test_parameters_of_every_named_size(name):
    with torch.device('meta'): m = Transformer(get_config(name))
    assert count_params(get_config(name))['total'] == sum(p.numel() for p in m.parameters())


def test_published_sizes():
    for name, n in (('qwen3-0.6b', 596e6), ('qwen3-8b', 8.19e9), ('llama3.1-8b', 8.03e9), ('gpt2', 124.4e6), ('gpt2-xl', 1.558e9), ('modernbert-base', 149e6)):
        assert count_params(get_config(name))['total'] == pytest.approx(n, rel=.01), name
    assert count_params(get_config('qwen3-0.6b'))['body'] == pytest.approx(440e6, rel=.01)
    for n in SIZES: assert flops_per_token(get_config(n)) > 6 * sum(count_params(get_config(n))[k] for k in ('attention', 'mlp')) * .99


@pytest.mark.parametrize('name', SHAPES)
def test_operations_are_those_torch_counts(name):
    "With attention as plain products; on the `meta` device nothing is computed."
    c = shape(name)
    with torch.device('meta'): m, x = Transformer(c), torch.zeros(3, 24, dtype=torch.int64)
    with FlopCounterMode(display=False) as fc, sdpa_kernel(SDPBackend.MATH): m.logits(m(x)).sum().backward()
    assert fc.get_total_flops() / x.numel() == flops_per_token(c, 24)


@pytest.mark.parametrize('every', [1, 2, 3])
def test_recomputing_adds_a_forward_pass_of_its_blocks(every):
    c = ModelConfig(vocab_size=320, context=64, n_layer=5, d_model=64)
    with torch.device('meta'): m, x = Transformer(c).set_recompute(every), torch.zeros(3, 24, dtype=torch.int64)
    with FlopCounterMode(display=False) as fc, sdpa_kernel(SDPBackend.MATH): m.logits(m(x)).sum().backward()
    f = flops_by_part(c, 24, every)
    extra = fc.get_total_flops() / x.numel() - f['total']                 # torch stops before the last product: nothing needs its result
    down = 2 * c.d_model * c.d_ff * -(-c.n_layer // every)
    assert f['recompute'] - down <= extra <= f['recompute'] * 1.0001


# ---- memory

def kept(m, x, precision):
    "Bytes of all tensors that torch keeps for the backward pass, weights and their copies left out."
    held, size = [], {}
    def note(t):
        held.append(t)
        if t.shape and (t.shape[0] == len(x) or t.shape[0] == x.numel()): size[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t
    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t), torch.autocast('cpu', torch.bfloat16, enabled=precision == 'bfloat16'): m(x)
    own = {p.untyped_storage().data_ptr() for p in [*m.parameters(), *m.buffers()]}
    return sum(n for k, n in size.items() if k not in own)


@pytest.mark.parametrize('precision', ['float32', 'bfloat16'])
@pytest.mark.parametrize('name', SHAPES)
def test_activations_are_within_a_quarter_of_what_torch_keeps(name, precision):
    c = shape(name)
    m, x = Transformer(c), torch.randint(c.vocab_size, (4, 48))
    assert .75 < kept(m, x, precision) / activation_bytes(c, x.numel(), precision) < 1.25


def test_recomputing_keeps_the_inputs_of_blocks():
    c = ModelConfig(vocab_size=320, n_layer=6, d_model=64, context=64)
    x = torch.randint(320, (4, 48))
    all_, half, none = (kept(Transformer(c).set_recompute(k), x, 'float32') for k in (0, 2, 1))
    once = activation_bytes(c, x.numel()) / c.n_layer                    # one block is whole again on the way back
    for real, k in ((half, 2), (none, 1)): assert real == pytest.approx(activation_bytes(c, x.numel(), recompute=k) - once, rel=.25)
    assert none < half < all_


RUN = '''
import sys, torch, psutil
from llmbook.model.config import ModelConfig
from llmbook.model.transformer import Transformer
from llmbook.train.loss import LMLoss
from llmbook.train.optim import lm_opt
def train(c, bs, steps, recompute, muon):
    m = Transformer(c).set_recompute(recompute); opt = lm_opt(m, muon=muon)(list(m.parameters()), lr=1e-3); loss = LMLoss(m.head, 1024)
    for _ in range(steps):
        x = torch.randint(0, c.vocab_size, (bs, c.context)); loss(m(x), x).backward(); opt.step(); opt.zero_grad()
train(ModelConfig(n_layer=1, d_model=64, vocab_size=64, context=16), 1, 1, 0, True)
base = psutil.Process().memory_info().rss
train(ModelConfig(**{config}), {bs}, 2, {recompute}, {muon})
print(int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0]) * 1024 - base) # its own peak: that of `resource` begins with the size of the process that started it
'''

@pytest.mark.skipif(sys.platform != 'linux', reason='/proc is of Linux')
@pytest.mark.parametrize('bs, recompute, muon, kw', [
    (8, 0, True, dict(n_layer=6, d_model=384, n_head=6, n_kv_head=2)),
    (2, 0, False, dict(n_layer=4, d_model=512, n_head=8, n_kv_head=2)),
    (8, 1, True, dict(n_layer=6, d_model=384, n_head=6, n_kv_head=2)),
    (4, 0, True, dict(n_layer=6, d_model=384, n_head=6, family='gpt2'))])
def test_a_real_run_peaks_within_a_quarter_of_the_estimate(bs, recompute, muon, kw):
    code = RUN.format(config=kw, bs=bs, recompute=recompute, muon=muon)
    r = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=300, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    assert r.returncode == 0, r.stderr[-2000:]
    guess = memory_estimate(ModelConfig(**kw), bs, recompute=recompute, optimizer='muon' if muon else 'adamw')['total']
    assert .75 < int(r.stdout) / guess < 1.25, f'{int(r.stdout) / 1e6:.0f} MB measured, {guess / 1e6:.0f} estimated'


def test_how_ranks_share():
    c = get_config('llama3.2-1b')
    n, one = count_params(c)['total'], memory_estimate(c, 1, precision='bfloat16')
    ddp, fsdp = (memory_estimate(c, 1, precision='bfloat16', ranks=8, sharding=s) for s in ('ddp', 'fsdp'))
    assert {k: v for k, v in ddp.items() if k not in ('communication', 'total')} == {k: v for k, v in one.items() if k not in ('communication', 'total')}
    assert ddp['communication'] == 4 * n and one['communication'] == 0
    for k in ('weights', 'gradients', 'optimizer'): assert fsdp[k] == pytest.approx(one[k] / 8, abs=1)
    assert fsdp['activations'] == one['activations'] and fsdp['total'] < one['total'] < ddp['total']
    for m in (one, ddp, fsdp): assert m['total'] == sum(v for k, v in m.items() if k != 'total')


def test_optimisers_by_hand():
    c = get_config('125m')
    n, matrices = count_params(c)['total'], sum(count_params(c)[k] for k in ('attention', 'mlp'))
    assert memory_estimate(c, 1, optimizer='adamw')['optimizer'] == 8 * n
    assert memory_estimate(c, 1, optimizer='muon')['optimizer'] == 8 * n - 4 * matrices
    assert activation_bytes(c, 1000, 'float16') == activation_bytes(c, 1000, 'bfloat16') < activation_bytes(c, 1000, 'tf32')


@pytest.mark.parametrize('kw', [dict(precision='int8'), dict(optimizer='sgd'), dict(sharding='tp')])
def test_memory_refuses(kw):
    with pytest.raises(UserError, match='expected'): memory_estimate(ModelConfig(), 1, **kw)


@pytest.mark.parametrize('memory', [3e8, 1e9, 24e9, 80e9])
@pytest.mark.parametrize('kw', [{}, dict(precision='bfloat16', recompute=1), dict(ranks=4, sharding='fsdp', optimizer='adamw')])
def test_the_largest_batch_fits_and_one_more_does_not(memory, kw):
    c = get_config('12m')
    n = largest_batch(c, memory, **kw)
    assert n == 0 or memory_estimate(c, n, **kw)['total'] <= .9 * memory
    assert n == 4096 or memory_estimate(c, n + 1, **kw)['total'] > .9 * memory


def test_accumulation_adds_up():
    for wanted in (1, 1000, 2**19, 2**21 + 7):
        for rows in (1, 3, 64):
            for ranks in (1, 8):
                a = accumulation(wanted, rows, 256, ranks)
                assert 1 <= a['bs'] <= rows and a['tokens'] == a['bs'] * a['accumulate'] * 256 * ranks
                least = max(1, round(wanted / 256 / ranks)) * 256 * ranks
                assert least <= a['tokens'] <= least + a['accumulate'] * 256 * ranks
    with pytest.raises(UserError, match='room for at least one row'): accumulation(1000, 0, 256)


# ---- devices

def test_device_table():
    assert peak_flops('NVIDIA H100 80GB HBM3') == 989e12 and peak_flops('Tesla T4') == 65e12 and peak_flops('Tesla V100-SXM2-16GB') == 125e12
    for unknown in ('NVIDIA H100 80GB HBM3 MIG 1g.10gb', 'NVIDIA GeForce RTX 4090 Laptop GPU', 'NVIDIA H20', 'NVIDIA A10G', 'NVIDIA RTX 4000 SFF', 'Some CPU', ''):
        assert peak_flops(unknown) is None and find_device(unknown) is None


@pytest.mark.parametrize('name', DEVICES)
def test_rows_of_the_device_table_are_sound(name):
    d = DEVICES[name]
    assert get_device(name) is d and d.source and 1e10 <= d.memory < 3e11 and 1e11 < d.bandwidth < 1e13 and 50 < d.watts <= 1000
    order = [d.tflops[k] for k in ('float32', 'tf32', 'float16', 'fp8') if k in d.tflops]
    assert order == sorted(order) and d.tflops.get('bfloat16') in (None, d.tflops['float16'])
    assert d.peak() == d.tflops['float16'] * 1e12 and (d.price is None or d.price > 0)
    if 'fp8' in d.tflops: assert d.tflops['fp8'] == pytest.approx(2 * d.tflops['float16'], rel=.03)


def test_names_of_torch_find_one_device_each():
    names = {'NVIDIA A100-SXM4-40GB': 'a100-40gb', 'NVIDIA A100-PCIE-40GB': 'a100-40gb-pcie', 'NVIDIA A100-SXM4-80GB': 'a100', 'NVIDIA A100 80GB PCIe': 'a100-pcie', 'NVIDIA A10': 'a10',
             'NVIDIA L4': 'l4', 'NVIDIA L40S': 'l40s', 'NVIDIA GeForce RTX 3090': 'rtx3090', 'NVIDIA GeForce RTX 5090': 'rtx5090', 'NVIDIA H100 PCIe': 'h100-pcie', 'NVIDIA H100 NVL': 'h100-nvl',
             'NVIDIA H200': 'h200', 'NVIDIA B200': 'b200', 'NVIDIA GH200 480GB': 'gh200', 'AMD Instinct MI300X': 'mi300x', 'AMD Instinct MI250X': 'mi250x', 'Tesla V100-SXM2-32GB': 'v100'}
    import re
    for name, short in names.items():
        assert find_device(name) is DEVICES[short], name
        bare = re.sub(r'^(NVIDIA|Tesla|GeForce| )+', '', name)
        assert sum(bool(re.fullmatch(d.pattern, bare)) for d in DEVICES.values()) == 1


# ---- cost

def test_cost_by_hand():
    c = machine_cost('a100', count=4, hours=10, price=2., pue=1.2, grid=.3)
    assert c['money'] == 80 and c['kwh'] == pytest.approx(4 * 10 * .4 * 1.2) and c['kg'] == pytest.approx(c['kwh'] * .3) and c['device_hours'] == 40
    own = Device('mine', 'Mine', dict(float32=1.), 1e9, 1e9, 100., 'measured')
    assert machine_cost(own, hours=2)['money'] is None and machine_cost(own, hours=2, pue=1)['kwh'] == .2
    assert machine_cost('h100', watts=500, pue=1)['kwh'] == .5
    assert carbon_intensity('.25') == .25


@pytest.mark.parametrize('kw', [dict(count=0), dict(hours=0), dict(hours=math.inf), dict(hours=math.nan), dict(pue=.9), dict(price=-1), dict(grid='moon'), dict(grid=-1), dict(grid=500),
    dict(count=1.5), dict(hours=1e300), dict(hours='a'), dict(price=math.nan), dict(pue=math.nan), dict(pue=math.inf), dict(watts=-5)])
def test_cost_refuses(kw):
    with pytest.raises(UserError, match='expected'): machine_cost('h100', **kw)


# ---- compute-optimal

def test_the_fit_is_at_its_minimum():
    for fit in ('besiroglu', 'hoffmann'):
        for flops in (1e18, 1e21, 1e24):
            o = compute_optimal(flops, None, fit)
            assert 6 * o['params'] * o['tokens'] == pytest.approx(flops)
            for k in (.9, 1.1): assert predicted_loss(o['params'] * k, o['tokens'] / k, fit) > o['loss']


def test_chinchilla_against_gopher():
    "The paper's own example: the same operations, a quarter of the size, a lower loss."
    for fit in ('besiroglu', 'hoffmann'): assert predicted_loss(70e9, 1.4e12, fit) < predicted_loss(280e9, 300e9, fit)
    assert predicted_loss(70e9, 1.4e12, 'hoffmann') == pytest.approx(1.6934 + 406.4 / 70e9 ** .3392 + 410.7 / 1.4e12 ** .2849)
    o = compute_optimal(5.76e23)
    assert o['params'] == pytest.approx(67e9, rel=.05) and o['ratio'] == pytest.approx(20)


@pytest.mark.parametrize('bad', [0, -1, math.inf, math.nan])
def test_scaling_refuses(bad):
    with pytest.raises(UserError, match='expected'): compute_optimal(bad)
    with pytest.raises(UserError, match='expected'): compute_optimal(1e20, bad)


def test_the_picture_is_escaped_and_finite():
    p = isoflop_picture(1e20, [('<b>evil', 1e8, 3.), ('x', 2e11, 4.)], '<b>evil')
    assert '<b>evil' not in p and '&lt;b&gt;evil' in p and 'nan' not in p and 'inf' not in p


# ---- plans for this machine

HAND = dict(device='by hand', type='cpu', cores=2, memory=16e9, peak_flops=330e9, peak_source='measured', dtype='float32',
            efficiency=.5, efficiency_at=[[64, .3], [256, .5]])

def test_plan_is_repeatable_and_grows():
    a, b = plan(3, HAND), plan(3, HAND)
    assert a == b == Plan.from_dict(json.loads(json.dumps(a.to_dict())))
    assert a.tokens == a.bs * a.seq_len * a.steps
    assert abs(a.expected['seconds'] / 180 - 1) < .05
    sizes = [plan(m, HAND).expected['params'] for m in (.1, 1, 10, 100, 1000)]
    assert sizes == sorted(sizes) and sizes[-1] > sizes[0]


def test_plan_limits():
    p = plan(100, HAND, tokens_available=1_000_000)
    assert p.expected['passes'] <= 4.1
    small = plan(1000, {**HAND, 'memory': 5e8})
    assert small.expected['memory'] < 3e8
    for bad in (0, -1, float('nan'), float('inf'), 1e300, 'a'):
        with pytest.raises(UserError, match='above 0'): plan(bad, HAND)
    with pytest.raises(UserError, match='give more text'): plan(1, HAND, tokens_available=500)
    for kw in (dict(vocab_size=0), dict(tokens_available=math.nan)):
        with pytest.raises(UserError, match='expected'): plan(1, HAND, **kw)


@pytest.mark.parametrize('k, v', [('bs', 'a'), ('steps', 1.5), ('seed', None), ('config', []), ('minutes', '1'), ('machine', []), ('lr', math.inf), ('tokens', True)])
def test_a_plan_of_other_types_is_refused_by_name(k, v):
    with pytest.raises(UserError, match=f'{k}|n_layer'): Plan.from_dict(plan(1, HAND).to_dict() | {k: v})
    for odd in ([], 5, None):
        with pytest.raises(UserError, match='expected a plan'): Plan.from_dict(odd)


def test_plan_html_is_escaped():
    p = plan(1, {**HAND, 'device': '<script>x</script>'})
    assert '<script>' not in p._repr_html_()


def test_an_older_plan_still_loads():
    "As written before there were families and plans for other machines."
    config = dict(vocab_size=4096, n_layer=2, d_model=64, n_head=2, n_kv_head=1, head_dim=32, d_ff=192, context=256, rope_theta=1e4, norm_eps=1e-6, tie_embeddings=True)
    expected = dict(params=361e3, body=98.8e3, flops=1e12, memory=1e8, seconds=60., tokens_per_s=1e4, tokens_per_param=6., passes=None)
    old = dict(minutes=1, seed=42, machine=HAND, size='pico', config=config, bs=8, seq_len=256, steps=100, tokens=204_800, lr=1e-2, expected=expected)
    p = Plan.from_dict(old)
    assert 'pico' in str(p) and p.table() == '' and p.picture() == '' and p.to_dict() == old


# ---- plans for other machines

def test_little_text_says_that_it_is_the_limit():
    p = plan(device='h100', hours=1, vocab_size=800, tokens_available=400_000)
    assert 'the text' in dict(p.rows())['Limit'] and 'unknown' in dict(p.rows())['Expected loss']
    assert p.picture() == '' and plan(device='h100', hours=1).picture()
    assert [r[4] for r in p.size_rows()] == ['-'] * len(p.size_rows()) and p.size_rows()[0][0] == 'pico' # the small ones are offered then
    assert 'Limit' not in dict(plan(device='h100', hours=1).rows())


def test_float16_is_not_spread():
    "Its scale would have to be agreed on by all ranks; `parallel` refuses it."
    assert plan(device='v100', count=8, hours=100).expected['sharding'] == 'ddp'
    with pytest.raises(UserError, match='float16'): plan(device='v100', count=8, hours=100, sharding='fsdp')


@pytest.mark.parametrize('kw', [dict(recompute=-1), dict(recompute=1.5), dict(seed='a'), dict(seed=2 ** 64)])
def test_what_no_run_could_take_is_refused_by_the_plan(kw):
    with pytest.raises(UserError, match=next(iter(kw))): plan(device='h100', hours=1, **kw)


def test_far_plan_holds_together():
    p = plan(device='h100', count=8, hours=24)
    e = p.expected
    assert p == Plan.from_dict(json.loads(json.dumps(p.to_dict())))
    assert p.tokens == p.bs * p.seq_len * p.steps and p.bs == e['micro'] * e['accumulate'] * 8
    assert e['memory'] <= .9 * 80e9 and e['seconds'] == pytest.approx(86400, rel=.01)
    assert e['tokens_per_s'] * flops_per_token(ModelConfig.from_dict(p.config)) <= 8 * 989e12 * .4 * 1.0001
    assert e['money'] == pytest.approx(8 * e['seconds'] / 3600 * 3) and e['kwh'] == pytest.approx(8 * e['seconds'] / 3600 * .7 * 1.58)
    larger = [s for s in e['sizes'] if s['fits'] and s['params'] > e['params']]
    assert larger and all(s['ratio'] < 20 for s in larger) and p.tokens / e['params'] >= 19.9


def test_more_hours_and_devices_give_larger_models():
    sizes = [plan(device='a100', count=n, hours=h).expected['params'] for n, h in ((1, 2), (1, 24), (8, 24), (64, 240))]
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1]
    assert plan(device='h100', count=8, hours=24, ratio=200).expected['params'] < plan(device='h100', count=8, hours=24).expected['params']


def test_choices_of_a_far_plan():
    p = plan(device='h100', count=8, hours=24, size='llama3.1-8b', precision='fp8')
    assert p.size == 'llama3.1-8b' and p.expected['sharding'] == 'fsdp' and p.machine['peak_flops'] == 8 * 1979e12
    kept, twice = (plan(device='h100', hours=10, size='350m', recompute=k) for k in (0, 1))
    assert kept.expected['memory'] != twice.expected['memory'] and twice.tokens < kept.tokens
    assert plan(device='t4', hours=5, price=.3).expected['precision'] == 'float16'
    assert plan(device='t4', hours=5).expected['money'] is None and 'unknown' in str(plan(device='t4', hours=5))
    few = plan(device='h100', hours=100, tokens_available=50_000_000)
    assert few.expected['passes'] <= 4.1 and few.expected['seconds'] < 100 * 3600
    assert few.expected['money'] == pytest.approx(3 * few.expected['seconds'] / 3600)
    assert plan(device='h100', hours=24, vocab_size=8192).config['vocab_size'] == 8192


@pytest.mark.parametrize('kw, says', [
    (dict(device='h20'), 'expected a device'), (dict(device='h100', hours=0), 'hours above 0'), (dict(device='h100', count=0), 'one device'),
    (dict(device='t4', precision='fp8'), 'on T4'), (dict(device='h100', mfu=1.5), 'share of the peak'), (dict(device='h100', ratio=0), 'tokens a parameter'),
    (dict(device='h100', step_tokens=-1), 'tokens a step'), (dict(device='h100', tokens_available=math.nan), 'tokens of text'), (dict(device='h100', size='encoder-nano'), 'a decoder'),
    (dict(device='t4', size='qwen3-8b'), 'fits T4'), (dict(device='h100', size='huge'), "got 'huge'"), (dict(device='h100', minutes=3), 'give hours=0.05'),
    (dict(minutes=3, count=8), 'got count'), ({}, 'got neither'), (dict(device='h100', tokens_available=100), 'give more text'), (dict(device='h100', fit='mine'), 'a fit among')])
def test_far_plan_refuses(kw, says):
    with pytest.raises(UserError, match=says): plan(**kw)


def test_far_plan_html_is_escaped():
    d = Device('<script>x</script>', 'X', dict(float32=10., bfloat16=100.), 80e9, 1e12, 300., '<img src=x>', 1.)
    page = plan(device=d, hours=10)._repr_html_()
    assert '<script' not in page and '<img' not in page and '<svg' in page


def test_a_model_is_divided_only_where_it_must_be():
    h100 = DEVICES['h100']
    assert arrange(get_config('125m'), h100, 8) == dict(rows=arrange(get_config('125m'), h100, 8)['rows'], sharding='ddp', recompute=0)
    assert arrange(get_config('qwen3-8b'), h100, 8)['sharding'] == 'fsdp' and arrange(get_config('qwen3-8b'), h100, 1) is None


def test_commands_say_it_in_one_line():
    plan_ = Path(sys.executable).with_name('llmbook-plan')
    def run(*a): return subprocess.run([plan_, *a], capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    good = run('--device', 'h100', '--count', '8', '--hours', '24', '--price', '2')
    assert good.returncode == 0 and 'Carbon' in good.stdout and 'hours to the ratio' in good.stdout
    r, w = os.pipe(); os.close(r)                                       # as under `| head`
    gone = subprocess.run([plan_, '--device', 'h100'], stdout=w, stderr=subprocess.PIPE, text=True); os.close(w)
    assert gone.returncode == 141 and gone.stderr == ''
    for bad, says in ((('--device', 'abacus'), "got 'abacus'"), (('--count', '8'), 'expected a device'), (('--device', 'h100', '--minutes', '5'), 'give hours=0.0833')):
        r = run(*bad)
        assert r.returncode != 0 and r.stderr.strip().count('\n') == 0 and says in r.stderr, r.stderr


# ---- time

def test_expected_rate_by_hand():
    c = get_config('medium')
    assert expected_rate(c, HAND) == pytest.approx(.8 * .5 * 330e9 / flops_per_token(c))
    assert expected_rate(c, HAND | dict(peak_flops=660e9)) == pytest.approx(2 * expected_rate(c, HAND))
