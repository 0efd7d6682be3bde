"""Print the verdicts of four presets on the embedded corpus; fail if filters import anything slow."""
import sys
from llmbook.filters.presets import check
from llmbook.read.embedded import embedded_corpus

verdicts = []
for doc in embedded_corpus(300_000):
    for preset in ('default', 'web', 'prose', 'code'):
        drop = check(doc, preset)
        verdicts.append(drop and (drop.reason, drop.value))
print(verdicts)
slow = {'torch', 'fastai', 'spacy', 'py3langid'} & set(sys.modules)
assert not slow, f'filters start fast, and imported {slow}'
