"The folder with real data that some tests look at; `LLMBOOK_DATA` names another."
import os
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get('LLMBOOK_DATA') or ROOT.parent/'shared'/'data')
needs_data = pytest.mark.skipif(not DATA.exists(), reason='needs LLMBOOK_DATA')


def real_data(*parts):
    "Return a file or folder of the real data; skip the test with its name where it is absent."
    path = DATA.joinpath(*parts)
    if not path.exists(): pytest.skip(f"needs LLMBOOK_DATA with {'/'.join(parts)}")
    return path
