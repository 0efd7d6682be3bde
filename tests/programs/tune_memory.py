"""Tune for two steps and print how many bytes the process held more at its peak than before, and what was predicted.

    python tune_memory.py CONFIG BATCH METHOD BASE     (CONFIG: JSON of a `ModelConfig`; BASE: nf4, int8 or none)
"""
import json, sys
import psutil, torch
from train_memory import peak
from llmbook.model.config import ModelConfig
from llmbook.model.transformer import Transformer
from llmbook.train.learner import keep_heap
from llmbook.train.optim import lm_opt
from llmbook.tune.pack import AnswerLoss
from llmbook.tune.sft import set_method, tuning_cost


def prepared(config, method, base): return set_method(Transformer(ModelConfig(**config)), method, base)


def tune(model, bs):
    "Train two steps on rows in which every third token is a target; return the targets of a batch."
    trained = [p for p in model.parameters() if p.requires_grad]
    opt = lm_opt(model, muon=False)(trained, lr=1e-3)
    loss = AnswerLoss(model.head, 1024)
    c = model.config
    is_target = torch.arange(c.context) % 3 == 0
    for _ in range(2):
        x = torch.randint(0, c.vocab_size, (bs, c.context))
        y = torch.where(is_target, x, -100)
        loss(model(x), y).backward()
        opt.step()
        opt.zero_grad()
    return bs * int(is_target.sum())


if __name__ == '__main__':
    config, bs, method, base = json.loads(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
    base = None if base == 'none' else base
    keep_heap()
    tune(prepared(dict(n_layer=1, d_model=64, vocab_size=64, context=16), method, base), 1)
    before = psutil.Process().memory_info().rss
    model = prepared(config, method, base)
    targets = tune(model, bs)
    predicted = tuning_cost(model, bs * model.config.context, targets)['total']
    print(peak() - before, predicted)
