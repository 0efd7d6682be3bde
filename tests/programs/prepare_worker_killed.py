"""prepare_worker_killed.py SOURCE OUT OPTIONS DIED: kill the worker that reads unit 2.

It is killed once, and the file DIED is made; if DIED is empty, it is killed each time.
"""
import json, os, signal, sys
import llmbook.prepare.pipeline as pipeline
from llmbook.prepare.passes import read_stage

SOURCE, OUT, OPTIONS, DIED = sys.argv[1:]


def fragile(recipe, job, died=DIED):
    if job[0] == 2 and not (died and os.path.exists(died)):
        if died: open(died, 'w').close()
        os.kill(os.getpid(), signal.SIGKILL)
    return read_stage(recipe, job)


if __name__ == '__main__':
    pipeline.read_stage = fragile
    try: pipeline.prepare(SOURCE, OUT, progress=False, workers=2, **json.loads(OPTIONS))
    except pipeline.UserError as e: print('refused:', e)
