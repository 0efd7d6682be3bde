"Hands settings.ini to setuptools; everything the package says about itself stands there."
from configparser import ConfigParser
from setuptools import setup

cfg = ConfigParser(delimiters=['='])
cfg.read('settings.ini', encoding='utf-8')
cfg = cfg['DEFAULT']
lines = lambda key: [x.strip() for x in cfg.get(key, '').splitlines() if x.strip()]
extras = {key.removesuffix('_requirements'): lines(key) for key in cfg if key.endswith('_requirements')}

setup(
    version=cfg['version'],
    description=cfg['description'],
    keywords=cfg['keywords'].split(),
    author=cfg['author'],
    license_expression=cfg['license'],
    python_requires=f">={cfg['min_python']},<{cfg['max_python']}",
    install_requires=lines('requirements'),
    extras_require=extras,
    long_description=open(cfg['readme'], encoding='utf-8').read(),
    long_description_content_type='text/markdown',
    entry_points={'console_scripts': lines('console_scripts'), 'nbdev': ['llmbook=llmbook._modidx:d']},
)
