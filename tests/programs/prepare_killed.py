"prepare_killed.py SOURCE OUT OPTIONS WHERE: prepare a folder, and die when the function WHERE is called."
import json, os, signal, sys
import llmbook.prepare.pipeline as pipeline


def die(*args, **kwargs): os.kill(os.getpid(), signal.SIGKILL)


def die_at_the_second_shard():
    flush = pipeline.ShardWriter._flush
    written = []
    def counted(self):
        if written: die()
        written.append(self)
        flush(self)
    pipeline.ShardWriter._flush = counted


if __name__ == '__main__':
    source, out, options, where = sys.argv[1:]
    if where == 'second shard': die_at_the_second_shard()
    else: setattr(pipeline, where, die)
    pipeline.prepare(source, out, progress=False, **json.loads(options))
