"prepare_source.py SOURCE OUT OPTIONS: prepare a folder; OPTIONS is JSON."
import json, sys
from llmbook.prepare.pipeline import prepare

if __name__ == '__main__': prepare(sys.argv[1], sys.argv[2], progress=False, **json.loads(sys.argv[3]))
