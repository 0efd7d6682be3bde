"Other libraries, and tokenizers as they make them."
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from llmbook.core import import_transformers


def quiet_transformers():
    "Return transformers without its progress bars."
    tf = import_transformers()
    tf.utils.logging.disable_progress_bar()
    return tf


def byte_level(prefix=False):
    "Make a tokenizer of bytes, not trained yet; `prefix` puts a space before a text."
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tok.decoder = decoders.ByteLevel()
    return tok


def gpt2_like(texts, vocab_size, *specials):
    "Train a tokenizer as GPT-2 has it: bytes from 0 on, special tokens behind all others."
    tok = byte_level()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    tok.train_from_iterator(texts, trainer)
    tok.add_special_tokens(list(specials))
    return tok
