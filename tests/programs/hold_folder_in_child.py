"hold_folder_in_child.py FOLDER: take a folder, fork a child that waits for input, and be killed."
import os, sys
from llmbook.base.owner import own_folder

with own_folder(sys.argv[1]):
    read, write = os.pipe()
    heard, began = os.pipe()
    child = os.fork()
    if not child:
        os.write(began, b'x') # what Python does after a fork is done
        os.close(write)
        os.read(read, 1) # until the parent is gone
        input()
        os._exit(0)
    os.read(heard, 1)
    print('mine', flush=True)
    os.kill(os.getpid(), 9)
