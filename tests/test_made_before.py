"""What version 0.1.0 wrote opens, resumes and counts as done.

Commit 03f2a0c wrote `tests/made_by_0_1_0` once. It prepared `text` into `prepared` and made a plan for it, finished one
run and stopped another at step 13 of 20, and took a whole journey through the same plan into `run`.
"""
import json, os, platform, shutil
from pathlib import Path
import pytest
import torch
from llmbook.generate.text import generate
from llmbook.journey import Settings, journey
from llmbook.model.hf import load_pretrained
from llmbook.plan.record import read_plan
from llmbook.prepare.pipeline import prepare
from llmbook.pretrain.run import pretrain
from llmbook.tokens.loaders import lm_dls
from llmbook.tokens.tokenizer import load_tokenizer

MADE = Path(__file__).parent/'made_by_0_1_0'
TIME = 1767225600 # seconds; when the text was written, which is a part of what identifies a source
PYTHON = '3.11.7' # that made the folder; a preparation by another version is another one
EXPECTED = json.loads((MADE/'expected.json').read_text(encoding='utf-8'))


@pytest.fixture
def made(tmp_path, monkeypatch):
    "Copy the folder and make the copy the working directory."
    shutil.copytree(MADE, tmp_path/'made')
    monkeypatch.chdir(tmp_path/'made')
    os.utime('text/sentences.jsonl', (TIME, TIME))
    monkeypatch.setattr(platform, 'python_version', lambda: PYTHON)
    return tmp_path/'made'


def written(folder):
    "Return when each file of a folder was written."
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_prepared_data_counts_as_done(made):
    before = written(made/'prepared')
    card = prepare(['text'], 'prepared', vocab_size=400)
    assert card['totals']['kept'] == 80
    assert written(made/'prepared') == before


def test_prepared_data_opens(made):
    x, y = next(iter(lm_dls('prepared', 4, 32, steps=2).train))
    assert x.shape == y.shape == (4, 32)
    assert torch.equal(x[:, 1:], y[:, :-1])


def test_a_stopped_run_resumes(made):
    learn = pretrain('prepared', read_plan('plan.json'), 'stopped', evaluations=2)
    assert learn.checkpoint.resumed == 13
    torch.testing.assert_close(learn.recorder.values[-1], EXPECTED['values'][-1], rtol=1e-4, atol=1e-4)


def test_a_finished_run_counts_as_done(made):
    learn = pretrain('prepared', read_plan('plan.json'), 'finished', evaluations=2)
    assert learn.checkpoint.resumed == 20
    torch.testing.assert_close(learn.recorder.values[-1], EXPECTED['values'][-1], rtol=1e-4, atol=1e-4)


def test_a_model_opens_and_writes_the_same(made):
    model, tok = load_pretrained('model', device='cpu')
    assert generate(model, tok, ['The cat'], max_new_tokens=12, temperature=0) == EXPECTED['text']
    assert load_tokenizer('prepared').get_vocab() == tok.get_vocab()


def test_a_run_is_done(made):
    settings = Settings(sources='text', plan='plan.json', max_bytes=300_000, vocab_size=400, tasks=('translation',),
                        test_pairs=4, toxicity_prompts=3, test_bytes=2000)
    said = []
    journey('run', settings, progress=said.append)
    assert len(said) == 7
    assert all('done before' in line for line in said)
