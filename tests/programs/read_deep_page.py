"Extract the text of a page of deeply nested lists within 1.2 GB of memory."
import re
from pathlib import Path
from llmbook.read.html import extract_html

assert extract_html('<ul><li>a' * 200_000 + 'b').endswith('b')
# the process's own peak; that of `resource` begins with the size of the process that started it
status = Path('/proc/self/status')
if status.exists(): assert int(re.search(r'VmHWM:\s+(\d+)', status.read_text())[1]) < 1_200_000
