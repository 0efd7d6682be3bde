"""What comparisons of two trainers share: the clock, a process for each side, and the sides of transformers and TRL.

transformers, TRL and fastai are imported by the functions that need them: what one side imports takes no memory of
another's process.
"""
import json, resource, statistics, subprocess, sys, tempfile, time


class Clock:
    "The time of each step, from the end of one to the end of the next, for steps of equally many tokens."
    def __init__(self, tokens, warm):
        self.tokens, self.warm = tokens, warm
        self.at = []

    def tick(self): self.at.append(time.perf_counter())

    def rate(self):
        "Return the tokens per second of the median step after the warm-up."
        after_warm_up = self.at[self.warm:]
        seconds = [b - a for a, b in zip(after_warm_up, after_warm_up[1:])]
        return self.tokens / statistics.median(seconds)


# ---- a process for each side ---------------------------------------------------------------------------------------

def peak():
    "Return the most memory that this process has held, in bytes."
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(side, clock, *options):
    "Train one side in this process and print what it took; a side returns the peak of memory before its training."
    before = side(clock, *options)
    print(json.dumps(dict(rate=clock.rate(), peak=peak(), step=peak() - before)))


def child(script, *words):
    "Measure one side in a process of its own: the script with these words behind it."
    r = subprocess.run([sys.executable, script, *words], capture_output=True, text=True)
    if r.returncode: sys.exit(r.stderr[-2000:])
    return json.loads(r.stdout.splitlines()[-1])


def one_round(script, sides, *words):
    "Measure each side once, one after the other."
    return {side: child(script, side, *words) for side in sides}


def median_ratio(rounds, figure, above, below):
    "Return the median over the rounds of a figure of one side by that of another."
    ratios = [r[above][figure] / r[below][figure] for r in rounds]
    return statistics.median(ratios)


# ---- ours and theirs -----------------------------------------------------------------------------------------------

def learner_ticks(tick):
    "Return a callback of the Learner that calls a function after each step."
    from fastai.callback.core import Callback
    class Tick(Callback):
        order = 90
        def after_batch(self): tick()
    return Tick()


def fit(learn):
    "Train for one pass without a bar; return the peak of memory before."
    before = peak()
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    return before


def quiet_transformers():
    "Return transformers, silent but for errors."
    from llmbook.core import import_transformers
    tf = import_transformers()
    tf.utils.logging.set_verbosity_error()
    return tf


def trainer_ticks(tick):
    "Return a callback of transformers' Trainer that calls a function after each step."
    class Tick(quiet_transformers().TrainerCallback):
        def on_step_end(self, *args, **kwargs): tick()
    return Tick()


def trainer_arguments(kind, **options):
    "Return a Trainer's arguments on the CPU: AdamW as we take it, gradients clipped to 1, nothing saved or reported."
    return kind(tempfile.mkdtemp(), optim='adamw_torch_fused', max_grad_norm=1., use_cpu=True, save_strategy='no',
                logging_steps=10, disable_tqdm=True, report_to=[], **options)


def trl_arguments(**options):
    "Return TRL's arguments as close to ours as they go: no half precision, every activation kept."
    import trl
    return trainer_arguments(trl.SFTConfig, bf16=False, gradient_checkpointing=False, **options)


def their_llama(shape):
    "Return a Llama of transformers in float32, from the sizes that ours is made from."
    from llmbook.model.config import ModelConfig
    from llmbook.model.hf_config import hf_config
    tf = quiet_transformers()
    config = hf_config(ModelConfig(**shape))
    return tf.LlamaForCausalLM(tf.LlamaConfig(**config)).float()


def their_tokenizer():
    "Return a tokenizer for TRL, which wants one though the rows are ids already."
    from llmbook.tokens.tokenizer import train_tokenizer
    own = train_tokenizer(['a text'], 300)
    tf = quiet_transformers()
    return tf.PreTrainedTokenizerFast(tokenizer_object=own, eos_token='<|endoftext|>', pad_token='<|pad|>')


def train(trainer):
    "Train with transformers' Trainer, or TRL's, without its printing; return the peak of memory before."
    trainer.remove_callback(quiet_transformers().trainer_callback.PrinterCallback)
    before = peak()
    trainer.train()
    return before
