"""Print what the filters import although they must start fast."""
import sys
import llmbook.clean.language, llmbook.filters.content, llmbook.filters.ngram_lm, llmbook.filters.toxicity # noqa: F401

print([m for m in ('torch', 'fastai', 'py3langid', 'matplotlib', 'scipy') if m in sys.modules])
