"Greedy generation against `transformers` with the same architecture, in turns: batch 1 and batch 16."
import statistics, time
import torch
from llmbook.core import import_transformers, set_seed
from llmbook.generate.text import generate_ids
from llmbook.model.config import ModelConfig
from llmbook.model.transformer import Transformer

NEW, ROUNDS = 64, 3
GOALS = {1: 2.5, 16: 2.} # ratio by batch


def sides():
    "Return two functions from prompts to new tokens: ours and the one of transformers."
    set_seed(0)
    model = Transformer(ModelConfig(vocab_size=4096, n_layer=6, d_model=384, n_head=6, n_kv_head=2, context=256)).eval()
    tf = import_transformers()
    config = tf.Qwen3Config(vocab_size=4096, hidden_size=384, intermediate_size=model.config.d_ff, num_hidden_layers=6,
                            num_attention_heads=6, num_key_value_heads=2, head_dim=64,
                            max_position_embeddings=256, tie_word_embeddings=True)
    their_model = tf.Qwen3ForCausalLM(config).eval()

    def ours(prompts): return generate_ids(model, prompts, NEW, temperature=0, stop=None)

    def theirs(prompts):
        ids = torch.tensor(prompts)
        with torch.inference_mode():
            return their_model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW,
                                        min_new_tokens=NEW, do_sample=False, pad_token_id=1)
    return ours, theirs


def clock(f, prompts):
    start = time.perf_counter()
    f(prompts)
    return time.perf_counter() - start


if __name__ == '__main__':
    ours, theirs = sides()
    for batch, goal in GOALS.items():
        prompts = [[5 + i for i in range(16)] for _ in range(batch)]
        ours(prompts)
        theirs(prompts)
        times = [(clock(ours, prompts), clock(theirs, prompts)) for _ in range(ROUNDS)]
        our_speed, their_speed = (NEW * batch / statistics.median(t) for t in zip(*times))
        print(f'batch {batch}: ours {our_speed:.0f} tokens/s, transformers {their_speed:.0f}')
        print(f'generate_{batch}: ratio {statistics.median(b / a for a, b in times):.2f} goal {goal}')
