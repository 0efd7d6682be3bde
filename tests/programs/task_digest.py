"Print a digest of the two tasks and their batches, to compare processes."
import hashlib
from llmbook.tokens.tokenizer import train_tokenizer
from llmbook.tune.tasks import TaskLoader, encode_examples, get_task


def digest():
    out = hashlib.sha256()
    for name in ('translation', 'summarization'):
        task = get_task(name, n=200)
        for split in ('train', 'valid', 'test'): out.update(repr(task.splits[split]).encode())
        tok = train_tokenizer([e.prompt + e.answer for e in task.splits['train']], 400)
        rows, _ = encode_examples(tok, task.splits['train'], 400)
        dl = TaskLoader(rows, bs=4, seed=7)
        for i in range(60):
            _, y = dl.batch(i)
            out.update(y.numpy().tobytes())
    return out.hexdigest()


if __name__ == '__main__': print(digest())
