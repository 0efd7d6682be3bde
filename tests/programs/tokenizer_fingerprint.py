"tokenizer_fingerprint.py MODEL: print the fingerprint of a tokenizer trained on the texts of test_tokenize."
import sys
from test_tokenize import texts
from llmbook.tokens.tokenizer import tokenizer_fingerprint, train_tokenizer

if __name__ == '__main__': print(tokenizer_fingerprint(train_tokenizer(texts(), 450, sys.argv[1], code=True)))
