"""Packaging: every value comes from settings.ini."""
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

here = Path(__file__).parent
parser = ConfigParser(delimiters=['='])
parser.read(here/'settings.ini', encoding='utf-8')
cfg = parser['DEFAULT']


class BuildWithExperiments(build_py):
    "Beside the modules, the experiment notebooks and grids, which `cebm_sweep` runs."

    def run(self):
        super().run()
        if getattr(self, 'editable_mode', False): return  # a checkout has them in nbs
        folder = Path(self.build_lib)/cfg['lib_name']/'experiments'
        self.mkpath(str(folder))
        for path in sorted((here/'nbs'/'experiments').glob('*.*')):
            if path.suffix in ('.ipynb', '.yaml'): self.copy_file(str(path), str(folder/path.name))


setup(
    name=cfg['lib_name'],
    version=cfg['version'],
    description=cfg['description'],
    long_description=(here/'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    keywords=cfg['keywords'],
    author=cfg['author'],
    author_email=cfg['author_email'],
    license='Apache-2.0',
    url=cfg['git_url'],
    packages=find_packages(include=[cfg['lib_name'], f"{cfg['lib_name']}.*"]),
    package_data={cfg['lib_name']: ['weights/*']},
    cmdclass={'build_py': BuildWithExperiments},
    python_requires=f">={cfg['min_python']}",
    install_requires=cfg['requirements'].split(),
    extras_require={'dev': cfg['dev_requirements'].split(), 'bench': cfg['bench_requirements'].split()},
    entry_points={
        'console_scripts': cfg['console_scripts'].split(),
        'nbdev': [f"{cfg['lib_name']}={cfg['lib_name']}._modidx:d"],
    },
    zip_safe=False,
)
