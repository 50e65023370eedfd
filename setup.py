"""Packaging: every value comes from settings.ini."""
from configparser import ConfigParser
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

here = Path(__file__).parent
parser = ConfigParser(delimiters=['='])
parser.read(here/'settings.ini', encoding='utf-8')
cfg = parser['DEFAULT']

extras = {name: cfg[f'{name}_requirements'].split() for name in ('eval', 'experiments', 'search', 'ray', 'slurm', 'hub', 'bench', 'docs', 'dev')}
extras['all'] = sorted({requirement for requirements in extras.values() for requirement in requirements})
page = f"{cfg['git_url']}/blob/{cfg['branch']}"
readme = (here/'README.md').read_text(encoding='utf-8')
readme = readme.replace('](nbs/images/', f"]({page.replace('/blob/', '/raw/')}/nbs/images/").replace('](results/', f']({page}/results/')


class BuildWithExperiments(build_py):
    "Beside the modules, the experiment notebooks, grids and recipes."

    def run(self):
        super().run()
        if getattr(self, 'editable_mode', False): return  # a checkout has them in nbs
        source, target = here/'nbs'/'experiments', Path(self.build_lib)/cfg['lib_name']/'experiments'
        for path in sorted([*source.glob('*.ipynb'), *source.glob('*.yaml'), *source.glob('recipes/*.yaml')]):
            to = target/path.relative_to(source)
            self.mkpath(str(to.parent))
            self.copy_file(str(path), str(to))


setup(
    name=cfg['lib_name'],
    version=cfg['version'],
    description=cfg['description'],
    long_description=readme,
    long_description_content_type='text/markdown',
    keywords=cfg['keywords'],
    author=cfg['author'],
    author_email=cfg['author_email'],
    license='Apache-2.0',
    url=cfg['git_url'],
    project_urls={'Documentation': cfg['doc_host'] + cfg['doc_baseurl'], 'Source': cfg['git_url'], 'Issues': cfg['git_url'] + '/issues',
                  'Changelog': f'{page}/CHANGELOG.md'},
    classifiers=['Development Status :: 3 - Alpha', 'Intended Audience :: Science/Research', 'Operating System :: OS Independent',
                 'Topic :: Scientific/Engineering :: Artificial Intelligence', 'Programming Language :: Python :: 3',
                 *(f'Programming Language :: Python :: 3.{minor}' for minor in range(10, 14))],
    packages=[cfg['lib_name'], f"{cfg['lib_name']}.weights"],
    package_data={f"{cfg['lib_name']}.weights": ['*']},
    cmdclass={'build_py': BuildWithExperiments},
    python_requires=f">={cfg['min_python']}",
    install_requires=cfg['requirements'].split(),
    extras_require=extras,
    entry_points={
        'console_scripts': cfg['console_scripts'].split(),
        'nbdev': [f"{cfg['lib_name']}={cfg['lib_name']}._modidx:d"],
    },
    zip_safe=False,
)
