"""Train two steps and print how many bytes the process held more at its peak than after a tiny model's step.

    python train_memory.py CONFIG BATCH RECOMPUTE OPTIMIZER     (CONFIG: JSON of a `ModelConfig`)
"""
import json, sys
from pathlib import Path
import psutil, torch
from llmbook.model.config import ModelConfig
from llmbook.model.transformer import Transformer
from llmbook.train.learner import keep_heap
from llmbook.train.loss import LMLoss
from llmbook.train.optim import lm_opt


def train(c, bs, steps, recompute, muon):
    model = Transformer(c).set_recompute(recompute)
    opt = lm_opt(model, muon=muon)(list(model.parameters()), lr=1e-3)
    loss = LMLoss(model.head, 1024)
    for _ in range(steps):
        x = torch.randint(0, c.vocab_size, (bs, c.context))
        loss(model(x), x).backward()
        opt.step()
        opt.zero_grad()


def peak():
    "Return this process's own peak; that of `resource` begins with the size of the process that started it."
    status = Path('/proc/self/status').read_text()
    return int(status.split('VmHWM:')[1].split()[0]) * 1024


if __name__ == '__main__':
    config, bs, recompute, optimizer = sys.argv[1:]
    keep_heap(recompute == '0') # as a Learner does
    train(ModelConfig(n_layer=1, d_model=64, vocab_size=64, context=16), 1, 1, 0, True)
    base = psutil.Process().memory_info().rss
    train(ModelConfig(**json.loads(config)), int(bs), 2, int(recompute), optimizer == 'muon')
    print(peak() - base)
