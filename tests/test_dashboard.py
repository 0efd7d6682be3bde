"""The dashboard: what it shows, that it changes nothing, and its buttons, pressed in a real browser while a cell trains.

The browser test runs JupyterLab in a headless Chromium; it skips where there is no chromedriver (.ci/run installs it).
"""
import re, sys, threading, time, warnings
from pathlib import Path
import pytest, torch
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.callback.core import Callback
from lab import Page, browser_only, jupyter_lab
from llmbook.core import UserError
from llmbook.curves import chart, column, history_picture, smooth, stretches
from llmbook.dashboard import Dashboard, HtmlScreen, TextScreen, WidgetScreen, dashboard_line, dashboard_page
from llmbook.model.config import ModelConfig
from llmbook.train.checkpoint import Checkpoint
from llmbook.train.pretrain import lm_learner
from llmbook.train.telemetry import Samples, Telemetry

EVIL = '<script>document.title="owned"</script><img src=x onerror="document.title=\'owned\'">'
CONFIG = ModelConfig(vocab_size=64, n_layer=1, d_model=32, n_head=2, context=32)


class Batches:
    "Batches that depend on their number alone."
    def __init__(self, n, rows=4): self.n, self.rows, self.at = n, rows, 0
    def seek(self, step): self.at = step % self.n
    def __len__(self): return self.n
    def __iter__(self):
        at, self.at = self.at, 0
        for i in range(at, self.n):
            x = torch.randint(0, 64, (self.rows, 33), generator=torch.Generator().manual_seed(i)).sort(1).values
            yield x[:, :-1], x[:, 1:]


def tiny(n=30, cbs=(), rows=4, **kwargs):
    "A learner of a few thousand weights."
    return lm_learner(DataLoaders(Batches(n, rows), Batches(3)), CONFIG, lr=3e-3, cbs=[*cbs], **kwargs)

def writes(text=EVIL): return Samples(lambda model, prompts: [p + text for p in prompts], ['Once', 'def'])
def weights(learn): return torch.cat([p.detach().flatten() for p in learn.model.parameters()])
def same(a, b): return torch.equal(weights(a), weights(b))


class At(Callback):
    "Do something after a step of training, as a hand on a button might."
    order = 57
    def __init__(self, step, do): self.step, self.do = step, do
    def after_batch(self):
        if self.training and self.train_iter == self.step: self.do(self.learn)
