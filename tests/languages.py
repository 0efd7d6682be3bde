"Short texts in many languages and scripts, read from `languages.toml`."
import tomllib
from pathlib import Path

_TEXTS = tomllib.loads((Path(__file__).parent/'languages.toml').read_text(encoding='utf-8'))
PROSE = _TEXTS['prose']
GENRES = _TEXTS['genres']
MENUS = _TEXTS['menus']
KEYWORDS = _TEXTS['keywords']

PROSE['ko_unspaced'] = PROSE['ko'].replace(' ', '') # as in messages and in scanned pages
