"""Write constraints.txt: the exact version of everything that `.[dev]` needs, as installed in this environment.

For a maintainer: upgrade in .venv, run every test, then `python tools/constraints.py`. Packages that are installed but
not needed are left out, and so is a build's local part (`2.13.0+cpu` becomes `2.13.0`), so that the same file serves
every platform's wheels. The extras `ship` and `serving` are pinned too, from an environment of their own:
`pip install --dry-run --report FILE -c constraints.txt '.[ship,serving]'` in an empty one names what they add.
"""
from configparser import ConfigParser
from importlib import metadata
from pathlib import Path
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
# What the extras ship and serving bring beside it: resolved in an empty environment with the pins of this file.
OF_EXTRAS = {'fastapi': '0.165.0', 'jiter': '0.19.0', 'openai': '3.57.0', 'opentelemetry-api': '1.45.2'}
HELD = {'soupsieve': '2.10'} # newer ones ask for Python 3.11.5, and Debian 12 has 3.11.2


def wanted():
    "Return the requirements of settings.ini, those for development too."
    cfg = ConfigParser(delimiters=['='])
    cfg.read(ROOT/'settings.ini', encoding='utf-8')
    lines = (cfg['DEFAULT']['requirements'] + cfg['DEFAULT']['dev_requirements']).splitlines()
    return [Requirement(x) for x in lines if x.strip()]


def applies(req, extras):
    "Return whether `req` is needed here when its owner is required with `extras`."
    if not req.marker: return True
    environments = [{**default_environment(), 'extra': extra} for extra in extras or {''}]
    return any(req.marker.evaluate(environment) for environment in environments)


def earlier(name):
    "Return the version that constraints.txt has today, for a package that set-up took out again (tools/install.py)."
    lines = (ROOT/'constraints.txt').read_text().splitlines()
    return next(line.split('==')[1] for line in lines if line.startswith(f'{name}=='))


def closure(todo):
    "Return name -> version of the requirements and of all that they require in turn."
    found = {}
    seen = set()
    while todo:
        req = todo.pop()
        key = canonicalize_name(req.name), frozenset(req.extras)
        if key in seen: continue
        seen.add(key)
        try: dist = metadata.distribution(req.name)
        except metadata.PackageNotFoundError:
            found[key[0]] = earlier(key[0])
            continue
        found[key[0]] = Version(dist.version).public
        todo += [r for r in map(Requirement, dist.requires or []) if applies(r, req.extras | {''})]
    return found


if __name__ == '__main__':
    pins = {**OF_EXTRAS, **closure(wanted()), **HELD}
    head = '# The exact versions that the Makefile installs, tried together; written by tools/constraints.py\n'
    lines = [f'{name}=={version}\n' for name, version in sorted(pins.items())]
    (ROOT/'constraints.txt').write_text(head + ''.join(lines))
    print(f'constraints.txt: {len(pins)} packages')
