"The lines of the start page run as they stand there: train, save, load elsewhere, own text, own pairs, hand over."
import importlib.util, inspect, json, os, re, subprocess, sys
from pathlib import Path
from pydoc_data.topics import topics
import pytest
from llmbook import cli

ROOT = Path(__file__).resolve().parent.parent
BLOCKS = re.findall(r'^```python\n(.*?)^```', (ROOT/'README.md').read_text(encoding='utf-8'), re.S | re.M)
COMMANDS = re.findall(r'^llmbook-\S+ .*$', (ROOT/'README.md').read_text(encoding='utf-8'), re.M)
SMALLER = {"prepare(['embedded']": "prepare(['embedded:400000']", 'minutes=5': 'minutes=.05',
           ', cbs=Dashboard()': ", cbs=Dashboard('text')"}
PLACES = ['Kenya', 'Norway', 'Peru', 'Nepal', 'Chad', 'Cuba', 'Oman', 'Fiji']


def smaller(block):
    "Return a block with less text and less time."
    for words, fewer in SMALLER.items(): block = block.replace(words, fewer)
    return block


def run(code, folder):
    "Run lines in a process of their own, as a reader at another machine would."
    env = {**os.environ, 'HF_HUB_OFFLINE': '1', 'MPLBACKEND': 'agg', 'PYTHONPATH': str(ROOT)}
    done = subprocess.run([sys.executable, '-c', code], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f'{code}\n{done.stdout}\n{done.stderr[-3000:]}'
    return done.stdout


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "Return a folder in which the two blocks that train have run."
    to = tmp_path_factory.mktemp('reader')
    (to/'my_texts').mkdir()
    for name, words in topics.items():
        (to/'my_texts'/f'{name}.txt').write_text(words, encoding='utf-8')
    pairs = []
    for place in PLACES:
        for i in range(12):
            pairs.append(dict(prompt=f'What is place {i} of {place}?', answer=f'{place} {i}'))
    (to/'my_pairs.jsonl').write_text('\n'.join(map(json.dumps, pairs)), encoding='utf-8')
    run(smaller(train), to)
    run(smaller(own_text + own_pairs), to)
    return to


train, elsewhere, transformers_alone, own_text, own_pairs, colleague = BLOCKS


def test_the_learning_rate_of_the_plan_is_used():
    assert 'lr=p.lr' in train
    assert 'lr=p.lr' in own_text


def test_a_saved_model_opens_elsewhere(folder): run(elsewhere, folder)


@pytest.mark.skipif(importlib.util.find_spec('torchvision') is not None and subprocess.run(
    [sys.executable, '-c', 'import torchvision'], capture_output=True).returncode != 0,
    reason='torchvision was built for another torch; an environment that `make` builds has it mended')
def test_a_saved_model_opens_in_transformers_alone(folder): assert 'def read_' in run(transformers_alone, folder)


def test_the_colleague_asks(folder): run(colleague, folder)


def test_the_commands_of_the_start_page_know_their_options():
    assert len(COMMANDS) == 4
    for command in COMMANDS:
        name, *words = command.split()
        options = inspect.signature(getattr(cli, name.replace('-', '_'))).parameters
        assert {word.removeprefix('--') for word in words if word.startswith('--')} <= set(options), command
