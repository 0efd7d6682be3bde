"_prepare.py SOURCE OUT: prepare a folder with two workers, for a process of its own."
import sys
from llmbook.prepare.pipeline import prepare

if __name__ == '__main__': prepare(sys.argv[1], sys.argv[2], workers=2, preset='default', progress=False)
