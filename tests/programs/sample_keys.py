"Print the sampling keys of three names as JSON."
import json
from llmbook.prepare.account import sample_key

print(json.dumps([sample_key('a'), sample_key('\ud800'), sample_key(3)]))
