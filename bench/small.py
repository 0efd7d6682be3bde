"""A step of a small model, in tokens per second of processor time: ours against a plain GPT-2 such as nanoGPT trains.

Both have 0.8M parameters and run on one thread. The plain model is written the usual way: one matrix for queries, keys
and values, torch's attention, layer norms, logits for every position, cross-entropy, fused AdamW.
GPT-2's GELU is the approximation by tanh, which torch computes four times slower on a CPU than the exact one that
nanoGPT takes; both are shown, and the ratio is that of equal models.
"""
import statistics, time
import torch, torch.nn.functional as F
from torch import nn

V, T, BS = 65, 64, 12
LAYERS, WIDTH, HEADS = 4, 128, 4
STEPS, ROUNDS = 25, 7


class PlainBlock(nn.Module):
    def __init__(self, gelu):
        super().__init__()
        self.gelu = gelu
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x):
        B, T, D = x.shape
        heads = self.qkv(self.norm1(x)).view(B, T, 3, HEADS, D // HEADS)
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(B, T, D))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate=self.gelu))


class PlainGPT(nn.Module):
    def __init__(self, gelu):
        super().__init__()
        self.embed, self.pos = nn.Embedding(V, WIDTH), nn.Embedding(T, WIDTH)
        self.blocks = nn.ModuleList(PlainBlock(gelu) for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, V, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x):
        h = self.embed(x) + self.pos.weight
        for block in self.blocks: h = block(h)
        return self.head(self.norm(h))


def plain(gelu):
    "Return the plain side's model, its loss and its optimiser."
    model = PlainGPT(gelu)
    def loss(x, y): return F.cross_entropy(model(x).flatten(0, 1), y.flatten())
    return model, loss, torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)


def ours(family, muon):
    "Return our side's model, its loss and its optimiser."
    from llmbook.model.config import ModelConfig
    from llmbook.model.transformer import Transformer
    from llmbook.train.loss import LMLoss
    from llmbook.train.optim import lm_opt
    size = dict(n_layer=LAYERS, d_model=WIDTH, n_head=HEADS, n_kv_head=HEADS)
    config = ModelConfig(vocab_size=V, context=T, family=family, **size)
    model = Transformer(config)
    nats = LMLoss(model.head)
    opt = lm_opt(model, muon=muon)(list(model.parameters()), lr=1e-3)
    return model, lambda x, y: nats(model(x), y), opt


def rate(side, batches):
    "Train for some steps and return the tokens per second of processor time."
    model, loss, opt = side
    start = time.process_time()
    for x, y in batches:
        loss(x, y).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.)
        opt.step()
        opt.zero_grad()
    return len(batches) * BS * T / (time.process_time() - start)


if __name__ == '__main__':
    torch.set_num_threads(1)
    torch.manual_seed(0)
    def ids(): return torch.randint(V, (BS, T))
    batches = [(ids(), ids()) for _ in range(STEPS)]
    sides = {
        'plain GPT-2': plain('tanh'),
        'plain as nanoGPT': plain('none'),
        'ours as GPT-2': ours('gpt2', False),
        'ours as Qwen3': ours('qwen3', False),
        'ours as GPT-2, Muon': ours('gpt2', True),
        'ours as Qwen3, Muon': ours('qwen3', True)}
    for side in sides.values(): rate(side, batches[:5])
    rounds = [{name: rate(side, batches) for name, side in sides.items()} for _ in range(ROUNDS)]
    for name, (model, _, _) in sides.items():
        size = sum(p.numel() for p in model.parameters())
        tokens_per_s = statistics.median(r[name] for r in rounds)
        print(f'{name:20} {size / 1e6:.2f}M parameters {tokens_per_s:8,.0f} tokens per second of processor time')
    ratios = [r['ours as GPT-2'] / r['plain GPT-2'] for r in rounds]
    print(f'small: ratio {statistics.median(ratios):.3f} goal 1.0')
