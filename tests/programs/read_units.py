"Read units, one as JSON on each line of the input, and print the documents of each as a line of JSON."
import json, sys
from llmbook.read.sources import Unit, read_unit

for line in sys.stdin:
    unit = Unit(**json.loads(line))
    print(json.dumps([vars(d) for d in read_unit(unit)]))
