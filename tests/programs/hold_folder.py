"hold_folder.py FOLDER: take a folder, say so, and hold it until a line comes in."
import sys
from llmbook.base.owner import own_folder

with own_folder(sys.argv[1], 'pre-training'):
    print('mine', flush=True)
    input()
