"""Train on several ranks, of which rank 1 kills itself once: `train_and_be_killed.py OUT`.

It trains the Learner of test_parallel.py, with checkpoints in OUT/c; the weights at the end are OUT/end."""
import os, signal, sys
from pathlib import Path
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from fastai.callback.core import Callback
from safetensors.torch import save_file
from llmbook.distributed.world import join, rank
from llmbook.parallel.checkpoint import ShardedCheckpoint
from test_parallel import learner

join('cpu', timeout=30)
out = Path(sys.argv[1])


class Killed(Callback):
    order, run_valid = 90, False
    def after_batch(self):
        if self.train_iter != 4 or rank() != 1 or (out/'killed').exists(): return
        (out/'killed').touch()
        os.kill(os.getpid(), signal.SIGKILL)


checkpoint = ShardedCheckpoint(out/'c', every=3, final=False, blocking=True)
learn = learner('ddp', cbs=[checkpoint, Killed()])
with learn.no_bar(), learn.no_logging(): learn.fit(1)
if rank() == 0:
    print('resumed at', learn.checkpoint.resumed)
    save_file({name: p.detach().clone() for name, p in learn.model.named_parameters()}, out/'end')
