"batches_digest.py DATA: print a digest of the batches of a prepared folder."
import hashlib, sys
from llmbook.tokens.loaders import lm_dls

if __name__ == '__main__':
    dls = lm_dls(sys.argv[1], bs=4, seq_len=16, steps=6, seed=7, device='cpu')
    digest = hashlib.sha256()
    for dl in (dls.train, dls.train, dls.valid):
        for x, y in dl: digest.update(x.numpy().tobytes() + y.numpy().tobytes())
    print(digest.hexdigest())
