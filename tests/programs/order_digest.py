"order_digest.py: print a digest of a mixed order and of a packing, made without torch."
import hashlib, sys
import numpy as np
from llmbook.tokens.packing import best_fit
from llmbook.tokens.shuffle import MixedOrder, permuted

if __name__ == '__main__':
    rows = np.arange(10 ** 6, 10 ** 6 + 500)
    packing = best_fit(permuted(rows, 10 ** 7, 3) % 90 + 1, 64)
    drawn = MixedOrder(['a', 'b'], dict(a=2, b=1)).draw(rows)
    assert 'torch' not in sys.modules
    assert 'fastai' not in sys.modules
    digest = hashlib.sha256()
    for array in (*drawn, packing.first, packing.doc, packing.offset):
        digest.update(np.ascontiguousarray(array, '<i8').tobytes())
    print(digest.hexdigest())
