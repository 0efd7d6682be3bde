"Greedy generation against `transformers` with the same architecture, in turns: batch 1 and batch 16."
import statistics, time
import torch
from llmbook.core import import_transformers, set_seed
from llmbook.generate.text import generate_ids
from llmbook.model.config import ModelConfig
from llmbook.model.transformer import Transformer

NEW, ROUNDS = 64, 3


def sides():
    "Two functions from prompts to new tokens: ours and transformers'."
    set_seed(0)
    model = Transformer(ModelConfig(vocab_size=4096, n_layer=6, d_model=384, n_head=6, n_kv_head=2, context=256)).eval()
    theirs = import_transformers().Qwen3ForCausalLM(import_transformers().Qwen3Config(
        vocab_size=4096, hidden_size=384, intermediate_size=model.config.d_ff, num_hidden_layers=6, num_attention_heads=6,
        num_key_value_heads=2, head_dim=64, max_position_embeddings=256, tie_word_embeddings=True)).eval()
    ours = lambda p: generate_ids(model, p, NEW, temperature=0, stop=None)
    def other(p):
        ids = torch.tensor(p)
        with torch.inference_mode(): return theirs.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, min_new_tokens=NEW,
                                                            do_sample=False, pad_token_id=1)
    return ours, other


def clock(f, p):
    start = time.perf_counter(); f(p)
    return time.perf_counter() - start


if __name__ == '__main__':
    ours, other = sides()
    for batch, goal in ((1, 2.5), (16, 2.)):
        p = [[5 + i for i in range(16)] for _ in range(batch)]
        ours(p), other(p)
        times = [(clock(ours, p), clock(other, p)) for _ in range(ROUNDS)]
        a, b = (NEW * batch / statistics.median(t) for t in zip(*times))
        print(f'batch {batch}: ours {a:.0f} tokens/s, transformers {b:.0f}')
        print(f'generate_{batch}: ratio {statistics.median(b / a for a, b in times):.2f} goal {goal}')
