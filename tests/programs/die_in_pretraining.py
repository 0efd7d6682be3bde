"""A `sitecustomize` that kills llmbook-run once, at step 12 of pre-training or earlier, right after a checkpoint.

Python reads a module of that name at its start. The file that LLMBOOK_TEST_DIED names is made when it happens."""
import os, signal, sys
from pathlib import Path


def step_to_die(learn):
    "Return 12, or half of a shorter run; one less at the end of an epoch, which is saved after its validation."
    epoch = len(learn.dls.train)
    step = min(12, learn.n_epoch * epoch // 2)
    return step if step % epoch else step - 1


def die_once(telemetry, died):
    real = telemetry.after_batch
    def after_batch(self):
        real(self)
        if not self.training or self.train_iter != step_to_die(self.learn) or died.exists(): return
        died.touch()
        self.learn.checkpoint.save()
        os.kill(os.getpid(), signal.SIGKILL)
    telemetry.after_batch = after_batch


if sys.argv[0].endswith('llmbook-run'):
    from llmbook.train.telemetry import Telemetry
    die_once(Telemetry, Path(os.environ['LLMBOOK_TEST_DIED']))
