"Print the fingerprint of the beginning of the embedded corpus, and what dedup finds in it."
from llmbook.dedup.near import dedup
from llmbook.read.sources import corpus_fingerprint, embedded_corpus

docs = list(embedded_corpus(400_000))
result = dedup(docs)
print(corpus_fingerprint(docs), result.cluster, result.kept_for, result.pairs)
