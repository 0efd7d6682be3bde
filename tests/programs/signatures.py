"""Print the SHA-256 of the signatures of two texts: 16 digits for the exact hashes, all for the bands."""
import hashlib
from llmbook.dedup.minhash import Signer

def digest(x): return hashlib.sha256(x.astype('<u8').tobytes()).hexdigest()

s = Signer().sign(['One two three four five six seven.', 'antidisestablishmentarianism ' * 9])
print(digest(s['exact'])[:16], digest(s['bands']))
