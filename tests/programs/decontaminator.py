"decontaminator.py PICKLED ITEM...: print the fingerprints of a pickled and a new `Decontaminator`, and what one finds."
import pickle, sys
from llmbook.dedup.decontaminate import Decontaminator

if __name__ == '__main__':
    pickled, *items = sys.argv[1:]
    sent = pickle.loads(bytes.fromhex(pickled))
    assert 'torch' not in sys.modules
    assert 'fastai' not in sys.modules
    print(sent.fingerprint, Decontaminator(dict(a=items)).fingerprint, sent.overlap(items[0]))
