"Print a digest of the beginning of the embedded corpus, cleaned and masked."
import hashlib
from llmbook.clean.pii import mask_personal
from llmbook.clean.text import clean
from llmbook.read.embedded import embedded_corpus

masked = [str(mask_personal(clean(d).text)) for d in embedded_corpus(300_000)]
print(hashlib.sha256(''.join(masked).encode()).hexdigest())
